"""How fast recordings become codes on one core, side by side: the graph alone, `tokenize`, and transformers.

    python scripts/corpus_speed.py artifacts/ring-8cb recordings/ --model synthetic --rounds 3

Every contender does all recordings in each round, in turns, in one thread of this process; what is counted is the time
of the processor, which other programs on the machine change little. `transformers` in batches reads and resamples
as we do, sorts by length, pads to the longest of a batch and cuts the padding's codes off. The hours that the last
lines need on paper are of the measured parts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mimi_export.bench.graphs import GraphSubject
from mimi_export.corpus.encoder import CorpusEncoder, Settings
from mimi_export.corpus.inputs import find
from mimi_export.corpus.rows import matrix
from mimi_export.corpus.utterance import Utterance
from mimi_export.media.audio import read_audio
from mimi_export.model.checkpoint import load_checkpoint
from mimi_export.runtime import load

AGE_SECONDS = 20.0  # a full window
CORPUS_HOURS = 10_000
ONCE = "transformers one by one"  # in the first round alone: what all codes are compared with
Codes = dict[str, Any]


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
    call = GraphSubject(load(variant), "encoder").calls(("bare",), AGE_SECONDS, rows)["bare"]

    def run() -> Codes:
        for _ in range(frames // rows):
            call()
        return {}

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("variant")
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--model", default="synthetic")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, parts = list(find(options.inputs)), dict[str, float]()
    codec, seconds = load(options.variant), sum(len(read_audio(one.path)) for one in found) / 24000
    count = codec.artifact.manifest.shape.num_codebooks
    frames = round(seconds * codec.geometry.frame_rate)
    checkpoint = load_checkpoint(options.model)
    contenders = {
        "graph alone": graph_alone(options.variant, options.rows, frames),
        "tokenize": tokenize(options.variant, options.rows, found, parts),
        "transformers in batches": transformers(checkpoint.model, count, options.rows, found),
        ONCE: transformers(checkpoint.model, count, 1, found),
    }
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    codes: dict[str, Codes] = {}
    for number in range(options.rounds):
        for name, run in contenders.items():
            if number and name == ONCE:
                continue
            began = time.process_time()
            codes[name] = run()
            spent[name].append(time.process_time() - began)
    print(f"{len(found)} recordings, {seconds / 3600:.2f} h, {options.rows} rows, {options.rounds} rounds")
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
