"""The exact field of a data set, against sums written out and against a mixture of needles."""

import math

import pytest
import torch

from companion.data import Empirical, GaussianMixture, digits
from companion.device import generator, randn
from companion.numerics.ode import RungeKutta4, integrate
from companion.numerics.paths import CondOT, VariancePreserving

DOUBLE = torch.float64
PATHS = [CondOT(), VariancePreserving()]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)


@pytest.fixture
def points():
    return randn(7, 2, generator=generator(0), dtype=DOUBLE)


@every_path
def test_the_field_is_the_posterior_average_of_conditional_velocities(points, path):
    """Bayes' rule written out, one datum at a time, for one point and time at a time."""
    data, x = Empirical(points), randn(5, 2, generator=generator(1), dtype=DOUBLE)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=DOUBLE)
    for row in range(5):
        alpha, sigma = path.alpha(t[row]).item(), path.sigma(t[row]).item()
        likelihood = [math.exp(-(math.dist(x[row], alpha * p) ** 2) / (2 * sigma**2)) for p in points]
        velocities = [path.velocity(t[row], x[row][None], p[None])[0] for p in points]
        expected = sum(w * u for w, u in zip(likelihood, velocities, strict=True)) / sum(likelihood)
        torch.testing.assert_close(data.marginal_velocity(path, t, x)[row], expected)


@every_path
def test_a_data_set_is_a_mixture_of_needles(points, path):
    """A mixture with variance 1e-10 at each datum has the same velocity, score and posterior mean."""
    needles = GaussianMixture(points, 1e-10 * torch.eye(2, dtype=DOUBLE).expand(7, 2, 2))
    data, x = Empirical(points), randn(9, 2, generator=generator(2), dtype=DOUBLE)
    t = torch.tensor(0.6, dtype=DOUBLE)
    for name in ("marginal_velocity", "marginal_score", "posterior_mean"):
        ours, theirs = (getattr(density, name)(path, t, x) for density in (data, needles))
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_the_flow_of_a_data_set_ends_on_its_data(points):
    x = randn(20, 2, generator=generator(3), dtype=DOUBLE)
    data, path = Empirical(points), CondOT()
    end = integrate(lambda t, y: data.marginal_velocity(path, t, y), x, RungeKutta4(steps=200), t1=0.999).final
    assert torch.cdist(end, points).amin(dim=1).max() < 0.01


def test_close_to_the_data_single_precision_still_tells_them_apart():
    images, path, t = digits().images, CondOT(), torch.tensor(0.999)
    x = t * images[:50] + (1 - t) * randn(50, 1, 8, 8, generator=generator(0))
    assert Empirical(images).posterior(path, t, x).argmax(dim=1).tolist() == list(range(50))
    double = Empirical(images.double()).marginal_velocity(path, t.double(), x.double())
    torch.testing.assert_close(Empirical(images).marginal_velocity(path, t, x).double(), double, rtol=1e-3, atol=1e-3)


def test_images_keep_their_shape():
    images = digits("test").images[:20]
    x, t = randn(3, 1, 8, 8, generator=generator(0)), torch.tensor([0.2, 0.5, 0.8])
    data = Empirical(images)
    assert data.marginal_velocity(CondOT(), t, x).shape == x.shape
    assert data.posterior(CondOT(), t, x).sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert data.sample(4, generator=generator(0)).shape == (4, 1, 8, 8)


def test_sampling_draws_each_datum_equally_often(points):
    """Counts within five standard deviations of their mean (false alarms: below 1e-5)."""
    x = Empirical(points).sample(70_000, generator=generator(0))
    count = (x[:, None] == points).all(dim=2).sum(dim=0).double()
    assert ((count - 10_000).abs() < 5 * math.sqrt(10_000)).all()


def test_without_noise_there_is_no_field(points):
    with pytest.raises(ValueError, match="stop at t < 1"):
        Empirical(points).marginal_velocity(CondOT(), torch.ones((), dtype=DOUBLE), points)


def test_wrong_shapes_are_refused(points):
    data, t = Empirical(points), torch.tensor(0.5, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"received x of shape \(2, 3\)"):
        data.posterior(CondOT(), t, torch.zeros(2, 3, dtype=DOUBLE))
    with pytest.raises(ValueError, match=r"rule: a floating-point tensor of shape \(\) or \(7,\)"):
        data.posterior(CondOT(), torch.zeros(3, dtype=DOUBLE), points)
    with pytest.raises(ValueError, match="finite"):
        Empirical(torch.full((2, 2), math.nan))
