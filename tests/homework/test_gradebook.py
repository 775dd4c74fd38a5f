"""The gradebook keeps what people wrote, writes whole students, and says what every student has.

`COURSE_TEST_DATABASE=postgresql+psycopg://… pytest tests/homework/test_gradebook.py` runs the same tests there, in a
database whose tables they may drop.
"""

import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import nbformat
import pytest
from nbgrader.api import Gradebook, SubmittedNotebook
from sqlalchemy import create_engine, text

from course.chapters import CourseError
from course.homework.gradebook import NO_ANSWER, Book
from course.homework.late import LatePolicy
from course.homework.results import Flag, Mark, Result, Score
from course.homework.roster import Roster, Student

SLUG, SERVER = "12-paths", os.environ.get("COURSE_TEST_DATABASE")
DUE = datetime(2025, 11, 21, 18, 0, tzinfo=ZoneInfo("Europe/Berlin"))
ROSTER = Roster(
    [
        Student("ada", "Ada", "King, Countess", "ada@example.org", {"canvas_id": "1815"}),
        Student("bob", "=cmd", "Żółw 🦊\n", ""),
        Student("cy", "Cy", "Adams"),
    ]
)


def cell(name, source, *, kind="code", points=None, solution=False, locked=False):
    """One cell of the student edition."""
    made = (nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell)(source, id=name)
    made.metadata["nbgrader"] = nbformat.from_dict(
        {"grade_id": name, "grade": points is not None, "solution": solution, "locked": locked, "task": False}
        | {"schema_version": 3}
        | ({} if points is None else {"points": points})
    )
    return made


def edition(**answers):
    """The released notebook, or a submission: the problem that comes first has the later name."""
    cells = [
        nbformat.v4.new_markdown_cell("Hello", id="text-00000000"),
        cell("setup", "import torch", locked=True),
        cell("zig-zag", answers.get("zig", "..."), solution=True),
        cell("zig-zag-check", "check()", points=1, locked=True),
        cell("zig-zag-hidden", "# hidden", points=2, locked=True),
        cell("paused-path", answers.get("paused", "..."), solution=True),
        cell("paused-path-check", "check()", points=3, locked=True),
        cell("why-zero", answers.get("why", "*Your answer.*"), kind="markdown", points=4, solution=True),
    ]
    return nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )


def graded(student="ada", *, zig=(1.0, 2.0), paused=3.0, flags=(), messages=("Right.", "Right.", "Right.")):
    """A result of the release above."""
    tests = (
        Score("zig-zag-check", "zig-zag", 1, zig[0], messages[0]),
        Score("zig-zag-hidden", "zig-zag", 2, zig[1], messages[1]),
        Score("paused-path-check", "paused-path", 3, paused, messages[2]),
    )
    return Result(student, SLUG, tests, tuple(flags))


@pytest.fixture
def database(tmp_path):
    """The URL of a database without tables."""
    if not SERVER:
        return f"sqlite:///{tmp_path / 'gradebook.db'}"
    engine = create_engine(SERVER)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return SERVER


@pytest.fixture
def book(database):
    with Book(database, policy=LatePolicy(percent_per_day=10), patience=5) as book:
        book.add_students(ROSTER)
        book.add_release(SLUG, edition(), DUE)
        yield book


def row(book, student="ada"):
    return {row.student: row for row in book.rows(SLUG)}[student]


def problem(book, name, student="ada"):
    return {problem.name: problem for problem in row(book, student).problems}[name]


def by_hand(database, name, score, *, student="ada", comment=None):
    """Scores one cell as nbgrader's page does it."""
    with Gradebook(database) as page:
        grade = page.find_grade(name, SLUG, SLUG, student)
        grade.manual_score = score
        grade.needs_manual_grade = score is None and grade.auto_score is None
        if comment is not None:
            page.find_comment(name, SLUG, SLUG, student).manual_comment = comment
        page.db.commit()


