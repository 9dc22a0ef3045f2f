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
    """Clips `[clips, samples]` from anywhere, at another level, most of them as if recorded in another place."""
    clips, frames = shape
    return torch.from_numpy(np.stack([_changed(_clip(data, frames * FRAME, rng), rng) for _ in range(clips)])).float()


def _clip(data: NDArray[np.int16], samples: int, rng: np.random.Generator) -> Audio:
    """Sound from anywhere, most of it slower or faster: other voices."""
    speed = 2 ** rng.uniform(-0.45, 0.25) if rng.random() < 0.6 else 1.0
    length = int(np.ceil(samples * speed)) + 1
    for _ in range(31):
        start = int(rng.integers(0, len(data) - length))
        clip: Audio = data[start : start + length].astype(np.float32) / np.float32(32768)
        if np.mean(clip**2) > _AUDIBLE:
            break
    changed: Audio = np.interp(np.arange(samples) * speed, np.arange(length), clip).astype(np.float32)
    return changed


def _changed(clip: Audio, rng: np.random.Generator) -> Audio:
    """Another room, another microphone, another noise, another level; a fifth of the clips keep all but the level."""
    if rng.random() < 0.8:
        if rng.random() < 0.5:
            clip = clip * _pause(len(clip), rng)
        spectrum = np.fft.rfft(clip)
        if rng.random() < 0.6:
            spectrum = spectrum * np.fft.rfft(_room(len(clip), rng))
        recorded = np.fft.irfft(spectrum * _response(len(spectrum), rng), len(clip))
        recorded *= np.sqrt(np.mean(clip**2) / (np.mean(recorded**2) + 1e-12))
        if rng.random() < 0.7:
            noise = np.fft.rfft(rng.standard_normal(len(clip))) * _response(len(spectrum), rng)
            hiss = np.fft.irfft(noise, len(clip))
            recorded += hiss * (10 ** (rng.uniform(-45, -15) / 20) * SPEECH_RMS / (np.std(hiss) + 1e-9))
        clip = recorded.astype(np.float32)
    louder: Audio = clip * np.float32(0.9 * 10 ** (rng.uniform(-8, 12) / 20))
    return louder.clip(-1, 1)


def _pause(samples: int, rng: np.random.Generator) -> Audio:
    """A window that leaves out 0.2 to 1 s somewhere; what is heard there then is the place alone."""
    middle, half = rng.uniform(0, samples), RATE * rng.uniform(0.1, 0.5)
    window: Audio = ((np.abs(np.arange(samples) - middle) - half) / (0.02 * RATE)).clip(0, 1).astype(np.float32)
    return window


