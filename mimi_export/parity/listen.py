"""What a listener would notice between two sounds: three published measures, and one sentence.

    ESTOI       0 … 1   how intelligible speech stays (Jensen and Taal 2016), by `pystoi`
    ViSQOL      1 … 5   quality of speech at 16 kHz (Chinen et al. 2020), by `visqol-python`
    Zimtohrli   1 … 5   near the just noticeable difference, at 48 kHz (Alakuijala et al. 2024), by `zimtohrli`

They come with the extra `listen` and are imported when they are first asked for. `WORDS` has its limits between what
known distortions of the demo's speech measure (`python scripts/judge_demo.py --calibrate`; `tests/test_listen.py` has
them). Speech with noise 20 dB below it, and that of a narrow telephone line (4 kHz), is understood word by word; below
2 kHz, or with noise at 10 dB, words are lost; nobody hears noise at 50 dB.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np
import soxr

from mimi_export.contract.report import Heard
from mimi_export.parity.metrics import Audio
from mimi_export.parity.results import Excerpt

VISQOL_RATE, ZIMTOHRLI_RATE = 16_000, 48_000
PACKAGES = ("pystoi", "visqol", "zimtohrli")
# Least ESTOI, ViSQOL and Zimtohrli, and what those reach that reach all three
WORDS = (
    ((0.99, 4.75, 4.6), "a listener would notice nothing"),
    ((0.96, 4.6, 3.9), "a listener would notice a difference only in direct comparison"),
    ((0.85, 3.6, 2.2), "a listener would notice a difference, and understand every word"),
    ((-1.0, 0.0, 0.0), "a listener would notice at once, and miss words"),
)
MADE_UP = "; of made-up weights, whose sound is no speech, Zimtohrli alone means something"


def listen(excerpt: Excerpt, rate: int, model: str) -> list[Heard]:
    """What the codec does to a clip, and what the variant does beside PyTorch; with made-up weights only the latter.

    Raises:
        ModuleNotFoundError: a package of the extra is missing.
    """
    if model.startswith("synthetic"):
        return [compare("beside PyTorch", excerpt.reference, excerpt.result, rate, made_up=True)]
    return [
        compare("beside PyTorch", excerpt.reference, excerpt.result, rate),
        compare("beside the recording", excerpt.original, excerpt.result, rate),
        compare("PyTorch beside the recording", excerpt.original, excerpt.reference, rate),
    ]


def compare(what: str, reference: Audio, result: Audio, rate: int, made_up: bool = False) -> Heard:
    """All three measures of `result` beside `reference`, float32 `[n]` at `rate`; for `made_up` weights one counts."""
    measures = (stoi(reference, result, rate, extended=True), visqol(reference, result, rate),
                zimtohrli(reference, result, rate))  # fmt: skip
    words = in_words(1.0, 5.0, measures[2]) + MADE_UP if made_up else in_words(*measures)
    return Heard(what, *measures, words)


def in_words(*measures: float) -> str:
    """What ESTOI, ViSQOL and Zimtohrli mean to somebody who listens."""
    reached = (words for least, words in WORDS if all(a >= b for a, b in zip(measures, least, strict=True)))
    return next(reached, "not measured, for there is no speech")


def stoi(reference: Audio, result: Audio, rate: int, extended: bool = False) -> float:
    """Short-time objective intelligibility, or with `extended` ESTOI."""
    from pystoi import stoi as measure

    return float(measure(reference, result, rate, extended=extended))


def visqol(reference: Audio, result: Audio, rate: int) -> float:
    """ViSQOL in its speech mode, on its polynomial scale, which reaches 5."""
    pair = (soxr.resample(one, rate, VISQOL_RATE).astype(np.float64) for one in (reference, result))
    return float(_visqol().measure_from_arrays(*pair, VISQOL_RATE).moslqo)


def zimtohrli(reference: Audio, result: Audio, rate: int) -> float:
    """Zimtohrli as a mean opinion score."""
    from zimtohrli import mos_from_signals

    pair = (soxr.resample(one, rate, ZIMTOHRLI_RATE).astype(np.float32) for one in (reference, result))
    return float(mos_from_signals(*pair))


@functools.cache
def _visqol() -> Any:
    from visqol import VisqolApi

    logging.getLogger("visqol").setLevel(logging.ERROR)  # it is told of a scale of its own on stderr
    api = VisqolApi()
    api.create(mode="speech")
    return api
