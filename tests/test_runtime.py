"""The runtime: pieces of any size, the end of a stream, copies of a stream, many of them, and what it refuses."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from helpers import DECODER_SNR, match_codes, snr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mimi_export.errors import ArtifactError, AudioError, CodesError, ConfigError, GraphError, StreamError
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.runtime import load
from mimi_export.runtime.checks import check_audio, check_codes
from mimi_export.runtime.session import GraphSession

F = 1920
FRAMES = 30
FAST = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def codec(tiny_variant):
    return load(tiny_variant(8))


@pytest.fixture(scope="module")
def ring(tiny_variant):
    return load(tiny_variant(16, "ring", 2))


@pytest.fixture(scope="module")
def audio():
    """Three rows of speech, 30 frames each."""
    return np.stack([speech_like(FRAMES * F / 24000, seed) for seed in (1, 2, 3)])


@pytest.fixture(scope="module")
def reference(tiny_checkpoint, audio):
    """Batch upstream: codes `[3, 8, 30]` and the audio they decode to, `[3, 30·1920]`."""
    codes = upstream.encode(tiny_checkpoint.model, torch.from_numpy(audio[:, None]), 8)
    return codes.numpy(), upstream.decode(tiny_checkpoint.model, codes).numpy()[:, 0]


def assert_codes(tiny_checkpoint, audio, wanted, got):
    """Equal, but for ties within rounding."""
    latents = upstream.encode_latents(tiny_checkpoint.model, torch.from_numpy(audio[:, None])).numpy()
    match = match_codes(tiny_checkpoint.model, latents, wanted, got)
    assert match.wrong == 0, match
    assert match.ties <= 0.001 * match.total, match


def push_all(stream, data: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Push the last axis of `data` in pieces of the given sizes, the last one repeated to the end."""
    outputs, start, index = [], 0, 0
    while start < data.shape[-1] or index < len(sizes):
        size = sizes[min(index, len(sizes) - 1)]
        if index >= len(sizes):
            size = max(size, 1)
        outputs.append(stream.push(data[..., start : start + size]))
        start, index = start + size, index + 1
    return np.concatenate(outputs, axis=-1)


@pytest.mark.parametrize(
    "sizes",
    [[0, 1, F - 1, F, F + 1, 2 * F, F], [F], [2 * F], [F - 1], [F + 1], [5 * F + 7], [40 * F], [1, 0, 0, 777]],
    ids=str,
)
def test_encoder_takes_pieces_of_any_size(codec, tiny_checkpoint, audio, reference, sizes):
    stream = codec.encoder.stream()
    codes = push_all(stream, audio[0], sizes)
    assert codes.dtype == np.int64
    assert stream.num_samples == FRAMES * F
    assert_codes(tiny_checkpoint, audio[:1], reference[0][:1], codes)
    assert stream.flush().codes.shape == (1, 8, 0)


