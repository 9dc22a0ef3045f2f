"""Latents of one stream as a file or on standard output: float32, a row for each frame.

.safetensors   tensor `latents` [channels, frames, width]; metadata in the header
.npy           the array alone
standard output: `f32le`, row after row without a header, or `jsonl`, a list for each frame
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from mimi_export.contract.files import atomic_file
from mimi_export.errors import CodesError
from mimi_export.media.codes import CodesMetadata
from mimi_export.media.pipes import Outlet

Latents = npt.NDArray[np.float32]

FORMATS = (".npy", ".safetensors")
PIPE_FORMS = ("f32le", "jsonl")


class LatentsWriter:
    """Collect latents, 4 bytes a number, and write them when the `with` block ends without an exception.

    Raises:
        CodesError: unknown extension.
        OutputError: the file exists and `force` is not given, or cannot be written.
    """

    def __init__(self, path: Path, metadata: CodesMetadata | None = None, force: bool = False) -> None:
        if path.suffix.lower() not in FORMATS:
            raise CodesError(f"{path} has the extension {path.suffix or '(none)'}, expected {' or '.join(FORMATS)}")
        self.num_frames = 0
        self._path, self._metadata, self._force = path, metadata or CodesMetadata(), force
        self._blocks: list[Latents] = []
        self._stack = ExitStack()
        self._temporary = path

    def __enter__(self) -> LatentsWriter:
        self._temporary = self._stack.enter_context(atomic_file(self._path, self._force))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._stack:
            values = np.concatenate(self._blocks, axis=1)
            if self._path.suffix.lower() == ".npy":
                np.save(self._temporary, values)
            else:
                fields = {name: str(value) for name, value in self._metadata.to_dict().items()}
                save_file({"latents": values}, self._temporary, fields)

    def append(self, latents: Latents) -> None:
        """Append latents `[channels, n, width]`."""
        self.num_frames += latents.shape[1]
        self._blocks.append(latents)


class LatentsPipe(Outlet):
    """Write latents to standard output; used as a `LatentsWriter`."""

    def __init__(self, form: str = "jsonl") -> None:
        super().__init__()
        if form not in PIPE_FORMS:
            raise CodesError(f"latents as {form}, expected {' or '.join(PIPE_FORMS)}")
        self.num_frames = 0
        self._form = form

    def append(self, latents: Latents) -> None:
        """Append latents `[channels, n, width]`."""
        self.num_frames += latents.shape[1]
        for frame in np.moveaxis(latents, 1, 0):
            if self._form == "f32le":
                self.put(frame.astype("<f4").tobytes())
            else:
                values: Any = [[round(float(value), 6) for value in row] for row in frame]
                self.put(json.dumps(values[0] if len(values) == 1 else values, separators=(",", ":")).encode() + b"\n")
