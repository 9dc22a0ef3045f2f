"""What a server, or a library that talked to it, said: one clean line, and the error that a status stands for."""

from __future__ import annotations

import re

from mimi_export.errors import HubError, TransientError

MOST_CHARACTERS = 200
LONGEST_PAUSE = 60  # seconds that a server may ask to wait

_ADDRESSES = re.compile(r"\s*(for url:?|\(Request ID|https?://).*")
_TOKENS = re.compile(r"hf_[A-Za-z0-9]{8,}")
_PAUSES = re.compile(r"(?:^|t=)(\d{1,9})")


def first_line(text: str, token: str | None = None) -> str:
    """The first line of `text`: no addresses or request ids, no control characters, no token, at most 200 characters.

    Args:
        text: what was said; it may come from a stranger.
        token: a secret to take out, besides everything that looks like a token of the Hub.
    """
    line = next((line for line in text.strip().splitlines() if line.strip()), "")
    if token:
        line = line.replace(token, "***")
    line = _ADDRESSES.sub("", _TOKENS.sub("***", line))
    printable = "".join(character if character.isprintable() else "?" for character in line)
    return printable[:MOST_CHARACTERS].rstrip(" .:'")


def refusal(status: int, what: str, text: str = "") -> HubError:
    """The error for an answer with this status, when trying to `what`; `text` is the server's own line."""
    if status == 401:
        return HubError(f"the Hub does not accept the token (401), tried to {what}; log in with `hf auth login`")
    if status == 403:
        return HubError(f"the token may not do this (403), tried to {what}; it needs the right to do that there")
    if status == 404:
        return HubError(f"the Hub knows no such repository, revision or file (404), tried to {what}: {text}")
    if status >= 500 or status == 429:
        return TransientError(f"the Hub failed ({status}), tried to {what}; run the command again later")
    return HubError(f"the Hub refused ({status}), tried to {what}: {text}")


def refuse_long_pause(status: int, retry_after: str, rate_limit: str) -> None:
    """`HubError` where a server asks to wait too many seconds, in the headers of those names."""
    pause = max(map(int, _PAUSES.findall(retry_after) + _PAUSES.findall(rate_limit)), default=0)
    if status in (429, 503) and pause > LONGEST_PAUSE:
        raise HubError(f"the Hub asks to wait {pause} s ({status}); run the command again after that")
