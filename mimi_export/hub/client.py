"""The part of `huggingface_hub` that publishing uses, with its errors in one line each.

The token comes from the environment (`HF_TOKEN`) or from the Hub's own login, and is taken out of every message.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, RepoFile, constants, get_token
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._validators import validate_repo_id

from mimi_export.errors import ConfigError, HubError, MimiExportError, TransientError
from mimi_export.hub.plan import LocalFile, Remote, RemoteFile
from mimi_export.remote import library
from mimi_export.remote.retry import retried
from mimi_export.remote.words import refusal

T = TypeVar("T")


class Client:
    """One repository on the Hub, as the user who is logged in here.

    Raises:
        ConfigError: `repo_id` is no name of a repository.
    """

    def __init__(self, repo_id: str) -> None:
        try:
            validate_repo_id(repo_id)
            _user, _name = repo_id.split("/")
        except ValueError as error:  # `HFValidationError` is one, too
            raise ConfigError(f"--repo-id {repo_id!r}: expected USER/NAME, such as me/mimi-onnx") from error
        self.repo_id = repo_id
        self._api = HfApi(library_name="mimi-export")

    def require_login(self) -> str:
        """The user's name; `HubError` without a token that the Hub accepts."""
        if get_token() is None:
            raise HubError("no token for the Hub: set HF_TOKEN, or log in with `hf auth login`")
        return self._retried("ask who is logged in", lambda: str(self._api.whoami()["name"]))

    def read(self, revision: str | None) -> Remote:
        """What the repository holds at `revision` (`main` by default); where that does not exist yet, at `main`."""

        def ask() -> Remote:
            try:
                info = self._api.model_info(self.repo_id, revision=revision)
                has_revision = True
            except RevisionNotFoundError:
                info = self._api.model_info(self.repo_id)
                has_revision = False
            except RepositoryNotFoundError as error:
                if library.status(error) == 401 and get_token() is not None:
                    raise
                return Remote()
            return Remote(info.sha, bool(info.private), has_revision, self._tree(info.sha))

        return self._retried(f"read {self.repo_id}", ask)

    def _tree(self, revision: str | None) -> dict[str, RemoteFile]:
        entries = self._api.list_repo_tree(self.repo_id, recursive=True, revision=revision)
        return {
            entry.path: RemoteFile(entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
            for entry in entries
            if isinstance(entry, RepoFile)
        }

    def open_requests(self, title: str) -> list[tuple[str, dict[str, RemoteFile]]]:
        """Open pull requests of this title: their revision and files."""

        def ask() -> list[tuple[str, dict[str, RemoteFile]]]:
            found = self._api.get_repo_discussions(
                self.repo_id, discussion_type="pull_request", discussion_status="open"
            )
            revisions = [str(item.git_reference) for item in found if item.title == title]
            return [(revision, self._tree(revision)) for revision in revisions]

        return self._retried(f"list the pull requests of {self.repo_id}", ask)

    def create(self, private: bool | None) -> None:
        """Make the repository unless it is there."""
        self._retried(
            f"create {self.repo_id}", lambda: self._api.create_repo(self.repo_id, private=private, exist_ok=True)
        )

    def create_branch(self, revision: str) -> None:
        """Make a branch from `main` unless it is there."""
        self._retried(
            f"create the branch {revision}",
            lambda: self._api.create_branch(self.repo_id, branch=revision, exist_ok=True),
        )

    def commit(
        self, files: list[LocalFile], message: str, parent: str | None, revision: str | None, as_request: bool
    ) -> CommitInfo:
        """Send files in one commit; what the Hub's storage has already is not sent again.

        Not tried again here: after an error the caller looks first whether the commit was made all the same.
        """
        operations = [
            CommitOperationAdd(file.name, str(file.path) if file.path is not None else file.content) for file in files
        ]
        with self._errors(f"send to {self.repo_id}"):
            return self._api.create_commit(
                self.repo_id,
                operations,
                commit_message=message,
                revision=revision,
                parent_commit=parent,
                create_pr=as_request,
            )

    def download(self, name: str, revision: str, folder: Path) -> Path:
        """Fetch one file below `folder`, past every cache."""
        cache = folder / ".cache" / "hub"
        return self._retried(
            f"download {name}",
            lambda: Path(
                self._api.hf_hub_download(
                    self.repo_id, name, revision=revision, local_dir=folder, cache_dir=cache, force_download=True
                )
            ),
        )

    def _retried(self, what: str, ask: Callable[[], T]) -> T:
        return retried(what, self._errors(what)(ask))

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Every failure as a `HubError`, or a `TransientError` where trying again may help."""
        try:
            with library.limited():
                yield
        except MimiExportError:
            raise
        except (library.TRANSPORT_ERROR, OSError, *library.MALFORMED) as error:
            raise self._hub_error(what, error) from None

    def _hub_error(self, what: str, error: BaseException) -> HubError:
        chain = [error]
        while (cause := chain[-1].__cause__) is not None:
            chain.append(cause)  # the library wraps the answer of the server, and what goes wrong with one file of many
        for link in chain:
            if isinstance(link, HubError):
                return link
        error = next((e for e in chain if library.status(e) or isinstance(e, library.TRANSPORT_ERROR)), error)
        status, text = library.status(error), library.reason(error)
        if status in (409, 412):
            return HubError(f"somebody else changed {self.repo_id} meanwhile ({status}); run the command again")
        if status is not None:
            return refusal(status, what, text)
        if isinstance(error, OfflineModeIsEnabled):
            return HubError(f"HF_HUB_OFFLINE is set; unset it to {what}")
        if isinstance(error, (library.TRANSPORT_ERROR, ConnectionError, LocalEntryNotFoundError)):
            return TransientError(
                f"the connection to {constants.ENDPOINT} failed, tried to {what} ({text}); "
                "run the command again, what has arrived is not sent twice"
            )
        if isinstance(error, library.MALFORMED) and not isinstance(error, OSError):
            return HubError(
                f"the Hub gave an answer that it should not, tried to {what} ({text}); is {constants.ENDPOINT} a Hub?"
            )
        return HubError(f"could not {what}: {text}")
