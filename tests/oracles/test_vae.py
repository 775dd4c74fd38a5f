"""Probabilistic PCA against scikit-learn, which has its evidence twice: in PCA and in factor analysis."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA, FactorAnalysis

from companion.data import digits
from companion.device import generator, randn
from companion.methods import vae

F64 = torch.float64


def cloud(n=300, d=6, seed=0):
    g = generator(seed)
    return randn(n, d, generator=g, dtype=F64) @ randn(d, d, generator=g, dtype=F64) + 1


@pytest.mark.verifies("eq-ppca-evidence")
@pytest.mark.parametrize("dim", [1, 3, 5])
def test_the_maximum_of_the_evidence_is_that_of_scikit_learn(dim):
    """PCA.score_samples; scikit-learn divides by n − 1, so its covariance is ours times n/(n − 1)."""
    x = cloud()
    n = len(x)
    stretched = (x - x.mean(0)) * (n / (n - 1)) ** 0.5 + x.mean(0)  # our 1/n then equals their 1/(n − 1)
    ours, theirs = vae.LinearGaussian.fit(stretched, dim), PCA(dim).fit(x.numpy())
    np.testing.assert_allclose(ours.variance, theirs.noise_variance_)
    np.testing.assert_allclose(ours.log_prob(x), theirs.score_samples(x.numpy()))


@pytest.mark.verifies("eq-ppca-evidence", "eq-ppca-posterior")
def test_evidence_and_posterior_mean_of_any_weights_are_those_of_factor_analysis():
    """FactorAnalysis.score_samples and .transform, given our weights and one noise variance for all coordinates."""
    x, weight, bias = cloud(), randn(6, 2, generator=generator(1), dtype=F64), torch.arange(6.0, dtype=F64)
    ours, theirs = vae.LinearGaussian(weight, bias, torch.tensor(0.7, dtype=F64)), FactorAnalysis(2)
    theirs.components_, theirs.mean_ = weight.T.numpy(), bias.numpy()
    theirs.noise_variance_ = np.full(6, 0.7)
    np.testing.assert_allclose(ours.log_prob(x), theirs.score_samples(x.numpy()))
    np.testing.assert_allclose(ours.posterior(x)[0], theirs.transform(x.numpy()))


@pytest.mark.verifies("eq-elbo-gap")
def test_on_the_digits_a_linear_vae_reaches_the_evidence_of_scikit_learn():
    """PCA's mean score on the training digits against the mean bound of the VAE with its weights, draw by draw."""
    x = digits("train").images.flatten(1).double()
    x = x + 0.05 * randn(*x.shape, generator=generator(0), dtype=F64)  # the corner pixels never change
    model = vae.LinearGaussian.fit(x, 10)
    bound = vae.elbo(model.to_vae(), x, randn(len(x), 10, generator=generator(1), dtype=F64))
    theirs = PCA(10).fit(x.numpy()).score(x.numpy())
    exact = model.log_prob(x).mean()
    assert abs(exact - theirs) < 0.03  # 1/n against 1/(n − 1)
    error = 4 * (bound.value - model.log_prob(x)).std() / len(x) ** 0.5  # false alarm 6e-5
    assert abs(bound.value.mean() - exact) < error
