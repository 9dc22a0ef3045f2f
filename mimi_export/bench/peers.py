"""Other people's programs that run Mimi, each as a contender of the benchmark in a process of its own.

    python -m mimi_export.bench.peers NAME --weights PATH [--threads 1] [--codebooks 8]

runs where the peer is installed (an environment of its own) and speaks the protocol of `worker`. PATH is what the
peer loads: a Hugging Face model directory for the `transformers-…` ones, a file in Kyutai's format (see `kyutai`) for
`moshi` and `rustymimi`. All weights are then the same.

Each peer is driven through its public interface, the way its own documents do, on the CPU in float32. Only the call
itself is timed, not the conversion of its input.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mimi_export.bench.worker import Audio, Codes, claim_stdout, limit_threads, serve

ALL_COMMANDS = ("encode", "decode", "seek")
RUSTYMIMI_TOKENS = 32_768  # of its rotary table: 21 minutes; the default of 8192 ends with an error after 327 s
MISSING_PACKAGE_STATUS = 9
WRONG_WEIGHTS_STATUS = 4


class _TorchPeer:
    """What the peers in PyTorch share: inputs are tensors, gradients are off."""

    streaming = True

    def __init__(self) -> None:
        self._torch = importlib.import_module("torch")
        self._torch.set_grad_enabled(False)
        self._torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    def prepare_audio(self, audio: Audio) -> Any:
        """A float32 tensor that shares the array's memory."""
        return self._torch.from_numpy(audio)

    def prepare_codes(self, codes: Codes) -> Any:
        """An int64 tensor that shares the array's memory."""
        return self._torch.from_numpy(codes)


class TransformersBatch(_TorchPeer):
    """`MimiModel.encode` and `.decode` on whole clips: the throughput of a file, and no latency."""

    name = "transformers-batch"
    modules: tuple[str, ...] = ("torch", "transformers.models.mimi.modeling_mimi")
    environment: ClassVar[dict[str, str]] = {}
    commands: tuple[str, ...] = ("encode", "decode")
    streaming = False
    note = "whole clips, there is no stream that could have an age"

    def __init__(self, weights: Path, num_codebooks: int) -> None:
        super().__init__()
        transformers = importlib.import_module("transformers")
        transformers.utils.logging.disable_progress_bar()
        self.version = version("transformers")
        self._model = transformers.MimiModel.from_pretrained(weights, local_files_only=True).eval()
        self._num_codebooks = num_codebooks

    def encode(self, audio: Any) -> None:
        """A clip of any number of whole frames."""
        self._model.encode(audio, num_quantizers=self._num_codebooks)

    def decode(self, codes: Any) -> None:
        """A clip of any number of frames."""
        self._model.decode(codes)

    def reset(self) -> None:
        """Nothing is carried from call to call."""


class TransformersStreaming(TransformersBatch):
    """`MimiModel.encode` with its two caches.

    Only the encoder: upstream's decoder carries no convolution state, so frame by frame it computes something else,
    and decoding the whole clip again for each frame is no stream.
    """

    name = "transformers-streaming"
    commands = ("encode", "seek")
    streaming = True
    note = "its decoder has no streaming mode, so only its encoder is measured"

    def __init__(self, weights: Path, num_codebooks: int) -> None:
        super().__init__(weights, num_codebooks)
        self._keys_and_values: Any = None
        self._padding: Any = None

    def encode(self, audio: Any) -> None:
        """The next whole frames of the stream."""
        result = self._model.encode(
            audio,
            num_quantizers=self._num_codebooks,
            encoder_past_key_values=self._keys_and_values,
            padding_cache=self._padding,
            use_streaming=True,
        )
        self._keys_and_values, self._padding = result.encoder_past_key_values, result.padding_cache

    def reset(self) -> None:
        """Forget both caches."""
        self._keys_and_values = self._padding = None


