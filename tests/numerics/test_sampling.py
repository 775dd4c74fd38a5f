"""Langevin chains as distributions: against known densities, with the bias that theory gives them, and without it."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from companion.data import GaussianMixture
from companion.device import generator, randn
from companion.numerics.sampling import langevin, langevin_chain, metropolis_langevin

F64 = torch.float64
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
HEAPS = GaussianMixture(
    torch.tensor([[-1.0], [1.5]], dtype=F64),
    torch.tensor([[[0.36]], [[0.64]]], dtype=F64),
    torch.tensor([0.4, 0.6]).double(),
)
SHY = 1e-6  # a p-value below this comes by chance once in a million


def heaps_cdf(x):
    """The mixture's distribution function."""
    return 0.4 * stats.norm.cdf(x, -1, 0.6) + 0.6 * stats.norm.cdf(x, 1.5, 0.8)


def well(x):
    """log p of a double well, up to a constant: p has no normalization in closed form, and its tails are steep."""
    return -(x.square() - 1).square().sum(1)


def well_score(x):
    return -4 * x * (x.square() - 1)


def well_cdf(x):
    """By the trapezoidal rule, exact to 1e-8 for a smooth density."""
    grid = np.linspace(-4, 4, 8001)
    density = np.exp(-((grid**2 - 1) ** 2))
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.interp(x, grid, mass / mass[-1])


def bowl(x):
    """log p of the normal density with variance ½, up to a constant."""
    return -x.square().sum(1)


def fits(x, cdf):
    """Kolmogorov–Smirnov: the p-value of independent one-dimensional points."""
    return stats.kstest(x[:, 0].numpy(), cdf).pvalue


def normals(*shape, seed=0):
    return randn(*shape, generator=generator(seed), dtype=F64)


# ---------------------------------------------------------------------- Langevin


@pytest.mark.verifies("eq-langevin-step")
def test_langevin_ends_with_the_density_whose_score_it_was_given():
    """Kolmogorov–Smirnov against a double well by quadrature (false alarm 1e-6); with the noise √h it fails."""
    x = langevin(well_score, 1 + normals(8_000, 1), h=0.005, steps=1_200, generator=generator(1))
    assert fits(x, well_cdf) > SHY
    cold = langevin(lambda x: 2 * well_score(x), normals(8_000, 1), h=0.0025, steps=1_200, generator=generator(1))
    assert fits(cold, well_cdf) < 1e-12  # h/2 with 2∇log p is a step h with the noise √h


@pytest.mark.verifies("eq-langevin-step")
def test_one_langevin_step_is_a_normal_draw_around_the_ascended_point():
    """Kolmogorov–Smirnov of 20,000 steps from one point against a normal law; false alarm 1e-6."""
    h, start = 0.1, torch.full((20_000, 1), 0.7, dtype=F64)
    x = langevin(well_score, start, h=h, steps=1, generator=generator(2))
    slope = -4 * 0.7 * (0.7**2 - 1)
    assert fits(x, stats.norm(0.7 + h * slope, math.sqrt(2 * h)).cdf) > SHY


@pytest.mark.verifies("eq-langevin-stationary")
@pytest.mark.parametrize(("a", "h"), [(0.5, 0.2), (1.0, 1.2), (4.0, 0.1), (4.0, 0.4)])
def test_the_chain_of_a_normal_density_has_the_variance_of_its_recursion(a, h):
    """The sample variance of 40,000 chains after their start is forgotten: 4.5 standard errors, false alarm 7e-6."""
    steps = math.ceil(15 / -math.log(abs(1 - a * h)))
    x = langevin(lambda x: -a * x, torch.zeros(40_000, 1, dtype=F64), h=h, steps=steps, generator=generator(3))
    assert x.var().item() == pytest.approx(1 / (a * (1 - a * h / 2)), rel=4.5 * math.sqrt(2 / 40_000))
    assert abs(x.var().item() * a - 1) > 4.5 * math.sqrt(2 / 40_000)  # and not that of the density


@pytest.mark.verifies("eq-langevin-stationary")
def test_at_two_over_the_precision_the_chain_only_wanders():
    """x ← −x + √(2h) ξ keeps the size of x and adds 2h of variance a step: 2hk after k steps, without a limit."""
    a, n = 2.0, 40_000
    x = langevin(lambda x: -a * x, torch.zeros(n, 1, dtype=F64), h=2 / a, steps=50, generator=generator(4))
    assert x.var().item() == pytest.approx(2 * (2 / a) * 50, rel=4.5 * math.sqrt(2 / n))  # false alarm 7e-6


def test_in_the_plane_the_covariance_solves_a_discrete_lyapunov_equation():
    """scipy's solver for V = (I − hA) V (I − hA)ᵀ + 2h I; each entry within 5 standard errors (false alarm 2e-6)."""
    precision, h, n = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=F64), 0.3, 40_000
    x = langevin(lambda x: -x @ precision, torch.zeros(n, 2, dtype=F64), h=h, steps=80, generator=generator(5))
    wanted = linalg.solve_discrete_lyapunov(np.eye(2) - h * precision.numpy(), 2 * h * np.eye(2))
    size = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    assert (np.abs(x.T.cov().numpy() - wanted) < 5 * size * math.sqrt(2 / n)).all()


