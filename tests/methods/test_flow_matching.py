"""Flow matching: each equation of chapter 12 against a fact that does not use it, each mistake refuted by a number."""

import functools
import itertools
import math

import pytest
import torch

from companion.data import Empirical, GaussianMixture, eight_gaussians, standard_normal
from companion.device import generator, rand, randn
from companion.live.flow_matching import COUPLINGS, flow_sampler, whose_arrow
from companion.methods import flow_matching as fm
from companion.methods.flows import continuity_residual
from companion.metrics import path_energy
from companion.nn import UNet, VelocityMLP
from companion.numerics.autodiff import rademacher, value_and_hutchinson_divergence
from companion.numerics.ode import DormandPrince, Euler, RungeKutta4, integrate
from companion.numerics.paths import CondOT, LinearPath, VariancePreserving
from companion.numerics.transport import crossing_pairs

F64 = torch.float64
TIGHT = DormandPrince(rtol=1e-9, atol=1e-9)
RING = eight_gaussians(scale=2.5, std=0.3, dtype=F64)
THREE = torch.tensor([[-2.0], [0.5], [2.0]], dtype=F64)
SKEW = GaussianMixture(  # two unequal heaps on the line
    torch.tensor([[-1.0], [2.0]], dtype=F64),
    torch.tensor([[[0.2]], [[0.5]]], dtype=F64),
    torch.tensor([0.3, 0.7]).double(),
)
PATHS = pytest.mark.parametrize("path", [CondOT(), VariancePreserving()], ids=["CondOT", "variance preserving"])
MEAN, STD = 1.5, 0.5


def f64(value):
    return torch.tensor(value, dtype=F64)


def normals(*shape, seed=0):
    return randn(*shape, generator=generator(seed), dtype=F64)


def ring_field(t, x):
    return RING.marginal_velocity(CondOT(), t, x)


def gaussian_field(t, x):
    """CondOT's marginal velocity for data N(MEAN, STD²), by linear regression of x_1 − x_0 on x_t."""
    slope = (t * STD**2 - (1 - t)) / ((t * STD) ** 2 + (1 - t) ** 2)
    return MEAN + slope * (x - t * MEAN)


# ---------------------------------------------------------------------- one datum


@pytest.mark.verifies("eq-conditional-velocity")
@PATHS
def test_the_conditional_velocity_moves_a_particle_that_keeps_its_noise(path):
    """Autograd: the time derivative of α_t x_1 + σ_t ε with ε fixed."""
    x_1, eps = normals(1, 3), normals(1, 3, seed=1)
    for t in (0.0, 0.3, 0.9):

        def place(t):
            return path.sample(t, x_1, eps)

        moved = torch.autograd.functional.jacobian(place, f64(t))
        torch.testing.assert_close(path.velocity(f64(t), place(f64(t)), x_1), moved)


@pytest.mark.verifies("eq-cond-ot")
def test_the_cond_ot_velocity_leads_along_a_straight_line():
    """The solution of the differential equation, by an adaptive solver, is (1 − t) ε + t x_1."""
    x_1, eps = normals(5, 2, seed=2), normals(5, 2, seed=3)
    run = integrate(lambda t, x: (x_1 - x) / (1 - t), eps, TIGHT, t1=0.95)
    for t in (0.2, 0.6, 0.95):
        torch.testing.assert_close(run(t), (1 - t) * eps + t * x_1, atol=1e-7, rtol=0)
        torch.testing.assert_close((x_1 - run(t)) / (1 - t), x_1 - eps, atol=1e-6, rtol=0)


@pytest.mark.verifies("eq-two-ends")
def test_the_constant_velocity_carries_the_blurred_line():
    """The continuity equation by central differences, for N((1 − t) x_0 + t x_1, σ²)."""
    x_0, x_1, sigma = -1.0, 2.0, 0.3

    def density(t, x):
        gap = x[:, 0] - ((1 - t) * x_0 + t * x_1)
        return torch.exp(-(gap**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))

    def v(t, x):
        return LinearPath(sigma).velocity(torch.full_like(x, x_0), torch.full_like(x, x_1))

    residual = continuity_residual(density, v, f64(0.4), torch.linspace(-1, 2, 31, dtype=F64)[:, None])
    assert residual.abs().max() < 1e-5


