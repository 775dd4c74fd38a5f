"""Endless streams of batches for `companion.training.fit`."""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Source(Protocol):
    """Whatever can be sampled."""

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor: ...


def draws(*sources: Source, size: int, generator: torch.Generator, ahead: int = 64) -> Iterator[tuple[Tensor, ...]]:
    """Endless independent batches: a tuple with `size` points of each source.

    Args:
        sources: densities, or anything with `sample(n, generator=…)`.
        size: points of a batch.
        generator: draws them.
        ahead: batches that are drawn in one call: many small calls would cost more than the training step.
    """
    while True:
        blocks = [source.sample(ahead * size, generator=generator).split(size) for source in sources]
        yield from zip(*blocks, strict=True)


def minibatches(
    *tensors: Tensor,
    size: int,
    generator: torch.Generator,
    augment: Callable[..., tuple[Tensor, ...]] | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """Endless shuffled batches of a data set: rows stay together, each epoch has a new order, the rest is dropped.

    Args:
        tensors: images and labels, say; their first lengths agree.
        size: rows of a batch.
        generator: shuffles.
        augment: is applied to each batch's tensors and gives the tensors to yield.
    """
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) != 1 or not 1 <= size <= lengths[0]:
        raise ValueError(
            f"minibatches: received {lengths} rows and size = {size}; the tensors must have equal lengths, "
            "at least one batch long"
        )
    while True:
        order = torch.randperm(lengths[0], generator=generator).to(tensors[0].device)
        for rows in order[: lengths[0] // size * size].split(size):
            batch = tuple(tensor[rows] for tensor in tensors)
            yield batch if augment is None else augment(*batch)
