r"""Live figure of chapter 09: one point, one cloud and one grid on their way through the layers of a trained flow.

    z = y_0 → y_1 → … → y_K = x,    y_j = T_j(y_{j−1})
    log p_k(y_k) = log p_z(z) − Σ_{j≤k} log |det J_{T_j}(y_{j−1})|

Each layer is an affine coupling: it moves one of the two coordinates and keeps the other. A point is dragged on either
side: z before the layers, and y after the first k of them, which the inverse layers carry back. The flow has been
trained on two moons by its likelihood (`moons_flow`).
"""

import functools
import math

import torch
from torch import Tensor

from companion.data.batches import draws
from companion.data.toys import TwoMoons, two_moons
from companion.device import generator, randn, seeded
from companion.live import Heat, Line, LiveFigure, Panel, Point, Points, Readout, Slider, Toggle, Trails
from companion.methods.normalizing_flows import Flow, negative_log_likelihood, real_nvp
from companion.training import adam, fit, warmup_cosine

LAYERS, STEPS = 6, 400
EDGE, CELLS = 3.6, 60  # half the side of both planes, which hold the whole cloud at every stop; cells along a side
LINES, ALONG = 13, 61  # grid lines in each direction, points of each
FLOOR = -12.0  # log-densities below are drawn there


def moons() -> TwoMoons:
    """The chapter's two moons: centered, and about as large as the base cloud."""
    return two_moons(0.1, scale=1.5, shift=(-0.75, -0.375))


@functools.cache
def moons_flow(*, layers: int = LAYERS, steps: int = STEPS, seed: int = 6) -> Flow:
    """A RealNVP of `layers` affine couplings, trained on the moons for a few seconds.

    The seed is chosen for the picture: every layer moves visibly, and no point leaves the panels on the way.
    """
    g = generator(seed)
    with seeded(g):
        flow = real_nvp(2, transforms=layers, hidden=(32, 32))
    optimizer = adam(flow, lr=1e-2)
    rate = warmup_cosine(optimizer, warmup=20, steps=steps)
    batches = (x for (x,) in draws(moons(), size=256, generator=g))
    for _ in fit(flow, negative_log_likelihood, batches, steps=steps, optimizer=optimizer, schedule=rate):
        pass
    return flow.eval().requires_grad_(False)


def _stops(layers: list, points: Tensor) -> tuple[Tensor, Tensor]:
    """Where the points are before and after each layer, (K + 1, n, 2), and the sums of log-determinants, (K + 1, n)."""
    stops, sums = [points], [torch.zeros_like(points[:, 0])]
    for layer in layers:
        moved, log_det = layer(stops[-1])
        stops.append(moved)
        sums.append(sums[-1] + log_det)
    return torch.stack(stops), torch.stack(sums)


def _normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(-1) - math.log(2 * math.pi)


