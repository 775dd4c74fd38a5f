"""Collecting into the teaching folder: new, changed, unchanged, set aside; nothing half-written, nothing lost."""

import json

import pytest

from course.chapters import CourseError
from course.files import contents
from course.homework.editions import blank
from course.homework.proving import Answer, filled
from course.homework.releasing import read_release, release
from course.homework.roster import Roster, Student
from course.homework.sources import load
from course.homework.submissions import collect, read, set_aside, students
from tests.homework import toy

CLASS = Roster([Student("ada"), Student("bob"), Student("cyd")])


def hand_in(folder, student, name="01-toys.ipynb", variant=0, **answers):
    chosen = {key.replace("_", "-"): Answer("", "", source) for key, source in answers.items()}
    place = folder.inbox(toy.SLUG) / student
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(filled(blank(load(folder.source(toy.SLUG)), variant), chosen), encoding="utf-8")


@pytest.fixture
def released(folder):
    release(folder, toy.SLUG)
    return folder


def states(folder, **options):
    return {one.student: one.state for one in collect(folder, toy.SLUG, CLASS, **options)}


def test_answers_are_put_into_the_release_and_a_repeated_call_changes_what_is_new(released):
    hand_in(released, "ada", scale_it="def scaled(x):\n    return 2 * x")
    hand_in(released, "bob", choose='choice = "a"')
    assert states(released) == {"ada": "new", "bob": "new"}
    before = contents(released.root)
    assert states(released) == {"ada": "unchanged", "bob": "unchanged"}
    assert contents(released.root) == before
    hand_in(released, "bob", choose='choice = "b"')
    assert states(released) == {"ada": "unchanged", "bob": "changed"}
    assert students(released, toy.SLUG) == ["ada", "bob"]
    assert 'choice = "b"' in str(read(released, toy.SLUG, "bob").notebook)


def test_a_dry_run_writes_nothing(released):
    hand_in(released, "ada")
    before = contents(released.root)
    assert states(released, dry_run=True) == {"ada": "new"}
    assert contents(released.root) == before


def test_a_student_whom_nobody_knows_is_set_aside(released):
    hand_in(released, "ada")
    hand_in(released, "mallory")
    assert set_aside(released, toy.SLUG) == []
    states(released, dry_run=True)
    assert set_aside(released, toy.SLUG) == []
    assert states(released) == {"ada": "new", None: "set aside"}
    assert students(released, toy.SLUG) == ["ada"]
    assert set_aside(released, toy.SLUG) == ["mallory"]
    (released.root / "mails").mkdir()
    assert tuple(collect(released, toy.SLUG, CLASS, released.root / "mails")) == ()  # and nothing is forgotten
    assert set_aside(released, toy.SLUG) == ["mallory"]
    (released.inbox(toy.SLUG) / "mallory").rename(released.inbox(toy.SLUG) / "bob")
    assert states(released) == {"ada": "unchanged", "bob": "new"}
    assert set_aside(released, toy.SLUG) == []


@pytest.mark.parametrize(("text", "told"), [("{ broken", "no JSON"), ("", "an empty file")])
def test_a_broken_notebook_is_the_untouched_release_and_flagged(released, text, told):
    hand_in(released, "ada")
    (released.inbox(toy.SLUG) / "ada" / "01-toys.ipynb").write_text(text)
    (one,) = collect(released, toy.SLUG, CLASS)
    assert [flag.evidence[: len(told)] for flag in one.flags if flag.kind == "unreadable"] == [told]
    assert read(released, toy.SLUG, "ada").notebook.cells == blank(load(released.source(toy.SLUG))).cells


def test_flags_and_names_are_kept_for_grading(released):
    hand_in(released, "ada", name="my homework.ipynb")
    tuple(collect(released, toy.SLUG, CLASS))
    submission = read(released, toy.SLUG, "ada")
    assert [(flag.kind, flag.evidence) for flag in submission.flags] == [("renamed", "ada/my homework.ipynb")]


def test_each_students_own_numbers_are_those_he_was_given(folder):
    many = Roster([Student(f"student-{number}") for number in range(6)])
    made = release(folder, toy.SLUG, roster=many).release
    for student in many.students:
        hand_in(folder, student, variant=made.variant(student))
    assert all(one.flags == () for one in collect(folder, toy.SLUG, many))
    other = next(student for student in many.students if made.variant(student) == 1)
    hand_in(folder, other, variant=0)
    flags = {one.student: one.flags for one in collect(folder, toy.SLUG, many)}
    assert any((flag.kind, flag.cell) == ("edited", "variant") for flag in flags[other])
    variant = next(cell for cell in read(folder, toy.SLUG, other).notebook.cells if cell.id == "variant")
    assert "scale = 3.0" in variant.source


def test_answers_to_another_edition_are_flagged(released):
    hand_in(released, "ada")
    place = released.inbox(toy.SLUG) / "ada" / "01-toys.ipynb"
    notebook = json.loads(place.read_text())
    notebook["metadata"]["homework"] = {"slug": toy.SLUG, "release": "0123456789ab"}
    place.write_text(json.dumps(notebook))
    (one,) = collect(released, toy.SLUG, CLASS)
    assert [flag.kind for flag in one.flags] == ["other release"]
    notebook["metadata"]["homework"]["release"] = read_release(released, toy.SLUG).digest
    place.write_text(json.dumps(notebook))
    (one,) = collect(released, toy.SLUG, CLASS)
    assert one.flags == ()


def test_an_empty_or_missing_inbox_is_said(released):
    with pytest.raises(CourseError, match="where nothing is; rule: put there"):
        states(released)
    with pytest.raises(CourseError, match="release 02-other. first"):
        tuple(collect(released, "02-other", CLASS))


def test_a_damaged_submission_is_one_message(released):
    hand_in(released, "ada")
    states(released)
    (released.submitted("ada", toy.SLUG) / "collected.json").write_text(json.dumps({"name": 1}))
    with pytest.raises(CourseError, match="rule: collect it again"):
        read(released, toy.SLUG, "ada")
    assert states(released) == {"ada": "changed"}
    read(released, toy.SLUG, "ada")
