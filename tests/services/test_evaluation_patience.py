"""An evaluation outlives machines that cannot be reached for a while, and ends when its workers keep dying."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from job_world import running_job

from services.jobs import evaluations
from services.jobs.crew import Crew
from services.jobs.evaluations import SILENCE, TRIES, Evaluator
from services.jobs.journal import Journal
from services.jobs.layout import JobPaths
from services.jobs.prepare import PreparedPrompts
from services.jobs.spec import JobSpec
from services.jobs.store import JobStore
from services.settings import Settings
from workers.errors import CallTimeout, WorkerDied, WorkerError, WorkerUnavailable
from workers.fleet import Fleet
from workers.messages import EvaluationResult, JudgedWinRate

LEASE_SECONDS = 30.0


class Trial:
    """An evaluator whose workers answer as told, on a clock that only its own pauses move."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = JobStore(Settings(home=home).store_url)
        job_id = running_job(store, home, resources={"fleet": {"lease_seconds": LEASE_SECONDS}})
        spec = JobSpec.model_validate(store.get(job_id).spec)
        crew = Crew(job_id, spec, JobPaths(home, job_id), prompts=())
        self.fleet = Fleet(spec.resources.fleet, tuple(member.name for member in crew.samplers))
        store.add_version(job_id, 0, digest="d", learner_step=0)
        self.evaluator = Evaluator(
            spec, PreparedPrompts((), ()), crew, self.fleet, Journal(store, job_id, logging.getLogger("test"))
        )
        self.now = 1000.0
        self.asked = 0
        self.outcomes: list[WorkerError | None] = []
        monkeypatch.setattr(evaluations.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(evaluations.asyncio, "sleep", self.sleep)
        monkeypatch.setattr(self.evaluator, "_all_answer", self.answer)
        monkeypatch.setattr(self.evaluator, "_evaluate", self.evaluate)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def ready(self) -> None:
        pass

    async def answer(self) -> None:
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome

    async def evaluate(self, version: int) -> EvaluationResult:
        self.asked += 1
        even = JudgedWinRate(mean=0.5, low=0.4, high=0.6, tie_rate=0.0, count=64)
        return EvaluationResult(
            version=version,
            judge=even,
            gold=None,
            kl_nats=0.0,
            kl_k1_nats=0.0,
            entropy_nats_per_token=1.0,
            answer_length_tokens=8.0,
            truncated_share=0.0,
            seconds=1.0,
            examples=(),
            domains={},
        )

    async def run(self, outcomes: Sequence[WorkerError | None]) -> EvaluationResult:
        self.outcomes = list(outcomes)
        return await self.evaluator.evaluate(0, {}, self.ready)


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    return Trial(tmp_path, monkeypatch)


async def test_a_machine_that_is_back_within_a_lease_costs_nothing_but_time(trial: Trial) -> None:
    away = int((LEASE_SECONDS + SILENCE) / evaluations.RETRY_SECONDS) - 1
    result = await trial.run([WorkerUnavailable("no route")] * away)
    assert result.version == 0 and trial.asked == 1, "nobody is asked while somebody cannot be reached"


async def test_one_that_nobody_calls_dead_and_that_stays_away_ends_it(trial: Trial) -> None:
    with pytest.raises(WorkerUnavailable, match="no route"):
        await trial.run([WorkerUnavailable("no route")] * 1000)
    assert trial.now - 1000 > LEASE_SECONDS


async def test_workers_that_keep_dying_end_it(trial: Trial) -> None:
    assert (await trial.run([WorkerDied("gone")] * (TRIES - 1))).version == 0
    with pytest.raises(WorkerDied):
        await trial.run([WorkerDied("gone")] * TRIES)


async def test_silence_is_being_unreachable(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object, **__: object) -> None:
        raise CallTimeout("no answer within 20 s")

    trial.fleet.samplers.clear()
    monkeypatch.setattr(Fleet, "proven_versions", lambda _: {0})
    monkeypatch.setattr("workers.cluster.Link.call", silent)
    with pytest.raises(WorkerUnavailable, match="no answer within 20 s"):
        await Evaluator._all_answer(trial.evaluator)
