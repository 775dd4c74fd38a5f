"""Guidance: each equation of chapter 13 against a fact that does not use it, each mistake refuted by a number."""

import functools
import math

import pytest
import torch
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

from companion.data import Gaussian, GaussianMixture, eight_gaussians, minibatches
from companion.device import generator, rand, randn
from companion.methods import diffusion as ddpm
from companion.methods import flow_matching as fm
from companion.methods import guidance
from companion.nn import UNet, VelocityMLP
from companion.numerics.ode import DormandPrince, RungeKutta4
from companion.numerics.paths import CondOT, VariancePreserving
from companion.numerics.schedules import linear_schedule

F64 = torch.float64
PATHS = pytest.mark.parametrize("path", [CondOT(), VariancePreserving()], ids=["CondOT", "variance preserving"])
FALSE_ALARM = 1e-6  # of each test of a distribution, if its seed were drawn anew
SOLVER = RungeKutta4(steps=30)


def f64(value):
    return torch.tensor(value, dtype=F64)


def normals(*shape, seed=0):
    return randn(*shape, generator=generator(seed), dtype=F64)


def heaps(means, stds, weights=None):
    """One label a heap, on the line."""
    covariances = f64(stds).square()[:, None, None]
    return guidance.LabeledMixture(
        GaussianMixture(f64(means)[:, None], covariances, None if weights is None else f64(weights))
    )


TWO = heaps([-1.0, 1.0], [0.7, 0.7])
SKEW = heaps([-1.0, 1.5], [0.6, 0.8], [0.4, 0.6])
ONE = torch.tensor(1)
RING = guidance.LabeledMixture(eight_gaussians(2.5, 0.3, dtype=F64), torch.arange(8) % 2)


def classifier_of(data, path=None):
    return guidance.label_log_prob(guidance.BayesClassifier(data, path or CondOT()))


def clean_classifier_of(data):
    """The exact p(y | x_1), asked at noisy points: it never hears the time."""
    bayes = guidance.BayesClassifier(data, CondOT())
    return guidance.label_log_prob(lambda t, x: bayes(torch.ones_like(t), x))


def sampled(field, n=3000, dim=1, solver=SOLVER):
    return fm.sample(field, normals(n, dim), solver)


def cdf(mixture):
    """The distribution function of a mixture on the line."""
    means, stds = mixture.means[:, 0].numpy(), mixture.covariances[:, 0, 0].sqrt().numpy()
    return lambda x: (mixture.weights.numpy() * stats.norm.cdf(x[:, None], means, stds)).sum(1)


def cdf_on_a_grid(density, low=-12.0, high=12.0, n=24_001):
    """The distribution function of any density on the line, by the trapezoidal rule."""
    x = torch.linspace(low, high, n, dtype=F64)
    total = torch.cumulative_trapezoid(density.log_prob(x[:, None]).exp(), x)
    return lambda points: torch.cat([f64([0.0]), total]).numpy()[((points - low) / (high - low) * (n - 1)).astype(int)]


def kolmogorov(x, distribution):
    return stats.kstest(x[:, 0].numpy(), distribution)


# ---------------------------------------------------------------------- the push


@pytest.mark.verifies("eq-velocity-from-score")
@PATHS
def test_the_velocity_is_a_pull_along_x_and_b_times_the_score(path):
    """The mean of α̇ x_1 + σ̇ ε under the posterior of x_1, and the slope of log p_t, both on a fine grid of x_1."""
    t, x_1 = f64(0.6), torch.linspace(-7, 8, 6001, dtype=F64)[:, None]
    x = torch.linspace(-2, 3, 11, dtype=F64).requires_grad_()
    alpha, sigma = path.alpha(t), path.sigma(t)
    log_joint = SKEW.mixture.log_prob(x_1)[:, None] - (x - alpha * x_1).square() / (2 * sigma**2)
    (score,) = torch.autograd.grad(log_joint.logsumexp(0).sum(), x, retain_graph=True)
    moves = path.d_alpha(t) * x_1 + path.d_sigma(t) * (x - alpha * x_1) / sigma
    u = (log_joint.softmax(0) * moves).sum(0)
    b = guidance.guidance_scale(path, t)
    torch.testing.assert_close(u, path.d_alpha(t) / alpha * x + b * score, atol=1e-8, rtol=1e-8)


@pytest.mark.verifies("eq-b-t")
@PATHS
def test_b_is_the_variance_times_the_growth_of_the_log_signal_to_noise_ratio(path):
    """Autograd: b_t = σ² d/dt log(α/σ)."""
    t = torch.linspace(0.05, 0.95, 19, dtype=F64).requires_grad_()
    (growth,) = torch.autograd.grad((path.alpha(t) / path.sigma(t)).log().sum(), t)
    torch.testing.assert_close(guidance.guidance_scale(path, t).detach(), path.sigma(t.detach()) ** 2 * growth)


def test_b_vanishes_at_the_data_and_has_no_value_at_the_noise():
    assert guidance.guidance_scale(CondOT(), f64([1.0, 0.5, 0.1])).tolist() == pytest.approx([0.0, 1.0, 9.0])
    with pytest.raises(ValueError, match=r"guidance_scale: received t from 0; rule: t > 0"):
        guidance.guidance_scale(CondOT(), f64([0.0, 0.5]))


