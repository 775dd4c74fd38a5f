"""The exercises of chapter 09, normalizing flows: each with its right answer and the wrong ones that people give."""

import math

import torch
from torch import Tensor

from companion.exercises.checking import Exercise
from companion.numerics.splines import knots, rational_quadratic_inverse

LOG_2PI = math.log(2 * math.pi)


def _randn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------------- loss-of-a-flow (find the bug; E13, E14, E15)


def _flow_and_data(generator: torch.Generator) -> tuple:
    """An inverse map with its log-determinant, the base's log-density, and data in the plane."""
    shift, bend = _randn(generator, 2), 0.3 + 0.4 * torch.rand(2, generator=generator, dtype=torch.float64)

    def inverse(x):
        z_1 = torch.sinh(bend[0] * x[:, 0]) + shift[0]
        z_2 = (x[:, 1] - shift[1]) * torch.exp(bend[1] * x[:, 0])
        log_det = (bend[0] * torch.cosh(bend[0] * x[:, 0])).log() + bend[1] * x[:, 0]
        return torch.stack([z_1, z_2], dim=1), log_det

    def base(z):
        return -0.5 * z.square().sum(1) - LOG_2PI

    return inverse, base, 1 + 0.7 * _randn(generator, 20, 2)


def _likelihood(log_q=lambda base, z, log_det: base(z) + log_det, reduce=lambda log_q: -log_q.mean()):
    """The negative log-likelihood, with a planted change of the log-density or of how it is averaged."""

    def loss(inverse, base, x):
        z, log_det = inverse(x)
        return reduce(log_q(base, z, log_det))

    return loss


loss_of_a_flow = Exercise(
    inputs=_flow_and_data,
    right=_likelihood(),
    also_right=(
        lambda inverse, base, x: -sum(base(inverse(x)[0]) + inverse(x)[1]) / len(x),
        lambda inverse, base, x: -(base(inverse(x)[0]).exp() * inverse(x)[1].exp()).log().mean(),
    ),
    wrong={
        "the average is mended, the sign of the log-determinant is not: `inverse` tells that of T⁻¹, which is added. "
        "(That of T would be subtracted.)": _likelihood(lambda base, z, log_det: base(z) - log_det),
        "the log-density is mended, the average is not: the points were drawn from p, so each counts 1/N. A weight on "
        "top counts the crowded places twice.": _likelihood(reduce=lambda log_q: -(log_q.exp() * log_q).mean()),
        "both bugs are still there: the sign of the log-determinant, and the weight of each point.": _likelihood(
            lambda base, z, log_det: base(z) - log_det, lambda log_q: -(log_q.exp() * log_q).mean()
        ),
        "the log-determinant is gone. This loss is smallest for a T⁻¹ that sends all data to the top of the bell.": (
            _likelihood(lambda base, z, log_det: base(z))
        ),
        "this grows with the number of points: take the mean, not the sum.": _likelihood(reduce=lambda q: -q.sum()),
        "the sign of the whole is turned: an optimizer that makes this small makes the data unlikely.": (
            _likelihood(reduce=lambda log_q: log_q.mean())
        ),
        "the log of the mean density is not the mean of the log-densities.": (
            _likelihood(reduce=lambda log_q: -log_q.exp().mean().log())
        ),
    },
)

# ---------------------------------------------------------------------- undo-a-coupling (warm-up)


def _coupling_inputs(generator: torch.Generator) -> tuple:
    slope, bend = 0.5 + torch.rand(2, generator=generator, dtype=torch.float64)

    def s(kept):
        return slope * torch.tanh(kept) - 0.2

    def t(kept):
        return bend * kept.square() - 1.0

    return _randn(generator, 12, 2), s, t


def _undone(change, log_det, told=0):
    def forward(z, s, t):
        s_a, t_a = s(z[:, told]), t(z[:, told])
        return torch.stack([z[:, 0], change(z[:, 1], s_a, t_a)], dim=1), log_det(s_a)

    return forward


def _undone_in_place(z, s, t):
    x = z.clone()
    x[:, 1] = (z[:, 1] - t(z[:, 0])) / s(z[:, 0]).exp()
    return x, -s(x[:, 0])


