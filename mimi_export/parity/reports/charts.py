"""Pictures for the HTML report: SVG without text, PNG and WAV as data URIs. Nothing is loaded from anywhere.

An SVG here is stretched to its place's width, so that it fits a phone; labels are HTML beside it.
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from mimi_export.parity.metrics import Audio
from mimi_export.parity.ties import DIFFERS, EQUAL, FOLLOWS, TIE

Array = npt.NDArray[Any]

WIDTH = 1000  # units of an SVG's viewBox
COLUMNS = 480  # of a picture or an envelope
FLOOR_DB, TOP_DB = -100.0, 0.0  # of a spectrogram

# Black, violet, magenta, orange, pale yellow: even steps of lightness, readable by the colour-blind.
_SOUND = ((0, 0, 4), (40, 17, 89), (114, 31, 129), (183, 55, 121), (241, 96, 93), (254, 175, 119), (252, 253, 191))
_VERDICTS = {EQUAL: (38, 132, 112), TIE: (240, 200, 60), FOLLOWS: (248, 224, 140), DIFFERS: (208, 52, 44)}


def envelope(samples: Audio, columns: int = COLUMNS) -> tuple[Array, Array]:
    """Lowest and highest sample of each of at most `columns` equal spans."""
    finite = np.where(np.isfinite(samples), samples, 0)
    columns = min(columns, len(finite))
    edges = np.linspace(0, len(finite), columns + 1).astype(int)[:-1]
    return np.minimum.reduceat(finite, edges), np.maximum.reduceat(finite, edges)


def waveforms(original: Audio, reference: Audio, result: Audio) -> str:
    """Three waveforms over each other: two areas, and the result as an outline that an exact one leaves closed."""
    top = max(1e-3, *(float(np.abs(signal).max(initial=0)) for signal in (original, reference)))
    parts = [_area(original, top, "wave-original"), _area(reference, top, "wave-reference"), _outline(result, top)]
    return _svg(200, "".join(parts))


def lines(series: Sequence[tuple[int, Array]], low: float, high: float, grid: Sequence[float]) -> str:
    """Curves, `(colour, values)` each, from `low` to `high`, over grid lines; values outside are moved to the edge."""
    parts = [
        f'<line class="grid" x1="0" x2="{WIDTH}" y1="{_y(value, low, high):.1f}" y2="{_y(value, low, high):.1f}"/>'
        for value in grid
    ]
    for colour, values in series:
        clipped = np.clip(np.nan_to_num(values, nan=low, posinf=high, neginf=low), low, high)
        xs = np.linspace(0, WIDTH, len(clipped)) if len(clipped) > 1 else np.array([0.0, WIDTH])
        clipped = clipped if len(clipped) > 1 else np.repeat(clipped, 2)
        points = " ".join(f"{x:.1f},{_y(y, low, high):.1f}" for x, y in zip(xs, clipped, strict=True))
        parts.append(f'<polyline class="s{colour}" points="{points}"/>')
    return _svg(200, "".join(parts))


def heat_map(verdict: npt.NDArray[np.uint8]) -> str:
    """Verdicts on codes `[K, frames]` as a PNG; where frames share a column, the worst verdict shows."""
    frames = verdict.shape[1]
    columns = min(frames, COLUMNS)
    edges = np.linspace(0, frames, columns + 1).astype(int)[:-1]
    rank = np.zeros(4, np.uint8)
    rank[[EQUAL, FOLLOWS, TIE, DIFFERS]] = range(4)
    order = [EQUAL, FOLLOWS, TIE, DIFFERS]
    worst = np.maximum.reduceat(rank[verdict], edges, axis=1)
    return png(worst, [_VERDICTS[kind] for kind in order])


def spectrogram_png(levels: Array) -> str:
    """A spectrogram `[bands, columns]` in dB as a PNG, low notes at the bottom."""
    scaled = np.clip((levels[::-1] - FLOOR_DB) / (TOP_DB - FLOOR_DB), 0, 1)
    stops = np.linspace(0, 255, len(_SOUND))
    channels = [np.interp(np.arange(256), stops, [colour[axis] for colour in _SOUND]) for axis in range(3)]
    palette = [tuple(int(channel[index]) for channel in channels) for index in range(256)]
    return png((scaled * 255).astype(np.uint8), palette)


def png(indices: npt.NDArray[np.uint8], palette: Sequence[tuple[int, ...]]) -> str:
    """A picture `[height, width]` of palette indices as a data URI (PNG, colour type 3, ISO/IEC 15948)."""
    height, width = indices.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), indices.astype(np.uint8)], axis=1)  # filter 0 each
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", bytes(value for colour in palette for value in colour)),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return _uri("image/png", data)


def wav(samples: Audio, sampling_rate: int) -> str:
    """16-bit WAV as a data URI; what is beyond full scale is clipped."""
    finite = np.clip(np.where(np.isfinite(samples), samples, 0), -1, 1)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.rint(finite * 32767).astype(np.int16), sampling_rate, format="WAV")
    return _uri("audio/wav", buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _svg(height: int, content: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" preserveAspectRatio="none" aria-hidden="true">{content}</svg>'


def _y(value: float, low: float, high: float) -> float:
    return float(200 - 200 * (value - low) / (high - low))


def _points(samples: Audio, top: float) -> tuple[list[str], list[str]]:
    low, high = envelope(samples)
    xs = np.linspace(0, WIDTH, len(low)) if len(low) > 1 else np.array([0.0])
    return tuple(  # type: ignore[return-value]
        [f"{x:.1f},{_y(float(np.clip(y / top, -1, 1)), -1, 1):.1f}" for x, y in zip(xs, side, strict=True)]
        for side in (high, low)
    )


def _area(samples: Audio, top: float, name: str) -> str:
    high, low = _points(samples, top)
    return f'<polygon class="{name}" points="{" ".join([*high, *reversed(low)])}"/>'


def _outline(samples: Audio, top: float) -> str:
    high, low = _points(samples, top)
    return "".join(f'<polyline class="wave-result" points="{" ".join(side)}"/>' for side in (high, low))
