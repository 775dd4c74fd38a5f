r"""Live figures of chapter 12: whose arrow a point follows, and the trained networks at work.

`whose_arrow()`: the conditional velocities of four data at a point (t, x), their posterior weights, and the mean:

    u_t(x) = Σ_i w_i (x_1^i − x)/(1 − t),    w_i = softmax_i( −|x − t x_1^i|² / 2(1 − t)² )

`flow_sampler(models)`: one step of a solver on a trained network, repeated from noise to data:

    x_{k+1} = step(v_θ, t_k, x_k, h),    t_k = k/steps,   h = 1/steps
"""

import copy
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.data.empirical import Empirical
from companion.device import generator, randn
from companion.live import (
    Arrows,
    Bars,
    Choice,
    LiveFigure,
    Panel,
    Point,
    Points,
    Readout,
    Repeat,
    Slider,
    Toggle,
    Trails,
)
from companion.numerics.ode import Euler, Midpoint, RungeKutta4
from companion.numerics.paths import CondOT

COUPLINGS = {"independent": "independent pairs", "transport": "minibatch transport", "reflow": "reflow"}
SOLVERS = {
    "euler": ("Euler", Euler(steps=1), 1),
    "midpoint": ("midpoint", Midpoint(steps=1), 2),
    "rk4": ("Runge–Kutta 4", RungeKutta4(steps=1), 4),
}
STEPS_AHEAD, END = 24, 0.999  # of the trajectory that whose_arrow draws; its field has no value at t = 1
DRAWN = 0.7  # arrows are drawn over this part of the time that is left: velocities grow without bound


# ---------------------------------------------------------------------- four data, four arrows


def _ahead(field, t: Tensor, x: Tensor) -> Tensor:
    """The way of one point from time t to the data, (times, 1, 2). Euler's steps cannot pass a target at t = 1."""
    ways, h = [x], (END - t) / STEPS_AHEAD
    for k in range(STEPS_AHEAD):
        ways.append(ways[-1] + h * field(t + k * h, ways[-1]))
    return torch.stack(ways)


def whose_arrow() -> LiveFigure:
    """A point at (t, x), the velocity that each of four data demands of it, and their weighted mean."""
    points = torch.tensor([[-2.0, 1.2], [-1.3, -1.7], [1.8, 1.6], [1.6, -1.2]])
    data, path = Empirical(points), CondOT()

    def evaluate(t: Tensor, x: Tensor, data_at: Tensor) -> dict[str, Tensor]:
        at = x.reshape(1, 2)
        weights = data.posterior(path, t, at)[0]
        left = data_at - at
        mean = (weights[:, None] * left).sum(0) / (1 - t)
        return {
            "here": at.expand(4, 2),
            "demands": DRAWN * left,
            "advice": DRAWN * (1 - t) * mean,
            "weights": weights,
            "mean": mean,
            "way": _ahead(lambda s, y: data.marginal_velocity(path, s, y), t, at),
            "speed": mean.square().sum().sqrt(),
            "largest": weights.max(),
        }

    return LiveFigure(
        name="whose-arrow",
        title="Four data, four demands, one point",
        description=(
            "A point x at time {t} among four data. From it start four thin arrows, the velocities that would carry it "
            "to each datum in the time that is left, and a thick arrow, their weighted mean; all are drawn over a part "
            "of that time. The thin curve is the way that the point goes if it follows the mean to the end. Bars show "
            "how likely each datum is to have sent a point here: the largest weight is {largest}. The speed of the "
            "mean is {speed}."
        ),
        controls=[
            Slider("t", label="time t", low=0.0, high=0.95, step=0.01, value=0.4),
            Point("x", label="the point x", panel=0, value=(-0.4, 0.3), color=1),
        ],
        evaluate=evaluate,
        inputs={"data_at": points, "number": torch.arange(1.0, 5.0), "kind": torch.tensor([0.0, 2.0, 3.0, 4.0])},
        panels=[
            Panel(
                title="what each demands, and the mean",
                x=(-3, 3),
                y=(-3, 3),
                xlabel="across",
                ylabel="up",
                aspect=1,
                marks=[
                    Points("data_at", color="kind", size=7, alpha=1.0),
                    Arrows("here", "demands", color="kind"),
                    Trails("way", color=7, width=1.2, alpha=0.6),
                    Arrows("x", "advice", width=3.5, color=1, label="weighted mean"),
                ],
            ),
            Panel(
                title="how likely each datum sent you here",
                x=(0.4, 4.6),
                y=(0, 1),
                xlabel="datum",
                ylabel="weight",
                marks=[Bars("number", "weights", color="kind", alpha=0.8)],
            ),
        ],
        readouts=[
            Readout("largest", label="largest weight", output="largest"),
            Readout("speed", label="speed of the mean", output="speed"),
        ],
    )


