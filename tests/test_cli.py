"""The command line as its users meet it: results, JSON, exit codes, and bad input of every kind."""

import errno
import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import soundfile
import typer
from helpers import write_codes

from mimi_export import __version__
from mimi_export.cli import app, main, transcode
from mimi_export.cli import inspect as inspect_command
from mimi_export.cli.console import Steps
from mimi_export.cli.errors import exit_codes
from mimi_export.contract.directory import load_artifact, write_manifest
from mimi_export.media.audio import read_audio
from mimi_export.media.codes import CodesMetadata, read_codes
from mimi_export.media.signals import speech_like
from mimi_export.runtime import load

REPOSITORY = Path(__file__).parent.parent
SAMPLES = 30 * 1920 + 700  # ends within a frame
LAYOUTS = [("window", None), ("ring", 2)]


@pytest.fixture
def fails(cli, tmp_path):
    """`fails(code, words, *command)`: the command ends so, with one line that has the words, and leaves no file."""

    def run(code, words, *command):
        before = tree(tmp_path)
        found, out, err = cli(*command)
        lines = [line for line in err.splitlines() if not re.match(r"\[ *\d+\.\d s\] ", line)]
        assert found == code, err
        assert out == ""
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        assert all(word in lines[0] for word in words), lines[0]
        assert tree(tmp_path) == before

    return run


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, hidden ones too, with its content."""
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def speech(directory: Path, samples: int = SAMPLES, **options) -> Path:
    path = directory / "in.wav"
    soundfile.write(path, speech_like(samples / 24000), 24000, **options)
    return path


def program(*arguments, check=None, **options):
    """The same in a process of its own; waits for it and gives what `subprocess.run` does."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "mimi_export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, **options)


# --- what is asked for is done


@pytest.mark.parametrize(("layout", "frames_per_call"), LAYOUTS)
@pytest.mark.parametrize("extension", ["safetensors", "npz"])
def test_encode_and_decode_equal_the_runtime(cli, tmp_path, tiny_variant, layout, frames_per_call, extension):
    variant = tiny_variant(8, layout, frames_per_call)
    audio, codes, decoded = speech(tmp_path), tmp_path / f"c.{extension}", tmp_path / "out.wav"
    assert cli("encode", audio, codes, "--variant", variant)[0] == 0
    codec = load(variant)
    stream = codec.encoder.stream()
    wanted = np.concatenate([stream.push(read_audio(audio)), stream.flush().codes], axis=2)
    file = read_codes(codes)
    np.testing.assert_array_equal(file.codes, wanted)
    assert file.codes.shape == (1, 8, 31)
    assert file.metadata == CodesMetadata(24000, 1920, SAMPLES, "synthetic:tiny")

    assert cli("decode", codes, decoded, "--variant", variant, "--subtype", "float")[0] == 0
    decoder = codec.decoder.stream()
    samples = np.concatenate([decoder.push(wanted), decoder.flush()], axis=1)[0, :SAMPLES]
    found = read_audio(decoded)
    # calls of 31 frames here and of up to 32 there: the same sums
    np.testing.assert_array_equal(found, samples)
    assert np.abs(found).max() > 0.01

    both = tmp_path / "both.wav"
    assert cli("roundtrip", audio, both, "--variant", variant, "--subtype", "float")[0] == 0
    # one call per block of the file there: the sums differ in their order
    np.testing.assert_allclose(read_audio(both), samples, atol=1e-5)


def test_any_audio_is_resampled_and_mixed(cli, tmp_path, tiny_variant):
    path, codes = tmp_path / "in.flac", tmp_path / "c.npz"
    stereo = np.stack([speech_like(1.1, sampling_rate=44100), speech_like(1.1, 1, 44100)], axis=1)
    soundfile.write(path, stereo, 44100)
    assert cli("encode", path, codes, "--variant", tiny_variant())[0] == 0
    stream = load(tiny_variant()).encoder.stream()
    wanted = np.concatenate([stream.push(read_audio(path, 24000)), stream.flush().codes], axis=2)
    np.testing.assert_array_equal(read_codes(codes).codes, wanted)
    assert read_codes(codes).metadata.num_samples == 26400


