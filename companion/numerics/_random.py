"""Randomness of the numerics: drawn on the CPU, whatever the device, so that a seed means the same everywhere."""

import torch
from torch import Tensor


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of the shape, the dtype and the device of x."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
