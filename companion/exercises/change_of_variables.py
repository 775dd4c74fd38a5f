"""Exercises of chapter 03. The base Z is the distance of a dart from the center: density 2z on (0, 1)."""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from companion.exercises.checking import Exercise
from companion.methods.change_of_variables import bits_per_dimension, dequantize

# ---------------------------------------------------------------------- two-rules: x = 10 (1 − z)

two_rules = Exercise(
    inputs=lambda generator: (10 * torch.rand(64, generator=generator),),
    right=lambda x: (10 - x) / 50,
    also_right=(lambda x: 2 * (1 - x / 10) * 0.1, lambda x: 0.2 - x / 50),
    wrong={
        "your density is negative. The map decreases, so f′ is negative: take its absolute value.": lambda x: (
            (x - 10) / 50
        ),
        "you moved the density to the new variable and forgot how the map stretches it. Yours has "
        "an area of 10.": lambda x: 2 * (1 - x / 10),
        "you multiplied by |g′| = 10. The factor is the derivative of the inverse, 1/10. Yours has "
        "an area of 100.": lambda x: 20 * (1 - x / 10),
        "you used f(x) = x/10. Solve x = 10 (1 − z) for z again: a bull's eye is z = 0.": lambda x: x / 50,
        "the stretch is right, but p_Z must be taken at z = f(x), not at x.": lambda x: x / 5,
    },
)

# ---------------------------------------------------------------------- lost-sign: spot the bug (E1)


def _monotone_maps(generator: torch.Generator) -> tuple:
    """x, log-density of the base, inverse and its derivative: an inverse that falls for x < 0 and one that rises."""
    x = 3 * torch.rand(48, generator=generator, dtype=torch.float64) + 0.1
    return (x,)


def _lost_sign(answer, x: Tensor) -> dict:
    def normal(z):
        return -0.5 * z**2 - 0.5 * math.log(2 * math.pi)

    return {
        "decreasing map": answer(x, normal, lambda x: 1 - 2 * x, lambda x: torch.full_like(x, -2.0)),
        "increasing map": answer(x, normal, torch.log, lambda x: 1 / x),
    }


lost_sign = Exercise(
    inputs=_monotone_maps,
    apply=_lost_sign,
    right=lambda x, base, f, df: base(f(x)) + df(x).abs().log(),
    also_right=(
        lambda x, base, f, df: (base(f(x)).exp() * df(x).abs()).log(),
        lambda x, base, f, df: base(f(x)) + 0.5 * (df(x) ** 2).log(),
    ),
    wrong={
        "for a decreasing map this is the logarithm of a negative number, nan.": lambda x, base, f, df: (
            base(f(x)) + df(x).log()
        ),
        "a minus sign mends the decreasing map and breaks the increasing one. What does |·| "
        "do?": lambda x, base, f, df: base(f(x)) + (-df(x)).log(),
        "clamping hides the nan and invents a density of almost zero.": lambda x, base, f, df: (
            base(f(x)) + df(x).clamp(min=1e-12).log()
        ),
        "this divides by |f′|, which is |g′| turned upside down: the sign before the logarithm is "
        "wrong.": lambda x, base, f, df: base(f(x)) - df(x).abs().log(),
        "without the factor nothing is nan, and nothing is a density.": lambda x, base, f, df: base(f(x)),
        "the absolute value came after the logarithm; it belongs inside.": lambda x, base, f, df: (
            base(f(x)) + df(x).log().abs()
        ),
    },
)

# ---------------------------------------------------------------------- exponential-scores: choose g

_N = 20_000
_LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)


def _survival(x: Tensor, z: Tensor) -> Tensor | dict[str, Tensor]:
    """The share of scores above the levels that an exponential number exceeds with probability 0.1 … 0.9."""
    if x.shape != z.shape:
        return x
    levels = [-math.log(level) for level in _LEVELS]
    return {f"the share of scores above {level:.2f}": (x > level).double().mean() for level in levels}


exponential_scores = Exercise(
    inputs=lambda generator: (torch.rand(_N, generator=generator).clamp(1e-6, 1 - 1e-6).sqrt(),),
    right=lambda z: -torch.log1p(-(z**2)),
    also_right=(lambda z: -2 * z.log(), lambda z: -(z**2).log(), lambda z: (1 / (1 - z**2)).log()),
    wrong={
        "this would be right for a uniform number. Which function of z is uniform?": lambda z: -z.log(),
        "this would be right for a uniform number that you read from the other end. Which function "
        "of z is uniform?": lambda z: -(1 - z).log(),
        "your scores are negative: the logarithm of a number below 1 needs a minus sign.": lambda z: (1 - z**2).log(),
        "these scores are uniform on (0, 1). One more map is missing.": lambda z: z**2,
        "this is the density at z, and not a map that gives it.": lambda z: (-z).exp(),
        "your exponential has the wrong rate: its mean is 2, asked is 1.": lambda z: -2 * (1 - z**2).log(),
    },
    statistic=_survival,
    atol=0.015,  # 4.24 standard errors of a share near 1/2: refused 2.2e-5 of the time there, less at the other levels
    rtol=0.0,
    false_alarm=6e-5,
)

