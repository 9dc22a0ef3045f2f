"""Rounding of weights to 8 (or 4) bits: symmetric integers and a float32 scale for each group of weights.

    weight ≈ code · scale,   code in -(2**(bits-1) - 1) … 2**(bits-1) - 1

The scale of a group is its greatest magnitude divided by the greatest code, or a smaller one where that lowers the
squared error: a few weights are clipped then, and all others are stepped finer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
CLIP_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


class Rounded(NamedTuple):
    """Integer codes in the shape of the weights, and a scale for each group `[…, 1]`."""

    codes: NDArray[np.int8]
    scales: Floats

    def floats(self) -> Floats:
        """The weights that these codes stand for."""
        values: Floats = self.codes.astype(np.float32) * self.scales
        return values


def round_groups(groups: Floats, bits: int = 8) -> Rounded:
    """Round weights whose last axis is a group.

    A group of zeros has scale 1 and codes 0. Of the clipping ratios the one of least squared error is taken, group
    by group; at 8 bits that is nearly always no clipping, except where a few weights stand out far.
    """
    top = float(2 ** (bits - 1) - 1)
    peak = np.abs(groups).max(axis=-1, keepdims=True, initial=0.0).astype(np.float32)
    scales = np.where(peak > 0, peak / top, 1.0).astype(np.float32)
    best = _codes(groups, scales, top)
    error = _error(groups, best, scales)
    # Clipping the peak to r leaves an error of ((1 - r)·peak)² for it alone, so few groups can gain.
    for ratio in CLIP_RATIOS[1:]:
        open_ = np.flatnonzero(((1 - ratio) * peak.reshape(-1)) ** 2 < error.reshape(-1))
        if open_.size == 0:
            break
        flat = groups.reshape(-1, groups.shape[-1])[open_]
        trial = scales_of(peak.reshape(-1, 1)[open_] * ratio, top)
        codes = _codes(flat, trial, top)
        trial_error = _error(flat, codes, trial).reshape(-1)
        wins = trial_error < error.reshape(-1)[open_]
        rows = open_[wins]
        best.reshape(-1, groups.shape[-1])[rows] = codes[wins]
        scales.reshape(-1, 1)[rows] = trial[wins]
        error.reshape(-1)[rows] = trial_error[wins]
    return Rounded(best, scales)


def scales_of(peak: Floats, top: float) -> Floats:
    """Scales that give `peak` the code `top`; 1 where all weights are zero."""
    return np.where(peak > 0, peak / top, 1.0).astype(np.float32)


def _codes(groups: Floats, scales: Floats, top: float) -> NDArray[np.int8]:
    codes: NDArray[np.int8] = np.clip(np.rint(groups / scales), -top, top).astype(np.int8)
    return codes


def _error(groups: Floats, codes: NDArray[np.int8], scales: Floats) -> Floats:
    error: Floats = np.square(codes * scales - groups).sum(axis=-1, keepdims=True)
    return error
