"""Streams: audio in and codes out, or codes in and audio out, in pieces of any size.

An encoder stream collects samples to whole frames (and, for a graph of fixed frames per call, whole calls). What is
left at the end is filled with zeros by `flush`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mimi_export.contract.geometry import Geometry
from mimi_export.errors import AudioError, CodesError, StreamError
from mimi_export.runtime.session import GraphSession
from mimi_export.runtime.state import Array, StreamState, output_shape

MAX_FRAMES_PER_CALL = 32  # more gain no speed, and attention memory grows with the square
Audio = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]


class Flush(NamedTuple):
    """The end of an encoded stream: its last codes `[B, K, frames]`, and how many samples of them were real."""

    codes: Codes
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

    def __init__(self, graph: GraphSession, geometry: Geometry, batch: int, unit: int, empty: Array) -> None:
        self.geometry = geometry
        self.batch = batch
        self._state = StreamState(graph, batch)
        self._unit = unit  # entries of the input's last axis per frame
        self._empty = self._pending = empty
        spec = graph.spec
        self._none: Array = np.zeros((*output_shape(spec, (batch, 1, 0))[:2], 0), spec.data_output.dtype)
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

    def _run(self, data: Array) -> list[Array]:
        """Run all whole calls that the buffer and `data` make; keep the rest."""
        pending = np.concatenate([self._pending, data], axis=-1) if self._pending.shape[-1] else data
        fixed = self._state.graph.spec.shape.frames_per_call
        frames = pending.shape[-1] // self._unit
        frames -= frames % (fixed or 1)
        most = fixed or MAX_FRAMES_PER_CALL
        outputs = []
        for start in range(0, frames, most):
            stop = min(start + most, frames)
            outputs.append(self._state.step(np.ascontiguousarray(pending[..., start * self._unit : stop * self._unit])))
            self._pending = pending[..., stop * self._unit :]
        self._pending = pending[..., frames * self._unit :].copy()
        return outputs

    def _finish(self) -> tuple[list[Array], int]:
        """Zero-pad the buffer to a whole call and run it; the outputs and the entries that were real."""
        self._check_open()
        self._ended = True
        real = self._pending.shape[-1]
        if real == 0:
            return [], 0
        quantum = self._unit * (self._state.graph.spec.shape.frames_per_call or 1)
        padding = np.zeros((*self._pending.shape[:-1], -real % quantum), self._pending.dtype)
        return self._run(padding), real

    def _join(self, outputs: list[Array]) -> Array:
        """Outputs of calls in a row; the only one as it is, for between two calls every operation starts cold."""
        return outputs[0] if len(outputs) == 1 else np.concatenate([self._none, *outputs], axis=-1)

    def _check_open(self) -> None:
        if self._ended:
            raise StreamError("this stream was flushed; call reset() to begin a new one")


class EncoderStream(_Stream):
    """Samples in, codes out.

    Args:
        graph: an encoder's session.
        geometry: sizes of the model.
        batch: rows that are pushed together.
    """

    def __init__(self, graph: GraphSession, geometry: Geometry, batch: int = 1) -> None:
        super().__init__(graph, geometry, batch, geometry.frame_size, np.zeros((batch, 1, 0), np.float32))

    @property
    def num_samples(self) -> int:
        """Samples pushed since the stream began."""
        return self._count

    def push(self, samples: npt.ArrayLike) -> Codes:
        """Take samples, give the codes that are ready.

        Args:
            samples: `[n]` (batch 1) or `[B, n]` floats, full scale 1.0, at the model's sampling rate; any n.

        Returns:
            int64 `[B, K, frames]`; frames may be 0.

        Raises:
            AudioError: wrong shape or type, NaN or infinite samples.
            StreamError: the stream was flushed.
        """
        self._check_open()
        audio = check_audio(samples, self.batch)
        outputs = self._run(audio)
        self._count += audio.shape[-1]
        return self._join(outputs)

    def flush(self) -> Flush:
        """End the stream: fill the last frame with zeros and encode it.

        Returns:
            The remaining codes and the number of real samples among those they stand for; no codes and 0 where the
            stream ended with a whole frame.

        Raises:
            StreamError: the stream was flushed already.
        """
        outputs, real = self._finish()
        frames = -(-real // self.geometry.frame_size)
        return Flush(self._join(outputs)[..., :frames], real)


class DecoderStream(_Stream):
    """Codes in, samples out.

    Args:
        graph: a decoder's session.
        geometry: sizes of the model.
        batch: rows that are pushed together.
    """

    def __init__(self, graph: GraphSession, geometry: Geometry, batch: int = 1) -> None:
        super().__init__(graph, geometry, batch, 1, np.zeros((batch, 0, 0), np.int64))

    @property
    def num_frames(self) -> int:
        """Frames pushed since the stream began."""
        return self._count

    def push(self, codes: npt.ArrayLike) -> Audio:
        """Take codes, give their samples.

        Args:
            codes: integers `[K, frames]` (batch 1) or `[B, K, frames]`, K from 1 to the graph's codebooks; a stream
                may not change K while frames are buffered.

        Returns:
            float32 `[B, samples]`, `frame_size` samples a frame (all of them at once, unless the graph has more than
            one frame per call).

        Raises:
            CodesError: wrong shape, type or range.
            StreamError: the stream was flushed.
        """
        self._check_open()
        array = check_codes(codes, self.batch, self._state.graph.spec.shape.num_codebooks, self.geometry.codebook_size)
        if self._pending.shape[-1] == 0:
            self._pending = array[..., :0]
        elif self._pending.shape[1] != array.shape[1]:
            raise CodesError(f"got {array.shape[1]} codebooks while frames of {self._pending.shape[1]} are buffered")
        outputs = self._run(array)
        self._count += array.shape[-1]
        return self._join(outputs)[:, 0]

    def flush(self) -> Audio:
        """End the stream: the samples of buffered frames, which only a graph of several frames per call keeps."""
        outputs, real = self._finish()
        return self._join(outputs)[:, 0, : real * self.geometry.frame_size]


def check_audio(samples: npt.ArrayLike, batch: int) -> Audio:
    """Samples `[n]` (batch 1) or `[B, n]` as float32 `[B, 1, n]`; `AudioError` for what no encoder should get."""
    array: npt.NDArray[Any] = np.asarray(samples)
    if array.dtype.kind != "f":
        raise AudioError(f"samples are {array.dtype}, expected floats of full scale 1.0 (int16 / 32768)")
    if array.ndim == 1 and batch == 1:
        array = array[None]
    if array.ndim != 2 or array.shape[0] != batch:
        raise AudioError(f"samples have shape {list(array.shape)}, expected [{batch}, samples]")
    audio: Audio = array.astype(np.float32, copy=False)
    if not math.isfinite(np.vdot(audio, audio)):  # NaN and infinite samples show in the sum, and huge ones may
        bad = np.argwhere(~np.isfinite(audio))
        if len(bad):
            row, place = bad[0]
            raise AudioError(
                f"sample {place} of row {row} is {audio[row, place]}; remove NaN and infinite samples first"
            )
    return audio[:, None]


def check_codes(codes: npt.ArrayLike, batch: int, num_codebooks: int, codebook_size: int) -> Codes:
    """Codes `[K, T]` (batch 1) or `[B, K, T]` as int64 `[B, K, T]`; `CodesError` for what no decoder should get.

    K is 1 to `num_codebooks`. The message names the first bad value in the order row, codebook, frame.
    """
    array: npt.NDArray[Any] = np.asarray(codes)
    if array.dtype.kind not in "iu":
        raise CodesError(f"codes are {array.dtype}, expected integers")
    if array.ndim == 2 and batch == 1:
        array = array[None]
    if array.ndim != 3 or array.shape[0] != batch:
        raise CodesError(f"codes have shape {list(array.shape)}, expected [{batch}, codebooks, frames]")
    if not 1 <= array.shape[1] <= num_codebooks:
        raise CodesError(f"codes have {array.shape[1]} codebooks, this decoder takes 1 to {num_codebooks}")
    if array.size and not (array.min() >= 0 and array.max() < codebook_size):
        bad = (array < 0) | (array >= codebook_size)
        row, codebook, frame = np.unravel_index(int(np.argmax(bad)), bad.shape)
        raise CodesError(
            f"code {array[row, codebook, frame]} at row {row}, codebook {codebook}, frame {frame} is out of range, "
            f"expected 0 to {codebook_size - 1}"
        )
    return array.astype(np.int64, copy=False)
