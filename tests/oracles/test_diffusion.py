"""Diffusion against diffusers' schedulers, step for step and under the same noise.

diffusers counts the steps of a schedule from 0 to T − 1, we count them from 1 to T, so that 0 is the data: its timestep
k is our step k + 1, its `alphas_cumprod[k]` our ᾱ_{k+1}, and its 'previous timestep −1', whose ᾱ it sets to 1, is our
step 0. It also tells its networks k, where we tell t/T; the noise predictions below are therefore given, not computed.

Its schedules are float32. Where a scheduler's arithmetic follows its inputs, it is handed our ᾱ in float64 and the
comparison is tight (1e-8 a step, since a small ᾱ divides); with its own float32 schedule, and for DPM-Solver++, which
works in float32 inside, it holds to the rounding of float32, as stated.
"""

import functools
import itertools

import diffusers
import pytest
import torch

from companion.device import generator, randn
from companion.methods import diffusion as ddpm
from companion.numerics.schedules import (
    cosine_schedule,
    data_from_noise,
    data_from_velocity,
    linear_schedule,
    noise_from_data,
    noise_from_velocity,
)

F64 = torch.float64
LINEAR, COSINE = linear_schedule(), cosine_schedule()
SCHEDULES = {"linear": LINEAR, "squaredcos_cap_v2": COSINE}
every_schedule = pytest.mark.parametrize("kind", SCHEDULES)
predictions = pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])


def draw(*shape, seed=0, dtype=F64):
    return randn(*shape, generator=generator(seed), dtype=dtype)


def exact(scheduler, schedule):
    """A scheduler of diffusers with our ᾱ in float64."""
    scheduler.betas, scheduler.alphas = schedule.beta, 1 - schedule.beta
    scheduler.alphas_cumprod = schedule.alpha_bar[1:].clone()
    return scheduler


def described(prediction, schedule, t, x, output):
    """What a network that predicts this way says of the noise."""
    if prediction == "epsilon":
        return output
    return {"v_prediction": noise_from_velocity, "sample": noise_from_data}[prediction](schedule, t, x, output)


# ---------------------------------------------------------------------- schedules, noise, targets


@pytest.mark.verifies("eq-linear-schedule", "eq-cosine-schedule")
@pytest.mark.parametrize("steps", [50, 1000])
@every_schedule
def test_the_schedules_are_those_of_diffusers(kind, steps):
    """Its variances and its products, both float32: up to rounding."""
    ours = linear_schedule(steps) if kind == "linear" else cosine_schedule(steps)
    theirs = diffusers.DDPMScheduler(num_train_timesteps=steps, beta_schedule=kind)
    torch.testing.assert_close(ours.beta.float(), theirs.betas, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.alpha_bar[1:].float(), theirs.alphas_cumprod, rtol=1e-3, atol=1e-6)


@pytest.mark.verifies("eq-one-shot", "eq-predictions")
@every_schedule
def test_noised_images_and_training_targets_are_those_of_diffusers(kind):
    """`add_noise` and `get_velocity` at its timestep k = t − 1."""
    schedule, theirs = SCHEDULES[kind], exact(diffusers.DDPMScheduler(), SCHEDULES[kind])
    x_0, eps, t = draw(5, 1, 4, 4), draw(5, 1, 4, 4, seed=1), torch.tensor([1, 2, 500, 999, 1000])
    tight = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(schedule.add_noise(t, x_0, eps), theirs.add_noise(x_0, eps, t - 1), **tight)
    torch.testing.assert_close(schedule.velocity(t, x_0, eps), theirs.get_velocity(x_0, eps, t - 1), **tight)
    plain = diffusers.DDPMScheduler(beta_schedule=kind)
    torch.testing.assert_close(
        schedule.add_noise(t, x_0.float(), eps.float()),
        plain.add_noise(x_0.float(), eps.float(), t - 1),
        rtol=1e-4,
        atol=1e-4,
    )


# ---------------------------------------------------------------------- ancestral sampling