def test_fewer_codebooks(cli, tmp_path, tiny_variant):
    audio, full, few = speech(tmp_path), tmp_path / "full.npz", tmp_path / "few.npz"
    variant = ("--variant", tiny_variant())
    assert cli("encode", audio, full, *variant)[0] == 0
    assert cli("encode", audio, few, *variant, "--num-codebooks", 3)[0] == 0
    np.testing.assert_array_equal(read_codes(few).codes, read_codes(full).codes[:, :3])
    results = []
    for name, command in {
        "a.wav": ("decode", few),
        "b.wav": ("decode", full, "--num-codebooks", 3),
        "c.wav": ("roundtrip", audio, "--num-codebooks", 3),
        "d.wav": ("decode", full),
    }.items():
        kind, source, *options = command
        assert cli(kind, source, tmp_path / name, *variant, *options)[0] == 0
        results.append(read_audio(tmp_path / name))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_allclose(results[0], results[2], atol=1.1 / 32768)  # 16 bits may round differently
    assert np.abs(results[0] - results[3]).max() > 0.01


def test_codes_of_others_decode_to_whole_frames(cli, tmp_path, tiny_variant):
    path, audio = tmp_path / "c.npz", tmp_path / "out.wav"
    write_codes(path, np.zeros((1, 2, 70), np.int32))
    code, out, err = cli("decode", path, audio, "--variant", tiny_variant(), "--json")
    assert (code, len(read_audio(audio)), json.loads(out)["num_codebooks"]) == (0, 70 * 1920, 2)
    write_codes(path, np.zeros((1, 2, 70), np.int32), CodesMetadata(num_samples=99999, model="other"), force=True)
    code, out, err = cli("decode", path, audio, "--variant", tiny_variant(), "--force")
    assert (code, len(read_audio(audio))) == (0, 99999)
    assert "note: " in err
    assert "made with the model other" in err


@pytest.mark.parametrize("command", ["encode", "decode", "roundtrip"])
def test_json_of_transfers(cli, tmp_path, tiny_variant, command):
    audio, codes = speech(tmp_path), tmp_path / "c.npz"
    write_codes(codes, np.ones((1, 8, 31), int), CodesMetadata(num_samples=SAMPLES))
    source = codes if command == "decode" else audio
    target = tmp_path / ("out.npz" if command == "encode" else "out.wav")
    code, out, _ = cli(command, source, target, "--variant", tiny_variant(), "--json")
    result = json.loads(out)
    assert code == 0
    assert set(result) == set(re.findall(r"`(\w+)`", transcode.__doc__)) - {"encode", "decode", "roundtrip"}
    assert result["partial"] is False
    assert result["caution"].startswith("made-up weights")
    assert (result["command"], result["input"], result["output"]) == (command, str(source), str(target))
    assert (result["samples"], result["frames"], result["num_codebooks"]) == (SAMPLES, 31, 8)
    assert result["duration"] == SAMPLES / 24000
    assert result["bitrate"] == 12.5 * 6 * 8  # 64 entries in a tiny codebook
    assert result["speed"] == pytest.approx(result["duration"] / result["seconds"])


def test_table_of_a_transfer(cli, tmp_path, tiny_variant):
    code, out, err = cli("encode", speech(tmp_path), tmp_path / "c.npz", "--variant", tiny_variant())
    assert code == 0
    assert out.splitlines()[1].startswith("weights   made-up weights: ")
    for words in ("2.43 s (58300 samples at 24000 Hz)", "31 frames of 8 codebooks", "0.6 kbit/s", "times real time"):
        assert words in out
    assert "encode: loading" in err  # plain lines where stderr is no terminal
    assert "\x1b" not in out + err


