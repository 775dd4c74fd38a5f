"""Chapters are executed into notebooks that are the same bytes each time, or not written at all."""

import base64
import io
import json

import nbformat
import numpy as np
import pytest
from PIL import Image

from course import running
from course.chapters import CourseError
from course.notebooks import check
from course.running import run_chapter, serialize
from tests.course.toy import code

FIGURE = (
    "folder = Path(os.environ['COMPANION_LIVE']) / 'wave'\nfolder.mkdir()\n_ = (folder / 'graph.onnx').write_text('1')"
)
BODY = (
    "(ch-try)=\n# Try\n\n"
    + code("setup", "import os, random", "from pathlib import Path", "import ipywidgets")
    + code("number", "print(f'{0.5:.3f}')")
    + code("slider", "ipywidgets.HBox([ipywidgets.IntSlider(), ipywidgets.IntSlider(3)])")
    + code("figure", *FIGURE.splitlines())
    + code("refused", "raise ValueError('wrong')", tags="[raises-exception]")
)


def test_executing_twice_writes_the_same_bytes_and_reports_each_change(toy):
    chapter = toy.write("01-try", BODY)
    report = run_chapter(toy, chapter)
    first = chapter.notebook.read_bytes()
    assert "the notebook is new" in report.changes
    assert 0 < report.processor_seconds < report.seconds + 1
    assert 0.01 < report.memory_gb < 2
    assert report.exceeded == []
    assert (toy.live / "wave" / "graph.onnx").read_text() == "1"
    assert check(toy) == []

    assert run_chapter(toy, chapter).changes == ()
    assert chapter.notebook.read_bytes() == first
    notebook = nbformat.reads(first.decode(), as_version=4)
    nbformat.validate(notebook)
    assert "version" not in notebook.metadata["language_info"]
    assert str(toy.root) not in first.decode()
    models = notebook.metadata["widgets"][running.WIDGET_STATE]["state"]
    assert list(models) == [f"{number:032x}" for number in range(1, len(models) + 1)]

    chapter.source.write_text(
        chapter.source.read_text().replace("0.5:.3f", "0.75:.3f").replace(".write_text('1')", ".write_text('2')")
    )
    assert set(run_chapter(toy, chapter).changes) == {
        "cell number: numbers moved by at most 0.25 (relative 0.5), beyond its tolerance",
        "live figure wave: graph.onnx changed",
    }

    text = chapter.source.read_text()
    chapter.source.write_text(text[: text.index("```{code-cell}\n:name: figure")])
    assert "live figure wave: removed, no chapter shows it" in run_chapter(toy, chapter).changes
    assert not (toy.live / "wave").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1 / 0", "cell bad failed\n"),
        ("import sys; print('careful', file=sys.stderr)", "cell bad wrote to stderr: 'careful'"),
        ("print(object())", "cell bad printed '0x"),
        ("import os; os._exit(1)", "cell bad ended the kernel"),
    ],
)
def test_a_chapter_that_fails_leaves_everything_as_it_was(toy, line, said):
    chapter = toy.write("01-try", BODY + code("bad", line))
    chapter.notebook.write_text("old")
    with pytest.raises(CourseError) as refusal:
        run_chapter(toy, chapter)
    assert said in str(refusal.value)
    assert chapter.notebook.read_text() == "old"
    assert list(toy.live.iterdir()) == []
    assert sorted(path.name for path in toy.notebooks.iterdir()) == ["01-try.ipynb", "01-try.md"]


def test_a_cell_that_never_ends_is_stopped(toy, monkeypatch):
    monkeypatch.setattr(running, "CELL_TIMEOUT", 1)
    chapter = toy.write("01-try", code("loop", "while True: pass"))
    with pytest.raises(CourseError, match="cell loop ran for more than 1 s and was stopped"):
        run_chapter(toy, chapter)


def test_an_exceeded_budget_is_reported(toy):
    report = running.Report(toy.write("01-try", BODY), 61.0, 30.0, 2.5, 60, 2, ())
    assert report.exceeded == ["61 s are more than the declared 60 s", "2.50 GB are more than the declared 2 GB"]
    assert "warning: 61 s" in str(report)


def test_widget_ids_are_numbered_as_a_reader_meets_them(toy):
    def notebook(a: str, b: str, c: str) -> nbformat.NotebookNode:
        state = {a: {"state": {"children": [f"IPY_MODEL_{b}"]}}, b: {"state": {"value": 1}}, c: {"state": {"value": 2}}}
        view = nbformat.v4.new_output("display_data", data={running.WIDGET_VIEW: {"model_id": a}})
        cell = nbformat.v4.new_code_cell("x", outputs=[view], execution_count=1)
        cell["id"] = "x"
        return nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {running.WIDGET_STATE: {"state": state}}})

    ids = [letter * 32 for letter in "abc"]
    texts = {serialize(notebook(*order), toy.root) for order in (ids, ids[::-1], [ids[1], ids[2], ids[0]])}
    assert len(texts) == 1
    state = json.loads(texts.pop())["metadata"]["widgets"][running.WIDGET_STATE]["state"]
    assert state[f"{1:032x}"]["state"]["children"] == [f"IPY_MODEL_{2:032x}"]


def picture(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_a_plot_keeps_its_colors_in_a_third_of_the_bytes():
    shades = np.linspace(0, 255, 200).astype(np.uint8)
    shade = np.random.default_rng(0).choice(shades, (300, 400))
    pixels = np.stack([shade, shade, 255 - shade, np.full_like(shade, 255)], axis=2)
    small = running.smaller_picture(picture(pixels))
    assert len(small) < len(picture(pixels)) / 2
    again = np.asarray(Image.open(io.BytesIO(base64.b64decode(small))).convert("RGBA"))
    assert np.abs(again.astype(int) - pixels).max() <= 2


def test_a_transparent_picture_is_left_alone():
    pixels = np.zeros((20, 20, 4), np.uint8)
    assert running.smaller_picture(picture(pixels)) == picture(pixels)
