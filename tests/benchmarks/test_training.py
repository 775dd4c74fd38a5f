"""Training for so many seconds, on a clock that only a step moves."""

import pytest
import torch
from torch import nn

from benchmarks import training
from companion.training import adam


class Clock:
    """Each step takes one second."""

    def __init__(self):
        self.now, self.rates = 100.0, []
        self.model = nn.Linear(1, 1)
        self.optimizer = adam(self.model, 0.1)

    def process_time(self):
        return self.now

    def loss(self, model, x):
        self.now += 1
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        return model(x).square().mean()

    def train_for(self, seconds, **options):
        batches = [torch.ones(4, 1)]
        return training.train_for(seconds, self.model, self.loss, batches, optimizer=self.optimizer, **options)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(training, "time", clock)
    return clock


def test_training_stops_when_its_seconds_are_spent(clock):
    """The rate rises for a fifth of the seconds and falls to zero; the average of the weights comes back."""
    done = clock.train_for(10, warmup=0.2)
    assert (done.steps, done.seconds) == (10, 10)
    assert clock.rates == [*sorted(clock.rates[:3]), *sorted(clock.rates[3:], reverse=True)]
    assert clock.rates[2] == 0.1
    assert clock.rates[-1] < 0.01
    assert done.model is not clock.model
    assert not done.model.training


def test_a_clock_that_has_been_started_goes_on(clock):
    """Four of ten seconds have passed before the first step: six steps are left, without a warm-up."""
    done = clock.train_for(10, start=96.0, warmup=0.2)
    assert (done.steps, done.seconds) == (6, 10)
    assert clock.rates == sorted(clock.rates, reverse=True)


def test_an_average_without_memory_is_the_last_weights(clock):
    assert torch.equal(clock.train_for(5, decay=0.0).model.weight, clock.model.weight)


def test_a_gradient_that_is_clipped_to_nothing_moves_nothing(clock):
    before = clock.model.weight.detach().clone()
    clock.train_for(5, clip=0.0)
    assert torch.equal(clock.model.weight, before)
