"""`report.md`: the verdict and the tables, for a CI job's summary and for a model card."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mimi_export.contract.spec import GRAPH_KINDS
from mimi_export.parity.metrics import Difference
from mimi_export.parity.reports.json import CARD_BATCH_DB, CARD_STREAMING
from mimi_export.parity.results import Drift, ParityRun, VariantReport, number

MIB = 1 << 20


def to_text(run: ParityRun) -> str:
    """`report.md` as text."""
    parts = [f"# Parity: {verdict(run)}", *_problems(run)]
    if run.reports:
        first = run.reports[0].clips[0]
        parts += [
            f"Streams through ONNX Runtime against untouched batch PyTorch, first clip `{first.name}`; audio is "
            "decoded from the reference's codes (decoder) or encoded and decoded (end to end).",
            table(QUALITY_COLUMNS, [quality_row(report) for report in run.reports]),
            table(COST_COLUMNS, [cost_row(report) for report in run.reports]),
            "## Streaming against batch, 3 s",
            table(PUBLISHED_COLUMNS, published_rows(run)),
            "## Codes equal to PyTorch's, by codebook",
            table(*_codebooks(run)),
            "## Clips",
            table(CLIP_COLUMNS, [row for report in run.reports for row in clip_rows(report)]),
            DRIFT_NOTE,
        ]
    return "\n\n".join(parts) + "\n"


def verdict(run: ParityRun) -> str:
    """The result in three words or four."""
    if run.passed:
        return f"passed, {_count(len(run.reports), 'variant')}"
    parts = []
    failed = [report for report in run.reports if not report.passed]
    if failed:
        parts.append(f"{_count(len(failed), 'variant')} failed")
    if run.not_measured or not run.reports:
        parts.append(f"{_count(len(run.not_measured), 'variant')} not measured")
    return ", ".join(parts)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(columns) + " |", "|:--" + "|--:" * (len(columns) - 1) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


QUALITY_COLUMNS = (
    "variant", "verdict", "codes equal", "ties", "latents dB", "decoder dB", "cosine", "max-abs", "end to end dB",
    "log-mel dB", "multi-scale",
)  # fmt: skip


def quality_row(report: VariantReport) -> list[str]:
    """How near one variant is on its first clip; codes of all clips. The two spectral distances are end to end."""
    first, codes = report.clips[0], report.codes
    return [
        report.name,
        "pass" if report.passed else "**FAIL**",
        percent(codes.equal),
        f"{codes.ties} (+{codes.follow})",
        number(first.latents.snr_db if first.latents else None, 1),
        number(first.decoder.snr_db, 1),
        cosine(first.decoder.cosine),
        f"{first.decoder.max_abs:.1e}",
        number(first.end_to_end.snr_db, 1),
        number(first.end_to_end.log_mel_db, 3),
        number(first.end_to_end.multi_scale, 4),
    ]


COST_COLUMNS = (
    "variant", "encoder ms a frame", "p95", "decoder ms a frame", "p95", "real-time factor", "encoder MiB",
    "decoder MiB", "kbit/s",
)  # fmt: skip


def cost_row(report: VariantReport) -> list[str]:
    """What one variant costs: time of one frame on one thread, size, bitrate."""
    encoder, decoder = report.timing["encoder"], report.timing["decoder"]
    sizes = [report.sizes[report.manifest.spec(kind).file_name] / MIB for kind in GRAPH_KINDS]
    return [
        report.name,
        number(encoder.median_ms, 2),
        number(encoder.p95_ms, 2),
        number(decoder.median_ms, 2),
        number(decoder.p95_ms, 2),
        number(report.real_time_factor, 3),
        *(number(size, 1) for size in sizes),
        f"{report.bitrate / 1000:g}",
    ]


PUBLISHED_COLUMNS = ("", "SNR dB", "cosine", "max-abs")


def published_rows(run: ParityRun) -> list[list[str]]:
    """The public models' own table with our rows beside theirs."""
    rows = [
        ["public model card, streaming vs batch", *_three(CARD_STREAMING)],
        ["public model card, batch ONNX", number(CARD_BATCH_DB, 1), "—", "—"],
    ]
    for report in run.reports:
        found = report.clips[0].first_seconds
        rows.append([f"{report.name}, end to end", *_three(found["end_to_end"])])
        rows.append([f"{report.name}, decoder", *_three(found["decoder"])])
    return rows


DRIFT_NOTE = (
    "A fall of an exact variant from 116 to 110 dB is the reference's: PyTorch rounds the angles of far positions to "
    "float32, the stream does not."
)
CLIP_COLUMNS = (
    "variant, clip", "seconds", "frames per call", "codes equal", "latents dB", "decoder dB", "end to end dB", "cosine",
    "max-abs", "first → last 10 s, decoder dB",
)  # fmt: skip


def clip_rows(report: VariantReport) -> list[list[str]]:
    """Each clip, and each way to call it."""
    rows = []
    for clip in report.clips:
        seconds = clip.num_samples / report.manifest.geometry.sampling_rate
        for index, (way, codes) in enumerate(clip.codes.items()):
            whole = index == 0
            rows.append([
                f"{report.name}, {clip.name}",
                f"{seconds:.2f}",
                way,
                percent(codes.equal),
                number(clip.latents.snr_db if whole and clip.latents else None, 1),
                number(clip.decoder_calls[way].snr_db, 1),
                number(clip.end_to_end.snr_db if whole else None, 1),
                cosine(clip.decoder_calls[way].cosine),
                f"{clip.decoder_calls[way].max_abs:.1e}",
                _drift(clip.drift.get("decoder")) if whole else "—",
            ])  # fmt: skip
    return rows


def cosine(value: float) -> str:
    """A cosine; as `1 - 3e-08` where it is too near to 1 for decimals."""
    distance = 1 - value
    return f"{value:.5f}" if distance > 1e-5 or math.isnan(value) else f"1 - {max(distance, 0):.0e}"


def percent(fraction: float) -> str:
    """A fraction in percent that says 100 only for all."""
    text = f"{100 * fraction:.2f} %"
    return "99.99 %" if text == "100.00 %" and fraction < 1 else text.replace("100.00", "100")


def _problems(run: ParityRun) -> list[str]:
    lines = [f"- **{line}**" for line in run.missed]
    for report in run.reports:
        lines += [f"- {report.name}: {item.line}" for item in report.explanations]
    lines += [f"- **could not measure {item.directory}**: {item.reason}" for item in run.not_measured]
    return ["\n".join(lines)] if lines else []


def _codebooks(run: ParityRun) -> tuple[list[str], list[list[str]]]:
    most = max(report.manifest.shape.num_codebooks for report in run.reports)
    rows = []
    for report in run.reports:
        cells = [percent(value) for value in report.codes.per_codebook]
        rows.append([report.name, *cells, *[""] * (most - len(cells))])
    return ["variant", *(str(index) for index in range(most))], rows


def _three(difference: Difference) -> list[str]:
    return [number(difference.snr_db, 1), cosine(difference.cosine), f"{difference.max_abs:.2g}"]


def _drift(drift: Drift | None) -> str:
    return "—" if drift is None else f"{number(drift.first_db, 1)} → {number(drift.last_db, 1)}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
