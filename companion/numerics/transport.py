r"""Optimal transport between samples: exact, entropic and sliced.

    plan     P* = argmin_P Σ_ij P_ij c(x_i, y_j),    P_ij ≥ 0,   Σ_j P_ij = a_i,   Σ_i P_ij = b_j
    pairing  n = m and uniform weights: the best plan is a permutation π, minimizing Σ_i |x_i − y_π(i)|²
    W_p      W_p(x, y)ᵖ = Σ_ij P*_ij |x_i − y_j|ᵖ
    Sinkhorn argmin_P Σ_ij P_ij c_ij + ε Σ_ij P_ij (log P_ij − 1), with the same marginals
    sliced   SW_p(x, y)ᵖ = mean over directions θ of W_p(⟨θ, x⟩, ⟨θ, y⟩)ᵖ, where sorting solves each

Symbols: x_0 (n, dim) and x_1 (m, dim) are the points, a and b their weights (uniform unless given), c the squared
Euclidean distance, ε > 0 the strength of the entropy in units of c.

Source: Peyré and Cuturi, Computational Optimal Transport (2019), sections 2.2–2.3, 4.1–4.4 and 2.6.
The exact plans are computed by the network simplex of POT and the assignment solver of scipy.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "PairingStream",
    "crossing_pairs",
    "exact_plan",
    "optimal_pairing",
    "sample_plan",
    "sinkhorn_plan",
    "sliced_wasserstein",
    "wasserstein",
]

# For so few points, or in so many dimensions, scipy's assignment is faster than POT's network simplex (measured).
FEW_POINTS, MANY_DIMS = 64, 16
MAX_ITERATIONS = 100_000_000


def optimal_pairing(x0: Float[Tensor, "n dim"], x1: Float[Tensor, "n dim"]) -> Int[Tensor, " n"]:
    """The permutation π that minimizes Σ_i |x0_i − x1_π(i)|²: exact optimal transport of two equal batches.

    Since Σ|x0_i|² and Σ|x1_j|² do not depend on π, it maximizes Σ_i ⟨x0_i, x1_π(i)⟩: one matrix product is the cost.

    Args:
        x0: points, (n, dim).
        x1: as many points, (n, dim).

    Returns:
        π as indices into x1, (n,): `x1[π]` is paired with `x0`.

    Raises:
        ValueError: the batches differ in size, or hold NaN or infinity.
    """
    _check_batches("optimal_pairing", x0, x1)
    x, y = _centered(x0, x1)
    return torch.from_numpy(_assignment((x @ y.T).neg_().numpy(), x.shape[1])).to(x0.device)


class PairingStream:
    """`optimal_pairing` for batch after batch from the same two distributions: the same answers in less time.

    The optimal pairing has potentials u, v with u_i + v_j ≤ c_ij, and equality where i is paired with j. They are
    values of a function of the points, and that function hardly differs from batch to batch. So the v of the first
    batch give any later one potentials that are nearly right, u_i = min_j c(x_i, y_j) − v_j over the first batch. The
    cost less these potentials has the same best pairing, with most pairs in their row's and column's minimum already.
    """

    def __init__(self) -> None:
        self._first = None

    def __call__(self, x0: Float[Tensor, "n dim"], x1: Float[Tensor, "n dim"]) -> Int[Tensor, " n"]:
        """The permutation π of `optimal_pairing(x0, x1)`, (n,)."""
        if self._first is None:
            self._first = self._potentials(x0, x1)
            return optimal_pairing(x0, x1)
        _check_batches("PairingStream", x0, x1)
        from scipy.optimize import linear_sum_assignment

        mean_x, mean_y, y_first, v = self._first
        x, y = _on_cpu(x0) - mean_x, _on_cpu(x1) - mean_y
        u = -(x @ y_first.T).add_(v).amax(1)
        cost = (x @ y.T).neg_().sub_(u[:, None])
        cost -= cost.amin(0)
        return torch.from_numpy(linear_sum_assignment(cost.numpy())[1]).to(x0.device)

    def _potentials(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The means of both batches, the centered x_1 and its potential v for the cost −⟨x, y⟩."""
        import ot

        _check_batches("PairingStream", x0, x1)
        mean_x, mean_y = _on_cpu(x0).mean(0), _on_cpu(x1).mean(0)
        x, y = _on_cpu(x0) - mean_x, _on_cpu(x1) - mean_y
        _, log = ot.emd([], [], (x @ y.T).neg_().numpy(), log=True)
        return mean_x, mean_y, y, torch.from_numpy(log["v"])


