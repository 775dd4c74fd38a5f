"""Flows and vector fields: each equation of chapter 08 against a fact that does not use it."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch.distributions import MultivariateNormal

from companion.data import Empirical, GaussianMixture, eight_gaussians
from companion.device import generator, randn
from companion.live.flows import langevin_step, two_bells, vector_field
from companion.methods import flows
from companion.numerics.ode import DormandPrince, Euler, Heun, Midpoint, RungeKutta4, integrate
from companion.numerics.paths import VariancePreserving
from companion.numerics.sampling import langevin
from companion.numerics.sde import euler_maruyama

TIGHT = DormandPrince(rtol=1e-10, atol=1e-10)
A = torch.tensor([[-0.3, -1.0], [1.0, -0.3]], dtype=torch.float64)  # the spiral's matrix
POINTS = randn(20, 2, generator=generator(0), dtype=torch.float64)


def spiral(t, x):
    return flows.spiral(pull=0.3, turn=1.0)(t, x)


def windy(t, x):
    """Depends on time and is not linear."""
    return torch.stack([x[:, 1] * torch.cos(t), -torch.sin(x[:, 0]) - t * x[:, 1]], dim=1)


def pull(t, x):
    return -x


def growing(t, x):
    return -2 * t * x


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


def scipy_end(v, x, t):
    """The flow by an eighth-order method of another library, point by point."""

    def slope(time, y):
        return v(f64(time), torch.tensor(y)[None])[0].numpy()

    ends = [solve_ivp(slope, (0, t), point.numpy(), method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1] for point in x]
    return torch.stack([torch.from_numpy(end) for end in ends])


# ---------------------------------------------------------------------- points


@pytest.mark.verifies("eq-flow")
def test_the_flow_of_a_linear_field_is_the_matrix_exponential():
    """The matrix exponential, by scaling and squaring."""
    end = flows.flow(spiral, POINTS, s=0.0, t=1.7, solver=TIGHT)
    torch.testing.assert_close(end, POINTS @ torch.linalg.matrix_exp(1.7 * A).T, atol=1e-8, rtol=0)


@pytest.mark.verifies("eq-flow")
def test_the_flow_moves_as_the_field_says_at_the_place_where_the_particle_is():
    """SciPy's eighth-order solver for the flow, a central difference for its derivative."""
    h, x = 1e-4, POINTS[:3]
    speed = (scipy_end(windy, x, 1.2 + h) - scipy_end(windy, x, 1.2 - h)) / (2 * h)
    place = flows.flow(windy, x, s=0.0, t=1.2, solver=TIGHT)
    torch.testing.assert_close(speed, windy(f64(1.2), place), atol=1e-6, rtol=0)
    assert torch.equal(flows.flow(windy, x, s=0.4, t=0.4), x)


def test_the_flow_agrees_with_torchdiffeq():
    """Another library's Dormand–Prince solver."""
    odeint = pytest.importorskip("torchdiffeq").odeint
    theirs = odeint(windy, POINTS, f64([0.2, 2.0]), method="dopri5", rtol=1e-9, atol=1e-9)[-1]
    torch.testing.assert_close(flows.flow(windy, POINTS, s=0.2, t=2.0, solver=TIGHT), theirs, atol=1e-7, rtol=0)


@pytest.mark.verifies("eq-pull", "eq-growing-pull")
@pytest.mark.parametrize(("v", "factor"), [(pull, math.exp(-0.9)), (growing, math.exp(-(1.3**2 - 0.4**2)))])
def test_closed_form_flows_agree_with_the_solver(v, factor):
    """The solver knows only the field."""
    torch.testing.assert_close(flows.flow(v, POINTS, s=0.4, t=1.3, solver=TIGHT), factor * POINTS, atol=1e-8, rtol=0)


