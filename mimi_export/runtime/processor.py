"""What the processor is called, how many cores may be used, and which instructions decide how 8 bits are multiplied."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

INFORMATION = Path("/proc/cpuinfo")
# The best first: a name and the flags that Linux must show for it.
_INSTRUCTION_SETS = {
    "amx": {"amx_int8", "amx_tile"},
    "avx512-vnni": {"avx512_vnni", "avx512vl"},
    "avx-vnni": {"avx_vnni"},
    "avx512": {"avx512f", "avx512bw"},
    "avx2": {"avx2"},
    "sse4.1": {"sse4_1"},
    "neon-i8mm": {"i8mm"},
    "neon-dotprod": {"asimddp"},
    "neon": {"asimd"},
}


def processor_name() -> str:
    """The processor's name as the system gives it."""
    return _entry("model name") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def instruction_set() -> str:
    """The best instruction set for 8-bit products that this processor has; empty where the system does not tell it."""
    found = best_instruction_set((_entry("flags") or _entry("Features")).split())
    return found or ("neon" if platform.machine() in ("arm64", "aarch64") else "")


def fingerprint() -> str:
    """What code that is made for this processor depends on: its name and everything that it can do."""
    return f"{processor_name()} {platform.machine()} {_entry('flags') or _entry('Features')}"


def best_instruction_set(flags: Iterable[str]) -> str:
    """The best instruction set that a processor's flags allow; empty for none of those known."""
    return next((name for name, needed in _INSTRUCTION_SETS.items() if needed <= set(flags)), "")


def _entry(key: str) -> str:
    """An entry of the first processor's description, empty where the system has none."""
    try:
        lines = INFORMATION.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")
