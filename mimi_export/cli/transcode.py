"""`encode`, `decode` and `roundtrip`: files through the graphs of a variant, from the base install.

With `--json` each prints `command`, `input`, `output`, `variant`, `duration` (s), `samples`, `frames`,
`num_codebooks`, `bitrate` (bit/s), `seconds` (work), `speed` (seconds of audio in a second) and `clipped` (samples).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimi_export.cli.console import Steps, note, show_json, show_rows
from mimi_export.cli.options import DEFAULT_VARIANT, Force, Json, Threads, Variant

if TYPE_CHECKING:
    from mimi_export.cli.transfer import Tick, Transfer
    from mimi_export.runtime import Codec

NumCodebooks = Annotated[
    int | None,
    typer.Option("--num-codebooks", min=1, metavar="K", help="Use only the first K codebooks [default: all]."),
]
Subtype = Annotated[
    str | None,
    typer.Option("--subtype", metavar="NAME", help="Sample encoding of OUT, such as FLOAT or PCM_24 [default: usual]."),
]
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
    force: Force = False,
    json: Json = False,
) -> None:
    """Encode an audio file to codes, frame by frame, in memory that does not grow with the file.

    The audio is mixed to mono and resampled. OUT holds the tensor `codes`, [1, K, frames].

    \b
      mimi-export encode speech.wav speech.safetensors
      mimi-export encode music.mp3 music.npz --variant artifacts/streaming-16cb
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.cli.transfer import encode_file

    def work(codec: Codec, tick: Tick) -> Transfer:
        return encode_file(codec, source, target, num_codebooks=num_codebooks, force=force, tick=tick)

    _run("encode", source, target, variant, threads, json, work)


def decode(
    source: CodesIn,
    target: AudioOut,
    variant: Variant = DEFAULT_VARIANT,
    num_codebooks: NumCodebooks = None,
    subtype: Subtype = None,
    threads: Threads = 1,
    force: Force = False,
    json: Json = False,
) -> None:
    """Decode codes to an audio file of the length that was encoded.

    \b
      mimi-export decode speech.safetensors speech-decoded.wav
      mimi-export decode music.npz music-4.flac --num-codebooks 4
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.cli.transfer import decode_file
    from mimi_export.media.codes import read_codes

    def work(codec: Codec, tick: Tick) -> Transfer:
        made_by = read_codes(source).metadata.model
        here = codec.artifact.manifest.source.model
        if made_by is not None and made_by != here:
            note(f"{source} was made with the model {made_by}, {variant} holds {here}; if they differ you hear noise")
        return decode_file(codec, source, target, num_codebooks=num_codebooks, force=force, subtype=subtype, tick=tick)

    _run("decode", source, target, variant, threads, json, work)


def roundtrip(
    source: AudioIn,
    target: AudioOut,
    variant: Variant = DEFAULT_VARIANT,
    num_codebooks: NumCodebooks = None,
    subtype: Subtype = None,
    threads: Threads = 1,
    force: Force = False,
    json: Json = False,
) -> None:
    """Encode and decode an audio file in one go, to hear what a variant does to it.

    \b
      mimi-export roundtrip speech.wav speech-8.wav
      mimi-export roundtrip speech.wav speech-4.wav --num-codebooks 4
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.cli.transfer import roundtrip_file

    def work(codec: Codec, tick: Tick) -> Transfer:
        return roundtrip_file(
            codec, source, target, num_codebooks=num_codebooks, force=force, subtype=subtype, tick=tick
        )

    _run("roundtrip", source, target, variant, threads, json, work)


def _run(
    command: str,
    source: Path,
    target: Path,
    variant: Path,
    threads: int,
    json: bool,
    work: Callable[[Codec, Tick], Transfer],
) -> None:
    """Open the variant, do the work with progress, show what came of it."""
    from mimi_export.runtime import load

    codec = load(variant, threads)
    with Steps() as steps:
        steps.step(f"{command}: loading {variant}")
        transfer = work(codec, partial(steps.advance, f"{command}: {source}"))
    geometry = codec.geometry
    duration = transfer.samples / geometry.sampling_rate
    bitrate = geometry.bitrate(transfer.num_codebooks)
    speed = duration / max(transfer.seconds, 1e-9)
    if json:
        show_json({
            "command": command,
            "input": str(source),
            "output": str(target),
            "variant": str(variant),
            "duration": duration,
            "samples": transfer.samples,
            "frames": transfer.frames,
            "num_codebooks": transfer.num_codebooks,
            "bitrate": bitrate,
            "seconds": transfer.seconds,
            "speed": speed,
            "clipped": transfer.clipped,
        })  # fmt: skip
        return
    rows: list[tuple[str, object]] = [
        ("duration", f"{duration:.2f} s ({transfer.samples} samples at {geometry.sampling_rate} Hz)"),
        ("codes", f"{transfer.frames} frames of {transfer.num_codebooks} codebooks"),
        ("bitrate", f"{bitrate / 1000:g} kbit/s"),
        ("speed", f"{speed:.1f} times real time ({transfer.seconds:.2f} s)"),
    ]
    if transfer.clipped:
        rows.append(("clipped", f"{transfer.clipped} samples beyond full scale; --subtype FLOAT keeps them"))
    show_rows(str(target), rows)
