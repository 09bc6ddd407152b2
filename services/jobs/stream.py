"""The order in which a job takes its prompts: one after another, reshuffled each time they begin again. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from learner.config import ScheduleConfig
from learner.errors import InputError
from learner.seeds import derive_seed


def refuse_too_few(domains: Sequence[str | None], schedule: ScheduleConfig) -> None:
    """See that there are enough prompts for disjoint slices, of every domain where they are learned one after another.

    Args:
        domains: the domain of every prompt.
        schedule: how many are needed.

    Raises:
        InputError: there are too few; the numbers and what to change are in the message.
    """
    if schedule.domains is None:
        _refuse_too_few(len(domains), schedule, "prompts")
        return
    for name in schedule.domains:
        count = domains.count(name)
        if count == 0:
            known = ", ".join(sorted({domain for domain in domains if domain is not None})) or "none"
            # quoted where a blank or a line's end would not be seen
            shown_name = name if name.isprintable() and name == name.strip() != "" else repr(name)
            raise InputError(
                f"schedule.domains: {shown_name} is the domain of no prompt in prompts.source (its domains: {known}); name one of these, or see to "
                "prompts.domain_column"
            )
        _refuse_too_few(count, schedule, f"prompts of domain {name}")


def _refuse_too_few(prompts: int, schedule: ScheduleConfig, what: str) -> None:
    per_round, needed = schedule.prompts_per_round, schedule.rounds * schedule.prompts_per_round
    if schedule.reuse_prompts and per_round > prompts:
        raise InputError(
            f"schedule.prompts_per_round: {per_round} is more than the {prompts} {what}; a round takes each prompt once, so lower it"
        )
    if not schedule.reuse_prompts and needed > prompts:
        raise InputError(
            f"schedule.rounds: {schedule.rounds} rounds of {per_round} prompts need {needed} {what}, and there are {prompts}; "
            "lower schedule.rounds or schedule.prompts_per_round, add prompts, or set schedule.reuse_prompts: true"
        )


def shuffled(ids: Sequence[str], seed: int) -> list[int]:
    """A permutation of ``range(len(ids))`` that depends on the seed and the ids alone, not on the file's order."""
    return sorted(range(len(ids)), key=lambda index: (derive_seed(seed, ids[index]), ids[index]))


@dataclass(frozen=True)
class Place:
    """A prompt's index in its file, and how often the prompts have begun again before it."""

    index: int
    pass_number: int


class PromptStream:
    """Prompts by position: a job's n-th ticket takes the n-th prompt, so that rounds take disjoint slices, and what replaces a skipped
    group is a prompt that no round has had.

    Args:
        ids: the prompts' ids, in their file's order.
        indices: places in the file of the prompts that take part; all by default.
        shuffle: whether the order is shuffled.
        seed: the job's.
        reuse: begin again, in another order, when they run out.
    """

    def __init__(
        self, ids: Sequence[str], *, shuffle: bool, seed: int, reuse: bool, indices: Sequence[int] | None = None
    ) -> None:
        self._indices = range(len(ids)) if indices is None else tuple(indices)
        self._ids = tuple(ids[index] for index in self._indices)
        self._shuffle, self._seed, self._reuse = shuffle, seed, reuse
        self._order = lru_cache(maxsize=2)(self._make_order)

    def at(self, position: int) -> Place:
        """The prompt at a position.

        Raises:
            IndexError: the position lies beyond the prompts, and they do not begin again.
        """
        pass_number, place = divmod(position, len(self._ids))
        if pass_number and not self._reuse:
            raise IndexError(f"position {position} lies beyond the {len(self._ids)} prompts")
        return Place(self._indices[self._order(pass_number)[place]], pass_number)

    def left(self, position: int) -> int | None:
        """Prompts from a position on; None where they never run out."""
        return None if self._reuse else max(0, len(self._ids) - position)

    def _make_order(self, pass_number: int) -> list[int]:
        if not self._shuffle:
            return list(range(len(self._ids)))
        return shuffled(self._ids, derive_seed(self._seed, "prompts", pass_number))
