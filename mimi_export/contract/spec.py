"""The one definition of the streaming state: which tensors a graph takes and gives, in which order.

Everything that touches state is computed from here: the torch step functions ask for states by these names, the
exporter names its inputs and outputs from `GraphSpec`, and `state_spec.txt`, the manifest, the runtime, the parity
checker and the documents list the same objects.

What a convolution remembers is said in `network`. The transformers remember keys and values, in one of two layouts:

    window   [batch, heads, 0 … window-1, head_dim], newest last, keys before rotation; empty when a stream begins
    ring     [batch, heads, capacity, head_dim], written at `position mod capacity`, keys after rotation; `position`
             counts the tokens of each row, and position 0 begins a new stream whatever the other states hold
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mimi_export.contract.geometry import Geometry
from mimi_export.contract.network import ConvLayer, conv_layers
from mimi_export.contract.network import GraphKind as GraphKind
from mimi_export.errors import ConfigError

KvLayout = Literal["window", "ring"]
Dim = int | str
GRAPH_KINDS: tuple[GraphKind, ...] = ("encoder", "decoder")
KV_LAYOUTS: tuple[KvLayout, ...] = ("window", "ring")

BATCH = "batch"
SAMPLES = "samples"
FRAMES = "frames"
CODEBOOKS = "codebooks"
PAST = "past"
PRESENT = "present"


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of one graph input or output; a text dimension is free at run time."""

    name: str
    dtype: Literal["float32", "int64"]
    shape: tuple[Dim, ...]


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
    """All inputs and outputs of one graph: the data, then the states in their published order.

    `frame_size` is audio samples in a frame, `window_length` the tokens that a full window keeps, `batch` the rows
    that every call must have, `None` where they are free.
    """

    kind: GraphKind
    layout: KvLayout
    num_codebooks: int
    frames_per_call: int | None
    frame_size: int
    window_length: int
    data_input: TensorSpec
    data_output: TensorSpec
    states: tuple[StateSpec, ...]
    batch: int | None = None

    @property
    def inputs(self) -> list[TensorSpec]:
        """Inputs in order."""
        return [self.data_input, *(state.past for state in self.states)]

    @property
    def outputs(self) -> list[TensorSpec]:
        """Outputs in order."""
        return [self.data_output, *(state.present for state in self.states)]

    @property
    def file_name(self) -> str:
        """File name of the graph in a variant directory."""
        return f"{self.kind}_model.onnx"

    def state(self, name: str) -> StateSpec:
        """The state called `name`."""
        return next(state for state in self.states if state.name == name)

    def check_batch(self, batch: int) -> None:
        """Raise `ConfigError` unless the graph runs calls of `batch` rows."""
        if self.batch not in (None, batch):
            raise ConfigError(
                f"this {self.kind} was exported for a batch of {self.batch}, got {batch}; give it {self.batch} row(s), "
                "or export one without --batch"
            )


def conv_state_name(layer: ConvLayer) -> str:
    """Name of a convolution's state in graph inputs and outputs, without `past_` or `present_`."""
    return f"conv_{layer.name}_state"


def ring_capacity(geometry: Geometry, frames_per_call: int) -> int:
    """Slots of a ring that still holds a whole window for the first token of a call after its last was written.

    Rounded up to 8, the floats of a vector register.
    """
    least = geometry.sliding_window + geometry.tokens_per_frame * frames_per_call - 1
    return -(-least // 8) * 8


def graph_spec(
    geometry: Geometry,
    kind: GraphKind,
    num_codebooks: int,
    layout: KvLayout = "window",
    frames_per_call: int | None = None,
    batch: int | None = None,
) -> GraphSpec:
    """The inputs and outputs of one graph.

    Args:
        geometry: sizes of the model.
        kind: `encoder` or `decoder`.
        num_codebooks: codes a frame; for a decoder the most that it accepts.
        layout: how keys and values are kept.
        frames_per_call: frames in one call; `None` leaves it free. A ring needs a number.
        batch: rows in one call; `None` leaves it free.

    Raises:
        ConfigError: there are no such graphs.
    """
    geometry.check_num_codebooks(num_codebooks)
    if (layout == "ring") != (frames_per_call is not None):
        raise ConfigError("a ring needs frames_per_call, a window takes any number of frames and must not have it")
    if frames_per_call is not None and frames_per_call < 1:
        raise ConfigError(f"frames_per_call is {frames_per_call}, expected 1 or more")
    if batch is not None and batch < 1:
        raise ConfigError(f"batch is {batch}, expected 1 or more")
    rows: Dim = BATCH if batch is None else batch
    samples: Dim = SAMPLES if frames_per_call is None else frames_per_call * geometry.frame_size
    frames: Dim = FRAMES if frames_per_call is None else frames_per_call
    audio = (rows, 1, samples)
    if kind == "encoder":
        data_input = TensorSpec("input_values", "float32", audio)
        data_output = TensorSpec("audio_codes", "int64", (rows, num_codebooks, frames))
    else:
        codebooks: Dim = CODEBOOKS if num_codebooks > 1 else 1
        data_input = TensorSpec("audio_codes", "int64", (rows, codebooks, frames))
        data_output = TensorSpec("audio_values", "float32", audio)
    states = (*_conv_states(geometry, kind, rows), *_kv_states(geometry, layout, frames_per_call, rows))
    window = geometry.sliding_window - 1
    return GraphSpec(
        kind,
        layout,
        num_codebooks,
        frames_per_call,
        geometry.frame_size,
        window,
        data_input,
        data_output,
        states,
        batch,
    )


def state_spec_text(geometry: Geometry, num_codebooks: int) -> str:
    """The text of `state_spec.txt`: the published list of convolution states."""
    lines = [
        "# Conv state specs for streaming ONNX model",
        f"# num_codebooks={num_codebooks}",
        "# Format: type name channels temporal_size",
    ]
    for kind in GRAPH_KINDS:
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


def _kv_states(geometry: Geometry, layout: KvLayout, frames_per_call: int | None, rows: Dim) -> Iterator[StateSpec]:
    heads, head_dim = geometry.num_key_value_heads, geometry.head_dim
    past: Dim = PAST
    present: Dim = PRESENT
    if frames_per_call is not None:
        past = present = ring_capacity(geometry, frames_per_call)
    for index in range(geometry.num_hidden_layers):
        for word in ("key", "value"):
            kind: Literal["key", "value"] = "key" if word == "key" else "value"
            shapes = (rows, heads, past, head_dim), (rows, heads, present, head_dim)
            yield StateSpec(f"{word}_{index}", kind, "float32", *shapes)
    if layout == "ring":
        yield StateSpec("position", "position", "int64", (rows, 1), (rows, 1))
