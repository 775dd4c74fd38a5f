"""Energy-based models: each equation of chapter 07 against a fact that does not use it, each mistake by a number."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from sklearn.cluster import KMeans
from torch import nn
from torch.nn import functional as F

from companion.data import GaussianMixture, standard_normal
from companion.device import generator, randn, seeded
from companion.methods import energy as ebm
from companion.methods.energy import Answers
from companion.nn import MLP
from companion.numerics.autodiff import rademacher
from companion.numerics.sampling import langevin, metropolis_langevin

F64 = torch.float64
HEAPS = GaussianMixture(  # two unequal heaps on the line
    torch.tensor([[-1.0], [1.5]], dtype=F64),
    torch.tensor([[[0.36]], [[0.64]]], dtype=F64),
    torch.tensor([0.4, 0.6]).double(),
)


def f64(value):
    return torch.tensor(value, dtype=F64)


def normals(*shape, seed=0):
    return randn(*shape, generator=generator(seed), dtype=F64)


def net(*sizes, seed=0, **options):
    with seeded(generator(seed)):
        return MLP(*sizes, **options).double()


def line(low, high, n):
    """A uniform grid and its cell."""
    grid = torch.linspace(low, high, n, dtype=F64)
    return grid, (grid[1] - grid[0]).item()


def bowl_at(mean, precision=1.0):
    return lambda y: 0.5 * precision * (y - mean).flatten(1).square().sum(1)


def table(n=200, labels=6, seed=0, spread=3.0):
    """Energies of labels, and the right ones."""
    E = spread * normals(n, labels, seed=seed)
    return E, torch.randint(labels, (n,), generator=generator(seed))


# ---------------------------------------------------------------------- from energies to probabilities


@pytest.mark.verifies("eq-gibbs")
def test_the_gibbs_density_of_a_parabola_is_a_normal_one_with_precision_beta_times_its_curvature():
    """scipy's normal density; and the whole is one for a uniform grid as for Gauss–Legendre nodes."""
    y, dy = line(-6, 8, 2001)
    for beta, a in ((1.0, 1.0), (0.5, 3.0), (4.0, 0.7)):
        p = ebm.gibbs(bowl_at(1.0, a)(y[:, None]), beta=beta, measure=dy)
        wanted = stats.norm(1.0, 1 / math.sqrt(beta * a)).pdf(y.numpy())
        torch.testing.assert_close(p, torch.from_numpy(wanted), atol=1e-4, rtol=1e-4)
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(60))
    p = ebm.gibbs((6 * nodes) ** 4 / 40, measure=6 * weights)
    assert (p * 6 * weights).sum().item() == pytest.approx(1)
    z, _ = integrate.quad(lambda y: math.exp(-(y**4) / 40), -6, 6)
    torch.testing.assert_close(p, torch.exp(-((6 * nodes) ** 4) / 40) / z, atol=1e-8, rtol=1e-6)


def test_the_gibbs_density_of_labels_is_torchs_softmax():
    E, _ = table()
    torch.testing.assert_close(ebm.gibbs(E, beta=0.7, measure=1.0), F.softmax(-0.7 * E, 1))
    torch.testing.assert_close(ebm.gibbs(E, beta=0.7, dim=0, measure=1.0), F.softmax(-0.7 * E, 0))


@pytest.mark.verifies("eq-free-energy")
@pytest.mark.parametrize("beta", [0.5, 1.0, 8.0])
def test_the_free_energy_is_minus_the_log_of_the_integral(beta):
    """scipy's adaptive quadrature for a lopsided energy; the Gaussian integral in closed form for a parabola."""

    def energy(y, z):
        return (y - z**2) ** 2 + 0.3 * (z - 0.5) ** 2

    z, dz = line(-4, 4, 4001)
    y = f64([-1.0, 0.2, 2.0])
    got = ebm.free_energy(energy(y[:, None], z), beta=beta, measure=dz)
    wanted = [
        -math.log(integrate.quad(lambda z, v=v: math.exp(-beta * energy(v, z)), -4, 4, limit=200)[0]) / beta
        for v in y.tolist()
    ]
    torch.testing.assert_close(got, f64(wanted), atol=1e-6, rtol=1e-6)
    w, lam = 1.5, 0.4  # ½(y − wz)² + ½λz² integrates to a parabola in y with precision λ/(w² + λ)
    z, dz = line(-40, 40, 8001)
    got = ebm.free_energy(0.5 * (y[:, None] - w * z) ** 2 + 0.5 * lam * z**2, beta=beta, measure=dz)
    wanted = 0.5 * lam / (w**2 + lam) * y**2 + math.log(beta * (w**2 + lam) / (2 * math.pi)) / (2 * beta)
    torch.testing.assert_close(got, wanted)


@pytest.mark.verifies("eq-free-energy-limit")
def test_cold_free_energies_are_the_least_energies():
    """Laplace's method: the rest is log(βc/2π)/2β with the curvature c at the minimum, to order 1/β²; then infinity."""
    z, dz = line(-3, 3, 60_001)

    def energy(z):
        return z**4 / 4 - z + 0.3 * z**2

    best = optimize.minimize_scalar(energy, bounds=(0, 2), method="bounded", options={"xatol": 1e-12})
    curvature = 3 * best.x**2 + 0.6
    for beta in (100.0, 1_000.0, 10_000.0):
        F_beta = ebm.free_energy(energy(z), beta=beta, measure=dz).item()
        rest = math.log(beta * curvature / (2 * math.pi)) / (2 * beta)
        assert F_beta - best.fun == pytest.approx(rest, abs=1 / beta**2)
    assert abs(F_beta - best.fun) < 1e-3
    assert ebm.free_energy(energy(z), beta=math.inf, measure=dz).item() == pytest.approx(best.fun, abs=1e-7)


def test_counted_free_energies_lie_between_the_least_and_log_n_below():
    """The bound min E − log(n)/β ≤ F ≤ min E of any sum of n exponentials, reached by equal energies."""
    E, _ = table()
    for beta in (0.3, 1.0, 30.0):
        F_beta = ebm.free_energy(E, beta=beta, measure=1.0)
        assert (F_beta <= E.amin(1) + 1e-12).all()
        assert (F_beta >= E.amin(1) - math.log(6) / beta - 1e-12).all()
    flat = ebm.free_energy(torch.full((2, 6), 3.0, dtype=F64), beta=2.0, measure=1.0)
    torch.testing.assert_close(flat, f64([3 - math.log(6) / 2] * 2))


def test_hot_and_cold_free_energies_do_not_overflow():
    E = f64([[-1e6, 0.0, 1e6]])
    for beta in (1e-6, 1.0, 1e6):
        assert ebm.free_energy(E, beta=beta, measure=1.0).isfinite().all()
        assert ebm.gibbs(E, beta=beta, measure=1.0).sum().item() == pytest.approx(1)


