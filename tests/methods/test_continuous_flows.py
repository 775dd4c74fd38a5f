"""Continuous flows: densities of fields with a known answer, estimated divergence, three ways to gradients."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from companion.data import draws, eight_gaussians, standard_normal, two_moons
from companion.device import generator, randn, seeded
from companion.methods import normalizing_flows as nf
from companion.methods.continuous_flows import ContinuousFlow, hutchinson
from companion.nn import VelocityMLP
from companion.numerics.adjoint import integrate_adjoint, integrate_checkpointed, through_solver
from companion.numerics.autodiff import jacobian
from companion.numerics.ode import DormandPrince, RungeKutta4, integrate
from companion.numerics.paths import CondOT
from companion.training import adam, fit

F64 = torch.float64
A = torch.tensor([[0.4, -1.2], [0.9, 0.1]], dtype=F64)
BASE = standard_normal(2, dtype=F64)
X = randn(40, 2, generator=generator(0), dtype=F64)
RING = eight_gaussians(scale=2.5, std=0.3, dtype=F64)


def linear(t, x):
    return x @ A.T


def ring_field(t, x):
    """Carries the standard normal to eight Gaussians, in closed form."""
    return RING.marginal_velocity(CondOT(), t, x)


def network(dtype=F64, width=16):
    with seeded(generator(1)):
        return VelocityMLP(2, width=width, depth=2, activation=nn.Tanh).to(dtype)


def gaussian(t=1.0):
    """The law of e^{tA} z."""
    grow = torch.linalg.matrix_exp(t * A)
    return MultivariateNormal(torch.zeros(2, dtype=F64), grow @ grow.T)


@pytest.mark.verifies("eq-instantaneous-change")
def test_a_linear_field_carries_a_gaussian_to_a_gaussian():
    """The matrix exponential's Gaussian, by torch.distributions; log |det e^A| = tr A."""
    flow = ContinuousFlow(linear, BASE, RungeKutta4(60))
    torch.testing.assert_close(flow.log_prob(X), gaussian().log_prob(X), atol=1e-7, rtol=0)
    x, log_det = flow(X)
    torch.testing.assert_close(x, X @ torch.linalg.matrix_exp(A).T, atol=1e-7, rtol=0)
    torch.testing.assert_close(log_det, A.trace().expand(40), atol=1e-12, rtol=0)


@pytest.mark.verifies("eq-instantaneous-change")
def test_the_log_density_along_a_trajectory_falls_at_the_rate_of_the_divergence():
    """The eight Gaussians at each time know their own log-density: its change in time against −div v by autograd."""
    t, h = 0.6, 1e-4
    x = RING.at_time(CondOT(), torch.tensor(t, dtype=F64)).sample(30, generator=generator(2))
    path = integrate(ring_field, x, RungeKutta4(4), t0=t, t1=t + h).final
    back = integrate(ring_field, x, RungeKutta4(4), t0=t, t1=t - h).final
    law = [RING.at_time(CondOT(), torch.tensor(s, dtype=F64)) for s in (t - h, t + h)]
    rate = (law[1].log_prob(path) - law[0].log_prob(back)) / (2 * h)
    at = torch.tensor(t, dtype=F64)
    trace = jacobian(lambda p: ring_field(at, p[None])[0], x).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(rate, -trace, atol=1e-4, rtol=1e-5)


@pytest.mark.verifies("eq-instantaneous-change")
def test_the_density_of_a_curved_flow_is_that_of_the_mixture_it_leads_to():
    """The mixture's own log_prob; up to t = 0.95, where the field is not yet stiff."""
    flow = ContinuousFlow(lambda t, x: 0.95 * ring_field(0.95 * t, x), BASE, DormandPrince(rtol=1e-8, atol=1e-8))
    law = RING.at_time(CondOT(), torch.tensor(0.95, dtype=F64))
    x = law.sample(40, generator=generator(3))
    torch.testing.assert_close(flow.log_prob(x), law.log_prob(x), atol=1e-5, rtol=0)


def test_the_log_determinant_of_a_network_flow_is_that_of_its_jacobian():
    """The autograd Jacobian of the whole solver, by LU; there and back is the identity."""
    flow = ContinuousFlow(network(), BASE, RungeKutta4(40))
    z, log_det = flow.inverse(X)
    matrix = jacobian(lambda x: integrate(flow.field, x[None], flow.solver, t0=1.0, t1=0.0).final[0], X)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(matrix).logabsdet, atol=1e-7, rtol=0)
    x, back = flow(z)
    torch.testing.assert_close(x, X, atol=1e-7, rtol=0)
    torch.testing.assert_close(back, -log_det, atol=1e-7, rtol=0)


@pytest.mark.verifies("eq-hutchinson-flow")
@torch.no_grad()
def test_one_vector_for_the_whole_trajectory_gives_the_log_density_on_average():
    """One point, 4,000 sign vectors against the exact divergence: four standard errors (false alarm 6e-5)."""
    with seeded(generator(4)):
        net = VelocityMLP(3, width=16, depth=2, activation=nn.Tanh).double()
    nf.scramble(net, generator=generator(5), scale=0.3)
    flow = ContinuousFlow(net, standard_normal(3, dtype=F64), RungeKutta4(8))
    x = torch.tensor([[0.4, -0.8, 0.3]], dtype=F64).expand(4000, 3)
    got = flow.log_prob(x, divergence=hutchinson(x, generator=generator(6)))
    exact = flow.log_prob(x[:1])[0]
    assert abs(got.mean() - exact) < 4 * got.std() / math.sqrt(4000)
    assert got.std() > 0.02
    many = flow.log_prob(x[:500], divergence=hutchinson(x[:500], generator=generator(7), samples=16))
    assert many.std() < 0.4 * got.std()


