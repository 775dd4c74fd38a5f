"""`course homework`, as an instructor and a student call it: from the first release to exported scores and pages."""

import csv
import io
import json
import subprocess
import sys

import pytest

from course.cli import build_parser, main
from course.files import contents
from course.homework import returning, review
from course.homework.editions import blank
from course.homework.gradebook import Book
from course.homework.proving import Answer, filled
from course.homework.sandbox import refusal
from course.homework.sources import load
from tests.homework import toy

sandboxed = pytest.mark.skipif(refusal() is not None, reason=str(refusal()))
SUBCOMMANDS = (
    "get",
    "check",
    "release",
    "collect",
    "grade",
    "regrade",
    "review",
    "feedback",
    "export",
    "publish",
    "status",
    "prove",
)
ROSTER = (
    "student,first_name,last_name,email,canvas_id,moodle_id,submitted:01-toys\n"
    'ada,Ada,"King, Countess",ada@example.org,11,21,2027-01-01T10:00:00Z\n'
    "bob,Bob,=1+1,bob@example.org,12,22,2027-01-03T09:00:00Z\n"
    "cyd,Cyd,Öz,cyd@example.org,13,23,\n"
)
DUE = '[due]\n"01-toys" = 2027-01-01T12:00:00Z\n[late]\npercent_per_day = 10\n'
SOLVED = {
    "scale-it": "def scaled(x):\n    return scale * x",
    "draw-it": "def draw(mean, n, generator):\n    return mean + torch.randn(n, generator=generator)",
    "choose": 'choice = "b"',
    "explain": "Because *it is so*. <script>alert(1)</script>",
}


def call(*arguments):
    return main(["homework", *arguments])


@pytest.fixture
def teaching(folder, monkeypatch):
    """A folder with a roster and a due date, as `--folder` finds it."""
    folder.root.mkdir()
    folder.roster.write_text(ROSTER, encoding="utf-8")
    (folder.root / "homework.toml").write_text(DUE, encoding="utf-8")
    monkeypatch.setenv("COURSE_TEACHING", str(folder.root))
    return folder


def hand_in(folder, student, answers, variant=0):
    place = folder.inbox(toy.SLUG) / student
    place.mkdir(parents=True, exist_ok=True)
    chosen = {name: Answer("", "", source) for name, source in answers.items()}
    (place / "01-toys.ipynb").write_text(filled(blank(load(folder.source(toy.SLUG)), variant), chosen))


def exported(folder):
    """The rows of the general export, by student."""
    text = (folder.exports / "01-toys.csv").read_text("utf-8-sig")
    return {row["student"]: row for row in csv.DictReader(io.StringIO(text))}


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["homework", name, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out) > 100


def test_the_list_of_subcommands_is_complete(capsys):
    assert call() == 0
    listed = capsys.readouterr().out
    assert [name for name in SUBCOMMANDS if f"    {name} " not in listed] == []


@pytest.mark.parametrize("name", ["submissions", "grading", "gradebook", "exports", "releasing"])
def test_what_commands_wait_for_at_the_start_is_small(name):
    """Neither torch nor a grammar of addresses (jsonschema's), each of which takes longer than all the rest."""
    source = f"import sys, course.homework.{name}; print({{'torch', 'lark'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@sandboxed
