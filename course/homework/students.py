"""The student's side: get a homework, check it as a whole, pack it for handing in.

my-course/homework/12-flow-matching/12-flow-matching.ipynb             the student's copy
my-course/homework/12-flow-matching/12-flow-matching.checks.json       recorded values of the instant checks
my-course/homework/12-flow-matching/12-flow-matching-submission.zip    what he hands in
"""

import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course.chapters import CourseError
from course.files import write_atomic
from course.homework.collecting import pack, transplant
from course.homework.editions import cell_name, edition
from course.homework.folder import TeachingFolder
from course.homework.results import Flag
from course.homework.sources import choose, find, load, slugs
from course.workspace import Update, read, update_copy

LARGEST_EDITION = 20 * 2**20
CELL_SECONDS = 120  # four times what the grader gives, for slow machines


def get(folder: TeachingFolder, name: str, workspace: Path, given: Path | None = None) -> tuple[Update, Path]:
    """Brings a homework into the student's workspace; a newer edition is merged in and no answer is lost.

    Args:
        folder: where releases lie, if this is the instructor's machine too.
        name: the homework; a number, slug or prefix.
        workspace: the folder of the student's copies.
        given: the archive or folder that the instructor handed out.

    Raises:
        CourseError: There is no such homework, or the archive is none.
    """
    slug, files = _given(given) if given else _own(folder, name)
    place = workspace / "homework" / slug
    try:
        notebook = nbformat.reads(files[f"{slug}.ipynb"].decode(), as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat raises what its JSON and schema readers raise
        raise CourseError(f"homework get: received {given or slug}, whose notebook is damaged: {error}") from error
    update = update_copy(slug, notebook, place)
    if not update.problem:
        write_atomic(place / f"{slug}.checks.json", files[f"{slug}.checks.json"])
    return update, place / f"{slug}.ipynb"


def _own(folder: TeachingFolder, name: str) -> tuple[str, dict[str, bytes]]:
    """The edition released here, else the one that the sources give."""
    released = [
        path.name for path in sorted((folder.root / "release").glob("*/")) if path.name not in slugs(folder.sources)
    ]
    slug = name if name in released else find(folder.sources, name)
    place = folder.release(slug)
    files = {path.name: path.read_bytes() for path in place.glob(f"{slug}.*") if path.is_file()}
    return slug, files if len(files) >= 2 else edition(load(folder.sources / slug)).files


def _given(path: Path) -> tuple[str, dict[str, bytes]]:
    """The edition in an archive or folder, recognised by the one file of recorded values."""
    if path.is_dir():
        files = {p.name: p.read_bytes() for p in path.iterdir() if p.is_file() and p.stat().st_size <= LARGEST_EDITION}
    else:
        try:
            with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
                members = [m for m in archive.infolist() if not m.is_dir() and m.file_size <= LARGEST_EDITION]
                files = {Path(member.filename).name: archive.read(member) for member in members}
        except (OSError, zipfile.BadZipFile, RuntimeError) as error:
            raise CourseError(f"homework get: received {path}, which is no zip archive or folder: {error}") from error
    known = [name.removesuffix(".checks.json") for name in files if name.endswith(".checks.json")]
    if len(known) != 1 or f"{known[0]}.ipynb" not in files:
        raise CourseError(
            f"homework get: received {path} without a notebook and its .checks.json; rule: as it was handed out"
        )
    return known[0], files


@dataclass(frozen=True)
class Checked:
    """One problem of a checked notebook, in a line."""

    problem: str
    message: str

    @property
    def open(self) -> bool:
        """Whether it is unanswered or not yet right."""
        return self.message.startswith(("Not", "Error"))


def check(notebook: Path, seconds: float = CELL_SECONDS) -> tuple[list[Checked], list[Flag]]:
    """Runs the student's notebook afresh, in this machine's own kernel, and returns what each instant check says.

    The second part says what else to look at: cells that stopped with an error, and what collecting will notice, cells
    that are missing, edited, or the student's own.

    Args:
        seconds: that one cell may take.

    Raises:
        CourseError: The notebook cannot be read or run.
    """
    mine, base = read(notebook), _base(notebook)
    handed_out = {cell_name(cell): cell.source.strip() for cell in base.cells} if base else {}
    _execute(mine, notebook.parent, seconds)
    stopped = {cell_name(cell): error for cell in mine.cells if (error := _error(cell))}
    reports = []
    for cell in mine.cells:
        name = cell_name(cell)
        if not (cell.metadata.get("nbgrader") or {}).get("grade"):
            continue
        if cell.cell_type != "code":
            empty = cell.source.strip() in ("", handed_out.get(name))
            said = "Not answered yet: there is nothing to read." if empty else "Written: a person reads it."
            reports.append(Checked(name, said))
        elif name.endswith("-check"):
            problem = name.removesuffix("-check")
            error = stopped.pop(problem, "")
            stopped.pop(name, "")
            reports.append(Checked(problem, f"Not yet: your answer stopped with {error}" if error else _said(cell)))
    flags = [Flag("stopped with an error", name, error) for name, error in stopped.items()]
    noticed = transplant(base, notebook.read_bytes())[1] if base else ()
    return reports, [*flags, *noticed]


def _error(cell: NotebookNode) -> str:
    outputs = cell.get("outputs", ())
    return next((f"{output.ename}: {output.evalue}" for output in outputs if output.output_type == "error"), "")


def _said(cell: NotebookNode) -> str:
    if error := _error(cell):
        return f"Error: {error}"
    text = "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")
    return text.strip().rpartition("\n")[2] or "Not checked: the cell printed nothing."


def _execute(notebook: NotebookNode, folder: Path, seconds: float) -> None:
    from nbclient import NotebookClient
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    client = NotebookClient(
        notebook,
        timeout=seconds,
        allow_errors=True,
        extra_arguments=["--IPKernelApp.log_level=40"],  # a student need not hear how his kernel listens
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute(env={**os.environ, "MPLBACKEND": "agg"})
    except (CellTimeoutError, DeadKernelError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CourseError(f"homework check: your notebook stopped: {reason}; nothing was packed") from error


def _base(notebook: Path) -> NotebookNode | None:
    """The edition that the student's copy was made from."""
    base = notebook.parent / ".base" / notebook.name
    return read(base) if base.is_file() else None


def pack_submission(notebook: Path) -> Path:
    """Writes the archive to hand in, beside the notebook."""
    target = notebook.with_name(f"{notebook.stem}-submission.zip")
    write_atomic(target, pack(notebook.parent, notebook.stem))
    return target


def locate(workspace: Path, name: str) -> Path:
    """The student's copy of a homework, by number, slug, prefix or path.

    Raises:
        CourseError: There is none, or more than one.
    """
    if Path(name).is_file():
        return Path(name).absolute()
    known = {path.stem: path for path in (workspace / "homework").glob("*/*.ipynb") if path.stem == path.parent.name}
    return known[choose(known, name, "none yet: `course homework get` brings one")]
