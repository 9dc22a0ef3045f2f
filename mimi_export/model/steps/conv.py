"""Causal convolutions with their state given and returned, as convolution kernels or as matmuls.

previous  x                        a convolution sees the last samples of the calls before;
[ S    ][ T·stride samples ]  ->  y [ T ]

y [ T·stride ][ S: partial ]       a transposed one computes S samples too many: what the next call
+ partial of the call before       overlaps. They are kept *without* bias, so the bias is added once.

A kernel reads its weights once for every few positions, a matmul reads them once, packed. For the layers next to the
transformer, where a frame has 1 to 16 steps and up to 8 million weights, a matmul takes half the time, and it can
later have 8-bit weights. The arithmetic is the same up to the order of sums. Strided layers of Mimi have
kernel = 2 x stride, so their windows are pairs of neighbouring blocks of `stride` samples:

previous   block 1    block 2    block 3          windows = blocks 0 1 | 1 2 | 2 3
[ stride ][ stride ][ stride ][ stride ]          y = windows @ [2·stride·in, out]

A transposed one turns each input step into two blocks, and the second is added to the next step's first.

Every class is made of a `ConvLayer`, upstream's weight (`[out, in / groups, kernel]`, for a transposed convolution
`[in, out / groups, kernel]`) and its bias `[out]` or `None`. Every `forward` takes one call and the state, and gives
the result and the state for the next call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mimi_export.contract.network import ConvLayer
from mimi_export.model.steps.matmul import fixed, matmul

MOST_STEPS = 480  # steps a frame up to which a matmul is faster than a kernel
MANY_STEPS = 16  # from here on taking a matmul apart costs less than putting its input together


def conv_step(layer: ConvLayer, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """The fastest exact step for `layer`, chosen by its sizes alone."""
    matmul_fits = layer.groups == 1 and layer.steps <= MOST_STEPS
    if layer.transposed:
        if layer.groups == layer.in_channels == layer.out_channels:
            return DepthwiseUpsample(layer, weight, bias)
        return (MatmulConvTranspose if matmul_fits else CausalConvTranspose)(layer, weight, bias)
    whole_blocks = layer.stride == 1 or (layer.kernel == 2 * layer.stride and layer.dilation == 1)
    return (MatmulConv if matmul_fits and whole_blocks else CausalConv)(layer, weight, bias)


class _Step(nn.Module):
    """A layer's sizes and its bias, ready to be added to `[B, T, out]`, or to `[B, out, T]` if `channels_first`."""

    def __init__(self, layer: ConvLayer, bias: Tensor | None, channels_first: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.bias = None if bias is None else fixed(bias[:, None] if channels_first else bias)

    def _biased(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias


class CausalConv(_Step):
    """A causal 1-D convolution."""

    def __init__(self, layer: ConvLayer, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(layer, bias)
        self.weight = fixed(weight)

    def forward(self, x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`[B, in, T·stride]` to `[B, out, T]`; `previous` `[B, in, state_size]`, `None` for a layer without state."""
        layer = self.layer
        if previous is not None:
            x = torch.cat([previous, x], dim=2)
            previous = x[:, :, x.shape[2] - layer.state_size :]
        return functional.conv1d(x, self.weight, self.bias, layer.stride, 0, layer.dilation, layer.groups), previous


class MatmulConv(_Step):
    """`CausalConv` without groups as a matmul.

    A window is `taps` neighbouring rows: steps `dilation` apart, or blocks of `stride` steps. Few rows are put side by
    side and multiplied by all weights at once. Many rows are cheaper multiplied once by the weights of every tap, and
    the results, narrower than the windows, shifted and added:

        y[t] = Σ_i rows[t + i·dilation] @ W_i
    """

    def __init__(self, layer: ConvLayer, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(layer, bias)
        outs, ins, kernel = weight.shape
        block = layer.stride
        self.taps = kernel // block
        matrices = weight.reshape(outs, ins, self.taps, block).permute(2, 3, 1, 0)  # [taps, block, in, out]
        matrices = matrices.reshape(self.taps, block * ins, outs)
        self.shifts = self.taps > 1 and layer.steps >= MANY_STEPS
        matrix = matrices.transpose(0, 1) if self.shifts else matrices
        self.weight = fixed(matrix.reshape(block * ins, -1) if self.shifts else matrix.reshape(-1, outs))

    def forward(self, x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As `CausalConv`."""
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
            parts = torch.split(matmul(rows, self.weight), layer.out_channels, dim=2)
            y = parts[0][:, :steps]
            for start, part in zip(starts[1:], parts[1:], strict=True):
                y = y + part[:, start : start + steps]
            y = self._biased(y)
        else:
            windows = [rows[:, start : start + steps] for start in starts]
            y = matmul(torch.cat(windows, dim=2) if self.taps > 1 else rows, self.weight, self.bias)
        return y.transpose(1, 2), previous


class CausalConvTranspose(_Step):
    """A transposed 1-D convolution trimmed on its right, with kernel = 2 x stride as everywhere in Mimi."""

    def __init__(self, layer: ConvLayer, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(layer, bias, channels_first=True)
        self.weight = fixed(weight)

    def forward(self, x: Tensor, partial: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, in, T]` to `[B, out, T·stride]`; `partial` `[B, out, state_size]`, without bias."""
        layer = self.layer
        y = functional.conv_transpose1d(x, self.weight, None, layer.stride, 0, 0, layer.groups)
        length = x.shape[2] * layer.stride
        size = layer.state_size
        now = torch.cat([y[:, :, :size] + partial, y[:, :, size:length]], dim=2)
        return self._biased(now), y[:, :, length:]


class MatmulConvTranspose(_Step):
    """`CausalConvTranspose` without groups as a matmul and an overlap-add.

    The columns of the result are ordered (half, sample, channel), so that its rows are already the samples in time:
    the overlap-add works on `[B, samples, channels]` without moving anything. Many rows are multiplied by each half
    of the weights in turn, which saves taking the result apart; for few rows one matmul is less to do than two.
    """

    def __init__(self, layer: ConvLayer, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(layer, bias)
        ins, outs, _ = weight.shape
        halves = weight.reshape(ins, outs, 2, layer.stride).permute(2, 0, 3, 1).reshape(2, ins, -1)
        matrices = list(halves) if layer.steps > MANY_STEPS else [torch.cat(list(halves), dim=1)]
        self.weights = nn.ParameterList(map(fixed, matrices))

    def forward(self, x: Tensor, partial: Tensor) -> tuple[Tensor, Tensor]:
        """As `CausalConvTranspose`."""
        steps, outs, stride = x.shape[2], self.layer.out_channels, self.layer.stride
        results = [matmul(x.transpose(1, 2), weight) for weight in self.weights]
        halves = results if len(results) > 1 else torch.split(results[0], outs * stride, dim=2)
        first, second = (half.reshape(-1, steps * stride, outs) for half in halves)
        overlap = torch.cat([partial.transpose(1, 2), second], dim=1)
        now = self._biased(first + overlap[:, : steps * stride])
        return now.transpose(1, 2), overlap[:, steps * stride :].transpose(1, 2)


class DepthwiseUpsample(_Step):
    """`CausalConvTranspose` with one channel a group: each input sample times `2·stride` weights, no matmul at all."""

    def __init__(self, layer: ConvLayer, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(layer, bias, channels_first=True)
        self.first, self.second = map(fixed, weight.chunk(2, dim=2))

    def forward(self, x: Tensor, partial: Tensor) -> tuple[Tensor, Tensor]:
        """As `CausalConvTranspose`."""
        _, channels, steps = x.shape
        length = steps * self.layer.stride
        now = (x[..., None] * self.first).reshape(-1, channels, length)
        later = (x[..., None] * self.second).reshape(-1, channels, length)
        overlap = torch.cat([partial, later], dim=2)
        return self._biased(now + overlap[:, :, :length]), overlap[:, :, length:]
