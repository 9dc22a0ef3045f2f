"""The streaming encoder and decoder: steps composed in the order of the network, states wired by name.

    encoder   waveform -> SEANet -> transformer (25 tokens/s) -> downsample -> quantiser -> codes (12.5 frames/s)
    decoder   codes -> quantiser -> upsample -> transformer -> SEANet -> waveform

A graph module takes `(data, *states)` and gives `(data, *states)` in the order of its `GraphSpec`. Inside, steps ask
for their state by name, because many states have the same shape and no shape check would see a swap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from mimi_export.contract import network, spec
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.network import ConvLayer, ResidualUnit
from mimi_export.contract.spec import GraphSpec
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.model.steps.attention import RingCache, WindowCache
from mimi_export.model.steps.conv_product import conv_step
from mimi_export.model.steps.elu import elu
from mimi_export.model.steps.quantizer import ResidualDecoder, ResidualEncoder
from mimi_export.model.steps.rope import half_swap
from mimi_export.model.steps.transformer import TransformerLayer
from mimi_export.model.upstream import Parts, parts

Tap = Callable[[str, Tensor], None]
LOUDEST = 2.0**30


class Call:
    """The states of one call: steps take `past` ones and put `present` ones, by name.

    Args:
        graph: the inputs and outputs of the graph.
        states: past tensors in the graph's order.
        tap: told of every intermediate result that a debug graph shows.
    """

    def __init__(self, graph: GraphSpec, states: tuple[Tensor, ...], tap: Tap | None) -> None:
        self.graph = graph
        self._past = {state.name: tensor for state, tensor in zip(graph.states, states, strict=True)}
        self._present: dict[str, Tensor] = {}
        self._tap = tap
        self.cache: WindowCache | RingCache | None = None
        self._running: Tensor | None = None

    def begin(self, geometry: Geometry, tokens: int, swap: Tensor) -> None:
        """Learn the positions of this call's `tokens` from the states that the client gave; `swap` is `half_swap`."""
        keys = self.past("key_0")
        if self.graph.shape.layout == "ring":
            cache = RingCache(geometry, self.past("position"), tokens, keys.shape[2], swap)
            self.put("position", cache.next_position)
            self.cache = cache
        else:
            self.cache = WindowCache(geometry, keys.shape[2], tokens)

    @property
    def fresh(self) -> Tensor:
        """Bool, `[]`-like or `[B, 1, 1]`: true where a stream begins with this call."""
        if self.cache is None:
            raise RuntimeError("begin() was not called")
        return self.cache.fresh

    @property
    def running(self) -> Tensor:
        """Float `[B, 1, 1]`: 0 where a stream begins with this call, else 1."""
        if self._running is None:
            self._running = (~self.fresh).to(torch.float32)
        return self._running

    def past(self, name: str) -> Tensor:
        """The state `name` as the client gave it."""
        return self._past[name]

    def put(self, name: str, tensor: Tensor) -> None:
        """Hand the state `name` to the next call."""
        self._present[name] = tensor

    def tap(self, name: str, tensor: Tensor) -> None:
        """Show an intermediate result where somebody looks."""
        if self._tap is not None:
            self._tap(name, tensor)

    def present(self) -> tuple[Tensor, ...]:
        """All states for the next call, in the graph's order."""
        return tuple(self._present[state.name] for state in self.graph.states)


