"""The figure of chapter 09: its layers move one coordinate, its densities are densities, its two points agree."""

import math

import pytest
import torch
from torch.func import jacrev

from companion.device import generator
from companion.live import normalizing_flows as live

K = live.LAYERS


@pytest.fixture(scope="module")
def flow():
    return live.moons_flow(steps=150)


@pytest.fixture(scope="module")
def figure(flow):
    return live.through_the_layers(flow)


def test_the_way_of_a_point_is_a_staircase(figure):
    """A coupling keeps one coordinate: each step is level or upright, and they take turns."""
    moved = figure.compute(k=K, z=(1.1, -0.7))["stairs"][:, 0].diff(dim=0).abs() > 1e-6
    assert (moved.sum(1) == 1).all()
    assert (moved[1:] != moved[:-1]).all()


@pytest.mark.parametrize("k", [0, 2, K])
def test_the_green_point_on_the_orange_one_comes_from_its_start(figure, k):
    """T and its inverse: whoever drags y to where z has landed finds z, and the same log-density."""
    z = (-0.8, 0.5)
    landed = figure.compute(k=k, z=z)
    back = figure.compute(k=k, z=z, y=tuple(landed["image"].tolist()))
    torch.testing.assert_close(back["home"], torch.tensor(z), atol=1e-4, rtol=0)
    assert back["asked"].item() == pytest.approx(landed["landed"].item(), abs=1e-3)
    torch.testing.assert_close(back["green"][: k + 1], back["orange"][: k + 1], atol=1e-3, rtol=0)
    assert back["green"][k + 1 :].isnan().all()


@pytest.mark.parametrize("k", [0, 1, 3, K])
def test_the_log_density_is_that_of_the_jacobian(figure, flow, k):
    """Autograd's Jacobian of the first k layers together, in place of the sum of their log-determinants."""
    z = torch.tensor([0.4, 1.3])

    def first(point):
        for layer in flow.transforms[:k]:
            point = layer(point[None])[0][0]
        return point

    log_det = torch.linalg.slogdet(jacrev(first)(z)).logabsdet
    out = figure.compute(k=k, z=tuple(z.tolist()))
    expected = -0.5 * z.square().sum() - math.log(2 * math.pi) - log_det
    assert out["landed"].item() == pytest.approx(expected.item(), abs=1e-4)
    assert out["stretch"].item() == pytest.approx(log_det.item(), abs=1e-4)


@pytest.mark.parametrize("k", [0, 1, K])
def test_the_shades_are_a_density(figure, k):
    """A sum over the cells: the mass inside the panel, which is all but what lies outside."""
    area = (2 * live.EDGE / live.CELLS) ** 2
    total = figure.compute(k=k)["shades"].sum().item() * area
    assert total == pytest.approx(1, abs=0.06)


def test_after_no_layer_the_shades_are_the_normal_density(figure):
    """The closed form at the cells, rows upward and columns to the right."""
    side = (torch.arange(live.CELLS) + 0.5) / live.CELLS * 2 * live.EDGE - live.EDGE
    normal = torch.exp(-(side[:, None] ** 2 + side**2) / 2) / (2 * math.pi)
    torch.testing.assert_close(figure.compute(k=0)["shades"], normal, atol=1e-6, rtol=1e-4)


def test_after_all_layers_the_density_is_the_flow_s(figure, flow):
    """`Flow.log_prob`, at a point on the upper moon, and in a cell: row for height, column for place across."""
    y = torch.tensor([[-1.6, 1.1]])
    out = figure.compute(k=K, y=(-1.6, 1.1))
    assert out["asked"].item() == pytest.approx(flow.log_prob(y).item(), abs=1e-4)
    side = (torch.arange(live.CELLS) + 0.5) / live.CELLS * 2 * live.EDGE - live.EDGE
    row, column = 37, 14
    there = flow.log_prob(torch.stack([side[column], side[row]])[None]).exp()
    assert out["shades"][row, column].item() == pytest.approx(there.item(), rel=1e-3)
    assert out["shades"][column, row].item() != pytest.approx(there.item(), rel=1e-1)


def test_the_start_shows_a_staircase_and_no_point_leaves_the_panels():
    """Every step of the default point is longer than its marker is wide; the cloud is inside the axes at each stop."""
    figure = live.through_the_layers()
    steps = figure.compute()["stairs"][:, 0].diff(dim=0).abs().amax(1)
    assert steps.min() > 0.1
    for k in range(K + 1):
        assert figure.compute(k=k)["moved_cloud"].abs().max() < live.EDGE


def test_even_a_short_training_finds_two_moons(flow):
    """A gap to the true entropy of under half a nat; the untrained flow, a standard normal, is more than one away."""
    x = live.moons().sample(2000, generator=generator(1))
    true = live.moons().log_prob(x).mean()
    assert true - flow.log_prob(x).mean() < 0.5
    assert true + (0.5 * x.square().sum(1) + math.log(2 * math.pi)).mean() > 1
