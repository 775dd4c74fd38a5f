r"""Live figures of chapter 05: a guess about a hidden number with its score, and a walk over the plane of latents.

`guess_the_hidden()`: z ~ N(0, 1), x | z ~ N(z², σ²). A guess q = N(μ, e^ℓ) about the z behind one x has the score

    L(q) = E_q[log p(x|z)] − KL(q ‖ N(0, 1)) = log p(x) − KL(q ‖ p(z|x)),
    E_q[(x − z²)²] = x² − 2x(μ² + v) + μ⁴ + 6μ²v + 3v²,   v = e^ℓ,

in closed form; the evidence log p(x) and the posterior come from the midpoint rule on a grid of z.

`latent_plane(model, images, labels)`: what a trained decoder with two latents draws at a point, and on the way to it.
"""

import copy
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.live import (
    Area,
    Choice,
    Images,
    Line,
    LiveFigure,
    Panel,
    Point,
    Points,
    Readout,
    Segments,
    Slider,
    Toggle,
)
from companion.methods.vae import VAE, gaussian_kl

VARIANCE = 0.25  # of the noise on z²
CELLS, REACH = 600, 4.8  # of the grid of z: cells of 0.016, and the posterior is never narrower than 0.1
LOWEST = -10.0  # lower end of the axis of scores: your dot stops there
STOPS, NEIGHBORS = 9, 4  # pictures on the way, and test digits near its end


# ---------------------------------------------------------------------- one hidden number


