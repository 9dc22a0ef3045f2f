"""How many live streams `mimi-export serve` carries: a real server on one core, real client processes on another.

    python scripts/serve_load.py artifacts/ring-8cb                                # looks for the most streams
    python scripts/serve_load.py artifacts/ring-8cb --streams 8 --seconds 600      # holds that many, memory over time

A stream sends a frame every 80 ms, at a phase of its own, and measures from the moment that it sends one to the moment
that the answer is there. The most streams are those of which 99 % of the answers take at most `--target-ms`; a try that
misses it is made again, up to `--tries` times, since a busy neighbour of this machine only ever adds. Beside them
stands what a graph alone carries on that core, see `graph_alone`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np

from mimi_export.media.signals import speech_like
from mimi_export.runtime import load

SERVER_CORE, CLIENT_CORE = 0, 1
WARM_SECONDS = 2.0
BATCH = 16
FRAME = 0.08  # seconds


def client(url: str, task: str, numbers: list[int], seconds: float, payload: bytes, call: int, queue: Any) -> None:
    """One process of several streams: puts their latencies in seconds."""
    os.sched_setaffinity(0, {CLIENT_CORE % (os.cpu_count() or 1)})
    queue.put(asyncio.run(_streams(f"{url}/{task}", numbers, seconds, payload, call)))


async def _streams(url: str, numbers: list[int], seconds: float, payload: bytes, call: int) -> list[float]:
    found = await asyncio.gather(*(_stream(url, number, seconds, payload, call) for number in numbers))
    return [latency for latencies in found for latency in latencies]


async def _stream(url: str, number: int, seconds: float, payload: bytes, call: int) -> list[float]:
    from websockets.asyncio.client import connect

    rng = np.random.default_rng(number)
    sent: list[float] = []
    got: list[float] = []
    async with connect(url, compression=None, ping_interval=None) as socket:
        await socket.recv()

        async def send() -> None:
            loop = asyncio.get_running_loop()
            begin = loop.time() + float(rng.uniform(0, 1))
            for index in range(int(seconds / FRAME)):
                await asyncio.sleep(begin + FRAME * index - loop.time())
                place = index * call % (len(payload) - call)
                sent.append(time.monotonic())
                await socket.send(payload[place : place + call])
            await socket.send('{"type": "end"}')

        sending = asyncio.create_task(send())
        async for message in socket:
            if isinstance(message, bytes):
                got.append(time.monotonic())
        await sending
    return [end - begin for begin, end in zip(sent, got, strict=True) if begin > sent[0] + WARM_SECONDS]


@contextmanager
def serving(directory: Path, streams: int) -> Iterator[tuple[str, int]]:
    """A server on one core: its address and process id."""
    command = [sys.executable, "-m", "mimi_export", "serve", str(directory), "--port", "0", "--streams", str(streams)]
    command = ["taskset", "-c", str(SERVER_CORE), *command]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = server.stderr.readline() if server.stderr else ""
        found = re.search(r"ws://\S+", line)
        if found is None:
            raise SystemExit(f"error: the server does not start: {line}")
        yield found[0], server.pid
    finally:
        server.terminate()
        server.wait()


def metrics(url: str) -> dict[str, float]:
    """What `/metrics` says, by name and labels."""
    with urllib.request.urlopen(f"http{url.removeprefix('ws')}/metrics") as answer:  # noqa: S310 - our own server
        page = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(\w+\S*) (\S+)$", page, re.MULTILINE)}


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def try_streams(directory: Path, task: str, streams: int, seconds: float, watch: bool = False) -> dict[str, Any]:
    """Serve so many streams of each half wanted; latencies in ms, what the server says, memory."""
    manifest = json.loads((directory / "manifest.json").read_text())
    codebooks = manifest["num_codebooks"]
    tasks = ("encode", "decode") if task == "both" else (task,)
    sound = (speech_like(20.0) * 32767).astype("<i2").tobytes()
    codes = np.random.default_rng(0).integers(0, manifest["geometry"]["codebook_size"], (250, codebooks))
    payloads = {"encode": (sound, 2 * 1920), "decode": (codes.astype("<u2").tobytes(), 2 * codebooks)}
    with serving(directory, streams) as (url, pid):
        queue: Any = multiprocessing.Queue()
        numbers = list(range(streams))
        begin, used = time.monotonic(), processor_seconds(pid)
        processes = [
            multiprocessing.Process(target=client, args=(url, one, numbers[part::2], seconds, *payloads[one], queue))
            for one in tasks
            for part in range(min(2, streams))
        ]
        for process in processes:
            process.start()
        latencies: list[float] = []
        left = len(processes)
        while left:
            try:
                latencies += [
                    1000 * latency for latency in queue.get(timeout=min(10.0, seconds / 4) if watch else None)
                ]
                left -= 1
            except Empty:
                memory = metrics(url)["process_resident_memory_bytes"] / 2**20
                print(f"  {time.monotonic() - begin:6.0f} s  {memory:6.0f} MiB", flush=True)
        for process in processes:
            process.join()
        used, took, found = processor_seconds(pid) - used, time.monotonic() - begin, metrics(url)
    calls = sum(found[f'mimi_calls_total{{task="{one}"}}'] for one in tasks)
    outputs = sum(found[f'mimi_outputs_total{{task="{one}"}}'] for one in tasks)
    quantiles = np.quantile(latencies, [0.5, 0.95, 0.99])
    return {
        "task": task,
        "streams": streams,
        **{name: round(float(value), 1) for name, value in zip(("p50", "p95", "p99"), quantiles, strict=True)},
        "streams_in_a_call": round(outputs / max(calls, 1), 2),
        "rows_in_vain": round(1 - outputs / sum(found[f'mimi_rows_total{{task="{one}"}}'] for one in tasks), 3),
        "processor": round(used / took, 3),
        "streams_a_core_by_processor_time": round(outputs / len(tasks) * FRAME / used, 1),
        "MiB": round(found["process_resident_memory_bytes"] / 2**20),
    }


def graph_alone(directory: Path, task: str, queue: Any) -> None:
    """Streams that the graphs compute as fast as they play, without a server.

    Three numbers: in batches of 16, by the clock and by processor time, and the most that one call of all of them (of
    each half wanted) computes within a frame. More than those no server can answer within a frame for long.
    """
    os.sched_setaffinity(0, {SERVER_CORE})
    codec = load(directory)
    codebooks = codec.artifact.manifest.shape.num_codebooks

    def seconds(rows: int) -> tuple[float, float]:
        steps: list[tuple[Any, Any]] = []
        if task != "decode":
            steps.append((codec.encoder.stream(rows), np.tile(speech_like(FRAME), (rows, 1)).astype(np.float32)))
        if task != "encode":
            steps.append((codec.decoder.stream(rows), np.zeros((rows, codebooks, 1), np.int64)))
        times = []
        for _ in range(25):
            begin = time.perf_counter(), time.process_time()
            for stream, data in steps:
                stream.push(data)
            times.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
        clock, processor = (statistics.median(column) for column in zip(*times[5:], strict=True))
        return clock, processor

    clock, processor = (FRAME * BATCH / one for one in seconds(BATCH))
    within, beyond = 0, max(2, round(1.5 * clock))
    while beyond - within > 1:
        middle = (within + beyond) // 2
        within, beyond = (middle, beyond) if seconds(middle)[0] <= FRAME else (within, middle)
    queue.put((round(clock, 1), round(processor, 1), within))


def main() -> None:
    """Look for the most streams, or hold a number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="variant with the ring layout")
    parser.add_argument("--task", choices=("encode", "decode", "both"), default="encode")
    parser.add_argument("--streams", type=int, help="hold so many; looks for the most unless given")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each try")
    parser.add_argument("--target-ms", type=float, default=80.0)
    parser.add_argument("--tries", type=int, default=2, help="of a number of streams that misses it")
    arguments = parser.parse_args()
    queue: Any = multiprocessing.Queue()
    alone = multiprocessing.Process(target=graph_alone, args=(arguments.directory, arguments.task, queue))
    alone.start()
    clock, processor, within = queue.get()
    alone.join()
    print(
        f"load average {os.getloadavg()[0]:.1f}; the graph alone, batches of {BATCH}: {clock} streams a core, ", end=""
    )
    print(f"{processor} by processor time; {within} whose calls all together take no longer than a frame", flush=True)

    def attempt(streams: int, watch: bool = False) -> bool:
        found = try_streams(arguments.directory, arguments.task, streams, arguments.seconds, watch)
        print(json.dumps(found), flush=True)
        return bool(found["p99"] <= arguments.target_ms)

    if arguments.streams is not None:
        attempt(arguments.streams, watch=True)
        return
    carried = {0: True}
    streams = max(1, round(0.8 * clock))
    while streams not in carried:
        carried[streams] = any(attempt(streams) for _ in range(arguments.tries))
        streams += 1 if carried[streams] else -1
    most = max(streams for streams, good in carried.items() if good)
    print(
        f"{most} streams at p99 of at most {arguments.target_ms:g} ms: {100 * most / clock:.0f} % of the graph alone "
        f"in batches of {BATCH}, {100 * most / max(within, 1):.0f} % of what it computes within a frame"
    )


if __name__ == "__main__":
    main()
