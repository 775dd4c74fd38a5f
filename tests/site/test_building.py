"""The build on a small course of one chapter: what it puts on the page, what it refuses, and what it leaves behind."""

import re
import shutil

import jupytext
import nbformat
import pytest
from bs4 import BeautifulSoup

from course.chapters import CourseError
from course.site import build, building, site_folder
from course.site.vendor import axe_folder, vendor_folder

CHAPTER = """\
---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {display_name: Python 3, language: python, name: python3}
companion: {modules: [], seconds: 40, memory_gb: 1.5, minutes: 50, needs: [calculus, chapter 08]}
---
(ch-flow-matching)=
# Flow matching

A question with $x_t$. See {eq}`eq-velocity` and {ref}`ch-flow-matching`.

$$ u = x_1 - x_0 $$ (eq-velocity)

```{admonition} Mistake: away from the data
:class: mistake E19
The number that betrays it.
```

```{exercise} The target (warm-up, 3 minutes)
:label: ex-target
What is $u$?
```

```{solution} ex-target
:class: dropdown
The difference.
```

```{code-cell}
:name: one
print("one")
```
"""

TEST = '''\
import pytest


@pytest.mark.verifies("eq-velocity")
@pytest.mark.refutes("E19")
def test_the_velocity_is_the_derivative_of_the_path():
    """A central difference of |x_t| * 2."""
'''

MISTAKES = """\
E19: {chapters: [12], title: Away from the data, wrong: "$x - x_1$", right: "$x_1 - x$"}
E24: {chapters: [10], title: For later, wrong: One., right: Another.}
"""

TOC = """\
format: jb-book
root: book/intro
chapters:
  - file: notebooks/12-flow-matching
  - file: book/_generated/evidence/12-flow-matching
  - file: book/_generated/equations
  - file: book/_generated/mistakes
"""


