r"""Attention that decodes cheaply: shared keys and values, latents instead of keys and values, and what each costs.

    heads:     Q = X W_Q,  K = X W_K,  V = X W_V,   softmax(Q Kᵀ/√d_head + mask) V                     (eq-attention)
    grouped:   query head h of H reads key-value head ⌊h G/H⌋ of G                                 (eq-grouped-heads)
    pooled:    W_K of a group = mean of W_K of its heads, W_V alike                                 (eq-pooled-heads)
    latent:    c = X W_DKV,  K_h = [c W_UK,h, k_rope],  V_h = c W_UV,h,  scale 1/√(d_head + d_rope)
                                                                                                (eq-latent-attention)
    absorbed:  q_h (c W_UK,h)ᵀ = (q_h W_UK,hᵀ) cᵀ                                               (eq-absorbed-scores)
               a_h (c W_UV,h) W_O,h = (a_h c) (W_UV,h W_O,h)                                    (eq-absorbed-output)

Row vectors: a token is a row of X and W_Q maps it from the right. Tensors are (batch, heads, length, d_head); `new`
tokens come after those in the cache and `length` counts both. G = H is multi-head attention (MHA), G = 1 multi-query
attention (MQA). Keys are rotated by their positions before they are cached; latents are not rotated, so latent
attention adds a rotary key k_rope of its own, one for all heads (decoupled rotary keys).

The absorbed form never makes keys or values: it is multi-query attention whose one key is the row of the cache and
whose one value is the latent in it. It dots wider vectors, d_latent + d_rope, and keeps the scale of the naive form,
because it computes the same scores.

Sources: Vaswani et al. 2017, section 3.2; Shazeer 2019 (MQA); Ainslie et al. 2023, section 2 (GQA, mean pooling);
Jiang et al. 2023, section 2 (sliding window); DeepSeek-AI 2024, 'DeepSeek-V2', section 2.1 and appendix C; Dao et al.
2022 (fused attention). What each costs: `companion.nn.costs`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from companion.nn.caches import Cache, KeyValueCache, LatentCache, WindowCache
from companion.nn.costs import Grouped, Latent
from companion.nn.rotary import Rotary
from companion.nn.transformer import Projection, RMSNorm
from companion.numerics._checks import is_whole

__all__ = [
    "GroupedQueryAttention",
    "LatentAttention",
    "Window",
    "absorbed_form",
    "attend",
    "causal",
    "cheaper_form",
    "everything",
    "fused_attend",
    "naive_form",
    "pool_heads",
    "to_latent",
]

Queries = Float[Tensor, "batch heads new d_head"]
Keys = Float[Tensor, "batch kv_heads length d_head"]
Values = Float[Tensor, "batch kv_heads length d_value"]
Outputs = Float[Tensor, "batch heads new d_value"]
Visible = Shaped[Tensor, "..."]  # booleans, (new, length) or (batch, new, length); checked where it is used
Mask = Shaped[Tensor, "..."]  # booleans, (batch, length); checked where it is used
Tokens = Float[Tensor, "batch new dim"]
Rule = Callable[[Tensor, Tensor], Tensor]  # (query positions, key positions) -> who sees whom


# --- Who sees whom ----------------------------------------------------------------------------------------------------


def causal(i: Int[Tensor, "..."], j: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """The token at position i sees itself and what came before: j ≤ i."""
    return j <= i


def everything(i: Int[Tensor, "..."], j: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """Each token sees all tokens. Nothing can be cached: a new token would change what the earlier ones saw."""
    return torch.ones(torch.broadcast_shapes(i.shape, j.shape), dtype=torch.bool, device=j.device)


@dataclass(frozen=True)
class Window:
    """The token at position i sees itself and the size − 1 tokens before it: i − size < j ≤ i (eq-window).

    A layer looks back size − 1 tokens, so `layers` of them look back layers · (size − 1).
    """

    size: int

    def __post_init__(self):
        if not is_whole(self.size, least=1):
            raise ValueError(f"Window: received size={self.size}; rule: a whole number of tokens, at least 1")

    def __call__(self, i: Int[Tensor, "..."], j: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        return (j <= i) & (j > i - self.size)


# --- The mechanism ----------------------------------------------------------------------------------------------------


def attend(q: Queries, k: Keys, v: Values, *, visible: Visible | None = None, scale: float | None = None) -> Outputs:
    """softmax(q kᵀ · scale) v for each head, written out (eq-attention).

    Args:
        q: Queries, (batch, heads, new, d_head).
        k: Keys, (batch, kv_heads, length, d_head); kv_heads divides heads. Query head h reads key head
            h // (heads // kv_heads).
        v: Values, (batch, kv_heads, length, d_value).
        visible: Which key each query sees, (new, length) or (batch, new, length); all unless given. A query that
            sees nothing gets zeros.
        scale: Of the scores; 1/√d_head unless given.

    Returns:
        The mixed values, (batch, heads, new, d_value).

    Raises:
        ValueError: If the groups do not divide the heads, or the mask does not fit.
    """
    _check_attend(q, k, v, visible)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if visible is not None:
        scores = scores.masked_fill(~_for_heads(visible), -torch.inf)
    weights = scores.softmax(dim=-1)
    return weights.nan_to_num(0.0) @ v


def fused_attend(
    q: Queries,
    k: Keys,
    v: Values,
    *,
    visible: Visible | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Outputs:
    """What `attend` computes, in one kernel that keeps no matrix of scores.

    The kernel walks over the keys block by block and corrects a running maximum and a running sum of the softmax, so
    that a block of scores is used while it is in fast memory and then forgotten.

    A single new token needs no mask, and then the queries of a group are as good as several queries of one head: the
    keys of that head are read once for all of them.

    Args:
        q: Queries, (batch, heads, new, d_head).
        k: Keys, (batch, kv_heads, length, d_head).
        v: Values, (batch, kv_heads, length, d_value).
        visible: Which key each query sees, (new, length) or (batch, new, length); all unless given.
        is_causal: The queries are those of all keys, in order, and see no later key; the kernel then skips half.
        scale: Of the scores; 1/√d_head unless given.
    """
    _check_attend(q, k, v, visible)
    if visible is None and q.shape[2] == 1:
        groups = q.view(q.shape[0], k.shape[1], -1, q.shape[3])
        return F.scaled_dot_product_attention(groups, k, v, scale=scale).reshape(*q.shape[:3], v.shape[3])
    visible = None if visible is None else _for_heads(visible)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible, is_causal=is_causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _for_heads(visible: Visible) -> Bool[Tensor, "..."]:
    return visible if visible.ndim == 2 else visible[:, None]


def _check_attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> None:
    (batch, heads, _, d_head), (k_batch, kv_heads, _, k_width) = q.shape, k.shape
    if batch != k_batch or heads % kv_heads or d_head != k_width or k.shape[:3] != v.shape[:3]:
        raise ValueError(
            f"attend: received q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}; rule: q (batch, heads, new, "
            "d_head), k and v (batch, kv_heads, length, …) with kv_heads a divisor of heads, keys as wide as queries"
        )
    if visible is not None:
        new, length = q.shape[2], k.shape[2]
        if visible.dtype != torch.bool or visible.shape not in {(new, length), (q.shape[0], new, length)}:
            raise ValueError(
                f"attend: received a mask {tuple(visible.shape)} of {visible.dtype}; rule: booleans, (new, length) = "
                f"({new}, {length}) or (batch, new, length) = ({q.shape[0]}, {new}, {length}), True is seen"
            )


def _seen(sees: Rule, x: Tensor, start: int, cache: Cache | LatentCache | None, mask: Tensor | None) -> dict:
    """What `fused_attend` is told of who sees whom: nothing, `is_causal` or `visible`."""
    batch, new = x.shape[:2]
    if mask is None and sees is causal and (new == 1 or start == 0):
        return {"is_causal": new > 1}
    if mask is None and new == 1 and isinstance(cache, WindowCache) and cache.window == sees.size:
        return {}  # the ring holds what is seen and nothing else
    i = torch.arange(start, start + new, device=x.device)
    j = i if cache is None else cache.positions()
    visible = sees(i[:, None], j)
    if mask is None:
        return {"visible": visible}
    if mask.dtype != torch.bool or mask.shape != (batch, start + new):
        raise ValueError(
            f"attention: received a mask {tuple(mask.shape)} of {mask.dtype}; rule: booleans, "
            f"(batch, earlier + new tokens) = ({batch}, {start + new}), False is padding"
        )
    return {"visible": visible & mask[:, None, j]}


# --- Grouped queries --------------------------------------------------------------------------------------------------


class GroupedQueryAttention(nn.Module):
    """H query heads that share G heads of keys and values: H = G is MHA, G = 1 is MQA.

    Args:
        dim: Length of a token's vector.
        heads: H, heads of queries.
        kv_heads: G, heads of keys and of values; divides H.
        d_head: Width of each head; dim / heads unless given.
        rotary: Turns queries and keys by their positions; None: the order of the earlier tokens is not seen.
        sees: Which query position sees which key position: `causal`, `Window(size)`, `everything`.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        kv_heads: int,
        d_head: int | None = None,
        rotary: Rotary | None = None,
        sees: Rule = causal,
    ):
        super().__init__()
        d_head = _head_width("GroupedQueryAttention", dim, heads, d_head, rotary)
        if not is_whole(kv_heads, least=1) or heads % kv_heads:
            raise ValueError(
                f"GroupedQueryAttention: received heads={heads}, kv_heads={kv_heads}; rule: kv_heads divides heads"
            )
        self.heads, self.kv_heads, self.d_head = heads, kv_heads, d_head
        self.rotary, self.sees = rotary, sees
        self.to_qkv = Projection(dim, (heads + 2 * kv_heads) * d_head)  # W_Q, W_K, W_V side by side
        self.to_out = Projection(heads * d_head, dim)

    def forward(self, x: Tokens, cache: Cache | None = None, mask: Mask | None = None) -> Tokens:
        """What each token takes from those that it sees.

        Args:
            x: The new tokens, (batch, new, dim).
            cache: What the earlier tokens left; the new ones are stored in it.
            mask: Tokens that may be seen, (batch, earlier + new); False marks padding.

        Raises:
            ValueError: If the cache cannot serve this kind of attention, or something does not fit.
        """
        start = 0 if cache is None else cache.length
        q, k, v = self.project(x, start)
        if cache is not None:
            self._check_cache(cache)
            k, v = cache.append(k, v)
        heads = fused_attend(q, k, v, **_seen(self.sees, x, start, cache, mask))
        return self.to_out(heads.transpose(1, 2).flatten(2))

    def project(self, x: Tokens, start: int = 0) -> tuple[Queries, Keys, Values]:
        """Queries, keys and values of tokens at the positions start, start + 1, …, rotated if they are to be."""
        qkv = self.to_qkv(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2)
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        if self.rotary is not None:
            qk = self.rotary(qk, start)
        q, k = qk.split((self.heads, self.kv_heads), dim=1)
        return q, k, v

    def new_cache(self, *, batch: int = 1, length: int) -> KeyValueCache | WindowCache:
        """An empty cache for texts of `length` tokens; a window needs no more than its size."""
        like = {"dtype": self.to_qkv.weight.dtype, "device": self.to_qkv.weight.device}
        if isinstance(self.sees, Window):
            return WindowCache(batch, self.kv_heads, self.sees.size, self.d_head, **like)
        return KeyValueCache(batch, self.kv_heads, length, self.d_head, **like)

    @property
    def query_weight(self) -> Float[Tensor, "dim queries"]:
        """W_Q, (dim, heads · d_head)."""
        return self._weights()[0]

    @property
    def key_weight(self) -> Float[Tensor, "dim keys"]:
        """W_K, (dim, kv_heads · d_head)."""
        return self._weights()[1]

    @property
    def value_weight(self) -> Float[Tensor, "dim values"]:
        """W_V, (dim, kv_heads · d_head)."""
        return self._weights()[2]

    @property
    def shape(self) -> Grouped:
        """The sizes that decide what decoding costs."""
        return Grouped(self.heads, self.kv_heads, self.d_head)

    def _weights(self) -> tuple[Tensor, ...]:
        widths = (self.heads * self.d_head, self.kv_heads * self.d_head, self.kv_heads * self.d_head)
        return self.to_qkv.weight.T.split(widths, dim=1)

    def _check_cache(self, cache: Cache) -> None:
        if self.sees is everything:
            raise ValueError("GroupedQueryAttention: received a cache; rule: `everything` also sees later tokens")
        if isinstance(cache, WindowCache) and not (isinstance(self.sees, Window) and self.sees.size <= cache.window):
            raise ValueError(
                f"GroupedQueryAttention: received a cache of the last {cache.window} tokens; "
                f"rule: only Window(size) with size ≤ {cache.window} can do with it"
            )


