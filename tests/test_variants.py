"""Variant configurations: what is shipped, and every way to write one wrongly."""

from dataclasses import replace
from pathlib import Path

import pytest

from mimi_export.contract.precision import Int8Options
from mimi_export.contract.recipes import (
    Budget,
    ConvertRecipe,
    ExportRecipe,
    find_configs,
    load_variant,
    load_variants,
)
from mimi_export.contract.spec import Shape
from mimi_export.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"

EXPORT = """
name = "a"
[export]
model = "synthetic:tiny"
revision = "main"
num_codebooks = 4
layout = "ring"
frames_per_call = 2
batch = 16
[parity.decoder_snr_db]
minimum = 110
reason = "measured"
[parity.code_tie_percent]
maximum = 0.5
reason = "rounding"
"""
CONVERT = """
name = "b"
[convert]
parent = "a"
precision = "int8"
round_codebooks = true
keep_float = ["enc_0"]
"""


def write(directory: Path, text: str, name: str = "a") -> Path:
    path = directory / f"{name}.toml"
    path.write_text(text)
    return path


def message(call) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("num_codebooks", [8, 16])
def test_shipped_configurations(num_codebooks):
    name = f"streaming-{num_codebooks}cb"
    variant = load_variants(CONFIGS)[name]
    assert variant.recipe == ExportRecipe(Shape(num_codebooks))
    limits = {budget.metric: budget for budget in variant.budgets}
    assert limits["decoder_snr_db"].minimum == 110
    assert limits["code_agreement_percent"].minimum == 100
    assert limits["code_tie_percent"].maximum == 0.1
    assert all(len(budget.reason) > 20 for budget in variant.budgets)


def test_every_field_is_read(tmp_path):
    write(tmp_path, EXPORT)
    write(tmp_path, CONVERT, "b")
    variants = load_variants(tmp_path)
    assert list(variants) == ["a", "b"]
    assert variants["a"].recipe == ExportRecipe(Shape(4, "ring", 2, 16), "synthetic:tiny", "main")
    assert variants["b"].recipe == ConvertRecipe("a", Int8Options(keep_float=("enc_0",), round_codebooks=True))
    assert variants["a"].budgets == (
        Budget("code_tie_percent", None, 0.5, "rounding"),
        Budget("decoder_snr_db", 110, None, "measured"),
    )


def test_budget():
    least, most = Budget("decoder_snr_db", 110, None, "r"), Budget("code_tie_percent", None, 0.1, "r")
    assert [least.holds(value) for value in (110, 109.9, float("nan"), float("inf"))] == [True, False, False, True]
    assert [most.holds(value) for value in (0.1, 0.11, float("nan"), 0)] == [True, False, False, True]
    assert Budget("code_tie_percent", None, 0, "r").holds(0)
    assert (least.wanted, most.wanted) == ("at least 110", "at most 0.1")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("num_codebooks = 4", "num_codebook = 4", ["export.num_codebooks is missing"]),
        ("num_codebooks = 4", "num_codebooks = 4\nopset = 20", ["export.opset is an unknown key; known here: num"]),
        ("[export]", "colour = 1\n[export]", ["colour is an unknown key"]),
        ("num_codebooks = 4", "num_codebooks = true", ["export.num_codebooks is true, expected a whole number"]),
        ("num_codebooks = 4", "num_codebooks = 4.0", ["export.num_codebooks is 4.0, expected a whole number"]),
        ("num_codebooks = 4", "num_codebooks = 0", ["export: num_codebooks is 0, expected 1 or more"]),
        ('"ring"', '"circle"', ['export.layout is "circle", expected one of window, ring']),
        ("frames_per_call = 2", "", ["export: a ring needs frames_per_call"]),
        ('"ring"', '"window"', ["export: a ring needs frames_per_call", "must not have it"]),
        ("frames_per_call = 2", "frames_per_call = 0", ["export: frames_per_call is 0, expected 1 or more"]),
        ("batch = 16", "batch = 0", ["export: batch is 0, expected 1 or more"]),
        ("batch = 16", "batch = true", ["export.batch is true, expected a whole number"]),
        ('name = "a"', "", ["name is missing"]),
        ('name = "a"', 'name = "z"', ['name is "z", expected the file', "own name 'a'"]),
        ("[export]", "[convert]\n[export]", ["both of the tables [export] and [convert]"]),
        ("decoder_snr_db", "decoder_snr", ['a key of parity is "decoder_snr"', "decoder_snr_db"]),
        ("minimum = 110", "", ["parity.decoder_snr_db needs exactly one of minimum and maximum"]),
        ("minimum = 110", "minimum = 110\nmaximum = 120", ["parity.decoder_snr_db needs exactly one"]),
        ("minimum = 110", 'minimum = "110"', ['parity.decoder_snr_db.minimum is "110", expected a number']),
        ('reason = "measured"', "", ["parity.decoder_snr_db.reason is missing"]),
        ('reason = "measured"', 'reason = " "', ["parity.decoder_snr_db.reason is empty"]),
        ("minimum = 110", "minimum = 110\nunit = 1", ["parity.decoder_snr_db.unit is an unknown key"]),
        ("[export]", "[export", ["is not valid TOML"]),
    ],
)
def test_wrong_export_configuration(tmp_path, old, new, words):
    assert old in EXPORT
    path = write(tmp_path, EXPORT.replace(old, new, 1))
    text = message(lambda: load_variant(path))
    assert text.startswith(str(path))
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"int8"', '"int7"', ['convert.precision is "int7", expected one of fp16, int8']),
        ('"int8"', '"fp16"', ["convert.round_codebooks is an unknown key"]),
        ("round_codebooks = true", "round_codebooks = 1", ["convert.round_codebooks is 1, expected true or false"]),
        ("round_codebooks = true", "min_elements = 1", ["convert.min_elements is an unknown key"]),
        ('parent = "a"', 'parent = "c"', ["convert.parent is 'c', expected one of a"]),
        ('parent = "a"', 'parent = "b"', ["convert.parent is 'b', which is converted itself"]),
    ],
)
def test_wrong_conversion(tmp_path, old, new, words):
    write(tmp_path, EXPORT)
    path = write(tmp_path, CONVERT.replace(old, new, 1), "b")
    text = message(lambda: load_variants(tmp_path))
    assert text.startswith(str(path))
    assert all(word in text for word in words), text


def test_unreadable(tmp_path):
    assert "cannot be read" in message(lambda: load_variant(tmp_path / "none.toml"))
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xff\xfe")
    assert "is not UTF-8" in message(lambda: load_variant(path))
    write(tmp_path, 'name = "a"')
    assert "none of the tables" in message(lambda: load_variant(path))


def test_recipes_of_subdirectories():
    recipes = {path.stem: load_variant(path) for path in CONFIGS.rglob("*.toml")}
    assert all(name == recipe.name for name, recipe in recipes.items())
    assert recipes["ring-8cb-8f"].recipe.shape == replace(recipes["ring-8cb"].recipe.shape, frames_per_call=8)
    assert recipes["ring-8cb-8f"].budgets == recipes["ring-8cb"].budgets


def test_find_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_configs().samefile(CONFIGS)  # a source tree, from anywhere
    (tmp_path / "configs").mkdir()
    assert find_configs().samefile(CONFIGS)  # an empty directory is somebody else's
    write(tmp_path / "configs", EXPORT)
    assert find_configs().samefile(tmp_path / "configs")
    assert "no variant configurations" in message(lambda: find_configs(tmp_path))
