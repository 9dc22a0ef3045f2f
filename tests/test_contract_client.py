"""A client that knows only the published contract gets the same codes and audio as batch upstream."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import published_client
import pytest
from contract import Reference, verify_stream
from helpers import PATTERNS
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


@pytest.mark.slow
def test_full_size_with_the_published_sizes(full_variant, full_checkpoint):
    """`[1, 8, 0, 64]` first, 8 layers; long enough for the window of 10 s to slide."""
    verify(full_variant(8), Reference.of(full_checkpoint.model, speech_like(12, seed=12), 8), [[3]])
