r"""Monotone rational-quadratic splines: an increasing map of the line with many free numbers and a closed inverse.

Between two knots (x_k, y_k) and (x_{k+1}, y_{k+1}) with the slopes d_k and d_{k+1}, the mean slope
s = (y_{k+1} − y_k)/(x_{k+1} − x_k) and θ = (x − x_k)/(x_{k+1} − x_k):

    y = y_k + (y_{k+1} − y_k) [s θ² + d_k θ(1−θ)] / [s + (d_k + d_{k+1} − 2s) θ(1−θ)]            (eq-rational-quadratic)
    dy/dx = s² [d_{k+1} θ² + 2s θ(1−θ) + d_k (1−θ)²] / [s + (d_k + d_{k+1} − 2s) θ(1−θ)]²

It passes through the knots with the given slopes, and it increases whatever these are, as long as they are positive:
numerator and denominator of dy/dx are sums of positive terms. The way back is the root of a quadratic equation in θ.
Left of the first knot and right of the last the map goes on straight, with the slope of that knot.

Any real numbers a become knots through b(a) = a/(1 + |a|/L), which keeps |b| < L:

    widths, heights  2B softmax(b),  L = ½ log(1/least);      inner slopes  exp(b),  L = log(1/least)

They lead from (−B, −B) to (B, B) with slope 1 at both ends: outside the box the map is the identity. A widest bin is at
most 1/least times as wide as a narrowest, and the slopes at the knots lie between least and 1/least.

Sources: Gregory and Delbourgo, IMA J. Numer. Anal. 2 (1982) 123–130; Durkan et al., 'Neural Spline Flows', NeurIPS
2019, section 3.1 and appendix A. The bounded parameters are those of the library zuko.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from companion.numerics._checks import broken, is_whole

__all__ = [
    "Knots",
    "check_spline",
    "free_numbers",
    "knots",
    "knots_from",
    "rational_quadratic",
    "rational_quadratic_inverse",
]


@dataclass(frozen=True)
class Knots:
    """Where the pieces of splines meet: bins + 1 places, values and slopes for each spline.

    Args:
        table: places x_k, values y_k, slopes d_k as the three rows, (..., 3, bins + 1).
    """

    table: Float[Tensor, "*shape 3 knots"]

    @property
    def x(self) -> Float[Tensor, "*shape knots"]:
        """The places, increasing."""
        return self.table[..., 0, :]

    @property
    def y(self) -> Float[Tensor, "*shape knots"]:
        """The values there, increasing."""
        return self.table[..., 1, :]

    @property
    def slope(self) -> Float[Tensor, "*shape knots"]:
        """The slopes there, positive."""
        return self.table[..., 2, :]


def knots(
    x: Float[Tensor, "*shape knots"], y: Float[Tensor, "*shape knots"], slope: Float[Tensor, "*shape knots"]
) -> Knots:
    """Knots given by hand, checked.

    Raises:
        ValueError: fewer than two bins, a place or a value that does not increase, or a slope that is not positive.
    """
    if x.shape[-1] < 3:
        raise ValueError(f"knots: received {x.shape[-1] - 1} bins; rule: bins are a whole number, 2 or more")
    for name, values in (("x", x), ("y", y)):
        if broken(values.diff(dim=-1) > 0):
            raise ValueError(f"knots: received {name} that do not increase; rule: each larger than the one before")
    if broken(slope > 0):
        raise ValueError(f"knots: received a slope of {slope.min().item():.4g}; rule: every slope is positive")
    return Knots(torch.stack([x, y, slope], dim=-2))


def free_numbers(bins: int) -> int:
    """How many numbers a spline has: `bins` widths, `bins` heights and the slopes at the bins − 1 inner knots."""
    return 3 * bins - 1


def check_spline(bins: int, bound: float, least: float) -> None:
    """Refuse what is no spline on [−bound, bound].

    Raises:
        ValueError: fewer than two bins, a bound that is not positive, or `least` outside (0, 1).
    """
    if not is_whole(bins, least=2):
        raise ValueError(f"spline: received bins = {bins!r}; rule: a whole number, 2 or more")
    if not (bound > 0 and math.isfinite(bound)):
        raise ValueError(f"spline: received bound = {bound}; rule: positive and finite")
    if not 0 < least < 1:
        raise ValueError(f"spline: received least = {least}; rule: between 0 and 1")


def knots_from(
    parameters: Float[Tensor, "*shape numbers"], *, bins: int, bound: float = 5.0, least: float = 1e-3
) -> Knots:
    """The knots that free numbers stand for, from (−bound, −bound) to (bound, bound). Zeros give the identity.

    Args:
        parameters: any real numbers: widths, heights, inner slopes, (..., 3 bins − 1).
        bins: number of pieces.
        bound: B, half the side of the box in which the spline bends.
        least: the smallest slope at a knot, and the smallest ratio of two widths or two heights.
    """
    check_spline(bins, bound, least)
    if parameters.shape[-1] != free_numbers(bins):
        raise ValueError(
            f"knots_from: received {parameters.shape[-1]} numbers for {bins} bins; "
            f"rule: 3 bins − 1 = {free_numbers(bins)}: widths, heights, inner slopes"
        )
    inverse_limits, sums, ends = (torch.from_numpy(part).to(parameters) for part in _constants(bins, bound, least))
    positive = (parameters / (1 + parameters.abs() * inverse_limits)).exp()
    rows, totals = linear(positive, sums, ends).split([3 * (bins + 1), 3], dim=-1)
    return Knots(rows.unflatten(-1, (3, bins + 1)) / totals[..., None])


@cache
def _constants(bins: int, bound: float, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1/L for each free number; and the matrix and the vector that make of their exponentials

    - for widths and for heights 2B · (running sum) − B · (total), from zero terms to all,
    - slopes with a 1 at both ends,
    - the divisors of these three rows: both totals and 1.
    """
    limit, row = math.log(1 / least), bins + 1
    inverse_limits = np.repeat([2 / limit, 1 / limit], [2 * bins, bins - 1])
    sums, ends = np.zeros((3 * bins - 1, 3 * row + 3)), np.zeros(3 * row + 3)
    for k in (0, 1):
        sums[k * bins : (k + 1) * bins, k * row : (k + 1) * row] = 2 * bound * np.triu(np.ones((bins, row)), 1) - bound
        sums[k * bins : (k + 1) * bins, 3 * row + k] = 1
    sums[2 * bins :, 2 * row + 1 : 3 * row - 1] = np.eye(bins - 1)
    ends[[2 * row, 3 * row - 1, 3 * row + 2]] = 1
    return inverse_limits, sums.T.copy(), ends


