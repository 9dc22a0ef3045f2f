"""One rate to another by straight lines between neighbours: causal, and without delay.

For sound, `mimi_export.Resampler` is far better; this is for latents, and for sound where a window must give its
frame at once.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from mimi_export.errors import ConfigError

Values = npt.NDArray[np.float32]


class LinearResampler:
    """One stream at another rate; however it is cut, the pieces add up to the whole, bit for bit.

        resampler = LinearResampler(12.5, 25, axis=1)
        for latents in blocks:                      # [B, n, C]
            ready = resampler.push(latents)         # [B, m, C], m may be 0
        rest = resampler.flush()                    # in all, `frames · target / source`, rounded, halves up

    What belongs to moment t lies between the entries before and after t, and is out with the latter.

    Args:
        source_rate, target_rate: entries a second; to a thousandth.
        axis: that of time.

    Raises:
        ConfigError: a rate that is not a positive number.
    """

    def __init__(self, source_rate: float, target_rate: float, axis: int = -1) -> None:
        for rate in (source_rate, target_rate):
            if not 0.001 <= rate < 1e9:
                raise ConfigError(f"a rate of {rate:g} a second, expected 0.001 or more")
        self._axis = axis
        self._step = Fraction(source_rate).limit_denominator(1000) / Fraction(target_rate).limit_denominator(1000)
        self._last: Values | None = None  # the latest entry
        self._taken = self._given = 0

    def push(self, values: Values) -> Values:
        """Take entries, give those that are ready."""
        count = values.shape[self._axis]
        if self._step == 1 or not count:
            return values
        last = np.take(values, [0], self._axis) if self._last is None else self._last
        known = np.concatenate([last, values], self._axis)  # its first entry is number `self._taken - 1`
        self._last, first, self._taken = np.take(values, [-1], self._axis), self._taken - 1, self._taken + count
        ready = (self._taken - 1) // self._step + 1
        numerators = np.arange(self._given, ready) * self._step.numerator
        self._given = ready
        whole, rest = np.divmod(numerators, self._step.denominator)
        before, shape = whole - first, [1] * values.ndim
        shape[self._axis] = -1
        weight = (rest / self._step.denominator).astype(np.float32).reshape(shape)
        after = np.take(known, np.minimum(before + 1, count), self._axis)
        mixed: Values = (1 - weight) * np.take(known, before, self._axis) + weight * after
        return mixed

    def flush(self) -> Values | None:
        """What is missing, the last entry again and again, or nothing; the next `push` begins another stream."""
        missing = int(self._taken / self._step + Fraction(1, 2)) - self._given
        last = self._last
        self._last, self._taken, self._given = None, 0, 0
        return None if last is None or missing < 1 else np.repeat(last, missing, self._axis)
