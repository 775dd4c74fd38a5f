"""Attention that decodes cheaply: each equation of chapter 16 by another way, each mistake refuted by a number."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from companion.device import generator, randn, seeded
from companion.methods import attention as at
from companion.nn.caches import BlockPool, KeyValueCache, PagedCache, WindowCache
from companion.nn.costs import cache_bytes
from companion.nn.rotary import Rotary, frequencies, rotate
from companion.nn.transformer import Decoder

F64 = torch.float64
DIM, HEADS, D_HEAD, D_LATENT, D_ROPE, VOCABULARY = 24, 4, 6, 10, 4, 13
ROTARY, ROTARY_KEY = Rotary(D_HEAD, length=64).double(), Rotary(D_ROPE, length=64).double()


def normals(*shape, seed=0):
    return randn(*shape, generator=generator(seed), dtype=F64)


def made(make, seed=0):
    """A module in float64 with norms that are not one."""
    with seeded(generator(seed)):
        module = make().double().eval()
        for name, weight in module.named_parameters():
            if "norm" in name:
                nn.init.uniform_(weight, 0.5, 1.5)
    return module


def grouped(kv_heads=2, seed=0, **options):
    return made(lambda: at.GroupedQueryAttention(DIM, heads=HEADS, kv_heads=kv_heads, **options), seed)


def latent(seed=0, rotary=ROTARY_KEY, **options):
    return made(lambda: at.LatentAttention(DIM, heads=HEADS, d_latent=D_LATENT, rotary=rotary, **options), seed)


VARIANTS = {
    "mha": lambda: grouped(HEADS, rotary=ROTARY),
    "gqa": lambda: grouped(2, rotary=ROTARY),
    "mqa": lambda: grouped(1, rotary=ROTARY),
    "gqa without positions": lambda: grouped(2),
    "window": lambda: grouped(2, rotary=ROTARY, sees=at.Window(5)),
    "mla naive": lambda: latent(form=at.naive_form),
    "mla absorbed": lambda: latent(form=at.absorbed_form),
    "mla": lambda: latent(),
    "mla without positions": lambda: latent(rotary=None),
}
every_variant = pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)


# ---------------------------------------------------------------------- the mechanism


@pytest.mark.verifies("eq-attention")
def test_without_positions_and_groups_it_is_multi_head_attention():
    """torch's `MultiheadAttention` with W_Q, W_K, W_V, W_O and a causal mask."""
    ours, x = grouped(HEADS), normals(2, 7, DIM)
    peer = nn.MultiheadAttention(DIM, HEADS, bias=False, batch_first=True, dtype=F64)
    weights = torch.cat([ours.query_weight, ours.key_weight, ours.value_weight], dim=1)
    with torch.no_grad():
        peer.in_proj_weight.copy_(weights.T)
        peer.out_proj.weight.copy_(ours.to_out.weight)
    later = torch.ones(7, 7, dtype=torch.bool).triu(1)
    torch.testing.assert_close(ours(x), peer(x, x, x, attn_mask=later, need_weights=False)[0])
    q, k, v = (x @ w for w in (ours.query_weight, ours.key_weight, ours.value_weight))
    for mine, product in zip(ours.project(x), (q, k, v), strict=True):
        torch.testing.assert_close(mine, product.view(2, 7, HEADS, D_HEAD).transpose(1, 2))


@pytest.mark.verifies("eq-attention")
def test_each_head_is_a_weighted_mean_of_values():
    """Sums over single numbers, by loops."""
    q, k, v = normals(1, 2, 3, 4), normals(1, 2, 5, 4, seed=1), normals(1, 2, 5, 6, seed=2)
    visible = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]], dtype=torch.bool)
    got = at.attend(q, k, v, visible=visible)
    for h in range(2):
        for i in range(3):
            weight = [math.exp(float(q[0, h, i] @ k[0, h, j]) / 2) * bool(visible[i, j]) for j in range(5)]
            mean = sum(w * v[0, h, j] for j, w in enumerate(weight)) / sum(weight)
            torch.testing.assert_close(got[0, h, i], mean)


