r"""Variational auto-encoders: a lower bound of log p(x) that a network which guesses the latents makes computable.

    p(x) = ∫ p(x|z) p(z) dz                                                                  the evidence
    log p(x) ≥ E_q[log p(x|z)] − KL(q(z|x) ‖ p(z))                                           (eq-elbo-jensen)
    log p(x) = ELBO(x) + KL(q(z|x) ‖ p(z|x))                                                 (eq-elbo-gap)
    KL(N(μ, diag e^ℓ) ‖ N(0, I)) = ½ Σ_j (e^ℓ_j − 1 − ℓ_j + μ_j²)                            (eq-gaussian-kl)
    z = μ(x) + e^{ℓ(x)/2} ε,   ε ~ N(0, I)                                                   (eq-reparameterization)
    L_k(x) = E log 1/k Σ_i p(x|z_i) p(z_i)/q(z_i|x)                                          (eq-iwae)

`x` is data, `z` the latent. The encoder gives q(z|x) = N(μ, diag e^ℓ): ℓ is the **log-variance**, never a standard
deviation. The decoder gives the parameters of the likelihood p(x|z). All terms are in nats, summed over the coordinates
of a datum, a number for each datum. Noise (`eps`) is an argument, so that a bound is a function and not a lottery.

Sources: Kingma and Welling 2014 (bound, reparameterization; appendix B for the divergence); Rezende et al. 2014; Burda
et al. 2016 (importance-weighted bound, active units); Higgins et al. 2017 (β); Tipping and Bishop 1999 (probabilistic
PCA); Lucas et al. 2019 (collapse in it); Rybkin et al. 2021 (the best decoder variance); Kingma et al. 2016 (free
bits); Sønderby et al. 2016 (levels of latents, top-down inference); Hoffman and Johnson 2016 (what the prior costs).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from companion.data.densities import Density, GaussianMixture
from companion.device import randn, randn_like
from companion.nn import MLP
from companion.numerics._checks import broken, not_finite

LOG_2PI = math.log(2 * math.pi)
Rows = Float[Tensor, "batch dim"]
Value = Float[Tensor, " batch"]


# --- Gaussians with a diagonal covariance -----------------------------------------------------------------------------


def gaussian_log_prob(
    x: Float[Tensor, "batch ..."], mean: Float[Tensor, "..."], log_variance: Float[Tensor, "..."]
) -> Value:
    """log N(x; μ, diag e^ℓ) in nats, summed over the coordinates of each datum (eq-gaussian-decoder).

    Args:
        x: Data, (batch, ...).
        mean: μ, broadcast against x.
        log_variance: ℓ, broadcast against x: one number, one for each pixel, or one for each entry.
    """
    terms = LOG_2PI + log_variance + (x - mean).square() * torch.exp(-log_variance)
    return -0.5 * terms.expand(x.shape).flatten(1).sum(1)


def gaussian_kl_terms(
    mean: Rows,
    log_variance: Float[Tensor, "..."],
    prior_mean: Rows | None = None,
    prior_log_variance: Rows | None = None,
) -> Rows:
    """KL(N(μ_j, e^ℓ_j) ‖ N(m_j, e^r_j)) of each coordinate: ½ (e^{ℓ−r} − 1 − (ℓ − r) + (μ − m)² e^{−r}).

    Args:
        mean: μ, (batch, dim).
        log_variance: ℓ, (batch, dim), finite.
        prior_mean: m; 0 unless given.
        prior_log_variance: r; 0 unless given.
    """
    _check_gaussian("gaussian_kl", mean, log_variance)
    ratio = log_variance if prior_log_variance is None else log_variance - prior_log_variance
    square = (mean if prior_mean is None else mean - prior_mean).square()
    if prior_log_variance is not None:
        _check_gaussian("gaussian_kl", prior_log_variance, prior_log_variance)
        square = square * torch.exp(-prior_log_variance)
    # expm1 keeps the digits of e^r − 1 − r near the prior, where plain exp loses them.
    return 0.5 * (torch.expm1(ratio) - ratio + square)


def gaussian_kl(mean: Rows, log_variance: Float[Tensor, "..."]) -> Value:
    """KL(N(μ, diag e^ℓ) ‖ N(0, I)) = ½ Σ_j (e^ℓ_j − 1 − ℓ_j + μ_j²) (eq-gaussian-kl).

    Args:
        mean: μ, (batch, dim).
        log_variance: ℓ, the logarithm of the variance, (batch, dim), finite.

    Raises:
        ValueError: If shapes differ or an entry is NaN or infinite: ℓ = −∞ is a variance of zero, infinitely far
            from the prior.
    """
    return gaussian_kl_terms(mean, log_variance).sum(1)


def reparameterize(mean: Rows, log_variance: Float[Tensor, "..."], eps: Float[Tensor, "..."]) -> Tensor:
    """z = μ + e^{ℓ/2} ε: a draw of N(μ, diag e^ℓ) as a differentiable function of μ and ℓ (eq-reparameterization).

    Args:
        mean: μ, (batch, dim).
        log_variance: ℓ, (batch, dim), finite.
        eps: Draws of N(0, I), (batch, dim) or (k, batch, dim).

    Returns:
        z, of the shape of eps.
    """
    _check_gaussian("reparameterize", mean, log_variance)
    _check_eps("reparameterize", eps, mean.shape)
    return mean + torch.exp(0.5 * log_variance) * eps


# --- Likelihoods: what the decoder's output means ---------------------------------------------------------------------


class GaussianLikelihood(nn.Module):
    """p(x|z) = N(x; decoder(z), diag e^s): the decoder's output is the mean (eq-gaussian-decoder).

        GaussianLikelihood(0.0)              s = 0 stays: variance 1
        GaussianLikelihood.learned(0.0)      s is one trainable number that starts at 0
        GaussianLikelihood(nn.Parameter(torch.zeros(1, 8, 8)))       a trainable s for each pixel

    Args:
        log_variance: s, a number or a tensor that broadcasts against a datum; trained if it is an `nn.Parameter`.
    """

    log_variance: Tensor

    def __init__(self, log_variance: float | Tensor = 0.0):
        super().__init__()
        if isinstance(log_variance, nn.Parameter):
            self.log_variance = log_variance
        else:
            fixed = log_variance if isinstance(log_variance, Tensor) else torch.tensor(float(log_variance))
            self.register_buffer("log_variance", fixed.detach())
        if not_finite(self.log_variance):
            rule = "finite, because a decoder without noise has no density"
            raise ValueError(f"GaussianLikelihood: received log_variance {log_variance}; rule: {rule}")

    @classmethod
    def learned(cls, log_variance: float = 0.0, *, shape: tuple[int, ...] = ()) -> "GaussianLikelihood":
        """A trainable log-variance of the given shape that starts at one number."""
        return cls(nn.Parameter(torch.full(shape, log_variance)))

    def log_prob(self, x: Float[Tensor, "batch ..."], parameters: Float[Tensor, "batch ..."]) -> Value:
        """log p(x|z) in nats, summed over the coordinates."""
        _check_alike("GaussianLikelihood", x, parameters)
        return gaussian_log_prob(x, parameters, self.log_variance)

    def mean(self, parameters: Tensor) -> Tensor:
        """E[x|z]."""
        return parameters

    def sample(self, parameters: Tensor, *, generator: torch.Generator) -> Tensor:
        """A draw of p(x|z): the mean and its noise."""
        return parameters + torch.exp(0.5 * self.log_variance) * randn_like(parameters, generator=generator)


class BernoulliLikelihood(nn.Module):
    """p(x|z) = Π_i π_i^{x_i} (1 − π_i)^{1 − x_i} with π = sigmoid(decoder(z)) (eq-bernoulli-decoder).

    A gray value 0 < x < 1 is allowed: what comes out is then the mean of log p(b|z) over coin flips b with probability
    x, a cross-entropy, and no longer the logarithm of a density of x.
    """

    def log_prob(self, x: Float[Tensor, "batch ..."], parameters: Float[Tensor, "batch ..."]) -> Value:
        """log p(x|z) in nats, summed over the coordinates; x in [0, 1]."""
        _check_alike("BernoulliLikelihood", x, parameters)
        if broken((x >= 0) & (x <= 1)):
            raise ValueError(
                f"BernoulliLikelihood: received x from {x.min():.3g} to {x.max():.3g}; rule: in [0, 1]: images in "
                "[−1, 1] are rescaled first, (x + 1)/2"
            )
        return -F.binary_cross_entropy_with_logits(parameters, x, reduction="none").flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """π, the probability of 1."""
        return torch.sigmoid(parameters)

    def sample(self, parameters: Tensor, *, generator: torch.Generator) -> Tensor:
        """Coin flips: 0 or 1."""
        p = torch.sigmoid(parameters)
        return torch.bernoulli(p.cpu(), generator=generator).to(p)


def optimal_log_variance(x: Float[Tensor, "batch ..."], mean: Float[Tensor, "batch ..."]) -> Float[Tensor, ""]:
    """log of the mean squared error: the one variance that makes log N(x; mean, e^s I) largest.

        s* = log 1/(ND) Σ_n ‖x_n − mean_n‖²                                           (eq-optimal-decoder-variance)

    Put in, the Gaussian term of a datum is −D/2 (log 2πe + s*): the decoder is then judged by the *logarithm* of its
    squared error, and no scale is left to choose.

    Raises:
        ValueError: If the reconstruction is perfect: the density would be infinite.
    """
    _check_alike("optimal_log_variance", x, mean)
    error = (x - mean).square().mean()
    if broken(error > 0):
        raise ValueError(f"optimal_log_variance: received a squared error of {error:.3g}; rule: positive and finite")
    return error.log()


# --- The model --------------------------------------------------------------------------------------------------------


class StandardNormal:
    """The prior N(0, I) on latents of `dim` numbers."""

    def __init__(self, dim: int):
        self.dim = dim

    def log_prob(self, z: Float[Tensor, "batch dim"]) -> Value:
        """log N(z; 0, I)."""
        return -0.5 * (z.square() + LOG_2PI).sum(1)

    def sample(self, n: int, *, generator: torch.Generator) -> Rows:
        """`n` draws."""
        return randn(n, self.dim, generator=generator)


class GaussianEncoder(nn.Module):
    """q(z|x) from one network: the first half of its output is the mean, the second the log-variance.

    Args:
        network: x (batch, ...) to (batch, 2 dim).
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Float[Tensor, "batch ..."]) -> tuple[Rows, Rows]:
        mean, log_variance = self.network(x).chunk(2, dim=1)
        return mean, log_variance


