"""A checkpoint's files from the Hugging Face Hub, through its own client and into its own cache."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

from mimi_export.contract.progress import Advance
from mimi_export.errors import CheckpointError, MimiExportError
from mimi_export.remote.library import TRANSPORT_ERROR, limited, reason

WEIGHTS = "model.safetensors"
CONNECT_SECONDS = 10.0


def download_checkpoint(model: str, revision: str | None, progress: Advance) -> tuple[Path, str]:
    """Fetch `config.json` and the safetensors of a Hub model; what the cache has is not fetched again.

    Without a connection the cache alone is used. The client retries for half a minute before it says that there is
    none, so the Hub is asked once beforehand.

    Returns:
        The directory that holds them, and the commit that they are from.

    Raises:
        CheckpointError: with one line for each way in which this fails.
    """
    with _one_line_errors(model, revision), limited():
        offline = _offline_reason(model, revision)

        def fetch(name: str, wanted: str | None) -> Path:
            bar = _bar(f"downloading {name}", progress)
            return Path(hf_hub_download(model, name, revision=wanted, local_files_only=bool(offline), tqdm_class=bar))

        try:
            # By its name, so that the client notes which commit that is and finds it again without a connection.
            config = fetch("config.json", revision)
            _fetch_weights(partial(fetch, wanted=config.parent.name))
        except LocalEntryNotFoundError as error:
            raise _unreachable(model, offline or error.__cause__ or error) from error
    return config.parent, config.parent.name


def _offline_reason(model: str, revision: str | None) -> Exception | None:
    """Why the Hub cannot be asked, or `None` when it can and knows the model."""
    try:
        HfApi().model_info(model, revision=revision, timeout=CONNECT_SECONDS)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except (TRANSPORT_ERROR, OfflineModeIsEnabled) as error:
        return error
    return None


def _fetch_weights(fetch: Callable[[str], Path]) -> None:
    """One file of weights, or all that an index lists."""
    try:
        fetch(WEIGHTS)
        return
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        index = fetch(f"{WEIGHTS}.index.json")
    for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values())):
        fetch(name)


@contextmanager
def _one_line_errors(model: str, revision: str | None) -> Iterator[None]:
    """Turn what the client raises into `CheckpointError`."""
    try:
        yield
    except MimiExportError:
        raise
    except HFValidationError:
        raise CheckpointError(
            f"{model!r} is neither a directory nor a model id such as kyutai/mimi; use --model demo to try without"
        ) from None
    except GatedRepoError as error:
        raise CheckpointError(
            f"{model} is gated on the Hub: accept its terms on its page, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"the Hub has no model {model}, or it is private; check the id, or log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{model} has no revision {revision!r} on the Hub") from error
    except EntryNotFoundError as error:
        raise CheckpointError(
            f"{model} lacks config.json or {WEIGHTS} on the Hub, so it is no checkpoint that transformers can load"
        ) from error
    except TRANSPORT_ERROR as error:
        raise _unreachable(model, error) from error
    except OSError as error:
        raise CheckpointError(f"{model} cannot be stored in the download cache: {reason(error)}") from error
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"the list of weight files of {model} cannot be read: {reason(error)}") from error


def _bar(step: str, progress: Advance) -> type[Any]:
    """A progress bar for the client that reports to `progress` and writes nothing."""

    class Bar(tqdm):  # type: ignore[misc,type-arg,unused-ignore]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "file": io.StringIO(), "disable": False})

        def display(self, *_: Any, **__: Any) -> None:
            progress(step, int(self.n), int(self.total or 0))

    return Bar


def _unreachable(model: str, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"cannot reach the Hugging Face Hub for {model} ({type(error).__name__}: {reason(error)}); "
        "use --model demo, or --model DIRECTORY with a downloaded copy"
    )
