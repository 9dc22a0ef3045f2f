"""The results of a benchmark as one JSON object, as tables, and as Markdown.

The JSON object (times in milliseconds a frame, of all rows of a batch together; rates in bytes a second):

    command, version, model         what ran, and whose weights
    frame_ms                        length of a frame
    plan                            frames, rounds, ages, batches, threads, directions, huge_pages
    machines                        one entry for each number of threads: see `machine.Machine`
    contenders                      name, group (ours, public, peer), layout, precision, frames_per_call
    loads                           contender, direction, threads, version, note, load_seconds, import_seconds,
                                    rss_bytes, and for graphs file_bytes and weight_bytes
    measurements                    contender, group, direction, way (bare, push, stream, clip), threads, batch,
                                    age_seconds (null for clips), calls, p50, p95, p99, low, high (least and greatest
                                    median of a round), cpu_p50, real_time_factor, streams_per_core, rss_bytes, and for
                                    graphs bandwidth_ms (the time to read the weights once at the machine's best
                                    rate) and bandwidth_fraction (that time over p50)
    skipped                         reason by contender
    targets                         name, must, aim, measured, processor (the same of processor times), verdict,
                                    detail, at_most: see `promises`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mimi_export import __version__
from mimi_export.bench.contenders import Contender
from mimi_export.bench.machine import Machine
from mimi_export.bench.plan import Measurement, Plan, Results
from mimi_export.bench.promises import judge

Table = tuple[str, tuple[str, ...], list[tuple[object, ...]]]  # title, columns, rows


def as_json(
    model: str,
    frame_ms: float,
    plan: Plan,
    machines: Sequence[Machine],
    contenders: Sequence[Contender],
    results: Results,
) -> dict[str, Any]:
    """The JSON object of the module's docstring."""
    rates = {machine.threads: machine.read_bytes_per_second for machine in machines}
    frames = {contender.name: contender.frames_per_call for contender in contenders}
    least_ms = {
        (fact.contender, fact.direction, fact.threads): None
        if fact.weight_bytes is None
        else fact.weight_bytes / rates[fact.threads] * 1e3 / frames[fact.contender]
        for fact in results.facts
    }
    asked = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(plan).items()}
    described = ("name", "group", "layout", "precision", "frames_per_call")
    report = {
        "command": "bench",
        "version": __version__,
        "model": model,
        "frame_ms": frame_ms,
        "plan": {name: value for name, value in asked.items() if name != "peer_age_limit"},
        "machines": [asdict(machine) for machine in machines],
        "contenders": [{name: getattr(contender, name) for name in described} for contender in contenders],
        "loads": [asdict(fact) for fact in results.facts],
        "measurements": [
            _measurement(entry, least_ms[entry.contender, entry.direction, entry.threads], frame_ms)
            for entry in results.measurements
        ],
        "skipped": dict(results.skipped),
    }
    return {**report, "targets": judge(report)}


def _measurement(entry: Measurement, least_ms: float | None, frame_ms: float) -> dict[str, Any]:
    record = {
        **asdict(entry),
        "real_time_factor": entry.p50 / frame_ms,
        "streams_per_core": entry.batch * frame_ms / entry.p50 / entry.threads,
    }
    if least_ms is not None:
        record |= {"bandwidth_ms": least_ms, "bandwidth_fraction": least_ms / entry.p50}
    return record


def tables(report: Mapping[str, Any], show_targets: bool, narrow: bool = False) -> list[Table]:
    """Tables of a report for people; the narrow ones leave out columns so that a row fits on a terminal."""
    made = [_machines(report)]
    for direction in report["plan"]["directions"]:
        cells = [_cells(record, narrow) for record in report["measurements"] if record["direction"] == direction]
        columns = tuple(cells[0]) if cells else ("contender",)
        made.append((f"{direction}, ms a frame", columns, [tuple(row.values()) for row in cells]))
    made.append(_loads(report))
    if report["skipped"]:
        made.append(("left out", ("contender", "reason"), list(report["skipped"].items())))
    if show_targets:
        made.append(_targets(report))
    return made