# ---------------------------------------------------------------------- the trained networks


def _sampler(model: nn.Module, solver: str):
    """One step of the figure `flow-sampler`, and how far the points then are from the data."""
    _, method, stages = SOLVERS[solver]

    def evaluate(steps, k, x, data):
        x_next = method.step(model, k / steps, x, 1 / steps)
        gaps = (x_next[:, None] - data).square().sum(2)
        return {
            "x_next": x_next,
            "time": (k + 1) / steps,
            "distance": gaps.amin(1).clamp(min=1e-12).sqrt().mean(),
            "evaluations": steps * stages,
        }

    return evaluate


def flow_sampler(models: Mapping[str, nn.Module], data: Float[Tensor, "n 2"], *, n: int = 400) -> LiveFigure:
    """Trained networks carry noise to data, step by step: choose the network, the solver and the number of steps.

    Args:
        models: A network v(t, x) for each key of `COUPLINGS`.
        data: Points of the target, to look at and to measure the distance to, (n, 2).
        n: Number of points that are carried.
    """
    networks = {key: copy.deepcopy(models[key]).cpu().eval() for key in COUPLINGS}  # the chapter's stay where they are
    return LiveFigure(
        name="flow-sampler",
        title="The trained networks, sampling",
        description=(
            f"{n} points of noise are carried to a ring of eight heaps by a network that was trained with "
            "{coupling}, in {steps} steps of the solver {solver}. Left: the points and the way that they came. Right: "
            "the points over the data. At the end, after {evaluations} evaluations of the network, a point is "
            "{distance} away from the nearest datum on average."
        ),
        controls=[
            Choice("coupling", label="trained with", options=COUPLINGS, value="independent"),
            Choice("solver", label="solver", options={key: s[0] for key, s in SOLVERS.items()}, value="euler"),
            Slider("steps", label="steps", low=1, high=30, step=1, value=8),
            Toggle("trails", label="show the ways", value=True),
        ],
        evaluate={(c, s): _sampler(networks[c], s) for c in COUPLINGS for s in SOLVERS},
        select=("coupling", "solver"),
        inputs={"x": randn(n, 2, generator=generator(12)), "data": data.cpu().float()},
        repeat=Repeat(count="steps", carry={"x": "x_next"}),
        panels=[
            Panel(
                title="the points and the way that they came",
                x=(-4, 4),
                y=(-4, 4),
                aspect=1,
                marks=[Trails("x", color=6, show="trails"), Points("x", color=0)],
            ),
            Panel(
                title="the points over the data",
                x=(-4, 4),
                y=(-4, 4),
                aspect=1,
                marks=[
                    Points("data", color=1, size=1.5, alpha=0.5, label="data"),
                    Points("x", color=0, label="points"),
                ],
            ),
        ],
        readouts=[
            Readout("time", label="time", output="time"),
            Readout("distance", label="mean distance to the nearest datum", output="distance"),
            Readout("evaluations", label="evaluations of the network", output="evaluations", digits=1),
        ],
    )
