"""A roster is read whatever program saved it, and refused, by row and rule, where it could mean two things."""

import csv
import io
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from course.chapters import CourseError
from course.homework.roster import LONGEST, read_roster

HEADER = ["student", "first_name", "last_name", "email", "canvas_id", "note"]
ADA = ["ada", "Ada", "King, Countess of Lovelace", "ada@example.org", "1815", "first"]
BOB = ["bob-2", "Bob", "Builder", "bob@example.org", "7", ""]


def save(tmp_path, rows, *, separator=",", encoding="utf-8", newline="\r\n"):
    """A roster as a program writes it."""
    made = io.StringIO(newline="")
    csv.writer(made, delimiter=separator, lineterminator=newline).writerows(rows)
    path = tmp_path / "roster.csv"
    path.write_bytes(made.getvalue().encode(encoding))
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_it_reads_what_programs_write(tmp_path, separator, encoding, newline):
    rows = [HEADER, [], ADA, [""] * 6, BOB, []]
    roster = read_roster(save(tmp_path, rows, separator=separator, encoding=encoding, newline=newline))
    assert list(roster.students) == ["ada", "bob-2"]
    ada = roster.students["ada"]
    assert [ada.id, ada.first_name, ada.last_name, ada.email, ada.identities["canvas_id"]] == ADA[:5]
    assert set(ada.identities) == {"canvas_id"}


def test_excels_line_that_announces_the_separator_is_no_header(tmp_path):
    path = save(tmp_path, [HEADER, ADA], separator=";")
    path.write_bytes(b"sep=;\r\n" + path.read_bytes())
    assert list(read_roster(path).students) == ["ada"]


def test_headers_may_be_written_large_and_quoted(tmp_path):
    path = tmp_path / "roster.csv"
    path.write_text('"Student","Last_Name "\nada,King\n')
    assert read_roster(path).students["ada"].last_name == "King"