@pytest.mark.parametrize(("layout", "frames_per_call"), LAYOUTS)
def test_inspect(cli, tiny_variant, layout, frames_per_call):
    variant = tiny_variant(8, layout, frames_per_call)
    code, out, _ = cli("inspect", variant, "--verify")
    assert code == 0
    artifact = load_artifact(variant)
    for kind in ("encoder", "decoder"):
        names = re.findall(r"^(past_\w+) +(present_\w+)", out.split(f"States of the {kind}")[1], re.MULTILINE)
        states = artifact.spec(kind).states
        assert names[: len(states)] == [(state.past.name, state.present.name) for state in states]
    for words in ("synthetic:tiny", f"{layout}, ", "1920 samples at 24000 Hz = 80 ms", "8 cb 0.6 kbit/s", "opset"):
        assert words in out
    code, out, _ = cli("inspect", variant, "--json")
    result = json.loads(out)
    documented = set(re.findall(r"`(\w+)`", inspect_command.__doc__.split("With `--json`:")[1]))
    assert set(result) == documented - {"name", "kind", "dtype", "past_shape", "present_shape"}
    assert result["manifest"] == artifact.manifest.to_dict()
    assert (result["frame_rate"], result["frame_size"], result["bitrate"]) == (12.5, 1920, 600)
    assert result["opset"] == {"encoder": 20, "decoder": 20}
    assert result["states"]["decoder"][0] == {
        "name": "conv_us_state",
        "kind": "conv",
        "dtype": "float32",
        "past_shape": ["batch", 32, 2],
        "present_shape": ["batch", 32, 2],
    } | {"kind": artifact.spec("decoder").states[0].kind}


@pytest.mark.export
def test_export(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("export", "--model", "synthetic:tiny", "--num-codebooks", 4, "--name", "small", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["path"] == str(Path("artifacts/small"))
    assert (result["name"], result["num_codebooks"], result["layout"], result["frames_per_call"]) == (
        *("small", 4, "window", None),
    )
    assert result["source"]["model"] == "synthetic:tiny"
    assert set(result["files"]) == {"encoder_model.onnx", "decoder_model.onnx", "state_spec.txt", "golden.safetensors"}
    assert "tracing the encoder" in err
    manifest = load_artifact("artifacts/small", verify_hashes=True).manifest
    assert (manifest.name, manifest.shape.num_codebooks) == ("small", 4)
    assert cli("export", "--model", "synthetic:tiny", "--name", "small")[0] == 8


def test_build(cli, tmp_path, tiny_variant, monkeypatch):
    """Two runs; a copy stands in for the export, which `test_export` runs."""
    from mimi_export.export import build as build_module

    def copy(checkpoint, path, shape, **options):
        assert (checkpoint.source, shape.num_codebooks, options["name"]) == ("synthetic:tiny", 4, "own")
        options["progress"]("tracing the encoder")
        shutil.copytree(tiny_variant(), path, dirs_exist_ok=True)

    monkeypatch.setattr(build_module, "export_variant", copy)
    monkeypatch.setattr(build_module, "_code_sha256", lambda: "fixed")  # a source may be edited meanwhile
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    text = 'name = "own"\n[export]\nmodel = "nowhere"\nnum_codebooks = 4\n'
    (tmp_path / "configs" / "own.toml").write_text(text)
    for reused in (False, True):
        code, out, err = cli("build", "--model", "synthetic:tiny", "--json")
        assert code == 0, err
        assert ("own: tracing the encoder" in err) is not reused
        variants = [{"name": "own", "path": str(Path("artifacts/own")), "reused": reused}]
        assert json.loads(out) == {"command": "build", "variants": variants}
    code, out, _ = cli("build", "own", "--model", "synthetic:tiny")
    assert re.search(r"own +unchanged +artifacts/own", out)


# --- bad input: a clear line, an exit code, nothing lost or half-written


def test_bad_audio(fails, tmp_path, tiny_variant):
    def encode(path):
        return ("encode", path, tmp_path / "c.npz", "--variant", tiny_variant())

    fails(6, ["none.wav cannot be read", "No such file"], *encode(tmp_path / "none.wav"))
    text = tmp_path / "text.wav"
    text.write_text("these are words and not samples " * 9)
    fails(6, ["text.wav is not an audio file"], *encode(text))
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 24000)
    fails(6, ["empty.wav holds no audio"], *encode(tmp_path / "empty.wav"))
    samples = speech_like(3)
    samples[60000] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 24000, subtype="FLOAT")
    fails(6, ["nan.wav", "2.500 s", "nan"], *encode(tmp_path / "nan.wav"))
    audio = speech(tmp_path)
    audio.write_bytes(audio.read_bytes()[:5000])
    fails(6, ["in.wav is cut off"], *encode(audio))
    fails(6, ["is not an audio file"], "roundtrip", text, tmp_path / "o.wav", "--variant", tiny_variant())


