"""Mimi weights from the Hugging Face Hub, from a directory, or made up, always checked before they are used.

Upstream fills a tensor that a checkpoint lacks, or has in another shape, with random numbers and a warning. Here
that is an error, and so are tensors for which the configuration has no place, and weights that are not finite.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
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
from mimi_export.model.kyutai import KYUTAI_MARK, huggingface_state_dict
from mimi_export.model.synthetic import SYNTHETIC_NAMES, SYNTHETIC_REVISION, synthetic_directory

logger = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"
SUFFIX = ".safetensors"
MARK = "quantizer.semantic_residual_vector_quantizer.layers.0.codebook.embed_sum"  # a name that every Mimi has

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


def load_checkpoint(model: str, revision: str | None = None, progress: Advance = no_progress) -> Checkpoint:
    """Load a Mimi model, in float32 and evaluation mode.

    Args:
        model: a Hub id (`kyutai/mimi`), a directory with `config.json` and `model.safetensors`, a safetensors file in
            Hugging Face's or Kyutai's names (with the sizes of a `config.json` beside it, or Kyutai's), or a built-in:
            `demo` (small, trained on speech), `synthetic` (Kyutai's sizes) and `synthetic:tiny` (both made up). A
            directory wins over a Hub id of the same name.
        revision: branch, tag or commit on the Hub; for a Hub id only.
        progress: called with (step, done, of how many); a step without a known end has 0 of 0.

    Raises:
        CheckpointError: the weights cannot be found, downloaded or read, or are not all there.
        ConfigError: this is no Mimi, or one that cannot be streamed, or `revision` makes no sense here.
    """
    upstream.check_transformers_version()
    directory = Path(model).expanduser()
    is_directory = model != "" and (directory.is_dir() or (directory.suffix == SUFFIX and directory.is_file()))
    if revision is not None and (is_directory or model in BUILT_IN):
        raise ConfigError(f"{model} has no revisions; a revision goes with a model on the Hub")
    if model == DEMO:
        return read_checkpoint(DEMO_DIRECTORY, DEMO, sha256(DEMO_DIRECTORY / WEIGHTS)[:12])
    if model in SYNTHETIC_NAMES:
        return read_checkpoint(synthetic_directory(model, progress=progress), model, SYNTHETIC_REVISION)
    if is_directory:
        return read_checkpoint(directory, directory.resolve().name or "root", None)
    _refuse_no_hub_id(model, directory)
    downloaded, commit = download_checkpoint(model, revision, progress)
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


def read_checkpoint(path: Path, source: str, revision: str | None) -> Checkpoint:
    """Read the configuration and the weights of a directory or file; `source` is what messages and manifests call it.

    Weights may lie below a prefix in those of a larger model. Without any of the decoder the model is an encoder alone.

    Raises:
        CheckpointError, ConfigError: as for `load_checkpoint`.
    """
    config = _read_config(path, source)
    geometry = Geometry.from_config(upstream.config_fields(config))
    files = _weight_files(path, source)
    sizes = {name: torch.empty(shape, device="meta") for name, shape in _stored_shapes(files, source).items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in _named(sizes, geometry, source).items()}
    alone = not any(name.startswith(upstream.DECODER_PREFIXES) for name in shapes)
    try:
        with upstream.quiet_transformers(), torch.device("meta"):  # nothing is allocated for a stranger's file
            empty = MimiModel(config)
    except ValueError as error:  # older versions refuse here what newer ones refuse in the configuration
        raise _refused(source, error) from error
    if alone:
        upstream.remove_decoder(empty)
    _check_tensors(empty, shapes, source)
    try:
        tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
        with upstream.quiet_transformers():
            model, report = MimiModel.from_pretrained(
                None,
                config=config,
                state_dict=_named(tensors, geometry, source),
                dtype=torch.float32,
                attn_implementation="sdpa",
                ignore_mismatched_sizes=True,  # reported and refused below, in one line
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"transformers cannot load {source}: {_one_line(error)}") from error
    if alone:
        upstream.remove_decoder(model)
    model.eval().requires_grad_(False)
    model.config._name_or_path = source  # noqa: SLF001 - else it keeps the directory's path, which is nobody's business
    broken = [name for name, tensor in upstream.tensors_on_disk(model).items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{source} has weights that are not finite numbers: {some(broken)}")
    wrong = [*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])]
    wrong = [name for name in wrong if name in model.state_dict()]
    if wrong:
        raise CheckpointError(f"transformers found no usable weights in {source} for {some(wrong)}")
    return Checkpoint(model, upstream.geometry_of(model), source, revision)


def _refuse_no_hub_id(model: str, directory: Path) -> None:
    """Raise for a `model` that was meant as a path, or as a synthetic checkpoint that does not exist."""
    if model.partition(":")[0] == "synthetic":
        raise ConfigError(f"there is no {model!r}; synthetic checkpoints are {' and '.join(SYNTHETIC_NAMES)}")
    if model != "" and directory.exists():
        raise CheckpointError(
            f"{model} is a file; expected one of {SUFFIX}, or a directory with {CONFIG} and {WEIGHTS}"
        )
    if model in ("", ".", "..") or model.startswith(("/", "./", "../", "~", ".\\", "..\\")) or model.count("/") > 1:
        raise CheckpointError(
            f"there is no directory {model!r}; expected one with {CONFIG} and {WEIGHTS}, a Hub id such as "
            f"{DEFAULT_MODEL}, or --model demo"
        )


def _read_config(path: Path, source: str) -> MimiConfig:
    """The configuration, refused unless it is a Mimi's that can be streamed.

    A stranger's file decides sizes and nothing else: not the code that computes attention, which transformers would
    fetch, nor data types, nor a quantisation. The sizes are checked before anything is computed from them.
    """
    directory = path if path.is_dir() else path.parent
    if path.is_file() and not (directory / CONFIG).is_file():
        levels = sum(name.endswith("._codebook.embedding_sum") for name in _stored_shapes([path], source))
        fields = {**MimiConfig().to_dict(), **({"num_quantizers": levels} if levels else {})}
    else:
        fields = _mimi_fields(_read_json(directory / CONFIG, source))
    kind = fields.get("model_type")
    if kind != "mimi":
        raise ConfigError(
            f'{source} is not a Mimi checkpoint: model_type in its {CONFIG} is {shown(kind)}, expected "mimi"'
        )
    fields = {name: value for name, value in fields.items() if name in CONFIG_FIELDS}
    Geometry.from_config({**MimiConfig().to_dict(), **fields})
    try:
        with upstream.quiet_transformers():
            return MimiConfig.from_dict(fields)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise _refused(source, error) from error


def _read_json(path: Path, source: str) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"{source} has no {path.name}; wanted: a directory with {CONFIG} and {WEIGHTS}")
    reader = Reader(path, CheckpointError, name=f"{path.name} of {source}")
    fields: dict[str, Any] = reader.value(dict[str, Any], reader.json(), "")
    return fields


def _mimi_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the one Mimi in that of a larger model; other configurations as they are."""
    inner = [value for value in fields.values() if isinstance(value, dict) and value.get("model_type") == "mimi"]
    return inner[0] if fields.get("model_type") != "mimi" and len(inner) == 1 else fields


def _named(tensors: Mapping[str, Tensor], geometry: Geometry, source: str) -> dict[str, Tensor]:
    """Tensors of a file under the names of a Mimi's `model.safetensors`: from Kyutai's, or from below a prefix."""
    if KYUTAI_MARK in tensors:
        return huggingface_state_dict(tensors, geometry)
    prefixes = [name.removesuffix(MARK) for name in tensors if name.endswith(MARK)]
    if len(prefixes) > 1:
        raise CheckpointError(f"{source} holds {len(prefixes)} Mimi models, below {some(prefixes)}; save one by itself")
    prefix = prefixes[0] if prefixes else ""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _stored_shapes(files: Sequence[Path], source: str) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in the safetensors files, from their headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path.name} of {source} is truncated or not a safetensors file ({_one_line(error)}); get it again"
            ) from error
    return shapes


def _weight_files(path: Path, source: str) -> list[Path]:
    """The safetensors files: one, or those that an index lists."""
    if path.is_file() or (path / WEIGHTS).is_file():
        return [path if path.is_file() else path / WEIGHTS]
    if not (path / WEIGHTS_INDEX).is_file():
        raise CheckpointError(f"{source} has no {WEIGHTS}; a checkpoint in another format must be converted first")
    index = _read_json(path / WEIGHTS_INDEX, source).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise CheckpointError(f"{WEIGHTS_INDEX} of {source} has no weight_map from tensors to files")
    names = sorted(set(index.values()))
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"{source} lacks {some(missing)}, which its {WEIGHTS_INDEX} lists")
    return [path / name for name in names]


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


def _refused(source: str, error: Exception) -> ConfigError:
    return ConfigError(f"{CONFIG} of {source} is refused by transformers: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
