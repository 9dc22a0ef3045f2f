"""A Mimi checkpoint made from a seed, on which a wrong graph cannot pass for a right one.

Kyutai's weights are not always at hand, and a freshly initialised `MimiModel` is no substitute: its codebooks are
all zero, so every code is 0, and its layer scales of 0.01 hide whatever attention does. Here every part matters:

- weights are uniform with the variance that keeps a signal at its level from layer to layer, biases are not zero;
- layer scales are about 0.4, queries and keys are large enough that attention picks out few tokens;
- each codebook is fitted to what the levels before it leave of the encoder's output on generated speech;
- the decoder's last layer is scaled to a listenable level.

A weight depends on the seed and on its name on disk, and on no library's initialiser. The codebooks go through the
encoder on one thread, so they repeat bit for bit on one machine with one version of torch, however many threads a
process has, and to float rounding elsewhere.
It compresses nothing and understands no speech: it is for tests of exactness and speed, not of quality.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import MimiConfig, MimiModel

from mimi_export.contract.files import atomic_directory, cache_root, sha256
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.network import decoder_seanet, walk_convs
from mimi_export.contract.progress import Advance, no_progress
from mimi_export.errors import CheckpointError, MimiExportError
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream

logger = logging.getLogger(__name__)

_SIZES: dict[str, dict[str, int]] = {
    "synthetic": {},  # Kyutai's
    "synthetic:tiny": {
        "hidden_size": 32, "num_filters": 4, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "sliding_window": 16, "codebook_size": 64, "codebook_dim": 16,
        "vector_quantization_hidden_dimension": 16, "num_quantizers": 16, "upsample_groups": 32,
    },
}  # fmt: skip
SYNTHETIC_NAMES = tuple(_SIZES)
FORMAT_VERSION = 2  # raised whenever other weights come from the same seed
SEED = 0
SYNTHETIC_REVISION = f"format {FORMAT_VERSION}, seed {SEED}"
_HASHES = "sha256.txt"
LAYER_SCALE = 0.4
DECODER_RMS = 0.1
_ELU_GAIN = 1.25  # 1 / rms of elu(x) for normal x of unit variance
_ATTENTION_GAIN = 1.5  # of queries and keys, so that logits spread by about the square of it
_ROW_SECONDS = 12.0  # longer than the attention window of the real geometry
LEAST_FRAMES, MOST_FRAMES = 128, 512  # that codebooks are fitted to


def synthetic_config(name: str) -> MimiConfig:
    """The configuration of a named synthetic checkpoint."""
    return MimiConfig(**_SIZES[name])


def synthetic_directory(name: str, cache_dir: Path | None = None, progress: Advance = no_progress) -> Path:
    """The directory of a named synthetic checkpoint in Hugging Face's form, made on first use.

    It is made beside its place and renamed, so a reader never sees half of it; one that does not have the content
    that was written is made again. Processes that want the same one wait for the first.

    Raises:
        CheckpointError: the cache cannot be written.
    """
    root = cache_root() if cache_dir is None else cache_dir
    directory = root / f"{name.replace(':', '-')}-{FORMAT_VERSION}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{directory.name}.lock"):
            if not _intact(directory):
                logger.info("making the checkpoint %s", name)
                _save(synthetic_model(synthetic_config(name), SEED, progress), directory)
    except OSError as error:
        reason = error if isinstance(error, MimiExportError) else error.strerror
        raise CheckpointError(
            f"cannot keep the checkpoint {name} in {root}: {reason}; set MIMI_EXPORT_CACHE to a directory to write to"
        ) from error
    return directory


def _save(model: MimiModel, directory: Path) -> None:
    """Write a model as transformers does, and the hashes of its files last."""
    shutil.rmtree(directory, ignore_errors=True)  # damaged, or there would be no need to save
    with atomic_directory(directory) as temporary, upstream.quiet_transformers():
        model.save_pretrained(temporary)
        lines = [f"{sha256(path)}  {path.name}\n" for path in sorted(temporary.iterdir())]
        (temporary / _HASHES).write_text("".join(lines), "utf-8")


def _intact(directory: Path) -> bool:
    """Whether all files of a made checkpoint are there with the content that was written."""
    try:
        lines = (directory / _HASHES).read_text("utf-8").splitlines()
        wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        return {"config.json", "model.safetensors"} <= set(wanted) and all(
            sha256(directory / name) == digest for name, digest in wanted.items()
        )
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return False


def synthetic_model(config: MimiConfig, seed: int = 0, progress: Advance = no_progress) -> MimiModel:
    """A model of any geometry with weights made from `seed`, in float32 and ready to use.

    Raises:
        ConfigError: the geometry cannot be streamed.
    """
    Geometry.from_config(upstream.config_fields(config))
    with upstream.quiet_transformers():
        model = MimiModel(config).eval().requires_grad_(False)
    geometry = upstream.geometry_of(model)
    tensors = upstream.tensors_on_disk(model)
    for index, (name, tensor) in enumerate(tensors.items()):
        progress("making weights", index, len(tensors))
        mean, spread = _mean_and_spread(name, tuple(tensor.shape), geometry)
        numbers = mean + spread * _uniform(name, tuple(tensor.shape), seed)
        tensor.copy_(torch.from_numpy(numbers.astype(np.float32)))
    with _one_thread():
        latents = _fit_latents(model, geometry, seed, progress)
        _fit_codebooks(tensors, latents, geometry, seed, progress)
        upstream.clear_codebook_cache(model)
        _set_decoder_level(model, tensors, latents, geometry)
    progress("done", 1, 1)
    return model


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute on one thread: with more, sums are made in another order and the last bits differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _uniform(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    """Numbers of mean 0 and variance 1 for the tensor called `name`.

    They come from the bits of PCG64, whose sequence numpy guarantees, and not from a distribution, which it does not.
    """
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint32)
    source = np.random.PCG64(np.random.SeedSequence([seed, *words.tolist()]))
    bits = source.random_raw(math.prod(shape)) >> np.uint64(11)
    numbers: NDArray[np.float64] = (bits.astype(np.float64) * 2.0**-53 - 0.5) * math.sqrt(12)
    return numbers.reshape(shape)


def _mean_and_spread(name: str, shape: tuple[int, ...], geometry: Geometry) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's values."""
    if name.endswith("initialized"):
        return 1.0, 0.0
    if "codebook" in name:
        return 0.0, 0.0  # fitted later
    if name.endswith("layer_scale.scale"):
        return LAYER_SCALE, 0.2 * LAYER_SCALE
    if "layernorm.weight" in name:
        return 1.0, 0.2
    if name.endswith("bias"):
        return 0.0, 0.1
    fan_in = math.prod(shape[1:])
    transposed = {f"decoder.{layer.path}.weight" for layer in walk_convs(decoder_seanet(geometry)) if layer.transposed}
    if name.startswith("upsample.") or name in transposed:
        # [in, out / groups, kernel]: an output sample sees kernel / stride = 2 taps of each input channel in its group
        groups = geometry.upsample_groups if name.startswith("upsample.") else 1
        fan_in = 2 * shape[0] // groups
    gain = 1.0
    if name == "encoder.layers.0.conv.weight":
        gain = 8.0  # speech has an rms near 1/8
    elif name.startswith(("encoder.layers.", "decoder.layers.")) and name != "decoder.layers.0.conv.weight":
        gain = _ELU_GAIN if "block.3" not in name else 0.7 * _ELU_GAIN
    elif "q_proj" in name or "k_proj" in name:
        gain = _ATTENTION_GAIN
    elif "fc2" in name:
        gain = 1.5  # 1 / rms of gelu(x) for normal x of unit variance
    return 0.0, gain / math.sqrt(fan_in)


