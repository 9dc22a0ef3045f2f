"""How much parity looks at: `quick` while one works, `default` for a gate, `deep` before one publishes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

FRAMES_PER_CALL: tuple[int | str, ...] = (1, 2, 3, 4, 7, "mixed")


@dataclass(frozen=True)
class Depth:
    """What is looked at beside the files, the weights and one clip in one way to call.

    Attributes:
        speech_seconds: of the clip that is generated where none is given.
        stress: whether difficult generated clips follow it.
        calls: ways to call the first clip.
        situations: whether graphs are tried where no clip brings them, and their states compared.
        structure: whether the graphs are traced anew and compared node by node.
        listen: whether a listener's measures are taken, where their packages are installed.
    """

    speech_seconds: float
    stress: bool
    calls: tuple[int | str, ...]
    situations: bool
    structure: bool
    listen: bool

    def skipped(self) -> Iterator[str]:
        """What is not looked at, for people."""
        if not self.stress:
            yield "difficult signals, if no audio is given"
        if left := [str(way) for way in FRAMES_PER_CALL if way not in self.calls]:
            yield f"calls of {', '.join(left)} frames along a clip"
        if not self.situations:
            yield "old streams, different rows, every size of call, levels, states"
        if not self.structure:
            yield "the graphs node by node beside ones traced anew"
        if not self.listen:
            yield "what a listener would notice (--listen)"


QUICK = Depth(4.0, stress=False, calls=("mixed",), situations=False, structure=False, listen=False)
DEFAULT = Depth(24.0, stress=True, calls=(1, 3, "mixed"), situations=True, structure=True, listen=False)
DEEP = Depth(60.0, stress=True, calls=FRAMES_PER_CALL, situations=True, structure=True, listen=True)
