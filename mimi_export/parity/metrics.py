"""Distances between a reference signal and a result, as running sums: a stream of any length in constant memory.

All sums are float64. Decibels may be infinite (see `contract.decibels`), and are `nan` where nothing was pushed; a
result that holds NaN has `-inf`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mimi_export.contract.decibels import decibels
from mimi_export.parity.spectra import SpectralDistance

PUBLISHED_SECONDS = 3.0  # length of the clip behind the published figures

Array = npt.NDArray[Any]
Audio = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Difference:
    """How far a result is from its reference.

    `snr_db` is `10·log10(Σ reference² / Σ (result - reference)²)`; `cosine` is 1 for two silences, 0 where one is
    silent or NaN is there; `max_abs` the largest difference of two samples.
    """

    snr_db: float
    cosine: float
    max_abs: float


@dataclass(frozen=True)
class AudioDifference(Difference):
    """The same for audio, with distances of short-time spectra (`spectra.SpectralDistance`)."""

    log_mel_db: float
    multi_scale: float


class Comparison:
    """Running comparison of two signals of equal shape, pushed in any number of blocks."""

    def __init__(self) -> None:
        self._count = 0
        self._signal = self._error = self._result = self._product = self._max = 0.0

    def push(self, reference: Array, result: Array) -> None:
        """Add a block; shapes must be equal (`ValueError`)."""
        if reference.shape != result.shape:
            raise ValueError(f"cannot compare {list(reference.shape)} with {list(result.shape)}")
        if reference.size == 0:
            return
        a, b = reference.astype(np.float64).ravel(), result.astype(np.float64).ravel()
        self._count += a.size
        if not np.isfinite(b).all():
            self._error = self._max = math.inf
            return
        difference = b - a
        self._signal += float(a @ a)
        self._result += float(b @ b)
        self._product += float(a @ b)
        self._error += float(difference @ difference)
        self._max = max(self._max, float(np.abs(difference).max()))

    @property
    def difference(self) -> Difference:
        """What all that was pushed has come to."""
        if not self._count:
            return Difference(math.nan, math.nan, math.nan)
        norm = math.sqrt(self._signal) * math.sqrt(self._result)
        if not math.isfinite(self._error):
            cosine = 0.0
        elif norm == 0:
            cosine = 1.0 if self._error == 0 else 0.0
        else:
            cosine = self._product / norm
        return Difference(decibels(self._signal, self._error), cosine, self._max)


def difference_of(reference: Array, result: Array) -> Difference:
    """Compare two whole signals of equal shape (`ValueError`)."""
    comparison = Comparison()
    comparison.push(reference, result)
    return comparison.difference


class Energies:
    """Energy of signal and error for each frame."""

    def __init__(self) -> None:
        self._signal: list[Array] = []
        self._error: list[Array] = []

    def push(self, reference: Array, result: Array) -> None:
        """Add frames, `[frames, n]`."""
        self._signal.append(np.square(reference, dtype=np.float64).sum(axis=1))
        difference = result.astype(np.float64) - reference
        self._error.append(np.where(np.isfinite(difference), difference**2, np.inf).sum(axis=1))

    def arrays(self) -> tuple[Array, Array]:
        """Energies of signal and of error, `[frames]` each."""
        return np.concatenate(self._signal), np.concatenate(self._error)


class AudioComparison:
    """All measures of two audio streams; spectra are made from blocks of many calls.

    `whole` and `first` compare everything and the first `PUBLISHED_SECONDS`; `energies` are by frame.
    """

    def __init__(self, sampling_rate: int, frame_size: int) -> None:
        self.whole, self.first, self.energies = Comparison(), Comparison(), Energies()
        self._spectra = SpectralDistance(sampling_rate)
        self._frame_size = frame_size
        self._left = round(PUBLISHED_SECONDS * sampling_rate)
        self._held: list[tuple[Audio, Audio]] = []

    def push(self, reference: Audio, result: Audio) -> None:
        """Add whole frames, `[n]` samples each."""
        self.whole.push(reference, result)
        self.first.push(reference[: self._left], result[: self._left])
        self._left = max(0, self._left - len(reference))
        self.energies.push(reference.reshape(-1, self._frame_size), result.reshape(-1, self._frame_size))
        self._held.append((reference, result))
        if len(self._held) == 16:
            self._flush()

    def finish(self) -> AudioDifference:
        """What all that was pushed has come to."""
        self._flush()
        d = self.whole.difference
        return AudioDifference(d.snr_db, d.cosine, d.max_abs, *self._spectra.finish())

    def _flush(self) -> None:
        if self._held:
            self._spectra.push(*(np.concatenate(side) for side in zip(*self._held, strict=True)))
            self._held = []
