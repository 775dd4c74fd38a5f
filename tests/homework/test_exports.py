"""Each system gets a file that it reads back as it was meant, and no file runs or misplaces what people wrote."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from course.chapters import CourseError
from course.homework.exports import SYSTEMS, canvas, export, gradescope, moodle, neutral, number, plain, summary
from course.homework.gradebook import Problem, Row
from course.homework.roster import Roster, Student

SLUG = "12-paths"
NASTY = [
    "Doe, Jr",
    '=HYPERLINK("http://x","y")',
    "+1",
    "-1",
    "@x",
    "  =1+1",
    "\t=1",
    "\ufeff=1",
    "＝1+1",
    "a;=1+1",
    "two\nlines",
    "two\r\n=cmd|' /C calc'!A0",
    'O"Hara "quoted"',
    "back\\",
    'back\\"slash, comma\\',
    "Ночь 夜 ليل",
    "🦊",
    "\u202egnp.exe",
    "'",
    "    Points Possible",
    "Manual Posting",
    "EX",
    "1,5",
    "",
]
BEGINS = re.compile(r"[\s\ufeff]*[=+\-@＝＋－＠]")


def student(index, name, **identities):
    known = {"canvas_id": str(1000 + index), "sis_login_id": f"login-{index}", "gradescope_id": str(5000 + index)}
    known |= {"moodle_id": str(70 + index)}
    return Student(f"s{index}", name, name, f"s{index}@example.org", known | identities)


def scored(person, earned=2.5, **changes):
    problems = (Problem("zig-zag", 3, earned, earned), Problem("why", 4, 1.0, None, 1.0))
    row = Row(person.id, person.first_name, person.last_name, person.email, problems, handed_in=True)
    return replace(row, **changes)


PEOPLE = [student(index, name) for index, name in enumerate(NASTY)]
ROWS = [scored(person, 1 + index / 3 % 2) for index, person in enumerate(PEOPLE)]
ROSTER = Roster(PEOPLE)
TABLES = {
    "plain": lambda rows, roster=ROSTER, **options: plain(rows, SLUG, **options),
    "canvas": lambda rows, roster=ROSTER, **options: canvas(rows, roster, SLUG, **options),
    "moodle": lambda rows, roster=ROSTER, **options: moodle(rows, roster, SLUG, names=True, **options),
}
ALL = TABLES | {"gradescope": lambda rows, roster=ROSTER, **options: gradescope(rows, roster, SLUG, **options)}


def table(made):
    return list(csv.reader(io.StringIO(made.text, newline=""), strict=True))


def by_rfc4180(text):
    """A second reader, by the grammar of RFC 4180 alone: it knows nothing of Python's csv."""
    field = r'(?:"(?P<quoted>(?:[^"]|"")*)"|(?P<bare>[^",\r\n]*))(?P<end>,|\r\n)'
    lines, line, place = [], [], 0
    while place < len(text):
        match = re.compile(field).match(text, place)
        assert match, f"no field of RFC 4180 at {text[place : place + 40]!r}"
        quoted = match["quoted"]
        line.append(match["bare"] if quoted is None else quoted.replace('""', '"'))
        place = match.end()
        if match["end"] != ",":
            lines.append(line)
            line = []
    assert not line
    return lines


@pytest.mark.parametrize("system", TABLES)
def test_the_table_is_rectangular_and_two_readers_agree_on_it(system):
    made = TABLES[system](ROWS)
    lines = table(made)
    assert lines == by_rfc4180(made.text)
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines) - len(ROWS) == {"plain": 1, "canvas": 2, "moodle": 1}[system]
    assert made.data.startswith(b"\xef\xbb\xbf") == (system == "plain")
    assert made.left_out == ()


@pytest.mark.parametrize("system", TABLES)
def test_no_cell_is_a_formula_even_where_semicolons_and_lines_part_cells(system):
    for line in table(TABLES[system](ROWS)):
        for cell in line:
            assert not [part for part in re.split(r"[;\t\r\n]", cell) if BEGINS.match(part)]
            assert not cell.startswith(("\t", "\r", "\n"))


@pytest.mark.parametrize("name", NASTY)
def test_a_text_stays_as_it_is_but_for_apostrophes(name):
    safe = neutral(name)
    assert neutral(safe) == safe
    assert safe == name if not re.search("[=＝+@-]", name) else safe.replace("'", "") == name.replace("'", "")


@pytest.mark.parametrize("name", ["Anna-Lena", "a = b", "x;y", "1+1", "mail@home", "two\r\nlines", "-"[:0], "Doe; Jr"])
def test_harmless_texts_stay_as_they_are(name):
    assert neutral(name) == name


