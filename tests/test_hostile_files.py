"""Audio and code files that come from anybody: a refusal in one line, at once, and in little memory."""

import io
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from mimi_export.errors import AudioError, CodesError
from mimi_export.media.archives import LARGEST_RATIO, LARGEST_SMALL
from mimi_export.media.audio import AudioReader, read_audio
from mimi_export.media.codes import CodesMetadata, read_codes, write_codes
from mimi_export.media.resampling import RATES

CODES = np.random.default_rng(0).integers(0, 2048, (1, 8, 20))
METADATA = CodesMetadata(24000, 1920, 38000, "kyutai/mimi")
READERS = {"wav": (read_audio, AudioError), "npz": (read_codes, CodesError), "safetensors": (read_codes, CodesError)}


def refusal(path: Path, *words: str) -> None:
    read, kind = READERS[path.suffix[1:]]
    with pytest.raises(kind) as caught:
        read(path)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert len(text) < 700
    assert text.isprintable(), repr(text)


@pytest.mark.parametrize("extension", READERS)
def test_a_pipe_without_a_writer_is_refused(tmp_path, extension):
    os.mkfifo(tmp_path / f"in.{extension}")
    refusal(tmp_path / f"in.{extension}", "is a pipe or a device, expected a regular file")


@pytest.mark.parametrize(("rate", "fits"), [(1, False), (999, False), (1000, True), (10**6, True), (10**6 + 1, False)])
def test_rates(tmp_path, rate, fits):
    """At 1 Hz a header of 44 bytes and a kilobyte of samples would resample to an hour."""
    path = tmp_path / "in.wav"
    soundfile.write(path, np.zeros(1000), rate)
    if fits:
        assert len(read_audio(path)) == 1000 * 24000 // rate
    else:
        refusal(path, f"claims {rate} Hz, expected {RATES[0]} to {RATES[-1]}")


def test_many_channels_are_read_in_small_blocks(tmp_path):
    path = tmp_path / "in.wav"
    soundfile.write(path, np.full((3000, 1024), 0.25, np.float32), 24000)
    with AudioReader(path) as reader:
        blocks = list(reader)
    assert max(map(len, blocks)) * 1024 <= 8 * 32768
    np.testing.assert_allclose(np.concatenate(blocks), 0.25, atol=1e-4)


def npz(path: Path, *members: tuple[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_an_archive_that_unpacks_to_much_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, codes=np.zeros((1, 8, LARGEST_SMALL // 64 + 1), np.int64))
    tracemalloc.start()
    refusal(path, "would unpack to", f"expected {LARGEST_SMALL} at most")
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    np.savez_compressed(path, codes=CODES)
    assert np.array_equal(read_codes(path).codes, CODES)
    assert LARGEST_RATIO > 64 / 11, "codes of 11 bits, packed as well as can be"


@pytest.mark.parametrize("shape", [(1, 8, 10**12), (1, 8, 21), (1, 10**4000, 1), (1, 8, 19)])
def test_an_array_that_does_not_fill_its_bytes_is_refused(tmp_path, shape):
    header = repr({"descr": "<i8", "fortran_order": False, "shape": shape}).encode() + b"\n"
    npz(
        tmp_path / "in.npz", ("codes.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(1280))
    )
    refusal(tmp_path / "in.npz", "is not an .npz file of plain arrays, or a damaged one")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_of_one_name_are_refused(tmp_path):
    npz(tmp_path / "in.npz", ("codes.npy", npy(CODES)), ("codes.npy", npy(CODES + 1)))
    refusal(tmp_path / "in.npz", "holds two arrays of one name")
    whole = save({"codes": CODES})
    size = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + size].rstrip()
    twice = header[:-1] + b"," + header[1:]
    path = tmp_path / "in.safetensors"
    path.write_bytes(len(twice).to_bytes(8, "little") + twice + whole[8 + size :])
    refusal(path, "a damaged one")


@pytest.mark.parametrize("value", ["nan", "1e5", "", "9" * 5000, "9" * 400, "-1", "\x1b[2J"])
def test_metadata_of_no_sense_is_refused(tmp_path, value):
    path = tmp_path / "in.safetensors"
    path.write_bytes(save({"codes": CODES}, {"num_samples": value}))
    refusal(path, "num_samples is", "expected")
    npz(tmp_path / "in.npz", ("codes.npy", npy(CODES)), ("sampling_rate.npy", npy(np.array(np.nan))))
    refusal(tmp_path / "in.npz", "sampling_rate is nan, expected a whole number")


@pytest.mark.parametrize("model", ["kyutai/\x1b[31mmimi", "x" * 1001])
def test_a_model_name_cannot_reach_the_terminal(tmp_path, model):
    path = tmp_path / "in.safetensors"
    path.write_bytes(save({"codes": CODES}, {"model": model}))
    refusal(path, "model is", "expected up to 1000 plain characters")


def test_names_of_strangers_are_cut(tmp_path):
    path = tmp_path / "in.safetensors"
    path.write_bytes(save({f"\x1b[2J{i}": np.zeros(1) for i in range(1000)}))
    refusal(path, "has no tensor `codes`, only [")


# --- damage of every kind


def good(extension: str, directory: Path) -> bytes:
    path = directory / f"good.{extension}"
    if extension in ("npz", "safetensors"):
        write_codes(path, CODES, METADATA, force=True)
    else:
        soundfile.write(path, 0.1 * np.random.default_rng(1).standard_normal((400, 2)), 16000)
    return path.read_bytes()


damage = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "insert", "repeat"]), st.floats(0, 1), st.binary(min_size=1, max_size=9)),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, data in changes:
        place = int(where**3 * len(content))  # mostly near the header
        if kind == "set":
            content = content[:place] + data + content[place + len(data) :]
        elif kind == "cut":
            content = content[:place]
        elif kind == "insert":
            content = content[:place] + data + content[place:]
        else:
            content = content[:place] * 2 + content[place:]
    return content


def check_damage(directory: Path, extension: str, examples: int) -> None:
    """Read, or refused in one plain line; never another error, and never much memory."""
    whole, path = good(extension, directory), directory / f"in.{extension}"
    read, kind = (read_codes, CodesError) if extension in ("npz", "safetensors") else (read_audio, AudioError)

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(changes=damage)
    def attempt(changes):
        path.write_bytes(damaged(whole, changes))
        text = ""
        tracemalloc.start()
        try:
            read(path)
        except kind as error:
            text = str(error)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(text) < 1000
        assert text.isprintable() or not text, repr(text)
        assert peak < 20_000_000

    attempt()


FUZZED = ["npz", "safetensors", "wav", "flac", "aiff", "caf", "ogg"]


@pytest.mark.parametrize("extension", FUZZED)
def test_damaged_files(tmp_path, extension):
    check_damage(tmp_path, extension, 500)


@pytest.mark.slow
@pytest.mark.parametrize("extension", FUZZED)
def test_damaged_files_at_length(tmp_path, extension):
    check_damage(tmp_path, extension, 10_000)
