"""The house style of figures: one width, one palette, no ink without a reason.

Every function takes tensors, draws into `ax` (None: a new figure) and returns the Axes. A figure is as wide as the
text column and is drawn at 1.6 times its pixels, on white, so that it stays legible as a card on a dark page. The
colors have a contrast of 3 : 1 on white, and the first five differ for the color-blind too (after Okabe and Ito 2008).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from torch import Tensor

COLORS = ("#0070B0", "#D55E00", "#09835F", "#A8417F", "#6C5100", "#2E8BC0", "#5B5B5B", "#1A1A1A")
INK, PALE = "#333333", "#D9D9D9"
WIDTH = 7.0  # inches: 700 CSS pixels
SHADES = LinearSegmentedColormap.from_list("house", ["#FFFFFF", "#9CC7E0", "#0070B0", "#002B45"])

STYLE = {
    "figure.dpi": 160,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.prop_cycle": plt.cycler(color=COLORS),
    "axes.titlesize": 10,
    "axes.titleweight": "normal",
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "companion",
    "savefig.facecolor": "white",
}

Color = int | str


@contextmanager
def style() -> Iterator[None]:
    """The house style inside the block, for a figure that these functions do not make."""
    with rc_context(STYLE):
        yield


def figure(
    columns: int = 1,
    rows: int = 1,
    *,
    height: float | None = None,
    share: bool = False,
    titles: Sequence[str] = (),
) -> Axes | list[Axes]:
    """A figure as wide as the text: one Axes, or a list of them row by row.

    Args:
        columns: panels side by side.
        rows: rows of panels.
        height: height of the figure in inches; None makes the panels about square, and a lone one 3:2.
        share: all panels have the same axes: for what is to be compared.
        titles: of the panels, in order.
    """
    if height is None:
        height = 3.6 if columns * rows == 1 else rows * (WIDTH / columns) + 0.3
    with style():
        fig, grid = plt.subplots(rows, columns, figsize=(WIDTH, height), sharex=share, sharey=share, squeeze=False)
        # A frame without ink: cropping to the drawing would make narrow figures appear magnified on the page.
        fig.add_artist(Rectangle((0, 0), 1, 1, transform=fig.transFigure, fill=False, linewidth=0))
        axes = [_dress(ax) for ax in grid.flat]
        for ax, title in zip(axes, titles, strict=False):
            ax.set_title(title)
    return axes[0] if len(axes) == 1 else axes


def scatter(
    points: Float[Tensor, "n 2"],
    *,
    ax: Axes | None = None,
    color: Color | Tensor = 0,
    size: float = 4,
    alpha: float = 0.5,
    label: str | None = None,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Points in the plane, in one color or, given a tensor of small integers, in the color of each."""
    ax = _plane(ax, limits)
    x, y = _array(points).T
    colors = [_color(int(c)) for c in color] if isinstance(color, Tensor) else _color(color)
    ax.scatter(x, y, s=size, c=colors, alpha=alpha, linewidths=0, label=label)
    return _with_legend(ax, label)


