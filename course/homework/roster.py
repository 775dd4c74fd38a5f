"""Who takes the course: one CSV file, as a spreadsheet or a learning management system saves it.

    student,first_name,last_name,email,canvas_id,moodle_id,submitted:12-flow-matching
    ada,Ada,"King, Countess of Lovelace",ada@example.org,1815,77,2025-11-21T18:00:00+01:00

`student` names the student in this course: folders, files and the gradebook use it, so it is strict. Every column that
ends in `_id` is another name of the same student, elsewhere. `submitted:<slug>` says when the work came in, where the
files do not say it themselves. Other columns are left alone. Nothing is guessed: a roster that could mean two things
is refused, and the message names the rows as a spreadsheet counts them.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from pathlib import Path

from course.chapters import CourseError

STUDENT = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
LONGEST = 128  # characters that the gradebook keeps of a name, an address or an identity
NAMES = ("student", "first_name", "last_name", "email")
SUBMITTED = "submitted:"
RULES = {
    "student": "1 to 64 letters, digits or . _ @ + -, a letter or digit first, without two dots in a row",
    "clean": f"at most {LONGEST} characters, none of them a control character",
    "name": f"at most {LONGEST} characters, none of them the null character",
    "time": "a date and a time as 2025-11-21T18:00:00+01:00",
}


@dataclass(frozen=True)
class Student:
    """One student; `identities` holds the columns that end in `_id`, where they are filled in."""

    id: str
    first_name: str = ""
    last_name: str = ""
    email: str = ""
    identities: Mapping[str, str] = field(default_factory=dict)


class Roster:
    """The students by id, in the order of the file, and when each handed in."""

    def __init__(self, students: Iterable[Student] = (), submitted: Mapping[tuple[str, str], datetime] | None = None):
        self.students: dict[str, Student] = {student.id: student for student in students}
        self._submitted = dict(submitted or {})
        self._known: dict[str, set[str]] = {}
        for student in self.students.values():
            for name in (student.id, *student.identities.values()):
                self._known.setdefault(name, set()).add(student.id)
            if student.email:
                self._known.setdefault(student.email.casefold(), set()).add(student.id)

    def find(self, identity: str, column: str | None = None) -> str | None:
        """Returns the id of the one student who is called `identity`; None for nobody, and where it fits two.

        Two systems may give one number to two people, so ask with the `column` (`canvas_id`, `email`, `student`)
        wherever it is known which of them speaks. Ids are case-sensitive, e-mail addresses are not.
        """
        if column is not None:
            found = {s.id for s in self.students.values() if _same(_value(s, column), identity, column)}
        else:
            found = self._known.get(identity, set()) | {
                student
                for student in self._known.get(identity.casefold(), set())
                if self.students[student].email.casefold() == identity.casefold()
            }
        return next(iter(found)) if len(found) == 1 else None

    def submitted(self, student: str, slug: str) -> datetime | None:
        """When the student handed in the assignment, as the roster has it; always with its time zone."""
        return self._submitted.get((student, slug))


def read_roster(path: Path, *, zone: tzinfo | None = None) -> Roster:
    """Reads a roster.

    Args:
        path: UTF-8 with or without a byte order mark; cells separated by commas, semicolons or tabs.
        zone: where times without an offset were read off the clock; of the two that a clock shows when summer time
            ends, the earlier counts. Without a zone such times are refused.

    Raises:
        CourseError: Naming the row and the rule.
    """
    header, rows = _table(_text(path), path.name)
    columns = _columns(header, path.name)
    students, submitted, seen = [], {}, {}
    for number, cells in rows:
        where = f"row {number} of {path.name}"
        if any(cell.strip() for cell in cells[len(header) :]):
            raise _refused(f"{where} with {len(cells)} cells", f"{len(header)}, as the header has; quote commas")
        values = {name: cells[index].strip() if index < len(cells) else "" for name, index in columns.items()}
        student = _student(values, where)
        _register(student, number, seen, path.name)
        students.append(student)
        for name, text in values.items():
            if name.startswith(SUBMITTED) and text:
                submitted[student.id, name.removeprefix(SUBMITTED)] = _time(text, zone, f"{where}, column {name}")
    return Roster(students, submitted)


# ---------------------------------------------------------------------- from a file to cells


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CourseError(f"roster: received {path}, which cannot be read ({error.strerror}); rule: a file") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        rule = "a text file in UTF-8 (in Excel: save as CSV UTF-8)"
        raise _refused(f"{path.name}, whose line {line} is not UTF-8", rule) from error


def _table(text: str, name: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header, and the rows that are not blank with the numbers that a spreadsheet shows beside them."""
    first, _, rest = text.partition("\n")
    hint = re.fullmatch(r"sep=(.)\r?", first)  # how Excel announces its separator
    separator, body, skipped = (hint[1], rest, 1) if hint else (_separator(text), text, 0)
    rows = _rows(body, separator, skipped, name)
    header = next(rows, None)
    if header is None:
        raise _refused(f"{name}, which is empty", "a header with the column student, then a row for each student")
    return [cell.strip().casefold() for cell in header[1]], rows


