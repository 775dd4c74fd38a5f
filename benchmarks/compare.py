"""`python -m benchmarks.compare [--only FAMILY ...] [--seconds S]`: the families side by side, in book/families.json.

Each family of `benchmarks.families` trains for S CPU seconds on the digits and for a third of that in the plane, on one
thread, and is then judged with the same numbers: likelihood or its bound, Fréchet distance, precision and recall,
copying, and what a sample costs. Beside them stand the data themselves: training data, which are the perfect copy, and
in the plane fresh data, which are the perfect model. Their numbers are what the same measurement gives where nothing is
left to learn. A family that is not run keeps its row.
"""

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import torch
from torch import Tensor

from benchmarks import judging
from benchmarks.families import FAMILIES, LEVELS, PIXELS, Family, Task, Trained
from benchmarks.harness import one_thread
from companion.data import checkerboard, digits
from companion.device import generator
from companion.metrics import copying, energy_distance, frechet_distance, precision_recall

RESULTS = Path(__file__).resolve().parents[1] / "book" / "families.json"
LARGEST = 150_000  # bytes
SECONDS = 60.0  # of training on the digits; the plane gets a third
BOARD = checkerboard()
ENTROPY = math.log(8)  # of the board of scale 2: eight squares of area 1
POINTS = 2_000  # training points, test points, and samples of each family
JUDGED = 200  # test digits whose likelihood is taken: it is the costly number
SHOWN_POINTS, SHOWN_IMAGES = 300, 24
DRAWS = 8  # of fresh data, whose scores are averaged: what nobody can beat should not be a matter of luck
TRAINING, FRESH = "training-data", "fresh-data"
Scores = dict[str, float | str | None]


# --- the two tasks ----------------------------------------------------------------------------------------------------


