"""The solvers: orders of convergence, dense output, counting, gradients, and what they say of bad input."""

import inspect
import math

import pytest
import torch

from companion.numerics.ode import (
    DORMAND_PRINCE,
    DormandPrince,
    Euler,
    Heun,
    Midpoint,
    RungeKutta4,
    Tableau,
    integrate,
)

FIXED = {Euler: 1, Midpoint: 2, Heun: 2, RungeKutta4: 4}
SOLVERS = [Euler(steps=20), Midpoint(steps=20), Heun(steps=20), RungeKutta4(steps=20), DormandPrince()]


def unchecked(function):
    """The function as a user gets it, without the shape checks of the tests: its own errors are what is tested."""
    return inspect.unwrap(function)


def bell(t, x):
    """dx/dt = −2 t x²: non-linear, depends on time, and solved by x(t) = 1/(t² + 1/x(0))."""
    return -2 * t * x**2


def bell_at(t, x):
    return 1 / (t**2 + 1 / x)


def start(*shape, dtype=torch.float64, seed=0):
    return 0.5 + torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def slope(sizes, errors):
    """The exponent p of errors ∝ size^p, by least squares in the logarithms."""
    x, y = torch.tensor(sizes).double().log(), torch.tensor(errors).double().log()
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


def one_step(h):
    """A single Dormand–Prince step of size h: so loose a tolerance never asks for a second one."""
    solution = integrate(bell, start(3), DormandPrince(rtol=0, atol=1e3), t0=0.3, t1=0.3 + h)
    assert solution.accepted == 1
    return solution


@pytest.mark.parametrize(("solver", "order"), FIXED.items())
def test_the_error_of_a_fixed_solver_falls_with_its_order(solver, order):
    x = start(5)
    steps = [16, 32, 64, 128]
    errors = [(integrate(bell, x, solver(steps=n)).final - bell_at(1, x)).abs().max().item() for n in steps]
    assert slope([1 / n for n in steps], errors) == pytest.approx(order, abs=0.12)


def test_a_dormand_prince_step_has_a_local_error_of_order_six_and_its_dense_output_of_order_five():
    x, sizes = start(3), [0.05, 0.025, 0.0125]
    exact = lambda t: bell_at(t, 1 / (1 / x - 0.3**2))  # noqa: E731 - the solution through x at t = 0.3
    ends = [(one_step(h).final - exact(0.3 + h)).abs().max().item() for h in sizes]
    inside = [(one_step(h)(0.3 + 0.35 * h) - exact(0.3 + 0.35 * h)).abs().max().item() for h in sizes]
    assert slope(sizes, ends) == pytest.approx(6, abs=0.35)
    assert slope(sizes, inside) == pytest.approx(5, abs=0.35)


def order_conditions(b, tableau: Tableau):
    """Left and right sides of the eight conditions for order 4 (Hairer, Nørsett and Wanner I, table II.2.1)."""
    stages = tableau.stages
    a = torch.zeros(stages, stages, dtype=torch.float64)
    for i, row in enumerate(tableau.a):
        a[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    b, c = torch.tensor(b, dtype=torch.float64), torch.tensor(tableau.c, dtype=torch.float64)
    left = [b.sum(), b @ c, b @ c**2, b @ a @ c, b @ c**3, b @ (c * (a @ c)), b @ a @ c**2, b @ a @ a @ c]
    right = [1, 1 / 2, 1 / 3, 1 / 6, 1 / 4, 1 / 8, 1 / 12, 1 / 24]
    torch.testing.assert_close(a.sum(1), c)
    return torch.stack(left), torch.tensor(right, dtype=torch.float64)


@pytest.mark.parametrize("solver", [RungeKutta4, DormandPrince])
def test_the_tableaux_of_high_order_satisfy_the_order_conditions(solver):
    torch.testing.assert_close(*order_conditions(solver.tableau.b, solver.tableau))


def test_the_embedded_method_has_order_four_and_not_five():
    embedded = [b - e for b, e in zip(DORMAND_PRINCE.b, DORMAND_PRINCE.error, strict=True)]
    torch.testing.assert_close(*order_conditions(embedded, DORMAND_PRINCE))
    fifth = sum(b * c**4 for b, c in zip(embedded, DORMAND_PRINCE.c, strict=True))
    assert abs(fifth - 1 / 5) > 1e-4
    assert sum(b * c**4 for b, c in zip(DORMAND_PRINCE.b, DORMAND_PRINCE.c, strict=True)) == pytest.approx(1 / 5)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7, 1e-9])
def test_the_adaptive_solver_keeps_its_error_near_the_tolerance(tolerance):
    x = start(64)
    solution = integrate(bell, x, DormandPrince(rtol=tolerance, atol=tolerance), t1=3.0)
    assert (solution.final - bell_at(3, x)).abs().max() < 10 * tolerance


