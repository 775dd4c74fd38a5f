r"""Normalizing flows: a density as the image of a simple one under invertible layers.

    log p(x) = log p_z(T⁻¹(x)) + log |det J_{T⁻¹}(x)|,    T = T_K ∘ … ∘ T_1
    L = −(1/N) Σ_i log p(x_i)                                                                          (eq-flow-nll)
    KL(p ‖ T#p_z) = E_{x~p}[log p(x) − log T#p_z(x)]                                                (eq-forward-kl)

z is the base variable, x the data; each layer is a map T: z → x with `forward(z)` = T(z) and `inverse(x)` = T⁻¹(x).
Both return the log |det J| of the map that they applied. Points are (batch, dim), densities in nats. A point outside
the image of T has no z: `inverse` says so by the log-determinant −∞, which makes the density zero there.

Layers whose network must not be inverted give it only what both directions know. It is called on the data side, so that
the log-likelihood takes one pass: z_i = τ(x_i; φ_i) with an increasing τ and

    coupling                φ depends on the kept coordinates x_a; z_a = x_a,
                            z_b = x_b e^{s(x_a)} + t(x_a),   log |det J_{T⁻¹}| = Σ s(x_a)         (eq-affine-coupling)
    autoregressive          φ_i depends on x_1 … x_{i−1},
                            log |det J_{T⁻¹}| = Σ_i log τ'(x_i; φ_i(x_{<i}))                  (eq-autoregressive-flow)
    planar                  x = z + u tanh(wᵀz + b),
                            log |det J_T| = log |1 + (1 − tanh²(wᵀz + b)) uᵀw|                     (eq-planar-log-det)

Sources: Rezende and Mohamed, ICML 2015, section 4.1 and appendix A.1 (planar); Dinh et al., ICLR 2017, eq. (4)–(8)
(affine coupling, checkerboard masks); Papamakarios et al., NeurIPS 2017, eq. (4)–(5) (autoregressive); Kingma and
Dhariwal, NeurIPS 2018, section 3.1 (ActNorm); Durkan et al., NeurIPS 2019 (splines); Papamakarios et al., JMLR 22
(2021), sections 2.3.1 and 3.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear

from companion.device import randn, randn_like
from companion.numerics._checks import is_whole, not_finite
from companion.numerics.splines import (
    check_spline,
    free_numbers,
    knots_from,
    rational_quadratic,
    rational_quadratic_inverse,
)

Mapped = tuple[Float[Tensor, "batch dim"], Float[Tensor, " batch"]]


class Transform(nn.Module):
    """An invertible layer T: z → x."""

    def forward(self, z: Float[Tensor, "batch dim"]) -> Mapped:
        """T(z) and log |det J_T(z)|; −∞ where T is not defined."""
        raise NotImplementedError

    def inverse(self, x: Float[Tensor, "batch dim"]) -> Mapped:
        """T⁻¹(x) and log |det J_{T⁻¹}(x)|; −∞ (and a point of no meaning) where x lies outside the image of T."""
        raise NotImplementedError


class Inverted(Transform):
    """The same bijection the other way round: from base to data by T⁻¹.

    Args:
        transform: the layer.
    """

    def __init__(self, transform: nn.Module):
        super().__init__()
        self.transform = transform

    def forward(self, z: Float[Tensor, "batch dim"]) -> Mapped:
        return self.transform.inverse(z)

    def inverse(self, x: Float[Tensor, "batch dim"]) -> Mapped:
        return self.transform(x)


# --- Increasing maps of one coordinate --------------------------------------------------------------------------------


@runtime_checkable
class Univariate(Protocol):
    """z = τ(x; φ), increasing in x. `size` numbers φ say which map it is; zeros say the identity."""

    size: int

    def __call__(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """z and log dz/dx; x (...), φ (..., size)."""

    def inverse(self, z: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """x and log dx/dz."""


class Affine:
    """z = x e^s + t with φ = (t, a) and s = a/(1 + |a|/L), L = log(1/least): the slope stays within (least, 1/least).

    Read the other way, x is a Gaussian's draw where z is standard normal: mean −t e^{−s}, standard deviation e^{−s}.

    Args:
        least: the smallest slope.
    """

    size = 2

    def __init__(self, least: float = 1e-3):
        if not 0 < least < 1:
            raise ValueError(f"Affine: received least = {least}; rule: between 0 and 1")
        self.limit = math.log(1 / least)

    def __call__(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        t, s = self._parts(phi)
        return x * s.exp() + t, s

    def inverse(self, z: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        t, s = self._parts(phi)
        return (z - t) * (-s).exp(), -s

    def _parts(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        t, a = phi.unbind(-1)
        return t, a / (1 + a.abs() / self.limit)


class Spline:
    """A monotone rational-quadratic spline of `companion.numerics.splines` on [−bound, bound], the identity outside.

    Args:
        bins: number of pieces, 2 or more.
        bound: half the side of the box in which it bends.
        least: the smallest slope at a knot.
    """

    def __init__(self, bins: int = 8, *, bound: float = 5.0, least: float = 1e-3):
        check_spline(bins, bound, least)
        self.size, self.options = free_numbers(bins), {"bins": bins, "bound": bound, "least": least}

    def __call__(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic(x, knots_from(phi, **self.options))

    def inverse(self, z: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic_inverse(z, knots_from(phi, **self.options))


# --- Couplings --------------------------------------------------------------------------------------------------------


def alternating_mask(dim: int) -> Bool[Tensor, " dim"]:
    """True, False, True, …: the checkerboard of a vector."""
    _check_dim("alternating_mask", dim)
    return torch.arange(dim) % 2 == 0


def checkerboard_mask(height: int, width: int) -> Bool[Tensor, "height width"]:
    """True where row + column is even; `.flatten()` it for a coupling of flattened images."""
    if not (is_whole(height, least=1) and is_whole(width, least=1)) or height * width < 2:
        raise ValueError(
            f"checkerboard_mask: received {height!r} × {width!r}; rule: whole numbers, at least two squares"
        )
    return (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0


class Coupling(Transform):
    """Some coordinates are kept and tell a network how to change the others: z_b = τ(x_b; φ(x_a)).

    The kept ones go through τ as well, with numbers `kept_phi` that depend on nothing; zeros are the identity. A new
    coupling is the identity on all coordinates.

    Args:
        mask: (dim,), True for the kept coordinates, False for those that change; both must occur.
        univariate: τ.
        hidden: widths of the network's hidden layers.
        activation: makes an activation module.
        network: any module from (batch, kept) to (batch, changed · univariate.size), instead of the perceptron.
    """

    def __init__(
        self,
        mask: Tensor,
        univariate: Univariate,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
        network: nn.Module | None = None,
    ):
        super().__init__()
        _check_mask(type(self).__name__, mask)
        kept, changed = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
        self.dim, self.univariate = len(mask), univariate
        self.network = network
        if network is None:
            self.network = _perceptron(len(kept), len(changed) * univariate.size, hidden, activation)
        self.sort = _Columns(torch.cat([kept, changed]))
        self.unsort = _Columns(self.sort.order.argsort())
        self.register_buffer("kept_phi", torch.zeros(len(kept), univariate.size))

    def inverse(self, x: Float[Tensor, "batch dim"]) -> Mapped:
        _check_points(self, x)
        x = self.sort(x)
        z, log_slope = self.univariate(x, self._phi(x[:, : len(self.kept_phi)]))
        return self.unsort(z), log_slope.sum(1)

    def forward(self, z: Float[Tensor, "batch dim"]) -> Mapped:
        _check_points(self, z)
        z = self.sort(z)
        x_a, _ = self.univariate.inverse(z[:, : len(self.kept_phi)], self._kept_phi(len(z)))
        x, log_slope = self.univariate.inverse(z, self._phi(x_a))
        return self.unsort(x), log_slope.sum(1)

    def _phi(self, x_a: Tensor) -> Tensor:
        """φ of every coordinate, (batch, dim, size), the kept ones first."""
        changed = self.network(x_a).unflatten(1, (-1, self.univariate.size))
        return torch.cat([self._kept_phi(len(x_a)), changed], dim=1)

    def _kept_phi(self, batch: int) -> Tensor:
        return self.kept_phi.expand(batch, -1, -1)


class AffineCoupling(Coupling):
    """RealNVP's layer: z_a = x_a, z_b = x_b e^{s(x_a)} + t(x_a), hence T: x_b = (z_b − t(z_a)) e^{−s(z_a)}.

    Args:
        mask: (dim,), True for x_a, False for x_b.
        hidden: widths of the network's hidden layers.
        activation: makes an activation module.
        network: any module from (batch, kept) to (batch, 2 · changed): t and raw s of each, instead of the perceptron.
    """

    def __init__(self, mask: Tensor, **network: object):
        super().__init__(mask, Affine(), **network)


class SplineCoupling(Coupling):
    """A coupling whose τ is a spline, and which learns for each kept coordinate one spline that depends on nothing.

    Args:
        mask: (dim,), True for the kept coordinates.
        bins: pieces of each spline, 2 or more.
        bound: half the side of the box in which the splines bend.
        hidden: widths of the network's hidden layers.
        activation: makes an activation module.
        network: any module from (batch, kept) to (batch, changed · (3 bins − 1)), instead of the perceptron.
    """

    def __init__(self, mask: Tensor, *, bins: int = 8, bound: float = 5.0, **network: object):
        super().__init__(mask, Spline(bins, bound=bound), **network)
        zeros = self.kept_phi
        del self.kept_phi
        self.kept_phi = nn.Parameter(zeros)


class _Columns(nn.Module):
    """x[:, order] for a permutation; the very x where nothing moves."""

    def __init__(self, order: Tensor):
        super().__init__()
        self.register_buffer("order", order, persistent=False)
        self.moves = not torch.equal(order, torch.arange(len(order)))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.order) if self.moves else x


# --- Autoregressive layers --------------------------------------------------------------------------------------------


class MaskedLinear(nn.Linear):
    """A linear layer of which some weights are zero for good.

    Args:
        allowed: (out, in), True where an output may see an input.
    """

    def __init__(self, allowed: Bool[Tensor, "out in"]):
        super().__init__(allowed.shape[1], allowed.shape[0])
        self.register_buffer("allowed", allowed, persistent=False)

    def forward(self, x: Float[Tensor, "batch in"]) -> Float[Tensor, "batch out"]:
        return linear(x, self.weight * self.allowed, self.bias)


class MaskedAutoregressive(Transform):
    """z_i = τ(x_i; φ_i(x_{<i})): one masked network gives every φ_i in one pass; T itself needs a pass a coordinate.

    Each hidden unit has a degree h and sees the coordinates up to the h-th; φ_i sees the units of lower degree than i.
    A new layer is the identity.

    Args:
        dim: length of a point, 2 or more.
        univariate: τ; affine unless given.
        hidden: widths of the hidden layers.
        activation: makes an activation module.
        order: which coordinate comes first, second, …; a permutation of 0 … dim − 1, ascending unless given.
        groups: coordinates that follow each other in this order form so many groups, each of which sees those before
            it and not itself. `dim` of them unless given: fully autoregressive. Two make a coupling.
    """

    def __init__(
        self,
        dim: int,
        *,
        univariate: Univariate | None = None,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
        order: Sequence[int] | Tensor | None = None,
        groups: int | None = None,
    ):
        super().__init__()
        _check_dim("MaskedAutoregressive", dim)
        if groups is not None and not (is_whole(groups, least=2) and groups <= dim):
            raise ValueError(
                f"MaskedAutoregressive: received groups = {groups!r}; rule: a whole number from 2 to {dim}"
            )
        order = torch.arange(dim) if order is None else _permutation("MaskedAutoregressive", order, dim)
        self.dim, self.univariate = dim, univariate or Affine()
        degrees = order.argsort() // math.ceil(dim / (groups or dim))
        self.passes = int(degrees.max()) + 1
        layers: list[nn.Module] = []
        seen = degrees
        for width in _widths("MaskedAutoregressive", hidden):
            unit = torch.arange(width) % (self.passes - 1)
            layers += [MaskedLinear(unit[:, None] >= seen), activation()]
            seen = unit
        out = degrees.repeat_interleave(self.univariate.size)
        self.network = nn.Sequential(*layers, _silent(MaskedLinear(out[:, None] > seen)))

    def inverse(self, x: Float[Tensor, "batch dim"]) -> Mapped:
        _check_points(self, x)
        z, log_slope = self.univariate(x, self._phi(x))
        return z, log_slope.sum(1)

    def forward(self, z: Float[Tensor, "batch dim"]) -> Mapped:
        _check_points(self, z)
        x = torch.zeros_like(z)
        for _ in range(self.passes):  # each pass makes one more group right
            x, log_slope = self.univariate.inverse(z, self._phi(x))
        return x, log_slope.sum(1)

    def _phi(self, x: Tensor) -> Tensor:
        return self.network(x).unflatten(1, (self.dim, self.univariate.size))


# --- Layers without a network -----------------------------------------------------------------------------------------


class Elementwise(Transform):
    """z_i = τ(x_i; φ_i) with numbers φ_i that are learned directly: the flow of one dimension. New, it is the identity.

    Args:
        dim: length of a point.
        univariate: τ.
    """

    def __init__(self, dim: int, univariate: Univariate):
        super().__init__()
        _check_dim("Elementwise", dim, least=1)
        self.dim, self.univariate = dim, univariate
        self.phi = nn.Parameter(torch.zeros(dim, univariate.size))

    def inverse(self, x: Float[Tensor, "batch dim"]) -> Mapped:
        _check_points(self, x)
        z, log_slope = self.univariate(x, self.phi.expand(len(x), -1, -1))
        return z, log_slope.sum(1)

    def forward(self, z: Float[Tensor, "batch dim"]) -> Mapped:
        _check_points(self, z)
        x, log_slope = self.univariate.inverse(z, self.phi.expand(len(z), -1, -1))
        return x, log_slope.sum(1)


class ActNorm(Transform):
    """x = μ + σ z for each coordinate, learned from a start that the data give: the first batch leaves with mean 0 and
    standard deviation 1.

    The first batch that passes `inverse` in training mode starts it, or `start(x)` does; before that it cannot be used.

    Args:
        dim: length of a point.
    """

    def __init__(self, dim: int):
        super().__init__()
        _check_dim("ActNorm", dim, least=1)
        self.dim, self.started = dim, False
        self.mu, self.log_sigma = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    @torch.no_grad()
    def start(self, x: Float[Tensor, "batch dim"]) -> None:
        """Take μ and σ of a batch.

        Raises:
            ValueError: fewer than two points, or a coordinate that is the same in all of them.
        """
        _check_points(self, x)
        sigma, mu = torch.std_mean(x, dim=0, correction=0)
        if len(x) < 2 or bool((sigma <= 1e-6 * (1 + mu.abs())).any()):
            constant = (sigma <= 1e-6 * (1 + mu.abs())).nonzero()[:3, 0].tolist()
            raise ValueError(
                f"ActNorm: received {len(x)} points to start from, constant in coordinates {constant} …; "
                "rule: two points or more, and every coordinate varies (dequantize images first)"
            )
        self.mu.copy_(mu)
        self.log_sigma.copy_(sigma.log())
        self.started = True

    def inverse(self, x: Float[Tensor, "batch dim"]) -> Mapped:
        _check_points(self, x)
        if self.training and not self.started:
            self.start(x)
        self._check_started()
        return (x - self.mu) * (-self.log_sigma).exp(), -self.log_sigma.sum().expand(len(x))

    def forward(self, z: Float[Tensor, "batch dim"]) -> Mapped:
        _check_points(self, z)
        self._check_started()
        return self.mu + z * self.log_sigma.exp(), self.log_sigma.sum().expand(len(z))

    def _check_started(self) -> None:
        if not self.started:
            raise ValueError("ActNorm: received points before its start; rule: train it, or call start(x), first")

    def get_extra_state(self) -> bool:
        """Whether it has started, for `state_dict`."""
        return self.started

    def set_extra_state(self, state: bool) -> None:
        """From `load_state_dict`."""
        self.started = state


class Permutation(Transform):
    """x_i = z_{order[i]}: the coordinates in another order; the volume stays.

    Args:
        order: a permutation of 0 … dim − 1.
    """

    def __init__(self, order: Sequence[int] | Tensor):
        super().__init__()
        order = _permutation("Permutation", order, len(order))
        self.dim = len(order)
        self.there, self.back = _Columns(order), _Columns(order.argsort())

    def inverse(self, x: Float[Tensor, "batch dim"]) -> Mapped:
        _check_points(self, x)
        return self.back(x), x.new_zeros(len(x))

    def forward(self, z: Float[Tensor, "batch dim"]) -> Mapped:
        _check_points(self, z)
        return self.there(z), z.new_zeros(len(z))


class Planar(Transform):
    """x = z + û tanh(wᵀz + b): space is pushed along û, by an amount that depends on wᵀz.

    û is u with its part along w changed so that wᵀû > −1, which makes the map invertible: with α = wᵀz,
    α + wᵀû tanh(α + b) = wᵀx increases in α. The way back has no closed form: bisection finds α to rounding. New, u = 0
    and the layer is the identity.

    Args:
        dim: length of a point.
    """

    halvings = 64  # of an interval of length 2 |wᵀû|: as far as float64 goes

    def __init__(self, dim: int):
        super().__init__()
        _check_dim("Planar", dim, least=1)
        self.dim = dim
        self.w = nn.Parameter(torch.randn(dim) / math.sqrt(dim))
        self.u, self.b = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(()))

    def forward(self, z: Float[Tensor, "batch dim"]) -> Mapped:
        _check_points(self, z)
        push, along = self._push()
        bend = torch.tanh(z @ self.w + self.b)
        return z + bend[:, None] * push, torch.log1p(along * (1 - bend.square()))

    def inverse(self, x: Float[Tensor, "batch dim"]) -> Mapped:
        _check_points(self, x)
        push, along = self._push()
        goal = x @ self.w
        with torch.no_grad():
            alpha = self._bisect(goal, along)
            slope = 1 + along * (1 - torch.tanh(alpha + self.b).square())
        # One step of Newton's method at the root changes nothing but gives the root its derivatives.
        alpha = alpha - (alpha + along * torch.tanh(alpha + self.b) - goal) / slope
        bend = torch.tanh(alpha + self.b)
        return x - bend[:, None] * push, -torch.log1p(along * (1 - bend.square()))

    def _push(self) -> tuple[Tensor, Tensor]:
        """û and wᵀû = softplus(wᵀu + log(e − 1)) − 1, which is 0 for u = 0."""
        now = self.w @ self.u
        wanted = nn.functional.softplus(now + math.log(math.e - 1)) - 1
        return self.u + (wanted - now) * self.w / self.w.square().sum(), wanted

    def _bisect(self, goal: Tensor, along: Tensor) -> Tensor:
        low, high = goal - along.abs(), goal + along.abs()
        for _ in range(self.halvings):
            middle = (low + high) / 2
            below = middle + along * torch.tanh(middle + self.b) < goal
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


class TanhLayer(Transform):
    """x = tanh z for each coordinate: a bijection of the line onto (−1, 1), and no farther.

    A point with a coordinate outside (−1, 1) is the image of nothing: its log-density is −∞. (In float32 tanh z rounds
    to ±1, which is outside, from |z| = 9 on.)
    """

    def forward(self, z: Float[Tensor, "batch dim"]) -> Mapped:
        log_slope = 2 * (math.log(2) - z - nn.functional.softplus(-2 * z))  # 1 − tanh² = 4 / (e^z + e^−z)²
        return torch.tanh(z), log_slope.sum(1)

    def inverse(self, x: Float[Tensor, "batch dim"]) -> Mapped:
        reached = (x.abs() < 1).all(1)
        inner = x.where(reached[:, None], 0.0)
        log_det = -(torch.log1p(inner) + torch.log1p(-inner)).sum(1)
        return torch.atanh(inner), log_det.where(reached, -math.inf)


# --- The flow ---------------------------------------------------------------------------------------------------------


@runtime_checkable
class Base(Protocol):
    """The density of z."""

    def log_prob(self, x: Tensor) -> Tensor: ...

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor: ...


class StandardNormal(nn.Module):
    """N(0, I) as a part of a flow: device and dtype are those of the flow.

    Args:
        dim: length of a point.
    """

    def __init__(self, dim: int):
        super().__init__()
        _check_dim("StandardNormal", dim, least=1)
        self.dim = dim
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def log_prob(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        """−½ ‖x‖² − ½ dim log 2π."""
        return -0.5 * x.square().sum(1) - 0.5 * self.dim * math.log(2 * math.pi)

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n dim"]:
        """`n` independent points."""
        return randn(n, self.dim, generator=generator, device=self.zero.device, dtype=self.zero.dtype)


class Flow(Transform):
    """A base density and the layers that carry it to the data.

    Args:
        base: the density of z, with `log_prob` and `sample`.
        transforms: the layers from base to data; whatever has `forward` and `inverse` as `Transform` says.
    """

    def __init__(self, base: Base, transforms: Iterable[nn.Module]):
        super().__init__()
        self.base, self.transforms = base, nn.ModuleList(transforms)
        if len(self.transforms) == 0:
            raise ValueError("Flow: received no layers; rule: at least one")

    def forward(self, z: Float[Tensor, "batch dim"]) -> Mapped:
        """T(z) through all layers, and log |det J_T(z)|."""
        return _all(self.transforms, z)

    def inverse(self, x: Float[Tensor, "batch dim"]) -> Mapped:
        """T⁻¹(x), and log |det J_{T⁻¹}(x)|."""
        return _all([layer.inverse for layer in reversed(self.transforms)], x)

    def log_prob(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        """log p(x) in nats; −∞ where x lies outside the image of T.

        Raises:
            ValueError: x is not (batch, dim), or holds NaN or infinity.
        """
        if not_finite(x):
            raise ValueError("Flow.log_prob: received points with NaN or infinity; rule: finite points")
        z, log_det = self.inverse(x)
        return self.base.log_prob(z) + log_det

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n dim"]:
        """`n` independent points: base draws, carried by T.

        Raises:
            ValueError: a draw of the base lies outside the domain of a layer.
        """
        x, log_det = self(self.base.sample(n, generator=generator))
        outside = int((log_det == -math.inf).sum())
        if outside:
            raise ValueError(
                f"Flow.sample: received {outside} of {n} base draws outside the domain of a layer; "
                "rule: the base lives where T is defined"
            )
        return x

    @torch.no_grad()
    def through(self, z: Float[Tensor, "batch dim"]) -> Float[Tensor, "stops batch dim"]:
        """z and where it is after each layer, on the way to the data."""
        return _stops(self.transforms, z)

    @torch.no_grad()
    def back(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "stops batch dim"]:
        """x and where it is after each inverse layer, on the way to the base: `through` in reverse."""
        return _stops([layer.inverse for layer in reversed(self.transforms)], x)


def negative_log_likelihood(flow: nn.Module, x: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """−(1/N) Σ log p(x_i) over data x_i (eq-flow-nll): up to a constant the KL divergence from the data's density."""
    return -flow.log_prob(x).mean()


