"""A client that knows only the published contract gets the same codes and audio as batch upstream."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import onnxruntime as ort
import published_client
import pytest
from contract import Reference, verify_stream
from helpers import PATTERNS, onnx_step, session, stream, zeros
from published_client import PublishedClient, parse_state_spec

from mimi_export.contract.directory import load_artifact
from mimi_export.contract.spec import GRAPH_KINDS
from mimi_export.media.signals import speech_like


def test_client_knows_nothing_of_this_package():
    tree = ast.parse(Path(published_client.__file__).read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "pathlib", "numpy", "onnxruntime"}


def test_state_spec_is_parsed_as_written(tiny_variant):
    sections = parse_state_spec((tiny_variant(8) / "state_spec.txt").read_text())
    assert list(sections) == ["encoder", "decoder"]
    assert sections["encoder"][0] == ("enc_0", 1, 6)
    assert sections["decoder"][0] == ("us", 32, 2)
    assert [len(states) for states in sections.values()] == [11, 11]


def client_step(data: np.ndarray, client: PublishedClient) -> tuple[np.ndarray, PublishedClient]:
    return client(data), client


def verify(directory: Path, reference: Reference, patterns: list[list[int]], **sizes: int) -> None:
    artifact = load_artifact(directory)
    for kind in GRAPH_KINDS:
        begin = lambda kind=kind: PublishedClient(directory, kind, **sizes)  # noqa: E731
        verify_stream(client_step, artifact.spec(kind), reference, patterns, begin)


@pytest.mark.parametrize("num_codebooks", [8, 16])
def test_tiny(tiny_variant, tiny_checkpoint, num_codebooks):
    reference = Reference.of(tiny_checkpoint.model, speech_like(6, seed=11), num_codebooks)
    patterns = [PATTERNS["1"], PATTERNS["mixture"], [reference.frames]]
    verify(tiny_variant(num_codebooks), reference, patterns, layers=2, heads=2, head_dim=8)


class Trimming(PublishedClient):
    """Keeps the last tokens only, as a client does against windows that grow for ever."""

    def __init__(self, *where, keep: int, **sizes) -> None:
        super().__init__(*where, **sizes)
        self.keep = keep

    def __call__(self, data: np.ndarray) -> np.ndarray:
        self.states = [state[:, :, -self.keep :] if state.ndim == 4 else state.copy() for state in self.states]
        return super().__call__(data)


class Binding(PublishedClient):
    """Leaves all states with onnxruntime, as a client on a GPU does."""

    def __call__(self, data: np.ndarray) -> np.ndarray:
        binding = self.session.io_binding()
        for name, value in zip(self.inputs, [data, *self.states], strict=True):
            held = value if isinstance(value, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(value)
            binding.bind_ortvalue_input(name, held)
        for output in self.session.get_outputs():
            binding.bind_output(output.name, "cpu")
        self.session.run_with_iobinding(binding)
        result, *self.states = binding.get_outputs()
        return result.numpy()


@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_clients_that_trim_copy_and_bind(tiny_variant, tiny_checkpoint, kind):
    """Beyond the window of 16 tokens, with calls that are longer than it, too."""
    directory, sizes = tiny_variant(8), {"layers": 2, "heads": 2, "head_dim": 8}
    reference = Reference.of(tiny_checkpoint.model, speech_like(6, seed=11), 8)
    graph = load_artifact(directory).spec(kind)
    for begin in (
        lambda: Trimming(directory, kind, keep=graph.window_length, **sizes),
        lambda: Trimming(directory, kind, keep=graph.window_length + 50, **sizes),
        lambda: Binding(directory, kind, **sizes),
    ):
        verify_stream(client_step, graph, reference, [[1], [4, 1, 20]], begin)


@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_a_row_of_zeros_begins_a_stream(tiny_variant, tiny_checkpoint, kind):
    """In a window as in a ring, rows of a call may be streams of any age: a client writes zeros into a row."""
    clip = speech_like(6, seed=11)
    whole = Reference.of(tiny_checkpoint.model, np.stack([clip, clip])[:, None], 8)
    graph, late = load_artifact(tiny_variant(8)).spec(kind), 31
    step = onnx_step(session(tiny_variant(8) / graph.file_name))
    unit = graph.frame_size if kind == "encoder" else 1
    data = whole.data(kind, 8)
    shifted = np.concatenate([data[:1], np.roll(data[1:], late * unit, axis=2)])

    def begin_second(frame, states):
        return {name: np.concatenate([state[:1], (frame != late) * state[1:]]) for name, state in states.items()}

    found, _ = stream(step, zeros(graph, 2), shifted, unit, [1], begin_second)
    out = found.shape[2] // (data.shape[2] // unit)
    again = np.concatenate([found[:1, :, : -late * out], found[1:, :, late * out :]])
    whole.judge(kind, 8, again)


@pytest.mark.slow
def test_full_size_with_the_published_sizes(full_variant, full_checkpoint):
    """`[1, 8, 0, 64]` first, 8 layers; long enough for the window of 10 s to slide."""
    verify(full_variant(8), Reference.of(full_checkpoint.model, speech_like(12, seed=12), 8), [[3]])
