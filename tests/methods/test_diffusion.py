"""Diffusion: each equation of chapter 10 against a fact that does not use it, each mistake refuted by a number."""

import functools
import inspect
import itertools
import math

import pytest
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from companion.data import Empirical, Gaussian, GaussianMixture, digits, eight_gaussians
from companion.device import generator, randn, seeded
from companion.methods import diffusion as ddpm
from companion.nn import UNet, VelocityMLP
from companion.numerics.schedules import (
    NoiseSchedule,
    cosine_schedule,
    data_from_noise,
    linear_schedule,
    velocity_from_noise,
)

F64 = torch.float64
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
LINEAR, COSINE = linear_schedule(), cosine_schedule()
SHORT = linear_schedule(200, first=5e-4, last=0.1)  # as noisy at the end as LINEAR, in 200 steps
RING = eight_gaussians(scale=2.5, std=0.3, dtype=F64)
SKEW = GaussianMixture(  # two unequal heaps on the line
    torch.tensor([[-1.0], [2.0]], dtype=F64),
    torch.tensor([[[0.2]], [[0.5]]], dtype=F64),
    torch.tensor([0.3, 0.7]).double(),
)
MEAN, STD = 1.5, 0.5
LINE = Gaussian(torch.tensor([MEAN], dtype=F64), torch.tensor([[STD**2]], dtype=F64))
both_variances = pytest.mark.parametrize("variance", ["posterior", "beta"])


def normals(*shape, seed=0):
    return randn(*shape, generator=generator(seed), dtype=F64)


def linear_model(schedule, mean, covariance):
    """E[ε | x_t] of Gaussian data, by linear regression of ε on x_t: Cov(ε, x_t) = √(1 − ᾱ) I."""
    bars = schedule.alpha_bar[:, None, None]
    total = bars * covariance + (1 - bars) * torch.eye(len(mean), dtype=F64)
    slopes = (1 - bars).sqrt() * torch.linalg.inv(total)

    def model(t, x):
        step = round(float(t) * schedule.steps)
        return (x - schedule.alpha_bar[step].sqrt() * mean) @ slopes[step]

    return model


LINE_MODEL = linear_model(LINEAR, LINE.means[0], LINE.covariances[0])


def on_the_flow(schedule, t, z):
    """Where the probability-flow ODE of LINE has the points that are z standard deviations from the mean, at step t."""
    left = schedule.alpha_bar[t]
    return left.sqrt() * MEAN + (left * STD**2 + 1 - left).sqrt() * z


def wavy_model(t, x):
    """A noise model that is wrong."""
    return torch.sin(2 * x) - 0.3 * t.reshape(-1, *[1] * (x.ndim - 1))


# ---------------------------------------------------------------------- adding noise


@pytest.mark.verifies("eq-forward-step")
@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_one_step_adds_its_variance_and_keeps_a_unit_variance(schedule):
    """The map is linear: what it makes of (1, 0) and of (0, 1) are its two coefficients, at every step."""
    one, zero, t = torch.ones(1000, 1, dtype=F64), torch.zeros(1000, 1, dtype=F64), torch.arange(1, 1001)
    of_state, of_noise = (
        ddpm.forward_step(schedule, t, one, zero)[:, 0],
        ddpm.forward_step(schedule, t, zero, one)[:, 0],
    )
    torch.testing.assert_close(of_noise.square(), schedule.beta)
    torch.testing.assert_close(of_state.square() + of_noise.square(), one[:, 0])
    assert (of_state > 0).all()


@pytest.mark.verifies("eq-one-shot", "eq-forward-step")
def test_many_steps_and_one_shot_draw_from_the_same_distribution():
    """Kolmogorov–Smirnov tests at t = 100, 500 and 999, six at level 1e-5 (false alarm 6e-5); another step fails."""
    n = 4000
    x, source = SKEW.sample(n, generator=generator(0)), generator(1)
    other = {100: 300, 500: 250, 999: 499}
    for t in range(1, 1000):
        x = ddpm.forward_step(LINEAR, t, x, randn(n, 1, generator=source, dtype=F64))
        if t not in other:
            continue
        x_0, eps = SKEW.sample(n, generator=generator(t)), normals(n, 1, seed=t + 1)
        one_shot, elsewhere = (LINEAR.add_noise(step, x_0, eps)[:, 0] for step in (t, other[t]))
        law = SKEW.noised(LINEAR.alpha_bar[t].sqrt(), (1 - LINEAR.alpha_bar[t]).sqrt())

        def cdf(points, law=law):
            parts = stats.norm.cdf(points[:, None], law.means[:, 0], law.covariances[:, 0, 0].sqrt())
            return parts @ law.weights.numpy()

        assert stats.ks_2samp(x[:, 0], one_shot).pvalue > 1e-5
        assert stats.kstest(x[:, 0].numpy(), cdf).pvalue > 1e-5
        assert stats.ks_2samp(x[:, 0], elsewhere).pvalue < 1e-5


def test_a_jump_is_the_steps_that_it_leaps_over():
    """Coefficients of the start and of the noise, over a loop of single steps."""
    signal, noise = torch.ones(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64)
    for t in range(301, 351):
        step = functools.partial(ddpm.forward_step, SHORT, t - 200)
        signal = step(signal, torch.zeros_like(signal))
        noise = (step(noise, torch.zeros_like(noise)).square() + SHORT.beta[t - 201]).sqrt()
    one, zero = torch.ones(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64)
    torch.testing.assert_close(ddpm.forward_jump(SHORT, 100, 150, one, zero), signal)
    torch.testing.assert_close(ddpm.forward_jump(SHORT, 100, 150, zero, one), noise)
    x, eps = normals(3, 2), normals(3, 2, seed=1)
    torch.testing.assert_close(ddpm.forward_jump(SHORT, 0, 77, x, eps), SHORT.add_noise(77, x, eps))
    torch.testing.assert_close(ddpm.forward_jump(SHORT, 76, 77, x, eps), ddpm.forward_step(SHORT, 77, x, eps))


@pytest.mark.verifies("eq-ddpm-posterior")
@pytest.mark.parametrize("t", [2, 50, 500, 1000])
def test_the_way_back_is_bayes_rule_when_the_data_are_known(t):
    """Prior times likelihood on a fine grid of x_{t−1}: its mean and its variance."""
    x_0, x_t = torch.tensor([[0.7]], dtype=F64), torch.tensor([[-0.4]], dtype=F64)
    mean, variance = ddpm.posterior(LINEAR, t, x_t, x_0)
    before, beta = LINEAR.alpha_bar[t - 1], LINEAR.beta[t - 1]
    grid = mean[0, 0] + torch.linspace(-12, 12, 20_001, dtype=F64) * beta.sqrt()
    prior = Normal(before.sqrt() * x_0[0, 0], (1 - before).sqrt()).log_prob(grid)
    weight = (prior + Normal((1 - beta).sqrt() * grid, beta.sqrt()).log_prob(x_t[0, 0])).softmax(0)
    grid_mean = (weight * grid).sum()
    torch.testing.assert_close(mean[0, 0], grid_mean, rtol=1e-8, atol=1e-8)
    assert variance == pytest.approx((weight * (grid - grid_mean).square()).sum().item(), rel=1e-6)


def test_the_last_way_back_is_the_data():
    x_0, x_t = normals(3, 2), normals(3, 2, seed=1)
    mean, variance = ddpm.posterior(LINEAR, 1, x_t, x_0)
    torch.testing.assert_close(mean, x_0)
    assert variance == 0


