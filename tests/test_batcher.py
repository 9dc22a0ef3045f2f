"""The thread that computes for live streams: who steps together, who is parked, and what a flood costs."""

from __future__ import annotations

import queue
import time
import types

import numpy as np
import pytest

from mimi_export.errors import AudioError, ConfigError, GraphError, StreamError
from mimi_export.media.signals import speech_like
from mimi_export.runtime import StreamPool, load
from mimi_export.runtime.pool import PoolOutput
from mimi_export.serving import batcher as batching
from mimi_export.serving.batcher import MOVES, SILENT, Batcher
from mimi_export.serving.turns import Turns

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
    """Six streams in two times of the call's own; one in the middle leaves."""
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
    assert batcher.rows == batcher.outputs
    assert batcher.open_streams == 5


def test_nobody_waits_for_a_silent_stream(codec):
    """A call waits half a second for a stream that was just there, and not at all once that is silent; it goes on."""
    batcher = Batcher(codec.encoder, 6, deadline=0.5)
    sound = clip(1, 8)
    stream, outputs = opened(batcher)
    other, heard = opened(batcher)
    stream.push(sound[: 4 * CALL])
    codes = [outputs.get(timeout=30) for _ in range(4)]

    def took():
        begin = time.monotonic()
        other.push(np.zeros(CALL, np.float32))
        heard.get(timeout=30)
        return time.monotonic() - begin

    assert took() >= 0.5
    time.sleep(SILENT)
    assert min(took() for _ in range(3)) < 0.4
    stream.push(sound[4 * CALL :])
    codes += [outputs.get(timeout=30) for _ in range(4)]
    np.testing.assert_array_equal(np.concatenate(codes, axis=1), codec.encoder.stream().push(sound)[0])
    batcher.stop()


def test_a_call_that_is_held_begins_when_all_are_there(codec):
    batcher = Batcher(codec.encoder, 2, deadline=20.0)
    (first, outputs), (second, others) = opened(batcher), opened(batcher)
    first.push(clip(0, 1))
    outputs.get(timeout=10)
    second.push(clip(0, 1))
    time.sleep(0.1)
    assert others.empty()
    first.push(clip(0, 1))
    others.get(timeout=10)
    outputs.get(timeout=10)
    assert (batcher.calls, batcher.outputs) == (2, 3)
    batcher.stop()


def test_a_flood_is_paced_while_others_are_there(batcher, codec, monkeypatch):
    """Calls that take 20 ms: unpaced, a flood would start one after another."""
    step = StreamPool.step

    def slow(pool, streams):
        time.sleep(0.02)
        return step(pool, streams)

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


def test_a_flood_alone_owes_nothing_later(batcher):
    """It is not paced while nobody is there, and goes on at its pace at once when somebody comes."""
    flood, outputs = opened(batcher)
    flood.push(np.zeros(60 * CALL, np.float32))
    begin = time.monotonic()
    for _ in range(60):
        outputs.get(timeout=30)
    assert time.monotonic() - begin < 0.75 * 60 * 0.08
    live, heard = opened(batcher)
    flood.push(np.zeros(60 * CALL, np.float32))
    for _ in range(5):
        live.push(np.zeros(CALL, np.float32))
        heard.get(timeout=30)
        time.sleep(0.08)
    assert outputs.qsize() >= 4


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

    def fail(pool, streams):
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
    monkeypatch.setattr(StreamPool, "step", lambda pool, streams: 1 / 0)
    other, _ = opened(batcher)
    other.push(clip(0, 1))
    assert isinstance(outputs.get(timeout=30), StreamError)
    assert batcher.failed


def test_two_threads_take_turns(codec, monkeypatch):
    """An encoder and a decoder that share one turn: their calls never run at once."""
    step, running, most = StreamPool.step, [], []

    def slow(pool, streams):
        running.append(pool)
        time.sleep(0.01)
        most.append(len(running))
        running.remove(pool)
        return step(pool, streams)

    monkeypatch.setattr(StreamPool, "step", slow)
    turns = Turns(1)
    batchers = [Batcher(half, 2, turns=turns) for half in (codec.encoder, codec.decoder)]
    data = np.zeros(10 * CALL, np.float32), np.zeros((8, 10), np.int64)
    streams = [opened(batcher) for batcher in batchers]
    for (stream, _), calls in zip(streams, data, strict=True):
        stream.push(calls)
    for _, outputs in streams:
        for _ in range(10):
            outputs.get(timeout=30)
    assert most == [1] * 20
    for batcher in batchers:
        batcher.stop()


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


