"""The training loop against one written out by hand, and against what its parts promise."""

import copy
import math
from itertools import islice, repeat

import pytest
import torch
from torch import nn

from companion.device import generator, randn, seeded
from companion.nn import MLP
from companion.training import EMA, Record, adam, fit, warmup_cosine, warmup_cosine_in


@pytest.fixture
def data():
    x = randn(64, 2, generator=generator(0))
    return x, x @ torch.tensor([[1.0], [-2.0]]) + 0.5


@pytest.fixture
def model():
    with seeded(generator(1)):
        return MLP(2, 1, width=8, depth=1)


def squared_error(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def weights(model):
    return [w.detach().clone() for w in model.parameters()]


def test_the_loop_takes_the_steps_of_one_written_out(model, data):
    """Plain Adam of torch, not fused, written out: the same weights after 50 steps."""
    other = copy.deepcopy(model)
    optimizer = torch.optim.Adam(other.parameters(), lr=0.01, fused=False, foreach=False)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = squared_error(other, data)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    records = list(fit(model, squared_error, [data], steps=50, optimizer=adam(model, 0.01)))
    assert [r.loss for r in records] == pytest.approx(losses, rel=1e-4)
    for ours, theirs in zip(weights(model), weights(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_records_number_the_steps_and_tell_the_rate(model, data):
    records = list(fit(model, squared_error, [data], steps=3))
    assert all(isinstance(r, Record) for r in records)
    assert [r.step for r in records] == [1, 2, 3]
    assert [r.learning_rate for r in records] == [1e-3] * 3
    assert [r.grad_norm for r in records] == [None] * 3


def test_training_happens_while_one_looks(model, data):
    before = weights(model)
    loop = fit(model, squared_error, [data], steps=10)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))
    next(loop)
    assert not torch.equal(weights(model)[0], before[0])


def test_a_line_is_learned(data):
    """Adam with a decaying rate finds the least-squares solution, which torch.linalg knows."""
    with seeded(generator(2)):
        line = nn.Linear(2, 1)
    optimizer = adam(line, 0.05)
    schedule = warmup_cosine(optimizer, warmup=10, steps=600)
    list(fit(line, squared_error, [data], steps=600, optimizer=optimizer, schedule=schedule))
    design = torch.cat([data[0], torch.ones(64, 1)], dim=1)
    solution = torch.linalg.lstsq(design, data[1]).solution.flatten()
    torch.testing.assert_close(torch.cat([line.weight[0], line.bias]).detach(), solution, rtol=1e-3, atol=1e-3)


def test_clipping_bounds_the_gradient_and_reports_its_norm(model, data):
    """With plain gradient descent the step is the rate times the clipped gradient: its length shows the bound."""
    expected = torch.autograd.grad(squared_error(model, data), list(model.parameters()))
    norm = torch.cat([g.flatten() for g in expected]).norm().item()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    (record,) = fit(model, squared_error, [data], steps=1, optimizer=optimizer, clip=norm / 10)
    step = torch.cat([(a - b).flatten() for a, b in zip(weights(model), before, strict=True)]).norm().item()
    assert record.grad_norm == pytest.approx(norm, rel=1e-5)
    assert step == pytest.approx(norm / 10, rel=1e-3)


def test_an_infinite_clip_measures_and_changes_nothing(model, data):
    other = copy.deepcopy(model)
    (record,) = fit(model, squared_error, [data], steps=1, clip=math.inf)
    list(fit(other, squared_error, [data], steps=1))
    assert record.grad_norm > 0
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(other), strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_are_spoiled(model, data, bad):
    batches = [data, data, (data[0], torch.full_like(data[1], bad))]
    loop = fit(model, squared_error, batches, steps=10)
    next(loop)
    next(loop)
    before = weights(model)
    with pytest.raises(ValueError, match=r"fit: received a loss of (nan|inf) at step 3; it must be finite"):
        next(loop)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))


def test_a_gradient_that_is_not_finite_is_found_where_its_norm_is_asked_for(model, data):
    def root(model, batch):
        return model(batch[0]).sum() * 0 + torch.sqrt(model[0].bias.sum() * 0)  # 0 with an infinite slope

    with pytest.raises(ValueError, match=r"gradient norm of (nan|inf) at step 1"):
        next(fit(model, root, [data], steps=1, clip=1.0))


def test_batches_start_again_when_they_end(model, data):
    assert len(list(fit(model, squared_error, [data, data], steps=7))) == 7


def test_no_more_batches_are_drawn_than_steps_are_taken(model, data):
    drawn = []
    list(fit(model, squared_error, (drawn.append(1) or data for _ in repeat(0)), steps=4))
    assert len(drawn) == 4


@pytest.mark.parametrize("batches", [[], iter(())])
def test_no_batches_are_an_error_and_no_endless_loop(model, batches):
    with pytest.raises(ValueError, match="received no batch"):
        next(fit(model, squared_error, batches, steps=1))


