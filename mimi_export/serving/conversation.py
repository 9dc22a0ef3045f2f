"""One client of the server: a task that reads and one that writes.

Reading waits while more than `AHEAD` seconds of the client's calls are not computed or not taken, and the socket's own
limits then hold the client back: nothing grows, and nobody else waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable
from typing import TypeVar

from websockets.asyncio.server import ServerConnection

from mimi_export.contract.geometry import Geometry
from mimi_export.errors import AudioError, CodesError, ConfigError, MimiExportError
from mimi_export.media.resampling import Resampler
from mimi_export.runtime.state import Array
from mimi_export.serving import protocol
from mimi_export.serving.batcher import Batcher
from mimi_export.serving.protocol import Wish

AHEAD = 2.0  # seconds of calls that a client may have under way
NORMAL, LEAVING, BAD, DEFECT = 1000, 1001, 1008, 1011  # codes of closing, RFC 6455

Result = TypeVar("Result")


class Ended(Exception):  # noqa: N818 - an end is not always an error
    """A conversation that the server ends early: a word to count it by, a code of closing and a sentence."""

    def __init__(self, reason: str, code: int, message: str) -> None:
        super().__init__(message)
        self.reason, self.code = reason, code


class Conversation:
    """What a client sends and gets.

    Args:
        connection: its socket.
        batcher: of the half that it wants.
        wish: what it asked for.
        geometry: of the model.
        idle_seconds: how long it may send nothing, or take nothing.

    Raises:
        StreamError: there are as many streams as may be.
    """

    def __init__(
        self, connection: ServerConnection, batcher: Batcher, wish: Wish, geometry: Geometry, idle_seconds: float
    ) -> None:
        self._connection, self._batcher, self._wish, self._geometry = connection, batcher, wish, geometry
        self._idle = idle_seconds
        self._outputs: asyncio.Queue[Array | MimiExportError | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._taken = asyncio.Event()
        self._waits: dict[object, float] = {}  # since when the client has been waited for, by who waits
        self._ahead = max(2, round(AHEAD / batcher.call_seconds))
        encodes = wish.task == "encode"
        rates = (wish.rate, geometry.sampling_rate) if encodes else (geometry.sampling_rate, wish.rate)
        self._resampler = Resampler(*rates)
        self._unit = geometry.frame_size if encodes else 1  # of what comes, in a frame
        self._received = self._sent = 0  # samples or frames of the client, calls
        self._frames = self._samples = 0  # that went out
        self._calls: int | None = None  # in all, when that is known
        self._real = 0  # frames in all, then
        self._stream = batcher.open(self._deliver)

    def close(self) -> None:
        """Leave the batcher."""
        self._stream.close()

    async def run(self, over: asyncio.Event) -> None:
        """Read and write until the client has all it asked for, or the server is `over`.

        Raises:
            Ended: something else ended it.
            ConnectionClosed: the client went.
        """
        await say(
            self._connection,
            "ready",
            sampling_rate=self._geometry.sampling_rate,
            codebooks=self._wish.codebooks,
            frames_per_call=self._batcher.call_size // self._unit,
        )
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        watcher, stopped = asyncio.create_task(self._watch()), asyncio.create_task(over.wait())
        waiting: set[asyncio.Task[None] | asyncio.Task[bool]] = {reader, writer, watcher, stopped}
        try:
            while not writer.done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if stopped in done:
                    reader.cancel()
                    self._finish(self._stream.pushed // self._batcher.call_size)
                for task in done - {stopped}:
                    if not task.cancelled():
                        task.result()
        except (AudioError, CodesError, ConfigError) as error:
            raise Ended("request", BAD, str(error)) from error
        except MimiExportError as error:
            raise Ended("defect", DEFECT, str(error)) from error
        finally:
            for task in (reader, writer, watcher, stopped):
                task.cancel()
        if over.is_set():
            raise Ended("leaving", LEAVING, "the server stops; whole calls were answered")
        await self._end()

    async def _waited(self, wanted: Awaitable[Result]) -> Result:
        """What the client gives or takes; `_watch` sees to it that it does. A timer for each frame would cost more."""
        mark = object()
        self._waits[mark] = self._loop.time()
        try:
            return await wanted
        finally:
            del self._waits[mark]

    async def _watch(self) -> None:
        """End the conversation once something has been waited for too long."""
        while True:
            now = self._loop.time()
            left = min(self._waits.values(), default=now) + self._idle - now
            if left <= 0:
                raise Ended("idle", BAD, f"nothing was sent or taken for {self._idle:g} s")
            await asyncio.sleep(left)

    async def _read(self) -> None:
        while True:
            message = await self._waited(self._connection.recv())
            if isinstance(message, str):
                protocol.check_end(message)
                break
            self._push(message)
            while self._stream.pushed // self._batcher.call_size - self._sent > self._ahead:
                self._taken.clear()
                await self._waited(self._taken.wait())
        if self._wish.task == "encode":
            self._stream.push(self._resampler.flush())
        pushed, size = self._stream.pushed, self._batcher.call_size
        self._real = -(-pushed // self._unit)
        self._finish(-(-pushed // size))
        self._stream.end()

    def _push(self, message: bytes) -> None:
        if self._wish.task == "encode":
            samples = protocol.samples(message, self._wish.form)
            self._received += len(samples)
            self._stream.push(self._resampler.push(samples))
        else:
            codes = protocol.codes(message, self._wish.codebooks)
            self._received += codes.shape[1]
            self._stream.push(codes)

    def _finish(self, calls: int) -> None:
        """Let the writer know how many calls there are in all."""
        self._calls = calls if self._calls is None else self._calls
        self._outputs.put_nowait(None)

    async def _write(self) -> None:
        while self._calls is None or self._sent < self._calls:
            output = await self._outputs.get()
            if output is None:
                continue
            if isinstance(output, MimiExportError):
                raise output
            await self._waited(self._connection.send(self._message(output)))
            self._sent += 1
            self._taken.set()

    def _message(self, output: Array) -> bytes:
        """What goes out for the output of a call; what only fills the last one stays."""
        most = None if not self._real else self._real - self._frames
        if self._wish.task == "encode":
            output = output[:, :most]
            self._frames += output.shape[1]
            return protocol.frames(output, self._wish.codebooks)
        size = self._geometry.frame_size
        output = output[: None if most is None else most * size]
        self._frames += len(output) // size
        return self._sound(self._resampler.push(output))

    def _sound(self, samples: Array) -> bytes:
        self._samples += len(samples)
        return protocol.sound(samples, self._wish.form)

    async def _end(self) -> None:
        """The last messages: what the resampler still holds, and how much there was."""
        if self._wish.task == "decode":
            rest = self._resampler.flush()
            if len(rest):
                await self._connection.send(self._sound(rest))
            await say(self._connection, "end", frames=self._received, samples=self._samples)
        else:
            await say(self._connection, "end", samples=self._received, frames=self._frames)
        await self._connection.close(NORMAL)

    def _deliver(self, output: Array | MimiExportError) -> None:
        """Take an output over from the computing thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._outputs.put_nowait, output)


async def say(connection: ServerConnection, kind: str, **more: object) -> None:
    """Send a text message."""
    await connection.send(json.dumps({"type": kind, **more}))
