r"""Noise schedules in discrete steps, and the four things that a diffusion network may predict.

    x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε,    ᾱ_t = (1 − β_1)(1 − β_2)…(1 − β_t),    ᾱ_0 = 1                       (eq-one-shot)
    linear: β_t runs evenly from 1e-4 to 0.02                                                      (eq-linear-schedule)
    cosine: ᾱ_t = f(t)/f(0),  f(t) = cos²(π/2 · (t/T + 0.008)/1.008),  β_t ≤ 0.999                 (eq-cosine-schedule)

`x_0` is data, `ε` standard normal noise, and the steps t = 1 … T run from data to noise: x_T is almost pure noise. β_t
is the variance that step t adds, √ᾱ_t the signal that is left after it. A network is told t/T, so 1 is noise.

At given (t, x) each of noise ε, data x_0, velocity v and score s determines the others (eq-predictions):

    x = √ᾱ x_0 + √(1 − ᾱ) ε,    v = √ᾱ ε − √(1 − ᾱ) x_0,    s = −ε/√(1 − ᾱ)

With √ᾱ = cos φ this v is dx/dφ: the velocity *toward noise* per unit of angle. On `paths.VariancePreserving`, where
time runs toward data at π/2 of angle a unit, the course's velocity is u = −(π/2) v. As ᾱ_t > 0, only t = 0 divides by
zero: there x is the data and says nothing of the noise.

A step t is a Python int, or an integer tensor of shape () or (batch,). At an int the coefficients are Python numbers,
which costs no tensor operation; else they are gathered and shaped to multiply x.

Sources: Ho et al. 2020, section 2 (kernel, linear schedule); Nichol and Dhariwal 2021, eq. 17 (cosine schedule);
Salimans and Ho 2022, section 4 and appendix D (the predictions).
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from companion.numerics._checks import broken, is_whole

__all__ = [
    "NoiseSchedule",
    "Step",
    "check_alike",
    "check_step",
    "combine",
    "cosine_schedule",
    "data_from_noise",
    "data_from_score",
    "data_from_velocity",
    "linear_schedule",
    "noise_from_data",
    "noise_from_score",
    "noise_from_velocity",
    "score_from_data",
    "score_from_noise",
    "score_from_velocity",
    "velocity_from_data",
    "velocity_from_noise",
    "velocity_from_score",
]

Step = int | Tensor
Batch = Float[Tensor, "batch *dims"]


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The variances β_1 … β_T of a diffusion process, and what follows from them.

    Args:
        beta: the T variances, each between 0 and 1; kept in float64 on the CPU.

    Attributes:
        alpha_bar: ᾱ_0 … ᾱ_T, (T + 1,), with ᾱ_0 = 1: the share of the data's variance that is left after t steps.
    """

    beta: Float[Tensor, " T"]
    alpha_bar: Float[Tensor, " levels"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        beta = _numbers("NoiseSchedule", "beta", self.beta)
        if ((beta <= 0) | (beta >= 1)).any():
            worst = beta[((beta <= 0) | (beta >= 1)).nonzero()[0, 0]]
            raise ValueError(f"NoiseSchedule: received a beta of {worst:.6g}; rule: 0 < β_t < 1 at every step")
        alpha_bar = torch.cat([beta.new_ones(1), (1 - beta).cumprod(0)])
        if (alpha_bar[1:] <= 0).any() or (alpha_bar.diff() >= 0).any():
            raise ValueError(
                f"NoiseSchedule: received betas whose ᾱ ends at {alpha_bar[-1]:.6g}; "
                "rule: ᾱ_t stays positive and falls at every step, in float64"
            )
        object.__setattr__(self, "beta", beta)
        object.__setattr__(self, "alpha_bar", alpha_bar)

    @classmethod
    def from_alpha_bar(cls, alpha_bar: Float[Tensor, " levels"]) -> "NoiseSchedule":
        """The schedule with these ᾱ_0 … ᾱ_T: β_t = 1 − ᾱ_t/ᾱ_{t−1}.

        Args:
            alpha_bar: T + 1 numbers that start at 1 and fall at every step, all positive.
        """
        alpha_bar = _numbers("NoiseSchedule.from_alpha_bar", "alpha_bar", alpha_bar, least=2)
        if alpha_bar[0] != 1 or (alpha_bar <= 0).any() or (alpha_bar.diff() >= 0).any():
            raise ValueError(
                f"NoiseSchedule.from_alpha_bar: received values from {alpha_bar[0]:.6g} to {alpha_bar[-1]:.6g}, "
                f"largest rise {alpha_bar.diff().max():.3g}; rule: monotone: ᾱ_0 = 1, each smaller than the one "
                "before, all positive"
            )
        return cls(1 - alpha_bar[1:] / alpha_bar[:-1])

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return len(self.beta)

    def time(self, t: Step, x: Tensor | None = None) -> Float[Tensor, "*batch"]:
        """t/T, what a network is told: 1 is noise.

        Args:
            t: steps from 0 to T.
            x: the network's other input; the time takes its dtype and device. None: torch's default.
        """
        t = check_step("NoiseSchedule.time", self, t)
        dtype = torch.get_default_dtype() if x is None else x.dtype
        if isinstance(t, int):
            return torch.full((), t / self.steps, dtype=dtype, device=None if x is None else x.device)
        return t.to(t.device if x is None else x.device).to(dtype) / self.steps

    def step(self, time: Float[Tensor, "*batch"]) -> Tensor:
        """The step that a network was told: the whole number next to T · time."""
        if broken((time >= 0) & (time <= 1)):
            raise ValueError(
                f"NoiseSchedule.step: received times from {time.min():.6g} to {time.max():.6g}; rule: t/T, from 0 to 1"
            )
        return (time * self.steps).round().long()

    def signal(self, t: Step, x: Tensor) -> Tensor | float:
        """√ᾱ_t, shaped to multiply x, in its dtype and on its device; a number where t is an int."""
        return self._at("NoiseSchedule.signal", self._signal, t, x)

    def noise(self, t: Step, x: Tensor) -> Tensor | float:
        """√(1 − ᾱ_t), shaped to multiply x, in its dtype and on its device; a number where t is an int."""
        return self._at("NoiseSchedule.noise", self._noise, t, x)

    def exact(self, t: Step, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """β_t and ᾱ_t in float64, for arithmetic in which they nearly cancel; shaped to multiply x, on the CPU.

        At t = 0, where there is no step, β is 0.
        """
        t = check_step("NoiseSchedule.exact", self, t, x)
        if isinstance(t, int):
            return self._beta.numbers[t], self._alpha_bar.numbers[t]
        return tuple(_beside(table.values[t.cpu()], x) for table in (self._beta, self._alpha_bar))

    def add_noise(self, t: Step, x_0: Batch, eps: Batch) -> Batch:
        """A draw of q(x_t | x_0) in one shot: √ᾱ_t x_0 + √(1 − ᾱ_t) ε.

        Args:
            t: steps from 0 to T.
            x_0: data, (batch, ...).
            eps: standard normal noise, shaped like x_0.
        """
        check_alike("NoiseSchedule.add_noise", x_0=x_0, eps=eps)
        return combine(self.signal(t, x_0), x_0, self.noise(t, x_0), eps)

    def velocity(self, t: Step, x_0: Batch, eps: Batch) -> Batch:
        """v = √ᾱ_t ε − √(1 − ᾱ_t) x_0, the target of a network that predicts velocity."""
        check_alike("NoiseSchedule.velocity", x_0=x_0, eps=eps)
        return self.signal(t, x_0) * eps - self.noise(t, x_0) * x_0

    def log_snr(self) -> Float[Tensor, " levels"]:
        """log(ᾱ_t/(1 − ᾱ_t)) at t = 0 … T, the log of the signal-to-noise ratio; +∞ at t = 0."""
        return self.alpha_bar.log() - (1 - self.alpha_bar).log()

    @cached_property
    def _beta(self) -> "_Table":
        return _Table(torch.cat([self.beta.new_zeros(1), self.beta]))

    @cached_property
    def _alpha_bar(self) -> "_Table":
        return _Table(self.alpha_bar)

    @cached_property
    def _signal(self) -> "_Table":
        return _Table(self.alpha_bar.sqrt())

    @cached_property
    def _noise(self) -> "_Table":
        return _Table((1 - self.alpha_bar).sqrt())

    def _at(self, operation: str, table: "_Table", t: object, x: Tensor) -> Tensor | float:
        t = check_step(operation, self, t, x)
        if isinstance(t, int):
            return table.numbers[t]
        return _beside(table.values.to(x.dtype).to(x.device)[t.to(x.device)], x)


class _Table:
    """A number for each step, t = 0 … T: as a float64 tensor, and as Python numbers."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.numbers = values, values.tolist()


def linear_schedule(steps: int = 1000, *, first: float = 1e-4, last: float = 0.02) -> NoiseSchedule:
    """β_t evenly from `first` to `last` (Ho et al. 2020, section 4).

    The default ends belong to T = 1000, where ᾱ_T = 4e-5. With fewer steps scale both by 1000/T, or x_T is not noise.

    Args:
        steps: T.
        first: β_1.
        last: β_T.
    """
    _check_steps("linear_schedule", steps)
    return NoiseSchedule(torch.linspace(first, last, steps, dtype=torch.float64))


def cosine_schedule(steps: int = 1000, *, offset: float = 0.008, most: float = 0.999) -> NoiseSchedule:
    """ᾱ_t as a squared cosine, nearly linear in the middle, with flat ends (Nichol and Dhariwal 2021, eq. 17).

    Args:
        steps: T.
        offset: keeps the first steps from being too small.
        most: the last β_t are cut at this number, as ᾱ_T would be 0.
    """
    _check_steps("cosine_schedule", steps)
    if not (math.isfinite(offset) and offset >= 0 and 0 < most < 1):
        raise ValueError(
            f"cosine_schedule: received offset={offset}, most={most}; rule: offset 0 or more, 0 < most < 1"
        )
    angle = (torch.arange(steps + 1, dtype=torch.float64) / steps + offset) / (1 + offset) * (math.pi / 2)
    left = angle.cos().square()
    return NoiseSchedule((1 - left[1:] / left[:-1]).clamp(max=most))


# --- One family of predictions ----------------------------------------------------------------------------------------


def data_from_noise(schedule: NoiseSchedule, t: Step, x: Batch, noise: Batch) -> Batch:
    """x_0 = (x − √(1 − ᾱ) ε)/√ᾱ, at every t."""
    a, b = _levels("data_from_noise", schedule, t, x, noise)
    return combine(1 / a, x, -b / a, noise)


def data_from_velocity(schedule: NoiseSchedule, t: Step, x: Batch, velocity: Batch) -> Batch:
    """x_0 = √ᾱ x − √(1 − ᾱ) v, at every t."""
    a, b = _levels("data_from_velocity", schedule, t, x, velocity)
    return a * x - b * velocity


def data_from_score(schedule: NoiseSchedule, t: Step, x: Batch, score: Batch) -> Batch:
    """x_0 = (x + (1 − ᾱ) s)/√ᾱ, at every t (Tweedie's formula)."""
    a, b = _levels("data_from_score", schedule, t, x, score)
    return (x + b**2 * score) / a


def noise_from_data(schedule: NoiseSchedule, t: Step, x: Batch, x_0: Batch) -> Batch:
    """ε = (x − √ᾱ x_0)/√(1 − ᾱ), for t ≥ 1."""
    a, b = _levels("noise_from_data", schedule, t, x, x_0, least=1)
    return (x - a * x_0) / b


def noise_from_velocity(schedule: NoiseSchedule, t: Step, x: Batch, velocity: Batch) -> Batch:
    """ε = √(1 − ᾱ) x + √ᾱ v, at every t."""
    a, b = _levels("noise_from_velocity", schedule, t, x, velocity)
    return b * x + a * velocity


def noise_from_score(schedule: NoiseSchedule, t: Step, x: Batch, score: Batch) -> Batch:
    """ε = −√(1 − ᾱ) s, at every t."""
    _, b = _levels("noise_from_score", schedule, t, x, score)
    return -b * score


def velocity_from_noise(schedule: NoiseSchedule, t: Step, x: Batch, noise: Batch) -> Batch:
    """v = (ε − √(1 − ᾱ) x)/√ᾱ, at every t."""
    a, b = _levels("velocity_from_noise", schedule, t, x, noise)
    return (noise - b * x) / a


def velocity_from_data(schedule: NoiseSchedule, t: Step, x: Batch, x_0: Batch) -> Batch:
    """v = (√ᾱ x − x_0)/√(1 − ᾱ), for t ≥ 1."""
    a, b = _levels("velocity_from_data", schedule, t, x, x_0, least=1)
    return (a * x - x_0) / b


def velocity_from_score(schedule: NoiseSchedule, t: Step, x: Batch, score: Batch) -> Batch:
    """v = −√(1 − ᾱ) (x + s)/√ᾱ, at every t."""
    a, b = _levels("velocity_from_score", schedule, t, x, score)
    return -b * (x + score) / a


def score_from_noise(schedule: NoiseSchedule, t: Step, x: Batch, noise: Batch) -> Batch:
    """s = −ε/√(1 − ᾱ), for t ≥ 1."""
    _, b = _levels("score_from_noise", schedule, t, x, noise, least=1)
    return -noise / b


def score_from_data(schedule: NoiseSchedule, t: Step, x: Batch, x_0: Batch) -> Batch:
    """s = (√ᾱ x_0 − x)/(1 − ᾱ), for t ≥ 1."""
    a, b = _levels("score_from_data", schedule, t, x, x_0, least=1)
    return (a * x_0 - x) / b**2


def score_from_velocity(schedule: NoiseSchedule, t: Step, x: Batch, velocity: Batch) -> Batch:
    """s = −x − √ᾱ v/√(1 − ᾱ), for t ≥ 1."""
    a, b = _levels("score_from_velocity", schedule, t, x, velocity, least=1)
    return -x - a / b * velocity


def _levels(
    operation: str, schedule: NoiseSchedule, t: object, x: Tensor, given: object, least: int = 0
) -> tuple[Tensor | float, Tensor | float]:
    """√ᾱ_t and √(1 − ᾱ_t), after checking that the formula does not divide by zero."""
    check_alike(operation, x=x, given=given)
    a, b = schedule._at(operation, schedule._signal, t, x), schedule._at(operation, schedule._noise, t, x)
    if least and (t == 0 if isinstance(t, int) else broken(t > 0)):
        raise ValueError(
            f"{operation}: received t=0; rule: t ≥ 1, since the formula divides by √(1 − ᾱ_t), which is 0 at t = 0: "
            "there the given quantity does not determine the wanted one"
        )
    return a, b


def combine(a: Tensor | float, x: Tensor, b: Tensor | float, y: Tensor) -> Tensor:
    """a x + b y, in two passes over the numbers instead of three where a and b are numbers."""
    scaled = x if isinstance(a, float) and a == 1 else a * x
    return torch.add(scaled, y, alpha=b) if isinstance(b, float) else scaled + b * y


# --- Checks -----------------------------------------------------------------------------------------------------------


def _beside(values: Tensor, x: Tensor) -> Tensor:
    """Numbers of shape () or (batch,), shaped to multiply x."""
    return values.reshape(values.shape + (1,) * (x.ndim - 1)) if values.ndim else values


def _numbers(operation: str, name: str, values: object, least: int = 1) -> Tensor:
    """Finite numbers in a row, in float64 on the CPU."""
    good = isinstance(values, Tensor) and values.is_floating_point() and values.ndim == 1 and len(values) >= least
    if not good:
        received = f"shape {tuple(values.shape)} {values.dtype}" if isinstance(values, Tensor) else repr(values)
        raise ValueError(
            f"{operation}: received {name} of {received}; rule: a floating-point tensor with one axis and {least} or "
            "more entries"
        )
    if not values.isfinite().all():
        raise ValueError(f"{operation}: received {name} with NaN or infinity; rule: every entry finite")
    return values.detach().to("cpu", torch.float64).clone()


def _check_steps(operation: str, steps: object) -> None:
    if not is_whole(steps, least=1):
        raise ValueError(f"{operation}: received steps={steps!r}; rule: a whole number, 1 or more")


def check_step(operation: str, schedule: NoiseSchedule, t: object, x: Tensor | None = None, *, least: int = 0) -> Step:
    """t itself, if it holds steps of this schedule.

    Args:
        operation: named in the error.
        schedule: gives T.
        t: an int, or an integer tensor of shape () or (batch,).
        x: what the steps belong to, (batch, ...). None: any batch.
        least: the first step that is allowed.

    Raises:
        ValueError: t is not a whole number, has another shape, or a value outside `least` … T.
    """
    if is_whole(t):
        if not least <= t <= schedule.steps:
            raise ValueError(f"{operation}: received t={t}; rule: a step from {least} to T = {schedule.steps}")
        return t
    whole = isinstance(t, Tensor) and not (t.is_floating_point() or t.is_complex() or t.dtype == torch.bool)
    if not whole or (t.ndim > 1 if x is None else t.shape not in ((), x.shape[:1])):
        received = f"shape {tuple(t.shape)} {t.dtype}" if isinstance(t, Tensor) else repr(t)
        rows = "batch" if x is None else len(x)
        raise ValueError(
            f"{operation}: received t of {received}; rule: steps are whole numbers, an int or an integer tensor of "
            f"shape () or ({rows},)"
        )
    if broken((t >= least) & (t <= schedule.steps)):
        raise ValueError(
            f"{operation}: received t between {t.min().item()} and {t.max().item()}; "
            f"rule: steps from {least} to T = {schedule.steps}"
        )
    return t.long()


def check_alike(operation: str, **tensors: object) -> None:
    """All are tensors of one shape (batch, ...) and one floating-point dtype."""
    first, *others = tensors.values()
    good = isinstance(first, Tensor) and first.is_floating_point() and first.ndim > 0
    if good and all(isinstance(x, Tensor) and x.shape == first.shape and x.dtype == first.dtype for x in others):
        return
    received = ", ".join(
        f"{name} {tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else f"{name} {type(x).__name__}"
        for name, x in tensors.items()
    )
    raise ValueError(
        f"{operation}: received {received}; rule: tensors of one shape (batch, ...) and one floating dtype"
    )
