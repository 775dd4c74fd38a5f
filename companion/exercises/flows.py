"""The exercises of chapter 08, flows and vector fields, each with the wrong answers that people give."""

import math

import torch

from companion.exercises.checking import Exercise
from companion.numerics.ode import RungeKutta4, integrate

# ---------------------------------------------------------------------- a-pull-with-a-season (warm-up)


def _season_inputs(generator):
    x = torch.randn(16, generator=generator, dtype=torch.float64)
    return x, 0.4, 2.3


a_pull_with_a_season = Exercise(
    inputs=_season_inputs,
    right=lambda x, s, t: x * math.exp(math.sin(t) - math.sin(s)),
    also_right=(
        lambda x, s, t: (x.abs().log() + math.sin(t) - math.sin(s)).exp() * x.sign(),
        lambda x, s, t: x * (torch.tensor(t).double().sin().exp() / torch.tensor(s).double().sin().exp()),
    ),
    wrong={
        "you used only the time that passed, t − s. This field changes with time, so it matters when you start.": (
            lambda x, s, t: x * math.exp(math.sin(t - s))
        ),
        "at t = s your map is not the identity: the integral of the rate starts at s, not at 0.": (
            lambda x, s, t: x * math.exp(math.sin(t))
        ),
        "this is the way back, from t to s: the integral runs from s to t.": (
            lambda x, s, t: x * math.exp(math.sin(s) - math.sin(t))
        ),
        "you froze the field at its first moment, cos(s). The rate changes on the way: integrate it.": (
            lambda x, s, t: x * math.exp((t - s) * math.cos(s))
        ),
        "the rate acts on what is there already, so effects multiply: the solution of x' = a(t) x is an exponential.": (
            lambda x, s, t: x * (1 + math.sin(t) - math.sin(s))
        ),
        "you put the rate itself into the exponent; its integral over time belongs there.": (
            lambda x, s, t: x * math.exp(math.cos(t) - math.cos(s))
        ),
    },
)

# ---------------------------------------------------------------------- field-from-a-flow (spot the bug, E11)


def _flow(t, x):
    return math.exp(-(t**2)) * x + math.sin(t)


def _inverse(t, x):
    return (x - math.sin(t)) * math.exp(t**2)


def _field_from_flow_inputs(generator):
    return _flow, _inverse, 0.8, torch.randn(16, generator=generator, dtype=torch.float64)


def _central(f, t, x, h=1e-4):
    return (f(t + h, x) - f(t - h, x)) / (2 * h)


field_from_a_flow = Exercise(
    inputs=_field_from_flow_inputs,
    right=lambda flow, inverse, t, x: _central(flow, t, inverse(t, x)),
    also_right=(
        lambda flow, inverse, t, x: (flow(t + 1e-4, inverse(t, x)) - x) / 1e-4,
        lambda flow, inverse, t, x: (x - flow(t - 1e-5, inverse(t, x))) / 1e-5,
    ),
    wrong={
        "this is the derivative at time 0. Only a field that never changes is known from that moment; here it is asked "
        "for time t.": lambda flow, inverse, t, x: _central(flow, 0.0, x),
        "the time is right, the particle is not: φ_t(x) is where the particle that started at x is now. Which start "
        "leads to x at time t?": lambda flow, inverse, t, x: _central(flow, t, x),
        "this is the average velocity over the whole journey, not the velocity at time t.": (
            lambda flow, inverse, t, x: (x - inverse(t, x)) / t
        ),
        "this follows the starting point that belongs to x as time passes: the derivative of the inverse, not of the "
        "flow.": lambda flow, inverse, t, x: _central(inverse, t, x),
        "you went back to the start twice: differentiate the flow at time t for the particle φ_t⁻¹(x).": (
            lambda flow, inverse, t, x: _central(flow, t, inverse(t, inverse(t, x)))
        ),
    },
    atol=2e-3,
    rtol=2e-3,
)

# ---------------------------------------------------------------------- midpoint-step (spot the bug, E12)


def _swirl(t, x):
    return torch.stack([x[:, 1] - t * x[:, 0], -torch.sin(x[:, 0]) + t**2], dim=1)


def _midpoint_inputs(generator):
    return _swirl, 0.7, torch.randn(16, 2, generator=generator, dtype=torch.float64), 0.5


def _middle(v, t, x, h):
    return x + h / 2 * v(t, x)


