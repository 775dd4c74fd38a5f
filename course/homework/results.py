"""What grading one submission gives: plain data, the same in a worker, in a file and in the gradebook's writer."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

MOST_EVIDENCE = 400  # characters of evidence that a flag keeps


@dataclass(frozen=True)
class Flag:
    """Something a person should look at.

    Attributes:
        kind: in a few words, such as `kernel lost`, `tampering`, `edited`, `missing`, `renamed`.
        cell: the name of the cell it belongs to; empty where it concerns the whole submission.
        evidence: what was seen, shortened; plain text that may come from a student, so escape it where it is shown.
    """

    kind: str
    cell: str = ""
    evidence: str = ""

    def __post_init__(self):
        object.__setattr__(self, "evidence", self.evidence[:MOST_EVIDENCE])

    def __str__(self) -> str:
        return self.kind + (f" in {self.cell}" if self.cell else "") + (f": {self.evidence}" if self.evidence else "")


@dataclass(frozen=True)
class Score:
    """The outcome of one graded test of values.

    Attributes:
        name: the test's cell, such as `paused-path-check`.
        problem: the problem it belongs to, such as `paused-path`.
        points, earned: the most that it gives, and what it gave.
        message: what the student is told.
    """

    name: str
    problem: str
    points: float
    earned: float
    message: str
    answered: bool = True


@dataclass(frozen=True)
class Mark:
    """What a person decided about one cell.

    Attributes:
        earned: points that count in place of the judge's; none where no person set any.
        comment: for the student, in Markdown.
        pending: whether the person is asked to look again, because the answer has changed since.
    """

    earned: float | None = None
    comment: str = ""
    pending: bool = False


@dataclass(frozen=True)
class Result:
    """The outcome of one submission.

    Attributes:
        student, assignment: whose, and of what.
        tests: one for each graded test, in the order of the notebook; written answers are not among them.
        flags: what a person should look at, from collecting and from grading.
        notebook: the executed notebook, sanitised, as JSON.
        seconds, peak_mb: wall time, and memory summed over all processes of the sandbox.
        key: a digest of the submission, the release and the grader: an equal key need not be graded again.
    """

    student: str
    assignment: str
    tests: tuple[Score, ...] = ()
    flags: tuple[Flag, ...] = ()
    notebook: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_mb: float = 0.0
    key: str = ""

    @property
    def earned(self) -> float:
        """Points of all tests together."""
        return sum(test.earned for test in self.tests)

    def to_json(self) -> str:
        """One JSON object, for a file."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> "Result":
        """The inverse of `to_json`.

        Raises:
            ValueError: The text is no result.
        """
        try:
            raw = json.loads(text)
            tests = tuple(Score(**test) for test in raw.pop("tests"))
            flags = tuple(Flag(**flag) for flag in raw.pop("flags"))
            return Result(tests=tests, flags=flags, **raw)
        except (TypeError, KeyError, AttributeError, RecursionError, ValueError) as error:
            raise ValueError(
                f"result: received a file that is no result ({error}); rule: one that `grade` wrote"
            ) from error