@pytest.mark.verifies("eq-classifier-guidance")
@PATHS
def test_the_exact_classifier_turns_the_unconditional_field_into_the_conditional_one(path):
    """Velocities of p and of p(· | y) in closed form; w = 1 gets from one to the other, at all times, both labels."""
    x, t = normals(40, 2), rand(40, generator=generator(1), dtype=F64).clamp(min=0.01)
    y, u = torch.arange(40) % 2, RING.mixture.marginal_velocity
    field = guidance.ClassifierGuided(functools.partial(u, path), path, classifier_of(RING, path), y, 1.0)
    for label, part in enumerate(RING.classes):
        torch.testing.assert_close(field(t, x)[y == label], part.marginal_velocity(path, t, x)[y == label])


@pytest.mark.verifies("eq-classifier-guidance")
def test_classifier_guidance_samples_the_label():
    """Kolmogorov–Smirnov against the Gaussian of the label (false alarm 1e-6); without guidance it is rejected."""
    field = functools.partial(SKEW.mixture.marginal_velocity, CondOT())
    guided = guidance.ClassifierGuided(field, CondOT(), classifier_of(SKEW), torch.tensor(0), 1.0)
    assert kolmogorov(sampled(guided), cdf(SKEW.classes[0])).pvalue > FALSE_ALARM
    assert kolmogorov(sampled(field), cdf(SKEW.classes[0])).pvalue < 1e-100


def test_the_push_at_the_start_is_the_way_between_the_means():
    """At t = 0 the fields are the means of p(x | y) and of p(x) minus x; b_t has no value there, the push has one."""
    x = normals(5, 1)
    field = functools.partial(SKEW.mixture.marginal_velocity, CondOT())
    guided = guidance.ClassifierGuided(field, CondOT(), classifier_of(SKEW), torch.tensor(1), 2.0)
    mean = (SKEW.weights[:, None] * SKEW.mixture.means).sum(0)
    expected = field(f64(0.0), x) + 2 * (SKEW.mixture.means[1] - mean)
    torch.testing.assert_close(guided(f64(0.0), x), expected, atol=0.02, rtol=0)  # earliest = 0.001


def test_classifier_guidance_on_images_and_for_each_row_its_time_and_weight():
    """A classifier with scores linear in the pixels: its gradient is known."""
    direction = randn(3, 16, generator=generator(0), dtype=F64)

    def log_prob(t, x, y):
        return (x.flatten(1) * direction[y]).sum(1)

    x, y, w = normals(4, 1, 4, 4), torch.tensor([0, 2, 1, 1]), f64([0.0, 1.0, 2.0, -1.0])
    t = f64([0.1, 0.2, 0.5, 1.0])
    field = guidance.ClassifierGuided(lambda t, x: 0 * x, CondOT(), log_prob, y, w)
    expected = (w * (1 - t) / t)[:, None] * direction[y]
    with torch.no_grad():
        torch.testing.assert_close(field(t, x).flatten(1), expected)
    assert (field.evaluations, field.gradients) == (4, 4)


# ---------------------------------------------------------------------- training


def exact_means(data, t, x):
    """E[x_1 | x_t = x, y] for every label, and without one, on the line with CondOT."""
    return [part.posterior_mean(CondOT(), t, x) for part in (*data.classes, data.mixture)]


@pytest.mark.verifies("eq-label-dropout")
@pytest.mark.parametrize("eta", [0.1, 0.5])
def test_with_dropped_labels_one_network_learns_both_fields(eta):
    """The gradient of the loss at the exact fields, a number for each label told: 0 within four standard errors (false
    alarm 4e-4), and not 0 where the fields of 'none given' and of a label are exchanged."""
    n, t = 200_000, f64(0.5).expand(200_000)
    x_1, y = SKEW.sample(n, generator=generator(0))
    told = guidance.drop_labels(y, probability=eta, null=2, generator=generator(1))
    assert told.bincount().tolist() == pytest.approx([0.4 * (1 - eta) * n, 0.6 * (1 - eta) * n, eta * n], rel=0.02)
    exact = guidance.ExactVelocity(SKEW, CondOT())

    def gradient(as_if):
        c = torch.zeros(n, 1, dtype=F64, requires_grad=True)
        model = guidance.given(lambda t, x, y: exact(t, x, as_if[y]) + c, told)
        fm.conditional_flow_matching_loss(model, CondOT(), normals(n, 1, seed=7), x_1, t).sum().backward()
        each = [c.grad[told == label, 0] for label in range(3)]
        return torch.stack([g.mean() / (g.std() / math.sqrt(len(g))) for g in each])

    assert gradient(torch.tensor([0, 1, 2])).abs().max() < 4
    assert gradient(torch.tensor([2, 2, 2]))[:2].abs().min() > 30
    assert gradient(torch.tensor([0, 1, 1]))[2].abs() > 30


def test_each_label_is_dropped_by_its_own_draw():
    """Shares in 2,000 batches of 50: their mean and their spread are those of independent coins (false alarm 2e-4)."""
    g, y = generator(0), torch.arange(50)
    dropped = torch.stack([guidance.drop_labels(y, probability=0.2, null=50, generator=g) == 50 for _ in range(2000)])
    shares, variance = dropped.double().mean(1), 0.2 * 0.8 / 50
    assert abs(shares.mean() - 0.2) < 4 * math.sqrt(variance / 2000)
    assert abs(shares.var() / variance - 1) < 4 * math.sqrt(2 / 2000)
    assert (dropped.double().mean(0) - 0.2).abs().max() < 5 * math.sqrt(0.16 / 2000)