@pytest.mark.refutes("E18")
def test_the_standard_deviation_of_cond_ot_is_one_minus_t():
    """The spread of a hundred thousand mixed points, four standard errors (false alarm 6e-5)."""
    t, n = 0.5, 100_000
    spread = CondOT().sample(f64(t), torch.full((n, 1), 2.0, dtype=F64), normals(n, 1)).std()
    error = 4 * (1 - t) / math.sqrt(2 * n)
    assert abs(spread - (1 - t)) < error
    assert abs(spread - (1 - t) ** 2) > 50 * error


@pytest.mark.refutes("E19")
def test_the_velocity_points_to_the_data():
    """Where particles arrive: the right field brings them to x_1, the turned one takes them away from it."""
    x_1, x_0 = normals(8, 2), normals(8, 2, seed=1)
    right = integrate(lambda t, x: (x_1 - x) / (1 - t), x_0, TIGHT, t1=0.99).final
    wrong = integrate(lambda t, x: (x - x_1) / (1 - t), x_0, TIGHT, t1=0.99).final
    torch.testing.assert_close((right - x_1).norm(dim=1), 0.01 * (x_0 - x_1).norm(dim=1))
    torch.testing.assert_close((wrong - x_1).norm(dim=1), 100 * (x_0 - x_1).norm(dim=1))


@pytest.mark.refutes("E20")
def test_a_particle_on_its_datum_stays_there():
    """A fact without calculus: no way is left, so the velocity is zero. The large coefficient gives t/(1 − t) x_1."""
    x_1, t = normals(8, 2), f64(0.5)
    assert CondOT().velocity(t, x_1, x_1).abs().max() < 1e-14
    wrong = ((1 + t) * x_1 - x_1) / (1 - t)
    torch.testing.assert_close(wrong, x_1)  # t/(1 − t) = 1


# ---------------------------------------------------------------------- many data


@pytest.mark.verifies("eq-marginal-velocity")
@PATHS
def test_the_mean_of_the_arrows_carries_the_whole_cloud(path):
    """The continuity equation by central differences, with the density of a mixture of three."""

    def density(t, x):
        each = torch.exp(-(x - path.alpha(t) * THREE.T).square() / (2 * path.sigma(t) ** 2))
        return each.mean(1) / (path.sigma(t) * math.sqrt(2 * math.pi))

    def field(t, x):
        return Empirical(THREE).marginal_velocity(path, t, x)

    residual = continuity_residual(density, field, f64(0.5), torch.linspace(-3, 3, 61, dtype=F64)[:, None])
    assert residual.abs().max() < 1e-5


@pytest.mark.verifies("eq-weights")
def test_the_weights_are_the_shares_of_the_senders():
    """Counting: of two million particles, those near x at time t, by the datum they were sent to (false alarm 2e-4)."""
    n, t, x = 2_000_000, 0.4, 0.1
    sender = torch.randint(3, (n,), generator=generator(1))
    place = t * THREE[sender, 0] + (1 - t) * randn(n, generator=generator(2), dtype=F64)
    near = sender[(place - x).abs() < 0.01]
    shares = near.bincount(minlength=3) / len(near)
    weights = Empirical(THREE).posterior(CondOT(), f64(t), f64([[x]]))[0]
    assert ((shares - weights).abs() < 4 * (weights * (1 - weights) / len(near)).sqrt()).all()


@pytest.mark.verifies("eq-first-arrow")
def test_at_first_every_particle_heads_for_the_mean_of_the_data():
    """Least squares on independent pairs: x_1 − x_0 regressed on x_0 has the slope −1 and the mean of the data."""
    n = 200_000
    x_0, x_1 = normals(n, 1), SKEW.sample(n, generator=generator(1))
    features = torch.cat([torch.ones_like(x_0), x_0], dim=1)
    mean, slope = torch.linalg.lstsq(features, x_1 - x_0).solution[:, 0]
    error = 4 * x_1.std() / math.sqrt(n)  # false alarm 6e-5 each
    exact = SKEW.marginal_velocity(CondOT(), f64(0.0), f64([[0.0], [1.0]]))[:, 0]
    assert abs(mean - exact[0]) < error
    assert abs(slope - (exact[1] - exact[0])) < error
    torch.testing.assert_close(exact[0], (SKEW.weights * SKEW.means[:, 0]).sum())