class StreamingGraph(nn.Module):
    """What both graphs share: convolutions by name, the transformer, and the walk over a SEANet half.

    Args:
        graph: inputs and outputs.
        geometry: sizes of the model.
        seanet: description of the SEANet half.
        weights: the upstream SEANet half.
        transformer: the upstream transformer.
    """

    def __init__(
        self,
        graph: GraphSpec,
        geometry: Geometry,
        seanet: list[network.SeanetItem],
        weights: nn.Module,
        transformer: nn.Module,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.geometry = geometry
        self._seanet = seanet
        self.convs = nn.ModuleDict({layer.name: _read_conv(layer, weights) for layer in network.walk_convs(seanet)})
        self.layers = nn.ModuleList([TransformerLayer(geometry, layer) for layer in transformer.layers])
        self.register_buffer("half_swap", half_swap(geometry.head_dim))

    half_swap: Tensor

    def tap_names(self, *inputs: Tensor) -> list[str]:
        """Names of all intermediate results, in the order of computation."""
        names: list[str] = []
        self.run(lambda name, _: names.append(name), *inputs)
        return names

    def forward(self, data: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """One call: data and past states in, data and present states out."""
        return self.run(None, data, *states)

    def run(self, tap: Tap | None, data: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """`forward`, telling `tap` of every intermediate result."""
        call = Call(self.graph, states, tap)
        return self.step(call, data), *call.present()

    def step(self, call: Call, data: Tensor) -> Tensor:
        """Compute the data output of one call."""
        raise NotImplementedError(f"{type(self).__name__} is not a graph by itself")

    def conv(self, call: Call, layer: ConvLayer, x: Tensor) -> Tensor:
        """Run the convolution `layer`, carrying its state."""
        module = self.convs[layer.name]
        if layer.state_size == 0:
            y, _ = module(x, None)
        else:
            name = spec.conv_state_name(layer)
            y, kept = module(x, self._begin(call, layer, call.past(name), x))
            call.put(name, kept)
        call.tap(layer.name, y)
        return y

    def _begin(self, call: Call, layer: ConvLayer, past: Tensor, x: Tensor) -> Tensor:
        """The state to compute with: zeros from the client are right, but for a replicated or a ring's garbage one."""
        if not layer.transposed and layer.pad_mode == "replicate":
            return torch.where(call.fresh, x[:, :, :1], past)
        return past * call.running if self.graph.shape.layout == "ring" else past

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
        if call.cache is None:
            raise RuntimeError("begin() was not called")
        x = x.permute(2, 0, 1)
        for index, layer in enumerate(self.layers):
            key, value = f"key_{index}", f"value_{index}"
            x, present_key, present_value = layer(x, call.past(key), call.past(value), call.cache)
            call.put(key, present_key)
            call.put(value, present_value)
            call.tap(f"transformer_{index}", x)
        return x.permute(1, 2, 0)


class StreamingEncoder(StreamingGraph):
    """Waveform `[B, 1, frames·frame_size]` to codes int64 `[B, K, frames]`.

    A sample that is NaN, infinite or beyond `LOUDEST` counts as silence: one of them would else stay in the
    attention's past, poison every later frame, and outlive the stream in a ring's masked slots (0 times NaN is NaN).
    """

    def __init__(self, graph: GraphSpec, geometry: Geometry, upstream: Parts) -> None:
        super().__init__(
            graph, geometry, network.encoder_seanet(geometry), upstream.encoder_seanet, upstream.encoder_transformer
        )
        self._downsample = network.downsample_layer(geometry)
        self.convs[self._downsample.name] = _read_conv(self._downsample, upstream.downsample)
        semantic = geometry.num_semantic_quantizers
        self.semantic = ResidualEncoder(*_read_quantizer(upstream, "semantic", "input_proj", semantic))
        acoustic = graph.shape.num_codebooks - semantic
        self.acoustic = None
        if acoustic:
            self.acoustic = ResidualEncoder(*_read_quantizer(upstream, "acoustic", "input_proj", acoustic))

    def step(self, call: Call, data: Tensor) -> Tensor:
        """See `StreamingGraph`; a replicating model knows a first call before its first convolution."""
        call.begin(self.geometry, data.shape[2] // self.geometry.hop_length, self.half_swap)
        frames = data.unflatten(2, (-1, self.geometry.frame_size))  # refuses what is no whole number of frames
        x = self.seanet(call, torch.where(frames.abs() < LOUDEST, frames, 0.0).flatten(2))
        x = self.transformer(call, x)
        latents = self.conv(call, self._downsample, x).transpose(1, 2)
        call.tap("latents", latents)
        frames = latents.reshape(-1, self.geometry.hidden_size)
        codes = self.semantic(frames) + ([] if self.acoustic is None else self.acoustic(frames))
        return torch.stack(codes, dim=1).reshape(-1, latents.shape[1], len(codes)).transpose(1, 2)


class StreamingDecoder(StreamingGraph):
    """Codes int64 `[B, 1 … K, frames]` to a waveform `[B, 1, frames·frame_size]`."""

    def __init__(self, graph: GraphSpec, geometry: Geometry, upstream: Parts) -> None:
        super().__init__(
            graph, geometry, network.decoder_seanet(geometry), upstream.decoder_seanet, upstream.decoder_transformer
        )
        self._upsample = network.upsample_layer(geometry)
        self.convs[self._upsample.name] = _read_conv(self._upsample, upstream.upsample)
        semantic = geometry.num_semantic_quantizers
        self.semantic = ResidualDecoder(*_read_quantizer(upstream, "semantic", "output_proj", semantic))
        acoustic = graph.shape.num_codebooks - semantic
        self.acoustic = None
        if acoustic:
            self.acoustic = ResidualDecoder(*_read_quantizer(upstream, "acoustic", "output_proj", acoustic))

    def step(self, call: Call, data: Tensor) -> Tensor:
        """See `StreamingGraph`."""
        semantic = self.geometry.num_semantic_quantizers
        call.begin(self.geometry, data.shape[2] * self.geometry.tokens_per_frame, self.half_swap)
        latents = self.semantic(data[:, :semantic])
        if self.acoustic is not None:
            latents = latents + self.acoustic(data[:, semantic:])
        call.tap("latents", latents)
        x = self.conv(call, self._upsample, latents.transpose(1, 2))
        return self.seanet(call, self.transformer(call, x))


def streaming_graph(checkpoint: Checkpoint, graph: GraphSpec) -> StreamingGraph:
    """The PyTorch module that computes `graph` with the weights of `checkpoint`."""
    upstream = parts(checkpoint.model)
    kinds: dict[str, type[StreamingEncoder | StreamingDecoder]] = {
        "encoder": StreamingEncoder,
        "decoder": StreamingDecoder,
    }
    return kinds[graph.kind](graph, checkpoint.geometry, upstream).eval()


def initial_states(graph: GraphSpec, batch: int) -> tuple[Tensor, ...]:
    """The zeros that begin a stream, in the graph's order."""
    dtypes = {"float32": torch.float32, "int64": torch.int64}
    return tuple(torch.zeros(state.initial_shape(batch), dtype=dtypes[state.dtype]) for state in graph.states)


def _read_conv(layer: ConvLayer, weights: nn.Module) -> nn.Module:
    conv = weights.get_submodule(layer.path)
    return conv_step(layer, conv.weight, conv.bias)


def _read_quantizer(upstream: Parts, name: str, projection: str, levels: int) -> tuple[Tensor | None, list[Tensor]]:
    """A residual quantiser's projection `[out, in]` and its first `levels` codebooks."""
    quantizer = getattr(upstream.quantizer, f"{name}_residual_vector_quantizer")
    conv = getattr(quantizer, projection)
    matrix = None if conv is None else conv.weight.detach()[:, :, 0]
    return matrix, [_entries(layer.codebook) for layer in _first(quantizer.layers, levels)]


def _first(layers: nn.ModuleList, count: int) -> Iterator[nn.Module]:
    return iter(list(layers)[:count])


def _entries(codebook: nn.Module) -> Tensor:
    """Codebook entries: upstream keeps sums and usage counts and divides when it first needs them."""
    return (codebook.embed_sum / codebook.cluster_usage.clamp(min=codebook.epsilon)[:, None]).detach()
