"""Pipes, folders, other rates, separate channels, ffmpeg: real processes, as users run them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mimi_export import Resampler
from mimi_export.media.codes import read_codes
from mimi_export.media.resampling import resampled_length
from mimi_export.media.signals import speech_like
from mimi_export.runtime import load

RATES = (8000, 16000, 22050, 24000, 44100, 48000, 96000, 192000)
SAMPLES = 20 * 1920 + 700


@pytest.fixture(scope="module")
def variant(tiny_variant):
    return tiny_variant()


@pytest.fixture(scope="module")
def sound():
    return (speech_like(2, seed=3)[:SAMPLES] * 32768).astype(np.int16)


def start(variant, *command, **streams):
    """A command that runs until its input ends."""
    names = ("--variant", str(variant)) if variant else ()
    everything = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen([sys.executable, "-m", "mimi_export", *map(str, command), *names], **everything)


def run(variant, data, *command):
    """Exit code, output and last line of the errors of a command that gets `data`."""
    process = start(variant, *command)
    out, err = process.communicate(data, timeout=120)
    return process.returncode, out, err.decode().strip().splitlines()[-1]


def wanted_codes(variant, sound):
    codec = load(variant)
    stream = codec.encoder.stream()
    return np.concatenate([stream.push(sound / np.float32(32768))[0], stream.flush().codes[0]], axis=1)


# resampling


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("outwards", [False, True])
def test_resampled_in_pieces_equals_whole(rate, outwards):
    rates = (24000, rate) if outwards else (rate, 24000)
    sound = speech_like(1, seed=rate, sampling_rate=rates[0])
    whole = Resampler(*rates)
    wanted = np.concatenate([whole.push(sound), whole.flush()])
    pieces, rng, start, got, latest = Resampler(*rates), np.random.default_rng(rate), 0, [], 0
    while start < len(sound):
        stop = start + int(rng.integers(1, 700))
        got.append(pieces.push(sound[start:stop]))
        start = min(stop, len(sound))
        latest = max(latest, resampled_length(start, *rates) - sum(map(len, got)))
    got.append(pieces.flush())
    joined = np.concatenate(got)
    assert len(joined) == len(wanted) == resampled_length(len(sound), *rates)
    error = np.square(joined - wanted).sum()
    assert 10 * np.log10(np.square(wanted).sum() / max(error, 1e-30)) > 100
    assert latest <= pieces.latency + 1
    np.testing.assert_array_equal(pieces.push(sound), whole.push(sound))  # both begin anew after `flush`


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 5000), min_size=1, max_size=8), channels=st.integers(1, 3))
def test_channels_are_resampled_alone(cuts, channels):
    sound = np.stack([speech_like(1, seed=number)[: sum(cuts)] for number in range(channels)])
    together, alone = Resampler(24000, 16000, channels), [Resampler(24000, 16000) for _ in range(channels)]
    for cut in cuts:
        block, sound = sound[:, :cut], sound[:, cut:]
        np.testing.assert_array_equal(
            together.push(block), [one.push(row) for one, row in zip(alone, block, strict=True)]
        )


# pipes


def test_raw_samples_to_each_form_of_codes(variant, sound):
    wanted = wanted_codes(variant, sound)
    code, out, _ = run(variant, sound.tobytes(), "encode", "-", "-", "--rate", 24000)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert lines[0] | {"model": ""} == {"sampling_rate": 24000, "frame_size": 1920, "model": ""}
    assert lines[-2] == {"num_samples": SAMPLES}
    np.testing.assert_array_equal(np.array([line for line in lines if isinstance(line, list)]).T, wanted)
    floats = (sound / np.float32(32768)).astype("<f4").tobytes()
    code, out, _ = run(variant, floats, "encode", "-", "-", "--rate", 24000, "--format", "f32le", "--codes", "u16")
    np.testing.assert_array_equal(np.frombuffer(out, "<u2").reshape(-1, len(wanted)).T, wanted)


def test_a_live_codec_of_two_processes(variant, sound, tmp_path):
    """WAV in, codes between them, WAV out: what the same does with files, and frame by frame."""
    soundfile.write(tmp_path / "in.wav", sound, 24000)
    assert run(variant, b"", "encode", tmp_path / "in.wav", tmp_path / "codes.safetensors")[0] == 0
    assert run(variant, b"", "decode", tmp_path / "codes.safetensors", tmp_path / "out.wav")[0] == 0
    encoder = start(variant, "encode", "-", "-", "--rate", 24000)
    decoder = start(variant, "decode", "-", "-", stdin=encoder.stdout)
    first = b""
    for frame in range(10):  # each is heard before the next is spoken: one frame of delay
        encoder.stdin.write(sound[frame * 1920 : (frame + 1) * 1920].tobytes())
        encoder.stdin.flush()
        first += decoder.stdout.read(2 * 1920 + (0 if frame else 44))
    encoder.stdin.write(sound[10 * 1920 :].tobytes())
    encoder.stdin.close()
    rest = decoder.stdout.read()
    assert (encoder.wait(60), decoder.wait(60)) == (0, 0)
    got = np.frombuffer((first + rest)[44:], "<i2")
    wanted = soundfile.read(tmp_path / "out.wav", dtype="int16")[0]
    np.testing.assert_allclose(got, wanted, atol=1)  # calls of other lengths round otherwise


def test_safetensors_and_another_rate_through_pipes(variant, sound, tmp_path):
    soundfile.write(tmp_path / "in.wav", sound, 24000)
    data = (tmp_path / "in.wav").read_bytes()
    _, codes, _ = run(variant, data, "encode", "-", "-", "--codes", "safetensors")
    (tmp_path / "codes.safetensors").write_bytes(codes)
    np.testing.assert_array_equal(read_codes(tmp_path / "codes.safetensors").codes[0], wanted_codes(variant, sound))
    command = ("--codes", "safetensors", "--rate", 48000, "--format", "s16le")
    code, out, _ = run(variant, codes, "decode", "-", "-", *command)
    assert (code, len(out)) == (0, 2 * 2 * SAMPLES)
    code, out, _ = run(variant, sound.tobytes(), "roundtrip", "-", "-", "--rate", 16000)
    assert (code, len(out)) == (0, 2 * SAMPLES)


def test_a_reader_that_goes_ends_the_writer_quietly(variant, sound):
    process = start(variant, "encode", "-", "-", "--rate", 24000)
    process.stdin.write(sound.tobytes())
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            process.stdin.write(sound.tobytes())
        except BrokenPipeError:
            break
    assert process.wait(60) == 141
    assert b"Traceback" not in process.stderr.read()


def test_an_interrupted_pipe_ends_well(variant, sound):
    process = start(variant, "encode", "-", "-", "--rate", 24000)
    process.stdin.write(sound[: 5 * 1920].tobytes())
    process.stdin.flush()
    lines = [json.loads(process.stdout.readline()) for _ in range(6)]  # metadata and five frames
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out) == {"num_samples": 5 * 1920}
    assert b"holds the first 0.40 s" in err
    np.testing.assert_array_equal(np.array(lines[1:]).T, wanted_codes(variant, sound)[:, :5])


BAD = {  # command, input, exit code, words
    "odd bytes": (("encode", "-", "-", "--rate", "24000"), b"\0" * 4001, 6, "ends 1 bytes into a sample of 2"),
    "nothing": (("encode", "-", "-", "--rate", "24000"), b"", 6, "holds no audio"),
    "no header": (("encode", "-", "-"), b"hello " * 99, 6, "say --rate"),
    "absurd rate": (("encode", "-", "-", "--rate", "1"), b"\0" * 4000, 6, "claims 1 Hz"),
    "unknown samples": (("encode", "-", "-", "--rate", "24000", "--format", "u8"), b"\0" * 99, 6, "s16le or f32le"),
    "not finite": (("encode", "-", "-", "--rate", "24000", "--format", "f32le"), b"\xff" * 4000, 6, "finite"),
    "no codes": (("decode", "-", "-"), b"", 7, "holds no codes"),
    "no JSON": (("decode", "-", "-"), b"\xffhello\n", 7, "line 1 of standard input is no JSON"),
    "no frame": (("decode", "-", "-"), b"[1, true]\n", 7, "is no frame of codes"),
    "half a frame": (("decode", "-", "-", "--codes", "u16"), b"\0" * 17, 7, "bytes into a frame"),
    "other codebooks": (("decode", "-", "-"), b"[1, 2]\n[1]\n", 7, "the first one had [1, 2]"),
    "other model": (("decode", "-", "-"), b'{"sampling_rate": 16000}\n[1, 2]\n', 7, "sampling_rate 16000"),
    "unknown codes": (("decode", "-", "-"), b"[1, 99999]\n", 7, "99999"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(variant, name):
    command, data, code, words = BAD[name]
    found, _, line = run(variant, data, *command)
    assert (found, words in line, line.startswith("error: ")) == (code, True, True), line


@pytest.mark.parametrize(
    "command",
    [
        ("encode", "-", "-", "--channels", "2"),
        ("encode", "in.wav", "x.npz", "--rate", "8000"),
        ("encode", "-", "-", "--channels", "two"),
    ],
)
def test_options_that_contradict(variant, command):
    assert run(variant, b"", *command)[0] == 2


# channels, folders, ffmpeg


@pytest.mark.parametrize("layout", [("window", None), ("ring", 2)])
def test_separate_channels_are_rows(tiny_variant, tmp_path, layout):
    """Each channel's codes and sound are those of the channel alone."""
    variant, rows = tiny_variant(8, *layout), [speech_like(2, seed=seed)[:SAMPLES] for seed in (1, 2)]
    soundfile.write(tmp_path / "both.wav", np.stack(rows, axis=1), 24000, "FLOAT")
    command = (tmp_path / "both.wav", tmp_path / "both.npz", "--channels", "separate")
    assert run(variant, b"", "encode", *command)[0] == 0
    codes = read_codes(tmp_path / "both.npz").codes
    assert codes.shape[0] == 2
    assert run(variant, b"", "decode", tmp_path / "both.npz", tmp_path / "both-out.wav", "--subtype", "FLOAT")[0] == 0
    out = soundfile.read(tmp_path / "both-out.wav", dtype="float32")[0]
    codec = load(variant)
    for channel, row in enumerate(rows):
        stream, decoder = codec.encoder.stream(), codec.decoder.stream()
        alone = np.concatenate([stream.push(row), stream.flush().codes], axis=2)
        np.testing.assert_array_equal(codes[channel], alone[0])
        sound = np.concatenate([decoder.push(alone), decoder.flush()], axis=1)[0, :SAMPLES]
        np.testing.assert_allclose(out[:, channel], sound, atol=2e-5)


