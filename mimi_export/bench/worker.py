"""The measured side of a contender: a program that loads, then answers lines of JSON on stdin with lines on stdout.

    (start)     {"ready": true, "name", "version", "ways", "frames_per_call", "note", "import_seconds", "load_seconds"}
    request     {"ways": [way, …], "age_seconds", "batch", "calls"}
    reply       {"ms": {way: [a time for each call]}, "cpu_ms": {way: [the same in processor time]}}
                or {"error": text} for what the contender cannot do

The end of input ends the program. The ways of one request take turns call by call; one call of each before the measured
ones does not count. stdout belongs to the protocol alone: whatever a library prints there goes to stderr.

Nothing here needs more than the standard library, so that it runs where nothing of ours is installed.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, Any, Protocol

from mimi_export.errors import MimiExportError, MissingPackageError

Call = Callable[[], object]


class Subject(Protocol):
    """A program under test, loaded for one direction.

    Attributes:
        name: what the benchmark calls it.
        version: of the program.
        note: what a reader of the table must know.
        ways: the ways in which it can run.
        frames_per_call: of each of its calls.
    """

    name: str
    version: str
    note: str
    ways: tuple[str, ...]
    frames_per_call: int

    def calls(self, ways: Sequence[str], age_seconds: float, batch: int) -> dict[str, Call]:
        """What runs one call in each of `ways`, on streams of an age; making it is not timed."""


class Worker:
    """Answers requests for one subject."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._ready: tuple[object, dict[str, Call]] = (None, {})

    def answer(self, line: str) -> dict[str, Any]:
        """The reply to one line."""
        try:
            wish = json.loads(line)
            ways, calls = tuple(wish["ways"]), int(wish["calls"])
            age_seconds, batch = float(wish["age_seconds"]), int(wish["batch"])
        except (ValueError, TypeError, KeyError):
            return {"error": f"{line.strip()[:200]!r} is no request"}
        if not ways or set(ways) - set(self._subject.ways):
            offered = ", ".join(self._subject.ways)
            return {"error": f"{self._subject.name} runs as {offered}, not as {', '.join(ways) or 'nothing'}"}
        if calls < 1 or batch < 1 or not 0 <= age_seconds < float("inf"):
            return {"error": f"{calls} calls at {age_seconds:g} s with batch {batch}: expected one or more from 0 s on"}
        try:
            return self._measure(ways, age_seconds, batch, calls)
        except MimiExportError as error:
            return {"error": str(error)}

    def _measure(self, ways: tuple[str, ...], age_seconds: float, batch: int, calls: int) -> dict[str, Any]:
        situation = (ways, age_seconds, batch)
        if self._ready[0] != situation:
            self._ready = (None, {})  # its buffers go before others are made
            self._ready = (situation, self._subject.calls(ways, age_seconds, batch))
        runs = self._ready[1]
        wall: dict[str, list[float]] = {way: [] for way in ways}
        processor: dict[str, list[float]] = {way: [] for way in ways}
        for way in ways:
            runs[way]()
        for _ in range(calls):
            for way in ways:
                run = runs[way]
                used, began = time.process_time_ns(), time.perf_counter_ns()
                run()
                wall[way].append((time.perf_counter_ns() - began) / 1e6)
                processor[way].append((time.process_time_ns() - used) / 1e6)
        return {"ms": wall, "cpu_ms": processor}


def serve(load: Callable[[], Subject], modules: Sequence[str] = ()) -> int:
    """Import `modules`, load, say so, and answer until the input ends.

    Returns:
        The exit status: 0, or that of the error whose line is on stderr.
    """
    replies = _claim_stdout()
    began = time.perf_counter()
    try:
        try:
            for module in modules:
                importlib.import_module(module)
        except ImportError as error:
            raise MissingPackageError(f"it is not installed for {sys.executable}: {error}") from error
        imported = time.perf_counter()
        subject = load()
    except MimiExportError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    loaded = time.perf_counter()
    facts = {name: getattr(subject, name) for name in ("name", "version", "ways", "frames_per_call", "note")}
    seconds = {"import_seconds": imported - began, "load_seconds": loaded - imported}
    print(json.dumps({"ready": True, **facts, **seconds}), file=replies, flush=True)
    worker = Worker(subject)
    for line in sys.stdin:
        print(json.dumps(worker.answer(line)), file=replies, flush=True)
    return 0


def _claim_stdout() -> IO[str]:
    """A stream to the process's stdout; from now on everything else that is written there goes to stderr."""
    sys.stdout.flush()
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return protocol
