r"""Derivatives of maps and fields.

    Jacobian    J_ij = ∂f_i/∂x_j
    divergence  div v = Σ_i ∂v_i/∂x_i = tr ∂v/∂x
    Hutchinson  E[εᵀ (∂v/∂x) ε] = div v    for any noise with E[ε εᵀ] = I

Hutchinson's estimate costs one vector–Jacobian product, the exact divergence one for each dimension. Its variance is
2‖S‖²_F − 2 Σ_i S_ii² for Rademacher noise (signs ±1) and 2‖S‖²_F for normal noise, with S the symmetric part of the
Jacobian: signs are never worse.

Sources: Hutchinson, Communications in Statistics 19 (1990); Grathwohl et al., FFJORD, arXiv:1810.01367, section 3.1.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "divergence",
    "hutchinson_divergence",
    "jacobian",
    "rademacher",
    "value_and_divergence",
    "value_and_hutchinson_divergence",
]


def jacobian(f: Callable[[Tensor], Tensor], x: Float[Tensor, "batch in"]) -> Float[Tensor, "batch out in"]:
    """The Jacobian ∂f_i/∂x_j at each point of a batch.

    Args:
        f: a map of ONE point, (in,) → (out,), differentiable by torch.
        x: points, (batch, in).

    Returns:
        (batch, out, in).

    Raises:
        ValueError: x is no batch of points, or f does not map a point to a vector.
    """
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"jacobian: received x of shape {tuple(x.shape)} {x.dtype}; rule: (batch, in), floating point")
    value = torch.func.vmap(torch.func.jacrev(f))(x)
    if value.ndim != 3:
        raise ValueError(
            f"jacobian: received a map whose Jacobians have shape {tuple(value.shape)}; "
            "rule: f maps one point (in,) to a vector (out,), not to a number and not a batch to a batch"
        )
    return value


def divergence(
    v: Callable[[Tensor, Tensor], Tensor], t: Tensor, x: Float[Tensor, "batch *dims"]
) -> Float[Tensor, " batch"]:
    """The exact divergence of a field, with one backward pass for each dimension.

    Args:
        v: the field v(t, x), on batches; each value depends on its own point only.
        t: time, of shape () or (batch,).
        x: points, (batch, ...).

    Returns:
        (batch,). Differentiable, unless gradients are switched off.
    """
    return value_and_divergence(v, t, x)[1]


def value_and_divergence(
    v: Callable[[Tensor, Tensor], Tensor], t: Tensor, x: Float[Tensor, "batch *dims"]
) -> tuple[Float[Tensor, "batch *dims"], Float[Tensor, " batch"]]:
    """The field and its divergence from one evaluation, for ODEs that carry the log-density along."""
    return _with_graph("divergence", v, t, x, _exact_trace)


def hutchinson_divergence(
    v: Callable[[Tensor, Tensor], Tensor],
    t: Tensor,
    x: Float[Tensor, "batch *dims"],
    noise: Float[Tensor, "..."],
) -> Float[Tensor, " batch"]:
    """Hutchinson's unbiased estimate of the divergence, with one backward pass for each noise sample.

    Args:
        v: the field v(t, x), on batches; each value depends on its own point only.
        t: time, of shape () or (batch,).
        x: points, (batch, ...).
        noise: of mean 0 and covariance I (see `rademacher`): (batch, ...), or (samples, batch, ...) to average over.

    Returns:
        (batch,). Differentiable, unless gradients are switched off.

    Raises:
        ValueError: the noise fits neither shape.
    """
    return value_and_hutchinson_divergence(v, t, x, noise)[1]


def value_and_hutchinson_divergence(
    v: Callable[[Tensor, Tensor], Tensor],
    t: Tensor,
    x: Float[Tensor, "batch *dims"],
    noise: Float[Tensor, "..."],
) -> tuple[Float[Tensor, "batch *dims"], Float[Tensor, " batch"]]:
    """The field and Hutchinson's estimate of its divergence from one evaluation."""
    if noise.shape not in (x.shape, (*noise.shape[:1], *x.shape)) or noise.numel() == 0:
        raise ValueError(
            f"hutchinson_divergence: received noise of shape {tuple(noise.shape)} for points {tuple(x.shape)}; "
            "rule: the shape of x, or (samples, *shape of x)"
        )
    samples = noise.reshape(-1, *x.shape)

    def estimate(value: Tensor, point: Tensor, graph: bool) -> Tensor:
        products = [_quadratic(value, point, eps, graph or k < len(samples), graph) for k, eps in enumerate(samples, 1)]
        return torch.stack(products).mean(0)

    return _with_graph("hutchinson_divergence", v, t, x, estimate)


def rademacher(
    shape: Sequence[int],
    generator: torch.Generator,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Independent signs, −1 or 1 with probability 1/2 each, drawn on the CPU and moved."""
    signs = torch.randint(2, tuple(shape), generator=generator).mul_(2).sub_(1)
    return signs.to(device=device, dtype=dtype or torch.get_default_dtype())


def _with_graph(operation: str, v: Callable, t: Tensor, x: Tensor, trace: Callable) -> tuple[Tensor, Tensor]:
    """v(t, x) and a trace of ∂v/∂x; both keep their graph only if the caller has gradients switched on."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        point = x if graph and x.requires_grad else x.detach().requires_grad_()
        value = v(t, point)
        if value.shape != x.shape:
            raise ValueError(
                f"{operation}: received a field that returns {tuple(value.shape)} for points {tuple(x.shape)}; "
                "rule: the shape of x"
            )
        # A field that does not depend on x (a shift) has no graph to differentiate.
        result = trace(value, point, graph) if value.requires_grad else x.new_zeros(len(x))
    return (value, result) if graph else (value.detach(), result.detach())


def _exact_trace(value: Tensor, point: Tensor, graph: bool) -> Tensor:
    columns = value.flatten(1)
    dims = columns.shape[1]
    total = point.new_zeros(len(point))
    for i in range(dims):
        more = graph or i + 1 < dims
        (row,) = torch.autograd.grad(
            columns[:, i].sum(), point, create_graph=graph, retain_graph=more, materialize_grads=True
        )
        total = total + row.flatten(1)[:, i]
    return total


def _quadratic(value: Tensor, point: Tensor, eps: Tensor, retain: bool, graph: bool) -> Tensor:
    """εᵀ (∂v/∂x) ε for each point."""
    (product,) = torch.autograd.grad(
        value, point, grad_outputs=eps, create_graph=graph, retain_graph=retain, materialize_grads=True
    )
    return (product * eps).flatten(1).sum(1)