def _head_width(operation: str, dim: int, heads: int, d_head: int | None, rotary: Rotary | None) -> int:
    if not is_whole(dim, least=1) or not is_whole(heads, least=1):
        raise ValueError(f"{operation}: received dim={dim}, heads={heads}; rule: whole numbers, at least 1")
    if d_head is None:
        if dim % heads:
            raise ValueError(f"{operation}: received dim={dim}, heads={heads}; rule: heads divides dim, or give d_head")
        d_head = dim // heads
    if not is_whole(d_head, least=1):
        raise ValueError(f"{operation}: received d_head={d_head}; rule: a whole number, at least 1")
    if rotary is not None and rotary.dim != d_head:
        raise ValueError(f"{operation}: received a rotary of width {rotary.dim}; rule: that of a head, {d_head}")
    return d_head


# --- Latents ----------------------------------------------------------------------------------------------------------


def naive_form(attention: "LatentAttention", q: Tensor, q_rope: Tensor, rows: Tensor, **seen: bool | Tensor) -> Outputs:
    """Makes the keys and values of all heads from the latents, then attends (eq-latent-attention).

    Args:
        attention: The module, with its matrices W_UK and W_UV.
        q: Queries for the content, (batch, heads, new, d_head).
        q_rope: Rotated queries for the position, (batch, heads, new, d_rope).
        rows: Latents and rotated keys, side by side, (batch, length, d_latent + d_rope).
        seen: Who sees whom, as `fused_attend` takes it.
    """
    c, k_rope = rows.split((attention.d_latent, attention.d_rope), dim=-1)
    per_head = (attention.heads, attention.d_head)
    k = attention.key_up(c).unflatten(-1, per_head).transpose(1, 2)
    v = attention.value_up(c).unflatten(-1, per_head).transpose(1, 2)
    k_rope = k_rope[:, None].expand(-1, attention.heads, -1, -1)  # one for all heads
    wide_v = F.pad(v, (0, attention.d_rope))  # the fused kernel wants values as wide as keys
    read = fused_attend(torch.cat([q, q_rope], -1), torch.cat([k, k_rope], -1), wide_v, scale=attention.scale, **seen)
    return read[..., : attention.d_head]


