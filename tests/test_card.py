"""The model card: front matter, tables equal to the reports, programs that run as they stand, nothing private."""

from __future__ import annotations

import ast
import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from helpers import DECODER_SNR, snr
from hub_server import TOKEN, card_errors
from node_tools import FOLDER, need_node, run_node
from publishing import REPO, Publication, publication, whole_clips_from

from mimi_export.cli import main
from mimi_export.contract.directory import load_artifact
from mimi_export.contract.spec import GRAPH_KINDS
from mimi_export.errors import ArtifactError
from mimi_export.export.convert import convert
from mimi_export.export.precision import Fp16Options
from mimi_export.export.whole_clip import export_batch
from mimi_export.hub.card import model_card, snippets
from mimi_export.hub.plan import local_files
from mimi_export.hub.subjects import read_subjects
from mimi_export.media.signals import speech_like
from mimi_export.parity.whole_clip import check_batch
from mimi_export.runtime import load


@pytest.fixture(scope="module")
def published(tiny_checkpoint, tiny_variant, tmp_path_factory) -> Publication:
    """Window and ring, 8 codebooks, fp32 and fp16, and whole clips."""
    folder = tmp_path_factory.mktemp("card")
    convert(tiny_variant(8), folder / "made" / "fp16", Fp16Options())
    variants = {
        "streaming-8cb": tiny_variant(8),
        "streaming-8cb-fp16": folder / "made" / "fp16",
        "streaming-8cb-ring": tiny_variant(8, "ring", 2),
    }
    found = publication(folder / "publish", tiny_checkpoint, variants)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(tiny_checkpoint, "source", "kyutai/mimi")
        whole_clips_from(monkeypatch, tiny_variant(8))
        export_batch(
            tiny_checkpoint, found.folder / "batch", 8, dtypes=("fp32", "q8"),
            check=lambda folder: check_batch(tiny_checkpoint, folder),
        )  # fmt: skip
    return Publication(found.folder, [*found.directories, found.folder / "batch"])


@pytest.fixture(scope="module")
def subjects(published):
    return read_subjects(published.directories)


@pytest.fixture(scope="module")
def card(subjects) -> str:
    return model_card(subjects, REPO)


def section(card: str, title: str) -> str:
    """The text from a heading to the next of the same rank."""
    return re.split(r"(?m)^## ", card.split(f"\n## {title}\n", 1)[1])[0]


def table(text: str, index: int = 0) -> list[dict[str, str]]:
    """The rows of a Markdown table, cells by column, without the marks of code and links."""
    blocks = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    lines = [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in blocks[index].splitlines()]
    heads, _, *rows = ([re.sub(r"^\[?`([^`]*)`.*$", r"\1", cell) for cell in line] for line in lines)
    assert all(len(row) == len(heads) for row in rows)
    return [dict(zip(heads, row, strict=True)) for row in rows]


# --- front matter


def test_front_matter(card):
    import yaml

    assert card_errors(card) == []
    fields = yaml.safe_load(card.split("---\n")[1])
    assert fields["license"] == "cc-by-4.0"
    assert fields["base_model"] == "kyutai/mimi"
    assert fields["base_model_relation"] == "quantized"
    assert fields["library_name"] == "transformers.js"
    assert fields["pipeline_tag"] == "audio-to-audio"
    assert {"onnx", "mimi"} <= set(fields["tags"])


def test_front_matter_of_made_up_weights(tiny_variant, published, tmp_path):
    """No claim about Kyutai's weights where there are none of them."""
    import dataclasses

    subject = read_subjects(published.directories[:1])[0]
    made_up = dataclasses.replace(subject, manifest=load_artifact(tiny_variant(8)).manifest)
    text = model_card([made_up])
    assert card_errors(text) == []
    assert "base_model" not in text.split("---\n")[1]
    assert "made-up weights" in text
    with pytest.raises(ArtifactError, match="different models"):
        model_card([subject, made_up])


# --- tables


