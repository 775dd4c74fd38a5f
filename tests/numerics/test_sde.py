"""Euler–Maruyama as a distribution: Ornstein–Uhlenbeck with known moments, weak order 1, noise of the right size."""

import inspect
import math

import pytest
import torch
from scipy import stats

from companion.device import generator
from companion.numerics.sde import euler_maruyama

PATHS = 100_000
# A z-score beyond 5 comes by chance once in 1.7 million draws.
ALARM = 5.0


def mean_z(samples, mean, deviation):
    """How many standard errors the sample mean is off."""
    return (samples.mean().item() - mean) / (deviation / math.sqrt(len(samples)))


def variance_z(samples, variance):
    """The same for the variance of normal samples, whose sample variance has the relative error √(2/n)."""
    return (samples.var().item() / variance - 1) / math.sqrt(2 / len(samples))


def ornstein_uhlenbeck(steps, *, paths=PATHS, seed=0, t1=1.0):
    x = torch.full((paths,), 2.0, dtype=torch.float64)
    return euler_maruyama(lambda t, x: -x, 0.8, x, t1=t1, steps=steps, generator=generator(seed), every=steps).final


def test_ornstein_uhlenbeck_has_its_known_mean_and_variance():
    """With 1,000 steps the biases (mean 0.0004, variance 0.0005) hide behind standard errors of 0.002 and 0.0012."""
    x = ornstein_uhlenbeck(1000)
    variance = 0.8**2 / 2 * (1 - math.exp(-2))
    assert abs(mean_z(x, 2 * math.exp(-1), math.sqrt(variance))) < ALARM
    assert abs(variance_z(x, variance)) < ALARM


def test_with_few_steps_the_moments_are_those_of_the_recursion():
    """A linear SDE turns the scheme into X' = (1 − h) X + g √h ξ, whose mean and variance are geometric sums."""
    steps, h = 5, 1 / 5
    x = ornstein_uhlenbeck(steps)
    variance = 0.8**2 * h * sum((1 - h) ** (2 * k) for k in range(steps))
    assert abs(mean_z(x, 2 * (1 - h) ** steps, math.sqrt(variance))) < ALARM
    assert abs(variance_z(x, variance)) < ALARM


def test_the_bias_of_the_mean_falls_with_weak_order_one():
    """Biases 0.24, 0.10 and 0.049 against a standard error of 0.0018: halving h halves them to within 15 percent."""
    bias = [2 * math.exp(-1) - ornstein_uhlenbeck(steps, seed=steps).mean().item() for steps in (4, 8, 16)]
    orders = [math.log2(bias[k] / bias[k + 1]) for k in range(2)]
    assert orders[0] == pytest.approx(1, abs=0.25)
    assert orders[1] == pytest.approx(1, abs=0.25)


def test_long_paths_follow_the_stationary_normal_law():
    """Kolmogorov–Smirnov against N(0, g²/2): a p-value below 1e-6 comes by chance once in a million."""
    x = ornstein_uhlenbeck(400, paths=20_000, t1=8.0)
    deviation = 0.8 / math.sqrt(2) / math.sqrt(1 - 0.02 / 2)  # the scheme's own stationary law, h = 0.02
    assert stats.kstest(x.numpy() / deviation, "norm").pvalue > 1e-6


def test_a_diffusion_that_depends_on_time_is_taken_at_the_start_of_each_step():
    x = torch.zeros(PATHS, dtype=torch.float64)
    paths = euler_maruyama(lambda t, x: 0 * x, lambda t: 1 + t, x, steps=4, generator=generator(1))
    assert abs(variance_z(paths.final, sum((1 + k / 4) ** 2 / 4 for k in range(4)))) < ALARM


def test_the_noise_is_independent_between_entries_and_steps():
    x = torch.zeros(PATHS, 2, dtype=torch.float64)
    paths = euler_maruyama(lambda t, x: 0 * x, 1.0, x, steps=2, generator=generator(2))
    increments = paths.x.diff(dim=0)  # (step, path, entry)
    table = torch.corrcoef(torch.stack([increments[0, :, 0], increments[0, :, 1], increments[1, :, 0]]))
    assert (table - torch.eye(3, dtype=torch.float64)).abs().max() < ALARM / math.sqrt(PATHS)


def test_backwards_the_drift_changes_its_sign_and_the_noise_keeps_its_size():
    x = torch.zeros(PATHS, dtype=torch.float64)
    paths = euler_maruyama(lambda t, x: torch.ones_like(x), 0.5, x, t0=1.0, t1=0.0, steps=3, generator=generator(3))
    assert abs(mean_z(paths.final, -1, 0.5)) < ALARM
    assert abs(variance_z(paths.final, 0.25)) < ALARM
    torch.testing.assert_close(paths.t, torch.tensor([1, 2 / 3, 1 / 3, 0], dtype=torch.float64))


def test_without_diffusion_it_is_the_method_of_euler():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    final = euler_maruyama(lambda t, x: -x, 0.0, x, steps=10, generator=generator(0)).final
    torch.testing.assert_close(final, x * 0.9**10)


@pytest.mark.parametrize(("every", "times"), [(None, 11), (1, 11), (3, 5), (10, 2), (100, 2)])
def test_the_kept_steps_are_the_same_path_looked_at_less_often(every, times):
    def run(every):
        return euler_maruyama(lambda t, x: -x, 1.0, torch.ones(3), steps=10, generator=generator(4), every=every)

    full, thinned = run(None), run(every)
    assert thinned.t.shape == (times,)
    keep = [k for k in range(11) if torch.isclose(full.t[k], thinned.t).any()]
    torch.testing.assert_close(thinned.x, full.x[keep], rtol=0, atol=0)
    assert thinned.t[0] == 0
    assert thinned.t[-1] == 1


def test_the_generator_alone_decides_the_paths():
    def draw(seed):
        x = torch.zeros(4, 2)
        return euler_maruyama(lambda t, x: -x, 1.0, x, steps=5, generator=generator(seed)).final

    torch.testing.assert_close(draw(1), draw(1), rtol=0, atol=0)
    assert not torch.equal(draw(1), draw(2))
    assert draw(1).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"every": 0}, "every=0"),
        ({"t1": math.inf}, "t1=inf"),
        ({"x": torch.tensor([math.nan])}, "every entry finite"),
        ({"x": torch.ones(2, dtype=torch.int64)}, "int64"),
        ({"drift": lambda t, x: x.sum()}, r"drift that returns \(\) for states \(2,\)"),
        ({"drift": lambda t, x: 1e30 * x**3}, "NaN or infinity"),
    ],
)
def test_unusable_arguments_are_refused(change, message):
    arguments = {"drift": lambda t, x: -x, "diffusion": 1.0, "x": torch.ones(2), "steps": 5} | change
    with pytest.raises(ValueError, match=rf"euler_maruyama: received .*{message}"):
        inspect.unwrap(euler_maruyama)(**arguments, generator=generator(0))
