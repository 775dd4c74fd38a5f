"""Collect by transplant: a student's answers, and nothing else, enter a fresh copy of the released notebook.

What a student sends is read as plain data: no schema, no conversion, whatever is not of the expected type is nothing.
A cell is recognised by the name in its nbgrader metadata, then by its id; where an editor lost both, by its text, its
first line or its place between recognised neighbours, where only one cell fits, and flagged. From a recognised cell
comes the text of an answer. Everything else stands as released; what differs is shown to a person as a flag.
"""

import copy
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import nbformat
from nbformat import NotebookNode

from course.homework.cleaning import clean_markdown, clean_text, hazard, plain
from course.homework.results import Flag

MOST_BYTES = 20 << 20  # of a notebook
MOST_BRACKETS = 1_000_000  # of its JSON: each can cost a hundred times its size in memory
MOST_CELLS = 2_000
MOST_CELL = 200_000  # bytes of a cell's text
MOST_OWN = 50
MOST_DIFF = 60  # characters of a line that is shown as evidence
MARKS = ("grade", "solution", "locked", "points", "task")  # what a student's copy must not change


@dataclass(eq=False)
class Cell:
    """One cell of a student's notebook, as plain data.

    Attributes:
        kind: `code`, `markdown` or something else.
        key: the released cell that it was recognised as.
        way: how, where neither name nor id told it.
    """

    kind: str
    text: str
    name: str = ""
    id: str = ""
    marks: dict[str, Any] = field(default_factory=dict)
    attachments: bool = False
    trusted: bool = False
    key: str | None = None
    way: str = ""


@dataclass
class Submission:
    """A student's notebook, as plain data: its cells, what it says of itself, and what was wrong with it."""

    cells: list[Cell] = field(default_factory=list)
    homework: dict[str, str] = field(default_factory=dict)
    language: str = ""
    flags: list[Flag] = field(default_factory=list)
    readable: bool = True


def transplant(released: NotebookNode, raw: bytes | None) -> tuple[NotebookNode, tuple[Flag, ...]]:
    """Puts the answers of a student's notebook into a fresh copy of the released one.

    Args:
        released: the notebook that this student was given (his own variant, where there are variants).
        raw: the file that came in; None if there is none.

    Returns:
        The notebook to grade (the untouched release where nothing can be read), and what a person should look at.
        Never raises for what a student sent.
    """
    fresh = _fresh(released)
    if raw is None:
        return fresh, (Flag("no notebook"),)
    try:
        return _transplant(released, read_submission(raw))
    except Exception as error:  # the last line of defence: one bad submission never stops the others
        return fresh, (Flag("collecting failed", evidence=plain(f"{type(error).__name__}: {error}")),)


def read_submission(raw: bytes) -> Submission:
    """Reads a notebook of any version, as far as it can be read."""
    submission = Submission()
    notebook = _parse(raw, submission)
    if not isinstance(notebook, dict):
        submission.readable = False
        return submission
    metadata = _dict(notebook.get("metadata"))
    submission.homework = {k: plain(v)[:100] for k, v in _dict(metadata.get("homework")).items() if _is_text(k, v)}
    submission.language = _text(_dict(metadata.get("language_info")).get("name")) or _text(
        _dict(metadata.get("kernelspec")).get("language")
    )
    cells = list(_raw_cells(notebook, submission))
    if len(cells) > MOST_CELLS:
        submission.flags.append(Flag("too many cells", evidence=f"{len(cells)}; the first {MOST_CELLS} were read"))
    submission.cells = [_cell(cell) for cell in cells[:MOST_CELLS] if isinstance(cell, dict)]
    if len(submission.cells) < min(len(cells), MOST_CELLS):
        submission.flags.append(Flag("damaged", evidence="some cells are no cells"))
    damaged = sum(1 for cell in cells[:MOST_CELLS] if isinstance(cell, dict) and not _has_source(cell))
    if damaged:
        submission.flags.append(Flag("damaged", evidence=f"{damaged} cells whose source is no text"))
    if any("\ufffd" in cell.text for cell in submission.cells):
        submission.flags.append(Flag("strange characters", evidence="replaced: null, control or broken characters"))
    return submission


