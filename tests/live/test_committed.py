"""The figures that are committed: each chapter's notebook, its graphs and its front end belong together."""

import base64
import json
import pathlib

import numpy as np
import onnxruntime
import pytest

ROOT = pathlib.Path(__file__).parents[2]
GRAPHS = ROOT / "book" / "_static" / "live"
STATE = "application/vnd.jupyter.widget-state+json"


def committed():
    """(chapter, widget) for every live figure in the committed notebooks."""
    found = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        widgets = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("widgets", {}).get(STATE, {"state": {}})
        found += [(path.stem, widget) for widget in widgets["state"].values() if "spec" in widget["state"]]
    return found


FIGURES = {widget["state"]["spec"]["name"]: (chapter, widget) for chapter, widget in committed()}


@pytest.fixture(params=sorted(FIGURES))
def widget(request):
    """One committed figure's widget state."""
    return FIGURES[request.param][1]


def test_names_are_unique_in_the_course():
    """Two figures of one name would overwrite each other's graphs."""
    names = [widget["state"]["spec"]["name"] for _, widget in committed()]
    assert sorted(names) == sorted(set(names))


def test_every_chapter_has_a_live_figure():
    """No chapter stands still."""
    chapters = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert chapters == {chapter for chapter, _ in FIGURES.values()}


def test_graphs_and_figures_belong_together():
    """Each figure has its graphs and reference, and nothing else lies in the folder of graphs."""
    specs = {name: widget["state"]["spec"] for name, (_, widget) in FIGURES.items()}
    wanted = {name: {*(f"{graph}.onnx" for graph in spec["graphs"]), "reference.json"} for name, spec in specs.items()}
    assert {folder.name: {path.name for path in folder.iterdir()} for folder in GRAPHS.iterdir()} == wanted


def test_the_notebook_carries_the_present_front_end(widget):
    """The script and style in the widget state are those of the package: otherwise run the chapter again."""
    live = ROOT / "companion" / "live"
    assert widget["state"]["_esm"] == (live / "figure.js").read_text(encoding="utf-8")
    assert widget["state"]["_css"] == (live / "figure.css").read_text(encoding="utf-8")


def test_nothing_is_too_large(widget):
    """At most 1 MiB a graph and for a figure's constants, and 200 kB for the reference."""
    folder = GRAPHS / widget["state"]["spec"]["name"]
    assert max(path.stat().st_size for path in folder.glob("*.onnx")) <= 1 << 20
    assert (folder / "reference.json").stat().st_size <= 200_000
    assert sum(len(base64.b64decode(buffer["data"])) for buffer in widget["buffers"]) <= 1 << 20


def test_committed_graphs_answer_as_committed_references_say(widget):
    """ONNX Runtime on the committed graph, with the committed constants, repeats torch's recorded default answer."""
    spec = widget["state"]["spec"]
    reference = json.loads((GRAPHS / spec["name"] / "reference.json").read_text(encoding="utf-8"))
    case = reference["cases"][0]
    outputs = replay(spec, constants(widget), case)
    for name, expected in case["outputs"].items():
        data = np.array([np.nan if value is None else value for value in expected["data"]])
        got = np.where(np.isfinite(outputs[name]), outputs[name], np.nan).ravel()[:: expected["stride"]]
        scale = 1 + np.nanmax(np.abs(data), initial=0)
        np.testing.assert_allclose(got, data, rtol=0, atol=1e-3 * scale, err_msg=f"{spec['name']}: {name}")


def constants(widget):
    """name -> array, cut out of the widget's one buffer."""
    (buffer,) = [buffer for buffer in widget["buffers"] if buffer["path"] == ["constants"]]
    floats = np.frombuffer(base64.b64decode(buffer["data"]), "<f4")
    index = widget["state"]["spec"]["constants"]
    return {e["name"]: floats[e["offset"] :][: int(np.prod(e["shape"]))].reshape(e["shape"]) for e in index}


def replay(spec, arrays, case):
    """What the front end does, in a few lines: call the graph, feed back, repeat."""
    session = onnxruntime.InferenceSession(GRAPHS / spec["name"] / f"{case['graph']}.onnx")
    wanted, names = [e.name for e in session.get_inputs()], [e.name for e in session.get_outputs()]
    repeat = spec["repeat"] or {"count": 1, "total": "", "index": "", "carry": {}}
    inputs = arrays | {
        control["name"]: number(control, case["values"][control["name"]]) for control in spec["controls"]
    }
    steps = repeat["count"] if isinstance(repeat["count"], int) else int(case["values"][repeat["count"]])
    for k in range(steps):
        inputs |= {repeat["total"]: np.float32(steps), repeat["index"]: np.float32(k)}
        feeds = {name: np.asarray(inputs[name], dtype=np.float32) for name in wanted}
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        inputs |= {key: outputs[source] for key, source in repeat["carry"].items()}
    return outputs | {key: inputs[key] for key in repeat["carry"]}


def number(control, value):
    """A control's value as the graph takes it."""
    if control["kind"] == "paint":
        return [[float(cell == "#") for cell in row] for row in value]
    return [key for key, _ in control["options"]].index(value) if control["kind"] == "choice" else value
