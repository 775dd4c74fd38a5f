"""nbval under our comparison: each cell of a notebook passes or fails for the right reason."""

import re
import subprocess
import sys

import nbformat
import pytest

CELLS = {  # name: (source, committed outputs, options, passes, what the failure says)
    "equal": ("print('a', 1)", "a 1\n", {}, True, ""),
    "within": ("print(0.5004)", "0.5\n", {}, True, ""),
    "outside": ("print(0.51)", "0.5\n", {}, False, "0.5 became 0.51: it moved by 0.01, allowed is 0.0005"),
    "own-tolerance": ("print(0.51)", "0.5\n", {"tolerance": {"rtol": 0.1}}, True, ""),
    "integer": ("print(10001)", "10000\n", {}, False, "the integer 10000 became 10001"),
    "integer-allowed": ("print(10001)", "10000\n", {"tolerance": {"integers": True}}, True, ""),
    "nan": ("print(float('nan'))", "nan\n", {}, True, ""),
    "text": ("print('new 0.5')", "old 0.5\n", {}, False, "the text changed from 'old' to 'new'"),
    "nothing": ("pass", "0.5\n", {}, False, "the committed outputs are [stdout], the new ones are []"),
    "too-much": ("print(1)", None, {}, False, "the committed outputs are [], the new ones are [stdout]"),
    "stderr": ("import sys; print('oh', file=sys.stderr)", None, {}, False, "the new ones are [stderr]"),
    "result": ("0.5", {"text/plain": "0.50001"}, {}, True, ""),
    "result-gone": ("0.5;", {"text/plain": "0.5"}, {}, False, "the committed outputs are [text/plain]"),
    "html": (
        "from IPython.display import HTML; HTML('<b>0.9</b>')",
        {"text/html": "<b>0.5</b>", "text/plain": "<IPython.core.display.HTML object>"},
        {},
        False,
        "text/html, line 1",
    ),
    "picture": (
        "from IPython.display import Image, display; display(Image(data=b'\\x89PNG\\r\\n\\x1a\\n1234', format='png'))",
        {"image/png": "iVBORw0KGgo=", "text/plain": "<IPython.core.display.Image object>"},
        {},
        True,
        "",
    ),
    "picture-gone": ("pass", {"image/png": "iVBORw0KGgo="}, {}, False, "the committed outputs are [image/png]"),
    "error": ("1 / 0", None, {}, False, "ZeroDivisionError"),
    "skip": ("print(2)", "1\n", {"tags": ["nbval-skip"]}, False, "asks nbval to skip it"),
    "ignore": ("# NBVAL_IGNORE_OUTPUT\nprint(2)", "1\n", {}, False, "asks nbval to skip it"),
    "raises": ("raise ValueError('x 0.5')", ("ValueError", "x 0.5"), {"tags": ["raises-exception"]}, True, ""),
    "raises-other": (
        "raise ValueError('y')",
        ("ValueError", "x"),
        {"tags": ["raises-exception"]},
        False,
        "ValueError: x",
    ),
}


def committed(content) -> list:
    """The outputs of a committed cell."""
    if content is None:
        return []
    if isinstance(content, tuple):
        return [nbformat.v4.new_output("error", ename=content[0], evalue=content[1], traceback=[])]
    if isinstance(content, dict):
        return [nbformat.v4.new_output("display_data", data=content)]
    return [nbformat.v4.new_output("stream", name="stdout", text=content)]


def write(path, cells: dict) -> None:
    """Writes a notebook of named cells."""
    notebook = nbformat.v4.new_notebook(metadata={"companion": {"tolerance": {"rtol": 1e-3}}})
    for name, (source, outputs, options, *_) in cells.items():
        cell = nbformat.v4.new_code_cell(
            source, outputs=committed(outputs), execution_count=1, metadata={"name": name, **options}
        )
        notebook.cells.append(cell)
    nbformat.write(notebook, path)


def run(folder, *arguments: str) -> subprocess.CompletedProcess:
    """Runs pytest with the plugin in a folder of its own."""
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p course.nbval_tolerance -p no:cacheprovider\n")
    command = [sys.executable, "-m", "pytest", "--nbval", "-rA", "--color=no", *arguments, "."]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> str:
    """What pytest prints on the notebook of all cells above."""
    folder = tmp_path_factory.mktemp("nbval")
    write(folder / "cells.ipynb", CELLS)
    return run(folder).stdout


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_passes_or_fails_for_the_right_reason(outcome, name):
    passes, said = CELLS[name][3:]
    assert re.search(rf"^{'PASSED' if passes else 'FAILED'} cells\.ipynb::{name}\b", outcome, re.MULTILINE), outcome
    if not passes:
        section = outcome.split(f"cells.ipynb, cell {name}: ")[1].split("\n____")[0]
        assert said in section


def test_a_failure_shows_both_outputs_and_the_source(outcome):
    section = outcome.split("cells.ipynb, cell outside: ")[1].split("\n____")[0]
    assert "print(0.51)" in section
    assert "committed:\n    0.5\n" in section
    assert "new:\n    0.51" in section


def test_a_cell_that_was_never_executed_fails(tmp_path):
    write(tmp_path / "a.ipynb", {"one": ("print(1)", None, {})})
    text = (tmp_path / "a.ipynb").read_text().replace('"execution_count": 1', '"execution_count": null')
    (tmp_path / "a.ipynb").write_text(text)
    assert "the committed cell was never executed" in run(tmp_path).stdout


@pytest.mark.parametrize("mode", ["--nbval-lax", "--nbval-sanitize-with=x.cfg"])
def test_there_is_no_lax_mode(tmp_path, mode):
    result = run(tmp_path, mode)
    assert result.returncode == 4
    assert "outputs are compared strictly here" in result.stderr
