"""Conversion of whole variants: what comes out, how good it is, and every way to ask for it wrongly."""

import errno
import hashlib
import json
import shutil
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import soundfile
import torch
import typer
from conftest import REPOSITORY
from helpers import onnx_step, session, snr, stream, zeros

from mimi_export.cli import main
from mimi_export.cli.errors import errors_as_exit_codes
from mimi_export.contract.directory import load_artifact
from mimi_export.contract.files import sha256
from mimi_export.contract.manifest import MANIFEST_NAME
from mimi_export.contract.precision import Fp16Options, Int8Options, patterns_for
from mimi_export.contract.recipes import ConvertRecipe, load_variants
from mimi_export.contract.spec import GRAPH_KINDS
from mimi_export.errors import ArtifactError, AudioError, ConfigError, GraphError, MimiExportError, OutputError
from mimi_export.export import convert as conversion
from mimi_export.export.convert import calibration_for, convert, convert_graph
from mimi_export.export.precision import check_patterns, weight_forms
from mimi_export.media.audio import read_audio
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.parity.clips import Clip, default_clips
from mimi_export.runtime import load
from mimi_export.runtime.integers import check_integers

SECONDS = 4.0
# Options, and the least dB of the decoder from the reference's codes.
# Tiny layers have few terms a sum, so rounding averages out less than in the real geometry: these are floors that a
# lost scale or zero point breaks by far, the real budgets are in configs/.
CASES = {
    "fp16": (Fp16Options(), 55),
    "int8": (Int8Options(), 34),
    "codebooks": (Int8Options(round_codebooks=True), 34),
}


@pytest.fixture(scope="module")
def parent(tiny_variant):
    return tiny_variant()


@pytest.fixture(scope="module")
def truth(tiny_checkpoint):
    model, geometry = tiny_checkpoint.model, tiny_checkpoint.geometry
    frames = int(SECONDS * geometry.frame_rate)
    audio = torch.from_numpy(speech_like(SECONDS + 1, 3, geometry.sampling_rate)[: frames * geometry.frame_size])
    codes = upstream.encode(model, audio[None, None], 8)
    return audio.numpy(), codes.numpy(), upstream.decode(model, codes).numpy()[0, 0]


@pytest.fixture(scope="module")
def converted(parent, tmp_path_factory):
    root = tmp_path_factory.mktemp("converted")

    def make(case, source=parent):
        path = root / f"{source.name}-{case.replace(' ', '-')}"
        if not path.exists():
            convert(source, path, CASES[case][0])
        return path

    return make


def run_decoder(path, codes):
    decoder = load(path).decoder.stream()
    return np.concatenate([decoder.push(codes[0, :, i : i + 1]) for i in range(codes.shape[2])], axis=1)[0]


def run_encoder(path, audio):
    encoder = load(path).encoder.stream()
    return encoder.push(audio)


@pytest.mark.parametrize("case", CASES)
def test_near_the_reference(converted, truth, case):
    audio, codes, wanted = truth
    got = run_decoder(converted(case), codes)
    assert CASES[case][1] < snr(wanted, got) < 90, "too bad, or not converted at all"
    equal = (run_encoder(converted(case), audio) == codes).mean()
    assert equal > (0.97 if case == "fp16" else 0.5)


def test_ring(tiny_variant, converted, truth):
    path = converted("int8", tiny_variant(layout="ring", frames_per_call=1))
    assert load_artifact(path).manifest.shape.layout == "ring"
    got = run_decoder(path, truth[1])
    assert CASES["int8"][1] < snr(truth[2], got) < 90


