"""Decoding, one token at a time, against transformers at equal weights and against ourselves without a cache.

Decoders of d = 256, 4 layers, 8 heads of 32, vocabulary 512, float32, batch 1. The peer has random weights and ours is
given the same ones:

- gqa: `LlamaForCausalLM` with 2 key-value heads;
- mla: `DeepseekV3ForCausalLM` with latents of 128 and rotary keys of 16, dense layers, queries of one projection.

`decode-…-512` and `-2048`: both read a prompt of that many tokens, then 24 given tokens one by one. Only the latter are
timed. In each run the logits of all 24 are compared, and a difference above 1e-5 is an error. Ratios are tokens per
second, ours over the peer's.

`cache-gain-…`: tokens per second of our cached decoding over ours without a cache, at the same lengths: there each
token takes a pass over all tokens before it. The logits are compared, too.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM

from benchmarks.harness import CLOCK, Case, one_thread, seconds
from companion.device import generator, seeded
from companion.methods.attention import GroupedQueryAttention, LatentAttention
from companion.nn.rotary import Rotary, neighbors_from_halves
from companion.nn.transformer import Decoder

DIM, LAYERS, HEADS, D_HEAD, VOCABULARY, HIDDEN = 256, 4, 8, 32, 512, 688
KV_HEADS, D_LATENT, D_ROPE = 2, 128, 16
STEPS, REPETITIONS, POSITIONS, SAME = 24, 11, 2200, 1e-5
PEER = f"transformers {transformers.__version__}"


# --- Models with equal weights ----------------------------------------------------------------------------------------


def llama(*, kv_heads: int = KV_HEADS, seed: int = 0, **changes: int) -> LlamaForCausalLM:
    """A Llama of transformers with random weights, `changes` of its configuration applied."""
    config = LlamaConfig(**_sizes(), num_key_value_heads=kv_heads, head_dim=D_HEAD, **changes)
    return _random(LlamaForCausalLM, config, seed)


def deepseek(*, seed: int = 0) -> DeepseekV3ForCausalLM:
    """A DeepSeek-V3 of transformers with random weights and dense layers only."""
    config = DeepseekV3Config(
        **_sizes(),
        num_key_value_heads=HEADS,
        first_k_dense_replace=LAYERS,
        kv_lora_rank=D_LATENT,
        q_lora_rank=None,
        qk_rope_head_dim=D_ROPE,
        qk_nope_head_dim=D_HEAD,
        v_head_dim=D_HEAD,
    )
    return _random(DeepseekV3ForCausalLM, config, seed)


def _sizes() -> dict[str, int]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": DIM,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
    }


def _random(kind: type, config: object, seed: int) -> nn.Module:
    with seeded(generator(seed)):
        model = kind(config).eval()
        for name, weight in model.named_parameters():
            if "norm" in name:  # ones hide a norm that is left out
                nn.init.uniform_(weight, 0.5, 1.5)
    return model


def like_llama(peer: nn.Module, **options: Callable) -> Decoder:
    """Our decoder with the weights of a Llama (or of a Mistral, named alike); `options` of its attention."""
    config = peer.config
    rotary = Rotary(D_HEAD, length=POSITIONS, base=config.rope_parameters["rope_theta"])
    sizes = {"heads": HEADS, "kv_heads": config.num_key_value_heads, "d_head": D_HEAD}
    model = _like(peer, lambda: GroupedQueryAttention(DIM, **sizes, rotary=rotary, **options))
    for block, theirs in zip(model.blocks, peer.model.layers, strict=True):
        q, k = theirs.self_attn.q_proj.weight, theirs.self_attn.k_proj.weight
        q, k = neighbors_from_halves(q, heads=HEADS), neighbors_from_halves(k, heads=config.num_key_value_heads)
        _set(block.attention.to_qkv.weight, torch.cat([q, k, theirs.self_attn.v_proj.weight]))
        _set(block.attention.to_out.weight, theirs.self_attn.o_proj.weight)
    return model


def like_deepseek(peer: nn.Module, **options: Callable) -> Decoder:
    """Our decoder with the weights of a DeepSeek-V3; `options` of its attention."""
    rotary = Rotary(D_ROPE, length=POSITIONS)
    sizes = {"heads": HEADS, "d_head": D_HEAD, "d_latent": D_LATENT}
    model = _like(peer, lambda: LatentAttention(DIM, **sizes, rotary=rotary, **options))
    for block, layer in zip(model.blocks, peer.model.layers, strict=True):
        ours, theirs = block.attention, layer.self_attn
        query, query_rope = theirs.q_proj.weight.unflatten(0, (HEADS, -1)).split((D_HEAD, D_ROPE), dim=1)
        latent, key_rope = theirs.kv_a_proj_with_mqa.weight.split((D_LATENT, D_ROPE))
        _set(ours.to_parts.weight, torch.cat([query.flatten(0, 1), query_rope.flatten(0, 1), key_rope, latent]))
        _set(ours.norm.weight, theirs.kv_a_layernorm.weight)
        key_up, value_up = theirs.kv_b_proj.weight.unflatten(0, (HEADS, 2, D_HEAD)).unbind(1)
        _set(ours.key_up.weight, key_up.flatten(0, 1))
        _set(ours.value_up.weight, value_up.flatten(0, 1))
        _set(ours.to_out.weight, theirs.o_proj.weight)
    return model


def _like(peer: nn.Module, attention: Callable[[], nn.Module]) -> Decoder:
    """Everything but the attention."""
    model = Decoder(VOCABULARY, DIM, LAYERS, attention, hidden=HIDDEN).eval()
    _set(model.embedding.weight, peer.model.embed_tokens.weight)
    _set(model.norm.weight, peer.model.norm.weight)
    _set(model.head.weight, peer.lm_head.weight)
    for block, theirs in zip(model.blocks, peer.model.layers, strict=True):
        _set(block.norm_attention.weight, theirs.input_layernorm.weight)
        _set(block.norm_mlp.weight, theirs.post_attention_layernorm.weight)
        _set(block.mlp.to_gate_and_up.weight, torch.cat([theirs.mlp.gate_proj.weight, theirs.mlp.up_proj.weight]))
        _set(block.mlp.to_out.weight, theirs.mlp.down_proj.weight)
    return model


@torch.no_grad()
def _set(weight: Tensor, value: Tensor) -> None:
    weight.copy_(value)


MODELS = {"gqa": (llama, like_llama), "mla": (deepseek, like_deepseek)}


# --- Decoders ---------------------------------------------------------------------------------------------------------


@dataclass
class Ours:
    """Our decoder after its prompt; `decode` may be called again, it starts from the prompt each time."""

    model: Decoder
    prompt: Tensor

    def __post_init__(self):
        self.caches = self.model.new_caches(length=self.prompt.shape[1] + STEPS)
        self.model(self.prompt, self.caches)

    def decode(self, tokens: Tensor) -> Tensor:
        """Logits after each of the tokens, which are read one by one."""
        for cache in self.caches:
            cache.rewind(self.prompt.shape[1])
        return torch.cat([self.model(token, self.caches) for token in tokens.split(1, dim=1)], dim=1)


@dataclass
class Peer:
    """The peer after its prompt."""

    model: nn.Module
    prompt: Tensor

    def __post_init__(self):
        self.cache = DynamicCache(config=self.model.config)
        self.model(self.prompt, past_key_values=self.cache, use_cache=True)

    def decode(self, tokens: Tensor) -> Tensor:
        """Logits after each of the tokens, which are read one by one."""
        if more := self.cache.get_seq_length() - self.prompt.shape[1]:
            self.cache.crop(-more)
        step = functools.partial(self.model, past_key_values=self.cache, use_cache=True)
        return torch.cat([step(token).logits for token in tokens.split(1, dim=1)], dim=1)


def uncached(model: Decoder, prompt: Tensor, tokens: Tensor) -> Tensor:
    """Logits after each of the tokens, where each takes a pass over everything before it."""
    text = torch.cat([prompt, tokens], dim=1)
    return torch.cat([model(text[:, : prompt.shape[1] + i + 1])[:, -1:] for i in range(tokens.shape[1])], dim=1)


# --- Measures ---------------------------------------------------------------------------------------------------------


def against_peer(kind: str, length: int, goal: float) -> list[Case]:
    """Tokens per second with a cache, over the peer's."""
    prompt, tokens = _text(length)
    make_peer, make_ours = MODELS[kind]
    with one_thread(), torch.inference_mode():
        peer_model = make_peer()
        ours, peer = Ours(make_ours(peer_model), prompt), Peer(peer_model, prompt)
        _require_equal(ours.decode(tokens), peer.decode(tokens))
        mine, theirs = [], []
        for _ in range(REPETITIONS):
            mine.append(STEPS / seconds(lambda: ours.decode(tokens)))
            theirs.append(STEPS / seconds(lambda: peer.decode(tokens)))
    name = f"{PEER} {type(peer_model).__name__}"
    return [Case(None, tuple(mine), tuple(theirs), name, goal, unit="tokens/s", clock=CLOCK, better="higher")]