def test_bad_codes(fails, tmp_path, tiny_variant):
    def decode(path, *options):
        return ("decode", path, tmp_path / "o.wav", "--variant", tiny_variant(), *options)

    path = tmp_path / "c.npz"
    fails(7, ["c.npz cannot be read", "No such file"], *decode(path))
    path.write_text("no archive")
    fails(7, ["is not an .npz file"], *decode(path))
    codes = np.zeros((1, 8, 100), int)
    codes[0, 3, 77] = 64
    write_codes(path, codes, force=True)
    fails(7, ["code 64", "codebook 3, frame 77", "expected 0 to 63"], *decode(path))
    write_codes(path, np.zeros((1, 16, 5), int), force=True)
    fails(7, ["c.npz has 16 codebooks", "takes 1 to 8", "--num-codebooks 8"], *decode(path))
    fails(7, ["asked for 17 codebooks", "has 16"], *decode(path, "--num-codebooks", 17))
    write_codes(path, np.zeros((1, 8, 5), int), CodesMetadata(sampling_rate=16000), force=True)
    fails(7, ["sampling_rate 16000", "has 24000"], *decode(path))
    np.savez(path, other=np.zeros(3))
    fails(7, ["has no array `codes`"], *decode(path))
    audio, target = speech(tmp_path), tmp_path / "new.npz"
    fails(7, ["asked for 9", "has 8"], "encode", audio, target, "--variant", tiny_variant(), "--num-codebooks", 9)


@pytest.mark.parametrize("command", ["encode", "decode", "roundtrip", "inspect"])
def test_bad_variant(fails, tmp_path, tiny_variant, command):
    variant = tmp_path / "variant"
    source, target = speech(tmp_path), tmp_path / ("c.npz" if command == "encode" else "o.wav")
    if command == "decode":
        source = tmp_path / "c.npz"
        write_codes(source, np.zeros((1, 8, 5), int))
    arguments = [command, variant] if command == "inspect" else [command, source, target, "--variant", variant]
    kind = "decoder" if command == "decode" else "encoder"

    fails(5, [f"there is no directory {variant}", "mimi-export export"], *arguments)
    variant.mkdir()
    fails(5, ["has no manifest.json"], *arguments)
    shutil.rmtree(variant)
    shutil.copytree(tiny_variant(), variant)
    manifest = load_artifact(variant).manifest
    graph = variant / f"{kind}_model.onnx"
    good = graph.read_bytes()
    graph.write_bytes(good[:-1000])  # a download that was cut off
    fails(5, [graph.name, "bytes, the manifest says"], *arguments)
    if command == "inspect":
        graph.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        fails(5, [graph.name, "was changed"], *arguments, "--verify")
        (variant / "manifest.json").write_text("{")
        fails(5, ["manifest.json is not valid JSON"], *arguments)
        return
    write_manifest(variant, manifest)  # a manifest that knows the truncated file
    fails(5, [graph.name, "is no ONNX graph that can be read"], *arguments)
    graph.write_bytes(b"this is no graph at all")
    write_manifest(variant, manifest)
    fails(5, [graph.name, "is no ONNX graph that can be read"], *arguments)
    other = "encoder" if kind == "decoder" else "decoder"
    shutil.copy(variant / f"{other}_model.onnx", graph)  # loads well, but is another graph
    write_manifest(variant, manifest)
    fails(5, [graph.name, "is no graph of this variant"], *arguments)


@pytest.mark.parametrize("command", ["encode", "decode", "roundtrip"])
def test_what_is_wrong_at_once_is_said_before_anything_loads(fails, tmp_path, command):
    """There is no such input and no such variant either."""
    arguments = (command, tmp_path / "none.npz", tmp_path / "out.xyz", "--variant", tmp_path / "none")
    fails(7 if command == "encode" else 6, ["out.xyz has the extension .xyz, expected"], *arguments)


def test_provider(fails, cli, tmp_path, tiny_variant):
    arguments = ("encode", speech(tmp_path), tmp_path / "c.npz", "--variant", tiny_variant(), "--provider")
    fails(3, ["onnxruntime has no abacus here; it offers ", "CPUExecutionProvider"], *arguments, "abacus")
    assert cli(*arguments, "CPU")[0] == 0
    fails(3, ["onnxruntime has no abacus here"], "verify", tiny_variant(), "--provider", "abacus")
    assert cli("verify", tiny_variant(), "--provider", "CPU")[0] == 0


