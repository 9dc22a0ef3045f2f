"""Loading weights: from a directory, from a small Hub of our own, and every way in which it fails, in one line each.

The Hub's address is read when its client is imported, so those cases run in a process of their own, against a
server in this one.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mimi_export.errors import ArtifactError, CheckpointError, ConfigError
from mimi_export.model import upstream
from mimi_export.model.checkpoint import load_checkpoint, load_source
from mimi_export.model.synthetic import synthetic_directory

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLD_COMMIT = COMMIT[::-1]
COMMITS = {"": COMMIT, "main": COMMIT, "old": OLD_COMMIT, COMMIT: COMMIT, OLD_COMMIT: OLD_COMMIT}
STOP = "stop the Hub"
ATTEMPTS = {
    "good": ("acme/tiny", None),
    "cached": ("acme/tiny", None),
    "commit": ("acme/tiny", COMMIT),
    "branch": ("acme/tiny", "old"),
    "no revision": ("acme/tiny", "v9"),
    **{kind: (f"acme/{kind}", None) for kind in ("absent", "private", "gated", "broken", "empty")},
    STOP: ("", None),
    "cached, no Hub": ("acme/tiny", None),
    "branch, no Hub": ("acme/tiny", "old"),
    "no Hub": ("acme/other", None),
}
CLIENT = """
import json, sys, urllib.request
from mimi_export.model.checkpoint import load_checkpoint
from mimi_export.errors import MimiExportError

endpoint, attempts = sys.argv[1], json.loads(sys.argv[2])
steps, results = [], {}
for name, (model, revision) in attempts.items():
    if not model:
        urllib.request.urlopen(endpoint + "/stop").read()
        continue
    try:
        loaded = load_checkpoint(model, revision, progress=lambda step, done, total: steps.append(step))
        found = [loaded.source, loaded.revision, loaded.geometry.hidden_size, loaded.model.config._name_or_path]
    except MimiExportError as error:
        found = [type(error).__name__, str(error)]
    results[name] = found
print(json.dumps({**results, "steps": sorted(set(steps))}))
"""


class Hub(ThreadingHTTPServer):
    """As much of the Hub as loading a model needs: the API's commit of a revision, and the files of that commit."""

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.directory = directory
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class HubRequest(BaseHTTPRequestHandler):
    """One connection for each request, so that a stopped server refuses the next."""

    server: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        if path == "/stop":
            self.server.stop()
            return self._send(b"", "")
        api = path.startswith("/api/models/")
        path = path.removeprefix("/api/models").removeprefix("/")
        model, _, rest = path.partition("/revision/" if api else "/resolve/")
        revision, _, name = rest.partition("/")
        if model == "acme/private":
            return self._error(401, "RepoNotFound")
        if model == "acme/absent":
            return self._error(404, "RepoNotFound")
        if model == "acme/gated" and not api:
            return self._error(403, "GatedRepo")
        if model == "acme/broken":
            return self._error(500, "")
        if revision not in COMMITS:
            return self._error(404, "RevisionNotFound")
        commit = COMMITS[revision]
        if api:
            answer = {"id": model, "modelId": model, "sha": commit, "siblings": []}
            return self._send(json.dumps(answer).encode(), commit)
        file = self.server.directory / name
        if not file.is_file() or (model == "acme/empty" and name != "config.json"):
            return self._error(404, "EntryNotFound")
        return self._send(file.read_bytes(), commit)

    def _send(self, content, commit):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hash(content) % 2**64:040x}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _error(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "2")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"{}")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return synthetic_directory("synthetic:tiny", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def hub(good, tmp_path_factory):
    """What each attempt gave, what the Hub was asked, and all that the other process wrote to the terminal."""
    server = Hub(good)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HF_") and not name.lower().endswith("_proxy")
    }
    environment = {
        **kept,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path_factory.mktemp("hub")),
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }
    command = [sys.executable, "-c", CLIENT, endpoint, json.dumps(ATTEMPTS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "stderr": done.stderr, "requests": server.requests}


def test_hub_model_is_loaded_with_its_commit(hub):
    assert hub["good"] == ["acme/tiny", COMMIT, 32, "acme/tiny"]
    assert hub["commit"] == ["acme/tiny", COMMIT, 32, "acme/tiny"]
    assert hub["branch"] == ["acme/tiny", OLD_COMMIT, 32, "acme/tiny"]


def test_hub_model_is_fetched_once_and_then_loads_without_the_hub(hub):
    assert hub["requests"].count(f"GET /acme/tiny/resolve/{COMMIT}/model.safetensors") == 1
    assert hub["cached"] == hub["cached, no Hub"] == hub["good"]
    assert hub["branch, no Hub"] == hub["branch"]


def test_download_reports_progress_and_prints_nothing(hub):
    assert {"downloading config.json", "downloading model.safetensors"} <= set(hub["steps"])
    assert hub["stderr"] == ""


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no Hub", ["cannot reach the Hugging Face Hub for acme/other", "refused", "--model demo", "DIRECTORY"]),
        ("broken", ["cannot reach the Hugging Face Hub", "500", "--model demo"]),
        ("absent", ["the Hub has no model acme/absent", "private", "hf auth login"]),
        ("private", ["the Hub has no model acme/private", "private", "hf auth login"]),
        ("gated", ["acme/gated is gated", "hf auth login"]),
        ("no revision", ["acme/tiny has no revision 'v9'"]),
        ("empty", ["acme/empty lacks config.json or model.safetensors"]),
    ],
)
def test_hub_errors_are_one_line_each(hub, case, words):
    kind, text = hub[case]
    assert kind == "CheckpointError"
    assert [word for word in words if word not in text] == [], text
    assert "\n" not in text
    assert "127.0.0.1" not in text


