"""The page of homework: what each one asks for, and the student edition to download.

The archives are made while the site is built, from the same sources as a release; nothing of them is committed.
"""

from pathlib import Path

from course.files import write_atomic
from course.homework.editions import edition
from course.homework.sources import Assignment, load, slugs
from course.site.pages import document, generated_folder

INTRODUCTION = """\
Each finished chapter has a homework: problems of rising difficulty that ask for variants of what the chapter built, one
that hides a bug, and one that is answered in words. Every problem has an instant check in the notebook: it says whether
the answer is right, and if not, which misconception it looks like. After the hand-in the same check runs on inputs that
no notebook holds.

Download an archive, unpack it where you keep your copies of the chapters, and open the notebook in JupyterLab with the
course installed. With the course at hand, `course homework get 12` does the same, and `course homework check 12` runs
the whole notebook afresh and packs it for handing in. The grading is explained in {ref}`teaching`."""


def homework_page(root: Path) -> str:
    """The page; the archives that it offers are written under `book/_generated`."""
    sources, folder = root / "homework", generated_folder(root)
    assignments = [load(sources / slug) for slug in slugs(sources)]
    wanted = {f"{assignment.slug}.zip" for assignment in assignments}
    for assignment in assignments:
        write_atomic(folder / "homework" / f"{assignment.slug}.zip", edition(assignment).archive)
    for path in (folder / "homework").glob("*.zip"):
        if path.name not in wanted:
            path.unlink()
    entries = [entry(assignment) for assignment in assignments] or ["*This site comes without homework.*"]
    return document("Homework", "homework", INTRODUCTION, *entries)


def entry(assignment: Assignment) -> str:
    """One homework on the page."""
    written = sum(problem.points for problem in assignment.problems if problem.written)
    goals = "\n".join(f"- {goal}" for goal in assignment.goals)
    problems = "\n".join(
        f"{number}. {problem.title} ({problem.points:g} points)"
        for number, problem in enumerate(assignment.problems, 1)
    )
    return (
        f"(homework-{assignment.slug})=\n## {assignment.title}\n\n"
        f"To the chapter {{ref}}`ch-{assignment.slug[3:]}`. {assignment.points:g} points, {written:g} of them read by "
        f"a person; about {assignment.minutes:g} minutes. "
        f"{{download}}`Download homework {assignment.slug[:2]} (zip) <homework/{assignment.slug}.zip>`\n\n"
        f"You will\n\n{goals}\n\n"
        f"in these problems:\n\n"
        f"{problems}"
    )
