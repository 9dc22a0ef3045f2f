"""Another program's encoder over a folder of clips, for `corpus_speed.py`; runs in the environment of the peers.

    python scripts/corpus_peer.py moshi|rustymimi kyutai.safetensors clips/ --codebooks 8 --rows 16

`clips/` holds `.npy` files of 24 kHz float32 samples. For each line on stdin all of them are encoded; the reply is a
line with the seconds of the processor, and `NAME.codes.npz` beside the clips. Neither reads or resamples, which
`tokenize` has to do within its time. Clips go whole, as both programs take them for files: sorted by length, in batches
padded to the longest one where `moshi` takes more than one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mimi_export.bench.peers import FRAME_SIZE, RUSTYMIMI_TOKENS


def batches(clips: dict[str, np.ndarray], rows: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names and sound `[rows, 1, samples]` of clips of nearly one length, in whole frames."""
    names = sorted(clips, key=lambda name: len(clips[name]))
    for start in range(0, len(names), rows):
        batch = names[start : start + rows]
        frames = max(-(-len(clips[name]) // FRAME_SIZE) for name in batch)
        padded = np.zeros((len(batch), 1, FRAME_SIZE * frames), np.float32)
        for row, name in enumerate(batch):
            padded[row, 0, : len(clips[name])] = clips[name]
        yield batch, padded


def main() -> None:
    """Load, then answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", choices=("moshi", "rustymimi"))
    parser.add_argument("weights", type=Path)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--codebooks", type=int, default=8)
    parser.add_argument("--rows", type=int, default=16)
    options = parser.parse_args()
    rows = options.rows
    if options.name == "moshi":
        import torch
        from moshi.models import loaders

        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        model = loaders.get_mimi(options.weights, num_codebooks=options.codebooks)

        def encode(sound: np.ndarray) -> np.ndarray:
            return np.asarray(model.encode(torch.from_numpy(sound)))
    else:
        import rustymimi

        sizes = {"num_codebooks": options.codebooks, "max_seq_len": RUSTYMIMI_TOKENS}
        tokenizer = rustymimi.Tokenizer(str(options.weights), **sizes)
        encode, rows = tokenizer.encode, 1
    clips = {path.stem: np.load(path) for path in sorted(options.clips.glob("*.npy"))}
    print("ready", flush=True)
    while input():
        began, codes = time.process_time(), {}
        for names, sound in batches(clips, rows):
            for name, row in zip(names, encode(sound), strict=True):
                codes[name] = row[:, : -(-len(clips[name]) // FRAME_SIZE)]
        spent = time.process_time() - began
        np.savez(options.clips / f"{options.name}.codes.npz", **codes)
        print(spent, flush=True)


if __name__ == "__main__":
    main()
