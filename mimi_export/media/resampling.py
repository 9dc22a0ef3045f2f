"""Sound at one rate to sound at another, in pieces of any size, by soxr's streaming interface."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import soxr

from mimi_export.errors import AudioError

Samples = npt.NDArray[np.float32]

RATES = range(1000, 1_000_001)  # Hz; what claims another rate is no recording, and at 1 Hz a kilobyte is an hour


def resampled_length(frames: int, source_rate: int, sampling_rate: int) -> int:
    """Samples at `sampling_rate` for `frames` at `source_rate`: the exact ratio, halves rounded up (as soxr does)."""
    return (2 * frames * sampling_rate + source_rate) // (2 * source_rate)


class Resampler:
    """One stream of sound at another rate; however it is cut, the pieces add up to the whole resampled at once.

        resampler = Resampler(16000, 24000)
        for block in blocks:
            ready = resampler.push(block)              # [n] to [m], m may be 0
        rest = resampler.flush()                       # `resampled_length` in all, and ready for another stream

    Args:
        source_rate, target_rate: in Hz; equal ones pass everything on at once.
        channels: `None` for blocks `[n]`, a number C for blocks `[C, n]`.

    Raises:
        AudioError: a rate outside `RATES`.
    """

    def __init__(self, source_rate: int, target_rate: int, channels: int | None = None) -> None:
        for rate in (source_rate, target_rate):
            if rate not in RATES:
                raise AudioError(f"a rate of {rate} Hz, expected {RATES[0]} to {RATES[-1]}")
        self.rates = source_rate, target_rate
        self._channels = channels
        same = source_rate == target_rate
        self._stream = None if same else soxr.ResampleStream(source_rate, target_rate, channels or 1, dtype="float32")

    @property
    def latency(self) -> int:
        """For how many samples at `target_rate`, at most, a sample lies inside before it comes out."""
        return _latency(*self.rates)

    def push(self, samples: Samples) -> Samples:
        """Take float32 samples `[n]` or `[C, n]`, give those that are ready."""
        return self._run(samples, last=False)

    def flush(self) -> Samples:
        """What is left; the next `push` begins another stream."""
        shape = (0,) if self._channels is None else (self._channels, 0)
        rest = self._run(np.zeros(shape, np.float32), last=True)
        if self._stream is not None:
            self._stream.clear()
        return rest

    def _run(self, samples: Samples, last: bool) -> Samples:
        if self._stream is None:
            return samples
        return np.ascontiguousarray(self._stream.resample_chunk(np.ascontiguousarray(samples.T), last=last).T)


@lru_cache
def _latency(source_rate: int, target_rate: int) -> int:
    """Measured: sample after sample goes in, and what has not come out by then waits."""
    resampler, done, longest = Resampler(source_rate, target_rate), 0, 0
    for number in range(1, 1 + (0 if source_rate == target_rate else source_rate // 8)):
        done += len(resampler.push(np.zeros(1, np.float32)))
        longest = max(longest, resampled_length(number, source_rate, target_rate) - done)
    return longest