def forward_kl(p: Base, q: nn.Module, x: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """KL(p ‖ q) = E_{x~p}[log p(x) − log q(x)] estimated from draws x of p (eq-forward-kl).

    Args:
        p: the density that x was drawn from.
        q: the other one, a flow say.
        x: draws of p.
    """
    return (p.log_prob(x) - q.log_prob(x)).mean()


# --- Ready-made flows -------------------------------------------------------------------------------------------------


def real_nvp(
    dim: int,
    *,
    transforms: int = 6,
    hidden: Sequence[int] = (64, 64),
    mask: Tensor | None = None,
    between: Callable[[int], nn.Module] | None = None,
) -> Flow:
    """Affine couplings on a standard normal; every second one keeps what the others change (Dinh et al. 2017).

    Args:
        dim: length of a point, 2 or more.
        transforms: number of couplings.
        hidden: widths of the networks' hidden layers.
        mask: what the couplings on the data side keep; every second coordinate unless given. For images,
            `checkerboard_mask(height, width).flatten()`.
        between: makes a layer, from `dim`, for the data side of each coupling: `ActNorm`, say.
    """
    masks = _masks("real_nvp", dim, transforms, mask)
    return _assemble(dim, [AffineCoupling(m, hidden=hidden) for m in masks], between)


def spline_flow(
    dim: int,
    *,
    transforms: int = 3,
    bins: int = 8,
    hidden: Sequence[int] = (64, 64),
    bound: float = 5.0,
    mask: Tensor | None = None,
    between: Callable[[int], nn.Module] | None = None,
) -> Flow:
    """Spline couplings on a standard normal (Durkan et al. 2019). Data should lie within (−bound, bound).

    Args:
        dim: length of a point, 2 or more.
        transforms: number of couplings.
        bins: pieces of each spline.
        hidden: widths of the networks' hidden layers.
        bound: half the side of the box in which the splines bend.
        mask: as for `real_nvp`.
        between: as for `real_nvp`.
    """
    masks = _masks("spline_flow", dim, transforms, mask)
    return _assemble(dim, [SplineCoupling(m, bins=bins, bound=bound, hidden=hidden) for m in masks], between)


def masked_autoregressive_flow(
    dim: int,
    *,
    transforms: int = 3,
    univariate: Univariate | None = None,
    hidden: Sequence[int] = (64, 64),
    between: Callable[[int], nn.Module] | None = None,
) -> Flow:
    """Masked autoregressive layers on a standard normal; every second one goes through the coordinates backwards.

    Args:
        dim: length of a point, 2 or more.
        transforms: number of layers.
        univariate: τ; affine unless given, `Spline()` for a neural spline flow.
        hidden: widths of the networks' hidden layers.
        between: as for `real_nvp`.
    """
    _check_count("masked_autoregressive_flow", transforms)
    _check_dim("masked_autoregressive_flow", dim)
    ways = (torch.arange(dim), torch.arange(dim).flip(0))
    layers = [
        MaskedAutoregressive(dim, univariate=univariate, hidden=hidden, order=ways[(transforms - 1 - k) % 2])
        for k in range(transforms)
    ]
    return _assemble(dim, layers, between)


@torch.no_grad()
def scramble(flow: nn.Module, *, generator: torch.Generator, scale: float = 0.3) -> nn.Module:
    """Add noise N(0, scale²) to every weight, and give the flow back: an untrained flow that is not the identity."""
    for parameter in flow.parameters():
        parameter.add_(scale * randn_like(parameter, generator=generator))
    return flow


# --- Parts ------------------------------------------------------------------------------------------------------------


def _all(layers: Iterable[Callable[[Tensor], tuple[Tensor, Tensor]]], point: Tensor) -> tuple[Tensor, Tensor]:
    """The point after all layers, and the sum of their log-determinants."""
    log_dets = []
    for layer in layers:
        point, log_det = layer(point)
        log_dets.append(log_det)
    return point, sum(log_dets[1:], log_dets[0])


def _stops(layers: Iterable[Callable[[Tensor], tuple[Tensor, Tensor]]], point: Tensor) -> Tensor:
    stops = [point]
    for layer in layers:
        stops.append(layer(stops[-1])[0])
    return torch.stack(stops)


def _assemble(dim: int, layers: list[nn.Module], between: Callable[[int], nn.Module] | None) -> Flow:
    if between is not None:
        layers = list(itertools.chain.from_iterable((layer, between(dim)) for layer in layers))
    return Flow(StandardNormal(dim), layers)


def _masks(operation: str, dim: int, transforms: int, mask: Tensor | None) -> list[Tensor]:
    """A mask for each coupling from base to data, in turns with its opposite; the one at the data is `mask`."""
    _check_count(operation, transforms)
    _check_dim(operation, dim)
    mask = alternating_mask(dim) if mask is None else mask
    _check_mask(operation, mask)
    if len(mask) != dim:
        raise ValueError(f"{operation}: received a mask of {len(mask)} for dim = {dim}; rule: one entry a coordinate")
    return [mask if (transforms - 1 - k) % 2 == 0 else ~mask for k in range(transforms)]


def _perceptron(dim_in: int, dim_out: int, hidden: Sequence[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    widths = [dim_in, *_widths("Coupling", hidden)]
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers, _silent(nn.Linear(widths[-1], dim_out)))


def _silent(layer: nn.Linear) -> nn.Linear:
    """The layer with weights and bias zero: what it feeds starts as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


# --- Checks -----------------------------------------------------------------------------------------------------------


def _check_points(layer: nn.Module, x: Tensor) -> None:
    if x.ndim != 2 or x.shape[1] != layer.dim:
        raise ValueError(
            f"{type(layer).__name__}: received points of shape {tuple(x.shape)}; rule: (batch, {layer.dim})"
        )


def _check_mask(operation: str, mask: Tensor) -> None:
    if mask.ndim != 1 or mask.dtype != torch.bool:
        raise ValueError(
            f"{operation}: received a mask of shape {tuple(mask.shape)} {mask.dtype}; rule: (dim,) of True and False"
        )
    kept = int(mask.sum())
    if not 0 < kept < len(mask):
        raise ValueError(
            f"{operation}: received a mask that keeps {kept} of {len(mask)} coordinates; "
            "rule: at least one is kept and at least one changes"
        )


def _check_dim(operation: str, dim: int, least: int = 2) -> None:
    if not is_whole(dim, least=least):
        raise ValueError(f"{operation}: received dim = {dim!r}; rule: a whole number, {least} or more")


def _check_count(operation: str, transforms: int) -> None:
    if not is_whole(transforms, least=1):
        raise ValueError(f"{operation}: received transforms = {transforms!r}; rule: a whole number, 1 or more")


def _widths(operation: str, hidden: Sequence[int]) -> list[int]:
    if not all(is_whole(width, least=1) for width in hidden):
        raise ValueError(f"{operation}: received hidden = {tuple(hidden)}; rule: whole numbers, 1 or more")
    return list(hidden)


def _permutation(operation: str, order: Sequence[int] | Tensor, dim: int) -> Tensor:
    order = torch.as_tensor(order)
    if order.shape != (dim,) or not torch.equal(order.sort().values.long(), torch.arange(dim)):
        raise ValueError(f"{operation}: received the order {order.tolist()}; rule: each of 0 … {dim - 1} once")
    return order.long()