@pytest.mark.parametrize("case", CASES)
def test_directory(parent, converted, case):
    before, after = load_artifact(parent, True), load_artifact(converted(case), True)
    assert after.manifest.precision == ("fp16" if case == "fp16" else "int8")
    assert after.manifest.name == converted(case).name
    assert (converted(case) / "state_spec.txt").read_bytes() == (parent / "state_spec.txt").read_bytes()
    first, options, *graphs = after.manifest.conversion
    assert first["parent"] == before.manifest.name
    assert first["files"] == {name: entry.sha256 for name, entry in before.manifest.files.items()}
    assert CASES[case][0].record().items() <= options.items()
    assert ("calibration" in options) == (case != "fp16")
    for kind in GRAPH_KINDS:
        assert (check_integers(after.graph_path(kind)) > 0) == (case != "fp16")
    assert [record["graph"] for record in graphs] == list(GRAPH_KINDS)
    for kind in GRAPH_KINDS:
        old, new = onnx.load(before.graph_path(kind)), onnx.load(after.graph_path(kind))
        assert old.graph.input == new.graph.input
        assert old.graph.output == new.graph.output
        props = {entry.key: entry.value for entry in new.metadata_props}
        assert (props["precision"], props["name"]) == (after.manifest.precision, after.manifest.name)
        assert after.graph_path(kind).stat().st_size < before.graph_path(kind).stat().st_size
        taps = {name for node in old.graph.node for name in node.output if name.startswith("tap_")}
        assert taps <= {name for node in new.graph.node for name in node.output}


@pytest.mark.parametrize("case", [case for case in CASES if case != "codebooks"])
def test_encoder_codebooks_stay_float(parent, converted, case):
    before, after = (
        {tensor.name: tensor for tensor in onnx.load(load_artifact(path).graph_path("encoder")).graph.initializer}
        for path in (parent, converted(case))
    )
    search = [name for name in before if ".codebooks." in name or ".offsets." in name]
    assert len(search) == 16
    for name in search:
        assert before[name].raw_data == after[name].raw_data
        assert after[name].data_type == onnx.TensorProto.FLOAT


def test_encoder_codebooks_are_rounded_where_asked_for(converted):
    tensors = onnx.load(load_artifact(converted("codebooks")).graph_path("encoder")).graph.initializer
    books = [tensor for tensor in tensors if tensor.name.endswith(tuple(f".codebooks.{level}" for level in range(8)))]
    assert len(books) == 8
    assert {tensor.data_type for tensor in books} == {onnx.TensorProto.INT8}


def test_same_bytes_again(parent, tmp_path):
    for name in ("a", "b"):
        convert(parent, tmp_path / name, Int8Options(), name="same")
    files = [path.name for path in (tmp_path / "a").iterdir()]
    assert {sha256(tmp_path / "a" / name) for name in files} == {sha256(tmp_path / "b" / name) for name in files}


def test_parent_is_left_as_it_was(parent, tmp_path):
    before = {path.name: sha256(path) for path in parent.iterdir()}
    convert(parent, tmp_path / "x", Fp16Options())
    assert {path.name: sha256(path) for path in parent.iterdir()} == before


@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_fp16_takes_over_in_mid_stream(parent, converted, truth, kind):
    """The states of one graph feed the other, call by call; the audio is as near as fp16 alone."""
    graphs = [load_artifact(path) for path in (parent, converted("fp16"))]
    steps = [onnx_step(session(graph.graph_path(kind))) for graph in graphs]
    calls = iter(range(10**6))

    def alternate(data, states):
        return steps[next(calls) % 2](data, states)

    spec, audio = graphs[0].spec(kind), truth[0][None, None]
    data, unit = (audio, graphs[0].geometry.frame_size) if kind == "encoder" else (truth[1], 1)
    got, states = stream(alternate, zeros(spec, 1), data, unit, [1])
    assert next(calls) > 40
    assert set(states) == {state.name for state in spec.states}
    if kind == "encoder":
        assert (got == truth[1]).mean() > 0.97
    else:
        assert snr(truth[2], got[0, 0]) > 55


def test_patterns_of_one_graph():
    patterns = ("a", "encoder:b", "decoder:c.*")
    assert patterns_for("encoder", patterns) == ("a", "b")
    assert patterns_for("decoder", patterns) == ("a", "c.*")