def test_a_tighter_tolerance_costs_evaluations_at_the_fifth_root():
    counts = [integrate(bell, start(8), DormandPrince(rtol=tol, atol=tol)).evaluations for tol in (1e-7, 1e-12)]
    steps = [(count - 2) / 6 for count in counts]
    assert steps[1] / steps[0] == pytest.approx(10, rel=0.4)  # (1e5)^(1/5), up to the first timid steps


@pytest.mark.parametrize("solver", [RungeKutta4, Heun])
def test_between_the_steps_a_fixed_solver_is_as_good_as_at_them(solver):
    x, steps = start(4), [8, 16, 32]
    times = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    exact = torch.stack([bell_at(t, x) for t in times])
    errors = [(integrate(bell, x, solver(steps=n))(times) - exact).abs().max().item() for n in steps]
    assert slope([1 / n for n in steps], errors) == pytest.approx(FIXED[solver], abs=0.3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_times_asked_for_are_answered_by_the_dense_output(solver):
    x, times = start(3, 2), torch.tensor([0.0, 0.21, 0.5, 1.0], dtype=torch.float64)
    asked = integrate(bell, x, solver, t_eval=times)
    free = integrate(bell, x, solver)
    assert asked.x.shape == (4, 3, 2)
    torch.testing.assert_close(asked.x, free(times), rtol=0, atol=0)
    torch.testing.assert_close(asked.x[0], x, rtol=0, atol=0)
    torch.testing.assert_close(asked.x[-1], free.final, rtol=0, atol=0)
    torch.testing.assert_close(asked.x, torch.stack([bell_at(t, x) for t in times]), rtol=0, atol=0.03)


def test_the_final_state_stands_at_the_end_whatever_times_are_asked_for():
    x = start(3)
    solution = integrate(bell, x, RungeKutta4(steps=10), t_eval=torch.tensor([0.5, 0.2], dtype=torch.float64))
    torch.testing.assert_close(solution.final, bell_at(1, x), rtol=0, atol=1e-4)
    torch.testing.assert_close(solution.x[1], bell_at(0.2, x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_evaluation_is_counted(solver):
    calls = []
    solution = integrate(lambda t, x: calls.append(t) or bell(t, x), start(2), solver)
    assert solution.evaluations == len(calls)
    assert all(t.shape == () for t in calls)
    assert solution.t.shape == (solution.accepted + 1,)
    assert solution.x.shape == (solution.accepted + 1, 2)


@pytest.mark.parametrize("solver", FIXED)
def test_n_steps_lead_from_the_start_to_the_end_exactly(solver):
    seen = []
    solution = integrate(lambda t, x: seen.append(t.item()) or torch.ones_like(x), start(2), solver(steps=7))
    torch.testing.assert_close(solution.t, torch.linspace(0, 1, 8, dtype=torch.float64))
    assert solution.t[-1] == 1
    assert (solution.accepted, solution.rejected) == (7, 0)
    assert min(seen) == 0
    assert max(seen) <= 1 + 1e-12
    torch.testing.assert_close(solution.final, start(2) + 1)  # a field of ones moves by the whole time


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_time_lies_outside_the_interval_not_even_by_rounding(solver, dtype):
    for t0, t1 in ((0.0, 0.49), (0.91, 0.5), (0.0, 1.0), (0.1, 0.7)):
        seen = []
        integrate(
            lambda t, x, seen=seen: seen.append(t) or torch.sin(20 * x), start(3, dtype=dtype), solver, t0=t0, t1=t1
        )
        low, high = torch.tensor([min(t0, t1), max(t0, t1)], dtype=dtype)
        assert min(seen) >= low
        assert max(seen) <= high


def test_euler_never_asks_for_the_field_at_the_end():
    seen = []
    integrate(lambda t, x: seen.append(t.item()) or x, start(2), Euler(steps=4))
    assert seen == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("solver", [RungeKutta4(steps=50), DormandPrince(rtol=1e-9, atol=1e-9)])
def test_running_backwards_undoes_running_forwards(solver):
    x = start(6, 2)
    forward = integrate(bell, x, solver, t0=0.2, t1=1.7)
    back = integrate(bell, forward.final, solver, t0=1.7, t1=0.2)
    torch.testing.assert_close(back.final, x, rtol=0, atol=1e-6)
    assert back.t[0] == 1.7
    assert back.t[-1] == 0.2
    torch.testing.assert_close(back(1.0), forward(1.0), rtol=0, atol=1e-5)


def test_backwards_takes_the_same_steps_as_the_mirrored_problem_forwards():
    forward = integrate(lambda t, x: bell(t, x), start(4), DormandPrince())
    mirrored = integrate(lambda t, x: -bell(-t, x), start(4), DormandPrince(), t1=-1.0)
    torch.testing.assert_close(mirrored.t, -forward.t)
    torch.testing.assert_close(mirrored.x, forward.x)
    assert (mirrored.evaluations, mirrored.rejected) == (forward.evaluations, forward.rejected)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4,), (3, 2), (2, 1, 4, 4)])
