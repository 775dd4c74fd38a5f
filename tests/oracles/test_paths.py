"""Paths against torchcfm, which writes each of them in its own way."""

import pytest
import torch
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    TargetConditionalFlowMatcher,
    VariancePreservingConditionalFlowMatcher,
)

from companion.device import generator
from companion.numerics.paths import CondOT, LinearPath, VariancePreserving


def batch():
    x_0, x_1, eps = (torch.randn(32, 1, 4, generator=generator(seed)) for seed in range(3))
    return torch.rand(32, generator=generator(3)) * 0.98, x_0, x_1, eps


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_the_linear_path_is_the_independent_path_of_torchcfm(sigma):
    t, x_0, x_1, eps = batch()
    theirs = ConditionalFlowMatcher(sigma=sigma)
    ours = LinearPath(sigma).sample(t, x_0, x_1, eps)
    torch.testing.assert_close(ours, theirs.sample_xt(x_0, x_1, t, eps))
    torch.testing.assert_close(LinearPath(sigma).velocity(x_0, x_1), theirs.compute_conditional_flow(x_0, x_1, t, ours))


def test_conditional_optimal_transport_is_the_path_of_lipman_in_torchcfm():
    t, x_0, x_1, eps = batch()
    theirs = TargetConditionalFlowMatcher(sigma=0.0)
    ours = CondOT().sample(t, x_1, eps)
    torch.testing.assert_close(ours, theirs.sample_xt(x_0, x_1, t, eps))
    flow = theirs.compute_conditional_flow(x_0, x_1, t, ours)
    torch.testing.assert_close(CondOT().velocity(t, ours, x_1), flow, rtol=1e-4, atol=1e-4)


def test_the_variance_preserving_path_is_that_of_torchcfm_with_the_noise_as_start():
    t, x_0, x_1, _ = batch()
    theirs = VariancePreservingConditionalFlowMatcher(sigma=0.0)
    ours = VariancePreserving().sample(t, x_1, x_0)
    torch.testing.assert_close(ours, theirs.sample_xt(x_0, x_1, t, torch.zeros_like(x_0)))
    flow = theirs.compute_conditional_flow(x_0, x_1, t, ours)
    torch.testing.assert_close(VariancePreserving().velocity(t, ours, x_1), flow, rtol=1e-4, atol=1e-4)
