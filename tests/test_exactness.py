"""Long streams through the runtime against untouched batch `MimiModel`: every code, every sample, to the very end."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
import torch
from contract import Reference, verify_stream
from helpers import DECODER_SNR, PATTERNS, calls, show, snr

from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.runtime import load

F = 1920
MIB = 2**20


def runtime_step(data: np.ndarray, stream) -> tuple[np.ndarray, object]:
    """A stream of the runtime, with rows and channels as graphs have them."""
    output = stream.push(data[:, 0] if data.dtype == np.float32 else data)
    return (output[:, None] if output.ndim == 2 else output), stream


def verify(directory, reference: Reference, pattern: list[int], frames: int | None = None) -> str:
    codec = load(directory)
    halves = {"encoder": codec.encoder, "decoder": codec.decoder}
    return "; ".join(
        verify_stream(runtime_step, codec.artifact.spec(kind), reference, [pattern], half.stream, frames)
        for kind, half in halves.items()
    )


@pytest.fixture(scope="module")
def tiny_8s(tiny_checkpoint) -> Reference:
    return Reference.of(tiny_checkpoint.model, speech_like(8, seed=31), 16)


@pytest.mark.parametrize("pattern", [*PATTERNS.values(), [100]], ids=[*PATTERNS, "whole"])
@pytest.mark.parametrize("num_codebooks", [8, 16])
def test_tiny(tiny_variant, tiny_8s, num_codebooks, pattern):
    verify(tiny_variant(num_codebooks), tiny_8s, pattern)


def kv_lengths(stream) -> set[int]:
    states = stream.snapshot().states
    return {value.shape[2] for name, value in states.items() if name.startswith(("key_", "value_"))}


def test_a_window_is_whole_from_the_first_call_on(tiny_variant, tiny_checkpoint):
    codec = load(tiny_variant(8))
    encoder, decoder = codec.encoder.stream(), codec.decoder.stream()
    assert kv_lengths(encoder) == kv_lengths(decoder) == {0}
    for _ in range(20):
        decoder.push(encoder.push(np.zeros(F, np.float32)))
        assert kv_lengths(encoder) == kv_lengths(decoder) == {tiny_checkpoint.geometry.sliding_window}


def test_ten_minutes(tiny_variant, tiny_checkpoint):
    """Exact at its end, states and memory as after the first minute.

    The reference is upstream's batch over the last minute only. It begins long before anything it is compared on can
    see its beginning (two windows of 16 tokens and the convolutions: 2 s), and its positions are small: upstream
    rounds its rotary angles to float32, which after 10 minutes of batch is an error of 1e-3 of its own.
    """
    minute = speech_like(60, seed=32)
    frames, skipped = len(minute) // F, 125
    codec = load(tiny_variant(8))
    encoder, decoder = codec.encoder.stream(), codec.decoder.stream()
    process, memory = psutil.Process(), []
    for _ in range(10):
        codes, decoded = [], []
        for start, stop in calls(frames, [1, 30, 4, 13]):
            codes.append(encoder.push(minute[start * F : stop * F]))
            decoded.append(decoder.push(codes[-1]))
        memory.append(process.memory_info().rss)
        assert kv_lengths(encoder) == kv_lengths(decoder) == {tiny_checkpoint.geometry.sliding_window}
    assert encoder.num_samples == 600 * 24000
    codes, decoded = np.concatenate(codes, axis=2), np.concatenate(decoded, axis=1)
    reference = Reference.of(tiny_checkpoint.model, minute, 8)
    reference.judge("encoder", 8, codes[:, :, skipped:], start=skipped)
    wanted = upstream.decode(tiny_checkpoint.model, torch.from_numpy(codes)).numpy()[0]
    assert snr(wanted[:, skipped * F :], decoded[:, skipped * F :]) >= DECODER_SNR
    # What one minute leaves behind if nothing is freed is 6 MB of audio alone; allocators move by some hundred kB.
    assert memory[-1] - memory[1] < 4 * MIB, [round(value / MIB, 1) for value in memory]


@pytest.mark.slow
def test_ten_minutes_in_one_batch(tiny_variant, tiny_checkpoint):
    """All 60 000 codes of 10 minutes against one batch call over 15 000 tokens."""
    audio = np.concatenate([speech_like(60, seed) for seed in range(10)])
    reference = Reference.of(tiny_checkpoint.model, audio, 8)
    stream = load(tiny_variant(8)).encoder.stream()
    codes = np.concatenate([stream.push(audio[i : i + 4 * F]) for i in range(0, len(audio), 4 * F)], axis=2)
    reference.judge("encoder", 8, codes)


@pytest.fixture(scope="module")
def generated_30s(full_checkpoint) -> Reference:
    return Reference.of(full_checkpoint.model, speech_like(30, seed=33), 16)


@pytest.fixture(scope="module")
def jfk_33s(full_checkpoint, jfk) -> Reference:
    """Real speech three times over, more than three attention windows."""
    return Reference.of(full_checkpoint.model, np.tile(jfk, 3), 16)


@pytest.mark.slow
@pytest.mark.parametrize(("num_codebooks", "pattern"), [(8, "mixture"), (16, "4")])
def test_full_size_real_speech(full_variant, jfk_33s, num_codebooks, pattern, capsys, request):
    assert jfk_33s.frames * F >= 30 * 24000
    seen = verify(full_variant(num_codebooks), jfk_33s, PATTERNS[pattern])
    show(f"\n{request.node.name}: {seen}", capsys)


@pytest.mark.slow
@pytest.mark.parametrize(("num_codebooks", "pattern"), [(8, "7"), (16, "mixture")])
def test_full_size_generated_speech(full_variant, generated_30s, num_codebooks, pattern, capsys, request):
    assert all(len(np.unique(codes)) > 100 for codes in generated_30s.codes[0]), "codebooks that are hardly used"
    seen = verify(full_variant(num_codebooks), generated_30s, PATTERNS[pattern])
    show(f"\n{request.node.name}: {seen}", capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_codebooks", "pattern"), [(8, "1"), (8, "2"), (8, "3"), (8, "4"), (16, "1"), (16, "2"), (16, "3"), (16, "7")]
)
def test_full_size_at_any_chunking(full_variant, generated_30s, num_codebooks, pattern, capsys, request):
    """The patterns that are not streamed over 30 s above, over the first 11.2 s: the window has begun to slide.

    The codec is causal, so the batch reference of the beginning is the beginning of the batch reference.
    """
    seen = verify(full_variant(num_codebooks), generated_30s, PATTERNS[pattern], frames=140)
    show(f"\n{request.node.name}: {seen}", capsys)


@pytest.mark.slow
def test_full_size_kv_has_250_tokens(full_variant, generated_30s):
    codec = load(full_variant(8))
    encoder, decoder = codec.encoder.stream(), codec.decoder.stream()
    for start, stop in calls(130, [10]):
        decoder.push(encoder.push(generated_30s.audio[0, :, start * F : stop * F]))
        assert kv_lengths(encoder) == kv_lengths(decoder) == {250}
    assert {state.shape for name, state in encoder.snapshot().states.items() if "key" in name} == {(1, 8, 250, 64)}
