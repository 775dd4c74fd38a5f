r"""Change of variables: the density of x = g(z).

    p_X(x) = p_Z(f(x)) |det J_f(x)|,    f = g⁻¹                                             one preimage
    p_X(x) = Σ_b p_Z(f_b(x)) |det J_{f_b}(x)|                                               one term for each branch
    log p_X(x) = log p_Z(f(x)) + Σ_k log |det J_{f_k}(x_k)|                                 a composition

z is the base variable, x the data variable, g the map from base to data, f its inverse. J_f is the matrix ∂f_i/∂x_j,
and `log_det` always means log |det J_f(x)|: of the *inverse* map, at the data point. Maps act on ONE point,
(dim,) → (dim,); batches are (batch, dim). Densities are in nats.

Determinants: by automatic differentiation in O(dim³); of a triangular matrix in O(dim); of I + U Vᵀ in O(dim rank²) by
det(I + U Vᵀ) = det(I + Vᵀ U); of I + A with ‖A‖ < 1 without any matrix, by

    log det(I + A) = Σ_k (−1)^{k+1} tr(A^k)/k,    tr(A^k) = E[vᵀ A^k v]  with  E[v vᵀ] = I.

Sources: Papamakarios et al., 'Normalizing Flows for Probabilistic Modeling and Inference', JMLR 22 (2021), section 2.1;
Rezende and Mohamed, ICML 2015, section 4.1 (low rank); Behrmann et al., 'Invertible Residual Networks', ICML 2019,
section 3.2 (series).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp, vmap

from companion.data import Density
from companion.numerics.autodiff import jacobian

Map = Callable[[Tensor], Tensor]  # of one point, (dim,) → (dim,)
LogProb = Callable[[Tensor], Tensor]  # of a batch, (batch, dim) → (batch,)

# ---------------------------------------------------------------------- log |det J|, four ways


def log_abs_det(f: Map, x: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
    """log |det J_f(x)| at each row of x, by automatic differentiation: dim backward passes and O(dim³) a row.

    Raises:
        ValueError: the Jacobian is singular (to rounding) or not finite; the message names the first such row.
    """
    return _sign_and_log_det("log_abs_det", _square_jacobian("log_abs_det", f, x), x)[1]


def log_abs_det_triangular(matrix: Float[Tensor, "*batch dim dim"]) -> Float[Tensor, "*batch"]:
    """log |det| of lower or upper triangular matrices: the sum of log |diagonal|, O(dim).

    Raises:
        ValueError: a matrix is not triangular, or has a zero on its diagonal.
    """
    if matrix.triu(1).any() and matrix.tril(-1).any():
        raise ValueError(
            "log_abs_det_triangular: received matrices with entries on both sides of the diagonal; "
            "rule: all lower or all upper triangular"
        )
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    _reject_zeros("log_abs_det_triangular", diagonal)
    return diagonal.abs().log().sum(-1)


def log_abs_det_low_rank(
    u: Float[Tensor, "*batch dim rank"], v: Float[Tensor, "*batch dim rank"]
) -> Float[Tensor, "*batch"]:
    """log |det(I + U Vᵀ)| by the matrix determinant lemma: a determinant of size rank, O(dim rank²).

    Raises:
        ValueError: I + U Vᵀ is singular.
    """
    small = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device) + v.mT @ u
    flat = small.reshape(-1, *small.shape[-2:])
    return _sign_and_log_det("log_abs_det_low_rank", flat, None)[1].reshape(small.shape[:-2])


def hutchinson_log_det(
    h: Map,
    x: Float[Tensor, "batch dim"],
    noise: Float[Tensor, "..."],
    *,
    terms: int,
    lipschitz: float,
) -> Float[Tensor, " batch"]:
    """Estimate log det J_f(x) for a residual map f(x) = x + h(x), with ‖J_h‖ ≤ lipschitz < 1, from products with J_h.

    Costs terms × samples backward passes; no Jacobian is ever built. The expectation over the noise is the series cut
    after `terms` terms, see `series_error`.

    Args:
        h: the residual, on one point.
        x: points.
        noise: (samples, batch, dim), with mean 0 and covariance I, for instance signs
            (`companion.numerics.autodiff.rademacher`).
        terms: terms of the series that are kept.
        lipschitz: a bound of the spectral norm of J_h that you know by construction; it is refused where a probe
            refutes it.
    """
    _check_series("hutchinson_log_det", lipschitz, terms)
    if noise.shape[1:] != x.shape or len(noise) == 0:
        raise ValueError(
            f"hutchinson_log_det: received noise of shape {tuple(noise.shape)} for x of shape {tuple(x.shape)}; "
            "rule: (samples, batch, dim)"
        )
    _, pull_back = vjp(vmap(h), x)  # w ↦ J_hᵀ w, and tr(Aᵀ) = tr(A)
    w, total = noise, torch.zeros_like(x[:, 0])
    for k in range(1, terms + 1):
        w, before = vmap(lambda probe: pull_back(probe)[0])(w), w
        _check_stretch(w, before, lipschitz)
        total = total - (-1) ** k / k * (noise * w).sum(-1).mean(0)
    return total


def series_error(lipschitz: float, dim: int, *, terms: int) -> float:
    """The most by which the cut series can miss log det(I + A): dim ρ^{K+1} / ((K + 1)(1 − ρ)) for ‖A‖ ≤ ρ, K terms."""
    _check_series("series_error", lipschitz, terms)
    return dim * lipschitz ** (terms + 1) / ((terms + 1) * (1 - lipschitz))


# ---------------------------------------------------------------------- densities


def log_prob(base_log_prob: LogProb, inverse: Map, x: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
    """log p_X(x) for x = g(z), by automatic differentiation.

    Args:
        base_log_prob: log p_Z of a batch of base points.
        inverse: f = g⁻¹, on one point.
        x: data points.

    Raises:
        ValueError: f is singular at a point; or it turns space over between two points (in one dimension: its
            derivative changes sign), so that it is the inverse of no map on a connected domain: `branches_log_prob`.
    """
    sign, log_det = _sign_and_log_det("log_prob", _square_jacobian("log_prob", inverse, x), x)
    _reject_folds(sign, x)
    return _base(base_log_prob, vmap(inverse)(x)) + log_det


def branches_log_prob(
    base_log_prob: LogProb, branches: Sequence[Map], x: Float[Tensor, "batch dim"]
) -> Float[Tensor, " batch"]:
    """log p_X(x) for a many-to-one g: the log of the sum over its branches.

    Args:
        base_log_prob: log p_Z of a batch of base points, −∞ outside the support.
        branches: inverses of g, one for each piece on which g is invertible. A branch says 'no z here' by NaN (as
            √x does for x < 0) or by a z outside the support of the base.
        x: data points. Where no branch reaches, the result is −∞.
    """
    return torch.stack([_branch(base_log_prob, branch, x) for branch in branches]).logsumexp(0)


@dataclass(frozen=True)
class Bijection:
    """An invertible map, both ways, with its log-determinant. All three act on ONE point.

    Attributes:
        forward: g, from base z to data x.
        inverse: f = g⁻¹, from data x to base z.
        log_det: log |det J_f(x)| of shape (); by automatic differentiation where None.
    """

    forward: Map
    inverse: Map
    log_det: Callable[[Tensor], Tensor] | None = None

    def log_dets(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        """log |det J_f(x)| at each row of x."""
        return log_abs_det(self.inverse, x) if self.log_det is None else vmap(self.log_det)(x)


def compose(*maps: Bijection) -> Bijection:
    """The map that applies `maps` from left to right on the way from base to data.

    Its log-determinant is the sum of theirs, each taken at its own point on the way back.
    """
    if not maps:
        raise ValueError("compose: received no maps; rule: at least one")

    def forward(z: Tensor) -> Tensor:
        for layer in maps:
            z = layer.forward(z)
        return z

    def inverse(x: Tensor) -> Tensor:
        for layer in reversed(maps):
            x = layer.inverse(x)
        return x

    def log_det(x: Tensor) -> Tensor:
        total = x.new_zeros(())
        for layer in reversed(maps):
            total = total + (_point_log_det(layer.inverse, x) if layer.log_det is None else layer.log_det(x))
            x = layer.inverse(x)
        return total

    return Bijection(forward, inverse, log_det)


class PushForward(Density):
    """The law of x = g(z) where z follows `base`: sample through g, evaluate through f = g⁻¹.

    Args:
        base: any density with `sample` and `log_prob`.
        bijection: the map.
    """

    def __init__(self, base: Density, bijection: Bijection):
        self.base, self.bijection, self.dim = base, bijection, base.dim

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n dim"]:
        """`n` independent points: base samples, mapped. No determinant is needed."""
        return vmap(self.bijection.forward)(self.base.sample(n, generator=generator))

    def log_prob(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        """log p_Z(f(x)) + log |det J_f(x)|."""
        self._check("log_prob", x)
        _reject_not_finite("PushForward.log_prob", "x", x)
        return _base(self.base.log_prob, vmap(self.bijection.inverse)(x)) + self.bijection.log_dets(x)


# ---------------------------------------------------------------------- maps with closed-form log-determinants


def affine(shift: Float[Tensor, " dim"], scale: Float[Tensor, "dim dim"]) -> Bijection:
    """x = shift + L z with L = `scale` lower triangular; log |det J_f| = −Σ_i log |L_ii|, the same everywhere."""
    if scale.triu(1).any():
        raise ValueError("affine: received a scale with entries above the diagonal; rule: lower triangular")
    log_det = -log_abs_det_triangular(scale)

    def inverse(x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(scale, (x - shift)[:, None], upper=False)[:, 0]

    return Bijection(lambda z: shift + scale @ z, inverse, lambda x: log_det)


def elementwise_logit(margin: float = 0.05) -> Bijection:
    """f(x) = logit(margin + (1 − 2 margin) x) for each coordinate: the unit cube (0, 1)^dim to real space.

    The margin keeps f finite on the cube's faces (Dinh et al., 'Density estimation using Real NVP', ICLR 2017, section
    4.1, has the same idea on one side). Its inverse g reaches up to margin/(1 − 2 margin) beyond them.
    """
    if not 0 <= margin < 0.5:
        raise ValueError(f"elementwise_logit: received margin {margin}; rule: 0 ≤ margin < 1/2")
    width = 1 - 2 * margin

    def log_det(x: Tensor) -> Tensor:
        s = margin + width * x
        return (math.log(width) - s.log() - (1 - s).log()).sum()

    return Bijection(lambda z: (z.sigmoid() - margin) / width, lambda x: torch.logit(margin + width * x), log_det)


# ---------------------------------------------------------------------- images as densities


def dequantize(levels: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """(k + u)/count with u uniform on [0, 1): whole numbers k in 0 … count − 1 become points of a density on [0, 1)."""
    if ((levels < 0) | (levels > count - 1) | (levels != levels.round())).any():
        raise ValueError(f"dequantize: received values outside 0 … {count - 1} or not whole; rule: gray levels")
    noise = torch.rand(levels.shape, generator=generator, dtype=torch.float64)  # float32 would round up to 1
    dtype = levels.dtype if levels.is_floating_point() else torch.get_default_dtype()
    return ((levels.to("cpu", torch.float64) + noise) / count).to(dtype=dtype, device=levels.device)


def bits_per_dimension(log_prob: Float[Tensor, " batch"], *, dim: int, count: int) -> Float[Tensor, ""]:
    """−mean log₂ of the probability of a cell of side 1/count, for each of its dim sides.

    `log_prob` is log p(x) in nats at dequantized points x in [0, 1)^dim. The mean is an upper bound of the bits per
    dimension of the whole numbers themselves (Theis et al., ICLR 2016, section 3.1).
    """
    return -(log_prob.mean() / dim - math.log(count)) / math.log(2)


# ---------------------------------------------------------------------- checks


def _square_jacobian(operation: str, f: Map, x: Tensor) -> Tensor:
    _reject_not_finite(operation, "x", x)
    matrix = jacobian(f, x)
    if matrix.shape[1] != matrix.shape[2]:
        raise ValueError(
            f"{operation}: received a map from {matrix.shape[2]} to {matrix.shape[1]} dimensions; "
            "rule: an invertible map keeps the dimension"
        )
    return matrix


def _sign_and_log_det(operation: str, matrix: Tensor, x: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sign and log of |det|, by LU. A pivot that is rounding error and nothing else means a singular matrix."""
    bad = ~matrix.isfinite().flatten(1).all(1)
    if bad.any():
        raise ValueError(
            f"{operation}: received a Jacobian that is not finite {_row(bad, x)}; rule: f differentiable there"
        )
    lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)
    diagonal = lu.diagonal(dim1=1, dim2=2)
    n = matrix.shape[-1]
    with torch.no_grad():
        lower = lu.tril(-1).abs() + torch.eye(n, dtype=lu.dtype, device=lu.device)
        computed_from = (lower * lu.triu().abs().mT).sum(-1)  # sizes of the terms that cancel in each pivot
        singular = (diagonal.abs() <= n * torch.finfo(lu.dtype).eps * computed_from).any(1)
        if singular.any():
            raise ValueError(
                f"{operation}: received a map whose Jacobian is singular {_row(singular, x)}; "
                "rule: an invertible map has det J ≠ 0"
            )
        swaps = (pivots != torch.arange(1, n + 1, device=lu.device)).sum(1)
        sign = diagonal.sign().prod(1) * (1 - 2 * (swaps % 2))
    return sign, diagonal.abs().log().sum(1)


