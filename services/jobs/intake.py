"""Admission of work: tickets from the office to the samplers, and again where a sampler failed or died (rules 3, 7 and 8).

`Intake` is what the loop needs of any kind of intake; `SelfPlayIntake` has samplers write. `services.jobs.offline` reads a file instead.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence

from learner.records import AnswerSource, Stage, Ticket
from learner.seeds import derive_seed
from services.jobs.crew import Crew
from services.jobs.domains import DomainPlan
from services.jobs.errors import JobFailure
from services.jobs.feedback_intake import FeedbackDesk, RenderedPreference
from services.jobs.journal import Journal
from services.jobs.prepare import PreparedPrompts
from services.jobs.spec import JobSpec
from services.jobs.stream import Place, PromptStream
from services.jobs.tickets import Standing, TicketOffice
from workers.errors import WorkerDied, WorkerError, WorkerUnavailable
from workers.fleet import Fleet
from workers.messages import GroupFailure, SamplerStatus
from workers.replay.rows import LedgerCounts

REPLACEMENT_FACTOR = 10
"""A round in which so many times its size was skipped or failed will not get better by itself."""


SHORTEST_PAUSE, LONGEST_PAUSE, PAUSE_SHARE = 0.05, 0.5, 4.0
"""Counting a large ledger's rows takes time: between two looks, so many times as long passes as one took."""


