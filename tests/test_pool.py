"""Streams of different ages in the rows of one ring graph: each equals the batch reference of its own signal."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers import DECODER_SNR, snr

from mimi_export.errors import AudioError, CodesError, ConfigError, StreamError
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.runtime import StreamPool, load
from mimi_export.runtime import pool as pooling


@pytest.fixture(scope="module")
def codec(tiny_variant):
    return load(tiny_variant(8, "ring", 1))


def reference(checkpoint, audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes `[K, T]` and decoded samples of whole frames, from untouched upstream code."""
    codes = upstream.encode(checkpoint.model, torch.from_numpy(audio)[None, None], 8)
    return codes[0].numpy(), upstream.decode(checkpoint.model, codes)[0, 0].numpy()


def garble(pool: StreamPool, rng: np.random.Generator) -> None:
    """Fill every row that nobody uses with what an earlier stream could have left."""
    for row in set(range(pool.rows)) - set(pool._streams):
        for array in pool._past.values():
            noise = rng.normal(0, 10, array[row].shape)
            array[row] = noise if array.dtype == np.float32 else 12345


def test_rows_join_and_leave_at_any_time(codec, tiny_checkpoint) -> None:
    """Nine streams of different lengths, pushed in uneven pieces, through four rows full of garbage."""
    rng = np.random.default_rng(0)
    frame = codec.geometry.frame_size
    lengths = [int(frames) * frame for frames in rng.integers(5, 60, 9)]
    clips = [speech_like(n / 24000, seed=i)[:n].astype(np.float32) for i, n in enumerate(lengths)]
    pool = StreamPool(codec.encoder, 4)
    waiting, playing, got = list(range(9)), {}, {i: [] for i in range(9)}
    garble(pool, rng)
    while waiting or playing:
        if waiting and len(playing) < 4 and rng.random() < 0.5:
            playing[pool.open()] = [waiting.pop(0), 0]
        for stream, place in list(playing.items()):
            clip = clips[place[0]]
            piece = clip[place[1] : place[1] + int(rng.integers(0, 3 * frame))]
            stream.push(piece)
            place[1] += len(piece)
        for stream, codes in pool.step():
            got[playing[stream][0]].append(codes)
        for stream, place in list(playing.items()):
            if place[1] == len(clips[place[0]]) and not stream.ready:
                stream.close()
                del playing[stream]
                garble(pool, rng)
    for index, clip in enumerate(clips):
        np.testing.assert_array_equal(np.concatenate(got[index], axis=1), reference(tiny_checkpoint, clip)[0])


def test_decoder_rows_are_independent(codec, tiny_checkpoint) -> None:
    frame = codec.geometry.frame_size
    pool = StreamPool(codec.decoder, 3)
    truth = [reference(tiny_checkpoint, speech_like(2.0, seed=seed)[: 40 * frame]) for seed in range(3)]
    streams = [pool.open() for _ in range(3)]
    got = {stream: [] for stream in streams}
    for tick in range(60):
        for age, (stream, (codes, _)) in enumerate(zip(streams, truth, strict=True)):
            place = tick - 7 * age  # begin one after another
            if 0 <= place < 40:
                stream.push(codes[:, place : place + 1])
        for stream, samples in pool.step():
            got[stream].append(samples)
    for stream, (_, audio) in zip(streams, truth, strict=True):
        heard = np.concatenate(got[stream])
        assert snr(audio, heard) > 110


