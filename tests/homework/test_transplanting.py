"""Only answers enter the released notebook, whatever a student's notebook looks like."""

import copy
import json
import random

import nbformat
import pytest

from course.homework.transplanting import MOST_BRACKETS, MOST_BYTES, MOST_CELL, MOST_OWN, transplant
from tests.homework.handed_out import HIDDEN, SLUG, answered, cell_of, code, edited, raw, release, text, written

PATH, SPEED, WHY = "def path(x):\n    return x", "def speed(x):\n    return 1", "Because $a<b$."
ANSWERS = {"path": PATH, "speed": SPEED, "why": WHY}


def graded(data: bytes | None) -> tuple[dict[str, str], list[tuple[str, str]], nbformat.NotebookNode]:
    """The texts of the notebook to grade by id, its flags (kind, cell), and itself; always a valid notebook."""
    was = release()
    notebook, flags = transplant(was, data)
    assert was == release(), "the released notebook was changed"
    nbformat.validate(notebook)
    json.dumps([flag.evidence for flag in flags]).encode()
    nbformat.writes(notebook).encode("utf-8")
    assert all("\n" not in flag.evidence for flag in flags)
    return {c.id: c.source for c in notebook.cells}, [(flag.kind, flag.cell) for flag in flags], notebook


def trusted(texts: dict[str, str]) -> dict[str, str]:
    """All but answers and the student's own cells."""
    return {name: text for name, text in texts.items() if name not in ANSWERS and not name.startswith("own-")}


RELEASED = {cell.id: cell.source for cell in release().cells}
UNTOUCHED = trusted(RELEASED)


def test_answers_enter_and_nothing_is_flagged():
    texts, flags, notebook = graded(raw(answered(**ANSWERS)))
    assert texts == RELEASED | ANSWERS | {"why": "Because $a< b$."}
    assert flags == []
    assert notebook.metadata == release().metadata


def test_an_unanswered_notebook_is_the_release_without_a_flag():
    assert graded(raw(release()))[:2] == (RELEASED, [])


def test_no_notebook_is_the_release():
    assert graded(None)[:2] == (RELEASED, [("no notebook", "")])


NOT_NOTEBOOKS = {
    "empty": b"",
    "cut off": raw(answered(**ANSWERS))[:-9],
    "binary": bytes(range(256)),
    "list": b"[]",
    "null": b"null",
    "number": b"1",
    "no cells": b"{}",
    "cells a dict": b'{"cells": {}}',
    "cells a text": b'{"cells": "abc"}',
    "cells null": b'{"cells": null, "nbformat": 4}',
    "deep": b"[" * 100_000,
    "deep objects": b'{"cells":' * 50_000,
    "many brackets": b'{"cells": [' + b"[]," * MOST_BRACKETS + b"0]}",
    "zip": b"PK\3\4" + bytes(100),
    "page": b"<!DOCTYPE html><html></html>",
}


@pytest.mark.parametrize("name", NOT_NOTEBOOKS)
def test_what_is_no_notebook_is_the_release_and_told(name):
    texts, flags, _ = graded(NOT_NOTEBOOKS[name])
    assert texts == RELEASED
    assert ("unreadable", "") in flags or name in ("list", "null", "number")
    assert not any(kind == "collecting failed" for kind, _ in flags)


def test_a_notebook_that_is_too_large_is_not_read():
    data = raw(answered(**ANSWERS))
    assert graded(data + b" " * (MOST_BYTES - len(data)))[1] == []
    assert graded(data + b" " * (MOST_BYTES + 1 - len(data)))[:2] == (RELEASED, [("too large", "")])


ODD_CELLS = {
    "numbers": [1, 2.5, None, True, "text", [], [[]]],
    "no source": [{"cell_type": "code"}],
    "source a number": [{"cell_type": "code", "source": 5, "metadata": {}}],
    "source of odd lines": [{"cell_type": "code", "source": ["a", 1, None, ["b"]], "metadata": {}}],
    "metadata a list": [{"cell_type": "code", "source": "own = 1", "metadata": []}],
    "nbgrader a text": [{"cell_type": "code", "source": "own = 1", "metadata": {"nbgrader": "path"}}],
    "name a list": [{"cell_type": "code", "source": "own = 1", "metadata": {"nbgrader": {"grade_id": ["path"]}}}],
    "id a number": [{"cell_type": "code", "source": "own = 1", "id": 7, "metadata": {}}],
    "type a list": [{"cell_type": ["code"], "source": "own = 1", "id": "x"}],
    "outputs a text": [{"cell_type": "code", "source": "own = 1", "outputs": "x", "attachments": 3}],
}


