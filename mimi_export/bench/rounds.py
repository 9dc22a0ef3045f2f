"""Rounds of A, B, C, A, B, C, …: every contender is asked for a few calls in each round, and all in turn.

A slow moment of the machine then hits all contenders and not one. The order turns by one place each round, so that
nobody always follows the same neighbour. What one contender did before (caches, clock rate) is washed out by a call
before each round that does not count.

Only what is asked for is running: contenders that wait use no processor.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mimi_export.bench.contenders import Contender
from mimi_export.bench.plan import Fact, Measurement, Plan, Results, Situation, summarise
from mimi_export.bench.process import ContenderProcess
from mimi_export.contract.progress import Advance, no_progress
from mimi_export.contract.spec import GraphKind
from mimi_export.errors import MimiExportError

logger = logging.getLogger(__name__)
Running = list[tuple[Contender, ContenderProcess]]


def run_rounds(
    contenders: Sequence[Contender], plan: Plan, audio: Path | None = None, progress: Advance = no_progress
) -> Results:
    """Measure all contenders, which have names of their own.

    Encoders of graphs get the samples of `audio`, a `.npy` file, or generated speech.

    Raises:
        MimiExportError: a graph does not load or run. A peer that does not is left out, with the reason in `skipped`.
    """
    run = _Run(plan, audio, progress)
    for threads in plan.threads:
        for direction in plan.directions:
            with ExitStack() as stack:
                running: Running = []
                for index, contender in enumerate(contenders):
                    progress(f"starting contenders for the {direction}", index, len(contenders))
                    running += run.start(contender, direction, threads, stack)
                for situation in plan.situations(direction, threads):
                    run.measure(running, situation)
    return run.results


class _Run:
    def __init__(self, plan: Plan, audio: Path | None, progress: Advance) -> None:
        self.results = Results()
        self._plan, self._audio, self._progress = plan, audio, progress

    def start(self, contender: Contender, direction: GraphKind, threads: int, stack: ExitStack) -> Running:
        """The contender with its process, or nothing where it takes no part."""
        if direction not in contender.directions or contender.name in self.results.skipped:
            return []
        try:
            shared = (self._audio, self._plan.huge_pages, self._plan.provider)
            process = stack.enter_context(contender.start(direction, threads, *shared))
        except MimiExportError as error:
            if contender.group != "peer":
                raise
            self.results.skipped[contender.name] = str(error)
            logger.info("%s is left out: %s", contender.name, error)
            return []
        ready = process.ready
        said = (ready.version, ready.note, ready.load_seconds, ready.import_seconds)
        sizes = (process.rss_bytes, *contender.sizes(direction))
        self.results.facts.append(Fact(contender.name, direction, threads, *said, *sizes))
        return [(contender, process)]

    def measure(self, running: Running, situation: Situation) -> None:
        """All rounds of one situation."""
        plan = self._plan
        taking_part = [(*pair, ways) for pair in running if (ways := _ways(*pair, plan, situation))]
        times: defaultdict[tuple[str, str, str], list[list[float]]] = defaultdict(list)
        memory: defaultdict[str, int] = defaultdict(int)
        for index in range(plan.rounds):
            self._progress(str(situation), index, plan.rounds)
            turn = index % max(1, len(taking_part))
            for contender, process, ways in taking_part[turn:] + taking_part[:turn]:
                calls = plan.calls(situation.batch, process.ready.frames_per_call)
                reply = process.measure(ways, situation.age_seconds, situation.batch, calls)
                for way, clock in itertools.product(ways, ("ms", "cpu_ms")):
                    times[contender.name, way, clock].append(reply[clock][way])
                memory[contender.name] = max(memory[contender.name], process.rss_bytes)
        for contender, process, ways in taking_part:
            for way in ways:
                wall, processor = (times[contender.name, way, clock] for clock in ("ms", "cpu_ms"))
                fields: dict[str, Any] = {**vars(situation), "way": way}
                fields |= {"contender": contender.name, "group": contender.group, "rss_bytes": memory[contender.name]}
                fields |= {"age_seconds": None} if way == "clip" else {}
                fields |= summarise(wall, processor, process.ready.frames_per_call)
                self.results.measurements.append(Measurement(**fields))


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
