"""Publish: send what the Hub lacks in one commit, fetch all of it again, and check what came back.

Safe to repeat and to interrupt: the repository changes in one commit or not at all, files that it has are not sent,
and large files that arrived before an interruption are in the Hub's storage and not sent twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mimi_export.contract.files import scratch_directory, sha256
from mimi_export.contract.progress import Progress
from mimi_export.errors import HubError
from mimi_export.hub.client import Client
from mimi_export.hub.plan import LocalFile, Remote, make_plan
from mimi_export.hub.subjects import Subject
from mimi_export.remote.retry import retried
from mimi_export.runtime.golden import verify_batch, verify_variant

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """What was done: the commit, `sent` files, 0 where the Hub had everything, and those `verified`."""

    revision: str
    sent: int
    bytes_sent: int
    verified: int


def upload(
    client: Client,
    subjects: Sequence[Subject],
    files: Sequence[LocalFile],
    *,
    private: bool | None = None,
    revision: str | None = None,
    as_request: bool = False,
    verify: bool = True,
    progress: Progress = logger.info,
) -> Published:
    """Publish `files`, which were collected from `subjects`.

    Args:
        client: the repository.
        subjects: the directories, verified after the download.
        files: all files of the publication.
        private: make a new repository private; one that is public is refused.
        revision: branch to write to, made from `main` where it is missing.
        as_request: open a pull request instead of writing to the branch.
        verify: download everything afterwards and check it.
        progress: told of each step.

    Raises:
        HubError: anything that goes wrong between here and the Hub.
    """
    progress(f"logged in as {client.require_login()}")
    remote = client.read(revision)
    if remote.head is None:
        progress(f"creating {client.repo_id}")
        client.create(private)
        remote = client.read(revision)
    elif private and remote.private is False:
        raise HubError(
            f"{client.repo_id} exists and is public; --private only makes new repositories private. "
            "Change it in its settings, or choose another name"
        )
    if revision is not None and not remote.has_revision and not as_request:
        client.create_branch(revision)
        remote = client.read(revision)
    title = f"Publish {', '.join(subject.name for subject in subjects)}"
    known: Remote | None = remote
    sent: list[LocalFile] = []

    def send() -> str:
        """Commit what is missing; the revision that holds it all."""
        nonlocal known, sent
        state = client.read(revision) if known is None else known
        known = None  # after an error the commit may have been made although its answer was lost: look again
        plan = make_plan(client.repo_id, files, state)
        if not plan.to_send:
            progress("the Hub has everything")
            return str(state.head)
        if as_request:
            for reference, there in client.open_requests(title):
                if not make_plan(client.repo_id, files, Remote(reference, files=there)).to_send:
                    progress(f"{reference} is open and holds everything")
                    return reference
        sent = plan.to_send
        progress(f"sending {len(sent)} files, {plan.bytes_to_send / 2**20:.1f} MiB")
        info = client.commit(sent, title, state.head, revision, as_request)
        return str(info.pr_revision or info.oid)

    commit = retried("send", send)
    count = _verify(client, subjects, files, commit, progress) if verify else 0
    return Published(commit, len(sent), sum(file.size for file in sent), count)


def _verify(
    client: Client, subjects: Sequence[Subject], files: Sequence[LocalFile], revision: str, progress: Progress
) -> int:
    """Download every file, compare it with what was sent, and run the variants' own verification on the copy."""
    with scratch_directory("hub") as name:
        folder = Path(name)
        for file in files:
            progress(f"downloading {file.name}")
            path = client.download(file.name, revision, folder)
            found = sha256(path)
            if found != file.sha256:
                raise HubError(
                    f"the Hub gave back another {file.name} than was sent: its SHA-256 begins {found[:12]}, expected "
                    f"{file.sha256[:12]}; run the command again, and if that repeats delete the file on the Hub"
                )
        for subject in subjects:
            progress(f"verifying {subject.name}")
            if subject.batch is not None:
                verify_batch(folder)
            else:
                verify_variant(folder / subject.prefix)
    return len(files)
