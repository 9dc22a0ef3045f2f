"""The audit of a variant's files: right ones pass, and every defect that no clip would show is named."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from mutations import (
    broken,
)

from mimi_export.contract.directory import load_artifact, write_manifest
from mimi_export.contract.precision import Fp16Options, Int8Options
from mimi_export.contract.spec import GRAPH_KINDS
from mimi_export.export.convert import convert
from mimi_export.parity.audit import audit_files, audit_weights, load_model
from mimi_export.parity.stored import StoredWeight, step_functions, stored_quantizers


@pytest.fixture(scope="module")
def variants(tiny_variant, tmp_path_factory) -> dict[str, Path]:
    """One variant of each precision, by name."""
    folder = tmp_path_factory.mktemp("audited")
    found = {"fp32": tiny_variant(8), "ring": tiny_variant(8, "ring", 2)}
    options = {
        "fp16": Fp16Options(),
        "int8": Int8Options(),
        "books": Int8Options(round_codebooks=True),
    }
    for name, option in options.items():
        convert(found["fp32"], folder / name, option)
        found[name] = folder / name
    return found


def faults(path: Path, checkpoint) -> list[str]:
    artifact = load_artifact(path)
    models = {kind: load_model(artifact, kind) for kind in GRAPH_KINDS}
    found = audit_files(artifact, models)
    for kind in GRAPH_KINDS:
        found += audit_weights(artifact, kind, models[kind], step_functions(checkpoint, artifact.spec(kind)))
    return found


@pytest.mark.parametrize("name", ["fp32", "ring", "fp16", "int8", "books"])
def test_right_files_have_no_fault(variants, tiny_checkpoint, name):
    assert faults(variants[name], tiny_checkpoint) == []


def with_manifest(variant: Path, target: Path, **changes: object) -> Path:
    """A copy whose manifest says something else than its graphs."""
    path = broken(variant, target, "encoder", lambda model: None)
    write_manifest(path, dataclasses.replace(load_artifact(path).manifest, **changes))
    return path


def test_a_manifest_must_say_what_the_graphs_are(variants, tiny_checkpoint, tmp_path):
    found = faults(with_manifest(variants["fp32"], tmp_path / "a", precision="int8"), tiny_checkpoint)
    assert "metadata precision is 'fp32', the manifest says 'int8'" in found[0]
    assert any("no weight is stored as int8" in fault for fault in found)
    found = faults(with_manifest(variants["fp32"], tmp_path / "b", precision="fp8"), tiny_checkpoint)
    assert found[0] == "manifest: precision 'fp8' is none of fp32, fp16, int8"


def test_a_foreign_operator_set_is_named(variants, tiny_checkpoint, tmp_path):
    path = broken(
        variants["fp32"], tmp_path / "c", "decoder", lambda model: model.opset_imports.update({"com.microsoft": 1})
    )
    (found,) = faults(path, tiny_checkpoint)
    assert found.startswith("decoder: operator sets")


def test_another_checkpoint_is_seen_at_once(variants, tiny_checkpoint, tmp_path):
    """The audit knows the reference's weights, not only their sizes."""
    begin = time.perf_counter()
    kind = "encoder"
    artifact = load_artifact(variants["fp32"])
    module = step_functions(tiny_checkpoint, artifact.spec(kind))
    module.layers[1].fc1.data[0, 0] *= 1.001
    (found,) = audit_weights(artifact, kind, onnx.load(artifact.graph_path(kind)), module)
    assert found.startswith("encoder: layers.1.fc1 is ")
    assert found.endswith("(1 of 2048 differ)")
    assert time.perf_counter() - begin < 5


def test_an_encoder_with_a_gap_in_its_codebooks_has_no_quantiser():
    book = StoredWeight("float32", np.ones((4, 2), np.float32))
    weights = {f"{half}.codebooks.{level}": book for half, level in (("semantic", 0), ("acoustic", 0), ("acoustic", 2))}
    assert stored_quantizers(weights) == []
    weights["acoustic.codebooks.1"] = book
    assert len(stored_quantizers(weights)) == 2
