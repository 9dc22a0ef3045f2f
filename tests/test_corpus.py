"""A corpus as Parquet: codes of each file alone, whatever the engine, what was killed and what was poisoned."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from mimi_export.contract.directory import load_artifact
from mimi_export.contract.precision import Int8Options
from mimi_export.contract.spec import Shape
from mimi_export.corpus import run as corpus
from mimi_export.corpus.encoder import CorpusEncoder, Settings
from mimi_export.corpus.inputs import Utterance, find
from mimi_export.corpus.plan import make_plan
from mimi_export.corpus.rows import CorpusInfo, matrix, to_bytes
from mimi_export.corpus.run import Left
from mimi_export.corpus.store import Store
from mimi_export.errors import ConfigError, OutputError
from mimi_export.export.convert import convert
from mimi_export.media.audio import read_audio
from mimi_export.media.signals import speech_like
from mimi_export.runtime import load
from mimi_export.runtime.clips import clips_at_once


@pytest.fixture(scope="module")
def ring(tiny_variant):
    return tiny_variant(8, "ring", 1)


@pytest.fixture
def here(monkeypatch):
    """The worker in this process: quicker than starting others, and faults can be put in."""

    def run_here(settings, info, waiting, workers):
        encoder = CorpusEncoder(settings)
        return map(to_bytes, encoder.run(lambda _wait: next(waiting, None)))

    monkeypatch.setattr(corpus, "run_local", run_here)


def sound(seconds: float, seed: int = 0, rate: int = 24000) -> np.ndarray:
    return speech_like(seconds, seed=seed)[: round(seconds * rate)].astype(np.float32)


def alone(variant, audio: np.ndarray) -> np.ndarray:
    stream = load(variant).encoder.stream()
    return np.concatenate([stream.push(audio), stream.flush().codes], axis=2)[0]


def table(folder):
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("codes-*.parquet")))


def content(folder) -> dict[str, bytes]:
    """All that a user finds, byte for byte."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Good ones of many lengths, rates and channels, and every kind of poison."""
    folder = tmp_path_factory.mktemp("corpus") / "recordings"
    (folder / "deep").mkdir(parents=True)
    for index, seconds in enumerate([0.01, 0.08, 0.5, 1.0, 2.3, 0.7, 3.1, 0.16]):
        audio, rate = sound(seconds, index), (24000, 8000, 44100)[index % 3]
        audio = np.stack([audio, -audio[::-1]], 1) if index % 4 == 1 else audio
        soundfile.write(folder / "deep" / f"{index}.{('wav', 'flac')[index % 2]}", audio, rate)
    soundfile.write(folder / "nan.wav", np.array([0.1, np.nan] * 3000, np.float32), 24000, "FLOAT")
    soundfile.write(folder / "no-samples.wav", np.zeros(0), 24000)
    (folder / "no-bytes.wav").write_bytes(b"")
    whole = (folder / "deep" / "4.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "text.flac").write_text("no sound")
    (folder / "gone.wav").symlink_to("nowhere")
    return folder


POISON = {"nan.wav", "no-samples.wav", "no-bytes.wav", "cut.wav", "text.flac", "gone.wav"}


@pytest.fixture(scope="module")
def peaceful(ring, recordings, tmp_path_factory):
    """The output of a run that nothing disturbed, by two processes."""
    output = tmp_path_factory.mktemp("peace") / "codes"
    summary, errors = corpus.tokenize([str(recordings)], output, Settings(str(ring), rows=3), workers=2)
    assert (summary.done, summary.failed) == (14, 6)
    assert {Path(error["path"]).name for error in errors} == POISON
    return output


def test_codes_are_those_of_each_file_alone(peaceful, ring, recordings):
    """Eight files of different lengths in rows that are reset as they end, in two processes."""
    rows = table(peaceful)
    assert rows["id"].to_pylist() == [f"recordings/deep/{i}.{('wav', 'flac')[i % 2]}" for i in range(8)]
    for index in range(rows.num_rows):
        row = {name: rows[name][index].as_py() for name in rows.schema.names if name != "codes"}
        audio = read_audio(row["path"])
        codes = matrix(rows["codes"][index])
        np.testing.assert_array_equal(codes, alone(ring, audio))
        assert codes.dtype == np.uint16
        assert not codes.flags.owndata
        assert row["samples"] == len(audio) == (row["frames"] - 1) * 1920 + row["last_frame_samples"]
        assert row["frames"] == codes.shape[1]
        assert 1 <= row["last_frame_samples"] <= 1920
        assert row["duration"] == len(audio) / 24000


def test_many_frames_in_a_call(here, tiny_variant, recordings, tmp_path, cli):
    """Of a file's last call only frames that hold real sound count."""
    ring = tiny_variant(8, "ring", 8)
    code, _, err = cli("tokenize", recordings / "deep", "--output", tmp_path / "codes", "--variant", ring)
    assert (code, "--frames-per-call 8" in err) == (0, False)
    rows = table(tmp_path / "codes")
    assert rows.num_rows == 8
    for path, codes in zip(rows["path"].to_pylist(), rows["codes"], strict=True):
        np.testing.assert_array_equal(matrix(codes), alone(ring, read_audio(path)))


def test_what_is_left_is_estimated_by_ending(tmp_path, ring):
    info = CorpusInfo.of(load_artifact(ring), 8, False)
    sizes = {"a.flac": 300, "b.FLAC": 600, "c.ogg": 100, "d.ogg": 200, "e.x/none": 0}
    found = [Utterance(name, name, size=size) for name, size in sizes.items()]
    found.append(Utterance("f.flac", "f.flac", size=1, duration=50.0))
    left = Left(make_plan(tmp_path, info, iter(found)), np.array([0, 1, 2, 3, 5]))
    assert left.seconds == 50  # of the others nothing is known yet
    left.done(0, 3.0)
    assert left.seconds == pytest.approx(50 + 6 + 3)
    left.done(2, 10.0)
    assert left.seconds == pytest.approx(50 + 6 + 20)
    for index in (1, 3, 5):
        left.done(index, 1.0)
    assert left.seconds == 0


def test_clips_at_once():
    for shape, rows in ((Shape(8, "ring", 1), 16), (Shape(8, "ring", 8), 2), (Shape(8, "ring", 40), 1), (Shape(8), 1)):
        assert clips_at_once(shape) == rows
    assert clips_at_once(Shape(8, "ring", 8), 5) == 5
    assert clips_at_once(Shape(8, "ring", 8, rows=3), 5) == 3


def test_integers_do_not_depend_on_neighbours_either(here, ring, recordings, tmp_path):
    int8 = tmp_path / "int8"
    convert(ring, int8, Int8Options())
    corpus.tokenize([str(recordings / "deep")], tmp_path / "codes", Settings(str(int8), rows=3), workers=1)
    rows = table(tmp_path / "codes")
    for path, codes in zip(rows["path"].to_pylist(), rows["codes"], strict=True):
        np.testing.assert_array_equal(matrix(codes), alone(int8, read_audio(path)))


def test_the_schema_says_what_made_it(peaceful, ring):
    artifact = load_artifact(ring)
    for path in [*peaceful.glob("codes-*"), peaceful / "errors.parquet"]:
        info = CorpusInfo.read(pq.read_schema(path), path)
        assert info.variant == artifact.manifest.name
        assert info.files == {name: entry.sha256 for name, entry in artifact.manifest.files.items()}
        assert (info.num_codebooks, info.sampling_rate, info.frame_size) == (8, 24000, 1920)


def test_a_second_run_does_nothing(peaceful, ring, recordings, cli):
    before, times = content(peaceful), {path: path.stat().st_mtime_ns for path in peaceful.iterdir()}
    code, out, err = cli("tokenize", recordings, "--output", peaceful, "--variant", ring, "--rows", 3, "--json")
    assert code == 6, err
    assert "--frames-per-call 8 makes a variant that is faster here" in err
    found = json.loads(out)
    assert (found["done"], found["before"], found["failed"]) == (0, 14, 6)
    assert content(peaceful) == before
    assert times.items() >= {path: path.stat().st_mtime_ns for path in peaceful.iterdir() if path.suffix}.items()


def test_cut_off_at_any_byte_the_rest_is_done_and_nothing_else(here, peaceful, ring, recordings, tmp_path, monkeypatch):
    """A journal that ends anywhere, as a kill or a crash of the machine leaves it, or holds garbage."""
    settings, output = Settings(str(ring), rows=3), tmp_path / "codes"
    artifact = load_artifact(ring)
    info = CorpusInfo.of(artifact, None, False)
    output.mkdir()
    plan = make_plan(output, info, find([str(recordings)]))
    rows = list(map(to_bytes, CorpusEncoder(settings).run(_taken(plan))))
    store = Store(output, plan, info)
    ends = [0]
    for row in rows[:-1]:
        store.add(row)
        ends.append((output / ".rows-00000").stat().st_size)
    journal = (output / ".rows-00000").read_bytes()
    rng = np.random.default_rng(0)
    for cut in [0, 5, *rng.integers(0, len(journal), 6)]:
        for path in output.iterdir():
            if path.name != "_plan.parquet":
                path.unlink()
        (output / ".rows-00000").write_bytes(journal[:cut] + bytes(7) * (cut % 2))
        summary, _ = corpus.tokenize([str(recordings)], output, settings)
        assert summary.before == sum(end <= cut for end in ends) - 1  # whole rows of the journal are not done again
        assert summary.done == 14 - summary.before
        assert content(output) == content(peaceful)


def _taken(plan):
    waiting = plan.utterances(np.arange(plan.table.num_rows))
    return lambda _wait: next(waiting, None)


def test_a_worker_that_dies_loses_nothing(ring, recordings, peaceful, tmp_path, monkeypatch):
    """One process is killed as soon as it has sent a row; another one takes over what it was at."""
    import multiprocessing

    from mimi_export.corpus import local

    killed = []

    def run_and_kill(*arguments):
        for data in local.run_local(*arguments):
            yield data
            if not killed:
                killed.append(multiprocessing.active_children()[0])
                os.kill(killed[0].pid, signal.SIGKILL)

    monkeypatch.setattr(corpus, "run_local", run_and_kill)
    output = tmp_path / "codes"
    corpus.tokenize([str(recordings)], output, Settings(str(ring), rows=3), workers=1)
    assert killed
    assert content(output) == content(peaceful)


def test_a_full_disk_stops_nothing(here, ring, recordings, peaceful, tmp_path, monkeypatch):
    """Rows wait in memory; as soon as there is room again they are saved, and without it a line says what to do."""
    import errno

    from mimi_export.corpus import store as stores

    room = [3]  # rows until the disk is full

    class Full(io.FileIO):
        def write(self, data):
            room[0] -= 1
            if room[0] < 0:
                super().write(data[:10])
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    real_open = type(tmp_path).open

    def open_(path, mode="r", *more, **named):
        return Full(path, mode) if mode == "ab" else real_open(path, mode, *more, **named)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    output, settings = tmp_path / "codes", Settings(str(ring), rows=3)
    make_plan(output_made(output), CorpusInfo.of(load_artifact(ring), None, False), find([str(recordings)]))
    monkeypatch.setattr(type(tmp_path), "open", open_)
    monkeypatch.setattr(stores.pq, "write_table", full)
    with pytest.raises(OutputError, match="No space left on device; make room and run this again"):
        corpus.tokenize([str(recordings)], output, settings)
    monkeypatch.undo()
    summary, _ = corpus.tokenize([str(recordings)], output, settings, workers=1)
    assert (summary.before, summary.done) == (3, 11)
    assert content(output) == content(peaceful)


def output_made(path):
    path.mkdir()
    return path


def test_lists_archives_and_tables(here, ring, tmp_path):
    """The same sound by every way in; a part of it and one channel of it as if they were files of their own."""
    left, right = sound(2.0, 1), sound(2.0, 2)
    soundfile.write(tmp_path / "two.wav", np.stack([left, right], 1), 24000, "FLOAT")
    file = (tmp_path / "two.wav").read_bytes()
    lines = [
        {"path": "two.wav", "id": "whole", "text": "unknown keys are someone else's"},
        {"audio_filepath": "two.wav", "offset": 0.5, "duration": 1.0, "channel": 1},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pq.write_table(pa.Table.from_pylist([{"path": "two.wav", "channel": 0}]), tmp_path / "list.parquet")
    with tarfile.open(tmp_path / "shard.TAR", "w") as archive:
        for name, data in (("key.json", b"{}"), ("key.wav", file), ("bad.wav", b"no sound")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = [{"bytes": file, "path": "x.wav"}, {"bytes": None, "path": str(tmp_path / "two.wav")}] * 3
    sounds = pa.table({"text": ["t"] * 6, "audio": pa.array(values, kind)})
    pq.write_table(sounds, tmp_path / "sounds.parquet", row_group_size=2)
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "state.json").write_text("{}")
    with pa.ipc.new_stream(saved / "data-00000-of-00001.arrow", sounds.schema) as writer:
        writer.write_table(sounds, max_chunksize=2)
    inputs = [*(str(tmp_path / name) for name in ("list.jsonl", "list.parquet", "shard.TAR", "saved")),
              str(tmp_path / "*ds.parquet")]  # fmt: skip
    _, errors = corpus.tokenize(inputs, tmp_path / "codes", Settings(str(ring)))
    place = f"{tmp_path}/shard.TAR/bad.wav"
    assert [(error["path"], error["error"].startswith(f"{place} is not")) for error in errors] == [(place, True)]
    mixed = alone(ring, ((left + right) / 2).astype(np.float32))
    wanted = {
        "whole": mixed,
        "two.wav@0.5+1#1": alone(ring, right[12000:36000]),
        "two.wav#0": alone(ring, left),
        "shard.TAR/key.wav": mixed,
        **{f"saved/data-00000-of-00001.arrow/{row}": mixed for row in range(6)},
        **{f"sounds.parquet/{row}": mixed for row in range(6)},
    }
    rows = table(tmp_path / "codes")
    assert set(rows["id"].to_pylist()) == set(wanted)
    for name, cell in zip(rows["id"].to_pylist(), rows["codes"], strict=True):
        np.testing.assert_array_equal(matrix(cell), wanted[name], err_msg=name)


def test_latents_and_windows(here, tiny_variant, tmp_path):
    """A variant that gives both, and one of the window layout, which takes one file after the other."""
    audio = sound(1.03)
    soundfile.write(tmp_path / "a.wav", audio, 24000, "FLOAT")
    both = tiny_variant(8, "ring", 2, head="both")
    corpus.tokenize([str(tmp_path / "a.wav")], tmp_path / "both", Settings(str(both), latents=True))
    stream = load(both).encoder.latents()
    wanted = np.concatenate([stream.push(audio), stream.flush().latents], axis=1)[0]
    row = table(tmp_path / "both")
    np.testing.assert_array_equal(matrix(row["latents"][0]), wanted)
    np.testing.assert_array_equal(matrix(row["codes"][0]), alone(both, audio))
    window = tiny_variant(8)
    corpus.tokenize([str(tmp_path / "a.wav")], tmp_path / "window", Settings(str(window), num_codebooks=3))
    np.testing.assert_array_equal(matrix(table(tmp_path / "window")["codes"][0]), alone(window, audio)[:3])
    with pytest.raises(ConfigError, match="gives no latents; export one with --head both"):
        corpus.tokenize([str(tmp_path / "a.wav")], tmp_path / "none", Settings(str(window), latents=True))


def test_new_inputs_come_behind(here, ring, tmp_path):
    folder = output_made(tmp_path / "in")
    soundfile.write(folder / "b.wav", sound(0.5), 24000)
    corpus.tokenize([str(folder)], tmp_path / "codes", Settings(str(ring)))
    first = content(tmp_path / "codes")["codes-00000.parquet"]
    soundfile.write(folder / "a.wav", sound(0.4), 24000)
    summary, _ = corpus.tokenize([str(folder)], tmp_path / "codes", Settings(str(ring)))
    assert (summary.before, summary.done) == (1, 1)
    assert content(tmp_path / "codes")["codes-00000.parquet"] == first
    assert table(tmp_path / "codes")["id"].to_pylist() == ["in/b.wav", "in/a.wav"]


def test_shards_have_an_end(here, ring, tmp_path, monkeypatch):
    from mimi_export.corpus import plan

    monkeypatch.setattr(plan, "SHARD_ROWS", 3)
    lines = [{"path": "a.wav", "id": str(number), "duration": 0.08 + 0.08 * number} for number in range(8)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    soundfile.write(tmp_path / "a.wav", sound(1.0), 24000)
    corpus.tokenize([str(tmp_path / "list.jsonl")], tmp_path / "codes", Settings(str(ring)))
    shards = [pq.read_table(path)["id"].to_pylist() for path in sorted((tmp_path / "codes").glob("codes-*"))]
    assert shards == [["0", "1", "2"], ["3", "4", "5"], ["6", "7"]]
    assert table(tmp_path / "codes")["frames"].to_pylist() == list(range(1, 9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "list.jsonl line 1 is no JSON object"),
        ('{"offset": 1}', "list.jsonl line 1: path is missing"),
        ('{"path": 3}', "list.jsonl line 1: path is 3, expected a text"),
        ('{"path": "a", "offset": -1}', "list.jsonl line 1: offset, duration and channel are no place in a recording"),
        ('{"path": "a"}\n{"path": "a"}', "two inputs have the id a; give ids"),
        ("", "list.jsonl holds no audio"),
    ],
)
def test_damaged_lists_are_refused(ring, tmp_path, cli, text, message):
    (tmp_path / "list.jsonl").write_text(text)
    code, _, err = cli("tokenize", tmp_path / "list.jsonl", "--output", tmp_path / "codes", "--variant", ring)
    assert code == 3
    assert message in err


def test_wrong_use_is_told_in_a_line(ring, tiny_variant, recordings, peaceful, tmp_path, cli):
    def line(*arguments):
        code, _, err = cli("tokenize", *arguments)
        return code, err.splitlines()[-1]

    (tmp_path / "x.tar").write_bytes(b"no archive" * 100)
    (tmp_path / "x.tar.gz").write_bytes(b"")
    (tmp_path / "x.parquet").write_bytes(b"no table")
    common = ("--output", tmp_path / "codes", "--variant", ring)
    assert line("nowhere/", *common) == (3, "error: nowhere cannot be read: No such file or directory")
    assert line("no*thing", *common)[1].startswith("error: no*thing holds no audio")
    assert "is no tar archive, or a damaged one" in line(tmp_path / "x.tar", *common)[1]
    assert "is compressed" in line(tmp_path / "x.tar.gz", *common)[1]
    assert "is no table of its kind, or a damaged one" in line(tmp_path / "x.parquet", *common)[1]
    other = ("--output", peaceful, "--variant", tiny_variant(8))
    assert line(recordings, *other)[0] == 3
    assert "choose another directory" in line(recordings, *other)[1]
    assert line(recordings, "--output", tmp_path / "x.tar", "--variant", ring)[0] == 8


def test_two_runs_at_once_are_refused(ring, recordings, peaceful, cli):
    from mimi_export.corpus.store import locked

    with locked(peaceful):
        code, _, err = cli("tokenize", recordings, "--output", peaceful, "--variant", ring)
    assert code == 8
    assert "another run writes to" in err


def test_without_pyarrow_a_line_says_what_to_install(ring, recordings, tmp_path, cli, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("mimi_export.corpus")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = cli("tokenize", recordings, "--output", tmp_path / "codes", "--variant", ring)
    assert (code, err.splitlines()[-1]) == (
        9,
        "error: tokenize needs the corpus extra (pyarrow is not installed): pip install 'mimi-export[corpus]'",
    )


@pytest.fixture
def corpus_of_one(here, ring, tmp_path):
    soundfile.write(tmp_path / "a.b.wav", sound(1.03), 24000, "FLOAT")
    (tmp_path / "gone.jsonl").write_text('{"path": "gone.wav"}')
    inputs = [str(tmp_path / "a.b.wav"), str(tmp_path / "gone.jsonl")]
    corpus.tokenize(inputs, tmp_path / "codes", Settings(str(ring)))
    return tmp_path / "codes"


def test_listen_to_a_row(corpus_of_one, ring, tmp_path, cli):
    code, _, err = cli("decode", corpus_of_one, tmp_path / "row.wav", "--id", "a.b.wav", "--variant", ring)
    assert code == 0, err
    whole = load(ring).decoder.stream().push(alone(ring, sound(1.03)))[0]
    np.testing.assert_allclose(read_audio(tmp_path / "row.wav"), whole[: round(1.03 * 24000)], atol=1e-4)
    code, _, err = cli("decode", corpus_of_one, tmp_path / "no.wav", "--id", "b", "--variant", ring)
    assert (code, err.splitlines()[-1]) == (7, f"error: {corpus_of_one} has no row with the id 'b'")
    code, _, err = cli("decode", corpus_of_one, tmp_path / "no.wav", "--id", "gone.wav", "--variant", ring)
    assert "error: gone.wav could not be encoded" in err
    code, _, err = cli("decode", tmp_path, tmp_path / "no.wav", "--id", "b", "--variant", ring)
    assert "holds no corpus" in err


def test_the_reader_of_the_readme(corpus_of_one, ring):
    import re

    from conftest import REPOSITORY

    blocks = re.findall(r"(?s)```python\n(.*?)```", (REPOSITORY / "README.md").read_text("utf-8"))
    (reader,) = (block for block in blocks if "class Codes" in block)
    names = {}
    exec(reader, names)  # noqa: S102 - the test is that it runs
    ((name, codes),) = names["Codes"](sorted(corpus_of_one.glob("codes-*.parquet")))
    assert name == "a.b.wav"
    np.testing.assert_array_equal(codes.numpy(), alone(ring, sound(1.03)))


def test_webdataset(corpus_of_one, ring, tmp_path, cli):
    code, _, err = cli("tokenize-export", corpus_of_one, tmp_path / "tars")
    assert code == 0, err
    with tarfile.open(tmp_path / "tars" / "codes-00000.tar") as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}
    assert files.keys() == {"a_b_wav.codes.npy", "a_b_wav.json"}
    np.testing.assert_array_equal(np.load(io.BytesIO(files["a_b_wav.codes.npy"])), alone(ring, sound(1.03)))
    assert json.loads(files["a_b_wav.json"])["samples"] == round(1.03 * 24000)
    assert cli("tokenize-export", corpus_of_one, tmp_path / "tars")[0] == 8
    assert cli("tokenize-export", tmp_path, tmp_path / "none")[0] == 7


def test_lhotse(corpus_of_one, ring, tmp_path, cli):
    lhotse = pytest.importorskip("lhotse")
    code, _, err = cli("tokenize-export", corpus_of_one, tmp_path / "shar", "--format", "lhotse")
    assert code == 0, err
    (cut,) = lhotse.CutSet.from_shar(in_dir=tmp_path / "shar")
    assert (cut.id, cut.duration) == ("a.b.wav", 1.03)
    np.testing.assert_array_equal(cut.load_codes(), alone(ring, sound(1.03)))


def test_datasets(corpus_of_one, ring, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = str(corpus_of_one / "codes-*.parquet")
    (row,) = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    np.testing.assert_array_equal(row["codes"], alone(ring, sound(1.03)))


def test_an_interrupt_keeps_what_is_done(here, ring, recordings, tmp_path, cli, monkeypatch):
    from mimi_export.runtime.clips import ClipEncoder

    real, done = ClipEncoder.run, []

    def interrupted(self, take):
        for clip in real(self, take):
            if len(done) == 5:
                raise KeyboardInterrupt
            done.append(clip.key)
            yield clip

    monkeypatch.setattr(ClipEncoder, "run", interrupted)
    arguments = ("tokenize", recordings, "--output", tmp_path / "codes", "--variant", ring, "--json")
    code, _, err = cli(*arguments)
    assert (code, "the same command goes on" in err) == (130, True)
    monkeypatch.setattr(ClipEncoder, "run", real)
    assert json.loads(cli(*arguments)[1])["before"] == 5
