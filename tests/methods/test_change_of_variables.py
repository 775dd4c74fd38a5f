"""Change of variables against facts that do not use its formula: distribution functions, counts, other libraries."""

import math

import pytest
import torch
from scipy import stats
from torch import distributions as D
from torch.func import jacrev, vmap

from companion.data import Density, Gaussian, GaussianMixture, digits, standard_normal
from companion.device import generator
from companion.methods import change_of_variables as cov

F64 = torch.float64
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def dart(z):
    """Distance of a dart from the center: density 2z on (0, 1), which is Beta(2, 1)."""
    z = z[:, 0]
    inside = (z > 0) & (z < 1)
    return torch.where(inside, (2 * z.clamp(min=1e-30)).log(), -math.inf)


def column(low, high, n=41, dtype=F64):
    return torch.linspace(low, high, n, dtype=dtype)[:, None]


def derivative_of(cdf, x, h=1e-6):
    return (cdf(x + h) - cdf(x - h)) / (2 * h)


def integral(log_density, low, high, n=200_001):
    x = torch.linspace(low, high, n, dtype=F64)[:, None]
    return torch.trapezoid(log_density(x).exp(), x[:, 0]).item()


# ---------------------------------------------------------------------- one dimension


@pytest.mark.verifies("eq-increasing", "eq-change-of-variables-1d")
@DTYPES
def test_an_increasing_map_gives_the_derivative_of_the_distribution_function(dtype):
    """x = log z of a dart: P(X ≤ x) = P(Z ≤ eˣ) = e²ˣ, differentiated numerically."""
    x = column(-3, -0.1)
    got = cov.log_prob(dart, torch.exp, x.to(dtype)).exp()
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), derivative_of(lambda x: (2 * x[:, 0]).exp(), x), atol=1e-5, rtol=1e-5)


@pytest.mark.verifies("eq-decreasing", "eq-change-of-variables-1d")
@DTYPES
def test_a_decreasing_map_gives_the_derivative_of_the_distribution_function(dtype):
    """x = 4 (1 − z²): scipy's Beta(2, 1) gives P(X ≤ x) = P(Z ≥ √(1 − x/4)) as a survival function."""

    def cdf(x):
        return torch.from_numpy(stats.beta(2, 1).sf((1 - x[:, 0] / 4).sqrt().numpy()))

    x = column(0.1, 3.9)
    got = cov.log_prob(dart, lambda x: (1 - x / 4).sqrt(), x.to(dtype)).exp()
    torch.testing.assert_close(got.double(), derivative_of(cdf, x), atol=1e-5, rtol=1e-5)


@pytest.mark.verifies("eq-rule-b")
def test_under_rule_b_every_score_is_equally_likely():
    """Points drawn evenly on the disk, scored and counted in ten bins; 5 standard errors refuse it 6e-6 of the time."""
    n = 200_000
    square = 2 * torch.rand(2 * n, 2, generator=generator(0)) - 1
    z = square.norm(dim=1)
    scores = 4 * (1 - z[z < 1] ** 2)
    share = torch.histc(scores, bins=10, min=0, max=4) / len(scores)
    assert (share - 0.1).abs().max() < 5 * math.sqrt(0.09 / len(scores))
    x = column(0.01, 3.99)
    torch.testing.assert_close(
        cov.log_prob(dart, lambda x: (1 - x / 4).sqrt(), x).exp(), torch.full_like(x[:, 0], 0.25)
    )


@pytest.mark.verifies("eq-affine-example")
@DTYPES
def test_the_worked_example_agrees_with_transformed_samples_and_scipy(dtype):
    """x = 10 z + 5 is scipy's Beta(2, 1) with loc 5 and scale 10; it has area one on (5, 15)."""
    x = column(5.05, 14.95, dtype=dtype)
    got = cov.log_prob(dart, lambda x: (x - 5) / 10, x).exp()
    torch.testing.assert_close(got, (x[:, 0] - 5) / 50)
    expected = torch.from_numpy(stats.beta(2, 1, loc=5, scale=10).pdf(x[:, 0].double().numpy()))
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    assert integral(lambda x: cov.log_prob(dart, lambda x: (x - 5) / 10, x), 5, 15) == pytest.approx(1, abs=1e-4)


