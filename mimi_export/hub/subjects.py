"""What is published: variant directories and whole-clip directories, each with a report that vouches for its files.

A directory without a passing parity report for exactly the bytes that are in it does not become a subject.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimi_export.contract.directory import load_artifact, load_batch
from mimi_export.contract.manifest import (
    BATCH_MANIFEST,
    BATCH_REPORT,
    MANIFEST_NAME,
    BatchManifest,
    FileEntry,
    Manifest,
)
from mimi_export.contract.report import REPORT_NAME, VariantRecord, read_report
from mimi_export.errors import ArtifactError, MeasurementError, ParityError

REPORT_PLACES = (REPORT_NAME, f"../{REPORT_NAME}", f"../report/{REPORT_NAME}", f"../parity/{REPORT_NAME}")


@dataclass(frozen=True)
class Subject:
    """One directory to publish.

    `made` says how the files came to be; `files` are those to send, by name below `path`; `prefix` is where they go
    in the repository; `reports` are the records of `report.json` that vouch for them (a whole-clip directory has one
    for each data type).
    """

    path: Path
    made: Manifest | BatchManifest
    prefix: str
    files: Mapping[str, FileEntry]
    reports: Sequence[VariantRecord]

    @property
    def name(self) -> str:
        """As the directory's own list of files says."""
        return self.made.name

    @property
    def model(self) -> str:
        """Where the weights came from."""
        return self.made.source.model

    @property
    def manifest(self) -> Manifest | None:
        """Of a variant."""
        return self.made if isinstance(self.made, Manifest) else None

    @property
    def batch(self) -> BatchManifest | None:
        """Of a directory for whole clips."""
        return self.made if isinstance(self.made, BatchManifest) else None


def read_subjects(
    directories: Sequence[str | os.PathLike[str]], reports: Sequence[str | os.PathLike[str]] = ()
) -> list[Subject]:
    """Check directories and their reports.

    Args:
        directories: variant directories and at most one that `export --whole-clips` made.
        reports: files of `mimi-export parity --report`, or the directories that hold one; by default those that lie
            in or beside each directory.

    Raises:
        ArtifactError: a directory or report is damaged, or two of them would go to the same place.
        MeasurementError: no report, or one of other files.
        ParityError: a failing report.
    """
    subjects: list[Subject] = []
    for directory in map(Path, directories):
        is_batch = (directory / BATCH_MANIFEST).is_file()
        usual = [path for path in (directory / place for place in REPORT_PLACES) if path.is_file()]
        places = [*(reports or usual), *([directory / BATCH_REPORT] if is_batch else [])]
        records = [record for path in places for record in read_report(path).variants]
        subject = _batch_subject(directory, records) if is_batch else _variant_subject(directory, records)
        for other in subjects:
            if other.prefix == subject.prefix:
                raise ArtifactError(
                    f"{other.path} and {subject.path} would both go to "
                    f"{subject.prefix or 'the root of the repository'}; "
                    "publish them in two repositories, or export one of them under another name"
                )
        subjects.append(subject)
    if not subjects:
        raise ArtifactError("nothing to publish; name at least one variant directory")
    return subjects


def _variant_subject(directory: Path, records: Sequence[VariantRecord]) -> Subject:
    artifact = load_artifact(directory, verify_hashes=True)
    manifest = artifact.manifest
    if manifest.shape.rows not in (None, 1):
        raise ArtifactError(
            f"{directory} has a fixed batch of {manifest.shape.rows}, but the programs of a model card run one stream; "
            "publish a variant exported without --rows"
        )
    record = _vouching(directory, manifest.files, records)
    files = {**manifest.files, MANIFEST_NAME: FileEntry.of(directory / MANIFEST_NAME)}
    return Subject(directory, manifest, f"{manifest.name}/", files, [record])


def _batch_subject(directory: Path, records: Sequence[VariantRecord]) -> Subject:
    manifest = load_batch(directory, verify_hashes=True)
    wanted = [{name: manifest.files[name] for name in graphs.values()} for graphs in manifest.dtypes.values()]
    vouching = [_vouching(directory, entries, records) for entries in wanted]
    files = {**manifest.files, BATCH_MANIFEST: FileEntry.of(directory / BATCH_MANIFEST)}
    return Subject(directory, manifest, "", files, vouching)


def _vouching(directory: Path, files: Mapping[str, FileEntry], records: Sequence[VariantRecord]) -> VariantRecord:
    """The passing record of exactly these files."""
    how = f"run `mimi-export parity {directory} --report {directory.parent / 'report'}`"
    nearest, failing = list(files), None  # the least names that differ, and what has not passed
    for record in records:
        hashes = {name: entry.sha256 for name, entry in record.files.items()}
        differ = [name for name, entry in files.items() if hashes.get(name) != entry.sha256]
        if not differ and record.passed:
            return record
        if not differ:
            failing = record
        nearest = min(nearest, differ, key=len)
    if failing is not None:
        missed = [check.line for check in failing.checks if not check.passed]
        raise ParityError(
            f"{directory} did not pass parity, so it is not published: {'; '.join(missed) or 'see report'}"
        )
    if len(nearest) < len(files):
        raise MeasurementError(
            f"{directory} has a parity report, but for other files: {', '.join(nearest)} changed since then; {how}"
        )
    raise MeasurementError(f"{directory} has no parity report for its files, so it is not published; {how}")
