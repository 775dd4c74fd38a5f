"""The figures of chapter 05: scores against quadrature, evidence against scipy, pictures against the decoder."""

import copy
import math

import pytest
import torch
from scipy.integrate import quad
from torch.distributions import Normal, kl_divergence

from companion.data import digits
from companion.device import generator, seeded
from companion.live import vae as live
from companion.methods import vae

STD = math.sqrt(live.VARIANCE)


@pytest.fixture(scope="module")
def game():
    return live.guess_the_hidden()


@pytest.fixture(scope="module")
def model():
    with seeded(generator(0)):
        return vae.mlp_vae((1, 8, 8), vae.GaussianLikelihood(), dim=2, width=16)


@pytest.fixture(scope="module")
def plane(model):
    test = digits("test")
    return live.latent_plane(model, test.images[:60], test.labels[:60])


def joint(z, x):
    return math.exp(-0.5 * z * z - 0.5 * (x - z * z) ** 2 / STD**2) / (2 * math.pi * STD)


@pytest.mark.parametrize("x", [-1, 0.5, 4, 6])
def test_the_line_is_the_evidence(game, x):
    """Adaptive quadrature of the joint density."""
    exact, _ = quad(joint, -8, 8, args=(x,), points=[-2.5, -2, 0, 2, 2.5], limit=400)
    assert game.compute(x=x)["evidence"].item() == pytest.approx(math.log(exact), abs=1e-4)


@pytest.mark.parametrize(("x", "mu", "lv"), [(4, 1.95, -4.1), (4, 0.5, 0.0), (0.5, -1, -2.0), (-1, 0, 2.0)])
def test_the_score_is_the_bound_and_what_is_missing_the_divergence_from_the_posterior(game, x, mu, lv):
    """The mean log-likelihood and KL(q ‖ p(z|x)) by quadrature in float64; torch's divergence from the prior."""
    q = Normal(torch.tensor(mu, dtype=torch.float64), math.exp(lv / 2))
    z = torch.linspace(mu - 10 * math.exp(lv / 2), mu + 10 * math.exp(lv / 2), 20_001, dtype=torch.float64)
    mass = q.log_prob(z).exp()
    log_likelihood = Normal(z.square(), STD).log_prob(torch.tensor(x, dtype=torch.float64))
    bound = torch.trapezoid(mass * log_likelihood, z) - kl_divergence(q, Normal(0.0, 1.0))
    out = game.compute(x=x, mu=mu, lv=lv)
    assert out["score"].item() == pytest.approx(bound.item(), rel=1e-4, abs=1e-4)
    log_posterior = log_likelihood + Normal(0.0, 1.0).log_prob(z) - out["evidence"].double()
    divergence = torch.trapezoid(mass * (q.log_prob(z) - log_posterior), z)
    assert out["gap"].item() == pytest.approx(divergence.item(), rel=1e-3, abs=1e-3)


def test_no_guess_passes_the_line(game):
    """Every guess of a grid, for every x of the slider that is a whole number."""
    mean, log_variance = torch.cartesian_prod(torch.linspace(-3, 3, 61), torch.linspace(-6, 2, 81)).T
    for x in range(-1, 7):
        line = game.compute(x=x)["evidence"]
        assert live.score(torch.tensor(float(x)), mean, log_variance).max() < line


def test_one_peak_of_two_costs_log_two(game):
    """At x = 6 the peaks do not touch: the best guess takes one of them, half of the mass."""
    mean, log_variance = torch.cartesian_prod(torch.linspace(2, 3, 101), torch.linspace(-6, -3, 61)).T
    best = live.score(torch.tensor(6.0), mean, log_variance).max()
    assert (game.compute(x=6)["evidence"] - best).item() == pytest.approx(math.log(2), abs=0.01)


def test_posterior_and_guess_have_area_one(game):
    cell = 2 * live.REACH / live.CELLS
    for x, lv in ((-1, -4), (4, 0)):
        out = game.compute(x=x, mu=0.5, lv=lv)
        assert out["posterior"].sum().item() * cell == pytest.approx(1, abs=1e-4)
        assert out["guess"].sum().item() * cell == pytest.approx(1, abs=1e-3)


def test_the_walk_begins_and_ends_at_its_points(plane, model):
    out = plane.compute(start=(-1.0, 2.0), here=(0.5, -1.5))
    with torch.no_grad():
        ends = model(torch.tensor([[-1.0, 2.0], [-0.25, 0.25], [0.5, -1.5]]))
    torch.testing.assert_close(out["pictures"][[0, live.STOPS // 2, -1]], ends)


def test_the_neighbors_are_the_nearest_codes_in_order(plane, model):
    """All distances, sorted."""
    test, here = digits("test"), torch.tensor([[0.1, 0.2]])
    with torch.no_grad():
        codes = model.encode(test.images[:60])[0]
    distances, order = torch.cdist(here, codes)[0].sort()
    out = plane.compute(here=(0.1, 0.2))
    torch.testing.assert_close(out["neighbors"], test.images[order[: live.NEIGHBORS]])
    assert out["label"] == test.labels[order[0]]
    torch.testing.assert_close(out["distance"], distances[0], rtol=1e-3, atol=1e-4)


def test_the_two_chosen_digits_are_blue_and_green_and_the_others_gray(plane):
    """Palette 0, 2 and 6; a digit that is chosen twice is blue."""
    labels = digits("test").labels[:60]
    for blue, green in ((7, 1), (3, 0), (5, 5)):
        kind = plane.compute(blue=f"digit-{blue}", green=f"digit-{green}")["kind"]
        expected = [0.0 if k == blue else 2.0 if k == green else 6.0 for k in labels.tolist()]
        assert kind.tolist() == expected


def test_no_dot_of_the_plane_is_cut_off(model):
    """A decoder's codes, blown up: the axes follow them."""
    wide = copy.deepcopy(model)
    last = [part for part in wide.encoder.modules() if isinstance(part, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(50)
    test = digits("test")
    panel = live.latent_plane(wide, test.images[:60], test.labels[:60]).spec["panels"][0]
    with torch.no_grad():
        codes = wide.encode(test.images[:60])[0]
    assert codes.abs().max() > 3.5
    assert panel["x"][1] > codes.abs().max()
    assert panel["y"][0] < codes.min()


def test_a_figure_leaves_the_model_as_it_was(model):
    model.train()
    test = digits("test")
    live.latent_plane(model, test.images[:10], test.labels[:10])
    assert model.training
    model.eval()
