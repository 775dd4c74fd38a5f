r"""Live figures of chapter 08: a field carries particles and their density, and Langevin's step size.

`vector_field()`: particles move for the time 2π, one step of a solver at a time, beside the exact flow φ_{0,t}:

    x_{k+1} = step(v, t_k, x_k, h),   h = 2π / steps,   error = √(mean |x_k − φ_{0,t_k}(x_0)|²)

and the exact density, pulled back to the known one: p_t(y) = p_0(φ_{t,0}(y)) |det ∂φ_{t,0}(y)|.

`langevin_step()`: x ← x + h ∇log p(x) + c ε with c = √(2h), or with one of the wrong noises.
"""

import math

import torch
from torch import Tensor

from companion.device import generator, randn
from companion.live import (
    Arrows,
    Bars,
    Choice,
    Heat,
    Line,
    LiveFigure,
    Panel,
    Points,
    Readout,
    Repeat,
    Segments,
    Slider,
    Trails,
)
from companion.numerics.ode import Euler, Heun, Midpoint, RungeKutta4

TURN = 2 * math.pi
RADIUS, WIDTH = 1.2, 0.16  # of the ring of heaps, and of each heap
SOLVERS = {
    "euler": ("Euler", Euler(steps=1)),
    "midpoint": ("midpoint", Midpoint(steps=1)),
    "heun": ("Heun", Heun(steps=1)),
    "rk4": ("Runge–Kutta 4", RungeKutta4(steps=1)),
}


# ---------------------------------------------------------------------- fields, their exact flows and divergences


def _quarter_turn(x: Tensor) -> Tensor:
    return torch.stack([-x[:, 1], x[:, 0]], dim=1)


def _spiral_flow(pull: float, t: Tensor, x: Tensor) -> Tensor:
    return torch.exp(-pull * t) * (torch.cos(t) * x + torch.sin(t) * _quarter_turn(x))


def _stiff_rates(x: Tensor) -> Tensor:
    return torch.tensor([-0.3, -12.0], dtype=x.dtype)


def _pendulum(t: Tensor, x: Tensor) -> Tensor:
    return torch.stack([x[:, 1], -torch.sin(x[:, 0])], dim=1)


