"""A newer chapter is merged into a student's copy by the names of its cells; no answer is lost."""

import nbformat
import pytest
from nbformat import NotebookNode

from course.merging import CHANGED, REMOVED, blank, merge


def notebook(**cells: str) -> NotebookNode:
    """A chapter: code cells by name; those whose name begins with text are Markdown."""
    made = []
    for name, source in cells.items():
        text = name.startswith("text")
        cell = (
            nbformat.v4.new_markdown_cell(source)
            if text
            else nbformat.v4.new_code_cell(source, metadata={"name": name})
        )
        cell["id"] = name
        made.append(cell)
    return nbformat.v4.new_notebook(cells=made, metadata={"companion": {"minutes": len(made)}})


def own(source: str) -> NotebookNode:
    """A cell that the student added."""
    return nbformat.v4.new_code_cell(source)


def sources(merged: NotebookNode) -> list[str]:
    """The texts of the cells, in order."""
    return [cell.source for cell in merged.cells]


BASE = notebook(text1="Hello", setup="import torch", answer="...", end="print(1)")


def edited(base: NotebookNode = BASE, **changes: str) -> NotebookNode:
    """The student's copy with changed cells, each executed."""
    mine = blank(base)
    for cell in mine.cells:
        cell.source = changes.get(cell.id, cell.source)
        if cell.cell_type == "code":
            cell.outputs = [nbformat.v4.new_output("stream", text=f"ran {cell.id}")]
    return mine


def test_an_answer_stays_when_the_chapter_did_not_touch_its_cell():
    new = notebook(text1="Hello again", setup="import torch, math", answer="...", end="print(1)")
    merged = merge(BASE, edited(answer="mine"), new)
    assert sources(merged.notebook) == ["Hello again", "import torch, math", "mine", "print(1)"]
    assert merged.updated == ("text1", "setup")
    assert merged.conflicts == ()


def test_outputs_stay_with_cells_that_did_not_change_and_go_with_those_that_did():
    new = notebook(text1="Hello", setup="import math", answer="...", end="print(1)")
    cells = merge(BASE, edited(answer="mine"), new).notebook.cells
    assert [len(cell.outputs) for cell in cells[1:]] == [0, 1, 1]


def test_new_cells_come_in_at_their_place():
    new = notebook(text1="Hello", setup="import torch", extra="print(0)", answer="...", end="print(1)")
    merged = merge(BASE, edited(answer="mine"), new)
    assert sources(merged.notebook) == ["Hello", "import torch", "print(0)", "mine", "print(1)"]
    assert merged.added == ("extra",)


def test_own_cells_stay_after_the_cell_that_they_followed():
    mine = edited()
    mine.cells.insert(0, own("first"))
    mine.cells.insert(3, own("after setup"))
    mine.cells.insert(4, own("and more"))
    new = notebook(extra="print(0)", text1="Hello", end="print(1)", setup="import torch", answer="...")
    merged = merge(BASE, mine, new)
    assert sources(merged.notebook) == [
        "first",
        "print(0)",
        "Hello",
        "print(1)",
        "import torch",
        "after setup",
        "and more",
        "...",
    ]


def test_own_cells_stay_when_the_cell_they_followed_is_gone():
    mine = edited()
    mine.cells.insert(2, own("after setup"))
    merged = merge(BASE, mine, notebook(text1="Hello", answer="...", end="print(1)"))
    assert sources(merged.notebook) == ["Hello", "after setup", "...", "print(1)"]
    assert merged.dropped == ("setup",)


def test_where_both_changed_both_stay_the_students_last():
    new = notebook(text1="Hello", setup="import torch", answer="def f(x): ...", end="print(1)")
    merged = merge(BASE, edited(answer="mine"), new)
    assert sources(merged.notebook) == ["Hello", "import torch", CHANGED, "def f(x): ...", "mine", "print(1)"]
    assert merged.conflicts == ("answer",)
    assert merged.notebook.cells[3].id == "answer"


def test_a_conflict_is_merged_once_and_later_merges_keep_the_students_cell():
    second = notebook(text1="Hello", setup="import torch", answer="def f(x): ...", end="print(1)")
    third = notebook(text1="Hello", setup="import torch", answer="def f(x, y): ...", end="print(1)")
    once = merge(BASE, edited(answer="mine"), second).notebook
    assert sources(merge(second, once, second).notebook) == sources(once)
    twice = merge(second, once, third)
    assert sources(twice.notebook) == ["Hello", "import torch", CHANGED, "def f(x, y): ...", "mine", "print(1)"]
    assert twice.conflicts == ()


