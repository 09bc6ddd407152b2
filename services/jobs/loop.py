"""The self-play loop of one job: admit, learn, publish, prove, evaluate, and again.

In rounds each stage follows the one before; online, sampling goes on while the learner learns, bounded by the tickets (rule 7); offline,
groups are read from a file instead of being sampled.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress

from learner.records import PolicyVersion
from services.jobs.crew import Crew
from services.jobs.domains import DomainPlan
from services.jobs.errors import JobCancelled, JobFailure
from services.jobs.evaluations import Evaluator
from services.jobs.intake import Intake
from services.jobs.journal import Journal
from services.jobs.observation import job_metrics
from services.jobs.spec import JobSpec
from services.jobs.state import JobState, RequestedAction
from services.jobs.supervisor import Supervisor
from services.jobs.tickets import Standing
from workers.errors import CallTimeout, WorkerDied, WorkerError, WorkerUnavailable
from workers.fleet import Fleet, ProgressWatchdog
from workers.learner import LearnerStanding, StepResult
from workers.messages import SamplerStatus
from workers.replay.rows import LedgerCounts

RETRY_SECONDS = 0.5
"""Between two tries to reach workers that are being restarted."""

COUNT_SECONDS = 5.0
"""Between two times that counters of every worker and stage are written down; Prometheus asks no more often."""

TICK_SECONDS = 0.05
"""Between two looks at whether the next thing can be done."""


class SelfPlayLoop:
    """Turns the loop until the last version, a reason to stop, a failure or a cancel."""

    def __init__(
        self,
        spec: JobSpec,
        crew: Crew,
        fleet: Fleet,
        intake: Intake,
        evaluator: Evaluator,
        journal: Journal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec, self.crew, self.fleet, self.intake = spec, crew, fleet, intake
        self.evaluator, self.journal, self.clock = evaluator, journal, clock
        self.supervisor = Supervisor(crew, fleet, journal, spec, self._sampler_died)
        self.watchdog = ProgressWatchdog(spec.resources.fleet.progress_timeout_seconds, clock())
        self.version = 0
        self.learner_step = 0
        self.ranks = 1
        self.plan = DomainPlan(spec.schedule)
        self.unpaused = asyncio.Event()
        self.unpaused.set()
        self.sampled_at, self.sampled_tokens = clock(), dict[str, float]()
        self.counted_at = clock() - COUNT_SECONDS
        self.round_metrics: dict[str, float] = {}
        self.evaluating: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Start the workers and turn the loop.

        Raises:
            JobFailure: the job cannot go on.
            JobCancelled: somebody asked for its end.
        """
        self.journal.progress(0.0, "starting workers")
        leases = asyncio.ensure_future(self.supervisor.renew_leases())
        watch = asyncio.ensure_future(self._watch())
        turn = asyncio.ensure_future(self._turn())
        try:
            await asyncio.wait({leases, watch, turn, self.supervisor.failure}, return_when=asyncio.FIRST_COMPLETED)
            for task in (self.supervisor.failure, leases, watch, turn):
                if task.done():
                    task.result()
        finally:
            for task in (leases, watch, turn):
                task.cancel()
            await asyncio.gather(leases, watch, turn, return_exceptions=True)

    async def stop(self) -> None:
        """End the workers."""
        await self.supervisor.stop()

    # ---- turning ------------------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        await self.supervisor.start()
        await self._take_up()
        self.journal.state(JobState.RUNNING)
        admitting = asyncio.ensure_future(self._admit_forever())
        admitting.add_done_callback(self.supervisor.watch)
        try:
            while self.version < self.plan.last_version:
                await self._evaluate_if_due(last=False)
                stop = self.evaluator.reason_to_stop()
                if stop is not None:
                    self.journal.event(
                        "stopped_early", f"stopped at version {self.version}: {stop}", version=self.version
                    )
                    break
                if self.plan.combines_after(self.version):
                    await self._combine()
                elif not await self._learn_version():
                    break
            self.intake.open.clear()
            await self._evaluate_if_due(last=True)
            await self._tidy()
            await self._counted()
        finally:
            admitting.cancel()
            if self.evaluating is not None:
                self.evaluating.cancel()

    async def _tidy(self) -> None:
        """Remove the versions that the job was told not to keep. Version 0 stays: it is what win rates and resuming refer to."""
        if self.spec.output.keep_versions == "best-and-newest":
            best = self.journal.store.get(self.journal.job_id).best_version
            keep = {0, self.version} | ({best} if best is not None else set())
            for module in self.spec.modules:
                await self.crew.versions.link.call("retain", module, sorted(keep))

    async def _take_up(self) -> None:
        """Go on from the newest version: where a job starts, that is version 0."""
        learner = await self.supervisor.ready(self.crew.learner.name)
        newest: PolicyVersion = await learner.call("newest")
        self.journal.store.rewind(self.journal.job_id, learner_step=newest.learner_step)
        self.evaluator.recall()
        self._new_version(newest)

    def _new_version(self, newest: PolicyVersion) -> None:
        for manifest in newest.manifests:
            self.journal.version(manifest)
        self.version, self.learner_step = newest.version, newest.learner_step
        self.supervisor.newest = newest
        self.supervisor.sync()

    async def _learn_version(self) -> bool:
        """Learn from one version's groups and publish the next. Returns False when the prompts have run out."""
        began = publishing = self.clock()
        newest: PolicyVersion
        while True:
            try:
                learner = await self.supervisor.ready(self.crew.learner.name)
                standing: LearnerStanding = await learner.call(
                    "begin_version",
                    self.version,
                    self.version,
                    self.plan.at(self.version).name,
                    await self.supervisor.ready_ranks(),
                    timeout_seconds=self.spec.resources.learner.step_timeout_seconds,
                    setting="resources.learner.step_timeout_seconds",
                )
                self._tell_ranks(standing.ranks)
                self.learner_step = standing.learner_step
                self.intake.open.set()
                learned = await self._learn_passes(began)
                if learned == 0:
                    self.journal.event(
                        "prompts_used_up", f"the prompts ran out at version {self.version}", version=self.version
                    )
                    return False
                publishing = self.clock()
                newest = await learner.call(
                    "publish",
                    self.version + 1,
                    timeout_seconds=self.spec.resources.learner.step_timeout_seconds,
                    setting="resources.learner.step_timeout_seconds",
                )
                break
            except (WorkerDied, WorkerUnavailable) as error:
                newest = await self._go_back()
                self.journal.event("learner_interrupted", f"version {self.version + 1} begins again: {error}")
                if newest.version > self.version:  # the commit went through, only its answer was lost
                    break
        self.round_metrics |= {"publish_seconds": self.clock() - publishing, "round_seconds": self.clock() - began}
        self.round_metrics |= await self.intake.signal_health(newest.version)
        self._new_version(newest)
        return True

    async def _combine(self) -> None:
        """Have the learner end a domain, and publish the combination of the policies so far as the next version."""
        domain, began = self.plan.at(self.version).name, self.clock()
        self._say(f"combining what was learned up to {domain}")
        metrics: dict[str, float] = {}
        while True:
            try:
                learner = await self.supervisor.ready(self.crew.learner.name)
                metrics = await learner.call(
                    "combine",
                    self.version + 1,
                    timeout_seconds=self.spec.resources.learner.step_timeout_seconds,
                    setting="resources.learner.step_timeout_seconds",
                )
                newest: PolicyVersion = await learner.call("newest")
                break
            except (WorkerDied, WorkerUnavailable) as error:
                newest = await self._go_back()
                self.journal.event("learner_interrupted", f"version {self.version + 1} begins again: {error}")
                if newest.version > self.version:  # the commit went through, only its answer was lost
                    break
        self.round_metrics = {**metrics, "combining_seconds": self.clock() - began}
        self._new_version(newest)
        self.journal.event(
            "combined",
            f"version {self.version} combines the domains up to {domain}",
            version=self.version,
            metrics=metrics,
        )

    async def _go_back(self) -> PolicyVersion:
        """Have the learner go back to the newest committed version, once it and the data are up again (rule 11)."""
        while True:
            try:
                for data in (self.crew.queue, self.crew.versions):
                    await self.supervisor.ready(data.name)
                learner = await self.supervisor.ready(self.crew.learner.name)
                await learner.call("go_back")
                newest: PolicyVersion = await learner.call("newest")
                # what was measured of steps that are taken back would be counted twice
                self.journal.store.rewind(self.journal.job_id, learner_step=newest.learner_step)
                return newest
            except (WorkerDied, WorkerUnavailable) as error:
                self.journal.log.info("the learner cannot go back yet: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _learn_passes(self, began: float) -> int:
        """All optimizer steps of one version. Returns how many groups were learned from."""
        groups = await self._first_pass(began)
        size = self.spec.schedule.prompts_per_step
        for pass_number in range(1, self.spec.schedule.stop_after_epochs if groups else 1):
            while True:
                await self.unpaused.wait()
                if await self._step(size, minimum=1, pass_number=pass_number) is None:
                    break
        if self.intake.in_rounds:
            self.intake.open.clear()
        return groups

    async def _first_pass(self, began: float) -> int:
        in_rounds, office = self.intake.in_rounds, self.intake.office
        pairs, learning = 0.0, 0.0
        while True:
            await self.unpaused.wait()
            standing, counts = await self.intake.standing(self.version)
            want = office.next_batch(standing, self.spec.schedule.prompts_per_step)
            closed = (
                office.closed(standing, await self.intake.prompts_left(self.version, counts))
                and self.intake.open.is_set()
            )
            if closed:
                want = min(want, standing.ready)
            if want == 0:
                break
            if standing.ready < want or (in_rounds and not closed):
                self._tell_progress(standing, counts)
                await asyncio.sleep(self.intake.pause)
                continue
            if not learning:
                self.round_metrics = {f"{self.intake.gathering}_seconds": self.clock() - began}
                learning = self.clock()
            result = await self._step(want, minimum=None, pass_number=0)
            if result is not None:
                pairs += result.metrics["pairs"]
            self._tell_progress(standing, counts)
        seconds = self.clock() - began
        self.round_metrics |= {
            "learning_seconds": self.clock() - (learning or self.clock()),
            "pairs_per_second": pairs / seconds if seconds else 0.0,
        }
        return standing.leased

    async def _step(self, count: int, *, minimum: int | None, pass_number: int) -> StepResult | None:
        learner = await self.supervisor.ready(self.crew.learner.name)
        result: StepResult | None = await learner.call(
            "step",
            count,
            minimum=minimum,
            pass_number=pass_number,
            round=self.version if self.intake.in_rounds else None,
            timeout_seconds=self.spec.resources.learner.step_timeout_seconds,
            setting="resources.learner.step_timeout_seconds",
        )
        if result is not None:
            self.learner_step = result.learner_step
            self.journal.metrics(result.metrics, version=self.version, learner_step=result.learner_step)
        return result

    async def _evaluate_if_due(self, *, last: bool) -> None:
        """Evaluate the newest version if it is due: in rounds before the next one begins, online beside it, in order."""
        version, metrics, self.round_metrics = self.version, self.round_metrics, {}
        if last:
            await self._evaluated()  # it may be this very version that is being evaluated
        if not self.evaluator.due(version, last):
            self.journal.metrics(metrics, version=version)
        elif self.intake.in_rounds:
            self._say("proving and evaluating")
            await self._evaluate(version, metrics, None)
        else:
            self.evaluating = asyncio.ensure_future(self._evaluate(version, metrics, self.evaluating))
            self.evaluating.add_done_callback(self.supervisor.watch)
        if last:
            await self._evaluated()

    async def _evaluated(self) -> None:
        if self.evaluating is not None:
            self._say("evaluating")
            await self.evaluating

    async def _evaluate(self, version: int, metrics: dict[str, float], before: asyncio.Future[None] | None) -> None:
        if before is not None:
            await before
        began = self.clock()
        await self._ready_to_evaluate()
        await self.unpaused.wait()
        synced = {**metrics, "sync_seconds": self.clock() - began}
        await self.evaluator.evaluate(version, synced, self._ready_to_evaluate)

    async def _ready_to_evaluate(self) -> None:
        for scorer in self.crew.scorers:
            await self.supervisor.ready(scorer.name)
        await self._proved(everywhere=self.intake.in_rounds)

    async def _proved(self, *, everywhere: bool) -> None:
        """Wait until the newest version is proved, on all samplers or on any. The supervisor's failures end the wait."""
        limit = self.clock() + self.spec.resources.sampler.start_timeout_seconds
        while not (self.fleet.settled(self.version) if everywhere else self.fleet.proven_versions()):
            if self.clock() > limit:
                raise JobFailure(
                    "version_not_loaded",
                    f"version {self.version} was not proved within resources.sampler.start_timeout_seconds: "
                    f"{self.spec.resources.sampler.start_timeout_seconds:g}; see the samplers' logs",
                    "resources.sampler.start_timeout_seconds",
                )
            self.supervisor.sync()
            await asyncio.sleep(TICK_SECONDS)

    # ---- watching -----------------------------------------------------------------------------------------------

    async def _admit_forever(self) -> None:
        while True:
            try:
                self.supervisor.sync()
                if self.unpaused.is_set():
                    await self.intake.grant(self.version)
            except (WorkerError, CallTimeout) as error:
                self.journal.log.warning("nothing was granted: %s", error)
                await asyncio.sleep(1.0)
            except JobFailure as failure:
                self.supervisor.fail(failure)
                return
            await asyncio.sleep(self.intake.pause)

    async def _watch(self) -> None:
        period = self.spec.resources.fleet.heartbeat_seconds
        while True:
            self._obey(self.journal.request())
            statuses = await self.supervisor.look()
            if self.supervisor.up[self.crew.queue.name].is_set() and self.supervisor.newest is not None:
                try:
                    await self._observe(statuses)
                except (WorkerError, CallTimeout) as error:
                    self.journal.log.warning("the queue did not answer: %s", error)
            await asyncio.sleep(period)

    async def _observe(self, statuses: list[SamplerStatus]) -> None:
        await self.intake.observe(self.version, statuses)
        standing, counts = await self.intake.standing(self.version)
        now = self.clock()
        before = dict(self.sampled_tokens)  # a sampler that did not answer this time keeps its count
        self.sampled_tokens |= {s.sampler: s.metrics.get("sample_tokens_total", 0.0) for s in statuses}
        written = sum(max(0.0, count - before.get(name, 0.0)) for name, count in self.sampled_tokens.items())
        rate = written / (now - self.sampled_at) if now > self.sampled_at else 0.0
        self.sampled_at, tokens = now, sum(self.sampled_tokens.values())
        queue = await self.crew.queue.link.call("metrics")
        self.journal.metrics(
            {
                **self.fleet.as_metrics(),
                **queue,
                "sample_tokens_per_second": rate,
                "groups_in_flight": standing.granted,
            },
            version=self.version,
        )
        turns = self.unpaused.is_set()  # in the mark, so that the time of a pause does not count
        if now - self.counted_at >= COUNT_SECONDS:
            self.counted_at = now
            observed = job_metrics(
                self.crew, self.fleet, counts, statuses, self.supervisor.activities, self.supervisor.restarts
            )
            self.journal.metrics(observed, version=self.version)
        mark = (self.version, self.learner_step, counts.admitted, counts.granted, counts.ready, tokens, turns)
        stalled = self.watchdog.stalled(mark, now)
        judging = self.evaluating is not None and not self.evaluating.done()  # which has a time-out of its own
        if stalled and turns and not judging and standing.granted + standing.ready > 0:
            raise JobFailure(
                "stalled",
                f"nothing moved for {self.watchdog.timeout_seconds:g} s (resources.fleet.progress_timeout_seconds) with "
                f"{standing.granted} groups in flight, {standing.ready} ready and {standing.leased} leased",
                "resources.fleet.progress_timeout_seconds",
            )

    async def _counted(self) -> None:
        """Wait until the next heartbeat has written the counters down, due or not, so that they are those of the whole job."""
        self.counted_at = -math.inf
        with suppress(TimeoutError):  # of a queue that does not answer the counters stay what they were
            async with asyncio.timeout(COUNT_SECONDS):
                while self.counted_at == -math.inf:
                    await asyncio.sleep(TICK_SECONDS)

    def _obey(self, request: RequestedAction | None) -> None:
        if request is RequestedAction.CANCEL:
            raise JobCancelled
        if request is RequestedAction.PAUSE and self.unpaused.is_set() and self.supervisor.newest is not None:
            self.unpaused.clear()
            self.journal.state(JobState.PAUSED)
        if request is RequestedAction.CONTINUE and not self.unpaused.is_set():
            self.unpaused.set()
            self.journal.state(JobState.RUNNING)

    async def _sampler_died(self, name: str) -> None:
        await self.intake.sampler_died(name, self.version)

    def _tell_ranks(self, ranks: int) -> None:
        if ranks != self.ranks:
            self.ranks = ranks
            asked = self.spec.resources.learner.ranks
            self.journal.event(
                "learner_ranks", f"{ranks} of {asked} learner ranks learn from version {self.version} on", ranks=ranks
            )

    def _tell_progress(self, standing: Standing, counts: LedgerCounts) -> None:
        size = self.spec.schedule.prompts_per_round
        learning = standing.leased > 0 or standing.ready >= size
        written = min(1.0, (standing.ready + standing.leased) / size)
        gathering, gathered = self.intake.gathering, self.intake.gathering_share
        share = gathered * written + (1 - gathered) * min(1.0, standing.leased / size)
        stage = ("learning" if learning else gathering) if self.intake.in_rounds else f"{gathering} and learning"
        self.journal.progress((self.version + share) / self.plan.last_version, stage)

    def _say(self, stage: str) -> None:
        self.journal.progress(self.version / self.plan.last_version, stage)
