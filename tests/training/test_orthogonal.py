"""Muon against singular values, against torch's own, and on what it is for."""

import copy

import pytest
import torch
from torch import nn

from companion.device import generator, randn, seeded
from companion.nn import UNet
from companion.training import adam, fit, muon, orthogonalized
from companion.training.orthogonal import Muon


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (3, 8, 8)])
def test_the_iteration_leaves_the_singular_vectors_and_evens_out_the_values(shape):
    """With the singular values from torch.linalg: U and V stay, values of 0.1 to 1 of the norm end in [0.65, 1.2]."""
    u, _, vt = torch.linalg.svd(randn(*shape, generator=generator(0)), full_matrices=False)
    values = torch.linspace(0.3, 1.0, u.shape[-1])
    result = orthogonalized(u * values @ vt)
    inner = u.mT @ result @ vt.mT
    diagonal = inner.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(inner, torch.diag_embed(diagonal), rtol=0, atol=1e-4)
    assert diagonal.min() > 0.65
    assert diagonal.max() < 1.2


def test_its_steps_are_torchs():
    """torch.optim.Muon on two matrices; it computes in bfloat16: agreement to a tenth of the way."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    with seeded(generator(0)):
        model = nn.Sequential(nn.Linear(12, 24, bias=False), nn.ReLU(), nn.Linear(24, 16, bias=False))
    other = copy.deepcopy(model)
    ours = Muon(model.parameters(), [], lr=0.02)
    theirs = torch.optim.Muon(other.parameters(), lr=0.02, weight_decay=0.0)
    for step in range(4):
        x = randn(8, 12, generator=generator(step))  # other data each time, so that the average matters
        for net, optimizer in ((model, ours), (other, theirs)):
            optimizer.zero_grad()
            (net(x) - x[:, :1]).square().mean().backward()
            optimizer.step()
    with seeded(generator(0)):
        start = nn.Linear(12, 24, bias=False).weight
    moved = (model[0].weight - start).norm()
    for mine, other_weight in zip(model.parameters(), other.parameters(), strict=True):
        assert (mine - other_weight).norm() < 0.1 * moved


def test_a_kernel_moves_as_the_matrix_of_its_taps():
    """A convolution that sees each patch once is a linear layer on patches: the same weights after a step."""
    with seeded(generator(0)):
        conv = nn.Conv2d(8, 16, 2, stride=2, bias=False)
    linear = nn.Linear(32, 16, bias=False)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
    images = randn(10, 8, 2, 2, generator=generator(1))
    for layer, x in ((conv, images), (linear, images.flatten(1))):
        optimizer = muon(layer)
        layer(x).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(conv.weight.flatten(1), linear.weight, rtol=1e-4, atol=1e-5)


def test_the_unets_ends_embeddings_and_vectors_are_adams():
    model = UNet(channels=(8, 16), labels=10)
    optimizer = muon(model)
    names = {weight: name for name, weight in model.named_parameters()}
    matrices, others = ({names[w] for w in group["params"]} for group in optimizer.param_groups)
    assert matrices | others == set(names.values())
    assert {"conv_in.weight", "conv_out.weight", "label.weight"} <= others
    assert all(name.endswith("weight") for name in matrices)
    assert len(matrices) == 19


def test_it_needs_fewer_steps_where_directions_differ():
    """Least squares with a spectrum over four decades: after 300 steps with decay it is far below Adam."""
    x = randn(256, 16, generator=generator(0)) * torch.logspace(0, -2, 16)
    target = x @ randn(16, 16, generator=generator(1))
    losses = {}
    for name, make in {"muon": lambda m: muon(m, 0.1), "adam": lambda m: adam(m, 0.02)}.items():
        with seeded(generator(2)):
            model = nn.Linear(16, 16, bias=False)
        optimizer = make(model)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 - k / 300)
        records = fit(model, lambda m, b: (m(b[0]) - b[1]).square().mean(), [(x, target)], steps=300,
                      optimizer=optimizer, schedule=schedule)  # fmt: skip
        *_, losses[name] = (record.loss for record in records)
    assert losses["muon"] < 0.5 * losses["adam"], losses


def test_a_vector_is_no_matrix():
    with pytest.raises(ValueError, match="a vector among the matrices"):
        Muon([nn.Parameter(torch.zeros(3))], [])
