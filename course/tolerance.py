"""Compare two printed outputs: floats within a tolerance, everything else exactly.

A new number y agrees with the recorded number x when |y − x| ≤ atol + rtol·|x|. nan agrees with nan, inf with inf of
the same sign. Integers agree only when equal, unless the tolerance says `integers: true`. Blanks beside a number that
may move are layout (a minus sign takes the place of a blank) and do not count. All other text must be equal.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

NUMBER = re.compile(
    r"""(?<![\w.])                                        # not inside a word: the 2 of W2 is text
        (?P<number>
          (?:(?<![\w)\]])[-+−])?                          # a sign, unless it joins two terms
          (?: (?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)? | \.\d+ | (?:nan|inf)\b )
          (?:[eE][-+]?\d+)?
        )
        (?!\.?\d)                                         # not a part of a version such as 1.2.3
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Tolerance:
    """How far a printed number may move; the default is not at all."""

    rtol: float = 0.0
    atol: float = 0.0
    integers: bool = False

    @classmethod
    def read(cls, *levels: Mapping | None) -> "Tolerance":
        """Reads `{rtol:, atol:, integers:}` of the chapter, then of the cell; what the cell states wins, name by name.

        Raises:
            ValueError: An unknown name, or a value that is no finite number ≥ 0.
        """
        stated = {}
        for level in levels:
            if level is not None and not isinstance(level, Mapping):
                raise ValueError(
                    f"tolerance: received {level!r}; rule: a mapping such as {{rtol: 1.0e-3, atol: 1.0e-4}}"
                )
            stated |= level or {}
        if unknown := stated.keys() - {field.name for field in fields(cls)}:
            raise ValueError(f"tolerance: received {sorted(unknown)}; rule: only rtol, atol and integers")
        for name in ("rtol", "atol"):
            value = stated.get(name, 0.0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(
                    f"tolerance: received {name}: {value!r}; rule: a finite number ≥ 0 (write 1.0e-3, not 1e-3)"
                )
        if not isinstance(stated.get("integers", False), bool):
            raise ValueError(f"tolerance: received integers: {stated['integers']!r}; rule: true or false")
        return cls(**stated)

    def allowed(self, reference: float) -> float:
        """atol + rtol·|reference|: the largest change that agrees."""
        return self.atol + self.rtol * abs(reference)

    @property
    def exact(self) -> bool:
        """Whether nothing may move."""
        return self.rtol == 0 and self.atol == 0


@dataclass(frozen=True)
class Difference:
    """The first place where two outputs disagree."""

    message: str
    line: int

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


def compare(reference: str, new: str, tolerance: Tolerance) -> Difference | None:
    """Returns the first difference between a recorded and a new output that `tolerance` does not allow."""
    if reference == new:
        return None
    if tolerance.exact:
        return _text_difference(reference, new)
    old, fresh = _tokens(reference), _tokens(new)
    for (old_text, old_number, line), (new_text, new_number, _) in zip(old, fresh, strict=False):
        if old_text != new_text:
            return Difference(f"the text changed from {_quote(old_text)} to {_quote(new_text)}", line)
        if (old_number is None) != (new_number is None):
            return Difference(f"the number {old_number or new_number} stands in only one of them", line)
        if old_number is not None and (problem := _number_problem(old_number, new_number, tolerance)):
            return Difference(problem, line)
    return None


def largest_change(reference: str, new: str) -> tuple[float, float] | None:
    """Returns the largest absolute and relative change of a number; None where the text between them changed."""
    old, fresh = _tokens(reference), _tokens(new)
    if [token[0] for token in old] != [token[0] for token in fresh]:
        return None
    pairs = [(value(a[1]), value(b[1])) for a, b in zip(old, fresh, strict=True) if a[1] and b[1]]
    if any(math.isnan(a) != math.isnan(b) for a, b in pairs):
        return math.inf, math.inf
    steps = [(abs(a - b), abs(a - b) / abs(a) if a else math.inf) for a, b in pairs if a != b and not math.isnan(a)]
    return max((s[0] for s in steps), default=0.0), max((s[1] for s in steps), default=0.0)


def value(number: str) -> float:
    """The float that a printed number stands for."""
    return float(number.replace(",", "").replace("−", "-"))


def _tokens(text: str) -> list[tuple[str, str | None, int]]:
    """Splits a text into (text before a number, the number, its line), and last (the rest, None, its line).

    Integers are tokens too, since `{1.0:g}` prints a float as one; two integers are still held to be equal.
    """
    tokens, start = [], 0
    for match in NUMBER.finditer(text):
        if _is_word(text, match):
            continue
        tokens.append((text[start : match.start()], match["number"], text.count("\n", 0, match.start()) + 1))
        start = match.end()
    tokens.append((text[start:], None, text.count("\n") + 1))
    return [
        (_without_layout(before, i > 0, number is not None), number, line)
        for i, (before, number, line) in enumerate(tokens)
    ]


def _is_word(text: str, match: re.Match) -> bool:
    """Whether an integer runs on into a word, as in 3d, 640x480 or a hexadecimal address."""
    after = text[match.end() : match.end() + 1]
    return _integer(match["number"]) and (after.isalnum() or after == "_")


def _integer(number: str) -> bool:
    return number.lstrip("+-−").replace(",", "").isdigit()


def _without_layout(text: str, after_number: bool, before_number: bool) -> str:
    """Drops the blanks that adjoin a number."""
    text = text.lstrip(" \t") if after_number else text
    return text.rstrip(" \t") if before_number else text


def _number_problem(reference: str, new: str, tolerance: Tolerance) -> str | None:
    """Says why two numbers disagree, or None."""
    if _integer(reference) and _integer(new) and not tolerance.integers:
        return (
            None if value(reference) == value(new) else f"the integer {reference} became {new}; integers must be equal"
        )
    x, y = value(reference), value(new)
    if x == y or (math.isnan(x) and math.isnan(y)):
        return None
    if math.isfinite(x) and math.isfinite(y) and abs(y - x) <= tolerance.allowed(x):
        return None
    return (
        f"the number {reference} became {new}: it moved by {abs(y - x):.3g}, allowed is {tolerance.allowed(x):.3g} "
        f"(atol {tolerance.atol:g} + rtol {tolerance.rtol:g} · |{reference}|)"
    )


def _text_difference(reference: str, new: str) -> Difference:
    """The first line that differs, where nothing may move."""
    old, fresh = reference.splitlines(keepends=True), new.splitlines(keepends=True)
    for number, (a, b) in enumerate(zip(old, fresh, strict=False), start=1):
        if a != b:
            return Difference(f"{_quote(a)} became {_quote(b)}; this cell states no tolerance", number)
    return Difference(
        f"{_plural(len(old), 'line')} before, {_plural(len(fresh), 'line')} now", min(len(old), len(fresh)) + 1
    )


def _quote(text: str) -> str:
    text = text.strip() or text
    return repr(text if len(text) <= 80 else f"{text[:38]} … {text[-38:]}")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
