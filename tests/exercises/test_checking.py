"""The mechanism: what an answer returns is compared, whatever it returns."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from companion.exercises import Exercise, Verdict, check, find, topics, verdict

square = Exercise(
    inputs=lambda generator: (torch.rand(8, generator=generator),),
    right=lambda x: x**2,
    wrong={
        "the exponent is missing.": lambda x: x,
        "this is the cube.": lambda x: x**3,
        "this is not a number anywhere.": lambda x: x * torch.nan,
    },
    also_right=(lambda x: x * x,),
)


class HostileError(Exception):
    def __str__(self):
        raise RuntimeError("no text for you")


def changes_its_input(x):
    x.mul_(x)
    return x.clone()


def raises(error):
    def answer(x):
        raise error

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: x * x,
        lambda x: x.double() ** 2,
        lambda x: x.numpy() ** 2,
        lambda x: [float(value) ** 2 for value in x],
        lambda x: tuple(value**2 for value in x),
        lambda x: x.requires_grad_() ** 2,
        lambda x: (x**2).to_sparse(),
        changes_its_input,
        torch.square,
    ],
)
def test_right_values_pass_however_they_are_made(answer):
    assert square.check(answer) == Verdict(passed=True, answered=True, message="Right.")


@pytest.mark.parametrize("misconception", square.wrong)
def test_a_wrong_answer_is_told_its_misconception(misconception):
    assert square.check(square.wrong[misconception]) == Verdict(False, True, f"Not yet: {misconception}")


@pytest.mark.parametrize("answer", [None, ..., lambda x: None, lambda x: ..., lambda x: 2 * ... + x])
def test_a_blank_is_unanswered_and_not_wrong(answer):
    result = square.check(answer)
    assert not result.answered
    assert not result.passed
    assert result.message.startswith("Not answered yet")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda x: x**2 * torch.where(x == x.max(), torch.nan, 1.0), "is nan where every value is finite"),
        (lambda x: x**2 / 0, "is inf where every value is finite"),
        (lambda x: (x**2)[:, None], r"shape \[8, 1\] where \[8\] is expected"),
        (lambda x: (x**2)[:0], r"shape \[0\] where \[8\] is expected"),
        (lambda x: x > 0.5, "type bool, real numbers are expected"),
        (lambda x: x**2 * (1 + 1j), "complex numbers; expected"),
        (lambda x: "x squared", "the text 'x squared'; expected: a tensor of shape"),
        (lambda x: {"square": x**2}, "a dictionary with the keys square; expected"),
        (lambda x: object(), "an object of type object; expected"),
        (lambda x: [x, x], "2 values; expected"),
        (lambda x: torch.zeros(1).expand(10**12), "too many values"),
        (lambda x: x / 0 if x > 0 else x, "stopped with RuntimeError"),
        (lambda: 3, "stopped with TypeError"),
        (lambda x: exit(1), "stopped with SystemExit"),
        (raises(HostileError()), "stopped with HostileError"),
        (raises(RecursionError()), "stopped with RecursionError"),
        (raises(ValueError("y" * 10**6)), "stopped with ValueError: yyy"),
        (lambda x: -(x**2), "every value is -1.0000 times what it should be"),
        (lambda x: x**2 + 3, "every value is 3.0000 too large"),
        (lambda x: x.sin(), "is .*, expected 0"),
    ],
)
def test_every_other_answer_gets_a_clear_message(answer, told):
    result = square.check(answer)
    assert result.answered
    assert not result.passed
    assert len(result.message) < 500
    with pytest.raises(AssertionError, match=f"Not yet: .*{told}"):
        raise AssertionError(result.message)


def test_values_and_records_are_json_and_hold_no_code():
    for values in [
        square.record(),
        *(square.values(answer) for answer in (torch.square, None, raises(HostileError()))),
    ]:
        assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_the_three_steps_may_run_in_three_places():
    sent = json.dumps(square.values(lambda x: x, seed=7))
    key = json.dumps(square.record(seed=7))
    assert verdict(json.loads(sent), json.loads(key)).message == "Not yet: the exponent is missing."
    assert square.verdict(json.loads(sent), json.loads(key)) == verdict(json.loads(sent), json.loads(key))


def test_a_new_seed_means_new_inputs():
    assert square.record(seed=1)["right"] != square.record(seed=2)["right"]
    assert not square.verdict(square.values(torch.square, seed=1), square.record(seed=2)).passed


@pytest.mark.parametrize(
    "values",
    [
        {},
        [],
        "text",
        None,
        {"kind": "tensor"},
        {"kind": "code", "data": "import os"},
        {"kind": "tensor", "shape": [9], "data": [1.0] * 8, "dtype": "float32"},
        {"kind": "tensor", "shape": [-8], "data": [1.0] * 8, "dtype": "float32"},
        {"kind": "tensor", "shape": [0] + [100_000] * 15, "data": [], "dtype": "float32"},
        {"kind": "tensor", "shape": [8], "data": ["one"] * 8, "dtype": "float32"},
        {"kind": "map", "data": 3},
    ],
)
def test_forged_values_are_refused(values):
    result = verdict(values, square.record())
    assert not result.passed
    assert "could not be read" in result.message


def test_deeply_forged_values_are_refused():
    values = {"kind": "unanswered"}
    for _ in range(100):
        values = {"kind": "list", "data": [values]}
    assert "could not be read" in verdict(values, square.record()).message


def test_an_answer_cannot_pass_by_failing_like_the_key():
    """A right answer that raises (a bug of ours) must not be equal to any exception of a student."""
    broken = Exercise(right=raises(ValueError("x")), inputs=lambda generator: (1,), wrong={})
    assert not broken.check(raises(ValueError("x"))).passed


def test_several_functions_answer_one_exercise():
    pair = Exercise(
        inputs=lambda generator: (torch.rand(5, generator=generator),),
        right=(lambda x: x + 1, lambda x: x - 1),
        wrong={"the second is not the inverse of the first.": (lambda x: x + 1, lambda x: x + 1)},
        apply=lambda answers, x: {"there": answers[0](x), "and back": answers[1](answers[0](x))},
    )
    assert pair.check(pair.right).passed
    assert pair.check((lambda x: 1 + x, lambda x: x + 1)).message.endswith("not the inverse of the first.")
    assert not pair.check((lambda x: ..., lambda x: x - 1)).answered
    assert "in 'and back', every value is 1.0000 too large" in pair.check((lambda x: x + 1, lambda x: x)).message


def test_an_answer_may_be_a_value():
    choice = Exercise(right="b", wrong={"a negative density gives it away.": "a"})
    assert choice.check("b").passed
    assert choice.check("a").message == "Not yet: a negative density gives it away."
    assert choice.check("z").message == "Not yet: 'z' is not the answer."
    assert not choice.check(...).answered
    number = Exercise(right=torch.tensor(2.5), wrong={})
    for same in (2.5, np.float32(2.5), torch.tensor(2.5, dtype=torch.float64)):
        assert number.check(same).passed


def test_an_answer_may_have_parts_and_the_wrong_one_is_named():
    parts = Exercise(right={"name": "x", "list": [torch.ones(3), torch.zeros(2)]}, wrong={})
    assert parts.check({"name": "x", "list": (torch.ones(3), torch.zeros(2))}).passed
    assert "in 'list', in part 1" in parts.check({"name": "x", "list": [torch.ones(3), torch.ones(2)]}).message
    assert (
        "in 'name', 'y' is not the answer"
        in parts.check({"name": "y", "list": [torch.ones(3), torch.zeros(2)]}).message
    )


def test_a_sampler_is_judged_by_a_statistic_with_a_stated_false_alarm_rate():
    """Mean of 4,000 exponentials: standard error 0.0158, tolerance 4 of them, refused 6e-5 of the time."""
    sampler = Exercise(
        inputs=lambda generator: (4_000, generator),
        right=lambda n, generator: -torch.rand(n, generator=generator).log(),
        also_right=(lambda n, generator: torch.empty(n).exponential_(generator=generator),),
        wrong={"this is a uniform number.": lambda n, generator: torch.rand(n, generator=generator)},
        statistic=lambda samples, n, generator: samples.mean(),
        atol=0.064,
        rtol=0.0,
        false_alarm=6e-5,
    )
    assert all(sampler.check(sampler.also_right[0], seed).passed for seed in range(50))
    assert sampler.check(lambda n, generator: torch.rand(n, generator=generator)).message.endswith("uniform number.")
    assert "probability 6e-05" in sampler.check(lambda n, generator: torch.zeros(n)).message
    assert not sampler.check(lambda n, generator: ...).answered
    assert "at most" in sampler.check(lambda n, generator: torch.zeros(1).expand(10**12)).message


def test_a_statistic_without_its_false_alarm_rate_is_refused():
    with pytest.raises(ValueError, match="states its false-alarm rate"):
        Exercise(right=torch.rand, statistic=torch.mean)


def test_an_answer_that_draws_its_own_noise_is_repeatable_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    assert square.values(torch.rand_like) == square.values(torch.rand_like)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_numbers_that_differ_late_are_shown_with_more_digits():
    shown = replace(square, atol=0, rtol=1e-6).check(lambda x: x**2 + 1e-5 * torch.eye(8)[0]).message
    got, expected = re.search(r"is (\d+\.\d+), expected (\d+\.\d+)", shown).groups()
    assert got != expected
    assert float(got) - float(expected) == pytest.approx(1e-5, rel=0.1)


def test_numbers_of_numpy_without_dimensions_are_numbers():
    two = Exercise(inputs=lambda generator: (torch.rand(2, generator=generator),), right=lambda x: [x[0], x[1]])
    for answer in (lambda x: tuple(x.numpy()), lambda x: [np.asarray(x[0]), np.asarray(x[1])], lambda x: x):
        assert verdict(two.values(answer), two.record()).passed


def test_check_prints_the_verdict(capsys):
    name = next(iter(_first_topic()))
    assert check(name, None) is None
    assert capsys.readouterr().out == "Not answered yet. Replace the ... and run this cell again.\n"


def test_an_unknown_name_is_told_the_nearest():
    name = next(iter(_first_topic()))
    with pytest.raises(ValueError, match=f"received the name '{name}x'.*did you mean '{name}'"):
        check(name + "x", None)
    with pytest.raises(ValueError, match="received no answer"):
        check(name)


def _first_topic():
    import importlib

    return importlib.import_module(f"companion.exercises.{topics()[0]}").EXERCISES


def test_find_returns_the_exercise_itself():
    exercises = _first_topic()
    for name, exercise in exercises.items():
        assert find(name) is exercise