def test_labels_that_are_kept_are_unchanged_and_the_ends_of_the_range_are_exact():
    y = torch.arange(10, dtype=torch.int32)
    kept = guidance.drop_labels(y, probability=0, null=10, generator=generator(0))
    assert torch.equal(kept, y)
    assert guidance.drop_labels(y, probability=1, null=10, generator=generator(0)).tolist() == [10] * 10
    some = guidance.drop_labels(y, probability=0.5, null=10, generator=generator(0))
    assert some.dtype == y.dtype
    assert set((some == y).tolist()) == {True, False}
    assert ((some == y) | (some == 10)).all()
    assert torch.equal(y, torch.arange(10, dtype=torch.int32))


def test_labels_are_dropped_in_the_stream_of_batches():
    """Rows of images and labels stay together: every label that is left is that of its image."""
    x, y = torch.arange(60.0)[:, None], torch.arange(60) % 10
    drop = functools.partial(guidance.drop_labels, probability=0.3, null=10, generator=generator(1))
    stream = minibatches(x, y, size=20, generator=generator(0), augment=lambda x, y: (x, drop(y)))
    for _ in range(5):
        images, labels = next(stream)
        assert ((labels == images[:, 0].long() % 10) | (labels == 10)).all()


def test_given_labels_any_loss_takes_a_conditional_model():
    model, y = VelocityMLP(2, labels=3), torch.tensor([0, 1, 2, 3])
    x_0, x_1, t = randn(4, 2, generator=generator(0)), randn(4, 2, generator=generator(1)), torch.full((4,), 0.3)
    loss = fm.conditional_flow_matching_loss(guidance.given(model, y), CondOT(), x_0, x_1, t)
    by_hand = (model(t, torch.lerp(x_0, x_1, t[:, None]), y) - (x_1 - x_0)).square().sum(1)
    torch.testing.assert_close(loss, by_hand)
    step = torch.full((4,), 300)
    noise_loss = ddpm.noise_prediction_loss(guidance.given(model, y), linear_schedule(), x_1, step, x_0)
    assert noise_loss.shape == (4,)
    one_for_all = guidance.given(model, torch.tensor(1))(t, x_1)
    torch.testing.assert_close(one_for_all, model(t, x_1, torch.ones(4, dtype=torch.long)))


# ---------------------------------------------------------------------- classifier-free guidance


@pytest.mark.verifies("eq-classifier-free")
@PATHS
def test_the_two_fields_give_what_the_exact_classifier_gives(path):
    """Two algorithms: the difference of two fields, and the gradient of log p_t(y | x) by autograd; any weight."""
    x, t = normals(30, 2), rand(30, generator=generator(1), dtype=F64).clamp(min=0.01)
    y, exact = torch.arange(30) % 2, guidance.ExactVelocity(RING, path)
    for w in (-0.5, 0.5, 2.0, 7):
        free = guidance.Guided(exact, y, w)(t, x)
        by_classifier = guidance.ClassifierGuided(exact, path, classifier_of(RING, path), y, w)(t, x)
        torch.testing.assert_close(free, by_classifier, atol=1e-8, rtol=1e-8)


@pytest.mark.verifies("eq-classifier-free")
@pytest.mark.parametrize(("w", "law"), [(0.0, SKEW.mixture), (1.0, SKEW.classes[1])], ids=["w = 0", "w = 1"])
def test_weight_zero_samples_the_data_and_weight_one_the_label(w, law):
    """Kolmogorov–Smirnov on 3,000 samples against the exact distribution function (false alarm 1e-6)."""
    field = guidance.Guided(guidance.ExactVelocity(SKEW, CondOT()), torch.tensor(1), w)
    x = sampled(field)
    assert kolmogorov(x, cdf(law)).pvalue > FALSE_ALARM
    assert kolmogorov(x + 0.3, cdf(law)).pvalue < FALSE_ALARM  # it could have failed


@pytest.mark.refutes("E26")
def test_more_weight_extrapolates_away_from_the_unguided_field():
    """Lengths: from u(x|∅), ũ lies w times as far as u(x|y), in its direction. Samples: with w = 4 the label is surer
    than with w = 1 and less spread out; with guided and unguided swapped, w = 4 makes the other label."""
    exact, y = guidance.ExactVelocity(TWO, CondOT()), torch.tensor(1)
    x, t = normals(50, 1), f64(0.4)
    free, conditional = exact(t, x), exact(t, x, torch.ones(50, dtype=torch.long))
    for w in (0.5, 2.0, 4.0):
        step = guidance.Guided(exact, y, w)(t, x) - free
        torch.testing.assert_close(step.norm(dim=1), w * (conditional - free).norm(dim=1))
        assert (step * (conditional - free)).sum(1).min() > 0

    def swapped(t, x):
        return 4 * exact(t, x) + (1 - 4) * exact(t, x, torch.ones(len(x), dtype=torch.long))

    def right(field):
        x = sampled(field, n=1000)
        return TWO.mixture.posterior(x)[:, 1].mean(), x.std()

    (sure, wide), (surer, narrow) = (right(guidance.Guided(exact, y, w)) for w in (1.0, 4.0))
    assert 0.85 < sure < 0.95 < 0.99 < surer
    assert narrow < 0.65 * wide
    assert right(swapped)[0] < 0.05


