"""The figures of chapter 13: their points against the exact guided field, and what guidance must do to digits."""

import math

import pytest
import torch
from torch import nn

from companion.live import guidance as live
from companion.live.exporting import settings_to_check
from companion.methods import guidance
from companion.numerics.ode import Euler, integrate
from companion.numerics.paths import CondOT


@pytest.fixture(scope="module")
def cloud():
    return live.guided_cloud()


class Toy(nn.Module):
    """A field that is known: toward gray level y/10, or toward −0.5 where no label is given, at constant speed."""

    labels = 10

    def __init__(self):
        super().__init__()
        self.level = nn.Embedding(11, 1)
        levels = torch.cat([torch.arange(10) / 10, torch.tensor([-0.5])])
        self.level.weight = nn.Parameter(levels[:, None], requires_grad=False)

    def forward(self, t, x, y):
        return (self.level(y)[:, :, None, None] - x) / (1 - t)


@pytest.fixture(scope="module")
def digits():
    return live.guided_digits(Toy())


def test_the_label_decides_at_weight_one_and_nothing_does_at_weight_zero(cloud):
    """Bayes: unguided points have each label with probability 1/3 on average; conditional ones, nearly all."""
    assert cloud.compute(w=0)["sure"].item() == pytest.approx(1 / 3, abs=0.08)
    for label in live.LABELS:
        assert cloud.compute(w=1, label=label)["sure"] > 0.93


@pytest.mark.parametrize("label", [0, 1, 2])
def test_the_points_follow_the_exact_guided_field(cloud, label):
    """The exact field in float64, each part by itself, and one solver of the companion."""
    data = live.three_streets()
    laws = [data.mixture, data.classes[label]]

    def field(t, x):
        free, conditional = (law.marginal_velocity(CondOT(), t, x) for law in laws)
        return -1.5 * free + 2.5 * conditional

    end = integrate(field, cloud.inputs["x"].double(), Euler(steps=20)).final
    shown = cloud.compute(w=2.5, steps=20, label=list(live.LABELS)[label])["x"]
    torch.testing.assert_close(shown.double(), end, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("w", [0.0, 1.0, 3.0])
def test_the_heat_map_is_the_tilted_density(cloud, w):
    """The companion's quadrature on a finer grid: the map up to its largest value, and the mass near the center."""
    out, q = cloud.compute(w=w), guidance.TiltedDensity(live.three_streets(), 0, w)
    cells = cloud.inputs["cells"]
    values = q.log_prob(cells).exp()
    torch.testing.assert_close(out["tilted"].flatten(), values / values.max(), atol=1e-5, rtol=1e-4)
    near = q.nodes.norm(dim=1) < live.BETWEEN
    expected = live.POINTS * q.log_mass.exp()[near].sum().item()
    assert out["tilted_inside"].item() == pytest.approx(expected, abs=0.015 * live.POINTS)


def test_the_question_of_the_opening_figure(cloud):
    """The weighted heaps keep their shares, the guided points lose one: what section 4 explains."""
    calm, pushed = cloud.compute(w=1), cloud.compute(w=3)
    assert abs(calm["points_inside"] - calm["tilted_inside"]) < 0.1 * live.POINTS
    assert pushed["tilted_inside"] > 0.4 * live.POINTS
    assert pushed["points_inside"] < 0.05 * live.POINTS


def test_the_three_labels_are_one_figure_turned(cloud):
    """A third of a turn carries one label's exact field to the next one's."""
    data, turn = live.three_streets(), torch.tensor(2 * math.pi / 3)
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()]).reshape(2, 2)
    x, t = cloud.inputs["x"][:50], torch.tensor(0.6)
    there = data.classes[1].marginal_velocity(CondOT(), t, x @ rotation.T)
    torch.testing.assert_close(data.classes[0].marginal_velocity(CondOT(), t, x) @ rotation.T, there)


@pytest.mark.parametrize("w", [0.0, 1.0, 4.0])
def test_the_digits_reach_the_extrapolated_level(digits, w):
    """A field of straight lines to known gray levels: (1 − w)(−0.5) + w y/10, exactly, whatever the number of steps."""
    level = (1 - w) * -0.5 + w * 0.3
    for steps in (1, 7):
        out = digits.compute(label="3", w=w, steps=steps)
        torch.testing.assert_close(out["x"], torch.full_like(out["x"], level), atol=1e-5, rtol=0)
        torch.testing.assert_close(out["guess"], out["x"], atol=1e-5, rtol=0)
        assert out["agree"].item() == pytest.approx(1)
        assert out["outside"].item() == pytest.approx(float(abs(level) > live.SATURATED), abs=1e-6)


def test_the_inner_heap_is_counted_with_a_soft_border(cloud):
    """Counted points, where no tilt acts and where it acts: the soft border moves the count by less than 6 of 300."""
    for w in (0, 1, 2):
        out = cloud.compute(w=w)
        counted = (out["x"].norm(dim=1) < live.BETWEEN).sum().item()
        assert out["points_inside"].item() == pytest.approx(counted, abs=6)


def test_the_shown_counts_are_whole_and_no_runtime_moves_them_where_pages_are_compared(cloud):
    """Settings of the browser test: the border's slope is at most 2.5, so 300 errors of 1e-5 move a count by 0.0075."""
    for values in settings_to_check(cloud):
        out = cloud.compute(**values)
        soft = live._soft_count(out["x"]).item()
        assert out["points_inside"].item() == round(soft)
        assert abs(soft % 1 - 0.5) > 0.0075
        assert out["tilted_inside"].item() % 1 == 0


def test_a_change_of_rounding_does_not_move_the_shares():
    """Two runtimes differ by 1e-5 in a point: shares that a page is compared by must differ by less than 1e-3."""
    for figure in (live.guided_cloud(), live.guided_digits(Toy())):
        shares = [name for name in ("sure", "outside", "agree") if name in figure.compute()]
        before = figure.compute(w=2)
        figure.inputs["x"].add_(1e-5)
        for name in shares:
            assert figure.compute(w=2)[name].item() == pytest.approx(before[name].item(), abs=1e-3)


def test_each_image_is_counted_twice_in_each_step(digits):
    assert digits.compute(steps=5)["rows"].item() == 2 * live.DIGITS * 5
