"""What a benchmark is to measure, and what it measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mimi_export.contract.spec import GRAPH_KINDS, GraphKind

REFERENCE_AGE = 20.0  # seconds: older than the window, and what comparisons with the public design are made at


@dataclass(frozen=True)
class Situation:
    """What is the same for all contenders of a comparison."""

    direction: GraphKind
    threads: int
    batch: int
    age_seconds: float

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.direction}, {threads}, age {self.age_seconds:g} s, batch {self.batch}"


@dataclass(frozen=True)
class Plan:
    """What is measured.

    With the first number of threads every age is measured at batch 1, and every batch at the age nearest
    `REFERENCE_AGE`; with the others batch 1 at that age. `frames` is frames a round at batch 1, fewer for batches. A
    peer's state cannot be set, only reached by running, so its ages end at `peer_age_limit`. With `huge_pages` all
    contenders' heaps lie in huge pages. Graphs run on `provider`, other programs on the processor.
    """

    frames: int = 25
    rounds: int = 5
    ages: tuple[float, ...] = (2.0, 20.0, 600.0)
    batches: tuple[int, ...] = (1, 4, 8, 16, 32)
    threads: tuple[int, ...] = (1, 2)
    directions: tuple[GraphKind, ...] = GRAPH_KINDS
    peer_age_limit: float = 20.0
    huge_pages: bool = False
    provider: str = "CPUExecutionProvider"

    @property
    def reference_age(self) -> float:
        """The age at which batches and threads are compared."""
        return min(self.ages, key=lambda age: abs(age - REFERENCE_AGE))

    def situations(self, direction: GraphKind, threads: int) -> list[Situation]:
        """What to measure with a number of threads."""
        reference = self.reference_age
        pairs = [(1, reference)]
        if threads == self.threads[0]:
            pairs = [*((1, age) for age in self.ages), *((batch, reference) for batch in self.batches if batch > 1)]
        return [Situation(direction, threads, batch, age) for batch, age in pairs]

    def calls(self, batch: int, frames_per_call: int = 1) -> int:
        """Calls a round."""
        return max(2, -(-self.frames // (max(1, batch // 2) * frames_per_call)))


@dataclass(frozen=True)
class Measurement:
    """Times of one contender in one situation, milliseconds a frame (of all rows of its batch together).

    `way` is `bare` (the session with everything bound), `push` (the runtime's stream), `stream` (a peer, frame by
    frame) or `clip` (whole clips; no age). `p50`, `p95` and `p99` are of single calls by a clock on the wall; `low` and
    `high` the least and the greatest median of a round, whose distance says how much the machine, and not the
    contender, moved. `cpu_p50` is processor time, which other programs disturb less. `rss_bytes` is resident memory
    afterwards.
    """

    contender: str
    group: str
    direction: GraphKind
    way: str
    threads: int
    batch: int
    age_seconds: float | None
    calls: int
    p50: float
    p95: float
    p99: float
    low: float
    high: float
    cpu_p50: float
    rss_bytes: int


def summarise(wall: Sequence[Sequence[float]], processor: Sequence[Sequence[float]], frames: int) -> dict[str, Any]:
    """The fields of `Measurement` from `calls` to `cpu_p50`, of the times of one round or more.

    Percentiles interpolate linearly between the two nearest values, so those of few calls are near the maximum. `wall`
    are milliseconds of the calls of each round, `processor` the same in processor time, `frames` those of a call.
    """
    times = np.concatenate(wall) / frames
    medians = [float(np.median(one)) / frames for one in wall]
    percentiles = {f"p{percent}": float(np.percentile(times, percent)) for percent in (50, 95, 99)}
    spread = {"low": min(medians), "high": max(medians)}
    used = float(np.median(np.concatenate(processor))) / frames
    return {"calls": times.size, **percentiles, **spread, "cpu_p50": used}


@dataclass(frozen=True)
class Fact:
    """What is known of a contender's process once it has loaded one direction; bytes `None` where there is no file."""

    contender: str
    direction: GraphKind
    threads: int
    version: str
    note: str
    load_seconds: float
    import_seconds: float
    rss_bytes: int
    file_bytes: int | None
    weight_bytes: int | None


@dataclass
class Results:
    """Everything that was measured; `skipped` a reason by name."""

    measurements: list[Measurement] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
