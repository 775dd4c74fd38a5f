"""A chapter's two files: the MyST text that people write, the executed notebook that stands beside it.

Everything here is a function of the text alone: cell ids come from names and contents, not from positions or chance,
so that executing twice writes the same bytes and inserting a cell changes no other.
"""

import hashlib
import json
import re
from collections import Counter

import jupytext
import nbformat
import yaml
from nbformat import NotebookNode

from course.chapters import SLUG, Chapter, Course, CourseError
from course.tolerance import Tolerance

CELL_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
FRONT_MATTER = {
    "modules": list,
    "seconds": (int, float),
    "memory_gb": (int, float),
    "minutes": (int, float),
    "needs": list,
    "tolerance": dict,
}
KEPT_METADATA = ("name", "tags", "mystnb", "tolerance")
KEPT_NOTEBOOK_METADATA = ("companion", "kernelspec")
LONGEST_CELL = 15
SHOWN = 5  # so many differences of one chapter are named


def read_source(chapter: Chapter) -> NotebookNode:
    """Reads the text of a chapter as a notebook without outputs, with lasting cell ids.

    Raises:
        CourseError: The file is unreadable, or its front matter or a cell breaks a rule.
    """
    try:
        notebook = jupytext.reads(chapter.source.read_text(encoding="utf-8"), fmt="md:myst")
    except (OSError, UnicodeError, yaml.YAMLError, ValueError) as error:
        raise CourseError(f"{chapter.source.name}: received a file that cannot be read: {error}") from error
    notebook.metadata.pop("jupytext", None)
    if problems := [*front_matter_problems(notebook), *cell_problems(notebook)]:
        raise CourseError("\n".join(f"{chapter.source.name}: {problem}" for problem in problems))
    name_cells(notebook)
    return notebook


def read_notebook(chapter: Chapter) -> NotebookNode | None:
    """Reads the executed notebook of a chapter; None where there is none.

    Raises:
        CourseError: The file is no notebook.
    """
    if not chapter.notebook.is_file():
        return None
    try:
        return nbformat.read(chapter.notebook, as_version=4)
    except Exception as error:  # nbformat raises what its JSON and schema readers raise
        raise CourseError(f"{chapter.notebook.name}: received a file that is no notebook: {error}") from error


def name_cells(notebook: NotebookNode) -> None:
    """Gives each cell its lasting id: a code cell its name, another cell a digest of its text."""
    seen = Counter()
    for cell in notebook.cells:
        name = cell.metadata.get("name")
        base = name or f"text-{hashlib.sha256(cell.source.encode()).hexdigest()[:8]}"
        seen[base] += 1
        cell["id"] = base[:64] if seen[base] == 1 else f"{base[:60]}-{seen[base]}"


def front_matter_problems(notebook: NotebookNode) -> list[str]:
    """Says what is wrong with the `companion:` block of the front matter."""
    block = notebook.metadata.get("companion")
    if not isinstance(block, dict):
        return [f"front matter: received no 'companion:' block; rule: it states {', '.join(FRONT_MATTER)}"]
    problems = [
        f"front matter: received no '{key}'; rule: companion states {', '.join(FRONT_MATTER)}"
        for key in FRONT_MATTER
        if key not in block
    ]
    problems += [
        f"front matter: received the unknown '{key}'; rule: companion states {', '.join(FRONT_MATTER)}"
        for key in block
        if key not in FRONT_MATTER
    ]
    for key, kind in FRONT_MATTER.items():
        if key in block and (not isinstance(block[key], kind) or isinstance(block[key], bool)):
            problems.append(f"front matter: received {key}: {block[key]!r}; rule: a {_kind_name(kind)}")
        elif key in block and kind == (int, float) and not block[key] > 0:
            problems.append(f"front matter: received {key}: {block[key]!r}; rule: more than 0")
    if isinstance(block.get("tolerance"), dict):
        problems += _tolerance_problems(block["tolerance"])
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        problems.append("front matter: received no kernelspec named python3; rule: display_name, language, name")
    return problems


