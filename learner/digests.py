"""SHA-256 digests of files and adapters (rule 4)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from learner.records import ADAPTER_FILES


def sha256(data: bytes) -> str:
    """The SHA-256 of ``data`` as hex."""
    return hashlib.sha256(data).hexdigest()


def adapter_digest(files: Mapping[str, bytes]) -> str:
    """One digest of an adapter's configuration and weights.

    Args:
        files: file name to content; names other than the adapter's own are left out.

    Raises:
        KeyError: one of the adapter's files is missing.
    """
    digest = hashlib.sha256()
    for name in ADAPTER_FILES:
        digest.update(f"{name}\0{sha256(files[name])}\0".encode())
    return digest.hexdigest()
