"""Caches: what goes in comes out, in its order or its window; memory is what was asked for; errors name their rule."""

import pytest
import torch

from companion.device import generator, randn
from companion.nn.caches import BlockPool, Cache, KeyValueCache, LatentCache, PagedCache, WindowCache

BATCH, HEADS, WIDTH = 2, 3, 4


def rows(length, *, batch=BATCH, seed=0):
    """Keys and values of `length` tokens."""
    source = generator(seed)
    return tuple(randn(batch, HEADS, length, WIDTH, generator=source) for _ in range(2))


def feed(cache, keys, values, pieces):
    """Appends piece by piece; what each append returned."""
    ks, vs = keys.split(pieces, dim=2), values.split(pieces, dim=2)
    return [tuple(x.clone() for x in cache.append(k, v)) for k, v in zip(ks, vs, strict=True)]


def pool(blocks=20, block=4):
    return BlockPool(blocks, HEADS, WIDTH, block=block)


MAKERS = {
    "contiguous": lambda: KeyValueCache(BATCH, HEADS, 32, WIDTH),
    "paged": lambda: PagedCache(pool(), BATCH),
    "window": lambda: WindowCache(BATCH, HEADS, 32, WIDTH),
}
every_cache = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@every_cache
@pytest.mark.parametrize("pieces", [(17,), (1,) * 17, (5, 1, 8, 1, 2)], ids=["at once", "one by one", "mixed"])
def test_everything_that_went_in_comes_out_in_its_order(make, pieces):
    cache, (keys, values) = make(), rows(17)
    assert isinstance(cache, Cache)
    last = feed(cache, keys, values, pieces)[-1]
    assert torch.equal(last[0], keys)
    assert torch.equal(last[1], values)
    assert cache.length == 17
    assert cache.positions().tolist() == list(range(17))


def test_what_a_contiguous_cache_returns_is_no_copy():
    cache, (keys, values) = KeyValueCache(BATCH, HEADS, 32, WIDTH), rows(3)
    k, v = cache.append(keys, values)
    assert k.data_ptr() == cache.keys.data_ptr()
    assert v.data_ptr() == cache.values.data_ptr()


def test_rewinding_forgets_the_rest():
    cache, (keys, values) = KeyValueCache(BATCH, HEADS, 8, WIDTH), rows(8)
    cache.append(keys, values)
    cache.rewind(5)
    k, _ = cache.append(keys[:, :, :2], values[:, :, :2])
    assert torch.equal(k, torch.cat([keys[:, :, :5], keys[:, :, :2]], dim=2))
    latent = LatentCache(1, 4, 3)
    latent.append(torch.ones(1, 4, 3))
    latent.rewind(1)
    assert torch.equal(latent.append(torch.zeros(1, 1, 3)), torch.tensor([[[1.0] * 3, [0.0] * 3]]))
    with pytest.raises(ValueError, match="from 0 to the 2 tokens stored"):
        latent.rewind(3)


def test_a_latent_cache_keeps_one_row_a_token():
    cache, x = LatentCache(BATCH, 6, WIDTH), randn(BATCH, 5, WIDTH, generator=generator(0))
    cache.append(x[:, :3])
    assert torch.equal(cache.append(x[:, 3:]), x)
    assert cache.length == 5
    assert cache.nbytes == BATCH * 6 * WIDTH * 4


@pytest.mark.parametrize("pieces", [(1,) * 13, (5, 1, 1, 6), (4, 9), (13,)], ids=str)
def test_a_ring_returns_what_the_new_tokens_may_see(pieces):
    """A list that is cut to the last window − 1 tokens before each piece."""
    window, (keys, values) = 4, rows(13)
    cache, seen = WindowCache(BATCH, HEADS, window, WIDTH), 0
    for piece in pieces:
        new = slice(seen, seen + piece)
        k, v = cache.append(keys[:, :, new], values[:, :, new])
        first = max(0, seen - window + 1)
        order = cache.positions()
        assert sorted(order.tolist()) == list(range(first, seen + piece))
        assert torch.equal(k, keys[:, :, order])
        assert torch.equal(v, values[:, :, order])
        seen += piece
    assert cache.nbytes == 2 * BATCH * HEADS * window * WIDTH * 4


def test_paged_memory_is_taken_block_by_block():
    store = pool(blocks=10, block=4)
    cache, (keys, values) = PagedCache(store, BATCH), rows(9)
    block_bytes = 2 * 4 * HEADS * WIDTH * 4
    assert cache.nbytes == 0
    for length, blocks in ((4, 1), (1, 2), (4, 3)):
        cache.append(keys[:, :, :length], values[:, :, :length])
        assert cache.table.shape == (BATCH, blocks)
        assert cache.nbytes == store.nbytes_held == BATCH * blocks * block_bytes
        assert store.free == 10 - BATCH * blocks
    assert len(set(cache.table.flatten().tolist())) == BATCH * 3  # no block twice
    cache.release()
    assert store.free == 10
    assert cache.length == cache.nbytes == 0


