"""Whether downloaded files work where they are now: hashes, contract, and the graphs themselves. No PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from mimi_export.contract.directory import load_artifact, load_batch
from mimi_export.contract.spec import GRAPH_KINDS
from mimi_export.errors import ArtifactError
from mimi_export.runtime import Codec
from mimi_export.runtime.golden import GOLDEN_NAME, replay_golden


def verify_variant(directory: Path) -> None:
    """Check a variant directory as `mimi-export verify` does; one without a golden clip runs one call.

    Raises:
        ArtifactError: a file is missing or changed, or a graph does not load, run or give what it should.
    """
    artifact = load_artifact(directory, verify_hashes=True)
    if GOLDEN_NAME in artifact.manifest.files:
        result = replay_golden(artifact)
        if not result.passed:
            raise ArtifactError(
                f"{artifact.manifest.name} does not compute here what it should: {100 * result.codes_equal:.2f} % "
                "of the "
                f"golden codes are equal (wanted {100 * result.codes_least:g} %), audio {result.snr_db:.1f} dB (wanted "
                f"{result.snr_least:g} dB)"
            )
        return
    codec = Codec(artifact)
    frames = artifact.manifest.shape.frames_per_call or 1
    samples = np.zeros(frames * artifact.geometry.frame_size, np.float32)
    codes = codec.encoder.stream().push(samples)
    audio = codec.decoder.stream().push(codes)
    if codes.shape[-1] != frames or audio.shape[-1] != samples.size or not np.isfinite(audio).all():
        raise ArtifactError(f"{artifact.manifest.name} gives {list(codes.shape)} codes and {list(audio.shape)} samples")


def verify_batch(directory: Path) -> None:
    """Check a directory for whole clips: hashes, and a clip of one sample more than a frame through every data type.

    Raises:
        ArtifactError: a file is missing or changed, or a graph does not load, run or give what it should.
    """
    manifest = load_batch(directory, verify_hashes=True)
    samples = np.zeros((1, 1, manifest.frame_size + 1), np.float32)
    for dtype, files in manifest.dtypes.items():
        data = samples
        for kind in GRAPH_KINDS:
            session = ort.InferenceSession(str(directory / files[kind]), providers=["CPUExecutionProvider"])
            data = session.run(None, {session.get_inputs()[0].name: data})[0]
        if data.shape != (1, 1, 2 * manifest.frame_size) or not np.isfinite(data).all():
            raise ArtifactError(f"{manifest.name} {dtype} gives audio of shape {list(data.shape)}")
