r"""A data set as a density: a point mass on each datum, and the exact field that flow matching would learn from it.

    p_t(x) = 1/n Σ_i N(x; α_t x_1^i, σ_t² I),     w_i(t, x) = softmax_i( −|x − α_t x_1^i|² / 2σ_t² )
    E[x_1 | x_t = x] = Σ_i w_i x_1^i,             u_t(x) = α̇_t x̂_1 + (σ̇_t/σ_t)(x − α_t x̂_1),   x̂_1 = E[x_1 | x_t = x]

The marginal velocity is the conditional velocities' average under the posterior w. It is the minimizer of the
flow-matching loss on this data set: whoever learns it perfectly samples the training data and nothing else.
Source: Lipman et al. 2023, eq. (8).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from companion.numerics._checks import broken
from companion.numerics.paths import GaussianPath, expand_time

Time = Float[Tensor, "*time"]


class Empirical:
    """Equal point masses on the rows of `points`, which may be points, images or anything of one shape.

    Args:
        points: the data x_1^i.
    """

    def __init__(self, points: Float[Tensor, "n *shape"]):
        if points.ndim < 2 or not len(points) or not points.isfinite().all():
            raise ValueError(
                f"Empirical: received points of shape {tuple(points.shape)}; they must be (n, …), at least "
                "one, and finite"
            )
        self.points = points
        self.dim = points[0].numel()

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n *shape"]:
        """`n` data, drawn with replacement."""
        index = torch.randint(len(self.points), (n,), generator=generator)
        return self.points[index.to(self.points.device)]

    def posterior(self, path: GaussianPath, t: Time, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch n"]:
        """w_i(t, x): the probability that x_t = x came from datum i, at time `t`, () or (batch,)."""
        self._check("posterior", x)
        alpha, sigma = _columns("posterior", t, x, path.alpha, path.sigma)
        if broken(sigma > 0):
            raise ValueError(
                "Empirical: received a time without noise (σ_t = 0); there a data set is a sum of point "
                "masses, its field has no value: stop at t < 1"
            )
        # In float64: the terms are of the order of |x|²/σ², and only their differences, of order one, matter.
        alpha, sigma, flat, data = (
            part.double() for part in (alpha, sigma, x.flatten(1), self.points.to(x).flatten(1))
        )
        exponent = (alpha * flat @ data.T - 0.5 * alpha**2 * data.square().sum(dim=1)) / sigma**2  # |x|² cancels
        return exponent.softmax(dim=1).to(x)

    def posterior_mean(self, path: GaussianPath, t: Time, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """E[x_1 | x_t = x]: the best guess of the datum, at time `t`, () or (batch,)."""
        return (self.posterior(path, t, x) @ self.points.to(x).flatten(1)).reshape(x.shape)

    def marginal_velocity(
        self, path: GaussianPath, t: Time, x: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """u_t(x) = E[α̇_t x_1 + σ̇_t ε | x_t = x], at time `t`, () or (batch,), where σ_t > 0."""
        mean = self.posterior_mean(path, t, x).flatten(1)
        alpha, sigma, d_alpha, d_sigma = _columns(
            "marginal_velocity", t, x, path.alpha, path.sigma, path.d_alpha, path.d_sigma
        )
        return (d_alpha * mean + d_sigma / sigma * (x.flatten(1) - alpha * mean)).reshape(x.shape)

    def marginal_score(self, path: GaussianPath, t: Time, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """∇ log p_t(x) = (α_t E[x_1 | x_t = x] − x) / σ_t², at time `t`, () or (batch,), where σ_t > 0."""
        mean = self.posterior_mean(path, t, x).flatten(1)
        alpha, sigma = _columns("marginal_score", t, x, path.alpha, path.sigma)
        return ((alpha * mean - x.flatten(1)) / sigma**2).reshape(x.shape)

    def _check(self, operation: str, x: Tensor) -> None:
        if x.shape[1:] != self.points.shape[1:]:
            raise ValueError(
                f"Empirical.{operation}: received x of shape {tuple(x.shape)}; the data have shape "
                f"{tuple(self.points.shape)}: all but the first number must agree"
            )


def _columns(operation: str, t: Tensor, x: Tensor, *functions: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Functions of the time, shaped () or (batch, 1) to meet (batch, dim)."""
    t = expand_time(f"Empirical.{operation}", t, x.flatten(1)).to(x)
    return [f(t) for f in functions]
