"""The one reader of JSON and TOML: what a stranger's file may hold, and the line that refuses it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_artifact import a_manifest, fill

from mimi_export.contract.directory import load_artifact
from mimi_export.contract.records import FLAT, OPTIONAL, Reader, plain
from mimi_export.contract.report import Report, VariantRecord, level, read_report
from mimi_export.errors import ArtifactError, ConfigError


@dataclass(frozen=True)
class Inner:
    size: int
    word: Literal["a", "b"] = "a"
    rows: int | None = field(default=None, metadata={"key": "batch", **OPTIONAL})


@dataclass(frozen=True)
class Outer:
    flat: Inner = field(metadata=FLAT)
    names: tuple[str, ...]
    by_name: Mapping[str, Inner]
    level: float | Literal["exact"] | None
    free: Any
    fraction: float = 0.5

    def __post_init__(self) -> None:
        if self.fraction > 1:
            raise ConfigError(f"fraction is {self.fraction}, expected at most 1")


WHOLE: dict[str, Any] = {
    "size": 1, "word": "b", "batch": 3, "names": ["x", "y"], "by_name": {"one": {"size": 2, "word": "a"}},
    "level": "exact", "free": {"a": [None]}, "fraction": 1.0,
}  # fmt: skip


@pytest.fixture
def reader(tmp_path):
    return Reader(tmp_path / "file", ArtifactError, "; make it again")


def refusal(call, error: type[Exception] = ArtifactError) -> str:
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 400
    return text


def test_there_and_back(reader):
    record = reader.record(Outer, WHOLE)
    assert record == Outer(Inner(1, "b", 3), ("x", "y"), {"one": Inner(2)}, "exact", {"a": [None]}, 1.0)
    assert plain(record) == WHOLE
    assert list(plain(record)) == list(WHOLE)
    assert plain(Inner(1)) == {"size": 1, "word": "a"}
    assert isinstance(reader.record(Outer, {**WHOLE, "fraction": 1}).fraction, float)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": None}, ": size is null, expected a whole number"),
        ({"size": True}, ": size is true, expected a whole number"),
        ({"batch": "3"}, ': batch is "3", expected a whole number or null'),
        ({"word": "c"}, ': word is "c", expected one of a, b'),
        ({"names": "x"}, ': names is "x", expected a list'),
        ({"names": ["x", 1]}, ": names[1] is 1, expected a text"),
        ({"by_name": []}, ": by_name is a list of 0, expected an object"),
        ({"by_name": {"one": {"word": "a"}}}, ": by_name.one.size is missing"),
        ({"by_name": {"one": {"size": 1, "word": "a", "x": 1}}}, ": by_name.one.x is an unknown key; known here: size, "
         "word, batch"),
        ({"level": "lost"}, ': level is "lost", expected a number or "exact" or null'),
        ({"fraction": 1.5}, ": fraction is 1.5, expected at most 1"),
        ({"colour": 1}, ": colour is an unknown key; known here: size, word, batch, names, by_name, level, "
         "free, fraction"),
        ({"names": "x" * 10_000}, f': names is "{"x" * 59}..., expected a list'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(reader, change, text):
    assert refusal(lambda: reader.record(Outer, {**WHOLE, **change})) == f"{reader.path}{text}; make it again"


def test_only_recipes_may_leave_out_what_has_a_default(reader):
    least = {key: WHOLE[key] for key in ("size", "names", "by_name", "level", "free")}
    assert refusal(lambda: reader.record(Outer, least)) == f"{reader.path}: word is missing; make it again"
    recipe = Reader(reader.path, ConfigError, defaults=True)
    assert recipe.record(Outer, least).fraction == 0.5
    newer = Reader(reader.path, ArtifactError, newer=True)
    assert newer.record(Inner, {"size": 1, "word": "a", "colour": 1}) == Inner(1)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nested": (b"[" * 100_000, " is nested too deep"),
    "nested enough": (b"[" * 30 + b"]" * 30, " is nested too deep"),
    "digits": (b"1" * 5000, " is not valid JSON (a number is too long)"),
    "large": (b"1" + b"0" * 400, " is a whole number of more than 64 bits"),
    "infinite": (b'{"a": [1e400]}', ": a[0] is inf, expected a finite number"),
    "nan": (b'{"a": NaN}', ": a is nan, expected a finite number"),
    "twice": (b'{"a": 1, "a": 2}', ' has the key "a" twice in one object'),
    "surrogate": (b'{"a": "\\ud800"}', ': a is "\\ud800", expected a text without control characters'),
    "escape": (b'{"a": "\\u001b[31m"}', ': a is "\\u001b[31m", expected a text without control characters'),
    "key": (b'{"\\u001b[31m": 1}', ': a key is "\\u001b[31m", expected a text without control characters'),
    "right to left": (b'{"a": "\\u202e"}', ': a is "\\u202e", expected a text without control characters'),
    "bytes": (b"\xff\xfe{}", " is not UTF-8 text"),
    "syntax": (b"{", " is not valid JSON (Expecting property name enclosed in double quotes at line 1, column 2)"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_content(reader, name):
    content, text = HOSTILE[name]
    reader.path.write_bytes(content)
    assert refusal(reader.json) == f"{reader.path}{text}; make it again"


def test_files_that_are_no_files(reader):
    assert refusal(reader.json) == f"{reader.path} cannot be read: No such file or directory; make it again"
    os.mkfifo(reader.path)  # nobody writes into it: reading would wait for ever
    assert refusal(reader.json) == f"{reader.path} is no regular file; make it again"
    reader.path.unlink()
    with reader.path.open("wb") as file:
        file.truncate(1 << 30)
    assert refusal(reader.json) == f"{reader.path} has {1 << 30} bytes, expected at most {1 << 22}; make it again"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a = " + "[" * 5000, "nested too deep"),
        ("a = " + "1" * 5000, "a number is too long"),
        ("a = nan", "a is nan, expected a finite number"),
        ('a = "\\u001b"', "without control characters"),
        ("a = 1\na = 2", "is not valid TOML"),
    ],
)
def test_hostile_toml(reader, content, text):
    reader.path.write_text(content)
    assert text in refusal(reader.toml)


HUGE = ("sampling_rate", "num_residual_layers", "num_hidden_layers", "num_filters", "dilation_growth_rate",
        "num_quantizers", "codebook_size", "kernel_size", "sliding_window", "num_key_value_heads", "upsample_groups",
        "compress", "latent_stride", "head_dim")  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("value", [0, -1, 10**9, 10**400])
def test_sizes_of_no_model(tmp_path, name, value):
    content = json.loads((fill(tmp_path) / "manifest.json").read_text())
    content["geometry"][name] = value
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    if name == "num_residual_layers" and value == 0:
        return
    assert re.search(rf"{name} is .*(expected|more than 64 bits)", refusal(lambda: load_artifact(tmp_path)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_refused_in_one_line(tmp_path_factory, content):
    directory = fill(tmp_path_factory.mktemp("variant"), a_manifest())
    (directory / "manifest.json").write_bytes(content)
    refusal(lambda: load_artifact(directory))


REPORT = {
    "format_version": 1, "generator": "mimi-export 1", "passed": True, "not_measured": [],
    "variants": [{
        "name": "a", "directory": "a", "precision": "fp32", "layout": "window", "frames_per_call": None,
        "num_codebooks": 8, "source": {"model": "kyutai/mimi", "revision": None}, "passed": True,
        "checks": [{"metric": "decoder_snr_db", "got": "exact", "wanted": "at least 110", "passed": True,
                    "where": "clip", "reason": "r", "line": "ok"}],
        "explanations": [], "files": {"x": {"bytes": 1, "sha256": "00"}}, "bitrate": 1100.0,
        "codes": {"total": 8, "differ": 0, "ties": 0, "follow": 0, "equal_percent": 100.0,
                  "apart_from_ties_percent": 100.0, "per_codebook_percent": [100.0, None]},
        "clips": [{"name": "c", "stress": False, "seconds": 1.0, "frames": 13, "codes": {}, "latents": None,
                   "decoder": {"snr_db": 118.5, "cosine": 1.0, "max_abs": 1e-6, "log_mel_db": 0.1},
                   "end_to_end": {"snr_db": "lost", "cosine": None, "max_abs": "lost"}, "decoder_calls": {},
                   "drift": {"decoder": {"first_db": 1.0, "last_db": None}}}],
        "tools": {"torch": "2"}, "states": {"encoder": {"key_0": 120.0}},
    }],
}  # fmt: skip


def test_report(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({**REPORT, "colour": "of a newer program"}))
    report = read_report(tmp_path)
    assert report.to_dict() == REPORT
    assert json.loads(report.to_text()) == REPORT
    assert isinstance(report, Report)
    assert isinstance(report.variants[0], VariantRecord)
    (tmp_path / "report.json").write_text(json.dumps({**REPORT, "variants": [{}]}))
    assert ": variants[0].name is missing; measure" in refusal(lambda: read_report(tmp_path / "report.json"))


def test_levels():
    values = (None, float("nan"), float("inf"), -float("inf"), 1 / 3)
    assert [level(value) for value in values] == [None, None, "exact", "lost", 0.333333333]


ODD = (None, True, "x" * 10_000, "\x1b[2J", [], [0], {}, -1, 0, 1.5, -1e300, 10**9, [[1]], [10**9] * 9)


def test_no_field_of_a_geometry_may_be_odd(tmp_path):
    """Each in turn: a type, a text or a size that no model has ends in one line."""
    content = json.loads((fill(tmp_path) / "manifest.json").read_text())
    let_pass, texts = set(), []
    for name, right in content["geometry"].items():
        for value in ODD:
            odd = {**content, "geometry": {**content["geometry"], name: value}}
            (tmp_path / "manifest.json").write_text(json.dumps(odd))
            if value == right and type(value) is type(right):
                continue
            try:
                load_artifact(tmp_path)
            except ArtifactError as error:
                texts.append(str(error))
            else:
                let_pass.add((name, value))
    assert all(text.isprintable() and len(text) < 400 for text in texts)
    assert let_pass == {
        ("use_conv_shortcut", True), ("attention_bias", True), ("rope_theta", 1.5), ("rope_theta", 10**9),
    }  # fmt: skip
