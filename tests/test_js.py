"""The npm package `mimi-onnx`: its own tests in Node, against codes of the Python runtime."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import soundfile
from conftest import REPOSITORY
from filelock import FileLock
from node_tools import need_node, run_node

from mimi_export.cli import main
from mimi_export.media.signals import speech_like

PACKAGE = REPOSITORY / "js"


@pytest.fixture(scope="session")
def variants(tiny_variant, shared_folder) -> Path:
    """Variants of both layouts and all precisions, clips, and the codes that Python gives for each."""
    root = shared_folder / "js"
    with FileLock(f"{root}.lock"):  # another worker, or another module with this fixture, may be making it
        if not root.exists():
            made = root.with_suffix(".part")
            shutil.copytree(tiny_variant(8), made / "window")
            shutil.copytree(tiny_variant(8, "ring", 2), made / "ring")
            for precision in ("fp16", "int8"):
                assert main(["convert", precision, str(made / "window"), str(made / precision)]) == 0
            soundfile.write(made / "made.wav", speech_like(5.03, 11), 24000, subtype="FLOAT")
            for name in ("window", "ring", "fp16", "int8"):
                encode(made, name, "made")
            made.rename(root)
    return root


def encode(root, variant, clip):
    arguments = [root / f"{clip}.wav", root / f"{variant}.{clip}.safetensors", "--variant", root / variant]
    assert main(["encode", *map(str, arguments)]) == 0


@pytest.fixture(scope="session")
def built() -> None:
    need_node("typescript", "onnxruntime-node", folder=PACKAGE)
    run_node(PACKAGE / "node_modules" / "typescript" / "bin" / "tsc", "-p", "src", cwd=PACKAGE)


def run_tests(root):
    tests = sorted(PACKAGE.glob("test/[fs]*.test.js"))
    environment = os.environ | {"MIMI_VARIANTS": str(root)}
    run = subprocess.run(
        ["node", "--test", *map(str, tests)], cwd=PACKAGE, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr
    return int(re.search(r"(?:#|ℹ) pass (\d+)", run.stdout)[1])


def test_own_tests(built, variants):
    passed = run_tests(variants)
    assert passed >= 17


@pytest.mark.slow
def test_jfk_and_the_demo(built, jfk, tmp_path):
    """Real speech through trained weights, in both layouts and all precisions."""
    for layout in ("window", "ring"):
        assert main(["export", "--model", "demo", "--kv-cache", layout, "--output-dir", str(tmp_path / layout)]) == 0
        for precision in ("fp16", "int8"):
            assert main(["convert", precision, str(tmp_path / layout), str(tmp_path / f"{layout}-{precision}")]) == 0
    soundfile.write(tmp_path / "jfk.wav", jfk, 24000, subtype="FLOAT")
    for manifest in sorted(tmp_path.glob("*/manifest.json")):
        encode(tmp_path, manifest.parent.name, "jfk")
    run_tests(tmp_path)


def test_what_is_packed(built):
    """Code, types, the licence and the documents; no test, no page, no source."""
    listed = subprocess.run(
        ["npm", "pack", "--dry-run", "--json", "--ignore-scripts"],
        cwd=PACKAGE,
        capture_output=True,
        text=True,
        check=True,
    )
    files = {entry["path"] for entry in json.loads(listed.stdout)[0]["files"]}
    assert {"README.md", "LICENSE", "package.json", "dist/node.js", "dist/browser.js", "dist/worker.js"} <= files
    assert all(re.fullmatch(r"(README.md|LICENSE|package.json|dist/[a-z]+\.(js|d\.ts))", name) for name in files), files
