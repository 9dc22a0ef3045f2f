"""Put a site together: the page, onnxruntime-web's files, and variants under `models/`.

A site holds

    index.html app.js worker.js sound.js worklet.js style.css     the page, from `mimi_export/web/page`
    speech.ogg             the built-in sample
    sw.js                  the service worker, which knows the version and the names of all that
    runtime/               of onnxruntime-web
    models/NAME/           variant directories, checked
    variants.json          what the page offers, written last
    README.md              for a static Space of the Hugging Face Hub: the headers that threads need
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimi_export.contract.directory import Artifact, load_artifact
from mimi_export.contract.files import atomic_directory, refuse_taken
from mimi_export.errors import ArtifactError, ConfigError
from mimi_export.runtime.replay import GOLDEN_NAME
from mimi_export.web.onnxruntime import FILES, find_onnxruntime_web

PAGE = Path(__file__).parent / "page"
SAMPLE = "speech.ogg"
LIST = "variants.json"
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_README = """---
title: Mimi, live
sdk: static
app_file: index.html
custom_headers:
  cross-origin-opener-policy: same-origin
  cross-origin-embedder-policy: require-corp
  cross-origin-resource-policy: cross-origin
---

A static site made by `mimi-export web`: it runs {names} in the browser. Any web server will do.
"""


@dataclass(frozen=True)
class Site:
    """What was written: bytes of the page alone, of onnxruntime-web's files, and of each variant that is offered."""

    page_bytes: int
    runtime_bytes: int
    variants: Sequence[dict[str, Any]]


def build_site(
    directories: Sequence[Path],
    site: Path,
    onnxruntime_web: Path | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Site:
    """Write a site that offers variants, the first one first.

    Raises:
        ArtifactError: a directory is no variant, or was changed.
        ConfigError: the page cannot run a variant, or two have one name.
        MissingPackageError: onnxruntime-web's files cannot be had.
        OutputError: the site exists and `force` is not given, or cannot be written.
    """
    refuse_taken(site, force, LIST)
    progress("checking the variants")
    artifacts = [_checked(directory) for directory in directories]
    names = [artifact.path.resolve().name for artifact in artifacts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two variants are called {twice}; rename one of the directories")
    progress("looking for onnxruntime-web")
    runtime = find_onnxruntime_web(onnxruntime_web)
    progress(f"writing {site}")
    with atomic_directory(site, force, LIST) as folder:
        for path in sorted(_page_files()):
            shutil.copyfile(path, folder / path.name)
        page = [path.name for path in folder.iterdir()]
        page_bytes = sum((folder / name).stat().st_size for name in page)
        (folder / "runtime").mkdir()
        for name in FILES:
            shutil.copyfile(runtime / name, folder / "runtime" / name)
        for artifact, name in zip(artifacts, names, strict=True):
            for file in ("manifest.json", *artifact.manifest.files):
                target = folder / "models" / name / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact.path / file, target)
        listed = [_entry(artifact, name) for artifact, name in zip(artifacts, names, strict=True)]
        (folder / "README.md").write_text(_README.format(names=", ".join(names)), encoding="utf-8")
        (folder / LIST).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
        _write_service_worker(folder, page)
    return Site(page_bytes, sum((runtime / name).stat().st_size for name in FILES), listed)


def _checked(directory: Path) -> Artifact:
    artifact = load_artifact(directory, verify_hashes=True)
    manifest, shape = artifact.manifest, artifact.manifest.shape
    if GOLDEN_NAME not in manifest.files:
        raise ArtifactError(f"{directory} has no golden clip ({GOLDEN_NAME}); export it again with this program")
    if not shape.num_codebooks or shape.start != "codes":
        raise ConfigError(f"{directory} has no decoder of codes, and the page needs one; export it with --head codes")
    if shape.rows not in (None, 1) or shape.frames_per_call not in (None, 1):
        raise ConfigError(f"{directory} runs several rows or frames in a call; the page needs one of each")
    return artifact


def _page_files() -> list[Path]:
    sample = PAGE / SAMPLE  # in an installation; in a clone it lies with the scripts
    if not sample.is_file():
        sample = PAGE.parents[2] / "scripts" / "clips" / SAMPLE
    return [*(path for path in PAGE.iterdir() if path.name != SAMPLE), sample]


def _entry(artifact: Artifact, name: str) -> dict[str, Any]:
    manifest = artifact.manifest
    needed = [*(spec.file_name for spec in manifest.specs.values()), GOLDEN_NAME]
    return {
        "path": name,
        "name": manifest.name,
        "precision": manifest.precision,
        "codebooks": manifest.shape.num_codebooks,
        "bytes": sum(manifest.files[file].bytes for file in needed),
        "caution": manifest.source.caution,
    }


def _write_service_worker(folder: Path, page: Sequence[str]) -> None:
    """Give it the names of what it keeps, and a version that changes with any of it."""
    kept = sorted({*page, LIST, *(f"runtime/{name}" for name in FILES[:3])} - {"sw.js"})
    digest = hashlib.sha256()
    for name in (*kept, "sw.js", *(f"runtime/{file}" for file in FILES[3:])):
        digest.update((folder / name).read_bytes())
    shell = json.dumps({"version": digest.hexdigest()[:16], "files": kept})
    path = folder / "sw.js"
    path.write_text(f"self.SHELL={shell};\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