def test_canvas_gets_the_columns_that_it_exports():
    lines = table(canvas(ROWS, ROSTER, SLUG, title="Paths", assignment_id=77))
    assert lines[0] == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "Paths (77)"]
    assert lines[1] == ["    Points Possible", "", "", "", "", number(ROWS[0].points)]
    assert [line[1:] for line in lines[2:]] == [
        [p.identities["canvas_id"], "", p.identities["sis_login_id"], "", number(row.total)]
        for p, row in zip(PEOPLE, ROWS, strict=True)
    ]
    assert table(canvas(ROWS, ROSTER, SLUG))[0][-1] == SLUG


def test_canvas_gets_names_in_their_column_and_none_that_it_takes_for_points():
    lines = table(canvas(ROWS, ROSTER, SLUG))
    assert [line[0] for line in lines if "Points Possible" in line[0]] == ["    Points Possible"]
    for person, line in zip(PEOPLE, lines[2:], strict=True):
        both = f"{person.last_name}, {person.first_name}"
        if not person.last_name or "Points Possible" in both:
            assert line[0] == person.id
        else:
            assert line[0] == neutral(both)


@pytest.mark.parametrize(
    ("identities", "problem"),
    [
        ({"canvas_id": "", "sis_login_id": ""}, "no canvas_id"),
        ({"canvas_id": "12abc"}, "reads only the first digits"),
        ({"canvas_id": "１２"}, "reads only the first digits"),
        ({"canvas_id": "=1"}, "reads only the first digits"),
        ({"sis_login_id": "1.234,5"}, "rewrites the points and commas"),
        ({"sis_login_id": "-5"}, "rewrites"),
        ({"sis_login_id": "@ada"}, "takes for a formula"),
        ({"sis_user_id": "a;=1"}, "takes for a formula"),
    ],
)
def test_canvas_gets_no_student_whom_it_would_mistake(identities, problem):
    people = [student(1, "Ada"), student(2, "Bob", **identities)]
    people[1] = replace(people[1], identities={k: v for k, v in people[1].identities.items() if v})
    made = canvas([scored(person) for person in people], Roster(people), SLUG)
    assert [line[1] for line in table(made)[2:]] == ["1001"]
    assert len(made.left_out) == 1
    assert re.match(f"s2: .*{problem}", made.left_out[0])


@pytest.mark.parametrize(
    "title", ["Final Score", "Paths Current Points", "=1+1", "two\nlines", " ", "a\\", 'a "b"', "+"]
)
def test_titles_that_a_system_reads_otherwise_are_refused(title):
    with pytest.raises(CourseError, match="export: received the title"):
        canvas(ROWS, ROSTER, SLUG, title=title)


def test_moodle_gets_an_identity_a_grade_and_a_feedback():
    lines = table(moodle(ROWS, ROSTER, SLUG, title="Paths"))
    assert lines[0] == ["Email address", "Paths", "Paths feedback"]
    assert lines[1:] == [[p.email, number(r.total), summary(r)] for p, r in zip(PEOPLE, ROWS, strict=True)]


@pytest.mark.parametrize(
    ("identity", "header", "keys"),
    [
        ("email", "Email address", ["s0@example.org", "s1@example.org"]),
        ("moodle_id", "User ID", ["70", "71"]),
        ("idnumber", "ID number", ["s0", "s1"]),
    ],
)
def test_moodle_finds_students_as_asked(identity, header, keys):
    lines = table(moodle(ROWS[:2], ROSTER, SLUG, identity=identity))
    assert [line[0] for line in lines] == [header, *keys]


def test_moodle_takes_the_registration_number_for_all_or_for_nobody():
    people = [student(0, "Ada", idnumber_id="M1"), student(1, "Bob")]
    made = moodle([scored(person) for person in people], Roster(people), SLUG, identity="idnumber")
    assert [line[0] for line in table(made)] == ["ID number", "M1"]
    assert made.left_out == ("s1: no idnumber_id in the roster",)
    with pytest.raises(CourseError, match="rule: one of email, idnumber, moodle_id"):
        moodle(ROWS, ROSTER, SLUG, identity="name")


@pytest.mark.parametrize(
    ("identity", "value", "problem"),
    [
        ("email", "", "no email"),
        ("email", "=x@y", "takes for a formula"),
        ("email", '"a,b"@c', "does not read back"),
        ("email", "a\\@c", "does not read back"),
        ("moodle_id", "0", "no moodle_id"),
        ("moodle_id", "7a", "no number of Moodle's"),
    ],
)
def test_moodle_gets_no_line_that_would_go_to_the_student_before(identity, value, problem):
    person = student(2, "Bob")
    person = replace(person, **({"email": value} if identity == "email" else {"identities": {"moodle_id": value}}))
    people = [student(1, "Ada"), person]
    made = moodle([scored(p) for p in people], Roster(people), SLUG, identity=identity)
    assert len(table(made)) == 2
    assert len(made.left_out) == 1
    assert problem in made.left_out[0]