def cell_problems(notebook: NotebookNode) -> list[str]:
    """Says which cells break a rule: a unique name, at most fifteen lines, a readable tolerance."""
    problems, names = [], Counter(cell.metadata.get("name") for cell in notebook.cells if cell.cell_type == "code")
    for number, cell in enumerate(notebook.cells, start=1):
        where = f"cell {cell.metadata.get('name') or number}"
        if cell.cell_type != "code":
            if "{code-cell}" in cell.source:
                problems.append(
                    f"{where}: received a code-cell inside another block, where it never runs; rule: on its own"
                )
            continue
        name = cell.metadata.get("name")
        if not isinstance(name, str) or not CELL_NAME.fullmatch(name) or len(name) > 60:
            first = cell.source.strip().partition("\n")[0]
            problems.append(f"{where} ({first!r}): received name: {name!r}; rule: kebab-case, at most 60 characters")
        elif names[name] > 1:
            problems.append(f"{where}: received the name {names[name]} times; rule: once a chapter")
        if (lines := cell.source.count("\n") + 1) > LONGEST_CELL:
            problems.append(f"{where}: received {lines} lines; rule: at most {LONGEST_CELL}")
        if not isinstance(cell.metadata.get("tags", []), list):
            problems.append(f"{where}: received tags: {cell.metadata['tags']!r}; rule: a list")
        problems += [f"{where}: {problem}" for problem in _tolerance_problems(cell.metadata.get("tolerance"))]
    return problems


def _tolerance_problems(stated) -> list[str]:
    try:
        Tolerance.read(stated)
    except ValueError as error:
        return [str(error)]
    return []


def _kind_name(kind) -> str:
    return {list: "list", dict: "mapping"}.get(kind, "number")


def drift(source: NotebookNode, executed: NotebookNode) -> list[str]:
    """Says how an executed notebook departs from its text, without executing anything."""
    problems = []
    for key in KEPT_NOTEBOOK_METADATA:
        if _plain(source.metadata.get(key)) != _plain(executed.metadata.get(key)):
            problems.append(f"the front matter differs: {key}")
    ours, theirs = ({cell.get("id"): cell for cell in notebook.cells} for notebook in (source, executed))
    problems += [f"{label(cell)} is new in the text" for key, cell in ours.items() if key not in theirs]
    problems += [f"{label(cell)} is gone from the text" for key, cell in theirs.items() if key not in ours]
    for key in ours.keys() & theirs.keys():
        if _signature(ours[key]) != _signature(theirs[key]):
            problems.append(f"{label(ours[key])} was changed in the text")
    if not problems and [cell.id for cell in source.cells] != [cell.id for cell in executed.cells]:
        problems.append("the cells stand in another order")
    return problems + _unexecuted(executed)


def label(cell: NotebookNode) -> str:
    """How a message calls a cell: by name, or by its first words."""
    if cell.cell_type == "code":
        return f"cell {cell.get('id')}"
    return f"text {' '.join(cell.source.split())[:40]!r}"


def _signature(cell: NotebookNode) -> tuple:
    kept = {key: _plain(cell.metadata[key]) for key in KEPT_METADATA if key in cell.metadata}
    return cell.cell_type, cell.source, json.dumps(kept, sort_keys=True)


def _plain(value):
    return json.loads(json.dumps(value))


def _unexecuted(executed: NotebookNode) -> list[str]:
    """Says which cells of a committed notebook were not run, failed, or wrote to stderr."""
    problems = []
    for cell in executed.cells:
        if cell.cell_type != "code":
            continue
        if cell.execution_count is None and cell.source.strip():
            problems.append(f"{label(cell)} was never executed")
        problems += [f"{label(cell)} {problem}" for problem in output_problems(cell)]
    return problems


MACHINE = re.compile(
    r"0x[0-9a-f]{6,}|(?<![\w./])/(?:home|Users|root|tmp|work|usr|opt|private|var)/[\w.-]+|\b[A-Z]:\\\\?Users\\",
    re.IGNORECASE,
)


def output_problems(cell: NotebookNode) -> list[str]:
    """Says which outputs may not be committed: errors, stderr, and what only this machine prints."""
    problems, may_raise = [], "raises-exception" in cell.metadata.get("tags", [])
    for output in cell.get("outputs", []):
        if output.output_type == "error" and not may_raise:
            problems.append(f"raised {output.ename}: {output.evalue}")
        if output.output_type == "stream" and output.name == "stderr":
            problems.append(f"wrote to stderr: {output.text.strip()[:200]!r}")
        if found := MACHINE.search(output_text(output)):
            problems.append(f"printed {found[0]!r}, which differs on every machine; print something that does not")
    return problems