@pytest.mark.parametrize("name", ODD_CELLS)
def test_odd_cells_do_not_harm_the_others(name):
    texts, flags, _ = graded(edited(lambda notebook: notebook.cells.extend(ODD_CELLS[name]), **ANSWERS))
    assert trusted(texts) == UNTOUCHED
    assert texts["path"] == PATH
    assert flags or name == "type a list"
    assert not any(kind == "collecting failed" for kind, _ in flags)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "1" * 10_000, "-" + "9" * 400_000, '"\\ud800"'])
def test_odd_values_of_json_do_not_harm(value):
    data = raw(answered(**ANSWERS)).decode().replace('"points": 2', f'"points": {value}', 1)
    texts, flags, _ = graded(data.encode())
    assert texts["path"] == PATH
    assert flags == [("edited metadata", "path-check")]


def test_lone_surrogates_and_null_bytes_are_replaced():
    notebook = raw(answered(path="a = 1\x00", speed="b = '\ud800'", why="c \u202e d"))
    texts, flags, _ = graded(notebook)
    assert (texts["path"], texts["speed"], texts["why"]) == ("a = 1\ufffd", "b = '\ufffd'", "c \ufffd d")
    assert flags == [("strange characters", "")]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_another_encoding_is_read_as_far_as_it_can_be(encoding):
    data = json.dumps(answered(path="x = 1  # é", speed=SPEED), ensure_ascii=False).encode(encoding)
    texts, flags, _ = graded(data)
    assert texts["path"] == "x = 1  # \ufffd"
    assert ("not UTF-8", "") in flags


def test_marks_of_byte_order_are_read():
    plain = json.dumps(answered(**ANSWERS))
    assert graded(plain.encode("utf-8-sig"))[1] == []
    assert graded(plain.encode("utf-16"))[0]["path"] == PATH
    assert graded(plain.encode("utf-16"))[1] == [("not UTF-8", "")]


def test_the_old_format_with_worksheets_is_read():
    cells = [
        {"cell_type": cell.cell_type, "metadata": cell.metadata}
        | {"input" if cell.cell_type == "code" else "source": cell.source.splitlines(keepends=True)}
        for cell in answered(**ANSWERS).cells
    ]
    texts, flags, _ = graded(raw({"nbformat": 3, "worksheets": [{"cells": cells}], "metadata": {}}))
    assert texts["path"] == PATH
    assert trusted(texts) == UNTOUCHED
    assert flags == [("old format", "")]


def test_an_older_minor_format_without_ids_is_read_silently():
    def older(notebook):
        notebook["nbformat_minor"] = 2
        for cell in notebook.cells:
            del cell["id"]

    texts, flags, _ = graded(edited(older, **ANSWERS))
    assert texts["speed"] == SPEED
    assert flags == []


def test_lost_names_are_recognised_by_id():
    def lose(notebook):
        for cell in notebook.cells:
            cell.metadata.clear()

    texts, flags, _ = graded(edited(lose, **ANSWERS))
    assert texts == RELEASED | ANSWERS | {"why": "Because $a< b$."}
    assert flags == []


def lose_all(notebook):
    """What an editor leaves that knows neither nbgrader nor ids."""
    for cell in notebook.cells:
        cell.metadata.clear()
        cell["id"] = f"{random.Random(cell.id).getrandbits(32):08x}"


def test_lost_names_and_ids_are_recognised_by_text_and_first_line():
    texts, flags, _ = graded(edited(lose_all, path=PATH, speed=SPEED))
    assert texts == RELEASED | {"path": PATH, "speed": SPEED}
    assert flags == [("recognised by its first line", "path"), ("recognised by its first line", "speed")]


def test_an_answer_with_another_first_line_is_recognised_by_its_place():
    texts, flags, _ = graded(edited(lose_all, path="path = lambda x: x", why="It follows."))
    assert texts == RELEASED | {"path": "path = lambda x: x", "why": "It follows."}
    assert flags == [("recognised by its place", "path"), ("recognised by its place", "why")]


