"""Noise schedules and the four predictions, against products, angles, quadrature and automatic differentiation."""

import inspect
import itertools
import math
import pickle

import pytest
import torch

from companion.data import GaussianMixture
from companion.device import generator, randn
from companion.numerics import schedules
from companion.numerics.paths import VariancePreserving
from companion.numerics.schedules import NoiseSchedule, cosine_schedule, linear_schedule

F64 = torch.float64
LINEAR, COSINE = linear_schedule(), cosine_schedule()
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FIELDS = ("noise", "data", "velocity", "score")
PAIRS = [(wanted, given) for wanted, given in itertools.product(FIELDS, FIELDS) if wanted != given]
SILENT_AT_DATA = {("noise", "data"), ("velocity", "data"), ("score", "noise"), ("score", "data"), ("score", "velocity")}
every_schedule = pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])


def draw(*shape, seed=0, dtype=F64):
    return randn(*shape, generator=generator(seed), dtype=dtype)


def convert(wanted, given):
    return getattr(schedules, f"{wanted}_from_{given}")


def known_fields(schedule, t, x_0, eps):
    """x_t and its four descriptions, written with an angle: √ᾱ = cos φ."""
    angle = torch.acos(schedule.alpha_bar[t].sqrt()).reshape(-1, *[1] * (x_0.ndim - 1))
    x = angle.cos() * x_0 + angle.sin() * eps
    fields = {"noise": eps, "data": x_0, "velocity": angle.cos() * eps - angle.sin() * x_0}
    return x, {**fields, "score": -(x - angle.cos() * x_0) / angle.sin().square()}


# ---------------------------------------------------------------------- the schedules


@pytest.mark.verifies("eq-linear-schedule")
def test_the_linear_schedule_rises_evenly_between_its_ends_and_leaves_almost_nothing():
    """Second differences are zero; and the sum of the logarithms of 1 − β, which gives the 4e-5 of the DDPM paper."""
    beta = LINEAR.beta
    assert (beta[0].item(), beta[-1].item(), len(beta)) == (1e-4, 0.02, 1000)
    assert beta.diff().diff().abs().max() < 1e-16
    left = math.exp(math.fsum(math.log1p(-b) for b in beta.tolist()))
    assert LINEAR.alpha_bar[-1].item() == pytest.approx(left, rel=1e-10) == pytest.approx(4.04e-5, rel=1e-2)


@pytest.mark.verifies("eq-cosine-schedule")
@pytest.mark.parametrize("steps", [50, 1000])
def test_the_angle_of_the_cosine_schedule_grows_evenly_up_to_its_cut(steps):
    """The arc cosine of √(ᾱ_t f(0)) is a straight line from 0.8% of a right angle to a right angle."""
    schedule = cosine_schedule(steps)
    start = math.pi / 2 * 0.008 / 1.008
    angle = torch.acos((schedule.alpha_bar * math.cos(start) ** 2).sqrt())
    line = torch.linspace(start, math.pi / 2, steps + 1, dtype=F64)
    torch.testing.assert_close(angle[:-1], line[:-1], rtol=0, atol=1e-9)
    assert schedule.beta[-1] == 0.999
    assert (schedule.beta[:-1] < 0.999).all()
    assert 0 < schedule.alpha_bar[-1] < 1e-3 * schedule.alpha_bar[-2] * 1.01


@every_schedule
def test_the_signal_left_is_the_product_of_the_shares_that_each_step_leaves(schedule):
    """A loop over the steps, in Python numbers."""
    left = 1.0
    assert schedule.alpha_bar[0] == 1
    for t, beta in enumerate(schedule.beta.tolist(), start=1):
        left *= 1 - beta
        assert schedule.alpha_bar[t].item() == pytest.approx(left, rel=1e-12)
    assert schedule.steps == 1000
    again = NoiseSchedule.from_alpha_bar(schedule.alpha_bar)
    torch.testing.assert_close(again.beta, schedule.beta, rtol=0, atol=1e-13)


@every_schedule
def test_the_signal_to_noise_ratio_falls_from_infinity(schedule):
    """The ratio of the two squared coefficients."""
    ratio = schedule.log_snr()
    assert ratio[0] == math.inf
    assert (ratio.diff() < 0).all()
    x = draw(1000, 1)
    t = torch.arange(1, 1001)
    squares = (schedule.signal(t, x) / schedule.noise(t, x)).square()
    torch.testing.assert_close(ratio[1:].exp(), squares[:, 0], rtol=1e-9, atol=0)


