"""Instant checks of homework: the verdict of `companion.exercises`, from a file of recorded values.

A homework notebook lies beside `<slug>.checks.json`, which holds what right and wrong answers return for the public
inputs: values, never code. Each problem's locked cell defines `probe(generator)`, which runs the answer on inputs drawn
from the generator and returns what is compared:

    check = Checks("12-flow-matching")
    check("paused-path", probe)

After the hand-in the same probe runs on other inputs, whose values no notebook carries; those decide the points.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from companion.exercises.checking import Exercise, Verdict, verdict

PUBLIC_SEED = 0
SEALED = "Noted. This problem is judged after you hand in; here only the form of the answer is looked at."
RETURNED_NONE = (
    "Not answered yet: your function returned None. Replace the `...`, or add the `return` that is missing, and run "
    "both cells again."
)


def exercise(right: Any = None, wrong: dict | None = None, *, false_alarm: float = 0.0, **settings: Any) -> Exercise:
    """The `Exercise` whose answers are probes, functions of a generator.

    Args:
        right, wrong: probes; none where only `values` is asked for.
        false_alarm: for random output, the probability that a right answer is refused.
        settings: `atol`, `rtol`, `also_right`.
    """
    statistic = (lambda output, generator: output) if false_alarm else None
    return Exercise(
        inputs=lambda generator: (generator,),
        right=right,
        wrong=wrong or {},
        statistic=statistic,
        false_alarm=false_alarm,
        **settings,
    )


def values(probe: Callable[[torch.Generator], Any], seed: int = PUBLIC_SEED) -> dict:
    """What an answer gives for the inputs of `seed`, as JSON, for `verdict`."""
    with _torch_as_imported():
        encoded = exercise().values(probe, seed)
    if encoded["kind"] == "error" and "NoneType" in encoded["data"]:
        return {
            "kind": "unanswered",
            "data": RETURNED_NONE,
        }  # a blank body returns None, whatever the probe does with it
    return encoded


@contextmanager
def _torch_as_imported() -> Iterator[None]:
    """Torch's global settings as they are at first, and afterwards as they were.

    A student who makes float64 the default in one cell has another type, and so other numbers, wherever a later probe
    draws its inputs: a right answer would be called wrong.
    """
    before = torch.get_default_dtype()
    device = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    torch.set_default_dtype(torch.float32)
    try:
        with device, torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(before)


class Checks:
    """The instant checks of one homework: `check(name, probe)` prints the verdict.

    Args:
        slug: the homework, such as `12-flow-matching`.
        folder: where `<slug>.checks.json` lies; the working folder if not given.
    """

    def __init__(self, slug: str, folder: Path | str | None = None):
        self.slug = slug
        path = Path(folder or ".") / f"{slug}.checks.json"
        try:
            self._records = json.loads(path.read_text(encoding="utf-8"))["checks"]
        except FileNotFoundError:
            raise ValueError(
                f"Checks: received a folder without {path.name}; rule: keep it beside the notebook, as handed out"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"Checks: received a damaged {path.name} ({error}); rule: get the homework again"
            ) from None

    def __call__(self, name: str, probe: Callable[[torch.Generator], Any]) -> None:
        """Print the verdict on the answer that `probe` runs."""
        print(self.verdict(name, probe))

    def verdict(self, name: str, probe: Callable[[torch.Generator], Any]) -> Verdict:
        """The verdict on the answer that `probe` runs.

        Raises:
            ValueError: The homework has no problem of this name.
        """
        if name not in self._records:
            known = ", ".join(self._records)
            raise ValueError(f"check: received the name {name!r}; rule: a problem of {self.slug}: {known}")
        return judge(values(probe), self._records[name])


def judge(values: dict, record: dict) -> Verdict:
    """The verdict on `values`; a sealed record knows only of what kind an answer is."""
    if values.get("kind") == "unanswered" and isinstance(values.get("data"), str):
        return Verdict(False, False, RETURNED_NONE)
    if not record.get("sealed"):
        return verdict(values, record)
    if values.get("kind") in ("unanswered", "error"):
        return verdict(values, {"right": {"kind": "unanswered"}, "wrong": {}, "atol": 0, "rtol": 0})
    if (values.get("kind"), values.get("shape")) != (record.get("kind"), record.get("shape")):
        return Verdict(False, True, f"Not yet: {record['form']}")
    return Verdict(False, True, SEALED)
