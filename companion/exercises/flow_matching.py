"""The exercises of chapter 12, flow matching: each with its right answer and the wrong ones that people give."""

import math

import torch

from companion.exercises.checking import Exercise


def _pairs(generator, n=16):
    x_0, x_1 = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
    return x_0, 1.5 * x_1 + 1.0


# ---------------------------------------------------------------------- toward-the-data (warm-up; E18, E19, E20)


def _one_time(generator):
    x, x_1 = _pairs(generator)
    return torch.tensor(0.4, dtype=torch.float64), x, x_1


toward_the_data = Exercise(
    inputs=_one_time,
    right=lambda t, x, x_1: (x_1 - x) / (1 - t),
    also_right=(
        lambda t, x, x_1: x_1 - (x - t * x_1) / (1 - t),
        lambda t, x, x_1: (1 + t / (1 - t)) * x_1 - x / (1 - t),
    ),
    wrong={
        "your arrows point away from the data. At t = 1 the point must be x_1, so it has x_1 − x still to go.": (
            lambda t, x, x_1: (x - x_1) / (1 - t)
        ),
        "the coefficient of x_1 is too large: α̇ − (σ̇/σ) α = 1 + t/(1 − t) = 1/(1 − t). A point that sits on its target "
        "must have velocity 0.": lambda t, x, x_1: ((1 + t) * x_1 - x) / (1 - t),
        "this is the way that is left, not the speed. It must be covered in the time that is left, 1 − t.": (
            lambda t, x, x_1: x_1 - x
        ),
        "you divide by the time that has passed. The way x_1 − x must be covered in the time that is left.": (
            lambda t, x, x_1: (x_1 - x) / t
        ),
        "you took (1 − t)² for the standard deviation. It is the variance: σ = 1 − t.": (
            lambda t, x, x_1: ((1 + t) * x_1 - 2 * x) / (1 - t)
        ),
    },
)

# ---------------------------------------------------------------------- weighted-vote (variant)


def _crowd(generator):
    x, _ = _pairs(generator)
    points = 2 * torch.randn(5, 2, generator=generator, dtype=torch.float64)
    return torch.tensor(0.5, dtype=torch.float64), x, points


def _vote(t, x, points, *, log_weight=None, velocity=None):
    """E[u | x_t = x] for equally likely points, with a planted change."""
    alpha, sigma = torch.sin(math.pi * t / 2), torch.cos(math.pi * t / 2)
    gap = (x[:, None] - alpha * points).square().sum(2)
    w = (-gap / (2 * sigma**2) if log_weight is None else log_weight(x, points, alpha, sigma)).softmax(1)
    toward = math.pi / 2 * (points - alpha * x[:, None]) / sigma
    u = toward if velocity is None else velocity(x[:, None], points, alpha, sigma)
    return (w[..., None] * u).sum(1)


def _vote_from_mean(t, x, points):
    """The same by way of the posterior mean, since u is affine in x_1."""
    alpha, sigma = torch.sin(math.pi * t / 2), torch.cos(math.pi * t / 2)
    w = ((alpha * x @ points.T - alpha**2 * points.square().sum(1) / 2) / sigma**2).softmax(1)
    return math.pi / 2 * (w @ points - alpha * x) / sigma


weighted_vote = Exercise(
    inputs=_crowd,
    right=_vote,
    also_right=(_vote_from_mean,),
    wrong={
        "every point has the same vote. A point that could hardly have sent you to x must count for less: weigh by the "
        "posterior.": lambda t, x, p: _vote(t, x, p, log_weight=lambda x, p, a, s: torch.zeros(len(x), len(p)).to(x)),
        "far points get the larger votes: the exponent of a Gaussian density is negative.": (
            lambda t, x, p: _vote(
                t, x, p, log_weight=lambda x, p, a, s: (x[:, None] - a * p).square().sum(2) / (2 * s**2)
            )
        ),
        "in the weights you divide by σ. The density of N(α x_1, σ² I) has the variance σ² there.": (
            lambda t, x, p: _vote(
                t, x, p, log_weight=lambda x, p, a, s: -(x[:, None] - a * p).square().sum(2) / (2 * s)
            )
        ),
        "in the weights you measure the distance to x_1. At time t the cloud of x_1 is centered at α_t x_1.": (
            lambda t, x, p: _vote(t, x, p, log_weight=lambda x, p, a, s: -(x[:, None] - p).square().sum(2) / (2 * s**2))
        ),
        "the weights are right, the velocities are those of the CondOT path. Put α = sin(πt/2), σ = cos(πt/2) into the "
        "formula for u_t(x | x_1).": lambda t, x, p: _vote(t, x, p, velocity=lambda x, p, a, s: (p - x) / (1 - t)),
        "you let the nearest cloud decide alone. The marginal velocity is the weighted mean of all.": (
            lambda t, x, p: _vote(t, x, p, log_weight=lambda x, p, a, s: -1e9 * (x[:, None] - a * p).square().sum(2))
        ),
    },
)