class VAE(nn.Module):
    """p(z), p(x|z) and the guess q(z|x), as three parts that are handed in.

    Args:
        encoder: x to (mean, log_variance) of q(z|x), each (batch, dim).
        decoder: z (batch, dim) to the parameters of the likelihood.
        likelihood: What these parameters mean: `GaussianLikelihood`, `BernoulliLikelihood`, or any module with their
            `log_prob(x, parameters)`, `mean(parameters)` and `sample(parameters, generator=…)`.
        dim: Length of z.
        prior: p(z): anything with `log_prob(z)` and `sample(n, generator=…)`. N(0, I) unless given; another one's
            divergence has no closed form and is estimated from the draw of z.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, likelihood: nn.Module, *, dim: int, prior: Density | None = None
    ):
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.dim, self.prior = dim, StandardNormal(dim) if prior is None else prior

    def encode(self, x: Float[Tensor, "batch ..."]) -> tuple[Rows, Rows]:
        """Mean and log-variance of q(z|x), checked."""
        if not_finite(x):
            raise ValueError("VAE: received x with NaN or infinity; rule: every entry is finite")
        mean, log_variance = self.encoder(x)
        if mean.shape != (len(x), self.dim):
            raise ValueError(f"VAE: received a mean {tuple(mean.shape)} from the encoder; rule: (batch, {self.dim})")
        _check_gaussian("VAE", mean, log_variance)
        return mean, log_variance

    def forward(self, z: Float[Tensor, "batch dim"]) -> Tensor:
        """E[x|z]: the picture of a latent. Generation needs no more: the encoder may be dropped."""
        return self.likelihood.mean(self.decoder(z))

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """`n` draws of the model p(x): z from the prior, then x from p(x|z), with the decoder's noise."""
        return self.likelihood.sample(self.decoder(self.sample_latent(n, generator=generator)), generator=generator)

    @torch.no_grad()
    def sample_mean(self, n: int, *, generator: torch.Generator) -> Tensor:
        """`n` draws of E[x|z], z from the prior: what is often shown as samples. They are smoother than p(x)."""
        return self(self.sample_latent(n, generator=generator))

    def sample_latent(self, n: int, *, generator: torch.Generator) -> Rows:
        """`n` draws of the prior, on the decoder's device and in its dtype."""
        z = self.prior.sample(n, generator=generator)
        return z.to(next(self.decoder.parameters(), z))

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "batch ..."]) -> Tensor:
        """E[x|z] at the mean of q(z|x)."""
        return self(self.encode(x)[0])


