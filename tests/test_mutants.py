"""Broken variants (`mutants`) are seen by the check that should see them, at their place; right ones are not."""

from __future__ import annotations

import mutants
import pytest
from mutants import CLIP, MUTANTS, VARIANTS, Judge, make, make_variants, trace_all

from mimi_export.contract.directory import load_artifact
from mimi_export.media.signals import speech_like
from mimi_export.model.checkpoint import load_checkpoint
from mimi_export.model.synthetic import synthetic_config, synthetic_model
from mimi_export.parity.clips import Clip
from mimi_export.parity.examine import read_files, run_situations
from mimi_export.parity.reference import Reference

SOME = [mutant for mutant in MUTANTS if mutant.check not in ("", "structure_faults")][::7]


@pytest.fixture(scope="module")
def variants(tiny_variant, tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutants")
    (folder / "fp32").symlink_to(tiny_variant(8))
    (folder / "ring").symlink_to(tiny_variant(8, "ring", 2))
    return make_variants(tiny_checkpoint, folder)


@pytest.fixture(scope="module")
def reference(tiny_checkpoint):
    with Reference(tiny_checkpoint, [8], lambda text: None) as reference:
        reference.clip(CLIP)
        yield reference


@pytest.mark.parametrize("mutant", SOME, ids=lambda mutant: mutant.title)
def test_some_are_seen(variants, reference, tmp_path, mutant):
    check = Judge(reference, {}).first(make(mutant, variants, tmp_path / "broken"))
    assert mutant.seen(check), check


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_are_seen_and_right_ones_pass(variants, reference, tiny_checkpoint, tmp_path):
    judge = Judge(reference, trace_all(tiny_checkpoint, variants, tmp_path))
    assert {name: judge.first(variants[name]) for name in VARIANTS} == dict.fromkeys(VARIANTS)
    found = mutants.run_all(tiny_checkpoint, variants["fp32"].parent)
    wrong = [(mutant.title, check) for mutant, check in found if not mutant.seen(check)]
    assert wrong == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("seed", "seconds", "ways"),
    [(101, 1.3, (1,)), (102, 2.9, (5, "mixed")), (103, 4.1, (2, 7)), (104, 0.5, (3,))],
)
def test_no_false_alarm(seed, seconds, ways, tmp_path):
    """20 runs in all: other weights, another sound, other calls, every kind of variant."""
    synthetic_model(synthetic_config("synthetic:tiny"), seed).save_pretrained(tmp_path / "checkpoint")
    checkpoint = load_checkpoint(str(tmp_path / "checkpoint"))
    variants = make_variants(checkpoint, tmp_path)
    with Reference(checkpoint, [8], lambda text: None) as reference:
        judge = Judge(reference, {}, Clip("speech", speech_like(seconds, seed)), ways)
        assert {name: judge.first(variants[name]) for name in VARIANTS} == dict.fromkeys(VARIANTS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_false_alarm_with_trained_weights(tmp_path):
    """Among the sounds are those to which these weights answer a rounding of activations with 20 % of the latents."""
    checkpoint = load_checkpoint("demo")
    variants = make_variants(checkpoint, tmp_path)
    with Reference(checkpoint, [8], lambda text: None) as reference:
        judge = Judge(reference, {}, Clip("speech", speech_like(3.3, 105)), (4, 13))
        assert {name: judge.first(variants[name]) for name in VARIANTS} == dict.fromkeys(VARIANTS)
        for name in ("int8", "books"):
            files = read_files(load_artifact(variants[name]), checkpoint)
            for seed in (106, 107, 228, 231, 249, 252, 260, 265):
                clip = reference.clip(Clip("speech", speech_like(1 + seed % 4 * 0.7, seed)))
                assert [outcome for outcome in run_situations(files, reference, clip) if not outcome.passed] == []