@pytest.mark.parametrize("words", [*NASTY, "<script>alert(1)</script>", "1 < 2 & 3"])
def test_moodles_feedback_is_text_in_its_column(words):
    lines = table(moodle(ROWS[:2], ROSTER, SLUG, feedback={"s0": words}))
    assert [line[:2] for line in lines[1:]] == [
        ["s0@example.org", number(ROWS[0].total)],
        ["s1@example.org", number(ROWS[1].total)],
    ]
    assert "<" not in lines[1][2]
    assert lines[2][2] == ""
    assert lines[1][2].count("&lt;") == words.count("<")


def test_phps_reader_finds_the_same_cells():
    """PHP keeps a quote that follows a backslash; so no backslash may stand before one."""
    raw = moodle(ROWS, ROSTER, SLUG, names=True, feedback={p.id: p.last_name for p in PEOPLE}).text
    assert "\\" in raw
    assert '\\"' not in raw


@pytest.mark.parametrize("system", ALL)
def test_students_who_wait_stop_the_export_and_are_all_named(system):
    waiting = [replace(row, problems=(replace(row.problems[0], pending=True), row.problems[1])) for row in ROWS[3:5]]
    with pytest.raises(CourseError, match=r"2 students who wait for a score by hand \(s3, s4\); rule: .*--partial"):
        ALL[system]([*ROWS[:3], *waiting])


@pytest.mark.parametrize("system", ALL)
def test_partial_gives_no_score_to_those_who_wait(system):
    waiting = [replace(row, problems=(replace(row.problems[0], pending=True), row.problems[1])) for row in ROWS[3:5]]
    made = ALL[system]([*ROWS[:3], *waiting], partial=True)
    if system == "plain":
        header, *lines = table(made)
        assert [line[header.index("total")] for line in lines] == [number(row.total) for row in ROWS[:3]] + ["", ""]
        assert [line[header.index("state")] for line in lines][3:] == ["to be scored by hand"] * 2
    else:
        assert made.left_out == ("s3: to be scored by hand", "s4: to be scored by hand")
        assert not [key for key in ("s3@", "s4@", "1003", "1004") if key.encode() in made.data]
    if system in ("canvas", "moodle"):
        assert len(table(made)) == len(table(ALL[system](ROWS[:3])))


@pytest.mark.parametrize("system", TABLES)
@pytest.mark.parametrize(("missing", "cell"), [("empty", ""), ("zero", "0")])
def test_a_missing_submission_is_what_the_caller_says(system, missing, cell):
    absent = replace(ROWS[1], handed_in=False, problems=tuple(replace(p, earned=0.0) for p in ROWS[1].problems))
    lines = table(TABLES[system]([ROWS[0], absent], missing=missing))
    column = {"plain": -2, "canvas": -1, "moodle": -2}[system]
    assert [line[column] for line in lines[-2:]] == [number(ROWS[0].total), cell]
    with pytest.raises(CourseError, match="rule: empty or zero"):
        TABLES[system]([absent], missing="nothing")


@pytest.mark.parametrize("system", ["canvas", "moodle", "gradescope"])
def test_a_student_who_left_the_roster_is_left_out(system):
    made = ALL[system](ROWS[:2], Roster(PEOPLE[1:]))
    assert made.left_out == ("s0: not in the roster",)


@pytest.mark.parametrize("system", ALL)
def test_no_rows_make_a_file_without_students(system):
    made = ALL[system]([])
    assert made.left_out == ()
    assert b"@" not in made.data or system == "gradescope"


