"""Variational auto-encoders: each equation of chapter 05 against a fact that does not use it, each mistake refuted."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from companion.data import GaussianMixture
from companion.device import generator, randn, seeded
from companion.methods import vae
from companion.nn import MLP
from companion.training import adam, fit

F64 = torch.float64


def f64(value):
    return torch.tensor(value, dtype=F64)


def normals(*shape, seed=0):
    return randn(*shape, generator=generator(seed), dtype=F64)


def hermite(n):
    """Nodes and weights with Σ w f(ε) = E f(ε), ε ~ N(0, 1): exact for polynomials of degree 2n − 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def curved(seed=0, *, likelihood=None, dim=1):
    """A small VAE with random weights whose decoder bends: points in the plane, `dim` latents, float64."""
    with seeded(generator(seed)):
        likelihood = likelihood or vae.GaussianLikelihood(math.log(0.3))
        model = vae.mlp_vae((2,), likelihood, dim=dim, width=8, depth=1, activation=nn.Tanh).double()
    with torch.no_grad():
        model.decoder[0][-1].weight.mul_(4)
    return model.requires_grad_(False)


POINTS = normals(3, 2, seed=1)
LINE = torch.linspace(-9, 9, 4001, dtype=F64)[:, None]
CELL = float(LINE[1, 0] - LINE[0, 0])


def mean_over_noise(value, *, nodes=60):
    """E over ε ~ N(0, 1) of a function of eps (n, 1) to (n, ...), by quadrature."""
    eps, weights = hermite(nodes)
    return torch.tensordot(weights, torch.stack([value(e.expand(len(POINTS), 1)) for e in eps]), dims=1)


def log_joint(model, x, z):
    """log p(x, z) for one x, from torch.distributions."""
    scale = torch.exp(0.5 * model.likelihood.log_variance)
    return Normal(model.decoder(z), scale).log_prob(x).sum(1) + Normal(0.0, 1.0).log_prob(z).sum(1)


def by_quadrature(model, x):
    """log p(x), the ELBO and KL(q ‖ posterior) of one datum, all by sums over a fine grid of the latent."""
    mean, log_variance = model.encode(x[None])
    log_q = Normal(mean, torch.exp(0.5 * log_variance)).log_prob(LINE)[:, 0]
    joint = log_joint(model, x, LINE)
    evidence = (joint.exp().sum() * CELL).log()
    bound = (log_q.exp() * (joint - log_q)).sum() * CELL
    gap = (log_q.exp() * (log_q - (joint - evidence))).sum() * CELL
    return evidence, bound, gap


# ---------------------------------------------------------------------- the bound


@pytest.mark.verifies("eq-elbo-jensen")
def test_importance_sampling_gives_the_evidence_and_the_mean_logarithm_stays_below():
    """Quadrature over the noise against quadrature over the latent: E w = p(x), and E log w is the ELBO below it."""
    model = curved()
    eps = torch.linspace(-20, 20, 4001, dtype=F64)
    log_mass = Normal(0.0, 1.0).log_prob(eps)[:, None] + math.log(0.01)
    log_w = vae.log_weights(model, POINTS, eps[:, None, None].expand(-1, 3, 1))
    evidence, bound, _ = map(torch.stack, zip(*(by_quadrature(model, x) for x in POINTS), strict=True))
    torch.testing.assert_close((log_mass.exp() * log_w).sum(0), bound)
    torch.testing.assert_close((log_mass + log_w).logsumexp(0), evidence)
    assert (bound < evidence - 0.01).all()


@pytest.mark.verifies("eq-elbo-jensen")
def test_the_two_parts_of_the_bound_add_up_to_the_mean_log_weight():
    """Quadrature over the latent, where divergence and reconstruction are not separated."""
    model = curved()
    value = mean_over_noise(lambda eps: vae.elbo(model, POINTS, eps).value)
    torch.testing.assert_close(value, torch.stack([by_quadrature(model, x)[1] for x in POINTS]))


@pytest.mark.verifies("eq-elbo-gap")
def test_what_the_bound_lacks_is_the_divergence_from_the_posterior():
    """The divergence from the normalized posterior on a grid, added to the bound by quadrature over the noise."""
    for seed in (0, 1):
        model = curved(seed)
        value = mean_over_noise(lambda eps, model=model: vae.elbo(model, POINTS, eps).value)
        for x, bound in zip(POINTS, value, strict=True):
            evidence, _, gap = by_quadrature(model, x)
            torch.testing.assert_close(bound + gap, evidence)
            assert gap > 0.01


def test_quadrature_on_a_grid_gives_evidence_and_posterior():
    """Adaptive quadrature of scipy for the evidence; the posterior integrates to one."""
    from scipy.integrate import quad

    model = curved()
    found = vae.on_grid(model, POINTS, LINE, cell=CELL)
    for x, evidence in zip(POINTS, found.log_evidence, strict=True):
        exact, _ = quad(lambda z, x=x: log_joint(model, x, f64([[z]])).exp().item(), -9, 9, limit=200)
        assert abs(evidence - math.log(exact)) < 1e-6
    torch.testing.assert_close(found.log_posterior.exp().sum(1) * CELL, torch.ones(3, dtype=F64))


def test_a_grid_of_two_latents_and_images_works_too():
    """Importance sampling with many draws, within five standard errors (false alarm 6e-7 each)."""
    with seeded(generator(0)):
        model = vae.mlp_vae((1, 2, 2), vae.BernoulliLikelihood(), dim=2, width=8).double().requires_grad_(False)
    x = torch.bernoulli(torch.full((2, 1, 2, 2), 0.5, dtype=F64), generator=generator(1))
    axis = torch.linspace(-6, 6, 121, dtype=F64)
    evidence = vae.on_grid(model, x, torch.cartesian_prod(axis, axis), cell=0.01).log_evidence
    weights = vae.log_weights(model, x, normals(5000, 2, 2)).exp()
    assert ((weights.mean(0) - evidence.exp()).abs() < 5 * weights.std(0) / 5000**0.5).all()


def test_beta_weighs_the_divergence_and_nothing_else():
    model, eps = curved(), normals(3, 1)
    one, four = vae.elbo(model, POINTS, eps), vae.elbo(model, POINTS, eps, beta=4.0)
    torch.testing.assert_close(four.value, one.value - 3 * one.kl)
    torch.testing.assert_close((four.reconstruction, four.kl), (one.reconstruction, one.kl))


@pytest.mark.verifies("eq-iwae")
def test_the_importance_weighted_bound_rises_with_k():
    """Exact expectations for k = 1, 2 and 3 by products of quadrature rules, all below the evidence."""
    model, (eps, weights) = curved(), hermite(24)
    bounds = []
    for k in (1, 2, 3):
        nodes = torch.cartesian_prod(*[eps] * k).reshape(-1, k)
        mass = torch.cartesian_prod(*[weights] * k).reshape(-1, k).prod(1)
        x = POINTS[:1].expand(len(nodes), 2)
        bounds.append((mass * vae.iwae_bound(model, x, nodes.T[..., None])).sum())
    evidence, bound, _ = by_quadrature(model, POINTS[0])
    torch.testing.assert_close(bounds[0], bound, atol=1e-4, rtol=0)
    assert bounds[0] + 0.01 < bounds[1] < bounds[2] - 0.002 < evidence