@pytest.mark.parametrize(
    "options", [Fp16Options(keep_float=("layer.0.fc1",)), Int8Options(keep_float=("encoder:*.table",))]
)
def test_a_pattern_that_fits_nothing(parent, tmp_path, options):
    with pytest.raises(ConfigError, match=r"no weight is called '(layer.0.fc1|encoder:\*.table)'"):
        convert(parent, tmp_path / "x", options)
    assert list(tmp_path.iterdir()) == []


def test_keep(parent):
    options = Int8Options(keep_float=("layers.*.fc1", "encoder:layers.*.fc2"))
    models = {kind: ir.load(load_artifact(parent).graph_path(kind)) for kind in GRAPH_KINDS}
    check_patterns(models, options)
    forms = {kind: weight_forms(model, kind, options) for kind, model in models.items()}
    for kind in GRAPH_KINDS:
        assert forms[kind]["layers.0.fc1"] == forms[kind]["layers.1.fc1"] == "float32"
        assert forms[kind]["layers.0.attention.qkv"] == "int8"
    assert (forms["encoder"]["layers.0.fc2"], forms["decoder"]["layers.0.fc2"]) == ("float32", "int8")


def test_calibration_with_recordings(parent, tmp_path):
    sound = speech_like(3.0, 9, 24000)
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        soundfile.write(tmp_path / f"{name}.wav", sound[: int(24000 * seconds)], 24000)
    done = convert(parent, tmp_path / "x", Int8Options(calibrate=(str(tmp_path / "a.wav"), str(tmp_path / "b.wav"))))
    record = done.manifest.conversion[1]
    assert record["calibration"] == "a.wav, b.wav"
    read = np.concatenate([read_audio(tmp_path / f"{name}.wav", 24000) for name in "ab"])
    whole = len(read) // 1920 * 1920
    assert record["sha256"] == hashlib.sha256(read[:whole].astype("<f4").tobytes()).hexdigest()
    generated = convert(parent, tmp_path / "y", Int8Options())
    assert generated.manifest.conversion[1]["sha256"] != record["sha256"]
    with pytest.raises(AudioError, match=r"none\.wav"):
        convert(parent, tmp_path / "z", Int8Options(calibrate=(str(tmp_path / "none.wav"),)))
    assert not (tmp_path / "z").exists()


def test_codes_do_not_depend_on_the_cut(converted, truth):
    """Integers are the same; float products of more rows may add up in another order, far below a code."""
    encoder = load(converted("int8")).encoder
    whole, stream = encoder.stream().push(truth[0]), encoder.stream()
    pieces = [stream.push(truth[0][start : start + 1920]) for start in range(0, len(truth[0]), 1920)]
    assert (whole == np.concatenate(pieces, axis=2)).mean() > 0.99


def damaged(parent, tmp_path, change):
    path = tmp_path / "parent"
    shutil.copytree(parent, path)
    change(path)
    return path


def flip(path):
    file = path / "encoder_model.onnx"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(bytes(content))


def mix(path):
    """One graph of another variant, with the manifest saying so: the mixture is not complete in itself."""
    manifest = json.loads((path / MANIFEST_NAME).read_text())
    manifest["precision"] = "int8"
    (path / MANIFEST_NAME).write_text(json.dumps(manifest))


DAMAGE = {
    "incomplete": (lambda path: (path / "decoder_model.onnx").unlink(), "is incomplete: decoder_model.onnx is missing"),
    "no manifest": (lambda path: (path / MANIFEST_NAME).unlink(), "has no manifest.json"),
    "changed": (flip, "encoder_model.onnx was changed: its SHA-256 begins"),
    "mixed": (mix, "is int8 already; convert the fp32 variant"),
}


@pytest.mark.parametrize("options", [Fp16Options(), Int8Options()])
@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_parents(parent, tmp_path, damage, options):
    change, message = DAMAGE[damage]
    with pytest.raises(ArtifactError, match=message):
        convert(damaged(parent, tmp_path, change), tmp_path / "x", options)
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


