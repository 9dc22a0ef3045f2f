"""`huggingface_hub` as this program uses it: silent, and within limits that it does not have itself.

It follows any link that a server gives and sends the token along, turns pages for as long as there are some, and waits
as long as a server asks. Inside `limited` the token goes to the Hub's own host alone, and the rest ends in `HubError`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import _http
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from mimi_export.errors import HubError
from mimi_export.remote.words import first_line, refuse_long_pause

MOST_REQUESTS = 2000  # of one operation; a repository of a thousand large files needs three for each
SILENCE_SECONDS = 120.0  # without a byte, the connection counts as lost

# The client's transport has changed its name (httpx, httpx2); its own error class tells which one is in use.
TRANSPORT_ERROR: type[Exception] = next(base for base in HfHubHTTPError.__bases__ if base is not OSError)
# What the library stumbles over where an answer is not what it should be.
MALFORMED = (RuntimeError, ValueError, AttributeError, KeyError, TypeError, IndexError)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Keep the library silent and within the limits above for as long as the block runs.

    Raises:
        HubError: more requests than `MOST_REQUESTS`, or a server that asks for too long a pause.
    """
    factory = _http._GLOBAL_CLIENT_FACTORY  # noqa: SLF001 - one that a caller has set stays in use
    verbosity, disabled = hub_logging.get_verbosity(), are_progress_bars_disabled()
    home, numbers = _origin(constants.ENDPOINT), itertools.count(1)

    def before(request: Any) -> None:
        if next(numbers) > MOST_REQUESTS:
            raise HubError(
                f"the Hub's answer has no end: {MOST_REQUESTS} requests and still more pages; report it there"
            )
        if _origin(str(request.url)) != home and "authorization" in request.headers:
            del request.headers["authorization"]

    def after(response: Any) -> None:
        headers = response.headers
        refuse_long_pause(response.status_code, headers.get("retry-after", ""), headers.get("ratelimit", ""))

    def client() -> Any:
        """One with these hooks; redirects pass through them, too."""
        made = factory()
        hooks = made.event_hooks
        made.event_hooks = {"request": [*hooks["request"], before], "response": [*hooks["response"], after]}
        made.timeout = SILENCE_SECONDS
        return made

    hub_logging.set_verbosity(logging.CRITICAL)
    disable_progress_bars()
    set_client_factory(client)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        set_client_factory(factory)
        hub_logging.set_verbosity(verbosity)
        if not disabled:
            enable_progress_bars()


def status(error: BaseException) -> int | None:
    """The HTTP status of an error of the library, `None` where it has none."""
    return getattr(getattr(error, "response", None), "status_code", None)


def reason(error: BaseException) -> str:
    """What the server said, or the error's own first line."""
    text = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
    return first_line(str(text), get_token())


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port