def test_each_datum_gets_its_fair_share():
    """Quantiles: trajectories on the line keep their order, so the borders are where the normal has 1/3 and 2/3."""
    borders = torch.special.ndtri(f64([1 / 3, 2 / 3]))
    starts = torch.cat([borders - 0.01, borders + 0.01])[:, None]
    field = functools.partial(Empirical(THREE).marginal_velocity, CondOT())
    end = integrate(field, starts, DormandPrince(rtol=1e-7, atol=1e-7), t1=0.999).final
    assert (end - THREE.T).abs().argmin(1).tolist() == [0, 1, 1, 2]


# ---------------------------------------------------------------------- the loss


def both_losses(net, times=(0.1, 0.5, 0.8)):
    """L_FM, L_CFM and E|u(x|x_1) − u(x)|² for the three data, by the same quadrature over x."""
    x, losses = torch.linspace(-8, 8, 801, dtype=F64)[:, None], torch.zeros(3, dtype=F64)
    for t in times:
        mass = torch.exp(-(x - t * THREE.T).square() / (2 * (1 - t) ** 2))
        mass = mass / mass.sum()
        arrows, v = (THREE.T - x) / (1 - t), net(f64(t), x)
        mean = (mass * arrows).sum(1, keepdim=True) / mass.sum(1, keepdim=True)
        squares = torch.stack([(v - mean).square().expand_as(arrows), (v - arrows).square(), (arrows - mean).square()])
        losses = losses + (mass * squares).sum((1, 2)) / len(times)
    return losses


@pytest.mark.verifies("eq-same-gradient", "eq-floor")
def test_both_losses_have_the_same_gradient_and_differ_by_the_spread_of_the_arrows():
    """Autograd on exact expectations: three data on the line, the integral over x as a sum."""
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = VelocityMLP(1, width=8).double()
        marginal, conditional, floor = both_losses(net)
        a, b = (
            torch.autograd.grad(loss, list(net.parameters()), retain_graph=True) for loss in (marginal, conditional)
        )
        assert max((x - y).abs().max() for x, y in zip(a, b, strict=True)) < 1e-13
        assert max(x.abs().max() for x in a) > 0.01
        torch.testing.assert_close(conditional - marginal, floor)


@pytest.mark.verifies("eq-cfm")
def test_the_loss_is_stationary_at_the_marginal_velocity_and_nowhere_near():
    """Gaussian data, where the best field is linear regression: the gradient there is 0 within four standard errors."""
    n, t = 200_000, f64(0.4).expand(200_000)
    x_0, x_1 = normals(n, 1), MEAN + STD * normals(n, 1, seed=1)

    def gradient(shift):
        c = torch.full((n,), shift, dtype=F64, requires_grad=True)  # a parameter of its own for each pair: the spread

        def model(t, x):
            return gaussian_field(t[:, None], x) + c[:, None]

        fm.conditional_flow_matching_loss(model, CondOT(), x_0, x_1, t).sum().backward()
        return c.grad

    at_best, elsewhere = gradient(0.0), gradient(0.1)
    error = 4 * at_best.std() / math.sqrt(n)  # false alarm 6e-5
    assert at_best.mean().abs() < error
    assert elsewhere.mean() > 3 * error


@pytest.mark.refutes("E23")
def test_the_network_predicts_velocity_and_not_noise():
    """The noise that was drawn: read as noise the best field is worse than answering 0, converted it is better."""
    n, path = 20_000, CondOT()
    x_0, x_1, t = normals(n, 2), RING.sample(n, generator=generator(1)), rand(n, generator=generator(2), dtype=F64)
    x_t, _ = fm.interpolate(path, x_0, x_1, t)
    v = RING.marginal_velocity(path, t, x_t)

    def error(guess):
        return (guess - x_0).square().sum(1).mean()

    assert error(path.noise_from_velocity(t, x_t, v)) < 0.6 * error(0.0 * v) < 0.3 * error(v)