@pytest.mark.verifies("eq-iwae")
def test_with_many_draws_the_bound_reaches_the_evidence():
    """log p(x) by quadrature, within five standard errors of the mean weight (false alarm 6e-7 each)."""
    model, k = curved(), 200_000
    eps = normals(k, 3, 1)
    bound = vae.iwae_bound(model, POINTS, eps)
    error = vae.log_weights(model, POINTS, eps).exp().std(0) / k**0.5
    for x, found, e in zip(POINTS, bound, error, strict=True):
        evidence = by_quadrature(model, x)[0]
        assert abs(found.exp() - evidence.exp()) < 5 * e
        assert e < 0.01 * evidence.exp()


# ---------------------------------------------------------------------- the divergence


@pytest.mark.verifies("eq-gaussian-kl")
def test_the_divergence_is_that_of_torch_and_of_quadrature():
    """torch.distributions.kl_divergence, and E[log q − log p] by Gauss–Hermite quadrature."""
    mean, log_variance = normals(5, 3), normals(5, 3, seed=1)
    q = Normal(mean, torch.exp(0.5 * log_variance))
    ours = vae.gaussian_kl(mean, log_variance)
    torch.testing.assert_close(ours, kl_divergence(q, Normal(0.0 * mean, 1.0)).sum(1))
    eps, weights = hermite(5)
    z = q.loc + q.scale * eps[:, None, None]
    differences = q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    torch.testing.assert_close(ours, torch.tensordot(weights, differences, dims=1).sum(1))


def test_the_divergence_from_any_diagonal_gaussian_is_that_of_torch():
    """torch.distributions.kl_divergence, coordinate by coordinate."""
    m, v, a, b = normals(4, 5, 3)
    theirs = kl_divergence(Normal(m, torch.exp(v / 2)), Normal(a, torch.exp(b / 2)))
    torch.testing.assert_close(vae.gaussian_kl_terms(m, v, a, b), theirs)
    torch.testing.assert_close(
        vae.gaussian_kl_terms(m, v, a), kl_divergence(Normal(m, torch.exp(v / 2)), Normal(a, 1.0 + 0 * a))
    )


def test_the_divergence_keeps_its_digits_near_the_prior():
    """A Taylor series: ½ · ℓ²/2 for a tiny ℓ, in float32, where e^ℓ − 1 − ℓ loses every digit."""
    tiny = torch.full((1, 1), 1e-3)
    assert abs(vae.gaussian_kl(0 * tiny, tiny).item() / (tiny.item() ** 2 / 4 + tiny.item() ** 3 / 12) - 1) < 1e-3


@pytest.mark.refutes("E4")
def test_the_symbol_in_the_divergence_is_the_log_variance():
    """A divergence is 0 for equal distributions and positive else: read with the standard deviation, it is neither."""

    def circulating(mu, sigma):
        return 0.5 * (sigma.exp() - 1 - sigma + mu**2)

    mu, std = f64([0.0, 0.0, 1.0]), f64([1.0, 0.5, 2.0])
    truth = kl_divergence(Normal(mu, std), Normal(0 * mu, 1.0))
    assert truth[0] == 0
    assert circulating(mu, std)[0] > 0.3  # not 0 at the prior itself
    grid = torch.linspace(0.01, 3, 300, dtype=F64)
    assert grid[circulating(0 * grid, grid).argmin()] < 0.02  # it would drive every standard deviation to 0
    torch.testing.assert_close(circulating(mu, 2 * std.log()), truth)
    torch.testing.assert_close(vae.gaussian_kl(mu[:, None], 2 * std.log()[:, None]), truth)


# ---------------------------------------------------------------------- gradients of an expectation


@pytest.mark.verifies("eq-reparameterization")
def test_reparameterized_draws_have_the_mean_and_variance_asked_for():
    """Moments of 200,000 draws, within four standard errors (false alarm 6e-5 each)."""
    n, mean, log_variance = 200_000, f64([[1.5, -2.0]]), f64([[0.4, -1.2]])
    z = vae.reparameterize(mean, log_variance, normals(n, 1, 2))[:, 0]
    std = torch.exp(0.5 * log_variance[0])
    assert ((z.mean(0) - mean[0]).abs() < 4 * std / n**0.5).all()
    assert ((z.std(0) / std - 1).abs() < 4 / (2 * n) ** 0.5).all()


MU, LOG_VAR = f64([0.7, -0.3]), f64([-0.5, 0.6])


@pytest.mark.verifies("eq-reparameterization", "eq-score-function-gradient")
def test_both_gradients_have_the_mean_that_the_exact_expectation_demands():
    """E[z_1² + sin z_2] = μ_1² + σ_1² + sin(μ_2) e^{−σ_2²/2}, differentiated by autograd; five standard errors."""
    n = 200_000
    mu, log_variance = MU.clone().requires_grad_(), LOG_VAR.clone().requires_grad_()
    variance = log_variance.exp()
    (mu[0] ** 2 + variance[0] + mu[1].sin() * torch.exp(-variance[1] / 2)).backward()

    def f(z):
        return z[:, 0] ** 2 + z[:, 1].sin()

    eps = normals(n, 2)
    for found in (
        vae.reparameterized_gradient(f, MU, LOG_VAR, eps),
        vae.score_function_gradient(f, MU, LOG_VAR, eps),
        vae.score_function_gradient(f, MU, LOG_VAR, eps, baseline=1.0),
    ):
        for samples, exact in ((found.mean, mu.grad), (found.log_variance, log_variance.grad)):
            assert ((samples.mean(0) - exact).abs() < 5 * samples.std(0) / n**0.5).all()  # false alarm 6e-7 each


@pytest.mark.verifies("eq-score-function-gradient")
def test_the_score_function_needs_no_derivative_of_what_it_averages():
    """A step: E 1[z > 0] = Φ(μ/σ), whose derivative in μ is the normal density; five standard errors."""
    n, mu, log_variance = 200_000, f64([0.3]), f64([0.8])

    def step(z):
        return (z[:, 0] > 0).double()

    found = vae.score_function_gradient(step, mu, log_variance, normals(n, 1))
    exact = Normal(0.0, torch.exp(0.5 * log_variance)).log_prob(mu).exp()
    assert abs(found.mean.mean() - exact) < 5 * found.mean.std() / n**0.5
    std = torch.exp(0.5 * log_variance)
    exact = -mu / (2 * std) * Normal(0.0, 1.0).log_prob(mu / std).exp()
    assert abs(found.log_variance.mean() - exact) < 5 * found.log_variance.std() / n**0.5


