"""Checks of values. Those of a tensor stay silent where its values are not known yet."""

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


def is_whole(x: object, *, least: int | None = None) -> bool:
    """Whether x is an int (a bool is none), and at least `least`."""
    return isinstance(x, int) and not isinstance(x, bool) and (least is None or x >= least)


def not_finite(x: Tensor) -> bool:
    """Whether some entry is NaN or infinite."""
    return broken(torch.isfinite(x))