def exact_plan(
    x0: Float[Tensor, "n dim"],
    x1: Float[Tensor, "m dim"],
    a: Float[Tensor, " n"] | None = None,
    b: Float[Tensor, " m"] | None = None,
) -> Float[Tensor, "n m"]:
    """The transport plan of least squared distance.

    Args:
        x0: points, (n, dim).
        x1: points, (m, dim).
        a: weights of x0, (n,); uniform if not given.
        b: weights of x1, (m,); uniform if not given.

    Returns:
        the plan, (n, m); its rows sum to a, its columns to b.

    Raises:
        ValueError: points or weights are not usable.
    """
    _check_points("exact_plan", x0, x1)
    return _network_simplex("exact_plan", _power_cost(x0, x1, 2), a, b).to(x0)


def sinkhorn_plan(
    x0: Float[Tensor, "n dim"],
    x1: Float[Tensor, "m dim"],
    *,
    epsilon: float,
    a: Float[Tensor, " n"] | None = None,
    b: Float[Tensor, " m"] | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 10_000,
) -> Float[Tensor, "n m"]:
    """The entropic plan, by Sinkhorn's iterations in the log domain (no ε under- or overflows).

    P_ij = exp(f_i + g_j − c_ij/ε), where f and g in turn make the rows sum to a and the columns to b.

    Args:
        x0: points, (n, dim).
        x1: points, (m, dim).
        epsilon: strength of the entropy, in units of the squared distance. A few percent of its mean is a start.
        a: weights of x0, (n,); uniform if not given.
        b: weights of x1, (m,); uniform if not given.
        tolerance: stop when the marginals are met to this (Euclidean norm of the difference).
        max_iterations: where to give up.

    Returns:
        the plan, (n, m).

    Raises:
        ValueError: the arguments are not usable, or the iterations do not converge.
    """
    _check_points("sinkhorn_plan", x0, x1)
    if not (math.isfinite(epsilon) and epsilon > 0 and tolerance > 0 and max_iterations > 0):
        raise ValueError(
            f"sinkhorn_plan: received epsilon={epsilon}, tolerance={tolerance}, max_iterations={max_iterations}; "
            "rule: all positive"
        )
    cost = _power_cost(x0, x1, 2)
    log_a, log_b = (torch.from_numpy(weights).log() for weights in _weights("sinkhorn_plan", cost, a, b))
    log_kernel, g = -cost / epsilon, torch.zeros_like(log_b)
    for iteration in range(1, max_iterations + 1):
        f = log_a - torch.logsumexp(log_kernel + g, dim=1)
        g = log_b - torch.logsumexp(log_kernel + f[:, None], dim=0)
        if iteration % 10 == 0 or iteration == max_iterations:
            plan = (f[:, None] + log_kernel + g).exp()
            miss = (plan.sum(1) - log_a.exp()).norm().item()  # the columns are met exactly
            if miss <= tolerance:
                return plan.to(x0)
    raise ValueError(
        f"sinkhorn_plan: received epsilon={epsilon}, for which the marginals still miss by {miss:.1e} after "
        f"{max_iterations} iterations; rule: below tolerance={tolerance}. Raise epsilon (the mean cost is "
        f"{cost.mean().item():.3g}), the tolerance or max_iterations"
    )


def sample_plan(
    plan: Float[Tensor, "n m"], n: int, *, generator: torch.Generator
) -> tuple[Int[Tensor, " draws"], Int[Tensor, " draws"]]:
    """Draw n pairs (i, j) with probability P_ij each, with replacement.

    Args:
        plan: not negative, (n, m); it is normalized.
        n: number of pairs.
        generator: source of randomness, on the CPU.

    Returns:
        the indices i and j, (n,) each.

    Raises:
        ValueError: the plan has no mass, negative mass, or NaN.
    """
    mass = plan.detach().to("cpu", torch.float64)
    total = mass.sum()
    if plan.ndim != 2 or not bool((mass >= 0).all()) or not (math.isfinite(total) and total > 0):
        raise ValueError(
            f"sample_plan: received a plan of shape {tuple(plan.shape)}, mass {total:.3g}, "
            f"least entry {mass.min():.3g}; rule: two axes, no negative entry, finite positive mass"
        )
    cumulative = mass.flatten().cumsum(0)
    draws = torch.rand(n, generator=generator, dtype=torch.float64) * cumulative[-1]
    pair = torch.searchsorted(cumulative, draws, right=True).clamp_(max=mass.numel() - 1).to(plan.device)
    return pair // plan.shape[1], pair % plan.shape[1]


