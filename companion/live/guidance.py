r"""Live figures of chapter 13: points under guidance where everything is known, and digits made in the page.

`guided_cloud()`: three labels, two heaps each. Euler steps along the exact guided field, beside the tilted density:

    ũ_t(x) = (1 − w) u_t(x) + w u_t(x | y),    x_{k+1} = x_k + h ũ_{t_k}(x_k),    t_k = k h,   h = 1/steps
    q(x) = p(x)^{1−w} p(x | y)^w / Z

`guided_digits(model)`: the same step with a trained network, which sees each image twice, without and with the label,
and its guess of the finished image, x̂_1 = x + (1 − t) ũ.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.data.densities import GaussianMixture
from companion.device import generator, randn
from companion.live import Choice, Heat, Images, LiveFigure, Panel, Points, Readout, Repeat, Slider, Trails
from companion.methods.guidance import ExactVelocity, Guided, LabeledMixture
from companion.numerics.paths import CondOT

LABELS = {"blue": "blue (up)", "orange": "orange (left)", "green": "green (right)"}
OUTER, INNER, WIDTH = 2.4, 0.9, 0.4  # distance of the two heaps of a label from the center, and their spread
BETWEEN = (OUTER + INNER) / 2
REACH, CELLS = 4.5, 55  # of the plane that is drawn, and nodes of the heat map along an axis
POINTS, SHOWN = 300, 240  # carried points, and data that are drawn
DIGITS, COLUMNS = 12, 4
SATURATED = 1.1  # a pixel further out than this has left the range [−1, 1] of the data
SOFT = 0.02  # width over which a pixel changes sides, so that a count cannot jump between two runtimes


# ---------------------------------------------------------------------- three labels in the plane


def three_streets() -> LabeledMixture:
    """Three streets that meet at the center: on each, one label, with a heap near the crossing and one far out."""
    angle = torch.tensor([90.0, 210.0, 330.0]).deg2rad()
    ray = torch.stack([angle.cos(), angle.sin()], dim=1)
    heaps = torch.cat([OUTER * ray, INNER * ray])
    covariances = WIDTH**2 * torch.eye(2).expand(6, 2, 2)
    return LabeledMixture(GaussianMixture(heaps, covariances), torch.tensor([0, 1, 2, 0, 1, 2]))


def _log_probs(data: LabeledMixture, label: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x) and log p(x | y), each (n,), for a label of shape () whose value is not known while a graph is made."""
    each = torch.stack([part.log_prob(x) for part in data.classes], dim=1)
    return data.mixture.log_prob(x), each.index_select(1, label.reshape(1))[:, 0]


def _soft_count(x: Tensor) -> Tensor:
    """How many points are nearer to the center than the border of the heaps, (); a border 0.1 wide, so that no runtime
    moves it by much."""
    return torch.sigmoid((BETWEEN - x.norm(dim=1)) / 0.1).sum()


