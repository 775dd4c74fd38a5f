"""Putting a live figure together: what is refused, what reaches evaluate, and how the kernel answers."""

import pathlib
import runpy

import numpy as np
import pytest
import torch
from torch import nn

from companion.live import (
    Choice,
    Heat,
    Images,
    Line,
    LiveFigure,
    Paint,
    Panel,
    Point,
    Points,
    Readout,
    Repeat,
    Slider,
    Toggle,
    Trails,
)

DEMO = runpy.run_path(str(pathlib.Path(__file__).parent / "demo.py"))
X = torch.linspace(0, 1, 5)
OUTSIDE = Point("p", label="p", value=(5, 5))
MASK = Paint("m", label="m", rows=2, columns=3)
TILES = Panel(marks=[Images("z")])


def build(**changes):
    """A smallest figure, y = a·x, with some arguments changed."""
    arguments = {
        "name": "small",
        "title": "A line",
        "description": "The slope is {a}.",
        "controls": [Slider("a", label="slope", low=0, high=3, step=1, value=1)],
        "evaluate": lambda a, x: {"y": a * x},
        "inputs": {"x": X},
        "panels": [Panel(x=(0, 1), y=(0, 3), marks=[Line("x", "y")])],
    }
    return LiveFigure(**(arguments | changes))


def test_evaluate_receives_each_kind_of_control_as_a_float32_tensor():
    """A number and a truth value have shape (), a point (2,), a choice is its index."""
    seen = {}

    def evaluate(a, b, c, p, x):
        seen.update(a=a, b=b, c=c, p=p)
        return {"y": x + a}

    controls = [
        Slider("a", label="a", low=0, high=1, step=0.5, value=0.5),
        Toggle("b", label="b", value=True),
        Choice("c", label="c", options={"one": "1", "two": "2"}, value="two"),
        Point("p", label="p", value=(0.5, 1.5)),
    ]
    build(controls=controls, evaluate=evaluate, description="{a}")
    assert {key: value.dtype for key, value in seen.items()} == dict.fromkeys("abcp", torch.float32)
    assert {key: value.tolist() for key, value in seen.items()} == {"a": 0.5, "b": 1.0, "c": 1.0, "p": [0.5, 1.5]}


def test_evaluate_receives_a_painted_mask_as_zeros_and_ones():
    """Rows of text, nested numbers and a tensor mean the same mask; what is kept, and travels, are rows of text."""
    paint = Paint("m", label="m", rows=2, columns=3, value=[[0, 1, 0], [1, 0, 0]])
    figure = build(
        controls=[paint],
        evaluate=lambda m, z: {"y": m * z.mean() + m},
        inputs={"z": torch.zeros(1, 4, 6)},
        description="{m}",
        panels=[TILES],
    )
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert figure.values == {"m": [".#.", "#.."]}
    torch.testing.assert_close(figure.compute()["y"], expected, rtol=0, atol=0)
    for same in (["##.", "..#"], ("##.", "..#"), [[1, 1, 0], [False, 0, True]], torch.tensor([[1, 1, 0], [0, 0, 1]])):
        figure.values = {"m": same}
        assert figure.values == {"m": ["##.", "..#"]}
    assert figure.compute(m=torch.ones(2, 3))["y"].tolist() == [[1.0] * 3] * 2
    assert figure.spec["controls"][0]["value"] == [".#.", "#.."]


def test_a_mask_is_bare_unless_it_is_told_otherwise():
    """Without a value nothing is painted; the settings of the references paint all, a half and every other cell."""
    assert MASK.value == ("...", "...")
    assert MASK.samples() == [["###", "###"], ["###", "..."], ["#.#", ".#."]]
    for sample in MASK.samples():
        MASK.check(sample)


def test_a_mask_can_be_drawn_like_any_tensor():
    """A heat map of the mask itself needs no output of evaluate."""
    heat = Panel(x=(0, 1), y=(0, 1), marks=[Heat("m")])
    controls, inputs = [MASK], {"z": torch.zeros(1, 4, 6)}
    figure = build(
        controls=controls, inputs=inputs, evaluate=lambda m: {"y": m}, description="{m}", panels=[TILES, heat]
    )
    assert figure.spec["panels"][1]["marks"][0]["values"] == "m"


def test_a_function_receives_only_the_inputs_that_it_names():
    """Constants that only a mark draws stay out of the graph."""
    figure = build(inputs={"x": X, "unused": X})
    assert figure.takes == {"evaluate": ["x", "a"]}


def test_a_module_may_be_evaluate():
    """The inputs are read off the signature of forward."""

    class Scale(nn.Module):
        def forward(self, x, a):
            return {"y": a * x}

    torch.testing.assert_close(build(evaluate=Scale()).compute(a=3)["y"], 3 * X)


