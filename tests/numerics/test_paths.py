"""Paths: schedules and their derivatives, all conversions, and the Gaussian case in which everything is known."""

import inspect
import math

import pytest
import torch

from companion.device import generator
from companion.numerics.paths import CondOT, GaussianPath, LinearPath, VariancePreserving, expand_time

PATHS = [CondOT(), VariancePreserving()]
KINDS = ["velocity", "score", "noise", "data"]
# Where a conversion has no answer: (wanted, given) → the end of time that is excluded.
AT_NOISE = {("velocity", "score"), ("velocity", "noise"), ("data", "score"), ("data", "noise")}
AT_DATA = {("velocity", "data"), ("score", "velocity"), ("score", "noise"), ("score", "data"), ("noise", "data")}


class Cosine(GaussianPath):
    """A path that is not among the house's own: α = t², σ = √(1 − t)·(1 + t), to prove the generic formulas."""

    def alpha(self, t):
        return t**2

    def sigma(self, t):
        return (1 - t).sqrt() * (1 + t)

    def d_alpha(self, t):
        return 2 * t

    def d_sigma(self, t):
        return (1 - t).sqrt() - (1 + t) / (2 * (1 - t).sqrt())


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def known_fields(path, t, x, mean=1.5, deviation=0.6):
    """For data N(m, s² I) all four fields in closed form, by the conditional expectations of a Gaussian pair.

    x_t has mean α m and variance V = α² s² + σ²; x_1 and ε have the covariances α s² and σ with it, and the velocity
    is the mean of dx_t/dt = α̇ x_1 + σ̇ ε.
    """
    t = t.reshape(t.shape + (1,) * (x.ndim - 1)) if t.ndim else t
    alpha, sigma = path.alpha(t), path.sigma(t)
    variance = alpha**2 * deviation**2 + sigma**2
    off = x - alpha * mean
    data, noise = mean + alpha * deviation**2 / variance * off, sigma / variance * off
    velocity = path.d_alpha(t) * data + path.d_sigma(t) * noise
    return {"velocity": velocity, "score": -off / variance, "noise": noise, "data": data}


def conversions():
    return [(wanted, given) for wanted in KINDS for given in KINDS if wanted != given]


@pytest.mark.parametrize("path", PATHS)
def test_paths_run_from_noise_to_data(path):
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(path.alpha(ends), torch.tensor([0.0, 1.0]).double(), rtol=0, atol=1e-15)
    torch.testing.assert_close(path.sigma(ends), torch.tensor([1.0, 0.0]).double(), rtol=0, atol=1e-15)
    assert path.sigma(ends)[1] == 0


@pytest.mark.parametrize("path", [*PATHS, Cosine()])
@pytest.mark.parametrize("name", ["alpha", "sigma"])
def test_the_derivatives_of_the_schedules_agree_with_autograd(path, name):
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(getattr(path, name)(t).sum(), t, materialize_grads=True)
    torch.testing.assert_close(getattr(path, f"d_{name}")(t), slope)


def test_the_variance_preserving_path_preserves_variance():
    t = torch.rand(100, generator=generator(0))
    path = VariancePreserving()
    torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones(100))


@pytest.mark.parametrize("path", [*PATHS, Cosine()])
@pytest.mark.parametrize(("wanted", "given"), conversions())
def test_every_conversion_agrees_with_the_conditional_expectations_of_a_gaussian(path, wanted, given):
    t, x = torch.rand(50, generator=generator(1), dtype=torch.float64) * 0.9 + 0.05, draw(50, 3)
    fields = known_fields(path, t, x)
    converted = getattr(path, f"{wanted}_from_{given}")(t, x, fields[given])
    torch.testing.assert_close(converted, fields[wanted], rtol=1e-8, atol=1e-8)