@pytest.mark.parametrize("case", ["fp16", "int8"])
@pytest.mark.parametrize("options", [Fp16Options(), Int8Options()])
def test_converted_already(converted, tmp_path, case, options):
    with pytest.raises(ArtifactError, match=r"is (fp16|int8) already; convert the fp32 variant that it was made from"):
        convert(converted(case), tmp_path / "x", options)


def test_a_converted_graph_under_an_fp32_manifest(parent, converted):
    """A graph that lies about itself is refused by the pass."""
    for case, options in (("fp16", Fp16Options()), ("int8", Int8Options()), ("fp16", Int8Options())):
        artifact = load_artifact(converted(case))
        with pytest.raises(ArtifactError, match=r"the encoder cannot be converted: .* already"):
            convert_graph(
                ir.load(artifact.graph_path("encoder")),
                artifact.spec("encoder"),
                options,
                calibration_for(options, artifact.geometry),
            )


def test_places_of_the_result(parent, tmp_path):
    with pytest.raises(OutputError, match="is the directory to convert"):
        convert(parent, parent, Fp16Options(), force=True)
    target = tmp_path / "x"
    convert(parent, target, Fp16Options())
    with pytest.raises(OutputError, match="exists already"):
        convert(parent, target, Fp16Options())
    convert(parent, target, Int8Options(), force=True)
    assert load_artifact(target).manifest.precision == "int8"


def test_overflow_leaves_nothing(parent, tmp_path):
    artifact = load_artifact(parent)
    model = ir.load(artifact.graph_path("decoder"))
    table = model.graph.initializers["acoustic.table"]
    array = table.const_value.numpy().copy()
    array[3, 3] = 1e6
    table.const_value = ir.tensor(array, name="acoustic.table")
    with pytest.raises(GraphError, match=r"acoustic.table reaches 1e\+06"):
        convert_graph(model, artifact.spec("decoder"), Fp16Options())


def test_full_disk_leaves_nothing(parent, tmp_path, monkeypatch):
    def full(model, path, **options):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(conversion.ir, "save", full)
    with pytest.raises(OutputError, match="No space left on device"):
        convert(parent, tmp_path / "x", Fp16Options())
    assert list(tmp_path.iterdir()) == []


def test_configurations(parent, tmp_path):
    variants = load_variants(REPOSITORY / "configs")
    for name in ("8cb-fp16", "8cb-int8", "16cb-fp16", "16cb-int8"):
        variant = variants[f"streaming-{name}"]
        assert isinstance(variant.recipe, ConvertRecipe)
        floors = {budget.metric: budget.minimum for budget in variant.budgets}
        assert floors["latent_snr_db"] >= (60 if "fp16" in name else 33)
        assert floors["decoder_snr_db"] >= (60 if "fp16" in name else 37)
        if "8cb" in name:
            convert(parent, tmp_path / name, variant.recipe.options)
            assert load_artifact(tmp_path / name).manifest.precision == variant.recipe.options.precision


def command(*arguments):
    from mimi_export.cli.convert import group

    app = typer.Typer()
    app.add_typer(group, name="convert")
    with errors_as_exit_codes():
        return typer.main.get_command(app)(args=[str(argument) for argument in arguments], standalone_mode=False)


def test_command_line(parent, tmp_path, capsys):
    assert not command("convert", "fp16", parent, tmp_path / "half", "--json")
    shown = json.loads(capsys.readouterr().out)
    assert shown["precision"] == "fp16"
    assert shown["underflows"] == 0
    assert set(shown["files"]) == {"encoder_model.onnx", "decoder_model.onnx"}
    command("convert", "int8", parent, tmp_path / "int8", "--round-codebooks",
            "--keep-float", "layers.*.fc1", "--keep-float", "*.projection")  # fmt: skip
    assert "encoder_model.onnx" in capsys.readouterr().out
    record = load_artifact(tmp_path / "int8").manifest.conversion[1]
    assert list(record) == ["precision", "keep_float", "round_codebooks", "rounding", "calibration", "sha256"]
    assert record["keep_float"] == ["layers.*.fc1", "*.projection"]
    assert record["round_codebooks"] is True


