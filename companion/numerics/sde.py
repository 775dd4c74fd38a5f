r"""Euler–Maruyama for stochastic differential equations with additive noise.

    dX = f(t, X) dt + g(t) dW,    X_{k+1} = X_k + h f(t_k, X_k) + g(t_k) √|h| ξ_k,    ξ_k ~ N(0, I)

Symbols: f drift, g diffusion (a standard deviation per root of time), W Brownian motion, h step. The law of X_n is
wrong by O(h) (weak order 1), and since g does not depend on X so is each path (strong order 1).

Source: Kloeden and Platen, Numerical Solution of Stochastic Differential Equations (1992), section 10.2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from companion.numerics._checks import not_finite
from companion.numerics._random import normal_like

__all__ = ["SamplePaths", "euler_maruyama"]


@dataclass(frozen=True)
class SamplePaths:
    """Sample paths at the times that were kept.

    Attributes:
        t: times, (times,).
        x: states at these times, (times, batch, ...).
    """

    t: Float[Tensor, " times"]
    x: Float[Tensor, "times batch *dims"]

    @property
    def final(self) -> Tensor:
        """The states at the end, (batch, ...)."""
        return self.x[-1]


def euler_maruyama(
    drift: Callable[[Tensor, Tensor], Tensor],
    diffusion: float | Callable[[Tensor], Tensor | float],
    x: Float[Tensor, "batch *dims"],
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    steps: int,
    generator: torch.Generator,
    every: int | None = None,
) -> SamplePaths:
    """Draw sample paths of dX = f(t, X) dt + g(t) dW from t_0 to t_1.

    Args:
        drift: f(t, x); t has shape (), x and the value have shape (batch, ...).
        diffusion: g, a number or a function of t (of shape ()) that returns one.
        x: states at t_0, (batch, ...).
        t0: start.
        t1: end; t1 < t0 runs backwards (h is then negative, and the noise grows with |h|).
        steps: number of equal steps.
        generator: source of the noise, on the CPU.
        every: keep every so many steps, and both ends. Without it every step is kept.

    Returns:
        the paths; `final` holds the states at t_1.

    Raises:
        ValueError: the states, the drift or the numbers are not usable, or a path leaves the finite numbers.
    """
    _check_arguments(x, steps, every, t0, t1)
    h = (t1 - t0) / steps
    nodes = [t0 + k * h for k in range(steps)] + [t1]
    times = x.new_tensor(nodes).unbind()
    kept = [x]
    for k, t in enumerate(times[:-1], start=1):
        x = _step(drift, diffusion, t, x, h, generator)
        if k == steps or k % (every or 1) == 0:
            kept.append(x)
    _check_finite(x, nodes, steps)
    index = sorted({*range(0, steps, every or 1), steps})
    return SamplePaths(x.new_tensor([nodes[k] for k in index]), torch.stack(kept))


def _step(drift: Callable, diffusion: Callable | float, t: Tensor, x: Tensor, h: float, generator: torch.Generator):
    slope = drift(t, x)
    if slope.shape != x.shape:
        raise ValueError(
            f"euler_maruyama: received a drift that returns {tuple(slope.shape)} for states {tuple(x.shape)}; "
            "rule: the shape of the states"
        )
    g = diffusion(t) if callable(diffusion) else diffusion
    return x + h * slope + g * math.sqrt(abs(h)) * normal_like(x, generator)


def _check_arguments(x: Tensor, steps: int, every: int | None, t0: float, t1: float) -> None:
    if x.ndim == 0 or not x.is_floating_point() or not_finite(x):
        raise ValueError(
            f"euler_maruyama: received states of shape {tuple(x.shape)} {x.dtype}; "
            "rule: (batch, ...), floating point, every entry finite"
        )
    if steps < 1 or (every is not None and every < 1):
        raise ValueError(f"euler_maruyama: received steps={steps}, every={every}; rule: both 1 or more")
    if not (math.isfinite(t0) and math.isfinite(t1)):
        raise ValueError(f"euler_maruyama: received t0={t0}, t1={t1}; rule: finite times")


def _check_finite(x: Tensor, nodes: list[float], steps: int) -> None:
    if not_finite(x):
        raise ValueError(
            f"euler_maruyama: received a drift for which paths reach NaN or infinity before t={nodes[-1]:g} with "
            f"steps={steps}; rule: the step must be short against the drift's own time scale"
        )
