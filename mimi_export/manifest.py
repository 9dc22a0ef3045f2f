"""The manifest of a variant: what its two graphs are, where they came from and which files belong to it.

The manifest repeats inputs, outputs and states for readers that do not know this package. Here they are computed
from `spec` and a manifest that says otherwise is refused, so there is one definition and no drift. Nothing in it
depends on when or where it was made: equal graphs give an equal manifest, byte for byte.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mimi_export.errors import ArtifactError, ConfigError
from mimi_export.geometry import Geometry
from mimi_export.spec import (
    GRAPH_KINDS,
    KV_LAYOUTS,
    PAST,
    GraphKind,
    GraphSpec,
    KvLayout,
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
    """

    name: str
    geometry: Geometry
    num_codebooks: int
    source: Source
    layout: KvLayout = "window"
    frames_per_call: int | None = None
    precision: str = "fp32"
    tools: Mapping[str, str] = field(default_factory=dict)
    conversion: Sequence[Mapping[str, Any]] = ()
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    @classmethod
    def for_graphs(
        cls,
        geometry: Geometry,
        num_codebooks: int,
        layout: KvLayout,
        frames_per_call: int | None,
        source: Source,
        tools: Mapping[str, str],
        *,
        name: str,
        precision: str = "fp32",
        conversion: Sequence[Mapping[str, Any]] = (),
    ) -> Manifest:
        """The manifest of graphs that `spec.graph_spec` describes; `ConfigError` where that describes none."""
        manifest = cls(
            name, geometry, num_codebooks, source, layout, frames_per_call, precision, dict(tools), tuple(conversion)
        )
        for kind in GRAPH_KINDS:
            manifest.spec(kind)
        return manifest

    def spec(self, kind: GraphKind) -> GraphSpec:
        """Inputs and outputs of one graph."""
        return graph_spec(self.geometry, kind, self.num_codebooks, self.layout, self.frames_per_call)

    def to_dict(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "precision": self.precision,
            "num_codebooks": self.num_codebooks,
            "layout": self.layout,
            "frames_per_call": self.frames_per_call,
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
        "num_codebooks": str(manifest.num_codebooks),
        "sampling_rate": str(manifest.geometry.sampling_rate),
        "frame_size": str(manifest.geometry.frame_size),
        "frame_rate": f"{manifest.geometry.frame_rate:g}",
        "layout": manifest.layout,
        "frames_per_call": "any" if manifest.frames_per_call is None else str(manifest.frames_per_call),
        "source_model": manifest.source.model,
        "states": json.dumps(
            {kind: [_state_record(state) for state in manifest.spec(kind).states] for kind in GRAPH_KINDS},
            separators=(",", ":"),
        ),
    }
    if manifest.source.revision is not None:
        props["source_revision"] = manifest.source.revision
    return props


def parse_manifest(content: Any, path: Path) -> Manifest:
    """The strict inverse of `Manifest.to_dict`; `path` is where `content` was read, for messages.

    Raises:
        ArtifactError: another format version, an unknown or missing key, a value of another type, or graphs that
            are not those which `spec.graph_spec` computes for the geometry.
    """
    if not isinstance(content, dict) or "format_version" not in content:
        raise ArtifactError(f"{path} has no format_version, so it is no manifest of mimi-export; export it again")
    if content["format_version"] != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format_version {content['format_version']!r}, this program reads {FORMAT_VERSION}; "
            "export it again or use the program that made it"
        )
    _check_record(content, _MANIFEST_TYPES, str(path))
    _check_record(content["source"], {"model": (str,), "revision": (str, type(None))}, f"{path}: source")
    _check_record(content["geometry"], _GEOMETRY_TYPES, f"{path}: geometry")
    for name, version in content["tools"].items():
        _check_type(version, (str,), f"{path}: tools.{name}")
    for index, record in enumerate(content["conversion"]):
        _check_type(record, (dict,), f"{path}: conversion[{index}]")
    if content["layout"] not in KV_LAYOUTS:
        raise ArtifactError(f"{path}: layout is {content['layout']!r}, expected one of {', '.join(KV_LAYOUTS)}")
    try:
        manifest = Manifest.for_graphs(
            Geometry.from_dict(content["geometry"]),
            content["num_codebooks"],
            content["layout"],
            content["frames_per_call"],
            Source(**content["source"]),
            content["tools"],
            name=content["name"],
            precision=content["precision"],
            conversion=content["conversion"],
        )
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error}; export it again") from error
    manifest = dataclasses.replace(manifest, files=_parse_files(content["files"], manifest, path))
    _check_graphs(content["graphs"], manifest.to_dict()["graphs"], path)
    return manifest


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
    """A state for readers without this package: `batch` is theirs to choose, all other initial sizes are given."""
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


