r"""Gaussian probability paths from noise (t = 0) to data (t = 1), and the four ways to describe their fields.

    x_t = α_t x_1 + σ_t ε,    ε ~ N(0, I),    so that    p_t(x | x_1) = N(α_t x_1, σ_t² I)
    α_0 = 0, σ_0 = 1 (noise),    α_1 = 1, σ_1 = 0 (data)

    conditional velocity  u_t(x | x_1) = α̇_t x_1 + (σ̇_t/σ_t)(x − α_t x_1)
    conditional score     ∇ log p_t(x | x_1) = −(x − α_t x_1)/σ_t²

A model of the path may predict the velocity u, the score s, the noise ε̂ = E[ε | x_t = x] or the data
x̂_1 = E[x_1 | x_t = x]. At given (t, x) each one determines the others, conditionally and marginally, because

    x = α_t x̂_1 + σ_t ε̂,    u = α̇_t x̂_1 + σ̇_t ε̂,    s = −ε̂/σ_t

Solved for the wanted one, the divisions show where a description says nothing:

    wanted   \  given   velocity              score                   noise              data
    velocity            ·                     α_t ≠ 0                 α_t ≠ 0 (t > 0)    σ_t ≠ 0 (t < 1)
    score               σ_t ≠ 0 (t < 1)       ·                       σ_t ≠ 0            σ_t ≠ 0
    noise               always                always                  ·                  σ_t ≠ 0
    data                always                α_t ≠ 0                 α_t ≠ 0            ·

Where a division is by zero the conversion raises a ValueError; it never returns infinity or NaN. 'Always' holds
because the determinant σ_t α̇_t − σ̇_t α_t is positive on all of [0, 1].

Time t is a tensor of shape () or (batch,) with values in [0, 1]; it broadcasts over the axes behind the batch.

Sources: Lipman et al., Flow Matching Guide and Code, arXiv:2412.06264, section 4.8; Albergo et al., Stochastic
Interpolants, arXiv:2303.08797, section 2; Tong et al., arXiv:2302.00482, section 3.2 (the path with two end-points).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from companion.numerics._checks import broken

__all__ = ["CondOT", "GaussianPath", "LinearPath", "VariancePreserving", "expand_time"]

Time = Float[Tensor, "*time"]
Batch = Float[Tensor, "batch *dims"]


class GaussianPath(ABC):
    """A path x_t = α_t x_1 + σ_t ε. A subclass gives α, σ and their derivatives; everything else follows."""

    @abstractmethod
    def alpha(self, t: Time) -> Time:
        """α_t, the weight of the data; any shape of t."""

    @abstractmethod
    def sigma(self, t: Time) -> Time:
        """σ_t, the standard deviation of the noise; any shape of t."""

    @abstractmethod
    def d_alpha(self, t: Time) -> Time:
        """The time derivative of α_t."""

    @abstractmethod
    def d_sigma(self, t: Time) -> Time:
        """The time derivative of σ_t."""

    def sample(self, t: Time, x_1: Batch, eps: Batch) -> Batch:
        """A point of the path: x_t = α_t x_1 + σ_t ε.

        Args:
            t: time, of shape () or (batch,).
            x_1: data, (batch, ...).
            eps: standard normal noise, (batch, ...).
        """
        _check_same(f"{type(self).__name__}.sample", x_1=x_1, eps=eps)
        t = self._time("sample", t, x_1)
        return self.alpha(t) * x_1 + self.sigma(t) * eps

    def velocity(self, t: Time, x: Batch, x_1: Batch) -> Batch:
        """The conditional velocity u_t(x | x_1), for t < 1."""
        return self.velocity_from_data(t, x, x_1)

    def score(self, t: Time, x: Batch, x_1: Batch) -> Batch:
        """The conditional score ∇ log p_t(x | x_1), for t < 1."""
        return self.score_from_data(t, x, x_1)

    def velocity_from_data(self, t: Time, x: Batch, x_1: Batch) -> Batch:
        """u = α̇ x_1 + (σ̇/σ)(x − α x_1), for t < 1."""
        alpha, sigma, d_alpha, d_sigma = self._at("velocity_from_data", t, x, x_1, need="sigma")
        return d_alpha * x_1 + d_sigma / sigma * (x - alpha * x_1)

    def velocity_from_noise(self, t: Time, x: Batch, noise: Batch) -> Batch:
        """u = (α̇/α)(x − σ ε) + σ̇ ε, for t > 0."""
        alpha, sigma, d_alpha, d_sigma = self._at("velocity_from_noise", t, x, noise, need="alpha")
        return d_alpha / alpha * (x - sigma * noise) + d_sigma * noise

    def velocity_from_score(self, t: Time, x: Batch, score: Batch) -> Batch:
        """u = (α̇/α)(x + σ² s) − σ̇ σ s, for t > 0."""
        alpha, sigma, d_alpha, d_sigma = self._at("velocity_from_score", t, x, score, need="alpha")
        return d_alpha / alpha * (x + sigma**2 * score) - d_sigma * sigma * score

    def data_from_velocity(self, t: Time, x: Batch, velocity: Batch) -> Batch:
        """x_1 = (σ u − σ̇ x)/(σ α̇ − σ̇ α), at every t."""
        alpha, sigma, d_alpha, d_sigma = self._at("data_from_velocity", t, x, velocity)
        return (sigma * velocity - d_sigma * x) / (sigma * d_alpha - d_sigma * alpha)

    def data_from_noise(self, t: Time, x: Batch, noise: Batch) -> Batch:
        """x_1 = (x − σ ε)/α, for t > 0."""
        alpha, sigma, _, _ = self._at("data_from_noise", t, x, noise, need="alpha")
        return (x - sigma * noise) / alpha

    def data_from_score(self, t: Time, x: Batch, score: Batch) -> Batch:
        """x_1 = (x + σ² s)/α, for t > 0 (Tweedie's formula)."""
        alpha, sigma, _, _ = self._at("data_from_score", t, x, score, need="alpha")
        return (x + sigma**2 * score) / alpha

    def noise_from_velocity(self, t: Time, x: Batch, velocity: Batch) -> Batch:
        """ε = (α̇ x − α u)/(σ α̇ − σ̇ α), at every t."""
        alpha, sigma, d_alpha, d_sigma = self._at("noise_from_velocity", t, x, velocity)
        return (d_alpha * x - alpha * velocity) / (sigma * d_alpha - d_sigma * alpha)

    def noise_from_data(self, t: Time, x: Batch, x_1: Batch) -> Batch:
        """ε = (x − α x_1)/σ, for t < 1."""
        alpha, sigma, _, _ = self._at("noise_from_data", t, x, x_1, need="sigma")
        return (x - alpha * x_1) / sigma

    def noise_from_score(self, t: Time, x: Batch, score: Batch) -> Batch:
        """ε = −σ s, at every t."""
        _, sigma, _, _ = self._at("noise_from_score", t, x, score)
        return -sigma * score

    def score_from_velocity(self, t: Time, x: Batch, velocity: Batch) -> Batch:
        """s = (α u − α̇ x)/(σ (σ α̇ − σ̇ α)), for t < 1."""
        alpha, sigma, d_alpha, d_sigma = self._at("score_from_velocity", t, x, velocity, need="sigma")
        return (alpha * velocity - d_alpha * x) / (sigma * (sigma * d_alpha - d_sigma * alpha))

    def score_from_noise(self, t: Time, x: Batch, noise: Batch) -> Batch:
        """s = −ε/σ, for t < 1."""
        _, sigma, _, _ = self._at("score_from_noise", t, x, noise, need="sigma")
        return -noise / sigma

    def score_from_data(self, t: Time, x: Batch, x_1: Batch) -> Batch:
        """s = (α x_1 − x)/σ², for t < 1."""
        alpha, sigma, _, _ = self._at("score_from_data", t, x, x_1, need="sigma")
        return (alpha * x_1 - x) / sigma**2

    def _time(self, operation: str, t: Tensor, x: Tensor) -> Tensor:
        return expand_time(f"{type(self).__name__}.{operation}", t, x)

    def _at(self, operation: str, t: Tensor, x: Tensor, other: Tensor, need: str = "") -> tuple[Tensor, ...]:
        """α, σ, α̇, σ̇ at t, shaped to multiply x, after checking that the one the formula divides by is not zero."""
        _check_same(f"{type(self).__name__}.{operation}", x=x, given=other)
        t = self._time(operation, t, x)
        alpha, sigma = self.alpha(t), self.sigma(t)
        if need:
            self._check_division(operation, need, {"alpha": alpha, "sigma": sigma}[need], t)
        return alpha, sigma, self.d_alpha(t), self.d_sigma(t)

    def _check_division(self, operation: str, name: str, value: Tensor, t: Tensor) -> None:
        if broken(value.abs() > 4 * torch.finfo(value.dtype).eps):
            end, rule = ("0", "t > 0") if name == "alpha" else ("1", "t < 1")
            raise ValueError(
                f"{type(self).__name__}.{operation}: received t between {t.min().item():.6g} and {t.max().item():.6g}; "
                f"rule: {rule}, since the formula divides by {name}_t, which is 0 at t={end}: there the given quantity "
                "does not determine the wanted one"
            )


@dataclass(frozen=True)
class CondOT(GaussianPath):
    """The straight path α_t = t, σ_t = 1 − t: conditional optimal transport, u_t(x | x_1) = (x_1 − x)/(1 − t)."""

    def alpha(self, t: Time) -> Time:
        """α_t = t."""
        return t

    def sigma(self, t: Time) -> Time:
        """σ_t = 1 − t."""
        return 1 - t

    def d_alpha(self, t: Time) -> Time:
        """α̇_t = 1."""
        return torch.ones_like(t)

    def d_sigma(self, t: Time) -> Time:
        """σ̇_t = −1."""
        return -torch.ones_like(t)


@dataclass(frozen=True)
class VariancePreserving(GaussianPath):
    """The path α_t = sin(πt/2), σ_t = cos(πt/2): α² + σ² = 1 keeps the variance of data that has variance 1."""

    def alpha(self, t: Time) -> Time:
        """α_t = sin(πt/2)."""
        return torch.sin(math.pi / 2 * t)

    def sigma(self, t: Time) -> Time:
        """σ_t = cos(πt/2), written as sin(π(1 − t)/2), which is exactly 0 at t = 1."""
        return torch.sin(math.pi / 2 * (1 - t))

    def d_alpha(self, t: Time) -> Time:
        """α̇_t = (π/2) cos(πt/2)."""
        return math.pi / 2 * self.sigma(t)

    def d_sigma(self, t: Time) -> Time:
        """σ̇_t = −(π/2) sin(πt/2)."""
        return -math.pi / 2 * self.alpha(t)


@dataclass(frozen=True)
class LinearPath:
    """The path between two end-points, p_t(x | x_0, x_1) = N((1 − t) x_0 + t x_1, σ² I).

    The standard deviation is constant, so the conditional velocity is x_1 − x_0 at every t and x.

    Args:
        sigma: standard deviation of the path, 0 or more.
    """

    sigma: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise ValueError(f"LinearPath: received sigma={self.sigma}; rule: finite and not negative")

    def sample(self, t: Time, x_0: Batch, x_1: Batch, eps: Batch | None = None) -> Batch:
        """A point of the path: x_t = (1 − t) x_0 + t x_1 + σ ε.

        Args:
            t: time, of shape () or (batch,).
            x_0: starts, (batch, ...).
            x_1: ends, (batch, ...).
            eps: standard normal noise, (batch, ...); not needed if σ = 0.
        """
        _check_same("LinearPath.sample", x_0=x_0, x_1=x_1)
        x_t = torch.lerp(x_0, x_1, expand_time("LinearPath.sample", t, x_0).to(x_0))
        if self.sigma == 0:
            return x_t
        if eps is None:
            raise ValueError(f"LinearPath.sample: received no eps with sigma={self.sigma}; rule: noise shaped like x_0")
        _check_same("LinearPath.sample", x_0=x_0, eps=eps)
        return torch.add(x_t, eps, alpha=self.sigma)

    def velocity(self, x_0: Batch, x_1: Batch) -> Batch:
        """The conditional velocity u = x_1 − x_0."""
        _check_same("LinearPath.velocity", x_0=x_0, x_1=x_1)
        return x_1 - x_0


def expand_time(operation: str, t: Tensor, x: Tensor) -> Tensor:
    """Check a time and shape it to multiply x.

    Args:
        operation: named in the error.
        t: time, of shape () or (batch,).
        x: what it belongs to, (batch, ...).

    Returns:
        t of shape () or (batch, 1, ...).

    Raises:
        ValueError: t has another shape, or a value outside [0, 1].
    """
    if not isinstance(t, Tensor) or not t.is_floating_point() or t.shape not in ((), x.shape[:1]):
        received = f"shape {tuple(t.shape)} {t.dtype}" if isinstance(t, Tensor) else repr(t)
        raise ValueError(
            f"{operation}: received t of {received} for points {tuple(x.shape)}; "
            f"rule: a floating-point tensor of shape () or ({len(x)},)"
        )
    slack = 4 * torch.finfo(t.dtype).eps  # a solver's last time may be a rounding error too far
    if broken((t >= -slack) & (t <= 1 + slack)):
        raise ValueError(
            f"{operation}: received t between {t.min().item():.6g} and {t.max().item():.6g}; "
            "rule: from 0 (noise) to 1 (data)"
        )
    return t.reshape(t.shape + (1,) * (x.ndim - 1)) if t.ndim else t


def _check_same(operation: str, **tensors: Tensor) -> None:
    """All tensors share one shape and one floating-point dtype."""
    shapes = {tuple(x.shape) for x in tensors.values()}
    dtypes = {x.dtype for x in tensors.values()}
    if len(shapes) > 1 or len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
        received = ", ".join(f"{name} {tuple(x.shape)} {x.dtype}" for name, x in tensors.items())
        raise ValueError(f"{operation}: received {received}; rule: one shape and one floating-point dtype")
