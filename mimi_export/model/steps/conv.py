"""Causal convolutions with their state given and returned.

previous  x                        a convolution sees the last samples of the calls before;
[ S    ][ T·stride samples ]  ->  y [ T ]

y [ T·stride ][ S: partial ]       a transposed one computes S samples too many: what the next call
+ partial of the call before       overlaps. They are kept *without* bias, so the bias is added once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mimi_export.contract.network import ConvLayer


class CausalConv(nn.Module):
    """A causal 1-D convolution.

    Args:
        layer: its sizes; `layer.state_size` previous samples are needed (none for a 1x1 convolution).
        weight: `[out, in / groups, kernel]`.
        bias: `[out]` or `None`.
    """

    def __init__(self, layer: ConvLayer, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Convolve one call.

        Args:
            x: `[B, in, T·stride]`.
            previous: `[B, in, state_size]`, the samples before `x`; `None` for a layer without state.

        Returns:
            `[B, out, T]` and the samples before the next call.
        """
        layer = self.layer
        if previous is not None:
            x = torch.cat([previous, x], dim=2)
            previous = x[:, :, x.shape[2] - layer.state_size :]
        return functional.conv1d(x, self.weight, self.bias, layer.stride, 0, layer.dilation, layer.groups), previous


class CausalConvTranspose(nn.Module):
    """A transposed 1-D convolution trimmed on its right, with kernel = 2 x stride as everywhere in Mimi.

    Args:
        layer: its sizes.
        weight: `[in, out / groups, kernel]`.
        bias: `[out]` or `None`.
    """

    def __init__(self, layer: ConvLayer, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone()[:, None], requires_grad=False)

    def forward(self, x: Tensor, partial: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve one call.

        Args:
            x: `[B, in, T]`.
            partial: `[B, out, state_size]`, what the call before computed of this call's first samples.

        Returns:
            `[B, out, T·stride]` and the part of the next call's first samples, without bias.
        """
        layer = self.layer
        y = functional.conv_transpose1d(x, self.weight, None, layer.stride, 0, 0, layer.groups)
        length = x.shape[2] * layer.stride
        size = layer.state_size
        now = torch.cat([y[:, :, :size] + partial, y[:, :, size:length]], dim=2)
        return now if self.bias is None else now + self.bias, y[:, :, length:]