@pytest.mark.verifies("eq-score-function-gradient", "eq-reparameterization")
def test_going_through_the_draw_has_the_smaller_variance():
    """Moments of the normal: for f = |z|² at μ = σ = 1 the variances are 30 and 4; they part with the dimension."""

    def square(z):
        return z.square().sum(1)

    def ratio(dim, **options):
        mu, log_variance, eps = torch.ones(dim).double(), torch.zeros(dim).double(), normals(200_000, dim)
        score = vae.score_function_gradient(square, mu, log_variance, eps, **options)
        return score.mean[:, 0].var() / vae.reparameterized_gradient(square, mu, log_variance, eps).mean[:, 0].var()

    assert abs(ratio(1) - 7.5) < 0.4
    # ten coordinates: nine squares, of mean 18 and variance 54 together, multiply the score of the first one as well
    assert abs(ratio(10) / ((54 + 18**2 + 2 * 18 * 4 + 30) / 4) - 1) < 0.05
    assert ratio(10, baseline=20.0) < 0.3 * ratio(10)


# ---------------------------------------------------------------------- likelihoods


@pytest.mark.verifies("eq-gaussian-decoder")
def test_the_gaussian_decoder_is_a_normal_density():
    """torch.distributions.Normal, with one log-variance, one a pixel; and a sum over a fine grid is one."""
    x, mean = normals(2, 4, 1, 3, 3)
    for log_variance in (f64(-1.0), normals(1, 3, 3, seed=2)):
        theirs = Normal(mean, torch.exp(0.5 * log_variance)).log_prob(x).sum((1, 2, 3))
        torch.testing.assert_close(vae.GaussianLikelihood(log_variance).log_prob(x, mean), theirs)
    grid = torch.linspace(-20, 20, 20_001, dtype=F64)[:, None]
    mass = vae.GaussianLikelihood(1.0).double().log_prob(grid, 0.3 + 0 * grid).exp().sum() * 0.002
    assert abs(mass - 1) < 1e-6


@pytest.mark.verifies("eq-bernoulli-decoder")
def test_the_bernoulli_decoder_is_a_probability_of_binary_images():
    """torch.distributions.Bernoulli; and all sixteen images of four pixels have the probabilities' sum one."""
    images = f64(list(itertools.product((0.0, 1.0), repeat=4)))
    logits = normals(1, 4).expand(16, 4)
    ours = vae.BernoulliLikelihood().log_prob(images, logits)
    torch.testing.assert_close(ours, Bernoulli(logits=logits).log_prob(images).sum(1))
    torch.testing.assert_close(ours.exp().sum(), f64(1.0))


def test_for_gray_values_the_bernoulli_decoder_gives_a_mean_over_coin_flips():
    """The mean of log p(b|z) over all binary images b, each with the probability that the gray values give it."""
    gray, logits = torch.rand(1, 4, generator=generator(0), dtype=F64), normals(1, 4)
    images = f64(list(itertools.product((0.0, 1.0), repeat=4)))
    chance = Bernoulli(gray).log_prob(images).sum(1).exp()
    mean = (chance * Bernoulli(logits=logits).log_prob(images).sum(1)).sum()
    torch.testing.assert_close(vae.BernoulliLikelihood().log_prob(gray, logits)[0], mean)


@pytest.mark.verifies("eq-optimal-decoder-variance")
def test_the_best_decoder_variance_is_the_mean_squared_error():
    """Newton's condition by autograd, a scan of other variances, and the value −D/2 (log 2πe + s)."""
    x, mean = normals(2, 50, 1, 4, 4)
    best = vae.optimal_log_variance(x, mean).requires_grad_()
    slope = torch.autograd.grad(vae.gaussian_log_prob(x, mean, best).sum(), best)[0]
    assert abs(slope) < 1e-9
    scan = torch.linspace(-2, 4, 601, dtype=F64)
    values = torch.stack([vae.gaussian_log_prob(x, mean, s).mean() for s in scan])
    assert abs(scan[values.argmax()] - best) < 0.006
    torch.testing.assert_close(values.max(), -8 * (math.log(2 * math.pi) + 1 + best.detach()), atol=1e-3, rtol=0)


def test_a_learned_variance_finds_the_mean_squared_error():
    """Training the one number alone, against the closed form."""
    x, mean = normals(2, 40, 6)
    likelihood = vae.GaussianLikelihood.learned(1.0).double()
    optimizer = torch.optim.LBFGS(likelihood.parameters(), max_iter=50, tolerance_change=1e-14, tolerance_grad=1e-10)

    def loss():
        optimizer.zero_grad()
        value = -likelihood.log_prob(x, mean).mean()
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(likelihood.log_variance.detach(), vae.optimal_log_variance(x, mean))
    assert likelihood.log_variance.shape == ()
    assert vae.GaussianLikelihood.learned(0.0, shape=(1, 8, 8)).log_variance.shape == (1, 8, 8)


@pytest.mark.parametrize("likelihood", [vae.GaussianLikelihood(math.log(0.25)), vae.BernoulliLikelihood()])
def test_likelihoods_draw_what_they_claim(likelihood):
    """Mean and variance of 100,000 draws, within four standard errors (false alarm 1e-4)."""
    n, parameters = 100_000, torch.full((100_000, 1), 0.4)
    x = likelihood.sample(parameters, generator=generator(0))
    mean = likelihood.mean(parameters[:1]).item()
    variance = mean * (1 - mean) if isinstance(likelihood, vae.BernoulliLikelihood) else 0.25
    assert abs(x.mean() - mean) < 4 * (variance / n) ** 0.5
    assert abs(x.var() - variance) < 4 * variance * (2 / n) ** 0.5


# ---------------------------------------------------------------------- the scale of the squared error


def ellipsoid(variances, n=4000, seed=0):
    """Points whose covariance is exactly the rotated diagonal of `variances`, around a center."""
    d = len(variances)
    x = normals(n, d, seed=seed)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky((x - x.mean(0)).T.cov(correction=0))).T
    q = torch.linalg.qr(normals(d, d, seed=seed + 1)).Q
    return x * f64(variances).sqrt() @ q.T + normals(1, d, seed=seed + 2)


