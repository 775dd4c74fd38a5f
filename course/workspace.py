"""The student's workspace: copies of the chapters, kept up to date without losing an answer.

my-course/12-flow-matching.ipynb           the student's copy
my-course/.base/12-flow-matching.ipynb     the chapter as it was at the last merge
my-course/.backup/12-flow-matching.….ipynb the copy as it was before each merge
"""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course.chapters import Chapter, Course, CourseError
from course.files import write_atomic
from course.merging import blank, merge


@dataclass(frozen=True)
class Update:
    """What happened to one copy; `problem` says that the copy was left as it was, and why."""

    slug: str
    message: str
    problem: bool = False

    def __str__(self) -> str:
        return f"{self.slug:28} {self.message}"


def update(course: Course, folder: Path) -> list[Update]:
    """Brings every chapter's copy in `folder` up to date; one that cannot be read is left untouched."""
    if folder.resolve() in (course.root.resolve(), course.notebooks.resolve()):
        raise CourseError(
            f"lab: received {folder}, which holds the truth; rule: a folder of its own for the student's copies"
        )
    try:
        (folder / ".base").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(
            f"lab: received {folder}, where no folder can be made ({error.strerror}); rule: a writable place"
        ) from error
    return [update_chapter(chapter, folder) for chapter in course.chapters()]


def update_chapter(chapter: Chapter, folder: Path) -> Update:
    """Copies one chapter, or merges what is new in it into the student's copy."""
    if not chapter.notebook.is_file():
        return Update(chapter.slug, "has no executed notebook yet: left out", problem=True)
    try:
        new = blank(read(chapter.notebook))
    except CourseError as error:
        return Update(chapter.slug, str(error), problem=True)
    return update_copy(chapter.slug, new, folder)


def update_copy(slug: str, new: NotebookNode, folder: Path) -> Update:
    """Copies a blank notebook into `folder`, or merges what is new in it into the student's copy there."""
    copy, base_path = folder / f"{slug}.ipynb", folder / ".base" / f"{slug}.ipynb"
    if not copy.exists():
        write(copy, new)
        write(base_path, new)
        return Update(slug, "copied")
    base = read_or_none(base_path)
    if base is not None and base == new:
        return Update(slug, "up to date")
    try:
        mine = read(copy)
    except CourseError as error:
        return Update(slug, f"{error}; left untouched", problem=True)
    result = merge(base, mine, new)
    if result.notebook != mine:
        kept = backup(copy, folder / ".backup")
        write(copy, result.notebook)
    write(base_path, new)
    return Update(
        slug,
        f"merged: {result} (before: {kept.relative_to(folder).as_posix()})"
        if result.notebook != mine
        else "up to date",
    )


def read(path: Path) -> NotebookNode:
    """Reads a notebook in the present format.

    Raises:
        CourseError: The file is broken.
    """
    try:
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        nbformat.validate(notebook)
        return notebook
    except Exception as error:  # nbformat raises what its JSON and schema readers raise
        reason = str(error).strip().partition("\n")[0][:200]
        raise CourseError(
            f"lab: received {path.name}, which is no notebook ({reason}); rule: valid notebook JSON"
        ) from error


def read_or_none(path: Path) -> NotebookNode | None:
    """Reads a base copy; a missing or broken one counts as none, and the merge then keeps both sides."""
    try:
        return read(path) if path.is_file() else None
    except CourseError:
        return None


def write(path: Path, notebook: NotebookNode) -> None:
    """Writes a notebook, whole or not at all."""
    write_atomic(path, json.dumps(json.loads(nbformat.writes(notebook)), indent=1, ensure_ascii=False) + "\n")


def backup(path: Path, folder: Path) -> Path:
    """Copies a file aside under the time of day; never over an older copy."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp, count = time.strftime("%Y-%m-%d-%H%M%S"), 0
    while True:
        target = folder / f"{path.stem}.{stamp}{f'-{count}' if count else ''}{path.suffix}"
        try:
            with target.open("xb") as file, path.open("rb") as source:
                shutil.copyfileobj(source, file)
                os.fsync(file.fileno())
            return target
        except FileExistsError:
            count += 1
