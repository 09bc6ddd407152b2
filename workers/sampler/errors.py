"""What can go wrong in a sampler engine. Each message says what happened and, where a setting helps, which one."""

from __future__ import annotations


class SamplerError(RuntimeError):
    """Base of the sampler engine's errors."""


class EngineDied(SamplerError):
    """The engine's process is gone. The actor that owns it must exit, and be started again (rule 10)."""


class AdapterRejected(SamplerError):
    """An adapter was not loaded: wrong bytes, wrong rank, or something that vLLM cannot serve."""


class DigestMismatch(AdapterRejected):
    """The bytes that the engine read are not those that the manifest promises (rule 4)."""

    def __init__(self, name: str, expected: str, found: str) -> None:
        super().__init__(name, expected, found)  # with which another process can make it anew
        self.name, self.expected, self.found = name, expected, found

    def __str__(self) -> str:
        return (
            f"{self.name}: the sampler read an adapter with digest {self.found}, but the manifest says {self.expected}"
        )


class NoPlaceLeft(AdapterRejected):
    """Every adapter place is taken; one is free again when the requests that name old versions have finished."""


class VersionNotLoaded(SamplerError):
    """A request named a version that this engine does not hold. Nothing is read again: load the version first."""


class ChatBusy(SamplerError):
    """Chat has taken its whole share of this sampler; it may have room later."""


class VersionInUse(SamplerError):
    """A version cannot be freed while running requests name it."""