def mlp_vae(
    shape: tuple[int, ...],
    likelihood: nn.Module,
    *,
    dim: int,
    width: int = 128,
    depth: int = 2,
    activation: Callable[[], nn.Module] = nn.SiLU,
    prior: Density | None = None,
) -> VAE:
    """A VAE whose encoder and decoder are perceptrons, for data of any shape.

    Args:
        shape: Shape of a datum, such as (2,) or (1, 8, 8).
        likelihood: p(x|z).
        dim: Length of z.
        width: Units of a hidden layer.
        depth: Hidden layers of each network.
        activation: Makes an activation module.
        prior: p(z), N(0, I) unless given.
    """
    size = math.prod(shape)
    encoder = nn.Sequential(nn.Flatten(), MLP(size, 2 * dim, width=width, depth=depth, activation=activation))
    decoder = nn.Sequential(
        MLP(dim, size, width=width, depth=depth, activation=activation), nn.Unflatten(1, tuple(shape))
    )
    return VAE(GaussianEncoder(encoder), decoder, likelihood, dim=dim, prior=prior)


# --- Bounds -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Elbo:
    """The evidence lower bound of each datum, in its two parts.

    Attributes:
        reconstruction: log p(x|z) at the draw of z, (batch,).
        kl_terms: What each latent adds to KL(q(z|x) ‖ p(z)), (batch, dim); (batch, 1) where it is estimated.
        beta: The weight of the divergence in `value`.
    """

    reconstruction: Value
    kl_terms: Rows
    beta: float = 1.0

    @property
    def kl(self) -> Value:
        """KL(q(z|x) ‖ p(z)), (batch,)."""
        return self.kl_terms.sum(1)

    @property
    def value(self) -> Value:
        """reconstruction − β KL, (batch,): with β ≥ 1 its mean over the noise bounds log p(x) from below."""
        return self.reconstruction - self.beta * self.kl


