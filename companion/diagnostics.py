r"""The checklist for a model that trains but does not work: six questions, each answered with numbers.

    time_dependence      does t matter?                    E|v(t, x) − v(t', x)|² / E|v(t, x)|²
    overfit              can it learn one batch by heart?  loss after training on that batch alone, over the loss before
    loss_per_example     does a part of the data fail?     loss of each example, and by the time t it was asked at
    field_norms          is the field of the right size?   |v(t, x_t)| over the size of the target, for each t
    noise_response       is it smooth?                     |v(t, x + δ) − v(t, x)| / |δ| for small noise δ
    trajectories         do samples arrive?                where the flow ends, against data, and how straight it went

Ask them in this order: overfit one example, then one batch, before anything larger is trained. Each function returns a
record of numbers with a verdict `ok`; printed, it says what was measured, what is usual and what to look for. The
limits are rules of thumb for data of unit size: read the numbers. Fields are v(t, x) with t () or (batch,).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.device import rand, randn_like
from companion.numerics.ode import Euler, integrate

Velocity = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[nn.Module, Any], Tensor]
Batch = Float[Tensor, "batch *dims"]


@dataclass(frozen=True)
class Finding:
    """What a check found. Printed: the verdict, the numbers, and what to look for if it is not ok.

    Attributes:
        ok: whether the numbers are usual.
    """

    ok: bool

    question = ""
    advice = ""

    def __str__(self) -> str:
        numbers = ", ".join(
            f"{field.name.replace('_', ' ')} {_short(getattr(self, field.name))}"
            for field in fields(self)
            if field.name != "ok"
        )
        head = f"{'ok' if self.ok else 'LOOK'}: {self.question} {numbers}"
        return head if self.ok else f"{head}\n      {self.advice}"


@dataclass(frozen=True)
class TimeDependence(Finding):
    """How much the field changes with the time.

    Attributes:
        change: E|v(t, x) − v(t', x)|² / 2E|v|², 0 if the time is ignored and 1 if fields of two times are unrelated.
    """

    change: float

    question = "Does t matter?"
    advice = "The model hardly uses the time: is t passed on, in [0, 1], and not lost in a broadcast?"


@dataclass(frozen=True)
class Overfit(Finding):
    """How far a model fits one batch.

    Attributes:
        before: loss of the untrained copy on the batch.
        after: loss after training the copy on that batch alone.
        steps: how long.
    """

    before: float
    after: float
    steps: int

    question = "Can it learn this batch by heart?"
    advice = (
        "It cannot even fit what it sees every step: is the target a function of the inputs (the same noise in both), "
        "does the gradient reach all weights, is the learning rate sensible?"
    )


@dataclass(frozen=True)
class LossPerExample(Finding):
    """How the loss spreads over examples and times.

    Attributes:
        mean: mean loss.
        median: median loss.
        worst: the largest losses of examples, the largest first.
        worst_rows: which rows they are.
        by_time: mean loss in equal intervals of t, from 0 to 1.
    """

    mean: float
    median: float
    worst: tuple[float, ...]
    worst_rows: tuple[int, ...]
    by_time: tuple[float, ...]

    question = "Does a part of the data fail?"
    advice = "A few examples carry the loss, or one end of time does: look at these rows, and at the weights at that t."


@dataclass(frozen=True)
class FieldNorms(Finding):
    """How large the field is, beside its target.

    Attributes:
        times: where the norms were taken.
        field: root mean square of v(t, x_t) a coordinate, at each of these times.
        target: the same of the velocities that it is trained on.
        alignment: E⟨v, u⟩ / E|u|² at each time: 1 where x_t determines the target, less elsewhere, never negative.
    """

    times: tuple[float, ...]
    field: tuple[float, ...]
    target: tuple[float, ...]
    alignment: tuple[float, ...]

    question = "Has the field the size and direction of its target?"
    advice = (
        "Larger than the target: it explodes; much smaller: it is damped or untrained; "
        "negative alignment: a sign is wrong."
    )


@dataclass(frozen=True)
class NoiseResponse(Finding):
    """How far small noise moves the field.

    Attributes:
        typical: median of |v(t, x + δ) − v(t, x)| / |δ| over points and times.
        largest: its largest value.
    """

    typical: float
    largest: float

    question = "Is it smooth?"
    advice = "Small noise moves the field far: solvers will need many steps; look for sharp activations or overfitting."


@dataclass(frozen=True)
class Trajectories(Finding):
    """Where the flow ends, beside the data.

    Attributes:
        mean_error: distance of the means of samples and data, in standard deviations of the data.
        spread: standard deviation of the samples over that of the data.
        directness: length of the way from start to end over the length of the path, 1 for straight lines.
    """

    mean_error: float
    spread: float
    directness: float

    question = "Do samples arrive?"
    advice = (
        "Samples end elsewhere than the data: does the sampler run from t = 0 to t = 1, in the direction of the "
        "training, with the averaged weights, on the scale of the data?"
    )


def time_dependence(v: Velocity, x: Batch, *, generator: torch.Generator, least: float = 0.01) -> TimeDependence:
    """Does t matter? The field at the same points `x` and two random times.

    Args:
        v: the field.
        x: points, (batch, …).
        generator: draws the times.
        least: a smaller change is not ok.
    """
    first, second = (rand(len(x), generator=generator, device=x.device, dtype=x.dtype) for _ in range(2))
    with torch.no_grad():
        a, b = v(first, x), v(second, x)
    size = (a.square().mean() + b.square().mean()).item()
    change = (a - b).square().mean().item() / size if size else 0.0
    return TimeDependence(change >= least, change)


def overfit(
    model: nn.Module, loss: Loss, batch: object, *, steps: int = 500, lr: float = 3e-3, most: float = 0.25
) -> Overfit:
    """Can it learn one batch by heart? A copy of the model is trained on `batch` alone; the model stays as it is.

    Start with a batch of one example, then take one of usual size. Everything random (time, noise) must be in the
    batch: what is drawn anew in each step cannot be learned by heart.

    Args:
        model: what is to learn.
        loss: loss(model, batch) gives ().
        batch: with its noise and times.
        steps: of Adam.
        lr: its learning rate.
        most: the share of the first loss that may be left.
    """
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        history.append(value.item())
    before, after = history[0], sum(history[-10:]) / len(history[-10:])
    return Overfit(after <= most * before, before, after, steps)


def loss_per_example(
    losses: Float[Tensor, "..."],
    t: Float[Tensor, "..."],
    *,
    bins: int = 5,
    show: int = 5,
    most: float = 20.0,
) -> LossPerExample:
    """Does a part of the data fail? Sorts the losses of single examples, and averages them over intervals of time.

    Args:
        losses: of each example.
        t: the time that each was asked at.
        bins: intervals of [0, 1].
        show: how many of the worst to name.
        most: the worst example may have this many times the mean loss, and an interval half as many.
    """
    if losses.shape != t.shape or losses.ndim != 1:
        raise ValueError(
            f"loss_per_example: received losses {tuple(losses.shape)} and t {tuple(t.shape)}; rule: both (batch,), so "
            "do not average the loss before"
        )
    losses, t = losses.detach().double().cpu(), t.detach().double().cpu()
    worst, rows = losses.sort(descending=True)
    which = (t * bins).long().clamp(0, bins - 1)
    by_time = [losses[which == k].mean().item() if (which == k).any() else float("nan") for k in range(bins)]
    mean = losses.mean().item()
    ok = bool(losses.isfinite().all()) and worst[0] <= most * mean and not any(m > most / 2 * mean for m in by_time)
    return LossPerExample(
        bool(ok),
        mean,
        losses.median().item(),
        tuple(worst[:show].tolist()),
        tuple(rows[:show].tolist()),
        tuple(by_time),
    )


def field_norms(
    v: Velocity,
    sample: Callable[[Tensor], tuple[Tensor, Tensor]],
    *,
    times: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95),
    most: float = 1.5,
    least: float = 0.2,
) -> FieldNorms:
    """Has the field the size and direction of its target?

    The best field is the mean of the targets, so it is never larger than they are and points their way on average. At
    some times it may be small, where targets cancel: only over all times together must it not be.

    Args:
        v: the field.
        sample: at a time t, of shape (), gives points x_t of the path and the target velocities there.
        times: where to ask.
        most: largest ratio of the norms that is ok, at any time.
        least: smallest ratio over all times together that is ok; its square is the smallest mean alignment.
    """
    size, aim, alignment = [], [], []
    with torch.no_grad():
        for t in times:
            x_t, u_t = sample(torch.tensor(t))
            velocity = v(torch.tensor(t).to(x_t), x_t)
            size.append(velocity.square().mean().sqrt().item())
            aim.append(u_t.square().mean().sqrt().item())
            alignment.append(((velocity * u_t).mean() / u_t.square().mean()).item())
    bounded = all(a <= most * b for a, b in zip(size, aim, strict=True))
    alive = math.hypot(*size) >= least * math.hypot(*aim)
    ok = bounded and alive and sum(alignment) / len(alignment) >= least**2
    return FieldNorms(ok, tuple(times), tuple(size), tuple(aim), tuple(alignment))


def noise_response(
    v: Velocity, x: Batch, *, generator: torch.Generator, noise: float = 0.01, most: float = 100.0
) -> NoiseResponse:
    """Is it smooth? Moves the points `x` by small noise and sees how far the field moves, at random times.

    Args:
        v: the field.
        x: points, (batch, …).
        generator: draws times and noise.
        noise: standard deviation of the noise.
        most: the largest ratio that is ok.
    """
    t = rand(len(x), generator=generator, device=x.device, dtype=x.dtype)
    shift = noise * randn_like(x, generator=generator)
    with torch.no_grad():
        moved = (v(t, x + shift) - v(t, x)).flatten(1).norm(dim=1)
    ratio = moved / shift.flatten(1).norm(dim=1)
    largest = ratio.max().item()
    return NoiseResponse(largest <= most, ratio.median().item(), largest)


def trajectories(v: Velocity, x_0: Batch, data: Batch, *, steps: int = 50, most: float = 0.3) -> Trajectories:
    """Do samples arrive? Carries `x_0` from t = 0 to 1 by Euler steps and compares the ends with data.

    Args:
        v: the field.
        x_0: starts.
        data: what the ends should look like.
        steps: of Euler's method.
        most: largest error of mean and spread that is ok.
    """
    with torch.no_grad():
        path = integrate(v, x_0, Euler(steps=steps)).x.flatten(2)
    ends, data = path[-1], data.flatten(1)
    spread_data = data.var(dim=0).sum().sqrt()
    mean_error = ((ends.mean(dim=0) - data.mean(dim=0)).norm() / spread_data).item()
    spread = (ends.var(dim=0).sum().sqrt() / spread_data).item()
    length = path.diff(dim=0).norm(dim=2).sum(dim=0)
    directness = ((path[-1] - path[0]).norm(dim=1) / length.clamp(min=1e-12)).mean().item()
    ok = mean_error <= most and abs(spread - 1) <= most
    return Trajectories(ok, mean_error, spread, directness)


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(_short(part) for part in value) + ")"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
