"""The exercises of chapter 10, denoising diffusion: each with its right answer and the wrong ones that people give."""

import torch

from companion.exercises.checking import Exercise
from companion.numerics.schedules import cosine_schedule


def _points(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------------- straight-to-step-t (warm-up)


def _one_shot_inputs(generator):
    beta = 0.02 + 0.2 * torch.rand(20, generator=generator, dtype=torch.float64)
    return beta, 7, 1.5 + _points(generator, 16, 2), _points(generator, 16, 2)


def _one_shot(*, left=lambda beta, t: (1 - beta[:t]).prod(), mix=lambda a, x, e: a.sqrt() * x + (1 - a).sqrt() * e):
    return lambda beta, t, x_0, eps: mix(left(beta, t), x_0, eps)


def _one_shot_by_logs(beta, t, x_0, eps):
    left = torch.log1p(-beta).cumsum(0)[t - 1].exp()
    return torch.lerp(torch.zeros_like(x_0), x_0, left**0.5) + eps * (1 - left) ** 0.5


straight_to_step_t = Exercise(
    inputs=_one_shot_inputs,
    right=_one_shot(),
    also_right=(_one_shot_by_logs,),
    wrong={
        "the noise is multiplied by its variance 1 − ᾱ_t. Its standard deviation is the root of that.": (
            _one_shot(mix=lambda a, x, e: a.sqrt() * x + (1 - a) * e)
        ),
        "the data are multiplied by ᾱ_t. Each step multiplies by √(1 − β), so the product is √ᾱ_t.": (
            _one_shot(mix=lambda a, x, e: a * x + (1 - a).sqrt() * e)
        ),
        "this is x_{t−1}: one factor is missing. beta[0] is β_1, so β_1 … β_t are beta[:t].": (
            _one_shot(left=lambda beta, t: (1 - beta[: t - 1]).prod())
        ),
        "this is x_{t+1}: one factor too many. beta[0] is β_1, so β_1 … β_t are beta[:t].": (
            _one_shot(left=lambda beta, t: (1 - beta[: t + 1]).prod())
        ),
        "this is one step with β_t, from x_{t−1}. From x_0 you need the product over all steps up to t.": (
            _one_shot(left=lambda beta, t: 1 - beta[t - 1])
        ),
        "the roots are missing: ᾱ_t is a share of the variance, and you multiply numbers, by standard deviations.": (
            _one_shot(mix=lambda a, x, e: a * x + (1 - a) * e)
        ),
        "you added the β. Each step shrinks what the steps before have left: multiply the 1 − β.": (
            _one_shot(left=lambda beta, t: (1 - beta[:t].sum()).clamp(min=0))
        ),
        "the data are not shrunk, so the variance grows from step to step.": (
            _one_shot(mix=lambda a, x, e: x + (1 - a).sqrt() * e)
        ),
        "signal and noise are exchanged: ᾱ_t is what is left of the data.": (
            _one_shot(mix=lambda a, x, e: (1 - a).sqrt() * x + a.sqrt() * e)
        ),
    },
)

# ---------------------------------------------------------------------- snr-difference (derivation)


def _levels(generator):
    beta = 0.02 + 0.2 * torch.rand(20, generator=generator, dtype=torch.float64)
    return torch.cat([beta.new_ones(1), (1 - beta).cumprod(0)]), 6


def _snr(alpha_bar, t):
    return alpha_bar[t] / (1 - alpha_bar[t])


def _weight_by_posterior(alpha_bar, t):
    """The coefficient of x_0 in the posterior's mean, squared, over twice the posterior's variance."""
    now, before = alpha_bar[t], alpha_bar[t - 1]
    beta = 1 - now / before
    variance = beta * (1 - before) / (1 - now)
    return (before.sqrt() * beta / (1 - now)) ** 2 / (2 * variance)


def _noise_weight(alpha_bar, t):
    now, before = alpha_bar[t], alpha_bar[t - 1]
    beta = 1 - now / before
    return beta / (2 * (1 - beta) * (1 - before))


def _weight_with_beta(alpha_bar, t):
    now, before = alpha_bar[t], alpha_bar[t - 1]
    beta = 1 - now / before
    return before * beta / (2 * (1 - now) ** 2)


snr_difference = Exercise(
    inputs=_levels,
    right=lambda alpha_bar, t: (_snr(alpha_bar, t - 1) - _snr(alpha_bar, t)) / 2,
    also_right=(_weight_by_posterior, lambda alpha_bar, t: _noise_weight(alpha_bar, t) * _snr(alpha_bar, t)),
    wrong={
        "a factor ½ is missing: the divergence of two Gaussians of equal variance has 2σ² below.": (
            lambda alpha_bar, t: _snr(alpha_bar, t - 1) - _snr(alpha_bar, t)
        ),
        "the sign is turned: the signal-to-noise ratio falls with t, and a weight is positive.": (
            lambda alpha_bar, t: (_snr(alpha_bar, t) - _snr(alpha_bar, t - 1)) / 2
        ),
        "this is the weight of the error of the noise. The error of the data is (1 − ᾱ_t)/ᾱ_t times as large, so its "
        "weight is the inverse of that times as large.": _noise_weight,
        "you multiplied the weight of the noise by (1 − ᾱ_t)/ᾱ_t. The error of the data is larger by that, so the "
        "weight is smaller by it.": lambda alpha_bar, t: _noise_weight(alpha_bar, t) / _snr(alpha_bar, t),
        "this takes σ_t² = β_t for the variance of the model. Asked is the posterior's variance, β̃_t.": (
            _weight_with_beta
        ),
        "the coefficient of x_0 in the mean enters squared.": lambda alpha_bar, t: (
            _weight_by_posterior(alpha_bar, t)
            / (alpha_bar[t - 1].sqrt() * (1 - alpha_bar[t] / alpha_bar[t - 1]) / (1 - alpha_bar[t]))
        ),
        "this is half the signal-to-noise ratio at t − 1; that at t must be taken off.": (
            lambda alpha_bar, t: _snr(alpha_bar, t - 1) / 2
        ),
    },
)

# ---------------------------------------------------------------------- a-step-for-each (spot the bug; E24)


def _training_inputs(generator):
    return _points(generator, 500, 2), 10, 400, 64, generator


def _any_images(n, batch, generator):
    return torch.randint(n, (batch,), generator=generator)


def _drawn(*, times, noise=torch.randn, choose=_any_images):
    def training_batches(images, T, steps, batch, generator):
        made = []
        for _ in range(steps):
            rows = choose(len(images), batch, generator)
            t = times(batch, T, generator)
            made.append((images[rows], t, noise(batch, images.shape[1], generator=generator, dtype=images.dtype)))
        return made

    return training_batches


def _uniform(batch, T, generator):
    return torch.randint(1, T + 1, (batch,), generator=generator)


def _by_epochs(images, T, steps, batch, generator):
    """Each image once an epoch; times by rounding up uniform numbers."""
    made, order = [], images[:0]
    while len(made) < steps:
        if len(order) < batch:
            order = images[torch.randperm(len(images), generator=generator)]
        t = torch.ceil(T * (1 - torch.rand(batch, generator=generator))).long()
        eps = torch.randn(batch, images.shape[1], generator=generator, dtype=images.dtype)
        made.append([order[:batch], t, eps])
        order = order[batch:]
    return made


def _all_times_for_each(images, T, steps, batch, generator):
    made = []
    for image in images:
        for t in range(T, 0, -1):
            eps = torch.randn(batch, images.shape[1], generator=generator, dtype=images.dtype)
            made.append((image.expand(batch, -1), torch.full((batch,), t), eps))
    return made[:steps]


def _names(points):
    """A whole number for each point, by which it is told from the others."""
    return (1e6 * points[..., 0].double()).round()


def _statistics(made, images, T, steps, batch, generator):
    """What good batches have in common. Anything else than a list of triples is returned as it is."""
    if not isinstance(made, list | tuple) or not made or any(len(row) != 3 for row in made):
        return made
    x_0 = torch.stack([row[0] for row in made]).double()
    t = torch.stack([torch.as_tensor(row[1]).expand(len(x_0[0])) for row in made]).double()
    eps = torch.stack([row[2] for row in made]).double()
    name = _names(x_0)
    mixed = 1 + (name.sort(dim=1).values.diff(dim=1) != 0).sum(1) > batch / 2
    return {
        "the number of batches": len(made),
        "the smallest t": t.min(),
        "the largest t": t.max(),
        "the mean t": t.mean(),
        "the spread of t within a batch": t.std(dim=1).mean(),
        "the share of batches with many different images": mixed.double().mean(),
        "whether nearly all images are in some batch": torch.isin(_names(images), name).double().mean() > 0.9,
        "whether every row of a batch is an image": torch.isin(name, _names(images)).all(),
        "the mean of the noise": eps.mean(),
        "the spread of the noise": eps.std(),
    }


a_step_for_each = Exercise(
    inputs=_training_inputs,
    right=_drawn(times=_uniform),
    also_right=(_by_epochs,),
    wrong={
        "every batch still holds one image at one step, and each image is taken through all T steps before the next. "
        "Draw the images of a batch at random, and for each one a step.": _all_times_for_each,
        "the images of a batch are different now, but they share one step. Draw a step for each.": _drawn(
            times=lambda batch, T, generator: _uniform(1, T, generator).expand(batch)
        ),
        "each row has its own step now, but every row of a batch is the same image. Draw the images too, one a row.": (
            _drawn(times=_uniform, choose=lambda n, batch, generator: _any_images(n, 1, generator).expand(batch))
        ),
        "every batch holds the same images, the first ones: most of the data are never seen. Draw the images anew for "
        "each batch, from all of them.": (
            _drawn(times=_uniform, choose=lambda n, batch, generator: torch.arange(batch))
        ),
        "your steps run from 0 to T − 1. At t = 0 there is no noise to predict, and T never occurs.": _drawn(
            times=lambda batch, T, generator: _uniform(batch, T, generator) - 1
        ),
        "T never occurs: the upper end of torch.randint is not included.": _drawn(
            times=lambda batch, T, generator: _uniform(batch, T - 1, generator)
        ),
        "your times are numbers between 0 and 1. That is what the network is told, t/T; asked are the steps 1 … T.": (
            _drawn(times=lambda batch, T, generator: torch.rand(batch, generator=generator))
        ),
        "your noise is uniform on (0, 1). It must be standard normal.": _drawn(times=_uniform, noise=torch.rand),
    },
    statistic=_statistics,
    atol=0.09,  # the mean t of 25,600 draws from 1 … 10 has a standard error of 0.018; two such means are compared
    rtol=0,
    false_alarm=1e-3,
)

# ---------------------------------------------------------------------- one-ddim-step (variant)


def _ddim_inputs(generator):
    now, then = torch.tensor([0.3, 0.62], dtype=torch.float64)
    return _points(generator, 16, 2), _points(generator, 16, 2), now, then


def _data(x, noise, now):
    return (x - (1 - now).sqrt() * noise) / now.sqrt()


def _ddim(x, noise, now, then):
    return then.sqrt() * _data(x, noise, now) + (1 - then).sqrt() * noise


def _ddim_by_angles(x, noise, now, then):
    """With √ᾱ = cos φ the step is linear in x and ε̂: x cos φ_s/cos φ_t − ε̂ sin(φ_t − φ_s)/cos φ_t."""
    phi_t, phi_s = torch.acos(now.sqrt()), torch.acos(then.sqrt())
    return (phi_s.cos() * x - (phi_t - phi_s).sin() * noise) / phi_t.cos()


def _posterior_mean(x, noise, now, then):
    beta = 1 - now / then
    return then.sqrt() * beta / (1 - now) * _data(x, noise, now) + (1 - beta).sqrt() * (1 - then) / (1 - now) * x


one_ddim_step = Exercise(
    inputs=_ddim_inputs,
    right=_ddim,
    also_right=(_ddim_by_angles,),
    wrong={
        "you stopped at the predicted data themselves. Put the noise back, at the level of s.": (
            lambda x, noise, now, then: _data(x, noise, now)
        ),
        "you shrank the predicted data to the level of s, but put no noise back: x_s must have the noise of s, "
        "√(1 − ᾱ_s) times the guess.": lambda x, noise, now, then: then.sqrt() * _data(x, noise, now),
        "you put the noise back at the level of t, where you came from.": (
            lambda x, noise, now, then: then.sqrt() * _data(x, noise, now) + (1 - now).sqrt() * noise
        ),
        "the predicted data keep the weight √ᾱ_t that they had at t: this takes you back to where you were, with less "
        "noise only.": lambda x, noise, now, then: now.sqrt() * _data(x, noise, now) + (1 - then).sqrt() * noise,
        "you went the wrong way: the two levels are exchanged.": lambda x, noise, now, then: _ddim(x, noise, then, now),
        "this is the mean of the ancestral step. It has less variance than x_s must have, as the ancestral step adds "
        "fresh noise; the deterministic one keeps all of the predicted noise.": _posterior_mean,
        "the roots are missing: ᾱ is a share of the variance, and you multiply numbers, not variances.": (
            lambda x, noise, now, then: then * ((x - (1 - now) * noise) / now) + (1 - then) * noise
        ),
        "you put fresh noise back. The deterministic step draws nothing: it uses the guessed noise that it is given.": (
            lambda x, noise, now, then: then.sqrt() * _data(x, noise, now) + (1 - then).sqrt() * torch.randn_like(noise)
        ),
        "you took the noise out of x but did not enlarge the rest: what remains is √ᾱ_t x̂_0, to be divided by √ᾱ_t.": (
            lambda x, noise, now, then: then.sqrt() * (x - (1 - now).sqrt() * noise) + (1 - then).sqrt() * noise
        ),
        "you multiplied the whole state by √ᾱ_s. First take the predicted data out of it.": (
            lambda x, noise, now, then: then.sqrt() * x + (1 - then).sqrt() * noise
        ),
    },
)

# ---------------------------------------------------------------------- one-noise-level (spot the bug; E25)


def _inpainting_inputs(generator):
    beta = 0.02 + 0.2 * torch.rand(20, generator=generator, dtype=torch.float64)
    alpha_bar = torch.cat([beta.new_ones(1), (1 - beta).cumprod(0)])
    known = torch.arange(6) % 3 < 2
    x_unknown, image, eps = (1.0 + _points(generator, 16, 6) for _ in range(3))
    return x_unknown, image, known, eps - 1.0, alpha_bar, 5


def _join(level):
    def step(x_unknown, image, known, eps, alpha_bar, t):
        return torch.where(known, level(image, eps, alpha_bar, t), x_unknown)

    return step


def _noisy(image, eps, left):
    return left.sqrt() * image + (1 - left).sqrt() * eps


def _join_by_weights(x_unknown, image, known, eps, alpha_bar, t):
    m = known.to(image)
    left = alpha_bar[t - 1]
    return m * (image * left**0.5 + eps * (1 - left) ** 0.5) + (1 - m) * x_unknown


one_noise_level = Exercise(
    inputs=_inpainting_inputs,
    right=_join(lambda image, eps, alpha_bar, t: _noisy(image, eps, alpha_bar[t - 1])),
    also_right=(_join_by_weights,),
    wrong={
        "the known part still has the noise of step t, while the unknown part has come down to t − 1. In the last step "
        "the known pixels would keep noise that nothing removes.": (
            _join(lambda image, eps, alpha_bar, t: _noisy(image, eps, alpha_bar[t]))
        ),
        "the known part is clean, while the unknown part has the noise of t − 1: the network never saw that.": (
            _join(lambda image, eps, alpha_bar, t: image)
        ),
        "you took one level too many: this is the noise of t − 2.": (
            _join(lambda image, eps, alpha_bar, t: _noisy(image, eps, alpha_bar[t - 2]))
        ),
        "known and unknown are exchanged: known is true where the image is to be kept.": (
            lambda x_unknown, image, known, eps, alpha_bar, t: torch.where(
                known, x_unknown, _noisy(image, eps, alpha_bar[t - 1])
            )
        ),
        "the known part has the noise of one step, β. It must have all the noise that is left at t − 1.": (
            _join(lambda image, eps, alpha_bar, t: _noisy(image, eps, alpha_bar[t] / alpha_bar[t - 1]))
        ),
        "the known part is noisy at the right level, but not shrunk by √ᾱ_{t−1}.": (
            _join(lambda image, eps, alpha_bar, t: image + (1 - alpha_bar[t - 1]).sqrt() * eps)
        ),
    },
)

# ---------------------------------------------------------------------- two-hills (open)


def _hills_inputs(generator):
    a, s = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    return cosine_schedule().alpha_bar, 1.4 + 0.8 * a, 0.4 + 0.3 * s


def _last(condition):
    """The last step at which a condition on (ᾱ, a, s) holds; it holds at first and then no more."""

    def last(alpha_bar, a, s):
        return int(condition(alpha_bar, a, s).nonzero().max())

    return last


def _last_by_looking(x):
    """Two maxima mean that the density is larger at x, to the side of 0, than at 0."""

    def last(alpha_bar, a, s):
        variance, center = alpha_bar * s**2 + 1 - alpha_bar, alpha_bar.sqrt() * a
        here, there = (
            torch.logaddexp(-((y - center) ** 2) / (2 * variance), -((y + center) ** 2) / (2 * variance))
            for y in (0.0, x)
        )
        return int((there > here).nonzero().max())

    return last


two_hills = Exercise(
    inputs=_hills_inputs,
    right=_last(lambda left, a, s: left * a**2 > left * s**2 + 1 - left),
    also_right=(_last_by_looking(1e-3), lambda alpha_bar, a, s: int((alpha_bar > 1 / (1 + a**2 - s**2)).sum()) - 1),
    wrong={
        "this is where signal and noise of data of variance one are equal, ᾱ = ½. The distance of the hills counts: "
        "they are at ±√ᾱ a.": _last(lambda left, a, s: left > 0.5),
        "the hills have a width of their own at the start: at step t the variance of each is ᾱ s² + 1 − ᾱ.": (
            _last(lambda left, a, s: left * a**2 > 1 - left)
        ),
        "the hills move toward each other: at step t they are at ±√ᾱ a, not at ±a.": (
            _last(lambda left, a, s: a**2 > left * s**2 + 1 - left)
        ),
        "the own width of a hill shrinks like the data: its variance at step t is ᾱ s² + 1 − ᾱ, not s² + 1 − ᾱ.": (
            _last(lambda left, a, s: left * a**2 > s**2 + 1 - left)
        ),
        "you compared the distance of the hills from 0 with a variance. Compare it with a standard deviation.": (
            _last(lambda left, a, s: left.sqrt() * a > left * s**2 + 1 - left)
        ),
        "you are a few steps early: just before they merge, the two hills are close together and the valley between "
        "them is shallow. Look nearer to 0 than you did, or at the second derivative there.": _last_by_looking(0.5),
        "two hills with 2√ᾱ a between them merge when that is two standard deviations, not one.": (
            _last(lambda left, a, s: 4 * left * a**2 > left * s**2 + 1 - left)
        ),
    },
    atol=2.0,
    rtol=0,
)

EXERCISES = {
    "straight-to-step-t": straight_to_step_t,
    "snr-difference": snr_difference,
    "a-step-for-each": a_step_for_each,
    "one-ddim-step": one_ddim_step,
    "one-noise-level": one_noise_level,
    "two-hills": two_hills,
}
