"""Toy densities own their answers: each is held against an integral, a derivative, counted samples or a quadrature."""

import math

import pytest
import torch
from scipy import integrate as quadrature
from scipy.stats import chi2

from companion.data import Gaussian, GaussianMixture, checkerboard, eight_gaussians, ring, standard_normal, two_moons
from companion.data.densities import Density
from companion.device import default_device, generator, rand, randn
from companion.numerics.paths import CondOT, VariancePreserving

DOUBLE = torch.float64
FALSE_ALARM = 1e-6  # of each test that draws samples, if its seed were drawn anew


def slanted_mixture() -> GaussianMixture:
    """Two Gaussians that are long, slanted and unequal: nothing in them is symmetric."""
    means = torch.tensor([[-1.0, 0.5], [1.5, -0.5]], dtype=DOUBLE)
    covariances = torch.tensor([[[0.5, 0.3], [0.3, 0.4]], [[0.3, -0.1], [-0.1, 0.8]]], dtype=DOUBLE)
    return GaussianMixture(means, covariances, torch.tensor([3.0, 1.0], dtype=DOUBLE))


DENSITIES = {
    "eight Gaussians": lambda: eight_gaussians(dtype=DOUBLE),
    "two moons": lambda: two_moons(0.15, dtype=DOUBLE),
    "two moons, moved": lambda: two_moons(0.2, scale=2.0, shift=(-1.0, 0.5), dtype=DOUBLE),
    "ring": lambda: ring(dtype=DOUBLE),
    "checkerboard": lambda: checkerboard(dtype=DOUBLE),
    "standard normal": lambda: standard_normal(2, dtype=DOUBLE),
    "slanted mixture": slanted_mixture,
}
SMOOTH = [name for name in DENSITIES if name != "checkerboard"]
MIXTURES = ["eight Gaussians", "two moons", "standard normal", "slanted mixture"]
PATHS = [CondOT(), VariancePreserving()]

every_density = pytest.mark.parametrize("name", DENSITIES)
every_smooth_density = pytest.mark.parametrize("name", SMOOTH)
every_mixture = pytest.mark.parametrize("name", MIXTURES)
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)


def probabilities(density: Density, cells: int, fine: int, reach: float) -> torch.Tensor:
    """The probability of each of cells² squares of [−reach, reach]², by the midpoint rule on fine² points each."""
    side = 2 * reach / (cells * fine)
    axis = (torch.arange(cells * fine, dtype=DOUBLE) + 0.5) * side - reach
    grid = torch.cartesian_prod(axis, axis)
    p = torch.cat([density.log_prob(part).exp() for part in grid.split(20_000)]) * side**2
    return p.reshape(cells, fine, cells, fine).sum(dim=(1, 3))


def counts(x: torch.Tensor, cells: int, reach: float) -> torch.Tensor:
    """How many points fall into each of these squares."""
    square = ((x + reach) / (2 * reach) * cells).floor().long()
    inside = ((square >= 0) & (square < cells)).all(dim=1)
    index = square[inside, 0] * cells + square[inside, 1]
    return torch.bincount(index, minlength=cells**2).reshape(cells, cells)


def assert_samples_follow(density: Density, x: torch.Tensor, reach: float = 8.0, cells: int = 32) -> None:
    """Pearson's chi-square of the counts against the probabilities; squares that expect fewer than 10 are pooled."""
    expected = len(x) * probabilities(density, cells, fine=8, reach=reach).flatten()
    observed = counts(x.double(), cells, reach).flatten().double()
    many = expected >= 10
    expected = torch.cat([expected[many], (len(x) - expected[many].sum()).clamp(min=1e-3)[None]])
    observed = torch.cat([observed[many], (len(x) - observed[many].sum())[None]])
    statistic = ((observed - expected).square() / expected).sum().item()
    limit = chi2.ppf(1 - FALSE_ALARM, df=len(expected) - 1)
    assert statistic < limit, f"chi-square {statistic:.0f} exceeds {limit:.0f}"


@every_density
def test_a_density_integrates_to_one(name):
    assert probabilities(DENSITIES[name](), cells=32, fine=16, reach=8.0).sum().item() == pytest.approx(1, abs=1e-6)


@every_density
def test_samples_fall_where_log_prob_says(name):
    """Chi-square over squares; its false-alarm rate is 1e-6."""
    density = DENSITIES[name]()
    assert_samples_follow(density, density.sample(20_000, generator=generator(3)))