@pytest.mark.refutes("E9")
def test_without_its_measure_a_free_energy_is_a_number_about_the_grid():
    """The Gaussian integral: with dz every grid gives ½ log(1/2π), a bare sum falls by log 2 as cells halve."""
    wrong, right = [], []
    for n in (501, 1001, 2001):
        z, dz = line(-10, 10, n)
        E = 0.5 * z**2
        wrong.append(ebm.free_energy(E, beta=1.0, measure=1.0).item())
        right.append(ebm.free_energy(E, beta=1.0, measure=dz).item())
    assert right == pytest.approx([-0.5 * math.log(2 * math.pi)] * 3)
    assert np.diff(wrong) == pytest.approx([-math.log(2)] * 2, abs=2e-3)
    # Another unit is another measure: in millimeters the density of a length is a thousandth of that in meters.
    y, dy = line(-10, 10, 1001)
    p = ebm.gibbs(0.5 * y**2, measure=dy)
    per_millimeter = ebm.gibbs(0.5 * y**2, measure=1000 * dy)
    torch.testing.assert_close(per_millimeter * 1000, p)
    with pytest.raises(TypeError, match="measure"):  # the companion has no default
        ebm.free_energy(0.5 * y**2, beta=1.0)


# ---------------------------------------------------------------------- inference


def test_exhaustive_inference_finds_the_best_answer_and_its_latent():
    """A point of an ellipse nearest to y: numpy's argmin of the table, and the angle known by symmetry."""
    angle = torch.linspace(0, 2 * math.pi, 721, dtype=F64)[:-1]
    ellipse = torch.stack([2 * angle.cos(), angle.sin()], 1)
    scales = f64([0.5, 1.0, 1.5])
    y = f64([[3.0, 0.0], [0.0, -1.2], [1.0, 0.0]])
    E = 0.5 * (y[:, None, None] - scales[:, None, None] * ellipse).square().sum(3)  # (batch, scales, angles)
    least, scale, best = ebm.argmin_over(E, scales, angle)
    assert scale.tolist() == [1.5, 1.0, 0.5]
    torch.testing.assert_close(best, f64([0, 1.5 * math.pi, 0]))
    torch.testing.assert_close(least, f64([0, 0.02, 0]), atol=1e-12, rtol=0)
    flat = E.reshape(3, -1).numpy().argmin(1)
    assert [divmod(int(i), 720) for i in flat] == [
        (scales.tolist().index(s), angle.tolist().index(a)) for s, a in zip(scale.tolist(), best.tolist(), strict=True)
    ]
    _, where = ebm.argmin_over(E[:, 1], ellipse)
    assert where.shape == (3, 2)


def test_descent_on_a_parabola_shrinks_the_distance_by_one_factor_a_step():
    """The recursion in closed form: y_k − m = (1 − rate · a)^k (y_0 − m)."""
    path = ebm.descend(bowl_at(2.0, 3.0), normals(4, 2), rate=0.2, steps=10)
    k = torch.arange(11, dtype=F64)[:, None, None]
    torch.testing.assert_close(path, 2 + (1 - 0.6) ** k * (normals(4, 2) - 2))
    assert not path.requires_grad


def test_descent_ends_where_exhaustive_inference_does():
    """Two algorithms for one function, on an energy of x and y that is no parabola."""

    def energy(x, y):
        return (y - torch.sin(2 * x)).square() + 0.1 * (y - torch.sin(2 * x)) ** 4

    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    grid, _ = line(-2, 2, 4001)
    path = ebm.descend(lambda y: energy(x, y)[:, 0], torch.zeros_like(x), rate=0.2, steps=200)
    _, best = ebm.argmin_over(energy(x, grid), grid)
    torch.testing.assert_close(path[-1, :, 0], best, atol=1e-3, rtol=0)


@pytest.mark.refutes("E7")
@pytest.mark.parametrize("level", [-7.0, 0.4, 5.0])
def test_inference_ends_at_the_least_energy_whatever_its_value(level):
    """Stationarity: a constant moves the energy at the answer to any level, and neither the answer nor p(y) change."""
    energy = bowl_at(1.0)

    def lifted(y):
        return energy(y) + level

    start = f64([[-2.0]])
    path = ebm.descend(lifted, start, rate=0.3, steps=60)
    torch.testing.assert_close(path, ebm.descend(energy, start, rate=0.3, steps=60))
    torch.testing.assert_close(path[-1], f64([[1.0]]))
    assert lifted(path[-1]).item() == pytest.approx(level)
    zero = [k for k, y in enumerate(path) if lifted(y) <= 0]  # 'stop when the energy has reached 0'
    if level > 0:
        assert zero == []  # it never does
    else:
        assert (path[zero[0]] - 1).abs() > 0.5  # it does far from the answer
    y, dy = line(-6, 8, 501)
    torch.testing.assert_close(ebm.gibbs(lifted(y[:, None]), measure=dy), ebm.gibbs(energy(y[:, None]), measure=dy))


def test_the_score_is_that_of_the_normal_density():
    """torch's MultivariateNormal, differentiated; for β = 3 three times as steep; the same with gradients off."""
    precision = f64([[2.0, 0.8], [0.8, 1.0]])
    density = torch.distributions.MultivariateNormal(f64([0.5, -1.0]), precision_matrix=precision)

    def energy(x):
        gap = x - density.mean
        return 0.5 * (gap @ precision * gap).sum(1)

    x = normals(20, 2).requires_grad_()
    (wanted,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    torch.testing.assert_close(ebm.score(energy, x), wanted)
    torch.testing.assert_close(ebm.score(energy, x, beta=3.0), 3 * wanted)
    with torch.no_grad():
        got = ebm.score(energy, x)
    torch.testing.assert_close(got, wanted)
    assert not got.requires_grad
    assert (ebm.score(lambda x: torch.ones(len(x), dtype=F64), x) == 0).all()


def test_the_score_knows_the_parameters_of_the_energy():
    """d/da of −a x is −x."""
    a = f64(2.0).requires_grad_()
    x = normals(7, 1)
    (slope,) = torch.autograd.grad(ebm.score(lambda x: 0.5 * a * x[:, 0] ** 2, x).sum(), a)
    torch.testing.assert_close(slope, -x.sum())


# ---------------------------------------------------------------------- families


def test_the_binary_energy_with_log_likelihood_is_logistic_regression_and_with_a_hinge_a_support_vector_machine():
    """torch's binary cross-entropy of 2g, and torch's multi-margin loss of both scores."""
    g = net(3, 1, width=8)
    model, x = ebm.BinaryEnergy(g), normals(40, 3)
    y = torch.where(normals(40, seed=1) > 0, 1.0, -1.0).double()
    E = model.table(x)
    torch.testing.assert_close(model(x, y), torch.where(y > 0, E[:, 1], E[:, 0]))
    answers = Answers.of_labels(E, (y > 0).long())
    wanted = F.binary_cross_entropy_with_logits(2 * g(x)[:, 0], (y > 0).double(), reduction="none")
    torch.testing.assert_close(ebm.nll_loss(answers), wanted)
    wanted = 2 * F.multi_margin_loss(-E, (y > 0).long(), margin=0.5, reduction="none")  # torch divides by the labels
    torch.testing.assert_close(ebm.hinge_loss(answers, margin=0.5), wanted)
    assert (E.argmin(1) == (g(x)[:, 0] > 0)).all()


def test_the_multi_class_energy_with_log_likelihood_is_cross_entropy():
    """torch's cross-entropy of the scores, at two temperatures."""
    model, x, y = ebm.MultiClassEnergy(net(3, 5, width=8)), normals(40, 3), torch.arange(40) % 5
    for beta in (1.0, 2.5):
        got = ebm.nll_loss(Answers.of_labels(model.table(x), y), beta=beta)
        torch.testing.assert_close(got, F.cross_entropy(beta * model.g(x), y, reduction="none") / beta)
    torch.testing.assert_close(model(x, y), -model.g(x).gather(1, y[:, None])[:, 0])


def test_the_regression_energy_with_its_own_loss_is_least_squares():
    """numpy's least squares: its solution makes the gradient of the energy loss zero."""
    x, y = normals(50, 3), normals(50, 2, seed=1)
    solution = np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)[0]
    weight = torch.from_numpy(solution).requires_grad_()
    model = ebm.RegressionEnergy(lambda x: x @ weight)
    (slope,) = torch.autograd.grad(model(x, y).mean(), weight)
    assert slope.abs().max() < 1e-12
    torch.testing.assert_close(model(x, y).mean(), F.mse_loss(x @ weight, y))  # ½ of a sum over two coordinates


