"""Files of codes. The reference is the safetensors library and the bytes of its format."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import write_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mimi_export.errors import CodesError, OutputError
from mimi_export.media.codes import CodesMetadata, CodesWriter, read_codes

FORMATS = [".safetensors", ".npz"]
METADATA = CodesMetadata(sampling_rate=24000, frame_size=1920, num_samples=5000, model="kyutai/mimi")


def some_codes(num_codebooks: int = 8, num_frames: int = 3) -> np.ndarray:
    size = (1, num_codebooks, num_frames)
    return np.random.default_rng(num_frames).integers(0, 2048, size, dtype=np.int64)


def message(call) -> str:
    with pytest.raises(CodesError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("metadata", [METADATA, CodesMetadata(), CodesMetadata(num_samples=7)])
def test_round_trip(tmp_path, extension, metadata):
    path = tmp_path / f"codes{extension}"
    write_codes(path, some_codes(), metadata)
    got = read_codes(path)
    assert got.codes.dtype == np.int64
    np.testing.assert_array_equal(got.codes, some_codes())
    assert got.metadata == metadata
    assert names(tmp_path) == [path.name]


def test_safetensors_bytes(tmp_path):
    """The file as literal bytes: 8 bytes of header size, a JSON header in a fixed order, int64 in C order."""
    path = tmp_path / "codes.safetensors"
    write_codes(path, np.array([[[1, 2], [3, 2047]]]), CodesMetadata(24000, 1920, 3000, "kyutai/mimi"))
    header = (
        b'{"__metadata__":{"frame_size":"1920","model":"kyutai/mimi","num_samples":"3000","sampling_rate":"24000"},'
        b'"codes":{"data_offsets":[0,32],"dtype":"I64","shape":[1,2,2]}}'
    )
    header += b" " * (-len(header) % 8)
    values = b"".join(value.to_bytes(8, "little") for value in (1, 2, 3, 2047))
    assert path.read_bytes() == len(header).to_bytes(8, "little") + header + values


@pytest.mark.parametrize("extension", FORMATS)
def test_equal_content_gives_equal_bytes_in_every_process(tmp_path, extension):
    program = (
        "import sys, numpy as np\n"
        "from mimi_export.media.codes import CodesMetadata, CodesWriter\n"
        "with CodesWriter(sys.argv[1], CodesMetadata(24000, 1920, 5000, 'm')) as writer:\n"
        "    writer.append(np.arange(24).reshape(1, 8, 3))"
    )
    paths = [tmp_path / f"{index}{extension}" for index in range(3)]
    for path in paths:
        subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint32", "uint16"])
def test_reads_what_others_write(tmp_path, dtype):
    """candle's Mimi example writes `codes` as uint32, without metadata."""
    save_file({"codes": some_codes().astype(dtype)}, tmp_path / "codes.safetensors")
    got = read_codes(tmp_path / "codes.safetensors")
    np.testing.assert_array_equal(got.codes, some_codes())
    assert got.codes.dtype == np.int64
    assert got.metadata == CodesMetadata()


def test_others_read_what_we_write(tmp_path):
    write_codes(tmp_path / "codes.safetensors", some_codes(), METADATA)
    np.testing.assert_array_equal(load_file(tmp_path / "codes.safetensors")["codes"], some_codes())
    with safe_open(tmp_path / "codes.safetensors", "numpy") as file:
        assert file.metadata()["num_samples"] == "5000"
    write_codes(tmp_path / "codes.npz", some_codes(), METADATA)
    with np.load(tmp_path / "codes.npz") as file:
        assert sorted(file.files) == ["codes", "frame_size", "model", "num_samples", "sampling_rate"]


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 5), min_size=1, max_size=12), extension=st.sampled_from(FORMATS))
def test_writer_in_pieces_equals_writing_at_once(tmp_path_factory, cuts, extension):
    directory = tmp_path_factory.mktemp("codes")
    codes = some_codes(8, sum(cuts))

    def work():
        with CodesWriter(directory / f"pieces{extension}", METADATA) as writer:
            start = 0
            for cut in cuts:
                writer.append(codes[0, :, start : start + cut].astype(np.uint16))
                start += cut
                assert writer.num_frames == start
            writer.num_samples = 1

    if not codes.size:
        assert message(work) == f"{directory / f'pieces{extension}'}: there are no codes to write"
        assert names(directory) == []
        return
    work()
    write_codes(directory / f"once{extension}", codes, CodesMetadata(24000, 1920, 1, "kyutai/mimi"))
    assert (directory / f"pieces{extension}").read_bytes() == (directory / f"once{extension}").read_bytes()


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_interrupted_writer_leaves_nothing(tmp_path, failure):
    def work():
        with CodesWriter(tmp_path / "codes.npz") as writer:
            writer.append(some_codes()[0])
            raise failure

    with pytest.raises(failure):
        work()
    assert names(tmp_path) == []


def test_existing_output(tmp_path):
    path = tmp_path / "codes.npz"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"), CodesWriter(path):
        pytest.fail("work began")
    assert path.read_bytes() == b"old"
    with CodesWriter(path, force=True) as writer:
        writer.append(some_codes()[0])
    np.testing.assert_array_equal(read_codes(path).codes, some_codes())