def markdown(report: Mapping[str, Any]) -> str:
    """All tables in Markdown, with the columns explained."""
    heaps = "huge pages" if report["plan"]["huge_pages"] else "pages as the system gives them"
    parts = ["# Benchmark", "", _EXPLANATION.format(**report["plan"], model=report["model"], heaps=heaps), ""]
    for title, columns, rows in tables(report, show_targets=True):
        parts += [f"## {title[0].upper()}{title[1:]}", "", _line(columns), _line(["---"] * len(columns))]
        parts += [*(_line(row) for row in rows), ""]
    return "\n".join(parts)


_EXPLANATION = """\
Weights: `{model}`. Heaps in {heaps}. {rounds} rounds in turns; medians of all calls. `rounds` is the least and the
greatest median of a round, `cpu p50` the median processor time, which other programs disturb less than the time on the
wall. `RTF` is time to compute over time of the audio, `streams` how many streams one core serves in real time.
`bandwidth` is the time to read the weights at this machine's best rate over the time measured. `bare` is the session
with bound buffers, `push` the runtime, `stream` another program frame by frame, `clip` one call on 10 s."""


def _cells(record: Mapping[str, Any], narrow: bool) -> dict[str, object]:
    """A measurement by column."""
    age, fraction = record["age_seconds"], record.get("bandwidth_fraction")
    cells = {
        "contender": record["contender"],
        "way": record["way"],
        "threads": record["threads"],
        "batch": record["batch"],
        "age s": "–" if age is None else f"{age:g}",
        "p50": f"{record['p50']:.2f}",
        "p95": f"{record['p95']:.2f}",
        "p99": f"{record['p99']:.2f}",
        "rounds": f"{record['low']:.2f} – {record['high']:.2f}",
        "cpu p50": f"{record['cpu_p50']:.2f}",
        "RTF": f"{record['real_time_factor']:.3f}",
        "streams": f"{record['streams_per_core']:.1f}",
        "MiB": _mebibytes(record["rss_bytes"], 0),
        "bandwidth": "–" if fraction is None else f"{100 * fraction:.0f} %",
    }
    return {name: cell for name, cell in cells.items() if not (narrow and name in ("rounds", "RTF", "MiB"))}


def _machines(report: Mapping[str, Any]) -> Table:
    names = ("processor", "instruction_set", "cores", "onnxruntime", "threads")
    rows: list[tuple[object, ...]] = [
        (*(machine[name] or "–" for name in names), f"{machine['read_bytes_per_second'] / 1e9:.1f}")
        for machine in report["machines"]
    ]
    return "machine", (*(name.replace("_", " ") for name in names), "read GB/s"), rows


def _loads(report: Mapping[str, Any]) -> Table:
    rows: list[tuple[object, ...]] = [
        (
            load["contender"],
            load["direction"],
            load["threads"],
            load["version"] or "–",
            f"{load['load_seconds']:.2f}",
            _mebibytes(load["rss_bytes"], 0),
            _mebibytes(load["file_bytes"]),
            _mebibytes(load["weight_bytes"]),
            load["note"],
        )
        for load in report["loads"]
    ]
    columns = ("contender", "direction", "threads", "version", "s", "MiB", "file MiB", "weights MiB", "note")
    return "loading", columns, rows


def _targets(report: Mapping[str, Any]) -> Table:
    rows: list[tuple[object, ...]] = []
    for target in report["targets"]:
        sign = "≤" if target["at_most"] else "≥"
        bounds = ["–" if target[word] is None else f"{sign} {target[word]:g}" for word in ("must", "aim")]
        measured = ["–" if target[word] is None else f"{target[word]:.3g}" for word in ("measured", "processor")]
        rows.append((target["name"], *bounds, *measured, target["verdict"], target["detail"]))
    return "targets", ("target", "must", "aim", "measured", "by cpu", "verdict", "what"), rows


def _mebibytes(size: int | None, digits: int = 1) -> str:
    return "–" if size is None else f"{size / 2**20:.{digits}f}"


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
