"""Grading many: workers die, runs are stopped, and nothing is lost, doubled or wrong."""

from dataclasses import replace
from datetime import UTC, datetime

import psutil
import pytest
from distributed import LocalCluster

from course.chapters import CourseError
from course.homework import grading
from course.homework.editions import blank
from course.homework.proving import Answer, filled
from course.homework.releasing import read_release, release
from course.homework.roster import Roster, Student
from course.homework.sandbox import refusal
from course.homework.sources import load
from course.homework.submissions import collect
from tests.homework import toy

sandboxed = pytest.mark.skipif(refusal() is not None, reason=str(refusal()))
SOLVED = {"scale_it": "def scaled(x):\n    return scale * x", "choose": 'choice = "b"'}


def notebook(assignment, variant=0, **answers):
    chosen = {key.replace("_", "-"): Answer("", "", source) for key, source in answers.items()}
    return filled(blank(assignment, variant), chosen)


@pytest.fixture
def assignment(tmp_path):
    return load(toy.write(tmp_path / "toys"))


def spawned():
    """The worker processes below this one."""
    return [p for p in psutil.Process().children(recursive=True) if any("spawn_main" in part for part in p.cmdline())]


@sandboxed
def test_a_killed_worker_loses_nothing(assignment):
    slow = "import time\ntime.sleep(0.3)\n" + SOLVED["scale_it"]
    answers = [{"scale_it": slow}, {"choose": 'choice = "b"'}, {"choose": "import os\nos._exit(1)"}]
    expected = {f"student-{k}": (4, 1, 0)[k % 3] for k in range(15)}
    tasks = [grading.Task(f"student-{k}", 0, notebook(assignment, **answers[k % 3]), (), f"key-{k}") for k in range(15)]
    results, killed = {}, 0
    for result in grading.run([grading.Order(assignment, "a secret")], tasks, workers=2):
        assert result.student not in results
        results[result.student] = result
        if len(results) == 3:
            spawned()[0].kill()
            killed += 1
    assert killed == 1
    assert {student: result.earned for student, result in results.items()} == expected
    assert {result.key for result in results.values()} == {task.key for task in tasks}


@sandboxed
def test_whatever_the_grader_meets_is_a_flag_and_is_graded_again(assignment):
    tasks = [
        grading.Task("broken", 0, "no notebook", (), "key-1"),
        grading.Task("sound", 0, notebook(assignment, **SOLVED), (), "key-2"),
    ]
    results = {result.student: result for result in grading.run([grading.Order(assignment, "a secret")], tasks)}
    assert results["sound"].earned == 5
    assert [flag.kind for flag in results["broken"].flags] == ["not graded"]
    assert results["broken"].key == ""


@pytest.fixture
def collected(folder):
    release(folder, toy.SLUG)
    assignment = load(folder.source(toy.SLUG))
    for student in ("ada", "bob"):
        place = folder.inbox(toy.SLUG) / student
        place.mkdir(parents=True)
        (place / "01-toys.ipynb").write_text(notebook(assignment, **SOLVED))
    tuple(collect(folder, toy.SLUG, Roster([Student("ada"), Student("bob")])))
    return folder


def keys(folder):
    return {task.student: task.key for task in grading.tasks(folder, read_release(folder, toy.SLUG))}


def test_only_the_same_submission_release_and_answers_have_the_same_key(collected):
    before = keys(collected)
    assert keys(collected) == before
    place = collected.inbox(toy.SLUG) / "ada" / "01-toys.ipynb"
    place.write_text(place.read_text().replace('\\"b\\"', '\\"a\\"'))
    tuple(collect(collected, toy.SLUG, Roster([Student("ada"), Student("bob")])))
    assert keys(collected)["ada"] != before["ada"]
    assert keys(collected)["bob"] == before["bob"]
    excused = Roster([Student("ada"), Student("bob")], {("bob", toy.SLUG): datetime(2027, 1, 1, tzinfo=UTC)})
    tuple(collect(collected, toy.SLUG, excused))
    assert keys(collected)["bob"] != before["bob"]  # the gradebook has to hear of another time
    before = keys(collected)
    toy.write(collected.sources, answers=toy.ANSWERS.replace("says why", "says why not"))
    release(collected, toy.SLUG)
    assert keys(collected)["bob"] != before["bob"]


@sandboxed
def test_a_result_that_was_kept_is_not_computed_again(collected):
    made = read_release(collected, toy.SLUG)
    first, second = grading.tasks(collected, made)
    assert not grading.done(collected, toy.SLUG, first)
    for result in grading.run(grading.orders(collected, made), [first]):
        grading.write_result(collected, result)
    assert grading.done(collected, toy.SLUG, first)
    assert not grading.done(collected, toy.SLUG, second)
    assert not grading.done(collected, toy.SLUG, replace(first, key="of another submission"))
    collected.graded(toy.SLUG, first.student).write_text("{ cut short")
    assert not grading.done(collected, toy.SLUG, first)


def test_an_unknown_student_is_named(collected):
    with pytest.raises(CourseError, match="received eve, of whom nothing was collected"):
        grading.tasks(collected, read_release(collected, toy.SLUG), ["ada", "eve"])


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tls://127.0.0.1:9", "foo://bar"])
def test_a_cluster_that_does_not_answer_is_one_message(assignment, address):
    tasks = [grading.Task("ada", 0, notebook(assignment), (), "key")]
    with pytest.raises(CourseError, match=f"received --scheduler {address}, which does not answer"):
        tuple(grading.run([grading.Order(assignment, "a secret")], tasks, scheduler=address))


def test_without_a_sandbox_nothing_is_run(assignment, monkeypatch):
    monkeypatch.setattr(grading, "refusal", lambda: "bubblewrap is missing")
    tasks = [grading.Task("ada", 0, notebook(assignment), (), "key")]
    with pytest.raises(CourseError, match="grade: bubblewrap is missing"):
        tuple(grading.run([grading.Order(assignment, "a secret")], tasks))


@sandboxed
def test_a_cluster_that_runs_elsewhere_grades_too(assignment):
    tasks = [grading.Task("ada", 0, notebook(assignment, **SOLVED), (), "key")]
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        orders = [grading.Order(assignment, "a secret")]
        (result,) = grading.run(orders, tasks, scheduler=cluster.scheduler_address)
        (again,) = grading.run(orders, tasks, scheduler=cluster.scheduler_address)
    assert result.earned == again.earned == 5
