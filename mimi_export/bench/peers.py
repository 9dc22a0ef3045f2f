"""Other people's programs that run Mimi, each as a contender of the benchmark in a process of its own.

    python -m mimi_export.bench.peers NAME encoder|decoder --weights PATH [--threads 1] [--codebooks 8]

runs where the peer is installed (an environment of its own) and speaks the protocol of `worker`. PATH is what the
peer loads: a Hugging Face model directory for the `transformers-…` ones, a file in Kyutai's format (see `kyutai`) for
`moshi` and `rustymimi`. All weights are then the same.

Each peer is driven through its public interface, the way its own documents do, on the CPU in float32. Only the call
itself is timed, not the conversion of its input: generated speech, and uniformly random codes, which cost a decoder the
same as real ones. A state can only be reached by running, so a stream of an age is run up to it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mimi_export.bench.worker import Call, serve
from mimi_export.errors import CheckpointError, ConfigError
from mimi_export.media.signals import SAMPLING_RATE, speech_like

FRAME_SIZE, CODEBOOK_SIZE = 1920, 2048  # the peers have Kyutai's geometry built in
CLIP_FRAMES = 125  # a call of a peer that takes whole clips: 10 s
DIRECTIONS = ("encoder", "decoder")
SEEK_FRAMES = 25  # frames a call on the way to an age: 50 tokens, well inside every peer's window
RUSTYMIMI_TOKENS = 32_768  # of its rotary table: 21 minutes; the default of 8192 ends with an error after 327 s


class Peer(ABC):
    """One program in one direction, a `worker.Subject`; `encode` and `decode` continue a stream or take a whole clip.

    Attributes:
        name: what the benchmark calls it.
        modules: what it imports.
        environment: variables that must be set before.
        directions: what it can do.
        frames_per_call: 1 for a frame of a stream.
        note: what a reader of the table must know.
        version: of the program.
    """

    name: str
    version: str
    note: str
    modules: tuple[str, ...]
    environment: ClassVar[dict[str, str]] = {}
    directions: tuple[str, ...] = DIRECTIONS
    ways: tuple[str, ...] = ("stream",)
    frames_per_call = 1

    def __init__(self, direction: str, weights: Path, num_codebooks: int) -> None:
        self.num_codebooks = num_codebooks
        self.load(weights)
        self._run = self.encode if direction == "encoder" else self.decode
        self._is_encoder = direction == "encoder"

    @abstractmethod
    def load(self, weights: Path) -> None:
        """Load the program and its weights."""

    @abstractmethod
    def encode(self, audio: Any) -> object:
        """One call with `[1, 1, samples]`."""

    @abstractmethod
    def decode(self, codes: Any) -> object:
        """One call with `[1, K, frames]`."""

    @abstractmethod
    def reset(self) -> None:
        """Begin new streams."""

    def prepare(self, data: NDArray[Any]) -> Any:
        """Audio or codes in the type that the program takes: a tensor that shares the array's memory."""
        return importlib.import_module("torch").from_numpy(data)

    def calls(self, ways: Sequence[str], age_seconds: float, batch: int) -> dict[str, Call]:
        """See `worker.Subject`; a clip has no age."""
        if batch != 1:
            raise ConfigError(f"{self.name} runs one stream, got a batch of {batch}")
        self.reset()
        left = round(age_seconds * SAMPLING_RATE / FRAME_SIZE) if self.ways == ("stream",) else 0
        while left > 0:
            self._run(self._data(min(SEEK_FRAMES, left)))
            left -= SEEK_FRAMES
        data = self._data(self.frames_per_call)
        return dict.fromkeys(ways, lambda: self._run(data))

    def _data(self, frames: int) -> Any:
        if self._is_encoder:
            return self.prepare(speech_like(frames * FRAME_SIZE / SAMPLING_RATE)[None, None])
        shape = (1, self.num_codebooks, frames)
        return self.prepare(np.random.default_rng(0).integers(0, CODEBOOK_SIZE, shape))


