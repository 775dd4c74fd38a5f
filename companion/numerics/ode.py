r"""Explicit Runge–Kutta solvers for ordinary differential equations.

    dx/dt = v(t, x),    x(t_0) given,    wanted: x(t_1)

One step of size h from (t, x), for a method with the Butcher tableau (a, b, c):

    k_i = v(t + c_i h,  x + h Σ_{j<i} a_ij k_j),    x' = x + h Σ_i b_i k_i

Symbols: v velocity field, k_i slope at stage i, h step (negative when t_1 < t_0: time runs backwards).
The fixed solvers `Euler`, `Midpoint`, `Heun` and `RungeKutta4` are this formula with a tableau each; n steps lead
from t_0 to t_1 exactly. `DormandPrince` adds an error estimate, which chooses h, and a dense output.

Source: Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, 2nd ed. (1993), sections II.1
(tableaux), II.4 (error norm, first step), II.5 (Dormand–Prince 5(4)) and II.6 (dense output); II (1996), IV.2 (PI
control) and IV.8 (its use as a brake); Shampine, Math. Comp. 46 (1986) 135–150 (the embedded method).
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from companion.numerics._checks import is_whole, not_finite

__all__ = [
    "DormandPrince",
    "Euler",
    "Field",
    "FixedStepSolver",
    "Heun",
    "Midpoint",
    "RungeKutta4",
    "Solution",
    "Tableau",
    "integrate",
]

Field = Callable[[Tensor, Tensor], Tensor]
"""A velocity field v(t, x): t has shape (), x has shape (batch, ...), and so has the value."""


@dataclass(frozen=True)
class Tableau:
    r"""The numbers of an explicit Runge–Kutta method.

    Args:
        a: a[i] holds the weights a_ij (j < i) of the earlier slopes in the state of stage i.
        b: weights of the slopes in the step.
        c: stage times, as fractions of the step.
        error: weights of the slopes in the local error estimate, b minus the weights of the embedded method.
        dense: weights of the slopes in the quartic term of the dense output.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    error: tuple[float, ...] = ()
    dense: tuple[float, ...] = ()

    @property
    def stages(self) -> int:
        """Evaluations of the field in a step."""
        return len(self.b)

    @property
    def last_stage_ends_step(self) -> bool:
        """Whether the last stage stands at the next state, so that its slope serves the next step ('FSAL')."""
        return self.b[-1] == 0 and self.a[-1] == self.b[:-1]


EULER = Tableau(a=((),), b=(1.0,), c=(0.0,))
MIDPOINT = Tableau(a=((), (1 / 2,)), b=(0.0, 1.0), c=(0.0, 1 / 2))
HEUN = Tableau(a=((), (1.0,)), b=(1 / 2, 1 / 2), c=(0.0, 1.0))
RUNGE_KUTTA_4 = Tableau(
    a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    c=(0.0, 1 / 2, 1 / 2, 1.0),
)
# The last row of a is b: the last stage stands at the next state.
DORMAND_PRINCE = Tableau(
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    # b − b̂ for Shampine's embedded method: two thirds of Dormand and Prince's own, and the choice of torchdiffeq.
    error=(71 / 86400, 0.0, -142 / 50085, 71 / 2880, -5751 / 169600, 44 / 1575, -1 / 60),
    dense=(
        -12715105075 / 11282082432,
        0.0,
        87487479700 / 32700410799,
        -10690763975 / 1880347072,
        701980252875 / 199316789632,
        -1453857185 / 822651844,
        69997945 / 29380423,
    ),
)


