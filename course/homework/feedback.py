"""What a student gets back: one page that needs no network and no script.

Everything on it that came from a student is hostile; `course.homework.rendering` makes it inert.

Nothing hidden is told. Graded tests ran beside the student's code, on hidden inputs, so whatever that code had a say in
may carry them out: an output, an error's words, a returned string or number. The page therefore shows no outputs, and
of the judge's messages only sentences that the course wrote.
"""

import builtins
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from nbformat import NotebookNode

from companion.exercises.checking import UNANSWERED
from companion.exercises.homework import RETURNED_NONE
from course.homework.rendering import cells, code_html, highlighting, markdown_html, name_of, source_of, visible
from course.homework.results import Flag, Mark, Result, Score

TEMPLATES = Path(__file__).parent / "templates"
HEADING = re.compile(r"^## +(?P<title>.+?)(?: \([\d.]+ points?\))?\s*$", re.MULTILINE)
HIDDEN = re.compile(r"-hidden(-\d+)?$")
OWN = re.compile(r"own-\d+")

# What a student may read of the judge's messages, besides the author's misconceptions: the beginning, and the sentence.
TELLABLE = {
    "Not yet: your answer took longer than": "Not yet: your answer took longer than a cell may take.",
    "Not judged: the kernel was gone": "Not judged: your notebook's kernel had stopped before this test was through.",
    "Not judged: the notebook changed": "Not judged: how cells are run was changed; a person looks at it.",
    "Not yet: the test could not run": "Not yet: the test could not run{error}. Does your notebook run from top to "
    "bottom in a new kernel?",
    "Not yet: your answer stopped with": "Not yet: your answer stopped with an error{error}.",
}
OTHERWISE = "Not yet: your answer gives something else than is right."

# What was noticed, by words of the flag's kind (the first that fits), in friendly words.
REMARKS = {
    "edited metadata": "Settings of a cell had been changed; those that it was handed out with were used.",
    "edited": "One of the course's own cells had been edited; the original was graded.",
    "missing": "A cell of the notebook was missing; what it asks for counts as not answered.",
    "duplicate": "Something was there more than once; the last that you had changed was graded.",
    "renamed": "The file had another name than it was handed out with; it was found all the same.",
    "retyped": "A cell had been turned into another kind of cell; it was graded as the kind it was.",
    "reordered": "Cells had been moved; they ran in the order in which they were handed out.",
    "no cell": "The notebook could not be read as this homework; please ask your instructor.",
    "recognised": "Some cells had lost their names and were recognised by their place or their text.",
    "own cells": "You added cells of your own; they ran before the next cell of the homework.",
    "own text": "You added text cells of your own; only the answers are graded.",
    "made inert": "Raw HTML, pictures and unusual links in a written answer are shown as text.",
    "attachments": "Pictures attached to a text cell were left out.",
    "strange characters": "Invisible characters in an answer were replaced.",
    "too long": "Something was longer than is kept; the rest was left out.",
    "several": "More than one file was handed in; the answers below are those that were graded.",
    "other release": "The notebook was of another release of this homework than the one that was graded by.",
    "another assignment": "The notebook said that it was of another homework.",
    "unreadable": "The notebook could not be read; please ask your instructor.",
    "damaged": "The notebook could not be read; please ask your instructor.",
    "no notebook": "No notebook was found in what was handed in; please ask your instructor.",
    "output": "A cell printed more than is kept; the rest was cut.",
    "found inside": "It came together with others' work; please look whether it is what you handed in.",
    "interrupted": "A cell ran longer than is allowed and was stopped.",
    "kernel lost": "Your notebook's kernel stopped on the way; points that were earned before are kept.",
    "old format": "The notebook was saved in an old format; it was converted.",
    "marked late": "It was handed in after it was due.",
}
UNKNOWN_REMARK = "A person will look at this submission."


@dataclass(frozen=True)
class Handing:
    """How it was handed in.

    Attributes:
        submitted, due: aware times, where known.
        penalty: points that lateness takes.
    """

    submitted: datetime | None = None
    due: datetime | None = None
    penalty: float = 0.0

    @property
    def late(self) -> timedelta:
        """Zero where it was on time, or nobody knows."""
        if self.submitted is None or self.due is None:
            return timedelta(0)
        return max(timedelta(0), self.submitted - self.due)


@dataclass
class Line:
    """One graded part of a problem, as shown: `earned` is none while a person has still to grade it."""

    label: str
    points: float
    earned: float | None
    message: str = ""