def _fit_latents(model: MimiModel, geometry: Geometry, seed: int, progress: Advance) -> Tensor:
    """The encoder's output on generated speech, `[frames, hidden_size]`."""
    frames = min(max(geometry.codebook_size, LEAST_FRAMES), MOST_FRAMES)
    row_frames = min(frames, max(1, round(_ROW_SECONDS * geometry.frame_rate)))
    samples = row_frames * geometry.frame_size
    rows = []
    for row in range(math.ceil(frames / row_frames)):
        progress("encoding speech for the codebooks", row * row_frames, frames)
        audio = speech_like(samples / geometry.sampling_rate, seed + row, geometry.sampling_rate)
        rows.append(upstream.encode_latents(model, torch.from_numpy(audio[None, None]))[0].T)
    return torch.cat(rows)


@torch.no_grad()
def _fit_codebooks(
    tensors: dict[str, Tensor], latents: Tensor, geometry: Geometry, seed: int, progress: Advance
) -> None:
    """Fill the codebooks level by level with samples of what the levels before have left, and noise.

    Semantic and acoustic quantisers each see the whole latents, as upstream's split quantiser encodes.
    """
    done = 0
    semantic = geometry.num_semantic_quantizers
    for name, levels in (("semantic", semantic), ("acoustic", geometry.num_quantizers - semantic)):
        prefix = f"quantizer.{name}_residual_vector_quantizer"
        projection = tensors.get(f"{prefix}.input_proj.weight")
        residual = latents if projection is None else latents @ projection[:, :, 0].T
        for level in range(levels):
            progress("fitting codebooks", done, geometry.num_quantizers)
            done += 1
            key = f"{prefix}.layers.{level}.codebook"
            codebook = _codebook(residual, geometry.codebook_size, key, seed)
            nearest = (residual @ codebook.T - codebook.square().sum(1) / 2).argmax(1)
            residual = residual - codebook[nearest]
            # Upstream keeps a running sum and count of each cluster, and divides one by the other.
            usage = 3.0 + 1.5 * torch.from_numpy(_uniform(f"{key}.cluster_usage", (len(codebook),), seed)).float()
            tensors[f"{key}.cluster_usage"].copy_(usage)
            tensors[f"{key}.embed_sum"].copy_(codebook * usage[:, None])


