"""Store a variant's weights as float16: `mimi-export convert fp16` under the published name and flags.

    python scripts/weight_fp16.py --input-dir artifacts/streaming-8cb --output-dir artifacts/streaming-8cb-fp16
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mimi_export.cli.convert import convert_fp16
from mimi_export.cli.errors import errors_as_exit_codes
from mimi_export.cli.options import Force, Json


def main(
    input_dir: Annotated[Path, typer.Option("--input-dir", metavar="DIR", help="A finished fp32 variant directory.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", metavar="DIR", help="Directory to make.")],
    force: Force = False,
    json: Json = False,
) -> None:
    """Store the weights of a variant as float16; arithmetic stays float32."""
    with errors_as_exit_codes():
        convert_fp16(input_dir, output_dir, force=force, json=json)


if __name__ == "__main__":
    typer.run(main)
