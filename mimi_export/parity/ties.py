"""Codes that differ: a wrong graph, or two codebook entries that rounding cannot tell apart.

A residual quantiser takes the entry e nearest to what the levels before left, r. Let two entries have squared
distances d and d' >= d. A graph that computes with r + δ instead of r, and each distance with an error of at most η,
can take the second one only if

    d' - d  <=  2·|δ|·|e' - e| + 2·η

That is the bound for a *tie*, evaluated in float64 from the reference's latents along the reference's codes, with

    |δ| = 10^(-110/20)·|p|             p: the projected latents. 110 dB is what the latents of an exact graph keep
    η   = 2·√D·u·(|r| + |e|)²          u = 2^-24, D products summed in float32, in the graph and in the reference

√D because rounding errors of a sum add up like a random walk. No difference that exceeds the bound is ever excused.
What a tie changes in the later levels of the same residual quantiser and frame follows from it: those levels
quantise another residual.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

LATENTS_DB = 110.0
UNIT_ROUNDOFF = 2.0**-24

EQUAL, TIE, FOLLOWS, DIFFERS = 0, 1, 2, 3  # verdict on one code


@dataclass(frozen=True)
class ResidualQuantizer:
    """One residual quantiser: projection `[D, hidden]` (or `None`) and codebooks `[size, D]` a level, in float64."""

    projection: Floats | None
    codebooks: Sequence[Floats]


def judge_codes(
    quantizers: Sequence[ResidualQuantizer],
    latents: npt.NDArray[Any],
    reference: Codes,
    codes: Codes,
    latents_db: float = LATENTS_DB,
) -> npt.NDArray[np.uint8]:
    """The verdict on each code, `EQUAL`, `TIE`, `FOLLOWS` or `DIFFERS`.

    Args:
        quantizers: in the order of their levels; each sees the whole latents (Mimi's split quantiser).
        latents: the reference's, `[hidden, frames]`.
        reference: `[K, frames]`; may end inside the last quantiser.
        codes: what the graph gave, `[K, frames]`.
        latents_db: how exactly the graph knows the projected latents.
    """
    verdict = np.where(reference == codes, EQUAL, DIFFERS).astype(np.uint8)
    for frame in np.flatnonzero(verdict.any(axis=0)):
        first = 0
        for quantizer in quantizers:
            levels = slice(first, min(first + len(quantizer.codebooks), len(reference)))
            first = levels.stop
            wrong = np.flatnonzero(verdict[levels, frame])
            if not wrong.size:
                continue
            level = int(wrong[0])
            vector = latents[:, frame].astype(np.float64)
            got = int(codes[levels.start + level, frame])
            if _is_tie(quantizer, vector, reference[levels, frame], level, got, 10 ** (-latents_db / 20)):
                later = levels.start + wrong
                verdict[later, frame] = FOLLOWS
                verdict[later[0], frame] = TIE
    return verdict


def search(quantizers: Sequence[ResidualQuantizer], latents: npt.NDArray[Any], num_codebooks: int) -> Codes:
    """The nearest entries in float64, level by level: `[hidden, frames]` to `[K, frames]`."""
    codes: list[Codes] = []
    for quantizer in quantizers:
        residual = latents.astype(np.float64)
        residual = (residual if quantizer.projection is None else quantizer.projection @ residual).T
        for book in quantizer.codebooks[: num_codebooks - len(codes)]:
            code = (residual @ book.T - 0.5 * np.square(book).sum(axis=1)).argmax(axis=1)
            residual = residual - book[code]
            codes.append(code)
    return np.stack(codes)


def _is_tie(
    quantizer: ResidualQuantizer, latents: Floats, reference: Codes, level: int, got: int, inexact: float
) -> bool:
    """Whether `got` instead of the reference's code at `level` is within the bound of this module's docstring."""
    projected = latents if quantizer.projection is None else quantizer.projection @ latents
    residual = projected.copy()
    for book, code in zip(quantizer.codebooks[:level], reference[:level], strict=True):
        residual -= book[code]
    book = quantizer.codebooks[level]
    if not 0 <= got < len(book):
        return False
    taken, other = book[reference[level]], book[got]
    gap = float(np.sum((residual - other) ** 2) - np.sum((residual - taken) ** 2))
    norm = np.linalg.norm
    shift = inexact * norm(projected)
    reach = float(norm(residual) + max(norm(taken), norm(other)))
    rounding = 2 * np.sqrt(len(residual)) * UNIT_ROUNDOFF * reach**2
    return bool(abs(gap) <= 2 * shift * norm(other - taken) + 2 * rounding)


@dataclass
class Agreement:
    """Running count of equal codes per codebook; a code that is a tie or follows from one is neither right nor wrong.

    `counts[k, v]`: codes of codebook k with verdict v.
    """

    counts: Codes = field(default_factory=lambda: np.zeros((0, 4), np.int64))

    @classmethod
    def total(cls, parts: Iterable[Agreement]) -> Agreement:
        """All of them together, of as many codebooks each."""
        counts = [part.counts for part in parts]
        return cls(np.sum(counts, axis=0)) if counts else cls()

    def push(self, verdict: npt.NDArray[np.uint8]) -> None:
        """Add the verdict `[K, frames]` of `judge_codes`; K may be 0."""
        new = np.stack([(verdict == kind).sum(axis=1) for kind in range(4)], axis=1).astype(np.int64)
        self.counts = self.counts + new if len(self.counts) else new

    @property
    def codes(self) -> int:
        """All codes compared."""
        return int(self.counts.sum())

    @property
    def ties(self) -> int:
        """Codes that are ties themselves."""
        return int(self.counts[:, TIE].sum())

    @property
    def follow(self) -> int:
        """Codes of later levels that differ because of a tie before them."""
        return int(self.counts[:, FOLLOWS].sum())

    @property
    def differ(self) -> int:
        """Codes that nothing excuses."""
        return int(self.counts[:, DIFFERS].sum())

    @property
    def equal(self) -> float:
        """Fraction of equal codes, ties counted as different."""
        return int(self.counts[:, EQUAL].sum()) / self.codes if self.codes else float("nan")

    @property
    def apart_from_ties(self) -> float:
        """Fraction of equal codes among those that no tie touches."""
        judged = int(self.counts[:, EQUAL].sum()) + self.differ
        return int(self.counts[:, EQUAL].sum()) / judged if judged else float("nan")

    @property
    def per_codebook(self) -> list[float]:
        """Fraction of equal codes of each codebook, ties counted as different."""
        return [float(row[EQUAL] / row.sum()) if row.sum() else float("nan") for row in self.counts]