@pytest.mark.parametrize("new", [1, 4])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("mask", ["none", "for all", "for each"])
def test_the_fused_kernel_computes_what_is_written_out(new, kv_heads, mask):
    q, k, v = normals(3, 4, new, 6), normals(3, kv_heads, 9, 6, seed=1), normals(3, kv_heads, 9, 5, seed=2)
    shape = {"none": None, "for all": (new, 9), "for each": (3, new, 9)}[mask]
    visible = None if shape is None else normals(*shape, seed=3) > -0.5
    for scale in (None, 0.3):
        written = at.attend(q, k, v, visible=visible, scale=scale)
        torch.testing.assert_close(at.fused_attend(q, k, v, visible=visible, scale=scale), written)


def test_the_fused_kernel_can_skip_later_keys_by_itself():
    q, k = normals(2, 4, 9, 6), normals(2, 2, 9, 6, seed=1)
    visible = at.causal(torch.arange(9)[:, None], torch.arange(9))
    torch.testing.assert_close(at.fused_attend(q, k, k, is_causal=True), at.attend(q, k, k, visible=visible))


@pytest.mark.parametrize("form", [at.attend, at.fused_attend])
def test_a_query_that_sees_nothing_gets_zeros(form):
    q = normals(1, 2, 3, 4)
    visible = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)
    out = form(q, q, q, visible=visible)
    assert torch.equal(out[:, :, 0], torch.zeros(1, 2, 4, dtype=F64))
    torch.testing.assert_close(out[:, :, 1], q[:, :, 0])


# ---------------------------------------------------------------------- groups


@pytest.mark.verifies("eq-grouped-heads")
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_group_is_heads_with_the_same_keys_and_values(kv_heads):
    """torch's `MultiheadAttention` whose W_K and W_V repeat the matrices of a group for each of its heads."""
    ours, x = grouped(kv_heads), normals(2, 5, DIM)

    def repeated(weight):
        return weight.view(DIM, kv_heads, D_HEAD).repeat_interleave(HEADS // kv_heads, dim=1).flatten(1)

    peer = nn.MultiheadAttention(DIM, HEADS, bias=False, batch_first=True, dtype=F64)
    with torch.no_grad():
        peer.in_proj_weight.copy_(
            torch.cat([ours.query_weight, repeated(ours.key_weight), repeated(ours.value_weight)], dim=1).T
        )
        peer.out_proj.weight.copy_(ours.to_out.weight)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    torch.testing.assert_close(ours(x), peer(x, x, x, attn_mask=later, need_weights=False)[0])


@pytest.mark.refutes("E33")
def test_groups_have_keys_and_values_of_their_own():
    """The matrices in the module, the keys in the cache, and what one key for all groups would give instead."""
    attention, x = grouped(kv_heads=2, rotary=ROTARY), normals(1, 6, DIM)
    cache = attention.new_cache(length=6)
    out = attention(x, cache)
    first, second = cache.keys[0]
    assert (first - second).abs().mean() > 0.3 * first.abs().mean()
    assert torch.linalg.matrix_rank(attention.key_weight) == 2 * D_HEAD
    q, k, v = attention.project(x)
    visible = at.causal(torch.arange(6)[:, None], torch.arange(6))

    def finish(k, v):
        return attention.to_out(at.attend(q, k, v, visible=visible).transpose(1, 2).flatten(2))

    torch.testing.assert_close(finish(k, v), out)
    assert (finish(k[:, :1], v[:, :1]) - out).abs().max() > 0.1


# ---------------------------------------------------------------------- caches


@every_variant
@pytest.mark.parametrize("pieces", [(8, 4, 2, 1, 1, 1), (1,) * 17, (17,), (2, 15)], ids=str)
@torch.no_grad()
def test_decoding_with_a_cache_computes_what_a_pass_over_everything_computes(make, pieces):
    """Two layers and two sequences: a prompt, several tokens at once, one by one."""
    model = made(lambda: Decoder(VOCABULARY, DIM, 2, make))
    tokens = torch.randint(VOCABULARY, (2, 17), generator=generator(1))
    caches = model.new_caches(batch=2, length=17)
    parts = [model(piece, caches) for piece in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens))
    assert all(cache.length == 17 for cache in caches)


