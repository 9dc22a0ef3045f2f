"""How much parity looks at: `quick` while one works, `default` for a gate, `deep` before one publishes."""

from __future__ import annotations

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

    def skipped(self) -> list[str]:
        """What is not looked at, for people."""
        left = ", ".join(str(way) for way in FRAMES_PER_CALL if way not in self.calls)
        looked_at = {
            "difficult signals, if no audio is given": self.stress,
            f"calls of {left} frames along a clip": not left,
            "old streams, different rows, every size of call, levels, states": self.situations,
            "the graphs node by node beside ones traced anew": self.structure,
            "what a listener would notice (--listen)": self.listen,
        }
        return [line for line, looked in looked_at.items() if not looked]


QUICK = Depth(4.0, stress=False, calls=("mixed",), situations=False, structure=False, listen=False)
DEFAULT = Depth(24.0, stress=True, calls=(1, 3, "mixed"), situations=True, structure=True, listen=False)
DEEP = Depth(60.0, stress=True, calls=FRAMES_PER_CALL, situations=True, structure=True, listen=True)
