r"""The end point of an ordinary differential equation, and three ways to its gradient.

    dx/dt = v(t, x),   x(t_0) given,   L = L(x(t_1)),   a(t) = ∂L/∂x(t)
    da/dt = −(∂v/∂x)ᵀ a,     ∂L/∂θ = ∫_{t_0}^{t_1} (∂v/∂θ)ᵀ a dt                                        (eq-adjoint)

θ are the parameters of v. The adjoint a is known at the end, a(t_1) = ∂L/∂x(t_1), and runs back to t_0.

    through_solver          back-propagation through every operation of every step: the exact gradient of what the
                            solver computed; memory grows with the number of evaluations
    integrate_adjoint       x, a and the integral for θ are solved together, backwards from t_1. Nothing is kept but the
                            end point: memory does not depend on the number of steps. The gradient is that of the
                            differential equation, so it equals the solver's up to the solver's own error, of its order
                            in h; and solving x backwards must not blow up (a strongly contracting field does)
    integrate_checkpointed  keeps the state at each step, and differentiates step after step, each computed a second
                            time: the exact gradient again, for the memory of one step and a point a step

All three are called alike and differ in nothing else. Sources: Pontryagin et al., 1962; Chen et al., 'Neural Ordinary
Differential Equations', NeurIPS 2018, section 2 and appendix B; Gholami et al., 'ANODE', IJCAI 2019 (the exact gradient
by recomputation, and where the adjoint goes wrong).
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from companion.numerics._checks import not_finite
from companion.numerics.ode import DormandPrince, Field, FixedStepSolver, integrate

__all__ = ["integrate_adjoint", "integrate_checkpointed", "through_solver"]

Solver = FixedStepSolver | DormandPrince


def through_solver(
    v: Field,
    x: Float[Tensor, "batch *dims"],
    solver: Solver,
    *,
    parameters: Iterable[Tensor] = (),
    t0: float = 0.0,
    t1: float = 1.0,
) -> Float[Tensor, "batch *dims"]:
    """x(t_1), with gradients through the solver's steps. `parameters` need not be named here: torch finds them."""
    return integrate(v, x, solver, t0=t0, t1=t1).final


def integrate_adjoint(
    v: Field,
    x: Float[Tensor, "batch *dims"],
    solver: Solver,
    *,
    parameters: Iterable[Tensor] = (),
    t0: float = 0.0,
    t1: float = 1.0,
) -> Float[Tensor, "batch *dims"]:
    """x(t_1), with gradients by the adjoint equation, in memory that does not grow with the steps of a fixed solver.

    (An adaptive solver keeps its accepted states while it runs.) Gradients of gradients are not available.

    Args:
        v: the field v(t, x), t of shape (), differentiable in x and in the parameters.
        x: the state at t_0.
        solver: a solver of `companion.numerics.ode`, used forwards and backwards.
        parameters: the tensors in v that gradients are wanted for, such as `network.parameters()`; no others get one.
        t0: start.
        t1: end.
    """
    return _Adjoint.apply(v, solver, t0, t1, x, *_trainable(parameters))