def test_the_plain_table_has_everything():
    submitted = datetime(2025, 11, 21, 18, 30, tzinfo=UTC)
    late = replace(ROWS[0], submitted=submitted, late=timedelta(hours=1, minutes=30), penalty=0.25)
    header, line = table(plain([late], SLUG))
    assert dict(zip(header, line, strict=True)) == {
        "student": "s0",
        "last_name": "Doe, Jr",
        "first_name": "Doe, Jr",
        "email": "s0@example.org",
        "state": "scored",
        "submitted": submitted.isoformat(),
        "hours_late": "1.5",
        "zig-zag": number(late.problems[0].earned),
        "why": number(late.problems[1].earned),
        "earned": number(late.earned),
        "penalty": "0.25",
        "total": number(late.earned - 0.25),
        "points": "7",
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (-0.0, "0"),
        (1e-9, "0"),
        (-1e-9, "0"),
        (100, "100"),
        (2.5, "2.5"),
        (1 / 3, "0.3333"),
        (1e6, "1000000"),
        (-1.5, "-1.5"),
    ],
)
def test_numbers_have_a_point_and_no_exponent(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize("value", [1e22, 123456789.25, 1e-4, 7 / 3])
def test_numbers_of_any_size_are_read_back(value):
    assert re.fullmatch(r"[0-9]+(\.[0-9]+)?", number(value))
    assert float(number(value)) == pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_refused(value):
    with pytest.raises(CourseError, match="rule: a finite number"):
        number(value)


# ---------------------------------------------------------------------- Gradescope


def rerun(made, tmp_path, *users):
    """Runs the autograder as Gradescope does."""
    root = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
    with zipfile.ZipFile(io.BytesIO(made.data)) as archive:
        archive.extractall(root / "source")
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    assert {name for name, mode in modes.items() if mode & 0o111} == {"setup.sh", "run_autograder"}
    (root / "results").mkdir()
    (root / "submission_metadata.json").write_text(json.dumps({"users": list(users)}))
    environment = {**os.environ, "AUTOGRADER_ROOT": str(root)}
    ended = subprocess.run([sys.executable, root / "source" / "run_autograder"], env=environment, capture_output=True)
    results = root / "results" / "results.json"
    return json.loads(results.read_text()) if results.exists() else ended.stderr.decode()


def test_gradescopes_autograder_hands_out_the_score(tmp_path):
    made = gradescope(ROWS, ROSTER, SLUG)
    for person, row in list(zip(PEOPLE, ROWS, strict=True))[:3]:
        for user in (
            {"email": person.email.upper(), "id": 1},
            {"email": "", "id": int(person.identities["gradescope_id"])},
        ):
            results = rerun(made, tmp_path, user)
            assert results["score"] == pytest.approx(row.total, abs=5e-5)
            assert [(t["name"], t["max_score"]) for t in results["tests"]] == [(p.name, p.points) for p in row.problems]
            assert results["output"] == summary(row)


def test_gradescopes_autograder_gives_nothing_to_strangers_and_unequal_groups(tmp_path):
    made = gradescope([scored(PEOPLE[0], 1), scored(PEOPLE[1], 2), scored(PEOPLE[2], 2)], ROSTER, SLUG)
    ada, bob, cy = ({"email": person.email, "id": 0} for person in PEOPLE[:3])
    stranger = {"email": "s9@example.com", "id": 1}
    for users in ([stranger], [], [ada, bob], [ada, stranger], [{"id": 0}]):
        assert "No score for this submission" in rerun(made, tmp_path, *users)
    assert rerun(made, tmp_path, bob, cy)["score"] == 3


def test_gradescope_gets_those_who_have_a_submission_and_an_address():
    people = [student(0, "Ada"), Student("s1", "Bob", "B"), student(2, "Cy")]
    rows = [scored(people[0]), scored(people[1]), scored(people[2], handed_in=False)]
    made = gradescope(rows, Roster(people), SLUG)
    assert made.left_out == ("s1: no e-mail address and no gradescope_id in the roster", "s2: nothing handed in")
    with zipfile.ZipFile(io.BytesIO(made.data)) as archive:
        assert set(json.loads(archive.read("results.json"))["students"]) == {"email:s0@example.org", "id:5000"}


def test_the_archive_is_the_same_for_the_same_scores():
    assert gradescope(ROWS, ROSTER, SLUG).data == gradescope(ROWS, ROSTER, SLUG).data


# ---------------------------------------------------------------------- by name


@pytest.mark.parametrize("system", ALL)
def test_a_system_is_called_by_its_name(system):
    options = {"names": True} if system == "moodle" else {}
    name = "csv" if system == "plain" else system
    assert export(name, ROWS, ROSTER, SLUG, **options) == ALL[system](ROWS)


def test_only_the_plain_table_does_without_a_roster():
    assert export("csv", ROWS, None, SLUG) == plain(ROWS, SLUG)
    for system in set(SYSTEMS) - {"csv"}:
        with pytest.raises(CourseError, match=f"received no roster; rule: {system} finds students by"):
            export(system, ROWS, None, SLUG)


def test_a_file_for_nobody_is_refused():
    with pytest.raises(CourseError, match="received nobody for canvas \\(s0: no canvas_id"):
        export("canvas", ROWS[:1], Roster([Student("s0")]), SLUG)
    with pytest.raises(CourseError, match="rule: one of csv, canvas, moodle, gradescope"):
        export("excel", ROWS, ROSTER, SLUG)


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("system", ALL)
def test_a_file_is_written_whole_over_an_old_one(system, tmp_path):
    made = ALL[system](ROWS)
    for _ in range(2):
        assert made.write(tmp_path / "exports").read_bytes() == made.data
    assert [path.name for path in (tmp_path / "exports").iterdir()] == [made.name]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    made = plain(ROWS, SLUG)
    made.write(tmp_path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        plain(ROWS[:1], SLUG).write(tmp_path)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(made.name, made.data)]
