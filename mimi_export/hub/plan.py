"""What would be sent: every file with size and hash, and whether the Hub has it already.

The Hub names a large file by the SHA-256 of its content and a small one by the hash that git gives it, so nothing has
to be downloaded to compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mimi_export.hub.card import model_card, report_text
from mimi_export.hub.subjects import Subject

CARD_NAME = "README.md"
REPORT_FILE = "parity_report.json"

Status = Literal["new", "changed", "unchanged"]


@dataclass(frozen=True)
class LocalFile:
    """One file as it would be in the repository; its content is at `path`, or is `content`."""

    name: str
    size: int
    sha256: str
    path: Path | None = None
    content: bytes = b""

    @classmethod
    def of_text(cls, name: str, text: str) -> LocalFile:
        """A generated file."""
        content = text.encode()
        return cls(name, len(content), hashlib.sha256(content).hexdigest(), content=content)

    def git_sha1(self) -> str:
        """The name that git gives to this content: SHA-1 over a header with the size, and the content."""
        content = self.path.read_bytes() if self.path is not None else self.content
        return hashlib.sha1(f"blob {self.size}\0".encode() + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository: its size, git's name of it, and the SHA-256 where it is stored as a large file."""

    size: int
    git_sha1: str
    sha256: str | None = None


@dataclass(frozen=True)
class Remote:
    """A repository at one revision; `head` is its commit, `None` where there is no repository yet."""

    head: str | None = None
    private: bool | None = None
    has_revision: bool = True
    files: dict[str, RemoteFile] = field(default_factory=dict)

    def status(self, local: LocalFile) -> Status:
        """How `local` differs from what is there."""
        there = self.files.get(local.name)
        if there is None:
            return "new"
        if there.size != local.size:
            return "changed"
        same = there.sha256 == local.sha256 if there.sha256 is not None else there.git_sha1 == local.git_sha1()
        return "unchanged" if same else "changed"


@dataclass(frozen=True)
class Plan:
    """All files in order of their names, each with its status; `elsewhere` are files that only the Hub has."""

    repo_id: str
    remote: Remote
    files: tuple[tuple[LocalFile, Status], ...]
    elsewhere: tuple[str, ...]

    @property
    def to_send(self) -> list[LocalFile]:
        """New and changed files."""
        return [file for file, status in self.files if status != "unchanged"]

    @property
    def bytes_to_send(self) -> int:
        """Their size."""
        return sum(file.size for file in self.to_send)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return {
            "repo_id": self.repo_id,
            "exists": self.remote.head is not None,
            "files": [
                {"name": file.name, "status": status, "bytes": file.size, "sha256": file.sha256}
                for file, status in self.files
            ],
            "only_there": list(self.elsewhere),
            "files_to_send": len(self.to_send),
            "bytes_to_send": self.bytes_to_send,
        }


def local_files(
    subjects: Sequence[Subject], repo_id: str, base_model: str | None = None, with_card: bool = True
) -> list[LocalFile]:
    """Everything that belongs into the repository: the subjects' files, their parity records, the model card."""
    files = [
        LocalFile(subject.prefix + name, entry.bytes, entry.sha256, subject.path / name)
        for subject in subjects
        for name, entry in subject.files.items()
    ]
    files.append(LocalFile.of_text(REPORT_FILE, report_text(subjects)))
    if with_card:
        files.append(LocalFile.of_text(CARD_NAME, model_card(subjects, repo_id, base_model)))
    return sorted(files, key=lambda file: file.name)


def make_plan(repo_id: str, files: Sequence[LocalFile], remote: Remote) -> Plan:
    """Compare local files with a repository. What only the repository has is left there."""
    names = {file.name for file in files}
    elsewhere = tuple(sorted(name for name in remote.files if name not in names and name != ".gitattributes"))
    return Plan(repo_id, remote, tuple((file, remote.status(file)) for file in files), elsewhere)
