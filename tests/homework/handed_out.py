"""A small released notebook with every kind of cell, and ways to hand it in."""

import copy
import io
import json
import tarfile
import zipfile
from collections.abc import Callable

import nbformat
from nbformat import NotebookNode

SLUG = "12-flow-matching"
HIDDEN = "# Hidden tests run here when this is graded."


def marks(name: str, *, grade: bool = False, solution: bool = False, locked: bool = False, **more) -> dict:
    """nbgrader's metadata."""
    about = {"grade_id": name, "grade": grade, "solution": solution, "locked": locked, "schema_version": 3}
    return {"nbgrader": about | {"task": False} | more}


def code(name: str, source: str, **flags) -> NotebookNode:
    """A code cell of the release."""
    return nbformat.v4.new_code_cell(source, id=name, metadata=marks(name, **flags))


def written(name: str, source: str) -> NotebookNode:
    """A cell for a written answer."""
    metadata = marks(name, grade=True, solution=True, points=3)
    return nbformat.v4.new_markdown_cell(source, id=name, metadata=metadata)


def text(name: str, source: str) -> NotebookNode:
    """Text between the problems."""
    return nbformat.v4.new_markdown_cell(source, id=name)


def release() -> NotebookNode:
    """The notebook as it was handed out."""
    test = {"grade": True, "locked": True, "points": 2}
    cells = [
        text("text-00000001", "# Flow matching"),
        code("setup", "import math", locked=True),
        code("variant", "sigma, steps = 0.3, 12", locked=True),
        text("text-00000002", "Problem 1: the path."),
        code("path", "def path(x):\n    ...", solution=True),
        code("path-check", "def probe(generator):\n    return path\ncheck('path', probe)", **test),
        code("path-hidden", HIDDEN, **test),
        text("text-00000003", "Problem 2: the speed."),
        code("speed", "def speed(x):\n    ...", solution=True),
        code("speed-check", "def probe(generator):\n    return speed\ncheck('speed', probe)", **test),
        code("speed-hidden", HIDDEN, **test),
        written("why", "*Write your derivation here.*"),
        text("text-00000004", "The end."),
    ]
    metadata = {
        "homework": {"slug": SLUG, "companion": "0.1.0", "release": "abc"},
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    }
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def answered(**answers: str) -> NotebookNode:
    """A student's notebook: the release with other texts in the named cells."""
    notebook = copy.deepcopy(release())
    for cell in notebook.cells:
        cell["source"] = answers.get(cell.id, cell.source)
    return notebook


def raw(notebook: NotebookNode | dict) -> bytes:
    """A notebook as a file, however broken."""
    return json.dumps(notebook).encode()


def edited(change: Callable[[NotebookNode], None], **answers: str) -> bytes:
    """A student's notebook as a file, after `change` was done to it."""
    notebook = answered(**answers)
    change(notebook)
    return raw(notebook)


def cell_of(notebook: NotebookNode, name: str) -> NotebookNode:
    """The cell of this id."""
    return next(cell for cell in notebook.cells if cell.id == name)


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar archive; `w:gz` for a compressed one."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
