"""`mic`: microphone to codes to loudspeaker, to hear a variant live. Needs the extra `live`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mimi_export.cli.console import Steps, note, show_rows
from mimi_export.cli.errors import needs_extra
from mimi_export.cli.options import DEFAULT_VARIANT, Provider, Threads, Variant
from mimi_export.cli.transcode import NumCodebooks
from mimi_export.errors import AudioError, MissingPackageError


def mic(
    variant: Variant = DEFAULT_VARIANT,
    num_codebooks: NumCodebooks = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Part of a device's name, or IN,OUT [default: usual].")
    ] = None,
    rate: Annotated[
        int | None, typer.Option(metavar="HZ", help="Sampling rate of the device [default: the model's].")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Stop then [default: Ctrl-C].")] = None,
    threads: Threads = 1,
    provider: Provider = "cpu",
) -> None:
    """Hear yourself through the codec: microphone to codes to loudspeaker, with levels and latency. Use headphones.

    \b
      mimi-export mic
      mimi-export mic --num-codebooks 4 --rate 48000
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.cli.loop import Loop
    from mimi_export.cli.transfer import chosen_codebooks
    from mimi_export.runtime import load

    with needs_extra("live", "mic"):
        try:
            import sounddevice
        except OSError as error:  # the package is there, the library under it is not
            raise MissingPackageError(
                f"mic needs PortAudio: {error}; for example: apt install libportaudio2"
            ) from error
    codec = load(variant, threads, (provider,))
    loop = Loop(codec, chosen_codebooks(codec, num_codebooks), rate or codec.geometry.sampling_rate)
    names: Any = device if device is None or "," not in device else tuple(device.split(",", 1))
    try:
        with (
            sounddevice.Stream(loop.rate, 0, names, 1, "float32", "low", callback=loop.exchange) as stream,
            Steps() as steps,
        ):
            try:
                loop.run(seconds, sum(stream.latency), steps)
            except KeyboardInterrupt:
                note("stopped")
    except (sounddevice.PortAudioError, ValueError) as error:
        raise AudioError(
            f"no sound device can be used: {error}; `python -m sounddevice` lists what there is"
        ) from error
    heard, gaps = f"{loop.played / loop.rate:.1f} s", f"{loop.gaps} times nothing to play"
    show_rows("mic", [("duration", heard), ("latency", loop.latency_text()), ("gaps", gaps)])