def fit(released: NotebookNode | None, submission: Submission) -> int:
    """How many of the released notebook's cells a submission has, by name or id."""
    known = {cell.id for cell in released.cells} if released else set()
    return len(known & ({cell.name for cell in submission.cells} | {cell.id for cell in submission.cells}))


# ---------------------------------------------------------------------- from bytes to plain cells


def _parse(raw: bytes, submission: Submission) -> Any:
    if len(raw) > MOST_BYTES:
        submission.flags.append(Flag("too large", evidence=f"a notebook of {len(raw):,} bytes"))
        return None
    if not raw.strip():
        submission.flags.append(Flag("unreadable", evidence="an empty file"))
        return None
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = raw.decode("utf-16", errors="replace")
        submission.flags.append(Flag("not UTF-8", evidence="read as UTF-16"))
    else:
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = raw.decode("utf-8-sig", errors="replace")
            submission.flags.append(Flag("not UTF-8", evidence="characters that could not be read are replaced"))
    if text.count("[") + text.count("{") > MOST_BRACKETS:
        submission.flags.append(Flag("unreadable", evidence="more brackets than a notebook has"))
        return None
    try:
        # Numbers mean nothing here, and a long one takes quadratic time to read.
        return json.loads(text, parse_int=_number, parse_float=_number, parse_constant=str, strict=False)
    except (ValueError, RecursionError) as error:
        submission.flags.append(Flag("unreadable", evidence=plain(f"no JSON: {error}")))
        return None


def _number(digits: str) -> float | str:
    return float(digits) if len(digits) < 30 else digits[:30]


def _raw_cells(notebook: dict, submission: Submission) -> Iterable[Any]:
    if isinstance(notebook.get("cells"), list):
        return notebook["cells"]
    sheets = notebook.get("worksheets")
    if isinstance(sheets, list):
        submission.flags.append(Flag("old format", evidence="a notebook of version 3 or older"))
        lists = [_dict(sheet).get("cells") for sheet in sheets]
        return [cell for cells in lists if isinstance(cells, list) for cell in cells]
    submission.flags.append(Flag("unreadable", evidence="a notebook without a list of cells"))
    submission.readable = False
    return []


def _cell(raw: dict) -> Cell:
    metadata = _dict(raw.get("metadata"))
    marks = _dict(metadata.get("nbgrader"))
    return Cell(
        kind=_text(raw.get("cell_type")),
        text=clean_text(_source(raw)),
        name=_text(marks.get("grade_id")),
        id=_text(raw.get("id")),
        marks=marks,
        attachments=bool(raw.get("attachments")),
        trusted="trusted" in metadata,
    )


def _source(raw: dict) -> str:
    source = raw.get("source", raw.get("input"))
    if isinstance(source, list):
        return "".join(line for line in source if isinstance(line, str))
    return _text(source)