def test_nan_in_one_row_leaves_the_others_bit_equal_and_the_row_usable(codec) -> None:
    """The bare graph gets NaN samples in row 0; row 1 does not notice, and row 0 is clean after its reset."""
    frame = codec.geometry.frame_size
    clip = speech_like(1.0, seed=3)[: 20 * frame]

    def run(poison: bool) -> tuple[list[np.ndarray], np.ndarray]:
        pool = StreamPool(codec.encoder, 2)
        bad, good = pool.open(), pool.open()
        seen = []
        for start in range(0, len(clip), frame):
            bad.push(clip[start : start + frame])
            good.push(clip[start : start + frame])
            if poison:
                bad._pending = np.full_like(bad._pending, np.nan)
            seen += [codes for stream, codes in pool.step() if stream is good]
        bad.close()
        again = pool.open()
        assert again.row == 0
        again.push(clip)
        codes = []
        while again.ready:
            codes += [codes_ for _, codes_ in pool.step()]
        return seen, np.concatenate(codes, axis=1)

    for clean, dirty in zip(*(run(poison)[0] for poison in (False, True)), strict=True):
        np.testing.assert_array_equal(clean, dirty)
    np.testing.assert_array_equal(run(False)[1], run(True)[1])


def test_flush_makes_the_last_call_ready(codec, tiny_checkpoint) -> None:
    frame = codec.geometry.frame_size
    clip = speech_like(1.0, seed=5)[: 3 * frame + 7]
    stream = (pool := StreamPool(codec.encoder, 1)).open()
    stream.push(clip)
    assert stream.flush() == 7
    codes = []
    while stream.ready:
        codes += [output for _, output in pool.step()]
    padded = np.concatenate([clip, np.zeros(frame - 7, np.float32)])
    np.testing.assert_array_equal(np.concatenate(codes, axis=1), reference(tiny_checkpoint, padded)[0])
    assert stream.flush() == 0


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_blocks_of_any_rows(codec, kind) -> None:
    """Any streams that are asked step, from any row on; those between them and those that have no data keep all."""
    rng = np.random.default_rng(1)
    half, size = getattr(codec, kind), codec.geometry.frame_size if kind == "encoder" else 1
    clips = [speech_like(2.0, seed)[: 20 * 1920].astype(np.float32) for seed in range(5)]
    if kind == "decoder":
        clips = [codec.encoder.stream().push(clip)[0] for clip in clips]
    pool = StreamPool(half, 6)
    streams = [pool.open() for _ in range(6)]
    streams.pop(3).close()  # a free row among them
    got, pushed = {stream: [] for stream in streams}, dict.fromkeys(streams, 0)
    begun = set()
    while any(len(parts) < 20 for parts in got.values()):
        garble(pool, rng)
        for stream, clip in zip(streams, clips, strict=True):
            if pushed[stream] < 20 and rng.random() < 0.5:
                stream.push(clip[..., pushed[stream] * size : (pushed[stream] + 1) * size])
                pushed[stream] += 1
        asked = [stream for stream in streams if rng.random() < 0.5]
        before = {stream: stream.ready for stream in streams}
        outputs = pool.step(asked)
        rows = [stream.row for stream, _ in outputs]
        assert rows == sorted(stream.row for stream in asked if before[stream])
        begun |= {(rows[0], rows[-1])} if rows else set()
        for stream, output in outputs:
            got[stream].append(output)
    assert {first for first, _ in begun} == {0, 1, 2, 4, 5}
    assert max(last - first for first, last in begun) == 5
    for stream, clip in zip(streams, clips, strict=True):
        wanted, found = half.stream().push(clip)[0], np.concatenate(got[stream], axis=-1)
        if kind == "encoder":
            np.testing.assert_array_equal(found, wanted)
        else:
            assert snr(wanted, found) > DECODER_SNR


def test_few_bindings_are_kept(codec, monkeypatch) -> None:
    monkeypatch.setattr(pooling, "BLOCKS", 3)
    pool = StreamPool(codec.encoder, 4)
    streams = [pool.open() for _ in range(4)]
    clip = speech_like(1.0, seed=6)[: 12 * 1920].astype(np.float32)
    got = {stream: [] for stream in streams}
    for number in range(12):
        for stream in streams:
            stream.push(clip[number * 1920 : (number + 1) * 1920])
            got[stream] += [output for _, output in pool.step([stream])]
        assert len(pool._calls) <= 3
    wanted = codec.encoder.stream().push(clip)[0]
    for parts in got.values():
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), wanted)