def test_the_loss_of_a_pair_sums_over_coordinates_of_points_and_images():
    net, t = UNet(1, channels=(8, 8)), torch.tensor([0.2, 0.7])
    x_0, x_1 = randn(2, 2, 1, 8, 8, generator=generator(0))
    with torch.no_grad():
        got = fm.conditional_flow_matching_loss(net, CondOT(), x_0, x_1, t)
        v = net(t, torch.lerp(x_0, x_1, t[:, None, None, None]))
    torch.testing.assert_close(got, (v - (x_1 - x_0)).square().reshape(2, -1).sum(1))


@PATHS
def test_the_point_and_velocity_of_a_pair_are_those_of_the_path(path):
    """The conditional velocity as a function of place, at the place."""
    x_0, x_1, t = normals(6, 2), normals(6, 2, seed=1), rand(6, generator=generator(2), dtype=F64) * 0.9
    x_t, u_t = fm.interpolate(path, x_0, x_1, t)
    torch.testing.assert_close(x_t, path.sample(t, x_1, x_0))
    torch.testing.assert_close(u_t, path.velocity(t, x_t, x_1))


def test_a_blurred_line_needs_a_generator_and_has_its_width():
    """The spread of the blur, four standard errors (false alarm 6e-5)."""
    x, t = torch.zeros(50_000, 1, dtype=F64), torch.zeros(50_000, dtype=F64)
    with pytest.raises(ValueError, match=r"interpolate: received sigma=0.1 and no generator; rule"):
        fm.interpolate(LinearPath(0.1), x, x, t)
    x_t, u_t = fm.interpolate(LinearPath(0.1), x, x, t, generator=generator(0))
    assert abs(x_t.std() - 0.1) < 4 * 0.1 / math.sqrt(100_000)
    assert u_t.abs().max() == 0


@pytest.mark.parametrize(
    ("x_0", "x_1", "t"),
    [
        (torch.zeros(4, 2), torch.zeros(4, 3), torch.zeros(4)),
        (torch.zeros(4, 2), torch.zeros(4, 2), torch.full((4,), 1.5)),
        (torch.zeros(4, 2), torch.zeros(4, 2, dtype=F64), torch.zeros(4)),
    ],
    ids=["shapes", "time", "dtypes"],
)
@pytest.mark.parametrize("path", [CondOT(), LinearPath()])
def test_unusable_pairs_are_refused_with_the_rule(path, x_0, x_1, t):
    with pytest.raises(ValueError, match=r"received .*; rule"):
        fm.interpolate(path, x_0, x_1, t)


# ---------------------------------------------------------------------- couplings and batches


@pytest.mark.verifies("eq-coupled-velocity")
def test_any_coupling_with_the_right_margins_carries_noise_to_data():
    """Gaussian pairs of any correlation, where E[x_1 − x_0 | x_t] is linear: the flow maps quantiles to quantiles."""
    for correlation in (-0.6, 0.0, 0.9):
        cross = correlation * STD

        def field(t, x, cross=cross):
            variance = (1 - t) ** 2 + 2 * t * (1 - t) * cross + (t * STD) ** 2
            slope = (t * STD**2 + (1 - 2 * t) * cross - (1 - t)) / variance
            return MEAN + slope * (x - t * MEAN)

        x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
        torch.testing.assert_close(integrate(field, x, TIGHT).final, MEAN + STD * x, atol=1e-6, rtol=0)


def test_the_coupled_velocity_is_the_mean_of_the_pairs_that_pass():
    """Counting pairs near x at time t, for transport on the line, where the answer is x_1 − x_0 = T(x_0) − x_0."""
    n, t, x = 400_000, 0.5, 0.8
    x_0 = normals(n, 1)
    x_1 = MEAN + STD * x_0  # the monotone map
    x_t, u_t = fm.interpolate(LinearPath(), x_0, x_1, f64(t).expand(n))
    near = (x_t[:, 0] - x).abs() < 0.01
    start = (x - t * MEAN) / (1 - t + t * STD)
    assert abs(u_t[near].mean() - (MEAN + STD * start - start)) < 0.01


