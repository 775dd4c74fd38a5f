"""How the measures on the digits train and what they report; what they measure is not tested here."""

import pytest
import torch

from benchmarks import digits as measures
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


def test_each_number_has_its_goal_and_the_floor_is_a_ratio():
    score = measures.Score(frechet=2 * measures.floor(), precision=0.95, recall=0.8, accuracy=0.99, copying=0.97)
    cases = {case.case: case for case in measures._five([score] * 3)}
    assert cases["frechet"].ratio == pytest.approx(2)
    assert {name: case.met for name, case in cases.items()} == {
        "frechet": False, "precision": True, "recall": False, "accuracy": True, "copying": True,
    }  # fmt: skip