def test_implicit_regression_has_as_many_answers_as_fit():
    """y² = x: two answers of equal energy for x > 0."""
    model = ebm.ImplicitRegressionEnergy(lambda x: x, lambda y: y**2)
    torch.testing.assert_close(model(f64([[4.0]] * 3), f64([[2.0], [-2.0], [0.0]])), f64([0.0, 0.0, 8.0]))


# ---------------------------------------------------------------------- latents, and how much they may know


def least_over_z(model, y, z):
    """min_z E(y, z) by a long descent."""
    path = ebm.descend(lambda z: model(y, z), z, rate=0.2, steps=400)
    return model(y, path[-1])


def test_a_latent_that_can_say_everything_makes_the_energy_flat():
    """Decoders: the identity reaches every y; the penalty λ/2 ‖z‖² leaves λ/(1 + λ) ½‖y‖²; a line a valley."""
    y = 2 * normals(30, 2)
    free = least_over_z(ebm.ReconstructionEnergy(lambda z: z), y, torch.zeros_like(y))
    assert free.abs().max() < 1e-12
    lam = 0.5
    costly = ebm.ReconstructionEnergy(lambda z: z, lambda z: 0.5 * lam * z.square().sum(1))
    wanted = 0.5 * lam / (1 + lam) * y.square().sum(1)
    torch.testing.assert_close(least_over_z(costly, y, torch.zeros_like(y)), wanted)
    narrow = ebm.ReconstructionEnergy(lambda z: torch.cat([z, 0 * z], dim=1))
    torch.testing.assert_close(least_over_z(narrow, y, torch.zeros(30, 1, dtype=F64)), 0.5 * y[:, 1] ** 2)


def test_the_cold_codebook_is_k_means():
    """scikit-learn's inertia is twice the sum of the least energies, and its labels are ẑ."""
    y = HEAPS.sample(300, generator=generator(0)).repeat(1, 2) + 0.3 * normals(300, 2)
    means = KMeans(4, n_init=1, random_state=0).fit(y.numpy())
    E = ebm.codebook_energies(y, torch.from_numpy(means.cluster_centers_))
    assert 2 * ebm.free_energy(E, beta=math.inf, measure=1.0).sum().item() == pytest.approx(means.inertia_)
    _, z = ebm.argmin_over(E, torch.arange(4))
    assert (z.numpy() == means.labels_).all()


def test_the_warm_codebook_is_a_mixture_of_gaussians():
    """The data room's mixture with variance 1/β: −βF is its log-density up to the Gaussian's constant."""
    codes, y, beta = normals(3, 2), 2 * normals(50, 2, seed=1), 2.5
    weights = f64([0.2, 0.3, 0.5])
    F_beta = ebm.free_energy(ebm.codebook_energies(y, codes), beta=beta, measure=weights)
    mixture = GaussianMixture(codes, (torch.eye(2, dtype=F64) / beta).expand(3, 2, 2).contiguous(), weights)
    torch.testing.assert_close(-beta * F_beta + math.log(beta / (2 * math.pi)), mixture.log_prob(y))


# ---------------------------------------------------------------------- what a loss sees


def test_on_a_grid_answers_near_the_right_one_are_not_incorrect():
    """A smooth energy: with a radius the offending answer is at its edge, without one it is beside y."""
    grid, dy = line(-3, 3, 601)
    x, y = normals(4, 2), f64([[0.0], [1.0], [-0.4], [0.25]])

    def energy(x, y):
        return x[:, 0] + y[:, 0]

    answers = Answers.on_grid(energy, x, y, grid[:, None], radius=0.5, measure=dy)
    assert answers.all.shape == (4, 601)
    for row, center in zip(answers.wrong, y[:, 0], strict=True):
        assert ((grid[row] - center).abs() > 0.5).all()
        assert (~row).sum() == pytest.approx(100, abs=1)
    torch.testing.assert_close(answers.right, energy(x, y))
    torch.testing.assert_close(answers.all, x[:, :1] + grid)
    assert answers.measure == dy


def test_between_the_points_of_a_grid_the_perceptron_loss_is_not_negative():
    """The right answer is one of all answers, even where no point of the grid is as low: a bowl centered at it."""
    grid, dy = line(-1, 1, 11)
    y = f64([[0.1], [0.13], [-0.77]])
    for center in (0.0, 0.3):

        def bowl(x, v, center=center):
            return (v - x - center).square()[:, 0]

        answers = Answers.on_grid(bowl, y, y, grid[:, None], radius=0.05, measure=dy)
        loss = ebm.perceptron_loss(answers)
        assert (loss >= 0).all()
        assert (loss == 0).all() if center == 0 else (loss > 0.05).any()


def test_the_most_offending_answer_is_the_lowest_of_the_others():
    """A loop in plain Python."""
    E, y = table()
    answers = Answers.of_labels(E, y)
    wanted = [min(e for k, e in enumerate(row) if k != i) for row, i in zip(E.tolist(), y.tolist(), strict=True)]
    assert answers.offending.tolist() == pytest.approx(wanted)
    right = [row[i] for row, i in zip(E.tolist(), y.tolist(), strict=True)]
    assert answers.gap.tolist() == pytest.approx([e - w for e, w in zip(right, wanted, strict=True)])


# ---------------------------------------------------------------------- ten losses

RIGHT, WRONG = 1.0, [0.4, 2.5]  # one example by hand: E(y) = 1, E(ȳ) = 0.4
BY_HAND = {
    "energy": 1.0,
    "perceptron": 0.6,
    "hinge": 1.6,
    "log": math.log(1 + math.exp(0.6)),
    "LVQ2": 0.6,
    "MCE": 1 / (1 + math.exp(-0.6)),
    "square-square": 1.0 + 0.6**2,
    "square-exponential": 1.0 + math.exp(-0.4),
    "NLL": 1.0 + math.log(math.exp(-1.0) + math.exp(-0.4) + math.exp(-2.5)),
    "MEE": 1 - math.exp(-1.0) / (math.exp(-1.0) + math.exp(-0.4) + math.exp(-2.5)),
}


@pytest.mark.parametrize("name", ebm.LOSSES)
def test_each_loss_has_the_value_that_one_computes_by_hand(name):
    answers = Answers.of_labels(f64([[RIGHT, *WRONG]]), torch.tensor([0]))
    assert ebm.LOSSES[name](answers).tolist() == pytest.approx([BY_HAND[name]])
    assert set(ebm.LOSSES) == set(ebm.FLAT) == set(BY_HAND)