def _pendulum_flow(s: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """No closed form: 8 Runge–Kutta steps, right to three digits even for the longest step of the figure, π/2."""
    solver, h = RungeKutta4(steps=1), (t - s) / 8
    for _ in range(8):
        x = solver.step(_pendulum, s, x, h)
    return x


FIELDS = {  # name: label, v(t, x), φ_{s,t}(x) as flow(s, t, x), ∫_s^t div v
    "circles": (
        "circles",
        lambda t, x: _quarter_turn(x),
        lambda s, t, x: _spiral_flow(0.0, t - s, x),
        lambda s, t: 0.0 * (t - s),
    ),
    "spiral": (
        "spiral",
        lambda t, x: -0.3 * x + _quarter_turn(x),
        lambda s, t, x: _spiral_flow(0.3, t - s, x),
        lambda s, t: -0.6 * (t - s),
    ),
    "pendulum": ("pendulum", _pendulum, _pendulum_flow, lambda s, t: 0.0 * (t - s)),
    "season": (
        "pull with a season (changes with time)",
        lambda t, x: -torch.sin(t) * x,
        lambda s, t, x: x * torch.exp(torch.cos(t) - torch.cos(s)),
        lambda s, t: 2 * (torch.cos(t) - torch.cos(s)),
    ),
    "stiff": (
        "stiff: slow across, fast down",
        lambda t, x: _stiff_rates(x) * x,
        lambda s, t, x: x * torch.exp(_stiff_rates(x) * (t - s)),
        lambda s, t: -12.3 * (t - s),
    ),
}


def _bell_log_prob(x: Tensor, means: Tensor, std: float) -> Tensor:
    """log-density of equal bells with standard deviation `std` around each row of `means`."""
    square = (x[:, None, :] - means).square().sum(-1)
    return torch.logsumexp(-square / (2 * std**2), dim=1) - math.log(len(means) * TURN * std**2)


def _one_of(tensors: list[Tensor], index: Tensor) -> Tensor:
    """The tensor that a Choice's index picks, as plain tensor operations."""
    return torch.index_select(torch.stack(tensors), 0, index.to(torch.int64).reshape(1))[0]


def _carried(field: str):
    """One step of the figure `vector-field`."""
    _, v, flow, divergence = FIELDS[field]

    def evaluate(solver, steps, k, x, exact, back, arrows_at, means):
        h = TURN / steps
        t = k * h
        x_next = _one_of([method.step(v, t, x, h) for _, method in SOLVERS.values()], solver)
        exact_next, back_next = flow(t, t + h, exact), flow(t + h, t, back)
        log_p = _bell_log_prob(back_next, means, WIDTH) - divergence(0.0 * t, t + h)
        arrows = v(t + h, arrows_at)
        return {
            "x_next": torch.clamp(x_next, -50, 50),
            "exact_next": exact_next,
            "back_next": torch.clamp(back_next, -1e4, 1e4),
            "log_p": torch.clamp(log_p, -5, 4).reshape(49, 49),
            "arrows": 0.35 * arrows / (1 + torch.linalg.vector_norm(arrows, dim=1, keepdim=True)),
            "error": (x_next - exact_next).square().sum(1).mean().sqrt(),
            "evaluations": steps * _one_of([steps * 0 + s.tableau.stages for _, s in SOLVERS.values()], solver),
        }

    return evaluate


def vector_field() -> LiveFigure:
    """Particles and the density that they sample, carried by a field: choose the field, the solver, the steps."""
    angle = torch.arange(8) * TURN / 8
    means = RADIUS * torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)
    start = means.repeat(12, 1) + WIDTH * randn(96, 2, generator=generator(8))
    axis, coarse = torch.arange(-24, 25) / 8, torch.linspace(-2.6, 2.6, 12)
    return LiveFigure(
        name="vector-field",
        title="A field carries particles, and a density",
        description=(
            "96 particles start as eight round heaps on a ring and are carried by the field {field} for the time 2π, "
            "in {steps} steps of the solver {solver}. Left: the particles, the way that they came, and short lines "
            "from where the exact flow puts them to where the solver does. Right: the log of the density carried by "
            "the exact flow. At the end the root mean square distance from the exact flow is {error}, for "
            "{evaluations} evaluations of the field."
        ),
        controls=[
            Choice("field", label="field", options={key: f[0] for key, f in FIELDS.items()}, value="circles"),
            Choice("solver", label="solver", options={key: s[0] for key, s in SOLVERS.items()}, value="euler"),
            Slider("steps", label="steps", low=4, high=60, step=1, value=24),
        ],
        select="field",
        evaluate={field: _carried(field) for field in FIELDS},
        inputs={
            "x": start,
            "exact": start.clone(),
            "back": torch.cartesian_prod(axis, axis).flip(1),
            "arrows_at": torch.cartesian_prod(coarse, coarse),
            "means": means,
            "heap": (torch.arange(96) % 8).float(),
        },
        repeat=Repeat(
            count="steps",
            carry={"x": "x_next", "exact": "exact_next", "back": "back_next"},
            index="k",
            total="steps",
        ),
        panels=[
            Panel(
                title="particles",
                x=(-3, 3),
                y=(-3, 3),
                xlabel="x₁",
                ylabel="x₂",
                aspect=1,
                marks=[
                    Arrows(at="arrows_at", by="arrows", color=7, alpha=0.5),
                    Trails("x", color="heap", alpha=0.2),
                    Segments(start="exact", end="x", color=7, alpha=0.35, label="from the exact flow to the solver"),
                    Points("x", color="heap", size=3, alpha=0.9),
                ],
            ),
            Panel(
                title="log-density of the exact flow",
                x=(-3, 3),
                y=(-3, 3),
                xlabel="x₁",
                ylabel="x₂",
                aspect=1,
                marks=[Heat("log_p", limits=(-5.0, 4.0))],
            ),
        ],
        readouts=[
            Readout("error", label="distance from the exact flow", output="error", digits=3),
            Readout("evaluations", label="evaluations of the field", output="evaluations", digits=1),
        ],
    )