class TransformersStreaming(Peer):
    """`MimiModel.encode` with its two caches.

    Only the encoder: upstream's decoder carries no convolution state, so frame by frame it computes something else,
    and decoding the whole clip again for each frame is no stream.
    """

    name = "transformers-streaming"
    modules = ("torch", "transformers.models.mimi.modeling_mimi")
    directions: tuple[str, ...] = ("encoder",)
    note = "its decoder has no streaming mode, so only its encoder is measured"

    def load(self, weights: Path) -> None:
        """A Hugging Face directory."""
        transformers = importlib.import_module("transformers")
        transformers.utils.logging.disable_progress_bar()
        self.version = version("transformers")
        self.model = transformers.MimiModel.from_pretrained(weights, local_files_only=True).eval()
        self._caches: dict[str, Any] = {}

    def encode(self, audio: Any) -> None:
        """The next whole frames of the stream."""
        result = self.model.encode(audio, num_quantizers=self.num_codebooks, use_streaming=True, **self._caches)
        self._caches = {
            "encoder_past_key_values": result.encoder_past_key_values,
            "padding_cache": result.padding_cache,
        }

    def decode(self, codes: Any) -> object:
        """A whole clip."""
        return self.model.decode(codes)

    def reset(self) -> None:
        """Forget both caches."""
        self._caches = {}


class TransformersBatch(TransformersStreaming):
    """`MimiModel.encode` and `.decode` on whole clips: the throughput of a file, and no latency."""

    name = "transformers-batch"
    directions = DIRECTIONS
    ways = ("clip",)
    frames_per_call = CLIP_FRAMES
    note = "whole clips, there is no stream that could have an age"

    def encode(self, audio: Any) -> object:  # type: ignore[override]
        """A whole clip."""
        return self.model.encode(audio, num_quantizers=self.num_codebooks)


class Moshi(Peer):
    """Kyutai's PyTorch implementation inside `streaming`, one state for each direction.

    Its `torch.compile` of the rotary positions is off: on a CPU it gains nothing and needs a C++ compiler.
    """

    name = "moshi"
    modules = ("torch", "moshi.models.loaders")
    environment: ClassVar[dict[str, str]] = {"NO_TORCH_COMPILE": "1"}
    note = "streaming, uncompiled"

    def load(self, weights: Path) -> None:
        """A file in Kyutai's format."""
        self.version = version("moshi")
        loaders = importlib.import_module("moshi.models.loaders")
        self._model = loaders.get_mimi(weights, num_codebooks=self.num_codebooks)
        self._model.streaming_forever(1)

    def encode(self, audio: Any) -> object:
        """The next whole frames of the stream."""
        return self._model.encode(audio)

    def decode(self, codes: Any) -> object:
        """The next frames of the stream."""
        return self._model.decode(codes)

    def reset(self) -> None:
        """Begin both streams anew."""
        self._model.reset_streaming()


class Rustymimi(Peer):
    """Kyutai's Rust implementation (candle) through its Python binding."""

    name = "rustymimi"
    modules = ("rustymimi",)
    note = f"streaming, rotary table enlarged to {RUSTYMIMI_TOKENS} tokens"

    def load(self, weights: Path) -> None:
        """A file in Kyutai's format."""
        rustymimi = importlib.import_module("rustymimi")
        self.version = version("rustymimi")
        sizes = {"num_codebooks": self.num_codebooks, "max_seq_len": RUSTYMIMI_TOKENS}
        self._tokenizer = rustymimi.Tokenizer(str(weights), **sizes)

    def prepare(self, data: NDArray[Any]) -> Any:
        """The binding takes float32 and uint32 arrays."""
        return data.astype(np.uint32) if data.dtype.kind == "i" else data

    def encode(self, audio: Any) -> object:
        """The next whole frames of the stream."""
        return self._tokenizer.encode_step(audio)

    def decode(self, codes: Any) -> object:
        """The next frames of the stream."""
        return self._tokenizer.decode_step(codes)

    def reset(self) -> None:
        """Begin both streams anew."""
        self._tokenizer.reset()


PEERS: dict[str, type[Peer]] = {
    peer.name: peer for peer in (TransformersBatch, TransformersStreaming, Moshi, Rustymimi)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Load a peer and serve."""
    parser = argparse.ArgumentParser(prog="mimi_export.bench.peers", description="Run one peer of the benchmark.")
    parser.add_argument("name", choices=sorted(PEERS))
    parser.add_argument("direction", choices=DIRECTIONS)
    parser.add_argument("--weights", type=Path, required=True, help="model directory or file in Kyutai's format")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--codebooks", type=int, default=8)
    options = parser.parse_args(arguments)
    chosen = PEERS[options.name]
    os.environ.update(chosen.environment)  # before the imports, which read it

    def load() -> Peer:
        if "torch" in chosen.modules:
            torch = importlib.import_module("torch")
            torch.set_grad_enabled(False)
            torch.set_num_threads(options.threads)
        return chosen(options.direction, options.weights, options.codebooks)

    if not options.weights.exists():
        sys.stderr.write(f"there are no weights at {options.weights}\n")
        return CheckpointError.exit_code
    return serve(load, chosen.modules)


if __name__ == "__main__":
    sys.exit(main())