def test_command_line_errors(parent, tmp_path, capsys):
    with pytest.raises(typer.Exit):
        command("convert", "fp16", tmp_path / "nothing", tmp_path / "x")
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: there is no directory")
    with pytest.raises(typer.Exit):
        command("convert", "int8", parent, tmp_path / "x", "--keep-float", "nothing")
    assert "no weight is called 'nothing'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_published_script(monkeypatch):
    sys.path.insert(0, str(REPOSITORY / "scripts"))
    import weight_fp16

    seen = []
    monkeypatch.setattr(weight_fp16, "mimi_export", lambda arguments: seen.append(arguments) or 0)
    assert weight_fp16.main(["--input-dir", "a", "--output-dir", "b"]) == 0
    assert seen == [["convert", "fp16", "a", "b"]]


def test_sensitivity(parent, tiny_checkpoint, monkeypatch):
    from mimi_export.parity import sensitivity
    from mimi_export.parity.sensitivity import measure_sensitivity

    monkeypatch.setattr(sensitivity, "TIMED_CALLS", 3)
    options = Int8Options()
    (clip,) = default_clips(24000, 1.0, stress=False)
    rows = measure_sensitivity(load_artifact(parent), tiny_checkpoint, clip, options, seconds=1.0)
    for kind in GRAPH_KINDS:
        base, *others = [row for row in rows if row.graph == kind]
        assert base.group == "(all)"
        assert {"layers.*.attention.qkv", "layers.*.fc2"} <= {row.group for row in others}
        assert not any("codebooks" in row.group for row in others)
        assert [row.gained_db for row in others] == sorted((row.gained_db for row in others), reverse=True)
        assert all(row.more_mib > 0 for row in others if ".fc" in row.group)
        assert max(row.gained_db for row in others) > 0.3


def test_sensitivity_command(parent, monkeypatch, capsys):
    from mimi_export.parity import sensitivity

    monkeypatch.setattr(sensitivity, "TIMED_CALLS", 1)
    assert main(["sensitivity", str(parent), "--seconds", "1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {row["graph"] for row in answer["rows"]} == set(GRAPH_KINDS)
    assert main(["sensitivity", str(parent), "--model", "synthetic:tiny", "--seconds", "1"]) == 0
    assert "layers.*.fc2" in capsys.readouterr().out


def test_sensitivity_takes_the_provider(parent, tiny_checkpoint, monkeypatch):
    from mimi_export.parity import sensitivity

    asked = []

    def graph(path, spec, taps, provider):
        asked.append(provider)
        raise MimiExportError("enough")

    monkeypatch.setattr(sensitivity, "TappedGraph", graph)
    clip = Clip("speech", speech_like(0.1))
    with pytest.raises(MimiExportError, match="enough"):
        sensitivity.measure_sensitivity(load_artifact(parent), tiny_checkpoint, clip, Int8Options(), provider="x")
    assert asked == ["x"]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "latents", "audio"), [
    ("fp16", 60, 60),
    ("int8", 40, 40),
])  # fmt: skip
def test_budgets_on_the_real_geometry(full_variant, full_checkpoint, tmp_path, jfk, case, latents, audio):
    """The floors that variants are promised with; sizes as in the published comparison."""
    from mimi_export.parity.measure import measure

    done = convert(full_variant(8), tmp_path / "x", CASES[case][0])
    sizes = {name: entry.bytes / 2**20 for name, entry in done.manifest.files.items()}
    most = (92, 90) if case == "fp16" else (55, 48)
    assert sizes["encoder_model.onnx"] <= most[0]
    assert sizes["decoder_model.onnx"] <= most[1]
    report = measure(tmp_path / "x", full_checkpoint, [Clip("jfk", jfk)], [1])
    assert report.clips[0].latents.snr_db >= latents
    assert report.clips[0].decoder.snr_db >= audio