@pytest.mark.refutes("E1")
@pytest.mark.parametrize("slope", [-4.0, -0.5])
def test_without_the_absolute_value_a_decreasing_map_has_area_minus_one(slope):
    """Also the form with distribution functions: P(X ≤ x) = P(Z ≥ f(x)); with ≤ kept it falls from 1 to 0."""
    x = column(min(slope, 0) + 1e-4, max(slope, 0) - 1e-4, 4001)
    f = x / slope
    wrong = dart(f).exp() / slope
    right = cov.log_prob(dart, lambda x: x / slope, x).exp()
    assert torch.trapezoid(wrong, x[:, 0]).item() == pytest.approx(-1, abs=1e-2)
    assert torch.trapezoid(right, x[:, 0]).item() == pytest.approx(1, abs=1e-2)
    unflipped, flipped = f[:, 0] ** 2, 1 - f[:, 0] ** 2  # F_Z(f(x)) and 1 − F_Z(f(x)), F_Z(z) = z²
    assert (unflipped.diff() < 0).all()
    assert (flipped.diff() > 0).all()


@pytest.mark.verifies("eq-branches")
def test_the_branches_of_a_square_add_up_to_scipys_chi_square():
    """x = z² of a standard normal number is chi-square with one degree of freedom."""
    x = column(0.05, 6)
    got = cov.branches_log_prob(standard_normal(1, dtype=F64).log_prob, [torch.sqrt, lambda x: -x.sqrt()], x)
    torch.testing.assert_close(got, torch.from_numpy(stats.chi2(1).logpdf(x[:, 0].numpy())))


@pytest.mark.verifies("eq-branches")
def test_branches_that_end_inside_the_range_count_where_they_exist():
    """x = |z − 1/4| of a dart, by differences of the exact probability P(1/4 − x < Z < 1/4 + x)."""
    branches = [lambda x: 0.25 - x, lambda x: 0.25 + x]
    x = torch.cat([column(0.01, 0.24), column(0.26, 0.74), column(0.76, 1.0)])
    got = cov.branches_log_prob(dart, branches, x).exp()

    def cdf(x):
        low, high = (0.25 - x).clamp(0, 1)[:, 0], (0.25 + x).clamp(0, 1)[:, 0]
        return high**2 - low**2

    torch.testing.assert_close(got, derivative_of(cdf, x), atol=1e-6, rtol=1e-6)
    assert (got[-41:] == 0).all()