def comments(database, student="ada"):
    with Gradebook(database) as page:
        mine = page.find_submission_notebook(SLUG, SLUG, student)
        return {c.name: (c.auto_comment, c.manual_comment) for c in mine.comments}


# ---------------------------------------------------------------------- rows


def test_everyone_has_a_row_and_problems_stand_in_the_order_of_the_notebook(book):
    rows = book.rows(SLUG)
    assert {r.student for r in rows} == set(ROSTER.students)
    assert not any(r.handed_in or r.pending or r.earned or r.penalty or r.submitted for r in rows)
    for r in rows:
        assert [(p.name, p.points) for p in r.problems] == [("zig-zag", 3), ("paused-path", 3), ("why-zero", 4)]
        assert (r.points, r.due) == (10, DUE)
    bob = ROSTER.students["bob"]
    assert (row(book, "bob").first_name, row(book, "bob").last_name) == (bob.first_name, bob.last_name)


def test_scores_of_the_judge_become_rows(book):
    book.record(graded(zig=(0.5, 2)), edition(zig="f", paused="g"))
    mine = row(book)
    assert {p.name: (p.earned, p.auto, p.manual) for p in mine.problems} == {
        "zig-zag": (2.5, 2.5, None),
        "paused-path": (3, 3, None),
        "why-zero": (0, 0, None),
    }
    assert (mine.earned, mine.total, mine.handed_in, mine.pending) == (5.5, 5.5, True, False)
    assert not row(book, "bob").handed_in


@pytest.mark.parametrize("earned", [math.nan, -math.inf, -1, math.inf, 99, -0.0])
def test_no_score_leaves_the_range_of_its_test(book, earned):
    book.record(graded(zig=(earned, 2)), edition())
    assert problem(book, "zig-zag").earned == 2 + (1 if earned == 99 else 0)


def test_a_test_that_the_result_lacks_gives_nothing_and_waits_for_nobody(book):
    full = graded()
    book.record(Result("ada", SLUG, full.tests[:1]), edition())
    assert (row(book).earned, row(book).pending) == (1, False)


@pytest.mark.parametrize(
    ("score", "what"),
    [
        (Score("paused-path-check", "paused-path", 2, 2, ""), "the book has 3 points"),
        (Score("other-check", "other", 1, 1, ""), "the book has no such test"),
        (Score("why-zero", "why-zero", 4, 4, ""), "the book has no such test"),
    ],
)
def test_a_result_of_another_release_is_refused_whole(book, score, what):
    with pytest.raises(CourseError, match=what):
        book.record(Result("ada", SLUG, (*graded().tests[:2], score)), edition())
    assert not row(book).handed_in


@pytest.mark.parametrize("changes", [{"student": "eve"}, {"assignment": "13-other"}])
def test_an_unknown_student_or_assignment_is_refused(book, changes):
    result = Result(**{"student": "ada", "assignment": SLUG, "tests": graded().tests} | changes)
    with pytest.raises(CourseError, match="rule: a student of the roster and a released assignment"):
        book.record(result, edition())
    with pytest.raises(CourseError, match="rule: an assignment that was released"):
        book.rows("13-other")
    assert {r.student for r in book.rows(SLUG)} == set(ROSTER.students)


def test_recording_twice_is_recording_once(book, database):
    for _ in range(2):
        book.record(graded(), edition(why="because"), submitted=DUE)
    once = book.rows(SLUG)
    book.record(graded(), edition(why="because"), submitted=DUE)
    assert book.rows(SLUG) == once
    with Gradebook(database) as page:
        assert page.db.query(SubmittedNotebook).count() == 1


# ---------------------------------------------------------------------- written answers and people


