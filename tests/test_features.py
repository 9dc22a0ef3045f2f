"""Latents at other rates: straight lines between neighbours, windows that overlap, the end of a stream."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import DECODER_SNR, snr
from hypothesis import given, settings
from hypothesis import strategies as st

from mimi_export import FeatureExtractor, Resampler
from mimi_export.errors import ConfigError
from mimi_export.media.signals import speech_like
from mimi_export.runtime import load
from mimi_export.runtime.linear import LinearResampler

FRAME = 1280  # samples of a frame at 16 kHz
OVERLAP = 320


@pytest.fixture(scope="module")
def codec(tiny_variant):
    return load(tiny_variant(0, head="latents", start="latents"))


@settings(max_examples=60, deadline=None)
@given(
    rate=st.sampled_from([5, 10, 12.5, 20, 25, 29.97, 50, 100]),
    cuts=st.lists(st.integers(0, 7), min_size=1, max_size=12),
)
def test_lines_in_pieces(rate, cuts):
    """Bit for bit the whole; the values of `numpy.interp`; the right number; nothing before its time or after it."""
    total = sum(cuts) + 1
    values = np.random.default_rng(total).standard_normal((2, total, 3)).astype(np.float32)
    whole, pieces = (LinearResampler(12.5, rate, axis=1) for _ in range(2))
    wanted, got, start = whole.push(values), [], 0
    for cut in (*cuts, 1):
        got.append(pieces.push(values[:, start : start + cut]))
        start += cut
        done = sum(part.shape[1] for part in got)
        assert done == (0 if start == 0 else int((start - 1) * rate / 12.5 + 1 + 1e-9))
    np.testing.assert_array_equal(np.concatenate(got, axis=1), wanted)
    moments = np.arange(wanted.shape[1]) * 12.5 / rate
    for row, channel in np.ndindex(2, 3):
        line = np.interp(moments, np.arange(total), values[row, :, channel])
        np.testing.assert_allclose(wanted[row, :, channel], line, atol=1e-5)
    rest, again = whole.flush(), pieces.flush()
    number = wanted.shape[1] + (0 if rest is None else rest.shape[1])
    assert number == max(wanted.shape[1], int(total * rate / 12.5 + 0.5))
    if rest is not None:
        np.testing.assert_array_equal(rest, again)
        np.testing.assert_array_equal(rest, np.repeat(values[:, -1:], rest.shape[1], axis=1))
    np.testing.assert_array_equal(pieces.push(values), wanted)  # begins anew


def windows(sound, size=FRAME):
    """Overlapping windows over `[..., n]`, the first with silence in front."""
    padded = np.concatenate([np.zeros_like(sound[..., :OVERLAP]), sound], axis=-1)
    return [padded[..., start : start + OVERLAP + size] for start in range(0, sound.shape[-1], size)]


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("frame_rate", [None, 10, 25])
def test_a_stream_of_windows(codec, linear, frame_rate):
    """Windows of two microphones give what the whole recording gives, and what the steps one by one do."""
    sound = np.stack([speech_like(4, seed=seed, sampling_rate=16000)[: 40 * FRAME + 500] for seed in (1, 2)])
    options = {"frame_rate": frame_rate, "rows": 2, "linear": linear}
    extractor = FeatureExtractor(codec, 16000, overlap=OVERLAP, **options)
    got = [extractor.push(window) for window in windows(sound)]
    got.append(extractor.flush())
    if linear and frame_rate is None:
        assert [part.shape[1] for part in got] == [1] * 40 + [0, 1]  # no window waits
    joined, offline = np.concatenate(got, axis=1), FeatureExtractor(codec, 16000, **options)
    whole = np.concatenate([offline.push(sound), offline.flush()], axis=1)
    assert whole.shape[1] == joined.shape[1] == round(41 * (frame_rate or 12.5) / 12.5)
    for row in range(2):
        assert snr(whole[row], joined[row]) >= DECODER_SNR
    if not linear:
        resampler, stream = Resampler(16000, 24000, 2), codec.encoder.latents(2)
        audio = np.concatenate([resampler.push(sound), resampler.flush()], axis=1)
        latents = np.concatenate([stream.push(audio), stream.flush().latents], axis=1)
        lines = LinearResampler(12.5, frame_rate or 12.5, axis=1)
        steps = lines.push(latents)
        assert snr(steps[0], joined[0, : steps.shape[1]]) >= DECODER_SNR
    again = np.concatenate([offline.push(sound), offline.flush()], axis=1)
    np.testing.assert_array_equal(again, whole)  # `flush` began anew
    offline.push(sound[:, :5000])
    offline.reset()
    begun = offline.push(sound)
    np.testing.assert_array_equal(begun, whole[:, : begun.shape[1]])


@pytest.mark.parametrize("count", [0, 1, OVERLAP, OVERLAP + 1])
def test_windows_without_much(codec, count):
    extractor = FeatureExtractor(codec, 16000, overlap=OVERLAP)
    assert extractor.push(np.zeros(count, np.float32)).shape[1] == 0
    assert extractor.flush().shape[1] == (count > OVERLAP)


def test_what_cannot_be(codec, tiny_variant):
    for options, words in (({"overlap": -1}, "overlap"), ({"frame_rate": 0}, "a rate of 0")):
        with pytest.raises(ConfigError, match=words):
            FeatureExtractor(codec, 16000, **options)
    with pytest.raises(ConfigError, match="gives codes and no latents"):
        FeatureExtractor(load(tiny_variant()), 16000)