@pytest.mark.parametrize("layout", [("window", None), ("ring", 2)])
def test_folders(tiny_variant, tmp_path, layout):
    """A kept tree, what is unchanged left alone, errors at the end; the same codes as file by file."""
    variant, source, target = tiny_variant(8, *layout), tmp_path / "in", tmp_path / "out"
    for number in range(11):
        path = source / ("a" if number % 2 else "b/c") / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech_like(2, seed=number)[: 4000 + 3000 * number], 24000, "FLOAT")
    (source / "a" / "broken.flac").write_bytes(b"not audio")
    (source / "notes.txt").write_text("no audio either")
    code, out, line = run(variant, b"", "encode", source, target, "--json")
    found = json.loads(out)
    assert (code, found["done"], found["unchanged"], found["failed"]) == (6, 11, 0, 1)
    assert "broken.flac" in line
    for path in source.rglob("*.wav"):
        sound = soundfile.read(path, dtype="float32")[0]
        file = read_codes((target / path.relative_to(source)).with_suffix(".safetensors"))
        stream = load(variant).encoder.stream()
        alone = np.concatenate([stream.push(sound), stream.flush().codes], axis=2)
        np.testing.assert_array_equal(file.codes, alone)
        assert file.metadata.num_samples == len(sound)
    (source / "a" / "broken.flac").unlink()
    os.utime(source / "a" / "1.wav", (time.time() + 5, time.time() + 5))
    found = json.loads(run(variant, b"", "encode", source, target, "--json")[1])
    assert (found["done"], found["unchanged"], found["failed"]) == (1, 10, 0)
    assert json.loads(run(variant, b"", "decode", target, tmp_path / "sound", "--json")[1])["done"] == 11
    assert soundfile.info(tmp_path / "sound" / "b" / "c" / "4.wav").frames == 16000
    assert not list(tmp_path.rglob(".*"))


