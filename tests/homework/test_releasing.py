"""Releasing: what is handed out and what stays, safe to repeat, and the sources as they were."""

import io
import json
import zipfile

import pytest

from course.chapters import CourseError
from course.files import contents
from course.homework import rehearsing
from course.homework.releasing import read_release, release
from course.homework.roster import Roster, Student
from course.homework.sources import load
from tests.homework import toy

CLASS = Roster([Student(f"student-{number}") for number in range(12)])


def test_a_release_hands_out_the_edition_and_keeps_the_judges_part(folder):
    done = release(folder, toy.SLUG)
    files = contents(folder.root)
    assert {
        "release/01-toys/01-toys.ipynb",
        "release/01-toys/01-toys.checks.json",
        "release/01-toys.zip",
    } <= files.keys()
    assert json.loads(files["private/01-toys.json"])["secret"] == done.release.secret
    for name, data in files.items():
        if name.startswith("release"):
            assert done.release.secret.encode() not in data
            assert b"return scale * x" not in data


def test_a_repeated_release_changes_nothing(folder):
    first = release(folder, toy.SLUG)
    before = contents(folder.root)
    again = release(folder, toy.SLUG)
    assert again.changed == ()
    assert again.release == first.release
    assert contents(folder.root) == before


def test_a_dry_run_writes_nothing(folder):
    done = release(folder, toy.SLUG, dry_run=True)
    assert done.changed
    assert not folder.root.exists()


def test_a_changed_answer_keeps_edition_and_secret_a_changed_text_makes_another_edition(folder):
    first = release(folder, toy.SLUG).release
    toy.write(folder.sources, answers=toy.ANSWERS.replace("says why", "says why not"))
    same = release(folder, toy.SLUG).release
    assert (same.secret, same.digest, same.made) == (first.secret, first.digest, first.made)
    toy.write(folder.sources, assignment=toy.ASSIGNMENT.replace("Why?", "Why not?"))
    second = release(folder, toy.SLUG).release
    assert (second.secret, second.digest == first.digest) == (first.secret, False)


def test_what_was_rehearsed_is_not_rehearsed_again(folder, monkeypatch):
    first = release(folder, toy.SLUG).release
    rehearsals = []
    monkeypatch.setattr(rehearsing, "rehearse", lambda *arguments: rehearsals.append(arguments) or [])
    assert release(folder, toy.SLUG).release == first
    assert rehearsals == []
    toy.write(folder.sources, answers=toy.ANSWERS.replace("says why", "says why not"))
    release(folder, toy.SLUG)
    assert len(rehearsals) == 1


def test_numbers_that_were_handed_out_do_not_change_unasked(folder):
    release(folder, toy.SLUG)
    with pytest.raises(CourseError, match="was handed out with the same numbers for everybody"):
        release(folder, toy.SLUG, roster=CLASS)
    assert release(folder, toy.SLUG, roster=CLASS, same_for_all=True).changed == ()
    assert release(folder, toy.SLUG, roster=CLASS, force=True).personal == len(CLASS.students)


def test_another_edition_over_collected_submissions_needs_force(folder):
    release(folder, toy.SLUG)
    place = folder.submitted("ada", toy.SLUG)
    place.mkdir(parents=True)
    (place / "01-toys.ipynb").write_text("{}")
    toy.write(folder.sources, assignment=toy.ASSIGNMENT.replace("Why?", "Why not?"))
    before = contents(folder.root)
    with pytest.raises(CourseError, match="1 submissions were collected"):
        release(folder, toy.SLUG)
    assert contents(folder.root) == before
    assert release(folder, toy.SLUG, force=True).changed


def test_a_homework_that_misjudges_is_not_released(folder):
    toy.write(folder.sources, answers=toy.ANSWERS.replace("-scale * x", "scale * x"))
    with pytest.raises(CourseError, match="scale-it .variant 0.: the wrong answer"):
        release(folder, toy.SLUG)
    assert not folder.root.exists()


def test_the_sources_are_graded_as_they_were_released(folder):
    release(folder, toy.SLUG)
    toy.write(folder.sources, answers="broken")
    assert load(folder.source(toy.SLUG)).points == 10


def test_each_student_gets_numbers_of_his_own_and_keeps_them(folder):
    done = release(folder, toy.SLUG, roster=CLASS)
    assert done.personal == len(CLASS.students)
    rows = {}
    for student in CLASS.students:
        archive = zipfile.ZipFile(io.BytesIO((folder.personal(toy.SLUG) / f"{student}.zip").read_bytes()))
        text = archive.read("01-toys/01-toys.ipynb").decode()
        rows[student] = next(scale for scale in (2.0, 3.0) if f"scale = {scale}" in text)
        assert rows[student] == load(folder.source(toy.SLUG)).variants[done.release.variant(student)]["scale"]
    assert set(rows.values()) == {2.0, 3.0}
    assert read_release(folder, toy.SLUG).variant("student-3") == done.release.variant("student-3")


def test_the_same_numbers_for_all_on_request_or_without_a_roster(folder):
    for done in (release(folder, toy.SLUG), release(folder, toy.SLUG, roster=CLASS, same_for_all=True)):
        assert {done.release.variant(student) for student in CLASS.students} == {0}
        assert done.personal == 0


def test_no_release_and_a_damaged_one_are_one_message(folder):
    with pytest.raises(CourseError, match="rule: `course homework release 01-toys` first"):
        read_release(folder, toy.SLUG)
    folder.private(toy.SLUG).parent.mkdir(parents=True)
    folder.private(toy.SLUG).write_text('{"slug": 1}')
    with pytest.raises(CourseError, match="rule: restore it from a backup"):
        read_release(folder, toy.SLUG)
