"""Generated signals: repeatable, in range, of the right length, and speech-like where they say so."""

import numpy as np
import pytest

from mimi_export.media.signals import SIGNALS, impulse, loud_noise, speech_like


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("samples", [0, 1, 255, 256, 257, 1919, 1920, 1921, 3840])
def test_length_type_and_range(name, samples):
    audio = SIGNALS[name](samples / 24000, 0, 24000)
    assert audio.dtype == np.float32
    assert audio.shape == (samples,)
    assert np.isfinite(audio).all()
    assert np.abs(audio).max(initial=0) <= 1


@pytest.mark.parametrize("name", SIGNALS)
def test_same_arguments_give_the_same_samples(name):
    assert np.array_equal(SIGNALS[name](0.7, 5, 16000), SIGNALS[name](0.7, 5, 16000))


@pytest.mark.parametrize("name", ["speech_like", "impulse", "loud_noise"])
def test_seed_matters(name):
    assert not np.array_equal(SIGNALS[name](1.0, 0, 24000), SIGNALS[name](1.0, 1, 24000))


@pytest.mark.parametrize("name", SIGNALS)
def test_refuses_negative_length_and_rate(name):
    with pytest.raises(ValueError, match="expected a length of 0 or more"):
        SIGNALS[name](-1.0, 0, 24000)
    with pytest.raises(ValueError, match="positive rate"):
        SIGNALS[name](1.0, 0, 0)


def test_speech_like_has_pauses_levels_and_a_moving_spectrum():
    audio = speech_like(20.0)
    rms = np.sqrt(np.square(audio.reshape(-1, 1200)).mean(1))  # windows of 50 ms
    level = 20 * np.log10(rms)
    assert -26 < 20 * np.log10(np.sqrt(np.square(audio).mean())) < -14
    assert np.mean(level < -50) > 0.05, "pauses"
    assert np.percentile(level, 95) - np.percentile(level, 50) > 6, "level varies"
    power = np.square(np.abs(np.fft.rfft(audio.reshape(-1, 1200)[level > -35])))
    centroid = power @ np.fft.rfftfreq(1200, 1 / 24000) / power.sum(1)
    assert np.percentile(centroid, 95) > 3 * np.percentile(centroid, 20), "voiced and unvoiced sounds"


def test_speech_like_is_periodic_where_voiced():
    windows = speech_like(10.0).reshape(-1, 2400).astype(np.float64)
    loud = windows[np.square(windows).mean(1) > 0.01]
    spectrum = np.fft.rfft(loud, 4800)
    correlation = np.fft.irfft(np.square(np.abs(spectrum)))[:, :2400]
    best = (correlation[:, 100:400] / correlation[:, :1]).max(1)  # pitch of 60 to 240 Hz
    assert np.median(best) > 0.5


def test_impulse_and_loud_noise_are_what_they_say():
    audio = impulse(2.0)
    assert 5 <= np.count_nonzero(audio) <= 20
    assert {*np.unique(audio)} == {np.float32(-0.9), np.float32(0), np.float32(0.9)}
    assert 0.25 < np.mean(np.abs(loud_noise(1.0)) == 1) < 0.4