@pytest.mark.verifies("eq-ring-fine")
def test_the_fine_at_the_ring_adds_up_to_an_infinite_density_of_area_one():
    """x = (2z − 1)² of a dart: differences of the exact probability P((1 − √x)/2 < Z < (1 + √x)/2) = √x."""
    x = column(0.01, 0.99)
    got = cov.branches_log_prob(dart, [lambda x: (1 - x.sqrt()) / 2, lambda x: (1 + x.sqrt()) / 2], x).exp()

    def cdf(x):
        return ((1 + x[:, 0].sqrt()) / 2) ** 2 - ((1 - x[:, 0].sqrt()) / 2) ** 2

    torch.testing.assert_close(got, derivative_of(cdf, x), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(got, 0.5 / x[:, 0].sqrt())


def test_a_branch_without_a_preimage_may_say_so_by_nan():
    x = torch.tensor([[-1.0], [0.25]])
    got = cov.branches_log_prob(standard_normal(1).log_prob, [torch.sqrt], x)
    assert got[0] == -math.inf
    assert got[1].isfinite()


# ---------------------------------------------------------------------- several dimensions


def disk(u):
    """Distance and turn (both in (0, 1)) to the plane."""
    return u[0] * torch.stack([torch.cos(2 * math.pi * u[1]), torch.sin(2 * math.pi * u[1])])


def from_disk(x):
    return torch.stack([x.norm(), torch.atan2(x[1], x[0]) / (2 * math.pi) % 1])


def dart_and_turn(u):
    return dart(u[:, :1])


def on_the_disk(n=64, dtype=F64):
    u = torch.rand(n, 2, generator=generator(1), dtype=F64) * 0.96 + 0.02
    return vmap(disk)(u).to(dtype)


@pytest.mark.verifies("eq-volume")
@pytest.mark.parametrize("dim", [2, 3, 5])
def test_a_matrix_scales_volumes_by_the_product_of_its_singular_values_which_is_its_determinant(dim):
    """Share of points of a box that fall into the image of the unit cube; tolerance 5 standard errors (6e-7)."""
    matrix = torch.eye(dim, dtype=F64) + 0.5 * torch.randn(dim, dim, generator=generator(dim), dtype=F64)
    torch.testing.assert_close(torch.linalg.svdvals(matrix).prod(), torch.linalg.det(matrix).abs())
    low, high = matrix.clamp(max=0).sum(1), matrix.clamp(min=0).sum(1)  # the box around the image
    n = 400_000
    points = low + (high - low) * torch.rand(n, dim, generator=generator(7), dtype=F64)
    inside = torch.linalg.solve(matrix, points.T)
    share = ((inside > 0) & (inside < 1)).all(0).double().mean()
    box = (high - low).prod()
    error = box * (share * (1 - share) / n).sqrt()
    assert (share * box - torch.linalg.det(matrix).abs()).abs() < 5 * error


@pytest.mark.verifies("eq-change-of-variables")
@DTYPES
def test_the_density_in_the_plane_predicts_how_many_points_fall_into_a_small_square(dtype):
    """Counts of 2,000,000 mapped points in small squares; tolerance 5 standard errors of each count."""

    def g(z):
        return torch.stack([z[0] + 0.5 * torch.sin(z[1]), z[1] + 0.5 * z[0].tanh()])

    def f(x):
        z = x
        for _ in range(200):  # contraction: |∂| ≤ 1/2
            z = torch.stack([x[0] - 0.5 * torch.sin(z[1]), x[1] - 0.5 * z[0].tanh()])
        return z

    base, n, side = standard_normal(2, dtype=dtype), 2_000_000, 0.1
    x = vmap(g)(base.sample(n, generator=generator(0)))
    centers = torch.tensor([[0.0, 0.0], [1.0, 0.5], [-0.7, 1.2], [0.4, -1.5]], dtype=dtype)
    count = ((x[None] - centers[:, None]).abs() < side / 2).all(2).sum(1).double()
    expected = n * side**2 * cov.log_prob(base.log_prob, f, centers).exp().double()
    assert ((count - expected).abs() < 5 * expected.sqrt() + 0.005 * expected).all()


@pytest.mark.verifies("eq-inverse-jacobian")
def test_the_determinants_of_a_map_and_its_inverse_are_reciprocal():
    """Both Jacobians by automatic differentiation, of polar coordinates."""
    x = on_the_disk()
    forward = torch.linalg.det(vmap(jacrev(disk))(vmap(from_disk)(x)))
    inverse = torch.linalg.det(vmap(jacrev(from_disk))(x))
    torch.testing.assert_close(forward * inverse, torch.ones_like(forward))


@pytest.mark.verifies("eq-polar")
def test_a_point_drawn_evenly_on_the_disk_has_distance_2z():
    """The uniform density 1/π from the formula; and 1/π again as one over the area of the disk."""
    got = cov.log_prob(dart_and_turn, from_disk, on_the_disk())
    torch.testing.assert_close(got.exp(), torch.full_like(got, 1 / math.pi))


@pytest.mark.refutes("E2")
def test_forward_determinant_or_its_sign_gives_no_density():
    """The uniform density on the disk: areas by integration on a grid of polar cells, area element r dr dφ."""
    r, turn = torch.meshgrid(torch.linspace(0.001, 0.999, 500), torch.linspace(0.005, 0.995, 50), indexing="ij")
    u = torch.stack([r.flatten(), turn.flatten()], 1).double()
    x, cell = vmap(disk)(u), u[:, 0] * 0.002 * (2 * math.pi / 50)
    base = dart_and_turn(u).exp()
    det_g = torch.linalg.det(vmap(jacrev(disk))(u))
    swapped = torch.linalg.det(vmap(jacrev(lambda x: from_disk(x).flip(0)))(x))
    assert (cell * base * det_g.abs()).sum().item() == pytest.approx(2 * math.pi**2, rel=1e-3)  # forward map: not one
    assert (cell * base * swapped).sum().item() == pytest.approx(-1, rel=1e-3)  # the angle named first: sign lost
    right = cov.log_prob(dart_and_turn, from_disk, x).exp()
    assert (cell * right).sum().item() == pytest.approx(1, rel=1e-3)


# ---------------------------------------------------------------------- push-forward and composition


@DTYPES
def test_a_push_forward_samples_the_density_that_it_states(dtype):
    """A triangular affine map of normal noise is torch's MultivariateNormal; means within 5 standard errors."""
    shift, scale = torch.tensor([1.0, -2.0], dtype=dtype), torch.tensor([[2.0, 0.0], [1.5, 0.5]], dtype=dtype)
    law = cov.PushForward(standard_normal(2, dtype=dtype), cov.affine(shift, scale))
    peer = D.MultivariateNormal(shift, scale_tril=scale)
    n = 100_000
    x = law.sample(n, generator=generator(0))
    assert x.dtype == dtype
    torch.testing.assert_close(law.log_prob(x), peer.log_prob(x), rtol=1e-4, atol=1e-4)
    covariance = scale @ scale.T
    assert ((x.mean(0) - shift).abs() < 5 * (covariance.diagonal() / n).sqrt()).all()
    spread = (covariance.diagonal()[:, None] * covariance.diagonal() + covariance**2) / n
    assert ((torch.cov(x.T) - covariance).abs() < 5 * spread.sqrt()).all()


def test_a_push_forward_is_a_density_with_a_score():
    """∇ log p by automatic differentiation against the Gaussian's closed form −Σ⁻¹ (x − μ)."""
    shift, scale = torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 0.0], [1.5, 0.5]])
    law = cov.PushForward(standard_normal(2), cov.affine(shift, scale))
    x = law.sample(10, generator=generator(0))
    assert isinstance(law, Density)
    torch.testing.assert_close(law.score(x), Gaussian(shift, scale @ scale.T).score(x), rtol=1e-4, atol=1e-4)