@pytest.mark.parametrize("command", ["encode", "decode", "roundtrip"])
def test_keep_partial(cli, tmp_path, tiny_variant, monkeypatch, command):
    """The second report of progress is interrupted; what was done till then is what a whole run begins with."""
    variant, whole, part = tiny_variant(), tmp_path / "whole", tmp_path / "part"
    audio = tmp_path / "in.wav"
    soundfile.write(audio, speech_like(6), 24000, subtype="FLOAT")
    codes = tmp_path / "c.npz"
    write_codes(codes, np.random.default_rng(0).integers(0, 64, (1, 8, 75)))
    extension = ".npz" if command == "encode" else ".wav"
    whole, part = whole.with_suffix(extension), part.with_suffix(extension)
    arguments = [command, codes if command == "decode" else audio, part, "--variant", variant, "--json"]
    assert cli(*arguments[:2], whole, *arguments[3:])[0] == 0
    advance = Steps.advance

    def interrupt(self, text, done, total=None):
        advance(self, text, done, total)
        if done > 2.6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Steps, "advance", interrupt)
    assert cli(*arguments)[:2] == (130, "")
    assert not part.exists()
    code, out, err = cli(*arguments, "--keep-partial")
    result = json.loads(out)
    assert (code, result["partial"]) == (130, True)
    assert f"interrupted; {part} holds the first {result['duration']:.2f} s of" in err
    assert 2.5 < result["duration"] < 5.5
    if command == "encode":
        found = read_codes(part)
        assert found.codes.shape[2] == result["frames"]
        assert found.metadata.num_samples == result["samples"]
        np.testing.assert_array_equal(found.codes, read_codes(whole).codes[:, :, : result["frames"]])
    else:
        assert len(read_audio(part)) == result["samples"]
        np.testing.assert_array_equal(read_audio(part), read_audio(whole)[: result["samples"]])


@pytest.mark.parametrize("command", ["encode", "decode", "roundtrip"])
def test_bad_output(fails, cli, tmp_path, tiny_variant, command):
    extension = "npz" if command == "encode" else "wav"
    source, target = speech(tmp_path), tmp_path / f"out.{extension}"
    if command == "decode":
        source = tmp_path / "c.npz"
        write_codes(source, np.zeros((1, 8, 5), int))
    variant = ("--variant", tiny_variant())
    target.write_text("precious")
    fails(8, [f"out.{extension} exists already", "--force"], command, source, target, *variant)
    assert target.read_text() == "precious"
    assert cli(command, source, target, *variant, "--force")[0] == 0
    assert target.read_bytes() != b"precious"
    fails(8, ["there is no directory"], command, source, tmp_path / "none" / target.name, *variant)
    fails(8, ["is a directory"], command, source, variant_like_directory(tmp_path, extension), *variant)
    fails(7 if command == "encode" else 6, [".xyz", "expected"], command, source, tmp_path / "out.xyz", *variant)
    if os.geteuid() == 0:
        return  # root may write anywhere
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    fails(8, ["cannot write", "Permission denied"], command, source, locked / target.name, *variant)


def variant_like_directory(parent: Path, extension: str) -> Path:
    path = parent / f"directory.{extension}"
    path.mkdir()
    return path