@pytest.mark.verifies("eq-composition")
def test_flows_compose_and_the_way_back_is_the_inverse():
    """The two sides are integrated separately, in a field that depends on time."""
    there = flows.flow(windy, POINTS, s=0.3, t=1.1, solver=TIGHT)
    whole = flows.flow(windy, POINTS, s=0.3, t=2.0, solver=TIGHT)
    torch.testing.assert_close(flows.flow(windy, there, s=1.1, t=2.0, solver=TIGHT), whole, atol=1e-7, rtol=0)
    torch.testing.assert_close(flows.flow(windy, there, s=1.1, t=0.3, solver=TIGHT), POINTS, atol=1e-7, rtol=0)


@pytest.mark.verifies("eq-group")
def test_the_flow_of_an_autonomous_field_is_a_group_and_that_of_a_changing_field_is_not():
    """Powers of a matrix exponential; and the numbers of the page for the growing pull."""
    once = flows.flow(spiral, POINTS, t=0.8, solver=TIGHT)
    twice = flows.flow(spiral, once, t=0.8, solver=TIGHT)
    power = torch.linalg.matrix_power(torch.linalg.matrix_exp(0.8 * A), 2)
    torch.testing.assert_close(twice, POINTS @ power.T, atol=1e-8, rtol=0)
    torch.testing.assert_close(flows.flow(spiral, POINTS, t=1.6, solver=TIGHT), twice, atol=1e-7, rtol=0)
    one = torch.ones(1, 1, dtype=torch.float64)
    doubled = flows.flow(growing, flows.flow(growing, one, t=1.0), t=1.0)
    assert abs(doubled.item() - math.exp(-2)) < 1e-5
    assert abs(flows.flow(growing, one, t=2.0).item() - math.exp(-4)) < 1e-5


@pytest.mark.refutes("E11")
def test_the_derivative_at_time_zero_is_not_the_field_of_a_flow_that_depends_on_time():
    """The flow e^{−t²} x in closed form: its derivative at time 0 is zero, and the particle moves all the same."""

    def phi(t, x):
        return math.exp(-(t**2)) * x

    h, t = 1e-5, 1.0
    frozen = (phi(h, POINTS) - phi(0.0, POINTS)) / h
    assert frozen.abs().max() < 1e-4
    stuck = flows.flow(lambda time, x: 0.0 * x, POINTS, t=t)
    assert ((stuck - phi(t, POINTS)).norm(dim=1) > 0.6 * POINTS.norm(dim=1)).all()
    start = POINTS * math.exp(t**2)  # of the particles that are at POINTS at time t
    right = (phi(t + h, start) - phi(t - h, start)) / (2 * h)
    torch.testing.assert_close(right, growing(t, POINTS), atol=1e-6, rtol=0)


# ---------------------------------------------------------------------- steps


def factors(step, v, x, t, exact, counts=(64, 128)):
    """By how much doubling the steps divides the error."""
    errors = []
    for n in counts:
        y, h = x, t / n
        for k in range(n):
            y = step(v, f64(k * h), y, h)
        errors.append((y - exact).norm().item())
    return errors[0] / errors[1]


@pytest.mark.verifies("eq-euler-circle")
def test_euler_leaves_the_circle_by_a_known_factor():
    """The solver's own radius after a full turn."""
    n, h = 24, 2 * math.pi / 24
    end = integrate(flows.spiral(pull=0.0), POINTS, Euler(steps=n), t1=2 * math.pi).final
    torch.testing.assert_close(end.norm(dim=1), POINTS.norm(dim=1) * (1 + h**2) ** (n / 2), atol=1e-10, rtol=0)


@pytest.mark.verifies("eq-euler-bound")
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_eulers_error_stays_below_the_bound_and_is_of_its_order(sign):
    """x' = ±x from 1 for the time 2: L = 1, |x''| = |x| ≤ M known, exact end known."""
    one, exact, bend = torch.ones(1, 1, dtype=torch.float64), math.exp(2 * sign), max(1.0, math.exp(2 * sign))
    for n in (4, 32, 256):
        error = abs(integrate(lambda t, x: sign * x, one, Euler(steps=n), t1=2.0).final.item() - exact)
        bound = bend / 2 * (math.exp(2) - 1) * 2 / n
        assert error <= bound
        assert error >= 0.02 * bound


