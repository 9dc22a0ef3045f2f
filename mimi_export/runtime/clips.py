"""Whole clips through one encoder, several at once: as one ends, its row begins with the next.

    row 0   [ a a a a a a a ][ d d d ][ f f …         nothing is padded to the longest, and the codes of each clip
    row 1   [ b b ][ c c c c c c ][ e e e e …         are those of the clip alone

With a ring variant the rows are those of a `StreamPool`; with a window variant there is one row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from mimi_export.contract.spec import Shape
from mimi_export.errors import MimiExportError, StreamError
from mimi_export.runtime.codec import Encoder
from mimi_export.runtime.pool import PoolStream, StreamPool
from mimi_export.runtime.state import Array
from mimi_export.runtime.stream import Encoded, SampleStream

Key = TypeVar("Key")
FRAMES_IN_A_CALL = 16  # more share the reading of weights among more, and lose as much in the caches


class Clip(NamedTuple, Generic[Key]):
    """A clip to encode: what the caller calls it, and blocks of samples `[n]`; what these raise ends it alone."""

    key: Key
    blocks: Iterator[Array]


class EncodedClip(NamedTuple, Generic[Key]):
    """What came of a clip: its real samples, and codes `[K, frames]` and latents `[frames, hidden]` as far as the
    graph gives them; or the error that ended it.
    """

    key: Key
    samples: int
    codes: Array | None = None
    latents: Array | None = None
    error: MimiExportError | None = None


class _Row(Generic[Key]):
    """A clip on its way through a pool."""

    def __init__(self, clip: Clip[Key], stream: PoolStream) -> None:
        self.clip, self.stream = clip, stream
        self.samples = 0
        self.outputs: list[tuple[Array, ...]] = []

    def fill(self) -> bool:
        """Read until a call's samples are there; false at the end."""
        while not self.stream.ready:
            block = next(self.clip.blocks, None)
            if block is None:
                return self.stream.flush() > 0
            self.samples += len(block)
            self.stream.push(block)
        return True


def clips_at_once(shape: Shape, wanted: int | None = None) -> int:
    """How many clips go through one call: the batch of a graph that has one, else `wanted`, else `FRAMES_IN_A_CALL`."""
    if shape.layout != "ring":
        return 1
    return shape.rows or wanted or max(1, FRAMES_IN_A_CALL // (shape.frames_per_call or 1))


class ClipEncoder:
    """Encodes clips through one session.

    Args:
        encoder: of a variant.
        rows: clips at once with a ring variant, see `clips_at_once`.

    Attributes:
        seconds: spent in calls of the graph so far.
    """

    def __init__(self, encoder: Encoder, rows: int | None = None) -> None:
        shape = encoder.spec.shape
        self.seconds = 0.0
        self._encoder = encoder
        self.rows = clips_at_once(shape, rows)
        self._pool = StreamPool(encoder, self.rows) if shape.layout == "ring" else None
        self._heads = ("codes", "latents") if shape.head == "both" else (shape.head,)

    def run(self, take: Callable[[bool], Clip[Key] | None]) -> Iterator[EncodedClip[Key]]:
        """Encode what `take(wait)` gives, in the order in which clips end.

        `take(False)` gives `None` where no clip is there yet, `take(True)`, which waits for one, where none will come.
        """
        if self._pool is None:
            while (clip := take(True)) is not None:
                yield self._alone(clip)
            return
        active: dict[PoolStream, _Row[Key]] = {}
        while True:
            while len(active) < self.rows and (clip := take(not active)) is not None:
                stream = self._pool.open()
                active[stream] = _Row(clip, stream)
            if not active:
                return
            for row in list(active.values()):
                error = None
                try:
                    if row.fill():
                        continue
                except MimiExportError as caught:
                    error = caught
                row.stream.close()
                del active[row.stream]
                yield self._finished(row.clip, row.samples, row.outputs, error)
            began = time.perf_counter()
            for stream, outputs in self._pool.step_all():
                active[stream].outputs.append(outputs)
            self.seconds += time.perf_counter() - began

    def _alone(self, clip: Clip[Key]) -> EncodedClip[Key]:
        """One clip through a window."""
        stream = SampleStream(self._encoder.graph, self._encoder.geometry)
        encoded: list[Encoded] = []
        error: MimiExportError | None = None
        try:
            for block in clip.blocks:
                began = time.perf_counter()
                encoded.append(stream.encode(block))
                self.seconds += time.perf_counter() - began
            encoded.append(stream.finish()[0])
        except MimiExportError as caught:
            error = caught
        outputs = [tuple(getattr(call, head)[0] for head in self._heads) for call in encoded]
        return self._finished(clip, stream.num_samples, outputs, error)

    def _finished(
        self, clip: Clip[Key], samples: int, outputs: list[tuple[Array, ...]], error: MimiExportError | None
    ) -> EncodedClip[Key]:
        """Join the outputs of calls, without the frames of padding alone."""
        if error is None and not samples:
            error = StreamError("there is no sample in it")
        if error is not None:
            return EncodedClip(clip.key, samples, error=error)
        frames = -(-samples // self._encoder.geometry.frame_size)
        parts = dict(zip(self._heads, zip(*outputs, strict=True), strict=True))
        codes = np.concatenate(parts["codes"], axis=1)[:, :frames] if "codes" in parts else None
        latents = np.concatenate(parts["latents"], axis=0)[:frames] if "latents" in parts else None
        return EncodedClip(clip.key, samples, codes, latents)