@pytest.mark.parametrize("why", ["*Your answer.*", "", " \n", "*Your answer.*\n"])
def test_an_answer_as_released_or_empty_gives_nothing_and_waits_for_nobody(book, database, why):
    book.record(graded(), edition(why=why))
    assert problem(book, "why-zero").auto == 0
    assert not row(book).pending
    assert comments(database)["why-zero"] == (NO_ANSWER, None)


def test_a_written_answer_waits_for_a_person(book, database):
    book.record(graded(), edition(why="because"))
    written = problem(book, "why-zero")
    assert (written.pending, written.auto, written.earned) == (True, None, 0)
    assert row(book).pending
    by_hand(database, "why-zero", 3.5)
    assert (row(book).pending, row(book).earned, problem(book, "why-zero").manual) == (False, 9.5, 3.5)


def test_a_persons_score_and_comment_survive_a_regrade(book, database):
    book.record(graded(), edition(why="because"))
    by_hand(database, "why-zero", 3, comment="Nearly!")
    book.record(graded(zig=(0, 0), messages=("No.", "No.", "Right.")), edition(why="because"))
    assert (problem(book, "why-zero").manual, row(book).pending, row(book).earned) == (3, False, 6)
    assert comments(database)["why-zero"] == (None, "Nearly!")
    assert comments(database)["zig-zag"] == ("No.", None)


def test_a_person_is_asked_again_when_the_answer_changed_and_not_when_it_came_back(book, database):
    pending = []
    for why in ("first", "second", "second", "first"):
        book.record(graded(), edition(why=why))
        if why == "first" and not pending:
            by_hand(database, "why-zero", 3)
        pending.append(row(book).pending)
        assert problem(book, "why-zero").earned == 3
    assert pending == [False, True, True, False]


def test_a_person_who_scores_the_new_answer_is_not_asked_again(book, database):
    book.record(graded(), edition(why="first"))
    by_hand(database, "why-zero", 3)
    book.record(graded(), edition(why="second"))
    by_hand(database, "why-zero", 1)
    book.record(graded(), edition(why="second"))
    assert (row(book).pending, problem(book, "why-zero").earned) == (False, 1)
    book.record(graded(), edition(why="first"))
    assert (row(book).pending, problem(book, "why-zero").earned) == (True, 1)


def test_a_scored_answer_that_is_withdrawn_is_looked_at_again(book, database):
    book.record(graded(), edition(why="first"))
    by_hand(database, "why-zero", 3)
    book.record(graded(), edition())
    assert (row(book).pending, problem(book, "why-zero").earned, problem(book, "why-zero").auto) == (True, 3, 0)


def test_a_persons_score_of_a_test_stays_until_its_answer_or_its_outcome_changes(book, database):
    book.record(graded(paused=0), edition(paused="f"))
    by_hand(database, "paused-path-check", 2)
    asked = []
    for paused, source in ((0, "f"), (1, "f"), (0, "f"), (0, "g")):
        book.record(graded(paused=paused), edition(paused=source))
        assert problem(book, "paused-path").earned == 2
        asked.append(row(book).pending)
    assert asked == [False, True, False, True]


def test_extra_credit_counts(book, database):
    book.record(graded(), edition())
    with Gradebook(database) as page:
        page.find_grade("zig-zag-check", SLUG, SLUG, "ada").extra_credit = 0.5
        page.db.commit()
        assert page.find_submission(SLUG, "ada").score == 6.5
    assert row(book).earned == 6.5


def test_messages_stand_at_the_answer_each_once(book, database):
    book.record(graded(messages=("Right.", "Not yet: twice the noise.", "Not yet: \0\ud800")), edition())
    told = comments(database)
    assert told["zig-zag"] == ("zig-zag-check: Right.\nzig-zag-hidden: Not yet: twice the noise.", None)
    assert told["paused-path"] == ("Not yet: \ufffd?", None)
    book.record(graded(), edition())
    assert comments(database)["zig-zag"] == ("Right.", None)


def test_monsters_in_an_answer_do_no_harm(book):
    book.record(graded(), edition(why="\0\ud800" * 1000, zig="\udfff"))
    assert row(book).pending