@pytest.mark.verifies("eq-epsilon-form")
@PATHS
def test_guided_noise_is_the_noise_of_the_guided_velocity(path):
    """The conversions of the path, which are affine: guide the noise predictions with γ = w, or convert afterwards."""
    exact, y, w = guidance.ExactVelocity(RING, path), torch.arange(20) % 2, 3.0
    x, t = normals(20, 2), rand(20, generator=generator(1), dtype=F64)

    def noise(t, x, y):
        return path.noise_from_velocity(t, x, exact(t, x, y))

    guided = guidance.Guided(noise, y, w, null=2)(t, x)
    torch.testing.assert_close(guided, path.noise_from_velocity(t, x, guidance.Guided(exact, y, w)(t, x)))
    free, conditional = noise(t, x, torch.full_like(y, 2)), noise(t, x, y)
    torch.testing.assert_close(guided, free + w * (conditional - free))
    ho_and_salimans = w - 1  # (1 + w') ε_c − w' ε_u
    torch.testing.assert_close(guided, (1 + ho_and_salimans) * conditional - ho_and_salimans * free)


@pytest.mark.parametrize("w", [0.0, 1.0, 3.0])
def test_the_same_wrapper_guides_a_diffusion_model(w):
    """DDIM from T to 0 with the exact noise of each label: w = 0 and 1 give mean and spread of p and of p(· | y) within
    four standard errors and the solver's own (false alarm 2e-4); w = 3 is surer of the label."""
    schedule, n = linear_schedule(), 4000
    models = [ddpm.exact_noise_model(part, schedule) for part in (*SKEW.classes, SKEW.mixture)]

    def model(t, x, y):
        return torch.stack([part(t, x) for part in models], dim=1)[torch.arange(len(x)), y]

    x = ddpm.ddim_sample(guidance.Guided(model, torch.tensor(1), w, null=2), schedule, normals(n, 1), steps=100)
    if w == 3.0:
        assert SKEW.mixture.posterior(x)[:, 1].mean() > 0.999
        return
    law = SKEW.classes[1] if w else SKEW.mixture
    mean = (law.weights[:, None] * law.means).sum(0)
    std = (law.weights * (law.covariances[:, 0, 0] + (law.means[:, 0] - mean).square())).sum().sqrt()
    assert abs(x.mean() - mean) < 4 * std / math.sqrt(n) + 0.01
    assert abs(x.std() - std) < 4 * std / math.sqrt(2 * n) + 0.01