def integrate_checkpointed(
    v: Field,
    x: Float[Tensor, "batch *dims"],
    solver: Solver,
    *,
    parameters: Iterable[Tensor] = (),
    t0: float = 0.0,
    t1: float = 1.0,
) -> Float[Tensor, "batch *dims"]:
    """x(t_1), with the exact gradient of the solver's steps, each of which is computed again on the way back.

    Args:
        v: the field, which must give the same value when it is called again.
        x: the state at t_0.
        solver: one with fixed steps.
        parameters: as for `integrate_adjoint`.
        t0: start.
        t1: end.
    """
    if not isinstance(solver, FixedStepSolver):
        raise ValueError(f"integrate_checkpointed: received {solver}; rule: a solver with fixed steps, to repeat them")
    return _Checkpointed.apply(v, solver, t0, t1, x, *_trainable(parameters))


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Field, solver: Solver, t0: float, t1: float, x: Tensor, *parameters: Tensor) -> Tensor:
        end = _end(v, x, solver, t0, t1)
        ctx.v, ctx.solver, ctx.t0, ctx.t1 = v, solver, t0, t1
        ctx.save_for_backward(end, *parameters)
        return end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        end, *parameters = ctx.saved_tensors
        sizes = [end.numel(), end.numel(), *(p.numel() for p in parameters)]
        shapes = [end.shape, end.shape, *(p.shape for p in parameters)]

        def rates(t: Tensor, state: Tensor) -> Tensor:
            """How x, a and the gradients of the parameters change with t, all in one vector."""
            x, a = (part.reshape(end.shape) for part in state[0].split(sizes)[:2])
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                value = ctx.v(t, x)
                products = _products(value, [x, *parameters], a)
            return torch.cat([value.detach().flatten(), *(-product.flatten() for product in products)])[None]

        start = torch.cat([end.flatten(), gradient.flatten(), *(p.new_zeros(p.numel()) for p in parameters)])[None]
        final = _end(rates, start, ctx.solver, ctx.t1, ctx.t0)[0]
        parts = [part.reshape(shape) for part, shape in zip(final.split(sizes), shapes, strict=True)]
        return None, None, None, None, *parts[1:]


class _Checkpointed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, v: Field, solver: FixedStepSolver, t0: float, t1: float, x: Tensor, *parameters: Tensor
    ) -> Tensor:
        states = [x]
        for t, h in _steps(solver, x, t0, t1):
            states.append(solver.step(v, t, states[-1], h))
        ctx.v, ctx.solver, ctx.t0, ctx.t1, ctx.parameters = v, solver, t0, t1, len(parameters)
        ctx.save_for_backward(*parameters, *states[:-1])
        return _finite(states[-1], solver)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parameters, states = ctx.saved_tensors[: ctx.parameters], ctx.saved_tensors[ctx.parameters :]
        totals = [torch.zeros_like(p) for p in parameters]
        steps = list(_steps(ctx.solver, gradient, ctx.t0, ctx.t1))
        for (t, h), x in zip(reversed(steps), reversed(states), strict=True):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                step = ctx.solver.step(ctx.v, t, x, h)
                gradient, *more = _products(step, [x, *parameters], gradient)
            for total, part in zip(totals, more, strict=True):
                total += part
        return None, None, None, None, gradient, *totals


def _trainable(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [p for p in parameters if p.requires_grad]


def _products(value: Tensor, inputs: Sequence[Tensor], a: Tensor) -> tuple[Tensor, ...]:
    """(∂value/∂input)ᵀ a for each input; zero where the value does not depend on it."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(tensor) for tensor in inputs)
    return torch.autograd.grad(value, list(inputs), a, materialize_grads=True)


def _end(v: Field, x: Tensor, solver: Solver, t0: float, t1: float) -> Tensor:
    """The end point alone. The states of a fixed solver are let go at once."""
    if isinstance(solver, DormandPrince):
        return integrate(v, x, solver, t0=t0, t1=t1).final
    for t, h in _steps(solver, x, t0, t1):
        x = solver.step(v, t, x, h)
    return _finite(x, solver)


def _steps(solver: FixedStepSolver, x: Tensor, t0: float, t1: float) -> list[tuple[Tensor, float]]:
    """Start and length of each step."""
    nodes = [t0 + k * (t1 - t0) / solver.steps for k in range(solver.steps)] + [t1]
    return [(x.new_tensor(t), end - t) for t, end in pairwise(nodes)]


def _finite(x: Tensor, solver: Solver) -> Tensor:
    if not_finite(x):
        raise ValueError(
            f"integrate: received a field for which {solver} reached NaN or infinity; rule: every state is finite. "
            "The field is not finite there, or the step is too long for a stable solution"
        )
    return x
