"""Metrics on samples whose distances are known in closed form, and the judge of digits."""

import math

import pytest
import torch

from companion import metrics
from companion.data import digits, eight_gaussians, two_moons
from companion.device import generator, randn
from companion.metrics import (
    DigitJudge,
    copying,
    energy_distance,
    frechet_distance,
    normalized_path_energy,
    path_energy,
    precision_recall,
    wasserstein2,
)
from companion.numerics.ode import RungeKutta4

DOUBLE = torch.float64


@pytest.fixture(scope="module")
def judge():
    return DigitJudge(0)


def test_a_shift_costs_its_length():
    """Translating a sample is optimal transport: W₂ is the length of the shift."""
    x = randn(200, 2, generator=generator(0), dtype=DOUBLE)
    assert wasserstein2(x, x + torch.tensor([3.0, 4.0])) == pytest.approx(5)


def test_scaling_a_sample_costs_its_spread():
    """x ↦ a x is the gradient of a convex function, so it is optimal: W₂ = |a − 1| (mean of |x|²)^½."""
    x = randn(200, 3, generator=generator(0), dtype=DOUBLE)
    assert wasserstein2(x, 2.5 * x) == pytest.approx(1.5 * x.square().sum(dim=1).mean().sqrt().item())


def test_the_energy_distance_of_two_points_is_known():
    """Samples {0} and {a}: E² = 2a."""
    assert energy_distance(torch.zeros(1, 1), torch.full((1, 1), 3.0)) == pytest.approx(math.sqrt(6))


def test_the_energy_distance_of_shifted_normals_is_known():
    """E|X − Y| for N(0, 1) and N(a, 1) is the mean of a folded normal; 5 standard errors of 3,000 points."""
    a, n = 1.0, 3_000
    x, y = randn(n, 1, generator=generator(0)), a + randn(n, 1, generator=generator(1))
    folded = 2 / math.sqrt(math.pi) * math.exp(-(a**2) / 4) + a * math.erf(a / 2)
    expected = math.sqrt(2 * folded - 4 / math.sqrt(math.pi))
    assert energy_distance(x, y) == pytest.approx(expected, abs=5 / math.sqrt(n))


def test_equal_samples_have_no_distance():
    x = randn(50, 4, generator=generator(0))
    assert wasserstein2(x, x) == pytest.approx(0, abs=1e-6)
    assert energy_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_of_a_scaled_sample_is_known():
    """Σ_y = a² Σ_x commutes with Σ_x: F = |μ_x − μ_y|² + (1 − a)² tr Σ_x."""
    x = randn(300, 5, generator=generator(0), dtype=DOUBLE) @ randn(5, 5, generator=generator(1), dtype=DOUBLE)
    y = 1.7 * x + torch.arange(5.0, dtype=DOUBLE)
    expected = (x.mean(0) - y.mean(0)).square().sum() + 0.7**2 * x.T.cov().trace()
    assert frechet_distance(x, y) == pytest.approx(expected.item())


def test_the_frechet_distance_bears_features_that_are_always_zero():
    x, y = randn(80, 6, generator=generator(0)), randn(80, 6, generator=generator(1))
    x[:, 3] = y[:, 3] = 0
    assert math.isfinite(frechet_distance(x, y))
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(x[:, [0, 1, 2, 4, 5]], y[:, [0, 1, 2, 4, 5]]))


def test_samples_elsewhere_have_neither_precision_nor_recall():
    x = randn(50, 2, generator=generator(0))
    assert precision_recall(x, x + 100) == (0, 0)


def test_a_lost_mode_costs_recall_and_not_precision():
    modes = eight_gaussians()
    real, component = modes.sample_with_component(2_000, generator=generator(0))
    fake, other = modes.sample_with_component(4_000, generator=generator(1))
    fake = fake[other < 4][:1_000]
    precision, recall = precision_recall(real, fake)
    assert precision > 0.95
    assert recall == pytest.approx((component < 4).float().mean().item(), abs=0.05)


def test_an_outlier_costs_precision_alone():
    x, y = randn(200, 2, generator=generator(0)), randn(200, 2, generator=generator(1))
    far = torch.cat([y[:-50], y[-50:] + 100])
    before, after = precision_recall(x, y), precision_recall(x, far)
    assert after.precision == pytest.approx(before.precision - 0.25, abs=0.05)
    assert after.recall == pytest.approx(before.recall, abs=0.05)


