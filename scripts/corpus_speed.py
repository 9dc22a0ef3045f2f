"""How fast recordings become codes on one core, side by side: the graph alone, `tokenize`, and other programs.

    python scripts/corpus_speed.py artifacts/ring-8cb-8f recordings/ --model synthetic --rounds 3
    python scripts/corpus_speed.py artifacts/ring-8cb-8f recordings/ --peers-python .venv-peers/bin/python

Every contender does all recordings in each round, in turns, in one thread; what is counted is the time of the
processor, which other programs on the machine change little. `transformers` in batches reads and resamples as we do,
sorts by length, pads to the longest of a batch and cuts the padding's codes off. `moshi` and `rustymimi` come from an
environment of their own (`make bench-peers`) and find the sound read and resampled, see `corpus_peer.py`. The hours
that the last lines need on paper are of the measured parts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mimi_export.bench.graphs import GraphSubject
from mimi_export.corpus.encoder import CorpusEncoder, Settings
from mimi_export.corpus.inputs import Utterance, find
from mimi_export.corpus.rows import matrix
from mimi_export.media.audio import read_audio
from mimi_export.model.checkpoint import load_checkpoint
from mimi_export.model.kyutai import save_kyutai
from mimi_export.runtime import load
from mimi_export.runtime.clips import clips_at_once

AGE_SECONDS = 20.0  # a full window
CORPUS_HOURS = 10_000
BATCH = 16  # clips in one of other programs
PEERS = ("moshi", "rustymimi")
ONCE = "transformers one by one"  # in the first round alone: what all codes are compared with
Codes = dict[str, Any]
Round = Callable[[], tuple[float, Codes]]  # seconds of the processor, and what came of them


def timed(run: Callable[[], Codes]) -> Round:
    """A round in this process."""

    def measured() -> tuple[float, Codes]:
        began = time.process_time()
        codes = run()
        return time.process_time() - began, codes

    return measured


@contextmanager
def peer(python: str, name: str, weights: Path, clips: Path, count: int, rows: int) -> Iterator[Round]:
    """Rounds of another program in a process of its own."""
    script, root = Path(__file__).with_name("corpus_peer.py"), Path(__file__).parents[1]
    command = [python, str(script), name, str(weights), str(clips), "--codebooks", str(count), "--rows", str(rows)]
    one = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "RAYON")}
    environment = {**os.environ, **one, "NO_TORCH_COMPILE": "1", "PYTHONPATH": str(root)}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, **pipes) as process:
        write, read = process.stdin, process.stdout
        if write is None or read is None or read.readline() != "ready\n":
            raise SystemExit(f"error: {name} does not start; make bench-peers installs it")

        def run() -> tuple[float, Codes]:
            write.write("go\n")
            write.flush()
            spent = float(read.readline())
            with np.load(clips / f"{name}.codes.npz") as codes:
                return spent, dict(codes)

        yield run
        write.write("\n")


def tokenize(variant: str, rows: int, found: list[Utterance], parts: dict[str, float]) -> Callable[[], Codes]:
    """What a worker of `mimi-export tokenize` does, from file to row."""
    encoder = CorpusEncoder(Settings(variant, rows))
    table = pa.Table.from_pylist([{**asdict(one), "index": index} for index, one in enumerate(found)])

    def run() -> Codes:
        done = encoder(table)
        for name in ("reading", "resampling", "encoding"):
            parts[name] = sum(done[name].to_pylist())
        return {name: matrix(cell) for name, cell in zip(done["id"].to_pylist(), done["codes"], strict=True)}

    return run


def transformers(model: Any, count: int, rows: int, found: list[Utterance]) -> Callable[[], Codes]:
    """Batches of the same length, nearly."""

    def batches() -> Iterator[list[tuple[str, Any]]]:
        clips = sorted(((one.id, read_audio(one.path)) for one in found), key=lambda clip: len(clip[1]))
        for start in range(0, len(clips), rows):
            yield clips[start : start + rows]

    @torch.inference_mode()
    def run() -> Codes:
        codes: Codes = {}
        for batch in batches():
            frames = max(-(-len(audio) // 1920) for _, audio in batch)  # whole ones, or the last frame differs
            padded = np.zeros((len(batch), 1, 1920 * frames), np.float32)
            for row, (_, audio) in enumerate(batch):
                padded[row, 0, : len(audio)] = audio
            given = model.encode(torch.from_numpy(padded), num_quantizers=count).audio_codes.numpy()
            for (name, audio), row in zip(batch, given, strict=True):
                codes[name] = row[:, : -(-len(audio) // 1920)]
        return codes

    return run


def graph_alone(variant: str, rows: int, frames: int) -> Callable[[], Codes]:
    """As many calls of the bound graph as all frames take, as the benchmark makes them."""
    subject = GraphSubject(load(variant), "encoder")
    call = subject.calls(("bare",), AGE_SECONDS, rows)["bare"]

    def run() -> Codes:
        for _ in range(frames // (rows * subject.frames_per_call)):
            call()
        return {}

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("variant")
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--model", default="synthetic")
    parser.add_argument("--rows", type=int, help="of our variant in one call [default: as `tokenize` chooses]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers-python", help="of an environment with moshi and rustymimi")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, parts = list(find(options.inputs)), dict[str, float]()
    sounds = {one.id: read_audio(one.path) for one in found}
    codec, seconds = load(options.variant), sum(map(len, sounds.values())) / 24000
    shape = codec.artifact.manifest.shape
    count, rows = shape.num_codebooks, clips_at_once(shape, options.rows)
    frames = round(seconds * codec.geometry.frame_rate)
    checkpoint = load_checkpoint(options.model)
    contenders = {
        "graph alone": timed(graph_alone(options.variant, rows, frames)),
        "tokenize": timed(tokenize(options.variant, rows, found, parts)),
        "transformers in batches": timed(transformers(checkpoint.model, count, BATCH, found)),
        ONCE: timed(transformers(checkpoint.model, count, 1, found)),
    }
    spent: dict[str, list[float]] = {}
    codes: dict[str, Codes] = {}
    with ExitStack() as resources:
        if options.peers_python:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory()))
            weights, numbers = folder / "kyutai.safetensors", {name: str(index) for index, name in enumerate(sounds)}
            save_kyutai(checkpoint.model, weights)
            for name, sound in sounds.items():
                np.save(folder / f"{numbers[name]}.npy", sound)
            for name in PEERS:
                running = peer(options.peers_python, name, weights, folder, count, BATCH)
                contenders[name] = resources.enter_context(running)
        sounds.clear()
        for number in range(options.rounds):
            for name, run in contenders.items():
                if number and name == ONCE:
                    continue
                seconds_spent, codes[name] = run()
                if name in PEERS:
                    codes[name] = {one: codes[name][number] for one, number in numbers.items()}
                spent.setdefault(name, []).append(seconds_spent)
                print(f"round {number + 1}: {name}, {seconds_spent:.0f} s", file=sys.stderr, flush=True)
    print(f"{len(found)} recordings, {seconds / 3600:.2f} h, {rows} rows, {options.rounds} rounds")
    speeds = {name: seconds / median(times) for name, times in spent.items()}
    wanted = codes[ONCE]
    for name, speed in speeds.items():
        ratio = speed / speeds["graph alone"]
        equal = [(codes[name][key] == wanted[key]).ravel() for key in codes[name]]
        same = f", {int(np.concatenate(equal).sum())} of {sum(map(len, equal))} codes equal" if equal else ""
        print(f"{name:24} {speed:6.2f} times real time on a core, {100 * ratio:5.1f} % of the graph alone{same}")
    print("tokenize, seconds: " + ", ".join(f"{name} {value:.2f}" for name, value in parts.items()))
    hours = CORPUS_HOURS / speeds["tokenize"]
    print(f"{CORPUS_HOURS} h of sound: {hours:.0f} h of one core, {hours / 64:.1f} h of 64 cores")


if __name__ == "__main__":
    main()
