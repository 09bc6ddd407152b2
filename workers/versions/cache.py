"""A worker's local cache of versions' bytes. Bytes travel, paths do not (rule 13).

Files lie under their SHA-256, so equal files of different versions are kept once, and whatever is read is hashed before it is given out:
bytes that went bad on this machine are fetched again, bytes that arrive bad are an error.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from learner.digests import sha256
from learner.records import VersionManifest
from workers.versions.integrity import check_adapter, check_file, check_names

Fetch = Callable[[tuple[str, ...]], Mapping[str, bytes]]
"""Gets the named files of a version from the version store."""


class VersionCache:
    """Files by digest, the least recently used removed first.

    Args:
        root: its folder; it is made, and several processes of one machine may share it.
        max_bytes: what it may hold. The version that was asked for last stays, whatever its size.
    """

    def __init__(self, root: Path, max_bytes: int = 4 << 30) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.hits_total = 0
        self.misses_total = 0
        self.corrupt_total = 0
        root.mkdir(parents=True, exist_ok=True)

    def files(self, manifest: VersionManifest, fetch: Fetch, names: Sequence[str] | None = None) -> dict[str, bytes]:
        """A version's files: from here where they are sound, from ``fetch`` otherwise.

        Raises:
            TamperedVersionError: what ``fetch`` brought is not what the manifest names.
        """
        missing, found = self.look(manifest, names)
        return found if not missing else {**found, **self.keep(manifest, fetch(missing), missing)}

    def look(
        self, manifest: VersionManifest, names: Sequence[str] | None = None
    ) -> tuple[tuple[str, ...], dict[str, bytes]]:
        """Which files must be fetched, and the bytes of those that need not be."""
        wanted = tuple(manifest.files) if names is None else tuple(names)
        check_names(manifest.module, manifest.version, wanted)
        found = {
            name: data
            for name in wanted
            if name in manifest.files and (data := self._read(manifest.files[name].sha256)) is not None
        }
        self.hits_total += len(found)
        self.misses_total += len(wanted) - len(found)
        return tuple(name for name in wanted if name not in found), found

    def keep(self, manifest: VersionManifest, files: Mapping[str, bytes], names: Sequence[str]) -> dict[str, bytes]:
        """Check fetched files against the manifest and keep them. Returns those named.

        Raises:
            KeyError: one of them was not fetched.
            TamperedVersionError: one of them is not what the manifest names.
        """
        kept = {name: files[name] for name in names}
        for name, data in kept.items():
            check_file(manifest, name, data)
        check_adapter(manifest, kept)
        for name, data in kept.items():
            self._write(manifest.files[name].sha256, data)
        self._evict({entry.sha256 for entry in manifest.files.values()})
        return kept

    def metrics(self) -> dict[str, float]:
        """How often the cache helped, in files."""
        return {
            "version_cache_hits_total": float(self.hits_total),
            "version_cache_misses_total": float(self.misses_total),
            "version_cache_corrupt_total": float(self.corrupt_total),
        }

    def _read(self, digest: str) -> bytes | None:
        path = self.root / digest
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if sha256(data) != digest:
            self.corrupt_total += 1
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(FileNotFoundError):  # another process made room meanwhile; the bytes are here
            os.utime(path)
        return data

    def _write(self, digest: str, data: bytes) -> None:
        descriptor, name = tempfile.mkstemp(prefix=".", dir=self.root)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(name, self.root / digest)  # no fsync: what a crash spoils is found by its digest

    def _evict(self, needed: set[str]) -> None:
        entries = []
        for path in self.root.iterdir():
            if path.name.startswith("."):  # being written, maybe by another process
                continue
            try:
                status = path.stat()
            except FileNotFoundError:  # another process removed it
                continue
            entries.append((status.st_mtime, status.st_size, path))
        held = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if held <= self.max_bytes:
                return
            if path.name not in needed:
                path.unlink(missing_ok=True)
                held -= size
