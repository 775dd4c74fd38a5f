r"""Points that move along a field, and a number that each of them gathers on the way.

    dx/dt = v(t, x),    dl/dt = r(t, x)

With r = −div v the number is the log of a density that the field carries (the instantaneous change of variables); with
r = ‖v‖² it is the energy of the path. It is one more coordinate of the state, so one solver moves both.

Source: Chen et al., 'Neural Ordinary Differential Equations', NeurIPS 2018, eq. (8) and (10).
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from companion.numerics.adjoint import through_solver

__all__ = ["integrate_along"]

Rates = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def integrate_along(
    rates: Rates,
    x: Float[Tensor, "batch *dims"],
    solver: Any,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    start: Float[Tensor, " batch"] | None = None,
    solve: Callable[..., Tensor] = through_solver,
) -> tuple[Float[Tensor, "batch *dims"], Float[Tensor, " batch"]]:
    """The points at t_1 and the numbers that they gathered.

    Args:
        rates: r(t, x) gives the velocity, (batch, ...), and the rate of the number, (batch,).
        x: points at t_0.
        solver: a solver of `companion.numerics.ode`.
        t0: start.
        t1: end; t1 < t0 runs backwards.
        start: the numbers at t_0; zero unless given.
        solve: how the end is found, and with it how gradients are: a function of `companion.numerics.adjoint`.
    """
    shape = x.shape

    def both(t: Tensor, state: Tensor) -> Tensor:
        velocity, rate = rates(t, state[:, :-1].reshape(shape))
        return torch.cat([velocity.flatten(1), rate[:, None]], dim=1)

    number = x.new_zeros(len(x)) if start is None else start
    end = solve(both, torch.cat([x.flatten(1), number[:, None]], dim=1), solver, t0=t0, t1=t1)
    return end[:, :-1].reshape(shape), end[:, -1]
