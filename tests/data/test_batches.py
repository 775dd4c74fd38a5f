"""Streams of batches."""

from itertools import islice

import pytest
import torch

from companion.data import draws, eight_gaussians, minibatches, standard_normal
from companion.device import generator


def test_draws_give_a_batch_of_each_source_without_end():
    stream = draws(standard_normal(2), eight_gaussians(), size=5, generator=generator(0), ahead=3)
    batches = list(islice(stream, 10))
    assert all(len(batch) == 2 and batch[0].shape == batch[1].shape == (5, 2) for batch in batches)
    assert len({batch[0][0, 0].item() for batch in batches}) == 10


def test_draws_follow_their_seed():
    first, second = (next(draws(standard_normal(3), size=4, generator=generator(1)))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_an_epoch_holds_each_row_once_in_a_new_order():
    stream = minibatches(torch.arange(12), size=4, generator=generator(0))
    first, second = (torch.cat([batch[0] for batch in islice(stream, 3)]) for _ in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert not torch.equal(first, second)


def test_rows_stay_together():
    x = torch.arange(10)
    for a, b in islice(minibatches(x, 100 + x, size=3, generator=generator(0)), 20):
        assert torch.equal(a + 100, b)
        assert len(a) == 3


def test_batches_can_be_augmented():
    stream = minibatches(torch.ones(4), size=2, generator=generator(0), augment=lambda x: (x, 2 * x))
    assert [part.tolist() for part in next(stream)] == [[1, 1], [2, 2]]


@pytest.mark.parametrize(("tensors", "size"), [((torch.ones(4), torch.ones(5)), 2), ((torch.ones(4),), 5)])
def test_batches_that_cannot_be_made_are_refused(tensors, size):
    with pytest.raises(ValueError, match="equal lengths"):
        next(minibatches(*tensors, size=size, generator=generator(0)))
