"""The results of a benchmark as one JSON object, as tables, and as Markdown.

The JSON object (times in milliseconds a frame, of all rows of a batch together; rates in bytes or operations a second):

    command, version, model         what ran, and whose weights
    frame_ms                        length of a frame
    plan                            frames, rounds, ages, batches, threads, directions, huge_pages
    machines                        limits, one entry for each number of threads: see `machine.Machine`
    contenders                      name, group (ours, public, peer), layout, precision, frames_per_call
    loads                           contender, direction, threads, version, note, load_seconds, import_seconds,
                                    rss_bytes, file_bytes
    measurements                    contender, group, direction, way (bare, push, stream, clip), threads, batch,
                                    age_seconds (null for clips), calls, p50, p95, p99, low, high (least and greatest
                                    median of a round), cpu_p50 (null where it is not known), real_time_factor,
                                    streams_per_core, rss_bytes, and for graphs weight_bytes, state_bytes, float_macs,
                                    integer_macs, operators, bandwidth_ms, compute_ms, bandwidth_fraction and
                                    limit_fraction: the limit over what was measured, of weight reading alone and of
                                    the larger of reading and computing
    operators                       contender, direction, and milliseconds by kind of operator
    skipped                         reason by contender
    targets                         name, must, aim, measured, processor (the same of processor times), verdict,
                                    detail, at_most
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mimi_export import __version__
from mimi_export.bench.contenders import Contender
from mimi_export.bench.cost import Cost
from mimi_export.bench.machine import Machine
from mimi_export.bench.plan import Measurement, Plan, Results
from mimi_export.bench.targets import Target

Table = tuple[str, tuple[str, ...], list[tuple[object, ...]]]  # title, columns, rows


def as_json(
    model: str,
    frame_ms: float,
    plan: Plan,
    machines: Sequence[Machine],
    contenders: Sequence[Contender],
    results: Results,
    targets: Sequence[Target],
) -> dict[str, Any]:
    """The JSON object of the module's docstring."""
    by_threads = {machine.threads: machine for machine in machines}
    return {
        "command": "bench",
        "version": __version__,
        "model": model,
        "frame_ms": frame_ms,
        "plan": {
            "frames": plan.frames,
            "rounds": plan.rounds,
            "ages": list(plan.ages),
            "batches": list(plan.batches),
            "threads": list(plan.threads),
            "directions": list(plan.directions),
            "huge_pages": plan.huge_pages,
        },
        "machines": [asdict(machine) for machine in machines],
        "contenders": [
            {
                "name": contender.name,
                "group": contender.group,
                "layout": contender.layout,
                "precision": contender.precision,
                "frames_per_call": contender.frames_per_call,
            }
            for contender in contenders
        ],
        "loads": [asdict(fact) for fact in results.facts],
        "measurements": [
            _measurement(entry, results, by_threads[entry.threads], contenders, frame_ms)
            for entry in results.measurements
        ],
        "operators": [
            {"contender": name, "direction": direction, "milliseconds": operators}
            for (name, direction), operators in results.operators.items()
        ],
        "skipped": dict(results.skipped),
        "targets": [{**asdict(target), "verdict": target.verdict} for target in targets],
    }


def _measurement(
    entry: Measurement, results: Results, machine: Machine, contenders: Sequence[Contender], frame_ms: float
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "contender": entry.contender,
        "group": entry.group,
        "direction": entry.direction,
        "way": entry.way,
        "threads": entry.threads,
        "batch": entry.batch,
        "age_seconds": entry.age_seconds,
        "calls": entry.wall.count,
        "p50": entry.wall.p50,
        "p95": entry.wall.p95,
        "p99": entry.wall.p99,
        "low": entry.wall.low,
        "high": entry.wall.high,
        "cpu_p50": None if entry.processor is None else entry.processor.p50,
        "real_time_factor": entry.real_time_factor(frame_ms),
        "streams_per_core": entry.streams_per_core(frame_ms),
        "rss_bytes": entry.rss_bytes,
    }
    counted = results.costs.get((entry.contender, entry.direction, entry.age_seconds or 0.0, entry.batch))
    if counted is not None:
        cost = Cost(**counted)
        frames = next(c.frames_per_call for c in contenders if c.name == entry.contender)
        bandwidth, compute = cost.bandwidth_ms(machine) / frames, cost.compute_ms(machine) / frames
        record |= {
            **counted,
            "bandwidth_ms": bandwidth,
            "compute_ms": compute,
            "bandwidth_fraction": bandwidth / entry.wall.p50,
            "limit_fraction": max(bandwidth, compute) / entry.wall.p50,
        }
    return record


