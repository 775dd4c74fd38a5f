"""The judge: a trusted process that runs one submission in a sandbox and compares values.

The sandbox computes, the judge compares. For each graded test it has the sandbox print, between two copies of a number
made for this one time, what the answer gives for hidden inputs; then it has it run a cell that must fail with another
such number. Points come from the values alone. Whatever else the sandbox prints, raises or pretends earns nothing.
"""

import json
import secrets
import time
from dataclasses import dataclass, field, replace
from typing import Any

import nbformat
from nbformat import NotebookNode

from course.homework.cleaning import clean_text, plain
from course.homework.editions import cell_name, edition, variant_source
from course.homework.kernel import Kernel, Outcome, WarmParent
from course.homework.results import Flag, Result, Score
from course.homework.sandbox import Limits
from course.homework.sources import Assignment, hidden_seed

MOST_VALUES_KB = 5_000  # of JSON that one test may print
MOST_MESSAGE = 2_000  # characters that a student is told of one test
# `torch._dynamo` comes with the first optimizer, and takes a second of each submission that makes one.
IMPORTS = ("torch", "torch._dynamo", "numpy", "matplotlib.pyplot", "companion.exercises.homework")


@dataclass(frozen=True)
class TrustedTest:
    """One graded test, as the judge knows it: its code, the hidden inputs' seed, and what answers return for them."""

    name: str
    problem: str
    points: float
    source: str
    seed: int
    record: dict[str, Any]


@dataclass(frozen=True)
class Paper:
    """All that a worker needs to grade the submissions to one edition; plain data.

    Attributes:
        slug: of the homework.
        tests: by the name of their cell.
        trusted: sources that replace what a submission says, by cell name (this student's numbers).
        files: what lies beside the notebook.
        limits: of one submission.
    """

    slug: str
    tests: dict[str, TrustedTest]
    trusted: dict[str, str]
    files: dict[str, bytes]
    limits: Limits = field(default_factory=Limits)


def paper(assignment: Assignment, secret: str, variant: int = 0, limits: Limits | None = None) -> Paper:
    """Computes what the judge must know of one variant of a homework."""
    row = assignment.variants[variant]
    numbers = variant_source(row) + "\n\n" if row else ""
    tests = {}
    for problem in assignment.graded:
        for test in problem.tests:
            seed = hidden_seed(secret, test.name)
            record = problem.exercise(test, row).record(seed)
            # Each test begins with this student's numbers anew: `for scale in …` in an answer leaves others behind.
            tests[test.name] = TrustedTest(test.name, problem.name, test.points, numbers + test.source, seed, record)
    files = {name: data for name, data in edition(assignment, variant).files.items() if not name.endswith(".ipynb")}
    trusted = {"variant": numbers} if row else {}
    return Paper(assignment.slug, tests, trusted, files, limits or Limits())


def grade(
    paper: Paper, notebook: NotebookNode, student: str, warm: WarmParent, flags: tuple[Flag, ...] = (), key: str = ""
) -> Result:
    """Runs one collected submission from top to bottom and judges it.

    Args:
        paper: what the judge knows.
        notebook: the submission, already transplanted into the release.
        warm: the parent that the sandbox's kernel is forked from.
        flags: from collecting; kept.
        key: names what was graded, so that it need not be graded again.
    """
    begun = time.monotonic()
    executed = nbformat.from_dict(json.loads(json.dumps(notebook)))
    with warm.kernel(limits=paper.limits, files=paper.files) as kernel:
        session = _Session(paper, kernel)
        for cell in executed.cells:
            if cell.cell_type == "code":
                session.run(cell)
    # Evidence is printed in the instructor's terminal, which would obey what it holds of control sequences.
    noticed = (replace(flag, evidence=plain(flag.evidence)) for flag in (*session.flags, *kernel.flags))
    result = Result(student, paper.slug, tuple(session.scores), (*flags, *noticed))
    if kernel.lost:
        result = replace(result, flags=(*result.flags, Flag("kernel lost", session.lost_in, kernel.lost)))
    seconds = round(time.monotonic() - begun, 3)
    return replace(result, notebook=dict(executed), seconds=seconds, peak_mb=round(kernel.peak_mb, 1), key=key)


