"""Admission of work: tickets from the office to the samplers, and again where a sampler failed or died (rules 3, 7 and 8)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence

from learner.records import Stage, Ticket
from learner.seeds import derive_seed
from services.jobs.crew import Crew
from services.jobs.errors import JobFailure
from services.jobs.journal import Journal
from services.jobs.prepare import PreparedPrompts
from services.jobs.spec import JobSpec
from services.jobs.stream import PromptStream
from services.jobs.tickets import Standing, TicketOffice
from workers.errors import CallTimeout, WorkerDied, WorkerUnavailable
from workers.fleet import Fleet
from workers.messages import GroupFailure, SamplerStatus
from workers.replay.rows import LedgerCounts

REPLACEMENT_FACTOR = 10
"""A round in which so many times its size was skipped or failed will not get better by itself."""


class Intake:
    """Who writes what.

    Args:
        spec: the job.
        prompts: the training prompts.
        fleet: which samplers have proved which version.
        crew: the workers.
        journal: where failures are told.
    """

    def __init__(self, spec: JobSpec, prompts: PreparedPrompts, fleet: Fleet, crew: Crew, journal: Journal) -> None:
        schedule = spec.schedule
        self.spec, self.prompts, self.fleet, self.crew, self.journal = spec, prompts, fleet, crew, journal
        self.stream = PromptStream(
            [prompt.id for prompt in prompts.prompts],
            shuffle=spec.prompts.shuffle,
            seed=spec.seed,
            reuse=spec.schedule.reuse_prompts,
        )
        self.queue = crew.queue.link
        self.in_rounds = schedule.mode == "rounds"
        self.office = TicketOffice(
            schedule.prompts_per_round, schedule.max_staleness, schedule.rounds, whole_waves=self.in_rounds
        )
        self.open = asyncio.Event()
        self.assigned: dict[str, str] = {}  # group id to the sampler that writes it
        self.tries: Counter[str] = Counter()
        self.orphans: set[str] = set()
        self.slots_per_sampler = max(1, spec.resources.sampler.max_running_requests // spec.sampling.answers)

    async def counts(self) -> LedgerCounts:
        """The whole account of groups, from the queue's rows."""
        counts: LedgerCounts = await self.queue.call("counts")
        return counts

    async def standing(self, version: int) -> tuple[Standing, LedgerCounts]:
        """The ledger now, as the ticket office sees it, and the whole account."""
        counts = await self.counts()
        return Standing(version, counts.granted, counts.ready, counts.leased), counts

    def prompts_left(self, counts: LedgerCounts) -> int | None:
        """Prompts that no ticket has taken yet; None where they begin again."""
        return self.stream.left(counts.admitted)

    async def grant(self, version: int) -> int:
        """Grant as many tickets as the rule allows, and hand them to samplers that serve ``version``. Returns how many."""
        serving = self.fleet.serving(version)
        if not self.open.is_set() or not serving or (self.in_rounds and not self.fleet.settled(version)):
            return 0
        standing, counts = await self.standing(version)
        slots = None if self.in_rounds else len(serving) * self.slots_per_sampler - len(self.assigned)
        count = self.office.to_grant(standing, self.prompts_left(counts), slots)
        if count <= 0:
            return 0
        first = (await self.queue.call("round_counts", version)).admitted
        self._check_losses(version, first, counts)
        tickets = [self._ticket(version, first + k, counts.admitted + k) for k in range(count)]
        await self.queue.call("admit", tickets)
        await self._deal(tickets, serving)
        return count

    async def observe(self, version: int, statuses: Iterable[SamplerStatus]) -> None:
        """Learn from the samplers' statuses: what arrived, what failed, and what nobody works on any more."""
        granted = {ticket.group_id: ticket for ticket in await self.queue.call("granted")}
        held = {group_id for status in statuses for group_id in status.in_flight}
        failures = [failure for status in statuses for failure in status.failures]
        for group_id in [group_id for group_id in self.assigned if group_id not in granted]:
            del self.assigned[group_id]
        for failure in failures:
            ticket = granted.get(failure.group_id)
            if ticket is not None and failure.attempt == ticket.attempt:  # an older attempt's failure was dealt with
                await self._retry_or_give_up(granted.pop(failure.group_id), failure, version)
        # a group may be on its way from the sampler's list to the queue's rows: an orphan is one twice
        lost = {group_id for group_id in granted if group_id not in held}
        twice, self.orphans = lost & self.orphans, lost
        if twice:
            await self._again([granted[group_id] for group_id in sorted(twice)], version)

    async def sampler_died(self, name: str, version: int) -> None:
        """Give a dead sampler's groups to others."""
        lost = {group_id for group_id, sampler in self.assigned.items() if sampler == name}
        granted = {ticket.group_id: ticket for ticket in await self.queue.call("granted")}
        tickets = []
        for group_id in sorted(lost & set(granted)):
            self.tries[group_id] += 1
            if self.tries[group_id] >= self.spec.resources.fleet.max_prompt_attempts:
                await self._give_up(granted[group_id], Stage.SAMPLER, f"{name} died while writing it")
            else:
                tickets.append(granted[group_id])
        if tickets:
            self.journal.event(
                "regranted", f"{len(tickets)} groups of {name} go to other samplers", sampler=name, groups=len(tickets)
            )
            await self._again(tickets, version)

    def _ticket(self, version: int, index: int, position: int) -> Ticket:
        place = self.stream.at(position)
        prompt = self.prompts.prompts[place.index]
        return Ticket(
            group_id=f"{self.crew.job_id}/r{version}/{index}",
            round=version,
            index=index,
            version=version,
            seed=derive_seed(self.spec.seed, "answers", version, place.pass_number, prompt.id),
            prompt=prompt,
            prompt_token_ids=self.prompts.token_ids[place.index],
        )

    async def _deal(self, tickets: Sequence[Ticket], serving: Sequence[str]) -> None:
        """Deal tickets by index, so that a sampler's share of a round is fixed by rule; a further attempt goes to the next sampler."""
        for place, name in enumerate(serving):
            share = [ticket for ticket in tickets if (ticket.index + ticket.attempt) % len(serving) == place]
            if not share:
                continue
            for ticket in share:
                self.assigned[ticket.group_id] = name
            try:
                await self.crew.member(name).link.call("write", share)
            except (WorkerDied, WorkerUnavailable, CallTimeout) as error:
                # the watch sees the sampler's death, or the groups as orphans, and deals them again
                self.journal.log.warning("%s took no tickets: %s", name, error)

    async def _again(self, tickets: Sequence[Ticket], version: int) -> None:
        serving = self.fleet.serving(version)
        if not serving:
            self.orphans |= {ticket.group_id for ticket in tickets}
            return
        renewed = [ticket.model_copy(update={"attempt": ticket.attempt + 1, "version": version}) for ticket in tickets]
        await self.queue.call("admit", renewed)
        await self._deal(renewed, serving)

    async def _retry_or_give_up(self, ticket: Ticket, failure: GroupFailure, version: int) -> None:
        self.tries[ticket.group_id] += 1
        if self.tries[ticket.group_id] < self.spec.resources.fleet.max_prompt_attempts:
            self.journal.log.warning("%s failed in the %s: %s", ticket.group_id, failure.stage, failure.reason)
            await self._again([ticket], version)
        else:
            await self._give_up(ticket, failure.stage, failure.reason)

    async def _give_up(self, ticket: Ticket, stage: Stage, reason: str) -> None:
        await self.queue.call("fail", ticket.group_id, stage, reason)
        self.assigned.pop(ticket.group_id, None)
        self.journal.event(
            "group_failed",
            f"{ticket.group_id} was given up after {self.tries[ticket.group_id]} tries in the {stage}: {reason}",
            group_id=ticket.group_id,
            prompt_id=ticket.prompt.id,
            stage=stage,
        )

    def _check_losses(self, version: int, granted_in_round: int, counts: LedgerCounts) -> None:
        if granted_in_round > REPLACEMENT_FACTOR * self.spec.schedule.prompts_per_round:
            lost = [*counts.skipped.items(), *counts.failed.items(), ("expired", counts.expired)]
            told = ", ".join(f"{count} {reason}" for reason, count in lost if count)
            raise JobFailure(
                "no_usable_groups",
                f"{granted_in_round} groups were written for version {version + 1} and too few of them are usable ({told}); "
                "raise sampling.temperature, or set pairing.identical or pairing.ties to keep",
            )
