"""What `/metrics` says, in Prometheus' text format."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from mimi_export.serving.batcher import Batcher

QUANTILES = (0.5, 0.95, 0.99)


def metrics(batchers: Mapping[str, Batcher], refused: Counter[str], dropped: Counter[str]) -> str:
    """The page: counters since the start, quantiles of each half's last calls."""
    return "\n".join(_lines(batchers, refused, dropped)) + "\n"


def _lines(batchers: Mapping[str, Batcher], refused: Counter[str], dropped: Counter[str]) -> Iterator[str]:
    name = "mimi_call_latency_seconds"
    yield f"# HELP {name} From a call's data being complete to its output; calls that came no faster than live."
    yield f"# TYPE {name} summary"
    for task, batcher in batchers.items():
        for of, value in zip(QUANTILES, _quantiles(list(batcher.latencies)), strict=True):
            yield f'{name}{{task="{task}",quantile="{of}"}} {value:.6f}'
        yield f'{name}_sum{{task="{task}"}} {batcher.latency_sum:.6f}'
        yield f'{name}_count{{task="{task}"}} {batcher.latency_count}'
    for word, kind, what, field in (
        ("streams", "gauge", "Streams that are open.", "open_streams"),
        ("streams_limit", "gauge", "Streams at most.", "limit"),
        ("outputs_total", "counter", "Calls of single streams.", "outputs"),
        ("calls_total", "counter", "Calls of the graph.", "calls"),
        ("rows_total", "counter", "Rows that those computed.", "rows"),
        ("busy_seconds_total", "counter", "Time that they took.", "busy_seconds"),
    ):
        yield f"# HELP mimi_{word} {what}"
        yield f"# TYPE mimi_{word} {kind}"
        for task, batcher in batchers.items():
            yield f'mimi_{word}{{task="{task}"}} {getattr(batcher, field):.9g}'
    for word, what, counter in (
        ("refused", "Streams that were not begun.", refused),
        ("dropped", "Streams that were ended before the client ended them.", dropped),
    ):
        yield f"# HELP mimi_streams_{word}_total {what}"
        yield f"# TYPE mimi_streams_{word}_total counter"
        for reason, count in sorted(counter.items()):
            yield f'mimi_streams_{word}_total{{reason="{reason}"}} {count}'
    memory = _resident_bytes()
    if memory is not None:
        yield "# TYPE process_resident_memory_bytes gauge"
        yield f"process_resident_memory_bytes {memory}"


def _quantiles(latencies: list[float]) -> list[float]:
    return np.quantile(latencies, QUANTILES).tolist() if latencies else [float("nan")] * len(QUANTILES)


def _resident_bytes() -> int | None:
    """Memory of this process; `None` where the system has no /proc."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else None
