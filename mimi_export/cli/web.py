"""`web`: a static site where one hears and sees variants in the browser.

With `--json` it prints `command`, `path`, `page_bytes`, `runtime_bytes` and `variants`: `path`, `name`, `precision`,
`codebooks`, `bytes` and `caution` of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mimi_export.cli.console import Steps, note, show_json, show_rows
from mimi_export.cli.options import Force, Json

MIB = 2**20


def web(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Variant directories.")],
    out: Annotated[Path, typer.Option(metavar="SITE", help="Directory to write.")] = Path("site"),
    serve: Annotated[bool, typer.Option("--serve", help="Then serve it on this machine, until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port for --serve; 0 takes a free one.")] = 8000,
    onnxruntime_web: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Directory of that npm package [default: npm fetches it once].")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Make a static site on which one hears and sees variants: files, microphone, codes, spectra, 1 to K codebooks.

    \b
      mimi-export web artifacts/streaming-8cb artifacts/streaming-8cb-int8 --out site --serve

    Everything comes from its own address, and works offline after the first load. Any web server will do: SITE is also
    a static Space for the Hub. Threads in the browser need the headers COOP and COEP; where a server does not send them
    (--serve does), the page's service worker adds them. The page proves each variant with its golden clip before it
    runs it.
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.contract.records import plain
    from mimi_export.web.serve import make_server
    from mimi_export.web.site import build_site

    with Steps() as steps:
        site = build_site(directories, out, onnxruntime_web, force, steps.step)
    if json:
        show_json({"command": "web", "path": str(out), **plain(site)})
    else:
        models = [(v["name"], f"{v['precision']}, {v['bytes'] / MIB:.1f} MiB") for v in site.variants]
        sizes = [
            ("page", f"{site.page_bytes / 1024:.0f} KiB"),
            ("onnxruntime-web", f"{site.runtime_bytes / MIB:.0f} MiB, of which a browser takes a third to a half"),
        ]
        show_rows(str(out), [*sizes, *models])
    if serve:
        with make_server(out, port) as server:
            note(f"open http://localhost:{server.server_port}/ (Ctrl-C ends)")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                note("stopped")