# ---------------------------------------------------------------------- what-is-predicted (spot the bug; E23, E19)


def _training_pairs(generator):
    x_0, x_1 = _pairs(generator)
    t = torch.rand(len(x_0), generator=generator, dtype=torch.float64) * 0.9

    def model(t, x):
        return torch.stack([x[:, 1] - t, t * x[:, 0] + 0.3], dim=1)

    return model, x_0, x_1, t


def _loss(target, *, swap=False, reduce=None):
    def loss(model, x_0, x_1, t):
        s = t[:, None]
        x_t = s * x_0 + (1 - s) * x_1 if swap else (1 - s) * x_0 + s * x_1
        square = (model(t, x_t) - target(x_0, x_1, x_t, s)).square()
        return square.sum(1) if reduce is None else reduce(square)

    return loss


what_is_predicted = Exercise(
    inputs=_training_pairs,
    right=_loss(lambda x_0, x_1, x_t, t: x_1 - x_0),
    also_right=(
        _loss(lambda x_0, x_1, x_t, t: (x_1 - x_t) / (1 - t)),
        lambda m, x_0, x_1, t: torch.linalg.norm(m(t, x_0.lerp(x_1, t[:, None])) - (x_1 - x_0), dim=1) ** 2,
    ),
    wrong={
        "the network is still trained to predict the noise x_0, yet the sampler adds its output to x as a velocity. "
        "The target is x_1 − x_0.": _loss(lambda x_0, x_1, x_t, t: x_0),
        "the target x_0 − x_1 points from the data to the noise: a sampler that runs from 0 to 1 is driven away from "
        "the data.": _loss(lambda x_0, x_1, x_t, t: x_0 - x_1),
        "your x_t is data at t = 0 and noise at t = 1. Here t runs from noise to data.": (
            _loss(lambda x_0, x_1, x_t, t: x_1 - x_0, swap=True)
        ),
        "the target is the data point itself. That is a legal thing to predict, but the sampler must then convert it "
        "to a velocity, and this one does not.": _loss(lambda x_0, x_1, x_t, t: x_1),
        "x_1 − x_t is the way that is left. Divided by the time that is left, 1 − t, it is the velocity.": (
            _loss(lambda x_0, x_1, x_t, t: x_1 - x_t)
        ),
        "the loss of a pair is the squared length of a vector: sum over its coordinates, do not average. (The gradient "
        "only changes its scale, but the floor of the loss that this chapter computes is for the sum.)": (
            _loss(lambda x_0, x_1, x_t, t: x_1 - x_0, reduce=lambda square: square.mean(1))
        ),
    },
)

# ---------------------------------------------------------------------- the-last-step (spot the bug; E21)


def _sampler_inputs(generator):
    x, _ = _pairs(generator)

    def v(t, x):
        return torch.stack([x[:, 1] + t**2, 1 - x[:, 0] * t], dim=1)

    return v, x, 8


def _euler(v, x, n, *, times=None, h=None):
    h = 1 / n if h is None else h
    for t in torch.arange(n, dtype=x.dtype) / n if times is None else times:
        x = x + h * v(t, x)
    return x


def _euler_while(v, x, n):
    k = 0
    while k < n:
        x, k = x + v(torch.tensor(k / n, dtype=x.dtype), x) / n, k + 1
    return x


def _times(low, high, n):
    return torch.arange(low, high, dtype=torch.float64) / n


