"""Normalizing flows against zuko with the same weights: log-densities, points and the way back, in float64."""

import pytest
import torch
import zuko
from torch import nn

from companion.device import generator, randn
from companion.methods import normalizing_flows as nf
from companion.numerics.splines import knots_from, rational_quadratic, rational_quadratic_inverse

F64 = torch.float64
DIM, HIDDEN = 4, (16, 24)
X = 2 * randn(300, DIM, generator=generator(0), dtype=F64)


def theirs(flow):
    """A flow of zuko in float64 with weights that matter."""
    return nf.scramble(flow.double(), generator=generator(1), scale=0.3)


def linears(module):
    return [layer for layer in module.modules() if hasattr(layer, "weight")]


@torch.no_grad()
def copy_network(ours, peer):
    """Weights of zuko's network into ours; of a masked layer the part that it uses."""
    for mine, other in zip(ours, linears(peer), strict=True):
        mine.weight.copy_(other.weight * getattr(other, "mask", 1))
        mine.bias.copy_(other.bias)


def zuko_layers(flow):
    """From base to data: zuko's flows go from data to base."""
    return list(reversed(flow.transform.transforms))


def real_nvp():
    peer = theirs(zuko.flows.RealNVP(DIM, transforms=3, hidden_features=HIDDEN))
    ours = nf.real_nvp(DIM, transforms=3, hidden=HIDDEN).double()
    for mine, other in zip(ours.transforms, zuko_layers(peer), strict=True):
        copy_network(linears(mine), other.hyper)
    return ours, peer


def autoregressive(peer, univariate):
    peer = theirs(peer)
    ours = nf.masked_autoregressive_flow(DIM, transforms=3, hidden=HIDDEN, univariate=univariate).double()
    for mine, other in zip(ours.transforms, zuko_layers(peer), strict=True):
        copy_network(linears(mine), other.hyper)
    return ours, peer


def maf():
    return autoregressive(zuko.flows.MAF(DIM, transforms=3, hidden_features=HIDDEN), nf.Affine())


def spline_autoregressive():
    return autoregressive(zuko.flows.NSF(DIM, transforms=3, bins=6, hidden_features=HIDDEN), nf.Spline(6))


@torch.no_grad()
def spline_coupling():
    """zuko's coupling is its autoregressive layer in two passes: the first half depends on nothing, so on the bias."""
    peer = theirs(zuko.flows.NSF(DIM, transforms=3, bins=6, passes=2, hidden_features=HIDDEN))
    half = torch.arange(DIM) < DIM // 2
    layers = []
    for other in zuko_layers(peer):
        kept = half if other.order[0] == 0 else ~half
        mine = nf.SplineCoupling(kept, bins=6, hidden=HIDDEN).double()
        first, *middle, last = linears(other.hyper)
        mine_first, *mine_middle, mine_last = linears(mine)
        mine_first.weight.copy_((first.weight * first.mask)[:, kept])
        mine_first.bias.copy_(first.bias)
        copy_network(mine_middle, nn.Sequential(*middle))
        rows = kept.repeat_interleave(mine.univariate.size)
        mine.kept_phi.copy_(last.bias[rows].unflatten(0, (-1, mine.univariate.size)))
        mine_last.weight.copy_((last.weight * last.mask)[~rows])
        mine_last.bias.copy_(last.bias[~rows])
        layers.append(mine)
    return nf.Flow(nf.StandardNormal(DIM).double(), layers), peer


FLOWS = {
    "RealNVP": real_nvp,
    "spline coupling": spline_coupling,
    "masked autoregressive": maf,
    "spline autoregressive": spline_autoregressive,
}


@pytest.mark.verifies("eq-affine-coupling", "eq-autoregressive-flow", "eq-flow-nll")
@pytest.mark.parametrize("build", FLOWS.values(), ids=FLOWS.keys())
@torch.no_grad()
def test_log_densities_are_those_of_zuko(build):
    """zuko's flows with the same weights, to eleven digits; a changed weight shows."""
    ours, peer = build()
    wanted = peer().log_prob(X)
    assert wanted.std() > 1
    torch.testing.assert_close(ours.log_prob(X), wanted, atol=1e-9, rtol=1e-11)
    next(ours.parameters()).add_(0.01)
    assert (ours.log_prob(X) - wanted).abs().max() > 1e-4


@pytest.mark.parametrize("build", FLOWS.values(), ids=FLOWS.keys())
@torch.no_grad()
def test_points_go_where_zuko_carries_them(build):
    """Both directions of zuko's transforms with the same weights."""
    ours, peer = build()
    to_base = peer().transform
    z, log_det = ours.inverse(X)
    torch.testing.assert_close(z, to_base(X), atol=1e-9, rtol=1e-11)
    torch.testing.assert_close(log_det, to_base.log_abs_det_jacobian(X, z), atol=1e-9, rtol=1e-11)
    torch.testing.assert_close(ours(z)[0], to_base.inv(z), atol=1e-6, rtol=1e-9)


@pytest.mark.verifies("eq-rational-quadratic")
def test_splines_are_those_of_zuko():
    """zuko's MonotonicRQSTransform with the same free numbers, inside and outside the box, both ways."""
    phi = 3 * randn(500, 2, 23, generator=generator(2), dtype=F64)
    x = 4 * randn(500, 2, generator=generator(3), dtype=F64)
    peer = zuko.transforms.MonotonicRQSTransform(*phi.split([8, 8, 7], dim=-1))
    knots = knots_from(phi, bins=8)
    y, log_slope = rational_quadratic(x, knots)
    wanted, wanted_slope = peer.call_and_ladj(x)
    torch.testing.assert_close((y, log_slope), (wanted, wanted_slope), atol=1e-11, rtol=1e-12)
    torch.testing.assert_close(rational_quadratic_inverse(y, knots)[0], peer.inv(y), atol=1e-9, rtol=0)
