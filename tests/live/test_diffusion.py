"""The figures of chapter 10: the drowning digit against a closed form, the filled hole against the companion."""

import math

import pytest
import torch
from torch import nn

from companion.data import GaussianMixture, digits
from companion.live import diffusion as live
from companion.methods import diffusion as ddpm
from companion.numerics.schedules import cosine_schedule

SCHEDULE = cosine_schedule()


@pytest.fixture(scope="module")
def drowning():
    return live.drowning_digit()


class Smooth(nn.Module):
    """A stand-in for the network: it depends on the time and on every pixel, and it is exportable."""

    def forward(self, t, x):
        return torch.tanh(x + x.mean(dim=(1, 2, 3), keepdim=True) + t)


@pytest.fixture(scope="module")
def filling():
    return live.fill_the_hole(Smooth(), SCHEDULE, digits("test").images[:3])


# ---------------------------------------------------------------------- the drowning digit


def test_the_chain_of_noise_has_the_variance_of_the_one_shot_kernel():
    """The sum of the squares of N independent N(0, v) is v times chi-squared with N degrees of freedom: 5 sigma."""
    chains = torch.stack([live.noise_chain(SCHEDULE, every=250, seed=seed) for seed in range(6)])
    n = chains[:, 0].numel()
    for k, t in enumerate((0, 250, 500, 750, 1000)):
        variance = 1 - SCHEDULE.alpha_bar[t].item()
        assert chains[:, k].square().mean().item() == pytest.approx(variance, abs=5 * variance * math.sqrt(2 / n))


def test_each_step_of_the_chain_adds_one_step_of_noise():
    """n_t − √(1 − β_t) n_{t−1} is the fresh noise, which does not remember the noise before it."""
    chain = live.noise_chain(SCHEDULE, every=1, seed=3).double()
    fresh = chain[1:] - (1 - SCHEDULE.beta).sqrt()[:, None] * chain[:-1]
    normal = fresh / SCHEDULE.beta.sqrt()[:, None]
    assert normal.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / normal.numel()))
    assert abs((normal[1:] * normal[:-1]).mean().item()) < 5 / math.sqrt(normal.numel())


@pytest.mark.parametrize("t", [100, 500, 900])
def test_the_guess_is_the_posterior_mean_of_the_blurred_digits(drowning, t):
    """A mixture of Gaussians with one component for each known digit has a score in closed form; Tweedie's formula."""
    out = drowning.compute(picture="c", t=t)
    known = digits("train").images[::2].flatten(1).double()
    mixture = GaussianMixture(known, live.BLUR**2 * torch.eye(64, dtype=torch.float64).expand(len(known), 64, 64))
    left = SCHEDULE.alpha_bar[t]
    x = out["x_t"].reshape(1, 64).double()
    score = mixture.noised_score(left.sqrt(), (1 - left).sqrt(), x)
    data = (x + (1 - left) * score) / left.sqrt()
    torch.testing.assert_close(out["guess"].reshape(1, 64).double(), data, rtol=0, atol=2e-3)


def test_belief_is_a_probability_and_ends_as_the_frequencies_of_the_digits(drowning):
    for t in (0, 400, 1000):
        assert drowning.compute(t=t)["belief"].sum().item() == pytest.approx(1, abs=1e-5)
    frequency = digits("train").labels[::2].bincount() / 600
    torch.testing.assert_close(drowning.compute(t=1000)["belief"], frequency, rtol=0, atol=0.01)


def test_without_noise_the_guess_is_the_digit_itself(drowning):
    for picture, row in zip("abcd", live.SHOWN, strict=True):
        out = drowning.compute(picture=picture, t=0)
        torch.testing.assert_close(out["guess"], digits("test").images[row], rtol=0, atol=1e-4)


def test_what_the_chapter_says_of_the_four_digits(drowning):
    """Sure of the right digit up to step 400, and no more at step 700."""
    for picture, row in zip("abcd", live.SHOWN, strict=True):
        label = digits("test").labels[row]
        assert min(drowning.compute(picture=picture, t=t)["belief"][label] for t in (0, 100, 200, 300, 400)) > 0.9
        assert drowning.compute(picture=picture, t=700)["belief"][label] < 0.5


# ---------------------------------------------------------------------- the hole