def test_the_closed_form_that_the_conversions_are_held_against_is_the_mean_over_samples():
    """The expectation of x_1 near x_t = 0.4 from 2 million draws: 5 standard errors (false alarm 6e-7) are 0.015."""
    path, t = CondOT(), torch.tensor(0.6, dtype=torch.float64)
    x_1 = 1.5 + 0.6 * draw(2_000_000)
    x_t = path.sample(t, x_1, draw(2_000_000, seed=1))
    near = (x_t - 0.4).abs() < 0.02
    assert near.sum() > 30_000
    mean, error = x_1[near].mean(), x_1[near].std() / near.sum().sqrt()
    expected = known_fields(path, t, torch.tensor([0.4]).double())["data"].item()
    assert abs(mean - expected) < 5 * error + 1e-3


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("there", "back"), conversions())
def test_there_and_back_returns_what_was_given(path, there, back):
    t, x, given = (
        torch.rand(20, generator=generator(2), dtype=torch.float64) * 0.9 + 0.05,
        draw(20, 2),
        draw(20, 2, seed=3),
    )
    middle = getattr(path, f"{there}_from_{back}")(t, x, given)
    torch.testing.assert_close(getattr(path, f"{back}_from_{there}")(t, x, middle), given, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", [*PATHS, Cosine()])
def test_the_conditional_velocity_is_the_time_derivative_of_the_path(path):
    """Central differences of x_t = α x_1 + σ ε with x_1 and ε held fixed."""
    t, h = torch.tensor(0.4, dtype=torch.float64), 1e-6
    x_1, eps = draw(10, 2), draw(10, 2, seed=1)
    slope = (path.sample(t + h, x_1, eps) - path.sample(t - h, x_1, eps)) / (2 * h)
    torch.testing.assert_close(path.velocity(t, path.sample(t, x_1, eps), x_1), slope, rtol=0, atol=1e-7)


@pytest.mark.parametrize("path", PATHS)
def test_the_conditional_score_is_the_gradient_of_the_log_density(path):
    t, x, x_1 = torch.tensor(0.4, dtype=torch.float64), draw(10, 2).requires_grad_(), draw(10, 2, seed=1)
    law = torch.distributions.Normal(path.alpha(t) * x_1, path.sigma(t))
    (gradient,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    torch.testing.assert_close(path.score(t, x.detach(), x_1), gradient)


def test_the_conditional_optimal_transport_velocity_is_data_minus_noise():
    t = torch.rand(10, generator=generator(0), dtype=torch.float64) * 0.99
    x_1, eps = draw(10, 2), draw(10, 2, seed=1)
    x = CondOT().sample(t, x_1, eps)
    torch.testing.assert_close(CondOT().velocity(t, x, x_1), x_1 - eps)
    torch.testing.assert_close(CondOT().velocity(t, x, x_1), (x_1 - x) / (1 - t[:, None]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(6,), (6, 2), (6, 1, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_time_for_all_and_a_time_for_each_give_the_same(path, shape, dtype):
    x, given = draw(*shape).to(dtype), draw(*shape, seed=1).to(dtype)
    t = torch.tensor(0.3, dtype=dtype)
    for wanted, from_ in conversions():
        convert = getattr(path, f"{wanted}_from_{from_}")
        assert convert(t, x, given).dtype == dtype
        torch.testing.assert_close(convert(t, x, given), convert(t.expand(6), x, given))
    times = torch.rand(6, generator=generator(0), dtype=torch.float64).to(dtype)
    each = torch.cat([path.sample(times[k], x[k : k + 1], given[k : k + 1]) for k in range(6)])
    torch.testing.assert_close(path.sample(times, x, given), each)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("end", [0.0, 1.0])
@pytest.mark.parametrize(("wanted", "given"), conversions())
def test_at_the_ends_a_conversion_is_finite_or_says_why_not(path, end, wanted, given):
    t, x = torch.tensor([0.5, end], dtype=torch.float64), draw(2, 3)
    convert = getattr(path, f"{wanted}_from_{given}")
    if (wanted, given) in (AT_NOISE if end == 0 else AT_DATA):
        name, rule = ("alpha", "t > 0") if end == 0 else ("sigma", "t < 1")
        with pytest.raises(
            ValueError, match=rf"{wanted}_from_{given}: received t.*rule: {rule}, .*{name}_t, which is 0"
        ):
            convert(t, x, draw(2, 3, seed=1))
    else:
        fields = known_fields(path, t, x)
        torch.testing.assert_close(convert(t, x, fields[given]), fields[wanted])


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_the_linear_path_joins_its_ends(sigma):
    path, x_0, x_1, eps = LinearPath(sigma), draw(5, 2), draw(5, 2, seed=1), draw(5, 2, seed=2)
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    expected = (1 - t)[:, None] * x_0 + t[:, None] * x_1 + sigma * eps
    torch.testing.assert_close(path.sample(t, x_0, x_1, eps), expected)
    h = 1e-6
    inner = torch.tensor(0.5, dtype=torch.float64)
    slope = (path.sample(inner + h, x_0, x_1, eps) - path.sample(inner - h, x_0, x_1, eps)) / (2 * h)
    torch.testing.assert_close(path.velocity(x_0, x_1), slope, rtol=0, atol=1e-8)


def test_the_deviation_of_the_linear_path_is_sigma_at_every_time():
    """100,000 draws: the sample deviation scatters by 0.0022 sigma, so 5 standard errors are 1.1 percent."""
    zero, eps = torch.zeros(100_000), torch.randn(100_000, generator=generator(0))
    for t in (0.0, 0.4, 1.0):
        assert LinearPath(0.2).sample(torch.tensor(t), zero, zero, eps).std().item() == pytest.approx(0.2, rel=0.011)


def test_the_linear_path_needs_noise_only_for_a_positive_sigma():
    x_0, x_1, t = draw(3, 2), draw(3, 2, seed=1), torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(LinearPath().sample(t, x_0, x_1), (x_0 + x_1) / 2)
    with pytest.raises(ValueError, match=r"received no eps with sigma=0.1"):
        LinearPath(0.1).sample(t, x_0, x_1)
    for sigma in (-0.1, math.nan):
        with pytest.raises(ValueError, match="LinearPath: received sigma="):
            LinearPath(sigma)


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan])
def test_times_outside_zero_and_one_are_refused(value):
    t, x = torch.tensor([0.5, value], dtype=torch.float64), draw(2, 2)
    with pytest.raises(ValueError, match=r"CondOT.sample: received t between .*rule: from 0 \(noise\) to 1"):
        CondOT().sample(t, x, x)
    with pytest.raises(ValueError, match=r"LinearPath.sample: received t between"):
        LinearPath().sample(t, x, x)


def test_a_time_that_is_one_up_to_rounding_is_taken_for_one():
    x = torch.ones(2, 2)
    torch.testing.assert_close(CondOT().sample(torch.tensor(1.0 + 2e-7), x, -x), x)
    with pytest.raises(ValueError, match=r"rule: t < 1"):
        CondOT().velocity(torch.tensor(1.0 - 1e-7), x, x)


def test_shapes_and_dtypes_that_do_not_fit_are_refused():
    x = draw(3, 2)
    sample = inspect.unwrap(GaussianPath.sample)
    with pytest.raises(ValueError, match=r"received t of shape \(2,\).*rule: .*shape \(\) or \(3,\)"):
        sample(CondOT(), torch.tensor([0.1, 0.2]).double(), x, x)
    with pytest.raises(ValueError, match=r"received t of 0.5"):
        inspect.unwrap(expand_time)("sample", 0.5, x)
    with pytest.raises(ValueError, match=r"x_1 \(3, 2\) torch.float64, eps \(3,\)"):
        sample(CondOT(), torch.tensor(0.5), x, x[:, 0])
    with pytest.raises(ValueError, match="one shape and one floating-point dtype"):
        sample(CondOT(), torch.tensor(0.5), x, x.float())


def test_conversions_can_be_exported_although_the_time_is_not_known_then():
    class Velocity(torch.nn.Module):
        def forward(self, t, x, score):
            return CondOT().velocity_from_score(t, x, score)

    example = (torch.tensor(0.3), torch.randn(4, 2, generator=generator(0)), torch.ones(4, 2))
    program = torch.export.export(Velocity(), example)
    other = (torch.tensor(0.8), *example[1:])
    torch.testing.assert_close(program.module()(*other), Velocity()(*other))


def test_conversions_can_be_vectorized_over_time():
    x = draw(2, 2)
    t = torch.tensor([0.2, 0.8], dtype=torch.float64)
    swept = torch.func.vmap(lambda s: CondOT().velocity_from_score(s, x, -x))(t)
    torch.testing.assert_close(swept[1], CondOT().velocity_from_score(t[1], x, -x))
