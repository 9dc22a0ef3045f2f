"""The picture at the top of the README: waveform and spectrogram of the demo's recording, and of what comes out.

python scripts/picture.py scripts/clips/speech.ogg scripts/clips/decoded.ogg scripts/clips/picture.png
"""

import base64
import sys
from pathlib import Path

import numpy as np

from mimi_export.media.audio import read_audio
from mimi_export.parity.reports import charts
from mimi_export.parity.spectra import spectrogram

SECONDS, RATE = 8, 24000
COLUMNS, WAVE, GAP = 960, 56, 8  # pixels
PAPER, INK = (248, 249, 250), (38, 132, 112)  # a light ground, so that it reads on a dark page as well
SHADES = 62  # of the spectrogram's palette; with paper and ink they make 64 colours


def waveform(samples: np.ndarray) -> np.ndarray:
    """One column a span, from its lowest to its highest sample."""
    low, high = (WAVE / 2 * (1 - side) for side in charts.envelope(samples / np.abs(samples).max(), COLUMNS))
    row = np.arange(WAVE)[:, None]
    return ((row >= np.floor(high)) & (row <= np.ceil(low))).astype(int)


def notes(samples: np.ndarray) -> np.ndarray:
    """Low notes at the bottom, from -70 dB below the loudest."""
    levels = spectrogram(samples, RATE, COLUMNS)[::-1]
    scaled = np.clip((levels - levels.max() + 70) / 70, 0, 1)
    shades: np.ndarray = 2 + np.rint(scaled * (SHADES - 1)).astype(int)
    return shades


parts = []
for path in sys.argv[1:3]:
    clip = read_audio(path, RATE)[: SECONDS * RATE]
    parts += [waveform(clip), notes(clip), np.zeros((GAP, COLUMNS), int)]
steps = np.linspace(0, len(charts.SOUND) - 1, SHADES)
shades = [np.interp(steps, range(len(charts.SOUND)), channel) for channel in zip(*charts.SOUND, strict=True)]
palette = np.concatenate([[PAPER, INK], np.stack(shades, axis=1)])
address = charts.png(np.concatenate(parts[:-1]).astype(np.uint8), palette)
Path(sys.argv[3]).write_bytes(base64.b64decode(address.partition(",")[2]))
