"""Who takes part in a benchmark, and what each needs before it can start.

Every contender runs in a process of its own, so that its load time and memory are its own and a library of one
cannot slow another down. All have the same weights: the baseline and the peers get them from one checkpoint.
"""

from __future__ import annotations

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
from mimi_export.contract.files import atomic_directory, cache_root, sha256
from mimi_export.contract.progress import Progress
from mimi_export.contract.spec import GRAPH_KINDS, GraphKind
from mimi_export.errors import ConfigError

if TYPE_CHECKING:
    from mimi_export.model.checkpoint import Checkpoint

Group = Literal["ours", "public", "peer"]

OWN_PYTHON_PEERS = ("transformers-streaming", "transformers-batch")
OTHER_PYTHON_PEERS = ("moshi", "rustymimi")


@dataclass(frozen=True)
class Contender:
    """One way to run Mimi.

    `path` is the variant directory of one that is graphs, or a peer's weights; `python` belongs to a peer. `layout`,
    `precision` and `frames_per_call` are what the manifest says, and empty for a peer.
    """

    name: str
    group: Group
    path: Path
    python: str = sys.executable
    layout: str = ""
    precision: str = ""
    frames_per_call: int = 1
    num_codebooks: int = 8
    directions: tuple[GraphKind, ...] = GRAPH_KINDS

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
            if self.group != "peer":
                command = [f"{package.name}.bench.graphs", str(self.path.resolve()), direction, *command]
                command += ["--provider", provider]
                command += [] if audio is None else ["--audio", str(audio)]
                paths = [str(package.parent), os.environ.get("PYTHONPATH")]
                environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
            else:
                command = [f"{package.name}.bench.peers", self.name, direction, *command]
                command += ["--weights", str(self.path.resolve()), "--codebooks", str(self.num_codebooks)]
                shutil.copytree(package, Path(folder) / package.name, ignore=shutil.ignore_patterns("__pycache__"))
                environment |= {"PYTHONPATH": folder, "PYTHONNOUSERSITE": "1"}
            with ContenderProcess(
                self.name, [self.python, "-m", *command], environment, huge_pages=huge_pages
            ) as process:
                yield process

    def sizes(self, direction: GraphKind) -> tuple[int | None, int | None]:
        """Bytes of the graph of one direction, and of the weights that a call reads; a peer has none."""
        if self.group == "peer":
            return None, None
        path = load_artifact(self.path).graph_path(direction)
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
    artifacts = [load_artifact(directory) for directory in directories]
    first, count = artifacts[0], next(filter(None, (one.manifest.shape.num_codebooks for one in artifacts)), 0)
    for artifact in artifacts:
        name, manifest, shape = artifact.path.resolve().name, artifact.manifest, artifact.manifest.shape
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
        described = (shape.layout, manifest.precision, shape.frames_per_call or 1, shape.num_codebooks, shape.kinds)
        found[name] = Contender(name, "ours", artifact.path, sys.executable, *described)
    return list(found.values())


def baseline_contenders(
    model: str,
    load: Callable[[], Checkpoint],
    num_codebooks: int,
    *,
    public: bool,
    peers: bool,
    peers_python: str | None,
    progress: Progress,
) -> list[Contender]:
    """The public design and the peers with the weights that `load` gives; the arguments are those of `benchmark`.

    Their files are made on first use and kept in the user's cache, by a hash of what they are made from.

    Raises:
        ConfigError: peers were asked for and the model has other sizes than Kyutai's, which they have built in; or
            there is no such interpreter.
        CheckpointError: the weights cannot be had.
    """
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
    folder = cache_root() / f"bench-{checkpoint.sha256()[:16]}"
    found, contender = [], partial(Contender, num_codebooks=num_codebooks)
    if public:
        code = sha256(Path(package_file).parent / "bench" / "baseline.py")[:8]
        directory = folder / f"{PUBLIC}-{num_codebooks}cb-{code}"
        if not directory.exists():
            export_public_design(checkpoint, directory, num_codebooks, progress=progress)
        found.append(contender(PUBLIC, "public", directory, layout="growing", precision="fp32"))
    if peers:
        weights = folder / "huggingface"
        if not weights.exists():
            progress("writing weights for transformers")
            with atomic_directory(weights) as temporary, quiet_transformers():
                checkpoint.model.save_pretrained(temporary)
        for name in OWN_PYTHON_PEERS:
            directions = tuple(kind for kind in GRAPH_KINDS if kind in PEERS[name].directions)
            found.append(contender(name, "peer", weights, directions=directions))
    if peers_python is not None:
        folder.mkdir(parents=True, exist_ok=True)
        kyutai = folder / "kyutai.safetensors"
        if not kyutai.exists():
            progress("writing weights for moshi and rustymimi")
            save_kyutai(checkpoint.model, kyutai)
        found += [contender(name, "peer", kyutai, peers_python) for name in OTHER_PYTHON_PEERS]
    return found
