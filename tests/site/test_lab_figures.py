"""A live figure in JupyterLab: the kernel answers with torch, and nothing of ONNX Runtime is loaded."""

import contextlib
import os
import pathlib
import re
import runpy
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
import torch
from playwright.sync_api import TimeoutError as PlaywrightTimeout

TESTS = pathlib.Path(__file__).parents[1]
DEMO = TESTS / "live" / "demo.py"
TIMEOUT = 120_000
RUN_DEMO = f"import runpy\nrunpy.run_path({str(DEMO)!r})[{{name!r}}]()"


@pytest.fixture(scope="module")
def notebook_folder(tmp_path_factory):
    """A folder with one small notebook: both demonstration figures, and one whose function fails for some values."""
    folder = tmp_path_factory.mktemp("lab")
    cells = [nbformat.v4.new_code_cell(RUN_DEMO.format(name=name)) for name in ("wave", "sampler", "fragile")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "figures.ipynb")
    return folder


@pytest.fixture(scope="module")
def lab_url(notebook_folder):
    """JupyterLab on that folder, with settings and runtime files of its own."""
    private = {f"JUPYTER_{kind}_DIR": str(notebook_folder / f".{kind.lower()}") for kind in ("CONFIG", "RUNTIME")}
    private |= {
        "JUPYTERLAB_SETTINGS_DIR": str(notebook_folder / ".settings"),
        "IPYTHONDIR": str(notebook_folder / ".ipython"),
    }
    private |= {"JUPYTERLAB_WORKSPACES_DIR": str(notebook_folder / ".workspaces")}
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ServerApp.port=0",
        "--ip=127.0.0.1",
    ]
    command += ["--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={notebook_folder}"]
    command += ["--LabApp.news_url=", "--LabApp.extension_manager=readonly"]
    log = (notebook_folder / "log.txt").open("w")
    server = subprocess.Popen(command, env=os.environ | private, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield _address(server, notebook_folder)
    finally:
        server.terminate()
        server.wait(20)
        log.close()


@pytest.fixture(scope="module")
def lab(browser, lab_url):
    """The notebook, open in JupyterLab and run from top to bottom; `lab.requests` lists what was loaded."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.route(re.compile(r"^https?://(?!127\.0\.0\.1[:/])"), lambda route: route.abort())
    page = context.new_page()
    page.requests = []
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(f"{lab_url}lab/tree/figures.ipynb", timeout=TIMEOUT)
    page.get_by_text(re.compile(r"Python 3.*\| Idle")).wait_for(timeout=TIMEOUT)
    run_all(page)
    yield page
    context.close()


def run_all(page):
    """Run all cells; again if JupyterLab swallowed the command because its kernel was not yet connected."""
    for _ in range(5):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        with contextlib.suppress(PlaywrightTimeout):
            page.locator('[data-figure="demo-fragile"]').wait_for(timeout=TIMEOUT / 5, state="attached")
            return
    raise AssertionError("JupyterLab did not run the notebook")


def test_the_kernel_answers_with_torchs_numbers(lab):
    """The numbers in JupyterLab's page are those of torch in this process, for a closed form and a repeated network."""
    for name in ("wave", "sampler"):
        figure = runpy.run_path(str(DEMO))[name]()
        view = _figure(lab, figure.name)
        outputs = view.evaluate(
            "view => view.liveFigure.settle().then(() => outputsOf(view))".replace("outputsOf(view)", _OUTPUTS)
        )
        for key, expected in figure.compute().items():
            torch.testing.assert_close(torch.tensor(outputs[key]), expected.flatten(), rtol=1e-5, atol=1e-5)
        assert "kernel" in view.evaluate("view => view.liveFigure.engine")


def test_a_key_press_asks_the_kernel_anew(lab):
    """After the key End the figure shows what torch gives at the slider's end, and the kernel knows the value."""
    view = _figure(lab, "demo-sampler")
    view.locator('[data-control="steps"] input').press("End")
    outputs = view.evaluate(f"view => view.liveFigure.settle().then(() => {_OUTPUTS})")
    expected = runpy.run_path(str(DEMO))["sampler"]().compute(steps=40)
    torch.testing.assert_close(torch.tensor(outputs["x"]), expected["x"].flatten(), rtol=1e-4, atol=1e-4)


def test_an_error_of_evaluate_is_shown_in_the_figure(lab):
    """The figure shows the exception's text and recovers when the value is good again."""
    view = _figure(lab, "demo-fragile")
    view.evaluate("view => view.liveFigure.set('a', 2)")
    assert "two is refused" in view.locator('[role="status"]').inner_text()
    view.evaluate("view => view.liveFigure.set('a', 1)")
    assert view.evaluate("view => view.liveFigure.failed") is None


def test_onnx_runtime_is_not_loaded_beside_a_kernel(lab):
    """No request of the whole session names ONNX."""
    _figure(lab, "demo-wave")
    assert [url for url in lab.requests if "onnx" in url.lower() or url.endswith(".wasm")] == []


_OUTPUTS = (
    "Object.fromEntries(Object.entries(view.liveFigure.outputs).map(([name, tensor]) => [name, [...tensor.data]]))"
)


def _figure(page, name):
    view = page.locator(f'[data-figure="{name}"]').first
    view.scroll_into_view_if_needed(timeout=TIMEOUT)
    view.evaluate("view => view.liveFigure.ready", timeout=TIMEOUT)
    return view


def _address(server, folder):
    """Where the server says it listens, once it answers."""
    for _ in range(600):
        assert server.poll() is None, (folder / "log.txt").read_text()
        found = [word for word in (folder / "log.txt").read_text().split() if word.startswith("http://127.0.0.1:")]
        if found:
            url = found[0].split("/lab")[0] + "/"
            try:
                urllib.request.urlopen(f"{url}api", timeout=2).close()
                return url
            except OSError:
                pass
        time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start: {(folder / 'log.txt').read_text()}")