@pytest.mark.verifies("eq-midpoint")
def test_one_midpoint_step_is_wrong_by_the_third_power_of_the_step():
    """The field's flow by a solver with tolerance 1e-12, in a nonlinear field that depends on time."""
    errors = []
    for h in (0.02, 0.01):
        exact = flows.flow(windy, POINTS, s=0.7, t=0.7 + h, solver=DormandPrince(rtol=1e-12, atol=1e-12))
        middle = POINTS + h / 2 * windy(f64(0.7), POINTS)
        errors.append((POINTS + h * windy(f64(0.7 + h / 2), middle) - exact).norm().item())
    assert 7.5 < errors[0] / errors[1] < 8.5


@pytest.mark.verifies("eq-rk4")
def test_the_measured_orders_are_one_two_two_four():
    """SciPy's eighth-order solver gives the end of a nonlinear field that depends on time."""
    x = POINTS[:3]
    exact = scipy_end(windy, x, 2.0)
    for solver, order in ((Euler(1), 1), (Midpoint(1), 2), (Heun(1), 2), (RungeKutta4(1), 4)):
        assert factors(solver.step, windy, x, 2.0, exact) == pytest.approx(2**order, rel=0.12)


@pytest.mark.refutes("E12")
def test_half_an_update_does_not_converge_and_the_whole_one_does():
    """Measured order, in a nonlinear field that depends on time."""

    def half(v, t, x, h):
        return x + h / 2 * v(t + h / 2, x + h / 2 * v(t, x))

    def whole(v, t, x, h):
        return x + h * v(t + h / 2, x + h / 2 * v(t, x))

    exact = flows.flow(windy, POINTS, t=2.0, solver=TIGHT)
    assert factors(half, windy, POINTS, 2.0, exact) < 1.05
    assert factors(whole, windy, POINTS, 2.0, exact) == pytest.approx(4, rel=0.05)


@pytest.mark.verifies("eq-step-size")
def test_the_error_estimate_of_one_step_grows_with_the_fifth_power_of_the_step():
    """The difference of the two answers, from the slopes, for two steps: hence the exponent −1/5."""
    tableau, estimates = DormandPrince.tableau, []
    for h in (0.1, 0.05):
        slopes = []
        for weights, c in zip(tableau.a, tableau.c, strict=True):
            x = POINTS + h * sum((a * k for a, k in zip(weights, slopes, strict=True)), torch.zeros_like(POINTS))
            slopes.append(windy(f64(0.7 + c * h), x))
        estimates.append(h * sum(e * k for e, k in zip(tableau.error, slopes, strict=True)).norm().item())
    assert estimates[0] / estimates[1] == pytest.approx(2**5, rel=0.15)


def chase(rate):
    return lambda t, x: -rate * (x - torch.cos(t)) - torch.sin(t)


@pytest.mark.verifies("eq-stability")
def test_euler_is_stable_up_to_the_step_two_over_the_rate_and_not_beyond():
    """A pull of rate 50 from 1: the exact solution decays, so the numerical one must."""
    one = torch.ones(1, 1, dtype=torch.float64)
    for h, stable in ((0.039, True), (0.041, False)):
        end = integrate(lambda t, x: -50.0 * x, one, Euler(steps=200), t1=200 * h).final.abs().item()
        assert (end < 1) == stable