@pytest.mark.parametrize("make", [lambda: UNet(channels=(8, 8), labels=10), lambda: VelocityMLP(64, labels=10)])
def test_networks_with_labels_are_guided_with_their_own_null_label(make):
    """Two separate calls of the network, without labels and with them."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    shape = (3, 1, 8, 8) if isinstance(model, UNet) else (3, 64)
    x, y, t = randn(*shape, generator=generator(0)), torch.tensor([3, 9, 0]), torch.tensor([0.1, 0.5, 0.9])
    expected = (1 - 2.5) * model(t, x) + 2.5 * model(t, x, y)
    torch.testing.assert_close(guidance.Guided(model, y, 2.5)(t, x), expected, atol=1e-5, rtol=1e-5)
    at_once = guidance.Guided(model, y, 2.5)(torch.tensor(0.5), x)
    torch.testing.assert_close(at_once, guidance.Guided(model, y, 2.5)(torch.full((3,), 0.5), x))


def test_each_row_may_have_its_own_weight():
    exact, x, t = guidance.ExactVelocity(TWO, CondOT()), normals(4, 1), f64(0.3)
    weights = f64([0.0, 1.0, 2.0, 5.0])
    together = guidance.Guided(exact, torch.tensor(0), weights)(t, x)
    for i, w in enumerate(weights):
        alone = guidance.Guided(exact, torch.tensor(0), w.item())(t, x[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)
    torch.testing.assert_close(guidance.Guided(exact, torch.tensor(0), f64(2.0))(t, x)[2], together[2])


def test_gradients_pass_through_a_guided_field():
    """To a weight that is a tensor: the derivative in w is the difference of the two fields."""
    exact, x, t = guidance.ExactVelocity(TWO, CondOT()), normals(4, 1), f64(0.3)
    w = f64(2.0).requires_grad_()
    (slope,) = torch.autograd.grad(guidance.Guided(exact, torch.tensor(0), w)(t, x).sum(), w)
    torch.testing.assert_close(slope, (exact(t, x, torch.zeros(4, dtype=torch.long)) - exact(t, x)).sum())


@pytest.mark.refutes("E27")
def test_guidance_costs_two_evaluations_and_batching_saves_calls_only():
    """Counted multiplications of the network, rows and calls: twice as many operations, in one call or in two; with
    w = 0 or 1 as many as without guidance."""
    model, x, y, t = UNet(channels=(8, 8), labels=10), torch.zeros(6, 1, 8, 8), torch.arange(6), torch.tensor(0.5)

    def operations(field):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            field(t, x)
        return counter.get_total_flops()

    plain = operations(model)
    assert plain > 1e6
    guided = guidance.Guided(model, y, 3.0)
    assert operations(guided) == 2 * plain
    assert (guided.calls, guided.evaluations) == (1, 12)
    assert operations(lambda t, x: -2 * model(t, x) + 3 * model(t, x, y)) == 2 * plain
    for w in (0, 1, 0.0, 1.0):
        single = guidance.Guided(model, y, w)
        assert operations(single) == plain
        assert (single.calls, single.evaluations) == (1, 6)


def test_the_evaluations_of_a_sampler_are_counted():
    guided = guidance.Guided(guidance.ExactVelocity(TWO, CondOT()), torch.tensor(0), 2.0)
    fm.sample(guided, normals(5, 1), RungeKutta4(steps=3))
    assert (guided.calls, guided.evaluations) == (12, 2 * 5 * 12)
    by_classifier = guidance.ClassifierGuided(lambda t, x: -x, CondOT(), classifier_of(TWO), torch.tensor(0), 0)
    fm.sample(by_classifier, normals(5, 1), RungeKutta4(steps=3))
    assert (by_classifier.evaluations, by_classifier.gradients) == (60, 0)


# ---------------------------------------------------------------------- the classifier


@pytest.mark.refutes("E28")
def test_a_classifier_of_clean_data_leads_away_from_the_data():
    """Its gradient at noisy points against the exact one, and where it takes the samples: it is sure of the label and
    far from it. Of 600 samples guided by the exact p_t(y | x) 99 in 100 lie in the region that holds 99 in 100 data."""
    path, wanted = CondOT(), torch.tensor(0)
    aware, clean = classifier_of(RING), clean_classifier_of(RING)

    def gradient(log_prob, t, x):
        return torch.func.grad(lambda x: log_prob(f64(t), x, wanted.expand(len(x))).sum())(x)

    errors = {}
    for t in (0.1, 0.5, 0.9):
        x = RING.at_time(path, f64(t)).sample(1000, generator=generator(1))[0]
        truth = gradient(aware, t, x)
        errors[t] = float((gradient(clean, t, x) - truth).norm() / truth.norm())
    assert errors[0.1] > 1000
    assert errors[0.5] > 5
    assert errors[0.9] < 0.05

    law = RING.classes[0]
    threshold = law.log_prob(law.sample(20_000, generator=generator(2))).quantile(0.01)
    field = functools.partial(RING.mixture.marginal_velocity, path)

    def outcome(log_prob):
        guided = guidance.ClassifierGuided(field, path, log_prob, wanted, 1.0, earliest=0.02)
        x = sampled(guided, n=600, dim=2)
        certain = guidance.BayesClassifier(RING, path)(f64(1.0), x)[:, 0] > math.log(0.5)
        return certain.double().mean(), (law.log_prob(x) > threshold).double().mean()

    right_label, among_data = outcome(aware)
    assert right_label > 0.99
    assert among_data > 0.99 - 5 * math.sqrt(0.01 / 600)  # false alarm 3e-7
    right_label, among_data = outcome(clean)
    assert right_label > 0.99
    assert among_data < 0.8


def test_the_loss_of_the_noisy_classifier_is_least_at_the_exact_one():
    """The gradient of each score at Bayes' posterior: 0 within four standard errors (false alarm 1e-4). Asked without
    noise, the same classifier is not stationary."""
    n = 100_000
    x_1, y = SKEW.sample(n, generator=generator(0))
    bayes, t = guidance.BayesClassifier(SKEW, CondOT()), rand(n, generator=generator(1), dtype=F64)

    def gradient(classifier, slope):
        c = torch.zeros(n, 1, dtype=F64, requires_grad=True)
        scores = lambda t, x: classifier(t, x) + torch.cat([c * slope(x), 0 * c], dim=1)  # noqa: E731
        guidance.noisy_classifier_loss(scores, CondOT(), x_1, y, t, normals(n, 1, seed=7)).sum().backward()
        return c.grad.mean() / (c.grad.std() / math.sqrt(n))

    for slope in (torch.ones_like, lambda x: x):
        assert gradient(bayes, slope).abs() < 4
    assert gradient(lambda t, x: bayes(torch.ones_like(t), x), lambda x: x).abs() > 30


def test_the_loss_of_the_noisy_classifier_is_minus_the_log_of_its_probability():
    """By hand, one example at a time, at the place of the noisy point."""
    x_1, y, eps = normals(6, 2), torch.arange(6) % 3, normals(6, 2, seed=1)
    t = rand(6, generator=generator(2), dtype=F64)

    def classifier(t, x):
        return torch.stack([x[:, 0], t * x[:, 1], x.sum(1)], dim=1)

    loss = guidance.noisy_classifier_loss(classifier, VariancePreserving(), x_1, y, t, eps)
    for i in range(6):
        x = math.sin(math.pi * t[i] / 2) * x_1[i] + math.cos(math.pi * t[i] / 2) * eps[i]
        p = torch.stack([x[0], t[i] * x[1], x.sum()]).exp()
        assert loss[i].item() == pytest.approx(-math.log(p[y[i]] / p.sum()))


def test_scores_become_log_probabilities_of_one_label():
    """torch.distributions.Categorical, on scores that are not normalized; the gradient too."""
    x, y = normals(5, 3).requires_grad_(), torch.tensor([0, 2, 1, 1, 0])
    log_prob = guidance.label_log_prob(lambda t, x: t * x + 5)(f64(0.5), x, y)
    expected = torch.distributions.Categorical(logits=0.5 * x).log_prob(y)
    torch.testing.assert_close(log_prob, expected)
    slopes = [torch.autograd.grad(value.sum(), x)[0] for value in (log_prob, expected)]
    torch.testing.assert_close(*slopes)


# ---------------------------------------------------------------------- what guidance samples


@pytest.mark.verifies("eq-tilted")
@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 3.0])
def test_the_tilted_density_is_a_density_and_its_samples_follow_it(w):
    """Kolmogorov–Smirnov on 20,000 samples against its integral (false alarm 1e-6); at w = 0 and 1 it is p and p(·|y).
    Bayes: it is proportional to p(x) p(y | x)^w."""
    q = guidance.TiltedDensity(SKEW, 1, w)
    x = q.sample(20_000, generator=generator(0))
    distribution = cdf_on_a_grid(q)
    assert distribution(torch.tensor([11.9]).numpy()) == pytest.approx(1, abs=1e-9)
    assert kolmogorov(x, distribution).pvalue > FALSE_ALARM
    points = torch.linspace(-3, 4, 29, dtype=F64)[:, None]
    if w in (0, 1):
        law = SKEW.classes[1] if w else SKEW.mixture
        torch.testing.assert_close(q.log_prob(points), law.log_prob(points))
    ratio = q.log_prob(points) - SKEW.mixture.log_prob(points) - w * SKEW.mixture.posterior(points)[:, 1].log()
    torch.testing.assert_close(ratio, ratio[:1].expand(29))


@pytest.mark.verifies("eq-tilted-gap")
@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_guidance_samples_the_tilted_density_only_for_weights_zero_and_one(w):
    """Kolmogorov–Smirnov on 3,000 samples of the guided field against the tilted density: accepted for w = 0 and 1
    (false alarm 1e-6); else rejected with p < 1e-15."""
    q, exact = guidance.TiltedDensity(TWO, 1, w), guidance.ExactVelocity(TWO, CondOT())
    p_value = kolmogorov(sampled(guidance.Guided(exact, torch.tensor(1), w)), cdf_on_a_grid(q)).pvalue
    assert p_value > FALSE_ALARM if w in (0, 1) else p_value < 1e-15


def test_the_field_of_the_tilted_and_noised_path_does_sample_the_tilted_density():
    """Kolmogorov–Smirnov on 500 samples (false alarm 1e-6); the guided field's are rejected."""
    q, exact = guidance.TiltedDensity(TWO, 1, 3.0, points=401), guidance.ExactVelocity(TWO, CondOT())
    solver, distribution = RungeKutta4(steps=20), cdf_on_a_grid(q)
    x = sampled(functools.partial(q.marginal_velocity, CondOT()), n=500, solver=solver)
    assert kolmogorov(x, distribution).pvalue > FALSE_ALARM
    assert kolmogorov(sampled(guidance.Guided(exact, ONE, 3.0), n=500, solver=solver), distribution).pvalue < 1e-20


