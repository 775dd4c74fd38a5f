"""The teaching folder: its settings, and each mistake in them said in one message."""

from datetime import UTC, datetime, timedelta

import pytest

from course.chapters import CourseError
from course.homework.folder import SETTINGS, TeachingFolder, find_folder
from course.homework.late import LatePolicy
from course.homework.sandbox import Limits


def settings(folder, text):
    folder.root.mkdir(parents=True, exist_ok=True)
    (folder.root / "homework.toml").write_text(text, encoding="utf-8")
    return TeachingFolder(folder.root, folder.course)


def test_without_settings_everything_has_a_default(folder, monkeypatch):
    monkeypatch.delenv("COURSE_HOMEWORK")
    assert folder.sources == folder.course.root / "homework"
    assert folder.database == f"sqlite:///{folder.root / 'gradebook.db'}"
    assert folder.due("01-toys") is None
    assert (folder.limits, folder.late) == (Limits(), LatePolicy())


def test_settings_are_read(folder, monkeypatch):
    monkeypatch.delenv("COURSE_HOMEWORK")
    made = settings(
        folder,
        'sources = "../elsewhere"\ndatabase = "postgresql://x/y"\ntime_zone = "Europe/Berlin"\n'
        '[due]\n"01-toys" = 2027-01-31T23:59:00\n[late]\npercent_per_day = 20\n[limits]\nmemory_mb = 1000\n',
    )
    assert made.sources == (folder.root.parent / "elsewhere").resolve()
    assert made.database == "postgresql://x/y"
    assert made.due("01-toys").utcoffset() == timedelta(hours=1)
    assert made.late == LatePolicy(percent_per_day=20)
    assert made.limits == Limits(memory_mb=1000)


def test_a_due_time_may_state_its_zone(folder):
    made = settings(folder, '[due]\n"01-toys" = 2027-01-31T23:59:00Z\n')
    assert made.due("01-toys") == datetime(2027, 1, 31, 23, 59, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources =", "which is no TOML"),
        ("source = 'x'", "received source = 'x'; rule: sources, database"),
        ("late = 3", "received late = 3"),
        ('time_zone = "Mars/Olympus"', "rule: a name such as Europe/Berlin"),
        ('[due]\n"01-toys" = "soon"', "rule: a date with a time, unquoted"),
        ("[late]\npercent = 10", r"received \[late\] percent; rule: grace_minutes"),
        ("[limits]\nmemory = 10", r"received \[limits\] memory; rule: cell_seconds"),
    ],
)
def test_each_mistake_is_one_message(folder, text, message):
    made = settings(folder, text)
    with pytest.raises(CourseError, match=message):
        _ = made.time_zone, made.due("01-toys"), made.late, made.limits


def test_the_first_release_leaves_settings_that_say_what_can_be_set(folder):
    assert folder.set_up()
    assert not folder.set_up()
    assert (folder.root / "homework.toml").read_text(encoding="utf-8") == SETTINGS
    assert TeachingFolder(folder.root, folder.course).late.percent_per_day > 0


def test_the_folder_is_as_stated_else_from_the_environment_else_in_the_checkout(folder, monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_TEACHING", raising=False)
    assert find_folder(folder.course).root == folder.course.root / "teaching"
    monkeypatch.setenv("COURSE_TEACHING", str(tmp_path / "a"))
    assert find_folder(folder.course).root == tmp_path / "a"
    assert find_folder(folder.course, str(tmp_path / "b")).root == tmp_path / "b"
