"""What a sampler costs outside its network: one step of ours against the same step of diffusers' schedulers.

The state is 64 images of 1×8×8 in float32, the linear schedule has 1,000 steps, and the network is a tensor that was
drawn beforehand: all that is timed is a scheduler's arithmetic and its Python. A run is 50 steps, spaced evenly from T
to 0 (ancestral sampling: the last 50 of the 1,000). Both sides take the same steps from the same noise and end at the
same image, which is checked before the clock starts. diffusers is asked for tuples, its cheapest answer; what it has to
do before the first step (`set_timesteps`) is inside its run, as our list of steps is inside ours.

DDIM with η = 1 is given its noise. DDPMScheduler draws it itself, so there both sides draw it, for the same 20 µs or so
a step.
"""

import functools
import itertools
from collections.abc import Callable

import diffusers
import torch
from torch import Tensor

from benchmarks.harness import CLOCK, Case, interleaved, one_thread
from companion.device import generator, randn, randn_like
from companion.methods import diffusion as ddpm
from companion.numerics.schedules import data_from_noise, linear_schedule

SHAPE, STEPS, RUNS = (64, 1, 8, 8), 50, 10
PEER = f"diffusers {diffusers.__version__}"
GOAL = 0.5


def state(seed: int) -> Tensor:
    """A batch of noise images."""
    return randn(*SHAPE, generator=generator(seed))


def ddim(eta: float) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """50 DDIM steps, ours and theirs."""
    schedule, x, noise, eps = linear_schedule(), state(0), state(1), state(2)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")

    def ours() -> Tensor:
        y = x
        for t, s in itertools.pairwise(ddpm.spaced_steps(schedule.steps, STEPS)):
            y = ddpm.ddim_step(schedule, t, s, y, noise, eta=eta, eps=eps)
        return y

    def theirs() -> Tensor:
        y = x
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            y = scheduler.step(noise, t, y, eta=eta, variance_noise=eps, return_dict=False)[0]
        return y

    return ours, theirs


def dpm_solver() -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """50 steps of DPM-Solver++(2M), ours and theirs."""
    schedule, x, noise = linear_schedule(), state(0), state(1)
    scheduler = diffusers.DPMSolverMultistepScheduler(timestep_spacing="trailing")

    def ours() -> Tensor:
        y, before = x, None
        for t, s in itertools.pairwise(ddpm.spaced_steps(schedule.steps, STEPS)):
            x_0 = data_from_noise(schedule, t, y, noise)
            y, before = ddpm.dpm_solver_step(schedule, t, s, y, x_0, before=before), (t, x_0)
        return y

    def theirs() -> Tensor:
        y = x
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            y = scheduler.step(noise, t, y, return_dict=False)[0]
        return y

    return ours, theirs


def ancestral() -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The last 50 steps of ancestral sampling, ours and theirs."""
    schedule, x, noise = linear_schedule(), state(0), state(1)
    scheduler = diffusers.DDPMScheduler(clip_sample=False)

    def ours() -> Tensor:
        g, y = generator(2), x
        for t in range(STEPS, 0, -1):
            eps = randn_like(y, generator=g) if t > 1 else torch.zeros_like(y)
            y = ddpm.ancestral_step(schedule, t, y, noise, eps)
        return y

    def theirs() -> Tensor:
        g, y = generator(2), x
        for t in range(STEPS - 1, -1, -1):
            y = scheduler.step(noise, t, y, generator=g, return_dict=False)[0]
        return y

    return ours, theirs


def overhead() -> list[Case]:
    """CPU time of one step outside the network."""
    samplers = {
        "DDIM": (functools.partial(ddim, 0.0), "DDIMScheduler"),
        "DDIM, η = 1": (functools.partial(ddim, 1.0), "DDIMScheduler"),
        "DPM-Solver++(2M)": (dpm_solver, "DPMSolverMultistepScheduler"),
        "ancestral": (ancestral, "DDPMScheduler"),
    }
    cases = []
    with one_thread():
        for name, (build, scheduler) in samplers.items():
            ours, theirs = build()
            torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-3)
            mine, peer = interleaved(functools.partial(repeated, ours), functools.partial(repeated, theirs))
            steps = [tuple(1e6 * second / (RUNS * STEPS) for second in seconds) for seconds in (mine, peer)]
            cases.append(Case(name, *steps, f"{PEER} {scheduler}", goal=GOAL, unit="µs a step", clock=CLOCK))
    return cases


def repeated(run: Callable[[], Tensor]) -> None:
    """Ten runs: long enough for the clock."""
    for _ in range(RUNS):
        run()


MEASURES: dict[str, Callable[[], list[Case]]] = {"sampler-overhead": overhead}
