"""Variants of a fixed batch: exact in every row, fixed in the file, and another batch is refused in one line."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch
from helpers import DECODER_SNR, onnx_step, session, snr, zeros

from mimi_export.bench.contenders import variant_contenders
from mimi_export.cli import main
from mimi_export.contract.directory import load_artifact
from mimi_export.contract.manifest import parse_manifest
from mimi_export.contract.precision import Int8Options
from mimi_export.contract.spec import GRAPH_KINDS, graph_spec
from mimi_export.errors import ArtifactError, ConfigError
from mimi_export.export.convert import convert
from mimi_export.hub.subjects import read_subjects
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.parity.clips import Clip
from mimi_export.parity.run import GATE, check_parity
from mimi_export.runtime import StreamPool, load
from mimi_export.runtime.golden import replay_golden

BATCH = 3
FRAMES = 40
LAYOUTS = {"ring": ("ring", 2, BATCH), "window": ("window", None, BATCH), "one": ("ring", 1, 1)}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def variant(request, tiny_variant):
    return tiny_variant(8, *request.param)


@pytest.fixture(scope="module")
def ring(tiny_variant):
    return tiny_variant(8, *LAYOUTS["ring"])


def reference(checkpoint, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples `[B, n]`, another signal in each row, with codes and audio of untouched upstream code."""
    samples = FRAMES * checkpoint.geometry.frame_size
    clips = np.stack([speech_like(samples / 24000, seed)[:samples] for seed in range(rows)]).astype(np.float32)
    codes = upstream.encode(checkpoint.model, torch.from_numpy(clips)[:, None], 8)
    return clips, codes.numpy(), upstream.decode(checkpoint.model, codes).numpy()[:, 0]


def test_every_row_is_exact(variant, tiny_checkpoint):
    codec = load(variant, verify_hashes=True)
    rows = codec.artifact.manifest.shape.rows
    clips, codes, audio = reference(tiny_checkpoint, rows)
    encoder, decoder = codec.encoder.stream(rows), codec.decoder.stream(rows)
    pieces = np.array_split(clips, 13, axis=1)
    np.testing.assert_array_equal(np.concatenate([encoder.push(piece) for piece in pieces], axis=2), codes)
    assert encoder.flush().codes.shape == (rows, 8, 0)
    heard = np.concatenate([decoder.push(codes[:, :, i : i + 4]) for i in range(0, FRAMES, 4)], axis=1)
    assert snr(audio, heard) >= DECODER_SNR


@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_the_file_itself_has_the_batch(variant, kind):
    artifact = load_artifact(variant)
    path, rows = artifact.graph_path(kind), artifact.manifest.shape.rows
    onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.load(path).graph
    for value in (*graph.input, *graph.output):
        first = value.type.tensor_type.shape.dim[0]
        assert (first.dim_value, first.dim_param) == (rows, ""), value.name
    spec = artifact.spec(kind)
    free = graph_spec(artifact.geometry, kind, dataclasses.replace(spec.shape, rows=None))
    data = np.zeros([{"samples": 1920, "frames": 1, "codebooks": 8}.get(dim, dim) for dim in spec.data_input.shape])
    for batch in {1, rows, rows + 1}:
        call = np.repeat(data[:1], batch, axis=0).astype(spec.data_input.dtype)
        if batch == rows:
            onnx_step(session(path))(call, zeros(free, batch))
        else:
            with pytest.raises(Exception, match="invalid dimensions"):
                onnx_step(session(path))(call, zeros(free, batch))


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_another_batch_is_refused(ring, batch):
    codec = load(ring)
    for half, kind in ((codec.encoder, "encoder"), (codec.decoder, "decoder")):
        for ask in (half.stream, lambda rows, half=half: StreamPool(half, rows)):
            with pytest.raises(ConfigError) as error:
                ask(batch)
            assert str(error.value).startswith(f"this {kind} was exported for a batch of 3, got {batch}; give it 3 row")
            assert "\n" not in str(error.value)


