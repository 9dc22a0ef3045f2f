"""Building variants from configurations: what is made, what is used again, what is refused.

The exporter itself is replaced by a copy of a variant exported once; `tests/test_cli.py` builds one for real.
"""

import dataclasses
import json
import shutil

import pytest
import torch

from mimi_export.contract.directory import load_artifact
from mimi_export.contract.precision import Fp16Options
from mimi_export.contract.recipes import ConvertRecipe, ExportRecipe, Variant
from mimi_export.contract.spec import Shape
from mimi_export.errors import ConfigError, OutputError, ParityError
from mimi_export.export import build as build_module
from mimi_export.export.build import Built, build
from mimi_export.model.checkpoint import Checkpoint

FIRST = Variant("first", ExportRecipe(Shape(8), "model-a"))
SECOND = Variant("second", ExportRecipe(Shape(8), "model-b"))
HALF = Variant("half", ConvertRecipe("first", Fp16Options()))
VARIANTS = {variant.name: variant for variant in (HALF, FIRST, SECOND)}


@pytest.fixture
def house(tiny_variant, tiny_checkpoint, tmp_path, monkeypatch):
    """A place to build in: `house(names, **options)` builds; `house.log` lists what was loaded, made and checked."""
    template = tiny_variant()
    log: list[str] = []

    def export(checkpoint, path, *, shape, name, progress):
        log.append(f"export {name}")
        shutil.copytree(template, path, dirs_exist_ok=True)

    def load(model, revision):
        log.append(f"load {model}")
        return Checkpoint(house.model, tiny_checkpoint.geometry, model, revision or "r1")

    def convert(parent, path, *, options, name, progress):
        log.append(f"convert {parent.name}")
        shutil.copytree(parent, path, dirs_exist_ok=True)

    def house(names=("first",), variants=VARIANTS, **options):
        log.clear()
        options = {"load": load} | options
        return build(variants, names, tmp_path / "artifacts", progress=lambda *told: None, **options)

    house.log = log
    house.model = torch.nn.Linear(2, 2)
    house.path = tmp_path / "artifacts"
    monkeypatch.setattr(build_module, "export_variant", export)
    monkeypatch.setattr(build_module, "convert", convert)
    monkeypatch.setattr(build_module, "_code_sha256", lambda: "fixed")  # a source may be edited meanwhile
    return house


def test_builds_once(house):
    assert house() == [Built("first", house.path / "first", False)]
    assert house.log == ["load model-a", "export first"]
    load_artifact(house.path / "first", verify_hashes=True)
    assert house() == [Built("first", house.path / "first", True)]
    assert house.log == ["load model-a"]


def test_all_parents_first_and_weights_loaded_once(house):
    assert [entry.name for entry in house(())] == ["first", "second", "half"]
    assert house.log == ["load model-a", "export first", "load model-b", "export second", "convert first"]
    house((), model="other", force=True)
    assert house.log == ["load other", "export first", "export second", "convert first"]
    assert [entry.name for entry in house(["half"])] == ["first", "half"]  # a parent comes without being named


@pytest.mark.parametrize(
    "change", ["weights", "model", "revision", "recipe", "code", "tools", "file", "missing", "stamp"]
)
def test_what_is_changed_is_built_again(house, change, monkeypatch):
    house(["half"])
    options = {}
    if change == "weights":
        house.model = torch.nn.Linear(2, 2)
    elif change == "model":
        options = {"model": "model-c"}
    elif change == "revision":
        options = {"model": "model-a", "revision": "r2"}
    elif change == "recipe":
        recipe = dataclasses.replace(FIRST.recipe, shape=Shape(4))
        options = {"variants": VARIANTS | {"first": dataclasses.replace(FIRST, recipe=recipe)}}
    elif change == "code":
        monkeypatch.setattr(build_module, "_code_sha256", lambda: "0")
    elif change == "tools":
        monkeypatch.setattr(build_module, "tool_versions", lambda: {"torch": "99"})
    elif change == "file":
        path = house.path / "first" / "encoder_model.onnx"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1  # same size, other content
        path.write_bytes(content)
    elif change == "missing":
        shutil.rmtree(house.path / "first")
    else:
        (house.path / ".build" / "first.json").write_text("{")
    assert house(["first"], **options)[0].reused is False
    assert "export first" in house.log
    assert house(["first"], **options)[0].reused is True


