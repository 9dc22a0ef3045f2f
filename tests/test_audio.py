"""Audio in and out. The reference is soundfile and soxr used at once on whole arrays."""

import resource
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from mimi_export.errors import AudioError, OutputError
from mimi_export.media.audio import FORMATS, AudioReader, AudioWriter, read_audio, resampled_length

FRAME = 1920
LENGTHS = [0, 1, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME]
SPEECH = Path(__file__).parents[2] / "shared" / "audio" / "jfk.flac"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def noise(length: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    samples = 0.2 * np.random.default_rng(seed).standard_normal((length, channels))
    return samples.clip(-1, 1).astype(np.float32)


def message(call) -> str:
    with pytest.raises(AudioError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- reading


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 8])
@pytest.mark.parametrize("extension", ["wav", "flac", "ogg"])
def test_stream_equals_whole_file(tmp_path, extension, channels, rate):
    path = tmp_path / f"in.{extension}"
    samples = noise(rate // 2 + 17, channels)
    soundfile.write(path, samples, rate)
    decoded, _ = soundfile.read(path, dtype="float32", always_2d=True)
    wanted = decoded.mean(axis=1, dtype=np.float32)
    if rate != 24000:
        wanted = soxr.resample(wanted, rate, 24000)
    with AudioReader(path, block_frames=1000) as reader:
        blocks = list(reader)
        assert (reader.info.sampling_rate, reader.info.channels) == (rate, channels)
        assert reader.info.frames == len(samples)
        assert reader.info.duration == len(samples) / rate
    assert all(block.dtype == np.float32 and block.ndim == 1 and block.size for block in blocks)
    # The stream makes the same sums in the same order, so not even rounding differs.
    np.testing.assert_array_equal(np.concatenate(blocks), wanted)
    np.testing.assert_array_equal(read_audio(path), wanted)
    assert len(wanted) == resampled_length(len(samples), rate, 24000)


@settings(max_examples=60, deadline=None)
@given(
    rate=st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000, 96000]) | st.integers(4000, 200_000),
    length=st.integers(1, 5000),
    block=st.integers(1, 3000),
)
def test_length_law_and_block_independence(tmp_path_factory, rate, length, block):
    path = tmp_path_factory.mktemp("audio") / "in.wav"
    samples = noise(length, seed=length)[:, 0]
    soundfile.write(path, samples, rate, subtype="FLOAT")
    wanted = resampled_length(length, rate, 24000)
    if wanted == 0:
        assert "holds no audio" in message(lambda: AudioReader(path))
        return
    with AudioReader(path, block_frames=max(block, length // 50)) as reader:
        got = np.concatenate(list(reader))
    assert len(got) == wanted
    np.testing.assert_array_equal(got, samples if rate == 24000 else soxr.resample(samples, rate, 24000))


@pytest.mark.parametrize("length", LENGTHS[1:])
def test_lengths_around_a_frame(tmp_path, length):
    soundfile.write(tmp_path / "in.wav", noise(length), 24000, subtype="FLOAT")
    with AudioReader(tmp_path / "in.wav", block_frames=FRAME) as reader:
        np.testing.assert_array_equal(np.concatenate(list(reader)), noise(length)[:, 0])


def test_resampling_keeps_a_tone(tmp_path):
    """An independent check of gain and timing: a 440 Hz tone at 44.1 kHz is the same tone at 24 kHz."""
    soundfile.write(tmp_path / "in.wav", 0.5 * np.sin(2 * np.pi * 440 * np.arange(44100) / 44100), 44100, "FLOAT")
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(24000) / 24000)
    # soxr's HQ recipe is good for 20 bits; its filter rings at both ends, which are left out
    np.testing.assert_allclose(read_audio(tmp_path / "in.wav")[500:-500], wanted[500:-500], atol=2e-6)


def test_mp3_in_blocks_equals_mp3_at_once(tmp_path):
    """soundfile's own block reading fails here: it seeks after every block, and the decoder loses its history."""
    soundfile.write(tmp_path / "in.mp3", noise(96000), 24000)
    wanted, _ = soundfile.read(tmp_path / "in.mp3", dtype="float32")
    with AudioReader(tmp_path / "in.mp3", block_frames=4801) as reader:
        # 1e-6: mpg123 rounds the last bit by the alignment of its buffers; the seeks cost 0.3
        np.testing.assert_allclose(np.concatenate(list(reader)), wanted, rtol=0, atol=1e-6)


def test_flac_of_unknown_length(tmp_path):
    path = tmp_path / "piped.flac"
    soundfile.write(path, noise(50_000), 24000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that hold the number of samples; 0 means unknown
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with AudioReader(path) as reader:
        assert reader.info.frames is None
        assert reader.info.duration is None
        assert sum(map(len, reader)) == 50_000


def test_wav_of_unknown_length(tmp_path):
    path = tmp_path / "piped.wav"
    soundfile.write(path, noise(1000), 24000)
    content = path.read_bytes()
    size = content.index(b"data") + 4
    path.write_bytes(content[:size] + b"\xff\xff\xff\xff" + content[size + 4 :])
    assert len(read_audio(path)) == 1000


def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for seconds in (10, 60):
        path = tmp_path / f"{seconds}.wav"
        soundfile.write(path, np.zeros((48000 * seconds, 2), np.float32), 48000)
        tracemalloc.start()
        with AudioReader(path) as reader:
            for _ in reader:
                pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]  # the file is 6 times longer
    assert peaks[1] < 2_000_000


@pytest.mark.skipif(not SPEECH.exists(), reason="the recording of real speech is not here")
def test_real_speech():
    samples = read_audio(SPEECH)
    info = soundfile.info(SPEECH)
    assert len(samples) == resampled_length(info.frames, info.samplerate, 24000)
    assert 0.01 < np.sqrt(np.mean(samples**2)) < 0.5


def test_not_readable(tmp_path):
    missing = tmp_path / "missing.wav"
    assert message(lambda: AudioReader(missing)) == f"{missing} cannot be read: No such file or directory"
    assert message(lambda: AudioReader(tmp_path)) == f"{tmp_path} cannot be read: Is a directory"
    text = tmp_path / "text.wav"
    text.write_text("hello " * 1000)
    assert message(lambda: AudioReader(text)) == (
        f"{text} is not an audio file that libsndfile reads: Format not recognised; convert it to .wav or .flac"
    )
    for extension in ("raw", "au", "vox", "snd", "gsm"):  # libsndfile would take these for samples without a header
        raw = tmp_path / f"text.{extension}"
        raw.write_text("hello " * 1000)
        assert message(lambda path=raw: AudioReader(path)).startswith(f"{raw} is not an audio file")


def test_empty(tmp_path):
    (tmp_path / "zero.wav").touch()
    assert "is not an audio file" in message(lambda: AudioReader(tmp_path / "zero.wav"))
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, noise(0), 24000)
    assert message(lambda: AudioReader(empty)) == f"{empty} holds no audio: 0 sample(s) at 24000 Hz"
    short = tmp_path / "short.wav"
    soundfile.write(short, noise(1), 96000)
    assert message(lambda: AudioReader(short)) == f"{short} holds no audio: 1 sample(s) at 96000 Hz"


