"""The streaming encoder and decoder: steps composed in the order of the network, states wired by name.

    encoder   waveform -> SEANet -> transformer (25 tokens/s) -> downsample -> quantiser -> codes (12.5 frames/s)
    decoder   codes -> quantiser -> upsample -> transformer -> SEANet -> waveform

A graph module takes `(data, *states)` and gives `(data, *states)` in the order of its `GraphSpec`. Inside, steps ask
for their state by name, because many states have the same shape and no shape check would see a swap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from mimi_export.contract import network, spec
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.network import ConvLayer, ResidualUnit
from mimi_export.contract.spec import GraphSpec
from mimi_export.errors import ConfigError
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.model.steps.cache import KvCache, RingCache, WindowCache
from mimi_export.model.steps.conv import conv_step
from mimi_export.model.steps.quantizer import ResidualDecoder, ResidualEncoder
from mimi_export.model.steps.rope import half_swap
from mimi_export.model.steps.transformer import TransformerLayer, elu
from mimi_export.model.upstream import CODEBOOK_EPSILON, tensors_on_disk
from mimi_export.passes.taps import TAP_PREFIX

Tap = Callable[[str, Tensor], None]
Weights = Mapping[str, Tensor]  # by their names on disk
Quantizer = TypeVar("Quantizer", ResidualEncoder, ResidualDecoder)
LOUDEST = 2.0**30


class Call:
    """The states of one call: steps take `past` ones and put `present` ones, by name.

    Args:
        graph: the inputs and outputs of the graph.
        past: the states that the client gave.
        cache: where this call's tokens are in the stream.
        tap: told of every intermediate result that a debug graph shows.
    """

    def __init__(self, graph: GraphSpec, past: Mapping[str, Tensor], cache: KvCache, tap: Tap | None) -> None:
        self.graph = graph
        self.past = past
        self.cache = cache
        self._present: dict[str, Tensor] = {}
        self.tap = tap or (lambda _name, _tensor: None)
        for name, tensor in cache.present.items():
            self.put(name, tensor)

    def put(self, name: str, tensor: Tensor) -> None:
        """Hand the state `name` to the next call; a state is put once."""
        if name in self._present or name not in self.past:
            fault = "twice" if name in self.past else "and has no such state"
            raise RuntimeError(f"this {self.graph.kind} puts {name} {fault}")
        self._present[name] = tensor

    def present(self) -> tuple[Tensor, ...]:
        """All states for the next call, in the graph's order."""
        missing = [state.name for state in self.graph.states if state.name not in self._present]
        if missing:
            raise RuntimeError(f"this {self.graph.kind} puts no {', '.join(missing)} for the next call")
        return tuple(self._present[state.name] for state in self.graph.states)


