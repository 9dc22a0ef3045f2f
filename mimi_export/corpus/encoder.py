"""The worker of every engine: utterances in, rows out, through one session of one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from mimi_export.contract.files import cache_root
from mimi_export.corpus.inputs import Utterance
from mimi_export.corpus.rows import CorpusInfo, work_row
from mimi_export.corpus.sound import Sound
from mimi_export.runtime import load
from mimi_export.runtime.clips import Clip, ClipEncoder, EncodedClip

PREPARED = "prepared"


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know; it travels between processes.

    `rows` utterances go through one call of a ring variant, see `clips_at_once`; `num_codebooks` of them are kept, all
    for `None`.
    """

    variant: str
    rows: int | None = None
    num_codebooks: int | None = None
    latents: bool = False


class CorpusEncoder:
    """A session with what it reads from; one for each core.

    The graph is kept as this processor wants it, and mapped, so that the workers of a machine share its weights.

    Raises:
        ArtifactError, ConfigError: the variant is not there, or does not give what is asked for.
    """

    def __init__(self, settings: Settings) -> None:
        codec = load(settings.variant, threads=1, prepared=cache_root() / PREPARED)
        self.info = CorpusInfo.of(codec.artifact, settings.num_codebooks, settings.latents)
        self._sound = Sound(codec.geometry.sampling_rate)
        self._clips = ClipEncoder(codec.encoder, settings.rows)
        self.rows = self._clips.rows
        self._told = (0.0, 0.0, 0.0)

    def run(self, take: Callable[[bool], tuple[int, Utterance] | None]) -> Iterator[pa.RecordBatch]:
        """A row for each utterance that `take` gives with its index, in the order in which they end.

        `take` is as for `ClipEncoder.run`.
        """

        def clip(wait: bool) -> Clip[tuple[int, Utterance]] | None:
            found = take(wait)
            return None if found is None else Clip(found, self._sound.blocks(found[1]))

        return map(self._row, self._clips.run(clip))

    def __call__(self, table: pa.Table) -> pa.Table:
        """The same for a table of utterances with their `index`, as Ray Data calls it."""
        waiting = ((row["index"], Utterance.of(row)) for row in table.to_pylist())
        return pa.Table.from_batches(list(self.run(lambda _wait: next(waiting, None))), self.info.work_schema)

    def _row(self, done: EncodedClip[tuple[int, Utterance]]) -> pa.RecordBatch:
        index, utterance = done.key
        now = self._sound.reading, self._sound.resampling, self._clips.seconds
        seconds = [after - before for after, before in zip(now, self._told, strict=True)]
        self._told = now
        if done.error is not None:
            return work_row(self.info, index, utterance, error=str(done.error), seconds=seconds)
        latents = done.latents if self.info.hidden_size else None
        return work_row(self.info, index, utterance, done.samples, done.codes, latents, seconds=seconds)