def _undone_too_much(z, s, t):
    s_a = s(z[:, :1])
    return (z - t(z[:, :1])) * (-s_a).exp(), -s_a[:, 0]


undo_a_coupling = Exercise(
    inputs=_coupling_inputs,
    right=_undone(lambda z, s, t: (z - t) * (-s).exp(), lambda s: -s),
    also_right=(_undone_in_place,),
    wrong={
        "the points are right, the log-determinant is that of T⁻¹. You were asked for that of T, which is minus it.": (
            _undone(lambda z, s, t: (z - t) * (-s).exp(), lambda s: s)
        ),
        "undo the last thing first: t was added after the stretch, so it is subtracted before the stretch is undone.": (
            _undone(lambda z, s, t: z * (-s).exp() - t, lambda s: -s)
        ),
        "this is T⁻¹ once more. Solve z_2 = x_2 e^s + t for x_2.": _undone(
            lambda z, s, t: z * s.exp() + t, lambda s: s
        ),
        "your s and t look at the coordinate that changes. Here they must look at the kept one: it alone is the same "
        "before and after.": _undone(lambda z, s, t: (z - t) * (-s).exp(), lambda s: -s, told=1),
        "this is the determinant e^(−s); asked is the logarithm of its absolute value.": (
            _undone(lambda z, s, t: (z - t) * (-s).exp(), lambda s: (-s).exp())
        ),
        "the first coordinate is kept: it must come out as it went in.": _undone_too_much,
        "the shift has no part in the Jacobian: ∂x_2/∂z_2 = e^(−s).": (
            lambda z, s, t: (_undone_in_place(z, s, t)[0], -s(z[:, 0]) - t(z[:, 0]))
        ),
    },
)

# ---------------------------------------------------------------------- one-after-another (variant)

DIM = 4


def _autoregressive_inputs(generator: torch.Generator) -> tuple:
    below = torch.tril(_randn(generator, DIM, DIM), -1)
    other = torch.tril(_randn(generator, DIM, DIM), -1)

    def phi(x):
        return torch.tanh(x @ below.T) + 0.3, 0.5 * torch.sin(x @ other.T) - 0.2

    return _randn(generator, 10, DIM), phi


def _in_turn(order=range(DIM), solve=lambda z, t, s: (z - t) * (-s).exp()):
    def sample(z, phi):
        x = torch.zeros_like(z)
        for i in order:
            t, s = phi(x)
            x[:, i] = solve(z, t, s)[:, i]
        return x

    return sample


def _all_at_once(passes):
    def sample(z, phi):
        x = torch.zeros_like(z)
        for _ in range(passes):
            t, s = phi(x)
            x = (z - t) * (-s).exp()
        return x

    return sample


def _told_by_noise(z, phi):
    t, s = phi(z)
    return (z - t) * (-s).exp()


one_after_another = Exercise(
    inputs=_autoregressive_inputs,
    right=_in_turn(),
    also_right=(_all_at_once(DIM), _all_at_once(DIM + 2)),
    wrong={
        "every φ_i was told zeros where the earlier coordinates of x belong. One pass is not enough, and neither is "
        "going from the last coordinate to the first.": _all_at_once(1),
        "the network was told z. Its numbers φ_i depend on the coordinates of x before i, which must be found first. "
        "(A flow that is built your way samples in one pass; its density then takes D.)": _told_by_noise,
        "one pass short: after k passes the first k coordinates are right.": _all_at_once(DIM - 1),
        "this applies z = x e^s + t once more. Solve it for x.": _in_turn(solve=lambda z, t, s: z * s.exp() + t),
        "undo the last thing first: subtract t, then undo the stretch.": _in_turn(
            solve=lambda z, t, s: z * (-s).exp() - t
        ),
        "z = x e^s + t has e^s as its factor: divide by it.": _in_turn(solve=lambda z, t, s: (z - t) * s.exp()),
    },
)

# ---------------------------------------------------------------------- backwards-by-hand (derivation)