@FAST
@given(sizes=st.lists(st.integers(0, 3 * F), min_size=1, max_size=30), total=st.integers(1, 12 * F))
def test_any_pieces_give_the_same_codes(codec, audio, sizes, total):
    """Codes come as soon as their frame is whole, and `flush` gives the rest; pieces do not change them."""
    stream, start, outputs = codec.encoder.stream(), 0, []
    for size in [*sizes, total]:
        piece = audio[1, start : min(start + size, total)]
        start += len(piece)
        outputs.append(stream.push(piece))
        assert sum(output.shape[2] for output in outputs) == start // F
    last = stream.flush()
    assert last.real_samples == total % F
    outputs.append(last.codes)
    padded = np.zeros(-(-total // F) * F, np.float32)
    padded[:total] = audio[1, :total]
    whole = codec.encoder.stream().push(padded)
    assert np.array_equal(np.concatenate(outputs, axis=2), whole)


@pytest.mark.parametrize("length", [0, 1, F - 1, F, F + 1, 2 * F])
def test_flush_pads_with_zeros_and_counts(codec, tiny_checkpoint, audio, length):
    stream = codec.encoder.stream()
    codes = stream.push(audio[0, :length])
    last = stream.flush()
    frames = -(-length // F)
    assert codes.shape == (1, 8, length // F)
    assert last.codes.shape == (1, 8, frames - length // F)
    assert last.real_samples == length % F
    if frames:
        padded = np.zeros((1, frames * F), np.float32)
        padded[0, :length] = audio[0, :length]
        wanted = upstream.encode(tiny_checkpoint.model, torch.from_numpy(padded[:, None]), 8).numpy()
        assert_codes(tiny_checkpoint, padded, wanted, np.concatenate([codes, last.codes], axis=2))
    with pytest.raises(StreamError, match="was flushed; call reset"):
        stream.push(audio[0, :10])
    with pytest.raises(StreamError, match="was flushed; call reset"):
        stream.flush()


@pytest.mark.parametrize("sizes", [[1], [2], [0, 3, 1, 7, 0, 4], [30]], ids=str)
def test_decoder_takes_any_number_of_frames(codec, reference, sizes):
    stream = codec.decoder.stream()
    decoded = push_all(stream, reference[0][0], sizes)
    assert decoded.dtype == np.float32
    assert decoded.shape == (1, FRAMES * F)
    assert stream.num_frames == FRAMES
    assert snr(reference[1][0], decoded[0]) >= DECODER_SNR
    assert stream.flush().shape == (1, 0)
    with pytest.raises(StreamError, match="was flushed; call reset"):
        stream.push(reference[0][0])
    with pytest.raises(StreamError, match="was flushed"):
        stream.flush()


def test_ring_of_two_frames_buffers_to_whole_calls(ring, tiny_checkpoint, audio, reference):
    """An odd number of frames and a bit: `flush` fills a call, and gives only frames that hold real samples."""
    length = 8 * F + 100
    stream = ring.encoder.stream()
    codes = push_all(stream, audio[0, :length], [F - 1, 3 * F, 1000])
    assert codes.shape == (1, 16, 8)
    last = stream.flush()
    assert last.codes.shape == (1, 16, 1)
    assert last.real_samples == 100
    padded = np.zeros((1, 9 * F), np.float32)
    padded[0, :length] = audio[0, :length]
    wanted = upstream.encode(tiny_checkpoint.model, torch.from_numpy(padded[:, None]), 16).numpy()
    assert_codes(tiny_checkpoint, padded, wanted, np.concatenate([codes, last.codes], axis=2))
    decoder = ring.decoder.stream()
    cuts = [0, 1, 4, 4, 5]
    pieces = [decoder.push(reference[0][0, :, start:stop]) for start, stop in itertools.pairwise(cuts)]
    assert [piece.shape[1] for piece in pieces] == [0, 4 * F, 0, 0]
    pieces.append(decoder.flush())
    assert snr(reference[1][0, : 5 * F], np.concatenate(pieces, axis=1)[0]) >= DECODER_SNR


def test_ring_refuses_to_change_codebooks_while_it_buffers(ring, reference):
    stream = ring.decoder.stream()
    stream.push(reference[0][0, :, :1])
    with pytest.raises(CodesError, match="got 4 codebooks while frames of 8 are buffered"):
        stream.push(reference[0][0, :4, 1:2])


@pytest.mark.export
@pytest.mark.parametrize("name", ["codec", "ring"])
def test_reset_then_replay_is_bit_identical(name, audio, reference, request):
    codec = request.getfixturevalue(name)
    for stream, data in (
        (codec.encoder.stream(), audio[0]),
        (codec.decoder.stream(), reference[0][0]),
    ):
        size = 5 * F + 11 if data.ndim == 1 else 3
        first = push_all(stream, data, [size])
        stream.flush()
        stream.reset()
        again = push_all(stream, data, [size])
        stream.reset()
        stream.push(data[..., : size // 2])
        stream.reset()
        third = push_all(stream, data, [size])
        assert np.array_equal(first, again)
        assert np.array_equal(first, third)


@pytest.mark.export
@pytest.mark.parametrize("name", ["codec", "ring"])
def test_snapshot_and_restore(name, audio, reference, request):
    """A copy taken in the middle of a frame continues bit for bit, in this stream and in another one."""
    codec = request.getfixturevalue(name)
    cases = ((codec.encoder.stream, audio[0], 9 * F + 123), (codec.decoder.stream, reference[0][0], 9))
    for make, data, cut in cases:
        stream, other = make(), make()
        stream.push(data[..., :cut])
        copy = stream.snapshot()
        rest = stream.push(data[..., cut:])
        stream.restore(copy)
        assert np.array_equal(stream.push(data[..., cut:]), rest)
        other.push(data[..., 5:cut])
        other.restore(copy)
        assert np.array_equal(other.push(data[..., cut:]), rest)
        stream.flush()
        stream.restore(copy)  # of a stream that had not ended
        assert np.array_equal(stream.push(data[..., cut:]), rest)


def test_streams_of_one_session_do_not_meet(codec, audio, reference):
    """Three encoders and three decoders take turns on one session each; each gives what it gives alone."""
    encoders = [codec.encoder.stream() for _ in range(3)]
    decoders = [codec.decoder.stream() for _ in range(3)]
    codes, decoded = [[] for _ in encoders], [[] for _ in decoders]
    for start in range(0, FRAMES, 3):
        for row in (2, 0, 1):
            codes[row].append(encoders[row].push(audio[row, start * F : (start + 3) * F]))
            decoded[row].append(decoders[row].push(reference[0][row, :, start : start + 3]))
    for row in range(3):
        alone = push_all(codec.encoder.stream(), audio[row], [3 * F])
        assert np.array_equal(np.concatenate(codes[row], axis=2), alone)
        alone = push_all(codec.decoder.stream(), reference[0][row], [3])
        assert np.array_equal(np.concatenate(decoded[row], axis=1), alone)


@pytest.mark.parametrize("name", ["codec", "ring"])
def test_batch_rows_equal_single_rows(name, tiny_checkpoint, audio, reference, request):
    codec = request.getfixturevalue(name)
    codes = push_all(codec.encoder.stream(batch=3), audio, [F + 100])
    assert_codes(tiny_checkpoint, audio, reference[0], codes[:, :8])
    decoded = push_all(codec.decoder.stream(batch=3), reference[0], [4])
    for row in range(3):
        alone = push_all(codec.encoder.stream(), audio[row], [F + 100])
        assert_codes(tiny_checkpoint, audio[row : row + 1], alone, codes[row : row + 1])
        alone = push_all(codec.decoder.stream(), reference[0][row], [4])
        assert snr(alone[0], decoded[row]) >= DECODER_SNR


def test_fewer_codebooks(codec, tiny_variant, audio, reference):
    """8 codes are the first 8 of 16, and a decoder of 16 that is fed 8 is the decoder of 8."""
    sixteen = load(tiny_variant(16))
    codes = sixteen.encoder.stream().push(audio[0])
    assert np.array_equal(codes[:, :8], codec.encoder.stream().push(audio[0]))
    by_16 = sixteen.decoder.stream().push(reference[0][0])
    assert snr(codec.decoder.stream().push(reference[0][0]), by_16) >= DECODER_SNR
    assert snr(reference[1][:1], by_16) >= DECODER_SNR


def test_input_types(codec, audio, reference):
    wanted = codec.encoder.stream().push(audio[0])
    assert np.array_equal(codec.encoder.stream().push(audio[0].astype(np.float64)), wanted)
    assert np.array_equal(codec.encoder.stream().push(audio[0].tolist()), wanted)
    assert np.array_equal(codec.encoder.stream().push(audio[:1]), wanted)
    assert np.array_equal(codec.encoder.stream().push(np.repeat(audio[0], 2)[::2]), wanted)
    decoded = codec.decoder.stream().push(reference[0][0])
    assert np.array_equal(codec.decoder.stream().push(reference[0][0].astype(np.uint16)), decoded)
    assert np.array_equal(codec.decoder.stream().push(reference[0][:1].astype(np.int32)), decoded)


def test_input_arrays_are_neither_kept_nor_changed(codec, audio, reference):
    """The caller may reuse its buffer at once, also for what is still buffered inside."""
    wanted = push_all(codec.encoder.stream(), audio[0], [1000])
    stream, buffer, outputs = codec.encoder.stream(), np.zeros(1000, np.float32), []
    for start in range(0, FRAMES * F, 1000):
        piece = audio[0, start : start + 1000]
        buffer[: len(piece)] = piece
        outputs.append(stream.push(buffer[: len(piece)]))
        assert np.array_equal(buffer[: len(piece)], piece)
        buffer[:] = np.nan
    assert np.array_equal(np.concatenate(outputs, axis=2), wanted)


def test_a_snapshot_is_a_copy(codec, audio):
    stream = codec.encoder.stream()
    stream.push(audio[0, : 5 * F + 5])
    copy = stream.snapshot()
    kept = {name: value.copy() for name, value in copy.states.items()}
    wanted = stream.push(audio[0, 5 * F + 5 :])
    assert all(np.array_equal(copy.states[name], kept[name]) for name in kept)
    stream.restore(copy)
    for value in copy.states.values():
        value[...] = np.nan
    copy.pending[...] = np.nan
    assert np.array_equal(stream.push(audio[0, 5 * F + 5 :]), wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(codec, audio, bad):
    stream = codec.encoder.stream()
    piece = audio[0, : 2 * F].copy()
    piece[100] = bad
    with pytest.raises(AudioError) as error:
        stream.push(piece)
    assert str(error.value) == f"sample 100 of row 0 is {bad}; remove NaN and infinite samples first"
    assert np.array_equal(stream.push(audio[0]), codec.encoder.stream().push(audio[0])), "the refusal left a trace"


@pytest.mark.filterwarnings("error")
def test_huge_samples_are_not_infinite():
    samples = np.full((2, 5), 1e30)
    assert np.array_equal(check_audio(samples, 2), samples[:, None].astype(np.float32))
    assert check_audio(np.zeros((2, 0)), 2).shape == (2, 1, 0)


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        (np.zeros(10, np.int16), "samples are int16, expected floats of full scale 1.0 (int16 / 32768)"),
        (np.zeros((2, 10), np.float32), "samples have shape [2, 10], expected [1, samples]"),
        (np.zeros((1, 1, 10), np.float32), "samples have shape [1, 1, 10], expected [1, samples]"),
        (np.float32(0), "samples have shape [], expected [1, samples]"),
        (np.zeros(10, np.complex64), "samples are complex64, expected floats of full scale 1.0 (int16 / 32768)"),
    ],
)
def test_samples_of_a_wrong_kind(codec, samples, text):
    with pytest.raises(AudioError) as error:
        codec.encoder.stream().push(samples)
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        (np.full((1, 1, 1), -1), "code -1 at row 0, codebook 0, frame 0 is out of range, expected 0 to 2047"),
        (np.full((1, 1, 1), 2048), "code 2048 at row 0, codebook 0, frame 0 is out of range, expected 0 to 2047"),
        ([[[0] * 5] * 7 + [[-1] * 5]], "code -1 at row 0, codebook 7, frame 0 is out of range, expected 0 to 2047"),
        ([[[0, 2048], [-1, 0]]], "code 2048 at row 0, codebook 0, frame 1 is out of range, expected 0 to 2047"),
        (np.zeros((1, 9, 5), int), "codes have 9 codebooks, this decoder takes 1 to 8"),
        (np.zeros((1, 0, 5), int), "codes have 0 codebooks, this decoder takes 1 to 8"),
        (np.zeros((2, 8, 5), int), "codes have shape [2, 8, 5], expected [1, codebooks, frames]"),
        (np.zeros(8, int), "codes have shape [8], expected [1, codebooks, frames]"),
        (np.zeros((8, 4), np.float32), "codes are float32, expected integers"),
        (np.full((8, 4), 2**63, np.uint64), f"code {2**63} at row 0, codebook 0, frame 0 is out of range"),
    ],
)
def test_codes_of_a_wrong_kind(codes, text):
    with pytest.raises(CodesError) as error:
        check_codes(codes, 1, 8, 2048)
    assert str(error.value).startswith(text)


def test_refused_codes_leave_no_trace(codec, reference):
    stream = codec.decoder.stream()
    for codes in (np.full((8, 4), 64), np.full((8, 4), -1), np.zeros((9, 4), int)):
        with pytest.raises(CodesError):
            stream.push(codes)
    assert np.array_equal(stream.push(reference[0][0]), codec.decoder.stream().push(reference[0][0]))


def test_codes_on_the_edge_are_taken():
    codes = np.array([[0, 2047]], np.uint16)
    for accepted in (codes, codes.tolist(), codes[None].astype(np.int32)):
        got = check_codes(accepted, 1, 8, 2048)
        assert (got.dtype, got.tolist()) == (np.int64, [[[0, 2047]]])


def copy_of(variant, tmp_path, **changes):
    """A variant directory of which the manifest can be changed."""
    directory = tmp_path / "variant"
    shutil.copytree(variant, directory)
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.update(changes)
    path.write_text(json.dumps(manifest))
    return directory


def test_refuses_what_is_no_variant(tmp_path):
    with pytest.raises(ArtifactError, match="there is no directory"):
        load(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        load(tmp_path)


def test_refuses_a_manifest_that_disagrees(tiny_variant, tmp_path):
    with pytest.raises(ArtifactError):
        load(copy_of(tiny_variant(8), tmp_path, num_codebooks=7))


@pytest.mark.parametrize("layout", ["window", "ring"])
def test_refuses_graphs_of_another_variant(tiny_variant, tmp_path, layout):
    """The manifest is in order, the files have the names and sizes it says, but the graphs are others."""
    directory = copy_of(tiny_variant(8), tmp_path)
    other = tiny_variant(16) if layout == "window" else tiny_variant(16, "ring", 2)
    manifest = json.loads((directory / "manifest.json").read_text())
    for kind in ("encoder", "decoder"):
        shutil.copy(other / f"{kind}_model.onnx", directory)
        size = (other / f"{kind}_model.onnx").stat().st_size
        manifest["files"][f"{kind}_model.onnx"]["bytes"] = size
    (directory / "manifest.json").write_text(json.dumps(manifest))
    codec = load(directory)
    texts = {
        "window": "output 'audio_codes' is tensor(int64) ['batch', 16, 'frames'], expected tensor(int64) ['batch', 8, ",
        "ring": "has 17 inputs, expected 16; it is no graph of this variant",
    }
    with pytest.raises(GraphError) as error:
        codec.encoder.stream()
    assert texts[layout] in str(error.value)
    with pytest.raises(ArtifactError, match=r"was changed"):
        load(directory, verify_hashes=True)


def test_refuses_a_swapped_pair(tiny_variant, codec):
    with pytest.raises(GraphError, match="input 0 is 'audio_codes', expected 'input_values'"):
        GraphSession(tiny_variant(8) / "decoder_model.onnx", codec.encoder.spec)


@pytest.mark.parametrize("content", [b"", b"not a graph", None], ids=["empty", "text", "truncated"])
def test_refuses_a_damaged_graph(tiny_variant, codec, tmp_path, content, capfd):
    path = tmp_path / "encoder_model.onnx"
    path.write_bytes((tiny_variant(8) / path.name).read_bytes()[:100_000] if content is None else content)
    with pytest.raises(GraphError) as error:
        GraphSession(path, codec.encoder.spec)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_refuses_a_missing_graph_and_a_missing_provider(tiny_variant, codec, tmp_path):
    with pytest.raises(GraphError, match="there is no graph"):
        GraphSession(tmp_path / "encoder_model.onnx", codec.encoder.spec)
    with pytest.raises(ConfigError, match="onnxruntime has no NoSuchExecutionProvider here; it offers "):
        load(tiny_variant(8), providers=["NoSuchExecutionProvider"]).encoder.stream()


def test_runtime_needs_neither_torch_nor_onnx(tiny_variant):
    """In a fresh interpreter, with everything used once."""
    program = f"""
import sys
import numpy as np
import mimi_export.runtime
codec = mimi_export.runtime.load({str(tiny_variant(8))!r})
codec.decoder.stream().push(codec.encoder.stream().push(np.zeros(3840, np.float32)))
print(sorted(name for name in ("torch", "onnx", "onnx_ir", "onnxscript", "transformers") if name in sys.modules))
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert result.stdout == "[]\n"
    assert result.stderr == ""


@pytest.mark.slow
def test_full_size_prefix_property(full_variant, full_checkpoint):
    """`codes(K=8) == codes(K=32)[:, :8]`, and a decoder of 16 that is fed 8 is the decoder of 8."""
    audio = speech_like(4, seed=21)
    codes = {k: load(full_variant(k)).encoder.stream().push(audio) for k in (8, 16, 32)}
    assert codes[32].shape == (1, 32, 50)
    assert np.array_equal(codes[32][:, :8], codes[8])
    assert np.array_equal(codes[32][:, :16], codes[16])
    by_8 = load(full_variant(8)).decoder.stream().push(codes[8])
    by_16 = load(full_variant(16)).decoder.stream().push(codes[8])
    by_32 = load(full_variant(32)).decoder.stream().push(codes[8])
    assert snr(by_8, by_16) >= DECODER_SNR
    assert snr(by_8, by_32) >= DECODER_SNR
    decoded = upstream.decode(full_checkpoint.model, torch.from_numpy(codes[8])).numpy()
    assert snr(decoded[:, 0], by_8) >= DECODER_SNR
