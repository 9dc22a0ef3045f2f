"""Distances of short-time spectra, as running means: a stream of any length in constant memory.

Magnitudes are scaled so that a full-scale sine has 1; a logarithm sees nothing below `FLOOR`. Signals that end inside
a spectrum are continued with zeros. (librosa has no running means, and would bring numba and scikit-learn.)
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

SCALES = (2048, 1024, 512, 256, 128, 64)  # samples of one short-time spectrum
MEL_SIZE, MEL_HOP, MEL_BANDS = 1024, 256, 80
FLOOR = 1e-5  # -100 dB of full scale
BLOCK = 1 << 15  # samples turned into spectra at once


class SpectralDistance:
    """Running log-mel and multi-scale spectral distances of two mono signals at `sampling_rate` in Hz.

    `log_mel_db`: mean |difference| in dB of two mel spectrograms (80 bands, 1024 samples, a step of 256).
    `multi_scale`: mean over six resolutions of mean |S - R| + mean |ln S - ln R|, the sum of a linear and a
    logarithmic term of short-time magnitudes as in DDSP (arXiv:2001.04643, section 4.2), here of means.
    """

    def __init__(self, sampling_rate: int) -> None:
        self._filters = mel_filters(sampling_rate)
        self._mel_frames = _Frames(MEL_SIZE, MEL_HOP)
        self._mel = _Mean()
        self._scales = [(_Frames(size, size // 4), _Mean(), _Mean()) for size in SCALES]
        self._pushed = False

    def push(self, reference: Array, result: Array) -> None:
        """Add a block of `[n]` samples each; what is not finite in `result` counts as 0."""
        finite = np.where(np.isfinite(result), result, 0)
        pair = np.stack([reference, finite]).astype(np.float64)
        self._pushed = self._pushed or pair.size > 0
        for start in range(0, pair.shape[1], BLOCK):
            self._add(pair[:, start : start + BLOCK], last=False)

    def finish(self) -> tuple[float, float]:
        """`(log_mel_db, multi_scale)` of all that was pushed, `nan` where nothing was; push no more after it."""
        if not self._pushed:
            return math.nan, math.nan
        self._add(np.zeros((2, 0)), last=True)
        scales = [linear.value + logarithmic.value for _, linear, logarithmic in self._scales]
        return self._mel.value, sum(scales) / len(scales)

    def _add(self, pair: Floats, last: bool) -> None:
        a, b = self._mel_frames.take(pair, last)
        self._mel.push(np.abs(decibels_of(magnitudes(a) @ self._filters) - decibels_of(magnitudes(b) @ self._filters)))
        for frames, linear, logarithmic in self._scales:
            a, b = magnitudes(frames.take(pair, last))
            linear.push(np.abs(a - b))
            logarithmic.push(np.abs(np.log(np.maximum(a, FLOOR) / np.maximum(b, FLOOR))))


def magnitudes(frames: Floats) -> Floats:
    """Hann-windowed spectra of `[…, size]` samples: `[…, size / 2 + 1]` amplitudes."""
    size = frames.shape[-1]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    result: Floats = np.abs(np.fft.rfft(frames * window)) * (2 / window.sum())
    return result


def decibels_of(amplitudes: Floats) -> Floats:
    """Amplitudes in dB of full scale, not below that of `FLOOR`."""
    result: Floats = 20 * np.log10(np.maximum(amplitudes, FLOOR))
    return result


@functools.cache
def mel_filters(sampling_rate: int) -> Floats:
    """Triangles that are equally wide on the mel scale `2595·log10(1 + f/700)`: `[MEL_SIZE / 2 + 1, MEL_BANDS]`.

    Each sums to 1, so a band's value is a mean amplitude.
    """
    top = 2595 * math.log10(1 + sampling_rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, MEL_BANDS + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(MEL_SIZE, 1 / sampling_rate)[:, None]
    low, centre, high = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    filters: Floats = np.maximum(0, np.minimum(rising, falling))
    narrow = filters.sum(axis=0) == 0  # a band between two bins takes the nearest one
    filters[np.abs(frequencies - centre).argmin(axis=0)[narrow], np.flatnonzero(narrow)] = 1
    normal: Floats = filters / filters.sum(axis=0)
    return normal


def spectrogram(samples: Array, sampling_rate: int, columns: int) -> Floats:
    """Log-mel picture in dB, `[bands, columns]`, of `[n]` samples; columns are spread evenly over the signal."""
    padded = np.pad(np.where(np.isfinite(samples), samples, 0).astype(np.float64), (MEL_SIZE // 2, MEL_SIZE // 2))
    starts = np.linspace(0, len(padded) - MEL_SIZE, columns).astype(int)
    frames = np.lib.stride_tricks.sliding_window_view(padded, MEL_SIZE)[starts]
    picture: Floats = decibels_of(magnitudes(frames) @ mel_filters(sampling_rate)).T
    return picture


class _Frames:
    """Overlapping frames of a stream of two signals; keeps what the next block completes."""

    def __init__(self, size: int, hop: int) -> None:
        self._size, self._hop = size, hop
        self._rest = np.zeros((2, 0))

    def take(self, pair: Floats, last: bool) -> Floats:
        """All frames `[2, n, size]` that are whole now; with `last` the rest is filled up with zeros."""
        data = np.concatenate([self._rest, pair], axis=1)
        if last:
            excess = max(data.shape[1] - self._size, 0)
            whole = self._size + -(-excess // self._hop) * self._hop
            data = np.pad(data, ((0, 0), (0, whole - data.shape[1])))
        if data.shape[1] < self._size:
            self._rest = data
            return np.zeros((2, 0, self._size))
        frames = np.lib.stride_tricks.sliding_window_view(data, self._size, axis=1)[:, :: self._hop]
        self._rest = data[:, frames.shape[1] * self._hop :]
        return frames


class _Mean:
    """Running mean."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def push(self, values: Floats) -> None:
        self._sum += float(values.sum())
        self._count += values.size

    @property
    def value(self) -> float:
        return self._sum / self._count if self._count else math.nan
