"""How the measures on the digits judge and train; what they measure is not tested here."""

import pytest
import torch

from benchmarks import digits as measures
from companion.data import digits
from companion.device import generator


def weights(network) -> int:
    return sum(w.numel() for w in network().parameters())


def test_the_networks_have_the_sizes_that_are_told():
    assert weights(measures.our_network) == 258_209
    pytest.importorskip("diffusers")
    assert weights(measures.PeerNetwork) == 702_753


@pytest.mark.parametrize("recipe", measures.RECIPES.values(), ids=measures.RECIPES)
@pytest.mark.parametrize("network", measures.NETWORKS.values(), ids=measures.NETWORKS)
def test_a_recipe_trains_for_its_seconds_and_draws_gray_levels(recipe, network):
    if network is measures.PeerNetwork:
        pytest.importorskip("diffusers")
    trained = recipe(3, 0.2, network)
    images = trained.sample(torch.arange(4), generator=generator(0))
    assert trained.steps >= 1
    assert trained.seconds >= 0.2
    assert images.shape == (4, 1, 8, 8)
    assert images.abs().max() <= 1
    assert torch.equal(images * 8, (images * 8).round())


def test_the_test_images_themselves_are_faultless_samples():
    """Against itself a set has distance 0, precision and recall 1; its nearest test image is itself."""
    test = digits("test")
    score = measures.judged(test.images + 1e-3, test.labels)
    assert score.frechet == pytest.approx(0, abs=1e-2)
    assert (score.precision, score.recall) == (1, 1)
    assert score.accuracy > 0.98
    assert score.copying > 100


def test_the_training_images_are_found_out():
    """Copies of training images: half of the blocks that they are compared with are themselves."""
    train, test = digits("train"), digits("test")
    rows = measures._like(train, test, generator(0))
    assert torch.equal(train.labels[rows].bincount(), test.labels.bincount())
    assert len(set(rows.tolist())) == len(test)
    assert measures.judged(train.images[rows], train.labels[rows]).copying < 0.6


def test_the_floor_is_that_of_equal_labels():
    """Other numbers of each digit cost distance: training images as they come are further away."""
    train = digits("train").images
    apart = [measures.judged(train[torch.randperm(1200, generator=generator(s))[:597]], digits("test").labels).frechet
             for s in range(3)]  # fmt: skip
    assert 2 < measures.floor(5) < min(apart)


def test_each_number_has_its_goal_and_the_floor_is_a_ratio():
    score = measures.Score(frechet=2 * measures.floor(), precision=0.95, recall=0.8, accuracy=0.99, copying=0.97)
    cases = {case.case: case for case in measures._five([score] * 3)}
    assert cases["frechet"].ratio == pytest.approx(2)
    assert {name: case.met for name, case in cases.items()} == {
        "frechet": False, "precision": True, "recall": False, "accuracy": True, "copying": True,
    }  # fmt: skip