def test_from_the_first_release_to_pages_and_scores(teaching, monkeypatch, capsys):
    from nbgrader.api import Gradebook

    assert call("release", "1", "--same-for-all") == 0
    hand_in(teaching, "ada", SOLVED)
    hand_in(teaching, "bob", SOLVED | {"draw-it": "import os\nos._exit(0)", "explain": ""})
    hand_in(teaching, "eve", SOLVED)
    assert call("collect", "1") == 1  # eve is not in the roster
    assert "2 new, 1 set aside" in capsys.readouterr().out
    assert call("grade", "1", "--workers", "1") == 0
    assert "2 graded" in capsys.readouterr().out

    assert call("grade", "1") == 0
    assert "2 submissions, 0 to grade" in capsys.readouterr().out
    assert call("export", "1") == 2  # ada's written answer waits
    assert "ada" in capsys.readouterr().err
    assert call("export", "1", "--partial") == 0
    rows = exported(teaching)
    assert {student: row["state"] for student, row in rows.items()} == {
        "ada": "to be scored by hand",
        "bob": "scored",
        "cyd": "missing",
    }
    assert float(rows["bob"]["earned"]) == 4
    assert float(rows["bob"]["total"]) == pytest.approx(4 * 0.8)  # two days late at 10 per cent
    assert float(rows["ada"]["earned"]) == 8

    capsys.readouterr()
    for system, name in (("canvas", "-canvas.csv"), ("moodle", "-moodle.csv"), ("gradescope", "-gradescope.zip")):
        assert call("export", "1", "--to", system, "--partial") == 1  # ada waits, and is left out by name
        assert "left out: ada" in capsys.readouterr().err
        assert (teaching.exports / f"01-toys{name}").stat().st_size > 0
    later = DUE.replace("2027-01-01T12", "2027-01-02T12")
    (teaching.root / "homework.toml").write_text(later, encoding="utf-8")
    assert call("export", "1", "--partial") == 0
    assert float(exported(teaching)["bob"]["total"]) == pytest.approx(4 * 0.9)  # of what was set last
    monkeypatch.setattr(review, "start", lambda *arguments, **options: None)
    assert call("review") == 0
    with Gradebook(teaching.database) as page:  # and so it stands on nbgrader's page
        assert page.find_submission(toy.SLUG, "bob").late_submission_penalty == pytest.approx(4 * 0.1)
    (teaching.root / "homework.toml").write_text(DUE, encoding="utf-8")

    capsys.readouterr()
    assert call("status") == 0
    said = capsys.readouterr().out
    assert "3 students, 2 collected, 2 graded, 1 wait for a person" in said
    assert "bob: kernel lost in draw-it" in said
    assert "    set aside: eve: rename each to its student's id" in said

    assert call("feedback", "1") == 0
    page = teaching.feedback("ada", toy.SLUG).read_text(encoding="utf-8")
    assert "King, Countess" in page
    assert "<script>alert" not in page
    before = contents(teaching.root / "feedback")
    assert set(before) == {"ada/01-toys.html", "bob/01-toys.html", "cyd/01-toys.html"}
    assert call("feedback", "1") == 0
    assert "wrote 0 pages" in capsys.readouterr().out
    assert contents(teaching.root / "feedback") == before


@sandboxed
def test_what_one_submission_makes_impossible_costs_no_other(teaching, monkeypatch, capsys):
    assert call("release", "1", "--same-for-all") == 0
    for student in ("ada", "bob"):
        hand_in(teaching, student, SOLVED)
    assert call("collect", "1") == 0

    def fails_for_ada(function, student):
        def failing(*arguments, **options):
            if student(*arguments, **options) == "ada":
                raise OverflowError("out of range \x1b[2J")
            return function(*arguments, **options)

        return failing

    with monkeypatch.context() as patched:
        patched.setattr(Book, "record", fails_for_ada(Book.record, lambda book, result, *_, **__: result.student))
        assert call("grade", "1", "--workers", "1") == 1
    said = capsys.readouterr()
    assert "the result could not be kept: OverflowError: out of range" in said.out
    assert "\x1b[2J" not in said.out
    assert "1 NOT graded" in said.err
    assert call("grade", "1", "--workers", "1") == 0
    assert "2 submissions, 1 to grade" in capsys.readouterr().out
    assert call("export", "1", "--partial") == 0
    assert exported(teaching)["ada"]["state"] == "to be scored by hand"

    with monkeypatch.context() as patched:
        shown = fails_for_ada(returning.render, lambda result, *_, **__: result and result.student)
        patched.setattr(returning, "render", shown)
        assert call("feedback", "1") == 1
    said = capsys.readouterr()
    assert "wrote 2 pages" in said.out
    assert "no page for ada: OverflowError: out of range" in said.err


