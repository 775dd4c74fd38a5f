"""What is proved, and by which test: pure functions over files, without Sphinx and without importing a test.

Three things are read. Tests, by their syntax tree: the markers `verifies("eq-…")` and `refutes("E19")`. Chapters,
by their MyST text: the labelled equations and the boxes of class `mistake`. The table `mistakes.yml`: which mistake
belongs to which chapter. A `Ledger` holds them side by side and names every gap.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from course.chapters import Chapter, Course

TABLE = Path(__file__).with_name("mistakes.yml")
FENCE = re.compile(r"^\s*(?P<fence>`{3,}|:{3,}|~{3,})\s*(?P<info>.*)$")
CODE = re.compile(r"^(\{code|\{literal|\{raw|[a-zA-Z])")  # {code-cell}, {code-block}, python: no MyST inside
LABEL_AFTER = re.compile(r"\$\$\s*\((?P<label>[^()\s]+)\)\s*$")
OPTION = re.compile(r"^\s*:(?P<key>[\w-]+):\s*(?P<value>.*)$")
NUMBER = re.compile(r"\bE\d+\b")


@dataclass(frozen=True)
class Evidence:
    """One marked test."""

    file: str
    name: str
    line: int
    docstring: str
    source: str
    verifies: tuple[str, ...]
    refutes: tuple[str, ...]

    @property
    def anchor(self) -> str:
        """`test-ode-the-error-of-midpoint-falls-with-the-square-of-the-step`: unique on the whole site."""
        parts = [*Path(self.file).with_suffix("").parts[1:], self.name.removeprefix("test_")]
        return "test-" + re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")

    @property
    def title(self) -> str:
        """The name as the sentence that it is."""
        words = self.name.rpartition("::")[2].removeprefix("test_").replace("_", " ")
        return words[:1].upper() + words[1:]

    @property
    def place(self) -> str:
        """`tests/numerics/test_ode.py::test_…`, as pytest calls it."""
        return f"{self.file}::{self.name}"


@dataclass(frozen=True)
class Equation:
    """One labelled equation of a chapter."""

    label: str
    chapter: str
    latex: str
    line: int


@dataclass(frozen=True)
class Box:
    """One `mistake` box of a chapter."""

    number: str
    chapter: str
    title: str
    line: int


@dataclass(frozen=True)
class Mistake:
    """One entry of the table: a mistake that circulates, and where the course refutes it."""

    number: str
    chapters: tuple[int, ...]
    title: str
    wrong: str
    right: str


@dataclass(frozen=True)
class Ledger:
    """Chapters, equations, boxes, mistakes and tests of one checkout, side by side."""

    chapters: tuple[Chapter, ...]
    equations: tuple[Equation, ...]
    boxes: tuple[Box, ...]
    mistakes: tuple[Mistake, ...]
    tests: tuple[Evidence, ...]

    @cached_property
    def checks(self) -> dict[str, tuple[Evidence, ...]]:
        """The tests of each equation label and of each mistake number."""
        found: dict[str, list[Evidence]] = {}
        for test in self.tests:
            for name in (*test.verifies, *test.refutes):
                found.setdefault(name, []).append(test)
        return {name: tuple(tests) for name, tests in found.items()}

    @cached_property
    def refuted(self) -> tuple[Mistake, ...]:
        """The mistakes that a finished chapter has to refute."""
        numbers = {chapter.number for chapter in self.chapters}
        return tuple(mistake for mistake in self.mistakes if numbers.intersection(mistake.chapters))

    def chapter_of(self, test: Evidence) -> str | None:
        """The slug of the chapter on whose evidence page `test` stands: that of its first label or number."""
        home = {equation.label: equation.chapter for equation in self.equations}
        home |= {box.number: box.chapter for box in reversed(self.boxes)}
        return next((home[name] for name in (*test.verifies, *test.refutes) if name in home), None)

    def tests_of_chapter(self, slug: str) -> list[Evidence]:
        """The tests that stand on the evidence page of the chapter `slug`, in the order of its equations."""
        order = [e.label for e in self.equations] + [b.number for b in self.boxes]
        mine = [test for test in self.tests if self.chapter_of(test) == slug]
        return sorted(mine, key=lambda test: min(order.index(n) for n in (*test.verifies, *test.refutes) if n in order))

    def problems(self) -> list[str]:
        """Every gap, as one sentence that names it; empty where all is proved."""
        return [*self.equation_problems(), *self.mistake_problems(), *self.test_problems()]

    def equation_problems(self) -> Iterator[str]:
        """Labels without a test, in two places, or badly named."""
        seen: dict[str, Equation] = {}
        for equation in self.equations:
            where = f"notebooks/{equation.chapter}.md:{equation.line}"
            if not equation.label.startswith("eq-"):
                yield f"{where}: the equation label '{equation.label}' must begin with 'eq-'"
            elif equation.label not in self.checks:
                yield f'{where}: no test verifies {equation.label} (@pytest.mark.verifies("{equation.label}"))'
            if equation.label in seen:
                yield f"{where}: {equation.label} stands in notebooks/{seen[equation.label].chapter}.md too"
            seen.setdefault(equation.label, equation)

    def mistake_problems(self) -> Iterator[str]:
        """Listed mistakes without a test or a box, and boxes that the table does not know."""
        table = {mistake.number: mistake for mistake in self.mistakes}
        boxes = {(box.number, box.chapter) for box in self.boxes}
        for box in self.boxes:
            where = f"notebooks/{box.chapter}.md:{box.line}"
            if not box.number:
                yield f"{where}: the mistake box '{box.title}' has no number (:class: mistake E1)"
            elif box.number not in table:
                yield f"{where}: the mistake {box.number} is not in course/site/mistakes.yml"
            elif int(box.chapter[:2]) not in table[box.number].chapters:
                yield f"{where}: course/site/mistakes.yml does not give {box.number} to chapter {box.chapter[:2]}"
        for mistake in self.refuted:
            if mistake.number not in self.checks:
                yield f'mistake {mistake.number}: no test refutes it (@pytest.mark.refutes("{mistake.number}"))'
            for chapter in self.chapters:
                if chapter.number in mistake.chapters and (mistake.number, chapter.slug) not in boxes:
                    wanted = f"no box of class `mistake {mistake.number}`"
                    yield f"mistake {mistake.number}: notebooks/{chapter.slug}.md has {wanted}"

    def test_problems(self) -> Iterator[str]:
        """Markers for labels and numbers that do not exist, and marked tests without a docstring."""
        labels = {equation.label for equation in self.equations}
        numbers = {mistake.number for mistake in self.mistakes}
        for test in self.tests:
            where = f"{test.file}:{test.line}"
            for label in test.verifies:
                if label not in labels:
                    yield f"{where}: {test.name} verifies {label}, which no chapter has"
            for number in test.refutes:
                if number not in numbers:
                    yield f"{where}: {test.name} refutes {number}, which course/site/mistakes.yml does not have"
            if not test.docstring:
                yield f"{where}: {test.name} has no docstring (one line: the independent fact it uses; it is shown)"


def read_ledger(root: Path) -> Ledger:
    """Reads the chapters, the table of mistakes and the tests of the checkout `root`."""
    chapters = tuple(Course(root).chapters())
    texts = {chapter.slug: chapter.source.read_text(encoding="utf-8") for chapter in chapters}
    table = root / "course" / "site" / "mistakes.yml"
    return Ledger(
        chapters=chapters,
        equations=tuple(e for slug, text in texts.items() for e in read_equations(text, slug)),
        boxes=tuple(b for slug, text in texts.items() for b in read_boxes(text, slug)),
        mistakes=read_mistakes(table if table.is_file() else TABLE),
        tests=tuple(read_tests(root / "tests")),
    )


def read_mistakes(path: Path = TABLE) -> tuple[Mistake, ...]:
    """Reads the table of mistakes, in the order in which it stands."""
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(
        Mistake(number, tuple(row["chapters"]), row["title"], row["wrong"].strip(), row["right"].strip())
        for number, row in table.items()
    )


def read_tests(folder: Path) -> Iterator[Evidence]:
    """Yields the marked tests under `folder`, by file and line. Nothing is imported."""
    for path in sorted(folder.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        relative = path.relative_to(folder.parent).as_posix()
        tree = ast.parse(text, filename=relative)
        yield from tests_in(tree.body, text, relative, inherited=module_marks(tree.body), prefix="")


def tests_in(body: list[ast.stmt], text: str, file: str, inherited: list[ast.expr], prefix: str) -> Iterator[Evidence]:
    """Yields the marked tests among the statements of a module or a class."""
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            marks = [*inherited, *node.decorator_list, *module_marks(node.body)]
            yield from tests_in(node.body, text, file, marks, f"{prefix}{node.name}::")
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
            continue
        marks = [*inherited, *node.decorator_list]
        verifies, refutes = marked(marks, "verifies"), marked(marks, "refutes")
        if verifies or refutes:
            first = min([node.lineno, *(mark.lineno for mark in node.decorator_list)])
            source = "\n".join(text.splitlines()[first - 1 : node.end_lineno])
            docstring = " ".join((ast.get_docstring(node) or "").split())
            yield Evidence(file, prefix + node.name, node.lineno, docstring, dedent(source), verifies, refutes)


def module_marks(body: list[ast.stmt]) -> list[ast.expr]:
    """The values of `pytestmark = …` among the statements of a module or a class."""
    assigned = (node for node in body if isinstance(node, ast.Assign))
    return [n.value for n in assigned if any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in n.targets)]


def marked(marks: list[ast.expr], name: str) -> tuple[str, ...]:
    """The literal arguments of every `pytest.mark.<name>(…)` within `marks`, each once."""
    calls = (node for mark in marks for node in ast.walk(mark) if isinstance(node, ast.Call))
    mine = (call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == name)
    values = (argument.value for call in mine for argument in call.args if isinstance(argument, ast.Constant))
    return tuple(dict.fromkeys(str(value) for value in values))


def dedent(source: str) -> str:
    """Moves the source of a method to the left edge, where its first line begins."""
    lines = source.splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] if not line[:indent].strip() else line for line in lines)


def read_equations(text: str, slug: str) -> Iterator[Equation]:
    """Yields the labelled equations of a chapter: `$$ … $$ (eq-name)` and the `math` directive with a label."""
    opened: tuple[int, list[str]] | None = None
    for number, line in prose(text):
        stripped = line.strip()
        if opened is None and stripped.startswith("$$"):
            opened = (number, [])
            stripped = stripped[2:]
        if opened is not None:
            start, latex = opened
            before, dollars, _ = stripped.partition("$$")
            latex.append(before)
            if dollars:
                label = LABEL_AFTER.search(stripped)
                if label:
                    yield Equation(label["label"], slug, "\n".join(latex).strip(), start)
                opened = None
    for number, options, body in directives(text, "math"):
        if "label" in options:
            yield Equation(options["label"], slug, "\n".join(body).strip(), number)


def read_boxes(text: str, slug: str) -> Iterator[Box]:
    """Yields the admonitions of class `mistake`; a box without a number has the number ''."""
    for number, options, _ in directives(text, "admonition"):
        classes = options.get("class", "").split()
        if "mistake" in classes:
            title = options["argument"].removeprefix("Mistake:").strip()
            numbers = [name for name in classes if NUMBER.fullmatch(name)] or [""]
            for name in numbers:
                yield Box(name, slug, title, number)


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yields the numbered lines that MyST reads as text: not those inside code, nor the fences themselves."""
    stack: list[tuple[str, bool]] = []
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if fence and stack and line.strip() == fence["fence"] and closes(fence["fence"], stack[-1][0]):
            stack.pop()
        elif fence and not (stack and stack[-1][1]):
            stack.append((fence["fence"], fence["info"] == "" or bool(CODE.match(fence["info"]))))
        elif not (stack and stack[-1][1]):
            yield number, line


def directives(text: str, name: str) -> Iterator[tuple[int, dict[str, str], list[str]]]:
    """Yields line, options (with the title as `argument`) and body of every directive `name`."""
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        fence = FENCE.match(line)
        if not fence or not fence["info"].startswith(f"{{{name}}}"):
            continue
        options = {"argument": fence["info"].removeprefix(f"{{{name}}}").strip()}
        body: list[str] = []
        for inner in lines[number:]:
            option = OPTION.match(inner)
            if closes(inner.strip(), fence["fence"]):
                break
            if option and not body:
                options[option["key"]] = option["value"].strip()
            elif inner.strip() or body:
                body.append(inner)
        yield number, options, body


def closes(line: str, fence: str) -> bool:
    """Whether `line` is a fence that closes one opened with `fence`."""
    return set(line) == {fence[0]} and len(line) >= len(fence)