def test_sequences_share_a_pool_without_disturbing_each_other():
    """Two texts that grow in turn, so that their blocks lie interleaved."""
    store = pool(blocks=8, block=2)
    a, b = PagedCache(store), PagedCache(store)
    (ka, va), (kb, vb) = rows(6, batch=1), rows(6, batch=1, seed=1)
    for p in range(0, 6, 2):
        got_a = a.append(ka[:, :, p : p + 2], va[:, :, p : p + 2])
        got_b = b.append(kb[:, :, p : p + 2], vb[:, :, p : p + 2])
    assert a.table.tolist() == [[0, 2, 4]]
    assert b.table.tolist() == [[1, 3, 5]]
    assert torch.equal(got_a[0], ka)
    assert torch.equal(got_b[1], vb)


def test_a_fork_shares_blocks_until_one_writes():
    store = pool(blocks=6, block=4)
    a, (keys, values) = PagedCache(store), rows(12, batch=1)
    a.append(keys[:, :, :6], values[:, :, :6])
    b = a.fork()
    assert store.free == 4  # nothing was copied
    assert torch.equal(a.table, b.table)
    mine, _ = b.append(keys[:, :, 8:9], values[:, :, 8:9])  # into the half-full block: it is copied
    assert store.free == 3
    assert a.table[0, 0] == b.table[0, 0]
    assert a.table[0, 1] != b.table[0, 1]
    theirs, _ = a.append(keys[:, :, 6:7], values[:, :, 6:7])  # the block is a's alone now
    assert store.free == 3
    assert torch.equal(theirs, keys[:, :, :7])
    assert torch.equal(mine, keys[:, :, [0, 1, 2, 3, 4, 5, 8]])
    assert store.nbytes_held == 3 * 2 * 4 * HEADS * WIDTH * 4
    a.release()
    assert torch.equal(b.append(keys[:, :, 9:10], values[:, :, 9:10])[0], keys[:, :, [0, 1, 2, 3, 4, 5, 8, 9]])
    b.release()
    assert store.free == 6


def test_an_empty_pool_stores_nothing_and_says_so():
    store = pool(blocks=3, block=2)
    cache, (keys, values) = PagedCache(store), rows(8, batch=1)
    cache.append(keys[:, :, :5], values[:, :, :5])
    with pytest.raises(ValueError, match="received 3 tokens, which need 1 blocks; rule: the pool has 0 free"):
        cache.append(keys[:, :, 5:], values[:, :, 5:])
    assert cache.length == 5
    assert torch.equal(cache.append(keys[:, :, 5:6], values[:, :, 5:6])[0], keys[:, :, :6])
    with pytest.raises(ValueError, match="rule: release some first"):
        store.take()


def test_a_cache_past_its_length_is_an_error():
    cache, (keys, values) = KeyValueCache(BATCH, HEADS, 4, WIDTH), rows(5)
    cache.append(keys[:, :, :3], values[:, :, :3])
    with pytest.raises(ValueError, match="received 2 tokens after 3; rule: 4 fit in all; make a longer cache"):
        cache.append(keys[:, :, 3:], values[:, :, 3:])
    assert cache.length == 3
    latent = LatentCache(1, 2, 3)
    with pytest.raises(ValueError, match="LatentCache.append: received 3 tokens after 0; rule: 2 fit in all"):
        latent.append(torch.zeros(1, 3, 3))


@every_cache
def test_keys_of_another_shape_are_an_error(make):
    for shape in ((BATCH + 1, HEADS, 1, WIDTH), (BATCH, HEADS + 1, 1, WIDTH), (BATCH, HEADS, 1, WIDTH + 1)):
        with pytest.raises(ValueError, match=r"rule: both \(batch, kv_heads, new, d_head\) = \(2, 3, new, 4\)"):
            make().append(torch.zeros(shape), torch.zeros(shape))


def test_other_bad_input_names_its_rule():
    with pytest.raises(ValueError, match=r"rule: \(batch, new, width\) = \(1, new, 3\)"):
        LatentCache(1, 2, 3).append(torch.zeros(1, 1, 4))
    for make in (
        lambda: KeyValueCache(1, 0, 4, 4),
        lambda: WindowCache(1, 2, 0, 4),
        lambda: LatentCache(1, 4, -1),
        lambda: BlockPool(0, 1, 4),
        lambda: PagedCache(pool(), 0),
    ):
        with pytest.raises(ValueError, match="rule: a whole number, at least 1"):
            make()