def absorbed_form(
    attention: "LatentAttention", q: Tensor, q_rope: Tensor, rows: Tensor, **seen: bool | Tensor
) -> Outputs:
    """The same numbers without any keys and values: queries meet the latents themselves (eq-absorbed-scores).

    Multi-query attention: one key, the row; one value, the latent in it. The values are read as wide as the keys,
    and the rotary part of the result is dropped: then one tensor serves as both.

    Args:
        attention: The module, with its matrices W_UK and W_UV.
        q: Queries for the content, (batch, heads, new, d_head).
        q_rope: Rotated queries for the position, (batch, heads, new, d_rope).
        rows: Latents and rotated keys, side by side, (batch, length, d_latent + d_rope).
        seen: Who sees whom, as `fused_attend` takes it.
    """
    per_head = (attention.heads, attention.d_head, attention.d_latent)
    q_latent = q @ attention.key_up.weight.view(per_head)  # q_h W_UK,hᵀ
    wide_q, key = torch.cat([q_latent, q_rope], dim=-1), rows.unsqueeze(1)
    read = fused_attend(wide_q, key, key, scale=attention.scale, **seen).narrow(-1, 0, attention.d_latent)
    return read @ attention.value_up.weight.view(per_head).mT  # (a_h c) W_UV,h


