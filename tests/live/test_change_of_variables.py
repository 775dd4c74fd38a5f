"""The figures of chapter 03: their numbers against automatic differentiation, counts and areas that are known."""

from itertools import pairwise

import pytest
import torch
from torch.func import jacrev, vmap

from companion.live import change_of_variables as live


@pytest.fixture(scope="module")
def line():
    return live.pushforward()


@pytest.fixture(scope="module")
def plane():
    return live.area_factor()


@pytest.mark.parametrize("shape", live.SHAPES)
@pytest.mark.parametrize("base", ["dart", "uniform", "hump"])
def test_the_density_of_x_has_area_one_and_without_its_factor_it_has_not(line, shape, base):
    for a in (-4, 2.4):
        out = line.compute(shape=shape, base=base, a=a)
        assert out["area"].item() == pytest.approx(1, abs=1e-4)
        assert abs(out["area_without"].item() - 1) > 0.1


@pytest.mark.parametrize("shape", live.SHAPES)
def test_slopes_and_inverses_belong_to_their_map(shape):
    """Automatic differentiation of h, and each branch sent back through h."""
    h = live.SHAPES[shape]
    z = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    torch.testing.assert_close(vmap(jacrev(h.h))(z), h.slope(z))
    y = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for z_b, slope in h.branches(y):
        torch.testing.assert_close(h.h(z_b), y)
        torch.testing.assert_close(slope, 1 / h.slope(z_b).abs())


@pytest.mark.parametrize("kind", [0.0, 1.0, 2.0])
def test_the_strips_have_equal_probability(kind):
    """Ten quantiles and the trapezoidal rule on the density."""
    kind = torch.tensor(kind)
    edges = live._quantile(kind, torch.linspace(0, 1, 11, dtype=torch.float64))
    for low, high in pairwise(edges):
        z = torch.linspace(float(low), float(high), 2001, dtype=torch.float64)
        assert torch.trapezoid(live._base(kind, z), z).item() == pytest.approx(0.1, abs=1e-5)


def test_the_two_orange_patches_have_the_same_area(line):
    """Base: width times height; data: the width between its edges times the strip's share of the density."""
    for at in (0.2, 0.6, 0.9):
        out = line.compute(shape="square", at=at)
        before = (out["z_sides"][1] - out["z_sides"][0]) * out["z_height"][0]
        after = (out["x_high"][0] - out["x_low"][0]) * out["x_height"][1]
        torch.testing.assert_close(before, after, rtol=2e-3, atol=0)


def test_rule_b_is_flat_in_the_figure(line):
    out = line.compute(shape="square")
    torch.testing.assert_close(out["p_x"][1:-1], torch.full_like(out["p_x"][1:-1], 0.25), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", live.PLANE_MAPS)
def test_the_columns_are_those_of_the_jacobian(name):
    """Automatic differentiation at 50 points."""
    plane_map, s = live.PLANE_MAPS[name][1], torch.tensor(0.7, dtype=torch.float64)
    u = torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobian = vmap(jacrev(lambda u: plane_map(u, s)[0]))(u)
    _, columns = plane_map(u, s)
    torch.testing.assert_close(torch.stack(columns, -1), jacobian)
    torch.testing.assert_close(live.det2(columns), torch.linalg.det(jacobian))


@pytest.mark.parametrize("name", live.PLANE_MAPS)
def test_the_image_of_the_small_square_has_nearly_the_area_of_the_parallelogram(plane, name):
    out = plane.compute(plane=name, s=0.7, at=(0.7, 0.3))
    assert out["ratio"].item() == pytest.approx(out["det"].item(), rel=0.02)
    assert out["term"].item() == pytest.approx(1 / abs(out["det"].item()), rel=1e-4)


def test_a_fold_turns_the_square_over(plane):
    assert plane.compute(plane="fold", at=(0.2, 0.5))["det"] < 0
    assert plane.compute(plane="fold", at=(0.8, 0.5))["det"] > 0
