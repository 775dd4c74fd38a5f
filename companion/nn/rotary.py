r"""Rotary positions: a query and a key are turned by angles that grow with their positions.

    z_k = x_{2k} + i x_{2k+1},   z_k ↦ e^{i p θ_k} z_k,   θ_k = base^{−2k/d}                          (eq-rotary)
    ⟨R_p q, R_s k⟩ = ⟨R_{p−s} q, k⟩                                                          (eq-rotary-relative)

`p` and `s` count tokens from 0; the d coordinates of a vector are d/2 pairs of neighbors, each a complex number. A
rotation keeps lengths, and the score of a query with a key depends on their distance p − s alone. A key is turned
once, when it is made: what a cache stores is already rotated.

Published weights often pair x_k with x_{k+d/2} instead. That is the same map after a reordering of the coordinates,
which `neighbors_from_halves` does to the weights. Source: Su et al. 2021, 'RoFormer', section 3.2.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.numerics._checks import is_whole

__all__ = ["Rotary", "frequencies", "neighbors_from_halves", "rotate"]


def frequencies(dim: int, *, base: float | int = 10_000.0) -> Float[Tensor, " pairs"]:
    """θ_k = base^{−2k/dim}, radians a token, in float64: from 1 down to nearly 1/base.

    Args:
        dim: Length of the vectors to be rotated, even.
        base: Ratio of the fastest to the (not quite reached) slowest frequency.

    Returns:
        One frequency for each pair of coordinates, (dim/2,).

    Raises:
        ValueError: If `dim` is not even and positive, or the base not positive.
    """
    if not is_whole(dim, least=2) or dim % 2:
        raise ValueError(f"rotary: received width {dim}; rule: coordinates turn in pairs, so the width is even")
    if not base > 0:
        raise ValueError(f"rotary: received base={base}; rule: base > 0")
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def rotate(x: Float[Tensor, "*batch length dim"], angles: Float[Tensor, "length pairs"]) -> Float[Tensor, "..."]:
    """Turns the pair (x_{2k}, x_{2k+1}) of the token in row p by `angles[p, k]`.

    Args:
        x: Vectors, (..., length, dim) with dim even.
        angles: Radians, (length, dim/2).

    Returns:
        The turned vectors, shaped like x.

    Raises:
        ValueError: If the angles do not fit the vectors.
    """
    if 2 * angles.shape[1] != x.shape[-1] or len(angles) != x.shape[-2]:
        raise ValueError(
            f"rotate: received x {tuple(x.shape)} and angles {tuple(angles.shape)}; "
            "rule: x (..., length, dim) with dim even, angles (length, dim/2)"
        )
    return _turn(x, torch.stack([angles.cos(), angles.sin()], dim=-1).to(x.dtype))


def _turn(x: Tensor, cos_sin: Tensor) -> Tensor:
    """The complex product; half precision has none and is turned in float32."""
    if x.dtype.itemsize < 4:
        return _turn(x.float(), cos_sin).to(x.dtype)
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.view_as_complex(cos_sin.to(x.dtype))
    return torch.view_as_real(z).flatten(-2)


class Rotary(nn.Module):
    """Rotation by position, with cosines and sines of all positions computed once.

    Layers may share one: it has no weights.

    Args:
        dim: Length of the vectors to be rotated, even.
        length: Number of positions in the table.
        base: See `frequencies`.
    """

    def __init__(self, dim: int, *, length: int, base: float | int = 10_000.0):
        super().__init__()
        if not is_whole(length, least=1):
            raise ValueError(f"Rotary: received length={length}; rule: a whole number of positions, at least 1")
        angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies(dim, base=base)
        table = torch.stack([angles.cos(), angles.sin()], dim=-1).to(torch.get_default_dtype())
        self.dim, self.length = dim, length
        self.register_buffer("table", table, persistent=False)  # (length, dim/2, 2)

    def forward(self, x: Float[Tensor, "*batch new dim"], start: int = 0) -> Float[Tensor, "*batch new dim"]:
        """The vectors of tokens at the positions start, start + 1, …, each turned by its position."""
        new = x.shape[-2]
        if start < 0 or start + new > self.length or x.shape[-1] != self.dim:
            raise ValueError(
                f"Rotary: received {new} vectors of width {x.shape[-1]} from position {start} on; "
                f"rule: width {self.dim}, positions 0 to {self.length - 1}"
            )
        return _turn(x, self.table.narrow(0, start, new))

    def extra_repr(self) -> str:
        return f"{self.dim}, length={self.length}"


def neighbors_from_halves(weight: Float[Tensor, "out in_"], *, heads: int) -> Float[Tensor, "out in_"]:
    """Reorders rows of a projection: rotary pairs (k, k + d/2) of each head become neighbors (2k, 2k + 1).

    Args:
        weight: Rows of all heads, (heads · d, dim), as in the weight of a linear layer.
        heads: Number of heads in these rows.

    Returns:
        The same rows, reordered within each head.

    Raises:
        ValueError: If the rows are not heads of an even width.
    """
    if not is_whole(heads, least=1) or weight.shape[0] % (2 * heads):
        raise ValueError(
            f"neighbors_from_halves: received {weight.shape[0]} rows and heads={heads}; rule: heads of an even width"
        )
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
