r"""Muon: each weight matrix moves by an orthogonal matrix, the one nearest to the average of its gradients.

    M_k = μ M_{k−1} + (1 − μ) G_k,    N_k = (1 − μ) G_k + μ M_k = U Σ Vᵀ,    W_{k+1} = W_k − η √max(1, m/n) U Vᵀ

W is m × n, G its gradient. A gradient's few large singular values drown the others; here all directions move equally
far. U Vᵀ is the steepest descent under a bound on the spectral norm of the step. It is found without the singular
values, by five steps of a polynomial iteration on X = N/‖N‖,

    A = X Xᵀ,    X ← a X + (b A + c A²) X,    (a, b, c) = (3.4445, −4.7750, 2.0315)

which drives every singular value that is not tiny into [0.68, 1.14]: near enough to 1. A convolution's kernel is read
as a matrix from its inputs, all taps of them, to its output channels.

Sources: Jordan et al. 2024 (Muon), Bernstein and Newhouse 2024 (steepest descent in the spectral norm).
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(x: Float[Tensor, "*batch m n"], *, steps: int = 5) -> Float[Tensor, "*batch m n"]:
    """About U Vᵀ of each matrix U Σ Vᵀ."""
    a, b, c = COEFFICIENTS
    wide = x if x.shape[-2] <= x.shape[-1] else x.mT
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if x.shape[-2] <= x.shape[-1] else wide.mT


class Muon(Optimizer):
    """Muon for `matrices`, Adam for all `others`: biases, scales, embeddings, first and last layers.

    Args:
        matrices: weights of two or more dimensions, read as (outputs, everything else).
        others: weights for Adam.
        lr: η of Muon, in units of the spectral norm.
        adam_lr: the rate of Adam.
        momentum: μ.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        lr: float = 0.02,
        adam_lr: float = 2e-3,
        momentum: float = 0.95,
    ):
        groups = [{"params": list(matrices), "lr": lr}, {"params": list(others), "lr": adam_lr}]
        if any(weight.ndim < 2 for weight in groups[0]["params"]):
            raise ValueError("Muon: received a vector among the matrices; vectors are Adam's")
        super().__init__(groups, {"momentum": momentum})
        self._adam = Adam(groups[1]["params"], adam_lr, fused=True) if groups[1]["params"] else None
        self._alike = defaultdict(list)  # matrices of one shape go through the iteration together
        for weight in groups[0]["params"]:
            self._alike[weight.shape].append(weight)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move all weights by one step."""
        ours, adams = self.param_groups
        if self._adam:
            self._adam.param_groups[0]["lr"] = adams["lr"]
            self._adam.step()
        for shape, weights in self._alike.items():
            directions = torch.stack([self._direction(weight, ours["momentum"]) for weight in weights])
            rate = ours["lr"] * max(1.0, directions.shape[1] / directions.shape[2]) ** 0.5
            for weight, update in zip(weights, orthogonalized(directions), strict=True):
                weight.sub_(update.reshape(shape), alpha=rate)

    def _direction(self, weight: Tensor, momentum: float) -> Tensor:
        state = self.state[weight]
        if not state:
            state["average"] = torch.zeros_like(weight)
        average = state["average"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(average, momentum).flatten(1)


def muon(model: nn.Module, lr: float = 0.02, *, adam_lr: float = 2e-3, momentum: float = 0.95) -> Muon:
    """Muon for the matrices inside a model; Adam for vectors, embeddings, and what reads or writes few channels.

    A layer with fewer than eight inputs or outputs is a first or last one, whose matrix has hardly any directions.
    """
    embeddings = {weight for m in model.modules() if isinstance(m, nn.Embedding) for weight in m.parameters()}
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = [w for w in weights if w.ndim >= 2 and min(w.shape[:2]) >= 8 and w not in embeddings]
    chosen = set(matrices)
    return Muon(matrices, [w for w in weights if w not in chosen], lr=lr, adam_lr=adam_lr, momentum=momentum)
