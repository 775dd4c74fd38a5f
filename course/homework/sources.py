"""What the author writes: two MyST files for one homework.

homework/12-flow-matching/assignment.md    all that a student gets to see: text, given cells, starter code, checks
homework/12-flow-matching/answers.md       what he does not: solutions, right and wrong answers, hidden tests, rubrics

The line runs between two files, so that nothing has to be cut out of what is handed out.

In `assignment.md` each `## N. Title (P points)` begins a problem. Its cells, by tag:

    answer     code that the student completes; its name is the problem's: `paused-path`
    check      named `paused-path-check`, with `points`: defines `probe(generator)`, which runs the answer on inputs
               drawn from the generator and returns what is compared (`atol`, `rtol`, `false_alarm` as in `Exercise`;
               `sealed: true` where public values would give the answer away)
    written    a text cell, `+++ {"name": "why-half", "tags": ["written"], "points": 3}`: graded by a person (a line
               `+++` ends it, where text follows)

Other code cells are given; a test sees those that stand before its answer. In `answers.md` each `## paused-path` holds
a problem's `### Solution`, `### Right: how it differs`, `### Wrong: what the student is told.` and
`### Hidden: what it tests` (with `points`; defines `probe`), each with one code cell; a written problem has
`### Solution` and `### Rubric` in words.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jupytext
import yaml
from nbformat import NotebookNode

from course.chapters import SLUG, CourseError, called
from course.notebooks import CELL_NAME

if TYPE_CHECKING:  # at run time where it is needed: reading an assignment must not wait for torch
    import torch

    from companion.exercises import Exercise

LEAST_WRONG, LEAST_RIGHT = 6, 2
FRONT_MATTER = {"chapter": str, "minutes": (int, float), "goals": list}
HEADING = re.compile(r"^## (?P<number>\d+)\. (?P<title>.+) \((?P<points>[\d.]+) points?\)$", re.MULTILINE)
PART_HEADING = re.compile(r"^(?P<kind>Solution|Right|Wrong|Hidden|Rubric)(?:: (?P<text>.+))?$")
PART_RULE = "under '## PROBLEM', Solution, Right: …, Wrong: …, Hidden: … or Rubric"
TOLERANCES = ("atol", "rtol", "false_alarm")


@dataclass
class Part:
    """One part of `answers.md`: what stands under a heading such as `### Wrong: the sign is turned.`"""

    kind: str
    text: str
    words: str = ""
    code: NotebookNode | None = None

    @property
    def source(self) -> str:
        """The code, where there is some, else the words."""
        return self.code.source if self.code is not None else self.words.strip()


@dataclass(frozen=True)
class Test:
    """One graded test of values: `probe(generator)` runs the answer, and what it returns is compared.

    Attributes:
        name: of its cell.
        source: code that defines `probe`.
        points: what it gives.
        hidden: students never see its text.
        sealed: the public values are not handed out, because they are the answer.
        settings: `atol`, `rtol`, `false_alarm`, where stated.
    """

    __test__ = False  # not for pytest

    name: str
    source: str
    points: float
    hidden: bool = False
    sealed: bool = False
    settings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """One problem with all that is known of its answers.

    Attributes:
        name: of its answer cell.
        title, points: as its heading says.
        starter: what stands in the answer cell when it is handed out.
        given: the code that runs before it.
        solution: the answer (code, or words where `written`).
        also_right, wrong: other right answers by how they differ; wrong ones by what a student is told.
        tests: the public check first; none where `written`.
        rubric: how a person grades it; only where `written`.
        mistakes: the listed mistakes that it asks about, such as `E12`.
    """

    name: str
    title: str
    points: float
    starter: str
    given: str = ""
    solution: str = ""
    also_right: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    tests: tuple[Test, ...] = ()
    rubric: str = ""
    mistakes: tuple[str, ...] = ()

    @property
    def written(self) -> bool:
        """Whether a person grades it."""
        return not self.tests

    def exercise(self, test: Test, variant: dict[str, Any]) -> "Exercise":
        """The `Exercise` of one of its tests: right and wrong answers as functions of a generator."""
        from companion.exercises.homework import exercise

        return exercise(
            self.runner(self.solution, test, variant),
            {told: self.runner(answer, test, variant) for told, answer in self.wrong.items()},
            also_right=tuple(self.runner(answer, test, variant) for answer in self.also_right.values()),
            **test.settings,
        )

    def runner(self, answer: str, test: Test, variant: dict[str, Any]) -> "Callable[[torch.Generator], Any]":
        """An author's answer as the function of a generator that `test` makes of it."""

        def probe(generator):
            return run(self.given, variant, answer, test.source)(generator)

        return probe