def test_a_schedule_of_another_precision_is_kept_in_float64_and_can_be_pickled():
    schedule = NoiseSchedule(torch.full((10,), 0.1))
    assert schedule.alpha_bar.dtype == F64
    again = pickle.loads(pickle.dumps(schedule))
    assert torch.equal(again.alpha_bar, schedule.alpha_bar)


def test_changing_the_tensor_that_a_schedule_was_made_of_does_not_change_it():
    beta = torch.full((10,), 0.1, dtype=F64)
    schedule = NoiseSchedule(beta)
    beta.fill_(0.5)
    assert (schedule.beta == 0.1).all()


# ---------------------------------------------------------------------- steps and times


@pytest.mark.parametrize("steps", [1, 7, 1000, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_network_can_tell_every_step_from_its_time(steps, dtype):
    schedule, t = NoiseSchedule(torch.full((steps,), 1e-3)), torch.arange(steps + 1)
    time = schedule.time(t, torch.zeros(1, dtype=dtype))
    assert time.dtype == dtype
    assert (time[0], time[-1]) == (0, 1)
    assert torch.equal(schedule.step(time), t)
    assert all(schedule.step(schedule.time(k)) == k for k in range(0, steps + 1, 97))
    assert schedule.time(steps).shape == ()


@every_schedule
def test_a_step_may_be_a_number_or_a_tensor(schedule):
    x, eps = draw(3, 1, 2, 2), draw(3, 1, 2, 2, seed=1)
    t = torch.tensor([1, 400, 1000])
    together = schedule.add_noise(t, x, eps)
    for row, step in enumerate(t.tolist()):
        alone = schedule.add_noise(step, x, eps)
        torch.testing.assert_close(together[row], alone[row])
        torch.testing.assert_close(schedule.add_noise(torch.tensor(step), x, eps), alone)
    assert isinstance(schedule.signal(5, x), float)
    assert schedule.signal(t, x).shape == (3, 1, 1, 1)
    assert torch.equal(schedule.add_noise(0, x, eps), x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_dtype_and_device_follow_the_data(device, dtype):
    x = draw(3, 2, dtype=torch.float32).to(device, dtype)
    for t in (
        500,
        torch.tensor(500),
        torch.tensor([1, 2, 3], device=device),
        torch.tensor([1, 2, 3], dtype=torch.int32),
    ):
        for y in (
            LINEAR.add_noise(t, x, x),
            LINEAR.velocity(t, x, x),
            LINEAR.time(t, x),
            schedules.data_from_noise(LINEAR, t, x, x),
            schedules.score_from_velocity(LINEAR, t, x, x),
        ):
            assert (y.dtype, y.device.type) == (dtype, device)


def test_float32_coefficients_are_the_rounded_float64_ones():
    x, t = torch.zeros(1001, 1), torch.arange(1001)
    assert torch.equal(LINEAR.noise(t, x)[:, 0], (1 - LINEAR.alpha_bar).sqrt().float())
    assert LINEAR.exact(t, x)[0].dtype == F64
    assert torch.equal(LINEAR.exact(t, x)[0][1:, 0], LINEAR.beta)


def test_noising_and_conversions_can_be_exported_although_the_step_is_not_known_then():
    class Denoised(torch.nn.Module):
        def forward(self, t, x, noise):
            return schedules.data_from_noise(COSINE, t, x, noise) + COSINE.add_noise(t, x, noise)

    x, noise = draw(4, 2, dtype=torch.float32), draw(4, 2, seed=1, dtype=torch.float32)
    program = torch.export.export(Denoised(), (torch.tensor(300), x, noise)).module()
    torch.testing.assert_close(program(torch.tensor(800), x, noise), Denoised()(torch.tensor(800), x, noise))


# ---------------------------------------------------------------------- one family of predictions


@pytest.mark.verifies("eq-predictions")
@every_schedule
@pytest.mark.parametrize(("wanted", "given"), PAIRS)
def test_each_prediction_determines_the_others(schedule, wanted, given):
    """A state whose noise, data, velocity and score are all known, written with an angle: √ᾱ = cos φ."""
    t = torch.tensor([1, 10, 500, 900, 990])
    x, fields = known_fields(schedule, t, draw(5, 3), draw(5, 3, seed=1))
    got = convert(wanted, given)(schedule, t, x, fields[given])
    torch.testing.assert_close(got, fields[wanted], rtol=1e-7, atol=1e-7)
    alone = convert(wanted, given)(schedule, 500, x[2:3], fields[given][2:3])
    torch.testing.assert_close(alone, fields[wanted][2:3], rtol=1e-7, atol=1e-7)


@pytest.mark.verifies("eq-predictions")
@pytest.mark.parametrize("t", [5, 400, 900])
def test_the_best_predictions_are_means_of_one_posterior_and_the_score_of_its_density(t):
    """The posterior of x_0 on a fine grid for the means, automatic differentiation of log p_t for the score."""
    means, covariances = torch.tensor([[-1.0], [2.0]], dtype=F64), torch.tensor([[[0.2]], [[0.5]]], dtype=F64)
    heaps = GaussianMixture(means, covariances, torch.tensor([0.3, 0.7]).double())
    a, b = LINEAR.alpha_bar[t].sqrt(), (1 - LINEAR.alpha_bar[t]).sqrt()
    x, x_0 = torch.linspace(-2, 3, 11, dtype=F64)[:, None], torch.linspace(-5, 7, 6001, dtype=F64)
    weight = (heaps.log_prob(x_0[:, None]) - (x - a * x_0).square() / (2 * b**2)).softmax(1)
    eps = (x - a * x_0) / b
    mean = {
        name: (weight * values).sum(1, keepdim=True)
        for name, values in {"data": x_0, "noise": eps, "velocity": a * eps - b * x_0}.items()
    }
    mean["score"] = heaps.noised(a, b).score(x)
    point = x.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(heaps.noised(a, b).log_prob(point).sum(), point)
    torch.testing.assert_close(mean["score"], by_autograd)
    for wanted, given in PAIRS:
        got = convert(wanted, given)(LINEAR, t, x, mean[given])
        torch.testing.assert_close(got, mean[wanted], rtol=1e-5, atol=1e-5)


def test_velocity_is_the_derivative_along_the_angle_and_runs_against_the_velocity_of_the_flows():
    """Automatic differentiation of cos φ x_0 + sin φ ε; and the path of the flow chapters with the same angle."""
    x_0, eps, t = draw(4, 2), draw(4, 2, seed=1), 300
    angle = torch.acos(COSINE.alpha_bar[t].sqrt())
    moved = torch.autograd.functional.jacobian(lambda phi: phi.cos() * x_0 + phi.sin() * eps, angle)
    v = COSINE.velocity(t, x_0, eps)
    torch.testing.assert_close(v, moved)
    path, time = VariancePreserving(), 1 - angle / (math.pi / 2)
    u = path.velocity(time, path.sample(time, x_0, eps), x_0)
    torch.testing.assert_close(u, -math.pi / 2 * v)


@every_schedule
@pytest.mark.parametrize(("wanted", "given"), PAIRS)
def test_at_the_data_a_conversion_is_finite_or_says_why_not(schedule, wanted, given):
    x = draw(2, 3)
    for t in (0, torch.tensor(0), torch.tensor([0, 5])):
        if (wanted, given) in SILENT_AT_DATA:
            with pytest.raises(ValueError, match=rf"{wanted}_from_{given}: received t=0; rule: t ≥ 1, .* 0 at t = 0"):
                convert(wanted, given)(schedule, t, x, x)
        else:
            assert convert(wanted, given)(schedule, t, x, x).isfinite().all()


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5])
def test_a_variance_outside_zero_and_one_is_refused(value):
    with pytest.raises(ValueError, match=r"NoiseSchedule: received a beta of .*; rule: 0 < β_t < 1"):
        NoiseSchedule(torch.tensor([0.1, value, 0.2]))


@pytest.mark.parametrize(
    "beta",
    [torch.tensor([]), torch.tensor(0.1), torch.full((2, 2), 0.1), torch.tensor([1]), [0.1], None],
    ids=["empty", "number", "matrix", "integers", "list", "none"],
)
def test_variances_that_are_no_row_of_numbers_are_refused(beta):
    with pytest.raises(ValueError, match=r"NoiseSchedule: received beta of .*; rule: a floating-point tensor with one"):
        inspect.unwrap(NoiseSchedule.__init__)(object.__new__(NoiseSchedule), beta)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="NoiseSchedule: received beta with NaN or infinity"):
        NoiseSchedule(torch.tensor([0.1, value]))
    with pytest.raises(ValueError, match="alpha_bar with NaN or infinity"):
        NoiseSchedule.from_alpha_bar(torch.tensor([1.0, value]))


