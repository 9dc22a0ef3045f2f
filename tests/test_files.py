"""Atomic outputs: complete or absent, whatever ends the work."""

import errno
import hashlib
import os
import tempfile
import time
from pathlib import Path

import pytest

from mimi_export.contract import files
from mimi_export.contract.files import atomic_directory, atomic_file, sha256
from mimi_export.errors import OutputError


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_file_appears_complete(tmp_path):
    target = tmp_path / "out.bin"
    with atomic_file(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".bin"
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["out.bin"]


def test_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    with atomic_file(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("failure", [ValueError("broken"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("force", [False, True])
def test_failure_leaves_what_was_there(tmp_path, failure, force):
    target = tmp_path / "out.bin"
    if force:
        target.write_bytes(b"old")

    def work() -> None:
        with atomic_file(target, force) as temporary:
            temporary.write_bytes(b"half")
            raise failure

    with pytest.raises(type(failure)):
        work()
    assert names(tmp_path) == (["out.bin"] if force else [])
    if force:
        assert target.read_bytes() == b"old"


def test_existing_file_needs_force(tmp_path):
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with pytest.raises(OutputError) as caught, atomic_file(target):
        pytest.fail("work began")
    assert str(caught.value) == f"{target} exists already; choose another name or replace it with --force"
    with atomic_file(target, force=True) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"


def test_file_that_appears_during_the_work_is_kept(tmp_path):
    target = tmp_path / "out.bin"
    with pytest.raises(OutputError, match="exists already"), atomic_file(target):
        target.write_bytes(b"theirs")
    assert target.read_bytes() == b"theirs"
    assert names(tmp_path) == ["out.bin"]


def test_refused_targets(tmp_path):
    def message(path: Path) -> str:
        with pytest.raises(OutputError) as caught, atomic_file(path, force=True):
            pytest.fail("work began")
        return str(caught.value)

    assert message(tmp_path) == f"{tmp_path} is a directory, expected the name of a file to write"
    absent = tmp_path / "no" / "out.wav"
    assert message(absent) == f"cannot write {absent}: there is no directory {absent.parent}; create it first"
    assert message(Path("/dev/null")) == (
        "/dev/null is a device or a pipe, expected the name of a regular file to write"
    )
    assert Path("/dev/null").is_char_device()


def test_unwritable_parent(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "no", str(self))

    monkeypatch.setattr(Path, "touch", refuse)  # real permissions do not bind root
    with pytest.raises(OutputError) as caught, atomic_file(tmp_path / "out"):
        pytest.fail("work began")
    assert str(caught.value) == f"cannot write {tmp_path / 'out'}: Permission denied"


def test_full_disk(tmp_path):
    with pytest.raises(OutputError) as caught, atomic_file(tmp_path / "out"):
        Path("/dev/full").write_bytes(b"x" * 100_000)
    assert str(caught.value) == f"cannot write {tmp_path / 'out'}: No space left on device"
    with pytest.raises(OutputError, match="No space left on device"), atomic_directory(tmp_path / "dir"):
        Path("/dev/full").write_bytes(b"x" * 100_000)
    assert names(tmp_path) == []


def test_other_errors_of_the_work_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "out"):
        (tmp_path / "input that is missing").read_bytes()
    assert names(tmp_path) == []


def test_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "out")
    with atomic_file(tmp_path / "link") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "out").read_bytes() == b"new"


def _fill(path: Path, text: str) -> None:
    (path / "manifest.json").write_text(text)


def test_directory_appears_complete_with_its_parents(tmp_path):
    target = tmp_path / "artifacts" / "streaming-8cb"
    with atomic_directory(target) as temporary:
        _fill(temporary, "new")
        assert not target.exists()
    assert (target / "manifest.json").read_text() == "new"
    assert names(target.parent) == ["streaming-8cb"]


def test_directory_replaces_an_empty_one_and_with_force_an_old_one(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with atomic_directory(target) as temporary:
        _fill(temporary, "first")
        (temporary / "stale").touch()
    with pytest.raises(OutputError) as caught, atomic_directory(target):
        pytest.fail("work began")
    assert str(caught.value) == f"{target} exists already; choose another directory or replace it with --force"
    with atomic_directory(target, force=True) as temporary:
        _fill(temporary, "second")
        assert (target / "manifest.json").read_text() == "first"
    assert (target / "manifest.json").read_text() == "second"
    assert names(target) == ["manifest.json"]
    assert names(tmp_path) == ["out"]


def test_directory_of_a_user_is_never_deleted(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").touch()
    with pytest.raises(OutputError) as caught, atomic_directory(home, force=True):
        pytest.fail("work began")
    assert str(caught.value) == (
        f"{home} was not made by mimi-export (it has no manifest.json), so --force does not delete it"
    )
    file = home / "thesis.tex"
    with pytest.raises(OutputError) as caught, atomic_directory(file, force=True):
        pytest.fail("work began")
    assert str(caught.value) == f"{file} is a file, expected the name of a directory to write"


@pytest.mark.parametrize("failure", [ValueError("broken"), KeyboardInterrupt()])
def test_failed_directory_keeps_the_old_one(tmp_path, failure):
    target = tmp_path / "out"
    with atomic_directory(target) as temporary:
        _fill(temporary, "first")

    def work() -> None:
        with atomic_directory(target, force=True) as temporary:
            _fill(temporary, "half")
            raise failure

    with pytest.raises(type(failure)):
        work()
    assert names(tmp_path) == ["out"]
    assert (target / "manifest.json").read_text() == "first"


def test_failed_swap_puts_the_old_directory_back(tmp_path, monkeypatch):
    target = tmp_path / "out"
    with atomic_directory(target) as temporary:
        _fill(temporary, "first")
    replace = Path.replace

    def fail_for_the_new_one(self, destination):
        if destination == target and not self.name.endswith(".old"):
            raise OSError(errno.EIO, "broken", str(self))
        return replace(self, destination)

    monkeypatch.setattr(Path, "replace", fail_for_the_new_one)
    with pytest.raises(OutputError, match="Input/output error"), atomic_directory(target, force=True) as temporary:
        _fill(temporary, "second")
    assert names(tmp_path) == ["out"]
    assert (target / "manifest.json").read_text() == "first"


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 2 << 20])
def test_sha256_over_block_borders(tmp_path, size):
    content = bytes(i % 251 for i in range(size))
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


# --- remains of killed runs, and two runs at once


def remains(folder: Path, age: float) -> list[Path]:
    """What a killed run leaves for `out`, and things that are somebody's own."""
    made = [
        folder / ".out.0123abcd",
        folder / ".out.0123abcd.wav",
        folder / ".out.0123abce",
        folder / "..out.0123abcd.0123abcf",
    ]
    mine = [folder / ".out.notes", folder / ".other.0123abcd", folder / "out.0123abcd"]
    made[2].mkdir()
    (made[2] / "graph.onnx").write_text("half")
    for path in (*made[:2], made[3], *mine):
        path.write_text("x")
    for path in (*made, *mine, made[2] / "graph.onnx"):
        os.utime(path, (time.time() - age,) * 2)
    return mine


@pytest.mark.parametrize("write", [atomic_file, atomic_directory])
def test_remains_of_dead_runs_are_cleared_after_a_day(tmp_path, write):
    mine = remains(tmp_path, 25 * 3600)
    with write(tmp_path / "out"):
        pass
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "out", *mine])


