"""What decoding costs: formulas against storage that is measured and operations that torch counts."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from companion.device import generator, seeded
from companion.methods.attention import GroupedQueryAttention, LatentAttention, absorbed_form, naive_form
from companion.nn.costs import PUBLISHED, DecodeCost, Grouped, Latent, cache_bytes, decode_cost, linear_weights
from companion.nn.rotary import Rotary
from companion.nn.transformer import Decoder

ROTARY = Rotary(4, length=80)
ATTENTIONS = {
    "mha": lambda: GroupedQueryAttention(32, heads=4, kv_heads=4),
    "gqa": lambda: GroupedQueryAttention(32, heads=4, kv_heads=2),
    "mqa": lambda: GroupedQueryAttention(32, heads=4, kv_heads=1),
    "mla": lambda: LatentAttention(32, heads=4, d_latent=12, rotary=ROTARY, form=absorbed_form),
}


def decoder(kind, layers=3):
    with seeded(generator(0)):
        return Decoder(17, 32, layers, ATTENTIONS[kind]).eval()


@torch.no_grad()
def counted_flops(model, length, batch=1, new=1):
    """FLOPs that torch counts for new tokens after `length − new` others, without the fused kernel, which it skips."""
    tokens = torch.zeros(batch, length, dtype=torch.long)
    caches = model.new_caches(batch=batch, length=length)
    model(tokens[:, new:], caches)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens[:, :new], caches)
    return counter.get_total_flops()


def stored(model, batch, length, dtype=torch.float32):
    """Bytes of the storage of all tensors in the caches, each once."""
    caches = model.to(dtype).new_caches(batch=batch, length=length)
    tensors = [x for cache in caches for x in vars(cache).values() if isinstance(x, torch.Tensor)]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


@pytest.mark.verifies("eq-cache-bytes")
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)], ids=str)
def test_the_bytes_of_a_cache_of_keys_and_values_are_those_of_its_storage(kind, dtype, width):
    """The memory that torch reports for the tensors of the caches."""
    model = decoder(kind)
    shape = model.blocks[0].attention.shape
    formula = cache_bytes(shape, layers=3, length=50, batch=2, bytes_per_value=width)
    assert stored(model, 2, 50, dtype) == formula == 2 * 3 * shape.kv_heads * 8 * 50 * 2 * width
    assert sum(cache.nbytes for cache in model.new_caches(batch=2, length=50)) == formula


@pytest.mark.verifies("eq-latent-cache")
def test_the_bytes_of_a_cache_of_latents_are_those_of_its_storage():
    """The memory that torch reports for the tensors of the caches; the number of heads does not enter."""
    model = decoder("mla")
    formula = cache_bytes(model.blocks[0].attention.shape, layers=3, length=50, batch=2)
    assert stored(model, 2, 50) == formula == 3 * (12 + 4) * 50 * 2 * 4
    more_heads = LatentAttention(32, heads=8, d_latent=12, rotary=ROTARY)
    assert 3 * more_heads.new_cache(batch=2, length=50).nbytes == formula


@pytest.mark.verifies("eq-latent-cache")
def test_the_cache_sizes_of_deepseek_v2_are_recomputed():
    """Numbers printed in its paper: 93.3% less than DeepSeek 67B, with 6 bits for a number; and its table 1."""
    (v2, v2_layers), (v1, v1_layers) = PUBLISHED["DeepSeek-V2"], PUBLISHED["DeepSeek 67B"]
    new, old = v2.cached * v2_layers, v1.cached * v1_layers
    assert (v2.cached, v2_layers, v1.cached, v1_layers) == (576, 60, 2048, 95)
    in_numbers = 1 - new / old
    in_bytes = 1 - cache_bytes(v2, layers=60, length=1, bytes_per_value=6 / 8) / cache_bytes(
        v1, layers=95, length=1, bytes_per_value=2
    )
    assert round(100 * in_numbers, 1) == 82.2
    assert round(100 * in_bytes, 1) == 93.3
    own_heads = Grouped(v2.heads, v2.heads, v2.d_head)
    assert own_heads.cached == 32_768
    assert round(100 * (1 - v2.cached / own_heads.cached), 1) == 98.2
    assert v2.cached / Grouped(v2.heads, 1, v2.d_head).cached == 2.25  # 'equal to GQA with only 2.25 groups'


@pytest.mark.verifies("eq-roofline")
def test_a_step_takes_as_long_as_the_slower_of_loading_and_computing():
    """A machine simulated tile by tile: a tile is computed while the next is loaded, into two buffers."""
    tiles = 4000
    for flops, moved in ((8e9, 1e9), (1e9, 8e9), (4e9, 4e9)):
        cost, peak, bandwidth = DecodeCost(flops, 0.4 * moved, 0.6 * moved, batch=2), 5e9, 3e9
        loaded = computed = before = 0.0
        for _ in range(tiles):
            loaded = max(loaded, before) + moved / tiles / bandwidth  # waits until one of the two buffers is free
            before, computed = computed, max(computed, loaded) + flops / tiles / peak
        seconds = cost.seconds(peak=peak, bandwidth=bandwidth)
        assert seconds <= computed == pytest.approx(seconds, rel=2e-3)
        assert cost.tokens_per_second(peak=peak, bandwidth=bandwidth) == 2 / seconds
    assert DecodeCost(10.0, 1.0, 4.0, batch=1).intensity == 2


@pytest.mark.verifies("eq-decode-intensity")
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_the_intensity_is_that_of_counted_operations_and_stored_bytes(kind):
    """FLOPs that torch counts for 40 more tokens in the cache, over the bytes by which the cache is larger."""
    model = decoder(kind)
    flops = counted_flops(model, 60) - counted_flops(model, 20)
    bytes_read = stored(model, 1, 60) - stored(model, 1, 20)
    shape = model.blocks[0].attention.shape
    expected = flops / bytes_read
    if kind == "mla":  # our form reads the values as wide as the keys, which counts d_rope more
        expected *= (2 * 12 + 4) / (2 * 12 + 2 * 4)
    assert shape.intensity() == pytest.approx(expected)
    closed = {"mha": 2 / 4, "gqa": 2 * 2 / 4, "mqa": 2 * 4 / 4, "mla": 2 * 4 * 28 / (16 * 4)}
    assert shape.intensity() == closed[kind]


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_operations_of_a_step_are_those_that_torch_counts(kind, batch):
    model = decoder(kind)
    cost = decode_cost(model.blocks[0].attention.shape, layers=3, length=40, weights=linear_weights(model), batch=batch)
    assert cost.flops == counted_flops(model, 40, batch)
    assert cost.weight_bytes == 4 * sum(w.numel() for name, w in model.named_parameters() if _multiplied(name))
    assert cost.bytes == cost.weight_bytes + stored(model, batch, 40)


def _multiplied(name):
    return "norm" not in name and "embedding" not in name


@pytest.mark.verifies("eq-absorb-when")
def test_absorbing_pays_up_to_as_many_new_tokens_as_the_formula_says():
    """FLOPs that torch counts for both forms, at lengths where the new tokens' own share is small."""
    sizes = {"heads": 4, "d_head": 8, "d_latent": 24, "norm": torch.nn.Identity()}
    naive, absorbed = (LatentAttention(32, **sizes, form=form) for form in (naive_form, absorbed_form))
    n = naive.shape.absorb_up_to
    assert n == 8 * 24 / (24 - 8) == 12

    def flops(attention, new):
        return counted_flops(Decoder(3, 32, 1, lambda: attention), 5000, new=new)

    assert flops(absorbed, 11) < flops(naive, 11)
    assert flops(absorbed, 13) > flops(naive, 13)
    assert flops(absorbed, 12) == pytest.approx(flops(naive, 12), rel=0.01)
    shape = naive.shape
    assert shape.flops(5000, new=12) == shape.naive_flops(5000, new=12)
    assert Latent(4, 8, 6).absorb_up_to == math.inf


