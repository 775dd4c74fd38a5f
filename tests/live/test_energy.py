"""The figure of chapter 07: its descent, levels and relief against the companion's own functions and exact facts."""

import pytest
import torch

from companion.live import energy as live
from companion.methods import energy

F64 = torch.float64


@pytest.fixture(scope="module")
def surfaces():
    """Untrained: what is tested holds for any weights."""
    return {name: live.fork_energy(seed) for seed, name in enumerate(energy.LOSSES)}


@pytest.fixture(scope="module")
def figure(surfaces):
    return live.energy_surface(surfaces)


@pytest.mark.parametrize("name", ["energy", "LVQ2", "MEE"])
def test_the_point_goes_where_gradient_descent_goes(figure, surfaces, name):
    """Autograd through the network, in float64: the figure has the slope in closed form."""
    model = surfaces[name].double()
    x, y = torch.tensor([[0.7]], dtype=F64), torch.tensor([[-0.4]], dtype=F64)
    path = energy.descend(lambda y: model(x, y), y, rate=0.02, steps=live.DESCENT)
    out = figure.compute(loss=name.lower(), start=(0.7, -0.4), rate=0.02)
    assert out["start"][1].item() == pytest.approx(path[-1].item(), abs=1e-4)
    last = model(x, path[-2]).item()  # the outputs are those of the last call, before its step
    assert out["level"].item() == pytest.approx(last, abs=1e-5)
    model.float()


def test_lift_and_stretch_move_nothing_and_a_stretch_multiplies_the_relief(figure):
    plain, lifted = figure.compute(), figure.compute(lift=2.0)
    assert torch.equal(plain["start"], lifted["start"])
    assert (lifted["level"] - plain["level"]).item() == pytest.approx(2, abs=1e-5)
    stretched = figure.compute(stretch=1.0)
    torch.testing.assert_close(stretched["start"], plain["start"], rtol=0, atol=1e-6)  # the rate is divided by it
    assert stretched["relief"].item() == pytest.approx(10 * plain["relief"].item(), rel=1e-5)


def test_each_loss_shows_another_surface(figure):
    maps = [figure.compute(loss=key)["relief_map"] for key in live.OPTIONS]
    assert all(not torch.allclose(a, b) for i, a in enumerate(maps) for b in maps[:i])
    assert all((m.amin(0) == 0).all() and m.max() <= live.HIGHEST for m in maps)


def test_the_fork_has_its_handle_and_its_tines():
    """Half of twenty thousand points left of 0 up to the noise, and all near y² = x or y = 0."""
    points = live.fork(dtype=F64).sample(20_000, generator=torch.Generator().manual_seed(0))
    x, y = points.T
    gap = (y.abs() - x.clamp(min=0).sqrt()).abs()
    assert gap[x > 0.3].quantile(0.99) < 0.4
    assert y[x < -0.3].abs().quantile(0.99) < 0.4
    assert abs((x < 0).double().mean() - 0.5) < 0.06


def test_a_missing_surface_is_named(surfaces):
    with pytest.raises(ValueError, match=r"no surface for \['NLL'\]"):
        live.energy_surface({name: model for name, model in surfaces.items() if name != "NLL"})


def _two_answers(a, b):
    """One x with two right answers, energies a and b (n,), among others that are far higher; both as seen by a loss."""
    n, others = len(a), torch.full((len(a), 5), 9.0, dtype=F64)
    table = torch.cat([a[:, None], b[:, None], others], dim=1)
    return [energy.Answers.of_labels(table, torch.full((n,), label)) for label in (0, 1)]


@pytest.mark.verifies("eq-two-answers")
@pytest.mark.parametrize("name", ["hinge", "log", "LVQ2", "MCE", "square-square", "square-exponential"])
def test_two_right_answers_never_cost_less_than_a_flat_landscape(name):
    """Random pairs of energies: the mean loss of both answers against that of the best constant, found by search."""
    loss = energy.LOSSES[name]
    a, b = 4 * torch.rand(2, 2000, generator=torch.Generator().manual_seed(0), dtype=F64)
    both = torch.stack([loss(seen) for seen in _two_answers(a, b)]).mean(0)
    level = torch.linspace(0, 4, 4001, dtype=F64)
    flat = loss(_two_answers(level, level)[0]).min()
    assert (both >= flat - 1e-12).all()


@pytest.mark.verifies("eq-two-answers")
def test_one_right_answer_and_a_sum_over_all_do_cost_less():
    """The same numbers: with a single right answer, or with the NLL, a landscape with relief beats the flat one."""
    low, high = torch.zeros(1, dtype=F64), torch.full((1,), 3.0, dtype=F64)
    for name in ("hinge", "log", "MCE", "square-square", "square-exponential"):
        loss = energy.LOSSES[name]
        single = loss(_two_answers(low, high)[0])
        assert single < loss(_two_answers(low + 0.35, low + 0.35)[0]) - 0.1
    flat = torch.zeros(1, 7, dtype=F64)
    nll = energy.LOSSES["NLL"]
    both = torch.stack([nll(seen) for seen in _two_answers(low, low)]).mean()
    assert both < nll(energy.Answers.of_labels(flat, torch.zeros(1, dtype=torch.long))) - 1


def test_training_carves_the_handle_with_a_hinge_and_not_with_the_energy_loss():
    relief = {}
    x, y = torch.full((9, 1), -1.0), torch.zeros(9, 1)
    for name in ("energy", "hinge"):
        model = live.train_on_fork(energy.LOSSES[name], 0, steps=120)
        seen = live.fork_answers(model, x, y)
        relief[name] = (seen.all.mean(1) - seen.right)[0].item()
    assert relief["energy"] < 0.2 < 0.5 < relief["hinge"]