def test_directory_is_named_by_its_last_part(good):
    loaded = load_checkpoint(str(good))
    assert (loaded.source, loaded.revision) == ("synthetic-tiny-2", None)
    assert loaded.model.config._name_or_path == "synthetic-tiny-2"
    assert not loaded.model.training
    assert {tensor.dtype for tensor in upstream.tensors_on_disk(loaded.model).values()} == {torch.float32}
    assert loaded.geometry == upstream.geometry_of(loaded.model)


def test_loading_prints_nothing(good, capfd):
    load_checkpoint(str(good))
    assert capfd.readouterr() == ("", "")


def test_half_precision_weights_are_widened(copy_of, good):
    tensors = load_file(good / "model.safetensors")
    directory = copy_of({name: tensor.bfloat16() for name, tensor in tensors.items()})
    loaded = upstream.tensors_on_disk(load_checkpoint(str(directory)).model)
    assert all(torch.equal(loaded[name], tensor.bfloat16().float()) for name, tensor in tensors.items())


def test_sharded_weights_load(copy_of, good):
    tensors = load_file(good / "model.safetensors")
    directory = copy_of({})
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, directory / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = upstream.tensors_on_disk(load_checkpoint(str(directory)).model)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    (directory / "model-00002-of-00002.safetensors").unlink()
    _fails(directory, CheckpointError, "lacks model-00002-of-00002.safetensors, which its model.safetensors.index.json")


SIZES = ("sampling_rate", "hidden_size", "num_filters", "num_residual_layers", "kernel_size", "dilation_growth_rate",
         "compress", "num_quantizers", "codebook_size", "codebook_dim", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "upsample_groups", "sliding_window")  # fmt: skip


@pytest.fixture
def copy_of(good, tmp_path):
    """Make a copy of the good checkpoint with other tensors (`None`: the same) or configuration fields."""

    def make(tensors=None, **fields):
        directory = tmp_path / "copy"
        shutil.copytree(good, directory, dirs_exist_ok=True)
        if tensors is not None:
            save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        if fields:
            config = json.loads((directory / "config.json").read_text())
            (directory / "config.json").write_text(json.dumps({**config, **fields}))
        return directory

    return make


def _fails(directory, kind, *words):
    with pytest.raises(kind) as caught:
        load_checkpoint(str(directory))
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert "\n" not in text
    assert str(directory.parent) not in text
    assert type(caught.value) is kind


def _without(prefix):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


REFUSED = {
    "missing": (_without("downsample.conv.weight"), "copy lacks 1 tensors", "downsample.conv.weight"),
    "many missing": (_without("decoder."), "lacks 28 tensors", "…"),
    "another shape": (
        lambda tensors: {**tensors, "upsample.conv.weight": tensors["upsample.conv.weight"][:, :, :2].contiguous()},
        "upsample.conv.weight of copy is [32, 1, 2]", "[32, 1, 4]",
    ),
    "not finite": (
        lambda tensors: {**tensors, "encoder.layers.0.conv.bias": torch.full((4,), float("nan"))},
        "not finite", "encoder.layers.0.conv.bias",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_tensors_are_refused(copy_of, good, case):
    change, *words = REFUSED[case]
    _fails(copy_of(change(load_file(good / "model.safetensors"))), CheckpointError, *words)


def test_tensors_without_a_place_are_refused(copy_of):
    _fails(copy_of(num_hidden_layers=1), CheckpointError, "has 24 tensors for which its configuration has no place")


def test_tensors_of_another_thing_are_let_pass(copy_of, good):
    tensors = {**load_file(good / "model.safetensors"), "optimizer.step": torch.zeros(1)}
    assert load_checkpoint(str(copy_of(tensors))).source == "copy"


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_truncated_weights_are_refused(copy_of, keep):
    directory = copy_of()
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    _fails(
        directory, CheckpointError, "model.safetensors of copy is truncated or not a safetensors file", "get it again"
    )


def test_missing_files_are_named(copy_of):
    directory = copy_of()
    (directory / "model.safetensors").unlink()
    _fails(directory, CheckpointError, "copy has no model.safetensors")
    (directory / "config.json").unlink()
    _fails(directory, CheckpointError, "copy has no config.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "is a list of 1, expected an object"),
        ("\xff", "is not UTF-8"),
        ("[" * 10**5, "nested too deep"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a": %s}' % ("1" * 5000), "a number is too long"),
    ],
)
def test_configuration_that_is_no_json_object_is_refused(copy_of, text, words):
    directory = copy_of()
    (directory / "config.json").write_bytes(text.encode("latin-1"))
    _fails(directory, CheckpointError, "config.json of copy", words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "encodec"}, 'copy is not a Mimi checkpoint: model_type in its config.json is "encodec"'),
        ({"model_type": None}, 'expected "mimi"'),
        ({"use_causal_conv": False}, "use_causal_conv=False cannot be streamed"),
        ({"trim_right_ratio": 0.5}, "trim_right_ratio=0.5 cannot be streamed"),
        ({"hidden_size": "wide"}, 'hidden_size is "wide", expected a whole number'),
        ({"num_semantic_quantizers": 16}, "num_semantic_quantizers must be below num_quantizers"),
        ({"codebook_size": 63}, "config.json of copy is refused by transformers"),
        ({"upsampling_ratios": 5}, "upsampling_ratios is 5, expected a list"),
        ({"upsampling_ratios": [0, 2]}, "upsampling_ratios[0] is 0"),
        ({"rope_parameters": 5}, "rope_parameters is 5, expected an object"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta must be positive"),
        ({"frame_rate": 0}, "leaves no downsampling"),
        ({"hidden_act": "x" * 10**4}, "is not supported"),
        *(
            ({name: size}, name)
            for name in SIZES
            for size in (0, 10**9, 10**400)
            if name != "num_residual_layers" or size
        ),
    ],
)
def test_configuration_that_is_no_streamable_mimi_is_refused(copy_of, fields, words):
    begin = time.monotonic()
    _fails(copy_of(**fields), CheckpointError if 10**400 in fields.values() else ConfigError, words)
    assert time.monotonic() - begin < 5


