"""A small memory of one domain's preferences, by which the policies of several domains are weighed later.

What is kept, of the groups that were offered:

* a group that is larger than the whole memory is left out, and counted;
* the others are ordered: by a hash of the seed and the group's id (`random`), or by the preference margin, the clearest
  first (`margin`), the hash deciding among equal ones;
* the memory's groups are the first ones in that order: ``share`` of the number offered, rounded, at least one, and no
  more than the longest run from the start that fits into ``max_bytes``.

So the same groups make the same memory in whatever order they arrive (rule 8). What the share leaves out now may
come in when more groups have been offered: until :meth:`PreferenceMemory.seal`, everything that fits is held.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError

from learner.errors import InputError
from learner.preference import order_averaged
from learner.records import Record, ScoredGroup

MemoryRule = Literal["random", "margin"]

HEADER_BYTES = 512
"""What the first line of a memory's bytes may take of its bound."""

_Rank = tuple[float, str]
"""A group's place in the order: minus its margin (0 for `random`), and its hash."""


class _Header(Record):
    """The first line of a memory's bytes. ``cut``: the first place in the order that no longer fits."""

    share: float = Field(gt=0, le=1)
    max_bytes: int = Field(gt=HEADER_BYTES)
    rule: MemoryRule
    seed: int
    offered: int = Field(default=0, ge=0)
    oversized: int = Field(default=0, ge=0)
    cut: _Rank | None = None
    sealed: bool = False


def preference_margin(group: ScoredGroup) -> float:
    """The largest order-averaged logit, in absolute value, between two answers of a group: how clear its preference is.

    The scorer's own logits count, whatever becomes of truncated answers. It orders groups as
    ``max |P(i beats j) - 1/2|`` does at any temperature, without its saturation.
    """
    return float(np.abs(order_averaged(group.ordered_logits)).max())


class PreferenceMemory:
    """A bounded share of one domain's groups; see the module for what is kept."""

    def __init__(self, share: float, max_bytes: int, rule: MemoryRule = "random", seed: int = 0) -> None:
        """An empty memory.

        Args:
            share: of the groups offered that are kept, in (0, 1]; 0.01 to 0.05 as a rule.
            max_bytes: bound of :meth:`to_bytes`, above ``HEADER_BYTES``.
            rule: which groups come first.
            seed: of the hash, in 64 bits.

        Raises:
            InputError: a value is out of range.
        """
        if not 0 < share <= 1:
            raise InputError(f"share: {share} must be above 0 and at most 1")
        if max_bytes <= HEADER_BYTES:
            raise InputError(f"max_bytes: {max_bytes} leaves no room for a group; give more than {HEADER_BYTES}")
        if not -(1 << 63) <= seed < 1 << 63:
            raise InputError(f"seed: {seed} must fit into 64 bits")
        self._header = _Header(share=share, max_bytes=max_bytes, rule=rule, seed=seed)
        self._ranks: list[_Rank] = []
        self._groups: list[ScoredGroup] = []
        self._sizes: list[int] = []

    @property
    def offered(self) -> int:
        """How many groups were offered."""
        return self._header.offered

    @property
    def oversized(self) -> int:
        """How many of them were larger than the whole memory."""
        return self._header.oversized

    @property
    def sealed(self) -> bool:
        """Whether the memory takes no more groups."""
        return self._header.sealed

    @property
    def groups(self) -> tuple[ScoredGroup, ...]:
        """The groups that are kept, in the rule's order."""
        return tuple(self._groups[: self._count()])

    def _count(self) -> int:
        """How many of the held groups are kept: the share, or all once sealed."""
        if self.sealed:
            return len(self._groups)
        return min(len(self._groups), max(1, round(self._header.share * self.offered)))

    def offer(self, group: ScoredGroup) -> None:
        """Consider a group. A held one that is offered again changes nothing; others are to be offered once.

        Raises:
            RuntimeError: the memory is sealed.
        """
        if self.sealed:
            raise RuntimeError("a sealed memory takes no more groups; begin a new one for the next domain")
        rank = self._rank(group)
        place = bisect_left(self._ranks, rank)
        if place < len(self._ranks) and self._ranks[place] == rank:
            return
        size = len(_line(group))
        oversized = size > self._room
        self._update(offered=self.offered + 1, oversized=self.oversized + oversized)
        cut = self._header.cut
        if oversized or (cut is not None and rank >= cut):
            return
        self._ranks.insert(place, rank)
        self._groups.insert(place, group)
        self._sizes.insert(place, size)
        while sum(self._sizes) > self._room:
            self._update(cut=self._ranks[-1])
            self._drop_from(len(self._ranks) - 1)

    def seal(self) -> None:
        """End the domain: hold the kept groups alone, and take no more."""
        self._drop_from(self._count())
        self._update(sealed=True)

    def to_bytes(self) -> bytes:
        """The memory as JSON lines, at most ``max_bytes``: a header, and the groups that are held in their order.

        Before :meth:`seal` these are more than :attr:`groups`, so that a memory that is read back goes on as it would have.
        """
        return b"".join([self._header.model_dump_json().encode() + b"\n", *map(_line, self._groups)])

    @classmethod
    def from_bytes(cls, data: bytes) -> PreferenceMemory:
        """The memory that :meth:`to_bytes` wrote.

        Raises:
            InputError: the bytes are not such a memory.
        """
        first, *lines = data.split(b"\n")
        if not lines or lines.pop():
            raise InputError("a preference memory is not readable: its last line is not whole")
        try:
            header = _Header.model_validate_json(first)
            groups = [ScoredGroup.model_validate_json(line) for line in lines]
        except ValidationError as error:
            raise InputError(f"a preference memory is not readable: {error.errors()[0]['msg']}") from error
        memory = cls(header.share, header.max_bytes, header.rule, header.seed)
        memory._header = header
        memory._groups = groups
        memory._ranks = [memory._rank(group) for group in groups]
        memory._sizes = [len(line) + 1 for line in lines]
        if memory._ranks != sorted(set(memory._ranks)) or len(data) > header.max_bytes or len(groups) > header.offered:
            raise InputError(
                "a preference memory is not readable: its groups are not in its order or within its bounds"
            )
        return memory

    @property
    def _room(self) -> int:
        """Bytes for groups."""
        return self._header.max_bytes - HEADER_BYTES

    def _rank(self, group: ScoredGroup) -> _Rank:
        margin = preference_margin(group) if self._header.rule == "margin" else 0.0
        return -margin, hashlib.sha256(f"{self._header.seed}\0{group.group_id}".encode()).hexdigest()

    def _update(self, **changes: object) -> None:
        self._header = self._header.model_copy(update=changes)

    def _drop_from(self, place: int) -> None:
        del self._ranks[place:], self._groups[place:], self._sizes[place:]


def _line(group: ScoredGroup) -> bytes:
    return group.model_dump_json().encode() + b"\n"
