"""Rounds of A, B, C, A, B, C, …: every contender is asked for a few calls in each round, and all in turn.

A slow moment of the machine then hits all contenders and not one. The order turns by one place each round, so that
nobody always follows the same neighbour. What one contender did before (caches, clock rate) is washed out by a call
before each round that does not count.

Only what is asked for is running: contenders that wait use no processor.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from mimi_export.bench.contenders import Contender
from mimi_export.bench.plan import Fact, Measurement, Plan, Results, Situation, summarise
from mimi_export.bench.process import ContenderProcess
from mimi_export.contract.spec import GraphKind
from mimi_export.errors import MimiExportError

logger = logging.getLogger(__name__)
Progress = Callable[[str, float, float], None]  # step, done, of how many
Running = list[tuple[Contender, ContenderProcess]]


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
                running: Running = []
                for index, contender in enumerate(contenders):
                    progress(f"starting contenders for the {direction}", index, len(contenders))
                    process = _start(contender, direction, threads, audio, plan.huge_pages, results, stack)
                    running += [] if process is None else [(contender, process)]
                for situation in plan.situations(direction, threads):
                    _measure(running, plan, situation, results, progress)
    return results


def _start(
    contender: Contender,
    direction: GraphKind,
    threads: int,
    audio: Path | None,
    huge_pages: bool,
    results: Results,
    stack: ExitStack,
) -> ContenderProcess | None:
    if direction not in contender.directions or contender.name in results.skipped:
        return None
    try:
        process = stack.enter_context(contender.start(direction, threads, audio, huge_pages))
    except MimiExportError as error:
        if contender.group != "peer":
            raise
        results.skipped[contender.name] = str(error)
        logger.info("%s is left out: %s", contender.name, error)
        return None
    ready = process.ready
    results.facts.append(
        Fact(
            contender.name,
            direction,
            threads,
            ready.version,
            ready.note,
            ready.load_seconds,
            ready.import_seconds,
            process.rss_bytes,
            contender.file_bytes(direction),
            contender.weight_bytes(direction),
        )
    )
    return process


def _ways(contender: Contender, process: ContenderProcess, plan: Plan, situation: Situation) -> list[str]:
    """The ways in which a contender takes part in a situation; none where it does not."""
    alone, at_reference = situation.batch == 1, situation.age_seconds == plan.reference_age
    taking_part = {
        "bare": True,
        "push": contender.group == "ours" and alone and at_reference,
        "stream": alone and situation.age_seconds <= plan.peer_age_limit,
        "clip": alone and at_reference,  # once: it has no age
    }
    return [way for way in process.ready.ways if taking_part[way]]


def _measure(running: Running, plan: Plan, situation: Situation, results: Results, progress: Progress) -> None:
    taking_part = [(*pair, ways) for pair in running if (ways := _ways(*pair, plan, situation))]
    times: defaultdict[tuple[str, str, str], list[list[float]]] = defaultdict(list)
    memory: dict[str, int] = {}
    for index in range(plan.rounds):
        progress(str(situation), index, plan.rounds)
        turn = index % max(1, len(taking_part))
        for contender, process, ways in taking_part[turn:] + taking_part[:turn]:
            calls = plan.calls(situation.batch, process.ready.frames_per_call)
            reply = process.measure(ways, situation.age_seconds, situation.batch, calls)
            for way in ways:
                for clock in ("ms", "cpu_ms"):
                    times[contender.name, way, clock].append(reply[clock][way])
            memory[contender.name] = max(memory.get(contender.name, 0), process.rss_bytes)
    for contender, process, ways in taking_part:
        name, frames = contender.name, process.ready.frames_per_call
        for way in ways:
            wall, processor = (summarise(times[name, way, clock], frames) for clock in ("ms", "cpu_ms"))
            results.measurements.append(
                Measurement(name, contender.group, way, situation, wall, processor, memory[name])
            )
