"""Exported files: the published contract, dynamic where it must be, lean, anonymous, and whole or absent."""

from __future__ import annotations

import getpass
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conftest import REPOSITORY
from helpers import DECODER_SNR, onnx_step, session, snr, stream, torch_step, zeros
from onnx import numpy_helper

from mimi_export.contract.directory import load_artifact
from mimi_export.contract.spec import GRAPH_KINDS, Shape, graph_spec, state_spec_text
from mimi_export.errors import ConfigError, OutputError
from mimi_export.export import variant as export
from mimi_export.export.trace import OPSET, onnx_program
from mimi_export.export.variant import export_variant, tool_versions
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.model.graphs import streaming_graph

MIB = 2**20
LARGE = 256  # bytes: what is larger is a weight, what is smaller a shape or a constant of a formula
VARIANTS = [(8, "window", None), (16, "window", None), (16, "ring", 2)]
TYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}


@pytest.fixture(params=VARIANTS, ids=lambda variant: f"{variant[1]}-{variant[0]}cb", scope="module")
def variant(request, tiny_variant) -> Path:
    return tiny_variant(*request.param)


@pytest.fixture(params=GRAPH_KINDS)
def kind(request) -> str:
    return request.param


def shape_of(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


def test_directory_holds_what_its_manifest_says(variant, tiny_checkpoint):
    artifact = load_artifact(variant, verify_hashes=True)
    names = {"encoder_model.onnx", "decoder_model.onnx", "state_spec.txt", "golden.safetensors"}
    assert set(artifact.manifest.files) >= names
    assert {path.name for path in variant.iterdir()} == {*artifact.manifest.files, "manifest.json"}
    assert artifact.geometry == tiny_checkpoint.geometry
    assert artifact.manifest.source.model == "synthetic:tiny"
    assert artifact.manifest.tools == tool_versions()
    text = state_spec_text(tiny_checkpoint.geometry, artifact.manifest.shape.num_codebooks)
    assert (variant / "state_spec.txt").read_bytes() == text.encode()


def test_inputs_and_outputs(variant, kind):
    """Names, order, types and dimensions, from the file itself."""
    spec = load_artifact(variant).spec(kind)
    graph = onnx.load(variant / f"{kind}_model.onnx").graph
    for wanted, found in ((spec.inputs, graph.input), (spec.outputs, graph.output)):
        assert [value.name for value in found] == [tensor.name for tensor in wanted]
        assert [TYPES[value.type.tensor_type.elem_type] for value in found] == [tensor.dtype for tensor in wanted]
        assert [shape_of(value) for value in found] == [tensor.shape for tensor in wanted]


def test_operator_set_and_checker(variant, kind):
    path = variant / f"{kind}_model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
    assert OPSET == 20
    assert model.ir_version <= 10, "onnxruntime 1.18 reads IR version 10 at most"
    assert not model.functions


def test_one_copy_of_every_weight(variant, kind, tiny_checkpoint):
    """Nothing twice, neither as it is nor transposed, nothing unnamed, and no more bytes than the module has."""
    graph = onnx.load(variant / f"{kind}_model.onnx").graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    arrays |= {
        node.output[0]: numpy_helper.to_array(attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    weights = {name: array for name, array in arrays.items() if array.nbytes > LARGE}
    owners: dict[bytes, str] = {}
    for name, array in weights.items():
        content = hashlib.sha256(np.sort(array, axis=None).tobytes()).digest()  # the same in any order of axes
        assert content not in owners, f"{name} holds what {owners[content]} holds"
        owners[content] = name
    module = streaming_graph(tiny_checkpoint, load_artifact(variant).spec(kind))
    own = dict(module.named_parameters())
    own |= dict(module.named_buffers())
    assert not set(weights) - set(own), "weights that lost their names"
    assert sum(array.nbytes for array in weights.values()) <= sum(tensor.nbytes for tensor in own.values())
    assert sum(array.nbytes for name, array in arrays.items() if name not in weights) < 8192


def test_nothing_of_this_machine_in_any_file(variant):
    """No stack trace, no local path, no user; the exporter writes all three on every node."""
    private = [str(REPOSITORY), str(Path.home()), str(variant.parent), str(Path(torch.__file__).parent)]
    private = [text.encode() for text in private if len(text) > 1]
    traces = [b"site-packages", b"Traceback", b'File "', b".py\n", b".py:", b"pkg.torch", b"stack_trace"]
    user = getpass.getuser().encode()
    for path in variant.iterdir():
        content = path.read_bytes()
        for text in (*private, *traces):
            assert text not in content, f"{path.name} contains {text!r}"
        assert b"/" + user + b"/" not in content
    for kind in GRAPH_KINDS:
        model = onnx.load(variant / f"{kind}_model.onnx")
        assert not model.doc_string
        assert not model.graph.doc_string
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        assert not any(value.metadata_props for value in (*model.graph.input, *model.graph.output))


def test_metadata_says_what_a_client_needs(variant, kind):
    model = onnx.load(variant / f"{kind}_model.onnx")
    props = {entry.key: entry.value for entry in model.metadata_props}
    manifest = json.loads((variant / "manifest.json").read_text())
    assert model.producer_name == "mimi-export"
    assert props.pop("frames_per_call") == ("any" if manifest["layout"] == "window" else "2")
    for key in ("name", "precision", "layout"):
        assert props.pop(key) == manifest[key]
    assert props.pop("num_codebooks") == str(manifest["num_codebooks"])
    assert props.pop("format_version") == "1"
    assert props.pop("sampling_rate") == "24000"
    assert props.pop("frame_size") == "1920"
    assert props.pop("frame_rate") == "12.5"
    assert props.pop("source_model") == "synthetic:tiny"
    states = {name: graph["states"] for name, graph in manifest["graphs"].items()}
    assert json.loads(props.pop("states")) == states
    assert set(props) <= {"source_revision"}
    assert [state["past"] for state in states[kind]] == [value.name for value in model.graph.input[1:]]
    assert {state["initial_value"] for state in states[kind]} == {0}


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("frames", [1, 2, 6])
def test_every_free_dimension_is_free(tiny_variant, tiny_checkpoint, batch, frames):
    """Batch, frames, codebooks and past: at sizes that were no example of the exporter's."""
    directory, geometry = tiny_variant(16), tiny_checkpoint.geometry
    audio = np.stack([speech_like(18 * 1920 / 24000, seed) for seed in range(batch)])[:, None]
    outputs = {}
    for kind in GRAPH_KINDS:
        spec = graph_spec(geometry, kind, Shape(16))
        step = onnx_step(session(directory / f"{kind}_model.onnx"))
        module = torch_step(streaming_graph(tiny_checkpoint, spec))
        data, unit = (audio, 1920) if kind == "encoder" else (outputs["encoder"], 1)
        outputs[kind], states = stream(step, zeros(spec, batch), data, unit, [frames])
        wanted, _ = stream(module, zeros(spec, batch), data, unit, [frames])
        if kind == "decoder":
            assert snr(wanted, outputs[kind]) >= DECODER_SNR
            for codebooks in (1, 2, 15):
                fewer, _ = stream(step, zeros(spec, batch), data[:, :codebooks], 1, [frames])
                reference = upstream.decode(tiny_checkpoint.model, torch.from_numpy(data[:, :codebooks])).numpy()
                assert snr(reference, fewer) >= DECODER_SNR
        else:
            assert np.array_equal(wanted, outputs[kind])
        assert states["key_1"].shape == (batch, 2, 16, 8)


def test_ring_graph_has_a_free_batch(tiny_variant, tiny_checkpoint):
    directory = tiny_variant(16, "ring", 2)
    audio = np.stack([speech_like(12 * 1920 / 24000, seed) for seed in range(3)])[:, None]
    spec = graph_spec(tiny_checkpoint.geometry, "encoder", Shape(16, "ring", 2))
    codes, states = stream(onnx_step(session(directory / "encoder_model.onnx")), zeros(spec, 3), audio, 1920, [2])
    assert np.array_equal(codes, upstream.encode(tiny_checkpoint.model, torch.from_numpy(audio), 16).numpy())
    assert states["position"].tolist() == [[24]] * 3


@pytest.mark.parametrize("samples", [1, 960, 1919, 1921, 1923, 1939, 1940, 2880, 3841])
def test_bare_graph_refuses_a_part_of_a_frame(tiny_variant, tiny_checkpoint, samples):
    """A chunk that is no whole number of frames is an error of onnxruntime, never a silently wrong code."""
    step = onnx_step(session(tiny_variant(8) / "encoder_model.onnx"))
    spec = graph_spec(tiny_checkpoint.geometry, "encoder", Shape(8))
    with pytest.raises(Exception, match=r"(?i)reshape|shape|dimension|size"):
        step(np.zeros((1, 1, samples), np.float32), zeros(spec, 1))


def fake_export(monkeypatch, tiny_variant, fail_at: str, error: BaseException) -> None:
    """Take finished graphs instead of tracing anew, and stop in the middle as a user's Ctrl-C or a full disk would."""
    ready = tiny_variant(8)

    def program(module):
        if fail_at == f"trace {module.graph.kind}":
            raise error
        return ir.load(ready / f"{module.graph.kind}_model.onnx")

    def check(path, full_check):
        assert full_check
        if fail_at == f"check {Path(path).name.split('_')[0]}":
            raise error

    monkeypatch.setattr(export, "onnx_program", program)
    monkeypatch.setattr(onnx.checker, "check_model", check)
    if fail_at == "manifest":
        monkeypatch.setattr(export, "write_manifest", lambda *_: (_ for _ in ()).throw(error))


STOPS = ["trace encoder", "check encoder", "trace decoder", "check decoder", "manifest"]


@pytest.mark.parametrize("fail_at", STOPS)
def test_interrupted_export_leaves_nothing(tiny_checkpoint, tiny_variant, tmp_path, monkeypatch, fail_at):
    fake_export(monkeypatch, tiny_variant, fail_at, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        export_variant(tiny_checkpoint, tmp_path / "new" / "variant", Shape(8))
    assert [path for path in tmp_path.rglob("*") if path.name != "new"] == []


@pytest.mark.parametrize("fail_at", ["trace decoder", "manifest"])
def test_interrupted_replacement_keeps_what_was_there(tiny_checkpoint, tiny_variant, tmp_path, monkeypatch, fail_at):
    with monkeypatch.context() as patch:
        fake_export(patch, tiny_variant, "never", KeyboardInterrupt())
        export_variant(tiny_checkpoint, tmp_path / "variant", Shape(8), name="first")
    fake_export(monkeypatch, tiny_variant, fail_at, RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        export_variant(tiny_checkpoint, tmp_path / "variant", Shape(8), name="second", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["variant"]
    artifact = load_artifact(tmp_path / "variant", verify_hashes=True)
    assert artifact.manifest.name == "first"


def test_replaces_only_when_asked_and_only_its_own(tiny_checkpoint, tiny_variant, tmp_path, monkeypatch):
    fake_export(monkeypatch, tiny_variant, "never", KeyboardInterrupt())
    target = tmp_path / "variant"
    manifest = export_variant(tiny_checkpoint, target, Shape(8))
    assert manifest.name == "variant"
    with pytest.raises(OutputError, match="exists already"):
        export_variant(tiny_checkpoint, target, Shape(8), name="second")
    assert load_artifact(target).manifest.name == "variant"
    export_variant(tiny_checkpoint, target, Shape(8), name="third", force=True)
    assert load_artifact(target).manifest.name == "third"
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(OutputError, match="was not made by mimi-export"):
        export_variant(tiny_checkpoint, foreign, Shape(8), force=True)
    assert (foreign / "cat.jpg").read_bytes() == b"meow"


@pytest.mark.parametrize(("num_codebooks", "layout"), [(0, "window"), (17, "window"), (8, "ring")])
def test_what_cannot_be_exported_is_refused_before_any_work(tiny_checkpoint, tmp_path, num_codebooks, layout):
    with pytest.raises(ConfigError):
        export_variant(tiny_checkpoint, tmp_path / "variant", Shape(num_codebooks, layout))
    assert list(tmp_path.iterdir()) == []


def test_progress_names_each_step(tiny_checkpoint, tiny_variant, tmp_path, monkeypatch, capfd):
    fake_export(monkeypatch, tiny_variant, "never", KeyboardInterrupt())
    steps: list[str] = []
    export_variant(tiny_checkpoint, tmp_path / "variant", Shape(8), progress=steps.append)
    graphs = [step.split()[-1] for step in steps if "coder" in step]
    assert graphs == ["encoder", "encoder_model.onnx", "decoder", "decoder_model.onnx"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_exporter_is_quiet_and_repeats_itself(tiny_checkpoint, tiny_variant, tmp_path, capfd):
    """A second export gives the same bytes, and writes nothing to the terminal."""
    path = tiny_variant(8)
    export_variant(tiny_checkpoint, tmp_path / path.name, Shape(8))
    assert capfd.readouterr() == ("", "")
    for file in path.iterdir():
        assert file.read_bytes() == (tmp_path / path.name / file.name).read_bytes(), file.name


@pytest.mark.slow
def test_an_opset_that_the_exporter_cannot_write_is_refused(tiny_checkpoint):
    """torch answers a request for 26 with another opset; nobody may take such a graph for what it asked for."""
    module = streaming_graph(tiny_checkpoint, graph_spec(tiny_checkpoint.geometry, "decoder", Shape(8)))
    with pytest.raises(ConfigError, match="asked for opset 26, the exporter wrote"):
        onnx_program(module, 26)


@pytest.mark.slow
@pytest.mark.parametrize(("num_codebooks", "encoder", "decoder"), [(8, 166, 170), (16, 182, 186)])
def test_full_size_files(full_variant, num_codebooks, encoder, decoder):
    """MiB. The public models have 194 and 170 at 8 codebooks, 242 and 186 at 16."""
    directory = full_variant(num_codebooks)
    assert (directory / "encoder_model.onnx").stat().st_size <= encoder * MIB
    assert (directory / "decoder_model.onnx").stat().st_size <= decoder * MIB
    load_artifact(directory, verify_hashes=True)


@pytest.mark.slow
def test_full_size_state_spec_is_the_published_one(full_variant):
    from test_spec import PUBLISHED_8CB

    assert (full_variant(8) / "state_spec.txt").read_bytes() == PUBLISHED_8CB