def test_sizes_are_compared_with_the_file_before_anything_is_allocated(copy_of):
    """Each would be gigabytes."""
    fields = {"codebook_size": 1 << 20, "num_quantizers": 1024}
    _fails(copy_of(**fields), CheckpointError, "copy lacks 3024 tensors")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("num_filters", "kernel_size", "intermediate_size"):
        _fails(copy_of(**{name: 1 << 15}), CheckpointError, "but its configuration asks for")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000


STRANGE = {
    "code from a repository": {"attn_implementation": "org/kernel", "_attn_implementation": "org/kernel"},
    "another attention": {"attn_implementation": "flash_attention_2"},
    "a quantisation": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    "code beside it": {"auto_map": {"AutoModel": "org/repository--file.Class"}},
    "a data type": {"dtype": "evil", "torch_dtype": "float16"},
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_configuration_decides_sizes_alone(copy_of, good, case):
    model = load_checkpoint(str(copy_of(**STRANGE[case]))).model
    assert model.config._attn_implementation == "sdpa"
    assert getattr(model.config, "quantization_config", None) is None
    assert next(model.parameters()).dtype == torch.float32
    wanted = upstream.tensors_on_disk(load_checkpoint(str(good)).model)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in upstream.tensors_on_disk(model).items())


def test_a_configuration_that_is_a_pipe_is_refused(copy_of):
    directory = copy_of()
    (directory / "config.json").unlink()
    os.mkfifo(directory / "config.json")
    _fails(directory, CheckpointError, "is no regular file")


def test_paths_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"")
    for model in ("", "./nothing", str(tmp_path / "nothing"), "a/b/c", "~/no such directory"):
        with pytest.raises(
            CheckpointError, match=r"there is no directory .*Hub id such as kyutai/mimi, or --model demo"
        ):
            load_checkpoint(model)
    with pytest.raises(CheckpointError, match=r"is a file; expected one of .safetensors, or a directory with"):
        load_checkpoint("weights.bin")
    with pytest.raises(CheckpointError, match="'a model' is neither a directory nor a model id"):
        load_checkpoint("a model")


def test_unknown_synthetic_checkpoint_and_pointless_revisions(good):
    with pytest.raises(ConfigError, match="synthetic checkpoints are synthetic and synthetic:tiny"):
        load_checkpoint("synthetic:huge")
    for model in ("synthetic:tiny", str(good)):
        with pytest.raises(ConfigError, match="has no revisions"):
            load_checkpoint(model, revision="main")


def test_transformers_without_a_sliding_window_is_refused_before_anything_else(monkeypatch):
    def too_old():
        raise CheckpointError("too old")

    monkeypatch.setattr(upstream, "check_transformers_version", too_old)
    with pytest.raises(CheckpointError, match="too old"):
        load_checkpoint("synthetic:tiny")


def test_source_of_a_variant(tiny_checkpoint):
    again = load_source(tiny_checkpoint.source, tiny_checkpoint.revision)
    assert (again.source, again.revision) == (tiny_checkpoint.source, tiny_checkpoint.revision)
    asked = []
    load_source("someone/mimi", "abc", lambda *wanted: asked.append(wanted) or tiny_checkpoint)
    assert asked == [("someone/mimi", "abc")]
    with pytest.raises(ArtifactError, match=r"made from synthetic:tiny \(format 0\), this program has .* export it"):
        load_source("synthetic:tiny", "format 0")
