"""The benchmark's line protocol: a stand-in program driven through a real child process."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

import mimi_export
from mimi_export.bench.peers import PEERS
from mimi_export.bench.process import ContenderProcess
from mimi_export.bench.worker import Worker
from mimi_export.errors import CheckpointError, MimiExportError, MissingPackageError

PYTHONPATH = {"PYTHONPATH": str(Path(mimi_export.__file__).parent.parent)}

STAND_IN = """
import sys
from mimi_export.bench.worker import claim_stdout, serve

class StandIn:
    name, version, note = "stand-in", "1", "it only streams"
    commands, streaming = ("encode", "seek"), True
    def prepare_audio(self, audio): return audio
    def prepare_codes(self, codes): return codes
    def encode(self, audio): print("noise that must not reach the protocol")
    def reset(self): pass

replies = claim_stdout()
serve(StandIn(), 8, {"threads": 1, "import_seconds": 0.0, "load_seconds": 0.5}, sys.stdin, replies)
"""


class Recorder:
    """A peer that writes down what it was given."""

    name, version, note = "recorder", "1", "nothing to say"
    commands: tuple[str, ...] = ("encode", "decode", "seek")

    def __init__(self, streaming: bool = True) -> None:
        self.streaming = streaming
        self.calls: list = []

    def prepare_audio(self, audio):
        return audio

    def prepare_codes(self, codes):
        return codes

    def encode(self, audio):
        self.calls.append(("encode", audio.shape))

    def decode(self, codes):
        self.calls.append(("decode", codes.shape))

    def reset(self):
        self.calls.append("reset")


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_stream_is_fed_frame_by_frame_and_ages():
    peer = Recorder()
    worker = Worker(peer, 4)
    first, second = worker.answer("encode 2"), worker.answer("encode 3\n")
    assert (first["age_frames"], second["age_frames"]) == (0, 2)
    assert len(second["ms"]) == second["frames"] == 3
    assert worker.answer("decode 1")["age_frames"] == 0
    assert peer.calls == [("encode", (1, 1, 1920))] * 5 + [("decode", (1, 4, 1))]


def test_a_batch_contender_does_all_frames_in_one_call():
    peer = Recorder(streaming=False)
    worker = Worker(peer, 4)
    replies = [worker.answer("decode 300"), worker.answer("decode 7")]
    assert [len(reply["ms"]) for reply in replies] == [1, 1]
    assert [reply["age_frames"] for reply in replies] == [0, 0]
    assert peer.calls == [("decode", (1, 4, 300)), ("decode", (1, 4, 7))]


def test_seek_brings_both_streams_to_the_age_and_begins_anew_to_go_back():
    peer = Recorder()
    worker = Worker(peer, 4)
    worker.answer("encode 5")
    assert worker.answer("seek 4")["age_frames"] == 50
    assert peer.calls[5:] == [("encode", (1, 1, size * 1920)) for size in (25, 20)] + [("decode", (1, 4, 25))] * 2
    assert worker.answer("encode 1")["age_frames"] == 50
    del peer.calls[:]
    assert worker.answer("seek 0")["age_frames"] == 0
    assert peer.calls == ["reset"]
    assert worker.answer("encode 1")["age_frames"] == 0


@pytest.mark.parametrize("line", ["encode", "encode x", "encode 0", "encode -1", "decode 1.5", "seek -1", "jump", ""])
def test_a_wrong_line_is_answered_by_an_error(line):
    peer = Recorder()
    assert list(Worker(peer, 4).answer(line)) == ["error"]
    assert peer.calls == []


def test_rounds_through_a_child_process():
    with ContenderProcess("stand-in", program(STAND_IN), PYTHONPATH) as contender:
        assert (contender.ready.name, contender.ready.streaming, contender.ready.load_seconds) == (
            "stand-in",
            True,
            0.5,
        )
        contender.seek(1.0)
        measured = contender.encode(3)
        assert (measured.frames, measured.age_frames, len(measured.milliseconds)) == (3, 12, 3)
        assert measured.milliseconds_per_frame == pytest.approx(sum(measured.milliseconds) / 3)
        assert measured.rss_bytes > 1_000_000
        with pytest.raises(MimiExportError, match="stand-in cannot decode: it only streams"):
            contender.decode(1)
        assert contender.encode(1).age_frames == 15  # a refusal harms nothing
    contender.close()
    with pytest.raises(MimiExportError, match="stand-in has been closed"):
        contender.encode(1)


@pytest.mark.parametrize(
    "text, error, message",
    [
        (
            "raise ValueError('bad luck')",
            MimiExportError,
            "it ended with status 1 while starting: ValueError: bad luck",
        ),
        ("import sys; sys.exit('not installed here')", MimiExportError, "status 1 while starting: not installed here"),
        ("import sys; sys.stderr.write('no moshi'); sys.exit(9)", MissingPackageError, "starting: no moshi"),
        ("import sys; sys.stderr.write('no weights'); sys.exit(4)", CheckpointError, "starting: no weights"),
        ("", MimiExportError, "it ended with status 0 while starting: it wrote nothing"),
        ("print('hello', flush=True)", MimiExportError, "it wrote 'hello\\\\n' while starting, expected a JSON line"),
    ],
)
def test_a_failing_program_gives_one_clear_line(text, error, message):
    with pytest.raises(error, match=message) as caught:
        ContenderProcess("it", program(text))
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


def test_a_program_that_dies_in_a_round_is_named_with_its_reason():
    dying = STAND_IN.replace('print("noise that must not reach the protocol")', 'raise RuntimeError("table ends")')
    with ContenderProcess("stand-in", program(dying), PYTHONPATH) as contender:
        with pytest.raises(MimiExportError, match="stand-in ended with status 1 while answering 'encode 1': Runtime"):
            contender.encode(1)
        with pytest.raises(MimiExportError, match="stand-in ended with status 1"):
            contender.encode(1)


@pytest.mark.parametrize(("before", "wanted"), [
    (None, "glibc.malloc.hugetlb=1"),
    ("glibc.malloc.check=1", "glibc.malloc.check=1:glibc.malloc.hugetlb=1"),
])  # fmt: skip
def test_huge_pages_are_asked_for_in_the_environment(monkeypatch, before, wanted):
    text = STAND_IN.replace('"1"', "__import__('os').environ.get('GLIBC_TUNABLES', 'none')")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if before is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", before)
    with ContenderProcess("stand-in", program(text), PYTHONPATH) as contender:
        assert contender.ready.version == (before or "none")
    with ContenderProcess("stand-in", program(text), PYTHONPATH, huge_pages=True) as contender:
        assert contender.ready.version == wanted


def test_a_silent_program_is_stopped():
    began = time.monotonic()
    with pytest.raises(MimiExportError, match=r"it gave no answer in 0\.5 s while starting; stopped it"):
        ContenderProcess("it", program("import time; time.sleep(60)"), ready_seconds=0.5)
    assert time.monotonic() - began < 20


def test_a_program_that_cannot_be_started(tmp_path):
    with pytest.raises(MimiExportError, match=r"cannot start .*nothing: No such file or directory"):
        ContenderProcess("it", [str(tmp_path / "nothing")])


@pytest.mark.parametrize("name", sorted(PEERS))
def test_a_peer_without_its_package_or_weights_says_so(name, tmp_path):
    with pytest.raises(CheckpointError, match=f"{name} ended with status 4 while starting: there are no weights at"):
        ContenderProcess.peer(name, tmp_path / "none")
    assert PEERS[name].name == name
