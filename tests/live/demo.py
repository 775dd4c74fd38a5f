"""Two small figures that use every part: what the tests of mechanism 2 are run on."""

import torch
from torch import Tensor, nn

from companion.live import (
    Area,
    Arrows,
    Bars,
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
    Segments,
    Slider,
    Toggle,
    Trails,
)


class Field(nn.Module):
    """A small network with fixed weights, standing in for a trained one: v(t, x) of shape (n, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.SELU(), nn.Linear(16, 2))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(torch.cat([x, t.expand(len(x), 1)], dim=1))


def wave() -> LiveFigure:
    """Closed form: y = a·sin(f·x) + offset, with a point, a heat map, images and a choice that reaches evaluate."""
    x = torch.linspace(-3, 3, 121)
    grid = torch.stack(torch.meshgrid(torch.linspace(-3, 3, 24), torch.linspace(-2, 2, 16), indexing="xy"), dim=-1)

    def evaluate(x: Tensor, grid: Tensor, a: Tensor, shape: Tensor, p: Tensor) -> dict[str, Tensor]:
        y = torch.where(shape < 0.5, a * torch.sin(2 * x), a * torch.tanh(2 * x))
        bump = torch.exp(-((grid - p) ** 2).sum(-1))
        shades = torch.tensor([-1.0, -0.5, 0.5, 1.0])
        return {
            "y": y,
            "peak": y.abs().max(),
            "bump": bump,
            "to_point": p[None, :] * torch.tensor([[1.0], [0.5]]),
            "tiles": shades[:, None, None] * bump,
        }

    return LiveFigure(
        name="demo-wave",
        title="A wave and a bump",
        description="The {shape} of amplitude {a} reaches {peak}; the bump sits at {p}.",
        controls=[
            Slider("a", label="amplitude a", low=-2, high=2, step=0.1, value=1),
            Choice("shape", label="shape", options={"sine": "sine", "step": "smooth step"}, value="sine"),
            Toggle("fill", label="fill the area", value=True),
            Point("p", label="center of the bump", panel=1, value=(0.5, 0.5)),
        ],
        evaluate=evaluate,
        inputs={"x": x, "grid": grid, "origin": torch.zeros(2, 2), "few": x[::12]},
        panels=[
            Panel(title="Wave", x=(-3, 3), y=(-2.2, 2.2), xlabel="x", ylabel="y",
                  marks=[Area("x", "y", show="fill"), Line("x", "y", label="y"), Bars("few", "few", alpha=0.1)]),
            Panel(title="Bump", x=(-3, 3), y=(-2, 2), aspect=1, xlabel="x₁", ylabel="x₂",
                  marks=[Heat("bump", limits=(0, 1)), Arrows("origin", "to_point", color=1, label="to the point")]),
            Panel(title="Tiles", marks=[Images("tiles", columns=4)]),
        ],
        readouts=[Readout("peak", label="largest |y|", output="peak")],
    )  # fmt: skip


def sampler() -> LiveFigure:
    """Euler and midpoint steps through a network, repeated by the front end, with trails."""
    generator = torch.Generator().manual_seed(1)
    model = Field()

    def euler(x: Tensor, k: Tensor, steps: Tensor, speed: Tensor) -> dict[str, Tensor]:
        v = speed * model(k / steps, x)
        return _outputs(x, v, steps)

    def midpoint(x: Tensor, k: Tensor, steps: Tensor, speed: Tensor) -> dict[str, Tensor]:
        half = x + 0.5 / steps * speed * model(k / steps, x)
        return _outputs(x, speed * model((k + 0.5) / steps, half), steps)

    return LiveFigure(
        name="demo-sampler",
        title="Points carried by a network",
        description="{steps} steps of {solver} at speed {speed}: the points move by {moved} in the last step.",
        controls=[
            Slider("steps", label="steps", low=1, high=40, step=1, value=10),
            Slider("speed", label="speed", low=0, high=1.5, step=0.05, value=1),
            Choice("solver", label="solver", options={"euler": "Euler", "midpoint": "midpoint"}, value="euler"),
            Toggle("trails", label="show trails", value=True),
        ],
        evaluate={"euler": euler, "midpoint": midpoint},
        select="solver",
        inputs={"x": torch.randn(200, 2, generator=generator), "kind": (torch.arange(200) % 3).float()},
        panels=[
            Panel(title="Flow", x=(-4, 4), y=(-4, 4), aspect=1, xlabel="x₁", ylabel="x₂",
                  marks=[Trails("x", show="trails", color="kind"), Points("x", color="kind", label="points"),
                         Segments("before", "x_next", color=7, label="last step")]),
            Panel(title="First coordinate against time", x=(0, 1), y=(-4, 4), xlabel="t", ylabel="x₁",
                  marks=[Trails("first", color=3)]),
        ],
        readouts=[Readout("moved", label="last step", output="moved", digits=3)],
        repeat=Repeat(count="steps", carry={"x": "x_next"}),
    )  # fmt: skip


def _outputs(x: Tensor, v: Tensor, steps: Tensor) -> dict[str, Tensor]:
    x_next = x + v / steps
    return {"x_next": x_next, "before": x + 0.0, "first": x_next[:, 0], "moved": (x_next - x).norm(dim=1).mean()}


def painter() -> LiveFigure:
    """A mask over the first of three images: painted pixels are replaced by the mean of the others, or by a level."""
    across = torch.linspace(-1, 1, 12)
    images = torch.stack([across.expand(8, 12), -across.expand(8, 12), across.expand(8, 12).abs() - 0.5])

    def evaluate(images: Tensor, mask: Tensor, level: Tensor) -> dict[str, Tensor]:
        hole = mask.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
        return {"filled": torch.where(hole > 0.5, level, images), "hidden": mask.mean()}

    return LiveFigure(
        name="demo-painter",
        title="Pixels that are painted over",
        description="{mask}: a part {hidden} of the picture, filled with {level}.",
        controls=[
            Paint("mask", label="hide these pixels", rows=4, columns=6, value=["......", ".##...", ".##...", "......"]),
            Slider("level", label="fill with", low=-1, high=1, step=0.1, value=0),
        ],
        evaluate=evaluate,
        inputs={"images": images},
        panels=[
            Panel(title="Given", marks=[Images("images", columns=1)]),
            Panel(title="Filled", marks=[Images("filled", columns=2)]),
        ],
        readouts=[Readout("hidden", label="hidden", output="hidden", digits=2)],
    )


def fragile() -> LiveFigure:
    """A figure whose function refuses one value: errors have to reach the reader."""

    def evaluate(a: Tensor, x: Tensor) -> dict[str, Tensor]:
        if not torch.compiler.is_exporting() and a == 2:
            raise ValueError("two is refused")
        return {"y": a * x}

    return LiveFigure(
        name="demo-fragile",
        title="A figure that can fail",
        description="The slope is {a}.",
        controls=[Slider("a", label="slope", low=0, high=3, step=1, value=1)],
        evaluate=evaluate,
        inputs={"x": torch.linspace(0, 1, 5)},
        panels=[Panel(x=(0, 1), y=(0, 3), marks=[Line("x", "y")])],
    )