def test_an_iterator_that_is_used_up_is_an_error(model, data):
    loop = fit(model, squared_error, iter([data, data]), steps=3)
    assert len(list(islice(loop, 2))) == 2
    with pytest.raises(ValueError, match="used up"):
        next(loop)


def test_the_average_is_the_weighted_sum_written_out():
    """θ̄ = Σ_k (1 − β_k) Π_{j>k} β_j θ_k + Π β_j θ_0, summed by hand."""
    model = nn.Linear(1, 1, bias=False)
    values = [1.0, -2.0, 5.0, 0.5, 3.0]
    with torch.no_grad():
        model.weight.fill_(values[0])
    ema = EMA(model, decay=0.25)
    for value in values[1:]:
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update()
    betas = [min(0.25, (1 + k) / (10 + k)) for k in (1, 2, 3, 4)]
    assert betas == pytest.approx([2 / 11, 0.25, 0.25, 0.25])
    expected = values[0] * math.prod(betas)
    for k in range(4):
        expected += (1 - betas[k]) * math.prod(betas[k + 1 :]) * values[k + 1]
    assert ema.model.weight.item() == pytest.approx(expected)


def test_the_average_leaves_the_model_alone(model, data):
    other = copy.deepcopy(model)
    ema = EMA(model, 0.9)
    list(fit(model, squared_error, [data], steps=5, ema=ema))
    list(fit(other, squared_error, [data], steps=5))
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(other), strict=True))
    assert not any(w.requires_grad for w in ema.model.parameters())
    assert not ema.model.training
    assert ema.steps == 5


def test_the_average_copies_buffers():
    model = nn.BatchNorm1d(2)
    ema = EMA(model)
    model(randn(8, 2, generator=generator(0)) + 3)
    ema.update()
    assert torch.equal(ema.model.running_mean, model.running_mean)
    assert ema.model.num_batches_tracked == 1


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_outside_zero_and_one_is_refused(model, decay):
    with pytest.raises(ValueError, match=r"it must lie in \[0, 1\)"):
        EMA(model, decay)


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine(model, data):
    optimizer = adam(model, 0.1)
    schedule = warmup_cosine(optimizer, warmup=4, steps=12)
    records = fit(model, squared_error, [data], steps=14, optimizer=optimizer, schedule=schedule)
    rates = [r.learning_rate for r in records]
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert rates[4] == pytest.approx(0.1)
    assert rates[8] == pytest.approx(0.05)
    assert rates[12:] == pytest.approx([0, 0], abs=1e-9)
    assert sorted(rates[4:], reverse=True) == rates[4:]


def test_the_rate_can_follow_a_clock(model, data):
    """A clock that runs unevenly: the rate depends on what it shows, not on how many steps were taken."""
    clock = [0.0, 0.05, 0.1, 0.1, 0.55, 0.55, 1.0, 1.3]
    shows = iter([*clock, 2.0])
    optimizer = adam(model, 0.1)
    schedule = warmup_cosine_in(optimizer, lambda: next(shows), warmup=0.1)
    records = fit(model, squared_error, [data], steps=None, optimizer=optimizer, schedule=schedule)
    rates = [record.learning_rate for record in islice(records, len(clock))]
    assert rates == pytest.approx([0.001, 0.05, 0.1, 0.1, 0.05, 0.05, 0, 0], abs=1e-9)


@pytest.mark.parametrize("warmup", [-0.1, 1.0])
def test_a_warmup_is_a_share_of_the_training(model, warmup):
    with pytest.raises(ValueError, match="0 ≤ warmup < 1"):
        warmup_cosine_in(adam(model), lambda: 0.0, warmup=warmup)


def test_without_a_number_of_steps_the_caller_ends_the_training(model, data):
    records = list(islice(fit(model, squared_error, [data], steps=None), 5))
    assert [record.step for record in records] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("warmup", [-1, 10, 11])
def test_a_warmup_longer_than_the_training_is_refused(model, warmup):
    with pytest.raises(ValueError, match="0 ≤ warmup < steps"):
        warmup_cosine(adam(model), warmup=warmup, steps=10)


def test_weights_that_are_a_slice_of_others_are_trained_too():
    """The minimum of a square, from a column of a matrix, which has gaps in memory."""
    slice_ = nn.Module()
    slice_.column = nn.Parameter(torch.zeros(8, 4).chunk(2, dim=1)[0])
    assert not slice_.column.is_contiguous()
    list(fit(slice_, lambda m, _: (m.column - 1).square().sum(), repeat(None), steps=300, optimizer=adam(slice_, 0.1)))
    torch.testing.assert_close(slice_.column.detach(), torch.ones(8, 2), atol=1e-3, rtol=0)


def test_convolutions_with_channels_last_are_updated_in_one_fused_call():
    assert adam(nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)).defaults["fused"]


def test_weight_decay_makes_it_adamw(model):
    assert type(adam(model)) is torch.optim.Adam
    assert type(adam(model, weight_decay=0.1)) is torch.optim.AdamW


def test_a_model_without_weights_cannot_be_trained():
    with pytest.raises(ValueError, match="nothing to train"):
        adam(nn.ReLU())
