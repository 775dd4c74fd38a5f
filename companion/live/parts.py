"""The words a live figure is written in: controls, marks, panels, readouts and the repetition of a step.

They are plain records. Each checks what it can know alone; :mod:`companion.live.checking` checks the rest (names that
exist, shapes that fit) when a figure is put together. A *name* always means a tensor: an output of ``evaluate``, a
constant of ``inputs``, a carried state of :class:`Repeat`, or a control.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

PALETTE_SIZE = 8
MAX_CELLS = 64  # rows or columns of a mask: finer ones cannot be met with a finger
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*\Z")
_KEY = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")


def require(condition: bool, operation: str, received: object, rule: str) -> None:
    """Raise the house's ValueError (operation: received …; rule …) unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{operation}: received {received}; {rule}")


def is_kebab(text: str) -> bool:
    """Tell whether ``text`` is fit for a file name: lower-case words joined by hyphens."""
    return bool(_KEY.match(text))


def _check_name(kind: str, name: str) -> None:
    require(bool(_IDENTIFIER.match(name)), f"{kind}(name)", repr(name), "a name is a lower-case Python identifier")


def _check_range(operation: str, low: float, high: float) -> None:
    require(
        math.isfinite(low) and math.isfinite(high) and low < high, operation, (low, high), "low < high, both finite"
    )


def _check_label(kind: str, name: str, label: str) -> None:
    require(
        bool(label.strip()), f"{kind}({name!r}, label)", repr(label), "every control has a label that can be read out"
    )


# --- controls ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Slider:
    """A number in [low, high]; ``evaluate`` gets it as a float32 tensor of shape ()."""

    name: str
    label: str = dataclasses.field(kw_only=True)
    low: float = dataclasses.field(kw_only=True)
    high: float = dataclasses.field(kw_only=True)
    step: float = dataclasses.field(kw_only=True)
    value: float = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        _check_name("Slider", self.name)
        _check_label("Slider", self.name, self.label)
        _check_range(f"Slider({self.name!r})", self.low, self.high)
        require(
            0 < self.step <= self.high - self.low, f"Slider({self.name!r}, step)", self.step, "0 < step <= high - low"
        )
        self.check(self.value)

    def check(self, value: float) -> None:
        """Raise ValueError unless ``value`` lies in [low, high]."""
        inside = isinstance(value, int | float) and self.low <= value <= self.high
        require(inside, f"Slider({self.name!r}, value)", value, f"{self.low} <= value <= {self.high}")

    def samples(self) -> list[float]:
        """The settings at which the references of the browser test are taken."""
        return [self.low, self.high]


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several options; ``evaluate`` gets its index as a float32 tensor, unless the figure ``select``s by it."""

    name: str
    label: str = dataclasses.field(kw_only=True)
    options: dict[str, str] = dataclasses.field(kw_only=True)  # key -> what the reader sees
    value: str = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        _check_name("Choice", self.name)
        _check_label("Choice", self.name, self.label)
        require(len(self.options) >= 2, f"Choice({self.name!r}, options)", self.options, "at least two options")
        for key, label in self.options.items():
            require(is_kebab(key), f"Choice({self.name!r}, options)", repr(key), "a key is kebab-case: it names a file")
            _check_label("Choice", f"{self.name}.{key}", label)
        self.check(self.value)

    def check(self, value: str) -> None:
        """Raise ValueError unless ``value`` is one of the keys."""
        require(value in self.options, f"Choice({self.name!r}, value)", repr(value), f"one of {list(self.options)}")

    def samples(self) -> list[str]:
        """The settings at which the references of the browser test are taken."""
        return [key for key in self.options if key != self.value]


@dataclasses.dataclass(frozen=True)
class Toggle:
    """A check box; ``evaluate`` gets 0 or 1 as a float32 tensor of shape ()."""

    name: str
    label: str = dataclasses.field(kw_only=True)
    value: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _check_name("Toggle", self.name)
        _check_label("Toggle", self.name, self.label)
        self.check(self.value)

    def check(self, value: bool) -> None:
        """Raise ValueError unless ``value`` is a truth value."""
        require(isinstance(value, bool), f"Toggle({self.name!r}, value)", repr(value), "True or False")

    def samples(self) -> list[bool]:
        """The settings at which the references of the browser test are taken."""
        return [not self.value]


@dataclasses.dataclass(frozen=True)
class Point:
    """A point that the reader drags inside one panel; ``evaluate`` gets it as a float32 tensor of shape (2,)."""

    name: str
    label: str = dataclasses.field(kw_only=True)
    value: tuple[float, float] = dataclasses.field(kw_only=True)
    panel: int = dataclasses.field(default=0, kw_only=True)
    color: int = dataclasses.field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        _check_name("Point", self.name)
        _check_label("Point", self.name, self.label)
        _check_color("Point", self.color)
        pair = len(self.value) == 2 and all(math.isfinite(c) for c in self.value)
        require(pair, f"Point({self.name!r}, value)", self.value, "two finite coordinates")

    def check_inside(self, value: Sequence[float], x: Sequence[float], y: Sequence[float]) -> None:
        """Raise ValueError unless ``value`` lies in the ranges ``x`` and ``y`` of the point's panel."""
        inside = len(value) == 2 and x[0] <= value[0] <= x[1] and y[0] <= value[1] <= y[1]
        require(inside, f"Point({self.name!r}, value)", tuple(value), f"inside its panel: x in {x}, y in {y}")


