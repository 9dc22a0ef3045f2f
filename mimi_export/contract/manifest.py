"""The manifest of a variant: what its two graphs are, where they came from and which files belong to it.

The manifest repeats inputs, outputs and states for readers that do not know this package. Here they are computed
from `spec` and a manifest that says otherwise is refused, so there is one definition and no drift. Nothing in it
depends on when or where it was made: equal graphs give an equal manifest, byte for byte.

Graphs for whole clips have a list of their own, `batch.json`, and beside it `parity.json`, the parity report of
exactly these files with one record for each data type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from mimi_export.contract.files import DIRECTORY_MARKER, sha256
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.records import FLAT, Reader, check_range, plain, shown
from mimi_export.contract.spec import PAST, GraphKind, GraphSpec, Shape, StateSpec, graph_spec
from mimi_export.errors import ArtifactError

FORMAT_VERSION = 1
MANIFEST_NAME = DIRECTORY_MARKER
STATE_SPEC_NAME = "state_spec.txt"
BATCH_MANIFEST = "batch.json"
BATCH_REPORT = "parity.json"
MAAI_MANIFEST = "maai.json"

MOST_NAME = 250  # characters
DEMO = "demo"  # the small trained checkpoint that comes with this package
CAUTIONS = {
    "synthetic": "made-up weights: they show sizes, speed and exactness, and what they decode is no speech",
    DEMO: "the small codec for demonstrations, not Kyutai's Mimi: speech can be followed, music cannot",
}


@dataclass(frozen=True)
class Source:
    """Where the weights came from: a Hub id, a directory name or `synthetic`, and the revision if there is one."""

    model: str
    revision: str | None = None

    @property
    def caution(self) -> str | None:
        """What whoever listens has to know of these weights, in a line; nothing of a whole Mimi."""
        return CAUTIONS.get(self.model.partition(":")[0])


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """Measure a file."""
        return cls(path.stat().st_size, sha256(path))


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
    shape: Shape = field(metadata=FLAT)
    source: Source
    precision: str = "fp32"
    tools: Mapping[str, str] = field(default_factory=dict)
    conversion: Sequence[Mapping[str, Any]] = ()
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Compute the specs now: what they refuse is no manifest. Names are shown, so they have an end."""
        check_range("the length of name", len(self.name), 1, MOST_NAME)
        check_range("the length of source.model", len(self.source.model), 1, MOST_NAME)
        _ = self.specs

    @cached_property
    def specs(self) -> Mapping[GraphKind, GraphSpec]:
        """Inputs and outputs of the graphs that there are."""
        return {kind: graph_spec(self.geometry, kind, self.shape) for kind in self.shape.kinds}

    def spec(self, kind: GraphKind) -> GraphSpec:
        """Inputs and outputs of one graph; `ArtifactError` where the variant is an encoder alone."""
        if kind not in self.specs:
            raise ArtifactError(f"{self.name} has no {kind}: it was exported as an encoder alone")
        return self.specs[kind]

    def to_dict(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "precision": self.precision,
            **plain(self.shape),
            "source": plain(self.source),
            "geometry": plain(self.geometry),
            "graphs": {kind: _graph_record(spec) for kind, spec in self.specs.items()},
            "conversion": [dict(record) for record in self.conversion],
            "tools": dict(sorted(self.tools.items())),
            "files": plain(dict(sorted(self.files.items()))),
        }


@dataclass(frozen=True)
class BatchManifest:
    """The content of `batch.json`; `dtypes` maps each data type to the files of its encoder and decoder."""

    name: str
    num_codebooks: int
    sampling_rate: int
    frame_size: int
    source: Source
    tools: Mapping[str, str]
    dtypes: Mapping[str, Mapping[GraphKind, str]]
    files: Mapping[str, FileEntry]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"format_version": FORMAT_VERSION, "kind": "batch", **plain(self)}


def parse_manifest(content: Any, path: Path) -> Manifest:
    """The strict inverse of `Manifest.to_dict`; `path` is where `content` was read, for messages.

    Raises:
        ArtifactError: another format version, an unknown or missing key, a value of another type, or graphs that
            are not those which `spec.graph_spec` computes for the geometry.
    """
    reader = Reader(path, ArtifactError, "; export it again")
    content = reader.version(content, FORMAT_VERSION, "manifest of mimi-export")
    graphs = content.pop("graphs", None)
    manifest = reader.record(Manifest, content)
    _check_names(reader, manifest.files, [*(spec.file_name for spec in manifest.specs.values()), STATE_SPEC_NAME])
    difference = _first_difference(graphs, manifest.to_dict()["graphs"], "graphs")
    if difference is not None and manifest.shape.layout == "window":
        earlier = replace(manifest, shape=replace(manifest.shape, growing=True))
        if graphs == earlier.to_dict()["graphs"]:
            return earlier
    if difference is not None:
        place, found, wanted = difference
        reader.refuse(place, f"is {shown(found)}, but this geometry gives {shown(wanted)}")
    return manifest


def parse_batch(content: Any, path: Path) -> BatchManifest:
    """The strict inverse of `BatchManifest.to_dict`; raises `ArtifactError`."""
    reader = Reader(path, ArtifactError, "; make it with `mimi-export export --whole-clips`")
    content = reader.version(content, FORMAT_VERSION, "list of files for whole clips")
    reader.value(Literal["batch"], content.pop("kind", None), "kind")
    manifest = reader.record(BatchManifest, content)
    _check_names(reader, manifest.files, [name for graphs in manifest.dtypes.values() for name in graphs.values()])
    return manifest


def _check_names(reader: Reader, files: Mapping[str, FileEntry], wanted: Sequence[str]) -> None:
    for name in files:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name:
            reader.refuse("files", f"lists {shown(name)}, which leads out of the directory")
    for name in wanted:
        if name not in files:
            reader.refuse("files", f"does not list {shown(name)}")


def _first_difference(found: Any, wanted: Any, place: str) -> tuple[str, Any, Any] | None:
    """Place and values of the first difference between two JSON values, `None` if they are equal."""
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() == wanted.keys():
        pairs = [(f"{place}.{key}", found[key], wanted[key]) for key in wanted]
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = [(f"{place}[{index}]", *pair) for index, pair in enumerate(zip(found, wanted, strict=True))]
    else:
        return None if type(found) is type(wanted) and found == wanted else (place, found, wanted)
    differences = (_first_difference(one, other, where) for where, one, other in pairs)
    return next((difference for difference in differences if difference is not None), None)


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
            {kind: [_state_record(state) for state in spec.states] for kind, spec in manifest.specs.items()},
            separators=(",", ":"),
        ),
    }
    if manifest.source.revision is not None:
        props["source_revision"] = manifest.source.revision
    return props


def _graph_record(spec: GraphSpec) -> dict[str, Any]:
    return {
        "file": spec.file_name,
        "inputs": plain(spec.inputs),
        "outputs": plain(spec.outputs),
        "states": [_state_record(state) for state in spec.states],
    }


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
