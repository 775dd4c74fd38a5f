r"""Diffusion: add noise to data in T small steps, and learn to take each step back.

    q(x_t | x_{t−1}) = N(√(1 − β_t) x_{t−1}, β_t I)                                                  (eq-forward-step)
    q(x_{t−1} | x_t, x_0) = N(μ̃_t(x_t, x_0), β̃_t I)                                                (eq-ddpm-posterior)
    p(x_{t−1} | x_t) = N(μ̃_t(x_t, x̂_0), σ_t² I),   x̂_0 = (x_t − √(1 − ᾱ_t) ε̂)/√ᾱ_t                (eq-ancestral-step)
    −log p(x_0) ≤ E_q[L_T + Σ_{t=2}^T L_{t−1} + L_0]                                                          (eq-vlb)

`x_0` is data, x_T noise, and t = 1 … T counts the steps from data to noise; samplers go from t down to an earlier step
s, in the end to 0. A `schedule` (`companion.numerics.schedules`) holds the β_t. A model predicts the noise, ε̂ =
model(t/T, x_t), with t/T of shape () or (batch,). What the samplers do to one state is a function of its own, ending in
`_step`: its `noise` is the prediction ε̂, its `eps` are fresh standard normal numbers.

Sources: Ho et al. 2020 (DDPM: posterior, bound, loss, ancestral sampling), Song et al. 2021 (DDIM), Lu et al. 2022
(DPM-Solver++, 2M), Lugmayr et al. 2022 (RePaint).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.data.batches import Source, draws
from companion.data.densities import GaussianMixture
from companion.device import randn_like
from companion.numerics._checks import broken, is_whole, not_finite
from companion.numerics.schedules import (
    NoiseSchedule,
    Step,
    check_alike,
    check_step,
    combine,
    data_from_noise,
    noise_from_data,
    noise_from_velocity,
)

NoiseModel = Callable[[Tensor, Tensor], Tensor]
Decoder = Callable[[Tensor, Tensor, float], Tensor]
Batched = Float[Tensor, "batch *dims"]

VARIANCES = ("posterior", "beta")


# --- Adding noise, and the way back when the data are known -----------------------------------------------------------


def forward_step(schedule: NoiseSchedule, t: Step, x_prev: Batched, eps: Batched) -> Batched:
    """A draw of q(x_t | x_{t−1}): √(1 − β_t) x_{t−1} + √β_t ε.

    Args:
        schedule: The noise schedule.
        t: Steps from 1 to T, an int or an integer tensor of shape () or (batch,).
        x_prev: x_{t−1}, (batch, ...).
        eps: Standard normal noise, shaped like x_prev.
    """
    check_alike("forward_step", x_prev=x_prev, eps=eps)
    check_step("forward_step", schedule, t, x_prev, least=1)
    beta, _ = schedule.exact(t, x_prev)
    return _like((1 - beta) ** 0.5, x_prev) * x_prev + _like(beta**0.5, x_prev) * eps


def forward_jump(schedule: NoiseSchedule, s: Step, t: Step, x_s: Batched, eps: Batched) -> Batched:
    """A draw of q(x_t | x_s), s ≤ t: all the steps from s to t in one, √(ᾱ_t/ᾱ_s) x_s + √(1 − ᾱ_t/ᾱ_s) ε."""
    check_alike("forward_jump", x_s=x_s, eps=eps)
    _check_order("forward_jump", schedule, t, s)
    left = schedule.exact(t, x_s)[1] / schedule.exact(s, x_s)[1]
    return _like(left**0.5, x_s) * x_s + _like((1 - left) ** 0.5, x_s) * eps


def posterior(
    schedule: NoiseSchedule, t: Step, x_t: Batched, x_0: Batched
) -> tuple[Batched, Float[Tensor, "..."] | float]:
    r"""The mean and the variance of q(x_{t−1} | x_t, x_0), which is Gaussian.

        μ̃_t = (√ᾱ_{t−1} β_t x_0 + √(1 − β_t) (1 − ᾱ_{t−1}) x_t)/(1 − ᾱ_t),   β̃_t = β_t (1 − ᾱ_{t−1})/(1 − ᾱ_t)

    Args:
        schedule: The noise schedule.
        t: Steps from 1 to T.
        x_t: The noisy state, (batch, ...).
        x_0: The data, known or predicted, shaped like x_t.

    Returns:
        μ̃_t shaped like x_t, and β̃_t shaped to multiply it (a number where t is an int). At t = 1 they are x_0 and 0.
    """
    check_alike("posterior", x_t=x_t, x_0=x_0)
    check_step("posterior", schedule, t, x_t, least=1)
    beta, now = schedule.exact(t, x_t)
    _, before = schedule.exact(t - 1, x_t)
    of_data = before**0.5 * beta / (1 - now)
    of_state = (1 - beta) ** 0.5 * (1 - before) / (1 - now)
    variance = beta * (1 - before) / (1 - now)
    return combine(_like(of_data, x_t), x_0, _like(of_state, x_t), x_t), _like(variance, x_t)


# --- The loss ---------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What one training step needs; `noise_prediction_loss(model, schedule, *batch)` takes it whole."""

    x_0: Tensor
    t: Tensor
    eps: Tensor


