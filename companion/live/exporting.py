"""Write a live figure's functions as ONNX graphs, and torch's own answers beside them.

``<folder>/<figure>/<graph>.onnx`` is the graph of the very function that the kernel calls; its bytes depend on nothing
but the function: names are canonical, and doc strings, stack traces and paths are gone. Before anything is written each
graph is run by ONNX Runtime and compared with torch. ``reference.json`` holds torch's answers at several settings of
the controls, for the test that moves these controls in a browser.
"""

import contextlib
import itertools
import json
import logging
import math
import os
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from companion.live.figure import MAX_BYTES, LiveFigure
from companion.live.parts import Point, require

OPSET = 18
TOLERANCE = 1e-5  # of ONNX Runtime against torch, relative to 1 + the output's largest absolute value
REFERENCE_BYTES = 200_000


def export(figure: LiveFigure, folder: pathlib.Path) -> dict[str, int]:
    """Write graphs and reference of ``figure`` to ``folder/<name>``, replacing what was there; all or nothing.

    Args:
        figure: the figure.
        folder: the parent folder; made if missing.

    Returns:
        file name -> bytes written.

    Raises:
        ValueError: a function cannot be exported, is over 1 MiB, or ONNX Runtime disagrees with torch.
    """
    files = {f"{graph}.onnx": graph_bytes(figure, graph) for graph in figure.functions}
    cases = settings_to_check(figure)
    for case in cases:
        compare(figure, case, files[f"{figure.graph_of(case)}.onnx"])
    files["reference.json"] = reference_bytes(figure, cases)
    _replace(folder / figure.name, files)
    return {name: len(content) for name, content in files.items()}


def settings_to_check(figure: LiveFigure) -> list[dict]:
    """The default values; each control at its ends or other options; every combination of the choices that select."""
    default = figure.default_values()
    cases = [default]
    for name, control in figure.controls.items():
        cases += [
            default | {name: value}
            for value in (_corners(figure, control) if isinstance(control, Point) else control.samples())
        ]
    for keys in itertools.product(*(figure.controls[name].options for name in figure.select)):
        cases.append(default | dict(zip(figure.select, keys, strict=True)))
    return [case for place, case in enumerate(cases) if case not in cases[:place]]


