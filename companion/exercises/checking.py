r"""An exercise knows its right answer and the wrong ones that people give.

    verdict(values(answer), record)      values: what the answer returns;  record: what the right and wrong ones return

What an answer *returns* is compared, never how it is written: any correct code passes, and a wrong answer is told the
misconception whose values it equals. The three steps can run in three places: `Exercise.values` where the answer is
(a kernel, a sandbox), `Exercise.record` where the key is, `verdict` where it is judged. All that travels is JSON: a
released notebook carries a record, which is values and never code, and a judge only compares what it receives.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_VALUES = 100_000  # that an answer may return to be compared
MOST_SAMPLES = 10_000_000  # that a sampler may return, before its statistic is taken
MOST_ITEMS, MOST_DEPTH, MOST_TEXT = 100, 4, 2_000
MOST_DIMENSIONS = 16

UNANSWERED = "Not answered yet. Replace the ... and run this cell again."


@dataclass(frozen=True)
class Verdict:
    """What the student reads (`message`), and what a judge counts."""

    passed: bool
    answered: bool
    message: str

    def __str__(self) -> str:
        return self.message


class _Unanswered(Exception):  # noqa: N818 - not an error: a blank that is still blank
    pass


@dataclass(frozen=True)
class Exercise:
    """One exercise: inputs, the right answer, and the catalogue of wrong ones.

    An answer is a function of the inputs, or several functions (a tuple, run together by `apply`), or a plain value (a
    number, a choice such as `"b"`). What it returns may be a tensor, a number, a truth value, a string, or lists and
    dictionaries of these.

    Attributes:
        inputs: the arguments of the student's function, drawn from a generator; made afresh for each answer, so that an
            answer which changes its arguments in place harms no other.
        right: the reference answer.
        wrong: misconception, as told to the student after "Not yet: ", to an answer that has it. At least four.
        also_right: right answers written differently: they must pass too.
        atol, rtol: a value v equals w if |v − w| ≤ atol + rtol |w|.
        apply: how the answer is run, `apply(answer, *inputs)`; without it, the answer is called with the inputs.
        statistic: for samplers, `statistic(output, *inputs)`: what is compared in place of the output.
        false_alarm: for samplers, the probability that a right answer is refused; the tolerance decides it.
    """

    inputs: Callable[[torch.Generator], tuple] = lambda generator: ()
    right: Any = None
    wrong: dict[str, Any] = field(default_factory=dict)
    also_right: tuple = ()
    atol: float | int = 1e-5
    rtol: float | int = 1e-4
    apply: Callable | None = None
    statistic: Callable | None = None
    false_alarm: float = 0.0

    def __post_init__(self):
        if (self.statistic is None) != (self.false_alarm == 0.0):
            raise ValueError(
                f"Exercise: received statistic={self.statistic} and false_alarm={self.false_alarm}; "
                "rule: a statistic of random output states its false-alarm rate, other exercises have none"
            )

    def values(self, answer: Any, seed: int = 0) -> dict:
        """What `answer` gives for the inputs of `seed`, as JSON. A blank, an exception, a monster are values too."""
        try:
            with torch.random.fork_rng(devices=[]):  # an answer that ignores its generator is still repeatable
                torch.manual_seed(seed)
                return _encode(self._run(answer, self.inputs(torch.Generator().manual_seed(seed))))
        except _Unanswered:
            return {"kind": "unanswered"}
        except (Exception, SystemExit) as error:
            return _encode_error(error)

    def record(self, seed: int = 0) -> dict:
        """The key for one seed, as JSON: what right and wrong answers return, and how exactly to compare."""
        wrong = {text: self.values(answer, seed) for text, answer in self.wrong.items()}
        return {"right": self.values(self.right, seed), "wrong": wrong} | {
            name: getattr(self, name) for name in ("atol", "rtol", "false_alarm")
        }

    def verdict(self, values: Any, record: dict | None = None) -> Verdict:
        """Judge `values` by `record` (by this exercise's own, of seed 0, if none is given)."""
        return verdict(values, self.record() if record is None else record)

    def check(self, answer: Any, seed: int = 0) -> Verdict:
        """All three steps in one place."""
        return verdict(self.values(answer, seed), self.record(seed))

    def _run(self, answer: Any, inputs: tuple) -> Any:
        answer = tuple(map(_guard, answer)) if isinstance(answer, tuple | list) and self.apply else _guard(answer)
        if self.apply is not None:
            output = self.apply(answer, *inputs)
        else:
            output = answer(*inputs) if callable(answer) else answer
        if self.statistic is None or _is_blank(output):
            return output
        if isinstance(output, Tensor) and output.numel() > MOST_SAMPLES:
            raise ValueError(f"received {output.numel():,} values; rule: at most {MOST_SAMPLES:,}")
        return self.statistic(output, *inputs)


def verdict(values: Any, record: dict) -> Verdict:
    """Judge what an answer returned by what the key's answers returned.

    Args:
        values: from `Exercise.values`, perhaps made by code that nobody should trust: it is compared, never executed.
        record: from `Exercise.record`, same seed.
    """
    try:
        got, right = _Value.read(values), _Value.read(record["right"])
        wrong = {text: _Value.read(other) for text, other in record["wrong"].items()}
        atol, rtol = float(record["atol"]), float(record["rtol"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, OverflowError):
        return Verdict(False, True, "Not yet: what your answer returned could not be read.")
    if got.kind == "unanswered":
        return Verdict(False, False, UNANSWERED)
    if got.kind == "error":
        return Verdict(False, True, f"Not yet: your answer stopped with {got.data}")
    if got.equals(right, atol, rtol):
        return Verdict(True, True, "Right.")
    for misconception, other in wrong.items():
        if got.equals(other, atol, rtol):
            return Verdict(False, True, f"Not yet: {misconception}")
    chance = record.get("false_alarm", 0.0)
    note = f" (A right sampler is refused here with probability {chance:.0e}.)" if chance else ""
    return Verdict(False, True, f"Not yet: {_difference(got, right, atol, rtol)}.{note}")


# ---------------------------------------------------------------------- from an answer's output to JSON


def _is_blank(output: Any) -> bool:
    return output is None or output is Ellipsis


def _guard(answer: Any) -> Any:
    """A function whose result None or ... says 'unanswered' at once, before other functions stumble over it."""
    if _is_blank(answer):
        raise _Unanswered
    if not inspect.isfunction(answer):
        return answer

    def guarded(*args, **kwargs):
        output = answer(*args, **kwargs)
        if _is_blank(output):
            raise _Unanswered
        return output

    return guarded


def _encode(output: Any, depth: int = 0) -> dict:
    if _is_blank(output):
        raise _Unanswered
    if depth > MOST_DEPTH:
        return {"kind": "other", "data": f"something nested more than {MOST_DEPTH} levels deep"}
    if isinstance(output, str):
        return {"kind": "text", "data": output[:MOST_TEXT]}
    if isinstance(output, dict):
        items = {str(key)[:MOST_TEXT]: value for key, value in list(output.items())[:MOST_ITEMS]}
        return {"kind": "map", "data": {key: _encode(value, depth + 1) for key, value in items.items()}}
    if isinstance(output, list | tuple) and not _is_flat(output):
        return {"kind": "list", "data": [_encode(value, depth + 1) for value in output[:MOST_ITEMS]]}
    if isinstance(output, list | tuple):
        output = [value if isinstance(value, Number) else value.item() for value in output[: MOST_VALUES + 1]]
    if isinstance(output, Tensor | Number | list) or hasattr(output, "__array__"):
        return _encode_tensor(torch.as_tensor(output))
    return {"kind": "other", "data": f"an object of type {type(output).__name__}"}


def _is_flat(items: list | tuple) -> bool:
    """Numbers only (a tensor or an array of one value without dimensions is a number)."""
    return len(items) > 0 and all(
        isinstance(item, Number) or (isinstance(item, Tensor | np.ndarray) and item.ndim == 0)
        for item in items[: MOST_VALUES + 1]
    )


def _encode_tensor(x: Tensor) -> dict:
    if x.numel() > MOST_VALUES:
        return {"kind": "other", "data": f"too many values ({x.numel():,}; at most {MOST_VALUES:,} are compared)"}
    if x.is_complex():
        return {"kind": "other", "data": "complex numbers"}
    dtype = str(x.dtype).removeprefix("torch.")
    data = x.detach().cpu().to_dense().to(torch.float64).flatten().tolist()
    return {"kind": "tensor", "dtype": dtype, "shape": list(x.shape), "data": [_to_json(value) for value in data]}


def _to_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON knows no nan and no inf


def _encode_error(error: BaseException) -> dict:
    try:
        text = f"{type(error).__name__}: {error}"[:300]
    except Exception:  # an error whose text cannot be had
        text = type(error).__name__
    if "ellipsis" in text.lower():  # a ... that stands in the middle of an answer
        return {"kind": "unanswered"}
    return {"kind": "error", "data": text}


# ---------------------------------------------------------------------- from JSON to a comparison


@dataclass(frozen=True)
class _Value:
    """One encoded value, read back and made safe: only plain data, of consistent size."""

    kind: str
    data: Any = None
    shape: tuple = ()
    dtype: str = ""

    @staticmethod
    def read(raw: Any, depth: int = 0) -> "_Value":
        kind, data = raw["kind"], raw.get("data")
        if depth > MOST_DEPTH + 1 or (kind in ("map", "list") and len(data) > MOST_ITEMS):
            raise ValueError("verdict: received values nested too deep, or too many")
        if kind == "tensor":
            return _Value._read_tensor(raw)
        if kind == "map":
            return _Value(kind, {str(key)[:MOST_TEXT]: _Value.read(value, depth + 1) for key, value in data.items()})
        if kind == "list":
            return _Value(kind, [_Value.read(value, depth + 1) for value in data])
        if kind in ("text", "error", "other", "unanswered"):
            return _Value(kind, str(data)[:MOST_TEXT])
        raise ValueError(f"verdict: received values of kind {kind!r}; rule: one that Exercise.values writes")

    @staticmethod
    def _read_tensor(raw: Any) -> "_Value":
        shape = tuple(int(length) for length in raw["shape"][: MOST_DIMENSIONS + 1])
        # Before anything is computed from it: the product of many large lengths takes hours.
        if len(shape) > MOST_DIMENSIONS or not all(0 <= length <= MOST_VALUES for length in shape):
            raise ValueError(f"verdict: received the shape {shape}; rule: at most {MOST_DIMENSIONS} lengths, none huge")
        if math.prod(max(length, 1) for length in shape) > MOST_VALUES:  # an empty tensor has strides too
            raise ValueError(f"verdict: received the shape {shape}; rule: at most {MOST_VALUES} values")
        data = [float(value) for value in raw["data"][: MOST_VALUES + 1]]
        if len(data) != math.prod(shape):
            raise ValueError(f"verdict: received {len(data)} values of shape {shape}; rule: as many as the shape says")
        return _Value("tensor", torch.tensor(data, dtype=torch.float64).reshape(shape), shape, str(raw["dtype"])[:20])

    def equals(self, other: "_Value", atol: float, rtol: float) -> bool:
        if self.kind != other.kind:
            return False
        if self.kind == "tensor":
            same_shape = self.shape == other.shape
            return same_shape and torch.allclose(self.data, other.data, rtol=rtol, atol=atol, equal_nan=True)
        if self.kind == "map":
            return self.data.keys() == other.data.keys() and all(
                self.data[key].equals(other.data[key], atol, rtol) for key in self.data
            )
        if self.kind == "list":
            return len(self.data) == len(other.data) and all(
                a.equals(b, atol, rtol) for a, b in zip(self.data, other.data, strict=True)
            )
        return self.data == other.data

    def __str__(self) -> str:
        """In words, for the student."""
        if self.kind == "tensor" and self.shape == ():
            return f"the number {self.data.item():.4g}"
        if self.kind == "tensor":
            return f"a tensor of shape {list(self.shape)}"
        if self.kind == "map":
            return f"a dictionary with the keys {', '.join(self.data)[:200] or '(none)'}"
        if self.kind == "list":
            return f"{len(self.data)} values"
        return f"the text '{self.data[:80]}'" if self.kind == "text" else self.data


def _difference(got: _Value, right: _Value, atol: float, rtol: float) -> str:
    """Where `got` differs from `right`, the most telling difference first."""
    if got.kind != right.kind:
        return f"your answer returned {got}; expected: {right}"
    if got.kind == "map" and got.data.keys() == right.data.keys():
        key = next(k for k in right.data if not got.data[k].equals(right.data[k], atol, rtol))
        return f"in '{key}', {_difference(got.data[key], right.data[key], atol, rtol)}"
    if got.kind == "list" and len(got.data) == len(right.data):
        i = next(i for i, want in enumerate(right.data) if not got.data[i].equals(want, atol, rtol))
        return f"in part {i}, {_difference(got.data[i], right.data[i], atol, rtol)}"
    if got.kind == "text":
        return f"'{got.data[:80]}' is not the answer"
    if got.kind != "tensor":
        return f"your answer returned {got}; expected: {right}"
    return _tensor_difference(got, right)


def _tensor_difference(got: _Value, right: _Value) -> str:
    if got.shape != right.shape:
        return f"shape {list(got.shape)} where {list(right.shape)} is expected"
    strange = ~got.data.isfinite() & right.data.isfinite()
    if strange.any():
        return f"{_element(got.data, strange.long())} where every value is finite"
    pattern = _pattern(got.data.flatten(), right.data.flatten())
    whole = got.dtype.startswith(("int", "uint", "bool")) and right.dtype.startswith("float")
    hint = f"; your values have the type {got.dtype}, real numbers are expected" if whole else ""
    if pattern:
        return pattern + hint
    gap = (got.data - right.data).abs().nan_to_num(nan=math.inf)
    x, y = got.data.flatten()[gap.argmax()].item(), right.data.flatten()[gap.argmax()].item()
    digits = next((digits for digits in range(4, 12) if f"{x:.{digits}f}" != f"{y:.{digits}f}"), 12)
    return f"{_element(got.data, gap, digits)}, expected {y:.{digits}f}{hint}"


def _element(x: Tensor, score: Tensor, digits: int = 4) -> str:
    """Names the element of `x` that has the largest score."""
    where = int(score.argmax())
    index = ", ".join(str(int(i)) for i in torch.unravel_index(torch.tensor(where), x.shape))
    value = f"{x.flatten()[where].item():.{digits}f}"
    return f"value [{index}] is {value}" if index else f"the value is {value}"


def _pattern(got: Tensor, right: Tensor) -> str:
    """A constant factor or a constant difference tells more than one wrong element."""
    usable = got.isfinite() & right.isfinite()
    if len(got) < 3 or not usable.all() or right.std() < 1e-3 * right.abs().mean():
        return ""
    shift, factor = got - right, got / right
    if shift.std() < 1e-4 * right.std() and shift.mean().abs() > max(1e-4, 100 * shift.std()):
        return f"every value is {abs(shift.mean().item()):.4f} too {'large' if shift.mean() > 0 else 'small'}"
    steady = factor.isfinite().all() and factor.std() < 1e-4 * factor.mean().abs()
    if steady and (factor.mean() - 1).abs() > max(1e-4, 100 * factor.std()):
        return f"every value is {factor.mean().item():.4f} times what it should be"
    return ""
