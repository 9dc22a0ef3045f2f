"""The first use of a graph on a machine: is the file harmless, and does it compute here what it should?

A processor or an onnxruntime that computes something else says nothing. So before a stream is made, one call of the
golden clip is replayed, and what is grossly wrong is refused; `mimi-export verify` replays all of it. That it was right
is kept for the file as it is, this processor, this onnxruntime and what computes in it, so that it costs a call only
once.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime as ort

from mimi_export.contract.directory import Artifact
from mimi_export.contract.files import cache_root
from mimi_export.contract.spec import GraphKind
from mimi_export.errors import ParityError
from mimi_export.runtime.graph_file import check_graph_file
from mimi_export.runtime.processor import fingerprint
from mimi_export.runtime.replay import GOLDEN_NAME, cause, check_rate, read_golden, run_clip, snr_db
from mimi_export.runtime.session import GraphSession, provider_name

FOLDER = "first-use"
# Of the codes of one call, and of its latents or audio in dB: rounding to 8 bits leaves 0.7 and 33 at least, sums that
# saturate 0.17 and 9.
LEAST_EQUAL, LEAST_DB = 0.3, 20.0


def open_checked(
    artifact: Artifact, kind: GraphKind, open_graph: Callable[[], GraphSession], providers: Sequence[str]
) -> GraphSession:
    """Open a graph, and check file and result where that was not done on this machine with these providers.

    Raises:
        ConfigError: onnxruntime has no such provider here.
        GraphError: the file is damaged, wants what no graph of ours does, is for another rate, or does not load.
        ParityError: it computes something else than where it was made.
    """
    path = artifact.graph_path(kind)
    stamp = cache_root() / FOLDER / _name(artifact, path, providers)
    known = stamp.exists()
    if not known:
        check_graph_file(path)
    graph = open_graph()
    check_rate(artifact, graph)
    if not known:
        _compare(artifact, graph)
        with contextlib.suppress(OSError):  # a cache that cannot be written: the next process looks again
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.touch()
    return graph


def _name(artifact: Artifact, path: Path, providers: Sequence[str]) -> str:
    facts, entry = path.stat(), artifact.manifest.files[path.name]
    computing = f"{ort.__version__} {[provider_name(name) for name in providers]} {fingerprint()}"
    what = f"{entry.sha256} {facts.st_size} {facts.st_mtime_ns} {computing}"
    return hashlib.sha256(what.encode()).hexdigest()[:32]


def _compare(artifact: Artifact, graph: GraphSession) -> None:
    """Replay the first call of the golden clip; nothing where an older variant has none."""
    if GOLDEN_NAME not in artifact.manifest.files:
        return
    clip, size = read_golden(artifact), artifact.geometry.frame_size
    frames = graph.spec.shape.frames_per_call or 1
    begin = {"audio": slice(frames * size), "decoded": slice(frames * size), "latents": slice(frames)}
    clip = {name: array[begin[name]] if name in begin else array[:, :frames] for name, array in clip.items()}
    wrong = None
    for name, found in run_clip(graph, clip).items():
        if name == "codes":
            right = float((found == clip[name]).mean())
            wrong = f"{100 * right:.0f} % of the codes" if right < LEAST_EQUAL else wrong
        else:
            level, what = snr_db(clip[name], found), "audio" if name == "decoded" else name
            wrong = f"{what} of {level:.0f} dB" if not level >= LEAST_DB else wrong
    if wrong:
        raise ParityError(f"{graph.path} gives {wrong} of its golden clip's beginning here; {cause(artifact.manifest)}")
