"""A variant directory as a codec: sessions are made once, streams from them as many as wanted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from mimi_export.contract.directory import Artifact, load_artifact
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.spec import GraphKind, GraphSpec
from mimi_export.remote.variants import Place, fetch_variant
from mimi_export.runtime.huge_pages import huge_pages
from mimi_export.runtime.session import CPU, GraphSession
from mimi_export.runtime.stream import DecoderStream, EncoderStream


class _Half:
    """One graph of a variant, loaded when it is first needed."""

    kind: GraphKind

    def __init__(self, artifact: Artifact, threads: int, providers: Sequence[str], huge_pages: bool) -> None:
        self._artifact = artifact
        self._threads = threads
        self._providers = tuple(providers)
        self._huge_pages = huge_pages
        self._graph: GraphSession | None = None

    def __repr__(self) -> str:
        return f"<{self.kind} of {self._artifact.path}{'' if self._graph else ', not loaded yet'}>"

    @property
    def geometry(self) -> Geometry:
        """Sizes of the model."""
        return self._artifact.geometry

    @property
    def spec(self) -> GraphSpec:
        """Inputs and outputs of the graph."""
        return self._artifact.spec(self.kind)

    @property
    def graph(self) -> GraphSession:
        """The session; loading it can raise `GraphError`, and `ConfigError` where huge pages cannot be had."""
        if self._graph is None:
            path = self._artifact.graph_path(self.kind)
            with huge_pages() if self._huge_pages else contextlib.nullcontext():
                self._graph = GraphSession(path, self.spec, self._threads, self._providers)
        return self._graph


class Encoder(_Half):
    """The encoder of a variant."""

    kind: GraphKind = "encoder"

    def stream(self, batch: int = 1) -> EncoderStream:
        """A new stream of `batch` rows that are pushed together; `ConfigError` if the graph is fixed to another."""
        return EncoderStream(self.graph, self.geometry, batch)


class Decoder(_Half):
    """The decoder of a variant."""

    kind: GraphKind = "decoder"

    def stream(self, batch: int = 1) -> DecoderStream:
        """A new stream of `batch` rows that are pushed together; `ConfigError` if the graph is fixed to another."""
        return DecoderStream(self.graph, self.geometry, batch)


class Codec:
    """Both halves of a variant; each loads when it is first used.

    Args:
        artifact: the variant directory.
        threads: threads for one operator of a session.
        providers: see `GraphSession`.
        huge_pages: keep weights in huge pages (Linux 6.1 or later): faster frames for a slower load, see `huge_pages`.
    """

    def __init__(
        self, artifact: Artifact, threads: int = 1, providers: Sequence[str] = CPU, huge_pages: bool = False
    ) -> None:
        self.artifact = artifact
        self.geometry = artifact.geometry
        self.encoder = Encoder(artifact, threads, providers, huge_pages)
        self.decoder = Decoder(artifact, threads, providers, huge_pages)

    def __repr__(self) -> str:
        manifest, shape = self.artifact.manifest, self.artifact.manifest.shape
        bitrate = f"{self.geometry.bitrate(shape.num_codebooks) / 1000:g} kbit/s"
        what = f"{manifest.precision}, {shape.num_codebooks} codebooks, {bitrate}, {shape.layout}"
        return f"<codec {manifest.name}: {what}, from {manifest.source.model}>"


def load(
    directory: str | os.PathLike[str],
    threads: int = 1,
    providers: Sequence[str] = CPU,
    verify_hashes: bool = False,
    huge_pages: bool = False,
    *,
    variant: str | None = None,
    revision: str = "main",
) -> Codec:
    """Open a variant directory, or with `variant` one of a repository on the Hugging Face Hub.

        load("artifacts/streaming-8cb")
        load("USER/NAME", variant="streaming-8cb")    # fetched into the cache the first time, every file checked

    Args:
        directory: a variant directory; with `variant` a repository.
        threads: threads for one operator of a session.
        providers: see `GraphSession`.
        verify_hashes: compare every file with its SHA-256, which takes a while.
        huge_pages: as for `Codec`.
        variant: which variant of the repository.
        revision: branch, tag or commit of the repository.

    Raises:
        ArtifactError: the directory is no variant, is incomplete or was changed (see `load_artifact`).
        HubError: the variant is not in the cache and cannot be fetched.
        ConfigError: with `variant`, `directory` is no `USER/NAME`.
    """
    if variant is not None:
        directory = fetch_variant(Place.of(str(directory), variant), revision).path
    return Codec(load_artifact(directory, verify_hashes), threads, providers, huge_pages)
