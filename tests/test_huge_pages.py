"""Huge pages for what is allocated while a graph loads."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from mimi_export.errors import ConfigError
from mimi_export.runtime import huge_pages as module
from mimi_export.runtime import load

MEBIBYTE = 1 << 20


@pytest.fixture
def supported():
    try:
        module._check()
    except ConfigError as error:
        pytest.skip(str(error))


def huge_bytes(address: int) -> int:
    """What the kernel holds in huge pages of the mapping at an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"nothing lies at {address:#x}")


def test_only_what_was_allocated_inside_moves_and_keeps_its_content(supported):
    def filled() -> tuple[mmap.mmap, np.ndarray]:
        memory = mmap.mmap(-1, 16 * MEBIBYTE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # so that only the call under test can make huge pages
        array = np.frombuffer(memory, np.uint32)
        array[:] = np.arange(array.size)
        memory.madvise(mmap.MADV_HUGEPAGE)
        return memory, array

    memory, before = filled()
    memory.madvise(mmap.MADV_DONTFORK)  # another kind of memory is another mapping, even beside the second
    with module.huge_pages():
        _, inside = filled()
    found = huge_bytes(inside.ctypes.data + 8 * MEBIBYTE)
    if not found:
        pytest.skip("this kernel had no huge page to give")
    assert found >= 12 * MEBIBYTE
    assert huge_bytes(before.ctypes.data + 8 * MEBIBYTE) == 0
    assert np.array_equal(inside, np.arange(inside.size))
    assert np.array_equal(before, np.arange(before.size))


def test_a_codec_in_huge_pages_gives_the_same(supported, tiny_variant):
    directory = tiny_variant()
    samples = np.sin(np.arange(8 * load(directory).geometry.frame_size) / 9).astype(np.float32)
    plain, huge = (load(directory, huge_pages=wanted).encoder.stream().push(samples) for wanted in (False, True))
    np.testing.assert_array_equal(plain, huge)


@pytest.mark.parametrize(
    ("system", "release", "size", "words"),
    [
        (
            "Linux",
            "5.15.0-91-generic",
            "2097152",
            "6.1 or later, this is Linux 5.15.0-91-generic; load without",
        ),
        ("Darwin", "23.1.0", "2097152", "need Linux 6.1 or later, this is Darwin 23.1.0"),
        ("Linux", "6.1", None, "this kernel has no huge pages"),
        ("Linux", "6.18.44-x", "many", "this kernel has no huge pages"),
    ],
)
def test_systems_without_them_say_so_before_anything_loads(monkeypatch, tmp_path, system, release, size, words):
    monkeypatch.setattr(module.platform, "system", lambda: system)
    monkeypatch.setattr(module.platform, "release", lambda: release)
    monkeypatch.setattr(module, "SIZE", tmp_path / "size")
    if size is not None:
        module.SIZE.write_text(size)
    with pytest.raises(ConfigError, match=words), module.huge_pages():
        pytest.fail("ran")
