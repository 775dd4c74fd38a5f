"""The adaptive solver against torchdiffeq's dopri5: evaluations, error and CPU time at equal tolerances.

Three fields on 256 points in the plane, from t = 0 to t = 1:

- smooth: a damped rotation whose damping grows with time, float64;
- oscillating: a rotation by 20 radians, a little more than three turns, slightly damped, float64;
- learned: a flow-matching network 64×3 (SELU), trained for 1,000 steps from eight Gaussians to a ring, float32.

A solver makes whole steps of six evaluations, so at a single tolerance it wins or loses one by luck. Each case
therefore goes through seven tolerances (rtol = atol) from 1e-3 to 1e-6, half a decade apart. `ode-nfe` sums the
evaluations and `ode-time` the times. Fewer evaluations only count if the error is no larger: `ode-error` is the
geometric mean of the root mean square differences from the solution in float64 at tolerance 1e-11, by torchdiffeq.
Evaluations and errors are taken for five batches of starts.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import torch
import torchdiffeq
from torch import Tensor, nn

from benchmarks.harness import CLOCK, Case, interleaved, one_thread
from companion.numerics.ode import DormandPrince, integrate

TOLERANCES = tuple(10 ** (-k / 2) for k in range(6, 13))
SEEDS = (0, 1, 2, 3, 4)
POINTS = 256
PEER = f"torchdiffeq {torchdiffeq.__version__} dopri5"


@dataclass(frozen=True)
class Problem:
    """A field, the same field in float64 for the reference, and the dtype in which it is solved."""

    name: str
    field: Callable[[Tensor, Tensor], Tensor]
    exact: Callable[[Tensor, Tensor], Tensor]
    dtype: torch.dtype

    def start(self, seed: int) -> Tensor:
        """Standard normal starts, the same in either dtype."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(POINTS, 2, generator=generator, dtype=torch.float64).to(self.dtype)


def smooth(t: Tensor, x: Tensor) -> Tensor:
    """A damped rotation."""
    return torch.stack([-x[:, 1] - 0.5 * t * x[:, 0], x[:, 0] - 0.5 * torch.sin(x[:, 1])], dim=1)


def oscillating(t: Tensor, x: Tensor) -> Tensor:
    """A rotation by 20 radians a unit of time, with a little damping."""
    return torch.stack([-20 * x[:, 1] - 0.1 * x[:, 0], 20 * x[:, 0] - 0.1 * x[:, 1]], dim=1)


class Velocity(nn.Module):
    """A small network v(t, x)."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 64, 64, 64]
        hidden = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.SELU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(64, 2))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layers(torch.cat([x, t.expand(len(x), 1)], dim=1))


@cache
def learned() -> Velocity:
    """The network after 1,000 steps of flow matching from eight Gaussians to a ring."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Velocity()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(1000):
        corner = torch.randint(8, (POINTS,), generator=generator) * (math.pi / 4)
        angle = torch.rand(POINTS, generator=generator) * (2 * math.pi)
        x_0 = 5 * torch.stack([corner.cos(), corner.sin()], 1) + 0.5 * torch.randn(POINTS, 2, generator=generator)
        x_1 = 2 * torch.stack([angle.cos(), angle.sin()], 1)
        t = torch.rand(POINTS, 1, generator=generator)
        loss = (model(t, torch.lerp(x_0, x_1, t)) - (x_1 - x_0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.requires_grad_(False)


@cache
def problems() -> tuple[Problem, ...]:
    """The three fields. The network trains when they are first asked for."""
    return (
        Problem("smooth", smooth, smooth, torch.float64),
        Problem("oscillating", oscillating, oscillating, torch.float64),
        Problem("learned", learned(), copy.deepcopy(learned()).double(), torch.float32),
    )


def ours(field: Callable, x: Tensor, tolerance: float) -> Tensor:
    """The state at t = 1, by our solver."""
    return integrate(field, x, DormandPrince(rtol=tolerance, atol=tolerance, max_evaluations=1_000_000)).final


def theirs(field: Callable, x: Tensor, tolerance: float) -> Tensor:
    """The state at t = 1, by torchdiffeq."""
    times = torch.tensor([0.0, 1.0], dtype=x.dtype)
    return torchdiffeq.odeint(field, x, times, rtol=tolerance, atol=tolerance, method="dopri5")[-1]


@dataclass(frozen=True)
class Result:
    """What a solver needs for one problem over all tolerances, and its error; an entry for each batch of starts."""

    evaluations: tuple[float, ...]
    errors: tuple[float, ...]


@torch.no_grad()
def solve(solver: Callable, problem: Problem) -> Result:
    """Count the evaluations and measure the errors. Both solvers are counted by the same counter."""
    counter = Counter(problem.field)
    evaluations, errors = [], []
    for seed in SEEDS:
        counter.calls = 0
        logs = []
        for tolerance in TOLERANCES:
            end = solver(counter, problem.start(seed), tolerance)
            logs.append(math.log((end.double() - reference(problem, seed)).square().mean().sqrt().item()))
        evaluations.append(float(counter.calls))
        errors.append(math.exp(sum(logs) / len(logs)))
    return Result(tuple(evaluations), tuple(errors))


class Counter:
    """A field that counts its evaluations."""

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.field, self.calls = field, 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return self.field(t, x)


@cache
@torch.no_grad()
def reference(problem: Problem, seed: int) -> Tensor:
    """The solution in float64 at tolerance 1e-11, by torchdiffeq: an independent one."""
    return theirs(problem.exact, problem.start(seed).double(), 1e-11)


@cache
def results() -> list[tuple[str, Result, Result]]:
    """Each problem by both solvers."""
    with one_thread():
        return [(problem.name, solve(ours, problem), solve(theirs, problem)) for problem in problems()]


def evaluations() -> list[Case]:
    """Evaluations of the field over all tolerances."""
    return [
        Case(name, mine.evaluations, peer.evaluations, PEER, goal=1.0, unit="evaluations")
        for name, mine, peer in results()
    ]


def errors() -> list[Case]:
    """Root mean square error at t = 1, geometric mean over the tolerances."""
    return [
        Case(name, mine.errors, peer.errors, PEER, goal=1.0, unit="error at t = 1") for name, mine, peer in results()
    ]


@torch.no_grad()
def times() -> list[Case]:
    """CPU time over all tolerances, taken in turn."""
    cases = []
    with one_thread():
        for problem in problems():
            mine, peer = interleaved(partial(sweep, ours, problem), partial(sweep, theirs, problem), repetitions=9)
            milliseconds = [tuple(1000 * second for second in seconds) for seconds in (mine, peer)]
            cases.append(Case(problem.name, *milliseconds, PEER, goal=0.8, unit="ms", clock=CLOCK))
    return cases


def sweep(solver: Callable, problem: Problem) -> None:
    """One problem at all tolerances."""
    x = problem.start(SEEDS[0])
    for tolerance in TOLERANCES:
        solver(problem.field, x, tolerance)


MEASURES: dict[str, Callable[[], list[Case]]] = {"ode-nfe": evaluations, "ode-error": errors, "ode-time": times}
