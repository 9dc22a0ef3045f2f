"""A variant from the Hub without PyTorch: found, fetched into a cache, every file checked against the manifest.

    <cache>/hub/USER/NAME/refs/<revision>          the commit that a branch or tag had when it was last asked for
    <cache>/hub/USER/NAME/<commit>/<variant>/      a complete variant directory, or nothing
    <cache>/hub/parts/<SHA-256>                    what has arrived of a file when a run was interrupted

A run goes on where an earlier one stopped. Processes that want the same variant do not disturb each other: each writes
files of its own and renames them.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from mimi_export.contract.directory import load_artifact, read_manifest
from mimi_export.contract.files import BLOCK_BYTES, atomic_directory, atomic_file, cache_root, sha256
from mimi_export.contract.manifest import MANIFEST_NAME, FileEntry
from mimi_export.contract.progress import Advance, no_progress
from mimi_export.errors import ConfigError, HubError, TransientError
from mimi_export.remote import http
from mimi_export.remote.retry import retried

MOST_MANIFEST = 4 << 20  # bytes
ABANDONED_SECONDS = 60.0  # since a part was last written to: its process is gone

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Place(NamedTuple):
    """Where a variant is on the Hub; `variant` may be left out where a repository holds one only."""

    repository: str
    variant: str | None = None

    @classmethod
    def of(cls, repository: str, variant: str | None) -> Place:
        """Check both; `ConfigError` for what is no name on the Hub."""
        if not _REPOSITORY.fullmatch(repository) or (variant is not None and not _NAME.fullmatch(variant)):
            text = "/".join(filter(None, (repository, variant)))
            raise ConfigError(f"{text!r} is no place on the Hub, expected USER/NAME or USER/NAME/VARIANT")
        return cls(repository, variant)

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read `USER/NAME` or `USER/NAME/VARIANT`; errors as for `of`."""
        user, _, rest = text.partition("/")
        name, slash, variant = rest.partition("/")
        return cls.of(f"{user}/{name}", variant if slash else None)


class Fetched(NamedTuple):
    """A variant in the cache, and the commit that it is from."""

    path: Path
    commit: str


def fetch_variant(place: Place, revision: str = "main", progress: Advance = no_progress) -> Fetched:
    """Bring a variant into the cache (see `cache_root`); what is there already is not fetched again.

    Without a connection, or with `$HF_HUB_OFFLINE`, the cache alone is used.

    Args:
        place: the repository, and which of its variants.
        revision: branch, tag or commit.
        progress: told the step, and bytes done of all.

    Raises:
        HubError: not there, not allowed, not reachable, or other content than the manifest says.
        ArtifactError: what is there is no variant of this format.
        OutputError: the cache cannot be written.
    """
    root = cache_root() / "hub"
    home = root / place.repository
    if _COMMIT.fullmatch(revision) and place.variant and (home / revision / place.variant).is_dir():
        return Fetched(home / revision / place.variant, revision)
    reference = home / "refs" / quote(revision, safe="")
    try:
        commit, names = _ask(place.repository, revision)
    except TransientError as error:
        known = reference.read_text("ascii") if reference.is_file() else revision
        return _cached(home, place, known, str(error))
    variant = _chosen(place, [name.rpartition("/")[0] for name in names if name.count("/") == 1])
    target = home / commit / variant
    if not target.is_dir():
        with atomic_directory(target, force=True) as directory:
            _fetch(f"/{place.repository}/resolve/{commit}/{quote(variant)}", directory, root / "parts", progress)
    reference.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(reference, force=True) as temporary:
        temporary.write_text(commit, "ascii")
    return Fetched(target, commit)


def _ask(repository: str, revision: str) -> tuple[str, list[str]]:
    """The commit of a revision, and the paths of the manifests in it."""
    what = f"read {repository}"
    if http.is_offline():
        raise TransientError(f"HF_HUB_OFFLINE is set, so {repository} is not asked for; unset it to {what}")
    answer = http.get_json(f"/api/models/{repository}/revision/{quote(revision, safe='')}", what)
    try:
        commit, names = answer["sha"], [entry["rfilename"] for entry in answer["siblings"]]
    except (KeyError, TypeError) as error:
        raise http.odd_answer(what, str(error)) from error
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise http.odd_answer(what, f"{str(commit)[:50]!r} is no commit")
    return commit, [name for name in names if isinstance(name, str) and name.endswith(f"/{MANIFEST_NAME}")]


