r"""What decoding one token costs: arithmetic, and bytes that have to come from memory.

    cache:     bytes = layers · cached · length · batch · bytes per value, where a token leaves in each layer
               cached = 2 · kv_heads · d_head  (keys and values)   or   d_latent + d_rope  (a latent and a rotary key)
    step:      FLOPs = batch · (2 · weights + layers · flops(length)),   bytes = weights and cache, each read once
    roofline:  seconds ≥ max(FLOPs/peak, bytes/bandwidth)                                              (eq-roofline)
    intensity: FLOPs/bytes of the attention alone: 2 heads/(kv_heads · bytes per value) for grouped queries,
               2 heads (2 d_latent + d_rope)/((d_latent + d_rope) · bytes per value) for latents  (eq-decode-intensity)

A machine whose peak/bandwidth is above the intensity of its work waits for memory. Weights are read once for a whole
batch, so a larger batch raises their intensity; each sequence has a cache of its own, so no batch raises that of the
attention: only the form of the attention does.

Sources: Williams et al. 2009 (roofline); Pope et al. 2022, section 2; DeepSeek-AI 2024, table 1 and section 3.2.3.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from companion.numerics._checks import is_whole

__all__ = ["PUBLISHED", "DecodeCost", "Grouped", "Latent", "Published", "cache_bytes", "decode_cost", "linear_weights"]


def _check_whole(shape: "Grouped | Latent", *, may_be_zero: tuple[str, ...] = ()) -> None:
    for name, size in vars(shape).items():
        if not is_whole(size, least=0 if name in may_be_zero else 1):
            raise ValueError(f"{type(shape).__name__}: received {name}={size}; rule: a whole number, at least 1")


@dataclass(frozen=True)
class Grouped:
    """Sizes of grouped-query attention: MHA where kv_heads = heads, MQA where kv_heads = 1."""

    heads: int
    kv_heads: int
    d_head: int

    def __post_init__(self):
        _check_whole(self)
        if self.heads % self.kv_heads:
            raise ValueError(f"Grouped: received {self}; rule: kv_heads divides heads")

    @property
    def cached(self) -> int:
        """Numbers in the cache for each token and layer: a key and a value for each key-value head."""
        return 2 * self.kv_heads * self.d_head

    def flops(self, length: int) -> int:
        """Of attention between one new token and `length` tokens, in one layer: scores, then mixed values."""
        return 4 * self.heads * self.d_head * length

    def intensity(self, bytes_per_value: float = 4) -> float:
        """FLOPs for each byte read from the cache: 2 heads/(kv_heads · bytes), at any length (eq-decode-intensity)."""
        return self.flops(1) / (self.cached * bytes_per_value)


@dataclass(frozen=True)
class Latent:
    """Sizes of latent attention, decoded in the absorbed form."""

    heads: int
    d_head: int
    d_latent: int
    d_rope: int = 0

    def __post_init__(self):
        _check_whole(self, may_be_zero=("d_rope",))

    @property
    def cached(self) -> int:
        """Numbers in the cache for each token and layer: the latent and one rotary key."""
        return self.d_latent + self.d_rope

    @property
    def absorb_up_to(self) -> float:
        """n* new tokens at which both forms take the same number of FLOPs (eq-absorb-when)."""
        if self.d_latent <= self.d_head:
            return math.inf
        return self.d_head * self.d_latent / (self.d_latent - self.d_head)

    def flops(self, length: int, *, new: int = 1) -> int:
        """Of attention between new tokens and `length` tokens, in one layer: scores with rows, then mixed latents."""
        return 2 * new * self.heads * (2 * self.d_latent + self.d_rope) * length

    def naive_flops(self, length: int, *, new: int = 1) -> int:
        """The same in the naive form, which makes keys and values of all tokens at each step."""
        making = 4 * self.heads * self.d_head * self.d_latent * length
        return making + 2 * new * self.heads * (2 * self.d_head + self.d_rope) * length

    def intensity(self, bytes_per_value: float = 4) -> float:
        """FLOPs for each byte read from the cache, at any length (eq-decode-intensity)."""
        return self.flops(1) / (self.cached * bytes_per_value)


class Published(NamedTuple):
    """A published model: the sizes of its attention and its number of layers."""

    attention: Grouped | Latent
    layers: int


PUBLISHED: dict[str, Published] = {
    "DeepSeek 67B": Published(Grouped(heads=64, kv_heads=8, d_head=128), layers=95),
    "DeepSeek-V2": Published(Latent(heads=128, d_head=128, d_latent=512, d_rope=64), layers=60),
}


def cache_bytes(
    shape: Grouped | Latent, *, layers: int, length: int, batch: int = 1, bytes_per_value: float = 4
) -> float:
    """Bytes of the cache of a whole model (eq-cache-bytes, eq-latent-cache).

    Args:
        shape: `Grouped(…)` or `Latent(…)`, such as `attention.shape`.
        layers: Number of attention layers.
        length: Tokens of each sequence; with a sliding window, no more than its size.
        batch: Sequences.
        bytes_per_value: 4 for float32, 2 for half precision, 0.75 for 6 bits.
    """
    return shape.cached * layers * length * batch * bytes_per_value


@dataclass(frozen=True)
class DecodeCost:
    """What one step of decoding costs, a new token for each sequence of the batch.

    Attributes:
        flops: Floating-point operations; a multiplication and an addition are two.
        weight_bytes: Read once for the whole batch.
        cache_bytes: Read for each sequence.
        batch: Tokens made.
    """

    flops: float
    weight_bytes: float
    cache_bytes: float
    batch: int

    @property
    def bytes(self) -> float:
        """All bytes that have to come from memory."""
        return self.weight_bytes + self.cache_bytes

    @property
    def intensity(self) -> float:
        """FLOPs for each byte."""
        return self.flops / self.bytes

    def seconds(self, *, peak: float, bandwidth: float) -> float:
        """The least time of the step: it waits for its arithmetic or for its bytes (eq-roofline).

        Args:
            peak: FLOPs a second of the machine.
            bandwidth: Bytes a second from its memory.
        """
        return max(self.flops / peak, self.bytes / bandwidth)

    def tokens_per_second(self, *, peak: float, bandwidth: float) -> float:
        """The most tokens a second, over the whole batch."""
        return self.batch / self.seconds(peak=peak, bandwidth=bandwidth)


def decode_cost(
    shape: Grouped | Latent,
    *,
    layers: int,
    length: int,
    weights: int,
    batch: int = 1,
    bytes_per_value: float = 4,
) -> DecodeCost:
    """Cost of one decoding step of a model at a given length of its texts.

    Norms, rotations and the softmax are left out: they are few against the products.

    Args:
        shape: `Grouped(…)` or `Latent(…)`, such as `attention.shape`.
        layers: Number of attention layers.
        length: Tokens of each sequence, the new one included.
        weights: Numbers that each token is multiplied by, such as `linear_weights(model)`.
        batch: Sequences that are decoded together.
        bytes_per_value: Of weights and cache alike.
    """
    return DecodeCost(
        flops=batch * (2 * weights + layers * shape.flops(length)),
        weight_bytes=weights * bytes_per_value,
        cache_bytes=cache_bytes(shape, layers=layers, length=length, batch=batch, bytes_per_value=bytes_per_value),
        batch=batch,
    )


def linear_weights(model: nn.Module) -> int:
    """Numbers in the linear layers of a model: each new token meets each of them once. An embedding is looked up."""
    return sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
