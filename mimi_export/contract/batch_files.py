"""The list of files that `export --batch` leaves in a directory, and reading it back without PyTorch.

    batch.json     what made the files; size and SHA-256 of each
    parity.json    the parity report of exactly these files, one record for each data type

Reading needs the standard library only, so a download can be checked with the base install.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mimi_export.contract.directory import FileEntry, Source
from mimi_export.contract.files import sha256
from mimi_export.contract.spec import GraphKind
from mimi_export.errors import ArtifactError

FORMAT_VERSION = 1
BATCH_MANIFEST = "batch.json"
BATCH_REPORT = "parity.json"


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
        return {"format_version": FORMAT_VERSION, "kind": "batch", **dataclasses.asdict(self)}


def load_batch(directory: str | os.PathLike[str], verify_hashes: bool = False) -> BatchManifest:
    """Read and check a directory that `export_batch` wrote; with `verify_hashes` every file's content too.

    Raises:
        ArtifactError: no such directory, a damaged or foreign `batch.json`, or a file missing or changed.
    """
    path = Path(directory) / BATCH_MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}; make it with `export --batch`") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not valid JSON; export it again") from error
    try:
        if (content.pop("format_version"), content.pop("kind")) != (FORMAT_VERSION, "batch"):
            raise ArtifactError(f"{path} has another format than {FORMAT_VERSION}; export it again")
        files = {name: FileEntry(**entry) for name, entry in content.pop("files").items()}
        manifest = BatchManifest(**{**content, "source": Source(**content["source"]), "files": files})
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is no list of batch files ({error}); export it again") from error
    for name, entry in files.items():
        file = Path(directory) / name
        if ".." in PurePosixPath(name).parts or not file.is_file() or file.stat().st_size != entry.bytes:
            raise ArtifactError(f"{file} is missing or has another size than {BATCH_MANIFEST} says; export it again")
        if verify_hashes and sha256(file) != entry.sha256:
            raise ArtifactError(f"{file} was changed: {BATCH_MANIFEST} says another SHA-256; export it again")
    return manifest
