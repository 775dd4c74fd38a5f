"""Metrics against independent implementations: scipy, POT, scikit-learn and torchcfm's reading of its own paper."""

import numpy as np
import ot
import pytest
import scipy.linalg
import scipy.stats
import torch
from sklearn.mixture import GaussianMixture as SklearnMixture
from sklearn.neighbors import NearestNeighbors

from companion.data import GaussianMixture
from companion.device import generator, rand, randn
from companion.metrics import copying, energy_distance, frechet_distance, precision_recall, wasserstein2

DOUBLE = torch.float64


@pytest.fixture
def samples():
    source = generator(0)
    x = randn(120, 4, generator=source, dtype=DOUBLE)
    y = 0.3 + randn(90, 4, generator=source, dtype=DOUBLE) @ randn(4, 4, generator=source, dtype=DOUBLE)
    return x, y


def test_wasserstein_agrees_with_pot(samples):
    x, y = samples
    cost = ot.dist(x.numpy(), y.numpy())
    expected = np.sqrt(ot.emd2(ot.unif(len(x)), ot.unif(len(y)), cost))
    assert wasserstein2(x, y) == pytest.approx(expected)


def test_energy_distance_agrees_with_scipy_in_one_dimension(samples):
    x, y = samples[0][:, :1], samples[1][:, :1]
    assert energy_distance(x, y) == pytest.approx(scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()))


def test_frechet_distance_agrees_with_the_matrix_root_of_scipy(samples):
    """sqrtm of the product Σ_x Σ_y, which is not symmetric: another route to the same trace."""
    x, y = (part.numpy() for part in samples)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * root)
    assert frechet_distance(*samples) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_agree_with_the_definition_point_by_point(samples, k):
    """Radii by scikit-learn's neighbors, membership by a loop over all pairs."""
    real, fake = (part.numpy() for part in samples)

    def covered(points, manifold):
        radii = NearestNeighbors(n_neighbors=k + 1).fit(manifold).kneighbors(manifold)[0][:, k]
        return np.mean([any(np.linalg.norm(p - m) < r for m, r in zip(manifold, radii, strict=True)) for p in points])

    result = precision_recall(*samples, k=k)
    assert result.precision == pytest.approx(covered(fake, real))
    assert result.recall == pytest.approx(covered(real, fake))


def test_copying_agrees_with_nearest_neighbors_of_scikit_learn():
    source = generator(1)
    fake, train, test = (randn(n, 3, generator=source, dtype=DOUBLE) for n in (40, 50, 25))

    def nearest(to):
        return NearestNeighbors(n_neighbors=1).fit(to.numpy()).kneighbors(fake.numpy())[0].mean()

    expected = (nearest(train[:25]) + nearest(train[25:])) / 2 / nearest(test)
    assert copying(fake, train, test) == pytest.approx(expected)


def test_a_mixture_agrees_with_the_mixture_of_scikit_learn():
    source = generator(2)
    means, weights = randn(3, 2, generator=source, dtype=DOUBLE), rand(3, generator=source, dtype=DOUBLE)
    factor = randn(3, 2, 2, generator=source, dtype=DOUBLE)
    covariances = factor @ factor.mT + 0.1 * torch.eye(2, dtype=DOUBLE)
    ours = GaussianMixture(means, covariances, weights)
    theirs = SklearnMixture(3, covariance_type="full")
    theirs.weights_, theirs.means_, theirs.covariances_ = ours.weights.numpy(), means.numpy(), covariances.numpy()
    theirs.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(covariances.numpy()))
    x = 2 * randn(40, 2, generator=source, dtype=DOUBLE)
    np.testing.assert_allclose(ours.log_prob(x).numpy(), theirs.score_samples(x.numpy()))
    np.testing.assert_allclose(ours.posterior(x).numpy(), theirs.predict_proba(x.numpy()), atol=1e-12)
