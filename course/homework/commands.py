"""`course homework …`: what students and instructors do with homework, one subcommand each.

Exit status: 0 done; 1 something needs a look (a problem that is not right yet, a submission set aside, a survivor of
the proof); 2 a mistake in the call, said in one message.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from course.chapters import Course, CourseError, find_course
from course.files import write_atomic
from course.homework.cleaning import plain
from course.homework.folder import TeachingFolder, find_folder
from course.homework.roster import Roster, Student, read_roster

if TYPE_CHECKING:
    from course.homework.gradebook import Book, Row
    from course.homework.results import Result
    from course.homework.sources import Assignment

ASIDE = "rename each to its student's id (or complete the roster), and collect again"
NAMED = {"metavar": "HOMEWORK", "help": "number, slug or prefix, such as 12"}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds `homework` with its subcommands."""
    text = "Get, check, release, collect and grade homework."
    homework = commands.add_parser(
        "homework",
        help=text,
        description=text,
        epilog="Students: get, check. Instructors, in this order: release, collect, grade, review, feedback, export; "
        "status says what comes next. Each can be repeated. The page 'Teaching with it' of the site walks through all.",
    )
    homework.set_defaults(action=lambda _: homework.print_help() or 0)
    parts = homework.add_subparsers(title="commands", metavar="COMMAND")
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument(
        "--folder", metavar="DIR", help="the teaching folder (default: $COURSE_TEACHING, else teaching/)"
    )

    def command(
        name: str, action: Callable[[argparse.Namespace], int], text: str, *arguments: str
    ) -> argparse.ArgumentParser:
        sub = parts.add_parser(name, help=text, description=text, parents=[folder])
        sub.set_defaults(action=action)
        for argument in arguments:
            if argument == "homework":
                sub.add_argument("homework", **NAMED)
            elif argument == "homeworks":
                sub.add_argument(
                    "homework",
                    nargs="*",
                    metavar="HOMEWORK",
                    help="numbers, slugs or prefixes, such as 12 (default: all)",
                )
            elif argument == "students":
                sub.add_argument("--student", nargs="+", metavar="ID", help="only these")
            elif argument == "dry-run":
                sub.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
        return sub

    get = command("get", _get, "Bring a homework into your workspace; a newer edition is merged in.", "homework")
    get.add_argument(
        "--from", dest="given", metavar="FILE", type=Path, help="the archive or folder that you were given"
    )
    check = command("check", _check, "Check your whole notebook afresh, and pack it for handing in.", "homework")
    check.add_argument("--no-pack", action="store_true", help="only check")

    release = command(
        "release", _release, "Hand homework out: student edition, records, gradebook.", "homeworks", "dry-run"
    )
    release.add_argument(
        "--same-for-all", action="store_true", help="the same numbers for everybody, although there is a roster"
    )
    release.add_argument(
        "--force", action="store_true", help="release, although submissions to another edition were collected"
    )
    collect = command("collect", _collect, "Put what came in into the released notebook.", "homework", "dry-run")
    collect.add_argument("--inbox", metavar="PATH", type=Path, help="a folder or archive (default: inbox/HOMEWORK)")
    for name, action, text in (
        ("grade", _grade, "Judge collected submissions in the sandbox; those already judged are left."),
        ("regrade", _regrade, "Judge them again; scores and comments by hand stay."),
    ):
        grade = command(name, action, text, "homework", "students", "dry-run")
        grade.add_argument("--workers", type=int, metavar="N", help="processes here (default: one a core)")
        grade.add_argument("--scheduler", metavar="ADDRESS", help="a dask cluster instead, such as tcp://host:8786")
    review = command("review", _review, "Open nbgrader's page to grade written answers by hand.")
    review.add_argument("--port", type=int, default=8889, help="of the page on this machine (default: 8889)")
    review.add_argument("--no-browser", action="store_true", help="do not open a browser window")
    review.add_argument("--allow-root", action="store_true", help="serve as root too, in a container")
    command("feedback", _feedback, "Write a page for each student.", "homework", "students", "dry-run")
    export = command("export", _export, "Write the scores for your learning platform.", "homework", "dry-run")
    export.add_argument("--to", choices=("canvas", "moodle", "gradescope", "csv"), default="csv", help="(default: csv)")
    export.add_argument(
        "--partial", action="store_true", help="leave out those whose written answers wait (csv: no total for them)"
    )
    export.add_argument(
        "--missing",
        choices=("empty", "zero"),
        default="empty",
        help="the cell of those who handed in nothing (default: empty)",
    )
    publish = command("publish", _publish, "Write the whole course as students may see it, without solutions.")
    publish.add_argument("target", metavar="DIR", type=Path, help="a folder of its own")
    command("status", _status, "Say where each homework stands.", "homeworks")
    prove = command("prove", _prove, "Hand in every right and wrong answer of the catalogue, and count.", "homeworks")
    prove.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    prove.add_argument("--rehearse", action="store_true", help="in this process, without the sandbox (seconds)")