def _chosen(place: Place, found: list[str]) -> str:
    names = sorted(name for name in found if _NAME.fullmatch(name))
    if place.variant in names:
        return str(place.variant)
    if place.variant is None and len(names) == 1:
        return names[0]
    if not names:
        raise HubError(f"{place.repository} holds no variant of mimi-export (no directory with a {MANIFEST_NAME})")
    listed = ", ".join(names[:20])
    if place.variant is None:
        raise HubError(f"{place.repository} holds several variants, name one: {place.repository}/VARIANT of {listed}")
    raise HubError(f"{place.repository} has no variant {place.variant}; it holds {listed}")


def _cached(home: Path, place: Place, commit: str, reason: str) -> Fetched:
    """What an earlier run left of this commit."""
    there = [path for path in (home / commit).glob("*") if not path.name.startswith(".")]
    for path in there:
        if path.name == place.variant or (place.variant is None and len(there) == 1):
            return Fetched(path, commit)
    raise HubError(f"{'/'.join(filter(None, place))} is not in the cache, and {reason}")


def _fetch(address: str, directory: Path, parts: Path, progress: Advance) -> None:
    """Fetch the manifest, then every file that it names, into `directory`."""
    what = f"download {MANIFEST_NAME}"
    (directory / MANIFEST_NAME).write_bytes(http.read(f"{address}/{MANIFEST_NAME}", what, MOST_MANIFEST))
    files = read_manifest(directory).files
    strange = [name for name, entry in files.items() if not _SHA256.fullmatch(entry.sha256)]
    if strange:
        raise HubError(f"the {MANIFEST_NAME} on the Hub has no SHA-256 for {', '.join(strange)}")
    total, done = sum(entry.bytes for entry in files.values()), 0

    def report(size: int) -> None:
        progress(f"downloading {name}", done + size, total)

    with ExitStack() as stack:
        parts_of = {}
        for name, entry in files.items():
            parts_of[name] = part = stack.enter_context(_part(parts, entry.sha256))
            retried(f"download {name}", partial(_go_on, f"{address}/{quote(name)}", name, entry, part, report))
            done += entry.bytes
        for name, part in parts_of.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            part.replace(directory / name)
    load_artifact(directory)


@contextmanager
def _part(parts: Path, name: str) -> Iterator[Path]:
    """A file of this process alone, holding what an earlier run left of `name`; what is not taken is left again."""
    parts.mkdir(parents=True, exist_ok=True)
    mine = parts / f"{name}.{secrets.token_hex(4)}"
    for left in (parts / name, *parts.glob(f"{name}.*")):
        try:
            if left.name == name or time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                left.replace(mine)
                break
        except OSError:
            continue  # another process took it
    mine.touch()
    try:
        yield mine
    finally:
        if mine.exists():
            mine.replace(parts / name)


def _go_on(address: str, name: str, entry: FileEntry, part: Path, report: Callable[[int], None]) -> None:
    """Fetch what `part` lacks of a file, and check the whole."""
    there = part.stat().st_size
    start = there if there < entry.bytes else 0
    if there != entry.bytes:
        with http.get(address, f"download {name}", start) as response:
            if response.status != 206:
                start = 0
            with part.open("r+b") as file:
                file.truncate(start)
                file.seek(start)
                while start < entry.bytes and (block := response.read(min(BLOCK_BYTES, entry.bytes - start))):
                    file.write(block)
                    start += len(block)
                    report(start)
        if start < entry.bytes:
            raise TransientError(f"the connection ended within {name}, at {start} of {entry.bytes} bytes; run it again")
    found = sha256(part)
    if found != entry.sha256:
        part.write_bytes(b"")  # nothing of it is worth keeping
        raise HubError(
            f"the Hub gave another {name} than its manifest says: its SHA-256 begins {found[:12]}, expected "
            f"{entry.sha256[:12]}; try again, and if that repeats tell those who published it"
        )
