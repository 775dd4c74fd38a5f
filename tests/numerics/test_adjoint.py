"""Three ways to the gradient of an end point: equal gradients, measured orders, measured memory."""

import functools
import math

import pytest
import torch
from torch import nn

from companion.device import generator, randn, seeded
from companion.nn import VelocityMLP
from companion.numerics.adjoint import integrate_adjoint, integrate_checkpointed, through_solver
from companion.numerics.along import integrate_along
from companion.numerics.autodiff import value_and_divergence
from companion.numerics.memory import peak_bytes
from companion.numerics.ode import DormandPrince, Euler, Midpoint, RungeKutta4

F64 = torch.float64
X = randn(30, 2, generator=generator(0), dtype=F64)
WAYS = (through_solver, integrate_adjoint, integrate_checkpointed)


def network(dtype=F64):
    with seeded(generator(1)):
        return VelocityMLP(2, width=16, depth=2, activation=nn.Tanh).to(dtype)


def gradients(solve, solver, net, x=X, t0=0.0, t1=1.0):
    """Of a loss of the end point in x and in all weights, as one vector."""
    x, weights = x.clone().requires_grad_(), tuple(net.parameters())
    end = solve(net, x, solver, parameters=weights, t0=t0, t1=t1)
    loss = (end.sin().sum(1) * end[:, 0]).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [x, *weights])])


def apart(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.verifies("eq-adjoint")
def test_the_adjoint_of_a_linear_field_is_the_transposed_matrix_exponential():
    """x(1) = e^A x(0), so ∂L/∂x(0) = (e^A)ᵀ ∂L/∂x(1) and ∂L/∂A is the derivative of the matrix exponential."""
    matrix = torch.tensor([[-0.3, -1.0], [0.8, 0.2]], dtype=F64).requires_grad_()
    x = X.clone().requires_grad_()
    end = integrate_adjoint(lambda t, x: x @ matrix.T, x, RungeKutta4(200), parameters=[matrix])
    got = torch.autograd.grad(end.square().sum(), [x, matrix])
    exact = x @ torch.linalg.matrix_exp(matrix).T
    torch.testing.assert_close(end, exact, atol=1e-9, rtol=0)
    wanted = torch.autograd.grad(exact.square().sum(), [x, matrix])
    torch.testing.assert_close(got, wanted, atol=1e-7, rtol=1e-8)


@pytest.mark.verifies("eq-adjoint")
@pytest.mark.parametrize(("solver", "order"), [(Euler, 1), (Midpoint, 2), (RungeKutta4, 4)])
def test_adjoint_and_back_propagation_differ_by_the_solvers_own_order(solver, order):
    """The difference of the two gradients falls by 2^order when the steps double: measured."""
    net = network()
    steps = (20, 40) if order < 4 else (6, 12)
    off = [
        apart(gradients(integrate_adjoint, solver(n), net), gradients(through_solver, solver(n), net)) for n in steps
    ]
    assert off[0] / off[1] == pytest.approx(2**order, rel=0.25)


def test_checkpointing_gives_the_exact_gradient_of_the_solver():
    """Back-propagation through all steps, for a solver of poor accuracy; the adjoint misses it by percents there."""
    net, solver = network(), Euler(4)
    exact = gradients(through_solver, solver, net)
    assert apart(gradients(integrate_checkpointed, solver, net), exact) < 1e-13
    assert 1e-3 < apart(gradients(integrate_adjoint, solver, net), exact) < 0.3


@pytest.mark.parametrize("solve", WAYS)
def test_the_end_point_is_the_same_and_time_may_run_backwards(solve):
    """The same solver without any gradient; and the gradient of the way back by central differences."""
    net = network()
    end = solve(net, X, RungeKutta4(20), parameters=net.parameters(), t0=1.0, t1=0.2)
    torch.testing.assert_close(end, through_solver(net, X, RungeKutta4(20), t0=1.0, t1=0.2), atol=1e-14, rtol=0)
    x = X[:1].clone().requires_grad_()

    def back(x):
        return solve(net, x, RungeKutta4(10), parameters=net.parameters(), t0=1.0, t1=0.2)

    assert torch.autograd.gradcheck(back, (x,), atol=1e-5)


def test_the_adaptive_solver_has_an_adjoint_too():
    """Back-propagation through the adaptive steps, both at tolerance 1e-9."""
    net, solver = network(), DormandPrince(rtol=1e-9, atol=1e-9)
    assert apart(gradients(integrate_adjoint, solver, net), gradients(through_solver, solver, net)) < 1e-6


def log_density_gradient(solve, solver, net, x):
    """Gradient of a mean log-density, whose field already takes a derivative of the network."""
    weights = tuple(net.parameters())
    end, change = integrate_along(
        lambda t, point: value_and_divergence(net, t, point),
        x,
        solver,
        t0=1.0,
        t1=0.0,
        solve=functools.partial(solve, parameters=weights),
    )
    loss = (0.5 * end.square().sum(1) - change).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])