def elbo(model: VAE, x: Float[Tensor, "batch ..."], eps: Float[Tensor, "..."], *, beta: float = 1.0) -> Elbo:
    """E_q[log p(x|z)] − β KL(q(z|x) ‖ p(z)) with one draw of z for each datum (eq-elbo-jensen, for β = 1).

    Train on `-elbo(model, x, eps).value.mean()`.

    Args:
        model: A VAE.
        x: Data, (batch, ...).
        eps: Draws of N(0, I), (batch, dim).
        beta: Weight of the divergence, finite and not negative.
    """
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"elbo: received beta={beta}; rule: finite and not negative")
    mean, log_variance = model.encode(x)
    _check_eps("elbo", eps, mean.shape, samples=False)
    z = reparameterize(mean, log_variance, eps)
    reconstruction = model.likelihood.log_prob(x, model.decoder(z))
    if isinstance(model.prior, StandardNormal):
        terms = gaussian_kl_terms(mean, log_variance)
    else:
        terms = (gaussian_log_prob(z, mean, log_variance) - model.prior.log_prob(z))[:, None]
    return Elbo(reconstruction, terms, beta)


def log_weights(model: VAE, x: Float[Tensor, "batch ..."], eps: Float[Tensor, "..."]) -> Float[Tensor, "k batch"]:
    """log w = log p(x|z) + log p(z) − log q(z|x) of k draws of z for each datum.

    The mean of w over q is p(x), exactly and for any q: importance sampling. The mean of log w is the ELBO.

    Args:
        model: A VAE.
        x: Data, (batch, ...).
        eps: Draws of N(0, I), (k, batch, dim), k ≥ 1.
    """
    mean, log_variance = model.encode(x)
    _check_eps("log_weights", eps, mean.shape, samples=True)
    k = len(eps)
    z = reparameterize(mean, log_variance, eps).flatten(0, 1)
    many = x.expand(k, *x.shape).flatten(0, 1)
    log_q = -0.5 * (LOG_2PI + log_variance + eps.square()).sum(2).flatten()
    return (model.likelihood.log_prob(many, model.decoder(z)) + model.prior.log_prob(z) - log_q).reshape(k, -1)


def iwae_bound(model: VAE, x: Float[Tensor, "batch ..."], eps: Float[Tensor, "..."]) -> Value:
    """log 1/k Σ_i w_i (eq-iwae): k = 1 is the ELBO, larger k is tighter, k → ∞ is log p(x).

    Args:
        model: A VAE.
        x: Data, (batch, ...).
        eps: Draws of N(0, I), (k, batch, dim), k ≥ 1.
    """
    return log_weights(model, x, eps).logsumexp(0) - math.log(max(1, len(eps)))


class OnGrid(NamedTuple):
    """What quadrature over the latents gives.

    Attributes:
        log_evidence: log p(x), (batch,).
        log_posterior: log p(z|x) at the points of the grid, (batch, points).
    """

    log_evidence: Value
    log_posterior: Float[Tensor, "batch points"]


def on_grid(model: VAE, x: Float[Tensor, "batch ..."], z: Float[Tensor, "points dim"], *, cell: float) -> OnGrid:
    """Evidence and posterior by the midpoint rule on a regular grid of latents: for one or two latents, exact enough.

    Args:
        model: A VAE.
        x: Data, (batch, ...).
        z: The grid, (points, dim), wide enough to hold the mass of prior and posterior.
        cell: Length (area) of a cell.
    """
    batch, points = len(x), len(z)
    parameters = model.decoder(z)
    many = x[:, None].expand(batch, points, *x.shape[1:]).flatten(0, 1)
    every = parameters.expand(batch, *parameters.shape).flatten(0, 1)
    joint = model.likelihood.log_prob(many, every).reshape(batch, points) + model.prior.log_prob(z)
    evidence = joint.logsumexp(1) + math.log(cell)
    return OnGrid(evidence, joint - evidence[:, None])


# --- Two ways to differentiate an expectation -------------------------------------------------------------------------


class GradientSamples(NamedTuple):
    """Unbiased estimates of the gradient of E_{z ~ N(μ, diag e^ℓ)} f(z), one for each draw: average them.

    Attributes:
        mean: with respect to μ, (n, dim).
        log_variance: with respect to ℓ, (n, dim).
    """

    mean: Float[Tensor, "n dim"]
    log_variance: Float[Tensor, "n dim"]