class Moshi(_TorchPeer):
    """Kyutai's PyTorch implementation inside `streaming`, one state for each direction.

    Its `torch.compile` of the rotary positions is off: on a CPU it gains nothing and needs a C++ compiler.
    """

    name = "moshi"
    modules: tuple[str, ...] = ("torch", "moshi.models.loaders")
    environment: ClassVar[dict[str, str]] = {"NO_TORCH_COMPILE": "1"}
    commands: tuple[str, ...] = ALL_COMMANDS
    note = "streaming, uncompiled"

    def __init__(self, weights: Path, num_codebooks: int) -> None:
        super().__init__()
        loaders = importlib.import_module("moshi.models.loaders")
        self.version = version("moshi")
        self._model = loaders.get_mimi(weights, num_codebooks=num_codebooks)
        self._model.streaming_forever(1)

    def encode(self, audio: Any) -> None:
        """The next whole frames of the stream."""
        self._model.encode(audio)

    def decode(self, codes: Any) -> None:
        """The next frames of the stream."""
        self._model.decode(codes)

    def reset(self) -> None:
        """Begin both streams anew."""
        self._model.reset_streaming()


class Rustymimi:
    """Kyutai's Rust implementation (candle) through its Python binding."""

    name = "rustymimi"
    modules: tuple[str, ...] = ("rustymimi",)
    environment: ClassVar[dict[str, str]] = {}
    commands: tuple[str, ...] = ALL_COMMANDS
    streaming = True
    note = f"streaming, rotary table enlarged to {RUSTYMIMI_TOKENS} tokens"

    def __init__(self, weights: Path, num_codebooks: int) -> None:
        rustymimi = importlib.import_module("rustymimi")
        self.version = version("rustymimi")
        self._tokenizer = rustymimi.Tokenizer(str(weights), num_codebooks=num_codebooks, max_seq_len=RUSTYMIMI_TOKENS)

    def prepare_audio(self, audio: Audio) -> Any:
        """The binding takes float32 arrays."""
        return audio

    def prepare_codes(self, codes: Codes) -> Any:
        """The binding takes uint32 arrays."""
        return codes.astype(np.uint32)

    def encode(self, audio: Any) -> None:
        """The next whole frames of the stream."""
        self._tokenizer.encode_step(audio)

    def decode(self, codes: Any) -> None:
        """The next frames of the stream."""
        self._tokenizer.decode_step(codes)

    def reset(self) -> None:
        """Begin both streams anew."""
        self._tokenizer.reset()


PEERS = {peer.name: peer for peer in (TransformersBatch, TransformersStreaming, Moshi, Rustymimi)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Load a peer and serve; the exit status is 0, or that of the error whose line is on stderr."""
    parser = argparse.ArgumentParser(prog="mimi_export.bench.peers", description="Run one peer of the benchmark.")
    parser.add_argument("name", choices=sorted(PEERS))
    parser.add_argument("--weights", type=Path, required=True, help="model directory or file in Kyutai's format")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--codebooks", type=int, default=8)
    options = parser.parse_args(arguments)
    if not options.weights.exists():
        sys.stderr.write(f"there are no weights at {options.weights}\n")
        return WRONG_WEIGHTS_STATUS
    replies = claim_stdout()
    limit_threads(options.threads)
    chosen = PEERS[options.name]
    os.environ.update(chosen.environment)  # before the imports, which read it
    began = time.perf_counter()
    try:
        for module in chosen.modules:
            importlib.import_module(module)
    except ImportError as error:
        sys.stderr.write(f"{options.name} is not installed for {sys.executable}: {error}\n")
        return MISSING_PACKAGE_STATUS
    imported = time.perf_counter()
    peer = chosen(options.weights, options.codebooks)
    loaded = time.perf_counter()
    facts = {
        "threads": options.threads,
        "import_seconds": imported - began,
        "load_seconds": loaded - imported,
    }
    serve(peer, options.codebooks, facts, sys.stdin, replies)
    return 0


if __name__ == "__main__":
    sys.exit(main())
