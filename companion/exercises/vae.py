"""The exercises of chapter 05, variational auto-encoders: each with its right answer and the wrong ones people give."""

import math

import torch
from torch.distributions import Normal, kl_divergence

from companion.exercises.checking import Exercise

LOG_2PI = math.log(2 * math.pi)


def _guesses(generator, n=12, dim=3):
    """Means and log-variances of q(z|x), neither zero nor one: every slip must show."""
    mean, log_variance = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    return mean, 0.7 * log_variance - 0.4


# ---------------------------------------------------------------------- divergence-of-a-guess (warm-up; E4)


def _kl(mean, log_variance):
    return 0.5 * (log_variance.exp() - 1 - log_variance + mean**2).sum(1)


def _kl_by_library(mean, log_variance):
    return kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)


divergence_of_a_guess = Exercise(
    inputs=_guesses,
    right=_kl,
    also_right=(_kl_by_library, lambda m, lv: (lv.exp() + m * m).sum(1) / 2 - (lv.sum(1) + lv.shape[1]) / 2),
    wrong={
        "the formula wants the log-variance, and you handed it the standard deviation: where ℓ = 0 (a variance of 1) "
        "and the mean is 0 the divergence must be 0.": lambda m, lv: _kl(m, (lv / 2).exp()),
        "you handed the formula the variance. exp(ℓ) is the variance already: put in ℓ itself.": (
            lambda m, lv: _kl(m, lv.exp())
        ),
        "you read ℓ as the logarithm of the standard deviation. It is the logarithm of the variance, so the variance "
        "is exp(ℓ), not exp(2ℓ).": lambda m, lv: _kl(m, 2 * lv),
        "you used the standard deviation where the variance belongs: e^{ℓ/2} − 1 − ℓ/2. The first term of the formula "
        "is the variance, exp(ℓ), and the logarithm is that of the variance, ℓ.": lambda m, lv: _kl(m, lv / 2),
        "the first term is the variance exp(ℓ), not the standard deviation exp(ℓ/2).": (
            lambda m, lv: 0.5 * ((lv / 2).exp() - 1 - lv + m**2).sum(1)
        ),
        "you took ℓ itself for the standard deviation and squared it. ℓ is a logarithm and may be negative; the "
        "variance is exp(ℓ).": lambda m, lv: 0.5 * (lv**2 - 1 - (lv**2).log() + m**2).sum(1),
        "the factor ½ is missing.": lambda m, lv: 2 * _kl(m, lv),
        "this is minus the divergence. A divergence is never negative; the bound subtracts it.": lambda m, lv: (
            -_kl(m, lv)
        ),
        "this is the divergence the other way around, from the prior to the guess: KL(N(0, 1) ‖ q).": (
            lambda m, lv: 0.5 * ((1 + m**2) * (-lv).exp() - 1 + lv).sum(1)
        ),
        "you averaged over the latents. The divergences of independent coordinates add up.": (
            lambda m, lv: _kl(m, lv) / lv.shape[1]
        ),
        "you summed over the batch as well. Return one number for each row.": lambda m, lv: _kl(m, lv).sum(),
        "you averaged over the batch as well. Return one number for each row.": lambda m, lv: _kl(m, lv).mean(),
    },
)

# ---------------------------------------------------------------------- best-narrow-guess (derivation)


def _precision(generator):
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    return (root @ root.T + 0.5 * torch.eye(3, dtype=torch.float64),)


best_narrow_guess = Exercise(
    inputs=_precision,
    right=lambda precision: 1 / precision.diagonal(),
    also_right=(
        lambda precision: torch.stack([1 / precision[j, j] for j in range(len(precision))]),
        lambda precision: 1 / torch.linalg.inv(torch.linalg.inv(precision)).diagonal(),
    ),
    wrong={
        "these are the variances of the true posterior, coordinate by coordinate. They are best for KL(p ‖ q); the "
        "bound contains KL(q ‖ p), which wants a guess that never stands where p is small.": (
            lambda precision: torch.linalg.inv(precision).diagonal()
        ),
        "these are the entries of the precision. A variance is the inverse of a precision: set the derivative "
        "½ (Λ_jj − 1/v_j) to zero.": lambda precision: precision.diagonal(),
        "these are standard deviations. The question asks for variances.": lambda p: p.diagonal().rsqrt(),
        "these are the variances along the posterior's own axes, the inverse eigenvalues of Λ. The axes of a diagonal "
        "guess are those of z.": lambda precision: (1 / torch.linalg.eigvalsh(precision)).flip(0),
        "one variance for all coordinates is more than was asked to give up: each v_j may differ.": (
            lambda precision: (len(precision) / precision.trace()).expand(len(precision))
        ),
        "you turned the sign of log v_j around: with + ½ log v_j the derivative has no zero for a positive v_j.": (
            lambda precision: -1 / precision.diagonal()
        ),
    },
)

