"""Who takes part in a benchmark, and what each needs before it can start.

Every contender runs in a process of its own, so that its load time and memory are its own and a library of one
cannot slow another down. All have the same weights: the baseline and the peers get them from one checkpoint.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import mimi_export
from mimi_export.bench import worker
from mimi_export.bench.process import ContenderProcess
from mimi_export.contract.directory import Artifact, load_artifact
from mimi_export.contract.files import atomic_directory, sha256
from mimi_export.contract.spec import GraphKind
from mimi_export.errors import ConfigError

if TYPE_CHECKING:
    from mimi_export.model.checkpoint import Checkpoint

logger = logging.getLogger(__name__)
Progress = Callable[[str], None]
Group = Literal["ours", "public", "peer"]

PUBLIC = "public-design"
OWN_PYTHON_PEERS = ("transformers-streaming", "transformers-batch")
OTHER_PYTHON_PEERS = ("moshi", "rustymimi")
_HUGGING_FACE, _KYUTAI = "huggingface", "kyutai.safetensors"


@dataclass(frozen=True)
class Contender:
    """One way to run Mimi.

    `directory` is the variant of a contender that is graphs, else `None`; `weights` and `python` belong to a peer.
    `layout`, `precision` and `frames_per_call` are what the manifest says, and empty for a peer.
    """

    name: str
    group: Group
    directory: Path | None = None
    weights: Path | None = None
    python: str = sys.executable
    layout: str = ""
    precision: str = ""
    frames_per_call: int = 1
    num_codebooks: int = 8

    def start(
        self, direction: GraphKind, threads: int, audio: Path | None = None, huge_pages: bool = False
    ) -> ContenderProcess:
        """Start its process for one direction.

        Raises:
            MimiExportError: it does not load, or is not installed (`MissingPackageError`).
        """
        if self.directory is None:
            if self.weights is None:
                raise ConfigError(f"{self.name} has neither graphs nor weights")
            return ContenderProcess.peer(
                self.name, self.weights, self.python, threads, self.num_codebooks, huge_pages=huge_pages
            )
        command = [sys.executable, "-m", "mimi_export.bench.graph_worker", str(self.directory.resolve()), direction]
        command += ["--threads", str(threads), *([] if audio is None else ["--audio", str(audio)])]
        package = str(Path(mimi_export.__file__).parent.parent)
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        return ContenderProcess(self.name, command, environment, huge_pages=huge_pages)

    def file_bytes(self, direction: GraphKind) -> int | None:
        """Size of the graph of one direction."""
        return None if self.directory is None else load_artifact(self.directory).graph_path(direction).stat().st_size


def variant_contenders(directories: Sequence[Path], group: Group = "ours") -> list[Contender]:
    """One contender for each variant directory.

    Raises:
        ArtifactError: a directory is no variant.
        ConfigError: variants of different models or numbers of codebooks, which cannot be compared; equal names; or a
            fixed batch.
    """
    artifacts = [load_artifact(directory) for directory in directories]
    for artifact in artifacts:
        rows = artifact.manifest.shape.rows
        if rows is not None:
            raise ConfigError(
                f"{artifact.path} has a fixed batch of {rows}; the benchmark compares batches, so "
                "it needs a variant exported without --batch"
            )
    names = [directory.resolve().name for directory in directories]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two variant directories are called {name}; rename one, their rows could not be told apart"
            )
    for artifact in artifacts[1:]:
        _check_comparable(artifacts[0], artifact)
    return [
        Contender(
            name,
            group,
            directory,
            layout=artifact.manifest.shape.layout,
            precision=artifact.manifest.precision,
            frames_per_call=artifact.manifest.shape.frames_per_call or 1,
            num_codebooks=artifact.manifest.shape.num_codebooks,
        )
        for name, directory, artifact in zip(names, directories, artifacts, strict=True)
    ]


def baseline_contenders(
    model: str,
    load: Callable[[], Checkpoint],
    num_codebooks: int,
    cache: Path,
    *,
    public: bool = True,
    peers: bool = True,
    peers_python: str | None = None,
    progress: Progress = logger.info,
) -> list[Contender]:
    """The public design and the peers with the weights of `model`, whose files are made on first use and kept.

    Args:
        model: what messages call it.
        load: loads it.
        num_codebooks: codes a frame.
        cache: where the graphs and weights made for them are kept, by a hash of what they are made from.
        public: whether the public design takes part.
        peers: whether `transformers` does.
        peers_python: an interpreter of the environment with `moshi` and `rustymimi`, if they take part.
        progress: told of each step.

    Raises:
        ConfigError: peers were asked for and the model has other sizes than Kyutai's, which they have built in; or
            there is no such interpreter.
        CheckpointError: the weights cannot be had.
    """
    if not (public or peers or peers_python):
        return []
    if peers_python is not None and shutil.which(peers_python) is None:
        raise ConfigError(f"there is no program {peers_python}; give the python of an environment with the peers")
    from mimi_export.bench.baseline import NAME, export_public_design
    from mimi_export.model.kyutai import save_kyutai
    from mimi_export.model.upstream import quiet_transformers

    progress(f"loading {model}")
    checkpoint = load()
    sizes = checkpoint.geometry.frame_size, checkpoint.geometry.codebook_size
    if (peers or peers_python) and sizes != (worker.FRAME_SIZE, worker.CODEBOOK_SIZE):
        raise ConfigError(
            f"{model} has frames of {sizes[0]} samples and {sizes[1]} codebook entries, the other programs only run "
            f"Kyutai's {worker.FRAME_SIZE} and {worker.CODEBOOK_SIZE}; leave them out with --no-peers"
        )
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().contiguous().numpy().reshape(-1)).cast("B"))
    folder = cache / f"bench-{digest.hexdigest()[:16]}"
    found = []
    if public:
        code = sha256(Path(mimi_export.__file__).parent / "bench" / "baseline.py")[:8]
        directory = folder / f"{NAME}-{num_codebooks}cb-{code}"
        if not directory.exists():
            export_public_design(checkpoint, directory, num_codebooks, progress=progress)
        found += [Contender(NAME, "public", directory, layout="growing", precision="fp32", num_codebooks=num_codebooks)]
    if peers:
        weights = folder / _HUGGING_FACE
        if not weights.exists():
            progress("writing weights for transformers")
            with atomic_directory(weights) as temporary, quiet_transformers():
                checkpoint.model.save_pretrained(temporary)
        found += [Contender(name, "peer", None, weights, num_codebooks=num_codebooks) for name in OWN_PYTHON_PEERS]
    if peers_python is not None:
        folder.mkdir(parents=True, exist_ok=True)
        kyutai = folder / _KYUTAI
        if not kyutai.exists():
            progress("writing weights for moshi and rustymimi")
            save_kyutai(checkpoint.model, kyutai)
        found += [
            Contender(name, "peer", None, kyutai, peers_python, num_codebooks=num_codebooks)
            for name in OTHER_PYTHON_PEERS
        ]
    return found


def _check_comparable(first: Artifact, other: Artifact) -> None:
    for what, one, two in (
        ("codebooks", first.manifest.shape.num_codebooks, other.manifest.shape.num_codebooks),
        ("source", first.manifest.source, other.manifest.source),
        ("geometry", first.geometry, other.geometry),
    ):
        if one != two:
            raise ConfigError(
                f"{first.path} and {other.path} differ in {what}, so their times would not compare; "
                "give variants of one model with one number of codebooks"
            )