@pytest.mark.verifies("eq-backward-euler")
def test_backward_euler_solves_its_equation_and_is_stable_for_long_steps():
    """The residual of the implicit equation in a nonlinear field; cos t as the exact solution of a stiff one."""
    h, t = 0.3, f64(0.9 + 0.3)
    end = flows.backward_euler(windy, POINTS, t0=0.9, t1=0.9 + h, steps=1, iterations=8)
    torch.testing.assert_close(end, POINTS + h * windy(t, end), atol=1e-12, rtol=0)
    one = torch.ones(1, 1, dtype=torch.float64)
    for rate in (50.0, 5000.0):
        assert abs(flows.backward_euler(chase(rate), one, t1=6.0, steps=40).item() - math.cos(6)) < 0.2 / rate + 1e-9


def test_backward_euler_has_order_one():
    """The error against the tolerance-driven solver halves with the step."""
    exact = flows.flow(windy, POINTS, t=1.0, solver=TIGHT)
    coarse, fine = (flows.backward_euler(windy, POINTS, t1=1.0, steps=n) - exact for n in (64, 128))
    assert coarse.norm().item() / fine.norm().item() == pytest.approx(2, rel=0.05)


# ---------------------------------------------------------------------- densities


def gaussian(t):
    """N(m, C) carried by the spiral is N(e^{tA} m, e^{tA} C e^{tA}ᵀ)."""
    grow = torch.linalg.matrix_exp(t * A)
    mean, covariance = f64([1.0, 0.5]), f64([[0.4, 0.1], [0.1, 0.2]])
    return MultivariateNormal(grow @ mean, grow @ covariance @ grow.T)


@pytest.mark.verifies("eq-continuity")
def test_the_density_carried_by_a_field_obeys_the_continuity_equation():
    """A Gaussian transported by the matrix exponential; the opposite field and the mere turn fail."""

    def density(t, x):
        return gaussian(t).log_prob(x).exp()

    t, x = f64(0.6), gaussian(f64(0.6)).sample((50,))
    change = (density(t + 1e-4, x) - density(t - 1e-4, x)).abs().max() / 2e-4
    assert flows.continuity_residual(density, spiral, t, x).abs().max() < 1e-5 * change
    assert flows.continuity_residual(density, lambda t, x: -spiral(t, x), t, x).abs().max() > change
    assert flows.continuity_residual(density, flows.spiral(pull=0.0), t, x).abs().max() > 0.1 * change


@pytest.mark.verifies("eq-continuity")
def test_a_box_gains_what_flows_through_its_faces():
    """Probability of an interval by the normal distribution function, flux through its ends: no derivative of p."""

    def inside(t, a, b):
        bell = torch.distributions.Normal(math.exp(-t), 0.5 * math.exp(-t))
        return bell.cdf(f64(b)) - bell.cdf(f64(a))

    def flux(t, a):
        bell = torch.distributions.Normal(f64(math.exp(-t)), 0.5 * math.exp(-t))
        return bell.log_prob(f64(a)).exp() * -a

    t, h, a, b = 0.7, 1e-2, 0.2, 0.6
    gain = (inside(t + h, a, b) - inside(t - h, a, b)) / (2 * h)
    torch.testing.assert_close(gain, flux(t, a) - flux(t, b), atol=1e-3, rtol=0)


@pytest.mark.verifies("eq-along-flow", "eq-log-density")
def test_the_log_density_along_the_flow_falls_by_the_divergence():
    """The transported Gaussian's own log_prob at the transported points."""
    start, end = gaussian(f64(0.2)), gaussian(f64(1.4))
    x, log_p = flows.carry(spiral, POINTS, start.log_prob(POINTS), s=0.2, t=1.4, solver=TIGHT)
    torch.testing.assert_close(log_p, end.log_prob(x), atol=1e-8, rtol=0)
    torch.testing.assert_close(
        log_p - start.log_prob(POINTS), torch.full((20,), 0.72, dtype=torch.float64), atol=1e-8, rtol=0
    )
    named = flows.log_prob_at(spiral, x, start.log_prob, s=0.2, t=1.4, solver=TIGHT)
    torch.testing.assert_close(named, log_p, atol=1e-8, rtol=0)


