"""Build variant directories from their configurations, and re-use what is built already and unchanged.

    <output_dir>/streaming-8cb/            the variant
    <output_dir>/.build/streaming-8cb.json what it was built from, as two hashes

A variant is re-used if its inputs are what they were (recipe, weights, tools, the code that makes graphs) and if
every file of it still has the hash in its manifest. Otherwise it is made again. A directory that was not made here
is never replaced unless `force` says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from mimi_export import __file__ as package_file
from mimi_export.contract.directory import load_artifact
from mimi_export.contract.files import atomic_directory, atomic_file, is_taken, sha256
from mimi_export.contract.manifest import FORMAT_VERSION, MANIFEST_NAME
from mimi_export.contract.progress import Progress
from mimi_export.contract.recipes import ConvertRecipe, ExportRecipe, Variant
from mimi_export.contract.records import plain
from mimi_export.errors import ArtifactError, ConfigError, OutputError, ParityError
from mimi_export.export.convert import convert
from mimi_export.export.variant import export_variant, tool_versions
from mimi_export.model.checkpoint import Checkpoint, load_checkpoint

STAMPS = ".build"
# Rooms that no byte of a variant depends on.
NOT_INPUTS = frozenset({"bench", "cli", "corpus", "hub", "parity", "remote", "serving", "web"})

Check = Callable[[Variant, Path], object]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Built:
    """One variant of a build; `reused` says that nothing had to be done for it."""

    name: str
    path: Path
    reused: bool


def build(
    variants: Mapping[str, Variant],
    names: Sequence[str],
    output_dir: str | os.PathLike[str],
    *,
    model: str | None = None,
    revision: str | None = None,
    force: bool = False,
    check: Check | None = None,
    progress: Progress = logger.info,
    load: Callable[[str, str | None], Checkpoint] = load_checkpoint,
) -> list[Built]:
    """Make the named variants (all without a name) and the parents they are converted from.

    Args:
        variants: configurations by name.
        names: which to build.
        output_dir: the directory that holds the variant directories.
        model: take the weights from here, whatever the configurations say.
        revision: of `model`.
        force: build again even what is unchanged, and replace directories that were not made here.
        check: called with each variant that was not found good before, under a hidden name; raises if it is not good.
            Nothing of it is left then, and what lay there before stays.
        progress: told of each step.
        load: how a checkpoint is loaded from model and revision.

    Raises:
        ConfigError: an unknown name.
        OutputError: a directory is in the way, or cannot be written.
        CheckpointError: the weights cannot be had.
    """
    order = _order(variants, names)
    targets = {variant.name: _Target(Path(output_dir), variant.name) for variant in order}
    if not force:
        for target in targets.values():
            target.refuse_foreign()

    @cache
    def loaded(name: str, wanted: str | None) -> tuple[Checkpoint, dict[str, Any]]:
        progress(f"loading {name}")
        checkpoint = load(name, wanted)
        source = [checkpoint.source, checkpoint.revision]
        return checkpoint, {"source": source, "geometry": plain(checkpoint.geometry), "weights": checkpoint.sha256()}

    built = []
    for variant in order:
        target, recipe = targets[variant.name], variant.recipe
        make: Callable[..., object]
        if isinstance(recipe, ExportRecipe):
            key = (recipe.model, recipe.revision) if model is None else (model, revision)
            checkpoint, inputs = loaded(*key)
            make = partial(export_variant, checkpoint, shape=recipe.shape, name=variant.name)
        else:
            parent = targets[recipe.parent].path
            inputs = {"parent": sha256(parent / MANIFEST_NAME)}
            make = partial(convert, parent, options=recipe.options, name=variant.name)
        fingerprint = _fingerprint(variant, inputs)
        reused = not force and target.is_unchanged(fingerprint)
        if reused:
            progress(f"{variant.name}: unchanged")
            if check is not None and not target.is_checked():
                progress(f"{variant.name}: checking")
                try:
                    check(variant, target.path)
                except ParityError:
                    shutil.rmtree(target.path)
                    raise
                target.stamp(fingerprint, checked=True)
        else:
            target.stamp(fingerprint)  # claims the place before anything appears there
            with atomic_directory(target.path, force=True) as directory:
                make(directory, progress=partial(_tell, progress, variant.name))
                if check is not None:
                    progress(f"{variant.name}: checking")
                    check(variant, directory)
            target.stamp(fingerprint, checked=check is not None)
        built.append(Built(variant.name, target.path, reused))
    return built


def _tell(progress: Progress, name: str, text: str) -> None:
    progress(f"{name}: {text}")


def _order(variants: Mapping[str, Variant], names: Sequence[str]) -> list[Variant]:
    """The named variants (or all) and their parents, each parent first, none twice."""
    ordered: dict[str, Variant] = {}
    for name in names or variants:
        if name not in variants:
            raise ConfigError(f"there is no variant {name!r}; configured are {', '.join(variants)}")
        variant = variants[name]
        if isinstance(variant.recipe, ConvertRecipe):
            ordered.setdefault(variant.recipe.parent, variants[variant.recipe.parent])
        ordered.setdefault(name, variant)
    return sorted(ordered.values(), key=lambda variant: isinstance(variant.recipe, ConvertRecipe))


class _Target:
    """The place of one variant, and the stamp that says what lies there."""

    def __init__(self, output_dir: Path, name: str) -> None:
        self.path = output_dir / name
        self._stamp = output_dir / STAMPS / f"{name}.json"

    def refuse_foreign(self) -> None:
        """Raise `OutputError` where something lies that no build has made."""
        if is_taken(self.path) and not self._stamp.exists():
            raise OutputError(
                f"{self.path} exists already and was not made by `mimi-export build`; "
                "choose another --output-dir or replace it with --force"
            )

    def stamp(self, fingerprint: str, checked: bool | None = None) -> None:
        """Write down what lies here: nothing yet, or (with `checked`) the finished variant."""
        manifest = None if checked is None else sha256(self.path / MANIFEST_NAME)
        content = {"inputs": fingerprint, "manifest": manifest, "checked": bool(checked)}
        try:
            self._stamp.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {self._stamp.parent}: {error.strerror}") from error
        with atomic_file(self._stamp, force=True) as temporary:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")

    def is_unchanged(self, fingerprint: str) -> bool:
        """Whether the finished variant here was built from these inputs and no file of it has changed since."""
        content = self._read_stamp()
        manifest = self.path / MANIFEST_NAME
        if content.get("inputs") != fingerprint or not manifest.is_file():
            return False
        if content.get("manifest") != sha256(manifest):
            return False
        try:
            load_artifact(self.path, verify_hashes=True)
        except ArtifactError as error:
            logger.info("%s", error)
            return False
        return True

    def is_checked(self) -> bool:
        """Whether the variant here was found good."""
        return bool(self._read_stamp().get("checked"))

    def _read_stamp(self) -> dict[str, Any]:
        try:
            content = json.loads(self._stamp.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}  # no stamp or a damaged one: then the variant counts as changed and is made again
        return content if isinstance(content, dict) else {}


def _fingerprint(variant: Variant, inputs: Mapping[str, Any]) -> str:
    """One hash of everything that a variant's bytes depend on; budgets are no part of it."""
    content = {
        "name": variant.name,
        "recipe": {type(variant.recipe).__name__: dataclasses.asdict(variant.recipe)},
        "inputs": dict(inputs),
        "tools": tool_versions(),
        "format": FORMAT_VERSION,
        "code": _code_sha256(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _code_sha256() -> str:
    """A hash of the package's modules except `NOT_INPUTS`, so that a change of the exporter builds again."""
    package = Path(package_file).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in NOT_INPUTS:
            digest.update(f"{name.as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest()