def cheaper_form(
    attention: "LatentAttention", q: Tensor, q_rope: Tensor, rows: Tensor, **seen: bool | Tensor
) -> Outputs:
    """The absorbed form for a few new tokens, the naive one for many.

    Making keys and values costs as much for one new token as for a thousand; dotting wider vectors costs for each.
    They cost the same at n* = d_head d_latent/(d_latent − d_head) new tokens (eq-absorb-when).

    Args:
        attention: The module, with its matrices W_UK and W_UV.
        q: Queries for the content, (batch, heads, new, d_head).
        q_rope: Rotated queries for the position, (batch, heads, new, d_rope).
        rows: Latents and rotated keys, side by side, (batch, length, d_latent + d_rope).
        seen: Who sees whom, as `fused_attend` takes it.
    """
    form = absorbed_form if q.shape[2] <= attention.absorb_up_to else naive_form
    return form(attention, q, q_rope, rows, **seen)


class LatentAttention(nn.Module):
    """Multi-head latent attention: each token leaves one short vector, from which all heads make keys and values.

    Args:
        dim: Length of a token's vector.
        heads: Heads of queries, keys and values.
        d_head: Width of a head's content query, its content key and its value.
        d_latent: Width of the latent c.
        rotary: Turns the rotary queries and the one rotary key by their positions; its width is d_rope, with
            queries of d_head + d_rope. None: neither exists.
        norm: Applied to the latent before it is cached; `RMSNorm(d_latent)` unless given.
        form: `naive_form`, `absorbed_form` or, unless given, `cheaper_form`.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        d_head: int | None = None,
        d_latent: int,
        rotary: Rotary | None = None,
        norm: nn.Module | None = None,
        form: Callable[..., Tensor] = cheaper_form,
    ):
        super().__init__()
        self.d_head = _head_width("LatentAttention", dim, heads, d_head, None)
        if not is_whole(d_latent, least=1):
            raise ValueError(f"LatentAttention: received d_latent={d_latent}; rule: a whole number, at least 1")
        self.heads, self.d_latent, self.d_rope = heads, d_latent, 0 if rotary is None else rotary.dim
        self.scale = 1 / math.sqrt(self.d_head + self.d_rope)
        self.rotary, self.form = rotary, form
        self.absorb_up_to = self.shape.absorb_up_to
        # Side by side: content queries, rotary queries and the one rotary key as heads of one kind, the latent.
        self.parts = (heads * self.d_head, (heads + 1) * self.d_rope, d_latent)
        self.to_parts = Projection(dim, sum(self.parts))
        self.norm = RMSNorm(d_latent) if norm is None else norm
        self.key_up = nn.Linear(d_latent, heads * self.d_head, bias=False)  # W_UK
        self.value_up = nn.Linear(d_latent, heads * self.d_head, bias=False)  # W_UV
        self.to_out = Projection(heads * self.d_head, dim)

    def forward(self, x: Tokens, cache: LatentCache | None = None, mask: Mask | None = None) -> Tokens:
        """What each token takes from those up to itself.

        Args:
            x: The new tokens, (batch, new, dim).
            cache: What the earlier tokens left; the new ones are stored in it.
            mask: Tokens that may be seen, (batch, earlier + new); False marks padding.
        """
        start = 0 if cache is None else cache.length
        q, q_rope, rows = self.project(x, start)
        if cache is not None:
            rows = cache.append(rows)
        heads = self.form(self, q, q_rope, rows, **_seen(causal, x, start, cache, mask))
        return self.to_out(heads.transpose(1, 2).flatten(2))

    def project(
        self, x: Tokens, start: int = 0
    ) -> tuple[Queries, Float[Tensor, "batch heads new d_rope"], Float[Tensor, "batch new width"]]:
        """Of tokens at the positions start, start + 1, …: content queries, rotary queries, and the rows to cache."""
        q, qk_rope, c = self.to_parts(x).split(self.parts, dim=-1)
        q = q.unflatten(-1, (self.heads, self.d_head)).transpose(1, 2)
        qk_rope = qk_rope.unflatten(-1, (self.heads + 1, self.d_rope)).transpose(1, 2)
        if self.rotary is not None:
            qk_rope = self.rotary(qk_rope, start)
        q_rope, k_rope = qk_rope.narrow(1, 0, self.heads), qk_rope.select(1, self.heads)
        return q, q_rope, torch.cat([self.norm(c), k_rope], dim=-1)

    def absorbed_matrices(
        self,
    ) -> tuple[Float[Tensor, "heads dim d_latent"], Float[Tensor, "heads d_latent dim"]]:
        """W_Q,h W_UK,hᵀ and W_UV,h W_O,h of each head, multiplied out.

        They show that the absorbed form is attention between a token and the latents. `absorbed_form` multiplies by
        the two factors one after the other instead: that reads heads · d_head (dim + d_latent) numbers, not
        heads · dim · d_latent.
        """
        per_head = (self.heads, self.d_head, self.d_latent)
        w_q = self.query_weight.unflatten(1, (self.heads, -1)).transpose(0, 1)
        w_o = self.to_out.weight.T.unflatten(0, (self.heads, -1))
        return w_q @ self.key_up.weight.view(per_head), self.value_up.weight.view(per_head).mT @ w_o

    def new_cache(self, *, batch: int = 1, length: int) -> LatentCache:
        """An empty cache for texts of `length` tokens."""
        like = self.to_parts.weight
        return LatentCache(batch, length, self.d_latent + self.d_rope, dtype=like.dtype, device=like.device)

    @property
    def query_weight(self) -> Float[Tensor, "dim queries"]:
        """W_Q of the content, (dim, heads · d_head)."""
        return self.to_parts.weight.T.split(self.parts, dim=1)[0]

    @property
    def rotary_weight(self) -> Float[Tensor, "dim rotary"]:
        """Matrices of the rotary queries and, last, of the one rotary key, (dim, (heads + 1) · d_rope)."""
        return self.to_parts.weight.T.split(self.parts, dim=1)[1]

    @property
    def latent_weight(self) -> Float[Tensor, "dim d_latent"]:
        """W_DKV, (dim, d_latent)."""
        return self.to_parts.weight.T.split(self.parts, dim=1)[2]

    @property
    def shape(self) -> Latent:
        """The sizes that decide what decoding costs."""
        return Latent(self.heads, self.d_head, self.d_latent, self.d_rope)


# --- Conversions ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def pool_heads(attention: GroupedQueryAttention, *, kv_heads: int) -> GroupedQueryAttention:
    """Fewer key-value heads: each new one has the mean of the matrices of those that it replaces (eq-pooled-heads).

    Where these are equal nothing changes; else it is a start for a short further training.

    Args:
        attention: MHA, or GQA with more heads.
        kv_heads: G of the result; divides the number that there is.

    Returns:
        A new module; queries, output and rotary positions are as before.

    Raises:
        ValueError: If `kv_heads` does not divide the number of key-value heads.
    """
    if not is_whole(kv_heads, least=1) or attention.kv_heads % kv_heads:
        raise ValueError(
            f"pool_heads: received kv_heads={kv_heads} for {attention.kv_heads}; rule: it divides the present number"
        )
    pooled = _like(
        GroupedQueryAttention(
            attention.to_out.out_features,
            heads=attention.heads,
            kv_heads=kv_heads,
            d_head=attention.d_head,
            rotary=attention.rotary,
            sees=attention.sees,
        ),
        attention,
    )

    def pool(weight: Tensor) -> Tensor:
        return weight.unflatten(1, (kv_heads, -1, attention.d_head)).mean(dim=2).flatten(1)

    k, v = pool(attention.key_weight), pool(attention.value_weight)
    pooled.to_qkv.weight.copy_(torch.cat([attention.query_weight, k, v], dim=1).T)
    pooled.to_out.weight.copy_(attention.to_out.weight)
    return pooled


@torch.no_grad()
def to_latent(attention: GroupedQueryAttention, *, rank: int | None = None) -> LatentAttention:
    """Latent attention that computes what grouped-query attention computes, or nearly so with a smaller latent.

        [W_K, W_V] = U S Wᵀ,   W_DKV = U S,   W_UK and W_UV of a head = the columns of Wᵀ of its group

    Exact when the latent has the rank of [W_K, W_V], at most min(dim, 2 · kv_heads · d_head); with fewer, the best
    approximation of these matrices in the squared norm.

    It needs keys without rotary positions: a rotation between W_Q and W_K that depends on the distance of two tokens
    cannot be moved into either, and does not commute with W_UK. That is why latent attention has rotary keys beside
    its latents.

    Args:
        attention: Causal grouped-query attention without rotary positions.
        rank: d_latent; full unless given.

    Returns:
        A new module without rotary keys and without a norm on the latent.

    Raises:
        ValueError: If the keys are rotated, the attention is not causal, or the rank is out of range.
    """
    if attention.rotary is not None:
        raise ValueError("to_latent: received rotary keys; rule: only keys without positions can be made from latents")
    if attention.sees is not causal:
        raise ValueError("to_latent: received attention with another rule than `causal`; rule: it is causal")
    joint = torch.cat([attention.key_weight, attention.value_weight], dim=1)
    full = min(joint.shape)
    rank = full if rank is None else rank
    if not is_whole(rank, least=1) or rank > full:
        raise ValueError(f"to_latent: received rank={rank}; rule: from 1 to min(dim, 2 kv_heads d_head) = {full}")
    latent = _like(
        LatentAttention(len(joint), heads=attention.heads, d_head=attention.d_head, d_latent=rank, norm=nn.Identity()),
        attention,
    )
    u, s, w_t = torch.linalg.svd(joint.double(), full_matrices=False)
    group = attention.heads // attention.kv_heads
    k_up, v_up = w_t[:rank].unflatten(1, (2, attention.kv_heads, -1)).repeat_interleave(group, dim=2).unbind(1)
    latent.to_parts.weight.copy_(torch.cat([attention.query_weight, (u * s)[:, :rank].to(joint)], dim=1).T)
    latent.key_up.weight.copy_(k_up.flatten(1).T)
    latent.value_up.weight.copy_(v_up.flatten(1).T)
    latent.to_out.weight.copy_(attention.to_out.weight)
    return latent


def _like(module: nn.Module, other: nn.Module) -> nn.Module:
    """The module on the device, in the dtype and in the mode of another."""
    weight = next(other.parameters())
    return module.to(weight.device, weight.dtype).train(other.training)