def box_muller():
    """Uniform square → distance and turn → plane."""
    radius = cov.Bijection(
        forward=lambda u: torch.stack([(-2 * u[0].log()).sqrt(), u[1]]),
        inverse=lambda x: torch.stack([(-(x[0] ** 2) / 2).exp(), x[1]]),
        log_det=lambda x: x[0].log() - x[0] ** 2 / 2,
    )
    return cov.compose(radius, cov.Bijection(forward=disk, inverse=from_disk))


@pytest.mark.verifies("eq-layers", "eq-box-muller")
@DTYPES
def test_box_muller_composes_to_the_normal_density(dtype):
    """The base is uniform, log p = 0, so the sum of the layers' log-determinants is the log-density of N(0, I)."""
    x = torch.randn(50, 2, generator=generator(0), dtype=F64).to(dtype)
    got = box_muller().log_dets(x)
    torch.testing.assert_close(got, D.Normal(0, 1).log_prob(x).sum(1).to(dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.verifies("eq-layers")
def test_the_sum_over_layers_is_the_determinant_of_the_whole_map():
    """Three layers against one autograd Jacobian of the composed inverse; and there and back again."""
    shift, scale = torch.tensor([0.5, 1.0], dtype=F64), torch.tensor([[1.5, 0.0], [-0.4, 0.7]], dtype=F64)
    bend = cov.Bijection(torch.sinh, torch.asinh)
    whole = cov.compose(cov.affine(shift, scale), bend, cov.affine(-shift, scale.mT.tril() + torch.eye(2, dtype=F64)))
    z = torch.randn(20, 2, generator=generator(0), dtype=F64)
    x = vmap(whole.forward)(z)
    torch.testing.assert_close(vmap(whole.inverse)(x), z)
    torch.testing.assert_close(whole.log_dets(x), cov.log_abs_det(whole.inverse, x))


def test_closed_form_log_determinants_agree_with_autograd():
    for bijection in (cov.elementwise_logit(0.05), cov.elementwise_logit(0.0), box_muller()):
        x = torch.rand(20, 2, generator=generator(0), dtype=F64) * 0.9 + 0.05
        torch.testing.assert_close(bijection.log_dets(x), cov.log_abs_det(bijection.inverse, x))
        torch.testing.assert_close(vmap(bijection.forward)(vmap(bijection.inverse)(x)), x)


def test_log_densities_can_be_trained_through():
    """Second derivatives: the gradient of log |det| in a parameter, against 1/a of the map a x."""
    a = torch.tensor(2.0, dtype=F64, requires_grad=True)
    cov.log_abs_det(lambda x: a * x, torch.randn(7, 3, dtype=F64, generator=generator(0))).sum().backward()
    assert a.grad.item() == pytest.approx(7 * 3 / 2)


# ---------------------------------------------------------------------- determinants


@DTYPES
@pytest.mark.parametrize("dim", [1, 2, 5, 20])
def test_log_abs_det_is_that_of_torch(dim, dtype):
    """torch.linalg.slogdet of the same linear map."""
    matrix = torch.randn(dim, dim, generator=generator(0), dtype=dtype)
    got = cov.log_abs_det(lambda x: matrix @ x, torch.randn(3, dim, generator=generator(1), dtype=dtype))
    torch.testing.assert_close(got, torch.linalg.slogdet(matrix)[1].expand(3), rtol=1e-4, atol=1e-4)


@pytest.mark.verifies("eq-triangular")
@DTYPES
def test_triangular_matrices_need_their_diagonal_only(dtype):
    """torch.linalg.slogdet."""
    matrix = (torch.randn(4, 9, 9, generator=generator(0), dtype=dtype)).tril() + 3 * torch.eye(9, dtype=dtype)
    expected = torch.linalg.slogdet(matrix)[1]
    torch.testing.assert_close(cov.log_abs_det_triangular(matrix), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cov.log_abs_det_triangular(matrix.mT), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.verifies("eq-matrix-determinant-lemma")
@DTYPES
@pytest.mark.parametrize("rank", [1, 3, 12])
def test_the_matrix_determinant_lemma(rank, dtype):
    """torch.linalg.slogdet of the full matrix I + U Vᵀ."""
    u, v = torch.randn(2, 5, 10, rank, generator=generator(rank), dtype=dtype)
    full = torch.eye(10, dtype=dtype) + u @ v.mT
    got = cov.log_abs_det_low_rank(u, v)
    assert got.shape == (5,)
    torch.testing.assert_close(got, torch.linalg.slogdet(full)[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(cov.log_abs_det_low_rank(u[0], v[0]), got[0])


def signs(*shape, seed):
    return 2.0 * torch.randint(2, shape, generator=generator(seed), dtype=F64) - 1


def contraction(dim, norm, seed=0):
    matrix = torch.randn(dim, dim, generator=generator(seed), dtype=F64)
    return norm * matrix / torch.linalg.matrix_norm(matrix, 2)


@pytest.mark.verifies("eq-trace-series")
@pytest.mark.parametrize("norm", [0.3, 0.8])
def test_the_series_of_traces_is_the_log_determinant(norm):
    """torch.linalg.slogdet of I + A; the traces are exact, so that only the cut is left, and it is within its bound."""
    a = contraction(12, norm)
    expected = torch.linalg.slogdet(torch.eye(12, dtype=F64) + a)[1].item()
    power, total = torch.eye(12, dtype=F64), 0.0
    for k in range(1, 21):
        power = power @ a
        total += (-1) ** (k + 1) * power.trace().item() / k
        assert abs(total - expected) <= cov.series_error(norm, 12, terms=k) + 1e-12


@pytest.mark.verifies("eq-series-error")
def test_the_bound_of_the_cut_series_is_met_by_a_matrix_that_deserves_it():
    """A = −ρ I makes all terms of one sign: the exact remainder is between the bound's first term and the bound."""
    dim, rho = 7, 0.6
    exact = dim * math.log(1 - rho)
    for terms in (1, 3, 10):
        cut = dim * sum(-(rho**k) / k for k in range(1, terms + 1))
        bound = cov.series_error(rho, dim, terms=terms)
        assert bound * (1 - rho) <= abs(exact - cut) <= bound


@pytest.mark.verifies("eq-hutchinson")
def test_random_probes_estimate_the_trace_without_bias():
    """Mean of 20,000 probes against the trace; tolerance 5 standard errors, estimated from the probes (6e-7)."""
    a = contraction(12, 0.8)
    for probe in (
        signs(20_000, 12, seed=0),
        torch.randn(20_000, 12, generator=generator(1), dtype=F64),
    ):
        estimates = ((probe @ a) * probe).sum(1)
        assert (estimates.mean() - a.trace()).abs() < 5 * estimates.std() / math.sqrt(len(estimates))


@DTYPES
def test_hutchinson_log_det_agrees_with_the_jacobian_of_a_residual_map(dtype):
    """The autograd determinant of x + h(x), at three points, within 5 standard errors plus the bound of the cut."""
    a = contraction(6, 0.6).to(dtype)
    x = torch.randn(3, 6, generator=generator(1), dtype=dtype)
    noise = signs(4_000, 3, 6, seed=2).to(dtype)

    def h(x):
        return torch.tanh(a @ x)

    got = cov.hutchinson_log_det(h, x, noise, terms=12, lipschitz=0.6)
    single = torch.stack([cov.hutchinson_log_det(h, x, noise[i : i + 1], terms=12, lipschitz=0.6) for i in range(200)])
    expected = cov.log_abs_det(lambda x: x + h(x), x)
    tolerance = 5 * single.std(0) / math.sqrt(len(noise)) + cov.series_error(0.6, 6, terms=12)
    assert got.dtype == dtype
    assert ((got - expected).abs() < tolerance).all()


@pytest.mark.verifies("eq-log-space")
def test_a_product_of_100_determinants_underflows_where_the_sum_of_logarithms_does_not():
    """100 factors of 0.1 against −100 log 10: float32 has nothing below 1.4e-45."""
    factors = torch.full((100,), 0.1)
    assert factors.prod() == 0
    assert factors.log().sum().item() == pytest.approx(-100 * math.log(10), rel=1e-5)


# ---------------------------------------------------------------------- images


@pytest.mark.verifies("eq-dequantization")
def test_dequantized_likelihood_bounds_that_of_the_levels_and_meets_it_where_the_density_is_flat():
    """A mixture on the line: the exact probability of a cell is a difference of its distribution function."""
    law = GaussianMixture(torch.tensor([[0.3], [0.7]]).double(), torch.tensor([[[0.01]], [[0.002]]]).double())
    k = torch.arange(17, dtype=F64)
    edges = torch.arange(18, dtype=F64) / 17
    cdf = sum(0.5 * D.Normal(m, math.sqrt(v)).cdf(edges) for m, v in ((0.3, 0.01), (0.7, 0.002)))
    exact = cdf.diff().log()
    x = torch.stack([cov.dequantize(k, 17, generator=generator(seed)) for seed in range(4_000)])
    bound = law.log_prob(x.reshape(-1, 1)).reshape(-1, 17).mean(0) - math.log(17)
    assert (bound < exact + 0.02).all()
    flat = -torch.log(torch.tensor(1.0)).expand(5)  # uniform on (0, 1): log 17 / log 2 bits, exactly
    assert cov.bits_per_dimension(flat, dim=1, count=17).item() == pytest.approx(math.log2(17))


def test_dequantized_levels_fill_their_cells_and_stay_below_one():
    levels = torch.arange(17.0).repeat(1000)
    x = cov.dequantize(levels, 17, generator=generator(0))
    assert torch.equal((x * 17).floor().clamp(max=16), levels)
    assert x.max() < 1
    assert x.min() >= 0


@pytest.mark.verifies("eq-whitening", "eq-affine-gaussian")
def test_the_best_affine_map_to_noise_is_the_gaussian_maximum_likelihood():
    """On digits: the log-likelihood equals torch's MultivariateNormal, and nearby affine maps are worse."""
    x = cov.dequantize(((digits("train").images.flatten(1).double() + 1) * 8).round(), 17, generator=generator(0))
    mean, covariance = x.mean(0), torch.cov(x.T, correction=0)
    scale = torch.linalg.cholesky(covariance)

    def mean_log_prob(shift, scale):
        return cov.PushForward(standard_normal(64, dtype=F64), cov.affine(shift, scale)).log_prob(x).mean()

    best = mean_log_prob(mean, scale)
    torch.testing.assert_close(best, D.MultivariateNormal(mean, covariance).log_prob(x).mean())
    for seed in range(5):
        nudge = 0.02 * torch.randn(64, 64, generator=generator(seed), dtype=F64).tril()
        assert mean_log_prob(mean, scale + nudge * scale.diagonal()) < best
        assert mean_log_prob(mean + 0.01 * nudge[:, 0], scale) < best


# ---------------------------------------------------------------------- bad input


def test_a_singular_jacobian_is_named_with_its_row():
    with pytest.raises(ValueError, match=r"log_abs_det: .*singular at row 1, x = \[0\]; rule"):
        cov.log_abs_det(lambda x: x**2, torch.tensor([[1.0], [0.0]]))


@DTYPES
@pytest.mark.parametrize("seed", range(5))
def test_a_determinant_that_is_rounding_error_is_singular(seed, dtype):
    """Whole numbers make a matrix of rank 4 in 5 dimensions exactly; its elimination leaves a tiny determinant."""
    u, v = torch.randint(-9, 10, (2, 5, 4), generator=generator(seed)).to(dtype)
    with pytest.raises(ValueError, match="singular at row 0"):
        cov.log_abs_det(lambda x: u @ (v.mT @ x), torch.ones(1, 5, dtype=dtype))


def test_badly_scaled_maps_are_not_mistaken_for_singular_ones():
    for scales in (torch.tensor([1e-20, 1.0, 1e15]), torch.tensor([1.0, 1e-12, 1e-25])):
        mix = torch.randn(3, 3, generator=generator(0))
        expected = scales.double().log().sum() + torch.linalg.slogdet(mix.double())[1]
        for matrix in (scales[:, None] * mix, mix * scales):
            got = cov.log_abs_det(lambda x, m=matrix: m @ x, torch.ones(1, 3))
            assert got.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_map_that_is_not_monotone_is_refused_with_the_rows_that_show_it():
    with pytest.raises(
        ValueError, match=r"derivative changes sign between row 0, x = \[-1\], and row 2, x = \[2\].*monotone"
    ):
        cov.log_prob(standard_normal(1).log_prob, lambda x: x**2, torch.tensor([[-1.0], [-0.5], [2.0]]))


def test_a_map_that_folds_the_plane_is_refused():
    fold = lambda x: torch.stack([x[0] ** 2, x[1]])  # noqa: E731
    with pytest.raises(ValueError, match="Jacobian determinant changes sign between row 0"):
        cov.log_prob(standard_normal(2).log_prob, fold, torch.tensor([[-1.0, 0.0], [2.0, 0.0]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_points_that_are_not_finite_are_refused(bad):
    x = torch.tensor([[1.0], [bad]])
    for call in (
        lambda: cov.log_abs_det(torch.exp, x),
        lambda: cov.log_prob(dart, torch.exp, x),
        lambda: cov.branches_log_prob(dart, [torch.exp], x),
        lambda: cov.PushForward(standard_normal(1), cov.Bijection(torch.exp, torch.log)).log_prob(x),
    ):
        with pytest.raises(ValueError, match="not finite at row 1"):
            call()


def test_a_jacobian_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="Jacobian that is not finite at row 0"):
        cov.log_abs_det(torch.sqrt, torch.tensor([[0.0]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cov.log_abs_det(lambda x: x[:1], torch.ones(2, 3)), "from 3 to 1 dimensions"),
        (lambda: cov.log_abs_det_triangular(torch.ones(2, 2)), "both sides of the diagonal"),
        (lambda: cov.log_abs_det_triangular(torch.tensor([[1.0, 0.0], [2.0, 0.0]])), r"at \[1, 1\] of matrix 0"),
        (lambda: cov.log_abs_det_low_rank(-torch.ones(1, 1), torch.ones(1, 1)), "log_abs_det_low_rank: .*singular"),
        (lambda: cov.affine(torch.zeros(2), torch.ones(2, 2)), "entries above the diagonal"),
        (lambda: cov.elementwise_logit(0.5), "margin 0.5; rule"),
        (lambda: cov.compose(), "received no maps"),
        (lambda: cov.dequantize(torch.tensor([17.0]), 17, generator=generator(0)), "outside 0 … 16"),
        (lambda: cov.dequantize(torch.tensor([0.5]), 17, generator=generator(0)), "not whole"),
        (lambda: cov.series_error(1.0, 3, terms=5), "‖A‖ < 1"),
        (lambda: cov.series_error(0.5, 3, terms=0), "terms = 0"),
        (lambda: cov.log_prob(lambda z: z, torch.exp, torch.ones(2, 1)), "one number for each row"),
    ],
)
def test_bad_input_gets_a_clear_message(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_residual_that_stretches_is_refused_by_the_probe_that_shows_it():
    x, noise = torch.ones(2, 3), torch.ones(1, 2, 3)
    with pytest.raises(ValueError, match=r"stretches a vector 1.5 times at row 0; rule: ‖A‖ ≤ lipschitz = 0.9"):
        cov.hutchinson_log_det(lambda x: 1.5 * x, x, noise, terms=3, lipschitz=0.9)
    with pytest.raises(ValueError, match=r"‖A‖ = 1\.5; rule: ‖A‖ < 1"):
        cov.hutchinson_log_det(lambda x: 1.5 * x, x, noise, terms=3, lipschitz=1.5)
    with pytest.raises(ValueError, match=r"noise of shape \(1, 3\)"):
        cov.hutchinson_log_det(lambda x: 0.5 * x, x, noise[:, 0], terms=3, lipschitz=0.9)
