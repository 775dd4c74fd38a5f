r"""A decoder-only transformer: tokens in, scores of the next token out. The attention is handed to it.

    h ← h + attention(norm(h)),   h ← h + mlp(norm(h))                                          each block
    norm(x) = g · x / √(mean(x²) + ε)                                                           RMSNorm
    mlp(x) = (silu(x W_gate) ⊙ x W_up) W_down                                                   SwiGLU

Tokens are whole numbers, (batch, length). An attention module is called `attention(x, cache=None, mask=None)` with x
(batch, new, dim), where a cache holds what the earlier tokens left; it makes such a cache by
`new_cache(batch=…, length=…)`. Everything else in the network treats each token by itself, which is why a cache for
the attention is all that decoding one token at a time needs.

Sources: Vaswani et al. 2017; Zhang and Sennrich 2019 (RMSNorm); Shazeer 2020 (SwiGLU); Touvron et al. 2023 (the
combination, known as the Llama architecture).
"""

import copy
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from companion.numerics._checks import is_whole

__all__ = ["Block", "Decoder", "Projection", "RMSNorm", "SwiGLU", "generate", "greedy"]


class Projection(nn.Linear):
    """x ↦ x W without a bias, with W in memory as it is written: a row for each input.

    It is a linear layer of torch, `weight` is Wᵀ (outputs, inputs) as ever. Only its order in memory differs: for a
    single row x, as in decoding, the CPU then computes x W faster where W is already in its cache.
    """

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__(dim_in, dim_out, bias=False)
        self.weight = nn.Parameter(self.weight.detach().T.contiguous().T)


class RMSNorm(nn.Module):
    """g · x / √(mean(x²) + ε): each vector is brought to root mean square 1, then its coordinates are scaled.

    Args:
        dim: Length of a vector.
        eps: ε, which keeps a zero vector finite.
    """

    def __init__(self, dim: int, *, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("root_dim", torch.tensor(dim).sqrt(), persistent=False)
        self.register_buffer("root_eps", torch.tensor(eps).sqrt(), persistent=False)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        # √(mean(x²) + ε) as the hypotenuse of ‖x‖/√dim and √ε: half as many operations as torch's own form.
        rms = torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True) / self.root_dim, self.root_eps)
        return x / rms * self.weight


class SwiGLU(nn.Module):
    """(silu(x W_gate) ⊙ x W_up) W_down; W_gate and W_up stand side by side in one matrix.

    Args:
        dim: Length of input and output.
        hidden: Number of gates.
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.to_gate_and_up = Projection(dim, 2 * hidden)
        self.to_out = Projection(hidden, dim)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        gate, up = self.to_gate_and_up(x).chunk(2, dim=-1)
        return self.to_out(F.silu(gate) * up)


class Block(nn.Module):
    """One layer: tokens exchange what they know (attention), then each thinks by itself (mlp).

    Args:
        attention: An attention module on vectors of length `dim`.
        dim: Length of the vectors.
        hidden: Number of gates of the mlp.
    """

    def __init__(self, attention: nn.Module, dim: int, hidden: int):
        super().__init__()
        self.norm_attention = RMSNorm(dim)
        self.attention = attention
        self.norm_mlp = RMSNorm(dim)
        self.mlp = SwiGLU(dim, hidden)

    def forward(
        self, h: Float[Tensor, "batch new dim"], cache: object = None, mask: Shaped[Tensor, "..."] | None = None
    ) -> Float[Tensor, "batch new dim"]:
        h = h + self.attention(self.norm_attention(h), cache, mask)
        return h + self.mlp(self.norm_mlp(h))


class Decoder(nn.Module):
    """A transformer on tokens.

    Args:
        vocabulary: Number of different tokens.
        dim: Length of the vectors between the layers.
        layers: Number of blocks.
        attention: Makes the attention module of one block; called once for each.
        hidden: Number of gates of each mlp; unless given 8/3 of `dim`, rounded up to a multiple of 32.
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        layers: int,
        attention: Callable[[], nn.Module],
        *,
        hidden: int | None = None,
    ):
        super().__init__()
        for name, size in {"vocabulary": vocabulary, "dim": dim, "layers": layers}.items():
            if not is_whole(size, least=1):
                raise ValueError(f"Decoder: received {name}={size}; rule: a whole number, at least 1")
        hidden = 32 * -(-8 * dim // (3 * 32)) if hidden is None else hidden
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList([Block(attention(), dim, hidden) for _ in range(layers)])
        self.norm = RMSNorm(dim)
        self.head = Projection(dim, vocabulary)

    def forward(
        self,
        tokens: Int[Tensor, "batch new"],
        caches: Sequence | None = None,
        mask: Shaped[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch new vocabulary"]:
        """Scores (logits) of what follows each of the tokens.

        Args:
            tokens: Whole numbers below `vocabulary`, (batch, new): all tokens, or with caches those that are new.
            caches: What the earlier tokens left, one cache for each block. They are written to.
            mask: Tokens that may be seen, (batch, earlier + new); False marks padding.

        Raises:
            ValueError: If there is not one cache for each block.
        """
        if caches is None:
            caches = [None] * len(self.blocks)
        elif len(caches) != len(self.blocks):
            raise ValueError(
                f"Decoder: received {len(caches)} caches; rule: one for each of the {len(self.blocks)} blocks"
            )
        h = self.embedding(tokens)
        for block, cache in zip(self.blocks, caches, strict=True):
            h = block(h, cache, mask)
        return self.head(self.norm(h))

    def new_caches(self, *, batch: int = 1, length: int) -> list:
        """An empty cache for each block, with room for `length` tokens."""
        return [block.attention.new_cache(batch=batch, length=length) for block in self.blocks]

    def with_attention(self, convert: Callable[[nn.Module], nn.Module]) -> "Decoder":
        """A copy in which each block's attention is `convert(attention)`; the original stays as it is."""
        other = copy.deepcopy(self)
        for block in other.blocks:
            block.attention = convert(block.attention)
        return other


# --- Decoding ---------------------------------------------------------------------------------------------------------


def greedy(logits: Float[Tensor, "batch vocabulary"]) -> Int[Tensor, " batch"]:
    """The token with the highest score."""
    return logits.argmax(dim=-1)


@torch.no_grad()
def generate(
    model: Callable[..., Tensor],
    prompt: Int[Tensor, "batch length"],
    *,
    steps: int,
    caches: Sequence | None = None,
    pick: Callable[[Tensor], Tensor] = greedy,
) -> Int[Tensor, "batch longer"]:
    """Continues the prompt, one token at a time, each picked from the scores that the model gives it.

    Args:
        model: `model(tokens, caches)` gives logits (batch, new, vocabulary).
        prompt: The tokens to start from, (batch, length), at least one.
        steps: Number of tokens to add.
        caches: Empty caches, such as `model.new_caches(length=…)`: the prompt is read once (prefill), then one token
            a step. None: each step reads everything again.
        pick: Chooses a token from each row of logits, (batch, vocabulary) to (batch,).

    Returns:
        The prompt and what follows, (batch, length + steps).

    Raises:
        ValueError: If the prompt is empty, or `steps` is no whole number.
    """
    if prompt.shape[1] == 0 or not is_whole(steps, least=0):
        raise ValueError(
            f"generate: received a prompt {tuple(prompt.shape)} and steps={steps}; "
            "rule: a prompt of one token or more, a whole number of steps"
        )
    tokens = new = prompt
    for _ in range(steps):
        logits = model(tokens) if caches is None else model(new, caches)
        new = pick(logits[:, -1])[:, None]
        tokens = torch.cat([tokens, new], dim=1)
    return tokens
