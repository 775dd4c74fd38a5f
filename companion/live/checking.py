"""What the parts of a live figure owe each other: names that exist, shapes that fit, one answer for one question.

Each function takes the figure as far as it is put together, and raises ValueError with the rule that is broken.
"""

import itertools
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from companion.live.parts import Choice, Images, Mark, Paint, Panel, Point, Slider, Toggle, Trails, require

if TYPE_CHECKING:
    from companion.live.figure import LiveFigure


def check_controls(figure: "LiveFigure") -> None:
    """There is a panel; points lie in panels with axes, masks over images; ``select`` names choices; values fit."""
    operation = f"LiveFigure({figure.name!r})"
    require(bool(figure.panels), operation, "no panels", "a figure has at least one")
    for control in figure.controls.values():
        if isinstance(control, Point):
            inside = 0 <= control.panel < len(figure.panels) and figure.panels[control.panel].x is not None
            require(inside, f"Point({control.name!r})", control.panel, "its panel exists and has axes")
    masks = [control for control in figure.controls.values() if isinstance(control, Paint)]
    for control in masks:
        inside = 0 <= control.panel < len(figure.panels) and _has_images(figure.panels[control.panel])
        require(inside, f"Paint({control.name!r})", control.panel, "its panel exists and shows Images")
        alone = [other.name for other in masks if other.panel == control.panel]
        require(len(alone) == 1, f"Paint({control.name!r})", alone, "one mask a panel")
    chosen = all(isinstance(figure.controls.get(name), Choice) for name in figure.select)
    require(chosen, f"{operation}.select", figure.select, "names of Choice controls")
    figure.checked({})


def check_inputs(figure: "LiveFigure") -> None:
    """Constants, controls and the counters of Repeat have different names; carried states have a start."""
    operation, repeat = f"LiveFigure({figure.name!r})", figure.repeat
    twice = set(figure.controls) & set(figure.inputs)
    require(not twice, operation, sorted(twice), "a constant and a control have different names")
    if repeat is None:
        return
    operation += ".repeat"
    counters = {repeat.index, repeat.total} - {repeat.count}
    taken = counters & {*figure.controls, *figure.inputs}
    require(not taken, operation, sorted(taken), "index and total have names of their own")
    counted = isinstance(repeat.count, int) or _is_counter(figure.controls.get(repeat.count))
    require(counted, operation, repr(repeat.count), "a Slider of whole steps from 1, or a number")
    startable = {*figure.inputs, *(n for n, c in figure.controls.items() if isinstance(c, Slider | Point))}
    unknown = sorted(set(repeat.carry) - startable)
    require(not unknown, operation, unknown, "a carried state starts from a constant, a Slider or a Point")


def shapes_of_outputs(figure: "LiveFigure") -> dict[str, list[int]]:
    """Call each function once at the default values, the last one twice, and return the outputs' shapes."""
    operation, shapes = f"LiveFigure({figure.name!r}).evaluate", {}
    for keys in itertools.product(*(figure.controls[name].options for name in figure.select)):
        choice = dict(zip(figure.select, keys, strict=True))
        _, outputs = next(figure.steps(**choice))
        found = {key: list(value.shape) for key, value in outputs.items()}
        require(not shapes or found == shapes, operation, found, f"every function returns the outputs {shapes}")
        shapes = found
    _, again = next(figure.steps(**choice))
    same = all(torch.equal(torch.nan_to_num(outputs[key]), torch.nan_to_num(again[key])) for key in outputs)
    require(same, operation, "two different answers", "no randomness and no dropout: noise is an input")
    known = {*figure.inputs, *figure.controls} & set(shapes)
    require(not known, operation, sorted(known), "an output has a name of its own")
    _check_carry(figure, shapes)
    return shapes


def check_panels(figure: "LiveFigure") -> None:
    """Every mark and readout names tensors of the figure, and their shapes can be drawn."""
    shapes = figure.shapes | {key: list(value.shape) for key, value in figure.inputs.items()}
    shapes |= {name: [2] for name, control in figure.controls.items() if isinstance(control, Point)}
    shapes |= {name: [c.rows, c.columns] for name, c in figure.controls.items() if isinstance(c, Paint)}
    for panel in figure.panels:
        for mark in panel.marks:
            _check_mark(figure, panel, mark, shapes)
    for readout in figure.readouts.values():
        single = math.prod(figure.shapes.get(readout.output, [0])) == 1
        require(single, f"Readout({readout.name!r})", readout.output, "an output with one number")


def check_description(figure: "LiveFigure", description: str) -> None:
    """The template names controls and readouts, and at least one of them."""
    operation = f"LiveFigure({figure.name!r}, description)"
    names, known = set(re.findall(r"{(\w+)}", description)), {*figure.controls, *figure.readouts}
    require(bool(names), operation, repr(description), "a template that names at least one {control} or {readout}")
    require(names <= known, operation, sorted(names - known), f"names of controls and readouts: {sorted(known)}")
    twice = set(figure.controls) & set(figure.readouts)
    require(not twice, operation, sorted(twice), "a readout and a control have different names")


def _has_images(panel: Panel) -> bool:
    return any(isinstance(mark, Images) for mark in panel.marks)


def _is_counter(control: object) -> bool:
    return isinstance(control, Slider) and control.low >= 1 and control.low % 1 == 0 and control.step % 1 == 0


def _check_carry(figure: "LiveFigure", shapes: dict[str, list[int]]) -> None:
    operation = f"LiveFigure({figure.name!r}).repeat"
    for key, source in (figure.repeat.carry if figure.repeat else {}).items():
        require(source in shapes, operation, source, f"an output: one of {list(shapes)}")
        start = list(figure.settings(figure.default_values())[key].shape)
        require(shapes[source] == start, operation, f"{source} {shapes[source]}", f"the shape of {key}: {start}")


def _check_mark(figure: "LiveFigure", panel: Panel, mark: Mark, shapes: dict[str, list[int]]) -> None:
    operation = f"LiveFigure({figure.name!r}), panel {panel.title!r}, {type(mark).__name__}"
    for name, pattern in mark.names().items():
        require(name in shapes, operation, repr(name), f"a tensor of the figure: one of {sorted(shapes)}")
        fits = any(_fits(shapes[name], option.split()) for option in pattern.split(" | "))
        require(fits, operation, f"{name} of shape {tuple(shapes[name])}", f"shape ({pattern})")
    if isinstance(mark, Trails) and len(shapes[mark.of]) < 3:
        moving = figure.repeat is not None and (mark.of in figure.repeat.carry or mark.of in figure.shapes)
        require(moving, operation, mark.of, "a state of Repeat, or a tensor (times, n, 2)")
    if isinstance(mark.show, str):
        toggle = not mark.show or isinstance(figure.controls.get(mark.show), Toggle)
        require(toggle, f"{operation}(show)", mark.show, "a Toggle's name")
        return
    control = figure.controls.get(mark.show[0])
    known = isinstance(control, Choice) and mark.show[1] in control.options
    require(known, f"{operation}(show)", mark.show, "a Choice's name and one of its keys")


def _fits(shape: Sequence[int], pattern: Sequence[str]) -> bool:
    """Compare (5, 2) with ["n", "2"]: a letter stands for any size."""
    return len(shape) == len(pattern) and all(p.isalpha() or int(p) == s for s, p in zip(shape, pattern, strict=True))
