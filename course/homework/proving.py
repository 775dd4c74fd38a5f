"""The proof that the grader teaches: right answers get full marks, each wrong one loses points and is told why.

What `rehearsing` does in one process, `prove` does as students do: it hands every answer of the catalogue in, has all
graded in the sandbox, and counts.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nbformat import NotebookNode

from course.homework import grading
from course.homework.editions import blank, notebook_text
from course.homework.rehearsing import KEPT_BY_WRONG, SECRET
from course.homework.results import Result
from course.homework.sandbox import Limits
from course.homework.sources import Assignment


@dataclass
class Proof:
    """What handing in the whole catalogue of one homework gave.

    Attributes:
        wrong, killed: wrong answers, and those that lost their points and were told their own misconception.
        right, right_full: right answers, and those that got full marks.
        release_score: points of the untouched release.
        survivors: each answer that was misjudged, with what it got.
    """

    wrong: int = 0
    killed: int = 0
    right: int = 0
    right_full: int = 0
    release_score: float = 0.0
    survivors: list[str] = field(default_factory=list)

    @property
    def perfect(self) -> bool:
        """Whether every answer was judged as it must be."""
        return not self.survivors and self.release_score == 0

    def summary(self) -> dict[str, Any]:
        """For `proof.json`."""
        return dict(vars(self))

    def __str__(self) -> str:
        lines = [
            f"{self.killed} of {self.wrong} wrong answers lose their points and are told why, {self.right_full} of "
            f"{self.right} right ones get full marks, the untouched release gets {self.release_score:g}"
        ]
        return "\n    survivor: ".join([*lines, *self.survivors])


@dataclass(frozen=True)
class Answer:
    """One answer that is handed in: `kind` is release, right or wrong, or again (a solution that fills a gap)."""

    kind: str
    name: str
    source: str


def prove(assignments: list[Assignment], limits: Limits | None = None, *, workers: int = 1) -> dict[str, Proof]:
    """Hands in answer k of every problem as submission k, has all graded in the sandbox, and counts.

    Raises:
        CourseError: Submissions cannot be run safely here.
    """
    orders, tasks, handed = [], [], {}
    for assignment in assignments:
        first, variants = len(orders), len(assignment.variants)
        orders += [grading.Order(assignment, SECRET, variant, limits) for variant in range(variants)]
        for number, answers in enumerate(submissions(assignment)):
            name = f"{assignment.slug}/{number}"
            notebook = filled(blank(assignment, number % variants), answers)
            tasks.append(grading.Task(name, first + number % variants, notebook, (), name))
            handed[name] = assignment, answers
    proofs: dict[str, Proof] = defaultdict(Proof)
    for result in grading.run(orders, tasks, workers=workers):
        _count(proofs[result.assignment], *handed[result.student], result)
    return {assignment.slug: proofs[assignment.slug] for assignment in assignments}


def submissions(assignment: Assignment) -> Iterator[dict[str, Answer]]:
    """By problem: the untouched release, then right answers, then wrong ones; where they end, the solution again."""
    yield {problem.name: Answer("release", "", problem.starter) for problem in assignment.graded}
    right = {problem.name: {"Solution": problem.solution, **problem.also_right} for problem in assignment.graded}
    wrong = {problem.name: problem.wrong for problem in assignment.graded}
    for kind, catalogue in (("right", right), ("wrong", wrong)):
        for k in range(max(map(len, catalogue.values()), default=0)):
            yield {
                name: Answer(kind, *list(known.items())[k])
                if k < len(known)
                else Answer("again", "", right[name]["Solution"])
                for name, known in catalogue.items()
            }


def filled(released: NotebookNode, answers: dict[str, Answer]) -> str:
    """A notebook with answers in it, as a student would have saved it."""
    notebook = json.loads(notebook_text(released))
    for cell in notebook["cells"]:
        if cell["id"] in answers:
            cell["source"] = answers[cell["id"]].source
    return json.dumps(notebook)


def _count(proof: Proof, assignment: Assignment, answers: dict[str, Answer], result: Result) -> None:
    for problem in assignment.graded:
        answer, scores = answers[problem.name], [score for score in result.tests if score.problem == problem.name]
        earned = sum(score.earned for score in scores)
        told = next((score.message for score in scores if score.earned < score.points), "")
        if answer.kind == "release":
            proof.release_score += earned
            good = earned == 0
        elif answer.kind == "wrong":
            good = earned <= KEPT_BY_WRONG * problem.points and told == f"Not yet: {answer.name}"
            proof.wrong, proof.killed = proof.wrong + 1, proof.killed + good
        else:
            good = earned == problem.points
            if answer.kind == "right":
                proof.right, proof.right_full = proof.right + 1, proof.right_full + good
        if not good:
            got = f"{earned:g} of {problem.points:g} points, {told or 'told nothing'}"
            proof.survivors.append(f"{problem.name}, {answer.kind} {answer.name!r}: {got}")
    proof.survivors += [f"{_named(answers)}: flagged: {flag}" for flag in result.flags]


def _named(answers: dict[str, Answer]) -> str:
    """A submission of the proof, for a message."""
    return "submission with " + "; ".join(f"{name}: {answer.kind} {answer.name!r}" for name, answer in answers.items())
