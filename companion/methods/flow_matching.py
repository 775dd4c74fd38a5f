r"""Flow matching: learn a velocity field by regression on the velocities of single pairs.

    L_CFM(θ) = E_{t, x_0, x_1} ‖v_θ(t, x_t) − u_t(x_t | x_0, x_1)‖²                                           (eq-cfm)
    dx_t/dt = v_θ(t, x_t),   x_0 ~ p_0,   t from 0 to 1                                                   (the sampler)

`x_0` is noise (or any source), `x_1` is data, `t` runs from 0 (noise) to 1 (data). A `path` says where the pair is at
time t (`x_t`) and how fast it moves there (`u_t`); a `coupling` says which noise goes with which data. The minimizer is
the marginal velocity E[u_t | x_t = x], which carries p_0 to the data. Models are called `model(t, x)` with t of shape
`(batch,)` or `()`.

Sources: Lipman et al. 2023 (conditional flow matching), Liu et al. 2023 (rectified flow, reflow, straightness),
Tong et al. 2024 (couplings by minibatch transport, path energy), Chen et al. 2018 (log-density along a flow).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from companion.data.batches import Source, draws, minibatches
from companion.device import rand, randn, randn_like
from companion.numerics.along import integrate_along
from companion.numerics.autodiff import value_and_divergence
from companion.numerics.ode import DormandPrince, FixedStepSolver, integrate
from companion.numerics.paths import GaussianPath, LinearPath, expand_time
from companion.numerics.sde import euler_maruyama
from companion.numerics.transport import PairingStream, sample_plan, sinkhorn_plan

Velocity = Callable[[Tensor, Tensor], Tensor]
Solver = FixedStepSolver | DormandPrince


# --- The loss ---------------------------------------------------------------------------------------------------------


def interpolate(
    path: GaussianPath | LinearPath,
    x_0: Float[Tensor, "batch ..."],
    x_1: Float[Tensor, "batch ..."],
    t: Float[Tensor, "batch"],
    *,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, "batch ..."]]:
    """Where each pair is at time t, and how fast it moves there.

    A Gaussian path takes x_0 as its noise: x_t = α_t x_1 + σ_t x_0 moves at α̇_t x_1 + σ̇_t x_0. A linear path moves at
    x_1 − x_0 and, if its σ > 0, blurs x_t with fresh noise.

    Args:
        path: A path of `companion.numerics.paths`.
        x_0: Noise, (batch, ...).
        x_1: Data, (batch, ...).
        t: Times in [0, 1], (batch,).
        generator: Source of the blur of a linear path with σ > 0; not needed otherwise.

    Returns:
        x_t and u_t, both (batch, ...).

    Raises:
        ValueError: If the shapes differ, or the path needs noise and there is no generator.
    """
    if x_0.shape != x_1.shape or x_0.dtype != x_1.dtype or t.shape != x_1.shape[:1]:
        received = f"x_0 {tuple(x_0.shape)} {x_0.dtype}, x_1 {tuple(x_1.shape)} {x_1.dtype}, t {tuple(t.shape)}"
        raise ValueError(f"interpolate: received {received}; rule: x_0 and x_1 alike, t (batch,)")
    if isinstance(path, LinearPath):
        return path.sample(t, x_0, x_1, _blur(path, x_0, generator)), path.velocity(x_0, x_1)
    x_t, s = path.sample(t, x_1, x_0), expand_time("interpolate", t, x_1)
    return x_t, path.d_alpha(s) * x_1 + path.d_sigma(s) * x_0


def _blur(path: LinearPath, x: Tensor, generator: torch.Generator | None) -> Tensor | None:
    if path.sigma == 0:
        return None
    if generator is None:
        raise ValueError(f"interpolate: received sigma={path.sigma} and no generator; rule: the blur is drawn from one")
    return randn_like(x, generator=generator)


def conditional_flow_matching_loss(
    model: Velocity,
    path: GaussianPath | LinearPath,
    x_0: Float[Tensor, "batch ..."],
    x_1: Float[Tensor, "batch ..."],
    t: Float[Tensor, "batch"],
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch"]:
    """‖v(t, x_t) − u_t‖² of each pair, summed over its coordinates (eq-cfm before the expectation).

    Args:
        model: v(t, x) with t (batch,) and x (batch, ...).
        path: A path of `companion.numerics.paths`.
        x_0: Noise, (batch, ...).
        x_1: Data, (batch, ...).
        t: Times in [0, 1], (batch,).
        generator: Needed by a linear path with σ > 0 only.

    Returns:
        The squared error of each example, (batch,).
    """
    x_t, u_t = interpolate(path, x_0, x_1, t, generator=generator)
    return (model(t, x_t) - u_t).square().flatten(1).sum(1)


# --- Couplings: which noise goes with which data ----------------------------------------------------------------------


@dataclass(frozen=True)
class IndependentCoupling:
    """π(x_0, x_1) = p_0(x_0) p_1(x_1): the pairs stay as they were drawn."""

    def __call__(self, x_0: Tensor, x_1: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return x_0, x_1


@dataclass(frozen=True)
class OptimalTransportCoupling:
    """Pairs the batch so that Σ ‖x_0 − x_1‖² is least: exact optimal transport between the two minibatches.

    It remembers the potentials of its first batch, which makes the later ones of the same distributions faster and
    changes no pairing: one coupling for one pair of distributions.
    """

    _pairing: PairingStream = field(default_factory=PairingStream, init=False, repr=False, compare=False)

    def __call__(self, x_0: Tensor, x_1: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return x_0, x_1[self._pairing(x_0.flatten(1), x_1.flatten(1))]


@dataclass(frozen=True)
class SinkhornCoupling:
    """Draws pairs from the entropic plan of the batch: ε → 0 is optimal transport, ε → ∞ independence."""

    epsilon: float

    def __call__(self, x_0: Tensor, x_1: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        plan = sinkhorn_plan(x_0.flatten(1), x_1.flatten(1), epsilon=self.epsilon)
        i, j = sample_plan(plan, len(x_0), generator=generator)
        return x_0[i], x_1[j]


Coupling = IndependentCoupling | OptimalTransportCoupling | SinkhornCoupling


# --- Batches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """The source N(0, I) on points or images of one shape: `Noise((1, 8, 8))`.

    Args:
        shape: Shape of one draw.
        device: Where the draws are wanted; they are made on the CPU.
    """

    shape: tuple[int, ...]
    device: torch.device | str = "cpu"

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """`n` draws, (n, *shape)."""
        return randn(n, *self.shape, generator=generator, device=self.device)


class Batch(NamedTuple):
    """What one training step needs; `conditional_flow_matching_loss(model, path, *batch)` takes it whole."""

    x_0: Tensor
    x_1: Tensor
    t: Tensor


def batches(
    source: Source, target: Source, coupling: Coupling, *, batch: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Endless training batches: `batch` coupled pairs, each with its own uniform time.

    Args:
        source: Where x_0 is drawn from, anything with `sample(n, generator=...)`.
        target: Where x_1 is drawn from.
        coupling: Which x_0 goes with which x_1.
        batch: Pairs of a batch.
        generator: Source of all randomness.
    """
    for x_0, x_1 in draws(source, target, size=batch, generator=generator):
        yield Batch(*coupling(x_0, x_1, generator=generator), _uniform_times(x_1, generator))


