"""Normalizing flows: our spline flow against zuko's, and the memory of the adjoint against back-propagation.

`nsf-nll-gap`, `nsf-steps`: two moons with noise 0.1, a new batch of 256 points at each step, 2,000 steps of fused Adam
at 1e-3 with `fit`, warm-up and cosine decay, the same stream of batches and the same trainer for both sides. (At a
constant rate the noise of the last steps is as large as either gap, and the ratio says little: 0.7 to 1.3 over three
seeds.) Both have three layers of splines of 8 bins and networks of 64×64 ReLU units. zuko's NSF is used as it comes:
its splines live on (−5, 5). Ours has an ActNorm on the data side of each coupling, which centers and scales what the
splines see, so that they can live on (−4, 4).

The gap is the mean of log p − log q over the same 10,000 held-out points for both sides and all seeds, p being the
moons' own density (exact by quadrature): an estimate of KL(p ‖ q) in which most of the points' own noise cancels.

`cnf-adjoint-memory`: gradient of the mean log-density of 256 points in a field 64×64×64 (tanh) through 200 Runge–Kutta
steps with the exact divergence. Bytes of all tensors alive at once are counted; the gradients must agree to 1e-4.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.harness import CLOCK, Case, one_thread, seconds
from companion.data import draws, two_moons
from companion.device import generator, seeded
from companion.methods.continuous_flows import ContinuousFlow
from companion.methods.normalizing_flows import ActNorm, StandardNormal, spline_flow
from companion.nn import VelocityMLP
from companion.numerics.adjoint import integrate_adjoint, through_solver
from companion.numerics.memory import peak_bytes
from companion.numerics.ode import RungeKutta4
from companion.training import Record, adam, fit, warmup_cosine

BATCH, STEPS, SEEDS, POINTS = 256, 2_000, (0, 1, 2), 10_000
CNF_STEPS, TOLERANCE = 200, 1e-4
MOONS = two_moons(0.1)


class Zuko(nn.Module):
    """zuko's flow with the interface of ours."""

    def __init__(self) -> None:
        import zuko

        super().__init__()
        self.flow = zuko.flows.NSF(2, transforms=3, bins=8, hidden_features=(64, 64))

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow().log_prob(x)


SIDES: dict[str, Callable[[], nn.Module]] = {
    "ours": functools.partial(spline_flow, 2, transforms=3, bins=8, hidden=(64, 64), bound=4.0, between=ActNorm),
    "peer": Zuko,
}


class Trained(NamedTuple):
    """One training.

    Attributes:
        gap: mean of log p − log q over the held-out points, in nats.
        rate: steps per CPU second.
    """

    gap: float
    rate: float


def training(side: str, seed: int, steps: int = STEPS) -> tuple[nn.Module, Iterator[Record]]:
    """A new flow and its training, a step at a time."""
    source = generator(seed)
    with seeded(source):
        model = SIDES[side]()
    batches = draws(MOONS, size=BATCH, generator=generator(100 + seed))

    def loss(flow: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return -flow.log_prob(batch[0]).mean()

    optimizer = adam(model, 1e-3)
    schedule = warmup_cosine(optimizer, warmup=50, steps=steps)
    return model, fit(model, loss, batches, steps=steps, optimizer=optimizer, schedule=schedule)


@functools.cache
def trained(seed: int, steps: int = STEPS, turns: int = 20) -> dict[str, Trained]:
    """Both sides, in turns, so that a drift of the machine hits both alike."""
    with one_thread():
        runs = {side: training(side, seed, steps) for side in SIDES}
        spent = dict.fromkeys(SIDES, 0.0)
        for _ in range(turns):
            for side, (_, records) in runs.items():
                spent[side] += seconds(functools.partial(advance, records, steps // turns))
        x = MOONS.sample(POINTS, generator=generator(1_000))
        with torch.no_grad():
            gaps = {
                side: (MOONS.log_prob(x) - model.eval().log_prob(x)).mean().item() for side, (model, _) in runs.items()
            }
    result = {side: Trained(gaps[side], steps / spent[side]) for side in SIDES}
    print(f"  seed {seed}: {result}", file=sys.stderr, flush=True)
    return result


def advance(records: Iterator[Record], steps: int) -> None:
    for _ in range(steps):
        next(records)


def compared(what: str, unit: str, **options: object) -> list[Case]:
    import zuko

    mine, theirs = (tuple(getattr(trained(seed)[side], what) for seed in SEEDS) for side in SIDES)
    return [Case(None, mine, theirs, f"zuko {zuko.__version__} NSF", goal=1.0, unit=unit, **options)]


def nll_gap() -> list[Case]:
    """Gap to the entropy, median of three seeds."""
    return compared("gap", "nats")


def steps_per_second() -> list[Case]:
    """Steps per CPU second of the same trainings."""
    return compared("rate", "steps/s", clock=CLOCK, better="higher")


def adjoint_memory() -> list[Case]:
    """Peak bytes of one gradient, by the adjoint and by back-propagation."""
    with one_thread(), seeded(generator(0)):
        field = VelocityMLP(2, width=64, depth=3, activation=nn.Tanh)
        x = MOONS.sample(BATCH, generator=generator(1))
        gradients, peaks = {}, {}
        for solve in (integrate_adjoint, through_solver):
            flow = ContinuousFlow(field, StandardNormal(2), RungeKutta4(CNF_STEPS), solve=solve)

            def gradient(flow: ContinuousFlow = flow, solve: Callable = solve) -> None:
                parts = torch.autograd.grad(flow.log_prob(x).mean(), list(field.parameters()))
                gradients[solve] = torch.cat([part.flatten() for part in parts])

            peaks[solve] = peak_bytes(gradient) / 1e6
    exact = gradients[through_solver]
    error = ((gradients[integrate_adjoint] - exact).norm() / exact.norm()).item()
    print(f"  relative difference of the gradients: {error:.1e}", file=sys.stderr)
    if error > TOLERANCE:
        raise ValueError(
            f"cnf-adjoint-memory: received gradients that differ by {error:.1e}; rule: at most {TOLERANCE}"
        )
    return [
        Case(
            None,
            (peaks[integrate_adjoint],),
            (peaks[through_solver],),
            "ours, back-propagation through the solver",
            goal=0.25,
            unit="MB",
        )
    ]


MEASURES: dict[str, Callable[[], list[Case]]] = {
    "nsf-nll-gap": nll_gap,
    "nsf-steps": steps_per_second,
    "cnf-adjoint-memory": adjoint_memory,
}
