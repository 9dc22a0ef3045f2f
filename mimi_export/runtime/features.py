"""Sound of any rate to latents of any frame rate, in pieces: what a model that listens to a microphone is fed."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from mimi_export.errors import ConfigError
from mimi_export.media.resampling import Resampler, resampled_length
from mimi_export.runtime.checks import check_audio
from mimi_export.runtime.codec import Codec
from mimi_export.runtime.linear import LinearResampler
from mimi_export.runtime.stream import Latents


class FeatureExtractor:
    """A stream of latents of a variant that was exported with `--head latents` or `--head both`.

        extractor = FeatureExtractor(load(DIR), 16000, overlap=320, frame_rate=25)
        for window in windows:                      # 320 samples of the window before, then 1280 new ones
            features = extractor.push(window)       # [1, n, 512]
        rest = extractor.flush()                    # then it begins anew

    Args:
        codec: the variant.
        sampling_rate: of the sound in Hz; the model's unless given.
        overlap: samples at the beginning of every window that the one before has brought; they are dropped.
        frame_rate: latents a second, by straight lines between the model's; the model's unless given.
        rows: independent streams that are pushed together, such as the speakers of a dialogue.
        linear: resample by straight lines, too: worse, but a window of whole frames gives those frames at once, where a
            `Resampler` keeps some milliseconds back.

    Raises:
        ConfigError: the variant gives no latents or has another number of rows; a wrong rate or overlap.
        AudioError: a sampling rate that no recording has.
    """

    def __init__(
        self,
        codec: Codec,
        sampling_rate: int | None = None,
        *,
        overlap: int = 0,
        frame_rate: float | None = None,
        rows: int = 1,
        linear: bool = False,
    ) -> None:
        model = codec.geometry
        if overlap < 0:
            raise ConfigError(f"an overlap of {overlap} samples, expected 0 or more")
        self.rates = sampling_rate or model.sampling_rate, model.sampling_rate
        self.frame_rate = model.frame_rate if frame_rate is None else frame_rate
        self._overlap = overlap
        self._resampler: Resampler | LinearResampler
        self._resampler = LinearResampler(*self.rates) if linear else Resampler(*self.rates, rows)
        # Lines need the sample after the last one: with silence in front, a window gives as much as it lasts.
        silence = math.ceil(self.rates[1] / self.rates[0]) - 1 if linear else 0
        self._front = np.zeros((rows, silence), np.float32)
        self._stream = codec.encoder.latents(rows)
        self._frames = LinearResampler(model.frame_rate, self.frame_rate, axis=1)
        self._samples = 0  # at `self.rates[0]`

    def push(self, samples: npt.ArrayLike) -> Latents:
        """Take a window `[n]` or `[rows, n]` of any length, give the latents that are ready: `[rows, frames, hidden]`.

        Raises:
            AudioError: wrong shape or type, NaN or infinite samples.
        """
        audio = check_audio(samples, self._stream.batch)[:, 0, self._overlap :]
        self._samples += audio.shape[-1]
        sound = self._resampler.push(audio)
        if sound.shape[-1] and not self._stream.num_samples:
            sound = np.concatenate([self._front, sound], axis=1)
        return self._frames.push(self._stream.push(sound))

    def flush(self) -> Latents:
        """End the stream: fill the last frame with zeros, give what is left; the next `push` begins another one."""
        rest = self._resampler.flush()
        missing = max(0, resampled_length(self._samples, *self.rates) - self._stream.num_samples)
        sound = self._front[:, :0] if rest is None else rest[:, :missing]
        ready = [self._frames.push(part) for part in (self._stream.push(sound), self._stream.flush().latents)]
        end = self._frames.flush()
        self.reset()
        return np.concatenate(ready if end is None else [*ready, end], axis=1)

    def reset(self) -> None:
        """Begin another stream; what was buffered is dropped."""
        for part in (self._resampler, self._frames):
            part.flush()
        self._stream.reset()
        self._samples = 0
