"""What a version's bytes must agree with: the manifest that names their digests (rules 4 and 13)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import get_args

from learner.digests import adapter_digest, sha256
from learner.records import ADAPTER_FILES, Module, VersionManifest

MANIFEST_FILE = "manifest.json"

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Names of files in a version: plain, in one folder, never hidden."""


class VersionError(RuntimeError):
    """A version cannot be had, or cannot be published, as asked."""


class MissingVersionError(VersionError):
    """There is no such version in the store."""


class VersionExistsError(VersionError):
    """The version's name was given to other bytes already, or a newer version exists (rule 5)."""


class TamperedVersionError(VersionError):
    """Bytes are not those that were published."""

    def __init__(self, file: str, expected: str, actual: str) -> None:
        super().__init__(file, expected, actual)  # all of them, so that the error survives the way between processes
        self.file = file
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return f"{self.file} is not what was published: its digest should be {self.expected}, but is {self.actual}"


def check_names(module: str, version: int, names: Mapping[str, object] | tuple[str, ...] = ()) -> None:
    """See that nothing in a request can name a file outside the version's own folder (rule 16).

    Raises:
        VersionError: one of them could.
    """
    if module not in get_args(Module):
        raise VersionError(f"there is no module {module!r}; modules are {', '.join(get_args(Module))}")
    if not isinstance(version, int) or version < 0:
        raise VersionError(f"{version!r} is not a version number")
    for name in names:
        if FILE_NAME.fullmatch(name) is None or name == MANIFEST_FILE:
            raise VersionError(f"{name!r} cannot be the name of a version's file")


def check_file(manifest: VersionManifest, name: str, data: bytes) -> None:
    """See that ``data`` is the file that was published as ``name``.

    Raises:
        TamperedVersionError: its digest or its size differs.
        VersionError: the version has no such file.
    """
    entry = manifest.files.get(name)
    if entry is None:
        raise VersionError(f"{manifest.name} has no file {name!r}; it has {', '.join(sorted(manifest.files))}")
    actual = sha256(data)
    if actual != entry.sha256 or len(data) != entry.bytes:
        raise TamperedVersionError(f"{manifest.name}/{name}", entry.sha256, actual)


def check_adapter(manifest: VersionManifest, files: Mapping[str, bytes]) -> None:
    """See that the adapter among ``files``, where it is complete, is the one that the manifest names.

    Raises:
        TamperedVersionError: it is another.
    """
    if all(name in files for name in ADAPTER_FILES) and (actual := adapter_digest(files)) != manifest.digest:
        raise TamperedVersionError(f"{manifest.name} (adapter)", manifest.digest, actual)