# ---------------------------------------------------------------------- Langevin

NOISE = {
    "right": ("√(2h)", lambda h: torch.sqrt(2 * h)),
    "root-h": ("√h", torch.sqrt),
    "plain": ("2h", lambda h: 2 * h),
    "none": ("0", lambda h: 0 * h),
}
MEANS, STD, WEIGHTS = (-1.5, 1.0), 0.5, (0.35, 0.65)


def two_bells(x: Tensor) -> tuple[Tensor, Tensor]:
    """Density and score of the target, a mixture of two bells, at numbers `x` of shape (n,)."""
    means, weights = torch.tensor(MEANS, dtype=x.dtype), torch.tensor(WEIGHTS, dtype=x.dtype)
    away = x[:, None] - means
    log_bells = weights.log() - away**2 / (2 * STD**2) - math.log(STD * math.sqrt(TURN))
    share = torch.softmax(log_bells, dim=1)  # of each bell at x: stable far out, where both densities vanish
    return log_bells.exp().sum(1), -(share * away).sum(1) / STD**2


def _langevin():
    """One step of the figure `langevin-step`."""

    def evaluate(h, noise, k, x, bank, centers, curve):
        factor = _one_of([scale(h) for _, scale in NOISE.values()], noise)
        rows, n = bank.shape
        used = torch.floor(k / rows)  # whole passes through the bank: each pass shifts it, so that no particle repeats
        row = (k - rows * used).to(torch.int64).reshape(1)
        column = torch.remainder(torch.arange(n) + 211 * used, n).to(torch.int64)
        epsilon = torch.index_select(torch.index_select(bank, 0, row)[0], 0, column)
        x_next = torch.clamp(x + h * two_bells(x)[1] + factor * epsilon, -6, 6)
        width = 7.2 / 36
        inside = ((x_next[:, None] - centers).abs() <= width / 2).float().mean(0) / width
        density = two_bells(curve)[0]
        return {
            "x_next": x_next,
            "counted": inside,
            "density": density,
            "off": 0.5 * width * (inside - two_bells(centers)[0]).abs().sum(),
            "right_share": (x_next > -0.25).float().mean(),
        }

    return evaluate


def langevin_step() -> LiveFigure:
    """1,000 particles on their way to a known density, with a step size and a noise to choose."""
    noise = generator(80)
    return LiveFigure(
        name="langevin-step",
        title="Langevin: step and noise belong together",
        description=(
            "1,000 particles start in a heap at 0 and take {steps} Langevin steps of size {h} with noise {noise} times "
            "a standard normal number. The bars count them, the line is the density that they should sample: two "
            "bells, the right one heavier. The part of the particles that would have to move is {off}; the right bell "
            "holds {share} of them."
        ),
        controls=[
            Slider("h", label="step size h", low=0.005, high=0.4, step=0.005, value=0.05),
            Choice("noise", label="noise times", options={key: n[0] for key, n in NOISE.items()}, value="right"),
            Slider("steps", label="steps", low=10, high=400, step=10, value=200),
        ],
        evaluate=_langevin(),
        inputs={
            "x": 0.1 * randn(1000, generator=noise),
            "bank": randn(12, 1000, generator=noise),
            "centers": torch.linspace(-3.5, 3.5, 36),
            "curve": torch.linspace(-3.6, 3.6, 145),
        },
        repeat=Repeat(count="steps", carry={"x": "x_next"}, index="k", total="steps"),
        panels=[
            Panel(
                title="where the particles are",
                x=(-3.6, 3.6),
                y=(0.0, 1.2),
                xlabel="x",
                ylabel="density",
                marks=[
                    Bars(x="centers", y="counted", color=0, label="particles"),
                    Line(x="curve", y="density", color=1, label="the density to sample"),
                ],
            )
        ],
        readouts=[
            Readout("off", label="share of particles in the wrong place", output="off", digits=2),
            Readout("share", label="share in the right bell", output="right_share", digits=2),
        ],
    )