@pytest.mark.verifies("eq-ancestral-step", "eq-ddpm-posterior")
@predictions
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("variance", ["posterior", "beta"])
@every_schedule
def test_each_ancestral_step_is_that_of_diffusers(kind, variance, clip, prediction):
    """DDPMScheduler with 'fixed_small' and 'fixed_large' variance, in float64. (Its floor of 1e-20 under the variance
    is never reached, as it adds no noise in the last step.)"""
    schedule = SCHEDULES[kind]
    theirs = diffusers.DDPMScheduler(
        variance_type="fixed_small" if variance == "posterior" else "fixed_large",
        clip_sample=clip is not None,
        prediction_type=prediction,
    )
    exact(theirs, schedule)
    for t in (1000, 999, 500, 2, 1):
        x, output = draw(3, 1, 4, 4), 0.1 * draw(3, 1, 4, 4, seed=1)
        want = theirs.step(output, t - 1, x, generator=generator(t)).prev_sample
        noise, eps = described(prediction, schedule, t, x, output), draw(3, 1, 4, 4, seed=t)
        got = ddpm.ancestral_step(schedule, t, x, noise, eps, variance=variance, clip=clip)
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


@every_schedule
def test_ancestral_samples_are_those_of_diffusers(kind):
    """All 1,000 steps in float64 under the noise of one generator, with a model that both evaluate."""
    schedule, theirs = SCHEDULES[kind], exact(diffusers.DDPMScheduler(), SCHEDULES[kind])
    source, x = generator(2), draw(2, 1, 3, 3)
    want = x
    for k in theirs.timesteps.tolist():
        want = theirs.step(told(schedule.time(k + 1, want), want), k, want, generator=source).prev_sample
    got = ddpm.ancestral_sample(told, schedule, x, generator=generator(2), clip=1.0)
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)


def told(t, x):
    """A noise model that both sides evaluate."""
    return 0.9 * torch.sin(x) * t.sqrt() + 0.05


# ---------------------------------------------------------------------- DDIM


@pytest.mark.verifies("eq-ddim")
@predictions
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@every_schedule
def test_each_ddim_step_is_that_of_diffusers(kind, spacing, clip, eta, prediction):
    """DDIMScheduler in float64, with 20 of 1,000 steps and the noise that it is given. With a clip it is asked to
    derive the noise anew (`use_clipped_model_output`), as we do: so η = 1 is the ancestral step."""
    schedule = SCHEDULES[kind]
    theirs = diffusers.DDIMScheduler(
        clip_sample=clip is not None, timestep_spacing=spacing, prediction_type=prediction, set_alpha_to_one=True
    )
    exact(theirs, schedule).set_timesteps(20)
    nodes = ddpm.spaced_steps(1000, 20, spacing=spacing)
    assert (theirs.timesteps + 1).tolist() == nodes[:-1]
    for t, s in itertools.pairwise(nodes):
        x, output, eps = draw(2, 1, 3, 3), 0.1 * draw(2, 1, 3, 3, seed=1), draw(2, 1, 3, 3, seed=t)
        want = theirs.step(
            output, t - 1, x, eta=eta, use_clipped_model_output=clip is not None, variance_noise=eps
        ).prev_sample
        noise = described(prediction, schedule, t, x, output)
        got = ddpm.ddim_step(schedule, t, s, x, noise, eta=eta, eps=eps, clip=clip)
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@every_schedule
def test_ddim_samples_are_those_of_diffusers_in_float64_and_in_its_own_float32(kind, eta):
    """25 steps under the noise of one generator; to 1e-9, and to 1e-3 with diffusers' own schedule: the cosine ends at
    √ᾱ_T = 5e-5, by which it divides, hence the clip."""
    schedule = SCHEDULES[kind]
    for dtype, tolerance in ((F64, 1e-9), (torch.float32, 1e-3)):
        theirs = diffusers.DDIMScheduler(timestep_spacing="trailing", beta_schedule=kind)
        if dtype == F64:
            exact(theirs, schedule)
        theirs.set_timesteps(25)
        source, want = generator(2), draw(2, 1, 3, 3, dtype=dtype)
        for k in theirs.timesteps.tolist():
            noise = told(schedule.time(k + 1, want), want)
            want = theirs.step(noise, k, want, eta=eta, use_clipped_model_output=True, generator=source).prev_sample
        x = draw(2, 1, 3, 3, dtype=dtype)
        got = ddpm.ddim_sample(told, schedule, x, steps=25, eta=eta, generator=generator(2), clip=1.0)
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("steps", [1, 7, 16, 30, 999, 1000])
def test_the_steps_that_are_visited_are_those_of_diffusers(steps):
    """Both spacings of DDIMScheduler, also where the number does not divide 1,000."""
    for spacing in ("trailing", "leading"):
        theirs = diffusers.DDIMScheduler(timestep_spacing=spacing)
        theirs.set_timesteps(steps)
        assert (theirs.timesteps + 1).tolist() == ddpm.spaced_steps(1000, steps, spacing=spacing)[:-1]