def reparameterized_gradient(
    f: Callable[[Tensor], Tensor],
    mean: Float[Tensor, " dim"],
    log_variance: Float[Tensor, " dim"],
    eps: Float[Tensor, "..."],
) -> GradientSamples:
    """∇f(μ + e^{ℓ/2} ε): the gradient goes through the draw (eq-reparameterization). f must be differentiable.

    Args:
        f: (n, dim) to (n,), each row on its own.
        mean: μ, (dim,).
        log_variance: ℓ, (dim,).
        eps: Draws of N(0, I), (n, dim).
    """
    z = _draw("reparameterized_gradient", mean, log_variance, eps)
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        slope = torch.autograd.grad(f(z).sum(), z)[0]
    return GradientSamples(slope, 0.5 * slope * torch.exp(0.5 * log_variance) * eps)


@torch.no_grad()
def score_function_gradient(
    f: Callable[[Tensor], Tensor],
    mean: Float[Tensor, " dim"],
    log_variance: Float[Tensor, " dim"],
    eps: Float[Tensor, "..."],
    *,
    baseline: float = 0.0,
) -> GradientSamples:
    """(f(z) − b) ∇ log q(z): needs no derivative of f, and pays in variance (eq-score-function-gradient).

    Args:
        f: (n, dim) to (n,), each row on its own.
        mean: μ, (dim,).
        log_variance: ℓ, (dim,).
        eps: Draws of N(0, I), (n, dim).
        baseline: b, any constant: E ∇ log q = 0, so it changes the variance and not the mean.
    """
    z = _draw("score_function_gradient", mean, log_variance, eps)
    value = (f(z) - baseline)[:, None]
    return GradientSamples(value * eps * torch.exp(-0.5 * log_variance), 0.5 * value * (eps.square() - 1))


def _draw(operation: str, mean: Tensor, log_variance: Tensor, eps: Tensor) -> Tensor:
    _check_gaussian(operation, mean[None], log_variance[None])
    if eps.ndim != 2 or eps.shape[1:] != mean.shape or not len(eps):
        raise ValueError(
            f"{operation}: received eps {tuple(eps.shape)} for a mean {tuple(mean.shape)}; rule: (n, dim), n ≥ 1"
        )
    return mean + torch.exp(0.5 * log_variance) * eps


# --- Posterior collapse: diagnosis and cures --------------------------------------------------------------------------


class Activity(NamedTuple):
    """How much the data move each latent.

    Attributes:
        variance: Var_x of the mean of q(z_j|x), (dim,): 0 where z_j ignores x (Burda et al. 2016, appendix C).
        kl: Mean over x of KL(q(z_j|x) ‖ N(0, 1)) in nats, (dim,).
        active: variance > threshold, (dim,).
    """

    variance: Float[Tensor, " dim"]
    kl: Float[Tensor, " dim"]
    active: Bool[Tensor, " dim"]


@torch.no_grad()
def active_units(model: VAE, x: Float[Tensor, "batch ..."], *, threshold: float = 0.01) -> Activity:
    """Which latents carry information about x; the others have collapsed onto the prior.

    Args:
        model: A VAE.
        x: Data, (batch, ...), at least two.
        threshold: Of the variance of the means.
    """
    if len(x) < 2:
        raise ValueError(f"active_units: received {len(x)} data; rule: at least two, for a variance")
    mean, log_variance = model.encode(x)
    variance = mean.var(0)
    return Activity(variance, gaussian_kl_terms(mean, log_variance).mean(0), variance > threshold)


def free_bits(kl_terms: Rows, *, floor: float) -> Float[Tensor, ""]:
    """Σ_j max(floor, mean over the batch of KL_j): below `floor` nats a latent is free, and not pulled to the prior.

    Train on `free_bits(bound.kl_terms, floor=…) - bound.reconstruction.mean()` (Kingma et al. 2016, appendix C.8).

    Args:
        kl_terms: From `elbo`, (batch, dim).
        floor: λ in nats for each latent, finite and not negative.
    """
    if not (math.isfinite(floor) and floor >= 0):
        raise ValueError(f"free_bits: received floor={floor}; rule: finite and not negative")
    return kl_terms.mean(0).clamp(min=floor).sum()


def kl_warmup(step: int, *, steps: int) -> float:
    """β of a training step that rises linearly from 0 to 1 over `steps` steps, then stays at 1."""
    if steps < 1 or step < 0:
        raise ValueError(f"kl_warmup: received step={step}, steps={steps}; rule: step ≥ 0, steps ≥ 1")
    return min(1.0, step / steps)


# --- A prior that is fitted afterwards --------------------------------------------------------------------------------


