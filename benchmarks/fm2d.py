"""Flow matching in two dimensions against torchcfm: how fast a step is, and how good the trained field.

The set-up is torchcfm's tutorial: 8 Gaussians to moons, an MLP 64×3 with SELU, batch 256, Adam at 1e-3, σ = 0.1,
squared error, 20,000 steps. Both sides have the same distributions, quirks included: the Gaussians' covariance is
√0.1 I, the moons' arcs are equally spaced and one uniform number shifts both coordinates of a point. Each side has its
own pipeline: torchcfm's is the loop of its tutorial with its sample functions and couplings; ours draws 64 batches at
once, starts each exact pairing from the potentials of the first, and trains with `fit`, fused Adam, warm-up, cosine
decay and EMA.

A trained field is judged on 4,096 starts and 4,096 references, the same for both sides, integrated by our
Dormand–Prince at 1e-4 for both. Every training is done once and shared by the measures that ask for it.
"""

import functools
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.harness import CLOCK, Case, one_thread
from companion.data import eight_gaussians
from companion.device import generator, rand, seeded
from companion.methods.flow_matching import (
    IndependentCoupling,
    OptimalTransportCoupling,
    batches,
    conditional_flow_matching_loss,
)
from companion.metrics import normalized_path_energy, wasserstein2
from companion.nn import VelocityMLP
from companion.numerics.ode import DormandPrince, Euler, integrate
from companion.numerics.paths import LinearPath
from companion.training import EMA, adam, fit, warmup_cosine

