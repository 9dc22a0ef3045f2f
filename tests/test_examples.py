"""README and examples do what they say: their programs run, their commands exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import types

import numpy as np
import pytest
import soundfile
import typer
from conftest import REPOSITORY

import mimi_export
from mimi_export.cli import app
from mimi_export.media.codes import read_codes
from mimi_export.media.signals import speech_like
from mimi_export.runtime import load

README = (REPOSITORY / "README.md").read_text("utf-8")
EXAMPLES = REPOSITORY / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def test_every_command_of_the_readme_exists():
    group = typer.main.get_command(app)
    lines = re.findall(r"(?m)^    mimi-export ([a-z-]+)(.*)", README)
    inline = re.findall(r"`mimi-export ([a-z-]+)([^`]*)`", README.replace("\n", " "))
    assert len(lines) >= 5
    for name, rest in lines + inline:
        if name.startswith("--"):
            continue
        options = {option for parameter in group.commands[name].params for option in parameter.opts}
        assert set(re.findall(r" (--[a-z-]+)", rest.partition("#")[0])) <= options, (name, rest)


def test_python_of_the_readme(tiny_variant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").mkdir()
    shutil.copytree(tiny_variant(8), tmp_path / "artifacts" / "streaming-8cb")
    streaming, making, *_ = re.findall(r"(?s)```python\n(.*?)```", README)
    names = {"blocks": np.split(speech_like(0.5), 8)}
    exec(streaming, names)  # noqa: S102 - the test is that it runs
    assert names["samples"].shape == (1, 1920)
    made = types.SimpleNamespace(passed=True)
    calls = []
    for name in ("export_variant", "convert_variant", "verify"):  # with the arguments that they take
        monkeypatch.setattr(mimi_export, name, _recorded(getattr(mimi_export, name), calls, made))
    exec(making, {})  # noqa: S102
    assert calls == ["export_variant", "convert_variant", "verify"]


def _recorded(function, calls, result):
    import inspect

    def call(*arguments, **named):
        inspect.signature(function).bind(*arguments, **named)
        calls.append(function.__name__)
        return result

    return call


def test_folder(tiny_variant, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.wav", "b.flac"):
        soundfile.write(tmp_path / "in" / name, speech_like(1.3), 24000)
    (tmp_path / "in" / "notes.txt").write_text("no sound")
    command = [sys.executable, EXAMPLES / "folder.py", tiny_variant(8), tmp_path / "in", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True, timeout=120)
    assert done.stdout.splitlines()[0] == "a.wav: 1.3 s, 98 bytes of codes"
    assert "left out: " in done.stdout
    audio, _ = soundfile.read(tmp_path / "in" / "a.wav", dtype="float32")
    stream = load(tiny_variant(8)).encoder.stream()
    wanted = np.concatenate([stream.push(audio), stream.flush().codes], axis=2)
    file = read_codes(tmp_path / "out" / "a.safetensors")
    np.testing.assert_array_equal(file.codes, wanted)
    assert file.metadata.num_samples == len(audio)


def test_server(tiny_variant):
    """Two clients at once, one of which stops within a frame; a third one goes away in the middle."""
    command = [sys.executable, EXAMPLES / "server.py", tiny_variant(8, "ring", 2), "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        port = int(server.stdout.readline().split()[-1])
        sounds = [(speech_like(2.03, seed) * 32767).astype("<i2") for seed in (1, 2, 3)]
        clients = [socket.create_connection(("localhost", port), timeout=60) for _ in sounds]
        clients[2].sendall(sounds[2][:5000].tobytes())
        clients[2].close()
        for client, sound in zip(clients[:2], sounds, strict=False):
            client.sendall(sound.tobytes())
            client.shutdown(socket.SHUT_WR)
        for client, sound in zip(clients[:2], sounds, strict=False):
            with client.makefile("rb") as file:
                codes = np.frombuffer(file.read(), "<i2").reshape(-1, 8).T
            stream = load(tiny_variant(8, "ring", 2)).encoder.stream()
            wanted = np.concatenate([stream.push(sound.astype(np.float32) / 32768), stream.flush().codes], axis=2)[0]
            np.testing.assert_array_equal(codes[:, : wanted.shape[1]], wanted)
            client.close()
    finally:
        server.kill()
        server.wait()


def test_live(tiny_variant, tmp_path):
    """`live.py` with a server."""
    pytest.importorskip("websockets", reason="pip install 'mimi-export[serve]'")
    variant = tiny_variant(8, "ring", 1)
    speech = (speech_like(0.7, 1, 16000) * 32767).astype("<i2")
    soundfile.write(tmp_path / "speech.wav", speech, 16000)
    command = [sys.executable, "-m", "mimi_export", "serve", variant, "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        url = server.stderr.readline().split()[-1]
        command = [sys.executable, EXAMPLES / "live.py", url, tmp_path / "speech.wav", tmp_path / "heard.wav"]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["frames"] == 9
        heard, rate = soundfile.read(tmp_path / "heard.wav")
        assert (len(heard), rate) == (len(speech), 16000)
    finally:
        server.kill()
        server.wait()


def test_notebook(tiny_variant, tmp_path, monkeypatch):
    heard = []
    display = types.SimpleNamespace(Audio=lambda data, rate: heard.append((len(data), rate)))
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").mkdir()
    shutil.copytree(tiny_variant(8), tmp_path / "artifacts" / "demo")
    (tmp_path / "scripts").symlink_to(REPOSITORY / "scripts")
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text("utf-8"))
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)  # noqa: S102
    assert heard == [(names["decoded"].shape[1], 24000)]
    assert names["decoded"].shape[1] > 24000


def test_the_picture_of_the_readme_is_small_and_can_be_drawn_again(tmp_path):
    clips = REPOSITORY / "scripts" / "clips"
    script, drawn = REPOSITORY / "scripts" / "picture.py", tmp_path / "picture.png"
    sounds = [clips / "speech.ogg", clips / "decoded.ogg"]
    subprocess.run([sys.executable, script, *sounds, drawn], env=ENVIRONMENT, check=True, timeout=120)
    for content in (drawn.read_bytes(), (clips / "picture.png").read_bytes()):
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(content[16:20], "big") == 960
        assert 20_000 < len(content) < 100 << 10
    assert "(scripts/clips/picture.png)" in README


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_every_example_is_named_and_run_here(path):
    assert path.name in (REPOSITORY / "tests" / "test_examples.py").read_text("utf-8")
