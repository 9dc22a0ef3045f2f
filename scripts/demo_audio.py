"""Training audio of the demo checkpoint: packed once into one long line of samples, then drawn from and changed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

RATE = 24_000
FRAME = 1_920
SPEEDS = (1.0, 0.85, 1.17)  # other pitches and formants, as of other speakers
SPEECH_RMS = 0.08
SHAPES = [(2, 12), (1, 24)] * 7 + [
    (1, 48),
    (1, 96),
]  # (clips, frames) of batches, in turns: few samples, many steps
_SILENCE = 0.004  # RMS of a block; speech of SPEECH_RMS is far above
_AUDIBLE = 3e-4  # mean square of a clip that is worth a step
_ENDINGS = {".wav", ".flac", ".ogg", ".opus", ".mp3"}

Audio = NDArray[np.float32]


def pack(folders: Sequence[Path], target: Path) -> Iterator[str]:
    """Write all audio below `folders` to `target` as int16 at 24 kHz, each file at three speeds; yields what it did."""
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)
    if not files:
        raise SystemExit(f"no audio below {', '.join(map(str, folders))}; wanted: files ending in {sorted(_ENDINGS)}")
    seconds = 0.0
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as packed:
        for path in files:
            samples, rate = sf.read(path, dtype="float32", always_2d=True)
            clip = _without_silence(samples.mean(axis=1), rate)
            clip *= SPEECH_RMS / max(1e-4, float(np.sqrt(np.mean(clip**2)))) if len(clip) else 1.0
            for speed in SPEEDS:
                resampled = soxr.resample(clip, rate * speed, RATE, quality="MQ")
                packed.write((resampled.clip(-1, 1) * 32767).astype(np.int16).tobytes())
                seconds += len(resampled) / RATE
            yield f"{path}: {len(clip) / rate:.1f} s of sound"
    Path(packed.name).replace(target)
    yield f"{target}: {seconds / 60:.1f} minutes at {len(SPEEDS)} speeds"


def _without_silence(samples: Audio, rate: int) -> Audio:
    """Blocks of 20 ms that are not silent, with 100 ms around them."""
    block = rate // 50
    blocks = samples[: len(samples) // block * block].reshape(-1, block)
    loud = np.sqrt((blocks**2).mean(axis=1)) > _SILENCE
    near = np.convolve(loud, np.ones(11), "same")[: len(loud)] > 0 if len(loud) >= 11 else np.ones(len(loud), bool)
    return blocks[near].reshape(-1)


def batch(data: NDArray[np.int16], shape: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Clips `[clips, samples]` from anywhere, at another level, some brighter or duller, some with noise."""
    clips, frames = shape
    return torch.from_numpy(np.stack([_changed(_clip(data, frames * FRAME, rng), rng) for _ in range(clips)])).float()


def _clip(data: NDArray[np.int16], samples: int, rng: np.random.Generator) -> Audio:
    for _ in range(31):
        start = int(rng.integers(0, len(data) - samples))
        clip: Audio = data[start : start + samples].astype(np.float32) / np.float32(32768)
        if np.mean(clip**2) > _AUDIBLE:
            break
    return clip


def _changed(clip: Audio, rng: np.random.Generator) -> Audio:
    if rng.random() < 0.5:
        clip = clip + np.float32(rng.uniform(-0.5, 0.5)) * np.append(np.float32(0), clip[:-1])
    clip = clip * np.float32(0.9 * 10 ** (rng.uniform(-9, 5) / 20))
    if rng.random() < 0.3:
        noise = rng.standard_normal(len(clip))
        if rng.random() < 0.5:
            noise = np.convolve(noise, np.ones(8) / 3, "same")
        clip = clip + (noise * 10 ** (rng.uniform(-75, -40) / 20)).astype(np.float32)
    return clip.clip(-1, 1)


