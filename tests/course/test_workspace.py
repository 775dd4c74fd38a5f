"""The student's folder: copies appear, are merged, and are never harmed."""

import nbformat
import pytest

from course.chapters import CourseError
from course.files import write_atomic
from course.workspace import read, update
from tests.course.test_merging import edited, notebook, sources


@pytest.fixture
def lab(toy):
    """A course of one executed chapter, and the folder of its copies."""
    publish(toy, answer="...", end="print(1)")
    return toy


def publish(toy, **cells: str) -> None:
    """Commits a chapter, with outputs, as `course run` would."""
    (toy.notebooks / "01-try.md").touch()
    nbformat.write(edited(notebook(**cells)), toy.notebooks / "01-try.ipynb")


def answer(lab, text: str) -> None:
    """The student answers and saves."""
    path = lab.workspace / "01-try.ipynb"
    mine = read(path)
    mine.cells[0].source = text
    nbformat.write(mine, path)


def files(folder) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_first_copy_has_no_outputs(lab):
    (result,) = update(lab, lab.workspace)
    copy = read(lab.workspace / "01-try.ipynb")
    assert result.message == "copied"
    assert [cell.outputs for cell in copy.cells] == [[], []]
    assert [cell.execution_count for cell in copy.cells] == [None, None]


def test_nothing_is_touched_while_the_chapter_stays_the_same(lab):
    update(lab, lab.workspace)
    answer(lab, "mine")
    before = files(lab.workspace)
    (result,) = update(lab, lab.workspace)
    assert result.message == "up to date"
    assert files(lab.workspace) == before


def test_a_chapter_that_was_only_executed_again_touches_nothing(lab):
    update(lab, lab.workspace)
    before = files(lab.workspace)
    again = notebook(answer="...", end="print(1)")
    again.cells[1].outputs = [nbformat.v4.new_output("stream", text="another number")]
    nbformat.write(again, lab.notebooks / "01-try.ipynb")
    update(lab, lab.workspace)
    assert files(lab.workspace) == before


def test_a_newer_chapter_is_merged_after_a_backup(lab):
    update(lab, lab.workspace)
    answer(lab, "mine")
    before = (lab.workspace / "01-try.ipynb").read_bytes()
    publish(lab, answer="...", extra="print(2)", end="print(3)")
    (result,) = update(lab, lab.workspace)
    assert result.message.startswith("merged: 1 updated; 1 new (before: .backup/01-try.")
    assert sources(read(lab.workspace / "01-try.ipynb")) == ["mine", "print(2)", "print(3)"]
    (kept,) = (lab.workspace / ".backup").iterdir()
    assert kept.read_bytes() == before


def test_two_backups_in_one_second_are_two_files(lab):
    update(lab, lab.workspace)
    for number in range(2):
        publish(lab, answer="...", end=f"print({number + 5})")
        update(lab, lab.workspace)
    assert len(list((lab.workspace / ".backup").iterdir())) == 2


def test_a_broken_copy_is_left_untouched_and_told(lab):
    update(lab, lab.workspace)
    path = lab.workspace / "01-try.ipynb"
    path.write_text('{"cells": [{"source": "my answ')
    publish(lab, answer="...", end="print(3)")
    (result,) = update(lab, lab.workspace)
    assert result.problem
    assert "which is no notebook" in result.message
    assert "left untouched" in result.message
    assert path.read_text() == '{"cells": [{"source": "my answ'


def test_a_lost_or_broken_base_loses_no_answer(lab):
    update(lab, lab.workspace)
    answer(lab, "mine")
    (lab.workspace / ".base" / "01-try.ipynb").write_text("{")
    publish(lab, answer="new question", end="print(1)")
    update(lab, lab.workspace)
    assert {"mine", "new question"} <= set(sources(read(lab.workspace / "01-try.ipynb")))


def test_a_copy_that_the_student_deleted_is_made_anew(lab):
    update(lab, lab.workspace)
    (lab.workspace / "01-try.ipynb").unlink()
    assert update(lab, lab.workspace)[0].message == "copied"


def test_a_merge_that_is_cut_off_before_its_base_is_written_does_not_merge_twice(lab):
    update(lab, lab.workspace)
    answer(lab, "mine")
    old_base = (lab.workspace / ".base" / "01-try.ipynb").read_text()
    publish(lab, answer="new question", end="print(1)")
    update(lab, lab.workspace)
    merged = sources(read(lab.workspace / "01-try.ipynb"))
    write_atomic(lab.workspace / ".base" / "01-try.ipynb", old_base)
    update(lab, lab.workspace)
    assert sources(read(lab.workspace / "01-try.ipynb")) == merged


def test_a_failed_write_leaves_the_copy_as_it_was(lab, monkeypatch):
    update(lab, lab.workspace)
    answer(lab, "mine")
    publish(lab, answer="...", end="print(3)")
    before = (lab.workspace / "01-try.ipynb").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("course.files.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        update(lab, lab.workspace)
    assert (lab.workspace / "01-try.ipynb").read_bytes() == before
    assert not list(lab.workspace.glob(".*.part"))


def test_a_chapter_without_a_notebook_is_told_and_the_others_are_copied(lab):
    (lab.notebooks / "02-later.md").touch()
    first, second = update(lab, lab.workspace)
    assert first.message == "copied"
    assert second.problem
    assert "has no executed notebook yet" in second.message


def test_the_truth_is_no_workspace(lab):
    for folder in (lab.root, lab.notebooks):
        with pytest.raises(CourseError, match="which holds the truth"):
            update(lab, folder)


def test_a_place_where_no_folder_can_be_made_is_told(lab, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CourseError, match="rule: a writable place"):
        update(lab, tmp_path / "file" / "sub")
