r"""Live figure of chapter 07: the energies that ten losses carve from the same data, and inference by descent on them.

The data are a fork in the plane: y = 0 for x < 0, and y = ±√x for x > 0, with noise. The energy compares features,

    E(x, y) = ½ ‖g_x(x) − g_y(y)‖²,    g(u) = W_2 tanh(W_1 u + b_1) + b_2,
    ∂E/∂y = (g_y(y) − g_x(x)) · W_2 (tanh'(W_1 y + b_1) W_1),

and is trained once with each loss of `companion.methods.energy`. Inference keeps x and lets y slide down.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from companion.data import GaussianMixture
from companion.device import generator, seeded
from companion.live import (
    Choice,
    Heat,
    Line,
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
from companion.methods import energy
from companion.nn import MLP

OPTIONS = {name.lower(): name for name in energy.LOSSES}  # of the choice: a key names a file
GRID, STEP = torch.linspace(-2, 2, 61)[:, None], 4 / 60  # the answers that a loss sees, and their distance
RADIUS = 0.3  # answers nearer to the right one than this do not count as wrong
DESCENT, LONGEST = 60, 0.2  # steps of the descent, and the longest that one of them may be
HIGHEST, TOP = 3.0, 8.0  # of the colors, and of the cut


def fork(std: float = 0.12, *, dtype: torch.dtype | None = None) -> GaussianMixture:
    """Points (x, y) of a fork, as a mixture of 26 round Gaussians: y = 0 left of x = 0, and y = ±√x right of it.

    Half of the probability lies on the handle, a quarter on each tine.

    Args:
        std: standard deviation of each Gaussian.
        dtype: of the parameters and samples.
    """
    s, zero = torch.linspace(0, 1, 9, dtype=dtype or torch.get_default_dtype()), torch.zeros(8, dtype=dtype)
    handle = torch.stack([-1.6 + 1.6 * s[:-1], zero], dim=1)
    tine = torch.stack([1.6 * s.square(), math.sqrt(1.6) * s], dim=1)  # on y = √x
    mirrored = tine * tine.new_tensor([1.0, -1.0])
    weights = torch.cat([s.new_full((8,), 0.5 / 8), s.new_full((18,), 0.5 / 18)])
    return GaussianMixture(torch.cat([handle, tine, mirrored]), std**2 * torch.eye(2).to(s).expand(26, 2, 2), weights)


def fork_energy(seed: int) -> energy.ImplicitRegressionEnergy:
    """½ ‖g_x(x) − g_y(y)‖² of two numbers, untrained, with four features each."""
    with seeded(generator(seed)):
        nets = [MLP(1, 4, width=32, depth=1, activation=nn.Tanh) for _ in range(2)]
    with torch.no_grad():
        for net in nets:  # bends closer together than torch's first weights have them: the picture is four wide
            net[0].weight *= 3
            net[0].bias *= 3
    return energy.ImplicitRegressionEnergy(*nets)


def fork_answers(model: energy.ImplicitRegressionEnergy, x: Tensor, y: Tensor) -> energy.Answers:
    """What a loss sees of pairs x, y (batch, 1): the energies of 61 answers, counted; the right one is the nearest."""
    E = 0.5 * (model.g_x(x)[:, None] - model.g_y(GRID.to(y))).square().sum(dim=2)
    nearest = ((y + 2) / STEP).round().long().clamp(0, len(GRID) - 1)
    return energy.Answers(E.gather(1, nearest)[:, 0], E, (y - GRID[:, 0].to(y)).abs() > RADIUS, 1.0)


def train_on_fork(
    loss: Callable[[energy.Answers], Tensor], seed: int, *, steps: int = 200, batch: int = 64
) -> energy.ImplicitRegressionEnergy:
    """An energy trained with one loss on points of the fork, by Adam with a cosine decay from 0.01 to 0."""
    model = fork_energy(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for points in fork().sample(batch * steps, generator=generator(1000 + seed)).split(batch):
        optimizer.zero_grad()
        loss(fork_answers(model, *points.split(1, dim=1))).mean().backward()
        optimizer.step()
        rate.step()
    return model


def ten_surfaces(seed: int = 0, *, steps: int = 200) -> dict[str, energy.ImplicitRegressionEnergy]:
    """An energy for each of the ten losses, from the same first weights and the same data."""
    return {name: train_on_fork(loss, seed, steps=steps) for name, loss in energy.LOSSES.items()}


def _stacked(nets: list[MLP]) -> list[Tensor]:
    """The weights of networks with one hidden layer, as used from the left: (nets, in, out) and (nets, 1, out)."""
    parts = [[net[0].weight.T, net[0].bias[None], net[2].weight.T, net[2].bias[None]] for net in nets]
    return [torch.stack(same).detach().double() for same in zip(*parts, strict=True)]


def _features(weights: list[Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    """g(u) and g'(u) at the numbers u (n,), both (n, features)."""
    first, first_bias, last, last_bias = weights
    bend = torch.tanh(u.double()[:, None] @ first + first_bias)
    return bend @ last + last_bias, ((1 - bend.square()) * first) @ last


