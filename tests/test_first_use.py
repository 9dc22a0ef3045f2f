"""Graphs that come from anybody, and processors that compute something else: refused before a stream is made."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import REPOSITORY

from mimi_export.cli import main
from mimi_export.contract.directory import load_artifact, write_manifest
from mimi_export.errors import GraphError, ParityError
from mimi_export.runtime import first_use, load
from mimi_export.runtime.first_use import FOLDER
from mimi_export.runtime.graph_file import check_graph_file
from mimi_export.runtime.state import StreamState

AUDIO = REPOSITORY / "scripts" / "clips" / "speech.ogg"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MIMI_EXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / FOLDER


@pytest.fixture
def changed(tiny_variant, tmp_path):
    """`changed(f)`: a copy of the variant whose encoder is what `f` makes of its bytes; the manifest fits."""

    def make(change) -> Path:
        directory = tmp_path / "variant"
        shutil.copytree(tiny_variant(8), directory, dirs_exist_ok=True)
        graph, manifest = directory / "encoder_model.onnx", load_artifact(tiny_variant(8)).manifest
        graph.write_bytes(change((tiny_variant(8) / graph.name).read_bytes()))
        write_manifest(directory, manifest)
        return directory

    return make


def everything_refuses(directory: Path, capsys, tmp_path: Path, *words: str) -> None:
    """Every command that opens the graph, in one line."""
    for command in (["inspect"], ["verify"], ["encode", str(AUDIO), str(tmp_path / "o.npz"), "--variant"]):
        assert main([*command, str(directory)]) == 5
        error = capsys.readouterr().err.splitlines()[-1]
        assert all(word in error for word in ("error: ", "encoder_model.onnx", *words)), error
        assert error.isprintable()


def flipped(content: bytes, seed: int) -> bytes:
    """Five bytes of its beginning changed."""
    rng, data = np.random.default_rng(seed), np.frombuffer(content, np.uint8).copy()
    data[rng.integers(0, 3000, 5)] = rng.integers(0, 256, 5)
    return data.tobytes()


DAMAGED = {
    "cut": lambda content: content[:-1000],
    "empty": lambda content: b"",
    "text": lambda content: b"hello " * 100,
    "zeros": lambda content: bytes(1000),
    "a number without end": lambda content: b"\xff" * 10**6,
    "two graphs": lambda content: content + content,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_graphs(changed, capsys, tmp_path, name):
    everything_refuses(changed(DAMAGED[name]), capsys, tmp_path, "is no ONNX graph that can be read")


def test_any_damage_is_a_graph_error_or_none(tiny_variant, tmp_path):
    content = (tiny_variant(8) / "encoder_model.onnx").read_bytes()
    for seed in range(200):
        (tmp_path / "x.onnx").write_bytes(flipped(content, seed))
        try:
            check_graph_file(tmp_path / "x.onnx")
        except GraphError as error:
            assert str(error).isprintable()  # noqa: PT017 - most are refused, some are not damaged where it looks


def outside(where: str, weight: str | None = "convs.enc_12.weight"):
    """A tensor of the graph, or of the attribute of a node, is in another file."""

    def change(content: bytes) -> bytes:
        model = onnx.load_from_string(content)
        if weight is None:
            node = model.graph.node.add(op_type="Constant", output=["unused"])
            node.attribute.append(onnx.helper.make_attribute("value", onnx.helper.make_tensor("t", 1, [1], [0.0])))
            tensor = node.attribute[0].t
        else:
            tensor = next(tensor for tensor in model.graph.initializer if tensor.name == weight)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=where)
        return model.SerializeToString()

    return change


@pytest.mark.parametrize(
    "where", ["../secret.bin", "/etc/hostname", "link.bin", "a/../../secret.bin", "../\x1b[2J", "a\0b"]
)
@pytest.mark.parametrize("weight", ["convs.enc_12.weight", None])
def test_data_from_outside(changed, capsys, tmp_path, where, weight):
    directory = changed(outside(where, weight))
    (tmp_path / "secret.bin").write_bytes(bytes(10**5))
    (directory / "link.bin").symlink_to("/etc/hostname")
    everything_refuses(directory, capsys, tmp_path, "outside its directory")


def test_data_from_inside_is_let_pass(changed):
    assert check_graph_file(changed(outside("weights.bin")) / "encoder_model.onnx") == 20


def test_operators_of_others(changed, capsys, tmp_path):
    def change(content: bytes) -> bytes:
        model = onnx.load_from_string(content)
        model.opset_import.add(domain="evil\x1b[31m", version=1)
        return model.SerializeToString()

    everything_refuses(changed(change), capsys, tmp_path, r'asks for operators of "evil\u001b[31m"')


def test_a_manifest_of_another_rate(changed, capsys, tmp_path):
    """It would sound an octave lower; what was used before is looked at, too."""
    directory = changed(lambda content: content)
    assert load(directory).encoder.graph
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    content["geometry"]["sampling_rate"] *= 2
    path.write_text(json.dumps(content))
    for command in (["verify"], ["encode", str(AUDIO), str(tmp_path / "o.npz"), "--variant"]):
        assert main([*command, str(directory)]) == 5
        assert 'is for "24000" Hz, but its manifest says 48000' in capsys.readouterr().err.splitlines()[-1]


# --- what a machine computes


def test_a_good_graph_is_looked_at_once(tiny_variant, cache, monkeypatch):
    for _ in range(2):
        codec = load(tiny_variant(8))
        assert codec.encoder.graph
        assert codec.decoder.graph
        assert len(list(cache.iterdir())) == 2
        monkeypatch.setattr("mimi_export.runtime.first_use.check_graph_file", None)  # not called again
    monkeypatch.setattr("mimi_export.runtime.first_use.fingerprint", lambda: "another processor")
    with pytest.raises(TypeError):
        assert load(tiny_variant(8)).encoder.graph


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_what_the_processor_gave_says_nothing_of_another_provider(tiny_variant, cache, monkeypatch):
    monkeypatch.setattr(
        "mimi_export.runtime.session.ort.get_available_providers",
        lambda: ["CPUExecutionProvider", "AbacusExecutionProvider"],
    )
    monkeypatch.setattr("mimi_export.runtime.session.check_started", lambda *_: None)
    assert load(tiny_variant(8)).encoder.graph
    assert load(tiny_variant(8), providers=["CPUExecutionProvider"]).encoder.graph
    assert len(list(cache.iterdir())) == 1, "short and full name are the same"
    looked = []
    monkeypatch.setattr(first_use, "_compare", lambda *_: looked.append(1))
    for _ in range(2):
        assert load(tiny_variant(8), providers=["abacus", "cpu"]).encoder.graph
    assert looked == [1]
    assert len(list(cache.iterdir())) == 2


def test_the_look_takes_little_time(tiny_variant, monkeypatch):
    """Of the processor's: a frame of a full-size graph is 20 ms of the 50 that it may take."""
    spent = []

    def timed(function):
        def call(*arguments):
            begin = time.process_time()
            try:
                return function(*arguments)
            finally:
                spent.append(time.process_time() - begin)

        return call

    for name in ("check_graph_file", "_compare", "_name"):
        monkeypatch.setattr(first_use, name, timed(getattr(first_use, name)))
    assert load(tiny_variant(8)).encoder.graph
    assert len(spent) == 3
    assert sum(spent) < 0.03