class _Session:
    """One notebook on its way through one kernel."""

    def __init__(self, paper: Paper, kernel: Kernel):
        self.paper, self.kernel = paper, kernel
        self.scores: list[Score] = []
        self.flags: list[Flag] = []
        self.lost_in = ""
        self.stopped: dict[str, str] = {}  # by the name of the cell, what to say of an answer that did not run through

    def run(self, cell: NotebookNode) -> None:
        """Runs one code cell and keeps what it showed; a graded test is judged instead."""
        name = cell_name(cell)
        if test := self.paper.tests.get(name):
            self.scores.append(self._judge(test))
            cell.outputs = []  # it ran on hidden inputs: what an answer prints there stays here
        else:
            outcome = self._execute(self.paper.trusted.get(name, cell.source), name)
            cell.outputs = [nbformat.from_dict(output) for output in outcome.outputs]
            if outcome.state == "timeout":
                self.stopped[name] = self._too_long(name)
            elif outcome.error:
                self.stopped[name] = f"Not yet: your answer stopped with {_said(outcome)}"
        cell.execution_count = None

    def _execute(self, source: str, name: str, keep_kb: int | None = None) -> Outcome:
        outcome = self.kernel.run(source, keep_kb=keep_kb)
        if outcome.state == "lost" and not self.lost_in:
            self.lost_in = name
        return outcome

    def _judge(self, test: TrustedTest) -> Score:
        def score(earned: float, message: str, answered: bool = True) -> Score:
            said = clean_text(message)[:MOST_MESSAGE]  # it may quote what the sandbox sent
            return Score(test.name, test.problem, test.points, earned, said, answered)

        nonce, must_fail = secrets.token_hex(16), secrets.token_hex(16)
        computed = self._execute(value_cell(test, nonce), test.name, MOST_VALUES_KB)
        if computed.state == "lost":
            return score(0, f"Not judged: the kernel was gone ({self.kernel.lost}, in {self.lost_in}).")
        sentinel = self._execute(sentinel_cell(must_fail), test.name)
        if sentinel.state == "lost":
            return score(0, f"Not judged: the kernel was gone ({self.kernel.lost}, in {self.lost_in}).")
        if sentinel.error != ("AssertionError", must_fail):
            self.flags.append(
                Flag("tampering", test.name, f"a cell that must fail gave {sentinel.state} {sentinel.error}")
            )
            return score(0, "Not judged: the notebook changed how cells are run.")
        if computed.state == "timeout":
            return score(0, self._too_long(test.name))
        values = self._values(computed, nonce, test)
        if values is None:
            return score(0, f"Not yet: the test could not run: {_said(computed)}")
        from companion.exercises.homework import judge  # with torch, for which only a process that judges need wait

        verdict = judge(values, test.record)
        if not verdict.passed and values.get("kind") == "error" and test.problem in self.stopped:
            return score(0, self.stopped[test.problem])  # that a name is not defined is only what follows from it
        return score(test.points if verdict.passed else 0, verdict.message, verdict.answered)

    def _too_long(self, name: str) -> str:
        """What a student is told; a person sees it too, who may allow more time."""
        most = f"{self.paper.limits.cell_seconds:g} seconds"
        self.flags.append(Flag("interrupted", name, f"longer than {most}"))
        return f"Not yet: your answer took longer than {most}."

    def _values(self, outcome: Outcome, nonce: str, test: TrustedTest) -> dict | None:
        """What stands between the two nonces on stdout; anything but once, or no JSON object, is no value."""
        printed = "".join(o["text"] for o in outcome.outputs if o["output_type"] == "stream" and o["name"] == "stdout")
        parts = printed.split(nonce)
        if len(parts) == 1:
            return None
        if len(parts) != 3:
            self.flags.append(
                Flag("tampering", test.name, f"the nonce was printed {len(parts) - 1} times; rule: twice")
            )
            return None
        try:
            values = json.loads(parts[1])
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            self.flags.append(Flag("tampering", test.name, f"what was printed as values is none: {parts[1][:200]}"))
            return None
        return values


def value_cell(test: TrustedTest, nonce: str) -> str:
    """The code that has the sandbox print what the answer gives for hidden inputs."""
    return (
        f"{test.source}\n\n\n"
        "import contextlib as _contextlib, io as _io, json as _json, os as _os, sys as _sys\n"
        "from companion.exercises.homework import values as _values\n"
        "with _io.open(_os.devnull, 'w') as _nowhere, _contextlib.redirect_stdout(_nowhere):\n"
        f"    _given = _values(probe, {test.seed})\n"
        f'_sys.stdout.write("{nonce}" + _json.dumps(_given) + "{nonce}")\n'
    )


def sentinel_cell(nonce: str) -> str:
    """The code that must fail; not into a debugger, which `%pdb on` opens, and which no one here could talk to."""
    return f'import IPython as _IPython\n_IPython.get_ipython().call_pdb = False\nraise AssertionError("{nonce}")\n'


def _said(outcome: Outcome) -> str:
    return f"{outcome.error[0]}: {outcome.error[1]}"[:300] if outcome.error else "it printed no values."
