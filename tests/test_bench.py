"""The benchmark: its arithmetic on graphs that can be counted by hand, its baseline's defects, one run of it all.

Nothing here asserts a time.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import PATTERNS, onnx_step, session, snr, stream, zeros
from mimi_export.bench.bound import BoundGraph, call_data, state_shapes, states_at
from mimi_export.bench.cost import Cost, measure_costs, multiply_adds, operator_milliseconds
from mimi_export.bench.graph_worker import GraphWorker, growth_of
from mimi_export.bench.summary import Summary, summarise
from mimi_export.bench.targets import Target, targets
from onnx import TensorProto, helper

from mimi_export.bench import benchmark as benchmark_module
from mimi_export.bench import contenders as contenders_module
from mimi_export.bench import huge_pages
from mimi_export.bench.baseline import export_public_design
from mimi_export.bench.contenders import PUBLIC, Contender, variant_contenders
from mimi_export.bench.machine import Machine, measure_machine
from mimi_export.bench.plan import Measurement, Plan, Results
from mimi_export.bench.report import as_json, markdown, tables
from mimi_export.bench.rounds import run_rounds
from mimi_export.cli import bench as bench_command
from mimi_export.cli import main
from mimi_export.contract.directory import load_artifact
from mimi_export.contract.spec import GRAPH_KINDS
from mimi_export.errors import ArtifactError, ConfigError, MimiExportError
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.runtime import load

MACHINE = Machine("none", 2, 2**34, "1.0", 1, 10e9, 8e9, 9e9, 100e9, 400e9)
CLEAN = 110.0  # dB, as for our own graphs: what is left when the defects are not in play is rounding
TINY_PLAN = Plan(frames=2, rounds=2, ages=(2.0, 20.0), batches=(1, 4), threads=(1,))


@pytest.fixture(scope="session")
def public(tiny_checkpoint, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("public") / PUBLIC
    export_public_design(tiny_checkpoint, path, 8)
    return path


# --- many times as few numbers


def test_percentiles_of_known_times():
    found = summarise([[1.0, 2.0, 3.0], [4.0, 5.0, 96.0]])
    assert (found.p50, found.low, found.high, found.count) == (3.5, 2.0, 5.0, 6)
    # linear between the two nearest of six: 0.95 · 5 = 4.75 and 0.99 · 5 = 4.95
    assert found.p95 == pytest.approx(5 + 0.75 * 91)
    assert found.p99 == pytest.approx(5 + 0.95 * 91)
    assert found.spread == pytest.approx(3 / 3.5)


def test_times_of_a_call_are_divided_by_its_frames():
    assert summarise([[8.0, 12.0], [10.0, 10.0]], 4) == Summary(2.5, 2.925, 2.985, 2.5, 2.5, 4)


def test_no_times_are_no_summary():
    for rounds in ([], [[]]):
        with pytest.raises(ValueError, match="no times"):
            summarise(rounds)


# --- bytes and operations


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs", "wanted"),
    [
        ("MatMul", [[1, 2, 512], [512, 2048]], [[1, 2, 2048]], 2 * 512 * 2048),
        ("FusedMatMul", [[1, 8, 2, 64], [1, 8, 250, 64]], [[1, 8, 2, 250]], 8 * 2 * 64 * 250),
        ("Gemm", [[1, 256], [256, 2048], [2048]], [[1, 2048]], 256 * 2048),
        ("MatMulNBits", [[1, 2, 512], [2048, 4, 128], [8192]], [[1, 2, 2048]], 2 * 512 * 2048),
        ("Conv", [[1, 64, 1922], [32, 64, 3], [32]], [[1, 32, 1920]], 32 * 1920 * 64 * 3),
        ("Conv", [[1, 32, 10], [32, 1, 4]], [[1, 32, 4]], 32 * 4 * 4),
        ("ConvTranspose", [[1, 128, 480], [128, 64, 8]], [[1, 64, 1924]], 128 * 480 * 64 * 8),
        ("Add", [[1, 512], [512]], [[1, 512]], 0),
    ],
)
def test_multiply_adds(operator, inputs, outputs, wanted):
    assert multiply_adds(operator, inputs, outputs) == wanted


@pytest.fixture
def small_graph(tmp_path) -> Path:
    """A looked-up table, a product and a convolution, all to be counted by hand."""
    rng = np.random.default_rng(0)
    arrays = {
        "table": rng.random((100, 16), np.float32),
        "matrix": rng.random((16, 24), np.float32),
        "kernel": rng.random((5, 3, 4), np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "rows"], ["x"]),
            helper.make_node("MatMul", ["x", "matrix"], ["y"]),
            helper.make_node("Reshape", ["y", "shape"], ["z"]),
            helper.make_node("Concat", ["past_s", "z"], ["c"], axis=2),
            helper.make_node("Conv", ["c", "kernel"], ["out"]),
        ],
        "small",
        [
            helper.make_tensor_value_info("rows", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("past_s", TensorProto.FLOAT, [1, 3, "p"]),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 5, "t"])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
        + [onnx.numpy_helper.from_array(np.array([1, 3, -1]), "shape")],
    )
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_costs_of_a_small_graph(small_graph):
    def feeds(rows: int, past: int) -> dict:
        return {"rows": np.arange(rows), "past_s": np.zeros((1, 3, past), np.float32)}

    costs = measure_costs(small_graph, [feeds(2, 4), feeds(1, 10)], ["past_s"])
    for cost, (rows, past) in zip(costs, [(2, 4), (1, 10)], strict=True):
        columns = rows * 24 // 3 + past - 3
        assert cost.float_macs == rows * 16 * 24 + 5 * columns * 3 * 4
        assert cost.integer_macs == 0
        assert cost.state_bytes == 3 * past * 4
        weights = 4 * (rows * 16 + 16 * 24 + 5 * 3 * 4)
        assert weights <= cost.weight_bytes <= weights + 64  # and the few bytes of Reshape's shape
    times = operator_milliseconds(small_graph, feeds(2, 4), calls=3)
    assert {"Gather", "MatMul", "Conv"} <= set(times)
    assert list(times.values()) == sorted(times.values(), reverse=True)


def test_limits_are_bytes_and_operations_over_rates():
    cost = Cost(weight_bytes=100_000_000, state_bytes=0, float_macs=10**9, integer_macs=2 * 10**9, operators=3)
    assert cost.bandwidth_ms(MACHINE) == pytest.approx(10.0)
    assert cost.compute_ms(MACHINE) == pytest.approx(20.0 + 10.0)
    assert cost.limit_ms(MACHINE) == pytest.approx(30.0)


@pytest.mark.parametrize("layout", ["window", "ring"])
def test_all_weights_of_an_encoder_are_read_once(tiny_variant, layout):
    """Products and convolutions read what the file stores for them; tables only the rows taken."""
    artifact = load_artifact(tiny_variant(8, layout, 1 if layout == "ring" else None))
    spec, geometry = artifact.spec("encoder"), artifact.geometry
    states = states_at(spec, geometry, 1, 20.0)
    call = {
        spec.data_input.name: call_data(spec, geometry, 1),
        **{state.past.name: states[state.name] for state in spec.states},
    }
    (cost,) = measure_costs(artifact.encoder_path, [call], [state.past.name for state in spec.states])
    stored = sum(
        math.prod(tensor.dims) * 4
        for tensor in onnx.load(str(artifact.encoder_path)).graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    )
    books = 8 * geometry.codebook_size * geometry.codebook_dim * 4
    assert stored - 0.05 * stored - books <= cost.weight_bytes <= 1.05 * stored
    assert cost.state_bytes == sum(array.nbytes for array in states.values())
    tokens, hidden = geometry.tokens_per_frame, geometry.hidden_size
    feed_forward = 2 * tokens * hidden * geometry.intermediate_size * geometry.num_hidden_layers
    assert cost.float_macs > feed_forward


def test_the_machine_can_be_measured():
    machine = measure_machine(threads=1, scale=0.02, repeats=2)
    rates = [value for name, value in vars(machine).items() if name.endswith("per_second")]
    assert len(rates) == 5
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)
    best = machine.best(MACHINE)
    assert best.read_bytes_per_second == max(machine.read_bytes_per_second, MACHINE.read_bytes_per_second)
    assert best.processor == machine.processor


# --- graphs with everything bound


@pytest.mark.parametrize("kind", GRAPH_KINDS)
@pytest.mark.parametrize("layout", ["window", "ring", "growing"])
@pytest.mark.parametrize("age", [0.0, 0.4, 20.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_bound_graph_computes_what_plain_calls_do(tiny_variant, public, kind, layout, age, batch):
    path = public if layout == "growing" else tiny_variant(8, layout, 1 if layout == "ring" else None)
    artifact = load_artifact(path)
    spec, geometry, growth = artifact.spec(kind), artifact.geometry, growth_of(artifact.manifest)
    assert growth == ("unbounded" if layout == "growing" else "bounded")
    run = session(artifact.graph_path(kind))
    data = call_data(spec, geometry, batch)
    states = states_at(spec, geometry, batch, age, growth)
    shapes = state_shapes(spec, geometry, batch, age, growth)
    steady = all(past == present for past, present in shapes.values())
    assert steady == (layout == "ring" or (layout == "window" and age == 20.0))
    graph = BoundGraph(run, spec, geometry, data, age, growth)
    step = onnx_step(run)
    for _ in range(4):
        graph.step()
        wanted, present = step(data, states)
        np.testing.assert_array_equal(graph.output, wanted)
        if steady:
            states = present


def test_ages_are_whole_frames_and_end_at_the_window(tiny_variant):
    artifact = load_artifact(tiny_variant())
    spec, geometry = artifact.spec("encoder"), artifact.geometry
    window = geometry.sliding_window
    for age, length in ((0.0, 0), (0.16, 4), (0.6, window - 1 - 15 % 2 if window == 15 else min(16, window - 1))):
        past, _ = state_shapes(spec, geometry, 1, age)["key_0"]
        assert past[2] == min(length, window - 1)
    assert state_shapes(spec, geometry, 1, 600.0, "unbounded")["key_0"][0][2] == 15_000


def test_the_runtime_and_the_bare_graph_are_asked_in_turn(tiny_variant):
    worker = GraphWorker(load(tiny_variant(8, "ring", 1)), "encoder")
    wish = {"age_seconds": 20.0, "batch": 2, "calls": 3, "ways": ["bare", "push"]}
    reply = worker.answer(f"measure {json.dumps(wish)}")
    assert {way: len(times) for way, times in reply["ms"].items()} == {"bare": 3, "push": 3}
    assert {way: len(times) for way, times in reply["cpu_ms"].items()} == {"bare": 3, "push": 3}
    reply = worker.answer(f"cost {json.dumps({'calls': [[2.0, 1], [2.0, 4]]})}")
    one, four = (Cost(**cost) for cost in reply["costs"])
    assert four.float_macs == 4 * one.float_macs
    assert four.state_bytes == 4 * one.state_bytes
    assert "cannot encode" in worker.answer("encode 3")["error"]


# --- the baseline


@pytest.mark.export
def test_the_public_design_has_its_three_defects_and_no_other(tiny_checkpoint, public):
    artifact = load_artifact(public)
    geometry, model = artifact.geometry, tiny_checkpoint.model
    size = geometry.frame_size
    window = geometry.sliding_window // geometry.tokens_per_frame  # frames
    audio = speech_like(3.0)[: 36 * size][None, None]
    wanted = upstream.encode(model, torch.from_numpy(audio), 8).numpy()
    codes, _ = stream(onnx_step(session(artifact.encoder_path)), zeros(artifact.spec("encoder"), 1), audio, size, [1])
    differs = (codes != wanted).any(axis=(0, 1))
    assert differs[0], "downsampling from zeros changes frame 0"
    assert not differs[1:window].any(), "inside the window nothing else is wrong"
    assert differs[window:].any(), "without a window later frames differ"

    right = upstream.decode(model, torch.from_numpy(wanted)).numpy()
    start = zeros(artifact.spec("decoder"), 1)
    decoded, _ = stream(onnx_step(session(artifact.decoder_path)), start, wanted, 1, [1])
    assert snr(right[..., :size], decoded[..., :size]) < 60, "call 0 loses a bias"
    assert snr(right[..., size : window * size], decoded[..., size : window * size]) >= CLEAN
    assert snr(right[..., window * size :], decoded[..., window * size :]) < 60, "no window"


@pytest.mark.parametrize("pattern", ["3", "mixture"])
def test_the_public_design_streams_with_its_defects_at_any_chunking(tiny_checkpoint, public, pattern):
    """Its states are right but for the defects: what a chunk changes is only how far the missing bias reaches."""
    artifact = load_artifact(public)
    size = artifact.geometry.frame_size
    audio = speech_like(2.0)[: 24 * size][None, None]
    step = onnx_step(session(artifact.encoder_path))
    one, _ = stream(step, zeros(artifact.spec("encoder"), 1), audio, size, [1])
    other, states = stream(step, zeros(artifact.spec("encoder"), 1), audio, size, PATTERNS[pattern])
    np.testing.assert_array_equal(other, one)
    assert states["key_0"].shape[2] == 24 * artifact.geometry.tokens_per_frame, "nothing is ever dropped"


def test_the_public_design_is_a_plain_export(public):
    """Separate projections, layer scales, convolutions as such; every weight that a product reads is there once."""
    artifact = load_artifact(public)
    geometry = artifact.geometry
    model = onnx.load(str(artifact.encoder_path))
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


# --- rounds, targets, report


def measurement(name, p50, direction="encoder", way="bare", age=20.0, batch=1, group="ours", threads=1):
    times, used = (Summary(ms, ms, ms, ms, ms, 5) for ms in (p50, p50 / (2 if name == "r" else 1)))
    return Measurement(name, group, direction, way, threads, batch, age, times, used, 2**20)


def test_every_target_is_found_in_the_results():
    contenders = [
        Contender("w", "ours", Path(), layout="window", precision="fp32"),
        Contender("r", "ours", Path(), layout="ring", precision="fp32"),
        Contender("slow8", "ours", Path(), layout="ring", precision="int8"),
        Contender("r8", "ours", Path(), layout="ring", precision="int8-block"),
        Contender("r8x2", "ours", Path(), layout="ring", precision="int8", frames_per_call=2),
        Contender(PUBLIC, "public", Path()),
    ]
    results = Results()
    for direction in GRAPH_KINDS:
        for name, p50 in (("w", 20.0), ("r", 16.0), ("slow8", 12.0), ("r8", 8.0), ("r8x2", 1.0), (PUBLIC, 24.0)):
            group = "public" if name == PUBLIC else "ours"
            results.measurements.append(measurement(name, p50, direction, group=group))
            old = 4 * p50 if name == PUBLIC else 1.02 * p50
            results.measurements.append(measurement(name, old, direction, age=600.0, group=group))
            results.measurements.append(measurement(name, p50, direction, age=2.0, group=group))
        results.measurements.append(measurement("r8", 8.16, direction, way="push"))
        results.measurements.append(measurement("r8", 80.0, direction, batch=16))
        for peer in ("moshi", "rustymimi", "transformers-streaming"):
            results.measurements.append(measurement(peer, 40.0, direction, way="stream", group="peer"))
        results.costs[("r8", direction, 20.0, 1)] = vars(Cost(40_000_000, 0, 0, 0, 0))
    found = {target.name: target for target in targets(contenders, results, Plan(), MACHINE, 80.0)}

    def one(*words: str) -> Target:
        (target,) = [found[name] for name in found if all(word in name for word in words)]
        return target

    assert one("ring fp32", "encoder").measured == pytest.approx(1.5)
    assert one("ring fp32", "encoder").processor == pytest.approx(3.0), "the ring used half of its time on the wall"
    assert one("ring fp32", "encoder").verdict == "aim"
    assert one("ring int8 against the public", "decoder").measured == pytest.approx(3.0)
    assert one("ring int8 against the public", "decoder").verdict == "must"
    assert one("window fp32", "20 s", "encoder").measured == pytest.approx(1.2)
    assert one("window fp32", "600 s", "encoder").measured == pytest.approx(96 / 20.4)
    assert one("10 min over").measured == pytest.approx(1.02)
    assert one("10 min over").verdict == "must"
    assert one("moshi", "decoder").measured == pytest.approx(5.0)
    assert one("streams").measured == pytest.approx(16 * 80 / 80)
    assert one("part of the weight-bandwidth", "encoder").measured == pytest.approx(0.5)
    assert one("bound buffers").measured == pytest.approx(0.02)
    assert all(target.verdict not in ("missed", "not measured") for target in found.values())
    assert len(found) == 18


def test_verdicts():
    assert Target("t", 1.25, 1.5, 1.2, "").verdict == "missed"
    assert Target("t", 1.05, 1.0, 1.06, "", at_most=True).verdict == "missed"
    assert Target("t", 1.05, 1.0, 1.0, "", at_most=True).verdict == "aim"
    assert Target("t", None, 0.5, 0.2, "").verdict == "reported"
    assert Target("t", 1.0, None, None, "").verdict == "not measured"


def test_nothing_measured_is_no_verdict():
    found = targets([], Results(), Plan(), MACHINE, 80.0)
    assert {target.verdict for target in found} == {"not measured"}


def test_cells_of_a_plan():
    plan = Plan(ages=(2.0, 25.0, 600.0), batches=(1, 4, 16), threads=(1, 2))
    assert plan.cells(1) == [(2.0, 1), (25.0, 1), (600.0, 1), (25.0, 4), (25.0, 16)]
    assert plan.cells(2) == [(25.0, 1)]


def test_rounds_of_graphs_and_a_report(tiny_variant, public):
    contenders = variant_contenders([tiny_variant(), tiny_variant(8, "ring", 1), tiny_variant(8, "ring", 2)])
    contenders.append(Contender(PUBLIC, "public", public, layout="growing", precision="fp32"))
    steps = []
    results = run_rounds(contenders, TINY_PLAN, progress=lambda step, done, total: steps.append(step))
    cells = [(2.0, 1), (20.0, 1), (20.0, 4)]
    for contender in contenders:
        for direction in GRAPH_KINDS:
            mine = [m for m in results.measurements if (m.contender, m.direction) == (contender.name, direction)]
            assert [(m.age_seconds, m.batch) for m in mine if m.way == "bare"] == cells
            pushed = [(m.age_seconds, m.batch) for m in mine if m.way == "push"]
            assert pushed == ([] if contender.group == "public" else [(20.0, 1)])
            assert all(m.wall.count == 2 * 2 and m.rss_bytes > 2**20 and m.processor for m in mine)
            assert set(results.operators[(contender.name, direction)]) & {"MatMul", "Gemm", "Conv"}
    assert len(results.facts) == 2 * len(contenders)
    assert all(fact.load_seconds > 0 and fact.file_bytes > 10_000 for fact in results.facts)
    assert any("age 20 s, batch 4" in step for step in steps)
    growing = {age: Cost(**results.costs[(PUBLIC, "encoder", age, 1)]) for age in (2.0, 20.0)}
    assert growing[20.0].float_macs > growing[2.0].float_macs, "attention over everything grows"

    reached = targets(contenders, results, TINY_PLAN, MACHINE, 80.0)
    report = as_json("synthetic:tiny", 80.0, TINY_PLAN, [MACHINE], contenders, results, reached)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    two = [m for m in report["measurements"] if m["contender"].endswith("-2") and m["way"] == "bare"]
    for record in two:
        cost = results.costs[(record["contender"], record["direction"], record["age_seconds"], record["batch"])]
        assert record["bandwidth_ms"] == pytest.approx(cost["weight_bytes"] / 10e9 * 1e3 / 2), "half a call is a frame"
    text = markdown(report)
    assert all(contender.name in text for contender in contenders)
    assert {len(row) for _, columns, rows in tables(report, True) for row in [columns, *rows]} <= {6, 7, 8, 15}


def test_variants_that_cannot_be_compared_are_refused(tiny_variant, tmp_path):
    with pytest.raises(ConfigError, match=r"differ in codebooks.*one number of codebooks"):
        variant_contenders([tiny_variant(8), tiny_variant(4)])
    with pytest.raises(ConfigError, match="two variant directories are called"):
        variant_contenders([tiny_variant(8), tiny_variant(8)])
    with pytest.raises(ArtifactError, match="no variant with 8 codebooks"):
        benchmark_module.default_directories(tmp_path)


# --- the command


@pytest.fixture
def cli(capsys, monkeypatch):
    """Run `bench` here, with a machine of known limits."""
    monkeypatch.setattr(benchmark_module, "measure_machine", lambda threads: MACHINE)
    from mimi_export import cli as package

    if bench_command not in package.COMMANDS:
        bench_command.register(package.app)

    def run(*arguments):
        capsys.readouterr()
        code = main(["bench", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


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


def with_huge_pages(monkeypatch, switch, text, libc=("glibc", "2.36")):
    switch.write_text(text)
    monkeypatch.setattr(huge_pages, "SWITCH", switch)
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: libc)


@pytest.mark.parametrize("wanted", [False, True])
def test_huge_pages_reach_graphs_and_other_programs(tiny_variant, monkeypatch, wanted):
    asked = []

    class Process:
        def __init__(self, name, *_, huge_pages):
            asked.append((name, huge_pages))
            raise MimiExportError("enough")

        @classmethod
        def peer(cls, name, *_, huge_pages):
            return cls(name, huge_pages=huge_pages)

    monkeypatch.setattr(contenders_module, "ContenderProcess", Process)
    peer = Contender("moshi", "peer", weights=Path("weights"))
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
