"""`bench`: every way to run Mimi side by side. Needs the export and bench extras.

With `--json`: the object that `mimi_export.bench.report` describes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from mimi_export.cli.console import Steps, note, show_json, show_table
from mimi_export.cli.errors import needs_extra
from mimi_export.cli.options import ARTIFACTS, Force, Json, Provider, Revision
from mimi_export.contract.files import refuse_taken
from mimi_export.errors import ConfigError


def bench(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]...", help="Variant directories [default: those in artifacts/ with 8 codebooks]."),
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Recording for the encoders [default: generated].")
    ] = None,
    frames: Annotated[int, typer.Option(metavar="N", min=1, help="Frames of each in a round.")] = 10,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Rounds of all in turn.")] = 5,
    ages: Annotated[str, typer.Option(metavar="S,…", help="Ages of the streams in seconds.")] = "2,20,600",
    batches: Annotated[
        str, typer.Option(metavar="N,…", help="Streams in a batch; more than 1 for graphs only.")
    ] = "1,4,16",
    threads: Annotated[
        str, typer.Option(metavar="N,…", help="Threads; everything with the first, one row with each other.")
    ] = "1",
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Weights of the public design and the other programs [default: what the first variant was made from].",
        ),
    ] = None,
    revision: Revision = None,
    public: Annotated[bool, typer.Option(help="Measure the design of the public ONNX models, too.")] = True,
    peers: Annotated[bool, typer.Option(help="Measure `transformers`, too.")] = True,
    peers_python: Annotated[
        str | None, typer.Option(metavar="PATH", help="A python with moshi and rustymimi (`make bench-peers`).")
    ] = None,
    provider: Provider = "cpu",
    huge_pages: Annotated[
        bool, typer.Option("--huge-pages", help="Start all with memory in huge pages (Linux).")
    ] = False,
    show_targets: Annotated[bool, typer.Option("--targets", help="Also show what the project promises.")] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write bench.json, .md, .svg and .png there.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure latency, throughput, loading and memory of variants beside other ways to run Mimi, in turns.

    The defaults take a few minutes on a quiet machine. --provider is for graphs; other programs keep to the processor.
    A thorough run:

    \b
      mimi-export bench --frames 25 --rounds 10 --batches 1,4,8,16,32 --threads 1,2 --peers-python PATH --targets
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    if revision is not None and model is None:
        raise ConfigError("--revision belongs to a --model; give both")
    with needs_extra("export,bench", "mimi-export bench"):
        from mimi_export.bench.benchmark import REPORT_NAME, benchmark, default_directories, write_report
        from mimi_export.bench.plan import Plan
        from mimi_export.bench.process import check_huge_pages
        from mimi_export.bench.report import tables
        from mimi_export.media.audio import read_audio
    if huge_pages:
        check_huge_pages()
    if output is not None:
        refuse_taken(output, force, REPORT_NAME)
        with needs_extra("export,bench", "mimi-export bench --output"):
            import mimi_export.bench.plot  # noqa: F401 - before minutes of measuring, not after
    plan = Plan(
        frames=frames,
        rounds=rounds,
        ages=tuple(_numbers("--ages", ages, 0)),
        batches=tuple(_integers("--batches", batches)),
        threads=tuple(_integers("--threads", threads)),
        huge_pages=huge_pages,
        provider=provider,
    )
    found = directories or default_directories(ARTIFACTS)
    with Steps() as steps:
        report = benchmark(
            found,
            plan,
            model=model,
            revision=revision,
            public=public,
            peers=peers,
            peers_python=peers_python,
            audio=None if audio is None else read_audio(audio),
            progress=steps.advance,
        )
        written = [] if output is None else write_report(report, output, force)
    for name, reason in report["skipped"].items():
        note(f"{name} took no part: {reason}")
    if json:
        show_json(report)
        return
    for title, columns, rows in tables(report, show_targets, narrow=True):
        show_table(title, columns, rows)
    for path in written:
        note(f"wrote {path}")


def _numbers(option: str, text: str, least: float) -> list[float]:
    """A list of different numbers from text with commas."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r}: expected numbers with commas between them, as in 2,20,600") from None
    if any(not math.isfinite(number) or number < least for number in numbers):
        raise ConfigError(f"{option} {text!r}: every number must be {least:g} or more")
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"{option} {text!r}: a number is there twice")
    return numbers


def _integers(option: str, text: str) -> list[int]:
    numbers = _numbers(option, text, 1)
    if any(number != int(number) for number in numbers):
        raise ConfigError(f"{option} {text!r}: expected whole numbers")
    return [int(number) for number in numbers]
