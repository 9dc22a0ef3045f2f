"""The convolutions of Mimi's network, described as data: names, sizes, weights' places, and what each remembers.

A causal convolution remembers its `previous` input samples, a transposed one the `partial` output samples that
the next call completes:

    conv     kernel k, stride s    [ previous: (k-1)·dilation+1-s | x: one call ]  ->  y
    conv_tr  kernel k, stride s    [ y: one call | partial: k-s ]  partial is added to the next call's first samples
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mimi_export.contract.geometry import Geometry

GraphKind = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class ConvLayer:
    """One convolution of the network: where its weights are, its sizes, and the state that it needs.

    `path` is the module path below the part of the upstream model (`layers.1.block.1.conv`); `steps` is how often
    its weights are applied in one codec frame.
    """

    name: str
    path: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = True
    transposed: bool = False
    pad_mode: str = "constant"
    steps: int = 1

    @property
    def state_size(self) -> int:
        """Samples this layer carries from one call to the next."""
        return (self.kernel - 1) * self.dilation + 1 - self.stride

    @property
    def state_channels(self) -> int:
        """Channels of the carried samples: input ones for a convolution, output ones for a transposed one."""
        return self.out_channels if self.transposed else self.in_channels


@dataclass(frozen=True)
class ResidualUnit:
    """`x + block(x)`: ELU, convolution, ELU, 1x1 convolution, and an optional 1x1 convolution on the skip path."""

    first: ConvLayer
    second: ConvLayer
    shortcut: ConvLayer | None


SeanetItem = ConvLayer | ResidualUnit | None  # None stands for an ELU


def encoder_seanet(geometry: Geometry) -> list[SeanetItem]:
    """The SEANet encoder from the waveform to the transformer, in order (`arXiv:2009.02095`, as Mimi builds it)."""
    g = geometry
    channels, steps = g.num_filters, g.frame_size
    items: list[SeanetItem] = [_conv(g, "enc_0", 1, channels, g.kernel_size, steps)]
    for ratio in reversed(g.upsampling_ratios):
        items += _residual_units(g, "enc", len(items), channels, steps)
        items.append(None)
        steps //= ratio
        items.append(_conv(g, f"enc_{len(items)}", channels, 2 * channels, 2 * ratio, steps, stride=ratio))
        channels *= 2
    items.append(None)
    items.append(_conv(g, f"enc_{len(items)}", channels, g.hidden_size, g.last_kernel_size, steps))
    return items


def decoder_seanet(geometry: Geometry) -> list[SeanetItem]:
    """The SEANet decoder from the transformer to the waveform, in order."""
    g = geometry
    channels, steps = g.num_filters * 2 ** len(g.upsampling_ratios), g.tokens_per_frame
    items: list[SeanetItem] = [_conv(g, "dec_0", g.hidden_size, channels, g.kernel_size, steps)]
    for ratio in g.upsampling_ratios:
        items.append(None)
        name = f"dec_{len(items)}"
        items.append(_conv(g, name, channels, channels // 2, 2 * ratio, steps, stride=ratio, transposed=True))
        channels //= 2
        steps *= ratio
        items += _residual_units(g, "dec", len(items), channels, steps)
    items.append(None)
    items.append(_conv(g, f"dec_{len(items)}", channels, 1, g.last_kernel_size, steps))
    return items


def downsample_layer(geometry: Geometry) -> ConvLayer:
    """The strided convolution from transformer tokens to codec frames; upstream replicates its first sample."""
    g = geometry
    size, stride = g.hidden_size, g.latent_stride
    return ConvLayer("ds", "conv", size, size, 2 * stride, stride, bias=False, pad_mode="replicate")


def upsample_layer(geometry: Geometry) -> ConvLayer:
    """The grouped transposed convolution from codec frames to transformer tokens."""
    g = geometry
    size, stride, groups = g.hidden_size, g.latent_stride, g.upsample_groups
    return ConvLayer("us", "conv", size, size, 2 * stride, stride, groups=groups, bias=False, transposed=True)


def conv_layers(geometry: Geometry, kind: GraphKind) -> list[ConvLayer]:
    """All convolutions of one graph in the order of computation, with and without state."""
    if kind == "encoder":
        return [*walk_convs(encoder_seanet(geometry)), downsample_layer(geometry)]
    return [upsample_layer(geometry), *walk_convs(decoder_seanet(geometry))]


def _conv(
    g: Geometry, name: str, ins: int, outs: int, kernel: int, steps: int, stride: int = 1, transposed: bool = False
) -> ConvLayer:
    path = f"layers.{name.split('_')[1]}.conv"
    return ConvLayer(name, path, ins, outs, kernel, stride, transposed=transposed, pad_mode=g.pad_mode, steps=steps)


def _residual_units(g: Geometry, prefix: str, index: int, channels: int, steps: int) -> list[SeanetItem]:
    """The residual units that follow each other at one rate; `index` is the first one's place in the network."""
    units: list[SeanetItem] = []
    hidden = channels // g.compress
    for j in range(g.num_residual_layers):
        name, path = f"{prefix}_{index + j}", f"layers.{index + j}"
        dilation, kernel = g.dilation_growth_rate**j, g.residual_kernel_size
        first = ConvLayer(
            f"{name}_b1", f"{path}.block.1.conv", channels, hidden, kernel,
            dilation=dilation, pad_mode=g.pad_mode, steps=steps,
        )  # fmt: skip
        second = ConvLayer(f"{name}_b3", f"{path}.block.3.conv", hidden, channels, 1, steps=steps)
        shortcut = ConvLayer(f"{name}_shortcut", f"{path}.shortcut.conv", channels, channels, 1, steps=steps)
        units.append(ResidualUnit(first, second, shortcut if g.use_conv_shortcut else None))
    return units


def walk_convs(items: list[SeanetItem]) -> Iterator[ConvLayer]:
    """The convolutions of a SEANet half in the order of computation."""
    for item in items:
        if isinstance(item, ConvLayer):
            yield item
        elif isinstance(item, ResidualUnit):
            yield from (layer for layer in (item.first, item.second, item.shortcut) if layer is not None)