def test_a_cache_that_cannot_be_written_is_no_obstacle(tiny_variant, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIMI_EXPORT_CACHE", str(tmp_path / "file"))
    assert load(tiny_variant(8)).encoder.graph


@pytest.mark.parametrize("layout", [("window", None), ("ring", 2)])
def test_a_machine_that_computes_something_else(tiny_variant, cache, monkeypatch, tmp_path, capsys, layout):
    """As an int8 graph does where sums saturate; again and again, for nothing is kept of it."""
    variant, right = tiny_variant(8, *layout), StreamState.step
    monkeypatch.setattr(StreamState, "step", lambda state, data: np.roll(right(state, data), 1, axis=1) * -1)
    for _ in range(2):
        with pytest.raises(ParityError, match=r"encoder_model.onnx gives \d+ % of the codes .*try another version"):
            assert load(variant).encoder.graph
        with pytest.raises(ParityError, match=r"decoder_model.onnx gives audio of -?\d+ dB of its golden"):
            assert load(variant).decoder.graph
    assert main(["encode", str(AUDIO), str(tmp_path / "o.npz"), "--variant", str(variant)]) == 1
    assert "golden clip's beginning" in capsys.readouterr().err.splitlines()[-1]
    assert not cache.exists()
    assert not (tmp_path / "o.npz").exists()


def test_an_older_variant_without_a_golden_clip_loads(tiny_variant, tmp_path):
    old = shutil.copytree(tiny_variant(8), tmp_path / "old")
    manifest = load_artifact(old).manifest
    (old / "golden.safetensors").unlink()
    write_manifest(old, manifest)
    assert load(old).encoder.graph
