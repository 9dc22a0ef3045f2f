"""How intelligible a checkpoint leaves speech, by number of codebooks, and how many entries it uses.

python scripts/judge_demo.py demo speech.wav more.flac

prints tables of STOI, ESTOI, ViSQOL and mel distance; it needs `pip install pystoi visqol-python numba`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soxr
import torch
import typer
from demo_audio import Loss
from pystoi import stoi
from torch import Tensor
from visqol import VisqolApi

from mimi_export.media.audio import read_audio
from mimi_export.model import upstream
from mimi_export.model.checkpoint import load_checkpoint

COUNTS = (1, 2, 4, 6, 8)
VISQOL_RATE = 16_000  # of its speech mode


def perplexity(codes: Tensor) -> float:
    """Entries that codes use, counted as 2 to the power of their entropy."""
    shares = torch.bincount(codes.flatten()).double() / codes.numel()
    return float(torch.exp2(-torch.special.xlogy(shares, shares).sum() / np.log(2)))


def judge(
    model: Annotated[str, typer.Argument(help="Checkpoint, as for `mimi-export export --model`.")],
    recordings: Annotated[list[Path], typer.Argument(help="Speech that the checkpoint was not trained on.")],
) -> None:
    """Print tables of what `model` makes of `recordings`."""
    checkpoint = load_checkpoint(model)
    geometry, loss = checkpoint.geometry, Loss()
    counts = [count for count in COUNTS if count <= geometry.num_quantizers]
    visqol = VisqolApi()
    visqol.create(mode="speech")
    typer.echo("| recording | codebooks | STOI | ESTOI | ViSQOL | mel distance |\n|---|---|---|---|---|---|")
    everything: list[Tensor] = []
    for path in recordings:
        sound = read_audio(path, geometry.sampling_rate)
        sound = sound[: len(sound) // geometry.frame_size * geometry.frame_size]
        codes = upstream.encode(checkpoint.model, torch.from_numpy(sound)[None, None], counts[-1])
        everything.append(codes[0])
        for count in counts:
            decoded = upstream.decode(checkpoint.model, codes[:, :count])[0]
            pair = sound, decoded[0].numpy()
            scores: list[Any] = [stoi(*pair, geometry.sampling_rate, extended=extended) for extended in (False, True)]
            narrow = [soxr.resample(one, geometry.sampling_rate, VISQOL_RATE).astype(np.float64) for one in pair]
            mos = visqol.measure_from_arrays(*narrow, VISQOL_RATE).moslqo
            mel = loss(decoded, torch.from_numpy(sound)[None])[1]
            typer.echo(f"| {path.stem} | {count} | {scores[0]:.3f} | {scores[1]:.3f} | {mos:.2f} | {mel:.3f} |")
    used = [perplexity(level) for level in torch.cat(everything, dim=1)]
    typer.echo(f"\nperplexity over {torch.cat(everything, dim=1).shape[1]} frames, codebook by codebook: "
               + ", ".join(f"{value:.0f}" for value in used))  # fmt: skip


if __name__ == "__main__":
    typer.run(judge)
