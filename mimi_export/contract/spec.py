"""The one definition of the streaming state: which tensors a graph takes and gives, in which order.

Everything that touches state is computed from here: the torch step functions ask for states by these names, the
exporter names its inputs and outputs from `GraphSpec`, and `state_spec.txt`, the manifest, the runtime, the parity
checker and the documents list the same objects.

What a convolution remembers is said in `network`. The transformers remember keys and values, in one of two layouts:

    window   [batch, heads, window, head_dim], newest last, keys after rotation, empty when a stream begins; the last
             token of the first layer's values is the number of tokens of each row's stream (`position_digits`)
    ring     [batch, heads, capacity, head_dim], written at `position mod capacity`, keys after rotation; `position`
             counts the tokens of each row, and position 0 begins a new stream whatever the other states hold

Windows of earlier versions grow: [batch, heads, 0 … window-1, head_dim], keys before rotation, no position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mimi_export.contract.geometry import Geometry
from mimi_export.contract.network import ConvLayer, conv_layers
from mimi_export.contract.network import GraphKind as GraphKind
from mimi_export.contract.records import OPTIONAL, check_range
from mimi_export.errors import ConfigError

KvLayout = Literal["window", "ring"]
Head = Literal["codes", "latents", "both"]
Start = Literal["codes", "latents", "nothing"]
Dim = int | str
GRAPH_KINDS: tuple[GraphKind, ...] = ("encoder", "decoder")

BATCH = "batch"
SAMPLES = "samples"
FRAMES = "frames"
CODEBOOKS = "codebooks"
LATENTS = "latents"
PAST = "past"
PRESENT = "present"
MOST_IN_CALL = 1 << 16  # frames, or rows
POSITION_BASE = 1 << 20  # float32 holds the fractions of both digits, and a position below 2^40 is 1400 years
MOST_NUMBERS = 1 << 28  # in the state of one stream; Kyutai's has 2 million


@dataclass(frozen=True)
class Shape:
    """What a user chooses about a variant's graphs, beside the model.

    Attributes:
        num_codebooks: codes a frame; for a decoder the most that it accepts; 0 where there are latents alone.
        layout: how keys and values are kept.
        frames_per_call: frames in one call; `None` leaves it free. A ring needs a number, a window has none.
        rows: independent streams in one call; `None` leaves it free. Files call it `batch`.
        head: what the encoder gives: codes, latents (what its quantiser would get), or both from one pass.
        start: what the decoder takes, some of what the encoder gives; `nothing` where there is no decoder. Files call
            it `from`.
        growing: whether a window is one of earlier versions.

    Raises:
        ConfigError: no model has such graphs.
    """

    num_codebooks: int
    layout: KvLayout = "window"
    frames_per_call: int | None = None
    rows: int | None = field(default=None, metadata={"key": "batch", **OPTIONAL})
    head: Head = field(default="codes", metadata=OPTIONAL)
    start: Start = field(default="codes", metadata={"key": "from", **OPTIONAL})
    growing: bool = field(default=False, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        """Refuse what is wrong for every model."""
        if (self.layout == "ring") != (self.frames_per_call is not None):
            raise ConfigError("a ring needs frames_per_call, a window takes any number of frames and must not have it")
        if self.growing and self.layout == "ring":
            raise ConfigError("a ring does not grow")
        if self.head == LATENTS and self.num_codebooks:
            raise ConfigError(f"num_codebooks is {self.num_codebooks}; it is 0 where the encoder gives latents alone")
        if self.start not in ("nothing", *(("codes", LATENTS) if self.head == "both" else (self.head,))):
            raise ConfigError(
                f"the decoder cannot take {self.start} where the encoder gives {self.head}; an encoder that gives both "
                "goes with either"
            )
        for name, value in (
            ("num_codebooks", None if self.head == LATENTS else self.num_codebooks),
            ("frames_per_call", self.frames_per_call),
            ("batch", self.rows),
        ):
            if value is not None:
                check_range(name, value, 1, MOST_IN_CALL)

    @property
    def kinds(self) -> tuple[GraphKind, ...]:
        """The graphs that there are."""
        return GRAPH_KINDS if self.start != "nothing" else ("encoder",)

    @property
    def decoded_codebooks(self) -> int | None:
        """Codebooks from which audio is decoded; 0 from latents, `None` without a decoder."""
        return {"codes": self.num_codebooks, LATENTS: 0, "nothing": None}[self.start]


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of one graph input or output; a text dimension is free at run time."""

    name: str
    dtype: Literal["float32", "int64"]
    shape: tuple[Dim, ...]

    @property
    def time_axis(self) -> int:
        """Where samples or frames are counted: latents have their channels last, all other data time."""
        return 1 if self.name == LATENTS else 2