@pytest.mark.refutes("E30")
def test_a_smaller_cache_leaves_what_training_stores_almost_as_it_was():
    """Bytes that autograd keeps for the backward pass: they hardly depend on the number of key heads."""

    def kept_for_training(model, tokens):
        sizes = {}

        def pack(x):
            sizes[x.untyped_storage().data_ptr()] = (x.untyped_storage().nbytes(), x)  # held, so that no address recurs
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(tokens).square().mean()
        weights = {w.untyped_storage().data_ptr() for w in model.parameters()}
        return sum(size for address, (size, _) in sizes.items() if address not in weights)

    tokens = torch.zeros(2, 64, dtype=torch.long)
    many, few = decoder("mha").train(), decoder("mqa").train()
    assert stored(many, 2, 64) == 4 * stored(few, 2, 64)
    kept = {kind: kept_for_training(model, tokens) for kind, model in (("many", many), ("few", few))}
    assert kept["few"] > 0.8 * kept["many"]
    assert kept["many"] > 5 * stored(many, 2, 64)
    with torch.no_grad():
        assert kept_for_training(many, tokens) == 0  # inference keeps none: there the cache is what grows


def test_bad_sizes_name_their_rule():
    for make in (lambda: Grouped(8, 0, 4), lambda: Latent(8, 0, 4), lambda: Latent(8, 4, 4, -1)):
        with pytest.raises(ValueError, match="rule: a whole number, at least"):
            make()
    with pytest.raises(ValueError, match="rule: kv_heads divides heads"):
        Grouped(8, 3, 4)
