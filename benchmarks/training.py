"""Training for a given time: this process's CPU seconds, on whatever number of threads the caller has set."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from companion.training import EMA, fit, warmup_cosine_in


class Training(NamedTuple):
    """What a training has come to.

    Attributes:
        model: the average of the weights.
        steps: how many steps there were.
        seconds: how many CPU seconds had passed on the clock after the last one.
    """

    model: nn.Module
    steps: int
    seconds: float


def train_for(
    seconds: float,
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable,
    *,
    optimizer: Optimizer,
    decay: float = 0.999,
    warmup: float = 0.03,
    clip: float | None = None,
    start: float | None = None,
) -> Training:
    """Train until the seconds are spent: the rate rises, then falls along a cosine to zero at their end.

    Args:
        seconds: of CPU time.
        model: what is trained.
        loss: gives the scalar loss of the model on one batch.
        batches: as `fit` takes them.
        optimizer: with the highest rates.
        decay: of the average of the weights.
        warmup: the share of the seconds in which the rate rises.
        clip: the gradient is scaled down to at most this norm.
        start: what `time.process_time()` said when the clock started; None: it starts now.
    """
    start = time.process_time() if start is None else start

    def progress() -> float:
        return (time.process_time() - start) / seconds

    ema, schedule = EMA(model, decay), warmup_cosine_in(optimizer, progress, warmup=warmup)
    steps = fit(model, loss, batches, steps=None, optimizer=optimizer, schedule=schedule, clip=clip, ema=ema)
    for record in steps:  # noqa: B007 (the last one is wanted)
        if progress() >= 1:
            break
    return Training(ema.model, record.step, time.process_time() - start)
