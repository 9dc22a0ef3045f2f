"""The repository for Triton: its own protobuf reads it, and in a model of its batcher a stream equals itself alone."""

from __future__ import annotations

import json
import subprocess
import sys
import wave
from concurrent import futures
from threading import Lock

import numpy as np
import pytest
from helpers import DECODER_SNR, snr
from sequence_batcher import Request, Triton

from mimi_export.contract.directory import load_artifact
from mimi_export.errors import ConfigError, OutputError
from mimi_export.media.signals import speech_like
from mimi_export.runtime import load
from mimi_export.serving.triton import TritonOptions, write_repository

OPTIONS = TritonOptions("mimi", rows=3, streams=5, idle_seconds=10)


@pytest.fixture(scope="module")
def ring(tiny_variant):
    return tiny_variant(8, "ring", 1)


@pytest.fixture(scope="module")
def repository(ring, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton") / "models"
    assert write_repository(load_artifact(ring), folder, OPTIONS) == ["mimi-encoder", "mimi-decoder"]
    return folder


def parsed(repository, model):
    """The configuration as Triton reads it."""
    pytest.importorskip("tritonclient.grpc", reason="pip install 'mimi-export[triton]'")
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    config = text_format.Parse((repository / model / "config.pbtxt").read_text("utf-8"), ModelConfig())
    assert config.name == model
    return config


def server(repository, model, change=lambda config: None):
    config = parsed(repository, model)
    change(config)
    return Triton(repository / model, config)


def streams(ring):
    """Streams of 1 to 30 calls, and what each gives alone: for the encoder, and its codes for the decoder."""
    codec = load(ring)
    frame = codec.geometry.frame_size
    rng = np.random.default_rng(3)
    found = []
    for seed, calls in enumerate([1, 2, *rng.integers(3, 31, 12)]):
        audio = speech_like(calls * frame / 24000, seed)[: calls * frame].astype(np.float32)[None, None]
        codes = codec.encoder.stream().push(audio[0])
        found.append((audio, codes, codec.decoder.stream().push(codes)[:, None]))
    return found


def same(got, alone):
    """Codes to the bit; audio to the rounding of products of one row and of several."""
    if got.dtype == np.int64:
        np.testing.assert_array_equal(got, alone)
    assert got.shape == alone.shape
    assert snr(alone, got) > DECODER_SNR


def play(triton, inputs, size, rng):
    """Send all streams in a random mix, several requests ahead of the answers; the outputs of each."""
    calls = [np.split(data, data.shape[2] // size, axis=2) for data in inputs]
    sent = [[] for _ in inputs]
    begun = list(rng.permutation(len(inputs)))
    active, numbers = [], {}
    while begun or active:
        if begun and (not active or rng.random() < 0.3):
            stream = begun.pop()
            active.append(stream)
            taken = {*triton._sequences, *(numbers[one] for one in active[:-1])}
            numbers[stream] = min(set(range(1, 99)) - taken)  # one that ended may come again
        for stream in rng.permutation(active):
            if rng.random() < 0.6:
                data = calls[stream][len(sent[stream])]
                last = len(sent[stream]) + 1 == len(calls[stream])
                sent[stream].append(triton.send(Request(numbers[stream], data, not sent[stream], last)))
                if last:
                    active.remove(stream)
        for _ in range(int(rng.integers(0, 4))):
            triton.run()
        triton.sleep(0.08)
    while triton.run():
        pass
    assert not any(request.error for requests in sent for request in requests)
    return [np.concatenate([request.output for request in requests], axis=2) for requests in sent]


@pytest.mark.parametrize("model", ["mimi-encoder", "mimi-decoder"])
def test_each_stream_equals_itself_alone(repository, ring, model):
    """14 streams over 5 slots and 3 rows; numbers are used again, requests come ahead of answers."""
    triton = server(repository, model)
    audio, codes, heard = zip(*streams(ring), strict=True)
    if model.endswith("encoder"):
        inputs, wanted, size = audio, codes, audio[0].shape[2]
    else:
        inputs, wanted, size = codes, heard, 1
    for seed in range(2):  # the second time slots are full of what the first has left
        for got, alone in zip(play(triton, inputs, size, np.random.default_rng(seed)), wanted, strict=True):
            same(got, alone)
    assert set(triton.batches) == {1, 2, 3}


def forget_position(config):
    for state in config.sequence_batching.state:
        if state.input_name == "past_position":
            state.ClearField("initial_state")


def swap_states(config):
    one, other = (
        state for state in config.sequence_batching.state if state.input_name in ("past_key_0", "past_value_0")
    )
    one.output_name, other.output_name = other.output_name, one.output_name


@pytest.mark.parametrize("harm", [forget_position, swap_states])
def test_the_model_sees_what_would_hurt(repository, ring, harm):
    """A slot that is not zeroed, and states paired wrongly."""
    triton = server(repository, "mimi-encoder", harm)
    if harm is swap_states:  # as configured, not as Triton sorts
        triton._outputs = [state.output_name for state in triton._inputs]
    audio, codes, _ = zip(*streams(ring), strict=True)
    got = play(triton, audio, audio[0].shape[2], np.random.default_rng(0))
    assert any(not np.array_equal(one, other) for one, other in zip(got, codes, strict=True))


def test_states_sort_alike(repository):
    """Triton pairs them by alphabetical order, not by what the configuration says."""
    for model in ("mimi-encoder", "mimi-decoder"):
        states = parsed(repository, model).sequence_batching.state
        by_input = sorted(states, key=lambda state: state.input_name)
        assert [state.output_name for state in by_input] == sorted(state.output_name for state in states)


def test_an_idle_stream_is_ended_and_its_slot_is_clean(repository, ring):
    triton = server(repository, "mimi-encoder")
    (audio, codes, _), *_ = (found for found in streams(ring) if found[0].shape[2] >= 5 * 1920)
    calls = np.split(audio, audio.shape[2] // 1920, axis=2)
    for number in range(1, 6):  # all slots
        triton.send(Request(number, calls[0], start=True))
        triton.send(Request(number, calls[1]))
    waits = triton.send(Request(6, calls[0], start=True, end=True))
    while triton.run():
        pass
    assert waits.output is None
    triton.sleep(11)
    triton._schedule()
    assert triton.run()
    np.testing.assert_array_equal(waits.output, codes[:, :, :1])
    assert "START" in triton.send(Request(1, calls[2])).error
    again = [triton.send(Request(1, call, call is calls[0], call is calls[-1])) for call in calls]
    while triton.run():
        pass
    np.testing.assert_array_equal(np.concatenate([one.output for one in again], axis=2), codes)


def test_fewer_codebooks_run_in_calls_of_their_own(repository, ring):
    triton = server(repository, "mimi-decoder")
    _, codes, _ = streams(ring)[2]
    sent = [triton.send(Request(1 + row, codes[:, :kept, :1], True, True)) for row, kept in enumerate((8, 8, 3))]
    while triton.run():
        pass
    assert triton.batches == [2, 1]
    alone = load(ring).decoder.stream().push(codes[:, :3, :1])
    np.testing.assert_array_equal(sent[2].output[0], alone)  # in a call of its own


@pytest.fixture
def grpc_server(repository):
    """The model behind Triton's own service, for the client."""
    grpc = pytest.importorskip("grpc", reason="pip install 'mimi-export[triton]'")
    pytest.importorskip("tritonclient.grpc", reason="pip install 'mimi-export[triton]'")
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    models = {model: server(repository, model) for model in ("mimi-encoder", "mimi-decoder")}
    types = {"FP32": np.float32, "INT64": np.int64}
    lock = Lock()

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelConfig(self, request, context):  # noqa: N802 - the service's name
            return service_pb2.ModelConfigResponse(config=models[request.name].config)

        def ModelInfer(self, request, context):  # noqa: N802
            (tensor,), triton = request.inputs, models[request.model_name]
            data = np.frombuffer(request.raw_input_contents[0], types[tensor.datatype]).reshape(tensor.shape)
            flags = {name: request.parameters[f"sequence_{name}"].bool_param for name in ("start", "end")}
            with lock:
                done = triton.send(Request(request.parameters["sequence_id"].int64_param, data, **flags))
            while done.output is None and done.error is None:
                with lock:
                    triton.run()
            if done.error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, done.error)
            answer = service_pb2.ModelInferResponse(model_name=request.model_name)
            kind = "INT64" if done.output.dtype == np.int64 else "FP32"
            answer.outputs.add(name=triton.config.output[0].name, datatype=kind, shape=done.output.shape)
            answer.raw_output_contents.append(done.output.tobytes())
            return answer

    running = grpc.server(futures.ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), running)
    port = running.add_insecure_port("localhost:0")
    running.start()
    yield f"localhost:{port}", models
    running.stop(None).wait()


def test_client(repository, ring, grpc_server, tmp_path):
    """The client that lies in the repository, over gRPC, after it warmed up."""
    url, models = grpc_server
    speech = (speech_like(1.03, 4) * 32767).astype("<i2")
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 24000, len(speech), "NONE", ""))
        file.writeframes(speech.tobytes())
    command = [sys.executable, repository / "client.py", "mimi", tmp_path / "speech.wav", tmp_path / "decoded.wav"]
    command += ["--url", url, "--warm-up", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "13 frames of 8 codes\n"), done.stderr
    assert sum(models["mimi-encoder"].batches) == 4 + 13
    codec = load(ring)
    stream = codec.encoder.stream()
    samples = speech.astype(np.float32) / 32768
    codes = np.concatenate([stream.push(samples), stream.flush().codes], axis=2)
    heard = codec.decoder.stream().push(codes)[0, : len(speech)]
    with wave.open(str(tmp_path / "decoded.wav"), "rb") as file:
        got = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    np.testing.assert_array_equal(got, (np.clip(heard, -1, 1) * 32767).astype("<i2"))


