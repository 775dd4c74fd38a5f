"""The gradebook: nbgrader's database, written in whole transactions.

    Book(url).record(result, notebook, submitted=…)   what grading one submission gave
    Book(url).rows(slug)                              what every student has, late penalty included

nbgrader's own pages and commands read and write the same database: its models and its methods are used here, and its
scheme is left as it is. Three things differ from its autograder. A person's score and comment survive a regrade, and
are asked for again only when the answer changed since. All of one student is written, or nothing. A second writer
waits.

Beside nbgrader's tables stand two of this course, which nbgrader ignores: `course_release` (the order of the cells, and
the problem of each) and `course_record` (a digest of what each score was given for).

SQLite is the default. PostgreSQL works by its URL, `postgresql+psycopg://user@host/name`, with
`pip install psycopg[binary]`.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from alembic.script import ScriptDirectory
from nbformat import NotebookNode
from nbgrader import utils
from nbgrader.api import (
    Assignment,
    Base,
    Comment,
    Course,
    Grade,
    Gradebook,
    GradeCell,
    InvalidEntry,
    MissingEntry,
    Notebook,
    SolutionCell,
    Student,
    SubmittedAssignment,
    SubmittedNotebook,
)
from nbgrader.dbutil import ALEMBIC_DIR
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    MetaData,
    Select,
    String,
    Table,
    Text,
    create_engine,
    delete,
    event,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session

from course.chapters import CourseError
from course.homework.editions import cell_name
from course.homework.late import LatePolicy, lateness
from course.homework.results import Mark, Result, Score
from course.homework.roster import Roster

COURSE = "default_course"  # what nbgrader calls a course that nobody named
NO_ANSWER = "No response."  # nbgrader's words
LOCK = 0x636F75727365  # the number of this course's lock in PostgreSQL

_tables = MetaData()
_releases = Table(
    "course_release",
    _tables,
    Column("notebook_id", String(32), primary_key=True),
    Column("cells", Text, nullable=False),  # JSON: [[name, problem], …] of the graded cells, in order
)
_records = Table(
    "course_record",
    _tables,
    Column("owner_id", String(32), primary_key=True),  # of a grade, or of a submitted notebook (its flags)
    Column("latest", String(64), nullable=False),  # digest of what the last record was for
    Column("judged", String(64)),  # digest of what the person's score was given for
)


@dataclass(frozen=True)
class Problem:
    """What one student has for one problem.

    Attributes:
        name, points: of the problem; the most that it gives.
        earned: what counts: a person's score where there is one, else the judge's.
        auto, manual: the judge's score, and a person's; None where there is none.
        pending: whether a person still has to score, or to look again.
    """

    name: str
    points: float
    earned: float = 0.0
    auto: float | None = None
    manual: float | None = None
    pending: bool = False


@dataclass(frozen=True)
class Row:
    """What one student has for one assignment; `handed_in` tells a zero from nothing.

    Attributes:
        submitted, due: in UTC; None where unknown. `due` has the student's extension in it.
        late: real time after `due`.
        penalty: points that lateness takes of `earned`.
        flagged: whether nbgrader's page shows the flag.
    """

    student: str
    first_name: str
    last_name: str
    email: str
    problems: tuple[Problem, ...]
    handed_in: bool = False
    submitted: datetime | None = None
    due: datetime | None = None
    late: timedelta = timedelta(0)
    penalty: float = 0.0
    flagged: bool = False

    @property
    def points(self) -> float:
        """The most that the assignment gives."""
        return sum(problem.points for problem in self.problems)

    @property
    def earned(self) -> float:
        """All points, before the penalty."""
        return sum(problem.earned for problem in self.problems)

    @property
    def total(self) -> float:
        """What counts in the end."""
        return max(0.0, self.earned - self.penalty)

    @property
    def pending(self) -> bool:
        """Whether a person still has to score."""
        return any(problem.pending for problem in self.problems)


@dataclass(frozen=True)
class Change:
    """What a release changed in the book: names of graded cells and answers."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    repointed: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [("new", self.added), ("gone", self.removed), ("with other points", self.repointed)]
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names) or "nothing changed"