def trained_linear(x, dim, loss_of):
    """A linear VAE at the minimum of `loss_of(squared error, divergence)`, expectations in closed form.

    Gives its decoder's W and what each latent adds to the divergence, in the mean over x.
    """
    center = x - x.mean(0)
    with seeded(generator(3)):
        w, a = nn.Parameter(normals(x.shape[1], dim)), nn.Parameter(normals(dim, x.shape[1], seed=1) / 4)
        s = nn.Parameter(torch.zeros(dim, dtype=F64))
    optimizer = torch.optim.LBFGS([w, a, s], max_iter=2000, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        mean = center @ a.T
        error = (center - mean @ w.T).square().sum(1) + (w.square().sum(0) * s.exp()).sum()
        divergence = kl_divergence(Normal(mean, torch.exp(s / 2)), Normal(0.0 * mean, 1.0)).sum(1)
        value = loss_of(error, divergence).mean()
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        mean = center @ a.T
        return w, kl_divergence(Normal(mean, torch.exp(s / 2)), Normal(0.0 * mean, 1.0)).mean(0)


@pytest.mark.refutes("E5")
def test_squared_error_plus_divergence_is_maximum_likelihood_for_one_variance_only():
    """A linear VAE trained on 'squared error + KL': its model is the one of variance ½, whatever the data."""
    for noise, fits in ((0.5, True), (0.05, False)):
        x = ellipsoid([4.0, 2.0, noise, noise, noise])
        w, _ = trained_linear(x, 2, lambda error, divergence: error + divergence)
        best = vae.LinearGaussian.fit(x, 2)
        as_trained = vae.LinearGaussian(w, x.mean(0), f64(0.5))
        loss = best.log_prob(x).mean() - as_trained.log_prob(x).mean()
        assert abs(best.variance - noise) < 1e-9
        assert loss < 1e-6 if fits else loss > 1.5  # nats for each datum
        # even with the best variance for its decoder, it misses the principal variances by ½ − noise
        top = torch.linalg.eigvalsh(w @ w.T)[-2:]
        torch.testing.assert_close(top, f64([1.5, 3.5]), atol=1e-4, rtol=0)


@pytest.mark.refutes("E5")
def test_the_decoder_variance_decides_which_latents_survive():
    """Mean squared error, summed squared error and ½ of it on the same data: 0, 1 and 2 latents are alive."""
    x = ellipsoid([0.9, 0.4, 0.1, 0.1])

    def alive(loss_of):
        return int((torch.linalg.svdvals(trained_linear(x, 2, loss_of)[0]) > 0.01).sum())

    assert alive(lambda error, divergence: error / 4 + divergence) == 0  # a mean over 4 coordinates: variance 2
    assert alive(lambda error, divergence: error + divergence) == 1  # variance ½
    assert alive(lambda error, divergence: error / (2 * 0.1) + divergence) == 2  # the data's noise


# ---------------------------------------------------------------------- the linear VAE


TILTED = vae.LinearGaussian(f64([[1.5, 1.2], [0.0, 1.0], [-0.7, 0.4]]), f64([1.0, -1.0, 0.5]), f64(0.4))
SQUARE = vae.LinearGaussian(f64([[1.5, 0.0], [0.0, 1.0], [0.0, 0.0]]), f64([1.0, -1.0, 0.5]), f64(0.4))


@pytest.mark.verifies("eq-ppca-evidence")
def test_the_evidence_is_the_density_of_what_the_model_samples():
    """Moments of 400,000 draws made through z (four standard errors), and MultivariateNormal with these moments."""
    n = 400_000
    x = TILTED.sample(n, generator=generator(0))
    covariance = TILTED.weight @ TILTED.weight.T + TILTED.variance * torch.eye(3).double()
    diagonal = covariance.diagonal()
    error = 4 * ((covariance.square() + diagonal * diagonal[:, None]) / n).sqrt()
    assert ((x.T.cov() - covariance).abs() < error).all()  # false alarm 4e-4
    assert ((x.mean(0) - TILTED.bias).abs() < 4 * (diagonal / n).sqrt()).all()
    points = normals(5, 3)
    theirs = MultivariateNormal(TILTED.bias, covariance).log_prob(points)
    torch.testing.assert_close(TILTED.log_prob(points), theirs)


@pytest.mark.verifies("eq-ppca-posterior")
def test_the_posterior_is_the_joint_density_over_the_evidence():
    """Bayes' rule at random latents: log p(x|z) + log p(z) − log p(x), from torch.distributions."""
    x, z = normals(6, 3), normals(6, 2, seed=1)
    mean, covariance = TILTED.posterior(x)
    likelihood = Normal(z @ TILTED.weight.T + TILTED.bias, TILTED.variance.sqrt()).log_prob(x).sum(1)
    evidence = MultivariateNormal(
        TILTED.bias, TILTED.weight @ TILTED.weight.T + TILTED.variance * torch.eye(3).double()
    ).log_prob(x)
    bayes = likelihood + Normal(0.0, 1.0).log_prob(z).sum(1) - evidence
    torch.testing.assert_close(MultivariateNormal(mean, covariance).log_prob(z), bayes)


@pytest.mark.verifies("eq-elbo-gap", "eq-ppca-posterior")
def test_the_bound_meets_the_evidence_at_the_exact_posterior_only():
    """The gap of any Gaussian q is torch's divergence from the posterior: 0 at the posterior itself."""
    x = normals(5, 3)
    mean, covariance = TILTED.posterior(x)
    torch.testing.assert_close(TILTED.elbo(x, mean, covariance), TILTED.log_prob(x))
    other, wrong = normals(5, 2, seed=2), f64([[0.5, 0.2], [0.2, 0.3]])
    gap = kl_divergence(MultivariateNormal(other, wrong), MultivariateNormal(mean, covariance))
    torch.testing.assert_close(TILTED.log_prob(x) - TILTED.elbo(x, other, wrong), gap)


@pytest.mark.verifies("eq-elbo-gap", "eq-diagonal-gap")
def test_a_diagonal_encoder_meets_the_evidence_only_where_the_columns_are_orthogonal():
    """torch's divergence of the best diagonal Gaussian from the posterior; its neighbors do worse."""
    x = normals(5, 3)
    for model, meets in ((SQUARE, True), (TILTED, False)):
        mean, variances = model.diagonal_posterior(x)
        gap = model.log_prob(x) - model.elbo(x, mean, variances)
        q, p = MultivariateNormal(mean, torch.diag(variances)), MultivariateNormal(*model.posterior(x))
        torch.testing.assert_close(gap, kl_divergence(q, p), atol=1e-12, rtol=1e-6)
        torch.testing.assert_close(gap, model.diagonal_gap().expand(5), atol=1e-12, rtol=1e-6)
        assert gap.max() < 1e-12 if meets else gap.min() > 0.1
        for factor in (f64([0.9, 1.0]), f64([1.0, 1.1])):
            assert (model.elbo(x, mean, variances * factor) < model.elbo(x, mean, variances)).all()
            assert (model.elbo(x, mean + 0.01 * factor, variances) < model.elbo(x, mean, variances)).all()


@pytest.mark.verifies("eq-elbo-jensen", "eq-elbo-gap")
def test_the_sampled_bound_of_the_linear_vae_has_the_closed_form_as_its_mean():
    """Quadrature over the noise, exact for polynomials, through the networks of the general VAE."""
    eps, weights = hermite(3)
    nodes = torch.cartesian_prod(eps, eps)
    mass = torch.cartesian_prod(weights, weights).prod(1)
    x = normals(4, 3)
    for model in (SQUARE, TILTED):
        values = torch.stack([vae.elbo(model.to_vae(), x, node.expand(4, 2)).value for node in nodes])
        mean = (mass[:, None] * values).sum(0)
        torch.testing.assert_close(mean, model.log_prob(x) - model.diagonal_gap())
    # at the exact posterior every single draw gives the evidence: the weights do not depend on z
    log_w = vae.log_weights(SQUARE.to_vae(), x, normals(50, 4, 2))
    torch.testing.assert_close(log_w, SQUARE.log_prob(x).expand(50, 4))


def test_maximum_likelihood_is_stationary_and_best():
    """Autograd on the log-density of MultivariateNormal, and a climb by LBFGS from elsewhere to the same height."""
    x = ellipsoid([3.0, 1.5, 0.4, 0.2])

    def height(w, log_variance):
        covariance = w @ w.T + log_variance.exp() * torch.eye(4).double()
        return MultivariateNormal(x.mean(0), covariance).log_prob(x).mean()

    model = vae.LinearGaussian.fit(x, 2)
    w, s = model.weight.clone().requires_grad_(), model.variance.log().requires_grad_()
    top = height(w, s)
    assert max(g.abs().max() for g in torch.autograd.grad(top, [w, s])) < 1e-9
    torch.testing.assert_close(model.log_prob(x).mean(), top)
    w, s = normals(4, 2, seed=9).requires_grad_(), torch.zeros((), dtype=F64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, s], max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = -height(w, s)
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(height(w, s), top, atol=1e-6, rtol=0)


@pytest.mark.verifies("eq-water-level")
def test_beta_is_a_decoder_variance_in_disguise():
    """A linear β-VAE trained by LBFGS, its divergences from torch: variances stand out above the level βσ²."""
    x, variance, beta = ellipsoid([2.0, 0.8, 0.1, 0.1]), 0.2, 5.0
    w, kl = trained_linear(x, 2, lambda error, divergence: error / (2 * variance) + beta * divergence)
    closed = vae.LinearGaussian.fit(x, 2, variance=variance, beta=beta)
    torch.testing.assert_close(w @ w.T, closed.weight @ closed.weight.T, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.linalg.svdvals(w).square(), f64([1.0, 0.0]), atol=1e-4, rtol=0)  # 2 − 1, 0.8 < 1
    torch.testing.assert_close(kl.sort().values, f64([0.0, 0.5 * math.log(2.0)]), atol=1e-4, rtol=0)
    same = vae.LinearGaussian.fit(x, 2, variance=beta * variance)
    torch.testing.assert_close(same.weight, closed.weight)
    w, kl = trained_linear(x, 2, lambda error, divergence: error / (2 * variance) + divergence)  # β = 1: both stand out
    torch.testing.assert_close(torch.linalg.svdvals(w).square(), f64([1.8, 0.6]), atol=1e-4, rtol=0)
    exact = f64([0.5 * math.log(4.0), 0.5 * math.log(10.0)])
    torch.testing.assert_close(kl.sort().values, exact, atol=1e-3, rtol=0)


def test_the_fitted_weights_are_orthogonal_so_that_a_diagonal_encoder_is_enough():
    model = vae.LinearGaussian.fit(ellipsoid([3.0, 1.5, 0.4, 0.2]), 3)
    assert model.diagonal_gap() < 1e-12
    gram = model.weight.T @ model.weight
    assert (gram - torch.diag(gram.diagonal())).abs().max() < 1e-12


def test_a_small_variance_costs_the_evidence_no_digits():
    """MultivariateNormal in float64 against ours in float32, σ² = 1e-4."""
    x = TILTED.sample(4, generator=generator(0)) * 0.1
    ours = vae.LinearGaussian(TILTED.weight.float(), TILTED.bias.float(), torch.tensor(1e-4)).log_prob(x.float())
    covariance = TILTED.weight @ TILTED.weight.T + 1e-4 * torch.eye(3).double()
    theirs = MultivariateNormal(TILTED.bias, covariance).log_prob(x)
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-4, atol=0)


