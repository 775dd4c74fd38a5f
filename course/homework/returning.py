"""Giving homework back: one page for each student, from the gradebook and what grading kept."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from course.chapters import CourseError
from course.files import write_atomic
from course.homework.cleaning import plain
from course.homework.editions import blank
from course.homework.feedback import Handing, render
from course.homework.folder import TeachingFolder
from course.homework.gradebook import Book
from course.homework.grading import read_result
from course.homework.releasing import read_release
from course.homework.sources import load


@dataclass(frozen=True)
class Page:
    """One student's page, whether it changed, and why there is none where it could not be made."""

    student: str
    path: Path
    changed: bool = False
    problem: str = ""


def write_pages(
    folder: TeachingFolder, slug: str, book: Book, chosen: list[str] | None = None, *, dry_run: bool = False
) -> Iterator[Page]:
    """Writes the page of every student of the gradebook, or of the chosen ones; repeated, it changes what is new.

    Raises:
        CourseError: The homework was not released here, or a student is unknown.
    """
    release, assignment = read_release(folder, slug), load(folder.source(slug))
    editions = [blank(assignment, variant) for variant in range(release.variants)]
    told = {misconception for problem in assignment.graded for misconception in problem.wrong}
    rows, marks = book.rows(slug), book.marks(slug)
    if unknown := sorted(set(chosen or ()) - {row.student for row in rows}):
        raise CourseError(
            f"feedback: received {', '.join(unknown)}, who is not in the gradebook; rule: a student of it"
        )
    for row in rows:
        if chosen and row.student not in chosen:
            continue
        path = folder.feedback(row.student, slug)
        try:
            page = render(
                read_result(folder, slug, row.student) if row.handed_in else None,
                editions[release.variant(row.student)],
                name=f"{row.first_name} {row.last_name}".strip() or row.student,
                title=assignment.title,
                marks=marks.get(row.student),
                handing=Handing(row.submitted, row.due, row.penalty),
                told=told,
            )
        except Exception as error:  # the last line of defence: what one wrote never keeps the others' pages back
            yield Page(row.student, path, problem=plain(f"{type(error).__name__}: {error}"))
            continue
        changed = not path.is_file() or path.read_text(encoding="utf-8") != page
        if changed and not dry_run:
            write_atomic(path, page)
        yield Page(row.student, path, changed)
