"""Streams: audio in and codes or latents out, or these in and audio out, in pieces of any size.

An encoder stream collects samples to whole frames (and, for a graph of fixed frames per call, whole calls). What is
left at the end is filled with zeros by `flush`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mimi_export.contract.geometry import Geometry
from mimi_export.errors import CodesError, StreamError
from mimi_export.runtime.checks import Audio, Codes, check_audio, check_decoded
from mimi_export.runtime.session import GraphSession
from mimi_export.runtime.state import Array, StreamState, output_shapes

MAX_FRAMES_PER_CALL = 32  # more gain no speed, and attention memory grows with the square
Latents = npt.NDArray[np.float32]


class Encoded(NamedTuple):
    """What an encoder made of a piece: codes `[B, K, frames]`, latents `[B, frames, hidden]`.

    What the graph does not give has no codebooks, or no channels.
    """

    codes: Codes
    latents: Latents


class Flush(NamedTuple):
    """The end of an encoded stream: its last codes `[B, K, frames]`, and how many samples of them were real."""

    codes: Codes
    real_samples: int


class LatentFlush(NamedTuple):
    """The end of a stream: its last latents `[B, frames, hidden]`, and how many samples of them were real."""

    latents: Latents
    real_samples: int


@dataclass(frozen=True)
class Snapshot:
    """A stream at one moment: its states by name, what it has buffered, and its counter."""

    states: dict[str, Array]
    pending: Array
    count: int
    ended: bool


class _Stream:
    """What both directions share: a buffer of whole and partial frames before a graph."""

    def __init__(self, graph: GraphSession, geometry: Geometry, batch: int = 1) -> None:
        self.geometry = geometry
        self.batch = batch
        self._state = StreamState(graph, batch)
        self._unit = graph.spec.unit
        self._empty: Array = np.zeros((batch, 1, 0), graph.spec.data_input.dtype)
        self._pending = self._empty
        self._time = graph.spec.data_input.time_axis
        shapes = output_shapes(graph.spec, (batch, 0, 0))
        whole = ((np.zeros(shapes[tensor.name], tensor.dtype), tensor) for tensor in graph.spec.data_outputs)
        self._none = tuple(np.delete(array, slice(None), tensor.time_axis) for array, tensor in whole)
        self._count = 0
        self._ended = False

    def __repr__(self) -> str:
        spec, rows = self._state.graph.spec, "" if self.batch == 1 else f", {self.batch} rows"
        what = f"{self._count} {'samples' if spec.kind == 'encoder' else 'frames'} so far"
        return f"<{spec.kind} stream{rows}: {what}, {self._pending.shape[-1]} buffered{', ended' * self._ended}>"

    def reset(self) -> None:
        """Begin a new stream; what was buffered is dropped."""
        self._state.reset()
        self._pending = self._empty
        self._count = 0
        self._ended = False

    def snapshot(self) -> Snapshot:
        """A copy of everything this stream knows, to `restore` it or to continue elsewhere."""
        return Snapshot(self._state.snapshot(), self._pending.copy(), self._count, self._ended)

    def restore(self, snapshot: Snapshot) -> None:
        """Become the stream that `snapshot` was taken of."""
        self._state.restore(snapshot.states)
        self._pending = snapshot.pending.copy()
        self._count = snapshot.count
        self._ended = snapshot.ended

    def _run(self, data: Array) -> list[tuple[Array, ...]]:
        """Run all whole calls that the buffer and `data` make (time last); keep the rest."""
        pending = np.concatenate([self._pending, data], axis=-1) if self._pending.shape[-1] else data
        fixed = self._state.graph.spec.shape.frames_per_call
        frames = pending.shape[-1] // self._unit
        frames -= frames % (fixed or 1)
        most = fixed or MAX_FRAMES_PER_CALL
        outputs = []
        for start in range(0, frames, most):
            stop = min(start + most, frames)
            call = np.moveaxis(pending[..., start * self._unit : stop * self._unit], 2, self._time)
            outputs.append(self._state.step(np.ascontiguousarray(call)))
            self._pending = pending[..., stop * self._unit :]
        self._pending = pending[..., frames * self._unit :].copy()
        return outputs

    def _finish(self) -> tuple[list[tuple[Array, ...]], int]:
        """Zero-pad the buffer to a whole call and run it; the outputs and the entries that were real."""
        self._check_open()
        self._ended = True
        real = self._pending.shape[-1]
        if real == 0:
            return [], 0
        quantum = self._unit * (self._state.graph.spec.shape.frames_per_call or 1)
        padding = np.zeros((*self._pending.shape[:-1], -real % quantum), self._pending.dtype)
        return self._run(padding), real

    def _join(self, outputs: list[tuple[Array, ...]]) -> tuple[Array, ...]:
        """Outputs of calls in a row; the only one as it is, for between two calls every operation starts cold."""
        if len(outputs) == 1:
            return outputs[0]
        tensors, joined = self._state.graph.spec.data_outputs, zip(self._none, *outputs, strict=True)
        return tuple(np.concatenate(parts, tensor.time_axis) for tensor, parts in zip(tensors, joined, strict=True))

    def _check_open(self) -> None:
        if self._ended:
            raise StreamError("this stream was flushed; call reset() to begin a new one")


class SampleStream(_Stream):
    """Samples in; what the graph gives out.

    Args:
        graph: an encoder's session.
        geometry: sizes of the model.
        batch: rows that are pushed together.
    """

    @property
    def num_samples(self) -> int:
        """Samples pushed since the stream began."""
        return self._count

    def encode(self, samples: npt.ArrayLike) -> Encoded:
        """Take samples, give codes and latents from one pass, as far as the graph gives both.

        Args:
            samples: `[n]` (batch 1) or `[B, n]` floats, full scale 1.0, at the model's sampling rate; any n.

        Raises:
            AudioError: wrong shape or type, NaN or infinite samples.
            StreamError: the stream was flushed.
        """
        self._check_open()
        audio = check_audio(samples, self.batch)
        outputs = self._run(audio)
        self._count += audio.shape[-1]
        return self._encoded(outputs, None)

    def finish(self) -> tuple[Encoded, int]:
        """End the stream: fill the last frame with zeros and encode it; how many samples of that were real."""
        outputs, real = self._finish()
        return self._encoded(outputs, -(-real // self.geometry.frame_size)), real

    def _encoded(self, outputs: list[tuple[Array, ...]], frames: int | None) -> Encoded:
        """The first `frames` of the outputs of calls in a row."""
        first, *further = self._join(outputs)
        if further:
            codes, latents = first, further[0]
        elif first.dtype.kind == "f":
            codes, latents = np.zeros((self.batch, 0, first.shape[1]), np.int64), first
        else:
            codes, latents = first, np.zeros((self.batch, first.shape[2], 0), np.float32)
        return Encoded(codes[..., :frames], latents[:, :frames])


class EncoderStream(SampleStream):
    """Samples in, codes out."""

    def push(self, samples: npt.ArrayLike) -> Codes:
        """Take samples, give the codes that are ready: int64 `[B, K, frames]`, frames may be 0; see `encode`."""
        return self.encode(samples).codes

    def flush(self) -> Flush:
        """End the stream: fill the last frame with zeros and encode it.

        Returns:
            The remaining codes and the number of real samples among those they stand for; no codes and 0 where the
            stream ended with a whole frame.

        Raises:
            StreamError: the stream was flushed already.
        """
        encoded, real = self.finish()
        return Flush(encoded.codes, real)


class LatentStream(SampleStream):
    """Samples in, latents out; one of an encoder that gives codes as well has them from `encode`."""

    def push(self, samples: npt.ArrayLike) -> Latents:
        """Take samples, give those that are ready: float32 `[B, frames, hidden]`, frames may be 0; see `encode`."""
        return self.encode(samples).latents

    def flush(self) -> LatentFlush:
        """End the stream: fill the last frame with zeros; `StreamError` where it was flushed already."""
        encoded, real = self.finish()
        return LatentFlush(encoded.latents, real)


class DecoderStream(_Stream):
    """Codes, or latents for a decoder that was exported to take them, in; samples out.

    Args:
        graph: a decoder's session.
        geometry: sizes of the model.
        batch: rows that are pushed together.
    """

    @property
    def num_frames(self) -> int:
        """Frames pushed since the stream began."""
        return self._count

    def push(self, codes: npt.ArrayLike) -> Audio:
        """Take codes or latents, give their samples.

        Args:
            codes: integers `[K, frames]` (batch 1) or `[B, K, frames]`, K from 1 to the graph's codebooks; a stream
                may not change K while frames are buffered. For a graph that takes latents: floats `[frames, hidden]`
                or `[B, frames, hidden]`.

        Returns:
            float32 `[B, samples]`, `frame_size` samples a frame (all of them at once, unless the graph has more than
            one frame per call).

        Raises:
            CodesError: wrong shape, type or range.
            StreamError: the stream was flushed.
        """
        self._check_open()
        array = check_decoded(codes, self.batch, self._state.graph.spec, self.geometry)
        if self._pending.shape[-1] == 0:
            self._pending = array[..., :0]
        elif self._pending.shape[1] != array.shape[1]:
            raise CodesError(f"got {array.shape[1]} codebooks while frames of {self._pending.shape[1]} are buffered")
        outputs = self._run(array)
        self._count += array.shape[-1]
        return self._join(outputs)[0][:, 0]

    def flush(self) -> Audio:
        """End the stream: the samples of buffered frames, which only a graph of several frames per call keeps."""
        outputs, real = self._finish()
        return self._join(outputs)[0][:, 0, : real * self.geometry.frame_size]