@pytest.mark.parametrize("sees", [at.causal, at.Window(5)], ids=["causal", "window"])
@torch.no_grad()
def test_paged_and_contiguous_caches_decode_alike(sees):
    attention, x = grouped(rotary=ROTARY, sees=sees), normals(2, 17, DIM)
    pool = BlockPool(12, 2, D_HEAD, block=4, dtype=F64)
    paged, contiguous = PagedCache(pool, batch=2), KeyValueCache(2, 2, 20, D_HEAD, dtype=F64)
    for piece in x.split((6, 5, 1, 1, 4), dim=1):
        torch.testing.assert_close(attention(piece, paged), attention(piece, contiguous))
    assert paged.nbytes == pool.nbytes_held == 2 * 5 * 2 * 4 * 2 * D_HEAD * 8  # 5 blocks of 4 for 17 tokens


@torch.no_grad()
def test_continuations_that_share_a_prompt_decode_as_if_alone():
    attention, prompt = grouped(rotary=ROTARY), normals(1, 6, DIM)
    one, two = normals(1, 3, DIM, seed=1), normals(1, 3, DIM, seed=2)
    cache = PagedCache(BlockPool(8, 2, D_HEAD, block=4, dtype=F64))
    attention(prompt, cache)
    fork = cache.fork()
    mine, theirs = attention(one, cache), attention(two, fork)
    torch.testing.assert_close(mine, attention(torch.cat([prompt, one], 1))[:, 6:])
    torch.testing.assert_close(theirs, attention(torch.cat([prompt, two], 1))[:, 6:])


@pytest.mark.refutes("E29")
@torch.no_grad()
def test_queries_of_earlier_tokens_are_not_needed_but_their_keys_and_values_are():
    """What is stored, compared with X W_K and X W_V; then each matrix is changed after the prompt was read."""
    attention, x, last = grouped(kv_heads=2), normals(1, 6, DIM), normals(1, 1, DIM, seed=1)
    cache = attention.new_cache(length=7)
    attention(x, cache)
    for stored, weight in ((cache.keys, attention.key_weight), (cache.values, attention.value_weight)):
        torch.testing.assert_close(stored[0, :, :6], (x @ weight)[0].view(6, 2, D_HEAD).transpose(0, 1))

    def error_after_changing(columns):
        cache.rewind(6)
        old = attention.to_qkv.weight.clone()
        attention.to_qkv.weight[columns] *= -1.0
        full = attention(torch.cat([x, last], dim=1))[:, -1:]
        error = (attention(last, cache) - full).abs().max()
        attention.to_qkv.weight.copy_(old)
        return error

    q, k = HEADS * D_HEAD, 2 * D_HEAD
    assert error_after_changing(slice(0, q)) < 1e-12  # the old queries are of no use
    assert error_after_changing(slice(q, q + k)) > 0.01
    assert error_after_changing(slice(q + k, None)) > 0.01


# ---------------------------------------------------------------------- windows and masks


@pytest.mark.verifies("eq-window")
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_window_forgets_exactly_what_it_must(layers):
    """Autograd: the gradient of the last output with respect to each token is zero beyond layers · (size − 1)."""
    size, length = 4, 14
    windows = [grouped(rotary=ROTARY, sees=at.Window(size), seed=seed) for seed in range(layers)]
    x = normals(1, length, DIM).requires_grad_()
    h = x
    for window in windows:
        h = h + window(h)
    (gradient,) = torch.autograd.grad(h[0, -1].sum(), x)
    reach = layers * (size - 1)
    strength = gradient[0].abs().amax(dim=1)
    assert (strength[: length - 1 - reach] == 0).all()
    assert (strength[length - 1 - reach :] > 1e-6).all()


