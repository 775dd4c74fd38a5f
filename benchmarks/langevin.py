"""How far the Langevin sampler ends from a density that is known, against its step size: the bias and its order.

Two densities on the line: a normal one of precision 1, for which theory gives the distance at every step size, and a
mixture of two unequal bells. 100,000 chains start as exact draws and run for the time 8, so that what is left is the
bias of the step. The distance is the energy distance E of their law to the density,

    E² = 2 ∫ (F_n(x) − F(x))² dx − (1/n) 2 ∫ F(x) (1 − F(x)) dx,

with F the density's distribution function, F_n that of n chains, and the mean of the first term for n exact draws
taken off. Each measure has five seeds.

- `langevin-bias`, cases `normal, h = …`: E against that of N(0, 1/(1 − h/2)), the stationary law of the recursion. The
  goal is 1.3: not farther than theory says, up to the noise of the chains.
- `langevin-bias`, cases `order, …`: the slope of log E against log h against the 1 that theory gives for h → 0. It has
  two goals, at least 0.7 and at most 1.3.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Case, one_thread
from companion.data import Density, Gaussian, GaussianMixture
from companion.device import generator
from companion.numerics.sampling import langevin

STEPS = (0.4, 0.2, 0.1, 0.05)  # h, the step sizes
SEEDS = (0, 1, 2, 3, 4)
CHAINS, TIME = 100_000, 8.0
GRID = torch.linspace(-9, 9, 20_001, dtype=torch.float64)


@functools.cache
def targets() -> dict[str, tuple[Density, Tensor]]:
    """Each density with its distribution function on the grid."""
    bells = torch.distributions.Normal(torch.tensor([-1.0, 1.5]).double(), torch.tensor([0.7, 0.9]).double())
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    mixture = GaussianMixture(bells.mean[:, None], bells.variance[:, None, None], weights)
    normal = Gaussian(torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64))
    return {
        "normal": (normal, torch.special.ndtr(GRID)),
        "two bells": (mixture, bells.cdf(GRID[:, None]) @ weights),
    }


def distance(x: Tensor, cdf: Tensor) -> float:
    """The energy distance of points on the line to a density, with the noise floor of so many points taken off."""
    empirical = torch.searchsorted(x.flatten().sort().values, GRID, right=True) / len(x)
    squared = 2 * torch.trapezoid((empirical - cdf).square(), GRID)
    floor = 2 * torch.trapezoid(cdf * (1 - cdf), GRID) / len(x)
    return math.sqrt(max(0.0, float(squared - floor)))


def by_theory(h: float) -> float:
    """The energy distance of N(0, V) to N(0, 1), in closed form: E|X − Y| = √(2 (V_X + V_Y) / π) for normal X and Y."""
    v = 1 / (1 - h / 2)
    return math.sqrt((2 * math.sqrt(2 * (1 + v)) - 2 - 2 * math.sqrt(v)) / math.sqrt(math.pi))


@functools.cache
def distances(name: str) -> dict[float, tuple[float, ...]]:
    """The distance at each step size, an entry for each seed."""
    density, cdf = targets()[name]
    found = {}
    with one_thread():
        for h in STEPS:
            ends = []
            for seed in SEEDS:
                g = generator(seed)
                x = density.sample(CHAINS, generator=g)
                x = langevin(density.score, x, h=h, steps=round(TIME / h), generator=g)
                ends.append(distance(x, cdf))
            found[h] = tuple(ends)
    return found


def order(ends: list[float]) -> float:
    """The slope of log E against log h, by least squares."""
    return float(np.polyfit(np.log(STEPS), np.log(ends), 1)[0])


def bias() -> list[Case]:
    """The distance at each step size, and its order."""
    cases = [
        Case(f"normal, h = {h}", distances("normal")[h], (by_theory(h),), "theory", goal=1.3, unit="energy distance")
        for h in STEPS
    ]
    for name in targets():
        orders = tuple(order([distances(name)[h][k] for h in STEPS]) for k in range(len(SEEDS)))
        for side, goal, better in (("at least", 0.7, "higher"), ("at most", 1.3, "lower")):
            cases.append(Case(f"order, {name}, {side}", orders, (1.0,), "theory", goal, "order", better=better))
    return cases


MEASURES: dict[str, Callable[[], list[Case]]] = {"langevin-bias": bias}
