"""Streams of different ages in the rows of one ring graph: each equals the batch reference of its own signal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import snr

from mimi_export.errors import AudioError, CodesError, ConfigError, StreamError
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.runtime import StreamPool, load


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


def test_a_stream_moves_between_pools(codec) -> None:
    """Its states and what it has buffered go along, whatever lay in the row; its old row is free."""
    frame = codec.geometry.frame_size
    clip = speech_like(2.0, seed=6)[: 20 * frame].astype(np.float32)
    wanted = codec.encoder.stream().push(clip)[0]
    rng = np.random.default_rng(1)
    pools = StreamPool(codec.encoder, 3), StreamPool(codec.encoder, 3)
    other, stream = pools[0].open(), pools[0].open()
    got = []
    for number in range(20):
        stream.push(clip[number * frame : (number + 1) * frame])
        if number % 3 == 2:
            target = pools[int(rng.integers(0, 2))]
            garble(target, rng)
            stream.move(target)
            assert sum(len(pool._streams) for pool in pools) == 2
        got += [codes for pool in pools for found, codes in pool.step() if found is stream]
    np.testing.assert_array_equal(np.concatenate(got, axis=1), wanted)
    other.close()
    stream.close()
    assert not any(pool._streams for pool in pools)
    with pytest.raises(StreamError, match="was closed"):
        stream.move(pools[0])


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
