"""One thread that computes for many live streams: whoever has a call's data ready steps together.

    time     |------- 40 ms -------|------- 40 ms -------|     a call of one frame every 80 ms
    arrivals    a   c       d          b     e                 of five streams
    group 0   a c d   step ^                                   the last one of the group starts it
    group 1                          b e  step ^

Every stream has its place in the time of a call. Streams in the order of their times form groups of one size, each a
`StreamPool` of its own: all of a group are ready when its last is, none waits longer than the deadline, and a call
computes no row in vain. A stream that sends nothing is parked, in a pool that never steps; when it has data again, when
others come and go, or when clocks drift, groups are made anew and states move along.

What comes faster than live is taken along whenever its group steps, but only starts a step itself at a pace a little
above live, so a flood costs the others no more than a stream does.
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

Deliver = Callable[["Array | MimiExportError"], None]
PACE = 0.75  # of a call's own time between two calls that a stream may ask for
SILENT = 1.0  # seconds without data after which nobody waits for a stream
MOVE = 0.002  # seconds that the states of a stream take to another group, and more
ARRANGE = 2.0  # seconds between two looks at who steps with whom, where nobody comes or goes
RECENT = 4096  # calls that quantiles are of

logger = logging.getLogger(__name__)


class LiveStream:
    """One stream of a `Batcher`; made by `Batcher.open`.

    Args:
        batcher: who computes.
        row: its place in a pool.
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
        self.group: Group | None = None
        self.seen = 0.0
        self.pace = 0.0  # when the next call may be asked for, one call early
        self.phase = 0.0  # when its calls are complete, in the time of a call
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


class Group:
    """Streams that step together, and the pool they lie in."""

    def __init__(self, pool: StreamPool) -> None:
        self.pool = pool
        self.streams: list[LiveStream] = []