def test_the_chi_square_test_notices_a_density_that_is_slightly_too_wide():
    x = eight_gaussians(std=0.44).sample(20_000, generator=generator(3))
    with pytest.raises(AssertionError, match="chi-square"):
        assert_samples_follow(eight_gaussians(std=0.4, dtype=DOUBLE), x)


@every_smooth_density
def test_the_score_is_the_gradient_of_log_prob(name):
    """Against central differences of log_prob."""
    density = DENSITIES[name]()
    x = 3 * randn(64, 2, generator=generator(0), dtype=DOUBLE)
    h = 1e-5
    steps = torch.eye(2, dtype=DOUBLE) * h
    gradient = torch.stack([(density.log_prob(x + e) - density.log_prob(x - e)) / (2 * h) for e in steps], dim=1)
    torch.testing.assert_close(density.score(x), gradient, rtol=1e-5, atol=1e-5)


def test_the_score_of_the_checkerboard_is_zero_on_it_and_undefined_outside():
    board = checkerboard(2.0)
    x = torch.tensor([[-1.5, -1.5], [-0.5, -1.5], [9.0, 0.0]])
    assert board.log_prob(x).tolist() == pytest.approx([-math.log(8), -math.inf, -math.inf])
    assert board.score(x)[0].tolist() == [0, 0]
    assert board.score(x)[1:].isnan().all()


def moons_by_adaptive_quadrature(x: float, y: float, s: float) -> float:
    """The density of the moons at one point, by scipy's adaptive rule along each arc."""

    def gauss(a: float, b: float) -> float:
        return math.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * s**2)) / (2 * math.pi * s**2)

    def outer(angle: float) -> float:
        return gauss(math.cos(angle), math.sin(angle))

    def inner(angle: float) -> float:
        return gauss(1 - math.cos(angle), 0.5 - math.sin(angle))

    knots = [math.pi * k / 16 for k in range(1, 16)]
    parts = [quadrature.quad(arc, 0, math.pi, points=knots, epsabs=0, epsrel=1e-11)[0] for arc in (outer, inner)]
    return sum(parts) / (2 * math.pi)


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.3])
def test_two_moons_agree_with_adaptive_quadrature_along_the_arcs(noise):
    """Points on and up to six standard deviations off the arcs; scipy's quad is the independent fact."""
    source = generator(0)
    on_arcs = two_moons(noise, dtype=DOUBLE).sample(20, generator=source)
    x = on_arcs + 5 * noise * (2 * rand(20, 2, generator=source, dtype=DOUBLE) - 1)
    expected = [math.log(moons_by_adaptive_quadrature(*point, noise)) for point in x.tolist()]
    assert two_moons(noise, dtype=DOUBLE).log_prob(x).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_ring_agrees_with_the_average_over_angles():
    """The trapezoidal rule converges geometrically on a circle: 4,000 angles are exact to rounding."""
    density, x = ring(2.0, 0.3, dtype=DOUBLE), 3 * randn(50, 2, generator=generator(1), dtype=DOUBLE)
    angle = torch.arange(4_000, dtype=DOUBLE) * (2 * math.pi / 4_000)
    means = 2 * torch.stack([angle.cos(), angle.sin()], dim=1)
    components = -torch.cdist(x, means).square() / (2 * 0.3**2) - math.log(2 * math.pi * 0.3**2)
    torch.testing.assert_close(density.log_prob(x), components.logsumexp(dim=1) - math.log(4_000))


@every_mixture
@every_path
def test_noised_samples_follow_the_mixture_at_that_time(name, path):
    """x_t = α x_1 + σ ε drawn as written; chi-square with false-alarm rate 1e-6."""
    density, source, t = DENSITIES[name](), generator(5), torch.tensor(0.6, dtype=DOUBLE)
    x_1 = density.sample(20_000, generator=source)
    x_t = path.sample(t, x_1, randn(*x_1.shape, generator=source, dtype=DOUBLE))
    assert_samples_follow(density.at_time(path, t), x_t)