@pytest.mark.parametrize("extension", ["wav", "flac", "aiff", "caf", "mp3"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_cut_off(tmp_path, extension, part):
    """Not for .ogg and .w64: libsndfile reads what is there of these and does not say that more was meant."""
    path = tmp_path / f"in.{extension}"
    soundfile.write(path, noise(96_000), 24000)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    text = message(lambda: read_audio(path))
    assert any(words in text for words in ("cut off", "not an audio file")), text


def test_cut_off_texts(tmp_path):
    path = tmp_path / "in.wav"
    soundfile.write(path, noise(1000), 24000)
    path.write_bytes(path.read_bytes()[:-500])
    assert message(lambda: AudioReader(path)) == (
        f"{path} is cut off: its header declares 2000 bytes of audio, the file has 1500; copy it again"
    )


@pytest.mark.parametrize(("value", "word"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_not_finite(tmp_path, value, word):
    path = tmp_path / "in.wav"
    samples = noise(48000, 2)
    samples[36000, 1] = value
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    assert message(lambda: read_audio(path)) == (
        f"{path}: the sample at 2.250 s (number 36000) is {word}, expected a finite number; repair the audio first"
    )


def test_second_pass_is_refused(tmp_path):
    soundfile.write(tmp_path / "in.wav", noise(100), 24000)
    with AudioReader(tmp_path / "in.wav") as reader:
        list(reader)
        assert "open it again to read it a second time" in message(lambda: list(reader))


# --- writing


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("extension", ["wav", "flac", "ogg"])
def test_written_in_pieces_reads_back(tmp_path, extension, length):
    path = tmp_path / f"out.{extension}"
    samples = noise(length)[:, 0]
    with AudioWriter(path, 24000) as writer:
        for start in range(0, length, 777):
            writer.write(samples[start : start + 777])
        writer.write(samples[:0])
        assert not path.exists()
    assert writer.samples == length
    assert writer.clipped == 0
    if length == 0 and extension == "flac":
        return  # libsndfile writes a FLAC file without samples, but does not read one
    got, rate = soundfile.read(path, dtype="float32")
    assert (len(got), rate) == (length, 24000)
    if extension != "ogg":  # Vorbis is lossy
        np.testing.assert_allclose(got, samples, rtol=0, atol=0.5 / 32768)  # half a step of 16 bits


@pytest.mark.parametrize("extension", sorted(FORMATS))
def test_every_format_is_written_and_read(tmp_path, extension):
    path = tmp_path / f"out{extension.upper()}"
    with AudioWriter(path, 24000) as writer:
        writer.write(noise(200_000)[:, 0])  # more than one block; a long one crashes libvorbis
    assert len(read_audio(path)) == 200_000


def test_clipping_is_counted(tmp_path):
    samples = np.array([0, 1, -1, 1.5, -1.0001, 0.5], np.float32)
    with AudioWriter(tmp_path / "out.wav") as writer:
        writer.write(samples)
        writer.write(samples)
    assert writer.clipped == 4
    got, _ = soundfile.read(tmp_path / "out.wav", dtype="int16")
    assert got[:6].tolist() == [0, 32767, -32768, 32767, -32768, 16384]
    with AudioWriter(tmp_path / "float.wav", subtype="float") as writer:
        writer.write(samples)
    assert writer.clipped == 0
    np.testing.assert_array_equal(soundfile.read(tmp_path / "float.wav", dtype="float32")[0], samples)


def test_equal_samples_give_equal_bytes(tmp_path):
    for name in ("a.wav", "b.wav"):
        with AudioWriter(tmp_path / name) as writer:
            writer.write(noise(5000)[:, 0])
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_refused_outputs(tmp_path):
    possible = ".aiff, .caf, .flac, .mp3, .ogg, .opus, .w64, .wav"
    path = tmp_path / "out.xyz"
    assert message(lambda: AudioWriter(path)) == f"{path} has the extension .xyz, expected one of {possible}"
    path = tmp_path / "out"
    assert message(lambda: AudioWriter(path)) == f"{path} has the extension (none), expected one of {possible}"
    path = tmp_path / "out.flac"
    assert message(lambda: AudioWriter(path, subtype="float")) == (
        f"{path}: FLAC cannot hold the encoding FLOAT, expected one of PCM_16, PCM_24, PCM_S8"
    )

    def open_at_odd_rate():
        with AudioWriter(tmp_path / "out.opus", 22050):
            pass

    assert message(open_at_odd_rate).startswith(f"{tmp_path / 'out.opus'} cannot hold OGG OPUS at 22050 Hz")
    assert names(tmp_path) == []


def test_refused_blocks(tmp_path):
    path = tmp_path / "out.wav"

    def write(block):
        with AudioWriter(path) as writer:
            writer.write(np.zeros(12000, np.float32))
            writer.write(block)

    assert message(lambda: write(np.zeros((2, 3), np.float32))) == (
        "audio to write is float32 [2, 3], expected float32 [1, samples]"
    )
    assert message(lambda: write(np.zeros(3))) == "audio to write is float64 [3], expected float32 [1, samples]"
    bad = np.zeros(100, np.float32)
    bad[24] = np.nan
    assert message(lambda: write(bad)) == (
        f"{path}: the sample at 0.501 s (number 12024) is nan, expected a finite number; repair the audio first"
    )
    assert names(tmp_path) == []
    assert "is not open for writing" in message(lambda: AudioWriter(path).write(bad))


def test_existing_output(tmp_path):
    path = tmp_path / "out.wav"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"), AudioWriter(path):
        pytest.fail("work began")
    assert path.read_bytes() == b"old"
    with AudioWriter(path, force=True) as writer:
        writer.write(np.zeros(10, np.float32))
    assert soundfile.info(path).frames == 10


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_interrupted_writing_leaves_nothing(tmp_path, failure):
    def work():
        with AudioWriter(tmp_path / "out.wav") as writer:
            writer.write(np.zeros(10_000, np.float32))
            raise failure

    with pytest.raises(failure):
        work()
    assert names(tmp_path) == []


@pytest.fixture
def small_files():
    """The system refuses to let a file grow over 100 kB: libsndfile sees what it sees on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("extension", sorted(FORMATS))
def test_full_disk(tmp_path, small_files, extension):
    path = tmp_path / f"out{extension}"

    def work():
        with AudioWriter(path) as writer:
            for seed in range(100):
                writer.write(noise(48000, seed=seed)[:, 0])

    with pytest.raises(OutputError) as caught:
        work()
    assert str(caught.value) == f"cannot write {path}: System error; is the disk full?"
    assert names(tmp_path) == []
