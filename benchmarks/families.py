"""The families that `course compare` sets side by side, one class each.

A family learns two things from the same data and with the same seconds as all others: a density in the plane and the
8 × 8 digits. `plane(task)` and `digits(task)` train on `task.train` until `task.seconds` of CPU time are spent, with
randomness from `task.seed` alone, and return a `Trained` that can be sampled and, where the family has a likelihood or
a bound of it, judged. To add a family, write a class with these two methods and put it into `FAMILIES`.

The likelihood of digits is the price of their whole gray levels k = 0 … 16, for all families alike: a density on real
numbers could be made as large as one likes at the levels themselves. What is a density is turned into a bound of that
price by noise that fills the gaps (chapter 03): uniform noise for the VAE, and for flow matching and diffusion their
own noise, at the time when it is about half as wide as a level.
"""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks import digits, vae_digits
from benchmarks.training import train_for
from companion.data import Empirical, standard_normal
from companion.data.batches import minibatches
from companion.device import generator, rand, randn, randn_like, seeded
from companion.methods import diffusion as ddpm
from companion.methods import energy, guidance, vae
from companion.methods import flow_matching as fm
from companion.methods import normalizing_flows as nf
from companion.nn import MLP, UNet, VelocityMLP
from companion.numerics.autodiff import rademacher, value_and_hutchinson_divergence
from companion.numerics.ode import Heun, RungeKutta4
from companion.numerics.paths import CondOT
from companion.numerics.sampling import langevin
from companion.numerics.schedules import NoiseSchedule, cosine_schedule, linear_schedule
from companion.training import adam

LEVELS = 16  # gray levels of the digits are 0 … 16; a pixel is k/8 − 1
PIXELS = 64
Nats = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Task:
    """What a family learns from.

    Attributes:
        train: points (n, 2) or images (n, 1, 8, 8) in [−1, 1].
        labels: of the training data, whole numbers from 0; in the plane the square that a point lies in.
        seconds: of CPU time that training may take.
        seed: of everything that is random.
    """

    train: Tensor
    labels: Tensor
    seconds: float
    seed: int = 0

    @property
    def count(self) -> int:
        """How many labels there are."""
        return int(self.labels.max()) + 1


@dataclass(frozen=True)
class Trained:
    """A trained family.

    Attributes:
        model: all that was trained; its weights are counted.
        network: what is evaluated to sample; its rows are counted.
        sample: `sample(n, generator)` draws points or images.
        nats: `nats(x, generator)` is −log p(x) of each point, or −log P of each image's gray levels, or a bound of it;
            None where the family has none.
        exact: whether `nats` is the likelihood itself, to the accuracy of a solver, and no bound.
    """

    model: nn.Module
    network: nn.Module
    sample: Callable[[int, torch.Generator], Tensor]
    nats: Nats | None = None
    exact: bool = False


class Family(Protocol):
    """One row of the table.

    Attributes:
        key: of its row, kebab-case.
        name: what the table calls it.
        chapter: the slug of the chapter that teaches it.
        about: one sentence on how it was trained and is sampled.
    """

    key: str
    name: str
    chapter: str
    about: str

    def plane(self, task: Task) -> Trained | None: ...
    def digits(self, task: Task) -> Trained | None: ...


# --- what several share -----------------------------------------------------------------------------------------------


def trained_in_plane(
    seconds: float, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], batches: Iterable
) -> nn.Module:
    """Adam for so many CPU seconds; the average of the weights."""
    return train_for(seconds, model, loss, batches, optimizer=adam(model, 3e-3), warmup=0.02, clip=10.0).model


def nats_of_levels(nats: Nats) -> Nats:
    """From −log p of an image's pixels, as a density, to a bound of −log P of its gray levels."""
    return lambda x, source: nats(vae_digits.dequantize(x, source), source) + PIXELS * math.log(LEVELS / 2)


def log_prob_of_levels(x: Tensor, noisy: Tensor, signal: float, sigma: float) -> Tensor:
    """log P(k | signal · k + sigma · ε) of whole images, if all 17 levels of a pixel are equally likely."""
    levels = torch.linspace(-1, 1, LEVELS + 1)
    explained = (-(noisy[..., None] - signal * levels).square() / (2 * sigma**2)).log_softmax(dim=-1)
    right = ((x + 1) * (LEVELS / 2)).round().long()[..., None]
    return explained.gather(-1, right).flatten(1).sum(1)


# --- networks for the recipes of benchmarks.digits, which tell the digit ----------------------------------------------