# ---------------------------------------------------------------------- two levels


class Affine(nn.Module):
    """(inputs) ↦ (A [inputs] + a, log-variance), for linear-Gaussian conditionals."""

    def __init__(self, matrix, shift, log_variance):
        super().__init__()
        self.matrix, self.shift, self.log_variance = matrix, shift, log_variance

    def forward(self, *inputs):
        mean = torch.cat(inputs, dim=1) @ self.matrix.T + self.shift
        return mean, self.log_variance.expand_as(mean)


B, Q, W, NOISE = f64([[0.9]]), 0.5, f64([[1.2], [-0.8]]), 0.3


def chain():
    """Covariance of (z_2, z_1, x) for z_2 ~ N(0, 1), z_1 | z_2 ~ N(B z_2, Q), x | z_1 ~ N(W z_1, NOISE I)."""
    lift = torch.cat([torch.eye(1).double(), B, W @ B])  # z_2's part in each
    own = torch.cat([f64([[0.0]]), f64([[1.0]]), W])  # the part of z_1's own noise
    last = torch.diag(f64([0.0, 0.0, NOISE, NOISE]))
    return lift @ lift.T + Q * own @ own.T + last


def conditional(covariance, of, given):
    """Matrix and variance of the Gaussian `of | given`."""
    c = covariance
    matrix = c[of][:, given] @ torch.linalg.inv(c[given][:, given])
    return matrix, c[of][:, of] - matrix @ c[given][:, of]


def two_levels(shift_1=0.0, shift_2=0.0, stretch=1.0):
    """The chain as a HierarchicalVAE whose inference is exact, or off by shifts and by a stretch of the variance."""
    covariance = chain()
    a_2, v_2 = conditional(covariance, [0], [2, 3])
    a_1, v_1 = conditional(covariance, [1], [2, 3, 0])
    decoder = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        decoder.weight.copy_(W)
    return vae.HierarchicalVAE(
        Affine(a_2, f64(shift_2), (stretch * v_2[0]).log()),
        Affine(a_1, f64(shift_1), v_1[0].log()),
        Affine(B, f64(0.0), f64([Q]).log()),
        decoder,
        vae.GaussianLikelihood(f64(NOISE).log()),
        dims=(1, 1),
    )


def hierarchical_mean(model, x):
    """The mean of the bound over both noises, by quadrature (exact: the bound is a polynomial in them)."""
    eps, weights = hermite(4)
    total = 0.0
    for (e_1, w_1), (e_2, w_2) in itertools.product(zip(eps, weights, strict=True), repeat=2):
        bound = vae.hierarchical_elbo(model, x, e_1.expand(len(x), 1), e_2.expand(len(x), 1))
        total = total + w_1 * w_2 * bound.value
    return total.detach()


@pytest.mark.verifies("eq-hierarchical-bound")
def test_on_a_linear_chain_the_bound_of_two_levels_meets_the_evidence():
    """MultivariateNormal with the covariance of the chain; inference from conditioning the joint Gaussian."""
    x = normals(4, 2)
    evidence = MultivariateNormal(torch.zeros(2).double(), chain()[2:, 2:]).log_prob(x)
    torch.testing.assert_close(hierarchical_mean(two_levels(), x), evidence)