def test_command(cli, ring, tiny_variant, tmp_path):
    """Refusals are one line and leave nothing; it is safe to run twice."""
    out = tmp_path / "models"
    code, text, _ = cli("triton", ring, "--out", out, "--name", "mimi", "--version", 2, "--json")
    assert code == 0
    assert json.loads(text)["models"] == ["mimi-encoder", "mimi-decoder"]
    assert (out / "mimi-encoder" / "2" / "model.onnx").read_bytes() == (ring / "encoder_model.onnx").read_bytes()
    assert cli("triton", ring, "--out", out)[0] == OutputError.exit_code
    assert cli("triton", ring, "--out", out, "--name", "other", "--force")[0] == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "client.py", "other-decoder", "other-encoder", "variant.json",
    ]  # fmt: skip
    assert "$" not in (out / "README.md").read_text("utf-8").replace('"$PWD"', "")
    for arguments, words in {
        (tiny_variant(8), "--out", tmp_path / "a"): "window layout",
        (ring, "--out", tmp_path / "a", "--name", "../a"): "no name for a model",
        (ring, "--out", tmp_path / "a", "--rows", 9, "--streams", 8): "streams is 8, expected 9 or more",
    }.items():
        code, _, error = cli("triton", *arguments)
        assert code == ConfigError.exit_code
        assert words in error
    assert not (tmp_path / "a").exists()


def test_names_are_quoted(ring, tmp_path):
    """A manifest may hold any text; protobuf gives it back."""
    import dataclasses

    artifact = load_artifact(ring)
    name = 'a "name" \\ with ünusual signs'
    artifact = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, name=name))
    write_repository(artifact, tmp_path / "models", OPTIONS)
    assert parsed(tmp_path / "models", "mimi-encoder").parameters["variant"].string_value == name
