"""The page that compares families: what it refuses to draw, what the tables mark, and that everyone can use it."""

import base64
import copy
import io
import json
import re

import pytest
from bs4 import BeautifulSoup
from PIL import Image
from sphinx.application import Sphinx

from course.chapters import CourseError
from course.site import building, families

ADDRESS = "book/families.html"
ABOUT = {"entropy": 2.08, "points": 2000, "train": 1200, "test": 597, "judged": 200, "board": [[-2, -2], [0, 1]]}
COST = {"seconds": 20.1, "evaluations": 40.0, "milliseconds": 0.0272, "weights": 8706}
PLANE = {"nats": 2.5, "likelihood": "exact", "outside": 0.04, "energy": 0.05, "frechet": 0.003}
DIGITS = {"bits": 2.514, "likelihood": "bound", "frechet": 3.3}
QUALITY = {"precision": 0.9, "recall": 0.8, "copying": 0.99}


def family(key, **changes):
    """A row that fits; `changes` are of its scores in the plane."""
    plane = {**PLANE, **QUALITY, **COST, **changes}
    return {
        "key": key, "name": key.title(), "chapter": None, "about": "How it was made.", "reference": False,
        "plane": {"scores": plane, "points": [0.5, -1.25, 0, 2]},
        "digits": {"scores": {**DIGITS, **QUALITY, **COST}, "images": ["0g" * 32, "8" * 64]},
    }  # fmt: skip


def data():
    """The row of fresh data: no likelihood, no cost, no digits."""
    scores = {"outside": 0.0, "energy": 0.01, "frechet": 0.0002, **QUALITY, "copying": 1.0}
    part = {"scores": scores, "points": [0, 0]}
    return {
        "key": "fresh", "name": "Fresh data", "chapter": None, "about": "New.", "reference": True, "plane": part,
        "digits": None,
    }  # fmt: skip


def file_of(*rows):
    return {"about": ABOUT, "rows": [*rows]}


def write(root, content):
    """Puts a file of families into the checkout `root`."""
    path = root / families.FILE
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return root


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_committed_file_fits_and_is_small(request):
    path = request.config.rootpath / families.FILE
    assert families.read(request.config.rootpath)["rows"]
    assert path.stat().st_size <= 150_000


def test_the_page_can_draw_what_fits(tmp_path):
    assert families.read(write(tmp_path, file_of(family("one"), data())))["rows"][1]["key"] == "fresh"


def changed(place, value):
    """A file that fits but for one value; `place` is a way of keys and numbers."""
    content = copy.deepcopy(file_of(family("one"), data()))
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return content