@pytest.mark.parametrize("extension", [".safetensors", ".npz"])
def test_channels_are_rows(tmp_path, extension):
    codes = np.random.default_rng(3).integers(0, 2048, (2, 8, 20))
    with CodesWriter(tmp_path / f"stereo{extension}") as writer:
        for start in range(0, 20, 3):
            writer.append(codes[:, :, start : start + 3])
    assert writer.num_frames == 20
    np.testing.assert_array_equal(read_codes(tmp_path / f"stereo{extension}").codes, codes)


def test_writer_refuses_bad_chunks(tmp_path):
    def append(*chunks):
        with CodesWriter(tmp_path / "codes.npz") as writer:
            for chunk in chunks:
                writer.append(np.asarray(chunk))

    assert message(lambda: append([1, 2])) == "codes are int64 [2], expected integers of shape [codebooks, n]"
    assert message(lambda: append([[1.0]])) == "codes are float64 [1, 1], expected integers of shape [codebooks, n]"
    assert message(lambda: append([[1], [2]], [[1]])) == "codes have [1, 1] channels and codebooks, expected [1, 2]"
    assert message(lambda: append([[3, -1]])) == "codes reach from -1 to 3, expected 0 or more"
    assert names(tmp_path) == []


@pytest.mark.parametrize("extension", FORMATS)
def test_reading_refuses_bad_codes(tmp_path, extension):
    path = tmp_path / f"codes{extension}"
    cases = {
        "codes are float32, expected one of int64, int32, uint32, int16, uint16, int8, uint8": np.zeros(
            (1, 2, 3), "f4"
        ),
        "codes have shape [2, 3], expected [channels, codebooks, frames] with 1 to 64 channels": np.zeros((2, 3), int),
        "codes have shape [65, 3, 4], expected [channels, codebooks, frames] with 1 to 64 channels": np.zeros(
            (65, 3, 4), int
        ),
        "codes have shape [1, 8, 0], expected at least one codebook and frame": np.zeros((1, 8, 0), int),
        "code -5 at codebook 1, frame 2 is negative": np.array([[[0, 1, 2], [3, 4, -5]]]),
    }
    for text, codes in cases.items():
        save_file({"codes": codes}, path) if extension == ".safetensors" else np.savez(path, codes=codes)
        assert message(lambda: read_codes(path)) == f"{path}: {text}"
    path.unlink()
    assert message(lambda: write_codes(path, np.zeros((65, 3, 4), int))).startswith(f"{path}: codes have shape [65,")
    assert names(tmp_path) == []


def test_unknown_extension(tmp_path):
    for name, extension in (("codes.txt", ".txt"), ("codes", "(none)")):
        path = tmp_path / name
        text = f"{path} has the extension {extension}, expected .npz or .safetensors"
        assert message(lambda path=path: read_codes(path)) == text
        assert message(lambda path=path: CodesWriter(path)) == text


@pytest.mark.parametrize("extension", FORMATS)
def test_unreadable(tmp_path, extension):
    path = tmp_path / f"codes{extension}"
    assert message(lambda: read_codes(path)).startswith(f"{path} cannot be read: No such file or directory")
    path.mkdir()
    assert message(lambda: read_codes(path)).startswith(f"{path} ")
    path.rmdir()
    for content in (b"", b"hello " * 1000):
        path.write_bytes(content)
        assert "or a damaged one" in message(lambda: read_codes(path))
    write_codes(path, some_codes(), METADATA, force=True)
    whole = path.read_bytes()
    for size in (1, 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "or a damaged one" in message(lambda: read_codes(path))


def test_foreign_tensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": np.zeros(3), "b": np.zeros(3)}, path)
    assert message(lambda: read_codes(path)) == f"{path} has no tensor `codes`, only ['a', 'b']: it is no file of codes"
    path = tmp_path / "weights.npz"
    np.savez(path, a=np.zeros(3))
    assert message(lambda: read_codes(path)) == f"{path} has no array `codes`, only ['a']: it is no file of codes"
    np.savez(path, codes=np.array([[[1, None]]], dtype=object))
    assert "is not an .npz file of plain arrays" in message(lambda: read_codes(path))
    with path.open("wb") as file:
        np.save(file, some_codes())
    assert message(lambda: read_codes(path)) == f"{path} is one array, expected an .npz archive with an array `codes`"
    path = tmp_path / "bfloat16.safetensors"
    header = json.dumps({"codes": {"dtype": "BF16", "shape": [1, 1, 1], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    assert message(lambda: read_codes(path)).startswith(f"{path}")
    save_file({"codes": np.zeros((1, 2, 3))}, path)
    assert message(lambda: read_codes(path)).startswith(f"{path}: codes are float64, expected one of int64")


def test_bad_metadata(tmp_path):
    path = tmp_path / "codes.safetensors"

    def text(**metadata: str) -> str:
        save_file({"codes": some_codes()}, path, metadata)
        return message(lambda: read_codes(path))

    assert text(num_samples="many") == f"{path}: num_samples is 'many', expected a whole number"
    assert text(frame_size="0") == f"{path}: frame_size is 0, expected 1 or more"
    assert text(frame_size="1920", num_samples="5761") == (
        f"{path}: num_samples is 5761, but 3 frames hold 5760 samples"
    )
    save_file({"codes": some_codes()}, path, {"title": "someone else's", "frame_size": "1920"})
    assert read_codes(path).metadata == CodesMetadata(frame_size=1920)
    np.savez(tmp_path / "codes.npz", codes=some_codes(), sampling_rate=24000.5)
    assert "sampling_rate is 24000.5, expected a whole number" in message(lambda: read_codes(tmp_path / "codes.npz"))