@pytest.mark.verifies("eq-hinge-energy")
def test_the_hinge_asks_for_a_margin_between_two_energies():
    """torch's margin ranking loss, and torch's multi-margin loss where there are two labels only."""
    E, y = table()
    answers = Answers.of_labels(E, y)
    for m in (0.0, 0.5, 2.0):
        target = -torch.ones_like(answers.right)  # the first is to be the lower one
        wanted = F.margin_ranking_loss(answers.right, answers.offending, target, margin=m, reduction="none")
        torch.testing.assert_close(ebm.hinge_loss(answers, margin=m), wanted)
    two = Answers.of_labels(E[:, :2], y % 2)
    wanted = 2 * F.multi_margin_loss(-E[:, :2], y % 2, margin=0.7, reduction="none")
    torch.testing.assert_close(ebm.hinge_loss(two, margin=0.7), wanted)


def test_the_other_losses_of_the_gap_are_torchs():
    """Softplus as soft-margin loss, the logistic function, a clamp."""
    answers = Answers.of_labels(*table())
    gap, ones = answers.gap, -torch.ones_like(answers.gap)
    torch.testing.assert_close(ebm.log_loss(answers), F.soft_margin_loss(gap, ones, reduction="none"))
    torch.testing.assert_close(ebm.mce_loss(answers), 0.5 * (1 + torch.tanh(gap / 2)))
    torch.testing.assert_close(ebm.lvq2_loss(answers, ceiling=2.0), F.hardtanh(F.relu(gap), 0.0, 2.0))


@pytest.mark.verifies("eq-nll-energy")
def test_the_log_likelihood_loss_is_minus_the_log_of_the_gibbs_density():
    """scipy's normal density on a grid of y, for an energy that regresses; torch's cross-entropy for labels."""
    grid, dy = line(-9, 9, 3001)
    x, y, beta = normals(5, 1), normals(5, 1, seed=1), 2.0
    answers = Answers.on_grid(ebm.RegressionEnergy(lambda x: 0.5 * x), x, y, grid[:, None], radius=0.1, measure=dy)
    wanted = -stats.norm(0.5 * x.numpy(), 1 / math.sqrt(beta)).logpdf(y.numpy())[:, 0] / beta
    torch.testing.assert_close(ebm.nll_loss(answers, beta=beta), torch.from_numpy(wanted))
    torch.testing.assert_close(ebm.mee_loss(answers, beta=beta), torch.from_numpy(1 - np.exp(-beta * wanted)))
    E, labels = table()
    answers = Answers.of_labels(E, labels)
    torch.testing.assert_close(ebm.nll_loss(answers), F.cross_entropy(-E, labels, reduction="none"))


def test_the_minimum_empirical_error_is_the_chance_of_a_wrong_draw():
    """Counting 200,000 draws from the Gibbs distribution of one example: 4.5 standard errors, false alarm 7e-6."""
    E = f64([[0.3, 1.0, -0.2, 0.8]])
    draws = torch.multinomial(F.softmax(-1.5 * E[0], 0), 200_000, replacement=True, generator=generator(0))
    chance = ebm.mee_loss(Answers.of_labels(E, torch.tensor([1])), beta=1.5).item()
    assert abs((draws != 1).double().mean().item() - chance) < 4.5 * math.sqrt(chance * (1 - chance) / 200_000)


def test_cold_log_likelihood_is_the_perceptron_loss():
    """The β → ∞ limit, at the rate log(n)/β."""
    answers = Answers.of_labels(*table())
    for beta in (10.0, 1000.0):
        gap = ebm.nll_loss(answers, beta=beta) - ebm.perceptron_loss(answers)
        assert ((gap >= -1e-12) & (gap <= math.log(6) / beta)).all()


@pytest.mark.refutes("E8")
def test_the_hinge_of_energies_is_not_the_hinge_embedding_loss():
    """A fact about the first: it does not change when all energies rise together. torch's loss of that name does."""
    E, y = table()
    right, m = F.one_hot(y, 6), 1.0

    def embedding(E):
        """torch's: a distance that should be 0 (target 1) or at least m (target −1), each entry by itself."""
        target = (2 * right - 1).double()
        return F.hinge_embedding_loss(E, target, margin=m, reduction="none").sum(1)

    ours = ebm.hinge_loss(Answers.of_labels(E, y), margin=m)
    torch.testing.assert_close(ebm.hinge_loss(Answers.of_labels(E + 2, y), margin=m), ours)
    assert (embedding(E + 2) - embedding(E)).abs().mean() > 1
    assert (embedding(E) - ours).abs().mean() > 1
    one = Answers.of_labels(f64([[1.0, 3.0]]), torch.tensor([0]))  # the right answer wins by 2
    assert ebm.hinge_loss(one).item() == 0
    assert F.hinge_embedding_loss(f64([1.0, 3.0]), f64([1.0, -1.0]), reduction="sum").item() == 1.0


def test_the_square_square_loss_has_a_plus():
    """With a minus the loss has no floor: it falls without end as the wrong energy falls. With a plus that costs."""
    falling = [Answers.of_labels(f64([[0.0, -depth]]), torch.tensor([0])) for depth in (0.0, 10.0, 100.0)]
    right = [ebm.square_square_loss(a).item() for a in falling]
    assert right == [1.0, 121.0, 10201.0]
    minus = [(a.right**2 - (1 - a.offending).clamp(min=0) ** 2).item() for a in falling]
    assert minus == [-1.0, -121.0, -10201.0]


# ---------------------------------------------------------------------- which losses a flat energy pleases


def shortfall(loss, floor=-math.inf, n=200_000, labels=4, levels=(0.0, 0.5)):
    """How much less than the best flat energy the best of many random tables costs; energies at least `floor`."""
    E = (4 * normals(n, labels)).clamp(min=floor)
    some = loss(Answers.of_labels(E, torch.zeros(n, dtype=torch.long))).min()
    flat = [loss(Answers.of_labels(f64([[c] * labels]), torch.zeros(1, dtype=torch.long))) for c in levels]
    return (torch.cat(flat).min() - some).item()


COLLAPSE = [  # a loss, and whether a flat energy is among its minima
    ("energy, with a floor at 0", ebm.energy_loss, 0.0, True),
    ("energy, without a floor", ebm.energy_loss, -math.inf, False),  # it has no minimum at all
    ("perceptron", ebm.perceptron_loss, -math.inf, True),
    ("hinge", ebm.hinge_loss, -math.inf, False),
    ("hinge, m = 0", functools.partial(ebm.hinge_loss, margin=0.0), -math.inf, True),
    ("log", ebm.log_loss, -math.inf, False),
    ("LVQ2", ebm.lvq2_loss, -math.inf, True),
    ("MCE", ebm.mce_loss, -math.inf, False),
    ("square-square", ebm.square_square_loss, -math.inf, False),
    ("square-square, m = 0", functools.partial(ebm.square_square_loss, margin=0.0), -math.inf, True),
    ("square-exponential", ebm.square_exponential_loss, -math.inf, False),
    ("square-exponential, w = 0", functools.partial(ebm.square_exponential_loss, weight=0.0), -math.inf, True),
    ("NLL", ebm.nll_loss, -math.inf, False),
    ("NLL, β = ∞", functools.partial(ebm.nll_loss, beta=math.inf), -math.inf, True),
    ("MEE", ebm.mee_loss, -math.inf, False),
]


