"""Merge a newer chapter into a student's copy, cell by cell, by name.

Three notebooks take part: `base`, the chapter as it was when the copy was made or last merged; `mine`, the student's
copy; `new`, the chapter of today. A cell is followed by its key, the id that `course run` gave it (the name of a code
cell, a digest of a text). What the student wrote is never dropped: where both changed one cell, both stay, the
chapter's first, so that the student's comes last and holds.
"""

import copy
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import nbformat
from nbformat import NotebookNode

CHANGED = (
    "**The chapter changed this cell, and so did you.** The chapter's new version stands first, yours after it. "
    "Move what you want to keep, then delete the rest and this note."
)
REMOVED = (
    "**The chapter no longer has the next cell.** It is kept because you changed it. Delete it, and this note, "
    "when you no longer want it."
)


@dataclass(frozen=True)
class Merge:
    """A merged notebook and what happened to its cells."""

    notebook: NotebookNode
    updated: tuple[str, ...]
    added: tuple[str, ...]
    dropped: tuple[str, ...]
    conflicts: tuple[str, ...]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        parts = [
            ("updated", self.updated),
            ("new", self.added),
            ("gone", self.dropped),
            ("changed on both sides, both kept", self.conflicts),
            ("gone from the chapter, yours kept", self.kept),
        ]
        return "; ".join(f"{len(names)} {what}" for what, names in parts if names) or "nothing to do"


def blank(chapter: NotebookNode) -> NotebookNode:
    """A chapter as a student first gets it: no outputs, no state of widgets."""
    notebook = copy.deepcopy(chapter)
    for key in ("widgets", "live_figures"):
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return notebook


def merge(base: NotebookNode | None, mine: NotebookNode, new: NotebookNode) -> Merge:
    """Merges `new` into `mine`; without a `base`, every cell that differs counts as changed on both sides."""
    new = blank(new)
    was = {cell.id: cell for cell in base.cells} if base else {}
    now = {cell.id: cell for cell in new.cells}
    keys = match(mine.cells, was, now)
    ours = {key: cell for key, cell in zip(keys, mine.cells, strict=True) if key}
    merged, log = [], {name: [] for name in ("updated", "added", "dropped", "conflicts", "kept")}
    own = _own_cells(mine.cells, keys, was, now, log)
    merged += own.get(None, [])
    for key, cell in now.items():
        merged += _merge_cell(key, was.get(key), ours.get(key), cell, log)
        merged += own.get(key, [])
    notebook = copy.deepcopy(mine)
    notebook.metadata = nbformat.from_dict({**mine.metadata, **new.metadata})
    notebook.nbformat, notebook.nbformat_minor = new.nbformat, max(new.nbformat_minor, 5)
    notebook.cells = _with_unique_ids(merged)
    return Merge(notebook, **{name: tuple(names) for name, names in log.items()})


def match(cells: Iterable[NotebookNode], was: dict, now: dict) -> list[str | None]:
    """Returns the key of each of the student's cells; None for one that he added.

    An id decides; where an editor lost or renewed it, the name of the cell; then its unchanged text. Each key is
    given once: a copy that the student made of a cell is his own.
    """
    cells, known = list(cells), {**now, **was}
    keys: list[str | None] = [None] * len(cells)
    by_text = {(cell.cell_type, cell.source): key for key, cell in known.items()}
    ways = (
        lambda cell: cell.get("id"),
        lambda cell: cell.metadata.get("name"),
        lambda cell: by_text.get((cell.cell_type, cell.source)) if cell.source.strip() else None,
    )
    for way in ways:
        for index, cell in enumerate(cells):
            key = way(cell)
            if keys[index] is None and key in known and key not in keys and known[key].cell_type == cell.cell_type:
                keys[index] = key
    return keys


def _merge_cell(
    key: str, was: NotebookNode | None, mine: NotebookNode | None, new: NotebookNode, log: dict
) -> list[NotebookNode]:
    """Returns what stands for one cell of the new chapter."""
    if mine is None:
        if was is not None and was.source == new.source:
            return []  # the student deleted it, and it says nothing new
        log["added"].append(key)
        return [new]
    if mine.source == new.source:
        return [_renewed(mine, new)]
    if was is not None and was.source == new.source:
        return [_renewed(mine, new)]  # only the student changed it
    if was is not None and mine.source == was.source:
        log["updated"].append(key)
        return [new]  # only the chapter changed it
    log["conflicts"].append(key)
    return [_note(CHANGED, key), new, _as_own(mine, key)]


def _own_cells(cells: list[NotebookNode], keys: list[str | None], was: dict, now: dict, log: dict) -> dict:
    """The cells that only the student has, by the surviving chapter cell that they follow."""
    own, anchor = {}, None
    for key, cell in zip(keys, cells, strict=True):
        if key in now:
            anchor = key
        elif key is None:
            own.setdefault(anchor, []).append(cell)
        elif cell.source == was[key].source:
            log["dropped"].append(key)
        else:
            log["kept"].append(key)
            own.setdefault(anchor, []).extend([_note(REMOVED, key), _as_own(cell, key)])
    return own


def _renewed(mine: NotebookNode, new: NotebookNode) -> NotebookNode:
    """The student's cell, text and outputs, under the chapter's id and metadata."""
    cell = copy.deepcopy(mine)
    cell["id"] = new.id
    cell.metadata = nbformat.from_dict({**mine.metadata, **new.metadata})
    return cell


def _as_own(mine: NotebookNode, key: str) -> NotebookNode:
    """The student's version of a cell under an id of its own; its name stays, for when he deletes the chapter's."""
    cell = copy.deepcopy(mine)
    cell["id"] = f"{key[:40]}-mine-{_digest(mine.source)}"
    cell.metadata["tags"] = sorted({*cell.metadata.get("tags", []), "kept"})
    return cell


def _note(text: str, key: str) -> NotebookNode:
    cell = nbformat.v4.new_markdown_cell(text)
    cell["id"] = f"{key[:40]}-note-{_digest(text)}"
    return cell


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _with_unique_ids(cells: list[NotebookNode]) -> list[NotebookNode]:
    """Gives later cells of the same id another one, as the format asks; the chapter's cells keep theirs."""
    seen, result = set(), []
    for cell in cells:
        wish = name = cell.get("id") or f"own-{_digest(cell.source)}"
        count = 1
        while name in seen:
            count += 1
            name = f"{wish[:58]}-{count}"
        seen.add(name)
        cell["id"] = name
        result.append(cell)
    return result
