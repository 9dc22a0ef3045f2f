"""`upload` and `card`: publish variants on the Hugging Face Hub, and their model card.

With `--json` `upload` prints `command`, `repo_id`, `exists`, `files` (`name`, `status` new, changed or unchanged,
`bytes`, `sha256`), `only_there`, `files_to_send`, `bytes_to_send` and `published`: null for a dry run, else `revision`,
`sent`, `bytes_sent` and `verified` (files downloaded again and compared). Without a connection a dry run compares with
nothing: `exists` is null, and every file is new. `card` prints `command`, `path`, `lines` and `bytes`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimi_export.cli.console import Steps, note, show_json, show_rows, show_table
from mimi_export.cli.errors import needs_extra
from mimi_export.cli.options import Force, Json
from mimi_export.contract.records import plain
from mimi_export.errors import TransientError

if TYPE_CHECKING:
    from mimi_export.hub.plan import Plan
    from mimi_export.hub.upload import Published

Directories = Annotated[
    list[Path], typer.Argument(metavar="DIR...", help="Variant directories, and one made by `export --whole-clips`.")
]
Reports = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH",
        help="Parity report of the variants (report.json or its directory); may be repeated. By default it is looked "
        "for in and beside each DIR.",
    ),
]
BaseModel = Annotated[
    str | None, typer.Option(metavar="ID", help="Hub id of the original, where the variants came from a directory.")
]


def upload(
    directories: Directories,
    repo_id: Annotated[str, typer.Option(metavar="USER/NAME", help="Repository on the Hub.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this only the plan is shown.")] = False,
    pr: Annotated[bool, typer.Option("--pr", help="Open a pull request instead of writing to the branch.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="Branch to write to [default: main].")] = None,
    report: Reports = None,
    base_model: BaseModel = None,
    with_card: Annotated[bool, typer.Option("--card/--no-card", help="Generate README.md.")] = True,
    verify: Annotated[bool, typer.Option(help="Download everything afterwards and check it.")] = True,
    json: Json = False,
) -> None:
    """Publish variants on the Hugging Face Hub, in one commit; without --yes only show what would be sent.

    \b
      mimi-export upload artifacts/streaming-8cb artifacts/streaming-16cb --repo-id me/mimi-onnx
      mimi-export upload artifacts/streaming-* --repo-id me/mimi-onnx --yes
      mimi-export upload artifacts/streaming-8cb --repo-id me/mimi-onnx --pr --yes

    Each DIR needs a passing parity report for exactly its files. The token comes from HF_TOKEN or `hf auth login`.
    Repeating is safe: what the Hub has already is not sent again.
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    with needs_extra("export", "mimi-export upload"):
        from mimi_export.hub.client import Client
        from mimi_export.hub.plan import Remote, local_files, make_plan
        from mimi_export.hub.subjects import read_subjects
        from mimi_export.hub.upload import upload as publish
    from mimi_export.remote.http import is_offline

    client = Client(repo_id)
    with Steps() as steps:
        steps.step("checking the variants and their parity reports")
        subjects = read_subjects(directories, report or ())
        files = local_files(subjects, repo_id, base_model, with_card)
        steps.step(f"reading {repo_id}")
        alone = None
        try:
            if is_offline() and not yes:
                raise TransientError("HF_HUB_OFFLINE is set")
            plan = make_plan(repo_id, files, client.read(revision))
        except TransientError as error:
            if yes:
                raise
            alone, plan = str(error), make_plan(repo_id, files, Remote())
        published = None
        if yes:
            published = publish(
                client,
                subjects,
                files,
                private=private or None,
                revision=revision,
                as_request=pr,
                verify=verify,
                progress=steps.step,
            )
    if json:
        unknown = {} if alone is None else {"exists": None}
        show_json({"command": "upload", **plan.to_dict(), **unknown, "published": plain(published)})
    else:
        _show(plan, published)
    if alone is not None:
        note(f"compared with nothing, so every file counts as new: {alone}")


def card(
    directories: Directories,
    output: Annotated[Path, typer.Option(metavar="FILE", help="File to write.")] = Path("README.md"),
    repo_id: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Repository, for the download commands.")
    ] = None,
    report: Reports = None,
    base_model: BaseModel = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the model card that `upload` would publish: every number is from the manifests and parity reports.

    \b
      mimi-export card artifacts/streaming-8cb artifacts/streaming-16cb --output card.md
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.contract.files import atomic_file
    from mimi_export.hub.card import model_card
    from mimi_export.hub.subjects import read_subjects

    text = model_card(read_subjects(directories, report or ()), repo_id, base_model)
    with atomic_file(output, force) as temporary:
        temporary.write_text(text, encoding="utf-8")
    facts = {"lines": text.count("\n"), "bytes": len(text.encode())}
    if json:
        show_json({"command": "card", "path": str(output), **facts})
    else:
        show_rows(str(output), list(facts.items()))


def _show(plan: Plan, published: Published | None) -> None:
    rows = [(status, file.size, file.sha256[:12], file.name) for file, status in plan.files]
    show_table(f"{plan.repo_id}", ("", "bytes", "SHA-256", "file"), rows)
    if plan.elsewhere:
        note(f"only on the Hub, and left there: {', '.join(plan.elsewhere)}")
    size = f"{plan.bytes_to_send / 2**20:.1f} MiB"
    if published is None:
        what = f"{len(plan.to_send)} of {len(plan.files)} files, {size}"
        show_rows("dry run, nothing was sent", [("to send", what), ("do it", "the same command with --yes")])
        return
    sent = f"{published.sent} files, {published.bytes_sent / 2**20:.1f} MiB"
    verified = f"{published.verified} files downloaded and compared" if published.verified else "not verified"
    rows_shown = [("revision", published.revision), ("sent", sent), ("verified", verified)]
    show_rows("published" if published.sent else "nothing to send", rows_shown)
