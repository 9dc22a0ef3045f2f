"""`encode`, `decode` and `roundtrip`: files, folders and pipes through the graphs of a variant, from the base install.

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
from mimi_export.cli.errors import INTERRUPTED, needs_extra
from mimi_export.cli.options import DEFAULT_VARIANT, Force, Json, Provider, Threads, Variant
from mimi_export.media.opening import PIPE

if TYPE_CHECKING:
    from mimi_export.cli.transfer import Job, Transfer
    from mimi_export.media.codes import CodesFile
    from mimi_export.media.pipes import CodesInlet
    from mimi_export.media.sources import RawFormat
    from mimi_export.runtime import Codec

NumCodebooks = Annotated[
    int | None, typer.Option(min=1, metavar="K", help="Use only the first K codebooks [default: all].")
]
Subtype = Annotated[
    str | None, typer.Option(metavar="NAME", help="Sample encoding of OUT, such as FLOAT or PCM_24 [default: usual].")
]
KeepPartial = Annotated[bool, typer.Option("--keep-partial", help="When interrupted, keep what is done until then.")]
AudioIn = Annotated[
    Path, typer.Argument(metavar="IN", help="Audio that libsndfile or ffmpeg reads, at any rate; - is standard input.")
]
CodesIn = Annotated[Path, typer.Argument(metavar="IN", help="Codes: .safetensors or .npz; - is standard input.")]
AudioOut = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="Audio; the extension names the format (.wav, .flac …); - is standard output."),
]
CodesOut = Annotated[Path, typer.Argument(metavar="OUT", help="Codes: .safetensors or .npz; - is standard output.")]
RawRate = Annotated[
    int | None, typer.Option(metavar="HZ", help="Standard input is raw samples at this rate [default: WAV].")
]
OutRate = Annotated[int | None, typer.Option(metavar="HZ", help="Sampling rate of OUT [default: the model's].")]
Channels = Annotated[
    str | None,
    typer.Option(
        metavar="N|separate",
        help="Channels of raw input; `separate` codes each channel by itself, not their mean [N-separate: both].",
    ),
]
RawForm = Annotated[str, typer.Option("--format", metavar="NAME", help="Raw samples are s16le or f32le.")]
AudioForm = Annotated[
    str, typer.Option("--format", metavar="NAME", help="What standard output gets: wav, s16le or f32le.")
]
CodesForm = Annotated[
    str, typer.Option(metavar="NAME", help="Codes in a pipe: jsonl, u16 (frame after frame), safetensors.")
]


def encode(
    source: AudioIn,
    target: CodesOut,
    variant: Variant = DEFAULT_VARIANT,
    num_codebooks: NumCodebooks = None,
    rate: RawRate = None,
    channels: Channels = None,
    form: RawForm = "s16le",
    codes: CodesForm = "jsonl",
    threads: Threads = 1,
    provider: Provider = "cpu",
    keep_partial: KeepPartial = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Encode audio to codes, frame by frame, in memory that does not grow with the input.

    The audio is mixed to mono and resampled. OUT holds the tensor `codes`, [channels, K, frames]. Of a folder all audio
    below it is encoded to a folder; what is done and unchanged is left alone.

    \b
      mimi-export encode speech.wav speech.safetensors
      mimi-export encode recordings/ codes/ --variant artifacts/ring-8cb
      arecord -f S16_LE -r 16000 | mimi-export encode - - | mimi-export decode - - | aplay
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.cli import folders, transfer
    from mimi_export.media.codes import CodesWriter

    raw, separate = _raw_input(source, rate, channels, form)
    job = transfer.Job(
        source, target, num_codebooks, separate, raw, form=codes, force=force, keep_partial=keep_partial
    )  # fmt: skip
    if source.is_dir():
        folders.show("encode", job, variant, threads, provider, json)
        return
    if target != PIPE:
        CodesWriter(target)  # an extension that it does not know is refused before anything loads
    _run("encode", job, variant, threads, provider, transfer.encode, json)


def decode(
    source: CodesIn,
    target: AudioOut,
    variant: Variant = DEFAULT_VARIANT,
    identity: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="IN is a folder that `tokenize` wrote; decode this row.")
    ] = None,
    num_codebooks: NumCodebooks = None,
    rate: OutRate = None,
    subtype: Subtype = None,
    form: AudioForm = "wav",
    codes: CodesForm = "jsonl",
    threads: Threads = 1,
    provider: Provider = "cpu",
    keep_partial: KeepPartial = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Decode codes to audio of the length that was encoded; a folder of codes to a folder of .wav files.

    \b
      mimi-export decode speech.safetensors speech-decoded.wav
      mimi-export decode music.npz music-4.flac --num-codebooks 4 --rate 48000
      mimi-export decode - - --codes u16 --format s16le
      mimi-export decode corpus/ row.wav --id recordings/a.flac
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.cli import folders, transfer
    from mimi_export.media.audio import AudioWriter

    job = transfer.Job(
        source, target, num_codebooks, subtype=subtype, rate=rate, form=form, force=force, keep_partial=keep_partial
    )  # fmt: skip
    if source.is_dir() and identity is None:
        folders.show("decode", job, variant, threads, provider, json)
        return
    if target != PIPE:
        AudioWriter(target, subtype=subtype)
    file: CodesFile | CodesInlet | None
    if identity is None:
        file = None if source == PIPE else transfer.open_codes(source)
    else:
        with needs_extra("corpus", "decode --id"):
            from mimi_export.corpus.exports import read_row
        file = read_row(source, identity)

    def work(codec: Codec, job: Job) -> Transfer:
        found = file or transfer.open_codes(source, codes, transfer.chosen_codebooks(codec, num_codebooks))
        made_by, here = found.metadata.model, codec.artifact.manifest.source.model
        if made_by not in (None, here):
            note(f"{source} was made with the model {made_by}, {variant} holds {here}; if they differ you hear noise")
        return transfer.decode(codec, found, job)

    _run("decode", job, variant, threads, provider, work, json)


def features(
    source: AudioIn,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Latents: .npy or .safetensors; - is standard output.")],
    variant: Annotated[Path, typer.Option(metavar="DIR", help="Variant exported with --head latents or both.")],
    rate: RawRate = None,
    channels: Channels = None,
    form: RawForm = "s16le",
    latents: Annotated[str, typer.Option(metavar="NAME", help="Latents in a pipe: jsonl or f32le.")] = "jsonl",
    frame_rate: Annotated[
        float | None, typer.Option(metavar="HZ", help="Latents a second, by straight lines [default: 12.5].")
    ] = None,
    threads: Threads = 1,
    provider: Provider = "cpu",
    keep_partial: KeepPartial = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Encode audio to the latents before the quantiser, float32 [channels, frames, width], 12.5 frames a second.

    \b
      mimi-export features speech.wav speech.npy --variant artifacts/streaming-latents
      mimi-export features speech.wav speech.npy --variant artifacts/streaming-latents --frame-rate 50
      arecord -f S16_LE -r 16000 | mimi-export features - - --variant artifacts/streaming-latents
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.cli import transfer
    from mimi_export.media.latents import LatentsWriter

    raw, separate = _raw_input(source, rate, channels, form)
    job = transfer.Job(
        source, target, separate=separate, raw=raw, form=latents, frame_rate=frame_rate, force=force,
        keep_partial=keep_partial,
    )  # fmt: skip
    if target != PIPE:
        LatentsWriter(target)
    _run("features", job, variant, threads, provider, transfer.features, json)


def roundtrip(
    source: AudioIn,
    target: AudioOut,
    variant: Variant = DEFAULT_VARIANT,
    num_codebooks: NumCodebooks = None,
    rate: RawRate = None,
    channels: Channels = None,
    form: RawForm = "s16le",
    subtype: Subtype = None,
    threads: Threads = 1,
    provider: Provider = "cpu",
    keep_partial: KeepPartial = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Encode and decode audio in one go, to hear what a variant does to it; raw input gives raw output of its rate.

    \b
      mimi-export roundtrip speech.wav speech-8.wav
      mimi-export roundtrip speech.wav speech-4.wav --num-codebooks 4
      arecord -f S16_LE -r 16000 -t raw | mimi-export roundtrip - - --rate 16000 | aplay -f S16_LE -r 16000
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.cli import transfer
    from mimi_export.media.audio import AudioWriter

    raw, separate = _raw_input(source, rate, channels, form)
    job = transfer.Job(
        source, target, num_codebooks, separate, raw, subtype, rate, form if raw else "wav", force, keep_partial
    )  # fmt: skip
    if target != PIPE:
        AudioWriter(target, subtype=subtype)
    _run("roundtrip", job, variant, threads, provider, transfer.roundtrip, json)


def _raw_input(source: Path, rate: int | None, channels: str | None, form: str) -> tuple[RawFormat | None, bool]:
    """What raw standard input is, and whether channels are kept apart."""
    from mimi_export.media.sources import RawFormat

    number, _, separate = (channels or "").rpartition("-")
    if separate != "separate":
        number, separate = separate, ""
    if number and not number.isdecimal():
        raise typer.BadParameter(
            f"{channels!r} is not a number, `separate` or such as `2-separate`", param_hint="--channels"
        )
    if rate is None:
        if number or form != "s16le":
            raise typer.BadParameter("raw samples need their rate, too", param_hint="--rate")
        return None, bool(separate)
    if source != PIPE:
        raise typer.BadParameter(
            f"{source} says its rate itself; --rate is for raw samples from -", param_hint="--rate"
        )
    return RawFormat(rate, int(number or 1), form), bool(separate)


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

    piped = job.target == PIPE
    if piped and json:
        raise typer.BadParameter("standard output has the result already", param_hint="--json")
    codec = load(variant, threads, (provider,))
    with Steps() as steps:
        steps.step(f"{command}: loading {variant}")
        transfer = work(codec, dataclasses.replace(job, tick=partial(steps.advance, f"{command}: {job.source}")))
    geometry = codec.geometry
    duration = transfer.samples / geometry.sampling_rate
    bitrate = geometry.bitrate(transfer.num_codebooks)
    what = f" of {transfer.num_codebooks} codebooks" if transfer.num_codebooks else ""
    speed = duration / max(transfer.seconds, 1e-9)
    caution = codec.artifact.manifest.source.caution
    if piped:
        if caution:
            note(caution)
        note(f"{duration:.2f} s, {transfer.frames} frames{what}, {transfer.clipped} samples clipped")
    elif json:
        files = {"input": str(job.source), "output": str(job.target), "variant": str(variant)}
        numbers = {"duration": duration, "bitrate": bitrate, "speed": speed}
        show_json({"command": command, **files, **numbers, **dataclasses.asdict(transfer), "caution": caution})
    else:
        clipped = f"{transfer.clipped} samples beyond full scale; --subtype FLOAT keeps them"
        rows = [
            ("weights", caution),
            ("duration", f"{duration:.2f} s ({transfer.samples} samples at {geometry.sampling_rate} Hz)"),
            ("codes" if what else "latents", f"{transfer.frames} frames{what}"),
            ("bitrate", f"{bitrate / 1000:g} kbit/s" if what else None),
            ("speed", f"{speed:.1f} times real time ({transfer.seconds:.2f} s)"),
            ("clipped", clipped if transfer.clipped else None),
        ]
        show_rows(str(job.target), rows)
    if transfer.partial:
        note(f"interrupted; {job.target} holds the first {duration:.2f} s of {job.source}")
        raise typer.Exit(INTERRUPTED)