# ---------------------------------------------------------------------- likelihood-with-its-scale (variant; E5)


def _pictures(generator):
    x, mean = torch.randn(2, 10, 16, generator=generator, dtype=torch.float64)
    return x, mean, torch.tensor(-1.3, dtype=torch.float64) + 0.3 * torch.rand((), generator=generator)


def _gaussian(x, mean, s):
    return -0.5 * ((x - mean).square() / s.exp() + s + LOG_2PI).sum(1)


likelihood_with_its_scale = Exercise(
    inputs=_pictures,
    right=_gaussian,
    also_right=(
        lambda x, mean, s: Normal(mean, (s / 2).exp()).log_prob(x).sum(1),
        lambda x, m, s: -(x - m).square().sum(1) / (2 * s.exp()) - x.shape[1] / 2 * (s + LOG_2PI),
    ),
    wrong={
        "this is minus the squared error: a log-density only up to a scale and a constant, and it is the scale that "
        "decides what the divergence is weighed against.": lambda x, m, s: -(x - m).square().sum(1),
        "the normalization − ½ s of each pixel is missing. Without it a larger variance is always better, and the "
        "training would make it infinite.": (lambda x, m, s: -0.5 * ((x - m).square() / s.exp() + LOG_2PI).sum(1)),
        "the normalization is there once, but every pixel has its own factor 1/√(2π e^s).": (
            lambda x, m, s: -0.5 * (x - m).square().sum(1) / s.exp() - 0.5 * (s + LOG_2PI)
        ),
        "the constant log 2π is missing. Training does not see it, but a number in nats that is to be compared with "
        "another model's must have it.": lambda x, m, s: _gaussian(x, m, s) + 0.5 * LOG_2PI * x.shape[1],
        "s is the log-variance: the squared error is divided by e^s, not by e^{s/2}.": (
            lambda x, m, s: -0.5 * ((x - m).square() / (s / 2).exp() + s + LOG_2PI).sum(1)
        ),
        "s is there once for the whole picture, but every pixel has its own ½ s: each has its own factor "
        "1/√(2π e^s).": (lambda x, m, s: -0.5 * ((x - m).square() / s.exp() + LOG_2PI).sum(1) - 0.5 * s),
        "you read s as the logarithm of the standard deviation. It is the logarithm of the variance: the squared error "
        "is divided by e^s, not by e^{2s}, and the normalization is ½ s, not s.": lambda x, m, s: _gaussian(
            x, m, 2 * s
        ),
        "s is the log-variance, and you took it for the variance itself.": (
            lambda x, m, s: -0.5 * ((x - m).square() / s + s.abs().log() + LOG_2PI).sum(1)
        ),
        "you averaged over the pixels. The log-density of a picture is the sum over its pixels.": (
            lambda x, m, s: _gaussian(x, m, s) / x.shape[1]
        ),
        "this is the negative log-density.": lambda x, m, s: -_gaussian(x, m, s),
    },
)

# ---------------------------------------------------------------------- balanced-loss (spot the bug; E4, E5)


def _training_batch(generator):
    x, _, s = _pictures(generator)
    mean, log_variance = _guesses(generator, n=len(x))
    eps = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(mean.shape[1], x.shape[1], generator=generator, dtype=torch.float64)

    def decode(z):
        return torch.tanh(z @ weight)

    return x, mean, log_variance, eps, decode, s


def _loss(std=lambda lv: (lv / 2).exp(), divergence=_kl, error=None):
    def loss(x, mean, log_variance, eps, decode, s):
        x_hat = decode(mean + std(log_variance) * eps)
        fit = -_gaussian(x, x_hat, s) if error is None else error(x, x_hat, s)
        return fit + divergence(mean, log_variance)

    return loss


def _pixel_mean(x, x_hat, s):
    return (x - x_hat).square().mean(1)


