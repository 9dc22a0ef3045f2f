"""The variant directory: what is written is read, and every damage has its own line."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from mimi_export.contract.directory import load_artifact, write_manifest
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.manifest import FileEntry, Manifest, Source, metadata_props
from mimi_export.contract.spec import GRAPH_KINDS, Shape, graph_spec
from mimi_export.errors import ArtifactError, ConfigError

PUBLISHED = Path(__file__).parents[2] / "shared" / "contract" / "state_spec_8cb.txt"
GEOMETRY = Geometry(
    sampling_rate=24000, hidden_size=512, num_filters=64, num_residual_layers=1, upsampling_ratios=(8, 6, 5, 4),
    kernel_size=7, last_kernel_size=3, residual_kernel_size=3, dilation_growth_rate=2, pad_mode="constant",
    compress=2, use_conv_shortcut=False, upsample_groups=512, latent_stride=2, num_quantizers=32,
    num_semantic_quantizers=1, codebook_size=2048, codebook_dim=256, num_hidden_layers=8, intermediate_size=2048,
    num_attention_heads=8, num_key_value_heads=8, head_dim=64, hidden_act="gelu", norm_eps=1e-5,
    attention_bias=False, rope_theta=10000.0, sliding_window=250,
)  # fmt: skip


def a_manifest(layout: str = "window", frames_per_call: int | None = None, num_codebooks: int = 8) -> Manifest:
    return Manifest(
        "streaming-8cb", GEOMETRY, Shape(num_codebooks, layout, frames_per_call), Source("kyutai/mimi", "abc123"),
        tools={"torch": "2.13.0", "onnx": "1.23.2"},
        conversion=[{"pass": "fp16", "parents": {"encoder_model.onnx": "00"}}],
    )  # fmt: skip


def fill(directory: Path, manifest: Manifest | None = None) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "encoder_model.onnx").write_bytes(b"encoder")
    (directory / "decoder_model.onnx").write_bytes(b"decoder!")
    write_manifest(directory, manifest or a_manifest())
    return directory


def message(directory: Path, **options: bool) -> str:
    with pytest.raises(ArtifactError) as caught:
        load_artifact(directory, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(directory: Path, change: Callable[[Any], object]) -> None:
    content = json.loads((directory / "manifest.json").read_text())
    change(content)
    (directory / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(("layout", "frames"), [("window", None), ("ring", 1), ("ring", 4)])
@pytest.mark.parametrize("num_codebooks", [8, 16, 32])
def test_round_trip(tmp_path, layout, frames, num_codebooks):
    written = write_manifest(fill(tmp_path / "variant"), a_manifest(layout, frames, num_codebooks))
    artifact = load_artifact(tmp_path / "variant", verify_hashes=True)
    assert artifact.manifest.to_dict() == written.to_dict()
    assert artifact.geometry == GEOMETRY
    assert artifact.graph_path("encoder") == tmp_path / "variant" / "encoder_model.onnx"
    assert artifact.graph_path("decoder") == tmp_path / "variant" / "decoder_model.onnx"
    for kind in GRAPH_KINDS:
        assert artifact.spec(kind) == graph_spec(GEOMETRY, kind, Shape(num_codebooks, layout, frames))


def test_bytes_of_a_manifest(tmp_path):
    """Order, indentation and escapes too: clients keep copies, and equal graphs give an equal manifest."""
    tiny = dataclasses.replace(GEOMETRY, upsampling_ratios=(4,), num_hidden_layers=1)
    fill(tmp_path, dataclasses.replace(a_manifest(), name="größe-8cb", geometry=tiny))
    assert (tmp_path / "manifest.json").read_bytes() == (REPOSITORY / "tests" / "manifest.json").read_bytes()


def test_a_window_of_an_earlier_version_is_known_by_its_free_length(tmp_path):
    growing = dataclasses.replace(a_manifest(), shape=Shape(8, growing=True))
    fill(tmp_path, growing)
    edit(tmp_path, lambda content: content.pop("growing"))  # earlier versions did not say so
    manifest = load_artifact(tmp_path).manifest
    assert manifest.shape == growing.shape
    assert manifest.spec("encoder").state("key_0").present_shape == ("batch", 8, "present", 64)
    edit(tmp_path, lambda content: content["graphs"]["encoder"]["outputs"][-1]["shape"].__setitem__(2, 250))
    assert ": graphs.encoder." in message(tmp_path)


def test_files_are_listed_with_size_and_hash(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "speech.wav").write_bytes(b"golden")
    fill(tmp_path)
    files = load_artifact(tmp_path).manifest.files
    assert list(files) == ["decoder_model.onnx", "encoder_model.onnx", "samples/speech.wav", "state_spec.txt"]
    assert files["encoder_model.onnx"] == FileEntry(7, hashlib.sha256(b"encoder").hexdigest())
    (tmp_path / "README.md").write_text("files that are not listed do not matter")
    load_artifact(tmp_path, verify_hashes=True)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published contract is not here")
def test_state_spec_is_the_published_one(tmp_path):
    fill(tmp_path)
    assert (tmp_path / "state_spec.txt").read_bytes() == PUBLISHED.read_bytes()


def test_manifest_for_readers_without_this_package(tmp_path):
    """The fields that a client in another language relies on, as literal values."""
    content = json.loads((fill(tmp_path) / "manifest.json").read_text())
    assert content["format_version"] == 1
    encoder = content["graphs"]["encoder"]
    assert encoder["file"] == "encoder_model.onnx"
    assert encoder["inputs"][0] == {"name": "input_values", "dtype": "float32", "shape": ["batch", 1, "samples"]}
    assert encoder["outputs"][0] == {"name": "audio_codes", "dtype": "int64", "shape": ["batch", 8, "frames"]}
    assert encoder["states"][0] == {
        "name": "conv_enc_0_state", "kind": "conv", "dtype": "float32",
        "past": "past_conv_enc_0_state", "present": "present_conv_enc_0_state",
        "shape": ["batch", 1, 6], "initial_shape": ["batch", 1, 6], "initial_value": 0,
    }  # fmt: skip
    assert encoder["states"][-1]["name"] == "value_7"
    assert encoder["states"][-1]["shape"] == ["batch", 8, "past", 64]
    assert encoder["states"][-1]["initial_shape"] == ["batch", 8, 0, 64]
    assert [len(content["graphs"][kind]["states"]) for kind in GRAPH_KINDS] == [27, 27]
    fill(tmp_path, a_manifest("ring", 1))
    last = json.loads((tmp_path / "manifest.json").read_text())["graphs"]["decoder"]["states"][-1]
    assert (last["name"], last["dtype"], last["initial_shape"]) == ("position", "int64", ["batch", 1])


def test_equal_graphs_give_equal_bytes(tmp_path):
    first = (fill(tmp_path / "a") / "manifest.json").read_bytes()
    manifest = dataclasses.replace(a_manifest(), tools={"onnx": "1.23.2", "torch": "2.13.0"})
    assert (fill(tmp_path / "b", manifest) / "manifest.json").read_bytes() == first
    assert first.endswith(b"}\n")
    fill(tmp_path / "a")  # once more over itself: the old manifest is not among the files
    assert (tmp_path / "a" / "manifest.json").read_bytes() == first


def test_manifest_needs_both_graphs_and_a_possible_variant(tmp_path):
    (tmp_path / "encoder_model.onnx").touch()
    with pytest.raises(ArtifactError) as caught:
        write_manifest(tmp_path, a_manifest())
    assert str(caught.value) == f"{tmp_path} has no decoder_model.onnx: write all graphs before the manifest"
    with pytest.raises(ConfigError, match="num_codebooks is 33, but this model has 1 to 32 codebooks"):
        a_manifest(num_codebooks=33)


def test_no_variant_directory(tmp_path):
    create = (
        "get one with `mimi-export download USER/NAME/VARIANT`, or make one with `mimi-export export --output-dir DIR`"
    )
    assert message(tmp_path / "no") == f"there is no directory {tmp_path / 'no'}; {create}"
    (tmp_path / "file").touch()
    assert message(tmp_path / "file") == f"{tmp_path / 'file'} is a file, expected a variant directory; {create}"
    assert message(tmp_path) == f"{tmp_path} has no manifest.json, so it is no variant directory; {create}"


def test_broken_json(tmp_path):
    path = fill(tmp_path) / "manifest.json"
    path.write_text(path.read_text()[:100])
    assert message(tmp_path).startswith(f"{path} is not valid JSON (")
    path.write_bytes(b"\xff\xfe{}")
    assert message(tmp_path) == f"{path} is not UTF-8 text; export it again"
    for content in ("[]", "{}", "null", "1"):
        path.write_text(content)
        assert message(tmp_path) == (
            f"{path} has no format_version, so it is no manifest of mimi-export; export it again"
        )


@pytest.mark.parametrize("version", [0, 2, "1", None, True])
def test_other_format_version(tmp_path, version):
    edit(fill(tmp_path), lambda content: content.update(format_version=version))
    assert message(tmp_path) == (
        f"{tmp_path / 'manifest.json'} has format_version {json.dumps(version)}, this program reads 1; "
        "use the one that made it; export it again"
    )


def test_changed_files(tmp_path):
    fill(tmp_path)
    path = tmp_path / "encoder_model.onnx"
    path.write_bytes(b"ENCODER")
    load_artifact(tmp_path)  # same size: only the hash tells
    assert message(tmp_path, verify_hashes=True) == (
        f"{path} was changed: its SHA-256 begins {hashlib.sha256(b'ENCODER').hexdigest()[:12]}, the manifest says "
        f"{hashlib.sha256(b'encoder').hexdigest()[:12]}; export it again"
    )
    path.write_bytes(b"enc")
    assert message(tmp_path) == f"{path} has 3 bytes, the manifest says 7; export it again"
    path.unlink()
    assert message(tmp_path) == f"{tmp_path} is incomplete: encoder_model.onnx is missing; export it again"


def test_links_that_lead_out(tmp_path):
    directory = fill(tmp_path / "variant")
    graph = directory / "encoder_model.onnx"
    graph.rename(tmp_path / "elsewhere.onnx")
    graph.symlink_to(tmp_path / "elsewhere.onnx")
    assert message(directory) == f"{graph} is a link that leads out of the directory; copy the file there"
    graph.unlink()
    (tmp_path / "elsewhere.onnx").rename(directory / "real.onnx")
    graph.symlink_to("real.onnx")
    load_artifact(directory)
    (tmp_path / "link").symlink_to(directory)
    load_artifact(tmp_path / "link")


def test_the_cache_of_the_hub_is_made_of_links(tmp_path):
    """As `huggingface_hub.snapshot_download` lays it out."""
    (tmp_path / "blobs").mkdir()
    directory = fill(tmp_path / "made")
    snapshot = tmp_path / "snapshots" / "0123" / "streaming-8cb"
    snapshot.mkdir(parents=True)
    for path in directory.iterdir():
        path.rename(tmp_path / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("../../../blobs") / path.name)
    load_artifact(snapshot, verify_hashes=True)


@pytest.mark.parametrize("change", [{"name": "x" * 10_000}, {"source": {"model": "y" * 10_000, "revision": None}}])
def test_names_have_an_end(tmp_path, change):
    directory = fill(tmp_path)
    edit(directory, lambda content: content.update(change))
    assert "is 10000, expected at most 250" in message(directory)


def test_changed_state_spec(tmp_path):
    path = fill(tmp_path) / "state_spec.txt"
    path.write_text(path.read_text().replace("enc_3 64 4", "enc_3 64 5"))
    assert message(tmp_path) == f"{path} does not describe the manifest's model; export it again"


def _swap_states(content: Any) -> None:
    states = content["graphs"]["encoder"]["states"]
    states[11], states[12] = states[12], states[11]


def _swap_inputs(content: Any) -> None:
    inputs = content["graphs"]["encoder"]["inputs"]
    inputs[12], inputs[13] = inputs[13], inputs[12]


CORRUPTIONS: dict[str, Callable[[Any], object]] = {
    ": layout is missing": lambda c: c.pop("layout"),
    ": colour is an unknown key": lambda c: c.update(colour="red"),
    ': num_codebooks is "8", expected a whole number': lambda c: c.update(num_codebooks="8"),
    ": num_codebooks is true, expected a whole number": lambda c: c.update(num_codebooks=True),
    ": num_codebooks is 99, but this model has 1 to 32 codebooks": lambda c: c.update(num_codebooks=99),
    ': layout is "heap", expected one of window, ring': lambda c: c.update(layout="heap"),
    ": a ring needs frames_per_call": lambda c: c.update(layout="ring"),
    ": frames_per_call is 1.5, expected a whole number or null": lambda c: c.update(frames_per_call=1.5),
    ": source.revision is missing": lambda c: c["source"].pop("revision"),
    ": source.model is null, expected a text": lambda c: c["source"].update(model=None),
    ": tools.onnx is 1, expected a text": lambda c: c["tools"].update(onnx=1),
    ': conversion[0] is "fp16", expected an object': lambda c: c.update(conversion=["fp16"]),
    ": geometry.sliding_window is missing": lambda c: c["geometry"].pop("sliding_window"),
    ": geometry.hidden_size is 512.0, expected a whole number": lambda c: c["geometry"].update(hidden_size=512.0),
    ": geometry: upsampling_ratios[1] is 0, expected 1 or more": (
        lambda c: c["geometry"].update(upsampling_ratios=[8, 0, 5, 4])
    ),
    ": geometry: compress is 0, expected 1 or more": lambda c: c["geometry"].update(compress=0),
    ": graphs.encoder.states is a list of 26, but this geometry gives a list of 27": (
        lambda c: c["graphs"]["encoder"]["states"].pop()
    ),
    ': graphs.encoder.states[11].name is "value_0", but this geometry gives "key_0"': _swap_states,
    ": graphs.decoder.states[0].initial_value is 1, but this geometry gives 0": (
        lambda c: c["graphs"]["decoder"]["states"][0].update(initial_value=1)
    ),
    ": graphs.decoder.states[0].initial_value is false, but this geometry gives 0": (
        lambda c: c["graphs"]["decoder"]["states"][0].update(initial_value=False)
    ),
    ": graphs.decoder.inputs[3].shape[2] is 7, but this geometry gives 8": (
        lambda c: c["graphs"]["decoder"]["inputs"][3]["shape"].__setitem__(2, 7)
    ),
    ': graphs.encoder.inputs[12].name is "past_value_0", but this geometry gives "past_key_0"': _swap_inputs,
    ": graphs.encoder.inputs[12].shape[1] is 8, but this geometry gives 4": (
        lambda c: c["geometry"].update(num_key_value_heads=4)
    ),
    ': files does not list "decoder_model.onnx"': lambda c: c["files"].pop("decoder_model.onnx"),
    ": files.state_spec.txt.sha256 is missing": lambda c: c["files"]["state_spec.txt"].pop("sha256"),
    ': files lists "../x", which leads out of the directory': (
        lambda c: c["files"].update({"../x": {"bytes": 0, "sha256": ""}})
    ),
    ': files lists "/etc/x", which leads out of the directory': (
        lambda c: c["files"].update({"/etc/x": {"bytes": 0, "sha256": ""}})
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", CORRUPTIONS)
def test_corrupt_manifest(tmp_path, text):
    edit(fill(tmp_path), CORRUPTIONS[text])
    assert message(tmp_path).startswith(f"{tmp_path / 'manifest.json'}{text}")


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values of the JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(deeper for key, item in items for deeper in _places(item, (*place, key)))]


DOCUMENT = json.loads(json.dumps(a_manifest().to_dict()))
DOCUMENT["files"] = {"x.onnx": {"bytes": 1, "sha256": "00"}}


@settings(max_examples=150, deadline=None)
@given(
    place=st.sampled_from([place for place in _places(DOCUMENT) if place]),
    value=st.sampled_from([None, True, -1, 0, 3, 2.5, "", "text", [], [1], {}, {"a": 1}]),
)
def test_any_other_value_is_refused_in_one_line_or_changes_nothing_that_matters(tmp_path_factory, place, value):
    directory = fill(tmp_path_factory.mktemp("variant"))

    def change(content: Any) -> None:
        for key in place[:-1]:
            content = content.get(key, {}) if isinstance(content, dict) else content[key]
        content[place[-1]] = value

    edit(directory, change)
    before = a_manifest()
    try:
        after = load_artifact(directory).manifest
    except ArtifactError:
        message(directory)
        return
    assert [after.spec(kind) for kind in GRAPH_KINDS] == [before.spec(kind) for kind in GRAPH_KINDS]


def test_metadata_props():
    props = metadata_props(a_manifest())
    states = json.loads(props.pop("states"))
    assert props == {
        "format_version": "1",
        "name": "streaming-8cb",
        "precision": "fp32",
        "num_codebooks": "8",
        "sampling_rate": "24000",
        "frame_size": "1920",
        "frame_rate": "12.5",
        "layout": "window",
        "frames_per_call": "any",
        "source_model": "kyutai/mimi",
        "source_revision": "abc123",
    }
    assert states == {kind: a_manifest().to_dict()["graphs"][kind]["states"] for kind in GRAPH_KINDS}
    ring = metadata_props(dataclasses.replace(a_manifest("ring", 2), source=Source("synthetic")))
    assert ring["frames_per_call"] == "2"
    assert "source_revision" not in ring