def paired_batches(
    x_0: Float[Tensor, "n ..."], x_1: Float[Tensor, "n ..."], *, batch: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Endless batches of pairs that belong together, as reflow needs them: rows are shuffled, pairs are kept."""
    for pair in minibatches(x_0, x_1, size=batch, generator=generator):
        yield Batch(*pair, _uniform_times(x_1, generator, batch))


def _uniform_times(x: Tensor, generator: torch.Generator, n: int | None = None) -> Tensor:
    return rand(n or len(x), generator=generator, dtype=x.dtype, device=x.device)


# --- Sampling ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample(model: Velocity, x_0: Float[Tensor, "batch ..."], solver: Solver) -> Float[Tensor, "batch ..."]:
    """Carries x_0 from t = 0 to t = 1 along dx/dt = v(t, x).

    Args:
        model: v(t, x).
        x_0: Start points, (batch, ...).
        solver: A solver of `companion.numerics.ode`, such as `Euler(steps=50)`.

    Returns:
        The points at t = 1, (batch, ...).
    """
    return integrate(model, x_0, solver).final


def sample_sde(
    model: Velocity,
    path: GaussianPath,
    x_0: Float[Tensor, "batch dim"],
    *,
    noise: float,
    steps: int,
    generator: torch.Generator,
) -> Float[Tensor, "batch dim"]:
    r"""Samples with fresh noise on the way and the same marginals p_t as the ODE.

        dX = [v + (g²/2) ∇log p_t] dt + g dW,    g_t² = noise² σ_t

    Any g leaves the marginals alone, because (g²/2) Δp = div(p (g²/2) ∇log p). This one makes the drift finite up to
    t = 1: σ_t ∇log p_t = −ε̂_t, the noise prediction with its sign changed.

    Args:
        model: v(t, x), trained on `path` with independent Gaussian noise (else the score is not the velocity's).
        path: The Gaussian path that the model was trained on.
        x_0: Draws of N(0, I), (batch, dim).
        noise: Strength of the noise; 0 is Euler's method on the ODE.
        steps: Number of equal steps from t = 0 to t = 1.
        generator: Source of the noise.

    Returns:
        The points at t = 1, (batch, dim).
    """

    def drift(t, x):
        v = model(t, x)
        return v - noise**2 / 2 * path.noise_from_velocity(t, x, v)

    def diffusion(t):
        return noise * path.sigma(t).clamp(min=0).sqrt()

    with torch.no_grad():
        return euler_maruyama(drift, diffusion, x_0, steps=steps, generator=generator, every=steps).final


def reflow_pairs(
    model: Velocity, x_0: Float[Tensor, "batch ..."], solver: Solver
) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, "batch ..."]]:
    """The coupling that a trained flow defines: each x_0 with the point that it is carried to (Liu et al. 2023, 2.1).

    Returns:
        x_0 and x_1, to be trained on again with `paired_batches` and a linear path with σ = 0.
    """
    return x_0, sample(model, x_0, solver)


# --- Straightness -----------------------------------------------------------------------------------------------------


def straightness(model: Velocity, x_0: Float[Tensor, "batch ..."], solver: Solver) -> Float[Tensor, ""]:
    """E ∫₀¹ ‖(x_1 − x_0) − v(t, x_t)‖² dt (Liu et al. 2023, section 2.2): 0 only where every trajectory is straight.

    As x_1 − x_0 = ∫ v dt, it is the path energy E ∫ ‖v‖² dt minus E ‖x_1 − x_0‖², and is computed so.

    Args:
        model: v(t, x).
        x_0: Start points, (batch, ...).
        solver: A solver of `companion.numerics.ode`.
    """

    def speed(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        v = model(t, x)
        return v, v.flatten(1).square().sum(1)

    with torch.no_grad():
        x_1, energy = integrate_along(speed, x_0, solver)
    return (energy - (x_1 - x_0).flatten(1).square().sum(1)).mean()


# --- Likelihood -------------------------------------------------------------------------------------------------------


@runtime_checkable
class Base(Protocol):
    """The density of x_0."""

    def log_prob(self, x: Tensor) -> Tensor: ...


def log_likelihood(
    model: Velocity,
    x_1: Float[Tensor, "batch ..."],
    base: Base,
    solver: Solver,
    *,
    divergence: Callable[[Velocity, Tensor, Tensor], tuple[Tensor, Tensor]] = value_and_divergence,
) -> Float[Tensor, "batch"]:
    """log p_1(x_1) in nats, by the instantaneous change of variables along the trajectory that ends at x_1.

        log p_1(x_1) = log p_0(x_0) − ∫₀¹ div v(t, x_t) dt                                         (eq-log-likelihood)

    The trajectory is solved backwards, from t = 1 to t = 0, and the divergence is summed along it.

    Args:
        model: v(t, x).
        x_1: Points to judge, (batch, ...).
        base: The density of x_0: `log_prob` on (batch, dim), with the dimensions of a point flattened.
        solver: A solver of `companion.numerics.ode`.
        divergence: `divergence(v, t, x)` gives v and div v. Exact unless given, which costs one backward pass a
            dimension; `functools.partial(value_and_hutchinson_divergence, noise=noise)` costs one, and is unbiased.

    Returns:
        Log-densities, (batch,).
    """
    with torch.no_grad():
        x_0, change = integrate_along(lambda t, x: divergence(model, t, x), x_1, solver, t0=1.0, t1=0.0)
    return base.log_prob(x_0.flatten(1)) + change
