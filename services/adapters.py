"""Takes a published version's adapter out of the version store, for downloads and exports."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from learner.errors import InputError
from learner.records import ADAPTER_FILES, Module
from services.jobs.layout import JobPaths
from services.jobs.records import JobRecord

CHUNK_BYTES = 1 << 20


class UnknownVersion(InputError):
    """The job has no such version on disk."""


def adapter_files(job: JobRecord, version: int, module: Module = "fast") -> dict[str, bytes]:
    """The files of a version that make a plain peft folder, checked against the version's digests.

    Raises:
        UnknownVersion: it was not published, or it is no longer kept.
    """
    from workers.versions.store import VersionStore

    root = JobPaths(Path(job.home), job.id).versions
    store = VersionStore(root, job.id)
    kept = store.versions(module) if root.is_dir() else []
    if version not in kept:
        known = ", ".join(str(each) for each in kept) or "none yet"
        raise UnknownVersion(f"version: {version} of {job.id} is not on disk; those that are: {known}")
    return store.files(module, version, ADAPTER_FILES)


def chosen_version(job: JobRecord, wanted: int | None) -> int:
    """The version that is meant: the one asked for, else the best, else the newest.

    Raises:
        UnknownVersion: none was asked for, and the job has published none.
    """
    for version in (wanted, job.best_version, job.current_version):
        if version is not None:
            return version
    raise UnknownVersion(f"job {job.id} has published no version yet")


def zipped(files: Mapping[str, bytes], folder: str) -> Iterator[bytes]:
    """A zip archive, piece by piece, of files inside one folder. Weights do not shrink, so they are stored as they are."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            with archive.open(zipfile.ZipInfo(f"{folder}/{name}"), "w", force_zip64=True) as entry:
                for start in range(0, len(content), CHUNK_BYTES):
                    entry.write(content[start : start + CHUNK_BYTES])
                    yield sink.take()
    yield sink.take()


class _Sink(io.RawIOBase):
    """A file that cannot be sought, whose content is taken away as it is written."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken
