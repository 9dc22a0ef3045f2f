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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mimi_export.contract.files import atomic_file, sha256
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.manifest import (
    BATCH_MANIFEST,
    MANIFEST_NAME,
    STATE_SPEC_NAME,
    BatchManifest,
    FileEntry,
    Manifest,
    parse_batch,
    parse_manifest,
)
from mimi_export.contract.records import Reader
from mimi_export.contract.spec import GraphKind, GraphSpec, state_spec_text
from mimi_export.errors import ArtifactError

HOW_TO_CREATE = (
    "get one with `mimi-export download USER/NAME/VARIANT`, or make one with `mimi-export export --output-dir DIR`"
)


@dataclass(frozen=True)
class Artifact:
    """A variant directory whose manifest was read and found in order."""

    path: Path
    manifest: Manifest

    @property
    def geometry(self) -> Geometry:
        """Sizes of the model."""
        return self.manifest.geometry

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
    for spec in manifest.specs.values():
        if not (directory / spec.file_name).is_file():
            raise ArtifactError(f"{directory} has no {spec.file_name}: write all graphs before the manifest")
    with atomic_file(directory / STATE_SPEC_NAME, force=True) as temporary:
        temporary.write_bytes(_state_spec(manifest))
    manifest = dataclasses.replace(manifest, files=list_files(directory, MANIFEST_NAME))
    with atomic_file(directory / MANIFEST_NAME, force=True) as temporary:
        temporary.write_bytes((json.dumps(manifest.to_dict(), indent=2) + "\n").encode())
    return manifest


def list_files(directory: Path, but: str) -> dict[str, FileEntry]:
    """Size and hash of every file below `directory`, by name, except the list itself."""
    return {
        path.relative_to(directory).as_posix(): FileEntry.of(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / but
    }


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a directory whose files may not be there yet; errors as for `load_artifact`."""
    path = directory / MANIFEST_NAME
    if not directory.exists():
        raise ArtifactError(f"there is no directory {directory}; {HOW_TO_CREATE}")
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is a file, expected a variant directory; {HOW_TO_CREATE}")
    if not path.exists():
        raise ArtifactError(f"{directory} has no {MANIFEST_NAME}, so it is no variant directory; {HOW_TO_CREATE}")
    return parse_manifest(Reader(path, ArtifactError, "; export it again").json(), path)


def load_artifact(directory: str | os.PathLike[str], verify_hashes: bool = False) -> Artifact:
    """Read and check a variant directory; with `verify_hashes` every file's content too.

    Raises:
        ArtifactError: no such directory, no manifest, a manifest that is damaged, of another format version or
            in disagreement with the states computed from its own geometry, or a file that is missing or has
            another size.
    """
    directory = Path(directory)
    artifact = Artifact(directory, read_manifest(directory))
    _check_files(directory, artifact.manifest.files, verify_hashes)
    if (directory / STATE_SPEC_NAME).read_bytes() != _state_spec(artifact.manifest):
        raise ArtifactError(f"{directory / STATE_SPEC_NAME} does not describe the manifest's model; export it again")
    return artifact


def load_batch(directory: str | os.PathLike[str], verify_hashes: bool = False) -> BatchManifest:
    """Read and check a directory that `export --whole-clips` wrote; with `verify_hashes` every file's content too.

    Raises:
        ArtifactError: no such directory, a damaged or foreign `batch.json`, or a file missing or changed.
    """
    directory = Path(directory)
    path = directory / BATCH_MANIFEST
    reader = Reader(path, ArtifactError, "; make it with `mimi-export export --whole-clips`")
    manifest = parse_batch(reader.json(), path)
    _check_files(directory, manifest.files, verify_hashes)
    return manifest


def _check_files(directory: Path, files: Mapping[str, FileEntry], verify_hashes: bool) -> None:
    for name, entry in files.items():
        path = directory / name
        if not path.is_file():
            raise ArtifactError(f"{directory} is incomplete: {name} is missing; export it again")
        if not _lies_in(path.resolve(), directory.resolve()):
            raise ArtifactError(f"{path} is a link that leads out of the directory; copy the file there")
        if path.stat().st_size != entry.bytes:
            raise ArtifactError(
                f"{path} has {path.stat().st_size} bytes, the manifest says {entry.bytes}; export it again"
            )
        if verify_hashes and (found := sha256(path)) != entry.sha256:
            raise ArtifactError(
                f"{path} was changed: its SHA-256 begins {found[:12]}, the manifest says {entry.sha256[:12]}; "
                "export it again"
            )


def _lies_in(file: Path, directory: Path) -> bool:
    """Whether a file is in a directory, or where the Hub's own cache keeps those of a snapshot."""
    snapshots = (folder for folder in directory.parents if folder.name == "snapshots")
    return file.is_relative_to(directory) or any(file.parent == folder.parent / "blobs" for folder in snapshots)


def _state_spec(manifest: Manifest) -> bytes:
    return state_spec_text(manifest.geometry, manifest.shape.num_codebooks, manifest.shape.kinds).encode()