def test_the_bias_falls_in_proportion_to_the_step():
    """The excess variance of 200,000 chains at h = 0.4, 0.2, 0.1: two measured orders (error 0.12, at 3 of them)."""
    excess = []
    for seed, h in enumerate((0.4, 0.2, 0.1)):
        x = langevin(lambda x: -x, normals(200_000, 1), h=h, steps=round(6 / h), generator=generator(10 + seed))
        excess.append(x.var().item() - 1)
    orders = [math.log2(a / b) for a, b in itertools.pairwise(excess)]
    assert orders == pytest.approx([1, 1], abs=0.35)


def test_the_chain_yields_the_states_that_langevin_ends_with():
    chain = langevin_chain(well_score, normals(5, 1), h=0.01, generator=generator(6))
    states = list(itertools.islice(chain, 7))
    for steps in (1, 4, 7):
        assert torch.equal(
            states[steps - 1], langevin(well_score, normals(5, 1), h=0.01, steps=steps, generator=generator(6))
        )


def test_a_waiting_chain_leaves_its_callers_gradients_on():
    chain = langevin_chain(well_score, normals(5, 1).requires_grad_(), h=0.01, generator=generator(6))
    assert not next(chain).requires_grad
    a = torch.ones((), dtype=F64, requires_grad=True)
    assert not next(langevin_chain(lambda x: -a * x, normals(5, 1), h=0.01, generator=generator(6))).requires_grad
    assert torch.is_grad_enabled()
    assert not langevin(
        well_score, normals(5, 1).requires_grad_(), h=0.01, steps=0, generator=generator(0)
    ).requires_grad


# ---------------------------------------------------------------------- Metropolis


@pytest.mark.parametrize("h", [0.2, 1.0])
def test_metropolis_leaves_the_density_alone_for_any_step(h):
    """Chains that start as exact draws: still the mixture after 30 steps (false alarm 1e-6). Plain Langevin is not."""
    start = HEAPS.sample(20_000, generator=generator(0))
    x, acceptance = metropolis_langevin(HEAPS.log_prob, start, h=h, steps=30, generator=generator(1))
    assert fits(x, heaps_cdf) > SHY
    assert (x != start).double().mean() > 0.99  # they did move
    assert ((acceptance >= 0) & (acceptance <= 1)).all()
    biased = langevin(HEAPS.score, start, h=h, steps=30, generator=generator(1))
    assert fits(biased, heaps_cdf) < 1e-10


def test_metropolis_finds_the_density_from_elsewhere():
    """The double well from a normal start, by Kolmogorov–Smirnov against quadrature; false alarm 1e-6."""
    x, _ = metropolis_langevin(well, 0.3 * normals(10_000, 1) + 1, h=0.15, steps=400, generator=generator(7))
    assert fits(x, well_cdf) > SHY


def test_the_acceptance_is_that_of_the_double_integral():
    """∫∫ min(p(x) q(x'|x), p(x') q(x|x')) dx dx' on a grid; 20,000 proposals from exact draws, false alarm 7e-6."""
    h, n = 0.8, 20_000
    grid = torch.linspace(-9, 10, 1201, dtype=F64)
    p, drift = HEAPS.log_prob(grid[:, None]).exp(), grid + h * HEAPS.score(grid[:, None])[:, 0]
    q = torch.exp(-(grid - drift[:, None]).square() / (4 * h)) / math.sqrt(4 * math.pi * h)  # row: from, column: to
    flow = p[:, None] * q
    wanted = torch.minimum(flow, flow.T).sum().item() * (grid[1] - grid[0]).item() ** 2
    start = HEAPS.sample(n, generator=generator(2))
    _, acceptance = metropolis_langevin(HEAPS.log_prob, start, h=h, steps=1, generator=generator(3))
    assert 0.5 < wanted < 0.95
    assert abs(acceptance.mean().item() - wanted) < 4.5 * math.sqrt(wanted * (1 - wanted) / n)


def test_proposals_outside_the_support_are_rejected():
    """The exponential density, which ends at 0: from exact draws, Kolmogorov–Smirnov, false alarm 1e-6."""

    def log_prob(x):
        return torch.where(x[:, 0] > 0, -x[:, 0], -math.inf)

    start = torch.empty(20_000, 1, dtype=F64).exponential_(generator=generator(0))
    x, acceptance = metropolis_langevin(log_prob, start, h=0.3, steps=40, generator=generator(1))
    assert (x > 0).all()
    assert acceptance.mean() < 0.9
    assert fits(x, stats.expon.cdf) > SHY


def test_outside_the_support_the_slope_may_be_anything():
    """A density on x > 0 whose gradient is NaN elsewhere: no chain leaves, and none stands still."""

    def log_prob(x):
        return torch.where(x[:, 0] > 0, -x[:, 0], -math.inf) - (x[:, 0] + x[:, 0].abs()).sqrt()

    x, acceptance = metropolis_langevin(log_prob, normals(200, 1).abs() + 0.1, h=0.3, steps=40, generator=generator(1))
    assert (x > 0).all()
    assert (acceptance > 0).all()


