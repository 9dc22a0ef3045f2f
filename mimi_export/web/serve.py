"""Serve a site on this machine, with the headers that threads in a browser need."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mimi_export.errors import OutputError
from mimi_export.web.site import HEADERS


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012 - as in the base class
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".ogg": "audio/ogg",
    }

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing of each request."""


def make_server(site: Path, port: int) -> ThreadingHTTPServer:
    """A server of `site` on the loopback address; port 0 takes a free one. `OutputError` where it is taken."""
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(site)))
    except OSError as error:
        raise OutputError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from error