def test_variants_equal_the_manifests(card, published):
    rows = table(section(card, "Variants"))
    streaming = [path for path in published.directories if (path / "manifest.json").exists()]
    assert [row["variant"] for row in rows] == [path.name for path in streaming]
    for row, path in zip(rows, streaming, strict=True):
        manifest = json.loads((path / "manifest.json").read_text())
        for kind in GRAPH_KINDS:
            size = (path / f"{kind}_model.onnx").stat().st_size
            assert float(row[f"{kind} MiB"]) == pytest.approx(size / 2**20, abs=0.05)
        assert row["codebooks"] == str(manifest["num_codebooks"])
        assert row["precision"] == manifest["precision"]
        assert row["layout"] == manifest["layout"]
        assert row["frames a call"] == str(manifest["frames_per_call"] or "any")
        assert row["bitrate"] == f"{12.5 * 6 * manifest['num_codebooks'] / 1000:g} kbit/s"


def number(cell: str) -> float:
    return float("inf") if cell == "exact" else float(cell)


def close(cell: str, value, digits: int) -> bool:
    if isinstance(value, str) or value is None:
        return cell == (value or "–")
    return abs(number(cell) - value) <= 0.5 * 10**-digits + 1e-12


def test_quality_equals_the_report(card, published):
    rows = table(section(card, "Quality"), 0)
    assert [row["variant"] for row in rows] == [record["name"] for record in published.records]
    for row, record in zip(rows, published.records, strict=True):
        clip = record["clips"][0]
        assert close(row["equal codes %"], record["codes"]["equal_percent"], 3)
        assert (row["differ"], row["ties"]) == (str(record["codes"]["differ"]), str(record["codes"]["ties"]))
        assert close(row["latents SNR dB"], clip["latents"]["snr_db"], 1)
        assert close(row["decoder SNR dB"], clip["decoder"]["snr_db"], 1)
        assert close(row["decoder cosine"], clip["decoder"]["cosine"], 7)
        assert close(row["end-to-end SNR dB"], clip["end_to_end"]["snr_db"], 1)


def test_published_figures_equal_the_report(card, published):
    first, *rows = table(section(card, "Quality"), 1)
    theirs = published.records[0]["published"]["card_streaming"]
    assert [float(first[key]) for key in ("SNR dB", "cosine", "max abs")] == list(theirs.values())
    for row, record in zip(rows, published.records, strict=True):
        ours = record["published"]["end_to_end"]
        assert row["model"] == record["name"]
        assert close(row["SNR dB"], ours["snr_db"], 1)
        assert close(row["cosine"], ours["cosine"], 7)
        assert float(row["max abs"]) == pytest.approx(ours["max_abs"], rel=0.05)


def test_budgets_equal_the_reports(card, published):
    batch = json.loads((published.folder / "batch" / "parity.json").read_text())["variants"]
    wanted = [
        (record["name"], check["metric"], check["wanted"], check["got"])
        for record in [*published.records, *batch]
        for check in record["checks"]
    ]
    rows = table(section(card, "Quality"), 2)
    assert [(row["variant"], row["measured"], row["wanted"]) for row in rows] == [entry[:3] for entry in wanted]
    assert all(close(row["found"], entry[3], 2) for row, entry in zip(rows, wanted, strict=True))


def test_speed_equals_the_report(card, published):
    text = section(card, "Speed")
    for row, record in zip(table(text), published.records, strict=True):
        timing = record["timing"]
        assert row["variant"] == record["name"]
        for kind in GRAPH_KINDS:
            assert close(row[f"{kind} ms"], timing[kind]["median_ms"], 1)
            assert close(row[f"{kind} p95 ms"], timing[kind]["p95_ms"], 1)
        assert close(row["real-time factor"], timing["real_time_factor"], 2)
    for name, value in published.records[0]["tools"].items():
        assert f"{name} {value}" in text


