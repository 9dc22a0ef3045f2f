"""Training of the demo checkpoint, in miniature: packing, three phases, going on after an interruption, the result."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import REPOSITORY

from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.model.checkpoint import load_checkpoint

sys.path.insert(0, str(REPOSITORY / "scripts"))

import demo_audio
import demo_codec
import train_demo

STEPS = 10  # 5 apart, 3 together, 2 of the decoder alone


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two files of sound, one of them stereo at another rate, and a silent one, packed."""
    folder = tmp_path_factory.mktemp("audio")
    for name, rate, channels, gain in (("a.wav", 24000, 1, 1), ("b.flac", 16000, 2, 1), ("c.ogg", 24000, 1, 0)):
        sound = gain * speech_like(6, seed=rate, sampling_rate=rate)
        soundfile.write(folder / name, np.stack([sound] * channels, axis=1), rate)
    (folder / "notes.txt").write_text("not audio")
    packed = folder / "packed.i16"
    assert [line.split(":")[0] for line in demo_audio.pack([folder], packed)][-1] == str(packed)
    return packed


@pytest.fixture
def small(monkeypatch):
    """Sizes that take seconds; the network stays what it is but for its codebooks."""
    monkeypatch.setattr(demo_codec, "ENTRIES", 16)
    monkeypatch.setattr(train_demo, "FEATURE_BATCHES", 20)
    monkeypatch.setattr(train_demo, "FRAMES", (100, 60, 60))
    monkeypatch.setattr(train_demo, "LOG_STEPS", 5)
    monkeypatch.setattr(train_demo, "STAND_STILL_AT", 0.8)
    monkeypatch.setattr(train_demo, "SHAPES", [(2, 12), (1, 24)])


def trained(data, directory, *stops: int, start: str | None = None) -> train_demo.Training:
    """Training that was stopped after each of `stops` steps and started again."""
    directory.mkdir()
    for stop in (*stops, STEPS):
        training = train_demo.Training(data, directory, STEPS, start)
        training.resume()
        training.run(stop)
    return training


def test_packed(data):
    samples = np.fromfile(data, np.int16)
    assert 20 < len(samples) / 24000 <= 2 * 6 * sum(1 / speed for speed in demo_audio.SPEEDS) + 0.1
    with pytest.raises(SystemExit, match="no audio below"):
        list(demo_audio.pack([data.parent / "nothing"], data))


@pytest.mark.parametrize("half", ["encoder_seanet", "decoder_seanet"])
def test_fast_convolutions_are_upstreams(half):
    torch.manual_seed(0)
    codec = demo_codec.Codec()
    module = getattr(codec.parts, half)
    first = torch.randn(2, 1, 3840) if half.startswith("encoder") else torch.randn(2, demo_codec.WIDTH, 4)
    results = []
    for run in (module, lambda x: demo_codec.seanet(module, x.mT).mT):
        codec.zero_grad()
        x = first.clone().requires_grad_()
        y = run(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(weight.grad.clone() for weight in module.parameters())])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_an_interruption_changes_nothing(data, small, tmp_path):
    """The same weights, bit for bit, stopped in the first and in the second phase or not at all."""
    once, twice = trained(data, tmp_path / "once"), trained(data, tmp_path / "twice", 3, 6)
    assert (once.step, once.phase) == (twice.step, twice.phase) == (STEPS, 2)
    assert all(map(torch.equal, once.mean, twice.mean))
    assert torch.equal(once.codec.books, twice.codec.books)
    assert [line[2:] for line in once.log] == [line[2:] for line in twice.log]
    assert len((tmp_path / "once" / "log.csv").read_text().splitlines()) == 1 + STEPS // 5


def test_the_result_is_a_mimi_that_codes_as_it_was_trained_to(data, small, tmp_path):
    training = trained(data, tmp_path / "run")
    train_demo.save(tmp_path / "run", tmp_path / "checkpoint")
    with torch.no_grad():
        torch._foreach_copy_([weight.detach() for weight in training.weights], training.mean)
        sound = torch.from_numpy(speech_like(2, seed=5)[: 24 * 1920])[None]
        points = training.codec.points(training.codec.encode(sound))
    model = load_checkpoint(str(tmp_path / "checkpoint")).model
    codes = upstream.encode(model, sound[:, None], 8)
    books = training.codec.books
    semantic = demo_codec.nearest(points[0][0], books[0])
    acoustic = demo_codec.nearest(points[1][0], books[1])
    assert (codes[0, 0] == semantic).float().mean() > 0.9  # float16 weights move a few
    assert (codes[0, 1] == acoustic).float().mean() > 0.9
    assert torch.isfinite(upstream.decode(model, codes)).all()


def test_training_goes_on_from_a_checkpoint(data, small, tmp_path):
    """It begins with the checkpoint's weights, both halves at once, and ends with the decoder alone."""
    trained(data, tmp_path / "run")
    train_demo.save(tmp_path / "run", tmp_path / "checkpoint")
    start = str(tmp_path / "checkpoint")
    begun = train_demo.Training(data, tmp_path, STEPS, start)
    begun.resume()
    wanted, got = load_checkpoint(start).model.state_dict(), begun.codec.finished().state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())
    once, twice = trained(data, tmp_path / "once", start=start), trained(data, tmp_path / "twice", 4, start=start)
    assert [line[-1] for line in once.log] == [1, 2]
    assert all(map(torch.equal, once.mean, twice.mean))
    moved = [not torch.equal(*pair) for pair in zip(once.mean, begun.mean, strict=True)]
    assert sum(moved) > 100


def test_full_size_fits_a_package():
    model = demo_codec.Codec().finished()
    assert sum(tensor.numel() for tensor in upstream.tensors_on_disk(model).values()) <= 3_000_000
    geometry = upstream.geometry_of(model)
    assert (geometry.frame_rate, geometry.num_quantizers, geometry.sliding_window) == (12.5, 8, 250)