def graph_bytes(figure: LiveFigure, graph: str) -> bytes:
    """One function of ``figure`` as a stripped ONNX model.

    Raises:
        ValueError: the function does something that ONNX has no word for, or its graph exceeds 1 MiB.
    """
    operation = f"export of live figure {figure.name!r}, graph {graph!r}"
    inputs, outputs = _example(figure, graph)
    with _quiet():
        try:
            program = torch.onnx.export(
                _Answer(figure, graph, list(inputs)).eval(),
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
        except Exception as problem:
            first = str(problem).strip().splitlines()[0] if str(problem).strip() else ""
            rule = "evaluate is plain tensor operations: no control flow on values, no .item(), no linalg"
            raise ValueError(f"{operation}: received {type(problem).__name__}: {first}; {rule}") from problem
    content = canonical(program.model_proto).SerializeToString(deterministic=True)
    require(len(content) <= MAX_BYTES, operation, f"{len(content)} bytes", f"at most {MAX_BYTES}: a smaller network")
    return content


def canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` without anything that is not mathematics: no paths, no traces, inner names by order of appearance."""
    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    for field in ("producer_name", "producer_version", "domain", "doc_string", "metadata_props"):
        clean.ClearField(field)
    fixed = {value.name for value in (*clean.graph.input, *clean.graph.output)}
    _clean_graph(clean.graph, {name: name for name in fixed}, itertools.count())
    clean.graph.name = "evaluate"
    onnx.checker.check_model(clean)
    return clean


def compare(figure: LiveFigure, values: Mapping, content: bytes) -> None:
    """Run the first and the last call at ``values`` through ONNX Runtime.

    Raises:
        ValueError: an output differs from torch's by more than 1e-5 of its size.
    """
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    calls = list(figure.steps(**values))
    for inputs, outputs in {0: calls[0], len(calls) - 1: calls[-1]}.values():
        wanted = {entry.name for entry in session.get_inputs()}
        answers = session.run(names, {key: value.numpy() for key, value in inputs.items() if key in wanted})
        for name, answer in zip(names, answers, strict=True):
            error = _difference(torch.from_numpy(answer), outputs[name])
            operation = f"export of live figure {figure.name!r}, output {name!r} at {dict(values)}"
            require(
                error <= TOLERANCE,
                operation,
                f"ONNX Runtime off by {error:.1e}",
                f"torch's answer within {TOLERANCE:.0e}",
            )


def reference_bytes(figure: LiveFigure, cases: list[dict]) -> bytes:
    """Torch's answers at ``cases`` as JSON; long outputs are thinned until the file stays below 200 kB."""
    answers = [figure.compute(**case) for case in cases]
    for limit in (256, 128, 64, 32, 16):
        records = [_record(figure, case, answer, limit) for case, answer in zip(cases, answers, strict=True)]
        text = json.dumps({"figure": figure.name, "cases": records}, ensure_ascii=False, indent=None) + "\n"
        if len(text.encode()) <= REFERENCE_BYTES:
            break
    return text.encode()


class _Answer(nn.Module):
    """The figure's function with its inputs in a row, as the exporter wants it."""

    def __init__(self, figure: LiveFigure, graph: str, names: list[str]) -> None:
        super().__init__()
        self._function, self._names = figure.functions[graph], names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = self._function(**dict(zip(self._names, inputs, strict=True)))
        return tuple(value.to(torch.float32) for value in outputs.values())


def _example(figure: LiveFigure, graph: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    for case in settings_to_check(figure):
        if figure.graph_of(case) == graph:
            return next(figure.steps(**case))
    raise ValueError(f"export of {figure.name!r}: received {graph!r}; graphs: {list(figure.functions)}")


def _corners(figure: LiveFigure, point: Point) -> list[list[float]]:
    """Two opposite places of a point, a quarter of the panel away from its edges."""
    x, y = figure.panels[point.panel].x, figure.panels[point.panel].y
    return [[x[0] + part * (x[1] - x[0]), y[0] + (1 - part) * (y[1] - y[0])] for part in (0.25, 0.75)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notices off the page: a chapter's stderr is empty."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _clean_graph(graph: onnx.GraphProto, names: dict[str, str], counter: Iterator[int]) -> None:
    """Rename every inner value to v0, v1, … and drop what is only for people; ``names`` maps the values in scope."""
    for field in ("doc_string", "metadata_props", "value_info", "quantization_annotation"):
        graph.ClearField(field)
    for tensor in graph.initializer:
        tensor.name = names.setdefault(tensor.name, f"v{next(counter)}")
        tensor.ClearField("doc_string")
        tensor.ClearField("metadata_props")
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    for node in graph.node:
        _clean_node(node, names, counter)


def _clean_node(node: onnx.NodeProto, names: dict[str, str], counter: Iterator[int]) -> None:
    for field in ("name", "doc_string", "metadata_props"):
        node.ClearField(field)
    inputs = [names[name] if name else "" for name in node.input]
    for attribute in node.attribute:
        attribute.ClearField("doc_string")
        for subgraph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            inner = names | {value.name: f"v{next(counter)}" for value in subgraph.input}
            _clean_graph(subgraph, inner, counter)
            for value in (*subgraph.input, *subgraph.output):
                value.name = inner[value.name]
    outputs = [names.setdefault(name, f"v{next(counter)}") if name else "" for name in node.output]
    del node.input[:], node.output[:]
    node.input.extend(inputs)
    node.output.extend(outputs)


def _difference(answer: Tensor, truth: Tensor) -> float:
    """Largest difference relative to 1 + the truth's size; infinite where NaN or infinity stand in different places."""
    finite = torch.isfinite(truth)
    if answer.shape != truth.shape or not torch.equal(torch.isfinite(answer), finite):
        return math.inf
    size = 1 + float(truth[finite].abs().max()) if finite.any() else 1.0
    return float((answer[finite] - truth[finite]).abs().max()) / size if finite.any() else 0.0


def _record(figure: LiveFigure, case: dict, answers: Mapping[str, Tensor], limit: int) -> dict:
    return {
        "values": case,
        "graph": figure.graph_of(case),
        "outputs": {name: _thinned(value, limit) for name, value in answers.items()},
    }


def _thinned(value: Tensor, limit: int) -> dict:
    """Every ``stride``-th element; an odd stride, so that both columns of (n, 2) are met."""
    stride = 1 if value.numel() <= limit else math.ceil(value.numel() / limit) | 1
    numbers = [
        float(f"{number:.7g}") if math.isfinite(number) else None for number in value.flatten()[::stride].tolist()
    ]
    return {"shape": list(value.shape), "stride": stride, "data": numbers}


def _replace(target: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Write ``files`` beside ``target``, then put the whole folder in its place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name, content in files.items():
            (fresh / name).write_bytes(content)
        fresh.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
