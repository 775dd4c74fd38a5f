"""The checklist on a healthy model and on models with a planted bug: each bug is found by the question it is for."""

import functools
from dataclasses import dataclass

import pytest
import torch

from companion.data import draws, eight_gaussians, standard_normal, two_moons
from companion.device import generator, rand, seeded
from companion.diagnostics import (
    field_norms,
    loss_per_example,
    noise_response,
    overfit,
    time_dependence,
    trajectories,
)
from companion.nn import VelocityMLP
from companion.numerics.paths import CondOT
from companion.training import adam, fit, warmup_cosine

NOISE, DATA = standard_normal(2), two_moons()
BUGS = ("healthy", "ignores t", "wrong sign", "shuffled noise", "exploding field")


def pair(x_0, x_1, t):
    """Points of straight paths, and their velocities."""
    t = t.reshape(-1, 1)
    return (1 - t) * x_0 + t * x_1, x_1 - x_0


@dataclass
class Patient:
    """A model trained with one bug, and what the checks need."""

    bug: str

    def __post_init__(self):
        self.source = generator(0)
        with seeded(self.source):
            self.model = VelocityMLP(2)
        optimizer = adam(self.model, 3e-3)
        schedule = warmup_cosine(optimizer, warmup=50, steps=800)
        for _ in fit(self.model, self.loss, self.batches(256), steps=800, optimizer=optimizer, schedule=schedule):
            pass
        self.x_0, self.x_1 = NOISE.sample(1_000, generator=self.source), DATA.sample(1_000, generator=self.source)

    def batches(self, size):
        for x_0, x_1 in draws(NOISE, DATA, size=size, generator=self.source):
            yield x_0, x_1, rand(size, generator=self.source)

    def loss(self, model, batch):
        x_t, target = pair(*batch)
        x_0, x_1, t = batch
        if self.bug == "wrong sign":
            target = -target
        if self.bug == "shuffled noise":  # the noise in the target is not the noise in x_t
            target = x_1 - x_0[torch.randperm(len(x_0), generator=self.source)]
        if self.bug == "ignores t":
            t = torch.zeros_like(t)
        return (model(t, x_t) - target).square().sum(dim=1).mean()

    def __call__(self, t, x):
        if self.bug == "ignores t":
            t = torch.zeros_like(t)
        v = self.model(t, x)
        return v * (1 + 30 * t.reshape(-1, 1) ** 4) if self.bug == "exploding field" else v

    def examples(self):
        """Losses of single examples, and their times."""
        t = rand(1_000, generator=self.source)
        x_t, target = pair(self.x_0, self.x_1, t)
        return (self(t, x_t) - target).square().sum(dim=1), t

    def findings(self):
        """The whole checklist."""
        (batch,) = (batch for batch, _ in zip(self.batches(64), range(1), strict=False))
        return {
            "overfit one": overfit(self.model, self.loss, tuple(part[:1] for part in batch)),
            "overfit": overfit(self.model, self.loss, batch),
            "time_dependence": time_dependence(self, self.x_1, generator=self.source),
            "field_norms": field_norms(self, lambda t: pair(self.x_0, self.x_1, t)),
            "loss_per_example": loss_per_example(*self.examples()),
            "noise_response": noise_response(self, self.x_0, generator=self.source),
            "trajectories": trajectories(self, self.x_0, self.x_1),
        }


@functools.cache
def findings(bug):
    return Patient(bug).findings()


def alarms(bug):
    return {name for name, finding in findings(bug).items() if not finding.ok}


def test_a_healthy_model_passes_every_check():
    assert alarms("healthy") == set()


@pytest.mark.parametrize(
    ("bug", "found_by"),
    [
        ("ignores t", {"time_dependence"}),
        ("wrong sign", {"field_norms", "trajectories"}),
        ("shuffled noise", {"overfit", "trajectories"}),
        ("exploding field", {"field_norms", "loss_per_example", "trajectories"}),
    ],
)
def test_a_planted_bug_is_found_by_the_questions_it_is_for(bug, found_by):
    assert found_by <= alarms(bug)


def test_a_field_that_ignores_time_changes_by_nothing():
    assert findings("ignores t")["time_dependence"].change == 0


def test_the_sign_shows_in_the_alignment():
    assert max(findings("wrong sign")["field_norms"].alignment) < 0 < min(findings("healthy")["field_norms"].alignment)