def test_folders_that_cannot_be(variant, tmp_path):
    (tmp_path / "in").mkdir()
    assert "holds no file" in run(variant, b"", "encode", tmp_path / "in", tmp_path / "out")[2]
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / "in" / name, np.zeros(2000), 24000)
    assert "would both become" in run(variant, b"", "encode", tmp_path / "in", tmp_path / "out")[2]
    assert "lies in" in run(variant, b"", "encode", tmp_path / "in", tmp_path / "in" / "out")[2]


def test_containers_need_ffmpeg(variant, sound, tmp_path, monkeypatch):
    (tmp_path / "clip.m4a").write_bytes(b"no sound")
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, line = run(variant, b"", "encode", tmp_path / "clip.m4a", tmp_path / "clip.npz")
    assert (code, "needs ffmpeg" in line) == (6, True)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
def test_a_video_is_read_through_ffmpeg(variant, sound, tmp_path):
    soundfile.write(tmp_path / "in.wav", sound, 24000)
    video = ["-f", "lavfi", "-i", "color=black:size=64x64:duration=1", "-i", tmp_path / "in.wav", "-c:a", "pcm_s16le"]
    subprocess.run(["ffmpeg", "-v", "error", *video, tmp_path / "clip.mkv"], check=True)
    assert run(variant, b"", "encode", tmp_path / "clip.mkv", tmp_path / "clip.npz")[0] == 0
    np.testing.assert_array_equal(read_codes(tmp_path / "clip.npz").codes[0], wanted_codes(variant, sound))
    (tmp_path / "bad.m4a").write_bytes(b"no sound")
    code, _, line = run(variant, b"", "encode", tmp_path / "bad.m4a", tmp_path / "bad.npz")
    assert (code, "ffmpeg" in line) == (6, True), line