@pytest.mark.verifies("eq-crossing")
def test_swapping_partners_pays_exactly_where_the_product_is_negative():
    """Squared distances, computed one by one."""
    a_0, a_1, b_0, b_1 = normals(4, 500, 3)

    def square(x, y):
        return (x - y).square().sum(1)

    gain = square(a_0, a_1) + square(b_0, b_1) - square(a_0, b_1) - square(b_0, a_1)
    torch.testing.assert_close(gain, -2 * ((a_0 - b_0) * (a_1 - b_1)).sum(1))


@pytest.mark.refutes("E22")
def test_minibatch_transport_crosses_between_batches_and_full_transport_does_not():
    """Counts of negative products: zero in each batch and in the pairing of all, many between the batches."""
    g, coupling = generator(0), fm.OptimalTransportCoupling()
    batches = [(randn(64, 2, generator=g), RING.sample(64, generator=g).float()) for _ in range(6)]
    pairs = [coupling(*batch) for batch in batches]
    assert [crossing_pairs(*pair) for pair in pairs] == [0] * 6
    assert crossing_pairs(*(torch.cat(side) for side in zip(*pairs, strict=True))) > 100
    assert (
        crossing_pairs(*fm.OptimalTransportCoupling()(*(torch.cat(side) for side in zip(*batches, strict=True)))) == 0
    )


def test_segments_that_intersect_in_the_plane_need_not_cross():
    """Two pairs whose drawn segments meet, at different times: the product is positive, swapping does not pay."""
    x_0 = torch.tensor([[0.0, 0.0], [2.0, -0.1]])
    x_1 = torch.tensor([[4.0, 0.0], [4.2, 1.0]])  # they meet near (2.2, 0): the first half-way, the second at once
    assert crossing_pairs(x_0, x_1) == 0


def test_transport_finds_the_best_of_all_pairings():
    """All 720 permutations of six points, batch after batch from one coupling."""
    coupling = fm.OptimalTransportCoupling()
    for seed in range(4):
        x_0, x_1 = normals(2, 6, 2, seed=seed)
        a, b = coupling(x_0, x_1)
        best = min((x_0 - x_1[list(order)]).square().sum() for order in itertools.permutations(range(6)))
        torch.testing.assert_close((a - b).square().sum(), best)
        torch.testing.assert_close(b.sort(0).values, x_1.sort(0).values)


def test_sinkhorn_lies_between_transport_and_independence():
    """Mean squared length of 256 pairs: grows with ε from the transport's to the independent one's."""
    x_0, x_1 = randn(256, 2, generator=generator(0)), RING.sample(256, generator=generator(1)).float()

    def length(coupling):
        a, b = coupling(x_0, x_1, generator=generator(2))
        return (a - b).square().sum(1).mean().item()

    lengths = [length(fm.OptimalTransportCoupling()), *(length(fm.SinkhornCoupling(e)) for e in (1.0, 8.0, 1e4))]
    assert all(shorter < 0.9 * longer for shorter, longer in itertools.pairwise(lengths))
    assert abs(lengths[-1] - length(fm.IndependentCoupling())) < 1.5


def test_couplings_pair_images_by_their_pixels():
    x_0, x_1 = randn(2, 5, 1, 2, 2, generator=generator(0))
    a, b = fm.OptimalTransportCoupling()(x_0, x_1)
    flat = fm.OptimalTransportCoupling()(x_0.flatten(1), x_1.flatten(1))[1]
    torch.testing.assert_close(b.flatten(1), flat)
    assert a is x_0


def test_batches_are_the_same_for_the_same_seed_and_new_each_time():
    def first_two(seed):
        stream = fm.batches(standard_normal(2), RING, fm.IndependentCoupling(), batch=8, generator=generator(seed))
        return next(stream), next(stream)

    (one, two), (again, _) = first_two(3), first_two(3)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one.x_0, two.x_0)
    assert one.t.shape == (8,)
    assert 0 <= one.t.min() <= one.t.max() < 1


def test_paired_batches_keep_each_pair_together():
    x_0 = torch.arange(20.0)[:, None]
    stream = fm.paired_batches(x_0, 10 * x_0, batch=6, generator=generator(0))
    for _ in range(5):
        batch = next(stream)
        torch.testing.assert_close(batch.x_1, 10 * batch.x_0)
        assert batch.t.shape == (6,)