def test_rows_may_be_at_different_steps():
    x_0, x_t, eps, t = normals(3, 2), normals(3, 2, seed=1), normals(3, 2, seed=2), torch.tensor([1, 40, 200])
    calls = (
        lambda t, rows: ddpm.forward_step(SHORT, t, x_0[rows], eps[rows]),
        lambda t, rows: ddpm.posterior(SHORT, t, x_t[rows], x_0[rows])[0],
        lambda t, rows: ddpm.ancestral_step(SHORT, t, x_t[rows], x_0[rows], eps[rows], variance="beta", clip=1.0),
        lambda t, rows: ddpm.ddim_step(SHORT, t, t - 1, x_t[rows], x_0[rows], eta=0.5, eps=eps[rows]),
    )
    for call in calls:
        together = call(t, slice(None))
        for row, step in enumerate(t.tolist()):
            torch.testing.assert_close(together[row], call(step, slice(row, row + 1))[0])


# ---------------------------------------------------------------------- the loss


def test_the_loss_of_the_best_model_is_the_variance_that_the_state_leaves_to_the_noise():
    """Linear regression of ε on x_t: 1 − r², four standard errors (false alarm 6e-5); any shift costs its square."""
    n = 200_000
    x_0, eps = LINE.sample(n, generator=generator(0)), normals(n, 1, seed=1)
    for t in (20, 300):
        left, steps = LINEAR.alpha_bar[t].item(), torch.full((n,), t)
        best = ddpm.noise_prediction_loss(ddpm.exact_noise_model(LINE, LINEAR), LINEAR, x_0, steps, eps)
        unexplained = 1 - (1 - left) / (left * STD**2 + 1 - left)
        assert abs(best.mean() - unexplained) < 4 * best.std() / math.sqrt(n)
        exact = ddpm.exact_noise_model(LINE, LINEAR)
        shifted = ddpm.noise_prediction_loss(lambda t, x: exact(t, x) + 0.3, LINEAR, x_0, steps, eps)  # noqa: B023
        gain = shifted - best
        assert abs(gain.mean() - 0.3**2) < 4 * gain.std() / math.sqrt(n)


@pytest.mark.verifies("eq-noise-loss")
@both_variances
@pytest.mark.parametrize("t", [2, 3, 100, 199, 200])
def test_the_weighted_noise_error_is_the_divergence_of_two_gaussians(variance, t):
    """torch's divergence of the posterior given the data from the posterior given the prediction."""
    x_0, eps = normals(5, 3), normals(5, 3, seed=1)
    x_t = SHORT.add_noise(t, x_0, eps)
    noise = wavy_model(SHORT.time(t, x_t), x_t)
    truth, spread = ddpm.posterior(SHORT, t, x_t, x_0)
    guess, _ = ddpm.posterior(SHORT, t, x_t, data_from_noise(SHORT, t, x_t, noise))
    sigma = math.sqrt(spread if variance == "posterior" else SHORT.beta[t - 1])
    divergence = kl_divergence(Normal(truth, math.sqrt(spread)), Normal(guess, sigma)).sum(1)
    constant = 3 * kl_divergence(Normal(0.0, math.sqrt(spread)), Normal(0.0, sigma)).double()
    weight = ddpm.noise_loss_weight(SHORT, variance=variance)[t]
    weighted = weight * ddpm.noise_prediction_loss(wavy_model, SHORT, x_0, torch.full((5,), t), eps)
    torch.testing.assert_close(weighted + constant, divergence, rtol=1e-6, atol=1e-6)
    if variance == "posterior":
        assert constant == 0
    term = ddpm.step_term(wavy_model, SHORT, x_0, t, eps, variance=variance)
    torch.testing.assert_close(term, divergence, rtol=1e-6, atol=1e-6)


def test_the_weights_have_a_place_for_every_step_and_none_for_the_first_two():
    weights = ddpm.noise_loss_weight(LINEAR)
    assert weights.shape == (1001,)
    assert weights[:2].tolist() == [0, 0]
    ratio = LINEAR.log_snr().exp()
    torch.testing.assert_close(weights[2:], 0.5 * (ratio[1:-1] / ratio[2:] - 1), rtol=1e-8, atol=1e-12)


def test_the_loss_of_a_row_sums_over_the_coordinates_of_points_and_images():
    net, t = UNet(1, channels=(8, 8)), torch.tensor([3, 150])
    x_0, eps = randn(2, 2, 1, 8, 8, generator=generator(0))
    with torch.no_grad():
        net.conv_out.weight.normal_(generator=generator(1))
        got = ddpm.noise_prediction_loss(net, SHORT, x_0, t, eps)
        for row in range(2):
            x_t = SHORT.add_noise(int(t[row]), x_0[row : row + 1], eps[row : row + 1])
            error = eps[row] - net(t[row] / 200, x_t)[0]
            torch.testing.assert_close(got[row], error.square().sum(), rtol=1e-4, atol=1e-4)


def test_batches_give_each_row_its_own_step_from_one_to_the_last():
    """Chi-square of 64,000 steps in 200 bins (false alarm 1e-6), and no relation between the steps and the data."""
    stream = ddpm.batches(RING, SHORT, batch=640, generator=generator(0))
    rows = [next(stream) for _ in range(100)]
    x_0, t, eps = (torch.cat(parts) for parts in zip(*rows, strict=True))
    counts = t.bincount(minlength=201)
    assert counts[0] == 0
    assert len(counts) == 201
    assert stats.chisquare(counts[1:].numpy()).pvalue > 1e-6
    corner = x_0[:, 0] > 0
    assert abs(t[corner].double().mean() - t[~corner].double().mean()) < 4 * (200 / math.sqrt(12)) * 2 / math.sqrt(
        64_000
    )
    assert stats.kstest(eps.flatten().numpy(), "norm").pvalue > 1e-6
    again = next(ddpm.batches(RING, SHORT, batch=640, generator=generator(0)))
    assert all(torch.equal(a, b) for a, b in zip(rows[0], again, strict=True))


def test_batches_of_images_fit_the_loss():
    images = Empirical(digits("train").images)
    batch = next(ddpm.batches(images, COSINE, batch=4, generator=generator(0)))
    assert batch.eps.shape == batch.x_0.shape == (4, 1, 8, 8)
    loss = ddpm.noise_prediction_loss(lambda t, x: 0 * x, COSINE, *batch)
    torch.testing.assert_close(loss, batch.eps.square().sum((1, 2, 3)))


@pytest.mark.refutes("E24")
def test_one_time_for_each_of_many_images_beats_all_times_of_one_image():
    """The gradient of 200 network evaluations: same mean, but all times of one image have ten times the variance."""
    data, repetitions = eight_gaussians(scale=1.0, std=0.05), 100
    schedule = cosine_schedule(200)
    with seeded(generator(0)):
        net = VelocityMLP(2, width=32)
    parameters = list(net.parameters())
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    stream = ddpm.batches(data, schedule, batch=schedule.steps, generator=generator(1))
    for batch in itertools.islice(stream, 100):
        optimizer.zero_grad()
        ddpm.noise_prediction_loss(net, schedule, *batch).mean().backward()
        optimizer.step()

    def gradients(batches):
        losses = (ddpm.noise_prediction_loss(net, schedule, *batch).mean() for batch in batches)
        return torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]) for loss in losses])

    def inner_loop(source):
        while True:
            x_0, t = data.sample(1, generator=source).expand(schedule.steps, 2), torch.arange(schedule.steps, 0, -1)
            yield ddpm.Batch(x_0, t, randn(schedule.steps, 2, generator=source))

    right = gradients(itertools.islice(stream, repetitions))
    wrong = gradients(itertools.islice(inner_loop(generator(2)), repetitions))
    variances = right.var(0).sum(), wrong.var(0).sum()
    assert (right.mean(0) - wrong.mean(0)).square().sum() < 4 * sum(variances) / repetitions
    assert variances[1] > 10 * variances[0]