def _room(samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Impulse response: the sound itself, then an echo that is 60 dB softer after 0.15 to 1.2 s."""
    decay = np.exp(-6.9 / (RATE * rng.uniform(0.15, 1.2)) * np.arange(samples))
    echo = rng.standard_normal(samples) * decay
    response = echo * (10 ** (rng.uniform(-20, 0) / 20) / np.sqrt(np.sum(echo**2)))
    response[0] += 1
    return response  # type: ignore[no-any-return]


def _response(bins: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Gains from 0 Hz to half the rate: a smooth curve, often with the highs or the lows cut off."""
    octaves = np.log2(np.linspace(0, RATE / 2, bins).clip(20))
    points = np.log2(RATE / 2) - np.arange(9)[::-1]
    decibels = np.interp(octaves, points, rng.normal(0, rng.uniform(0, 7), len(points)))
    if rng.random() < 0.4:
        decibels -= rng.uniform(2, 14) * np.maximum(0, octaves - np.log2(rng.uniform(300, 800)))
    if rng.random() < 0.55:
        fall = rng.uniform(24, 150) * np.maximum(0, octaves - np.log2(rng.uniform(2000, 8000)))
        decibels -= np.minimum(fall, rng.uniform(25, 70))
    if rng.random() < 0.25:
        decibels -= rng.uniform(12, 36) * np.maximum(0, np.log2(rng.uniform(80, 400)) - octaves)
    return 10 ** (decibels.clip(-70, 30) / 20)  # type: ignore[no-any-return]


class Loss:
    """Distance of two sounds `[clips, samples]`: spectra at four resolutions, intelligibility, a little waveform."""

    SCALES = ((2048, 80), (1024, 64), (512, 40), (256, 20))  # length of the window, mel bands
    FLOOR = 1e-3  # of a sine at full scale; what is softer need not be right
    ENVELOPES = 600  # window whose spectra envelopes are made of: 25 ms, as short as STOI's
    SEGMENT = 30  # of its steps, 0.375 s: what intelligibility is judged over

    def __init__(self, intelligibility: float = 10.0) -> None:
        self.intelligibility = intelligibility
        self.windows = {length: torch.hann_window(length) for length, _ in self.SCALES}
        self.mels = {length: _mel_filters(bands, length) for length, bands in self.SCALES}
        self.windows[self.ENVELOPES] = torch.hann_window(self.ENVELOPES)
        self.thirds = _third_octaves(2 * self.ENVELOPES)

    def __call__(self, got: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
        """The loss, and of it the mel distance (natural logarithm) for the log."""
        mel = got.new_zeros(())
        linear = got.new_zeros(())
        for length, _ in self.SCALES:
            spectrum, target = self._spectrum(got, length), self._spectrum(wanted, length)
            logs = [torch.log(one @ self.mels[length] + self.FLOOR) for one in (spectrum, target)]
            mel = mel + (logs[0] - logs[1]).abs().mean() / len(self.SCALES)
            linear = linear + (spectrum - target).abs().mean() / (target.mean() + 2e-3) / len(self.SCALES)
        unlike = self._unlike(*(self._spectrum(sound, self.ENVELOPES, padded=2) for sound in (got, wanted)))
        waveform = (got - wanted).abs().mean() / (wanted.abs().mean() + 3e-2)
        return mel + 0.5 * linear + 0.3 * waveform + self.intelligibility * unlike, mel.item()

    def _unlike(self, got: Tensor, wanted: Tensor) -> Tensor:
        """1 - the correlation of both envelopes in third octaves, over segments that are not silent (as STOI does)."""
        both = [
            (spectrum.square() @ self.thirds + 1e-9).sqrt().unfold(1, self.SEGMENT, 7) for spectrum in (got, wanted)
        ]
        loud = both[1].square().sum((2, 3))
        loud = (loud > 1e-4 * loud.amax()).float()[:, :, None]
        centred = [one - one.mean(-1, keepdim=True) for one in both]
        norms = [one.square().sum(-1) + 1e-7 for one in centred]
        like = (centred[0] * centred[1]).sum(-1) / (norms[0] * norms[1]).sqrt()
        return 1 - (like * loud).sum() / (loud.sum() * like.shape[2]).clamp(min=1)

    def _spectrum(self, sound: Tensor, length: int, padded: int = 1) -> Tensor:
        """Magnitudes `[clips, steps, bins]`; a sine at full scale has about 1.

        Windows are padded to `padded` times their length, and a step is a quarter of that.
        """
        size = padded * length
        transform = torch.stft(
            sound, size, size // 4, length, self.windows[length], pad_mode="constant", return_complex=True
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


def _third_octaves(length: int) -> Tensor:
    """15 bands `[bins, bands]` from 150 Hz on, the bins of each counted fully."""
    frequency = np.linspace(0, RATE / 2, length // 2 + 1)[:, None]
    centres = 150 * 2 ** (np.arange(15) / 3)
    inside = (frequency >= centres * 2 ** (-1 / 6)) & (frequency < centres * 2 ** (1 / 6))
    return torch.from_numpy(inside).float()


def _mel_filters(bands: int, length: int) -> Tensor:
    """Triangles `[bins, bands]` between 40 Hz and 11 kHz, each with weights that sum to 1."""
    bins = np.linspace(0, RATE / 2, length // 2 + 1)[:, None]
    low, high = (2595 * np.log10(1 + edge / 700) for edge in (40, 11_000))
    edges = 700 * (10 ** (np.linspace(low, high, bands + 2) / 2595) - 1)
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.maximum(0, np.minimum((bins - left) / (middle - left), (right - bins) / (right - middle)))
    return torch.from_numpy(triangles / np.maximum(triangles.sum(0), 1e-9)).float()
