"""Guidance against diffusers' guider and scheduler, torch.distributions, scikit-learn and scipy's quadrature."""

import math
from statistics import NormalDist

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.guiders import ClassifierFreeGuidance
from scipy import integrate as quadrature
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from companion.data import GaussianMixture
from companion.device import generator, rand, randn
from companion.methods import diffusion as ddpm
from companion.methods import guidance
from companion.nn import UNet
from companion.numerics.paths import CondOT, VariancePreserving
from companion.numerics.schedules import linear_schedule

F64 = torch.float64
PATHS = pytest.mark.parametrize("path", [CondOT(), VariancePreserving()], ids=["CondOT", "variance preserving"])

MEANS = torch.tensor([[-1.0, 0.5], [1.5, -0.5], [0.5, 1.5]], dtype=F64)
COVARIANCES = torch.tensor([[[0.5, 0.3], [0.3, 0.4]], [[0.3, -0.1], [-0.1, 0.8]], [[0.2, 0.0], [0.0, 0.2]]], dtype=F64)
WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=F64)
LABELS = torch.tensor([0, 1, 0])  # the first and the last heap are one class
PLANE = guidance.LabeledMixture(GaussianMixture(MEANS, COVARIANCES, WEIGHTS), LABELS)

LINE_MEANS, LINE_STDS, LINE_WEIGHTS = (-1.0, 1.5), (0.6, 0.8), (0.4, 0.6)
LINE = guidance.LabeledMixture(
    GaussianMixture(
        torch.tensor(LINE_MEANS, dtype=F64)[:, None],
        torch.tensor(LINE_STDS, dtype=F64).square()[:, None, None],
        torch.tensor(LINE_WEIGHTS, dtype=F64),
    )
)


def torchs(path, t, which=slice(None)):
    """The noised mixture as torch.distributions knows it, or that of a class."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    noised = alpha**2 * COVARIANCES[which] + sigma**2 * torch.eye(2, dtype=F64)
    return MixtureSameFamily(Categorical(WEIGHTS[which]), MultivariateNormal(alpha * MEANS[which], noised))


def slope(log_prob, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(log_prob(x).sum(), x)[0]


# ---------------------------------------------------------------------- Bayes


@pytest.mark.verifies("eq-guidance-bayes")
@PATHS
def test_the_score_of_a_label_is_the_score_plus_the_gradient_of_the_classifier(path):
    """torch.distributions and autograd for the scores of p_t(x | y) and p_t(x), their difference against the gradient
    of the exact classifier."""
    t, x = torch.tensor(0.7, dtype=F64), 2 * randn(40, 2, generator=generator(0), dtype=F64)
    classifier = guidance.label_log_prob(guidance.BayesClassifier(PLANE, path))
    for label in (0, 1):
        scores = slope(torchs(path, t, label == LABELS).log_prob, x) - slope(torchs(path, t).log_prob, x)
        pushed = slope(lambda x, label=label: classifier(t, x, torch.full((40,), label)), x)
        torch.testing.assert_close(pushed, scores)
        assert scores.norm() > 1


@pytest.mark.verifies("eq-velocity-from-score", "eq-b-t")
@PATHS
def test_the_gap_of_two_velocities_is_b_times_the_gap_of_their_scores(path):
    """Scores by autograd of torch.distributions, velocities as means of conditional velocities: sums over a grid of
    x_1."""
    t, x = torch.tensor(0.6, dtype=F64), randn(6, 2, generator=generator(0), dtype=F64)
    axis = torch.linspace(-6, 6, 241, dtype=F64)
    x_1 = torch.cartesian_prod(axis, axis)
    alpha, sigma = path.alpha(t), path.sigma(t)

    def velocity(which):
        law = MixtureSameFamily(Categorical(WEIGHTS[which]), MultivariateNormal(MEANS[which], COVARIANCES[which]))
        weight = (law.log_prob(x_1) - (x[:, None] - alpha * x_1).square().sum(2) / (2 * sigma**2)).softmax(1)
        return weight @ (path.d_alpha(t) * x_1) + path.d_sigma(t) * (x - alpha * (weight @ x_1)) / sigma

    scores = slope(torchs(path, t, LABELS == 1).log_prob, x) - slope(torchs(path, t).log_prob, x)
    velocities = velocity(LABELS == 1) - velocity(slice(None))
    torch.testing.assert_close(velocities, guidance.guidance_scale(path, t) * scores, atol=1e-7, rtol=1e-7)


def test_the_exact_classifier_is_the_posterior_of_scikit_learn():
    """scikit-learn's GaussianMixture, given the parameters at time t; its components summed to labels."""
    path, t = CondOT(), torch.tensor(0.6, dtype=F64)
    x = randn(50, 2, generator=generator(0), dtype=F64)
    theirs = SklearnMixture(3)
    theirs.weights_, theirs.means_ = WEIGHTS.numpy(), (path.alpha(t) * MEANS).numpy()
    covariances = path.alpha(t) ** 2 * COVARIANCES + path.sigma(t) ** 2 * torch.eye(2, dtype=F64)
    theirs.precisions_cholesky_ = torch.linalg.inv(torch.linalg.cholesky(covariances)).mT.numpy()
    each = torch.from_numpy(theirs.predict_proba(x.numpy()))
    expected = torch.stack([each[:, 0] + each[:, 2], each[:, 1]], dim=1)
    torch.testing.assert_close(guidance.BayesClassifier(PLANE, path)(t, x).exp(), expected)


# ---------------------------------------------------------------------- the arithmetic of diffusers


