"""Pictures for the HTML report: SVG without text, PNG and WAV as data URIs. Nothing is loaded from anywhere.

An SVG here is stretched to its place's width, so that it fits a phone; labels are HTML beside it. These lines stand for
plotly, which would put 4 MB of script into every report, and for an imaging library, which no install needs otherwise.
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import soundfile

from mimi_export.parity.metrics import Array, Audio
from mimi_export.parity.ties import DIFFERS, EQUAL, FOLLOWS, TIE

WIDTH, HEIGHT = 1000, 200  # units of an SVG's viewBox
COLUMNS = 480  # of a picture or an envelope
FLOOR_DB, TOP_DB = -100.0, 0.0  # of a spectrogram

# Black, violet, magenta, orange, pale yellow: even steps of lightness, readable by the colour-blind.
SOUND = ((0, 0, 4), (40, 17, 89), (114, 31, 129), (183, 55, 121), (241, 96, 93), (254, 175, 119), (252, 253, 191))
VERDICTS = {  # colour and name of each verdict on a code, the best first
    EQUAL: ("#268470", "equal"),
    FOLLOWS: ("#f8e08c", "follows from a tie"),
    TIE: ("#f0c83c", "tie"),
    DIFFERS: ("#d0342c", "differs"),
}


def envelope(samples: Audio, columns: int = COLUMNS) -> tuple[Array, Array]:
    """Lowest and highest sample of each of at most `columns` equal spans."""
    finite = np.where(np.isfinite(samples), samples, 0)
    starts = span_starts(len(finite), columns)
    return np.minimum.reduceat(finite, starts), np.maximum.reduceat(finite, starts)


def span_starts(length: int, most: int) -> Array:
    """Where equal spans of `length` places begin, at most `most` of them and none empty."""
    return np.linspace(0, length, min(most, length) + 1).astype(int)[:-1]


def waveforms(original: Audio, reference: Audio, result: Audio) -> str:
    """Three waveforms over each other: two areas, and the result as an outline that an exact one leaves closed."""
    top = max(1e-3, *(float(np.abs(signal).max(initial=0)) for signal in (original, reference)))
    parts = []
    for name, signal in (("original", original), ("reference", reference)):
        high, low = _sides(signal, top)
        parts.append(f'<polygon class="wave-{name}" points="{" ".join([*high, *reversed(low)])}"/>')
    parts += [f'<polyline class="wave-result" points="{" ".join(side)}"/>' for side in _sides(result, top)]
    return _svg(parts)


def lines(series: Sequence[tuple[int, Array]], low: float, high: float, grid: Sequence[float]) -> str:
    """Curves, `(colour, values)` each, from `low` to `high`, over grid lines; values outside are moved to the edge."""
    heights = _heights(np.array(grid), low, high)
    parts = [f'<line class="grid" x1="0" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>' for y in heights]
    for colour, values in series:
        finite = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
        points = _points(finite if len(finite) > 1 else np.repeat(finite, 2), low, high)
        parts.append(f'<polyline class="s{colour}" points="{" ".join(points)}"/>')
    return _svg(parts)


def heat_map(verdict: npt.NDArray[np.uint8]) -> str:
    """Verdicts on codes `[K, frames]` as a PNG; where frames share a column, the worst verdict shows."""
    rank = np.zeros(len(VERDICTS), np.uint8)
    rank[list(VERDICTS)] = range(len(VERDICTS))
    worst = np.maximum.reduceat(rank[verdict], span_starts(verdict.shape[1], COLUMNS), axis=1)
    return png(worst, [list(bytes.fromhex(colour[1:])) for colour, _ in VERDICTS.values()])


def spectrogram_png(levels: Array) -> str:
    """A spectrogram `[bands, columns]` in dB as a PNG, low notes at the bottom."""
    scaled = np.clip((levels[::-1] - FLOOR_DB) / (TOP_DB - FLOOR_DB), 0, 1)
    stops = np.linspace(0, 255, len(SOUND))
    channels = [np.interp(np.arange(256), stops, channel).astype(np.uint8) for channel in zip(*SOUND, strict=True)]
    return png((scaled * 255).astype(np.uint8), np.stack(channels, axis=1))


def png(indices: npt.NDArray[np.uint8], palette: npt.ArrayLike) -> str:
    """A picture `[height, width]` of indices of `palette` `[colours, 3]` as a data URI (PNG, colour type 3,
    ISO/IEC 15948).
    """
    height, width = indices.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), indices.astype(np.uint8)], axis=1)  # filter 0 each
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", np.asarray(palette, np.uint8).tobytes()),
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


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">{"".join(parts)}</svg>'


def _heights(values: Array, low: float, high: float) -> Array:
    """Where values stand in a picture from `low` to `high`; those outside are moved to the edge."""
    return HEIGHT - HEIGHT * (np.clip(values.astype(np.float64), low, high) - low) / (high - low)


def _points(values: Array, low: float, high: float) -> list[str]:
    """A curve over the whole width."""
    xs = np.linspace(0, WIDTH, len(values))
    return [f"{x:.1f},{y:.1f}" for x, y in zip(xs, _heights(values, low, high), strict=True)]


def _sides(samples: Audio, top: float) -> tuple[list[str], list[str]]:
    """The upper and the lower edge of a waveform."""
    low, high = envelope(samples)
    return _points(high / top, -1, 1), _points(low / top, -1, 1)
