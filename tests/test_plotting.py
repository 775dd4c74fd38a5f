"""Figures: what they draw, how large they are, that they are the same each time and legible to everyone."""

import io
from itertools import combinations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from companion import plotting
from companion.data import digits, two_moons
from companion.device import generator, randn

POINTS = randn(300, 2, generator=generator(0))
PATHS = torch.stack([POINTS[:60] * (1 - t) + 2 * t for t in torch.linspace(0, 1, 20)])

DRAWINGS = {
    "scatter": lambda: plotting.scatter(POINTS, label="noise", limits=(-4, 4)),
    "scatter by label": lambda: plotting.scatter(POINTS, color=torch.arange(300) % 3),
    "density2d": lambda: plotting.density2d(two_moons().log_prob, limits=(-2, 3)),
    "field": lambda: plotting.field(lambda t, x: t - x, t=0.5),
    "field to scale": lambda: plotting.field(lambda t, x: t - x, t=0.5, scale=10),
    "trajectories": lambda: plotting.trajectories(PATHS),
    "histogram": lambda: plotting.histogram(
        POINTS[:, 0], density=lambda x: torch.exp(-(x**2) / 2), density_label="$p$"
    ),
    "lines": lambda: plotting.lines(
        torch.arange(1.0, 9), {"Euler": 1 / torch.arange(1.0, 9)}, log="xy", xlabel="steps"
    ),
    "losses": lambda: plotting.losses({"seed 0": torch.rand(400).tolist(), "seed 1": torch.rand(400).tolist()}),
    "spread": lambda: plotting.spread({"independent": torch.rand(3) + 1, "OT": torch.rand(3)}, ylabel="$W_2$"),
    "images": lambda: plotting.images(digits().images[:25], columns=10),
    "color images": lambda: plotting.images(torch.zeros(3, 3, 4, 4)),
}
every_drawing = pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def png(ax: Axes) -> bytes:
    """What the page gets: the figure, cropped as notebooks crop it."""
    file = io.BytesIO()
    ax.figure.savefig(file, format="png", bbox_inches="tight", metadata={"Software": None})
    return file.getvalue()


@every_drawing
def test_every_function_draws_and_returns_its_axes(draw):
    ax = draw()
    assert isinstance(ax, Axes)
    assert ax.has_data()


@every_drawing
def test_a_figure_is_as_wide_as_the_text_and_small_in_bytes(draw):
    picture = png(draw())
    width = int.from_bytes(picture[16:20], "big")
    dpi = plotting.STYLE["figure.dpi"]
    assert plotting.WIDTH * dpi <= width <= (plotting.WIDTH + 0.5) * dpi
    assert len(picture) < 160_000


@every_drawing
def test_drawing_twice_gives_the_same_bytes(draw):
    torch.manual_seed(0)
    first = png(draw())
    torch.manual_seed(0)
    assert png(draw()) == first


@every_drawing
def test_no_setting_of_matplotlib_is_left_changed(draw):
    before = dict(mpl.rcParams)
    draw()
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plotting.scatter(POINTS, ax=ax),
        lambda ax: plotting.density2d(two_moons().log_prob, ax=ax, resolution=20),
        lambda ax: plotting.field(lambda t, x: x, ax=ax),
        lambda ax: plotting.trajectories(PATHS, ax=ax),
        lambda ax: plotting.histogram(POINTS[:, 0], ax=ax),
        lambda ax: plotting.lines(torch.arange(3), torch.arange(3), ax=ax),
        lambda ax: plotting.losses([1.0, 0.5], ax=ax),
        lambda ax: plotting.spread({"a": torch.ones(3)}, ax=ax),
        lambda ax: plotting.images(torch.zeros(2, 1, 4, 4), ax=ax),
    ],
)
def test_a_given_axes_is_used_and_no_figure_is_opened(draw):
    ax = plotting.figure()
    assert draw(ax) is ax
    assert len(plt.get_fignums()) == 1


def test_panels_come_as_a_list_with_titles_and_common_axes():
    left, right = plotting.figure(2, titles=["noise", "data"], share=True)
    assert (left.get_title(), right.get_title()) == ("noise", "data")
    left.set_xlim(-7, 7)
    assert right.get_xlim() == (-7, 7)
    assert len(plotting.figure(2, 3)) == 6


def test_tensors_with_a_gradient_can_be_drawn():
    plotting.scatter(POINTS.clone().requires_grad_())
    plotting.lines(torch.arange(3), torch.ones(3, requires_grad=True))


def test_a_histogram_has_area_one_beside_its_density():
    ax = plotting.histogram(POINTS[:, 0], bins=20)
    area = sum(bar.get_width() * bar.get_height() for bar in ax.patches)
    assert area == pytest.approx(1)


def test_losses_take_the_records_of_fit():
    from companion.training import Record

    ax = plotting.losses([Record(k, 1 / k, None, 0.1) for k in range(1, 40)], smooth=1)
    assert ax.lines[0].get_ydata() == pytest.approx([1 / k for k in range(1, 40)])


def test_the_running_mean_of_losses_is_a_mean():
    ax = plotting.losses([1.0, 2.0, 3.0, 4.0], smooth=2)
    assert ax.lines[0].get_xdata().tolist() == [2, 3, 4]
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([1.5, 2.5, 3.5])


def test_images_are_laid_out_row_by_row_with_dark_strokes():
    batch = torch.full((5, 1, 2, 2), -1.0)
    batch[3] = 1.0
    sheet = plotting.images(batch, columns=3).images[0].get_array()
    assert sheet.shape == (5, 8)
    assert sheet[3:5, 0:2].max() == 0  # the fourth image: second row, first column
    assert sheet.sum() == sheet.size - 4


def luminance(color: str) -> float:
    """WCAG 2.2, relative luminance."""
    return float(linear(color) @ [0.2126, 0.7152, 0.0722])


def linear(color: str) -> np.ndarray:
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("color", plotting.COLORS)
def test_every_color_stands_out_from_white(color):
    """WCAG 2.2, criterion 1.4.11: graphics need a contrast of 3 : 1."""
    assert 1.05 / (luminance(color) + 0.05) >= 3


def lab(rgb_linear: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB (D65): distances of ten are seen at a glance."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ rgb_linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


VISION = {  # Machado, Oliveira and Fernandes 2009, severity 1
    "full": np.eye(3),
    "no red cones": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no green cones": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


@pytest.mark.parametrize("vision", VISION)
def test_the_first_five_colors_differ_for_the_color_blind(vision):
    seen = [lab(np.clip(VISION[vision] @ linear(color), 0, 1)) for color in plotting.COLORS[:5]]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 10
