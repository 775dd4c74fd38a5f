"""Grading many submissions: workers judge, the parent alone writes.

Each task is one submission: plain data go to a worker, plain data come back, and each result is written as it comes.
So a worker that dies loses the submission it was at, which another takes over, and a run that is stopped goes on where
it was: a result whose key (submission, release, answers, grader) is the same is not computed again.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dask
import nbformat
from distributed import Client, LocalCluster, Worker, WorkerPlugin, as_completed, get_worker

from course.chapters import CourseError
from course.files import write_atomic
from course.homework import judging, submissions
from course.homework.folder import TeachingFolder
from course.homework.judging import IMPORTS, Paper
from course.homework.kernel import WarmParent
from course.homework.releasing import Release
from course.homework.results import Flag, Result
from course.homework.sandbox import refusal
from course.homework.sources import load

GRADER = "1"  # raise it when the judge changes what it says of the same submission


@dataclass(frozen=True)
class Task:
    """One submission for a worker: `paper` says which of the papers it is graded by."""

    student: str
    paper: int
    notebook: str
    flags: tuple[Flag, ...]
    key: str


class Desk(WorkerPlugin):
    """What a worker has at hand: the warm parent of its sandboxes, for as long as the worker lives."""

    name = "desk"

    def setup(self, worker: Worker) -> None:
        """Starts the parent."""
        self.parent = WarmParent(imports=IMPORTS)
        self.parent.__enter__()

    def teardown(self, worker: Worker) -> None:
        """Ends it, and with it every sandbox."""
        self.parent.__exit__(None, None, None)


def grade_one(papers: list[Paper], task: Task) -> Result:
    """Judges one submission on a worker; whatever goes wrong is a flag, never an exception."""
    try:
        parent = get_worker().plugins[Desk.name].parent
        notebook = nbformat.reads(task.notebook, as_version=4)
        return judging.grade(papers[task.paper], notebook, task.student, parent, task.flags, task.key)
    except Exception as error:
        flag = Flag("not graded", "", f"the grader stopped: {type(error).__name__}: {error}")
        return Result(task.student, papers[task.paper].slug, flags=(*task.flags, flag))


def papers(folder: TeachingFolder, release: Release) -> list[Paper]:
    """What the judge knows, for each variant that was handed out."""
    assignment = load(folder.source(release.slug))
    return [judging.paper(assignment, release.secret, variant, folder.limits) for variant in range(release.variants)]


def tasks(folder: TeachingFolder, release: Release, chosen: list[str] | None = None) -> list[Task]:
    """All collected submissions, or those of the chosen students."""
    frozen = b"".join(path.read_bytes() for path in sorted(folder.source(release.slug).glob("*.md")))
    basis = json.dumps([GRADER, release.secret, release.companion, hashlib.sha256(frozen).hexdigest()])
    present = submissions.students(folder, release.slug)
    if unknown := sorted(set(chosen or ()) - set(present)):
        raise CourseError(f"grade: received {', '.join(unknown)}, of whom nothing was collected; rule: collect first")
    return [_task(folder, release, student, basis) for student in present if not chosen or student in chosen]


def _task(folder: TeachingFolder, release: Release, student: str, basis: str) -> Task:
    submission = submissions.read(folder, release.slug, student)
    content = json.dumps([basis, submission.digest, [str(flag) for flag in submission.flags]])
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    text = nbformat.writes(submission.notebook)
    return Task(student, release.variant(student), text, submission.flags, key)


def done(folder: TeachingFolder, slug: str, task: Task) -> bool:
    """Whether exactly this was graded already."""
    before = read_result(folder, slug, task.student)
    return before is not None and before.key == task.key


def read_result(folder: TeachingFolder, slug: str, student: str) -> Result | None:
    """The last result of one student; none where there is none, or a damaged one."""
    try:
        return Result.from_json(folder.graded(slug, student).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def run(papers: list[Paper], tasks: list[Task], *, workers: int = 1, scheduler: str | None = None) -> Iterator[Result]:
    """Judges submissions on dask workers and yields results as they come.

    Args:
        workers: processes on this machine.
        scheduler: the address of a cluster instead, whose workers have the same packages and bubblewrap.

    Raises:
        CourseError: Submissions cannot be run safely here, or the cluster does not answer.
    """
    if not scheduler and (problem := refusal()):
        raise CourseError(f"grade: {problem}")
    with _client(workers, scheduler) as client:
        client.register_plugin(Desk())
        shared = client.scatter(papers, broadcast=True)
        futures = {
            client.submit(
                grade_one, shared, task, key=f"{task.student}-{task.key}-{os.urandom(4).hex()}", pure=False
            ): task
            for task in tasks
        }
        for future in as_completed(futures):
            task = futures.pop(future)
            if future.status == "finished":
                yield future.result()
            else:  # the workers that had it were lost, again and again
                flag = Flag("not graded", "", f"the worker was lost: {future.exception()}")
                yield Result(task.student, papers[task.paper].slug, flags=(*task.flags, flag))
            future.release()


@contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Any]:
    dask.config.set({"distributed.scheduler.allowed-failures": 3, "distributed.comm.timeouts.connect": "20s"})
    if scheduler:
        try:
            client = Client(scheduler, timeout=20)
        except (OSError, ValueError) as error:
            raise CourseError(f"grade: received --scheduler {scheduler}, which does not answer ({error})") from error
        with client:
            yield client
        return
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def write_result(folder: TeachingFolder, result: Result) -> None:
    """Keeps one result."""
    write_atomic(folder.graded(result.assignment, result.student), result.to_json() + "\n")
