#!/usr/bin/env python3
"""Store a variant's weights as float16, with the flags of the published script: an entry to `mimi-export convert fp16`.

python scripts/weight_fp16.py --input-dir artifacts/streaming-8cb --output-dir artifacts/streaming-8cb-fp16
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mimi_export.cli import main as mimi_export


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Store the weights of a variant as float16.")
    parser.add_argument("--input-dir", metavar="DIR", required=True, help="a finished fp32 variant directory")
    parser.add_argument("--output-dir", metavar="DIR", required=True, help="directory to make")
    parser.add_argument("--force", action="store_true", help="replace an earlier variant directory")
    options = parser.parse_args(arguments)
    force = ["--force"] if options.force else []
    return mimi_export(["convert", "fp16", options.input_dir, options.output_dir, *force])


if __name__ == "__main__":
    sys.exit(main())