# ---------------------------------------------------------------------- students


def _get(arguments: argparse.Namespace) -> int:
    from course.homework.students import get

    course, folder = _places(arguments)
    update, notebook = get(folder, arguments.homework, course.workspace, arguments.given)
    print(update, file=sys.stderr if update.problem else sys.stdout)
    if not update.problem:
        print(f"open {notebook} in JupyterLab (`course lab` shows it too)")
    return int(update.problem)


def _check(arguments: argparse.Namespace) -> int:
    from course.homework.students import CELL_SECONDS, check, locate, pack_submission

    notebook = locate(find_course().workspace, arguments.homework)
    print(f"running {notebook.name} from the top (at most {CELL_SECONDS} s a cell) …", flush=True)
    reports, flags = check(notebook)
    width = max((len(report.problem) for report in reports), default=0)
    for report in reports:
        print(f"{report.problem:{width}}  {report.message}")
    for flag in flags:
        print(f"note: {flag}")
    if not arguments.no_pack:
        print(f"hand in {pack_submission(notebook)}")
    return int(any(report.open for report in reports))


# ---------------------------------------------------------------------- instructors


def _release(arguments: argparse.Namespace) -> int:
    from course.homework.gradebook import Book
    from course.homework.releasing import release
    from course.homework.sources import find, slugs

    _, folder = _places(arguments)
    roster = _roster(folder)
    chosen = [find(folder.sources, name) for name in arguments.homework] or slugs(folder.sources)
    if not chosen:
        raise CourseError(f"release: received {folder.sources}, which holds no homework; rule: NN-slug/assignment.md")
    for slug in tqdm(chosen, desc="releasing", disable=None):
        tqdm.write(f"{slug}: rehearsing every answer of its catalogue (up to a minute) …")
        done = release(
            folder,
            slug,
            roster=roster,
            same_for_all=arguments.same_for_all,
            force=arguments.force,
            dry_run=arguments.dry_run,
        )
        if not arguments.dry_run:
            with Book(folder.database, policy=folder.late) as book:
                book.add_students(roster or Roster())
                book.add_release(slug, done.notebook, folder.due(slug), force=arguments.force)
            folder.inbox(slug).mkdir(parents=True, exist_ok=True)
        would = "would write" if arguments.dry_run else "wrote"
        files = f"{would} {len(done.changed)} files" if done.changed else "nothing changed"
        own = f", {done.personal} students with numbers of their own" if done.personal else ""
        out = folder.personal(slug) / "STUDENT.zip" if done.personal else folder.release(slug).with_suffix(".zip")
        tqdm.write(f"{slug}: edition {done.release.digest}, {files}{own}; due {folder.due(slug) or 'never'}")
        tqdm.write(f"{slug}: hand out {out.relative_to(folder.root)}")
    if roster is None:
        print(f"no {folder.roster}: everybody gets the same numbers, and export knows csv only")
    print(f"in {folder.root}; next: put what comes back into inbox/HOMEWORK, then `course homework collect HOMEWORK`")
    print("a due date in homework.toml counts from the next command on")
    return 0


def _collect(arguments: argparse.Namespace) -> int:
    from course.homework.submissions import collect

    _, folder = _places(arguments)
    slug, roster = _released(folder, arguments.homework), _roster(folder)
    counts: dict[str, int] = {}
    came = set()
    for one in tqdm(
        collect(folder, slug, roster, arguments.inbox, dry_run=arguments.dry_run), desc="collecting", disable=None
    ):
        counts[one.state] = counts.get(one.state, 0) + 1
        came.add(one.student)
        tqdm.write(str(one))
    said = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "nothing came in"
    print(f"{slug}: {said}" + (" (dry run: nothing was written)" if arguments.dry_run else ""))
    if roster and (absent := [student for student in roster.students if student not in came]):
        print(f"nothing from {len(absent)} of the roster: {_some(absent)}")
    if "set aside" in counts:
        print(f"set aside: {ASIDE}", file=sys.stderr)
    print(f"next: `course homework grade {slug}`")
    return int("set aside" in counts)


def _grade(arguments: argparse.Namespace) -> int:
    return _judge(arguments, again=False)


def _regrade(arguments: argparse.Namespace) -> int:
    return _judge(arguments, again=True)


