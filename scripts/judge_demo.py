"""How intelligible a checkpoint leaves speech, by number of codebooks, and how many entries it uses.

python scripts/judge_demo.py demo speech.wav more.flac

prints tables of STOI, a listener's measures (`mimi_export.parity.listen`, the extra `listen`) and mel distance. With
`--calibrate` it prints what those measures are of known distortions of what the checkpoint makes of the speech.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from demo_audio import Loss
from torch import Tensor

from mimi_export.media.audio import read_audio
from mimi_export.model import upstream
from mimi_export.model.checkpoint import Checkpoint, load_checkpoint
from mimi_export.parity.listen import compare, stoi
from mimi_export.parity.metrics import Audio

COUNTS = (1, 2, 4, 6, 8)
NOISE_DB = (50, 40, 30, 20, 10)
CUTOFFS = (4000, 2000)  # Hz


def perplexity(codes: Tensor) -> float:
    """Entries that codes use, counted as 2 to the power of their entropy."""
    shares = torch.bincount(codes.flatten()).double() / codes.numel()
    return float(torch.exp2(-torch.special.xlogy(shares, shares).sum() / np.log(2)))


def low_pass(sound: Audio, cutoff: float, rate: int) -> Audio:
    """Nothing above a frequency."""
    spectrum = np.fft.rfft(sound)
    spectrum[np.fft.rfftfreq(len(sound), 1 / rate) > cutoff] = 0
    return np.fft.irfft(spectrum, len(sound)).astype(np.float32)


def distortions(checkpoint: Checkpoint, codes: Tensor, decoded: Audio) -> Iterator[tuple[str, Audio]]:
    """What a listener is known to notice, or not, of a sound that was decoded from `codes` `[1, K, T]`."""
    random = np.random.default_rng(0)
    noise = random.standard_normal(len(decoded)).astype(np.float32) * decoded.std()
    for level in NOISE_DB:
        yield f"noise {level} dB below", decoded + noise * np.float32(10 ** (-level / 20))
    for cutoff in CUTOFFS:
        yield f"nothing above {cutoff} Hz", low_pass(decoded, cutoff, checkpoint.geometry.sampling_rate)
    for level in (codes.shape[1] - 1, codes.shape[1] // 2, 1, 0):
        flipped = codes.clone()
        flipped[:, level] = torch.from_numpy(random.integers(0, checkpoint.geometry.codebook_size, codes.shape[2]))
        yield f"codebook {level} random", upstream.decode(checkpoint.model, flipped)[0, 0].numpy()


def judge(
    model: Annotated[str, typer.Argument(help="Checkpoint, as for `mimi-export export --model`.")],
    recordings: Annotated[list[Path], typer.Argument(help="Speech that the checkpoint was not trained on.")],
    calibrate: Annotated[bool, typer.Option(help="Measure known distortions instead.")] = False,
) -> None:
    """Print tables of what `model` makes of `recordings`."""
    checkpoint = load_checkpoint(model)
    geometry, loss = checkpoint.geometry, Loss()
    counts = [count for count in COUNTS if count <= geometry.num_quantizers]
    rate = geometry.sampling_rate
    if not calibrate:
        typer.echo("| recording | codebooks | STOI | ESTOI | ViSQOL | Zimtohrli | mel distance |")
        typer.echo("|---|---|---|---|---|---|---|")
    everything: list[Tensor] = []
    for path in recordings:
        sound = read_audio(path, geometry.sampling_rate)
        sound = sound[: len(sound) // geometry.frame_size * geometry.frame_size]
        codes = upstream.encode(checkpoint.model, torch.from_numpy(sound)[None, None], counts[-1])
        if calibrate:
            whole = upstream.decode(checkpoint.model, codes)[0, 0].numpy()
            for name, changed in distortions(checkpoint, codes, whole):
                heard = compare(name, whole, changed, rate)
                numbers = f"{heard.estoi:.3f}  {heard.visqol:.2f}  {heard.zimtohrli:.2f}"
                typer.echo(f"{path.stem}, {name}: {numbers}, {heard.words}")
            continue
        everything.append(codes[0])
        for count in counts:
            decoded = upstream.decode(checkpoint.model, codes[:, :count])[0]
            heard = compare("", sound, decoded[0].numpy(), rate)
            three = f"{heard.estoi:.3f} | {heard.visqol:.2f} | {heard.zimtohrli:.2f}"
            mel = loss(decoded, torch.from_numpy(sound)[None])[1]
            plain = stoi(sound, decoded[0].numpy(), rate)
            typer.echo(f"| {path.stem} | {count} | {plain:.3f} | {three} | {mel:.3f} |")
    if calibrate:
        return
    used = [perplexity(level) for level in torch.cat(everything, dim=1)]
    typer.echo(f"\nperplexity over {torch.cat(everything, dim=1).shape[1]} frames, codebook by codebook: "
               + ", ".join(f"{value:.0f}" for value in used))  # fmt: skip


if __name__ == "__main__":
    typer.run(judge)
