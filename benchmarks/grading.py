"""Grading homework: against nbgrader's own autograder, and a thousand submissions with hostile ones among them.

`grading-throughput`: forty real submissions to homework 12 (the author's catalogue of right and wrong answers, and the
untouched release), from the folder of what came in to scores in the gradebook. Ours is `course homework collect` and
`grade` on two workers; the peer is stock `nbgrader autograde` with the same tests as hidden assertions. Both start as
commands, with one thread a process, on the same machine in the same run; the ratio is submissions per minute of wall
time. Both must give the same scores. Peak memory is the sum over all processes of a side (proportional set size), in
the case `peak-memory`.

`grading-thousand`: a thousand submissions to homework 03, every twentieth hostile, on a LocalCluster of two workers of
which one is killed on the way. The ratio is the share that was graded as it must be: honest ones with the points that
the author's catalogue gives them, hostile ones with nothing for the problem under attack.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import nbformat
import psutil

from benchmarks.harness import Case
from course.chapters import find_course
from course.homework import grading
from course.homework.editions import blank, edition, notebook_text
from course.homework.gradebook import Book
from course.homework.proving import Answer, filled, submissions
from course.homework.results import Result
from course.homework.sources import Assignment, hidden_seed, load

REAL, SMALL = "12-flow-matching", "03-change-of-variables"
SUBMISSIONS, WORKERS, MANY, EVERY = 40, 2, 1_000, 20
PEER = f"nbgrader {version('nbgrader')}"
SECRET = "benchmark"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

HOSTILE = (
    "import os\nos._exit(0)",
    "import os\nos.kill(os.getpid(), 9)",
    "while True: pass",
    "import os, time\nfor _ in range(200):\n    if not os.fork(): time.sleep(60)",
    "x = [bytearray(2**20) for _ in range(2**16)]",
    "print('x' * 50_000_000)\nraise ValueError",
    "from IPython.core.interactiveshell import InteractiveShell as S\n"
    "async def no(*a, **k): return False\nS.run_code = no",
    "import socket\nsocket.create_connection(('127.0.0.1', 80))",
    "import sys\nsys.displayhook(1000.0)",
    "open('/dev/shm/x', 'wb').write(bytes(2**28))",
)


# --- forty real submissions -------------------------------------------------------------------------------------------


def throughput() -> list[Case]:
    """Submissions per minute, ours over stock, and peak memory of both."""
    assignment = load(find_course().root / "homework" / REAL)
    handed = _handed_in(assignment, SUBMISSIONS)
    with tempfile.TemporaryDirectory() as scratch:
        ours = _ours(assignment, handed, Path(scratch) / "ours")
        stock = _stock(assignment, handed, Path(scratch) / "stock")
    if ours.scores != stock.scores:
        wrong = {name for name in stock.scores if ours.scores.get(name) != stock.scores[name]}
        raise ValueError(f"grading: received other scores than {PEER} for {sorted(wrong)}; rule: the same")
    rates = [(SUBMISSIONS / side.seconds * 60,) for side in (ours, stock)]
    clock = f"wall time, {WORKERS} workers against one process, 1 thread each"
    memory = [(side.peak_mb,) for side in (ours, stock)]
    return [
        Case("submissions", *rates, PEER, 3.0, "submissions/min", clock=clock, better="higher"),
        Case("peak-memory", *memory, PEER, 10.0, "MB", clock="proportional set size, all processes"),
    ]


def _handed_in(assignment: Assignment, count: int) -> dict[str, str]:
    """Notebooks by student, as students would hand them in: answers of the catalogue, in turn."""
    answers = list(submissions(assignment))
    common = blank(assignment)
    return {f"student-{k:04d}": filled(common, answers[k % len(answers)]) for k in range(count)}


@dataclass(frozen=True)
class Side:
    """What one side took, and the automatic points by student."""

    seconds: float
    peak_mb: float
    scores: dict[str, float]


def _ours(assignment: Assignment, handed: dict[str, str], folder: Path) -> Side:
    slug = assignment.slug
    rows = "\n".join(["student", *handed])
    folder.mkdir()
    (folder / "roster.csv").write_text(rows + "\n")
    course = [sys.executable, "-m", "course.cli", "homework"]
    options = ["--folder", str(folder)]
    _call([*course, "release", slug, "--same-for-all", *options])
    inbox = folder / "inbox" / slug
    for student, text in handed.items():
        (inbox / student).mkdir(parents=True)
        (inbox / student / f"{slug}.ipynb").write_text(text)
    with _measured() as peak:
        begun = time.monotonic()
        _call([*course, "collect", slug, *options])
        _call([*course, "grade", slug, "--workers", str(WORKERS), *options])
        seconds = time.monotonic() - begun
    with Book(f"sqlite:///{folder / 'gradebook.db'}") as book:
        scores = {row.student: sum(p.auto or 0 for p in row.problems) for row in book.rows(slug)}
    return Side(seconds, peak.mb, scores)


def _stock(assignment: Assignment, handed: dict[str, str], folder: Path) -> Side:
    """nbgrader on its own: the release has the same tests, their values compared in the student's kernel."""
    from nbgrader.api import Gradebook

    slug = assignment.slug
    source = nbformat.from_dict(json.loads(notebook_text(blank(assignment))))
    for problem in assignment.graded:
        for test in problem.tests:
            cell = next(cell for cell in source.cells if cell.id == test.name)
            seed = hidden_seed(SECRET, test.name)
            record = problem.exercise(test, assignment.variants[0]).record(seed)
            cell.source = (
                f"{test.source}\n\n### BEGIN HIDDEN TESTS\nimport json\n"
                f"from companion.exercises.homework import judge, values\nkey = json.loads({json.dumps(record)!r})\n"
                f"assert judge(values(probe, {seed}), key).passed\n### END HIDDEN TESTS\n"
            )
    _write(folder / "source" / slug / f"{slug}.ipynb", notebook_text(source))
    settings = [
        "c = get_config()",
        "c.CourseDirectory.course_id = 'benchmark'",
        "c.ClearSolutions.enforce_metadata = False",
    ]
    _write(folder / "nbgrader_config.py", "\n".join(settings))
    _call(["nbgrader", "generate_assignment", slug], folder)
    records = edition(assignment).files[f"{slug}.checks.json"].decode()
    for student, text in handed.items():
        _write(folder / "submitted" / student / slug / f"{slug}.ipynb", text)
        _write(folder / "submitted" / student / slug / f"{slug}.checks.json", records)
    with _measured() as peak:
        begun = time.monotonic()
        _call(["nbgrader", "autograde", slug, "--create"], folder, may_fail=True)
        seconds = time.monotonic() - begun
    written = {problem.name for problem in assignment.problems if problem.written}
    scores = {}
    with Gradebook(f"sqlite:///{folder / 'gradebook.db'}") as book:
        for submission in book.assignment_submissions(slug):
            grades = [grade for notebook in submission.notebooks for grade in notebook.grades]
            scores[submission.student.id] = sum(g.auto_score or 0 for g in grades if g.cell.name not in written)
    return Side(seconds, peak.mb, scores)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _call(command: list[str], folder: Path | None = None, *, may_fail: bool = False) -> None:
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode and not may_fail:
        raise RuntimeError(f"grading: {' '.join(command[-4:])} ended with {done.returncode}:\n{done.stderr[-2000:]}")