def test_whole_clips_equal_their_report(card, published):
    folder = published.folder / "batch"
    records = json.loads((folder / "parity.json").read_text())["variants"]
    for row, record in zip(table(section(card, "Whole clips")), records, strict=True):
        assert row["dtype"] == record["precision"]
        for kind in GRAPH_KINDS:
            size = (folder / row[kind]).stat().st_size
            assert float(row[f"{kind} MiB"]) == pytest.approx(size / 2**20, abs=0.05)
            assert row[kind] in record["files"]
        assert close(row["equal codes %"], record["codes"]["equal_percent"], 2)
        assert close(row["decoder SNR dB"], record["clips"][0]["decoder"]["snr_db"], 1)


def test_contract_equals_the_graphs(card, published):
    """Names, order, types and shapes of the contract tables are those of the ONNX files, read with onnx alone."""
    import onnx

    text = section(card, "Contract")
    index = 0
    for name in ("streaming-8cb", "streaming-8cb-ring"):
        for kind in GRAPH_KINDS:
            graph = onnx.load(published.folder / name / f"{kind}_model.onnx").graph
            rows = table(text, index)
            index += 1
            assert [row["input"] for row in rows] == [value.name for value in graph.input]
            assert [row["output"] for row in rows] == [value.name for value in graph.output]
            for row, value in list(zip(rows, graph.input, strict=True))[1:]:
                dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
                assert row["shape"] == f"[{', '.join(map(str, dims))}]"
                types = {1: "float32", 7: "int64"}
                assert row["type"] == types[value.type.tensor_type.elem_type]
                first = [1 if dim == "batch" else 0 if dim == "past" else dim for dim in dims]
                assert row["first call"] == f"zeros [{', '.join(map(str, first))}]"


# --- programs


@pytest.fixture
def workplace(published, tmp_path):
    """A directory as the card's reader has it: the downloaded variant and a recording; and what must come out."""
    (tmp_path / "mimi").mkdir()
    shutil.copytree(published.folder / "streaming-8cb", tmp_path / "mimi" / "streaming-8cb")
    samples = np.rint(speech_like(2.3, 6) * 32767).astype(np.int16)
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 24000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    codec = load(tmp_path / "mimi" / "streaming-8cb")
    encoder = codec.encoder.stream()
    codes = np.concatenate([encoder.push(samples.astype(np.float32) / 32768), encoder.flush().codes], axis=2)
    return tmp_path, codec.decoder.stream().push(codes)[0]