@sandboxed
def test_a_score_by_hand_survives_a_regrade(teaching, capsys):
    from nbgrader.api import Gradebook

    assert call("release", "1", "--same-for-all") == 0
    hand_in(teaching, "ada", SOLVED)
    assert call("collect", "1") == 0
    assert call("grade", "1", "--workers", "1") == 0
    with Gradebook(teaching.database) as book:
        grade = book.find_grade("explain", toy.SLUG, toy.SLUG, "ada")
        grade.manual_score, grade.needs_manual_grade = 1.5, False
        book.find_comment("explain", toy.SLUG, toy.SLUG, "ada").manual_comment = "Nearly."
        book.db.commit()
    assert call("regrade", "1", "--workers", "1") == 0
    assert "1 to grade" in capsys.readouterr().out
    assert call("export", "1") == 0
    assert float(exported(teaching)["ada"]["total"]) == 9.5
    assert call("feedback", "1", "--student", "ada") == 0
    assert "Nearly." in teaching.feedback("ada", toy.SLUG).read_text(encoding="utf-8")


def test_dry_runs_write_nothing(teaching, capsys):
    before = contents(teaching.root)
    assert call("release", "1", "--dry-run") == 0
    assert "01-toys: hand out personal/01-toys/STUDENT.zip\n" in capsys.readouterr().out
    assert contents(teaching.root) == before
    assert call("release", "1", "--same-for-all") == 0
    assert "01-toys: hand out release/01-toys.zip\n" in capsys.readouterr().out
    hand_in(teaching, "ada", SOLVED)
    before = contents(teaching.root)
    assert call("collect", "1", "--dry-run") == 0
    assert contents(teaching.root) == before
    assert call("collect", "1") == 0
    before = contents(teaching.root)
    assert call("grade", "1", "--dry-run") == 0
    assert "1 to grade" in capsys.readouterr().out
    assert call("feedback", "1", "--dry-run") == 0
    assert call("export", "1", "--dry-run", "--partial") == 0
    assert contents(teaching.root) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("collect", "1"), "nothing is released in"),
        (("grade", "1"), "nothing is released in"),
        (("release", "7"), "rule: a number, a slug or a prefix"),
        (("check", "1"), "`course homework get` brings one"),
        (("get", "1", "--from", "nowhere.zip"), "no zip archive or folder"),
    ],
)
def test_a_mistake_in_the_call_is_one_message(teaching, monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.setenv("COURSE_WORKSPACE", str(tmp_path / "my-course"))
    assert call(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_student_gets_checks_and_packs(teaching, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COURSE_WORKSPACE", str(tmp_path / "my-course"))
    assert call("get", "1") == 0
    assert call("check", "1") == 1  # nothing is answered
    said = capsys.readouterr().out
    assert "scale-it  Not answered yet" in said
    assert (tmp_path / "my-course/homework/01-toys/01-toys-submission.zip").is_file()


@sandboxed
def test_prove_writes_what_it_counted(teaching, capsys):
    assert call("prove", "1", "--workers", "1") == 0
    proof = json.loads((teaching.sources / "proof.json").read_text(encoding="utf-8"))["01-toys"]
    assert proof == {"wrong": 18, "killed": 18, "right": 6, "right_full": 6, "release_score": 0.0, "survivors": []}
    assert call("prove", "--rehearse") == 0
    toy.write(teaching.sources, answers=toy.ANSWERS.replace("-scale * x", "scale * x"))
    assert call("prove", "1", "--workers", "1") == 1
    assert "survivor: scale-it, wrong 'the sign is turned.......': 4 of 4 points" in capsys.readouterr().out
