"""`verify` and the golden clip: what a user without PyTorch runs after downloading."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from conftest import REPOSITORY
from mutations import broken, lose_state, swap_states
from safetensors.numpy import load_file, save_file

from mimi_export.cli import main
from mimi_export.contract.directory import load_artifact, write_manifest
from mimi_export.contract.precision import Fp16Options, Int8Options
from mimi_export.contract.spec import GRAPH_KINDS
from mimi_export.export.convert import convert
from mimi_export.media.signals import speech_like
from mimi_export.runtime.codec import Codec
from mimi_export.runtime.golden import least, replay_golden
from mimi_export.runtime.replay import GOLDEN_NAME

NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "transformers", "onnxscript", "onnx_ir"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
from mimi_export.cli import main
sys.exit(main(["verify", sys.argv[1], "--json"]))
"""


@pytest.mark.parametrize(("layout", "frames_per_call"), [("window", None), ("ring", 2)])
def test_a_fresh_variant_is_as_it_was_made(tiny_variant, layout, frames_per_call, capsys):
    assert main(["verify", str(tiny_variant(8, layout, frames_per_call))]) == 0
    assert "as it was made" in capsys.readouterr().out
    result = replay_golden(load_artifact(tiny_variant(8, layout, frames_per_call)))
    assert result.codes_equal == 1
    assert result.frames >= 37


def test_golden_clip_is_small_and_alive(tiny_variant):
    path = tiny_variant(8) / GOLDEN_NAME
    golden = load_file(path)
    assert path.stat().st_size < 2**19
    assert golden["codes"].shape == (8, 38)
    assert all(len(np.unique(row)) > 5 for row in golden["codes"])
    assert golden["decoded"].std() > 0.01


