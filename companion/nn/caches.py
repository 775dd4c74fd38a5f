r"""Caches: what a decoder keeps of the tokens that it has read, so that a new token costs one row instead of all.

    bytes = 2 · layers · kv_heads · d_head · length · batch · bytes per value    keys and values      (eq-cache-bytes)
    bytes = layers · (d_latent + d_rope) · length · batch · bytes per value      latents             (eq-latent-cache)

A causal token never sees a later one, so the key and the value of a token, once made, do not change. A query is used
once, by its own token, and is not kept. There is one cache for each layer; `length` counts the tokens that went in,
which is the position of the next one. Memory is allocated once and written in place; nothing is differentiated.

- `KeyValueCache`: a row for each token, up to its capacity;
- `WindowCache`: the last `window` tokens in a ring, however long the text;
- `LatentCache`: one vector a token, from which all heads make their keys and values;
- `PagedCache`: blocks of a shared pool, found through a block table, taken only when needed.

Sources: Shazeer 2019 (the cost of keys and values), Kwon et al. 2023, section 4 (paging), Jiang et al. 2023, section 2
(the rolling buffer), DeepSeek-AI 2024, section 2.1 (latents).
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.numerics._checks import is_whole

__all__ = ["BlockPool", "Cache", "KeyValueCache", "LatentCache", "PagedCache", "WindowCache"]

New = Float[Tensor, "batch kv_heads new d_head"]
Stored = Float[Tensor, "batch kv_heads length d_head"]


@runtime_checkable
class Cache(Protocol):
    """What attention asks of a cache of keys and values."""

    length: int

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new tokens; returns the keys and values that these tokens may look at."""

    def positions(self) -> Tensor:
        """The positions of what the last `append` returned."""


class KeyValueCache:
    """Keys and values of all tokens, allocated once for `length` tokens.

    Args:
        batch: Sequences that are decoded together.
        kv_heads: Heads of keys and of values.
        length: Tokens of each sequence that fit.
        d_head: Width of a key and of a value.
        dtype: Of the numbers; torch's default unless given.
        device: Where they lie.
    """

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        length: int,
        d_head: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        _check_sizes("KeyValueCache", batch=batch, kv_heads=kv_heads, length=length, d_head=d_head)
        self.keys = torch.zeros(batch, kv_heads, length, d_head, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.capacity, self.length = length, 0

    def append(self, k: New, v: New) -> tuple[Stored, Stored]:
        """Stores the keys and values of new tokens behind those that are there.

        Args:
            k: Keys, (batch, kv_heads, new, d_head), already rotated.
            v: Values, of the same shape.

        Returns:
            Keys and values of all tokens so far, (batch, kv_heads, length, d_head): views, not copies.

        Raises:
            ValueError: If the shapes do not fit, or more tokens come than there is room for.
        """
        start, new = self.length, k.shape[2]
        _check_fit("KeyValueCache", self.keys, k, v)
        _check_room("KeyValueCache", start, new, self.capacity)
        self.keys.narrow(2, start, new).copy_(k)
        self.values.narrow(2, start, new).copy_(v)
        self.length = start + new
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)

    def positions(self) -> Int[Tensor, " length"]:
        """0, 1, …, length − 1."""
        return torch.arange(self.length, device=self.keys.device)

    def rewind(self, length: int) -> None:
        """Forgets all but the first `length` tokens."""
        _check_rewind("KeyValueCache", length, self.length)
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the cache holds, used or not."""
        return _storage(self.keys, self.values)


class LatentCache:
    """One vector for each token, shared by all heads: its latent and its rotary key, side by side.

    Args:
        batch: Sequences that are decoded together.
        length: Tokens of each sequence that fit.
        width: d_latent + d_rope.
        dtype: Of the numbers; torch's default unless given.
        device: Where they lie.
    """

    def __init__(
        self,
        batch: int,
        length: int,
        width: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        _check_sizes("LatentCache", batch=batch, length=length, width=width)
        self.rows = torch.zeros(batch, length, width, dtype=dtype, device=device)
        self.capacity, self.length = length, 0

    def append(self, rows: Float[Tensor, "batch new width"]) -> Float[Tensor, "batch length width"]:
        """Stores the rows of new tokens, (batch, new, width); returns those of all tokens so far, a view.

        Raises:
            ValueError: If the shapes do not fit, or more tokens come than there is room for.
        """
        start, new = self.length, rows.shape[1]
        if rows.shape[0] != self.rows.shape[0] or rows.shape[2] != self.rows.shape[2]:
            batch, _, width = self.rows.shape
            raise ValueError(
                f"LatentCache.append: received rows {tuple(rows.shape)}; rule: (batch, new, width) = "
                f"({batch}, new, {width})"
            )
        _check_room("LatentCache", start, new, self.capacity)
        self.rows.narrow(1, start, new).copy_(rows)
        self.length = start + new
        return self.rows.narrow(1, 0, self.length)

    def positions(self) -> Int[Tensor, " length"]:
        """0, 1, …, length − 1."""
        return torch.arange(self.length, device=self.rows.device)

    def rewind(self, length: int) -> None:
        """Forgets all but the first `length` tokens."""
        _check_rewind("LatentCache", length, self.length)
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the cache holds, used or not."""
        return _storage(self.rows)


