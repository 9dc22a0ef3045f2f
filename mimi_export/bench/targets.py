"""What the project promises about speed, and what this run measured of it.

Every target is a ratio within one run, of medians, with one thread and a batch of 1 unless it says otherwise. Where
several variants of a kind took part the fastest stands for them; a ring counts with one frame per call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from mimi_export.bench.contenders import PUBLIC, Contender
from mimi_export.bench.cost import Cost
from mimi_export.bench.machine import Machine
from mimi_export.bench.plan import Measurement, Plan, Results
from mimi_export.contract.spec import GRAPH_KINDS, GraphKind

OLD, YOUNG, REFERENCE = 600.0, 2.0, 20.0
STREAM_BATCH = 16
PEERS = ("rustymimi", "moshi", "transformers-streaming")
_Fits = Callable[[Contender], bool]


@dataclass(frozen=True)
class Target:
    """One promise: `measured` should be at least (or, with `at_most`, at most) `must` and ideally `aim`.

    `measured` is `None` where this run did not measure it. `detail` names what was compared. `processor` is the same
    ratio of processor times instead of times on the wall: where the two differ much, other programs disturbed the run.
    """

    name: str
    must: float | None
    aim: float | None
    measured: float | None
    detail: str
    at_most: bool = False
    processor: float | None = None

    @property
    def verdict(self) -> str:
        """`aim`, `must`, `missed`, `reported` (nothing is demanded), or `not measured`."""
        if self.measured is None:
            return "not measured"
        for word, bound in (("aim", self.aim), ("must", self.must)):
            if bound is not None and (self.measured <= bound if self.at_most else self.measured >= bound):
                return word
        return "reported" if self.must is None else "missed"


def ring_fp32(contender: Contender) -> bool:
    """A float32 ring with one frame per call."""
    return contender.layout == "ring" and contender.precision == "fp32" and contender.frames_per_call == 1


def ring_int8(contender: Contender) -> bool:
    """An 8-bit ring with one frame per call."""
    return contender.layout == "ring" and contender.precision.startswith("int8") and contender.frames_per_call == 1


def window_fp32(contender: Contender) -> bool:
    """A float32 window."""
    return contender.layout == "window" and contender.precision == "fp32"


def targets(
    contenders: Sequence[Contender], results: Results, plan: Plan, machine: Machine, frame_ms: float
) -> list[Target]:
    """All targets with what was measured of them.

    Args:
        contenders: who took part.
        results: what was measured.
        plan: what was asked for.
        machine: limits with one thread.
        frame_ms: length of a frame.
    """
    wall, processor = (
        _Run(contenders, results, plan, machine, frame_ms, clock).targets() for clock in ("wall", "processor")
    )
    return [replace(target, processor=other.measured) for target, other in zip(wall, processor, strict=True)]


class _Run:
    def __init__(
        self,
        contenders: Sequence[Contender],
        results: Results,
        plan: Plan,
        machine: Machine,
        frame_ms: float,
        clock: str,
    ) -> None:
        self._clock = clock
        self._ours = [contender for contender in contenders if contender.group == "ours"]
        self._results = results
        self._machine = machine
        self._frame_ms = frame_ms
        self._reference = plan.reference_age
        self._directions = plan.directions
        self._threads = 1

    def targets(self) -> Iterator[Target]:
        for direction in GRAPH_KINDS:
            yield self._against_public("ring fp32", ring_fp32, direction, REFERENCE, 1.25, 1.5)
        for direction in GRAPH_KINDS:
            yield self._against_public("ring int8", ring_int8, direction, REFERENCE, 2.4, 3.5)
        for age, must in ((REFERENCE, 1.0), (OLD, 3.0)):
            for direction in GRAPH_KINDS:
                yield self._against_public("window fp32", window_fp32, direction, age, must, None)
        yield self._ageing()
        for peer in PEERS:
            for direction in GRAPH_KINDS:
                if peer != "transformers-streaming" or direction == "encoder":
                    yield self._against_peer(peer, direction)
        yield self._streams()
        for direction in GRAPH_KINDS:
            yield self._bandwidth(direction)
        yield self._overhead()

    def _against_public(
        self, words: str, fits: _Fits, direction: GraphKind, age: float, must: float, aim: float | None
    ) -> Target:
        name = f"{words} against the public design at {age:g} s, {direction}: times faster"
        mine, theirs = self._fastest(fits, direction, age), self._find(PUBLIC, direction, age)
        return self._ratio(name, mine, theirs, must, aim)

    def _against_peer(self, peer: str, direction: GraphKind) -> Target:
        name = f"ring int8 against {peer}, {direction}: times faster"
        mine = self._fastest(ring_int8, direction, REFERENCE)
        return self._ratio(name, mine, self._find(peer, direction, REFERENCE, way="stream"), 4.0, 6.0)

    def _ratio(
        self, name: str, mine: Measurement | None, theirs: Measurement | None, must: float, aim: float | None
    ) -> Target:
        if mine is None or theirs is None:
            return Target(name, must, aim, None, "")
        detail = f"{mine.contender} {self._ms(mine):.2f} ms, {theirs.contender} {self._ms(theirs):.2f} ms"
        return Target(name, must, aim, self._ms(theirs) / self._ms(mine), detail)

    def _ageing(self) -> Target:
        """The worst of all our graphs: time at ten minutes over time at two seconds."""
        worst: tuple[float, str] | None = None
        for contender in self._ours:
            for direction in self._directions:
                young = self._find(contender.name, direction, YOUNG)
                old = self._find(contender.name, direction, OLD)
                if young is not None and old is not None:
                    ratio = self._ms(old) / self._ms(young)
                    worst = max(worst or (0.0, ""), (ratio, f"{contender.name}, {direction}"))
        name = "latency at 10 min over latency at 2 s, the worst of our graphs"
        measured, detail = worst or (None, "")
        return Target(name, 1.05, 1.0, measured, detail, at_most=True)

    def _streams(self) -> Target:
        found = [
            (entry.batch * self._frame_ms / self._ms(entry) / entry.threads, entry.contender)
            for entry in self._results.measurements
            if entry.group == "ours" and entry.way == "bare" and entry.direction == "encoder"
            and entry.batch == STREAM_BATCH and entry.threads == self._threads and self._known(entry)
        ]  # fmt: skip
        name = f"encoder streams in real time per core, batch {STREAM_BATCH}, the best variant"
        measured, detail = max(found) if found else (None, "")
        return Target(name, 8.0, 16.0, measured, detail)

    def _bandwidth(self, direction: GraphKind) -> Target:
        name = f"ring int8, part of the weight-bandwidth limit reached, {direction}"
        mine = self._fastest(ring_int8, direction, REFERENCE)
        counted = None if mine is None else self._results.costs.get((mine.contender, direction, self._reference, 1))
        if mine is None or counted is None:
            return Target(name, None, 0.5, None, "")
        limit = Cost(**counted).bandwidth_ms(self._machine)
        detail = (
            f"{mine.contender}: {counted['weight_bytes'] / 1e6:.1f} MB in {limit:.2f} ms of {self._ms(mine):.2f} ms"
        )
        return Target(name, None, 0.5, limit / self._ms(mine), detail)

    def _overhead(self) -> Target:
        """The worst of all our graphs: the runtime's stream over the bare session."""
        worst: tuple[float, str] | None = None
        for pushed in self._results.measurements:
            if pushed.way != "push" or pushed.threads != self._threads or not self._known(pushed):
                continue
            bare = self._find(pushed.contender, pushed.direction, pushed.age_seconds or 0.0)
            if bare is not None:
                ratio = self._ms(pushed) / self._ms(bare) - 1
                worst = max(worst or (-1.0, ""), (ratio, f"{pushed.contender}, {pushed.direction}"))
        name = "runtime over the bare session with bound buffers, the worst of our graphs"
        measured, detail = worst or (None, "")
        return Target(name, 0.03, None, measured, detail, at_most=True)

    def _fastest(self, fits: _Fits, direction: GraphKind, age: float) -> Measurement | None:
        found = [self._find(contender.name, direction, age) for contender in self._ours if fits(contender)]
        return min((entry for entry in found if entry is not None), key=self._ms, default=None)

    def _find(self, name: str, direction: GraphKind, age: float, way: str = "bare") -> Measurement | None:
        for entry in self._results.measurements:
            situation = (entry.direction, entry.way, entry.age_seconds, entry.batch, entry.threads)
            if entry.contender == name and self._known(entry) and situation == (direction, way, age, 1, self._threads):
                return entry
        return None

    def _known(self, entry: Measurement) -> bool:
        return self._clock == "wall" or entry.processor is not None

    def _ms(self, entry: Measurement) -> float:
        """The median of the chosen clock, which `_known` said to be there."""
        chosen = entry.processor if self._clock == "processor" and entry.processor is not None else entry.wall
        return chosen.p50