def gradient(solve, divergence=None, steps=20):
    """Of the mean log-likelihood in all weights, as one vector."""
    net = network(torch.float32)
    flow = ContinuousFlow(net, nf.StandardNormal(2), RungeKutta4(steps), solve=solve)
    x = X.float()
    options = {} if divergence is None else {"divergence": divergence(x)}
    parts = torch.autograd.grad(flow.log_prob(x, **options).mean(), list(net.parameters()))
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.verifies("eq-adjoint")
@pytest.mark.parametrize("solve", [integrate_adjoint, integrate_checkpointed])
@pytest.mark.parametrize("divergence", [None, lambda x: hutchinson(x, generator=generator(8))], ids=["exact", "signs"])
def test_gradients_of_the_likelihood_are_those_of_back_propagation(solve, divergence):
    """Back-propagation through 20 Runge–Kutta steps in float32, relative to 1e-4."""
    exact = gradient(through_solver, divergence)
    assert exact.norm() > 0.1
    assert (gradient(solve, divergence) - exact).norm() < 1e-4 * exact.norm()


@torch.no_grad()
def test_a_continuous_flow_is_a_layer_like_any_other():
    """A shift and scale behind a linear field: the Gaussian with that mean and covariance."""
    scale = nf.Elementwise(2, nf.Affine()).double()
    scale.phi.copy_(torch.tensor([[0.5, -0.3], [0.1, 0.4]]))
    flow = nf.Flow(BASE, [ContinuousFlow(linear, BASE, RungeKutta4(60)), scale])
    shift, log_slope = scale.phi[:, 0], -scale(torch.zeros(1, 2, dtype=F64))[1]
    spread = (scale(torch.eye(2, dtype=F64))[0] - scale(torch.zeros(2, 2, dtype=F64))[0]).diagonal()
    assert log_slope.item() == pytest.approx(-spread.log().sum().item())
    covariance = spread[:, None] * gaussian().covariance_matrix * spread
    law = MultivariateNormal(-shift * spread, covariance)
    torch.testing.assert_close(flow.log_prob(X), law.log_prob(X), atol=1e-6, rtol=0)


def test_samples_follow_the_density():
    """Mean and covariance of 20,000 samples of a linear flow: five standard errors; the path is e^{tA} z."""
    flow = ContinuousFlow(linear, BASE, RungeKutta4(20))
    x = flow.sample(20_000, generator=generator(9))
    covariance = gaussian().covariance_matrix
    assert (x.mean(0).abs() < 5 * (covariance.diagonal() / 20_000).sqrt()).all()
    error = ((covariance**2 + covariance.diagonal()[:, None] * covariance.diagonal()) / 20_000).sqrt()
    assert ((x.T.cov() - covariance).abs() < 5 * error).all()
    stops = flow.through(X, torch.tensor([0.0, 0.3, 1.0]))
    torch.testing.assert_close(stops[1], X @ torch.linalg.matrix_exp(0.3 * A).T, atol=1e-4, rtol=0)


@pytest.mark.refutes("E36")
@torch.no_grad()
def test_the_field_alone_gives_no_density_of_an_input():
    """Quadrature over a grid: 1 with the divergence of the way back; without it, or with that of the input, not."""
    axis = torch.linspace(-9, 9, 121, dtype=F64)
    cells, area = torch.cartesian_prod(axis, axis), 0.15**2
    flow = ContinuousFlow(lambda t, x: 0.9 * torch.tanh(x @ A.T) + 0.3 * x, BASE, RungeKutta4(20))
    z, log_det = flow.inverse(cells)
    assert (flow.log_prob(cells).exp().sum() * area).item() == pytest.approx(1, abs=1e-3)
    assert (BASE.log_prob(z).exp().sum() * area).item() > 1.5
    at_once = jacobian(lambda p: flow.field(torch.ones(()), p[None])[0], cells).diagonal(dim1=1, dim2=2).sum(1)
    assert abs(((BASE.log_prob(cells) - at_once).exp().sum() * area).item() - 1) > 0.1
    assert log_det.std() > 0.05


@pytest.mark.parametrize("solve", [through_solver, integrate_adjoint])
def test_training_as_in_ffjord_lowers_the_loss(solve):
    """Two moons, 15 steps with Hutchinson's estimate: the loss falls by a third of a nat with either gradient."""
    source, data = generator(10), two_moons(0.1)
    with seeded(source):
        net = VelocityMLP(2, width=32, depth=2, activation=nn.Tanh)
    flow = ContinuousFlow(net, nf.StandardNormal(2), RungeKutta4(3), solve=solve)
    batches = draws(data, size=128, generator=source, ahead=4)

    def loss(model, batch):
        return -model.log_prob(batch[0], divergence=hutchinson(batch[0], generator=source)).mean()

    losses = [record.loss for record in fit(flow, loss, batches, steps=15, optimizer=adam(flow, 2e-2))]
    assert sum(losses[-3:]) / 3 < losses[0] - 0.33


def test_errors_name_the_operation_and_the_rule():
    flow = ContinuousFlow(linear, BASE, RungeKutta4(2))
    with pytest.raises(ValueError, match=r"ContinuousFlow.log_prob: .*NaN or infinity; rule: \(batch, dim\), finite"):
        flow.log_prob(X * math.inf)
    with pytest.raises(ValueError, match=r"hutchinson: received samples = 0"):
        hutchinson(X, generator=generator(0), samples=0)
