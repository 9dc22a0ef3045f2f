"""How long sound takes through `encode - - | decode - -`: `python scripts/live_latency.py VARIANT`.

A block of 20 ms goes in every 20 ms. For each frame it is noted when its last sample went in, when its codes came
out of the encoder and when its sound came out of the decoder; and what memory both processes have then. In the end the
codes and the sound are compared with those of a stream in this process: nothing is lost or changes places.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Annotated

import numpy as np
import psutil
import typer
from numpy.typing import NDArray

from mimi_export.media.signals import speech_like
from mimi_export.runtime import load

RATE, FRAME, BLOCK = 24_000, 1_920, 480
SETTLED = 200  # frames after which the attention's window is full and processes have what they need


def main(
    variant: Annotated[Path, typer.Argument(help="Variant directory.")],
    seconds: Annotated[int, typer.Option(help="Of sound.")] = 60,
) -> None:
    """Print medians and 99th percentiles in milliseconds, equal frames and memory."""
    codec = load(variant)
    program = [sys.executable, "-m", "mimi_export"]
    encoder = subprocess.Popen(
        [*program, "encode", "-", "-", "--rate", str(RATE), "--codes", "u16", "--variant", str(variant)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    decoder = subprocess.Popen(
        [*program, "decode", "-", "-", "--codes", "u16", "--format", "s16le", "--variant", str(variant)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    codes_at: list[float] = []
    sound_at: list[float] = []

    codes, heard = bytearray(), bytearray()

    def follow(
        source: IO[bytes] | None, size: int, times: list[float], kept: bytearray, target: IO[bytes] | None
    ) -> None:
        while source and len(piece := source.read(size)) == size:
            times.append(time.perf_counter())
            kept += piece
            if target:
                target.write(piece)
                target.flush()
        if target:
            target.close()

    codebooks = codec.artifact.manifest.shape.num_codebooks
    followers = [
        threading.Thread(target=follow, args=(encoder.stdout, 2 * codebooks, codes_at, codes, decoder.stdin)),
        threading.Thread(target=follow, args=(decoder.stdout, 2 * FRAME, sound_at, heard, None)),
    ]
    for follower in followers:
        follower.start()
    sound = (speech_like(seconds, seed=1) * 32767).astype("<i2")
    sound = sound[: len(sound) // FRAME * FRAME]

    def speak(samples: NDArray[np.int16]) -> None:
        if encoder.stdin:
            encoder.stdin.write(samples.tobytes())
            encoder.stdin.flush()

    speak(sound[:FRAME])
    while not sound_at and encoder.poll() is None and decoder.poll() is None:
        time.sleep(0.01)  # until both have loaded their graphs; this frame is not measured
    begin, pushed, memory = time.perf_counter(), [], []
    for number in range(FRAME, len(sound), BLOCK):
        time.sleep(max(0.0, begin + (number - FRAME) / RATE - time.perf_counter()))
        speak(sound[number : number + BLOCK])
        if (number + BLOCK) % FRAME == 0:
            pushed.append(time.perf_counter())
            memory.append(sum(psutil.Process(one.pid).memory_info().rss for one in (encoder, decoder)) / 2**20)
    if encoder.stdin:
        encoder.stdin.close()
    for follower in followers:
        follower.join()
    for name, times in (("codes", codes_at), ("sound", sound_at)):
        late = 1000 * (np.array(times[1 : len(pushed) + 1]) - np.array(pushed[: len(times) - 1]))
        typer.echo(
            f"{name}: median {np.median(late):.1f} ms, 99 % within {np.percentile(late, 99):.1f} ms "
            f"after a frame's last sample; {len(times)} of {len(pushed) + 1} frames"
        )
    encode, decode = codec.encoder.stream(), codec.decoder.stream()
    frames = [encode.push(frame / np.float32(32768)) for frame in sound.reshape(-1, FRAME)]
    wanted, played = np.concatenate(frames, axis=2), np.concatenate([decode.push(frame) for frame in frames], axis=1)
    found = np.frombuffer(codes, "<u2").reshape(-1, codebooks).T
    steps = np.abs(np.frombuffer(heard, "<i2") - 32768.0 * played[0]).max()
    typer.echo(f"codes are those of a stream here: {np.array_equal(found, wanted[0])}; sound within {steps:.1f} steps")
    early = memory[min(SETTLED, len(memory) - 1)]
    typer.echo(f"memory of both: {early:.0f} MiB after {SETTLED} frames, {memory[-1]:.0f} at the end")


if __name__ == "__main__":
    typer.run(main)