def batches(data: Source, schedule: NoiseSchedule, *, batch: int, generator: torch.Generator) -> Iterator[Batch]:
    """Endless training batches: data, each with one step, uniform on 1 … T, and its noise.

    Args:
        data: Where x_0 is drawn from, anything with `sample(n, generator=...)`.
        schedule: The noise schedule.
        batch: Rows of a batch.
        generator: Source of all randomness.
    """
    for (x_0,) in draws(data, size=batch, generator=generator):
        t = torch.randint(1, schedule.steps + 1, (batch,), generator=generator).to(x_0.device)
        yield Batch(x_0, t, randn_like(x_0, generator=generator))


def noise_prediction_loss(
    model: NoiseModel,
    schedule: NoiseSchedule,
    x_0: Batched,
    t: Int[Tensor, "batch"],
    eps: Batched,
) -> Float[Tensor, "batch"]:
    """‖ε − ε̂(t/T, x_t)‖² of each row, summed over its coordinates (eq-noise-loss without its weight).

    Args:
        model: Predicts the noise.
        schedule: The noise schedule.
        x_0: Data, (batch, ...).
        t: Steps from 1 to T, (batch,).
        eps: The noise that is added, shaped like x_0.
    """
    check_step("noise_prediction_loss", schedule, t, x_0, least=1)
    x_t = schedule.add_noise(t, x_0, eps)
    return (eps - _predicted(model, schedule, t, x_t)).square().flatten(1).sum(1)


def noise_loss_weight(schedule: NoiseSchedule, *, variance: str = "posterior") -> Float[Tensor, " levels"]:
    """w_t at t = 0 … T, with which the noise error is the bound's: L_{t−1} = E w_t ‖ε − ε̂‖² (eq-noise-loss).

        w_t = β_t² / (2 σ_t² (1 − β_t)(1 − ᾱ_t)),   σ_t² = β̃_t or β_t

    With σ_t² = β_t the bound has a constant more. There is no L_{t−1} at t = 0 and t = 1: the weight is 0 there.

    Args:
        schedule: The noise schedule.
        variance: σ_t², "posterior" for β̃_t or "beta" for β_t.
    """
    _check_variance("noise_loss_weight", variance)
    beta, now, before = schedule.beta, schedule.alpha_bar[1:], schedule.alpha_bar[:-1]
    sigma2 = beta * (1 - before) / (1 - now) if variance == "posterior" else beta
    weight = beta**2 / (2 * sigma2 * (1 - beta) * (1 - now))
    return torch.cat([weight.new_zeros(2), weight[1:]])


# --- Networks that predict something else -----------------------------------------------------------------------------


def noise_model_from_data(model: NoiseModel, schedule: NoiseSchedule) -> NoiseModel:
    """The noise model of a network that predicts the data: x̂_0 = model(t/T, x_t)."""
    return lambda t, x: noise_from_data(schedule, schedule.step(t), x, model(t, x))


def noise_model_from_velocity(model: NoiseModel, schedule: NoiseSchedule) -> NoiseModel:
    """The noise model of a network that predicts v = √ᾱ ε − √(1 − ᾱ) x_0 (Salimans and Ho 2022)."""
    return lambda t, x: noise_from_velocity(schedule, schedule.step(t), x, model(t, x))


def exact_noise_model(density: GaussianMixture, schedule: NoiseSchedule) -> NoiseModel:
    """E[ε | x_t = x] = −√(1 − ᾱ_t) ∇log p_t(x), which the noise loss would find for data from this mixture.

    Points of any shape (batch, ...) are taken row by row as vectors.
    """

    def model(t: Tensor, x: Tensor) -> Tensor:
        step, flat = schedule.step(t), x.flatten(1)
        alpha, sigma = (level(step, flat) for level in (schedule.signal, schedule.noise))
        score = density.noised_score(alpha.reshape(step.shape), sigma.reshape(step.shape), flat)
        return (-sigma * score).reshape(x.shape)

    return model


# --- One step of each sampler -----------------------------------------------------------------------------------------


