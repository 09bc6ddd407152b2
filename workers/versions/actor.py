"""The version store's Ray actor. It runs on the node that carries the data; others get bytes from it, never paths (rule 13)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from learner.records import Module, VersionManifest
from workers import logs, process_tree
from workers.leased import LeasedWorker
from workers.versions.store import VersionStore

CONCURRENCY = 4
"""Calls that it serves at a time, when spawned with it."""


@dataclass(frozen=True)
class VersionsSetup:
    """What the store needs to know.

    Attributes:
        root: the folder of the job's versions.
    """

    name: str
    job_id: str
    logs: Path
    root: Path


class VersionsWorker(LeasedWorker):
    """One job's version store in an actor of its own; its methods are those of :class:`VersionStore`."""

    def __init__(self, setup: VersionsSetup, lease_seconds: float) -> None:
        process_tree.guard()
        super().__init__(lease_seconds)
        self.log = logs.write_to(setup.logs, setup.name)
        self.store = VersionStore(setup.root, setup.job_id)

    def publish(self, manifest: VersionManifest, files: Mapping[str, bytes]) -> VersionManifest:
        """Put a version into the store."""
        published = self.store.publish(manifest, files)
        self.log.info("%s is in the store, digest %s", published.name, published.digest)
        return published

    def manifest(self, module: Module, version: int) -> VersionManifest:
        """What a version consists of."""
        return self.store.manifest(module, version)

    def files(self, module: Module, version: int, names: Sequence[str] | None = None) -> dict[str, bytes]:
        """A version's files, checked."""
        return self.store.files(module, version, names)

    def adapter_files(self, module: Module, version: int) -> dict[str, bytes]:
        """The files of a version's adapter, checked."""
        return self.store.adapter_files(module, version)

    def versions(self, module: Module) -> list[int]:
        """Versions in the store, oldest first."""
        return self.store.versions(module)

    def newest(self, module: Module) -> int | None:
        """The newest version in the store."""
        return self.store.newest(module)

    def discard_after(self, module: Module, version: int) -> list[int]:
        """Remove what was never committed."""
        discarded = self.store.discard_after(module, version)
        if discarded:
            self.log.warning("versions %s of %s were never committed and are discarded", discarded, module)
        return discarded

    def retain(self, module: Module, keep: Collection[int]) -> list[int]:
        """Remove versions that need not be kept."""
        return self.store.retain(module, keep)

    def stop(self) -> None:
        """Nothing to close: what was published is on disk."""