def test_pool(ring, tiny_checkpoint):
    """Streams that begin one after another, so that calls have one, two and three of them."""
    clips, codes, _ = reference(tiny_checkpoint, BATCH)
    call = 2 * tiny_checkpoint.geometry.frame_size
    pool = StreamPool(load(ring).encoder, BATCH)
    streams, got = [], {}
    for tick in range(FRAMES // 2 + 2 * 5):
        if tick % 5 == 0 and len(streams) < BATCH:
            streams.append(pool.open())
        for age, stream in enumerate(streams):
            piece = clips[age, (tick - 5 * age) * call :][:call]
            stream.push(piece)
        for stream, output in pool.step():
            got.setdefault(stream.row, []).append(output)
    for row in range(BATCH):
        np.testing.assert_array_equal(np.concatenate(got[row], axis=1), codes[row])


def test_manifest(ring):
    """Only a fixed batch is written, so manifests of free ones are what they always were."""
    path = ring / "manifest.json"
    manifest = load_artifact(ring).manifest
    assert manifest.shape.rows == json.loads(path.read_text())["batch"] == BATCH
    free = dataclasses.replace(manifest, shape=dataclasses.replace(manifest.shape, rows=None))
    assert "batch" not in free.to_dict()
    assert parse_manifest(free.to_dict(), path) == free


@pytest.mark.parametrize("batch", [2, 0, True, "3", None])
def test_a_manifest_of_another_batch(ring, tmp_path, batch):
    content = json.loads((ring / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "batch": batch}))
    with pytest.raises(ArtifactError, match=r"batch|shape"):
        load_artifact(tmp_path)


def test_golden_clip_and_parity(ring, tiny_variant, tiny_checkpoint):
    assert replay_golden(load_artifact(ring)).passed
    variants = [ring, tiny_variant(8, *LAYOUTS["window"])]
    clips = [Clip("speech", samples=speech_like(3.01)), Clip("short", samples=speech_like(0.1, 1), stress=True)]
    run = check_parity(variants, clips, frames_per_call=[1, "mixed"], depth=GATE, load=lambda *_: tiny_checkpoint)
    assert run.passed, run
    assert len(run.reports) == 2


def test_conversion_keeps_the_batch(ring, tmp_path):
    convert(ring, tmp_path / "int8", Int8Options())
    artifact = load_artifact(tmp_path / "int8")
    assert artifact.manifest.shape.rows == BATCH
    assert replay_golden(artifact).passed


def test_what_needs_a_free_batch_says_so(ring, tmp_path):
    with pytest.raises(ConfigError, match="has a fixed batch of 3; the benchmark compares batches"):
        variant_contenders([ring])
    with pytest.raises(ArtifactError, match="has a fixed batch of 3, but the programs of a model card run one stream"):
        read_subjects([ring])


def test_command_line(ring, tmp_path, capsys):
    assert main(["inspect", str(ring)]) == 0
    assert "ring, 2 frames per call, batch 3" in capsys.readouterr().out
    assert main(["verify", str(ring)]) == 0
    codes = tmp_path / "codes.npz"
    np.savez(codes, codes=np.zeros((1, 8, 4), np.int64))
    capsys.readouterr()
    assert main(["decode", str(codes), str(tmp_path / "o.wav"), "--variant", str(ring)]) == 3
    assert "this decoder was exported for a batch of 3, got 1" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "o.wav").exists()


@pytest.mark.export
def test_export_option(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "synthetic:tiny", "--num-codebooks", "4", "--kv-cache", "ring", "--json"]
    assert main(["export", "--rows", "2", *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["path"], result["batch"]) == ("artifacts/streaming-4cb-ring-batch2", 2)
    assert load_artifact(result["path"]).spec("encoder").data_input.shape == (2, 1, 1920)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["4"], 2, "Usage: mimi-export export"),
        (["--rows", "0"], 2, "Usage: mimi-export export"),
        (["--rows", "many"], 2, "Usage: mimi-export export"),
        (["--rows", "4", "--dtype", "fp16"], 3, "--dtype goes with --whole-clips"),
        (["--whole-clips", "--rows", "4"], 3, "--rows are for streams"),
    ],
)
def test_wrong_options(tmp_path, capsys, arguments, code, words):
    assert main(["export", "--model", "synthetic:tiny", "--output-dir", str(tmp_path / "x"), *arguments]) == code
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
