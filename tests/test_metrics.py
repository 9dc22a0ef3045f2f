"""Parity's measures against their definitions, computed another way, and against values known in advance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mimi_export.parity.metrics import Comparison, Difference, difference_of
from mimi_export.parity.spectra import MEL_HOP, MEL_SIZE, SpectralDistance, magnitudes, mel_filters, spectrogram
from mimi_export.parity.ties import (
    DIFFERS,
    EQUAL,
    FOLLOWS,
    TIE,
    Agreement,
    ResidualQuantizer,
    judge_codes,
)

RATE = 24000


def sine(frequency: float, samples: int, amplitude: float = 1.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(samples) / RATE)).astype(np.float32)


def test_snr_of_a_known_error():
    reference = sine(440, RATE)
    assert difference_of(reference, reference * np.float32(1.1)).snr_db == pytest.approx(20, abs=1e-4)
    assert difference_of(reference, reference).snr_db == math.inf


@pytest.mark.parametrize(
    ("reference", "result", "snr", "cosine", "max_abs"),
    [
        ([0.0, 0.0], [0.0, 0.0], math.inf, 1.0, 0.0),  # two silences are equal
        ([0.0, 0.0], [0.0, 0.5], -math.inf, 0.0, 0.5),  # nothing to compare with
        ([0.5, 0.5], [0.0, 0.0], 0.0, 0.0, 0.5),
        ([0.5, 0.5], [0.5, math.nan], -math.inf, 0.0, math.inf),
        ([3.0, 4.0], [-3.0, -4.0], 10 * math.log10(0.25), -1.0, 8.0),
    ],
)
def test_corners(reference, result, snr, cosine, max_abs):
    comparison = Comparison()
    comparison.push(np.array(reference, np.float32), np.array(result, np.float32))
    assert comparison.difference == Difference(snr, pytest.approx(cosine), max_abs)


def test_nothing_pushed_is_not_a_number():
    comparison = Comparison()
    comparison.push(np.zeros(0), np.zeros(0))
    assert all(math.isnan(value) for value in vars(comparison.difference).values())
    assert all(math.isnan(value) for value in SpectralDistance(RATE).finish())


def test_shapes_must_be_equal():
    with pytest.raises(ValueError, match=r"\[3\] with \[1, 3\]"):
        Comparison().push(np.zeros(3), np.zeros((1, 3)))


@pytest.mark.parametrize("cuts", [[], [1], [7, 1000, 1023, 1025], list(range(0, 5000, 499))])
def test_blocks_change_nothing(cuts):
    rng = np.random.default_rng(0)
    reference = rng.standard_normal(5000).astype(np.float32)
    result = reference + 0.01 * rng.standard_normal(5000).astype(np.float32)
    whole, parts = (Comparison(), SpectralDistance(RATE)), (Comparison(), SpectralDistance(RATE))
    for meter in whole:
        meter.push(reference, result)
    for a, b in zip(np.split(reference, cuts), np.split(result, cuts), strict=True):
        for meter in parts:
            meter.push(a, b)
    assert parts[0].difference.snr_db == pytest.approx(whole[0].difference.snr_db, abs=1e-9)
    assert parts[0].difference.cosine == pytest.approx(whole[0].difference.cosine, abs=1e-12)
    assert parts[1].finish() == pytest.approx(whole[1].finish(), rel=1e-12)


def test_magnitude_of_a_full_scale_sine_is_one():
    spectrum = magnitudes(sine(RATE / 64, 1024).astype(np.float64))
    assert spectrum.max() == pytest.approx(1, abs=1e-6)
    assert spectrum.argmax() == 16


def test_mel_filters_are_means_and_cover_every_band():
    filters = mel_filters(RATE)
    assert filters.shape == (MEL_SIZE // 2 + 1, 80)
    np.testing.assert_allclose(filters.sum(axis=0), 1)
    centres = filters.argmax(axis=0)
    assert (np.diff(centres) >= 0).all()


def test_log_mel_distance_of_a_gain_is_its_decibels():
    rng = np.random.default_rng(1)
    reference = (0.1 * rng.standard_normal(MEL_SIZE + 40 * MEL_HOP)).astype(np.float32)
    meter = SpectralDistance(RATE)
    meter.push(reference, reference * np.float32(10 ** (3 / 20)))
    log_mel, multi_scale = meter.finish()
    assert log_mel == pytest.approx(3, abs=1e-4)
    assert multi_scale > math.log(10 ** (3 / 20))  # the logarithmic term alone is that gain
    exact = SpectralDistance(RATE)
    exact.push(reference, reference)
    assert exact.finish() == (0, 0)


@pytest.mark.parametrize("samples", [1, 63, 64, 65, 2047, 2048, 2049])
def test_short_signals_have_finite_distances(samples):
    meter = SpectralDistance(RATE)
    meter.push(sine(300, samples), sine(300, samples, 0.5))
    assert all(math.isfinite(value) for value in meter.finish())
    assert spectrogram(sine(300, samples), RATE, 20).shape == (80, 20)


def quantizer(levels: int = 3, size: int = 8, dim: int = 4, seed: int = 0) -> ResidualQuantizer:
    rng = np.random.default_rng(seed)
    return ResidualQuantizer(None, [rng.standard_normal((size, dim)) / (level + 1) for level in range(levels)])


def encode(quantizer: ResidualQuantizer, vector: np.ndarray, first: int | None = None) -> np.ndarray:
    """Nearest entries level by level in float64; `first` is taken at level 0 whatever is nearest."""
    residual, codes = vector.astype(np.float64), []
    for level, book in enumerate(quantizer.codebooks):
        code = int(((residual - book) ** 2).sum(axis=1).argmin())
        code = first if level == 0 and first is not None else code
        codes.append(code)
        residual = residual - book[code]
    return np.array(codes)


def middle(book: np.ndarray) -> tuple[np.ndarray, int, int]:
    """A point that two entries are equally and most near to, and these entries."""
    for a in range(len(book)):
        for b in range(a):
            point = (book[a] + book[b]) / 2
            order = ((point - book) ** 2).sum(axis=1).argsort()
            if set(order[:2]) == {a, b}:
                return point, int(a), int(b)
    raise AssertionError("no two neighbours")


def test_a_tie_excuses_its_level_and_those_after_it():
    q = quantizer()
    point, a, b = middle(q.codebooks[0])
    reference, got = encode(q, point, a)[:, None], encode(q, point, b)[:, None]
    verdict = judge_codes([q], point[:, None], reference, got)[:, 0]
    assert verdict[0] == TIE
    assert set(verdict[1:]) <= {FOLLOWS, EQUAL}


@pytest.mark.parametrize("distance", [1e-3, 1e-2, 1.0])
def test_what_rounding_cannot_explain_is_no_tie(distance):
    q = quantizer()
    point, a, b = middle(q.codebooks[0])
    point = point + distance * (q.codebooks[0][a] - q.codebooks[0][b])
    reference, got = encode(q, point, a)[:, None], encode(q, point, b)[:, None]
    verdict = judge_codes([q], point[:, None], reference, got)[:, 0]
    assert verdict[0] == DIFFERS
    assert TIE not in verdict


def test_a_far_entry_is_no_tie_even_where_two_near_ones_are():
    q = quantizer()
    point, a, _ = middle(q.codebooks[0])
    far = int(((point - q.codebooks[0]) ** 2).sum(axis=1).argmax())
    verdict = judge_codes([q], point[:, None], encode(q, point, a)[:, None], encode(q, point, far)[:, None])
    assert verdict[0, 0] == DIFFERS


def test_quantisers_are_judged_apart_and_frames_too():
    first, second = quantizer(levels=1), quantizer(levels=2, seed=5)
    point, a, b = middle(first.codebooks[0])
    latents = np.stack([point, point], axis=1)
    right = np.concatenate([[a], encode(second, point)])
    wrong = right.copy()
    wrong[0] = b
    wrong[2] = (right[2] + 1) % 8  # in the second quantiser: nothing excuses it
    verdict = judge_codes([first, second], latents, np.stack([right, right], 1), np.stack([right, wrong], 1))
    assert verdict[:, 0].tolist() == [EQUAL] * 3
    assert verdict[0, 1] == TIE
    assert verdict[2, 1] == DIFFERS


def test_agreement_counts():
    agreement = Agreement()
    agreement.push(np.array([[EQUAL, EQUAL, TIE], [EQUAL, DIFFERS, FOLLOWS]], np.uint8))
    agreement.push(np.array([[EQUAL], [EQUAL]], np.uint8))
    assert (agreement.codes, agreement.ties, agreement.follow, agreement.differ) == (8, 1, 1, 1)
    assert agreement.equal == pytest.approx(5 / 8)
    assert agreement.apart_from_ties == pytest.approx(5 / 6)
    assert agreement.per_codebook == [0.75, 0.5]
