"""Execute chapters into their committed notebooks, byte for byte the same when nothing changed.

Nothing is written before a chapter has run to its end: its notebook and its live graphs are made in a temporary folder
and then renamed into place. What chance or the machine put in (widget ids, the Python version) is taken out.
"""

import base64
import io
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from PIL import Image
from tqdm import tqdm

from course.chapters import Chapter, Course, CourseError
from course.files import contents, replace_folder, write_atomic
from course.notebooks import label, output_problems, output_text, read_notebook, read_source
from course.tolerance import Tolerance, compare, largest_change

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
PNG = "image/png"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
ANSI = re.compile(r"\x1b\[[0-9;]*m")
CELL_TIMEOUT = 900
PYTHON = {  # what a kernel says of its language, without the version
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}


@dataclass(frozen=True)
class Report:
    """What one execution cost and changed."""

    chapter: Chapter
    seconds: float
    processor_seconds: float
    memory_gb: float
    allowed_seconds: float
    allowed_memory_gb: float
    changes: tuple[str, ...]

    @property
    def exceeded(self) -> list[str]:
        """Which declared budgets the execution broke."""
        found = []
        if self.seconds > self.allowed_seconds:
            found.append(f"{self.seconds:.0f} s are more than the declared {self.allowed_seconds:g} s")
        if self.memory_gb > self.allowed_memory_gb:
            found.append(f"{self.memory_gb:.2f} GB are more than the declared {self.allowed_memory_gb:g} GB")
        return found

    def __str__(self) -> str:
        changed = f"{len(self.changes)} changed" if self.changes else "nothing changed"
        lines = [
            f"{self.chapter.slug:26} {self.seconds:6.1f} s of {self.allowed_seconds:g} "
            f"({self.processor_seconds:.1f} s of processor), "
            f"{self.memory_gb:.2f} GB of {self.allowed_memory_gb:g}, {changed}"
        ]
        lines += [f"    {change}" for change in self.changes]
        lines += [f"    warning: {problem}" for problem in self.exceeded]
        return "\n".join(lines)


def run_chapter(course: Course, chapter: Chapter) -> Report:
    """Executes one chapter and puts its notebook and live graphs in place.

    Raises:
        CourseError: The text is wrong, a cell failed, or an output may not be committed. The old files stay.
    """
    notebook, before = read_source(chapter), _previous(chapter)
    with tempfile.TemporaryDirectory(prefix="course-run-", ignore_cleanup_errors=True) as scratch:
        live = Path(scratch) / "live"
        live.mkdir()
        start = time.perf_counter()
        usage = _execute(notebook, chapter, live, Path(scratch))
        seconds = time.perf_counter() - start
        notebook.metadata["live_figures"] = sorted(path.name for path in live.iterdir() if path.is_dir())
        text = serialize(notebook, course.root)
        _refuse_uncommittable(nbformat.reads(text, as_version=4), chapter)
        changes = _changes(before, nbformat.reads(text, as_version=4))
        changes += _publish_graphs(course, chapter, live, before)
        write_atomic(chapter.notebook, text)
    budget = notebook.metadata["companion"]
    return Report(
        chapter,
        seconds,
        usage.processor_seconds,
        usage.memory_gb,
        budget["seconds"],
        budget["memory_gb"],
        tuple(changes),
    )


def _previous(chapter: Chapter) -> NotebookNode | None:
    """The committed notebook, or None where it is missing or broken: this run mends it."""
    try:
        return read_notebook(chapter)
    except CourseError:
        return None


class _ThisPython(KernelSpecManager):
    """Finds the kernel of the running interpreter, whatever kernels the user has installed."""

    def get_kernel_spec(self, kernel_name: str):
        return self.kernel_spec_class(resource_dir=RESOURCES, **get_kernel_dict())


def _execute(notebook: NotebookNode, chapter: Chapter, live: Path, scratch: Path) -> "Usage":
    """Runs all cells in a fresh kernel and fills in their outputs."""
    begun: list[NotebookNode] = []
    code = sum(cell.cell_type == "code" for cell in notebook.cells)
    with tqdm(total=code, desc=chapter.slug, unit="cell", disable=None, leave=False) as bar, ExitStack() as stack:
        client = NotebookClient(
            notebook,
            km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=_ThisPython()),
            timeout=CELL_TIMEOUT,
            record_timing=False,
            store_widget_state=True,
            coalesce_streams=True,
            resources={"metadata": {"path": str(chapter.source.parent)}},
            on_cell_start=lambda cell, **_: begun.append(cell) or bar.set_postfix_str(cell.metadata.get("name", "")),
            on_cell_executed=lambda **_: bar.update(),
        )
        log = stack.enter_context((scratch / "kernel.log").open("w"))
        environment = kernel_environment(live, scratch)
        try:
            stack.enter_context(client.setup_kernel(env=environment, stderr=log, cleanup_kc=True))
            with measured(client.km.provisioner.pid) as usage:
                for index, cell in enumerate(notebook.cells):
                    client.execute_cell(cell, index)
                client.set_widgets_metadata()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            raise CourseError(f"{chapter.slug}: {_failure(error, begun, scratch / 'kernel.log')}") from error
    notebook.metadata["language_info"] = PYTHON
    return usage