@dataclass(frozen=True)
class Assignment:
    """One homework.

    Attributes:
        slug: of its chapter, such as `12-flow-matching`.
        title, minutes, goals: what its page says of it.
        notebook: `assignment.md` as a notebook, cells named.
        problems: in order.
        variants: rows of numbers; each student gets one row. One empty row where there are none.
    """

    slug: str
    title: str
    minutes: float
    goals: tuple[str, ...]
    notebook: NotebookNode
    problems: tuple[Problem, ...]
    variants: tuple[dict[str, Any], ...]

    @cached_property
    def points(self) -> float:
        """Of all problems together."""
        return sum(problem.points for problem in self.problems)

    @property
    def graded(self) -> list[Problem]:
        """The problems that are graded automatically."""
        return [problem for problem in self.problems if not problem.written]


def run(given: str, variant: dict[str, Any], answer: str, test: str):
    """The `probe` of a trusted author's cells, run in this process; never of a student's."""
    namespace: dict[str, Any] = {"__name__": "__main__", **variant}
    for part, source in (("given", given), ("answer", answer), ("test", test)):
        exec(compile(source, f"<{part}>", "exec"), namespace)
    return namespace["probe"]


def slugs(folder: Path) -> list[str]:
    """The homeworks in a folder of sources, in order."""
    return sorted(path.parent.name for path in folder.glob("*/assignment.md") if SLUG.fullmatch(path.parent.name))


def find(folder: Path, name: str) -> str:
    """The slug of the homework in a folder of sources that is called `name`.

    Raises:
        CourseError: None, or more than one, is called so.
    """
    return choose(slugs(folder), name, f"none in {folder}")


def choose(known: Iterable[str], name: str, otherwise: str) -> str:
    """The one of the known slugs that is called `name`: a number, a slug, a prefix of either.

    Raises:
        CourseError: None, or more than one, is called so; `otherwise` is said where nothing is known at all.
    """
    known = sorted(known)
    found = called(name, known)
    if len(found) == 1:
        return found[0]
    problem = "fits more than one homework" if found else "is the name of no homework here"
    listing = ", ".join(found or known) or otherwise
    raise CourseError(f"homework: received '{name}', which {problem}; rule: a number, a slug or a prefix of {listing}")


def load(folder: Path) -> Assignment:
    """Reads one homework from its folder.

    Raises:
        CourseError: A file is missing or breaks a rule; all that is wrong is said at once.
    """
    if not SLUG.fullmatch(folder.name):
        raise CourseError(f"homework: received the folder {folder.name}; rule: named NN-slug, like its chapter")
    public, private = (_read(folder / name) for name in ("assignment.md", "answers.md"))
    problems: list[str] = []
    block = _front_matter(public, folder.name, problems)
    answers = _answers(private, problems)
    assignment = Assignment(
        slug=folder.name,
        title=next(iter(re.findall(r"^# (.+)$", public.cells[0].source, re.MULTILINE)), ""),
        minutes=block.get("minutes", 0),
        goals=tuple(block.get("goals", ())),
        notebook=public,
        problems=tuple(_problems(public, answers, problems)),
        variants=_variants(block, problems),
    )
    problems += _missing(assignment, answers)
    if problems:
        raise CourseError("\n".join(f"homework {folder.name}: {problem}" for problem in problems))
    return assignment


def _read(path: Path) -> NotebookNode:
    try:
        notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="md:myst")
    except (OSError, UnicodeError, yaml.YAMLError, ValueError) as error:
        raise CourseError(
            f"homework {path.parent.name}: received {path.name}, which cannot be read: {error}"
        ) from error
    notebook.metadata.pop("jupytext", None)
    return notebook


