"""Frozen copies of published versions, for references and canaries: a few in memory, the rest fetched again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from torch import Tensor

from learner.policy import AdapterState, Policy


class ReferenceStore:
    """Adapter weights by version. Version 0 of a bare model is the base with adapters off, and takes no memory."""

    def __init__(
        self, policy: Policy, fetch_adapter: Callable[[int], Mapping[str, bytes]], starts_bare: bool, capacity: int = 4
    ) -> None:
        """Keep at most ``capacity`` versions; the others are fetched when they are asked for."""
        self._policy = policy
        self._fetch = fetch_adapter
        self._starts_bare = starts_bare
        self._capacity = capacity
        self._kept: OrderedDict[int, dict[str, Tensor]] = OrderedDict()

    def put(self, version: int, state: dict[str, Tensor]) -> None:
        """Keep a version that is at hand."""
        self._kept[version] = state
        self._kept.move_to_end(version)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)

    def get(self, version: int) -> AdapterState | None:
        """The weights of a version; None is the bare base.

        Raises:
            InputError: what was fetched is not an adapter of this job.
        """
        if version == 0 and self._starts_bare:
            return None
        if version not in self._kept:
            self.put(version, self._policy.read_files(self._fetch(version)))
        self._kept.move_to_end(version)
        return self._kept[version]
