"""Rounding with error feedback: what one weight loses by its rounding, the weights not yet rounded make up for.

A column w of a matrix is multiplied with activations x, so the error of codes q is (w - q)ᵀ H (w - q) with H = mean of
x·xᵀ. With the factor H = R·Rᵀ, R upper triangular, that is the sum over inputs i of

    ( Σ_{j ≤ i} R[j, i] · (w_j - q_j) )²

so input after input is rounded to what brings its term nearest to zero. This is GPTQ (arXiv:2210.17323) without the
inverse of H. Inputs of the largest mean square come first, because the first have the most others behind them.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from mimi_export.passes.rounding import TOP, Floats, Rounded, column_scales

DAMPING = 0.02  # of the mean square of an input, added to each: activations that were not seen count for something
BLOCK = 64  # inputs whose errors reach the rest in one product
MOST_INPUTS = 4096  # of more, each part is rounded by itself: a factor takes the cube of their number
ROWS = 256  # that are added at once


class Gram:
    """The sum of x·xᵀ over rows of activations, in parts of at most `MOST_INPUTS` inputs."""

    def __init__(self, inputs: int) -> None:
        edges = np.linspace(0, inputs, -(-inputs // MOST_INPUTS) + 1).astype(int)
        self.parts = [slice(start, stop) for start, stop in itertools.pairwise(edges.tolist())]
        self.rows = 0
        self._sums = [np.zeros((part.stop - part.start,) * 2, np.float32) for part in self.parts]
        self._waiting: list[Floats] = []

    def push(self, x: Floats) -> None:
        """Add rows `[…, inputs]`."""
        self._waiting.append(x.reshape(-1, x.shape[-1]))
        if sum(map(len, self._waiting)) >= ROWS:
            self._add()

    def means(self) -> list[Floats]:
        """The mean of x·xᵀ of each part; zeros where no row came."""
        if self._waiting:
            self._add()
        return [total / np.float32(max(1, self.rows)) for total in self._sums]

    def _add(self) -> None:
        x = np.concatenate(self._waiting)
        self._waiting = []
        self.rows += len(x)
        for number, part in enumerate(self.parts):
            rows = np.ascontiguousarray(x[:, part])
            self._sums[number] += rows.T @ rows


def round_with_feedback(matrix: Floats, gram: Gram) -> Rounded:
    """Codes of weights `[in, out]` that are multiplied with the activations of `gram`."""
    scales = column_scales(matrix)
    codes = [_codes(matrix[part] / scales, mean) for part, mean in zip(gram.parts, gram.means(), strict=True)]
    return Rounded(np.concatenate(codes), scales)


def _codes(steps: Floats, mean: Floats) -> NDArray[np.int8]:
    """Round weights that are given in steps of their columns."""
    order = np.argsort(-mean.diagonal(), kind="stable")
    factor = _factor(mean, order)
    wanted, codes = steps[order], np.empty_like(steps)
    carried = np.zeros_like(steps)  # Σ_{j < i} R[j, i] · error_j
    for start in range(0, len(order), BLOCK):
        stop = min(start + BLOCK, len(order))
        for i in range(start, stop):
            codes[i] = np.clip(np.rint(wanted[i] + carried[i] / factor[i, i]), -TOP, TOP)
            carried[i + 1 : stop] += np.outer(factor[i, i + 1 : stop], wanted[i] - codes[i])
        carried[stop:] += factor[start:stop, stop:].T @ (wanted[start:stop] - codes[start:stop])
    placed = np.empty(steps.shape, np.int8)
    placed[order] = codes
    return placed


def _factor(mean: Floats, order: NDArray[np.intp]) -> Floats:
    """R with R·Rᵀ = H, upper triangular, for inputs in `order`: the lower factor of H read backwards."""
    back = order[::-1]
    damped = mean[np.ix_(back, back)]
    damped[np.diag_indices_from(damped)] += DAMPING * float(mean.diagonal().mean()) or 1.0  # nothing seen: H = 1
    lower: Floats = np.linalg.cholesky(damped)
    return np.ascontiguousarray(lower[::-1, ::-1])
