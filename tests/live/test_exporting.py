"""The exported graphs: the same numbers as torch, the same bytes each time, and no trace of the machine."""

import json
import pathlib
import runpy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from companion.live import Images, Line, LiveFigure, Panel, Slider, exporting

DEMO = runpy.run_path(str(pathlib.Path(__file__).parent / "demo.py"))
X = torch.linspace(0.1, 1, 5)


def line(evaluate, **changes):
    """A figure that draws y over x."""
    arguments = {"name": "small", "title": "A line", "description": "{a}", "evaluate": evaluate, "inputs": {"x": X}}
    arguments["controls"] = [Slider("a", label="a", low=0, high=3, step=1, value=1)]
    arguments["panels"] = [Panel(x=(0, 1), y=(0, 3), marks=[Line("x", "y")])]
    return LiveFigure(**(arguments | changes))


def answer(content, inputs):
    """Run a graph by ONNX Runtime: output name -> tensor."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    feeds = {entry.name: inputs[entry.name].numpy() for entry in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(names, feeds)), strict=True))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The demonstration figures, exported."""
    folder = tmp_path_factory.mktemp("live")
    for name in ("wave", "sampler", "painter"):
        exporting.export(DEMO[name](), folder)
    return folder


@pytest.mark.parametrize("name", ["wave", "sampler", "painter"])
def test_onnx_runtime_gives_torchs_numbers(exported, name):
    """Every call at every reference setting, by another implementation of each operation: 1e-5 of the output's size."""
    figure = DEMO[name]()
    for case in exporting.settings_to_check(figure):
        content = (exported / figure.name / f"{figure.graph_of(case)}.onnx").read_bytes()
        for inputs, outputs in figure.steps(**case):
            answers = answer(content, inputs)
            for key, expected in outputs.items():
                size = 1 + float(expected.abs().max())
                torch.testing.assert_close(answers[key], expected, rtol=0, atol=1e-5 * size)


def test_a_second_export_is_byte_identical(exported, tmp_path):
    """Names and order depend on the function alone, not on what was exported before."""
    exporting.export(line(lambda a, x: {"y": a * x}), tmp_path)
    for name in ("painter", "sampler", "wave"):
        exporting.export(DEMO[name](), tmp_path)
    files = sorted(path.relative_to(exported) for path in exported.rglob("*.*"))
    assert [(path, (tmp_path / path).read_bytes()) for path in files] == [
        (p, (exported / p).read_bytes()) for p in files
    ]


def test_nothing_of_the_machine_is_in_a_graph(exported):
    """No path, stack trace, module name or producer; nodes are nameless."""
    for path in exported.rglob("*.onnx"):
        content = path.read_bytes()
        for trace in (b"/", b"\\", b".py", b"torch", b"site-packages", b"lambda", str(pathlib.Path.cwd()).encode()):
            assert trace not in content, (path.name, trace)
        model = onnx.load_from_string(content)
        said = [model.producer_name, model.producer_version, *model.metadata_props, *model.graph.metadata_props]
        assert not any(said)
        assert not any(node.name or node.doc_string or node.metadata_props for node in model.graph.node)
        assert len(content) <= 1 << 20


def test_a_captured_network_brings_its_weights(exported):
    """The weights of a network in the function's closure lie in the graph, so the page needs nothing else."""
    model = onnx.load(exported / "demo-sampler" / "euler.onnx")
    sizes = {tuple(tensor.dims) for tensor in model.graph.initializer}
    assert {(16, 3), (2, 16)} <= sizes


def test_the_reference_holds_torchs_answers(exported):
    """Each case, computed anew: defaults, both ends of each slider, each option; thinned with an odd stride."""
    figure = DEMO["sampler"]()
    reference = json.loads((exported / figure.name / "reference.json").read_text())
    cases = [case["values"] for case in reference["cases"]]
    assert cases[0] == figure.default_values()
    assert {case["steps"] for case in cases} == {1, 10, 40}
    assert {case["solver"] for case in cases} == {"euler", "midpoint"}
    for case in reference["cases"]:
        for key, expected in figure.compute(**case["values"]).items():
            record = case["outputs"][key]
            assert record["shape"] == list(expected.shape)
            np.testing.assert_allclose(expected.flatten()[:: record["stride"]], record["data"], rtol=1e-6, atol=1e-6)
    assert (exported / figure.name / "reference.json").stat().st_size <= 200_000