def output_text(output: NotebookNode) -> str:
    """The readable text of one output."""
    if output.output_type == "stream":
        return output.text
    if output.output_type == "error":
        return "\n".join(output.traceback)
    return "\n".join(str(output.data[kind]) for kind in sorted(output.data) if kind.startswith("text/"))


def check(course: Course, chapters: list[Chapter] | None = None) -> list[str]:
    """Compares texts, executed notebooks and live graphs without executing; returns what is wrong."""
    chosen = course.chapters() if chapters is None else chapters
    problems = [problem for chapter in chosen for problem in check_chapter(course, chapter)]
    if chapters is None:
        problems += stray_files(course) + number_problems(course) + stray_graphs(course)
    return problems


def check_chapter(course: Course, chapter: Chapter) -> list[str]:
    """Says what is wrong with one chapter's pair of files."""
    try:
        source = read_source(chapter)
        executed = read_notebook(chapter)
    except CourseError as error:
        return str(error).splitlines()
    problems = [f"{chapter.source.name}: {problem}" for problem in module_problems(course, source)]
    mend = f"run `course run {chapter.slug}`"
    if executed is None:
        return [*problems, f"{chapter.notebook.name}: received no such file beside {chapter.source.name}; {mend}"]
    stale = drift(source, executed)
    more = [f"{len(stale) - SHOWN} more differences"] if len(stale) > SHOWN else []
    problems += [f"{chapter.notebook.name}: stale: {problem}; {mend}" for problem in [*stale[:SHOWN], *more]]
    missing = [name for name in executed.metadata.get("live_figures", []) if not (course.live / name).is_dir()]
    return problems + [
        f"{chapter.notebook.name}: the graphs of the live figure {name} are missing; {mend}" for name in missing
    ]


def module_problems(course: Course, source: NotebookNode) -> list[str]:
    """Says which entries of `modules` name no module of companion."""
    problems = []
    for module in source.metadata["companion"]["modules"]:
        path = course.root / "companion" / str(module).replace(".", "/")
        if not path.with_suffix(".py").is_file() and not (path / "__init__.py").is_file():
            problems.append(f"front matter: received modules: {module}; rule: companion.{module} exists")
    return problems


def stray_files(course: Course) -> list[str]:
    """Says which files in notebooks/ are no chapter or lack their text."""
    problems = []
    for path in sorted(course.notebooks.iterdir()):
        if path.name.startswith(".") or path.is_dir() or path.name == "jupytext.toml":
            continue
        if path.suffix not in (".md", ".ipynb") or not SLUG.fullmatch(path.stem):
            problems.append(
                f"{path.name}: received a file that is no chapter; rule: notebooks/ holds NN-slug.md and NN-slug.ipynb"
            )
        elif path.suffix == ".ipynb" and not path.with_suffix(".md").is_file():
            problems.append(
                f"{path.name}: received a notebook without its text {path.stem}.md; rule: they stand in pairs"
            )
    return problems


def number_problems(course: Course) -> list[str]:
    """Says which chapters share a number or need a chapter by a wrong slug."""
    problems, by_number = [], {}
    for chapter in course.chapters():
        if (other := by_number.setdefault(chapter.number, chapter)) is not chapter:
            problems.append(f"{chapter.source.name}: received the number of {other.slug}; rule: one chapter a number")
    for chapter in course.chapters():
        notebook = read_notebook(chapter)
        for need in notebook.metadata.get("companion", {}).get("needs", []) if notebook else []:
            if SLUG.fullmatch(str(need)) and (known := by_number.get(int(need[:2]))) and known.slug != need:
                problems.append(f"{chapter.source.name}: received needs: {need}; rule: the slug is {known.slug}")
    return problems


def stray_graphs(course: Course) -> list[str]:
    """Says which folders of live graphs belong to no figure of a chapter."""
    if not course.live.is_dir():
        return []
    used = set()
    for chapter in course.chapters():
        notebook = read_notebook(chapter)
        used.update(notebook.metadata.get("live_figures", []) if notebook else [])
    found = {path.name for path in course.live.iterdir() if path.is_dir() and not path.name.startswith(".")}
    return [
        f"book/_static/live/{name}: received graphs that no chapter shows; rule: delete the folder or run its chapter"
        for name in sorted(found - used)
    ]