def _trajectory(generator: torch.Generator) -> tuple:
    """Euler's states for a field on the line with one weight θ, and the field's two derivatives."""
    theta, n = 0.5 + torch.rand((), generator=generator, dtype=torch.float64), 12

    def v(t, x):
        return torch.sin(theta * x) + t * x

    def v_x(t, x):
        return theta * torch.cos(theta * x) + t

    def v_theta(t, x):
        return x * torch.cos(theta * x)

    states = [1 + 0.5 * _randn(generator, 1)[0]]
    for k in range(n):
        states.append(states[-1] + v(k / n, states[-1]) / n)
    return torch.stack(states), v_x, v_theta, _randn(generator, 1)[0].abs() + 0.5


def _blame(*, sign=1.0, late=False, early_blame=False, still=False, forward=False, size=None):
    """The gradient through Euler's steps, with a planted change."""

    def gradient(x, v_x, v_theta, a):
        n, total = len(x) - 1, 0.0
        h = 1 / n
        for k in range(n) if forward else reversed(range(n)):
            t, at = ((k + 1) * h, x[k + 1]) if late else (k * h, x[k])
            before = a if still else a + sign * h * v_x(t, at) * a
            total = total + (h if size is None else size) * (before if early_blame else a) * v_theta(t, at)
            a = before
        return total

    return gradient


def _blame_by_products(x, v_x, v_theta, a):
    """The sum over steps of (what step k did to the end) · (what θ did in step k), written out."""
    n = len(x) - 1
    t = torch.arange(n, dtype=x.dtype) / n
    factors = torch.stack([1 + v_x(t[k], x[k]) / n for k in range(n)])
    return sum(a * factors[k + 1 :].prod() * v_theta(t[k], x[k]) / n for k in range(n))


backwards_by_hand = Exercise(
    inputs=_trajectory,
    right=_blame(),
    also_right=(_blame_by_products,),
    wrong={
        "the sign of the adjoint's step is wrong. Differentiate one step: ∂x_{k+1}/∂x_k = 1 + h ∂v/∂x, and a is "
        "multiplied by it.": _blame(sign=-1.0),
        "you took a_k for the step from x_k to x_{k+1}. θ acts in v, which moves x_{k+1}: its effect on the loss is "
        "a_{k+1}.": _blame(early_blame=True),
        "field and time are taken at the end of each step. Euler's step k uses v at t_k and x_k.": _blame(late=True),
        "the adjoint stayed what it was at the end. It changes on the way back: a_k = a_{k+1} (1 + h ∂v/∂x).": (
            _blame(still=True)
        ),
        "you ran forward. The derivative of the loss is known at the end, so the steps are undone from the last to the "
        "first.": _blame(forward=True),
        "a factor h is missing: in one step θ moves the point by h ∂v/∂θ.": _blame(size=1.0),
    },
    atol=1e-8,
    rtol=1e-6,
)

# ---------------------------------------------------------------------- tanh-at-the-end (variant; E38)


def _on_both_sides(generator: torch.Generator) -> tuple:
    inside = 1.9 * torch.rand(12, generator=generator, dtype=torch.float64) - 0.95
    outside = (1.05 + torch.rand(6, generator=generator, dtype=torch.float64)) * torch.tensor([1, -1] * 3)
    return (torch.cat([inside, outside]),)


def _normal(z: Tensor) -> Tensor:
    return -0.5 * z.square() - LOG_2PI / 2


def _squashed(log_p, outside=-math.inf):
    """log_p(x) inside (−1, 1); something else elsewhere."""

    def density(x):
        held = x.clamp(-0.999, 0.999)
        return torch.where(x.abs() < 1, log_p(held), torch.as_tensor(outside, dtype=x.dtype))

    return density


