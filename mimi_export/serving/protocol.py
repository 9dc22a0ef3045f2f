"""What goes over the wire between a client and `mimi-export serve`.

    ws://HOST:PORT/encode?rate=48000&format=f32le      sound in, codes out
    ws://HOST:PORT/decode?rate=48000&format=s16le      codes in, sound out

The server's first message is JSON: `{"type": "ready", …}` with `sampling_rate`, `codebooks` and `frames_per_call`,
or `{"type": "error", "message": …}` before it closes. Then:

- sound is binary messages of mono samples at `rate` (the model's by default), `s16le` (default) or `f32le`, of any
  length;
- codes are binary messages of whole frames, `codebooks` little-endian 16-bit numbers each, of any number of frames;
- `{"type": "end"}` from the client ends its stream: what is left comes, then `{"type": "end", "samples": …,
  "frames": …}`, how many there were of both, and the server closes.

Whoever sends faster than sound plays is held back, and its pings wait behind its data: send none then.

Codes that an encoder gives may be fewer, `codebooks=4`; a decoder here takes all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from mimi_export.contract.records import shown
from mimi_export.errors import AudioError, CodesError, ConfigError
from mimi_export.media.audio import to_int16
from mimi_export.media.resampling import RATES
from mimi_export.media.sources import RAW
from mimi_export.runtime.state import Array

LONGEST = 1000  # characters of a text message
TASKS: tuple[Literal["encode", "decode"], ...] = ("encode", "decode")


@dataclass(frozen=True)
class Wish:
    """What a client asks for in its address."""

    task: Literal["encode", "decode"]
    rate: int
    form: str
    codebooks: int


def parse(address: str, sampling_rate: int, codebooks: int) -> Wish:
    """The wish of a request's path and query; the model's numbers are the defaults.

    Raises:
        ConfigError: no such path, an unknown or repeated word, or a value that cannot be had.
    """
    parts = urlsplit(address)
    task = parts.path.strip("/")
    if task not in TASKS:
        raise ConfigError(f"there is no {shown(parts.path)} here, expected /encode or /decode")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    words = dict(pairs)
    words.pop("token", None)
    unknown = set(words) - {"rate", "format", "codebooks"}
    if unknown or len(dict(pairs)) < len(pairs):
        raise ConfigError("the query takes rate, format, codebooks and token, each once")
    rate = _number("rate", words.get("rate", str(sampling_rate)))
    if rate not in RATES:
        raise ConfigError(f"rate is {rate}, expected {RATES[0]} to {RATES[-1]}")
    form = words.get("format", "s16le")
    if form not in RAW:
        raise ConfigError(f"format is {shown(form)}, expected {' or '.join(RAW)}")
    wanted = _number("codebooks", words.get("codebooks", str(codebooks)))
    if not 1 <= wanted <= codebooks or (task == "decode" and wanted < codebooks):
        raise ConfigError(f"codebooks is {wanted}, expected {f'1 to {codebooks}' if task == 'encode' else codebooks}")
    return Wish("encode" if task == "encode" else "decode", rate, form, wanted)


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 9):
        raise ConfigError(f"{name} is {shown(text)}, expected a whole number")
    return int(text)


def samples(message: bytes, form: str) -> Array:
    """Samples `[n]` float32 of a binary message; `AudioError` where it ends inside one."""
    kind, scale = RAW[form]
    size = np.dtype(kind).itemsize
    if len(message) % size:
        raise AudioError(f"a message of {len(message)} bytes, expected whole samples of {size} bytes")
    found: Array = np.frombuffer(message, kind).astype(np.float32) / np.float32(scale)
    return found


def sound(block: Array, form: str) -> bytes:
    """A binary message of samples `[n]`."""
    kept: Array = to_int16(block) if form == "s16le" else block
    return bytes(kept.astype(RAW[form][0]).tobytes())


def codes(message: bytes, codebooks: int) -> Array:
    """Codes `[K, frames]` of a binary message; `CodesError` where it ends inside a frame."""
    if len(message) % (2 * codebooks):
        raise CodesError(f"a message of {len(message)} bytes, expected whole frames of {2 * codebooks} bytes")
    found: Array = np.frombuffer(message, "<u2").reshape(-1, codebooks).T.astype(np.int64)
    return found


def frames(block: Array, codebooks: int) -> bytes:
    """A binary message of the first codes of each frame of `[K, frames]`."""
    return bytes(block[:codebooks].T.astype("<u2").tobytes())


def check_end(message: str) -> None:
    """Refuse a text message that is not the end, with a `ConfigError`."""
    try:
        value: Any = json.loads(message) if len(message) < LONGEST else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or value.get("type") != "end":
        raise ConfigError('a text message is no {"type": "end"}; sound and codes are binary messages')
