"""Graphs as onnxruntime has optimised and packed them for this processor, kept in a folder between runs.

Loading then skips both, and maps weights instead of copying them: it takes a third of the processor time, and processes
on one machine share the memory. The price is the first load, and disk: twice the graph. What is kept belongs to the
graph's file as it is, to this processor and to this onnxruntime; anything else makes it anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from mimi_export.contract.files import atomic_directory
from mimi_export.runtime.processor import fingerprint

GRAPH, WEIGHTS, STAMP = "graph.onnx", "weights.bin", "made-of.txt"
_CONFIG = {
    "session.optimized_model_external_initializers_file_name": WEIGHTS,
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    "session.save_external_prepacked_constant_initializers": "1",  # onnxruntime before 1.21 keeps them unpacked
}


def prepare(path: Path, folder: Path, settings: Mapping[str, str]) -> Path:
    """The prepared form of a graph, which is made unless it is there already; load it without any optimisation.

    Args:
        path: the graph.
        folder: where it is kept; it is made.
        settings: of the session that optimises it.

    Raises:
        OutputError: the folder cannot be written.
    """
    facts = path.stat()
    stamp = f"{path.resolve()}\n{facts.st_size} bytes, changed {facts.st_mtime_ns}\n"
    parts = [str(path.resolve()), ort.__version__, fingerprint(), *(f"{key} {settings[key]}" for key in settings)]
    name = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
    directory = folder / f"{path.stem}-{name}"
    if not ((directory / STAMP).is_file() and (directory / STAMP).read_text("utf-8") == stamp):
        with atomic_directory(directory, force=True, marker=STAMP) as temporary:
            options = ort.SessionOptions()
            options.log_severity_level = 4
            options.optimized_model_filepath = str(temporary / GRAPH)
            for key, value in {**_CONFIG, **settings}.items():
                options.add_session_config_entry(key, value)
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            (temporary / STAMP).write_text(stamp, "utf-8")
    return directory / GRAPH