def test_the_same_change_on_both_sides_is_no_conflict():
    new = notebook(text1="Hello", setup="import math", answer="...", end="print(1)")
    merged = merge(BASE, edited(setup="import math"), new)
    assert sources(merged.notebook) == sources(new)
    assert merged.conflicts == ()


def test_a_removed_cell_goes_unless_the_student_changed_it():
    new = notebook(text1="Hello", end="print(1)")
    merged = merge(BASE, edited(answer="mine"), new)
    assert sources(merged.notebook) == ["Hello", REMOVED, "mine", "print(1)"]
    assert (merged.dropped, merged.kept) == (("setup",), ("answer",))
    assert merged.notebook.cells[2].metadata["tags"] == ["kept"]
    assert sources(merge(new, merged.notebook, new).notebook) == sources(merged.notebook)


def test_a_cell_that_the_student_deleted_stays_deleted_until_it_says_something_new():
    mine = edited()
    del mine.cells[3]
    assert sources(merge(BASE, mine, BASE).notebook) == ["Hello", "import torch", "..."]
    new = notebook(text1="Hello", setup="import torch", answer="...", end="print(2)")
    assert sources(merge(BASE, mine, new).notebook) == ["Hello", "import torch", "...", "print(2)"]


def test_without_a_base_whatever_differs_is_kept_on_both_sides():
    merged = merge(None, edited(answer="mine"), BASE)
    assert sources(merged.notebook) == ["Hello", "import torch", CHANGED, "...", "mine", "print(1)"]


def test_lost_ids_are_found_again_by_name_and_by_text():
    mine = edited(answer="mine")
    for index, cell in enumerate(mine.cells):
        cell["id"] = f"renewed-{index}"
    new = notebook(text1="Hello again", setup="import torch", answer="...", end="print(1)")
    assert sources(merge(BASE, mine, new).notebook) == ["Hello again", "import torch", "mine", "print(1)"]


def test_an_answer_whose_id_was_lost_is_still_known_by_its_name():
    mine = edited(answer="mine")
    mine.cells[2]["id"] = "renewed"
    new = notebook(text1="Hello", setup="import torch", answer="def f(x): ...", end="print(1)")
    assert merge(BASE, mine, new).conflicts == ("answer",)


def test_after_a_conflict_the_version_that_the_student_keeps_is_his_answer():
    second = notebook(text1="Hello", setup="import torch", answer="def f(x): ...", end="print(1)")
    third = notebook(text1="Hello", setup="import torch", answer="def f(x, y): ...", end="print(1)")
    settled = merge(BASE, edited(answer="mine"), second).notebook
    del settled.cells[2:4]  # the note and the chapter's version
    assert sources(merge(second, settled, second).notebook) == ["Hello", "import torch", "mine", "print(1)"]
    assert merge(second, settled, third).conflicts == ("answer",)


def test_a_copy_that_the_student_made_of_a_cell_is_his_own():
    mine = edited(answer="first try")
    twin = own("second try")
    twin.metadata["name"] = "answer"
    mine.cells.insert(3, twin)
    merged = merge(BASE, mine, BASE).notebook
    assert sources(merged) == ["Hello", "import torch", "first try", "second try", "print(1)"]


def test_a_cell_whose_kind_the_student_changed_is_kept_as_his():
    mine = edited()
    note = nbformat.v4.new_markdown_cell("my notes")
    note["id"] = "setup"
    mine.cells[1] = note
    merged = merge(BASE, mine, notebook(text1="Hello", setup="import math", answer="...", end="print(1)")).notebook
    assert "my notes" in sources(merged)
    assert "import math" in sources(merged)


@pytest.mark.parametrize(
    "new",
    [
        notebook(),
        notebook(other="1"),
        notebook(end="print(1)", answer="changed", setup="", text1="Hello"),
        notebook(text1="Other", setup="other", answer="other", end="other"),
    ],
)
def test_no_line_of_a_student_is_ever_lost_and_the_result_is_a_notebook(new):
    mine = edited(setup="my setup", answer="my answer")
    mine.cells.insert(2, own("my own"))
    mine.cells.append(own("my last"))
    for base in (BASE, None, notebook(text1="something else")):
        merged = merge(base, mine, new).notebook
        nbformat.validate(merged)
        assert {"my setup", "my answer", "my own", "my last"} <= set(sources(merged))
        assert len({cell.id for cell in merged.cells}) == len(merged.cells)


def test_the_chapters_front_matter_comes_in_and_the_students_stays():
    mine = edited()
    mine.metadata["widgets"] = {"state": 1}
    merged = merge(BASE, mine, notebook(text1="Hello")).notebook
    assert merged.metadata["companion"] == {"minutes": 1}
    assert merged.metadata["widgets"] == {"state": 1}