def test_the_flag_is_raised_once_and_a_person_may_take_it_down(book, database):
    def lower():
        with Gradebook(database) as page:
            page.find_submission_notebook(SLUG, SLUG, "ada").flagged = False
            page.db.commit()

    lost, edited = Flag("kernel lost", "zig-zag", "\ud800"), Flag("edited")
    raised = []
    for flags in ((), (lost,), (lost, edited), (edited, lost)):
        book.record(graded(flags=flags), edition())
        raised.append(row(book).flagged)
        lower()
    assert raised == [False, True, True, False]


# ---------------------------------------------------------------------- time


def test_lateness_and_its_penalty_follow_the_policy(book):
    late = timedelta(hours=30)
    book.record(graded(), edition(), submitted=DUE + late)
    mine = row(book)
    assert (mine.submitted, mine.late) == (DUE + late, late)
    assert mine.penalty == book.policy.penalty(mine.earned, DUE, DUE + late) > 0
    assert mine.total == mine.earned - mine.penalty


def test_the_penalty_grows_with_scores_by_hand_and_settling_shows_it_to_nbgrader(book, database):
    def shown():
        with Gradebook(database) as page:
            return page.find_submission(SLUG, "ada").late_submission_penalty

    book.record(graded(), edition(why="because"), submitted=DUE + timedelta(hours=1))
    before = row(book).penalty
    assert shown() == before
    by_hand(database, "why-zero", 4)
    assert row(book).penalty == pytest.approx(book.policy.penalty(10, DUE, DUE + timedelta(hours=1))) != before
    book.settle(SLUG)
    assert shown() == row(book).penalty


def test_an_extension_moves_the_due_time(book, database):
    book.record(graded(), edition(), submitted=DUE + timedelta(hours=30))
    with Gradebook(database) as page:
        page.grant_extension(SLUG, "ada", hours=29)
    mine = row(book)
    assert (mine.due, mine.late) == (DUE + timedelta(hours=29), timedelta(hours=1))
    assert mine.penalty == pytest.approx(0.6)
    book.add_release(SLUG, edition(), None)
    assert (row(book).due, row(book).penalty) == (None, 0)


def test_without_a_time_nothing_is_late(book):
    book.record(graded(), edition(), submitted=None)
    assert (row(book).submitted, row(book).penalty, row(book).handed_in) == (None, 0, True)


def test_times_without_a_zone_are_refused(book):
    naive = datetime(2025, 11, 21, 18, 0)
    with pytest.raises(CourseError, match="rule: a time with its time zone"):
        book.record(graded(), edition(), submitted=naive)
    with pytest.raises(CourseError, match="rule: a time with its time zone"):
        book.add_release(SLUG, edition(), naive)
    assert not row(book).handed_in


# ---------------------------------------------------------------------- releases


def without(*names, notebook=None):
    made = notebook or edition()
    made.cells = [c for c in made.cells if c.id not in names]
    return made


def test_releasing_twice_changes_nothing(book, database):
    book.record(graded(), edition(why="because"), submitted=DUE)
    by_hand(database, "why-zero", 4)
    before = book.rows(SLUG)
    change = book.add_release(SLUG, edition(), DUE)
    assert str(change) == "nothing changed"
    assert book.rows(SLUG) == before


def test_nbgrader_finds_the_release_that_it_would_have_made(book, database):
    with Gradebook(database) as page:
        stored = page.find_notebook(SLUG, SLUG)
        assert {c.name: c.max_score for c in stored.grade_cells} == {
            "zig-zag-check": 1,
            "zig-zag-hidden": 2,
            "paused-path-check": 3,
            "why-zero": 4,
        }
        assert {c.name for c in stored.solution_cells} == {"zig-zag", "paused-path", "why-zero"}
        assert {c.name: c.locked for c in stored.source_cells} == {
            c.id: c.id not in ("zig-zag", "paused-path", "why-zero") for c in edition().cells[1:]
        }
        assert page.find_assignment(SLUG).duedate == DUE.astimezone(UTC).replace(tzinfo=None)
        assert page.find_student("ada").lms_user_id == "1815"