@every_mixture
@every_path
def test_the_marginal_velocity_satisfies_the_continuity_equation(name, path):
    """∂p_t/∂t + ∇·(p_t u_t) = 0, with the time derivative by differences and the divergence by autograd."""
    density, h = DENSITIES[name](), 1e-5
    x = (2 * randn(40, 2, generator=generator(2), dtype=DOUBLE)).requires_grad_()
    for t in torch.tensor([0.1, 0.5, 0.9], dtype=DOUBLE):
        later, earlier = (density.at_time(path, s).log_prob(x).exp() for s in (t + h, t - h))
        p_dot = (later - earlier) / (2 * h)
        flux = density.at_time(path, t).log_prob(x).exp()[:, None] * density.marginal_velocity(path, t, x)
        divergence = sum(torch.autograd.grad(flux[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
        torch.testing.assert_close(p_dot, -divergence, rtol=1e-6, atol=1e-9)


@every_mixture
def test_the_marginal_velocity_is_the_posterior_mean_of_conditional_ones(name):
    """By importance sampling with 400,000 draws of the data; five standard errors (false alarms: below 1e-4 for 16)."""
    path, density, t = CondOT(), DENSITIES[name](), torch.tensor(0.4, dtype=DOUBLE)
    x_1 = density.sample(400_000, generator=generator(7))
    x = density.at_time(path, t).sample(8, generator=generator(8))
    exact = density.marginal_velocity(path, t, x)
    for point, u in zip(x, exact, strict=True):
        here = point.expand_as(x_1)
        weight = (-(here - t * x_1).square().sum(dim=1) / (2 * (1 - t) ** 2)).softmax(dim=0)
        conditional = path.velocity(t, here, x_1)
        estimate = weight @ conditional
        error = (weight.square() @ (conditional - estimate).square()).sqrt()
        assert ((estimate - u).abs() <= 5 * error + 1e-12).all()


@every_mixture
@every_path
def test_velocity_score_and_posterior_mean_are_one_field_in_three_forms(name, path):
    """The conversions of the path are derived for any law of the data; the closed forms must obey them."""
    density, x = DENSITIES[name](), 2 * randn(32, 2, generator=generator(4), dtype=DOUBLE)
    t = rand(32, generator=generator(6), dtype=DOUBLE) * 0.9 + 0.05
    score, mean = density.marginal_score(path, t, x), density.posterior_mean(path, t, x)
    torch.testing.assert_close(path.velocity_from_score(t, x, score), density.marginal_velocity(path, t, x))
    torch.testing.assert_close(path.data_from_score(t, x, score), mean)
    one = torch.tensor(0.3, dtype=DOUBLE)
    torch.testing.assert_close(density.at_time(path, one).score(x), density.marginal_score(path, one, x))


@every_mixture
@every_path
def test_component_and_noisy_point_together_have_the_law_that_at_time_has(name, path):
    """A mixture made for each row's time: its log_prob and posterior are the sum and the shares of the joint."""
    density, x = DENSITIES[name](), 2 * randn(4, 2, generator=generator(4), dtype=DOUBLE)
    t = torch.tensor([0.0, 0.3, 0.8, 1.0], dtype=DOUBLE)
    joint = density.marginal_log_joint(path, t, x)
    for i, time in enumerate(t):
        law = density.at_time(path, time)
        torch.testing.assert_close(joint[i].logsumexp(0), law.log_prob(x[i : i + 1])[0])
        torch.testing.assert_close(joint[i].softmax(0), law.posterior(x[i : i + 1])[0])


@every_mixture
def test_at_the_ends_of_time_the_field_is_finite_and_known(name):
    """At t = 0 the velocity of CondOT is mean − x; at t = 1 the score is that of the data."""
    density, x = DENSITIES[name](), randn(16, 2, generator=generator(9), dtype=DOUBLE)
    zero, one = torch.zeros((), dtype=DOUBLE), torch.ones((), dtype=DOUBLE)
    mean = density.weights @ density.means
    torch.testing.assert_close(density.marginal_velocity(CondOT(), zero, x), mean - x)
    torch.testing.assert_close(density.marginal_score(CondOT(), one, x), density.score(x))
    assert density.marginal_velocity(CondOT(), one, x).isfinite().all()


def test_a_mixture_agrees_with_the_mixture_of_torch():
    ours, x = slanted_mixture(), randn(50, 2, generator=generator(0), dtype=DOUBLE)
    parts = torch.distributions.MultivariateNormal(ours.means, ours.covariances)
    theirs = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(ours.weights), parts)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    responsibility = (parts.log_prob(x[:, None]) + ours.weights.log()).softmax(dim=1)
    torch.testing.assert_close(ours.posterior(x), responsibility)


@every_density
def test_dtype_and_device_follow_the_points(name):
    x = randn(5, 2, generator=generator(0), device=default_device(), dtype=torch.float32)
    density = DENSITIES[name]()
    assert (density.log_prob(x).dtype, density.log_prob(x).device) == (torch.float32, x.device)
    assert (density.score(x).dtype, density.score(x).device) == (torch.float32, x.device)


def test_samples_are_float32_unless_asked_otherwise():
    for make in (eight_gaussians, two_moons, ring, checkerboard):
        assert make().sample(3, generator=generator(0)).dtype == torch.float32
        assert make(dtype=DOUBLE).sample(3, generator=generator(0)).dtype == DOUBLE


@every_density
def test_the_same_seed_gives_the_same_samples(name):
    density = DENSITIES[name]()
    first, second = (density.sample(10, generator=generator(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, density.sample(10, generator=generator(2)))


@every_density
def test_points_of_the_wrong_shape_are_refused(name):
    with pytest.raises(ValueError, match=r"log_prob: received x of shape \(4, 3\).*\(batch, 2\)"):
        DENSITIES[name]().log_prob(torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        ([[1.0, 0.5], [0.0, 1.0]], "not symmetric"),
        ([[1.0, 2.0], [2.0, 1.0]], "positive definite"),
        ([[math.nan, 0.0], [0.0, 1.0]], "not finite"),
    ],
)
def test_a_covariance_that_is_none_is_refused(covariance, message):
    with pytest.raises(ValueError, match=message):
        Gaussian(torch.zeros(2), torch.tensor(covariance))


def test_weights_must_be_positive_and_fit_the_means():
    means, covariances = torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2)
    with pytest.raises(ValueError, match="not positive"):
        GaussianMixture(means, covariances, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"covariances \(3, 2, 2\)"):
        GaussianMixture(means, torch.eye(2).expand(3, 2, 2))


def test_a_time_outside_zero_and_one_is_refused():
    with pytest.raises(ValueError, match=r"rule: from 0 \(noise\) to 1 \(data\)"):
        eight_gaussians().marginal_velocity(CondOT(), torch.tensor(1.5), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="one time"):
        eight_gaussians().at_time(CondOT(), torch.zeros(3))


@pytest.mark.parametrize("make", [two_moons, ring], ids=["moons", "ring"])
def test_parameters_must_be_positive(make):
    with pytest.raises(ValueError, match="positive and finite"):
        make(0.0)


def test_a_mixture_with_numbers_for_its_signal_and_noise_is_the_law_of_their_sum():
    """Chi-square of drawn sums α x + σ ε over squares; its false-alarm rate is 1e-6."""
    alpha, sigma, data = 0.6, 0.8, slanted_mixture()
    x = data.sample(20_000, generator=generator(4))
    y = alpha * x + sigma * randn(20_000, 2, generator=generator(5), dtype=DOUBLE)
    law = data.noised(alpha, torch.tensor(sigma))
    assert_samples_follow(law, y)
    point = randn(6, 2, generator=generator(6), dtype=DOUBLE)
    for one, other in ((torch.tensor(alpha), torch.tensor(sigma)), (torch.full((6,), alpha), torch.full((6,), sigma))):
        torch.testing.assert_close(data.noised_score(one.double(), other.double(), point), law.score(point))
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=DOUBLE)
    together = data.noised_score(levels, 1 - levels, point[:3])
    for row, level in enumerate(levels):
        torch.testing.assert_close(together[row], data.noised(level, 1 - level).score(point[:3])[row])


def test_signals_and_noises_that_are_no_numbers_of_their_points_are_refused():
    data, x = slanted_mixture(), torch.zeros(3, 2, dtype=DOUBLE)
    for alpha in (math.nan, math.inf, torch.ones(2)):
        with pytest.raises(
            ValueError, match=r"GaussianMixture.noised: received alpha = .*; it must be one finite number"
        ):
            data.noised(alpha, 1.0)
    with pytest.raises(ValueError, match=r"noised_score: received alpha of shape \(2,\) for x .*; it must be \(\) or"):
        data.noised_score(torch.ones(2), torch.ones(2), x)
