"""One piece of sound to encode: where it lies, and what of it is wanted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Utterance:
    """One row to be.

    Attributes:
        id: its name in the corpus, there once.
        path: the audio file, or the archive or table that holds it.
        member: the name or number inside `path`, where that is an archive or a table.
        start: byte of an archive at which its sound begins, or row of a table.
        size: bytes of sound, for an estimate of what is left; 0 where not known.
        offset: seconds that are left out at the beginning.
        duration: seconds from there; `None` takes all the rest.
        channel: one of several, counted from 0; `None` takes their mean.
    """

    id: str
    path: str
    member: str | None = None
    start: int = 0
    size: int = 0
    offset: float = 0.0
    duration: float | None = None
    channel: int | None = None

    @property
    def place(self) -> str:
        """What messages and the table call it."""
        return self.path if self.member is None else f"{self.path}/{self.member}"
