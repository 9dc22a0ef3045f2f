"""Audio and code files that come from anybody: a refusal in one line, at once, and in little memory."""

import io
import json
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
import soundfile
from conftest import REPOSITORY
from helpers import write_codes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from test_artifact import a_manifest, fill
from test_records import REPORT

from mimi_export.contract.directory import load_artifact
from mimi_export.contract.manifest import BatchManifest, FileEntry, Source, parse_batch
from mimi_export.contract.recipes import load_variant
from mimi_export.contract.records import Reader
from mimi_export.contract.report import read_report
from mimi_export.contract.spec import GRAPH_KINDS
from mimi_export.errors import ArtifactError, AudioError, CheckpointError, CodesError, ConfigError, GraphError
from mimi_export.media.archives import LARGEST_RATIO, LARGEST_SMALL
from mimi_export.media.audio import AudioReader, read_audio
from mimi_export.media.codes import CodesMetadata, read_codes
from mimi_export.media.resampling import RATES
from mimi_export.model.checkpoint import DEMO_DIRECTORY
from mimi_export.model.checkpoint import _read_config as read_config
from mimi_export.runtime.graph_file import check_graph_file
from mimi_export.runtime.replay import read_tensors

CODES = np.random.default_rng(0).integers(0, 2048, (1, 8, 20))
METADATA = CodesMetadata(24000, 1920, 38000, "kyutai/mimi")
READERS = {"wav": (read_audio, AudioError), "npz": (read_codes, CodesError), "safetensors": (read_codes, CodesError)}


def refusal(path: Path, *words: str) -> None:
    read, kind = READERS[path.suffix[1:]]
    with pytest.raises(kind) as caught:
        read(path)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert len(text) < 700
    assert text.isprintable(), repr(text)


@pytest.mark.parametrize("extension", READERS)
def test_a_pipe_without_a_writer_is_refused(tmp_path, extension):
    os.mkfifo(tmp_path / f"in.{extension}")
    refusal(tmp_path / f"in.{extension}", "is a pipe or a device, expected a regular file")


@pytest.mark.parametrize(("rate", "fits"), [(1, False), (999, False), (1000, True), (10**6, True), (10**6 + 1, False)])
def test_rates(tmp_path, rate, fits):
    """At 1 Hz a header of 44 bytes and a kilobyte of samples would resample to an hour."""
    path = tmp_path / "in.wav"
    soundfile.write(path, np.zeros(1000), rate)
    if fits:
        assert len(read_audio(path)) == 1000 * 24000 // rate
    else:
        refusal(path, f"claims {rate} Hz, expected {RATES[0]} to {RATES[-1]}")


def test_many_channels_are_read_in_small_blocks(tmp_path):
    path = tmp_path / "in.wav"
    soundfile.write(path, np.full((3000, 1024), 0.25, np.float32), 24000)
    with AudioReader(path) as reader:
        blocks = list(reader)
    assert max(map(len, blocks)) * 1024 <= 8 * 32768
    np.testing.assert_allclose(np.concatenate(blocks), 0.25, atol=1e-4)