def test_bidirectional_attention_sees_everything():
    attention, x = grouped(rotary=ROTARY, sees=at.everything), normals(1, 5, DIM).requires_grad_()
    (gradient,) = torch.autograd.grad(attention(x)[0, 0].sum(), x)
    assert (gradient[0].abs().amax(dim=1) > 1e-6).all()


@pytest.mark.parametrize("kind", ["gqa", "window", "mla naive", "mla absorbed"])
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(kind):
    """Relative positions: a text of six tokens behind three of padding, read in one pass and with a cache."""
    attention, x = VARIANTS[kind](), normals(1, 9, DIM)
    alone = attention(x[:, 3:])
    mask = torch.arange(9)[None] >= 3
    torch.testing.assert_close(attention(x, None, mask)[:, 3:], alone)
    cache = attention.new_cache(length=9)
    parts = [attention(x[:, :5], cache, mask[:, :5])]
    parts += [attention(x[:, i : i + 1], cache, mask[:, : i + 1]) for i in range(5, 9)]
    torch.testing.assert_close(torch.cat(parts, dim=1)[:, 3:], alone)
    assert (attention(x)[:, 3:] - alone).abs().max() > 0.01


# ---------------------------------------------------------------------- latents


def made_explicitly(attention, x, *, scale, key_of_head=None):
    """Latent attention token by token and head by head, with keys and values that are made and rotated one by one."""
    c = attention.norm(x[0] @ attention.latent_weight)
    w_q = attention.query_weight.view(DIM, HEADS, D_HEAD)
    w_rope = attention.rotary_weight.view(DIM, HEADS + 1, D_ROPE)
    heads = []
    for h in range(HEADS):
        w_uk, w_uv = (up.weight.view(HEADS, D_HEAD, D_LATENT)[h].T for up in (attention.key_up, attention.value_up))
        w_key = w_rope[:, HEADS] if key_of_head is None else key_of_head[h]
        rows = []
        for i in range(x.shape[1]):
            scores = []
            for j in range(i + 1):
                content = (x[0, i] @ w_q[:, h]) @ (c[j] @ w_uk)
                query, key = (x[0, p] @ w for p, w in ((i, w_rope[:, h]), (j, w_key)))
                query, key = (rotate(y[None], p * frequencies(D_ROPE)[None])[0] for p, y in ((i, query), (j, key)))
                scores.append((content + query @ key) * scale)
            rows.append(torch.stack(scores).softmax(0) @ (c[: i + 1] @ w_uv))
        heads.append(torch.stack(rows))
    return (torch.cat(heads, dim=1) @ attention.to_out.weight.T)[None]


RIGHT = 1 / math.sqrt(D_HEAD + D_ROPE)


@pytest.mark.verifies("eq-latent-attention")
@pytest.mark.parametrize("form", [at.naive_form, at.absorbed_form])
@torch.no_grad()
def test_latent_attention_is_attention_over_keys_made_from_latents(form):
    """Loops over heads, queries and keys; every key is made and rotated by itself."""
    attention, x = latent(form=form), normals(1, 6, DIM)
    torch.testing.assert_close(attention(x), made_explicitly(attention, x, scale=RIGHT), atol=1e-6, rtol=0)


