"""What the transformers remember between calls, and where in its stream a call's tokens are.

A query at position q sees the keys at positions k with 0 <= q - k < window. A cache is built once a call, from the
states that the client gave, and shared by all layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from mimi_export.contract.geometry import Geometry
from mimi_export.contract.spec import KvLayout
from mimi_export.model.steps.rope import exact_rotation, inverse_frequencies, phase_steps, rotate, rotation

# Queries [T, B, heads, 1, D] and keys [B, groups, keys, D]: the logits are the sum of their products.
Terms: TypeAlias = Sequence[tuple[Tensor, Tensor]]


class KvCache(Protocol):
    """How one call of a layout treats keys and values; the same for every layer."""

    bias: Tensor
    """Added to attention logits `[T, B, groups, queries, keys]`: minus infinity where a query may not look."""
    fresh: Tensor
    """Bool, `[1]` or `[B, 1, 1]`: true where a stream begins with this call."""
    present: Mapping[str, Tensor]
    """States of the cache itself for the next call, by name."""

    def carried(self, state: Tensor) -> Tensor:
        """A convolution's state `[B, C, S]` as the client gave it; zeros where a stream begins."""

    def update(self, fused: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Terms, Tensor, Tensor, Tensor]:
        """Turn queries and keys to their positions and join the past.

        Args:
            fused: `[T, B, heads + 2 · groups, 1, D]`: queries, keys and values of this call.
            past_key, past_value: what the call before handed on, `[B, groups, past, D]`.

        Returns:
            Terms of the logits, values to attend to `[B, groups, keys, D]`, and the keys and values to hand to the
            next call.
        """


def kv_cache(layout: KvLayout, geometry: Geometry, past: Mapping[str, Tensor], new: int, swap: Tensor) -> KvCache:
    """The cache of a call with `new` tokens; `past` are its states by name, `swap` is `half_swap(head_dim)`."""
    length = past["key_0"].shape[2]
    if layout == "ring":
        return RingCache(geometry, past["position"], new, length, swap)
    return WindowCache(geometry, length, new)


@torch.library.custom_op("mimi_export::keep_last", mutates_args=())
def keep_last(x: Tensor, length: int) -> Tensor:
    """The last `length` entries of axis 2, or all of them where there are fewer.

    One `Slice` in ONNX. As plain indexing, `torch.export` would have to know whether there are fewer.
    """
    return x[:, :, max(0, x.shape[2] - length) :].clone()


@keep_last.register_fake
def _(x: Tensor, length: int) -> Tensor:
    kept = torch.sym_min(x.shape[2], length)  # type: ignore[no-untyped-call]
    return x.new_empty((x.shape[0], x.shape[1], kept, x.shape[3]))


@torch.library.custom_op("mimi_export::write_slots", mutates_args=())
def write_slots(ring: Tensor, places: Tensor, new: Tensor) -> Tensor:
    """`ring` `[B, groups, C, D]` with rows of D replaced: `places` int64 `[…, 3]` says where those of `new` go.

    One `ScatterND` in ONNX, which copies whole rows and works in place where past and present share a buffer.
    """
    result = ring.clone()
    result[places[..., 0], places[..., 1], places[..., 2]] = new
    return result


@write_slots.register_fake
def _(ring: Tensor, _places: Tensor, _new: Tensor) -> Tensor:
    return torch.empty_like(ring)


class WindowCache:
    """The last `window - 1` tokens, newest last; keys unrotated, turned at positions 0 … past + T - 1 each call.

    The absolute position is not known and not needed: every token that a query may see is here, in order. To turn the
    keys, `turn(k) = k·cos + swap(k)·sin`, takes five passes over all of them. Two are enough, since `sin` has opposite
    signs in the two halves:

        q · turn(k) = q · (k·cos) - swap(q) · (k·sin)

    Args:
        geometry: sizes of the model.
        past: tokens kept from the calls before.
        new: tokens of this call.
    """

    def __init__(self, geometry: Geometry, past: int, new: int) -> None:
        self._keep = geometry.sliding_window - 1
        self._groups = geometry.num_key_value_heads
        positions = torch.arange(past + new)
        frequencies = inverse_frequencies(geometry.head_dim, geometry.rope_theta)
        self._cos, self._sin = rotation(positions, frequencies)
        self._query_turn = [factor[past:, None, None, None] for factor in (self._cos, self._sin)]
        queries = positions[past:]
        age = queries[:, None] - positions[None, :]
        visible = (age >= 0) & (age < geometry.sliding_window)
        self.bias = torch.where(visible, 0.0, -math.inf)[:, None, None, None]
        self.fresh = queries[:1] == 0
        self.present: Mapping[str, Tensor] = {}

    def carried(self, state: Tensor) -> Tensor:
        """The state as it is: a client begins with zeros."""
        return state

    def update(self, fused: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Terms, Tensor, Tensor, Tensor]:
        """See `KvCache`."""
        query, key, value = _split_heads(fused, self._groups)
        key, value = (new.squeeze(3).permute(1, 2, 0, 3) for new in (key, value))
        keys = torch.cat([past_key, key], dim=2)
        values = torch.cat([past_value, value], dim=2)
        query = rotate(query, *self._query_turn)
        first, second = query.chunk(2, dim=-1)
        terms = (query, keys * self._cos), (torch.cat([-second, -first], dim=-1), keys * self._sin)
        return terms, values, keep_last(keys, self._keep), keep_last(values, self._keep)


