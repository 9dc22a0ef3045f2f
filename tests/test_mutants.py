"""Broken variants (`mutants`) are seen by the check that should see them, at their place; right ones are not."""

from __future__ import annotations

import mutants
import pytest
from mutants import CLIP, MUTANTS, VARIANTS, Judge, make, make_variants, trace_all

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
def test_all_are_seen_and_right_ones_pass(variants, reference, tiny_checkpoint, tmp_path):
    judge = Judge(reference, trace_all(tiny_checkpoint, variants, tmp_path))
    assert {name: judge.first(variants[name]) for name in VARIANTS} == dict.fromkeys(VARIANTS)
    found = mutants.run_all(tiny_checkpoint, variants["fp32"].parent)
    wrong = [(mutant.title, check) for mutant, check in found if not mutant.seen(check)]
    assert wrong == []
