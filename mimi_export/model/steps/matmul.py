"""Products of activations and weights, with the weights stored the way a product reads them: `[in, out]`.

Upstream stores `[out, in]` and transposes in every call. Stored transposed, a weight keeps its name through the
export and stands in the graph once.
"""

from __future__ import annotations

from torch import Tensor, nn


def product_weight(weight: Tensor) -> nn.Parameter:
    """A weight for `product`, from upstream's `[out, in]`."""
    return nn.Parameter(weight.detach().t().contiguous(), requires_grad=False)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`[…, in]` times `[in, out]`, plus `[out]`."""
    y = x @ weight
    return y if bias is None else y + bias