def test_noise_is_standard_and_has_the_shape_asked_for():
    """Mean and variance, four standard errors (false alarm 1e-4)."""
    x = fm.Noise((1, 4, 4)).sample(5000, generator=generator(0))
    assert x.shape == (5000, 1, 4, 4)
    assert abs(x.mean()) < 4 / math.sqrt(x.numel())
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / x.numel())


# ---------------------------------------------------------------------- sampling


@pytest.mark.refutes("E17")
def test_euler_becomes_exact_as_the_step_goes_to_zero():
    """An adaptive solution: the error halves with the step, and one step of h = 1 lands on the mean of the data."""
    x = normals(200, 2)
    truth = fm.sample(ring_field, x, TIGHT)
    errors = [(fm.sample(ring_field, x, Euler(steps=n)) - truth).square().mean().sqrt() for n in (100, 200, 400)]
    assert all(1.9 < a / b < 2.1 for a, b in itertools.pairwise(errors))
    assert fm.sample(ring_field, x, Euler(steps=1)).abs().max() < 1e-12  # the mean of the ring is its center


@pytest.mark.refutes("E21")
def test_a_loop_of_one_step_less_stops_short_of_the_data():
    """A constant field, where Euler is exact: n steps arrive, n − 1 steps leave 1/n of the way."""
    x_0, x_1, n = normals(5, 2), normals(5, 2, seed=1), 8
    times = []

    def v(t, x):
        times.append(float(t))
        return x_1 - x_0

    torch.testing.assert_close(fm.sample(v, x_0, Euler(steps=n)), x_1)
    assert times == [k / n for k in range(n)]
    short = x_0
    for _ in range(1, n):
        short = short + (x_1 - x_0) / n
    torch.testing.assert_close(x_1 - short, (x_1 - x_0) / n)


def test_the_exact_field_samples_the_data():
    """The energy of the ring: mean, spread and share of each heap, four standard errors (false alarm 7e-4 in all)."""
    n = 4000
    end = fm.sample(ring_field, normals(n, 2), RungeKutta4(steps=100))
    real_var = (2.5**2 / 2) + 0.3**2
    assert (end.mean(0).abs() < 4 * math.sqrt(real_var / n)).all()
    shares = (end[:, None] - RING.means).norm(dim=2).argmin(1).bincount(minlength=8) / n
    assert ((shares - 1 / 8).abs() < 4 * math.sqrt(7 / 64 / n)).all()
    from_heap = (end[:, None] - RING.means).norm(dim=2).min(1).values
    assert abs(from_heap.square().mean() - 2 * 0.3**2) < 4 * 2 * 0.3**2 / math.sqrt(n)


@pytest.mark.verifies("eq-same-marginals")
@pytest.mark.parametrize("noise", [0.0, 1.0, 2.0])
def test_noise_on_the_way_changes_no_marginal(noise):
    """Mean and variance of Gaussian data, four standard errors and the step's own error (false alarm 1e-4)."""
    n = 40_000
    x_0 = normals(n, 1)
    end = fm.sample_sde(gaussian_field, CondOT(), x_0, noise=noise, steps=400, generator=generator(1))
    assert abs(end.mean() - MEAN) < 4 * STD / math.sqrt(n) + 0.002
    assert abs(end.std() - STD) < 4 * STD / math.sqrt(2 * n) + 0.004
    correlation = torch.corrcoef(torch.cat([x_0, end], dim=1).T)[0, 1]
    assert correlation > 0.999 if noise == 0 else correlation < 0.7


def test_without_noise_the_sde_sampler_is_euler():
    x = normals(10, 2)
    end = fm.sample_sde(ring_field, CondOT(), x, noise=0.0, steps=20, generator=generator(0))
    torch.testing.assert_close(end, fm.sample(ring_field, x, Euler(steps=20)))


def test_sampling_keeps_no_graph():
    net = VelocityMLP(2)
    assert not fm.sample(net, randn(3, 2, generator=generator(0)), Euler(steps=2)).requires_grad


# ---------------------------------------------------------------------- straightness and reflow