class Loss:
    """Distance of two sounds `[clips, samples]`: mel and linear spectra at four resolutions, and a little waveform."""

    SCALES = ((2048, 80), (1024, 64), (512, 40), (256, 20))  # length of the window, mel bands
    FLOOR = 1e-3  # of a sine at full scale; what is softer need not be right

    def __init__(self) -> None:
        self.windows = {length: torch.hann_window(length) for length, _ in self.SCALES}
        self.mels = {length: _mel_filters(bands, length) for length, bands in self.SCALES}

    def __call__(self, got: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
        """The loss, and of it the mel distance (natural logarithm) for the log."""
        mel = got.new_zeros(())
        linear = got.new_zeros(())
        for length, _ in self.SCALES:
            spectrum, target = self._spectrum(got, length), self._spectrum(wanted, length)
            logs = [torch.log(one @ self.mels[length] + self.FLOOR) for one in (spectrum, target)]
            mel = mel + (logs[0] - logs[1]).abs().mean() / len(self.SCALES)
            linear = linear + (spectrum - target).abs().mean() / (target.mean() + 2e-3) / len(self.SCALES)
        waveform = (got - wanted).abs().mean() / (wanted.abs().mean() + 3e-2)
        return mel + 0.5 * linear + 0.3 * waveform, mel.item()

    def _spectrum(self, sound: Tensor, length: int) -> Tensor:
        """Magnitudes `[clips, steps, bins]`; a sine at full scale has about 1."""
        transform = torch.stft(
            sound, length, length // 4, window=self.windows[length], pad_mode="constant", return_complex=True
        )
        power = torch.view_as_real(transform).square().sum(-1)
        return torch.sqrt(power + 1e-10).mT * (4 / length)


class Features(nn.Module):
    """What a frame of sound is like, in a few numbers: what the encoder is first taught to give.

    Principal components of logarithmic spectra that end with the frame: 24 mel bands every 10 ms, and the bins below
    800 Hz every 40 ms, where a voice's pitch shows.
    """

    FLOOR = 1e-3
    SPECTRA = 8 * 24 + 2 * 47

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.windows = torch.hann_window(512), torch.hann_window(1536)
        self.mel = _mel_filters(24, 512)
        self.mean, self.axes = nn.Buffer(torch.zeros(self.SPECTRA)), nn.Buffer(torch.zeros(self.SPECTRA, dimensions))
        self.spread = nn.Buffer(torch.ones(dimensions))  # of each dimension

    def fit(self, sounds: Iterable[Tensor]) -> None:
        """Take the principal components of these sounds."""
        spectra = torch.cat([self._spectra(sound).flatten(0, 1) for sound in sounds])
        self.mean.copy_(spectra.mean(0))
        power, axes = torch.linalg.eigh(torch.cov((spectra - self.mean).T))
        power = power.flip(0)[: len(self.spread)]
        self.axes.copy_(axes.flip(1)[:, : len(power)] / power.mean().sqrt())
        self.spread.copy_((power / power.mean()).sqrt())

    def forward(self, sound: Tensor) -> Tensor:
        """`[clips, frames, dimensions]` of `[clips, samples]`, the most important first, mean square 1."""
        return (self._spectra(sound) - self.mean) @ self.axes

    def _spectra(self, sound: Tensor) -> Tensor:
        rows, frames = len(sound), sound.shape[1] // FRAME
        fine = self._magnitudes(sound, self.windows[0], 240) @ self.mel
        low = self._magnitudes(sound, self.windows[1], 960)[:, :, 5:52]
        logs = [(part + self.FLOOR).log().reshape(rows, frames, -1) for part in (fine, low)]
        return torch.cat([logs[0], 0.4 * logs[1]], dim=2)

    def _magnitudes(self, sound: Tensor, window: Tensor, hop: int) -> Tensor:
        padded = nn.functional.pad(sound, (len(window) - hop, 0))
        transform = torch.stft(padded, len(window), hop, window=window, center=False, return_complex=True)
        return transform.abs().mT * (4 / len(window))


def _mel_filters(bands: int, length: int) -> Tensor:
    """Triangles `[bins, bands]` between 40 Hz and 11 kHz, each with weights that sum to 1."""
    bins = np.linspace(0, RATE / 2, length // 2 + 1)[:, None]
    low, high = (2595 * np.log10(1 + edge / 700) for edge in (40, 11_000))
    edges = 700 * (10 ** (np.linspace(low, high, bands + 2) / 2595) - 1)
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.maximum(0, np.minimum((bins - left) / (middle - left), (right - bins) / (right - middle)))
    return torch.from_numpy(triangles / np.maximum(triangles.sum(0), 1e-9)).float()