def test_few_streams_change_rows_for_a_call(codec):
    """Every other of twenty rows is ready: six streams change rows, those that are left out are the last that came."""
    batcher = Batcher(codec.encoder, 20)
    batcher.stop()
    streams = [opened(batcher)[0] for _ in range(20)]
    ready = streams[::2]
    for stream in ready[::-1]:
        stream.push(clip(0, 1))
    now = time.monotonic()
    before = {stream: stream.row.row for stream in streams}
    block = batcher._block(now)
    assert block == ready[::-1][: len(block)]
    rows = sorted(stream.row.row for stream in block)
    assert rows == list(range(rows[0], rows[0] + len(rows)))
    assert sum(stream.row.row != row for stream, row in before.items()) == MOVES
    assert len({stream.row.row for stream in streams}) == 20
    streams[19].close()
    assert batcher._block(now)[: len(block)] == block  # and they stay together


class Simulation:
    """A batcher in time that only passes where something takes it: no thread, calls that cost what they are said to."""

    def __init__(self, half, monkeypatch, streams, cost):
        self.now = 1000.0
        self.batcher = Batcher(half, streams)
        self.batcher.stop()
        monkeypatch.setattr(batching, "time", types.SimpleNamespace(monotonic=lambda: self.now))

        def step(pool, streams):
            rows = [stream.row for stream in streams]
            assert all(stream.ready for stream in streams)
            assert sorted(rows) == list(range(min(rows), max(rows) + 1))
            self.now += cost(len(rows))
            return [PoolOutput(stream, stream.take()) for stream in streams]

        arrange = StreamPool.arrange

        def slow(pool, rows):
            self.now += 0.0006 * len(rows)
            self.moves += len(rows)
            arrange(pool, rows)

        monkeypatch.setattr(StreamPool, "step", step)
        monkeypatch.setattr(StreamPool, "arrange", slow)
        self.moves = 0

    def run(self, arrivals):
        """Latencies of all calls in seconds; `arrivals` are times of each stream's calls."""
        came = [list(times) for times in arrivals]
        latencies = []
        streams = [
            self.batcher.open(lambda _, times=times: latencies.append(self.now - self.begin - times.pop(0)))
            for times in came
        ]
        events = sorted((time_, stream) for stream, times in enumerate(arrivals) for time_ in times)
        self.begin = self.now
        while events or any(came):
            reached = self.now
            while events and self.begin + events[0][0] <= reached:
                self.now = self.begin + events[0][0]
                streams[events.pop(0)[1]].push(np.zeros(CALL, np.float32))
            self.now = reached
            due = self.batcher._due(self.now)
            if due <= self.now:
                self.batcher._step()
            else:
                self.now = min(due, self.begin + events[0][0] if events else due)
        return np.array(latencies)


def arrivals(streams, seed, seconds=30.0, period=0.08):
    """Calls of live streams at times of their own, some milliseconds late or not."""
    rng = np.random.default_rng(seed)
    count = int(seconds / period)
    return [rng.uniform(0, 1) + period * np.arange(count) + rng.uniform(0, 0.004, count) for _ in range(streams)]


@pytest.mark.parametrize("seed", [1, 2])
def test_ten_streams_where_a_core_carries_thirteen_in_one_batch(codec, monkeypatch, seed):
    """Costs as of the full-size fp32 encoder: 12 ms for a row, 99 for 16; 13 is what calls of 16 rows allow at all."""
    simulation = Simulation(codec.encoder, monkeypatch, 16, lambda rows: 0.006 + 0.0058 * rows)
    latencies = simulation.run(arrivals(10, seed))
    assert len(latencies) == 10 * 375
    assert np.quantile(latencies, 0.99) <= 0.065
    assert simulation.batcher.outputs > 2.5 * simulation.batcher.calls
    assert simulation.moves < 0.7 * simulation.batcher.calls
    assert simulation.batcher.rows == simulation.batcher.outputs


def test_clocks_that_drift_are_followed(codec, monkeypatch):
    """Every client's clock is up to 1 % wrong: streams pass each other, and change rows as they do."""
    simulation = Simulation(codec.encoder, monkeypatch, 16, lambda rows: 0.006 + 0.0058 * rows)
    clocks = np.random.default_rng(0).uniform(0.0792, 0.0808, 10)
    latencies = simulation.run([arrivals(1, seed, period=period)[0] for seed, period in enumerate(clocks)])
    assert np.quantile(latencies, 0.99) <= 0.075