midpoint_step = Exercise(
    inputs=_midpoint_inputs,
    right=lambda v, t, x, h: x + h * v(t + h / 2, _middle(v, t, x, h)),
    also_right=(lambda v, t, x, h: x + v(t + 0.5 * h, x + 0.5 * (h * v(t, x))) * h,),
    wrong={
        "the last line still moves by half a step. Half a step was only the way to a better slope; the update uses the "
        "whole h. As it stands, the clock runs twice as fast as the particles.": (
            lambda v, t, x, h: x + h / 2 * v(t + h / 2, _middle(v, t, x, h))
        ),
        "both bugs are still there: the slope is taken at the old time, and the last line moves by half a step.": (
            lambda v, t, x, h: x + h / 2 * v(t, _middle(v, t, x, h))
        ),
        "the slope is taken at the middle point but at the old time: v(t, x_mid). A field that changes must be asked "
        "at t + h/2.": lambda v, t, x, h: x + h * v(t, _middle(v, t, x, h)),
        "the slope is taken at the middle time but at the old point: v(t + h/2, x).": (
            lambda v, t, x, h: x + h * v(t + h / 2, x)
        ),
        "this is Euler's step: the slope in the middle is never used.": lambda v, t, x, h: x + h * v(t, x),
        "you continue from the middle point with the new slope: that is two Euler steps of h/2. The update starts "
        "again at x.": lambda v, t, x, h: _middle(v, t, x, h) + h / 2 * v(t + h / 2, _middle(v, t, x, h)),
        "you start at the middle point and then move by the whole h: 3h/2 in all. The update starts again at x.": (
            lambda v, t, x, h: _middle(v, t, x, h) + h * v(t + h / 2, _middle(v, t, x, h))
        ),
        "the slope comes from the end of an Euler step: the point in the middle is half a step away.": (
            lambda v, t, x, h: x + h * v(t + h, x + h * v(t, x))
        ),
    },
    atol=1e-6,
    rtol=1e-6,
)

# ---------------------------------------------------------------------- growth-with-a-ceiling (variant)


def _ceiling_inputs(generator):
    return torch.rand(32, generator=generator, dtype=torch.float64) * 0.9 + 0.05, 1.5


def _start_of(x, t):
    return x / (x + (1 - x) * math.exp(t))


growth_with_a_ceiling = Exercise(
    inputs=_ceiling_inputs,
    right=lambda x, t: t - 2 * torch.log(x + (1 - x) * math.exp(t)),
    also_right=(
        lambda x, t: -t - 2 * torch.log(1 - x + x * math.exp(-t)),
        lambda x, t: (_start_of(x, t) * (1 - _start_of(x, t)) / (x * (1 - x))).log(),
    ),
    wrong={
        "you stretched at the wrong end: this is the derivative of the forward flow at x. The density at x comes from "
        "the start φ_t⁻¹(x).": lambda x, t: t - 2 * torch.log(1 + x * (math.exp(t) - 1)),
        "the sign of the divergence is turned: where the field spreads points, their density falls.": (
            lambda x, t: 2 * torch.log(x + (1 - x) * math.exp(t)) - t
        ),
        "you read the density at the starting point and left it unchanged: the field squeezes and stretches on "
        "the way.": (lambda x, t: torch.zeros_like(x)),
        "the divergence 1 − 2x changes along the way: you multiplied its last value by t; integrate it along "
        "the path.": (lambda x, t: -t * (1 - 2 * x)),
        "the divergence 1 − 2x changes along the way: you multiplied its first value by t; integrate it along "
        "the path.": (lambda x, t: -t * (1 - 2 * _start_of(x, t))),
        "this is the density; its logarithm is asked for.": lambda x, t: math.exp(t) / (x + (1 - x) * math.exp(t)) ** 2,
    },
)

# ---------------------------------------------------------------------- langevin-variance (derivation)


def _langevin_inputs(generator):
    return 0.3, 0.7


