"""`encode`, `decode` and `roundtrip`: files through the graphs of a variant, from the base install.

With `--json` each prints `command`, `input`, `output`, `variant`, `duration` (s), `samples`, `frames`,
`num_codebooks`, `bitrate` (bit/s), `seconds` (work), `speed` (seconds of audio in a second), `clipped` (samples),
`partial` (true where it was interrupted and what was done is kept) and `caution` (of made-up weights, or null).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimi_export.cli.console import Steps, note, show_json, show_rows
from mimi_export.cli.errors import INTERRUPTED
from mimi_export.cli.options import DEFAULT_VARIANT, Force, Json, Provider, Threads, Variant

if TYPE_CHECKING:
    from mimi_export.cli.transfer import Job, Transfer
    from mimi_export.runtime import Codec

NumCodebooks = Annotated[
    int | None,
    typer.Option("--num-codebooks", min=1, metavar="K", help="Use only the first K codebooks [default: all]."),
]
Subtype = Annotated[
    str | None,
    typer.Option("--subtype", metavar="NAME", help="Sample encoding of OUT, such as FLOAT or PCM_24 [default: usual]."),
]
KeepPartial = Annotated[bool, typer.Option("--keep-partial", help="When interrupted, keep what is done until then.")]
AudioIn = Annotated[Path, typer.Argument(metavar="IN", help="Audio in any format and rate that libsndfile reads.")]
CodesIn = Annotated[Path, typer.Argument(metavar="IN", help="Codes: .safetensors or .npz.")]
AudioOut = Annotated[Path, typer.Argument(metavar="OUT", help="Audio; the extension names the format (.wav, .flac …).")]
CodesOut = Annotated[Path, typer.Argument(metavar="OUT", help="Codes: .safetensors or .npz.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("encode", short_help="Audio file to codes.")(encode)
    app.command("decode", short_help="Codes to audio file.")(decode)
    app.command("roundtrip", short_help="Audio file to codes and back to audio.")(roundtrip)


def encode(
    source: AudioIn,
    target: CodesOut,
    variant: Variant = DEFAULT_VARIANT,
    num_codebooks: NumCodebooks = None,
    threads: Threads = 1,
    provider: Provider = "cpu",
    keep_partial: KeepPartial = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Encode an audio file to codes, frame by frame, in memory that does not grow with the file.

    The audio is mixed to mono and resampled. OUT holds the tensor `codes`, [1, K, frames].

    \b
      mimi-export encode speech.wav speech.safetensors
      mimi-export encode music.mp3 music.npz --variant artifacts/streaming-16cb
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.cli import transfer
    from mimi_export.media.codes import CodesWriter

    CodesWriter(target)  # an extension that it does not know is refused before anything loads
    job = transfer.Job(source, target, num_codebooks, None, force, keep_partial)
    _run("encode", job, variant, threads, provider, transfer.encode, json)


def decode(
    source: CodesIn,
    target: AudioOut,
    variant: Variant = DEFAULT_VARIANT,
    num_codebooks: NumCodebooks = None,
    subtype: Subtype = None,
    threads: Threads = 1,
    provider: Provider = "cpu",
    keep_partial: KeepPartial = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Decode codes to an audio file of the length that was encoded.

    \b
      mimi-export decode speech.safetensors speech-decoded.wav
      mimi-export decode music.npz music-4.flac --num-codebooks 4
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.cli import transfer
    from mimi_export.media.audio import AudioWriter
    from mimi_export.media.codes import read_codes

    AudioWriter(target, subtype=subtype)
    file = read_codes(source)

    def work(codec: Codec, job: Job) -> Transfer:
        made_by, here = file.metadata.model, codec.artifact.manifest.source.model
        if made_by not in (None, here):
            note(f"{source} was made with the model {made_by}, {variant} holds {here}; if they differ you hear noise")
        return transfer.decode(codec, file, job)

    job = transfer.Job(source, target, num_codebooks, subtype, force, keep_partial)
    _run("decode", job, variant, threads, provider, work, json)


def roundtrip(
    source: AudioIn,
    target: AudioOut,
    variant: Variant = DEFAULT_VARIANT,
    num_codebooks: NumCodebooks = None,
    subtype: Subtype = None,
    threads: Threads = 1,
    provider: Provider = "cpu",
    keep_partial: KeepPartial = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Encode and decode an audio file in one go, to hear what a variant does to it.

    \b
      mimi-export roundtrip speech.wav speech-8.wav
      mimi-export roundtrip speech.wav speech-4.wav --num-codebooks 4
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.cli import transfer
    from mimi_export.media.audio import AudioWriter

    AudioWriter(target, subtype=subtype)
    job = transfer.Job(source, target, num_codebooks, subtype, force, keep_partial)
    _run("roundtrip", job, variant, threads, provider, transfer.roundtrip, json)


def _run(
    command: str,
    job: Job,
    variant: Path,
    threads: int,
    provider: str,
    work: Callable[[Codec, Job], Transfer],
    json: bool,
) -> None:
    """Open the variant, do the work with progress, show what came of it."""
    from mimi_export.runtime import load

    codec = load(variant, threads, (provider,))
    with Steps() as steps:
        steps.step(f"{command}: loading {variant}")
        transfer = work(codec, dataclasses.replace(job, tick=partial(steps.advance, f"{command}: {job.source}")))
    geometry = codec.geometry
    duration = transfer.samples / geometry.sampling_rate
    bitrate = geometry.bitrate(transfer.num_codebooks)
    speed = duration / max(transfer.seconds, 1e-9)
    caution = codec.artifact.manifest.source.caution
    if json:
        files = {"input": str(job.source), "output": str(job.target), "variant": str(variant)}
        numbers = {"duration": duration, "bitrate": bitrate, "speed": speed}
        show_json({"command": command, **files, **numbers, **dataclasses.asdict(transfer), "caution": caution})
    else:
        rows: list[tuple[str, object]] = [
            *([("weights", caution)] if caution else []),
            ("duration", f"{duration:.2f} s ({transfer.samples} samples at {geometry.sampling_rate} Hz)"),
            ("codes", f"{transfer.frames} frames of {transfer.num_codebooks} codebooks"),
            ("bitrate", f"{bitrate / 1000:g} kbit/s"),
            ("speed", f"{speed:.1f} times real time ({transfer.seconds:.2f} s)"),
        ]
        if transfer.clipped:
            rows.append(("clipped", f"{transfer.clipped} samples beyond full scale; --subtype FLOAT keeps them"))
        show_rows(str(job.target), rows)
    if transfer.partial:
        note(f"interrupted; {job.target} holds the first {duration:.2f} s of {job.source}")
        raise typer.Exit(INTERRUPTED)