tanh_at_the_end = Exercise(
    inputs=_on_both_sides,
    right=_squashed(lambda x: _normal(torch.atanh(x)) - (1 - x.square()).log()),
    also_right=(
        _squashed(lambda x: _normal(0.5 * ((1 + x) / (1 - x)).log()) - torch.log1p(-x) - torch.log1p(x)),
        lambda x: (_normal(torch.atanh(x)) - (1 - x**2).log()).nan_to_num(nan=-math.inf),
        _squashed(lambda x: _normal(torch.atanh(x)) - 2 * torch.cosh(torch.atanh(x)).reciprocal().log()),
    ),
    wrong={
        "inside (−1, 1) you are right. Outside no z leads to x: the density is 0, its logarithm −∞, not nan.": (
            lambda x: _normal(torch.atanh(x)) - (1 - x.square()).log()
        ),
        "outside (−1, 1) the density is 0, so its logarithm is −∞. A 0 there says that the density is 1.": (
            _squashed(lambda x: _normal(torch.atanh(x)) - (1 - x.square()).log(), outside=0.0)
        ),
        "the sign of the log-determinant is turned: tanh squeezes (its slope is 1 − x² < 1), so the density grows.": (
            _squashed(lambda x: _normal(torch.atanh(x)) + (1 - x.square()).log())
        ),
        "this is the density of the z that x comes from. The log-determinant is missing.": (
            _squashed(lambda x: _normal(torch.atanh(x)))
        ),
        "the slope of tanh at z is 1 − tanh²(z) = 1 − x². You took the tanh of x.": (
            _squashed(lambda x: _normal(torch.atanh(x)) - (1 - torch.tanh(x).square()).log())
        ),
        "you went the wrong way: x = tanh(z), so z = atanh(x).": lambda x: (
            _normal(torch.tanh(x)) + torch.log(1 - torch.tanh(x).square())
        ),
        "this is a normal density cut off at ±1. Under tanh no mass is lost, and none is left where it was.": (
            _squashed(lambda x: _normal(x) - math.log(math.erf(1 / math.sqrt(2))))
        ),
    },
)

# ---------------------------------------------------------------------- two-hills-from-one (open)

WEIGHTS, CENTERS, WIDTHS = (0.3, 0.7), (-2.0, 1.5), (0.4, 0.8)
MOST_BINS, GOAL, BELL = 8, 0.02, 0.386  # nats; the last is the divergence of the best single bell


def _two_hills(x: Tensor) -> Tensor:
    """The density that is wanted."""
    return sum(w * (_normal((x - c) / d)).exp() / d for w, c, d in zip(WEIGHTS, CENTERS, WIDTHS, strict=True))


def _cdf(x: Tensor) -> Tensor:
    """Its distribution function."""
    parts = zip(WEIGHTS, CENTERS, WIDTHS, strict=True)
    return sum(w * torch.special.ndtr((x - c) / d) for w, c, d in parts)