class StreamingGraph(nn.Module):
    """What both graphs share: convolutions by name, the transformer, and the walk over a SEANet half.

    Args:
        graph: inputs and outputs.
        geometry: sizes of the model.
        weights: the model's tensors by their names on disk.
    """

    def __init__(self, graph: GraphSpec, geometry: Geometry, weights: Weights) -> None:
        super().__init__()
        self.graph = graph
        self.geometry = geometry
        encodes = graph.kind == "encoder"
        self._seanet = network.encoder_seanet(geometry) if encodes else network.decoder_seanet(geometry)
        self._resample = network.downsample_layer(geometry) if encodes else network.upsample_layer(geometry)
        convs = network.walk_convs(self._seanet)
        self.convs = nn.ModuleDict({layer.name: _conv(layer, graph.kind, weights) for layer in convs})
        self.convs[self._resample.name] = _conv(self._resample, "downsample" if encodes else "upsample", weights)
        layers = (f"{graph.kind}_transformer.layers.{index}" for index in range(geometry.num_hidden_layers))
        self.layers = nn.ModuleList(TransformerLayer(geometry, _below(weights, layer)) for layer in layers)
        self.register_buffer("half_swap", half_swap(geometry.head_dim))

    half_swap: Tensor

    def forward(self, data: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """One call: data and past states in, data and present states out."""
        return self.run(None, data, *states)

    def run(self, tap: Tap | None, data: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """`forward`, telling `tap` of every intermediate result."""
        g, length = self.geometry, data.shape[self.graph.data_input.time_axis]
        tokens = length // g.hop_length if self.graph.kind == "encoder" else length * g.tokens_per_frame
        past = {state.name: tensor for state, tensor in zip(self.graph.states, states, strict=True)}
        cache: KvCache
        if self.graph.shape.layout == "ring":
            cache = RingCache(g, past["position"], tokens, past["key_0"].shape[2], self.half_swap)
        else:
            cache = WindowCache(g, past["value_0"], tokens, self.half_swap)
        call = Call(self.graph, past, cache, tap)
        first, *further = self.step(call, data)
        return first, *call.present(), *further

    def _quantizers(self, step: type[Quantizer], matrix: str, weights: Weights) -> tuple[Quantizer, Quantizer | None]:
        """Both halves of the quantiser, without an acoustic one where all codes are semantic."""
        semantic = self.geometry.num_semantic_quantizers
        acoustic = self.graph.shape.num_codebooks - semantic
        first = _quantizer(step, "semantic", matrix, semantic, weights)
        return first, _quantizer(step, "acoustic", matrix, acoustic, weights) if acoustic else None

    def step(self, call: Call, data: Tensor) -> Sequence[Tensor]:
        """Compute the data outputs of one call."""
        raise NotImplementedError(f"{type(self).__name__} is not a graph by itself")

    def conv(self, call: Call, layer: ConvLayer, x: Tensor) -> Tensor:
        """Run the convolution `layer`, carrying its state."""
        name = spec.conv_state_name(layer)
        past: Tensor | None = None
        if layer.state_size and layer.pad_mode == "replicate" and not layer.transposed:
            past = torch.where(call.cache.fresh, x[:, :, :1], call.past[name])  # a stream begins with its first sample
        elif layer.state_size:
            past = call.cache.carried(call.past[name])
        y: Tensor
        y, kept = self.convs[layer.name](x, past)
        if layer.state_size:
            call.put(name, kept)
        call.tap(layer.name, y)
        return y

    def seanet(self, call: Call, x: Tensor) -> Tensor:
        """Run the SEANet half over `[B, C, T]`."""
        for item in self._seanet:
            if item is None:
                x = elu(x)
            elif isinstance(item, ResidualUnit):
                hidden = self.conv(call, item.first, elu(x))
                hidden = self.conv(call, item.second, elu(hidden))
                skip = x if item.shortcut is None else self.conv(call, item.shortcut, x)
                x = skip + hidden
            else:
                x = self.conv(call, item, x)
        return x

    def transformer(self, call: Call, x: Tensor) -> Tensor:
        """Run the transformer over `[B, hidden, T]`; inside, time comes first."""
        x = x.permute(2, 0, 1)
        for index, layer in enumerate(self.layers):
            key, value = f"key_{index}", f"value_{index}"
            past_value = call.past[value] if index else call.cache.opened(call.past[value])
            x, present_key, present_value = layer(x, call.past[key], past_value, call.cache)
            call.put(key, present_key)
            call.put(value, present_value if index else call.cache.closed(present_value))
            call.tap(f"transformer_{index}", x)
        return x.permute(1, 2, 0)


class StreamingEncoder(StreamingGraph):
    """Waveform `[B, 1, frames·frame_size]` to codes int64 `[B, K, frames]`, latents `[B, frames, hidden]`, or both.

    A sample that is NaN, infinite or beyond `LOUDEST` counts as silence: one of them would else stay in the
    attention's past, poison every later frame, and outlive the stream in a ring's masked slots (0 times NaN is NaN).
    """

    def __init__(self, graph: GraphSpec, geometry: Geometry, weights: Weights) -> None:
        super().__init__(graph, geometry, weights)
        if graph.shape.head != spec.LATENTS:
            self.semantic, self.acoustic = self._quantizers(ResidualEncoder, "input_proj", weights)

    def step(self, call: Call, data: Tensor) -> Sequence[Tensor]:
        """See `StreamingGraph`."""
        frames = torch.unflatten(data, 2, [-1, self.geometry.frame_size])  # refuses what is no whole number of frames
        x = self.seanet(call, torch.where(frames.abs() < LOUDEST, frames, 0.0).flatten(2))
        x = self.transformer(call, x)
        latents = self.conv(call, self._resample, x).transpose(1, 2)
        call.tap("latents", latents)
        if self.graph.shape.head == spec.LATENTS:
            return [latents]
        frames = latents.reshape(-1, self.geometry.hidden_size)
        codes = self.semantic(frames) + ([] if self.acoustic is None else self.acoustic(frames))
        stacked = torch.cat(codes).reshape(len(codes), -1, latents.shape[1]).transpose(0, 1)
        return [stacked, latents] if self.graph.further else [stacked]


class StreamingDecoder(StreamingGraph):
    """Codes int64 `[B, 1 … K, frames]` or latents `[B, frames, hidden]` to a waveform `[B, 1, frames·frame_size]`."""

    def __init__(self, graph: GraphSpec, geometry: Geometry, weights: Weights) -> None:
        super().__init__(graph, geometry, weights)
        if graph.shape.start != spec.LATENTS:
            self.semantic, self.acoustic = self._quantizers(ResidualDecoder, "output_proj", weights)

    def step(self, call: Call, data: Tensor) -> Sequence[Tensor]:
        """See `StreamingGraph`."""
        latents = data if self.graph.shape.start == spec.LATENTS else self._entries(data)
        call.tap("latents", latents)
        x = self.conv(call, self._resample, latents.transpose(1, 2))
        return [self.seanet(call, self.transformer(call, x))]

    def _entries(self, codes: Tensor) -> Tensor:
        """The latents `[B, frames, hidden]` that codes stand for."""
        semantic = self.geometry.num_semantic_quantizers
        latents: Tensor = self.semantic(codes[:, :semantic])
        return latents if self.acoustic is None else latents + self.acoustic(codes[:, semantic:])


class Tapped(nn.Module):
    """A graph to be traced with its taps as further outputs; those that an output shows anyway are left out.

    The exporter writes each tap as a value called `tap_<name>`, then `passes.taps` takes the outputs away again: the
    name stays, and the graph has the same nodes as without taps. Passes keep value names, so the same place can be
    looked at in every variant made from the graph. A tap is `[B, C, T]` or `[B, T, C]`, as the graph holds it.

    Weights keep the names they have in the graph: its children are this module's own, the graph itself is not.

    Args:
        module: the graph.
        example: arguments of one call, to learn which taps there are.
    """

    def __init__(self, module: StreamingGraph, example: tuple[Tensor, ...]) -> None:
        super().__init__()
        self._run = module.run
        for name, child in module.named_children():
            self.add_module(name, child)
        found: dict[str, Tensor] = {}
        shown = {id(output) for output in module.run(found.__setitem__, *example)}
        self.taps = [name for name, tensor in found.items() if id(tensor) not in shown]
        self.output_names = [tensor.name for tensor in module.graph.outputs] + [TAP_PREFIX + name for name in self.taps]

    def forward(self, data: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """The graph's outputs, then the taps."""
        found: dict[str, Tensor] = {}
        outputs = self._run(found.__setitem__, data, *states)
        return (*outputs, *(found[name] for name in self.taps))


def streaming_graph(checkpoint: Checkpoint, graph: GraphSpec) -> StreamingGraph:
    """The PyTorch module that computes `graph` with the weights of `checkpoint`.

    Raises:
        ConfigError: an earlier version made the graph.
    """
    if graph.shape.growing:
        raise ConfigError("an earlier version exported this variant, with a window that grows; export it again")
    make = StreamingEncoder if graph.kind == "encoder" else StreamingDecoder
    return make(graph, checkpoint.geometry, tensors_on_disk(checkpoint.model)).eval()


def initial_states(graph: GraphSpec, batch: int) -> tuple[Tensor, ...]:
    """The zeros that begin a stream, in the graph's order."""
    return tuple(torch.zeros(state.initial_shape(batch), dtype=getattr(torch, state.dtype)) for state in graph.states)


def _below(weights: Weights, path: str) -> Weights:
    """The tensors of one module, by their names in it."""
    prefix = f"{path}."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _conv(layer: ConvLayer, part: str, weights: Weights) -> nn.Module:
    """The step of `layer`, which lies below `part` on disk."""
    path = f"{part}.{layer.path}"
    return conv_step(layer, weights[f"{path}.weight"], weights[f"{path}.bias"] if layer.bias else None)


def _quantizer(step: type[Quantizer], half: str, projection: str, levels: int, weights: Weights) -> Quantizer:
    """The step for the first `levels` levels of one half of the quantiser.

    Upstream keeps sums and usage counts of codebook entries, and divides when it first needs them.
    """
    found = _below(weights, f"quantizer.{half}_residual_vector_quantizer")
    matrix = found.get(f"{projection}.weight")  # missing where the sizes are equal
    books = [_below(found, f"layers.{level}.codebook") for level in range(levels)]
    entries = [book["embed_sum"] / book["cluster_usage"].clamp(min=CODEBOOK_EPSILON)[:, None] for book in books]
    return step(None if matrix is None else matrix[:, :, 0], entries)