def _weighted_sum(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """Σ w_i k_i without the terms whose weight is zero."""
    terms = [(w, k) for w, k in zip(weights, slopes, strict=False) if w]
    (weight, total), *rest = terms
    total = total if weight == 1 else weight * total
    for weight, slope in rest:
        total = torch.add(total, slope, alpha=weight)
    return total


def _step(
    tableau: Tableau, v: Field, times: Sequence[Tensor], x: Tensor, h: float | Tensor, first: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """One Runge–Kutta step. `times` are the stage times; `first` is the first slope, where it is known already.

    Returns:
        the next state and the slopes.
    """
    slopes = [v(times[0], x) if first is None else first]
    x_stage = x
    for weights, time in zip(tableau.a[1:], times[1:], strict=True):
        x_stage = x + h * _weighted_sum(weights, slopes)
        slopes.append(v(time, x_stage))
    if tableau.stages > 1 and tableau.a[-1] == tableau.b[:-1]:  # the last stage stands at the next state
        return x_stage, slopes
    return x + h * _weighted_sum(tableau.b, slopes), slopes


def _stage_times(tableau: Tableau, x: Tensor, t: float, h: float, end: float) -> Sequence[Tensor]:
    """The times t + c_i h as tensors like x. No rounding leads past the end of the step, where a field may end too."""
    return x.new_tensor([end if c == 1 else t + c * h for c in tableau.c]).unbind()


@dataclass
class _DenseOutput:
    r"""x(t) between the steps: cubic Hermite, plus a quartic term where the method has one.

    On the step from (t_0, x_0) to (t_0 + h, x_1), with slopes f_0 and f_1 at its ends and θ = (t − t_0)/h:

        x(θ) = (1−θ) x_0 + θ x_1 + θ(1−θ) [(1−θ)(h f_0 − Δ) − θ(h f_1 − Δ)] + θ²(1−θ)² h Σ_i d_i k_i,    Δ = x_1 − x_0
    """

    times: list[float]
    states: list[Tensor]
    slopes: list[list[Tensor]]
    dense: tuple[float, ...]
    end_slope: Callable[[], Tensor]
    _last: Tensor | None = field(default=None, init=False)

    def _slope(self, node: int) -> Tensor:
        """The slope at a node. At the last one a fixed solver has none yet: it is evaluated once, when asked for."""
        if node < len(self.slopes):
            return self.slopes[node][0]
        if self._last is None:
            self._last = self.end_slope()
        return self._last

    def __call__(self, t: float) -> Tensor:
        sign = 1 if self.times[-1] >= self.times[0] else -1
        at = bisect_right(self.times, sign * t, key=lambda node: sign * node) - 1
        if self.times[at] == t:
            return self.states[at]
        h = self.times[at + 1] - self.times[at]
        theta = (t - self.times[at]) / h
        x_0, x_1 = self.states[at], self.states[at + 1]
        delta = x_1 - x_0
        bend = (1 - theta) * (h * self._slope(at) - delta) - theta * (h * self._slope(at + 1) - delta)
        x = x_0 + theta * delta + theta * (1 - theta) * bend
        if self.dense:
            x = x + (theta * (1 - theta)) ** 2 * h * _weighted_sum(self.dense, self.slopes[at])
        return x


@dataclass(frozen=True)
class Solution:
    """What `integrate` found.

    Attributes:
        t: times, (times,): those of `t_eval`, or every accepted step from t_0 to t_1.
        x: states at these times, (times, batch, ...).
        final: the state at t_1, (batch, ...).
        evaluations: how often the field was evaluated.
        accepted: steps that were kept.
        rejected: steps that were tried again with a smaller h (always 0 for a fixed solver).
    """

    t: Float[Tensor, " times"]
    x: Float[Tensor, "times batch *dims"]
    final: Float[Tensor, "batch *dims"]
    evaluations: int
    accepted: int
    rejected: int
    _dense: _DenseOutput = field(repr=False)

    def __call__(self, t: Tensor | float) -> Tensor:
        """The state between the steps (dense output).

        Cubic Hermite interpolation for fixed solvers (its last interval costs one more evaluation of the field,
        the first time), the method's own interpolant of order 4 for `DormandPrince`.

        Args:
            t: times between t_0 and t_1, of shape () or (times,).

        Returns:
            (batch, ...) for one time, (times, batch, ...) for several.

        Raises:
            ValueError: a time lies outside the interval that was integrated.
        """
        t = torch.as_tensor(t, dtype=torch.float64)
        _check_times("Solution", t, self._dense.times[0], self._dense.times[-1])
        if t.ndim == 0:
            return self._dense(self._onto_ends(t.item()))
        return torch.stack([self._dense(self._onto_ends(time)) for time in t.tolist()])

    def _onto_ends(self, t: float) -> float:
        """t, moved into the interval (a time in float32 may lie a rounding error outside)."""
        low, high = sorted((self._dense.times[0], self._dense.times[-1]))
        return min(max(t, low), high)


@dataclass(frozen=True)
class _Run:
    """A solver's steps, before the times that the caller wants are looked up."""

    dense: _DenseOutput
    evaluations: int
    rejected: int = 0


class FixedStepSolver:
    """A Runge–Kutta method with `steps` equal steps from t_0 to t_1: h = (t_1 − t_0)/steps."""

    tableau: ClassVar[Tableau]
    steps: int

    def __post_init__(self) -> None:
        if not is_whole(self.steps, least=1):
            raise ValueError(f"{type(self).__name__}: received steps={self.steps!r}; rule: a whole number, 1 or more")

    def step(self, v: Field, t: Tensor, x: Float[Tensor, "batch *dims"], h: float | Tensor) -> Tensor:
        """One step of size h: x(t) → x(t + h). Plain tensor operations: it can be exported and differentiated.

        Args:
            v: the field.
            t: time, of shape ().
            x: state, (batch, ...).
            h: step, a number or a tensor of shape ().
        """
        times = [t + c * h if c else t for c in self.tableau.c]
        return _step(self.tableau, v, times, x, h)[0]

    def _run(self, v: Field, x: Tensor, t0: float, t1: float) -> _Run:
        h = (t1 - t0) / self.steps
        nodes = [t0 + k * h for k in range(self.steps)] + [t1]
        states, slopes = [x], []
        for t, end in pairwise(nodes):
            x, k = _step(self.tableau, v, _stage_times(self.tableau, x, t, h, end), x, h)
            states.append(x)
            slopes.append(k[:1])
        _check_finite_states(self, nodes, states)
        dense = _DenseOutput(nodes, states, slopes, (), lambda: v(x.new_tensor(t1), x))
        return _Run(dense, evaluations=self.steps * self.tableau.stages)


@dataclass(frozen=True)
class Euler(FixedStepSolver):
    """Euler's method, order 1: x' = x + h v(t, x)."""

    steps: int
    tableau: ClassVar[Tableau] = EULER


@dataclass(frozen=True)
class Midpoint(FixedStepSolver):
    """The midpoint rule, order 2: a half step finds the slope in the middle, the whole step uses it.

    x' = x + h v(t + h/2, x + (h/2) v(t, x))
    """

    steps: int
    tableau: ClassVar[Tableau] = MIDPOINT


@dataclass(frozen=True)
class Heun(FixedStepSolver):
    """Heun's method, order 2: the mean of the slopes at both ends.

    x' = x + (h/2) [v(t, x) + v(t + h, x + h v(t, x))]
    """

    steps: int
    tableau: ClassVar[Tableau] = HEUN


@dataclass(frozen=True)
class RungeKutta4(FixedStepSolver):
    """The classical method of order 4, with four evaluations a step."""

    steps: int
    tableau: ClassVar[Tableau] = RUNGE_KUTTA_4


@dataclass(frozen=True)
class DormandPrince:
    r"""Dormand and Prince's pair of orders 5 and 4, which chooses its own steps.

    The two orders differ by the error estimate e = h Σ_i (b_i − b̂_i) k_i. A step is accepted when the root mean square
    over the whole state (the batch included) of e / (atol + rtol max(|x|, |x'|)) is at most 1.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance.
        max_evaluations: where to give up: a field that needs more is probably stiff.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_evaluations: int = 10_000
    tableau: ClassVar[Tableau] = DORMAND_PRINCE

    def __post_init__(self) -> None:
        tolerances = (self.rtol, self.atol)
        if not all(math.isfinite(tol) and tol >= 0 for tol in tolerances) or max(tolerances) == 0:
            raise ValueError(
                f"DormandPrince: received rtol={self.rtol}, atol={self.atol}; "
                "rule: both finite and not negative, at least one of them positive"
            )
        if self.max_evaluations < 8:
            raise ValueError(
                f"DormandPrince: received max_evaluations={self.max_evaluations}; rule: at least 8, "
                "since the first step takes 2 evaluations to choose and 6 to make"
            )

    def _run(self, v: Field, x: Tensor, t0: float, t1: float) -> _Run:
        return _AdaptiveRun(self, v, x, t0, t1).run()


class _AdaptiveRun:
    """The loop of `DormandPrince`: try a step, keep it or not, choose the next h."""

    safety, smallest_factor, largest_factor = 0.9, 0.2, 10.0
    brake = 0.04  # exponent of the trend in the PI control
    floor = 0.1  # a smaller previous error counts as this one: growth after a timid first step is no trend
    last_steps, stretch = 10, 1.05  # so many steps before the end are made equal, and may be so much longer

    def __init__(self, solver: DormandPrince, v: Field, x: Tensor, t0: float, t1: float) -> None:
        self.solver, self.v, self.t, self.t1, self.x = solver, v, t0, t1, x
        self.direction = 1.0 if t1 >= t0 else -1.0
        self.smallest_step = 16 * torch.finfo(x.dtype).eps * max(abs(t0), abs(t1))
        self.root_size = math.sqrt(x.numel())
        self.previous_error = math.inf
        self.evaluations = self.rejected = 0
        self.nodes, self.states, self.slopes = [t0], [x], []

    def run(self) -> _Run:
        if self.t == self.t1:
            return self._result()
        slope = self._evaluate(self.t, self.x)
        _check_finite_field(slope, self.t)
        h = self._first_step(slope)
        while self.t != self.t1:
            h, slope = self._try_step(h, slope)
        return self._result()

    def _result(self) -> _Run:
        dense = _DenseOutput(
            self.nodes, self.states, self.slopes, self.solver.tableau.dense, lambda: self.slopes[-1][-1]
        )
        return _Run(dense, self.evaluations, self.rejected)

    def _evaluate(self, t: float, x: Tensor) -> Tensor:
        self.evaluations += 1
        return self.v(x.new_tensor(t), x)

    def _norm(self, x: Tensor) -> float:
        """Root mean square over the whole state."""
        return torch.linalg.vector_norm(x.detach()).item() / self.root_size

    def _first_step(self, slope: Tensor) -> float:
        """Hairer's guess of the first h (II.4): from the size of the state, its slope and a second derivative."""
        scale = self.solver.atol + self.solver.rtol * self.x.detach().abs()
        d_0, d_1 = self._norm(self.x / scale), self._norm(slope / scale)
        if not math.isfinite(d_1):
            raise ValueError("DormandPrince: received a field that overflows at the start; rule: |v|/atol is finite")
        h_0 = 1e-6 if min(d_0, d_1) < 1e-5 else 0.01 * d_0 / d_1
        h_0 = self.direction * min(h_0, abs(self.t1 - self.t))
        probe = self._evaluate(self.t + h_0, self.x + h_0 * slope)
        d_2 = self._norm((probe - slope) / scale) / abs(h_0)
        if not math.isfinite(d_2):
            return h_0
        h_1 = max(1e-6, 1e-3 * abs(h_0)) if max(d_1, d_2) <= 1e-15 else (0.01 / max(d_1, d_2)) ** (1 / 6)
        return self.direction * min(100 * abs(h_0), h_1)

    def _try_step(self, h: float, slope: Tensor) -> tuple[float, Tensor]:
        """Try one step.

        Returns:
            the next h and the slope there.
        """
        t, x, tableau = self.t, self.x, self.solver.tableau
        h, last = self._fit(h)
        self._check_budget(t, h)
        end = self.t1 if last else t + h
        x_next, slopes = _step(tableau, self.v, _stage_times(tableau, x, t, h, end), x, h, first=slope)
        self.evaluations += tableau.stages - 1
        error = self._error(x, x_next, h, slopes)
        if error <= 1:
            self._accept(end, x_next, slopes)
            return h * self._growth(error), slopes[-1]
        self.rejected += 1
        return h * self._shrinkage(error, t, h), slope

    def _fit(self, h: float) -> tuple[float, bool]:
        """h, changed near the end so that the last steps are equal and end on t_1; and whether it is the last one."""
        remaining = self.t1 - self.t
        steps = math.ceil(remaining / (self.stretch * h) - 1e-9)
        if steps <= 1:
            return remaining, True
        return (remaining / steps if steps <= self.last_steps else h), False

    def _error(self, x: Tensor, x_next: Tensor, h: float, slopes: list[Tensor]) -> float:
        """The estimated error of the step in units of the tolerance."""
        with torch.no_grad():
            scale = torch.maximum(x.abs(), x_next.abs()).mul_(self.solver.rtol).add_(self.solver.atol)
            return abs(h) * self._norm(_weighted_sum(self.solver.tableau.error, slopes) / scale)

    def _accept(self, t: float, x: Tensor, slopes: list[Tensor]) -> None:
        self.t, self.x = t, x
        self.nodes.append(t)
        self.states.append(x)
        self.slopes.append(slopes)

    def _growth(self, error: float) -> float:
        """PI control: the error decides the next h, and where it has been rising its trend brakes.

        factor = safety · error^(−1/5) · min(1, (max(previous error, 0.1) / error)^0.04)
        """
        error = max(error, 1e-10)
        trend = min(1.0, (max(self.previous_error, self.floor) / error) ** self.brake)
        self.previous_error = error
        return min(self.largest_factor, max(self.smallest_factor, self.safety * error**-0.2 * trend))

    def _shrinkage(self, error: float, t: float, h: float) -> float:
        """The factor after a rejected step; a step that met infinity is made much smaller."""
        factor = max(self.smallest_factor, self.safety * error**-0.2) if math.isfinite(error) else 0.1
        if abs(h) * factor < self.smallest_step:
            reason = "the tolerance is out of reach in this dtype, or the field jumps"
            if not math.isfinite(error):
                reason = "the field returns NaN or infinity next to this time, or the solution blows up there"
            raise ValueError(
                f"DormandPrince: received a field for which the step shrank to {h:.1e} at t={t:.6g}; {reason}"
            )
        return factor

    def _check_budget(self, t: float, h: float) -> None:
        if self.evaluations + self.solver.tableau.stages - 1 > self.solver.max_evaluations:
            raise ValueError(
                f"DormandPrince: received a field that used up max_evaluations={self.solver.max_evaluations} "
                f"at t={t:.6g} of {self.t1:.6g} with steps of {h:.1e}; "
                "rule: an explicit solver needs a field that is not stiff. "
                "In a stiff field some direction decays so fast that stability, not accuracy, dictates tiny steps. "
                "Loosen the tolerances, smooth the field, or raise max_evaluations"
            )


def integrate(
    v: Field,
    x: Float[Tensor, "batch *dims"],
    solver: FixedStepSolver | DormandPrince,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    t_eval: Tensor | None = None,
) -> Solution:
    """Solve dx/dt = v(t, x) from t_0 to t_1. Gradients flow through the solver's steps.

    Args:
        v: the field; t has shape (), x and the value have shape (batch, ...).
        x: the state at t_0, (batch, ...).
        solver: for example `Euler(steps=50)` or `DormandPrince(rtol=1e-5, atol=1e-5)`.
        t0: start.
        t1: end; t1 < t0 runs backwards.
        t_eval: times between t_0 and t_1 at which the solution is wanted, (times,). Without it every step is kept.

    Returns:
        the solution; its `final` is the state at t_1, and it can be called at any time between.

    Raises:
        ValueError: the state, the field or the times are not usable, the steps become too small, or there are too many.
    """
    _check_state(x)
    t0, t1 = _finite_time("t0", t0), _finite_time("t1", t1)
    if t_eval is not None:
        _check_times("integrate", t_eval, t0, t1, axes=(1,))
    run = solver._run(_checked_once(v, x), x, t0, t1)
    dense = run.dense
    counts = {"evaluations": run.evaluations, "accepted": len(dense.times) - 1, "rejected": run.rejected}
    final = dense.states[-1]
    if t_eval is None:
        return Solution(x.new_tensor(dense.times), torch.stack(dense.states), final, **counts, _dense=dense)
    low, high = sorted((t0, t1))
    states = [dense(min(max(time, low), high)) for time in t_eval.tolist()]
    return Solution(t_eval.to(x), torch.stack(states), final, **counts, _dense=dense)


def _checked_once(v: Field, x: Tensor) -> Field:
    """v, whose first value is checked for its shape and dtype."""
    unchecked = True

    def field_(t: Tensor, state: Tensor) -> Tensor:
        nonlocal unchecked
        value = v(t, state)
        if unchecked:
            _check_value(value, x)
            unchecked = False
        return value

    return field_


def _check_value(value: object, x: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"integrate: received a field that returns {type(value).__name__}; rule: v(t, x) is a tensor")
    if value.shape != x.shape or value.dtype != x.dtype or value.device != x.device:
        raise ValueError(
            f"integrate: received a field that returns {tuple(value.shape)} {value.dtype} on {value.device} "
            f"for a state {tuple(x.shape)} {x.dtype} on {x.device}; "
            "rule: v(t, x) has the shape, dtype and device of x"
        )


def _check_state(x: Tensor) -> None:
    if x.ndim == 0 or x.numel() == 0 or not x.is_floating_point():
        raise ValueError(
            f"integrate: received a state of shape {tuple(x.shape)} {x.dtype}; "
            "rule: (batch, ...), floating point, not empty"
        )
    if not_finite(x):
        raise ValueError("integrate: received a state with NaN or infinity; rule: every entry is finite")


def _finite_time(name: str, t: float) -> float:
    t = float(t)
    if not math.isfinite(t):
        raise ValueError(f"integrate: received {name}={t}; rule: a finite time")
    return t


def _check_times(operation: str, t: Tensor, t0: float, t1: float, axes: tuple[int, ...] = (0, 1)) -> None:
    """Times lie between t_0 and t_1, up to rounding in float32."""
    slack = 1e-6 * max(abs(t0), abs(t1))
    low, high = min(t0, t1) - slack, max(t0, t1) + slack
    if t.ndim not in axes or t.numel() == 0 or not bool(((t >= low) & (t <= high)).all()):
        shown = t.tolist() if t.numel() <= 4 else f"{t.numel()} times from {t.min().item():.6g} to {t.max().item():.6g}"
        raise ValueError(
            f"{operation}: received t={shown} of shape {tuple(t.shape)}; "
            f"rule: {' or '.join(map(str, axes))} axes, between {t0:g} and {t1:g}"
        )


def _check_finite_field(slope: Tensor, t: float) -> None:
    if not_finite(slope):
        raise ValueError(f"integrate: received a field with NaN or infinity at t={t:.6g}; rule: finite at the start")


def _check_finite_states(solver: FixedStepSolver, times: list[float], states: list[Tensor]) -> None:
    """The last state tells whether any was not finite; only then look for the first one."""
    if not not_finite(states[-1]):
        return
    first = next(k for k, x in enumerate(states) if not_finite(x))
    raise ValueError(
        f"integrate: received a field for which {solver} reached NaN or infinity at t={times[first]:.6g}; "
        "rule: every state is finite. The field is not finite there, or the step is too long for a stable solution"
    )
