r"""Sampling a density that is known only by its score, or only up to a factor.

    x_{k+1} = x_k + h ∇ log p(x_k) + √(2h) ξ_k,    ξ_k ~ N(0, I)                                  (eq-langevin-step)

Langevin's step is Euler–Maruyama for dx = ∇ log p dt + √2 dW, whose stationary density is p. Step and noise belong
together: h with √(2h). At h > 0 the chain has another stationary density, wrong by O(h). For a normal density of
precision a its variance is

    V = 1 / (a (1 − ah/2)),   and there is none for h ≥ 2/a.                                (eq-langevin-stationary)

Metropolis and Hastings remove the bias: the step is only a proposal x', accepted with probability

    min(1, p(x') q(x | x') / (p(x) q(x' | x))),    q(x' | x) = N(x'; x + h ∇ log p(x), 2h I),

and the chain stays where it is otherwise. Every h then leaves p alone; a long step is rejected, not biased.

For an energy E at inverse temperature β, log p = −βE + const. and the score is −β∇E. Sources: Roberts and Tweedie,
Bernoulli 2 (1996) (both chains); Besag, J. R. Stat. Soc. B 56 (1994), p. 591 (the acceptance).
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion.numerics._checks import is_whole, not_finite
from companion.numerics._random import normal_like

__all__ = ["MetropolisResult", "langevin", "langevin_chain", "metropolis_langevin"]

Score = Callable[[Tensor], Tensor]
LogProb = Callable[[Tensor], Tensor]


def langevin(
    score: Score, x: Float[Tensor, "batch *dims"], *, h: float, steps: int, generator: torch.Generator
) -> Float[Tensor, "batch *dims"]:
    """Where the chains x ← x + h ∇ log p(x) + √(2h) ξ are after `steps` steps; biased by O(h).

    Args:
        score: ∇ log p, for a batch of points; gradients are switched off around it, so it switches on what it needs.
        x: starting points, from any density.
        h: step size.
        steps: number of steps.
        generator: source of the noise, on the CPU.

    Raises:
        ValueError: an argument is not usable, or a chain leaves the finite numbers; the message names the step.
    """
    if not is_whole(steps, least=0):
        raise ValueError(f"langevin: received steps = {steps}; rule: a whole number, 0 or more")
    chain = langevin_chain(score, x, h=h, generator=generator)
    for _ in range(steps):
        x = next(chain)
    return x.detach()


def langevin_chain(
    score: Score, x: Float[Tensor, "batch *dims"], *, h: float, generator: torch.Generator
) -> Iterator[Float[Tensor, "batch *dims"]]:
    """The states of `langevin` after 1, 2, 3, … steps, without end: take some with `itertools.islice`.

    Args:
        score: as for `langevin`.
        x: starting points.
        h: step size.
        generator: source of the noise, on the CPU.
    """
    _check_start("langevin", x, h)
    return _endless(score, x.detach(), h, generator)


def _endless(score: Score, x: Tensor, h: float, generator: torch.Generator) -> Iterator[Tensor]:
    step = 0
    while True:
        step += 1
        with torch.no_grad():  # inside the loop: a generator that waits must not switch off its caller's gradients
            x = x + h * _score_at("langevin", score, x) + math.sqrt(2 * h) * normal_like(x, generator)
        if not_finite(x):
            raise ValueError(
                f"langevin: received h = {h:g}, and a chain left the finite numbers at step {step}; "
                "rule: h < 2/a, where a is the largest curvature of −log p that the chain meets"
            )
        yield x


class MetropolisResult(NamedTuple):
    """What `metropolis_langevin` returns.

    Attributes:
        x: the states after the last step, (batch, ...).
        acceptance: the share of accepted proposals of each chain, (batch,).
    """

    x: Tensor
    acceptance: Tensor


def metropolis_langevin(
    log_prob: LogProb, x: Float[Tensor, "batch *dims"], *, h: float, steps: int, generator: torch.Generator
) -> MetropolisResult:
    """Metropolis-adjusted Langevin sampling: p is stationary for every step size h.

    Exact means: chains that start from p stay with p. From elsewhere they come near it in time, soonest for an
    acceptance of about one half; a chain whose proposals are all rejected stands still.

    Args:
        log_prob: log p up to a constant, (batch, ...) → (batch,), differentiable; −∞ outside the support, where
            proposals are rejected.
        x: starting points, with finite log p.
        h: step size.
        steps: number of proposals, 1 or more.
        generator: source of the noise and of the decisions, on the CPU.

    Raises:
        ValueError: an argument is not usable, log p is not finite at a start, or NaN or +∞ at a proposal, or its
            gradient NaN where it is finite.
    """
    if not is_whole(steps, least=1):
        raise ValueError(f"metropolis_langevin: received steps = {steps}; rule: a whole number, 1 or more")
    _check_start("metropolis_langevin", x, h)
    x = x.detach()
    value, slope = _value_and_score(log_prob, x)
    if not_finite(value) or not_finite(slope):
        raise ValueError("metropolis_langevin: received a start where log p or its gradient is not finite; move it")
    accepted = torch.zeros_like(value)
    for step in range(1, steps + 1):
        proposal = x + h * slope + math.sqrt(2 * h) * normal_like(x, generator)
        value_new, slope_new = _value_and_score(log_prob, proposal)
        _check_proposal(value_new, slope_new, step, h)
        forth, back = _log_move(x, proposal, slope, h), _log_move(proposal, x, slope_new, h)
        dice = torch.rand(len(x), generator=generator, dtype=x.dtype).to(x.device)
        # Outside the support the right side is −∞, or NaN where the slope is: no number is less than either.
        move = dice.log() < value_new - value + back - forth
        x, slope = (torch.where(_like(move, x), new, old) for new, old in ((proposal, x), (slope_new, slope)))
        value = torch.where(move, value_new, value)
        accepted = accepted + move
    return MetropolisResult(x, accepted / steps)


def _value_and_score(log_prob: LogProb, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        value = log_prob(point)
        if value.shape != x.shape[:1]:
            raise ValueError(
                f"metropolis_langevin: received a log_prob that returns {tuple(value.shape)} for states "
                f"{tuple(x.shape)}; rule: one number for each state, (batch,)"
            )
        if not value.requires_grad:  # a constant density
            return value.detach(), torch.zeros_like(x)
        (slope,) = torch.autograd.grad(value.sum(), point, materialize_grads=True)
    return value.detach(), slope


def _log_move(start: Tensor, end: Tensor, slope: Tensor, h: float) -> Tensor:
    """log q(end | start) up to its constant, which is the same for both ways."""
    return -(end - start - h * slope).reshape(len(start), -1).square().sum(1) / (4 * h)


def _like(move: Tensor, x: Tensor) -> Tensor:
    return move.reshape(-1, *[1] * (x.ndim - 1))


def _score_at(operation: str, score: Score, x: Tensor) -> Tensor:
    value = score(x)
    if value.shape != x.shape:
        raise ValueError(
            f"{operation}: received a score that returns {tuple(value.shape)} for states {tuple(x.shape)}; "
            "rule: the shape of the states"
        )
    return value


def _check_proposal(value: Tensor, slope: Tensor, step: int, h: float) -> None:
    lost = value.isfinite() & slope.isnan().reshape(len(slope), -1).any(1)
    if (value.isnan() | value.isposinf() | lost).any():
        raise ValueError(
            f"metropolis_langevin: received a log_prob that is NaN or +∞, or whose gradient is NaN, at a proposal of "
            f"step {step} (h = {h:g}); rule: a finite number with its gradient, or −∞ outside the support"
        )


def _check_start(operation: str, x: Tensor, h: float) -> None:
    if not (math.isfinite(h) and h > 0):
        raise ValueError(f"{operation}: received h = {h}; the step size must be positive")
    if x.ndim == 0 or not x.is_floating_point() or not_finite(x):
        raise ValueError(
            f"{operation}: received states of shape {tuple(x.shape)} {x.dtype}; "
            "rule: (batch, ...), floating point, every entry finite"
        )