def test_a_place_that_two_cells_could_have_is_not_guessed():
    def two(notebook):
        lose_all(notebook)
        index = next(i for i, cell in enumerate(notebook.cells) if cell.source.startswith("path ="))
        notebook.cells.insert(index, nbformat.v4.new_code_cell("path = None"))

    texts, flags, _ = graded(edited(two, path="path = lambda x: x"))
    assert texts["path"] == RELEASED["path"]
    assert ("missing", "path") in flags
    assert (texts["own-1"], texts["own-2"]) == ("path = None", "path = lambda x: x")


def test_two_cells_with_one_first_line_are_not_guessed():
    def two(notebook):
        lose_all(notebook)
        notebook.cells.append(nbformat.v4.new_code_cell("def path(x):\n    return 2"))

    texts, flags, _ = graded(edited(two, path=PATH))
    assert ("recognised by its first line", "path") not in flags
    assert ("recognised by its place", "path") in flags
    assert (texts["path"], texts["own-1"]) == (PATH, "def path(x):\n    return 2")


def test_the_last_changed_copy_wins_and_earlier_ones_run_before_it():
    def double(notebook):
        answer = cell_of(notebook, "path")
        index = notebook.cells.index(answer)
        for source in ("path = 2", "path = 3", RELEASED["path"], "  "):
            index += 1
            notebook.cells.insert(index, copy.deepcopy(answer) | {"source": source, "id": f"copy-{index}"})

    texts, flags, notebook = graded(edited(double, path="path = 1"))
    assert texts == RELEASED | {"path": "path = 3", "own-1": "path = 1", "own-2": "path = 2"}
    assert flags == [("duplicated", "path"), ("own cells", "")]
    assert [cell.id for cell in notebook.cells][4:7] == ["own-1", "own-2", "path"]


def test_a_copy_of_a_test_changes_nothing_and_is_flagged():
    def double(notebook):
        notebook.cells.append(copy.deepcopy(cell_of(notebook, "path-check")) | {"id": "again"})

    texts, flags, _ = graded(edited(double, **ANSWERS))
    assert trusted(texts) == UNTOUCHED
    assert flags == [("duplicated", "path-check")]


@pytest.mark.parametrize("name", ["setup", "variant", "path", "path-check", "path-hidden", "why"])
def test_a_deleted_cell_is_back_and_flagged(name):
    def delete(notebook):
        notebook.cells.remove(cell_of(notebook, name))

    texts, flags, _ = graded(edited(delete, **ANSWERS))
    assert texts[name] == RELEASED[name]
    assert flags == [("missing", name)]


@pytest.mark.parametrize("name", ["setup", "variant", "path-check", "path-hidden"])
def test_an_edited_locked_cell_stands_as_released_with_the_difference_as_evidence(name):
    _, flags = transplant(release(), raw(answered(**{name: RELEASED[name] + "\nassert True"})))
    assert [(flag.kind, flag.cell, flag.evidence) for flag in flags] == [("edited", name, "+ assert True")]
    assert trusted(graded(raw(answered(**{name: "assert True"})))[0]) == UNTOUCHED


def test_line_ends_and_trailing_blanks_are_no_edit():
    source = RELEASED["path-check"].replace("\n", "  \r\n") + "\n\n"
    assert graded(raw(answered(**{"path-check": source})))[:2] == (RELEASED, [])


def test_text_that_was_written_into_the_question_is_shown():
    _, flags = transplant(release(), raw(answered(**{"text-00000003": "Problem 2: the speed.\nIt is 1."})))
    assert [str(flag) for flag in flags] == ["edited text in text-00000003: + It is 1."]


@pytest.mark.parametrize(("mark", "value"), [("points", 100), ("grade", False), ("locked", False), ("task", True)])
def test_changed_marks_count_nothing_and_are_flagged(mark, value):
    def change(notebook):
        cell_of(notebook, "path-check").metadata.nbgrader[mark] = value

    _, flags, notebook = graded(edited(change))
    assert flags == [("edited metadata", "path-check")]
    assert cell_of(notebook, "path-check").metadata == cell_of(release(), "path-check").metadata


