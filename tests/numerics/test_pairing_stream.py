"""Pairing batch after batch: the same permutations as one exact solution at a time."""

import pytest
import torch

from companion.data import eight_gaussians, two_moons
from companion.device import generator
from companion.numerics.transport import PairingStream, optimal_pairing


def batches(count, n=128, seed=0):
    source = generator(seed)
    return [
        (eight_gaussians().sample(n, generator=source), two_moons().sample(n, generator=source)) for _ in range(count)
    ]


def test_every_batch_gets_its_optimal_pairing():
    """The optimum of continuous random points is unique, so the permutations themselves must agree."""
    stream = PairingStream()
    for x_0, x_1 in batches(6):
        assert torch.equal(stream(x_0, x_1), optimal_pairing(x_0, x_1))


def test_it_is_exact_where_the_distributions_have_changed():
    """Potentials of other distributions are a bad start, and still no more than a start."""
    stream = PairingStream()
    stream(*batches(1)[0])
    for x_0, x_1 in batches(2, seed=1):
        other = 10 - 3 * x_1.flip(1)
        assert torch.equal(stream(x_0, other), optimal_pairing(x_0, other))


def test_batches_may_differ_in_size():
    stream = PairingStream()
    stream(*batches(1, n=100)[0])
    for n in (1, 7, 150):
        ((x_0, x_1),) = batches(1, n=n, seed=n)
        assert torch.equal(stream(x_0, x_1), optimal_pairing(x_0, x_1))


def test_batches_that_do_not_fit_are_refused():
    stream = PairingStream()
    with pytest.raises(ValueError, match="received points of shapes"):
        stream(torch.zeros(0, 2), torch.zeros(0, 2))
    stream(*batches(1)[0])
    with pytest.raises(ValueError, match="NaN or infinity"):
        stream(torch.zeros(3, 2), torch.full((3, 2), torch.nan))
