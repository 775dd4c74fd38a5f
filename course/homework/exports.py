"""Scores for a learning management system: one file for each system, in the format that it imports.

    export("canvas", rows, roster, slug).write(folder)

    plain(rows, slug)               for people and programs: every problem, lateness, what is still to be scored
    canvas(rows, roster, slug)      Grades → Import
    moodle(rows, roster, slug)      Grades → Import → CSV file
    gradescope(rows, roster, slug)  a programming assignment's autograder, which hands out what was graded here

All are UTF-8 without a byte order mark, save `plain`, which has one for Excel; lines end in CRLF and cells are quoted
as RFC 4180 says. Numbers have a point and no exponent.

**Text from people is no formula.** A spreadsheet takes a cell for a formula that begins with = + - @ (also in their
full-width forms), a tab or a line break, and where it splits lines at semicolons, what follows one begins a cell too.
There an apostrophe is put before, in names and feedback; nothing else of a text is changed, directions of writing and
line breaks included. Columns by which a system finds the student stay exact: where one of them would be a formula, the
student is left out, and a message says so.

**Nobody gets a score that is not his.** A student who waits for a score by hand stops the export, unless `partial=True`
leaves him out: his cell would say zero, and an empty one would erase what the system has. Every file tells whom it
leaves out.
"""

import csv
import html
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from course.chapters import CourseError
from course.files import write_atomic, zipped
from course.homework.gradebook import Row
from course.homework.roster import Roster, Student

INVISIBLE = r"[^\S\t\r\n]|[\0-\x08\x0e-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
FORMULA = re.compile(rf"^(?=[\t\r\n])|(?:^|[;\t\r\n])(?:{INVISIBLE})*(?=[=+\-@])")
MISSING = {"empty": "", "zero": "0"}
CANVAS_OWN = re.compile(r"(Current|Final) (Score|Points|Grade)|Override (Score|Grade|Status)")
CANVAS_NUMBER = re.compile(r"-?[0-9.,]+%?")  # Canvas rewrites the commas and points of such a cell
MOODLE = {"email": "Email address", "idnumber": "ID number", "moodle_id": "User ID"}