class Batcher:
    """The computing thread of one half of a codec.

    Args:
        half: of a variant with the ring layout.
        streams: at most, at a time.
        deadline: seconds that a call waits for others at most.

    Raises:
        ConfigError: the variant has the window layout.
    """

    def __init__(self, half: Encoder | Decoder, streams: int, deadline: float = 0.04) -> None:
        rows = half.spec.shape.rows or streams
        self._parking = StreamPool(half, rows)
        frames = half.spec.shape.frames_per_call or 1
        self.call_seconds = frames * half.spec.frame_size / half.geometry.sampling_rate
        self.call_size = self._parking.call_size
        self.check = self._parking.check
        self.deadline = deadline
        self.limit = min(streams, rows)
        windows = max(1, round(self.call_seconds / deadline))
        self._groups = [Group(StreamPool(half, rows)) for _ in range(windows)]
        self.changed = threading.Condition()
        self._streams: list[LiveStream] = []
        self._stopping = self.failed = False
        self._arranged = 0.0
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
            stream = LiveStream(self, self._parking.open(), deliver)
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
                group, due = self._next(now)
                if due > now:
                    self.changed.wait(None if due == float("inf") else due - now)
                    continue
            self._step(group, now)

    def _next(self, now: float) -> tuple[Group, float]:
        """The group that has to step next, and when; infinity where none has anything."""
        for stream in list(self._streams):
            self._take_in(stream, now)
        return min(((group, self._due(group, now)) for group in self._groups), key=lambda pair: pair[1])

    def _take_in(self, stream: LiveStream, now: float) -> None:
        """Do what others asked for since the last step: leave, add data, end; then put the stream where it belongs."""
        if stream.closed:
            self._streams.remove(stream)
            if stream.group is not None:
                stream.group.streams.remove(stream)
            stream.row.close()
            return
        if stream.inbox:
            stream.seen = now
        for data in stream.inbox:
            stream.row.push(data)
        stream.inbox.clear()
        if stream.ended and not stream.flushed:
            stream.row.flush()
            stream.flushed = True
        if stream.row.ready and stream.group is None:
            stream.phase = self._arrival(stream)
            self._move(stream, min(self._groups, key=lambda group: len(group.streams)))
            self._arrange()
        elif stream.group is not None and not stream.row.ready and now - stream.seen > SILENT:
            self._move(stream, None)
            self._arrange()

    def _arrange(self) -> None:
        """Streams in the order of their times, in groups of one size that are as short as can be."""
        period, count = self.call_seconds, len(self._groups)
        active = [stream for group in self._groups for stream in group.streams]
        active.sort(key=lambda stream: stream.phase % period)
        sizes = [len(active) // count + (number < len(active) % count) for number in range(count)]
        plans = []
        for first in range(len(active)):
            turned, plan = active[first:] + active[:first], []
            for size in sizes:
                plan.append(turned[:size])
                turned = turned[size:]
            longest = max(((arc[-1].phase - arc[0].phase) % period for arc in plan if arc), default=0.0)
            moves = sum(
                stream.group is not group for group, arc in zip(self._groups, plan, strict=True) for stream in arc
            )
            plans.append((longest + MOVE * moves, plan))
        if plans:
            for group, arc in zip(self._groups, min(plans, key=lambda found: found[0])[1], strict=True):
                for stream in arc:
                    self._move(stream, group)
        for group in self._groups:
            self._close_gaps(group)

    def _move(self, stream: LiveStream, group: Group | None) -> None:
        """Let a stream go on in another group, or parked."""
        if stream.group is group:
            return
        stream.row.move(self._parking if group is None else group.pool)
        if stream.group is not None:
            stream.group.streams.remove(stream)
        if group is not None:
            group.streams.append(stream)
        stream.group = group

    def _due(self, group: Group, now: float) -> float:
        """When the group has to step: at once if nobody is missing, else when its first has waited for the deadline."""
        ready = [stream for stream in group.streams if stream.row.ready]
        if not ready:
            return float("inf")
        alone = len(self._streams) == 1  # then there is nobody to be paced for
        first = min(max(self._arrival(stream), 0.0 if alone else stream.pace - self.call_seconds) for stream in ready)
        missing = any(stream not in ready and now - stream.seen <= SILENT for stream in group.streams)
        return first + self.deadline if missing else first

    def _arrival(self, stream: LiveStream) -> float:
        """When the data of the stream's next call were complete."""
        wanted = (stream.done + 1) * self.call_size
        while stream.arrivals[0][0] < wanted:
            stream.arrivals.popleft()
        return stream.arrivals[0][1]

    def _step(self, group: Group, now: float) -> None:
        """One call, without the lock: only this thread touches pools."""
        with self.changed:
            by_row = {stream.row: stream for stream in group.streams}
            came = {stream: self._arrival(stream) for stream in group.streams if stream.row.ready}
        try:
            outputs = group.pool.step()
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
            self.rows += max(output.stream.row for output in outputs) + 1
            self.busy_seconds += after - now
            for output in outputs:
                stream = by_row[output.stream]
                stream.done += 1
                live = came[stream] >= stream.pace - self.call_seconds
                stream.pace = max(stream.pace, came[stream]) + PACE * self.call_seconds
                off = (came[stream] - stream.phase + self.call_seconds / 2) % self.call_seconds - self.call_seconds / 2
                stream.phase += off / 8
                if live:
                    self.latency_count += 1
                    self.latency_sum += after - came[stream]
                    self.latencies.append(after - came[stream])
        for output in outputs:
            by_row[output.stream].deliver(output.output)
        with self.changed:
            self._close_gaps(group)
            if after - self._arranged > ARRANGE:
                self._arranged = after
                self._arrange()

    def _close_gaps(self, group: Group) -> None:
        """The last row goes where one before it is free, so that no call computes a free one."""
        rows = sorted((stream.row for stream in group.streams), key=lambda row: row.row)
        while rows and rows[-1].row >= len(rows) < group.pool.rows:
            rows[-1].move(group.pool)
            rows.sort(key=lambda row: row.row)
