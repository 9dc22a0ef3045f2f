"""Collect the speech that the demo checkpoint was trained on: `python scripts/demo_data.py FOLDER`.

On Debian, as root:  apt-get install ffmpeg flite asterisk-core-sounds-{en,es,fr,it,ru}-g722

The prompts become WAV files. Flite's four best voices speak paragraphs of Python's documentation, which every Python
carries. The recordings stay where they are installed; nothing of them is part of this project.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated

import typer

LANGUAGES = ("en", "es", "fr", "it", "ru")
VOICES = ("slt", "rms", "awb", "kal16")
TEXTS, SENTENCES = 14, 6  # a voice, and in each of them
PLAIN = re.compile(r"[A-Za-z ,.'();:-]{41,199}")


def prompts(folder: Path) -> Iterator[tuple[list[str], Path]]:
    """Commands that convert the installed prompts, and what each writes."""
    for language in LANGUAGES:
        package = f"asterisk-core-sounds-{language}-g722"
        files = subprocess.run(["dpkg", "-L", package], check=True, capture_output=True, text=True).stdout.split("\n")
        for file in files:
            if file.endswith(".g722"):
                target = folder / language / f"{file.replace('/', '_')}.wav"
                yield ["ffmpeg", "-v", "error", "-nostdin", "-n", "-f", "g722", "-i", file, str(target)], target


def speeches(folder: Path) -> Iterator[tuple[list[str], Path]]:
    """Commands that speak, and what each writes."""
    text = re.sub(r"[*`\"]", "", " ".join(topics[name] for name in sorted(topics)))
    lines = [re.sub(r"\s+", " ", line).strip() for line in re.split(r"(?<=[.!?])\s+", text)]
    plain = [line for line in lines if PLAIN.fullmatch(line)]
    for index in range(len(VOICES) * TEXTS):
        voice, number = VOICES[index // TEXTS], index % TEXTS
        target = folder / "flite" / f"{voice}{number}.wav"
        words = " ".join(plain[index * SENTENCES : (index + 1) * SENTENCES])
        yield ["flite", "-voice", voice, "-t", words, "-o", str(target)], target


def main(folder: Annotated[Path, typer.Argument(help="Where the WAV files go.")]) -> None:
    """Write the training audio as WAV files below FOLDER; what is there already stays."""
    made = 0
    for command, target in [*prompts(folder), *speeches(folder)]:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            subprocess.run(command, check=True)
            made += 1
    typer.echo(f"{folder}: {made} files written; go on with `python scripts/train_demo.py pack data.i16 {folder}`")


if __name__ == "__main__":
    typer.run(main)
