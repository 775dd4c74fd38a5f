r"""Densities that know their own answers: sample, log p(x), score ∇ log p(x), and how noise changes them.

    p(x) = Σ_k w_k N(x; μ_k, Σ_k)                                                          the mixture
    p_t(x) = Σ_k w_k N(x; α_t μ_k, α_t² Σ_k + σ_t² I)                                      law of x_t = α_t x_1 + σ_t ε
    u_t(x) = Σ_k r_k(x) [α̇_t μ_k + (α̇_t α_t Σ_k + σ̇_t σ_t I)(α_t² Σ_k + σ_t² I)⁻¹ (x − α_t μ_k)]   its velocity

`x_1` is data (t = 1) and ε standard normal noise (t = 0); r_k(x) is the posterior probability of component k at
(t, x); α̇ is the derivative in time. The velocity is E[α̇_t x_1 + σ̇_t ε | x_t = x]: given the component, (x_1, ε, x_t) is
jointly Gaussian, and the conditional mean is linear. Source: Lipman et al. 2024, 'Flow matching guide and code',
section 4; the mixture is worked out here.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.device import randn
from companion.numerics.paths import GaussianPath, expand_time

Points = Float[Tensor, "batch dim"]
Time = Float[Tensor, "*time"]


class Density:
    """A probability density on points of `dim` numbers. Subclasses give `sample` and `log_prob`, in nats."""

    dim: int

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n dim"]:
        """`n` independent points."""
        raise NotImplementedError

    def log_prob(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        """log p(x) of each point, in nats; −∞ outside the support."""
        raise NotImplementedError

    def score(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """∇ log p(x) at each point; here by automatic differentiation, in closed form where a subclass has it."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.log_prob(x).sum(), x)[0]

    def _check(self, operation: str, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim or not x.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}.{operation}: received x of shape {tuple(x.shape)} and {x.dtype}; "
                f"it must be floating point of shape (batch, {self.dim})"
            )


