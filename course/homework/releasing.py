"""Handing a homework out: the student edition, and beside it, for the judge only, what is not handed out.

A release freezes its sources: submissions are graded by the copy in the teaching folder, whatever the author writes on.
It draws a secret, from which the hidden inputs come, and rehearses the whole catalogue of answers with it first.
"""

import hashlib
import json
import secrets as random_secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from nbformat import NotebookNode

from course.chapters import CourseError
from course.files import write_atomic
from course.homework.editions import PACKAGE, Edition, edition
from course.homework.folder import TeachingFolder
from course.homework.roster import Roster
from course.homework.sources import Assignment, load

SOURCES = ("assignment.md", "answers.md")
SECRETS_TRIED = 5  # a sampler's hidden inputs may be unlucky: then others are drawn


@dataclass(frozen=True)
class Release:
    """What the judge knows of a release; it never leaves the teaching folder.

    Attributes:
        slug: of the homework.
        secret: the hidden inputs come from it, and which student gets which variant.
        digests: names the student edition of each variant that is handed out.
        companion: the version of the package that the values were recorded with.
        made: when, ISO 8601.
        variants: how many rows of numbers are handed out; one where all students get the same.
        sources: a digest of the author's files that were rehearsed with this secret.
    """

    slug: str
    secret: str
    digests: list[str]
    companion: str
    made: str
    variants: int = 1
    sources: str = ""

    @property
    def digest(self) -> str:
        """Names the edition that all can get, the first variant's."""
        return self.digests[0]

    def variant(self, student: str) -> int:
        """Which row of numbers a student has."""
        if self.variants == 1:
            return 0
        digest = hashlib.sha256(f"{self.secret}/variant/{student}".encode()).digest()
        return int.from_bytes(digest[:4], "big") % self.variants


def read_release(folder: TeachingFolder, slug: str) -> Release:
    """What `release` wrote.

    Raises:
        CourseError: The homework was not released here, or the file is damaged.
    """
    path = folder.private(slug)
    try:
        return Release(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CourseError(
            f"homework: received {slug}, not released in {folder.root}; rule: `course homework release {slug}` first"
        ) from None
    except (TypeError, ValueError) as error:
        raise CourseError(f"homework: received a damaged {path} ({error}); rule: restore it from a backup") from error


@dataclass(frozen=True)
class Released:
    """What releasing did: the common edition, files that changed, and how many students have one of their own."""

    release: Release
    notebook: NotebookNode
    changed: tuple[Path, ...]
    personal: int


def release(
    folder: TeachingFolder,
    slug: str,
    *,
    roster: Roster | None = None,
    same_for_all: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> Released:
    """Hands one homework out; repeated, it changes only what its sources changed.

    Args:
        roster: gives each student numbers of his own, where the homework has variants.
        same_for_all: everybody gets the first variant all the same.
        force: also where submissions to another edition have been collected.
        dry_run: writes nothing.

    Raises:
        CourseError: The sources break a rule, an answer is misjudged, or submissions would be orphaned.
    """
    assignment = load(folder.sources / slug)
    before = read_release(folder, slug) if folder.private(slug).exists() else None
    variants = len(assignment.variants) if roster and not same_for_all else 1
    editions = [edition(assignment, variant) for variant in range(variants)]
    common = editions[0]
    if before and before.digest != common.digest and not force and (came := _collected(folder, slug)):
        raise CourseError(
            f"release: received another edition of {slug}, to which {len(came)} submissions were collected; rule: "
            "leave what was handed out as it is (answers.md may change), or say --force"
        )
    if before and before.variants != variants and not force:
        had = "numbers for each student" if before.variants > 1 else "the same numbers for everybody"
        raise CourseError(
            f"release: {slug} was handed out with {had}; rule: the same again (--same-for-all without a roster's "
            "numbers), or --force"
        )
    sources = _digest(folder.sources / slug)
    made = Release(
        slug,
        _secret(assignment, before, sources),
        [one.digest for one in editions],
        version(PACKAGE),
        before.made if before and before.digest == common.digest else datetime.now(UTC).isoformat(timespec="seconds"),
        variants,
        sources,
    )
    files = _files(folder, assignment, made, editions, roster if variants > 1 else None)
    changed = tuple(path for path, data in files.items() if not path.is_file() or path.read_bytes() != data)
    if not dry_run:
        folder.set_up()
        for path in changed:
            write_atomic(path, files[path])
    return Released(made, common.notebook, changed, len(roster.students) if roster and variants > 1 else 0)


def _secret(assignment: Assignment, before: Release | None, sources: str) -> str:
    """A secret with which the whole catalogue is judged as it must be; the one in use, if it still will do."""
    if before and (before.sources, before.companion) == (sources, version(PACKAGE)):
        return before.secret  # it was rehearsed with these very answers
    from course.homework.rehearsing import rehearse  # with torch

    for secret in [before and before.secret, *(random_secrets.token_hex(16) for _ in range(SECRETS_TRIED))]:
        if secret and not (problems := rehearse(assignment, secret)):
            return secret
    raise CourseError("\n".join(f"release: {assignment.slug}, {problem}" for problem in problems))


def _digest(folder: Path) -> str:
    """Names what the author wrote."""
    return hashlib.sha256(b"\0".join((folder / name).read_bytes() for name in SOURCES)).hexdigest()


def _files(
    folder: TeachingFolder, assignment: Assignment, made: Release, editions: list[Edition], roster: Roster | None
) -> dict[Path, bytes]:
    """What a release writes; the judge's part last, so that a release cut short is no release."""
    slug, origin, common = assignment.slug, folder.sources / assignment.slug, editions[0]
    files = {folder.source(slug) / name: (origin / name).read_bytes() for name in SOURCES}
    files[folder.source(slug) / f"{slug}.ipynb"] = common.files[f"{slug}.ipynb"]
    files |= {folder.release(slug) / name: data for name, data in common.files.items()}
    files[folder.release(slug).with_suffix(".zip")] = common.archive
    if roster:
        for student in roster.students:
            files[folder.personal(slug) / f"{student}.zip"] = editions[made.variant(student)].archive
    files[folder.private(slug)] = (json.dumps(asdict(made), indent=1) + "\n").encode()
    return files


def _collected(folder: TeachingFolder, slug: str) -> list[Path]:
    return sorted(folder.root.glob(f"submitted/*/{slug}/{slug}.ipynb"))
