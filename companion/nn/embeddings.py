r"""Time as a network likes it: numbers of many frequencies instead of one number.

    sinusoidal:  e(t) = [sin(ω_k t), cos(ω_k t)],   ω_k = 2π f_k,  f_k geometric from 0.1 to `highest`
    Fourier:     e(x) = [sin(2π B x), cos(2π B x)],  B fixed, its entries drawn from N(0, scale²)

Time is in [0, 1], so the frequencies are in periods per unit of time: the lowest tells 0 from 1, the highest resolves
steps of a hundredth. Sources: Vaswani et al. 2017, section 3.5; Tancik et al. 2020, eq. (4).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of a time in [0, 1].

    Args:
        dim: length of the embedding, even.
        highest: the highest frequency, in periods per unit of time.
    """

    def __init__(self, dim: int, *, highest: float = 16.0):
        super().__init__()
        _require_even("SinusoidalEmbedding", dim)
        frequencies = torch.logspace(math.log10(0.1), math.log10(highest), dim // 2)
        self.register_buffer("omega", 2 * math.pi * frequencies)

    def forward(self, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        phase = t[:, None] * self.omega
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class FourierFeatures(nn.Module):
    """Sines and cosines of fixed random projections of `x`.

    Args:
        dim_in: length of the input.
        dim: length of the output, even.
        scale: standard deviation of the frequencies: large resolves fine detail and generalizes worse.
        generator: draws the frequencies.
    """

    def __init__(self, dim_in: int, dim: int, *, scale: float = 1.0, generator: torch.Generator):
        super().__init__()
        _require_even("FourierFeatures", dim)
        self.register_buffer("frequencies", scale * torch.randn(dim_in, dim // 2, generator=generator))

    def forward(self, x: Float[Tensor, "batch dim_in"]) -> Float[Tensor, "batch dim"]:
        phase = 2 * math.pi * x @ self.frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=1)


def batch_time(operation: str, t: Tensor, x: Tensor) -> Float[Tensor, " batch"]:
    """Time as one number per row of `x`, in its dtype: `t` is () or (batch,)."""
    if t.ndim > 1 or (t.ndim == 1 and len(t) != len(x)):
        raise ValueError(
            f"{operation}: received t of shape {tuple(t.shape)} for x of shape {tuple(x.shape)}; t is () or (batch,)"
        )
    return t.to(x).expand(len(x))


def _require_even(operation: str, dim: int) -> None:
    if dim < 2 or dim % 2:
        raise ValueError(f"{operation}: received dim = {dim}; half are sines and half cosines: even and positive")
