"""A real server process and real clients: each stream equals the runtime alone, and no client hurts another."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from conftest import REPOSITORY
from helpers import DECODER_SNR, snr

from mimi_export.errors import ConfigError
from mimi_export.media.resampling import Resampler
from mimi_export.media.signals import speech_like
from mimi_export.runtime import load

pytest.importorskip("websockets", reason="pip install 'mimi-export[serve]'")
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

END = '{"type": "end"}'
CALL = 1920


@contextmanager
def serving(variant, *options):
    """A server process on a free port: `host:port` and the process."""
    command = [sys.executable, "-m", "mimi_export", "serve", variant, "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        address = re.search(r"ws://(\S+)", server.stderr.readline())[1]
        yield address, server
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def ring(tiny_variant):
    return tiny_variant(8, "ring", 1)


@pytest.fixture(scope="module")
def address(ring):
    with serving(ring, "--streams", "8") as (address, _):
        yield address


def get(address, path, **headers):
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def metric(address, name, **headers):
    """The values of one metric, by what stands in its braces."""
    page = get(address, "/metrics", **headers)[1]
    return {labels: float(value) for labels, value in re.findall(rf"^{name}({{\S+}}) (\S+)$", page, re.MULTILINE)}


def talk(address, path, messages, pace=0.0):
    """Send messages and the end while answers come: the ready message, the binary ones and the last."""
    with connect(f"ws://{address}{path}", max_size=None) as socket_, ThreadPoolExecutor(1) as pool:
        ready = json.loads(socket_.recv(60))

        def send():
            for message in messages:
                socket_.send(message)
                time.sleep(pace)
            socket_.send(END)

        sending = pool.submit(send)
        got = []
        while isinstance(message := socket_.recv(60), bytes):
            got.append(message)
        sending.result()
        return ready, got, json.loads(message)


def pieces(data, rng, most):
    cuts = np.cumsum(rng.integers(1, most, 1 + 2 * len(data) // most))
    return [piece.tobytes() for piece in np.split(data, cuts[cuts < len(data)])]


def alone(codec, samples):
    """Codes `[K, frames]` of a stream with the runtime to itself."""
    stream = codec.encoder.stream()
    return np.concatenate([stream.push(samples), stream.flush().codes], axis=2)[0]


def encoded(messages, codebooks=8):
    return np.frombuffer(b"".join(messages), "<u2").reshape(-1, codebooks).T


def test_encoders_join_and_leave(address, ring):
    """Twelve clients in uneven pieces, at most six at a time: every code is the runtime's own, to the bit."""
    codec = load(ring)
    cases = []
    for seed in range(12):
        rate = (24000, 16000, 48000, 44100)[seed % 4]
        form, codebooks = ("s16le", "f32le")[seed % 2], (8, 3)[seed % 3 == 1]
        sound = speech_like(0.4 + 0.31 * seed, seed).astype(np.float32)
        data = (sound * 32767).astype("<i2") if form == "s16le" else sound.astype("<f4")
        samples = data.astype(np.float32) / (32768 if form == "s16le" else 1)
        resampler = Resampler(rate, 24000)
        samples = np.concatenate([resampler.push(samples), resampler.flush()])
        cases.append(
            (f"/encode?rate={rate}&format={form}&codebooks={codebooks}", data, alone(codec, samples)[:codebooks])
        )

    def play(number):
        path, data, _ = cases[number]
        rng = np.random.default_rng(number)
        return talk(address, path, pieces(data, rng, 4000), pace=float(rng.choice([0, 0.01, 0.03])))

    with ThreadPoolExecutor(6) as pool:
        for (_, data, wanted), (ready, got, end) in zip(cases, pool.map(play, range(12)), strict=True):
            np.testing.assert_array_equal(encoded(got, ready["codebooks"]), wanted)
            assert end == {"type": "end", "samples": len(data), "frames": wanted.shape[1]}
    calls, rows = (metric(address, f"mimi_{word}_total")['{task="encode"}'] for word in ("calls", "rows"))
    assert rows > calls  # they shared calls
    latency = metric(address, "mimi_call_latency_seconds")
    p50, p95, p99 = (latency[f'{{task="encode",quantile="{of}"}}'] for of in (0.5, 0.95, 0.99))
    assert 0 < p50 <= p95 <= p99 < 30
    assert 0 < metric(address, "mimi_call_latency_seconds_count")['{task="encode"}'] <= rows