@dataclass(frozen=True)
class Export:
    """A file for a system; `left_out` has one message for each student who is not in it."""

    name: str
    data: bytes
    left_out: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The file as text."""
        return self.data.decode("utf-8-sig")

    def write(self, folder: Path) -> Path:
        """Writes the file into `folder`, whole or not at all."""
        write_atomic(folder / self.name, self.data)
        return folder / self.name


def export(system: str, rows: Sequence[Row], roster: Roster | None, slug: str, **options: object) -> Export:
    """The file for one of `SYSTEMS`; only `csv` does without a roster. The options are those of the system's function.

    Raises:
        CourseError: Also where no student could be put into a file that should have some.
    """
    if system not in SYSTEMS:
        raise CourseError(f"export: received {system!r}; rule: one of {', '.join(SYSTEMS)}")
    if system == "csv":
        return plain(rows, slug, **options)
    if roster is None:
        columns = "e-mail addresses, canvas_id, moodle_id or gradescope_id"
        raise CourseError(f"export: received no roster; rule: {system} finds students by a roster.csv with {columns}")
    made = SYSTEMS[system](rows, roster, slug, **options)
    if rows and len(made.left_out) == len(rows):
        listed = "; ".join(made.left_out[:5])
        raise CourseError(f"export: received nobody for {system} ({listed}); rule: at least one student")
    return made


def plain(rows: Sequence[Row], slug: str, *, partial: bool = False, missing: str = "empty") -> Export:
    """Everything there is, one line for each student; `state` says what a number means.

    With `partial`, a student who waits for a score by hand has his line, with an empty total.
    """
    _require_complete(rows, partial, "keeps them with an empty total")
    problems = [problem.name for problem in rows[0].problems] if rows else []
    header = ["student", "last_name", "first_name", "email", "state", "submitted", "hours_late"]
    lines = [[*header, *problems, "earned", "penalty", "total", "points"]]
    for row in rows:
        own = {problem.name: problem for problem in row.problems}
        state = "missing" if not row.handed_in else "to be scored by hand" if row.pending else "scored"
        scores = [number(own[name].earned) for name in problems] if row.handed_in else ["" for _ in problems]
        total = "" if row.pending else _total(row, missing)
        sums = [number(row.earned), number(row.penalty)] if row.handed_in else ["", ""]
        when = row.submitted.isoformat() if row.submitted else ""
        late = number(row.late / timedelta(hours=1))
        who = map(neutral, (row.student, row.last_name, row.first_name, row.email))
        lines.append([*who, state, when, late, *scores, *sums, total, number(row.points)])
    return Export(f"{slug}.csv", b"\xef\xbb\xbf" + _table(lines))


def canvas(
    rows: Sequence[Row],
    roster: Roster,
    slug: str,
    *,
    title: str | None = None,
    assignment_id: str | int | None = None,
    partial: bool = False,
    missing: str = "empty",
) -> Export:
    """A gradebook as Canvas exports it, with one assignment.

    Sources: `lib/gradebook_importer.rb` and `lib/gradebook_exporter.rb` of instructure/canvas-lms, and the page
    "Import a CSV File to Carmen Grades". They say: the columns Student, ID, SIS User ID, SIS Login ID, Section in this
    order, then the assignments; `Title (id)` names one that exists, another title makes a new one; a row Points
    Possible sets its points. A student is found by ID, by SIS User ID, by SIS Login ID, and at last by name, so one of
    the first three must be in the roster (`canvas_id`, `sis_user_id`, `sis_login_id`), and they must be right. An empty
    cell erases a score that Canvas has: `missing="zero"` writes zeros instead for those who handed in nothing.
    """
    name = _title(title or slug)
    if CANVAS_OWN.search(name):
        raise CourseError(f"export: received the title {name!r}; rule: none of the columns that Canvas computes itself")
    head = f"{name} ({int(assignment_id)})" if assignment_id is not None else name
    points = number(rows[0].points) if rows else ""
    lines = [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", head],
        ["    Points Possible", *[""] * 4, points],
    ]
    chosen, left_out = _choose(rows, roster, partial)
    for row, student in chosen:
        keys = [student.identities.get(column, "") for column in ("canvas_id", "sis_user_id", "sis_login_id")]
        problem = _canvas_problem(keys)
        if problem:
            left_out.append(f"{row.student}: {problem}")
            continue
        shown = ", ".join(filter(None, (student.last_name, student.first_name))) or student.id
        if "Points Possible" in shown:  # Canvas would read the line as the points of the assignment
            shown = student.id
        lines.append([neutral(shown), *keys, "", _total(row, missing)])
    return Export(f"{slug}-canvas.csv", _table(lines), tuple(left_out))


def moodle(
    rows: Sequence[Row],
    roster: Roster,
    slug: str,
    *,
    title: str | None = None,
    identity: str = "email",
    feedback: Mapping[str, str] | None = None,
    names: bool = False,
    partial: bool = False,
    missing: str = "empty",
) -> Export:
    """One grade item with its feedback, for Moodle's CSV import.

    Sources: the page "Grade import" of MoodleDocs, and `grade/import/csv/classes/load_data.php` of moodle/moodle. They
    say: the importer asks which column finds the user ("Map from", "Map to") and which grade item each other column is;
    grade and feedback of one item go together, or the grades are lost; an empty grade erases one; a grade above 100
    needs the site's `unlimitedgrades`; one user who is not found stops the whole import; and a line whose identity is
    empty (or "0") gives its grade to the student of the line before. So a student without an identity is left out.

    Args:
        identity: `email`; `idnumber` (the column `idnumber_id` of the roster if there is one, else `student`);
            `moodle_id` (Moodle's own number of the user).
        feedback: text by student id; without it, the points of each problem. Moodle shows it as HTML: it is escaped.
        names: whether first and last names are columns too. Moodle needs none.
    """
    if identity not in MOODLE:
        raise CourseError(f"export: received the identity {identity!r}; rule: one of {', '.join(MOODLE)}")
    name = _title(title or slug)
    registered = any("idnumber_id" in student.identities for student in roster.students.values())
    column = {"idnumber": "idnumber_id" if registered else "student"}.get(identity, identity)
    lines = [[*(["First name", "Last name"] if names else []), MOODLE[identity], name, f"{name} feedback"]]
    chosen, left_out = _choose(rows, roster, partial)
    for row, student in chosen:
        key = {"email": student.email, "student": student.id}.get(column, student.identities.get(column, ""))
        problem = _moodle_problem(key, column)
        if problem:
            left_out.append(f"{row.student}: {problem}")
            continue
        words = feedback.get(row.student, "") if feedback is not None else summary(row)
        shown = [_php(neutral(part)) for part in (student.first_name, student.last_name)] if names else []
        lines.append([*shown, key, _total(row, missing), _php(neutral(html.escape(words, quote=False)))])
    return Export(f"{slug}-moodle.csv", _table(lines), tuple(left_out))


def gradescope(
    rows: Sequence[Row], roster: Roster, slug: str, *, partial: bool = False, missing: str = "empty"
) -> Export:
    """An autograder for Gradescope that runs no code: it hands each student the score that was graded here.

    Sources: the pages "Autograder Specifications" and "Submission Metadata" of Gradescope's autograder documentation.
    Gradescope imports no scores from a file; the results of a programming assignment's autograder are the one way in.
    Upload the archive as the autograder, then rerun it for all submissions. It finds the student by e-mail address or
    by `gradescope_id`, and stops without a score where it knows nobody, or where a group has two different scores.
    Whoever handed in nothing has no submission to which a score could be given, and is not in the file.
    """
    entries, index = [], {}
    chosen, left_out = _choose(rows, roster, partial)
    for row, student in chosen:
        number_there = student.identities.get("gradescope_id", "")
        keys = [f"email:{student.email.casefold()}"] if student.email else []
        keys += [f"id:{number_there}"] if number_there else []
        if not row.handed_in or not keys:
            reason = "no e-mail address and no gradescope_id in the roster" if row.handed_in else "nothing handed in"
            left_out.append(f"{row.student}: {reason}")
            continue
        index.update(dict.fromkeys(keys, len(entries)))
        entries.append(_gradescope_result(row))
    results = json.dumps({"students": index, "results": entries}, indent=1, ensure_ascii=False)
    programs = {"setup.sh": SETUP.encode(), "run_autograder": RUN_AUTOGRADER.encode()}
    data = zipped({**programs, "results.json": results.encode()}, programs=programs)
    return Export(f"{slug}-gradescope.zip", data, tuple(left_out))


def number(value: float) -> str:
    """A number with a point, at most four decimals, and no exponent."""
    if not math.isfinite(value):
        raise CourseError(f"export: received the score {value}; rule: a finite number")
    shown = f"{value:.4f}".rstrip("0").rstrip(".")
    return "0" if shown in ("-0", "") else shown


def neutral(words: str) -> str:
    """Text from people as a cell that no spreadsheet takes for a formula (see above)."""
    # In compatible form a full-width = is an =; the two texts are compared character by character.
    plain_form = "".join(unicodedata.normalize("NFKC", c) if c in "＝＋－＠﹦﹢﹣﹫" else c for c in words)
    places = [match.end() for match in FORMULA.finditer(plain_form)]
    for place in reversed(places):
        words = f"{words[:place]}'{words[place:]}"
    return words


def summary(row: Row) -> str:
    """The points of each problem in one line, and what lateness took."""
    if not row.handed_in:
        return "nothing handed in"
    parts = [f"{problem.name} {number(problem.earned)}/{number(problem.points)}" for problem in row.problems]
    return "; ".join(parts + ([f"late: {number(row.penalty)} taken"] if row.penalty else []))


SYSTEMS = {"csv": plain, "canvas": canvas, "moodle": moodle, "gradescope": gradescope}


# ---------------------------------------------------------------------- who is in the file


def _choose(rows: Iterable[Row], roster: Roster, partial: bool) -> tuple[list[tuple[Row, Student]], list[str]]:
    """Those who are scored and in the roster; a message for each of the others."""
    rows = list(rows)
    _require_complete(rows, partial, "leaves them out")
    chosen, left_out = [], []
    for row in rows:
        student = roster.students.get(row.student)
        if row.pending:
            left_out.append(f"{row.student}: to be scored by hand")
        elif student is None:
            left_out.append(f"{row.student}: not in the roster")
        else:
            chosen.append((row, student))
    return chosen, left_out


def _require_complete(rows: Iterable[Row], partial: bool, otherwise: str) -> None:
    waiting = [row.student for row in rows if row.pending]
    if waiting and not partial:
        received = f"{len(waiting)} students who wait for a score by hand ({', '.join(waiting)})"
        raise CourseError(
            f"export: received {received}; rule: score them (`course homework review`), or --partial, which {otherwise}"
        )


def _canvas_problem(keys: list[str]) -> str:
    """Why Canvas would not find the student by these, or would find another."""
    canvas_id, *others = keys
    if not any(keys):
        return "no canvas_id, sis_user_id or sis_login_id in the roster"
    if canvas_id and not re.fullmatch(r"[0-9]{1,18}", canvas_id):
        return f"canvas_id {canvas_id!r}, of which Canvas reads only the first digits"
    if any(CANVAS_NUMBER.fullmatch(key) and not re.fullmatch("[0-9]+", key) for key in others):
        return f"an SIS id in {others}, of which Canvas rewrites the points and commas"
    return next((f"the id {key!r}, which a spreadsheet takes for a formula" for key in keys if neutral(key) != key), "")


def _moodle_problem(key: str, column: str) -> str:
    """Why Moodle would not find the student by this."""
    if not key or key == "0":
        return f"no {column} in the roster"
    if neutral(key) != key:
        return f"the {column} {key!r}, which a spreadsheet takes for a formula"
    if column == "moodle_id" and not re.fullmatch(r"[1-9][0-9]{0,17}", key):
        return f"moodle_id {key!r}, which is no number of Moodle's"
    return f'the {column} {key!r}, which Moodle does not read back (\\ or ")' if re.search(r'[\\"]', key) else ""


# ---------------------------------------------------------------------- cells


def _title(title: str) -> str:
    """A header that stands for itself."""
    if not title.strip() or not title.isprintable() or neutral(title) != title or re.search(r'[\\"]', title):
        raise CourseError(f"export: received the title {title!r}; rule: one line of plain text that is no formula")
    return title.strip()


def _total(row: Row, missing: str) -> str:
    if missing not in MISSING:
        raise CourseError(f"export: received missing={missing!r}; rule: {' or '.join(MISSING)}")
    return number(row.total) if row.handed_in else MISSING[missing]


def _php(words: str) -> str:
    """PHP's reader takes a quote after a backslash for text, and would run on into the next cell."""
    return re.sub(r'\\(?="|\Z)', r"\\ ", words)


def _table(lines: Iterable[Iterable[str]]) -> bytes:
    made = io.StringIO(newline="")
    csv.writer(made, lineterminator="\r\n").writerows(lines)
    return made.getvalue().encode("utf-8")


# ---------------------------------------------------------------------- Gradescope


SETUP = "#!/usr/bin/env bash\n# Nothing to install: the scores are in this archive.\n"

RUN_AUTOGRADER = '''#!/usr/bin/env python3
"""Hands the student the score that was graded elsewhere; runs nothing of the submission."""
import json
import os
import sys

ROOT = os.environ.get("AUTOGRADER_ROOT", "/autograder")


def read(*parts):
    with open(os.path.join(ROOT, *parts), encoding="utf-8") as file:
        return json.load(file)


book = read("source", "results.json")
found = set()
for user in read("submission_metadata.json")["users"]:
    keys = ["email:" + str(user.get("email", "")).casefold(), "id:" + str(user.get("id", ""))]
    found |= {book["students"].get(key) for key in keys if key in book["students"]} or {None}
results = [None if place is None else book["results"][place] for place in found]
if not results or None in results or any(result != results[0] for result in results):
    sys.exit("No score for this submission: ask whoever grades the course.")
with open(os.path.join(ROOT, "results", "results.json"), "w", encoding="utf-8") as file:
    json.dump(results[0], file)
'''


def _gradescope_result(row: Row) -> dict:
    tests = [
        {"name": p.name, "score": float(number(p.earned)), "max_score": float(number(p.points))} for p in row.problems
    ]
    return {"score": float(number(row.total)), "output": summary(row), "visibility": "after_published", "tests": tests}
