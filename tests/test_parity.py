"""The parity command: exact variants pass, every broken graph is refused and the guilty place is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest
import soundfile
from helpers import OTHER_PROVIDER, snr
from mutations import broken, ignore_state, other_mutations, state_mutations, swap_states, wrong_weight

from mimi_export.cli import main
from mimi_export.contract.directory import load_artifact
from mimi_export.contract.recipes import Budget, ExportRecipe, Variant
from mimi_export.contract.spec import Shape
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.parity.checks import DEFAULT_BUDGETS, budgets_for, judge
from mimi_export.parity.clips import Clip, clips_from_files, default_clips
from mimi_export.parity.explain import explain
from mimi_export.parity.measure import measure
from mimi_export.parity.reference import Reference, context_frames

RATE = 24000
SHORT = ("--calls", "1", "--quick")


@pytest.fixture(scope="module")
def speech() -> Clip:
    return Clip("speech", speech_like(4.0, 1))  # 100 tokens, six times the tiny window


@pytest.fixture(scope="module")
def reference(tiny_checkpoint, speech):
    with Reference(tiny_checkpoint, [8], lambda text: None) as reference:
        reference.clip(speech)
        yield reference


@pytest.fixture(scope="module")
def wav(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "speech.wav"
    soundfile.write(path, speech_like(2.0, 1), RATE, subtype="FLOAT")
    return path


@pytest.mark.parametrize(("layout", "frames_per_call"), [("window", None), ("ring", 2)])
def test_exact_variant_passes(tiny_variant, tiny_checkpoint, layout, frames_per_call):
    variant = tiny_variant(8, layout, frames_per_call)
    report = measure(variant, tiny_checkpoint, default_clips(RATE, seconds=21.0), progress=lambda *told: None)
    report.checks = judge(report, DEFAULT_BUDGETS["fp32"])
    assert report.passed, [check.line for check in report.checks]
    assert list(report.clips[0].codes) == (["2"] if frames_per_call else ["1", "2", "3", "4", "7", "mixed"])
    assert report.codes.differ == 0
    assert all(clip.latents is not None and clip.latents.snr_db > 110 for clip in report.clips)
    drift = report.clips[0].drift["decoder"]
    assert abs(drift.first_db - drift.last_db) < 3  # no growth
    assert [clip.num_frames for clip in report.clips] == [263, 25, 25, 25, 25, 1]


def test_reference_is_upstream_itself(reference, speech, tiny_checkpoint):
    """Codes by parts are those of `MimiModel.encode`, audio that of `MimiModel.decode`."""
    import torch

    (piece,) = reference.clip(speech).pieces()
    codes = upstream.encode(tiny_checkpoint.model, torch.from_numpy(piece.samples[None, None]), 8)
    assert np.array_equal(piece.codes, codes[0].numpy())
    assert np.array_equal(piece.audio[8], upstream.decode(tiny_checkpoint.model, codes)[0, 0].numpy())


def test_long_clips_in_pieces_are_the_same(tiny_checkpoint, speech):
    """Overlapping pieces give what one batch call gives; a context that is too short does not."""
    longer = replace(speech, samples=speech_like(12.0, 2))
    limit = context_frames(tiny_checkpoint.geometry) + 40
    results = []
    for max_frames, context in ((1000, None), (limit, None), (limit, 2)):
        with Reference(tiny_checkpoint, [4, 8], lambda text: None, max_frames) as reference:
            if context is not None:
                reference._context = context
            clip = reference.clip(longer)
            assert (clip.num_pieces > 1) == (max_frames == limit)
            pieces = list(clip.pieces())
            results.append((
                np.concatenate([piece.latents for piece in pieces], axis=1),
                np.concatenate([piece.audio[4] for piece in pieces]),
            ))  # fmt: skip
    whole, parts, wrong = results
    for right, got, bad in zip(whole, parts, wrong, strict=True):
        assert snr(right, got) > 115  # rounding: RoPE begins at another position
        assert snr(right, bad) < 80


@pytest.mark.slow
def test_every_broken_graph_is_refused_and_named(tiny_variant, reference, speech, tmp_path, monkeypatch):
    """The whole list, on one graph each: every state ignored, lost, swapped; window, position, replicate, bias.

    By the clip alone: the situations take seconds a graph and have mutants of their own.
    """
    monkeypatch.setattr("mimi_export.parity.measure.run_situations", lambda *_: [])
    variant = tiny_variant(8)
    listed = [*state_mutations(load_artifact(variant))]
    listed += [(title, kind, (place,), mutation) for title, kind, place, mutation in other_mutations()]
    assert len(listed) > 75
    passed, unnamed = [], []
    for index, (title, kind, guilty, mutation) in enumerate(listed):
        artifact = load_artifact(broken(variant, tmp_path / str(index), kind, mutation))
        report = measure(artifact, reference.checkpoint, [speech], (1,), lambda text: None, reference)
        report.checks = judge(report, DEFAULT_BUDGETS["fp32"])
        found = explain(artifact, reference, reference.clip(speech))
        if report.passed:
            passed.append(title)
        if not found or found[0].kind != kind or not any(name in found[0].line for name in guilty):
            unnamed.append((title, [item.line for item in found]))
        shutil.rmtree(artifact.path)
    assert passed == []
    assert unnamed == []


@pytest.mark.parametrize(
    ("kind", "mutation", "named"),
    [
        ("encoder", ignore_state("conv_enc_3_state"), "the state conv_enc_3_state is ignored"),
        ("decoder", swap_states("key_0", "key_1"), "the state key_1 is read in place of key_0"),
        ("encoder", wrong_weight("convs.enc_6.weight"), "parts at enc_6 in call 0"),
    ],
)
def test_command_refuses_a_broken_graph(tiny_variant, tmp_path, wav, capsys, monkeypatch, kind, mutation, named):
    """On a provider that every session of a graph gets."""
    directory = broken(tiny_variant(8), tmp_path / "broken", kind, mutation)
    out, started = tmp_path / "out", []
    real = onnxruntime.InferenceSession

    def session(*given, providers):
        started.append(providers)
        return real(*given, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    more = ["--explain", "--report", str(out), "--provider", OTHER_PROVIDER]
    code = main(["parity", str(directory), "--audio", str(wav), *SHORT, *more])
    shown = capsys.readouterr()
    assert started == [[OTHER_PROVIDER]] * 5, "both graphs as streams, the encoder's latents, both to explain"
    assert code == 1
    assert named in shown.err
    assert "wanted at least" in shown.err
    content = json.loads((out / "report.json").read_text())
    assert content["passed"] is False
    assert named in content["variants"][0]["explanations"][0]["line"]
    assert content["variants"][0]["tools"].get("provider", "CPUExecutionProvider") == OTHER_PROVIDER


@pytest.mark.parametrize("command", ["parity", "sensitivity"])
def test_a_provider_that_is_not_here_is_refused_at_once(capsys, command):
    assert main([command, "none", "--provider", "abacus"]) == 3
    assert capsys.readouterr().err.startswith("error: onnxruntime has no abacus here; it offers ")


def test_nothing_to_explain_in_a_right_graph(tiny_variant, reference, speech):
    assert explain(load_artifact(tiny_variant(8)), reference, reference.clip(speech)) == []


def test_command_passes_and_speaks_json(tiny_variant, wav, capsys):
    assert main(["parity", str(tiny_variant(8)), "--audio", str(wav), *SHORT, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["passed"] is True
    assert content["variants"][0]["codes"]["equal_percent"] == 100


def test_could_not_measure_has_its_own_exit_code(tiny_variant, tmp_path, wav, capsys):
    for arguments, words in (
        ([str(tmp_path / "nothing")], "there is no directory"),
        ([str(tiny_variant(8)), str(tmp_path / "nothing")], "there is no directory"),
        ([str(tiny_variant(8)), "--audio", str(tmp_path / "no.wav")], "cannot be read"),
        ([str(tiny_variant(8)), "--reference", str(tmp_path)], "config.json"),
    ):
        audio = [] if "--audio" in arguments else ["--audio", str(wav)]
        assert main(["parity", *arguments, *audio, *SHORT]) == 10
        lines = capsys.readouterr().err.splitlines()
        assert sum("could not measure" in line for line in lines) == 1
        assert words in lines[-1]
        assert "Traceback" not in lines[-1]


def test_changed_files_are_not_measured(tiny_variant, tmp_path, wav, capsys):
    directory = shutil.copytree(tiny_variant(8), tmp_path / "changed")
    path = directory / "decoder_model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert main(["parity", str(directory), "--audio", str(wav), *SHORT]) == 10
    assert "was changed" in capsys.readouterr().err


def test_other_model_is_refused(tiny_variant, full_geometry_checkpoint, speech):
    from mimi_export.errors import ArtifactError

    with pytest.raises(ArtifactError, match="--reference"):
        measure(tiny_variant(8), full_geometry_checkpoint, [speech], progress=lambda *told: None)


@pytest.fixture
def full_geometry_checkpoint(tiny_checkpoint):
    return replace(tiny_checkpoint, geometry=replace(tiny_checkpoint.geometry, hidden_size=64))


@pytest.mark.parametrize("seconds", [0.0, 1 / RATE, 1919 / RATE, 1920 / RATE, 1921 / RATE, 3840 / RATE])
def test_lengths_around_a_frame(tiny_variant, tiny_checkpoint, seconds):
    from mimi_export.errors import AudioError

    clip = Clip("short", speech_like(seconds, 1))
    if seconds == 0:
        with pytest.raises(AudioError, match="at least one sample"):
            measure(tiny_variant(8), tiny_checkpoint, [clip], (1,), lambda text: None)
        return
    report = measure(tiny_variant(8), tiny_checkpoint, [clip], (1, "mixed"), lambda text: None)
    assert report.clips[0].num_frames == -(-round(seconds * RATE) // 1920)
    assert report.codes.differ == 0


def test_nan_samples_are_one_clear_line(tiny_variant, tmp_path, capsys):
    samples = speech_like(1.0, 1)
    samples[1000] = np.nan
    path = tmp_path / "nan.wav"
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    assert main(["parity", str(tiny_variant(8)), "--audio", str(path), *SHORT]) == 10
    assert "number 1000" in capsys.readouterr().err


def test_silence_and_8_channels_at_96_khz(tiny_variant, tmp_path, capsys):
    silent, wide = tmp_path / "silence.wav", tmp_path / "wide.wav"
    soundfile.write(silent, np.zeros(RATE, np.float32), RATE)
    soundfile.write(wide, np.repeat(speech_like(1.0, 1, 96000)[:, None], 8, axis=1), 96000)
    arguments = ["parity", str(tiny_variant(8)), "--audio", str(silent), "--audio", str(wide), *SHORT, "--json"]
    assert main(arguments) == 0
    content = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert [clip["seconds"] for clip in content["variants"][0]["clips"]] == [1.0, 1.0]


def test_budgets_come_from_the_configuration_of_that_name(tiny_variant):
    manifest = load_artifact(tiny_variant(8)).manifest
    budget = Budget("decoder_snr_db", 500.0, None, "nothing is that good")
    variants = {manifest.name: Variant(manifest.name, ExportRecipe(Shape(8)), (budget,))}
    assert budgets_for(manifest, variants) == (budget,)
    assert budgets_for(manifest, {}) == DEFAULT_BUDGETS["fp32"]


def test_existing_report_is_kept_without_force(tiny_variant, tmp_path, wav, capsys):
    out = tmp_path / "out"
    arguments = ["parity", str(tiny_variant(8)), "--audio", str(wav), *SHORT, "--report", str(out)]
    assert main(arguments) == 0
    before = (out / "report.json").read_bytes()
    assert main(arguments) == 8
    assert "--force" in capsys.readouterr().err
    assert (out / "report.json").read_bytes() == before
    assert main([*arguments, "--force"]) == 0


def test_interrupt_leaves_nothing_half_written(tiny_variant, tmp_path, wav, monkeypatch):
    from mimi_export.parity.reports import markdown as report_md

    def interrupt(run: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(report_md, "to_text", interrupt)  # after report.json was written
    out = tmp_path / "reports" / "out"
    assert main(["parity", str(tiny_variant(8)), "--audio", str(wav), *SHORT, "--report", str(out)]) == 130
    assert list((tmp_path / "reports").iterdir()) == []


def test_same_names_are_told_apart():
    assert [clip.name for clip in clips_from_files(["a/x.wav", "b/x.flac"])] == ["x", "x-2"]


@pytest.mark.slow
def test_memory_stays_flat_over_half_an_hour(tiny_variant, tiny_checkpoint, tmp_path):
    """30 min of audio need as much memory as 5, but for a few numbers a frame and what the allocator keeps."""
    process = psutil.Process()
    peaks = []
    for minutes in (5, 30):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
            block = speech_like(60.0, 3)
            for _ in range(minutes):
                file.write(block)
        peak = 0

        def watch(text: str) -> None:
            nonlocal peak
            peak = max(peak, process.memory_info().rss)

        report = measure(tiny_variant(8), tiny_checkpoint, clips_from_files([path]), (7,), watch)
        watch("")
        assert report.codes.differ == 0
        assert report.clips[0].num_frames == minutes * 750
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 120 * 2**20  # the samples alone would be 173 MB; other tests leave room in the heap


@pytest.mark.slow
def test_full_size_on_real_speech(full_variant, full_checkpoint, jfk):
    """Three times over the recording: 33 s, more than three attention windows."""
    clips = [Clip("jfk", np.concatenate([jfk, jfk, jfk]))]
    report = measure(full_variant(8), full_checkpoint, clips, (1, "mixed"), lambda text: None)
    report.checks = judge(report, DEFAULT_BUDGETS["fp32"])
    assert report.passed, [check.line for check in report.checks]


@pytest.mark.parametrize("calls", ["0", "33", "1,,2", "often", "²"])
def test_calls_that_are_none(cli, tmp_path, calls):
    code, _, errors = cli("parity", tmp_path, "--calls", calls)
    assert code == 2
    assert "expected numbers from 1 to 32 and 'mixed', with commas" in " ".join(errors.split())