def test_a_release_without_submissions_may_change_everything(book):
    change = book.add_release(SLUG, without("zig-zag", "zig-zag-check", "zig-zag-hidden"))
    assert set(change.removed) == {"zig-zag", "zig-zag-check", "zig-zag-hidden"}
    assert [p.name for p in row(book).problems] == ["paused-path", "why-zero"]


def test_a_release_that_loses_scores_is_refused_and_says_which(book, database):
    book.record(graded("ada"), edition())
    book.record(graded("bob"), edition(why="because"))
    by_hand(database, "paused-path-check", 1, student="bob")
    before = book.rows(SLUG)
    with pytest.raises(CourseError, match=r"zig-zag-hidden \(2 scores\) would change; rule: .*force"):
        book.add_release(SLUG, without("zig-zag-hidden"), None)
    assert book.rows(SLUG) == before
    change = book.add_release(SLUG, without("zig-zag-hidden"), DUE, force=True)
    assert change.removed == ("zig-zag-hidden",)
    assert (problem(book, "zig-zag").earned, problem(book, "paused-path", "bob").manual) == (1, 1)
    book.record(Result("ada", SLUG, tuple(t for t in graded().tests if t.name != "zig-zag-hidden")), edition())


def test_a_release_that_loses_a_persons_comment_is_refused(book, database):
    book.record(graded(), edition(why="because"))
    with Gradebook(database) as page:
        page.find_comment("paused-path", SLUG, SLUG, "ada").manual_comment = "Good"
        page.db.commit()
    with pytest.raises(CourseError, match=r"paused-path \(1 comments\)"):
        book.add_release(SLUG, without("paused-path"), DUE)
    assert comments(database)["paused-path"][1] == "Good"


def test_other_points_are_refused_where_there_are_scores(book):
    book.record(graded(), edition())
    other = edition()
    other.cells[3].metadata.nbgrader["points"] = 2
    with pytest.raises(CourseError, match=r"zig-zag-check \(from 1 to 2 points, 1 scores\)"):
        book.add_release(SLUG, other, DUE)
    assert book.add_release(SLUG, other, DUE, force=True).repointed == ("zig-zag-check",)
    assert row(book).points == 11


def test_a_test_that_becomes_a_written_answer_is_another_cell(book):
    book.record(graded(), edition())
    other = without("paused-path-check")
    other.cells.append(cell("paused-path-check", "Why?", kind="markdown", points=3, solution=True))
    with pytest.raises(CourseError, match=r"paused-path-check \(1 scores\)"):
        book.add_release(SLUG, other, DUE)
    book.add_release(SLUG, other, DUE, force=True)
    assert row(book).earned == 3


def test_a_new_cell_keeps_the_scores_and_waits_for_the_judge(book):
    book.record(graded(), edition())
    other = edition()
    other.cells.insert(2, cell("new-one", "...", solution=True))
    other.cells.insert(3, cell("new-one-check", "check()", points=5, locked=True))
    assert book.add_release(SLUG, other, DUE).added == ("new-one-check", "new-one")
    assert (row(book).earned, row(book).pending, row(book).points) == (6, True, 15)
    new = Score("new-one-check", "new-one", 5, 5, "Right.")
    book.record(Result("ada", SLUG, (*graded().tests, new)), other)
    assert (row(book).earned, row(book).pending) == (11, False)
    assert row(book).problems[0].name == "new-one"


@pytest.mark.parametrize("points", [-1, math.nan, math.inf, "two", None])
def test_points_that_are_none_are_refused(book, points):
    other = edition()
    other.cells[3].metadata.nbgrader["points"] = points
    with pytest.raises(CourseError, match=r"points for zig-zag-check of 12-paths; rule: 0 or more"):
        book.add_release(SLUG, other, DUE)