@pytest.mark.parametrize(("loss", "floor", "flat"), [row[1:] for row in COLLAPSE], ids=[row[0] for row in COLLAPSE])
def test_a_flat_energy_is_a_minimum_of_some_losses_only(loss, floor, flat):
    """Two hundred thousand random tables: none is better than a flat one, or the best is better by a margin."""
    assert shortfall(loss, floor) == pytest.approx(0, abs=1e-4) if flat else shortfall(loss, floor) > 0.1


@pytest.mark.parametrize("name", [name for name, text in ebm.FLAT.items() if not text.startswith("yes")])
def test_from_a_flat_energy_the_other_losses_push_right_and_wrong_apart(name):
    """The directional derivative at a flat energy, right down and wrong up, by a difference: negative."""
    h, flat, apart = 1e-6, f64([[0.3] * 4]), f64([[-1.0, 1.0, 1.0, 1.0]])
    low, high = (ebm.LOSSES[name](Answers.of_labels(E, torch.tensor([0]))) for E in (flat, flat + h * apart))
    assert (high - low).item() / h < -0.1


@pytest.mark.parametrize("loss", [ebm.nll_loss, ebm.mee_loss], ids=["NLL", "MEE"])
def test_with_a_single_answer_likelihood_is_content_with_anything(loss):
    """One label has probability 1 whatever its energy."""
    one = Answers.of_labels(normals(5, 1), torch.zeros(5, dtype=torch.long))
    assert loss(one).abs().max() < 1e-12


@pytest.mark.parametrize(("loss", "flat"), [(ebm.log_loss, math.log(2)), (ebm.mce_loss, 0.5), (ebm.hinge_loss, 1.0)])
def test_without_a_radius_no_continuous_energy_beats_a_flat_one(loss, flat):
    """Continuity: the incorrect answer next to y has nearly its energy. With a radius a bowl is far better."""
    grid, dy = line(-2, 2, 40_001)
    y = f64([[0.30005]])
    for slope in (0.5, 3.0):

        def bowl(x, y, slope=slope):
            return 10 * slope * (y[:, 0] - 0.30005).square()

        near, far = (
            loss(Answers.on_grid(bowl, y, y, grid[:, None], radius=radius, measure=dy)).item() for radius in (0.0, 1.0)
        )
        assert near > flat - 1e-4
        assert far < 0.1 * flat


