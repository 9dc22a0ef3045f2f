"""`serve`: a WebSocket server for live streams. Needs the extra `serve`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from mimi_export.cli.console import note
from mimi_export.cli.errors import needs_extra
from mimi_export.cli.options import Provider, Threads


def serve(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Variant directory with the ring layout.")],
    host: Annotated[str, typer.Option(metavar="HOST", help="Other than this machine needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="0 takes a free one.")] = 8765,
    token: Annotated[
        str | None, typer.Option(envvar="MIMI_EXPORT_TOKEN", metavar="TEXT", help="What clients have to know.")
    ] = None,
    streams: Annotated[int, typer.Option(metavar="N", help="Encoders, and decoders, at a time.")] = 16,
    message_bytes: Annotated[int, typer.Option(metavar="N", help="Of one message, at most.")] = 262144,
    idle_seconds: Annotated[int, typer.Option(metavar="S", help="Silent clients are ended.")] = 30,
    drain_seconds: Annotated[int, typer.Option(metavar="S", help="For streams after SIGTERM.")] = 10,
    deadline_ms: Annotated[int, typer.Option(metavar="MS", help="An idle core waits for more.")] = 10,
    threads: Threads = 1,
    provider: Provider = "cpu",
) -> None:
    """Serve live streams over WebSockets: sound in and codes out at /encode, the other way round at /decode.

    \b
      mimi-export serve artifacts/ring-8cb
      new WebSocket("ws://localhost:8765/encode?rate=48000&format=f32le")      // in a browser

    Send mono samples (s16le, f32le) as binary messages, and {"type": "end"}; codes come as 16-bit numbers, K a frame.
    Each half of the codec has a thread; --threads gives its graph more cores, and so does a server for each pair.
    A token goes into the header `Authorization: Bearer …` or the query. See also /health and /metrics.
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    with needs_extra("serve", "mimi-export serve"):
        from mimi_export.runtime import load
        from mimi_export.serving.server import Limits, Server
    limits = Limits(host, port, token, streams, message_bytes, idle_seconds, drain_seconds, deadline_ms)

    async def run() -> None:
        server = Server(load(directory, threads, (provider,)), limits)
        await server.run(lambda host, port: note(f"listening on ws://{host}:{port}"))

    asyncio.run(run())
    note("stopped")
