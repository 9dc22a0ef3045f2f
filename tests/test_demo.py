"""The small trained checkpoint: it comes with the package, speech survives it, and its variants are as exact as any."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, _factory
from contract import Reference
from helpers import snr

from mimi_export.contract.precision import Fp16Options, Int8Options
from mimi_export.errors import ConfigError
from mimi_export.export.convert import convert
from mimi_export.media.audio import read_audio
from mimi_export.model import upstream
from mimi_export.model.checkpoint import DEMO_DIRECTORY, load_checkpoint, load_source
from mimi_export.parity.spectra import SpectralDistance
from mimi_export.runtime import load
from mimi_export.runtime.golden import replay_golden

SPEECH = REPOSITORY / "scripts" / "clips" / "speech.ogg"
RATE, FRAME, LEVELS = 24_000, 1920, 8


@pytest.fixture(scope="session")
def demo_checkpoint():
    return load_checkpoint("demo")


@pytest.fixture(scope="session")
def speech(demo_checkpoint):
    """The packaged clip, whole frames of it, `[samples]`, with upstream's codes `[1, 8, frames]`."""
    sound = read_audio(SPEECH, RATE)
    sound = sound[: len(sound) // FRAME * FRAME]
    return sound, upstream.encode(demo_checkpoint.model, torch.from_numpy(sound)[None, None], LEVELS)


@pytest.fixture(scope="session")
def demo_variants(demo_checkpoint, shared_folder):
    """`demo_variants("window", "int8")` is the directory of that variant."""
    make = _factory(demo_checkpoint, shared_folder / "demo")

    def variant(layout, precision):
        parent = make(LEVELS, layout, *((1,) if layout == "ring" else ()))
        if precision == "fp32":
            return parent
        path = Path(f"{parent}-{precision}")
        if not path.exists():
            convert(parent, path, {"fp16": Fp16Options(), "int8": Int8Options()}[precision])
        return path

    return variant


def mel_distance(sound, other):
    distance = SpectralDistance(RATE)
    distance.push(sound, other)
    return distance.finish()[0]


def test_small_enough_to_ship(demo_checkpoint):
    weights = sum(tensor.numel() for tensor in upstream.tensors_on_disk(demo_checkpoint.model).values())
    assert weights <= 3_000_000
    assert (DEMO_DIRECTORY / "model.safetensors").stat().st_size <= 6 * 2**20
    assert sum(path.stat().st_size for path in SPEECH.parent.iterdir()) <= 300 * 1024
    geometry = demo_checkpoint.geometry
    assert (geometry.sampling_rate, geometry.frame_rate, geometry.num_quantizers) == (RATE, 12.5, LEVELS)


def test_comes_with_a_licence_and_names_its_data():
    card = (DEMO_DIRECTORY / "README.md").read_text("utf-8")
    for word in ("license: cc-by-sa-3.0", "Allison Smith", "June Wallack", "Carlo Flora", "Maxim Topal", "STOI"):
        assert word in card


def test_its_version_is_its_weights(demo_checkpoint):
    assert load_source("demo", demo_checkpoint.revision).source == "demo"
    with pytest.raises(ConfigError, match="demo has no revisions"):
        load_checkpoint("demo", revision="main")


def test_more_codebooks_bring_speech_nearer(demo_checkpoint, speech):
    sound, codes = speech
    distances = []
    for count in range(1, LEVELS + 1):
        decoded = upstream.decode(demo_checkpoint.model, codes[:, :count])[0, 0].numpy()
        distances.append(mel_distance(sound, decoded))
    assert distances[0] > distances[1] > distances[3] > distances[7], distances
    quiet = mel_distance(sound, np.full_like(sound, 1e-4))
    assert distances[-1] < 0.3 * quiet, (distances, quiet)


def test_every_codebook_is_alive(speech):
    codes = speech[1][0].numpy()
    used = [len(np.unique(level)) for level in codes]
    assert min(used) > 0.3 * codes.shape[1], used  # of as many entries as there are frames, at most


@pytest.mark.export
@pytest.mark.parametrize("layout", ["window", "ring"])
def test_streams_what_the_batch_computes(demo_checkpoint, demo_variants, speech, layout):
    reference = Reference.of(demo_checkpoint.model, speech[0], LEVELS)
    codec = load(demo_variants(layout, "fp32"))
    reference.judge("encoder", LEVELS, codec.encoder.stream().push(speech[0]))
    reference.judge("decoder", LEVELS, codec.decoder.stream().push(reference.codes)[:, None])


@pytest.mark.export
@pytest.mark.parametrize(
    ("layout", "precision", "share", "decibels"),
    [("window", "fp16", 0.97, 90), ("window", "int8", 0.62, 40), ("ring", "int8", 0.62, 40)],
)
def test_smaller_variants_keep_trained_speech(
    demo_checkpoint, demo_variants, speech, layout, precision, share, decibels
):
    sound, codes = speech
    variant = demo_variants(layout, precision)
    codec = load(variant)
    assert (codec.encoder.stream().push(sound) == codes.numpy()).mean() > share
    wanted = upstream.decode(demo_checkpoint.model, codes)[:, 0].numpy()
    assert snr(wanted, codec.decoder.stream().push(codes.numpy())) > decibels
    assert replay_golden(codec.artifact).passed


@pytest.mark.export
def test_attention_is_heard(demo_variants, speech):
    """A decoder whose keys and values are forgotten after every frame is 100 dB further from what is right."""
    codes = speech[1].numpy()
    codec = load(demo_variants("window", "fp32"))
    right = codec.decoder.stream().push(codes)
    stream = codec.decoder.stream()
    empty = {name: array for name, array in stream.snapshot().states.items() if name.startswith(("key_", "value_"))}
    deaf = []
    for frame in range(codes.shape[2]):
        deaf.append(stream.push(codes[:, :, frame : frame + 1]))
        now = stream.snapshot()
        stream.restore(dataclasses.replace(now, states={**now.states, **empty}))
    assert snr(right, np.concatenate(deaf, axis=1)) < 30