@dataclass
class Problem:
    """One problem as shown: `parts` are kinds with their HTML, `lines` what was graded."""

    title: str
    anchor: str
    parts: list[tuple[str, Markup]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    @property
    def points(self) -> float:
        """The most that it gives."""
        return sum(line.points for line in self.lines)

    @property
    def earned(self) -> float:
        """So far."""
        return sum(line.earned or 0.0 for line in self.lines)

    @property
    def waiting(self) -> bool:
        """Whether a person has still to grade something."""
        return any(line.earned is None for line in self.lines)


def render(
    result: Result | None,
    released: NotebookNode,
    *,
    name: str = "",
    title: str = "",
    marks: Mapping[str, Mark] | None = None,
    handing: Handing | None = None,
    told: Collection[str] = (),
    language: str = "en",
) -> str:
    """The page of one student.

    Args:
        result: of the submission; none if nothing was handed in.
        released: the notebook as this student got it.
        name: of the student; the id if not given.
        title: of the assignment; the release's own heading if not given.
        marks: what a person decided, by cell name: of written answers, of tests; comments on answers.
        handing: times, and the penalty for lateness.
        told: the misconceptions that the author wrote, without which a student reads only that it is not yet right.
        language: of the assignment's text.
    """
    handing = handing or Handing()
    problems = _problems(result, released, marks or {}, frozenset(told)) if result is not None else []
    penalty = _points(handing.penalty)
    return _page().render(
        title=visible(title or _title(released) or (result.assignment if result else "")),
        name=visible(name or (result.student if result else "")),
        language=language if re.fullmatch(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*", language) else "en",
        handed_in=result is not None,
        problems=problems,
        sentences=_how_the_total_came(problems, penalty, handing.late),
        total=max(0.0, sum(problem.earned for problem in problems) - penalty),
        points=sum(problem.points for problem in problems) or _all_points(released),
        waiting=any(problem.waiting for problem in problems),
        remarks=remarks(result.flags if result else ()),
        highlighting=highlighting(),
    )


# ---------------------------------------------------------------------- from a result to what is shown


def _problems(result: Result, released: NotebookNode, marks: Mapping[str, Mark], told: frozenset[str]) -> list[Problem]:
    """Walks the release, problem by problem; the submission only supplies answers and own cells."""
    submitted, own = _by_name(result.notebook), _own_cells(result.notebook)
    scores = {score.name: score for score in result.tests}
    problems: list[Problem] = []
    for cell in released.cells:
        name, about = name_of(cell), cell.metadata.get("nbgrader", {})
        if not about and cell.cell_type == "markdown":
            _read_text(cell.source, problems)
        elif problems:
            problem, answer = problems[-1], source_of(submitted.get(name))
            problem.parts += [
                ("own", code_html(source_of(extra), label="Your own cell")) for extra in own.get(name, ())
            ]
            if about.get("solution"):
                answer = "" if answer.strip() == cell.source.strip() else answer
                problem.parts.append(_answer(answer, written=cell.cell_type == "markdown"))
            if about.get("grade") and about.get("solution"):
                problem.lines.append(_written_line(about, answer, marks.get(name, Mark())))
            elif about.get("grade"):
                problem.lines.append(_test_line(name, about, scores.get(name), marks.get(name, Mark()), told))
            if name in marks and marks[name].comment.strip():
                problem.parts.append(("comment", markdown_html(marks[name].comment)))
    return [problem for problem in problems if problem.lines]


def _read_text(source: str, problems: list[Problem]) -> None:
    """A text cell of the release: `## …` begins a problem, other text belongs to the one before it."""
    before, *pieces = re.split(r"(?=^## )", source, flags=re.MULTILINE)
    if before.strip() and problems:
        problems[-1].parts.append(("text", markdown_html(before)))
    for piece in pieces:
        heading, _, text = piece.partition("\n")
        found = HEADING.match(heading)
        problems.append(Problem(found["title"] if found else heading, f"problem-{len(problems) + 1}"))
        if text.strip():
            problems[-1].parts.append(("text", markdown_html(text)))


def _answer(source: str, *, written: bool) -> tuple[str, Markup]:
    if not source.strip():
        return "answer", Markup('<p class="nothing">Nothing was written here.</p>')
    return ("written", markdown_html(source)) if written else ("answer", code_html(source, label="Your answer"))


def _written_line(about: Mapping[str, Any], answer: str, mark: Mark) -> Line:
    line = Line("Read by a person", _points(about.get("points")), None)
    if not mark.pending and mark.earned is not None:
        line.earned = _points(mark.earned)
    elif not answer.strip():
        line.earned, line.message = 0.0, "Not answered."
    return line


def _test_line(name: str, about: Mapping[str, Any], score: Score | None, mark: Mark, told: frozenset[str]) -> Line:
    hidden = HIDDEN.search(name)
    label = (
        f"Hidden test{(hidden[1] or '').replace('-', ' ')}" if hidden else "The check in your notebook, on other inputs"
    )
    message = "This test did not run." if score is None else tellable(score, told)
    line = Line(label, _points(about.get("points")), 0.0 if score is None else _points(score.earned), message)
    if mark.pending:
        line.earned = None
    elif mark.earned is not None and _points(mark.earned) != line.earned:
        line.earned, line.message = _points(mark.earned), f"{message} A person set the points."
    return line


def tellable(score: Score, told: Collection[str]) -> str:
    """What a student may read of the judge's message: only sentences that the course wrote."""
    if score.message in ("Right.", UNANSWERED, RETURNED_NONE):
        return score.message
    if not score.answered:
        return UNANSWERED
    if score.message.startswith("Not yet: ") and score.message.removeprefix("Not yet: ") in told:
        return score.message
    sentence = next((text for begin, text in TELLABLE.items() if score.message.startswith(begin)), OTHERWISE)
    kind = re.search(r"(?:stopped with|could not run:) (\w+)\b", score.message)
    known = getattr(builtins, kind[1], None) if kind else None
    return sentence.format(error=f" ({kind[1]})" if isinstance(known, type) and issubclass(known, Exception) else "")


def remarks(flags: Collection[Flag]) -> list[str]:
    """What was noticed, in friendly words and without evidence; never an accusation."""
    said = (next((text for kind, text in REMARKS.items() if kind in flag.kind), UNKNOWN_REMARK) for flag in flags)
    return list(dict.fromkeys(said))


def _how_the_total_came(problems: list[Problem], penalty: float, late: timedelta) -> list[str]:
    earned, points = sum(problem.earned for problem in problems), sum(problem.points for problem in problems)
    sentences = [f"Your answers earned {number(earned)} of {count(points)}."]
    if late:
        costs = f"costs {count(penalty)}" if penalty else "costs nothing"
        sentences.append(f"You handed in {duration(late)} late, which {costs}.")
    elif penalty:
        sentences.append(f"Lateness costs {count(penalty)}.")
    if penalty > earned:
        sentences.append("A total is never below 0.")
    if any(problem.waiting for problem in problems):
        sentences.append("A person still has to read something, so this may change.")
    return sentences


def number(points: float) -> str:
    """Points as people write them."""
    return f"{round(points, 2) + 0.0:.10g}".replace("-", "\u2212")


def count(points: float) -> str:
    """Points with the word."""
    return f"{number(points)} point" + ("" if number(points) == "1" else "s")


def duration(span: timedelta) -> str:
    """A time span in its two largest units."""
    minutes = max(1, int(span.total_seconds() // 60))
    amounts = (("day", minutes // 1440), ("hour", minutes // 60 % 24), ("minute", minutes % 60))
    named = [f"{amount} {unit}" + ("s" if amount > 1 else "") for unit, amount in amounts if amount]
    return " and ".join(named[:2])


def state(points: float, earned: float | None) -> str:
    """`full`, `part`, `none` or `open`, for the eye."""
    if earned is None:
        return "open"
    return "full" if earned >= points else "part" if earned > 0 else "none"


def _points(value: Any) -> float:
    """A finite number, whatever it was."""
    try:
        points = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return points if abs(points) < 1e9 else 0.0  # false for nan


def _all_points(released: NotebookNode) -> float:
    graded = (cell.metadata.get("nbgrader", {}) for cell in released.cells)
    return sum(_points(about.get("points")) for about in graded if about.get("grade"))


def _title(released: NotebookNode) -> str:
    titles = (re.search(r"^# +(.+)$", cell.source, re.MULTILINE) for cell in released.cells if "# " in cell.source)
    return next((found[1].strip() for found in titles if found), "")


def _by_name(notebook: Mapping[str, Any]) -> dict[str, dict]:
    return {name_of(cell): cell for cell in cells(notebook) if name_of(cell)}


def _own_cells(notebook: Mapping[str, Any]) -> dict[str, list[dict]]:
    """The student's own cells, by the name of the cell that they stand before."""
    found: dict[str, list[dict]] = {}
    waiting: list[dict] = []
    for cell in cells(notebook):
        if name_of(cell):
            found[name_of(cell)], waiting = waiting, []
        elif OWN.fullmatch(str(cell.get("id", ""))):
            waiting.append(cell)
    return found


@cache
def _page():
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(points=number, count=count)
    environment.globals["state"] = state
    return environment.get_template("feedback.html.j2")
