"""Decoders against those of transformers with the same weights: logits equal to 1e-5, with a cache and without."""

import pytest
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

from benchmarks import decode
from companion.device import generator
from companion.methods.attention import Window, absorbed_form, cheaper_form, naive_form
from companion.nn.caches import WindowCache

TOKENS = torch.randint(decode.VOCABULARY, (2, 40), generator=generator(3))
PIECES = (24, 9, 1, 1, 1, 1, 1, 1, 1)  # a prompt, several tokens at once, one by one
FORMS = pytest.mark.parametrize("form", [naive_form, absorbed_form, cheaper_form], ids=lambda form: form.__name__)


def cached(model, caches=None) -> torch.Tensor:
    """Our logits, read piece by piece."""
    caches = model.new_caches(batch=len(TOKENS), length=TOKENS.shape[1]) if caches is None else caches
    return torch.cat([model(piece, caches) for piece in TOKENS.split(PIECES, dim=1)], dim=1)


def cached_peer(peer) -> torch.Tensor:
    """The logits of transformers, read piece by piece."""
    cache = DynamicCache(config=peer.config)
    pieces = TOKENS.split(PIECES, dim=1)
    return torch.cat([peer(piece, past_key_values=cache, use_cache=True).logits for piece in pieces], dim=1)


@torch.no_grad()
def check(ours, peer) -> None:
    full = peer(TOKENS).logits
    torch.testing.assert_close(ours(TOKENS), full, atol=1e-5, rtol=0)
    torch.testing.assert_close(cached(ours), full, atol=1e-5, rtol=0)
    torch.testing.assert_close(cached(ours), cached_peer(peer), atol=1e-5, rtol=0)
    assert full.std() > 0.1  # else everything is close to everything


@pytest.mark.verifies("eq-attention", "eq-grouped-heads", "eq-rotary")
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_a_decoder_of_grouped_queries_is_a_llama(kv_heads):
    """`LlamaForCausalLM` of transformers, with one, two and eight key-value heads."""
    peer = decode.llama(kv_heads=kv_heads)
    check(decode.like_llama(peer), peer)


@pytest.mark.verifies("eq-latent-attention", "eq-absorbed-scores", "eq-absorbed-output")
@FORMS
def test_a_decoder_of_latents_is_a_deepseek(form):
    """`DeepseekV3ForCausalLM` of transformers, which makes keys and values from the latents at each step."""
    peer = decode.deepseek()
    check(decode.like_deepseek(peer, form=form), peer)


@pytest.mark.verifies("eq-window")
@torch.no_grad()
def test_a_sliding_window_is_that_of_mistral():
    """`MistralForCausalLM` of transformers with a window of 7 tokens, on 40 tokens."""
    config = MistralConfig(
        **decode._sizes(), num_key_value_heads=2, head_dim=decode.D_HEAD, sliding_window=7, attn_implementation="eager"
    )
    peer = decode._random(MistralForCausalLM, config, seed=5)
    ours = decode.like_llama(peer, sees=Window(7))
    full = peer(TOKENS).logits
    torch.testing.assert_close(ours(TOKENS), full, atol=1e-5, rtol=0)
    caches = ours.new_caches(batch=2, length=40)
    assert isinstance(caches[0], WindowCache)
    torch.testing.assert_close(cached(ours, caches), full, atol=1e-5, rtol=0)
    everything_seen = decode.like_llama(peer)(TOKENS)
    torch.testing.assert_close(everything_seen[:, :7], full[:, :7], atol=1e-5, rtol=0)
    assert (everything_seen - full)[:, 20:].abs().max() > 0.01


@pytest.mark.parametrize("part", ["norm", "mlp"])
def test_the_parts_of_a_block_are_those_of_llama(part):
    peer = decode.llama()
    ours, theirs = decode.like_llama(peer).blocks[1], peer.model.layers[1]
    x = 3 * torch.randn(2, 5, decode.DIM, generator=generator(0))
    pairs = {"norm": (ours.norm_mlp, theirs.post_attention_layernorm), "mlp": (ours.mlp, theirs.mlp)}
    torch.testing.assert_close(pairs[part][0](x), pairs[part][1](x), atol=1e-5, rtol=1e-5)