def _rows(body: str, separator: str, skipped: int, name: str) -> Iterator[tuple[int, list[str]]]:
    number = skipped
    try:
        # newline="" keeps the line breaks inside of quoted cells as they are
        for number, cells in enumerate(
            csv.reader(io.StringIO(body, newline=""), delimiter=separator, strict=True), start=skipped + 1
        ):
            if any(cell.strip() for cell in cells):
                yield number, cells
    except csv.Error as error:
        raise _refused(
            f"{name}, broken after row {number} ({error})", "quotes are closed, and doubled inside"
        ) from error


def _separator(text: str) -> str:
    """The separator that makes a column `student` of the first line."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    for separator in ",;\t":
        if "student" in [cell.strip().strip('"').casefold() for cell in line.split(separator)]:
            return separator
    return max(",;\t", key=line.count)


def _columns(header: list[str], name: str) -> dict[str, int]:
    wanted = [h for h in header if h in NAMES or h.endswith("_id") or h.startswith(SUBMITTED)]
    twice = sorted({column for column in wanted if wanted.count(column) > 1})
    if "student" not in wanted or twice:
        problem = f"the column {twice[0]} twice" if twice else "no column student"
        raise _refused(f"{name} with {problem} (columns: {', '.join(header)})", "one column student, no column twice")
    return {column: header.index(column) for column in wanted}


# ---------------------------------------------------------------------- from cells to students


def _student(values: dict[str, str], where: str) -> Student:
    if not STUDENT.fullmatch(values["student"]):
        raise _refused(f"{where} with the student {values['student']!r}", RULES["student"])
    identities = {name: value for name, value in values.items() if name.endswith("_id") and value}
    for name, value in {"email": values.get("email", ""), **identities}.items():
        if len(value) > LONGEST or not value.isprintable():
            raise _refused(f"{where} with the {name} {value[:LONGEST]!r}", RULES["clean"])
    names = [values.get(name, "") for name in ("first_name", "last_name")]
    for name in names:
        if len(name) > LONGEST or "\0" in name:
            raise _refused(f"{where} with the name {name[:LONGEST]!r}", RULES["name"])
    return Student(values["student"], *names, values.get("email", ""), identities)


def _register(student: Student, number: int, seen: dict[tuple[str, str], int], name: str) -> None:
    """Notes what must be one person's, and refuses what an earlier row has."""
    # Without regard to case for the student too: on many disks two such folders are one.
    own = {"student": student.id.casefold(), "email": student.email.casefold(), **student.identities}
    for column, value in own.items():
        other = seen.setdefault((column, value), number) if value else number
        if other != number:
            raise _refused(
                f"rows {other} and {number} of {name} with one {column}, {_value(student, column)!r}",
                "each student has one row, and names of his own (student and email whatever their case)",
            )


def _time(text: str, zone: tzinfo | None, where: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
        if ":" not in text and "T" not in text:
            raise ValueError("a date alone")
        if time.tzinfo is None and zone is not None:
            time = time.replace(tzinfo=zone)
        if time.utcoffset() is None:
            raise _refused(f"{where}: {text!r}, a time without a time zone", RULES["time"])
        return time
    except CourseError:
        raise
    except ValueError as error:
        raise _refused(f"{where}: {text!r}", RULES["time"]) from error


def _value(student: Student, column: str) -> str:
    plain = {"student": student.id, "email": student.email}
    return plain[column] if column in plain else student.identities.get(column, "")


def _same(value: str, identity: str, column: str) -> bool:
    if column == "email":
        value, identity = value.casefold(), identity.casefold()
    return bool(value) and value == identity


def _refused(received: str, rule: str) -> CourseError:
    return CourseError(f"roster: received {received}; rule: {rule}")