# ---------------------------------------------------------------------- networks that predict something else


def test_networks_that_predict_data_or_velocity_serve_as_noise_models():
    """The exact predictions of a mixture, told as data and as velocity, sample the same points as its noise."""
    exact = ddpm.exact_noise_model(RING, SHORT)

    def data(t, x):
        return data_from_noise(SHORT, SHORT.step(t), x, exact(t, x))

    def velocity(t, x):
        return velocity_from_noise(SHORT, SHORT.step(t), x, exact(t, x))

    x = normals(50, 2)
    want = ddpm.ddim_sample(exact, SHORT, x, steps=10)
    torch.testing.assert_close(ddpm.ddim_sample(ddpm.noise_model_from_data(data, SHORT), SHORT, x, steps=10), want)
    torch.testing.assert_close(
        ddpm.ddim_sample(ddpm.noise_model_from_velocity(velocity, SHORT), SHORT, x, steps=10), want
    )


def test_the_exact_model_of_a_mixture_is_its_score_for_points_and_images_at_one_or_many_steps():
    """Automatic differentiation of the log-density of the noised mixture."""
    means = torch.tensor([[0.5, -0.5, 0.2, 0.0], [-0.3, 0.4, 0.0, 0.1]], dtype=F64)
    heaps = GaussianMixture(means, 0.1 * torch.eye(4, dtype=F64).expand(2, 4, 4))
    model, x, t = ddpm.exact_noise_model(heaps, SHORT), normals(3, 1, 2, 2), torch.tensor([1, 60, 200])
    together = model(SHORT.time(t, x), x)
    for row, step in enumerate(t.tolist()):
        a, b = SHORT.alpha_bar[step].sqrt(), (1 - SHORT.alpha_bar[step]).sqrt()
        point = x[row].reshape(1, 4).requires_grad_()
        (score,) = torch.autograd.grad(heaps.noised(a, b).log_prob(point).sum(), point)
        torch.testing.assert_close(together[row].reshape(1, 4), -b * score, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(model(SHORT.time(step, x), x)[row], together[row], rtol=1e-6, atol=1e-8)


# ---------------------------------------------------------------------- ancestral sampling


@pytest.mark.verifies("eq-ancestral-step")
@both_variances
@pytest.mark.parametrize("t", [1, 2, 400, 1000])
def test_with_the_best_model_a_step_goes_to_the_mean_of_the_state_before(variance, t):
    """Linear regression of x_{t−1} on x_t for Gaussian data; and the spread by what the step makes of its noise."""
    x, zero = normals(7, 1), torch.zeros(7, 1, dtype=F64)
    noise = LINE_MODEL(LINEAR.time(t, x), x)
    step = functools.partial(ddpm.ancestral_step, LINEAR, t, x, noise, variance=variance)
    before, now, beta = LINEAR.alpha_bar[t - 1], LINEAR.alpha_bar[t], LINEAR.beta[t - 1]
    spread = before * STD**2 + 1 - before
    slope = (1 - beta).sqrt() * spread / (now * STD**2 + 1 - now)
    torch.testing.assert_close(step(zero), before.sqrt() * MEAN + slope * (x - now.sqrt() * MEAN))
    guess = normals(7, 1, seed=1)  # for any guess, the step is a little of it taken out, and the rest enlarged
    taken_out = (x - beta / (1 - now).sqrt() * guess) / (1 - beta).sqrt()
    torch.testing.assert_close(ddpm.ancestral_step(LINEAR, t, x, guess, zero), taken_out)
    added = (step(zero + 1) - step(zero)).square()
    if t == 1:
        assert (added == 0).all()
    elif variance == "beta":
        torch.testing.assert_close(added, beta.expand(7, 1))
    else:  # the variance of x_{t−1} given x_t and x_0, two Gaussian pieces of information
        torch.testing.assert_close(added, (1 / (1 / (1 - before) + (1 - beta) / beta)).expand(7, 1))


@both_variances
def test_ancestral_sampling_with_the_exact_model_draws_the_data(variance):
    """Shares and widths of the ring's heaps, four standard errors and the bias of the steps, and Kolmogorov–Smirnov
    tests along three directions (false alarm 1e-3)."""
    n, schedule = 4000, linear_schedule(400, first=2.5e-4, last=0.05)
    model = ddpm.exact_noise_model(RING, schedule)
    end = ddpm.ancestral_sample(model, schedule, normals(n, 2), generator=generator(1), variance=variance)
    assert_ring(end, slack=0.01)


def assert_ring(end, slack):
    """Whether points look like draws of RING; `slack` is the bias that the steps leave in a heap's variance."""
    n = len(end)
    distance = (end[:, None] - RING.means).norm(dim=2).min(1)
    shares = distance.indices.bincount(minlength=8) / n
    assert ((shares - 1 / 8).abs() < 4 * math.sqrt(7 / 64 / n)).all()
    assert abs(distance.values.square().mean() - 2 * 0.3**2) < 4 * 2 * 0.3**2 / math.sqrt(n) + slack
    for direction in torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]], dtype=F64):

        def cdf(points, centers=RING.means @ direction):
            return stats.norm.cdf(points[:, None], centers, 0.3).mean(1)

        assert stats.kstest((end @ direction).numpy(), cdf).pvalue > 1e-5


def test_the_sampler_is_its_step_over_and_over():
    model, schedule = ddpm.exact_noise_model(RING, SHORT), SHORT
    x, source = normals(20, 2), generator(5)
    got = ddpm.ancestral_sample(model, schedule, x, generator=generator(5), variance="beta", clip=3.0)
    for t in range(200, 0, -1):
        eps = randn(20, 2, generator=source, dtype=F64) if t > 1 else torch.zeros(20, 2, dtype=F64)
        x = ddpm.ancestral_step(schedule, t, x, model(schedule.time(t, x), x), eps, variance="beta", clip=3.0)
    torch.testing.assert_close(got, x)


def test_clipping_keeps_the_predicted_data_in_their_range():
    """The state before the data is between them and the noise; the last step lands on the predicted data."""
    x, noise = 5 * normals(30, 2), normals(30, 2, seed=1)
    assert ddpm.ancestral_step(SHORT, 1, x, noise, noise, clip=1.0).abs().max() == pytest.approx(1)
    assert ddpm.ddim_step(SHORT, 150, 0, x, noise, clip=0.5).abs().max() == pytest.approx(0.5)
    assert ddpm.dpm_solver_sample(lambda t, x: 0 * x, SHORT, x, steps=4, clip=1.0).abs().max() <= 1
    inside = data_from_noise(SHORT, 20, x, noise).abs().max() + 1
    torch.testing.assert_close(
        ddpm.ddim_step(SHORT, 20, 10, x, noise, clip=float(inside)), ddpm.ddim_step(SHORT, 20, 10, x, noise)
    )


# ---------------------------------------------------------------------- DDIM