def test_a_deep_or_long_mark_is_shown_shortly():
    deep = json.loads("[" * 900 + "]" * 900)

    def change(notebook):
        cell_of(notebook, "path").metadata.nbgrader["locked"] = deep

    _, flags = transplant(release(), edited(change))
    assert [str(flag) for flag in flags] == ["edited metadata in path: locked False -> a list"]


def test_metadata_of_the_notebook_is_the_releases():
    def change(notebook):
        notebook.metadata = {"kernelspec": {"name": "evil", "language": "R"}, "trusted": True, "homework": {}}
        notebook.cells[0].metadata["trusted"] = True
        notebook.cells[4]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]

    _, flags, notebook = graded(edited(change))
    assert notebook.metadata == release().metadata
    assert flags == [("edited metadata", ""), ("edited metadata", "")]
    assert all(cell.outputs == [] for cell in notebook.cells if cell.cell_type == "code")


def test_answers_to_an_older_release_are_flagged():
    def change(notebook):
        notebook.metadata.homework["release"] = "aaa"

    assert graded(edited(change))[1] == [("other release", "")]


@pytest.mark.parametrize("kind", ["markdown", "raw", "", "nonsense"])
@pytest.mark.parametrize("name", ["path", "path-check"])
def test_a_retyped_cell_has_its_type_back(name, kind):
    def change(notebook):
        cell_of(notebook, name)["cell_type"] = kind

    texts, flags, notebook = graded(edited(change, **ANSWERS))
    assert flags == [("retyped", name)]
    assert cell_of(notebook, name).cell_type == "code"
    assert texts["path"] == PATH


def test_reordered_cells_are_in_their_places_again():
    def shuffle(notebook):
        random.Random(0).shuffle(notebook.cells)

    texts, flags, notebook = graded(edited(shuffle, **ANSWERS))
    assert list(texts) == list(RELEASED)
    assert [kind for kind, _ in flags] == ["reordered"]
    assert texts["path"] == PATH
    assert notebook.cells[0] == release().cells[0]


def test_own_cells_stand_before_the_next_known_cell_without_marks():
    def add(notebook):
        notebook.cells.insert(9, nbformat.v4.new_code_cell("helper = 1"))
        notebook.cells.insert(9, code("speed-hidden-2", "helper = 0", grade=True, points=9))
        notebook.cells.append(nbformat.v4.new_code_cell("last = 1"))
        notebook.cells.append(nbformat.v4.new_code_cell(RELEASED["path-check"]))
        notebook.cells.append(nbformat.v4.new_code_cell("  \n"))

    texts, flags, notebook = graded(edited(add, **ANSWERS))
    assert list(texts)[8:12] == ["speed", "own-1", "own-2", "speed-check"]
    assert [texts[f"own-{number}"] for number in (1, 2, 3)] == ["helper = 0", "helper = 1", "last = 1"]
    assert list(texts)[-1] == "own-3"
    assert all(cell_of(notebook, f"own-{number}").metadata == {} for number in (1, 2, 3))
    assert flags == [("own cells", "")]


def test_own_cells_are_counted():
    def add(notebook):
        notebook.cells += [nbformat.v4.new_code_cell(f"x = {number}") for number in range(MOST_OWN + 5)]

    texts, flags = graded(edited(add))[:2]
    assert sum(name.startswith("own-") for name in texts) == MOST_OWN
    assert flags == [("own cells", "")]
    assert texts[f"own-{MOST_OWN}"] == f"x = {MOST_OWN - 1}"


def test_own_text_is_not_taken_over_but_told():
    def add(notebook):
        own = nbformat.v4.new_markdown_cell("My derivation <script>")
        own["attachments"] = {"a.png": {"image/png": "x"}}
        notebook.cells.append(own)

    _, flags = transplant(release(), edited(add))
    assert str(flags[0]) == "own text: 1; not taken over: My derivation <script>"
    assert [flag.kind for flag in flags] == ["own text", "attachments dropped"]


def test_a_cell_that_is_too_long_is_left_out():
    longest = "#" * MOST_CELL
    assert graded(raw(answered(path=longest)))[0]["path"] == longest
    texts, flags, _ = graded(raw(answered(path=longest + "#", speed=SPEED)))
    assert texts["path"] == RELEASED["path"]
    assert texts["speed"] == SPEED
    assert flags == [("too long", "path")]


