"""Samples of a microphone through a codec to a loudspeaker."""

from __future__ import annotations

import queue
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from mimi_export.cli.console import Steps
from mimi_export.errors import AudioError
from mimi_export.media.resampling import Resampler
from mimi_export.runtime import Codec

Samples = npt.NDArray[np.float32]

SHOW_SECONDS = 0.25  # between two lines of figures
PATIENCE = 2.0  # seconds without a sample after which a device counts as gone


class Loop:
    """Samples of a microphone through a codec to a loudspeaker.

    A device's thread calls `exchange`; `run` computes. A gap is a moment in which there was nothing to play.
    """

    def __init__(self, codec: Codec, num_codebooks: int, rate: int) -> None:
        model = codec.geometry.sampling_rate
        self.rate = rate
        self.gaps = self.played = 0
        self.delays: list[float] = []  # ms between a sample at the microphone and its sound
        self._count = num_codebooks
        self._into, self._out = Resampler(rate, model), Resampler(model, rate)
        self._encoder, self._decoder = codec.encoder.stream(), codec.decoder.stream()
        self._frame_ms = 1000 * codec.geometry.frame_size / model
        self._heard: queue.Queue[tuple[float, Samples]] = queue.Queue()
        self._ready: queue.Queue[Samples] = queue.Queue()
        self._rest = np.zeros(0, np.float32)

    def exchange(self, heard: Samples, played: Samples, _frames: int, _time: Any, _status: Any) -> None:
        """Take samples `[n, 1]` of the microphone, fill as many for the loudspeaker; never waits."""
        self._heard.put((time.perf_counter(), heard[:, 0].copy()))
        while len(self._rest) < len(played) and not self._ready.empty():
            self._rest = np.concatenate([self._rest, self._ready.get()])
        count = min(len(played), len(self._rest))
        played[:count, 0], played[count:, 0] = self._rest[:count], 0
        self._rest = self._rest[count:]
        self.played += count
        self.gaps += bool(self.played) and count < len(played)

    def run(self, seconds: float | None, device_latency: float, steps: Steps) -> None:
        """Compute until `seconds` are over; `device_latency` in seconds is what the device itself takes."""
        begin = shown = time.perf_counter()
        loudest = [0.0, 0.0]
        while seconds is None or time.perf_counter() - begin < seconds:
            try:
                arrived, block = self._heard.get(timeout=PATIENCE)
            except queue.Empty:
                raise AudioError(f"the microphone gave nothing for {PATIENCE:g} s; is it unplugged?") from None
            sound = self._out.push(self._decoder.push(self._encoder.push(self._into.push(block))[:, : self._count])[0])
            if sound.size:
                waiting = sum(map(len, list(self._ready.queue))) + len(self._rest)
                self._ready.put(sound)
                spent = time.perf_counter() - arrived + waiting / self.rate + device_latency
                resampling = self._into.latency / self._encoder.geometry.sampling_rate + self._out.latency / self.rate
                self.delays.append(1000 * (spent + resampling) + self._frame_ms)
            for index, part in enumerate((block, sound)):
                loudest[index] = max(loudest[index], float(np.abs(part).max(initial=0)))
            if self.delays and time.perf_counter() - shown > SHOW_SECONDS:
                shown = time.perf_counter()
                levels = [f"{20 * np.log10(max(level, 1e-5)):.0f} dB" for level in loudest]
                steps.advance(f"in {levels[0]}, out {levels[1]}, {self.delays[-1]:.0f} ms", shown - begin, seconds)
                loudest = [0.0, 0.0]

    def latency_text(self) -> str:
        """Median and 99th percentile of the time from microphone to loudspeaker."""
        if not self.delays:
            return "not known: nothing was played"
        return f"{np.median(self.delays):.0f} ms, 99 % within {np.percentile(self.delays, 99):.0f} ms"
