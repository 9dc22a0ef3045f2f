"""Latents of one stream as a file or on standard output: float32, a row for each frame.

.safetensors   tensor `latents` [channels, frames, width]; metadata in the header
.npy           the array alone
standard output: `f32le`, row after row without a header, or `jsonl`, a list for each frame
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from mimi_export.errors import CodesError
from mimi_export.media.codes import CodesMetadata, WholeFileWriter
from mimi_export.media.pipes import Outlet

Latents = npt.NDArray[np.float32]

FORMATS = (".npy", ".safetensors")
PIPE_FORMS = ("f32le", "jsonl")


class LatentsWriter(WholeFileWriter):
    """Collect latents, 4 bytes a number, and write them when the `with` block ends without an exception."""

    def __init__(self, path: Path, metadata: CodesMetadata | None = None, force: bool = False) -> None:
        super().__init__(path, FORMATS, force)
        self.num_frames = 0
        self._metadata = metadata or CodesMetadata()
        self._blocks: list[Latents] = []

    def append(self, latents: Latents) -> None:
        """Append latents `[channels, n, width]`."""
        self.num_frames += latents.shape[1]
        self._blocks.append(latents)

    def _write(self, temporary: Path) -> None:
        values = np.concatenate(self._blocks, axis=1)
        if self.path.suffix.lower() == ".npy":
            with temporary.open("wb") as file:  # numpy would add .npy to .NPY
                np.save(file, values)
        else:
            fields = {name: str(value) for name, value in self._metadata.to_dict().items()}
            save_file({"latents": values}, temporary, fields)


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
                self.put_line(values[0] if len(values) == 1 else values)
