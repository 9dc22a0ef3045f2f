"""A server that encodes many live streams in one graph call: 16-bit samples in, codes out, over TCP.

    mimi-export export --kv-cache ring --output-dir artifacts/ring
    python examples/server.py artifacts/ring 5000
    ffmpeg -i speech.wav -f s16le -ar 24000 -ac 1 - | nc -N localhost 5000 > codes.i16

A client sends mono 24 kHz little-endian samples and gets its codes, K 16-bit numbers a frame, as they are ready.
Clients come and go at any time; one that finds no free row is told so by a closed connection.
"""

import asyncio
import sys

import numpy as np

from mimi_export import StreamPool, load
from mimi_export.errors import StreamError

ROWS = 16  # clients at a time
TICK = 0.02  # seconds between two calls


async def serve(variant: str, port: int) -> None:
    """Take clients for ever."""
    pool = StreamPool(load(variant).encoder, ROWS)
    writers = {}

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            stream = pool.open()
        except StreamError:
            writer.close()
            return
        writers[stream] = writer
        try:
            ended = False
            while not ended:
                try:
                    data = await reader.readexactly(2 * pool.call_size)
                except asyncio.IncompleteReadError as end:
                    data, ended = end.partial[: len(end.partial) // 2 * 2], True
                stream.push(np.frombuffer(data, "<i2").astype(np.float32) / 32768)
                if ended:
                    stream.flush()  # fills the last frame with zeros
                while stream.ready:
                    await asyncio.sleep(TICK)
            await writer.drain()
        except ConnectionError:
            pass  # it has gone
        finally:
            stream.close()
            del writers[stream]
            writer.close()

    async def clock() -> None:
        while True:
            for stream, codes in pool.step():  # one graph call for all that are ready
                writers[stream].write(codes.T.astype("<i2").tobytes())
            await asyncio.sleep(TICK)

    async with await asyncio.start_server(client, "localhost", port) as server:
        print(f"listening on port {server.sockets[0].getsockname()[1]}", flush=True)
        await clock()


asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
