"""The intake of an offline job: pairs of a file become groups of the replay queue, in place of samplers and a scorer.

The ledger, the learner and the versions are those of self-play: every pair is admitted, stored or skipped with a reason, leased, and
consumed by the version that it makes (rules 3 and 11). Its answers have no version, so that staleness does not apply (rule 1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from learner.records import AnswerSource, ScoredGroup, Stage, Ticket
from services.jobs.crew import Crew
from services.jobs.given import pair_group, put_pair
from services.jobs.intake import Intake
from services.jobs.journal import Journal
from services.jobs.pairs import PreparedPairs
from services.jobs.spec import JobSpec
from workers.messages import SamplerStatus

CHUNK = 64
"""Groups on their way to the queue at a time; those that arrive together share a transaction."""


class OfflineIntake(Intake):
    """Hands the file's pairs to the replay queue.

    Args:
        spec: the job.
        pairs: the file's pairs.
        crew: the workers.
        journal: where failures are told.
    """

    source = AnswerSource.FILE
    gathering = "reading"
    gathering_share = 0.05
    remedy = "see to pairs whose answers or scores are the same, or set pairing.identical or pairing.ties to keep"

    def __init__(self, spec: JobSpec, pairs: PreparedPairs, crew: Crew, journal: Journal) -> None:
        super().__init__(spec, pairs, crew, journal)
        self.pairs = pairs
        self.places = {prompt.id: place for place, prompt in enumerate(pairs.prompts)}

    async def grant(self, version: int) -> int:
        """Put as many pairs into the queue as the version lacks. Returns how many."""
        if not self.open.is_set():
            return 0
        # what was admitted and not stored is left from a queue or a controller that died in between
        tickets = await self.queue.call("granted") or await self._admit(version)
        for start in range(0, len(tickets), CHUNK):
            await asyncio.gather(*(self._put(ticket) for ticket in tickets[start : start + CHUNK]))
        return len(tickets)

    async def observe(self, version: int, statuses: Iterable[SamplerStatus]) -> None:
        """Nothing: samplers write no groups here."""

    async def sampler_died(self, name: str, version: int) -> None:
        """Nothing: a sampler that evaluates holds no groups."""

    async def signal_health(self, version: int) -> dict[str, float]:
        """Nothing: no scorer compares the file's answers."""
        return {}

    async def _put(self, ticket: Ticket) -> None:
        place = self.places.get(ticket.prompt.id)
        if place is None:
            reason = "its prompt is no longer in prompts.source"
            await self.queue.call("fail", ticket.group_id, Stage.QUEUE, reason)
            self.journal.event("group_failed", f"{ticket.group_id}: {reason}", group_id=ticket.group_id)
            return
        await put_pair(self.queue, self._group(ticket, place), self.spec)

    def _group(self, ticket: Ticket, place: int) -> ScoredGroup:
        pairs = self.pairs
        return pair_group(
            ticket,
            pairs.answers[place],
            pairs.answer_token_ids[place],
            pairs.logits[place],
            pairs.source,
        )
