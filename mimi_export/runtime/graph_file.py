"""The few parts of an ONNX file that can be read without the onnx package, before anything loads it.

ONNX is protocol buffers: a message is a sequence of fields, each a number with a wire type before its value.
Source of the numbers below: `onnx.proto`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mimi_export.contract.records import shown
from mimi_export.errors import GraphError, some

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MODEL_GRAPH, MODEL_OPSET, GRAPH_NODE, GRAPH_WEIGHT = 7, 8, 1, 5
OPSET_DOMAIN, OPSET_VERSION = 1, 2
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_TYPE, NODE_ATTRIBUTE = 1, 2, 3, 4, 5
ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS = (5, 10), (6, 11)
TENSOR_DIM, TENSOR_TYPE, TENSOR_NAME, TENSOR_DATA, TENSOR_OUTSIDE = 1, 2, 8, 9, 13
ENTRY_KEY, ENTRY_VALUE = 1, 2
MOST_BITS = 64
STANDARD = ("", "ai.onnx")  # domains of ONNX itself
DTYPES = {1: "<f4", 2: "u1", 3: "i1", 7: "<i8"}  # of weights that are looked at


@dataclass(frozen=True)
class FileNode:
    """One node; an input that is left out is an empty text."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def check_graph_file(path: Path) -> int:
    """Look at a graph that may be a stranger's before anything loads it; the version of ONNX's operators.

    Raises:
        GraphError: the file cannot be read, is no ONNX graph, asks for operators of somebody's own, or for data from
            outside its directory.
    """
    with _parsing(path) as model:
        domains = dict(_domain(_bytes(value)) for field, value in model if field == MODEL_OPSET)
        places = {*_outside(_graph(model))}
    opset = max((domains[name] for name in STANDARD if name in domains), default=0)
    foreign = some(shown(name) for name in domains if name not in STANDARD)
    if foreign or not opset:
        raise GraphError(f"{path} asks for operators of {foreign or 'nobody'}, expected ONNX's own")
    home = path.parent.resolve()
    for place in places:
        if "\0" in place or not (home / place).resolve().is_relative_to(home):
            raise GraphError(f"{path} asks for data in {shown(place)}, which is outside its directory")
    return opset


class GraphFile:
    """Nodes by the name of each output, and weights by name.

    Raises:
        GraphError: the file cannot be read, or is no ONNX graph.
    """

    def __init__(self, path: Path) -> None:
        self.nodes: dict[str, FileNode] = {}
        self._weights: dict[str, memoryview] = {}
        with _parsing(path) as model:
            for field, value in _fields(_graph(model)):
                if field == GRAPH_NODE:
                    node = _node(_bytes(value))
                    self.nodes |= dict.fromkeys(node.outputs, node)
                elif field == GRAPH_WEIGHT:
                    message = _bytes(value)
                    names = [bytes(_bytes(inner)) for number, inner in _fields(message) if number == TENSOR_NAME]
                    self._weights[names[0].decode()] = message

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


@contextmanager
def _parsing(path: Path) -> Iterator[list[tuple[int, int | memoryview]]]:
    """The fields of a model; what goes wrong with it in the block ends in one line."""
    try:
        with path.open("rb") as file:
            yield list(_fields(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))))
    except (OSError, ValueError, IndexError, RecursionError) as error:
        raise GraphError(f"{path} is no ONNX graph that can be read: {error}; get it again") from error


def _graph(model: list[tuple[int, int | memoryview]]) -> memoryview:
    graphs = [value for field, value in model if field == MODEL_GRAPH]
    if len(graphs) != 1:
        raise ValueError(f"it holds {len(graphs)} graphs")
    return _bytes(graphs[0])


def _domain(message: memoryview) -> tuple[str, int]:
    """A set of operators and its version."""
    fields = dict(_fields(message))
    version = fields.get(OPSET_VERSION, 0)
    return bytes(_bytes(fields.get(OPSET_DOMAIN, memoryview(b"")))).decode(), version if isinstance(version, int) else 0


def _outside(graph: memoryview) -> Iterator[str]:
    """The files that tensors of a graph are in, those of its nodes' attributes and inner graphs included."""
    for field, value in _fields(graph):
        if field == GRAPH_WEIGHT:
            yield from _files(_bytes(value))
        attributes = (_bytes(inner) for number, inner in _fields(_bytes(value)) if number == NODE_ATTRIBUTE)
        for attribute in attributes if field == GRAPH_NODE else ():
            for number, part in _fields(attribute):
                if number in ATTRIBUTE_TENSORS:
                    yield from _files(_bytes(part))
                elif number in ATTRIBUTE_GRAPHS:
                    yield from _outside(_bytes(part))


def _files(tensor: memoryview) -> Iterator[str]:
    for field, value in _fields(tensor):
        if field == TENSOR_OUTSIDE:
            entry = {number: bytes(_bytes(part)).decode() for number, part in _fields(_bytes(value))}
            if entry.get(ENTRY_KEY) == "location":
                yield entry.get(ENTRY_VALUE, "")


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
        if shift > MOST_BITS:
            raise ValueError("a number has no end")
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
