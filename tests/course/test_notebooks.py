"""The text of a chapter and its executed notebook are held together without executing anything."""

import json

import nbformat
import pytest

from course.chapters import CourseError
from course.notebooks import check, check_chapter, drift, read_source, stray_graphs
from tests.course.toy import FRONT_MATTER, code

BODY = "(ch-try)=\n# Try\n\n" + code("one", "print(1)") + "Between.\n\n" + code("two", "x = 2", tags="[answer]")


def committed(chapter) -> nbformat.NotebookNode:
    """Writes the notebook as an execution would, without executing."""
    notebook = read_source(chapter)
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
    nbformat.write(notebook, chapter.notebook)
    return notebook


@pytest.fixture
def chapter(toy):
    chapter = toy.write("01-try", BODY)
    committed(chapter)
    return chapter


def test_a_pair_that_agrees_has_no_problems(toy, chapter):
    assert check(toy) == []


def test_cell_ids_are_names_and_digests_and_survive_an_insertion(toy, chapter):
    before = [cell.id for cell in read_source(chapter).cells]
    after = [
        cell.id
        for cell in read_source(toy.write("01-try", BODY.replace("# Try", "# Try\n\n" + code("zero", "0")))).cells
    ]
    assert before[1::2] == ["one", "two"]
    assert set(before[1:]) < set(after)
    assert len(set(after)) == len(after)


def test_equal_texts_get_different_ids(toy):
    source = read_source(toy.write("01-try", BODY.replace("Between.", "Same.\n\n+++\n\nSame.")))
    assert len({cell.id for cell in source.cells}) == len(source.cells)


def test_front_matter_and_options_of_cells_reach_the_notebook(toy):
    options = {"tags": "[hide-input]", "tolerance": "{rtol: 1.0e-2}", "mystnb": '{image: {alt: "a curve"}}'}
    source = read_source(toy.write("01-try", BODY + code("plot", "1", **options)))
    assert source.metadata["companion"]["seconds"] == 60
    assert source.cells[-1].metadata == {
        "name": "plot",
        "tags": ["hide-input"],
        "tolerance": {"rtol": 0.01},
        "mystnb": {"image": {"alt": "a curve"}},
    }


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("print(1)", "print(2)", "stale: cell one was changed in the text"),
        ("[answer]", "[hide-input]", "stale: cell two was changed in the text"),
        (":name: two", ":name: drei", "stale: cell drei is new in the text"),
        ("Between.", "Amid.", "stale: text 'Between.' is gone from the text"),
        ("minutes: 5", "minutes: 6", "stale: the front matter differs: companion"),
    ],
)
def test_a_stale_notebook_is_found_and_the_cell_is_named(toy, chapter, old, new, said):
    chapter.source.write_text(chapter.source.read_text().replace(old, new))
    problems = check(toy)
    assert any(said in problem for problem in problems)
    assert all("run `course run 01-try`" in problem for problem in problems)


def test_cells_in_another_order_are_found(chapter):
    source = read_source(chapter)
    executed = nbformat.read(chapter.notebook, 4)
    executed.cells[1], executed.cells[3] = executed.cells[3], executed.cells[1]
    assert drift(source, executed) == ["the cells stand in another order"]


def test_a_missing_partner_is_found_on_either_side(toy, chapter):
    (toy.notebooks / "02-lost.ipynb").write_text("{}")
    chapter.notebook.unlink()
    problems = check(toy)
    assert any("01-try.ipynb: received no such file beside 01-try.md" in problem for problem in problems)
    assert any("02-lost.ipynb: received a notebook without its text" in problem for problem in problems)


def test_stray_files_and_shared_numbers_are_found(toy, chapter):
    (toy.notebooks / "notes.txt").touch()
    toy.write("01-again", BODY)
    problems = "\n".join(check(toy))
    assert "notes.txt: received a file that is no chapter" in problems
    assert "01-try.md: received the number of 01-again" in problems


