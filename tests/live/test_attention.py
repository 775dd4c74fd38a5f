"""The figures of chapter 16: costs against the cost model of the companion, memory against its caches."""

import math

import pytest
import torch

from companion.live import attention as live
from companion.methods import attention as at
from companion.nn.caches import BlockPool, PagedCache, WindowCache
from companion.nn.costs import Grouped, Latent, cache_bytes, decode_cost


@pytest.fixture(scope="module")
def costs():
    return live.cache_and_speed()


@pytest.fixture(scope="module")
def reading():
    return live.what_is_read()


def shapes(heads, groups, d_head, d_latent):
    """The four kinds as the companion writes them."""
    return [
        Grouped(heads, heads, d_head),
        Grouped(heads, groups, d_head),
        Grouped(heads, 1, d_head),
        Latent(heads, d_head, d_latent, d_head // 2),
    ]


@pytest.mark.parametrize("model", live.MODELS)
@pytest.mark.parametrize(
    ("groups", "latent", "context", "batch"), [(3, 512, 13, 32), (1, 128, 17, 1), (4, 2048, 8, 256)]
)
def test_the_numbers_are_those_of_the_cost_model(costs, model, groups, latent, context, batch):
    """`decode_cost` and `cache_bytes` of the companion, at the same sizes."""
    _, layers, heads, d_head, weights = live.MODELS[model]
    out = costs.compute(model=model, groups=groups, latent=latent, context=context, batch=batch, bandwidth=2, peak=500)
    for kind, shape in zip(live.KINDS, shapes(heads, 2**groups, d_head, latent), strict=True):
        held = cache_bytes(shape, layers=layers, length=2**context, bytes_per_value=2)
        cost = decode_cost(
            shape, layers=layers, length=2**context, weights=int(weights), batch=batch, bytes_per_value=2
        )
        rate = cost.tokens_per_second(peak=500e12, bandwidth=2e12)
        assert out[f"gb_{kind}"].item() == pytest.approx(held / 1e9, rel=1e-5)
        assert out[f"rate_{kind}"].item() == pytest.approx(rate, rel=1e-4)


def test_each_curve_passes_through_its_dot(costs):
    """At a context that is a point of the curves."""
    out = costs.compute(context=13)
    where = (costs.inputs["contexts"] - 13).abs().argmin()
    for k, kind in enumerate(live.KINDS):
        for name in ("memory", "speed"):
            torch.testing.assert_close(out[f"{name}_{kind}"][where], out[f"{name}_here"][k, 1], rtol=1e-4, atol=1e-4)


def test_as_many_groups_as_heads_is_every_head_for_itself(costs):
    """Llama 3 8B has 32 = 2⁵ heads."""
    out = costs.compute(model="llama-8b", groups=5)
    assert out["gb_gqa"] == out["gb_mha"]
    assert out["rate_gqa"] == out["rate_mha"]


@pytest.mark.parametrize("more", [-3, 1, 3])
def test_more_heads_cost_what_a_model_with_that_many_costs(costs, more):
    """Llama 3 8B has 32 heads; at most as many groups as heads."""
    heads = int(32 * 2**more)
    out = costs.compute(more=more, groups=3, context=13, batch=32, bandwidth=3.35, peak=990)
    assert out["heads"] == heads
    for kind, shape in zip(live.KINDS, shapes(heads, min(8, heads), 128, 512), strict=True):
        held = cache_bytes(shape, layers=32, length=2**13, bytes_per_value=2)
        cost = decode_cost(shape, layers=32, length=2**13, weights=8 * 10**9, batch=32, bytes_per_value=2)
        assert out[f"gb_{kind}"].item() == pytest.approx(held / 1e9, rel=1e-5)
        assert out[f"rate_{kind}"].item() == pytest.approx(
            cost.tokens_per_second(peak=990e12, bandwidth=3.35e12), rel=1e-4
        )


def test_the_published_cache_of_deepseek_v2(costs):
    """576 numbers a token and layer, 60 layers: table 1 of its paper writes 4.5 d_head a layer."""
    out = costs.compute(model="deepseek-v2", latent=512, context=10)
    assert out["gb_mla"].item() == pytest.approx(4.5 * 128 * 60 * 2 * 1024 / 1e9, rel=1e-5)


def test_below_the_edge_of_the_roof_attention_waits_for_memory(costs):
    """Plain multi-head attention makes one FLOP a byte in half precision; its dot lies at the bandwidth."""
    out = costs.compute(bandwidth=3, peak=990)
    intensity, attained = out["on_the_roof"][0]
    assert intensity.item() == pytest.approx(0, abs=1e-6)
    assert attained.item() == pytest.approx(math.log10(3), abs=1e-6)
    assert out["ridge"].item() == pytest.approx(330)


@pytest.mark.parametrize("written", [1, 7, 8, 30, 40])
@pytest.mark.parametrize("size", [2, 5, 8, 16])
def test_a_window_lies_where_the_ring_of_the_companion_puts_it(reading, written, size):
    """The companion's cache of keys that are their own positions."""
    ring = WindowCache(1, 1, size, 1)
    for position in range(written):
        key = torch.full((1, 1, 1, 1), position + 1.0)
        ring.append(key, key)
    out = reading.compute(kind="window", written=written, size=size)
    slots = out["memory"].flatten()[:size]
    assert torch.equal(slots != 0, ring.keys.flatten() > 0)
    assert out["reads"] == min(written, size)
    assert out["holds"] == min(written, size)


@pytest.mark.parametrize("written", [1, 12, 30, 40])
@pytest.mark.parametrize("size", range(2, 17))
def test_pages_hold_whole_blocks_and_nobody_writes_into_anothers(reading, written, size):
    """The blocks of the companion's paged cache; each token has one slot, and the other text keeps its own."""
    pool = BlockPool(80 // size, 1, 1, block=size)
    cache = PagedCache(pool)
    key = torch.zeros(1, 1, written, 1)
    cache.append(key, key)
    out = reading.compute(kind="paged", written=written, size=size)
    assert out["holds"] == cache.table.numel() * size
    assert out["reads"] == written
    memory = out["memory"].flatten()
    assert (memory == live.READ).sum() == written
    assert (memory == live.OTHER).sum() == live.NEIGHBOR


def test_the_square_shows_who_sees_whom(reading):
    """`Window(8)` of the companion, for the tokens that are written; the last of them stands out."""
    out = reading.compute(kind="window", written=30, size=8)
    i = torch.arange(live.LENGTH)
    seen = at.Window(8)(i[:, None], i) & (i[:, None] < 30)
    assert torch.equal(out["matrix"] != 0, seen)
    assert (out["matrix"] == live.READ).nonzero()[:, 0].unique().tolist() == [29]


@pytest.mark.parametrize(("layers", "size", "reaches"), [(1, 8, 8), (2, 8, 15), (6, 8, 40), (3, 2, 4)])
def test_a_token_is_reached_through_the_layers(reading, layers, size, reaches):
    """Counted by the powers of the matrix of who sees whom."""
    i = torch.arange(live.LENGTH)
    sees = at.Window(size)(i[:, None], i).double()
    counted = (torch.linalg.matrix_power(sees, layers)[-1] > 0).sum()
    out = reading.compute(kind="window", written=live.LENGTH, size=size, layers=layers)
    assert out["reaches"] == counted == reaches
    dots = out["through"][out["through"][:, 0] > 0]
    assert dots[:, 0].tolist() == [p + 0.5 for p in range(live.LENGTH - reaches, live.LENGTH - size)]
    assert (dots[:, 1] == live.LENGTH - 0.5).all()


@pytest.mark.parametrize("kind", ["full", "paged"])
def test_without_a_window_nothing_has_to_come_through_the_layers(reading, kind):
    """The last token reads all of them itself."""
    assert (reading.compute(kind=kind, layers=6)["through"][:, 0] < 0).all()
