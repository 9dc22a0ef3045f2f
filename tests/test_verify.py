"""`verify` and the golden clip: what a user without PyTorch runs after downloading."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from mutations import broken, lose_state, swap_states
from safetensors.numpy import load_file, save_file

from mimi_export.cli import main
from mimi_export.contract.directory import load_artifact, write_manifest
from mimi_export.runtime.golden import GOLDEN_NAME, replay_golden

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
    assert "NOT as it was made" in shown.out
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