@pytest.mark.verifies("eq-log-density")
def test_the_density_of_a_nonlinear_flow_is_that_of_its_particles():
    """200,000 carried particles counted in ten boxes; false alarm below 1e-4 (4.5 standard errors, ten boxes)."""
    x = torch.rand(200_000, 1, generator=generator(1), dtype=torch.float64)
    end = flows.flow(lambda t, x: x * (1 - x), x, t=1.5, solver=RungeKutta4(steps=30))
    counts = torch.histc(end, bins=10, min=0.0, max=1.0)
    fine = (torch.arange(2000, dtype=torch.float64)[:, None] + 0.5) / 2000
    log_p = flows.log_prob_at(lambda t, x: x * (1 - x), fine, lambda x: 0.0 * x[:, 0], t=1.5)
    share = log_p.exp().reshape(10, 200).mean(1) / 10
    assert share.sum().item() == pytest.approx(1, abs=1e-4)
    assert ((counts / 200_000 - share).abs() < 4.5 * (share * (1 - share) / 200_000).sqrt()).all()


def test_a_field_without_divergence_keeps_the_density_of_its_passengers():
    """Liouville's theorem for the pendulum: the log-density does not change along a path."""
    heaps = eight_gaussians(scale=1.5, std=0.2, dtype=torch.float64)
    x = heaps.sample(50, generator=generator(2))
    _, log_p = flows.carry(flows.pendulum, x, heaps.log_prob(x), t=6.0)
    torch.testing.assert_close(log_p, heaps.log_prob(x), atol=1e-9, rtol=0)


@pytest.mark.verifies("eq-log-det-step")
def test_the_log_determinant_of_a_short_step_is_the_step_times_the_trace():
    """LU decompositions of random 5 × 5 matrices: the difference falls with the square of the step."""
    J = randn(30, 5, 5, generator=generator(3), dtype=torch.float64)
    trace, identity = J.diagonal(dim1=1, dim2=2).sum(1), torch.eye(5, dtype=torch.float64)
    miss = [torch.linalg.slogdet(identity + h * J).logabsdet - h * trace for h in (1e-3, 5e-4)]
    torch.testing.assert_close(miss[0], 4 * miss[1], rtol=0.05, atol=1e-7)
    assert miss[0].abs().max() < 1e-3


# ---------------------------------------------------------------------- noise


@pytest.mark.verifies("eq-euler-maruyama")
@pytest.mark.parametrize("steps", [5, 80])
def test_the_variance_of_a_random_walk_does_not_depend_on_how_finely_time_is_cut(steps):
    """Without drift the variance is g² T; 40,000 walkers, false alarm below 1e-4 (4 standard errors)."""
    x = torch.zeros(40_000, 1, dtype=torch.float64)
    end = euler_maruyama(lambda t, x: 0 * x, 0.7, x, t1=3.0, steps=steps, generator=generator(4)).final
    assert end.var().item() == pytest.approx(0.49 * 3, rel=4 * math.sqrt(2 / 40_000))


@pytest.mark.verifies("eq-ou")
def test_the_shaken_pull_has_the_closed_form_mean_and_variance():
    """40,000 Euler–Maruyama paths with 400 steps; 4 standard errors (false alarm 1e-4) and the step's own bias."""
    t = f64(0.9)
    alpha, sigma = flows.ornstein_uhlenbeck(t)
    x = torch.full((40_000, 1), 2.0, dtype=torch.float64)
    end = euler_maruyama(pull, math.sqrt(2), x, t1=0.9, steps=400, generator=generator(5)).final
    assert end.mean().item() == pytest.approx(2 * alpha.item(), abs=4 * sigma.item() / 200 + 0.003)
    assert end.var().item() == pytest.approx(sigma.item() ** 2, rel=4 * math.sqrt(2 / 40_000) + 0.004)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))


