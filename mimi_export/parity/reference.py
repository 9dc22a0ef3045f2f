"""What is right: upstream's batch model over whole clips, untouched; and the step functions' states beside it.

A clip up to `MAX_FRAMES` long is one batch call. A longer one is computed in overlapping pieces, because attention
in batch needs memory with the square of the length: every output depends on a limited past (the *context*: window - 1
tokens for each transformer layer, and what the convolutions carry), so a piece that begins a context earlier, and
whose first context frames are thrown away, gives what the whole clip would, to rounding.

    clip    |----------------------------------------------|
    calls   [= kept ======][..context..][= kept =]
                     [..context..][= kept =]

Short pieces are the better reference, too: upstream rounds the angle of a position to float32, so it errs by more the
further a position is from the beginning. An exact stream, which does not, agrees with it a little less there, and
`parity` of five minutes shows it: 116 dB in the first 10 s, 110 dB in the last of a piece.

Pieces are kept on disk, so that any number of variants can be measured against one computation in constant memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mimi_export.contract.files import scratch_directory
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.network import conv_layers
from mimi_export.contract.progress import Progress
from mimi_export.contract.spec import GRAPH_KINDS, GraphKind, GraphSpec, Shape
from mimi_export.model import upstream
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.model.graphs import initial_states, streaming_graph
from mimi_export.parity.clips import Clip
from mimi_export.parity.metrics import Array, Audio
from mimi_export.parity.ties import ResidualQuantizer

MAX_FRAMES = 1250  # frames of one batch call: 100 s of Kyutai's model need about 2 GB
PIECE_FRAMES = 250  # frames kept of each further call
STEP_FRAMES = 16  # frames of one call of the step functions


class Piece(NamedTuple):
    """A run of whole frames of a clip.

    `samples` `[T·frame_size]` (zero-padded at the end), `latents` `[hidden, T]`, `codes` `[K, T]` for the most
    codebooks asked for, `audio`: what each number of codebooks decodes to, `[T·frame_size]`.
    """

    samples: Audio
    latents: Array
    codes: npt.NDArray[np.int64]
    audio: dict[int, Audio]


@dataclass(frozen=True)
class ReferenceClip:
    """The computed reference of one clip; `num_samples` were real."""

    clip: Clip
    directory: Path
    num_samples: int
    num_frames: int
    num_pieces: int

    def pieces(self) -> Iterator[Piece]:
        """The pieces in order."""
        for index in range(self.num_pieces):
            with np.load(self.directory / f"{index}.npz", allow_pickle=False) as file:
                audio = {int(name[5:]): file[name] for name in file.files if name.startswith("audio")}
                yield Piece(file["samples"], file["latents"], file["codes"], audio)

    def calls(self, pattern: Sequence[int]) -> Iterator[Piece]:
        """The clip cut into calls of so many frames, the pattern repeated; the last call is what is left."""
        lengths = itertools.cycle(pattern)
        wanted = next(lengths)
        held: Piece | None = None
        for piece in self.pieces():
            held = piece if held is None else join(held, piece)
            start, frames = 0, held.codes.shape[1]
            while start + wanted <= frames:
                yield split(held, start, start + wanted)
                start += wanted
                wanted = next(lengths)
            held = split(held, start, frames) if start < frames else None
        if held is not None:
            yield held


class Reference:
    """Batch PyTorch for a set of clips; use it in a `with` statement, its files go at the end.

    Args:
        checkpoint: the model.
        num_codebooks: every number of codebooks that a variant has; 0 for audio from latents.
        progress: told of each step.
        max_frames: frames of one batch call, see the module's docstring.
    """

    def __init__(
        self, checkpoint: Checkpoint, num_codebooks: Sequence[int], progress: Progress, max_frames: int = MAX_FRAMES
    ) -> None:
        self.checkpoint, self.geometry, self._progress = checkpoint, checkpoint.geometry, progress
        self.num_codebooks = sorted(set(num_codebooks))
        self._decoded = self.num_codebooks if upstream.has_decoder(checkpoint.model) else []
        self.quantizers = _quantizers(checkpoint)
        self._context = context_frames(self.geometry)
        self._max_frames = max(max_frames, self._context + 1)
        self._folder = scratch_directory("parity")
        self._clips: dict[str, ReferenceClip] = {}
        self._states: dict[tuple[str, GraphSpec], dict[str, Array]] = {}

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def clip(self, clip: Clip) -> ReferenceClip:
        """The reference of a clip, computed when it is first asked for; `AudioError` if it cannot be read."""
        if clip.name not in self._clips:
            self._progress(f"PyTorch reference of {clip.name}")
            self._clips[clip.name] = self._compute(clip)
        return self._clips[clip.name]

    def states(self, reference: ReferenceClip, graph: GraphSpec) -> dict[str, Array]:
        """States of the PyTorch step functions at the end of a clip, batch 1, by name."""
        key = (reference.clip.name, graph)
        if key not in self._states:
            self._progress(f"PyTorch states of the {graph.kind} after {reference.clip.name}")
            self._states[key] = self._step_through(reference, graph)
        return self._states[key]

    def _compute(self, clip: Clip) -> ReferenceClip:
        frame_size = self.geometry.frame_size
        directory = Path(self._folder.name) / str(len(self._clips))
        directory.mkdir()
        past_latents = np.zeros((self.geometry.hidden_size, 0), np.float32)
        past_codes = np.zeros((self.num_codebooks[-1], 0), np.int64)
        past = Piece(np.zeros(0, np.float32), past_latents, past_codes, {})
        num_samples = num_frames = index = 0
        for samples, real in self._runs(clip):
            skip = past.codes.shape[1]
            latents, codes = self._encode(np.concatenate([past.samples, samples]))
            piece = Piece(samples, latents[:, skip:], codes[:, skip:], {})
            heard = join(past, piece)
            arrays: dict[str, Any] = {"samples": samples, "latents": piece.latents, "codes": piece.codes}
            for count in self._decoded:
                decode = upstream.decode if count else upstream.decode_latents
                data = heard.codes[None, :count] if count else heard.latents[None]
                decoded = decode(self.checkpoint.model, torch.from_numpy(data.copy()))
                arrays[f"audio{count}"] = decoded[0, 0].numpy()[skip * frame_size :]
            np.savez(directory / f"{index}.npz", **arrays)
            frames = heard.codes.shape[1]
            past = split(heard, max(0, frames - self._context), frames)
            num_samples += real
            num_frames += frames - skip
            index += 1
        return ReferenceClip(clip, directory, num_samples, num_frames, index)

    def _encode(self, samples: Audio) -> tuple[Array, npt.NDArray[np.int64]]:
        model = self.checkpoint.model
        latents = upstream.encode_latents(model, torch.from_numpy(samples[None, None]))
        if not self.num_codebooks[-1]:
            return latents[0].numpy(), np.zeros((0, latents.shape[2]), np.int64)
        codes = upstream.quantize_latents(model, latents, self.num_codebooks[-1])
        return latents[0].numpy(), codes[0].numpy()

    def _runs(self, clip: Clip) -> Iterator[tuple[Audio, int]]:
        """Whole frames of a clip, as many as one batch call may have, and how many samples of them are real."""
        frame_size = self.geometry.frame_size
        further = min(PIECE_FRAMES, self._max_frames - self._context)
        sizes = itertools.chain([self._max_frames], itertools.repeat(further))
        wanted = next(sizes) * frame_size
        held = np.zeros(0, np.float32)
        for block in clip.blocks(self.geometry.sampling_rate):
            held = np.concatenate([held, block])
            while len(held) >= wanted:
                yield held[:wanted], wanted
                held = held[wanted:]
                wanted = next(sizes) * frame_size
        if len(held):
            yield np.pad(held, (0, -len(held) % frame_size)), len(held)

    @torch.no_grad()
    def _step_through(self, reference: ReferenceClip, graph: GraphSpec) -> dict[str, Array]:
        module = streaming_graph(self.checkpoint, graph)
        states = initial_states(graph, 1)
        for call in reference.calls([graph.shape.frames_per_call or STEP_FRAMES]):
            states = module(torch.from_numpy(graph_input(call, graph)), *states)[1 : 1 + len(states)]
        return {state.name: tensor.numpy().copy() for state, tensor in zip(graph.states, states, strict=True)}


def wanted_codebooks(shapes: Iterable[Shape]) -> list[int]:
    """What `Reference` has to know of codebooks for variants of these shapes."""
    counts = (count for shape in shapes for count in (shape.num_codebooks, shape.decoded_codebooks))
    return sorted({count for count in counts if count is not None})


def graph_input(call: Piece, graph: GraphSpec) -> Array:
    """What a graph gets for a call, batch 1: samples for an encoder, the reference's codes or latents for a decoder.

    A call that is shorter than a graph of fixed frames wants is filled up with zeros; a graph of a fixed batch gets
    the same in every row.
    """
    data: Array = call.samples[None, None] if graph.kind == "encoder" else decoder_input(call, graph.shape)[None]
    if graph.shape.frames_per_call is not None:
        axis = graph.data_input.time_axis
        missing = graph.shape.frames_per_call * (data.shape[axis] // call.codes.shape[1]) - data.shape[axis]
        data = np.pad(data, [(0, missing if place == axis else 0) for place in range(3)])
    return np.repeat(data, graph.shape.rows or 1, axis=0)


def decoder_input(call: Piece, shape: Shape) -> Array:
    """The reference's codes `[K, T]` or latents `[T, hidden]`, whichever a variant's decoder takes."""
    return call.codes[: shape.num_codebooks] if shape.decoded_codebooks else call.latents.T


def split(piece: Piece, start: int, stop: int) -> Piece:
    """Frames `start` to `stop` of a piece."""
    size = len(piece.samples) // piece.codes.shape[1]
    frames, samples = slice(start, stop), slice(start * size, stop * size)
    audio = {count: values[samples] for count, values in piece.audio.items()}
    return Piece(piece.samples[samples], piece.latents[:, frames], piece.codes[:, frames], audio)


def join(first: Piece, second: Piece) -> Piece:
    """Two pieces that follow each other as one."""
    return Piece(
        np.concatenate([first.samples, second.samples]),
        np.concatenate([first.latents, second.latents], axis=1),
        np.concatenate([first.codes, second.codes], axis=1),
        {count: np.concatenate([values, second.audio[count]]) for count, values in first.audio.items()},
    )


def context_frames(geometry: Geometry) -> int:
    """Frames before a frame that can have any influence on it, for encoder and decoder alike, rounded up."""
    tokens = geometry.num_hidden_layers * (geometry.sliding_window - 1)
    convs = max(_conv_context(geometry, kind) for kind in GRAPH_KINDS)
    return math.ceil(tokens / geometry.tokens_per_frame + convs * geometry.frame_rate) + 2


def _conv_context(geometry: Geometry, kind: GraphKind) -> float:
    """Seconds that the convolutions of one graph carry, summed over the layers."""
    rate = float(geometry.sampling_rate) if kind == "encoder" else geometry.frame_rate
    seconds = 0.0
    for layer in conv_layers(geometry, kind):
        rate = rate * layer.stride if layer.transposed else rate
        seconds += layer.state_size / rate
        rate = rate if layer.transposed else rate / layer.stride
    return seconds


def _quantizers(checkpoint: Checkpoint) -> list[ResidualQuantizer]:
    """Upstream's residual quantisers in float64, from the codebooks that upstream itself computes."""
    quantizer = upstream.parts(checkpoint.model).quantizer
    found = []
    for name in ("semantic", "acoustic"):
        residual: Any = getattr(quantizer, f"{name}_residual_vector_quantizer")
        matrix = None if residual.input_proj is None else _float64(residual.input_proj.weight[:, :, 0])
        found.append(ResidualQuantizer(matrix, [_float64(layer.codebook.embed) for layer in residual.layers]))
    return found


def _float64(tensor: Tensor) -> npt.NDArray[np.float64]:
    return tensor.detach().double().numpy()
