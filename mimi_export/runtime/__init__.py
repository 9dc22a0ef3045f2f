"""Run Mimi graphs as streams with numpy and onnxruntime, and nothing else.

    from mimi_export.runtime import load

    codec = load("artifacts/streaming-8cb")
    encoder, decoder = codec.encoder.stream(), codec.decoder.stream()
    for block in microphone:                      # any number of samples, 24 kHz mono float32
        speaker(decoder.push(encoder.push(block)))
    last = encoder.flush()                        # zero-pads the last frame, says how many samples were real
    speaker(decoder.push(last.codes))

A variant exported with `--head latents` or `--head both` has `codec.encoder.latents()`, whose `push` gives float32
`[1, frames, 512]`: what the quantiser would get, as features for other models.

One session serves any number of streams; a stream is a few buffers and the past states of its graph.
"""

from mimi_export.runtime.codec import Codec, Decoder, Encoder, load
from mimi_export.runtime.pool import PoolOutput, PoolStream, StreamPool
from mimi_export.runtime.session import GraphSession
from mimi_export.runtime.stream import (
    DecoderStream,
    Encoded,
    EncoderStream,
    Flush,
    LatentFlush,
    LatentStream,
    Snapshot,
)

__all__ = [
    "Codec", "Decoder", "DecoderStream", "Encoded", "Encoder", "EncoderStream", "Flush", "GraphSession", "LatentFlush",
    "LatentStream", "PoolOutput", "PoolStream", "Snapshot", "StreamPool", "load",
]  # fmt: skip