def _judge(arguments: argparse.Namespace, *, again: bool) -> int:
    from course.homework import grading
    from course.homework.releasing import read_release
    from course.homework.sources import load

    _, folder = _places(arguments)
    slug = _released(folder, arguments.homework)
    release = read_release(folder, slug)
    every = grading.tasks(folder, release, arguments.student)
    todo = every if again else [task for task in every if not grading.done(folder, slug, task)]
    print(f"{slug}: {len(every)} submissions, {len(todo)} to grade", flush=True)
    if arguments.dry_run:
        return 0
    if not todo:
        with _book(folder, slug) as book:
            rows = book.rows(slug)
        print(f"{slug}: {_next_after_grading(slug, rows)}")
        return 0
    assignment = load(folder.source(slug))
    scheduler = arguments.scheduler or folder.settings.get("scheduler")
    ungraded = 0
    with _book(folder, slug) as book:
        book.add_students(_roster(folder) or Roster())
        known = {row.student for row in book.rows(slug)}
        # Who was collected and is no longer on the roster is graded all the same.
        book.add_students(Roster([Student(task.student) for task in every if task.student not in known]))
        results = grading.run(
            grading.orders(folder, release), todo, workers=arguments.workers or os.cpu_count() or 1, scheduler=scheduler
        )
        for result in tqdm(results, total=len(todo), desc="grading", disable=None):
            result = _kept(folder, assignment, book, result)
            ungraded += not result.key
            noticed = f"  ({'; '.join(map(str, result.flags))})" if result.flags else ""
            most = sum(test.points for test in result.tests)
            tqdm.write(f"{result.student:24} {result.earned:6g} of {most:g}, {result.seconds:5.1f} s{noticed}")
        rows = book.rows(slug)
    print(f"{slug}: {len(todo) - ungraded} graded; {_next_after_grading(slug, rows)}")
    if ungraded:
        print(f"{ungraded} NOT graded, for the reason in brackets: mend it and call again", file=sys.stderr)
    return int(bool(ungraded))


def _kept(folder: TeachingFolder, assignment: "Assignment", book: "Book", result: "Result") -> "Result":
    """Writes one result: the page for a person, the scores, and last the note that this is done.

    What one submission makes impossible is told as a flag, and the others are graded all the same.
    """
    from course.homework import grading
    from course.homework.editions import notebook_text
    from course.homework.results import Flag
    from course.homework.review import for_review
    from course.homework.submissions import read

    slug = assignment.slug
    if not result.key:
        return result
    try:
        submission = read(folder, slug, result.student)
        page = for_review(result, assignment)
        write_atomic(folder.autograded(result.student, slug) / f"{slug}.ipynb", notebook_text(page))
        book.record(result, submission.notebook, submitted=submission.submitted)
        grading.write_result(folder, result)
    except (CourseError, OSError):  # the disk or the gradebook: it would be the same with the next one
        raise
    except Exception as error:
        flag = Flag("not graded", "", plain(f"the result could not be kept: {type(error).__name__}: {error}"))
        return replace(result, flags=(*result.flags, flag), key="")
    return result


def _review(arguments: argparse.Namespace) -> int:
    from course.homework.review import start

    _, folder = _places(arguments)
    for slug in _all_released(folder):
        with _book(folder, slug) as book:
            book.settle(slug)
    start(
        folder.root,
        folder.database,
        port=arguments.port,
        browser=not arguments.no_browser,
        allow_root=arguments.allow_root,
    )
    return 0


def _feedback(arguments: argparse.Namespace) -> int:
    from course.homework.returning import write_pages

    _, folder = _places(arguments)
    slug = _released(folder, arguments.homework)
    with _book(folder, slug) as book:
        made = write_pages(folder, slug, book, arguments.student, dry_run=arguments.dry_run)
        pages = list(tqdm(made, desc="feedback", disable=None))
    written = sum(page.changed for page in pages)
    done = "would write" if arguments.dry_run else "wrote"
    print(f"{slug}: {done} {written} pages, {folder.root / 'feedback'}/STUDENT/{slug}.html")
    for page in pages:
        if page.problem:
            print(f"    no page for {page.student}: {page.problem}", file=sys.stderr)
    return int(any(page.problem for page in pages))


def _export(arguments: argparse.Namespace) -> int:
    from course.homework.exports import export

    _, folder = _places(arguments)
    slug = _released(folder, arguments.homework)
    with _book(folder, slug) as book:
        rows = book.rows(slug)
    made = export(arguments.to, rows, _roster(folder), slug, partial=arguments.partial, missing=arguments.missing)
    path = folder.exports / made.name if arguments.dry_run else made.write(folder.exports)
    print(f"{'would write' if arguments.dry_run else 'wrote'} {path}")
    for message in made.left_out:
        print(f"    left out: {message}", file=sys.stderr)
    return int(bool(made.left_out))


