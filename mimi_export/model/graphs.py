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
from mimi_export.contract.network import ConvLayer, ResidualUnit, SeanetItem
from mimi_export.contract.spec import GraphSpec
from mimi_export.errors import ConfigError
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.model.steps.cache import KvCache, kv_cache
from mimi_export.model.steps.conv import conv_step
from mimi_export.model.steps.quantizer import ResidualDecoder, ResidualEncoder
from mimi_export.model.steps.rope import half_swap
from mimi_export.model.steps.transformer import TransformerLayer, elu
from mimi_export.model.upstream import CODEBOOK_EPSILON, tensors_on_disk

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
        self._tap = tap
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

    def tap(self, name: str, tensor: Tensor) -> None:
        """Show an intermediate result where somebody looks."""
        if self._tap is not None:
            self._tap(name, tensor)


class StreamingGraph(nn.Module):
    """What both graphs share: convolutions by name, the transformer, and the walk over a SEANet half.

    Args:
        graph: inputs and outputs.
        geometry: sizes of the model.
        seanet: description of the SEANet half.
        weights: the model's tensors by their names on disk.
    """

    def __init__(self, graph: GraphSpec, geometry: Geometry, seanet: list[SeanetItem], weights: Weights) -> None:
        super().__init__()
        self.graph = graph
        self.geometry = geometry
        self._seanet = seanet
        convs = network.walk_convs(seanet)
        self.convs = nn.ModuleDict({layer.name: _conv(layer, graph.kind, weights) for layer in convs})
        layers = (f"{graph.kind}_transformer.layers.{index}" for index in range(geometry.num_hidden_layers))
        self.layers = nn.ModuleList(TransformerLayer(geometry, _below(weights, layer)) for layer in layers)
        self.register_buffer("half_swap", half_swap(geometry.head_dim))

    half_swap: Tensor

    def forward(self, data: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """One call: data and past states in, data and present states out."""
        return self.run(None, data, *states)

    def run(self, tap: Tap | None, data: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """`forward`, telling `tap` of every intermediate result."""
        past = {state.name: tensor for state, tensor in zip(self.graph.states, states, strict=True)}
        cache = kv_cache(self.graph.shape.layout, self.geometry, past, self.tokens(data), self.half_swap)
        call = Call(self.graph, past, cache, tap)
        first, *further = self.step(call, data)
        return first, *call.present(), *further

    def tokens(self, data: Tensor) -> int:
        """Transformer tokens of one call."""
        raise NotImplementedError(f"{type(self).__name__} is not a graph by itself")

    def step(self, call: Call, data: Tensor) -> Sequence[Tensor]:
        """Compute the data outputs of one call."""
        raise NotImplementedError(f"{type(self).__name__} is not a graph by itself")

    def conv(self, call: Call, layer: ConvLayer, x: Tensor) -> Tensor:
        """Run the convolution `layer`, carrying its state."""
        module = self.convs[layer.name]
        y: Tensor
        if layer.state_size == 0:
            y, _ = module(x, None)
        else:
            name = spec.conv_state_name(layer)
            y, kept = module(x, self._begun(call, layer, call.past[name], x))
            call.put(name, kept)
        call.tap(layer.name, y)
        return y

    def _begun(self, call: Call, layer: ConvLayer, past: Tensor, x: Tensor) -> Tensor:
        """The state to compute with: where a stream begins it is zeros, or the first sample again and again."""
        if not layer.transposed and layer.pad_mode == "replicate":
            return torch.where(call.cache.fresh, x[:, :, :1], past)
        return call.cache.carried(past)

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
        super().__init__(graph, geometry, network.encoder_seanet(geometry), weights)
        self._downsample = network.downsample_layer(geometry)
        self.convs[self._downsample.name] = _conv(self._downsample, "downsample", weights)
        if graph.shape.head == spec.LATENTS:
            return
        semantic = geometry.num_semantic_quantizers
        acoustic = graph.shape.num_codebooks - semantic
        self.semantic = _quantizer(ResidualEncoder, "semantic", "input_proj", semantic, weights)
        self.acoustic = _quantizer(ResidualEncoder, "acoustic", "input_proj", acoustic, weights) if acoustic else None

    def tokens(self, data: Tensor) -> int:
        """See `StreamingGraph`."""
        return data.shape[2] // self.geometry.hop_length

    def step(self, call: Call, data: Tensor) -> Sequence[Tensor]:
        """See `StreamingGraph`."""
        frames = torch.unflatten(data, 2, [-1, self.geometry.frame_size])  # refuses what is no whole number of frames
        x = self.seanet(call, torch.where(frames.abs() < LOUDEST, frames, 0.0).flatten(2))
        x = self.transformer(call, x)
        latents = self.conv(call, self._downsample, x).transpose(1, 2)
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
        super().__init__(graph, geometry, network.decoder_seanet(geometry), weights)
        self._upsample = network.upsample_layer(geometry)
        self.convs[self._upsample.name] = _conv(self._upsample, "upsample", weights)
        if graph.shape.start == spec.LATENTS:
            return
        semantic = geometry.num_semantic_quantizers
        acoustic = graph.shape.num_codebooks - semantic
        self.semantic = _quantizer(ResidualDecoder, "semantic", "output_proj", semantic, weights)
        self.acoustic = _quantizer(ResidualDecoder, "acoustic", "output_proj", acoustic, weights) if acoustic else None

    def tokens(self, data: Tensor) -> int:
        """See `StreamingGraph`."""
        return data.shape[self.graph.data_input.time_axis] * self.geometry.tokens_per_frame

    def step(self, call: Call, data: Tensor) -> Sequence[Tensor]:
        """See `StreamingGraph`."""
        latents = data if self.graph.shape.start == spec.LATENTS else self._entries(data)
        call.tap("latents", latents)
        x = self.conv(call, self._upsample, latents.transpose(1, 2))
        return [self.seanet(call, self.transformer(call, x))]

    def _entries(self, codes: Tensor) -> Tensor:
        """The latents `[B, frames, hidden]` that codes stand for."""
        semantic = self.geometry.num_semantic_quantizers
        latents: Tensor = self.semantic(codes[:, :semantic])
        return latents if self.acoustic is None else latents + self.acoustic(codes[:, semantic:])


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
    dtypes = {"float32": torch.float32, "int64": torch.int64}
    return tuple(torch.zeros(state.initial_shape(batch), dtype=dtypes[state.dtype]) for state in graph.states)


def _below(weights: Weights, path: str) -> Weights:
    """The tensors of one module, by their names in it."""
    prefix = f"{path}."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _conv(layer: ConvLayer, part: str, weights: Weights) -> nn.Module:
    """The step of `layer`, which lies below `part` on disk."""
    path = f"{part}.{layer.path}"
    return conv_step(layer, weights[f"{path}.weight"], weights[f"{path}.bias"] if layer.bias else None)


def _quantizer(step: type[Quantizer], half: str, projection: str, levels: int, weights: Weights) -> Quantizer:
    """The step for the first `levels` levels of one half of the quantiser."""
    found = _below(weights, f"quantizer.{half}_residual_vector_quantizer")
    matrix = found.get(f"{projection}.weight")  # missing where the sizes are equal
    return step(None if matrix is None else matrix[:, :, 0], [_entries(found, level) for level in range(levels)])


def _entries(quantizer: Weights, level: int) -> Tensor:
    """Codebook entries: upstream keeps sums and usage counts and divides when it first needs them."""
    name = f"layers.{level}.codebook"
    usage = quantizer[f"{name}.cluster_usage"].clamp(min=CODEBOOK_EPSILON)
    return quantizer[f"{name}.embed_sum"] / usage[:, None]
