"""`report.html`: one file that needs nothing else, with the verdict on top and everything to see and hear below.

It has no script and loads nothing: tables, SVG, and PNG and WAV as data URIs. It follows the reader's light or dark
mode and fits a phone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources

import numpy as np

from mimi_export import __version__
from mimi_export.contract.decibels import decibels
from mimi_export.parity.metrics import Array, Audio
from mimi_export.parity.reports import charts, tables
from mimi_export.parity.reports.tables import Table
from mimi_export.parity.results import ClipResult, ParityRun, VariantReport
from mimi_export.parity.spectra import spectrogram

BUDGET_WORDS = 5  # the column of sentences in the table of budgets
TOP_DB = 140.0  # of the error plots; what is exact is drawn there
GRID_DB = (30.0, 60.0, 90.0, 120.0)
CURVES = {
    "latents": "Latents before the quantiser",
    "decoder": "Decoder, from the reference's codes",
    "end_to_end": "End to end, from the variant's own codes",
}

Found = Sequence[tuple[VariantReport, ClipResult]]
Signals = list[tuple[str, Audio]]


def to_text(run: ParityRun) -> str:
    """`report.html` as text."""
    style = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    parts = [_verdict(run)]
    if run.reports:
        made = (tables.quality, tables.latents, tables.listened, tables.cost, tables.budgets, tables.published)
        sections = filter(lambda table: table.rows, (make(run) for make in made))
        parts += [*map(_section, sections), *_clips(run), _states(run), _section(tables.clips(run)), _footer(run)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>Parity: {escape(tables.verdict(run))}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _verdict(run: ParityRun) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in run.problems)
    words = "Every budget is met." if run.passed else "What is wrong, and where:"
    listed = f"<ul>{items}</ul>" if items else ""
    cautions = "".join(f'<p class="caution">{escape(line)}</p>\n' for line in tables.cautions(run))
    left = tables.skipped(run)
    skipped = f"<p>Not looked at: {escape('; '.join(left))}.</p>" if left else ""
    return (
        f"<h1>mimi-export parity · ONNX streams against batch PyTorch</h1>\n{cautions}"
        f'<div class="verdict {"good" if run.passed else "bad"}">'
        f"<strong>{escape(tables.verdict(run).capitalize())}</strong><p>{words}</p>{listed}</div>{skipped}"
    )


def _section(table: Table) -> str:
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return f"<h2>{escape(table.title)}</h2>{note}{_grid(table)}"


def _grid(table: Table) -> str:
    """A table; on a narrow screen that of budgets becomes a list, and other sentences get a line of their own."""
    why = table.text_column
    left = [' class="why"' if why and index == why else "" for index in range(len(table.columns))]
    head = "".join(f"<th{side}>{escape(column)}</th>" for side, column in zip(left, table.columns, strict=True))
    rows = ((f"<td{side}>{_cell(cell)}</td>" for side, cell in zip(left, row, strict=True)) for row in table.rows)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    kind = f' class="{"stack" if why == BUDGET_WORDS else "told"}"' if why else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    """A cell, coloured where it is a verdict."""
    tone = "good" if text in tables.GOOD else "bad" if text in tables.BAD or text.endswith(tables.WEAK) else ""
    return f'<span class="pill {tone}">{escape(text)}</span>' if tone else escape(text)


def _clips(run: ParityRun) -> Iterator[str]:
    """Pictures and players of each clip, the first one open."""
    yield "<h2>See and hear</h2>"
    rate = run.reports[0].manifest.geometry.sampling_rate
    for index, first in enumerate(run.reports[0].clips):
        found = [(report, clip) for report in run.reports for clip in report.clips if clip.name == first.name]
        seconds, shown = first.num_samples / rate, len(first.excerpt.original) / rate
        heard = "" if shown >= seconds else f"; heard: {shown:g} s"
        signals = _signals(found)
        body = _listen(signals, rate) + _waves(found, shown) + _spectra(signals, rate) + _errors(found) + _heat(found)
        yield (
            f"<details{' open' if index == 0 else ''}><summary>{escape(first.name)}"
            f"<span>{seconds:.2f} s, {first.num_frames} frames{heard}</span></summary>{body}</details>"
        )


def _signals(found: Found) -> Signals:
    """The original, PyTorch's reconstruction for each number of codebooks, and each variant's."""
    references: dict[str, Audio] = {}
    for report, clip in (pair for pair in found if len(pair[1].excerpt.result)):
        count = report.manifest.shape.decoded_codebooks
        references.setdefault(f"PyTorch, {count} codebooks" if count else "PyTorch, latents", clip.excerpt.reference)
    results = [(report.name, clip.excerpt.result) for report, clip in found if len(clip.excerpt.result)]
    return [("Original", found[0][1].excerpt.original), *references.items(), *results]


def _listen(signals: Signals, rate: int) -> str:
    players = [
        _figure(name, "", f'<audio controls preload="metadata" src="{charts.wav(samples, rate)}"></audio>')
        for name, samples in signals
    ]
    return _gallery("Listen", "", players)


def _waves(found: Found, seconds: float) -> str:
    legend = _legend((("original", "original"), ("reference", "PyTorch"), ("result", "ONNX (outline)")))
    figures = []
    for report, clip in (pair for pair in found if len(pair[1].excerpt.result)):
        picture = charts.waveforms(clip.excerpt.original, clip.excerpt.reference, clip.excerpt.result)
        figures.append(_figure(report.name, ", end to end", _plot(picture, seconds)))
    return _gallery("Waveforms", legend, figures)


def _spectra(signals: Signals, rate: int) -> str:
    figures = []
    for name, samples in signals:
        source = charts.spectrogram_png(spectrogram(samples, rate, charts.COLUMNS))
        picture = f'<img alt="Log-mel spectrogram of {escape(name)}" src="{source}">'
        figures.append(_figure(name, "", _plot(picture, len(samples) / rate)))
    return _gallery("Spectrograms", f"<p>Log-mel, 0 to {rate // 2000} kHz, -100 to 0 dB.</p>", figures)


def _errors(found: Found) -> str:
    ticks = "".join(
        f'<span class="tick" style="top:{100 - 100 * value / TOP_DB:.1f}%">{value:g} dB</span>' for value in GRID_DB
    )
    figures = []
    for what, title in CURVES.items():
        series = [(i % 8, _curve(r, clip, what)) for i, (r, clip) in enumerate(found) if what in clip.timeline.energies]
        if series:
            picture = charts.lines(series, 0.0, TOP_DB, GRID_DB) + ticks
            figures.append(_figure(title, "", _plot(picture, _seconds(*found[0]), "plot tall")))
    words = "SNR of each second; higher is better, a fall would be drift. What is exact stands at the top."
    legend = _legend([(f"s{index % 8}", report.name) for index, (report, _) in enumerate(found)])
    return _gallery("Error over time", f"<p>{words}</p>{legend}", figures)


def _curve(report: VariantReport, clip: ClipResult, what: str) -> Array:
    """SNR of each second, or of more where the clip is long."""
    signal, error = clip.timeline.energies[what]
    starts = charts.span_starts(len(signal), min(charts.COLUMNS, max(1, round(_seconds(report, clip)))))
    sums = zip(np.add.reduceat(signal, starts), np.add.reduceat(error, starts), strict=True)
    return np.array([decibels(float(a), float(b)) for a, b in sums])


def _heat(found: Found) -> str:
    figures = []
    for report, clip in (pair for pair in found if len(pair[1].timeline.verdict)):
        codebooks = len(clip.timeline.verdict)
        equal = tables.percent(next(iter(clip.codes.values())).equal)
        picture = (
            f'<img class="codes" alt="Code agreement of {escape(report.name)}" '
            f'style="height:{max(90, 13 * codebooks)}px" src="{charts.heat_map(clip.timeline.verdict)}">'
        )
        words = f", {equal} equal; codebook 0 on top, {codebooks - 1} at the bottom"
        figures.append(_figure(report.name, words, _plot(picture, _seconds(report, clip))))
    return _gallery("Codes equal to PyTorch's, by codebook and time", _legend(list(charts.VERDICTS.values())), figures)


def _states(run: ParityRun) -> str:
    """States of all variants, a row each; those of exact variants are marked where they are weak."""
    parts = [f"<h2>States at the end of the stream</h2><p>{escape(tables.STATES_NOTE)}</p>"]
    parts += [
        f"<details><summary>{table.title}<span>{len(table.rows)} states</span></summary>{_grid(table)}</details>"
        for table in tables.states(run)
    ]
    return "".join(parts)


def _footer(run: ParityRun) -> str:
    sources = {f"{r.manifest.source.model} {r.manifest.source.revision or ''}".strip() for r in run.reports}
    tools = ", ".join(f"{name} {version}" for name, version in sorted(run.reports[0].tools.items()))
    return f"<footer>mimi-export {__version__} · model {escape(', '.join(sorted(sources)))} · {escape(tools)}</footer>"


def _gallery(title: str, head: str, figures: Sequence[str]) -> str:
    return f'<h3>{escape(title)}</h3>{head}<div class="grid2">{"".join(figures)}</div>'


def _figure(name: str, words: str, body: str) -> str:
    return f"<figure><figcaption><b>{escape(name)}</b>{words}</figcaption>{body}</figure>"


def _plot(picture: str, seconds: float, kind: str = "plot") -> str:
    """A picture over a time axis."""
    axis = f"<span>0</span><span>{seconds / 2:.3g}</span><span>{seconds:.3g} s</span>"
    return f'<div class="{kind}">{picture}</div><div class="axis">{axis}</div>'


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    """Colours (`#rgb` or the name of a variable) with what they mean."""
    fills = ((colour if colour.startswith("#") else f"var(--{colour})", name) for colour, name in entries)
    items = "".join(f'<span><i style="background:{fill}"></i>{escape(name)}</span>' for fill, name in fills)
    return f'<div class="legend">{items}</div>'


def _seconds(report: VariantReport, clip: ClipResult) -> float:
    return clip.num_frames / report.manifest.geometry.frame_rate
