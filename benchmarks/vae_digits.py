"""Digits from variational auto-encoders: what the cures of chapter 05 buy, at equal size and equal CPU seconds.

Plain is what opens the chapter: perceptrons, squared error plus divergence (that is a decoder variance of ½), the prior
N(0, I). A fixed variance of 0.2 does about as well, one of 1 worse. Ours is the same network with two ideas of the
chapter: the decoder's variance is learned (on blurred images, else it learns them by heart), and after training the
prior is replaced by a mixture of Gaussians fitted to the latents that the encoder uses, so that no sample starts where
no datum has been.

Both train for the same CPU seconds on one thread, the mixture included, on the 1,200 training digits with the same
optimizer, schedule, weight decay and average of the weights. A set of 597 samples is judged against the 597 test
digits: Fréchet distance in the features of `DigitJudge`, in units of that of 597 training digits; precision, recall and
copying are printed. Samples are the decoder's means E[x|z] for both, cut to [−1, 1]. With the decoder's noise the plain
one is worse by far, ours a little: it gains recall and loses precision.
"""

import functools
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import judging
from benchmarks.harness import Case, one_thread
from benchmarks.training import train_for
from companion.data import digits, minibatches
from companion.device import generator, rand, randn, randn_like, seeded
from companion.methods import vae
from companion.training import adam

SECONDS, SEEDS, SHAPE, DIM, WIDTH = 60.0, (0, 1, 2), (1, 8, 8), 16, 512
COMPONENTS = 10
BLUR = 0.2  # of the training images of our recipe, see `best_digits_vae`


@dataclass(frozen=True)
class TrainedVAE:
    """A trained model, as the table of the families wants it.

    Attributes:
        model: the VAE, with the moving average of its weights.
    """

    model: vae.VAE

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """`n` images, the decoder's means; they may leave [−1, 1]."""
        return self.model.sample_mean(n, generator=generator)

    @torch.no_grad()
    def log_likelihood_bound(self, x: Tensor, *, generator: torch.Generator, samples: int = 128) -> Tensor:
        """The importance-weighted bound with so many draws, nats for each datum, (batch,).

        It bounds the log-density, with respect to the volume of [−1, 1]^64, of the model with the decoder's noise. A
        gray level is a bin of width 1/8: dequantize the images, x + u with u uniform on ±1/16, and add 64 log(1/8) for
        a bound of the log-probability of the gray levels.
        """
        return torch.cat([self._bound(part, generator, samples) for part in x.split(64)])

    def _bound(self, x: Tensor, generator: torch.Generator, samples: int) -> Tensor:
        return vae.iwae_bound(self.model, x, randn(samples, len(x), self.model.dim, generator=generator).to(x))


# --- the recipes ------------------------------------------------------------------------------------------------------


def plain_digits_vae(seed: int, seconds: float = SECONDS, *, variance: float = 0.5) -> TrainedVAE:
    """Squared error plus divergence: a fixed decoder variance (½ unless given) and the prior N(0, I)."""
    likelihood = vae.GaussianLikelihood(math.log(variance))
    return TrainedVAE(_digits_vae(likelihood, dequantize, seed, seconds))


def best_digits_vae(seed: int, seconds: float = SECONDS) -> TrainedVAE:
    """A learned decoder variance, then a prior fitted to the latents in use.

    A learned variance falls as long as the decoder can tell the 1,200 images apart by heart. Training on images
    blurred by N(0, 0.2²) stops it: no image is known more sharply than that.
    """

    def blur(images: Tensor, source: torch.Generator) -> Tensor:
        return images + BLUR * randn_like(images, generator=source)

    model = _digits_vae(vae.GaussianLikelihood.learned(-2.0), blur, seed, 0.95 * seconds)
    model.prior = vae.mixture_prior(
        model, digits("train").images, components=COMPONENTS, draws=4, generator=generator(10_000 + seed)
    )
    return TrainedVAE(model)


