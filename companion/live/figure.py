"""A live figure: controls, a function ``evaluate`` of torch, and panels that draw what it returns.

The front end (``figure.js``) holds no formula. It asks ``evaluate(graph, inputs) -> outputs`` of an engine: in
JupyterLab the kernel answers with torch through this class, on the static page ONNX Runtime answers with the graph that
:mod:`companion.live.exporting` wrote from the very same function.
"""

import inspect
import itertools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import anywidget
import numpy as np
import torch
import traitlets
from torch import Tensor, nn

from companion.live import checking
from companion.live.parts import Choice, Control, Paint, Panel, Point, Readout, Repeat, is_kebab, require, to_json

MAX_BYTES = 1 << 20  # of constants in a notebook, and of one graph
ONLY_GRAPH = "evaluate"  # the graph's name where no choice selects one
_HERE = pathlib.Path(__file__).parent

Values = Mapping[str, object]
Evaluate = Callable[..., dict[str, Tensor]]


class LiveFigure(anywidget.AnyWidget):
    """A figure with controls that is drawn from the tensors ``evaluate`` returns.

    Args:
        name: kebab-case and unique in the course; names the folder of the exported graphs.
        title: the figure's heading.
        description: the text alternative, a template: ``{name}`` stands for the value of a control or readout.
        controls: what the reader moves. Their values reach ``evaluate`` as float32 tensors of shape (), a Point's (2,),
            a Paint's (rows, columns).
        evaluate: ``f(**inputs) -> {output: tensor}``, of plain tensor operations, without randomness; it may be an
            ``nn.Module``, or a dict from option keys of the Choices in ``select`` to such functions. It gets those
            inputs that its signature names.
        inputs: constant tensors for ``evaluate`` and the marks (noise, grids); shipped with the figure as float32.
        panels: axes and marks.
        readouts: numbers shown below the panels.
        repeat: let the front end call ``evaluate`` several times and feed outputs back.
        select: names of the Choices that pick the function.
        columns: at most so many panels stand side by side; fewer where the page is narrow.

    Raises:
        ValueError: a name is unknown or used twice, a shape does not fit, a function returns other outputs than its
            siblings or answers twice differently, or the constants exceed 1 MiB.
    """

    _esm = _HERE / "figure.js"
    _css = _HERE / "figure.css"
    spec = traitlets.Dict().tag(sync=True)
    constants = traitlets.Bytes().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        *,
        name: str,
        title: str,
        description: str,
        controls: Sequence[Control],
        evaluate: Evaluate | Mapping[object, Evaluate],
        panels: Sequence[Panel],
        inputs: Mapping[str, Tensor] | None = None,
        readouts: Sequence[Readout] = (),
        repeat: Repeat | None = None,
        select: Sequence[str] | str = (),
        columns: int = 3,
    ) -> None:
        require(is_kebab(name), "LiveFigure(name)", repr(name), "kebab-case: it names a folder")
        self.controls = {control.name: control for control in _distinct(name, controls)}
        self.panels = list(panels)
        self.readouts = {readout.name: readout for readout in _distinct(name, readouts)}
        self.repeat = repeat
        self.select = (select,) if isinstance(select, str) else tuple(select)
        self.inputs = {key: _constant(name, key, value) for key, value in (inputs or {}).items()}
        require(columns >= 1, f"LiveFigure({name!r}, columns)", columns, "at least one")
        self._name = name
        checking.check_controls(self)
        checking.check_inputs(self)
        self.functions = self._named(evaluate)
        self.takes = {graph: self._inputs_of(graph, function) for graph, function in self.functions.items()}
        self.shapes = checking.shapes_of_outputs(self)
        checking.check_panels(self)
        checking.check_description(self, description)
        packed, index = _pack(self.inputs)
        require(
            len(packed) <= MAX_BYTES, f"LiveFigure({name!r}, inputs)", f"{len(packed)} bytes", f"at most {MAX_BYTES}"
        )
        super().__init__(
            spec=self._spec(title, description, index, columns), constants=packed, values=self.default_values()
        )
        self.on_msg(self._answer)
        folder = os.environ.get("COMPANION_LIVE")
        if folder:
            from companion.live.exporting import export  # slow to import, and needed only where graphs are written

            export(self, pathlib.Path(folder))

    def __repr__(self) -> str:
        """Say nothing that changes from run to run: the notebook test compares it."""
        return f"LiveFigure({self._name!r}, controls: {', '.join(self.controls)})"

    @property
    def name(self) -> str:
        """The figure's name, which is also the folder of its graphs."""
        return self._name

    def default_values(self) -> dict:
        """Every control's first value, as the front end writes it."""
        return {n: list(c.value) if isinstance(c, Point | Paint) else c.value for n, c in self.controls.items()}

    def graph_of(self, values: Values) -> str:
        """The name of the graph that these control values select."""
        return "-".join(str(values[name]) for name in self.select) or ONLY_GRAPH

    def steps_of(self, values: Values) -> int:
        """How often ``evaluate`` is called at these control values."""
        if self.repeat is None:
            return 1
        count = self.repeat.count
        return count if isinstance(count, int) else round(values[count])

    def settings(self, values: Values) -> dict[str, Tensor]:
        """The inputs that do not change from step to step: constants, controls and the number of steps."""
        tensors = self.inputs | {name: self._as_tensor(name, values[name]) for name in self.controls}
        if self.repeat is not None:
            tensors |= {self.repeat.total: torch.tensor(float(self.steps_of(values)))}
        return tensors

    def evaluate(self, graph: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One answer of ``evaluate``: float32 outputs, detached. This is what the front end asks for.

        Args:
            graph: the name of the function, as :meth:`graph_of` gives it.
            tensors: at least the inputs that the function names.

        Returns:
            output name -> tensor.
        """
        operation = f"LiveFigure({self._name!r}).evaluate"
        require(graph in self.functions, operation, repr(graph), f"the graph is one of {list(self.functions)}")
        missing = [key for key in self.takes[graph] if key not in tensors]
        require(not missing, operation, sorted(tensors), f"the function also needs {missing}")
        with torch.no_grad():
            outputs = self.functions[graph](**{key: tensors[key] for key in self.takes[graph]})
        tensors_only = isinstance(outputs, dict) and all(isinstance(value, Tensor) for value in outputs.values())
        require(tensors_only and bool(outputs), operation, type(outputs).__name__, "evaluate returns a dict of tensors")
        return {key: value.detach().to("cpu", torch.float32).contiguous() for key, value in outputs.items()}

    def steps(self, **changes: object):
        """Yield (inputs, outputs) of each call at the default values with ``changes``."""
        values = self.checked(changes)
        tensors, graph, total = self.settings(values), self.graph_of(values), self.steps_of(values)
        for k in range(total):
            if self.repeat is not None:
                tensors = tensors | {self.repeat.index: torch.tensor(float(k))}
            outputs = self.evaluate(graph, tensors)
            yield {key: tensors[key] for key in self.takes[graph]}, outputs
            if self.repeat is not None:
                tensors = tensors | {key: outputs[source] for key, source in self.repeat.carry.items()}

    def compute(self, **changes: object) -> dict[str, Tensor]:
        """What the figure shows in the end: the last call's outputs and the carried states.

        Args:
            **changes: control values that differ from the defaults.

        Returns:
            name -> float32 tensor.
        """
        for _, last in self.steps(**changes):
            outputs = last
        carried = self.repeat.carry if self.repeat else {}
        return outputs | {key: outputs[source] for key, source in carried.items()}

    def checked(self, changes: Values) -> dict:
        """The default values with ``changes``, each checked by its control."""
        values = self.default_values() | {k: list(v) if isinstance(v, tuple) else v for k, v in changes.items()}
        for name, value in values.items():
            control = self.controls.get(name)
            require(control is not None, f"LiveFigure({self._name!r})", repr(name), f"controls: {list(self.controls)}")
            if isinstance(control, Point):
                control.check_inside(value, self.panels[control.panel].x, self.panels[control.panel].y)
            elif isinstance(control, Paint):
                values[name] = control.text(value)
            else:
                control.check(value)
        return values

    # --- the kernel's side of the wire ---

    @traitlets.validate("values")
    def _validate_values(self, proposal: dict) -> dict:
        return self.checked(proposal["value"])

    def _answer(self, _widget: object, content: dict, buffers: Sequence) -> None:
        """Answer one question of the front end; an exception becomes a text that the figure shows."""
        reply = {"id": content.get("id")}
        try:
            require(
                content.get("op") == "evaluate",
                "LiveFigure message",
                content.get("op"),
                "the only question is evaluate",
            )
            sent = {
                entry["name"]: _unpack(entry["shape"], raw)
                for entry, raw in zip(content["inputs"], buffers, strict=True)
            }
            outputs = self.evaluate(content["graph"], self.inputs | sent)
        except Exception as problem:  # whatever evaluate raises belongs to the reader's figure, not to the kernel's log
            self.send(reply | {"error": f"{type(problem).__name__}: {problem}"})
            return
        packed = [value.numpy().astype("<f4").tobytes() for value in outputs.values()]
        shapes = [{"name": key, "shape": list(value.shape)} for key, value in outputs.items()]
        self.send(reply | {"outputs": shapes}, buffers=packed)

    # --- putting the figure together ---

    def _as_tensor(self, name: str, value: object) -> Tensor:
        control = self.controls[name]
        if isinstance(control, Choice):
            return torch.tensor(float(list(control.options).index(value)))
        if isinstance(control, Paint):
            return torch.tensor([[float(cell == "#") for cell in row] for row in value])
        return torch.tensor(value, dtype=torch.float32)

    def _named(self, evaluate: Evaluate | Mapping) -> dict[str, Evaluate]:
        """The functions by graph name: option keys joined by hyphens."""
        operation = f"LiveFigure({self._name!r}, evaluate)"
        if not self.select:
            require(callable(evaluate), operation, type(evaluate).__name__, "one function, or a dict and select=")
            return {ONLY_GRAPH: evaluate}
        require(isinstance(evaluate, Mapping), operation, type(evaluate).__name__, f"a dict: select={self.select}")
        given = {(key,) if isinstance(key, str) else tuple(key): function for key, function in evaluate.items()}
        wanted = list(itertools.product(*(self.controls[name].options for name in self.select)))
        require(set(given) == set(wanted), operation, sorted(given), f"a function for each of {wanted}")
        names = ["-".join(keys) for keys in wanted]
        require(len(set(names)) == len(names), operation, names, "joined by hyphens, the keys are distinct")
        return dict(zip(names, (given[keys] for keys in wanted), strict=True))

    def _inputs_of(self, graph: str, function: Evaluate) -> list[str]:
        """The available inputs that the function's signature names, in a fixed order."""
        available = [*self.inputs, *self.controls]
        if self.repeat is not None:
            available += [name for name in (self.repeat.index, self.repeat.total) if name not in available]
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
            return [name for name in available if name not in self.select]
        operation = f"LiveFigure({self._name!r}).evaluate[{graph}]"
        needed = [name for name, p in signature.parameters.items() if p.default is inspect.Parameter.empty]
        require(set(needed) <= set(available), operation, needed, f"its arguments are among {available}")
        return [name for name in available if name in signature.parameters]

    def _spec(self, title: str, description: str, constants: list[dict], columns: int) -> dict:
        return {
            "name": self._name,
            "title": title,
            "description": description,
            "controls": [to_json(control) for control in self.controls.values()],
            "select": list(self.select),
            "graphs": {graph: {"inputs": names} for graph, names in self.takes.items()},
            "outputs": self.shapes,
            "columns": columns,
            "panels": [to_json(panel) for panel in self.panels],
            "readouts": [to_json(readout) for readout in self.readouts.values()],
            "repeat": to_json(self.repeat) if self.repeat else None,
            "constants": constants,
        }


def _distinct(figure: str, parts: Sequence) -> Sequence:
    names = [part.name for part in parts]
    require(len(set(names)) == len(names), f"LiveFigure({figure!r})", names, "names are distinct")
    return parts


def _constant(figure: str, key: str, value: Tensor) -> Tensor:
    operation = f"LiveFigure({figure!r}, inputs[{key!r}])"
    require(isinstance(value, Tensor), operation, type(value).__name__, "a tensor")
    require(key.isidentifier(), operation, repr(key), "the name of an argument of evaluate")
    require(bool(torch.isfinite(value).all()), operation, "NaN or infinity", "constants are finite")
    return value.detach().to("cpu", torch.float32).contiguous()


def _pack(tensors: Mapping[str, Tensor]) -> tuple[bytes, list[dict]]:
    """All constants as one run of little-endian float32, and the index into it."""
    index, chunks, offset = [], [], 0
    for name, value in tensors.items():
        index.append({"name": name, "shape": list(value.shape), "offset": offset})
        chunks.append(value.numpy().astype("<f4").tobytes())
        offset += value.numel()
    return b"".join(chunks), index


def _unpack(shape: Sequence[int], raw: object) -> Tensor:
    return torch.from_numpy(np.frombuffer(raw, "<f4").astype(np.float32)).reshape(tuple(shape))
