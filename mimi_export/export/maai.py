"""Encoders under the contract of MaAI's `EncoderMimiOnnx`, a client that turns microphones into latents.

    continuous_mimi_fp32.onnx            one speaker
    continuous_mimi_fp32_b2.onnx         both speakers of a dialogue in one call, under the same names
    continuous_mimi_int8.onnx, …         the same with products of 8-bit integers
    X.json and X.onnx.json beside each   what the client reads of it, under the two names by which it is looked for
    maai.json                            what was made from what

A call of N frames takes `wave_24k` `[B, 1, 1920·N]`, where its tokens are in the ring (`cache_position`) and in the
stream (`position_ids`), `pad_cache_i` (states of the convolutions) and `past_i` (keys and values of 250 tokens, at
`position mod 250`). It gives the latents `[B, N, hidden]`, the next `cache_position`, and the states. With N > 1
names end in `_Nf`. Where `position_ids` begins with 0 a stream begins, and its first latent is right.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from mimi_export import __version__
from mimi_export.contract.decibels import decibels
from mimi_export.contract.directory import list_files
from mimi_export.contract.files import atomic_directory
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.manifest import FORMAT_VERSION, MAAI_MANIFEST
from mimi_export.contract.precision import Int8Options
from mimi_export.contract.progress import Progress
from mimi_export.contract.records import plain
from mimi_export.contract.spec import GraphSpec, Shape, TensorSpec, graph_spec
from mimi_export.errors import ConfigError, GraphError
from mimi_export.export.calibration import Calibration
from mimi_export.export.convert import names_of, rewrite_graph
from mimi_export.export.precision import weight_forms
from mimi_export.export.trace import onnx_program, trace
from mimi_export.export.variant import finish, tool_versions
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.model.graphs import Call, StreamingEncoder, streaming_graph
from mimi_export.model.steps.cache import SlotCache
from mimi_export.passes.interface import SetInterface, SetMetadata
from mimi_export.passes.rounding import Rounded
from mimi_export.runtime.session import GraphSession

RATE = 16000  # Hz, at which the client records
CONTEXT = 320  # samples of overlap that it drops
SECONDS = 12.0  # of the check: more than the attention's window
LEAST_DB = {"fp32": 100.0, "int8": 33.0}
ROWS = (1, 2)

logger = logging.getLogger(__name__)
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class MaaiSpec(GraphSpec):
    """Inputs and outputs under the client's names; `states` are those of the window layout."""

    tokens_per_frame: int = 2

    @property
    def frames(self) -> int:
        """Frames of a call."""
        return int(self.data_input.shape[2]) // self.frame_size

    @property
    def inputs(self) -> list[TensorSpec]:
        """See `GraphSpec`."""
        tokens = (self.frames * self.tokens_per_frame,)
        positions = [TensorSpec(name, "int64", tokens) for name in ("cache_position", "position_ids")]
        return [self.data_input, *positions, *self._states("pad_cache", "past")]

    @property
    def outputs(self) -> list[TensorSpec]:
        """See `GraphSpec`."""
        position = TensorSpec("cache_position_out", "int64", (1,))
        return [self.data_output, position, *self._states("pad_cache_out", "past_out")]

    def _states(self, pad: str, past: str) -> Iterator[TensorSpec]:
        convs = [state for state in self.states if state.kind == "conv"]
        others = [state for state in self.states if state.kind != "conv"]
        for index, state in enumerate(convs):
            yield TensorSpec(f"{pad}_{index}", "float32", state.past_shape)
        for index, state in enumerate(others):
            rows, heads, _, dim = state.past_shape
            yield TensorSpec(f"{past}_{index}", "float32", (rows, heads, self.window_length, dim))


def maai_spec(geometry: Geometry, rows: int, frames: int) -> MaaiSpec:
    """The inputs and outputs of one graph."""
    graph = graph_spec(geometry, "encoder", Shape(0, rows=rows, head="latents", start="nothing"))
    wave = TensorSpec("wave_24k", "float32", (rows, 1, frames * geometry.frame_size))
    latents = TensorSpec("embeddings", "float32", (rows, frames, geometry.hidden_size))
    tokens = geometry.tokens_per_frame
    return MaaiSpec(**vars(graph) | {"data_input": wave, "data_output": latents, "tokens_per_frame": tokens})