@pytest.mark.verifies("eq-absorbed-scores", "eq-absorbed-output")
@torch.no_grad()
def test_the_matrices_can_be_bracketed_otherwise():
    """Keys and values that are made, against a token and latents with one matrix between them."""
    attention, x = latent(rotary=None), normals(1, 5, DIM)
    scores_matrix, output_matrix = attention.absorbed_matrices()
    assert scores_matrix.shape == (HEADS, DIM, D_LATENT)
    assert output_matrix.shape == (HEADS, D_LATENT, DIM)
    c = attention.norm(x[0] @ attention.latent_weight)
    q = (x[0] @ attention.query_weight).view(5, HEADS, D_HEAD).transpose(0, 1)
    k = attention.key_up(c).view(5, HEADS, D_HEAD).transpose(0, 1)
    torch.testing.assert_close(x[0] @ scores_matrix @ c.T, q @ k.mT)
    weights = normals(HEADS, 5, 5, seed=1).softmax(-1)
    v = attention.value_up(c).view(5, HEADS, D_HEAD).transpose(0, 1)
    made_first = attention.to_out((weights @ v).transpose(0, 1).flatten(1))
    torch.testing.assert_close((weights @ c @ output_matrix).sum(0), made_first)


@torch.no_grad()
def test_the_cheaper_form_is_chosen_by_the_number_of_new_tokens(monkeypatch):
    chosen = []
    for name in ("naive_form", "absorbed_form"):
        real = getattr(at, name)
        monkeypatch.setattr(at, name, lambda *a, name=name, real=real, **k: (chosen.append(name), real(*a, **k))[1])
    attention = latent()
    assert attention.shape.absorb_up_to == D_HEAD * D_LATENT / (D_LATENT - D_HEAD) == 15
    attention(normals(1, 15, DIM))
    attention(normals(1, 16, DIM))
    assert chosen == ["absorbed_form", "naive_form"]


@pytest.mark.refutes("E31")
@torch.no_grad()
def test_the_scale_is_the_root_of_the_width_of_the_naive_vectors():
    """Loops with other scales; the variance of 4,000 scores of normal vectors is 1 (false alarm 6e-5)."""
    x = normals(1, 6, DIM)
    wrong = {"√d_model": DIM, "the absorbed width": D_LATENT + D_ROPE, "the content alone": D_HEAD}
    for form in (at.naive_form, at.absorbed_form):
        attention = latent(form=form)
        for weight in attention.parameters():
            weight *= 2.0  # sharper attention: a wrong scale shows
        out = attention(x)
        torch.testing.assert_close(out, made_explicitly(attention, x, scale=RIGHT), atol=1e-4, rtol=1e-4)
        for name, width in wrong.items():
            gap = (made_explicitly(attention, x, scale=1 / math.sqrt(width)) - out).abs().max()
            assert gap > 0.01 * out.abs().max(), name
    n = 4000
    scores = attention.scale * (normals(n, D_HEAD + D_ROPE) * normals(n, D_HEAD + D_ROPE, seed=1)).sum(1)
    kurtosis = 3 + 6 / (D_HEAD + D_ROPE)  # of a sum of products of normals
    assert abs(scores.var() - 1) < 4 * math.sqrt((kurtosis - 1) / n)


@pytest.mark.refutes("E32")
@torch.no_grad()
def test_one_rotary_key_serves_all_heads():
    """The matrix that makes it, the bytes of the cache, and loops in which each head had a key of its own."""
    attention, x = latent(form=at.absorbed_form), normals(1, 6, DIM)
    assert attention.rotary_weight.shape == (DIM, (HEADS + 1) * D_ROPE)  # a query for each head, one key
    cache = attention.new_cache(length=6)
    out = attention(x, cache)
    assert cache.nbytes == 6 * (D_LATENT + D_ROPE) * 8
    shared = attention.rotary_weight[:, HEADS * D_ROPE :]
    turned = rotate(x[0] @ shared, torch.arange(6)[:, None] * frequencies(D_ROPE))
    torch.testing.assert_close(cache.rows[0, :, D_LATENT:], turned, atol=1e-6, rtol=0)
    same = made_explicitly(attention, x, scale=RIGHT, key_of_head=[shared] * HEADS)
    torch.testing.assert_close(out, same, atol=1e-6, rtol=0)
    own = [shared] + [normals(DIM, D_ROPE, seed=h) * shared.std() for h in range(1, HEADS)]
    assert (made_explicitly(attention, x, scale=RIGHT, key_of_head=own) - out).abs().max() > 0.01
    assert (D_LATENT + HEADS * D_ROPE) / (D_LATENT + D_ROPE) > 1.8  # numbers to be cached if each had its own


