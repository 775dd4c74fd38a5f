r"""Live figures of chapter 10: a digit that drowns in noise, and a trained network that fills a hole.

`drowning_digit()`: one digit and one chain of noise, and what a reader of 600 other digits x_i makes of them:

    x_t = √ᾱ_t x_0 + n_t,   n_t = √(1 − β_t) n_{t−1} + √β_t ε_t,   n_0 = 0
    w = softmax_i( −|x_t − √ᾱ_t x_i|²/2v ),   x̂_0 = Σ_i w_i [x_i + (√ᾱ_t h²/v)(x_t − √ᾱ_t x_i)],   v = ᾱ_t h² + 1 − ᾱ_t

which is E[x_0 | x_t] if the data are the known digits, each blurred by a standard deviation h (`BLUR`).

`fill_the_hole(model, schedule, images)`: one step of RePaint (eq-inpainting), repeated. With r visits to a step and K
evaluations there are n = K/r steps; call k makes step ⌊k/r⌋, and jumps back up after it unless it was the last visit.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.data.images import digits
from companion.device import generator, randn
from companion.live import (
    Bars,
    Choice,
    Images,
    LiveFigure,
    Paint,
    Panel,
    Readout,
    Repeat,
    Slider,
    Toggle,
)
from companion.numerics.schedules import NoiseSchedule, cosine_schedule

SHOWN = (8, 11, 34, 51)  # rows of the test set that drown
EVERY = 10  # steps between two stops of the slider
BLUR = 0.25  # of the known digits: a new digit is near one of them, not on it
FILLS, BANK = 8, 541  # fills side by side; rows of noise (a prime: the rows are used in another order in each round)
START = 900  # of 1000: nearer to T a prediction of the data is a division by nearly zero, of rounding errors too
EDGE = 1.5  # noisy states are shown from −EDGE to EDGE
ABOVE, BELOW = 3, 1  # empty pixels around an image in the upper of two rows; in the lower row the other way
VISITS = {"once": 1, "twice": 2, "five": 5, "ten": 10}


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """The rows of a table at indices that are whole numbers in floating point."""
    return torch.index_select(table, 0, index.long().reshape(-1))


def framed(images: Tensor) -> Tensor:
    """Two rows of images with empty edges: even pure noise does not run together, and the rows stand as a group."""
    pad, half = torch.nn.functional.pad, len(images) // 2
    upper, lower = (1, 1, ABOVE, BELOW), (1, 1, BELOW, ABOVE)
    return torch.cat([pad(images[:half], upper, value=-EDGE), pad(images[half:], lower, value=-EDGE)])


# ---------------------------------------------------------------------- a digit that drowns


def noise_chain(schedule: NoiseSchedule, *, every: int, seed: int) -> Float[Tensor, "stops pixels"]:
    """n_t of one chain of 8 × 8 pixels at every `every`-th step, from n_0 = 0 on."""
    g, n, stops = generator(seed), torch.zeros(64), [torch.zeros(64)]
    for t, beta in enumerate(schedule.beta.tolist(), start=1):
        n = (1 - beta) ** 0.5 * n + beta**0.5 * randn(64, generator=g)
        if t % every == 0:
            stops.append(n)
    return torch.stack(stops)


def drowning_digit() -> LiveFigure:
    """A real digit after t steps of noise; on demand, the guess of someone who knows 600 others."""
    schedule, crowd, unseen = cosine_schedule(), digits("train"), digits("test")
    known, labels = (part[::2] for part in (crowd.images.flatten(1), crowd.labels.float()))  # half: a lighter page
    names = {key: f"picture {key.upper()}" for key in "abcd"}

    def evaluate(
        picture: Tensor, t: Tensor, pictures: Tensor, chain: Tensor, left: Tensor, known: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        share = _rows(left, t / EVERY)
        signal, variance = share.sqrt(), share * BLUR**2 + 1 - share
        x_t = signal * _rows(pictures, picture) + _rows(chain, t / EVERY)
        gap = x_t - signal * known
        weights = torch.softmax(-gap.square().sum(1) / (2 * variance), dim=0)
        guess = (weights[:, None] * (known + signal * BLUR**2 / variance * gap)).sum(0)
        belief = (weights[:, None] * (labels[:, None] == torch.arange(10.0))).sum(0)
        return {
            "x_t": x_t.reshape(1, 8, 8),
            "guess": guess.reshape(1, 8, 8),
            "belief": belief,
            "share": 100 * share[0],
        }

    return LiveFigure(
        name="drowning-digit",
        title="A digit, and noise",
        description=(
            "A handwritten digit, {picture}, after {t} of 1000 steps of noise: {share} percent of its variance are "
            "left. If the guess is shown ({guessing}), the second picture is the best guess of the digit by someone "
            "who knows 600 others, and bars say how much of this belief goes to each of 0 to 9."
        ),
        controls=[
            Choice("picture", label="digit", options=names, value="a"),
            Slider("t", label="steps of noise t", low=0, high=1000, step=EVERY, value=900),
            Toggle("guessing", label="show the guess", value=False),
        ],
        evaluate=evaluate,
        inputs={
            "pictures": unseen.images[list(SHOWN)].flatten(1),
            "chain": noise_chain(schedule, every=EVERY, seed=10),
            "left": schedule.alpha_bar[::EVERY].float(),
            "known": known,
            "labels": labels,
            "digit": torch.arange(10.0),
        },
        panels=[
            Panel(title="the digit after t steps", marks=[Images("x_t", columns=1, limits=(-1.5, 1.5))]),
            Panel(
                title="the best guess of the digit",
                marks=[Images("guess", columns=1, limits=(-1.5, 1.5), show="guessing")],
            ),
            Panel(
                title="belief in each digit",
                x=(-0.6, 9.6),
                y=(0, 1),
                xlabel="digit",
                marks=[Bars("digit", "belief", color=1, alpha=0.8, show="guessing")],
            ),
        ],
        readouts=[Readout("share", label="variance of the digit that is left, in percent", output="share")],
    )


# ---------------------------------------------------------------------- a hole that the reader paints


def fill_the_hole(model: nn.Module, schedule: NoiseSchedule, images: Float[Tensor, "n 1 8 8"]) -> LiveFigure:
    """A trained noise model fills what the reader hides: eight answers side by side, at a price that he sets.

    Args:
        model: ε̂(t/T, x) on images (batch, 1, 8, 8).
        schedule: Of its training, T = 1000.
        images: Digits to choose from, two or more.
    """
    network = copy.deepcopy(model).cpu().eval()
    visits = torch.tensor([float(r) for r in VISITS.values()])

    def evaluate(
        k: Tensor,
        evaluations: Tensor,
        digit: Tensor,
        mask: Tensor,
        back: Tensor,
        x: Tensor,
        pictures: Tensor,
        bank: Tensor,
        left: Tensor,
    ) -> dict[str, Tensor]:
        r = _rows(visits, back)[0]
        n, step = evaluations / r, torch.floor(k / r)
        t, s = (torch.round(START * (1 - j / n)) for j in (step, step + 1))
        now, then = _rows(left, t)[0], _rows(left, s)[0]

        place = 3 * FILLS * k + torch.arange(3.0 * FILLS)
        fresh, known_noise, up = _rows(bank, place.long() % BANK).reshape(3, FILLS, 1, 8, 8)
        picture = _rows(pictures, digit - 1).reshape(1, 1, 8, 8)

        noise = network(t / schedule.steps, x)
        guess = ((x - (1 - now).sqrt() * noise) / now.sqrt()).clamp(-1, 1)
        noise = (x - now.sqrt() * guess) / (1 - now).sqrt()
        variance = (1 - then) / (1 - now) * (1 - now / then)
        unknown = then.sqrt() * guess + (1 - then - variance).clamp(min=0).sqrt() * noise + variance.sqrt() * fresh
        known = then.sqrt() * picture + (1 - then).sqrt() * known_noise
        x_s = torch.where(mask > 0.5, unknown, known)

        again = ((k - r * step) < r - 1.5) & (s > 0.5)
        keep = now / then
        x_next = torch.where(again, keep.sqrt() * x_s + (1 - keep).sqrt() * up, x_s)

        hidden = mask.sum().clamp(min=1)
        off = ((x_s - picture).square() * mask).sum(dim=(1, 2, 3)) / hidden
        spread = ((x_s - x_s.mean(0)).square() * mask).sum(dim=(1, 2, 3)) / hidden
        filled = torch.where(mask > 0.5, guess, picture)
        return {
            "picture": picture[0],
            "x_next": x_next,
            "both": torch.cat([framed(x_next), framed(EDGE * filled)]),  # the guesses from −1 to 1, as the picture
            "level": torch.where(again, t, s),
            "off": off.mean().sqrt(),
            "spread": spread.mean().sqrt(),
        }

    lower_right = ["........"] * 3 + ["...#####"] * 5
    return LiveFigure(
        name="fill-the-hole",
        title="Hide a part of a digit: what could have been there?",
        description=(
            "Digit number {digit}, 8 by 8 pixels; a part of it is hidden: {mask}. A diffusion model that was trained "
            "without holes fills it in eight ways, with {evaluations} evaluations of the network, visiting each noise "
            "level {back}. After the last step the root mean square difference of the fills to what is hidden is "
            "{off}, and to their own mean {spread}; pixels run from −1 to 1."
        ),
        controls=[
            Slider("digit", label="digit number", low=1, high=len(images), step=1, value=1),
            Paint("mask", label="hide these pixels", rows=8, columns=8, value=lower_right, panel=0),
            Slider("evaluations", label="evaluations of the network", low=10, high=80, step=10, value=40),
            Choice(
                "back",
                label="visit each noise level",
                options={key: "once" if r == 1 else f"{r} times" for key, r in VISITS.items()},
                value="once",
            ),
        ],
        evaluate=evaluate,
        inputs={
            "pictures": images.cpu().flatten(1),
            "bank": randn(BANK, 64, generator=generator(5)),
            "left": schedule.alpha_bar.float(),
            "x": randn(FILLS, 1, 8, 8, generator=generator(6)),
        },
        repeat=Repeat(count="evaluations", carry={"x": "x_next"}),
        panels=[
            Panel(title="paint on it: the hidden part", marks=[Images("picture", columns=1)]),
            Panel(
                title="above: eight states on their way; below: the best guess of each",
                marks=[Images("both", columns=4, limits=(-EDGE, EDGE))],
            ),
        ],
        columns=2,
        readouts=[
            Readout("level", label="noise level, as a step t", output="level"),
            Readout("off", label="fills from what is hidden (RMS)", output="off", digits=2),
            Readout("spread", label="fills from their mean (RMS)", output="spread", digits=2),
        ],
    )
