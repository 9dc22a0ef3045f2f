"""Whole-clip graphs against batch PyTorch, and the directory around them."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers import DECODER_SNR, match_codes, session, snr
from publishing import whole_clips_from
from transformers import AutoFeatureExtractor, EncodecFeatureExtractor, MimiConfig

from mimi_export.cli import main
from mimi_export.contract.directory import load_batch
from mimi_export.contract.manifest import BATCH_REPORT
from mimi_export.contract.spec import Shape, graph_spec
from mimi_export.errors import ArtifactError, ConfigError, OutputError, ParityError
from mimi_export.export.whole_clip import export_batch
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.parity.whole_clip import check_batch
from mimi_export.passes.whole_clip import EncloseStates, PadToFrames

pytestmark = pytest.mark.export

FRAME = 1920


@pytest.fixture(scope="module")
def tiny_batch(tiny_checkpoint, tmp_path_factory):
    """All data types, all codebooks; never write into it."""
    path = tmp_path_factory.mktemp("batch") / "tiny"
    export_batch(
        tiny_checkpoint, path, dtypes=("fp32", "fp16", "q8"), check=lambda folder: check_batch(tiny_checkpoint, folder)
    )
    return path


def graphs(directory, dtype="fp32"):
    files = load_batch(directory).dtypes[dtype]
    encoder, decoder = (session(directory / files[kind]) for kind in ("encoder", "decoder"))
    return (
        lambda samples: encoder.run(None, {"input_values": samples})[0],
        lambda codes: decoder.run(None, {"audio_codes": codes})[0],
    )


def check(directory, checkpoint, samples, num_codebooks):
    """Codes and audio of `[B, 1, N]` against PyTorch on whole frames."""
    model = checkpoint.model
    encode, decode = graphs(directory)
    padded = np.pad(samples, ((0, 0), (0, 0), (0, -samples.shape[2] % FRAME)))
    latents = upstream.encode_latents(model, torch.from_numpy(padded)).numpy()
    reference = upstream.encode(model, torch.from_numpy(padded), num_codebooks)
    codes = encode(samples)
    assert codes.dtype == np.int64
    match = match_codes(model, latents, reference.numpy(), codes)
    assert match.wrong == 0, match
    assert match.ties <= 0.001 * match.total, match
    assert snr(upstream.decode(model, reference).numpy(), decode(reference.numpy())) >= DECODER_SNR


@pytest.mark.parametrize("length", [1, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME, 5 * FRAME, 24000 * 3 + 7])
def test_any_length(tiny_batch, tiny_checkpoint, length):
    samples = np.stack([speech_like(4, seed)[:length] for seed in (1, 2, 3)])[:, None]
    check(tiny_batch, tiny_checkpoint, samples, 16)


def test_jfk(tiny_batch, tiny_checkpoint, jfk):
    check(tiny_batch, tiny_checkpoint, jfk[None, None], 16)


def test_fewer_codebooks_decode(tiny_batch, tiny_checkpoint):
    encode, decode = graphs(tiny_batch)
    codes = encode(speech_like(1)[None, None])[:, :3]
    wanted = upstream.decode(tiny_checkpoint.model, torch.from_numpy(codes)).numpy()
    assert snr(wanted, decode(codes)) >= DECODER_SNR


@pytest.mark.slow
def test_full_size(full_checkpoint, tmp_path):
    """Kyutai's sizes, longer than the attention window, a length that is no whole number of frames."""
    manifest = export_batch(full_checkpoint, tmp_path / "batch", 8)
    assert set(manifest.dtypes) == {"fp32"}
    check(tmp_path / "batch", full_checkpoint, speech_like(11.7, 4)[None, None], 8)


def test_graphs_have_nothing_but_the_data(tiny_batch):
    for kind, wanted in {
        "encoder": (["input_values"], [["batch", 1, "samples"]], ["audio_codes"], [["batch", 16, "frames"]]),
        "decoder": (["audio_codes"], [["batch", "codebooks", "frames"]], ["audio_values"], [["batch", 1, "samples"]]),
    }.items():
        model = onnx.load(tiny_batch / "onnx" / f"{kind}_model.onnx")
        graph = model.graph

        def shapes(values):
            return [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values]

        names = [[value.name for value in values] for values in (graph.input, graph.output)]
        assert (names[0], shapes(graph.input), names[1], shapes(graph.output)) == wanted
        assert not any(initializer.external_data for initializer in graph.initializer)
        props = {entry.key: entry.value for entry in model.metadata_props}
        assert props["layout"] == "batch"
        assert "states" not in props