@dataclass(frozen=True)
class StateSpec:
    """One tensor that a client feeds back: `past_<name>` in, `present_<name>` out, zeros of `initial` at first."""

    name: str
    kind: Literal["conv", "conv_tr", "key", "value", "position"]
    dtype: Literal["float32", "int64"]
    past_shape: tuple[Dim, ...]
    present_shape: tuple[Dim, ...]

    @property
    def past(self) -> TensorSpec:
        """The graph input."""
        return TensorSpec(f"past_{self.name}", self.dtype, self.past_shape)

    @property
    def present(self) -> TensorSpec:
        """The graph output."""
        return TensorSpec(f"present_{self.name}", self.dtype, self.present_shape)

    def initial_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of the zeros that begin a stream: the free length of a window starts at 0."""
        free = {BATCH: batch, PAST: 0}  # a batch that the graph fixes is no text, and stays
        return tuple(free[dim] if isinstance(dim, str) else dim for dim in self.past_shape)


@dataclass(frozen=True)
class GraphSpec:
    """All inputs and outputs of one graph: the data, then the states in their published order, then further data.

    `frame_size` is audio samples in a frame, `window_length` the tokens that a full window keeps. `further` are the
    latents of an encoder that gives codes first: at the end, where clients that count outputs do not meet them.
    """

    kind: GraphKind
    shape: Shape
    frame_size: int
    window_length: int
    data_input: TensorSpec
    data_output: TensorSpec
    states: tuple[StateSpec, ...]
    further: tuple[TensorSpec, ...] = ()

    @property
    def unit(self) -> int:
        """Entries of the data input's time axis in a frame: samples for an encoder."""
        return self.frame_size if self.kind == "encoder" else 1

    @property
    def data_outputs(self) -> tuple[TensorSpec, ...]:
        """What is no state, the first output first."""
        return (self.data_output, *self.further)

    @property
    def inputs(self) -> list[TensorSpec]:
        """Inputs in order."""
        return [self.data_input, *(state.past for state in self.states)]

    @property
    def outputs(self) -> list[TensorSpec]:
        """Outputs in order."""
        return [self.data_output, *(state.present for state in self.states), *self.further]

    @property
    def file_name(self) -> str:
        """File name of the graph in a variant directory."""
        return f"{self.kind}_model.onnx"

    def state(self, name: str) -> StateSpec:
        """The state called `name`."""
        return next(state for state in self.states if state.name == name)

    def check_rows(self, rows: int) -> None:
        """Raise `ConfigError` unless the graph runs calls of `rows` rows."""
        wanted = self.shape.rows
        if wanted not in (None, rows):
            raise ConfigError(
                f"this {self.kind} was exported for a batch of {wanted}, got {rows}; give it {wanted} row(s), "
                "or export one without --rows"
            )


def conv_state_name(layer: ConvLayer) -> str:
    """Name of a convolution's state in graph inputs and outputs, without `past_` or `present_`."""
    return f"conv_{layer.name}_state"


