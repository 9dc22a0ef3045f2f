"""The few parts of an ONNX file that can be read without the onnx package: nodes, and weights that the file holds.

ONNX is protocol buffers: a message is a sequence of fields, each a number with a wire type before its value.
Source of the numbers below: `onnx.proto`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mimi_export.errors import GraphError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MODEL_GRAPH, GRAPH_NODE, GRAPH_WEIGHT = 7, 1, 5
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_TYPE = 1, 2, 3, 4
TENSOR_DIM, TENSOR_TYPE, TENSOR_NAME, TENSOR_DATA = 1, 2, 8, 9
DTYPES = {1: "<f4", 2: "u1", 3: "i1", 7: "<i8"}  # of weights that are looked at


@dataclass(frozen=True)
class FileNode:
    """One node; an input that is left out is an empty text."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class GraphFile:
    """Nodes by the name of each output, and weights by name.

    Raises:
        GraphError: the file cannot be read, or is no ONNX graph.
    """

    def __init__(self, path: Path) -> None:
        self.nodes: dict[str, FileNode] = {}
        self._weights: dict[str, memoryview] = {}
        try:
            (graph,) = (value for field, value in _fields(memoryview(path.read_bytes())) if field == MODEL_GRAPH)
            for field, value in _fields(_bytes(graph)):
                if field == GRAPH_NODE:
                    node = _node(_bytes(value))
                    self.nodes |= dict.fromkeys(node.outputs, node)
                elif field == GRAPH_WEIGHT:
                    message = _bytes(value)
                    names = [bytes(_bytes(inner)) for number, inner in _fields(message) if number == TENSOR_NAME]
                    self._weights[names[0].decode()] = message
        except (OSError, ValueError, IndexError) as error:
            raise GraphError(f"{path} is no ONNX graph that can be read: {error}") from error

    def weight(self, name: str) -> npt.NDArray[np.generic] | None:
        """The content of a weight; nothing where it is no weight, of another type, or not kept as plain bytes."""
        if name not in self._weights:
            return None
        fields = list(_fields(self._weights[name]))
        shape = [size for number, value in fields if number == TENSOR_DIM for size in _numbers(value)]
        kinds = [value for number, value in fields if number == TENSOR_TYPE and isinstance(value, int)]
        data = [_bytes(value) for number, value in fields if number == TENSOR_DATA]
        if not data or kinds[0] not in DTYPES:
            return None
        return np.frombuffer(data[0], DTYPES[kinds[0]]).reshape(shape)


def _node(message: memoryview) -> FileNode:
    texts: dict[int, list[str]] = {number: [] for number in (NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_TYPE)}
    for number, value in _fields(message):
        if number in texts:
            texts[number].append(bytes(_bytes(value)).decode())
    name, kind = ("".join(texts[number][:1]) for number in (NODE_NAME, NODE_TYPE))
    return FileNode(name, kind, tuple(texts[NODE_INPUT]), tuple(texts[NODE_OUTPUT]))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == BYTES:
            size, place = _varint(message, place)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"field {number} has the wire type {kind}")
        if place + size > len(message):
            raise ValueError(f"field {number} ends after the file")
        yield number, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _numbers(value: int | memoryview) -> list[int]:
    """Numbers of a repeated field, which a file may pack into one."""
    if isinstance(value, int):
        return [value]
    found, place = [], 0
    while place < len(value):
        number, place = _varint(value, place)
        found.append(number)
    return found


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, memoryview):
        return value
    raise ValueError("a number stands where a message is expected")
