#!/usr/bin/env python3
"""Export streaming ONNX graphs with the flags of the published script: a thin entry to `mimi-export export`.

    python scripts/export_streaming_onnx.py --num-codebooks 8 --output-dir artifacts/streaming-8cb

The graphs take any whole number of 80 ms frames per call, so `--chunk-ms` fixes nothing: it is checked, and the
number of samples that a client then feeds is printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mimi_export.cli import main as mimi_export

FRAME_MS = 80
SAMPLES_PER_MS = 24


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the published flags and run the export; returns the exit code."""
    parser = argparse.ArgumentParser(description="Export Mimi as streaming ONNX encoder and decoder graphs.")
    parser.add_argument("--num-codebooks", type=int, default=8, help="codes a frame (default: %(default)s)")
    parser.add_argument("--output-dir", help="directory to make (default: artifacts/streaming-<num-codebooks>cb)")
    parser.add_argument(
        "--chunk-ms",
        type=_chunk_ms,
        default=FRAME_MS,
        help="audio in one call, a multiple of 80; the graphs take any, whatever is given here (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        default="kyutai/mimi",
        help="Hub id, local directory, `synthetic` or `synthetic:tiny` (default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing output directory")
    options = parser.parse_args(arguments)
    command = ["export", "--model", options.model, "--num-codebooks", str(options.num_codebooks)]
    if options.output_dir is not None:
        command += ["--output-dir", options.output_dir]
    if options.force:
        command.append("--force")
    code = mimi_export(command)
    if code == 0:
        samples = options.chunk_ms * SAMPLES_PER_MS
        print(
            f"Chunks of {options.chunk_ms} ms are {samples} samples = {options.chunk_ms // FRAME_MS} frame(s) a call; "
            "the graphs take any whole number of frames."
        )
    return code


def _chunk_ms(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1 or value % FRAME_MS:
        raise argparse.ArgumentTypeError(f"got {text}, expected a positive multiple of {FRAME_MS} (ms, one frame)")
    return value


if __name__ == "__main__":
    sys.exit(main())