def test_a_notebook_that_is_no_notebook_is_told_not_raised(toy, chapter):
    chapter.notebook.write_text('{"cells": [')
    assert any("received a file that is no notebook" in problem for problem in check_chapter(toy, chapter))


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ({"output_type": "stream", "name": "stderr", "text": "Warning: x"}, "wrote to stderr: 'Warning: x'"),
        ({"output_type": "stream", "name": "stdout", "text": "<object at 0x7f01a2b3c4d5>"}, "printed '0x7f01a2b3c4d5'"),
        ({"output_type": "stream", "name": "stdout", "text": "saved to /home/ada/x.pt"}, "printed '/home/ada'"),
        ({"output_type": "error", "ename": "KeyError", "evalue": "3", "traceback": []}, "raised KeyError: 3"),
    ],
)
def test_outputs_that_may_not_be_committed_are_found(toy, chapter, output, said):
    notebook = nbformat.read(chapter.notebook, 4)
    notebook.cells[1].outputs = [nbformat.from_dict(output)]
    nbformat.write(notebook, chapter.notebook)
    assert any(said in problem for problem in check(toy))


def test_a_cell_that_was_never_executed_is_found(toy, chapter):
    notebook = nbformat.read(chapter.notebook, 4)
    notebook.cells[1].execution_count = None
    nbformat.write(notebook, chapter.notebook)
    assert any("cell one was never executed" in problem for problem in check(toy))


def test_graphs_without_a_figure_and_figures_without_graphs_are_found(toy, chapter):
    (toy.live / "orphan").mkdir()
    notebook = json.loads(chapter.notebook.read_text())
    notebook["metadata"]["live_figures"] = ["wanted"]
    chapter.notebook.write_text(json.dumps(notebook))
    assert stray_graphs(toy) == [
        "book/_static/live/orphan: received graphs that no chapter shows; rule: delete the folder or run its chapter"
    ]
    assert any("the graphs of the live figure wanted are missing" in problem for problem in check(toy))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seconds: 60", "seconds: fast", "received seconds: 'fast'; rule: a number"),
        ("seconds: 60", "seconds: 0", "received seconds: 0; rule: more than 0"),
        ("  minutes: 5\n", "", "received no 'minutes'"),
        ("needs: []", "needs: []\n  mintues: 5", "received the unknown 'mintues'"),
        ("[numerics.ode]", "numerics.ode", "received modules: 'numerics.ode'; rule: a list"),
        ("rtol: 1.0e-3", "rtol: 1e-3", "received rtol: '1e-3'"),
        ("rtol: 1.0e-3", "rol: 1.0e-3", "received ['rol']"),
        ("companion:", "compagnon:", "received no 'companion:' block"),
        ("name: python3", "name: julia", "received no kernelspec named python3"),
    ],
)
def test_a_wrong_front_matter_is_told(toy, old, new, said):
    chapter = toy.write("01-try", BODY, FRONT_MATTER.replace(old, new))
    assert any(said in problem for problem in check_chapter(toy, chapter))


def test_a_front_matter_that_is_no_yaml_is_told(toy):
    chapter = toy.write("01-try", BODY, FRONT_MATTER.replace("needs: []", "needs: ["))
    assert any("01-try.md: " in problem for problem in check_chapter(toy, chapter))


def test_a_module_that_does_not_exist_is_told(toy):
    chapter = toy.write("01-try", BODY, FRONT_MATTER.replace("numerics.ode", "numerics.oed"))
    assert any("received modules: numerics.oed" in problem for problem in check_chapter(toy, chapter))


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("```{code-cell}\n1\n```\n", "received name: None; rule: kebab-case"),
        (code("Two_Words", "1"), "received name: 'Two_Words'; rule: kebab-case"),
        (code("one", "1"), "received the name 2 times"),
        (code("long", *["x = 1"] * 16), "received 16 lines; rule: at most 15"),
        (code("loose", "1", tolerance="{rtol: 2, all: 1}"), "received ['all']"),
        ("````{note}\n```{code-cell}\n:name: in\n1\n```\n````\n", "received a code-cell inside another block"),
    ],
)
def test_a_cell_that_breaks_a_rule_is_refused(toy, cell, said):
    chapter = toy.write("01-try", BODY + cell)
    with pytest.raises(CourseError) as refusal:
        read_source(chapter)
    assert said in str(refusal.value)
