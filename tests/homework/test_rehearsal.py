"""The rehearsal finds what an author got wrong, before a student does."""

import pytest

from course.homework.proving import submissions
from course.homework.rehearsing import rehearse
from course.homework.sources import load
from tests.homework import toy


def rehearsed(tmp_path, old="", new="", file="answers"):
    texts = {"assignment": toy.ASSIGNMENT, "answers": toy.ANSWERS}
    assert old in texts[file]
    texts[file] = texts[file].replace(old, new, 1)
    return rehearse(load(toy.write(tmp_path, **texts)))


def test_a_sound_homework_has_no_complaint(tmp_path):
    assert rehearsed(tmp_path) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('max("a", "b")', '"c"', "the right answer 'in another way' gets 0 of 1 points"),
        ("-scale * x", "scale * x", "the wrong answer 'the sign is turned.......' keeps 4 of 4 points"),
        ("x / scale", "-scale * x", "the wrong answer 'x is divided, not multiplied.' is told"),
        ("return scale * x", "return [].sort", "the solution gives no values"),
        ("return scale * x", "return 1 / 0", "the solution gives no values"),
    ],
)
def test_a_misjudged_answer_is_named(tmp_path, old, new, complaint):
    assert any(complaint in text for text in rehearsed(tmp_path, old, new))


def test_public_values_that_are_the_hidden_ones_are_refused(tmp_path):
    fixed = ("scaled(torch.randn(5, generator=generator))", "scaled(torch.arange(1.0, 6.0))", "assignment")
    assert any("handing them in would do" in text for text in rehearsed(tmp_path, *fixed))


def test_a_statistic_that_the_public_values_give_away_is_refused(tmp_path):
    fixed = ("mean = 4 * torch.rand((), generator=generator) + 1", "mean = torch.tensor(2.0)", "assignment")
    assert any("the law's parameters too" in text for text in rehearsed(tmp_path, *fixed))


def test_a_hidden_test_that_asks_the_same_of_everybody_is_refused(tmp_path):
    fixed = ("scaled(torch.rand(2, 3, generator=generator) + 1)", "scaled(torch.ones(2, 3))")
    assert rehearsed(tmp_path, *fixed) == [
        f"scale-it (variant {k}): scale-it-hidden: the values of another secret pass; "
        "rule: let the generator draw what is asked"
        for k in (0, 1)
    ]


def test_too_many_public_values_are_refused(tmp_path):
    large = ("torch.randn(5, generator=generator)", "torch.randn(5000, generator=generator)", "assignment")
    assert any("the public values take" in text for text in rehearsed(tmp_path, *large))


def test_every_answer_is_handed_in_once(tmp_path):
    assignment = load(toy.write(tmp_path))
    handed = [answer for answers in submissions(assignment) for answer in answers.values()]
    for problem in assignment.graded:
        for kind, known in (
            ("right", [problem.solution, *problem.also_right.values()]),
            ("wrong", problem.wrong.values()),
        ):
            sources = [answer.source for answer in handed if answer.kind == kind and answer.source in known]
            assert sorted(sources) == sorted(known)
    assert sum(answer.kind == "release" for answer in handed) == len(assignment.graded)