def test_a_field_may_be_small_where_its_targets_cancel():
    """The exact field of a ring: half-way opposite heaps pull each other's arrows down to less than a fifth."""
    ring, path = eight_gaussians(scale=2.5, std=0.3), CondOT()
    x_1, x_0 = ring.sample(4_000, generator=generator(0)), NOISE.sample(4_000, generator=generator(1))

    def asked(scale):
        return field_norms(
            lambda t, x: scale * ring.marginal_velocity(path, t, x), lambda t: pair(x_0, x_1, t), times=(0.2, 0.5, 0.9)
        )

    healthy = asked(1.0)
    assert min(a / b for a, b in zip(healthy.field, healthy.target, strict=True)) < 0.2
    assert healthy.ok
    assert not asked(0.1).ok


def test_the_time_at_which_a_field_explodes_is_named():
    by_time = findings("exploding field")["loss_per_example"].by_time
    assert by_time[-1] == max(by_time) > 10 * by_time[0]


def test_a_sharp_field_is_found_by_small_noise():
    """tanh(500 x) climbs with slope 500 at the origin: some of 2,000 points near it see that."""
    x = 0.005 * torch.randn(2_000, 1, generator=generator(0), dtype=torch.float64)
    sharp = noise_response(lambda t, x: torch.tanh(500 * x), x, generator=generator(1), noise=1e-4)
    smooth = noise_response(lambda t, x: torch.tanh(2 * x), x, generator=generator(1), noise=1e-4)
    assert not sharp.ok
    assert sharp.largest == pytest.approx(500, rel=0.02)
    assert smooth.ok
    assert smooth.largest == pytest.approx(2, rel=0.02)


def test_unrelated_fields_at_two_times_count_as_full_change():
    """sin(1000 t) at two times is nearly independent: the change is near its value 1 (five standard errors)."""
    x = torch.zeros(4_000, 1)
    change = time_dependence(lambda t, x: torch.sin(1_000 * t)[:, None] + x, x, generator=generator(0)).change
    assert change == pytest.approx(1, abs=0.08)


def test_a_zero_field_is_found():
    result = time_dependence(lambda t, x: 0 * x, torch.ones(5, 2), generator=generator(0))
    assert (result.ok, result.change) == (False, 0)


def test_a_few_bad_rows_are_named():
    losses = torch.ones(1_000)
    losses[[17, 3]] = torch.tensor([500.0, 400.0])
    result = loss_per_example(losses, torch.linspace(0, 1, 1_000), show=2)
    assert not result.ok
    assert result.worst_rows == (17, 3)
    assert result.median == 1


def test_straight_lines_to_the_data_are_straight_and_arrive():
    x_0 = torch.randn(500, 2, generator=generator(0))
    result = trajectories(lambda t, x: torch.ones_like(x), x_0, x_0 + 1)
    assert (result.mean_error, result.spread, result.directness) == pytest.approx((0, 1, 1), abs=1e-4)


def test_half_a_circle_is_as_straight_as_its_diameter():
    """A rotation by π: the way is 2r and the path πr long."""
    turn = torch.pi * torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    x_0 = torch.randn(50, 2, generator=generator(0), dtype=torch.float64)
    result = trajectories(lambda t, x: x @ turn.to(x), x_0, -x_0, steps=2_000)
    assert result.directness == pytest.approx(2 / torch.pi, rel=1e-2)


def test_overfitting_leaves_the_model_alone():
    patient = Patient("healthy")
    before = [weight.clone() for weight in patient.model.parameters()]
    overfit(patient.model, patient.loss, next(patient.batches(4)), steps=3)
    assert all(torch.equal(a, b) for a, b in zip(before, patient.model.parameters(), strict=True))


@pytest.mark.parametrize("bug", BUGS)
def test_a_finding_reads_as_a_verdict_with_numbers_and_advice(bug):
    for finding in findings(bug).values():
        text = str(finding)
        assert text.startswith("ok: " if finding.ok else "LOOK: ")
        assert finding.question in text
        assert (finding.advice in text) == (not finding.ok)
        assert any(character.isdigit() for character in text)


def test_averaged_losses_are_refused():
    with pytest.raises(ValueError, match="do not average the loss before"):
        loss_per_example(torch.tensor(1.0), torch.rand(5))
