r"""Continuous normalizing flows: a density carried from noise to data by a velocity field.

    dx/dt = v(t, x),   x(0) = z ~ p_z,   t from 0 (noise) to 1 (data)
    d/dt log p_t(x(t)) = −div v(t, x(t))                                                 (eq-instantaneous-change)
    log p(x) = log p_z(x(0)) − ∫₀¹ div v(t, x(t)) dt     along the trajectory that ends in x
    div v ≈ εᵀ (∂v/∂x) ε,   one ε with E[ε εᵀ] = I for the whole trajectory                   (eq-hutchinson-flow)

Any field will do that is smooth enough for trajectories not to meet: nothing about its Jacobian needs to be cheap. In
exchange a density costs the solution of a differential equation, and its gradient one more (`numerics.adjoint`).

Sources: Chen et al., 'Neural Ordinary Differential Equations', NeurIPS 2018, section 4; Grathwohl et al., 'FFJORD',
ICLR 2019, sections 2.2 and 3.1.
"""

import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.numerics._checks import is_whole, not_finite
from companion.numerics.adjoint import through_solver
from companion.numerics.along import integrate_along
from companion.numerics.autodiff import rademacher, value_and_divergence, value_and_hutchinson_divergence
from companion.numerics.ode import DormandPrince, FixedStepSolver, integrate

Field = Callable[[Tensor, Tensor], Tensor]
Divergence = Callable[[Field, Tensor, Tensor], tuple[Tensor, Tensor]]
Solver = FixedStepSolver | DormandPrince


@runtime_checkable
class Base(Protocol):
    """The density of z."""

    def log_prob(self, x: Tensor) -> Tensor: ...

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor: ...


def hutchinson(x: Float[Tensor, "batch dim"], *, generator: torch.Generator, samples: int = 1) -> Divergence:
    """Hutchinson's estimate with signs drawn now, to be used along whole trajectories (FFJORD, section 3.1).

        flow.log_prob(x, divergence=hutchinson(x, generator=generator))

    Args:
        x: the points whose trajectories are solved; shape, dtype and device are theirs.
        generator: source of the signs.
        samples: how many to average over, one vector–Jacobian product each.
    """
    if not is_whole(samples, least=1):
        raise ValueError(f"hutchinson: received samples = {samples!r}; rule: a whole number, 1 or more")
    noise = rademacher((samples, *x.shape), generator, device=x.device, dtype=x.dtype)
    return functools.partial(value_and_hutchinson_divergence, noise=noise)


class ContinuousFlow(nn.Module):
    """A base density carried by dx/dt = v(t, x) from t = 0 to t = 1. It is a layer too: it fits into a `Flow`.

    Args:
        field: v(t, x) with t of shape () and x (batch, dim); a module, if it is to be trained.
        base: the density of z, with `log_prob` and `sample`.
        solver: a solver of `companion.numerics.ode`.
        solve: how gradients are found: `through_solver`, `integrate_adjoint` or `integrate_checkpointed` of
            `companion.numerics.adjoint`. The weights of the field are handed to it.
    """

    def __init__(self, field: Field, base: Base, solver: Solver, *, solve: Callable[..., Tensor] = through_solver):
        super().__init__()
        self.field, self.base, self.solver, self.solve = field, base, solver, solve

    def forward(
        self, z: Float[Tensor, "batch dim"], *, divergence: Divergence = value_and_divergence
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, " batch"]]:
        """x(1) from x(0) = z, and log |det| of this map: the integral of the divergence."""
        return self._carried(z, 0.0, 1.0, divergence)

    def inverse(
        self, x: Float[Tensor, "batch dim"], *, divergence: Divergence = value_and_divergence
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, " batch"]]:
        """x(0) from x(1) = x, and log |det| of this map: minus that integral."""
        return self._carried(x, 1.0, 0.0, divergence)

    def log_prob(
        self, x: Float[Tensor, "batch dim"], *, divergence: Divergence = value_and_divergence
    ) -> Float[Tensor, " batch"]:
        """log p(x) in nats, differentiable.

        Outside `torch.no_grad()` it keeps the whole graph of the solver's steps, which grows with their number (unless
        `solve` is one that does not); evaluate many points inside it.

        Args:
            x: the points.
            divergence: gives v and div v at (v, t, x): exact, or `hutchinson(x, generator=…)`.

        Raises:
            ValueError: x is not (batch, dim), or holds NaN or infinity.
        """
        if x.ndim != 2 or not_finite(x):
            raise ValueError(
                f"ContinuousFlow.log_prob: received points of shape {tuple(x.shape)}, "
                f"{'with' if not_finite(x) else 'without'} NaN or infinity; rule: (batch, dim), finite"
            )
        z, log_det = self.inverse(x, divergence=divergence)
        return self.base.log_prob(z) + log_det

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n dim"]:
        """`n` independent points: base draws, carried to t = 1. No divergence is needed."""
        return integrate(self.field, self.base.sample(n, generator=generator), self.solver).final

    @torch.no_grad()
    def through(self, z: Float[Tensor, "batch dim"], t: Float[Tensor, " times"]) -> Float[Tensor, "times batch dim"]:
        """Where z is at the times t in [0, 1]."""
        return integrate(self.field, z, self.solver, t_eval=t).x

    def _carried(self, x: Tensor, t0: float, t1: float, divergence: Divergence) -> tuple[Tensor, Tensor]:
        weights = tuple(self.field.parameters()) if isinstance(self.field, nn.Module) else ()
        return integrate_along(
            lambda t, point: divergence(self.field, t, point),
            x,
            self.solver,
            t0=t0,
            t1=t1,
            solve=functools.partial(self.solve, parameters=weights),
        )
