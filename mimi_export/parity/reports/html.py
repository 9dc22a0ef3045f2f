"""`report.html`: one file that needs nothing else, with the verdict on top and everything to see and hear below.

It has no script and loads nothing: tables, SVG, and PNG and WAV as data URIs. It follows the reader's light or dark
mode and fits a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import numpy as np

from mimi_export import __version__
from mimi_export.contract.decibels import decibels
from mimi_export.contract.spec import GRAPH_KINDS
from mimi_export.parity.checks import STATE_DB, computation_order
from mimi_export.parity.metrics import Audio
from mimi_export.parity.reports import charts
from mimi_export.parity.reports import html_parts as h
from mimi_export.parity.reports import markdown as report_md
from mimi_export.parity.results import METRIC_WORDS, ClipResult, ParityRun, VariantReport, number
from mimi_export.parity.spectra import spectrogram

TOP_DB = 140.0  # of the error plots; what is exact is drawn there
GRID_DB = (30.0, 60.0, 90.0, 120.0)
CURVES = {
    "latents": "Latents before the quantiser",
    "decoder": "Decoder, from the reference's codes",
    "end_to_end": "End to end, from the variant's own codes",
}


def to_text(run: ParityRun) -> str:
    """`report.html` as text."""
    style = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    parts = [_verdict(run)]
    if run.reports:
        parts += [
            _variants(run),
            _checks(run),
            _published(run),
            *_clips(run),
            _states(run),
            _all_clips(run),
            _footer(run),
        ]
    title = f"Parity: {report_md.verdict(run)}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{h.text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _verdict(run: ParityRun) -> str:
    good = run.passed
    problems = [*run.missed]
    problems += [f"{report.name}: {item.line}" for report in run.reports for item in report.explanations]
    problems += [f"could not measure {item.directory}: {item.reason}" for item in run.not_measured]
    items = "".join(f"<li>{h.text(line)}</li>" for line in problems)
    words = "Every budget is met." if good else "What is wrong, and where:"
    listed = f"<ul>{items}</ul>" if items else ""
    return (
        f'<h1>mimi-export parity · ONNX streams against batch PyTorch</h1>\n<div class="verdict {h.tone(good)}">'
        f"<strong>{h.text(report_md.verdict(run).capitalize())}</strong><p>{words}</p>{listed}</div>"
    )


def _variants(run: ParityRun) -> str:
    rows = []
    for report in run.reports:
        cells = [h.text(cell) for cell in report_md.quality_row(report)]
        cells[0] = f"<b>{cells[0]}</b>"
        cells[1] = h.pill(report.passed, "pass", "fail")
        rows.append(cells)
    first = run.reports[0].clips[0]
    return (
        "<h2>Variants</h2><p>Levels are signal-to-noise ratios against untouched batch PyTorch on the clip "
        f"<code>{h.text(first.name)}</code>; more is better, float rounding alone leaves 110 to 130 dB. Codes are of "
        "all clips and all ways to call; ties are entries that rounding cannot tell apart (and what follows from "
        "them).</p>"
        + h.table(report_md.QUALITY_COLUMNS, rows)
        + '<p class="gap">Speed: one stream, one thread, as this machine was busy at the time.</p>'
        + h.table(
            report_md.COST_COLUMNS,
            [[h.text(cell) for cell in report_md.cost_row(report)] for report in run.reports],
        )
    )


def _checks(run: ParityRun) -> str:
    rows = []
    for report in run.reports:
        for check in sorted(report.checks, key=lambda check: check.passed):
            words, unit = METRIC_WORDS[check.metric]
            rows.append([
                h.text(report.name),
                h.pill(check.passed, "met", "missed"),
                h.text(words),
                f"{check.got_text} {unit}",
                f"{h.text(check.wanted)} {unit}",
                f'<span class="note">{h.text(h.sentence(check.where))} {h.text(h.sentence(check.reason))}</span>',
            ])  # fmt: skip
    return "<h2>Budgets</h2>" + h.table(
        ("variant", "", "what", "got", "wanted", "where, and why this number"), rows, why=5
    )


def _published(run: ParityRun) -> str:
    rows = [[h.text(cell) for cell in row] for row in report_md.published_rows(run)]
    return (
        "<h2>Streaming against batch, 3 s</h2><p>The table of the public models' card, and the same on the first "
        "3 seconds of our first clip.</p>" + h.table(report_md.PUBLISHED_COLUMNS, rows)
    )


def _clips(run: ParityRun) -> list[str]:
    """Pictures and players of each clip, the first one open."""
    parts = ["<h2>See and hear</h2>"]
    for index, first in enumerate(run.reports[0].clips):
        found = [(report, clip) for report in run.reports for clip in report.clips if clip.name == first.name]
        rate = run.reports[0].manifest.geometry.sampling_rate
        seconds = f"{first.num_samples / rate:.2f} s"
        shown = len(first.excerpt.original) / rate
        detail = f"{seconds}, {first.num_frames} frames" + (
            "" if shown >= first.num_samples / rate else f"; heard: {shown:g} s"
        )
        body = _listen(found, rate) + _waves(found, shown) + _spectra(found, rate) + _errors(found) + _heat(found)
        is_open = " open" if index == 0 else ""
        parts.append(f"<details{is_open}><summary>{h.text(first.name)}<span>{detail}</span></summary>{body}</details>")
    return parts


Found = Sequence[tuple[VariantReport, ClipResult]]


def _listen(found: Found, rate: int) -> str:
    players = [("Original", found[0][1].excerpt.original)]
    for count, clip in _by_codebooks(found).items():
        players.append((f"PyTorch, {count} codebooks", clip.excerpt.reference))
    players += [(report.name, clip.excerpt.result) for report, clip in found]
    figures = "".join(
        f"<figure><figcaption><b>{h.text(name)}</b></figcaption>"
        f'<audio controls preload="metadata" src="{charts.wav(samples, rate)}"></audio></figure>'
        for name, samples in players
    )
    return f'<h3>Listen</h3><div class="grid2">{figures}</div>'


def _waves(found: Found, seconds: float) -> str:
    legend = h.legend((("original", "original"), ("reference", "PyTorch"), ("result", "ONNX (outline)")))
    figures = "".join(
        f'<figure><figcaption><b>{h.text(report.name)}</b>, end to end</figcaption><div class="plot">'
        + charts.waveforms(clip.excerpt.original, clip.excerpt.reference, clip.excerpt.result)
        + f"</div>{h.axis(seconds)}</figure>"
        for report, clip in found
    )
    return f'<h3>Waveforms</h3>{legend}<div class="grid2">{figures}</div>'


def _spectra(found: Found, rate: int) -> str:
    signals = [("Original", found[0][1].excerpt.original)]
    signals += [(f"PyTorch, {count} codebooks", clip.excerpt.reference) for count, clip in _by_codebooks(found).items()]
    signals += [(report.name, clip.excerpt.result) for report, clip in found]
    figures = "".join(
        f'<figure><figcaption><b>{h.text(name)}</b></figcaption><div class="plot">'
        f'<img alt="Log-mel spectrogram of {h.text(name)}" src="{_spectrogram(samples, rate)}"></div>'
        f"{h.axis(len(samples) / rate)}</figure>"
        for name, samples in signals
    )
    return (
        f'<h3>Spectrograms</h3><p>Log-mel, 0 to {rate // 2000} kHz, -100 to 0 dB.</p><div class="grid2">{figures}</div>'
    )


def _spectrogram(samples: Audio, rate: int) -> str:
    return charts.spectrogram_png(spectrogram(samples, rate, charts.COLUMNS))


def _errors(found: Found) -> str:
    legend = h.legend([(f"s{index % 8}", report.name) for index, (report, _) in enumerate(found)])
    ticks = "".join(
        f'<span class="tick" style="top:{100 - 100 * value / TOP_DB:.1f}%">{value:g} dB</span>' for value in GRID_DB
    )
    figures = ""
    for what, title in CURVES.items():
        series = [
            (index % 8, _curve(clip, what, report.manifest.geometry.frame_rate))
            for index, (report, clip) in enumerate(found)
            if what in clip.timeline.energies
        ]
        if series:
            figures += f'<figure><figcaption><b>{title}</b></figcaption><div class="plot tall">'
            figures += charts.lines(series, 0.0, TOP_DB, GRID_DB) + ticks + "</div>"
            figures += h.axis(found[0][1].num_frames / found[0][0].manifest.geometry.frame_rate) + "</figure>"
    return (
        "<h3>Error over time</h3><p>SNR of each second; higher is better, a fall would be drift. What is exact stands "
        f'at the top.</p>{legend}<div class="grid2">{figures}</div>'
    )


def _curve(clip: ClipResult, what: str, frame_rate: float) -> charts.Array:
    """SNR of each second, or of more where the clip is long."""
    signal, error = clip.timeline.energies[what]
    spans = min(charts.COLUMNS, max(1, round(len(signal) / frame_rate)))
    edges = np.linspace(0, len(signal), spans + 1).astype(int)[:-1]
    sums = zip(np.add.reduceat(signal, edges), np.add.reduceat(error, edges), strict=True)
    return np.array([decibels(float(a), float(b)) for a, b in sums])


def _heat(found: Found) -> str:
    legend = h.legend(
        (("#268470", "equal"), ("#d0342c", "differs"), ("#f0c83c", "tie"), ("#f8e08c", "follows from a tie"))
    )
    figures = ""
    for report, clip in found:
        codebooks = len(clip.timeline.verdict)
        agreement = next(iter(clip.codes.values()))
        picture = charts.heat_map(clip.timeline.verdict)
        figures += (
            f"<figure><figcaption><b>{h.text(report.name)}</b>, {report_md.percent(agreement.equal)} equal; codebook 0 "
            f'on top, {codebooks - 1} at the bottom</figcaption><div class="plot"><img class="codes" '
            f'alt="Code agreement of {h.text(report.name)}" style="height:{max(90, 13 * codebooks)}px" src="{picture}">'
            f"</div>{h.axis(clip.num_frames / report.manifest.geometry.frame_rate)}</figure>"
        )
    return f'<h3>Codes equal to PyTorch\'s, by codebook and time</h3>{legend}<div class="grid2">{figures}</div>'


def _states(run: ParityRun) -> str:
    """States of all variants, a row each, in the order of computation."""
    parts = [
        "<h2>States at the end of the stream</h2><p>SNR in dB against the PyTorch step functions after the first clip, "
        f"in the order of computation. In an exact variant, the first one below {STATE_DB:g} dB is where to look.</p>"
    ]
    for kind in GRAPH_KINDS:
        names = list(dict.fromkeys(name for report in run.reports for name in computation_order(report.manifest, kind)))
        rows = []
        for name in names:
            cells = [f"<code>{h.text(name)}</code>"]
            for report in run.reports:
                value = report.states.get(kind, {}).get(name)
                weak = report.manifest.precision == "fp32" and value is not None and not value >= STATE_DB
                cells.append(f'<span class="pill bad">{number(value, 1)}</span>' if weak else number(value, 1))
            rows.append(cells)
        table = h.table((kind, *(h.text(report.name) for report in run.reports)), rows)
        parts.append(f"<details><summary>{kind}<span>{len(names)} states</span></summary>{table}</details>")
    return "".join(parts)


def _all_clips(run: ParityRun) -> str:
    rows = [[h.text(cell) for cell in row] for report in run.reports for row in report_md.clip_rows(report)]
    return f"<h2>All clips and ways to call</h2><p>{h.text(report_md.DRIFT_NOTE)}</p>" + h.table(
        report_md.CLIP_COLUMNS, rows
    )


def _footer(run: ParityRun) -> str:
    sources = {f"{r.manifest.source.model} {r.manifest.source.revision or ''}".strip() for r in run.reports}
    tools = ", ".join(f"{name} {version}" for name, version in sorted(run.reports[0].tools.items()))
    return f"<footer>mimi-export {__version__} · model {h.text(', '.join(sorted(sources)))} · {h.text(tools)}</footer>"


def _by_codebooks(found: Found) -> dict[int, ClipResult]:
    """One clip result for each number of codebooks: PyTorch's reconstruction depends on nothing else."""
    chosen: dict[int, ClipResult] = {}
    for report, clip in found:
        chosen.setdefault(report.manifest.shape.num_codebooks, clip)
    return chosen