def test_copies_are_told_from_new_samples():
    """New draws of the data are as far from one half as from the other (five standard errors of 2,000 distances)."""
    source = generator(0)
    train, test, new = (two_moons().sample(n, generator=source) for n in (4_000, 2_000, 2_000))
    assert copying(train[:500], train, test) < 0.6
    assert copying(train[:500] + 0.001, train[:2_000], test) < 0.1
    assert copying(new, train, test) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_exact_copies_of_all_training_data_score_one_less_one_over_the_number_of_blocks(blocks):
    """A copy has distance 0 to its own block and, to each other one, that of new data (spread 0.011; 0.05 is safe)."""
    source = generator(0)
    train, test = two_moons().sample(blocks * 1_000, generator=source), two_moons().sample(1_000, generator=source)
    assert copying(train, train, test) == pytest.approx(1 - 1 / blocks, abs=0.05)


def test_copies_of_the_training_digits_score_a_half_and_not_zero():
    """1,200 against 597 are two blocks: the floor of every table of digits. New digits, the other half, score 1."""
    train, test = digits("train").images, digits("test").images
    assert copying(train, train, test) == pytest.approx(0.5, abs=0.02)
    assert copying(train[::2], train[1::2], test[:300]) == pytest.approx(1, abs=0.05)


def test_the_energy_of_a_constant_field_is_its_speed_squared():
    x = randn(10, 2, generator=generator(0))
    assert path_energy(lambda t, x: torch.tensor([3.0, 4.0]).expand_as(x), x) == pytest.approx(25, rel=1e-5)


def test_the_energy_of_a_rotation_is_known():
    """Rotating by φ moves a point at radius r with speed φ r all the time."""
    x = randn(40, 2, generator=generator(0), dtype=DOUBLE)
    rotation = 2.0 * torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=DOUBLE)
    energy = path_energy(lambda t, x: x @ rotation, x, solver=RungeKutta4(steps=100))
    assert energy == pytest.approx(4 * x.square().sum(dim=1).mean().item(), rel=1e-6)


def test_the_energy_counts_a_field_that_depends_on_time():
    """∫ (2t)² dt = 4/3, above the least energy 1 of the same displacement: normalized, a third too much."""
    x = randn(30, 1, generator=generator(0), dtype=DOUBLE)

    def v(t, x):
        return torch.ones_like(x) * 2 * t

    assert path_energy(v, x) == pytest.approx(4 / 3, rel=1e-4)
    assert normalized_path_energy(v, x, x + 1) == pytest.approx(1 / 3, rel=1e-4)


def test_transport_at_constant_speed_wastes_no_energy():
    x = randn(100, 2, generator=generator(0), dtype=DOUBLE)
    assert normalized_path_energy(lambda t, x: torch.ones_like(x), x, x + 1) == pytest.approx(0, abs=1e-4)


def test_the_judge_is_right_on_digits_it_has_not_seen(judge):
    test = digits("test")
    assert (judge.predict(test.images) == test.labels).float().mean() > 0.98


def test_the_judge_is_the_same_each_time(judge):
    """Ten steps of its training, done twice, give the same weights; another seed gives others."""
    first, again, other = (metrics._trained.__wrapped__(seed, steps=10) for seed in (0, 0, 1))
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert not any(torch.equal(weight, other[name]) for name, weight in first.items())
    images = digits("test").images[:20]
    assert torch.equal(DigitJudge(0).features(images), judge.features(images))


def test_the_judge_has_the_features_it_claims(judge):
    features = judge.features(digits("test").images[:7])
    assert features.shape == (7, 64)
    assert features.min() == 0
    assert not any(weight.requires_grad for weight in judge.parameters())


def test_the_judge_tells_noise_from_digits(judge):
    """In its features noise is a hundred times as far from the training digits as the test digits are."""
    train, test = judge.features(digits("train").images), judge.features(digits("test").images)
    noise = judge.features(randn(597, 1, 8, 8, generator=generator(0)))
    assert frechet_distance(noise, test) > 20 * frechet_distance(train, test)
    assert precision_recall(train, test).precision > 0.8
    assert precision_recall(train, noise).precision < 0.1


@pytest.mark.parametrize("metric", [energy_distance, frechet_distance, precision_recall])
def test_samples_that_do_not_fit_are_refused(metric):
    with pytest.raises(ValueError, match=r"received points of shapes \(9, 2\) and \(9, 3\)"):
        metric(torch.zeros(9, 2), torch.zeros(9, 3))
    with pytest.raises(ValueError, match="NaN or infinity"):
        metric(torch.zeros(9, 2), torch.full((9, 2), math.nan))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(torch.zeros(1, 2), torch.zeros(5, 2)), "at least two each"),
        (lambda: precision_recall(torch.zeros(5, 2), torch.zeros(3, 2), k=3), "rule: 1 ≤ k < both"),
        (lambda: copying(torch.zeros(5, 2), torch.zeros(3, 2), torch.zeros(4, 2)), "not fewer for training"),
        (lambda: DigitJudge(0).predict(torch.zeros(2, 1, 28, 28)), r"rule: \(n, 1, 8, 8\)"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