@pytest.mark.verifies("eq-langevin")
def test_langevin_samples_a_density_that_it_knows_only_by_its_score():
    """20,000 particles counted in eight boxes against the mixture's distribution function; false alarm below 1e-4."""
    mixture = GaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.36), torch.tensor([0.35, 0.65]))
    x = langevin(mixture.score, torch.zeros(20_000, 1), h=0.01, steps=1000, generator=generator(6))
    edges = torch.tensor([-9.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 9.0])
    bells = torch.distributions.Normal(torch.tensor([-1.0, 1.0]), 0.6)
    share = (bells.cdf(edges[:, None]) @ torch.tensor([0.35, 0.65])).diff()
    counts = torch.histogram(x[:, 0], edges).hist / 20_000
    assert ((counts - share).abs() < 4.5 * (share * (1 - share) / 20_000).sqrt() + 0.002).all()


@pytest.mark.verifies("eq-langevin-bias")
@pytest.mark.parametrize("h", [0.1, 0.5, 1.2])
def test_a_finite_langevin_step_widens_a_normal_density_by_a_known_factor(h):
    """Variance of 50,000 particles after the start is forgotten; 4 standard errors, false alarm 1e-4."""
    x = torch.zeros(50_000, 1, dtype=torch.float64)
    x = langevin(lambda x: -x, x, h=h, steps=round(20 / h), generator=generator(7))
    assert x.var().item() == pytest.approx(1 / (1 - h / 2), rel=4 * math.sqrt(2 / 50_000))


def bells(t):
    """The density of the shaken pull at time t, started from two bells: a mixture, in closed form."""
    alpha, sigma = flows.ornstein_uhlenbeck(t)
    means, narrow = f64([[-1.5, 0.5], [1.0, 0.0]]), 0.3**2 * torch.eye(2).double()
    covariances = (alpha**2 * narrow + sigma**2 * torch.eye(2).double()).expand(2, 2, 2)
    return GaussianMixture(alpha * means, covariances.contiguous(), f64([0.35, 0.65]))


@pytest.mark.verifies("eq-fokker-planck")
def test_the_shaken_density_obeys_the_fokker_planck_equation():
    """Finite differences of a mixture whose noise is added in closed form; without the noise term the sum is off."""
    t, h, x = f64(0.4), 1e-3, bells(f64(0.4)).sample(40, generator=generator(8))

    def density(t, x):
        return bells(t).log_prob(x).exp()

    transport = flows.continuity_residual(density, pull, t, x, h=h)  # ∂p/∂t + div(p f)
    bumps = h * torch.eye(2).double()
    laplacian = sum(density(t, x + e) - 2 * density(t, x) + density(t, x - e) for e in bumps) / h**2
    torch.testing.assert_close(transport, laplacian, atol=1e-4, rtol=1e-4)  # g² / 2 = 1
    assert transport.abs().max() > 0.05


def quiet(factor=1.0):
    def score(t, x):
        return factor * bells(t).score(x)

    return flows.probability_flow(pull, lambda t: math.sqrt(2), score)


@pytest.mark.verifies("eq-probability-flow")
def test_the_probability_flow_carries_the_densities_of_the_noisy_process():
    """The continuity equation, by finite differences; twice or none of the score term fails."""

    def density(t, x):
        return bells(t).log_prob(x).exp()

    t, x = f64(0.4), bells(f64(0.4)).sample(40, generator=generator(9))
    assert flows.continuity_residual(density, quiet(), t, x).abs().max() < 1e-5
    for factor in (0.0, 2.0, -1.0):
        assert flows.continuity_residual(density, quiet(factor), t, x).abs().max() > 0.05


