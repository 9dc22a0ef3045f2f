"""Latents: what the quantiser would get, out of the encoder and into the decoder, against untouched upstream code."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import REPOSITORY
from helpers import DECODER_SNR, snr
from mutations import broken, lose_state

from mimi_export.contract.directory import load_artifact
from mimi_export.contract.manifest import FileEntry, parse_manifest
from mimi_export.contract.precision import Int8Options
from mimi_export.contract.spec import Shape
from mimi_export.errors import ArtifactError, CodesError, ConfigError
from mimi_export.export.convert import convert
from mimi_export.export.variant import export_variant
from mimi_export.hub.card import model_card
from mimi_export.hub.subjects import Subject
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.parity.checks import budgets_for, judge
from mimi_export.parity.clips import Clip
from mimi_export.parity.measure import measure
from mimi_export.parity.reports import html, markdown
from mimi_export.parity.reports import json as report_json
from mimi_export.parity.results import ParityRun
from mimi_export.runtime import StreamPool, load
from mimi_export.runtime.golden import replay_golden

F = 1920
FRAMES = 100
ALONE = (0,)  # arguments of `tiny_variant`
BOTH = (8, "ring", 2)


@pytest.fixture(scope="module")
def alone(tiny_variant):
    return tiny_variant(*ALONE, head="latents", start="latents")


@pytest.fixture(scope="module")
def both(tiny_variant):
    return tiny_variant(*BOTH, head="both", start="latents")


@pytest.fixture(scope="module")
def truth(tiny_checkpoint):
    """Audio `[n]`, latents `[T, hidden]`, codes `[8, T]`, audio decoded from the latents."""
    model, audio = tiny_checkpoint.model, speech_like(9, seed=41)[: FRAMES * F]
    latents = upstream.encode_latents(model, torch.from_numpy(audio[None, None]))
    codes = upstream.quantize_latents(model, latents, 8)
    return audio, latents[0].T.numpy(), codes[0].numpy(), upstream.decode_latents(model, latents)[0, 0].numpy()


def test_latents_decode_as_codes_do(tiny_checkpoint, truth):
    """`decode_latents` is `MimiModel.decode` after the quantiser."""
    model, codes = tiny_checkpoint.model, torch.from_numpy(truth[2][None])
    entries = upstream.parts(model).quantizer.decode(codes)
    assert torch.equal(upstream.decode_latents(model, entries), upstream.decode(model, codes))


@pytest.mark.parametrize("size", [313, F, 5 * F])
@pytest.mark.parametrize("variant", ["alone", "both"])
def test_streams_of_any_pieces(request, variant, size, truth):
    audio, latents, codes, decoded = truth
    codec = load(request.getfixturevalue(variant))
    encoder, decoder = codec.encoder.latents(), codec.decoder.stream()
    pieces = [encoder.encode(audio[start : start + size]) for start in range(0, len(audio) - 100, size)]
    last, real = encoder.finish()
    got = np.concatenate([*(piece.latents for piece in pieces), last.latents], axis=1)
    assert snr(latents, got[0]) >= DECODER_SNR
    assert real < 2 * F
    if variant == "both":
        assert np.array_equal(np.concatenate([*(piece.codes for piece in pieces), last.codes], axis=2)[0], codes)
    step = size // 300
    heard = [decoder.push(latents[start : start + step]) for start in range(0, FRAMES, step)]
    assert snr(decoded, np.concatenate([*heard, decoder.flush()], axis=1)[0]) >= DECODER_SNR


def test_flush_fills_the_last_frame(alone, truth):
    stream = load(alone).encoder.latents()
    first = stream.push(truth[0][: F + 700])
    assert first.dtype == np.float32
    assert first.shape == (1, 1, truth[1].shape[1])
    last = stream.flush()
    assert last.latents.shape == first.shape
    assert last.real_samples == 700
    padded = load(alone).encoder.latents().push(np.pad(truth[0][: F + 700], (0, F - 700)))
    assert np.array_equal(padded[:, 1:], last.latents)


def test_one_pass_gives_what_two_give(both, tiny_variant, truth):
    """The codes of a graph that gives latents as well are those of one that does not, bit for bit."""
    audio = truth[0][: 20 * F]
    encoded = load(both).encoder.stream().encode(audio)
    assert np.array_equal(encoded.codes, load(tiny_variant(*BOTH)).encoder.stream().push(audio))
    assert np.array_equal(encoded.latents, load(both).encoder.latents().push(audio))


def test_outputs_stand_where_clients_expect_them(both, tiny_variant):
    """A client that counts outputs finds codes and states where they were; latents come last."""
    old, new = (load_artifact(path).spec("encoder") for path in (tiny_variant(*BOTH), both))
    assert new.outputs[:-1] == old.outputs
    assert new.outputs[-1].name == "latents"


def test_pool(both, truth):
    """Rows of a pool take latents."""
    pool = StreamPool(load(both).decoder, 3)
    pool.open()
    stream = pool.open()
    stream.push(truth[1])
    heard = np.concatenate([output.output for _ in range(FRAMES // 2) for output in pool.step()])
    assert snr(truth[3], heard) >= DECODER_SNR


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"num_codebooks": 8, "head": "latents", "start": "latents"}, "0 where the encoder gives latents alone"),
        ({"num_codebooks": 0}, "num_codebooks is 0, expected 1 or more"),
        ({"num_codebooks": 8, "start": "latents"}, "cannot take latents where the encoder gives codes"),
        ({"num_codebooks": 0, "head": "latents"}, "cannot take codes where the encoder gives latents"),
    ],
)
def test_shapes_that_do_not_fit(shape, words):
    with pytest.raises(ConfigError, match=words):
        Shape(**shape)


def test_bad_input(alone, tiny_variant, truth):
    codec = load(alone)
    with pytest.raises(ConfigError, match="gives latents and no codes"):
        codec.encoder.stream()
    with pytest.raises(ConfigError, match="gives codes and no latents"):
        load(tiny_variant(8)).encoder.latents()
    decoder, bad = codec.decoder.stream(), truth[1][:3].copy()
    for data in (truth[2], truth[1][:, :5], truth[1].astype(np.int64)):
        with pytest.raises(CodesError, match="this decoder takes floats"):
            decoder.push(data)
    bad[1, 2] = np.nan
    with pytest.raises(CodesError, match="channel 2 at row 0, frame 1 is nan"):
        decoder.push(bad)


def test_int8(both, tmp_path, truth):
    convert(both, tmp_path / "low", Int8Options())
    codec = load(tmp_path / "low")
    assert 38 <= snr(truth[1], codec.encoder.latents().push(truth[0])[0]) < 90
    assert 38 <= snr(truth[3], codec.decoder.stream().push(truth[1])[0]) < 90
    assert replay_golden(codec.artifact).passed


def test_a_lost_state_is_found(alone, tmp_path):
    bad = replay_golden(load_artifact(broken(alone, tmp_path / "bad", "encoder", lose_state("conv_ds_state"))))
    assert not bad.passed
    assert bad.latents_db < 60
    assert bad.codes_equal is None


# --- encoders alone


@pytest.fixture(scope="module")
def encoder_alone(tiny_checkpoint, tmp_path_factory):
    """Exported from a model without a decoder."""
    path = tmp_path_factory.mktemp("encoder") / "alone"
    model = copy.deepcopy(tiny_checkpoint.model)
    upstream.remove_decoder(model)
    checkpoint = Checkpoint(model, tiny_checkpoint.geometry, "alone", None)
    with pytest.raises(ConfigError, match="alone: this model is an encoder alone: it has no decoder"):
        export_variant(checkpoint, path, Shape(8))
    export_variant(checkpoint, path, Shape(8, head="both", start="nothing"))
    return path, checkpoint


def test_encoder_alone(encoder_alone, truth):
    path = encoder_alone[0]
    assert {file.name for file in path.glob("*.onnx")} == {"encoder_model.onnx"}
    assert "[decoder]" not in (path / "state_spec.txt").read_text()
    codec = load(path)
    encoded = codec.encoder.stream().encode(truth[0])
    assert np.array_equal(encoded.codes[0], truth[2])
    assert snr(truth[1], encoded.latents[0]) >= DECODER_SNR
    with pytest.raises(ArtifactError, match="has no decoder: it was exported as an encoder alone"):
        codec.decoder.stream()
    assert replay_golden(codec.artifact).passed


def test_manifests(encoder_alone, both):
    """The keys that old manifests do not have; a manifest is the same when read and written again."""
    for path, keys in ((encoder_alone[0], ("both", "nothing")), (both, ("both", "latents"))):
        content = json.loads((path / "manifest.json").read_text())
        assert (content["head"], content["from"]) == keys
        assert parse_manifest(content, path).to_dict() == content
    content = json.loads((REPOSITORY / "tests" / "manifest.json").read_text())
    assert not {"head", "from"} & set(content)


def test_parity_reports_and_card(encoder_alone, alone, tiny_checkpoint, tmp_path):
    clips = [Clip("speech", speech_like(3, seed=5))]
    reports = [measure(*encoder_alone, clips, (1,)), measure(alone, tiny_checkpoint, clips, (1, "mixed"))]
    for report in reports:
        report.checks = judge(report, budgets_for(report.manifest, {}))
        assert "latent_snr_db" in {check.metric for check in report.checks}
    assert set(reports[1].clips[0].latent_calls) == {"1", "mixed"}
    run = ParityRun(reports)
    assert run.passed, run.problems
    for text in (html.to_text(run), markdown.to_text(run)):
        assert "Latents against PyTorch" in text
        assert not re.search(r"[>| ]nan[<| %]", text)
    records = report_json.to_report(run).variants
    assert records[0].clips[0].decoder.snr_db is None
    assert records[1].clips[0].latent_calls["1"].snr_db > 110
    report = reports[1]
    report.clips[0].latent_calls["mixed"] = dataclasses.replace(report.clips[0].latents, snr_db=99.0)
    assert not all(check.passed for check in judge(report, budgets_for(report.manifest, {})))

    manifests = [dataclasses.replace(report.manifest, source=reports[1].manifest.source) for report in reports]
    subjects = [
        Subject(alone, manifest, f"{manifest.name}/", {"encoder_model.onnx": FileEntry(1, "")}, [record])
        for manifest, record in zip(manifests, records, strict=True)
    ]
    card = model_card(subjects)
    assert "bare.py" not in card  # it hands codes on
    program = card.split("```python\n")[1].split("```")[0]
    source, target = tmp_path / "clip.wav", tmp_path / "latents.npy"
    soundfile.write(source, clips[0].samples, 24000)
    subprocess.run([sys.executable, "-c", program, str(alone), str(source), str(target)], check=True, timeout=120)
    assert np.load(target).shape == (38, tiny_checkpoint.geometry.hidden_size)


@pytest.mark.slow
def test_full_size_thirty_seconds(full_variant, full_checkpoint):
    """The real sizes, longer than the attention's window, in both layouts, from the first frame on."""
    audio = speech_like(30, seed=3)[: 375 * F]
    latents = upstream.encode_latents(full_checkpoint.model, torch.from_numpy(audio[None, None]))
    decoded = upstream.decode_latents(full_checkpoint.model, latents)[0, 0].numpy()
    wanted = latents[0].T.numpy()
    for shape in ((0, "window"), (0, "ring", 1)):
        codec = load(full_variant(*shape, head="latents", start="latents"))
        encoder, decoder = codec.encoder.latents(), codec.decoder.stream()
        got = np.concatenate([encoder.push(audio[start : start + F]) for start in range(0, len(audio), F)], axis=1)[0]
        heard = np.concatenate([decoder.push(wanted[frame : frame + 1]) for frame in range(375)], axis=1)[0]
        assert snr(wanted, got) >= 110
        assert snr(wanted[:1], got[:1]) >= 110
        assert snr(decoded, heard) >= 110