def wasserstein(x0: Float[Tensor, "n dim"], x1: Float[Tensor, "m dim"], *, p: float = 2) -> Float[Tensor, ""]:
    """The exact Wasserstein distance W_p between two samples with uniform weights (Euclidean ground distance).

    Args:
        x0: points, (n, dim).
        x1: points, (m, dim).
        p: power of the distance, 1 or more.

    Returns:
        W_p, of shape (). It carries no gradient.

    Raises:
        ValueError: points or p are not usable.
    """
    _check_points("wasserstein", x0, x1)
    _check_power("wasserstein", p)
    cost = _power_cost(x0, x1, p)
    if len(x0) == len(x1):
        pairing = torch.from_numpy(_assignment(cost.numpy(), x0.shape[1]))
        mean = cost.gather(1, pairing[:, None]).mean()
    else:
        mean = (_network_simplex("wasserstein", cost, None, None) * cost).sum()
    return mean.pow(1 / p).to(x0)


def sliced_wasserstein(
    x0: Float[Tensor, "n dim"],
    x1: Float[Tensor, "m dim"],
    *,
    projections: int,
    p: float = 2,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """The sliced Wasserstein distance: exact in one dimension, averaged over random directions. Differentiable.

    Args:
        x0: points, (n, dim).
        x1: points, (m, dim).
        projections: number of directions, drawn uniformly from the sphere.
        p: power of the distance, 1 or more.
        generator: source of the directions, on the CPU.

    Returns:
        SW_p, of shape ().

    Raises:
        ValueError: points, p or projections are not usable.
    """
    _check_points("sliced_wasserstein", x0, x1)
    _check_power("sliced_wasserstein", p)
    if projections < 1:
        raise ValueError(f"sliced_wasserstein: received projections={projections}; rule: 1 or more")
    directions = torch.randn(projections, x0.shape[1], generator=generator, dtype=x0.dtype).to(x0.device)
    directions = directions / directions.norm(dim=1, keepdim=True)
    x, y = (x0 @ directions.T).sort(dim=0).values, (x1 @ directions.T).sort(dim=0).values
    i, j, weight = _quantile_pairs(len(x), len(y))
    gap = (x[i.to(x.device)] - y[j.to(x.device)]).abs().pow(p).mean(1)
    return (weight.to(gap) @ gap).pow(1 / p)


def crossing_pairs(x0: Float[Tensor, "n dim"], x1: Float[Tensor, "n dim"]) -> int:
    """How many pairs i < j of the coupling (x0_i, x1_i) cross: (x0_i − x0_j)·(x1_i − x1_j) < 0.

    Exchanging the partners of such a pair lowers the squared distance, so an optimal pairing has none.

    Args:
        x0: points, (n, dim).
        x1: their partners, (n, dim).

    Returns:
        the number of crossing pairs, at most n(n − 1)/2.

    Raises:
        ValueError: the batches differ in size, or hold NaN or infinity.
    """
    _check_points("crossing_pairs", x0, x1)
    if len(x0) != len(x1):
        raise ValueError(f"crossing_pairs: received {len(x0)} and {len(x1)} points; rule: one partner for each")
    x, y = _centered(x0, x1)
    products = x @ y.T
    own = products.diagonal()
    dot = own[:, None] + own[None, :] - products - products.T
    rounding = 16 * torch.finfo(dot.dtype).eps * products.abs().max()
    return int((dot < -rounding).sum().item()) // 2


def _on_cpu(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64)


def _centered(x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Both batches in float64 on the CPU about their means: shifts change no optimal pairing, only lose digits."""
    x, y = x0.detach().to("cpu", torch.float64), x1.detach().to("cpu", torch.float64)
    return x - x.mean(0), y - y.mean(0)


def _power_cost(x0: Tensor, x1: Tensor, p: float) -> Tensor:
    """|x_i − y_j|ᵖ in float64 on the CPU, by differences: exact for far and for near points."""
    distance = torch.cdist(
        x0.detach().to("cpu", torch.float64),
        x1.detach().to("cpu", torch.float64),
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    return distance if p == 1 else distance.pow(p)


def _assignment(cost, dim: int):
    """The cheapest permutation for a square cost matrix (numpy), by whichever solver is faster for its size."""
    if len(cost) <= FEW_POINTS or dim >= MANY_DIMS:
        from scipy.optimize import linear_sum_assignment

        return linear_sum_assignment(cost)[1]
    import numpy as np
    import ot

    ones = np.ones(len(cost))  # whole numbers: the plan is a permutation matrix exactly
    plan, log = ot.emd(ones, ones, cost, numItermax=MAX_ITERATIONS, log=True)
    _check_solved("optimal_pairing", cost.shape, log)
    return plan.argmax(axis=1)


def _network_simplex(operation: str, cost: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
    """The optimal plan for a cost matrix, by POT."""
    import ot

    weights = _weights(operation, cost, a, b)
    plan, log = ot.emd(*weights, cost.numpy(), numItermax=MAX_ITERATIONS, log=True)
    _check_solved(operation, cost.shape, log)
    return torch.from_numpy(plan)


def _check_solved(operation: str, shape: tuple, log: dict) -> None:
    if log["warning"] is not None:
        raise ValueError(
            f"{operation}: received a problem of shape {tuple(shape)}; rule: POT solves it, but it says: "
            f"{log['warning']}"
        )


def _weights(operation: str, cost: Tensor, a: Tensor | None, b: Tensor | None) -> list:
    """Both marginals as numpy arrays that sum to one."""
    marginals = []
    for name, given, size in (("a", a, cost.shape[0]), ("b", b, cost.shape[1])):
        weights = torch.ones(size, dtype=torch.float64) if given is None else given.detach().to("cpu", torch.float64)
        if weights.shape != (size,) or not bool((weights >= 0).all()) or not 0 < weights.sum() < math.inf:
            raise ValueError(
                f"{operation}: received weights {name} of shape {tuple(weights.shape)}, sum {weights.sum():.3g}; "
                f"rule: ({size},), none negative, finite positive sum"
            )
        marginals.append(weights)
    if a is not None and b is not None and not torch.isclose(marginals[0].sum(), marginals[1].sum(), rtol=1e-4):
        raise ValueError(
            f"{operation}: received weights a and b with sums {marginals[0].sum():.6g} and {marginals[1].sum():.6g}; "
            "rule: the same mass on both sides"
        )
    return [(weights / weights.sum()).numpy() for weights in marginals]


def _quantile_pairs(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which sorted points of two samples of sizes n and m meet in one dimension, and the mass that each pair moves."""
    if n == m:
        index = torch.arange(n)
        return index, index, torch.full((n,), 1 / n, dtype=torch.float64)
    # Levels i/n and j/m as whole numbers over n·m, so that equal ones are equal.
    levels = torch.cat([torch.arange(n + 1) * m, torch.arange(1, m) * n]).unique()
    low = levels[:-1]
    return low // m, low // n, levels.diff().double() / (n * m)


def _check_points(operation: str, x0: Tensor, x1: Tensor) -> None:
    if x0.ndim != 2 or x1.ndim != 2 or x0.shape[1] != x1.shape[1] or x0.numel() == 0 or x1.numel() == 0:
        raise ValueError(
            f"{operation}: received points of shapes {tuple(x0.shape)} and {tuple(x1.shape)}; "
            "rule: (n, dim) and (m, dim) with the same dim, not empty (flatten images first)"
        )
    if not (x0.isfinite().all() and x1.isfinite().all()):
        raise ValueError(f"{operation}: received points with NaN or infinity; rule: every entry is finite")


def _check_batches(operation: str, x0: Tensor, x1: Tensor) -> None:
    _check_points(operation, x0, x1)
    if len(x0) != len(x1):
        raise ValueError(
            f"{operation}: received {len(x0)} and {len(x1)} points; rule: equally many (exact_plan takes any numbers)"
        )


def _check_power(operation: str, p: float) -> None:
    if not (math.isfinite(p) and p >= 1):
        raise ValueError(f"{operation}: received p={p}; rule: finite, 1 or more")