def test_remains_of_today_and_what_is_still_written_to_are_kept(tmp_path):
    remains(tmp_path, 3600)
    old = tmp_path / ".out.0123abce"
    os.utime(old, (time.time() - 1e6,) * 2)  # an old directory with a new file in it
    before = set(tmp_path.iterdir())
    with atomic_file(tmp_path / "out"):
        pass
    assert set(tmp_path.iterdir()) == before | {tmp_path / "out"}


def test_an_old_directory_without_a_new_one_is_kept(tmp_path):
    """Killed between the two renames: it is all that there is."""
    old = tmp_path / ".out.0123abcd.old"
    old.mkdir()
    os.utime(old, (1, 1))
    with pytest.raises(ValueError, match="broken"), atomic_directory(tmp_path / "out"):
        raise ValueError("broken")
    assert old.exists()
    for _ in range(2):
        with atomic_directory(tmp_path / "out", force=True, marker="x") as directory:
            (directory / "x").touch()
    assert not old.exists()


def test_scratch_directories_of_dead_runs_are_cleared(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, age in (("mimi-hub-old", 1e6), ("mimi-hub-new", 0), ("mimi-other-old", 1e6)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with files.scratch_directory("hub") as folder:
        assert Path(folder).parent == tmp_path
    assert names(tmp_path) == ["mimi-hub-new", "mimi-other-old"]


def test_two_runs_to_one_directory(tmp_path):
    """The first to finish stays; with `force` the last does. Either is whole, and nothing else is left."""
    for force, wanted in ((False, "first"), (True, "second")):
        target = tmp_path / f"out{force}"

        def second(target=target, force=force):
            with atomic_directory(target, force, "name") as directory:
                (directory / "name").write_text("second")
                with atomic_directory(target, force, "name") as other:
                    (other / "name").write_text("first")

        if force:
            second()
        else:
            with pytest.raises(OutputError, match="exists already"):
                second()
        assert (target / "name").read_text() == wanted
    assert len(list(tmp_path.iterdir())) == 2


def test_a_directory_that_appears_at_the_last_moment_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "refuse_taken", lambda *_: None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "name").write_text("first")
    with pytest.raises(OutputError, match="was written by another run meanwhile; that one is kept"):
        with atomic_directory(tmp_path / "out") as directory:
            (directory / "name").write_text("second")
    assert (tmp_path / "out" / "name").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1
