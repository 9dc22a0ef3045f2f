"""`mimi-export web`: the site that it writes, how it is served, and the page in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import REPOSITORY, SHARED
from node_tools import need_node, run_node
from test_js import PACKAGE, variants
from test_report_browser import BROWSERS

from mimi_export.media.codes import read_codes
from mimi_export.media.signals import speech_like
from mimi_export.web import onnxruntime as web_runtime
from mimi_export.web.onnxruntime import FILES, VERSION, find_onnxruntime_web
from mimi_export.web.serve import make_server
from mimi_export.web.site import HEADERS, LIST, PAGE, build_site

__all__ = ["variants"]
SAMPLE = REPOSITORY / "scripts" / "clips" / "speech.ogg"
MOST_PAGE_BYTES = 300 * 1024


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """A directory with the names of onnxruntime-web's files."""
    folder = tmp_path_factory.mktemp("runtime")
    for name in FILES:
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def web(cli, runtime):
    return lambda *arguments: cli("web", *arguments, "--onnxruntime-web", runtime)


def test_site(web, tiny_variant, tmp_path):
    variant = tiny_variant(8)
    code, out, _ = web(variant, "--out", tmp_path / "site", "--json")
    assert code == 0
    said = json.loads(out)
    assert said["page_bytes"] < MOST_PAGE_BYTES
    site = tmp_path / "site"
    offered = json.loads((site / LIST).read_text())
    assert [entry["path"] for entry in offered] == [variant.name]
    assert offered == said["variants"]
    assert (site / "models" / variant.name / "manifest.json").read_bytes() == (variant / "manifest.json").read_bytes()
    assert "custom_headers" in (site / "README.md").read_text()
    shell = json.loads(re.match(r"self.SHELL=(.*);\n", (site / "sw.js").read_text())[1])
    assert all((site / name).is_file() for name in shell["files"])
    assert {"index.html", "app.js", "worker.js", "speech.ogg", LIST, f"runtime/{FILES[0]}"} <= set(shell["files"])

    assert web(variant, "--out", site)[0] == 8, "what is there stays"
    assert web(variant, "--out", site, "--force")[0] == 0


def test_nothing_comes_from_elsewhere():
    for path in PAGE.iterdir():
        found = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", path.read_text(encoding="utf-8")))
        assert found <= {"http://www.w3.org"}, path


def test_what_the_page_cannot_run_is_refused(web, tiny_variant, tmp_path):
    for shape, why in (((8, "ring", 2), "frames in a call"), ((8, "window", None, 3), "rows")):
        code, _, err = web(tiny_variant(*shape), "--out", tmp_path / "site")
        assert code == 3
        assert why in err
    assert web(tiny_variant(8), tiny_variant(8), "--out", tmp_path / "site")[0] == 3
    assert web(tmp_path / "none", "--out", tmp_path / "site")[0] == 5
    assert not (tmp_path / "site").exists()


def test_no_onnxruntime_web(cli, tiny_variant, tmp_path, monkeypatch):
    """Without npm, and where npm gives another package than the one whose hash is known."""
    monkeypatch.setenv("MIMI_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    code, _, err = cli("web", tiny_variant(8), "--out", tmp_path / "site")
    assert code == 9
    assert "install Node" in err
    code, _, err = cli("web", tiny_variant(8), "--out", tmp_path / "site", "--onnxruntime-web", tmp_path)
    assert code == 9
    assert FILES[0] in err

    def pack(command, **_):
        (Path(command[-1]) / "onnxruntime-web.tgz").write_bytes(b"another")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/npm")
    monkeypatch.setattr(web_runtime.subprocess, "run", pack)
    code, _, err = cli("web", tiny_variant(8), "--out", tmp_path / "site")
    assert code == 9
    assert "its hash is another" in err
    assert not (tmp_path / "cache" / f"onnxruntime-web-{VERSION}").exists()


def test_onnxruntime_web_is_the_locked_one():
    lock = json.loads((PACKAGE / "package-lock.json").read_text())["packages"]["node_modules/onnxruntime-web"]
    assert (lock["version"], lock["integrity"]) == (VERSION, web_runtime.INTEGRITY)


def test_serve(runtime, tiny_variant, tmp_path):
    build_site([tiny_variant(8)], tmp_path / "site", runtime)
    with make_server(tmp_path / "site", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/runtime/{FILES[2]}") as response:
            assert response.headers["Content-Type"] == "application/wasm"
            assert HEADERS.items() <= dict(response.headers).items()
        server.shutdown()


def test_the_page_that_ships_is_what_its_source_gives(tmp_path):
    need_node("esbuild", folder=PACKAGE)
    run_node("page/build.js", tmp_path, cwd=PACKAGE)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (PAGE / path.name).read_bytes(), f"{path.name}: run `make page`"


@pytest.fixture(scope="session")
def site(variants, shared_folder):
    need_node("playwright-core", "axe-core", "onnxruntime-web", folder=PACKAGE)
    folder = shared_folder / "site"
    package = find_onnxruntime_web(PACKAGE / "node_modules" / "onnxruntime-web")
    build_site([variants / name for name in ("window", "fp16", "int8")], folder, package)
    return folder


def test_page(site, variants, cli, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    soundfile.write(tmp_path / "made.flac", speech_like(4.0, 12, 16_000), 16_000)
    recordings = [path for path in (tmp_path / "made.flac", SHARED / "audio" / "jfk.flac") if path.exists()]
    places = {"MIMI_SITE": site, "MIMI_VARIANTS": variants, "MIMI_BROWSER": browser, "MIMI_OUT": tmp_path}
    environment = os.environ | {name: str(path) for name, path in places.items()}
    environment["MIMI_RECORDINGS"] = os.pathsep.join(map(str, recordings))
    run = subprocess.run(
        ["node", "--test", "test/page.test.js"], cwd=PACKAGE, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr
    assert int(re.search(r"(?:#|ℹ) pass (\d+)", run.stdout)[1]) >= 12 + len(recordings)

    for path in recordings:
        name = tmp_path / path.name
        soundfile.write(name.with_suffix(".wav"), np.fromfile(f"{name}.f32", np.float32), 24_000, subtype="FLOAT")
        arguments = (name.with_suffix(".wav"), f"{name}.wanted.safetensors", "--variant", variants / "window")
        assert cli("encode", *arguments)[0] == 0
        found, wanted = (read_codes(f"{name}{end}.safetensors").codes for end in ("", ".wanted"))
        assert np.array_equal(found, wanted), path.name
    assert cli("encode", SAMPLE, tmp_path / "wanted.safetensors", "--variant", variants / "window")[0] == 0
    found, wanted = (read_codes(tmp_path / name).codes for name in ("sample.safetensors", "wanted.safetensors"))
    frames = min(found.shape[2], wanted.shape[2])
    assert abs(found.shape[2] - wanted.shape[2]) <= 1
    assert np.mean(found[..., :frames] == wanted[..., :frames]) > 0.99, "Vorbis is decoded by another library there"
