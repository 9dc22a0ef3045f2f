"""Long streams through the runtime against untouched batch `MimiModel`: every code, every sample, to the very end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import psutil
import pytest
import torch
from helpers import DECODER_SNR, PATTERNS, calls, match_codes, show, snr

from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.runtime import load

F = 1920
MIB = 2**20


@dataclass(frozen=True)
class Reference:
    """One clip and what upstream makes of it in one batch call; the codes of K are the first K."""

    model: object
    audio: np.ndarray  # [samples], whole frames
    latents: np.ndarray  # [1, hidden, frames]
    codes: np.ndarray  # [1, 16, frames]
    decoded: dict[int, np.ndarray]  # by number of codebooks: [samples]

    @property
    def frames(self) -> int:
        return self.codes.shape[2]


def refer(model, audio: np.ndarray) -> Reference:
    whole = audio[: len(audio) // F * F]
    tensor = torch.from_numpy(whole)[None, None]
    latents = upstream.encode_latents(model, tensor)
    codes = upstream.encode(model, tensor, 16)
    decoded = {k: upstream.decode(model, codes[:, :k]).numpy()[0, 0] for k in (8, 16)}
    return Reference(model, whole, latents.numpy(), codes.numpy(), decoded)


def check(codec, reference: Reference, num_codebooks: int, pattern: list[int], seconds: float | None = None) -> str:
    """Stream a clip (or its beginning) both ways; what was seen, for the log."""
    frames = reference.frames if seconds is None else int(seconds * 12.5)
    wanted = reference.codes[:, :num_codebooks, :frames]
    encoder, decoder = codec.encoder.stream(), codec.decoder.stream()
    codes, decoded = [], []
    for start, stop in calls(frames, pattern):
        codes.append(encoder.push(reference.audio[start * F : stop * F]))
        decoded.append(decoder.push(wanted[:, :, start:stop]))
    match = match_codes(reference.model, reference.latents, wanted, np.concatenate(codes, axis=2))
    level = snr(reference.decoded[num_codebooks][: frames * F], np.concatenate(decoded, axis=1)[0])
    assert match.wrong == 0, match
    assert match.ties <= 0.001 * match.total, match
    assert level >= DECODER_SNR
    return f"{match}; decoder {level:.1f} dB"


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("num_codebooks", [8, 16])
def test_tiny(tiny_variant, tiny_checkpoint, num_codebooks, pattern):
    reference = refer(tiny_checkpoint.model, speech_like(8, seed=31))
    check(load(tiny_variant(num_codebooks)), reference, num_codebooks, pattern)


def kv_lengths(stream) -> set[int]:
    states = stream.snapshot().states
    return {value.shape[2] for name, value in states.items() if name.startswith(("key_", "value_"))}


def test_kv_grows_to_the_window_and_stays(tiny_variant, tiny_checkpoint):
    geometry = tiny_checkpoint.geometry
    codec = load(tiny_variant(8))
    encoder, decoder = codec.encoder.stream(), codec.decoder.stream()
    assert kv_lengths(encoder) == kv_lengths(decoder) == {0}
    for frame in range(1, 20):
        decoder.push(encoder.push(np.zeros(F, np.float32)))
        kept = min(frame * geometry.tokens_per_frame, geometry.sliding_window - 1)
        assert kv_lengths(encoder) == kv_lengths(decoder) == {kept}


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
        assert kv_lengths(encoder) == kv_lengths(decoder) == {tiny_checkpoint.geometry.sliding_window - 1}
    assert encoder.num_samples == 600 * 24000
    codes, decoded = np.concatenate(codes, axis=2), np.concatenate(decoded, axis=1)
    model, audio = tiny_checkpoint.model, torch.from_numpy(minute)[None, None]
    latents = upstream.encode_latents(model, audio).numpy()[:, :, skipped:]
    wanted = upstream.encode(model, audio, 8).numpy()[:, :, skipped:]
    match = match_codes(model, latents, wanted, codes[:, :, skipped:])
    assert match.wrong == 0, match
    assert match.ties <= 0.001 * match.total, match
    reference = upstream.decode(model, torch.from_numpy(codes)).numpy()[0]
    assert snr(reference[:, skipped * F :], decoded[:, skipped * F :]) >= DECODER_SNR
    # What one minute leaves behind if nothing is freed is 6 MB of audio alone; allocators move by some hundred kB.
    assert memory[-1] - memory[1] < 4 * MIB, [round(value / MIB, 1) for value in memory]


@pytest.mark.slow
def test_ten_minutes_in_one_batch(tiny_variant, tiny_checkpoint):
    """All 60 000 codes of 10 minutes against one batch call over 15 000 tokens."""
    audio = np.concatenate([speech_like(60, seed) for seed in range(10)])
    latents = upstream.encode_latents(tiny_checkpoint.model, torch.from_numpy(audio)[None, None])
    wanted = upstream.quantize_latents(tiny_checkpoint.model, latents, 8).numpy()
    stream = load(tiny_variant(8)).encoder.stream()
    codes = np.concatenate([stream.push(audio[i : i + 4 * F]) for i in range(0, len(audio), 4 * F)], axis=2)
    match = match_codes(tiny_checkpoint.model, latents.numpy(), wanted, codes)
    assert match.wrong == 0, match
    assert match.ties <= 0.001 * match.total, match


@pytest.fixture(scope="module")
def generated_30s(full_checkpoint) -> Reference:
    return refer(full_checkpoint.model, speech_like(30, seed=33))


@pytest.fixture(scope="module")
def jfk_33s(full_checkpoint, jfk) -> Reference:
    """Real speech three times over, more than three attention windows."""
    return refer(full_checkpoint.model, np.tile(jfk, 3))


@pytest.mark.slow
@pytest.mark.parametrize(("num_codebooks", "pattern"), [(8, "mixture"), (16, "4")])
def test_full_size_real_speech(full_variant, jfk_33s, num_codebooks, pattern, capsys, request):
    assert jfk_33s.frames * F >= 30 * 24000
    seen = check(load(full_variant(num_codebooks)), jfk_33s, num_codebooks, PATTERNS[pattern])
    show(f"\n{request.node.name}: {seen}", capsys)


@pytest.mark.slow
@pytest.mark.parametrize(("num_codebooks", "pattern"), [(8, "7"), (16, "mixture")])
def test_full_size_generated_speech(full_variant, generated_30s, num_codebooks, pattern, capsys, request):
    assert all(len(np.unique(codes)) > 100 for codes in generated_30s.codes[0]), "codebooks that are hardly used"
    seen = check(load(full_variant(num_codebooks)), generated_30s, num_codebooks, PATTERNS[pattern])
    show(f"\n{request.node.name}: {seen}", capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_codebooks", "pattern"), [(8, "1"), (8, "2"), (8, "3"), (8, "4"), (16, "1"), (16, "2"), (16, "3"), (16, "7")]
)
def test_full_size_at_any_chunking(full_variant, generated_30s, num_codebooks, pattern, capsys, request):
    """The patterns that are not streamed over 30 s above, over the first 11.2 s: the window has begun to slide.

    The codec is causal, so the batch reference of the beginning is the beginning of the batch reference.
    """
    seen = check(load(full_variant(num_codebooks)), generated_30s, num_codebooks, PATTERNS[pattern], seconds=11.2)
    show(f"\n{request.node.name}: {seen}", capsys)


@pytest.mark.slow
def test_full_size_kv_has_249_entries_after_ten_seconds(full_variant, generated_30s):
    codec = load(full_variant(8))
    encoder, decoder = codec.encoder.stream(), codec.decoder.stream()
    for start, stop in calls(130, [10]):
        decoder.push(encoder.push(generated_30s.audio[start * F : stop * F]))
        assert kv_lengths(encoder) == kv_lengths(decoder) == {min(2 * stop, 249)}
    assert {state.shape for name, state in encoder.snapshot().states.items() if "key" in name} == {(1, 8, 249, 64)}
