"""Normalizing flows: each equation of chapter 09 against a fact that does not use it, each mistake by a number."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from companion.data import GaussianMixture, draws, standard_normal, two_moons
from companion.device import generator, rand, randn, seeded
from companion.methods import normalizing_flows as nf
from companion.numerics.autodiff import jacobian
from companion.training import adam, fit

F64 = torch.float64
AXIS = torch.linspace(-9, 9, 241, dtype=F64)
GRID, CELL = torch.cartesian_prod(AXIS, AXIS), 0.075**2


def f64(value):
    return torch.tensor(value, dtype=F64)


def points(n=50, dim=2, seed=0, scale=1.0):
    return scale * randn(n, dim, generator=generator(seed), dtype=F64)


def scrambled(module, seed=1, scale=0.3):
    return nf.scramble(module.double(), generator=generator(seed), scale=scale)


def act_norm(dim):
    layer = nf.ActNorm(dim).double()
    layer.start(points(100, dim, seed=5, scale=1.5) + 0.3)
    return layer


def halves(dim):
    return torch.arange(dim) < dim // 2


LAYERS = {
    "affine coupling": lambda d: nf.AffineCoupling(nf.alternating_mask(d), hidden=(8,), activation=nn.Tanh),
    "affine coupling, other half": lambda d: nf.AffineCoupling(~halves(d), hidden=(8,), activation=nn.Tanh),
    "spline coupling": lambda d: nf.SplineCoupling(
        ~nf.alternating_mask(d), bins=5, bound=3.0, hidden=(6,), activation=nn.Tanh
    ),
    "masked autoregressive": lambda d: nf.MaskedAutoregressive(d, hidden=(6, 6), activation=nn.Tanh),
    "masked autoregressive, backwards, splines": lambda d: nf.MaskedAutoregressive(
        d, univariate=nf.Spline(4), hidden=(6,), activation=nn.Tanh, order=range(d - 1, -1, -1)
    ),
    "two groups": lambda d: nf.MaskedAutoregressive(d, hidden=(8, 8), activation=nn.Tanh, groups=2),
    "elementwise": lambda d: nf.Elementwise(d, nf.Spline(5, bound=2.0)),
    "ActNorm": act_norm,
    "permutation": lambda d: nf.Permutation([*range(1, d), 0]),
    "planar": nf.Planar,
    "tanh": lambda d: nf.TanhLayer(),
    "inverted": lambda d: nf.Inverted(nf.AffineCoupling(nf.alternating_mask(d), hidden=(8,), activation=nn.Tanh)),
}
EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)


def layer_of(name, dim=4):
    with seeded(generator(2)):
        layer = LAYERS[name](dim)
    return scrambled(layer, scale=1.0 if name == "planar" else 0.3)


def autograd_log_det(transform, x):
    """log |det| of the autograd Jacobian, by LU."""
    return torch.linalg.slogdet(jacobian(lambda point: transform(point[None])[0][0], x)).logabsdet


# ---------------------------------------------------------------------- every layer


@pytest.mark.verifies("eq-affine-coupling", "eq-autoregressive-flow", "eq-planar-log-det")
@EVERY_LAYER
def test_log_determinants_are_those_of_the_autograd_jacobian(name):
    """The full Jacobian by automatic differentiation, its determinant by LU, both ways."""
    layer, z = layer_of(name), points(dim=4)
    with torch.no_grad():
        x, log_det = layer(z)
        _, back = layer.inverse(x)
    torch.testing.assert_close(log_det, autograd_log_det(layer, z), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(back, autograd_log_det(layer.inverse, x), atol=1e-8, rtol=1e-8)


@EVERY_LAYER
def test_layers_invert_to_machine_precision(name):
    """There and back in float64, both ways."""
    layer, z = layer_of(name), points(dim=4)
    with torch.no_grad():
        x, log_det = layer(z)
        again, back = layer.inverse(x)
        torch.testing.assert_close(again, z, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(back, -log_det, atol=1e-11, rtol=1e-11)
        torch.testing.assert_close(layer(again)[0], x, atol=1e-12, rtol=1e-12)
    assert (x - z).abs().max() > 0.05


@EVERY_LAYER
def test_both_directions_can_be_trained(name):
    """Central differences (gradcheck) in the points and in every weight; gradcheck moves the weights in place."""
    layer = layer_of(name, dim=2)
    weights = [p for p in layer.parameters() if p.requires_grad]
    z = 0.5 * points(2)
    for way, start in ((layer, z), (layer.inverse, layer(z)[0].detach())):
        start = start.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda point, *_, way=way: way(point), (start, *weights), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    "name", ["affine coupling", "spline coupling", "masked autoregressive", "elementwise", "planar"]
)
def test_new_layers_are_the_identity(name):
    """x itself."""
    with seeded(generator(2)):
        layer = LAYERS[name](4).double()
    x, log_det = layer(points(dim=4))
    torch.testing.assert_close(x, points(dim=4), atol=1e-13, rtol=0)
    assert log_det.abs().max() < 1e-12


def test_layers_follow_dtype_and_survive_saving():
    """float32 in, float32 out; a loaded copy gives the same numbers."""
    flow = nf.spline_flow(2, between=nf.ActNorm)
    x = randn(20, 2, generator=generator(0))
    flow.inverse(x)
    nf.scramble(flow, generator=generator(1))
    other = nf.spline_flow(2, between=nf.ActNorm)
    other.load_state_dict(flow.state_dict())
    assert flow.log_prob(x).dtype == torch.float32
    assert torch.equal(other.eval().log_prob(x), flow.log_prob(x))
    assert flow.double().sample(3, generator=generator(2)).dtype == F64


# ---------------------------------------------------------------------- single layers


@pytest.mark.verifies("eq-affine-coupling")
def test_an_affine_coupling_keeps_one_half_and_scales_and_shifts_the_other():
    """A network that is one matrix, by hand: z_b = x_b e^s + t, back x_b = (z_b − t) e^{−s}."""
    layer = nf.AffineCoupling(torch.tensor([False, True]), hidden=()).double()
    with torch.no_grad():
        layer.network[0].weight.copy_(f64([[0.5], [0.7]]))
    x = points(20)
    s = 0.7 * x[:, 1] / (1 + (0.7 * x[:, 1]).abs() / math.log(1000))
    z, log_det = layer.inverse(x)
    torch.testing.assert_close(z, torch.stack([x[:, 0] * s.exp() + 0.5 * x[:, 1], x[:, 1]], dim=1))
    torch.testing.assert_close(log_det, s)
    torch.testing.assert_close(layer(x)[0][:, 0], (x[:, 0] - 0.5 * x[:, 1]) * (-s).exp())


@pytest.mark.verifies("eq-autoregressive-flow")
@pytest.mark.parametrize("univariate", [nf.Affine(), nf.Spline(4)])
def test_the_jacobian_of_an_autoregressive_layer_is_triangular_in_its_order(univariate):
    """Automatic differentiation: zeros above the diagonal, positive on it, and everything below is used."""
    order = [2, 0, 3, 1]
    with seeded(generator(3)):
        layer = nf.MaskedAutoregressive(4, univariate=univariate, hidden=(16, 16), activation=nn.Tanh, order=order)
    scrambled(layer)
    x = points(dim=4)
    matrix = jacobian(lambda point: layer.inverse(point[None])[0][0], x)[:, order][:, :, order]
    assert (matrix.triu(1) == 0).all()
    assert (matrix.tril(-1).abs().amax(0)[torch.ones(4, 4).tril(-1).bool()] > 1e-4).all()
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    assert (diagonal > 0).all()
    torch.testing.assert_close(layer.inverse(x)[1], diagonal.log().sum(1))


@pytest.mark.verifies("eq-autoregressive-flow")
def test_an_affine_autoregressive_layer_is_a_chain_of_gaussians():
    """log N(x_i; −t e^{−s}, e^{−2s}) from torch.distributions, with t and s of the coordinates before."""
    with seeded(generator(4)):
        flow = nf.masked_autoregressive_flow(3, transforms=1, hidden=(12,)).double()
    scrambled(flow)
    x, layer = points(dim=3), flow.transforms[0]
    t, a = layer.network(x).unflatten(1, (3, 2)).unbind(-1)
    s = a / (1 + a.abs() / math.log(1000))
    conditional = torch.distributions.Normal(-t * (-s).exp(), (-s).exp()).log_prob(x)
    torch.testing.assert_close(flow.log_prob(x), conditional.sum(1))


@pytest.mark.verifies("eq-planar-log-det")
def test_a_planar_layer_is_invertible_even_where_u_points_against_w():
    """Weights that break wᵀu > −1 before the correction; the determinant stays positive (autograd, LU)."""
    layer = nf.Planar(3).double()
    with torch.no_grad():
        layer.w.copy_(f64([1.0, -2.0, 0.5]))
        layer.u.copy_(-2 * layer.w)
        layer.b.fill_(0.3)
    z = points(dim=3, scale=2.0)
    sign, log_det = torch.linalg.slogdet(jacobian(lambda point: layer(point[None])[0][0], z))
    assert (sign > 0).all()
    torch.testing.assert_close(layer(z)[1], log_det, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(layer.inverse(layer(z)[0])[0], z, atol=1e-9, rtol=0)


def test_act_norm_starts_with_mean_zero_and_standard_deviation_one():
    """Moments of the first batch after the layer; the second batch changes nothing; use before the start is refused."""
    x = 3 * points(200) + f64([1.0, -5.0])
    layer = nf.ActNorm(2).double()
    with pytest.raises(ValueError, match=r"ActNorm: received points before its start"):
        layer(x)
    with pytest.raises(ValueError, match=r"before its start"):
        layer.eval().inverse(x)
    z, log_det = layer.train().inverse(x)
    assert z.mean(0).abs().max() < 1e-12
    torch.testing.assert_close(z.std(0, correction=0), f64([1.0, 1.0]))
    torch.testing.assert_close(log_det, -x.std(0, correction=0).log().sum().expand(200))
    mu = layer.mu.clone()
    layer.inverse(x + 7)
    assert torch.equal(layer.mu, mu)
    for bad in (x[:1], x * f64([1.0, 0.0])):
        with pytest.raises(ValueError, match=r"ActNorm: received \d+ points.*every coordinate varies"):
            nf.ActNorm(2).double().inverse(bad)


def test_a_permutation_moves_columns_and_keeps_volume():
    """Columns by hand."""
    layer, z = nf.Permutation([2, 0, 1]), points(dim=3)
    x, log_det = layer(z)
    assert torch.equal(x, z[:, [2, 0, 1]])
    assert torch.equal(layer.inverse(x)[0], z)
    assert log_det.abs().max() == 0


def test_the_checkerboard_alternates_and_two_couplings_reach_every_pixel():
    """Neighbors differ; on 3 × 3 pixels one coupling keeps five and changes four, its opposite the five."""
    mask = nf.checkerboard_mask(3, 3)
    assert mask.sum() == 5
    assert (mask[1:] != mask[:-1]).all()
    assert (mask[:, 1:] != mask[:, :-1]).all()
    with seeded(generator(6)):
        flow = nf.real_nvp(9, transforms=2, hidden=(16,), mask=mask.flatten()).double()
    scrambled(flow)
    stops = flow.through(points(dim=9))
    moved = (stops[1:] != stops[:-1]).any(1)
    assert torch.equal(moved, torch.stack([mask.flatten(), ~mask.flatten()]))


# ---------------------------------------------------------------------- whole flows


FLOWS = {
    "RealNVP": lambda: nf.real_nvp(2, transforms=4, hidden=(16,)),
    "spline couplings": lambda: nf.spline_flow(2, hidden=(16,)),
    "masked autoregressive": lambda: nf.masked_autoregressive_flow(2, hidden=(16,)),
    "masked autoregressive splines": lambda: nf.masked_autoregressive_flow(2, hidden=(16,), univariate=nf.Spline()),
    "planar": lambda: nf.Flow(nf.StandardNormal(2), [nf.Planar(2), nf.Permutation([1, 0]), nf.Planar(2)]),
    "on another base": lambda: nf.Flow(
        GaussianMixture(f64([[-1.0, 0.0], [1.0, 0.5]]), 0.3 * torch.eye(2, dtype=F64).expand(2, 2, 2)),
        [nf.AffineCoupling(nf.alternating_mask(2), hidden=(8,)), act_norm(2)],
    ),
}


def flow_of(name):
    with seeded(generator(7)):
        flow = FLOWS[name]()
    return scrambled(flow, scale=0.15)


@pytest.mark.verifies("eq-flow-nll")
@pytest.mark.parametrize("name", FLOWS)
@torch.no_grad()
def test_densities_integrate_to_one(name):
    """Quadrature on a grid of 58,081 points."""
    assert (flow_of(name).log_prob(GRID).exp().sum() * CELL).item() == pytest.approx(1, abs=2e-3)


@pytest.mark.verifies("eq-flow-nll")
@pytest.mark.parametrize("name", FLOWS)
@torch.no_grad()
def test_samples_follow_the_density(name):
    """20,000 samples in 16 boxes against the quadrature of each box: 4.5 standard errors, false alarm below 2e-4."""
    flow = flow_of(name)
    x = flow.sample(20_000, generator=generator(8))
    edges = f64([-1.0, 0.0, 1.0])

    def box(x):
        return 4 * torch.bucketize(x[:, 0].contiguous(), edges) + torch.bucketize(x[:, 1].contiguous(), edges)

    half = GRID + 1e-9  # grid points on an edge count half on either side
    p = flow.log_prob(GRID).exp() * CELL / 2
    share = torch.zeros(16, dtype=F64).index_add_(0, box(half), p).index_add_(0, box(GRID - 1e-9), p)
    found = torch.bincount(box(x), minlength=16) / 20_000
    assert ((found - share).abs() < 4.5 * (share * (1 - share) / 20_000).sqrt() + 2e-3).all()


def small_gaussian_flow():
    """x = μ + σ z: the push-forward is a Gaussian with a diagonal covariance, known to torch.distributions."""
    layer = act_norm(2)
    with torch.no_grad():
        layer.mu.copy_(f64([0.5, -0.2]))
        layer.log_sigma.copy_(f64([0.4, -0.3]))
    flow = nf.Flow(nf.StandardNormal(2).double(), [layer])
    return flow, MultivariateNormal(layer.mu.detach(), torch.diag((2 * layer.log_sigma.detach()).exp()))


GAUSSIAN = MultivariateNormal(f64([0.0, 0.3]), f64([[1.0, 0.6], [0.6, 0.8]]))


class Sampled:
    """A distribution of torch as a density of the course."""

    def __init__(self, law):
        self.law, self.log_prob = law, law.log_prob

    def sample(self, n, *, generator):
        return self.law.loc + randn(n, 2, generator=generator, dtype=F64) @ self.law.scale_tril.T


@pytest.mark.verifies("eq-forward-kl", "eq-flow-nll")
@torch.no_grad()
def test_the_forward_divergence_is_the_closed_form_and_the_loss_differs_by_the_entropy():
    """torch's kl_divergence and entropy of Gaussians; 100,000 draws, five standard errors (false alarm 6e-7)."""
    flow, law = small_gaussian_flow()
    p = Sampled(GAUSSIAN)
    x = p.sample(100_000, generator=generator(9))
    error = 5 * (p.log_prob(x) - flow.log_prob(x)).std() / math.sqrt(len(x))
    exact = kl_divergence(GAUSSIAN, law)
    assert abs(nf.forward_kl(p, flow, x) - exact) < error
    spread = 5 * flow.log_prob(x).std() / math.sqrt(len(x))
    assert abs(nf.negative_log_likelihood(flow, x) - GAUSSIAN.entropy() - exact) < spread