def kernel_environment(live: Path, scratch: Path) -> dict[str, str]:
    """The environment of the kernel: one thread, the CPU, no profile of the user, and where live graphs go."""
    fixed = {
        "COMPANION_LIVE": str(live),
        "IPYTHONDIR": str(scratch / "ipython"),
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    theirs = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # pictures stay inline
    return {"COMPANION_DEVICE": "cpu"} | theirs | fixed


def _failure(error: Exception, begun: list[NotebookNode], log: Path) -> str:
    """Says which cell failed, and how."""
    where = label(begun[-1]) if begun else "the kernel"
    if isinstance(error, CellTimeoutError):
        return f"{where} ran for more than {CELL_TIMEOUT} s and was stopped"
    if isinstance(error, CellExecutionError):
        trace = [line for output in begun[-1].outputs if output.output_type == "error" for line in output.traceback]
        return f"{where} failed\n" + ANSI.sub("", "\n".join(trace) or str(error))
    told = [
        line
        for line in log.read_text(errors="replace").splitlines()
        if "WARNING | Kernel is running over TCP" not in line
    ]
    return "\n".join([f"{where} ended the kernel (out of memory?)", *told[-10:]])


@dataclass
class Usage:
    """What a process and its children took: the largest resident memory, and processor time."""

    memory_bytes: int = 0
    processor_seconds: float = 0.0

    @property
    def memory_gb(self) -> float:
        """The largest resident memory in 10⁹ bytes."""
        return self.memory_bytes / 1e9

    def sample(self, process: psutil.Process) -> None:
        """Looks once at the process and its children."""
        memory = seconds = 0
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):
                memory += each.memory_info().rss
                seconds += sum(each.cpu_times()[:2])
        self.memory_bytes = max(self.memory_bytes, memory)
        self.processor_seconds = max(self.processor_seconds, seconds)


@contextmanager
def measured(pid: int, every: float = 0.05) -> Iterator[Usage]:
    """Samples a process while the block runs."""
    usage, stop = Usage(), threading.Event()

    def watch() -> None:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            while not stop.wait(every):
                usage.sample(process)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        stop.set()
        thread.join()


def serialize(notebook: NotebookNode, root: Path) -> str:
    """The text of an executed notebook, the same for every execution that gave the same outputs."""
    plain = json.loads(nbformat.writes(notebook))
    for cell in plain["cells"]:
        cell["metadata"].pop("execution", None)
        for output in cell.get("outputs", []):
            output.pop("transient", None)
            if PNG in output.get("data", {}):
                output["data"][PNG] = smaller_picture(output["data"][PNG])
            if output["output_type"] == "error":
                output["traceback"] = [_clean_traceback(line, root) for line in output["traceback"]]
    _renumber_widgets(plain)
    plain = json.loads(json.dumps(plain, sort_keys=True))
    if "companion" in plain["metadata"]:  # in the author's order: JupyterLab would save the sorted one into the text
        plain["metadata"]["companion"] = json.loads(json.dumps(notebook.metadata["companion"]))
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def smaller_picture(encoded: str) -> str:
    """An opaque PNG in 256 colors, a third of the bytes: a plot has few colors. Base64 in and out."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    if "A" in picture.getbands() and picture.getchannel("A").getextrema()[0] < 255:
        return encoded
    small = io.BytesIO()
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return min(base64.b64encode(small.getvalue()).decode(), encoded, key=len)


def _clean_traceback(text: str, root: Path) -> str:
    """Takes the machine's folders out of a traceback: only the path inside the course or the library stays."""
    text = ANSI.sub("", text).replace(f"{root.as_posix()}/", "")
    text = re.sub(r"\S*/site-packages/", "", text)
    text = re.sub(r"\S*/ipykernel_\d+/\d+\.py", "cell", text)
    return re.sub(r"0x[0-9a-f]{6,}", "0x…", text)


