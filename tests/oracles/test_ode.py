"""The solvers against torchdiffeq and scipy."""

import pytest
import torch
from scipy.integrate import solve_ivp
from torchdiffeq import odeint

from companion.numerics.ode import DormandPrince, Euler, Heun, Midpoint, RungeKutta4, integrate


def forced_pendulum(t, x):
    """Non-linear, time-dependent, two-dimensional."""
    return torch.stack([x[:, 1], -4 * torch.sin(x[:, 0]) - 0.2 * x[:, 1] + torch.cos(3 * t)], dim=1)


def start(batch=16):
    return torch.randn(batch, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("solver", "method"), [(Euler, "euler"), (Midpoint, "midpoint"), (Heun, "heun2")])
def test_fixed_solvers_take_the_same_steps_as_torchdiffeq(solver, method):
    x, times = start(), torch.linspace(0, 2, 41, dtype=torch.float64)
    ours = integrate(forced_pendulum, x, solver(steps=40), t1=2.0)
    torch.testing.assert_close(ours.x, odeint(forced_pendulum, x, times, method=method), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.t, times)


def test_the_classical_method_agrees_with_the_exact_solution_of_torchdiffeq_to_its_order():
    """torchdiffeq's own 'rk4' is another method of order 4 (the 3/8 rule), so only the solution is compared."""
    x, end = start(), torch.tensor([0.0, 2.0], dtype=torch.float64)
    exact = odeint(forced_pendulum, x, end, rtol=1e-11, atol=1e-11)[-1]
    coarse, fine = (integrate(forced_pendulum, x, RungeKutta4(steps=n), t1=2.0).final - exact for n in (40, 80))
    assert 13 < coarse.norm() / fine.norm() < 19


@pytest.mark.parametrize("t1", [2.0, -2.0])
def test_the_adaptive_solver_finds_the_solution_of_torchdiffeq_at_every_time(t1):
    x, times = start(), torch.linspace(0, t1, 33, dtype=torch.float64)
    solver = DormandPrince(rtol=1e-9, atol=1e-9)
    ours = integrate(forced_pendulum, x, solver, t1=t1, t_eval=times)
    theirs = odeint(forced_pendulum, x, times, rtol=1e-11, atol=1e-11, method="dopri5")
    torch.testing.assert_close(ours.x, theirs, rtol=0, atol=2e-7)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_the_adaptive_solver_needs_no_more_than_torchdiffeq_and_a_step(tolerance):
    """Evaluations are counted for both by the same counter; whole steps of six make the last one a matter of luck."""
    calls = []

    def counted(t, x):
        calls.append(t)
        return forced_pendulum(t, x)

    x, end = start(64), torch.tensor([0.0, 2.0], dtype=torch.float64)
    ours = integrate(counted, x, DormandPrince(rtol=tolerance, atol=tolerance), t1=2.0).evaluations
    assert len(calls) == ours
    calls.clear()
    odeint(counted, x, end, rtol=tolerance, atol=tolerance, method="dopri5")
    assert ours <= len(calls) + 6


def test_the_dense_output_is_as_exact_as_that_of_scipy():
    x = start(1)
    ours = integrate(forced_pendulum, x, DormandPrince(rtol=1e-8, atol=1e-8), t1=2.0)
    times = torch.linspace(0, 2, 101, dtype=torch.float64)

    def flat(t, x):
        return forced_pendulum(torch.tensor(t, dtype=torch.float64), torch.from_numpy(x)[None])[0].numpy()

    theirs = solve_ivp(flat, (0, 2), x[0].numpy(), method="DOP853", t_eval=times.numpy(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ours(times)[:, 0], torch.from_numpy(theirs.y.T), rtol=0, atol=1e-6)


def test_one_interval_of_the_dense_output_is_that_of_shampine_and_hairer():
    """With the same single step, scipy's RK45 (Shampine's interpolant of order 4) differs only by O(h⁵)."""
    x, h = start(1), 0.05
    ours = integrate(forced_pendulum, x, DormandPrince(rtol=0, atol=1e3), t1=h)
    assert ours.accepted == 1

    def flat(t, x):
        return forced_pendulum(torch.tensor(t, dtype=torch.float64), torch.from_numpy(x)[None])[0].numpy()

    theirs = solve_ivp(flat, (0, h), x[0].numpy(), method="RK45", first_step=h, rtol=1e-2, atol=1e3, dense_output=True)
    assert len(theirs.t) == 2
    torch.testing.assert_close(ours.final[0], torch.from_numpy(theirs.y[:, -1]), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(ours(h / 3)[0], torch.from_numpy(theirs.sol(h / 3)), rtol=0, atol=1e-7)


def test_gradients_agree_with_those_through_torchdiffeq():
    def gradient(solve):
        x, rate = start().requires_grad_(), torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        solve(lambda t, x: rate * forced_pendulum(t, x), x).square().sum().backward()
        return x.grad, rate.grad

    end = torch.tensor([0.0, 1.0], dtype=torch.float64)
    ours = gradient(lambda v, x: integrate(v, x, DormandPrince(rtol=1e-9, atol=1e-9)).final)
    theirs = gradient(lambda v, x: odeint(v, x, end, rtol=1e-9, atol=1e-9, method="dopri5")[-1])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
