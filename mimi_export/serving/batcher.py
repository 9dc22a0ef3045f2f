"""One thread that computes for many live streams: whenever it is free, those whose data are ready step together.

    time      |------------------- 80 ms ------------------|     a frame of each stream
    arrivals  a  b    c d  e        f         a  b     c d
    calls      [a ][b    ][c d e   ][f ]       [a ][b    ]

A call has as many rows as came while the one before it ran: the more streams, the larger the calls and the less a row
costs, and nobody waits for more than the rest of a call before its own. A call computes a block of rows of one
`StreamPool`, and no row in vain: those that are ready come together first, as far as few have to change rows. They
mostly lie together from the last time, since streams are ready in the order of their times again and again. A silent
stream keeps its row and costs nothing. While the thread is idle, a call waits some milliseconds for more streams, which
saves processor time.

What comes faster than live is computed at a pace a little above live while others are there, so a flood costs them
little more than a stream does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from mimi_export.errors import MimiExportError, StreamError
from mimi_export.runtime.codec import Decoder, Encoder
from mimi_export.runtime.pool import PoolStream, StreamPool
from mimi_export.runtime.state import Array
from mimi_export.serving.turns import Turns

Deliver = Callable[["Array | MimiExportError"], None]
PACE = 0.75  # of a call's own time between two calls that a stream may ask for
SILENT = 1.0  # seconds without data after which nobody waits for a stream
MOVES = 6  # streams that change rows for a call at most: up to half a millisecond each, a call more costs 3 to 10
SPARE = 4  # rows more than streams, so that few have to give way to one that changes rows
RECENT = 4096  # calls that quantiles are of

logger = logging.getLogger(__name__)


class LiveStream:
    """One stream of a `Batcher`; made by `Batcher.open`.

    Args:
        batcher: who computes.
        row: its place in the pool.
        deliver: is called in the computing thread with the output of each call in order: codes `[K, frames]`, samples
            `[n]`, or the error that ended it.
    """

    def __init__(self, batcher: Batcher, row: PoolStream, deliver: Deliver) -> None:
        self.deliver = deliver
        self.inbox: list[Array] = []
        self.arrivals: deque[tuple[int, float]] = deque()  # entries that there were in all, and when they came
        self.pushed = self.done = 0  # entries, calls
        self.ended = self.flushed = self.closed = False
        self.row = row
        self.seen = -float("inf")  # when data came
        self.pace = 0.0  # when the next call may be asked for, one call early
        self._batcher = batcher

    @property
    def waiting(self) -> int:
        """Whole calls whose output is not there yet; after `end` with what fills the last one."""
        calls, rest = divmod(self.pushed, self._batcher.call_size)
        return calls + (self.ended and rest > 0) - self.done

    def push(self, data: Array) -> None:
        """Add samples `[n]` or codes `[K, frames]`; `AudioError` or `CodesError` for what they must not be."""
        checked = self._batcher.check(data)
        with self._batcher.changed:
            self.inbox.append(data)
            self.pushed += checked.shape[-1]
            self.arrivals.append((self.pushed, time.monotonic()))
            self._batcher.changed.notify()

    def end(self) -> None:
        """Fill the last call with zeros."""
        with self._batcher.changed:
            self.ended = True
            size = self._batcher.call_size
            self.arrivals.append((-(-self.pushed // size) * size, time.monotonic()))
            self._batcher.changed.notify()

    def close(self) -> None:
        """Leave; what has not been computed is dropped."""
        with self._batcher.changed:
            self.closed = True
            self._batcher.changed.notify()


class Batcher:
    """The computing thread of one half of a codec.

    Args:
        half: of a variant with the ring layout.
        streams: at most, at a time.
        deadline: seconds that a call waits for others at most while the thread is idle.
        turns: for calls, shared with other batchers.

    Raises:
        ConfigError: the variant has the window layout.
    """

    def __init__(
        self, half: Encoder | Decoder, streams: int, deadline: float = 0.01, turns: Turns | None = None
    ) -> None:
        fixed = half.spec.shape.rows
        self._pool = StreamPool(half, fixed or streams + SPARE)
        frames = half.spec.shape.frames_per_call or 1
        self.call_seconds = frames * half.spec.frame_size / half.geometry.sampling_rate
        self.call_size = self._pool.call_size
        self.check = self._pool.check
        self.deadline = deadline
        self.limit = min(streams, self._pool.rows)
        self.changed = threading.Condition()
        self._fixed = fixed
        self._turns = turns or Turns(1)
        self._streams: list[LiveStream] = []
        self._stopping = self.failed = False
        self.calls = self.outputs = self.rows = 0
        self.busy_seconds = self.latency_sum = 0.0
        self.latency_count = 0
        self.latencies: deque[float] = deque(maxlen=RECENT)
        self._thread = threading.Thread(target=self._run, name=half.spec.kind, daemon=True)
        self._thread.start()

    @property
    def open_streams(self) -> int:
        """Streams that are not closed."""
        return sum(not stream.closed for stream in self._streams)

    def open(self, deliver: Deliver) -> LiveStream:
        """A new stream; `StreamError` where there are as many as may be."""
        with self.changed:
            if len(self._streams) >= self.limit:
                raise StreamError(f"all {self.limit} streams are taken; try again later")
            stream = LiveStream(self, self._pool.open(), deliver)
            self._streams.append(stream)
            return stream

    def stop(self) -> None:
        """Finish the step that runs, and end the thread."""
        with self.changed:
            self._stopping = True
            self.changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            logger.exception("the computing thread ended")
            self.failed = True
            for stream in self._streams:
                stream.deliver(StreamError(f"the computing thread ended: {error}"))

    def _serve(self) -> None:
        while True:
            with self.changed:
                if self._stopping:
                    return
                now = time.monotonic()
                due = self._due(now)
                if due > now:
                    self.changed.wait(None if due == float("inf") else due - now)
                    continue
            with self._turns.turn(due):
                self._step()

    def _take_in(self, now: float) -> None:
        """Do what others asked for since the last step: leave, add data, end."""
        for stream in list(self._streams):
            if stream.closed:
                self._streams.remove(stream)
                stream.row.close()
                continue
            if stream.inbox:
                stream.seen = now
            for data in stream.inbox:
                stream.row.push(data)
            stream.inbox.clear()
            if stream.ended and not stream.flushed:
                stream.row.flush()
                stream.flushed = True

    def _ready(self, now: float) -> tuple[dict[LiveStream, float], bool]:
        """From when on each stream with a call's data may step, and whether somebody active is missing."""
        self._take_in(now)
        ready = {stream: self._arrival(stream) for stream in self._streams if stream.row.ready}
        missing = any(stream not in ready and now - stream.seen <= SILENT for stream in self._streams)
        if len(ready) > 1 or missing:  # else there is nobody to be paced for
            ready = {stream: max(came, stream.pace - self.call_seconds) for stream, came in ready.items()}
        return ready, missing

    def _due(self, now: float) -> float:
        """When the next call begins; infinity where there is nothing for it."""
        ready, missing = self._ready(now)
        return min(ready.values(), default=float("inf")) + (self.deadline if missing else 0.0)

    def _block(self, now: float) -> list[LiveStream]:
        """Who steps: all that are ready, but for the latest where too many would have to change rows."""
        starts, _ = self._ready(now)
        ready = sorted((stream for stream, start in starts.items() if start <= now), key=lambda one: starts[one])
        while ready and not self._fixed:
            moves = self._gathered([stream.row for stream in ready])
            if len(moves) <= MOVES:
                self._pool.arrange(moves)
                break
            ready.pop()
        return ready

    def _gathered(self, ready: list[PoolStream]) -> dict[PoolStream, int]:
        """New rows for few, so that those that are ready lie together: others give way to them."""
        there = {stream.row.row: stream.row for stream in self._streams}
        rows = {stream.row for stream in ready}
        count, last = len(rows), self._pool.rows - len(rows)
        firsts = {min(max(first, 0), last) for row in rows for first in (row, row - count + 1)}

        def changing(first: int) -> int:
            block = range(first, first + count)
            return len(rows.difference(block)) + sum(row in there for row in block if row not in rows)

        first = min(sorted(firsts), key=changing)
        block = range(first, first + count)
        moves = {}
        places = iter(sorted(set(block) - rows))
        for row in sorted(rows.difference(block)):
            place = next(places)
            moves[there[row]] = place
            if place in there:
                moves[there[place]] = row
        return moves

    def _arrival(self, stream: LiveStream) -> float:
        """When the data of the stream's next call were complete."""
        wanted = (stream.done + 1) * self.call_size
        while stream.arrivals[0][0] < wanted:
            stream.arrivals.popleft()
        return stream.arrivals[0][1]

    def _step(self) -> None:
        """One call, without the lock: only this thread lets streams step."""
        with self.changed:
            now = time.monotonic()
            by_row = {stream.row: stream for stream in self._block(now)}
            came = {stream: self._arrival(stream) for stream in by_row.values()}
        if not by_row:  # whoever was ready has left while this thread waited for its turn
            return
        try:
            outputs = self._pool.step(by_row)
        except MimiExportError as error:
            logger.warning("a call of %d streams failed: %s", len(came), error)
            for stream in came:
                stream.deliver(error)
            with self.changed:
                for stream in came:
                    stream.closed = True
            return
        after = time.monotonic()
        with self.changed:
            self.calls += 1
            self.outputs += len(outputs)
            self.rows += self._fixed or len(outputs)
            self.busy_seconds += after - now
            for stream, at in came.items():
                self._count(stream, at, after)
        for output in outputs:
            by_row[output.stream].deliver(output.output)

    def _count(self, stream: LiveStream, came: float, after: float) -> None:
        """A call of a stream is done: its latency and pace."""
        period = self.call_seconds
        stream.done += 1
        if came >= stream.pace - period:  # no faster than live
            self.latency_count += 1
            self.latency_sum += after - came
            self.latencies.append(after - came)
        stream.pace = min(max(stream.pace, came), after + period) + PACE * period
