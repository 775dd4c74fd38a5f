"""The exercises of chapter 07, energy-based models: each with its right answer and the wrong ones that people give."""

import math

import torch

from companion.exercises.checking import Exercise

F64 = torch.float64

# ---------------------------------------------------------------------- slide-down (warm-up; E7)


def _double_well(generator):
    y = 3 * torch.rand(12, generator=generator, dtype=F64) - 1.5

    def well(y):
        return (y**2 - 1) ** 2 + 0.3 * y - 2.0

    def slope(y):
        return 4 * y * (y**2 - 1) + 0.3

    return well, slope, y, 0.05, 20


def _slide(move, *, steps=lambda steps: steps):
    def settle(E, slope, y, rate, count):
        for _ in range(steps(count)):
            y = move(E, slope, y, rate)
        return y

    return settle


def _slide_once(E, slope, y, rate, steps):
    return y - rate * steps * slope(y)


def _slide_in_place(E, slope, y, rate, steps):
    y = y.clone()
    k = steps
    while k:
        y -= rate * slope(y)
        k -= 1
    return y


def _slide_to_zero(E, slope, y, rate, steps):
    for _ in range(steps):
        y = torch.where(E(y) > 0, y - rate * slope(y), y)
    return y


slide_down = Exercise(
    inputs=_double_well,
    right=_slide(lambda E, slope, y, rate: y - rate * slope(y)),
    also_right=(_slide_in_place,),
    wrong={
        "you walk uphill: a plus in front of the slope makes the energy grow.": (
            _slide(lambda E, slope, y, rate: y + rate * slope(y))
        ),
        "you stop where the energy has fallen to 0. Nothing is special about 0: lift this energy by 2, and the same "
        "code stops elsewhere. Go on as long as there is a slope.": _slide_to_zero,
        "you step along the energy itself, not along its slope.": _slide(lambda E, slope, y, rate: y - rate * E(y)),
        "you took the slope at the start once and for all; it changes with every step.": _slide_once,
        "you made one step too few: count the slopes.": (
            _slide(lambda E, slope, y, rate: y - rate * slope(y), steps=lambda steps: steps - 1)
        ),
        "you use the sign of the slope only, so that all steps have the same length.": (
            _slide(lambda E, slope, y, rate: y - rate * slope(y).sign())
        ),
    },
)

# ---------------------------------------------------------------------- with-its-measure (variant; E9)


def _uneven(generator):
    gaps = 0.05 + torch.rand(40, generator=generator, dtype=F64)
    z = torch.cat([torch.zeros(1, dtype=F64), gaps.cumsum(0)])
    z = 6 * z / z[-1] - 3
    E = 0.5 * (z - 0.4) ** 2 + 0.3 * torch.sin(3 * z) + 1.0
    return E, z, 2.0


def _free(weights, *, outside=lambda beta: -1 / beta, inside=lambda beta: -beta):
    return lambda E, z, beta: outside(beta) * ((inside(beta) * E).exp() * weights(z)).sum().log()


def _trapezoids(z):
    ends = torch.cat([z[:1], z, z[-1:]])
    return (ends[2:] - ends[:-2]) / 2


def _mean_width(z):
    return (z[-1] - z[0]) / (len(z) - 1) * torch.ones_like(z)


with_its_measure = Exercise(
    inputs=_uneven,
    right=_free(_trapezoids),
    also_right=(
        lambda E, z, beta: -torch.log(torch.trapezoid(torch.exp(-beta * E), z)) / beta,
        lambda E, z, beta: -torch.logsumexp(-beta * E + _trapezoids(z).log(), 0) / beta,
    ),
    wrong={
        "this is a bare sum over the grid: with twice as many points it would give another value. Each point stands "
        "for a piece of the z-axis; multiply by its width.": _free(torch.ones_like),
        "you gave all points the same width, but this grid is uneven.": _free(_mean_width),
        "this is a mean over the points, which replaces dz by one over their number.": (
            _free(lambda z: torch.full_like(z, 1 / len(z)))
        ),
        "the factor 1/β in front of the logarithm is missing: the result is no energy.": (
            _free(_trapezoids, outside=lambda beta: -1.0)
        ),
        "the sign is turned: the free energy is minus the logarithm of the integral.": (
            _free(_trapezoids, outside=lambda beta: 1 / beta)
        ),
        "β is missing in the exponent.": _free(_trapezoids, inside=lambda beta: -1.0),
        "this is the lowest energy, the limit β → ∞. At a finite β the other z count too.": (
            lambda E, z, beta: E.min()
        ),
    },
)