def gain(length: int, goal: float) -> list[Case]:
    """Tokens per second with a cache, over those without."""
    prompt, tokens = _text(length)
    few = tokens[:, :2]
    cases = []
    with one_thread(), torch.inference_mode():
        for kind, (make_peer, make_ours) in MODELS.items():
            model = make_ours(make_peer())
            ours = Ours(model, prompt)
            _require_equal(ours.decode(few), uncached(model, prompt, few))
            mine, theirs = [], []
            for _ in range(REPETITIONS):
                mine.append(STEPS / seconds(lambda ours=ours: ours.decode(tokens)))
                theirs.append(2 / seconds(lambda model=model: uncached(model, prompt, few)))
            peer = "ours without a cache"
            cases.append(Case(kind, tuple(mine), tuple(theirs), peer, goal, "tokens/s", clock=CLOCK, better="higher"))
    return cases


def _text(length: int) -> tuple[Tensor, Tensor]:
    """Random tokens: a prompt, and what is read one by one."""
    text = torch.randint(VOCABULARY, (1, length + STEPS), generator=generator(1))
    return text[:, :length], text[:, length:]


def _require_equal(ours: Tensor, peer: Tensor) -> None:
    difference = float((ours - peer).abs().max())
    if not difference <= SAME:
        raise ValueError(f"decode: received logits that differ by {difference:.1e}; rule: at most {SAME:g}")


MEASURES: dict[str, Callable[[], list[Case]]] = {
    "decode-gqa-512": functools.partial(against_peer, "gqa", 512, 1.5),
    "decode-gqa-2048": functools.partial(against_peer, "gqa", 2048, 1.5),
    "decode-mla-512": functools.partial(against_peer, "mla", 512, 3.0),
    "decode-mla-2048": functools.partial(against_peer, "mla", 2048, 5.0),
    "cache-gain-512": functools.partial(gain, 512, 15.0),
    "cache-gain-2048": functools.partial(gain, 2048, 60.0),
}
