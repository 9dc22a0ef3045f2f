"""Mimi weights from the Hugging Face Hub, from a directory, or made up, always checked before they are used.

Upstream fills a tensor that a checkpoint lacks, or has in another shape, with random numbers and a warning. Here
that is an error, and so are tensors for which the configuration has no place, and weights that are not finite.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import MimiConfig, MimiModel

from mimi_export.contract.files import sha256
from mimi_export.contract.geometry import CONFIG_FIELDS, Geometry
from mimi_export.contract.manifest import DEMO
from mimi_export.contract.progress import Advance, no_progress
from mimi_export.contract.recipes import DEFAULT_MODEL
from mimi_export.contract.records import Reader, shown
from mimi_export.errors import ArtifactError, CheckpointError, ConfigError, some
from mimi_export.model import upstream
from mimi_export.model.download import WEIGHTS, download_checkpoint
from mimi_export.model.synthetic import SYNTHETIC_NAMES, synthetic_directory, synthetic_revision

logger = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"

DEMO_DIRECTORY = Path(__file__).parent / "demo"  # scripts/train_demo.py made it
BUILT_IN = (DEMO, *SYNTHETIC_NAMES)


@dataclass
class Checkpoint:
    """A model in float32, ready to run, and where it came from.

    `source` is a Hub id, the name of a built-in checkpoint or the last part of a directory's path; `revision` is the
    Hub's commit, or the version of a built-in checkpoint, or `None`.
    """

    model: MimiModel
    geometry: Geometry
    source: str
    revision: str | None

    def sha256(self) -> str:
        """A hash of all tensors by name, whatever file they came from."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            array = tensor.detach().cpu().contiguous().numpy()
            digest.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
            digest.update(memoryview(array.reshape(-1)).cast("B"))
        return digest.hexdigest()


def load_checkpoint(
    model: str = DEFAULT_MODEL,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Advance = no_progress,
) -> Checkpoint:
    """Load a Mimi model, in float32 and evaluation mode.

    Args:
        model: a Hub id (`kyutai/mimi`), a directory with `config.json` and `model.safetensors`, or a built-in one:
            `demo` (small, trained on speech), `synthetic` (Kyutai's sizes) and `synthetic:tiny` (both made up). A
            directory wins over a Hub id of the same name.
        revision: branch, tag or commit on the Hub; for a Hub id only.
        cache_dir: where downloaded and synthetic checkpoints are kept; the usual caches unless given.
        progress: called with (step, done, of how many); a step without a known end has 0 of 0.

    Raises:
        CheckpointError: the weights cannot be found, downloaded or read, or are not all there.
        ConfigError: this is no Mimi, or one that cannot be streamed, or `revision` makes no sense here.
    """
    upstream.check_transformers_version()
    cache = None if cache_dir is None else Path(cache_dir)
    directory = Path(model).expanduser()
    is_directory = model != "" and directory.is_dir()
    if revision is not None and (is_directory or model in BUILT_IN):
        raise ConfigError(f"{model} has no revisions; a revision goes with a model on the Hub")
    if model == DEMO:
        return read_checkpoint(DEMO_DIRECTORY, DEMO, sha256(DEMO_DIRECTORY / WEIGHTS)[:12])
    if model in SYNTHETIC_NAMES:
        made = synthetic_directory(model, cache, progress)
        return read_checkpoint(made, model, synthetic_revision())
    if is_directory:
        return read_checkpoint(directory, directory.resolve().name or "root", None)
    _refuse_no_hub_id(model, directory)
    downloaded, commit = download_checkpoint(model, revision, cache, progress)
    return read_checkpoint(downloaded, model, commit)


def load_source(
    source: str, revision: str | None, load: Callable[[str, str | None], Checkpoint] = load_checkpoint
) -> Checkpoint:
    """Load the checkpoint that a variant was made from.

    Args:
        source: model, as the manifest has it.
        revision: the Hub's commit, or the version of a built-in checkpoint, which nobody can ask for.
        load: how a checkpoint is loaded from model and revision.

    Raises:
        ArtifactError: another version of this program had another checkpoint of that name.
        CheckpointError, ConfigError: see `load_checkpoint`.
    """
    built_in = source in BUILT_IN
    checkpoint = load(source, None if built_in else revision)
    if built_in and revision != checkpoint.revision:
        raise ArtifactError(
            f"the variant was made from {source} ({revision}), this program has {checkpoint.revision}; export it again"
        )
    return checkpoint