def test_bad_export(fails, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    (there / "notes.txt").write_text("precious")
    tiny = ("--model", "synthetic:tiny")
    # before anything is loaded: there is no such model
    nowhere = ("export", "--model", "no/where", "--output-dir", there)
    for kind in ((), ("--whole-clips",)):
        fails(8, ["there exists already", "--force"], *nowhere, *kind)
        fails(8, ["was not made by mimi-export"], *nowhere, *kind, "--force")
    new = ("--output-dir", tmp_path / "new")
    fails(3, ["--frames-per-call goes with --kv-cache ring"], "export", *tiny, *new, "--frames-per-call", 2)
    fails(3, ["num_codebooks is 17", "1 to 16"], "export", *tiny, *new, "--num-codebooks", 17)
    fails(4, [str(tmp_path / "none")], "export", "--model", tmp_path / "none", *new)
    (tmp_path / "file").write_text("")
    fails(8, ["file"], "export", *tiny, "--output-dir", tmp_path / "file" / "new")


PRECISIONS = ["fp16", "int8"]


@pytest.fixture(scope="module")
def converted(tiny_variant, tmp_path_factory):
    """`converted("fp16")`: that conversion of the tiny variant; never write into it."""
    root = tmp_path_factory.mktemp("converted")

    def make(precision):
        path = root / precision
        if not path.exists():
            assert main(["convert", precision, str(tiny_variant()), str(path)]) == 0
        return path

    return make


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("earlier", PRECISIONS)
def test_convert_what_was_converted(fails, tmp_path, converted, precision, earlier):
    parent = converted(earlier)
    words = [f"{parent} is {earlier} already", "convert the fp32 variant that it was made from"]
    fails(5, words, "convert", precision, parent, tmp_path / "out")


def mixed(tmp_path, variant, other, kind, known):
    """An fp32 variant with one graph of another; `known` if its manifest has the other's hash."""
    path = tmp_path / "mixed"
    shutil.copytree(variant, path)
    manifest = load_artifact(path).manifest
    shutil.copy(other / f"{kind}_model.onnx", path)
    if known:
        write_manifest(path, manifest)
    return path


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("other", PRECISIONS)
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_convert_a_mixed_directory(fails, tmp_path, tiny_variant, converted, precision, other, kind):
    """A converted graph beside an fp32 graph and manifest."""
    target = tmp_path / "out"
    path = mixed(tmp_path, tiny_variant(), converted(other), kind, known=False)
    fails(5, [f"{kind}_model.onnx has", "bytes, the manifest says"], "convert", precision, path, target)
    shutil.rmtree(path)
    path = mixed(tmp_path, tiny_variant(), converted(other), kind, known=True)
    words = [f"{kind}_model.onnx says that it is {other}, the manifest says fp32"]
    fails(5, words, "convert", precision, path, target)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_convert_graphs_of_two_layouts(fails, tmp_path, tiny_variant, precision):
    path = mixed(tmp_path, tiny_variant(), tiny_variant(8, "ring", 2), "decoder", known=True)
    words = ["decoder_model.onnx", "it is no graph of this variant"]
    fails(5, words, "convert", precision, path, tmp_path / "out")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_convert_an_incomplete_or_changed_directory(fails, tmp_path, tiny_variant, precision):
    path, target = tmp_path / "variant", tmp_path / "out"
    fails(5, [f"there is no directory {path}"], "convert", precision, path, target)
    shutil.copytree(tiny_variant(), path)
    graph = path / "encoder_model.onnx"
    good = graph.read_bytes()
    graph.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # the same size: only the hash tells
    fails(5, ["encoder_model.onnx was changed", "SHA-256"], "convert", precision, path, target)
    graph.unlink()
    fails(5, [f"{path} is incomplete: encoder_model.onnx is missing"], "convert", precision, path, target)
    (path / "manifest.json").unlink()
    fails(5, [f"{path} has no manifest.json"], "convert", precision, path, target)
    fails(8, ["is the directory to convert"], "convert", precision, tiny_variant(), tiny_variant(), "--force")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("file", ["encoder_model.onnx", "decoder_model.onnx", "golden.safetensors", "manifest.json"])
def test_convert_to_a_full_disk(fails, tmp_path, tiny_variant, converted, monkeypatch, precision, file):
    """No space is left in the middle of that file; there is no result, or still the earlier one."""
    there = tmp_path / "there"
    shutil.copytree(converted("fp16"), there)
    save, write = onnx_ir.save, Path.write_bytes
    stopped = []

    def stop(path):
        write(path, b"half of it")
        stopped.append(path)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(onnx_ir, "save", lambda model, path: stop(path) if file in path.name else save(model, path))
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: stop(path) if file in path.name else write(path, data))
    for target in (tmp_path / "new", there):
        words = ["cannot write ", target.name, ": No space left on device"]
        fails(8, words, "convert", precision, tiny_variant(), target, "--force")
    assert len(stopped) == 2


