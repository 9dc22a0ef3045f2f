"""What the tests of publishing share: a few variants with a real parity report, and a Hub to send them to."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import onnx_ir as ir
import pytest
from hub_server import TOKEN, HubServer

from mimi_export.contract.directory import load_artifact, write_manifest
from mimi_export.contract.manifest import Source, metadata_props
from mimi_export.media.signals import speech_like
from mimi_export.parity.clips import Clip
from mimi_export.parity.depth import QUICK
from mimi_export.parity.reports import json as report_json
from mimi_export.parity.run import check_parity

REPO = "me/mimi-onnx"


@dataclass(frozen=True)
class Publication:
    """Variant directories and the report that vouches for them, in one folder."""

    folder: Path
    directories: list[Path]

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    @property
    def records(self) -> list[dict]:
        return json.loads(self.report.read_text())["variants"]


def publication(folder: Path, checkpoint, variants: dict[str, Path]) -> Publication:
    """Copy variants under new names, as if made from Kyutai's weights, and measure them on a short clip."""
    directories = []
    for name, path in variants.items():
        copy = folder / name
        shutil.copytree(path, copy)
        manifest = load_artifact(copy).manifest
        manifest = dataclasses.replace(manifest, name=name, source=Source("kyutai/mimi", "0" * 40))
        for graph in copy.glob("*_model.onnx"):
            model = ir.load(graph)
            model.metadata_props.update(metadata_props(manifest))
            ir.save(model, graph)
        write_manifest(copy, manifest)
        directories.append(copy)
    clips = [Clip("speech", samples=speech_like(1.5)), Clip("short", samples=speech_like(0.1, 1), stress=True)]
    run = check_parity(directories, clips, frames_per_call=[1, 2], depth=QUICK, load=lambda *_: checkpoint)
    assert run.passed, run
    (folder / "report.json").write_text(report_json.to_text(run))
    return Publication(folder, directories)


def with_last_line(cli):
    """`cli` with the last line of stderr alone: the only one, where it fails. The token is never shown."""

    def run(*arguments):
        code, out, err = cli(*arguments)
        assert TOKEN not in out + err
        lines = [line for line in err.splitlines() if not line.startswith("[")]
        assert len(lines) == (code != 0), err
        return code, out, lines[-1] if lines else ""

    return run


def whole_clips_from(monkeypatch: pytest.MonkeyPatch, variant: Path) -> None:
    """Let `export_batch` take the streaming graphs of a variant instead of tracing them again, which takes a while."""
    monkeypatch.setattr(
        "mimi_export.export.whole_clip.onnx_program",
        lambda module: ir.load(variant / f"{module.graph.kind}_model.onnx"),
    )


@contextmanager
def local_hub(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[HubServer]:
    """A server, and this process's `huggingface_hub` talking to it without pauses, logged in, with its own cache."""
    with HubServer() as hub:
        constants = huggingface_hub.constants
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
        monkeypatch.setattr("mimi_export.remote.retry.FIRST_PAUSE", 0.0)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
        huggingface_hub.close_session()
