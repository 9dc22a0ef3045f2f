"""The two pictures of a benchmark: latency against the age of a stream, throughput against the size of a batch.

Needs matplotlib (the `bench` extra). Drawn from the report alone, so old reports can be drawn again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from mimi_export.bench.machine import Machine
from mimi_export.bench.plan import REFERENCE_AGE

_MARKS = "osD^vPX<>*"


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw a report (see `report`) with two rows (latency, throughput) and a column for each direction, under model and
    machine; the suffix of `path` (`.svg`, `.png`) decides the format.
    """
    directions = report["plan"]["directions"]
    threads = report["plan"]["threads"][0]
    records = [r for r in report["measurements"] if r["threads"] == threads and r["way"] in ("bare", "stream")]
    names = [contender["name"] for contender in report["contenders"]]
    colours = [mpl.colormaps["tab20"](index) for index in (*range(0, 20, 2), *range(1, 20, 2))]  # the strong ones first
    style = {
        name: {"color": colours[index % len(colours)], "marker": _MARKS[index % len(_MARKS)], "label": name}
        for index, name in enumerate(names)
    }
    figure = Figure(figsize=(6 * len(directions), 8.5), layout="constrained")
    grid = figure.subplots(2, len(directions), squeeze=False)
    for column, direction in enumerate(directions):
        here = [record for record in records if record["direction"] == direction]
        _latency(grid[0][column], [record for record in here if record["batch"] == 1], style, report["frame_ms"])
        _throughput(grid[1][column], here, style, _reference_age(here))
        grid[0][column].set_title(direction)
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        handles.update(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    machine = Machine(**report["machines"][0])
    figure.suptitle(f"{report['model']}: latency and throughput, {threads} thread{'s' * (threads > 1)}\n{machine}")
    figure.savefig(path, dpi=144, metadata={"Date": None} if path.suffix == ".svg" else None)


def _latency(axes: Axes, records: list[dict[str, Any]], style: dict[str, Any], frame_ms: float) -> None:
    for name, drawn in style.items():
        points = sorted((r["age_seconds"], r["p50"], r["low"], r["high"]) for r in records if r["contender"] == name)
        if points:
            ages, medians, lows, highs = zip(*points, strict=True)
            axes.plot(ages, medians, **drawn)
            axes.fill_between(ages, lows, highs, color=drawn["color"], alpha=0.15, linewidth=0)
    axes.axhline(frame_ms, color="0.4", linestyle=":", linewidth=1)
    axes.annotate(
        f"{frame_ms:g} ms, a frame's length: slower than real time above",
        (0.01, frame_ms), xycoords=("axes fraction", "data"), xytext=(0, 4), textcoords="offset points",
        color="0.25", fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="age of the stream, s", ylabel="median of a frame, ms")
    axes.set_xticks(sorted({record["age_seconds"] for record in records}))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.2)


def _throughput(axes: Axes, records: list[dict[str, Any]], style: dict[str, Any], age: float | None) -> None:
    for name, drawn in style.items():
        points = sorted(
            (r["batch"], r["streams_per_core"]) for r in records if r["contender"] == name and r["age_seconds"] == age
        )
        if points:
            batches, streams = zip(*points, strict=True)
            axes.plot(batches, streams, **drawn)
    axes.set(xlabel="streams in a batch", ylabel="streams in real time per core")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({record["batch"] for record in records}))
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.2)


def _reference_age(records: list[dict[str, Any]]) -> float | None:
    """The age at which most batches were measured, or with one batch only the one nearest to that."""
    found = [record for record in records if record["batch"] == max(other["batch"] for other in records)]
    ages = [record["age_seconds"] for record in found if record["age_seconds"] is not None]
    return min(ages, key=lambda age: abs(age - REFERENCE_AGE), default=None)