@pytest.mark.parametrize(("data", "points"), [(SKEW, 1001), (RING, 201)], ids=["line", "plane"])
def test_the_two_quadratures_of_the_noised_tilted_density_agree_where_they_meet(data, points):
    """The grid, and Gauss–Hermite around the point, at a time when both resolve what x_t says of x_1; and at the data
    the score is that of the density itself, the velocity the score's."""
    q, path = guidance.TiltedDensity(data, 0, 2.5, points=points), VariancePreserving()
    x = q.sample(30, generator=generator(0))
    ratio = 3 * q.spacing.max()  # of σ_t to α_t
    meeting = 1 - 2 / math.pi * torch.atan(ratio)
    sides = [
        torch.cat([q.posterior_mean(path, t, x), q.marginal_score(path, t, x), q.marginal_velocity(path, t, x)])
        for t in (meeting - 1e-9, meeting + 1e-9)
    ]
    torch.testing.assert_close(*sides, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(q.marginal_score(path, f64(1.0), x), q.score(x))
    torch.testing.assert_close(q.posterior_mean(path, f64(1.0), x), x)
    assert q.marginal_velocity(path, f64(1.0), x).abs().max() < 1e-12  # of this path: α̇_1 = 0


@pytest.mark.verifies("eq-tilted-gap")
@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 3.0])
def test_noising_and_tilting_do_not_commute_but_agree_at_the_data(w):
    """The gap of the two scores over the points of p_t: none for w = 0 and 1; else large half-way and gone at t → 1."""

    def gap(t):
        x = torch.linspace(-2.5, 2.5, 41, dtype=F64)[:, None]
        gaps = guidance.tilted_gap(TWO, 1, w, CondOT(), f64(t), x)
        weight = TWO.at_time(CondOT(), f64(t)).mixture.log_prob(x).softmax(0)
        return (weight * gaps[:, 0].square()).sum().sqrt()

    if w in (0, 1):
        assert max(gap(t) for t in (0.1, 0.5, 0.9, 1.0)) < 1e-8
    else:
        assert gap(0.5) > 0.2
        assert gap(0.98) < 0.02
        assert gap(0.9) > 5 * gap(0.98)
        assert gap(1.0) < 1e-8


def gaussian_model(path, *laws):
    """The exact fields of Gaussians N(m, s²) on the line, one for each label, the last one for 'none given'."""
    parts = [Gaussian(f64([m]), f64([[s**2]])) for m, s in laws]

    def model(t, x, y):
        each = torch.stack([part.marginal_velocity(path, t, x) for part in parts], dim=1)
        return each[torch.arange(len(x)), y]

    return model


def carried(path, w, *laws):
    """Where guidance to label 0 takes nine points, by an adaptive solver, and the points."""
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    guided = guidance.Guided(gaussian_model(path, *laws), torch.tensor(0), w, null=1)
    return fm.sample(guided, x, DormandPrince(rtol=1e-9, atol=1e-9)), x