# ---------------------------------------------------------------------- ring-shot: many to one

_Q = 0.25


def _ring(x: Tensor) -> Tensor:
    inner, outer = 2 * (_Q - x), 2 * (_Q + x)
    return torch.where(x < _Q, inner + outer, outer)


def _away_from_the_edge(generator: torch.Generator) -> tuple:
    x = 0.01 + 0.73 * torch.rand(64, generator=generator)
    return (torch.where((x - _Q).abs() < 1e-3, x + 0.01, x),)


ring_shot = Exercise(
    inputs=_away_from_the_edge,
    right=_ring,
    also_right=(
        lambda x: 2 * (_Q - x).clamp(min=0) + 2 * (_Q + x),
        lambda x: (x < _Q) * 1.0 + (x >= _Q) * (0.5 + 2 * x),
    ),
    wrong={
        "only the outer branch is counted: darts inside the ring can miss it by x too.": lambda x: 2 * (_Q + x),
        "only the inner branch is counted: darts outside the ring can miss it by x too.": lambda x: (
            2 * (_Q - x).clamp(min=0)
        ),
        "the inner branch ends at the center of the board: for x > 1/4 it has no darts, and its "
        "term turned negative.": lambda x: torch.ones_like(x),
        "you averaged the branches. Their probabilities add.": lambda x: _ring(x) / 2,
        "both branches are counted twice: |g′| is 1 on each.": lambda x: 2 * _ring(x),
    },
)

# ---------------------------------------------------------------------- area-factor: spot the bug (E2)


def _swirl(x: Tensor) -> Tensor:
    """An inverse map that turns the plane over: its determinant is −(1 + x₀²)·0.5."""
    return torch.stack([x[1] + 0.3 * x[0] ** 2, 0.5 * (x[0] + x[0] ** 3 / 3)])


def _normal2(z: Tensor) -> Tensor:
    return -0.5 * (z**2).sum(-1) - math.log(2 * math.pi)


area_factor = Exercise(
    inputs=lambda generator: (torch.randn(32, 2, generator=generator, dtype=torch.float64),),
    apply=lambda answer, x: answer(x, _normal2, _swirl),
    right=lambda x, base, f: base(vmap(f)(x)) + torch.linalg.det(vmap(jacrev(f))(x)).abs().log(),
    also_right=(
        lambda x, base, f: base(vmap(f)(x)) + torch.linalg.slogdet(vmap(jacrev(f))(x))[1],
        lambda x, base, f: base(vmap(f)(x)) - torch.linalg.inv(vmap(jacrev(f))(x)).det().abs().log(),
    ),
    wrong={
        "the determinant is negative here and its logarithm nan: f turns the plane over. An area "
        "is |det|.": lambda x, base, f: base(vmap(f)(x)) + torch.linalg.det(vmap(jacrev(f))(x)).log(),
        "the sign before the logarithm belongs to the forward map. J_f is the Jacobian of the "
        "inverse: it is added.": lambda x, base, f: base(vmap(f)(x)) - torch.linalg.det(vmap(jacrev(f))(x)).abs().log(),
        "the Jacobian of f is taken at z. It belongs to the data point x.": lambda x, base, f: (
            base(vmap(f)(x)) + torch.linalg.det(vmap(jacrev(f))(vmap(f)(x))).abs().log()
        ),
        "the base density is taken at x. Send x through f first.": lambda x, base, f: (
            base(x) + torch.linalg.det(vmap(jacrev(f))(x)).abs().log()
        ),
        "the factor is missing: this is the base density with new names.": lambda x, base, f: base(vmap(f)(x)),
        "the diagonal is not the determinant: this Jacobian is not triangular.": lambda x, base, f: (
            base(vmap(f)(x)) + (vmap(jacrev(f))(x).diagonal(dim1=1, dim2=2).abs() + 1e-30).log().sum(1)
        ),
    },
)

# ---------------------------------------------------------------------- planar-layer: derive a determinant


def _planar(generator: torch.Generator) -> tuple:
    """x (batch, dim), u, w (dim,), b (): with wᵀu < −1, so that the determinant changes its sign."""
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    w = torch.randn(6, generator=generator, dtype=torch.float64)
    return x, -2.5 * w / (w @ w), w, torch.tensor(0.3, dtype=torch.float64)


