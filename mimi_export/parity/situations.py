"""A variant in situations that no clip brings: old streams, mixed rows, calls of every size, hard levels.

Each situation is one call. The graph file and the step functions, which get the weights that the file stores, are
given the same states and data, and every stage, state and result is compared, row by row. So even a graph with rounded
weights has to be exact here. Where activations are rounded as well, the step functions round alike.

A stream's age is no input: states are settable. The states of a stream that has filled its window are made older by
turning its keys, and moving them along a ring, in float64 here and not by the graph's own arithmetic, and the old
stream must give what the young one gives.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mimi_export.contract.geometry import Geometry
from mimi_export.contract.network import conv_layers
from mimi_export.contract.spec import POSITION_BASE, GraphSpec, conv_state_name, position_digits
from mimi_export.model.steps.rope import phase_steps
from mimi_export.parity.explain import Lockstep, States, agreement, agreement_and_gain, named_present
from mimi_export.parity.metrics import Array
from mimi_export.parity.results import Outcome
from mimi_export.parity.ties import DIFFERS, ResidualQuantizer, judge_codes, search

AGES = (1023, 2**12 - 1, 2**16 - 1, 2**20 + 1, 2**24 - 1, 2**31 - 2**10)  # tokens, each at or near a power of two
CALL_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 13, 32)
FIRST_CALLS = (1, 3, 32)  # frames of a call that begins a stream
EXACT_DB = 90.0  # float32 rounding of one call leaves 110 dB and more in every stage, state and row
ROUNDED_DB = 55.0  # enough where activations are rounded, as the step functions do it, but not always to the same side
FURTHER_DB = 16.0  # and at least further apart than by other roundings, which trained weights may answer with a lot
GAIN, STAGE_GAIN = 0.004, 0.03  # by how much a result, or a stage, may be louder than it should be, noise apart


@dataclass(frozen=True)
class Row:
    """One row of a call: `data` `[1, C, n]`, states of one row, and by how many tokens the graph's are older."""

    name: str
    data: Array
    states: States
    older: int = 0


@dataclass(frozen=True)
class Situation:
    """One call, `metric` is the check that it belongs to."""

    metric: str
    name: str
    rows: Sequence[Row]


class _Place(NamedTuple):
    """What one row of a call gives at a stage, state or result, in dB of agreement."""

    row: str
    name: str
    db: float
    limit_db: float


