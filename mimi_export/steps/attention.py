"""Causal self-attention over a sliding window, with keys and values given and returned.

A query at position q sees the keys at positions k with 0 <= q - k < window. What is kept between calls and how the
positions are known is a *cache* object, built once a call and shared by all layers.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from mimi_export.geometry import Geometry
from mimi_export.steps.product import product, product_weight
from mimi_export.steps.rope import exact_rotation, inverse_frequencies, phase_steps, rotate, rotation

FEW_QUERIES = 4


class CacheStep(Protocol):
    """How one call of a layout treats keys and values; the same for every layer."""

    bias: Tensor
    """Added to attention logits `[B, heads, T, keys]`: minus infinity where a query may not look."""

    def update(
        self, query_key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Turn queries and keys to their positions and join the past.

        Args:
            query_key: `[B, heads + key/value heads, T, D]`, queries and keys of this call.
            value: `[B, key/value heads, T, D]` of this call.
            past_key, past_value: what the call before handed on.

        Returns:
            Queries, the keys and values to attend to, and the keys and values to hand to the next call.
        """


@torch.library.custom_op("mimi_export::keep_last", mutates_args=())
def keep_last(x: Tensor, length: int) -> Tensor:
    """The last `length` entries of axis 2, or all of them where there are fewer.

    One `Slice` in ONNX. As plain indexing, `torch.export` would have to know whether there are fewer.
    """
    return x[:, :, max(0, x.shape[2] - length) :].clone()


@keep_last.register_fake
def _(x: Tensor, length: int) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], torch.sym_min(x.shape[2], length), x.shape[3]))