@pytest.mark.verifies("eq-hierarchical-bound")
def test_with_wrong_inference_the_bound_of_two_levels_lacks_the_joint_divergence():
    """torch's divergence between the joint Gaussians of (z_2, z_1) given x, for shifted and stretched inference."""
    x, covariance = normals(4, 2), chain()
    evidence = MultivariateNormal(torch.zeros(2).double(), covariance[2:, 2:]).log_prob(x)
    a, posterior = conditional(covariance, [0, 1], [2, 3])
    a_1, v_1 = conditional(covariance, [1], [2, 3, 0])
    for shift_1, shift_2, stretch in ((0.3, 0.0, 1.0), (0.0, -0.4, 1.0), (0.2, 0.1, 2.0)):
        gap = evidence - hierarchical_mean(two_levels(shift_1, shift_2, stretch), x)
        variance_2, slope = stretch * posterior[0, 0], a_1[0, 2]
        joint = f64([[1.0, slope], [slope, slope**2]]) * variance_2 + torch.diag(torch.stack([0 * slope, v_1[0, 0]]))
        mean = x @ a.T + torch.stack([f64(shift_2), slope * shift_2 + shift_1])
        divergence = kl_divergence(MultivariateNormal(mean, joint), MultivariateNormal(x @ a.T, posterior))
        torch.testing.assert_close(gap, divergence)
        assert gap.min() > 0.01


def test_two_levels_are_sampled_from_the_top_down():
    """The covariance of the chain, 200,000 draws, four standard errors (false alarm 3e-4)."""
    n, exact = 200_000, chain()[2:, 2:]
    x = two_levels().sample(n, generator=generator(0))
    diagonal = exact.diagonal()
    error = 4 * ((exact.square() + diagonal * diagonal[:, None]) / n).sqrt()
    assert ((x.T.cov() - exact).abs() < error).all()
    z_2 = normals(5, 1)
    torch.testing.assert_close(two_levels()(z_2, 0 * z_2), z_2 @ B.T @ W.T)


def test_two_levels_of_networks_train():
    """Any networks fit in: one gradient step is possible for every weight."""
    with seeded(generator(0)):
        model = vae.HierarchicalVAE(
            vae.GaussianEncoder(MLP(3, 4, width=8)),
            _Both(MLP(5, 2, width=8)),
            vae.GaussianEncoder(MLP(2, 2, width=8)),
            MLP(1, 3, width=8),
            vae.GaussianLikelihood.learned(),
            dims=(1, 2),
        )
    x = randn(6, 3, generator=generator(1))
    bound = vae.hierarchical_elbo(model, x, x[:, :1], x[:, 1:])
    assert bound.value.shape == (6,)
    bound.value.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.sample(5, generator=generator(2)).shape == (5, 3)