@pytest.mark.verifies("eq-ddim")
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("t", "s"), [(1000, 500), (200, 199), (1, 0), (1000, 0)])
def test_told_the_true_noise_a_step_lands_on_the_noise_level_of_its_end_for_every_share(eta, t, s):
    """The step is linear in the data, the true noise and the fresh one; the squares of the noises add up to 1 − ᾱ_s."""
    one, zero = torch.ones(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64)

    def end(x_0, eps, fresh):
        return ddpm.ddim_step(LINEAR, t, s, LINEAR.add_noise(t, x_0, eps), eps, eta=eta, eps=fresh).item()

    of_data, of_true, of_fresh = end(one, zero, zero), end(zero, one, zero), end(zero, zero, one)
    assert of_data == pytest.approx(LINEAR.alpha_bar[s].sqrt().item(), rel=1e-9)
    assert of_true**2 + of_fresh**2 == pytest.approx(1 - LINEAR.alpha_bar[s].item(), abs=1e-9)
    assert (of_fresh > 0) == (eta > 0 and s > 0)
    every = ddpm.ddim_step(LINEAR, t, s, zero, zero, eta=1.0, eps=one).item()
    assert of_fresh == pytest.approx(eta * every, rel=1e-9)  # η is a share


@pytest.mark.verifies("eq-ddim")
@pytest.mark.parametrize("clip", [None, 1.0])
def test_all_steps_with_all_noise_fresh_are_ancestral_sampling(clip):
    """Another algorithm for one chain: the ancestral sampler with the posterior's variance, under the same noise."""
    model, x = ddpm.exact_noise_model(RING, SHORT), normals(40, 2)
    ancestral = ddpm.ancestral_sample(model, SHORT, x, generator=generator(3), clip=clip)
    ddim = ddpm.ddim_sample(model, SHORT, x, steps=200, eta=1.0, generator=generator(3), clip=clip)
    torch.testing.assert_close(ddim, ancestral, rtol=1e-8, atol=1e-8)


@pytest.mark.verifies("eq-ddim")
@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_deterministic_ddim_is_a_first_order_solver_of_the_probability_flow(schedule):
    """Gaussian data, where the flow keeps each point at its number of standard deviations: the error halves."""
    assert [round(order, 1) for order in orders(ddpm.ddim_sample, schedule)] == [1.0, 1.0]


@pytest.mark.verifies("eq-dpm-solver")
@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_the_multistep_solver_is_of_second_order(schedule):
    """Gaussian data, where the flow keeps each point at its number of standard deviations: the error is quartered."""
    assert [round(order, 1) for order in orders(ddpm.dpm_solver_sample, schedule)] == [2.0, 2.0]


def orders(sampler, schedule):
    """Measured orders between 80, 160 and 400 steps that stop before the data: there the schedule ends abruptly."""
    first, last = (1000, 200) if schedule is LINEAR else (900, 100)
    z = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    model = linear_model(schedule, LINE.means[0], LINE.covariances[0])
    start, truth = on_the_flow(schedule, first, z), on_the_flow(schedule, last, z)
    strides = (10, 5, 2)
    errors = [
        (sampler(model, schedule, start, steps=range(first, last - 1, -stride)) - truth).abs().max()
        for stride in strides
    ]
    return [
        math.log(errors[i] / errors[i + 1]) / math.log(strides[i] / strides[i + 1]) for i in range(len(strides) - 1)
    ]


@pytest.mark.parametrize(
    ("sampler", "steps", "slack"),
    [
        (ddpm.ddim_sample, 200, 0.02),
        (functools.partial(ddpm.ddim_sample, eta=1.0, generator=generator(1)), 200, 0.03),
        (ddpm.dpm_solver_sample, 60, 0.02),
    ],
    ids=["DDIM", "DDIM with fresh noise", "DPM-Solver++"],
)
def test_the_fast_samplers_draw_the_data_too(sampler, steps, slack):
    """Shares and widths of the ring's heaps, four standard errors and the bias of the steps, and Kolmogorov–Smirnov
    tests along three directions (false alarm 1e-3)."""
    assert_ring(sampler(ddpm.exact_noise_model(RING, LINEAR), LINEAR, normals(4000, 2), steps=steps), slack)


def test_without_fresh_noise_nothing_is_drawn():
    model, x = ddpm.exact_noise_model(RING, SHORT), normals(20, 2)
    torch.testing.assert_close(
        ddpm.ddim_sample(model, SHORT, x, steps=7), ddpm.ddim_sample(model, SHORT, x, steps=7, generator=generator(9))
    )


# ---------------------------------------------------------------------- DPM-Solver++


@pytest.mark.verifies("eq-dpm-solver")
def test_the_first_step_of_the_multistep_solver_and_the_step_to_the_data_are_ddim():
    """The other sampler, at the steps where no slope is known or needed."""
    x, noise = normals(6, 2), normals(6, 2, seed=1)
    for t, s, before in ((900, 600, None), (300, 0, None), (300, 0, (600, x))):
        x_0 = data_from_noise(LINEAR, t, x, noise)
        got = ddpm.dpm_solver_step(LINEAR, t, s, x, x_0, before=before)
        torch.testing.assert_close(got, ddpm.ddim_step(LINEAR, t, s, x, noise), rtol=1e-9, atol=1e-9)


@pytest.mark.verifies("eq-dpm-solver")
def test_a_second_order_step_follows_data_that_move_evenly():
    """Adaptive quadrature of the exact solution x_s = (σ_s/σ_t) x_t + σ_s ∫ e^λ x̂_0(λ) dλ, for x̂_0 linear in λ; the
    error is of third order in the step."""

    def level(t):
        return 0.5 * LINEAR.log_snr()[t].item()

    def sigma(t):
        return (1 - LINEAR.alpha_bar[t]).sqrt().item()

    errors = []
    for stride in (40, 20, 10):
        r, t, s = 500 + 2 * stride, 500, 500 - stride
        data = {step: torch.tensor([[0.3 + 0.8 * (level(step) - level(500))]], dtype=F64) for step in (r, t)}
        grid = torch.linspace(level(t), level(s), 20_001, dtype=F64)
        integral = torch.trapezoid(grid.exp() * (0.3 + 0.8 * (grid - level(500))), grid).item()
        exact = sigma(s) / sigma(t) * 0.5 + sigma(s) * integral
        x = torch.tensor([[0.5]], dtype=F64)
        got = ddpm.dpm_solver_step(LINEAR, t, s, x, data[t], before=(r, data[r])).item()
        errors.append(abs(got - exact))
    assert all(7 < a / b < 9 for a, b in itertools.pairwise(errors))


# ---------------------------------------------------------------------- which steps


def test_spaced_steps_start_at_noise_and_end_at_data():
    assert ddpm.spaced_steps(1000, 4) == [1000, 750, 500, 250, 0]
    assert ddpm.spaced_steps(1000, 4, spacing="leading") == [751, 501, 251, 1, 0]
    for T, n in ((1000, 7), (1000, 999), (50, 50), (17, 5), (1, 1)):
        nodes = ddpm.spaced_steps(T, n)
        assert (nodes[0], nodes[-1], len(nodes)) == (T, 0, n + 1)
        gaps = [a - b for a, b in itertools.pairwise(nodes)]
        assert max(gaps) - min(gaps) <= 1
        leading = ddpm.spaced_steps(T, n, spacing="leading")
        assert (leading[-2:], len(leading)) == ([1, 0], n + 1)
        assert leading[0] <= T
    assert ddpm.spaced_steps(50, 50) == list(range(50, -1, -1))


