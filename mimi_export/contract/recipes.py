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

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mimi_export.contract.precision import PRECISIONS, Options
from mimi_export.contract.records import FLAT, Reader, shown
from mimi_export.contract.spec import Shape
from mimi_export.errors import ConfigError

DEFAULT_MODEL = "kyutai/mimi"
CONFIG_DIRECTORY = "configs"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

# What a budget can limit.
Metric = Literal[
    "code_agreement_percent",  # codes equal to the reference's, ties apart
    "code_tie_percent",  # codes that differ where two entries are equally near within rounding
    "codebook_agreement_percent",  # codes equal to the reference's in the codebook where fewest are
    "search_agreement_percent",  # codes that an exact search of the graph's own latents gives, ties apart
    "latent_snr_db",  # latents before the quantiser against the reference's
    "decoder_snr_db",  # audio decoded from the reference's codes against the reference's audio
    "end_to_end_snr_db",  # audio encoded and decoded against the reference's
]


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

    shape: Shape = field(metadata=FLAT)
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


def find_recipe(name: str) -> Variant | None:
    """The configuration called `name` among those that `find_configs` finds, also in their subdirectories.

    Raises:
        ConfigError: there is one, and `load_variant` refuses it.
    """
    try:
        directory = find_configs()
    except ConfigError:
        return None
    path = next((path for path in sorted(directory.rglob("*.toml")) if path.stem == name), None)
    return None if path is None else load_variant(path)


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
    reader = Reader(Path(path), ConfigError, defaults=True)
    file = reader.record(_File, reader.toml())
    if file.name != reader.path.stem or not _NAME.fullmatch(file.name):
        reader.refuse(
            "name", f"is {shown(file.name)}, expected the file's own name {reader.path.stem!r} (letters, digits, . _ -)"
        )
    if (file.export is None) == (file.convert is None):
        found = "none" if file.export is None else "both"
        reader.refuse("", f"has {found} of the tables [export] and [convert], expected one of them")
    recipe = file.export or _convert_recipe(reader, dict(file.convert or {}))
    return Variant(file.name, recipe, _budgets(reader, file.parity))


@dataclass(frozen=True)
class _Limit:
    reason: str
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class _File:
    name: str
    export: ExportRecipe | None = None
    convert: Mapping[str, Any] | None = None
    parity: Mapping[Metric, _Limit] = field(default_factory=dict)


def _convert_recipe(reader: Reader, table: dict[str, Any]) -> ConvertRecipe:
    parent, precision = (reader.value(str, table.pop(key, None), f"convert.{key}") for key in ("parent", "precision"))
    if precision not in PRECISIONS:
        reader.refuse("convert.precision", f"is {shown(precision)}, expected one of {', '.join(PRECISIONS)}")
    return ConvertRecipe(parent, reader.record(PRECISIONS[precision], table, "convert"))


def _budgets(reader: Reader, limits: Mapping[Metric, _Limit]) -> tuple[Budget, ...]:
    for metric, limit in limits.items():
        if (limit.minimum is None) == (limit.maximum is None):
            reader.refuse(f"parity.{metric}", "needs exactly one of minimum and maximum")
        if not limit.reason.strip():
            reader.refuse(f"parity.{metric}.reason", "is empty; say why the number is what it is")
    return tuple(Budget(metric, **vars(limits[metric])) for metric in get_args(Metric) if metric in limits)
