"""Causal convolutions as matrix products, for layers with many weights and few steps a frame.

A convolution kernel reads its weights once for every few positions; a product reads them once, packed. For the
layers next to the transformer, where a frame has 1 to 16 steps and up to 8 million weights, that halves the time,
and a product can later have 8-bit weights. The arithmetic is the same up to the order of sums.

A strided layer of Mimi has kernel = 2 x stride: its windows are pairs of neighbouring blocks of `stride` samples.

    previous   block 1    block 2    block 3          windows = blocks 0 1 | 1 2 | 2 3
    [ stride ][ stride ][ stride ][ stride ]          y = windows @ [2·stride·in, out]

A transposed one turns each input step into two blocks, and the second is added to the next step's first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mimi_export.network import ConvLayer
from mimi_export.steps.conv import CausalConv, CausalConvTranspose
from mimi_export.steps.product import product

MOST_STEPS = 16


def conv_step(layer: ConvLayer, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """The fastest exact step for `layer`, by its sizes alone; all have the same call.

    Args:
        layer: sizes, with `steps`: how often the weights are applied in one frame.
        weight: as upstream stores it.
        bias: `[out]` or `None`.
    """
    if layer.transposed:
        if layer.groups == layer.in_channels == layer.out_channels:
            return DepthwiseUpsample(layer, weight, bias)
        product_fits = layer.groups == 1 and layer.steps <= MOST_STEPS
        return (ProductConvTranspose if product_fits else CausalConvTranspose)(layer, weight, bias)
    whole_blocks = layer.stride == 1 or (layer.kernel == 2 * layer.stride and layer.dilation == 1)
    product_fits = layer.groups == 1 and layer.steps <= MOST_STEPS and whole_blocks and layer.kernel > 1
    return (ProductConv if product_fits else CausalConv)(layer, weight, bias)


class ProductConv(nn.Module):
    """`CausalConv` as a product; see there for arguments and shapes. Groups and shared windows are not supported."""

    def __init__(self, layer: ConvLayer, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        outs, ins, kernel = weight.shape
        if self._blocks:
            halves = weight.reshape(outs, ins, 2, layer.stride).permute(2, 1, 3, 0)
            matrix = halves.reshape(2 * ins * layer.stride, outs)
        else:
            matrix = weight.permute(2, 1, 0).reshape(kernel * ins, outs)
        self.weight = nn.Parameter(matrix.detach().contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    @property
    def _blocks(self) -> bool:
        return self.layer.stride > 1

    def forward(self, x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`[B, in, T·stride]` to `[B, out, T]`."""
        layer = self.layer
        if previous is not None:
            x = torch.cat([previous, x], dim=2)
            previous = x[:, :, x.shape[2] - layer.state_size :]
        windows = self._block_windows(x) if self._blocks else self._step_windows(x)
        return product(windows, self.weight, self.bias).transpose(1, 2), previous

    def _block_windows(self, x: Tensor) -> Tensor:
        """Pairs of neighbouring blocks: `[B, in, (T+1)·stride]` to `[B, T, 2·in·stride]`."""
        _, channels, length = x.shape
        stride = self.layer.stride
        blocks = x.reshape(-1, channels, length // stride, stride).transpose(1, 2)
        blocks = blocks.reshape(-1, length // stride, channels * stride)
        return torch.cat([blocks[:, :-1], blocks[:, 1:]], dim=2)

    def _step_windows(self, x: Tensor) -> Tensor:
        """Neighbouring steps side by side: `[B, in, T+(k-1)·dilation]` to `[B, T, k·in]`."""
        layer = self.layer
        x = x.transpose(1, 2)
        steps = x.shape[1] - (layer.kernel - 1) * layer.dilation
        shifts = [x[:, i * layer.dilation : i * layer.dilation + steps] for i in range(layer.kernel)]
        return torch.cat(shifts, dim=2)


class ProductConvTranspose(nn.Module):
    """`CausalConvTranspose` as a product and an overlap-add; see there for arguments and shapes."""

    def __init__(self, layer: ConvLayer, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        ins, outs, _ = weight.shape
        halves = weight.reshape(ins, outs, 2, layer.stride).permute(0, 2, 1, 3)
        self.weight = nn.Parameter(halves.reshape(ins, -1).detach().contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone()[:, None], requires_grad=False)

    def forward(self, x: Tensor, partial: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, in, T]` to `[B, out, T·stride]`."""
        layer = self.layer
        steps, outs, stride = x.shape[2], layer.out_channels, layer.stride
        halves = product(x.transpose(1, 2), self.weight).split(outs * stride, dim=2)
        first, second = (
            half.reshape(-1, steps, outs, stride).transpose(1, 2).reshape(-1, outs, steps * stride) for half in halves
        )
        overlap = torch.cat([partial, second], dim=2)
        now = first + overlap[:, :, : steps * stride]
        return now if self.bias is None else now + self.bias, overlap[:, :, steps * stride :]


class DepthwiseUpsample(nn.Module):
    """`CausalConvTranspose` with one channel a group: each input sample times `2·stride` weights, no product at all."""

    def __init__(self, layer: ConvLayer, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        first, second = weight.detach().chunk(2, dim=2)
        self.first = nn.Parameter(first.contiguous(), requires_grad=False)
        self.second = nn.Parameter(second.contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone()[:, None], requires_grad=False)

    def forward(self, x: Tensor, partial: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, C, T]` to `[B, C, T·stride]`."""
        _, channels, steps = x.shape
        length = steps * self.layer.stride
        now = (x[..., None] * self.first).reshape(-1, channels, length)
        later = (x[..., None] * self.second).reshape(-1, channels, length)
        overlap = torch.cat([partial, later], dim=2)
        now = now + overlap[:, :, :length]
        return now if self.bias is None else now + self.bias, overlap[:, :, length:]