def test_needs_neither_torch_nor_onnx(tiny_variant):
    run = subprocess.run(
        [sys.executable, "-c", NO_TORCH, str(tiny_variant(8))], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["passed"] is True


@pytest.mark.parametrize(
    ("kind", "mutation"), [("encoder", lose_state("conv_enc_12_state")), ("decoder", swap_states("key_0", "value_0"))]
)
def test_a_graph_that_computes_something_else_is_found(tiny_variant, tmp_path, kind, mutation, capsys):
    directory = broken(tiny_variant(8), tmp_path / "broken", kind, mutation)
    assert main(["verify", str(directory)]) == 1
    shown = capsys.readouterr()
    assert "NOT as it should be" in shown.out
    assert "does not compute here what it should" in shown.err


def test_changed_missing_and_misfit_files(tiny_variant, tmp_path, capsys):
    variant = tiny_variant(8)
    changed = shutil.copytree(variant, tmp_path / "changed")
    data = bytearray((changed / "encoder_model.onnx").read_bytes())
    data[-100] ^= 1
    (changed / "encoder_model.onnx").write_bytes(data)

    old = shutil.copytree(variant, tmp_path / "old")
    (old / GOLDEN_NAME).unlink()
    write_manifest(old, load_artifact_without_files(old))

    misfit = shutil.copytree(variant, tmp_path / "misfit")
    golden = load_file(misfit / GOLDEN_NAME)
    save_file({**golden, "codes": golden["codes"][:4]}, misfit / GOLDEN_NAME)
    write_manifest(misfit, load_artifact_without_files(misfit))

    damaged = shutil.copytree(variant, tmp_path / "damaged")
    (damaged / GOLDEN_NAME).write_bytes(b"no tensors")
    write_manifest(damaged, load_artifact_without_files(damaged))

    for directory, words in (
        (changed, "was changed"),
        (old, "no golden clip"),
        (misfit, "does not fit the variant"),
        (damaged, "is damaged"),
        (tmp_path / "nothing", "there is no directory"),
    ):
        assert main(["verify", str(directory)]) == 5
        assert words in capsys.readouterr().err


def load_artifact_without_files(directory):
    from mimi_export.contract.manifest import parse_manifest

    path = directory / "manifest.json"
    return parse_manifest(json.loads(path.read_text()), path)


# --- conversions are judged by what fp32 gives


@pytest.fixture(scope="module")
def converted(tiny_variant, tmp_path_factory):
    """Conversions of both precisions, made once."""
    folder = tmp_path_factory.mktemp("converted")
    for name, options in {"fp16": Fp16Options(), "int8": Int8Options()}.items():
        convert(tiny_variant(8), folder / name, options)
    return folder


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_a_conversion_has_the_golden_clip_of_its_parent(converted, tiny_variant, name, capsys):
    assert (converted / name / GOLDEN_NAME).read_bytes() == (tiny_variant(8) / GOLDEN_NAME).read_bytes()
    assert main(["verify", str(converted / name), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["recorded_from"] == load_artifact(tiny_variant(8)).manifest.name
    assert result["codes_equal_percent"] > 80
    assert 30 < result["snr_db"] < 80, "it is no copy of fp32, and near to it"


def test_a_parent_with_an_older_clip_is_run_again(tiny_variant, tmp_path):
    old = shutil.copytree(tiny_variant(8), tmp_path / "old")
    save_file(load_file(old / GOLDEN_NAME), old / GOLDEN_NAME)  # without saying where it is from
    write_manifest(old, load_artifact_without_files(old))
    assert replay_golden(load_artifact(old)).recorded_from is None
    convert(old, tmp_path / "new", Fp16Options())
    assert replay_golden(load_artifact(tmp_path / "new")).recorded_from == load_artifact(old).manifest.name


def test_a_graph_that_saturates_everywhere_alike_is_found(converted, tiny_variant, tmp_path, capsys, monkeypatch):
    """As int8 on a processor that it is not for: files unchanged, the clip made elsewhere; the cause is named."""
    bad = shutil.copytree(converted / "int8", tmp_path / "bad")
    for kind in GRAPH_KINDS:
        model = ir.load(bad / f"{kind}_model.onnx")
        for name, value in model.graph.initializers.items():
            array = value.const_value.numpy()
            if array.dtype in (np.int8, np.uint8) and array.ndim == 2:
                value.const_value = ir.tensor(np.roll(array, 1, axis=0), name=name)
        ir.save(model, bad / f"{kind}_model.onnx")
    write_manifest(bad, load_artifact_without_files(bad))
    for has, words in (("avx2", ("(avx2)", "no VNNI", "fp32 or fp16")), ("avx-vnni", ("computes it wrongly",))):
        monkeypatch.setattr("mimi_export.runtime.replay.instruction_set", lambda has=has: has)
        assert main(["verify", str(bad)]) == 1
        shown = capsys.readouterr()
        assert "NOT as it should be" in shown.out
        for word in ("encoder_model.onnx", "decoder_model.onnx", ort.__version__, *words):
            assert word in shown.err


def test_only_a_graph_that_may_saturate_runs_on_unsigned_weights(converted, tmp_path):
    """Making them unsigned is right everywhere, and slow on processors with AMX."""
    other = shutil.copytree(converted / "int8", tmp_path / "other")
    model = ir.load(other / "encoder_model.onnx")
    model.graph.initializers["integer_matmuls.step"].const_value = ir.tensor(np.float32(1 / 127))
    ir.save(model, other / "encoder_model.onnx")
    write_manifest(other, load_artifact_without_files(other))
    found = []
    for directory in (converted / "int8", other):
        options = Codec(load_artifact(directory)).encoder.graph.session.get_session_options()
        try:
            found.append(options.get_session_config_entry("session.x64quantprecision"))
        except RuntimeError:  # not set
            found.append("0")
    assert found == ["0", "1"]
    audio = speech_like(0.8)
    plain, prepared = (
        Codec(load_artifact(other), prepared=folder).encoder.stream().push(audio)
        for folder in (None, tmp_path / "kept")
    )
    np.testing.assert_array_equal(plain, prepared)


@pytest.mark.parametrize(
    ("name", "precision", "wanted"),
    [("streaming-8cb", "fp32", 80), ("streaming-8cb-int8", "int8", 37), ("streaming-8cb-fp16", "fp16", 57),
     ("my own", "int8", 20), ("streaming-8cb", "int8", 20)],
)  # fmt: skip
def test_the_recipe_says_what_is_good_enough(tiny_variant, name, precision, wanted, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    manifest = load_artifact(tiny_variant(8)).manifest
    assert least(dataclasses.replace(manifest, name=name, precision=precision))[1] == wanted