class _Encoder(nn.Module):
    """An encoder of latents that is told where its tokens are. Weights keep their names: its children are its own."""

    def __init__(self, encoder: StreamingEncoder) -> None:
        super().__init__()
        self._step, self._graph, self._geometry = encoder.step, encoder.graph, encoder.geometry
        for name, child in encoder.named_children():
            self.add_module(name, child)
        self.register_buffer("half_swap", encoder.half_swap)

    half_swap: Tensor

    def forward(self, wave: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        slots, positions, *states = others
        past = {state.name: tensor for state, tensor in zip(self._graph.states, states, strict=True)}
        cache = SlotCache(self._geometry, wave.shape[0], slots, positions, self.half_swap)
        call = Call(self._graph, past, cache, None)
        (latents,) = self._step(call, wave)
        return latents, slots[-1:] + 1, *call.present()


def export_maai(
    checkpoint: Checkpoint,
    output_dir: str | os.PathLike[str],
    frames_per_call: int = 1,
    *,
    force: bool = False,
    progress: Progress = logger.info,
) -> dict[str, Any]:
    """Write all files of the contract to a directory; nothing is there until each graph has passed its check.

    Args:
        checkpoint: the model; an encoder alone will do.
        output_dir: the directory to make.
        frames_per_call: frames of a call, 1 or 2.
        force: replace an earlier directory.
        progress: told of each step.

    Returns:
        The content of `maai.json`; `checks` has the SNR of each graph's latents against `MimiModel`'s, in dB.

    Raises:
        ConfigError: another number of frames.
        GraphError: a graph's latents are not the model's.
        OutputError: the directory exists and `force` is not given, or cannot be written.
    """
    if frames_per_call not in (1, 2):
        raise ConfigError(f"--contract maai has 1 or 2 frames in a call, got {frames_per_call}")
    geometry, checks = checkpoint.geometry, {}
    latents = graph_spec(geometry, "encoder", Shape(0, head="latents", start="nothing"))
    plain_encoder = streaming_graph(checkpoint, latents)
    if not isinstance(plain_encoder, StreamingEncoder):
        raise TypeError(f"got {type(plain_encoder).__name__}, expected an encoder")
    rounded: dict[str, Rounded] = {}
    with atomic_directory(output_dir, force, MAAI_MANIFEST) as directory:
        for rows in ROWS:
            spec = maai_spec(geometry, rows, frames_per_call)
            progress(f"tracing the encoder of {rows} row(s)")
            outputs = [tensor.name for tensor in spec.outputs]
            model = trace(_Encoder(plain_encoder), spec, outputs, spec.window_length)
            ir.passes.Sequential(common.RemoveUnusedNodesPass(), SetInterface(spec))(model)
            for precision, least in LEAST_DB.items():
                made = model
                if precision == "int8":
                    forms = weight_forms(model, "encoder", Int8Options())
                    if not rounded:  # by the same weights' names in a graph that streams by itself
                        source = onnx_program(plain_encoder)
                        finish(source, latents, {})
                        rounded = Calibration(geometry).round(source, latents, names_of(forms, "int8"), progress)
                    made = rewrite_graph(model, "encoder", forms, rounded).model
                name = f"continuous_mimi_{precision}" + ("_b2" if rows == 2 else "")
                name += f"_{frames_per_call}f" if frames_per_call > 1 else ""
                progress(f"writing and checking {name}.onnx")
                path = directory / f"{name}.onnx"
                props = {"name": name, "precision": precision, "source_model": checkpoint.source}
                ir.save(SetMetadata(props, __version__)(made.clone()).model, path)
                onnx.checker.check_model(str(path), full_check=True)
                text = json.dumps(client_record(geometry, spec), indent=2) + "\n"
                for meta in (f"{name}.json", f"{name}.onnx.json"):
                    (directory / meta).write_text(text, encoding="utf-8")
                checks[path.name] = _check(checkpoint, path, spec, least)
        record = {
            "format_version": FORMAT_VERSION,
            "kind": "maai",
            "frames_per_call": frames_per_call,
            "source": {"model": checkpoint.source, "revision": checkpoint.revision},
            "tools": tool_versions(),
            "checks": checks,
            "files": plain(list_files(directory, MAAI_MANIFEST)),
        }
        (directory / MAAI_MANIFEST).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def client_record(geometry: Geometry, spec: MaaiSpec) -> dict[str, Any]:
    """What the client reads of a graph: it compares `required_params` with its own numbers."""
    frames, rate = spec.frames, geometry.frame_rate
    samples = {
        "wave_16k_call_window": CONTEXT + round(RATE / rate) * frames,
        "wave_24k_mimi_input": geometry.frame_size * frames,
    }
    inputs = {tensor.name: [*tensor.shape] for tensor in spec.inputs}
    pads = [shape for name, shape in inputs.items() if name.startswith("pad_cache_")]
    pasts = [shape for name, shape in inputs.items() if name.startswith("past_")]
    return {
        "required_params": {"frame_rate": rate, "context_samples": CONTEXT, "frames_per_call": frames, **samples},
        "input_names": list(inputs),
        "output_names": [tensor.name for tensor in spec.outputs],
        "num_pad_tensors": len(pads),
        "wave_24k_mimi_input": samples["wave_24k_mimi_input"],
        "cache_position_len": frames * geometry.tokens_per_frame,
        "max_past_len": geometry.sliding_window,
        "frame_rate": rate,
        "onnx_init_past_from_template": True,
        "contract": {
            "past_template_shapes": pasts,
            "spec": {
                "padding_cache_shapes": pads,
                "past_key_value_shapes": pasts,
                "num_padding_tensors": len(pads),
                "num_past_tensors": len(pasts),
                "frames_per_call": frames,
                "output_dim": geometry.hidden_size,
                **samples,
            },
        },
    }


def stream_latents(session: ort.InferenceSession, spec: MaaiSpec, geometry: Geometry, audio: Array) -> Array:
    """Feed whole calls of audio `[B, n]` as the client does: latents `[B, T, hidden]`."""
    names = [tensor for tensor in spec.inputs if tensor.name.startswith(("pad_", "past_"))]
    states = {tensor.name: np.zeros([int(size) for size in tensor.shape], np.float32) for tensor in names}
    size, tokens = spec.frames * geometry.frame_size, spec.frames * geometry.tokens_per_frame
    start = 0
    found: list[Array] = []
    for first in range(0, audio.shape[1] - size + 1, size):
        position = np.arange(tokens, dtype=np.int64) + len(found) * tokens
        feeds = {"wave_24k": audio[:, None, first : first + size], "position_ids": position, **states}
        feeds["cache_position"] = (np.arange(tokens, dtype=np.int64) + start) % geometry.sliding_window
        latents, following, *present = session.run(None, feeds)
        start, states = int(following[-1]), dict(zip(states, present, strict=True))
        found.append(latents)
    return np.concatenate(found, axis=1)


def _check(checkpoint: Checkpoint, path: Path, spec: MaaiSpec, least: float) -> float:
    """SNR in dB of a graph's latents, another clip in each row; `GraphError` where it is less than it must be."""
    geometry, rows = checkpoint.geometry, int(spec.data_input.shape[0])
    calls = int(SECONDS * geometry.frame_rate) // spec.frames
    sound = [speech_like(SECONDS, seed, geometry.sampling_rate) for seed in range(rows)]
    audio = np.stack(sound)[:, : calls * spec.frames * geometry.frame_size].astype(np.float32)
    found = stream_latents(GraphSession(path, spec).session, spec, geometry, audio).astype(np.float64)
    wanted = upstream.encode_latents(checkpoint.model, torch.from_numpy(audio[:, None])).transpose(1, 2).numpy()
    level = decibels(float(np.square(wanted, dtype=np.float64).sum()), float(np.square(found - wanted).sum()))
    if not level >= least:
        raise GraphError(f"{path.name} gives the model's latents at {level:.1f} dB only, wanted {least:g}")
    return level
