"""Flow matching against torchcfm, the package of the minibatch-transport paper, on the same draws."""

import pytest
import torch
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    ExactOptimalTransportConditionalFlowMatcher,
    VariancePreservingConditionalFlowMatcher,
)

from companion.data import eight_gaussians
from companion.device import generator, rand, randn
from companion.methods import flow_matching as fm
from companion.numerics.paths import CondOT, LinearPath, VariancePreserving
from companion.numerics.transport import crossing_pairs

X_0 = randn(64, 2, generator=generator(0))
X_1 = eight_gaussians(5.0, 0.5).sample(64, generator=generator(1))
T = rand(64, generator=generator(2))


def theirs(matcher, seed=3):
    """x_t, u_t and the noise of a matcher of torchcfm, which draws from torch's global generator."""
    torch.manual_seed(seed)
    _, x_t, u_t, noise = matcher.sample_location_and_conditional_flow(X_0, X_1, T, return_noise=True)
    return x_t, u_t, noise


@pytest.mark.verifies("eq-cfm")
@pytest.mark.parametrize("path", [CondOT(), LinearPath()], ids=["CondOT", "linear"])
def test_points_targets_and_losses_are_those_of_torchcfm(path):
    """torchcfm's ConditionalFlowMatcher with σ = 0, and the squared error of its tutorial."""
    x_t, u_t, _ = theirs(ConditionalFlowMatcher(sigma=0.0))
    ours = fm.interpolate(path, X_0, X_1, T)
    torch.testing.assert_close(ours, (x_t, u_t))

    def model(t, x):
        return torch.sin(x) + t[:, None]

    loss = fm.conditional_flow_matching_loss(model, path, X_0, X_1, T)
    torch.testing.assert_close(loss.mean() / 2, ((model(T, x_t) - u_t) ** 2).mean())


@pytest.mark.verifies("eq-two-ends")
def test_the_blurred_line_is_that_of_torchcfm():
    """torchcfm's ConditionalFlowMatcher with σ = 0.1, given the noise that it drew."""
    x_t, u_t, noise = theirs(ConditionalFlowMatcher(sigma=0.1))
    torch.testing.assert_close(LinearPath(0.1).sample(T, X_0, X_1, noise), x_t)
    torch.testing.assert_close(LinearPath(0.1).velocity(X_0, X_1), u_t)


def test_the_variance_preserving_path_is_that_of_torchcfm():
    """torchcfm's VariancePreservingConditionalFlowMatcher with σ = 0."""
    x_t, u_t, _ = theirs(VariancePreservingConditionalFlowMatcher(sigma=0.0))
    ours = fm.interpolate(VariancePreserving(), X_0, X_1, T)
    torch.testing.assert_close(ours, (x_t, u_t), atol=1e-5, rtol=1e-5)


def test_transport_pairs_as_torchcfm_does():
    """torchcfm draws pairs from the exact plan, which is a permutation: the set of its pairs is a part of ours."""
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    plan = torch.as_tensor(matcher.ot_sampler.get_map(X_0, X_1))
    x_0, x_1 = fm.OptimalTransportCoupling()(X_0, X_1)
    torch.testing.assert_close(x_1, X_1[plan.argmax(1)])
    assert crossing_pairs(x_0, x_1) == 0


def test_the_mean_length_of_pairs_is_that_of_torchcfm():
    """Pairs drawn by torchcfm with replacement, 40 times: the mean length within four standard errors (6e-5)."""
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    torch.manual_seed(4)
    lengths = torch.stack(
        [matcher.sample_location_and_conditional_flow(X_0, X_1, T)[2].square().sum(1).mean() for _ in range(40)]
    )
    x_0, x_1 = fm.OptimalTransportCoupling()(X_0, X_1)
    ours = (x_1 - x_0).square().sum(1).mean()
    assert abs(ours - lengths.mean()) < 4 * lengths.std() / 40**0.5
