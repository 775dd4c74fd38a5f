"""Collected submissions: each is a transplanted notebook with its flags, in a folder of its own.

submitted/<student>/<slug>/<slug>.ipynb      the release with this student's answers in it, and nothing else of his
submitted/<student>/<slug>/collected.json    under what name it came, when it was handed in, what was noticed
submitted/<slug>.set-aside.json              names of what belongs to nobody yet
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course.chapters import CourseError
from course.files import write_atomic
from course.homework.collecting import arrivals, transplant
from course.homework.editions import blank, notebook_text, stamp
from course.homework.folder import TeachingFolder
from course.homework.releasing import read_release
from course.homework.results import Flag
from course.homework.roster import Roster
from course.homework.sources import load


@dataclass(frozen=True)
class Submission:
    """One student's answers in the released notebook.

    Attributes:
        student: whose.
        notebook: transplanted: only its answers are the student's.
        name: of the file, as it came.
        submitted: when, as far as the roster or the learning platform says.
        flags: what was noticed while collecting.
    """

    student: str
    notebook: NotebookNode
    name: str
    submitted: datetime | None = None
    flags: tuple[Flag, ...] = ()

    @property
    def digest(self) -> str:
        """Names the content."""
        return hashlib.sha256(notebook_text(self.notebook).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Collected:
    """What happened to one arrival: `state` is new, changed, unchanged or set aside."""

    student: str | None
    name: str
    state: str
    flags: tuple[Flag, ...] = ()

    def __str__(self) -> str:
        noticed = "; ".join(map(str, self.flags))
        return f"{self.student or '?':24} {self.state:10} {self.name}" + (f"  ({noticed})" if noticed else "")


def collect(
    folder: TeachingFolder, slug: str, roster: Roster | None, inbox: Path | None = None, *, dry_run: bool = False
) -> Iterator[Collected]:
    """Puts each arrival's answers into the released notebook; a repeated call changes what came anew.

    Raises:
        CourseError: The homework was not released, or the inbox is no folder or archive.
    """
    release, assignment = read_release(folder, slug), load(folder.source(slug))
    inbox = inbox or folder.inbox(slug)
    if not inbox.exists():
        raise CourseError(f"collect: received {inbox}, where nothing is; rule: put there what the students handed in")
    editions = [blank(assignment, variant) for variant in range(release.variants)]
    for notebook, digest in zip(editions, release.digests, strict=True):
        stamp(notebook, slug, release.companion, digest)
    aside = []
    for arrival in arrivals(inbox, slug, roster, released=editions[0]):
        if arrival.student is None:
            aside.append(arrival.name)
            yield Collected(None, arrival.name, "set aside", arrival.flags)
            continue
        notebook, flags = transplant(editions[release.variant(arrival.student)], arrival.notebook)
        submission = Submission(arrival.student, notebook, arrival.name, arrival.submitted, (*arrival.flags, *flags))
        state = _state(folder, slug, submission)
        if not dry_run and state != "unchanged":
            write(folder, slug, submission)
        yield Collected(arrival.student, arrival.name, state, submission.flags)
    if not dry_run:
        every = {**_set_aside(folder, slug), str(inbox.absolute()): aside}
        write_atomic(folder.set_aside(slug), json.dumps(every, indent=1, ensure_ascii=False) + "\n")


def set_aside(folder: TeachingFolder, slug: str) -> list[str]:
    """The names of what the last `collect` of each inbox set aside for a person."""
    return [name for inbox, names in _set_aside(folder, slug).items() if Path(inbox).exists() for name in names]


def _set_aside(folder: TeachingFolder, slug: str) -> dict[str, list[str]]:
    try:
        return dict(json.loads(folder.set_aside(slug).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # nothing was collected yet
        return {}


def students(folder: TeachingFolder, slug: str) -> list[str]:
    """Who has handed in, in order."""
    return sorted(path.parents[1].name for path in folder.root.glob(f"submitted/*/{slug}/collected.json"))


def write(folder: TeachingFolder, slug: str, submission: Submission) -> None:
    """Writes one submission; the note last, so that one cut short counts as none."""
    place = folder.submitted(submission.student, slug)
    write_atomic(place / f"{slug}.ipynb", notebook_text(submission.notebook))
    if submission.submitted:
        write_atomic(place / "timestamp.txt", submission.submitted.isoformat() + "\n")
    note = {
        "name": submission.name,
        "submitted": submission.submitted.isoformat() if submission.submitted else None,
        "flags": [asdict(flag) for flag in submission.flags],
    }
    write_atomic(place / "collected.json", json.dumps(note, indent=1, ensure_ascii=False) + "\n")


def read(folder: TeachingFolder, slug: str, student: str) -> Submission:
    """Reads what `write` wrote.

    Raises:
        CourseError: There is none, or it is damaged.
    """
    place = folder.submitted(student, slug)
    try:
        note = json.loads((place / "collected.json").read_text(encoding="utf-8"))
        notebook = nbformat.reads((place / f"{slug}.ipynb").read_text(encoding="utf-8"), as_version=4)
        moment = datetime.fromisoformat(note["submitted"]) if note["submitted"] else None
        return Submission(student, notebook, note["name"], moment, tuple(Flag(**flag) for flag in note["flags"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CourseError(
            f"grade: received a damaged submission in {place} ({error}); rule: collect it again"
        ) from error


def _state(folder: TeachingFolder, slug: str, submission: Submission) -> str:
    if not (folder.submitted(submission.student, slug) / "collected.json").exists():
        return "new"
    try:
        before = read(folder, slug, submission.student)
    except CourseError:
        return "changed"
    same = (before.digest, before.submitted, before.flags) == (
        submission.digest,
        submission.submitted,
        submission.flags,
    )
    return "unchanged" if same else "changed"
