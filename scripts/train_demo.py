"""Train a small Mimi that speaks, on one processor core: for demonstrations where there is no Hugging Face Hub.

    python scripts/train_demo.py pack data.i16 FOLDER...        audio files become one file of 24 kHz samples
    python scripts/train_demo.py train data.i16 run             trains; started again it goes on from run/training.pt
    python scripts/train_demo.py save run DIRECTORY             writes config.json and model.safetensors (float16)
    python scripts/judge_demo.py DIRECTORY speech.flac          STOI, ESTOI, mel distance by number of codebooks

Nothing waits for something else to be learnt. For half of the steps the encoder learns to give features of the sound, a
regression, while the decoder learns to make sound of those features, quantised by codebooks that were fitted to them at
once. Then both go on together, a third of the clips with fewer codebooks. In the last twentieth the encoder stands
still: the codebooks are fitted to it once more and only the decoder learns. What is kept is a running mean of the
weights. With `--start` both halves go on together from the weights of a checkpoint.

A step takes 0.2 s of one core (Zen 3). More threads do not pay: the layers are small, and on a shared machine a second
thread mostly waits for the first. The same data and number of steps give the same weights on one machine, whether the
training was interrupted or not.

`demo_data.py` collects speech with clear licences from Debian's packages; weights follow the licences of what they were
trained on. `--model demo` is the outcome; mimi_export/model/demo/README.md says what it was trained on and judged by.
"""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from demo_audio import SHAPES, Features, Loss, batch, pack
from demo_codec import DIM, Codec, shares
from safetensors.torch import save_file
from torch import Tensor, nn

from mimi_export.model import upstream
from mimi_export.model.checkpoint import load_checkpoint

RATE, CLIP_NORM = 1.5e-3, 1.0
WARM_UP_STEPS = 200
OWN_FEATURES_STEPS = 1200  # by then the decoder gets what the encoder gives
JOIN_AT, STAND_STILL_AT, SLOW_DOWN_AT = 0.5, 0.95, 0.64  # of the steps
SLOWEST = 0.05  # of the learning rate, in the end
KEEP = 0.997  # of the running mean of the weights, in every step
FRAMES = (12_000, 12_000, 30_000)  # that the codebooks are fitted to, at the beginning of each phase
SAVE_SECONDS, LOG_STEPS = 60, 50
FEATURE_BATCHES = 700  # that the features are principal components of
LOG = ("step", "minutes", "loss", "mel distance", "feature error", "phase")

app = typer.Typer(add_completion=False, help=__doc__)


