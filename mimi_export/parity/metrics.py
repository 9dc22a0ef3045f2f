"""Distances between a reference signal and a result, as running sums: a stream of any length in constant memory.

All sums are float64. Decibels may be infinite here: `inf` where there is no error at all (two silences included),
`-inf` where the reference is silent and the result is not, or the result holds NaN; `nan` where nothing was pushed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def decibels(signal: float, error: float) -> float:
    """`10·log10(signal / error)` of two energies, with the infinities of the module's docstring."""
    if not math.isfinite(error) or not math.isfinite(signal):
        return -math.inf
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0 else -math.inf


class Comparison:
    """Running comparison of two signals of equal shape, pushed in any number of blocks."""

    def __init__(self) -> None:
        self.count = 0
        self._signal = self._error = self._result = self._product = self._max = 0.0

    def push(self, reference: Array, result: Array) -> None:
        """Add a block; shapes must be equal (`ValueError`)."""
        if reference.shape != result.shape:
            raise ValueError(f"cannot compare {list(reference.shape)} with {list(result.shape)}")
        if reference.size == 0:
            return
        a, b = reference.astype(np.float64).ravel(), result.astype(np.float64).ravel()
        self.count += a.size
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
    def snr_db(self) -> float:
        """`10·log10(Σ reference² / Σ (result - reference)²)`."""
        return decibels(self._signal, self._error) if self.count else math.nan

    @property
    def cosine(self) -> float:
        """`Σ reference·result / (|reference|·|result|)`; 1 for two silences, 0 where one is silent or NaN is there."""
        if not self.count:
            return math.nan
        if not math.isfinite(self._error):
            return 0.0
        norm = math.sqrt(self._signal) * math.sqrt(self._result)
        if norm == 0:
            return 1.0 if self._error == 0 else 0.0
        return self._product / norm

    @property
    def max_abs(self) -> float:
        """The largest difference of two samples."""
        return self._max if self.count else math.nan


def snr_db(reference: Array, result: Array) -> float:
    """Signal-to-noise ratio of a whole signal, see `Comparison.snr_db`."""
    comparison = Comparison()
    comparison.push(reference, result)
    return comparison.snr_db
