"""The proof that the grader teaches, for every homework of the course: a mutation score of 100 per cent."""

import pytest

from course.chapters import find_course
from course.homework.proving import Proof, prove
from course.homework.sandbox import refusal
from course.homework.sources import LEAST_RIGHT, LEAST_WRONG, load, slugs
from tests.homework import toy

COURSE = find_course()
SOURCES = COURSE.root / "homework"
HOMEWORK = slugs(SOURCES)

sandboxed = pytest.mark.skipif(refusal() is not None, reason=str(refusal()))


def test_every_finished_chapter_has_its_homework():
    assert [chapter.slug for chapter in COURSE.chapters() if chapter.notebook.is_file()] == HOMEWORK


@pytest.mark.parametrize("slug", HOMEWORK)
def test_a_homework_has_what_the_course_promises(slug):
    assignment = load(SOURCES / slug)
    assert 4 <= len(assignment.problems) <= 6
    assert any(problem.mistakes for problem in assignment.graded)
    assert any(problem.written for problem in assignment.problems)
    assert any(test.settings.get("false_alarm") for problem in assignment.graded for test in problem.tests)
    assert len(assignment.variants) >= 3


@pytest.fixture(scope="module")
def proofs():
    return prove([load(SOURCES / slug) for slug in HOMEWORK], workers=2)


@sandboxed
@pytest.mark.parametrize("slug", HOMEWORK)
def test_every_wrong_answer_loses_its_points_and_is_told_why(proofs, slug):
    proof, assignment = proofs[slug], load(SOURCES / slug)
    assert proof.survivors == []
    assert proof.killed == proof.wrong >= LEAST_WRONG * len(assignment.graded)
    assert proof.right_full == proof.right >= LEAST_RIGHT * len(assignment.graded)
    assert proof.release_score == 0


@sandboxed
def test_the_proof_names_what_survives(tmp_path):
    blind = toy.ASSIGNMENT.replace("scaled(torch.randn(5, generator=generator))", "scaled(torch.randn(5)).numel()")
    proof = prove([load(toy.write(tmp_path, assignment=blind))])[toy.SLUG]
    assert proof.killed < proof.wrong
    assert any(text.startswith("scale-it, wrong") for text in proof.survivors)
    assert not proof.perfect


def test_a_proof_says_its_counts_and_survivors():
    proof = Proof(wrong=7, killed=6, right=2, right_full=2, survivors=["a: b"])
    assert str(proof).startswith("6 of 7 wrong answers lose their points")
    assert str(proof).endswith("survivor: a: b")
    assert not proof.perfect
    assert proof.summary() == {
        "wrong": 7,
        "killed": 6,
        "right": 2,
        "right_full": 2,
        "release_score": 0.0,
        "survivors": ["a: b"],
    }