def by_the_companion(figure, *, visits, evaluations, mask):
    """The same walk with the companion's inpaint_step and forward_jump, and the figure's noise."""
    x, bank = figure.inputs["x"], figure.inputs["bank"]
    picture = figure.inputs["pictures"][0].reshape(1, 1, 8, 8).expand_as(x)
    known = mask.reshape(1, 1, 8, 8) < 0.5
    n, levels = evaluations // visits, []
    nodes = [round(live.START * (1 - j / n)) for j in range(n + 1)]
    for k in range(evaluations):
        t, s = nodes[k // visits : k // visits + 2]
        rows = (3 * live.FILLS * k + torch.arange(3 * live.FILLS)) % live.BANK
        fresh, known_noise, up = bank[rows].reshape(3, live.FILLS, 1, 8, 8)
        noise = Smooth()(SCHEDULE.time(t, x), x)
        x = ddpm.inpaint_step(
            SCHEDULE, t, s, x, noise, picture, known, eps_unknown=fresh, eps_known=known_noise, clip=1.0
        )
        if s > 0 and k % visits < visits - 1:
            x, s = ddpm.forward_jump(SCHEDULE, s, t, x, up), t
        levels.append(s)
    return x, levels


@pytest.mark.parametrize(("back", "visits"), [("once", 1), ("five", 5)])
def test_the_figure_takes_the_companions_steps(filling, back, visits):
    mask = torch.zeros(8, 8)
    mask[3:, 2:] = 1
    rows = ["".join("#" if cell else "." for cell in row) for row in mask.tolist()]
    steps = list(filling.steps(digit=1, mask=rows, back=back, evaluations=20))
    x, levels = by_the_companion(filling, visits=visits, evaluations=20, mask=mask)
    assert [out["level"].item() for _, out in steps] == levels
    torch.testing.assert_close(steps[-1][1]["x_next"], x, rtol=0, atol=1e-4)


def test_what_is_not_hidden_is_kept_to_the_last_digit(filling):
    for back in live.VISITS:
        out = filling.compute(digit=2, back=back, evaluations=20)
        hidden = torch.tensor([[cell == "#" for cell in row] for row in filling.default_values()["mask"]])
        picture = filling.inputs["pictures"][1].reshape(8, 8)
        assert torch.equal(out["x"][:, 0, ~hidden], picture[~hidden].expand(live.FILLS, -1))
        assert out["level"].item() == 0


def test_the_second_panel_shows_the_fills_above_their_guesses(filling):
    """After the last step nothing is left to guess: the state is the guess, on the guess's own scale from −1 to 1."""
    out = filling.compute(digit=2, evaluations=10)
    above, below = out["both"].reshape(2, live.FILLS, 1, 8 + live.ABOVE + live.BELOW, 10)
    torch.testing.assert_close(inside(above), out["x"])
    torch.testing.assert_close(inside(below) / live.EDGE, out["x"], rtol=0, atol=1e-5)


def test_the_two_groups_of_the_second_panel_stand_apart():
    """Of four rows, the empty pixels between the second and the third are more than between the others."""
    rows = torch.cat([live.framed(torch.ones(8, 1, 8, 8)) for _ in range(2)]).reshape(4, 4, -1, 10)
    filled = (rows > 0).any(dim=3).all(dim=1).flatten()
    assert ((rows == 1) | (rows == -live.EDGE)).all()
    edges = filled.int().diff().nonzero().flatten().reshape(4, 2)
    gaps = (edges[1:, 0] - edges[:-1, 1]).tolist()
    assert gaps == [2 * live.BELOW, 2 * live.ABOVE, 2 * live.BELOW]


def inside(framed):
    """Eight framed images without their frames."""
    upper = framed[:4, ..., live.ABOVE : live.ABOVE + 8, 1:-1]
    return torch.cat([upper, framed[4:, ..., live.BELOW : live.BELOW + 8, 1:-1]])


def test_the_figure_leaves_the_network_where_it_was():
    """A chapter goes on with its network after the figure: it stays in the mode of training."""
    network = Smooth().train()
    live.fill_the_hole(network, SCHEDULE, digits("test").images[:2])
    assert network.training


def test_with_nothing_hidden_nothing_is_different(filling):
    out = filling.compute(mask=["." * 8] * 8, evaluations=10)
    assert out["off"] == 0
    assert out["spread"] == 0


def test_with_everything_hidden_the_picture_is_not_used(filling):
    all_hidden = ["#" * 8] * 8
    states = [filling.compute(digit=digit, mask=all_hidden, evaluations=10)["x"] for digit in (1, 3)]
    assert torch.equal(*states)


def test_the_bank_of_noise_is_used_in_another_order_in_each_round():
    """Calls take runs of 24 rows; the number of rows is a prime, so that a second round starts inside a run."""
    assert math.gcd(live.BANK, 3 * live.FILLS) == 1