# ---------------------------------------------------------------------- DPM-Solver++


@pytest.mark.verifies("eq-dpm-solver")
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # numpy 2 of diffusers' own call
@predictions
@pytest.mark.parametrize("steps", [1, 2, 10, 17, 30])
@every_schedule
def test_each_step_of_the_multistep_solver_is_that_of_diffusers(kind, steps, prediction):
    """DPMSolverMultistepScheduler of order 2, which keeps the earlier prediction inside, and rounds to float32: 2e-4
    of the largest number of the step (the first step of the cosine divides by √ᾱ_T = 5e-5)."""
    schedule = SCHEDULES[kind]
    theirs = diffusers.DPMSolverMultistepScheduler(
        beta_schedule=kind, timestep_spacing="trailing", prediction_type=prediction, solver_order=2
    )
    theirs.set_timesteps(steps)
    nodes = ddpm.spaced_steps(1000, steps)
    assert (theirs.timesteps + 1).tolist() == nodes[:-1]
    x, before = draw(2, 1, 3, 3), None
    for i, (t, s) in enumerate(itertools.pairwise(nodes)):
        output = 0.3 * draw(2, 1, 3, 3, seed=i + 1)
        want = theirs.step(output.float(), t - 1, x.float()).prev_sample
        given = {"epsilon": data_from_noise, "v_prediction": data_from_velocity}.get(prediction)
        x_0 = output if given is None else given(schedule, t, x, output)
        x, before = ddpm.dpm_solver_step(schedule, t, s, x, x_0, before=before), (t, x_0)
        tolerance = 2e-4 * max(1.0, x.abs().max().item())
        torch.testing.assert_close(x.float(), want, rtol=0, atol=tolerance)


# ---------------------------------------------------------------------- inpainting


@pytest.mark.verifies("eq-inpainting")
@every_schedule
def test_each_inpainting_step_is_that_of_diffusers(kind):
    """RePaintScheduler in float64 with η = 1, which uses one noise for both parts, and none of it in its last step; and
    its way back up, step by step, against ours in one."""
    schedule, theirs = SCHEDULES[kind], diffusers.RePaintScheduler(eta=1.0, clip_sample=False)
    exact(theirs, schedule).set_timesteps(50, jump_length=1, jump_n_sample=2)
    image, mask = draw(2, 1, 4, 4).clamp(-1, 1), torch.ones(4, 4)
    mask[1:3, 1:3] = 0
    for t in (981, 501, 21, 1):
        s = max(t - 20, 0)
        x, noise, eps = draw(2, 1, 4, 4, seed=2), draw(2, 1, 4, 4, seed=3), draw(2, 1, 4, 4, seed=t)
        want = theirs.step(noise, t - 1, x, image, mask, generator=generator(t)).prev_sample
        step = functools.partial(ddpm.inpaint_step, schedule, t, s, x, noise, image, mask == 1)
        torch.testing.assert_close(step(eps_unknown=eps, eps_known=eps), want, rtol=1e-8, atol=1e-8)


@every_schedule
def test_the_way_back_up_has_the_spread_of_diffusers_single_steps(kind):
    """RePaintScheduler's `undo_step` over 20 steps from 100,000 equal states: mean and spread, five standard errors of
    its draws (false alarm 2e-6)."""
    schedule, theirs = SCHEDULES[kind], diffusers.RePaintScheduler(eta=1.0)
    exact(theirs, schedule).set_timesteps(50, jump_length=1, jump_n_sample=2)
    one, zero, n = torch.ones(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64), 100_000
    up = theirs.undo_step(
        one.expand(n, 1), 480, generator=generator(0)
    )  # its timesteps 480 … 499 are our steps 481 … 500
    mean = ddpm.forward_jump(schedule, 480, 500, one, zero).item()
    spread = ddpm.forward_jump(schedule, 480, 500, zero, one).item()
    assert abs(up.mean().item() - mean) < 5 * spread / n**0.5
    assert abs(up.std().item() - spread) < 5 * spread / (2 * n) ** 0.5
