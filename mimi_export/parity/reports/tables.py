"""Every row of a report, said once; the console, `report.md` and `report.html` show these tables.

Cells are plain text. `GOOD` and `BAD` words may be shown as they are, bold, or coloured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mimi_export.contract.spec import GRAPH_KINDS
from mimi_export.parity.checks import EXACT, STATE_DB, computation_order
from mimi_export.parity.metrics import Difference
from mimi_export.parity.reports.json import CARD_BATCH_DB, CARD_STREAMING
from mimi_export.parity.results import METRIC_WORDS, Drift, ParityRun, Timing, VariantReport, number

MIB = 1 << 20
GOOD, BAD = ("pass", "met"), ("FAIL", "missed")
WEAK = " weak"  # ends the cell of a state that an exact variant must not have


@dataclass(frozen=True)
class Table:
    """Rows under a title; `note` says how to read them. Columns after the first are numbers but for `text_column`."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    note: str = ""
    text_column: int = 0

    def only(self, *indices: int) -> tuple[list[str], list[list[str]]]:
        """Some of the columns, and the rows with as many cells."""
        return [self.columns[index] for index in indices], [[row[index] for index in indices] for row in self.rows]


def verdict(run: ParityRun) -> str:
    """The result in three words or four."""
    if run.passed:
        return f"passed, {_variants(len(run.reports))}"
    failed = sum(not report.passed for report in run.reports)
    parts = [f"{_variants(failed)} failed"] if failed else []
    if run.not_measured or not run.reports:
        parts.append(f"{_variants(len(run.not_measured))} not measured")
    return ", ".join(parts)


def cautions(run: ParityRun) -> list[str]:
    """What stands above everything else: weights that are no whole Mimi's."""
    found = dict.fromkeys((report.manifest.source.model, report.manifest.source.caution) for report in run.reports)
    return [f"{model}: {caution}" for model, caution in found if caution]


def quality(run: ParityRun) -> Table:
    """How near each variant is on its first clip; codes of all clips. The two spectral distances are end to end."""
    rows = []
    for report in run.reports:
        first, codes = report.clips[0], report.codes
        rows.append([
            report.name, "pass" if report.passed else "FAIL", percent(codes.equal), f"{codes.ties} (+{codes.follow})",
            number(first.latents.snr_db if first.latents else None, 1), number(first.decoder.snr_db, 1),
            cosine(first.decoder.cosine), small(first.decoder.max_abs), number(first.end_to_end.snr_db, 1),
            number(first.end_to_end.log_mel_db, 3), number(first.end_to_end.multi_scale, 4),
        ])  # fmt: skip
    columns = (
        "variant", "verdict", "codes equal", "ties", "latents dB", "decoder dB", "cosine", "max-abs", "end to end dB",
        "log-mel dB", "multi-scale",
    )  # fmt: skip
    note = (
        "Levels are signal-to-noise ratios of streams through ONNX Runtime against untouched batch PyTorch on the clip "
        f"{run.reports[0].clips[0].name}; more is better, float rounding alone leaves 110 to 130 dB. Audio is decoded "
        "from the reference's codes (decoder) or encoded and decoded (end to end). Codes are of all clips and all ways "
        "to call; ties are entries that rounding cannot tell apart (and what follows from them)."
    )
    return Table("Variants", columns, rows, note)


def cost(run: ParityRun) -> Table:
    """What each variant costs: time of one frame on one thread, size, bitrate."""
    rows, nothing = [], Timing(math.nan, math.nan)
    for report in run.reports:
        times = [report.timing.get(kind, nothing) for kind in GRAPH_KINDS]
        sizes = [report.manifest.files[spec.file_name].bytes / MIB for spec in report.manifest.specs.values()]
        rows.append([
            report.name, *(number(value, 2) for timing in times for value in (timing.median_ms, timing.p95_ms)),
            number(report.real_time_factor, 3), *(number(size, 1) for size in [*sizes, None][:2]),
            f"{report.bitrate / 1000:g}",
        ])  # fmt: skip
    columns = (
        "variant", "encoder ms a frame", "p95", "decoder ms a frame", "p95", "real-time factor", "encoder MiB",
        "decoder MiB", "kbit/s",
    )  # fmt: skip
    return Table("Speed", columns, rows, "One stream, one thread, as this machine was busy at the time.")


def budgets(run: ParityRun) -> Table:
    """Every budget, of each variant the missed ones first."""
    rows = []
    for report in run.reports:
        for check in sorted(report.checks, key=lambda check: check.passed):
            why = f"{_sentence(check.where)} {_sentence(check.reason)}"
            words, verdict = METRIC_WORDS[check.metric][0], "met" if check.passed else "missed"
            rows.append([report.name, verdict, words, check.got_text, check.wanted_text, why])
    columns = ("variant", "", "what", "got", "wanted", "where, and why this number")
    return Table("Budgets", columns, rows, text_column=5)


def published(run: ParityRun) -> Table:
    """The public models' own table with our rows beside theirs."""
    rows = [
        ["public model card, streaming vs batch", *_three(CARD_STREAMING)],
        ["public model card, batch ONNX", number(CARD_BATCH_DB, 1), "—", "—"],
    ]
    for report in (report for report in run.reports if "decoder" in report.manifest.shape.kinds):
        found = report.clips[0].first_seconds
        rows += [
            [f"{report.name}, {what.replace('_', ' ')}", *_three(found[what])] for what in ("end_to_end", "decoder")
        ]
    note = "The table of the public models' card, and the same on the first 3 seconds of our first clip."
    return Table("Streaming against batch, 3 s", ("model", "SNR dB", "cosine", "max-abs"), rows, note)