def ancestral_step(
    schedule: NoiseSchedule,
    t: Step,
    x_t: Batched,
    noise: Batched,
    eps: Batched,
    *,
    variance: str = "posterior",
    clip: float | None = None,
) -> Batched:
    r"""A draw of the learned p(x_{t−1} | x_t): the posterior with the predicted data in the place of the true.

        x_{t−1} = μ̃_t(x_t, x̂_0) + σ_t ε = (x_t − β_t ε̂/√(1 − ᾱ_t))/√(1 − β_t) + σ_t ε

    The last step, t = 1, adds no noise.

    Args:
        schedule: The noise schedule.
        t: The step that x_t is at.
        x_t: The state, (batch, ...).
        noise: The predicted noise ε̂, shaped like x_t.
        eps: Fresh standard normal noise, shaped like x_t.
        variance: σ_t², "posterior" for β̃_t or "beta" for β_t.
        clip: The predicted data are cut to [−clip, clip]. None: not cut.
    """
    check_alike("ancestral_step", x_t=x_t, noise=noise, eps=eps)
    _check_variance("ancestral_step", variance)
    x_0, _ = _denoised(schedule, t, x_t, noise, clip)
    mean, sigma2 = posterior(schedule, t, x_t, x_0)
    if variance == "beta":
        sigma2 = _like(schedule.exact(t, x_t)[0], x_t) * (sigma2 > 0)
    return combine(1.0, mean, sigma2**0.5, eps)


def ddim_step(
    schedule: NoiseSchedule,
    t: Step,
    s: Step,
    x_t: Batched,
    noise: Batched,
    *,
    eta: float = 0.0,
    eps: Batched | None = None,
    clip: float | None = None,
) -> Batched:
    r"""From step t to any earlier step s: go to the predicted data, and take the noise back up to the level of s.

        x_s = √ᾱ_s x̂_0 + √(1 − ᾱ_s − σ²) ε̂ + σ ε,   σ² = η² (1 − ᾱ_s)/(1 − ᾱ_t) · (1 − ᾱ_t/ᾱ_s)           (eq-ddim)

    η is the share of the noise that is drawn anew: with η = 0 the step is deterministic, with η = 1 and s = t − 1 it is
    the ancestral step with the posterior's variance.

    Args:
        schedule: The noise schedule.
        t: The step that x_t is at.
        s: The step to go to, s < t.
        x_t: The state, (batch, ...).
        noise: The predicted noise ε̂, shaped like x_t.
        eta: η, from 0 to 1.
        eps: Fresh standard normal noise, shaped like x_t; not needed if η = 0.
        clip: The predicted data are cut to [−clip, clip], and ε̂ is what then explains x_t. None: not cut.
    """
    check_alike("ddim_step", x_t=x_t, noise=noise)
    _check_order("ddim_step", schedule, t, s)
    x_0, noise = _denoised(schedule, t, x_t, noise, clip)
    if eta == 0:
        return combine(schedule.signal(s, x_t), x_0, schedule.noise(s, x_t), noise)
    _check_eta("ddim_step", eta, eps)
    check_alike("ddim_step", x_t=x_t, eps=eps)
    now, then = schedule.exact(t, x_t)[1], schedule.exact(s, x_t)[1]
    sigma2 = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
    old = _like(abs(1 - then - sigma2) ** 0.5, x_t)  # never negative but for rounding
    return combine(1.0, combine(schedule.signal(s, x_t), x_0, old, noise), _like(sigma2**0.5, x_t), eps)


def dpm_solver_step(
    schedule: NoiseSchedule,
    t: int,
    s: int,
    x_t: Batched,
    x_0: Batched,
    *,
    before: tuple[int, Batched] | None = None,
) -> Batched:
    r"""From step t to an earlier step s by DPM-Solver++(2M), which integrates the probability-flow ODE in λ.

        x_s = (σ_s/σ_t) x_t + α_s (1 − e^{−h}) D,   D = x̂_0(t) + h/(2h_0) (x̂_0(t) − x̂_0(r)),
        α = √ᾱ, σ = √(1 − ᾱ), λ = log(α/σ), h = λ_s − λ_t, h_0 = λ_t − λ_r                             (eq-dpm-solver)

    The prediction of the step before, r > t, gives the slope of x̂_0 in λ. Without it, and to s = 0, where h is
    infinite, D = x̂_0(t): that is the DDIM step.

    Args:
        schedule: The noise schedule.
        t: The step that x_t is at.
        s: The step to go to, s < t.
        x_t: The state, (batch, ...).
        x_0: The data predicted from x_t, shaped like it.
        before: The step r before, and the data that were predicted there. None: this is the first step.
    """
    check_alike("dpm_solver_step", x_t=x_t, x_0=x_0)
    _check_order("dpm_solver_step", schedule, t, s)
    direction = x_0
    if before is not None and s > 0:
        r, x_0_before = before
        _check_order("dpm_solver_step", schedule, r, t)
        lambda_r, lambda_t, lambda_s = (_half_log_snr(schedule, step) for step in (r, t, s))
        ahead = (lambda_s - lambda_t) / (2 * (lambda_t - lambda_r))
        direction = combine(1 + ahead, x_0, -ahead, x_0_before)
    shrink = schedule.noise(s, x_t) / schedule.noise(t, x_t)
    return combine(shrink, x_t, schedule.signal(s, x_t) - shrink * schedule.signal(t, x_t), direction)