def guided_cloud() -> LiveFigure:
    """Choose a label and a weight: where the guided field carries points, and the density that one would expect."""
    data = three_streets()
    velocity = ExactVelocity(data, CondOT())
    examples, kinds = data.sample(SHOWN, generator=generator(14))
    axis = torch.linspace(-REACH, REACH, CELLS)

    def evaluate(label: Tensor, w: Tensor, steps: Tensor, k: Tensor, x: Tensor, cells: Tensor) -> dict[str, Tensor]:
        y, t = label.long(), k / steps
        x_next = x + Guided(velocity, y, w)(t, x) / steps
        free, conditional = _log_probs(data, y, x_next)
        sure = (conditional - free).exp() / len(LABELS)  # Bayes; the labels are equally likely
        free, conditional = _log_probs(data, y, cells)
        mass = torch.softmax((1 - w) * free + w * conditional, dim=0)
        near = (cells.square().sum(1) < BETWEEN**2).float()
        return {
            "x_next": x_next,
            "tilted": (mass / mass.max()).reshape(CELLS, CELLS),
            "time": (k + 1) / steps,
            "sure": sure.mean(),
            "points_inside": _soft_count(x_next).round(),
            "tilted_inside": (POINTS * (mass * near).sum()).round(),
        }

    plane = {"x": (-REACH, REACH), "y": (-REACH, REACH), "aspect": 1}
    return LiveFigure(
        name="guided-cloud",
        title="The dial w, where everything is known",
        description=(
            f"Three labels, each with a heap near the center and a heap far out. {POINTS} points of noise are carried "
            "by the guided field of the label {label} with weight {w}, in {steps} steps. Left: the points and the way "
            "that they came, over data of all labels. Right: the same points over the density that the formula for w "
            "suggests. At time {time} the mean probability of the label at the points is {sure}. The inner heap holds "
            "{points_inside} of the points; by the density on the right it would hold {tilted_inside} of them."
        ),
        controls=[
            Choice("label", label="label", options=LABELS, value="blue"),
            Slider("w", label="weight w", low=0, high=6, step=0.25, value=1),
            Slider("steps", label="steps", low=1, high=50, step=1, value=30),
        ],
        evaluate=evaluate,
        inputs={
            "x": randn(POINTS, 2, generator=generator(13)),
            "data": examples,
            "kind": torch.tensor([0.0, 1.0, 2.0])[kinds],
            "cells": torch.cartesian_prod(axis, axis).flip(1),
        },
        repeat=Repeat(count="steps", carry={"x": "x_next"}),
        panels=[
            Panel(
                title="the points and the way that they came",
                marks=[
                    Points("data", color="kind", size=2.5, alpha=0.45),
                    Trails("x", color=6, alpha=0.25),
                    Points("x", color=7, size=2, alpha=0.8),
                ],
                **plane,
            ),
            Panel(
                title="the points over the tilted density (blue)",
                marks=[Heat("tilted", limits=(0.0, 1.0)), Points("x", color=7, size=2, alpha=0.6)],
                **plane,
            ),
        ],
        readouts=[
            Readout("time", label="time", output="time", digits=2),
            Readout("sure", label="mean probability of the label", output="sure"),
            Readout("points_inside", label=f"of {POINTS} points, in the inner heap", output="points_inside", digits=1),
            Readout("tilted_inside", label="there by the tilted density", output="tilted_inside", digits=1),
        ],
    )


# ---------------------------------------------------------------------- digits


def guided_digits(model: nn.Module, *, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 15) -> LiveFigure:
    """A trained network draws a digit that the reader chooses, twelve times, with a weight and a number of steps.

    Args:
        model: v(t, x, y) with ten labels, trained with dropped labels.
        shape: Shape of an image.
        seed: Of the noise that the images start from.
    """
    network = copy.deepcopy(model).cpu().eval()  # the chapter goes on sampling with its own
    noise: Float[Tensor, "12 1 8 8"] = randn(DIGITS, *shape, generator=generator(seed))

    def evaluate(label: Tensor, w: Tensor, steps: Tensor, k: Tensor, x: Tensor) -> dict[str, Tensor]:
        t = k / steps
        v = Guided(network, label.long(), w)(t, x)
        x_next = x + v / steps
        return {
            "x_next": x_next,
            "guess": x + (1 - t) * v,
            "time": (k + 1) / steps,
            "rows": 2 * DIGITS * (k + 1),
            "agree": torch.tanh(x_next / SOFT).mean(0).abs().mean(),
            "outside": torch.sigmoid((x_next.abs() - SATURATED) / SOFT).mean(),
        }

    return LiveFigure(
        name="guided-digits",
        title="Label, weight and steps: digits generated in the page",
        description=(
            f"{DIGITS} images of noise become the digit {{label}} in {{steps}} steps of a trained network, guided with "
            "weight {w}. Left: the images at time {time}. Right: what the network, at the last step, expected them to "
            "become. The network has seen {rows} images so far. Their agreement is {agree}: 1 "
            "means that each pixel is dark in all images or light in all. A share of {outside} of the pixels lies "
            "more than 0.1 outside the range of the data."
        ),
        controls=[
            Choice("label", label="label", options={str(digit): str(digit) for digit in range(10)}, value="7"),
            Slider("w", label="weight w", low=0, high=6, step=0.25, value=1),
            Slider("steps", label="steps", low=1, high=40, step=1, value=16),
        ],
        evaluate=evaluate,
        inputs={"x": noise},
        repeat=Repeat(count="steps", carry={"x": "x_next"}),
        panels=[
            Panel(title="the images now", marks=[Images("x", columns=COLUMNS)]),
            Panel(title="what the network expects in the end", marks=[Images("guess", columns=COLUMNS)]),
        ],
        readouts=[
            Readout("time", label="time", output="time", digits=2),
            Readout("agree", label="agreement of the images", output="agree", digits=2),
            Readout("outside", label="share of pixels more than 0.1 outside [−1, 1]", output="outside", digits=2),
            Readout("rows", label="images seen by the network", output="rows", digits=4),
        ],
    )