# ---------------------------------------------------------------------- most-offending (spot the bug; E8)


def _energies(generator):
    E = 1.5 * torch.randn(24, 5, generator=generator, dtype=F64) + 2.5
    y = torch.randint(5, (24,), generator=generator)
    E[torch.arange(12), y[:12]] -= 4.0  # half of them well ordered, so that the margin matters
    return E, y, 1.0


def _right(E, y):
    return E.gather(1, y[:, None])[:, 0]


def _others(E, y, fill=math.inf):
    return E.scatter(1, y[:, None], fill)


def _hinge_by_loop(E, y, m):
    losses = []
    for row, label in zip(E, y, strict=True):
        rivals = [row[k] for k in range(len(row)) if k != int(label)]
        losses.append(max(0.0, float(m + row[label] - min(rivals))))
    return losses


def _embedding(E, y, m):
    return _right(E, y) + (m - _others(E, y).amin(1)).clamp(min=0)


most_offending = Exercise(
    inputs=_energies,
    right=lambda E, y, m: (m + _right(E, y) - _others(E, y).amin(1)).clamp(min=0),
    also_right=(_hinge_by_loop, lambda E, y, m: torch.relu((m + _right(E, y)[:, None] - _others(E, y)).amax(1))),
    wrong={
        "the right answer still competes with itself: the lowest of *all* energies may be the right one's, and then "
        "the loss is the margin, however good the model is.": lambda E, y, m: (m + _right(E, y) - E.amin(1)).clamp(
            min=0
        ),
        "the difference is turned around: the loss must fall when the right answer gets lower.": (
            lambda E, y, m: (m - _right(E, y) + _others(E, y).amin(1)).clamp(min=0)
        ),
        "you compare with the wrong answer that is highest, the one that offends least.": (
            lambda E, y, m: (m + _right(E, y) - _others(E, y, -math.inf).amax(1)).clamp(min=0)
        ),
        "this is the hinge embedding loss: it judges each energy by itself, right ones by their height above 0 and "
        "wrong ones by their distance to m. Add a constant to all energies: yours changes, a difference does not.": (
            _embedding
        ),
        "the lowest but one of all energies is the offender only where the right answer is the lowest. Elsewhere the "
        "lowest itself offends: take the right answer out first.": (
            lambda E, y, m: (m + _right(E, y) - E.sort(1).values[:, 1]).clamp(min=0)
        ),
        "the cut at 0 is missing: an answer that wins by more than the margin must cost nothing.": (
            lambda E, y, m: m + _right(E, y) - _others(E, y).amin(1)
        ),
        "you compare with the mean of the wrong answers; the hinge looks at the worst offender.": (
            lambda E, y, m: (m + _right(E, y) - _others(E, y, 0.0).sum(1) / (E.shape[1] - 1)).clamp(min=0)
        ),
        "you added up the hinges of all wrong answers; the loss of this chapter takes the worst offender alone.": (
            lambda E, y, m: (m + _right(E, y)[:, None] - _others(E, y)).clamp(min=0).sum(1)
        ),
    },
)

# ---------------------------------------------------------------------- two-phases (derivation; E10)


def _phases(generator):
    data = 0.8 * torch.randn(30, generator=generator, dtype=F64) + 0.5
    theta = torch.tensor([0.4, 0.7, 0.1], dtype=F64) + 0.1 * torch.rand(3, generator=generator, dtype=F64)

    def features(x):
        return torch.stack([x, x**2, x**4], dim=1)

    grid = torch.linspace(-4, 4, 401, dtype=F64)
    return theta, features, data, grid