def test_a_cell_that_stands_twice_is_refused(book):
    other = edition()
    other.cells.append(other.cells[3])
    with pytest.raises(CourseError, match="'zig-zag-check' of 12-paths; rule: a short name, once"):
        book.add_release(SLUG, other, DUE)


def test_a_student_who_left_the_roster_keeps_his_scores(book):
    book.record(graded("cy"), edition())
    book.add_students(Roster([Student("ada", "Augusta", "King")]))
    assert row(book, "ada").first_name == "Augusta"
    assert row(book, "cy").earned == 6


def test_problems_take_the_longest_answer_that_their_name_begins_with(book):
    cells = [
        cell("a", "...", solution=True),
        cell("a-b", "...", solution=True),
        cell("a-b-check", "", points=1, locked=True),
        cell("a-bc-check", "", points=2, locked=True),
        cell("free-hidden-2", "", points=4, locked=True),
    ]
    book.add_release("13-names", nbformat.v4.new_notebook(cells=cells))
    problems = book.rows("13-names")[0].problems
    assert {p.name: p.points for p in problems} == {"a-b": 1, "a": 2, "free": 4}


# ---------------------------------------------------------------------- the database


def test_a_second_writer_waits_for_the_first(book, database):
    entered, errors = threading.Event(), []

    def write():
        entered.set()
        try:
            with Book(database, patience=60) as other:
                other.record(graded("bob"), edition())
        except BaseException as error:  # the thread's errors are the test's
            errors.append(error)

    other = threading.Thread(target=write)
    with book._transaction() as session:
        session.execute(text("UPDATE student SET first_name = 'Augusta' WHERE id = 'ada'"))
        other.start()
        entered.wait()
        other.join(0.5)
        assert other.is_alive()
    other.join(60)
    assert not other.is_alive()
    assert errors == []
    assert row(book, "bob").handed_in
    assert row(book, "ada").first_name == "Augusta"


def test_a_writer_who_waits_in_vain_is_told_so(book, database):
    told = pytest.raises(CourseError, match="another process has been writing for 0.2 seconds.*nothing was written")
    with Book(database, patience=0.2) as other, book._transaction(), told:
        other.record(graded("bob"), edition())
    assert not row(book, "bob").handed_in
    book.record(graded("bob"), edition())
    assert row(book, "bob").handed_in