class Book:
    """The gradebook behind a URL, or in an SQLite file at a path; a context manager.

    Args:
        database: an SQLAlchemy URL, or the path of an SQLite file. Tables are made where there are none.
        policy: what lateness costs; it is asked anew whenever rows are read, since hand-given scores come later.
        patience: seconds to wait for another writer.

    Raises:
        CourseError: The database cannot be opened, or is of another version of nbgrader.
    """

    def __init__(self, database: str | Path, *, policy: LatePolicy | None = None, patience: float = 30.0):
        self.policy = policy or LatePolicy()
        self._patience = patience
        self._url = _url(database)
        self._engine = _engine(self._url, patience)
        self._book = _Gradebook(self._engine)
        try:
            with self._translated():
                self._prepare()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Book":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the database."""
        self._engine.dispose()

    def add_students(self, roster: Roster) -> None:
        """Adds the students of the roster and renews their names; nobody is ever removed, for his scores would go."""
        with self._transaction():
            for student in roster.students.values():
                self._book.update_or_create_student(
                    student.id,
                    first_name=_clean(student.first_name),
                    last_name=_clean(student.last_name),
                    email=student.email or None,
                    lms_user_id=student.identities.get("canvas_id") or student.identities.get("moodle_id"),
                )

    def add_release(
        self, slug: str, notebook: NotebookNode, due: datetime | None = None, *, force: bool = False
    ) -> Change:
        """Adds an assignment, or renews it; scores of the cells that stay are kept.

        Args:
            slug: of the assignment, and the name of its only notebook.
            notebook: the released one, with nbgrader's metadata.
            due: with its time zone; None: no time.
            force: go on although scores or comments are lost, or are of other points than before.

        Raises:
            CourseError: Without `force`, naming what would be lost; then nothing was written.
        """
        if due is not None and due.utcoffset() is None:
            raise CourseError(f"release: received the due time {due.isoformat()}; rule: a time with its time zone")
        cells = _Cells.read(slug, notebook)
        with self._transaction() as session:
            self._book.update_or_create_assignment(slug, duedate=due)
            kernel = json.dumps(dict(notebook.metadata.get("kernelspec", {})))[:1024]
            stored = self._book.update_or_create_notebook(slug, slug, kernelspec=kernel)
            change = self._compare(session, stored, cells, force=force)
            self._remove(session, stored, cells)
            for name, info in cells.grades.items():
                self._book.update_or_create_grade_cell(name, slug, slug, **info)
            for name in cells.solutions:
                self._book.update_or_create_solution_cell(name, slug, slug)
            for name, info in cells.sources.items():
                self._book.update_or_create_source_cell(name, slug, slug, **info)
            session.execute(delete(_releases).where(_releases.c.notebook_id == stored.id))
            session.execute(_releases.insert().values(notebook_id=stored.id, cells=json.dumps(cells.order)))
            session.flush()
            session.expire_all()
            self._complete(session, stored, session.scalars(_submissions(slug)).all())
        return change

    def record(self, result: Result, notebook: NotebookNode, *, submitted: datetime | None = None) -> None:
        """Writes what grading one submission gave; recording it twice is recording it once.

        A test gives its `earned`, within 0 and the points of the release, and no points where the result has no such
        test. A written answer waits for a person, unless it is empty or as released: then it gives 0. A person's scores
        and comments stay; if what they were given for has changed, the person is asked again.

        Args:
            notebook: the submission, transplanted into the release; its answers are compared, never executed.
            submitted: with its time zone; None: unknown, and then nothing is late.

        Raises:
            CourseError: An unknown student or assignment, or a result of another release; nothing was written.
        """
        if submitted is not None and submitted.utcoffset() is None:
            raise CourseError(f"record: received the time {submitted.isoformat()}; rule: a time with its time zone")
        slug, student = result.assignment, result.student
        answers = {cell_name(cell): _clean(cell.source) for cell in notebook.cells}
        with self._transaction() as session:
            try:
                stored, person = self._book.find_notebook(slug, slug), self._book.find_student(student)
                with session.no_autoflush:  # nbgrader builds the submission before it adds it
                    submission = self._book.update_or_create_submission(slug, person.id, timestamp=submitted)
                self._complete(session, stored, [submission])
                mine = self._book.find_submission_notebook(slug, slug, student)
            except MissingEntry as error:
                rule = "a student of the roster and a released assignment"
                raise CourseError(f"record: received {student} for {slug} ({error}); rule: {rule}") from error
            self._record_scores(session, result, stored, mine, answers)
            self._record_flags(session, result, mine)
            mine.late_submission_penalty = self._penalty(submission, mine.grades) or None

    def set_due(self, slug: str, due: datetime | None) -> None:
        """Sets when an assignment is due, as the settings have it now; an extension of a student stays.

        Raises:
            CourseError: The assignment is not in the book.
        """
        with self._transaction():
            try:
                assignment = self._book.find_assignment(slug)
            except MissingEntry as error:
                rule = "an assignment that was released"
                raise CourseError(f"gradebook: received {slug}, which is not in it; rule: {rule}") from error
            moment = due.astimezone(UTC).replace(tzinfo=None) if due else None
            if assignment.duedate != moment:
                assignment.duedate = moment

    def settle(self, slug: str) -> None:
        """Writes the late penalties anew, after scores by hand or extensions, for nbgrader's own pages to show."""
        with self._transaction() as session:
            for submission in session.scalars(_submissions(slug)):
                for mine in submission.notebooks:
                    mine.late_submission_penalty = self._penalty(submission, mine.grades) or None

    def rows(self, slug: str) -> list[Row]:
        """What every student of the book has for the assignment, by last name; those without a submission too."""
        with self._transaction(writing=False) as session:
            try:
                stored = self._book.find_notebook(slug, slug)
            except MissingEntry as error:
                rule = "an assignment that was released"
                raise CourseError(f"gradebook: received {slug}, which is not in it; rule: {rule}") from error
            order = _order(session, stored)
            submissions = {submission.student_id: submission for submission in session.scalars(_submissions(slug))}
            return [self._row(student, submissions.get(student.id), stored, order) for student in self._book.students]

    def marks(self, slug: str) -> dict[str, dict[str, Mark]]:
        """What people decided: their points and comments, by student and name of the cell."""
        found: dict[str, dict[str, Mark]] = {}
        with self._transaction(writing=False) as session:
            for submission in session.scalars(_submissions(slug)):
                mine = [notebook for notebook in submission.notebooks if notebook.name == slug]
                said = {c.cell.name: c.manual_comment or "" for n in mine for c in n.comments}
                given = {g.cell.name: g for n in mine for g in n.grades if g.manual_score is not None}
                found[submission.student_id] = {
                    name: Mark(
                        _counts(given[name]) if name in given else None,
                        said.get(name, ""),
                        bool(name in given and given[name].needs_manual_grade),
                    )
                    for name in {*given, *(name for name, words in said.items() if words)}
                }
        return found

    # ------------------------------------------------------------------ releases

    def _compare(self, session: Session, stored: Notebook, new: "_Cells", *, force: bool) -> Change:
        """What the new release changes; an error where a person's or the judge's scores would be lost."""
        old = _Cells.stored(stored)
        scored = dict(
            session.execute(
                select(GradeCell.name, func.count(Grade.id))
                .join(Grade, Grade.cell_id == GradeCell.id)
                .where(GradeCell.notebook_id == stored.id)
                .where(Grade.auto_score.is_not(None) | Grade.manual_score.is_not(None))
                .group_by(GradeCell.name)
            ).all()
        )
        commented = dict(
            session.execute(
                select(SolutionCell.name, func.count(Comment.id))
                .join(Comment, Comment.cell_id == SolutionCell.id)
                .where(SolutionCell.notebook_id == stored.id, Comment.manual_comment.is_not(None))
                .group_by(SolutionCell.name)
            ).all()
        )
        removed = [name for name in old.grades if not new.keeps(name, old)]
        silent = [name for name in old.solutions if name not in new.solutions]
        repointed = [
            name
            for name in old.grades
            if name not in removed and old.grades[name]["max_score"] != new.grades[name]["max_score"]
        ]
        lost = [f"{name} ({scored[name]} scores)" for name in removed if name in scored]
        lost += [f"{name} ({commented[name]} comments)" for name in silent if name in commented]
        lost += [
            f"{name} (from {old.grades[name]['max_score']:g} to {new.grades[name]['max_score']:g} points, "
            f"{scored[name]} scores)"
            for name in repointed
            if name in scored
        ]
        if lost and not force:
            rule = "a release that keeps the scored cells and their points; or force it, and grade again"
            raise CourseError(f"release: received a {new.slug} in which {', '.join(lost)} would change; rule: {rule}")
        names = {*old.grades, *old.solutions}
        added = tuple(name for name in dict.fromkeys([*new.grades, *new.solutions]) if name not in names)
        return Change(added, tuple(dict.fromkeys([*removed, *silent])), tuple(repointed))

    def _remove(self, session: Session, stored: Notebook, new: "_Cells") -> None:
        """Deletes the cells that the new release has no more, with their scores and comments."""
        old = _Cells.stored(stored)
        gone = [cell for cell in stored.grade_cells if not new.keeps(cell.name, old)]
        gone += [cell for cell in stored.solution_cells if cell.name not in new.solutions]
        gone += stored.task_cells
        for cell in gone:
            grades = select(Grade.id).where(Grade.cell_id == cell.id)
            session.execute(delete(_records).where(_records.c.owner_id.in_(grades)))
            session.execute(delete(Grade).where(Grade.cell_id == cell.id))
            session.execute(delete(Comment).where(Comment.cell_id == cell.id))
            session.delete(cell)
        for source in stored.source_cells:
            if source.name not in new.sources:
                session.delete(source)
        session.flush()
        session.expire_all()

    def _complete(self, session: Session, stored: Notebook, submissions: Iterable[SubmittedAssignment]) -> None:
        """Gives each submission a grade and a comment for every cell: those that are new wait for the judge."""
        for submission in submissions:
            mine = next((mine for mine in submission.notebooks if mine.notebook_id == stored.id), None)
            if mine is None:
                mine = SubmittedNotebook(notebook=stored, assignment=submission)
                session.add(mine)
            graded, commented = {grade.cell_id for grade in mine.grades}, {c.cell_id for c in mine.comments}
            session.add_all(Grade(cell=c, notebook=mine) for c in stored.grade_cells if c.id not in graded)
            session.add_all(Comment(cell=c, notebook=mine) for c in stored.solution_cells if c.id not in commented)
        session.flush()

    # ------------------------------------------------------------------ scores

    def _record_scores(
        self, session: Session, result: Result, stored: Notebook, mine: SubmittedNotebook, answers: dict[str, str]
    ) -> None:
        tests = {test.name: test for test in result.tests}
        released = {source.name: _clean(source.source or "") for source in stored.source_cells}
        written = {cell.name for cell in stored.solution_cells} & {cell.name for cell in stored.grade_cells}
        _require_same_release(result, {c.name: c.max_score for c in stored.grade_cells if c.name not in written})
        problems = dict(_order(session, stored))
        for grade in mine.grades:
            name = grade.cell.name
            if name in written:
                answer = answers.get(name, "")
                blank = answer.strip() in ("", released.get(name, "").strip())
                _score(session, grade, 0.0 if blank else None, _digest(answer))
            else:
                points = _within(tests[name].earned if name in tests else 0.0, grade.cell.max_score)
                _score(session, grade, points, _digest(repr(points), answers.get(problems[name], "")))
        for comment in mine.comments:
            name = comment.cell.name
            blank = answers.get(name, "").strip() in ("", released.get(name, "").strip())
            if name in written:
                comment.auto_comment = NO_ANSWER if blank else None
            else:
                comment.auto_comment = _message([test for test in result.tests if test.problem == name]) or None

    def _record_flags(self, session: Session, result: Result, mine: SubmittedNotebook) -> None:
        """Raises nbgrader's flag, once for the same flags: a person may have taken it down."""
        digest = _digest(*sorted(map(str, result.flags)))
        latest, _ = _recall(session, mine.id)
        if result.flags and latest != digest:
            mine.flagged = True
        _remember(session, mine.id, digest, None)

    def _penalty(self, submission: SubmittedAssignment, grades: list[Grade]) -> float:
        earned = sum(_counts(grade) for grade in grades)
        return self.policy.penalty(earned, _due(submission), _aware(submission.timestamp))

    def _row(
        self,
        student: Student,
        submission: SubmittedAssignment | None,
        stored: Notebook,
        order: list[tuple[str, str]],
    ) -> Row:
        mine = next((m for m in submission.notebooks if m.notebook_id == stored.id), None) if submission else None
        grades = {grade.cell.name: grade for grade in mine.grades} if mine else {}
        cells = {cell.name: cell for cell in stored.grade_cells}
        names: dict[str, list[str]] = {}
        for cell, problem in order:
            names.setdefault(problem, []).append(cell)
        problems = tuple(_problem(name, [(cells[c], grades.get(c)) for c in own]) for name, own in names.items())
        person = (student.id, student.first_name or "", student.last_name or "", student.email or "")
        if submission is None or mine is None:
            return Row(*person, problems, due=_aware(stored.assignment.duedate))
        due, submitted = _due(submission), _aware(submission.timestamp)
        penalty = self._penalty(submission, mine.grades)
        late = lateness(due, submitted)
        return Row(*person, problems, True, submitted, due, late, penalty, bool(mine.flagged))

    # ------------------------------------------------------------------ the database

    def _prepare(self) -> None:
        """Makes the tables where there are none, all or nothing, and the course's own in a book that nbgrader made."""
        with self._connection(writing=True) as connection:
            present = set(inspect(connection).get_table_names())
            head = ScriptDirectory(ALEMBIC_DIR).get_current_head()
            if Grade.__tablename__ not in present:
                Base.metadata.create_all(connection)
                connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
                connection.execute(text("INSERT INTO alembic_version (version_num) VALUES (:head)"), {"head": head})
            elif "alembic_version" in present:
                version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
                if version != head:
                    received = f"{self._shown}, of version {version} of nbgrader's tables"
                    rule = f"version {head}: copy the file aside, then run `nbgrader db upgrade`"
                    raise CourseError(f"gradebook: received {received}; rule: {rule}")
            _tables.create_all(connection)
            if connection.execute(select(Course.id).where(Course.id == COURSE)).first() is None:
                connection.execute(Course.__table__.insert().values(id=COURSE))

    @contextmanager
    def _transaction(self, *, writing: bool = True) -> Iterator[Session]:
        """One transaction; what nbgrader's methods commit inside becomes final with it, or not at all."""
        with (
            self._translated(),
            self._connection(writing=writing) as connection,
            Session(connection, join_transaction_mode="create_savepoint") as session,
        ):
            self._book.db = session
            try:
                yield session
                session.commit()
            finally:
                self._book.db = None

    @contextmanager
    def _connection(self, *, writing: bool) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            connection = connection.execution_options(course_writing=writing)
            with connection.begin():
                if writing and connection.dialect.name == "postgresql":
                    connection.execute(text(f"SET LOCAL lock_timeout = '{int(self._patience * 1000)}ms'"))
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
                yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns the database's errors into one line."""
        try:
            yield
        except (SQLAlchemyError, InvalidEntry) as error:
            reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0][:200]
            if re.search(r"database is locked|lock timeout", str(error)):
                what = f"where another process has been writing for {self._patience:g} seconds"
                rule = "one writer at a time: wait for the other command, or close it"
            else:
                what, rule = f"which refused ({reason})", "a database that can be written, its server running"
            message = f"gradebook: received {self._shown}, {what}; rule: {rule}; nothing was written"
            raise CourseError(message) from error

    @property
    def _shown(self) -> str:
        return self._url.render_as_string(hide_password=True)