def programs(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


@pytest.mark.parametrize("index", [0, 1], ids=["with the base install", "with nothing but onnxruntime"])
def test_python_programs_run(card, workplace, index):
    folder, wanted = workplace
    program = programs(card, "python")[index]
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    with wave.open(str(folder / "decoded.wav")) as file:
        assert file.getparams()[:3] == (1, 2, 24000)
        found = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
    np.testing.assert_allclose(found, wanted.clip(-1, 1), atol=2 / 32768)  # 16 bits


def test_bare_program_is_short_and_bare(card):
    program = programs(card, "python")[1]
    assert len(program.strip().splitlines()) <= 25
    tree = ast.parse(program)
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert modules == {"wave", "numpy", "onnxruntime"}


def test_javascript_program_runs(card, workplace):
    need_node("onnxruntime-node")
    folder, wanted = workplace
    (folder / "program.mjs").write_text(programs(card, "javascript")[0])
    (folder / "node_modules").symlink_to(FOLDER / "node_modules")
    run_node("program.mjs", cwd=folder)
    assert snr(wanted, np.fromfile(folder / "decoded.f32", np.float32)) >= DECODER_SNR


def test_whole_clip_program_runs(card, published, tmp_path):
    """As it stands; only where the repository is found is set before it begins."""
    need_node("@huggingface/transformers", "onnxruntime-node")
    user, name = REPO.split("/")
    (tmp_path / user).mkdir()
    (tmp_path / user / name).symlink_to(published.folder / "batch")
    (tmp_path / "node_modules").symlink_to(FOLDER / "node_modules")
    (tmp_path / "program.mjs").write_text(programs(card, "javascript")[1])
    setup = "import { env } from '@huggingface/transformers';\nenv.allowRemoteModels = false;\n"
    (tmp_path / "setup.mjs").write_text(f"{setup}env.localModelPath = {json.dumps(f'{tmp_path}/')};\n")
    run = run_node("--import", "./setup.mjs", "program.mjs", cwd=tmp_path)
    assert " ".join(run.stdout.split()) == "[ 1, 8, 38 ] [ 1, 1, 72960 ]"


@pytest.mark.parametrize("language", ["rust", "csharp"])
def test_other_programs_use_the_contract(card, published, language):
    """They cannot run here: every name and size in them is one of the definition, and brackets are closed."""
    (program,) = programs(card, language)
    manifest = load_artifact(published.folder / "streaming-8cb").manifest
    encoder = manifest.spec("encoder")
    code = re.sub(r"'.'", "", program)  # characters
    for opening, closing in ("()", "[]", "{}"):
        assert code.count(opening) == code.count(closing)
    assert "mimi/streaming-8cb" in program
    assert "@" not in program, "a word of the template was not filled in"
    assert str(manifest.geometry.frame_size) in program
    if language == "csharp":
        record = manifest.to_dict()["graphs"]["encoder"]
        for key in re.findall(r'GetProperty\("(\w+)"\)', program):
            assert key in {"graphs", "encoder", "decoder", "name"} | record.keys() | record["states"][0].keys(), key
        return
    key = next(state for state in encoder.states if state.kind == "key")
    sizes = {name: int(value) for name, value in re.findall(r"const (\w+): usize = (\d+);", program)}
    layers = sum(state.kind == "key" for state in encoder.states)
    assert sizes == {"FRAME": 1920, "LAYERS": layers, "HEADS": key.past_shape[1], "HEAD_DIM": key.past_shape[3]}
    kinds = re.findall(r'"(\w+_)\{name\}"', program)
    assert kinds == ["past_", "present_"]
    pattern = re.search(r'format!\("(\w+_)\{\}(_\w+)", words\[1\]\)', program)
    assert pattern is not None
    text = (published.folder / "streaming-8cb" / "state_spec.txt").read_text()
    section_text = text.split("[encoder]\n")[1].split("\n\n")[0]
    names = [pattern[1] + line.split()[1] + pattern[2] for line in section_text.splitlines()]
    assert [f"past_{name}" for name in names] == [tensor.name for tensor in encoder.inputs[1 : len(names) + 1]]
    data = re.findall(r'\.call\("(\w+)", "(\w+)"', program)
    wanted = [(graph.data_input.name, graph.data_output.name) for graph in map(manifest.spec, GRAPH_KINDS)]
    assert data == wanted


def test_card_shows_every_snippet(card, subjects):
    for snippet in snippets(subjects, REPO):
        assert f"```{snippet.language}\n{snippet.code}\n```" in card


# --- the rest


def test_same_input_same_card(card, published):
    assert model_card(read_subjects(published.directories), REPO) == card


def test_command_writes_it(published, card, tmp_path, capsys):
    path = tmp_path / "card.md"
    arguments = ["card", *map(str, published.directories), "--repo-id", REPO, "--output", str(path)]
    assert main(arguments) == 0
    assert path.read_text() == card
    assert main(arguments) == 8
    assert "--force" in capsys.readouterr().err


def test_nothing_private_in_any_file(published, subjects, tmp_path):
    """No token, no path and no name of this machine or its user in anything that is published."""
    words = {TOKEN, str(REPOSITORY), str(published.folder), str(Path.home()) + "/", "site-packages", "/tmp/"}  # noqa: S108
    words |= {name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4}
    for file in local_files(subjects, REPO):
        content = file.path.read_bytes() if file.path is not None else file.content
        found = [word for word in words if word.encode() in content]
        assert not found, f"{file.name} holds {found}"
