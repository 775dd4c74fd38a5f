r"""Flows: where a field carries points, and what becomes of the density that they sample.

    d/dt φ_{s,t}(x) = v_t(φ_{s,t}(x)),   φ_{s,s}(x) = x                                                    (eq-flow)
    ∂p_t/∂t + div(p_t v_t) = 0                                                                       (eq-continuity)
    d/dt log p_t(φ_{s,t}(x)) = −div v_t(φ_{s,t}(x))                                                  (eq-along-flow)

`v(t, x)` is the velocity at time t, shape (), and points x, shape (batch, dim); φ_{s,t} carries a point from time s to
time t, and t < s runs backwards. Where noise is added, dx = f(t, x) dt + g(t) dW, the same densities p_t are carried by

    v_t(x) = f(t, x) − ½ g(t)² ∇ log p_t(x).                                                   (eq-probability-flow)

Sources: Arnold, Ordinary Differential Equations, ch. 1 and 4; Chen et al. 2018, eq. (8); Song et al. 2021, eq. (13).
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from companion.numerics.along import integrate_along
from companion.numerics.autodiff import jacobian, value_and_divergence
from companion.numerics.ode import DormandPrince, integrate

VectorField = Callable[[Tensor, Tensor], Tensor]
LogProb = Callable[[Tensor], Tensor]
ADAPTIVE = DormandPrince(rtol=1e-6, atol=1e-6)


def flow(
    v: VectorField, x: Float[Tensor, "batch *shape"], *, s: float = 0.0, t: float = 1.0, solver: Any = None
) -> Float[Tensor, "batch *shape"]:
    """φ_{s,t}(x): the points that start at x at time s, at time t.

    Args:
        v: the field, v(t, x).
        x: starting points.
        s: starting time.
        t: final time; t < s runs backwards, and φ_{t,s} is the inverse of φ_{s,t}.
        solver: any solver of `companion.numerics.ode`; adaptive with tolerance 1e-6 unless given.
    """
    return integrate(v, x, solver or ADAPTIVE, t0=s, t1=t).final


@torch.no_grad()
def carry(
    v: VectorField,
    x: Float[Tensor, "batch dim"],
    log_prob: Float[Tensor, "batch"],
    *,
    s: float = 0.0,
    t: float = 1.0,
    solver: Any = None,
) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch"]]:
    """Points and the log of the density around them, carried together from time s to time t.

    The log-density is one more coordinate of the state; its velocity is −div v_t (eq-along-flow). No gradients are
    recorded.

    Args:
        v: the field, differentiable in x.
        x: points at time s.
        log_prob: log p_s at these points, in nats.
        s: starting time.
        t: final time.
        solver: as for `flow`.

    Returns:
        φ_{s,t}(x) and log p_t there.
    """

    def rates(time: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        velocity, spread = value_and_divergence(v, time, point)
        return velocity, -spread

    return integrate_along(rates, x, solver or ADAPTIVE, t0=s, t1=t, start=log_prob)


def log_prob_at(
    v: VectorField,
    x: Float[Tensor, "batch dim"],
    start: LogProb,
    *,
    s: float = 0.0,
    t: float = 1.0,
    solver: Any = None,
) -> Float[Tensor, "batch"]:
    """log p_t at any points x: go back to time s, read the density there, add what the way changed.

        log p_t(x) = log p_s(φ_{t,s}(x)) − ∫_s^t div v_r(φ_{t,r}(x)) dr

    Args:
        v: the field, differentiable in x.
        x: points at time t.
        start: log p_s, for a batch of points.
        s: time of the known density.
        t: time of the wanted one.
        solver: as for `flow`.
    """
    origin, change = carry(v, x, torch.zeros_like(x[:, 0]), s=t, t=s, solver=solver)
    return start(origin) - change


def continuity_residual(
    density: Callable[[Tensor, Tensor], Tensor],
    v: VectorField,
    t: Float[Tensor, ""],
    x: Float[Tensor, "batch dim"],
    *,
    h: float = 1e-4,
) -> Float[Tensor, "batch"]:
    """∂p/∂t + div(p v) at the points x, by central differences of width 2h: zero where v carries p.

    Args:
        density: p(t, x), not its logarithm.
        v: the field.
        t: the time.
        x: points, float64 for the default h.
        h: half the width of each difference; the error is of order h².
    """
    change = (density(t + h, x) - density(t - h, x)) / (2 * h)
    outflow = torch.zeros_like(change)
    for i, e in enumerate(h * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)):
        ahead, behind = density(t, x + e) * v(t, x + e)[:, i], density(t, x - e) * v(t, x - e)[:, i]
        outflow = outflow + (ahead - behind) / (2 * h)
    return change + outflow


def backward_euler(
    v: VectorField,
    x: Float[Tensor, "batch dim"],
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    steps: int,
    iterations: int = 3,
) -> Float[Tensor, "batch dim"]:
    """The implicit Euler method: x_{k+1} = x_k + h v(t_{k+1}, x_{k+1}), solved by Newton's iteration.

    Stable for every step size where the true flow contracts, so it is the cure for stiff fields. First order.

    Args:
        v: the field, differentiable in x.
        x: points at time t0.
        t0: starting time.
        t1: final time.
        steps: number of equal steps.
        iterations: of Newton a step; one is exact for a field that is affine in x.
    """
    if steps < 1:
        raise ValueError(f"backward_euler: received steps = {steps}; at least one step is needed")
    h = (t1 - t0) / steps
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    for k in range(steps):
        t, x_next = x.new_tensor(t0 + (k + 1) * h), x
        for _ in range(iterations):
            slope = jacobian(lambda point, t=t: v(t, point[None])[0], x_next)
            miss = x_next - x - h * v(t, x_next)
            x_next = x_next - torch.linalg.solve(identity - h * slope, miss[:, :, None])[:, :, 0]
        x = x_next
    return x


def probability_flow(
    drift: VectorField, diffusion: float | Callable[[Tensor], Tensor], score: VectorField
) -> VectorField:
    """The field v = f − ½ g² ∇ log p_t, which carries the densities p_t of dx = f dt + g dW without noise.

    Args:
        drift: f(t, x).
        diffusion: g, a number or g(t) of shape ().
        score: ∇ log p_t(x), as score(t, x).
    """

    def v(t: Tensor, x: Tensor) -> Tensor:
        g = diffusion(t) if callable(diffusion) else diffusion
        return drift(t, x) - 0.5 * g**2 * score(t, x)

    return v


def ornstein_uhlenbeck(t: Float[Tensor, "*times"]) -> tuple[Float[Tensor, "*times"], Float[Tensor, "*times"]]:
    """Mean factor α and standard deviation σ of dx = −x dt + √2 dW after time t: x_t = α x_0 + σ ε.

    α = e^{−t} and σ² = 1 − e^{−2t}: α² + σ² = 1, so this is the variance-preserving path on another clock.
    """
    return torch.exp(-t), torch.sqrt(-torch.expm1(-2 * t))


def spiral(pull: float = 0.3, turn: float = 1.0) -> VectorField:
    """The field −pull x + turn (−x₂, x₁) in the plane: circles for pull = 0, spirals to the origin for pull > 0."""

    def v(t: Tensor, x: Tensor) -> Tensor:
        return -pull * x + turn * torch.stack([-x[:, 1], x[:, 0]], dim=1)

    return v


def pendulum(t: Tensor, x: Float[Tensor, "batch 2"]) -> Float[Tensor, "batch 2"]:
    """The pendulum: x = (angle, angular velocity), v = (x₂, −sin x₁). Its divergence is zero everywhere."""
    return torch.stack([x[:, 1], -torch.sin(x[:, 0])], dim=1)
