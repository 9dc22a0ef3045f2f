"""A client as somebody would write it from the published contract, with numpy and onnxruntime and nothing else.

It reads `state_spec.txt`, begins with zeros, feeds every tensor by its position, and gives back what it got.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort


def parse_state_spec(text: str) -> dict[str, list[tuple[str, int, int]]]:
    """Name, channels and temporal size of each convolution state, by section."""
    sections: dict[str, list[tuple[str, int, int]]] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            states = sections.setdefault(line.strip("[]"), [])
            continue
        kind, name, channels, size = line.split(" ")
        if kind not in ("conv", "conv_tr"):
            raise ValueError(f"unknown kind of state: {kind}")
        states.append((name, int(channels), int(size)))
    return sections


class PublishedClient:
    """One direction of a variant directory, one stream."""

    def __init__(self, directory: Path, section: str, layers: int = 8, heads: int = 8, head_dim: int = 64) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        path = Path(directory) / f"{section}_model.onnx"
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [tensor.name for tensor in self.session.get_inputs()]
        states = parse_state_spec((Path(directory) / "state_spec.txt").read_text())[section]
        self.states = [np.zeros((1, channels, size), np.float32) for _, channels, size in states]
        self.states += [np.zeros((1, heads, 0, head_dim), np.float32) for _ in range(2 * layers)]

    def __call__(self, data: np.ndarray) -> np.ndarray:
        """One call: audio `[1, 1, 1920·N]` to codes `[1, K, N]`, or the other way."""
        tensors = [data, *self.states]
        if len(tensors) != len(self.inputs):
            raise ValueError(f"the graph has {len(self.inputs)} inputs, the contract {len(tensors)}")
        result, *self.states = self.session.run(None, dict(zip(self.inputs, tensors, strict=True)))
        return result
