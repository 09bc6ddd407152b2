"""The version store: published policy versions on the data node's disk, as bytes with digests (rules 5, 11 and 13).

Layout: ``{root}/{module}/v{n}/`` holds the version's files and ``manifest.json``. A version appears whole, by one rename, or not at all,
and is never written again. That it lies here does not make it exist: the replay ledger's commit does.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from learner.records import ADAPTER_FILES, Module, VersionManifest
from workers.versions.integrity import (
    MANIFEST_FILE,
    MissingVersionError,
    TamperedVersionError,
    VersionError,
    VersionExistsError,
    check_adapter,
    check_file,
    check_names,
)

VERSION_FOLDER = re.compile(r"v(0|[1-9][0-9]*)")
UNFINISHED = ".unfinished-"
DISCARDED = ".discarded-"


class VersionStore:
    """One job's versions. Any number of threads may use it.

    Args:
        root: the folder of the job's versions; it is made.
        job_id: whose versions they are; others are refused.
    """

    def __init__(self, root: Path, job_id: str) -> None:
        self.root = root
        self.job_id = job_id
        self._lock = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)

    def publish(self, manifest: VersionManifest, files: Mapping[str, bytes]) -> VersionManifest:
        """Put a version into the store. On disk when this returns. Publishing the same bytes again changes nothing.

        Returns:
            The manifest in the store.

        Raises:
            VersionError: the files are not those of the manifest, or the manifest is another job's.
            TamperedVersionError: a file's bytes, or the adapter, do not agree with the manifest.
            VersionExistsError: the version is there with other bytes, or a newer one is.
        """
        check_names(manifest.module, manifest.version, files)
        if manifest.job_id != self.job_id:
            raise VersionError(f"{manifest.name} is not a version of the job {self.job_id}")
        if set(files) != set(manifest.files):
            raise VersionError(
                f"{manifest.name}: its manifest lists {sorted(manifest.files)}, but its files are {sorted(files)}"
            )
        for name, data in files.items():
            check_file(manifest, name, data)
        check_adapter(manifest, files)
        with self._lock:
            newest = self.newest(manifest.module)
            if newest is not None and manifest.version <= newest:
                return self._published_before(manifest, newest)
            self._write(manifest, files)
        return manifest

    def manifest(self, module: Module, version: int) -> VersionManifest:
        """What a version consists of.

        Raises:
            MissingVersionError: there is no such version.
            TamperedVersionError: its manifest is not one, or another version's.
        """
        check_names(module, version)
        folder = self._folder(module, version)
        try:
            data = _read(folder / MANIFEST_FILE)
        except FileNotFoundError:
            raise MissingVersionError(f"{self.job_id}/{module}/v{version} is not in the version store") from None
        name = f"{self.job_id}/{module}/v{version}"
        try:
            manifest = VersionManifest.model_validate_json(data)
        except ValidationError as error:
            raise TamperedVersionError(
                f"{name}/{MANIFEST_FILE}", "a manifest", f"not one: {error.errors()[0]['msg']}"
            ) from None
        if manifest.name != name:
            raise TamperedVersionError(f"{name}/{MANIFEST_FILE}", f"the manifest of {name}", f"that of {manifest.name}")
        return manifest

    def files(self, module: Module, version: int, names: Sequence[str] | None = None) -> dict[str, bytes]:
        """A version's files, each read once and checked against its digest.

        Args:
            module: the adapter.
            version: its version.
            names: which files; all of them by default.

        Raises:
            MissingVersionError: there is no such version.
            VersionError: the version has no file of that name.
            TamperedVersionError: a file is not what was published, or is gone.
        """
        manifest = self.manifest(module, version)
        wanted = tuple(manifest.files) if names is None else tuple(names)
        check_names(module, version, wanted)
        files = {}
        for name in wanted:
            try:
                files[name] = _read(self._folder(module, version) / name)
            except FileNotFoundError:
                if name in manifest.files:
                    raise TamperedVersionError(
                        f"{manifest.name}/{name}", manifest.files[name].sha256, "missing"
                    ) from None
                raise VersionError(f"{manifest.name} has no file {name!r}") from None
            check_file(manifest, name, files[name])
        check_adapter(manifest, files)
        return files

    def adapter_files(self, module: Module, version: int) -> dict[str, bytes]:
        """The files that make up the adapter; see :meth:`files`."""
        return self.files(module, version, ADAPTER_FILES)

    def versions(self, module: Module) -> list[int]:
        """Versions in the store, oldest first."""
        check_names(module, 0)
        folder = self.root / module
        if not folder.is_dir():
            return []
        found = (VERSION_FOLDER.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def newest(self, module: Module) -> int | None:
        """The newest version in the store; None when there is none."""
        return max(self.versions(module), default=None)

    def discard_after(self, module: Module, version: int) -> list[int]:
        """Remove what is newer than the committed ``version`` (-1: everything): leftovers of a crash. Returns the removed versions.

        Folders that were being written or removed when the process died go too.
        """
        if version != -1:
            check_names(module, version)
        with self._lock:
            discarded = [found for found in self.versions(module) if found > version]
            for found in reversed(discarded):
                self._remove(module, found)
            folder = self.root / module
            leftovers = [*folder.glob(f"{UNFINISHED}*"), *folder.glob(f"{DISCARDED}*")] if folder.is_dir() else []
            for leftover in leftovers:
                shutil.rmtree(leftover)
        return discarded

    def retain(self, module: Module, keep: Collection[int]) -> list[int]:
        """Remove versions that are not in ``keep``; the newest always stays, so that numbers never go back. Returns the removed ones."""
        with self._lock:
            found = self.versions(module)
            removed = [version for version in found[:-1] if version not in keep]
            for version in removed:
                self._remove(module, version)
        return removed

    def _folder(self, module: str, version: int) -> Path:
        return self.root / module / f"v{version}"

    def _published_before(self, manifest: VersionManifest, newest: int) -> VersionManifest:
        if manifest.version not in self.versions(manifest.module):
            raise VersionExistsError(f"{manifest.name} cannot follow version {newest}: version numbers never go back")
        there = self.manifest(manifest.module, manifest.version)
        if (there.digest, there.files) != (manifest.digest, manifest.files):
            raise VersionExistsError(f"{manifest.name} was published with other bytes; versions are never overwritten")
        return there

    def _write(self, manifest: VersionManifest, files: Mapping[str, bytes]) -> None:
        parent = self.root / manifest.module
        parent.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=parent))
        try:
            for name, data in {**files, MANIFEST_FILE: manifest.model_dump_json(indent=1).encode()}.items():
                with (folder / name).open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            folder.chmod(0o755)
            _sync_folder(folder)
            os.rename(folder, self._folder(manifest.module, manifest.version))  # refuses a folder that has files in it
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        _sync_folder(parent)
        _sync_folder(self.root)

    def _remove(self, module: str, version: int) -> None:
        """Out of sight first, by one rename, so that no reader meets half a version."""
        gone = Path(tempfile.mkdtemp(prefix=DISCARDED, dir=self.root / module))
        os.rename(self._folder(module, version), gone)
        _sync_folder(self.root / module)
        shutil.rmtree(gone)


def _read(path: Path) -> bytes:
    """The file's bytes, read once; a link in its place is not followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise TamperedVersionError(str(path), "a file", "a link") from error
        raise
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