def npz(path: Path, *members: tuple[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_an_archive_that_unpacks_to_much_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, codes=np.zeros((1, 8, LARGEST_SMALL // 64 + 1), np.int64))
    tracemalloc.start()
    refusal(path, "would unpack to", f"expected {LARGEST_SMALL} at most")
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    np.savez_compressed(path, codes=CODES)
    assert np.array_equal(read_codes(path).codes, CODES)
    assert LARGEST_RATIO > 64 / 11, "codes of 11 bits, packed as well as can be"


@pytest.mark.parametrize("shape", [(1, 8, 10**12), (1, 8, 21), (1, 10**4000, 1), (1, 8, 19)])
def test_an_array_that_does_not_fill_its_bytes_is_refused(tmp_path, shape):
    header = repr({"descr": "<i8", "fortran_order": False, "shape": shape}).encode() + b"\n"
    npz(
        tmp_path / "in.npz", ("codes.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(1280))
    )
    refusal(tmp_path / "in.npz", "is not an .npz file of plain arrays, or a damaged one")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_of_one_name_are_refused(tmp_path):
    npz(tmp_path / "in.npz", ("codes.npy", npy(CODES)), ("codes.npy", npy(CODES + 1)))
    refusal(tmp_path / "in.npz", "holds two arrays of one name")
    whole = save({"codes": CODES})
    size = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + size].rstrip()
    twice = header[:-1] + b"," + header[1:]
    path = tmp_path / "in.safetensors"
    path.write_bytes(len(twice).to_bytes(8, "little") + twice + whole[8 + size :])
    refusal(path, "a damaged one")


@pytest.mark.parametrize("value", ["nan", "1e5", "", "9" * 5000, "9" * 400, "-1", "\x1b[2J"])
def test_metadata_of_no_sense_is_refused(tmp_path, value):
    path = tmp_path / "in.safetensors"
    path.write_bytes(save({"codes": CODES}, {"num_samples": value}))
    refusal(path, "num_samples is", "expected")
    npz(tmp_path / "in.npz", ("codes.npy", npy(CODES)), ("sampling_rate.npy", npy(np.array(np.nan))))
    refusal(tmp_path / "in.npz", "sampling_rate is nan, expected a whole number")


@pytest.mark.parametrize("model", ["kyutai/\x1b[31mmimi", "x" * 1001])
def test_a_model_name_cannot_reach_the_terminal(tmp_path, model):
    path = tmp_path / "in.safetensors"
    path.write_bytes(save({"codes": CODES}, {"model": model}))
    refusal(path, "model is", "expected up to 1000 plain characters")


def test_names_of_strangers_are_cut(tmp_path):
    path = tmp_path / "in.safetensors"
    path.write_bytes(save({f"\x1b[2J{i}": np.zeros(1) for i in range(1000)}))
    refusal(path, "has no tensor `codes`, only [")


def many_tensors() -> bytes:
    return save({f"{i}": np.zeros(0, np.int16) for i in range(100_000)})


# Made to take much memory: name, content, words. A list of two bytes takes 64, a smiley makes every letter four bytes.
SWOLLEN = {
    "lists": ("manifest.json", lambda: b"[" + b"[]," * (1 << 20) + b"[]]", "more than 131072 values"),
    "keys": ("manifest.json", lambda: b"{" + b",".join(b'"%x":{}' % i for i in range(200_000)) + b"}", "131072 values"),
    "wide text": ("report.json", lambda: b'"' + b"x" * (8 << 20) + "\U0001f600".encode() + b'"', "at most 4194304"),
    "many tensors": ("in.safetensors", many_tensors, "its header has"),
    "many tensors of a clip": ("golden.safetensors", many_tensors, "its header has"),
}


@pytest.mark.parametrize("name", SWOLLEN)
def test_what_takes_much_memory_is_refused(tmp_path, name):
    file, make, words = SWOLLEN[name]
    content = make()
    path = tmp_path / file
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(FUZZED[file][2], match=words):
        FUZZED[file][1](path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(content) + 20_000_000


# --- damage of every kind

FLOOR = 4_000_000  # bytes beside four times the file: blocks of sound, what Python keeps


def audio(path: Path) -> None:
    soundfile.write(path, 0.1 * np.random.default_rng(1).standard_normal((400, 2)), 16000)


def codes(path: Path) -> None:
    write_codes(path, CODES, METADATA, force=True)


def manifest(path: Path) -> None:
    fill(path.parent, a_manifest())


def whole_clips(path: Path) -> None:
    files = {f"onnx/{kind}_model.onnx": FileEntry(4, "00") for kind in GRAPH_KINDS}
    dtypes = {"fp32": {kind: f"onnx/{kind}_model.onnx" for kind in GRAPH_KINDS}}
    content = BatchManifest("batch", 8, 24000, 1920, Source("kyutai/mimi"), {"torch": "2"}, dtypes, files).to_dict()
    path.write_text(json.dumps(content))


def recipe(path: Path) -> None:
    path.write_bytes((REPOSITORY / "configs" / "streaming-8cb-int8.toml").read_bytes())


def report(path: Path) -> None:
    path.write_text(json.dumps(REPORT))


def configuration(path: Path) -> None:
    path.write_bytes((DEMO_DIRECTORY / "config.json").read_bytes())


def golden(path: Path) -> None:
    path.write_bytes(save({"audio": np.zeros(9, np.int16), "decoded": np.zeros(9, np.float32)}, {"recorded_from": "a"}))


def graph(path: Path) -> None:
    """A node with a constant, and a weight in a file of its own."""
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) <float[1] w = {1}> {'
    model = onnx.parser.parse_model(text + " c = Constant <value = float[2] {1, 2}> ()  y = Mul (x, w) }")
    model.graph.initializer[0].external_data.add(key="location", value="weights.bin")
    path.write_bytes(model.SerializeToString())


# What is read: how a good one is made, what reads it, and the error that refuses it.
FUZZED = {
    **{f"in.{extension}": (audio, read_audio, AudioError) for extension in ("wav", "flac", "aiff", "caf", "ogg")},
    **{f"in.{extension}": (codes, read_codes, CodesError) for extension in ("npz", "safetensors")},
    "manifest.json": (manifest, lambda path: load_artifact(path.parent), ArtifactError),
    "batch.json": (whole_clips, lambda path: parse_batch(Reader(path, ArtifactError).json(), path), ArtifactError),
    "streaming-8cb-int8.toml": (recipe, load_variant, ConfigError),
    "report.json": (report, read_report, ArtifactError),
    "config.json": (configuration, lambda path: read_config(path.parent, "x"), (CheckpointError, ConfigError)),
    "golden.safetensors": (golden, read_tensors, ArtifactError),
    "graph.onnx": (graph, check_graph_file, GraphError),
}


damage = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "insert", "repeat"]), st.floats(0, 1), st.binary(min_size=1, max_size=9)),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, data in changes:
        place = int(where**3 * len(content))  # mostly near the header
        if kind == "set":
            content = content[:place] + data + content[place + len(data) :]
        elif kind == "cut":
            content = content[:place]
        elif kind == "insert":
            content = content[:place] + data + content[place:]
        else:
            content = content[:place] * 2 + content[place:]
    return content


def check_damage(directory: Path, name: str, examples: int) -> None:
    """Read, or refused in one plain line; never another error, and never much memory."""
    path = directory / name
    write, read, kind = FUZZED[name]
    write(path)
    read(path)
    whole = path.read_bytes()

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(changes=damage)
    def attempt(changes):
        path.write_bytes(damaged(whole, changes))
        text = ""
        tracemalloc.start()
        try:
            read(path)
        except kind as error:
            text = str(error)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(text) < 1000
        assert text.isprintable() or not text, repr(text)
        assert peak < 4 * path.stat().st_size + FLOOR

    attempt()


@pytest.mark.parametrize("name", FUZZED)
def test_damaged_files(tmp_path, name):
    check_damage(tmp_path, name, 500)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FUZZED)
def test_damaged_files_at_length(tmp_path, name):
    check_damage(tmp_path, name, 10_000)
