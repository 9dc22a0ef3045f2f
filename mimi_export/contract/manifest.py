"""The manifest of a variant: what its two graphs are, where they came from and which files belong to it.

The manifest repeats inputs, outputs and states for readers that do not know this package. Here they are computed
from `spec` and a manifest that says otherwise is refused, so there is one definition and no drift. Nothing in it
depends on when or where it was made: equal graphs give an equal manifest, byte for byte. Reading one back is the
work of `manifest_check`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mimi_export.contract.geometry import Geometry
from mimi_export.contract.spec import (
    GRAPH_KINDS,
    PAST,
    GraphKind,
    GraphSpec,
    Shape,
    StateSpec,
    TensorSpec,
    graph_spec,
)

FORMAT_VERSION = 1
STATE_SPEC_NAME = "state_spec.txt"


@dataclass(frozen=True)
class Source:
    """Where the weights came from: a Hub id, a directory name or `synthetic`, and the revision if there is one."""

    model: str
    revision: str | None = None


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a variant directory holds.

    `tools` are versions by package name; `conversion` lists, oldest first, the passes that made these graphs from
    others (free records with plain JSON values); `files` is filled by `write_manifest`.

    Raises:
        ConfigError: the model has no graphs of this shape.
    """

    name: str
    geometry: Geometry
    shape: Shape
    source: Source
    precision: str = "fp32"
    tools: Mapping[str, str] = field(default_factory=dict)
    conversion: Sequence[Mapping[str, Any]] = ()
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Compute the specs now: what they refuse is no manifest."""
        _ = self.specs

    @cached_property
    def specs(self) -> Mapping[GraphKind, GraphSpec]:
        """Inputs and outputs of both graphs."""
        return {kind: graph_spec(self.geometry, kind, self.shape) for kind in GRAPH_KINDS}

    def spec(self, kind: GraphKind) -> GraphSpec:
        """Inputs and outputs of one graph."""
        return self.specs[kind]

    def to_dict(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "precision": self.precision,
            "num_codebooks": self.shape.num_codebooks,
            "layout": self.shape.layout,
            "frames_per_call": self.shape.frames_per_call,
            **({} if self.shape.rows is None else {"batch": self.shape.rows}),
            "source": dataclasses.asdict(self.source),
            "geometry": self.geometry.to_dict(),
            "graphs": {kind: _graph_record(self.spec(kind)) for kind in GRAPH_KINDS},
            "conversion": [dict(record) for record in self.conversion],
            "tools": dict(sorted(self.tools.items())),
            "files": {name: dataclasses.asdict(entry) for name, entry in sorted(self.files.items())},
        }


def metadata_props(manifest: Manifest) -> dict[str, str]:
    """What a client needs to know, as text for ONNX `metadata_props`: the same in both graphs of a variant.

    `states` is compact JSON: for each graph the list of states as in the manifest.
    """
    props = {
        "format_version": str(FORMAT_VERSION),
        "name": manifest.name,
        "precision": manifest.precision,
        "num_codebooks": str(manifest.shape.num_codebooks),
        "sampling_rate": str(manifest.geometry.sampling_rate),
        "frame_size": str(manifest.geometry.frame_size),
        "frame_rate": f"{manifest.geometry.frame_rate:g}",
        "layout": manifest.shape.layout,
        "frames_per_call": "any" if manifest.shape.frames_per_call is None else str(manifest.shape.frames_per_call),
        "source_model": manifest.source.model,
        "states": json.dumps(
            {kind: [_state_record(state) for state in manifest.spec(kind).states] for kind in GRAPH_KINDS},
            separators=(",", ":"),
        ),
    }
    if manifest.source.revision is not None:
        props["source_revision"] = manifest.source.revision
    return props


def _graph_record(spec: GraphSpec) -> dict[str, Any]:
    return {
        "file": spec.file_name,
        "inputs": [_tensor_record(tensor) for tensor in spec.inputs],
        "outputs": [_tensor_record(tensor) for tensor in spec.outputs],
        "states": [_state_record(state) for state in spec.states],
    }


def _tensor_record(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _state_record(state: StateSpec) -> dict[str, Any]:
    """A state for readers without this package: a free `batch` is theirs to choose, all other sizes are given."""
    return {
        "name": state.name,
        "kind": state.kind,
        "dtype": state.dtype,
        "past": state.past.name,
        "present": state.present.name,
        "shape": list(state.past_shape),
        "initial_shape": [0 if dim == PAST else dim for dim in state.past_shape],
        "initial_value": 0,
    }