class _Both(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.encoder = vae.GaussianEncoder(network)

    def forward(self, x, z):
        return self.encoder(torch.cat([x, z], dim=1))


# ---------------------------------------------------------------------- the model as a whole


def test_samples_of_the_model_follow_its_density():
    """The covariance of the linear VAE's evidence, 200,000 draws, four standard errors (false alarm 6e-4)."""
    n, model = 200_000, TILTED.to_vae()
    x = model.sample(n, generator=generator(0))
    exact = TILTED.weight @ TILTED.weight.T + TILTED.variance * torch.eye(3).double()
    diagonal = exact.diagonal()
    error = 4 * ((exact.square() + diagonal * diagonal[:, None]) / n).sqrt()
    assert ((x.T.cov() - exact).abs() < error).all()
    # without the decoder's noise the variance is too small by σ²
    means = model.sample_mean(n, generator=generator(0))
    assert ((means.T.cov() - (exact - 0.4 * torch.eye(3).double())).abs() < error).all()


def test_generation_does_not_need_the_encoder():
    model = curved()
    before = model.sample(7, generator=generator(0))
    model.encoder = nn.Identity()
    torch.testing.assert_close(model.sample(7, generator=generator(0)), before)
    assert before.shape == (7, 2)


def test_a_reconstruction_is_the_picture_of_the_mean():
    model = TILTED.to_vae()
    x = normals(4, 3)
    torch.testing.assert_close(model.reconstruct(x), TILTED.posterior(x)[0] @ TILTED.weight.T + TILTED.bias)


def test_a_trained_linear_vae_reaches_the_evidence_of_principal_components():
    """The highest evidence in closed form: 400 Adam steps on the sampled bound come within 0.02 nats of it."""
    x = ellipsoid([3.0, 1.5, 0.2, 0.2], n=1000).float()
    with seeded(generator(0)):
        encoder = vae.GaussianEncoder(nn.Linear(4, 4))
        model = vae.VAE(encoder, nn.Linear(2, 4), vae.GaussianLikelihood.learned(), dim=2)
    g = generator(1)

    def loss(model, x):
        return -vae.elbo(model, x, randn(len(x), 2, generator=g)).value.mean()

    optimizer = adam(model, 3e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in fit(model, loss, [x], steps=400, optimizer=optimizer, schedule=schedule):
        pass
    best = vae.LinearGaussian.fit(x.double(), 2).log_prob(x.double()).mean()
    with torch.no_grad():
        reached = vae.iwae_bound(model, x, randn(20, 1000, 2, generator=g)).mean()
    assert abs(reached - best) < 0.02


def test_another_prior_is_paid_for_by_the_draw():
    """A mixture of one component, N(0, I): its sampled divergence has the closed form as its mean (quadrature)."""
    model = curved()
    exact = vae.elbo(model, POINTS, torch.zeros(3, 1).double()).kl
    model.prior = GaussianMixture(torch.zeros(1, 1).double(), torch.ones(1, 1, 1).double())
    sampled = mean_over_noise(lambda eps: vae.elbo(model, POINTS, eps).kl, nodes=4)
    torch.testing.assert_close(sampled, exact)
    # and the weights use it: log w = reconstruction − (sampled divergence)
    eps = normals(1, 3, 1)
    torch.testing.assert_close(vae.log_weights(model, POINTS, eps)[0], vae.elbo(model, POINTS, eps[0]).value)


def test_a_fitted_prior_has_the_moments_of_the_latents_that_are_used():
    """One component: EM's mean and covariance are those of the aggregate posterior, E μμᵀ + E diag σ²."""
    x = TILTED.sample(3000, generator=generator(0)) * 1.5  # not the model's own data: q(z) is not N(0, I)
    model = TILTED.to_vae()
    prior = vae.mixture_prior(model, x, components=1, draws=20, generator=generator(1))
    mean, log_variance = model.encode(x)
    exact = mean.T.cov(correction=0) + torch.diag(log_variance.exp().mean(0))
    torch.testing.assert_close(prior.covariances[0], exact.detach(), atol=0.03, rtol=0)
    torch.testing.assert_close(prior.means[0], mean.mean(0).detach(), atol=0.02, rtol=0)
    before = vae.iwae_bound(model, x, normals(20, 3000, 2)).mean()
    model.prior = prior
    assert vae.iwae_bound(model, x, normals(20, 3000, 2)).mean() > before + 0.05
    assert model.sample(5, generator=generator(2)).dtype == F64


# ---------------------------------------------------------------------- all data together

MEANS, LOG_VARS = f64([[-1.2], [0.3], [1.0]]), f64([[-1.0], [-2.0], [-0.3]])  # q(z|x_i) of three data


@pytest.mark.verifies("eq-kl-split")
def test_the_mean_divergence_splits_into_information_and_the_prior_s_fault():
    """Quadrature over z for both parts on the right, with the mixture q(z) from torch; the closed form on the left."""
    each = Normal(MEANS, torch.exp(LOG_VARS / 2)).log_prob(LINE.T)
    mixture = each.logsumexp(0) - math.log(3)
    information = (each.exp() * (each - mixture)).sum(1).mean() * CELL
    fault = (mixture.exp() * (mixture - Normal(0.0, 1.0).log_prob(LINE[:, 0]))).sum() * CELL
    torch.testing.assert_close(vae.gaussian_kl(MEANS, LOG_VARS).mean(), information + fault)
    assert 0 < information < math.log(3)  # three data cannot tell more
    assert fault > 0.01


@pytest.mark.verifies("eq-painted-mean")
def test_the_best_decoder_paints_the_mean_of_the_data_that_come_by():
    """Counting: of three million draws of z, the data whose draw fell near z_0 have this mean (false alarm 6e-5 each);
    and a free decoder on a grid, trained by LBFGS on the reconstruction term, paints the same."""
    images, n = f64([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]), 3_000_000
    who = torch.randint(3, (n,), generator=generator(0))
    z = vae.reparameterize(MEANS[who], LOG_VARS[who], normals(n, 1))[:, 0]

    def painted(z):
        weights = Normal(MEANS, torch.exp(LOG_VARS / 2)).log_prob(z).softmax(0)
        return weights.T @ images

    for place in (-1.0, 0.0, 0.7):
        near = images[who[(z - place).abs() < 0.01]]
        error = 4 * near.std(0) / len(near) ** 0.5
        assert ((near.mean(0) - painted(f64([place]))[0]).abs() < error + 1e-3).all()
    grid = torch.linspace(-2, 2, 21, dtype=F64)
    mass = Normal(MEANS, torch.exp(LOG_VARS / 2)).log_prob(grid).exp()
    decoder = torch.zeros(21, 2, dtype=F64, requires_grad=True)
    optimizer = torch.optim.LBFGS([decoder], max_iter=200, tolerance_change=1e-16, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        likelihood = vae.GaussianLikelihood(f64(-1.0))
        terms = [(m * likelihood.log_prob(x.expand(21, 2), decoder)).sum() for m, x in zip(mass, images, strict=True)]
        value = -torch.stack(terms).sum()
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(decoder.detach(), painted(grid), atol=1e-4, rtol=0)


# ---------------------------------------------------------------------- collapse


def test_a_latent_that_the_data_do_not_move_is_found():
    """The linear VAE of two living directions and one below the decoder's variance, where everything is known."""
    x = ellipsoid([2.0, 1.0, 0.3, 0.3])
    model = vae.LinearGaussian.fit(x, 3, variance=0.5)
    found = vae.active_units(model.to_vae(), x)
    assert found.active.tolist() == [True, True, False]
    # z_j's mean has the variance 1 − σ²/λ_j, and the rest of its unit variance is q's own
    torch.testing.assert_close(found.variance[:2], 1 - 0.5 / f64([2.0, 1.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.kl, f64([0.5 * math.log(4), 0.5 * math.log(2), 0.0]), atol=1e-6, rtol=0)


def train_small(x, dim, *, likelihood=None, floor=None, beta=lambda step: 1.0, steps=200, seed=0):
    with seeded(generator(seed)):
        likelihood = likelihood or vae.GaussianLikelihood(0.0)
        model = vae.mlp_vae(tuple(x.shape[1:]), likelihood, dim=dim, width=32, depth=1)
    g, step = generator(seed + 1), itertools.count()

    def loss(model, x):
        bound = vae.elbo(model, x, randn(len(x), dim, generator=g), beta=beta(next(step)))
        if floor is not None:
            return vae.free_bits(bound.kl_terms, floor=floor) - bound.reconstruction.mean()
        return -bound.value.mean()

    for _ in fit(model, loss, [x], steps=steps, optimizer=adam(model, 1e-2)):
        pass
    return model


def test_a_decoder_variance_that_is_too_large_collapses_the_latents_and_a_learned_one_does_not():
    """Data of variance 0.5 in two directions: with decoder variance 1 no latent pays, with a learned one both do."""
    x = ellipsoid([0.5, 0.5, 0.01], n=500).float()
    assert vae.active_units(train_small(x, 2), x).active.sum() == 0
    assert vae.active_units(train_small(x, 2, likelihood=vae.GaussianLikelihood.learned()), x).active.sum() == 2


def test_a_large_beta_collapses_the_latents_and_free_bits_keep_them_in_use():
    """The same data and decoder: β = 50 against the bound; with a floor each latent spends about the floor."""
    x = ellipsoid([0.5, 0.5, 0.01], n=500).float()
    tight = vae.GaussianLikelihood(math.log(0.02))
    assert vae.active_units(train_small(x, 2, likelihood=tight, beta=lambda step: 50.0), x).active.sum() == 0
    kept = vae.active_units(train_small(x, 2, floor=0.5), x)  # the variance 1 that collapsed above
    assert kept.active.all()
    assert ((kept.kl - 0.5).abs() < 0.15).all()


def test_free_bits_pull_only_above_the_floor():
    """By hand, and by the gradient: the mean of the first is below the floor, though one datum is above it."""
    terms = torch.tensor([[0.1, 2.0], [0.7, 4.0]], requires_grad=True)
    total = vae.free_bits(terms, floor=0.5)
    assert total.item() == pytest.approx(0.5 + 3.0)
    total.backward()
    assert terms.grad.tolist() == [[0.0, 0.5], [0.0, 0.5]]


def test_the_warm_up_rises_to_one_and_stays():
    assert [vae.kl_warmup(step, steps=4) for step in (0, 1, 4, 9)] == [0.0, 0.25, 1.0, 1.0]


# ---------------------------------------------------------------------- graphs


class _Bound(nn.Module):
    """The bound as a graph: noise is an input."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, eps):
        return vae.elbo(self.model, x, eps).value, vae.iwae_bound(self.model, x, eps[None])


def test_decoder_and_bound_can_be_exported():
    """torch.export's graphs give the numbers of the functions."""
    with seeded(generator(0)):
        model = vae.mlp_vae((1, 8, 8), vae.GaussianLikelihood(0.0), dim=2, width=16).eval()
    x, z = randn(3, 1, 8, 8, generator=generator(1)), randn(3, 2, generator=generator(2))
    for module, inputs in ((model, (z,)), (_Bound(model), (x, z))):
        graph = torch.export.export(module, inputs)
        torch.testing.assert_close(graph.module()(*inputs), module(*inputs))


# ---------------------------------------------------------------------- bad input


NAN, INF = float("nan"), float("inf")
GOOD = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("mean", "log_variance"),
    [
        (GOOD, torch.full((2, 3), -INF)),
        (GOOD, torch.full((2, 3), NAN)),
        (torch.full((2, 3), INF), GOOD),
        (GOOD, torch.zeros(2, 2)),
    ],
    ids=["zero variance", "NaN", "infinite mean", "shapes"],
)
def test_encoders_without_a_density_are_refused(mean, log_variance):
    with pytest.raises(ValueError, match=r"gaussian_kl: received .*; rule: .*"):
        vae.gaussian_kl(mean, log_variance)
    with pytest.raises(ValueError, match=r"reparameterize: received .*; rule: .*"):
        vae.reparameterize(mean, log_variance, GOOD)


def test_a_vae_whose_encoder_has_lost_its_variance_says_so():
    model = curved()
    with torch.no_grad():
        model.encoder.network[1][-1].bias[1] = -INF
    with pytest.raises(ValueError, match=r"variance of zero"):
        vae.elbo(model, POINTS, normals(3, 1))


@pytest.mark.parametrize("value", [NAN, INF])
def test_data_that_are_not_finite_are_refused(value):
    x = POINTS.clone()
    x[1, 0] = value
    two = two_levels()
    for call in (
        lambda: vae.elbo(curved(), x, normals(3, 1)),
        lambda: vae.iwae_bound(curved(), x, normals(4, 3, 1)),
        lambda: vae.active_units(curved(), x),
        lambda: vae.hierarchical_elbo(two, x, normals(3, 1), normals(3, 1)),
        lambda: vae.GaussianLikelihood(0.0).log_prob(x, x),
        lambda: vae.on_grid(curved(), x, LINE, cell=CELL),
    ):
        with pytest.raises(ValueError, match=r"received x with NaN or infinity; rule: every entry is finite"):
            call()


def test_noise_of_the_wrong_shape_is_refused():
    model = curved()
    for eps in (normals(3, 2), normals(2, 1), normals(4, 3, 1), normals(3)):
        with pytest.raises(ValueError, match=r"elbo: received eps .*; rule: \(batch, dim\)"):
            vae.elbo(model, POINTS, eps)
    with pytest.raises(ValueError, match=r"reparameterize: received eps .*; rule"):
        vae.reparameterize(GOOD, GOOD, torch.zeros(3, 2))
    for eps_1, eps_2 in ((normals(3, 2), normals(3, 1)), (normals(3, 1), normals(2, 1))):
        with pytest.raises(ValueError, match=r"hierarchical_elbo: received eps .*; rule: \(batch, dim\)"):
            vae.hierarchical_elbo(two_levels(), POINTS, eps_1, eps_2)
    with pytest.raises(ValueError, match=r"score_function_gradient: received eps .*; rule: \(n, dim\), n ≥ 1"):
        vae.score_function_gradient(torch.sum, MU, LOG_VAR, torch.zeros(0, 2, dtype=F64))


def test_fewer_than_one_draw_is_refused():
    with pytest.raises(ValueError, match=r"log_weights: received eps \(0, 3, 1\) .*; rule: .*k ≥ 1"):
        vae.iwae_bound(curved(), POINTS, torch.zeros(0, 3, 1, dtype=F64))


@pytest.mark.parametrize("beta", [-0.1, NAN, INF])
def test_a_beta_that_is_no_weight_is_refused(beta):
    with pytest.raises(ValueError, match=r"elbo: received beta=.*; rule: finite and not negative"):
        vae.elbo(curved(), POINTS, normals(3, 1), beta=beta)
    with pytest.raises(ValueError, match=r"free_bits: received floor=.*; rule"):
        vae.free_bits(GOOD, floor=beta)
    with pytest.raises(ValueError, match=r"LinearGaussian.fit: received beta=.*; rule"):
        vae.LinearGaussian.fit(POINTS, 1, variance=1.0, beta=beta)


@pytest.mark.parametrize("x", [torch.full((1, 2), -0.1), torch.full((1, 2), 1.01)])
def test_bernoulli_targets_outside_zero_and_one_are_refused(x):
    with pytest.raises(ValueError, match=r"BernoulliLikelihood: received x from .*; rule: in \[0, 1\]"):
        vae.BernoulliLikelihood().log_prob(x, torch.zeros(1, 2))


def test_other_input_without_a_meaning_is_refused():
    with pytest.raises(ValueError, match=r"GaussianLikelihood: received log_variance -inf; rule: finite"):
        vae.GaussianLikelihood(-INF)
    with pytest.raises(ValueError, match=r"GaussianLikelihood: received x .* and parameters .*; rule"):
        vae.GaussianLikelihood(0.0).log_prob(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"optimal_log_variance: received a squared error of 0; rule: positive"):
        vae.optimal_log_variance(GOOD, GOOD)
    with pytest.raises(ValueError, match=r"active_units: received 1 data; rule: at least two"):
        vae.active_units(curved(), POINTS[:1])
    with pytest.raises(ValueError, match=r"kl_warmup: received step=1, steps=0; rule"):
        vae.kl_warmup(1, steps=0)
    with pytest.raises(ValueError, match=r"mixture_prior: received components=0 .*; rule"):
        vae.mixture_prior(curved(), POINTS, components=0, generator=generator(0))
    with pytest.raises(ValueError, match=r"VAE: received a mean .* from the encoder; rule: \(batch, 2\)"):
        vae.VAE(curved().encoder, curved().decoder, vae.GaussianLikelihood(0.0), dim=2).encode(POINTS)


@pytest.mark.parametrize(
    ("weight", "bias", "variance"),
    [
        (torch.ones(3, 2), torch.zeros(2), torch.tensor(1.0)),
        (torch.ones(3, 2), torch.zeros(3), torch.tensor(0.0)),
        (torch.ones(3, 2), torch.zeros(3), torch.tensor(-1.0)),
        (torch.full((3, 2), NAN), torch.zeros(3), torch.tensor(1.0)),
        (torch.ones(3, 2), torch.zeros(3), torch.ones(3)),
    ],
    ids=["bias", "zero variance", "negative variance", "NaN", "shape of the variance"],
)
def test_a_linear_model_without_a_density_is_refused(weight, bias, variance):
    with pytest.raises((ValueError, TypeError), match=r"LinearGaussian"):
        vae.LinearGaussian(weight, bias, variance)


def test_a_linear_fit_without_a_maximum_is_refused():
    x = normals(10, 3)
    for bad, dim in ((x, 3), (x, 0), (x[:1], 1)):
        with pytest.raises(ValueError, match=r"LinearGaussian.fit: received x .*; rule"):
            vae.LinearGaussian.fit(bad, dim)
    flat = torch.cat([x[:, :1], 0 * x[:, 1:]], dim=1)  # on a line: the likelihood grows without bound as σ² → 0
    with pytest.raises(ValueError, match=r"LinearGaussian: received variance .*; rule: .*variance > 0"):
        vae.LinearGaussian.fit(flat, 1)
    with pytest.raises(ValueError, match=r"LinearGaussian.fit: received beta=2.0; rule: .* 1 where σ² is fitted"):
        vae.LinearGaussian.fit(x, 1, beta=2.0)