def read_checkpoint(directory: Path, source: str, revision: str | None) -> Checkpoint:
    """Read `config.json` and the weights of `directory`; `source` is what messages and manifests call it.

    Raises:
        CheckpointError, ConfigError: as for `load_checkpoint`.
    """
    config = _read_config(directory, source)
    with upstream.quiet_transformers(), torch.device("meta"):  # sizes alone: nothing is allocated for a stranger's file
        _check_tensors(MimiModel(config), _stored_shapes(directory, source), source)
    try:
        with upstream.quiet_transformers():
            model, report = MimiModel.from_pretrained(
                directory,
                config=config,
                dtype=torch.float32,
                attn_implementation="sdpa",
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # reported and refused below, in one line
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"transformers cannot load {source}: {_one_line(error)}") from error
    model.eval().requires_grad_(False)
    model.config._name_or_path = source  # noqa: SLF001 - else it keeps the directory's path, which is nobody's business
    broken = [
        name for name, tensor in upstream.tensors_on_disk(model).items() if not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        raise CheckpointError(f"{source} has weights that are not finite numbers: {some(broken)}")
    if report["missing_keys"] or report["mismatched_keys"]:
        wrong = [*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])]
        raise CheckpointError(f"transformers found no usable weights in {source} for {some(wrong)}")
    return Checkpoint(model, upstream.geometry_of(model), source, revision)


def _refuse_no_hub_id(model: str, directory: Path) -> None:
    """Raise for a `model` that was meant as a path, or as a synthetic checkpoint that does not exist."""
    if model.partition(":")[0] == "synthetic":
        raise ConfigError(f"there is no {model!r}; synthetic checkpoints are {' and '.join(SYNTHETIC_NAMES)}")
    if model != "" and directory.exists():
        raise CheckpointError(f"{model} is a file; expected a directory with {CONFIG} and {WEIGHTS}")
    if model in ("", ".", "..") or model.startswith(("/", "./", "../", "~", ".\\", "..\\")) or model.count("/") > 1:
        raise CheckpointError(
            f"there is no directory {model!r}; expected one with {CONFIG} and {WEIGHTS}, a Hub id such as "
            f"{DEFAULT_MODEL}, or --model demo"
        )


def _read_config(directory: Path, source: str) -> MimiConfig:
    """The configuration, refused unless it is a Mimi's that can be streamed.

    A stranger's file decides sizes and nothing else: not the code that computes attention, which transformers would
    fetch, nor data types, nor a quantisation. The sizes are checked before anything is computed from them.
    """
    fields = _read_json(directory / CONFIG, source)
    kind = fields.get("model_type")
    if kind != "mimi":
        raise ConfigError(
            f'{source} is not a Mimi checkpoint: model_type in its {CONFIG} is {shown(kind)}, expected "mimi"'
        )
    fields = {name: value for name, value in fields.items() if name in CONFIG_FIELDS}
    Geometry.from_config({**MimiConfig().to_dict(), **fields})
    try:
        with upstream.quiet_transformers():
            config = MimiConfig.from_dict(fields)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{CONFIG} of {source} is refused by transformers: {_one_line(error)}") from error
    Geometry.from_config(upstream.config_fields(config))
    return config


def _read_json(path: Path, source: str) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"{source} has no {path.name}; wanted: a directory with {CONFIG} and {WEIGHTS}")
    reader = Reader(path, CheckpointError, name=f"{path.name} of {source}")
    fields: dict[str, Any] = reader.value(dict[str, Any], reader.json(), "")
    return fields


def _stored_shapes(directory: Path, source: str) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in the safetensors files, from their headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in _weight_files(directory, source):
        try:
            with safe_open(directory / name, framework="pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{name} of {source} is truncated or not a safetensors file ({_one_line(error)}); get it again"
            ) from error
    return shapes


def _weight_files(directory: Path, source: str) -> list[str]:
    """Names of the safetensors files: one, or those that an index lists."""
    if (directory / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (directory / WEIGHTS_INDEX).is_file():
        raise CheckpointError(f"{source} has no {WEIGHTS}; a checkpoint in another format must be converted first")
    index = _read_json(directory / WEIGHTS_INDEX, source).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise CheckpointError(f"{WEIGHTS_INDEX} of {source} has no weight_map from tensors to files")
    names = sorted(set(index.values()))
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(f"{source} lacks {some(missing)}, which its {WEIGHTS_INDEX} lists")
    return names


def _check_tensors(model: MimiModel, shapes: dict[str, tuple[int, ...]], source: str) -> None:
    """Raise unless the files hold exactly the tensors of `model`."""
    wanted = upstream.tensors_on_disk(model)
    missing = [name for name in wanted if name not in shapes]
    if missing:
        raise CheckpointError(f"{source} lacks {len(missing)} tensors of its configuration: {some(missing)}")
    for name, tensor in wanted.items():
        if shapes[name] != tuple(tensor.shape):
            raise CheckpointError(
                f"{name} of {source} is {list(shapes[name])}, but its configuration asks for {list(tensor.shape)}"
            )
    extra = [name for name in shapes if name not in wanted]
    misplaced = [name for name in extra if name.startswith(upstream.DISK_PREFIXES)]
    if misplaced:
        raise CheckpointError(
            f"{source} has {len(misplaced)} tensors for which its configuration has no place: {some(misplaced)}"
        )
    if extra:
        logger.info("%s has tensors that are no part of a Mimi model: %s", source, some(extra))


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
