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
    [  # of `scripts/judge_demo.py --calibrate`: noise from 50 to 10 dB below, low-passes, random codebooks 7, 4, 1, 0
        ((0.998, 4.99, 4.80), "nothing"),
        ((1.000, 4.96, 4.32), "only in direct comparison"),
        ((0.949, 4.79, 3.52), "understand every word"),
        ((0.882, 4.24, 3.10), "understand every word"),
        ((0.984, 4.45, 2.70), "understand every word"),
        ((0.745, 3.22, 2.68), "miss words"),
        ((0.898, 3.58, 2.19), "miss words"),
        ((0.994, 4.33, 2.43), "understand every word"),
        ((0.830, 3.23, 2.45), "miss words"),
        ((0.660, 3.11, 1.83), "miss words"),
        ((0.999, 4.99, 4.98), "nothing"),
        ((0.964, 4.81, 4.54), "only in direct comparison"),
        ((0.252, 2.61, 2.12), "miss words"),
        ((0.620, 3.16, 2.17), "miss words"),
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
    assert len(QUICK.skipped()) == 5
    assert DEFAULT.skipped() == [
        "calls of 2, 4, 7 frames along a clip",
        "what a listener would notice (--listen)",
    ]
    assert DEEP.skipped() == []