def _renumber_widgets(plain: dict) -> None:
    """Replaces the random model ids of widgets by numbers, in the order in which a reader meets them."""
    state = plain["metadata"].get("widgets", {}).get(WIDGET_STATE, {}).get("state")
    if not state:
        plain["metadata"].pop("widgets", None)
        return
    views = [
        output["data"][WIDGET_VIEW]["model_id"]
        for cell in plain["cells"]
        for output in cell.get("outputs", [])
        if WIDGET_VIEW in output.get("data", {})
    ]
    order = _reachable(views, state)
    rest = sorted(
        state.keys() - set(order), key=lambda model: _without_ids(json.dumps(state[model], sort_keys=True), state)
    )
    order += [model for model in _reachable(rest, state) if model not in order]
    new = {old: f"{number:032x}" for number, old in enumerate(order, start=1)}
    pattern = re.compile("|".join(map(re.escape, new)))
    for part in ("cells", "metadata"):
        plain[part] = json.loads(pattern.sub(lambda match: new[match[0]], json.dumps(plain[part])))


def _reachable(models: list[str], state: dict) -> list[str]:
    """The models and all they refer to, depth first, each once."""
    order, waiting = [], list(reversed(models))
    while waiting:
        model = waiting.pop()
        if model in state and model not in order:
            order.append(model)
            waiting += reversed(re.findall(r"IPY_MODEL_([0-9a-f]+)", json.dumps(state[model], sort_keys=True)))
    return order


def _without_ids(text: str, state: dict) -> str:
    return re.sub("|".join(map(re.escape, state)), "", text)


def _refuse_uncommittable(notebook: NotebookNode, chapter: Chapter) -> None:
    problems = [
        f"{chapter.slug}: {label(cell)} {problem}"
        for cell in notebook.cells
        if cell.cell_type == "code"
        for problem in output_problems(cell)
    ]
    if problems:
        raise CourseError("\n".join(problems))
    nbformat.validate(notebook)


def _publish_graphs(course: Course, chapter: Chapter, live: Path, before: NotebookNode | None) -> list[str]:
    """Moves the graphs that the chapter wrote into the book; drops those of figures that it no longer has."""
    changes = []
    for folder in sorted(path for path in live.iterdir() if path.is_dir()):
        changed = replace_folder(folder, course.live / folder.name)
        changes += [f"live figure {folder.name}: {name} changed" for name in changed]
    others = {
        name
        for other in course.chapters()
        if other != chapter and (notebook := _previous(other))
        for name in notebook.metadata.get("live_figures", [])
    }
    gone = (
        set(before.metadata.get("live_figures", []) if before else []) - {path.name for path in live.iterdir()} - others
    )
    for name in sorted(gone):
        if contents(course.live / name):
            shutil.rmtree(course.live / name)
            changes.append(f"live figure {name}: removed, no chapter shows it")
    return changes


def _changes(before: NotebookNode | None, after: NotebookNode) -> list[str]:
    """Says which outputs changed, and by how much."""
    if before is None:
        return ["the notebook is new"]
    chapter_tolerance = after.metadata["companion"]["tolerance"]
    old = {cell.get("id"): cell for cell in before.cells if cell.cell_type == "code"}
    changes = [f"cell {name}: gone" for name in old.keys() - {cell.id for cell in after.cells}]
    for cell in after.cells:
        if cell.cell_type != "code":
            continue
        if cell.id not in old:
            changes.append(f"{label(cell)}: new")
        elif text := _output_change(
            old[cell.id], cell, Tolerance.read(chapter_tolerance, cell.metadata.get("tolerance"))
        ):
            changes.append(f"{label(cell)}: {text}")
    if not changes and _texts(before) != _texts(after):
        changes.append("only text or the front matter")
    return changes


def _texts(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells] + [json.dumps(notebook.metadata.get("companion"), sort_keys=True)]


def _output_change(before: NotebookNode, after: NotebookNode, tolerance: Tolerance) -> str | None:
    """Describes how the outputs of one cell changed."""
    if json.dumps(before.outputs, sort_keys=True) == json.dumps(after.outputs, sort_keys=True):
        return None
    old, new = ("\n".join(map(output_text, cell.outputs)) for cell in (before, after))
    if old == new:
        return "the picture changed"
    verdict = "beyond its tolerance" if compare(old, new, tolerance) else "within its tolerance"
    if (moved := largest_change(old, new)) is None:
        return "the printed text changed"
    return f"numbers moved by at most {moved[0]:.2g} (relative {moved[1]:.2g}), {verdict}"
