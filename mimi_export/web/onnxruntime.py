"""The files of onnxruntime-web that a site needs, so that it fetches nothing from elsewhere.

They are taken from a directory that is given, else from the cache, else fetched once by npm; the package's hash has to
be the one below.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

from mimi_export.contract.files import atomic_directory, cache_root, scratch_directory
from mimi_export.errors import MissingPackageError

VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)


def find_onnxruntime_web(directory: Path | None = None) -> Path:
    """The directory with `FILES`: `directory` or its `dist`, else the cache, which npm fills the first time.

    Raises:
        MissingPackageError: a file is not in `directory`; npm is not installed, or cannot fetch the package.
        OutputError: the cache cannot be written.
    """
    if directory is not None:
        for place in (directory, directory / "dist"):
            if all((place / name).is_file() for name in FILES):
                return place
        missing = next(name for name in FILES if not (directory / name).is_file())
        raise MissingPackageError(f"{directory} has no {missing}; name the directory of onnxruntime-web {VERSION}")
    cache = cache_root() / f"onnxruntime-web-{VERSION}"
    if not all((cache / name).is_file() for name in FILES):
        _fetch(cache)
    return cache


def _fetch(cache: Path) -> None:
    how = f"get onnxruntime-web {VERSION} elsewhere and name its directory with --onnxruntime-web"
    if shutil.which("npm") is None:
        raise MissingPackageError(f"npm is not installed, which fetches onnxruntime-web; install Node, or {how}")
    with scratch_directory("npm") as folder:
        command = ["npm", "pack", f"onnxruntime-web@{VERSION}", "--silent", "--pack-destination", folder]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        archive = next(Path(folder).glob("*.tgz"), None)
        if run.returncode or archive is None:
            said = (run.stderr.strip().splitlines() or ["no reason given"])[0]
            raise MissingPackageError(f"npm cannot fetch onnxruntime-web {VERSION}: {said}; {how}")
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if f"sha512-{digest}" != INTEGRITY:
            raise MissingPackageError(f"what npm gave is not onnxruntime-web {VERSION}: its hash is another; {how}")
        with atomic_directory(cache, force=True, marker=FILES[0]) as temporary, tarfile.open(archive) as package:
            for name in FILES:
                content = package.extractfile(f"package/dist/{name}")
                if content is None:
                    raise MissingPackageError(f"onnxruntime-web {VERSION} has no {name}; {how}")
                (temporary / name).write_bytes(content.read())