def test_training_lowers_the_loss_toward_the_entropy():
    """Two moons, 150 steps: the held-out loss ends within 0.35 nats of the entropy, which nothing beats."""
    data, source = two_moons(0.1), generator(10)
    with seeded(source):
        flow = nf.spline_flow(2, bound=4.0, between=nf.ActNorm)
    batches = draws(data, size=256, generator=source)
    loss = lambda model, batch: nf.negative_log_likelihood(model, batch[0])  # noqa: E731
    for _ in fit(flow, loss, batches, steps=150, optimizer=adam(flow, 5e-3)):
        pass
    x = data.sample(4000, generator=generator(11))
    gap = nf.forward_kl(data, flow.eval(), x).item()
    assert 0 < gap < 0.35


# ---------------------------------------------------------------------- mistakes


def bells(shift=0.0):
    """Two densities on the line: the second one shifted by `shift`."""
    x = torch.linspace(-12, 12, 24001, dtype=F64)
    p = torch.distributions.Normal(f64(0.0), 1.0).log_prob(x)
    q = torch.distributions.Normal(f64(shift), 1.5).log_prob(x)
    return p, q, 0.001


@pytest.mark.refutes("E13")
@torch.no_grad()
def test_a_quotient_of_logarithms_is_no_divergence():
    """Quadrature: between equal densities log p / log q averages to 1 and log(p/q) to 0. And the average over p is
    KL(p ‖ T#q), torch's closed form, which is not KL(T#q ‖ p)."""
    p, q, width = bells(0.8)
    assert ((p.exp() * p / p).sum() * width).item() == pytest.approx(1, abs=1e-6)
    assert ((p.exp() * (p - p)).sum() * width).item() == 0
    assert ((p.exp() * p / q).sum() * width).item() != pytest.approx((p.exp() * (p - q)).sum().item() * width, abs=0.3)
    flow, law = small_gaussian_flow()
    draws_of_p = Sampled(GAUSSIAN).sample(100_000, generator=generator(12))
    got = nf.forward_kl(GAUSSIAN_DENSITY, flow, draws_of_p).item()
    assert got == pytest.approx(kl_divergence(GAUSSIAN, law).item(), abs=0.02)
    assert abs(got - kl_divergence(law, GAUSSIAN).item()) > 0.1


