"""The benchmark's line protocol: a stand-in program driven through a real child process."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

import mimi_export
from mimi_export.bench.contenders import Contender
from mimi_export.bench.peers import PEERS, Peer, PeerSubject, Program
from mimi_export.bench.process import ContenderProcess
from mimi_export.bench.worker import Worker
from mimi_export.errors import CheckpointError, MimiExportError, MissingPackageError

PYTHONPATH = {"PYTHONPATH": str(Path(mimi_export.__file__).parent.parent)}
ROUND = {"ways": ["stream"], "age_seconds": 1.0, "batch": 1, "calls": 3}

STAND_IN = """
import sys
from mimi_export.bench.worker import serve

class StandIn:
    name, version, note, ways, frames_per_call = "stand-in", "1", "it only streams", ("stream",), 1
    def calls(self, ways, age_seconds, batch):
        return {"stream": lambda: print("noise that must not reach the protocol")}

sys.exit(serve(StandIn))
"""


def recorder(direction: str, frames_per_call: int = 1) -> tuple[PeerSubject, list]:
    """A peer that writes down what it was given, and where."""
    seen: list = []
    program = Program(
        lambda audio: seen.append(("encode", audio.shape)),
        lambda codes: seen.append(("decode", codes.shape)),
        lambda: seen.append("reset"),
        lambda data: data,
    )
    peer = Peer(lambda *_: program, "none", (), "", frames_per_call=frames_per_call)
    return PeerSubject("recorder", peer, program, direction, 4), seen


def ask(worker: Worker, **changes) -> dict:
    return worker.answer(json.dumps({**ROUND, **changes}))


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_stream_is_brought_to_its_age_once_and_then_fed_frame_by_frame():
    peer, seen = recorder("encoder")
    worker = Worker(peer)
    reply = ask(worker, age_seconds=4.0)
    assert {clock: len(times["stream"]) for clock, times in reply.items()} == {"ms": 3, "cpu_ms": 3}
    frame = ("encode", (1, 1, 1920))
    assert seen == ["reset", *(("encode", (1, 1, size * 1920)) for size in (25, 25)), *[frame] * 4]
    del seen[:]
    ask(worker, age_seconds=4.0)
    assert seen == [frame] * 4, "another round of the same situation goes on"
    del seen[:]
    ask(worker, age_seconds=0.0, calls=1)
    assert seen == ["reset", frame, frame]


def test_a_clip_is_one_call_and_has_no_age():
    peer, seen = recorder("decoder", 125)
    assert len(ask(Worker(peer), ways=["clip"], calls=1)["ms"]["clip"]) == 1
    assert seen == ["reset", *[("decode", (1, 4, 125))] * 2]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "'' is no request"),
        ("[1]", "no request"),
        (json.dumps({**ROUND, "calls": "x"}), "no request"),
        ('{"ways": ["stream"]}', "no request"),
        (json.dumps({**ROUND, "ways": ["bare"]}), "recorder runs as stream, not as bare"),
        (json.dumps({**ROUND, "ways": []}), "not as nothing"),
        (json.dumps({**ROUND, "calls": 0}), "0 calls"),
        (json.dumps({**ROUND, "age_seconds": -1}), "at -1 s"),
        (json.dumps({**ROUND, "age_seconds": float("nan")}), "at nan s"),
        (json.dumps({**ROUND, "batch": 2}), "runs one stream, got a batch of 2"),
    ],
)
def test_a_wrong_line_is_answered_by_an_error(line, words):
    peer, seen = recorder("encoder")
    reply = Worker(peer).answer(line)
    assert list(reply) == ["error"]
    assert words in reply["error"]
    assert seen == []


def test_rounds_through_a_child_process():
    with ContenderProcess("stand-in", program(STAND_IN), PYTHONPATH) as contender:
        ready = contender.ready
        assert (ready.name, list(ready.ways), ready.frames_per_call) == ("stand-in", ["stream"], 1)
        assert ready.load_seconds >= 0
        assert len(contender.measure(**ROUND)["ms"]["stream"]) == 3
        assert contender.rss_bytes > 1_000_000
        with pytest.raises(MimiExportError, match="stand-in runs as stream, not as push"):
            contender.measure(["push"], 1.0, 1, 1)
        assert len(contender.measure(**ROUND)["ms"]["stream"]) == 3, "a refusal harms nothing"


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
    dying = STAND_IN.replace('print("noise that must not reach the protocol")', "{}['table ends']")
    with ContenderProcess("stand-in", program(dying), PYTHONPATH) as contender:
        with pytest.raises(MimiExportError, match="1 while running stream at 1 s with batch 1: KeyError: 'table"):
            contender.measure(**ROUND)
        with pytest.raises(MimiExportError, match="stand-in ended with status 1"):
            contender.measure(**ROUND)


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
    peer = Contender(name, "peer", tmp_path / "none")
    wanted = pytest.raises(CheckpointError, match=f"{name} ended with status 4 while starting: there are no weights at")
    with wanted, peer.start("encoder", 1):
        pass