BROKEN = {
    "no JSON": ("{", "is no JSON"),
    "no object": ([], "about: received None"),
    "no rows": (changed(["rows"], []), "rows: received []; rule: a list of rows, at least one of a family"),
    "only data": (file_of(data()), "at least one of a family"),
    "twice": (file_of(family("one"), family("one")), "every key once"),
    "no entropy": (changed(["about", "entropy"], None), "the numbers entropy"),
    "no board": (changed(["about", "board"], [[1]]), "about.board"),
    "no name": (changed(["rows", 0, "name"], " "), "row 'one', name: received ' '; rule: some text"),
    "no chapter": (changed(["rows", 0, "chapter"], 12), "the slug of a chapter"),
    "no kind": (changed(["rows", 0, "reference"], "no"), "true for data"),
    "no task": (changed(["rows", 0, "digits"], ...), "row 'one', digits: received 'nothing'"),
    "no scores": (changed(["rows", 0, "digits"], {}), "an object with scores"),
    "nothing at all": (changed(["rows", 1, "plane"], None), "scores in the plane or on the digits"),
    "a lost number": (
        changed(["rows", 0, "plane", "scores", "recall"], ...),
        "row 'one', plane, recall: received None",
    ),
    "not finite": (changed(["rows", 0, "plane", "scores", "nats"], float("nan")), "a finite number or null"),
    "words": (changed(["rows", 0, "digits", "scores", "bits"], "2.5"), "a finite number or null"),
    "cost of a family": (changed(["rows", 0, "plane", "scores", "weights"], None), "weights: received None"),
    "likelihood": (changed(["rows", 0, "plane", "scores", "likelihood"], "good"), "one of exact, bound, none"),
    "odd points": (changed(["rows", 0, "plane", "points"], [1.0]), "x and y in turn"),
    "far points": (changed(["rows", 0, "plane", "points"], [1.0, 9.0]), "from −3 to 3"),
    "no points": (changed(["rows", 0, "plane", "points"], []), "x and y in turn"),
    "short digit": (changed(["rows", 0, "digits", "images"], ["0" * 63]), "digits of 64 letters"),
    "odd letter": (changed(["rows", 0, "digits", "images"], ["h" * 64]), "0 … 9 and a … g"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_place_and_rule(tmp_path, name):
    content, message = BROKEN[name]
    with pytest.raises(CourseError, match="^families: book/families.json") as caught:
        families.read(write(tmp_path, content))
    assert message in str(caught.value)


def test_a_lost_file_is_told_with_the_command_that_writes_it(tmp_path):
    with pytest.raises(CourseError, match=r"no book/families.json; rule: `course compare` writes it"):
        families.read(tmp_path)


def test_a_broken_file_stops_the_build_before_anything_slow(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(building, "find_course", lambda root: type("Course", (), {"root": root}))
    monkeypatch.setattr(building, "vendor", lambda root: False)
    monkeypatch.setattr(building, "check_evidence", lambda root: None)
    monkeypatch.setattr(building, "run_jupyter_book", lambda *_: pytest.fail("built"))
    with pytest.raises(CourseError, match="row 'one', plane, recall"):
        building.build(write(tmp_path, BROKEN["a lost number"][0]))


def sphinx(root, text):
    """Builds one page with the directives; returns its tree and what Sphinx complained of."""
    (root / "index.md").write_text(text, encoding="utf-8")
    warnings = io.StringIO()
    app = Sphinx(
        root, None, root / "out", root / "trees", "html", status=None, warning=warnings,
        confoverrides={"extensions": ["myst_parser", "course.site.families"], "html_theme": "basic"},
    )  # fmt: skip
    app.build()
    page = root / "out" / "index.html"
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser"), warnings.getvalue()


def test_a_broken_file_is_an_error_at_its_place_on_the_page(tmp_path):
    """Errors and warnings of Sphinx fail the build of the site."""
    write(tmp_path, BROKEN["odd letter"][0])
    _, complaints = sphinx(tmp_path, "# A\n\n```{families-table} digits\n```\n")
    assert re.search(r"index\.md:3: ERROR: families: book/families\.json, row 'one', digits, images", complaints)


def test_an_unknown_table_is_an_error(tmp_path):
    write(tmp_path, file_of(family("one")))
    _, complaints = sphinx(tmp_path, "# A\n\n```{families-table} taste\n```\n")
    assert "ERROR: families-table: received 'taste'; rule: one of plane, digits, cost" in complaints


def test_style_and_script_go_to_the_page_that_needs_them_only(tmp_path):
    write(tmp_path, file_of(family("one"), data()))
    (tmp_path / "other.md").write_text("# Other\n\nText.\n")
    page, complaints = sphinx(
        tmp_path, "# A\n\n```{toctree}\nother\n```\n\n```{families-table} plane\n```\n\n```{families-figure}\n```\n"
    )
    assert "ERROR" not in complaints
    assert page.select_one("link[href*='families.css']")
    assert page.select_one("script[src*='families.js'][defer]")
    assert len(page.select(".families-card")) == 2
    other = (tmp_path / "out" / "other.html").read_text(encoding="utf-8")
    assert "families.css" not in other
    assert "families.js" not in other


# --- the tables -------------------------------------------------------------------------------------------------------


def cells(rows, name):
    """{(family, head of the column): text} of one table."""
    tree = BeautifulSoup(families.table(file_of(*rows), name), "html.parser")
    heads = [" ".join(head.get_text(" ").split()) for head in tree.select("thead th")]
    found = {}
    for line in tree.select("tbody tr"):
        for head, box in zip(heads[1:], line.select("td"), strict=True):
            found[line.th.get_text(), head.split(" ,")[0]] = box
    return found


def best(rows, name="plane"):
    """The families that are marked in each column."""
    return {(who, head.split()[0]) for (who, head), box in cells(rows, name).items() if "(best)" in box.get_text()}


def test_the_best_value_is_marked_in_words_and_weight_too():
    """Bold, a star, and '(best)' for those who do not see them."""
    rows = [family("one", nats=2.5), family("two", nats=2.75)]
    box = next(box for (who, head), box in cells(rows, "plane").items() if who == "One" and head.startswith("−log p"))
    assert box.strong.get_text() == "2.50"
    assert box.select_one(".families-star[aria-hidden=true]").get_text() == "★"
    assert box.get_text().endswith("(best)")
    assert ("Two", "−log") not in best(rows)


def test_each_column_has_its_own_best():
    """Lower for distances, higher for shares, close to 1 from either side for copying; a tie marks both."""
    rows = [family("one", energy=0.04, recall=0.7, copying=0.8), family("two", energy=0.06, recall=0.9, copying=1.1)]
    marked = best(rows)
    assert {("One", "Energy"), ("Two", "Recall"), ("Two", "Copying")} <= marked
    assert not {("Two", "Energy"), ("One", "Recall"), ("One", "Copying")} & marked
    assert {("One", "Precision"), ("Two", "Precision")} <= marked


def test_data_are_no_competitors():
    """They are better than any family can be, and stand below in a group of their own."""
    rows = [data(), family("one"), family("two", energy=0.9)]
    assert ("One", "Energy") in best(rows)
    assert "Fresh data" not in {who for who, _ in best(rows)}
    tree = BeautifulSoup(families.table(file_of(*rows), "plane"), "html.parser")
    assert [row.th.get_text() for row in tree.select("tbody.families-data tr")] == ["Fresh data"]


def test_what_is_trained_equally_is_not_compared():
    """Seconds of training and weights have no best value; a single family has none anywhere."""
    rows = [family("one"), family("two", seconds=5.0, weights=5)]
    assert not {head for _, head in best(rows, "cost")} & {"Training,", "Weights"}
    assert best([family("one"), data()]) == set()


def test_a_bound_is_shown_as_a_bound_and_a_missing_value_as_none():
    rows = [family("one"), family("two", nats=None, likelihood="none")]
    plane, digits = cells(rows, "plane"), cells(rows, "digits")
    assert plane["Two", "−log p ↓"].get_text() == "–none"
    assert "data-value" not in plane["Two", "−log p ↓"].attrs
    assert digits["One", "−log P ↓"].get_text().startswith("≤ 2.51")
    assert plane["One", "−log p ↓"].get_text().startswith("2.50")


def test_a_table_has_a_caption_and_heads_for_rows_and_columns():
    tree = BeautifulSoup(families.table(file_of(family("one"), data()), "plane"), "html.parser")
    assert "entropy 2.08 nats" in tree.caption.get_text()
    assert all(head["scope"] == "col" for head in tree.select("thead th"))
    assert all(row.th["scope"] == "row" for row in tree.select("tbody tr"))
    assert "lower is better" in tree.select("thead th")[1].get_text()


def test_a_row_without_cost_is_not_in_the_table_of_costs():
    assert {who for who, _ in cells([family("one"), data()], "cost")} == {"One"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00049, "0.00049"), (27.21, "27"), (2.718, "2.7"), (1234.5, "1,200"), (0, "0"), (0.95, "0.95")],
)
def test_two_digits_are_enough_for_a_cost(value, text):
    assert families.significant(value) == text


def test_names_are_text_and_not_markup():
    row = family("one") | {"name": "<b>A & B</b>"}
    assert "<b>" not in families.table(file_of(row), "plane")
    assert "<b>" not in families.pictures(row, ABOUT["board"])


# --- the pictures -----------------------------------------------------------------------------------------------------


def test_a_point_lies_where_it_was_drawn():
    """Hundredths, and the second coordinate grows upwards; the squares of the density lie below the points."""
    tree = BeautifulSoup(families.scatter([0.5, -1.25, -0.07, 2], [[-2, 1]], "Words."), "html.parser")
    squares, points = (path["d"] for path in tree.select("path"))
    assert points == "M50 125h0M-7-200h0"
    assert squares == "M-200 -200h100v100h-100z"
    assert tree.svg["role"] == "img"
    assert tree.svg["aria-label"] == "Words."


def test_the_strip_shows_the_gray_levels_that_were_written():
    """Level 0 is white and 16 is black; between two digits the page shows through."""
    tree = BeautifulSoup(families.strip(["0g" * 32, "8" * 64], "Words.", scale=2), "html.parser")
    picture = Image.open(io.BytesIO(base64.b64decode(tree.img["src"].split(",")[1])))
    assert (picture.mode, picture.size) == ("LA", (int(tree.img["width"]), int(tree.img["height"])))
    assert [picture.getpixel((2 * x + 1, 1)) for x in (0, 1, 8, 9)] == [(255, 255), (0, 255), (0, 0), (128, 255)]
    assert tree.img["alt"] == "Words."


def test_pictures_are_told_in_words():
    tree = BeautifulSoup(families.pictures(family("one"), ABOUT["board"]), "html.parser")
    assert "2 samples" in tree.svg["aria-label"]
    assert "4.0% of all samples lie off the squares" in tree.svg["aria-label"]
    assert "2 digits of 8 by 8 pixels, not selected; 90% of all pass for real" in tree.img["alt"]


# --- in the browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(request):
    """The committed file."""
    return families.read(request.config.rootpath)


def test_every_family_has_a_card_and_a_row(site, written):
    tree = BeautifulSoup((site / ADDRESS).read_text(encoding="utf-8"), "html.parser")
    names = [row["name"] for row in written["rows"]]
    assert [card.strong.get_text() for card in tree.select(".families-card")] == names
    tables = [[head.get_text() for head in table.select("tbody th")] for table in tree.select("table.families")]
    assert [row["name"] for row in written["rows"] if row["plane"]] == tables[0]
    assert [row["name"] for row in written["rows"] if row["digits"]] == tables[1]


def test_the_first_page_leads_to_the_comparison(site):
    intro = BeautifulSoup((site / "book" / "intro.html").read_text(encoding="utf-8"), "html.parser")
    assert intro.select_one("article dd a[href='families.html#families']") or intro.select_one(
        "article dd a[href='#families'], article dd a[href^='families.html']"
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_accessible_and_fits(new_page, site_url, axe, theme, width):
    page = new_page(color_scheme=theme, viewport={"width": width, "height": 844})
    page.goto(f"{site_url}{ADDRESS}")
    page.evaluate("() => window.MathJax?.startup?.promise ?? true")
    page.evaluate(axe)
    found = page.evaluate("axe.run(document).then((r) => r.violations.map((v) => [v.id, v.nodes[0].html]))")
    assert found == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (page.blocked, page.errors) == ([], [])


def test_a_table_is_sorted_by_keyboard_and_says_so(page, site_url):
    """One press sorts upwards, the next downwards; what has no value stands last, data stay below."""
    page.goto(f"{site_url}{ADDRESS}")
    table = page.locator("table.families").first
    head = table.locator("thead th").nth(1)
    values = "rows => rows.map((row) => row.cells[1].dataset.value ?? null)"
    bodies = [table.locator("tbody").nth(k).locator("tr") for k in (0, 1)]
    data_rows = bodies[1].evaluate_all("rows => rows.map((row) => row.cells[0].textContent)")
    for direction, order in (("ascending", sorted), ("descending", lambda xs: sorted(xs, reverse=True))):
        head.get_by_role("button").press("Enter")
        assert head.get_attribute("aria-sort") == direction
        found = bodies[0].evaluate_all(values)
        known = [float(value) for value in found if value is not None]
        assert known == order(known)
        assert found[len(known) :] == [None] * (len(found) - len(known))
    table.locator("thead th").first.get_by_role("button").press("Enter")
    names = bodies[0].evaluate_all("rows => rows.map((row) => row.cells[0].textContent)")
    assert names == sorted(names, key=str.lower)
    assert head.get_attribute("aria-sort") is None
    assert sorted(bodies[1].evaluate_all("rows => rows.map((row) => row.cells[0].textContent)")) == sorted(data_rows)


def test_without_scripts_the_tables_are_complete(new_page, site_url, written):
    page = new_page(java_script_enabled=False)
    page.goto(f"{site_url}{ADDRESS}")
    assert page.locator("table.families").count() == 3
    assert page.locator("table.families").first.locator("tbody tr").count() == sum(
        bool(r["plane"]) for r in written["rows"]
    )
    assert page.locator("table.families button").count() == 0


def test_on_a_phone_the_names_stay_while_the_numbers_scroll(new_page, site_url):
    page = new_page(viewport={"width": 390, "height": 844})
    page.goto(f"{site_url}{ADDRESS}")
    box = page.locator(".pst-scrollable-table-container").first
    name = box.locator("tbody th").first
    before = name.bounding_box()["x"]
    box.evaluate("box => { box.scrollLeft = 200; }")
    assert box.evaluate("box => box.scrollLeft") == 200
    assert name.bounding_box()["x"] == pytest.approx(before, abs=1.5)


def test_the_drawing_follows_the_theme(new_page, site_url):
    """Points stand out from board and card by a contrast of at least 3 in both themes."""
    for theme in ("light", "dark"):
        page = new_page(color_scheme=theme)
        page.goto(f"{site_url}{ADDRESS}")
        colors = page.locator(".families-card").first.evaluate(
            """card => [getComputedStyle(card.querySelector('.families-points')).stroke,
                getComputedStyle(card.querySelector('.families-board')).fill, getComputedStyle(card).backgroundColor]"""
        )
        points, board, card = map(luminance, colors)
        assert min(contrast(points, board), contrast(points, card)) >= 3, (theme, colors)


def luminance(color):
    """Of 'rgb(r, g, b)', as WCAG defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    """The contrast of two luminances."""
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)