def score(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """The ELBO of the guesses N(mean, e^ℓ) about z, where x | z ~ N(z², VARIANCE), in closed form.

    Args:
        x: What is seen, ().
        mean: (n,).
        log_variance: (n,).

    Returns:
        (n,), nats.
    """
    v, square = log_variance.exp(), mean.square()
    error = x.square() - 2 * x * (square + v) + square.square() + 6 * square * v + 3 * v.square()
    reconstruction = -0.5 * (error / VARIANCE + math.log(2 * math.pi * VARIANCE))
    return reconstruction - gaussian_kl(mean[:, None], log_variance[:, None])


def _truth(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x) and p(z|x) on the grid."""
    joint = -0.5 * ((x - z.square()).square() / VARIANCE + z.square()) - math.log(2 * math.pi * math.sqrt(VARIANCE))
    evidence = joint.logsumexp(0) + math.log(2 * REACH / CELLS)
    return evidence, (joint - evidence).exp()


def _guess(x: Tensor, mu: Tensor, lv: Tensor, z: Tensor, centers: Tensor) -> dict[str, Tensor]:
    evidence, posterior = _truth(x, z)
    mine = score(x, mu[None], lv[None])[0]
    here = torch.stack([mu, mine.clamp(min=LOWEST)])
    spread = (lv / 2).exp()
    return {
        "posterior": posterior,
        "guess": torch.exp(-0.5 * ((z - mu) / spread).square()) / (spread * math.sqrt(2 * math.pi)),
        "landscape": score(x, centers, lv.expand(centers.shape)),
        "evidence_line": evidence.expand(2),
        "here": here[None],
        "missing_from": here[None],
        "missing_to": torch.stack([mu, evidence])[None],
        "score": mine,
        "evidence": evidence,
        "gap": evidence - mine,
    }


def guess_the_hidden() -> LiveFigure:
    """The opening figure: guess the hidden number by a bell curve, and watch the score below the line log p(x)."""
    z = torch.linspace(-REACH, REACH, CELLS + 1)[:-1] + REACH / CELLS
    curve = torch.linspace(-3.0, 3.0, 121)
    return LiveFigure(
        name="guess-the-hidden",
        columns=2,
        title="Where was the hidden number?",
        description=(
            "A hidden number z, drawn from the standard normal, was squared, a little noise was added, and x = {x} "
            "came out. Your guess about z is a bell curve with center {mu} and log-variance {lv}. Left: the prior, "
            "your guess, and, if you ask for it, the true posterior of z. Right: your score {score} below the line "
            "{evidence} that no guess passes; {gap} is missing. If the truth is shown, so are the scores of all "
            "other centers."
        ),
        controls=[
            Slider("x", label="what you see, x", low=-1, high=6, step=0.25, value=4),
            Slider("mu", label="center of your guess", low=-3, high=3, step=0.05, value=1.5),
            Slider("lv", label="its log-variance", low=-6, high=2, step=0.1, value=-2),
            Toggle("reveal", label="show the truth"),
        ],
        evaluate=_guess,
        inputs={
            "z": z,
            "prior": torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi),
            "centers": curve,
            "ends": torch.tensor([-3.0, 3.0]),
        },
        panels=[
            Panel(
                title="where z was",
                x=(-3, 3),
                y=(0, 3.5),
                xlabel="hidden z",
                ylabel="density",
                marks=[
                    Line("z", "prior", color=6, dash=True, width=1.3, label="before you saw x"),
                    Area("z", "posterior", color=2, show="reveal", label="the truth"),
                    Line("z", "guess", color=0, label="your guess"),
                ],
            ),
            Panel(
                title="your score",
                x=(-3, 3),
                y=(LOWEST, 0),
                xlabel="center of the guess",
                ylabel="nats",
                marks=[
                    Line("ends", "evidence_line", color=2, label="nobody passes this line"),
                    Line("centers", "landscape", color=6, width=1.2, show="reveal", label="other centers"),
                    Segments("missing_from", "missing_to", color=1, width=1.5, alpha=1.0),
                    Points("here", size=6, color=0, alpha=1.0, label="you"),
                ],
            ),
        ],
        readouts=[
            Readout("score", label="your score", output="score"),
            Readout("evidence", label="the line", output="evidence"),
            Readout("gap", label="missing", output="gap"),
        ],
    )


# ---------------------------------------------------------------------- a plane of digits


def _walk(model: VAE):
    """The pictures on the straight way between two latents, and the test digits nearest to its end."""

    def evaluate(
        start: Tensor, here: Tensor, blue: Tensor, green: Tensor, codes: Tensor, labels: Tensor, images: Tensor
    ):
        share = torch.linspace(0, 1, STOPS)[:, None]
        way = start + share * (here - start)
        gaps = (codes - here).square().sum(1)
        square, nearest = gaps.topk(NEIGHBORS, largest=False)
        is_blue, is_green = (labels == blue).to(labels), (labels == green).to(labels)
        return {
            "pictures": model(way),
            "from": start[None],
            "to": here[None],
            "kind": 6 - 6 * is_blue - 4 * is_green * (1 - is_blue),  # palette: 0 blue, 2 green, 6 gray
            "neighbors": images[nearest],
            "label": labels[nearest][0],
            "distance": square[0].clamp(min=1e-12).sqrt(),
        }

    return evaluate


def latent_plane(
    model: VAE,
    images: Float[Tensor, "n 1 height width"],
    labels: Int[Tensor, " n"],
    *,
    start: tuple[float, float] = (-2.0, -2.0),
    here: tuple[float, float] = (0.0, 0.0),
) -> LiveFigure:
    """Walk over the latents of a trained model: drag a point, and see what is drawn there and on the way to it.

    Args:
        model: A VAE with two latents for images like these.
        images: Pictures to encode and to show as neighbors, (n, 1, height, width).
        labels: What they show, 0 … 9, (n,). The model has never seen them.
        start: Where the walk begins.
        here: Where it ends.
    """
    model = copy.deepcopy(model).cpu().eval()
    with torch.no_grad():
        codes, _ = model.encode(images.cpu())
    names = {f"digit-{k}": f"the {k}s" for k in range(10)}
    edge = max(3.5, math.ceil(2.1 * codes.abs().max().item()) / 2)  # no dot is cut off; halves keep coordinates short
    return LiveFigure(
        name="latent-plane",
        columns=2,
        title="Walk over the plane of digits",
        description=(
            "A plane of two hidden numbers. Its dots are test digits, each where the encoder puts it: blue for {blue}, "
            "green for {green}, gray for all others. The decoder draws a picture at every point. From {start} to "
            f"{{here}} it draws {STOPS} pictures on the way. The test digit nearest to the end of the walk "
            "shows {label}, {distance} away."
        ),
        controls=[
            Point("here", label="you", panel=0, value=here, color=1),
            Point("start", label="start", panel=0, value=start, color=7),
            Choice("blue", label="blue dots", options=names, value="digit-7"),
            Choice("green", label="green dots", options=names, value="digit-1"),
        ],
        evaluate=_walk(model),
        inputs={"codes": codes, "labels": labels.float(), "images": images.cpu()},
        panels=[
            Panel(
                title="where the encoder puts test digits",
                x=(-edge, edge),
                y=(-edge, edge),
                xlabel="z₁",
                ylabel="z₂",
                aspect=1,
                marks=[
                    Points("codes", color="kind", size=2.2),
                    Segments("from", "to", color=7, width=1.5, alpha=0.8),
                    Points("from", color=7, size=3, label="start"),
                    Points("to", color=1, size=3, label="you"),
                ],
            ),
            Panel(
                title="what the decoder draws on the way, ending where you are",
                marks=[Images("pictures", columns=3)],
            ),
            Panel(
                title="the test digits nearest to you",
                marks=[Images("neighbors", columns=NEIGHBORS)],
            ),
        ],
        readouts=[
            Readout("label", label="the nearest test digit shows", output="label", digits=1),
            Readout("distance", label="its distance", output="distance"),
        ],
    )
