"""Every exercise of every topic: right passes, each wrong answer is told its own misconception, blanks are blanks."""

import importlib
import json
import re
from collections import Counter
from functools import cache

import pytest
import torch

from companion.exercises import topics

ALL = [
    (topic, name, exercise)
    for topic in topics()
    for name, exercise in importlib.import_module(f"companion.exercises.{topic}").EXERCISES.items()
]
SEEDS = range(5)


@cache
def record_of(number, seed):
    return ALL[number][2].record(seed)


def record(exercise, seed):
    """Once for each exercise and seed: the key does not depend on the answer."""
    return record_of(next(i for i, (_, _, other) in enumerate(ALL) if other is exercise), seed)


def judged(exercise, answer, seed=0):
    return exercise.verdict(exercise.values(answer, seed), record(exercise, seed))


@pytest.fixture(params=ALL, ids=[f"{topic}-{name}" for topic, name, _ in ALL])
def exercise(request):
    return request.param[2]


def test_names_are_unique_and_made_for_cells():
    names = Counter(name for _, name, _ in ALL)
    assert max(names.values()) == 1
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)


def test_each_topic_has_at_least_five_exercises():
    assert min(Counter(topic for topic, _, _ in ALL).values()) >= 5


def test_the_catalogue_has_at_least_four_misconceptions_each_a_sentence(exercise):
    assert len(exercise.wrong) >= 4
    assert len(exercise.also_right) >= 1
    for text in exercise.wrong:
        assert text.endswith((".", "?", ".)"))
        assert len(text) > 15
        assert not text.startswith("Not yet")


def test_the_right_answer_passes_for_every_seed(exercise):
    for seed in SEEDS:
        assert judged(exercise, exercise.right, seed).message == "Right."


def test_right_answers_written_differently_pass(exercise):
    for seed in SEEDS:
        for answer in exercise.also_right:
            assert judged(exercise, answer, seed).message == "Right."


def test_each_wrong_answer_is_told_its_own_misconception(exercise):
    for seed in SEEDS:
        for misconception, answer in exercise.wrong.items():
            assert judged(exercise, answer, seed).message == f"Not yet: {misconception}"


def test_no_entry_of_the_catalogue_is_an_error(exercise):
    key = record(exercise, 0)
    for values in (key["right"], *key["wrong"].values()):
        assert values["kind"] in ("tensor", "map", "list", "text")


def test_a_record_is_small_json(exercise):
    text = json.dumps(record(exercise, 0), allow_nan=False)
    assert len(text) < 200_000
    assert exercise.verdict(exercise.values(exercise.right), json.loads(text)).passed


def test_blanks_are_unanswered(exercise):
    count = len(exercise.right) if isinstance(exercise.right, tuple) else 1
    for blank in (None, ..., lambda *inputs: None, lambda *inputs: ...):
        answer = blank if count == 1 else (blank,) * count
        assert not judged(exercise, answer).answered


@pytest.mark.parametrize(
    "hostile",
    [
        lambda *inputs: torch.full((3,), torch.nan),
        lambda *inputs: torch.full((), torch.inf),
        lambda *inputs: torch.zeros(2, 3, 5, 7),
        lambda *inputs: "text",
        lambda *inputs: torch.zeros(4, dtype=torch.complex64),
        lambda *inputs: torch.zeros(1).expand(10**12),
        lambda *inputs: {},
        lambda *inputs: object(),
        lambda *inputs: 1 / 0,
        lambda: 0,
        3.25e7,
        "zzz",
        object(),
    ],
)
def test_hostile_answers_are_refused_with_a_message(exercise, hostile):
    count = len(exercise.right) if isinstance(exercise.right, tuple) else 1
    result = judged(exercise, hostile if count == 1 else (hostile,) * count)
    assert result.answered
    assert not result.passed
    assert result.message.startswith("Not yet: ")
    assert 15 < len(result.message) < 700
