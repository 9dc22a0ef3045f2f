"""Many measured times as few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Summary:
    """Times in milliseconds over all rounds: median and upper percentiles of single calls.

    `low` and `high` are the least and the greatest median of a round: their distance says how much the machine, and
    not the contender, moved between rounds.
    """

    p50: float
    p95: float
    p99: float
    low: float
    high: float
    count: int

    @property
    def spread(self) -> float:
        """(high - low) / p50."""
        return (self.high - self.low) / self.p50 if self.p50 else 0.0


def summarise(rounds: Sequence[Sequence[float]], divisor: float = 1.0) -> Summary:
    """Summarise the times of several rounds.

    Percentiles interpolate linearly between the two nearest values, so those of few calls are near the maximum.

    Args:
        rounds: times of the calls of each round; at least one.
        divisor: what each time is divided by (frames in a call).

    Raises:
        ValueError: there are no times.
    """
    values = np.concatenate([np.asarray(times, np.float64) for times in rounds]) / divisor if rounds else np.empty(0)
    if values.size == 0:
        raise ValueError("there are no times to summarise")
    medians = [float(np.median(times)) / divisor for times in rounds if len(times)]
    p50, p95, p99 = (float(value) for value in np.percentile(values, [50, 95, 99]))
    return Summary(p50, p95, p99, min(medians), max(medians), int(values.size))