class Examiner:
    """Runs situations through one graph of a variant.

    Args:
        lockstep: the file and the step functions with its weights.
        quantizers: those that the file of an encoder stores, to judge codes by the graph's own latents.
        exactly_db: how exactly the graph knows the projection of its latents.
        steps: by how much a token turns each channel pair, see `turning_steps`.
    """

    def __init__(
        self, lockstep: Lockstep, quantizers: Sequence[ResidualQuantizer], exactly_db: float, steps: Sequence[int]
    ) -> None:
        self._lockstep, self._graph, self._steps = lockstep, lockstep.tapped.spec, steps
        self._quantizers, self._exactly_db = quantizers, exactly_db
        self._rounded: set[str] = set()

    def run(self, situations: Iterator[Situation]) -> Iterator[Outcome]:
        """The outcome of each situation."""
        for situation in situations:
            found = [place for rows in self._calls(situation.rows) for place in self._call(rows)]
            wrong = [place for place in found if not place.db >= place.limit_db]
            shown = wrong[0] if wrong else min(found, key=lambda place: place.db - place.limit_db)
            level = "nothing in common" if shown.db < 0 else f"{shown.db:.1f} dB"
            verb = "parts" if wrong else "nearest to the limit"
            where = f"{self._graph.kind}, {situation.name}, {shown.row}: {verb} at {shown.name}, {level}"
            yield Outcome(situation.metric, where, shown.db, shown.limit_db)

    def _calls(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Rows of one call each; a graph of fixed rows gets as many, the last one again and again."""
        size = self._graph.shape.rows or len(rows)
        for start in range(0, len(rows), size):
            some = list(rows[start : start + size])
            yield some + [some[-1]] * (size - len(some))

    def _call(self, rows: Sequence[Row]) -> Iterator[_Place]:
        """Every place of every row, in the order of computation."""
        data = np.concatenate([row.data for row in rows])
        young = {name: np.concatenate([row.states[name] for row in rows]) for name in rows[0].states}
        shifts = [row.older for row in rows]
        one, present = self._lockstep.step(data, young)
        other = self._otherwise(data, young) if self._lockstep.rounded and not self._rounded else {}
        self._rounded |= {name for name in other if not np.array_equal(one[name], other[name])}
        right = one | named_present(older(present, shifts, self._steps))
        got, _ = self._lockstep.tapped.step(data, older(young, shifts, self._steps))
        rounded = False
        for name in (name for name in self._lockstep.order(right) if name in got):
            if not name.startswith("present_"):
                rounded = name in self._rounded
            axis = 1 if name.startswith("transformer_") else 0
            gain = GAIN if name == self._graph.data_output.name else STAGE_GAIN
            for index, row in enumerate(rows):
                limit = EXACT_DB
                if right[name].ndim != got[name].ndim or got[name].shape[axis] != len(rows):
                    db = -math.inf
                elif name == "audio_codes" and "latents" in got and self._quantizers:
                    db = self._codes(got["latents"][index], got[name][index])
                elif rounded:
                    db = agreement(right[name].take([index], axis), got[name].take([index], axis))
                    limit = ROUNDED_DB
                    if db < limit:
                        other = other or self._otherwise(data, young)
                        natural = agreement(one[name].take([index], axis), other[name].take([index], axis))
                        limit = min(limit, natural - FURTHER_DB)
                else:
                    db = _agreement(right[name].take([index], axis), got[name].take([index], axis), gain)
                yield _Place(row.name, name, db, limit)

    def _otherwise(self, data: Array, states: States) -> States:
        """Every place of a call whose activations are rounded another way."""
        return self._lockstep.step(data, states, otherwise=True)[0]

    def _codes(self, latents: Array, codes: Array) -> float:
        """Codes are the nearest to the graph's own latents `[T, hidden]`, or they are wrong."""
        nearest = search(self._quantizers, latents.T, len(codes))
        verdict = judge_codes(self._quantizers, latents.T, nearest, codes, self._exactly_db)
        return -math.inf if (verdict == DIFFERS).any() else math.inf


def situations(graph: GraphSpec, geometry: Geometry, data: Array, full: States, fresh: States) -> Iterator[Situation]:
    """All situations of a graph, a plain call first.

    `data` `[1, C, n]` are at least `max(CALL_SIZES)` frames of input, `full` states of one row whose window is full,
    `fresh` the zeros that begin a stream.
    """
    fixed = graph.shape.frames_per_call
    axis = graph.data_input.time_axis
    few = data.take(range((fixed or 1) * graph.unit), axis)
    later = data.take(range(-few.shape[axis], 0), axis)
    yield Situation("start_db", "a plain call", [Row("row 0", few, full)])
    yield Situation("start_db", "a new stream", [Row("row 0", few, fresh)])
    yield Situation("start_db", "silence first", [Row("row 0", np.zeros_like(few), fresh)])
    if graph.shape.layout == "ring":
        began = {**full, "position": np.zeros_like(full["position"])}
        yield Situation("start_db", "position 0 over the states of an ended stream", [Row("row 0", few, began)])
    old = [Row(f"position {age}", few, full, age - int(position(full)[0])) for age in AGES]
    yield from (Situation("old_stream_db", "an old stream", [row]) for row in old)
    begun = fresh if graph.shape.layout == "ring" else {name: np.zeros_like(array) for name, array in full.items()}
    mixed = [
        Row("row 0, new", few, begun),
        *(dataclasses.replace(row, name=f"row of {row.name}") for row in old[:4]),
        Row("row 5, new", later, begun),
    ]
    yield Situation("rows_db", "rows of different ages", mixed)
    for size in (fixed,) if fixed else CALL_SIZES:
        call = data.take(range(size * graph.unit), axis)
        yield Situation("call_size_db", f"{size} frame(s) a call", [Row("window full", call, full)])
        if size in FIRST_CALLS or fixed:
            yield Situation("call_size_db", f"{size} frame(s) a call", [Row("new stream", call, fresh)])
    other = {name: _varied(name, array) for name, array in full.items()}
    other |= _at(other, position(full))
    rows = [Row("row 0", few, full), Row("row 1", later, other), Row("row 2", few[..., ::-1], full)]
    yield Situation("rows_db", "different rows", rows)
    yield Situation("rows_db", "new streams", [Row("row 0", few, fresh), Row("row 1", later, fresh)])
    if graph.kind == "decoder":
        for count in range(1, (graph.shape.decoded_codebooks or 0) + 1):
            yield Situation("codebooks_db", f"{count} codebook(s)", [Row("row 0", few[:, :count], full)])
        last = conv_state_name(conv_layers(geometry, "decoder")[-1])
        for factor in (10.0, 1000.0):
            loud = {**full, last: full[last] * np.float32(factor)} if last in full else full
            yield Situation("level_db", f"samples {factor:g} times as loud", [Row("row 0", few, loud)])
    else:
        for name, samples in _levels(few):
            yield Situation("level_db", name, [Row("row 0", samples.astype(np.float32), full)])
        broken = few.copy()
        broken[..., 5] = np.nan
        beside = [Row("row 0, NaN", broken, full), rows[1], Row("row 2, NaN", broken, other)]
        yield Situation("rows_db", "a row beside ones with NaN", beside)


def full_window(states: Mapping[str, Array], geometry: Geometry) -> States:
    """States of one row as those of a stream that has filled its window, whatever their age."""
    full = {name: _audible(np.array(array[:1])) for name, array in states.items()}
    full |= _at(full, position(states)[:1])
    capacity = full["key_0"].shape[2]
    while position(full)[0] < geometry.sliding_window:
        full |= _at(full, position(full) + capacity)
    return full


def position(states: Mapping[str, Array]) -> Array:
    """The tokens of each row's stream, int64 `[B]`."""
    if "position" in states:
        return states["position"][:, 0]
    digits = np.round(states["value_0"][:, 0, -1, :2].astype(np.float64) * POSITION_BASE).astype(np.int64)
    return digits[:, 0] + POSITION_BASE * digits[:, 1]


def _at(states: States, positions: Array) -> States:
    """The state that holds the position, changed to these."""
    if "position" in states:
        return {"position": positions[:, None].astype(np.int64)}
    values = states["value_0"].copy()
    for row, tokens in enumerate(positions):
        values[row, :, -1, :2] = position_digits(int(tokens))
    return {"value_0": values}


def _audible(state: Array) -> Array:
    """A state as it is, or numbers in place of the silence that a clip ended with, which would hide its use."""
    if state.dtype.kind == "i" or np.sqrt(np.square(state).mean()) > 0.01:
        return state
    return (0.1 * np.sin(1 + np.arange(state.size))).reshape(state.shape).astype(np.float32)


def turning_steps(arrays: Mapping[str, Array], geometry: Geometry) -> list[int]:
    """`rope.phase_steps` as a file stores them: a rounding of theirs is no matter, but all keys must share it."""
    wanted = phase_steps(geometry.head_dim, geometry.rope_theta).numpy()
    alike = (array for array in arrays.values() if (array.shape, array.dtype) == (wanted.shape, wanted.dtype))
    near = (array for array in alike if np.allclose(array, wanted, rtol=1e-6, atol=1))
    steps: list[int] = next(near, wanted).tolist()
    return steps


def older(states: States, tokens: Sequence[int], steps: Sequence[int]) -> States:
    """States as if each row had begun so many tokens earlier: keys turned on, slots of a ring moved on."""
    if not any(tokens):
        return states
    aged = {name: array.copy() for name, array in states.items()}
    aged |= _at(aged, position(aged) + np.array(tokens))
    for name, array in aged.items():
        for index, count in enumerate(tokens):
            if "position" in states and name.startswith(("key_", "value_")):
                array[index] = np.roll(array[index], count % array.shape[2], axis=1)
            if name.startswith("key_"):
                turn = np.exp(2j * math.pi * np.array([count * step % 2**32 / 2**32 for step in steps]))
                first, second = np.split(array[index].astype(np.float64), 2, axis=-1)
                turned = (first + 1j * second) * turn
                array[index] = np.concatenate([turned.real, turned.imag], axis=-1)
    return aged


def _levels(samples: Array) -> Iterator[tuple[str, Array]]:
    peak = float(np.abs(samples).max()) or 1.0
    yield "samples up to 1", samples / peak
    yield "samples up to 8", samples * (8 / peak)
    yield "samples below 1e-4", samples * (9e-5 / peak)
    yield "an offset of 0.5", samples + 0.5
    yield "digital silence", np.zeros_like(samples)
    broken = samples.copy()
    broken[..., 7], broken[..., 11] = np.nan, np.inf
    yield "NaN and infinity", broken


def _agreement(right: Array, got: Array, gain: float) -> float:
    """SNR in dB; nothing in common where the result as a whole is louder or softer, which noise cannot be."""
    value, louder = agreement_and_gain(right, got)
    noise = 10 ** (-value / 20) / math.sqrt(right.size) if value > 0 else 0.0
    return -math.inf if abs(louder) > gain + 4 * noise else value


def _varied(name: str, array: Array) -> Array:
    """Another row's states: of the same kind, and different everywhere."""
    if array.dtype.kind == "i":
        return array
    return np.ascontiguousarray(array[..., ::-1, :] * 0.8 if name.startswith("value_") else array * -0.7)