def mixture_prior(
    model: VAE, x: Float[Tensor, "batch ..."], *, components: int, draws: int = 8, generator: torch.Generator
) -> GaussianMixture:
    """A Gaussian mixture fitted by EM to the latents that the encoder really uses: draws of q(z) = mean_x q(z|x).

    The mean divergence of a trained model splits into I(x; z) + KL(q(z) ‖ p(z)) (Hoffman and Johnson 2016). The second
    part is the prior's fault: draws of p(z) fall into holes that no datum has visited. `model.prior = mixture_prior(…)`
    closes the holes; encoder and decoder stay as they are.

    Args:
        model: A trained VAE.
        x: Training data, (batch, ...).
        components: Gaussians with full covariances.
        draws: Latents drawn for each datum.
        generator: Draws them, and starts EM.
    """
    from sklearn.mixture import GaussianMixture as Fit

    with torch.no_grad():
        mean, log_variance = model.encode(x)
        z = torch.cat([reparameterize(mean, log_variance, randn_like(mean, generator=generator)) for _ in range(draws)])
    if not 1 <= components <= len(z):
        raise ValueError(f"mixture_prior: received components={components} for {len(z)} latents; rule: 1 ≤ components")
    seed = int(torch.randint(2**31, (), generator=generator))
    fit = Fit(components, reg_covar=1e-4, random_state=seed).fit(z.double().cpu().numpy())
    return GaussianMixture(*(torch.from_numpy(part).to(z) for part in (fit.means_, fit.covariances_, fit.weights_)))


# --- The linear VAE, where everything is known ------------------------------------------------------------------------


class LinearGaussian(Density):
    """Probabilistic PCA: z ~ N(0, I), x | z ~ N(Wz + b, σ² I), with evidence and posterior in closed form.

        p(x) = N(b, WWᵀ + σ² I)                                                                     (eq-ppca-evidence)
        p(z|x) = N(M⁻¹ Wᵀ(x − b), σ² M⁻¹),   M = WᵀW + σ² I                                        (eq-ppca-posterior)

    Args:
        weight: W, (dim_x, dim_z).
        bias: b, (dim_x,).
        variance: σ² > 0, ().
    """

    def __init__(
        self, weight: Float[Tensor, "dim_x dim_z"], bias: Float[Tensor, " dim_x"], variance: Float[Tensor, ""]
    ):
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or variance.ndim:
            received = f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)}, variance {tuple(variance.shape)}"
            raise ValueError(f"LinearGaussian: received {received}; rule: (dim_x, dim_z), (dim_x,), ()")
        if not_finite(weight) or not_finite(bias) or not_finite(variance) or broken(variance > 0):
            raise ValueError(f"LinearGaussian: received variance {variance:.3g}; rule: finite numbers, variance > 0")
        self.weight, self.bias, self.variance = weight, bias, variance
        self.dim, self.dim_z = weight.shape

    @classmethod
    def fit(
        cls, x: Float[Tensor, "n dim_x"], dim_z: int, *, variance: float | None = None, beta: float = 1.0
    ) -> "LinearGaussian":
        """The maximum of the likelihood (of the β-ELBO, for β ≠ 1) from the eigenvectors of the covariance.

            W = U (Λ − βσ² I)₊^½,   σ² = mean of the discarded eigenvalues unless it is given

        A direction whose variance λ does not exceed βσ² gets the weight 0: its latent has collapsed. The rotation that
        the likelihood leaves free is set to I, so that WᵀW is diagonal. Source: Tipping and Bishop 1999, eqs. (7), (8).

        Args:
            x: Data, (n, dim_x).
            dim_z: Length of z, less than dim_x.
            variance: σ², if it is not to be fitted.
            beta: Weight of the divergence; needs a given variance if it is not 1.
        """
        if x.ndim != 2 or not 1 <= dim_z < x.shape[1] or len(x) < 2:
            raise ValueError(
                f"LinearGaussian.fit: received x {tuple(x.shape)}, dim_z={dim_z}; rule: (n ≥ 2, dim_x), "
                "1 ≤ dim_z < dim_x"
            )
        if not (math.isfinite(beta) and beta >= 0) or (beta != 1 and variance is None):
            raise ValueError(f"LinearGaussian.fit: received beta={beta}; rule: finite, ≥ 0, and 1 where σ² is fitted")
        eigenvalues, vectors = torch.linalg.eigh(x.T.cov(correction=0))
        rest, largest = eigenvalues[:-dim_z], eigenvalues[-dim_z:].flip(0)
        sigma2 = rest.mean() if variance is None else torch.as_tensor(variance).to(x)
        scale = (largest - beta * sigma2).clamp(min=0).sqrt()
        return cls(vectors[:, -dim_z:].flip(1) * scale, x.mean(0), sigma2)

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n dim_x"]:
        """`n` draws of p(x), through z."""
        place = {"generator": generator, "dtype": self.weight.dtype, "device": self.weight.device}
        z, noise = randn(n, self.dim_z, **place), randn(n, self.dim, **place)
        return z @ self.weight.T + self.bias + self.variance.sqrt() * noise

    def log_prob(self, x: Float[Tensor, "batch dim_x"]) -> Value:
        """log p(x) = log N(x; b, WWᵀ + σ² I) (eq-ppca-evidence), with matrices of dim_z × dim_z only."""
        self._check("log_prob", x)
        mean, _ = self.posterior(x)
        # det(WWᵀ + σ²I) = σ^{2(D−d)} det M, and the quadratic form is ridge regression's least value.
        square = (x - self.bias - mean @ self.weight.T).square().sum(1) / self.variance + mean.square().sum(1)
        log_det = (self.dim - self.dim_z) * self.variance.log() + torch.logdet(self._m)
        return -0.5 * (square + log_det + self.dim * LOG_2PI)

    def posterior(self, x: Float[Tensor, "batch dim_x"]) -> tuple[Float[Tensor, "batch dim_z"], Tensor]:
        """Mean (batch, dim_z) and covariance (dim_z, dim_z) of p(z|x) (eq-ppca-posterior): one covariance for all x."""
        self._check("posterior", x)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self._m))
        return (x - self.bias) @ self.weight @ inverse, self.variance * inverse

    def elbo(
        self, x: Float[Tensor, "batch dim_x"], mean: Float[Tensor, "batch dim_z"], covariance: Float[Tensor, "..."]
    ) -> Value:
        """The ELBO of q(z|x) = N(mean, covariance) without any sampling.

            log N(x; W mean + b, σ² I) − tr(WᵀW covariance)/2σ² − KL(q ‖ N(0, I))

        Args:
            x: Data, (batch, dim_x).
            mean: (batch, dim_z).
            covariance: (dim_z, dim_z), positive definite, or (dim_z,): the variances of a diagonal q.
        """
        self._check("elbo", x)
        covariance = torch.diag(covariance) if covariance.ndim == 1 else covariance
        error = (x - self.bias - mean @ self.weight.T).square().sum(1) + (self._gram * covariance).sum()
        reconstruction = -0.5 * (error / self.variance + self.dim * (LOG_2PI + self.variance.log()))
        log_det = 2 * torch.linalg.cholesky(covariance).diagonal().log().sum()
        return reconstruction - 0.5 * (covariance.trace() + mean.square().sum(1) - self.dim_z - log_det)

    def diagonal_posterior(
        self, x: Float[Tensor, "batch dim_x"]
    ) -> tuple[Float[Tensor, "batch dim_z"], Float[Tensor, " dim_z"]]:
        """Mean and variances of the diagonal Gaussian with the best ELBO: the right mean, and σ²/M_jj."""
        return self.posterior(x)[0], self.variance / self._m.diagonal()

    def diagonal_gap(self) -> Float[Tensor, ""]:
        """log p(x) minus the best ELBO of a diagonal q: ½ (Σ_j log M_jj − log det M), for every x alike.

        It is KL(q ‖ p(z|x)), never negative (Hadamard's inequality), and 0 exactly where WᵀW is diagonal.
        """
        return 0.5 * (self._m.diagonal().log().sum() - torch.logdet(self._m))

    def to_vae(self) -> VAE:
        """The same as a `VAE`, with a linear encoder that gives the best diagonal q."""
        projection = torch.cholesky_solve(self.weight.T, torch.linalg.cholesky(self._m))  # M⁻¹ Wᵀ
        log_variance = (self.variance / self._m.diagonal()).log()
        encoder = _LinearEncoder(_linear(projection, -projection @ self.bias), log_variance)
        likelihood = GaussianLikelihood(self.variance.log()).to(self.weight)
        return VAE(encoder, _linear(self.weight, self.bias), likelihood, dim=self.dim_z)

    @property
    def _gram(self) -> Tensor:
        return self.weight.T @ self.weight

    @property
    def _m(self) -> Tensor:
        return self._gram + self.variance * torch.eye(self.dim_z).to(self.weight)


