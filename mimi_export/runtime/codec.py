"""A variant directory as a codec: sessions are made once, streams from them as many as wanted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mimi_export.contract.directory import Artifact, load_artifact
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.spec import GraphKind, GraphSpec
from mimi_export.errors import ConfigError
from mimi_export.runtime.first_use import open_checked
from mimi_export.runtime.session import CPU, GraphSession
from mimi_export.runtime.stream import DecoderStream, EncoderStream, LatentStream


class _Half:
    """One graph of a variant, loaded when it is first needed."""

    kind: GraphKind

    def __init__(self, artifact: Artifact, open_graph: Callable[[GraphKind], GraphSession]) -> None:
        self._artifact = artifact
        self._open_graph = open_graph
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
        """The session; loading it raises what `GraphSession` and `open_checked` do."""
        if self._graph is None:
            self._graph = self._open_graph(self.kind)
        return self._graph


class Encoder(_Half):
    """The encoder of a variant."""

    kind: GraphKind = "encoder"

    def stream(self, batch: int = 1) -> EncoderStream:
        """A new stream of codes, of `batch` rows that are pushed together.

        Raises:
            ConfigError: the graph is fixed to another batch, or gives latents alone.
        """
        if not self.spec.shape.num_codebooks:
            raise ConfigError(f"{self._artifact.path} gives latents and no codes; export one with --head both")
        return EncoderStream(self.graph, self.geometry, batch)

    def latents(self, batch: int = 1) -> LatentStream:
        """A new stream of latents, of `batch` rows that are pushed together.

        Raises:
            ConfigError: the graph is fixed to another batch, or gives codes alone.
        """
        if self.spec.shape.head == "codes":
            raise ConfigError(f"{self._artifact.path} gives codes and no latents; export one with --head latents")
        return LatentStream(self.graph, self.geometry, batch)


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
        checked: look at each graph when it is used for the first time on this machine, see `first_use`.
        providers: what computes, see `GraphSession`.
        settings: more of each session: `threads`, `huge_pages`, `prepared`.
    """

    def __init__(
        self, artifact: Artifact, *, checked: bool = False, providers: Sequence[str] = CPU, **settings: Any
    ) -> None:
        def open_graph(kind: GraphKind) -> GraphSession:
            opened = partial(
                GraphSession, artifact.graph_path(kind), artifact.spec(kind), providers=providers, **settings
            )
            return open_checked(artifact, kind, opened, providers) if checked else opened()

        self.artifact = artifact
        self.geometry = artifact.geometry
        self.encoder, self.decoder = Encoder(artifact, open_graph), Decoder(artifact, open_graph)

    def __repr__(self) -> str:
        manifest, shape = self.artifact.manifest, self.artifact.manifest.shape
        bitrate = f"{self.geometry.bitrate(shape.num_codebooks) / 1000:g} kbit/s"
        gives = f"{shape.num_codebooks} codebooks, {bitrate}" if shape.num_codebooks else "latents"
        what = f"{manifest.precision}, {gives}, {shape.layout}"
        return f"<codec {manifest.name}: {what}, from {manifest.source.model}>"


def load(
    directory: str | os.PathLike[str],
    threads: int = 1,
    providers: Sequence[str] = CPU,
    verify_hashes: bool = False,
    huge_pages: bool = False,
    *,
    prepared: str | os.PathLike[str] | None = None,
    variant: str | None = None,
    revision: str = "main",
) -> Codec:
    """Open a variant directory, or with `variant` one of a repository on the Hugging Face Hub.

        load("artifacts/streaming-8cb")
        load("USER/NAME", variant="streaming-8cb")    # fetched into the cache the first time, every file checked

    A graph is loaded when it is first used. The first time on a machine one call of its golden clip is replayed, and a
    `ParityError` says what to do where it computes something else here than it should.

    Args:
        directory: a variant directory; with `variant` a repository.
        threads, providers, huge_pages, prepared: see `GraphSession`.
        verify_hashes: compare every file with its SHA-256, which takes a while.
        variant: which variant of the repository.
        revision: branch, tag or commit of the repository.

    Raises:
        ArtifactError: the directory is no variant, is incomplete or was changed (see `load_artifact`).
        HubError: the variant is not in the cache and cannot be fetched.
        ConfigError: with `variant`, `directory` is no `USER/NAME`.
    """
    if variant is not None:
        from mimi_export.remote.variants import Place, fetch_variant

        directory = fetch_variant(Place.of(str(directory), variant), revision).path
    artifact = load_artifact(directory, verify_hashes)
    return Codec(artifact, checked=True, providers=providers, threads=threads, huge_pages=huge_pages, prepared=prepared)
