"""Variant configurations: one TOML file says what a variant directory is made of and how good it has to be.

    name = "streaming-8cb"

    [export]                          a variant is exported from a checkpoint …
    model = "kyutai/mimi"
    num_codebooks = 8

    [convert]                         … or converted from a finished variant; never both
    parent = "streaming-8cb"
    precision = "fp16"

    [parity.decoder_snr_db]           one table for each budget
    minimum = 110.0
    reason = "why this number and no other"

Reading is strict: a key that is not known is an error that names the file and the key. Nothing is built here.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mimi_export.contract.precision import PRECISIONS, Options
from mimi_export.contract.spec import KV_LAYOUTS, Shape
from mimi_export.errors import ConfigError

# By name, because the type checker looks at the oldest Python, where the reader is a package of its own.
tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

DEFAULT_MODEL = "kyutai/mimi"
CONFIG_DIRECTORY = "configs"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MISSING = object()

# What a budget can limit: the name of the measured number and what it is.
METRICS: dict[str, str] = {
    "code_agreement_percent": "codes equal to the reference's, ties apart, in percent",
    "code_tie_percent": "codes that differ where two entries are equally near within rounding, in percent",
    "latent_snr_db": "latents before the quantiser against the reference's, in dB",
    "decoder_snr_db": "audio decoded from the reference's codes against the reference's audio, in dB",
    "end_to_end_snr_db": "audio encoded and decoded against the reference's, in dB",
}


@dataclass(frozen=True)
class Budget:
    """What a measured number may be at least or at most (exactly one of both is given), and why."""

    metric: str
    minimum: float | None
    maximum: float | None
    reason: str

    def holds(self, value: float) -> bool:
        """Whether `value` is within the budget; NaN never is."""
        return value >= self.minimum if self.minimum is not None else value <= float(self.maximum or 0.0)

    @property
    def wanted(self) -> str:
        """The limit in words."""
        return f"at least {self.minimum:g}" if self.minimum is not None else f"at most {self.maximum:g}"


@dataclass(frozen=True)
class ExportRecipe:
    """A variant exported from a checkpoint; the fields are the options of `mimi-export export`."""

    shape: Shape
    model: str = DEFAULT_MODEL
    revision: str | None = None


@dataclass(frozen=True)
class ConvertRecipe:
    """A variant converted from the finished variant called `parent`; the options' fields are the table's keys."""

    parent: str
    options: Options


@dataclass(frozen=True)
class Variant:
    """One configuration file."""

    name: str
    recipe: ExportRecipe | ConvertRecipe
    budgets: tuple[Budget, ...] = ()


def find_configs(directory: str | os.PathLike[str] | None = None) -> Path:
    """Where the configurations are: `directory`, else `./configs`, else those installed with the package.

    Raises:
        ConfigError: none of these has a `.toml` file.
    """
    package = Path(__file__).resolve().parent.parent
    installed = (package / CONFIG_DIRECTORY, package.parent / CONFIG_DIRECTORY)  # the second one in a source tree
    candidates = [Path(directory)] if directory is not None else [Path(CONFIG_DIRECTORY), *installed]
    for candidate in candidates:
        if any(candidate.glob("*.toml")):
            return candidate
    raise ConfigError(f"no variant configurations (*.toml) in {candidates[0]}; name their directory with --configs")


def load_variants(directory: str | os.PathLike[str]) -> dict[str, Variant]:
    """All configurations of a directory by name, in alphabetical order.

    Raises:
        ConfigError: a file that `load_variant` refuses, or a conversion whose parent is not there or is converted
            itself.
    """
    paths = sorted(Path(directory).glob("*.toml"))
    variants = {variant.name: variant for variant in map(load_variant, paths)}
    for name, variant in variants.items():
        if isinstance(variant.recipe, ConvertRecipe):
            parent = variants.get(variant.recipe.parent)
            where = f"{Path(directory) / name}.toml: convert.parent"
            if parent is None:
                others = ", ".join(sorted(variants.keys() - {name}))
                raise ConfigError(f"{where} is {variant.recipe.parent!r}, expected one of {others}")
            if not isinstance(parent.recipe, ExportRecipe):
                raise ConfigError(f"{where} is {parent.name!r}, which is converted itself; name an exported variant")
    return variants


def load_variant(path: str | os.PathLike[str]) -> Variant:
    """Read one configuration file; `name` in it is its file name without `.toml`.

    Raises:
        ConfigError: unreadable or no TOML, an unknown or missing key, a value of a wrong type or out of range.
    """
    path = Path(path)
    table = _Table(_read_toml(path), path)
    name = table.take("name", str)
    if name != path.stem or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{path}: name is {name!r}, expected the file's own name {path.stem!r} (letters, digits, . _ -)"
        )
    export, convert = table.take_table("export"), table.take_table("convert")
    if (export is None) == (convert is None):
        found = "none" if export is None else "both"
        raise ConfigError(f"{path}: expected one of the tables [export] and [convert], found {found}")
    parity = table.take_table("parity")
    table.finish()
    recipe = _export_recipe(export) if export is not None else _convert_recipe(convert)
    return Variant(name, recipe, () if parity is None else _budgets(parity))


class _Table:
    """A TOML table from which known keys are taken; what is left at the end is unknown."""

    def __init__(self, values: dict[str, Any], path: Path, prefix: str = "") -> None:
        self.values = dict(values)
        self.path = path
        self.prefix = prefix

    def where(self, key: str) -> str:
        return f"{self.path}: {self.prefix}{key}"

    def take(self, key: str, *types: type, default: Any = _MISSING) -> Any:
        if key not in self.values:
            if default is _MISSING:
                raise ConfigError(f"{self.where(key)} is missing")
            return default
        value = self.values.pop(key)
        if type(value) not in types:  # not isinstance: TOML's true is no number
            wanted = " or ".join(_TYPE_WORDS[kind] for kind in types)
            raise ConfigError(f"{self.where(key)} is {value!r}, expected {wanted}")
        return value

    def take_table(self, key: str) -> _Table | None:
        value = self.take(key, dict, default=None)
        return None if value is None else _Table(value, self.path, f"{self.prefix}{key}.")

    def finish(self, known: Sequence[str] = ()) -> None:
        for key in self.values:
            hint = f"; known here: {', '.join(known)}" if known else ""
            raise ConfigError(f"{self.where(key)} is an unknown key{hint}")


_TOML_TYPES: dict[str, type] = {"tuple[str, ...]": list, "bool": bool, "int | None": int}
_TYPE_WORDS = {str: "a text", int: "a whole number", float: "a number", list: "a list", dict: "a table", bool: "a flag"}


def _export_recipe(table: _Table) -> ExportRecipe:
    model, revision = table.take("model", str, default=DEFAULT_MODEL), table.take("revision", str, default=None)
    num_codebooks = table.take("num_codebooks", int)
    layout = table.take("layout", str, default="window")
    frames_per_call, rows = (table.take(key, int, default=None) for key in ("frames_per_call", "batch"))
    table.finish(("model", "revision", "num_codebooks", "layout", "frames_per_call", "batch"))
    if layout not in KV_LAYOUTS:
        raise ConfigError(f"{table.where('layout')} is {layout!r}, expected one of {', '.join(KV_LAYOUTS)}")
    try:
        return ExportRecipe(Shape(num_codebooks, layout, frames_per_call, rows), model, revision)
    except ConfigError as error:
        raise ConfigError(f"{table.path}: {table.prefix.rstrip('.')}: {error}") from error


def _convert_recipe(table: _Table | None) -> ConvertRecipe:
    if table is None:
        raise ConfigError("a variant needs a table [export] or [convert]")
    parent, precision = table.take("parent", str), table.take("precision", str)
    if precision not in PRECISIONS:
        raise ConfigError(f"{table.where('precision')} is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    kind = PRECISIONS[precision]
    known = {entry.name: _TOML_TYPES[str(entry.type)] for entry in fields(kind)}
    values: dict[str, Any] = {key: table.take(key, wanted) for key, wanted in known.items() if key in table.values}
    table.finish(("parent", "precision", *known))
    values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    try:
        return ConvertRecipe(parent, kind(**values))
    except ConfigError as error:
        raise ConfigError(f"{table.path}: {table.prefix.rstrip('.')}: {error}") from error


def _budgets(table: _Table) -> tuple[Budget, ...]:
    budgets = []
    for metric in METRICS:
        entry = table.take_table(metric)
        if entry is None:
            continue
        minimum, maximum = (entry.take(key, float, int, default=None) for key in ("minimum", "maximum"))
        if (minimum is None) == (maximum is None):
            raise ConfigError(f"{table.where(metric)} needs exactly one of minimum and maximum")
        reason = entry.take("reason", str)
        if not reason.strip():
            raise ConfigError(f"{entry.where('reason')} is empty; say why the number is what it is")
        entry.finish(("minimum", "maximum", "reason"))
        budgets.append(Budget(metric, minimum, maximum, reason))
    table.finish(tuple(METRICS))
    return tuple(budgets)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {str(error).splitlines()[0]}") from error
    return content
