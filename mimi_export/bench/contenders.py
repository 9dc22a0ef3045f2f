"""Who takes part in a benchmark, and what each needs before it can start.

Every contender runs in a process of its own, so that its load time and memory are its own and a library of one
cannot slow another down. All have the same weights: the baseline and the peers get them from one checkpoint.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mimi_export import __file__ as package_file
from mimi_export.bench.graphs import PUBLIC
from mimi_export.bench.peers import CODEBOOK_SIZE, FRAME_SIZE, PEERS
from mimi_export.bench.process import ContenderProcess
from mimi_export.contract.directory import load_artifact
from mimi_export.contract.files import atomic_directory, sha256
from mimi_export.contract.progress import Progress
from mimi_export.contract.spec import GRAPH_KINDS, GraphKind
from mimi_export.errors import ConfigError

if TYPE_CHECKING:
    from mimi_export.model.checkpoint import Checkpoint

logger = logging.getLogger(__name__)
Group = Literal["ours", "public", "peer"]

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
    kinds: tuple[GraphKind, ...] = GRAPH_KINDS

    @property
    def directions(self) -> tuple[str, ...]:
        """What it can do."""
        return self.kinds if self.directory is not None else PEERS[self.name].directions

    @contextmanager
    def start(
        self,
        direction: GraphKind,
        threads: int,
        audio: Path | None = None,
        huge_pages: bool = False,
        provider: str = "cpu",
    ) -> Iterator[ContenderProcess]:
        """Run its process for one direction; `provider` is for graphs, a peer keeps to the processor.

        A peer's environment needs the peer and numpy. It gets this package as a copy of the sources on its path and not
        through our `site-packages`, which would put our torch before its own.

        Raises:
            MimiExportError: it does not load, or is not installed (`MissingPackageError`).
        """
        package = Path(package_file).parent
        command = ["--threads", str(threads)]
        # Some libraries count their threads when the process starts, before its first line can say a word.
        environment = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS", "RAYON")}
        with tempfile.TemporaryDirectory(prefix="mimi-export-peer-") as folder:
            if self.directory is not None:
                command = [f"{package.name}.bench.graphs", str(self.directory.resolve()), direction, *command]
                command += ["--provider", provider]
                command += [] if audio is None else ["--audio", str(audio)]
                paths = [str(package.parent), os.environ.get("PYTHONPATH")]
                environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
            elif self.weights is not None:
                command = [f"{package.name}.bench.peers", self.name, direction, *command]
                command += ["--weights", str(self.weights.resolve()), "--codebooks", str(self.num_codebooks)]
                shutil.copytree(package, Path(folder) / package.name, ignore=shutil.ignore_patterns("__pycache__"))
                environment |= {"PYTHONPATH": folder, "PYTHONNOUSERSITE": "1"}
            else:
                raise ConfigError(f"{self.name} has neither graphs nor weights")
            with ContenderProcess(
                self.name, [self.python, "-m", *command], environment, huge_pages=huge_pages
            ) as process:
                yield process

    def sizes(self, direction: GraphKind) -> tuple[int | None, int | None]:
        """Bytes of the graph of one direction, and of the weights that a call reads; a peer has none."""
        if self.directory is None:
            return None, None
        path = load_artifact(self.directory).graph_path(direction)
        return path.stat().st_size, weight_bytes(path)


def weight_bytes(path: Path) -> int:
    """Bytes of the weights that one call of a graph reads.

    Tables that are only looked up are left out, because a call takes a few of their rows. Half-precision weights count
    as the float32 that onnxruntime makes of them when it loads the graph.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    uses = [(name, node.op_type) for node in graph.node for name in node.input]
    tables = {name for name, operator in uses if operator == "Gather"}
    tables -= {name for name, operator in uses if operator != "Gather"}
    total = 0
    for tensor in graph.initializer:
        size = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
        half = tensor.data_type == onnx.TensorProto.FLOAT16
        total += 0 if tensor.name in tables else math.prod(tensor.dims) * (4 if half else size)
    return total


def variant_contenders(directories: Sequence[Path]) -> list[Contender]:
    """One contender for each variant directory.

    Raises:
        ArtifactError: a directory is no variant.
        ConfigError: variants of different models or numbers of codebooks, which cannot be compared; equal names; or a
            fixed batch.
    """
    found: dict[str, Contender] = {}
    first = load_artifact(directories[0])
    counts = (load_artifact(directory).manifest.shape.num_codebooks for directory in directories)
    count = next(filter(None, counts), 0)
    for directory in directories:
        artifact, name = load_artifact(directory), directory.resolve().name
        manifest, shape = artifact.manifest, artifact.manifest.shape
        if shape.rows is not None:
            raise ConfigError(
                f"{artifact.path} has a fixed batch of {shape.rows}; the benchmark compares batches, so it needs a "
                "variant exported without --rows"
            )
        if name in found:
            raise ConfigError(
                f"two variant directories are called {name}; rename one, their rows could not be told apart"
            )
        for what, one, two in (
            ("codebooks", count, shape.num_codebooks or count),
            ("source", first.manifest.source, manifest.source),
            ("geometry", first.geometry, artifact.geometry),
        ):
            if one != two:
                raise ConfigError(
                    f"{first.path} and {artifact.path} differ in {what}, so their times would not compare; give "
                    "variants of one model with one number of codebooks"
                )
        frames = shape.frames_per_call or 1
        described = (shape.layout, manifest.precision, frames, shape.num_codebooks, shape.kinds)
        found[name] = Contender(name, "ours", directory, None, sys.executable, *described)
    return list(found.values())


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
    from mimi_export.bench.baseline import export_public_design
    from mimi_export.model.kyutai import save_kyutai
    from mimi_export.model.upstream import quiet_transformers

    progress(f"loading {model}")
    checkpoint = load()
    sizes = checkpoint.geometry.frame_size, checkpoint.geometry.codebook_size
    if (peers or peers_python) and sizes != (FRAME_SIZE, CODEBOOK_SIZE):
        raise ConfigError(
            f"{model} has frames of {sizes[0]} samples and {sizes[1]} codebook entries, the other programs only run "
            f"Kyutai's {FRAME_SIZE} and {CODEBOOK_SIZE}; leave them out with --no-peers"
        )
    folder = cache / f"bench-{checkpoint.sha256()[:16]}"
    found, contender = [], partial(Contender, num_codebooks=num_codebooks)
    if public:
        code = sha256(Path(package_file).parent / "bench" / "baseline.py")[:8]
        directory = folder / f"{PUBLIC}-{num_codebooks}cb-{code}"
        if not directory.exists():
            export_public_design(checkpoint, directory, num_codebooks, progress=progress)
        found.append(contender(PUBLIC, "public", directory, layout="growing", precision="fp32"))
    if peers:
        weights = folder / _HUGGING_FACE
        if not weights.exists():
            progress("writing weights for transformers")
            with atomic_directory(weights) as temporary, quiet_transformers():
                checkpoint.model.save_pretrained(temporary)
        found += [contender(name, "peer", None, weights) for name in OWN_PYTHON_PEERS]
    if peers_python is not None:
        folder.mkdir(parents=True, exist_ok=True)
        kyutai = folder / _KYUTAI
        if not kyutai.exists():
            progress("writing weights for moshi and rustymimi")
            save_kyutai(checkpoint.model, kyutai)
        found += [contender(name, "peer", None, kyutai, peers_python) for name in OTHER_PYTHON_PEERS]
    return found
