"""Many independent streams through one ring graph: whatever streams have a call's data ready step together.

    rows     0        1        2        3        4
           [ ann ]  [ eve ]  [ bob ]  [     ]  [ joe ]      ann and bob have no whole frame yet: one call with
                                                            rows 1 … 4, and only the states of 1 and 4 move on

A stream that joins takes the lowest free row and writes one integer, position 0, which makes the graph forget what
the row holds. A call runs the block of rows from the first ready one to the last. A row inside that is not ready
computes something that nobody reads: its position and convolution states stay, and the slots written are those its
next call writes again (they are older than its window). A graph of a fixed batch always runs all rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mimi_export.contract.spec import LATENTS
from mimi_export.errors import CodesError, ConfigError, StreamError
from mimi_export.runtime.checks import check_audio, check_decoded
from mimi_export.runtime.codec import Decoder, Encoder
from mimi_export.runtime.state import Array, BoundCall, moving, ort_value

BLOCKS = 256  # bindings that are kept: all blocks of 22 rows


class PoolOutput(NamedTuple):
    """What one stream got from a step: codes `[K, frames]`, latents `[frames, hidden]` or samples `[n]`."""

    stream: PoolStream
    output: Array


class PoolStream:
    """One stream in a pool; make it with `StreamPool.open`."""

    def __init__(self, pool: StreamPool, row: int) -> None:
        self.row = row
        self._pool = pool
        self._pending = pool.empty
        self.closed = False

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self._pending.shape[-1]} buffered, {self._pool.call_size} for a call"
        return f"<stream in row {self.row}: {state}>"

    @property
    def ready(self) -> bool:
        """Whether the data of a whole call is there."""
        return int(self._pending.shape[-1]) >= self._pool.call_size

    def push(self, data: npt.ArrayLike) -> None:
        """Add samples `[n]`, codes `[K, frames]` or latents `[frames, hidden]`; `StreamPool.step` computes.

        Raises:
            AudioError, CodesError: wrong shape, type or values.
            StreamError: the stream was closed.
        """
        if self.closed:
            raise StreamError("this stream was closed; open a new one")
        checked = self._pool.check(data)
        self._pending = np.concatenate([self._pending, checked], axis=-1)

    def flush(self) -> int:
        """Fill the last call with zeros, so that it is ready.

        Returns:
            How many samples or frames of it are real; 0 where nothing was left over.
        """
        size = self._pool.call_size
        real = int(self._pending.shape[-1]) % size
        if real:
            shape = (*self._pending.shape[:-1], size - real)
            self._pending = np.concatenate([self._pending, np.zeros(shape, self._pending.dtype)], axis=-1)
        return real

    def close(self) -> None:
        """Leave; the row is free for another stream, what was buffered is dropped."""
        if not self.closed:
            self.closed = True
            self._pool.release(self)

    def take(self) -> Array:
        """The data of one call, which leaves the buffer."""
        size = self._pool.call_size
        data, self._pending = self._pending[..., :size], self._pending[..., size:]
        return data


class StreamPool:
    """Streams of one graph that step together.

    Args:
        half: `codec.encoder` or `codec.decoder` of a variant with ring layout.
        rows: streams at most; for a graph of a fixed batch, that batch.

    Raises:
        ConfigError: the variant has the window layout, whose states move with every call, or a fixed batch that is
            not `rows`.
    """

    def __init__(self, half: Encoder | Decoder, rows: int) -> None:
        spec = half.spec
        if spec.shape.layout != "ring" or spec.shape.frames_per_call is None:
            raise ConfigError(
                "a pool needs a variant exported with --kv-cache ring: the states of a window move with every call"
            )
        if rows < 1:
            raise ConfigError(f"rows is {rows}, expected 1 or more")
        spec.check_rows(rows)
        self.spec, self.geometry, self.rows = spec, half.geometry, rows
        self.graph = half.graph
        self.call_size = spec.unit * spec.shape.frames_per_call
        channels = 1 if spec.kind == "encoder" else spec.shape.num_codebooks
        if spec.kind == "decoder" and spec.shape.start == LATENTS:
            channels = self.geometry.hidden_size
        self.empty: Array = np.zeros((channels, 0), spec.data_input.dtype)
        self._past = {  # with a row more, in which one that changes places waits
            state.name: np.zeros((rows + 1, *state.initial_shape(rows)[1:]), state.dtype) for state in spec.states
        }
        self._present = {state.name: np.zeros_like(self._past[state.name]) for state in moving(spec)}
        self._calls: dict[tuple[int, int], BoundCall] = {}
        self._streams: dict[int, PoolStream] = {}

    def __repr__(self) -> str:
        return f"<pool of {self.spec.kind} streams: {len(self._streams)} of {self.rows} rows taken>"

    def open(self) -> PoolStream:
        """A new stream in the lowest free row.

        Raises:
            StreamError: all rows are taken.
        """
        free = next((row for row in range(self.rows) if row not in self._streams), None)
        if free is None:
            raise StreamError(f"all {self.rows} rows of this pool are taken; close a stream or make a larger pool")
        self._past["position"][free] = 0
        stream = self._streams[free] = PoolStream(self, free)
        return stream

    def release(self, stream: PoolStream) -> None:
        """Free the row of a stream that was closed."""
        del self._streams[stream.row]

    def arrange(self, rows: Mapping[PoolStream, int]) -> None:
        """Let streams go on in other rows, with their states.

        Args:
            rows: where to; free ones, and those that streams of this mapping leave.

        Raises:
            StreamError: a row that stays another's or that two shall have, or a stream that was closed.
        """
        if any(stream.closed for stream in rows):
            raise StreamError("this stream was closed; open a new one")
        staying = {row: stream for row, stream in self._streams.items() if stream not in rows}
        arranged = staying | {row: stream for stream, row in rows.items()}
        if len(arranged) < len(staying) + len(rows) or not all(0 <= row < self.rows for row in arranged):
            raise StreamError(f"{len(rows)} streams cannot go to rows {sorted(rows.values())}")
        if not rows:
            return
        copies = _copies({new: stream.row for stream, new in rows.items()}, self.rows)
        for array in self._past.values():
            for new, old in copies:
                array[new] = array[old]
        self._streams = arranged
        for stream, row in rows.items():
            stream.row = row

    def step(self, streams: Collection[PoolStream] | None = None) -> list[PoolOutput]:
        """One call for those that are ready, of all streams or of `streams`; an empty list where none is."""
        return [PoolOutput(stream, outputs[0]) for stream, outputs in self.step_all(streams)]

    def step_all(self, streams: Collection[PoolStream] | None = None) -> list[tuple[PoolStream, tuple[Array, ...]]]:
        """As `step`, with everything that the graph gives: of an encoder with `head` both, codes and latents."""
        asked = self._streams.values() if streams is None else streams
        ready = sorted((stream for stream in asked if stream.ready), key=lambda stream: stream.row)
        if not ready:
            return []
        first, count = ready[0].row, ready[-1].row - ready[0].row + 1
        if self.spec.shape.rows is not None:
            first, count = 0, self.rows
        rows = [stream.row for stream in ready]
        places = [row - first for row in rows]
        data = np.zeros((count, self.empty.shape[0], self.call_size), self.empty.dtype)
        for place, stream in zip(places, ready, strict=True):
            data[place] = stream.take()
        data = np.moveaxis(data, 2, self.spec.data_input.time_axis)
        outputs = self._call(first, data.shape).run(data)
        for name, present in self._present.items():
            self._past[name][rows] = present[rows]
        if self.spec.kind == "decoder":
            outputs = (outputs[0][:, 0],)
        return [
            (stream, tuple(output[place] for output in outputs)) for place, stream in zip(places, ready, strict=True)
        ]

    def check(self, data: npt.ArrayLike) -> Array:
        """Samples as `[1, n]`, codes as `[K, frames]` or latents as `[hidden, frames]`, checked."""
        if self.spec.kind == "encoder":
            audio: Array = check_audio(data, 1)[0]
            return audio
        checked: Array = check_decoded(data, 1, self.spec, self.geometry)[0]
        if len(checked) != len(self.empty):
            raise CodesError(f"got {len(checked)} codebooks, a pool takes all {len(self.empty)}")
        return checked

    def _call(self, first: int, shape: tuple[int, ...]) -> BoundCall:
        """The binding over `shape[0]` rows from `first` on; slices of rows share the buffers."""
        block = slice(first, first + shape[0])
        call = self._calls.get((first, shape[0]))
        if call is None:
            if len(self._calls) == BLOCKS:
                del self._calls[next(iter(self._calls))]  # the oldest
            past = {name: ort_value(array[block]) for name, array in self._past.items()}
            present = {**past, **{name: ort_value(array[block]) for name, array in self._present.items()}}
            call = self._calls[first, shape[0]] = BoundCall(self.graph, past, present, shape)
        return call


def _copies(sources: dict[int, int], spare: int) -> list[tuple[int, int]]:
    """Pairs (to, from) of row copies in an order that gives each row of `sources` what its source held before."""
    left = {new: old for new, old in sources.items() if new != old}
    copies = []
    while left:
        new = next((row for row in left if row not in left.values()), None)
        if new is None:  # all that are left wait for each other: one makes room
            new = next(iter(left))
            copies.append((spare, new))
            left = {row: spare if source == new else source for row, source in left.items()}
        copies.append((new, left.pop(new)))
    return copies