class _Gradebook(Gradebook):
    """nbgrader's methods on an engine of ours: its own constructor commits in pieces, and needs `alembic` on PATH."""

    def __init__(self, engine: Engine):
        self.engine, self.db, self.course_id, self.authenticator = engine, None, COURSE, None


@dataclass(frozen=True)
class _Cells:
    """The cells of a release by name, as nbgrader's tables have them; `order` is of the graded ones."""

    slug: str
    grades: Mapping[str, dict]
    solutions: tuple[str, ...]
    sources: Mapping[str, dict]
    order: list[tuple[str, str]]

    @staticmethod
    def read(slug: str, notebook: NotebookNode) -> "_Cells":
        """From a released notebook."""
        grades, solutions, sources = {}, [], {}
        for cell in notebook.cells:
            if not (utils.is_grade(cell) or utils.is_solution(cell) or utils.is_locked(cell)):
                continue
            name = cell_name(cell)
            if not 0 < len(name) <= 128 or name in sources:
                raise CourseError(f"release: received the cell {name!r} of {slug}; rule: a short name, once")
            if utils.is_grade(cell):
                points = cell.metadata.nbgrader.get("points")
                if not isinstance(points, int | float) or not math.isfinite(points) or points < 0:
                    raise CourseError(f"release: received {points} points for {name} of {slug}; rule: 0 or more")
                grades[name] = {"max_score": float(points), "cell_type": cell.cell_type}
            if utils.is_solution(cell):
                solutions.append(name)
            sources[name] = {
                "cell_type": cell.cell_type,
                "locked": utils.is_locked(cell),
                "source": _clean(cell.source),
                "checksum": utils.compute_checksum(cell),
            }
        return _Cells(slug, grades, tuple(solutions), sources, _problems(list(grades), solutions))

    @staticmethod
    def stored(notebook: Notebook) -> "_Cells":
        """From the book."""
        grades = {c.name: {"max_score": c.max_score, "cell_type": c.cell_type} for c in notebook.grade_cells}
        solutions = tuple(cell.name for cell in notebook.solution_cells)
        return _Cells(notebook.name, grades, solutions, {}, _problems(sorted(grades), solutions))

    def keeps(self, name: str, old: "_Cells") -> bool:
        """Whether a graded cell of the old release is still one, and still a test or still a written answer."""
        return name in self.grades and (name in self.solutions) == (name in old.solutions)