def inpaint_step(
    schedule: NoiseSchedule,
    t: Step,
    s: Step,
    x_t: Batched,
    noise: Batched,
    image: Batched,
    known: Tensor,
    *,
    eps_unknown: Batched,
    eps_known: Batched,
    clip: float | None = None,
) -> Batched:
    r"""One step back in which the known part is not generated but taken from the image, at the noise level of s.

        x_s = m ⊙ (√ᾱ_s x_0 + √(1 − ᾱ_s) ε) + (1 − m) ⊙ (a step of the sampler from x_t)                (eq-inpainting)

    Args:
        schedule: The noise schedule.
        t: The step that x_t is at.
        s: The step to go to, s < t.
        x_t: The state, (batch, ...).
        noise: The predicted noise ε̂ of the whole state.
        image: Whose known part is kept, shaped like x_t.
        known: m, true where the image is known; boolean, and broadcasts over x_t.
        eps_unknown: Fresh noise of the unknown part, shaped like x_t.
        eps_known: Fresh noise of the known part, shaped like x_t.
        clip: The predicted data are cut to [−clip, clip]. None: not cut.
    """
    check_alike("inpaint_step", x_t=x_t, image=image, eps_known=eps_known)
    unknown_part = ddim_step(schedule, t, s, x_t, noise, eta=1.0, eps=eps_unknown, clip=clip)
    known_part = schedule.add_noise(s, image, eps_known)
    return torch.where(known, known_part, unknown_part)


# --- Samplers ---------------------------------------------------------------------------------------------------------


