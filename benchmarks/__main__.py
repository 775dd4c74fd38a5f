"""`python -m benchmarks [ONLY ...]`: measure, print each ratio with its spread and goal, write results.json.

ONLY are names of measures, or beginnings of them (`fm2d`, `ode-nfe`); none means all. Measures that are not run keep
what results.json says of them.
"""

import argparse
import importlib
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

from benchmarks.harness import Case, records, worst

MODULES = (
    "imports",
    "ode",
    "samplers",
    "fm2d",
    "digits",
    "vae_digits",
    "langevin",
    "normalizing_flows",
    "decode",
    "grading",
    "chapters",
)
RESULTS = Path(__file__).with_name("results.json")


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen measures; 0 if all met their goals, 1 if one missed or failed, 2 if a name is unknown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", metavar="ONLY", help="names of measures, or beginnings of them")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the results are written")
    options = parser.parse_args(arguments)
    measures = collect()
    chosen = {name: run for name, run in measures.items() if not options.only or name.startswith(tuple(options.only))}
    unknown = [only for only in options.only if not any(name.startswith(only) for name in measures)]
    if unknown:
        print(f"benchmarks: received {', '.join(unknown)}; the measures are {', '.join(measures)}", file=sys.stderr)
        return 2
    met = [measure(name, run, options.results) for name, run in chosen.items()]
    return 0 if all(met) else 1


def collect() -> dict[str, Callable]:
    """All measures by name, in the order of the modules."""
    modules = [importlib.import_module(f"benchmarks.{name}") for name in MODULES]
    return {name: run for module in modules for name, run in module.MEASURES.items()}


def measure(name: str, run: Callable, results: Path) -> bool:
    """Run one measure, print it and merge it into the results; whether it met its goal."""
    cases = run()
    if not cases:
        print(f"{name:24} nothing to measure", flush=True)
        return True
    merge(results, name, records(name, cases))
    head = worst(cases)
    print(line(name, head), flush=True)
    for case in cases if len(cases) > 1 else []:
        print(line(f"  {case.case}", case), flush=True)
    return head.met


def merge(results: Path, name: str, new: list[dict]) -> None:
    """Replace the records of one measure, keep the others; the file is there whole or not at all."""
    old = json.loads(results.read_text()) if results.exists() else []
    kept = [record for record in old if record["measure"] != name]
    draft = results.with_suffix(".tmp")
    draft.write_text(json.dumps(sorted([*kept, *new], key=_order), indent=1, ensure_ascii=False) + "\n")
    os.replace(draft, results)


def line(name: str, case: Case) -> str:
    """A case as one line of text."""
    sign = "≥" if case.better == "higher" else "≤"
    verdict = "met" if case.met else "MISSED"
    return (
        f"{name:28} {case.ratio:.3g} ({case.low:.3g} to {case.high:.3g}), goal {sign} {case.goal:g} {verdict}; "
        f"{statistics.median(case.ours):.3g} against {statistics.median(case.peer):.3g} {case.unit} ({case.peer_name})"
    )


def _order(record: dict) -> tuple[str, bool]:
    return record["measure"], record["case"] is not None


if __name__ == "__main__":
    sys.exit(main())
