"""The variant directory: two graphs, `state_spec.txt` and the `manifest.json` that says what they are.

    streaming-8cb/
        manifest.json          written last; everything below is listed in it with size and SHA-256
        encoder_model.onnx     decoder_model.onnx
        state_spec.txt         the published list of convolution states

A directory is used only if all of this is there and agrees. Files that the manifest does not list are ignored.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimi_export.contract.files import atomic_file, sha256
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.manifest import (
    FORMAT_VERSION,
    STATE_SPEC_NAME,
    FileEntry,
    Manifest,
    Source,
    metadata_props,
)
from mimi_export.contract.manifest_check import parse_manifest
from mimi_export.contract.spec import GRAPH_KINDS, GraphKind, GraphSpec, state_spec_text
from mimi_export.errors import ArtifactError

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "STATE_SPEC_NAME",
    "Artifact",
    "FileEntry",
    "Manifest",
    "Source",
    "load_artifact",
    "metadata_props",
    "verify_files",
    "write_manifest",
]

MANIFEST_NAME = "manifest.json"
HOW_TO_CREATE = "create one with `mimi-export export --output-dir DIR`"


@dataclass(frozen=True)
class Artifact:
    """A variant directory whose manifest was read and found in order."""

    path: Path
    manifest: Manifest

    @property
    def geometry(self) -> Geometry:
        """Sizes of the model."""
        return self.manifest.geometry

    @property
    def encoder_path(self) -> Path:
        """The encoder's graph."""
        return self.graph_path("encoder")

    @property
    def decoder_path(self) -> Path:
        """The decoder's graph."""
        return self.graph_path("decoder")

    def graph_path(self, kind: GraphKind) -> Path:
        """The file of one graph."""
        return self.path / self.spec(kind).file_name

    def spec(self, kind: GraphKind) -> GraphSpec:
        """Inputs and outputs of one graph."""
        return self.manifest.spec(kind)


def write_manifest(directory: str | os.PathLike[str], manifest: Manifest) -> Manifest:
    """Complete a directory that holds the two graphs: write `state_spec.txt`, hash every file, write the manifest.

    Every file below `directory` is listed, so external data and samples belong there before this call.

    Returns:
        The manifest with `files` filled in.

    Raises:
        ArtifactError: a graph is missing.
        OutputError: the directory cannot be written.
    """
    directory = Path(directory)
    for kind in GRAPH_KINDS:
        name = manifest.spec(kind).file_name
        if not (directory / name).is_file():
            raise ArtifactError(f"{directory} has no {name}: write both graphs before the manifest")
    with atomic_file(directory / STATE_SPEC_NAME, force=True) as temporary:
        temporary.write_bytes(_state_spec(manifest))
    files = {
        path.relative_to(directory).as_posix(): FileEntry(path.stat().st_size, sha256(path))
        for path in directory.rglob("*")
        if path.is_file() and path != directory / MANIFEST_NAME
    }
    manifest = dataclasses.replace(manifest, files=files)
    with atomic_file(directory / MANIFEST_NAME, force=True) as temporary:
        temporary.write_bytes((json.dumps(manifest.to_dict(), indent=2) + "\n").encode())
    return manifest


def load_artifact(directory: str | os.PathLike[str], verify_hashes: bool = False) -> Artifact:
    """Read and check a variant directory; with `verify_hashes` every file's content too (`verify_files`).

    Raises:
        ArtifactError: no such directory, no manifest, a manifest that is damaged, of another format version or
            in disagreement with the states computed from its own geometry, or a file that is missing or has
            another size.
    """
    directory = Path(directory)
    manifest = parse_manifest(_read_json(directory), directory / MANIFEST_NAME)
    for name, entry in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise ArtifactError(f"{directory} is incomplete: {name} is missing; export it again")
        if path.stat().st_size != entry.bytes:
            raise ArtifactError(
                f"{path} has {path.stat().st_size} bytes, the manifest says {entry.bytes}; export it again"
            )
    if (directory / STATE_SPEC_NAME).read_bytes() != _state_spec(manifest):
        raise ArtifactError(f"{directory / STATE_SPEC_NAME} does not describe the manifest's model; export it again")
    artifact = Artifact(directory, manifest)
    if verify_hashes:
        verify_files(artifact)
    return artifact


def verify_files(artifact: Artifact) -> None:
    """Hash every file; `ArtifactError` names the first whose content is not what the manifest says."""
    for name, entry in artifact.manifest.files.items():
        found = sha256(artifact.path / name)
        if found != entry.sha256:
            raise ArtifactError(
                f"{artifact.path / name} was changed: its SHA-256 begins {found[:12]}, the manifest says "
                f"{entry.sha256[:12]}; export it again"
            )


def _state_spec(manifest: Manifest) -> bytes:
    return state_spec_text(manifest.geometry, manifest.shape.num_codebooks).encode()


def _read_json(directory: Path) -> Any:
    if not directory.exists():
        raise ArtifactError(f"there is no directory {directory}; {HOW_TO_CREATE}")
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is a file, expected a variant directory; {HOW_TO_CREATE}")
    path = directory / MANIFEST_NAME
    if not path.is_file():
        raise ArtifactError(f"{directory} has no {MANIFEST_NAME}, so it is no variant directory; {HOW_TO_CREATE}")
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ArtifactError(f"{path} is not valid JSON ({error.msg} at {where}); export it again") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not valid JSON (it is not UTF-8 text); export it again") from error
