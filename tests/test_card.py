"""The model card: front matter, tables equal to the reports, programs that run as they stand, nothing private."""

from __future__ import annotations

import ast
import dataclasses
import getpass
import json
import os
import re
import shutil
import socket
import struct
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
from mimi_export.contract.precision import Fp16Options
from mimi_export.contract.spec import GRAPH_KINDS
from mimi_export.errors import ArtifactError
from mimi_export.export.convert import convert
from mimi_export.export.whole_clip import export_batch
from mimi_export.hub.card import model_card
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
    subject = read_subjects(published.directories[:1])[0]
    made_up = dataclasses.replace(subject, made=load_artifact(tiny_variant(8)).manifest)
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

SNIPPETS = REPOSITORY / "mimi_export" / "hub" / "snippets"
PROGRAMS = [path for path in sorted(SNIPPETS.iterdir()) if path.name != "latents.py"]  # that one is for latents alone
LANGUAGES = {".py": "python", ".mjs": "javascript", ".rs": "rust", ".cs": "csharp"}


@pytest.mark.parametrize("file", PROGRAMS, ids=lambda file: file.name)
def test_card_shows_every_program_as_it_is(card, file):
    assert f"```{LANGUAGES[file.suffix]}\n{file.read_text().strip()}\n```" in card


def test_no_word_of_the_template_is_left(card):
    prose = re.sub(r"```.*?```", "", card, flags=re.DOTALL)
    assert "$" not in prose
    assert "<!--" not in prose


@pytest.fixture
def workplace(published, tmp_path):
    """A directory as the card's reader has it: the downloaded variant and a recording; and what must come out."""
    (tmp_path / "mimi").mkdir()
    shutil.copytree(published.folder / "streaming-8cb", tmp_path / "mimi" / "streaming-8cb")
    (tmp_path / "node_modules").symlink_to(FOLDER / "node_modules")
    samples = np.rint(speech_like(2.3, 6) * 32767).astype(np.int16)
    write_wav(tmp_path / "speech.wav", samples)
    codec = load(tmp_path / "mimi" / "streaming-8cb")
    encoder = codec.encoder.stream()
    codes = np.concatenate([encoder.push(samples.astype(np.float32) / 32768), encoder.flush().codes], axis=2)
    return tmp_path, codec.decoder.stream().push(codes)[0]


def write_wav(path: Path, samples: np.ndarray, rate: int = 24000, channels: int = 1) -> None:
    """With a chunk of another kind before the samples, as many programs write it."""
    data = samples.astype("<i2").tobytes()
    chunks = [
        (b"fmt ", struct.pack("<HHIIHH", 1, channels, rate, 2 * channels * rate, 2 * channels, 16)),
        (b"LIST", b"INFOISFT\x06\0\0\0noise\0"),
        (b"data", data),
    ]
    content = b"WAVE" + b"".join(name + struct.pack("<I", len(chunk)) + chunk for name, chunk in chunks)
    path.write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content)


def run_program(card: str, name: str, folder: Path, source: str = "speech.wav") -> subprocess.CompletedProcess[str]:
    """Run a program with the command line that the card shows for it."""
    (folder / name).write_text((SNIPPETS / name).read_text())
    command = re.search(rf"(?m)^(python|node) {re.escape(name)} .*$", card)
    assert command is not None
    runner, *arguments = command[0].replace("speech.wav", source).split()
    return subprocess.run(
        [{"python": sys.executable}.get(runner, runner), *arguments], cwd=folder, capture_output=True, text=True,
        timeout=120, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["stream.py", "bare.py"])
def test_python_programs_run(card, workplace, name):
    folder, wanted = workplace
    run = run_program(card, name, folder)
    assert run.returncode == 0, run.stderr
    with wave.open(str(folder / "decoded.wav")) as file:
        assert file.getparams()[:3] == (1, 2, 24000)
        found = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
    np.testing.assert_allclose(found, wanted.clip(-1, 1), atol=2 / 32768)  # 16 bits


def test_javascript_program_runs(card, workplace):
    need_node("onnxruntime-node")
    folder, wanted = workplace
    run = run_program(card, "stream.mjs", folder)
    assert run.returncode == 0, run.stderr
    assert snr(wanted, np.fromfile(folder / "decoded.f32", np.float32)) >= DECODER_SNR


@pytest.mark.parametrize("name", ["bare.py", "stream.mjs"])
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (24000, 2)])
def test_programs_refuse_what_they_would_stretch(card, workplace, name, rate, channels):
    if name.endswith(".mjs"):
        need_node("onnxruntime-node")
    folder, _ = workplace
    write_wav(folder / "other.wav", np.zeros(4800, np.int16), rate, channels)
    run = run_program(card, name, folder, "other.wav")
    assert run.returncode == 1
    assert "other.wav: expected 24000 Hz, mono, 16 bit" in run.stderr
    assert not list(folder.glob("decoded.*"))


def test_programs_take_one_thread(card):
    for name, words in (
        ("bare.py", "intra_op_num_threads = 1"), ("stream.mjs", "intraOpNumThreads: 1"),
        ("stream.rs", "with_intra_threads(1)"), ("stream.cs", "IntraOpNumThreads = 1"),
    ):  # fmt: skip
        assert words in (SNIPPETS / name).read_text()