@pytest.fixture(scope="module")
def course(site, request, tmp_path_factory):
    """A small checkout whose repository has an address, with its site built."""
    root, truth = tmp_path_factory.mktemp("course"), request.config.rootpath
    files = {
        "pyproject.toml": "",
        "book/_toc.yml": TOC,
        "book/_config.yml": with_address((truth / "book" / "_config.yml").read_text(encoding="utf-8")),
        "book/intro.md": "# A small course\n\nOne chapter: {ref}`ch-flow-matching`.\n",
        "book/references.bib": "",
        "companion/__init__.py": "",
        "course/site/mistakes.yml": MISTAKES,
        "tests/test_path.py": TEST,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(truth / "book" / name, root / "book" / name)
    plain = shutil.ignore_patterns("live", "vendor")
    shutil.copytree(truth / "book" / "_static", root / "book" / "_static", ignore=plain)
    shutil.copytree(vendor_folder(truth), vendor_folder(root))
    shutil.copytree(axe_folder(truth), axe_folder(root))
    write_chapter(root, CHAPTER)
    build(root)
    return root


def with_address(config):
    """The configuration of the site with the address of a repository: one setting."""
    changed = re.sub(r"(?m)^  url: .*$", "  url: https://github.com/someone/course", config, count=1)
    assert changed != config
    return changed


def write_chapter(root, text):
    """Writes the chapter's text and its notebook, not executed."""
    source = root / "notebooks" / "12-flow-matching.md"
    source.parent.mkdir(exist_ok=True)
    source.write_text(text, encoding="utf-8")
    nbformat.write(jupytext.reads(text, fmt="md:myst"), source.with_suffix(".ipynb"))


@pytest.fixture
def changed(course):
    """`changed(chapter=, test=)` changes files of the small course until the test ends."""

    def change(chapter=CHAPTER, test=TEST):
        write_chapter(course, chapter)
        (course / "tests" / "test_path.py").write_text(test, encoding="utf-8")

    yield change
    change()


def page(course, name):
    """One page of the small site."""
    return BeautifulSoup((site_folder(course) / name).read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def chapter(course):
    """The page of the chapter."""
    return page(course, "notebooks/12-flow-matching.html")


def words(element):
    """The text of an element, without the marks of its links to itself."""
    return " ".join(element.get_text().replace("#", "").split())


def test_the_number_of_the_slug_stands_in_title_navigation_and_references(chapter):
    assert words(chapter.h1) == "12 Flow matching"
    assert chapter.title.get_text().strip().startswith("12 Flow matching")
    assert "12 Flow matching" in words(chapter.select_one(".bd-sidebar-primary nav"))
    assert chapter.select_one("p a[href='#ch-flow-matching']").get_text() == "12 Flow matching"


def test_equations_and_exercises_are_numbered_by_the_slug(chapter):
    assert words(chapter.select_one("#equation-eq-velocity .eqno")) == "(12.1)"
    assert chapter.select_one("p a[href='#equation-eq-velocity']").get_text() == "(12.1)"
    assert words(chapter.select_one("div.exercise .admonition-title")).startswith("Exercise 12.1 ")
    assert "Exercise 12.1" in words(chapter.select_one("div.solution .admonition-title"))


def test_the_declared_budget_stands_under_the_title(chapter):
    budget = chapter.select_one("h1 + p.budget")
    assert words(budget) == "50 minutes to read and do runs in 40 s and 1.5 GB on two cores needs calculus, chapter 08"


def test_an_equation_and_a_mistake_link_to_the_source_of_their_test(course, chapter):
    under, inside = chapter.select_one("#equation-eq-velocity + p.evidence"), chapter.select_one(".mistake p.evidence")
    assert words(under) == "Checked by the velocity is the derivative of the path"
    assert words(inside) == "Refuted by the velocity is the derivative of the path"
    for line in (under, inside):
        name, _, anchor = line.a["href"].partition("#")
        entry = page(course, f"notebooks/{name}").select_one(f"section:has(> [id='{anchor}']), section[id='{anchor}']")
        assert "def test_the_velocity_is_the_derivative_of_the_path" in entry.get_text()
        assert "A central difference of |x_t| * 2." in entry.get_text(), "the docstring stands as written"


def test_the_index_of_equations_and_the_mistakes_page_lead_there_and_back(course):
    equations, mistakes = page(course, "book/_generated/equations.html"), page(course, "book/_generated/mistakes.html")
    links = {a["href"] for a in equations.select(".index-entry a")}
    assert "../../notebooks/12-flow-matching.html#equation-eq-velocity" in links
    assert any("evidence/12-flow-matching.html#test-test-path-the-velocity" in link for link in links)
    entry = mistakes.select_one("section#e19-away-from-the-data")
    assert {a.get_text() for a in entry.select("dd a")} == {
        "12 Flow matching",
        "The velocity is the derivative of the path",
    }
    assert "../../notebooks/12-flow-matching.html#mistake-e19-12" in {a["href"] for a in entry.select("dd a")}
    assert page(course, "notebooks/12-flow-matching.html").select_one("#mistake-e19-12.mistake")
    assert "For later" not in mistakes.get_text(), "a mistake of a planned chapter waits"


def test_launch_buttons_appear_with_the_address_of_the_repository(chapter):
    links = {a["href"] for a in chapter.select(".dropdown-launch-buttons a")}
    notebook = "notebooks/12-flow-matching.ipynb"
    assert links == {
        f"https://mybinder.org/v2/gh/someone/course/student?urlpath=lab/tree/{notebook}",
        f"https://colab.research.google.com/github/someone/course/blob/student/{notebook}",
    }


def test_without_an_address_no_page_offers_what_it_cannot_do(site, request):
    config = (request.config.rootpath / "book" / "_config.yml").read_text(encoding="utf-8")
    known = '\n  url: ""\n' not in config
    pages = list((site / "notebooks").glob("*.html"))
    offered = [path.name for path in pages if "mybinder.org" in path.read_text(encoding="utf-8")]
    assert len(offered) == (len(pages) if known else 0)


def test_a_second_build_costs_nothing(course, monkeypatch):
    monkeypatch.setattr(building, "run_jupyter_book", lambda *_: pytest.fail("built again"))
    assert build(course) == site_folder(course)


def test_an_unverified_equation_fails_the_build_by_name(course, changed):
    changed(chapter=CHAPTER + "\n$$ a = b $$ (eq-nobody-checks)\n")
    before = (site_folder(course) / "index.html").stat()
    with pytest.raises(CourseError, match=r"notebooks/12-flow-matching\.md:\d+: no test verifies eq-nobody-checks"):
        build(course)
    with pytest.raises(CourseError, match="no test verifies eq-nobody-checks"):
        building.run_jupyter_book(course, course / "book" / "_build" / "by-hand")  # the extension refuses on its own
    assert (site_folder(course) / "index.html").stat() == before


def test_a_mistake_without_a_test_fails_the_build_by_name(course, changed):
    changed(test=TEST.replace('@pytest.mark.refutes("E19")\n', ""))
    with pytest.raises(CourseError, match="mistake E19: no test refutes it"):
        build(course)


def test_a_draft_is_built_with_its_gaps(course, changed, monkeypatch, capsys):
    monkeypatch.setenv(building.DRAFT, "1")
    monkeypatch.setattr(building, "run_jupyter_book", lambda *_: pytest.fail("reached Jupyter Book"))
    changed(chapter=CHAPTER + "\n$$ a = b $$ (eq-nobody-checks)\n")
    with pytest.raises(pytest.fail.Exception, match="reached Jupyter Book"):
        build(course)
    assert "no test verifies eq-nobody-checks" in capsys.readouterr().out


def test_a_warning_fails_the_build_and_leaves_the_old_site(course, changed):
    changed(chapter=CHAPTER + "\nA link to {ref}`nowhere`.\n")
    before = (site_folder(course) / "index.html").stat()
    with pytest.raises(CourseError, match=r"gave 1 warnings .*\n.*12-flow-matching.*undefined label: 'nowhere'"):
        build(course)
    assert (site_folder(course) / "index.html").stat() == before
    assert not list((course / "book" / "_build").glob("work-*")), "nothing half-written stays"
    assert not building.is_current(course)


def test_no_page_of_the_site_knows_where_it_was_built(site, request):
    here = str(request.config.rootpath)
    texts = (path for path in site.rglob("*") if path.suffix in {".html", ".js", ".json", ".ipynb", ".txt"})
    assert [path.name for path in texts if here in path.read_text(encoding="utf-8")] == []
