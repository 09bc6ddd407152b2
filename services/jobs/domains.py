"""Which versions belong to which domain, where a job learns domains one after another. Pure.

A domain takes ``schedule.rounds`` versions. With ``schedule.combine`` each domain but the first ends with one more: the combination of the
policies so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from learner.config import ScheduleConfig


@dataclass(frozen=True)
class Domain:
    """One domain's stretch of versions: it begins at ``start`` and has been learned at ``end``.

    ``name`` is None where all prompts are mixed. ``learned`` is the last version that was trained; ``end`` is one more where a combination
    follows.
    """

    name: str | None
    start: int
    learned: int
    end: int


@dataclass(frozen=True)
class DomainPlan:
    """The versions of a job, by domain."""

    schedule: ScheduleConfig

    @cached_property
    def domains(self) -> tuple[Domain, ...]:
        """In the order of learning."""
        found: list[Domain] = []
        names: tuple[str | None, ...] = self.schedule.domains or (None,)
        for number, name in enumerate(names):
            start = found[-1].end if found else 0
            learned = start + self.schedule.rounds
            combined = number > 0 and self.schedule.combine != "none"
            found.append(Domain(name, start, learned, learned + combined))
        return tuple(found)

    @property
    def last_version(self) -> int:
        """Number of the job's last version."""
        return self.domains[-1].end

    def at(self, version: int) -> Domain:
        """The domain that is learned, or combined, from ``version`` on; after the last version the last one."""
        return next((domain for domain in self.domains if version < domain.end), self.domains[-1])

    def combines_after(self, version: int) -> bool:
        """Whether the version after ``version`` is a combination, and not trained."""
        domain = self.at(version)
        return version == domain.learned and domain.end > domain.learned

    def ends_at(self, version: int) -> Domain | None:
        """The domain whose end a version is, where domains are named."""
        return next((domain for domain in self.domains if domain.end == version and domain.name is not None), None)
