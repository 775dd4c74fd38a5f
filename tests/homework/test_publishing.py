"""What launch buttons open: the course without a graded solution, a hidden test or a hidden input."""

import shutil
import subprocess

import pytest

from course.chapters import Course, CourseError, find_course
from course.files import contents
from course.homework.publishing import publish, tracked
from course.homework.sources import load, slugs
from tests.homework import toy

ROOT = find_course().root


@pytest.fixture
def checkout(tmp_path):
    """A small git checkout with one homework."""
    root = tmp_path / "checkout"
    toy.write(root / "homework")
    for name in ("README.md", "notebooks/01-toys.md", "tests/test_a.py", ".github/workflows/ci.yml", ".ci/run"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    subprocess.run(["git", "add", "--all"], cwd=root, check=True)
    (root / "untracked.txt").write_text("mine")
    return Course(root)


def test_students_get_the_course_and_editions_instead_of_sources(checkout, tmp_path):
    changed = publish(checkout, checkout.root / "homework", tmp_path / "out")
    assert (
        sorted(contents(tmp_path / "out"))
        == sorted(changed)
        == [
            ".student-edition",
            "README.md",
            "homework/01-toys/01-toys.checks.json",
            "homework/01-toys/01-toys.ipynb",
            "notebooks/01-toys.md",
        ]
    )


def test_publishing_again_replaces_the_edition_and_nothing_else(checkout, tmp_path):
    target = tmp_path / "out"
    publish(checkout, checkout.root / "homework", target)
    assert publish(checkout, checkout.root / "homework", target) == []
    shutil.rmtree(checkout.root / "notebooks")
    assert publish(checkout, checkout.root / "homework", target) == ["notebooks/01-toys.md"]


def test_a_folder_that_is_someones_is_refused(checkout, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    for target in (tmp_path / "mine", checkout.root, checkout.root.parent, checkout.root / "homework"):
        with pytest.raises(CourseError, match="homework publish: received"):
            publish(checkout, checkout.root / "homework", target)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"


def test_outside_git_there_is_one_message(tmp_path):
    with pytest.raises(CourseError, match="rule: a git checkout"):
        tracked(tmp_path)


@pytest.mark.parametrize("slug", slugs(ROOT / "homework"))
def test_no_solution_of_this_course_is_in_its_student_edition(slug):
    from course.homework.editions import edition

    assignment = load(ROOT / "homework" / slug)
    handed_out = "\n".join(cell.source for cell in edition(assignment).notebook.cells)
    for problem in assignment.graded:
        bodies = [problem.solution, *problem.also_right.values(), *(t.source for t in problem.tests if t.hidden)]
        assert [body for body in bodies if body.strip() in handed_out] == []
    for problem in assignment.problems:
        if problem.written:
            assert problem.solution not in handed_out
            assert problem.rubric not in handed_out