BATCH, SIGMA, STEPS, SEEDS, POINTS = 256, 0.1, 20_000, (0, 1, 2), 4_096
ADAPTIVE = DormandPrince(rtol=1e-4, atol=1e-4)
PEER = "torchcfm"
Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TutorialMoons:
    """The tutorial's moons, 3 m − 1: equally spaced angles, and one uniform number in [0, 0.2) for both coordinates."""

    batch: int = BATCH

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        angle = torch.linspace(0, math.pi, self.batch // 2)
        outer = torch.stack([angle.cos(), angle.sin()], dim=1)
        inner = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
        noise = 0.2 * rand(n // self.batch, self.batch, 1, generator=generator)
        return (3 * (torch.cat([outer, inner]) + noise) - 1).reshape(n, 2)


def tutorial_gaussians():
    """The tutorial's eight Gaussians: radius 5, covariance √0.1 I."""
    return eight_gaussians(5.0, 0.1**0.25)


def ours(coupling: str, seed: int, steps: int = STEPS) -> Iterator[Velocity]:
    """Our training, a step at a time; each step gives the averaged model so far."""
    source, path = generator(seed), LinearPath(SIGMA)
    with seeded(source):
        model = VelocityMLP(2)
    pairs = {"independent": IndependentCoupling, "ot": OptimalTransportCoupling}[coupling]()
    data = batches(tutorial_gaussians(), TutorialMoons(), pairs, batch=BATCH, generator=source)
    optimizer, ema = adam(model, 1e-3), EMA(model)
    schedule = warmup_cosine(optimizer, warmup=200, steps=STEPS)

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return conditional_flow_matching_loss(model, path, *batch, generator=source).mean()

    for _ in fit(model, loss, data, steps=steps, optimizer=optimizer, schedule=schedule, ema=ema):
        yield ema.model


def peer(coupling: str, seed: int, steps: int = STEPS) -> Iterator[Velocity]:
    """The loop of torchcfm's tutorial with its own parts; each step gives the model so far."""
    import numpy as np
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher
    from torchcfm.models.models import MLP
    from torchcfm.utils import sample_8gaussians, sample_moons

    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (its samplers use the global state)
    matchers = {"independent": ConditionalFlowMatcher, "ot": ExactOptimalTransportConditionalFlowMatcher}
    matcher, model = matchers[coupling](sigma=SIGMA), MLP(dim=2, time_varying=True)
    optimizer = torch.optim.Adam(model.parameters())

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        return model(torch.cat([x, t.expand(len(x), 1)], dim=1))

    for _ in range(steps):
        optimizer.zero_grad()
        x_0, x_1 = sample_8gaussians(BATCH), sample_moons(BATCH)
        t, x_t, u_t = matcher.sample_location_and_conditional_flow(x_0, x_1)
        loss = torch.mean((model(torch.cat([x_t, t[:, None]], dim=-1)) - u_t) ** 2)
        loss.backward()
        optimizer.step()
        yield velocity


SIDES = {"ours": ours, "peer": peer}


@dataclass(frozen=True)
class Field:
    """A trained field, judged.

    Attributes:
        w2: distance of its samples from the references.
        evaluations: that the adaptive solver took.
        path_energy: normalized, |PE − W₂²| / W₂².
        w2_euler: distance of the samples with ten Euler steps.
        w2_floor: distance of other references from the references.
    """

    w2: float
    evaluations: int
    path_energy: float
    w2_euler: float
    w2_floor: float


@functools.cache
def trained(side: str, coupling: str, seed: int) -> Field:
    """Train one side for 20,000 steps, then judge the field."""
    start = time.process_time()
    (field,) = deque(SIDES[side](coupling, seed), maxlen=1)
    print(f"  trained {side} {coupling} seed {seed}: {time.process_time() - start:.0f} s", file=sys.stderr, flush=True)
    return judged(field, seed)


def judged(field: Velocity, seed: int) -> Field:
    """The field on the seed's start and reference draws."""
    source = generator(1_000 + seed)
    x_0 = tutorial_gaussians().sample(POINTS, generator=source)
    x_1, other = TutorialMoons().sample(2 * POINTS, generator=source).chunk(2)
    with torch.no_grad():
        solution = integrate(field, x_0, ADAPTIVE)
        euler = integrate(field, x_0, Euler(steps=10)).final
    return Field(
        w2=wasserstein2(solution.final, x_1),
        evaluations=solution.evaluations,
        path_energy=normalized_path_energy(field, x_0, x_1, solver=ADAPTIVE),
        w2_euler=wasserstein2(euler, x_1),
        w2_floor=wasserstein2(other, x_1),
    )


def values(side: str, coupling: str, what: str) -> tuple[float, ...]:
    """One number for each seed."""
    return tuple(float(getattr(trained(side, coupling, seed), what)) for seed in SEEDS)


def steps_per_second(coupling: str, goal: float, *, repetitions: int = 7) -> Case:
    """Steps per CPU second of both trainings, taken in turn on trainings that have warmed up."""
    with one_thread():
        runs, counts = {side: SIDES[side](coupling, seed=0) for side in SIDES}, {"ours": 400, "peer": 100}
        rates = {side: [] for side in SIDES}
        for run in runs.values():
            _advance(run, 50)
        for _ in range(repetitions):
            for side, run in runs.items():
                rates[side].append(counts[side] / _advance(run, counts[side]))
    return Case(
        None, tuple(rates["ours"]), tuple(rates["peer"]), PEER, goal, unit="steps/s", clock=CLOCK, better="higher"
    )


def _advance(run: Iterator, steps: int) -> float:
    start = time.process_time()
    for _ in range(steps):
        next(run)
    return time.process_time() - start


def w2(coupling: str) -> list[Case]:
    """Exact W₂ of ours over the peer's; the floor is that of data against data."""
    with one_thread():
        mine, theirs = values("ours", coupling, "w2"), values("peer", coupling, "w2")
        print(
            f"  W₂ of data against data: {statistics.median(values('ours', coupling, 'w2_floor')):.3f}", file=sys.stderr
        )
    return [Case(None, mine, theirs, PEER, goal=0.9, unit="length")]


def ot_over_independent(what: str, goal: float, unit: str) -> list[Case]:
    """A number of our OT field over the same of our independent one."""
    with one_thread():
        return [Case(None, values("ours", "ot", what), values("ours", "independent", what),
                     "ours, independent coupling", goal, unit)]  # fmt: skip


def euler10() -> list[Case]:
    """W₂ of our OT field with ten Euler steps over that with the adaptive solver."""
    with one_thread():
        few, adaptive = values("ours", "ot", "w2_euler"), values("ours", "ot", "w2")
    return [Case(None, few, adaptive, "ours, Dormand–Prince at 1e-4", goal=1.05, unit="length")]


MEASURES: dict[str, Callable[[], list[Case]]] = {
    "fm2d-steps-independent": lambda: [steps_per_second("independent", 2.5)],
    "fm2d-steps-ot": lambda: [steps_per_second("ot", 1.5)],
    "fm2d-w2-independent": lambda: w2("independent"),
    "fm2d-w2-ot": lambda: w2("ot"),
    "fm2d-path-energy": lambda: ot_over_independent("path_energy", 0.02, "1"),
    "fm2d-nfe-ot": lambda: ot_over_independent("evaluations", 0.7, "evaluations"),
    "fm2d-euler10": euler10,
}