GAUSSIAN_DENSITY = Sampled(GAUSSIAN)


@pytest.mark.refutes("E14")
def test_weighing_samples_by_their_density_fits_another_density():
    """Trained on N(0, 1): the plain mean finds σ = 1; weights p(x_i) find that of p², which is 1/√2."""
    x = randn(20_000, 1, generator=generator(13), dtype=F64)
    p = torch.distributions.Normal(f64(0.0), 1.0).log_prob(x[:, 0]).exp()

    def fitted(weights):
        layer = nf.ActNorm(1).double()
        layer.start(x * 1.3)
        flow = nf.Flow(nf.StandardNormal(1).double(), [layer])
        optimizer = torch.optim.LBFGS(flow.parameters(), max_iter=60, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = -(weights * flow.log_prob(x)).sum() / weights.sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return layer.log_sigma.exp().item()

    assert fitted(torch.ones_like(p)) == pytest.approx(1, abs=0.02)
    assert fitted(p) == pytest.approx(math.sqrt(0.5), abs=0.02)


@pytest.mark.refutes("E15")
@torch.no_grad()
def test_the_logarithm_of_the_map_is_no_loss_and_the_base_density_alone_is_none_either():
    """log T(x) is not a number for half of the points. Without the log-determinant the 'density' has no integral of 1
    and a larger σ always looks better; with it the best σ is that of the data."""
    flow, _ = small_gaussian_flow()
    x = points(2000, seed=14)
    assert flow(x)[0].log().isnan().float().mean() > 0.2
    assert flow.inverse(x)[0].log().isnan().float().mean() > 0.2
    sigmas = torch.linspace(-1, 3, 81, dtype=F64)
    right, wrong = [], []
    for log_sigma in sigmas:
        flow.transforms[0].log_sigma.fill_(log_sigma)
        flow.transforms[0].mu.zero_()
        right.append(nf.negative_log_likelihood(flow, x).item())
        wrong.append(-flow.base.log_prob(flow.inverse(x)[0]).mean().item())
    assert all(later < earlier for earlier, later in itertools.pairwise(wrong))
    best = sigmas[torch.tensor(right).argmin()].exp()
    assert best.item() == pytest.approx(1, abs=0.06)
    flow.transforms[0].log_sigma.fill_(0.5)
    z, log_det = flow.inverse(GRID)
    without = (flow.base.log_prob(z).exp().sum() * CELL).item()
    assert without == pytest.approx(math.exp(1.0), abs=1e-3)
    assert ((flow.base.log_prob(z) + log_det).exp().sum() * CELL).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.refutes("E16")
@torch.no_grad()
def test_more_layers_never_lose_anything():
    """A flow with further layers at the identity is the same density. One coupling leaves the law of what it keeps; two
    change both (autograd Jacobians). Affine maps are closed: ten of them have the constant Jacobian of one."""
    flow = flow_of("RealNVP")
    with seeded(generator(15)):
        more = [nf.AffineCoupling(nf.alternating_mask(2)).double(), nf.SplineCoupling(nf.alternating_mask(2)).double()]
    deeper = nf.Flow(flow.base, [*flow.transforms, *more])
    torch.testing.assert_close(deeper.log_prob(points()), flow.log_prob(points()), atol=1e-12, rtol=0)

    def entries(*layers):
        stack = nf.Flow(nf.StandardNormal(2).double(), layers)
        return jacobian(lambda z: stack(z[None])[0][0], points())

    first, second = (layer_of(name, dim=2) for name in ("affine coupling", "affine coupling, other half"))
    assert (entries(first)[:, 0] == f64([1.0, 0.0])).all()
    assert (entries(first, second).std(0) > 1e-3).all()
    affine = [layer for k in range(5) for layer in (act_norm(2), nf.Permutation([1, 0]))]
    assert entries(*affine).std(0).max() < 1e-12


@pytest.mark.refutes("E38")
@torch.no_grad()
def test_tanh_is_a_layer_onto_the_interval_and_not_beyond():
    """Last from base to data: mass 1 on (−1, 1), density zero outside. In the other direction a standard normal keeps
    only P(|z| < 1) = erf(1/√2) = 0.683 of its mass, and its draws outside are refused."""
    fine = (torch.arange(40_000, dtype=F64)[:, None] + 0.5) / 20_000 - 1
    flow = nf.Flow(nf.StandardNormal(1).double(), [nf.TanhLayer()])
    assert (flow.log_prob(fine).exp().mean() * 2).item() == pytest.approx(1, abs=1e-3)
    assert (flow.log_prob(f64([[-1.0], [1.0], [1.7], [-30.0]])) == -math.inf).all()
    assert flow.sample(1000, generator=generator(16)).abs().max() < 1
    wide = torch.linspace(-20, 20, 40_001, dtype=F64)[:, None]
    other = nf.Flow(nf.StandardNormal(1).double(), [nf.Inverted(nf.TanhLayer())])
    mass = (other.log_prob(wide).exp().sum() * 0.001).item()
    assert mass == pytest.approx(math.erf(math.sqrt(0.5)), abs=1e-4)
    with pytest.raises(ValueError, match=r"Flow.sample: received \d+ of 1000 base draws outside the domain"):
        other.sample(1000, generator=generator(17))


@torch.no_grad()
def test_tanh_in_the_middle_and_points_outside_in_some_coordinate():
    """−∞ for a row with one coordinate outside, finite for the others, whatever lies below; no NaN in gradients."""
    flow = nf.Flow(nf.StandardNormal(2).double(), [layer_of("affine coupling", 2), nf.TanhLayer(), act_norm(2)])
    layer = flow.transforms[2]
    x = layer(f64([[0.2, 0.3], [0.2, 1.3], [-0.99, 0.0]]))[0]
    assert flow.log_prob(x).isfinite().tolist() == [True, False, True]
    with torch.enable_grad():
        x = x.requires_grad_()
        inside = flow.log_prob(x)
        (gradient,) = torch.autograd.grad(inside[[0, 2]].sum(), x)
    assert gradient.isfinite().all()


# ---------------------------------------------------------------------- errors


MASK = torch.tensor([True, False])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nf.AffineCoupling(torch.ones(3).bool()), r"AffineCoupling: .*keeps 3 of 3.*at least one changes"),
        (lambda: nf.SplineCoupling(torch.zeros(3).bool()), r"SplineCoupling: .*keeps 0 of 3"),
        (lambda: nf.AffineCoupling(nf.checkerboard_mask(2, 2)), r"mask of shape \(2, 2\).*rule: \(dim,\)"),
        (lambda: nf.SplineCoupling(MASK, bins=1), r"bins = 1; rule: a whole number, 2 or more"),
        (lambda: nf.SplineCoupling(MASK, bound=-1.0), r"bound = -1.0"),
        (lambda: nf.AffineCoupling(MASK, hidden=(0,)), r"hidden = \(0,\); rule: whole numbers, 1 or more"),
        (lambda: nf.AffineCoupling(MASK)(points(dim=3)), r"AffineCoupling: received points of shape \(50, 3\)"),
        (lambda: nf.real_nvp(1), r"real_nvp: received dim = 1; rule: a whole number, 2 or more"),
        (lambda: nf.real_nvp(4, mask=MASK), r"real_nvp: received a mask of 2 for dim = 4"),
        (lambda: nf.real_nvp(4, transforms=0), r"transforms = 0; rule: a whole number, 1 or more"),
        (lambda: nf.masked_autoregressive_flow(1), r"dim = 1; rule"),
        (lambda: nf.MaskedAutoregressive(3, order=[0, 1, 1]), r"order \[0, 1, 1\]; rule: each of 0 … 2 once"),
        (lambda: nf.MaskedAutoregressive(3, groups=4), r"groups = 4; rule: a whole number from 2 to 3"),
        (lambda: nf.Permutation([0, 2]), r"Permutation: received the order \[0, 2\]"),
        (lambda: nf.checkerboard_mask(1, 1), r"checkerboard_mask: received 1 × 1"),
        (lambda: nf.Affine(least=0.0), r"Affine: received least = 0.0"),
        (lambda: nf.Flow(nf.StandardNormal(2), []), r"Flow: received no layers"),
        (lambda: nf.real_nvp(2).log_prob(torch.full((3, 2), math.nan)), r"Flow.log_prob: .*NaN or infinity"),
    ],
)
def test_errors_name_the_operation_and_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_base_is_the_standard_normal():
    """The density of the toy data."""
    x = rand(20, 3, generator=generator(18), dtype=F64)
    torch.testing.assert_close(nf.StandardNormal(3).log_prob(x), standard_normal(3, dtype=F64).log_prob(x))
