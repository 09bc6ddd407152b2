"""Who may write, and how much: the one authority over staleness (rule 7). Pure.

A sampler writes only what it has a ticket for. Tickets are granted up to

    capacity = (max_staleness + version + 1) * groups_per_version - (accepted + running)

where ``accepted`` counts groups consumed or still usable and ``running`` those granted and not yet arrived. Expired, failed and skipped
groups are in neither, so they give their place back and are replaced. The groups consumed by published versions are counted as
``version * groups_per_version``: that re-bases the rule after a resume, and after a version that closed short.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """The replay ledger at one moment, in groups.

    ``leased`` are the groups already learned from on the way to the next version; ``granted`` are in flight.
    """

    version: int
    granted: int
    ready: int
    leased: int


@dataclass(frozen=True)
class TicketOffice:
    """Decides how many tickets may be granted now, and when a version's intake is closed.

    Attributes:
        groups_per_version: groups that make one version.
        max_staleness: versions that may lie between writing a group and learning from it.
        versions: number of the last version; no ticket is granted for more.
        whole_waves: grant replacements only when nothing is in flight, so that which prompts replace skipped ones does not depend on
            the order of arrival (rule 8).
    """

    groups_per_version: int
    max_staleness: int
    versions: int
    whole_waves: bool = False

    def capacity(self, standing: Standing) -> int:
        """Groups that may be granted without any of them becoming too stale. Never negative."""
        accepted = standing.version * self.groups_per_version + standing.leased + standing.ready
        bound = (self.max_staleness + standing.version + 1) * self.groups_per_version
        return max(0, bound - (accepted + standing.granted))

    def to_grant(self, standing: Standing, prompts_left: int | None, free_slots: int | None = None) -> int:
        """Tickets to grant now.

        Args:
            standing: the ledger now.
            prompts_left: prompts not yet used; None where they begin again when they run out.
            free_slots: groups that the samplers can begin at once; None for no such limit.
        """
        if self.whole_waves and standing.granted:
            return 0
        needed = (self.versions - standing.version) * self.groups_per_version
        wanted = min(self.capacity(standing), max(0, needed - standing.leased - standing.ready - standing.granted))
        if prompts_left is not None:
            wanted = min(wanted, prompts_left)
        if free_slots is not None:
            wanted = min(wanted, free_slots)
        return wanted

    def closed(self, standing: Standing, prompts_left: int | None) -> bool:
        """Whether no further group can arrive, so that the learner may take a short last batch or a version may close short."""
        return standing.granted == 0 and self.to_grant(standing, prompts_left) == 0

    def next_batch(self, standing: Standing, prompts_per_step: int) -> int:
        """Groups in the next optimizer batch of this version: a whole batch, or what the version still lacks."""
        return max(0, min(prompts_per_step, self.groups_per_version - standing.leased))
