"""A pytest plugin over nbval: run each notebook and hold every output to the committed one.

nbval runs the cells; this plugin compares. Printed numbers may move within the tolerance that the cell states
(`tolerance: {rtol:, atol:, integers:}`), else the chapter (`companion.tolerance`), else not at all; all other text
must be equal, and so must the number, order and kinds of the outputs. Pictures and widgets must be there; their
pixels and ids, which differ between machines, are not compared. There is no lax mode and no way to skip a cell.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from unittest import mock

import pytest
from nbval.plugin import IPyNbCell, IPyNbFile, NbCellError

from course.tolerance import Tolerance, compare

PRESENT_ONLY = ("image/png", "image/jpeg", "application/vnd.jupyter.widget-view+json")
FORBIDDEN = ("nbval_lax", "nbval_sanitize_with", "sanitize_with")


def pytest_configure(config: pytest.Config) -> None:
    """Refuses nbval's lax modes and runs the kernel of this interpreter."""
    if not config.pluginmanager.hasplugin("nbval"):
        return
    for option in FORBIDDEN:
        if getattr(config.option, option, None):
            raise pytest.UsageError(
                f"--{option.replace('_', '-')}: outputs are compared strictly here; state a tolerance"
            )
    config.option.nbval_current_env = not config.option.nbval_kernel_name


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path, parent):
    """Puts this plugin's comparison in the place of nbval's."""
    nodes = yield
    return [NotebookFile.from_parent(parent, path=file_path) if isinstance(node, IPyNbFile) else node for node in nodes]


class NotebookFile(IPyNbFile):
    """A notebook whose code cells are the tests, called by the names of the cells."""

    def collect(self) -> Iterator["NotebookCell"]:
        """Yields one test for each code cell."""
        for item in super().collect():
            name = item.cell.metadata.get("name") or f"Cell {item.cell_num}"
            yield NotebookCell.from_parent(
                self, name=name, cell_num=item.cell_num, cell=item.cell, options=item.options
            )

    def setup(self) -> None:
        """Starts the kernel, with no profile of the user, and nowhere to export graphs to."""
        self.profile = tempfile.TemporaryDirectory(prefix="course-nbval-", ignore_cleanup_errors=True)
        with mock.patch.dict(os.environ, {"IPYTHONDIR": self.profile.name, "PYTHONHASHSEED": "0"}):
            os.environ.pop("COMPANION_LIVE", None)
            super().setup()
        self.kernel.execute_cell_input = partial(_execute, self.kernel.kc)

    def teardown(self) -> None:
        """Stops the kernel, then removes its profile."""
        super().teardown()
        if profile := getattr(self, "profile", None):
            profile.cleanup()

    @property
    def tolerance(self) -> dict | None:
        """The tolerance of the chapter."""
        return self.nb.metadata.get("companion", {}).get("tolerance")


def _execute(client, source: str, allow_stdin: bool | None = None) -> str:
    """Executes as JupyterLab does. nbval keeps no history, and without it IPython overlooks a `;` that ends a cell."""
    return client.execute(source, store_history=True, allow_stdin=bool(allow_stdin), stop_on_error=False)


class NotebookCell(IPyNbCell):
    """One code cell: it runs without error and its outputs agree with the committed ones."""

    def runtest(self) -> None:
        """Runs the cell; nbval calls `compare_outputs`."""
        if self.options["skip"] or not self.options["check"]:
            self.raise_cell_error("a cell asks nbval to skip it or its outputs; state a tolerance instead")
        if self.cell.execution_count is None and self.cell.source.strip():
            self.raise_cell_error("the committed cell was never executed: run `course run`")
        super().runtest()

    def compare_outputs(self, test, ref, skip_compare=None) -> bool:
        """Whether new outputs agree with the committed ones; where not, says why in `comparison_traceback`."""
        del skip_compare  # nbval's list of what it leaves out: nothing but pixels and ids is left out here
        tolerance = Tolerance.read(self.parent.tolerance, self.cell.metadata.get("tolerance"))
        self.comparison_traceback = _disagreements(_parts(ref), _parts(test), tolerance)
        return not self.comparison_traceback

    def reportinfo(self):
        """The notebook and the name of the cell."""
        return self.path, 0, f"{self.path.name}::{self.name}"

    def repr_failure(self, excinfo):
        """The cell, its source, and what went wrong."""
        if not isinstance(excinfo.value, NbCellError):
            return super(IPyNbCell, self).repr_failure(excinfo)
        error = excinfo.value
        source = "\n".join(f"    {line}" for line in error.source.splitlines())
        return f"{self.path.name}, cell {self.name}: {error}\n\n{source}\n\n{error.inner_traceback or ''}"


def _parts(outputs) -> list[tuple[str, str]]:
    """Flattens outputs into (kind, text): the name of a stream, a MIME type, or an error."""
    parts = []
    for output in outputs:
        if output.output_type == "stream":
            parts.append((output.name, output.text))
        elif output.output_type == "error":
            parts.append(("error", f"{output.ename}: {output.evalue}"))
        else:
            parts += [(kind, _readable(kind, content)) for kind, content in sorted(output.data.items())]
    return parts


def _readable(kind: str, content) -> str:
    if kind in PRESENT_ONLY:
        return ""
    return content if isinstance(content, str) else json.dumps(content, sort_keys=True, indent=1)


def _disagreements(reference: list[tuple[str, str]], new: list[tuple[str, str]], tolerance: Tolerance) -> list[str]:
    """Describes each output that disagrees, with both texts."""
    old_kinds, new_kinds = [kind for kind, _ in reference], [kind for kind, _ in new]
    if old_kinds != new_kinds:
        extra = "".join(f"\nnew {kind}:\n{_indent(text)}" for kind, text in new if kind not in old_kinds)
        return [f"the committed outputs are [{', '.join(old_kinds)}], the new ones are [{', '.join(new_kinds)}]{extra}"]
    problems = []
    for (kind, old), (_, fresh) in zip(reference, new, strict=True):
        if difference := compare(old, fresh, tolerance):
            problems.append(f"{kind}, {difference}\n  committed:\n{_indent(old)}\n  new:\n{_indent(fresh)}")
    return problems


def _indent(text: str, longest: int = 4000) -> str:
    text = text if len(text) <= longest else text[:longest] + " …"
    return "\n".join(f"    {line}" for line in text.splitlines())