def test_gradients_of_a_log_density_are_those_of_back_propagation():
    """float32, as in training: 1e-4 is the promise, 1e-6 is met."""
    net, x = network(torch.float32), X.float()
    exact = log_density_gradient(through_solver, RungeKutta4(10), net, x)
    for solve in (integrate_adjoint, integrate_checkpointed):
        assert apart(log_density_gradient(solve, RungeKutta4(10), net, x), exact) < 1e-5


def test_the_memory_of_the_adjoint_does_not_grow_with_the_steps():
    """Bytes of all live tensors, counted: back-propagation doubles with the steps, the adjoint stays where it is."""
    net, x = network(torch.float32), X.float()

    def peak(solve, steps):
        return peak_bytes(lambda: log_density_gradient(solve, Midpoint(steps), net, x))

    few, many = ({solve: peak(solve, n) for solve in WAYS} for n in (4, 8))
    assert many[through_solver] > 1.8 * few[through_solver]
    assert many[integrate_adjoint] < 1.05 * few[integrate_adjoint]
    assert many[integrate_adjoint] < 0.5 * many[through_solver]
    point = 3 * 4 * len(x)  # bytes of a state: checkpoints cost one a step
    assert many[integrate_checkpointed] - few[integrate_checkpointed] <= 4 * (point + 100)


def test_peak_bytes_counts_what_is_alive_at_once():
    """Sizes by hand: a list keeps its tensors, a running sum holds three, a view and an in-place sum cost nothing."""
    size = 4 * 1000
    assert peak_bytes(lambda: [torch.zeros(1000) for _ in range(5)]) == 5 * size
    assert peak_bytes(lambda: sum(torch.ones(1000) for _ in range(10))) == 3 * size
    assert peak_bytes(lambda: torch.zeros(1000).view(10, 100).t().add_(1)) == size
    outside = torch.zeros(1000)
    assert peak_bytes(lambda: outside.view(10, 100).mul_(2)) == 0

    def backward():
        weight = torch.ones(1000, requires_grad=True)
        (weight.exp().exp()).sum().backward()

    assert peak_bytes(backward) >= 4 * size


def test_a_number_is_gathered_along_the_way():
    """∫ |x(t)|² dt = (1 − e^{−2t})/2 |x(0)|² for x' = −x; the starting number is added."""
    x = randn(5, 3, 2, generator=generator(2), dtype=F64)
    start = randn(5, generator=generator(3), dtype=F64)
    end, number = integrate_along(
        lambda t, x: (-x, x.square().flatten(1).sum(1)), x, RungeKutta4(50), t1=0.7, start=start
    )
    torch.testing.assert_close(end, math.exp(-0.7) * x, atol=1e-8, rtol=0)
    wanted = start + (1 - math.exp(-1.4)) / 2 * x.square().flatten(1).sum(1)
    torch.testing.assert_close(number, wanted, atol=1e-7, rtol=0)


@pytest.mark.parametrize("solve", WAYS)
def test_a_field_that_blows_up_is_refused(solve):
    with pytest.raises(ValueError, match="NaN or infinity"):
        solve(lambda t, x: x**9, 100 * X.abs() + 100, Euler(10))


def test_checkpointing_needs_fixed_steps():
    with pytest.raises(ValueError, match=r"integrate_checkpointed: received DormandPrince.*fixed steps"):
        integrate_checkpointed(lambda t, x: x, X, DormandPrince())
