"""Causal self-attention over a sliding window, with keys and values given and returned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mimi_export.contract.geometry import Geometry
from mimi_export.model.steps.cache import KvCache
from mimi_export.model.steps.matmul import fixed, matmul, matmul_weight

FEW_TOKENS = 4


class Attention(nn.Module):
    """Multi-head attention with grouped key/value heads; query, key and value projections are one matmul.

    Args:
        geometry: sizes of the model.
        projections: weights `[out, in]` of query, key, value and output, as upstream stores them; kept as `[in, out]`,
            the way a matmul reads them, so that no exporter needs to transpose (and rename) them.
        biases: their biases, if they have any.
    """

    def __init__(self, geometry: Geometry, projections: list[Tensor], biases: list[Tensor] | None) -> None:
        super().__init__()
        self.geometry = geometry
        scale = 1 / math.sqrt(geometry.head_dim)  # a power of two for head_dim 64: the fold is exact there
        query, *others, out = projections
        self.qkv = matmul_weight(torch.cat([query * scale, *others]))
        self.out = matmul_weight(out)
        self.qkv_bias = self.out_bias = None
        if biases is not None:
            query, *others, out = biases
            self.qkv_bias, self.out_bias = fixed(torch.cat([query * scale, *others])), fixed(out)

    def forward(self, x: Tensor, past_key: Tensor, past_value: Tensor, cache: KvCache) -> tuple[Tensor, Tensor, Tensor]:
        """Attend.

        Args:
            x: `[T, B, hidden]`, time first: a query of each token then meets the keys of its row where they lie.
            past_key, past_value: `[B, groups, past, D]`.
            cache: this call's positions.

        Returns:
            `[T, B, hidden]` and the keys and values for the next call.
        """
        g = self.geometry
        groups, heads, dim = g.num_key_value_heads, g.num_attention_heads, g.head_dim
        tokens = x.shape[0]
        fused = matmul(x, self.qkv, self.qkv_bias).reshape(tokens, -1, heads + 2 * groups, 1, dim)
        query, keys, values, present_key, present_value = cache.update(fused, past_key, past_value)
        if heads != groups:
            query = query.reshape(tokens, -1, groups, heads // groups, dim)
        y = attend(query, keys, values, cache.bias).reshape(tokens, -1, heads * dim)
        return matmul(y, self.out, self.out_bias), present_key, present_value


def attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention of queries `[T, B, groups, queries, D]`; gives their shape. The scale is in the queries.

    The queries of a group share its keys `[B, groups, keys, D]`. Tokens of a known small number are taken one by one:
    their matmuls read keys and values where they lie, one of many rows would first pack a copy of them.
    """
    tokens, _, _, queries, _ = query.shape
    few = isinstance(tokens, int) and tokens <= FEW_TOKENS
    if not few:
        query = query.permute(1, 2, 0, 3, 4).flatten(2, 3)
        bias = bias.expand(-1, -1, -1, queries, -1).permute(1, 2, 0, 3, 4).flatten(2, 3)
    y = torch.softmax(query @ keys.transpose(2, 3) + bias, dim=-1) @ values
    return y if few else torch.unflatten(y, 2, [tokens, queries]).permute(2, 0, 1, 3, 4)