def test_a_schedule_that_leaves_no_signal_at_all_is_refused():
    with pytest.raises(ValueError, match=r"received betas whose ᾱ ends at 0; rule: ᾱ_t stays positive"):
        NoiseSchedule(torch.full((400,), 0.9))


@pytest.mark.parametrize(
    "alpha_bar",
    [[1.0, 0.5, 0.6], [1.0, 0.5, 0.5], [0.9, 0.5], [1.0, 0.5, 0.0], [1.0, 0.5, -0.1]],
    ids=["rises", "stays", "starts below 1", "reaches 0", "negative"],
)
def test_signal_that_does_not_fall_all_the_way_is_refused(alpha_bar):
    with pytest.raises(ValueError, match=r"from_alpha_bar: received values from .*; rule: monotone"):
        NoiseSchedule.from_alpha_bar(torch.tensor(alpha_bar))
    with pytest.raises(ValueError, match="one axis and 2 or more"):
        NoiseSchedule.from_alpha_bar(torch.ones(1))


def test_schedules_with_other_than_a_positive_whole_number_of_steps_are_refused():
    for make in (linear_schedule, cosine_schedule):
        for steps in (0, -1, True):
            with pytest.raises(ValueError, match=rf"{make.__name__}: received steps={steps}; rule: a whole number"):
                make(steps)
        with pytest.raises(ValueError, match="received steps=10.0"):
            inspect.unwrap(make)(10.0)
    with pytest.raises(ValueError, match="0 < β_t < 1"):
        linear_schedule(10, first=0.0)
    for offset, most in ((-0.1, 0.999), (math.nan, 0.999), (0.008, 1.0)):
        with pytest.raises(ValueError, match="cosine_schedule: received offset="):
            cosine_schedule(10, offset=offset, most=most)