# ---------------------------------------------------------------------- conversions


@pytest.mark.verifies("eq-pooled-heads")
@torch.no_grad()
def test_the_mean_is_the_matrix_nearest_to_those_it_replaces():
    """numpy's least squares: one matrix that stands for all of a group."""
    many = grouped(HEADS, rotary=ROTARY)
    few = at.pool_heads(many, kv_heads=2)
    for mine, old in ((few.key_weight, many.key_weight), (few.value_weight, many.value_weight)):
        heads = old.view(DIM, HEADS, D_HEAD).permute(1, 0, 2).reshape(2, 2, -1)
        for g in range(2):
            best = np.linalg.lstsq(np.ones((2, 1)), heads[g].numpy(), rcond=None)[0].reshape(DIM, D_HEAD)
            torch.testing.assert_close(mine.view(DIM, 2, D_HEAD)[:, g], torch.from_numpy(best))
    assert torch.equal(few.query_weight, many.query_weight)
    assert few.rotary is many.rotary


@pytest.mark.verifies("eq-pooled-heads")
@pytest.mark.parametrize("options", [{"rotary": ROTARY}, {"sees": at.Window(3)}], ids=["rotary", "window"])
@torch.no_grad()
def test_pooling_equal_heads_changes_nothing(options):
    """Multi-head attention in which the heads of a group have equal keys and values."""
    few, x = grouped(2, **options), normals(2, 6, DIM)
    many = grouped(HEADS, **options)

    def repeated(weight):
        return weight.view(DIM, 2, D_HEAD).repeat_interleave(2, dim=1).flatten(1)

    joint = [few.query_weight, repeated(few.key_weight), repeated(few.value_weight)]
    many.to_qkv.weight.copy_(torch.cat(joint, dim=1).T)
    many.to_out.weight.copy_(few.to_out.weight)
    torch.testing.assert_close(at.pool_heads(many, kv_heads=2)(x), many(x))
    assert (at.pool_heads(many, kv_heads=1)(x) - many(x)).abs().max() > 0.01


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.no_grad()
def test_grouped_queries_without_positions_are_latent_attention_exactly(kv_heads):
    """At full rank, with latents of min(dim, 2 · kv_heads · d_head) numbers; with a cache, too."""
    old, x = grouped(kv_heads), normals(2, 7, DIM)
    new = at.to_latent(old)
    assert new.d_latent == min(DIM, 2 * kv_heads * D_HEAD)
    assert new.d_rope == 0
    torch.testing.assert_close(new(x), old(x))
    cache = new.new_cache(batch=2, length=7)
    torch.testing.assert_close(torch.cat([new(piece, cache) for piece in x.split(1, dim=1)], dim=1), old(x))


@torch.no_grad()
def test_a_smaller_latent_keeps_as_much_of_the_matrices_as_any_can():
    """Eckart and Young: the squared error is the sum of the squares of numpy's singular values that are left out."""
    old = grouped(2)
    joint = torch.cat([old.key_weight, old.value_weight], dim=1)
    values = np.linalg.svd(joint.numpy(), compute_uv=False)
    outputs = []
    for rank in (3, 8, 15):
        new = at.to_latent(old, rank=rank)
        up = torch.cat([new.key_up.weight, new.value_up.weight], dim=0)  # rows of all heads
        per_group = up.view(2, HEADS, D_HEAD, rank)[:, ::2].reshape(-1, rank)  # one head of each group
        error = (new.latent_weight @ per_group.T - joint).square().sum()
        assert float(error) == pytest.approx((values[rank:] ** 2).sum())
        outputs.append((new(normals(1, 6, DIM)) - old(normals(1, 6, DIM))).abs().mean())
    assert outputs[0] > outputs[1] > outputs[2]


