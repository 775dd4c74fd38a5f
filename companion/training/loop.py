"""One training loop for every chapter, as a generator: it trains while you look.

for record in fit(model, loss, batches, steps=1000):
    ...                                              # draw, print, stop: the loop belongs to the caller
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from companion.training.ema import EMA
from companion.training.optimizers import adam


class Record(NamedTuple):
    """What one step did.

    Attributes:
        step: number of the step, from 1.
        loss: the loss before the step.
        grad_norm: Euclidean norm of the gradient before clipping; None where `clip` was not asked for.
        learning_rate: the rate that the step used.
    """

    step: int
    loss: float
    grad_norm: float | None
    learning_rate: float


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Float[Tensor, ""]],
    batches: Iterable,
    *,
    steps: int | None,
    optimizer: Optimizer | None = None,
    schedule: LRScheduler | None = None,
    clip: float | None = None,
    ema: EMA | None = None,
) -> Iterator[Record]:
    """Train `model` on `batches` and yield a record after each step.

    Args:
        model: what is trained, in training mode while the loop runs.
        loss: gives the scalar loss of the model on one batch.
        batches: an iterable of batches; it is started again when it ends.
        steps: number of steps; None: until the caller breaks off.
        optimizer: defaults to `adam(model)`.
        schedule: of the learning rate; advanced after each step.
        clip: the gradient is scaled down to at most this norm; `math.inf` measures the norm and clips nothing.
        ema: an average of the weights; updated after each step.

    Raises:
        ValueError: the loss or the gradient's norm is not finite (the message names the step and the weights are those
            before it), or `batches` is empty.
    """
    optimizer = optimizer or adam(model)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    model.train()
    numbers = itertools.count(1) if steps is None else range(1, steps + 1)
    for step, batch in zip(numbers, _endless(batches), strict=False):
        optimizer.zero_grad(set_to_none=True)
        value = loss(model, batch)
        value.backward()
        value = _finite("loss", value, step)
        norm = None
        if clip is not None:
            norm = _finite("gradient norm", nn.utils.clip_grad_norm_(parameters, clip), step)
        learning_rate = float(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if ema is not None:
            ema.update()
        yield Record(step, value, norm, learning_rate)


def _finite(what: str, value: Tensor, step: int) -> float:
    number = value.item()
    if not math.isfinite(number):
        raise ValueError(
            f"fit: received a {what} of {number} at step {step}; it must be finite: look for a division by "
            "zero, a learning rate that is too high, or NaN in the batch"
        )
    return number


def _endless(batches: Iterable) -> Iterator:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "fit: received no batch; `batches` is empty, or an iterator that is used up: "
                "pass a list, a loader or an endless generator"
            )
