"""Grading many submissions: workers judge, the parent alone writes.

Each task is one submission: plain data go to a worker, plain data come back, and each result is written as it comes.
So a worker that dies loses the submission it was at, which another takes over, and a run that is stopped goes on where
it was: a result whose key (submission, release, answers, grader) is the same is not computed again.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import dask
import nbformat
from distributed import Client, LocalCluster, Security, Worker, WorkerPlugin, as_completed, get_worker

from course.chapters import CourseError
from course.files import write_atomic
from course.homework import judging, submissions
from course.homework.folder import TeachingFolder
from course.homework.kernel import WarmParent
from course.homework.releasing import Release
from course.homework.results import Flag, Result
from course.homework.sandbox import Limits, refusal
from course.homework.sources import Assignment, load

GRADER = "3"  # raise it when the judge changes what it says of the same submission


@dataclass(frozen=True)
class Order:
    """What a worker needs to compute a paper: the author's own answers are run for it, once for each variant."""

    assignment: Assignment
    secret: str
    variant: int = 0
    limits: Limits | None = None

    def paper(self) -> judging.Paper:
        """What the judge must know."""
        return judging.paper(self.assignment, self.secret, self.variant, self.limits)


@dataclass(frozen=True)
class Task:
    """One submission for a worker: `order` says by which of the papers it is graded."""

    student: str
    order: int
    notebook: str
    flags: tuple[Flag, ...]
    key: str


class Desk(WorkerPlugin):
    """What a worker has at hand: the warm parent of its sandboxes, for as long as the worker lives."""

    name = "desk"

    def setup(self, worker: Worker) -> None:
        """Starts the parent, which imports beside the worker's own imports and the papers."""
        self._parent = ThreadPoolExecutor(1, "warm-parent").submit(_warm_parent)

    @property
    def parent(self) -> WarmParent:
        """The parent, once it is warm.

        Raises:
            CourseError: It cannot import what homework needs.
        """
        return self._parent.result()

    def teardown(self, worker: Worker) -> None:
        """Ends it, and with it every sandbox."""
        with suppress(CourseError):
            self.parent.__exit__(None, None, None)


def _warm_parent() -> WarmParent:
    return WarmParent(imports=judging.IMPORTS).__enter__()


def grade_one(paper: judging.Paper, task: Task) -> Result:
    """Judges one submission on a worker; whatever goes wrong is a flag, never an exception."""
    try:
        parent = get_worker().plugins[Desk.name].parent
        notebook = nbformat.reads(task.notebook, as_version=4)
        return judging.grade(paper, notebook, task.student, parent, task.flags, task.key)
    except Exception as error:
        flag = Flag("not graded", "", f"the grader stopped: {type(error).__name__}: {error}")
        return Result(task.student, paper.slug, flags=(*task.flags, flag))


def orders(folder: TeachingFolder, release: Release) -> list[Order]:
    """A paper for each variant that was handed out."""
    assignment = load(folder.source(release.slug))
    return [Order(assignment, release.secret, variant, folder.limits) for variant in range(release.variants)]


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
    content = json.dumps([basis, submission.digest, str(submission.submitted), [str(f) for f in submission.flags]])
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


def run(orders: list[Order], tasks: list[Task], *, workers: int = 1, scheduler: str | None = None) -> Iterator[Result]:
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
        papers = [client.submit(Order.paper, order, pure=False) for order in orders]
        futures = {client.submit(grade_one, papers[task.order], task, pure=False): task for task in tasks}
        for future in as_completed(futures):
            task = futures.pop(future)
            if future.status == "finished":
                yield future.result()
            else:  # the workers that had it were lost, again and again, or the paper could not be computed
                flag = Flag("not graded", "", f"{type(future.exception()).__name__}: {future.exception()}")
                yield Result(task.student, orders[task.order].assignment.slug, flags=(*task.flags, flag))
            future.release()


@contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Any]:
    logging.getLogger("distributed.nanny").setLevel(logging.ERROR)  # torch keeps a worker from ending at once
    dask.config.set({"distributed.scheduler.allowed-failures": 3, "distributed.comm.timeouts.connect": "20s"})
    if scheduler:
        try:
            client = Client(scheduler, timeout=20)
        except (OSError, TypeError, ValueError) as error:
            raise CourseError(f"grade: received --scheduler {scheduler}, which does not answer ({error})") from error
        with client:
            yield client
        return
    here = {"dashboard_address": "127.0.0.1:0", "security": _security()}  # 8787 may be taken; nothing for the network
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, **here) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _security() -> Security | None:
    """Keys for one run: whoever else has an account here could have the scheduler run what he likes, in our name.

    None without the package `cryptography`, which makes them.
    """
    return Security.temporary() if find_spec("cryptography") else None


def write_result(folder: TeachingFolder, result: Result) -> None:
    """Keeps one result."""
    write_atomic(folder.graded(result.assignment, result.student), result.to_json() + "\n")
