"""The thread that computes for live streams: who steps together, who is parked, and what a flood costs."""

from __future__ import annotations

import queue
import time

import numpy as np
import pytest

from mimi_export.errors import AudioError, ConfigError, GraphError, StreamError
from mimi_export.media.signals import speech_like
from mimi_export.runtime import StreamPool, load
from mimi_export.serving.batcher import SILENT, Batcher

CALL = 1920


@pytest.fixture(scope="module")
def codec(tiny_variant):
    return load(tiny_variant(8, "ring", 1))


@pytest.fixture
def batcher(codec):
    found = Batcher(codec.encoder, 6)
    yield found
    found.stop()


def opened(batcher):
    outputs = queue.Queue()
    return batcher.open(outputs.put), outputs


def clip(seed, calls):
    return speech_like(calls * CALL / 24000, seed)[: calls * CALL].astype(np.float32)


def test_streams_of_one_time_share_calls_and_no_row_is_in_vain(batcher, codec):
    """Six streams in two times of the call's own; the third leaves, and the last goes into its row."""
    streams = [opened(batcher) for _ in range(6)]
    clips = [clip(seed, 25) for seed in range(6)]
    begin = time.monotonic()
    for number in range(25):
        for half, at in ((streams[:3], 0.0), (streams[3:], 0.04)):
            time.sleep(max(0.0, begin + 0.08 * number + at - time.monotonic()))
            for stream, _ in half:
                if not (stream is streams[1][0] and number >= 12):
                    stream.push(clips[[one for one, _ in streams].index(stream)][number * CALL : (number + 1) * CALL])
        if number == 12:
            streams[1][0].close()
    for index, (_, outputs) in enumerate(streams):
        wanted = codec.encoder.stream().push(clips[index])[0]
        count = 12 if index == 1 else 25
        got = np.concatenate([outputs.get(timeout=30) for _ in range(count)], axis=1)
        np.testing.assert_array_equal(got, wanted[:, :count])
    assert batcher.outputs == 5 * 25 + 12
    assert batcher.calls < 0.9 * batcher.outputs  # shared
    assert batcher.rows < 1.4 * batcher.outputs  # nearly none in vain
    assert batcher.open_streams == 5


def test_a_silent_stream_is_parked_and_goes_on_where_it_was(batcher, codec):
    sound = clip(1, 8)
    stream, outputs = opened(batcher)
    other, heard = opened(batcher)
    stream.push(sound[: 4 * CALL])
    codes = [outputs.get(timeout=30) for _ in range(4)]
    until = time.monotonic() + SILENT + 10
    while stream.group is not None and time.monotonic() < until:
        other.push(np.zeros(CALL, np.float32))
        heard.get(timeout=30)
        time.sleep(0.05)
    assert stream.group is None
    stream.push(sound[4 * CALL :])
    codes += [outputs.get(timeout=30) for _ in range(4)]
    np.testing.assert_array_equal(np.concatenate(codes, axis=1), codec.encoder.stream().push(sound)[0])


def test_a_flood_is_paced_while_others_are_there(batcher, codec, monkeypatch):
    """Calls that take 20 ms: unpaced, a flood would start one after another."""
    step = StreamPool.step

    def slow(pool):
        time.sleep(0.02)
        return step(pool)

    monkeypatch.setattr(StreamPool, "step", slow)
    flood, _ = opened(batcher)
    live, outputs = opened(batcher)
    flood.push(np.zeros(300 * CALL, np.float32))
    sound = clip(3, 20)
    begin = time.monotonic()
    for number in range(20):
        live.push(sound[number * CALL : (number + 1) * CALL])
        time.sleep(0.08)
    got = np.concatenate([outputs.get(timeout=30) for _ in range(20)], axis=1)
    np.testing.assert_array_equal(got, codec.encoder.stream().push(sound)[0])
    calls, took = batcher.calls, time.monotonic() - begin
    assert calls <= (1 + 1 / 0.75) * took / 0.08 + 4
    assert flood.waiting > 200


def test_the_last_call_is_filled_and_wrong_data_stay_outside(batcher, codec):
    sound = clip(2, 3)[: 2 * CALL + 7]
    stream, outputs = opened(batcher)
    with pytest.raises(AudioError, match="remove NaN"):
        stream.push(np.array([np.nan], np.float32))
    stream.push(sound)
    stream.end()
    one = codec.encoder.stream()
    wanted = np.concatenate([one.push(sound), one.flush().codes], axis=2)[0]
    np.testing.assert_array_equal(np.concatenate([outputs.get(timeout=30) for _ in range(3)], axis=1), wanted)
    assert stream.waiting == 0


def test_a_call_that_fails_ends_its_streams_only(batcher, codec, monkeypatch):
    broken, outputs = opened(batcher)

    def fail(pool):
        raise GraphError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(StreamPool, "step", fail)
        broken.push(clip(0, 1))
        assert isinstance(outputs.get(timeout=30), GraphError)
    stream, outputs = opened(batcher)
    stream.push(clip(0, 1))
    np.testing.assert_array_equal(outputs.get(timeout=30), codec.encoder.stream().push(clip(0, 1))[0])
    assert not batcher.failed


def test_a_defect_is_told_to_all(batcher, monkeypatch):
    _, outputs = opened(batcher)
    monkeypatch.setattr(StreamPool, "step", lambda pool: 1 / 0)
    other, _ = opened(batcher)
    other.push(clip(0, 1))
    assert isinstance(outputs.get(timeout=30), StreamError)
    assert batcher.failed


def test_limits(batcher, codec, tiny_variant):
    streams = [opened(batcher)[0] for _ in range(6)]
    with pytest.raises(StreamError, match="all 6 streams are taken"):
        opened(batcher)
    streams[2].close()
    until = time.monotonic() + 30
    while len(batcher._streams) == 6 and time.monotonic() < until:
        time.sleep(0.01)
    opened(batcher)
    with pytest.raises(ConfigError, match="--kv-cache ring"):
        Batcher(load(tiny_variant(8)).encoder, 2)
