"""The digits that need no download."""

import pytest
import torch
from sklearn.datasets import load_digits

from companion.data import digits


def test_the_split_holds_every_digit_of_scikit_learn_once():
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1_200, 597)
    both = ((torch.cat([train.images, test.images]).flatten(1) + 1) * 8).round().long().tolist()
    bunch = load_digits()
    labels = torch.cat([train.labels, test.labels]).tolist()
    ours = sorted(zip(both, labels, strict=True))
    theirs = sorted(zip(bunch.data.astype(int).tolist(), bunch.target.tolist(), strict=True))
    assert ours == theirs


def test_pixels_lie_between_minus_one_and_one():
    data = digits()
    assert data.images.shape == (1_200, 1, 8, 8)
    assert data.images.dtype == torch.float32
    assert data.labels.dtype == torch.int64
    assert (data.images.min(), data.images.max()) == (-1, 1)


def test_every_digit_is_in_both_halves_about_equally_often():
    assert digits("train").labels.bincount().min() > 100
    assert digits("test").labels.bincount().min() > 40


def test_the_split_is_the_same_each_time():
    assert torch.equal(digits().images, digits().images)
    assert digits().labels[:8].tolist() == digits().labels[:8].tolist()


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="received split = 'valid'; it is 'train' or 'test'"):
        digits("valid")