def tables(report: dict[str, Any], show_targets: bool, narrow: bool = False) -> list[Table]:
    """Tables of a report for people; the narrow ones leave out columns so that a row fits on a terminal."""
    made = [_machines(report)]
    columns = [column for column in _COLUMNS if not (narrow and column in _WIDE)]
    for direction in report["plan"]["directions"]:
        cells = [_cells(record) for record in report["measurements"] if record["direction"] == direction]
        rows = [tuple(row[column] for column in columns) for row in cells]
        made.append((f"{direction}, ms a frame", tuple(columns), rows))
    made.append(_loads(report))
    if report["skipped"]:
        made.append(("left out", ("contender", "reason"), list(report["skipped"].items())))
    if show_targets:
        made.append(_targets(report))
    return made


def markdown(report: dict[str, Any]) -> str:
    """All tables in Markdown, with the columns explained."""
    heaps = "huge pages" if report["plan"]["huge_pages"] else "pages as the system gives them"
    parts = ["# Benchmark", "", _EXPLANATION.format(**report["plan"], model=report["model"], heaps=heaps), ""]
    for title, columns, rows in tables(report, show_targets=True):
        parts += [f"## {title[0].upper()}{title[1:]}", "", _line(columns), _line(["---"] * len(columns))]
        parts += [*(_line(row) for row in rows), ""]
    return "\n".join(parts)


_COLUMNS = (
    "contender", "way", "threads", "batch", "age s", "p50", "p95", "p99", "rounds", "cpu p50", "RTF", "streams",
    "MiB", "bandwidth", "limit",
)  # fmt: skip
_WIDE = frozenset({"rounds", "RTF", "MiB", "limit"})

_EXPLANATION = """\
Weights: `{model}`. Heaps in {heaps}. {rounds} rounds in turns; medians of all calls. `rounds` is the least and the
greatest median of a round, `cpu p50` the median processor time, which other programs disturb less than the time on the
wall. `RTF` is time to compute over time of the audio, `streams` how many streams one core serves in real time.
`bandwidth` is the time to read the weights at this machine's best rate over the time measured; `limit` the same with
the larger of reading and computing at the peak rate. `bare` is the session with bound buffers, `push` the runtime,
`stream` another program frame by frame, `clip` one call on 10 s."""


def _cells(record: dict[str, Any]) -> dict[str, object]:
    """A measurement by column."""
    processor, age = record["cpu_p50"], record["age_seconds"]
    return {
        "contender": record["contender"],
        "way": record["way"],
        "threads": record["threads"],
        "batch": record["batch"],
        "age s": "–" if age is None else f"{age:g}",
        "p50": f"{record['p50']:.2f}",
        "p95": f"{record['p95']:.2f}",
        "p99": f"{record['p99']:.2f}",
        "rounds": f"{record['low']:.2f} – {record['high']:.2f}",
        "cpu p50": "–" if processor is None else f"{processor:.2f}",
        "RTF": f"{record['real_time_factor']:.3f}",
        "streams": f"{record['streams_per_core']:.1f}",
        "MiB": f"{record['rss_bytes'] / 2**20:.0f}",
        "bandwidth": _percent(record.get("bandwidth_fraction")),
        "limit": _percent(record.get("limit_fraction")),
    }


def _machines(report: dict[str, Any]) -> Table:
    columns = (
        "threads", "read GB/s", "copy GB/s", "weights read by a product GB/s", "float32 Gop/s", "8 bit Gop/s",
    )  # fmt: skip
    rows: list[tuple[object, ...]] = [
        (
            machine["threads"],
            *(
                f"{machine[f'{name}_per_second'] / 1e9:.1f}"
                for name in ("read_bytes", "copy_bytes", "product_read_bytes", "float_ops", "integer_ops")
            ),
        )
        for machine in report["machines"]
    ]
    first = report["machines"][0]
    title = f"machine: {first['processor']}, {first['cores']} cores, onnxruntime {first['onnxruntime']}"
    return title, columns, rows


def _loads(report: dict[str, Any]) -> Table:
    rows: list[tuple[object, ...]] = [
        (
            load["contender"],
            load["direction"],
            load["threads"],
            load["version"] or "–",
            f"{load['load_seconds']:.2f}",
            f"{load['rss_bytes'] / 2**20:.0f}",
            "–" if load["file_bytes"] is None else f"{load['file_bytes'] / 2**20:.1f}",
            load["note"],
        )
        for load in report["loads"]
    ]
    return "loading", ("contender", "direction", "threads", "version", "s", "MiB", "file MiB", "note"), rows


def _targets(report: dict[str, Any]) -> Table:
    rows: list[tuple[object, ...]] = []
    for target in report["targets"]:
        sign = "≤" if target["at_most"] else "≥"
        bounds = ["–" if target[word] is None else f"{sign} {target[word]:g}" for word in ("must", "aim")]
        measured = ["–" if target[word] is None else f"{target[word]:.3g}" for word in ("measured", "processor")]
        rows.append((target["name"], *bounds, *measured, target["verdict"], target["detail"]))
    return "targets", ("target", "must", "aim", "measured", "by cpu", "verdict", "what"), rows


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.0f} %"


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
