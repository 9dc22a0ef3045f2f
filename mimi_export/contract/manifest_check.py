"""Reading a manifest strictly: whatever a program or a person changed in it is named, in one line.

Not only types are checked: inputs, outputs and states must be those that `spec` computes for the manifest's own
geometry, so a manifest that was edited, or made by a program with another definition of the states, does not load.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mimi_export.contract.geometry import Geometry
from mimi_export.contract.manifest import FORMAT_VERSION, STATE_SPEC_NAME, FileEntry, Manifest, Source
from mimi_export.contract.spec import GRAPH_KINDS, KV_LAYOUTS, Shape
from mimi_export.errors import ArtifactError, ConfigError


def parse_manifest(content: Any, path: Path) -> Manifest:
    """The strict inverse of `Manifest.to_dict`; `path` is where `content` was read, for messages.

    Raises:
        ArtifactError: another format version, an unknown or missing key, a value of another type, or graphs that
            are not those which `spec.graph_spec` computes for the geometry.
    """
    if not isinstance(content, dict) or "format_version" not in content:
        raise ArtifactError(f"{path} has no format_version, so it is no manifest of mimi-export; export it again")
    version = content["format_version"]
    if type(version) is not int or version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format_version {version!r}, this program reads {FORMAT_VERSION}; "
            "export it again or use the program that made it"
        )
    content = {"batch": None, **content}  # only graphs of a fixed batch have it
    _check_record(content, _MANIFEST_TYPES, str(path))
    _check_record(content["source"], {"model": (str,), "revision": (str, type(None))}, f"{path}: source")
    _check_record(content["geometry"], _GEOMETRY_TYPES, f"{path}: geometry")
    _check_sizes(content["geometry"], f"{path}: geometry")
    for name, version in content["tools"].items():
        _check_type(version, (str,), f"{path}: tools.{name}")
    for index, record in enumerate(content["conversion"]):
        _check_type(record, (dict,), f"{path}: conversion[{index}]")
    if content["layout"] not in KV_LAYOUTS:
        raise ArtifactError(f"{path}: layout is {content['layout']!r}, expected one of {', '.join(KV_LAYOUTS)}")
    try:
        manifest = Manifest(
            content["name"],
            Geometry.from_dict(content["geometry"]),
            Shape(content["num_codebooks"], content["layout"], content["frames_per_call"], content["batch"]),
            Source(**content["source"]),
            content["precision"],
            content["tools"],
            content["conversion"],
        )
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error}; export it again") from error
    manifest = dataclasses.replace(manifest, files=_parse_files(content["files"], manifest, path))
    _check_graphs(content["graphs"], manifest.to_dict()["graphs"], path)
    return manifest


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
    "batch": (int, type(None)),
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


def _check_sizes(geometry: Mapping[str, Any], where: str) -> None:
    """Raise `ArtifactError` for a size that is not positive, before anything is divided by it."""
    sizes = {name: value for name, value in geometry.items() if type(value) is int and name != "num_residual_layers"}
    sizes |= {f"upsampling_ratios[{index}]": ratio for index, ratio in enumerate(geometry["upsampling_ratios"])}
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise ArtifactError(f"{where}: {name} is {json.dumps(value)}, expected 1 or more; export it again")


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