the_last_step = Exercise(
    inputs=_sampler_inputs,
    right=_euler,
    also_right=(_euler_while, lambda v, x, n: _euler(v, x, n, times=torch.linspace(0, 1, n + 1).double()[:-1])),
    wrong={
        "you make n − 1 steps of 1/n: the samples stop at t = 1 − 1/n, with noise left in them.": (
            lambda v, x, n: _euler(v, x, n, times=_times(0, n - 1, n))
        ),
        "the step from t = 0 is missing: the noise is handed to the field as if it were at t = 1/n already.": (
            lambda v, x, n: _euler(v, x, n, times=_times(1, n, n))
        ),
        "n steps, but each slope is taken at the end of its step: the first one belongs to t = 0.": (
            lambda v, x, n: _euler(v, x, n, times=_times(1, n + 1, n))
        ),
        "you make n + 1 steps of 1/n and end at t = 1 + 1/n, where the field means nothing.": (
            lambda v, x, n: _euler(v, x, n, times=_times(0, n + 1, n))
        ),
        "you run the clock from 1 to 0. In this chapter t = 0 is noise, and sampling goes from 0 to 1.": (
            lambda v, x, n: _euler(v, x, n, times=1 - _times(0, n, n))
        ),
        "the n − 1 steps were stretched to cover the whole way: one step fewer than was asked for.": (
            lambda v, x, n: _euler(v, x, n - 1)
        ),
    },
)

# ---------------------------------------------------------------------- score-from-velocity (derivation)


def _velocity_inputs(generator):
    x, v = _pairs(generator)
    return torch.tensor(0.3, dtype=torch.float64), x, v


score_from_velocity = Exercise(
    inputs=_velocity_inputs,
    right=lambda t, x, v: (t * v - x) / (1 - t),
    also_right=(lambda t, x, v: -(x - t * (x + (1 - t) * v)) / (1 - t) ** 2, lambda t, x, v: (v - x) / (1 - t) - v),
    wrong={
        "the sign is turned: without data to go to (v = 0) the score of the noise must point to its center.": (
            lambda t, x, v: (x - t * v) / (1 - t)
        ),
        "this is the noise prediction with its sign changed. The score is −ε̂ over the standard deviation 1 − t.": (
            lambda t, x, v: t * v - x
        ),
        "you divided by the variance (1 − t)². The score is −ε̂/σ, and ε̂ = x − t v has been divided by nothing yet.": (
            lambda t, x, v: (t * v - x) / (1 - t) ** 2
        ),
        "you used x − v for the noise. Solve x = t x̂_1 + (1 − t) ε̂ and v = x̂_1 − ε̂ for ε̂: v comes with a factor t.": (
            lambda t, x, v: (v - x) / (1 - t)
        ),
        "this is built from the data prediction x + (1 − t) v, not from the noise prediction x − t v.": (
            lambda t, x, v: -(x + (1 - t) * v) / (1 - t)
        ),
    },
)

# ---------------------------------------------------------------------- count-the-crossings (variant; E22)


def _products(x_0, x_1):
    """Δx_0 · Δx_1 for every two pairs, (n, n)."""
    return ((x_0[:, None] - x_0) * (x_1[:, None] - x_1)).sum(2)


