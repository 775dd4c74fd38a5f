"""What a benchmark is: cases of ours against a peer's, measured in one run, told as a ratio with its spread.

A module of benchmarks defines `MEASURES: dict[str, Callable[[], list[Case]]]`, from the name of a measure to the
function that measures it. Numbers are CPU seconds of one thread: wall time on a shared machine says nothing.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Better = str  # "lower": the ratio must not exceed the goal; "higher": it must reach it


@dataclass(frozen=True)
class Case:
    """One comparison. `ours` and `peer` hold a value per repetition (or seed), paired where they have equal length.

    Attributes:
        case: name of the case, or None if the measure has only this one.
        ours: our values, in `unit`.
        peer: the peer's values, in `unit`.
        peer_name: the peer, with its version where it has one.
        goal: what the ratio ours/peer has to reach.
        unit: unit of the values, such as "steps/s".
        clock: how time was taken, such as "process_time, 1 thread"; None where no time was.
        better: "lower" or "higher".
    """

    case: str | None
    ours: tuple[float, ...]
    peer: tuple[float, ...]
    peer_name: str
    goal: float
    unit: str
    clock: str | None = None
    better: Better = "lower"

    @property
    def ratio(self) -> float:
        """Median of ours over median of the peer's."""
        return statistics.median(self.ours) / statistics.median(self.peer)

    @property
    def ratios(self) -> list[float]:
        """The ratio of each pair of repetitions: the spread. Without pairs, each of ours over the peer's median."""
        if len(self.ours) == len(self.peer):
            return [ours / peer for ours, peer in zip(self.ours, self.peer, strict=True)]
        return [ours / statistics.median(self.peer) for ours in self.ours]

    @property
    def low(self) -> float:
        return min([*self.ratios, self.ratio])

    @property
    def high(self) -> float:
        return max([*self.ratios, self.ratio])

    @property
    def met(self) -> bool:
        return self.ratio >= self.goal if self.better == "higher" else self.ratio <= self.goal

    def record(self, measure: str) -> dict:
        """The JSON object of results.json."""
        return {
            "measure": measure,
            "case": self.case,
            "ours": _number(statistics.median(self.ours)),
            "peer": _number(statistics.median(self.peer)),
            "peer_name": self.peer_name,
            "ratio": _number(self.ratio),
            "low": _number(self.low),
            "high": _number(self.high),
            "goal": self.goal,
            "met": self.met,
            "unit": self.unit,
            "clock": self.clock,
        }


def worst(cases: list[Case]) -> Case:
    """The case that is furthest from its goal, on the side that counts."""
    return max(cases, key=lambda case: case.ratio / case.goal if case.better == "lower" else case.goal / case.ratio)


def records(measure: str, cases: list[Case]) -> list[dict]:
    """One record a case; several cases are headed by the worst one under the bare measure, with `case` null."""
    if len(cases) == 1:
        return [{**cases[0].record(measure), "case": None}]
    return [{**worst(cases).record(measure), "case": None}, *(case.record(measure) for case in cases)]


def interleaved(
    ours: Callable[[], object], peer: Callable[[], object], *, repetitions: int = 7, warmup: int = 1
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """CPU seconds of `ours` and `peer`, taken in turn so that a drift of the machine hits both alike."""
    for _ in range(warmup):
        ours()
        peer()
    pairs = [(seconds(ours), seconds(peer)) for _ in range(repetitions)]
    return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process that one call of `work` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


CLOCK = "process_time, 1 thread"


def _number(value: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
