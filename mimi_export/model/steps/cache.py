"""What the transformers remember between calls, and where in its stream a call's tokens are.

A query at position q sees the keys at positions k with 0 <= q - k < window. A cache is built once a call, from the
states that the client gave, and shared by all layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mimi_export.contract.geometry import Geometry
from mimi_export.contract.spec import POSITION_BASE
from mimi_export.model.steps.rope import exact_rotation, phase_steps


class KvCache:
    """How one call of a layout treats keys and values; the same for every layer.

    Attributes:
        bias: added to attention logits `[T, B, groups, queries, keys]`: minus infinity where a query may not look.
        fresh: bool, `[B, 1, 1]`: true where a stream begins with this call.
        present: states of the cache itself for the next call, by name.

    Args:
        geometry: sizes of the model.
        position: int64 `[B, 1]`, tokens of each row's stream before this call.
        new: tokens of this call.
        swap: `half_swap(head_dim)`.
    """

    bias: Tensor

    def __init__(self, geometry: Geometry, position: Tensor, new: int, swap: Tensor) -> None:
        groups, heads = geometry.num_key_value_heads, geometry.num_attention_heads
        positions = position.reshape(1, -1, 1, 1) + torch.arange(new).reshape(-1, 1, 1, 1)  # [T, B, 1, 1]
        turns = (torch.arange(heads + 2 * groups) < heads + groups).to(torch.float32)[:, None, None]
        cos, sin = exact_rotation(positions, phase_steps(geometry.head_dim, geometry.rope_theta))
        self._cos, self._sin = cos * turns + (1 - turns), sin * turns  # values are not turned
        self._swap, self._groups, self._tokens = swap, groups, positions[..., None]
        self.fresh = (position == 0)[:, :, None]
        self.present: Mapping[str, Tensor] = {}

    def carried(self, state: Tensor) -> Tensor:
        """A convolution's state `[B, C, S]` with zeros where a stream begins, as clients of a window give it anyway."""
        return state

    def opened(self, values: Tensor) -> Tensor:
        """The first layer's values as a client gave them, without what travels in them beside values."""
        return values

    def closed(self, values: Tensor) -> Tensor:
        """The first layer's values for the next call, with what travels in them beside values."""
        return values

    def update(self, fused: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, ...]:
        """Turn queries and keys to their positions and join the past.

        Args:
            fused: `[T, B, heads + 2 · groups, 1, D]`: queries, keys and values of this call.
            past_key, past_value: what the call before handed on, `[B, groups, past, D]`.

        Returns:
            Queries `[T, B, heads, 1, D]`, keys and values to attend to `[B, groups, keys, D]`, and the keys and values
            to hand to the next call.
        """
        raise NotImplementedError(f"{type(self).__name__} is no layout by itself")

    def _turned(self, fused: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of `[T, B, heads + 2 · groups, 1, D]`, turned."""
        turned = fused * self._cos + (fused @ self._swap) * self._sin
        return torch.split(turned, [fused.shape[2] - 2 * self._groups, self._groups, self._groups], dim=2)


@torch.library.custom_op("mimi_export::last_first", mutates_args=())
def last_first(x: Tensor) -> Tensor:
    """The last entry of axis 2 before all others; nothing of nothing.

    As plain indexing, `torch.export` would have to know whether there is one.
    """
    return torch.cat([x[:, :, -1:], x[:, :, :-1]], dim=2)


@last_first.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


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


class RingCache(KvCache):
    """A ring of `capacity` slots for each row, written at `position mod capacity`; keys are turned once, when written.

    Slot j holds the newest position that is congruent to j, so its token is `(position - j) mod capacity` tokens old.
    Where a row's stream has not run as long as that, no token of it has written the slot: it is masked, so a row
    begins anew wherever its position is 0, whatever finite values its slots hold. The slots that later tokens of the
    same call have written look at least `window` tokens old, for there are `window + T - 1` slots.

    Args: those of `KvCache`, and
        capacity: slots, at least `window + new - 1`.
    """

    def __init__(self, geometry: Geometry, position: Tensor, new: int, capacity: int, swap: Tensor) -> None:
        super().__init__(geometry, position, new, swap)
        tokens = self._tokens
        rows = torch.arange(tokens.shape[1]).reshape(1, -1, 1, 1, 1)
        group = torch.arange(self._groups).reshape(1, 1, -1, 1, 1)
        row_axis, group_axis, slot_axis = torch.eye(3, dtype=torch.int64)
        slots = torch.remainder(tokens, capacity)
        self._places = slots * slot_axis + (rows * row_axis + group * group_axis)  # [T, B, groups, 1, 3]
        age = torch.remainder(tokens - torch.arange(capacity), capacity)  # [T, B, 1, 1, C]
        self.bias = torch.where(age < torch.clamp(tokens + 1, max=geometry.sliding_window), 0.0, -math.inf)
        self.present = {"position": position + new}
        self._running = (~self.fresh).to(torch.float32)

    def carried(self, state: Tensor) -> Tensor:
        """Zeros for rows at position 0, whatever finite values their states hold."""
        return state * self._running

    def update(self, fused: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, ...]:
        """See `KvCache`."""
        query, key, value = self._turned(fused)
        keys = write_slots(past_key, self._places, key)
        values = write_slots(past_value, self._places, value)
        return query, keys, values, keys, values


class WindowCache(KvCache):
    """The last `window` tokens, newest last; keys are turned once, when they come.

    A client begins with none, and from the first call on has as many as the window is long, of which those that no
    token of its stream has written are masked. A query sees `window - 1` past tokens, so the oldest has room for
    the position: the tokens of each row's stream before this call. It travels as the last one of the first layer's
    values (`spec.position_digits`), which no client cuts off.

    Args: those of `KvCache`, and instead of `position`
        past: what the client gave as the first layer's values, `[B, groups, 0 … window, D]`.
    """

    def __init__(self, geometry: Geometry, past: Tensor, new: int, swap: Tensor) -> None:
        window, (rows, groups, kept, dim) = geometry.sliding_window, past.shape
        nothing = past.new_zeros(rows, 1, 1, dim)
        digits = torch.cat([nothing, past[:, :1]], dim=2)[:, 0, -1, :2] * POSITION_BASE
        low, high = torch.split(digits.to(torch.int64), 1, dim=1)
        position = torch.clamp(low + high * POSITION_BASE, min=0)
        super().__init__(geometry, position, new, swap)
        self._window, self._fill = window, past.new_zeros(rows, groups, window - kept, dim)
        age = window + torch.arange(new).reshape(-1, 1, 1, 1, 1) - torch.arange(window + new)  # [T, 1, 1, 1, keys]
        self.bias = torch.where((age >= 0) & (age < torch.clamp(self._tokens + 1, max=window)), 0.0, -math.inf)
        after = position + new
        digits = torch.cat([torch.remainder(after, POSITION_BASE), after // POSITION_BASE], dim=1) / POSITION_BASE
        self._mark = torch.nn.functional.pad(digits, (0, dim - 2))[:, None, None].expand(-1, groups, -1, -1)

    def opened(self, values: Tensor) -> Tensor:
        """The position goes to the place of the oldest value, which no query of this call sees."""
        rolled: Tensor = last_first(values)
        return rolled

    def closed(self, values: Tensor) -> Tensor:
        """The position comes to the end, and the oldest value goes."""
        return torch.cat([values[:, :, 1:], self._mark], dim=2)

    def update(self, fused: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, ...]:
        """See `KvCache`."""
        query, *new = self._turned(fused)
        keys, values = (
            torch.cat([self._fill, past, one.squeeze(3).permute(1, 2, 0, 3)], dim=2)
            for past, one in zip((past_key, past_value), new, strict=True)
        )
        return query, keys, values, keys[:, :, -self._window :], values[:, :, -self._window :]


class SlotCache(KvCache):
    """A ring of exactly `window` slots, whose place in the stream is given and no state.

    A call's second token would overwrite what its first one still sees, so the call's own tokens are attended to beside
    the past and written afterwards. All rows are as old as each other.

    Args: `geometry` and `swap` of `KvCache`, and
        rows: rows of the call.
        slots: int64 `[T]`, where this call's tokens go: their positions modulo the window.
        positions: int64 `[T]`, tokens of the stream before each.
    """

    def __init__(self, geometry: Geometry, rows: int, slots: Tensor, positions: Tensor, swap: Tensor) -> None:
        new, window = len(positions), geometry.sliding_window
        super().__init__(geometry, positions[:1, None].expand(rows, 1), new, swap)
        groups = torch.arange(geometry.num_key_value_heads)
        grid = torch.meshgrid(slots, torch.arange(rows), groups, indexing="ij")
        self._places = torch.stack([grid[1], grid[2], grid[0]], dim=-1).unsqueeze(3)
        before = torch.remainder(slots[0] - 1 - torch.arange(window), window) + 1  # tokens since each slot's
        steps = torch.arange(new)[:, None]
        past = (before <= positions[0]) & (before + steps < window)
        own = (steps >= torch.arange(new)) & (steps - torch.arange(new) < window)
        self.bias = torch.where(torch.cat([past, own], dim=1), 0.0, -math.inf)[:, None, None, None]

    def update(self, fused: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, ...]:
        """See `KvCache`."""
        query, key, value = self._turned(fused)
        keys, values = (
            torch.cat([past, new.squeeze(3).permute(1, 2, 0, 3)], dim=2)
            for past, new in ((past_key, key), (past_value, value))
        )
        written = (write_slots(past, self._places, new) for past, new in ((past_key, key), (past_value, value)))
        return query, keys, values, *written
