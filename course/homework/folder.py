"""The teaching folder: where an instructor's homework lies, and what he has set.

teaching/
    homework.toml        settings (this module writes a commented one)
    roster.csv           students, their identities in the learning platform, times of submission
    gradebook.db         nbgrader's gradebook, unless the settings name another database
    source/ release/ submitted/ autograded/ feedback/    nbgrader's layout
    personal/ private/ inbox/ graded/ exports/           ours
"""

import dataclasses
import os
import tomllib
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import cached_property
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from course.chapters import Course, CourseError
from course.files import write_atomic
from course.homework.late import LatePolicy
from course.homework.sandbox import Limits

SETTINGS = """\
# Settings of the homework in this folder. Every line can be left out.

# sources = "../my-homework"             # the folder of NN-slug/ sources; default: homework/ of the checkout
# database = "postgresql+psycopg://user@host/name"   # default: gradebook.db here (needs: pip install "psycopg[binary]")
# time_zone = "Europe/Berlin"            # of times without one, here and in roster.csv; default: UTC
# scheduler = "tcp://host:8786"          # a dask cluster that sees this folder; default: this machine

[due]
# "12-flow-matching" = 2027-01-31T23:59:00

[late]                                   # points taken from a late submission
percent_per_day = 10
grace_minutes = 15
# most_days = 7                          # later than that counts nothing

[limits]                                 # of one submission in its sandbox
# cell_seconds = 30
# submission_seconds = 300
# memory_mb = 3000
"""


@dataclass(frozen=True)
class TeachingFolder:
    """The paths and settings of one teaching folder.

    Attributes:
        root: the folder.
        course: the checkout whose `homework/` is the default source.
    """

    root: Path
    course: Course

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What `homework.toml` says; nothing where there is none.

        Raises:
            CourseError: It cannot be read, or sets what does not exist.
        """
        path = self.root / "homework.toml"
        try:
            settings = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (tomllib.TOMLDecodeError, UnicodeError) as error:
            raise CourseError(f"homework: received {path}, which is no TOML: {error}") from error
        known = {
            "sources": str,
            "database": str,
            "time_zone": str,
            "scheduler": str,
            "due": dict,
            "late": dict,
            "limits": dict,
        }
        for key, value in settings.items():
            if key not in known or not isinstance(value, known[key]):
                raise CourseError(
                    f"{path.name}: received {key} = {value!r}; rule: {', '.join(known)}, each of its kind"
                )
        return settings

    @property
    def sources(self) -> Path:
        """The folder of the homework's sources: `$COURSE_HOMEWORK`, else the setting, else the checkout's."""
        stated = os.environ.get("COURSE_HOMEWORK") or self.settings.get("sources")
        return (self.root / Path(stated).expanduser()).resolve() if stated else self.course.root / "homework"

    @property
    def database(self) -> str:
        """The URL of the gradebook's database."""
        if "?" in str(self.root):
            raise CourseError(
                f"homework: received the folder {self.root}; rule: a name without ?, which ends a URL's path"
            )
        return self.settings.get("database") or f"sqlite:///{self.root / 'gradebook.db'}"

    @property
    def time_zone(self) -> tzinfo:
        """Of times that state none."""
        name = self.settings.get("time_zone", "UTC")
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise CourseError(
                f"homework.toml: received time_zone = {name!r}; rule: a name such as Europe/Berlin"
            ) from error

    def due(self, slug: str) -> datetime | None:
        """When a homework is due; None where nothing is set."""
        moment = self.settings.get("due", {}).get(slug)
        if moment is None:
            return None
        if not isinstance(moment, datetime):
            raise CourseError(f"homework.toml: received due {slug} = {moment!r}; rule: a date with a time, unquoted")
        return moment if moment.tzinfo else moment.replace(tzinfo=self.time_zone)

    @property
    def late(self) -> LatePolicy:
        """What a late submission costs; nothing where nothing is set."""
        return _of(LatePolicy, self.settings.get("late", {"percent_per_day": 0}), "late")

    @property
    def limits(self) -> Limits:
        """What one submission may use."""
        return _of(Limits, self.settings.get("limits", {}), "limits")

    @property
    def roster(self) -> Path:
        """The file of students."""
        return self.root / "roster.csv"

    @property
    def exports(self) -> Path:
        """The folder of files for the learning platform."""
        return self.root / "exports"

    def source(self, slug: str) -> Path:
        """The sources as they were released: what is graded by."""
        return self.root / "source" / slug

    def release(self, slug: str) -> Path:
        """The student edition."""
        return self.root / "release" / slug

    def personal(self, slug: str) -> Path:
        """Student editions with numbers of their own, one archive a student."""
        return self.root / "personal" / slug

    def private(self, slug: str) -> Path:
        """What only the judge knows of a release."""
        return self.root / "private" / f"{slug}.json"

    def inbox(self, slug: str) -> Path:
        """What came in."""
        return self.root / "inbox" / slug

    def submitted(self, student: str, slug: str) -> Path:
        """What was collected of one student."""
        return self.root / "submitted" / student / slug

    def set_aside(self, slug: str) -> Path:
        """What the last collect set aside."""
        return self.root / "submitted" / f"{slug}.set-aside.json"

    def graded(self, slug: str, student: str) -> Path:
        """One result."""
        return self.root / "graded" / slug / f"{student}.json"

    def autograded(self, student: str, slug: str) -> Path:
        """The executed notebook, for the page of manual grading."""
        return self.root / "autograded" / student / slug

    def feedback(self, student: str, slug: str) -> Path:
        """The page that a student gets back."""
        return self.root / "feedback" / student / f"{slug}.html"

    def set_up(self) -> bool:
        """Makes the folder with a commented `homework.toml`; says whether there was none."""
        path = self.root / "homework.toml"
        return not path.exists() and write_atomic(path, SETTINGS)


def find_folder(course: Course, stated: str | None = None) -> TeachingFolder:
    """The teaching folder: as stated, else `$COURSE_TEACHING`, else `teaching/` in the checkout."""
    chosen = stated or os.environ.get("COURSE_TEACHING") or course.root / "teaching"
    return TeachingFolder(Path(chosen).expanduser().absolute(), course)


def _of(kind: type, settings: dict[str, Any], table: str):
    fields = {field.name for field in dataclasses.fields(kind)}
    if unknown := settings.keys() - fields:
        raise CourseError(
            f"homework.toml: received [{table}] {', '.join(sorted(unknown))}; rule: {', '.join(sorted(fields))}"
        )
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise CourseError(f"homework.toml: received [{table}] {settings}: {error}") from error