class _Peak:
    mb = 0.0


@contextmanager
def _measured() -> Iterator[_Peak]:
    """The most memory that this process's descendants take together inside the block, sampled."""
    peak, stop, me = _Peak(), threading.Event(), psutil.Process()

    def watch() -> None:
        while not stop.wait(1):  # a look costs a tenth of a second
            total = 0
            for process in me.children(recursive=True):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # it ended
                    continue
            peak.mb = max(peak.mb, total / 2**20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


# --- a thousand, with hostile ones among them -------------------------------------------------------------------------


def thousand() -> list[Case]:
    """The share of submissions that were graded as they must be; prints the time."""
    assignment = load(find_course().root / "homework" / SMALL)
    orders = [grading.Order(assignment, SECRET)]
    honest = [_task(assignment, f"honest-{k}", answers) for k, answers in enumerate(submissions(assignment))]
    expected = {result.student: _points(result) for result in grading.run(orders, honest, workers=WORKERS)}
    tasks, wanted, attacked = [], {}, {}
    catalogue = list(submissions(assignment))
    for k in range(MANY):
        name, answers = f"student-{k:04d}", dict(catalogue[k % len(catalogue)])
        wanted[name] = expected[f"honest-{k % len(catalogue)}"]
        if k % EVERY == EVERY - 1:
            number = k // EVERY
            attacked[name] = assignment.graded[number % len(assignment.graded)].name
            answers[attacked[name]] = Answer("hostile", "", HOSTILE[number % len(HOSTILE)])
        tasks.append(_task(assignment, name, answers))
    seen: set[str] = set()
    begun, right, killed = time.monotonic(), 0, 0
    for result in grading.run(orders, tasks, workers=WORKERS):
        seen.add(result.student)
        right += _as_it_must_be(assignment, _points(result), wanted[result.student], attacked.get(result.student))
        if len(seen) == MANY // 3:
            killed += _kill_a_worker()
    minutes = (time.monotonic() - begun) / 60
    print(
        f"grading-thousand: {len(seen)} of {MANY} graded in {minutes:.1f} minutes, {right} as they must be, "
        f"{len(attacked)} hostile, {killed} worker killed on the way",
        flush=True,
    )
    clock = f"{minutes:.1f} minutes wall time, {WORKERS} workers, {killed} killed"
    shares = (float(right),), (float(MANY),)
    return [Case(None, *shares, "all of them", 1.0, "submissions", clock=clock, better="higher")]


def _task(assignment: Assignment, name: str, answers: dict[str, Answer]) -> grading.Task:
    return grading.Task(name, 0, filled(blank(assignment), answers), (), name)


def _points(result: Result) -> dict[str, float]:
    """By problem."""
    return {p: sum(s.earned for s in result.tests if s.problem == p) for p in {s.problem for s in result.tests}}


def _as_it_must_be(assignment: Assignment, got: dict, wanted: dict, attacked: str | None) -> bool:
    """Exactly as the catalogue; where a problem is under attack, nothing for it and no more for those after it."""
    names = [problem.name for problem in assignment.graded]
    if attacked is None:
        return got == wanted
    place = names.index(attacked)
    before, after = names[:place], names[place + 1 :]
    kept = all(got[name] == wanted[name] for name in before) and all(got[name] <= wanted[name] for name in after)
    return kept and got[attacked] == 0


def _kill_a_worker() -> int:
    """Kills one worker process of the cluster that runs below this process, at once; 1 if there was one."""
    for process in psutil.Process().children(recursive=True):
        if any("spawn_main" in part for part in process.cmdline()):
            process.kill()
            return 1
    return 0


MEASURES = {"grading-throughput": throughput, "grading-thousand": thousand}