langevin_variance = Exercise(
    inputs=_langevin_inputs,
    right=lambda h, s: s**2 / (1 - h / (2 * s**2)),
    also_right=(lambda h, s: 2 * h / (1 - (1 - h / s**2) ** 2),),
    wrong={
        "this is the variance of the target, which the sampler has only in the limit h → 0.": lambda h, s: s**2,
        "the score of N(0, s²) is −x/s²: you used −x.": lambda h, s: 2 * h / (1 - (1 - h) ** 2),
        "the sign of the bias is turned: a finite step makes the cloud too wide.": (
            lambda h, s: s**2 / (1 + h / (2 * s**2))
        ),
        "a factor on x acts squared on its variance: (1 − h/s²)².": lambda h, s: 2 * h / (1 - (1 - h / s**2)),
        "the noise √(2h) ε has variance 2h: you used h.": lambda h, s: h / (1 - (1 - h / s**2) ** 2),
        "this is the standard deviation; the variance is asked for.": lambda h, s: s / math.sqrt(1 - h / (2 * s**2)),
    },
    atol=1e-6,
)

# ---------------------------------------------------------------------- without-the-noise (variant)


def _quiet_inputs(generator):
    x, score = torch.randn(2, 16, 3, generator=generator, dtype=torch.float64)
    return 1.7, x, score


without_the_noise = Exercise(
    inputs=_quiet_inputs,
    right=lambda beta, x, score: -0.5 * beta * (x + score),
    also_right=(lambda beta, x, score: -beta * x / 2 - math.sqrt(beta) ** 2 * score / 2,),
    wrong={
        "the factor ½ is missing before g² ∇log p: with the whole g² you have the drift of the noisy process run "
        "backwards.": lambda beta, x, score: -0.5 * beta * x - beta * score,
        "the sign of the score term is turned. Noise pushes probability away from where it is dense, so the field goes "
        "down the score.": lambda beta, x, score: -0.5 * beta * x + 0.5 * beta * score,
        "g = √β, so g² = β: you squared β itself.": lambda beta, x, score: -0.5 * beta * x - 0.5 * beta**2 * score,
        "you used g where g² belongs.": lambda beta, x, score: -0.5 * beta * x - 0.5 * math.sqrt(beta) * score,
        "this is only what replaces the noise; the drift −½βx still acts.": lambda beta, x, score: -0.5 * beta * score,
        "this drops the noise and puts nothing in its place: without the score term all points fall to the origin.": (
            lambda beta, x, score: -0.5 * beta * x
        ),
    },
)

# ---------------------------------------------------------------------- carry-a-bell (open)


def _carry(answer):
    """Mean, standard deviation and some quantiles of what becomes of N(0, 1), represented by 999 quantiles."""
    levels = torch.arange(1, 1000, dtype=torch.float64) / 1000
    x = torch.special.ndtri(levels)[:, None]
    end = integrate(answer, x, RungeKutta4(steps=40)).final[:, 0]
    return {
        "mean": end.mean(),
        "standard deviation": end.std() / x.std(),
        "quantiles at 10%, 25%, 75%, 90%": end.sort().values[[99, 249, 749, 899]],
    }


carry_a_bell = Exercise(
    right=lambda t, x: 2 - 0.5 * (x - 2 * t) / (1 - 0.5 * t),
    also_right=(
        lambda t, x: 2 + math.log(0.5) * (x - 2 * t),
        lambda t, x: math.log(0.5) * (x - 4),
        lambda t, x: 2 - (x - 2 * t) / (2 - t),
    ),
    apply=_carry,
    wrong={
        "the bell arrives at the right place with its old width: a field that is the same everywhere cannot squeeze.": (
            lambda t, x: 2 + 0 * x
        ),
        "2 − x/2 is the velocity of the particle that *started* at x. The field is asked at where the particle is now: "
        "express its start by t and x.": lambda t, x: 2 - 0.5 * x,
        "the width is right, the place is not: the center moves, so squeeze towards 2t, not towards 0.": (
            lambda t, x: 2 + math.log(0.5) * x
        ),
        "the place is right, the bell is too wide: the rate −½ held for unit time gives the factor e^(−½), not ½.": (
            lambda t, x: 2 - 0.5 * (x - 2 * t)
        ),
        "you have only the squeeze: the center does not move.": lambda t, x: math.log(0.5) * x,
    },
    atol=5e-3,
    rtol=5e-3,
)

EXERCISES = {
    "a-pull-with-a-season": a_pull_with_a_season,
    "field-from-a-flow": field_from_a_flow,
    "midpoint-step": midpoint_step,
    "growth-with-a-ceiling": growth_with_a_ceiling,
    "without-the-noise": without_the_noise,
    "langevin-variance": langevin_variance,
    "carry-a-bell": carry_a_bell,
}