@pytest.mark.verifies("eq-energy-split")
def test_wasted_energy_is_wrong_partners_plus_bent_ways():
    """The straightness by its definition, as an integral over a fine trajectory."""
    x_0, fine = normals(400, 2), RungeKutta4(steps=200)
    run = integrate(ring_field, x_0, fine)
    v = torch.stack([ring_field(t, x) for t, x in zip(run.t, run.x, strict=True)])
    bend = ((run.x[-1] - run.x[0]) - v).square().sum(2).mean(1)
    by_definition = torch.trapezoid(bend, run.t)
    torch.testing.assert_close(fm.straightness(ring_field, x_0, fine), by_definition, rtol=1e-3, atol=0)
    moved = (run.x[-1] - run.x[0]).square().sum(1).mean()
    torch.testing.assert_close(f64(path_energy(ring_field, x_0, solver=fine)), moved + by_definition, rtol=1e-3, atol=0)


def test_energy_is_never_less_than_the_squared_distance():
    """Gaussians on the line: W₂² = MEAN² + (1 − STD)², reached by the monotone map at constant speed."""
    x_0 = torch.special.ndtri((torch.arange(2000, dtype=F64) + 0.5) / 2000)[:, None]
    least = MEAN**2 + (1 - STD) ** 2
    spent = path_energy(gaussian_field, x_0, solver=RungeKutta4(steps=50))

    def straight(t, x):
        return MEAN + (STD - 1) / (1 + t * (STD - 1)) * (x - t * MEAN)

    assert spent > 1.02 * least
    assert path_energy(straight, x_0, solver=RungeKutta4(steps=50)) == pytest.approx(least, rel=2e-3)
    assert fm.straightness(straight, x_0, RungeKutta4(steps=50)).abs() < 1e-8


def test_reflow_pairs_are_starts_with_their_ends_and_do_not_cross():
    """For Gaussians on the line the flow is monotone, so its pairs do not cross."""
    x_0 = normals(300, 1)
    a, b = fm.reflow_pairs(gaussian_field, x_0, TIGHT)
    assert torch.equal(a, x_0)
    torch.testing.assert_close(b, MEAN + STD * x_0, atol=1e-6, rtol=0)
    assert crossing_pairs(a, b) == 0
    assert fm.straightness(gaussian_field, x_0, RungeKutta4(steps=50)) > 0.01


# ---------------------------------------------------------------------- four answers


