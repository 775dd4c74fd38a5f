"""What a reader does: search, switch the theme, copy code, open a solution, follow an equation; by keyboard, too."""

import itertools
import re
from urllib.parse import urlsplit

import pytest

TYPESET = "() => window.MathJax?.startup?.promise ?? true"
THEME = "() => document.documentElement.dataset.theme"
FOCUSED = """() => {
  const box = document.activeElement;
  const text = (box.getAttribute("aria-label") ?? box.textContent).trim().slice(0, 60);
  const index = [...document.querySelectorAll("*")].indexOf(box);
  return box === document.body ? null : { text, index, seen: box.getClientRects().length > 0 };
}"""


@pytest.fixture
def chapter(page, site_url, chapters):
    """The last chapter, typeset."""
    page.goto(f"{site_url}{chapters[-1]}")
    page.evaluate(TYPESET)
    return page


def test_search_finds_a_term_in_the_chapter_that_teaches_it(page, site_url):
    page.goto(f"{site_url}search.html?q=velocity")
    page.locator("#search-results li a[href*='notebooks/12-flow-matching']").first.wait_for()
    assert page.errors == []


def test_the_search_field_opens_by_keyboard_and_leads_to_results(chapter):
    chapter.keyboard.press("Control+k")
    field = chapter.locator(
        "#pst-search-dialog input[type=search], dialog input[type=search], .search-button__search-container input"
    ).first
    field.wait_for(state="visible")
    field.fill("velocity")
    field.press("Enter")
    chapter.wait_for_url(re.compile(r"search\.html\?q=velocity"))


@pytest.mark.parametrize("system", ["light", "dark"])
def test_the_theme_follows_the_system_and_the_reader(new_page, site_url, chapters, system):
    page = new_page(color_scheme=system)
    page.goto(f"{site_url}{chapters[-1]}")
    assert page.evaluate(THEME) == system
    seen = set()
    for _ in range(3):
        page.locator("button.theme-switch-button:visible").first.click()
        seen.add(page.evaluate(THEME))
    assert seen == {"light", "dark"}


def test_the_chosen_theme_stays_on_the_next_page(new_page, site_url, chapters):
    page = new_page(color_scheme="light")
    page.goto(f"{site_url}{chapters[0]}")
    while page.evaluate(THEME) != "dark":
        page.locator("button.theme-switch-button:visible").first.click()
    page.goto(f"{site_url}{chapters[-1]}")
    assert page.evaluate(THEME) == "dark"


def test_the_copy_button_copies_the_code_of_a_cell(new_page, site_url, chapters):
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    page.goto(f"{site_url}{chapters[-1]}")
    cell = page.locator("div.cell_input:visible").first
    cell.scroll_into_view_if_needed()
    cell.hover()
    cell.locator("button.copybtn").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == cell.locator("pre").inner_text().strip()


def test_a_solution_is_closed_opens_by_keyboard_and_closes_again(chapter):
    solution = chapter.locator("div.solution").first
    body = solution.locator(":scope > .section, :scope > :not(.admonition-title):not(button)").first
    assert not body.is_visible()
    button = solution.locator("button.toggle-button")
    button.focus()
    chapter.keyboard.press("Enter")
    body.wait_for(state="visible")
    assert solution.locator("button.toggle-button").evaluate("b => b.getAttribute('aria-expanded')") == "true"
    chapter.keyboard.press("Enter")
    body.wait_for(state="hidden")


def test_every_equation_leads_to_the_source_of_its_test(chapter, site_url):
    labelled = chapter.locator("div.math[id^='equation-eq-']")
    lines = chapter.locator("div.math[id^='equation-eq-'] + p.evidence")
    assert labelled.count() == lines.count() > 0
    links = lines.locator("a").evaluate_all("links => links.map((link) => link.href)")
    assert all("/_generated/" in link for link in links)
    chapter.goto(links[0])
    anchor = urlsplit(links[0]).fragment
    assert (
        "def test_" in chapter.locator(f"section:has(> span[id='{anchor}']), section[id='{anchor}']").first.inner_text()
    )


def test_an_equation_is_typeset_and_numbered_by_its_chapter(chapter, chapters):
    number = int(chapters[-1].split("/")[1][:2])
    equation = chapter.locator("div.math[id^='equation-eq-']").first
    assert equation.locator("mjx-container").count() == 1
    assert equation.locator(".eqno").inner_text().startswith(f"({number}.1)")
    reference = chapter.locator("a[href^='#equation-eq-']:not(.headerlink)").first
    target = chapter.locator(f"[id='{reference.get_attribute('href')[1:]}']")
    assert re.fullmatch(rf"\({number}\.\d+\)", reference.inner_text())
    assert target.locator(".eqno").inner_text().startswith(reference.inner_text())


def test_a_long_equation_scrolls_in_its_box_by_keyboard_on_a_phone(new_page, site_url, chapters):
    page = new_page(viewport={"width": 390, "height": 844})
    page.goto(f"{site_url}{chapters[-1]}")
    page.evaluate(TYPESET)
    wide = page.locator("div.math > mjx-container[tabindex='0']")
    assert wide.count() > 0, "no equation of this chapter is wider than a phone"
    box = wide.first
    box.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("box => box.scrollLeft > 0", arg=box.element_handle())


def test_the_skip_link_is_the_first_stop_and_leads_to_the_text(chapter):
    chapter.keyboard.press("Tab")
    assert "skip" in chapter.evaluate(FOCUSED)["text"].lower()
    chapter.keyboard.press("Enter")
    chapter.wait_for_url(re.compile("#main-content$"))


def test_the_keyboard_reaches_everything_that_can_be_used(chapter):
    """Tab walks through every visible control of the page in order, never lands on something hidden, and gets out."""
    usable = chapter.evaluate(
        """() => [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")]
          .filter((box) => box.checkVisibility({ checkVisibilityCSS: true }) && !box.disabled && box.tabIndex >= 0
            && !(box.type === "radio" && !box.checked) && !box.closest("[inert], dialog:not([open])")).length"""
    )
    stops, hidden = set(), []
    for _ in range(usable + 40):
        chapter.keyboard.press("Tab")
        stop = chapter.evaluate(FOCUSED)
        if stop is None or (stop["index"] in stops and len(stops) > 5):
            break
        stops.add(stop["index"])
        if not stop["seen"]:
            hidden.append(stop)
    assert hidden == []
    assert len(stops) >= 0.97 * usable


def test_landmarks_divide_the_page(chapter):
    for role in ("main", "navigation", "contentinfo"):
        assert chapter.get_by_role(role).count() >= 1, role
    assert chapter.locator("main article h1").count() == 1


def test_headings_descend_one_level_at_a_time(page, site_url, chapters):
    for name in chapters:
        page.goto(f"{site_url}{name}")
        levels = page.locator("main :is(h1, h2, h3, h4, h5, h6)").evaluate_all("all => all.map((h) => +h.localName[1])")
        assert levels[0] == 1, name
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), (name, levels)