def _undo(layers: list, k: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """What the inverses of the first k layers make of the points: (K + 1, n, 2) from y_k (entries K … k) down to z,
    and the sums of log |det J_{T⁻¹}| on the way."""
    stops, sums = [points], [torch.zeros_like(points[:, 0])]
    for number in range(len(layers), 0, -1):
        back, log_det = layers[number - 1].inverse(stops[-1])
        done = k >= number - 0.5
        stops.append(torch.where(done, back, stops[-1]))
        sums.append(sums[-1] + torch.where(done, log_det, torch.zeros_like(log_det)))
    return torch.stack(stops[::-1]), torch.stack(sums[::-1])


def _evaluate(flow: Flow):
    layers = list(flow.transforms)
    count = len(layers)

    def evaluate(k: Tensor, z: Tensor, y: Tensor, cloud: Tensor, grid: Tensor, cells: Tensor, number: Tensor):
        chosen = (1 - (number - k).abs()).clamp(0, 1)  # 1 at the k-th stop, 0 at the others
        before = number <= k + 0.5

        ahead, sums = _stops(layers, torch.cat([z[None], cloud, grid]))
        now = (chosen[:, None, None] * ahead).sum(0)
        lines = now[1 + len(cloud) :].reshape(2 * LINES, ALONG, 2)
        on_the_way = _normal(z) - sums[:, 0]

        past, gained = _undo(layers, k, torch.cat([y[None], cells]))
        home = past[0]
        log_p = _normal(home) + gained[0]
        # The density of y at each stop: what it has at home, less what the layers up to there have stretched.
        green = _normal(home[0]) + gained[0, 0] - gained[:, 0]
        return {
            "image": now[0],
            "moved_cloud": now[1 : 1 + len(cloud)],
            "lines_x": lines[..., 0],
            "lines_y": lines[..., 1],
            "stairs": torch.where(before[:, None, None], ahead[:, :1], now[:1]),
            "home": home[0],
            "shades": log_p[1:].exp().reshape(CELLS, CELLS),
            "orange": on_the_way.clamp(min=FLOOR),
            "green": torch.where(before, green.clamp(min=FLOOR), torch.full_like(green, math.nan)),
            "orange_now": torch.stack([k, (chosen * on_the_way).sum().clamp(min=FLOOR)]),
            "green_now": torch.stack([k, log_p[0].clamp(min=FLOOR)]),
            "start": _normal(z),
            "stretch": (chosen * sums[:, 0]).sum(),
            "landed": (chosen * on_the_way).sum(),
            "asked": log_p[0],
        }

    return evaluate, count


def _grid_lines() -> Tensor:
    """Upright lines, then level ones, as points: (2 · LINES · ALONG, 2)."""
    at, along = torch.linspace(-3, 3, LINES), torch.linspace(-3, 3, ALONG)
    upright = torch.stack(torch.meshgrid(at, along, indexing="ij"), dim=-1)
    return torch.cat([upright, upright.flip(-1)]).reshape(-1, 2)


def through_the_layers(flow: Flow | None = None) -> LiveFigure:
    """A trained flow, layer by layer: drag a point on either side and read its log-density on the way.

    Args:
        flow: a flow of the plane with a standard normal base; the one of `moons_flow` unless given.
    """
    evaluate, count = _evaluate(flow or moons_flow())
    side = torch.linspace(-EDGE, EDGE, CELLS + 1)
    middle = (side[1:] + side[:-1]) / 2
    cloud = randn(500, 2, generator=generator(3))
    grid = _grid_lines()
    straight = grid.reshape(2 * LINES, ALONG, 2)
    plane = {"x": (-EDGE, EDGE), "y": (-EDGE, EDGE), "aspect": 1}
    return LiveFigure(
        name="through-the-layers",
        title="A cloud, a grid and a point on their way through the layers",
        description=(
            "Left: a round cloud, colored by its left and right half, a straight grid and a movable point z. Middle: "
            "all of it after {k} layers, each of which moves one coordinate only, so that the way of z is a staircase; "
            "shades show the density. A second movable point y lies there, and its origin is marked on the left. "
            "Right: the log-density of both points from layer to layer. The log-density of z is {start}; where it has "
            "landed, {landed}. The log-density at y is {asked}."
        ),
        controls=[
            Slider("k", label="k, layers done", low=0, high=count, step=1, value=count),
            Point("z", label="z, before the layers", panel=0, value=(1.0, 1.2), color=1),
            Point("y", label="y, after the layers", panel=1, value=(-1.6, 1.1), color=2),
            Toggle("density", label="density as shades", value=True),
            Toggle("net", label="grid", value=True),
        ],
        evaluate=evaluate,
        inputs={
            "cloud": cloud,
            "half": (cloud[:, 0] > 0).float() * 3,
            "grid": grid,
            "straight_x": straight[..., 0],
            "straight_y": straight[..., 1],
            "cells": torch.cartesian_prod(middle, middle).flip(1),
            "number": torch.arange(count + 1.0),
        },
        panels=[
            Panel(
                title="before: z",
                **plane,
                marks=[
                    Line("straight_x", "straight_y", color=6, width=0.5, alpha=0.5, show="net"),
                    Points("cloud", color="half", size=1.6, alpha=0.6),
                    Points("home", color=2, size=6, alpha=1.0, label="where y comes from"),
                ],
            ),
            Panel(
                title="after k layers",
                **plane,
                marks=[
                    Heat("shades", alpha=0.7, show="density"),
                    Line("lines_x", "lines_y", color=6, width=0.5, alpha=0.5, show="net"),
                    Points("moved_cloud", color="half", size=1.6, alpha=0.6),
                    Trails("stairs", color=1, width=1.6, alpha=0.9),
                    Points("image", color=1, size=6, alpha=1.0, label="where z has landed"),
                ],
            ),
            Panel(
                title="log-density on the way",
                x=(-0.3, count + 0.3),
                y=(FLOOR - 0.3, 2),
                xlabel="layers",
                ylabel="log p",
                marks=[
                    Line("number", "orange", color=1, label="z"),
                    Line("number", "green", color=2, label="y"),
                    Points("orange_now", color=1, size=6, alpha=1.0),
                    Points("green_now", color=2, size=6, alpha=1.0),
                ],
            ),
        ],
        readouts=[
            Readout("start", label="log-density of z", output="start"),
            Readout("stretch", label="log |det| so far", output="stretch"),
            Readout("landed", label="log-density where z has landed", output="landed"),
            Readout("asked", label="log-density at y", output="asked"),
        ],
    )