def trained(model, loss, *, steps=150, rate=2e-2, radius=0.3):
    """An energy of pairs, trained on y = x² with full batches; its energies on a grid of y."""
    x = torch.linspace(-1, 1, 15, dtype=F64)[:, None]
    grid, dy = line(-1, 2, 31)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(Answers.on_grid(model, x, x**2, grid[:, None], radius=radius, measure=dy)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        answers = Answers.on_grid(model, x, x**2, grid[:, None], radius=radius, measure=dy)
    _, best = ebm.argmin_over(answers.all, grid)
    return answers, (best - x[:, 0] ** 2).abs().mean().item()


def implicit(seed=0):
    g_x, g_y = (net(1, 4, width=20, depth=1, seed=2 * seed + side, activation=nn.Tanh) for side in (0, 1))
    return ebm.ImplicitRegressionEnergy(g_x, g_y)


@pytest.mark.refutes("E10")
def test_low_energy_on_the_data_is_low_energy_everywhere_unless_the_architecture_forbids_it():
    """The energies of wrong answers after training: near 0 with maps of both sides, a bowl's for regression."""
    flat, _ = trained(implicit(), ebm.energy_loss)
    assert flat.right.max() < 0.01
    assert flat.all.max() < 0.05  # wrong answers too: nothing was learned
    bowl, error = trained(ebm.RegressionEnergy(net(1, 1, width=20, depth=1, activation=nn.Tanh)), ebm.energy_loss)
    assert error < 0.06
    assert (bowl.all[bowl.wrong] > 0.5 * 0.2**2).all()  # a wrong answer is 0.3 away, the prediction less than 0.1
    cured, error = trained(implicit(), ebm.nll_loss, steps=80)
    assert error < 0.1
    assert cured.gap.max() < -0.1  # the same maps, with something pushed up


@pytest.mark.parametrize("name", ebm.LOSSES)
def test_training_collapses_for_the_losses_that_a_flat_energy_pleases(name):
    """Maps of both sides, trained on y = x²: how far apart the energies of all answers are, for the flattest x."""
    answers, _ = trained(implicit(), ebm.LOSSES[name])
    apart = (answers.all.amax(1) - answers.all.amin(1)).min()
    assert apart < 0.05 if ebm.FLAT[name].startswith("yes") else apart > 0.1


def test_without_a_floor_the_energies_of_the_data_fall_without_end_and_so_does_their_likelihood():
    """A network with a free level, trained on Σ E(x_i) alone; its log-likelihood by quadrature over [−3, 4]."""
    model = net(1, 1, width=20, depth=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    x, (grid, dx) = HEAPS.sample(200, generator=generator(0)).clamp(-3, 4), line(-3, 4, 701)
    lows, nats = [], []
    for step in range(401):
        E = model(x).mean()
        if step % 200 == 0:
            lows.append(E.item())
            nats.append((E - ebm.free_energy(model(grid[:, None])[:, 0], beta=1.0, measure=dx)).item())
        optimizer.zero_grad()
        E.backward()
        optimizer.step()
    assert lows[1] < lows[0] - 4
    assert lows[2] < lows[1] - 10  # faster and faster
    assert nats[2] > nats[1] > nats[0]
    assert nats[2] > math.log(7) + 1  # worse than the uniform density, which knows nothing


# ---------------------------------------------------------------------- contrastive divergence


def heap_energy(m, w):
    """Two bells at ±m whose heights differ by w: a family with log Z that no one writes down."""

    def energy(x):
        return -torch.logsumexp(torch.stack([w - (x[:, 0] - m) ** 2, -((x[:, 0] + m) ** 2) - 0.1 * x[:, 0] ** 4], 1), 1)

    return energy


def nll_by_quadrature(parameters, x):
    """E_data[E] + log Z with log Z by the trapezoidal rule, which autograd can go through."""
    grid, dx = line(-8, 8, 4001)
    E = heap_energy(*parameters)
    return E(x).mean() + torch.logsumexp(-E(grid[:, None]), 0) + math.log(dx)


def quantiles(E, n):
    """The n midpoint quantiles of the density e^{−E}: samples of the model without noise."""
    grid, dx = line(-8, 8, 8001)
    with torch.no_grad():
        mass = ebm.gibbs(E(grid[:, None]), measure=dx).cumsum(0) * dx
    levels = (torch.arange(n, dtype=F64) + 0.5) / n
    return torch.from_numpy(np.interp(levels.numpy(), mass.numpy(), (grid + dx / 2).numpy()))[:, None]


@pytest.mark.verifies("eq-nll-gradient")
def test_the_gradient_of_the_log_likelihood_is_positive_minus_negative_phase():
    """Autograd through log Z by quadrature; the phases get 20,000 quantiles of the model as samples."""
    x = HEAPS.sample(500, generator=generator(0))
    for start in ((0.5, 0.0), (1.5, -0.7)):
        parameters = [f64(v).requires_grad_() for v in start]
        wanted = torch.autograd.grad(nll_by_quadrature(parameters, x), parameters)
        E = heap_energy(*parameters)
        got = torch.autograd.grad(ebm.contrastive_divergence_loss(E, x, quantiles(E, 20_000)), parameters)
        torch.testing.assert_close(got, wanted, atol=2e-4, rtol=2e-4)
        assert max(g.abs() for g in wanted) > 0.1


@pytest.mark.verifies("eq-contrastive-divergence")
def test_contrastive_divergence_with_a_long_chain_has_the_gradient_of_the_likelihood():
    """Autograd through log Z by quadrature, against 20,000 exact chains: 4.5 standard errors, false alarm 1e-5."""
    x = HEAPS.sample(500, generator=generator(0))
    parameters = [f64(0.8).requires_grad_(), f64(0.5).requires_grad_()]
    E = heap_energy(*parameters)
    chains, _ = metropolis_langevin(lambda x: -E(x), normals(20_000, 1), h=0.3, steps=60, generator=generator(1))
    wanted = torch.autograd.grad(nll_by_quadrature(parameters, x), parameters)
    got = torch.autograd.grad(ebm.contrastive_divergence_loss(E, x, chains), parameters)
    for k, parameter in enumerate(parameters):
        each = torch.func.vmap(lambda x, k=k: _slope(x, parameters, k))(chains)
        assert abs(got[k] - wanted[k]) < 4.5 * each.std() / math.sqrt(len(chains)), parameter


def _slope(x, parameters, k):
    """∂E/∂θ_k at one point."""
    values = [p.detach() for p in parameters]

    def at(value):
        return heap_energy(*(value if i == k else v for i, v in enumerate(values)))(x[None])[0]

    return torch.func.grad(at)(values[k])


@pytest.mark.verifies("eq-contrastive-divergence")
@pytest.mark.parametrize("way", ["persistent", "from the data", "Metropolis"])
def test_contrastive_divergence_recovers_a_precision(way):
    """Closed form: chains with step h stop at a(1 − ah/2) = 1/V, exact ones at 1/V, for data of variance V = 1/4."""
    x = 0.5 * normals(1_000, 1)
    x = x / x.square().mean().sqrt() / 2
    h, log_a, g = 0.1, f64(0.0).requires_grad_(), generator(1)

    def energy(x):
        return 0.5 * log_a.exp() * x[:, 0] ** 2

    class Data:
        def sample(self, n, *, generator):
            return x[torch.randint(len(x), (n,), generator=generator)]

    def plain(start):
        return langevin(functools.partial(ebm.score, energy), start, h=h, steps=1, generator=g)

    def exact(start):
        return metropolis_langevin(lambda x: -energy(x), start, h=h, steps=1, generator=g).x

    fresh, kernel = {"persistent": (0.0, plain), "from the data": (1.0, plain), "Metropolis": (0.0, exact)}[way]
    buffer = ebm.ReplayBuffer(Data(), 1_000, fresh=fresh, generator=g)
    optimizer, track = torch.optim.SGD([log_a], lr=0.3), []
    for _ in range(450):
        optimizer.zero_grad()
        ebm.contrastive_divergence_loss(energy, x, buffer.advance(kernel, 1_000, generator=g)).backward()
        optimizer.step()
        track.append(log_a.exp().item())
    found = sum(track[150:]) / 300
    biased = (1 - math.sqrt(1 - 2 * h * 4)) / h  # 5.53
    assert found == pytest.approx(4.0 if way == "Metropolis" else biased, rel=0.03)


def test_the_level_of_the_energy_is_fixed_by_the_decay_only():
    """E + c: the difference of the phases does not change, the decay is least at one c."""
    x, y = normals(20, 1), 3 * normals(30, 1, seed=1)

    def loss(c, decay):
        return ebm.contrastive_divergence_loss(lambda x: bowl_at(0.0)(x) + c, x, y, decay=decay)

    torch.testing.assert_close(loss(0.0, 0.0), loss(7.0, 0.0))
    best = -(bowl_at(0.0)(x).mean() + bowl_at(0.0)(y).mean()).item() / 2
    assert loss(best, 0.1) < min(loss(best - 0.1, 0.1), loss(best + 0.1, 0.1))


def test_no_gradient_goes_through_the_negative_phase():
    x = normals(5, 1).requires_grad_()
    loss = ebm.contrastive_divergence_loss(bowl_at(0.0), normals(5, 1, seed=1), x)
    assert not loss.requires_grad


def test_the_replay_buffer_goes_on_where_the_chains_were():
    """A kernel that counts its steps: rows that were drawn have moved, the others not; a fresh one starts at 0."""

    class Zero:
        def sample(self, n, *, generator):
            return torch.zeros(n, 2)

    def step(x):
        return x + 1

    old = ebm.ReplayBuffer(Zero(), 10, fresh=0.0, generator=generator(0))
    first = old.advance(step, 4, generator=generator(1))
    assert (first == 1).all()
    assert old.x[:, 0].sum() == 4
    some = ebm.ReplayBuffer(Zero(), 10, fresh=0.0, generator=generator(0))
    for seed in range(30):
        some.advance(step, 4, generator=generator(seed))
    assert (some.x[:, 0] > 0).all()  # a chain is left out 30 times with probability 2e-7
    for seed in range(20):
        old.advance(step, 10, generator=generator(seed))
    assert sorted(set(old.x[:, 0].tolist())) == [20.0, 21.0]
    new = ebm.ReplayBuffer(Zero(), 10, fresh=1.0, generator=generator(0))
    assert all((new.advance(step, 10, generator=generator(seed)) == 1).all() for seed in range(3))


def test_the_share_of_fresh_chains_is_the_one_asked_for():
    """Ages of 20,000 chains after many rounds are geometric: mean 1/fresh; 5 standard errors, false alarm 6e-7."""

    class Zero:
        def sample(self, n, *, generator):
            return torch.zeros(n, 1, dtype=F64)

    buffer = ebm.ReplayBuffer(Zero(), 20_000, fresh=0.2, generator=generator(0))
    g = generator(1)
    for _ in range(100):
        ages = buffer.advance(lambda x: x + 1, 20_000, generator=g)
    assert abs(ages.mean().item() - 5) < 5 * math.sqrt(0.8) / 0.2 / math.sqrt(20_000)


def test_the_buffer_is_not_an_alias_of_its_source():
    data = normals(10, 1)

    class Data:
        def sample(self, n, *, generator):
            return data[:n]

    buffer = ebm.ReplayBuffer(Data(), 10, fresh=0.0, generator=generator(0))
    out = buffer.advance(lambda x: x + 1, 10, generator=generator(0))
    assert torch.equal(data, normals(10, 1))
    assert not out.requires_grad
    assert len(buffer) == 10


# ---------------------------------------------------------------------- score matching


def mean_under_heaps(values, x, dx):
    """E over the heaps, by the trapezoidal rule."""
    return (values * HEAPS.log_prob(x).exp()).sum() * dx


@pytest.mark.verifies("eq-score-matching")
def test_score_matching_is_the_distance_to_the_score_less_a_constant():
    """Quadrature of ½E‖s − ∇log p‖² with the mixture's own score, for networks that know nothing of it."""
    grid, dx = line(-8, 9, 4001)
    x = grid[:, None]
    truth = HEAPS.score(x)
    constant = mean_under_heaps(0.5 * truth.square()[:, 0], x, dx)
    for seed in (0, 1, 2):
        s = net(1, 1, width=8, seed=seed, activation=nn.Tanh)
        got = mean_under_heaps(ebm.score_matching_loss(s, x), x, dx)
        distance = mean_under_heaps(0.5 * (s(x) - truth).square()[:, 0], x, dx)
        torch.testing.assert_close(got, distance - constant, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(
        mean_under_heaps(ebm.score_matching_loss(HEAPS.score, x), x, dx), -constant, atol=1e-7, rtol=1e-7
    )


def least(loss, *parameters):
    """The parameters at the minimum of a smooth loss, by L-BFGS."""
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-11, tolerance_change=1e-15
    )

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    return [p.detach() for p in parameters]


def gaussian_data(n=300):
    return normals(n, 3) @ normals(3, 3, seed=5) + f64([1.0, -2.0, 0.5])


@pytest.mark.parametrize("way", ["exact", "sliced"])
def test_score_matching_recovers_the_precision_and_the_mean_of_gaussian_data(way):
    """numpy's inverse covariance (1/N) and mean: the closed-form optimum. All eight signs make slices exact."""
    x = gaussian_data()
    factor, mean = torch.eye(3, dtype=F64).requires_grad_(), torch.zeros(3, dtype=F64).requires_grad_()

    def energy(x):
        return 0.5 * ((x - mean) @ factor).square().sum(1)

    def s(x):
        return ebm.score(energy, x)

    signs = f64(list(itertools.product([-1.0, 1.0], repeat=3)))[:, None].expand(8, len(x), 3)
    loss = {
        "exact": lambda: ebm.score_matching_loss(s, x).mean(),
        "sliced": lambda: ebm.sliced_score_matching_loss(s, x, signs).mean(),
    }[way]
    factor, mean = least(loss, factor, mean)
    wanted = np.linalg.inv(np.cov(x.numpy().T, ddof=0))
    torch.testing.assert_close(factor @ factor.T, torch.from_numpy(wanted), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mean, x.mean(0), atol=1e-4, rtol=1e-4)


def test_sliced_score_matching_is_right_on_average():
    """The exact loss of one batch, from 2,000 signs: 4.5 standard errors, false alarm 7e-6."""
    s, x = net(3, 3, width=8, activation=nn.Tanh), normals(10, 3)
    exact = ebm.score_matching_loss(s, x).mean().item()
    signs = rademacher((20_000, 3), generator(0), dtype=F64)
    each = ebm.sliced_score_matching_loss(s, x.repeat(2_000, 1), signs).detach().reshape(2_000, 10).mean(1)
    assert abs(each.mean().item() - exact) < 4.5 * each.std().item() / math.sqrt(2_000)
    assert each.std() > 0.01


@pytest.mark.verifies("eq-denoising-score-matching")
@pytest.mark.parametrize("sigma", [0.1, 0.8])
def test_denoising_score_matching_recovers_the_precision_of_the_blurred_data(sigma):
    """Closed form: 1/(V + σ²), not 1/V. Noises ±1 with equal weight have the moments of a normal up to the third."""
    x = 0.6 * normals(400, 1) + 2.0
    pairs, eps = x.repeat(2, 1), torch.cat([torch.ones_like(x), -torch.ones_like(x)])
    a, mean = f64(1.0).requires_grad_(), f64(0.0).requires_grad_()

    def loss():
        return ebm.denoising_score_matching_loss(lambda x: -a * (x - mean), pairs, eps, sigma=sigma).mean()

    a, mean = least(loss, a, mean)
    variance = x.var(correction=0)
    assert a.item() == pytest.approx(1 / (variance.item() + sigma**2), rel=1e-6)
    assert mean.item() == pytest.approx(x.mean().item())
    assert abs(a.item() * variance.item() - 1) > 0.02


@pytest.mark.verifies("eq-denoising-score-matching")
def test_denoising_score_matching_is_the_distance_to_the_blurred_score_up_to_a_constant():
    """The blurred mixture in closed form and Gauss–Hermite quadrature over the noise, for three networks."""
    sigma, (grid, dx) = 0.5, line(-8, 9, 1001)
    x = grid[:, None]
    blurred = GaussianMixture(HEAPS.means, torch.tensor([[[0.36]], [[0.64]]], dtype=F64) + sigma**2, HEAPS.weights)
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(40))
    gaps = []
    for seed in (0, 1, 2):
        s = net(1, 1, width=8, seed=seed, activation=nn.Tanh)
        got = sum(
            w * mean_under_heaps(ebm.denoising_score_matching_loss(s, x, torch.full_like(x, e), sigma=sigma), x, dx)
            for e, w in zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True)
        )
        distance = 0.5 * (s(x) - blurred.score(x)).square()[:, 0]
        gaps.append((got - (distance * blurred.log_prob(x).exp()).sum() * dx).item())
    assert gaps == pytest.approx([gaps[0]] * 3, abs=1e-6)
    assert gaps[0] > 0.1