@pytest.mark.verifies("eq-two-predictions", "eq-cond-ot-predictions")
@PATHS
def test_velocity_datum_and_noise_are_two_equations_of_one_posterior(path):
    """The posterior of x_1 on a fine grid: its mean, and the means of ε and of the velocity under it."""
    t, x = f64(0.6), torch.linspace(-2, 3, 11, dtype=F64)[:, None]
    x_1 = torch.linspace(-6, 8, 4001, dtype=F64)
    alpha, sigma = path.alpha(t), path.sigma(t)
    weight = (SKEW.log_prob(x_1[:, None]) - (x - alpha * x_1).square() / (2 * sigma**2)).softmax(1)
    eps = (x - alpha * x_1) / sigma
    data, noise = (weight * x_1).sum(1, keepdim=True), (weight * eps).sum(1, keepdim=True)
    u = SKEW.marginal_velocity(path, t, x)
    torch.testing.assert_close(alpha * data + sigma * noise, x)
    torch.testing.assert_close(path.d_alpha(t) * data + path.d_sigma(t) * noise, u, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(path.data_from_velocity(t, x, u), data, atol=1e-6, rtol=1e-6)
    if isinstance(path, CondOT):
        torch.testing.assert_close(x + (1 - t) * u, data, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(x - t * u, noise, atol=1e-6, rtol=1e-6)


@pytest.mark.verifies("eq-score-noise")
@PATHS
def test_the_score_is_the_noise_prediction_over_minus_sigma(path):
    """Autograd of the log of the marginal density."""
    t, x = f64(0.7), RING.at_time(path, f64(0.7)).sample(50, generator=generator(0)).requires_grad_()
    (score,) = torch.autograd.grad(RING.at_time(path, t).log_prob(x).sum(), x)
    x = x.detach()
    noise = path.noise_from_velocity(t, x, RING.marginal_velocity(path, t, x))
    torch.testing.assert_close(-noise / path.sigma(t), score)


# ---------------------------------------------------------------------- likelihood


@pytest.mark.verifies("eq-log-likelihood")
def test_the_exact_field_has_the_exact_density():
    """The density of the ring, which is known."""
    x = torch.cat([RING.sample(30, generator=generator(0)), normals(10, 2)])
    got = fm.log_likelihood(ring_field, x, standard_normal(2, dtype=F64), TIGHT)
    torch.testing.assert_close(got, RING.log_prob(x), atol=1e-5, rtol=1e-5)


@pytest.mark.refutes("E36")
def test_the_density_takes_the_way_back_and_its_divergence():
    """Integrals over a grid: 1 with the divergence, not without it; the base density at the datum is another's."""
    axis = torch.linspace(-4, 4, 81, dtype=F64)
    cells, area = torch.cartesian_prod(axis, axis), 0.1**2
    base = standard_normal(2, dtype=F64)
    log_p = fm.log_likelihood(ring_field, cells, base, RungeKutta4(steps=40))
    back = integrate(ring_field, cells, RungeKutta4(steps=40), t0=1.0, t1=0.0).final
    assert log_p.exp().sum() * area == pytest.approx(1, abs=0.01)
    assert base.log_prob(back).exp().sum() * area > 2
    assert (base.log_prob(cells) - RING.log_prob(cells)).abs().max() > 5


def test_hutchinson_is_right_on_average():
    """The exact log-density of one point, from 4,000 noises: four standard errors (false alarm 6e-5)."""
    x = f64([[2.2, 0.5]]).expand(4000, 2)
    noise = rademacher((4000, 2), generator(0), dtype=F64)
    estimate = functools.partial(value_and_hutchinson_divergence, noise=noise)
    base, solver = standard_normal(2, dtype=F64), RungeKutta4(steps=40)
    got = fm.log_likelihood(ring_field, x, base, solver, divergence=estimate)
    exact = fm.log_likelihood(ring_field, x[:1], base, solver)
    assert abs(got.mean() - exact[0]) < 4 * got.std() / math.sqrt(4000)
    assert got.std() > 0.01


def test_the_likelihood_of_images_is_that_of_their_pixels():
    """A linear field of images, v = c x: log-density of a Gaussian with standard deviation e^c."""
    x = randn(3, 1, 2, 2, generator=generator(0), dtype=F64)
    got = fm.log_likelihood(lambda t, x: 0.5 * x, x, standard_normal(4, dtype=F64), TIGHT)
    scale = math.exp(0.5)
    expected = torch.distributions.Normal(0.0, f64(scale)).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


# ---------------------------------------------------------------------- live figures


def test_the_arrow_of_the_figure_is_the_marginal_velocity():
    """Bayes by hand: normalized Gaussian densities as weights of the four demands."""
    figure = whose_arrow()
    out = figure.compute(t=0.5, x=(0.3, -0.4))
    data, x = figure.inputs["data_at"], torch.tensor([0.3, -0.4])
    density = torch.distributions.MultivariateNormal(0.5 * data, 0.25 * torch.eye(2)).log_prob(x).exp()
    weights = density / density.sum()
    torch.testing.assert_close(out["weights"], weights)
    torch.testing.assert_close(out["mean"], (weights[:, None] * (data - x) / 0.5).sum(0))


def test_the_way_of_the_figure_ends_at_a_datum():
    figure = whose_arrow()
    for t, x in ((0.0, (0.1, 0.5)), (0.5, (2.0, 2.0)), (0.9, (-1.0, 0.0))):
        end = figure.compute(t=t, x=x)["way"][-1, 0]
        assert (figure.inputs["data_at"] - end).norm(dim=1).min() < 0.02


def test_the_sampler_of_the_figure_takes_the_steps_of_the_solver():
    """The companion's own solver, all steps in one call."""
    nets = {}
    for key in COUPLINGS:
        torch.manual_seed(len(nets))
        nets[key] = VelocityMLP(2, width=8)
    figure = flow_sampler(nets, RING.sample(50, generator=generator(0)), n=20)
    for key, net in nets.items():
        got = figure.compute(coupling=key, solver="rk4", steps=3)
        want = fm.sample(net, figure.inputs["x"], RungeKutta4(steps=3))
        torch.testing.assert_close(got["x"], want)
        assert got["evaluations"] == 12
        assert got["time"] == 1