def _gradient(negative, *, combine=lambda data, model: data - model):
    def gradient(theta, features, data, grid):
        phi = features(grid)
        return combine(features(data).mean(0), negative(phi, phi @ theta, grid[1] - grid[0]))

    return gradient


def _mean_under_model(phi, E, dx):
    return (-E).softmax(0) @ phi


def _gradient_by_autograd(theta, features, data, grid):
    theta = theta.clone().requires_grad_()
    log_z = torch.logsumexp(-features(grid) @ theta, 0)
    (slope,) = torch.autograd.grad((features(data) @ theta).mean() + log_z, theta)
    return slope


two_phases = Exercise(
    inputs=_phases,
    right=_gradient(_mean_under_model),
    also_right=(_gradient_by_autograd,),
    wrong={
        "the two phases have changed places: this is the gradient of the log-likelihood, and descent would push the "
        "data up.": _gradient(_mean_under_model, combine=lambda data, model: model - data),
        "only the positive phase is here. It pushes the data down and nothing up: this is the gradient of Σ E(x_i).": (
            _gradient(_mean_under_model, combine=lambda data, model: data)
        ),
        "the negative phase is a mean over the grid, where every place counts the same; it must be a mean under p_θ.": (
            _gradient(lambda phi, E, dx: phi.mean(0))
        ),
        "the weights e^{−E} dx of the negative phase do not add up to one: divide by Z.": (
            _gradient(lambda phi, E, dx: (-E).exp() @ phi * dx)
        ),
        "the weights of the negative phase are e^{+E}: the model's samples lie where the energy is low.": (
            _gradient(lambda phi, E, dx: E.softmax(0) @ phi)
        ),
        "you added the phases; log Z falls when the energies rise, so the second one enters with a minus.": (
            _gradient(_mean_under_model, combine=lambda data, model: data + model)
        ),
    },
    atol=1e-4,
    rtol=1e-3,
)

# ---------------------------------------------------------------------- warm-and-cold (sampler)

CHAINS, SPREAD, CENTER = 20_000, 0.8, 1.0


def _chains(generator):
    x = 2 * torch.randn(CHAINS, generator=generator, dtype=F64)
    return (lambda x: (x - CENTER) / SPREAD**2), x, 4.0, 0.007, 600, generator  # long enough for −h∇E + √(2h/β) ξ too


def _chain(drift, kick):
    def sampler(slope, x, beta, h, steps, generator):
        for _ in range(steps):
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x = x + drift(slope, x, beta, h) + kick(beta, h) * noise
        return x

    return sampler


def _pull(slope, x, beta, h):
    return -h * beta * slope(x)


def _shake(beta, h):
    return math.sqrt(2 * h)


def _moments(x, slope, start, *rest):
    if not isinstance(x, torch.Tensor) or x.shape != start.shape:
        return x
    a, b = x - x.mean(), start - start.mean()
    linked = (a * b).mean() / (a.std() * b.std() + 1e-12)
    return {"the mean": x.mean(), "the standard deviation": x.std(), "the correlation with the start": linked}


warm_and_cold = Exercise(
    inputs=_chains,
    right=_chain(_pull, _shake),
    also_right=(
        _chain(lambda slope, x, beta, h: -2 * h * beta * slope(x), lambda beta, h: math.sqrt(4 * h)),
        _chain(lambda slope, x, beta, h: -0.5 * h * beta * slope(x), lambda beta, h: math.sqrt(h)),
        _chain(lambda slope, x, beta, h: -h * slope(x), lambda beta, h: math.sqrt(2 * h / beta)),
    ),
    wrong={
        "your chains sample e^{−E}, the density at β = 1: the pull lacks β (the score of e^{−βE} is −β∇E), or noise "
        "that grows with β undoes it.": (_chain(lambda slope, x, beta, h: -h * slope(x), _shake)),
        "the noise is √h for a pull of h: your chains are at twice the β that was asked for.": (
            _chain(_pull, lambda beta, h: math.sqrt(h))
        ),
        "the noise is multiplied by h. Its variance grows with the number of steps, so its size is √(2h).": (
            _chain(_pull, lambda beta, h: 2 * h)
        ),
        "your chains are at β², as β enters twice: take −hβ∇E with √(2h), or −h∇E with √(2h/β).": (
            _chain(_pull, lambda beta, h: math.sqrt(2 * h / beta))
        ),
        "you walk uphill: the score of e^{−βE} is −β∇E.": (
            _chain(lambda slope, x, beta, h: h * beta * slope(x), _shake)
        ),
        "no noise arrives: all chains slide to the lowest place. That is inference, the limit β → ∞.": (
            _chain(_pull, lambda beta, h: 0.0)
        ),
    },
    statistic=_moments,
    atol=0.045,  # of the correlation: four standard errors of a difference of two; the others are known better
    rtol=0.02,
    false_alarm=1e-4,
)

