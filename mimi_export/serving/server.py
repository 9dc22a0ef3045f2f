"""A WebSocket server for live streams on one machine; `protocol` says what goes over the wire.

It listens for this machine alone unless clients have to know a token, and then passes on what clients send to one
`Batcher` for each half of the codec.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from mimi_export.contract.records import check_range
from mimi_export.errors import ConfigError, OutputError, StreamError
from mimi_export.runtime.codec import Codec
from mimi_export.runtime.processor import usable_cores
from mimi_export.serving import protocol
from mimi_export.serving.batcher import Batcher
from mimi_export.serving.conversation import BAD, LEAVING, Conversation, Ended, say
from mimi_export.serving.metrics import metrics
from mimi_export.serving.turns import Turns

LOOPBACK = ("localhost", "127.0.0.1", "::1")
CUT = 3.0  # seconds to answer what has come when streams are cut off
FULL, TOO_LARGE = 1013, 1009  # codes of closing


@dataclass(frozen=True)
class Limits:
    """What the server allows.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        token: what clients have to know; needed where others than this machine reach it.
        streams: encoders, and decoders, at a time.
        message_bytes: of one message.
        idle_seconds: a client that sends nothing or takes nothing for so long is ended.
        drain_seconds: how long open streams may go on after SIGTERM.
        deadline_ms: how long a call waits for others while nothing else is to be computed.

    Raises:
        ConfigError: a value out of range, or a host for others without a token.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    streams: int = 16
    message_bytes: int = 1 << 18
    idle_seconds: int = 30
    drain_seconds: int = 10
    deadline_ms: int = 10

    def __post_init__(self) -> None:
        """Check the numbers, and that strangers cannot reach an open server."""
        for name, least, most in (
            ("port", 0, 65535),
            ("streams", 1, 1024),
            ("message_bytes", 1 << 10, 1 << 26),
            ("idle_seconds", 1, 86_400),
            ("drain_seconds", 0, 3600),
            ("deadline_ms", 0, 1000),
        ):
            check_range(name, getattr(self, name), least, most)
        if self.host not in LOOPBACK and not self.token:
            raise ConfigError(f"others can reach {self.host}: give a --token that clients have to know")


class Server:
    """Serves one codec.

    Args:
        codec: of a variant with the ring layout that gives and takes codes.
        limits: what is allowed.

    Raises:
        ConfigError: another variant.
    """

    def __init__(self, codec: Codec, limits: Limits) -> None:
        shape = codec.artifact.manifest.shape
        if shape.head == "latents" or shape.start == "latents":
            raise ConfigError(f"{codec.artifact.path} has latents in place of codes; export one with codes")
        self.limits = limits
        self.geometry, self.codebooks = codec.geometry, shape.num_codebooks
        halves = {"encode": codec.encoder} | ({"decode": codec.decoder} if "decoder" in shape.kinds else {})
        turns = Turns(usable_cores())
        self.batchers = {
            task: Batcher(half, limits.streams, limits.deadline_ms / 1000, turns) for task, half in halves.items()
        }
        self.refused: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._leaving = asyncio.Event()
        self._over = asyncio.Event()
        self._clients: set[asyncio.Task[None]] = set()

    async def run(self, listening: Callable[[str, int], None]) -> None:
        """Serve until SIGTERM or SIGINT; tell `listening` where. `OutputError` where the port is taken."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):  # Windows has no such handlers
                loop.add_signal_handler(number, self._leaving.set)
        try:
            server = await serve(
                self._client,
                self.limits.host,
                self.limits.port,
                process_request=self._request,
                compression=None,
                max_size=self.limits.message_bytes,
                max_queue=4,
                ping_interval=None,  # an answer would wait behind what a client that is held back has sent
                close_timeout=2,
                server_header=None,
            )
        except OSError as error:
            raise OutputError(f"cannot listen on {self.limits.host}:{self.limits.port}: {error.strerror}") from error
        async with server:
            host, port = server.sockets[0].getsockname()[:2]
            listening(host, port)
            await self._leaving.wait()
            for seconds in (self.limits.drain_seconds, CUT):
                if self._clients:
                    await asyncio.wait(self._clients, timeout=seconds)
                self._over.set()
        for batcher in self.batchers.values():
            await asyncio.to_thread(batcher.stop)

    def _request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer HTTP, and let only those open a WebSocket who may."""
        parts = urlsplit(request.path)
        failed = any(batcher.failed for batcher in self.batchers.values())
        if parts.path == "/health":
            status = "failed" if failed else "leaving" if self._leaving.is_set() else "ok"
            streams = {task: batcher.open_streams for task, batcher in self.batchers.items()}
            code = HTTPStatus.OK if status == "ok" else HTTPStatus.SERVICE_UNAVAILABLE
            return _json(connection, code, {"status": status, "streams": streams})
        if not self._known(request):
            self.refused["token"] += 1
            return _json(connection, HTTPStatus.UNAUTHORIZED, {"type": "error", "message": "wrong or missing token"})
        if parts.path == "/metrics":
            page = connection.respond(HTTPStatus.OK, metrics(self.batchers, self.refused, self.dropped))
            del page.headers["Content-Type"]
            page.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
            return page
        return None

    def _known(self, request: Request) -> bool:
        """Whether a request has the token; without one, whether it comes from no other site's page in a browser."""
        if self.limits.token is None:
            origin = request.headers.get("Origin")
            return origin is None or urlsplit(origin).hostname in LOOPBACK
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        given = given or parse_qs(urlsplit(request.path).query).get("token", [""])[0]
        return hmac.compare_digest(given.encode(), self.limits.token.encode())

    async def _client(self, connection: ServerConnection) -> None:
        """One client from its first message to its last; whatever ends it early is told and counted."""
        task = asyncio.current_task()
        if task is not None:
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)
        talk: Conversation | None = None
        try:
            if self._leaving.is_set():
                await self._refuse(connection, LEAVING, "leaving", "the server is about to stop")
                return
            try:
                wish = protocol.parse(self._path(connection), self.geometry.sampling_rate, self.codebooks)
                if wish.task not in self.batchers:
                    raise ConfigError("this variant has no decoder")
                talk = Conversation(connection, self.batchers[wish.task], wish, self.geometry, self.limits.idle_seconds)
            except (ConfigError, StreamError) as error:
                full = isinstance(error, StreamError)
                await self._refuse(connection, FULL if full else BAD, "full" if full else "request", str(error))
                return
            await talk.run(self._over)
        except Ended as end:
            self.dropped[end.reason] += 1
            with contextlib.suppress(ConnectionClosed):
                await say(connection, "error", message=str(end))
                await connection.close(end.code, str(end)[:100])
        except ConnectionClosed as closed:
            too_large = closed.sent is not None and closed.sent.code == TOO_LARGE
            self.dropped["message_too_large" if too_large else "vanished"] += 1
        finally:
            if talk is not None:
                talk.close()

    async def _refuse(self, connection: ServerConnection, code: int, reason: str, message: str) -> None:
        self.refused[reason] += 1
        await say(connection, "error", message=message)
        await connection.close(code, message[:100])

    @staticmethod
    def _path(connection: ServerConnection) -> str:
        return connection.request.path if connection.request else ""


def _json(connection: ServerConnection, status: HTTPStatus, value: object) -> Response:
    response = connection.respond(status, json.dumps(value) + "\n")
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json"
    return response
