"""`download` and `load("USER/NAME", variant=…)`: a variant from the Hub without PyTorch, against a local server."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY
from hub_server import Blob, HubServer, Repo
from publishing import with_last_line

from mimi_export.contract.directory import load_artifact
from mimi_export.errors import ConfigError
from mimi_export.remote.variants import Place
from mimi_export.runtime import load

REPO = "me/mimi-onnx"
CIRCLE = f"/api/models/{REPO}"
ENCODER = "/resolve/.*/streaming-8cb/encoder_model.onnx"

NO_PACKAGES = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "transformers", "onnxscript", "onnx_ir", "huggingface_hub", "httpx"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
from mimi_export.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny_variant):
    """A Hub with a repository of one variant, and this process's cache and login."""
    with HubServer() as server:
        for name, value in {**server.environment, "MIMI_EXPORT_CACHE": str(tmp_path / "cache"), "HF_HOME": "x"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("mimi_export.remote.retry.FIRST_PAUSE", 0.0)
        monkeypatch.chdir(tmp_path)
        server.repos[REPO] = Repo()
        server.repos[REPO].add("main", "first", variant_files("streaming-8cb", tiny_variant(8)))
        yield server


def variant_files(name, directory) -> dict[str, Blob]:
    return {f"{name}/{path.name}": Blob(path.read_bytes(), path.suffix == ".onnx") for path in directory.iterdir()}


@pytest.fixture
def cli(cli):
    return with_last_line(cli)


def fetched(hub) -> list[str]:
    return [path.rpartition("/")[2] for path, _ in hub.sent("GET", "/resolve/")]


def test_downloads_and_needs_only_the_base_install(hub, tmp_path, tiny_variant):
    command = [sys.executable, "-c", NO_PACKAGES, "download", f"{REPO}/streaming-8cb", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert (result["path"], result["repo_id"]) == ("artifacts/streaming-8cb", REPO)
    assert result["revision"] == hub.repos[REPO].refs["main"]
    artifact = load_artifact(tmp_path / result["path"], verify_hashes=True)
    assert artifact.manifest == load_artifact(tiny_variant(8)).manifest


def test_only_what_the_cache_lacks_is_fetched(hub, cli, tiny_variant):
    assert cli("download", REPO)[0] == 0
    assert len(fetched(hub)) == len(list(tiny_variant(8).iterdir()))
    hub.requests.clear()
    assert cli("download", f"{REPO}/streaming-8cb", "--output-dir", "other")[0] == 0
    assert fetched(hub) == []
    assert cli("download", REPO)[0] == 8, "it exists"


def test_load_takes_a_repository(hub, tiny_variant):
    codec = load(REPO, variant="streaming-8cb")
    samples = np.sin(np.arange(19200, dtype=np.float32) / 9)
    wanted = load(tiny_variant(8)).encoder.stream().push(samples)
    np.testing.assert_array_equal(codec.encoder.stream().push(samples), wanted)
    with pytest.raises(ConfigError, match="USER/NAME"):
        load("mimi-onnx", variant="streaming-8cb")


def test_a_commit_in_the_cache_asks_nobody(hub):
    commit = hub.repos[REPO].refs["main"]
    load(REPO, variant="streaming-8cb", revision=commit)
    hub.requests.clear()
    load(REPO, variant="streaming-8cb", revision=commit)
    assert hub.requests == []


@pytest.mark.parametrize("offline", ["switch", "no server"])
def test_the_cache_is_enough_without_a_connection(hub, cli, monkeypatch, offline):
    assert cli("download", REPO)[0] == 0
    if offline == "switch":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    hub.requests.clear()
    assert cli("download", REPO, "--output-dir", "again")[0] == 0
    assert hub.requests == []
    code, _, error = cli("download", "me/other/streaming-8cb")
    assert code == 11
    assert "not in the cache" in error
    assert ("HF_HUB_OFFLINE" if offline == "switch" else "127.0.0.1:9") in error


def test_goes_on_where_it_stopped(hub, cli, monkeypatch, tiny_variant):
    monkeypatch.setattr("mimi_export.remote.retry.ATTEMPTS", 1)
    hub.fault("GET", ENCODER, cut=100_000)
    code, _, error = cli("download", REPO)
    assert code == 11
    assert "again" in error
    before = fetched(hub)
    hub.requests.clear()
    assert cli("download", REPO)[0] == 0
    complete = set(before[: before.index("encoder_model.onnx")]) - {"manifest.json"}
    assert not complete & set(fetched(hub)), "a file that had arrived was fetched again"
    assert "bytes=100000-" in hub.ranges
    assert load_artifact("artifacts/streaming-8cb", verify_hashes=True)


# name: fault, exit code, words. Afterwards the same command succeeds and leaves nothing half-made.
FAULTS = {
    "cut once": (ENCODER, {"cut": 1000}, 0, ""),
    "500 once": (ENCODER, {"status": 500}, 0, ""),
    "500 for ever": (ENCODER, {"status": 500, "times": 3}, 11, "the Hub failed (500)"),
    "404": ("/api/models/", {"status": 404}, 11, "(404)"),
    "403": ("/api/models/", {"status": 403}, 11, "may not do this (403)"),
    "other content": (ENCODER, {"corrupt": True}, 11, "another encoder_model.onnx than its manifest says"),
    "more than the manifest says": (ENCODER, {"answer": b"x" * 10**7}, 11, "another encoder_model.onnx"),
    "a list": ("/api/models/", {"answer": b"[]"}, 11, "answer"),
    "nothing": ("/api/models/", {"answer": b"", "times": 3}, 11, "answer"),
    "deep": ("/api/models/", {"answer": b"[" * 10**5}, 11, "answer"),
    "no commit": ("/api/models/", {"answer": b'{"sha": "../../x", "siblings": []}'}, 11, "no commit"),
    "no variants": ("/api/models/", {"answer": b'{"sha": "' + b"a" * 40 + b'", "siblings": [1]}'}, 11, "answer"),
    "an odd manifest": ("manifest.json", {"answer": b"[]"}, 5, "manifest"),
    "an endless manifest": ("manifest.json", {"answer": b" " * (5 << 20)}, 11, "longer than"),
    "a long pause": ("/api/models/", {"status": 429, "headers": {"Retry-After": "3600"}}, 11, "wait 3600 s"),
    "a circle": (
        "/api/models/",
        {"status": 302, "headers": {"Location": f"/api/models/{REPO}"}, "times": 9},
        11,
        "302",
    ),
    "a file": ("/api/models/", {"status": 302, "headers": {"Location": "file:///etc/passwd"}}, 11, "302"),
    "escape codes": ("/api/models/", {"status": 400, "headers": {"X-Error-Message": "\x1b[31mred"}}, 11, "red"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault(hub, cli, tmp_path, name):
    path, what, wanted, words = FAULTS[name]
    hub.fault("GET", path, **what)
    code, _, error = cli("download", f"{REPO}/streaming-8cb")
    assert code == wanted, error
    assert words in error
    assert error.isprintable()
    hub.faults.clear()
    assert cli("download", f"{REPO}/streaming-8cb", "--output-dir", "again")[0] == 0
    assert load_artifact("again", verify_hashes=True)
    left = [path.name for path in (tmp_path / "cache" / "hub" / REPO).rglob(".*")]
    assert left == []


@pytest.mark.parametrize("host", ["another", "the same"])
def test_the_token_goes_to_no_other_host(hub, cli, host):
    with HubServer() as other:
        other.repos = hub.repos
        target = other if host == "another" else hub
        commit = hub.repos[REPO].refs["main"]
        address = f"{target.endpoint}/{REPO}/resolve/{commit}/streaming-8cb/decoder_model.onnx"
        hub.fault("GET", "/decoder_model.onnx", status=302, headers={"Location": address})
        assert cli("download", REPO)[0] == 0
        assert other.tokens == []
        assert bool(other.requests) == (host == "another")
        assert sum(path.endswith("decoder_model.onnx") for path in hub.tokens) == (1 if host == "another" else 2)


def test_private_repositories_need_a_token(hub, cli, monkeypatch):
    hub.repos[REPO].private = True
    assert cli("download", REPO)[0] == 0
    monkeypatch.delenv("HF_TOKEN")
    code, _, error = cli("download", f"{REPO}/streaming-8cb", "--revision", "main", "--output-dir", "b")
    assert code == 11
    assert "hf auth login" in error


def test_says_which_variants_there_are(hub, cli, tiny_variant):
    files = variant_files("streaming-8cb", tiny_variant(8)) | variant_files("other", tiny_variant(8))
    hub.repos[REPO].add("main", "second", files)
    code, _, error = cli("download", REPO)
    assert code == 11
    assert "other, streaming-8cb" in error
    code, _, error = cli("download", f"{REPO}/none")
    assert code == 11
    assert "has no variant none; it holds other, streaming-8cb" in error


def test_what_is_no_variant_is_refused(hub, cli):
    hub.repos[REPO].add("main", "second", {"README.md": Blob(b"# x", False)})
    code, _, error = cli("download", REPO)
    assert code == 11
    assert "holds no variant" in error


@pytest.mark.parametrize("text", ["mimi", "a/b/c/d", "../x", "a/..", "a/b/..", "https://x/y", "a//b", "", "a/b/.c"])
def test_odd_places_are_refused(text):
    with pytest.raises(ConfigError, match="USER/NAME"):
        Place.parse(text)


def test_a_missing_variant_names_download_first(cli, tmp_path):
    code, _, error = cli("verify", tmp_path / "none")
    assert code == 5
    assert "mimi-export download USER/NAME" in error