def test_a_sampler_may_be_told_the_steps():
    """Half of the way and then the other half are the whole way."""
    model, x = ddpm.exact_noise_model(RING, SHORT), normals(10, 2)
    whole = ddpm.ddim_sample(model, SHORT, x, steps=10)
    half = ddpm.ddim_sample(model, SHORT, x, steps=range(200, 99, -20))
    torch.testing.assert_close(ddpm.ddim_sample(model, SHORT, half, steps=[100, 80, 60, 40, 20, 0]), whole)


# ---------------------------------------------------------------------- inpainting

PAIR = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=F64)  # a pair of pixels; the first is known to be 1.5
KNOWN = 1.5


def filled(schedule, steps, resample, n=4000, image=None):
    """The second pixel, filled in n times."""
    image = torch.tensor([[KNOWN, 0.0]], dtype=F64).repeat(n, 1) if image is None else image
    model = linear_model(schedule, torch.zeros(2, dtype=F64), PAIR)
    mask = torch.tensor([1.0, 0.0])
    x = ddpm.inpaint(
        model, schedule, image, mask, normals(n, 2), steps=steps, resample=resample, generator=generator(1)
    )
    assert torch.equal(x[:, 0], image[:, 0])
    return x[:, 1]


@pytest.mark.verifies("eq-inpainting")
def test_with_resampling_the_filled_pixel_approaches_its_conditional_distribution():
    """Two pixels with correlation 0.9: given one, the other is Gaussian with mean 0.9 · 1.5 and variance 1 − 0.9². What
    is missing at five resamplings is due to 100 steps; four standard errors of 4,000 draws are below 0.035."""
    schedule = linear_schedule(100, first=1e-3, last=0.2)
    ends = [filled(schedule, 100, resample) for resample in (1, 2, 5)]
    errors = [abs(end.mean() - 0.9 * KNOWN).item() for end in ends]
    assert errors[0] > 0.39 > 0.25 > errors[1] > 0.18 > 0.11 > errors[2]
    assert abs(ends[2].std() - math.sqrt(1 - 0.9**2)) < 0.06


def test_resampling_over_coarse_steps_narrows_the_answer():
    """Each coarse step loses a part of the spread, and resampling repeats the loss: no cure for large steps."""
    narrow, plain = filled(SHORT, 20, 10).std(), filled(SHORT, 20, 1).std()
    assert narrow < 0.5 * math.sqrt(1 - 0.9**2) < plain


@pytest.mark.refutes("E25")
def test_the_known_part_needs_the_noise_level_of_the_step_before():
    """The spread of the known pixel after each step, against the level of the unknown one; and what is left of it in
    the image: nothing, or the noise of a whole step. 4,000 draws, five standard errors (false alarm 1e-5)."""
    n, model = 4000, linear_model(LINEAR, torch.zeros(2, dtype=F64), PAIR)
    image, known = torch.tensor([[KNOWN, 0.0]], dtype=F64).repeat(n, 1), torch.tensor([True, False])

    def run(level):
        x, source, off = normals(n, 2), generator(1), []
        for t, s in itertools.pairwise(ddpm.spaced_steps(1000, 10)):
            noise = model(LINEAR.time(t, x), x)
            eps = [randn(n, 2, generator=source, dtype=F64) for _ in range(2)]
            if level == "s":
                x = ddpm.inpaint_step(LINEAR, t, s, x, noise, image, known, eps_unknown=eps[0], eps_known=eps[1])
            else:  # the mistake: the known part stays at the level of t
                unknown = ddpm.ddim_step(LINEAR, t, s, x, noise, eta=1.0, eps=eps[0])
                x = torch.where(known, LINEAR.add_noise(t, image, eps[1]), unknown)
            off.append((x[:, 0] - LINEAR.alpha_bar[s].sqrt() * KNOWN).square().mean().sqrt().item())
        return off, x

    needed = [(1 - LINEAR.alpha_bar[s]).sqrt().item() for s in ddpm.spaced_steps(1000, 10)[1:]]
    (right, end), (wrong, wrong_end) = run("s"), run("t")
    error = 5 / math.sqrt(2 * n)
    assert all(abs(a - b) <= error * b for a, b in zip(right, needed, strict=True))
    assert all(a - b > error * b for a, b in zip(wrong[6:], needed[6:], strict=True))  # before, all is noise
    assert right[-1] == 0
    assert wrong[-1] > 0.3  # √(1 − ᾱ_100), left in the image
    gap, wrong_gap = (abs(x[:, 1].mean() - 0.9 * KNOWN) for x in (end, wrong_end))
    assert wrong_gap > gap + 0.1


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(4, 4),
        torch.ones(1, 4, 4).bool(),
        torch.ones(2, 4, 4),
        torch.ones(3, 2, 4, 4),
        torch.ones(3, 1, 4, 4).int(),
    ],
    ids=["(h, w)", "(1, h, w)", "an image's", "the images'", "one channel each"],
)
def test_masks_may_be_shaped_like_a_picture_an_image_or_all_images(mask):
    image = normals(3, 2, 4, 4).clamp(-1, 1)
    mask = mask.clone()
    mask[..., 2:] = 0
    end = ddpm.inpaint(lambda t, x: 0 * x, SHORT, image, mask, normals(3, 2, 4, 4), steps=5, generator=generator(0))
    assert torch.equal(end[..., :2], image[..., :2])
    assert (end[..., 2:] != image[..., 2:]).all()


def test_what_the_image_holds_in_the_hole_is_not_used():
    a = torch.tensor([[KNOWN, 0.0]], dtype=F64).repeat(50, 1)
    b = torch.tensor([[KNOWN, 77.0]], dtype=F64).repeat(50, 1)
    assert torch.equal(filled(SHORT, 10, 3, n=50, image=a), filled(SHORT, 10, 3, n=50, image=b))


def test_a_mask_that_knows_all_gives_the_image_and_one_that_knows_nothing_is_ddim():
    model, x, image = ddpm.exact_noise_model(RING, SHORT), normals(20, 2), normals(20, 2, seed=1)
    call = functools.partial(ddpm.inpaint, model, SHORT, image, x_T=x, steps=8, generator=generator(2))
    assert torch.equal(call(torch.ones(2)), image)
    x_s, source = x, generator(3)
    for t, s in itertools.pairwise(ddpm.spaced_steps(200, 8)):
        eps = randn(20, 2, generator=source, dtype=F64)
        randn(20, 2, generator=source, dtype=F64)  # the noise of the known part
        x_s = ddpm.ddim_step(SHORT, t, s, x_s, model(SHORT.time(t, x_s), x_s), eta=1.0, eps=eps)
    got = ddpm.inpaint(model, SHORT, image, torch.zeros(2), x, steps=8, generator=generator(3))
    torch.testing.assert_close(got, x_s)


# ---------------------------------------------------------------------- the bound