def test_where_the_density_overflows_the_chain_stays():
    """A step so long that the proposal's density underflows and its gradient is infinite: nothing is accepted."""
    start = normals(50, 1)
    x, acceptance = metropolis_langevin(lambda x: -x[:, 0].exp().exp(), start, h=1e4, steps=5, generator=generator(0))
    assert x.isfinite().all()
    assert acceptance.mean() < 0.5


def test_the_constant_of_the_density_does_not_matter():
    runs = [
        metropolis_langevin(lambda x, c=c: well(x) + c, normals(20, 1), h=0.1, steps=20, generator=generator(0)).x
        for c in (0.0, 50.0)
    ]
    torch.testing.assert_close(*runs)


def test_a_flat_density_is_a_random_walk():
    """Every proposal is accepted, and a step adds 2h of variance: 4.5 standard errors, false alarm 7e-6."""
    x, acceptance = metropolis_langevin(
        lambda x: torch.zeros(len(x), dtype=F64),
        torch.zeros(20_000, 1, dtype=F64),
        h=0.5,
        steps=10,
        generator=generator(0),
    )
    assert (acceptance == 1).all()
    assert x.var().item() == pytest.approx(10, rel=4.5 * math.sqrt(2 / 20_000))


# ---------------------------------------------------------------------- shapes, devices, bad input


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (1, 4, 4)])
def test_states_of_any_shape_stay_on_their_device_and_in_their_dtype(device, dtype, shape):
    def log_prob(x):
        return -0.5 * x.reshape(len(x), -1).square().sum(1)

    def end(device):
        x = randn(6, *shape, generator=generator(0), dtype=dtype, device=device)
        plain = langevin(lambda x: -x, x, h=0.1, steps=5, generator=generator(1))
        return plain, *metropolis_langevin(log_prob, x, h=0.1, steps=5, generator=generator(1))

    for there, here in zip(end(device), end("cpu"), strict=True):
        assert (there.device.type, there.dtype) == (device, dtype)
        torch.testing.assert_close(there.cpu(), here)


def test_chains_repeat_with_their_generator_and_do_not_touch_the_start():
    x = normals(10, 2)
    before = x.clone()
    runs = [metropolis_langevin(bowl, x, h=0.3, steps=5, generator=generator(9)).x for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(x, before)


def test_a_chain_that_diverges_names_the_step_and_the_rule():
    """The cubic pull of the double well throws a point at 10 out for h = 0.1: |x| goes 10, 400, 10⁷, 10²¹, … ."""
    with pytest.raises(
        ValueError, match=r"langevin: received h = 0\.1, and a chain left .* at step \d+; rule: h < 2/a"
    ):
        langevin(well_score, torch.full((3, 1), 10.0, dtype=F64), h=0.1, steps=100, generator=generator(0))


def test_errors_name_the_operation_the_value_and_the_rule():
    x = normals(4, 2)

    def plain(score=lambda x: -x, x=x, h=0.1, steps=2):
        return langevin(score, x, h=h, steps=steps, generator=generator(0))

    def exact(log_prob=bowl, x=x, h=0.1, steps=2):
        return metropolis_langevin(log_prob, x, h=h, steps=steps, generator=generator(0))

    bad = x.clone()
    bad[0, 0] = math.nan
    cases = [
        (lambda: plain(h=-0.1), r"langevin: received h = -0\.1; the step size must be positive"),
        (lambda: plain(h=math.inf), r"langevin: received h = inf"),
        (lambda: plain(steps=-1), r"langevin: received steps = -1; rule: a whole number, 0 or more"),
        (lambda: plain(x=bad), r"langevin: received states of shape \(4, 2\) .* every entry finite"),
        (lambda: plain(score=lambda x: -x[:, :1]), r"langevin: received a score that returns \(4, 1\)"),
        (lambda: exact(h=0.0), r"metropolis_langevin: received h = 0"),
        (lambda: exact(steps=0), r"metropolis_langevin: received steps = 0; rule: a whole number, 1 or more"),
        (lambda: exact(x=bad), r"metropolis_langevin: received states"),
        (lambda: exact(log_prob=lambda x: -x.square()), r"returns \(4, 2\) for states \(4, 2\); rule: one number"),
        (lambda: exact(log_prob=lambda x: bowl(x) - math.inf), r"a start where log p or its gradient is not finite"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_density_that_is_nan_somewhere_is_no_density():
    def log_prob(x):
        return torch.where(x[:, 0] > 0, -x[:, 0], math.nan)

    def without_gradient(x):  # for x < 0 the two slopes of the root are +∞ and −∞
        return -0.5 * x[:, 0] ** 2 - (x[:, 0] + x[:, 0].abs()).sqrt()

    for density in (log_prob, without_gradient):
        with pytest.raises(ValueError, match=r"log_prob that is NaN or .* at a proposal of step \d+"):
            metropolis_langevin(density, normals(50, 1).abs() + 0.1, h=1.0, steps=5, generator=generator(0))
