r"""Exponential moving average of the weights: θ̄ ← β_k θ̄ + (1 − β_k) θ after step k.

    β_k = min(β, (1 + k) / (10 + k))

starts small, so that the average forgets the random initial weights. The average is what one samples with: it has a
fraction of the noise that the last gradient steps left in the weights. Source: Polyak and Juditsky 1992; the warm-up
is TensorFlow's `ExponentialMovingAverage` with `num_updates`.
"""

import copy

import torch
from torch import nn


class EMA:
    """A copy of a model whose weights follow the model's as a moving average.

    Args:
        model: the model that is being trained.
        decay: β, the weight that the old average keeps at each step. The average looks back about 1/(1 − β) steps.

    Attributes:
        model: the averaged copy, in evaluation mode and without gradients.
        steps: how many times `update` was called.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: received decay = {decay}; it must lie in [0, 1)")
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.steps = decay, 0
        self._source = model
        self._weights = [w for w in self.model.parameters() if w.is_floating_point()]
        self._source_weights = [w for w in model.parameters() if w.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's present weights; its buffers are copied."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self._weights, self._source_weights, 1 - decay)
        for mine, source in zip(self.model.buffers(), self._source.buffers(), strict=True):
            mine.copy_(source)