@pytest.mark.verifies("eq-vlb")
@both_variances
def test_the_three_parts_of_the_bound_add_up_to_the_log_ratio_along_the_chain(variance):
    """E log q(x_{1:T} | x_0) − log p(x_{0:T}), from torch's densities along 200,000 simulated chains of a model that is
    wrong: the difference of the means within four standard errors (false alarm 6e-5)."""
    n, schedule = 200_000, NoiseSchedule(torch.tensor([0.02, 0.2, 0.4, 0.6], dtype=F64))
    x_0, source = SKEW.sample(n, generator=generator(0)), generator(1)
    ratio, x = torch.zeros(n, dtype=F64), x_0
    for t, beta in enumerate(schedule.beta, start=1):
        x_prev = x
        x = (1 - beta).sqrt() * x_prev + beta.sqrt() * randn(n, 1, generator=source, dtype=F64)
        now, before = schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
        noise = wavy_model(torch.tensor(t / 4, dtype=F64), x)
        mean = (x - beta / (1 - now).sqrt() * noise) / (1 - beta).sqrt()
        spread = beta if variance == "beta" or t == 1 else beta * (1 - before) / (1 - now)
        ratio += Normal((1 - beta).sqrt() * x_prev, beta.sqrt()).log_prob(x)[:, 0]
        ratio -= Normal(mean, spread.sqrt()).log_prob(x_prev)[:, 0]
    ratio -= Normal(0.0, 1.0).log_prob(x)[:, 0]
    bound = ddpm.variational_bound(
        wavy_model, schedule, x_0, generator=generator(2), decoder=ddpm.gaussian_log_prob, variance=variance
    )
    gap = bound.total - ratio
    assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(n)
    assert (bound.steps.shape, bound.prior.shape, bound.data.shape) == ((3, n), (n,), (n,))
    assert abs(bound.data.mean()) > 0.1
    assert bound.steps.mean() > 0.1
    assert bound.prior.mean() > 0.01


@pytest.mark.verifies("eq-vlb")
def test_with_the_best_model_the_bound_meets_the_exact_likelihood_as_steps_are_added():
    """A Gaussian, whose log p is known: never below it, and the gap shrinks like 1/T (0.083 and 0.011 nats at T = 10
    and 100), four standard errors of 100,000 and 20,000 draws (false alarm 1e-4). With the posterior's variance a gap
    stays."""

    def gap(T, n, variance="beta"):
        schedule = linear_schedule(T, first=0.1 / T, last=min(20 / T, 0.999))
        model, x_0 = linear_model(schedule, LINE.means[0], LINE.covariances[0]), LINE.sample(n, generator=generator(T))

        def row_by_row(t, x):
            return model(t.flatten()[0], x)  # all rows are at one step

        bound = ddpm.variational_bound(
            row_by_row, schedule, x_0, generator=generator(1), decoder=ddpm.gaussian_log_prob, variance=variance
        )
        difference = bound.total + LINE.log_prob(x_0)
        return difference.mean().item(), 4 * difference.std().item() / math.sqrt(n)

    for T, n, expected in ((10, 100_000, 0.0827), (100, 20_000, 0.0110)):
        mean, error = gap(T, n)
        assert abs(mean - expected) < error
        assert mean > -error
    mean, error = gap(100, 20_000, variance="posterior")
    assert mean - error > 1


def test_what_the_noise_still_shows_of_the_data_is_a_divergence_from_a_standard_normal():
    """torch's divergence of two Gaussians."""
    for schedule in (LINEAR, NoiseSchedule(torch.full((5,), 0.3))):
        x_0 = normals(4, 1, 2, 2)
        left = schedule.alpha_bar[-1]
        divergence = kl_divergence(Normal(left.sqrt() * x_0, (1 - left).sqrt()), Normal(0.0, 1.0)).sum((1, 2, 3))
        torch.testing.assert_close(ddpm.prior_term(schedule, x_0), divergence, rtol=1e-5, atol=1e-7)


def test_drawing_some_of_the_steps_estimates_the_sum_over_all():
    """The mean over 20,000 equal rows within four standard errors of the sum (false alarm 6e-5 each)."""
    x_0, schedule = torch.full((20_000, 1), 0.5, dtype=F64), SHORT
    call = functools.partial(
        ddpm.variational_bound, wavy_model, schedule, x_0, generator=generator(0), decoder=ddpm.gaussian_log_prob
    )
    everything = call()
    assert torch.equal(everything.t, torch.arange(2, 201)[:, None].expand(199, 20_000))
    whole = everything.steps.sum(0)
    for draws in (1, 7):
        some = call(draws=draws)
        estimate = some.steps.sum(0)
        assert some.t.shape == (draws, 20_000)
        assert (some.t.min(), some.t.max()) == (2, 200)
        error = 4 * math.sqrt((estimate.var() + whole.var()) / 20_000)
        assert abs(estimate.mean() - whole.mean()) < error
    assert call(draws=7).steps.sum(0).var() < call(draws=1).steps.sum(0).var() / 5


def test_a_single_step_has_a_prior_and_a_decoder_only():
    schedule, x_0 = NoiseSchedule(torch.tensor([0.5])), normals(3, 2)
    bound = ddpm.variational_bound(wavy_model, schedule, x_0, generator=generator(0), decoder=ddpm.gaussian_log_prob)
    assert bound.steps.shape == (0, 3)
    torch.testing.assert_close(bound.total, bound.prior + bound.data)


# ---------------------------------------------------------------------- gray levels and bits


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("std", [0.003, 0.1, 2.0])
def test_the_probabilities_of_all_gray_levels_add_up_to_one(levels, std):
    """The sum over the levels, for predictions inside, at the edge and outside of the range."""
    decoder = ddpm.DiscretizedGaussian(half_width=1 / (levels - 1))
    gray = torch.linspace(-1, 1, levels, dtype=F64)[:, None]
    for mean in (-1.2, -1.0, 0.03, 0.9, 1.5):
        total = decoder(gray, torch.full_like(gray, mean), std**2).exp().sum()
        assert total.item() == pytest.approx(1, abs=1e-9)


def test_the_probability_of_a_gray_level_is_the_mass_of_its_bin():
    """scipy's normal distribution, and its quadrature of far tails in log space."""
    h, std = 1 / 16, 0.2
    decoder = ddpm.DiscretizedGaussian(half_width=h)
    gray = torch.linspace(-1, 1, 17, dtype=F64)[:, None]
    for mean in (-0.4, 0.0, 0.77):
        low = [-math.inf, *(gray[1:, 0] - h).tolist()]
        high = [*(gray[:-1, 0] + h).tolist(), math.inf]
        mass = stats.norm.cdf(high, mean, std) - stats.norm.cdf(low, mean, std)
        got = decoder(gray, torch.full_like(gray, mean), std**2).exp()
        torch.testing.assert_close(got, torch.as_tensor(mass), rtol=1e-9, atol=1e-14)
    far = decoder(torch.tensor([[0.0]], dtype=F64), torch.tensor([[1.0]], dtype=F64), 1e-4)
    assert far.item() == pytest.approx(stats.norm.logsf((1 - h) / 0.01), rel=1e-6)
    for dtype in (torch.float32, F64):  # far tails stay finite, with finite gradients
        mean = torch.full((17, 1), 0.9, dtype=dtype, requires_grad=True)
        tail = decoder(gray.to(dtype), mean, 1e-4)
        assert tail.isfinite().all()
        assert torch.autograd.grad(tail.sum(), mean)[0].isfinite().all()


@pytest.mark.verifies("eq-bits-per-dimension")
def test_bits_per_dimension_are_the_length_of_a_code():
    """Coins that are fair cost one bit each, gray levels that are equally likely log2 of their number; and the bits of
    the decoder are Shannon's: their mean under its own probabilities is scipy's entropy to the base 2."""
    coins = torch.tensor([20 * math.log(2)])
    assert ddpm.bits_per_dimension(coins, 20).item() == pytest.approx(1)
    assert ddpm.bits_per_dimension(torch.tensor(64 * math.log(256)), 64).item() == pytest.approx(8)
    decoder = ddpm.DiscretizedGaussian(half_width=1 / 16)
    gray = torch.linspace(-1, 1, 17, dtype=F64)[:, None]
    nats = -decoder(gray, torch.zeros_like(gray), 0.2)
    share = (-nats).exp()
    bits = (share * ddpm.bits_per_dimension(nats, 1)).sum().item()
    assert bits == pytest.approx(stats.entropy(share.numpy(), base=2))
    assert 1 < bits < math.log2(17)