def _descent(models: list[energy.ImplicitRegressionEnergy]):
    """One step of the descent on the chosen energy, and what the figure shows around it."""
    all_x, all_y = _stacked([model.g_x for model in models]), _stacked([model.g_y for model in models])
    numbers = torch.arange(float(len(models)))[:, None, None]

    def evaluate(
        loss: Tensor, start: Tensor, lift: Tensor, stretch: Tensor, rate: Tensor, axis: Tensor
    ) -> dict[str, Tensor]:
        chosen = (numbers == loss).double()  # one graph for all: the others' weights are multiplied by 0
        of_x, of_y = ([(chosen * part).sum(dim=0) for part in parts] for parts in (all_x, all_y))
        factor, given, wanted = 10.0 ** stretch.double(), start[:1], start[1:]
        here, table, (value, slope) = _features(of_x, given)[0], _features(of_y, axis)[0], _features(of_y, wanted)
        cut = 0.5 * factor * (here - table).square().sum(dim=1)
        E = 0.5 * factor * (_features(of_x, axis)[0][None] - table[:, None]).square().sum(dim=2)
        now = 0.5 * factor * (here - value).square().sum(dim=1)
        move = rate * ((value - here) * slope).sum(dim=1)  # a stretch would multiply it: the rate is divided by it
        lowest = cut.amin(dim=0)
        outputs = {
            "moved": torch.cat([given, (wanted - move.clamp(-LONGEST, LONGEST)).clamp(-2, 2)]),
            "relief_map": (E - E.amin(dim=0, keepdim=True)).clamp(max=HIGHEST),
            "cut": (cut - lowest + lift).clamp(max=TOP),
            "on_cut": torch.cat([wanted, (now - lowest + lift).clamp(max=TOP)]),
            "answer": wanted,
            "level": now + lift,
            "relief": cut.amax(dim=0) - lowest,
        }
        return {name: value.float() for name, value in outputs.items()}  # float64 inside: stretched differences

    return evaluate


def energy_surface(surfaces: Mapping[str, energy.ImplicitRegressionEnergy], *, n: int = 200) -> LiveFigure:
    """The surfaces of `ten_surfaces`: choose the loss, drag a start, and let y slide down.

    Args:
        surfaces: An energy for each key of `companion.methods.energy.LOSSES`.
        n: Number of data that are drawn.
    """
    missing = set(energy.LOSSES) - set(surfaces)
    if missing:
        raise ValueError(f"energy_surface: received no surface for {sorted(missing)}; rule: one for each loss")
    return LiveFigure(
        name="energy-surface",
        columns=2,
        title="Ten losses, ten landscapes",
        description=(
            "An energy E(x, y), trained on the points of a fork with the loss {loss}. Left: how high each place is "
            "above the lowest one with the same x; all heights above 3 look alike. A point starts where you put it, "
            "keeps its x and slides downhill in y. Right: the cut through the landscape at this x, drawn from its "
            "lowest place up (what is above 8 is drawn at 8), with the way of the point. "
            "It ends at y = {answer}, where the energy is {level}; "
            "highest and lowest place of the cut differ by {relief}. All heights are lifted by {lift} and stretched "
            "by ten to the power {stretch}; the rate of the descent is {rate}, divided by the stretch."
        ),
        controls=[
            Choice("loss", label="trained with the loss", options=OPTIONS, value="hinge"),
            Point("start", label="the start (x, y)", panel=0, value=(1.0, 0.2), color=1),
            Slider("lift", label="lift all heights by", low=-3, high=3, step=0.25, value=0),
            Slider("stretch", label="stretch them by 10 to the power", low=0, high=2, step=0.25, value=0),
            Slider(
                "rate", label="rate of the descent (over the stretch)", low=0.002, high=0.04, step=0.002, value=0.02
            ),
            Toggle("show_data", label="show the data", value=True),
        ],
        evaluate=_descent([surfaces[name] for name in OPTIONS.values()]),
        repeat=Repeat(count=DESCENT, carry={"start": "moved"}),
        inputs={"axis": torch.linspace(-2, 2, 81), "data": fork().sample(n, generator=generator(7)).clamp(-2, 2)},
        panels=[
            Panel(
                title="height above the lowest place of each x",
                x=(-2, 2),
                y=(-2, 2),
                xlabel="x, given",
                ylabel="y, wanted",
                aspect=1,
                marks=[
                    Heat("relief_map", limits=(0, HIGHEST)),
                    Points("data", color=7, size=1.6, alpha=0.6, show="show_data"),
                    Trails("start", color=1, width=2.5, alpha=1.0),
                ],
            ),
            Panel(
                title=f"the cut at this x, lowest place at 0 + lift, drawn up to {TOP:.0f}",
                x=(-2, 2),
                y=(-3, TOP),
                xlabel="y",
                ylabel="height",
                marks=[
                    Line("axis", "cut", color=0),
                    Trails("on_cut", color=1, width=2.0, alpha=0.8),
                    Points("on_cut", color=1, size=5, alpha=1.0, label="the point"),
                ],
            ),
        ],
        readouts=[
            Readout("level", label="energy of the point", output="level"),
            Readout("answer", label="its y", output="answer"),
            Readout("relief", label="highest minus lowest of the cut", output="relief"),
        ],
    )