def _slope(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return 1 - torch.tanh(x @ w + b) ** 2


planar_layer = Exercise(
    inputs=_planar,
    right=lambda x, u, w, b: (1 + _slope(x, w, b) * (w @ u)).abs().log(),
    also_right=(
        lambda x, u, w, b: torch.linalg.slogdet(
            torch.eye(len(u), dtype=x.dtype) + _slope(x, w, b)[:, None, None] * u[:, None] * w[None, :]
        )[1],
    ),
    wrong={
        "where wᵀu tanh′ < −1 the determinant is negative: the absolute value is missing.": lambda x, u, w, b: (
            1 + _slope(x, w, b) * (w @ u)
        ).log(),
        "you kept wᵀu and lost tanh′: the chain rule gives J = I + tanh′(wᵀx + b) u wᵀ.": lambda x, u, w, b: (
            (1 + w @ u).abs().log().expand(len(x))
        ),
        "the derivative of tanh is 1 − tanh², not tanh.": lambda x, u, w, b: (
            (1 + torch.tanh(x @ w + b) * (w @ u)).abs().log()
        ),
        "this is the sum of the logarithms of J's diagonal: J is not triangular.": lambda x, u, w, b: (
            (1 + _slope(x, w, b)[:, None] * (w * u)).abs().log().sum(1)
        ),
        "the lemma gives 1 + tanh′ wᵀu: the 1 got lost.": lambda x, u, w, b: (_slope(x, w, b) * (w @ u)).abs().log(),
        "this is the determinant itself; asked is the logarithm of its absolute value.": lambda x, u, w, b: (
            1 + _slope(x, w, b) * (w @ u)
        ),
    },
)

# ---------------------------------------------------------------------- better-map: open


@lru_cache
def _levels() -> tuple[Tensor, Tensor]:
    """Gray levels 0 … 16 of the digits, (n, 64): for training and for the test."""
    from companion.data import digits  # scikit-learn is loaded when this exercise is asked for

    return tuple((8 * (digits(split).images.flatten(1).double() + 1)).round() for split in ("train", "test"))


def _dequantized(generator: torch.Generator) -> tuple:
    return tuple(dequantize(levels, 17, generator=generator) for levels in _levels())


def _bits(h, train: Tensor, test: Tensor) -> Tensor:
    """Bits per dimension of held-out digits: h on each pixel, then the best Gaussian."""
    y, x = h(train.clone()), test.clone().requires_grad_()
    (slope,) = torch.autograd.grad(h(x).sum(), x)
    gaussian = torch.distributions.MultivariateNormal(y.mean(0), torch.cov(y.T, correction=0))
    log_prob = gaussian.log_prob(h(test.clone()).detach()) + slope.abs().log().sum(1)
    return bits_per_dimension(log_prob, dim=64, count=17)


def _outcome(h, train: Tensor, test: Tensor) -> str:
    grid = torch.linspace(1e-4, 1 - 1e-4, 5_001, dtype=torch.float64)
    value = h(grid.clone()).detach()
    if value.shape != grid.shape:
        return "another shape"
    steps = value.diff()
    if not (value.isfinite().all() and h(train.clone()).isfinite().all() and h(test.clone()).isfinite().all()):
        return "not finite"
    if not ((steps > 0).all() or (steps < 0).all()):
        return "flat" if (steps >= 0).all() or (steps <= 0).all() else "folds"
    bits, page, plain = (_bits(map_, train, test) for map_ in (h, _page_map, lambda x: x))
    if bits < page - 0.01:
        return "better"
    return "no better than the page" if bits < plain - 0.01 else "no better than no map"


def _page_map(x: Tensor) -> Tensor:
    return torch.logit(0.05 + 0.9 * x)


better_map = Exercise(
    inputs=_dequantized,
    apply=_outcome,
    right=lambda x: torch.logit(0.001 + 0.998 * x),
    also_right=(
        lambda x: -torch.logit(0.002 + 0.996 * x),
        lambda x: math.sqrt(2) * torch.erfinv(2 * (0.001 + 0.998 * x) - 1),
        lambda x: torch.log(0.005 + x) - torch.log(1.005 - x),
    ),
    wrong={
        "your map is invertible, and it earns no more than the page's logit with margin 0.05. "
        "Where do the pixels crowd?": lambda x: torch.logit(0.1 + 0.8 * x),
        "your map is invertible, and the Gaussian fits no better than without a map. "
        "Where do the pixels crowd?": lambda x: x.exp(),
        "your map folds: on (0, 1) it rises and falls, so it has no inverse and the 'density' counts pixels twice.": (
            lambda x: (x - 0.5) ** 2
        ),
        "your map is flat somewhere on (0, 1): different pixels become one number, and log |h′| is −∞.": (
            lambda x: x.clamp(0.1, 0.9)
        ),
        "your map is not finite on all of (0, 1).": lambda x: torch.log(x - 0.02),
        "h must keep the shape of x: it maps each pixel on its own.": lambda x: x.mean(-1),
    },
)

EXERCISES = {
    "two-rules": two_rules,
    "lost-sign": lost_sign,
    "exponential-scores": exponential_scores,
    "ring-shot": ring_shot,
    "area-factor": area_factor,
    "planar-layer": planar_layer,
    "better-map": better_map,
}