class Untold(nn.Module):
    """A U-Net that is told no digit, whatever its caller says."""

    def __init__(self) -> None:
        super().__init__()
        self.net = UNet(1, channels=(32, 64))

    def forward(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.net(t, x)


class SometimesTold(nn.Module):
    """A U-Net that is told the digit, but for the first tenth of each training batch: batches are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.labels = UNet(1, channels=(32, 64), labels=10), 10

    def forward(self, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if self.training:
            y = y.clone()
            y[: len(y) // 10] = self.labels
        return self.net(t, x, y)


# --- chapter 12 -------------------------------------------------------------------------------------------------------


class FlowMatching:
    """v(t, x) by regression on x_1 − x_0; Heun's method carries noise to data."""

    key, name, chapter = "flow-matching", "Flow matching", "12-flow-matching"
    about = "Straight paths between noise and data; 20 or 25 steps of Heun's method."
    steps = 20  # in the plane; the recipe for digits has its own

    def plane(self, task: Task) -> Trained:
        source = generator(task.seed)
        with seeded(source):
            model = VelocityMLP(2)

        def loss(model: nn.Module, batch: fm.Batch) -> Tensor:
            return fm.conditional_flow_matching_loss(model, CondOT(), *batch).mean()

        data = fm.batches(fm.Noise((2,)), Empirical(task.train), fm.IndependentCoupling(), batch=512, generator=source)
        model = trained_in_plane(task.seconds, model, loss, data)

        def sample(n: int, source: torch.Generator) -> Tensor:
            return fm.sample(model, randn(n, 2, generator=source), Heun(steps=self.steps))

        def nats(x: Tensor, _: torch.Generator) -> Tensor:
            return -fm.log_likelihood(model, x, standard_normal(2), RungeKutta4(steps=40))

        return Trained(model, model, sample, nats, exact=True)

    def digits(self, task: Task) -> Trained:
        trained = digits.flow_matching_digits(task.seed, task.seconds, network=Untold)
        model = trained.model

        def sample(n: int, source: torch.Generator) -> Tensor:
            return trained.sample(torch.zeros(n, dtype=torch.long), generator=source)

        return Trained(model, model, sample, functools.partial(nats_of_a_flow, model))


def nats_of_a_flow(model: nn.Module, x: Tensor, source: torch.Generator, *, tau: float = 0.96) -> Tensor:
    """A bound of −log P of gray levels, from the flow shortly before its end.

        −log P(k) ≤ E_q [−log p_τ(x_τ) + log q(x_τ | k) − log P(k | x_τ)],   q = N(τ k, (1 − τ)² I)

    p_τ is the flow's own density at time τ, of noisy data, on which it was trained: no density at the levels themselves
    is asked for. The bound holds for every τ; this one was the smallest on training digits.
    """
    sigma, noise = 1 - tau, randn_like(x, generator=source)
    x_tau = tau * x + sigma * noise
    signs = rademacher(x.shape, source)  # in place of the 64 derivatives of the divergence
    log_p = fm.log_likelihood(
        lambda s, x: tau * model(tau * s, x), x_tau, standard_normal(PIXELS), RungeKutta4(steps=30),
        divergence=functools.partial(value_and_hutchinson_divergence, noise=signs),
    )  # fmt: skip
    log_q = -0.5 * (noise.square() + math.log(2 * math.pi * sigma**2)).flatten(1).sum(1)
    return -log_p + log_q - log_prob_of_levels(x, x_tau, tau, sigma)


# --- chapter 13 -------------------------------------------------------------------------------------------------------


class Guided(FlowMatching):
    """(1 − w) v(t, x) + w v(t, x, y) with w = 2; each sample is given a label, as often as the data have it."""

    key, name, chapter = "guided", "Flow matching, guided", "13-guidance"
    about = (
        "Told a label (the square, the digit) and pushed towards it with weight 2; two evaluations a stage, and no "
        "likelihood."
    )
    weight = 2.0

    def plane(self, task: Task) -> Trained:
        with seeded(source := generator(task.seed)):
            model = VelocityMLP(2, labels=task.count, dim_label=8)

        def loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
            x_1, y = pair
            x_0, t = randn_like(x_1, generator=source), rand(len(x_1), generator=source)
            return fm.conditional_flow_matching_loss(guidance.given(model, y), CondOT(), x_0, x_1, t).mean()

        def drop(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x, guidance.drop_labels(y, probability=0.1, null=task.count, generator=source)

        data = minibatches(task.train, task.labels, size=512, generator=source, augment=drop)
        model = trained_in_plane(task.seconds, model, loss, data)
        return Trained(model, model, self.sampler(model, task, self.steps))

    def digits(self, task: Task) -> Trained:
        model = digits.flow_matching_digits(task.seed, task.seconds, network=SometimesTold).model
        return Trained(model, model, self.sampler(model, task, 25))

    def sampler(self, model: nn.Module, task: Task, steps: int) -> Callable[[int, torch.Generator], Tensor]:
        """Labels as the data have them, then the guided flow."""

        def sample(n: int, source: torch.Generator) -> Tensor:
            y = task.labels[torch.randint(len(task.labels), (n,), generator=source)]
            noise = randn(n, *task.train.shape[1:], generator=source)
            return fm.sample(guidance.Guided(model, y, self.weight), noise, Heun(steps=steps))

        return sample


# --- chapter 10 -------------------------------------------------------------------------------------------------------


class Diffusion:
    """1,000 noise levels; DDIM walks back through 50 of them."""

    key, name, chapter = "ddpm", "DDPM, DDIM sampler", "10-ddpm"
    about = "1,000 noise levels and 50 steps of DDIM. The bound is that of the whole chain of steps."
    steps = 50

    def plane(self, task: Task) -> Trained:
        schedule = linear_schedule()
        with seeded(source := generator(task.seed)):
            model = VelocityMLP(2)

        def loss(model: nn.Module, batch: ddpm.Batch) -> Tensor:
            return ddpm.noise_prediction_loss(model, schedule, *batch).mean()

        data = ddpm.batches(Empirical(task.train), schedule, batch=512, generator=source)
        model = trained_in_plane(task.seconds, model, loss, data)

        def sample(n: int, source: torch.Generator) -> Tensor:
            return ddpm.ddim_sample(model, schedule, randn(n, 2, generator=source), steps=self.steps)

        def nats(x: Tensor, source: torch.Generator) -> Tensor:
            bound = ddpm.variational_bound(
                model, schedule, x, generator=source, decoder=ddpm.gaussian_log_prob, variance="beta"
            )
            return bound.total

        return Trained(model, model, sample, nats)

    def digits(self, task: Task) -> Trained:
        trained, schedule = digits.ddpm_digits(task.seed, task.seconds, network=Untold), cosine_schedule(1_000)
        noise_model = ddpm.noise_model_from_velocity(trained.model, schedule)  # the recipe's network predicts v

        def sample(n: int, source: torch.Generator) -> Tensor:
            return trained.sample(torch.zeros(n, dtype=torch.long), generator=source)

        nats = functools.partial(nats_of_a_chain, noise_model, schedule)
        return Trained(trained.model, trained.model, sample, nats)


def nats_of_a_chain(
    model: ddpm.NoiseModel,
    schedule: NoiseSchedule,
    x: Tensor,
    source: torch.Generator,
    *,
    last: int = 20,
    draws: int = 200,
) -> Tensor:
    """A bound of −log P of gray levels: the chain's terms down to step `last`, where the levels are read off.

        −log P(k) ≤ L_T + Σ_{t > last} L_{t−1} − E log P(k | x_last)

    Below that step the noise is thinner than a gray level, and the chain only polishes.
    """
    width = (schedule.steps - last) / draws
    nats = ddpm.prior_term(schedule, x)
    for part in range(draws):  # one step a part, drawn anew for each image
        t = last + 1 + ((part + rand(len(x), generator=source)) * width).long().clamp(max=schedule.steps - last - 1)
        eps = randn_like(x, generator=source)
        with torch.no_grad():
            nats = nats + width * ddpm.step_term(model, schedule, x, t, eps, variance="beta", clip=1.0)
    signal, sigma = (float(part(last, x)) for part in (schedule.signal, schedule.noise))
    x_last = schedule.add_noise(last, x, randn_like(x, generator=source))
    return nats - log_prob_of_levels(x, x_last, signal, sigma)


# --- chapter 05 -------------------------------------------------------------------------------------------------------


class PlainVAE:
    """Perceptrons and the prior N(0, I). The decoder's variance: learned in the plane, ½ on the digits."""

    key, name, chapter = "vae", "VAE, plain", "05-vae"
    about = (
        "Prior N(0, I). Plane: learned width of the decoder's noise. Digits: squared error plus divergence; drawn are "
        "the decoder's means, and the bound is that of the model with noise."
    )
    dim, width = 2, 64

    def plane(self, task: Task) -> Trained:
        with seeded(source := generator(task.seed)):
            model = vae.mlp_vae((2,), vae.GaussianLikelihood.learned(-2.0), dim=self.dim, width=self.width, depth=2)

        def loss(model: nn.Module, pair: tuple[Tensor, ...]) -> Tensor:
            (x,) = pair
            return -vae.elbo(model, x, randn(len(x), self.dim, generator=source)).value.mean()

        data = minibatches(task.train, size=512, generator=source)
        model = trained_in_plane(self.share * task.seconds, model, loss, data)
        self.finish(model, task, source)

        def sample(n: int, source: torch.Generator) -> Tensor:
            return model.sample(n, generator=source)

        def nats(x: Tensor, source: torch.Generator) -> Tensor:
            with torch.no_grad():
                return -vae.iwae_bound(model, x, randn(256, len(x), self.dim, generator=source))

        return Trained(model, model.decoder, sample, nats)

    def digits(self, task: Task) -> Trained:
        trained = self.recipe(task.seed, task.seconds)

        def sample(n: int, source: torch.Generator) -> Tensor:
            return trained.sample(n, generator=source)

        def nats(x: Tensor, source: torch.Generator) -> Tensor:
            return -trained.log_likelihood_bound(x, generator=source)

        return Trained(trained.model, trained.model.decoder, sample, nats_of_levels(nats))

    recipe = staticmethod(vae_digits.plain_digits_vae)
    share = 1.0  # of the seconds that the networks get

    def finish(self, model: vae.VAE, task: Task, source: torch.Generator) -> None:
        """What is done after the networks are trained: nothing."""


class BestVAE(PlainVAE):
    """The decoder's variance is learned, and the prior is fitted to the latents that the encoder uses."""

    key, name = "vae-best", "VAE, fitted prior"
    about = (
        "Learned width of the decoder's noise; after training a mixture of Gaussians, fitted to the codes of the data, "
        "replaces the prior. On digits the decoder's means are drawn."
    )
    recipe = staticmethod(vae_digits.best_digits_vae)
    share = 0.95

    def finish(self, model: vae.VAE, task: Task, source: torch.Generator) -> None:
        """Fit the prior."""
        model.prior = vae.mixture_prior(model, task.train, components=20, draws=2, generator=source)


# --- chapter 07 -------------------------------------------------------------------------------------------------------


class Landscape(nn.Module):
    """E(x) = net(x) + ½ ‖x‖²: the second part keeps chains from leaving for places without data."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0] + 0.5 * x.square().flatten(1).sum(1)


@dataclass(frozen=True)
class Cloud:
    """Where chains start: normal noise of one shape."""

    shape: tuple[int, ...]
    std: float

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        return self.std * randn(n, *self.shape, generator=generator)


class EnergyBased:
    """p ∝ e^{−E}: contrastive divergence pushes E down on data, and up where chains of Langevin steps are."""

    key, name, chapter = "energy", "Energy-based", "07-energy-based-models"
    about = (
        "Contrastive divergence with chains that go on; samples are the ends of new, longer chains. Plane: normalized "
        "by quadrature. Digits: learned with a blur of 0.2, which one step along the score removes; no likelihood, "
        "since nobody can normalize in 64 dimensions."
    )
    blur = 0.2  # of digits: chains need a landscape whose walls are not too steep for their steps

    def plane(self, task: Task) -> Trained:
        with seeded(source := generator(task.seed)):
            model = Landscape(MLP(2, 1, width=64, depth=3, activation=nn.SiLU))
        start = Cloud((2,), 1.5)
        data = minibatches(task.train, size=256, generator=source)
        model = train_for(
            task.seconds, model, self.loss(start, source, h=0.005, steps=10), data, optimizer=adam(model, 1e-3)
        ).model

        def nats(x: Tensor, _: torch.Generator) -> Tensor:
            axis = torch.linspace(-5, 5, 801)
            cell = float(axis[1] - axis[0]) ** 2
            with torch.no_grad():
                return model(x) - energy.free_energy(model(torch.cartesian_prod(axis, axis)), beta=1.0, measure=cell)

        return Trained(model, model, lambda n, source: self.chains(model, start, n, source, h=0.005), nats, exact=True)

    def digits(self, task: Task) -> Trained:
        with seeded(source := generator(task.seed)):
            model = Landscape(nn.Sequential(nn.Flatten(), MLP(PIXELS, 1, width=256, depth=2, activation=nn.SiLU)))
        start, h = Cloud((1, 8, 8), 1.0), self.blur**2 / 4

        def blurred(x: Tensor) -> tuple[Tensor]:
            return (x + self.blur * randn_like(x, generator=source),)

        data = minibatches(task.train, size=128, generator=source, augment=blurred)
        model = train_for(
            task.seconds, model, self.loss(start, source, h=h, steps=20), data, optimizer=adam(model, 1e-3)
        ).model

        def sample(n: int, source: torch.Generator) -> Tensor:
            x = self.chains(model, start, n, source, h=h)
            return x + self.blur**2 * energy.score(model, x)

        return Trained(model, model, sample)

    def loss(
        self, start: Cloud, source: torch.Generator, *, h: float, steps: int
    ) -> Callable[[nn.Module, Any], Tensor]:
        """Contrastive divergence, from 2,000 chains of which each step moves as many as there are data."""
        buffer = energy.ReplayBuffer(start, 2_000, generator=source)

        def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
            (x,) = batch
            walk = functools.partial(
                langevin, functools.partial(energy.score, model), h=h, steps=steps, generator=source
            )
            return energy.contrastive_divergence_loss(
                model, x, buffer.advance(walk, len(x), generator=source), decay=1e-3
            )

        return loss

    def chains(self, model: nn.Module, start: Cloud, n: int, source: torch.Generator, *, h: float) -> Tensor:
        """The ends of n chains of 500 steps."""
        x = start.sample(n, generator=source)
        return langevin(functools.partial(energy.score, model), x, h=h, steps=500, generator=source)


# --- chapter 09 -------------------------------------------------------------------------------------------------------


class SplineFlow:
    """Layers of splines: the likelihood is exact, and a sample costs one pass."""

    key, name, chapter = "spline-flow", "Normalizing flow, splines", "09-normalizing-flows"
    about = (
        "Couplings whose maps are rational-quadratic splines, trained by likelihood. Digits: uniform noise fills the "
        "gaps between gray levels, which makes the likelihood a bound; masks are checkerboards."
    )

    def plane(self, task: Task) -> Trained:
        with seeded(source := generator(task.seed)):
            model = nf.spline_flow(2, transforms=4, bins=16, hidden=(28, 28), bound=3.0, between=nf.ActNorm)
        data = minibatches(task.train, size=512, generator=source)
        model = self.trained(model, task, data, decay=0.0)
        return Trained(model, model, self.sampler(model, (2,)), self.nats(model), exact=True)

    def digits(self, task: Task) -> Trained:
        board = nf.checkerboard_mask(8, 8).flatten()
        with seeded(source := generator(task.seed)):
            model = nf.spline_flow(
                PIXELS, transforms=4, bins=8, hidden=(128,), bound=3.0, mask=board, between=nf.ActNorm
            )

        def filled(x: Tensor) -> tuple[Tensor]:
            return (vae_digits.dequantize(x, source).flatten(1),)

        data = minibatches(task.train, size=128, generator=source, augment=filled)
        model = self.trained(model, task, data, decay=1.0)
        return Trained(model, model, self.sampler(model, (1, 8, 8)), nats_of_levels(self.nats(model)))

    def trained(self, model: nf.Flow, task: Task, data: Iterable, *, decay: float) -> nf.Flow:
        """Maximum likelihood; the first batch starts the normalizations."""
        with torch.no_grad():
            model.inverse(next(iter(data))[0])
        optimizer = adam(model, 2e-3, weight_decay=decay)

        def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
            return nf.negative_log_likelihood(model, batch[0])

        return train_for(task.seconds, model, loss, data, optimizer=optimizer, clip=20.0).model

    @staticmethod
    def sampler(model: nf.Flow, shape: tuple[int, ...]) -> Callable[[int, torch.Generator], Tensor]:
        """Noise through the layers."""
        return lambda n, source: model.sample(n, generator=source).unflatten(1, shape)

    @staticmethod
    def nats(model: nf.Flow) -> Nats:
        """−log p, exactly."""

        def nats(x: Tensor, _: torch.Generator) -> Tensor:
            with torch.no_grad():
                return -model.log_prob(x.flatten(1))

        return nats


EVERY = (PlainVAE(), BestVAE(), EnergyBased(), SplineFlow(), Diffusion(), FlowMatching(), Guided())
FAMILIES: dict[str, Family] = {family.key: family for family in EVERY}