def test_many_writers_at_once_lose_nothing(book, database):
    def write(student):
        with Book(database, patience=60) as other:
            for _ in range(5):
                other.record(graded(student), edition(why=student))

    threads = [threading.Thread(target=write, args=(student,)) for student in (*ROSTER.students, "ada")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {r.student: (r.earned, r.pending) for r in book.rows(SLUG)} == dict.fromkeys(ROSTER.students, (6, True))


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from sqlalchemy import event
from course.homework.gradebook import Book
from tests.homework import test_gradebook as t

book = Book(sys.argv[1])
if sys.argv[3] != "0":
    writes = iter(range(int(sys.argv[3]), 0, -1))
    @event.listens_for(book._engine, "after_cursor_execute")
    def count(connection, cursor, statement, *rest):
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")) and next(writes) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
book.record(t.graded(zig=(0, 1), paused=2), t.edition(why="second"))
"""


@pytest.mark.parametrize("writes", [1, 3, 6, 9, 0])
def test_a_killed_writer_leaves_all_of_a_student_or_nothing(book, database, writes):
    book.record(graded(), edition(why="first"))
    by_hand(database, "why-zero", 4)
    before = row(book)
    root = str(Path(__file__).parents[2])
    ended = subprocess.run([sys.executable, "-c", KILLED, database, root, str(writes)], check=False, cwd=root)
    if writes:
        assert ended.returncode == -signal.SIGKILL
        assert row(book) == before
    book.record(graded(zig=(0, 1), paused=2), edition(why="second"))
    assert (row(book).earned, row(book).pending) == (7, True)


def test_a_failure_in_the_middle_of_a_student_writes_nothing(book, monkeypatch):
    book.record(graded(), edition())
    before = book.rows(SLUG)

    def fail(*_):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(book, "_record_flags", fail)
    for student in ("ada", "bob"):
        with pytest.raises(RuntimeError, match="in the middle"):
            book.record(graded(student, paused=0), edition())
    assert book.rows(SLUG) == before


def test_a_book_that_nbgrader_made_is_taken_as_it_is(database, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    with Gradebook(database) as page:
        page.add_student("ada", first_name="Ada", last_name="King")
    with Book(database) as book:
        book.add_release(SLUG, edition(), DUE)
        book.record(graded(), edition())
        assert row(book).earned == 6


def test_tables_of_another_version_are_left_alone(book, database):
    engine = create_engine(database)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'older'"))
    engine.dispose()
    with pytest.raises(CourseError, match="of version older of nbgrader's tables; rule: .*nbgrader db upgrade"):
        Book(database)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("gradebook.db", "a database that is no URL"),
        ("sqlite:////nowhere/at/all/gradebook.db", "unable to open database file"),
        ("oracle+nothing://someone:secret@host/book", r"\*\*\*@host"),
        ("postgresql+psycopg2cffi://someone:secret@host/book", "rule: a database whose driver is installed"),
    ],
)
def test_a_database_that_cannot_be_opened_is_refused_in_words(url, what):
    with pytest.raises(CourseError, match=what) as caught:
        Book(url)
    assert "secret" not in str(caught.value)


def test_a_path_is_an_sqlite_file_whatever_its_name(tmp_path):
    path = tmp_path / "a b?c#d%20.db"
    with Book(path) as book:
        book.add_students(ROSTER)
    with Book(path) as book:
        book.add_release(SLUG, edition())
        assert len(book.rows(SLUG)) == 3
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_that_is_no_database_is_left_alone(tmp_path):
    path = tmp_path / "gradebook.db"
    path.write_bytes(b"not a database at all, but long enough to be taken for one" * 100)
    before = path.read_bytes()
    with pytest.raises(CourseError, match="file is not a database"):
        Book(path)
    assert path.read_bytes() == before


def test_the_tables_are_made_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("in the middle")

    path = tmp_path / "gradebook.db"
    monkeypatch.setattr("course.homework.gradebook._tables.create_all", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        Book(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    monkeypatch.undo()
    with Book(path) as book:
        book.add_students(ROSTER)


def test_marks_are_what_people_decided(book, database):
    book.record(graded(), edition(why="Because."))
    book.record(graded("cy"), edition(why="So."))
    by_hand(database, "why-zero", 2.5, comment="Nearly.")
    by_hand(database, "paused-path-check", 1.0)
    assert book.marks(SLUG) == {
        "ada": {"why-zero": Mark(2.5, "Nearly."), "paused-path-check": Mark(1.0)},
        "cy": {},
    }
    book.record(graded(), edition(why="Because of that."))
    assert book.marks(SLUG)["ada"]["why-zero"] == Mark(2.5, "Nearly.", pending=True)


def test_a_due_time_that_is_set_later_counts(book):
    book.record(graded(), edition(), submitted=DUE + timedelta(days=1, hours=1))
    assert row(book).penalty == pytest.approx(0.2 * 6)
    book.set_due(SLUG, DUE + timedelta(days=2))
    assert (row(book).penalty, row(book).due) == (0, DUE + timedelta(days=2))
    book.set_due(SLUG, None)
    assert (row(book).penalty, row(book).due) == (0, None)
    with pytest.raises(CourseError, match="rule: an assignment that was released"):
        book.set_due("99-unknown", DUE)