def test_decoders_share_calls(address, ring):
    codec = load(ring)
    cases = [alone(codec, speech_like(0.5 + 0.4 * seed, seed).astype(np.float32)) for seed in range(5)]

    def play(number):
        frames = [frame.astype("<u2").tobytes() for frame in cases[number].T]
        return talk(address, f"/decode?format=f32le&rate={(24000, 16000)[number % 2]}", frames, 0.01)

    with ThreadPoolExecutor(5) as pool:
        for number, (_, got, end) in enumerate(pool.map(play, range(5))):
            wanted = codec.decoder.stream().push(cases[number])[0]
            if number % 2:
                resampler = Resampler(24000, 16000)
                wanted = np.concatenate([resampler.push(wanted), resampler.flush()])
            heard = np.frombuffer(b"".join(got), "<f4")
            assert end == {"type": "end", "frames": cases[number].shape[1], "samples": len(wanted)}
            assert heard.shape == wanted.shape
            assert snr(wanted, heard) > DECODER_SNR


def test_a_decoder_alone_is_the_runtime_to_the_bit(address, ring):
    codec = load(ring)
    codes = alone(codec, speech_like(1.0).astype(np.float32))
    _, got, _ = talk(address, "/decode?format=f32le", [codes.T.astype("<u2").tobytes()])
    np.testing.assert_array_equal(np.frombuffer(b"".join(got), "<f4"), codec.decoder.stream().push(codes)[0])