def test_bare_program_is_short_and_bare():
    program = (SNIPPETS / "bare.py").read_text()
    assert len(program.strip().splitlines()) <= 40
    tree = ast.parse(program)
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert modules == {"sys", "wave", "numpy", "onnxruntime"}


def test_whole_clip_program_runs(card, published, tmp_path):
    """As it stands; only where the repository is found is set before it begins."""
    need_node("@huggingface/transformers", "onnxruntime-node")
    user, name = REPO.split("/")
    (tmp_path / user).mkdir()
    (tmp_path / user / name).symlink_to(published.folder / "batch")
    (tmp_path / "node_modules").symlink_to(FOLDER / "node_modules")
    (tmp_path / "whole_clips.mjs").write_text((SNIPPETS / "whole_clips.mjs").read_text())
    setup = "import { env } from '@huggingface/transformers';\nenv.allowRemoteModels = false;\n"
    (tmp_path / "setup.mjs").write_text(f"{setup}env.localModelPath = {json.dumps(f'{tmp_path}/')};\n")
    arguments = re.search(r"(?m)^node (whole_clips\.mjs .*)$", card)[1].split()
    run = run_node("--import", "./setup.mjs", *arguments, cwd=tmp_path)
    assert " ".join(run.stdout.split()) == "[ 1, 8, 38 ] [ 1, 1, 72960 ]"


def test_rust_program_compiles(tmp_path):
    """Against declarations of the part of `ort` that it uses; only where the compiler is."""
    rustc = shutil.which("rustc")
    if rustc is None:
        pytest.skip("no Rust compiler")
    declarations = REPOSITORY / "tests" / "rust" / "ort.rs"
    compile_ = [rustc, "--edition", "2021", "--emit", "metadata", "-D", "warnings", "--out-dir", str(tmp_path)]
    for arguments in (
        ["--crate-name", "ort", "--crate-type", "lib", str(declarations)],
        ["--crate-name", "stream", "--extern", f"ort={tmp_path}/libort.rmeta", str(SNIPPETS / "stream.rs")],
    ):
        run = subprocess.run([*compile_, *arguments], capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr


def test_csharp_program_compiles(tmp_path):
    """Where .NET and its packages can be had."""
    if shutil.which("dotnet") is None:
        pytest.skip("no .NET")

    def dotnet(*arguments):
        return subprocess.run(["dotnet", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=600)

    assert dotnet("new", "console", "--name", "stream", "--output", ".").returncode == 0
    (tmp_path / "Program.cs").write_text((SNIPPETS / "stream.cs").read_text())
    if dotnet("add", "package", "Microsoft.ML.OnnxRuntime").returncode != 0:
        pytest.skip("no package of onnxruntime for .NET")
    run = dotnet("build")
    assert run.returncode == 0, run.stdout


def test_csharp_program_reads_what_the_manifest_has(published):
    program = (SNIPPETS / "stream.cs").read_text()
    record = load_artifact(published.folder / "streaming-8cb").manifest.to_dict()["graphs"]["encoder"]
    for key in re.findall(r'GetProperty\("(\w+)"\)', program):
        assert key in {"graphs", "encoder", "decoder", "name"} | record.keys() | record["states"][0].keys(), key
    code = re.sub(r"//.*|\"[^\"]*\"", "", program)
    for opening, closing in ("()", "[]", "{}"):
        assert code.count(opening) == code.count(closing)


def test_programs_for_mimi_are_left_out_for_another_frame(subjects):
    """Those without this package take 1920 samples at 24000 Hz for granted."""
    manifest = subjects[0].manifest
    other = dataclasses.replace(manifest, geometry=dataclasses.replace(manifest.geometry, sampling_rate=48_000))
    text = model_card([dataclasses.replace(subjects[0], made=other)])
    assert "from mimi_export.runtime import load" in text
    assert "onnxruntime-node" not in text


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
    assert main([*arguments, "--force", "--json"]) == 0
    wanted = {"command": "card", "path": str(path), "lines": card.count("\n"), "bytes": len(card.encode())}
    assert json.loads(capsys.readouterr().out) == wanted
    bare = shutil.copytree(published.directories[0], tmp_path / "bare")
    assert main(["card", str(bare), "--output", str(tmp_path / "other.md")]) == 10
    assert "has no parity report" in capsys.readouterr().err


def test_nothing_private_in_any_file(published, subjects, tmp_path):
    """No token, no path and no name of this machine or its user in anything that is published."""
    words = {TOKEN, str(REPOSITORY), str(published.folder), str(Path.home()) + "/", "site-packages", "/tmp/"}  # noqa: S108
    words |= {name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4}
    for file in local_files(subjects, REPO):
        content = file.path.read_bytes() if file.path is not None else file.content
        found = [word for word in words if word.encode() in content]
        assert not found, f"{file.name} holds {found}"


def test_demo_weights_say_what_they_are_and_whose(tiny_variant, published):
    subject = read_subjects(published.directories[:1])[0]
    manifest = load_artifact(tiny_variant(8)).manifest
    source = dataclasses.replace(manifest.source, model="demo", revision="0123456789ab")
    text = model_card([dataclasses.replace(subject, made=dataclasses.replace(manifest, source=source))])
    assert card_errors(text) == []
    assert "license: cc-by-sa-3.0" in text
    assert "a small codec for demonstrations" in text
    assert "Allison Smith" in text
