"""Frozen copies of published versions, for references and canaries: a few in memory, the rest fetched again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from learner.combination import Adapter
from learner.policy import Policy
from learner.records import Module

FetchAdapter = Callable[[Module, int], Mapping[str, bytes]]
"""The adapter files of a module's published version."""


class ReferenceStore:
    """Adapters by module and version. Version 0 of a bare model is the base with adapters off, and takes no memory."""

    def __init__(self, policy: Policy, fetch_adapter: FetchAdapter, starts_bare: bool, capacity: int = 4) -> None:
        """Keep at most ``capacity`` adapters; the others are fetched when they are asked for."""
        self._policy = policy
        self._fetch = fetch_adapter
        self._starts_bare = starts_bare
        self._capacity = capacity
        self._kept: OrderedDict[tuple[Module, int], Adapter] = OrderedDict()

    def put(self, module: Module, version: int, adapter: Adapter) -> None:
        """Keep a version that is at hand."""
        self._kept[module, version] = adapter
        self._kept.move_to_end((module, version))
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)

    def get(self, module: Module, version: int) -> Adapter | None:
        """The adapter of a version; None is the bare base.

        Raises:
            InputError: what was fetched is not an adapter of this job.
        """
        if version == 0 and self._starts_bare:
            return None
        if (module, version) not in self._kept:
            self.put(module, version, self._policy.read_files(self._fetch(module, version)))
        self._kept.move_to_end((module, version))
        return self._kept[module, version]
