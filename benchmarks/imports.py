"""How long `import companion` takes over `import torch`, in fresh interpreters: CPU seconds, user and system.

`import companion` alone imports next to nothing, so a second case imports all that a chapter without figures does.
"""

import resource
import subprocess
import sys

from benchmarks.harness import Case

LIGHT = ("data", "device", "nn", "training", "numerics.ode", "numerics.paths", "numerics.transport")
CASES = {
    "companion": "import companion",
    "companion without figures": "import " + ", ".join(f"companion.{module}" for module in LIGHT),
}


def import_time(repetitions: int = 9) -> list[Case]:
    """Each case against `import torch`, in turn."""
    _seconds("import companion.data")  # fills the disk cache
    torch: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(repetitions):
        torch.append(_seconds("import torch"))
        for name, code in CASES.items():
            times[name].append(_seconds(code))
    return [
        Case(name, tuple(times[name]), tuple(torch), "import torch", 1.2, unit="s", clock="rusage of a child process")
        for name in CASES
    ]


def _seconds(code: str) -> float:
    """CPU seconds of a fresh interpreter that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


MEASURES = {"import-time": import_time}