def _parse_files(content: dict[str, Any], manifest: Manifest, path: Path) -> dict[str, FileEntry]:
    for name, record in content.items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name:
            raise ArtifactError(f"{path}: the file name {name!r} leads out of the directory")
        _check_record(record, {"bytes": (int,), "sha256": (str,)}, f"{path}: files.{name}")
    for name in (*(manifest.spec(kind).file_name for kind in GRAPH_KINDS), STATE_SPEC_NAME):
        if name not in content:
            raise ArtifactError(f"{path}: files does not list {name}; export it again")
    return {name: FileEntry(**record) for name, record in content.items()}


def _check_graphs(found: Any, wanted: Any, path: Path) -> None:
    difference = _first_difference(found, wanted, "graphs")
    if difference is not None:
        where, got, expected = difference
        raise ArtifactError(
            f"{path}: {where} is {json.dumps(got)}, but this geometry gives {json.dumps(expected)}; export it again"
        )


def _first_difference(found: Any, wanted: Any, where: str) -> tuple[str, Any, Any] | None:
    """Place and values of the first difference between two JSON values, `None` if they are equal."""
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() == wanted.keys():
        pairs = [(f"{where}.{key}", found[key], wanted[key]) for key in wanted]
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = [(f"{where}[{index}]", *pair) for index, pair in enumerate(zip(found, wanted, strict=True))]
    else:
        equal = type(found) is type(wanted) and found == wanted
        return None if equal else (where, _short(found), _short(wanted))
    differences = (_first_difference(a, b, place) for place, a, b in pairs)
    return next((difference for difference in differences if difference is not None), None)


def _short(value: Any) -> Any:
    """A value for an error message: of a list only its length, of an object only its keys."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return sorted(value) if isinstance(value, dict) else value


_MANIFEST_TYPES: dict[str, tuple[type, ...]] = {
    "format_version": (int,),
    "name": (str,),
    "precision": (str,),
    "num_codebooks": (int,),
    "layout": (str,),
    "frames_per_call": (int, type(None)),
    "source": (dict,),
    "geometry": (dict,),
    "graphs": (dict,),
    "conversion": (list,),
    "tools": (dict,),
    "files": (dict,),
}
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "str": (str,),
    "tuple[int, ...]": (list,),
}
_GEOMETRY_TYPES = {entry.name: _JSON_TYPES[str(entry.type)] for entry in dataclasses.fields(Geometry)}


def _check_record(record: Any, types: Mapping[str, tuple[type, ...]], where: str) -> None:
    """Raise `ArtifactError` unless `record` is an object with exactly these keys and types."""
    _check_type(record, (dict,), where)
    for key in types:
        if key not in record:
            raise ArtifactError(f"{where} lacks `{key}`; export it again")
    for key in record:
        if key not in types:
            raise ArtifactError(f"{where} has the unknown key `{key}`; export it again")
    for key, allowed in types.items():
        _check_type(record[key], allowed, f"{where}: {key}")


def _check_type(value: Any, allowed: tuple[type, ...], where: str) -> None:
    if type(value) not in allowed:  # not isinstance: JSON's true is no number
        wanted = " or ".join(_TYPE_WORDS[kind] for kind in allowed)
        raise ArtifactError(f"{where} is {json.dumps(_short(value))}, expected {wanted}; export it again")


_TYPE_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
