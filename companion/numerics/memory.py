"""How much memory a computation needs at its peak: the bytes of all tensors that are alive at once.

Each tensor that an operation makes is counted from its birth until nothing holds it any more; views count once. That
includes what automatic differentiation keeps and what its backward pass makes; it excludes what was there before and
the scratch space inside a single operation. The count is exact and the same on every machine, unlike the memory of the
process.
"""

import weakref
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_bytes"]


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes of tensors that `work()` had alive at once, its result included."""
    with _Ledger() as ledger:
        result = work()
    del result
    return ledger.peak


class _Ledger(TorchDispatchMode):
    """Sees the results of every operation, forward and backward, and is told when their memory is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: dict[int, weakref.ref] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here: else torch would load its compiler, which takes seconds."""
        return False

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        known = {id(storage) for storage in _storages((args, kwargs))}
        result = operation(*args, **(kwargs or {}))
        for storage in _storages(result):
            if id(storage) not in known and id(storage) not in self.alive:
                self._born(storage)
        return result

    def _born(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self.alive[key] = weakref.ref(storage, partial(self._died, key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _died(self, key: int, size: int, _: weakref.ref) -> None:
        self.now -= size
        del self.alive[key]


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
