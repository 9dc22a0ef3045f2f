"""The words of a listener's measures, and the measures themselves where their packages are installed."""

from __future__ import annotations

import numpy as np
import pytest

from mimi_export.media.signals import speech_like
from mimi_export.parity.depth import DEEP, DEFAULT, QUICK
from mimi_export.parity.listen import MADE_UP, in_words, listen
from mimi_export.parity.results import Excerpt


@pytest.mark.parametrize(
    ("measures", "words"),
    [  # of `scripts/judge_demo.py --calibrate`, noise from 50 to 10 dB below, a low-pass, a middle codebook flipped
        ((1.000, 4.99, 4.72), "nothing"),
        ((0.999, 4.58, 4.13), "only in direct comparison"),
        ((0.989, 4.19, 3.26), "understand every word"),
        ((0.929, 3.43, 2.45), "understand every word"),
        ((0.740, 2.48, 1.98), "miss words"),
        ((1.000, 4.30, 2.36), "understand every word"),
        ((0.972, 4.83, 4.79), "only in direct comparison"),
        ((float("nan"), 5.0, 5.0), "not measured"),
    ],
)
def test_distortions_have_their_words(measures, words):
    assert words in in_words(*measures)


@pytest.mark.parametrize(("model", "rows"), [("synthetic", 1), ("demo", 3)])
def test_measures(model, rows):
    for package in ("pystoi", "visqol", "zimtohrli"):
        pytest.importorskip(package)
    sound = speech_like(3.0, 1)
    noise = np.random.default_rng(0).standard_normal(len(sound)).astype(np.float32)
    found = listen(Excerpt(sound, sound, sound + sound.std() * noise), 24000, model)
    assert len(found) == rows
    assert found[0].zimtohrli < 2.3
    assert found[0].words.endswith(MADE_UP) == (model == "synthetic")


def test_every_depth_says_what_it_skips():
    assert len(list(QUICK.skipped())) == 5
    assert list(DEFAULT.skipped()) == [
        "calls of 2, 4, 7 frames along a clip",
        "what a listener would notice (--listen)",
    ]
    assert list(DEEP.skipped()) == []
