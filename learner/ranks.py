"""The learner's ranks as one of them sees the others: what they tell each other in an optimizer step (rule 12)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class RankLost(RuntimeError):
    """Another rank is gone or silent, so that the step cannot be made."""


class Ranks(Protocol):
    """All ranks of a learner. Every rank makes the same calls in the same order, and waits in each for the others.

    Attributes:
        rank: this one's number, from 0.
        size: how many there are.
    """

    rank: int
    size: int

    def sum(self, vector: Tensor) -> None:
        """Replace a vector by its sum over ranks, in place; the same bits on every rank.

        Raises:
            RankLost: another rank is gone or silent.
        """

    def combine(self, vector: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
        """What ``rule`` makes of all ranks' vectors, ``[size, n]`` to ``[n]``: computed on rank 0, the same bits on every rank.

        Raises:
            RankLost: another rank is gone or silent.
        """

    def gather(self, part: Any) -> list[Any]:
        """Every rank's part, in the order of ranks, on every rank: what JSON can hold, and numbers come back to the bit.

        Raises:
            RankLost: another rank is gone or silent.
        """


class OneRank:
    """A learner of one rank, which has nobody to wait for."""

    rank, size = 0, 1

    def sum(self, vector: Tensor) -> None:
        """Nothing to add."""

    def combine(self, vector: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
        """The vector itself: with one rank there is nothing to choose from."""
        return vector

    def gather(self, part: Any) -> list[Any]:
        """Its own part."""
        return [part]