def _codebook(residual: Tensor, size: int, name: str, seed: int) -> Tensor:
    """Entries `[size, D]` for one level, made for what is left of the latents, `residual` `[frames, D]`.

    An entry is the mean of the frames and a random mixture of all of them, so entries spread as the residual does
    without holding any frame of it: with the frames themselves as entries, the last levels would fit these frames
    and no other speech. All mixtures are equally long, or the short ones would be chosen most of the time, and their
    length is the one that takes most from the residual.
    """
    mean = residual.mean(0)
    centred = residual - mean
    weights = torch.from_numpy(_uniform(f"{name}.mixture", (size, len(residual)), seed)).float()
    mixtures = nn.functional.normalize(weights @ centred, dim=1)
    length = (centred @ mixtures.T).amax(1).mean()
    return mean + length * mixtures


@torch.no_grad()
def _set_decoder_level(model: MimiModel, tensors: dict[str, Tensor], latents: Tensor, geometry: Geometry) -> None:
    """Scale the last convolution so that decoded speech has the wished level and no offset."""
    last = max(int(name.split(".")[2]) for name in tensors if name.startswith("decoder.layers."))
    weight, bias = tensors[f"decoder.layers.{last}.conv.weight"], tensors[f"decoder.layers.{last}.conv.bias"]
    frames = min(len(latents), max(1, round(4 * geometry.frame_rate)))
    codes = upstream.quantize_latents(model, latents[None, :frames].mT, min(8, geometry.num_quantizers))
    audio = upstream.decode(model, codes) - bias
    scale = DECODER_RMS / float(audio.std())
    weight.mul_(scale)
    bias.fill_(-scale * float(audio.mean()))