@pytest.mark.parametrize("way", ["score matching", "denoising"])
def test_both_recover_where_the_bells_of_a_mixture_stand(way):
    """Fifty thousand draws of two bells at ±1.2 (unit variance): the optimum within 0.05, some four standard errors."""
    truth, sigma = 1.2, 0.3
    x = normals(50_000, 1) + truth * torch.sign(normals(50_000, 1, seed=1))
    eps = normals(50_000, 1, seed=2)
    m = f64(0.6).requires_grad_()

    def score_of_bells(x, variance=1.0):
        return (m * torch.tanh(m * x / variance) - x) / variance

    loss = {
        "score matching": lambda: ebm.score_matching_loss(score_of_bells, x).mean(),
        "denoising": lambda: ebm.denoising_score_matching_loss(
            functools.partial(score_of_bells, variance=1 + sigma**2), x, eps, sigma=sigma
        ).mean(),
    }[way]
    (found,) = least(loss, m)
    assert found.item() == pytest.approx(truth, abs=0.05)


def test_losses_of_images_sum_over_pixels():
    """A score of images that is −x: ½‖x‖² − 16 exactly, sliced or not; and ½‖x + (σ − 1/σ) ε‖²."""
    x, eps = normals(3, 1, 4, 4), normals(3, 1, 4, 4, seed=1)

    def s(x):
        return -x

    half = 0.5 * x.flatten(1).square().sum(1)
    torch.testing.assert_close(ebm.score_matching_loss(s, x), half - 16)
    torch.testing.assert_close(
        ebm.sliced_score_matching_loss(s, x, rademacher(x.shape, generator(0), dtype=F64)), half - 16
    )
    got = ebm.denoising_score_matching_loss(s, x, eps, sigma=0.5)
    torch.testing.assert_close(got, 0.5 * (x - 1.5 * eps).flatten(1).square().sum(1))


def test_an_energy_of_images_learns_by_contrast():
    """The whole of it: buffer, chains, loss, one optimizer step lowers the data's energy against the samples'."""
    with seeded(generator(0)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0))
    source = standard_normal(16)
    buffer = ebm.ReplayBuffer(source, 32, generator=generator(1))
    g = generator(2)
    kernel = functools.partial(langevin, functools.partial(ebm.score, model), h=0.01, steps=5, generator=g)
    x = source.sample(16, generator=g) + 1
    samples = buffer.advance(kernel, 16, generator=g)
    before = ebm.contrastive_divergence_loss(model, x, samples)
    before.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert ebm.contrastive_divergence_loss(model, x, samples) < before