def ring_capacity(geometry: Geometry, frames_per_call: int) -> int:
    """Slots of a ring: a window for the first token of a call, and one for each token after it.

    All tokens of a call are written before the first is attended to. Rounded up to 8, the floats of a vector register.
    """
    least = geometry.sliding_window + geometry.tokens_per_frame * frames_per_call - 1
    return -(-least // 8) * 8


def position_digits(tokens: int) -> tuple[float, float]:
    """The number of tokens of a stream as it stands in a window: the first two numbers of each head, the rest is 0."""
    return tokens % POSITION_BASE / POSITION_BASE, tokens // POSITION_BASE / POSITION_BASE


def graph_spec(geometry: Geometry, kind: GraphKind, shape: Shape) -> GraphSpec:
    """The inputs and outputs of one graph; `ConfigError` where the model has no such number of codebooks."""
    if shape.num_codebooks:
        geometry.check_num_codebooks(shape.num_codebooks)
    rows: Dim = BATCH if shape.rows is None else shape.rows
    samples: Dim = SAMPLES if shape.frames_per_call is None else shape.frames_per_call * geometry.frame_size
    frames: Dim = FRAMES if shape.frames_per_call is None else shape.frames_per_call
    audio = (rows, 1, samples)
    latents = TensorSpec(LATENTS, "float32", (rows, frames, geometry.hidden_size))
    further: list[TensorSpec] = []
    if kind == "encoder":
        data_input = TensorSpec("input_values", "float32", audio)
        codes = TensorSpec("audio_codes", "int64", (rows, shape.num_codebooks, frames))
        data_output, *further = {"codes": (codes,), LATENTS: (latents,), "both": (codes, latents)}[shape.head]
    else:
        codebooks: Dim = CODEBOOKS if shape.num_codebooks > 1 else 1
        codes = TensorSpec("audio_codes", "int64", (rows, codebooks, frames))
        data_input = latents if shape.start == LATENTS else codes
        data_output = TensorSpec("audio_values", "float32", audio)
    states = (*_conv_states(geometry, kind, rows), *_kv_states(geometry, shape, rows))
    window = geometry.sliding_window - shape.growing
    shapes = [[window if dim == PAST else int(dim) for dim in state.past_shape[1:]] for state in states]
    numbers = sum(map(math.prod, shapes))
    if numbers > MOST_NUMBERS:
        raise ConfigError(f"the state of one stream would have {numbers} numbers, expected at most {MOST_NUMBERS}")
    return GraphSpec(kind, shape, geometry.frame_size, window, data_input, data_output, states, tuple(further))


def state_spec_text(geometry: Geometry, num_codebooks: int, kinds: Sequence[GraphKind] = GRAPH_KINDS) -> str:
    """The text of `state_spec.txt`: the published list of convolution states."""
    lines = [
        "# Conv state specs for streaming ONNX model",
        f"# num_codebooks={num_codebooks}",
        "# Format: type name channels temporal_size",
    ]
    for kind in kinds:
        lines += ["", f"[{kind}]"]
        for layer in _stateful(geometry, kind):
            word = "conv_tr" if layer.transposed else "conv"
            lines.append(f"{word} {layer.name} {layer.state_channels} {layer.state_size}")
    return "\n".join(lines) + "\n"


def _stateful(geometry: Geometry, kind: GraphKind) -> list[ConvLayer]:
    return [layer for layer in conv_layers(geometry, kind) if layer.state_size > 0]


def _conv_states(geometry: Geometry, kind: GraphKind, rows: Dim) -> Iterator[StateSpec]:
    for layer in _stateful(geometry, kind):
        shape = (rows, layer.state_channels, layer.state_size)
        yield StateSpec(conv_state_name(layer), "conv_tr" if layer.transposed else "conv", "float32", shape, shape)


def _kv_states(geometry: Geometry, shape: Shape, rows: Dim) -> Iterator[StateSpec]:
    heads, head_dim = geometry.num_key_value_heads, geometry.head_dim
    past: Dim = PAST
    present: Dim = PRESENT if shape.growing else geometry.sliding_window
    if shape.frames_per_call is not None:
        past = present = ring_capacity(geometry, shape.frames_per_call)
    shapes = (rows, heads, past, head_dim), (rows, heads, present, head_dim)
    kinds: tuple[Literal["key", "value"], ...] = ("key", "value")
    for index in range(geometry.num_hidden_layers):
        for kind in kinds:
            yield StateSpec(f"{kind}_{index}", kind, "float32", *shapes)
    if shape.layout == "ring":
        yield StateSpec("position", "position", "int64", (rows, 1), (rows, 1))
