"""Evaluation of versions on held-out prompts: samplers answer, the scorer judges, the controller writes the numbers down.

Answers go from the samplers to the scorer by reference; they never pass through the controller.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from learner.seeds import derive_seed
from services.jobs.crew import Crew
from services.jobs.domains import DomainPlan
from services.jobs.journal import Journal
from services.jobs.prepare import PreparedPrompts
from services.jobs.selection import Evaluation, best_version, stop_reason
from services.jobs.spec import JobSpec
from services.jobs.transfer import transfer_metrics
from workers.errors import CallTimeout, WorkerError, WorkerUnavailable
from workers.fleet import Fleet
from workers.messages import EvaluationItem, EvaluationResult

TRIES = 3
"""Tries of one evaluation, when a worker dies in the middle of it."""

RETRY_SECONDS = 3.0
"""Between two tries: time for the heartbeat to notice the death."""

PING_SECONDS = 20.0
"""A worker that is there says so within this time, whatever it works on."""

SILENCE = 60.0
"""Seconds beyond a lease within which the heartbeat has called a silent worker dead."""


class Evaluator:
    """Judges versions against version 0, and remembers what came out.

    Args:
        spec: the job.
        prompts: the held-out prompts; None when the job has none.
        crew: the workers.
        fleet: which samplers serve which version.
        journal: where results are told.
    """

    def __init__(
        self, spec: JobSpec, prompts: PreparedPrompts | None, crew: Crew, fleet: Fleet, journal: Journal
    ) -> None:
        self.spec, self.prompts, self.crew, self.fleet, self.journal = spec, prompts, crew, fleet, journal
        self.plan = DomainPlan(spec.schedule)
        self.evaluations: list[Evaluation] = []
        self.baseline: list[Any] = []

    def recall(self) -> None:
        """Take up what earlier attempts of this job measured."""
        for record in self.journal.store.versions(self.journal.job_id):
            rate, kl = record.metrics.get("win_rate"), record.metrics.get("kl_nats")
            if rate is not None:
                self.evaluations.append(Evaluation(record.version, rate, kl))

    def due(self, version: int, last: bool) -> bool:
        """Whether a version is to be evaluated: every so many, version 0 among them, the last one, and the end of every domain."""
        done = any(evaluation.version == version for evaluation in self.evaluations)
        wanted = last or version % self.spec.evaluation.every == 0 or self.plan.ends_at(version) is not None
        return self.prompts is not None and not done and wanted

    async def evaluate(
        self, version: int, extra: dict[str, float], ready: Callable[[], Awaitable[None]]
    ) -> EvaluationResult:
        """Judge a version that the samplers serve, and write the result down.

        Args:
            version: the newest version, proved by at least one sampler.
            extra: further metrics of this version for the same row.
            ready: waits until the scorer is up and samplers serve a version; a worker may be being restarted.

        Raises:
            WorkerError: workers kept dying, or cannot be reached although nobody calls them dead.
        """
        deaths, silence_ends = 0, math.inf
        while True:
            await ready()
            try:
                await self._all_answer()
                result = await self._evaluate(version)
                break
            except WorkerUnavailable as error:
                # a machine that cannot be reached may be back in a minute; the heartbeat calls its workers dead after a lease at the latest
                silence_ends = min(silence_ends, time.monotonic() + self.spec.resources.fleet.lease_seconds + SILENCE)
                if time.monotonic() > silence_ends:
                    raise
                self._again(version, error)
            except WorkerError as error:
                deaths += 1
                if deaths == TRIES:
                    raise
                self._again(version, error)
            await asyncio.sleep(RETRY_SECONDS)
        self.record(result, extra)
        return result

    def record(self, result: EvaluationResult, extra: Mapping[str, float]) -> None:
        """Write an evaluation down, with the averages over domains where its version ends one.

        Args:
            result: what came out.
            extra: further metrics of this version for the same row.
        """
        version, store, job_id = result.version, self.journal.store, self.journal.job_id
        metrics = {**result.as_metrics(), **extra}
        measured = {record.version: record.metrics for record in store.versions(job_id) if record.module == "fast"}
        metrics |= transfer_metrics(self.plan, version, {**measured, version: metrics})
        self.journal.metrics(metrics, version=version)
        store.set_version_metrics(job_id, version, metrics)
        self.evaluations.append(Evaluation(version, result.judge.mean, result.kl_nats))
        self.journal.event(
            "evaluated",
            f"version {version}: win rate {result.judge.mean:.1%} against version 0, KL {result.kl_nats:.2f} nats",
            version=version,
            metrics=metrics,
            examples=[example.model_dump(mode="json") for example in result.examples],
        )
        best = best_version(self.evaluations)
        if best is not None:
            store.mark_best(job_id, best)

    def reason_to_stop(self) -> str | None:
        """Why the job should stop now, if it should."""
        schedule = self.spec.schedule
        return stop_reason(self.evaluations, schedule.early_stop_rounds, schedule.max_kl)

    def _again(self, version: int, error: Exception) -> None:
        self.journal.log.warning("the evaluation of version %d begins again: %s", version, error)
        self.baseline = []

    async def _all_answer(self) -> None:
        """Ask who serves whether it is there, before so much is asked of all.

        Raises:
            WorkerDied: somebody is dead.
            WorkerUnavailable: somebody cannot be reached, or does not answer.
        """
        serving = self.fleet.serving(max(self.fleet.proven_versions()))
        members = (*self.crew.scorers, *(self.crew.member(name) for name in serving))
        try:
            await asyncio.gather(*(member.link.call("ping", timeout_seconds=PING_SECONDS) for member in members))
        except CallTimeout as error:
            raise WorkerUnavailable(str(error)) from error

    async def _evaluate(self, version: int) -> EvaluationResult:
        began = time.time()
        if not self.baseline:
            self.baseline = self._ask(0, "baseline")
        shares = self._ask(version, version)
        scorer = self.crew.scorers[0].link
        result: EvaluationResult = await scorer.call(
            "evaluate",
            version,
            began,
            len(shares),
            *shares,
            *self.baseline,
            timeout_seconds=self.spec.evaluation.timeout_seconds,
            setting="evaluation.timeout_seconds",
        )
        return result

    def _ask(self, version: int, purpose: str | int) -> list[Any]:
        """Have the samplers answer every held-out prompt once; returns references to their shares."""
        assert self.prompts is not None
        newest = max(self.fleet.proven_versions())
        serving = self.fleet.serving(newest)
        # a job that begins with the bare model needs no adapter for version 0's log-probabilities
        reference = None if self.spec.policy.adapter is None else 0
        items = [
            EvaluationItem(
                prompt=prompt,
                prompt_token_ids=token_ids,
                seed=derive_seed(self.spec.seed, "evaluation", purpose, prompt.id),
            )
            for prompt, token_ids in zip(self.prompts.prompts, self.prompts.token_ids, strict=True)
        ]
        return [
            self.crew.member(name).link.begin("answer", items[place :: len(serving)], version, reference)
            for place, name in enumerate(serving)
        ]