def test_budgets_are_no_input(house):
    house()
    other = dataclasses.replace(FIRST, budgets=("anything",))
    assert house(variants={"first": other})[0].reused is True


def test_a_changed_parent_is_converted_again(house):
    house(["half"])
    manifest = house.path / "first" / "manifest.json"
    content = json.loads(manifest.read_bytes())
    content["tools"]["torch"] = "99"  # a parent that differs in nothing but its manifest

    assert house(["half"])[1].reused is True
    manifest.write_text(json.dumps(content))
    stamp = house.path / ".build" / "first.json"
    record = json.loads(stamp.read_bytes())
    stamp.write_text(json.dumps(record | {"manifest": build_module.sha256(manifest)}))
    assert [entry.reused for entry in house(["half"])] == [True, False]
    assert house.log[-1] == "convert first"


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_was_not_built_here_is_not_replaced(house, kind, tiny_variant):
    house.path.mkdir()
    target = house.path / "first"
    if kind == "directory":
        shutil.copytree(tiny_variant(), target)
    else:
        target.write_text("mine")
    with pytest.raises(OutputError, match="was not made by `mimi-export build`"):
        house()
    assert house.log == []  # refused before anything was loaded
    if kind == "directory":
        assert house(force=True)[0].reused is False


def test_an_interrupted_build_is_taken_up(house, monkeypatch):
    def broken(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "convert", broken)
        with pytest.raises(KeyboardInterrupt):
            house(["half"])
    (house.path / "half").mkdir()
    (house.path / "half" / "manifest.json").write_text("{}")  # as if it ended between the rename and the stamp
    assert [entry.reused for entry in house(["half"])] == [True, False]


def test_a_variant_is_good_only_after_its_check(house):
    def bad(variant, path):
        raise ParityError("3 dB, expected at least 110")

    def good(variant, path):
        house.log.append(f"check {variant.name}")

    with pytest.raises(ParityError):
        house(check=bad)
    assert [path.name for path in house.path.iterdir()] == [".build"], "nothing that looks finished"
    assert house()[0].reused is False
    assert house(check=good)[0].reused is True  # made before, checked now
    assert house.log == ["load model-a", "check first"]
    before = (house.path / "first").stat().st_ino
    with pytest.raises(ParityError):
        house(check=bad, force=True)
    assert (house.path / "first").stat().st_ino == before, "what was good stays"
    assert house(check=good)[0].reused is False
    house(check=None, force=True)
    with pytest.raises(ParityError):
        house(check=bad)
    assert not (house.path / "first").exists()
    house(check=good)
    house(check=bad)  # found good already
    assert house.log == ["load model-a"]
    house(check=good, force=True)
    assert house.log == ["load model-a", "export first", "check first"]


def test_unknown_names(house):
    with pytest.raises(ConfigError, match="no variant 'third'; configured are half, first, second"):
        house(["third"])
    assert not house.path.exists()


def test_code_hash_knows_the_exporter(monkeypatch, tmp_path):
    package = tmp_path / "mimi_export"
    (package / "cli").mkdir(parents=True)
    for name in ("__init__.py", "graphs.py", "cli/errors.py"):
        (package / name).write_text("1")
    monkeypatch.setattr(build_module, "package_file", str(package / "__init__.py"))
    before = build_module._code_sha256()
    (package / "cli/errors.py").write_text("2")
    assert build_module._code_sha256() == before
    (package / "graphs.py").write_text("2")
    assert build_module._code_sha256() != before