class Training:
    """A codec, its optimiser and its running mean, and how far they are."""

    def __init__(self, data: Path, directory: Path, steps: int, start: str | None = None) -> None:
        torch.manual_seed(0)
        self.rng = np.random.default_rng(0)
        self.data = np.memmap(data, np.int16, "r")
        self.directory, self.steps = directory, steps
        self.codec, self.features, self.loss = Codec(), Features(DIM), Loss()
        self.weights = [weight for weight in self.codec.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, RATE, betas=(0.9, 0.98), weight_decay=1e-3, fused=True)
        self.mean = [weight.detach().clone() for weight in self.weights]
        self.step, self.spent, self.phase = 0, 0.0, 0
        self.start, self.begins_at = start, 0.0
        self.seen: list[tuple[float, float, float]] = []
        self.log: list[tuple[float, ...]] = []

    @torch.no_grad()
    def begin(self) -> None:
        """Fit the features to the data and the codebooks to the features; or take the weights of a checkpoint."""
        if self.start is not None:
            self.codec.take(load_checkpoint(self.start).model)
            torch._foreach_copy_(self.mean, [weight.detach() for weight in self.weights])
            self.begins_at, self.phase = JOIN_AT, 1
            return
        sounds = [batch(self.data, SHAPES[0], self.rng) for _ in range(FEATURE_BATCHES)]
        self.features.fit(sounds)
        weights = self.features.spread.rsqrt()  # so that the decoder hears the small dimensions, too
        self.codec.out.mul_((weights / weights.log().mean().exp()).clamp(0.4, 2.5))
        torch._foreach_copy_(self.mean, [weight.detach() for weight in self.weights])
        points = torch.cat([self.features(sound).flatten(0, 1) for sound in sounds])[: FRAMES[0]]
        typer.echo("\n".join(self.codec.fit([points * mine for mine in shares()], 5, keep=False)))

    @property
    def file(self) -> Path:
        """Where the state of the training is kept."""
        return self.directory / "training.pt"

    def save(self) -> None:
        """Write the state and the log."""
        state = {
            "codec": self.codec.state_dict(),
            "features": self.features.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "mean": self.mean,
            "at": (self.step, self.spent, self.phase, self.begins_at),
            "log": (self.log, self.seen),
            "random": (self.rng.bit_generator.state, torch.get_rng_state()),
        }
        torch.save(state, self.file.with_suffix(".tmp"))
        self.file.with_suffix(".tmp").replace(self.file)
        with (self.directory / "log.csv").open("w", newline="") as file:
            csv.writer(file).writerows([LOG, *self.log])

    def resume(self) -> None:
        """Go on from where the last run was saved, or begin."""
        if not self.file.exists():
            self.begin()
            return
        state = torch.load(self.file, weights_only=True)
        self.codec.load_state_dict(state["codec"])
        self.features.load_state_dict(state["features"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.mean = state["mean"]
        self.step, self.spent, self.phase, self.begins_at = state["at"]
        self.log, self.seen = ([tuple(line) for line in lines] for lines in state["log"])
        self.rng.bit_generator.state = state["random"][0]
        torch.set_rng_state(state["random"][1])

    def run(self, stop: int | None = None) -> None:
        """Train until all steps are done, or `stop` of them; the schedule is that of all."""
        last = saved = time.monotonic()
        while self.step < min(self.steps, stop or self.steps):
            progress = self.begins_at + (1 - self.begins_at) * self.step / self.steps
            if progress >= (JOIN_AT, STAND_STILL_AT, math.inf)[self.phase]:
                self.next_phase()
            self.seen.append(self.advance(progress))
            now = time.monotonic()
            self.spent, last = self.spent + now - last, now
            if self.step % LOG_STEPS == 0:
                means = [round(float(value), 4) for value in np.mean(self.seen, axis=0)]
                self.log.append((self.step, round(self.spent / 60, 2), *means, self.phase))
                typer.echo("  ".join(f"{name} {value:g}" for name, value in zip(LOG, self.log[-1], strict=True)))
                self.seen = []
            if now - saved > SAVE_SECONDS:
                self.save()
                saved = now
        self.save()

    @torch.no_grad()
    def next_phase(self) -> None:
        """Go on from the mean of the weights, with codebooks that fit what the encoder now gives."""
        torch._foreach_copy_([weight.detach() for weight in self.weights], self.mean)
        if self.phase == 0:
            self.codec.join()
            torch._foreach_copy_(self.mean, [weight.detach() for weight in self.weights])
        self.phase += 1
        latents: list[Tensor] = []
        while sum(map(len, latents)) < FRAMES[self.phase]:
            latents.append(self.codec.encode(batch(self.data, (2, 24), self.rng)).flatten(0, 1))
        points = self.codec.points(torch.cat(latents))
        typer.echo("\n".join(self.codec.fit(points, 10 if self.phase == 1 else 6, keep=self.phase == 2)))
        self.save()

    def advance(self, progress: float) -> tuple[float, float, float]:
        """One step; loss, mel distance and the encoder's error of the features."""
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (self.step + 1) / WARM_UP_STEPS) * _slow_down(progress)
        sound = batch(self.data, SHAPES[self.step % len(SHAPES)], self.rng)
        with torch.no_grad():
            features = self.features(sound)
        with torch.set_grad_enabled(self.phase < 2):
            latents = self.codec.encode(sound)
        if self.phase == 0:
            given = latents @ self.codec.into.T
            own = self.rng.random() < min(1, self.step / OWN_FEATURES_STEPS)
            decoded = self.codec.sound_of(given if own else features, self.rng)
            more = error = ((given - features).square() / self.features.spread).mean()
        else:
            points = self.codec.points(latents)
            error = ((points[0] + points[1] - features).square() / self.features.spread).mean()
            joined, commitment = self.codec.quantise(points, self.rng, update=self.phase == 1)
            decoded = self.codec.decode(joined)
            towards_features = 0.0 if self.begins_at else 0.1  # another training's features had other axes
            more = 0.25 * commitment + towards_features * error if self.phase == 1 else torch.zeros(())
        loss, mel = self.loss(decoded, sound)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + more).backward()
        if self.phase == 2:
            for quantizer in self.codec.split:
                quantizer.input_proj.weight.grad = None
        norms = [nn.utils.clip_grad_norm_(half, CLIP_NORM) for half in self.codec.halves()]
        if all(bool(torch.isfinite(norm)) for norm in norms):
            self.optimizer.step()
        self.step += 1
        keep = min(KEEP, (1 + self.step) / (20 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.mean, [weight.detach() for weight in self.weights], 1 - keep)
        return loss.item() + more.item(), mel, error.item()


def _slow_down(progress: float) -> float:
    """The learning rate's factor: 1, and half a cosine from `SLOW_DOWN_AT` on."""
    way = max(0.0, (progress - SLOW_DOWN_AT) / (1 - SLOW_DOWN_AT))
    return SLOWEST + (1 - SLOWEST) * 0.5 * (1 + math.cos(math.pi * min(1.0, way)))


@app.command("pack")
def pack_command(
    target: Annotated[Path, typer.Argument(help="File of int16 samples to write.")],
    folders: Annotated[list[Path], typer.Argument(help="Folders with WAV, FLAC, Ogg or MP3 files.")],
) -> None:
    """Make one file of all audio below FOLDERS: 24 kHz mono, without silence, at three speeds."""
    for line in pack(folders, target):
        typer.echo(line)


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="What `pack` wrote.")],
    directory: Annotated[Path, typer.Argument(help="Where the state of the training and its log go.")],
    steps: Annotated[int, typer.Option(help="How many steps, those of earlier runs included.")] = 12_000,
    start: Annotated[
        str | None,
        typer.Option(help="Checkpoint of this geometry (demo, a directory) to go on from."),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 1,
) -> None:
    """Train, or go on training."""
    torch.set_num_threads(threads)
    directory.mkdir(parents=True, exist_ok=True)
    training = Training(data, directory, steps, start)
    training.resume()
    training.run()


@app.command()
def save(
    directory: Annotated[Path, typer.Argument(help="Directory of the training.")],
    target: Annotated[Path, typer.Argument(help="Directory of the checkpoint.")],
) -> None:
    """Write the checkpoint in the form of the Hub, weights as float16."""
    state: dict[str, Any] = torch.load(directory / "training.pt", weights_only=True)
    codec = Codec()
    codec.load_state_dict(state["codec"])
    with torch.no_grad():
        torch._foreach_copy_([weight.detach() for weight in codec.parameters() if weight.requires_grad], state["mean"])
        model = codec.finished()
    tensors = {name: tensor.half().contiguous() for name, tensor in upstream.tensors_on_disk(model).items()}
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    model.config.architectures = ["MimiModel"]
    model.config.save_pretrained(target)
    size = (target / "model.safetensors").stat().st_size
    typer.echo(f"{target}: {sum(tensor.numel() for tensor in tensors.values())} weights, {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    app()
