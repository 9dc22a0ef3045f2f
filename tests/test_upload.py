"""Publishing, against a server that speaks the Hub's protocol: what is sent, what is refused, and faults."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from hub_server import TOKEN, HubServer, card_errors
from publishing import REPO, Publication, local_hub, publication, whole_clips_from, with_last_line

from mimi_export.cli import main
from mimi_export.contract.precision import Fp16Options, Int8Options
from mimi_export.export.convert import convert
from mimi_export.export.whole_clip import export_batch
from mimi_export.parity.whole_clip import check_batch


@pytest.fixture(scope="module")
def published(tiny_checkpoint, tiny_variant, tmp_path_factory) -> Publication:
    folder = tmp_path_factory.mktemp("published")
    return publication(folder, tiny_checkpoint, {"streaming-8cb": tiny_variant(8)})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with local_hub(monkeypatch, tmp_path / "cache") as server:
        yield server


@pytest.fixture
def cli(cli):
    return with_last_line(cli)


def command(published: Publication, *more: str) -> list:
    return ["upload", *published.directories, "--repo-id", REPO, *more]


# --- what is sent


def test_dry_run_changes_nothing(published, hub, cli):
    code, out, _ = cli(*command(published, "--json"))
    plan = json.loads(out)
    assert code == 0
    assert hub.repos == {}
    assert not hub.sent("POST")
    assert not hub.sent("PUT")
    assert not plan["exists"]
    assert plan["published"] is None
    assert {file["status"] for file in plan["files"]} == {"new"}
    manifest = json.loads((published.directories[0] / "manifest.json").read_text())
    wanted = {f"streaming-8cb/{name}": entry["sha256"] for name, entry in manifest["files"].items()}
    found = {file["name"]: file["sha256"] for file in plan["files"]}
    assert wanted.items() <= found.items()
    assert found.keys() - wanted.keys() == {"README.md", "parity_report.json", "streaming-8cb/manifest.json"}
    assert plan["bytes_to_send"] == sum(file["bytes"] for file in plan["files"])


@pytest.mark.parametrize("offline", ["switch", "no server"])
def test_a_dry_run_without_a_connection_compares_with_nothing(published, hub, monkeypatch, capsys, offline):
    if offline == "switch":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        hub.fault("GET", "/api/models/", cut=0, times=9)
    assert main([*map(str, command(published, "--json"))]) == 0
    out, err = capsys.readouterr()
    plan = json.loads(out)
    assert plan["exists"] is None
    assert {file["status"] for file in plan["files"]} == {"new"}
    assert "note: compared with nothing, so every file counts as new" in err
    if offline == "no server":
        assert main([*map(str, command(published, "--yes"))]) == 11


def test_upload_then_nothing_to_send_then_one_change(published, hub, cli, tmp_path):
    code, out, _ = cli(*command(published, "--yes", "--json"))
    result = json.loads(out)
    assert code == 0
    assert result["published"]["sent"] == result["files_to_send"] == len(result["files"])
    assert result["published"]["verified"] == len(result["files"])
    files = hub.repos[REPO].files()
    for name in ("encoder_model.onnx", "decoder_model.onnx", "state_spec.txt", "manifest.json"):
        assert files[f"streaming-8cb/{name}"] == (published.directories[0] / name).read_bytes()
    assert [title for title, _ in hub.repos[REPO].commits.values()] == ["initial commit", "Publish streaming-8cb"]
    assert card_errors(files["README.md"].decode()) == []
    assert not hub.repos[REPO].private

    hub.requests.clear()
    code, out, _ = cli(*command(published, "--yes", "--json"))
    again = json.loads(out)
    assert code == 0
    assert {file["status"] for file in again["files"]} == {"unchanged"}
    assert (again["published"]["sent"], again["published"]["bytes_sent"]) == (0, 0)
    assert not hub.sent("PUT")
    assert not hub.sent("POST")
    assert len(hub.repos[REPO].commits) == 2

    from mimi_export.hub.client import Client
    from mimi_export.hub.plan import LocalFile

    Client(REPO).commit([LocalFile.of_text("README.md", "---\nlicense: mit\n---\n")], "edit", None, None, False)
    hub.requests.clear()
    code, out, _ = cli(*command(published, "--yes", "--json"))
    third = json.loads(out)
    assert [file["name"] for file in third["files"] if file["status"] == "changed"] == ["README.md"]
    assert third["published"]["sent"] == 1
    assert not hub.sent("PUT")


def test_private_and_branch(published, hub, cli):
    assert cli(*command(published, "--yes", "--private", "--revision", "next"))[0] == 0
    repo = hub.repos[REPO]
    assert repo.private
    assert set(repo.files()) == {".gitattributes"}
    assert "streaming-8cb/manifest.json" in repo.files("next")
    hub.requests.clear()
    assert cli(*command(published, "--yes", "--private", "--revision", "next"))[0] == 0
    assert not hub.sent("POST")
    repo.private = False
    code, _, error = cli(*command(published, "--yes", "--private"))
    assert code == 11
    assert "is public" in error


def test_pull_request_once(published, hub, cli):
    for _ in range(2):
        code, out, _ = cli(*command(published, "--yes", "--pr", "--json"))
        assert code == 0
        assert json.loads(out)["published"]["revision"] == "refs/pr/1"
        repo = hub.repos[REPO]
        assert set(repo.files()) == {".gitattributes"}
        assert "streaming-8cb/encoder_model.onnx" in repo.files("refs/pr/1")
        assert len(repo.requests) == 1


def test_pull_request_once_though_its_answer_is_lost(published, hub, cli):
    hub.fault("POST", "/commit/", status=500, after=True)
    code, out, _ = cli(*command(published, "--yes", "--pr", "--json"))
    assert code == 0
    assert json.loads(out)["published"]["revision"] == "refs/pr/1"
    assert len(hub.repos[REPO].requests) == 1


# --- what is refused before anything is sent


def test_refuses_files_that_no_report_vouches_for(published, hub, cli, tmp_path):
    directory = tmp_path / "streaming-8cb"
    shutil.copytree(published.directories[0], directory)
    arguments = ["upload", directory, "--repo-id", REPO, "--yes"]
    code, _, error = cli(*arguments)
    assert code == 10
    assert "no parity report" in error

    report = json.loads(published.report.read_text())
    failing = tmp_path / "failing.json"
    report["variants"][0]["passed"] = report["variants"][0]["checks"][0]["passed"] = False
    failing.write_text(json.dumps(report))
    code, _, error = cli(*arguments, "--report", failing)
    assert code == 1
    assert f"did not pass parity, so it is not published: {report['variants'][0]['checks'][0]['line']}" in error

    other = tmp_path / "other.json"
    report = json.loads(published.report.read_text())
    report["variants"][0]["files"]["decoder_model.onnx"]["sha256"] = "0" * 64
    other.write_text(json.dumps(report))
    code, _, error = cli(*arguments, "--report", other)
    assert code == 10
    assert "for other files: decoder_model.onnx" in error

    with (directory / "decoder_model.onnx").open("r+b") as file:
        file.write(b"\xff")
    code, _, error = cli(*arguments, "--report", published.report)
    assert code == 5
    assert "was changed" in error

    unreadable = tmp_path / "unreadable.json"
    unreadable.write_text("{")
    assert cli(*command(published, "--report", str(unreadable)))[0] == 5
    assert not hub.requests


def test_refuses_bad_names_and_doubles(published, hub, cli):
    assert cli("upload", *published.directories, "--repo-id", "no slash")[0] == 3
    assert cli("upload", *published.directories, "--repo-id", "mimi")[0] == 3
    code, _, error = cli("upload", *published.directories, *published.directories, "--repo-id", REPO)
    assert code == 5
    assert "would both go to" in error
    assert not hub.requests


def test_needs_a_token(published, hub, cli, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert cli(*command(published))[0] == 0, "a plan for a public repository needs none"
    code, _, error = cli(*command(published, "--yes"))
    assert code == 11
    assert "HF_TOKEN" in error
    assert hub.repos == {}


# --- faults

PUT, COMMIT, ENCODER = ("PUT", "^/lfs/"), ("POST", "/commit/"), ("GET", "/resolve/.*encoder_model.onnx")

# name: fault, exit code, words of the message, commits afterwards. Whatever happened, the same command then succeeds.
FAULTS = {
    "401": (("GET", "whoami"), {"status": 401}, 11, "does not accept the token (401)", 0),
    "403": (("POST", "repos/create"), {"status": 403}, 11, "may not do this (403)", 0),
    "404": (COMMIT, {"status": 404}, 11, "(404)", 1),
    "409": (COMMIT, {"status": 409}, 11, "somebody else changed", 1),
    "412": (COMMIT, {"status": 412}, 11, "somebody else changed", 1),
    "500 for a file, then success": (PUT, {"status": 500}, 0, "", 2),
    "500 for the commit, then success": (COMMIT, {"status": 500}, 0, "", 2),
    "500 after the commit was made": (COMMIT, {"status": 500, "after": True}, 0, "", 2),
    "500 for ever": (COMMIT, {"status": 500, "times": 3}, 11, "the Hub failed (500)", 1),
    "cut within a file": (PUT, {"cut": 1000}, 0, "", 2),
    "cut within the commit": (COMMIT, {"cut": 100}, 0, "", 2),
    "cut before the commit's answer": (COMMIT, {"cut": 0, "after": True}, 0, "", 2),
    "cut for ever": (COMMIT, {"cut": 0, "times": 3}, 11, "connection", 1),
    "cut within a download": (ENCODER, {"cut": 1000}, 0, "", 2),
    "another file comes back": (ENCODER, {"corrupt": True}, 11, "gave back another streaming-8cb/enc", 2),
    "the card is refused": (("POST", "validate-yaml"), {"status": 400}, 11, "400", 1),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault(published, hub, cli, name):
    (method, path), what, wanted, words, commits = FAULTS[name]
    hub.fault(method, path, **what)
    code, _, error = cli(*command(published, "--yes"))
    assert code == wanted, error
    assert words in error
    repo = hub.repos.get(REPO)
    assert (len(repo.commits) if repo else 0) == commits
    if repo is not None:
        everything = {".gitattributes", *expected_names(published)}
        assert set(repo.files()) in ({".gitattributes"}, everything), "half a commit"
    hub.faults.clear()
    arrived = set(hub.storage)
    hub.requests.clear()
    assert cli(*command(published, "--yes"))[0] == 0
    assert expected_names(published) <= set(hub.repos[REPO].files())
    assert len(hub.repos[REPO].commits) == 2
    resent = {path.rpartition("/")[2] for path, _ in hub.sent("PUT")} & arrived
    assert not resent, "a large file that had arrived was sent again"


def expected_names(published: Publication) -> set[str]:
    manifest = json.loads((published.directories[0] / "manifest.json").read_text())
    return {"README.md", "parity_report.json", "streaming-8cb/manifest.json"} | {
        f"streaming-8cb/{name}" for name in manifest["files"]
    }


TREE, LFS = ("GET", "/tree/"), ("POST", "/info/lfs/")


def another_host(hub, other, what):
    """Let the Hub name another host: for the next page, for large files, or as the right address of a file."""
    if what == "page":
        hub.fault(*TREE, headers={"Link": f'<{other.endpoint}/api/models/{REPO}/tree/main>; rel="next"'}, times=9)
    elif what == "upload":
        hub.storage_endpoint = other.endpoint
        other.storage = hub.storage
    else:
        hub.fault("GET", "/resolve/", status=302, headers={"Location": f"{other.endpoint}/{REPO}/resolve/x"}, times=9)


@pytest.mark.parametrize("what", ["page", "upload", "redirect"])
def test_the_token_goes_to_no_other_host(published, hub, cli, what):
    with HubServer() as other:
        another_host(hub, other, what)
        code, _, error = cli(*command(published, "--yes"))
        assert other.requests, error
        assert other.tokens == []
        assert hub.tokens
        assert code in (0, 11)


# name: which request, what is answered instead, words of the message
ODD = {
    "a list for an object": (("GET", "whoami"), b"[]", "answer"),
    "an object for a list": (TREE, b'{"a": 1}', "answer"),
    "nothing": (TREE, b"", "answer"),
    "a list of nothing": (TREE, b"[null]", "answer"),
    "no commit": (COMMIT, b"{}", "answer"),
    "no JSON": (("GET", "whoami"), b"<html>", "answer"),
    "odd objects": (LFS, b'{"objects": 5}', "answer"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_is_one_line(published, hub, cli, name):
    request, answer, words = ODD[name]
    cli(*command(published, "--yes", "--no-verify"))
    hub.storage.clear()
    for repo in hub.repos.values():
        repo.commits[repo.refs["main"]][1].clear()
    hub.fault(*request, answer=answer, times=9)
    code, _, error = cli(*command(published, "--yes"))
    assert code == 11, error
    assert words in error


def test_pages_have_an_end(published, hub, cli, monkeypatch):
    monkeypatch.setattr("mimi_export.remote.library.MOST_REQUESTS", 20)
    cli(*command(published, "--yes", "--no-verify"))
    link = f'<{hub.endpoint}/api/models/{REPO}/tree/main>; rel="next"'
    hub.fault(*TREE, headers={"Link": link}, answer=b"[]", times=1000)
    code, _, error = cli(*command(published))
    assert code == 11
    assert "no end" in error


@pytest.mark.parametrize("headers", [{"Retry-After": "3600"}, {"RateLimit": '"api";r=0;t=3600'}])
def test_a_long_pause_is_refused(published, hub, cli, headers):
    cli(*command(published, "--yes", "--no-verify"))
    hub.fault(*TREE, status=429, headers=headers, times=9)
    code, _, error = cli(*command(published))
    assert code == 11
    assert "asks to wait 3600 s" in error


def test_redirects_in_a_circle_end(published, hub, cli):
    hub.fault("GET", "/api/models/", status=302, headers={"Location": f"/api/models/{REPO}"}, times=1000)
    code, _, error = cli(*command(published, "--yes"))
    assert code == 11
    assert "redirect" in error.lower()


def test_escape_codes_of_a_server_do_not_reach_the_terminal(published, hub, cli):
    answer = json.dumps({"error": "\x1b[31mred\x1b[0m\a"}).encode()
    hub.fault("GET", "/api/models/", status=400, answer=answer, times=9)
    code, _, error = cli(*command(published))
    assert code == 11
    assert "red" in error
    assert error.isprintable()


def test_wrong_content_is_refused_by_the_server(published, hub, cli, monkeypatch):
    """A large file that changes between hashing and sending does not get into the repository."""
    from huggingface_hub import lfs

    honest = lfs._upload_single_part

    def lying(operation, upload_url):
        digit = upload_url[-1]
        honest(operation, upload_url[:-1] + ("0" if digit != "0" else "1"))

    monkeypatch.setattr(lfs, "_upload_single_part", lying)
    code, _, error = cli(*command(published, "--yes"))
    assert code == 11
    assert "SHA-256" in error
    assert set(hub.repos[REPO].files()) == {".gitattributes"}


# --- the whole thing, in a process of its own


def program(hub, home, *arguments):
    environment = {**os.environ, **hub.environment, "HF_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-m", "mimi_export", *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert TOKEN not in run.stdout + run.stderr
    return run


def test_all_variants_in_a_process_of_their_own(tiny_checkpoint, tiny_variant, hub, tmp_path, monkeypatch):
    """Streaming variants of all precisions and a whole-clip directory; `verify` on a copy fetched independently."""
    for name, options in {"fp16": Fp16Options(), "int8": Int8Options()}.items():
        convert(tiny_variant(8), tmp_path / "made" / name, options)
    variants = {
        "streaming-8cb": tiny_variant(8),
        "streaming-16cb": tiny_variant(16),
        "streaming-8cb-fp16": tmp_path / "made" / "fp16",
        "streaming-8cb-int8": tmp_path / "made" / "int8",
    }
    published = publication(tmp_path / "publish", tiny_checkpoint, variants)
    batch = tmp_path / "batch"
    monkeypatch.setattr(tiny_checkpoint, "source", "kyutai/mimi")
    whole_clips_from(monkeypatch, tiny_variant(8))
    export_batch(tiny_checkpoint, batch, 8, check=lambda directory: check_batch(tiny_checkpoint, directory))
    arguments = ["upload", *published.directories, batch, "--repo-id", REPO]

    dry = program(hub, tmp_path / "home", "-v", *arguments)
    assert dry.returncode == 0, dry.stderr
    assert "dry run" in dry.stdout
    assert hub.repos == {}
    sent = program(hub, tmp_path / "home", "-v", *arguments, "--yes")
    assert sent.returncode == 0, sent.stderr
    files = hub.repos[REPO].files()
    assert {"config.json", "preprocessor_config.json", "onnx/encoder_model.onnx", "README.md"} <= files.keys()
    before = len(hub.sent("PUT"))
    again = program(hub, tmp_path / "home", *arguments, "--yes", "--no-verify")
    assert again.returncode == 0, again.stderr
    assert "nothing to send" in again.stdout
    assert len(hub.sent("PUT")) == before

    copy = tmp_path / "copy"
    for name, content in files.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    for name in variants:
        assert main(["inspect", "--verify", str(copy / name)]) == 0