def test_pasted_pictures_are_dropped_and_told():
    def paste(notebook):
        cell_of(notebook, "why")["attachments"] = {"a.svg": {"image/svg+xml": "<svg onload=alert(1)>"}}

    _, flags, notebook = graded(edited(paste, why="![a](attachment:a.svg)"))
    assert flags == [("attachments dropped", "why"), ("made inert", "why")]
    assert "attachments" not in cell_of(notebook, "why")


def test_html_in_a_written_answer_is_made_inert_and_flagged():
    texts, flags, _ = graded(raw(answered(why="Hi <script>alert(1)</script>")))
    assert texts["why"] == "Hi < script>alert(1)< /script>"
    assert flags == [("made inert", "why")]


def test_html_in_code_stays_as_it_is():
    source = "page = '<b>' if 1<2 else ![0](1)"
    assert graded(raw(answered(path=source)))[0]["path"] == source


def test_a_notebook_of_another_assignment_gives_nothing():
    other = nbformat.v4.new_notebook(cells=[text("text-1", "x"), code("other", "y = 1", solution=True)])
    texts, flags, _ = graded(raw(other))
    assert trusted(texts) == UNTOUCHED
    assert ("no cell recognised", "") in flags


def test_a_flag_shows_no_control_characters():
    _, flags = transplant(release(), raw(answered(setup="import math\n\x1b[2J\u202e evil")))
    assert all(flag.evidence.isprintable() for flag in flags)
    assert flags


# ---------------------------------------------------------------------- random damage

VALUES = [None, True, 0, -1, 1e308, "", "code", "markdown", "path", "\ud800\x00", [], {}, [[[]]], ["a", 1], {"a": []}]
VALUES += [float("nan"), 10**60, {"grade_id": "path"}, "<script>", "x" * 500, HIDDEN, SLUG, {"cells": []}]


def spots(node, found: list) -> list:
    """Every container of a JSON document."""
    found.append(node)
    for inner in node.values() if isinstance(node, dict) else node:
        if isinstance(inner, dict | list):
            spots(inner, found)
    return found


def mutilated(seed: int) -> bytes:
    """A notebook after up to 12 random changes anywhere, and sometimes a random byte."""
    rng = random.Random(seed)
    notebook = json.loads(raw(answered(**ANSWERS)))
    for _ in range(rng.randint(1, 12)):
        spot = rng.choice(spots(notebook, []))
        keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
        key = rng.choice(keys) if keys else None
        way = rng.choice(("drop", "set", "swap", "copy", "add", "key"))
        if key is None or way == "add":
            value = copy.deepcopy(rng.choice(VALUES))
            spot.append(value) if isinstance(spot, list) else spot.update(extra=value)
        elif way == "drop":
            del spot[key]
        elif way == "set":
            spot[key] = copy.deepcopy(rng.choice(VALUES))
        elif way == "swap":
            other = rng.choice(keys)
            spot[key], spot[other] = spot[other], spot[key]
        elif way == "copy" and isinstance(spot, list):
            spot.insert(rng.randint(0, len(spot)), copy.deepcopy(spot[key]))
        elif isinstance(spot, dict):
            spot[rng.choice(("id", "metadata", "source", "cell_type", "cells"))] = spot.pop(key)
    data = bytearray(json.dumps(notebook).encode())
    if rng.random() < 0.3:
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def test_no_damage_raises_or_reaches_a_trusted_cell():
    kinds = set()
    for seed in range(400):
        texts, flags, notebook = graded(mutilated(seed))
        assert trusted(texts) == UNTOUCHED, f"seed {seed}"
        assert [c.metadata for c in notebook.cells if c.id in RELEASED] == [c.metadata for c in release().cells]
        assert "collecting failed" not in {kind for kind, _ in flags}, f"seed {seed}"
        kinds |= {kind for kind, _ in flags}
    assert {"missing", "edited", "duplicated", "retyped", "unreadable", "damaged", "own cells"} <= kinds


def test_the_helper_makes_written_cells_as_the_contract_says():
    flags = written("w", "x").metadata.nbgrader
    assert (flags["grade"], flags["solution"], flags["locked"]) == (True, True, False)
