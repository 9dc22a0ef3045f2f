"""Parity over half an hour of real speech and music: `python scripts/real_audio.py VARIANT...` prints tables.

On Debian, as root:  apt-get install ffmpeg fillets-ng-data-nl asterisk-core-sounds-en-g722 asterisk-moh-opsound-g722
                     pocketsphinx-testdata

The recordings are read where they are installed; nothing of them is written anywhere. Acted Dutch of three minutes is
one stream, to see drift by the minute; the rest comes in streams of 100 s, which the reference computes in one piece.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from mimi_export.contract.directory import load_artifact
from mimi_export.contract.recipes import find_configs, load_variants
from mimi_export.model.checkpoint import load_source
from mimi_export.parity.checks import budgets_for, check_budgets
from mimi_export.parity.clips import Clip
from mimi_export.parity.measure import Measurement
from mimi_export.parity.metrics import Audio
from mimi_export.parity.reference import Reference
from mimi_export.parity.reports.markdown import grid
from mimi_export.parity.reports.tables import Table, percent
from mimi_export.parity.results import ClipResult, VariantReport, all_codes, number

SOURCES = {  # Debian package, endings of its recordings, minutes in one stream, further streams of 100 s
    "acted Dutch": ("fillets-ng-data-nl", (".ogg",), 3, 5),
    "English prompts": ("asterisk-core-sounds-en-g722", (".g722",), 0, 6),
    "read English": ("pocketsphinx-testdata", ("b-0870.wav", "b-0880.wav", "b-0890.wav", "b-0920.wav"), 0, 1),
    "music": ("asterisk-moh-opsound-g722", (".g722",), 0, 6),
}
STREAM_SECONDS = 100
MUSIC_SECONDS = 120  # of each piece, so that all of them are heard


def recordings(package: str, endings: tuple[str, ...]) -> list[Path]:
    """A package's recordings, in an order that mixes its folders and is the same everywhere."""
    listed = subprocess.run(["dpkg", "-L", package], check=True, capture_output=True, text=True).stdout.split("\n")
    found = sorted(Path(line) for line in listed if line.endswith(endings))
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def decoded(path: Path, rate: int) -> Audio:
    """The beginning of a recording, mono float32; ffmpeg knows every form of it."""
    form = ["-f", "g722"] if path.suffix == ".g722" else []
    command = ["ffmpeg", "-v", "error", "-nostdin", *form, "-i", str(path), "-t", str(MUSIC_SECONDS), "-ac", "1"]
    result = subprocess.run([*command, "-ar", str(rate), "-f", "f32le", "-"], check=True, capture_output=True)
    return np.frombuffer(result.stdout, np.float32)


def streams(source: str, rate: int) -> Iterator[Clip]:
    """The clips of one source: its recordings joined and cut; the last may be shorter."""
    package, endings, minutes, further = SOURCES[source]
    lengths = [60 * minutes] * (minutes > 0) + [STREAM_SECONDS] * further
    wanted, held = sum(lengths) * rate, 0
    parts: list[Audio] = []
    for path in recordings(package, endings):
        parts.append(decoded(path, rate))
        held += len(parts[-1])
        if held >= wanted:
            break
    sound, start = np.concatenate(parts), 0
    for index, seconds in enumerate(lengths):
        samples = sound[start : start + seconds * rate]
        start += len(samples)
        if len(samples):
            yield Clip(f"{source} {index}", samples)


def row(name: str, clips: Sequence[ClipResult], rate: int) -> list[str]:
    """One line of the table."""
    codes = all_codes(clips)
    worst = [[clip.latents.snr_db for clip in clips if clip.latents], [clip.decoder.snr_db for clip in clips]]
    return [
        name,
        f"{sum(clip.num_samples for clip in clips) / rate / 60:.1f}",
        percent(codes.equal),
        f"{codes.ties} (+{codes.follow})",
        str(codes.differ),
        percent(min(codes.per_codebook)),
        *(number(min(values), 1) for values in worst),
        number(float(np.median([clip.end_to_end.snr_db for clip in clips])), 1),
    ]


def tables(report: VariantReport) -> Iterator[Table]:
    """What a variant did to each source, and minute by minute to the longest stream."""
    rate, frames = report.manifest.geometry.sampling_rate, round(60 * report.manifest.geometry.frame_rate)
    groups = {source: [clip for clip in report.clips if clip.name.startswith(source)] for source in SOURCES}
    rows = [row(source, clips, rate) for source, clips in groups.items() if clips]
    columns = ("source", "minutes", "codes equal", "ties", "differ", "worst codebook", "latents dB, worst stream",
               "decoder dB, worst stream", "end to end dB, median")  # fmt: skip
    yield Table(report.name, columns, [*rows, row("all", report.clips, rate)])
    longest = max(report.clips, key=lambda clip: clip.num_frames)
    starts = range(0, longest.num_frames, frames)
    equal = longest.timeline.verdict == 0
    drift = [
        ["codes equal", *(percent(float(equal[:, start : start + frames].mean())) for start in starts)],
        *(
            [f"{what} dB", *(number(longest.timeline.snr_db(what, start, start + frames), 1) for start in starts)]
            for what in longest.timeline.energies
        ),
    ]
    minutes = tuple(f"minute {index + 1}" for index in range(len(starts)))
    yield Table(f"{report.name}, {longest.name} by the minute", ("", *minutes), drift)


def main(
    variants: Annotated[list[Path], typer.Argument(help="Variant directories of one model.")],
    streams_each: Annotated[int, typer.Option(help="At most so many streams of a source.")] = 99,
    calls: Annotated[int, typer.Option(help="Frames in a call.")] = 4,
) -> None:
    """Measure VARIANTS; budgets are those of configs/. Exit code 1: one is missed."""
    torch.set_num_threads(1)
    artifacts = [load_artifact(path, verify_hashes=True) for path in variants]
    source = artifacts[0].manifest.source
    checkpoint = load_source(source.model, source.revision)
    rate = checkpoint.geometry.sampling_rate
    turns = itertools.zip_longest(*(list(streams(name, rate))[:streams_each] for name in SOURCES))
    clips = [clip for turn in turns for clip in turn if clip]  # of each source first, should the run be interrupted
    recipes, passed = load_variants(find_configs(None)), True
    counts = [artifact.manifest.shape.num_codebooks for artifact in artifacts]

    def tell(step: str) -> None:
        typer.echo(step, err=True)

    with Reference(checkpoint, counts, tell) as reference:
        measurements = [Measurement(artifact, reference, tell) for artifact in artifacts]
        reports: list[VariantReport] = []
        for clip in clips:  # all variants at once, so that an interrupted run has something to say of each
            try:
                found = [measurement.run([clip], [calls], situations=False) for measurement in measurements]
            except KeyboardInterrupt:
                break
            for report, more in zip(reports, found, strict=False):
                report.clips += more.clips
            reports = reports or found
    for artifact, report in zip(artifacts, reports, strict=True):
        for table in tables(report):
            typer.echo(f"\n{table.title}\n\n{grid(table)}")
        for check in check_budgets(report.clips, budgets_for(artifact.manifest, recipes)):
            typer.echo(f"- {check.line}")
            passed = passed and check.passed
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    typer.run(main)
