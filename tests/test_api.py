"""The package's own face: quick to import, typed, and the same work as the command line's."""

import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import REPOSITORY

import mimi_export
from mimi_export.cli import main
from mimi_export.contract.directory import load_artifact
from mimi_export.contract.precision import Int8Options
from mimi_export.errors import ConfigError
from mimi_export.media.signals import speech_like
from mimi_export.runtime import Codec


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=REPOSITORY, check=True)


def test_importing_it_imports_nothing_else():
    program = "import sys, typing, __future__ as f; a = {*sys.modules}; import mimi_export; print({*sys.modules} - a)"
    assert run("-c", program).stdout == "{'mimi_export'}\n"


def test_names():
    assert {*mimi_export.__all__, "__version__"} <= {*dir(mimi_export)}
    for name in mimi_export.__all__:
        assert getattr(mimi_export, name).__doc__
    assert mimi_export.Codec is Codec
    with pytest.raises(AttributeError, match="has no attribute 'lead'"):
        mimi_export.lead  # noqa: B018 - asking is the test


def test_as_a_program():
    assert run("-m", "mimi_export", "--version").stdout == f"mimi-export {mimi_export.__version__}\n"


def test_load_and_verify(tiny_variant):
    codec = mimi_export.load(tiny_variant(8, "ring", 1), provider="CPU")
    assert isinstance(codec, mimi_export.Codec)
    assert mimi_export.verify(tiny_variant(8, "ring", 1)).passed
    pool = mimi_export.StreamPool(codec.encoder, 4)
    stream = pool.open()
    stream.push(np.zeros(1000, np.float32))
    encoder = codec.encoder.stream(batch=2)
    encoder.push(np.zeros((2, 2000), np.float32))
    for thing, words in (
        (codec, r"<codec \S+: fp32, 8 codebooks, 0.6 kbit/s, ring, from synthetic:tiny>"),
        (codec.decoder, r"<decoder of \S+, not loaded yet>"),
        (codec.encoder.graph, r"<encoder graph '\S+encoder_model.onnx' on CPU>"),
        (encoder, "<encoder stream, 2 rows: 2000 samples so far, 80 buffered>"),
        (pool, "<pool of encoder streams: 1 of 4 rows taken>"),
        (stream, "<stream in row 0: 1000 buffered, 1920 for a call>"),
    ):
        assert re.fullmatch(words, repr(thing)), repr(thing)
    encoder.flush()
    stream.close()
    assert repr(encoder).endswith(", ended>")
    assert repr(stream) == "<stream in row 0: closed>"


@pytest.mark.parametrize(
    "call", ["export_variant('demo', 'x')", "convert_variant('a', 'b', 'int8')", "check_parity('a')"]
)
def test_what_needs_pytorch_says_so(call):
    """With the packages of the base install alone."""
    program = (
        "import sys, mimi_export; "
        "sys.modules |= dict.fromkeys(('torch', 'onnx', 'onnx_ir', 'onnxscript', 'transformers')); "
        f"from mimi_export.errors import MissingPackageError\ntry: mimi_export.{call}\n"
        "except MissingPackageError as error: print(error)"
    )
    words = rf"{call.partition('(')[0]} needs the export extra \(\w+ is not installed\): pip install .*export\]'\n"
    assert re.fullmatch(words, run("-c", program).stdout)


@pytest.mark.export
def test_export_and_convert_are_those_of_the_command_line(tmp_path):
    """Byte for byte."""
    made = mimi_export.export_variant("synthetic:tiny", tmp_path / "a", 4, layout="ring", rows=2, name="same")
    assert (made.shape.num_codebooks, made.shape.frames_per_call, made.shape.rows) == (4, 1, 2)
    arguments = [
        "--num-codebooks",
        "4",
        "--kv-cache",
        "ring",
        "--rows",
        "2",
        "--output-dir",
        str(tmp_path / "b"),
        "--name",
        "same",
    ]
    assert main(["export", "--model", "synthetic:tiny", *arguments]) == 0
    assert load_artifact(tmp_path / "a").manifest.files == load_artifact(tmp_path / "b").manifest.files
    converted = mimi_export.convert_variant(tmp_path / "a", tmp_path / "c", Int8Options(round_codebooks=True), name="x")
    assert (converted.name, converted.precision) == ("x", "int8")
    assert main(["convert", "int8", str(tmp_path / "a"), str(tmp_path / "d"), "--round-codebooks", "--name", "x"]) == 0
    assert load_artifact(tmp_path / "d").manifest.files == converted.files
    with pytest.raises(ConfigError, match="there is no precision 'int4', expected fp16 or int8"):
        mimi_export.convert_variant(tmp_path / "a", tmp_path / "e", "int4")


def test_parity(tmp_path, tiny_variant):
    soundfile.write(tmp_path / "in.wav", speech_like(1.0), 24000)
    run = mimi_export.check_parity(tiny_variant(), audio=[tmp_path / "in.wav"], depth="quick")
    assert [report.name for report in run.reports] == [load_artifact(tiny_variant()).manifest.name]
    assert not run.not_measured
