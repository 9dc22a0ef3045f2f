"""Matmuls of activations and weights, with the weights stored the way a matmul reads them: `[in, out]`.

Upstream stores `[out, in]` and transposes in every call. Stored transposed, a weight keeps its name through the
export and stands in the graph once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def fixed(values: Tensor) -> nn.Parameter:
    """A parameter with a copy of `values` that no training changes."""
    return nn.Parameter(values.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)


def matmul_weight(weight: Tensor) -> nn.Parameter:
    """A weight for `matmul`, from upstream's `[out, in]`."""
    return fixed(weight.t())


def matmul(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`[…, in]` times `[in, out]`, plus `[out]`."""
    y = x @ weight
    return y if bias is None else y + bias