def _quantile(u: Tensor) -> Tensor:
    low, high = torch.full_like(u, -12.0), torch.full_like(u, 12.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = torch.where(_cdf(middle) < u, middle, low), torch.where(_cdf(middle) < u, high, middle)
    return (low + high) / 2


def _divergence(z: Tensor, x: Tensor, slope: Tensor) -> float:
    """KL(two hills ‖ spline of a normal), by quadrature."""
    grid = torch.linspace(-7, 7, 4001, dtype=torch.float64)
    table = knots(z, x, slope)
    table = type(table)(table.table.expand(len(grid), 3, len(z)))
    back, log_slope = rational_quadratic_inverse(grid, table)
    p = _two_hills(grid)
    return torch.trapezoid(p * (p.log() - _normal(back) - log_slope), grid).item()


def _judged(choose, p, cdf) -> str:
    """What became of the knots that were chosen, in one word."""
    chosen = choose(p, cdf)
    if chosen is None or chosen is Ellipsis:
        return chosen
    z, x, slope = (torch.as_tensor(part).real.double() for part in chosen)
    if not (z.ndim == 1 and z.shape == x.shape == slope.shape) or len(z) < 3:
        return "other shapes"
    if len(z) > MOST_BINS + 1:
        return "too many bins"
    if not (torch.cat([z, x, slope]).isfinite().all() and (z.diff() > 0).all() and (x.diff() > 0).all()):
        return "not increasing"
    if not (slope > 0).all():
        return "slopes"
    kl = _divergence(z, x, slope)
    if kl >= GOAL and (word := _about_slopes(z, x, slope)):
        return word
    for bound, word in ((GOAL, "two hills"), (3 * GOAL, "close"), (BELL - 0.01, "halfway")):
        if kl < bound:
            return word
    return "no better than a bell"


def _about_slopes(z: Tensor, x: Tensor, slope: Tensor) -> str:
    """What is wrong with the slopes, where the places and values are those of the exact map."""
    if (_cdf(x) - torch.special.ndtr(z)).abs().max() > 5e-3:
        return ""
    exact = _exact_slope(z, x).log()
    if (slope.log() + exact).abs().max() < 0.05:
        return "slopes upside down"
    return "other slopes" if (slope.log() - exact).abs().max() > 0.3 else ""


def _exact_slope(z: Tensor, x: Tensor) -> Tensor:
    return _normal(z).exp() / _two_hills(x)


def _knots_at(z, slope=_exact_slope):
    def choose(p, cdf):
        z_k = torch.as_tensor(z, dtype=torch.float64)
        x_k = _quantile(torch.special.ndtr(z_k))
        return z_k, x_k, slope(z_k, x_k)

    return choose


def _evenly(count, width=3.0):
    return torch.linspace(-width, width, count, dtype=torch.float64)


def _best_bell(p, cdf):
    mean = sum(w * c for w, c in zip(WEIGHTS, CENTERS, strict=True))
    second = sum(w * (c**2 + d**2) for w, c, d in zip(WEIGHTS, CENTERS, WIDTHS, strict=True))
    std = math.sqrt(second - mean**2)
    return _evenly(5), mean + std * _evenly(5), torch.full((5,), std)


def _turned(p, cdf):
    z, x, slope = _knots_at(_evenly(9))(p, cdf)
    return z, x.flip(0), slope


VALLEY = (-3.0, -2.0, -1.2, -0.75, -0.524, -0.3, 0.2, 1.0, 2.5)

two_hills_from_one = Exercise(
    inputs=lambda generator: (_two_hills, _cdf),
    apply=_judged,
    right=_knots_at(VALLEY),
    also_right=(
        _knots_at([-2.6, -1.6, -0.95, -0.68, -0.52, -0.38, -0.1, 0.8, 2.2]),
        lambda p, cdf: [part.tolist() for part in _knots_at(VALLEY)(p, cdf)],
    ),
    wrong={
        "close: below 0.06 nats. Nine knots are enough for 0.02; the map is steepest between the hills, where the "
        "distribution function is 0.3. Put more of them there.": _knots_at(_evenly(9)),
        "places and values are those of the exact map, the slopes are not: differentiate Φ(z) = F(x), and its slope is "
        "dx/dz = φ(z)/p(x), at every knot.": _knots_at(_evenly(9), lambda z, x: torch.ones_like(z)),
        "your slopes are those of the way back, dz/dx = p(x)/φ(z). Asked are the slopes of x as a function of z.": (
            _knots_at(_evenly(9), lambda z, x: 1 / _exact_slope(z, x))
        ),
        "better than any single bell, and not yet near: use all nine knots, with values x_k and slopes from the exact "
        "map, which obeys Φ(z) = F(x).": _knots_at(_evenly(5)),
        "no better than the best single bell (0.39 nats): a straight line, or knots that no distribution function was "
        "asked about.": _best_bell,
        "more than nine knots: eight bins must do.": _knots_at(_evenly(17)),
        "the places and the values must both increase, and be finite: the map has to be one-to-one.": _turned,
        "a slope is not positive: at such a knot the map would turn around or stand still.": _knots_at(
            VALLEY, lambda z, x: -_normal(z).exp() / _two_hills(x)
        ),
        "three lists of one length, three numbers or more each: the places z_k, the values x_k, the slopes there.": (
            lambda p, cdf: (_evenly(9), _evenly(9), torch.ones(8))
        ),
    },
)

EXERCISES: dict[str, Exercise] = {
    "loss-of-a-flow": loss_of_a_flow,
    "undo-a-coupling": undo_a_coupling,
    "two-hills-from-one": two_hills_from_one,
    "one-after-another": one_after_another,
    "tanh-at-the-end": tanh_at_the_end,
    "backwards-by-hand": backwards_by_hand,
}