class Plane:
    """The checkerboard: eight squares with sharp edges, of known entropy log 8."""

    def __init__(self) -> None:
        source = generator(50)
        self.train, self.test, *self.fresh = (BOARD.sample(POINTS, generator=source) for _ in range(2 + DRAWS))

    def task(self, seconds: float) -> Task:
        """What a family learns from; the label of a point is its square."""
        row, column = ((self.train[:, axis] + 2).floor().long().clamp(0, 3) for axis in (1, 0))
        return Task(self.train, 2 * row + column // 2, seconds)

    def scores(self, x: Tensor) -> Scores:
        """What can be said of samples."""
        precision, recall = precision_recall(self.test, x)
        return {
            "frechet": frechet_distance(x, self.test),
            "energy": energy_distance(x, self.test),
            "outside": float(BOARD.log_prob(x).isinf().double().mean()),
            "precision": precision,
            "recall": recall,
            "copying": copying(x, self.train, self.test),
        }

    def nats(self, trained: Trained) -> float:
        """Mean −log p of the test points: nats a point."""
        return float(trained.nats(self.test, generator(51)).double().mean())

    def draw(self, trained: Trained) -> Tensor:
        """As many samples as there are test points."""
        return trained.sample(POINTS, generator(52))

    def picture(self, x: Tensor) -> dict:
        """Some samples, x and y in turn, to two decimals; those outside of the picture are left out."""
        seen = x[(x.abs() < 3).all(dim=1)][:SHOWN_POINTS]
        return {"points": [round(value, 2) for value in seen.flatten().tolist()]}


class Digits:
    """The 8 × 8 digits: 1,200 to train on, 597 to be judged by."""

    def __init__(self) -> None:
        self.train, self.test, self.unit = digits("train"), digits("test"), judging.unit()

    def task(self, seconds: float) -> Task:
        """What a family learns from."""
        return Task(self.train.images, self.train.labels, seconds)

    def scores(self, x: Tensor) -> Scores:
        """What can be said of samples; the unit of the Fréchet distance is that of training digits."""
        score = judging.judged(x)
        return {
            "frechet": score.frechet / self.unit,
            "precision": score.precision,
            "recall": score.recall,
            "copying": score.copying,
        }

    def nats(self, trained: Trained) -> float:
        """Mean −log P of the gray levels of the first test digits, in bits a pixel."""
        nats = trained.nats(self.test.images[:JUDGED], generator(53)).double().mean()
        return float(nats) / (PIXELS * math.log(2))

    def draw(self, trained: Trained) -> Tensor:
        """As many samples as there are test digits, on the 17 gray levels, as the data are."""
        return levels(trained.sample(len(self.test), generator(54))) / (LEVELS / 2) - 1

    def picture(self, x: Tensor) -> dict:
        """Some samples, a letter a pixel: 0 … 9, a … g."""
        rows = levels(x[:SHOWN_IMAGES]).flatten(1).int().tolist()
        return {"images": ["".join("0123456789abcdefg"[level] for level in row) for row in rows]}


def levels(x: Tensor) -> Tensor:
    """The gray level 0 … 16 next to each pixel of [−1, 1]."""
    return ((x + 1) * (LEVELS / 2)).round().clamp(0, LEVELS)


# --- measuring --------------------------------------------------------------------------------------------------------


def measured(make: Callable[[Task], Trained | None], world: Plane | Digits, seconds: float) -> dict | None:
    """Train one family on one task and judge it; None where the family sits this one out."""
    start = time.process_time()
    trained = make(world.task(seconds))
    if trained is None:
        return None
    spent = time.process_time() - start
    rows = Rows()
    with torch.no_grad(), rows.counted(trained.network):
        start = time.process_time()
        x = world.draw(trained)
        cost = time.process_time() - start
    if not x.isfinite().all():
        raise ValueError("compare: received samples with NaN or infinity; rule: every number of a sample is finite")
    scores = {
        "nats" if isinstance(world, Plane) else "bits": None if trained.nats is None else world.nats(trained),
        "likelihood": "none" if trained.nats is None else "exact" if trained.exact else "bound",
        **world.scores(x),
        "seconds": spent,
        "evaluations": rows.count / len(x),
        "milliseconds": 1_000 * cost / len(x),
        "weights": sum(weight.numel() for weight in trained.model.parameters()),
    }
    return {"scores": rounded(scores), **world.picture(x)}


def reference(draws: list[Tensor], world: Plane | Digits) -> dict:
    """Data in the place of samples: what the same numbers say, on average, where there is nothing left to learn."""
    scores = [world.scores(x) for x in draws]
    return {
        "scores": rounded({key: fmean(each[key] for each in scores) for key in scores[0]}),
        **world.picture(draws[0]),
    }


class Rows:
    """Counts the rows that a network is evaluated on."""

    def __init__(self) -> None:
        self.count = 0

    def counted(self, network: torch.nn.Module):
        """A context in which the rows of each answer are added up."""
        return network.register_forward_hook(self._add)

    def _add(self, _module: object, _inputs: object, output: Tensor) -> None:
        self.count += len(output)


def rounded(scores: Scores) -> Scores:
    """Four significant digits; whole numbers stay whole."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in scores.items()}


def row(family: Family, plane: Plane, images: Digits, seconds: float) -> dict:
    """One family, trained and judged twice."""
    with one_thread():
        in_plane = measured(family.plane, plane, seconds / 3)
        on_digits = measured(family.digits, images, seconds)
    return {
        "key": family.key,
        "name": family.name,
        "chapter": family.chapter,
        "about": family.about,
        "reference": False,
        "plane": in_plane,
        "digits": on_digits,
    }


def references(plane: Plane, images: Digits) -> list[dict]:
    """The rows that no family can be expected to beat."""
    train = images.train.images[: len(images.test)]
    order = torch.randperm(len(train), generator=generator(55))
    return [
        {"key": TRAINING, "name": "Training data", "chapter": None,
         "about": "What was learned from, handed in as samples: everything is right and nothing is new.",
         "reference": True, "plane": reference([plane.train], plane), "digits": reference([train[order]], images)},
        {"key": FRESH, "name": "Fresh data", "chapter": None,
         "about": "New points of the density itself: what a perfect model would score, the mean of eight draws.",
         "reference": True, "plane": reference(plane.fresh, plane), "digits": None},
    ]  # fmt: skip


# --- the file ---------------------------------------------------------------------------------------------------------


def merged(old: list[dict], new: list[dict]) -> list[dict]:
    """The new rows in the place of old ones; families first, in their order; rows of lost families go."""
    rows = {entry["key"]: entry for entry in [*old, *new]}
    return [rows[key] for key in [*FAMILIES, TRAINING, FRESH] if key in rows]


def text_of(rows: list[dict]) -> str:
    """The file: one line for each list of numbers, so that a changed row is a small change."""
    board = [[x, y] for x in range(-2, 2) for y in range(-2, 2) if (x + y) % 2 == 0]  # corners of squares of side 1
    about = {"entropy": round(ENTROPY, 4), "points": POINTS, "train": 1200, "test": 597, "judged": JUDGED}
    text = json.dumps({"about": about | {"board": board}, "rows": rows}, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+(-?\d[^\]\[{}\"]*?)\s+\]", lambda found: "[" + re.sub(r",\s+", ",", found[1]) + "]", text)
    return text + "\n"


def write(results: Path, new: list[dict]) -> None:
    """Replace the rows of `new`, keep the others; the file is there whole or not at all."""
    old = json.loads(results.read_text(encoding="utf-8"))["rows"] if results.exists() else []
    text = text_of(merged(old, new))
    if len(text.encode()) > LARGEST:
        raise ValueError(f"compare: received {len(text.encode())} bytes of results; rule: at most {LARGEST}")
    draft = results.with_suffix(".tmp")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, results)


def said(entry: dict) -> str:
    """A row as a few lines of text."""
    lines = [entry["name"]]
    for task in ("plane", "digits"):
        if entry[task]:
            scores = entry[task]["scores"].items()
            lines.append(f"  {task:7}" + ", ".join(f"{key} {value}" for key, value in scores))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure the chosen families; 0, or 2 if a name is unknown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}; all if left out")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="CPU seconds of training on the digits (60); the plane: a third"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the results are written")
    options = parser.parse_args(arguments)
    chosen = options.only or list(FAMILIES)
    unknown = [key for key in chosen if key not in FAMILIES]
    if unknown or not options.seconds > 0:
        what = ", ".join(unknown) or f"--seconds {options.seconds:g}"
        rule = f"the families are {', '.join(FAMILIES)}" if unknown else "training takes more than 0 seconds"
        print(f"compare: received {what}; rule: {rule}", file=sys.stderr)
        return 2
    plane, images = Plane(), Digits()
    write(options.results, references(plane, images))
    for key in chosen:
        entry = row(FAMILIES[key], plane, images, options.seconds)
        write(options.results, [entry])  # after each, so that a run that is stopped keeps what it has
        print(said(entry), flush=True)
    print(f"written to {options.results}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
