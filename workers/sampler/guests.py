"""The share of a sampler that chat may take: so many requests at a time, and so many versions beside the job's own (rule 6). Pure.

A *guest* is a version that was loaded for chat alone. There are never more guests than requests that may run, so that whatever they name,
each finds a place: the guest that was used longest ago goes, unless a request names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from learner.records import Module
from workers.sampler.errors import ChatBusy

Adapter = tuple[Module, int]
"""A module and its version."""


class Guests:
    """Who chats with a sampler, and which versions are loaded for that alone.

    Args:
        slots: requests at a time, and guests. 0: nobody may chat.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._named: Counter[Adapter | None] = Counter()
        self._guests: dict[Adapter, None] = {}  # in order of use, the longest unused first

    @property
    def running(self) -> int:
        """Requests that run."""
        return self._named.total()

    @contextmanager
    def request(self, adapter: Adapter | None) -> Iterator[None]:
        """Hold a place for the length of a request that names an adapter, or the bare base.

        Raises:
            ChatBusy: every place is taken.
        """
        if self.running >= self.slots:
            raise ChatBusy(
                f"all {self.slots} places for chat are taken; try again, or raise resources.sampler.chat_slots"
                if self.slots
                else "this sampler is not for chat; set resources.sampler.chat_slots"
            )
        self._named[adapter] += 1
        if adapter in self._guests:
            self._guests[adapter] = self._guests.pop(adapter)
        try:
            yield
        finally:
            self._named[adapter] -= 1

    def named(self, adapter: Adapter) -> bool:
        """Whether a request names it."""
        return self._named[adapter] > 0

    def to_unload(self) -> Adapter | None:
        """The guest that must go before another is loaded; None while there is room."""
        if len(self._guests) < self.slots:
            return None
        return next(guest for guest in self._guests if not self.named(guest))

    def add(self, adapter: Adapter) -> None:
        """It was loaded for chat."""
        self._guests[adapter] = None

    def remove(self, adapter: Adapter) -> None:
        """It was unloaded, or the job needs it itself from now on."""
        self._guests.pop(adapter, None)

    def __contains__(self, adapter: object) -> bool:
        return adapter in self._guests

    def __len__(self) -> int:
        return len(self._guests)