def test_repetition_feeds_outputs_back():
    """x ← x + 1/steps, from k = 0 to steps − 1, moves x by exactly 1, whatever the number of steps."""
    counted = []

    def evaluate(x, k, n):
        counted.append((float(k), float(n)))
        return {"x_next": x + 1 / n}

    figure = build(
        evaluate=evaluate,
        controls=[Slider("n", label="n", low=1, high=8, step=1, value=4)],
        description="{n}",
        inputs={"x": torch.zeros(3, 2)},
        repeat=Repeat(count="n", carry={"x": "x_next"}, total="n"),
        panels=[Panel(x=(0, 1), y=(0, 1), marks=[Points("x"), Trails("x")])],
    )
    counted.clear()
    torch.testing.assert_close(figure.compute(n=8)["x"], torch.ones(3, 2))
    assert counted == [(float(k), 8.0) for k in range(8)]


def test_a_choice_selects_the_function():
    """Each option answers with its own function."""
    controls = [Choice("law", label="law", options={"up": "up", "down": "down"}, value="up")]
    pair = {"up": lambda x: {"y": x}, "down": lambda x: {"y": -x}}
    figure = build(controls=controls, evaluate=pair, select="law", description="{law}")
    torch.testing.assert_close(figure.compute(law="down")["y"], -X)
    assert set(figure.functions) == {"up", "down"}


def test_the_text_form_says_nothing_that_changes_from_run_to_run():
    """No address of an object: the notebook test compares this text."""
    assert repr(build()) == "LiveFigure('small', controls: a)"


def test_constants_travel_as_one_run_of_float32():
    """The buffer holds the tensors in order, and the index says where each begins."""
    figure = build(inputs={"x": X, "grid": torch.ones(2, 3, dtype=torch.float64)})
    floats = np.frombuffer(figure.constants, "<f4")
    assert [(e["name"], e["shape"], e["offset"]) for e in figure.spec["constants"]] == [
        ("x", [5], 0),
        ("grid", [2, 3], 5),
    ]
    np.testing.assert_array_equal(floats, np.concatenate([X.numpy(), np.ones(6)]).astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Not Kebab"}, "kebab-case"),
        ({"panels": []}, "at least one"),
        ({"description": "Nothing is named."}, "names at least one"),
        ({"description": "{b} is unknown."}, "names of controls"),
        ({"inputs": {"x": X, "bad": torch.tensor([float("nan")])}}, "finite"),
        ({"inputs": {"x": X, "a": X}}, "different names"),
        ({"inputs": {"x": X, "big": torch.zeros(300_000)}}, "at most 1048576"),
        ({"evaluate": lambda q: {"y": q}}, "arguments are among"),
        ({"evaluate": lambda x: x}, "dict of tensors"),
        ({"evaluate": lambda x: {"x": x}}, "name of its own"),
        ({"evaluate": lambda x: {"y": torch.rand(5)}}, "no randomness"),
        ({"evaluate": lambda x: {"y": x[:, None, None]}}, "shape (n | m n)"),
        ({"evaluate": lambda x: {"z": x}}, "a tensor of the figure"),
        ({"evaluate": {"k": lambda x: {"y": x}}}, "one function"),
        ({"select": "a"}, "Choice controls"),
        ({"controls": [Slider("a", label="a", low=0, high=1, step=1, value=1)] * 2}, "distinct"),
        ({"controls": [OUTSIDE], "description": "{p}", "evaluate": lambda x: {"y": x}}, "inside its panel"),
        ({"controls": [MASK], "description": "{m}", "evaluate": lambda x: {"y": x}}, "shows Images"),
        ({"controls": [Paint("m", label="m", panel=1)], "description": "{m}", "evaluate": lambda x: {"y": x}},
         "its panel exists"),
        ({"controls": [MASK, Paint("n", label="n")], "description": "{m}", "evaluate": lambda x: {"y": x},
          "inputs": {"x": X, "z": torch.zeros(1, 4, 6)}, "panels": [TILES]}, "one mask a panel"),
        ({"readouts": [Readout("r", label="r", output="y")]}, "one number"),
        ({"repeat": Repeat(count="a", carry={"x": "y"})}, "whole steps"),
        ({"repeat": Repeat(count=3, carry={"q": "y"})}, "starts from"),
        ({"repeat": Repeat(count=3, carry={"x": "q"})}, "an output"),
        ({"panels": [Panel(x=(0, 1), y=(0, 1), marks=[Trails("y")])]}, "a state of Repeat"),
        ({"panels": [Panel(x=(0, 1), y=(0, 1), marks=[Line("x", "y", show="a")])]}, "a Toggle's name"),
        ({"panels": [Panel(x=(0, 1), y=(0, 1), marks=[Line("x", "y", show=("a", "b"))])]}, "one of its keys"),
    ],
)  # fmt: skip
def test_a_figure_that_does_not_fit_is_refused_with_the_rule(changes, message):
    """The message names the rule that was broken."""
    with pytest.raises(ValueError, match=r"received .*; ") as caught:
        build(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: Slider("A b", label="a", low=0, high=1, step=1, value=0), "identifier"),
        (lambda: Slider("a", label=" ", low=0, high=1, step=1, value=0), "label"),
        (lambda: Slider("a", label="a", low=1, high=0, step=1, value=0), "low < high"),
        (lambda: Slider("a", label="a", low=0, high=float("inf"), step=1, value=0), "finite"),
        (lambda: Slider("a", label="a", low=0, high=1, step=2, value=0), "step"),
        (lambda: Slider("a", label="a", low=0, high=1, step=1, value=2), "0 <= value <= 1"),
        (lambda: Choice("a", label="a", options={"one": "1"}, value="one"), "two options"),
        (lambda: Choice("a", label="a", options={"One": "1", "two": "2"}, value="two"), "kebab-case"),
        (lambda: Choice("a", label="a", options={"one": "1", "two": "2"}, value="three"), "one of"),
        (lambda: Point("p", label="p", value=(0, float("nan"))), "finite"),
        (lambda: Paint("m", label="m", rows=0), "1..64"),
        (lambda: Paint("m", label="m", columns=65), "1..64"),
        (lambda: Paint("m", label="m", rows=2, columns=2, value=["..", "."]), "2 rows of 2 cells"),
        (lambda: Paint("m", label="m", rows=2, columns=2, value=["..", ".x"]), "2 rows of 2 cells"),
        (lambda: Paint("m", label="m", rows=2, columns=2, value=[[0, 1], [0, 0.5]]), "2 rows of 2 cells"),
        (lambda: Paint("m", label="m", rows=2, columns=2, value=[0, 1, 0, 1]), "2 rows of 2 cells"),
        (lambda: Paint("m", label="m", rows=2, columns=2, value=None), "2 rows of 2 cells"),
        (lambda: Points("x", color=8), "palette"),
        (lambda: Points("x", alpha=0), "alpha"),
        (lambda: Points("x", limits=(1, 1)), "low < high"),
        (lambda: Panel(marks=[Points("x")]), "only Images"),
        (lambda: Panel(x=(0, 1), y=(1, 0), marks=[Points("x")]), "low < high"),
        (lambda: Panel(x=(0, 1), y=(0, 1), marks=[]), "at least one mark"),
        (lambda: Readout("r", label="r", output="y", digits=0), "1..9"),
        (lambda: Repeat(count=0, carry={"x": "y"}), "one step"),
        (lambda: Repeat(count=2, carry={}), "fed back"),
    ],
)
def test_a_part_that_cannot_be_is_refused_with_the_rule(part, message):
    """Controls, marks and panels check themselves."""
    with pytest.raises(ValueError, match=r"received .*; ") as caught:
        part()
    assert message in str(caught.value)