@dataclasses.dataclass(frozen=True)
class Paint:
    """A mask that the reader paints over a picture; ``evaluate`` gets a float32 tensor (rows, columns) of 0 and 1.

    The cells lie over the *first* image of the panel's first :class:`Images`, whatever its resolution; to let a reader
    paint on one picture and see the answer on many, give the first a panel of its own. Values travel as rows of text,
    ``"..##...."`` with ``#`` where a cell is painted; nested 0 and 1, or a tensor of them, are turned into that.
    """

    name: str
    label: str = dataclasses.field(kw_only=True)
    rows: int = dataclasses.field(default=8, kw_only=True)
    columns: int = dataclasses.field(default=8, kw_only=True)
    value: object = dataclasses.field(default=(), kw_only=True)  # what `text` reads; () paints nothing
    panel: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        _check_name("Paint", self.name)
        _check_label("Paint", self.name, self.label)
        for side in ("rows", "columns"):
            size = getattr(self, side)
            fits = isinstance(size, int) and 1 <= size <= MAX_CELLS
            require(fits, f"Paint({self.name!r}, {side})", size, f"a whole number, 1..{MAX_CELLS}")
        empty = isinstance(self.value, tuple) and not self.value
        object.__setattr__(self, "value", tuple(self.text(self._fill(lambda i, j: False) if empty else self.value)))

    def text(self, value: Any) -> list[str]:
        """Rows of ``#`` and ``.``, from such rows or from nested 0 and 1.

        Raises:
            ValueError: the rows are not ``rows`` times ``columns`` cells, or hold something else.
        """
        given = value.tolist() if hasattr(value, "tolist") else value
        listed = isinstance(given, list | tuple) and all(isinstance(row, str | list | tuple) for row in given)
        sizes = [len(row) for row in given] if listed else None
        cells = [cell for row in given for cell in row] if listed else []
        known = all(cell in ("#", ".") if isinstance(cell, str) else cell in (0, 1) for cell in cells)
        rule = f"{self.rows} rows of {self.columns} cells, each '#' or '.', 1 or 0"
        require(known and sizes == [self.columns] * self.rows, f"Paint({self.name!r}, value)", given, rule)
        return ["".join("#" if cell in ("#", 1) else "." for cell in row) for row in given]

    def check(self, value: Any) -> None:
        """Raise ValueError unless ``value`` is a mask of this size."""
        self.text(value)

    def samples(self) -> list[list[str]]:
        """The settings at which the references of the browser test are taken: all, the upper half, every other."""
        upper, even = (lambda i, j: 2 * i < self.rows), (lambda i, j: (i + j) % 2 == 0)
        return [self._fill(painted) for painted in (lambda i, j: True, upper, even)]

    def _fill(self, painted: Callable[[int, int], bool]) -> list[str]:
        return ["".join("#" if painted(i, j) else "." for j in range(self.columns)) for i in range(self.rows)]


Control = Slider | Choice | Toggle | Point | Paint


# --- marks ------------------------------------------------------------------------------------------------------------


def _check_color(kind: str, color: int | str) -> None:
    known = isinstance(color, str) or 0 <= color < PALETTE_SIZE
    require(known, f"{kind}(color)", color, f"a palette index 0..{PALETTE_SIZE - 1} or the name of a tensor")