@pytest.mark.verifies("eq-guided-gaussian", "eq-tilted-gaussian")
@PATHS
@pytest.mark.parametrize("w", [0.5, 2.0, 3.0])
def test_guided_gaussians_have_another_spread_than_tilted_ones(path, w):
    """An adaptive solver on the guided fields of N(0, S²) and N(m, s²): the noise is stretched by S^(1−w) s^w, on each
    path. The tilted Gaussian's spread is measured on a grid: narrower than the guided for w < 1, wider for w > 1."""
    S, s, m = 1.5, 0.6, 0.8
    end, x = carried(path, w, (m, s), (0.0, S))
    stretch = (end - end[4]) / torch.where(x == 0, 1.0, x)
    torch.testing.assert_close(stretch[x != 0], f64(S ** (1 - w) * s**w).expand(8), atol=1e-6, rtol=1e-6)
    grid = torch.linspace(-12, 12, 4001, dtype=F64)
    mass = (-(1 - w) * grid**2 / (2 * S**2) - w * (grid - m) ** 2 / (2 * s**2)).softmax(0)
    mean = (mass * grid).sum()
    spread = (mass * (grid - mean) ** 2).sum().sqrt()
    assert spread.item() ** -2 == pytest.approx((1 - w) / S**2 + w / s**2)
    assert stretch[0] < 0.95 * spread if w > 1 else stretch[0] > 1.05 * spread


@PATHS
def test_for_equal_spreads_guidance_does_sample_the_tilted_gaussian(path):
    """Two Gaussians of one spread, the case without a gap: the mean m + w (m_y − m), the spread unchanged."""
    s, m, m_y, w = 0.7, -0.5, 1.0, 3.0
    end, x = carried(path, w, (m_y, s), (m, s))
    torch.testing.assert_close(end, m + w * (m_y - m) + s * x, atol=1e-6, rtol=1e-6)


def test_the_tilted_density_in_the_plane():
    """Sums over a grid of its own, and the share of samples in each heap (false alarm 1e-5)."""
    q = guidance.TiltedDensity(RING, 0, 2.0)
    axis = torch.linspace(-4, 4, 161, dtype=F64)
    cells = torch.cartesian_prod(axis, axis)
    p = q.log_prob(cells).exp() * 0.05**2
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    n = 20_000
    x = q.sample(n, generator=generator(0))
    nearest = (x[:, None] - RING.mixture.means).norm(dim=2).argmin(1).bincount(minlength=8) / n
    exact = torch.zeros(8, dtype=F64).index_add(0, (cells[:, None] - RING.mixture.means).norm(dim=2).argmin(1), p)
    assert ((nearest - exact).abs() < 5 * (exact / n).sqrt() + 0.002).all()
    torch.testing.assert_close(x.var(0), (p[:, None] * cells.square()).sum(0), rtol=0.03, atol=0)


# ---------------------------------------------------------------------- labels of a mixture


def test_a_labeled_mixture_is_its_parts():
    """Total probability: p(x) = Σ_y p(y) p(x | y) at all times, and the classifier is p(y) p(x | y)/p(x)."""
    data = guidance.LabeledMixture(eight_gaussians(dtype=F64), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]))
    assert data.weights.tolist() == pytest.approx([3 / 8, 2 / 8, 3 / 8])
    x, t = 3 * normals(20, 2), f64(0.7)
    noisy = data.at_time(VariancePreserving(), t)
    parts = torch.stack(
        [math.log(p) + part.log_prob(x) for p, part in zip(data.weights, noisy.classes, strict=True)], 1
    )
    torch.testing.assert_close(parts.logsumexp(1), noisy.mixture.log_prob(x))
    log_posterior = guidance.BayesClassifier(data, VariancePreserving())(t, x)
    torch.testing.assert_close(log_posterior, parts - noisy.mixture.log_prob(x)[:, None])