def _plain_sum(x, x_hat, s):
    return (x - x_hat).square().sum(1)


def _without_scale_constants(x, x_hat, s):
    return 0.5 * (x - x_hat).square().sum(1) / s.exp()


def _by_distributions(x, mean, log_variance, eps, decode, s):
    q = Normal(mean, log_variance.exp().sqrt())
    reconstruction = Normal(decode(mean + q.stddev * eps), (0.5 * s).exp()).log_prob(x).sum(1)
    return kl_divergence(q, Normal(0.0, 1.0)).sum(1) - reconstruction


balanced_loss = Exercise(
    inputs=_training_batch,
    right=_loss(),
    also_right=(_by_distributions,),
    wrong={
        "nothing is mended yet: this is the loss as it was given.": _loss(std=torch.exp, error=_pixel_mean),
        "the noise is right now, but the squared error is still averaged over the pixels, without the decoder's "
        "variance: this is a decoder variance of half the number of pixels.": _loss(error=_pixel_mean),
        "the sum over the pixels is there, its scale is not: a squared error without 1/(2e^s) is a decoder that was "
        "promised the variance ½.": _loss(error=_plain_sum),
        "the scale 1/(2e^s) is there, but not the normalization ½ (s + log 2π) of each pixel: the loss is no bound in "
        "nats, and s could not be learned with it.": _loss(error=_without_scale_constants),
        "the reconstruction is right now, but z still has the wrong spread: exp(log_variance) is the variance, the "
        "noise is multiplied by the standard deviation.": _loss(std=torch.exp),
        "you broke the divergence: it was right. In its formula ℓ is the log-variance.": (
            _loss(divergence=lambda m, lv: _kl(m, (lv / 2).exp()))
        ),
        "the noise is left out: with z at the mean the first term is no average over q, and the bound is lost.": (
            _loss(std=torch.zeros_like)
        ),
        "the sign of the divergence is turned: the loss is minus the log-likelihood plus the divergence.": (
            _loss(divergence=lambda m, lv: -_kl(m, lv))
        ),
        "the sign of the log-likelihood is turned: this loss rewards a bad picture.": (
            _loss(error=lambda x, x_hat, s: _gaussian(x, x_hat, s))
        ),
        "this is the ELBO. A loss is to be made small, so it is minus the ELBO: turn the sign of the whole.": (
            lambda *batch: -_loss()(*batch)
        ),
    },
)

# ---------------------------------------------------------------------- many-guesses (variant: IWAE)


def _log_weights(generator):
    """As low as those of a picture of a thousand pixels: exp underflows."""
    return (torch.randn(8, 10, generator=generator, dtype=torch.float64) * 3 - 2_000,)


def _bound(log_w, dim=0):
    return log_w.logsumexp(dim) - math.log(log_w.shape[dim])


def _bound_by_hand(log_w):
    top = log_w.max(0).values
    return top + (log_w - top).exp().mean(0).log()


many_guesses = Exercise(
    inputs=_log_weights,
    right=_bound,
    also_right=(_bound_by_hand, lambda log_w: torch.log_softmax(log_w, 0).neg().add(log_w)[0] - math.log(len(log_w))),
    wrong={
        "the mean of the logarithms is the ELBO. Here the mean is taken first, the logarithm of it then.": (
            lambda log_w: log_w.mean(0)
        ),
        "you summed the weights and did not divide by k: subtract log k. Twice the guesses must not make the bound "
        "larger by log 2.": lambda log_w: log_w.logsumexp(0),
        "e^−2000 is zero for a computer, and its logarithm is −∞. Take out the largest log w before exp: "
        "log-sum-exp does.": lambda log_w: log_w.exp().mean(0).log(),
        "you averaged over the data, not over the guesses: log_w is (k, batch).": lambda log_w: _bound(log_w, 1),
        "only the best guess counts for you: log 1/k max w. The others add to the sum.": (
            lambda log_w: log_w.max(0).values - math.log(len(log_w))
        ),
        "you divide by k outside of the logarithm.": lambda log_w: log_w.logsumexp(0) / len(log_w),
        "the log k must be subtracted once: the mean of k weights is 1/k times their sum.": (
            lambda log_w: log_w.logsumexp(0) + math.log(len(log_w))
        ),
    },
)

# ---------------------------------------------------------------------- how-few-nats (open)