def test_shape_and_dtype_follow_the_state(solver, dtype, shape):
    x = start(*shape, dtype=dtype)
    seen = []
    solution = integrate(lambda t, x: seen.append(t.dtype) or -x, x, solver)
    assert set(seen) == {dtype}
    assert solution.t.dtype == solution.x.dtype == dtype
    assert solution(0.4).dtype == dtype
    assert solution.x.shape[1:] == shape
    torch.testing.assert_close(solution.final, x * math.exp(-1), rtol=0.03, atol=0)


def test_no_time_passes_between_equal_times():
    x = start(3)
    solution = integrate(bell, x, DormandPrince(), t0=0.5, t1=0.5)
    torch.testing.assert_close(solution.final, x, rtol=0, atol=0)
    assert solution.evaluations == 0


@pytest.mark.parametrize("solver", SOLVERS[1:])
def test_gradients_flow_through_the_solver_to_the_start_and_to_the_field(solver):
    x = start(4).requires_grad_()
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    integrate(lambda t, x: -rate * x, x, solver).final.sum().backward()
    torch.testing.assert_close(x.grad, torch.full((4,), math.exp(-0.7), dtype=torch.float64), rtol=2e-3, atol=0)
    torch.testing.assert_close(rate.grad, -(x.detach().sum() * math.exp(-0.7)), rtol=2e-3, atol=0)