def test_bad_build(fails, tmp_path):
    out = ("--output-dir", tmp_path / "artifacts")
    fails(3, ["no variant 'streaming-9cb'", "streaming-8cb"], "build", "streaming-9cb", *out)
    fails(3, ["--revision belongs to a --model"], "build", "--revision", "main", *out)
    fails(3, ["no variant configurations"], "build", "--configs", tmp_path, *out)
    (tmp_path / "a.toml").write_text('name = "a"\n[export]\nnum_codebooks = 8\nspeed = 3\n')
    fails(3, ["a.toml: export.speed is an unknown key"], "build", "--configs", tmp_path, *out)


@pytest.mark.parametrize(
    "arguments",
    [["encode"], ["nothing"], ["encode", "a", "b", "--colour"], ["encode", "a", "b", "--num-codebooks", "0"]],
)
def test_wrong_use(cli, arguments):
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: mimi-export" in err


def test_the_bare_graph_refuses_a_partial_frame(tiny_variant):
    """What a client without the runtime sees when its chunk is no whole number of frames."""
    import onnxruntime

    artifact = load_artifact(tiny_variant())
    session = onnxruntime.InferenceSession(str(artifact.graph_path("encoder")), providers=["CPUExecutionProvider"])
    feed = {state.past.name: np.zeros(state.initial_shape(1), state.dtype) for state in artifact.spec("encoder").states}
    for samples in (1, 960, 1919, 2880):
        with pytest.raises(Exception, match=r"(?i)shape"):
            session.run(None, feed | {"input_values": np.zeros((1, 1, samples), np.float32)})
    session.run(None, feed | {"input_values": np.zeros((1, 1, 3840), np.float32)})


# --- the program as a process


def leaves(group, prefix=""):
    """Every command by the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def test_help_names_every_exit_code_and_teaches_on_a_page(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = cli("--help")
    assert code == 0
    for number, meaning in exit_codes().items():
        assert f"{number} {meaning}" in " ".join(out.split())
    assert len(out.splitlines()) <= 40
    assert set(exit_codes()) >= {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 70, 130, 141}
    commands = dict(leaves(typer.main.get_command(app)))
    assert {"export", "build", "encode", "decode", "roundtrip", "inspect"} <= set(commands)
    for command in commands:
        code, out, _ = cli(*command.split(), "--help")
        assert code == 0
        assert len(out.splitlines()) <= 40, command
        assert re.search(rf"^    mimi-export {command}\b", out, re.MULTILINE), f"{command} --help has no example"
    assert cli("--version") == (0, f"mimi-export {__version__}\n", "")


def test_process_exit_code_and_traceback_only_when_asked(tmp_path, tiny_variant):
    arguments = ("encode", tmp_path / "none.wav", tmp_path / "c.npz", "--variant", tiny_variant())
    quiet = program(*arguments)
    assert (quiet.returncode, quiet.stdout) == (6, "")
    assert quiet.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in quiet.stderr
    loud = program("-v", *arguments)
    assert loud.returncode == 6
    assert "Traceback" in loud.stderr


def test_base_install_runs_and_export_says_what_is_missing(tmp_path, tiny_variant):
    """With torch, onnx and transformers impossible to import."""
    audio = speech(tmp_path)
    script = """
import sys
for name in ("torch", "onnx", "transformers", "onnxscript", "onnx_ir", "huggingface_hub"):
    sys.modules[name] = None
from mimi_export.cli import main
variant, audio, out = sys.argv[1:]
for command in (
    ["inspect", variant], ["inspect", variant, "--json"],
    ["encode", audio, out + "/c.npz", "--variant", variant],
    ["decode", out + "/c.npz", out + "/o.wav", "--variant", variant],
    ["roundtrip", audio, out + "/r.wav", "--variant", variant],
):
    assert main(command) == 0, command
assert main(["build", "--output-dir", out + "/a"]) == 9
sys.exit(main(["export", "--output-dir", out + "/e"]))
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", script, str(tiny_variant()), str(audio), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 9, done.stderr
    assert "mimi-export export needs the export extra" in done.stderr
    assert "pip install 'mimi-export[export]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert '"encoder": 20' in done.stdout
    assert not (tmp_path / "e").exists()


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from mimi_export.cli import main; main(['encode', '--help']);"
        "print([name for name in ('numpy', 'onnxruntime', 'torch', 'soundfile', 'onnx') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def start(*arguments):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-m", "mimi_export", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_interrupted_leaves_nothing(tmp_path, tiny_variant):
    audio = tmp_path / "in.flac"
    soundfile.write(audio, np.tile(speech_like(10), 6 * 40), 24000)
    process = start("roundtrip", audio, tmp_path / "o.wav", "--variant", tiny_variant())
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) == 1:  # until the temporary file is there
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "error: interrupted; no partial output is left"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [audio]