def _front_matter(notebook: NotebookNode, slug: str, problems: list[str]) -> dict[str, Any]:
    block = notebook.metadata.get("homework")
    if not isinstance(block, dict):
        problems.append(f"assignment.md: received no 'homework:' block; rule: it states {', '.join(FRONT_MATTER)}")
        return {}
    for key, kind in FRONT_MATTER.items():
        if not isinstance(block.get(key), kind) or not block[key]:
            problems.append(f"assignment.md: received {key}: {block.get(key)!r}; rule: homework states {key}")
    if unknown := block.keys() - FRONT_MATTER.keys() - {"variants"}:
        problems.append(
            f"assignment.md: received the unknown {sorted(unknown)}; rule: only {', '.join(FRONT_MATTER)}, variants"
        )
    if block.get("chapter") != slug:
        problems.append(f"assignment.md: received chapter: {block.get('chapter')}; rule: the folder's name, {slug}")
    return block


def _variants(block: dict[str, Any], problems: list[str]) -> tuple[dict[str, Any], ...]:
    rows = block.get("variants", [{}])
    fits = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    if not fits or any(row.keys() != rows[0].keys() for row in rows):
        problems.append(f"assignment.md: received variants: {rows!r}; rule: a list of rows with the same names")
        return ({},)
    if not all(
        str(name).isidentifier() and isinstance(value, int | float | str) for row in rows for name, value in row.items()
    ):
        problems.append("assignment.md: received variants of other kinds; rule: names of Python, numbers or words")
    return tuple(dict(row) for row in rows)


def _problems(notebook: NotebookNode, answers: dict[str, list[Part]], problems: list[str]) -> list[Problem]:
    """Walks the public notebook, problem by problem."""
    found: list[Problem] = []
    heading, given, names = None, [], set()
    for cell in notebook.cells:
        name, tags = cell.metadata.get("name"), set(cell.metadata.get("tags", []))
        if cell.cell_type == "code" or "written" in tags:
            if not isinstance(name, str) or not CELL_NAME.fullmatch(name) or len(name) > 50 or name in names:
                problems.append(
                    f"assignment.md: received the cell name {name!r}; rule: kebab-case, once, at most 50 characters"
                )
                continue
            names.add(name)
        if tags & {"answer", "written"}:
            if heading is None:
                problems.append(
                    f"{name}: received no heading of its own; rule: `## N. Title (P points)` before each problem"
                )
                continue
            problem = Problem(name, heading["title"], float(heading["points"]), cell.source, "\n".join(given))
            found.append(_with_answers(problem, answers.get(name, []), cell, problems))
            heading = None
        elif "check" in tags:
            if not found or name != f"{found[-1].name}-check":
                problems.append(f"{name}: received a check out of place; rule: after its answer, named PROBLEM-check")
                continue
            test = _test(cell, name, False, problems)
            found[-1] = replace(found[-1], tests=(test, *found[-1].tests))
        elif cell.cell_type == "code":
            given.append(cell.source)
        else:
            heading = HEADING.search(cell.source) or heading
    return found


def _with_answers(problem: Problem, parts: list[Part], cell: NotebookNode, problems: list[str]) -> Problem:
    def of(kind: str) -> dict[str, str]:
        return {part.text: part.source for part in parts if part.kind == kind}

    hidden = [part for part in parts if part.kind == "Hidden"]
    problems += [
        f"{problem.name}: received no code under 'Hidden: {part.text}'" for part in hidden if part.code is None
    ]
    tests = [
        _test(part.code, f"{problem.name}-hidden" + (f"-{number}" if number > 1 else ""), True, problems)
        for number, part in enumerate(hidden, start=1)
        if part.code is not None
    ]
    return replace(
        problem,
        solution=next(iter(of("Solution").values()), ""),
        also_right=of("Right"),
        wrong=of("Wrong"),
        rubric=next(iter(of("Rubric").values()), ""),
        tests=tuple(tests),
        mistakes=tuple(cell.metadata.get("mistakes", ())),
    )