def test_a_model_that_hears_no_noise_costs_more_bits_than_no_model():
    """Digits under a model that always predicts zero, against a code that takes all gray levels for equally likely."""
    images = digits("test").images[:50]
    bound = ddpm.variational_bound(
        zero_model,
        SHORT,
        images,
        generator=generator(0),
        decoder=ddpm.DiscretizedGaussian(half_width=1 / 16),
        clip=1.0,
    )
    bits = ddpm.bits_per_dimension(bound.total, 64)
    assert bits.isfinite().all()
    assert bits.mean() > math.log2(17)


# ---------------------------------------------------------------------- bad input


def zero_model(t, x):
    return 0 * x


SAMPLERS = {
    "ancestral_sample": lambda x, **options: ddpm.ancestral_sample(
        zero_model, SHORT, x, **{"generator": generator(0), **options}
    ),
    "ddim_sample": lambda x, **options: ddpm.ddim_sample(zero_model, SHORT, x, **{"steps": 4, **options}),
    "dpm_solver_sample": lambda x, **options: ddpm.dpm_solver_sample(zero_model, SHORT, x, **{"steps": 4, **options}),
    "inpaint": lambda x, **options: ddpm.inpaint(
        **{
            "model": zero_model,
            "schedule": SHORT,
            "image": torch.zeros(2, 3),
            "mask": torch.ones(3),
            "x_T": x,
            "steps": 4,
            "generator": generator(0),
            **options,
        }
    ),
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
few_steps = pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ancestral_sample"])


@every_sampler
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_starts_that_are_not_finite_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name}: received x_T of .*; rule: .* every entry finite"):
        SAMPLERS[name](torch.tensor([[0.0, 1.0, value], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("x", [None, [[0.0, 1.0]], torch.zeros(2, 3).long(), torch.zeros(3)])
def test_starts_that_are_no_batch_of_numbers_are_refused(x):
    with pytest.raises(
        ValueError, match=r"ddim_sample: received x_T of .*; rule: a floating-point tensor \(batch, ...\)"
    ):
        inspect.unwrap(ddpm.ddim_sample)(zero_model, SHORT, x, steps=4)


@few_steps
@pytest.mark.parametrize("steps", [0, -1, 201, True])
def test_a_number_of_steps_that_the_schedule_has_not_is_refused(name, steps):
    with pytest.raises(ValueError, match=r"spaced_steps: received steps=.*; rule: (from 1 to T|a whole number)"):
        SAMPLERS[name](torch.zeros(2, 3), steps=steps)


@few_steps
@pytest.mark.parametrize("steps", [[200], [], [100, 150], [100, 100, 0], [201, 0], [100, -1], [100, 0.5], "ab"])
def test_lists_of_steps_that_do_not_fall_within_the_schedule_are_refused(name, steps):
    call = functools.partial(inspect.unwrap(getattr(ddpm, name)), zero_model, SHORT)
    inputs = {"image": torch.zeros(2, 3), "mask": torch.ones(3), "generator": generator(0)} if name == "inpaint" else {}
    with pytest.raises(ValueError, match=rf"{name}: received steps=.*; rule: a number of steps, or two or more steps"):
        call(x_T=torch.zeros(2, 3), steps=steps, **inputs)


def test_spacings_that_are_not_known_are_refused():
    with pytest.raises(ValueError, match="received spacing='even'; rule: 'trailing' or 'leading'"):
        ddpm.spaced_steps(10, 2, spacing="even")
    for T, steps in ((10.0, 2), (10, 2.0), (True, 1)):
        with pytest.raises(ValueError, match="rule: a whole number"):
            inspect.unwrap(ddpm.spaced_steps)(T, steps)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_a_share_of_fresh_noise_outside_zero_and_one_is_refused(eta):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"ddim_sample: received eta=.*; rule: from 0 to 1"):
        ddpm.ddim_sample(zero_model, SHORT, x, steps=4, eta=eta, generator=generator(0))
    with pytest.raises(ValueError, match=r"ddim_step: received eta=.*; rule: from 0 to 1"):
        ddpm.ddim_step(SHORT, 5, 4, x, x, eta=eta, eps=x)


def test_fresh_noise_needs_a_source():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="ddim_sample: received eta=0.5 and no source of noise"):
        ddpm.ddim_sample(zero_model, SHORT, x, steps=4, eta=0.5)
    with pytest.raises(ValueError, match="ddim_step: received eta=0.5 and no source of noise"):
        ddpm.ddim_step(SHORT, 5, 4, x, x, eta=0.5)


@pytest.mark.parametrize(
    "mask",
    [torch.ones(2), torch.ones(3, 1), torch.ones(2, 3, 1), torch.ones(4, 3), None, [1, 0, 1]],
    ids=["short", "column", "deep", "more rows", "none", "list"],
)
def test_masks_of_another_shape_are_refused_and_told_which_fit(mask):
    with pytest.raises(
        ValueError, match=r"inpaint: received a mask of .* for images \(2, 3\); rule: .* \(3,\) or \(2, 3\)"
    ):
        inspect.unwrap(ddpm.inpaint)(
            zero_model, SHORT, torch.zeros(2, 3), mask, torch.zeros(2, 3), steps=4, generator=generator(0)
        )
    with pytest.raises(
        ValueError, match=r"rule: a tensor of shape \(2, 4, 4\) or \(3, 2, 4, 4\) or \(4, 4\) or \(1, 4, 4\)"
    ):
        inspect.unwrap(ddpm.inpaint)(
            zero_model, SHORT, torch.zeros(3, 2, 4, 4), mask, torch.zeros(3, 2, 4, 4), steps=4, generator=generator(0)
        )


def test_masks_and_images_with_other_values_are_refused():
    x = torch.zeros(2, 3)
    for mask in (torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, math.nan, 1.0]), torch.tensor([0, 255, 0])):
        with pytest.raises(ValueError, match="received a mask with other values than 0 and 1"):
            SAMPLERS["inpaint"](x, mask=mask)
    with pytest.raises(ValueError, match="inpaint: received image of .* every entry finite"):
        SAMPLERS["inpaint"](x, image=torch.full((2, 3), math.nan))
    with pytest.raises(ValueError, match=r"inpaint: received image \(2, 4\) .*x_T \(2, 3\)"):
        inspect.unwrap(ddpm.inpaint)(
            zero_model, SHORT, torch.zeros(2, 4), torch.ones(4), x, steps=4, generator=generator(0)
        )
    for resample in (0, -1, True):
        with pytest.raises(ValueError, match="inpaint: received resample=.*; rule: a whole number, 1 or more"):
            SAMPLERS["inpaint"](x, resample=resample)