class RingCache:
    """A ring of `capacity` slots for each row, written at `position mod capacity`; keys are turned once, when written.

    Slot j holds the newest position that is congruent to j, so its token is `(position - j) mod capacity` tokens old.
    Where a row's stream has not run as long as that, no token of it has written the slot: it is masked, so a row
    begins anew wherever its position is 0, whatever finite values its slots hold. The slots that later tokens of the
    same call have written look at least `window` tokens old, for there are `window + T - 1` slots.

    Args:
        geometry: sizes of the model.
        position: int64 `[B, 1]`, tokens of each row's stream before this call.
        new: tokens of this call.
        capacity: slots, at least `window + new - 1`.
        swap: `half_swap(head_dim)`.
    """

    def __init__(self, geometry: Geometry, position: Tensor, new: int, capacity: int, swap: Tensor) -> None:
        groups, heads = geometry.num_key_value_heads, geometry.num_attention_heads
        self._groups = groups
        positions = position.reshape(1, -1, 1, 1) + torch.arange(new).reshape(-1, 1, 1, 1)  # [T, B, 1, 1]
        tokens = positions[..., None]
        turns = (torch.arange(heads + 2 * groups) < heads + groups).to(torch.float32)[:, None, None]
        cos, sin = exact_rotation(positions, phase_steps(geometry.head_dim, geometry.rope_theta))
        self._cos, self._sin = cos * turns + (1 - turns), sin * turns  # values are not turned
        self._swap = swap
        rows = torch.arange(tokens.shape[1]).reshape(1, -1, 1, 1, 1)
        group = torch.arange(groups).reshape(1, 1, -1, 1, 1)
        row_axis, group_axis, slot_axis = torch.eye(3, dtype=torch.int64)
        slots = torch.remainder(tokens, capacity)
        self._places = slots * slot_axis + (rows * row_axis + group * group_axis)  # [T, B, groups, 1, 3]
        age = torch.remainder(tokens - torch.arange(capacity), capacity)  # [T, B, 1, 1, C]
        visible = age < torch.clamp(tokens + 1, max=geometry.sliding_window)
        self.bias = torch.where(visible, 0.0, -math.inf)
        self.fresh = (position == 0)[:, :, None]
        self.present: Mapping[str, Tensor] = {"position": position + new}
        self._running = (~self.fresh).to(torch.float32)

    def carried(self, state: Tensor) -> Tensor:
        """Zeros for rows at position 0, whatever finite values their states hold."""
        return state * self._running

    def update(self, fused: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Terms, Tensor, Tensor, Tensor]:
        """See `KvCache`."""
        turned = fused * self._cos + (fused @ self._swap) * self._sin
        query, key, value = _split_heads(turned, self._groups)
        keys = write_slots(past_key, self._places, key)
        values = write_slots(past_value, self._places, value)
        return [(query, keys)], values, keys, values


class SlotCache(RingCache):
    """A ring of exactly `window` slots, whose place in the stream is given and no state.

    A call's second token would overwrite what its first one still sees, so the call's own tokens are attended to beside
    the past and written afterwards. All rows are as old as each other.

    Args:
        geometry: sizes of the model.
        rows: rows of the call.
        slots: int64 `[T]`, where this call's tokens go: their positions modulo the window.
        positions: int64 `[T]`, tokens of the stream before each.
        swap: `half_swap(head_dim)`.
    """

    def __init__(self, geometry: Geometry, rows: int, slots: Tensor, positions: Tensor, swap: Tensor) -> None:
        new, window = len(positions), geometry.sliding_window
        super().__init__(geometry, positions[:1, None].expand(rows, 1), new, window, swap)
        groups = torch.arange(geometry.num_key_value_heads)
        grid = torch.meshgrid(slots, torch.arange(rows), groups, indexing="ij")
        self._places = torch.stack([grid[1], grid[2], grid[0]], dim=-1).unsqueeze(3)
        before = torch.remainder(slots[0] - 1 - torch.arange(window), window) + 1  # tokens since each slot's
        steps = torch.arange(new)[:, None]
        past = (before <= positions[0]) & (before + steps < window)
        own = (steps >= torch.arange(new)) & (steps - torch.arange(new) < window)
        self.bias = torch.where(torch.cat([past, own], dim=1), 0.0, -math.inf)[:, None, None, None]
        self.present: Mapping[str, Tensor] = {}

    def carried(self, state: Tensor) -> Tensor:
        """The state as it is: a client begins with zeros."""
        return state

    def update(self, fused: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Terms, Tensor, Tensor, Tensor]:
        """See `KvCache`."""
        query, key, value = _split_heads(fused * self._cos + (fused @ self._swap) * self._sin, self._groups)
        keys, values = (
            torch.cat([past, new.squeeze(3).permute(1, 2, 0, 3)], dim=2)
            for past, new in ((past_key, key), (past_value, value))
        )
        written = (write_slots(past, self._places, new) for past, new in ((past_key, key), (past_value, value)))
        return [(query, keys)], values, *written


def _split_heads(fused: Tensor, groups: int) -> tuple[Tensor, ...]:
    """Queries, keys and values of `[T, B, heads + 2 · groups, 1, D]`."""
    return torch.split(fused, [fused.shape[2] - 2 * groups, groups, groups], dim=2)