def test_the_reference_of_a_mask_holds_a_few_masks(exported):
    """The first mask, all cells, the upper half and every other cell, as rows of text, with torch's answers."""
    reference = json.loads((exported / "demo-painter" / "reference.json").read_text())
    masks = {tuple(case["values"]["mask"]): case["outputs"]["hidden"]["data"] for case in reference["cases"]}
    assert masks == {
        ("......", ".##...", ".##...", "......"): [pytest.approx(1 / 6)],
        ("######",) * 4: [1],
        ("######", "######", "......", "......"): [0.5],
        ("#.#.#.", ".#.#.#") * 2: [0.5],
    }


def test_the_environment_variable_makes_a_figure_write_its_graphs(tmp_path, monkeypatch):
    """Without it nothing is written; with it the graphs and the reference appear, and stale graphs go."""
    monkeypatch.delenv("COMPANION_LIVE", raising=False)
    line(lambda a, x: {"y": a * x})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "old.onnx").write_bytes(b"stale")
    monkeypatch.setenv("COMPANION_LIVE", str(tmp_path))
    line(lambda a, x: {"y": a * x})
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["evaluate.onnx", "reference.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]


def test_exporting_writes_nothing_to_the_page(tmp_path, capfd, recwarn):
    """A chapter's stderr is empty, so the exporter keeps its notices to itself."""
    exporting.export(line(lambda a, x: {"y": a * x}), tmp_path)
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize(
    "evaluate",
    [lambda a, x: {"y": x if a > 0.5 else -x}, lambda a, x: {"y": a * torch.linalg.eigvalsh(x[:, None] * x)}],
    ids=["control flow on a value", "an operation that ONNX lacks"],
)
def test_what_onnx_cannot_say_is_refused_by_name(evaluate, tmp_path):
    """The error names the figure and the rule, and nothing is left behind."""
    figure = line(evaluate)
    with pytest.raises(ValueError, match=r"live figure 'small', graph 'evaluate'.*plain tensor operations"):
        exporting.export(figure, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_over_one_mebibyte_is_refused(tmp_path):
    """A network of 300,000 weights does not fit."""
    network = nn.Linear(5, 60_000)
    figure = line(lambda a, x: {"y": a * network(x)[:5]})
    with pytest.raises(ValueError, match="at most 1048576"):
        exporting.export(figure, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_disagrees_with_torch_is_refused_by_output(monkeypatch):
    """A graph of another function stands in for a wrong export: the error names figure, output and setting."""
    right, wrong = line(lambda a, x: {"y": a * x}), line(lambda a, x: {"y": a * x * 1.001})
    exporting.compare(right, {}, exporting.graph_bytes(right, "evaluate"))
    with pytest.raises(ValueError, match=r"'small', output 'y'.*ONNX Runtime off by"):
        exporting.compare(right, {}, exporting.graph_bytes(wrong, "evaluate"))


def test_nan_in_another_place_is_a_disagreement():
    """log of a negative number is NaN on both sides or it is an error; on the same side it is none."""
    same = line(lambda a, x: {"y": torch.log(x - 0.5)})
    exporting.compare(same, {}, exporting.graph_bytes(same, "evaluate"))
    other = line(lambda a, x: {"y": torch.log(x + 0.5)})
    with pytest.raises(ValueError, match="off by inf"):
        exporting.compare(other, {}, exporting.graph_bytes(same, "evaluate"))


def test_convolution_attention_and_sorting_are_exported(tmp_path):
    """The operations that later chapters need: convolution, group norm, attention, sort, index, erf, cumsum."""
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()

    def evaluate(a, z):
        features = norm(convolution(z))
        tokens = attention(features[:, 0], features[:, 1], features[:, 2], need_weights=False)[0]
        order = torch.sort(tokens.flatten(1), dim=1).values
        return {"image": torch.erf(a * z[:, 0]) + tokens, "order": order, "sum": torch.cumsum(order, dim=1)}

    figure = line(
        evaluate,
        inputs={"z": torch.randn(3, 1, 8, 8)},
        panels=[Panel(marks=[Images("image")])],
    )
    assert exporting.export(figure, tmp_path)["evaluate.onnx"] < 20_000


def test_two_outputs_may_be_one_tensor(tmp_path):
    """An output that is an input, or twice the same value, keeps its own name in the graph."""

    def evaluate(a, x):
        y = a * x
        return {"y": y, "again": y, "same": x}

    figure = line(evaluate)
    exporting.export(figure, tmp_path)
    inputs, outputs = next(figure.steps())
    answers = answer((tmp_path / "small" / "evaluate.onnx").read_bytes(), inputs)
    assert set(answers) == {"y", "again", "same"}
    torch.testing.assert_close(answers, outputs)