@every_sampler
def test_models_that_are_of_no_use_are_refused(name):
    def run(model):
        x = torch.zeros(2, 3)
        call = functools.partial(inspect.unwrap(getattr(ddpm, name)), model, SHORT)
        options = {
            "ancestral_sample": {"generator": generator(0)},
            "inpaint": {"image": x, "mask": torch.zeros(3), "steps": 4, "generator": generator(0)},
        }.get(name, {"steps": 4})
        return call(x_T=x, **options)

    with pytest.raises(ValueError, match=r"received a model that returns \(2, 1\) for states \(2, 3\)"):
        run(lambda t, x: x[:, :1])
    with pytest.raises(ValueError, match=f"{name}: received a model that leads to NaN or infinity"):
        run(lambda t, x: x + math.nan)


@every_sampler
@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan])
def test_a_clip_that_leaves_nothing_is_refused(name, clip):
    with pytest.raises(ValueError, match="received clip=.*; rule: a positive number, or None"):
        SAMPLERS[name](torch.zeros(2, 3), clip=clip)


def test_steps_that_do_not_exist_are_refused():
    x = torch.zeros(2, 3)
    calls = {
        "forward_step": lambda t: ddpm.forward_step(SHORT, t, x, x),
        "posterior": lambda t: ddpm.posterior(SHORT, t, x, x),
        "noise_prediction_loss": lambda t: ddpm.noise_prediction_loss(
            zero_model, SHORT, x, torch.as_tensor(t).expand(2), x
        ),
    }
    for name, call in calls.items():
        for t in (0, 201, -3, torch.tensor([1, 0])):
            with pytest.raises(ValueError, match=rf"{name}: received t.*rule: (a step|steps) from 1 to T = 200"):
                call(t)
    with pytest.raises(ValueError, match=r"step_term: received t=1; rule: a step from 2 to T"):
        ddpm.step_term(zero_model, SHORT, x, 1, x)
    for t, s in ((5, 5), (5, 6), (0, 0), (5, torch.tensor([4, 5]))):
        with pytest.raises(ValueError, match=r"ddim_step: received .*; rule: 0 ≤ s < t ≤ T = 200"):
            ddpm.ddim_step(SHORT, t, s, x, x)
    with pytest.raises(ValueError, match=r"dpm_solver_step: received t=3, s=5; rule"):
        ddpm.dpm_solver_step(SHORT, 5, 4, x, x, before=(3, x))
    with pytest.raises(ValueError, match=r"forward_jump: received t=4, s=5; rule: 0 ≤ s < t"):
        ddpm.forward_jump(SHORT, 5, 4, x, x)
    with pytest.raises(ValueError, match=r"ddim_step: received t of 2.5; rule: steps are whole numbers"):
        inspect.unwrap(ddpm.ddim_step)(SHORT, 2.5, 1, x, x)


def test_options_of_the_bound_that_make_no_sense_are_refused():
    x_0 = torch.zeros(2, 3)
    call = functools.partial(
        ddpm.variational_bound, zero_model, SHORT, x_0, generator=generator(0), decoder=ddpm.gaussian_log_prob
    )
    for draws in (0, 200, True):
        with pytest.raises(ValueError, match="variational_bound: received draws=.*; rule: from 1 to T − 1 = 199"):
            call(draws=draws)
    with pytest.raises(ValueError, match="received variance='large'; rule: 'posterior' or 'beta'"):
        call(variance="large")
    with pytest.raises(ValueError, match="received variance='large'"):
        ddpm.ancestral_step(SHORT, 5, x_0, x_0, x_0, variance="large")
    with pytest.raises(ValueError, match="received variance='large'"):
        ddpm.noise_loss_weight(SHORT, variance="large")
    for half_width in (0.0, -0.1, 2.0, 0.3, math.nan):
        with pytest.raises(
            ValueError, match="DiscretizedGaussian: received half_width=.*; rule: bins of this half width"
        ):
            ddpm.DiscretizedGaussian(half_width=half_width)
    for value in (0.01, 1.125, -1.5):
        with pytest.raises(
            ValueError, match="values between the levels of half_width=0.0625; rule: every pixel is one of the 17"
        ):
            ddpm.DiscretizedGaussian(half_width=1 / 16)(torch.full((1, 1), value), torch.zeros(1, 1), 0.1)
    for dimensions in (0, -1, True):
        with pytest.raises(ValueError, match="bits_per_dimension: received dimensions="):
            ddpm.bits_per_dimension(torch.zeros(2), dimensions)


def test_shapes_and_dtypes_that_do_not_fit_are_refused():
    x = torch.zeros(2, 3)
    for other in (torch.zeros(2, 1), torch.zeros(2, 3, dtype=F64), torch.zeros(2, 3).long(), None):
        for name, call in {
            "forward_step": lambda y: inspect.unwrap(ddpm.forward_step)(SHORT, 5, x, y),
            "posterior": lambda y: inspect.unwrap(ddpm.posterior)(SHORT, 5, x, y),
            "ancestral_step": lambda y: inspect.unwrap(ddpm.ancestral_step)(SHORT, 5, x, y, x),
            "ddim_step": lambda y: inspect.unwrap(ddpm.ddim_step)(SHORT, 5, 4, x, y),
            "dpm_solver_step": lambda y: inspect.unwrap(ddpm.dpm_solver_step)(SHORT, 5, 4, x, y),
        }.items():
            with pytest.raises(ValueError, match=rf"{name}: received .*; rule: tensors of one shape"):
                call(other)


# ---------------------------------------------------------------------- devices, graphs


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_samplers_and_the_bound_follow_dtype_and_device_and_keep_no_graph(device, dtype):
    """The numbers are those of the CPU in float64, up to rounding."""
    with seeded(generator(0)):
        net = UNet(1, channels=(8, 8))
    with torch.no_grad():
        net.conv_out.weight.normal_(std=0.05, generator=generator(1))
    image = digits("test").images[:3]
    results = {}
    for kind, place in ((F64, "cpu"), (dtype, device)):
        model, x, data = net.to(place, kind), normals(3, 1, 8, 8).to(place, kind), image.to(place, kind)
        results[kind, place] = [
            ddpm.ancestral_sample(model, SHORT, x, generator=generator(2), clip=1.0),
            ddpm.ddim_sample(model, SHORT, x, steps=5, clip=1.0),
            ddpm.dpm_solver_sample(model, SHORT, x, steps=5, clip=1.0),
            ddpm.inpaint(
                model, SHORT, data, torch.ones(8, 8), x, steps=5, resample=2, generator=generator(2), clip=1.0
            ),
            ddpm.variational_bound(
                model, SHORT, data, generator=generator(2), decoder=ddpm.DiscretizedGaussian(1 / 16), draws=3, clip=1.0
            ).data,
        ]
    for got in results[dtype, device]:
        assert (got.dtype, got.device.type, got.requires_grad) == (dtype, device, False)
        assert got.isfinite().all()
    if dtype == F64:
        for got, want in zip(results[dtype, device], results[F64, "cpu"], strict=True):
            torch.testing.assert_close(got.cpu(), want, rtol=1e-6, atol=1e-6)


def test_a_sampling_step_can_be_exported_although_the_steps_are_not_known_then():
    class Step(torch.nn.Module):
        def forward(self, t, s, x, noise):
            return ddpm.ddim_step(LINEAR, t, s, x, noise, eta=1.0, eps=noise)

    x, noise = normals(4, 2).float(), normals(4, 2, seed=1).float()
    program = torch.export.export(Step(), (torch.tensor(300), torch.tensor(200), x, noise)).module()
    want = ddpm.ddim_step(LINEAR, 800, 100, x, noise, eta=1.0, eps=noise)
    torch.testing.assert_close(program(torch.tensor(800), torch.tensor(100), x, noise), want)
