"""Rounding of weights to 8 bits: symmetric integers and a float32 scale for each group of weights.

    weight ≈ code · scale,   code in -127 … 127

The scale of a group is its greatest magnitude divided by 127, or a smaller one where that lowers the squared error: a
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
    """Integer codes in the shape of the weights, and a scale for each group `[…, 1]`."""

    codes: NDArray[np.int8]
    scales: Floats

    def floats(self) -> Floats:
        """The weights that these codes stand for."""
        values: Floats = self.codes.astype(np.float32) * self.scales
        return values


def round_groups(groups: Floats) -> Rounded:
    """Round weights `[groups, size]`.

    A group of zeros has scale 1 and codes 0. Of the clipping ratios the one of least squared error is taken, group
    by group; at 8 bits that is nearly always no clipping, except where a few weights stand out far.
    """
    peak = np.abs(groups).max(axis=1, keepdims=True, initial=0.0).astype(np.float32)
    scales = _scales(peak)
    best = _codes(groups, scales)
    error = _error(groups, best, scales)
    for ratio in CLIP_RATIOS:
        # Clipping the peak to r leaves an error of ((1 - r)·peak)² for it alone, so few groups can gain.
        rows = np.flatnonzero((((1 - ratio) * peak) ** 2 < error)[:, 0])
        if rows.size == 0:
            break
        trial = _scales(peak[rows] * ratio)
        codes = _codes(groups[rows], trial)
        trial_error = _error(groups[rows], codes, trial)
        wins = (trial_error < error[rows])[:, 0]
        best[rows[wins]], scales[rows[wins]], error[rows[wins]] = codes[wins], trial[wins], trial_error[wins]
    return Rounded(best, scales)


def _scales(peak: Floats) -> Floats:
    return np.where(peak > 0, peak / TOP, 1.0).astype(np.float32)


def _codes(groups: Floats, scales: Floats) -> NDArray[np.int8]:
    codes: NDArray[np.int8] = np.clip(np.rint(groups / scales), -TOP, TOP).astype(np.int8)
    return codes


def _error(groups: Floats, codes: NDArray[np.int8], scales: Floats) -> Floats:
    error: Floats = np.square(codes * scales - groups).sum(axis=1, keepdims=True)
    return error
