"""The benchmark: its arithmetic on graphs that can be counted by hand, its baseline's defects, one run of it all.

Nothing here asserts a time.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import OTHER_PROVIDER, PATTERNS, onnx_step, session, snr, stream, zeros
from onnx import TensorProto, helper

from mimi_export.bench import benchmark as benchmark_module
from mimi_export.bench import contenders as contenders_module
from mimi_export.bench import process as process_module
from mimi_export.bench.baseline import export_public_design
from mimi_export.bench.contenders import Contender, variant_contenders, weight_bytes
from mimi_export.bench.graphs import PUBLIC, GraphSubject, bare_call, call_data, states_at
from mimi_export.bench.machine import Machine, measure_machine
from mimi_export.bench.plan import Fact, Measurement, Plan, Results, summarise
from mimi_export.bench.promises import Promise, judge
from mimi_export.bench.report import as_json, markdown, tables
from mimi_export.bench.rounds import run_rounds
from mimi_export.bench.worker import Worker
from mimi_export.contract.directory import load_artifact
from mimi_export.contract.spec import GRAPH_KINDS, Shape, graph_spec
from mimi_export.errors import ArtifactError, ConfigError, MimiExportError
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.runtime import load
from mimi_export.runtime.processor import best_instruction_set

MACHINE = Machine("none", "avx2", 2, 2**34, "1.0", 1, 10e9)
CLEAN = 110.0  # dB, as for our own graphs: what is left when the defects are not in play is rounding
TINY_PLAN = Plan(frames=2, rounds=2, ages=(2.0, 20.0), batches=(1, 4), threads=(1,))


@pytest.fixture(scope="session")
def public(tiny_checkpoint, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("public") / PUBLIC
    export_public_design(tiny_checkpoint, path, 8)
    return path


# --- many times as few numbers


def test_percentiles_of_known_times():
    rounds = [[1.0, 2.0, 3.0], [4.0, 5.0, 96.0]]
    # linear between the two nearest of six: 0.95 · 5 = 4.75 and 0.99 · 5 = 4.95
    wanted = {
        "calls": 6,
        "p50": 3.5,
        "p95": 5 + 0.75 * 91,
        "p99": 5 + 0.95 * 91,
        "low": 2.0,
        "high": 5.0,
        "cpu_p50": 7.0,
    }
    assert summarise(rounds, [[7.0], [1.0, 9.0]], 1) == pytest.approx(wanted)
    per_frame = {name: value if name == "calls" else value / 4 for name, value in wanted.items()}
    assert summarise(rounds, [[7.0], [1.0, 9.0]], 4) == pytest.approx(per_frame)


# --- the machine and the weights


def test_looked_up_tables_are_no_weights_and_halves_become_floats(tmp_path):
    arrays = {
        "table": np.zeros((100, 16), np.float32),
        "matrix": np.zeros((16, 24), np.float32),
        "both": np.zeros((24, 24), np.float32),
        "half": np.zeros((24, 8), np.float16),
        "bytes": np.zeros((8, 5), np.int8),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "rows"], ["x"]),
            helper.make_node("MatMul", ["x", "matrix"], ["y"]),
            helper.make_node("Gather", ["both", "rows"], ["z"]),
            helper.make_node("MatMul", ["y", "both"], ["w"]),
        ],
        "small",
        [helper.make_tensor_value_info("rows", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 24])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph), tmp_path / "small.onnx")
    assert weight_bytes(tmp_path / "small.onnx") == 4 * 16 * 24 + 4 * 24 * 24 + 4 * 24 * 8 + 8 * 5


def test_all_weights_of_an_encoder_are_read(tiny_variant):
    """All but the tables that give the chosen entries; those that distances are computed with are others."""
    artifact = load_artifact(tiny_variant())
    stored = sum(
        math.prod(tensor.dims) * 4
        for tensor in onnx.load(str(artifact.graph_path("encoder"))).graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    )
    books = 8 * artifact.geometry.codebook_size * artifact.geometry.codebook_dim * 4
    assert 0.95 * stored - books <= weight_bytes(artifact.graph_path("encoder")) <= 1.05 * stored


def test_the_machine_can_be_measured():
    machine = measure_machine(threads=1, side=64, repeats=2)
    assert math.isfinite(machine.read_bytes_per_second)
    assert machine.read_bytes_per_second > 0
    assert machine.best(MACHINE).read_bytes_per_second == max(machine.read_bytes_per_second, 10e9)
    assert machine.best(MACHINE).processor == machine.processor


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("sse4_1 avx2 fma", "avx2"),
        ("sse4_1 avx2 avx_vnni", "avx-vnni"),
        ("sse4_1 avx2 avx512f avx512bw", "avx512"),
        ("avx2 avx512f avx512bw avx512vl avx512_vnni", "avx512-vnni"),
        ("avx512_vnni avx512vl amx_tile amx_int8", "amx"),
        ("fp asimd asimddp", "neon-dotprod"),
        ("mmx", ""),
    ],
)
def test_instruction_sets(flags, wanted):
    assert best_instruction_set(flags.split()) == wanted


# --- graphs with everything bound


@pytest.mark.parametrize("kind", GRAPH_KINDS)
@pytest.mark.parametrize("layout", ["window", "ring", "growing"])
@pytest.mark.parametrize("age", [0.0, 0.4, 20.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_bare_graph_computes_what_plain_calls_do(tiny_variant, public, kind, layout, age, batch):
    codec = load(public if layout == "growing" else tiny_variant(8, layout, 1 if layout == "ring" else None))
    half = codec.encoder if kind == "encoder" else codec.decoder
    data = call_data(half.spec, codec.geometry, batch)
    states, present = states_at(half.spec, codec.geometry, batch, age, bounded=layout != "growing")
    held = any(array.shape != present[name].shape for name, array in states.items())
    assert held == (layout == "growing" or (layout == "window" and age == 0.0))
    run, step = bare_call(half.graph, data, dict(states), present), onnx_step(session(half.graph.path))
    for _ in range(4):
        wanted, after = step(data, states)
        np.testing.assert_array_equal(run()[0], wanted)
        states = states if held else after


def test_ages_are_whole_frames_and_end_at_the_window(tiny_variant):
    artifact = load_artifact(tiny_variant())
    spec, geometry = artifact.spec("encoder"), artifact.geometry

    def lengths(age, bounded=True):
        return [states["key_0"].shape[2] for states in states_at(spec, geometry, 1, age, bounded)]

    most, tokens = spec.window_length, geometry.tokens_per_frame
    assert lengths(0.0) == [0, most]
    assert lengths(0.16) == lengths(20.0) == [most, most]
    spec = graph_spec(geometry, "encoder", Shape(8, growing=True))
    assert lengths(0.0) == [0, tokens]
    assert lengths(0.16) == [2 * tokens, 3 * tokens]
    assert lengths(20.0) == [most - 1, most - 1]
    assert lengths(600.0, bounded=False) == [7500 * tokens, 7501 * tokens]


def test_the_runtime_and_the_bare_graph_are_asked_in_turn(tiny_variant, public):
    worker = Worker(GraphSubject(load(tiny_variant(8, "ring", 1)), "encoder"))
    wish = {"age_seconds": 20.0, "batch": 2, "calls": 3, "ways": ["bare", "push"]}
    reply = worker.answer(json.dumps(wish))
    for clock in ("ms", "cpu_ms"):
        assert {way: len(times) for way, times in reply[clock].items()} == {"bare": 3, "push": 3}
    assert "runs as bare, push, not as stream" in worker.answer(json.dumps({**wish, "ways": ["stream"]}))["error"]


# --- the baseline


@pytest.mark.export
def test_the_public_design_has_its_three_defects_and_no_other(tiny_checkpoint, public):
    artifact = load_artifact(public)
    geometry, model = artifact.geometry, tiny_checkpoint.model
    size = geometry.frame_size
    window = geometry.sliding_window // geometry.tokens_per_frame  # frames
    audio = speech_like(3.0)[: 36 * size][None, None]
    wanted = upstream.encode(model, torch.from_numpy(audio), 8).numpy()
    codes, _ = stream(
        onnx_step(session(artifact.graph_path("encoder"))), zeros(artifact.spec("encoder"), 1), audio, size, [1]
    )
    differs = (codes != wanted).any(axis=(0, 1))
    assert differs[0], "downsampling from zeros changes frame 0"
    assert not differs[1:window].any(), "inside the window nothing else is wrong"
    assert differs[window:].any(), "without a window later frames differ"

    right = upstream.decode(model, torch.from_numpy(wanted)).numpy()
    start = zeros(artifact.spec("decoder"), 1)
    decoded, _ = stream(onnx_step(session(artifact.graph_path("decoder"))), start, wanted, 1, [1])
    assert snr(right[..., :size], decoded[..., :size]) < 60, "call 0 loses a bias"
    assert snr(right[..., size : window * size], decoded[..., size : window * size]) >= CLEAN
    assert snr(right[..., window * size :], decoded[..., window * size :]) < 60, "no window"


@pytest.mark.parametrize("pattern", ["3", "mixture"])
def test_the_public_design_streams_with_its_defects_at_any_chunking(tiny_checkpoint, public, pattern):
    """Its states are right but for the defects: what a chunk changes is only how far the missing bias reaches."""
    artifact = load_artifact(public)
    size = artifact.geometry.frame_size
    audio = speech_like(2.0)[: 24 * size][None, None]
    step = onnx_step(session(artifact.graph_path("encoder")))
    one, _ = stream(step, zeros(artifact.spec("encoder"), 1), audio, size, [1])
    other, states = stream(step, zeros(artifact.spec("encoder"), 1), audio, size, PATTERNS[pattern])
    np.testing.assert_array_equal(other, one)
    assert states["key_0"].shape[2] == 24 * artifact.geometry.tokens_per_frame, "nothing is ever dropped"


def test_the_public_design_is_a_plain_export(public):
    """Separate projections, layer scales, convolutions as such; every weight that a product reads is there once."""
    artifact = load_artifact(public)
    geometry = artifact.geometry
    model = onnx.load(str(artifact.graph_path("encoder")))
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    layers = geometry.num_hidden_layers
    products = layers * (4 + 2 + 2) + 8  # projections, feed-forward, attention; distances
    assert counts["MatMul"] == products
    assert counts["LayerNormalization"] == 2 * layers
    assert not any(node.op_type in ("ScatterElements", "Attention") or node.domain not in ("", "ai.onnx")
                   for node in model.graph.node)  # fmt: skip
    inputs = [value.name for value in model.graph.input]
    assert inputs == [tensor.name for tensor in artifact.spec("encoder").inputs]


# --- rounds, promises, report


def results_of(*rows):
    """Results from rows of contender, milliseconds and what differs from a bare call at 20 s."""
    results = Results()
    for name, p50, changes in rows:
        what = {"direction": "encoder", "way": "bare", "age_seconds": 20.0, "batch": 1, "group": "ours", **changes}
        times = {"calls": 5, **dict.fromkeys(("p50", "p95", "p99", "low", "high"), p50)}
        used = p50 / (2 if name == "r" else 1)
        results.measurements.append(Measurement(name, threads=1, cpu_p50=used, rss_bytes=2**20, **what, **times))
        results.facts.append(Fact(name, what["direction"], 1, "", "", 0.1, 0.0, 2**20, 1, 40_000_000))
    return results


def test_every_promise_is_found_in_the_results():
    contenders = [
        Contender("w", "ours", Path(), layout="window", precision="fp32"),
        Contender("r", "ours", Path(), layout="ring", precision="fp32"),
        Contender("slow8", "ours", Path(), layout="ring", precision="int8"),
        Contender("r8", "ours", Path(), layout="ring", precision="int8-block"),
        Contender("r8x2", "ours", Path(), layout="ring", precision="int8", frames_per_call=2),
        Contender(PUBLIC, "public", Path()),
        *(Contender(name, "peer", Path()) for name in ("moshi", "rustymimi", "transformers-streaming")),
    ]
    rows = []
    for direction in GRAPH_KINDS:
        for name, p50 in (("w", 20.0), ("r", 16.0), ("slow8", 12.0), ("r8", 8.0), ("r8x2", 1.0), (PUBLIC, 24.0)):
            group, grown = ("public", 4.0) if name == PUBLIC else ("ours", 1.02)
            for age, ms in ((2.0, p50), (20.0, p50), (600.0, grown * p50)):
                rows.append((name, ms, {"direction": direction, "age_seconds": age, "group": group}))
        rows.append(("r8", 8.16, {"direction": direction, "way": "push"}))
        rows.append(("r8", 80.0, {"direction": direction, "batch": 16}))
        for peer in contenders[6:]:
            rows.append((peer.name, 40.0, {"direction": direction, "way": "stream", "group": "peer"}))
    report = as_json("m", 80.0, Plan(threads=(1,)), [MACHINE], contenders, results_of(*rows))
    found = {target["name"]: target for target in report["targets"]}

    def one(*words: str) -> dict:
        (target,) = [found[name] for name in found if all(word in name for word in words)]
        return target

    for words, measured, verdict in (
        (("ring fp32", "encoder"), 1.5, "aim"),
        (("ring int8 against the public", "decoder"), 3.0, "must"),
        (("window fp32", "20 s", "encoder"), 1.2, "must"),
        (("window fp32", "600 s", "encoder"), 96 / 20.4, "must"),
        (("10 min over",), 1.02, "must"),
        (("moshi", "decoder"), 5.0, "must"),
        (("streams",), 16 * 80 / 80, "aim"),
        (("part of the weight-bandwidth", "encoder"), 0.5, "aim"),
        (("bound buffers",), 1.02, "must"),
    ):
        assert one(*words)["measured"] == pytest.approx(measured), words
        assert one(*words)["verdict"] == verdict, words
    assert one("ring fp32", "encoder")["processor"] == pytest.approx(3.0), "the ring used half of its time on the wall"
    assert one("ring int8 against the public", "decoder")["detail"] == f"{PUBLIC} 24.00 ms; r8, decoder, 8.00 ms"
    assert all(target["verdict"] not in ("missed", "not measured") for target in found.values())
    assert len(found) == 18
    assert {target["verdict"] for target in judge({**report, "measurements": []})} == {"not measured"}


@pytest.mark.parametrize(
    ("bounds", "measured", "verdict"),
    [
        ({"must": 1.25, "aim": 1.5}, 1.2, "missed"),
        ({"must": 1.05, "aim": 1.0, "at_most": True}, 1.06, "missed"),
        ({"must": 1.05, "aim": 1.0, "at_most": True}, 1.0, "aim"),
        ({"aim": 0.5}, 0.2, "reported"),
        ({"must": 1.0}, None, "not measured"),
    ],
)
def test_verdicts(bounds, measured, verdict):
    assert Promise("t", "audio", {}, **bounds).verdict(measured) == verdict


def test_situations_of_a_plan():
    plan = Plan(ages=(2.0, 25.0, 600.0), batches=(1, 4, 16), threads=(1, 2))
    found = [(one.age_seconds, one.batch) for one in plan.situations("encoder", 1)]
    assert found == [(2.0, 1), (25.0, 1), (600.0, 1), (25.0, 4), (25.0, 16)]
    assert [str(one) for one in plan.situations("encoder", 2)] == ["encoder, 2 threads, age 25 s, batch 1"]


def test_rounds_of_graphs_and_a_report(tiny_variant, public):
    contenders = variant_contenders([tiny_variant(), tiny_variant(8, "ring", 1), tiny_variant(8, "ring", 2)])
    contenders.append(Contender(PUBLIC, "public", public, layout="growing", precision="fp32"))
    steps = []
    results = run_rounds(contenders, TINY_PLAN, progress=lambda step, done, total: steps.append(step))
    for contender in contenders:
        for direction in GRAPH_KINDS:
            mine = [m for m in results.measurements if (m.contender, m.direction) == (contender.name, direction)]
            found = [(m.way, m.age_seconds, m.batch) for m in mine]
            pushed = [] if contender.group == "public" else [("push", 20.0, 1)]
            assert found == [("bare", 2.0, 1), ("bare", 20.0, 1), *pushed, ("bare", 20.0, 4)]
            assert all(m.calls == 2 * 2 and m.rss_bytes > 2**20 for m in mine)
    assert len(results.facts) == 2 * len(contenders)
    assert all(fact.load_seconds > 0 and fact.file_bytes > fact.weight_bytes > 10_000 for fact in results.facts)
    assert any("age 20 s, batch 4" in step for step in steps)

    report = as_json("synthetic:tiny", 80.0, TINY_PLAN, [MACHINE], contenders, results)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    weights = {(load["contender"], load["direction"]): load["weight_bytes"] for load in report["loads"]}
    for record in [m for m in report["measurements"] if m["contender"].endswith("-2")]:
        least = weights[record["contender"], record["direction"]] / 10e9 * 1e3 / 2
        assert record["bandwidth_ms"] == pytest.approx(least), "half a call is a frame"
    text = markdown(report)
    assert all(contender.name in text for contender in contenders)
    assert "| none | avx2 | 2 | 1.0 | 1 | 10.0 |" in text
    for narrow in (False, True):
        assert all(len(row) == len(columns) for _, columns, rows in tables(report, True, narrow) for row in rows)


def test_variants_that_cannot_be_compared_are_refused(tiny_variant, tmp_path):
    with pytest.raises(ConfigError, match=r"differ in codebooks.*one number of codebooks"):
        variant_contenders([tiny_variant(8), tiny_variant(4)])
    with pytest.raises(ConfigError, match="two variant directories are called"):
        variant_contenders([tiny_variant(8), tiny_variant(8)])
    with pytest.raises(ArtifactError, match="no variant with 8 codebooks"):
        benchmark_module.default_directories(tmp_path)


# --- the command


@pytest.fixture
def cli(cli, monkeypatch):
    """Run `bench` here, with a machine of known limits."""
    monkeypatch.setattr(benchmark_module, "measure_machine", lambda threads: MACHINE)
    return partial(cli, "bench")


def test_bench_writes_a_report_and_pictures(cli, tiny_variant, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("MIMI_EXPORT_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "out"
    quick = ["--frames", 1, "--rounds", 2, "--ages", "2,20", "--batches", "1,16"]
    code, out, err = cli(
        tiny_variant(), tiny_variant(8, "ring", 1), "--no-peers", *quick, "--targets", "--json", "--output", output
    )
    assert code == 0, err
    report = json.loads(out)
    assert report == json.loads((output / "bench.json").read_text())
    assert [contender["name"] for contender in report["contenders"]][-1] == PUBLIC
    names = {target["name"]: target for target in report["targets"]}
    assert names["ring fp32 against the public design at 20 s, encoder: times faster"]["measured"] > 0
    assert (output / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (output / "bench.svg").read_text()
    assert (output / "bench.md").read_text().startswith("# Benchmark\n")
    code, out, err = cli(tiny_variant(), "--no-peers", "--no-public", *quick, "--output", output)
    assert (code, out) == (8, "")
    assert "exists already" in err
    assert "Heaps in pages as the system gives them." in (output / "bench.md").read_text()
    with_huge_pages(monkeypatch, tmp_path / "switch", "always [madvise] never\n")
    code, out, err = cli(
        tiny_variant(), "--no-peers", "--no-public", *quick, "--output", output, "--force", "--huge-pages"
    )
    assert code == 0
    assert "encoder, ms a frame" in out
    assert "Heaps in huge pages." in (output / "bench.md").read_text()


def test_graphs_run_on_the_provider(cli, tiny_variant):
    code, out, err = cli(tiny_variant(), "--model", "none", "--provider", "abacus")
    assert (code, out) == (ConfigError.exit_code, "")
    assert err.startswith("error: onnxruntime has no abacus here; it offers ")
    if OTHER_PROVIDER == "CPUExecutionProvider":
        pytest.skip("this onnxruntime has no provider beside the processor's that runs everywhere")
    once = ["--frames", 1, "--rounds", 1, "--ages", "20", "--batches", "1", "--no-public", "--no-peers", "--json"]
    code, out, err = cli(tiny_variant(), *once, "--provider", OTHER_PROVIDER.removesuffix("ExecutionProvider").lower())
    assert code == 0, err
    report = json.loads(out)
    assert report["plan"]["provider"] == OTHER_PROVIDER
    assert [load["note"] for load in report["loads"]] == [f"on {OTHER_PROVIDER}"] * 2
    assert not any("bandwidth_ms" in record for record in report["measurements"]), "that is the processor's"


def with_huge_pages(monkeypatch, switch, text, libc=("glibc", "2.36")):
    switch.write_text(text)
    monkeypatch.setattr(process_module, "SWITCH", switch)
    monkeypatch.setattr(process_module.platform, "libc_ver", lambda: libc)


@pytest.mark.parametrize("wanted", [False, True])
def test_huge_pages_reach_graphs_and_other_programs(tiny_variant, monkeypatch, wanted):
    asked = []

    class Process:
        def __init__(self, name, *_, huge_pages):
            asked.append((name, huge_pages))
            raise MimiExportError("enough")

    monkeypatch.setattr(contenders_module, "ContenderProcess", Process)
    peer = Contender("moshi", "peer", Path("weights"))
    with pytest.raises(MimiExportError, match="enough"):
        run_rounds([peer, *variant_contenders([tiny_variant()])], Plan(huge_pages=wanted))
    assert asked == [("moshi", wanted), (tiny_variant().name, wanted)]


def test_huge_pages_that_cannot_be_had(cli, tiny_variant, tmp_path, monkeypatch):
    def refused():
        code, out, err = cli(tiny_variant(), "--huge-pages")
        assert (code, out) == (ConfigError.exit_code, "")
        return err.splitlines()[-1]

    switch = tmp_path / "switch"
    with_huge_pages(monkeypatch, switch, "always madvise [never]\n")
    assert f"switched off here; as root: echo madvise > {switch}" in refused()
    with_huge_pages(monkeypatch, switch, "[always] madvise never\n", ("glibc", "2.31"))
    assert "need glibc 2.35 or later, this is glibc 2.31" in refused()
    with_huge_pages(monkeypatch, switch, "[always] madvise never\n", ("", ""))
    assert "need glibc 2.35 or later" in refused()
    with_huge_pages(monkeypatch, switch, "[always] madvise never\n")
    switch.unlink()
    assert "this kernel has no huge pages" in refused()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ages", "2,x"], "--ages '2,x': expected numbers"),
        (["--ages", "-1"], "0 or more"),
        (["--ages", "nan"], "0 or more"),
        (["--batches", "0"], "1 or more"),
        (["--batches", "1,1"], "there twice"),
        (["--threads", "1.5"], "whole numbers"),
        (["--revision", "main"], "--model"),
        (["--peers-python", "/nowhere/python", "--no-peers", "--no-public"], "there is no program /nowhere/python"),
    ],
)
def test_bad_options_are_one_line(cli, tiny_variant, options, words):
    code, out, err = cli(tiny_variant(), *options)
    assert code == ConfigError.exit_code
    assert out == ""
    assert words in err.splitlines()[-1]


def test_programs_that_only_run_kyutais_sizes_are_refused_before_measuring(cli, tiny_variant):
    code, _, err = cli(tiny_variant(), "--no-public")
    assert code == ConfigError.exit_code
    assert "--no-peers" in err


def test_a_directory_that_is_no_variant(cli, tmp_path):
    code, _, err = cli(tmp_path)
    assert code == ArtifactError.exit_code
    assert "manifest.json" in err