def guider(w, *, original=False):
    """diffusers' classifier-free guidance; `original` is the form of Ho and Salimans, whose weight is w − 1."""
    theirs = ClassifierFreeGuidance(guidance_scale=w - 1 if original else w, use_original_formulation=original)
    theirs.set_state(step=0, num_inference_steps=1, timestep=torch.tensor(0))
    return lambda conditional, free: theirs.forward(conditional, free).pred


def network():
    torch.manual_seed(0)
    model = UNet(channels=(8, 8), labels=10).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model


@pytest.mark.verifies("eq-classifier-free", "eq-epsilon-form")
@pytest.mark.parametrize("w", [0.5, 2.0, 7.5])
@pytest.mark.parametrize("original", [False, True], ids=["epsilon form", "Ho and Salimans"])
def test_the_guided_prediction_is_that_of_diffusers(w, original):
    """diffusers' ClassifierFreeGuidance on the two predictions of a small U-Net, in both of its formulations."""
    model, x, y = network(), randn(4, 1, 8, 8, generator=generator(0)), torch.tensor([3, 1, 4, 1])
    t = rand(4, generator=generator(1))
    with torch.no_grad():
        expected = guider(w, original=original)(model(t, x, y), model(t, x, torch.full((4,), 10)))
        torch.testing.assert_close(guidance.Guided(model, y, w)(t, x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.verifies("eq-epsilon-form")
def test_guided_sampling_takes_the_steps_of_diffusers():
    """diffusers' guider and its DDIMScheduler, ten steps from the same noise, against the wrapped model in DDIM."""
    model, w, y = network(), 3.0, torch.tensor([3, 1, 4])
    x_T = randn(3, 1, 8, 8, generator=generator(0))
    theirs = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    theirs.set_timesteps(10)
    guide, x = guider(w), x_T
    with torch.no_grad():
        for step in theirs.timesteps:
            t = (step + 1) / 1000
            noise = guide(model(t, x, y), model(t, x))
            x = theirs.step(noise, step, x).prev_sample
    guided = guidance.Guided(model, y, w)
    ours = ddpm.ddim_sample(guided, linear_schedule(), x_T, steps=10)
    torch.testing.assert_close(ours, x, atol=1e-3 * float(x.abs().max()), rtol=0)
    assert (guided.calls, guided.evaluations) == (10, 60)
    unguided = ddpm.ddim_sample(guidance.Guided(model, y, 1.0), linear_schedule(), x_T, steps=10)
    assert (unguided - x).abs().max() > 0.05 * x.abs().max()  # the guidance shows


# ---------------------------------------------------------------------- the tilted density


def normal(x, k):
    return NormalDist(LINE_MEANS[k], LINE_STDS[k]).pdf(x)


def label_probability(x):
    """p(y = 1 | x_1 = x), by Bayes in plain numbers."""
    joint = [LINE_WEIGHTS[k] * normal(x, k) for k in (0, 1)]
    return joint[1] / sum(joint)


def tilt(x, w):
    """p(x) p(y = 1 | x)^w, not normalized."""
    return (LINE_WEIGHTS[0] * normal(x, 0) + LINE_WEIGHTS[1] * normal(x, 1)) * label_probability(x) ** w


def integral(f, low=-9.0, high=11.0, points=(-1.0, 0.5, 1.5)):
    return quadrature.quad(f, low, high, points=points, limit=200, epsabs=0, epsrel=1e-10)[0]


@pytest.mark.verifies("eq-tilted")
@pytest.mark.parametrize("w", [0.5, 2.0, 6.0])
def test_the_tilted_density_is_the_posterior_with_a_power_of_the_likelihood(w):
    """scipy's adaptive quadrature: p(x) p(y | x)^w over its integral."""
    x = [-1.0, 0.0, 0.7, 2.0, 3.5]
    total = integral(lambda x: tilt(x, w))
    expected = torch.tensor([math.log(tilt(value, w) / total) for value in x], dtype=F64)
    ours = guidance.TiltedDensity(LINE, 1, w).log_prob(torch.tensor(x, dtype=F64)[:, None])
    torch.testing.assert_close(ours, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.verifies("eq-tilted-gap")
@PATHS
@pytest.mark.parametrize("w", [0.5, 3.0])
def test_the_gap_is_that_of_a_power_of_a_mean_and_a_mean_of_powers(path, w):
    """scipy's quadrature over the posterior of x_1 given x_t: ∇log (E[p(y|x_1)]^w / E[p(y|x_1)^w]), by differences. No
    score and no velocity is used."""
    t = 0.6
    alpha, sigma = (f(torch.tensor(t, dtype=F64)).item() for f in (path.alpha, path.sigma))

    def mean_of_power(x, power):
        def weight(x_1):
            return tilt(x_1, 0.0) * math.exp(-((x - alpha * x_1) ** 2) / (2 * sigma**2))

        top = integral(lambda x_1: weight(x_1) * label_probability(x_1) ** power)
        return top / integral(weight)

    def log_ratio(x):
        return w * math.log(mean_of_power(x, 1.0)) - math.log(mean_of_power(x, w))

    h, x = 1e-3, [-0.5, 0.4]
    expected = torch.tensor([[(log_ratio(v + h) - log_ratio(v - h)) / (2 * h)] for v in x], dtype=F64)
    ours = guidance.tilted_gap(LINE, 1, w, path, torch.tensor(t, dtype=F64), torch.tensor(x, dtype=F64)[:, None])
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=2e-5)
    assert ours.abs().max() > 0.1
