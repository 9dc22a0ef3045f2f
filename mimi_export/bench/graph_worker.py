"""One graph of ours (or of the baseline) as a contender in a process of its own.

    python -m mimi_export.bench.graph_worker DIR encoder|decoder [--threads 1] [--audio FILE.npy]

speaks the line protocol of `worker`, with commands of its own, because a graph can be asked for more than a peer:

    measure JSON    {"age_seconds", "batch", "calls", "ways": ["bare", "push"]}
                    -> {"ms": {way: […]}, "cpu_ms": {way: […]}}
    cost JSON       {"calls": [[age_seconds, batch], …]}
                    -> {"costs": […], "operators": {name: ms}}

`bare` is the session with everything bound (`bound`), `push` the runtime's stream; asked for together they take turns
call by call. One call before the measured ones does not count. `cpu_ms` is the processor time of the whole process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from mimi_export.bench.bound import BoundGraph, Growth, call_data, feeds, states_at
from mimi_export.bench.worker import claim_stdout, rss_bytes
from mimi_export.contract.manifest import Manifest
from mimi_export.contract.spec import GraphKind
from mimi_export.errors import MimiExportError
from mimi_export.runtime import load
from mimi_export.runtime.codec import Codec

COMMANDS = ("measure", "cost")
PUBLIC_PASS = "public-design"  # noqa: S105 - the name of a pass over a graph


class GraphWorker:
    """Answers the commands for one graph.

    Args:
        codec: the variant.
        kind: which of its graphs.
        audio: `[n]` for an encoder; generated speech unless given.
    """

    def __init__(self, codec: Codec, kind: GraphKind, audio: Any = None) -> None:
        self._half = codec.encoder if kind == "encoder" else codec.decoder
        self._graph = self._half.graph
        self._geometry = codec.geometry
        self._growth = growth_of(codec.artifact.manifest)
        self._audio = audio
        self._ready: tuple[tuple[float, int], dict[str, Callable[[], object]]] | None = None

    def answer(self, line: str) -> dict[str, Any]:
        """The reply to one line."""
        command, _, argument = line.strip().partition(" ")
        if command not in COMMANDS:
            return {"error": f"a graph cannot {command or 'do nothing'}: expected {' or '.join(COMMANDS)}"}
        wish = json.loads(argument)
        try:
            reply = self._measure(**wish) if command == "measure" else self._cost(**wish)
        except MimiExportError as error:
            return {"error": str(error)}
        return {"command": command, **reply, "rss_bytes": rss_bytes()}

    def _measure(self, age_seconds: float, batch: int, calls: int, ways: Sequence[str]) -> dict[str, Any]:
        runners = self._runners(age_seconds, batch)
        for way in ways:
            runners[way]()
        wall: dict[str, list[float]] = {way: [] for way in ways}
        processor: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(calls):
            for way in ways:
                run = runners[way]
                used, began = time.process_time_ns(), time.perf_counter_ns()
                run()
                wall[way].append((time.perf_counter_ns() - began) / 1e6)
                processor[way].append((time.process_time_ns() - used) / 1e6)
        return {"ms": wall, "cpu_ms": processor}

    def _runners(self, age_seconds: float, batch: int) -> dict[str, Callable[[], object]]:
        """What runs one call in each way; made anew when age or batch change."""
        key = (age_seconds, batch)
        if self._ready is None or self._ready[0] != key:
            self._ready = None  # its buffers go before others are made
            spec, geometry = self._graph.spec, self._geometry
            data = call_data(spec, geometry, batch, self._audio)
            bare = BoundGraph(self._graph.session, spec, geometry, data, age_seconds, self._growth)
            self._ready = key, {"bare": bare.step, "push": self._push(age_seconds, batch, data)}
        return self._ready[1]

    def _push(self, age_seconds: float, batch: int, data: Any) -> Callable[[], object]:
        """A stream of the runtime, brought to an age; made when it is first asked for."""
        made: list[Any] = []
        samples = data[:, 0] if self._graph.spec.kind == "encoder" else data

        def run() -> object:
            if not made:
                stream = self._half.stream(batch)
                states = states_at(self._graph.spec, self._geometry, batch, age_seconds, self._growth)
                stream.restore(dataclasses.replace(stream.snapshot(), states=states))
                made.append(stream)
            return made[0].push(samples)

        return run

    def _cost(self, calls: Sequence[tuple[float, int]]) -> dict[str, Any]:
        from mimi_export.bench.cost import measure_costs, operator_milliseconds

        spec, geometry = self._graph.spec, self._geometry
        inputs = []
        for age_seconds, batch in calls:
            states = states_at(spec, geometry, batch, age_seconds, self._growth)
            inputs.append(feeds(spec, call_data(spec, geometry, batch, self._audio), states))
        costs = measure_costs(self._graph.path, inputs, [state.past.name for state in spec.states])
        operators = operator_milliseconds(self._graph.path, inputs[0])
        return {"costs": [dataclasses.asdict(cost) for cost in costs], "operators": operators}


def growth_of(manifest: Manifest) -> Growth:
    """Whether the graphs of a variant drop what is older than the window."""
    return "unbounded" if any(record.get("pass") == PUBLIC_PASS for record in manifest.conversion) else "bounded"


def serve_graph(worker: GraphWorker, facts: dict[str, Any], requests: IO[str], replies: IO[str]) -> None:
    """Announce that the graph is loaded, with `facts`, and answer until the requests end or say `quit`."""

    def send(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    send(
        {"ready": True, "commands": list(COMMANDS), "frames_per_call": 1, "note": "", **facts, "rss_bytes": rss_bytes()}
    )
    for line in requests:
        if line.strip() == "quit":
            return
        send(worker.answer(line))


def main(arguments: Sequence[str] | None = None) -> int:
    """Load a graph and serve; an error of ours is one line on stderr and its exit status."""
    parser = argparse.ArgumentParser(prog="mimi_export.bench.graph_worker", description="Run one graph.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("kind", choices=("encoder", "decoder"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--audio", type=Path)
    options = parser.parse_args(arguments)
    replies = claim_stdout()
    try:
        codec = load(options.directory, threads=options.threads)
        half = codec.encoder if options.kind == "encoder" else codec.decoder
        began = time.perf_counter()
        _ = half.graph
        loaded = time.perf_counter()
    except MimiExportError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    audio = None if options.audio is None else np.load(options.audio, allow_pickle=False)
    facts = {
        "name": codec.artifact.manifest.name,
        "version": "",
        "threads": options.threads,
        "import_seconds": 0.0,
        "load_seconds": loaded - began,
    }
    serve_graph(GraphWorker(codec, options.kind, audio), facts, sys.stdin, replies)
    return 0


if __name__ == "__main__":
    sys.exit(main())
