"""What streams refuse to take: samples, codes and latents of a wrong shape, type or value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mimi_export.contract.geometry import Geometry
from mimi_export.contract.spec import LATENTS, GraphSpec
from mimi_export.errors import AudioError, CodesError
from mimi_export.runtime.state import Array

Audio = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]


def check_decoded(data: npt.ArrayLike, batch: int, spec: GraphSpec, geometry: Geometry) -> Array:
    """What a decoder takes, time last: codes int64 `[B, K, T]` or latents float32 `[B, hidden, T]`."""
    if spec.shape.start == LATENTS:
        return check_latents(data, batch, geometry.hidden_size)
    return check_codes(data, batch, spec.shape.num_codebooks, geometry.codebook_size)


def check_latents(latents: npt.ArrayLike, batch: int, width: int) -> Array:
    """Latents `[T, hidden]` (batch 1) or `[B, T, hidden]` as float32 `[B, hidden, T]`; `CodesError` for all else."""
    array: npt.NDArray[Any] = np.asarray(latents)
    if array.ndim == 2 and batch == 1:
        array = array[None]
    if array.dtype.kind != "f" or array.ndim != 3 or (len(array), array.shape[2]) != (batch, width):
        found = f"{array.dtype} {list(array.shape)}"
        raise CodesError(f"latents are {found}, this decoder takes floats [{batch}, frames, {width}]")
    if not np.isfinite(array).all():
        row, frame, channel = np.argwhere(~np.isfinite(array))[0]
        raise CodesError(f"channel {channel} at row {row}, frame {frame} is {array[row, frame, channel]}")
    return np.swapaxes(array.astype(np.float32, copy=False), 1, 2)


def check_audio(samples: npt.ArrayLike, batch: int) -> Audio:
    """Samples `[n]` (batch 1) or `[B, n]` as float32 `[B, 1, n]`; `AudioError` for what no encoder should get."""
    array: npt.NDArray[Any] = np.asarray(samples)
    if array.dtype.kind != "f":
        raise AudioError(f"samples are {array.dtype}, expected floats of full scale 1.0 (int16 / 32768)")
    if array.ndim == 1 and batch == 1:
        array = array[None]
    if array.ndim != 2 or array.shape[0] != batch:
        raise AudioError(f"samples have shape {list(array.shape)}, expected [{batch}, samples]")
    audio: Audio = array.astype(np.float32, copy=False)
    if not math.isfinite(np.vdot(audio, audio)):  # NaN and infinite samples show in the sum, and huge ones may
        bad = np.argwhere(~np.isfinite(audio))
        if len(bad):
            row, place = bad[0]
            raise AudioError(
                f"sample {place} of row {row} is {audio[row, place]}; remove NaN and infinite samples first"
            )
    return audio[:, None]


def check_codes(codes: npt.ArrayLike, batch: int, num_codebooks: int, codebook_size: int) -> Codes:
    """Codes `[K, T]` (batch 1) or `[B, K, T]` as int64 `[B, K, T]`; `CodesError` for what no decoder should get.

    K is 1 to `num_codebooks`. The message names the first bad value in the order row, codebook, frame.
    """
    array: npt.NDArray[Any] = np.asarray(codes)
    if array.dtype.kind not in "iu":
        raise CodesError(f"codes are {array.dtype}, expected integers")
    if array.ndim == 2 and batch == 1:
        array = array[None]
    if array.ndim != 3 or array.shape[0] != batch:
        raise CodesError(f"codes have shape {list(array.shape)}, expected [{batch}, codebooks, frames]")
    if not 1 <= array.shape[1] <= num_codebooks:
        raise CodesError(f"codes have {array.shape[1]} codebooks, this decoder takes 1 to {num_codebooks}")
    if array.size and not (array.min() >= 0 and array.max() < codebook_size):
        bad = (array < 0) | (array >= codebook_size)
        row, codebook, frame = np.unravel_index(int(np.argmax(bad)), bad.shape)
        raise CodesError(
            f"code {array[row, codebook, frame]} at row {row}, codebook {codebook}, frame {frame} is out of range, "
            f"expected 0 to {codebook_size - 1}"
        )
    return array.astype(np.int64, copy=False)