def _row(bad: Tensor, x: Tensor | None) -> str:
    row = int(bad.nonzero()[0])
    return f"at row {row}" if x is None else f"at row {row}, {_named(x[row])}"


def _named(point: Tensor) -> str:
    numbers = [f"{value:.4g}" for value in point[:6].tolist()] + ["…"] * (len(point) > 6)
    return f"x = [{', '.join(numbers)}]"


def _reject_folds(sign: Tensor, x: Tensor) -> None:
    if (sign != sign[:1]).any():
        i, j = 0, int((sign != sign[0]).nonzero()[0])
        what = "derivative" if x.shape[1] == 1 else "Jacobian determinant"
        rule = "f is monotone" if x.shape[1] == 1 else "f keeps its orientation"
        raise ValueError(
            f"log_prob: received a map whose {what} changes sign between row {i}, {_named(x[i])}, and row {j}, "
            f"{_named(x[j])}; rule: {rule}, or it is the inverse of no map (for a many-to-one g see branches_log_prob)"
        )


def _reject_not_finite(operation: str, name: str, value: Tensor) -> None:
    bad = ~value.isfinite().flatten(1).all(1)
    if bad.any():
        raise ValueError(f"{operation}: received {name} that is not finite {_row(bad, None)}; rule: finite points")