@torch.no_grad()
def test_rotary_keys_cannot_be_made_from_latents():
    """The rotation at one position does not commute with W_UK, so no one W_UK serves two positions."""
    with pytest.raises(ValueError, match="to_latent: received rotary keys; rule: only keys without positions"):
        at.to_latent(grouped(2, rotary=ROTARY))
    old, x = grouped(2, rotary=ROTARY), normals(1, 6, DIM)
    plain = grouped(2)
    plain.load_state_dict(old.state_dict())
    assert (at.to_latent(plain)(x) - old(x)).abs().max() > 0.01
    c = normals(1, D_LATENT)
    w_uk, angles = normals(D_LATENT, D_HEAD, seed=1), [p * frequencies(D_HEAD)[None] for p in (1, 2)]
    needed = [torch.linalg.pinv(c) @ rotate(c @ w_uk, a) for a in angles]  # the W_UK of smallest norm for each
    assert (needed[0] - needed[1]).abs().max() > 0.1


def test_conversions_keep_dtype_and_mode_and_leave_the_original():
    old = made(lambda: at.GroupedQueryAttention(DIM, heads=HEADS, kv_heads=HEADS)).float().train()
    before = old.to_qkv.weight.clone()
    for new in (at.pool_heads(old, kv_heads=2), at.to_latent(old)):
        assert {w.dtype for w in new.parameters()} == {torch.float32}
        assert new.training
        assert all(w.requires_grad for w in new.parameters())
    assert torch.equal(old.to_qkv.weight, before)


# ---------------------------------------------------------------------- training


@every_variant
def test_every_weight_is_trained(make):
    attention, x = make(), normals(2, 6, DIM)
    attention(x).square().sum().backward()
    for name, weight in attention.named_parameters():
        assert weight.grad is not None, name
        assert (weight.grad != 0).any(), name


def test_both_forms_have_the_same_gradients():
    x, gradients = normals(2, 6, DIM), []
    for form in (at.naive_form, at.absorbed_form):
        attention = latent(form=form)
        attention(x).square().sum().backward()
        gradients.append([weight.grad for weight in attention.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@every_variant
def test_what_it_made_fits_its_own_description(make):
    attention = make()
    cache = attention.new_cache(batch=3, length=5)
    assert cache.nbytes == cache_bytes(attention.shape, layers=1, length=5, batch=3, bytes_per_value=8)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: at.GroupedQueryAttention(24, heads=5, kv_heads=5), "heads divides dim, or give d_head"),
        (lambda: at.GroupedQueryAttention(24, heads=4, kv_heads=3), "kv_heads divides heads"),
        (lambda: at.GroupedQueryAttention(24, heads=4, kv_heads=0), "kv_heads divides heads"),
        (lambda: at.GroupedQueryAttention(24, heads=4, kv_heads=8), "kv_heads divides heads"),
        (lambda: at.GroupedQueryAttention(24, heads=0, kv_heads=1), "whole numbers, at least 1"),
        (lambda: at.GroupedQueryAttention(24, heads=4, kv_heads=2, d_head=0), "a whole number, at least 1"),
        (lambda: at.GroupedQueryAttention(24, heads=4, kv_heads=2, rotary=ROTARY_KEY), "that of a head, 6"),
        (lambda: at.GroupedQueryAttention(12, heads=4, kv_heads=2, rotary=Rotary(3, length=4)), "the width is even"),
        (lambda: at.LatentAttention(24, heads=5, d_latent=4), "heads divides dim, or give d_head"),
        (lambda: at.LatentAttention(24, heads=4, d_latent=0), "a whole number, at least 1"),
        (lambda: at.Window(0), "a whole number of tokens, at least 1"),
        (lambda: at.pool_heads(grouped(4), kv_heads=3), "it divides the present number"),
        (lambda: at.pool_heads(grouped(2), kv_heads=4), "it divides the present number"),
        (lambda: at.to_latent(grouped(2), rank=25), "from 1 to min.dim, 2 kv_heads d_head. = 24"),
        (lambda: at.to_latent(grouped(2), rank=0), "from 1 to min.dim, 2 kv_heads d_head. = 24"),
        (lambda: at.to_latent(grouped(2, sees=at.Window(3))), "it is causal"),
    ],
)
def test_sizes_that_do_not_fit_name_their_rule(make, rule):
    with pytest.raises(ValueError, match=f"rule: .*{rule}"):
        make()


