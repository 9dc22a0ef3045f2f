"""Huge pages for the heap of a process, which is where onnxruntime and PyTorch keep weights.

A frame reads all weights once. In pages of 4 KiB the processor looks up forty thousand addresses a frame for it, in
pages of 2 MiB eighty. glibc asks the kernel for them when a process is started with `GLIBC_TUNABLES` as here; nothing
in the program needs to change. The kernel has to allow it: `madvise` or `always` in `SWITCH`.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from mimi_export.errors import ConfigError

VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def huge_page_environment() -> dict[str, str]:
    """What to add to a process's environment, beside the tunables that are set already."""
    return {VARIABLE: ":".join(filter(None, (os.environ.get(VARIABLE), TUNABLE)))}


def check_huge_pages() -> None:
    """Raise `ConfigError` where a heap cannot have huge pages."""
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split("."))) < (2, 35):
        raise ConfigError(f"huge pages need glibc 2.35 or later, this is {library or platform.system()} {version}")
    try:
        chosen = SWITCH.read_text("ascii")
    except OSError as error:
        raise ConfigError(f"this kernel has no huge pages: {SWITCH}: {error.strerror}") from error
    if "[never]" in chosen:
        raise ConfigError(f"huge pages are switched off here; as root: echo madvise > {SWITCH}")