def spaced_steps(T: int, steps: int, *, spacing: str = "trailing") -> list[int]:
    """The steps that a sampler visits, and 0 at the end: `steps + 1` numbers, evenly spaced up to rounding.

    "trailing" starts at T, where x_T belongs: spaced_steps(1000, 4) is [1000, 750, 500, 250, 0]. "leading" counts from
    step 1, [751, 501, 251, 1, 0], so it takes pure noise for a state at a step before T (Lin et al. 2024, table 2). It
    is here because much software does so.

    Args:
        T: Steps of the schedule.
        steps: Steps that are taken, from 1 to T; it need not divide T.
        spacing: "trailing" or "leading".
    """
    for name, value in (("T", T), ("steps", steps)):
        if not is_whole(value):
            raise ValueError(f"spaced_steps: received {name}={value!r}; rule: a whole number")
    if not 1 <= steps <= T:
        raise ValueError(f"spaced_steps: received steps={steps} for T={T}; rule: from 1 to T")
    if spacing == "trailing":
        return [round(T - k * T / steps) for k in range(steps)] + [0]
    if spacing == "leading":
        return [1 + k * (T // steps) for k in reversed(range(steps))] + [0]
    raise ValueError(f"spaced_steps: received spacing={spacing!r}; rule: 'trailing' or 'leading'")


@torch.no_grad()
def ancestral_sample(
    model: NoiseModel,
    schedule: NoiseSchedule,
    x_T: Batched,
    *,
    generator: torch.Generator,
    variance: str = "posterior",
    clip: float | None = None,
) -> Batched:
    """Takes all T steps back, each with fresh noise (Ho et al. 2020, algorithm 2).

    Args:
        model: Predicts the noise, model(t/T, x).
        schedule: The noise schedule.
        x_T: Draws of N(0, I), (batch, ...).
        generator: Source of the noise.
        variance: "posterior" for σ_t² = β̃_t, "beta" for σ_t² = β_t.
        clip: The predicted data are cut to [−clip, clip]: 1 for images. None: not cut.

    Returns:
        Samples, shaped like x_T.
    """
    x = _start("ancestral_sample", x_T)
    for t in range(schedule.steps, 0, -1):
        eps = randn_like(x, generator=generator) if t > 1 else torch.zeros_like(x)
        x = ancestral_step(schedule, t, x, _predicted(model, schedule, t, x), eps, variance=variance, clip=clip)
    return _finished("ancestral_sample", x)


@torch.no_grad()
def ddim_sample(
    model: NoiseModel,
    schedule: NoiseSchedule,
    x_T: Batched,
    *,
    steps: int | Sequence[int],
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    clip: float | None = None,
) -> Batched:
    """Samples in few steps (Song et al. 2021, eq. 12).

    Args:
        model: Predicts the noise, model(t/T, x).
        schedule: The noise schedule.
        x_T: Draws of N(0, I), (batch, ...).
        steps: How many steps to take, spaced by `spaced_steps`; or the falling list of steps to visit, which may end
            before 0.
        eta: η, from 0 (deterministic) to 1 (as much fresh noise as ancestral sampling).
        generator: Source of the noise; not needed if η = 0.
        clip: The predicted data are cut to [−clip, clip]. None: not cut.

    Returns:
        The states at the last step, shaped like x_T.
    """
    x = _start("ddim_sample", x_T)
    _check_eta("ddim_sample", eta, generator)
    for t, s in pairwise(_visited("ddim_sample", schedule, steps)):
        eps = randn_like(x, generator=generator) if eta > 0 else None
        x = ddim_step(schedule, t, s, x, _predicted(model, schedule, t, x), eta=eta, eps=eps, clip=clip)
    return _finished("ddim_sample", x)


@torch.no_grad()
def dpm_solver_sample(
    model: NoiseModel,
    schedule: NoiseSchedule,
    x_T: Batched,
    *,
    steps: int | Sequence[int],
    clip: float | None = None,
) -> Batched:
    """Samples by DPM-Solver++(2M): one evaluation a step, second order between the first step and the last.

    Args:
        model: Predicts the noise, model(t/T, x).
        schedule: The noise schedule.
        x_T: Draws of N(0, I), (batch, ...).
        steps: How many steps to take, spaced by `spaced_steps`; or the falling list of steps to visit.
        clip: The predicted data are cut to [−clip, clip]. None: not cut.

    Returns:
        The states at the last step, shaped like x_T.
    """
    x, before = _start("dpm_solver_sample", x_T), None
    for t, s in pairwise(_visited("dpm_solver_sample", schedule, steps)):
        x_0, _ = _denoised(schedule, t, x, _predicted(model, schedule, t, x), clip)
        x, before = dpm_solver_step(schedule, t, s, x, x_0, before=before), (t, x_0)
    return _finished("dpm_solver_sample", x)


@torch.no_grad()
def inpaint(
    model: NoiseModel,
    schedule: NoiseSchedule,
    image: Batched,
    mask: Tensor,
    x_T: Batched,
    *,
    steps: int | Sequence[int],
    resample: int = 1,
    generator: torch.Generator,
    clip: float | None = None,
) -> Batched:
    """Fills the unknown part of images with a model that was trained without masks (RePaint, algorithm 1).

    Each step is taken `resample` times: after all but the last one noise is added back, from s to t, so that the known
    part, which was put in after the step, is seen by the unknown one.

    Args:
        model: Predicts the noise, model(t/T, x).
        schedule: The noise schedule.
        image: Images, (batch, ...); what they hold outside the mask is not used.
        mask: 1 or True where the image is known. One mask for all images, shaped like one of them, (height, width) or
            (1, height, width); or one for each, shaped like the images, or with one channel.
        x_T: Draws of N(0, I), shaped like image.
        steps: How many steps to take, spaced by `spaced_steps`; or the falling list of steps to visit.
        resample: How often each step is taken, 1 or more.
        generator: Source of the noise.
        clip: The predicted data are cut to [−clip, clip]. None: not cut.

    Returns:
        Images, shaped like x_T; where the mask is 1 they are the given ones exactly.
    """
    x = _start("inpaint", x_T)
    image, known = _start("inpaint", image, name="image"), _known("inpaint", mask, image)
    check_alike("inpaint", image=image, x_T=x_T)
    if not is_whole(resample, least=1):
        raise ValueError(f"inpaint: received resample={resample!r}; rule: a whole number, 1 or more")
    for t, s in pairwise(_visited("inpaint", schedule, steps)):
        for again in reversed(range(resample)):
            noise, eps = _predicted(model, schedule, t, x), [randn_like(x, generator=generator) for _ in range(2)]
            x = inpaint_step(schedule, t, s, x, noise, image, known, eps_unknown=eps[0], eps_known=eps[1], clip=clip)
            if again and s > 0:
                x = forward_jump(schedule, s, t, x, randn_like(x, generator=generator))
    return _finished("inpaint", x)


# --- The bound --------------------------------------------------------------------------------------------------------


def gaussian_log_prob(x_0: Batched, mean: Batched, variance: float) -> Float[Tensor, "batch"]:
    """log N(x_0; mean, variance · I) in nats: the decoder p(x_0 | x_1) for data that are continuous."""
    square = (x_0 - mean).square().flatten(1)
    return -0.5 * (square / variance + math.log(2 * math.pi * variance)).sum(1)


@dataclass(frozen=True)
class DiscretizedGaussian:
    """p(x_0 | x_1) for gray levels: the mass that N(mean, variance) puts on each pixel's bin (Ho et al. 2020, eq. 13).

    The levels are −1, −1 + 2h, …, 1 with the half width h of a bin; the outermost bins reach to infinity. 256 levels
    have h = 1/255, the 17 of scikit-learn's digits h = 1/16.

    Args:
        half_width: h, such that 1/h is a whole number.
    """

    half_width: float

    def __post_init__(self) -> None:
        if not 0 < self.half_width <= 1 or abs(1 / self.half_width - round(1 / self.half_width)) > 1e-6:
            raise ValueError(
                f"DiscretizedGaussian: received half_width={self.half_width}; rule: bins of this half width around "
                "levels from −1 to 1, so its inverse is a whole number"
            )

    def __call__(self, x_0: Batched, mean: Batched, variance: float) -> Float[Tensor, "batch"]:
        """log p(x_0) of each image, in nats."""
        level = (x_0 + 1) / (2 * self.half_width)
        if broken(((level - level.round()).abs() < 1e-3) & (x_0.abs() < 1 + self.half_width)):
            raise ValueError(
                f"DiscretizedGaussian: received values between the levels of half_width={self.half_width}; "
                f"rule: every pixel is one of the {round(1 / self.half_width) + 1} levels from −1 to 1"
            )
        std, gap = variance**0.5, x_0 - mean
        up = torch.special.log_ndtr((self.half_width - gap.abs()) / std)  # mirrored to the side where both are small
        down = torch.special.log_ndtr((-self.half_width - gap.abs()) / std)
        inside = up + torch.log(-torch.expm1(down - up))
        lowest = torch.special.log_ndtr((self.half_width + gap) / std)  # all that is below the upper edge
        highest = torch.special.log_ndtr((self.half_width - gap) / std)  # all that is above the lower edge
        middle = torch.where(x_0 < 0, lowest, highest)
        return torch.where(x_0.abs() > 1 - self.half_width, middle, inside).flatten(1).sum(1)


def prior_term(schedule: NoiseSchedule, x_0: Batched) -> Float[Tensor, "batch"]:
    """L_T = KL(q(x_T | x_0) ‖ N(0, I)) in nats: what is still seen of the data in x_T. Nothing in it is learned."""
    check_alike("prior_term", x_0=x_0)
    left = schedule.alpha_bar[-1].item()
    return 0.5 * (left * x_0.square() - left - math.log1p(-left)).flatten(1).sum(1)


def step_term(
    model: NoiseModel,
    schedule: NoiseSchedule,
    x_0: Batched,
    t: Step,
    eps: Batched,
    *,
    variance: str = "posterior",
    clip: float | None = None,
) -> Float[Tensor, "batch"]:
    r"""L_{t−1} = KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t)) in nats at the one x_t that eps gives, for t ≥ 2.

    Both are Gaussian, so with D coordinates

        L_{t−1} = ‖μ̃_t(x_t, x_0) − μ̃_t(x_t, x̂_0)‖²/(2σ_t²) + D/2 (β̃_t/σ_t² − 1 − log(β̃_t/σ_t²))

    Args:
        model: Predicts the noise.
        schedule: The noise schedule.
        x_0: Data, (batch, ...).
        t: Steps from 2 to T, an int or an integer tensor of shape () or (batch,).
        eps: The noise that is added, shaped like x_0.
        variance: σ_t², "posterior" for β̃_t or "beta" for β_t.
        clip: The predicted data are cut to [−clip, clip]. None: not cut.
    """
    _check_variance("step_term", variance)
    check_step("step_term", schedule, t, x_0, least=2)
    x_t = schedule.add_noise(t, x_0, eps)
    guess, _ = _denoised(schedule, t, x_t, _predicted(model, schedule, t, x_t), clip)
    beta, now = schedule.exact(t, x_0)
    _, before = schedule.exact(t - 1, x_0)
    posterior_variance = beta * (1 - before) / (1 - now)
    sigma2 = beta if variance == "beta" else posterior_variance
    ratio = posterior_variance / sigma2
    error = _like((before**0.5 * beta / (1 - now)) ** 2 / (2 * sigma2), x_0) * (x_0 - guess).square()
    log = torch.log if isinstance(ratio, Tensor) else math.log
    return (error + _like(0.5 * (ratio - 1 - log(ratio)), x_0)).flatten(1).sum(1)


def data_term(
    model: NoiseModel,
    schedule: NoiseSchedule,
    x_0: Batched,
    eps: Batched,
    *,
    decoder: Decoder,
    clip: float | None = None,
) -> Float[Tensor, "batch"]:
    """L_0 = −log p(x_0 | x_1) in nats at the one x_1 that eps gives: a Gaussian of variance β_1 around x̂_0.

    Args:
        model: Predicts the noise.
        schedule: The noise schedule.
        x_0: Data, (batch, ...).
        eps: The noise that is added, shaped like x_0.
        decoder: `DiscretizedGaussian(half_width=...)` for gray levels, `gaussian_log_prob` for continuous data.
        clip: The predicted data are cut to [−clip, clip]. None: not cut.
    """
    x_1 = schedule.add_noise(1, x_0, eps)
    guess, _ = _denoised(schedule, 1, x_1, _predicted(model, schedule, 1, x_1), clip)
    return -decoder(x_0, guess, schedule.beta[0].item())


class Bound(NamedTuple):
    """The terms of the variational bound for each row, in nats.

    Attributes:
        prior: L_T, (batch,).
        steps: L_{t−1} at the steps in `t`, weighted so that their sum estimates Σ_{t=2}^T L_{t−1}, (rows, batch).
        data: L_0, (batch,).
        t: The steps, (rows, batch).
    """

    prior: Tensor
    steps: Tensor
    data: Tensor
    t: Tensor

    @property
    def total(self) -> Tensor:
        """The bound on −log p(x_0), (batch,)."""
        return self.prior + self.steps.sum(0) + self.data


@torch.no_grad()
def variational_bound(
    model: NoiseModel,
    schedule: NoiseSchedule,
    x_0: Batched,
    *,
    generator: torch.Generator,
    decoder: Decoder,
    draws: int | None = None,
    variance: str = "posterior",
    clip: float | None = None,
) -> Bound:
    """An unbiased estimate of the bound on −log p(x_0), in nats (eq-vlb), with one draw of the noise for each term.

    Args:
        model: Predicts the noise, model(t/T, x).
        schedule: The noise schedule.
        x_0: Data, (batch, ...).
        generator: Source of the noise and of the steps.
        decoder: `DiscretizedGaussian(half_width=...)` for gray levels, `gaussian_log_prob` for continuous data.
        draws: How many of the steps 2 … T to evaluate, from 1 to T − 1. They are drawn anew for each row, one from each
            of `draws` equal parts of 2 … T. None: all of them.
        variance: σ_t², "posterior" for β̃_t or "beta" for β_t.
        clip: The predicted data are cut to [−clip, clip]: 1 for images. None: not cut.
    """
    x_0 = _start("variational_bound", x_0, name="x_0")
    last = schedule.steps - 1
    draws = last if draws is None else draws
    if not is_whole(draws, least=min(1, last)) or draws > last:
        raise ValueError(f"variational_bound: received draws={draws!r}; rule: from 1 to T − 1 = {last}")
    parts = torch.arange(draws, dtype=torch.float64)[:, None]
    place = torch.rand(draws, len(x_0), generator=generator, dtype=torch.float64)
    t = (2 + (parts + place) * (last / max(draws, 1))).long().clamp(max=schedule.steps).to(x_0.device)
    rows = [
        step_term(model, schedule, x_0, row, randn_like(x_0, generator=generator), variance=variance, clip=clip)
        for row in t
    ]
    steps = torch.stack(rows) * (last / draws) if rows else x_0.new_zeros(0, len(x_0))
    data = data_term(model, schedule, x_0, randn_like(x_0, generator=generator), decoder=decoder, clip=clip)
    return Bound(prior_term(schedule, x_0), steps, data, t)


def bits_per_dimension(nats: Float[Tensor, "*batch"], dimensions: int) -> Float[Tensor, "*batch"]:
    """Nats of a whole image as bits for each of its numbers: nats/(D log 2).

    It is a number of bits in the sense of a code only if the nats are those of *discrete* data, such as gray levels.
    """
    if not is_whole(dimensions, least=1):
        raise ValueError(f"bits_per_dimension: received dimensions={dimensions!r}; rule: a whole number, 1 or more")
    return nats / (dimensions * math.log(2))


# --- Parts ------------------------------------------------------------------------------------------------------------


def _predicted(model: NoiseModel, schedule: NoiseSchedule, t: Step, x: Tensor) -> Tensor:
    """ε̂ = model(t/T, x)."""
    noise = model(schedule.time(t, x), x)
    if noise.shape != x.shape:
        raise ValueError(
            f"diffusion: received a model that returns {tuple(noise.shape)} for states {tuple(x.shape)}; "
            "rule: the shape of the states"
        )
    return noise


def _denoised(
    schedule: NoiseSchedule, t: Step, x_t: Tensor, noise: Tensor, clip: float | None
) -> tuple[Tensor, Tensor]:
    """x̂_0, cut to [−clip, clip] if asked for, and the noise that explains x_t with it."""
    x_0 = data_from_noise(schedule, t, x_t, noise)
    if clip is None:
        return x_0, noise
    if not clip > 0:
        raise ValueError(f"diffusion: received clip={clip}; rule: a positive number, or None")
    x_0 = x_0.clamp(-clip, clip)
    return x_0, noise_from_data(schedule, t, x_t, x_0)


def _half_log_snr(schedule: NoiseSchedule, t: int) -> float:
    """λ_t = log(√ᾱ_t/√(1 − ᾱ_t)), for t ≥ 1."""
    _, alpha_bar = schedule.exact(t, schedule.alpha_bar)
    return 0.5 * math.log(alpha_bar / (1 - alpha_bar))


def _like(value: Tensor | float, x: Tensor) -> Tensor | float:
    """A coefficient in the dtype and on the device of what it multiplies."""
    return value.to(x) if isinstance(value, Tensor) else value


def _visited(operation: str, schedule: NoiseSchedule, steps: object) -> list[int]:
    """The steps of a sampler, from the first to the one where it ends."""
    if isinstance(steps, int):
        return spaced_steps(schedule.steps, steps)
    nodes = list(steps)
    if (
        not all(is_whole(t) for t in nodes)
        or len(nodes) < 2
        or nodes[0] > schedule.steps
        or nodes[-1] < 0
        or any(t <= s for t, s in pairwise(nodes))
    ):
        raise ValueError(
            f"{operation}: received steps={nodes}; rule: a number of steps, or two or more steps that fall, from "
            f"T = {schedule.steps} or below to 0 or above"
        )
    return nodes


def _start(operation: str, x: object, *, name: str = "x_T") -> Tensor:
    """x itself, if a sampler can start from it."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or not_finite(x):
        received = f"shape {tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"{operation}: received {name} of {received}; rule: a floating-point tensor (batch, ...), every entry "
            "finite"
        )
    return x


def _finished(operation: str, x: Tensor) -> Tensor:
    """x itself, if it is finite."""
    if not_finite(x):
        raise ValueError(
            f"{operation}: received a model that leads to NaN or infinity; rule: finite predictions (clip=1 keeps the "
            "predicted data of images in their range)"
        )
    return x


def _known(operation: str, mask: object, image: Tensor) -> Tensor:
    """The mask as booleans that broadcast over the images."""
    shape, one = tuple(image.shape), tuple(image.shape[1:])
    allowed = [one, shape]
    if image.ndim == 4:
        allowed += [one[1:], (1, *one[1:]), (shape[0], 1, *one[1:])]
    if not isinstance(mask, Tensor) or tuple(mask.shape) not in allowed:
        received = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"{operation}: received a mask of {received} for images {shape}; rule: a tensor of shape "
            f"{' or '.join(str(shape) for shape in dict.fromkeys(allowed))}"
        )
    if broken((mask == 0) | (mask == 1)):
        raise ValueError(f"{operation}: received a mask with other values than 0 and 1; rule: 1 is known, 0 is not")
    return mask.to(image.device) == 1


def _check_order(operation: str, schedule: NoiseSchedule, t: object, s: object) -> None:
    """Both are steps, and s lies before t."""
    for step in (t, s):
        check_step(operation, schedule, step)
    falling = s < t
    if broken(falling) if isinstance(falling, Tensor) else not falling:
        raise ValueError(f"{operation}: received t={t}, s={s}; rule: 0 ≤ s < t ≤ T = {schedule.steps}")


def _check_variance(operation: str, variance: str) -> None:
    if variance not in VARIANCES:
        raise ValueError(f"{operation}: received variance={variance!r}; rule: 'posterior' or 'beta'")


def _check_eta(operation: str, eta: float, source: object) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"{operation}: received eta={eta}; rule: from 0 to 1")
    if eta > 0 and source is None:
        raise ValueError(f"{operation}: received eta={eta} and no source of noise; rule: η > 0 draws fresh noise")