@pytest.mark.parametrize("t", [-1, 1001, torch.tensor([0, 1001]), torch.tensor(-1)])
def test_steps_beyond_the_schedule_are_refused(t):
    x = draw(2, 3)
    for call in (
        lambda: LINEAR.add_noise(t, x, x),
        lambda: LINEAR.time(t),
        lambda: LINEAR.exact(t, x),
        lambda: schedules.noise_from_data(LINEAR, t, x, x),
    ):
        with pytest.raises(ValueError, match=r"received t.*rule: (a step|steps) from 0 to T = 1000"):
            call()


@pytest.mark.parametrize(
    "t",
    [0.5, 3.0, True, torch.tensor(0.5), torch.tensor([True, False]), torch.tensor([1, 2, 3]), torch.ones(2, 1).long()],
)
def test_steps_that_are_not_whole_numbers_one_for_each_row_are_refused(t):
    x = draw(2, 3)
    with pytest.raises(
        ValueError, match=r"NoiseSchedule.signal: received t of .*rule: steps are whole numbers.*\(2,\)"
    ):
        inspect.unwrap(NoiseSchedule.signal)(LINEAR, t, x)


def test_times_outside_zero_and_one_are_refused():
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"NoiseSchedule.step: received times .*rule: t/T, from 0 to 1"):
            LINEAR.step(torch.tensor([0.5, value]))


def test_shapes_and_dtypes_that_do_not_fit_are_refused():
    x, add = draw(3, 2), inspect.unwrap(NoiseSchedule.add_noise)
    for given in (x[:, :1], x.float(), x[:2], None, 1.0):
        with pytest.raises(
            ValueError, match=r"add_noise: received x_0 \(3, 2\) torch.float64, eps .*; rule: tensors of"
        ):
            add(LINEAR, 5, x, given)
        with pytest.raises(ValueError, match=r"data_from_noise: received x .*; rule: tensors of one shape"):
            inspect.unwrap(schedules.data_from_noise)(LINEAR, 5, x, given)
    with pytest.raises(ValueError, match="one floating dtype"):
        add(LINEAR, 5, x.long(), x.long())
