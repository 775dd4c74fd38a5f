"""The student edition of a homework: the public text as a notebook, and the recorded values of its checks beside it.

Only `assignment.md` enters the notebook; of `answers.md` come nothing but values for public inputs, and the points of
the hidden tests.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import nbformat
from nbformat import NotebookNode

from course.chapters import CourseError
from course.files import zipped
from course.homework.sources import Assignment, Problem

PACKAGE = "generative-modelling-course"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
MOST_RECORDED = 1_000_000  # bytes of recorded values beside one notebook


@dataclass(frozen=True)
class Edition:
    """What one student gets.

    Attributes:
        slug: of the homework.
        notebook: without an answer.
        checks: the content of `<slug>.checks.json`.
    """

    slug: str
    notebook: NotebookNode
    checks: dict[str, Any]

    @property
    def files(self) -> dict[str, bytes]:
        """File names and contents."""
        return {
            f"{self.slug}.ipynb": notebook_text(self.notebook).encode(),
            f"{self.slug}.checks.json": (json.dumps(self.checks, ensure_ascii=False) + "\n").encode(),
        }

    @property
    def archive(self) -> bytes:
        """A zip of one folder; equal editions give equal bytes."""
        return zipped({f"{self.slug}/{name}": data for name, data in self.files.items()})

    @property
    def digest(self) -> str:
        """Twelve letters that name this edition."""
        return self.notebook.metadata["homework"]["release"]


def notebook_text(notebook: NotebookNode) -> str:
    """A notebook as its file holds it."""
    return nbformat.writes(notebook) + "\n"


def cell_name(cell: NotebookNode) -> str:
    """The name of a cell: nbgrader's, else its id."""
    return str((cell.metadata.get("nbgrader") or {}).get("grade_id") or cell.get("id") or "")


def edition(assignment: Assignment, variant: int = 0) -> Edition:
    """The student edition with the numbers of one variant.

    Raises:
        CourseError: The recorded values are too large to hand out.
    """
    row = assignment.variants[variant]
    checks = {"slug": assignment.slug, "checks": recorded(assignment, row)}
    if (size := len(json.dumps(checks))) > MOST_RECORDED:
        raise CourseError(
            f"{assignment.slug}: received {size:,} bytes of values; rule: at most {MOST_RECORDED:,}; compare less"
        )
    notebook = blank(assignment, variant)
    content = json.dumps([notebook, checks], sort_keys=True).encode()
    said = stamp(notebook, assignment.slug, version(PACKAGE), hashlib.sha256(content).hexdigest()[:12])
    nbformat.validate(notebook)
    return Edition(assignment.slug, notebook, {**checks, **said})


def stamp(notebook: NotebookNode, slug: str, companion: str, digest: str) -> dict[str, str]:
    """Has a notebook say of which release it is, and returns what it says."""
    said = {"slug": slug, "companion": companion, "release": digest}
    notebook.metadata["homework"] = nbformat.from_dict(said)
    return said


def blank(assignment: Assignment, variant: int = 0) -> NotebookNode:
    """The notebook of an edition, which costs nothing to make: no answer has to be run for it."""
    notebook = nbformat.v4.new_notebook(cells=_cells(assignment, assignment.variants[variant]))
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    return notebook


def recorded(assignment: Assignment, row: dict[str, Any]) -> dict[str, dict]:
    """By problem, what right and wrong answers return for the public inputs; of a sealed one, only the kind."""
    from companion.exercises.homework import PUBLIC_SEED  # with torch, for which a blank notebook need not wait

    records = {}
    for problem in assignment.graded:
        test = problem.tests[0]
        if test.sealed:
            right = problem.exercise(test, row).values(problem.runner(problem.solution, test, row), PUBLIC_SEED)
            form = f"the answer is {_FORMS.get(right['kind'], 'of another kind')}; look at the problem again."
            records[problem.name] = {"sealed": True, "kind": right["kind"], "shape": right.get("shape"), "form": form}
        else:
            records[problem.name] = problem.exercise(test, row).record(PUBLIC_SEED)
    return records


_FORMS = {"text": "a text", "tensor": "a number or a tensor", "map": "a dictionary", "list": "a list"}


def variant_source(row: dict[str, Any]) -> str:
    """The cell that sets one student's numbers."""
    return "# your numbers\n" + "\n".join(f"{name} = {value!r}" for name, value in row.items())


def _cells(assignment: Assignment, row: dict[str, Any]) -> list[NotebookNode]:
    problems = {problem.name: problem for problem in assignment.problems}
    cells, begun = [], False
    for cell in assignment.notebook.cells:
        if cell.cell_type == "code" and not begun:
            begun = True
            source = f'from companion.exercises.homework import Checks\n\ncheck = Checks("{assignment.slug}")'
            cells.append(_code("homework-checks", source))
            if row:
                cells.append(_code("variant", variant_source(row)))
        cells += _of_cell(cell, problems)
    seen: Counter[str] = Counter()
    for cell in cells:  # two texts may read the same
        seen[cell.id] += 1
        if seen[cell.id] > 1:
            cell["id"] += f"-{seen[cell.id]}"
    return cells


def _of_cell(cell: NotebookNode, problems: dict[str, Problem]) -> list[NotebookNode]:
    name, tags = cell.metadata.get("name"), set(cell.metadata.get("tags", []))
    if "written" in tags:
        return [
            _managed(
                nbformat.v4.new_markdown_cell(cell.source),
                name,
                grade=True,
                solution=True,
                points=problems[name].points,
            )
        ]
    if cell.cell_type != "code":
        identity = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        return [nbformat.v4.new_markdown_cell(cell.source, id=f"text-{identity}")]
    if "answer" in tags:
        return [_managed(nbformat.v4.new_code_cell(cell.source), name, solution=True)]
    if "check" in tags:
        problem = problems[name.removesuffix("-check")]
        first, *hidden = problem.tests
        source = f'{cell.source}\n\n\ncheck("{problem.name}", probe)'
        return [_code(name, source, first.points)] + [
            _code(test.name, f"# A hidden test (points: {test.points:g}), judged after you hand in.", test.points)
            for test in hidden
        ]
    return [_code(name, cell.source)]


def _code(name: str, source: str, points: float | None = None) -> NotebookNode:
    cell = nbformat.v4.new_code_cell(source)
    return _managed(cell, name, grade=points is not None, points=points, locked=True)


def _managed(
    cell: NotebookNode,
    name: str,
    *,
    grade: bool = False,
    solution: bool = False,
    locked: bool = False,
    points: float | None = None,
) -> NotebookNode:
    """A cell with nbgrader's metadata; its id is its name."""
    cell["id"] = name
    marks = {
        "schema_version": 3,
        "grade_id": name,
        "grade": grade,
        "solution": solution,
        "locked": locked,
        "task": False,
    }
    cell.metadata["nbgrader"] = nbformat.from_dict({**marks, **({"points": points} if grade else {})})
    return cell