@pytest.mark.verifies("eq-probability-flow")
def test_particles_with_noise_and_particles_without_end_alike():
    """Energy distance of 2,000 against 2,000 points; below 0.02 for equal laws, above 0.1 without the score term."""
    x = bells(f64(0.0)).sample(2000, generator=generator(10))
    noisy = euler_maruyama(pull, math.sqrt(2), x, t1=0.8, steps=200, generator=generator(11)).final
    solver = RungeKutta4(steps=40)

    def energy(y):
        return 2 * torch.cdist(noisy, y).mean() - torch.cdist(y, y).mean() - torch.cdist(noisy, noisy).mean()

    assert energy(flows.flow(quiet(), x, t=0.8, solver=solver)) < 0.02
    assert energy(flows.flow(pull, x, t=0.8, solver=solver)) > 0.1


@pytest.mark.verifies("eq-empirical-score")
def test_the_score_of_noised_data_is_the_gradient_of_their_mixture():
    """Automatic differentiation of the logarithm of the mixture."""
    data = randn(7, 5, generator=generator(12), dtype=torch.float64)
    t = f64(0.6)
    alpha, sigma = flows.ornstein_uhlenbeck(t)
    x = randn(4, 5, generator=generator(13), dtype=torch.float64).requires_grad_()
    log_p = torch.logsumexp(-(x[:, None] - alpha * data).square().sum(2) / (2 * sigma**2), dim=1)
    (gradient,) = torch.autograd.grad(log_p.sum(), x)
    x = x.detach()
    weights = torch.softmax(-torch.cdist(x, alpha * data).square() / (2 * sigma**2), dim=1)
    torch.testing.assert_close((alpha * weights @ data - x) / sigma**2, gradient, atol=1e-9, rtol=0)
    clock = 2 / math.pi * torch.asin(alpha)
    theirs = Empirical(data).marginal_score(VariancePreserving(), clock, x)
    torch.testing.assert_close(theirs, gradient, atol=1e-9, rtol=0)


# ---------------------------------------------------------------------- errors and figures


def test_errors_name_the_operation_the_value_and_the_rule():
    with pytest.raises(ValueError, match=r"backward_euler: received steps = 0; at least one"):
        flows.backward_euler(pull, POINTS, steps=0)


@pytest.mark.parametrize("field", ["circles", "spiral", "pendulum", "season", "stiff"])
def test_the_figures_exact_flow_is_the_flow_of_its_field(field):
    """With sixty Runge–Kutta steps solver and exact flow meet, and the map shows the carried density."""
    figure = vector_field()
    shown = figure.compute(field=field, solver="rk4", steps=60)
    error = 0.002 if field != "stiff" else 0.05
    assert shown["error"] < error
    if field in ("circles", "pendulum"):  # the heaps' highest log-density stays what it was
        assert shown["log_p"].max().item() == pytest.approx(-math.log(8 * 2 * math.pi * 0.16**2), abs=0.05)


def test_the_figures_euler_error_is_the_one_of_the_page():
    """In the complex plane each step multiplies by 1 + ih, and the exact flow comes back after 2π."""
    shown, h = vector_field().compute(field="circles", solver="euler", steps=24), 2 * math.pi / 24
    start = vector_field().inputs["x"].norm(dim=1)
    wanted = abs((1 + 1j * h) ** 24 - 1) * start.square().mean().sqrt()
    assert shown["error"].item() == pytest.approx(wanted.item(), rel=1e-4)


def test_the_langevin_figure_rewards_the_right_noise():
    """Its target is a density (area one, score by automatic differentiation); the wrong noises are farther away."""
    x = torch.linspace(-3.5, 3.5, 4001).double().requires_grad_()
    density, score = two_bells(x)
    assert density.sum().item() * 7 / 4000 == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(score, torch.autograd.grad(density.log().sum(), x)[0], atol=1e-4, rtol=1e-4)
    figure = langevin_step()
    off = {noise: figure.compute(noise=noise, h=0.05, steps=200)["off"].item() for noise in ("right", "root-h", "none")}
    assert off["right"] < 0.1 < off["root-h"] < off["none"]
