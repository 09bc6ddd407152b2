"""People's preferences on their way from the job store into the replay queue, beside self-play (rules 1, 3 and 11).

A preference becomes a group of two given answers under a ticket of its own, so that the office's account holds for it too. Its group id
derives from its number in the store, and the ledger decides whether it was admitted: one that was is not admitted again, whichever
process died in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from learner.errors import InputError
from learner.preference import CERTAIN_LOGIT
from learner.records import AnswerSource, ScorerIdentity, Stage, Ticket
from services.jobs.crew import Crew
from services.jobs.feedback import PreferenceRenderer
from services.jobs.given import pair_group, put_pair
from services.jobs.journal import Journal
from services.jobs.pairs import GivenPair
from services.jobs.records import StoredPreference
from services.jobs.spec import JobSpec
from workers.replay.rows import LedgerCounts

CHUNK = 64
"""Preferences that are read, and put into the queue, at a time; groups that arrive together share a transaction."""


@dataclass(frozen=True)
class RenderedPreference:
    """A preference that waits for its ticket. ``group_id``: of the group that it becomes."""

    group_id: str
    pair: GivenPair
    prompt_token_ids: tuple[int, ...]

    def ticket(self, version: int, index: int) -> Ticket:
        """The ticket under which it is admitted."""
        return Ticket(
            group_id=self.group_id,
            source=AnswerSource.FEEDBACK,
            round=version,
            index=index,
            version=version,
            seed=0,  # nothing is drawn
            prompt=self.pair.prompt,
            prompt_token_ids=self.prompt_token_ids,
        )


class FeedbackDesk:
    """Takes preferences in, at most a version's share of them at a time.

    Args:
        spec: the job.
        renderer: makes their token ids.
        crew: the workers.
        journal: one job's side of the store that they wait in.
    """

    def __init__(self, spec: JobSpec, renderer: PreferenceRenderer, crew: Crew, journal: Journal) -> None:
        self.spec, self.renderer, self.crew, self.journal = spec, renderer, crew, journal
        self.store, self.queue = journal.store, crew.queue.link
        self._left_over = True  # by an earlier controller

    async def take(
        self, count: int, *, later: Sequence[str] = (), learned: Sequence[str] = ()
    ) -> list[RenderedPreference]:
        """The preferences that have waited longest: at most ``count``, and no more than the share leaves room for.

        A version is made of the groups that are leased when it is published, so no version exceeds the share when granted, ready and
        leased groups together never do. Those of the domains ``later`` wait until it is their turn; those that still waited when their domain
        had been ``learned`` are refused.
        """
        job_id, found, after = self.crew.job_id, list[RenderedPreference](), 0
        if not self.store.waiting_preferences(job_id, limit=1, leave_out=later):
            return []
        account: LedgerCounts = await self.queue.call("source_counts", AnswerSource.FEEDBACK)
        room = min(count, self.spec.feedback_groups - account.remaining)
        while len(found) < room and (
            waiting := self.store.waiting_preferences(
                job_id, limit=min(CHUNK, room - len(found)), after=after, leave_out=later
            )
        ):
            after = waiting[-1].number
            known = set(await self.queue.call("known", [self._group_id(stored.number) for stored in waiting]))
            # admitted, and a death kept it from being written down here
            self.store.settle_preferences(job_id, [s.number for s in waiting if self._group_id(s.number) in known])
            for stored in waiting:
                if self._group_id(stored.number) in known:
                    continue
                if stored.preference.domain in learned:
                    self._refuse(
                        stored, f"its domain, {stored.preference.domain}, was learned before a version had room for it"
                    )
                    continue
                found += self._rendered(stored)
        self._left_over |= bool(found)  # until they are put: the answer to their admission may be lost
        return found

    async def put(self, tickets: Sequence[Ticket]) -> None:
        """Put the groups of admitted tickets into the queue; tickets that samplers write for are passed over."""
        given = [ticket for ticket in tickets if ticket.source is AnswerSource.FEEDBACK]
        if not given:
            return
        for start in range(0, len(given), CHUNK):
            chunk = {self._number(ticket.group_id): ticket for ticket in given[start : start + CHUNK]}
            self.store.settle_preferences(self.crew.job_id, list(chunk))
            stored = {each.number: each for each in self.store.preferences(self.crew.job_id, list(chunk))}
            await asyncio.gather(*(self._put(ticket, stored.get(number)) for number, ticket in chunk.items()))
        self._left_over = False

    async def put_what_was_left(self) -> None:
        """Put what was admitted and not stored, because a queue or a controller died in between."""
        if self._left_over:
            await self.put(await self.queue.call("granted"))
            self._left_over = False

    async def metrics(self, version: int) -> dict[str, float]:
        """How many of the version's groups came from people, and how many preferences wait."""
        groups: int = await self.queue.call("produced", version, AnswerSource.FEEDBACK)
        waiting = self.store.preference_totals(self.crew.job_id).waiting
        return {"feedback_groups": float(groups), "feedback_waiting": float(waiting)}

    def _rendered(self, stored: StoredPreference) -> list[RenderedPreference]:
        """The preference with its token ids, or nothing where it is refused."""
        try:
            pair, prompt_ids, _ = self.renderer.render(f"preference {stored.id}", stored.preference)
        except InputError as error:
            self._refuse(stored, str(error))
            return []
        return [RenderedPreference(self._group_id(stored.number), pair, prompt_ids)]

    def _refuse(self, stored: StoredPreference, reason: str) -> None:
        self.store.refuse_preference(self.crew.job_id, stored.number, reason)
        self.journal.event("preference_refused", reason, id=stored.id)

    async def _put(self, ticket: Ticket, stored: StoredPreference | None) -> None:
        try:
            if stored is None:
                raise InputError("the preference is no longer in the job store")
            pair, _, answer_ids = self.renderer.render(f"preference {stored.id}", stored.preference)
            who = ScorerIdentity(kind="feedback", name=stored.preference.rater or "unnamed", version=stored.digest)
            group = pair_group(ticket, (pair.chosen, pair.rejected), answer_ids, CERTAIN_LOGIT, who)
            await put_pair(self.queue, group, self.spec)
        except InputError as error:  # also of a group that is larger than the whole queue
            await self.queue.call("fail", ticket.group_id, Stage.QUEUE, str(error))
            self.journal.event("group_failed", f"{ticket.group_id}: {error}", group_id=ticket.group_id)

    def _group_id(self, number: int) -> str:
        return f"{self.crew.job_id}/feedback/{number}"

    def _number(self, group_id: str) -> int:
        return int(group_id.rpartition("/")[2])