@pytest.mark.parametrize("command", ["inspect", "encode"])  # more than a buffer of output, and less
def test_a_closed_pipe_is_quiet(tmp_path, tiny_variant, command):
    variant = tiny_variant()
    arguments = (variant,) if command == "inspect" else (speech(tmp_path), tmp_path / "c.npz", "--variant", variant)
    process = start(command, *arguments, "--json")
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert re.sub(r"\[.*\n", "", process.stderr.read()) == ""


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_full_disk_for_a_conversion(tmp_path, tiny_variant, precision):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = program("convert", precision, tiny_variant(), tmp_path / "out", preexec_fn=limit)
    assert done.returncode == 8, done.stderr
    assert done.stderr.splitlines()[-1] == f"error: cannot write {tmp_path / 'out'}: File too large"
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "name"), [("roundtrip", "o.wav"), ("encode", "c.npz")])
def test_a_full_disk(tmp_path, tiny_variant, command, name):
    """A limit on the size of files stands in for the disk: the operating system refuses the same write."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    audio = speech(tmp_path, 20 * 24000)
    done = program(command, audio, tmp_path / name, "--variant", tiny_variant(), preexec_fn=limit)
    assert done.returncode == 8, done.stderr
    assert f"cannot write {tmp_path / name}" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == [audio]


def test_memory_does_not_grow_with_the_file(tmp_path, tiny_variant):
    """Twelve minutes instead of one are 63 MB more of float samples; what may grow is 4 bytes a code (0.3 MB)."""
    script = (
        "import resource, sys; from mimi_export.cli import main; code = main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}

    def peak(*arguments):
        command = [sys.executable, "-c", script, *map(str, arguments), "--variant", str(tiny_variant())]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.splitlines()[-1]) / 1024  # MiB

    peaks = []
    for minutes in (1, 12):
        audio, codes, out = (tmp_path / f"{minutes}{suffix}" for suffix in (".flac", ".npz", ".wav"))
        soundfile.write(audio, np.tile(speech_like(10), 6 * minutes), 24000)
        commands = [("encode", audio, codes), ("decode", codes, out), ("roundtrip", audio, out, "--force")]
        peaks.append([peak(*command) for command in commands])
        assert len(read_audio(out)) == minutes * 60 * 24000
    growth = np.subtract(peaks[1], peaks[0])
    assert growth.max() < 12, f"{peaks} MiB"


# --- the script with the published flags


@pytest.fixture
def script():
    path = REPOSITORY / "scripts" / "export_streaming_onnx.py"
    spec = importlib.util.spec_from_file_location("export_streaming_onnx", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_published_flags(script, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(script, "mimi_export", lambda arguments: calls.append(arguments) or 0)
    assert script.main([]) == 0
    assert script.main(["--num-codebooks", "16", "--output-dir", "d", "--chunk-ms", "240", "--model", "m"]) == 0
    assert calls == [
        ["export", "--model", "kyutai/mimi", "--num-codebooks", "8"],
        ["export", "--model", "m", "--num-codebooks", "16", "--output-dir", "d"],
    ]
    assert "240 ms are 5760 samples = 3 frame(s)" in capsys.readouterr().out


@pytest.mark.parametrize("chunk", ["100", "0", "-80", "x", "80.5"])
def test_chunk_is_whole_frames(script, monkeypatch, capsys, chunk):
    monkeypatch.setattr(script, "mimi_export", lambda arguments: pytest.fail("the export has begun"))
    with pytest.raises(SystemExit) as end:
        script.main(["--chunk-ms", chunk])
    assert end.value.code == 2
    assert f"got {chunk}, expected a positive multiple of 80" in capsys.readouterr().err


def test_script_passes_the_exit_code_on(script, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("precious")
    assert script.main(["--output-dir", str(tmp_path)]) == 8
    assert "exists already" in capsys.readouterr().err