NAMES = [
    "Doe, Jr",
    '=HYPERLINK("x","y")',
    "+1",
    "@x",
    'O"Hara',
    "two\nlines",
    "two\r\nlines",
    "Ночь 夜 ليل",
    "🦊",
    "\u202egnp.exe",
    "'",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_a_name(tmp_path, name):
    roster = read_roster(save(tmp_path, [HEADER, ["ada", name, name, *ADA[3:]], BOB]))
    assert (roster.students["ada"].first_name, roster.students["ada"].last_name) == (name, name)
    assert roster.students["bob-2"].first_name == "Bob"


@pytest.mark.parametrize(
    "student",
    ["../up", "a..b", "a/b", "a,b", "=1", "a=b", "-a", ".a", "a b", "a\nb", "a\x1bb", "é", "", "a" * 65, "a\0", "ａ"],
)
def test_a_student_that_could_be_a_path_or_a_formula_is_refused(tmp_path, student):
    with pytest.raises(CourseError, match=r"row 3 of roster\.csv with the student .*rule: 1 to 64 letters"):
        read_roster(save(tmp_path, [HEADER, ADA, [student, *BOB[1:]]]))


@pytest.mark.parametrize("student", ["a", "A.b_c@d.e+f-g", "0" * 64, "ada@example.org"])
def test_a_plain_student_is_taken(tmp_path, student):
    assert list(read_roster(save(tmp_path, [HEADER, [student, *BOB[1:]]])).students) == [student]


@pytest.mark.parametrize(("column", "value"), [(3, "a\x07@b"), (4, "1\n2"), (4, "9" * (LONGEST + 1)), (4, "1\u202e2")])
def test_an_identity_with_control_characters_is_refused(tmp_path, column, value):
    row = [*BOB]
    row[column] = value
    with pytest.raises(CourseError, match=f"row 3 of roster.csv with the {HEADER[column]}"):
        read_roster(save(tmp_path, [HEADER, ADA, row]))


@pytest.mark.parametrize("name", ["a\0b", "x" * (LONGEST + 1)])
def test_a_name_that_the_gradebook_cannot_keep_is_refused(tmp_path, name):
    with pytest.raises(CourseError, match=r"row 2 of roster\.csv with the name"):
        read_roster(save(tmp_path, [HEADER, ["ada", name, *ADA[2:]]]))


@pytest.mark.parametrize(
    ("column", "value"), [(0, "ada"), (0, "ADA"), (3, "ada@example.org"), (3, "Ada@Example.ORG"), (4, "1815")]
)
def test_what_two_students_share_is_refused_with_both_rows(tmp_path, column, value):
    row = [*BOB]
    row[column] = value
    with pytest.raises(CourseError, match=rf"rows 2 and 5 of roster\.csv with one {HEADER[column]}, '{value}'"):
        read_roster(save(tmp_path, [HEADER, ADA, [], ["cy"], row]))


def test_empty_identities_are_shared_by_nobody(tmp_path):
    roster = read_roster(save(tmp_path, [HEADER, ["ada"], ["bob"]]))
    assert roster.find("") is None
    alone = read_roster(save(tmp_path, [HEADER, ["ada"]]))
    assert [alone.find("", column) for column in (None, "email", "canvas_id")] == [None] * 3


def test_a_student_is_found_by_every_name(tmp_path):
    roster = read_roster(save(tmp_path, [HEADER, ADA, BOB]))
    found = {
        name: roster.find(name) for name in ("ada", "ADA", "ada@example.org", "Ada@Example.ORG", "1815", "181", "first")
    }
    assert found == {
        "ada": "ada",
        "ADA": None,
        "ada@example.org": "ada",
        "Ada@Example.ORG": "ada",
        "1815": "ada",
        "181": None,
        "first": None,
    }


def test_a_number_that_two_systems_give_to_two_students_needs_its_column(tmp_path):
    rows = [["student", "canvas_id", "moodle_id"], ["7", "1", "2"], ["bob", "2", "7"]]
    roster = read_roster(save(tmp_path, rows))
    assert [roster.find(name) for name in "127"] == ["7", None, None]
    assert [roster.find("2", column) for column in ("canvas_id", "moodle_id")] == ["bob", "7"]
    assert [roster.find("7", column) for column in ("student", "moodle_id", "nothing_id")] == ["7", "bob", None]


def test_an_address_is_found_in_its_column_whatever_its_case(tmp_path):
    roster = read_roster(save(tmp_path, [HEADER, ADA, BOB]))
    assert [roster.find(ADA[3].upper(), column) for column in ("email", "student", "canvas_id")] == ["ada", None, None]


def test_an_id_in_capitals_is_not_an_address(tmp_path):
    roster = read_roster(save(tmp_path, [["student", "email"], ["ada", ""], ["bob", "ada@x"]]))
    assert [roster.find(name) for name in ("Ada", "ada", "ADA@X")] == [None, "ada", "bob"]


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2025-11-21T18:00:00+01:00", datetime(2025, 11, 21, 17, tzinfo=UTC)),
        ("2025-11-21 18:00Z", datetime(2025, 11, 21, 18, tzinfo=UTC)),
        ("2025-07-01 18:00", datetime(2025, 7, 1, 16, tzinfo=UTC)),
        ("2025-12-01 18:00", datetime(2025, 12, 1, 17, tzinfo=UTC)),
        ("2025-10-26 02:30", datetime(2025, 10, 26, 0, 30, tzinfo=UTC)),  # shown twice: the earlier counts
    ],
)
def test_times_have_their_zone_or_the_callers(tmp_path, text, utc):
    path = save(tmp_path, [["student", "submitted:12-flow"], ["ada", text], ["bob", ""]])
    time = read_roster(path, zone=ZoneInfo("Europe/Berlin")).submitted("ada", "12-flow")
    assert time.utcoffset() is not None
    assert time - utc == timedelta(0)
    assert read_roster(path, zone=UTC).submitted("bob", "12-flow") is None
    assert read_roster(path, zone=UTC).submitted("ada", "13-other") is None


@pytest.mark.parametrize("text", ["2025-11-21 18:00", "2025-11-21", "yesterday", "21.11.2025 18:00", "=NOW()"])
def test_other_times_are_refused(tmp_path, text):
    path = save(tmp_path, [["student", "submitted:12-flow"], ["bob", ""], ["ada", text]])
    with pytest.raises(CourseError, match=r"row 3 of roster.csv, column submitted:12-flow.*rule: a date and a time"):
        read_roster(path)


def test_a_date_alone_is_no_time_in_any_zone(tmp_path):
    with pytest.raises(CourseError, match="rule: a date and a time"):
        read_roster(save(tmp_path, [["student", "submitted:12-flow"], ["ada", "2025-11-21"]]), zone=UTC)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "which is empty"),
        (b"\r\n\r\n", "which is empty"),
        (b"name,email\nx,y\n", "no column student"),
        (b"student,email,EMAIL\nx,y,z\n", "the column email twice"),
        (b"student,last_name\nada,Doe, Jr\n", "row 2 of roster.csv with 3 cells"),
        (b'student,last_name\nada,King\nbob,"Buil\n', "broken after row 2"),
        (b"student\nada\nb\xe9b\n", "whose line 3 is not UTF-8"),
        ("student\nada\n".encode("utf-16"), "is not UTF-8"),
    ],
)
def test_a_broken_file_is_refused_in_words(tmp_path, data, problem):
    path = tmp_path / "roster.csv"
    path.write_bytes(data)
    with pytest.raises(CourseError, match=f"roster: received .*{problem}.*; rule: "):
        read_roster(path)


def test_a_missing_file_is_refused_in_words(tmp_path):
    with pytest.raises(CourseError, match="which cannot be read"):
        read_roster(tmp_path / "roster.csv")
