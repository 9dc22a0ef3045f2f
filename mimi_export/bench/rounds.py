"""Rounds of A, B, C, A, B, C, …: every contender is asked for a few calls in each round, and all in turn.

A slow moment of the machine then hits all contenders and not one. The order turns by one place each round, so that
nobody always follows the same neighbour. What one contender did before (caches, clock rate) is washed out by a call
before each round that does not count.

Only what is asked for is running: contenders that wait use no processor.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimi_export.bench.contenders import Contender
from mimi_export.bench.plan import Fact, Measurement, Plan, Results
from mimi_export.bench.process import ContenderProcess
from mimi_export.bench.summary import summarise
from mimi_export.contract.spec import GraphKind
from mimi_export.errors import MimiExportError

logger = logging.getLogger(__name__)
Progress = Callable[[str, float, float], None]  # step, done, of how many

CLIP_FRAMES = 125  # a call of a contender without streaming: 10 s
_COMMANDS: dict[GraphKind, str] = {"encoder": "encode", "decoder": "decode"}


def no_progress(*_: object) -> None:
    """Take a report of progress and do nothing."""


def run_rounds(
    contenders: Sequence[Contender],
    plan: Plan,
    audio: Path | None = None,
    progress: Progress = no_progress,
) -> Results:
    """Measure all contenders.

    Args:
        contenders: with names of their own.
        plan: what to measure.
        audio: a `.npy` file of samples that encoders of graphs get instead of generated speech.
        progress: told of each round.

    Raises:
        MimiExportError: a graph does not load or run. A peer that does not is left out, with the reason in `skipped`.
    """
    results = Results()
    for threads in plan.threads:
        for direction in plan.directions:
            with ExitStack() as stack:
                running = _start(contenders, plan, direction, threads, audio, results, stack, progress)
                for age, batch in plan.cells(threads):
                    where = f"{direction}, {threads} thread{'s' * (threads > 1)}, age {age:g} s, batch {batch}"
                    _measure(running, plan, direction, threads, age, batch, results, _step(progress, where))
                if threads == plan.threads[0]:
                    _count(running, plan, direction, results, progress)
    return results


@dataclass(frozen=True)
class _Running:
    contender: Contender
    process: ContenderProcess

    @property
    def is_graph(self) -> bool:
        return self.contender.directory is not None

    def takes_part(self, plan: Plan, age: float, batch: int) -> bool:
        if self.is_graph:
            return True
        if batch > 1:
            return False
        if not self.process.ready.streaming:
            return age == plan.reference_age  # once: it has no age
        return age <= plan.peer_age_limit


def _start(
    contenders: Sequence[Contender],
    plan: Plan,
    direction: GraphKind,
    threads: int,
    audio: Path | None,
    results: Results,
    stack: ExitStack,
    progress: Progress,
) -> list[_Running]:
    running = []
    for index, contender in enumerate(contenders):
        progress(f"starting contenders for the {direction}", index, len(contenders))
        if contender.name in results.skipped:
            continue
        try:
            process = stack.enter_context(contender.start(direction, threads, audio, plan.huge_pages))
        except MimiExportError as error:
            if contender.group != "peer":
                raise
            results.skipped[contender.name] = str(error)
            logger.info("%s is left out: %s", contender.name, error)
            continue
        ready = process.ready
        if contender.directory is None and _COMMANDS[direction] not in ready.commands:
            process.close()
            continue
        results.facts.append(
            Fact(
                contender.name,
                direction,
                threads,
                ready.version,
                ready.note,
                ready.load_seconds,
                ready.import_seconds,
                ready.rss_bytes,
                contender.file_bytes(direction),
            )
        )
        running.append(_Running(contender, process))
    return running


def _measure(
    running: Sequence[_Running],
    plan: Plan,
    direction: GraphKind,
    threads: int,
    age: float,
    batch: int,
    results: Results,
    progress: Callable[[float, float], None],
) -> None:
    taking_part = [entry for entry in running if entry.takes_part(plan, age, batch)]
    for entry in taking_part:
        if not entry.is_graph and entry.process.ready.streaming:
            entry.process.seek(age)
    wall: dict[tuple[str, str], list[list[float]]] = {}
    processor: dict[tuple[str, str], list[list[float]]] = {}
    memory: dict[str, int] = {}
    for index in range(plan.rounds):
        progress(index, plan.rounds)
        turn = index % max(1, len(taking_part))
        for entry in taking_part[turn:] + taking_part[:turn]:
            name = entry.contender.name
            if entry.is_graph:
                reply = _ask_graph(entry, plan, age, batch)
            else:
                reply = _ask_peer(entry, plan, direction, first=index == 0)
            for way, times in reply["ms"].items():
                wall.setdefault((name, way), []).append(times)
                if way in reply["cpu_ms"]:
                    processor.setdefault((name, way), []).append(reply["cpu_ms"][way])
            memory[name] = max(memory.get(name, 0), reply["rss_bytes"])
    by_name = {entry.contender.name: entry.contender for entry in taking_part}
    for (name, way), times in wall.items():
        contender = by_name[name]
        frames = CLIP_FRAMES if way == "clip" else contender.frames_per_call
        used = processor.get((name, way))
        results.measurements.append(
            Measurement(
                name,
                contender.group,
                direction,
                way,
                threads,
                batch,
                None if way == "clip" else age,
                summarise(times, frames),
                None if used is None else summarise(used, frames),
                memory[name],
            )
        )


def _ask_graph(entry: _Running, plan: Plan, age: float, batch: int) -> dict[str, Any]:
    push = entry.contender.group == "ours" and batch == 1 and age == plan.reference_age
    calls = max(2, -(-plan.calls(batch) // entry.contender.frames_per_call))
    wish = {"age_seconds": age, "batch": batch, "calls": calls, "ways": ["bare", "push"] if push else ["bare"]}
    return entry.process.request(f"measure {json.dumps(wish)}")


def _ask_peer(entry: _Running, plan: Plan, direction: GraphKind, first: bool) -> dict[str, Any]:
    """A round of a peer in the form of a graph's reply; one call before it is dropped."""
    command = _COMMANDS[direction]
    if entry.process.ready.streaming:
        reply, way, skip = entry.process.request(f"{command} {plan.calls(1) + 1}"), "stream", 1
    else:
        if first:
            entry.process.request(f"{command} {CLIP_FRAMES}")
        reply, way, skip = entry.process.request(f"{command} {CLIP_FRAMES}"), "clip", 0
    used = {way: reply["cpu_ms"][skip:]} if "cpu_ms" in reply else {}
    return {"ms": {way: reply["ms"][skip:]}, "cpu_ms": used, "rss_bytes": reply["rss_bytes"]}


def _count(running: Sequence[_Running], plan: Plan, direction: GraphKind, results: Results, progress: Progress) -> None:
    """Ask every graph what its calls read and compute."""
    graphs = [entry for entry in running if entry.is_graph]
    calls = plan.cells(plan.threads[0])
    for index, entry in enumerate(graphs):
        progress(f"{direction}, counting bytes and operations", index, len(graphs))
        name = entry.contender.name
        reply = entry.process.request(f"cost {json.dumps({'calls': calls})}")
        for (age, batch), cost in zip(calls, reply["costs"], strict=True):
            results.costs[(name, direction, age, batch)] = cost
        results.operators[(name, direction)] = reply["operators"]


def _step(progress: Progress, where: str) -> Callable[[float, float], None]:
    return lambda done, total: progress(where, done, total)