def rational_quadratic(
    x: Float[Tensor, "*shape"], knots: Knots
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """The spline at x, and the log of its slope there.

    Args:
        x: one place for each spline, (...).
        knots: the splines, with a table of (..., 3, bins + 1).

    Returns:
        y and log dy/dx.
    """
    (x_0, y_0, d_0), (width, height, d_1) = _piece(x, knots, row=0)
    s = height / width
    place = (x - x_0) / width
    theta = place.clamp(0, 1)
    share, slope = _inside(theta, s, d_0, d_1)
    y = torch.addcmul(y_0, height, share)
    return torch.addcmul(y, slope * width, place - theta), slope.log()


def rational_quadratic_inverse(
    y: Float[Tensor, "*shape"], knots: Knots
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """The x that the spline carries to y, and the log of the slope dx/dy of the way back.

    With η = (y − y_k)/(y_{k+1} − y_k) and m = d_k + d_{k+1} − 2s the share θ is the root of a θ² + b θ + c = 0 that
    lies between 0 and 1, written so that nothing cancels:

        a = s − d_k + m η,    b = d_k − m η,    c = −s η,    θ = −2c / (b + √(b² − 4ac))

    Args:
        y: one value for each spline, (...).
        knots: the splines, with a table of (..., 3, bins + 1).

    Returns:
        x and log dx/dy.
    """
    (x_0, y_0, d_0), (width, height, d_1) = _piece(y, knots, row=1)
    s = height / width
    place = (y - y_0) / height
    eta = place.clamp(0, 1)
    bend = (d_0 + d_1 - 2 * s) * eta
    a, b, c = s - d_0 + bend, d_0 - bend, -s * eta
    theta = -2 * c / (b + (b.square() - 4 * a * c).clamp(min=0).sqrt())
    _, slope = _inside(theta, s, d_0, d_1)
    return x_0 + width * theta + height * (place - eta) / slope, -slope.log()


def _inside(theta: Tensor, s: Tensor, d_0: Tensor, d_1: Tensor) -> tuple[Tensor, Tensor]:
    """Height above the left knot as a share of the bin's, and the slope, at the share θ of its width."""
    left, right = torch.lerp(d_0, s, theta), torch.lerp(s, d_1, theta)
    below = torch.addcmul(s, (d_0 - s) + (d_1 - s), theta * (1 - theta))
    # The parabola with the control points d_0, s, d_1, by de Casteljau: means of positive numbers, nothing cancels.
    return theta * left / below, (s / below).square() * torch.lerp(left, right, theta)


def _piece(at: Tensor, knots: Knots, row: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The bin of each place (row 0) or value (row 1), the outer ones reaching to infinity.

    Returns:
        x, y and slope of its left knot; its width, its height and the slope of its right knot.
    """
    inner = knots.table[..., row, 1:-1]
    left = (at[..., None] >= inner).sum(-1, keepdim=True)
    ends = torch.cat([left, left + 1], dim=-1)[..., None, :].expand(*at.shape, 3, 2)
    from_left, from_right = knots.table.gather(-1, ends).unbind(-1)
    (x_0, y_0, d_0), (x_1, y_1, d_1) = from_left.unbind(-1), from_right.unbind(-1)
    return (x_0, y_0, d_0), (x_1 - x_0, y_1 - y_0, d_1)