# ---------------------------------------------------------------------- false-strangers (open)


def _labelled(generator):
    a = torch.randn(18, 6, generator=generator, dtype=F64)
    b = a + 0.7 * torch.randn(18, 6, generator=generator, dtype=F64)
    return a, b, torch.arange(18) % 6, 0.3


def _cosines(a, b):
    return torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T


def _contrast(scores, keep):
    return scores.masked_fill(~keep, -math.inf).logsumexp(1) - scores.diagonal()


def _kept(labels, *, own=True):
    different = labels[:, None] != labels
    return different | torch.eye(len(labels), dtype=torch.bool) if own else different


def _strangers_by_loop(a, b, labels, tau):
    losses = []
    for i in range(len(a)):
        scores = torch.stack([torch.cosine_similarity(a[i], b[j], dim=0) for j in range(len(b))]) / tau
        rivals = [scores[j] for j in range(len(b)) if j == i or labels[j] != labels[i]]
        losses.append(-torch.log(scores[i].exp() / torch.stack(rivals).exp().sum()))
    return torch.stack(losses)


false_strangers = Exercise(
    inputs=_labelled,
    right=lambda a, b, labels, tau: _contrast(_cosines(a, b) / tau, _kept(labels)),
    also_right=(_strangers_by_loop,),
    wrong={
        "this is plain InfoNCE: rows with the same label are still pushed apart.": (
            lambda a, b, labels, tau: _contrast(_cosines(a, b) / tau, torch.ones(len(a), len(a), dtype=torch.bool))
        ),
        "you also removed the row's own partner from the sum below the fraction. It stays: the fraction is a "
        "probability.": (lambda a, b, labels, tau: _contrast(_cosines(a, b) / tau, _kept(labels, own=False))),
        "you kept the rows with the same label and dropped the others: these are the ones to push away.": (
            lambda a, b, labels, tau: _contrast(_cosines(a, b) / tau, labels[:, None] == labels)
        ),
        "you took dot products: without dividing by the lengths the loss can be lowered by longer embeddings.": (
            lambda a, b, labels, tau: _contrast(a @ b.T / tau, _kept(labels))
        ),
        "you multiplied by the temperature; divide.": (
            lambda a, b, labels, tau: _contrast(_cosines(a, b) * tau, _kept(labels))
        ),
        "a removed row must not count at all. You set its score to 0, and e⁰ = 1 still counts.": (
            lambda a, b, labels, tau: _contrast(
                (_cosines(a, b) / tau).masked_fill(~_kept(labels), 0.0), torch.ones(len(a), len(a), dtype=torch.bool)
            )
        ),
        "this is the mean over the batch; return the loss of each row.": (
            lambda a, b, labels, tau: _contrast(_cosines(a, b) / tau, _kept(labels)).mean()
        ),
        "rows and columns are exchanged: for each a, ask which of the b belongs to it.": (
            lambda a, b, labels, tau: _contrast(_cosines(b, a) / tau, _kept(labels))
        ),
    },
)

EXERCISES: dict[str, Exercise] = {
    "slide-down": slide_down,
    "with-its-measure": with_its_measure,
    "most-offending": most_offending,
    "two-phases": two_phases,
    "warm-and-cold": warm_and_cold,
    "false-strangers": false_strangers,
}
