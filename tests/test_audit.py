"""The audit of a variant's files: right ones pass, and every defect that no clip would show is named."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from mutations import (
    Mutation,
    attribute,
    broken,
    change_weight,
    clipped,
    extra_input,
    half_softmax,
    other_outputs,
    scaled,
    search_other_entries,
    swapped_rows,
    through,
    unused_input,
)

from mimi_export.contract.directory import load_artifact, write_manifest
from mimi_export.contract.precision import Fp16Options, Int8Options
from mimi_export.contract.spec import GRAPH_KINDS
from mimi_export.export.convert import convert
from mimi_export.parity.audit import audit_files, audit_weights, load_model
from mimi_export.parity.stored import step_functions


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


def entry_zeroed(array: np.ndarray) -> np.ndarray:
    array[17] = 0
    return array


def other_precision(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16).astype(np.float32)


def one_code(array: np.ndarray) -> np.ndarray:
    array[0, 9] ^= 64
    return array


BOOK, FC1, FC2 = "acoustic.codebooks.2", "layers.1.fc1", "layers.0.fc2"
WITHOUT_ENTRY = change_weight(BOOK, entry_zeroed)
TABLE = change_weight("acoustic.table", entry_zeroed)
NO_LENGTH = change_weight("acoustic.offsets.1", np.zeros_like)
OTHER_SEARCH = search_other_entries("acoustic.codebooks.1")
TANH = attribute("Gelu", approximate="tanh")
MUTANTS: list[tuple[str, str, str, Mutation, str]] = [
    ("entry zeroed", "fp32", "encoder", WITHOUT_ENTRY, f"{BOOK} is 0"),
    ("entry zeroed", "fp16", "encoder", WITHOUT_ENTRY, f"{BOOK} is 0"),
    ("entry zeroed", "int8", "encoder", WITHOUT_ENTRY, f"{BOOK} is 0"),
    ("entry of a table", "fp32", "decoder", TABLE, "acoustic.table is 0 at [17, 0]"),
    ("entry of a table", "fp16", "decoder", TABLE, "acoustic.table is 0 at [17, 0]"),
    ("entries swapped", "fp32", "encoder", change_weight(BOOK, swapped_rows(1, 2)), f"{BOOK} is"),
    ("swapped in the search", "fp32", "encoder", OTHER_SEARCH, "mutation_book [64, 16]"),
    ("swapped in the search", "fp16", "encoder", OTHER_SEARCH, "mutation_book [64, 16]"),
    ("no length", "fp16", "encoder", NO_LENGTH, "acoustic.offsets.1 is 0"),
    ("no length", "int8", "encoder", NO_LENGTH, "acoustic.offsets.1 is not half"),
    ("tanh GELU", "fp32", "encoder", TANH, "Gelu is approximated by tanh"),
    ("tanh GELU", "fp16", "decoder", TANH, "Gelu is approximated by tanh"),
    ("tanh GELU", "int8", "encoder", TANH, "Gelu is approximated by tanh"),
    ("epsilon", "fp16", "encoder", attribute("LayerNormalization", epsilon=1e-3), "epsilon of LayerNormalization"),
    ("half softmax", "fp32", "encoder", half_softmax, "rounded to FLOAT16"),
    ("half softmax", "fp16", "decoder", half_softmax, "rounded to FLOAT16"),
    ("half weight", "fp32", "encoder", change_weight("semantic.projection", other_precision), "semantic.projection is"),
    (
        "one scale",
        "int8",
        "decoder",
        change_weight(f"{FC1}.scales", scaled(7, 1.02)),
        f"{FC1} has the scale of output 7",
    ),
    (
        "all scales",
        "int8",
        "decoder",
        change_weight(f"{FC1}.scales", scaled(slice(None), 1.02)),
        f"{FC1} has the scale",
    ),
    (
        "one scale",
        "int8",
        "encoder",
        change_weight(f"{FC2}.scales", scaled(3, 0.98)),
        f"{FC2} has the scale of output 3",
    ),
    ("one scale", "books", "encoder", change_weight(f"{BOOK}.scales", scaled(3, 1.02)), f"{BOOK} is"),
    ("a code", "int8", "encoder", change_weight("layers.0.fc2", one_code), "steps off at [0, 9]"),
    ("a bias", "fp32", "encoder", change_weight("convs.enc_0.bias", np.zeros_like), "convs.enc_0.bias is 0"),
    ("clipped", "fp32", "decoder", through("audio_values", clipped(-1, 1)), "Clip between two bounds"),
    ("extra input", "fp32", "decoder", extra_input, "is gain, expected nothing"),
    ("unused input", "fp32", "encoder", unused_input, "input past_key_1 is not used"),
    ("other order", "fp32", "encoder", other_outputs, "is present_key_1, expected present_key_0"),
]


@pytest.mark.parametrize(
    ("name", "kind", "mutation", "named"), [pytest.param(*m[1:], id=f"{m[1]} {m[2]}, {m[0]}") for m in MUTANTS]
)
def test_every_defect_is_named(variants, tiny_checkpoint, tmp_path, name, kind, mutation, named):
    found = faults(broken(variants[name], tmp_path / "broken", kind, mutation), tiny_checkpoint)
    assert found, "nothing was seen"
    assert named in found[0]
    assert found[0].startswith(kind)


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
