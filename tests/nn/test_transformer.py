"""The decoder: its parts by their formulas, who may know of whom, and generation."""

import copy
import math

import pytest
import torch
from torch import nn

from companion.device import generator, randn, seeded
from companion.methods.attention import GroupedQueryAttention
from companion.nn.rotary import Rotary
from companion.nn.transformer import Decoder, Projection, RMSNorm, SwiGLU, generate, greedy

VOCABULARY = 11
ROTARY = Rotary(8, length=40)


def decoder(seed=0, layers=2):
    with seeded(generator(seed)):
        return Decoder(
            VOCABULARY, 32, layers, lambda: GroupedQueryAttention(32, heads=4, kv_heads=2, rotary=ROTARY)
        ).eval()


def some_tokens(*shape, seed=1):
    return torch.randint(VOCABULARY, shape, generator=generator(seed))


def test_the_norm_brings_each_vector_to_root_mean_square_one():
    x = 5 * randn(3, 4, 16, generator=generator(0))
    norm = RMSNorm(16)
    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(3, 4))
    torch.testing.assert_close(norm(100 * x), norm(x))
    assert torch.equal(norm(torch.zeros(2, 16)), torch.zeros(2, 16))
    torch.testing.assert_close(norm(x), nn.functional.rms_norm(x, (16,), eps=1e-6))
    torch.testing.assert_close(RMSNorm(16).bfloat16()(x.bfloat16()).float(), norm(x), atol=0.05, rtol=0.02)
    zeros = torch.zeros(2, 16, requires_grad=True)
    norm(zeros).sum().backward()
    torch.testing.assert_close(zeros.grad, torch.full((2, 16), 1e3))  # g/√ε
    norm.weight.data[3] = 7.0
    torch.testing.assert_close(norm(x)[..., 3], 7 * x[..., 3] / x.square().mean(-1).sqrt())


def test_the_gate_opens_with_its_input():
    """A gate far open passes x W_up times its own value, a gate far closed passes nothing."""
    mlp = SwiGLU(2, 1)
    for gate, passed in ((30.0, 30.0), (-30.0, 0.0)):
        mlp.to_gate_and_up.weight.data.copy_(torch.tensor([[gate, 0.0], [0.0, 1.0]]))
        mlp.to_out.weight.data.copy_(torch.tensor([[1.0], [0.0]]))
        torch.testing.assert_close(mlp(torch.tensor([1.0, 2.0])), torch.tensor([2.0 * passed, 0.0]))


def test_a_projection_is_a_linear_layer_that_keeps_its_order_in_memory():
    layer, x = Projection(5, 3), randn(2, 5, generator=generator(0))
    plain = nn.Linear(5, 3, bias=False)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), plain(x))
    layer.load_state_dict(plain.state_dict())
    for kept in (layer, copy.deepcopy(layer), copy.deepcopy(layer).double()):
        assert kept.weight.T.is_contiguous()


def test_the_mlp_is_eight_thirds_as_wide_in_multiples_of_32():
    assert Decoder(5, 256, 1, nn.Identity).blocks[0].mlp.to_out.in_features == 704
    assert Decoder(5, 96, 1, nn.Identity).blocks[0].mlp.to_out.in_features == 256
    assert Decoder(5, 96, 1, nn.Identity, hidden=10).blocks[0].mlp.to_out.in_features == 10


def test_each_block_has_an_attention_of_its_own():
    blocks = decoder(layers=3).blocks
    assert len({id(block.attention) for block in blocks}) == 3
    assert not torch.equal(blocks[0].attention.to_qkv.weight, blocks[1].attention.to_qkv.weight)


def test_a_token_knows_nothing_of_later_ones():
    """The logits of a prefix do not change when what follows it does."""
    model, a, b = decoder(), some_tokens(2, 12), some_tokens(2, 12, seed=2)
    b[:, :7] = a[:, :7]
    with torch.no_grad():
        torch.testing.assert_close(model(a)[:, :7], model(b)[:, :7])
        assert (model(a)[:, 7:] - model(b)[:, 7:]).abs().max() > 0.01


def test_a_model_learns_what_follows_what():
    """A text that counts modulo 11: the loss falls from about ln 11 to next to nothing."""
    model = decoder().train()
    text = torch.arange(200) % VOCABULARY
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    source, losses = generator(0), []
    for _ in range(60):
        starts = torch.randint(180, (8, 1), generator=source)
        batch = text[starts + torch.arange(13)]
        logits = model(batch[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(VOCABULARY), abs=0.7)
    assert losses[-1] < 0.1
    out = generate(model, torch.tensor([[3, 4]]), steps=12, caches=model.new_caches(length=14))
    assert torch.equal(out[0], torch.arange(3, 17) % VOCABULARY)


def test_generation_with_a_cache_picks_the_same_tokens():
    model, prompt = decoder(), some_tokens(3, 5)
    fast = generate(model, prompt, steps=12, caches=model.new_caches(batch=3, length=16))
    slow = generate(model, prompt, steps=12)
    assert torch.equal(fast, slow)
    assert fast.shape == (3, 17)
    assert torch.equal(fast[:, :5], prompt)
    assert not fast.requires_grad


def test_generation_picks_with_what_it_is_given():
    """A model whose highest score is the token plus one, its lowest the token itself."""

    def count_up(tokens, caches=None):
        one = nn.functional.one_hot
        return (one((tokens + 1) % 5, 5) - one(tokens, 5)).float()

    prompt = torch.tensor([[0], [3]])
    assert generate(count_up, prompt, steps=3).tolist() == [[0, 1, 2, 3], [3, 4, 0, 1]]
    assert generate(count_up, prompt, steps=2, pick=lambda logits: logits.argmin(-1)).tolist() == [[0] * 3, [3] * 3]
    assert torch.equal(generate(count_up, prompt, steps=0), prompt)
    assert greedy(torch.tensor([[0.0, 2.0, 1.0]])).tolist() == [1]


def test_other_attention_can_be_put_into_a_copy():
    model, tokens = decoder(), some_tokens(1, 6)
    before = model(tokens)
    other = model.with_attention(lambda attention: GroupedQueryAttention(32, heads=4, kv_heads=4))
    assert all(block.attention.kv_heads == 4 for block in other.blocks)
    assert torch.equal(model(tokens), before)
    assert torch.equal(other.head.weight, model.head.weight)


def test_bad_input_names_its_rule():
    model = decoder()
    with pytest.raises(ValueError, match="received 1 caches; rule: one for each of the 2 blocks"):
        model(some_tokens(1, 3), model.new_caches(length=4)[:1])
    with pytest.raises(ValueError, match="Decoder: received layers=0; rule: a whole number"):
        Decoder(5, 8, 0, nn.Identity)
    with pytest.raises(ValueError, match="rule: a prompt of one token or more"):
        generate(model, torch.zeros(1, 0, dtype=torch.long), steps=1)
    with pytest.raises(ValueError, match="a whole number of steps"):
        generate(model, some_tokens(1, 2), steps=-1)
