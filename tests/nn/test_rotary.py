"""Rotary positions: a rotation by known angles, scores that depend on distance alone, and a table of its own length."""

import pytest
import torch

from companion.device import generator, randn
from companion.nn.rotary import Rotary, frequencies, neighbors_from_halves, rotate

F64 = torch.float64
DIM = 8


def normals(*shape, seed=0):
    return randn(*shape, generator=generator(seed), dtype=F64)


@pytest.mark.verifies("eq-rotary")
def test_a_vector_is_turned_by_the_exponential_of_its_position():
    """The matrix exponential of p times a skew matrix with θ_k in the block of the k-th pair of neighbors."""
    x, theta = normals(5, DIM), 100.0 ** (-torch.arange(0, DIM, 2, dtype=F64) / DIM)
    skew = torch.block_diag(*[torch.tensor([[0.0, a], [-a, 0.0]], dtype=F64) for a in theta])  # for row vectors
    rotary = Rotary(DIM, length=20, base=100.0).double()
    turned = torch.stack([row @ torch.matrix_exp(p * skew) for p, row in enumerate(x, start=7)])
    torch.testing.assert_close(rotary(x, 7), turned, atol=1e-6, rtol=0)  # its table was made in float32
    angles = torch.arange(7, 12)[:, None] * frequencies(DIM, base=100.0)
    torch.testing.assert_close(rotate(x, angles), turned)


@pytest.mark.verifies("eq-rotary-relative")
def test_a_score_depends_on_the_distance_of_its_tokens_alone():
    """The same distance elsewhere gives the same score, and is that of a key that is not turned at all."""
    q, k, theta = normals(1, DIM), normals(1, DIM, seed=1), frequencies(DIM)[None]
    for distance in (0, 1, 5):
        scores = [rotate(q, (s + distance) * theta) @ rotate(k, s * theta).T for s in (0, 3, 40)]
        unturned = rotate(q, distance * theta) @ k.T
        for score in scores:
            torch.testing.assert_close(score, unturned)
    assert (rotate(q, theta) @ k.T - q @ k.T).abs() > 1e-3


def test_lengths_are_kept():
    x = normals(2, 3, 6, DIM)
    torch.testing.assert_close(Rotary(DIM, length=6).double()(x).norm(dim=-1), x.norm(dim=-1), atol=1e-6, rtol=0)


def test_half_precision_is_turned_in_float32():
    x, rotary = normals(4, DIM).float(), Rotary(DIM, length=4)
    half = rotary(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, rotary(x.bfloat16().float()).bfloat16())
    torch.testing.assert_close(rotary.bfloat16()(x.bfloat16()).float(), rotary(x), atol=0.05, rtol=0.05)


def test_the_table_has_no_weights_and_is_not_saved():
    rotary = Rotary(DIM, length=4)
    assert not rotary.state_dict()
    assert not list(rotary.parameters())


def test_rows_of_halves_become_neighbors_with_the_same_scores():
    """Rotation of pairs (k, k + d/2), written out, on the projections before the reordering."""
    heads, weight, x = 2, normals(2 * DIM, 5), normals(3, 5, seed=1)
    angles = torch.arange(3)[:, None] * frequencies(DIM)
    a, b = (x @ weight.T).view(3, heads, 2, DIM // 2).unbind(2)
    c, s = angles.cos()[:, None], angles.sin()[:, None]
    by_halves = torch.cat([a * c - b * s, b * c + a * s], dim=-1)
    mine = rotate((x @ neighbors_from_halves(weight, heads=heads).T).view(3, heads, DIM).transpose(0, 1), angles)
    torch.testing.assert_close(mine @ mine.mT, torch.einsum("phd,shd->hps", by_halves, by_halves))


@pytest.mark.parametrize("width", [7, 1, 0, -2])
def test_an_odd_width_is_an_error(width):
    with pytest.raises(ValueError, match="rule: coordinates turn in pairs, so the width is even"):
        Rotary(width, length=4)


def test_positions_past_the_table_are_an_error():
    rotary = Rotary(DIM, length=4)
    rotary(torch.zeros(1, DIM), 3)
    for start, new in ((4, 1), (3, 2), (-1, 1)):
        with pytest.raises(ValueError, match=rf"from position {start} on; rule: width 8, positions 0 to 3"):
            rotary(torch.zeros(new, DIM), start)


def test_other_bad_input_names_its_rule():
    with pytest.raises(ValueError, match="rule: width 8"):
        Rotary(DIM, length=4)(torch.zeros(2, 6))
    with pytest.raises(ValueError, match="rule: base > 0"):
        frequencies(DIM, base=0.0)
    with pytest.raises(ValueError, match="rule: a whole number of positions"):
        Rotary(DIM, length=0)
    with pytest.raises(ValueError, match="rule: x .* angles .length, dim/2"):
        rotate(torch.zeros(3, DIM), torch.zeros(3, DIM // 2 - 1))
    with pytest.raises(ValueError, match="rule: heads of an even width"):
        neighbors_from_halves(torch.zeros(6, 4), heads=2)
