"""The results of a benchmark as one JSON object, as tables, and as Markdown.

The JSON object (times in milliseconds a frame, of all rows of a batch together; rates in bytes a second):

    command, version, model         what ran, and whose weights
    frame_ms                        length of a frame
    plan                            frames, rounds, ages, batches, threads, directions, huge_pages, provider (of graphs;
                                    other programs run on the processor)
    machines                        one entry for each number of threads: see `machine.Machine`
    contenders                      name, group (ours, public, peer), layout, precision, frames_per_call
    loads                           contender, direction, threads, version, note, load_seconds, import_seconds,
                                    rss_bytes, and for graphs file_bytes and weight_bytes
    measurements                    contender, group, direction, way (bare, push, stream, clip), threads, batch,
                                    age_seconds (null for clips), calls, p50, p95, p99, low, high (least and greatest
                                    median of a round), cpu_p50, real_time_factor, streams_per_core, rss_bytes, and for
                                    graphs on the processor bandwidth_ms (the time to read the weights once at the
                                    machine's best rate) and bandwidth_fraction (that time over p50)
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

Row = dict[str, object]  # cells by column
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
        if fact.weight_bytes is None or plan.provider != Plan.provider
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
    rows = {"machine": [_machine(machine) for machine in report["machines"]]}
    for direction in report["plan"]["directions"]:
        here = [record for record in report["measurements"] if record["direction"] == direction]
        rows[f"{direction}, ms a frame"] = [_measured(record, narrow) for record in here]
    rows["loading"] = [_load(load) for load in report["loads"]]
    if report["skipped"]:
        rows["left out"] = [{"contender": name, "reason": reason} for name, reason in report["skipped"].items()]
    if show_targets:
        rows["targets"] = [_target(target) for target in report["targets"]]
    return [
        (title, tuple(found[0]) if found else ("contender",), [tuple(row.values()) for row in found])
        for title, found in rows.items()
    ]


def markdown(report: Mapping[str, Any]) -> str:
    """All tables in Markdown, with the columns explained."""
    heaps = "huge pages" if report["plan"]["huge_pages"] else "pages as the system gives them"
    parts = ["# Benchmark", "", _EXPLANATION.format(**report["plan"], model=report["model"], heaps=heaps), ""]
    for title, columns, rows in tables(report, show_targets=True):
        parts += [f"## {title[0].upper()}{title[1:]}", "", _line(columns), _line(["---"] * len(columns))]
        parts += [*(_line(row) for row in rows), ""]
    return "\n".join(parts)


_EXPLANATION = """\
Weights: `{model}`. Graphs on {provider}, other programs on the processor. Heaps in {heaps}.
{rounds} rounds in turns; medians of all calls. `rounds` is the least and the greatest median of a round, `cpu p50` the
median processor time, which other programs disturb less than the time on the wall. `RTF` is time to compute over time
of the audio, `streams` how many streams one core serves in real time. `bandwidth` is the time to read the weights at
this machine's best rate over the time measured. `bare` is the session with bound buffers, `push` the runtime, `stream`
another program frame by frame, `clip` one call on 10 s."""


def _measured(record: Mapping[str, Any], narrow: bool) -> Row:
    fraction = record.get("bandwidth_fraction")
    cells = {
        "contender": record["contender"],
        "way": record["way"],
        "threads": record["threads"],
        "batch": record["batch"],
        "age s": _number(record["age_seconds"], "{:g}"),
        **{name: f"{record[name]:.2f}" for name in ("p50", "p95", "p99")},
        "rounds": f"{record['low']:.2f} – {record['high']:.2f}",
        "cpu p50": f"{record['cpu_p50']:.2f}",
        "RTF": f"{record['real_time_factor']:.3f}",
        "streams": f"{record['streams_per_core']:.1f}",
        "MiB": _mebibytes(record["rss_bytes"], 0),
        "bandwidth": _number(None if fraction is None else 100 * fraction, "{:.0f} %"),
    }
    return {name: cell for name, cell in cells.items() if not (narrow and name in ("rounds", "RTF", "MiB"))}


def _machine(machine: Mapping[str, Any]) -> Row:
    names = ("processor", "instruction_set", "cores", "onnxruntime", "threads")
    cells = {name.replace("_", " "): machine[name] or "–" for name in names}
    return {**cells, "read GB/s": f"{machine['read_bytes_per_second'] / 1e9:.1f}"}


def _load(load: Mapping[str, Any]) -> Row:
    return {
        "contender": load["contender"],
        "direction": load["direction"],
        "threads": load["threads"],
        "version": load["version"] or "–",
        "s": f"{load['load_seconds']:.2f}",
        "MiB": _mebibytes(load["rss_bytes"], 0),
        "file MiB": _mebibytes(load["file_bytes"]),
        "weights MiB": _mebibytes(load["weight_bytes"]),
        "note": load["note"],
    }


def _target(target: Mapping[str, Any]) -> Row:
    bound = "≤ {:g}" if target["at_most"] else "≥ {:g}"
    return {
        "target": target["name"],
        "must": _number(target["must"], bound),
        "aim": _number(target["aim"], bound),
        "measured": _number(target["measured"], "{:.3g}"),
        "by cpu": _number(target["processor"], "{:.3g}"),
        "verdict": target["verdict"],
        "what": target["detail"],
    }


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _mebibytes(size: int | None, digits: int = 1) -> str:
    return "–" if size is None else f"{size / 2**20:.{digits}f}"


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