def _test(cell: NotebookNode, name: str, hidden: bool, problems: list[str]) -> Test:
    points = cell.metadata.get("points", 0)
    if not isinstance(points, int | float) or isinstance(points, bool) or points < 0:
        problems.append(f"{name}: received points: {points!r}; rule: a number, 0 or more")
        points = 0
    if "def probe(generator" not in cell.source:
        problems.append(f"{name}: received a test without a probe; rule: it defines `probe(generator)`")
    settings = {key: float(cell.metadata[key]) for key in TOLERANCES if key in cell.metadata}
    return Test(name, cell.source, float(points), hidden, bool(cell.metadata.get("sealed", False)), settings)


def _answers(notebook: NotebookNode, problems: list[str]) -> dict[str, list["Part"]]:
    """What `answers.md` holds, by problem."""
    parts: dict[str, list[Part]] = {}
    here: list[Part] | None = None  # of the problem that we are in
    for kind, content in _pieces(notebook):
        if kind == "problem":
            if content in parts:
                problems.append(f"answers.md: received '## {content}' twice; rule: once")
            here = parts.setdefault(content, [])
        elif kind == "part":
            matched = PART_HEADING.match(content)
            if here is None or matched is None:
                problems.append(f"answers.md: received the heading '### {content}'; rule: {PART_RULE}")
                continue
            part = Part(matched["kind"], (matched["text"] or "").strip())
            if any((other.kind, other.text) == (part.kind, part.text) for other in here):
                problems.append(f"answers.md: received '### {content}' twice in a problem; rule: once")
            here.append(part)
        elif here and kind == "words":
            here[-1].words += content
        elif kind == "code":
            if not here or here[-1].code is not None:
                problems.append(
                    f"answers.md: received code out of place: {content.source[:60]!r}; rule: one cell a heading"
                )
                continue
            here[-1].code = content
    return parts


def _pieces(notebook: NotebookNode) -> Iterator[tuple[str, Any]]:
    """Headings, words and code in their order; jupytext reads a run of text as one cell, whatever headings it has."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            yield "code", cell
            continue
        for line in cell.source.split("\n"):
            if line.startswith("### "):
                yield "part", line[4:].strip()
            elif line.startswith("## "):
                yield "problem", line[3:].strip()
            else:
                yield "words", line + "\n"


def _missing(assignment: Assignment, answers: dict[str, list[Part]]) -> list[str]:
    """What a whole homework must have."""
    problems, names = [], {problem.name for problem in assignment.problems}
    problems += [
        f"answers.md: received '## {name}', which is no problem of assignment.md"
        for name in answers
        if name not in names
    ]
    for problem in assignment.problems:
        if problem.written:
            if not (problem.solution and problem.rubric):
                problems.append(f"{problem.name}: received no solution or rubric in answers.md; rule: both in words")
            continue
        if not problem.solution:
            problems.append(f"{problem.name}: received no '### Solution' in answers.md; rule: one")
        if problem.tests[0].hidden:
            problems.append(
                f"{problem.name}: received no check; rule: a code cell tagged check, named {problem.name}-check"
            )
        if 1 + len(problem.also_right) < LEAST_RIGHT:
            problems.append(
                f"{problem.name}: received one right answer; rule: at least {LEAST_RIGHT}, written differently"
            )
        if len(problem.wrong) < LEAST_WRONG:
            problems.append(
                f"{problem.name}: received {len(problem.wrong)} wrong answers; rule: at least {LEAST_WRONG}"
            )
        problems += [
            f"{problem.name}: received the message {text!r}; rule: a sentence, as told after 'Not yet: '"
            for text in problem.wrong
            if len(text) < 20 or not text.endswith((".", "?", ".)"))
        ]
        if abs(sum(test.points for test in problem.tests) - problem.points) > 1e-9:
            stated = " + ".join(f"{test.points:g}" for test in problem.tests)
            problems.append(
                f"{problem.name}: received tests of {stated} points; rule: together the heading's {problem.points:g}"
            )
    if not assignment.problems:
        problems.append("assignment.md: received no problem; rule: `## N. Title (P points)` and an answer cell")
    return problems


def hidden_seed(secret: str, test: str) -> int:
    """The seed of the inputs that decide the points; never the public one."""
    from companion.exercises.homework import PUBLIC_SEED

    digest = hashlib.sha256(f"{secret}/{test}".encode()).digest()
    return PUBLIC_SEED + 1 + int.from_bytes(digest[:4], "big") % (2**31 - 2)