def dequantize(images: Tensor, source: torch.Generator) -> Tensor:
    """Images with uniform noise as wide as a gray level."""
    return images + (rand(*images.shape, generator=source) - 0.5) / 8


def _digits_vae(likelihood: nn.Module, augment: Callable, seed: int, seconds: float) -> vae.VAE:
    source = generator(seed)
    with seeded(source):
        model = vae.mlp_vae(SHAPE, likelihood, dim=DIM, width=WIDTH, depth=2)
    data = minibatches(
        digits("train").images, size=128, generator=source, augment=lambda images: (augment(images, source),)
    )

    def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        (x,) = batch
        return -vae.elbo(model, x, randn(len(x), model.dim, generator=source)).value.mean()

    optimizer = adam(model, 2e-3, weight_decay=0.1)
    return train_for(seconds, model, loss, data, optimizer=optimizer, warmup=0.02).model


# --- judging ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """Samples, judged.

    Attributes:
        frechet: distance to the test digits, over that of 597 training digits.
        precision: share of samples that pass for test digits.
        recall: share of test digits that pass for samples.
        copying: distance to training over distance to test digits; 1 is no copying.
        noisy: the Fréchet distance of samples that have the decoder's noise, cut to [−1, 1] as well.
        nats: bound of the log-density of the dequantized test digits.
    """

    frechet: float
    precision: float
    recall: float
    copying: float
    noisy: float
    nats: float


def judged(trained: TrainedVAE, seed: int) -> Quality:
    """As many samples as there are test digits, against these."""
    test, source, unit = digits("test").images, generator(1_000 + seed), judging.unit()
    samples = trained.sample(len(test), generator=source).clamp(-1, 1)
    with_noise = trained.model.sample(len(test), generator=source).clamp(-1, 1)
    nats = trained.log_likelihood_bound(dequantize(test, source), generator=source)
    score = judging.judged(samples)
    return Quality(
        frechet=score.frechet / unit,
        precision=score.precision,
        recall=score.recall,
        copying=score.copying,
        noisy=judging.frechet(with_noise) / unit,
        nats=float(nats.mean()),
    )


RECIPES: dict[str, Callable[[int, float], TrainedVAE]] = {
    "ours": best_digits_vae,
    "plain": plain_digits_vae,
}


@functools.cache
def quality(recipe: str, seed: int, seconds: float = SECONDS) -> Quality:
    """Train a recipe and judge it."""
    start = time.process_time()
    trained = RECIPES[recipe](seed, seconds)
    spent, found = time.process_time() - start, judged(trained, seed)
    weights = sum(w.numel() for w in trained.model.parameters())
    told = f"F {found.frechet:.2f}, precision {found.precision:.3f}, recall {found.recall:.3f}"
    told = f"{told}, copying {found.copying:.3f}, with noise F {found.noisy:.2f}, bound {found.nats:.1f} nats"
    print(f"  {recipe} seed {seed}: {spent:.0f} s, {weights:,} weights: {told}", file=sys.stderr, flush=True)
    return found


def frechet(seconds: float = SECONDS) -> list[Case]:
    """Our Fréchet distance over that of the plain VAE, the median of three seeds."""
    with one_thread():
        found = [{name: quality(name, seed, seconds) for name in RECIPES} for seed in SEEDS]
    for name in RECIPES:
        medians = {part: statistics.median(getattr(f[name], part) for f in found) for part in Quality.__annotations__}
        print(f"  {name}: medians " + ", ".join(f"{k} {v:.3g}" for k, v in medians.items()), file=sys.stderr)
    mine, plain = (tuple(f[name].frechet for f in found) for name in ("ours", "plain"))
    peer = "ours, plain: squared error + KL, prior N(0, I)"
    return [Case(None, mine, plain, peer, goal=0.75, unit="F of training digits")]


MEASURES: dict[str, Callable[[], list[Case]]] = {"digits-vae-frechet": frechet}
