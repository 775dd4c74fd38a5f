"""The student's side: get, work, check, pack; no answer is ever lost."""

import json

import nbformat
import pytest

from course.chapters import CourseError
from course.homework.collecting import arrivals
from course.homework.editions import blank, edition
from course.homework.proving import Answer, filled
from course.homework.releasing import release
from course.homework.sources import load
from course.homework.students import Checked, check, get, locate, pack_submission
from tests.homework import toy


@pytest.fixture
def workspace(tmp_path):
    return tmp_path / "my-course"


def answer(notebook, **answers):
    """Writes answers into a student's copy, as he would."""
    document = json.loads(notebook.read_text(encoding="utf-8"))
    for cell in document["cells"]:
        if cell["id"].replace("-", "_") in answers:
            cell["source"] = answers[cell["id"].replace("-", "_")]
    notebook.write_text(json.dumps(document), encoding="utf-8")


def test_get_copies_the_edition_and_its_records(folder, workspace):
    update, notebook = get(folder, "1", workspace)
    assert (update.message, update.problem) == ("copied", False)
    assert notebook == workspace / "homework/01-toys/01-toys.ipynb"
    assert json.loads(notebook.with_name("01-toys.checks.json").read_text())["checks"].keys() == {
        "scale-it",
        "draw-it",
        "choose",
    }


def test_get_takes_what_was_released_before_what_the_author_writes(folder, workspace):
    release(folder, toy.SLUG)
    toy.write(folder.sources, assignment=toy.ASSIGNMENT.replace("Why?", "A draft."))
    _, notebook = get(folder, "01", workspace)
    assert "A draft." not in notebook.read_text()


def test_get_takes_the_archive_that_was_handed_out(folder, workspace, tmp_path):
    archive = tmp_path / "given.zip"
    archive.write_bytes(edition(load(folder.sources / toy.SLUG), 1).archive)
    _, notebook = get(folder, "whatever", workspace, archive)
    assert "scale = 3.0" in notebook.read_text()


def test_getting_again_keeps_answers_and_merges_what_is_new(folder, workspace):
    _, notebook = get(folder, "1", workspace)
    answer(notebook, scale_it="def scaled(x):\n    return 2 * x  # mine")
    toy.write(folder.sources, assignment=toy.ASSIGNMENT.replace("Why?", "Why, in one sentence?"))
    update, _ = get(folder, "1", workspace)
    assert "1 updated" in update.message or "1 new" in update.message
    text = notebook.read_text()
    assert "# mine" in text
    assert "Why, in one sentence?" in text


def test_a_damaged_copy_is_left_as_it_is(folder, workspace):
    _, notebook = get(folder, "1", workspace)
    notebook.write_text("{ my precious")
    toy.write(folder.sources, assignment=toy.ASSIGNMENT.replace("Why?", "Why, in one sentence?"))
    update, _ = get(folder, "1", workspace)
    assert update.problem
    assert notebook.read_text() == "{ my precious"


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_wrong_archive_is_one_message(folder, workspace, tmp_path, content):
    archive = tmp_path / "given.zip"
    if content is None:
        archive = tmp_path / "folder"
        archive.mkdir()
    else:
        archive.write_bytes(content)
    with pytest.raises(CourseError, match="homework get: received"):
        get(folder, "1", workspace, archive)


def test_check_runs_afresh_and_says_each_misconception(folder, workspace):
    _, notebook = get(folder, "1", workspace)
    answer(
        notebook,
        scale_it="def scaled(x):\n    return -scale * x",
        draw_it="def draw(mean, n, generator):\n    return mean + torch.randn(n, generator=generator)",
    )
    reports, flags = check(notebook)
    told = {report.problem: (report.message, report.open) for report in reports}
    assert told["scale-it"] == ("Not yet: the sign is turned.......", True)
    assert told["draw-it"] == ("Right.", False)
    assert told["choose"][0].startswith("Not answered yet")
    assert told["explain"] == ("Not answered yet: there is nothing to read.", True)
    assert flags == []
    answer(notebook, explain="Because.")
    assert check(notebook)[0][-1] == Checked("explain", "Written: a person reads it.")


def test_check_says_where_the_notebook_stops(folder, workspace):
    _, notebook = get(folder, "1", workspace)
    answer(notebook, scale_it="def scaled(x)\n    return x", choose="choice = 'b'\n1 / 0")
    document = json.loads(notebook.read_text())
    document["cells"].append(nbformat.v4.new_code_cell("[][1]", id="mine"))
    notebook.write_text(json.dumps(document))
    reports, flags = check(notebook)
    told = {report.problem: report.message for report in reports}
    assert told["scale-it"].startswith("Not yet: your answer stopped with SyntaxError: expected ':'")
    assert told["choose"] == "Not yet: your answer stopped with ZeroDivisionError: division by zero"
    stopped = {flag.cell: flag.evidence for flag in flags if flag.kind == "stopped with an error"}
    assert stopped["mine"] == "IndexError: list index out of range"


def test_check_does_not_wait_for_ever(folder, workspace):
    _, notebook = get(folder, "1", workspace)
    answer(notebook, choose="while True: pass")
    with pytest.raises(CourseError, match="your notebook stopped: A cell timed out"):
        check(notebook, seconds=1)


def test_check_says_what_collecting_will_notice(folder, workspace):
    _, notebook = get(folder, "1", workspace)
    document = json.loads(notebook.read_text())
    document["cells"] = [cell for cell in document["cells"] if cell["id"] != "draw-it"]
    notebook.write_text(json.dumps(document))
    _, flags = check(notebook)
    assert [(flag.kind, flag.cell) for flag in flags] == [("missing", "draw-it")]


def test_check_leaves_the_students_copy_as_it_is(folder, workspace):
    _, notebook = get(folder, "1", workspace)
    before = notebook.read_bytes()
    check(notebook)
    assert notebook.read_bytes() == before


def test_what_is_packed_arrives(folder, workspace, tmp_path):
    _, notebook = get(folder, "1", workspace)
    answer(notebook, choose='choice = "b"')
    packed = pack_submission(notebook)
    inbox = tmp_path / "inbox" / "ada"
    inbox.mkdir(parents=True)
    (inbox / packed.name).write_bytes(packed.read_bytes())
    (arrival,) = arrivals(tmp_path / "inbox", toy.SLUG, None)
    assert (arrival.student, arrival.notebook) == ("ada", notebook.read_bytes())


def test_a_copy_is_found_by_number_slug_prefix_or_path(folder, workspace):
    _, notebook = get(folder, "1", workspace)
    assert {locate(workspace, name) for name in ("01", "01-toys", "toys", str(notebook))} == {notebook}
    with pytest.raises(CourseError, match="rule: a number, a slug or a prefix of 01-toys"):
        locate(workspace, "07")


def test_a_filled_edition_is_a_valid_notebook(folder):
    common = blank(load(folder.sources / toy.SLUG))
    nbformat.validate(json.loads(filled(common, {"choose": Answer("right", "", 'choice = "b"')})))