@pytest.mark.parametrize("form", [at.attend, at.fused_attend])
def test_tensors_that_do_not_fit_name_their_rule(form):
    q, k = normals(2, 4, 3, 6), normals(2, 2, 5, 6)
    wrong = normals(2, 3, 5, 6)
    with pytest.raises(ValueError, match="kv_heads a divisor of heads, keys as wide as queries"):
        form(q, wrong, wrong)
    for shape in ((3, 4), (5, 3), (1, 3, 5), (2, 4, 3, 5), (5,)):
        with pytest.raises(ValueError, match=r"rule: booleans, \(new, length\) = \(3, 5\) or"):
            form(q, k, k, visible=torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match="received a mask .3, 5. of torch.float32; rule: booleans"):
        form(q, k, k, visible=torch.zeros(3, 5))


@pytest.mark.parametrize("kind", ["gqa", "window", "mla"])
def test_a_padding_mask_of_another_shape_names_its_rule(kind):
    attention, x = VARIANTS[kind](), normals(2, 5, DIM)
    for shape in ((2, 4), (1, 5), (5,), (2, 5, 5)):
        with pytest.raises(ValueError, match=r"rule: booleans, \(batch, earlier \+ new tokens\) = \(2, 5\)"):
            attention(x, None, torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match="of torch.int64; rule: booleans"):
        attention(x, None, torch.ones(2, 5, dtype=torch.long))
    cache = attention.new_cache(batch=2, length=9)
    attention(x, cache)
    with pytest.raises(ValueError, match=r"= \(2, 6\), False is padding"):
        attention(x[:, :1], cache, torch.ones(2, 1, dtype=torch.bool))


def test_a_cache_that_cannot_serve_is_an_error():
    x = normals(1, 3, DIM)
    with pytest.raises(ValueError, match="rule: `everything` also sees later tokens"):
        grouped(2, sees=at.everything)(x, KeyValueCache(1, 2, 4, D_HEAD, dtype=F64))
    ring = WindowCache(1, 2, 4, D_HEAD, dtype=F64)
    for sees in (at.causal, at.Window(5)):
        with pytest.raises(ValueError, match="rule: only Window.size. with size ≤ 4 can do with it"):
            grouped(2, sees=sees)(x, ring)
    with pytest.raises(ValueError, match="rule: 4 fit in all"):
        grouped(2)(normals(1, 5, DIM), KeyValueCache(1, 2, 4, D_HEAD, dtype=F64))
    with pytest.raises(ValueError, match="positions 0 to 63"):
        grouped(2, rotary=ROTARY)(normals(1, 65, DIM))


def test_a_larger_ring_serves_a_smaller_window():
    attention, x = grouped(2, rotary=ROTARY, sees=at.Window(3)), normals(1, 12, DIM)
    ring = WindowCache(1, 2, 5, D_HEAD, dtype=F64)
    with torch.no_grad():
        parts = [attention(piece, ring) for piece in x.split((4, 1, 1, 3, 1, 2), dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), attention(x))