# ---------------------------------------------------------------------- bad input


def test_errors_name_the_operation_the_value_and_the_rule():
    E, y = table(4, 3)
    x, nan, g = normals(4, 2), f64([[math.nan, 1.0]]), generator(0)
    grid = normals(5, 2)
    answers = Answers.of_labels(E, y)
    alone = Answers.of_labels(E[:, :1], torch.zeros(4, dtype=torch.long))
    source = standard_normal(2, dtype=F64)
    buffer = ebm.ReplayBuffer(source, 4, generator=g)
    bowl = bowl_at(0.0)
    cases = [
        (
            lambda: ebm.free_energy(nan, beta=1.0, measure=1.0),
            r"free_energy: received energies that are NaN or infinite",
        ),
        (lambda: ebm.free_energy(E, beta=0.0, measure=1.0), r"free_energy: received beta = 0\.0; rule: a positive"),
        (lambda: ebm.free_energy(E, beta=1.0, measure=0.0), r"free_energy: received a measure"),
        (
            lambda: ebm.free_energy(E, beta=1.0, measure=f64([1.0, 2.0])),
            r"measure of shape \(2,\) for energies \(4, 3\)",
        ),
        (lambda: ebm.free_energy(E, beta=1.0, measure=f64([1.0, -1.0, 1.0])), r"weights ≥ 0"),
        (lambda: ebm.gibbs(E, beta=math.inf, measure=1.0), r"gibbs: received beta = inf; rule: a positive number$"),
        (lambda: ebm.argmin_over(E, y), r"argmin_over: received energies \(4, 3\) and \(4,\) values"),
        (lambda: ebm.argmin_over(E), r"argmin_over"),
        (lambda: ebm.descend(bowl, x, rate=0.0, steps=3), r"descend: received rate = 0\.0, steps = 3; rule: rate > 0"),
        (lambda: ebm.descend(bowl, x, rate=0.1, steps=-1), r"descend: .* steps whole"),
        (
            lambda: ebm.descend(lambda y: y.pow(4).sum(1), 9 * x, rate=1.0, steps=50),
            r"descend: .* at step \d+; rule: rate",
        ),
        (lambda: ebm.score(lambda x: x, x), r"score: received an energy that returns \(4, 2\) for points \(4, 2\)"),
        (
            lambda: ebm.RegressionEnergy(lambda x: x[:, :1])(x, x),
            r"RegressionEnergy: received \(4, 1\) against \(4, 2\)",
        ),
        (lambda: ebm.BinaryEnergy(lambda x: x[:, 0])(x, f64([0.0, 1, 1, 1])), r"BinaryEnergy: .* each −1 or 1"),
        (lambda: ebm.BinaryEnergy(lambda x: x).table(x), r"BinaryEnergy: received g\(x\) of shape \(4, 2\)"),
        (lambda: ebm.codebook_energies(x, normals(3, 5)), r"codebook_energies: received y \(4, 2\) and codes \(3, 5\)"),
        (lambda: Answers.of_labels(nan, torch.tensor([0])), r"Answers: received energies that are NaN or infinite"),
        (lambda: Answers.of_labels(E, y + 3), r"Answers\.of_labels: received labels outside 0 … 2"),
        (
            lambda: Answers.on_grid(lambda x, y: y, x, x, grid, radius=0.1, measure=1.0),
            r"Answers\.on_grid: received an energy that returns \(20, 2\) for 20 pairs",
        ),
        (
            lambda: Answers.on_grid(lambda x, y: y[:, 0], x, x, grid, radius=-1.0, measure=1.0),
            r"Answers\.on_grid: received radius = -1\.0; rule: 0 or more",
        ),
        (
            lambda: Answers.on_grid(lambda x, y: y[:, 0], x, x, grid, radius=1.0, measure=0.0),
            r"Answers: received measure = 0\.0; rule: positive",
        ),
        (lambda: ebm.hinge_loss(alone), r"an example without an incorrect answer; rule: at least two labels"),
        (lambda: ebm.hinge_loss(answers, margin=-1.0), r"hinge_loss: received margin = -1\.0; rule: 0 or more"),
        (lambda: ebm.lvq2_loss(answers, ceiling=0.0), r"lvq2_loss: received ceiling = 0\.0; rule: positive"),
        (lambda: ebm.square_exponential_loss(answers, weight=-1.0), r"square_exponential_loss: received weight"),
        (lambda: ebm.nll_loss(answers, beta=-1.0), r"beta = -1\.0"),
        (lambda: ebm.mee_loss(answers, beta=math.inf), r"mee_loss: received beta = inf"),
        (
            lambda: ebm.contrastive_divergence_loss(bowl, x, normals(4, 3)),
            r"contrastive_divergence_loss: received data",
        ),
        (lambda: ebm.contrastive_divergence_loss(bowl, x, x, decay=-0.1), r"received decay = -0\.1"),
        (lambda: ebm.ReplayBuffer(source, 0, generator=g), r"ReplayBuffer: received size = 0"),
        (lambda: ebm.ReplayBuffer(source, 5, fresh=1.5, generator=g), r"fresh = 1\.5"),
        (lambda: buffer.advance(lambda x: x, 5, generator=g), r"ReplayBuffer\.advance: received n = 5 of 4 chains"),
        (lambda: buffer.advance(lambda x: x[:1], 2, generator=g), r"a kernel that moves \(2, 2\) to \(1, 2\)"),
        (
            lambda: ebm.denoising_score_matching_loss(lambda x: x, x, x, sigma=0.0),
            r"denoising_score_matching_loss: .* sigma = 0\.0; rule: equal shapes, sigma positive",
        ),
        (lambda: ebm.sliced_score_matching_loss(lambda x: x, x, x[:, :1]), r"received noise of shape \(4, 1\)"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_stay_on_the_device_and_in_the_dtype_of_the_energies(device, dtype):
    def results(device):
        E, y = table(8, 4)
        E, y, x = E.to(device, dtype), y.to(device), normals(6, 2).to(device, dtype)
        grid = normals(5, 2, seed=1).to(device, dtype)
        answers = [
            Answers.of_labels(E, y),
            Answers.on_grid(lambda x, y: (x * y).sum(1), x, x, grid, radius=0.1, measure=0.2),
        ]
        source = standard_normal(2, dtype=dtype)
        buffer = ebm.ReplayBuffer(source, 6, fresh=0.5, generator=generator(0))
        buffer.x = buffer.x.to(device)
        kernel = functools.partial(
            langevin, functools.partial(ebm.score, bowl_at(0.0)), h=0.1, steps=2, generator=generator(1)
        )
        return [
            ebm.free_energy(E, beta=2.0, measure=0.1),
            ebm.gibbs(E, measure=0.1),
            *ebm.argmin_over(E, torch.arange(4, device=device)),
            ebm.descend(bowl_at(1.0), x, rate=0.1, steps=3),
            *(loss(a) for loss in ebm.LOSSES.values() for a in answers),
            buffer.advance(kernel, 4, generator=generator(2)),
            ebm.score_matching_loss(lambda x: -x, x),
            ebm.denoising_score_matching_loss(lambda x: -x, x, x, sigma=0.3),
        ]

    for there, here in zip(results(device), results("cpu"), strict=True):
        assert there.device.type == device
        assert there.dtype == (dtype if there.is_floating_point() else torch.int64)
        torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-5)