def _problems(grades: list[str], solutions: list[str] | tuple[str, ...]) -> list[tuple[str, str]]:
    """Each graded cell with its problem: the answer with the longest name that its own begins with."""
    pairs = []
    for name in grades:
        answers = [answer for answer in solutions if name == answer or name.startswith(f"{answer}-")]
        pairs.append((name, max(answers, key=len) if answers else re.sub(r"-(check|hidden)(-\d+)?$", "", name)))
    return pairs


def _order(session: Session, stored: Notebook) -> list[tuple[str, str]]:
    """The graded cells with their problems in the order of the notebook; by name in a book that nbgrader filled."""
    cells = session.scalar(select(_releases.c.cells).where(_releases.c.notebook_id == stored.id))
    known = _Cells.stored(stored)
    order = [(name, problem) for name, problem in json.loads(cells or "[]") if name in known.grades]
    listed = {name for name, _ in order}
    return order + [(name, problem) for name, problem in known.order if name not in listed]


def _problem(name: str, cells: list[tuple[GradeCell, Grade | None]]) -> Problem:
    grades = [grade for _, grade in cells if grade is not None]
    auto = [grade.auto_score for grade in grades if grade.auto_score is not None]
    manual = [grade.manual_score for grade in grades if grade.manual_score is not None]
    return Problem(
        name,
        points=sum(cell.max_score for cell, _ in cells),
        earned=sum(_counts(grade) for grade in grades),
        auto=sum(auto) if auto else None,
        manual=sum(manual) if manual else None,
        pending=any(grade.needs_manual_grade or not _is_number(grade.manual_score) for grade in grades),
    )


