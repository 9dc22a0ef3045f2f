"""Rounding of weights to 8 bits: symmetric integers and a float32 scale for each column.

    weight ≈ code · scale,   code in -127 … 127

The scale of a column is its greatest magnitude divided by 127, or a smaller one where that lowers the squared error: a
few weights are clipped then, and all others are stepped finer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
TOP = 127.0
CLIP_RATIOS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


class Rounded(NamedTuple):
    """Integer codes `[in, out]` and scales `[out]`."""

    codes: NDArray[np.int8]
    scales: Floats

    def floats(self) -> Floats:
        """The weights that these codes stand for."""
        values: Floats = self.codes.astype(np.float32) * self.scales
        return values


def round_columns(matrix: Floats) -> Rounded:
    """Round weights `[in, out]` to the nearest code."""
    scales = column_scales(matrix)
    return Rounded(_codes(matrix, scales), scales)


def column_scales(matrix: Floats) -> Floats:
    """The scale of each column `[out]`; 1 for a column of zeros.

    Of the clipping ratios the one of least squared error is taken, column by column; at 8 bits that is nearly always
    no clipping, except where a few weights stand out far.
    """
    peak = np.abs(matrix).max(axis=0, initial=0.0).astype(np.float32)
    scales = _scales(peak)
    error = _error(matrix, scales)
    for ratio in CLIP_RATIOS:
        # Clipping the peak to r leaves an error of ((1 - r)·peak)² for it alone, so few columns can gain.
        open_ = np.flatnonzero(((1 - ratio) * peak) ** 2 < error)
        if open_.size == 0:
            break
        trial = _scales(peak[open_] * ratio)
        trial_error = _error(matrix[:, open_], trial)
        wins = trial_error < error[open_]
        scales[open_[wins]], error[open_[wins]] = trial[wins], trial_error[wins]
    return scales


def _scales(peak: Floats) -> Floats:
    return np.where(peak > 0, peak / TOP, 1.0).astype(np.float32)


def _codes(matrix: Floats, scales: Floats) -> NDArray[np.int8]:
    codes: NDArray[np.int8] = np.clip(np.rint(matrix / scales), -TOP, TOP).astype(np.int8)
    return codes


def _error(matrix: Floats, scales: Floats) -> Floats:
    error: Floats = np.square(_codes(matrix, scales) * scales - matrix).sum(axis=0)
    return error
