r"""The optimizer of the course, and how its learning rate rises and falls.

    η_k = η · min(k + 1, K_w) / K_w                                   for k < K_w      (warm-up)
    η_k = η · ½ (1 + cos(π (k − K_w) / (K − K_w)))                    for k ≥ K_w      (cosine decay to zero)

Where the seconds are given and the steps are not, k/K is the share of the seconds that is spent.

Adam's estimate of the second moment is poor in its first steps: warm-up keeps them small. The decay ends the noise
of the gradients. Sources: Kingma and Ba 2015; Loshchilov and Hutter 2017, eq. (5); Goyal et al. 2017, section 2.2.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


def adam(
    model: nn.Module, lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0
) -> Adam:
    """Adam (AdamW where there is weight decay), all weights updated in one fused call where the device has it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            f"adam: received a {type(model).__name__} without trainable weights; there is nothing to train"
        )
    kind = AdamW if weight_decay else Adam
    return kind(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=_fusable(parameters))


def warmup_cosine(optimizer: Optimizer, *, warmup: int, steps: int) -> LambdaLR:
    """A schedule that raises the learning rate over `warmup` steps and lowers it to zero at step `steps`."""
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup_cosine: received warmup = {warmup}, steps = {steps}; 0 ≤ warmup < steps")

    def factor(k: int) -> float:
        if k < warmup:
            return (k + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (k - warmup) / (steps - warmup))))

    return LambdaLR(optimizer, factor)


def warmup_cosine_in(optimizer: Optimizer, progress: Callable[[], float], *, warmup: float = 0.03) -> LambdaLR:
    """A schedule that raises the learning rate until `progress` is `warmup`, and lowers it to zero where it is 1.

        start = time.process_time()
        schedule = warmup_cosine_in(optimizer, lambda: (time.process_time() - start) / 60)

    Args:
        optimizer: whose rate is scheduled.
        progress: tells how much of the training is done, 0 at its beginning; asked once a step. From 1 on the rate is
            zero.
        warmup: the share of the training that is warm-up.
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup_cosine_in: received warmup = {warmup}; 0 ≤ warmup < 1, a share of the training")

    def factor(_: int) -> float:
        done = progress()
        if done < warmup:
            return max(done, 1e-3) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup))))

    return LambdaLR(optimizer, factor)


def _fusable(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether the fused call is right: on weights with gaps in memory (a slice), torch's moves the wrong numbers."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() and _is_dense(p) for p in parameters)


def _is_dense(p: nn.Parameter) -> bool:
    return p.is_contiguous() or (p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last))
