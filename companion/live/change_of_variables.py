r"""Live figures of chapter 03: a strip of probability under a map of the line, and a square under a map of the plane.

`pushforward()`: x = g(z) = b + a h(z) for z on (0, 1); the density of x with its factor and without it,

    p_X(x) = Σ_b p_Z(f_b(x)) |f_b′(x)|,    without: Σ_b p_Z(f_b(x)),    f_b: the inverses of g, branch by branch.

`area_factor()`: x = g(u) for u uniform on the unit square; a small square becomes nearly a parallelogram of area
|det J_g(u)| times its own, so that p_X(x) = 1/|det J_g(u)|.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.live import Area, Choice, Line, LiveFigure, Panel, Point, Points, Readout, Segments, Slider

# ---------------------------------------------------------------------- one dimension: bases and maps on (0, 1)

STRIPS = 10  # of equal probability
CELLS = 400  # on which the area under a density is summed
HALF = 0.02  # half the width of the strip that the reader moves
FLOOR = -2.0  # lower end of the axis of x


def _base(kind: Tensor, z: Tensor) -> Tensor:
    """2z, 1 or 6z(1 − z) on (0, 1), by the index of the choice."""
    hump = 6 * z * (1 - z)
    return torch.where(kind < 0.5, 2 * z, torch.where(kind < 1.5, torch.ones_like(z), hump))


def _quantile(kind: Tensor, q: Tensor) -> Tensor:
    """Where the base has the share q of its probability to the left: z² = q, z = q, 3z² − 2z³ = q."""
    hump = 0.5 - torch.sin(torch.asin(1 - 2 * q) / 3)
    return torch.where(kind < 0.5, q.sqrt(), torch.where(kind < 1.5, q, hump))


@dataclass(frozen=True)
class Shape:
    """h on (0, 1) with its slope, and for y = h(z) each branch as (z, |dz/dy|)."""

    label: str
    h: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    branches: Callable[[Tensor], list[tuple[Tensor, Tensor]]]
    image: Callable[[Tensor], Tensor]  # runs through the image of h once, slowly where the density is infinite


SHAPES = {
    "line": Shape("straight, z", lambda z: z, torch.ones_like, lambda y: [(y, torch.ones_like(y))], lambda e: e),
    "square": Shape(
        "square, z²", lambda z: z**2, lambda z: 2 * z, lambda y: [(y.sqrt(), 0.5 / y.sqrt())], lambda e: e**2
    ),
    "root": Shape("root, √z", lambda z: z.sqrt(), lambda z: 0.5 / z.sqrt(), lambda y: [(y**2, 2 * y)], lambda e: e),
    "fold": Shape(
        "fold, (2z − 1)²: two to one",
        lambda z: (2 * z - 1) ** 2,
        lambda z: 4 * (2 * z - 1),
        lambda y: [((1 - y.sqrt()) / 2, 0.25 / y.sqrt()), ((1 + y.sqrt()) / 2, 0.25 / y.sqrt())],
        lambda e: e**2,
    ),
}


def _pushforward(shape: Shape) -> Callable[..., dict[str, Tensor]]:
    def evaluate(a: Tensor, b: Tensor, base: Tensor, at: Tensor, z: Tensor, edges: Tensor, levels: Tensor):
        y, middle = shape.image(edges), shape.image((edges[1:] + edges[:-1]) / 2)
        width = y[1:] - y[:-1]
        branches = shape.branches(middle)
        without = sum(_base(base, z_b) for z_b, _ in branches)
        density = sum(_base(base, z_b) * slope / a.abs() for z_b, slope in branches)
        closed = torch.zeros(1)
        strip = _quantile(base, levels)
        return (
            {
                "p_z": _base(base, z),
                "g": b + a * shape.h(z),
                "x": b + a * torch.cat([middle[:1], middle, middle[-1:]]),  # both ends of the curve drop to zero
                "p_x": torch.cat([closed, density, closed]),
                "p_without": torch.cat([closed, without, closed]),
                "area": (density * width).sum() * a.abs(),
                "area_without": (without * width).sum() * a.abs(),
            }
            | _strips(shape, a, b, base, strip)
            | _moved(shape, a, b, base, at)
        )

    return evaluate


def _strips(shape: Shape, a: Tensor, b: Tensor, base: Tensor, z: Tensor) -> dict[str, Tensor]:
    """Borders of the strips: under the base density, up to the map and across, under the density of x."""
    x, zero = b + a * shape.h(z), torch.zeros_like(z)
    term = _base(base, z) / (a * shape.slope(z)).abs().clamp(min=1e-3)
    return {
        "strip_foot": torch.stack([z, zero], 1),
        "strip_top": torch.stack([z, _base(base, z)], 1),
        "map_foot": torch.stack([z, zero + FLOOR], 1),
        "map_turn": torch.stack([z, x], 1),
        "map_side": torch.stack([zero + 1, x], 1),
        "image_foot": torch.stack([zero, x], 1),
        "image_top": torch.stack([term, x], 1),
    }


def _moved(shape: Shape, a: Tensor, b: Tensor, base: Tensor, here: Tensor) -> dict[str, Tensor]:
    """The strip that the reader moves, and the numbers that belong to it."""
    sides = here + HALF * torch.tensor([-1.0, 1.0])
    x = b + a * shape.h(sides)
    p_z, stretch = _base(base, here), (a * shape.slope(here)).abs()
    term = p_z / stretch.clamp(min=1e-3)  # the density is infinite where the map turns
    one = torch.ones(2)
    return {
        "z_sides": sides,
        "z_height": p_z * one,
        "x_sides": x,
        "floor": FLOOR * one,
        "across": torch.stack([here, torch.ones_like(here)]),
        "x_low": x.min() * one,
        "x_high": x.max() * one,
        "x_height": torch.stack([torch.zeros_like(term), term]),
        "p_here": p_z,
        "stretch": stretch,
        "term": term,
        "x_here": b + a * shape.h(here),
    }


def pushforward() -> LiveFigure:
    """The figure of section 1: a strip of probability goes up to the map and across to the density of x."""
    return LiveFigure(
        name="pushforward",
        columns=2,
        title="Probability does not move, length does",
        description=(
            "The base density at the bottom is {base}; the map above it is x = b + a·h(z) with h {shape}, a = {a}, "
            "b = {b}. Gray lines cut the base into ten strips of equal probability and follow them to x. At "
            "z = {at} the base density is {p_here}. The map stretches lengths by {stretch}, so this strip "
            "contributes {term} to the density at x = {x_here}. The area under the density of x is {area}; without the "
            "factor it is {area_without}."
        ),
        controls=[
            Choice("shape", label="map h(z)", options={key: s.label for key, s in SHAPES.items()}, value="line"),
            Slider("a", label="slope a", low=-4, high=4, step=0.32, value=-4),
            Slider("b", label="shift b", low=2, high=4, step=0.25, value=4),
            Choice(
                "base",
                label="base density",
                options={"dart": "2z, the dart", "uniform": "1, uniform", "hump": "6z(1 − z), a hump"},
                value="dart",
            ),
            Slider("at", label="orange strip at z", low=0.03, high=0.97, step=0.01, value=0.6),
        ],
        evaluate={key: _pushforward(shape) for key, shape in SHAPES.items()},
        select="shape",
        inputs={
            "z": torch.linspace(0.001, 0.999, 101),
            "edges": torch.linspace(0, 1, CELLS + 1),
            "levels": torch.linspace(0, 1, STRIPS + 1)[1:-1],
        },
        panels=[
            Panel(
                title="map",
                x=(0, 1),
                y=(FLOOR, 8),
                xlabel="z",
                ylabel="x = g(z)",
                marks=[
                    Segments("map_foot", "map_turn", color=6),
                    Segments("map_turn", "map_side", color=6),
                    Area("z_sides", "x_sides", base="floor", color=1, alpha=0.35),
                    Area("across", "x_high", base="x_low", color=1, alpha=0.5),
                    Line("z", "g", color=7),
                ],
            ),
            Panel(
                title="density of x",
                x=(0, 2.1),
                y=(FLOOR, 8),
                xlabel="p_X(x)",
                ylabel="x",
                marks=[
                    Segments("image_foot", "image_top", color=6),
                    Area("x_height", "x_high", base="x_low", color=1, alpha=0.5),
                    Line("p_without", "x", color=3, dash=True, label="without the factor"),
                    Line("p_x", "x", color=0, label="with it"),
                ],
            ),
            Panel(
                title="base density",
                x=(0, 1),
                y=(0, 2.1),
                xlabel="z",
                ylabel="p_Z(z)",
                marks=[
                    Segments("strip_foot", "strip_top", color=6),
                    Area("z_sides", "z_height", color=1, alpha=0.5),
                    Line("z", "p_z", color=0),
                ],
            ),
        ],
        readouts=[
            Readout("x_here", label="x = g(z)", output="x_here"),
            Readout("p_here", label="p_Z(z)", output="p_here"),
            Readout("stretch", label="stretch |g′(z)|", output="stretch"),
            Readout("term", label="p_Z(z) / |g′(z)|", output="term"),
            Readout("area", label="area under p_X", output="area"),
            Readout("area_without", label="area without the factor", output="area_without"),
        ],
    )


# ---------------------------------------------------------------------- two dimensions: maps of the unit square

SIDE = 0.12  # of the dragged square
Columns = tuple[Tensor, Tensor]  # ∂x/∂u₀ and ∂x/∂u₁, each (..., 2)


def _pair(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([first, second], -1)


def polar(u: Tensor, s: Tensor) -> tuple[Tensor, Columns]:
    """u₀ is the distance from the center, u₁ the share s of a full turn."""
    r, turn = u[..., 0], 2 * math.pi * s
    c, d = torch.cos(turn * u[..., 1]), torch.sin(turn * u[..., 1])
    return _pair(r * c, r * d), (_pair(c, d), _pair(-turn * r * d, turn * r * c))


def shear(u: Tensor, s: Tensor) -> tuple[Tensor, Columns]:
    """Rows slide: every area stays."""
    v, one = u - 0.5, torch.ones_like(u[..., 0])
    return _pair(v[..., 0] + s * v[..., 1], v[..., 1]), (_pair(one, 0 * one), _pair(s * one, one))


def swirl(u: Tensor, s: Tensor) -> tuple[Tensor, Columns]:
    """Rings turn by an angle that grows with their radius: wild, and every area stays."""
    v, rate = u - 0.5, 5 * s
    x, y = v[..., 0], v[..., 1]
    c, d = torch.cos(rate * (x**2 + y**2)), torch.sin(rate * (x**2 + y**2))
    p, q = x * c - y * d, x * d + y * c  # the turned point; turning it further moves it by (−q, p)
    first = _pair(c - 2 * rate * x * q, d + 2 * rate * x * p)
    second = _pair(-d - 2 * rate * y * q, c + 2 * rate * y * p)
    return _pair(p, q), (first, second)


def fold(u: Tensor, s: Tensor) -> tuple[Tensor, Columns]:
    """The left side is laid over the right one as s grows: det J changes its sign along a line."""
    v, one = u - 0.5, torch.ones_like(u[..., 0])
    first = (1 - s) * v[..., 0] + s * (4 * v[..., 0] ** 2 - 0.5)
    slope = (1 - s) + 8 * s * v[..., 0]
    return _pair(first, v[..., 1] + 0.2 * v[..., 0]), (_pair(slope, 0.2 * one), _pair(0 * one, one))


PLANE_MAPS = {
    "polar": ("polar coordinates", polar),
    "shear": ("shear", shear),
    "swirl": ("swirl", swirl),
    "fold": ("fold", fold),
}


def det2(columns: Columns) -> Tensor:
    """The signed area of the parallelogram with these sides."""
    (a, c), (b, d) = columns[0].unbind(-1), columns[1].unbind(-1)
    return a * d - b * c


def _shoelace(corners: Tensor) -> Tensor:
    """The signed area inside a closed polygon (n, 2)."""
    following = torch.cat([corners[1:], corners[:1]])
    return 0.5 * (corners[:, 0] * following[:, 1] - following[:, 0] * corners[:, 1]).sum()


def _area(plane_map: Callable) -> Callable[..., dict[str, Tensor]]:
    def evaluate(s: Tensor, at: Tensor, grid_u0: Tensor, grid_u1: Tensor, dots: Tensor, outline: Tensor):
        here = at.clamp(SIDE / 2, 1 - SIDE / 2)
        square = here + SIDE * outline
        curved, _ = plane_map(square, s)
        center, columns = plane_map(here, s)
        flat = center + SIDE * (outline[:, :1] * columns[0] + outline[:, 1:] * columns[1])
        image = plane_map(_pair(grid_u0, grid_u1), s)[0]
        det = det2(columns)
        return {
            "x0": image[..., 0],
            "x1": image[..., 1],
            "cloud": plane_map(dots, s)[0],
            "square_u0": square[:, 0],
            "square_u1": square[:, 1],
            "curved_x0": curved[:, 0],
            "curved_x1": curved[:, 1],
            "flat_x0": flat[:, 0],
            "flat_x1": flat[:, 1],
            "det": det,
            "ratio": _shoelace(curved[:-1]) / SIDE**2,
            "term": 1 / det.abs().clamp(min=1e-2),
        }

    return evaluate


def _grid_lines(count: int = 11, points: int = 41) -> tuple[Tensor, Tensor]:
    """Lines of constant u₀, then of constant u₁: (2 count, points) each."""
    fixed = torch.linspace(0, 1, count)[:, None].expand(count, points)
    along = torch.linspace(0, 1, points)[None].expand(count, points)
    return torch.cat([fixed, along]), torch.cat([along, fixed])


def _outline(points: int = 8) -> Tensor:
    """The border of the square (−½, ½)², counter-clockwise and closed: (4 points + 1, 2)."""
    run = torch.linspace(-0.5, 0.5, points + 1)[:-1]
    low = torch.full_like(run, -0.5)
    sides = [_pair(run, low), _pair(-low, run), _pair(-run, -low), _pair(low, -run)]
    return torch.cat([*sides, sides[0][:1]])


def _even_dots(n: int = 700) -> Tensor:
    """Points that fill the unit square evenly (an additive recurrence with the plastic number)."""
    k = torch.arange(1, n + 1, dtype=torch.float64)
    root = 1.32471795724474602596
    return torch.stack([(k / root) % 1, (k / root**2) % 1], 1).float()


def area_factor() -> LiveFigure:
    """The figure of section 3: drag a small square through a map of the plane."""
    u0, u1 = _grid_lines()
    return LiveFigure(
        name="area-factor",
        title="A small square becomes nearly a parallelogram",
        description=(
            "Points fill the unit square evenly. The map is {plane} with strength {s}. The small square at the dragged "
            "point is mapped to a curved patch, whose signed area is {ratio} times the square's; the parallelogram of "
            "the Jacobian has {det} times, its determinant. One over its size, {term}, is the density there."
        ),
        controls=[
            Choice("plane", label="map", options={k: label for k, (label, _) in PLANE_MAPS.items()}, value="polar"),
            Slider("s", label="strength", low=0.1, high=1, step=0.05, value=1),
            Point("at", label="small square", panel=0, value=(0.7, 0.15)),
        ],
        evaluate={key: _area(plane_map) for key, (_, plane_map) in PLANE_MAPS.items()},
        select="plane",
        inputs={"grid_u0": u0, "grid_u1": u1, "dots": _even_dots(), "outline": _outline()},
        panels=[
            Panel(
                title="base: uniform",
                x=(0, 1),
                y=(0, 1),
                xlabel="z₀",
                ylabel="z₁",
                aspect=1,
                marks=[
                    Line("grid_u0", "grid_u1", color=6, width=0.6, alpha=0.5),
                    Points("dots", color=0, size=1, alpha=0.6),
                    Line("square_u0", "square_u1", color=1, width=2.5),
                ],
            ),
            Panel(
                title="data: x = g(z)",
                x=(-1.05, 1.05),
                y=(-1.05, 1.05),
                xlabel="x₀",
                ylabel="x₁",
                aspect=1,
                marks=[
                    Line("x0", "x1", color=6, width=0.6, alpha=0.5),
                    Points("cloud", color=0, size=1, alpha=0.6),
                    Line("curved_x0", "curved_x1", color=1, width=2.5, label="image of the square"),
                    Line("flat_x0", "flat_x1", color=7, width=1.5, dash=True, label="parallelogram of J"),
                ],
            ),
        ],
        readouts=[
            Readout("det", label="det J_g", output="det"),
            Readout("ratio", label="area of the image / area of the square", output="ratio"),
            Readout("term", label="1 / |det J_g|, what this square adds to the density of x", output="term"),
        ],
    )
