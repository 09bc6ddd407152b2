"""Which adapter versions an engine holds, under which integer ids, and how many running requests name each (rules 4 and 5).

Pure book-keeping, without vLLM. The bound is the number of adapters that vLLM keeps in memory: past it vLLM would drop the least recently
used one without a word, so the bound is enforced here, where it can be said.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from learner.records import Module
from workers.sampler.errors import AdapterRejected, NoPlaceLeft, VersionInUse, VersionNotLoaded


@dataclass
class Slot:
    """One adapter: its unique name, vLLM's integer id for it, and the running requests that name it."""

    name: str
    lora_id: int
    digest: str = ""
    running: int = 0
    ready: bool = False


class AdapterSlots:
    """Reference-counted table of the versions in an engine. At the bound, reserving raises; nothing is dropped."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._slots: dict[tuple[Module, int], Slot] = {}
        self._next_id = 1

    def reserve(self, module: Module, version: int, name: str) -> Slot:
        """A slot for a version that is about to be loaded, with an id that was never given before.

        Raises:
            AdapterRejected: the version is already there.
            NoPlaceLeft: the table is full.
        """
        if (module, version) in self._slots:
            raise AdapterRejected(f"{name} is already loaded; versions are never overwritten")
        if len(self._slots) >= self.capacity:
            held = ", ".join(slot.name for slot in self._slots.values())
            raise NoPlaceLeft(
                f"{name}: all {self.capacity} adapter places are taken ({held}); unload a version, "
                "or raise resources.sampler.cpu_lora_slots"
            )
        slot = Slot(name=name, lora_id=self._next_id)
        self._next_id += 1
        self._slots[module, version] = slot
        return slot

    def ready(self, module: Module, version: int, digest: str) -> None:
        """The reserved version was loaded, and has this digest."""
        slot = self._slots[module, version]
        slot.digest = digest
        slot.ready = True

    def drop(self, module: Module, version: int) -> None:
        """Forget a reserved version that could not be loaded."""
        self._slots.pop((module, version), None)

    def removable(self, module: Module, version: int) -> Slot:
        """The slot of a version that may be unloaded now.

        Raises:
            VersionNotLoaded: it is not there.
            VersionInUse: running requests name it.
        """
        slot = self._get(module, version)
        if slot.running:
            raise VersionInUse(
                f"{slot.name} is named by {slot.running} running requests; unload it when they have finished"
            )
        return slot

    @contextmanager
    def use(self, module: Module, version: int) -> Iterator[Slot]:
        """Hold a version for the length of a request.

        Raises:
            VersionNotLoaded: the version is not there.
        """
        slot = self._get(module, version)
        slot.running += 1
        try:
            yield slot
        finally:
            slot.running -= 1

    def running(self, module: Module, version: int) -> int:
        """How many running requests name this version."""
        slot = self._slots.get((module, version))
        return slot.running if slot else 0

    def versions(self, module: Module) -> dict[int, str]:
        """Version to adapter digest, of the versions that can be named by requests."""
        return {
            version: slot.digest
            for (owner, version), slot in sorted(self._slots.items())
            if owner == module and slot.ready
        }

    def __len__(self) -> int:
        return len(self._slots)

    def _get(self, module: Module, version: int) -> Slot:
        slot = self._slots.get((module, version))
        if slot is None or not slot.ready:
            held = ", ".join(slot.name for slot in self._slots.values() if slot.ready) or "none"
            raise VersionNotLoaded(
                f"version {version} of {module} is not loaded in this sampler (loaded: {held}); load it first"
            )
        return slot
