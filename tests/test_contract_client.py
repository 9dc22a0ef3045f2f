"""A client that knows only the published contract gets the same codes and audio as batch upstream."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import published_client
import pytest
import torch
from helpers import DECODER_SNR, PATTERNS, calls, match_codes, snr
from published_client import PublishedClient, parse_state_spec

from mimi_export.media.signals import speech_like
from mimi_export.model import upstream


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


def check(directory: Path, checkpoint, audio: np.ndarray, num_codebooks: int, pattern: list[int], **sizes) -> None:
    model, frame_size = checkpoint.model, checkpoint.geometry.frame_size
    frames = len(audio) // frame_size
    audio = audio[None, None, : frames * frame_size]
    latents = upstream.encode_latents(model, torch.from_numpy(audio)).numpy()
    reference = upstream.encode(model, torch.from_numpy(audio), num_codebooks).numpy()
    wanted = upstream.decode(model, torch.from_numpy(reference)).numpy()
    encoder = PublishedClient(directory, "encoder", **sizes)
    decoder = PublishedClient(directory, "decoder", **sizes)
    codes, decoded = [], []
    for start, stop in calls(frames, pattern):
        codes.append(encoder(audio[:, :, start * frame_size : stop * frame_size]))
        decoded.append(decoder(reference[:, :, start:stop]))
    assert codes[0].dtype == np.int64
    assert decoded[0].dtype == np.float32
    match = match_codes(model, latents, reference, np.concatenate(codes, axis=2))
    assert match.wrong == 0, match
    assert match.ties <= 0.001 * match.total, match
    assert snr(wanted, np.concatenate(decoded, axis=2)) >= DECODER_SNR


@pytest.mark.parametrize("pattern", ["1", "mixture"])
@pytest.mark.parametrize("num_codebooks", [8, 16])
def test_tiny(tiny_variant, tiny_checkpoint, num_codebooks, pattern):
    audio = speech_like(6, seed=11)
    sizes = {"layers": 2, "heads": 2, "head_dim": 8}
    check(tiny_variant(num_codebooks), tiny_checkpoint, audio, num_codebooks, PATTERNS[pattern], **sizes)


@pytest.mark.slow
def test_full_size_with_the_published_sizes(full_variant, full_checkpoint):
    """`[1, 8, 0, 64]` first, 8 layers; long enough for the window of 10 s to slide."""
    check(full_variant(8), full_checkpoint, speech_like(12, seed=12), 8, [3])