def listened(run: ParityRun) -> Table:
    """What a listener would notice; no rows where nobody listened."""
    rows = [
        [f"{report.name}, {heard.what}", *(f"{value:.2f}" for value in (heard.estoi, heard.visqol, heard.zimtohrli)),
         _sentence(heard.words)]
        for report in run.reports for heard in report.heard
    ]  # fmt: skip
    note = (
        "Of the first seconds of the first clip, end to end. ESTOI: 0 to 1, how intelligible speech stays; ViSQOL: 1 "
        "to 5, quality of speech; Zimtohrli: 1 to 5, near what can just be noticed."
    )
    columns = ("variant", "ESTOI", "ViSQOL", "Zimtohrli", "in words")
    return Table("What a listener would notice", columns, rows, note, text_column=4)


def skipped(run: ParityRun) -> list[str]:
    """What was not looked at, a line each, with the variants where that is not true of all."""
    lines = dict.fromkeys(line for report in run.reports for line in report.skipped)
    found = {line: [report.name for report in run.reports if line in report.skipped] for line in lines}
    return [line if len(names) == len(run.reports) else f"{line} ({', '.join(names)})" for line, names in found.items()]


def codebooks(run: ParityRun) -> Table:
    """Codes equal to the reference's, a column for each codebook."""
    rows = [[report.name, *map(percent, report.codes.per_codebook)] for report in run.reports]
    most = max(map(len, rows))
    columns = ("variant", *map(str, range(most - 1)))
    return Table("Codes equal to PyTorch's, by codebook", columns, [row + [""] * (most - len(row)) for row in rows])


def latents(run: ParityRun) -> Table:
    """What a graph gives as latents, a row for each clip and way to call; no rows where none gives any."""
    rows = [
        [f"{report.name}, {clip.name}", way, *_three(difference)]
        for report in run.reports
        for clip in report.clips
        for way, difference in clip.latent_calls.items()
    ]
    columns = ("variant, clip", "frames per call", "SNR dB", "cosine", "max-abs")
    return Table("Latents against PyTorch's", columns, rows)


def clips(run: ParityRun) -> Table:
    """Each clip of each variant, and each way to call it."""
    rows = []
    for report, clip in [(r, c) for r in run.reports for c in r.clips]:
        seconds = clip.num_samples / report.manifest.geometry.sampling_rate
        for index, (way, codes) in enumerate(clip.codes.items()):
            whole, decoder = index == 0, clip.decoder_calls[way]
            rows.append([
                f"{report.name}, {clip.name}", f"{seconds:.2f}", way, percent(codes.equal),
                number(clip.latents.snr_db if whole and clip.latents else None, 1), number(decoder.snr_db, 1),
                number(clip.end_to_end.snr_db if whole else None, 1), cosine(decoder.cosine), small(decoder.max_abs),
                _drift(clip.drift.get("decoder") if whole else None),
            ])  # fmt: skip
    columns = (
        "variant, clip", "seconds", "frames per call", "codes equal", "latents dB", "decoder dB", "end to end dB",
        "cosine", "max-abs", "first → last 10 s, decoder dB",
    )  # fmt: skip
    note = (
        "A fall of an exact variant from 116 to 110 dB is the reference's: PyTorch rounds the angles of far positions "
        "to float32, the stream does not."
    )
    return Table("All clips and ways to call", columns, rows, note)


def states(run: ParityRun) -> Iterator[Table]:
    """For each kind of graph its states in the order of computation; weak ones of exact variants say so."""
    for kind in GRAPH_KINDS:
        having = [r for r in run.reports if kind in r.manifest.shape.kinds]
        names = list(dict.fromkeys(name for r in having for name in computation_order(r.manifest, kind)))
        rows = [[name, *(_state(r, r.states.get(kind, {}).get(name)) for r in run.reports)] for name in names]
        yield Table(kind, (kind, *(report.name for report in run.reports)), rows)


STATES_NOTE = (
    "SNR in dB against the PyTorch step functions after the first clip, in the order of computation. In an exact "
    f"variant, the first one below {STATE_DB:g} dB is where to look."
)


def cosine(value: float) -> str:
    """A cosine; as `1 - 3e-08` where it is too near to 1 for decimals."""
    distance = 1 - value
    if math.isnan(value):
        return number(None)
    return f"{value:.5f}" if distance > 1e-5 else f"1 - {max(distance, 0):.0e}"


def small(value: float, digits: int = 0) -> str:
    """A number near zero, with an exponent, or so many significant digits."""
    return number(None) if math.isnan(value) else f"{value:.{digits}g}" if digits else f"{value:.1e}"


def percent(fraction: float) -> str:
    """A fraction in percent that says 100 only for all."""
    text = f"{100 * fraction:.2f} %" if not math.isnan(fraction) else number(None)
    return "99.99 %" if text == "100.00 %" and fraction < 1 else text.replace("100.00", "100")


def _state(report: VariantReport, value: float | None) -> str:
    weak = report.manifest.precision == EXACT and value is not None and not value >= STATE_DB
    return number(value, 1) + (WEAK if weak else "")


def _three(difference: Difference) -> list[str]:
    return [number(difference.snr_db, 1), cosine(difference.cosine), small(difference.max_abs, 2)]


def _drift(drift: Drift | None) -> str:
    return "—" if drift is None else f"{number(drift.first_db, 1)} → {number(drift.last_db, 1)}"


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:].rstrip(".") + "."


def _variants(count: int) -> str:
    return f"{count} variant" if count == 1 else f"{count} variants"