def stall(address):
    """Sends much and takes nothing: a socket of small buffers that is never read."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = address.split(":")
    plain.connect((host, int(port)))
    plain.sendall(handshake(address, "/decode?format=f32le&rate=192000"))
    plain.settimeout(3)
    message = b"\x82\xfe\x40\x00" + b"\0\0\0\0" + bytes(0x4000)  # 1024 frames, masked by zeros
    try:
        for _ in range(200):
            plain.sendall(message)
    except TimeoutError:
        return "held back"
    finally:
        plain.close()
    return "took all"


def flood(address):
    """Twenty seconds of sound at once."""
    data = np.zeros(CALL * 12, "<i2").tobytes()
    return len(talk(address, "/encode", [data] * 20)[1])


def garbage(address):
    """What is no sound, no codes, no message and no WebSocket."""
    closed = []
    for path, message in (
        ("/encode", b"\0"),
        ("/encode?format=f32le", np.array([np.nan], "<f4").tobytes()),
        ("/encode", '{"type": "hello"}'),
        ("/encode", "[" * 900),
        ("/decode", bytes(15)),
        ("/decode", np.full(8, 60000, "<u2").tobytes()),
        ("/nothing", None),
        ("/encode?rate=3", None),
        ("/encode?codebooks=9", None),
        ("/decode?codebooks=4", None),
        ("/encode?format=mp3", None),
        ("/encode?rate=1&rate=2", None),
    ):
        with connect(f"ws://{address}{path}") as socket_:
            if message is not None:
                socket_.recv(30)
                socket_.send(message)
            error = json.loads(socket_.recv(30))
            assert error["type"] == "error", path
            assert error["message"].isprintable()
            with pytest.raises(ConnectionClosed):
                socket_.recv(30)
            closed.append(socket_.close_code)
    for raw in (b"\0\xff" * 500, b"GET / HTTP/1.1\r\n\r\n", b"", handshake(address, "/encode") + b"\xff" * 99):
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), 30) as plain:
            plain.sendall(raw)
    return set(closed)


def vanish(address):
    """Goes in the middle of a frame, in the middle of a message, and with answers under way."""
    for rest in (bytes([0x82, 0x84, 0, 0, 0, 0, 1, 2, 3, 4]), bytes([0x82, 0xFE, 0x40]), b""):
        host, port = address.split(":")
        plain = socket.create_connection((host, int(port)), 30)
        plain.sendall(handshake(address, "/encode"))
        plain.recv(1000)
        plain.sendall(rest)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, no goodbye
        plain.close()
    return "gone"


def handshake(address, path):
    return (
        f"GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def test_bad_clients_hurt_nobody(address, ring):
    """Two live clients keep every code and their pace while others stall, flood, send garbage and vanish."""
    codec = load(ring)
    sounds = [(speech_like(4.0, seed) * 32767).astype("<i2") for seed in (1, 2)]

    def live(sound):
        return talk(address, "/encode", [block.tobytes() for block in np.split(sound, 50)], 0.08)

    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(live, sound) for sound in sounds]
        time.sleep(0.3)
        bad = [pool.submit(harm, address) for harm in (stall, flood, garbage, vanish)]
        assert [one.result() for one in bad] == ["held back", 240, {1008}, "gone"]
        for sound, one in zip(sounds, good, strict=True):
            np.testing.assert_array_equal(encoded(one.result()[1]), alone(codec, sound.astype(np.float32) / 32768))
    deadline = time.monotonic() + 20
    while any(metric(address, "mimi_streams").values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert metric(address, "mimi_streams") == {'{task="encode"}': 0, '{task="decode"}': 0}
    dropped = metric(address, "mimi_streams_dropped_total")
    assert dropped['{reason="request"}'] == 6
    assert dropped['{reason="vanished"}'] >= 4
    assert metric(address, "mimi_streams_refused_total") == {'{reason="request"}': 6}
    assert get(address, "/health") == (200, '{"status": "ok", "streams": {"encode": 0, "decode": 0}}\n')


def test_limits_and_sigterm(ring):
    """Token, number of streams, size of a message, idle time; then SIGTERM lets one end and cuts off the other."""
    options = ["--token", "seven dwarfs", "--streams", "2", "--message-bytes", "4096", "--idle-seconds", "3"]
    with serving(ring, *options, "--drain-seconds", "3") as (address, server), ExitStack() as stack:
        assert get(address, "/health")[0] == 200
        assert get(address, "/metrics")[0] == 401
        for headers in ({}, {"Authorization": "Bearer snow white"}):
            with (
                pytest.raises(InvalidStatus, match="401"),
                connect(f"ws://{address}/encode", additional_headers=headers),
            ):
                pass
        headers = {"Authorization": "Bearer seven dwarfs"}
        first = stack.enter_context(connect(f"ws://{address}/encode", additional_headers=headers))
        second = stack.enter_context(connect(f"ws://{address}/encode?token=seven%20dwarfs"))
        assert json.loads(first.recv(30))["type"] == json.loads(second.recv(30))["type"] == "ready"
        with connect(f"ws://{address}/encode", additional_headers=headers) as third:
            assert json.loads(third.recv(30)) == {
                "type": "error", "message": "all 2 streams are taken; try again later",
            }  # fmt: skip
        second.send(bytes(5000))
        with pytest.raises(ConnectionClosed):
            second.recv(30)
        assert second.close_code == 1009
        assert json.loads(first.recv(30)) == {"type": "error", "message": "nothing was sent or taken for 3 s"}
        assert metric(address, "mimi_streams_refused_total", **headers) == {
            '{reason="full"}': 1, '{reason="token"}': 3,
        }  # fmt: skip
        assert metric(address, "mimi_streams_dropped_total", **headers) == {
            '{reason="idle"}': 1, '{reason="message_too_large"}': 1,
        }  # fmt: skip
        both = (connect(f"ws://{address}/encode", additional_headers=headers) for _ in range(2))
        ends, stays = map(stack.enter_context, both)
        for one in (ends, stays):
            one.recv(30)
            one.send(bytes(2 * 1000))
        server.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while get(address, "/health")[0] == 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        ends.send(END)
        assert len(ends.recv(30)) == 16
        assert json.loads(ends.recv(30)) == {"type": "end", "samples": 1000, "frames": 1}
        sent, got = 0, []
        while not got or isinstance(got[-1], bytes):
            try:
                got.append(stays.recv(0.3))
            except TimeoutError:
                stays.send(bytes(2 * CALL))
                sent += 1
        assert json.loads(got[-1])["message"] == "the server stops; whole calls were answered"
        assert 0 < len(got) - 1 <= sent
        with pytest.raises(ConnectionClosed):
            stays.recv(30)
        assert stays.close_code == 1001
        assert server.wait(30) == 0
        assert server.stderr.read().splitlines()[-1] == "note: stopped"


def test_a_browser_page_of_another_site_is_kept_out(address):
    for origin, wanted in (("https://example.com", 401), ("http://localhost:8000", 200)):
        assert get(address, "/metrics", Origin=origin)[0] == wanted


def test_refusals(cli, ring, tiny_variant):
    for arguments, words in {
        (tiny_variant(8),): "--kv-cache ring",
        (ring, "--host", "0.0.0.0"): "give a --token",  # noqa: S104 - it is refused
        (ring, "--streams", 0): "streams is 0, expected 1 or more",
    }.items():
        code, _, error = cli("serve", *arguments)
        assert code == ConfigError.exit_code
        assert words in error
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, error = cli("serve", ring, "--port", taken.getsockname()[1])
    assert (code, "cannot listen on" in error) == (8, True)
