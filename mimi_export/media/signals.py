"""Generated test signals: the same arguments give the same samples, and nothing has to be downloaded.

Every signal is float32 mono in [-1, 1] and is called as `signal(seconds, seed, sampling_rate)`; `SIGNALS` lists
them by name. `speech_like` is a small source-filter synthesiser. It is not intelligible, but it moves through
pitch, formants, noise, pauses and levels as speech does, which is what a speech codec reacts to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]
Array = NDArray[np.floating[Any]]
Signal = Callable[[float, int, int], Audio]

SAMPLING_RATE = 24_000  # Kyutai's model; callers with a geometry at hand pass its rate
# Centre frequencies in Hz of the first four formants of six vowels, an adult speaker's rounded averages.
_VOWELS = np.array([
    [730, 1090, 2440, 3400], [530, 1840, 2480, 3500], [270, 2290, 3010, 3700],
    [570, 840, 2410, 3300], [300, 870, 2240, 3200], [490, 1350, 1690, 3300],
])  # fmt: skip
_BANDWIDTHS = np.array([80.0, 110.0, 160.0, 250.0])  # Hz
_FRAME = 512  # samples of one short-time spectrum


def speech_like(seconds: float, seed: int = 0, sampling_rate: int = SAMPLING_RATE) -> Audio:
    """Syllables of voiced and unvoiced sound with pauses between phrases, `[round(seconds * sampling_rate)]`.

    Source: a sawtooth (a glottal pulse with lip radiation falls by 6 dB an octave) whose pitch glides, and noise.
    Filter: resonances that glide from vowel to vowel, applied to overlapping short-time spectra.
    The level is about -20 dBFS over all, and differs by up to 18 dB from phrase to phrase.
    """
    samples = _length(seconds, sampling_rate)
    rng = np.random.default_rng([seed, 1])
    times, tracks = _syllables(samples / sampling_rate, rng)
    clock = np.arange(samples) / sampling_rate
    pitch = np.interp(clock, times, tracks["pitch"])
    pitch *= 1 + 0.02 * np.sin(2 * np.pi * 5.3 * clock)
    phase = np.cumsum(pitch / sampling_rate)
    noise = rng.standard_normal(samples)
    voiced = (1 - 2 * (phase % 1.0)) * np.interp(clock, times, tracks["voiced"])
    unvoiced = noise * np.interp(clock, times, tracks["unvoiced"])
    starts = clock[:: _FRAME // 2]  # one short-time spectrum begins at each
    formants = np.stack([np.interp(starts, times, track) for track in tracks["formants"].T], axis=1)
    frequencies = np.fft.rfftfreq(_FRAME, 1 / sampling_rate)
    audio = _filtered(voiced, _resonances(frequencies, formants))
    audio += _filtered(unvoiced, _hiss(frequencies, np.interp(starts, times, tracks["hiss"])))
    audio += 1e-4 * noise  # a room is never digitally silent
    return np.clip(audio, -1, 1).astype(np.float32)


def chirp(seconds: float, seed: int = 0, sampling_rate: int = SAMPLING_RATE) -> Audio:  # noqa: ARG001 - a Signal
    """A sine of amplitude 0.5 that sweeps exponentially from 50 Hz to 0.45 of the sampling rate."""
    samples = _length(seconds, sampling_rate)
    low, high = 50.0, 0.45 * sampling_rate
    octaves = np.log(high / low)
    progress = np.arange(samples) / max(samples, 1)
    phase = low * samples / sampling_rate / octaves * np.expm1(progress * octaves)
    audio: Audio = (0.5 * np.sin(2 * np.pi * phase)).astype(np.float32)
    return audio


def impulse(seconds: float, seed: int = 0, sampling_rate: int = SAMPLING_RATE) -> Audio:
    """Silence with one sample of 0.9 near the start and about four more a second, of both signs."""
    audio = np.zeros(_length(seconds, sampling_rate), np.float32)
    rng = np.random.default_rng([seed, 2])
    places = np.cumsum(rng.integers(sampling_rate // 8, sampling_rate // 3 + 1, int(8 * seconds) + 1))
    places = np.concatenate([[sampling_rate // 100], places])
    places = places[places < len(audio)]
    audio[places] = np.where(np.arange(len(places)) % 2, -0.9, 0.9)
    return audio


def silence(seconds: float, seed: int = 0, sampling_rate: int = SAMPLING_RATE) -> Audio:  # noqa: ARG001 - a Signal
    """Zeros."""
    return np.zeros(_length(seconds, sampling_rate), np.float32)


def loud_noise(seconds: float, seed: int = 0, sampling_rate: int = SAMPLING_RATE) -> Audio:
    """White noise of unit standard deviation cut to [-1, 1]: a third of the samples are clipped."""
    noise = np.random.default_rng([seed, 3]).standard_normal(_length(seconds, sampling_rate))
    return np.clip(noise, -1, 1).astype(np.float32)


SIGNALS: dict[str, Signal] = {signal.__name__: signal for signal in (speech_like, chirp, impulse, silence, loud_noise)}


def _length(seconds: float, sampling_rate: int) -> int:
    if seconds < 0 or sampling_rate < 1:
        raise ValueError(f"got {seconds} s at {sampling_rate} Hz, expected a length of 0 or more and a positive rate")
    return round(seconds * sampling_rate)


def _syllables(seconds: float, rng: np.random.Generator) -> tuple[Array, dict[str, Array]]:
    """Times of the corners of piecewise linear control tracks, and the tracks: a row for each corner.

    A syllable is a consonant of noise and a vowel; every fourth to eighth is followed by a pause.
    """
    count = int(seconds / 0.16) + 2
    consonant = rng.uniform(0.03, 0.1, count)
    vowel = rng.uniform(0.08, 0.26, count)
    phrase_end = np.zeros(count, bool)
    phrase_end[np.cumsum(rng.integers(4, 9, count // 4 + 1)) % count] = True
    pause = np.where(phrase_end, rng.uniform(0.15, 0.6, count), 0.01)
    phrase = np.cumsum(phrase_end) - phrase_end
    level = 10 ** (rng.uniform(-12, 6, count)[phrase] / 20) * rng.uniform(0.7, 1.2, count)
    base = rng.uniform(95, 210, count)[phrase] * rng.uniform(0.9, 1.2, count)
    loud_hiss = np.where(rng.random(count) < 0.7, rng.uniform(0.05, 0.5, count), 0.0)
    formants = _VOWELS[rng.integers(0, len(_VOWELS), count)] * rng.uniform(0.9, 1.12, (count, 1))
    glide = formants * rng.uniform(0.85, 1.15, formants.shape)
    zero, quiet = np.zeros(count), np.full(count, 1e-3)
    # Corners of one syllable: silence, middle of the noise, voice set in, voice full, voice fading, voice off.
    steps = np.stack([pause, consonant, 0.3 * consonant, 0.25 * vowel, 0.55 * vowel, 0.2 * vowel], axis=1)
    tracks = {
        "pitch": [base, base, base * 1.05, base * 1.1, base * 0.95, base * 0.88],
        "voiced": [zero, quiet, quiet, 0.32 * level, 0.25 * level, zero],
        "unvoiced": [zero, loud_hiss * level, 0.2 * loud_hiss * level, 4e-3 * level, 4e-3 * level, zero],
        "hiss": [rng.uniform(2000, 7000, count)] * 6,
    }
    corners: dict[str, Array] = {name: np.stack(columns, axis=1).ravel() for name, columns in tracks.items()}
    path = np.stack([formants, formants, formants, formants, glide, glide], axis=1)
    corners["formants"] = path.reshape(-1, formants.shape[1])
    return np.cumsum(steps.ravel()), corners


def _resonances(frequencies: Array, formants: Array) -> Array:
    """Gain of four parallel resonances at each frame and frequency, `[frames, frequencies]`."""
    gain = np.full((len(formants), len(frequencies)), 0.03)
    for k, bandwidth in enumerate(_BANDWIDTHS):
        distance = (frequencies[None] - formants[:, k, None]) / bandwidth
        gain += 2.2 * 0.6**k / np.sqrt(1 + distance**2)
    return gain


def _hiss(frequencies: Array, centres: Array) -> Array:
    """Gain of one broad band around each frame's centre, `[frames, frequencies]`."""
    gain: Array = 0.5 / (1 + ((frequencies[None] - centres[:, None]) / 1500) ** 2)
    return gain


def _filtered(source: Array, gains: Array) -> Array:
    """Each half-overlapping Hann frame of `source` times its own gain, added up again to the same length."""
    hop = _FRAME // 2
    frames = len(gains)
    padded: Array = np.zeros((frames + 1) * hop)
    padded[: len(source)] = source
    pieces: Array = np.take(padded, np.arange(frames)[:, None] * hop + np.arange(_FRAME))
    window: Array = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FRAME) / _FRAME)
    shaped = np.fft.irfft(np.fft.rfft(pieces * window) * gains, _FRAME)
    result: Array = np.zeros((frames + 1) * hop)
    result[: frames * hop] += shaped[:, :hop].ravel()
    result[hop:] += shaped[:, hop:].ravel()
    return result[: len(source)]
