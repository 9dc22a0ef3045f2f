"""The design of the public `mimi-onnx-streaming` graphs, rebuilt as the benchmark's baseline. For nothing else.

It is what a straightforward export of Mimi with explicit states gives: upstream's own layers one after the other,
keys cached after rotation and never dropped, separate query, key and value projections, layer scales as products,
every convolution an ONNX `Conv` or `ConvTranspose`, the nearest codebook entry by its distance. Inputs and outputs
have the published names. Nothing is slower than such an export makes it, and nothing is tuned; free batch and frame
counts, which cost nothing, are there so that all contenders can do the same work.

Its three defects belong to the design and are kept:

    downsampling   begins from zeros, where upstream repeats the first sample      all codes of frame 0
    overlap        kept with the bias, which the next call subtracts               one bias missing in call 0
    attention      causal without a window                                         everything after 10 s
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from mimi_export import __version__
from mimi_export.bench.graphs import PUBLIC
from mimi_export.contract import network, spec
from mimi_export.contract.directory import write_manifest
from mimi_export.contract.files import atomic_directory
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.manifest import Manifest, Source, metadata_props
from mimi_export.contract.network import ConvLayer, ResidualUnit
from mimi_export.contract.progress import Progress, no_progress
from mimi_export.contract.spec import BATCH, FRAMES, GRAPH_KINDS, GraphSpec, Shape
from mimi_export.export.trace import trace
from mimi_export.export.variant import tool_versions
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.model.steps.rope import inverse_frequencies
from mimi_export.model.upstream import Parts, parts
from mimi_export.passes.interface import SetInterface, SetMetadata

MOST_PAST = 2**24


class States(NamedTuple):
    """The states of one call by name: what it takes, and what it hands on."""

    past: dict[str, Tensor]
    present: dict[str, Tensor]


class PublicGraph(nn.Module):
    """One graph over upstream's modules as they are: waveform `[B, 1, frames·frame_size]` to codes `[B, K, frames]`, or
    codes to a waveform; K is fixed.
    """

    def __init__(self, graph: GraphSpec, geometry: Geometry, upstream: Parts) -> None:
        super().__init__()
        self.graph = graph
        self.geometry = geometry
        encodes = graph.kind == "encoder"
        self._items = network.encoder_seanet(geometry) if encodes else network.decoder_seanet(geometry)
        self.seanet = upstream.encoder_seanet if encodes else upstream.decoder_seanet
        self.layers = (upstream.encoder_transformer if encodes else upstream.decoder_transformer).layers
        self.resample = upstream.downsample if encodes else upstream.upsample
        quantizer = upstream.quantizer
        halves = (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer)
        self.projections = nn.ModuleList([half.input_proj if encodes else half.output_proj for half in halves])
        levels = (geometry.num_semantic_quantizers, graph.shape.num_codebooks - geometry.num_semantic_quantizers)
        kept = [half.layers[:count] for half, count in zip(halves, levels, strict=True)]
        self.codebooks = nn.ModuleList(
            nn.ParameterList(nn.Parameter(layer.codebook.embed.detach().clone()) for layer in layers) for layers in kept
        )

    def forward(self, data: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """One call: data and past states in, data and present states out."""
        names = [state.name for state in self.graph.states]
        named = States(dict(zip(names, states, strict=True)), {})
        step = self.encode if self.graph.kind == "encoder" else self.decode
        return step(data, named), *(named.present[name] for name in names)

    def encode(self, audio: Tensor, states: States) -> Tensor:
        """Codes of one call."""
        x = self.transformer(self.walk(audio, states).transpose(1, 2), states)
        layer = network.downsample_layer(self.geometry)
        latents = self.conv(layer, self.resample, x.transpose(1, 2), states)
        frames, codes = latents.shape[2], []
        for projection, books in zip(self.projections, self.codebooks, strict=True):
            residual = (latents if projection is None else projection(latents)).transpose(1, 2)
            residual = residual.reshape(-1, self.geometry.codebook_dim)
            for book in books.parameters():
                distances = (residual**2).sum(1, keepdim=True) - 2 * residual @ book.t() + (book**2).sum(1)
                code = distances.argmin(dim=-1)
                residual = residual - functional.embedding(code, book)
                codes.append(code.reshape(-1, frames))
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor, states: States) -> Tensor:
        """Samples of one call."""
        levels, latents = itertools.count(), 0.0
        for projection, books in zip(self.projections, self.codebooks, strict=True):
            entries = [functional.embedding(codes[:, next(levels)], book) for book in books.parameters()]
            if entries:
                total = sum(entries[1:], entries[0]).transpose(1, 2)
                latents = latents + (total if projection is None else projection(total))
        x = self.conv(network.upsample_layer(self.geometry), self.resample, latents, states)
        return self.walk(self.transformer(x.transpose(1, 2), states).transpose(1, 2), states)

    def conv(self, layer: ConvLayer, root: nn.Module, x: Tensor, states: States) -> Tensor:
        """One convolution with its state."""
        module = root.get_submodule(layer.path)
        if layer.state_size == 0:
            return functional.conv1d(x, module.weight, module.bias)
        name = spec.conv_state_name(layer)
        if not layer.transposed:
            x = torch.cat([states.past[name], x], dim=2)
            states.present[name] = x[:, :, x.shape[2] - layer.state_size :]
            return functional.conv1d(x, module.weight, module.bias, layer.stride, 0, layer.dilation, layer.groups)
        y = functional.conv_transpose1d(x, module.weight, module.bias, layer.stride, 0, 0, layer.groups)
        length, size = x.shape[2] * layer.stride, layer.state_size
        overlap = y[:, :, :size] + states.past[name]
        if module.bias is not None:
            overlap = overlap - module.bias[:, None]  # what is kept has it too; the zeros before call 0 have not
        states.present[name] = y[:, :, length:]
        return torch.cat([overlap, y[:, :, size:length]], dim=2)

    def walk(self, x: Tensor, states: States) -> Tensor:
        """The SEANet half over `[B, C, T]`."""
        for item in self._items:
            if item is None:
                x = functional.elu(x)
            elif isinstance(item, ResidualUnit):
                hidden = self.conv(item.first, self.seanet, functional.elu(x), states)
                hidden = self.conv(item.second, self.seanet, functional.elu(hidden), states)
                skip = x if item.shortcut is None else self.conv(item.shortcut, self.seanet, x, states)
                x = skip + hidden
            else:
                x = self.conv(item, self.seanet, x, states)
        return x

    def transformer(self, x: Tensor, states: States) -> Tensor:
        """The transformer over `[B, T, hidden]`."""
        g = self.geometry
        earlier, new = states.past["key_0"].shape[2], x.shape[1]
        positions = torch.arange(new) + earlier
        angles = positions[:, None].to(torch.float32) * inverse_frequencies(g.head_dim, g.rope_theta)
        angles = torch.cat([angles, angles], dim=-1)
        rotation = angles.cos(), angles.sin()
        visible = torch.arange(earlier + new)[None, :] <= positions[:, None]
        mask = torch.where(visible, 0.0, -math.inf)
        for index, layer in enumerate(self.layers):
            attended = self._attention(index, layer.input_layernorm(x), states, rotation, mask)
            x = x + layer.self_attn_layer_scale(attended)
            x = x + layer.mlp_layer_scale(layer.mlp(layer.post_attention_layernorm(x)))
        return x

    def _attention(
        self, index: int, x: Tensor, states: States, rotation: tuple[Tensor, Tensor], mask: Tensor
    ) -> Tensor:
        g, module = self.geometry, self.layers[index].self_attn
        tokens = x.shape[1]

        def heads(projection: nn.Module, count: int) -> Tensor:
            return projection(x).reshape(-1, tokens, count, g.head_dim).transpose(1, 2)

        query = _rotate(heads(module.q_proj, g.num_attention_heads), *rotation)
        key = _rotate(heads(module.k_proj, g.num_key_value_heads), *rotation)
        value = heads(module.v_proj, g.num_key_value_heads)
        keys = states.present[f"key_{index}"] = torch.cat([states.past[f"key_{index}"], key], dim=2)
        values = states.present[f"value_{index}"] = torch.cat([states.past[f"value_{index}"], value], dim=2)
        repeats = g.num_attention_heads // g.num_key_value_heads
        if repeats > 1:
            keys, values = (tensor.repeat_interleave(repeats, dim=1) for tensor in (keys, values))
        scores = query @ keys.transpose(2, 3) * (1 / math.sqrt(g.head_dim)) + mask
        joined = (torch.softmax(scores, dim=-1) @ values).transpose(1, 2)
        return module.o_proj(joined.reshape(-1, tokens, g.num_attention_heads * g.head_dim))


def export_public_design(
    checkpoint: Checkpoint, output_dir: Path, num_codebooks: int, progress: Progress = no_progress
) -> None:
    """Write the baseline as a variant directory that the runtime can open; nothing is there until all of it is.

    Raises:
        ConfigError: this model has no such number of codebooks.
        OutputError: the directory exists or cannot be written.
    """
    manifest = Manifest(
        PUBLIC,
        checkpoint.geometry,
        Shape(num_codebooks, growing=True),
        Source(checkpoint.source, checkpoint.revision),
        tools=tool_versions(),
        conversion=[{"pass": PUBLIC, "note": "the benchmark's baseline, with the defects of its design"}],
    )
    with atomic_directory(output_dir) as directory:
        for kind in GRAPH_KINDS:
            progress(f"exporting the {kind} of the public design")
            graph = manifest.spec(kind)
            if kind == "decoder":
                data = dataclasses.replace(graph.data_input, shape=(BATCH, num_codebooks, FRAMES))
                graph = dataclasses.replace(graph, data_input=data)
            module = PublicGraph(graph, checkpoint.geometry, parts(checkpoint.model)).eval().requires_grad_(False)
            model = trace(module, graph, [tensor.name for tensor in graph.outputs], MOST_PAST)
            SetInterface(graph)(model)
            SetMetadata(metadata_props(manifest), __version__)(model)
            ir.save(model, directory / graph.file_name)
        write_manifest(directory, manifest)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin
