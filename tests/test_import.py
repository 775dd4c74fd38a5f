"""What an import brings along: torch and nothing heavy."""

import json
import subprocess
import sys

import pytest

HEAVY = (
    "matplotlib",
    "scipy",
    "sklearn",
    "ot",
    "anywidget",
    "ipywidgets",
    "IPython",
    "pytest",
    "torch._dynamo",
    "onnx",
)


def loaded(code: str) -> set[str]:
    """The modules in memory after a fresh interpreter ran `code`."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(answer.stdout))


@pytest.fixture(scope="module")
def torch_alone():
    return loaded("import torch")


@pytest.mark.parametrize(
    "module",
    ["", ".device", ".data", ".nn", ".training", ".metrics", ".diagnostics", ".numerics.ode", ".numerics.transport"],
)
def test_importing_brings_nothing_heavy(module, torch_alone):
    new = loaded(f"import companion{module}") - torch_alone
    assert sorted(name for name in new if name in HEAVY or name.split(".")[0] in HEAVY) == []


def test_importing_the_package_alone_imports_no_room():
    assert [name for name in loaded("import companion") if name.startswith("companion.")] == []


def test_plotting_is_where_matplotlib_comes_in():
    assert "matplotlib" in loaded("import companion.plotting")
