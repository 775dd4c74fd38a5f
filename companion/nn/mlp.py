"""Multi-layer perceptrons: x ↦ W_d a(… a(W_1 x + b_1) …) + b_d with an activation a between the layers."""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.nn.embeddings import batch_time


class MLP(nn.Sequential):
    """`depth` hidden layers of `width` units, each followed by the activation, then a linear layer.

    Args:
        dim_in: length of the input.
        dim_out: length of the output.
        width: units of a hidden layer.
        depth: number of hidden layers; 0 is a linear map.
        activation: makes an activation module.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        *,
        width: int = 64,
        depth: int = 3,
        activation: Callable[[], nn.Module] = nn.SELU,
    ):
        widths = [dim_in, *[width] * depth]
        hidden = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), activation())]
        super().__init__(*hidden, nn.Linear(widths[-1], dim_out))


class VelocityMLP(nn.Module):
    """A vector field on points, v(t, x) or v(t, x, y), as an MLP that sees the time as one more coordinate.

    Args:
        dim: length of a point.
        width: units of a hidden layer.
        depth: number of hidden layers.
        activation: makes an activation module.
        embedding: replaces the bare time by features of it: maps (batch,) to (batch, dim_embedding).
        dim_embedding: length of these features.
        labels: number of labels; the label `labels` itself means 'none given'. None: the network takes no label.
        dim_label: coordinates that tell the label.
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int = 64,
        depth: int = 3,
        activation: Callable[[], nn.Module] = nn.SELU,
        embedding: nn.Module | None = None,
        dim_embedding: int = 1,
        labels: int | None = None,
        dim_label: int = 16,
    ):
        super().__init__()
        self.dim, self.labels = dim, labels
        self.embedding = embedding
        self.label = None if labels is None else nn.Embedding(labels + 1, dim_label)
        told = dim_embedding + (0 if labels is None else dim_label)
        self.net = MLP(dim + told, dim, width=width, depth=depth, activation=activation)

    def forward(
        self,
        t: Float[Tensor, "*batch_or_scalar"],
        x: Float[Tensor, "batch dim"],
        y: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """The velocity at time `t`, () or (batch,), at the points `x`, given the labels `y` (None: none given)."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"VelocityMLP: received x of shape {tuple(x.shape)}; it must be (batch, {self.dim})")
        t = batch_time("VelocityMLP", t, x)
        features = [x, t[:, None] if self.embedding is None else self.embedding(t)]
        if self.label is not None:
            features.append(self.label(torch.full((len(x),), self.labels, device=x.device) if y is None else y))
        elif y is not None:
            raise ValueError("VelocityMLP: received labels; a network made without `labels` takes none")
        return self.net(torch.cat(features, dim=1))