@dataclasses.dataclass(frozen=True)
class Mark:
    """What all marks share.

    ``color`` is an index into the palette, or the name of a tensor with one number per item: whole numbers pick from
    the palette; with ``limits=(low, high)`` they are read off the color scale. ``label`` puts the mark into the legend.
    ``show`` names a Toggle (drawn while it is on) or is a pair (Choice name, key).
    """

    color: int | str = dataclasses.field(default=0, kw_only=True)
    alpha: float = dataclasses.field(default=1.0, kw_only=True)
    label: str = dataclasses.field(default="", kw_only=True)
    show: str | tuple[str, str] = dataclasses.field(default="", kw_only=True)
    limits: tuple[float, float] | None = dataclasses.field(default=None, kw_only=True)

    tensors: ClassVar[dict[str, str]] = {}  # field that names a tensor -> shape, e.g. "n 2"; "?" may be left out

    def __post_init__(self) -> None:
        kind = type(self).__name__
        _check_color(kind, self.color)
        require(0 < self.alpha <= 1, f"{kind}(alpha)", self.alpha, "0 < alpha <= 1")
        if self.limits is not None:
            _check_range(f"{kind}(limits)", *self.limits)

    def names(self) -> dict[str, str]:
        """Tensor names that this mark draws, with the shapes that fit: {name: "n 2 | n"}."""
        used = {getattr(self, field): shape for field, shape in self.tensors.items() if getattr(self, field)}
        return used | ({self.color: "n"} if isinstance(self.color, str) else {})


@dataclasses.dataclass(frozen=True)
class Points(Mark):
    """A dot at each row of ``at`` (n, 2); ``size`` is its radius in pixels."""

    at: str
    size: float = dataclasses.field(default=2.0, kw_only=True)
    alpha: float = dataclasses.field(default=0.7, kw_only=True)
    tensors: ClassVar = {"at": "n 2 | 2"}


@dataclasses.dataclass(frozen=True)
class Line(Mark):
    """The line through (x_i, y_i), or one line per row of y (m, n); NaN breaks a line."""

    x: str
    y: str
    width: float = dataclasses.field(default=2.0, kw_only=True)
    dash: bool = dataclasses.field(default=False, kw_only=True)
    tensors: ClassVar = {"x": "n | m n", "y": "n | m n"}


@dataclasses.dataclass(frozen=True)
class Area(Mark):
    """The region between y and ``base`` (0 where it is empty) over x."""

    x: str
    y: str
    base: str = dataclasses.field(default="", kw_only=True)
    alpha: float = dataclasses.field(default=0.25, kw_only=True)
    tensors: ClassVar = {"x": "n", "y": "n", "base": "n"}


@dataclasses.dataclass(frozen=True)
class Bars(Mark):
    """A bar of height y_i centered at each x_i of an even grid: a histogram."""

    x: str
    y: str
    alpha: float = dataclasses.field(default=0.45, kw_only=True)
    tensors: ClassVar = {"x": "n", "y": "n"}


@dataclasses.dataclass(frozen=True)
class Arrows(Mark):
    """An arrow from each row of ``at`` (n, 2) to ``at + scale * by``."""

    at: str
    by: str
    scale: float = dataclasses.field(default=1.0, kw_only=True)
    width: float = dataclasses.field(default=1.3, kw_only=True)
    tensors: ClassVar = {"at": "n 2 | 2", "by": "n 2 | 2"}


@dataclasses.dataclass(frozen=True)
class Segments(Mark):
    """A straight segment from each row of ``start`` (n, 2) to the same row of ``end`` (n, 2)."""

    start: str
    end: str
    width: float = dataclasses.field(default=1.0, kw_only=True)
    alpha: float = dataclasses.field(default=0.5, kw_only=True)
    tensors: ClassVar = {"start": "n 2 | 2", "end": "n 2 | 2"}


@dataclasses.dataclass(frozen=True)
class Trails(Mark):
    """The way of each point: the history of a state (or output) over the steps of Repeat, or a tensor (times, n, 2).

    Where the state is one-dimensional, (n,) or (n, 1), it is drawn against time, which runs over ``span``.
    """

    of: str
    width: float = dataclasses.field(default=0.8, kw_only=True)
    alpha: float = dataclasses.field(default=0.35, kw_only=True)
    span: tuple[float, float] = dataclasses.field(default=(0.0, 1.0), kw_only=True)
    tensors: ClassVar = {"of": "n 2 | 2 | n | n 1 | t n 2"}


