"""What runs along while a clip is measured: comparisons, energies per frame, the beginning to listen to."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mimi_export.parity.metrics import Comparison
from mimi_export.parity.results import Audio, AudioDifference, Difference
from mimi_export.parity.spectra import SpectralDistance

PUBLISHED_SECONDS = 3.0  # length of the clip behind the published figures

Array = npt.NDArray[Any]


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
    """All measures of two audio streams; spectra are made from blocks of many calls."""

    def __init__(self, sampling_rate: int, frame_size: int) -> None:
        self.comparison, self.first, self.energies = Comparison(), Comparison(), Energies()
        self._spectra = SpectralDistance(sampling_rate)
        self._frame_size = frame_size
        self._left = round(PUBLISHED_SECONDS * sampling_rate)
        self._held: list[tuple[Audio, Audio]] = []

    def push(self, reference: Audio, result: Audio) -> None:
        """Add whole frames, `[n]` samples each."""
        self.comparison.push(reference, result)
        self.first.push(reference[: self._left], result[: self._left])
        self._left = max(0, self._left - len(reference))
        self.energies.push(reference.reshape(-1, self._frame_size), result.reshape(-1, self._frame_size))
        self._held.append((reference, result))
        if len(self._held) == 16:
            self._flush()

    def finish(self) -> AudioDifference:
        """What all that was pushed has come to."""
        self._flush()
        log_mel, multi_scale = self._spectra.finish()
        c = self.comparison
        return AudioDifference(c.snr_db, c.cosine, c.max_abs, log_mel, multi_scale)

    def _flush(self) -> None:
        if self._held:
            self._spectra.push(*(np.concatenate(side) for side in zip(*self._held, strict=True)))
            self._held = []


class Collect:
    """The first samples of several streams."""

    def __init__(self, length: int) -> None:
        self._left = length
        self._parts: list[tuple[Audio, ...]] = []

    def push(self, *streams: Audio) -> None:
        """Add as many samples to each stream."""
        if self._left:
            self._parts.append(tuple(stream[: self._left].copy() for stream in streams))
            self._left -= len(self._parts[-1][0])

    def arrays(self) -> list[Audio]:
        """The streams."""
        return [np.concatenate(parts) for parts in zip(*self._parts, strict=True)]


def difference_of(comparison: Comparison) -> Difference:
    """What a comparison has come to."""
    return Difference(comparison.snr_db, comparison.cosine, comparison.max_abs)