class GaussianMixture(Density):
    """Σ_k w_k N(μ_k, Σ_k), with everything that noise does to it in closed form.

    The covariances are kept as Σ_k = Q_k diag(λ_k) Q_kᵀ: adding noise changes only the eigenvalues.

    Args:
        means: the μ_k, (k, dim).
        covariances: the Σ_k, (k, dim, dim), symmetric and positive definite.
        weights: the w_k, (k,), positive; they are normalized. None: all equal.
    """

    def __init__(
        self,
        means: Float[Tensor, "k dim"],
        covariances: Float[Tensor, "..."],
        weights: Float[Tensor, "..."] | None = None,
    ):
        weights = torch.ones(len(means)).to(means) if weights is None else weights
        _check_mixture(means, covariances, weights)
        self.means, self.covariances, self.weights = means, covariances, weights / weights.sum()
        self.eigenvalues, self.axes = torch.linalg.eigh(covariances)
        if (self.eigenvalues <= 0).any():
            raise ValueError(
                f"GaussianMixture: received a covariance with eigenvalue {self.eigenvalues.min():.3g}; "
                "each must be positive definite"
            )
        self.dim = means.shape[1]

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n dim"]:
        """`n` points: a component by its weight, then its Gaussian. Drawn on the CPU, then moved."""
        return self.sample_with_component(n, generator=generator)[0]

    def sample_with_component(
        self, n: int, *, generator: torch.Generator
    ) -> tuple[Float[Tensor, "n dim"], Int[Tensor, " n"]]:
        """`n` points and the number of the component that each comes from."""
        k = torch.multinomial(self.weights.cpu(), n, replacement=True, generator=generator).to(self.means.device)
        z = randn(n, self.dim, generator=generator, device=self.means.device, dtype=self.means.dtype)
        scale = self.axes * self.eigenvalues.sqrt()[:, None, :]
        return self.means[k] + torch.einsum("nij,nj->ni", scale[k], z), k

    def log_prob(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        """log Σ_k w_k N(x; μ_k, Σ_k)."""
        self._check("log_prob", x)
        one, zero = x.new_ones(()), x.new_zeros(())
        return self._noised(x, one, zero)[0].logsumexp(dim=1)

    def score(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Σ_k r_k(x) Σ_k⁻¹ (μ_k − x)."""
        self._check("score", x)
        one, zero = x.new_ones(()), x.new_zeros(())
        return self._posterior_sum(x, one, zero, lambda y, var, _: -y / var)

    def posterior(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch k"]:
        """r_k(x): the probability that component k made the point x."""
        self._check("posterior", x)
        return self._noised(x, x.new_ones(()), x.new_zeros(()))[0].softmax(dim=1)

    def at_time(self, path: GaussianPath, t: Time) -> "GaussianMixture":
        """The law of x_t = α_t x_1 + σ_t ε at one time `t`, of shape (): again a mixture."""
        if t.ndim:
            raise ValueError(f"GaussianMixture.at_time: received t of shape {tuple(t.shape)}; one time, of shape ()")
        return self.noised(*_columns("at_time", t, self.means, path.alpha, path.sigma))

    def noised(self, alpha: Tensor | float, sigma: Tensor | float) -> "GaussianMixture":
        """The law of α x + σ ε for two numbers α and σ: again a mixture."""
        alpha, sigma = (_number(name, value, self.means) for name, value in (("alpha", alpha), ("sigma", sigma)))
        identity = torch.eye(self.dim).to(self.means)
        return GaussianMixture(alpha * self.means, alpha**2 * self.covariances + sigma**2 * identity, self.weights)

    def noised_score(self, alpha: Time, sigma: Time, x: Points) -> Float[Tensor, "batch dim"]:
        """The score of the law of α x + σ ε at points `x`; α and σ are () or (batch,), one pair for each point."""
        self._check("noised_score", x)
        for name, value in (("alpha", alpha), ("sigma", sigma)):
            if value.shape not in ((), x.shape[:1]):
                raise ValueError(
                    f"GaussianMixture.noised_score: received {name} of shape {tuple(value.shape)} for x of shape "
                    f"{tuple(x.shape)}; it must be () or (batch,)"
                )
        alpha, sigma = (value.to(x).reshape(value.shape + (1, 1) * value.ndim) for value in (alpha, sigma))
        return self._posterior_sum(x, alpha, sigma, lambda y, var, _: -y / var)

    def marginal_log_joint(self, path: GaussianPath, t: Time, x: Points) -> Float[Tensor, "batch k"]:
        """log w_k + log N(x; α_t μ_k, α_t² Σ_k + σ_t² I): component and noisy point together, at `t`, () or (batch,).

        Its logsumexp over k is log p_t(x), its log_softmax the log-probability of each component given x_t = x.
        """
        self._check("marginal_log_joint", x)
        alpha, sigma = _columns("marginal_log_joint", t, x, path.alpha, path.sigma)
        return self._noised(x, alpha, sigma)[0]

    def marginal_score(self, path: GaussianPath, t: Time, x: Points) -> Float[Tensor, "batch dim"]:
        """∇ log p_t(x): the score of x_t at time `t`, () or (batch,)."""
        self._check("marginal_score", x)
        alpha, sigma = _columns("marginal_score", t, x, path.alpha, path.sigma)
        return self._posterior_sum(x, alpha, sigma, lambda y, var, _: -y / var)

    def marginal_velocity(self, path: GaussianPath, t: Time, x: Points) -> Float[Tensor, "batch dim"]:
        """u_t(x) = E[α̇_t x_1 + σ̇_t ε | x_t = x]: the field that flow matching learns, at time `t`, () or (batch,)."""
        self._check("marginal_velocity", x)
        alpha, sigma, d_alpha, d_sigma = _columns(
            "marginal_velocity", t, x, path.alpha, path.sigma, path.d_alpha, path.d_sigma
        )
        return self._posterior_sum(
            x, alpha, sigma, lambda y, var, lam: (d_alpha * alpha * lam + d_sigma * sigma) * y / var, d_alpha
        )

    def posterior_mean(self, path: GaussianPath, t: Time, x: Points) -> Float[Tensor, "batch dim"]:
        """E[x_1 | x_t = x]: the best guess of the data, at time `t`, () or (batch,)."""
        self._check("posterior_mean", x)
        alpha, sigma = _columns("posterior_mean", t, x, path.alpha, path.sigma)
        return self._posterior_sum(x, alpha, sigma, lambda y, var, lam: alpha * lam * y / var, x.new_ones(()))

    def _noised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Joint log-densities (batch, k) of component and point at (α, σ); coordinates of the point along each
        component's axes, variances there and eigenvalues (batch or 1, k, dim)."""
        means, axes = self.means.to(x), self.axes.to(x)
        eigenvalues, weights = self.eigenvalues.to(x), self.weights.to(x)
        y = torch.einsum("nkd,kde->nke", x[:, None] - alpha * means, axes)
        var = alpha**2 * eigenvalues + sigma**2
        log_joint = weights.log() - 0.5 * (y.square() / var + (2 * math.pi * var).log()).sum(dim=2)
        return log_joint, y, var, eigenvalues

    def _posterior_sum(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, along: Callable[..., Tensor], mean_factor: Tensor | None = None
    ) -> Tensor:
        """Σ_k r_k [mean_factor · μ_k + Q_k along(y, var, λ)] with the coordinates y of the point along the axes."""
        log_joint, y, var, eigenvalues = self._noised(x, alpha, sigma)
        r = log_joint.softmax(dim=1)
        total = torch.einsum("nk,nke,kde->nd", r, along(y, var, eigenvalues), self.axes.to(x))
        if mean_factor is not None:
            total = total + mean_factor.reshape(-1, 1) * (r @ self.means.to(x))
        return total


class Gaussian(GaussianMixture):
    """N(μ, Σ): a mixture of one.

    Args:
        mean: μ.
        covariance: Σ, symmetric and positive definite.
    """

    def __init__(self, mean: Float[Tensor, " dim"], covariance: Float[Tensor, "dim dim"]):
        super().__init__(mean[None], covariance[None])


def _columns(operation: str, t: Tensor, x: Tensor, *functions: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Functions of the time, shaped () or (batch, 1, 1) to meet (batch, k, dim)."""
    t = expand_time(operation, t, x[:, None]).to(x)
    return [f(t) for f in functions]


def _number(name: str, value: Tensor | float, like: Tensor) -> Tensor:
    """One finite number as a tensor."""
    value = torch.as_tensor(value).to(like)
    if value.ndim or not value.isfinite():
        raise ValueError(f"GaussianMixture.noised: received {name} = {value}; it must be one finite number")
    return value


def _check_mixture(means: Tensor, covariances: Tensor, weights: Tensor) -> None:
    k, dim = means.shape if means.ndim == 2 else (-1, -1)
    if k < 1 or covariances.shape != (k, dim, dim) or weights.shape != (k,):
        raise ValueError(
            f"GaussianMixture: received means {tuple(means.shape)}, covariances {tuple(covariances.shape)}, "
            f"weights {tuple(weights.shape)}; they must be (k, dim), (k, dim, dim), (k,)"
        )
    if not all(part.isfinite().all() for part in (means, covariances, weights)) or (weights <= 0).any():
        raise ValueError("GaussianMixture: received a number that is not finite, or a weight that is not positive")
    if not torch.allclose(covariances, covariances.mT, atol=1e-6):
        raise ValueError("GaussianMixture: received a covariance that is not symmetric")
