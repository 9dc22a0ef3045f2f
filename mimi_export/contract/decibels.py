"""Signal-to-noise ratio from two energies, the one definition that passes, golden clip, parity and tests share."""

from __future__ import annotations

import math


def decibels(signal: float, error: float) -> float:
    """`10·log10(signal / error)` of two energies.

    `inf` where there is no error at all (two silences included), `-inf` where the signal is silent and the error is
    not, or one of both is not finite.
    """
    if not math.isfinite(error) or not math.isfinite(signal):
        return -math.inf
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0 else -math.inf