def test_gradients_flow_through_the_dense_output():
    x = start(4).requires_grad_()
    integrate(lambda t, x: -x, x, DormandPrince(rtol=1e-8, atol=1e-8))(0.37).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((4,), math.exp(-0.37), dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_jacobian_of_a_flow_can_be_taken_point_by_point():
    generator = torch.tensor([[-0.3, 1.0], [-1.0, 0.2]], dtype=torch.float64)
    flow = lambda x: integrate(lambda t, x: x @ generator.T, x, RungeKutta4(steps=40)).final  # noqa: E731
    jacobians = torch.func.vmap(torch.func.jacrev(flow))(start(3, 2))
    torch.testing.assert_close(jacobians, torch.linalg.matrix_exp(generator).expand(3, 2, 2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", FIXED)
def test_one_step_takes_time_and_step_as_tensors(solver):
    x, t, h = start(3), torch.tensor(0.2, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    step = solver(steps=1).step(bell, t, x, h)
    torch.testing.assert_close(step, integrate(bell, x, solver(steps=1), t0=0.2, t1=0.3).final)
    torch.testing.assert_close(step, solver(steps=1).step(bell, t, x, 0.1))


@pytest.mark.parametrize("solver", FIXED)
def test_one_step_can_be_exported(solver):
    class Step(torch.nn.Module):
        def forward(self, t, x, h):
            return solver(steps=1).step(bell, t, x, h)

    example = (torch.tensor(0.2), start(3, dtype=torch.float32), torch.tensor(0.1))
    program = torch.export.export(Step(), example)
    other = (torch.tensor(0.5), 2 * example[1], torch.tensor(0.3))
    torch.testing.assert_close(program.module()(*other), Step()(*other))


def test_rejected_steps_are_tried_again_until_the_error_is_small():
    """A field that is almost still and then kicks: the long steps before must be taken back."""

    def kick(t, x):
        return x * torch.exp(-(((t - 0.5) / 0.08) ** 2)) / 0.08

    solution = integrate(kick, start(4), DormandPrince(rtol=1e-7, atol=1e-7))
    assert solution.rejected > 0
    assert solution.evaluations == 2 + 6 * (solution.accepted + solution.rejected)
    exact = start(4) * math.exp(math.sqrt(math.pi))  # the integral of a Gaussian bump
    torch.testing.assert_close(solution.final, exact, rtol=1e-5, atol=0)


def test_on_a_stiff_field_the_controller_settles_instead_of_trying_in_vain():
    solution = integrate(lambda t, x: -1000 * (x - torch.cos(3 * t)), start(4), DormandPrince())
    assert solution.rejected < 0.05 * solution.accepted
    torch.testing.assert_close(
        solution.final, torch.full((4,), math.cos(3) + 3e-3 * math.sin(3)).double(), rtol=0, atol=1e-4
    )


class TestErrors:
    def test_a_stiff_field_exhausts_the_budget_and_is_told_what_stiff_means(self):
        with pytest.raises(ValueError, match=r"max_evaluations=500 at t=0\.\d+.*not stiff.*stability, not accuracy"):
            integrate(lambda t, x: -1e5 * (x - torch.cos(t)), start(2), DormandPrince(max_evaluations=500))

    def test_the_budget_is_never_exceeded(self):
        calls = []
        with pytest.raises(ValueError, match="max_evaluations=20"):
            integrate(
                lambda t, x: calls.append(t) or 50 * torch.sin(90 * t) * x, start(2), DormandPrince(max_evaluations=20)
            )
        assert len(calls) <= 20

    def test_a_solution_that_blows_up_is_reported_with_its_time(self):
        with pytest.raises(ValueError, match=r"shrank.*at t=(0\.99|1)"):  # dx/dt = x² from 1 reaches infinity at t = 1
            integrate(lambda t, x: x**2, torch.ones(1, dtype=torch.float64), DormandPrince(), t1=2.0)

    def test_a_field_that_overflows_is_refused(self):
        with pytest.raises(ValueError, match="overflows at the start"):
            integrate(lambda t, x: 1e38 * x, start(2, dtype=torch.float32), DormandPrince())
        with pytest.raises(ValueError, match="NaN or infinity next to this time"):
            integrate(lambda t, x: torch.where(t > 0, torch.inf, 1.0) * x, start(2), DormandPrince())

    def test_a_field_with_nan_at_the_start_is_refused(self):
        with pytest.raises(ValueError, match="NaN or infinity at t=0; rule: finite at the start"):
            integrate(lambda t, x: x / 0 - x / 0, start(2), DormandPrince())

    def test_a_field_that_turns_nan_on_the_way_is_reported(self):
        def hole(t, x):
            return torch.where(t > 0.5, torch.nan, 1.0) * x

        with pytest.raises(ValueError, match=r"t=0\.(4999|5).*NaN or infinity next to this time"):
            integrate(hole, start(2), DormandPrince())
        with pytest.raises(ValueError, match=r"Euler\(steps=10\) reached NaN or infinity at t=0\.7"):
            integrate(hole, start(2), Euler(steps=10))

    def test_an_unstable_fixed_step_is_reported(self):
        with pytest.raises(ValueError, match=r"reached NaN or infinity.*too long for a stable solution"):
            integrate(lambda t, x: -(x**3), 100 * start(2), Euler(steps=20))

    def test_a_field_of_another_shape_or_dtype_is_refused(self):
        x = start(3, 2)
        with pytest.raises(ValueError, match=r"field that returns \(3,\).*for a state \(3, 2\)"):
            integrate(lambda t, x: x.sum(1), x, Euler(steps=2))
        with pytest.raises(ValueError, match=r"float32.*for a state.*float64"):
            integrate(lambda t, x: x.float(), x, DormandPrince())
        with pytest.raises(ValueError, match="field that returns float"):
            integrate(lambda t, x: 1.0, x, Euler(steps=2))

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (torch.tensor(1.0), r"shape \(\).*rule: \(batch, ...\)"),
            (torch.zeros(0, 2), r"shape \(0, 2\).*not empty"),
            (torch.ones(2, dtype=torch.int64), "int64.*floating point"),
            (torch.tensor([1.0, math.nan]), "state with NaN"),
        ],
    )
    def test_a_state_that_is_no_batch_of_finite_numbers_is_refused(self, x, message):
        with pytest.raises(ValueError, match=message):
            unchecked(integrate)(bell, x, Euler(steps=2))

    def test_times_outside_the_interval_are_refused(self):
        with pytest.raises(ValueError, match=r"integrate: received t=\[0.5, 1.5\].*between 0 and 1"):
            integrate(bell, start(2), Euler(steps=2), t_eval=torch.tensor([0.5, 1.5]))
        with pytest.raises(ValueError, match=r"Solution: received t=-0.1 .*rule: 0 or 1 axes, between 0 and 1"):
            integrate(bell, start(2), Euler(steps=2))(-0.1)
        with pytest.raises(ValueError, match=r"integrate: received t=0.5 of shape \(\); rule: 1 axes"):
            integrate(bell, start(2), Euler(steps=2), t_eval=torch.tensor(0.5))
        with pytest.raises(ValueError, match="t1=inf"):
            integrate(bell, start(2), Euler(steps=2), t1=math.inf)

    @pytest.mark.parametrize("steps", [0, -3, 2.5, True])
    def test_steps_are_a_positive_whole_number(self, steps):
        with pytest.raises(ValueError, match="Euler: received steps="):
            unchecked(Euler.__init__)(object.__new__(Euler), steps)

    def test_tolerances_are_not_negative_and_not_both_zero(self):
        for bad in ({"rtol": -1.0}, {"rtol": 0.0, "atol": 0.0}, {"atol": math.nan}):
            with pytest.raises(ValueError, match="DormandPrince: received rtol="):
                DormandPrince(**bad)
        with pytest.raises(ValueError, match="at least 8"):
            DormandPrince(max_evaluations=7)
