"""Checks of values that stay silent where the values are not known yet."""

import torch
from torch import Tensor


def broken(rule: Tensor) -> bool:
    """Whether some entry breaks a rule, given as booleans.

    While a graph is traced (export, compilation) or under `torch.func.vmap` the values are unknown: nothing is broken.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    try:
        return not bool(rule.all())
    except RuntimeError:  # vmap has no single truth value
        return False


def not_finite(x: Tensor) -> bool:
    """Whether some entry is NaN or infinite."""
    return broken(torch.isfinite(x))