def test_configuration_is_what_transformers_reads(tiny_batch, tiny_checkpoint):
    config, wanted = MimiConfig.from_pretrained(tiny_batch), tiny_checkpoint.model.config
    for name in ("hidden_size", "upsampling_ratios", "num_quantizers", "codebook_size", "sliding_window", "frame_rate"):
        assert getattr(config, name) == getattr(wanted, name), name
    fields = json.loads((tiny_batch / "config.json").read_text())
    assert fields["model_type"] == "mimi"
    extractor = AutoFeatureExtractor.from_pretrained(tiny_batch)
    assert extractor.to_dict() == EncodecFeatureExtractor(feature_size=1, sampling_rate=24000).to_dict()


def test_browsers_are_told_where_there_is_no_q8(tiny_checkpoint, tiny_batch):
    from mimi_export.export.whole_clip import config_json

    assert config_json(tiny_checkpoint, 8, ("fp32", "fp16"))["transformers.js_config"] == {"dtype": "fp32"}
    assert "transformers.js_config" not in json.loads((tiny_batch / "config.json").read_text())


def test_report_vouches_for_each_dtype(tiny_batch):
    records = json.loads((tiny_batch / BATCH_REPORT).read_text())["variants"]
    assert [record["precision"] for record in records] == ["fp32", "fp16", "q8"]
    files = load_batch(tiny_batch, verify_hashes=True).files
    for record in records:
        assert record["passed"]
        assert len(record["files"]) == 2
        for name, entry in record["files"].items():
            assert entry == {"bytes": files[name].bytes, "sha256": files[name].sha256}
    exact, half, eight = (record["clips"][0]["decoder"]["snr_db"] for record in records)
    assert exact >= DECODER_SNR > half > eight
    assert records[0]["codes"]["equal_percent"] == 100


def test_wrong_graphs_are_not_kept(tiny_checkpoint, tiny_variant, tmp_path, monkeypatch):
    """A stream that begins with something else than zeros is caught before anything is at the output directory."""
    from mimi_export.passes import whole_clip

    honest = whole_clip._zeros

    def ones(graph, before, state, batch):
        value = honest(graph, before, state, batch)
        if state.name == "conv_dec_2_state":
            tensor = ir.tensor(np.ones(1, np.float32), name="one")
            value.producer().attributes["value"] = ir.AttrTensor("value", tensor)
        return value

    whole_clips_from(monkeypatch, tiny_variant(8))
    monkeypatch.setattr(whole_clip, "_zeros", ones)
    with pytest.raises(ParityError, match="decoder SNR"):
        export_batch(tiny_checkpoint, tmp_path / "wrong", 8, check=lambda folder: check_batch(tiny_checkpoint, folder))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(whole_clip, "_zeros", honest)
    export_batch(tiny_checkpoint, tmp_path / "right", 8, check=lambda folder: check_batch(tiny_checkpoint, folder))


def test_refusals(tiny_checkpoint, tiny_batch, tmp_path):
    with pytest.raises(ConfigError, match="1 to 16"):
        export_batch(tiny_checkpoint, tmp_path / "a", 17)
    with pytest.raises(ConfigError, match="q4"):
        export_batch(tiny_checkpoint, tmp_path / "a", 8, dtypes=("q4",))
    with pytest.raises(OutputError, match="exists already"):
        export_batch(tiny_checkpoint, tiny_batch, 8)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    with pytest.raises(OutputError, match="was not made by"):
        export_batch(tiny_checkpoint, tmp_path / "mine", 8, force=True)
    with pytest.raises(ArtifactError, match="export --whole-clips"):
        load_batch(tmp_path)
    geometry = tiny_checkpoint.geometry
    with pytest.raises(ConfigError, match="window layout"):
        EncloseStates(graph_spec(geometry, "encoder", Shape(8, "ring", 1)))
    with pytest.raises(ir.passes.PreconditionError, match="opset 17"):
        PadToFrames(FRAME)(ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 17}), ir_version=9))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--whole-clips", "--kv-cache", "ring"], "for streams"),
        (["--dtype", "fp16"], "goes with --whole-clips"),
        (["--whole-clips", "--dtype", "q4"], "q4"),
    ],
)
def test_command_line_refusals(capsys, tmp_path, arguments, words):
    assert main(["export", "--model", "synthetic:tiny", "--output-dir", str(tmp_path / "x"), *arguments]) == 3
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


PADDED = """
<ir_version: 10, opset_import: ["" : 20]>
agraph (float[batch, 1, samples] x) => (float[batch, 1, samples] y) { y = Identity (x) }
"""


@pytest.mark.parametrize("length", [0, 1, 4, 5, 8, 9])
def test_pad_to_frames(length):
    model = ir.from_proto(onnx.parser.parse_model(PADDED))
    model.graph.outputs[0].shape = None
    PadToFrames(4)(model)
    proto = ir.to_proto(model)
    import onnxruntime

    run = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run
    x = np.arange(1, 2 * length + 1, dtype=np.float32).reshape(2, 1, length)
    (y,) = run(None, {"x": x})
    np.testing.assert_array_equal(y, np.pad(x, ((0, 0), (0, 0), (0, -length % 4))))
