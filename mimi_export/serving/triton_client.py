"""Speech through Triton and back: a WAV file to codes and to a WAV file, call by call, with its states kept there.

    pip install numpy 'tritonclient[grpc]'
    python client.py NAME speech.wav decoded.wav --url localhost:8001

NAME is how the names of the two models begin. The file is mono, 16 bits, at the model's rate (24 kHz).
`--warm-up N` sends N short streams at once first, so that the first listener does not wait.
"""

from __future__ import annotations

import argparse
import secrets
import wave
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tritonclient.grpc as triton

TYPES = {"TYPE_FP32": "FP32", "TYPE_INT64": "INT64"}


class Stream:
    """One stream of a model: a Triton sequence.

    Args:
        client: a `tritonclient.grpc.InferenceServerClient`; many streams may share it.
        model: the name of the model.
    """

    def __init__(self, client: Any, model: str) -> None:
        config = client.get_model_config(model, as_json=True)["config"]
        self.parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.shape = [1, *(int(dim) for dim in config["input"][0]["dims"])]  # of a call; -1 is free
        self._input, self._output = config["input"][0], config["output"][0]
        self._client, self._model = client, model
        self._sequence = secrets.randbits(63) | 1  # 0 means none
        self._begun = False

    def push(self, data: Any, last: bool = False) -> Any:
        """The output of one call.

        A call has a fixed number of frames: fill the last one with zeros. A stream that ends without data ends with
        a call of zeros, whose output is nobody's.
        """
        tensor = triton.InferInput(self._input["name"], list(data.shape), TYPES[self._input["data_type"]])
        tensor.set_data_from_numpy(data)
        begin, self._begun = not self._begun, not last
        result = self._client.infer(
            self._model, [tensor], sequence_id=self._sequence, sequence_start=begin, sequence_end=last
        )
        return result.as_numpy(self._output["name"])


def through(stream: Stream, data: Any) -> Any:
    """All outputs, joined, for `data` `[1, C, n]` of whole calls."""
    calls = np.split(data, data.shape[2] // stream.shape[2], axis=2)
    return np.concatenate([stream.push(call, call is calls[-1]) for call in calls], axis=2)


def warm_up(client: Any, name: str, streams: int) -> None:
    """Send `streams` streams of one call at once, through the encoder and what comes through the decoder."""

    def one(_: int) -> None:
        encoder, decoder = Stream(client, f"{name}-encoder"), Stream(client, f"{name}-decoder")
        decoder.push(encoder.push(np.zeros(encoder.shape, np.float32), last=True), last=True)

    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(one, range(streams)))


def main() -> None:
    """Encode a file and decode what came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("speech")
    parser.add_argument("decoded")
    parser.add_argument("--url", default="localhost:8001")
    parser.add_argument("--warm-up", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    client = triton.InferenceServerClient(arguments.url)
    encoder = Stream(client, f"{arguments.name}-encoder")
    rate = int(encoder.parameters["sampling_rate"])
    with wave.open(arguments.speech, "rb") as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (rate, 1, 2):
            raise SystemExit(f"error: {arguments.speech} is not mono, 16 bits, {rate} Hz")
        speech = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    if arguments.warm_up:
        warm_up(client, arguments.name, arguments.warm_up)
    padded = np.concatenate([speech, np.zeros(-len(speech) % encoder.shape[2], np.float32)])
    codes = through(encoder, padded[None, None])
    decoded = through(Stream(client, f"{arguments.name}-decoder"), codes)[0, 0, : len(speech)]
    with wave.open(arguments.decoded, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(decoded, -1, 1) * 32767).astype("<i2").tobytes())
    print(f"{codes.shape[2]} frames of {codes.shape[1]} codes")  # noqa: T201


if __name__ == "__main__":
    main()