def _require_same_release(result: Result, points: dict[str, float]) -> None:
    """An error where the result was graded with other tests, or other points, than the book has."""
    for test in result.tests:
        if test.name not in points or not math.isclose(test.points, points[test.name], abs_tol=1e-9):
            have = f"{points[test.name]:g} points" if test.name in points else "no such test"
            received = f"{result.student}'s {test.name} with {test.points:g} points, where the book has {have}"
            raise CourseError(f"record: received {received}; rule: a result of the present release: grade again")


def _score(session: Session, grade: Grade, auto: float | None, digest: str) -> None:
    """Writes the judge's score beside a person's, and asks the person again if `digest` is not what he scored."""
    latest, judged = _recall(session, grade.id)
    asked = grade.needs_manual_grade
    grade.auto_score = auto
    if grade.manual_score is None:
        judged, grade.needs_manual_grade = None, auto is None
    else:
        if latest is not None and not asked:
            judged = latest  # nbgrader's page takes the question back when the person scores what it shows
        grade.needs_manual_grade = judged != digest
    _remember(session, grade.id, digest, judged)


def _recall(session: Session, owner: str) -> tuple[str | None, str | None]:
    row = session.execute(select(_records.c.latest, _records.c.judged).where(_records.c.owner_id == owner)).first()
    return (row.latest, row.judged) if row else (None, None)