def test_values_from_outside_are_checked():
    """Setting the values in a notebook goes through the controls' rules."""
    figure = build()
    figure.values = {"a": 2}
    assert figure.values == {"a": 2}
    with pytest.raises(ValueError, match="0 <= value <= 3"):
        figure.values = {"a": 9}
    with pytest.raises(ValueError, match="controls"):
        figure.compute(b=1)


# --- the wire ---------------------------------------------------------------------------------------------------------


def ask(figure, content, *tensors):
    """Send a message as the front end does; return what the kernel sends back."""
    sent = []
    figure.send = lambda reply, buffers=None: sent.append((reply, buffers))
    figure._handle_custom_msg(content, [memoryview(tensor.numpy().tobytes()) for tensor in tensors])
    return sent[0]


def test_the_kernel_answers_a_question_with_float32_buffers():
    """Constants need not be sent; the answer carries the id, names, shapes and bytes."""
    question = {"op": "evaluate", "id": "view:7", "graph": "evaluate", "inputs": [{"name": "a", "shape": []}]}
    reply, buffers = ask(build(), question, torch.tensor(2.0))
    assert reply == {"id": "view:7", "outputs": [{"name": "y", "shape": [5]}]}
    np.testing.assert_allclose(np.frombuffer(buffers[0], "<f4"), 2 * X.numpy(), rtol=1e-7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"op": "dance", "id": "1"}, "the only question"),
        ({"op": "evaluate", "id": "1", "graph": "other", "inputs": []}, "the graph is one of"),
        ({"op": "evaluate", "id": "1", "graph": "evaluate", "inputs": []}, "also needs"),
        ({"op": "evaluate", "id": "1", "graph": "evaluate", "inputs": [{"name": "a", "shape": [7]}]}, ""),
    ],
)
def test_a_bad_question_is_answered_with_its_error(content, message):
    """The kernel never falls silent: an exception becomes a text for the figure to show."""
    reply, _ = ask(build(), content, *([torch.tensor(1.0)] if content.get("inputs") else []))
    assert reply["id"] == "1"
    assert message in reply["error"]


def test_the_demonstration_uses_every_part():
    """What the browser tests run on covers all kinds of controls and marks but the plain point cloud of others."""
    specs = [DEMO[name]().spec for name in ("wave", "sampler", "painter")]
    kinds = {mark["kind"] for spec in specs for panel in spec["panels"] for mark in panel["marks"]}
    assert kinds == {"area", "arrows", "bars", "heat", "images", "line", "points", "segments", "trails"}
    assert {control["kind"] for spec in specs for control in spec["controls"]} == {
        "slider",
        "choice",
        "toggle",
        "point",
        "paint",
    }
