"""Who may import whom: the contracts of `[tool.importlinter]` hold, and each of them can be broken."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
PLANTED = {  # contract -> (module, import that breaks it)
    "In companion, imports go down only": ("companion/nn/mlp.py", "import companion.data.toys"),
    "Methods do not import each other": ("companion/methods/flows.py", "import companion.methods.flow_matching"),
    "companion knows nothing of the tooling": ("companion/metrics.py", "def f():\n    import course.chapters"),
    "Only plotting imports matplotlib": ("companion/data/toys.py", "def g():\n    import matplotlib.pyplot"),
    "Only live imports anywidget": ("companion/numerics/ode.py", "import anywidget"),
    "The tooling's modules import each other": ("course/homework/late.py", "import course.homework.gradebook"),
    "Of companion, the tooling imports only": ("course/files.py", "import companion.numerics.ode"),
}


def lint(root: Path) -> tuple[int, str]:
    """Runs import-linter on a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200", "NO_COLOR": "1"}
    result = subprocess.run(
        [sys.executable, "-c", LINT], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    return result.returncode, re.sub(r"\x1b\[[0-9;]*m", "", result.stdout + result.stderr)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> str:
    """What import-linter says of a copy into which every forbidden import was planted."""
    root = tmp_path_factory.mktemp("planted")
    shutil.copy(ROOT / "pyproject.toml", root)
    for package in ("companion", "course"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for module, line in PLANTED.values():
        with (root / module).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    status, output = lint(root)
    assert status != 0, output
    return output


def test_every_import_contract_holds():
    status, output = lint(ROOT)
    assert status == 0, output


@pytest.mark.parametrize("contract", PLANTED)
def test_a_forbidden_import_breaks_its_contract(planted, contract):
    assert re.search(rf"^{re.escape(contract)}.* BROKEN$", planted, re.MULTILINE), planted


def test_every_contract_has_a_planted_import(planted):
    assert planted.count(" BROKEN") == len(PLANTED)
    assert " KEPT" not in planted
