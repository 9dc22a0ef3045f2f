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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mimi_export.bench.worker import Call, serve
from mimi_export.errors import CheckpointError, ConfigError
from mimi_export.media.signals import SAMPLING_RATE, speech_like

FRAME_SIZE, CODEBOOK_SIZE = 1920, 2048  # the peers have Kyutai's geometry built in
CLIP_FRAMES = 125  # a call of a peer that takes whole clips: 10 s
SEEK_FRAMES = 25  # frames a call on the way to an age: 50 tokens, well inside every peer's window
RUSTYMIMI_TOKENS = 32_768  # of its rotary table: 21 minutes; the default of 8192 ends with an error after 327 s
DIRECTIONS = ("encoder", "decoder")


class Program(NamedTuple):
    """A loaded peer: `encode` and `decode` continue a stream each, or take a whole clip; `reset` begins new streams.

    `prepare` gives audio `[1, 1, samples]` and codes `[1, K, frames]` the type that the program takes.
    """

    encode: Callable[[Any], object]
    decode: Callable[[Any], object]
    reset: Callable[[], object]
    prepare: Callable[[NDArray[Any]], Any]


def _tensor(data: NDArray[Any]) -> Any:
    return importlib.import_module("torch").from_numpy(data)


def transformers_batch(weights: Path, num_codebooks: int) -> Program:
    """`MimiModel.encode` and `.decode` on whole clips: the throughput of a file, and no latency."""
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.MimiModel.from_pretrained(weights, local_files_only=True).eval()
    return Program(partial(model.encode, num_quantizers=num_codebooks), model.decode, lambda: None, _tensor)


def transformers_streaming(weights: Path, num_codebooks: int) -> Program:
    """`MimiModel.encode` with its two caches.

    Only the encoder: upstream's decoder carries no convolution state, so frame by frame it computes something else,
    and decoding the whole clip again for each frame is no stream.
    """
    whole = transformers_batch(weights, num_codebooks)
    caches: dict[str, Any] = {}

    def encode(audio: Any) -> None:
        result: Any = whole.encode(audio, use_streaming=True, **caches)  # type: ignore[call-arg]
        name = "encoder_cache" if hasattr(result, "encoder_cache") else "encoder_past_key_values"  # before 5.24
        caches.update({name: getattr(result, name), "padding_cache": result.padding_cache})

    return whole._replace(encode=encode, reset=caches.clear)


def moshi(weights: Path, num_codebooks: int) -> Program:
    """Kyutai's PyTorch implementation inside `streaming`, one state for each direction."""
    model = importlib.import_module("moshi.models.loaders").get_mimi(weights, num_codebooks=num_codebooks)
    model.streaming_forever(1)
    return Program(model.encode, model.decode, model.reset_streaming, _tensor)


def rustymimi(weights: Path, num_codebooks: int) -> Program:
    """Kyutai's Rust implementation (candle) through its Python binding, which takes float32 and uint32 arrays."""
    sizes = {"num_codebooks": num_codebooks, "max_seq_len": RUSTYMIMI_TOKENS}
    model = importlib.import_module("rustymimi").Tokenizer(str(weights), **sizes)
    return Program(
        model.encode_step,
        model.decode_step,
        model.reset,
        lambda data: data.astype(np.uint32) if data.dtype.kind == "i" else data,
    )


@dataclass(frozen=True)
class Peer:
    """How to load a program, which directions it can do, and what a reader of the table must know.

    `frames_per_call` is 1 for a program that streams. `package` tells the version, `modules` are imported before.
    """

    load: Callable[[Path, int], Program]
    package: str
    modules: tuple[str, ...]
    note: str
    directions: tuple[str, ...] = DIRECTIONS
    frames_per_call: int = 1


_TRANSFORMERS = ("transformers", ("torch", "transformers.models.mimi.modeling_mimi"))
PEERS = {
    "transformers-batch": Peer(
        transformers_batch,
        *_TRANSFORMERS,
        "whole clips, there is no stream that could have an age",
        frames_per_call=CLIP_FRAMES,
    ),
    "transformers-streaming": Peer(
        transformers_streaming,
        *_TRANSFORMERS,
        "its decoder has no streaming mode, so only its encoder is measured",
        ("encoder",),
    ),
    "moshi": Peer(moshi, "moshi", ("torch", "moshi.models.loaders"), "streaming, uncompiled"),
    "rustymimi": Peer(
        rustymimi, "rustymimi", ("rustymimi",), f"streaming, rotary table enlarged to {RUSTYMIMI_TOKENS} tokens"
    ),
}


class PeerSubject:
    """A peer in one direction with the program that it loaded, a `worker.Subject`."""

    def __init__(
        self, name: str, peer: Peer, program: Program, direction: str, num_codebooks: int, version: str = ""
    ) -> None:
        self.name, self.version, self.note, self.frames_per_call = name, version, peer.note, peer.frames_per_call
        self.ways: tuple[str, ...] = ("stream",) if peer.frames_per_call == 1 else ("clip",)
        self._program, self._num_codebooks = program, num_codebooks
        self._encodes = direction == "encoder"

    def calls(self, ways: Sequence[str], age_seconds: float, batch: int) -> dict[str, Call]:
        """See `worker.Subject`; a clip has no age."""
        if batch != 1:
            raise ConfigError(f"{self.name} runs one stream, got a batch of {batch}")
        run = self._program.encode if self._encodes else self._program.decode
        self._program.reset()
        left = round(age_seconds * SAMPLING_RATE / FRAME_SIZE) if self.ways == ("stream",) else 0
        while left > 0:
            run(self._data(min(SEEK_FRAMES, left)))
            left -= SEEK_FRAMES
        data = self._data(self.frames_per_call)
        return dict.fromkeys(ways, lambda: run(data))

    def _data(self, frames: int) -> Any:
        if self._encodes:
            return self._program.prepare(speech_like(frames * FRAME_SIZE / SAMPLING_RATE)[None, None])
        shape = (1, self._num_codebooks, frames)
        return self._program.prepare(np.random.default_rng(0).integers(0, CODEBOOK_SIZE, shape))


def main() -> int:
    """Load a peer and serve."""
    parser = argparse.ArgumentParser(prog="mimi_export.bench.peers", description="Run one peer of the benchmark.")
    parser.add_argument("name", choices=sorted(PEERS))
    parser.add_argument("direction", choices=DIRECTIONS)
    parser.add_argument("--weights", type=Path, required=True, help="model directory or file in Kyutai's format")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--codebooks", type=int, default=8)
    options = parser.parse_args()
    peer = PEERS[options.name]
    # Read by moshi at import: compiling its rotary positions gains nothing on a CPU and needs a C++ compiler.
    os.environ["NO_TORCH_COMPILE"] = "1"

    def load() -> PeerSubject:
        if "torch" in peer.modules:
            torch = importlib.import_module("torch")
            torch.set_grad_enabled(False)
            torch.set_num_threads(options.threads)
        program = peer.load(options.weights, options.codebooks)
        found = version(peer.package)
        return PeerSubject(options.name, peer, program, options.direction, options.codebooks, found)

    if not options.weights.exists():
        sys.stderr.write(f"there are no weights at {options.weights}\n")
        return CheckpointError.exit_code
    return serve(load, peer.modules)


if __name__ == "__main__":
    sys.exit(main())