def test_streams_change_rows(codec) -> None:
    """Their states and what they have buffered go along, whatever lay in the rows."""
    frame = codec.geometry.frame_size
    clips = [speech_like(2.0, seed)[: 20 * frame].astype(np.float32) for seed in range(3)]
    rng = np.random.default_rng(1)
    pool = StreamPool(codec.encoder, 5)
    streams = [pool.open() for _ in range(3)]
    got = {stream: [] for stream in streams}
    for number in range(20):
        for stream, clip in zip(streams, clips, strict=True):
            stream.push(clip[number * frame : (number + 1) * frame])
        if number % 3 == 2:
            garble(pool, rng)
            pool.arrange(dict(zip(streams, map(int, rng.permutation(5)), strict=False)))
            assert {stream.row: stream for stream in streams} == pool._streams
        for stream, output in pool.step():
            got[stream].append(output)
    for stream, clip in zip(streams, clips, strict=True):
        np.testing.assert_array_equal(np.concatenate(got[stream], axis=1), codec.encoder.stream().push(clip)[0])
    rows = [stream.row for stream in streams]
    for wrong in ({streams[0]: rows[1]}, {streams[0]: 0, streams[1]: 0}, {streams[0]: 5}, {streams[0]: -1}):
        with pytest.raises(StreamError, match="cannot go to rows"):
            pool.arrange(wrong)
    streams[0].close()
    with pytest.raises(StreamError, match="was closed"):
        pool.arrange({streams[0]: rows[0]})
    assert [stream.row for stream in streams] == rows
    assert pool.open().row not in rows[1:]


def test_rows_change_places_whatever_the_circles() -> None:
    """All ways in which up to four streams can go to five rows."""
    for count in range(5):
        for new in itertools.permutations(range(5), count):
            rows = [*"abcde", None]
            for to, source in pooling._copies(dict(zip(new, range(count), strict=True)), spare=5):
                rows[to] = rows[source]
            assert [rows[row] for row in new] == list("abcde"[:count])


def test_streams_of_a_fixed_batch_change_places(tiny_variant) -> None:
    encoder = load(tiny_variant(8, "ring", 1, 2)).encoder
    pool = StreamPool(encoder, 2)
    streams = [pool.open() for _ in range(2)]
    clips = [speech_like(0.32, seed).astype(np.float32) for seed in range(2)]
    got = {stream: [] for stream in streams}
    for number in range(4):
        for stream, clip in zip(streams, clips, strict=True):
            stream.push(clip[number * 1920 : (number + 1) * 1920])
        pool.arrange({streams[0]: streams[1].row, streams[1]: streams[0].row})
        for stream, output in pool.step():
            got[stream].append(output)
    wanted = encoder.stream(2).push(np.stack(clips))
    np.testing.assert_array_equal([np.concatenate(got[stream], axis=1) for stream in streams], wanted)


def test_wrong_use_is_refused(codec, tiny_variant) -> None:
    pool = StreamPool(codec.encoder, 1)
    stream = pool.open()
    with pytest.raises(StreamError, match="all 1 rows of this pool are taken"):
        pool.open()
    with pytest.raises(AudioError, match="remove NaN"):
        stream.push(np.array([np.nan], np.float32))
    stream.close()
    with pytest.raises(StreamError, match="was closed"):
        stream.push(np.zeros(3, np.float32))
    assert pool.step() == []
    with pytest.raises(ConfigError, match="--kv-cache ring"):
        StreamPool(load(tiny_variant(8)).encoder, 4)
    with pytest.raises(CodesError, match="got 4 codebooks, a pool takes all 8"):
        StreamPool(codec.decoder, 1).open().push(np.zeros((4, 1), np.int64))