class WindowCache:
    """Keys and values of the last `window` tokens: the token at position p lies in slot p mod window.

    Its memory does not grow with the text. A query sees itself and the window − 1 tokens before it.

    Args:
        batch: Sequences that are decoded together.
        kv_heads: Heads of keys and of values.
        window: Tokens that are kept.
        d_head: Width of a key and of a value.
        dtype: Of the numbers; torch's default unless given.
        device: Where they lie.
    """

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        window: int,
        d_head: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        _check_sizes("WindowCache", batch=batch, kv_heads=kv_heads, window=window, d_head=d_head)
        self.keys = torch.zeros(batch, kv_heads, window, d_head, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.window, self.length = window, 0
        self._first, self._in_slots = 0, True  # what the last append returned: from which position on, in which order

    def append(self, k: New, v: New) -> tuple[Stored, Stored]:
        """Stores new tokens over the oldest ones; returns what the new tokens may look at.

        Several new tokens at once need more than the window: the first of them still sees what the last overwrites.

        Args:
            k: Keys, (batch, kv_heads, new, d_head), already rotated.
            v: Values, of the same shape.

        Returns:
            Keys and values of up to window − 1 earlier tokens and of the new ones.
        """
        _check_fit("WindowCache", self.keys, k, v)
        return self._append_one(k, v) if k.shape[2] == 1 else self._append_many(k, v)

    def _append_one(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The token takes the slot of the one that it no longer sees. Attention does not mind the order."""
        slot = self.length % self.window
        self.keys.narrow(2, slot, 1).copy_(k)
        self.values.narrow(2, slot, 1).copy_(v)
        self.length += 1
        filled = min(self.length, self.window)
        self._first, self._in_slots = self.length - filled, True
        return self.keys.narrow(2, 0, filled), self.values.narrow(2, 0, filled)

    def _append_many(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        new, end = k.shape[2], self.length + k.shape[2]
        earlier = torch.arange(max(0, self.length - self.window + 1), self.length, device=k.device)
        slots = earlier % self.window
        keys = torch.cat([self.keys.index_select(2, slots), k], dim=2)
        values = torch.cat([self.values.index_select(2, slots), v], dim=2)
        kept = torch.arange(max(self.length, end - self.window), end, device=k.device)
        slots, last = kept % self.window, slice(new - len(kept), new)
        self.keys.index_copy_(2, slots, k[:, :, last].to(self.keys.dtype))
        self.values.index_copy_(2, slots, v[:, :, last].to(self.values.dtype))
        self._first, self._in_slots = self.length - len(earlier), False
        self.length = end
        return keys, values

    def positions(self) -> Int[Tensor, " length"]:
        """The positions of what the last `append` returned."""
        p = torch.arange(self._first, self.length, device=self.keys.device)
        return p[(p % self.window).argsort()] if self._in_slots else p

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the cache holds, used or not."""
        return _storage(self.keys, self.values)


class BlockPool:
    """Memory for keys and values in blocks of a few tokens, shared by many sequences.

    Args:
        blocks: Number of blocks.
        kv_heads: Heads of keys and of values.
        d_head: Width of a key and of a value.
        block: Tokens of a block.
        dtype: Of the numbers; torch's default unless given.
        device: Where they lie.
    """

    def __init__(
        self,
        blocks: int,
        kv_heads: int,
        d_head: int,
        *,
        block: int = 16,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        _check_sizes("BlockPool", blocks=blocks, kv_heads=kv_heads, d_head=d_head, block=block)
        self.keys = torch.zeros(blocks, block, kv_heads, d_head, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.block = block
        self._users = [0] * blocks  # sequences that hold each block
        self._free = list(range(blocks))[::-1]

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes of memory of the whole pool."""
        return _storage(self.keys, self.values)

    @property
    def nbytes_held(self) -> int:
        """Bytes of the blocks that some sequence holds; a shared block counts once."""
        return self.nbytes // len(self._users) * (len(self._users) - self.free)

    def take(self) -> int:
        """The index of a free block, which now has one user."""
        if not self._free:
            raise ValueError(
                f"BlockPool.take: received no free block among {len(self._users)}; rule: release some first"
            )
        index = self._free.pop()
        self._users[index] = 1
        return index

    def share(self, index: int) -> None:
        """One more sequence holds this block."""
        self._users[index] += 1

    def is_shared(self, index: int) -> bool:
        """Whether more than one sequence holds this block."""
        return self._users[index] > 1

    def copy(self, index: int) -> int:
        """A block of the same content for one of the users of a shared block, who gives up the shared one."""
        mine = self.take()
        self.keys[mine], self.values[mine] = self.keys[index], self.values[index]
        self.give_back(index)
        return mine

    def give_back(self, index: int) -> None:
        """One sequence less holds this block; without any it is free."""
        self._users[index] -= 1
        if not self._users[index]:
            self._free.append(index)


class PagedCache:
    """Keys and values in blocks of a pool: position p lies in block `table[p // block]`, at p mod block.

    A sequence holds as many blocks as it has begun to fill, wherever they lie: what it wastes is less than a block,
    not the room that was reserved for a longest text. This one reads by gathering the blocks into one tensor, which
    copies them; the kernels of serving systems read through the table in place.

    Args:
        pool: Where the blocks come from.
        batch: Sequences that are decoded together, each with its own blocks.
    """

    def __init__(self, pool: BlockPool, batch: int = 1):
        _check_sizes("PagedCache", batch=batch)
        self.pool, self.length = pool, 0
        self._table: list[list[int]] = [[] for _ in range(batch)]

    @property
    def table(self) -> Int[Tensor, "batch blocks"]:
        """The indices of the blocks of each sequence, in the order of its tokens."""
        return torch.tensor(self._table, dtype=torch.long, device=self.pool.keys.device)

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks in the table, those that are shared with another cache included."""
        return sum(map(len, self._table)) * (self.pool.nbytes // len(self.pool.keys))

    def append(self, k: New, v: New) -> tuple[Stored, Stored]:
        """Stores new tokens, with new blocks where the last is full; returns all so far.

        Args:
            k: Keys, (batch, kv_heads, new, d_head), already rotated.
            v: Values, of the same shape.

        Returns:
            Keys and values of all tokens so far, (batch, kv_heads, length, d_head): copies, gathered from the blocks.

        Raises:
            ValueError: If the shapes do not fit, or the pool has too few blocks; then nothing is stored.
        """
        like = self.pool.keys.new_empty(len(self._table), self.pool.keys.shape[2], 0, self.pool.keys.shape[3])
        _check_fit("PagedCache", like, k, v)
        start, end = self.length, self.length + k.shape[2]
        self._make_room(start, end)
        table, block = self.table, self.pool.block
        p = torch.arange(start, end, device=table.device)
        at = table[:, p // block], p % block
        self.pool.keys[at] = k.transpose(1, 2).to(self.pool.keys.dtype)
        self.pool.values[at] = v.transpose(1, 2).to(self.pool.values.dtype)
        self.length = end
        return self._gather(self.pool.keys, table), self._gather(self.pool.values, table)

    def _gather(self, blocks: Tensor, table: Tensor) -> Tensor:
        return blocks[table].flatten(1, 2)[:, : self.length].transpose(1, 2)

    def _make_room(self, start: int, end: int) -> None:
        """Blocks for the positions start … end − 1: the last one for us alone if we write into it, then new ones."""
        held, block = len(self._table[0]), self.pool.block
        shared = [row for row in self._table if start % block and start < end and self.pool.is_shared(row[-1])]
        new = -(-end // block) - held
        if len(shared) + new * len(self._table) > self.pool.free:
            raise ValueError(
                f"PagedCache.append: received {end - start} tokens, which need "
                f"{len(shared) + new * len(self._table)} blocks; rule: the pool has {self.pool.free} free ones"
            )
        for row in shared:
            row[-1] = self.pool.copy(row[-1])
        for row in self._table:
            row.extend(self.pool.take() for _ in range(new))

    def positions(self) -> Int[Tensor, " length"]:
        """0, 1, …, length − 1."""
        return torch.arange(self.length, device=self.pool.keys.device)

    def fork(self) -> "PagedCache":
        """Another continuation of the same text, in the same blocks; one that is written to is copied first."""
        other = PagedCache(self.pool, batch=len(self._table))
        other.length, other._table = self.length, [list(row) for row in self._table]
        for row in other._table:
            for index in row:
                self.pool.share(index)
        return other

    def release(self) -> None:
        """Gives all blocks back and forgets all tokens."""
        for row in self._table:
            for index in row:
                self.pool.give_back(index)
        self._table, self.length = [[] for _ in self._table], 0


# --- Checks -----------------------------------------------------------------------------------------------------------


def _check_sizes(operation: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if not is_whole(size, least=1):
            raise ValueError(f"{operation}: received {name}={size}; rule: a whole number, at least 1")


def _check_fit(operation: str, store: Tensor, k: Tensor, v: Tensor) -> None:
    batch, kv_heads, _, d_head = store.shape
    if k.shape != v.shape or k.shape[:2] != store.shape[:2] or k.shape[3] != d_head:
        raise ValueError(
            f"{operation}.append: received k {tuple(k.shape)} and v {tuple(v.shape)}; rule: both "
            f"(batch, kv_heads, new, d_head) = ({batch}, {kv_heads}, new, {d_head})"
        )


def _check_room(operation: str, start: int, new: int, capacity: int) -> None:
    if start + new > capacity:
        raise ValueError(
            f"{operation}.append: received {new} tokens after {start}; rule: {capacity} fit in all; make a longer cache"
        )


def _check_rewind(operation: str, length: int, stored: int) -> None:
    if not is_whole(length, least=0) or length > stored:
        raise ValueError(f"{operation}.rewind: received length={length}; rule: from 0 to the {stored} tokens stored")


def _storage(*tensors: Tensor) -> int:
    return sum(x.untyped_storage().nbytes() for x in tensors)
