"""Situations that no clip brings: right graphs pass in each of them, and mutants are named by situation and place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mutations import (
    broken,
    picked,
    through,
    times,
)

from mimi_export.contract.directory import load_artifact
from mimi_export.contract.precision import Fp16Options, Int8Options
from mimi_export.errors import ConfigError
from mimi_export.export.convert import convert
from mimi_export.media.signals import speech_like
from mimi_export.parity.checks import DEFAULT_BUDGETS, judge
from mimi_export.parity.clips import Clip
from mimi_export.parity.examine import read_files, run_situations
from mimi_export.parity.measure import measure
from mimi_export.parity.reference import Reference
from mimi_export.parity.situations import AGES, older

CLIP = Clip("speech", speech_like(2.0, 1))


@pytest.fixture(scope="module")
def variants(tiny_variant, tmp_path_factory) -> dict[str, Path]:
    """One variant of each precision, by name; `books` is a ring with 8-bit codebooks."""
    folder = tmp_path_factory.mktemp("situations")
    found = {"fp32": tiny_variant(8), "ring": tiny_variant(8, "ring", 2)}
    books = Int8Options(round_codebooks=True)
    for name, option in (("fp16", Fp16Options()), ("int8", Int8Options()), ("books", books)):
        convert(found["ring" if name == "books" else "fp32"], folder / name, option)
        found[name] = folder / name
    return found


@pytest.fixture(scope="module")
def reference(tiny_checkpoint):
    with Reference(tiny_checkpoint, [8], lambda text: None) as reference:
        yield reference


def failures(path: Path, reference: Reference) -> list[str]:
    files = read_files(load_artifact(path), reference.checkpoint)
    outcomes = run_situations(files, reference, reference.clip(CLIP))
    return [f"{outcome.metric}: {outcome.where}" for outcome in outcomes if not outcome.passed]


@pytest.mark.parametrize("name", ["fp32", "ring", "fp16", "int8", "books"])
def test_right_graphs_pass(variants, reference, name):
    assert failures(variants[name], reference) == []


def test_graphs_run_on_the_provider(variants, reference):
    files = read_files(load_artifact(variants["fp32"]), reference.checkpoint)
    with pytest.raises(ConfigError, match="no abacus here"):
        run_situations(files, reference, reference.clip(CLIP), "abacus")


@pytest.mark.parametrize(
    ("mutation", "where"),
    [
        (through("audio_codes", times(0)), "codebook"),
        (through("audio_codes", picked(1, [0, 1, 2, 3, 5, 4, 6, 7])), "most in codebook 4"),
    ],
)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_budgets_judge_the_codes(variants, reference, tmp_path, precision, mutation, where):
    """A graph whose every code is 0, or whose levels are swapped, has the latents of a right one."""
    path = broken(variants[precision], tmp_path / "broken", "encoder", mutation)
    report = measure(path, reference.checkpoint, [CLIP], (1,), lambda text: None, reference)
    missed = {check.metric: check for check in judge(report, DEFAULT_BUDGETS[precision]) if not check.passed}
    assert {"search_agreement_percent", "codebook_agreement_percent"} <= set(missed)
    assert "latent_snr_db" not in missed
    assert where in missed["search_agreement_percent"].where


def test_states_grow_older_by_turning_keys_and_moving_slots():
    """`position` tokens later the newest key lies that many slots further and is turned by as many steps."""
    quarter = 2**30  # of a turn
    states = {
        "position": np.array([[20]]),
        "key_0": np.zeros((1, 1, 8, 2), np.float32),
        "value_0": np.zeros((1, 1, 8, 2), np.float32),
    }
    states["key_0"][0, 0, 3] = [1, 0]
    states["value_0"][0, 0, 3] = [1, 2]
    aged = older(states, [9], [quarter])
    assert aged["position"].tolist() == [[29]]
    np.testing.assert_allclose(aged["key_0"][0, 0, 4], [0, 1], atol=1e-7)  # 9 quarters
    assert aged["value_0"][0, 0, 4].tolist() == [1, 2]
    assert all(age < 2**31 for age in AGES)
