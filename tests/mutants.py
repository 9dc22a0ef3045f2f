"""Broken variants, as data: what is broken in which file, which check must see it first, and what place it must name.

`python tests/mutants.py` (`make mutants`) breaks a tiny variant in each of these ways and writes `tests/mutants.md`.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mutations as m
import numpy as np
import onnx
import torch
from mutations import Mutation, change_weight, through

from mimi_export.contract.directory import load_artifact, write_manifest
from mimi_export.contract.precision import Fp16Options, Int8Options
from mimi_export.contract.spec import GRAPH_KINDS, GraphKind, Shape
from mimi_export.errors import ArtifactError
from mimi_export.export.convert import convert
from mimi_export.export.variant import export_variant
from mimi_export.media.signals import speech_like
from mimi_export.model.checkpoint import Checkpoint, load_checkpoint
from mimi_export.model.graphs import streaming_graph
from mimi_export.parity.checks import DEFAULT_BUDGETS, judge
from mimi_export.parity.clips import Clip
from mimi_export.parity.examine import read_files, run_situations
from mimi_export.parity.measure import measure
from mimi_export.parity.reference import Reference
from mimi_export.parity.results import METRIC_WORDS, Check, VariantReport
from mimi_export.parity.structure import structure_faults, trace_anew

VARIANTS = ("fp32", "ring", "fp16", "int8", "books")  # window but for ring and books, which is int8 with its codebooks
Traced = dict[tuple[str, GraphKind], onnx.ModelProto]
CLIP = Clip("speech", speech_like(2.0, 1))


@dataclass(frozen=True)
class Mutant:
    """One defect; an `edit` of a whole directory has no `kind`. `check` sees it first and its line holds `place`."""

    group: str
    name: str
    variant: str
    kind: GraphKind | None
    edit: Mutation | Callable[[Path], None]
    check: str
    place: str

    def seen(self, check: Check | None) -> bool:
        """Whether this check saw it, at its place."""
        return check is not None and self.check in check.metric and self.place in check.where

    @property
    def title(self) -> str:
        return f"{self.variant} {self.kind or 'directory'}: {self.name}"


def make(mutant: Mutant, variants: dict[str, Path], target: Path) -> Path:
    """The broken directory, its hashes set right again."""
    if mutant.kind is not None:
        return m.broken(variants[mutant.variant], target, mutant.kind, mutant.edit)
    m.broken(variants[mutant.variant], target, "encoder", lambda model: None)
    mutant.edit(target)
    return target


class Judge:
    """What parity says of a directory, stopping at the first check that is missed; without `traced`, not of nodes."""

    def __init__(
        self, reference: Reference, traced: Traced, clip: Clip = CLIP, ways: Sequence[int | str] = (1, "mixed")
    ) -> None:
        self._reference, self._traced, self._clip, self._ways = reference, traced, clip, ways

    def first(self, path: Path) -> Check | None:
        """The first missed check, in the order in which parity lists them."""
        return next(self._missed(path), None)

    def _missed(self, path: Path) -> Iterator[Check]:
        try:
            artifact = load_artifact(path)
            files = read_files(artifact, self._reference.checkpoint)
        except ArtifactError as error:
            yield Check("not measured", 0, "", False, str(error).replace(str(path), "variant"), "")
            return
        report = VariantReport("", "", artifact.manifest)
        yield from _wrong(dataclasses.replace(report, faults=files.faults))
        try:
            outcomes = run_situations(files, self._reference, self._reference.clip(self._clip))
        except ArtifactError as error:
            yield Check("not measured", 0, "", False, str(error).replace(str(path), "variant"), "")
            return
        yield from _wrong(dataclasses.replace(report, outcomes=outcomes))
        checkpoint = self._reference.checkpoint
        whole = measure(path, checkpoint, [self._clip], self._ways, lambda text: None, self._reference)
        yield from (check for check in judge(whole, DEFAULT_BUDGETS[artifact.manifest.precision]) if not check.passed)
        for kind in GRAPH_KINDS if self._traced else ():
            model, traced = onnx.load(artifact.graph_path(kind)), self._traced[artifact.manifest.shape.layout, kind]
            faults = structure_faults(artifact, kind, model, traced)
            yield from _wrong(dataclasses.replace(report, faults={"structure_faults": faults}))


def _wrong(report: VariantReport) -> Iterator[Check]:
    """Missed checks but for the states, which are measured with the clips."""
    yield from (check for check in judge(report, ()) if not check.passed and check.metric != "state_snr_db")


def make_variants(checkpoint: Checkpoint, folder: Path) -> dict[str, Path]:
    """The right variants below a folder, made where they are missing."""
    for name, shape in (("fp32", Shape(8)), ("ring", Shape(8, "ring", 2))):
        if not (folder / name).exists():
            export_variant(checkpoint, folder / name, shape)
    options = {"fp16": Fp16Options(), "int8": Int8Options(), "books": Int8Options(round_codebooks=True)}
    for name, option in options.items():
        if not (folder / name).exists():
            convert(folder / ("ring" if name == "books" else "fp32"), folder / name, option)
    return {name: folder / name for name in VARIANTS}


def trace_all(checkpoint: Checkpoint, variants: dict[str, Path], folder: Path) -> Traced:
    """Both graphs of both layouts traced anew, kept below a folder."""
    found: Traced = {}
    for name in ("fp32", "ring"):
        artifact = load_artifact(variants[name])
        for kind in GRAPH_KINDS:
            path = folder / f"traced-{name}-{kind}.onnx"
            if not path.exists():
                path.write_bytes(trace_anew(streaming_graph(checkpoint, artifact.spec(kind))))
            found[artifact.manifest.shape.layout, kind] = onnx.load(path)
    return found


def text(name: str, old: str, new: str) -> Callable[[Path], None]:
    """A text file of the directory says something else."""

    def edit(path: Path) -> None:
        (path / name).write_text((path / name).read_text("utf-8").replace(old, new, 1), "utf-8")

    return edit


def manifest(**changes: object) -> Callable[[Path], None]:
    """The manifest says something else of the same graphs."""
    return lambda path: write_manifest(path, dataclasses.replace(load_artifact(path).manifest, **changes)) and None


def external(path: Path) -> None:
    """Weights in a file of their own."""
    before = load_artifact(path).manifest
    model = onnx.load(path / "encoder_model.onnx")
    onnx.save(
        model, path / "encoder_model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=999
    )
    write_manifest(path, before)


def zeroed(index: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = 0
        return array

    return change


def flipped(array: np.ndarray) -> np.ndarray:
    array[0, 9] ^= 64
    return array


def last_code(array: np.ndarray) -> np.ndarray:
    array[0, 9] = 127 if array[0, 9] < 0 else -127
    return array


def half(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16).astype(np.float32)


def bfloat(array: np.ndarray) -> np.ndarray:
    return (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def times(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: array * array.dtype.type(factor)


# fmt: off
def age() -> Iterator[Mutant]:

    def of(name, kind, edit, place, check="old_stream_db"):
        return Mutant("age", name, "ring", kind, edit, check, place)
    past = "past_position"
    for kind in GRAPH_KINDS:
        for power in (10, 12, 16, 20, 24):
            yield of(f"position wraps at 2^{power}", kind, through(past, m.wrapped(2 ** power)), "position")
        yield of("position stops at 1024", kind, through(past, m.stopped(1024)), "position 4095")
        yield of("position handed on stops at 1024", kind, through("present_position", m.stopped(1024)), "position")
        for power in (14, 18, 20, 24, 30):
            yield of(f"position off by one beyond 2^{power}", kind, through(past, m.off_beyond(2 ** power)), "position")
    ring = m.replaced_constant("Mod", 1, lambda a: a.size == 1 and a.item() < 2 ** 20, 64)
    yield of("slots of a ring that is longer than its states", "encoder", ring, "ScatterND", "not measured")
    mask = m.replaced_constant("Clip", 2, lambda a: a.size == 1 and a.dtype.kind == "i", 10000)
    yield of("ring's mask forgets the window", "decoder", mask, "transformer_0", "start_db")
    for kind in GRAPH_KINDS:
        for name, window in (("no window", 1000000), ("window one longer", 17), ("window one shorter", 15)):
            edit = m.replaced_constant("Less", 1, lambda a: a.size == 1 and a.dtype.kind == "i", window)
            yield Mutant("age", name, "fp32", kind, edit, "", "")
        yield Mutant("age", "keys one position off", "fp32", kind, m.shift_position, "", "transformer_0")


def rows() -> Iterator[Mutant]:
    for variant in VARIANTS:
        yield Mutant("rows", "values of row 0", variant, "encoder", through("past_value_1", m.mixed_rows(1.0)), "rows_db", "")
        yield Mutant("rows", "5 % of row 0 in the sound", variant, "decoder", through("audio_values", m.mixed_rows(0.05)), "rows_db", "audio_values")
        yield Mutant("rows", "1 % of row 0's first state", variant, "encoder", through("past_conv_enc_0_state", m.mixed_rows(0.01)), "rows_db", "enc_0")
    yield Mutant("rows", "keys of row 0", "ring", "decoder", through("past_key_0", m.mixed_rows(1.0)), "rows_db", "")
    yield Mutant("rows", "5 % of row 0 in the samples", "int8", "encoder", through("input_values", m.mixed_rows(0.05)), "rows_db", "enc_0")
    yield Mutant("rows", "rows from 9 on read row 0", "fp32", "decoder", through("audio_values", m.row_beyond(9)), "", "")


def counts() -> Iterator[Mutant]:
    for variant in ("fp32", "fp16", "int8"):
        yield Mutant("K and N", "1 % less with fewer codebooks", variant, "decoder", through("tap_latents", m.less_with_fewer(8, 0.01)), "codebooks_db", "codebook")
        yield Mutant("K and N", "calls of more than 13 frames lose 1 %", variant, "decoder", through("audio_values", m.less_beyond(2, 13, 0.01)), "call_size_db", "32 frame")
        yield Mutant("K and N", "a call of 32 frames begins anew", variant, "encoder", through("past_value_1", m.less_beyond(2, 31 * 1920, 1.0)), "call_size_db", "32 frame")
    yield Mutant("K and N", "4 codebooks lose 1 %", "ring", "decoder", through("tap_latents", m.size_is(1, 4, 0.01)), "codebooks_db", "4 codebook")
    for size in (2, 6, 9, 20):
        yield Mutant("K and N", f"calls of {size} frames lose 1 %", "fp32", "decoder", through("audio_values", m.size_is(2, size, 0.01)), "", "")
    yield Mutant("K and N", "calls of 5 frames lose 1 %", "fp16", "encoder", through("input_values", m.size_is(2, 5 * 1920, 0.01)), "call_size_db", "5 frame")


def levels() -> Iterator[Mutant]:
    for variant in ("fp32", "ring", "fp16", "int8"):
        for low, high in ((-1.0, 1.0), (-0.9, 0.9)):
            yield Mutant("levels", f"sound limited to {high:g}", variant, "decoder", through("audio_values", m.squeezed(low, high)), "level_db", "audio_values")
        yield Mutant("levels", "samples limited to 1", variant, "encoder", through("input_values", m.squeezed(-1, 1)), "level_db", "samples up to 8")
        yield Mutant("levels", "samples above 2 are broken", variant, "encoder", through("input_values", m.loud_is_broken(2.0)), "level_db", "samples up to 8")
        yield Mutant("levels", "NaN is let in", variant, "encoder", m.no_guard, "rows_db", "NaN: parts at enc_0")
        yield Mutant("levels", "a call below 1e-4 is silence", variant, "encoder", through("input_values", m.quiet_call_is_silence(0.0001)), "level_db", "below 1e-4")
        yield Mutant("levels", "silent where a sample reaches 1", variant, "encoder", through("input_values", m.loud_call_is_silence(1.0)), "level_db", "")
        yield Mutant("levels", "NaN on digital silence", variant, "encoder", through("tap_enc_0", m.broken_by_silence), "start_db", "silence first")
    yield Mutant("levels", "sound limited by Clip", "fp32", "decoder", through("audio_values", m.clipped(-1, 1)), "file_faults", "Clip between two bounds")
    yield Mutant("levels", "an offset above 0.2 is removed", "fp32", "encoder", through("input_values", m.offset_removed(0.2)), "file_faults", "ReduceMean")
    yield Mutant("levels", "a sample below 1e-4 is silence", "fp32", "encoder", through("input_values", m.quiet_is_silence(0.0001)), "start_db", "enc_0")
    yield Mutant("levels", "sound below 1e-5 is silence", "fp32", "decoder", through("audio_values", m.quiet_is_silence(1e-05)), "", "audio_values")
    yield Mutant("levels", "samples between 3.5 and 3.6 are lost", "fp32", "encoder", through("input_values", m.between(3.5, 3.6)), "", "")
    yield Mutant("levels", "sound above 30 is limited", "fp16", "decoder", through("audio_values", m.squeezed(-30, 30)), "level_db", "")
    yield Mutant("levels", "samples above 100 are broken", "int8", "encoder", through("input_values", m.loud_is_broken(100.0)), "", "")


def codes() -> Iterator[Mutant]:
    swapped = [0, 1, 2, 3, 5, 4, 6, 7]
    book = "acoustic.codebooks.2"
    for variant in VARIANTS:
        yield Mutant("codes", "every code is 0", variant, "encoder", through("audio_codes", m.times(0)), "start_db", "audio_codes")
        yield Mutant("codes", "levels 4 and 5 exchanged", variant, "encoder", through("audio_codes", m.picked(1, swapped)), "start_db", "audio_codes")
        yield Mutant("codes", "no -|e|²/2 at one level", variant, "encoder", change_weight("acoustic.offsets.1", np.zeros_like), "weight_faults", "acoustic.offsets.1")
        yield Mutant("codes", "an entry zeroed", variant, "encoder", change_weight(book, zeroed(17)), "weight_faults", book)
        yield Mutant("codes", "a decoder's entry zeroed", variant, "decoder", change_weight("acoustic.table", zeroed(17)), "weight_faults", "acoustic.table")
    for variant in ("fp32", "fp16", "int8"):
        yield Mutant("codes", "two entries swapped in the search", variant, "encoder", m.search_other_entries("acoustic.codebooks.1"), "weight_faults", "mutation_book")
        yield Mutant("codes", "two entries swapped", variant, "encoder", change_weight(book, m.swapped_rows(1, 2)), "weight_faults", book)
    yield Mutant("codes", "level 7 equal to level 6", "fp32", "encoder", through("audio_codes", m.picked(1, [0, 1, 2, 3, 4, 5, 6, 6])), "start_db", "audio_codes")
    yield Mutant("codes", "code 63 counts as 62", "fp32", "decoder", through("audio_codes", m.code_is(63, 62)), "", "")
    yield Mutant("codes", "code 63 given as 62", "fp16", "encoder", through("audio_codes", m.code_is(63, 62)), "", "")
    yield Mutant("codes", "one level searched in another's entries", "fp32", "encoder", m.read_elsewhere("acoustic.offsets.3", "acoustic.offsets.4"), "", "")


def arithmetic() -> Iterator[Mutant]:
    for variant in ("fp32", "fp16", "int8"):
        yield Mutant("arithmetic", "GELU by tanh", variant, "encoder", m.attribute("Gelu", approximate="tanh"), "file_faults", "Gelu is approximated by tanh")
        yield Mutant("arithmetic", "softmax in float16", variant, "decoder", m.half_softmax, "file_faults", "FLOAT16")
        yield Mutant("arithmetic", "epsilon 1e-3", variant, "encoder", m.attribute("LayerNormalization", epsilon=0.001), "file_faults", "epsilon")
        yield Mutant("arithmetic", "a bias zeroed", variant, "encoder", change_weight("convs.enc_0.bias", np.zeros_like), "weight_faults", "convs.enc_0.bias")
        yield Mutant("arithmetic", "noise at -124 dB of full scale", variant, "decoder", through("audio_values", m.noisy(6e-07)), "", "")
        yield Mutant("arithmetic", "samples rounded to 16 bits", variant, "encoder", through("input_values", m.stepped(32768.0)), "", "")
        yield Mutant("arithmetic", "a stage through float16", variant, "encoder", through("tap_enc_6", m.through_half), "file_faults", "FLOAT16")
    for name, change in (("in float16", half), ("in bfloat16", bfloat), ("times 1.001", times(1.001))):
        yield Mutant("arithmetic", f"a projection {name}", "fp32", "encoder", change_weight("semantic.projection", change), "weight_faults", "semantic.projection")
        yield Mutant("arithmetic", f"a middle layer {name}", "fp32", "decoder", change_weight("layers.1.fc1", change), "weight_faults", "layers.1.fc1")
        yield Mutant("arithmetic", f"a middle layer {name}", "ring", "encoder", change_weight("layers.0.attention.out", change), "weight_faults", "layers.0.attention.out")
    for variant in ("int8", "books"):
        for kind in GRAPH_KINDS:
            for name, change in (("one scale times 1.02", m.scaled(7, 1.02)), ("all scales times 1.02", times(1.02)), ("one scale times 0.98", m.scaled(3, 0.98))):
                yield Mutant("arithmetic", name, variant, kind, change_weight("layers.1.fc1.scales", change), "weight_faults", "layers.1.fc1 has the scale")
        yield Mutant("arithmetic", "a code's bit flipped", variant, "encoder", change_weight("layers.0.fc2", flipped), "weight_faults", "[0, 9]")
    yield Mutant("arithmetic", "a codebook's scale times 1.02", "books", "encoder", change_weight("acoustic.codebooks.2.scales", m.scaled(3, 1.02)), "weight_faults", "acoustic.codebooks.2")
    yield Mutant("arithmetic", "a bit of the finer rounding lost", "int8", "encoder", m.replaced_constant("Mul", 1, lambda a: a.size == 1 and abs(a.item() - 1 / 126) < 1e-06, 1 / 128), "", "")
    yield Mutant("arithmetic", "a peak too low", "int8", "decoder", m.replaced_constant("Max", 1, lambda a: a.size == 1 and 0 < a.item() < 1e-20, 0.01), "", "")
    alpha = m.replaced_constant("Sub", 1, lambda a: a.size == 1 and a.item() == 1.0, 0.99)
    yield Mutant("arithmetic", "ELU of 0.99", "fp32", "encoder", alpha, "start_db", "")


def states() -> Iterator[Mutant]:
    for variant in ("fp32", "ring", "fp16", "int8"):
        yield Mutant("states", "conv_enc_6 ignored", variant, "encoder", m.ignore_state("conv_enc_6_state"), "", "enc_6")
        yield Mutant("states", "conv_dec_5 lost", variant, "decoder", m.lose_state("conv_dec_5_state"), "", "dec_5")
        yield Mutant("states", "keys and values of layer 1 swapped", variant, "decoder", m.swap_states("key_1", "value_1"), "", "transformer_1")
        yield Mutant("states", "keys of two layers swapped", variant, "encoder", m.swap_states("key_0", "key_1"), "", "transformer_0")
    yield Mutant("states", "a bias kept in the overlap", "fp32", "decoder", m.keep_bias("dec_2"), "", "dec_2")
    yield Mutant("states", "no first sample before the first call", "fp32", "encoder", m.no_replicate, "start_db", "new stream")
    yield Mutant("states", "1 % of another layer's values", "int8", "decoder", through("past_value_0", m.other_state("value_1", 0.01)), "", "transformer_0")


def files() -> Iterator[Mutant]:

    def of(name, variant, kind, edit, place, check="file_faults"):
        return Mutant("the file", name, variant, kind, edit, check, place)
    yield of("fp32 graphs called int8", "fp32", None, manifest(precision="int8"), "precision")
    yield of("fp32 graphs called fp16", "ring", None, manifest(precision="fp16"), "precision")
    yield of("fp16 graphs called fp32", "fp16", None, manifest(precision="fp32"), "precision")
    yield of("an unknown precision", "fp32", None, manifest(precision="fp8"), "fp8")
    yield of("state_spec.txt with another size", "fp32", None, text("state_spec.txt", "conv enc_0", "conv enc_9"), "state_spec.txt", "not measured")
    yield of("weights in a file of their own", "fp32", None, external, "a file of its own", "not measured")
    for variant in ("fp32", "fp16", "int8"):
        yield of("an input with a default", variant, "decoder", m.extra_input, "gain")
        yield of("two outputs in each other's place", variant, "encoder", m.other_outputs, "present_key_1")
        yield of("an input that is not read", variant, "encoder", m.unused_input, "past_key_1")
    yield of("a further input", "ring", "decoder", m.extra_required_input, "gain")
    yield of("another operator set", "fp32", "decoder", lambda model: model.opset_imports.update({"com.microsoft": 1}), "operator sets")



def further() -> Iterator[Mutant]:
    """More of the same kinds, thought of after the checks were made."""
    for kind, after in (("encoder", "enc_3"), ("decoder", "dec_2")):
        yield Mutant("age", "layer 1 reads layer 0's values from 2^14 on", "ring", kind, through("past_value_1", m.from_position(2**14, "past_value_0")), "old_stream_db", "position 65535: parts at transformer_1")
        yield Mutant("age", "a slot off by one once the ring has turned", "ring", kind, m.slot_off_once_wrapped, "", "")
        yield Mutant("age", "a bias twice from frame 1000 on", "ring", kind, through(f"tap_{after}", m.bias_again(after, m.beyond_position(2000))), "old_stream_db", "position 4095: parts at")
        yield Mutant("age", "a bias twice in a full window", "fp32", kind, through(f"tap_{after}", m.bias_again(after, m.window_beyond(14))), "start_db", "a plain call, row 0: parts at")
        yield Mutant("age", "RoPE's base 9999", "ring", kind, m.other_theta(9999.0), "", "")
        yield Mutant("age", "RoPE's base 9999", "fp32", kind, m.other_theta(9999.0), "", "")
        yield Mutant("age", "the position is an int32", "ring", kind, through("present_position", m.int32), "structure_faults", "present_position")
        yield Mutant("rows", "all rows hand on row 0's position", "ring", kind, through("present_position", m.row_position), "rows_db", "present_position")
        yield Mutant("arithmetic", "one head attends 2 % more", "fp32", kind, m.one_head(1.02), "start_db", "transformer_0")
        yield Mutant("arithmetic", "one head attends 2 % more", "int8", kind, m.one_head(1.02), "", "transformer_0")
        yield Mutant("arithmetic", "zero is code 65 in one product", "int8", kind, m.other_input("MatMulInteger", 2, 2, 65), "", "")
        yield Mutant("arithmetic", "activations rounded by the peak of the whole call", "int8", kind, m.other_input("ReduceMax", 1, 1, [-2, -1]), "structure_faults", "(ReduceMax)")
        yield Mutant("states", "a state of 12 bits", "fp32", kind, through(f"present_conv_{after}_state", m.stepped(4096.0)), "start_db", f"present_conv_{after}_state")
        yield Mutant("states", "a state of 12 bits", "int8", kind, through(f"present_conv_{after}_state", m.stepped(4096.0)), "", f"conv_{after}_state")
        yield Mutant("states", "a state limited to 100", "fp16", kind, through(f"past_conv_{after}_state", m.squeezed(-100, 100)), "structure_faults", "")
        yield Mutant("the file", "a further output", "ring", kind, m.further_output, "file_faults", "further")
        yield Mutant("the file", "the graph names another model", "int8", kind, m.other_source, "file_faults", "source_model")
    for variant in ("fp32", "ring", "int8"):
        yield Mutant("rows", "rows after the first lack a residual", variant, "encoder", m.residual_of_row_0("tap_enc_0", "tap_enc_1_b3"), "rows_db", "parts at enc_3")
        yield Mutant("levels", "NaN is let in by row 0", variant, "encoder", m.guard_of_some_rows(first=True), "rows_db", "row 0, NaN: parts at enc_0")
        yield Mutant("levels", "NaN is let in by rows after the first", variant, "encoder", m.guard_of_some_rows(first=False), "rows_db", "row 2, NaN: parts at enc_0")
        yield Mutant("K and N", "5 codebooks lose 1 %", variant, "decoder", through("tap_latents", m.size_is(1, 5, 0.01)), "" if variant == "int8" else "codebooks_db", "")
        yield Mutant("K and N", "8 codebooks lose 1 %", variant, "decoder", through("tap_latents", m.size_is(1, 8, 0.01)), "" if variant == "int8" else "start_db", "")
    for variant in ("fp32", "fp16", "int8"):
        yield Mutant("rows", "no first sample before the first call of later rows", variant, "encoder", m.no_replicate_in_later_rows, "rows_db", "rows of different ages, row 5, new: parts at latents")
        yield Mutant("K and N", "a call of 32 frames forgets the upsampling's state", variant, "decoder", through("past_conv_us_state", m.size_is(2, 32, 1.0)), "call_size_db", "32 frame")
        yield Mutant("K and N", "keys of a call of 3 frames lose 1 %", variant, "encoder", through("present_key_0", m.size_is(2, 3 * 1920, 0.01)), "" if variant == "int8" else "call_size_db", "present_key_0")
        yield Mutant("codes", "codes above 48 are one too high", variant, "encoder", through("audio_codes", m.codes_beyond(48, 63)), "", "")
        yield Mutant("codes", "entries above 48 are one too high", variant, "decoder", through("audio_codes", m.codes_beyond(48, 63)), "", "latents")
    yield Mutant("arithmetic", "sound a sample late", "fp32", "decoder", through("audio_values", m.delayed), "start_db", "audio_values")
    yield Mutant("arithmetic", "limited below, at -60000", "fp16", "decoder", through("audio_values", m.floor(-60000.0)), "structure_faults", "audio_values")
    yield Mutant("arithmetic", "a code of 127", "int8", "decoder", change_weight("layers.0.fc2", last_code), "weight_faults", "[0, 9]")
    yield Mutant("arithmetic", "one scale for all outputs", "int8", "encoder", change_weight("layers.0.fc2.scales", lambda a: np.full_like(a, a.mean())), "weight_faults", "layers.0.fc2 has the scale")
    yield Mutant("arithmetic", "a scale of 0", "books", "encoder", change_weight("acoustic.codebooks.1.scales", zeroed(5)), "weight_faults", "acoustic.codebooks.1 has the scale of output 5")
    yield Mutant("arithmetic", "a codebook's code of 127", "books", "encoder", change_weight("acoustic.codebooks.1", last_code), "weight_faults", "[0, 9]")


MUTANTS = [one for group in (age, rows, counts, levels, codes, arithmetic, states, files, further) for one in group()]
# fmt: on

UNSEEN = """
What no check can see, and why:

- An int8 weight rounded to the neighbouring code by error feedback instead of another one: both are roundings of the
  checkpoint's number, and which is better shows only in what the layer makes of sound. Beyond 20 times the usual
  distance, or where a scale is not the one of the checkpoint's column, the audit says so.
- What moves an int8 file by less than its activations' rounding (30 dB of a stage or state, where a plain call has less
  than 110): only the comparison with a graph traced anew sees it, so not in a file of other versions.
- A position beyond 2^31 - 1, after 2.7 years: angles are exact below it, by the definition of the ring.
- A defect of the exporter that stands in PyTorch's step functions as well, shows on no clip and in no situation: the
  graph traced anew has it, too. Tests of the step functions against upstream are for those.
- In a file traced by other versions of torch or onnxscript, a node that waits for what neither clips nor situations
  bring (a call of 9 frames): graphs of other tracers are not compared node by node, and the report says so.
- A checkpoint that is itself wrong: it is the reference.
- What a client does with the files: `verify` and the golden clip are for that.
"""


def table(found: Iterable[tuple[Mutant, Check | None]]) -> str:
    """Markdown: what each mutant was seen by, and where."""
    lines = ["| broken | graph | how | seen by | first line names |", "|:--|:--|:--|:--|:--|"]
    for mutant, check in found:
        seen = (METRIC_WORDS.get(check.metric, (check.metric,))[0], check.where) if check else ("**nothing**", "")
        cells = (mutant.group, f"{mutant.variant} {mutant.kind or ''}", mutant.name, *seen)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def run_all(checkpoint: Checkpoint, folder: Path, only: str = "") -> Iterator[tuple[Mutant, Check | None]]:
    """Break everything below a folder, which keeps the right variants."""
    variants = make_variants(checkpoint, folder)
    with Reference(checkpoint, [8], lambda text: None) as reference, tempfile.TemporaryDirectory() as broken:
        judge_ = Judge(reference, trace_all(checkpoint, variants, folder))
        for mutant in (mutant for mutant in MUTANTS if re.search(only, mutant.title)):
            path = Path(broken) / "variant"
            yield mutant, judge_.first(make(mutant, variants, path))
            shutil.rmtree(path)


def main(folder: Path, only: str = "") -> None:
    """Break everything and write `tests/mutants.md`; with `only`, an expression, print those whose title it fits."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for mutant, check in run_all(load_checkpoint("synthetic:tiny"), folder, only):
        found.append((mutant, check))
        verdict = "ok" if mutant.seen(check) else "OTHERWISE" if check else "NOT SEEN"
        sys.stderr.write(f"{verdict}: {mutant.title}: {check and check.metric}: {check and check.where}\n")
    if only:
        return
    seen = sum(check is not None for _, check in found)
    text = f"# Mutants\n\n{seen} of {len(found)} broken variants are seen; `make mutants` writes this page.\n\n"
    Path(__file__).with_suffix(".md").write_text(f"{text}{table(found)}\n{UNSEEN}", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