def _segments_that_meet(x_0, x_1):
    """The drawn segments that intersect, whatever the time: the wrong count of E22."""

    def side(a, b, c):
        u, w = b - a, c - a
        return u[..., 0] * w[..., 1] - u[..., 1] * w[..., 0]

    a, b, c, d = x_0[:, None], x_1[:, None], x_0[None], x_1[None]
    meet = (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
    return int(meet.triu(1).sum())


def _count_loop(x_0, x_1):
    count = 0
    for i in range(len(x_0)):
        for j in range(i):
            count += int(torch.dot(x_0[i] - x_0[j], x_1[i] - x_1[j]) < 0)
    return count


count_the_crossings = Exercise(
    inputs=lambda generator: tuple(torch.randn(2, 40, 2, generator=generator, dtype=torch.float64)),
    right=lambda x_0, x_1: int((_products(x_0, x_1) < 0).sum()) // 2,
    also_right=(_count_loop, lambda x_0, x_1: (_products(x_0, x_1) < 0).triu(1).sum()),
    wrong={
        "each two pairs are counted twice, as (i, j) and as (j, i).": lambda x_0, x_1: int(
            (_products(x_0, x_1) < 0).sum()
        ),
        "you counted the pairs that keep their order. A crossing turns the order around: the product is negative.": (
            lambda x_0, x_1: int((_products(x_0, x_1) > 0).triu(1).sum())
        ),
        "you compared neighboring rows only; every two pairs must be compared.": (
            lambda x_0, x_1: int((_products(x_0, x_1).diagonal(1) < 0).sum())
        ),
        "you counted drawn segments that meet. In the plane two segments may meet at different times, which costs "
        "nothing, and pairs that could be swapped with gain need not meet.": _segments_that_meet,
        "the diagonal is counted: a pair and itself have the product 0, and 0 ≤ 0.": (
            lambda x_0, x_1: int((_products(x_0, x_1) <= 0).triu(0).sum())
        ),
    },
    atol=1e-6,
    rtol=0,
)

# ---------------------------------------------------------------------- noise-on-the-way (sampler)

MEAN, SPREAD, DRAWS = 1.5, 0.5, 20_000


def _gaussian_velocity(t, x):
    """The marginal velocity of the CondOT path to N(MEAN, SPREAD²), in closed form."""
    variance = (t * SPREAD) ** 2 + (1 - t) ** 2
    return MEAN + (t * SPREAD**2 - (1 - t)) / variance * (x - t * MEAN)


def _noisy_inputs(generator):
    x_0 = torch.randn(DRAWS, 1, generator=generator, dtype=torch.float64)
    return _gaussian_velocity, x_0, 1.5, 200, generator


def _noisy_sampler(pull=0.5, push=lambda noise, t, h: noise * math.sqrt((1 - t) * h)):
    def sampler(v, x, noise, steps, generator):
        h = 1 / steps
        for k in range(steps):
            t = k * h
            velocity = v(t, x)
            kick = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x = x + h * (velocity - pull * noise**2 * (x - t * velocity)) + push(noise, t, h) * kick
        return x

    return sampler


def _noisy_by_score(v, x, noise, steps, generator):
    for t in torch.arange(steps, dtype=x.dtype) / steps:
        score = (t * v(t, x) - x) / (1 - t)
        g = noise * (1 - t).sqrt()
        kick = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x + (v(t, x) + g**2 / 2 * score) / steps + g * kick / math.sqrt(steps)
    return x


def _law(x, v, x_0, *rest):
    """Mean, standard deviation, and the correlation with the start: what noise on the way must and must not change."""
    if not isinstance(x, torch.Tensor) or x.shape != x_0.shape:
        return x
    a, b = x - x.mean(), x_0 - x_0.mean()
    linked = (a * b).mean() / (a.std() * b.std() + 1e-12)
    return {"the mean": x.mean(), "the standard deviation": x.std(), "the correlation of start and end": linked}


noise_on_the_way = Exercise(
    inputs=_noisy_inputs,
    right=_noisy_sampler(),
    also_right=(_noisy_by_score,),
    wrong={
        "you add noise and nothing that balances it: the cloud grows too wide. The drift needs + (g²/2) ∇log p_t.": (
            _noisy_sampler(pull=0.0)
        ),
        "the pull of the score is twice too strong: it enters with g²/2.": _noisy_sampler(pull=1.0),
        "the score enters with the wrong sign: it must pull to where the density is high, against the noise.": (
            _noisy_sampler(pull=-0.5)
        ),
        "the noise of a step is multiplied by h. Its variance grows like h, so its size is √h.": (
            _noisy_sampler(push=lambda noise, t, h: noise * math.sqrt(1 - t) * h)
        ),
        "the noise has the same strength at all times, while the drift is balanced for g² = noise² (1 − t).": (
            _noisy_sampler(push=lambda noise, t, h: noise * math.sqrt(h))
        ),
        "no noise arrives: your points are a function of where they started. The marginals are right; this is the "
        "ODE.": (_noisy_sampler(pull=0.0, push=lambda noise, t, h: 0.0)),
    },
    statistic=_law,
    atol=4 * math.sqrt(2 / DRAWS),  # four standard errors of a difference of correlations, the widest of the three
    rtol=0,
    false_alarm=1e-4,
)

# ---------------------------------------------------------------------- back-to-the-noise (spot the bug; E36)


def _likelihood_inputs(generator):
    x_1 = MEAN + SPREAD * torch.randn(32, 1, generator=generator, dtype=torch.float64)

    def divergence(t, x):
        return ((t * SPREAD**2 - (1 - t)) / ((t * SPREAD) ** 2 + (1 - t) ** 2)) * torch.ones_like(x[:, 0])

    def log_p_0(x):
        return -0.5 * x[:, 0] ** 2 - 0.5 * math.log(2 * math.pi)

    return _gaussian_velocity, divergence, log_p_0, x_1, 1000


def _likelihood(sign=-1.0, *, forward=False, moved=True, along=True, h=None):
    def log_density(v, divergence, log_p_0, x_1, steps):
        x, total, size = x_1, torch.zeros_like(x_1[:, 0]), 1 / steps
        for k in range(steps):
            t = k / steps if forward else 1 - k / steps
            total = total + (size if h is None else h) * divergence(t if along else 1.0, x)
            x = x + size * v(t, x) if forward else x - size * v(t, x)
        return log_p_0(x if moved else x_1) + sign * total

    return log_density


def _exact_gaussian(v, divergence, log_p_0, x_1, steps):
    return log_p_0((x_1 - MEAN) / SPREAD) - math.log(SPREAD)


back_to_the_noise = Exercise(
    inputs=_likelihood_inputs,
    right=_likelihood(),
    also_right=(_exact_gaussian,),
    wrong={
        "the sign of the divergence is wrong. Where the field pulls together (div v < 0) the density grows.": (
            _likelihood(sign=1.0)
        ),
        "you left the divergence out: the density was carried along, but not squeezed.": _likelihood(sign=0.0),
        "you evaluated the noise density at x_1 itself. The base density belongs to the point x_0 that the flow "
        "carries to x_1: go back first.": _likelihood(moved=False),
        "you ran forward from x_1. The point is data: follow the field back, from t = 1 to t = 0.": (
            _likelihood(forward=True)
        ),
        "you took the divergence at t = 1 for the whole way; it must be summed along the trajectory.": (
            _likelihood(along=False)
        ),
    },
    atol=0.02,
    rtol=0,
)

# ---------------------------------------------------------------------- two-watersheds (open)


def _slopes(generator):
    data = torch.randn(4, generator=generator, dtype=torch.float64).sort().values * 2
    weights = torch.rand(4, generator=generator, dtype=torch.float64) + 0.2
    return data, weights / weights.sum()


def _normal_quantile(p):
    return math.sqrt(2) * torch.erfinv(2 * p - 1)


def _by_bisection(data, weights):
    low, high = torch.full((2, len(data) - 1), 8.0, dtype=torch.float64) * torch.tensor([[-1.0], [1.0]])
    for _ in range(60):
        middle = (low + high) / 2
        below = torch.special.ndtr(middle) < weights.cumsum(0)[:-1]
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


two_watersheds = Exercise(
    inputs=_slopes,
    right=lambda data, weights: _normal_quantile(weights.cumsum(0)[:-1]),
    also_right=(lambda data, weights: torch.special.ndtri(weights.cumsum(0)[:-1]), _by_bisection),
    wrong={
        "these are the midpoints between the data. A particle that starts there is pulled by all data on its way: only "
        "at the very end does the nearest one decide.": lambda data, weights: (data[1:] + data[:-1]) / 2,
        "these are the midpoints between the data, moved by the weights. Ask instead how much of the noise must end to "
        "the left of a watershed.": (
            lambda data, weights: (data[:-1] * weights[1:] + data[1:] * weights[:-1]) / (weights[1:] + weights[:-1])
        ),
        "you gave every datum the same share; the weights say how much noise each must receive.": (
            lambda data, weights: _normal_quantile(torch.arange(1, len(data), dtype=data.dtype) / len(data))
        ),
        "these are the shares of noise to the left of each watershed. Where does the standard normal have so much to "
        "its left?": lambda data, weights: weights.cumsum(0)[:-1],
        "left and right are swapped: trajectories do not cross, so the leftmost noise goes to the leftmost datum.": (
            lambda data, weights: -_normal_quantile(weights.cumsum(0)[:-1])
        ),
        "a factor √2 is missing: erfinv belongs to a normal with variance ½.": (
            lambda data, weights: torch.erfinv(2 * weights.cumsum(0)[:-1] - 1)
        ),
    },
    atol=0.02,  # so that a search on the flow itself passes
    rtol=0,
)

EXERCISES: dict[str, Exercise] = {
    "toward-the-data": toward_the_data,
    "weighted-vote": weighted_vote,
    "what-is-predicted": what_is_predicted,
    "the-last-step": the_last_step,
    "score-from-velocity": score_from_velocity,
    "count-the-crossings": count_the_crossings,
    "noise-on-the-way": noise_on_the_way,
    "back-to-the-noise": back_to_the_noise,
    "two-watersheds": two_watersheds,
}