@torch.library.custom_op("mimi_export::write_slots", mutates_args=())
def write_slots(ring: Tensor, places: Tensor, new: Tensor) -> Tensor:
    """`ring` `[B, heads, C, D]` with rows of D replaced: `places` int64 `[B, heads, T, 3]` says where `new` goes.

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

    The absolute position is not known and not needed: every token that a query may see is here, in order.

    Args:
        geometry: sizes of the model.
        past: tokens kept from the calls before.
        new: tokens of this call.
    """

    def __init__(self, geometry: Geometry, past: int, new: int) -> None:
        self._keep = geometry.sliding_window - 1
        positions = torch.arange(past + new)
        frequencies = inverse_frequencies(geometry.head_dim, geometry.rope_theta)
        self._cos, self._sin = rotation(positions, frequencies)
        self._query_cos, self._query_sin = self._cos[past:], self._sin[past:]
        queries = positions[past:]
        age = queries[:, None] - positions[None, :]
        visible = (age >= 0) & (age < geometry.sliding_window)
        self.bias = torch.where(visible, 0.0, -math.inf)
        self.fresh = queries[:1] == 0

    def update(
        self, query_key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """See `CacheStep`."""
        groups = value.shape[1]
        query, key = query_key.split([query_key.shape[1] - groups, groups], dim=1)
        keys = torch.cat([past_key, key], dim=2)
        values = torch.cat([past_value, value], dim=2)
        query = rotate(query, self._query_cos, self._query_sin)
        turned = rotate(keys, self._cos, self._sin)
        return query, turned, values, keep_last(keys, self._keep), keep_last(values, self._keep)


class RingCache:
    """A ring of `capacity` slots for each row, written at `position mod capacity`; keys are turned once, when written.

    Slot j holds the newest position that is congruent to j. A slot that no token of this stream has written would
    hold a negative position: it is masked, so a row begins anew wherever its position is 0, whatever finite values
    its slots hold.

    Args:
        geometry: sizes of the model.
        position: int64 `[B, 1]`, tokens of each row's stream before this call.
        new: tokens of this call.
        capacity: slots, at least `window + new - 1`.
    """

    def __init__(self, geometry: Geometry, position: Tensor, new: int, capacity: int) -> None:
        tokens = position + torch.arange(new)  # [B, T]
        steps = phase_steps(geometry.head_dim, geometry.rope_theta)
        cos, sin = exact_rotation(tokens, steps)
        self._cos, self._sin = cos[:, None], sin[:, None]
        heads = geometry.num_key_value_heads
        slots = torch.remainder(tokens, capacity)[:, None].expand(-1, heads, -1)
        rows = torch.arange(tokens.shape[0])[:, None, None].expand(-1, heads, new)
        groups = torch.arange(heads)[None, :, None].expand(tokens.shape[0], -1, new)
        self._places = torch.stack([rows, groups, slots], dim=-1)
        last = tokens[:, -1:]
        held = last - torch.remainder(last - torch.arange(capacity), capacity)  # [B, C]
        age = tokens[:, :, None] - held[:, None, :]
        visible = (age >= 0) & (age < geometry.sliding_window) & (held >= 0)[:, None, :]
        self.bias = torch.where(visible, 0.0, -math.inf)[:, None]
        self.fresh = (position == 0)[:, :, None]
        self.next_position = position + new

    def update(
        self, query_key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """See `CacheStep`."""
        groups = value.shape[1]
        turned = rotate(query_key, self._cos, self._sin)
        query, key = turned.split([query_key.shape[1] - groups, groups], dim=1)
        keys = write_slots(past_key, self._places, key)
        values = write_slots(past_value, self._places, value)
        return query, keys, values, keys, values


class Attention(nn.Module):
    """Multi-head attention with grouped key/value heads; query, key and value projections are one product.

    Args:
        geometry: sizes of the model.
        projections: weights `[out, in]` of query, key, value and output, as upstream stores them; kept as `[in, out]`,
            the way a product reads them, so that no exporter needs to transpose (and rename) them.
        biases: their biases, or `None` each.
    """

    def __init__(self, geometry: Geometry, projections: list[Tensor], biases: list[Tensor | None]) -> None:
        super().__init__()
        self.geometry = geometry
        scale = 1 / math.sqrt(geometry.head_dim)  # a power of two for head_dim 64: the fold is exact there
        query, key, value, out = projections
        self.qkv = product_weight(torch.cat([query * scale, key, value]))
        self.out = product_weight(out)
        self.qkv_bias = self.out_bias = None
        if biases[0] is not None and biases[1] is not None and biases[2] is not None and biases[3] is not None:
            fused = torch.cat([biases[0] * scale, biases[1], biases[2]])
            self.qkv_bias = nn.Parameter(fused.detach(), requires_grad=False)
            self.out_bias = nn.Parameter(biases[3].detach().clone(), requires_grad=False)

    def forward(
        self, x: Tensor, past_key: Tensor, past_value: Tensor, cache: CacheStep
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend.

        Args:
            x: `[B, T, hidden]`.
            past_key, past_value: `[B, key/value heads, past, D]`.
            cache: this call's positions.

        Returns:
            `[B, T, hidden]` and the keys and values for the next call.
        """
        g = self.geometry
        groups, dim = g.num_key_value_heads, g.head_dim
        tokens = x.shape[1]
        fused = product(x, self.qkv, self.qkv_bias)
        fused = fused.reshape(-1, tokens, g.num_attention_heads + 2 * groups, dim).transpose(1, 2)
        query_key, value = fused.split([g.num_attention_heads + groups, groups], dim=1)
        query, keys, values, present_key, present_value = cache.update(query_key, value, past_key, past_value)
        if groups != g.num_attention_heads:
            keys = keys.repeat_interleave(g.num_attention_heads // groups, dim=1)
            values = values.repeat_interleave(g.num_attention_heads // groups, dim=1)
        heads = attend(query, keys, values, cache.bias)
        heads = heads.transpose(1, 2).reshape(-1, tokens, g.num_attention_heads * dim)
        return product(heads, self.out, self.out_bias), present_key, present_value


def attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention of `[B, heads, T, D]` queries over `[B, heads, keys, D]`; the scale is in the queries.

    A known small T makes every query a row of its own: a product of one row reads keys and values where they lie,
    one of two rows would first pack a copy of them.
    """
    if isinstance(query.shape[2], int) and query.shape[2] <= FEW_QUERIES:
        query, keys, values = query.unsqueeze(3), keys.unsqueeze(2), values.unsqueeze(2)
        weights = torch.softmax(query @ keys.transpose(3, 4) + bias.unsqueeze(-2), dim=-1)
        return (weights @ values).squeeze(3)
    return torch.softmax(query @ keys.transpose(2, 3) + bias, dim=-1) @ values