class Intake(ABC):
    """Where groups come from: which prompts, in what order, and how many at a time.

    Args:
        spec: the job.
        prompts: the training prompts.
        crew: the workers.
        journal: where failures are told.

    Attributes:
        source: where the answers to the job's own prompts come from.
        gathering: what the job does while groups arrive, in a word.
        gathering_share: of the work for one version, for the progress bar.
        remedy: what to change when nearly no group is usable.
        in_rounds: whether a version's groups all arrive before the first is learned from.
        open: set while groups of the current version are wanted.
        pause: seconds between two looks at the ledger.
    """

    source = AnswerSource.POLICY
    gathering = "sampling"
    gathering_share = 0.6
    remedy = "raise sampling.temperature, or set pairing.identical or pairing.ties to keep"

    def __init__(self, spec: JobSpec, prompts: PreparedPrompts, crew: Crew, journal: Journal) -> None:
        schedule = spec.schedule
        self.spec, self.prompts, self.crew, self.journal = spec, prompts, crew, journal
        self.plan = DomainPlan(schedule)
        self.streams = {domain.name: self._stream(domain.name) for domain in self.plan.domains}
        self.queue = crew.queue.link
        self.in_rounds = schedule.mode != "online"
        self.office = TicketOffice(
            schedule.prompts_per_round, schedule.max_staleness, self.plan.last_version, whole_waves=self.in_rounds
        )
        self.open = asyncio.Event()
        self.pause = SHORTEST_PAUSE

    @abstractmethod
    async def grant(self, version: int) -> int:
        """Let as many groups as the rule allows begin, while ``open`` is set. Returns how many."""

    @abstractmethod
    async def observe(self, version: int, statuses: Iterable[SamplerStatus]) -> None:
        """Learn from the samplers' statuses."""

    @abstractmethod
    async def sampler_died(self, name: str, version: int) -> None:
        """Give a dead sampler's groups to others."""

    @abstractmethod
    async def signal_health(self, version: int) -> dict[str, float]:
        """How healthy the preference signal of the version just learned was, since the last call, as metrics."""

    async def counts(self) -> LedgerCounts:
        """The whole account of groups, from the queue's rows."""
        counts: LedgerCounts = await self.queue.call("counts")
        return counts

    async def standing(self, version: int) -> tuple[Standing, LedgerCounts]:
        """The ledger now, as the ticket office sees it, and the whole account."""
        began = time.monotonic()
        counts = await self.counts()
        self.pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, PAUSE_SHARE * (time.monotonic() - began)))
        return Standing(version, counts.granted, counts.ready, counts.leased), counts

    async def prompts_left(self, version: int, counts: LedgerCounts) -> int | None:
        """Prompts of the domain that ``version`` learns from which no ticket has taken yet; None where they begin again."""
        return self.streams[self.plan.at(version).name].left(await self._position(version, counts))

    def _stream(self, domain: str | None) -> PromptStream:
        prompts = self.prompts.prompts
        return PromptStream(
            [prompt.id for prompt in prompts],
            shuffle=self.spec.prompts.shuffle,
            seed=self.spec.seed,
            reuse=self.spec.schedule.reuse_prompts,
            indices=[i for i, prompt in enumerate(prompts) if domain is None or prompt.domain == domain],
        )

    async def _position(self, version: int, counts: LedgerCounts) -> int:
        """Tickets that took one of the job's own prompts, of the domain that ``version`` learns from."""
        domain = self.plan.at(version)
        if domain.start > 0:
            counts = await self.queue.call("round_counts", domain.start, version)
        return counts.sources.get(self.source, 0)

    async def _admit(self, version: int, slots: int | None = None) -> list[Ticket]:
        """New tickets, as many as the rule allows and at most ``slots``; they are written down already (rule 3)."""
        standing, counts = await self.standing(version)
        count = self.office.to_grant(standing, await self.prompts_left(version, counts), slots)
        if count <= 0:
            return []
        in_round: LedgerCounts = await self.queue.call("round_counts", version)
        first = in_round.admitted
        self._check_losses(version, in_round.sources.get(self.source, 0), counts)
        waiting = await self._from_outside(version, count)
        spread = {k * count // len(waiting): preference for k, preference in enumerate(waiting)}
        stream, position = self.streams[self.plan.at(version).name], await self._position(version, counts)
        tickets: list[Ticket] = []
        for k in range(count):
            if (preference := spread.get(k)) is not None:
                tickets.append(preference.ticket(version, first + k))
            else:
                tickets.append(self._ticket(version, first + k, stream.at(position)))
                position += 1
        await self.queue.call("admit", tickets)
        return tickets

    async def _from_outside(self, version: int, count: int) -> Sequence[RenderedPreference]:
        """What takes the place of self-play in at most ``count`` groups."""
        return ()

    def _ticket(self, version: int, index: int, place: Place) -> Ticket:
        prompt = self.prompts.prompts[place.index]
        return Ticket(
            group_id=f"{self.crew.job_id}/r{version}/{index}",
            source=self.source,
            round=version,
            index=index,
            version=version,
            shares=self.spec.sampling.shares(version, index),
            seed=derive_seed(self.spec.seed, "answers", version, place.pass_number, prompt.id),
            prompt=prompt,
            prompt_token_ids=self.prompts.token_ids[place.index],
        )

    def _check_losses(self, version: int, granted_in_round: int, counts: LedgerCounts) -> None:
        if granted_in_round > REPLACEMENT_FACTOR * self.spec.schedule.prompts_per_round:
            lost = [*counts.skipped.items(), *counts.failed.items(), ("expired", counts.expired)]
            told = ", ".join(f"{count} {reason}" for reason, count in lost if count)
            raise JobFailure(
                "no_usable_groups",
                f"{granted_in_round} groups were gathered for version {version + 1} and too few of them are usable ({told}); "
                f"{self.remedy}",
            )


class SelfPlayIntake(Intake):
    """Who writes what.

    Args:
        spec: the job.
        prompts: the training prompts.
        fleet: which samplers have proved which version.
        crew: the workers.
        journal: where failures are told.
        feedback: takes people's preferences in, where the job learns from them.
    """

    def __init__(
        self,
        spec: JobSpec,
        prompts: PreparedPrompts,
        fleet: Fleet,
        crew: Crew,
        journal: Journal,
        feedback: FeedbackDesk | None = None,
    ) -> None:
        super().__init__(spec, prompts, crew, journal)
        self.fleet, self.feedback = fleet, feedback
        self.assigned: dict[str, str] = {}  # group id to the sampler that writes it
        self.tries: Counter[str] = Counter()
        self.orphans: set[str] = set()
        self.dealing: set[str] = set()  # on their way to samplers, which takes a while in a large round
        self.slots_per_sampler = max(1, spec.resources.sampler.max_running_requests // spec.sampling.answers)

    async def grant(self, version: int) -> int:
        """Grant as many tickets as the rule allows, and hand them to samplers that serve ``version``. Returns how many."""
        if self.feedback is not None:
            await self.feedback.put_what_was_left()
        serving = self.fleet.serving(version)
        if not self.open.is_set() or not serving or (self.in_rounds and not self.fleet.settled(version)):
            return 0
        slots = None if self.in_rounds else len(serving) * self.slots_per_sampler - len(self.assigned)
        tickets = await self._admit(version, slots)
        await self._deal([ticket for ticket in tickets if ticket.source is AnswerSource.POLICY], serving)
        if self.feedback is not None:
            await self.feedback.put(tickets)
        return len(tickets)

    async def _from_outside(self, version: int, count: int) -> Sequence[RenderedPreference]:
        if self.feedback is None:
            return ()
        names = self.spec.schedule.domains or ()
        now = names.index(name) if (name := self.plan.at(version).name) is not None else len(names)
        return await self.feedback.take(count, later=names[now + 1 :], learned=names[:now])

    async def observe(self, version: int, statuses: Iterable[SamplerStatus]) -> None:
        """Learn from the samplers' statuses: what arrived, what failed, and what nobody works on any more."""
        granted = await self._granted()
        held = {group_id for status in statuses for group_id in status.in_flight}
        failures = [failure for status in statuses for failure in status.failures]
        for group_id in [group_id for group_id in self.assigned if group_id not in granted]:
            del self.assigned[group_id]
        retried = []
        for failure in failures:
            ticket = granted.get(failure.group_id)
            if ticket is not None and failure.attempt == ticket.attempt:  # an older attempt's failure was dealt with
                del granted[failure.group_id]
                if await self._may_be_retried(ticket, failure):
                    retried.append(ticket)
        if retried:
            await self._again(retried, version)
        # a group may be on its way from the sampler's list to the queue's rows: an orphan is one twice
        lost = granted.keys() - held - self.dealing
        twice, self.orphans = lost & self.orphans, lost
        if twice:
            await self._again([granted[group_id] for group_id in sorted(twice)], version)

    async def sampler_died(self, name: str, version: int) -> None:
        """Give a dead sampler's groups to others."""
        lost = {group_id for group_id, sampler in self.assigned.items() if sampler == name}
        granted = await self._granted()
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

    async def signal_health(self, version: int) -> dict[str, float]:
        """What the scorer measured, nothing while it is being restarted; and how much of the version comes from people."""
        health: dict[str, float] = {}
        try:
            health |= await self.crew.scorers[0].link.call("metrics")
        except WorkerError as error:
            self.journal.log.warning("no metrics of the scorer: %s", error)
        if self.feedback is not None:
            health |= await self.feedback.metrics(version)
        return health

    async def _granted(self) -> dict[str, Ticket]:
        """Tickets that samplers write for, by group id."""
        tickets: list[Ticket] = await self.queue.call("granted")
        return {ticket.group_id: ticket for ticket in tickets if ticket.source is AnswerSource.POLICY}

    async def _deal(self, tickets: Sequence[Ticket], serving: Sequence[str]) -> None:
        """Deal tickets by index, so that a sampler's share of a round is fixed by rule; a further attempt goes to the next sampler."""
        shares = {
            name: [ticket for ticket in tickets if (ticket.index + ticket.attempt) % len(serving) == place]
            for place, name in enumerate(serving)
        }
        dealt = {ticket.group_id for ticket in tickets}
        self.assigned |= {ticket.group_id: name for name, share in shares.items() for ticket in share}
        self.dealing |= dealt
        try:
            await asyncio.gather(*(self._hand(name, share) for name, share in shares.items() if share))
        finally:
            self.dealing -= dealt

    async def _hand(self, name: str, share: Sequence[Ticket]) -> None:
        try:
            await self.crew.member(name).link.call("write", share)
        except (WorkerDied, WorkerUnavailable, TimeoutError) as error:
            # the watch sees the sampler's death, or the groups as orphans, and deals them again
            self.journal.log.warning("%s took no tickets: %s", name, error)

    async def _again(self, tickets: Sequence[Ticket], version: int) -> None:
        serving = self.fleet.serving(version)
        if not serving:
            self.orphans |= {ticket.group_id for ticket in tickets}
            return
        renewed = [
            ticket.model_copy(
                update={
                    "attempt": ticket.attempt + 1,
                    "version": version,
                    "shares": self.spec.sampling.shares(version, ticket.index),
                }
            )
            for ticket in tickets
        ]
        await self.queue.call("admit", renewed)
        await self._deal(renewed, serving)

    async def _may_be_retried(self, ticket: Ticket, failure: GroupFailure) -> bool:
        """Whether a group that failed has tries left; it is given up otherwise."""
        self.tries[ticket.group_id] += 1
        if self.tries[ticket.group_id] < self.spec.resources.fleet.max_prompt_attempts:
            self.journal.log.warning("%s failed in the %s: %s", ticket.group_id, failure.stage, failure.reason)
            return True
        await self._give_up(ticket, failure.stage, failure.reason)
        return False

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
