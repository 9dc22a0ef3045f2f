"""Huge pages for the memory that loading a graph takes, which is where onnxruntime keeps weights.

A frame reads all weights once. In pages of 4 KiB the processor looks up forty thousand addresses for it, in pages of
2 MiB eighty. The kernel makes them of what is there by copying (`MADV_COLLAPSE`), which can double the time to load: it
pays for streams, not for one short file.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from mimi_export.errors import ConfigError

logger = logging.getLogger(__name__)

SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")  # bytes of a huge page
MAPS = Path("/proc/self/maps")
_MADV_COLLAPSE = 25
_KERNEL = (6, 1)


@contextlib.contextmanager
def huge_pages() -> Iterator[None]:
    """At the end, put into huge pages what was allocated inside; what the kernel has no room for stays as it is.

    Raises:
        ConfigError: this system cannot; nothing has run inside.
    """
    size = _check()
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    before = _blocks(size)
    yield
    new = sorted(_blocks(size) - before)
    made = sum(madvise(block * size, size, _MADV_COLLAPSE) == 0 for block in new)
    logger.debug("%d of %d MiB are in huge pages", made * size >> 20, len(new) * size >> 20)


def _check() -> int:
    """Bytes of a huge page, or `ConfigError`."""
    found = re.match(r"(\d+)\.(\d+)", platform.release()) if platform.system() == "Linux" else None
    if found is None or tuple(map(int, found.groups())) < _KERNEL:
        wanted = ".".join(map(str, _KERNEL))
        here = f"{platform.system()} {platform.release()}"
        raise ConfigError(f"huge pages need Linux {wanted} or later, this is {here}; load without them")
    try:
        return int(SIZE.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"this kernel has no huge pages ({SIZE}: {error}); load without them") from error


def _blocks(size: int) -> set[int]:
    """Numbers of the blocks of `size` bytes that lie whole in writable memory without a file."""
    found: set[int] = set()
    for line in MAPS.read_text("utf-8", "replace").splitlines():
        addresses, rights, _, _, inode, *_ = line.split()
        if rights.startswith("rw") and inode == "0":
            first, last = (int(address, 16) for address in addresses.split("-"))
            found.update(range(-(-first // size), last // size))
    return found