# microphone

FAKE = '''
"""A device that hears a tone and keeps what it plays, in blocks of 10 ms."""
import threading, time
import numpy as np

class PortAudioError(Exception):
    pass

class Stream:
    latency = 0.01, 0.02

    def __init__(self, rate, _size, device, channels, dtype, _latency, callback):
        if device == "none":
            raise PortAudioError("Error querying device -1")
        self.rate, self.callback, self.open = rate, callback, True
        self.thread = threading.Thread(target=self.run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.open = False
        self.thread.join()

    def run(self):
        size, played = self.rate // 100, []
        for number in range(10_000):
            if not self.open:
                break
            out = np.full((size, 1), np.nan, np.float32)
            tone = np.sin(np.arange(number * size, (number + 1) * size) * 0.05).astype(np.float32) / 2
            self.callback(tone[:, None], out, size, None, None)
            played.append(out)
            time.sleep(0.01)
        np.save("played.npy", np.concatenate(played))
'''


def test_microphone_to_loudspeaker(variant, tmp_path):
    (tmp_path / "sounddevice.py").write_text(FAKE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    process = start(variant, "mic", "--seconds", "3", "--rate", "48000", cwd=tmp_path, env=environment)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "ms, 99 % within" in out.decode()
    played = np.load(tmp_path / "played.npy")
    assert np.isfinite(played).all()
    assert np.abs(played).max() > 1e-4
    process = start(variant, "mic", "--device", "none", cwd=tmp_path, env=environment)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err.decode().splitlines()[-1].startswith("error: no sound device")) == (6, True)


def test_microphone_without_its_packages(variant, tmp_path):
    for text, words in (
        ("raise ModuleNotFoundError(name='sounddevice')", "[live]"),
        ("raise OSError('no lib')", "no lib"),
    ):
        (tmp_path / "sounddevice.py").write_text(text)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
        process = start(variant, "mic", env=environment)
        _, err = process.communicate(timeout=120)
        assert (process.returncode, words in err.decode()) == (9, True), err


# latents


def test_features_of_a_file_and_through_a_pipe(tiny_variant, sound, tmp_path):
    variant = tiny_variant(0, head="latents", start="latents")
    stream = load(variant).encoder.latents()
    wanted = np.concatenate([stream.push(sound / np.float32(32768)), stream.flush().latents], axis=1)
    soundfile.write(tmp_path / "in.wav", sound, 24000)
    assert run(variant, b"", "features", tmp_path / "in.wav", tmp_path / "out.npy")[0] == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, atol=1e-4)
    code, out, _ = run(variant, sound.tobytes(), "features", "-", "-", "--rate", 24000, "--latents", "f32le")
    assert code == 0
    np.testing.assert_allclose(np.frombuffer(out, "<f4").reshape(wanted.shape), wanted, atol=1e-4)
    code, _, line = run(tiny_variant(), b"", "features", tmp_path / "in.wav", tmp_path / "more.npy")
    assert (code, "--head latents" in line) == (3, True), line