# --- Two levels of latents --------------------------------------------------------------------------------------------


class HierarchicalElbo(NamedTuple):
    """The bound of a chain z_2 → z_1 → x in its three parts, (batch,) each.

    Attributes:
        reconstruction: log p(x|z_1).
        kl_1: KL(q(z_1|z_2, x) ‖ p(z_1|z_2)).
        kl_2: KL(q(z_2|x) ‖ N(0, I)).
    """

    reconstruction: Value
    kl_1: Value
    kl_2: Value

    @property
    def value(self) -> Value:
        """reconstruction − kl_1 − kl_2: its mean over the noise bounds log p(x) from below."""
        return self.reconstruction - self.kl_1 - self.kl_2


class HierarchicalVAE(nn.Module):
    """p(z_2) p(z_1|z_2) p(x|z_1), with inference from the top down: q(z_2|x), then q(z_1|z_2, x).

    Args:
        encoder_2: x to (mean, log_variance) of q(z_2|x).
        encoder_1: (x, z_2) to (mean, log_variance) of q(z_1|z_2, x).
        prior_1: z_2 to (mean, log_variance) of p(z_1|z_2).
        decoder: z_1 to the parameters of the likelihood.
        likelihood: p(x|z_1).
        dims: Lengths of z_1 and z_2.
    """

    def __init__(
        self,
        encoder_2: nn.Module,
        encoder_1: nn.Module,
        prior_1: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        *,
        dims: tuple[int, int],
    ):
        super().__init__()
        self.encoder_2, self.encoder_1, self.prior_1 = encoder_2, encoder_1, prior_1
        self.decoder, self.likelihood, self.dims = decoder, likelihood, tuple(dims)

    def forward(self, z_2: Rows, eps_1: Float[Tensor, "batch dim_1"]) -> Tensor:
        """E[x|z_1] with z_1 drawn from p(z_1|z_2) by means of eps_1."""
        return self.likelihood.mean(self.decoder(reparameterize(*self.prior_1(z_2), eps_1)))

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """`n` draws of p(x), level by level, with the decoder's noise."""
        like = next(self.decoder.parameters(), None)
        place = {} if like is None else {"dtype": like.dtype, "device": like.device}
        z_2, eps_1 = (randn(n, dim, generator=generator, **place) for dim in reversed(self.dims))
        return self.likelihood.sample(self.decoder(reparameterize(*self.prior_1(z_2), eps_1)), generator=generator)


