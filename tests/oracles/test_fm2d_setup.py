"""The benchmark against torchcfm compares like with like: its distributions are drawn from ours, quirks included."""

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchcfm.models.models import MLP
from torchcfm.utils import sample_8gaussians, sample_moons

from benchmarks.fm2d import BATCH, TutorialMoons, tutorial_gaussians
from companion.device import generator
from companion.nn import VelocityMLP

FALSE_ALARM = 1e-6  # of each comparison of samples


@pytest.fixture(autouse=True)
def _seeds():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (torchcfm draws from the global state)


def test_the_moons_have_the_same_arcs():
    """One number is added to both coordinates of a point, so their difference knows no noise: equal point by point."""
    ours, theirs = TutorialMoons().sample(BATCH, generator=generator(0)), sample_moons(BATCH)
    torch.testing.assert_close(ours[:, 0] - ours[:, 1], theirs[:, 0] - theirs[:, 1], rtol=1e-4, atol=1e-4)


def test_the_moons_have_the_same_noise():
    """Kolmogorov–Smirnov on the sum of the coordinates, which the noise moves twice."""
    ours = TutorialMoons().sample(40 * BATCH, generator=generator(0)).sum(dim=1)
    theirs = torch.cat([sample_moons(BATCH) for _ in range(40)]).sum(dim=1)
    assert ks_2samp(ours.numpy(), theirs.numpy()).pvalue > FALSE_ALARM


def test_the_gaussians_are_the_same():
    """Kolmogorov–Smirnov along three directions; together they see centers, weights and spread."""
    ours, theirs = tutorial_gaussians().sample(20_000, generator=generator(1)), sample_8gaussians(20_000)
    for direction in torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]):
        assert ks_2samp((ours @ direction).numpy(), (theirs @ direction).numpy()).pvalue > FALSE_ALARM


def test_the_networks_are_the_same():
    """Same layers: with equal weights they give equal velocities."""
    ours, theirs = VelocityMLP(2), MLP(dim=2, time_varying=True)
    theirs.net.load_state_dict(ours.net.state_dict())
    x, t = torch.randn(5, 2), torch.rand(5)
    torch.testing.assert_close(ours(t, x), theirs(torch.cat([x, t[:, None]], dim=1)))