def test_samples_carry_the_label_of_their_component():
    """Shares of the labels, and no point far from a heap of its label (false alarm 1e-4)."""
    x, y = RING.sample(4000, generator=generator(0))
    assert abs(y.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(4000)
    nearest = (x[:, None] - RING.mixture.means).norm(dim=2).argmin(1)
    assert ((nearest % 2) == y).double().mean() > 0.99


def test_the_exact_score_and_velocity_of_each_label_are_those_of_its_part():
    x, y, t = normals(6, 2), torch.tensor([0, 1, 2, 2, 1, 0]), rand(6, generator=generator(1), dtype=F64)
    score, velocity = guidance.ExactScore(RING, CondOT()), guidance.ExactVelocity(RING, CondOT())
    for label, part in enumerate((*RING.classes, RING.mixture)):
        torch.testing.assert_close(score(t, x, y)[y == label], part.marginal_score(CondOT(), t, x)[y == label])
        torch.testing.assert_close(velocity(t, x, y)[y == label], part.marginal_velocity(CondOT(), t, x)[y == label])
    torch.testing.assert_close(score(t, x), RING.mixture.marginal_score(CondOT(), t, x))


# ---------------------------------------------------------------------- what is refused


EXACT = guidance.ExactVelocity(TWO, CondOT())
AT = (torch.tensor(0.5, dtype=F64), torch.zeros(3, 1, dtype=F64))


def drop(y, probability=0.1, null=10):
    return guidance.drop_labels(y, probability=probability, null=null, generator=generator(0))


def classified(y, scores=lambda t, x: x.new_zeros(len(x), 3)):
    x = torch.zeros(4, 2)
    return guidance.noisy_classifier_loss(scores, CondOT(), x, y, torch.full((4,), 0.5), x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: drop(torch.tensor([0, 11])),
            "labels from 0 to 11; rule: 0 … 9, and 10, for 'none given', is none of them",
        ),
        (lambda: drop(torch.tensor([-1])), "labels from -1 to -1; rule: 0 … 9"),
        (lambda: drop(torch.tensor([0, 1]), null=0), "received null=0; rule: one more than the largest label"),
        (lambda: drop(torch.tensor([9]), null=9), "labels from 9 to 9; rule: 0 … 8, and 9, for 'none given', is none"),
        (lambda: drop(torch.tensor([0.0])), "torch.float32; rule: integers"),
        (lambda: drop(torch.tensor([True])), "torch.bool; rule: integers"),
        (lambda: drop(torch.zeros(2, 2, dtype=torch.long)), r"shape \(2, 2\).*rule: .*\(batch,\)"),
        (lambda: drop(torch.tensor([0]), probability=1.1), "probability=1.1; rule: from 0"),
        (lambda: drop(torch.tensor([0]), probability=-0.1), "probability=-0.1; rule"),
        (lambda: drop(torch.tensor([0]), probability=math.nan), "probability=nan; rule"),
        (lambda: guidance.Guided(EXACT, ONE, math.inf), "Guided: received guidance weight w=inf; rule: finite"),
        (lambda: guidance.Guided(EXACT, ONE, f64([1.0, math.nan])), "guidance weight .*rule: finite"),
        (lambda: guidance.Guided(EXACT, ONE, torch.ones(3, 1)), r"received w \(3, 1\).*rule"),
        (lambda: guidance.Guided(EXACT, ONE, torch.tensor(2)), "torch.int64; rule: floating point"),
        (
            lambda: guidance.Guided(EXACT, torch.tensor(2), 1.0),
            "Guided: received labels from 2 to 2; rule: 0 … 1, and 2",
        ),
        (lambda: guidance.Guided(EXACT, torch.tensor(-1), 1.0), "labels from -1"),
        (lambda: guidance.Guided(EXACT, ONE, 1.0, null=1), "null=1 for a model with 2 labels; rule: its null .* 2"),
        (lambda: guidance.Guided(EXACT, torch.tensor(1.0), 1.0), "torch.float32; rule: integers"),
        (lambda: guidance.Guided(lambda t, x, y: x, ONE, 1.0), "no null and a model without `labels`; rule"),
        (lambda: guidance.Guided(EXACT, torch.tensor([0, 1]), 2.0)(*AT), "2 labels for 3 rows; rule"),
        (lambda: guidance.Guided(EXACT, ONE, f64([1.0, 2.0]))(*AT), "2 weights for 3 rows; rule"),
        (lambda: guidance.Guided(lambda t, x, y: x[:, 0], ONE, 2.0, null=2)(*AT), r"returns \(6,\) .* rule: the shape"),
        (lambda: guidance.Guided(lambda t, x, y: x[:1], ONE, 1, null=2)(*AT), r"returns \(1, 1\) .* rule: the shape"),
        (
            lambda: guidance.given(lambda t, x, y: x, torch.tensor([1]))(*AT),
            "given: received 1 labels for 3 rows; rule",
        ),
        (lambda: guidance.given(EXACT, torch.tensor([0.5])), "given: .*rule: integers"),
        (lambda: EXACT(*AT, torch.tensor([0, 1, 3])), "ExactVelocity: received labels from 0 to 3; rule: 0 … 1, or 2"),
        (lambda: classified(torch.tensor([0, 1, 2, 3])), "noisy_classifier_loss: received labels from 0 to 3"),
        (lambda: classified(torch.tensor([0, 1])), r"labels \(2,\) for x_1 \(4, 2\); rule"),
        (lambda: classified(torch.zeros(4, dtype=torch.long), lambda t, x: x[:, 0]), r"scores \(4,\).*rule"),
        (lambda: classified(torch.zeros(4)), "noisy_classifier_loss: .*rule: integers"),
        (
            lambda: guidance.ClassifierGuided(EXACT, CondOT(), classifier_of(TWO), ONE, math.nan),
            "ClassifierGuided: received guidance weight w=nan; rule: finite",
        ),
        (
            lambda: guidance.ClassifierGuided(EXACT, CondOT(), classifier_of(TWO), ONE, 1.0, earliest=0.0),
            "earliest=0.0; rule",
        ),
        (
            lambda: guidance.ClassifierGuided(EXACT, CondOT(), classifier_of(TWO), torch.tensor(2), 1.0)(*AT),
            "label_log_prob: received labels from 2 to 2",
        ),
        (
            lambda: guidance.ClassifierGuided(EXACT, CondOT(), lambda t, x, y: x, ONE, 1.0)(*AT),
            r"log-probabilities \(3, 1\) for x \(3, 1\); rule: one for each row",
        ),
        (
            lambda: guidance.ClassifierGuided(lambda t, x: x[:2], CondOT(), classifier_of(TWO), ONE, 1.0)(*AT),
            r"returns \(2, 1\) for x \(3, 1\); rule",
        ),
        (
            lambda: guidance.LabeledMixture(TWO.mixture, torch.tensor([0, 2])),
            r"labels \[0, 2\] .*rule: .*without a gap",
        ),
        (lambda: guidance.LabeledMixture(TWO.mixture, torch.tensor([0])), r"labels \[0\] for 2 components; rule"),
        (lambda: guidance.TiltedDensity(TWO, 0, -1.0), "w=-1.0; rule: w ≥ 0"),
        (lambda: guidance.TiltedDensity(TWO, 0, math.nan), "w=nan; rule: finite"),
        (lambda: guidance.TiltedDensity(TWO, 2, 1.0), "label 2; rule: from 0 to 1"),
        (
            lambda: guidance.TiltedDensity(TWO, 0, 1.0).marginal_score(CondOT(), f64([0.1, 0.5, 0.9]), AT[1]),
            r"TiltedDensity.marginal_score: received t of shape \(3,\); rule: one time",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