def hierarchical_elbo(
    model: HierarchicalVAE, x: Float[Tensor, "batch ..."], eps_1: Float[Tensor, "..."], eps_2: Float[Tensor, "..."]
) -> HierarchicalElbo:
    """The bound of two levels with one draw of each latent (eq-hierarchical-bound).

        log p(x) ≥ E[log p(x|z_1)] − E KL(q(z_1|z_2, x) ‖ p(z_1|z_2)) − KL(q(z_2|x) ‖ p(z_2))

    A diffusion model is this bound with many levels, all as large as x, and a q that nobody has to learn.

    Args:
        model: A hierarchical VAE.
        x: Data, (batch, ...).
        eps_1: Draws of N(0, I) for z_1, (batch, dim_1).
        eps_2: Draws of N(0, I) for z_2, (batch, dim_2).
    """
    if not_finite(x):
        raise ValueError("hierarchical_elbo: received x with NaN or infinity; rule: every entry is finite")
    q_2 = model.encoder_2(x)
    _check_eps("hierarchical_elbo", eps_2, q_2[0].shape, samples=False)
    z_2 = reparameterize(*q_2, eps_2)
    q_1 = model.encoder_1(x, z_2)
    _check_eps("hierarchical_elbo", eps_1, q_1[0].shape, samples=False)
    z_1 = reparameterize(*q_1, eps_1)
    return HierarchicalElbo(
        model.likelihood.log_prob(x, model.decoder(z_1)),
        gaussian_kl_terms(*q_1, *model.prior_1(z_2)).sum(1),
        gaussian_kl(*q_2),
    )


class _LinearEncoder(nn.Module):
    """x ↦ (A x + a, ℓ) with one log-variance for all x."""

    def __init__(self, linear: nn.Linear, log_variance: Tensor):
        super().__init__()
        self.linear, self.log_variance = linear, nn.Parameter(log_variance.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.linear(x)
        return mean, self.log_variance.expand_as(mean)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


# --- Checks -----------------------------------------------------------------------------------------------------------


def _check_gaussian(operation: str, mean: Tensor, log_variance: Tensor) -> None:
    if mean.shape != log_variance.shape:
        raise ValueError(
            f"{operation}: received a mean {tuple(mean.shape)} and a log-variance {tuple(log_variance.shape)}; "
            "rule: the same shape, (batch, dim)"
        )
    if not_finite(mean) or not_finite(log_variance):
        raise ValueError(
            f"{operation}: received a mean or a log-variance with NaN or infinity; rule: every entry is finite: a "
            "log-variance of −∞ is a variance of zero, a point that is infinitely far from the prior"
        )


def _check_eps(operation: str, eps: Tensor, shape: tuple[int, ...], *, samples: bool | None = None) -> None:
    """eps is (k, *shape), k ≥ 1, where `samples`, else `shape`; either where that is None."""
    single, several = eps.shape == shape, eps.ndim == 3 and eps.shape[1:] == shape and len(eps) >= 1
    if not {True: several, False: single, None: single or several}[samples]:
        rule = {True: "(k, batch, dim), k ≥ 1", False: "(batch, dim)", None: "(batch, dim) or (k, batch, dim), k ≥ 1"}
        raise ValueError(
            f"{operation}: received eps {tuple(eps.shape)} for a mean {tuple(shape)}; rule: {rule[samples]}"
        )


def _check_alike(operation: str, x: Tensor, parameters: Tensor) -> None:
    if x.shape != parameters.shape:
        raise ValueError(
            f"{operation}: received x {tuple(x.shape)} and parameters {tuple(parameters.shape)}; rule: the same shape"
        )
    if not_finite(x):
        raise ValueError(f"{operation}: received x with NaN or infinity; rule: every entry is finite")
