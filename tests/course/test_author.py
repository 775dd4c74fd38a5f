"""`course author`: what JupyterLab saves is the same chapter, and nothing of the outputs enters the text."""

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from jupytext.async_contentsmanager import build_async_jupytext_contents_manager_class

from course.notebooks import check, read_source
from tests.course.test_notebooks import BODY, committed
from tests.course.toy import code

CONFIG = Path(__file__).resolve().parents[2] / "notebooks" / "jupytext.toml"


def saved_by_jupyterlab(root: Path, path: str, **edits: str) -> None:
    """Opens a notebook, edits cells by name, and saves it, by way of jupytext's contents manager."""

    async def open_and_save() -> None:
        manager = build_async_jupytext_contents_manager_class(AsyncLargeFileManager)(root_dir=str(root))
        model = await manager.get(path, type="notebook", content=True)
        model["content"]["metadata"]["widgets"] = {"state": 1}
        for cell in model["content"]["cells"]:
            cell["source"] = edits.get(cell["metadata"].get("name"), cell["source"])
        await manager.save({"type": "notebook", "content": model["content"]}, path)

    with ThreadPoolExecutor(1) as thread:  # of its own: the browser tests leave a running loop in this one
        thread.submit(asyncio.run, open_and_save()).result()


def test_saving_from_jupyterlab_changes_no_cell_and_no_option(toy):
    shutil.copy(CONFIG, toy.notebooks)
    options = {"tags": "[hide-input]", "tolerance": "{rtol: 1.0e-2}", "mystnb": '{image: {alt: "a long, long curve"}}'}
    chapter = toy.write("01-try", BODY + code("plot", "1", **options))
    committed(chapter)
    before = read_source(chapter)
    saved_by_jupyterlab(toy.root, "notebooks/01-try.ipynb")
    assert read_source(chapter) == before
    assert check(toy) == []
    text = chapter.source.read_text()
    assert "widgets" not in text
    assert "jupytext_version" not in text


def test_an_edit_in_jupyterlab_reaches_the_text(toy):
    shutil.copy(CONFIG, toy.notebooks)
    chapter = toy.write("01-try", BODY)
    committed(chapter)
    saved_by_jupyterlab(toy.root, "notebooks/01-try.ipynb", one="print(7)")
    assert "```{code-cell}\n:name: one\n\nprint(7)\n```" in chapter.source.read_text()


def test_a_text_that_is_newer_than_its_notebook_is_what_jupyterlab_opens(toy):
    shutil.copy(CONFIG, toy.notebooks)
    chapter = toy.write("01-try", BODY)
    committed(chapter)
    toy.write("01-try", BODY.replace("print(1)", "print(8)"))
    saved_by_jupyterlab(toy.root, "notebooks/01-try.ipynb")
    assert "print(8)" in chapter.source.read_text()
