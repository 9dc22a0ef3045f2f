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

from mimi_export.contract.network import ConvLayer
from mimi_export.model.steps.conv import CausalConv, CausalConvTranspose
from mimi_export.model.steps.matmul import product

MOST_STEPS = 480
MANY_STEPS = 16


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
    product_fits = layer.groups == 1 and layer.steps <= MOST_STEPS and whole_blocks
    return (ProductConv if product_fits else CausalConv)(layer, weight, bias)


class ProductConv(nn.Module):
    """`CausalConv` as a product; see there for arguments and shapes. Groups are not supported.

    A window is `taps` neighbouring rows: steps `dilation` apart, or blocks of `stride` steps. Few rows are put side by
    side and multiplied by all weights at once. Many rows are cheaper multiplied once by the weights of every tap, and
    the results, narrower than the windows, shifted and added:

        y[t] = Σ_i rows[t + i·dilation] @ W_i
    """

    def __init__(self, layer: ConvLayer, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        outs, ins, kernel = weight.shape
        block = layer.stride
        self.taps = kernel // block
        matrices = weight.reshape(outs, ins, self.taps, block).permute(2, 3, 1, 0)  # [taps, block, in, out]
        matrices = matrices.reshape(self.taps, block * ins, outs)
        self.shifts = self.taps > 1 and layer.steps >= MANY_STEPS
        matrix = matrices.transpose(0, 1) if self.shifts else matrices
        matrix = matrix.reshape(block * ins, -1) if self.shifts else matrix.reshape(-1, outs)
        self.weight = nn.Parameter(matrix.detach().contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`[B, in, T·stride]` to `[B, out, T]`."""
        layer = self.layer
        rows = x.transpose(1, 2)
        if previous is not None:
            rows = torch.cat([previous.transpose(1, 2), rows], dim=1)
            previous = rows[:, rows.shape[1] - layer.state_size :].transpose(1, 2)
        if layer.stride > 1:
            rows = rows.reshape(-1, rows.shape[1] // layer.stride, layer.stride * layer.in_channels)
        steps = rows.shape[1] - (self.taps - 1) * layer.dilation
        starts = [tap * layer.dilation for tap in range(self.taps)]
        if self.shifts:
            parts = product(rows, self.weight).split(layer.out_channels, dim=2)
            y = parts[0][:, :steps]
            for start, part in zip(starts[1:], parts[1:], strict=True):
                y = y + part[:, start : start + steps]
            y = y if self.bias is None else y + self.bias
        else:
            windows = [rows[:, start : start + steps] for start in starts]
            y = product(torch.cat(windows, dim=2) if self.taps > 1 else rows, self.weight, self.bias)
        return y.transpose(1, 2), previous


class ProductConvTranspose(nn.Module):
    """`CausalConvTranspose` as a product and an overlap-add; see there for arguments and shapes.

    The columns of the product are ordered (half, sample, channel), so that its rows are already the samples in time:
    the overlap-add works on `[B, samples, channels]` without moving anything. Many rows are multiplied by each half
    of the weights in turn, which saves taking the result apart; for few rows one product is less to do than two.
    """

    def __init__(self, layer: ConvLayer, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        ins, outs, _ = weight.shape
        halves = weight.detach().reshape(ins, outs, 2, layer.stride).permute(2, 0, 3, 1).reshape(2, ins, -1)
        matrices = list(halves) if layer.steps > MANY_STEPS else [torch.cat(list(halves), dim=1)]
        self.weights = nn.ParameterList([nn.Parameter(matrix.contiguous(), requires_grad=False) for matrix in matrices])
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor, partial: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, in, T]` to `[B, out, T·stride]`."""
        layer = self.layer
        steps, outs, stride = x.shape[2], layer.out_channels, layer.stride
        products = [product(x.transpose(1, 2), weight) for weight in self.weights]
        halves = products if len(products) > 1 else products[0].split(outs * stride, dim=2)
        first, second = (half.reshape(-1, steps * stride, outs) for half in halves)
        overlap = torch.cat([partial.transpose(1, 2), second], dim=1)
        now = first + overlap[:, : steps * stride]
        now = now if self.bias is None else now + self.bias
        return now.transpose(1, 2), overlap[:, steps * stride :].transpose(1, 2)


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
