"""Streams of latents: what the encoder's quantiser would get, as features for other models."""

from __future__ import annotations

from typing import NamedTuple

import numpy.typing as npt

from mimi_export.runtime.stream import Latents, SampleStream


class LatentFlush(NamedTuple):
    """The end of a stream: its last latents `[B, frames, hidden]`, and how many samples of them were real."""

    latents: Latents
    real_samples: int


class LatentStream(SampleStream):
    """Samples in, latents out; one of an encoder that gives codes as well has them from `encode`."""

    def push(self, samples: npt.ArrayLike) -> Latents:
        """Take samples, give those that are ready: float32 `[B, frames, hidden]`, frames may be 0; see `encode`."""
        return self.encode(samples).latents

    def flush(self) -> LatentFlush:
        """End the stream: fill the last frame with zeros; `StreamError` where it was flushed already."""
        encoded, real = self.finish()
        return LatentFlush(encoded.latents, real)