def _publish(arguments: argparse.Namespace) -> int:
    from course.homework.publishing import publish

    course, folder = _places(arguments)
    changed = publish(course, folder.sources, arguments.target)
    print(f"{arguments.target}: {len(changed)} files changed")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from course.homework import grading
    from course.homework.releasing import read_release
    from course.homework.submissions import set_aside

    _, folder = _places(arguments)
    chosen = [_released(folder, name) for name in arguments.homework] or _all_released(folder)
    if not chosen:
        print(f"nothing is released in {folder.root}")
    for slug in chosen:
        release = read_release(folder, slug)
        tasks = grading.tasks(folder, release)
        with _book(folder, slug) as book:
            rows = book.rows(slug)
        due = folder.due(slug) or "never"
        made = datetime.fromisoformat(release.made).astimezone(folder.time_zone).isoformat(timespec="seconds")
        print(f"{slug}: released {made} with companion {release.companion}, due {due}")
        counts = {
            "students": len(rows),
            "collected": len(tasks),
            "graded": sum(grading.done(folder, slug, task) for task in tasks),
            "wait for a person": sum(row.pending for row in rows),
        }
        print("    " + ", ".join(f"{count} {what}" for what, count in counts.items()))
        print(f"    {_next(folder, slug, rows, counts)}")
        if aside := set_aside(folder, slug):
            print(f"    set aside: {_some(aside)}: {ASIDE}")
        for task in tasks:
            result = grading.read_result(folder, slug, task.student)
            for flag in result.flags if result else task.flags:
                print(f"    {task.student}: {flag}")
    return 0


def _prove(arguments: argparse.Namespace) -> int:
    from course.homework.sources import find, load, slugs

    _, folder = _places(arguments)
    chosen = [find(folder.sources, name) for name in arguments.homework] or slugs(folder.sources)
    if arguments.rehearse:
        from course.homework.rehearsing import rehearse

        problems = [
            f"{slug}: {problem}"
            for slug in tqdm(chosen, disable=None)
            for problem in rehearse(load(folder.sources / slug))
        ]
        print("\n".join(problems) or f"{len(chosen)} homeworks rehearsed: every answer is judged as it must be")
        return int(bool(problems))
    from course.homework.proving import prove  # with dask

    workers = arguments.workers or os.cpu_count() or 1
    proofs = prove([load(folder.sources / slug) for slug in chosen], folder.limits, workers=workers)
    path = folder.sources / "proof.json"
    kept = {**_before(path, slugs(folder.sources)), **{slug: proof.summary() for slug, proof in proofs.items()}}
    write_atomic(path, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    for slug, proof in proofs.items():
        print(f"{slug}: {proof}")
    return int(not all(proof.perfect for proof in proofs.values()))


def _before(path: Path, known: Iterable[str]) -> dict:
    """The proofs of an earlier call, of homeworks that still exist."""
    try:
        return {
            slug: proof for slug, proof in json.loads(path.read_text(encoding="utf-8")).items() if slug in set(known)
        }
    except (OSError, ValueError, AttributeError):
        return {}


@contextmanager
def _book(folder: TeachingFolder, slug: str) -> "Iterator[Book]":
    """The gradebook, which hears of a due date that was changed in the settings."""
    from course.homework.gradebook import Book

    with Book(folder.database, policy=folder.late) as book:
        book.set_due(slug, folder.due(slug))
        yield book


def _places(arguments: argparse.Namespace) -> tuple[Course, TeachingFolder]:
    course = find_course()
    return course, find_folder(course, arguments.folder)


def _roster(folder: TeachingFolder) -> Roster | None:
    return read_roster(folder.roster, zone=folder.time_zone) if folder.roster.is_file() else None


def _all_released(folder: TeachingFolder) -> list[str]:
    return sorted(path.stem for path in (folder.root / "private").glob("*.json"))


def _released(folder: TeachingFolder, name: str) -> str:
    """The slug of a released homework."""
    from course.homework.sources import choose

    if not (released := _all_released(folder)):
        raise CourseError(
            f"homework: received {name!r}, but nothing is released in {folder.root}; rule: "
            f"`course homework release {name}` first, or name the teaching folder by --folder"
        )
    return choose(released, name, "none")


def _some(names: list[str], most: int = 8) -> str:
    """The first names of a list that may be long."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _next(folder: TeachingFolder, slug: str, rows: "list[Row]", counts: dict[str, int]) -> str:
    """What an instructor does next."""
    if not counts["collected"]:
        return f"next: put what comes in into {folder.inbox(slug)}, then `course homework collect {slug}`"
    if counts["graded"] < counts["collected"]:
        return f"next: `course homework grade {slug}`"
    return _next_after_grading(slug, rows)


def _next_after_grading(slug: str, rows: "list[Row]") -> str:
    if waiting := sum(row.pending for row in rows):
        return f"{waiting} wait for a person; next: `course homework review`"
    return f"nobody waits for a person; next: `course homework feedback {slug}`, `course homework export {slug}`"
