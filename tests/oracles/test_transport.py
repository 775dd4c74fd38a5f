"""Transport against POT and scipy."""

import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance

from companion.device import generator
from companion.numerics.transport import (
    PairingStream,
    exact_plan,
    optimal_pairing,
    sinkhorn_plan,
    sliced_wasserstein,
    wasserstein,
)


def points(n, dim=2, seed=0):
    return torch.randn(n, dim, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("dim", [2, 20])
@pytest.mark.parametrize("n", [20, 65, 256])
def test_the_pairing_costs_as_little_as_those_of_scipy_and_pot(n, dim):
    """One of the two is an independent solver at each size and dimension."""
    x0, x1 = points(n, dim), 2 * points(n, dim, seed=1) + 1
    cost = torch.cdist(x0, x1).square()
    best = cost[torch.arange(n), torch.from_numpy(linear_sum_assignment(cost.numpy())[1])].mean()
    stream = PairingStream()
    stream(x1, x0)  # a first batch of other points
    for pairing in (optimal_pairing(x0, x1), stream(x0, x1)):
        torch.testing.assert_close(cost[torch.arange(n), pairing].mean(), best)
    assert best.item() == pytest.approx(ot.emd2([], [], cost.numpy()))


def test_the_exact_plan_is_that_of_pot():
    x0, x1 = points(30), points(40, seed=1)
    a = torch.rand(30, generator=generator(2), dtype=torch.float64)
    b = torch.rand(40, generator=generator(3), dtype=torch.float64)
    a, b = a / a.sum(), b / b.sum()
    theirs = ot.emd(a.numpy(), b.numpy(), ot.dist(x0.numpy(), x1.numpy()))
    torch.testing.assert_close(exact_plan(x0, x1, a, b), torch.from_numpy(theirs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.2, 5.0])
def test_the_sinkhorn_plan_is_that_of_pot(epsilon):
    x0, x1 = points(30), points(40, seed=1)
    a = torch.rand(30, generator=generator(2), dtype=torch.float64)
    a = a / a.sum()
    uniform = torch.full((40,), 1 / 40, dtype=torch.float64)
    theirs = ot.sinkhorn(a.numpy(), uniform.numpy(), ot.dist(x0.numpy(), x1.numpy()), epsilon, stopThr=1e-12)
    ours = sinkhorn_plan(x0, x1, epsilon=epsilon, a=a, tolerance=1e-11)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 70)])
@pytest.mark.parametrize("p", [1, 2])
def test_the_wasserstein_distance_is_that_of_pot(n, m, p):
    x0, x1 = points(n, 3), points(m, 3, seed=1)
    theirs = ot.emd2([], [], torch.cdist(x0, x1).pow(p).numpy()) ** (1 / p)
    assert wasserstein(x0, x1, p=p).item() == pytest.approx(theirs)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 70), (60, 40)])
@pytest.mark.parametrize("p", [1, 2])
def test_the_sliced_distance_is_that_of_pot_along_the_same_directions(n, m, p):
    x0, x1 = points(n, 3), points(m, 3, seed=1)
    directions = torch.randn(25, 3, generator=generator(7), dtype=torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    theirs = ot.sliced_wasserstein_distance(x0.numpy(), x1.numpy(), p=p, projections=directions.T.numpy())
    ours = sliced_wasserstein(x0, x1, projections=25, p=p, generator=generator(7))
    assert ours.item() == pytest.approx(theirs)


def test_in_one_dimension_the_distance_is_that_of_scipy():
    x0, x1 = points(50, 1), points(70, 1, seed=1)
    assert wasserstein(x0, x1, p=1).item() == pytest.approx(wasserstein_distance(x0[:, 0].numpy(), x1[:, 0].numpy()))
