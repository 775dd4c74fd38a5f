"""How samples of digits are judged, on sets of images whose worth is known."""

import pytest
import torch

from benchmarks import judging
from companion.data import digits
from companion.device import generator


def test_the_test_images_themselves_are_faultless_samples():
    """Against itself a set has distance 0, precision and recall 1; its nearest test image is itself."""
    test = digits("test")
    score = judging.judged(test.images + 1e-3, test.labels)
    assert score.frechet == pytest.approx(0, abs=1e-2)
    assert (score.precision, score.recall) == (1, 1)
    assert score.accuracy > 0.98
    assert score.copying > 100


def test_samples_may_be_judged_without_labels():
    """The distance is then the same, and nothing is said of the accuracy."""
    train = digits("train").images[:597]
    score = judging.judged(train)
    assert score.accuracy is None
    assert score.frechet == judging.frechet(train) == judging.unit()


def test_the_training_images_are_found_out():
    """Copies of training images: half of the blocks that they are compared with are themselves."""
    train, test = digits("train"), digits("test")
    rows = judging.matched(train, test, generator(0))
    assert torch.equal(train.labels[rows].bincount(), test.labels.bincount())
    assert len(set(rows.tolist())) == len(test)
    assert judging.judged(train.images[rows], train.labels[rows]).copying < 0.6


def test_the_floor_is_that_of_equal_labels():
    """Other numbers of each digit cost distance: training images as they come are further away."""
    train = digits("train").images
    apart = [judging.frechet(train[torch.randperm(1200, generator=generator(s))[:597]]) for s in range(3)]
    assert 2 < judging.floor(5) < min(apart)
