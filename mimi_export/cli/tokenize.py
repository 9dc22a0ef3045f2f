"""`tokenize`: a corpus to Parquet files of codes; `tokenize-export`: these for other loaders.

With `--json`: `command`, `output`, `engine`, `workers`, `utterances`, `before` (done by earlier runs), `done`,
`failed`, `seconds`, `done_seconds` and `left_seconds` (of sound), `speed_per_core` (seconds of sound in a second of
one worker), `where` (seconds in read, resample, encode, write) and `errors` (a list of id, path and reason).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mimi_export.cli.console import Steps, note, show_json, show_rows
from mimi_export.cli.errors import INTERRUPTED, needs_extra
from mimi_export.cli.options import ARTIFACTS, Json, Variant
from mimi_export.errors import AudioError

if TYPE_CHECKING:
    from mimi_export.corpus.run import Summary

Engine = Literal["local", "ray"]
Form = Literal["webdataset", "lhotse"]
MOST_SHOWN = 5  # errors; all of them are in errors.parquet


def tokenize(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Folders, 'patterns', lists (.jsonl, .parquet with path, offset, duration, channel), .tar of "
            "WebDataset, or datasets with sound inside.",
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the Parquet files.")],
    variant: Variant = ARTIFACTS / "ring-8cb",
    num_codebooks: Annotated[int | None, typer.Option(min=1, metavar="K", help="Keep the first K codebooks.")] = None,
    latents: Annotated[bool, typer.Option("--latents", help="Keep latents, too; the variant must give them.")] = False,
    engine: Annotated[Engine, typer.Option(metavar="NAME", help="local, or ray (a cluster).")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes or actors [default: one a core].")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Utterances in one call of a ring variant [default: 16 frames' worth]."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of a Ray cluster [default: this machine].")
    ] = None,
    json: Json = False,
) -> None:
    """Encode a corpus: one row an utterance, codes equal to those of each file encoded alone.

    \b
      mimi-export tokenize recordings/ --output codes/
      mimi-export tokenize 'shards/*.tar' more.jsonl --output codes/ --engine ray --address auto

    Run the same command again after a crash, a full disk or with more inputs: only what is missing is done. What cannot
    be read goes to DIR/errors.parquet, stops nothing else, and ends in exit code 6. Files do not wait, so the fastest
    is a ring with several frames in a call (export --kv-cache ring --frames-per-call 8); it takes several at once.

    Columns: id, path, offset, duration, channel, samples, frames, last_frame_samples (real ones), codes (K lists of
    uint16) and latents. The metadata of each file says which variant made it, with the SHA-256 of its files.
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.contract.directory import load_artifact

    with needs_extra("corpus", "tokenize"):
        from mimi_export.corpus.encoder import Settings
        from mimi_export.corpus.run import tokenize as run
    settings = Settings(str(variant.resolve()), rows, num_codebooks, latents)
    if load_artifact(variant).manifest.shape.frames_per_call == 1:  # a window takes as many as there are
        note(
            "files need no short calls: export --kv-cache ring --frames-per-call 8 makes a variant that is faster here"
        )
    with Steps() as steps, needs_extra("ray", "--engine ray"):
        steps.step(f"tokenize: looking for {', '.join(inputs)}")

        def report(now: Summary) -> None:
            steps.advance("tokenize", now.done, now.utterances - now.before, _line(now))

        try:
            summary, errors = run(inputs, output, settings, engine, workers, address, report)
        except KeyboardInterrupt as stop:
            note(f"interrupted; {output} keeps what is done, the same command goes on")
            raise typer.Exit(INTERRUPTED) from stop
    if json:
        wanted = [{name: error[name] for name in ("id", "path", "error")} for error in errors]
        facts = {"output": str(output), "engine": engine, **summary.to_dict()}
        show_json({"command": "tokenize", **facts, "errors": wanted})
    else:
        counts = f"{summary.done} done, {summary.before} before, {summary.failed} failed, of {summary.utterances}"
        spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in summary.where.items())
        speed = f"{summary.done_seconds / 3600:.2f} h of sound in {summary.seconds:.0f} s"
        pace = f"{summary.speed_per_core:.1f} times real time on each of {summary.workers}"
        where = f"{spent} (of {summary.seconds * summary.workers:.0f} s of {summary.workers} workers)"
        some = [("speed", f"{speed}, {pace}"), ("where", where)] if summary.done else []
        show_rows(str(output), [("utterances", counts), *some])
    for error in errors[:MOST_SHOWN]:
        note(f"failed: {error['error']}")
    if len(errors) > MOST_SHOWN:
        note(f"and {len(errors) - MOST_SHOWN} more, see {output / 'errors.parquet'}")
    if errors:
        raise typer.Exit(AudioError.exit_code)


def _line(now: Summary) -> str:
    hours = f"{now.done_seconds / 3600:.2f} h done, {now.left_seconds / 3600:.2f} h left"
    return f"{hours}, {now.speed_per_core:.1f} x real time a core, {now.workers} workers, {now.failed} errors"


def tokenize_export(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `tokenize` wrote.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    form: Annotated[Form, typer.Option("--format", metavar="NAME", help="webdataset or lhotse.")] = "webdataset",
) -> None:
    """Write a corpus of codes anew for another loader.

    \b
      mimi-export tokenize-export codes/ tars/                       # key.codes.npy and key.json
      mimi-export tokenize-export codes/ shar/ --format lhotse       # CutSet.from_shar(in_dir="shar")

    Hugging Face datasets reads the Parquet files: load_dataset("parquet", data_files="codes/codes-*.parquet").
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    with needs_extra("corpus", "tokenize-export"):
        from mimi_export.corpus.exports import export_corpus
    with needs_extra("lhotse", "--format lhotse"):
        count = export_corpus(source, output, form)
    show_rows(str(output), [("rows", count), ("format", form)])
