"""GET from the Hub with the standard library: for the base install, which has no `huggingface_hub`.

The token goes to the Hub's own host alone, redirects end, a connection without a byte ends, and what is read has a
limit that is known beforehand.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mimi_export import __version__
from mimi_export.errors import ConfigError, HubError, TransientError
from mimi_export.remote.retry import retried
from mimi_export.remote.words import first_line, refusal, refuse_long_pause

SILENCE_SECONDS = 30.0  # without a byte, the connection counts as lost
MOST_JSON = 32 << 20  # bytes of an answer in JSON


def endpoint() -> str:
    """Where the Hub is: `$HF_ENDPOINT`, or huggingface.co; `ConfigError` where that is no web address."""
    address = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"HF_ENDPOINT is {address!r}, expected an address such as https://huggingface.co")
    return address


def is_offline() -> bool:
    """Whether `$HF_HUB_OFFLINE` says to stay away from the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def token() -> str | None:
    """`$HF_TOKEN`, or what `hf auth login` has stored."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    stored = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    try:
        found = os.environ.get("HF_TOKEN") or stored.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return found.strip() or None


@contextmanager
def get(path: str, what: str, start: int = 0) -> Iterator[http.client.HTTPResponse]:
    """The answer to a GET of `path` on the Hub, from byte `start` on where the server can (status 206).

    Raises:
        HubError: refused, or no such thing.
        TransientError: the connection fails, also inside the block, or the server does.
    """
    agent = {"User-Agent": f"mimi-export/{__version__}"}
    request = urllib.request.Request(f"{endpoint()}{path}", headers=agent)  # noqa: S310 - `endpoint` has looked
    secret = token()
    if secret is not None:
        request.add_unredirected_header("Authorization", f"Bearer {secret}")
    if start:
        request.add_header("Range", f"bytes={start}-")
    opener = urllib.request.build_opener(_Redirects)
    try:
        with opener.open(request, timeout=SILENCE_SECONDS) as response:
            yield response
    except urllib.error.HTTPError as error:
        headers = error.headers
        refuse_long_pause(error.code, headers.get("Retry-After", ""), headers.get("RateLimit", ""))
        said = headers.get("X-Error-Message") or error.reason
        raise refusal(error.code, what, first_line(str(said), secret)) from None
    except (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError) as error:
        text = first_line(str(getattr(error, "reason", None) or error) or type(error).__name__, secret)
        raise TransientError(
            f"the connection to {urlsplit(endpoint()).netloc} failed, tried to {what} ({text}); run the command again, "
            "what has arrived is not fetched twice"
        ) from None


def read(path: str, what: str, most: int) -> bytes:
    """The content at `path`; tried again where that may help.

    Raises:
        HubError: as `get` does, or more than `most` bytes.
    """

    def ask() -> bytes:
        with get(path, what) as response:
            return response.read(most + 1)

    content = retried(what, ask)
    if len(content) > most:
        raise odd_answer(what, f"it is longer than {most} bytes")
    return content


def get_json(path: str, what: str) -> Any:
    """The JSON at `path`; errors as for `read`, and for what is no JSON."""
    try:
        return json.loads(read(path, what, MOST_JSON))
    except (ValueError, RecursionError) as error:
        raise odd_answer(what, str(error)) from None


def odd_answer(what: str, text: str) -> HubError:
    """The error for an answer that is none of the Hub's, when trying to `what`."""
    return HubError(
        f"the Hub gave an answer that it should not, tried to {what} ({first_line(text)}); is {endpoint()} a Hub?"
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects that keep the connection safe; a header that is not to be redirected, as the token, stays behind."""

    max_redirections = 5

    def redirect_request(
        self, request: urllib.request.Request, fp: Any, code: int, message: str, headers: Any, address: str
    ) -> urllib.request.Request | None:
        before, after = urlsplit(request.full_url), urlsplit(address)
        if before.scheme == "https" and after.scheme != "https":
            raise HubError("the Hub points from https to http, which is no safe connection")
        new = super().redirect_request(request, fp, code, message, headers, address)
        secret = request.get_header("Authorization")
        if new is not None and secret is not None and before[:2] == after[:2]:
            new.add_unredirected_header("Authorization", secret)
        return new
