"""Derivatives: against closed forms, against each other, and Hutchinson's estimate as a distribution."""

import inspect
import math

import pytest
import torch

from companion.device import generator
from companion.numerics.autodiff import (
    divergence,
    hutchinson_divergence,
    jacobian,
    rademacher,
    value_and_divergence,
    value_and_hutchinson_divergence,
)

T = torch.tensor(0.3, dtype=torch.float64)
DRAWS = 20_000
# A z-score beyond 5 comes by chance once in 1.7 million draws.
ALARM = 5.0


def points(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def field(t, x):
    """Non-linear, coupled, time-dependent: v_i = sin(x_i x_{i+1}) + t x_i², each point on its own."""
    return torch.sin(x * x.roll(1, dims=-1)) + t * x**2


def network():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)]
    net = torch.nn.Sequential(*layers).double()
    return net, lambda t, x: net(torch.cat([x, t.expand(len(x), 1)], dim=1))


def test_the_jacobian_of_polar_coordinates_is_known():
    x = torch.rand(6, 2, generator=generator(0), dtype=torch.float64) + 0.1
    jacobians = jacobian(lambda p: torch.stack([p[0] * p[1].cos(), p[0] * p[1].sin()]), x)
    r, angle = x.T
    rows = [torch.stack([angle.cos(), -r * angle.sin()], 1), torch.stack([angle.sin(), r * angle.cos()], 1)]
    torch.testing.assert_close(jacobians, torch.stack(rows, dim=1))
    torch.testing.assert_close(torch.linalg.det(jacobians), r)


def test_the_jacobian_of_a_map_between_dimensions_has_a_row_for_each_output():
    matrix = points(5, 3)
    torch.testing.assert_close(jacobian(lambda p: matrix @ p, points(4, 3)), matrix.expand(4, 5, 3))


def test_the_divergence_is_the_trace_of_the_jacobian():
    x = points(7, 4)
    jacobians = jacobian(lambda p: field(T, p), x)
    torch.testing.assert_close(divergence(field, T, x), jacobians.diagonal(dim1=1, dim2=2).sum(1))


def test_the_divergence_agrees_with_central_differences():
    x, h = points(5, 3), 1e-6
    differences = torch.zeros(5, dtype=torch.float64)
    for i in range(3):
        step = h * torch.eye(3, dtype=torch.float64)[i]
        differences += (field(T, x + step) - field(T, x - step))[:, i] / (2 * h)
    torch.testing.assert_close(divergence(field, T, x), differences, rtol=0, atol=1e-8)


def test_images_have_a_divergence_over_all_their_pixels():
    x = points(3, 1, 4, 4)
    torch.testing.assert_close(divergence(lambda t, x: x**3, T, x), 3 * x.square().sum(dim=(1, 2, 3)))


def test_times_may_differ_within_the_batch():
    t, x = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), points(3, 2)
    torch.testing.assert_close(divergence(lambda t, x: t[:, None] * x, t, x), 2 * t)


