"""axe finds nothing against WCAG 2.2 AA: on every chapter and every kind of page, in both themes, at both widths."""

import pytest

# Every rule of WCAG 2.2 AA and the good practices, but for one: axe takes a table heading of MathML for empty.
EXCEPT = {"empty-table-header": {"enabled": False}}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
OTHERS = [
    "book/intro.html",
    "book/evidence.html",
    "book/_generated/equations.html",
    "book/_generated/mistakes.html",
    "book/_generated/homework.html",
    "book/teaching.html",
    "book/bibliography.html",
    "book/api/index.html",
    "book/_generated/api/numerics.html",
    "search.html",
    "genindex.html",
]
RUN = """async ([rules, except]) => {
  const result = await axe.run(document, { runOnly: rules, rules: except, resultTypes: ["violations"] });
  return result.violations.flatMap((rule) => rule.nodes.slice(0, 3).map((node) =>
    `${rule.id}: ${node.target.join(" ")} ${node.html.slice(0, 120)}`));
}"""
TYPESET = "() => window.MathJax?.startup?.promise ?? true"


def violations(page, axe):
    """What axe says of the page as it is."""
    page.evaluate(TYPESET)
    page.evaluate(axe)
    return page.evaluate(RUN, [RULES, EXCEPT])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_chapter_is_accessible(new_page, site_url, chapters, axe, theme):
    page = new_page(color_scheme=theme, reduced_motion="reduce")
    found = []
    for name in chapters:
        page.goto(f"{site_url}{name}")
        open_all(page)
        found += [f"{name}: {violation}" for violation in violations(page, axe)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_kind_of_page_is_accessible(new_page, site_url, chapters, axe, theme):
    page = new_page(color_scheme=theme, reduced_motion="reduce")
    names = [*OTHERS, f"book/_generated/evidence/{chapters[-1].split('/')[1]}"]
    found = []
    for name in names:
        page.goto(f"{site_url}{name}")
        found += [f"{name}: {violation}" for violation in violations(page, axe)]
    assert not found, "\n".join(found)


def test_a_chapter_is_accessible_on_a_phone(new_page, site_url, chapters, axe):
    page = new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.goto(f"{site_url}{chapters[-1]}")
    found = violations(page, axe)
    assert not found, "\n".join(found)


def open_all(page):
    """Opens solutions and detours, so that what they hold is looked at, too."""
    page.locator("button.toggle-button-hidden").evaluate_all("buttons => buttons.forEach((button) => button.click())")
    page.locator("details").evaluate_all("all => all.forEach((details) => { details.open = true; })")