def _reject_zeros(operation: str, diagonal: Tensor) -> None:
    zeros = (diagonal == 0).reshape(-1, diagonal.shape[-1])
    if zeros.any():
        row, i = zeros.nonzero()[0].tolist()
        raise ValueError(
            f"{operation}: received a zero on the diagonal at [{i}, {i}] of matrix {row}; "
            "rule: an invertible map has det J ≠ 0"
        )


def _check_series(operation: str, lipschitz: float, terms: int) -> None:
    if not 0 <= lipschitz < 1:
        raise ValueError(
            f"{operation}: received ‖A‖ = {lipschitz}; rule: ‖A‖ < 1, else the series of log(I + A) diverges"
        )
    if terms < 1:
        raise ValueError(f"{operation}: received terms = {terms}; rule: at least 1")


def _check_stretch(after: Tensor, before: Tensor, lipschitz: float) -> None:
    with torch.no_grad():
        long, short = after.norm(dim=-1), before.norm(dim=-1)
        bad = ~(long <= lipschitz * short * (1 + 1e-3) + torch.finfo(short.dtype).tiny)
        if bad.any():
            _, row = bad.nonzero()[0].tolist()
            stretch = (long / short)[bad][0].item()
            raise ValueError(
                f"hutchinson_log_det: received a map whose Jacobian stretches a vector {stretch:.4g} times at row "
                f"{row}; rule: ‖A‖ ≤ lipschitz = {lipschitz} < 1"
            )


def _base(base_log_prob: LogProb, z: Tensor) -> Tensor:
    value = base_log_prob(z)
    if value.shape != z.shape[:1]:
        raise ValueError(
            f"log_prob: received a base density that returns shape {tuple(value.shape)} for {tuple(z.shape)}; "
            "rule: one number for each row"
        )
    return value


def _branch(base_log_prob: LogProb, branch: Map, x: Tensor) -> Tensor:
    """The logarithm of one term of the sum, −∞ where the branch has no z."""
    _reject_not_finite("branches_log_prob", "x", x)
    z = vmap(branch)(x)
    exists = z.isfinite().all(1)
    exists = exists & (_base(base_log_prob, torch.where(exists[:, None], z, z.new_zeros(()))) > -math.inf)
    out = torch.full_like(x[:, 0], -math.inf)
    if exists.any():
        out[exists] = _base(base_log_prob, z[exists]) + log_abs_det(branch, x[exists])
    return out


def _point_log_det(f: Map, x: Tensor) -> Tensor:
    return torch.linalg.slogdet(torch.func.jacrev(f)(x))[1]