def _remember(session: Session, owner: str, latest: str, judged: str | None) -> None:
    session.execute(delete(_records).where(_records.c.owner_id == owner))
    session.execute(_records.insert().values(owner_id=owner, latest=latest, judged=judged))


def _message(tests: list[Score]) -> str:
    """What the student is told about one answer: each message once, with its tests where they disagree."""
    told: dict[str, list[str]] = {}
    for test in tests:
        told.setdefault(_clean(test.message), []).append(test.name)
    if len(told) == 1:
        return next(iter(told))
    return "\n".join(f"{', '.join(names)}: {message}" for message, names in told.items())


def _counts(grade: Grade) -> float:
    """The points that count, by nbgrader's rule: a person's before the judge's, and extra credit."""
    score = grade.manual_score if grade.manual_score is not None else grade.auto_score
    if score is None:
        return 0.0
    score += grade.extra_credit or 0.0
    return score if math.isfinite(score) else 0.0


def _is_number(score: float | None) -> bool:
    return score is None or math.isfinite(score)


def _within(earned: float, points: float) -> float:
    return min(max(0.0, float(earned)), points) if math.isfinite(earned) else 0.0


def _submissions(slug: str) -> Select[tuple[SubmittedAssignment]]:
    return (
        select(SubmittedAssignment)
        .join(Assignment, Assignment.id == SubmittedAssignment.assignment_id)
        .where(Assignment.name == slug)
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()


def _clean(words: str) -> str:
    """Text that every database takes: no null characters, no halves of characters."""
    return words.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _due(submission: SubmittedAssignment) -> datetime | None:
    """With the student's extension; nbgrader's own property fails for an extension of no due time."""
    return _aware(submission.duedate) if submission.assignment.duedate is not None else None


def _aware(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time is not None else None


def _url(database: str | Path) -> URL:
    if isinstance(database, Path):
        return URL.create("sqlite", database=str(database))
    try:
        return make_url(database)
    except ArgumentError as error:
        rule = "an SQLAlchemy URL such as sqlite:///teaching/gradebook.db"
        raise CourseError(f"gradebook: received a database that is no URL; rule: {rule}") from error


def _engine(url: URL, patience: float) -> Engine:
    sqlite = url.get_backend_name() == "sqlite"
    try:
        engine = create_engine(url, connect_args={"timeout": patience} if sqlite else {})
    except (ImportError, SQLAlchemyError) as error:
        rule = "a database whose driver is installed (PostgreSQL: `pip install psycopg[binary]`)"
        name = url.render_as_string(hide_password=True)
        raise CourseError(f"gradebook: received {name} ({error}); rule: {rule}") from error
    if sqlite:
        event.listen(engine, "connect", _leave_transactions_to_us)
        event.listen(engine, "begin", _begin)
    return engine


def _leave_transactions_to_us(connection: object, _: object) -> None:
    connection.isolation_level = None  # else sqlite3 begins on its own, and too late for a savepoint


def _begin(connection: Connection) -> None:
    """A writer takes SQLite's lock at once: two that read first and write later could not wait for each other."""
    writing = connection.get_execution_options().get("course_writing", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
