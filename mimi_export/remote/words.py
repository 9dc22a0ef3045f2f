"""One clean line out of what a server, or a library that talked to it, said."""

from __future__ import annotations

import re

MOST_CHARACTERS = 200

_ADDRESSES = re.compile(r"\s*(for url:?|\(Request ID|https?://).*")
_TOKENS = re.compile(r"hf_[A-Za-z0-9]{8,}")


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
