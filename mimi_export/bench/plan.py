"""What a benchmark is to measure, and what it measured."""

from __future__ import annotations

from dataclasses import dataclass, field

from mimi_export.bench.summary import Summary
from mimi_export.contract.spec import GRAPH_KINDS, GraphKind

REFERENCE_AGE = 20.0  # seconds: older than the window, and what comparisons with the public design are made at


@dataclass(frozen=True)
class Plan:
    """What is measured.

    With the first number of threads every age is measured at batch 1, and every batch at the age nearest
    `REFERENCE_AGE`; with the others batch 1 at that age. `frames` is frames a round at batch 1, fewer for batches. A
    peer's state cannot be set, only reached by running, so its ages end at `peer_age_limit`. With `huge_pages` all
    contenders' heaps lie in huge pages.
    """

    frames: int = 25
    rounds: int = 5
    ages: tuple[float, ...] = (2.0, 20.0, 600.0)
    batches: tuple[int, ...] = (1, 4, 8, 16, 32)
    threads: tuple[int, ...] = (1, 2)
    directions: tuple[GraphKind, ...] = GRAPH_KINDS
    peer_age_limit: float = 20.0
    huge_pages: bool = False

    @property
    def reference_age(self) -> float:
        """The age at which batches and threads are compared."""
        return min(self.ages, key=lambda age: abs(age - REFERENCE_AGE))

    def cells(self, threads: int) -> list[tuple[float, int]]:
        """Pairs of age and batch to measure with a number of threads."""
        reference = self.reference_age
        if threads != self.threads[0]:
            return [(reference, 1)]
        return [*((age, 1) for age in self.ages), *((reference, batch) for batch in self.batches if batch > 1)]

    def calls(self, batch: int) -> int:
        """Calls a round."""
        return max(2, -(-self.frames // max(1, batch // 2)))


@dataclass(frozen=True)
class Measurement:
    """Times of one contender in one situation, milliseconds a frame (of all rows of its batch together).

    `way` is `bare` (the session with everything bound), `push` (the runtime's stream), `stream` (a peer, frame by
    frame) or `clip` (whole clips; no age). `wall` is what a clock on the wall shows, `processor` the processor time
    of the process, which other programs disturb less. `rss_bytes` is resident memory afterwards.
    """

    contender: str
    group: str
    direction: GraphKind
    way: str
    threads: int
    batch: int
    age_seconds: float | None
    wall: Summary
    processor: Summary | None
    rss_bytes: int

    def real_time_factor(self, frame_ms: float) -> float:
        """Time to compute over time of the audio; below 1 is faster than real time."""
        return self.wall.p50 / frame_ms

    def streams_per_core(self, frame_ms: float) -> float:
        """Streams in real time for each thread that is used."""
        return self.batch * frame_ms / self.wall.p50 / self.threads


@dataclass(frozen=True)
class Fact:
    """What is known of a contender's process once it has loaded one direction."""

    contender: str
    direction: GraphKind
    threads: int
    version: str
    note: str
    load_seconds: float
    import_seconds: float
    rss_bytes: int
    file_bytes: int | None


@dataclass
class Results:
    """Everything that was measured; `costs` by (contender, direction, age, batch), `skipped` a reason by name."""

    measurements: list[Measurement] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    costs: dict[tuple[str, str, float, int], dict[str, int]] = field(default_factory=dict)
    operators: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