@pytest.mark.parametrize("v", [lambda t, x: torch.ones_like(x), lambda t, x: torch.stack([x[:, 1], x[:, 1] * 0], 1)])
def test_shifts_and_shears_have_no_divergence(v):
    x = points(3, 2)
    torch.testing.assert_close(divergence(v, T, x), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(hutchinson_divergence(v, T, x, torch.ones_like(x)).abs() <= 1e9, torch.ones(3).bool())


def test_one_evaluation_gives_value_and_divergence():
    calls, x = [], points(3, 4)
    value, trace = value_and_divergence(lambda t, x: calls.append(1) or field(t, x), T, x)
    assert len(calls) == 1
    torch.testing.assert_close(value, field(T, x))
    torch.testing.assert_close(trace, divergence(field, T, x))


def test_gradients_flow_through_the_divergence_to_points_and_parameters():
    """div (a x³) = 3 a Σx²: its gradients are 6 a x and 3 Σx²."""
    x, a = points(3, 2).requires_grad_(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    divergence(lambda t, x: a * x**3, T, x).sum().backward()
    torch.testing.assert_close(x.grad, 3 * x.detach())
    torch.testing.assert_close(a.grad, 3 * x.detach().square().sum())


def test_without_gradients_nothing_keeps_its_graph():
    _, v = network()
    x = points(5, 3)
    with torch.no_grad():
        value, trace = value_and_divergence(v, T, x)
        _, estimate = value_and_hutchinson_divergence(v, T, x, torch.ones_like(x))
    assert not any(tensor.requires_grad for tensor in (value, trace, estimate))
    assert not x.requires_grad
    assert divergence(v, T, x).requires_grad  # to the parameters
    torch.testing.assert_close(trace, divergence(v, T, x).detach())


def linear(matrix):
    return lambda t, x: x @ matrix.T


@pytest.mark.parametrize("kind", ["signs", "normal"])
def test_the_estimate_is_unbiased_and_has_its_known_variance(kind):
    """For v = A x the estimate is εᵀ A ε. Its variance is 2‖S‖² (normal), less 2 Σ S_ii² for signs; S = (A + Aᵀ)/2.

    Both statistics are compared with their own standard errors over 20,000 draws.
    """
    matrix = points(4, 4, seed=5)
    noise = {
        "signs": rademacher((DRAWS, 4), generator(6), dtype=torch.float64),
        "normal": torch.randn(DRAWS, 4, generator=generator(6), dtype=torch.float64),
    }[kind]
    estimates = hutchinson_divergence(linear(matrix), T, torch.zeros(DRAWS, 4, dtype=torch.float64), noise)
    symmetric = (matrix + matrix.T) / 2
    variance = 2 * symmetric.square().sum() - (2 * symmetric.diagonal().square().sum() if kind == "signs" else 0)
    error = math.sqrt(variance / DRAWS)
    assert abs(estimates.mean() - matrix.trace()) < ALARM * error
    squares = (estimates - matrix.trace()).square()
    assert abs(squares.mean() - variance) < ALARM * squares.std() / math.sqrt(DRAWS)


def test_signs_give_the_exact_divergence_of_a_diagonal_field():
    x = points(3, 4)
    noise = rademacher(x.shape, generator(0), dtype=x.dtype)
    torch.testing.assert_close(hutchinson_divergence(lambda t, x: x**3, T, x, noise), 3 * x.square().sum(1))


def test_several_noises_are_averaged():
    x, noise = points(3, 4), rademacher((10, 3, 4), generator(1), dtype=torch.float64)
    each = torch.stack([hutchinson_divergence(field, T, x, eps) for eps in noise])
    torch.testing.assert_close(hutchinson_divergence(field, T, x, noise), each.mean(0))


def test_all_unit_vectors_together_make_the_exact_trace():
    """Σ_i e_iᵀ J e_i is the trace: d times the mean over the unit vectors."""
    x = points(3, 4)
    noise = torch.eye(4, dtype=torch.float64)[:, None, :].expand(4, 3, 4)
    torch.testing.assert_close(4 * hutchinson_divergence(field, T, x, noise), divergence(field, T, x))


def test_the_estimate_can_be_trained_through():
    _, v = network()
    x = points(5, 3).requires_grad_()
    hutchinson_divergence(v, T, x, rademacher(x.shape, generator(0), dtype=x.dtype)).sum().backward()
    assert x.grad.abs().sum() > 0


def test_signs_are_plus_and_minus_one_in_equal_parts():
    signs = rademacher((DRAWS, 2), generator(0))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.dtype == torch.float32
    assert signs.mean(0).abs().max() < ALARM / math.sqrt(DRAWS)
    assert abs((signs[:, 0] * signs[:, 1]).mean()) < ALARM / math.sqrt(DRAWS)


def test_what_is_no_field_or_no_batch_is_refused():
    x = points(3, 2)
    with pytest.raises(ValueError, match=r"divergence: received a field that returns \(3,\).*shape of x"):
        inspect.unwrap(divergence)(lambda t, x: x.sum(1), T, x)
    with pytest.raises(ValueError, match=r"hutchinson_divergence: received noise of shape \(2,\) for points \(3, 2\)"):
        hutchinson_divergence(field, T, x, torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"jacobian: received x of shape \(3,\)"):
        inspect.unwrap(jacobian)(lambda p: p, torch.ones(3))
    with pytest.raises(ValueError, match=r"rule: f maps one point \(in,\) to a vector"):
        inspect.unwrap(jacobian)(lambda p: p.sum(), x)
