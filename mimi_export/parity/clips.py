"""What parity listens to: files of any length, arrays, and a default set of generated signals."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimi_export.errors import AudioError
from mimi_export.media.audio import AudioReader
from mimi_export.media.signals import SIGNALS, speech_like
from mimi_export.parity.metrics import Audio

STRESS_SECONDS = 2.0
VERY_SHORT = 0.02  # seconds: less than one frame


@dataclass(frozen=True)
class Clip:
    """One signal; `samples` (at the model's rate) or `path` holds it, and a path is only ever read block by block.

    `stress` marks a signal that no codec is made for (noise that clips, silence, …): it must not break anything, but
    budgets in decibels are not asked of it, except where a variant has to be exact.
    """

    name: str
    samples: Audio | None = None
    path: Path | None = None
    stress: bool = False

    def blocks(self, sampling_rate: int) -> Iterator[Audio]:
        """Mono float32 blocks at `sampling_rate`; `AudioError` for a file that cannot be read."""
        if self.samples is not None:
            yield _checked(self.samples, self.name)
        elif self.path is not None:
            with AudioReader(self.path, sampling_rate) as reader:
                yield from reader


def clips_from_files(paths: Sequence[str | os.PathLike[str]]) -> list[Clip]:
    """Clips of audio files, named after them; a name that comes twice gets a number."""
    clips: list[Clip] = []
    for path in map(Path, paths):
        names = [clip.name for clip in clips]
        name, number = path.stem, 1
        while name in names:
            number += 1
            name = f"{path.stem}-{number}"
        clips.append(Clip(name, path=path))
    return clips


def default_clips(sampling_rate: int, seconds: float, stress: bool = True) -> list[Clip]:
    """Speech-like sound of `seconds`, then short ones of silence, clipping noise, a chirp, impulses and 20 ms."""
    clips = [Clip("speech_like", speech_like(seconds, 1, sampling_rate))]
    if stress:
        for name in ("chirp", "impulse", "silence", "loud_noise"):
            clips.append(Clip(name, SIGNALS[name](STRESS_SECONDS, 1, sampling_rate), stress=True))
        clips.append(Clip("very_short", speech_like(VERY_SHORT, 3, sampling_rate), stress=True))
    return clips


def _checked(samples: Audio, name: str) -> Audio:
    if samples.ndim != 1 or samples.size == 0:
        raise AudioError(f"{name} has shape {list(samples.shape)}, expected [samples] with at least one sample")
    finite = np.isfinite(samples)
    if not finite.all():
        place = int(np.argmin(finite))
        raise AudioError(
            f"{name}: sample {place} is {samples[place]}, expected a finite number; repair the audio first"
        )
    return samples