@dataclasses.dataclass(frozen=True)
class Heat(Mark):
    """A heat map of values (rows, columns) over the panel: first row at the bottom, first column at the left.

    ``limits`` fixes the color scale (else the values' own extremes); ``diverging=True`` centers it on zero.
    """

    values: str
    diverging: bool = dataclasses.field(default=False, kw_only=True)
    smooth: bool = dataclasses.field(default=True, kw_only=True)
    tensors: ClassVar = {"values": "h w"}


@dataclasses.dataclass(frozen=True)
class Images(Mark):
    """A grid of images (n, h, w), (n, 1, h, w) or (n, 3, h, w) with values in ``limits``; the panel needs no axes.

    One channel is drawn as ink on paper, like :func:`companion.plotting.images`: the lower limit is white.
    """

    images: str
    columns: int = dataclasses.field(default=8, kw_only=True)
    limits: tuple[float, float] | None = dataclasses.field(default=(-1.0, 1.0), kw_only=True)
    tensors: ClassVar = {"images": "n h w | n c h w"}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.columns >= 1, "Images(columns)", self.columns, "at least one")


# --- panels, readouts, repetition -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes. Without ``x`` and ``y`` it has none: for Images. ``aspect=1`` makes the units equal."""

    marks: list[Mark] = dataclasses.field(kw_only=True)
    title: str = dataclasses.field(default="", kw_only=True)
    x: tuple[float, float] | None = dataclasses.field(default=None, kw_only=True)
    y: tuple[float, float] | None = dataclasses.field(default=None, kw_only=True)
    xlabel: str = dataclasses.field(default="", kw_only=True)
    ylabel: str = dataclasses.field(default="", kw_only=True)
    aspect: float | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        operation = f"Panel({self.title!r})"
        require(bool(self.marks), operation, "no marks", "a panel shows at least one mark")
        bare = [type(mark).__name__ for mark in self.marks if not isinstance(mark, Images)]
        if self.x is None or self.y is None:
            require(self.x is self.y and not bare, operation, f"x={self.x}, y={self.y}", "only Images do without axes")
        else:
            _check_range(f"{operation}.x", *self.x)
            _check_range(f"{operation}.y", *self.y)
        require(self.aspect is None or self.aspect > 0, f"{operation}.aspect", self.aspect, "a positive number or None")


@dataclasses.dataclass(frozen=True)
class Readout:
    """A number below the picture: the output ``output``, of shape (), with ``digits`` significant digits."""

    name: str
    label: str = dataclasses.field(kw_only=True)
    output: str = dataclasses.field(kw_only=True)
    digits: int = dataclasses.field(default=3, kw_only=True)

    def __post_init__(self) -> None:
        _check_name("Readout", self.name)
        _check_label("Readout", self.name, self.label)
        require(1 <= self.digits <= 9, f"Readout({self.name!r}, digits)", self.digits, "1..9")


@dataclasses.dataclass(frozen=True)
class Repeat:
    """Call ``evaluate`` ``count`` times and feed its outputs back: input key <- output value of ``carry``.

    ``count`` is the name of a Slider with whole steps, or a number. The step's index 0..count-1 is passed as the input
    ``index``, the number of steps as the input ``total``. A carried input starts from the constant or control of its
    name. After k steps a mark that names a carried input draws the state after k steps, and one that names an output
    draws what the k-th call returned. With ``scrub`` the reader can go back to any step.
    """

    count: str | int = dataclasses.field(kw_only=True)
    carry: dict[str, str] = dataclasses.field(kw_only=True)
    index: str = dataclasses.field(default="k", kw_only=True)
    total: str = dataclasses.field(default="steps", kw_only=True)
    scrub: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        require(bool(self.carry), "Repeat(carry)", self.carry, "at least one output is fed back")
        fixed = not isinstance(self.count, int) or self.count >= 1
        require(fixed, "Repeat(count)", self.count, "at least one step")
        require(self.index != self.total, "Repeat(index, total)", self.index, "two different names")


def to_json(part: Any) -> dict:
    """The record as the front end reads it: its fields and its ``kind``."""
    fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    if isinstance(part, Panel):
        fields["marks"] = [to_json(mark) for mark in part.marks]
    fields = {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
    if isinstance(part, Choice):  # pairs: an object's order is not something to rely on in a notebook's JSON
        fields["options"] = [[key, label] for key, label in part.options.items()]
    return {"kind": type(part).__name__.lower()} | fields