def _has_source(raw: dict) -> bool:
    source = raw.get("source", raw.get("input"))
    return isinstance(source, str) or (isinstance(source, list) and all(isinstance(line, str) for line in source))


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _is_text(*values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


# ---------------------------------------------------------------------- recognising cells


def _recognise(released: NotebookNode, cells: list[Cell]) -> None:
    """Gives each cell the key of the released cell that it is; None to a cell that the student added."""
    known = {cell.id: cell for cell in released.cells}
    for cell in cells:
        cell.key = next((name for name in (cell.name, cell.id) if name in known), None)
    _by_text(released, cells)
    answers = [cell for cell in released.cells if _is_answer(cell)]
    lines = Counter(_first_line(cell.source) for cell in answers)
    by_line = {_first_line(cell.source): cell.id for cell in answers if lines[_first_line(cell.source)] == 1}
    by_line.pop("", None)
    _by_trait(known, cells, "its first line", lambda cell: by_line.get(_first_line(cell.text)))
    _by_place(released, cells)


def _by_text(released: NotebookNode, cells: list[Cell]) -> None:
    """Recognises cells by their unchanged text; several of one text in their order, if none is lacking."""
    taken = {cell.key for cell in cells}
    lost, unknown = {}, {}
    for cell in released.cells:
        if cell.id not in taken and cell.source.strip():
            lost.setdefault((cell.cell_type, _same(cell.source)), []).append(cell.id)
    for cell in cells:
        if cell.key is None:
            unknown.setdefault((cell.kind, _same(cell.text)), []).append(cell)
    for text, keys in lost.items():
        if len(keys) == len(unknown.get(text, [])):
            for key, cell in zip(keys, unknown[text], strict=True):
                cell.key = key


def _by_trait(known: dict, cells: list[Cell], way: str, key_of: Callable[[Cell], str | None]) -> None:
    """Recognises cells by a trait that one lost cell of the release and one unknown cell share."""
    taken = {cell.key for cell in cells}
    wishes = [(cell, key_of(cell)) for cell in cells if cell.key is None]
    counts = Counter(key for _, key in wishes)
    for cell, key in wishes:
        if key is not None and key not in taken and counts[key] == 1 and cell.kind == known[key].cell_type:
            cell.key, cell.way = key, way


def _by_place(released: NotebookNode, cells: list[Cell]) -> None:
    """Recognises an answer as the only unknown cell of its kind between the recognised neighbours of its place."""
    places = {cell.key: index for index, cell in enumerate(cells) if cell.key is not None}
    order = [cell.id for cell in released.cells]
    for index, wanted in enumerate(released.cells):
        if wanted.id in places or not _is_answer(wanted):
            continue
        before = next((places[key] for key in reversed(order[:index]) if key in places), None)
        after = next((places[key] for key in order[index + 1 :] if key in places), None)
        if before is None and after is None:
            continue
        between = cells[(-1 if before is None else before) + 1 : len(cells) if after is None else after]
        fitting = [c for c in between if c.key is None and c.kind == wanted.cell_type and c.text.strip()]
        rivals = [
            key
            for key in _stretch(order, index, places)
            if _is_answer(_by_id(released, key)) and _by_id(released, key).cell_type == wanted.cell_type
        ]
        if len(fitting) == 1 and len(rivals) == 1:
            fitting[0].key, fitting[0].way = wanted.id, "its place"


def _stretch(order: list[str], index: int, places: dict) -> list[str]:
    """The released cells around `index` that nobody recognised, up to the recognised ones on both sides."""
    first, last = index, index
    while first > 0 and order[first - 1] not in places:
        first -= 1
    while last + 1 < len(order) and order[last + 1] not in places:
        last += 1
    return order[first : last + 1]


def _by_id(notebook: NotebookNode, key: str) -> NotebookNode:
    return next(cell for cell in notebook.cells if cell.id == key)


def _marks(cell: NotebookNode) -> dict:
    return cell.metadata.get("nbgrader", {})


def _is_answer(cell: NotebookNode) -> bool:
    return bool(_marks(cell).get("solution"))


def _same(text: str) -> str:
    """The text without what editors change by themselves."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


# ---------------------------------------------------------------------- the notebook that is graded


def _transplant(released: NotebookNode, submission: Submission) -> tuple[NotebookNode, tuple[Flag, ...]]:
    notebook, flags = _fresh(released), list(submission.flags)
    if not submission.readable:
        return notebook, tuple(flags)
    cells = submission.cells
    _recognise(released, cells)
    flags += _about_notebook(released, submission)
    standing, spare = {}, []
    for cell in notebook.cells:
        copies = [mine for mine in cells if mine.key == cell.id]
        if not copies:
            flags += [Flag("missing", cell.id)] if _marks(cell) else []
            continue
        standing[cell.id] = mine = _last_changed(copies, cell)
        if len(copies) > 1 and _marks(cell):
            flags.append(Flag("duplicated", cell.id, f"{len(copies)} copies; the last that was changed counts"))
        spare += [other for other in copies if other is not mine and _is_answer(cell) and _changed(other, cell)]
        flags += _about_cell(cell, mine)
        flags += _take(cell, mine) if _is_answer(cell) else _edited(cell, mine)
    flags += _reordered(released, cells, standing)
    flags += _add_own(notebook, cells, standing, spare)
    return notebook, tuple(flags)


def _fresh(released: NotebookNode) -> NotebookNode:
    notebook = copy.deepcopy(released)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return notebook


def _changed(mine: Cell, cell: NotebookNode) -> bool:
    return bool(mine.text.strip()) and _same(mine.text) != _same(cell.source)


def _last_changed(copies: list[Cell], cell: NotebookNode) -> Cell:
    changed = [mine for mine in copies if _changed(mine, cell)]
    return changed[-1] if changed else next((mine for mine in copies if mine.text.strip()), copies[0])


def _take(cell: NotebookNode, mine: Cell) -> list[Flag]:
    """Puts an answer into its cell."""
    flags = []
    if len(mine.text.encode()) > MOST_CELL:
        evidence = f"{len(mine.text):,} characters; rule: at most {MOST_CELL:,} bytes; left out"
        return [Flag("too long", cell.id, evidence)]
    if mine.way:
        flags.append(Flag(f"recognised by {mine.way}", cell.id, plain(_first_line(mine.text))[:MOST_DIFF]))
    if mine.attachments:
        flags.append(Flag("attachments dropped", cell.id, "a picture or file was pasted into this cell"))
    if cell.cell_type == "markdown":
        if harm := hazard(mine.text):
            flags.append(Flag("made inert", cell.id, harm))
        cell["source"] = mine.text if mine.text == cell.source else clean_markdown(mine.text)
    else:
        cell["source"] = mine.text
    return flags


def _edited(cell: NotebookNode, mine: Cell) -> list[Flag]:
    """A cell that was not to be changed: the release's text stands."""
    if _same(mine.text) == _same(cell.source):
        return []
    return [Flag("edited" if _marks(cell) else "edited text", cell.id, _difference(cell.source, mine.text))]


def _difference(was: str, now: str) -> str:
    """The first lines that went and came."""
    gone, come = was.splitlines(), now.splitlines()
    lines = [f"- {line}" for line in _without(gone, come)[:3]] + [f"+ {line}" for line in _without(come, gone)[:3]]
    return " | ".join(plain(line[: MOST_DIFF + 2]) for line in lines) or "the same lines in another order"


def _without(lines: list[str], others: list[str]) -> list[str]:
    others = {line.strip() for line in others} | {""}
    return [line for line in lines if line.strip() not in others]


def _about_cell(cell: NotebookNode, mine: Cell) -> list[Flag]:
    """Another type, points or marks in the student's copy; the release's count."""
    was = _marks(cell)
    changed = [
        f"{mark} {was.get(mark)} -> {_shown(mine.marks[mark])}"
        for mark in MARKS
        if was and mark in mine.marks and mine.marks[mark] != was.get(mark)
    ]
    flags = [Flag("edited metadata", cell.id, ", ".join(changed))] if changed else []
    if was and mine.kind != cell.cell_type:
        flags.append(Flag("retyped", cell.id, plain(f"{mine.kind[:20] or 'nothing'} in place of {cell.cell_type}")))
    return flags


def _shown(value: Any) -> str:
    """A value of metadata, for evidence: never deep, never long."""
    plainly = value is None or isinstance(value, str | float | bool)
    return plain(str(value))[:40] if plainly else f"a {type(value).__name__}"


def _about_notebook(released: NotebookNode, submission: Submission) -> list[Flag]:
    flags = []
    ours = released.metadata.get("homework", {})
    theirs = submission.homework.get("release", "")
    if theirs and ours.get("release") and theirs != ours["release"]:
        flags.append(Flag("other release", evidence=f"answers to {theirs} in place of {ours['release']}"))
    language = released.metadata.get("kernelspec", {}).get("language") or "python"
    if submission.language and submission.language.casefold() != language.casefold():
        flags.append(Flag("edited metadata", evidence=plain(f"language {submission.language[:40]}")))
    if any(cell.trusted for cell in submission.cells):
        flags.append(Flag("edited metadata", evidence="cells that call themselves trusted"))
    if not any(cell.key for cell in submission.cells):
        flags.append(Flag("no cell recognised", evidence=f"of {len(submission.cells)} cells"))
    return flags


def _reordered(released: NotebookNode, cells: list[Cell], standing: dict[str, Cell]) -> list[Flag]:
    order = {cell.id: index for index, cell in enumerate(released.cells)}
    placed = [cell.key for cell in cells if cell.key is not None and standing.get(cell.key) is cell]
    moved = [later for earlier, later in itertools.pairwise(placed) if order[later] < order[earlier]]
    return [Flag("reordered", moved[0], f"{len(moved)} cells stand before one that they followed")] if moved else []


# ---------------------------------------------------------------------- what the student added


def _add_own(notebook: NotebookNode, cells: list[Cell], standing: dict[str, Cell], spare: list[Cell]) -> list[Flag]:
    """Puts the student's own code cells before the recognised cell that follows them; they are code like answers.

    `spare` are changed copies of an answer other than the one that counts: an editor that splits a cell makes two
    with one name, and both halves are wanted.
    """
    known = {_same(cell.source) for cell in notebook.cells} | {""}
    own, texts, long = _own_cells(cells, standing, spare, known)
    kept = 0
    result, names = [], (f"own-{number}" for number in itertools.count(1))
    ids = {cell.id for cell in notebook.cells}
    for following in [*notebook.cells, None]:
        for mine in own.get(following.id if following else None, []):
            if (kept := kept + 1) <= MOST_OWN:
                name = next(name for name in names if name not in ids)
                result.append(nbformat.v4.new_code_cell(mine.text, id=name))
        result += [following] if following else []
    notebook.cells = result
    flags = [Flag("too long", evidence=f"own cells of more than {MOST_CELL:,} bytes: {long}; left out")] if long else []
    if kept:
        first = plain(_first_line(next(cell.source for cell in result if cell.id not in ids)))[:MOST_DIFF]
        dropped = f"; the first {MOST_OWN} kept" if kept > MOST_OWN else ""
        flags.append(Flag("own cells", evidence=f"{kept}{dropped}; the first: {first}"))
    if texts:
        lines = " | ".join(plain(_first_line(cell.text))[:MOST_DIFF] for cell in texts[:5])
        flags.append(Flag("own text", evidence=f"{len(texts)}; not taken over: {lines}"))
    if any(cell.attachments for cell in texts):
        flags.append(Flag("attachments dropped", evidence="a picture or file was pasted into a cell of his own"))
    return flags


def _own_cells(
    cells: list[Cell], standing: dict[str, Cell], spare: list[Cell], known: set[str]
) -> tuple[dict[str | None, list[Cell]], list[Cell], int]:
    """The student's own code by the recognised cell that follows it, his own texts, and how many were too long."""
    own, texts, long, following = {}, [], 0, None
    for cell in reversed(cells):
        if cell.key is not None and standing.get(cell.key) is cell:
            following = cell.key
            continue
        if (cell.key is not None and not any(cell is one for one in spare)) or _same(cell.text) in known:
            continue
        if cell.kind != "code":
            texts.insert(0, cell)
        elif len(cell.text.encode()) > MOST_CELL:
            long += 1
        else:
            own.setdefault(following, []).insert(0, cell)
    return own, texts, long