def _budget(generator):
    """Variances of the data along their axes, and a squared error that drowns the last three.

    The first five stand so high that an answer which forgets what the drowned ones cost still keeps all five. Two of
    the drowned ones lie between an even share of the error and the level: one round of handing on is not enough.
    """
    u = torch.rand(9, generator=generator, dtype=torch.float64)
    drowned = torch.stack([0.9 + 0.08 * u[5], 0.88 + 0.02 * u[6], 0.05 + 0.15 * u[7]])
    relative = torch.cat([(2 + u[:5]).exp().sort(descending=True).values, drowned])
    level = (2 * u[8] - 1).exp()
    return relative * level, torch.clamp(relative, max=1.0).sum() * level


def _level(variances, error, steps=80):
    """The water level θ with Σ min(λ, θ) = error, by bisection."""
    low, high = torch.zeros_like(error), variances.max()
    for _ in range(steps):
        middle = (low + high) / 2
        if torch.minimum(variances, middle).sum() < error:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _nats(variances, error):
    return 0.5 * (variances / _level(variances, error)).log().clamp(min=0).sum()


def _nats_by_counting(variances, error):
    """Try every number of survivors: the level must lie between the last survivor and the first drowned one."""
    drowned = variances.flip(0).cumsum(0).flip(0)
    for k in range(1, len(variances) + 1):
        rest = drowned[k] if k < len(variances) else 0.0
        level = (error - rest) / k
        if level <= variances[k - 1] and (k == len(variances) or level >= variances[k]):
            return 0.5 * (variances[:k] / level).log().sum()
    return torch.zeros_like(error)


def _nats_handed_on(variances, error, rounds=100):
    """Even shares; what an axis cannot use is handed to the others: round after round it ends at the level."""
    share = error / len(variances)
    for _ in range(rounds):
        alive = variances > share
        share = (error - variances[~alive].sum()) / alive.sum()
    return 0.5 * (variances / share).log().clamp(min=0).sum()


def _nats_of_survivors_only(variances, error):
    """The survivors are looked for, and the level computed, as if the drowned axes cost nothing."""
    k = len(variances)
    while k > 1 and variances[k - 1] <= error / k:
        k -= 1
    return 0.5 * (variances[:k] * k / error).log().sum()


how_few_nats = Exercise(
    inputs=_budget,
    right=_nats,
    also_right=(_nats_by_counting, _nats_handed_on),
    wrong={
        "you give every direction the same error, even those that have less variance than that: their nats come out "
        "negative. A direction cannot have a larger error than its variance.": (
            lambda v, e: 0.5 * (v / (e / len(v))).log().sum()
        ),
        "you cut the negative nats off, but did not hand the unused error to the other directions: what drowned "
        "directions do not use raises the level for the rest.": lambda v, e: (
            0.5 * (v / (e / len(v))).log().clamp(min=0).sum()
        ),
        "you handed the unused error on once. That raises the level for the rest, more directions drown, and they have "
        "unused error, too: go on until no more drown.": lambda v, e: _nats_handed_on(v, e, rounds=1),
        "these are bits. The question asks for nats.": lambda v, e: _nats(v, e) / math.log(2),
        "the factor ½ is missing: halving a standard deviation costs log 2, halving a variance half of it.": (
            lambda v, e: 2 * _nats(v, e)
        ),
        "you took the error of the whole datum for the water level. The level is the error of *one* axis above the "
        "water; the errors of all axes add up to what you are allowed.": lambda v, e: (
            0.5 * (v / e).log().clamp(min=0).sum()
        ),
        "you spent the whole error on the directions that survive. Those that drown cost their variance, too.": (
            _nats_of_survivors_only
        ),
        "this is the water level, not what the survivors cost.": lambda v, e: _level(v, e),
        "this counts the survivors. What do they cost, in nats?": lambda v, e: (v > _level(v, e)).sum().double(),
    },
    atol=1e-4,
    rtol=1e-4,
)

# ---------------------------------------------------------------------- the catalogue

EXERCISES = {
    "divergence-of-a-guess": divergence_of_a_guess,
    "best-narrow-guess": best_narrow_guess,
    "likelihood-with-its-scale": likelihood_with_its_scale,
    "balanced-loss": balanced_loss,
    "many-guesses": many_guesses,
    "how-few-nats": how_few_nats,
}