def density2d(
    log_prob: Callable[[Tensor], Tensor],
    *,
    limits: tuple[float, float] = (-4.0, 4.0),
    resolution: int = 160,
    device: torch.device | str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """exp(log_prob) over a square as shades, white where there is nothing; it maps (n, 2) to (n,) on `device`."""
    ax = _plane(ax, limits)
    axis = torch.linspace(*limits, resolution, device=device)
    with torch.no_grad():
        values = log_prob(torch.cartesian_prod(axis, axis)).exp().reshape(resolution, resolution)
    # Flat shades compress well, and their borders are contours.
    ax.contourf(_array(axis), _array(axis), _array(values).T, levels=20, cmap=SHADES, vmin=0)
    return ax


def field(
    v: Callable[[Tensor, Tensor], Tensor],
    *,
    t: float = 0.0,
    limits: tuple[float, float] = (-4.0, 4.0),
    resolution: int = 16,
    scale: float | None = None,
    color: Color = 6,
    device: torch.device | str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Arrows of the field v(t, ·) on a grid, computed on `device`; `scale` is the speed drawn as one unit of length."""
    ax = _plane(ax, limits)
    axis = torch.linspace(*limits, resolution, device=device)
    at = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        arrows = _array(v(torch.tensor(t, device=device), at))
    kind = {} if scale is None else {"angles": "xy", "scale_units": "xy", "scale": scale}
    ax.quiver(*_array(at).T, *arrows.T, color=_color(color), width=0.004, pivot="mid", **kind)
    return ax


def trajectories(
    x: Float[Tensor, "times n 2"],
    *,
    ax: Axes | None = None,
    color: Color = 6,
    alpha: float = 0.5,
    ends: bool = True,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """The paths of points in the plane; `ends` marks their starts (gray) and their ends (blue)."""
    ax = _plane(ax, limits)
    paths = _array(x).transpose(1, 0, 2)
    ax.add_collection(LineCollection(list(paths), colors=_color(color), linewidths=0.6, alpha=alpha))
    if ends:
        ax.scatter(*paths[:, 0].T, s=5, c=COLORS[7], alpha=0.6, linewidths=0, zorder=3)
        ax.scatter(*paths[:, -1].T, s=7, c=COLORS[0], linewidths=0, zorder=3)
    ax.autoscale_view()
    return ax


def histogram(
    values: Float[Tensor, " n"],
    *,
    bins: int | Sequence[float] = 60,
    range: tuple[float, float] | None = None,
    density: Callable[[Tensor], Tensor] | None = None,
    ax: Axes | None = None,
    color: Color = 0,
    label: str | None = None,
    density_label: str | None = None,
) -> Axes:
    """A histogram normalized to area one and, over it, the density that it should follow: maps (m,) to (m,)."""
    ax = _dressed(ax)
    _, edges, _ = ax.hist(
        _array(values), bins=bins, range=range, density=True, color=_color(color), alpha=0.35, label=label
    )
    if density is not None:
        x = torch.linspace(float(edges[0]), float(edges[-1]), 400)
        ax.plot(_array(x), _array(density(x)), color=_color(color), label=density_label)
    return _with_legend(ax, label or density_label)


def lines(
    x: Tensor,
    ys: Tensor | Mapping[str, Tensor],
    *,
    ax: Axes | None = None,
    xlabel: str = "",
    ylabel: str = "",
    log: str = "",
    marker: str | None = None,
) -> Axes:
    """Curves over `x`: one tensor, or several by name; `log` is "", "x", "y" or "xy"."""
    ax = _dressed(ax)
    named = ys if isinstance(ys, Mapping) else {"": ys}
    for number, (name, y) in enumerate(named.items()):
        ax.plot(_array(x), _array(y), color=_color(number), label=name or None, marker=marker, markersize=4)
    if "x" in log:
        ax.set_xscale("log")
    if "y" in log:
        ax.set_yscale("log")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return _with_legend(ax, any(named))


def losses(
    runs: Sequence[Any] | Mapping[str, Sequence[Any]],
    *,
    ax: Axes | None = None,
    smooth: int | None = None,
    log: bool = False,
) -> Axes:
    """Loss against step: the range of single steps pale, their running mean over `smooth` steps in full color.

    Args:
        runs: records of `companion.training.fit`, or plain numbers; several runs by name.
        ax: where to draw.
        smooth: length of the running mean; None is a twentieth of the run.
        log: logarithmic losses.
    """
    ax = _dressed(ax)
    named = runs if isinstance(runs, Mapping) else {"": runs}
    for number, (name, records) in enumerate(named.items()):
        values = np.array([float(getattr(record, "loss", record)) for record in records])
        width = max(1, min(len(values), smooth or len(values) // 20))
        mean = np.convolve(values, np.ones(width) / width, mode="valid")
        step = np.arange(1, len(values) + 1)
        windows = np.array_split(values, max(1, min(len(values) // 8, 60)))
        middle = [part.mean() for part in np.array_split(step, len(windows))]
        ax.fill_between(
            middle,
            [w.min() for w in windows],
            [w.max() for w in windows],
            color=_color(number),
            alpha=0.15,
            linewidth=0,
        )
        ax.plot(step[width - 1 :], mean, color=_color(number), label=name or None)
    ax.set(xlabel="step", ylabel="loss", yscale="log" if log else "linear")
    return _with_legend(ax, any(named))


def spread(groups: Mapping[str, Tensor], *, ax: Axes | None = None, ylabel: str = "", log: bool = False) -> Axes:
    """A dot for each seed and a bar at their median, group by group: what a claim about training looks like."""
    ax = _dressed(ax)
    for number, values in enumerate(groups.values()):
        y = _array(values)
        ax.plot(np.full(len(y), number), y, "o", color=_color(number), markersize=5, alpha=0.6, markeredgewidth=0)
        ax.hlines(np.median(y), number - 0.2, number + 0.2, color=_color(number), linewidth=2)
    ax.set_xticks(range(len(groups)), list(groups))
    ax.set(ylabel=ylabel, yscale="log" if log else "linear", xlim=(-0.6, len(groups) - 0.4))
    if not log:
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
    return ax


def images(
    batch: Float[Tensor, "n channels height width"],
    *,
    columns: int = 10,
    ax: Axes | None = None,
    limits: tuple[float, float] = (-1.0, 1.0),
) -> Axes:
    """Images in rows of `columns`, one channel as gray (the lower limit is white) or three as color."""
    pixels = _array(((batch - limits[0]) / (limits[1] - limits[0])).clamp(0, 1))
    n, channels, height, width = pixels.shape
    rows = -(-n // columns)
    sheet = np.ones((rows * columns, height + 1, width + 1, channels))
    sheet[:n, :height, :width] = (1 - pixels if channels == 1 else pixels).transpose(0, 2, 3, 1)
    sheet = sheet.reshape(rows, columns, height + 1, width + 1, channels).transpose(0, 2, 1, 3, 4)
    sheet = sheet.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    if ax is None:
        ax = figure(height=max(0.7, WIDTH * sheet.shape[0] / sheet.shape[1]))
    ax.imshow(sheet.squeeze(-1) if channels == 1 else sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    return ax


def _plane(ax: Axes | None, limits: tuple[float, float] | None) -> Axes:
    """Axes for points of the plane: equal units, square if limits are given."""
    ax = _dressed(ax)
    ax.set_aspect("equal")
    if limits is not None:
        ax.set(xlim=limits, ylim=limits)
    return ax


def _dressed(ax: Axes | None) -> Axes:
    return figure() if ax is None else ax


def _dress(ax: Axes) -> Axes:
    """Fix what matplotlib reads only when it draws, after the style has gone."""
    ax.tick_params(labelsize=STYLE["xtick.labelsize"], color=INK, labelcolor=INK, width=0.6, length=3)
    return ax


def _with_legend(ax: Axes, wanted: object) -> Axes:
    if wanted:
        with style():
            legend = ax.legend(markerscale=2.5)
            for handle in legend.legend_handles:
                handle.set_alpha(1)
    return ax


def _color(color: Color) -> str:
    return COLORS[color % len(COLORS)] if isinstance(color, int) else color


def _array(values: Tensor) -> np.ndarray:
    return torch.as_tensor(values).detach().cpu().numpy()
