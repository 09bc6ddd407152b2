"""Decisions of the loop that no single job shows: what is evaluated and counted at its end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.jobs import loop
from services.jobs.crew import Crew
from services.jobs.layout import JobPaths
from services.jobs.loop import SelfPlayLoop
from services.jobs.spec import JobSpec
from workers.fleet import Fleet


class Evaluator:
    """Evaluates when it is let, and is due until it has."""

    def __init__(self) -> None:
        self.evaluated: list[int] = []
        self.go = asyncio.Event()

    def due(self, version: int, last: bool) -> bool:
        return version not in self.evaluated

    async def evaluate(self, version: int, _extra: object, _ready: object) -> None:
        await self.go.wait()
        self.evaluated.append(version)


def online_loop(home: Path, evaluator: Evaluator) -> SelfPlayLoop:
    """A loop whose samplers serve the newest version."""
    spec = JobSpec.model_validate(
        {
            "policy": {"model": "m"},
            "prompts": {"source": "p.jsonl"},
            "objective": {"kind": "sppo"},
            "schedule": {"mode": "online", "max_staleness": 1},
        }
    )
    journal: Any = SimpleNamespace(metrics=lambda *_, **__: None, progress=lambda *_: None)
    intake: Any = SimpleNamespace(in_rounds=False)
    crew = Crew("job", spec, JobPaths(home, "job"), prompts=())
    made = SelfPlayLoop(spec, crew, Fleet(spec.resources.fleet, ()), intake, evaluator, journal)  # type: ignore[arg-type]
    made._ready_to_evaluate = lambda: asyncio.sleep(0)  # type: ignore[assignment, method-assign]
    made._say = lambda *_: None  # type: ignore[method-assign]
    return made


async def test_a_version_that_is_being_evaluated_when_the_job_ends_is_evaluated_once(tmp_path: Path) -> None:
    evaluator = Evaluator()
    made = online_loop(tmp_path, evaluator)
    made.version = 3
    await made._evaluate_if_due(last=False)
    ending = asyncio.create_task(made._evaluate_if_due(last=True))
    await asyncio.sleep(0.05)
    evaluator.go.set()
    await ending
    assert evaluator.evaluated == [3]


async def test_the_last_version_is_evaluated_after_the_one_before(tmp_path: Path) -> None:
    evaluator = Evaluator()
    evaluator.go.set()
    made = online_loop(tmp_path, evaluator)
    for version, last in ((3, False), (4, True)):
        made.version = version
        await made._evaluate_if_due(last=last)
    assert evaluator.evaluated == [3, 4]


async def test_counters_are_written_once_more_at_the_end_unless_the_queue_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "COUNT_SECONDS", 0.3)
    made = online_loop(tmp_path, Evaluator())
    await made._counted()  # nobody counts, and the job ends all the same
    counting = asyncio.create_task(made._counted())
    await asyncio.sleep(0)
    assert made.clock() - made.counted_at >= loop.COUNT_SECONDS, "the next heartbeat counts"
    made.counted_at = made.clock()
    await counting
