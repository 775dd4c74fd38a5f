"""Every chapter keeps the house's rules: one slug, named cells, exercises with answers, figures with a text."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from companion import exercises
from course.chapters import Course
from course.notebooks import check, read_notebook, read_source
from course.site.evidence import read_ledger

ROOT = Path(__file__).resolve().parents[2]
COURSE = Course(ROOT)
CHAPTERS = COURSE.chapters()
MOST_SECONDS, MOST_GB = 120, 2
BLOCK = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{(?P<kind>[\w-]+)\} *(?P<title>.*)\n(?P<body>(?:.*\n)*?)(?P=fence)$", re.MULTILINE
)

each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.slug)


def blocks(chapter, kind: str) -> list[tuple[str, str]]:
    """Title and body of each directive of a kind."""
    found = BLOCK.finditer(chapter.source.read_text(encoding="utf-8"))
    return [(match["title"], match["body"]) for match in found if match["kind"] == kind]


def option(body: str, name: str) -> str | None:
    """The value of `:name:` in the body of a directive."""
    match = re.search(rf"^:{name}: *(.*)$", body, re.MULTILINE)
    return match and match[1].strip()


def cells(chapter, kind: str):
    """The cells of a chapter's text, by kind."""
    return [cell for cell in read_source(chapter).cells if cell.cell_type == kind]


def test_texts_and_notebooks_agree():
    assert check(COURSE) == []


def test_there_are_chapters():
    assert len(CHAPTERS) >= 3


@each_chapter
def test_the_slug_is_the_same_in_file_label_and_table_of_contents(chapter):
    first, second = cells(chapter, "markdown")[0].source.splitlines()[:2]
    assert first == f"(ch-{chapter.topic})="
    assert re.fullmatch(r"# \S.*", second)
    toc = yaml.safe_load((ROOT / "book/_toc.yml").read_text(encoding="utf-8"))
    files = re.findall(r"'file': 'notebooks/([^']*)'", str(toc))
    assert files.count(chapter.slug) == 1


def test_the_table_of_contents_names_no_other_chapter():
    toc = yaml.safe_load((ROOT / "book/_toc.yml").read_text(encoding="utf-8"))
    files = re.findall(r"'file': 'notebooks/([^']*)'", str(toc))
    assert files == [chapter.slug for chapter in CHAPTERS]


@each_chapter
def test_the_declared_budget_is_within_the_course_limits(chapter):
    declared = read_source(chapter).metadata["companion"]
    assert declared["seconds"] <= MOST_SECONDS
    assert declared["memory_gb"] <= MOST_GB


@each_chapter
def test_every_exercise_has_an_entry_an_answer_cell_and_a_solution(chapter):
    labels = [option(body, "label") for _, body in blocks(chapter, "exercise")]
    solved = [title for title, _ in blocks(chapter, "solution")]
    answers = [cell.metadata["name"] for cell in cells(chapter, "code") if "answer" in cell.metadata.get("tags", [])]
    assert len(labels) >= 5
    assert len(set(labels)) == len(labels)
    assert [label for label in labels if not (label or "").startswith("ex-")] == []
    assert sorted(solved) == sorted(labels)
    assert sorted(f"ex-{name}" for name in answers) == sorted(labels)
    for name in answers:
        exercises.find(name)


def test_every_exercise_of_the_package_stands_in_one_chapter():
    """An exercise that no page asks is dead, and one that two pages ask has two solutions to keep alike."""
    named = [f"{topic}.{name}" for topic in exercises.topics() for name in exercises.names(topic)]
    asked = [cell.metadata["name"] for chapter in CHAPTERS for cell in cells(chapter, "code")
             if "answer" in cell.metadata.get("tags", [])]  # fmt: skip
    assert sorted(name.partition(".")[2] for name in named) == sorted(asked)


@each_chapter
def test_solutions_are_collapsed(chapter):
    assert {option(body, "class") for _, body in blocks(chapter, "solution")} == {"dropdown"}


@each_chapter
def test_an_answer_cell_checks_its_own_exercise(chapter):
    for cell in cells(chapter, "code"):
        if "answer" in cell.metadata.get("tags", []):
            assert re.search(rf"check\(\s*[\"']{re.escape(cell.metadata['name'])}[\"']", cell.source), cell.metadata[
                "name"
            ]


@each_chapter
def test_the_reader_finds_the_four_boxes_that_every_chapter_has(chapter):
    classes = " ".join(option(body, "class") or "" for _, body in blocks(chapter, "admonition")).split()
    assert classes.count("overview") == classes.count("remember") == 1
    assert "predict" in classes
    assert "mistake" in classes


@each_chapter
def test_a_chapter_imports_neither_tests_nor_tooling(chapter):
    imported = set()
    for cell in cells(chapter, "code"):
        for node in ast.walk(ast.parse(re.sub(r"^[%!].*$", "", cell.source, flags=re.MULTILINE))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    assert imported & {"tests", "course", "notebooks", "benchmarks", "IPython", "pytest"} == set()


@each_chapter
def test_every_picture_has_a_text_in_its_place(chapter):
    for cell in read_notebook(chapter).cells:
        if cell.cell_type == "markdown":
            assert re.findall(r"!\[\s*\]\(", cell.source) == [], cell.id
            continue
        pictures = [out for out in cell.outputs if any(kind.startswith("image/") for kind in out.get("data", {}))]
        if pictures:
            text = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(text.split()) >= 4, f"cell {cell.id}: its alt text is {text!r}"


@each_chapter
def test_every_chapter_prints_something_and_has_a_live_figure(chapter):
    notebook = read_notebook(chapter)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any(output.output_type == "stream" and output.name == "stdout" for output in outputs)
    assert notebook.metadata["live_figures"]


@each_chapter
def test_no_cell_answers_an_exercise(chapter):
    """A chapter is committed unanswered: its exercises print 'Not answered yet', and no later cell needs them."""
    for cell in read_notebook(chapter).cells:
        if cell.cell_type == "code" and "answer" in cell.metadata.get("tags", []):
            printed = "".join(output.get("text", "") for output in cell.outputs)
            assert printed.startswith("Not answered yet"), cell.id


def test_every_equation_mistake_and_marker_has_its_partner():
    assert read_ledger(ROOT).problems() == []


def test_the_listed_mistakes_of_a_chapter_stand_in_it():
    ledger = read_ledger(ROOT)
    shown = {box.number for box in ledger.boxes}
    assert ledger.refuted
    assert [mistake.number for mistake in ledger.refuted if mistake.number not in shown] == []
