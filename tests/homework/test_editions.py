"""The student edition: complete, reproducible, and without a trace of what is not handed out."""

import io
import json
import zipfile

import nbformat
import pytest

from companion.exercises.homework import SEALED, Checks
from course.homework.editions import edition
from course.homework.sources import load, run
from tests.homework import toy


@pytest.fixture
def assignment(tmp_path):
    return load(toy.write(tmp_path))


def test_cells_carry_their_names_and_nbgraders_marks(assignment):
    notebook = edition(assignment).notebook
    nbformat.validate(notebook)
    marks = {cell.id: cell.metadata.nbgrader for cell in notebook.cells if "nbgrader" in cell.metadata}
    assert all(mark.grade_id == name for name, mark in marks.items())
    graded = {name: mark.points for name, mark in marks.items() if mark.grade}
    assert graded == {"scale-it-check": 3, "scale-it-hidden": 1, "draw-it-check": 3, "choose-check": 1, "explain": 2}
    assert [name for name, mark in marks.items() if mark.solution] == ["scale-it", "draw-it", "choose", "explain"]
    assert [name for name, mark in marks.items() if not mark.locked] == ["scale-it", "draw-it", "choose", "explain"]


def test_nothing_that_is_not_handed_out_is_in_it(assignment):
    text = b"\n".join(edition(assignment).files.values()).decode()
    secret = [
        "torch.special.ndtri",
        "return scale * x",
        "an empty tensor",
        "torch.zeros(0)",
        "says why",
        "Because",
        "max(",
    ]
    assert [word for word in secret if word in text] == []
    assert [word for word in secret if word not in toy.ANSWERS] == []


def test_a_sealed_problem_hands_out_no_value_and_no_catalogue(assignment):
    record = edition(assignment).checks["checks"]["choose"]
    assert record == {"sealed": True, "kind": "text", "shape": None, "form": record["form"]}
    assert "letters" not in json.dumps(record)


def test_equal_sources_give_equal_bytes_and_each_variant_its_own(assignment, tmp_path):
    again = load(toy.write(tmp_path / "again"))
    assert edition(assignment).archive == edition(again).archive
    assert edition(assignment, 1).digest != edition(assignment, 0).digest
    assert "scale = 3.0" in edition(assignment, 1).files["01-toys.ipynb"].decode()


def test_the_archive_holds_one_folder_with_readable_files(assignment):
    archive = zipfile.ZipFile(io.BytesIO(edition(assignment).archive))
    assert archive.namelist() == ["01-toys/01-toys.checks.json", "01-toys/01-toys.ipynb"]
    assert {member.external_attr >> 16 for member in archive.infolist()} == {0o100644}


@pytest.fixture
def checks(assignment, tmp_path):
    (tmp_path / "01-toys.checks.json").write_bytes(edition(assignment).files["01-toys.checks.json"])
    return Checks("01-toys", tmp_path)


def told(assignment, checks, name, answer):
    problem = next(problem for problem in assignment.problems if problem.name == name)
    return str(checks.verdict(name, run(problem.given, assignment.variants[0], answer, problem.tests[0].source)))


def test_the_recorded_values_answer_like_the_author(assignment, checks):
    for problem in assignment.graded[:2]:
        for answer in (problem.solution, *problem.also_right.values()):
            assert told(assignment, checks, problem.name, answer) == "Right."
        for misconception, answer in problem.wrong.items():
            assert told(assignment, checks, problem.name, answer) == f"Not yet: {misconception}"


def test_an_unanswered_or_returnless_answer_is_called_so(assignment, checks):
    for problem in assignment.graded:
        message = told(assignment, checks, problem.name, problem.starter)
        assert message.startswith("Not answered yet")
    assert "return" in told(assignment, checks, "draw-it", "def draw(mean, n, generator):\n    mean + 1")


def test_a_sealed_problem_is_noted_and_only_its_form_judged(assignment, checks):
    assert told(assignment, checks, "choose", 'choice = "a"') == SEALED
    assert told(assignment, checks, "choose", 'choice = "b"') == SEALED
    assert told(assignment, checks, "choose", "choice = 1").startswith("Not yet: the answer is a text")
    assert "ZeroDivisionError" in told(
        assignment,
        checks,
        "choose",
        "class A:\n    pass\nchoice = A()\ndef f():\n    1 / 0\n"
        "type.__setattr__(A, '__array__', property(lambda self: f()))",
    )


def test_missing_or_damaged_records_are_said_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="rule: keep it beside the notebook"):
        Checks("01-toys", tmp_path)
    (tmp_path / "01-toys.checks.json").write_text("{")
    with pytest.raises(ValueError, match="rule: get the homework again"):
        Checks("01-toys", tmp_path)


def test_an_unknown_problem_is_named(checks):
    with pytest.raises(ValueError, match="rule: a problem of 01-toys: scale-it, draw-it, choose"):
        checks("scale", lambda generator: 1)
