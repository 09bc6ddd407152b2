"""Several learner ranks in a job: what is refused, who is started, what it takes, and who learns when one is lost (rules 10, 12 and 15)."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from learner.errors import InputError
from services.jobs import spec_checks, supervisor
from services.jobs.crew import Crew
from services.jobs.errors import JobFailure
from services.jobs.layout import JobPaths
from services.jobs.machine import Machine
from services.jobs.memory import estimate_memory
from services.jobs.spec import JobSpec
from services.jobs.supervisor import Supervisor
from workers.errors import WorkerDied
from workers.fleet import Fleet
from workers.learner_rank import LearnerRank


def spec(**learner: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "policy": {"model": "m"},
            "prompts": {"source": "p.jsonl"},
            "schedule": {"prompts_per_step": 4},
            "resources": {"learner": learner, "fleet": {"max_worker_restarts": 1}},
        }
    )


@pytest.mark.parametrize(
    ("learner", "sentence"),
    [
        ({"gradient_reducer": "median"}, r"gradient_reducer: median needs at least 3 ranks.*ranks is 1; raise it"),
        (
            {"gradient_reducer": "flag", "ranks": 2},
            r"gradient_reducer: flag needs at least 3 ranks.*ranks is 2; raise it",
        ),
        ({"ranks": 5}, r"ranks: 5 is more than the 4 groups of an optimizer batch \(schedule.prompts_per_step\)"),
    ],
)
def test_ranks_that_make_no_sense_are_refused(learner: dict[str, Any], sentence: str) -> None:
    (problem,) = spec_checks.problems(spec(**learner))
    assert problem.startswith("resources.learner.")
    assert re.search(sentence, problem), problem


def test_ranks_that_make_sense_are_not() -> None:
    for learner in ({"ranks": 4}, {"ranks": 3, "gradient_reducer": "flag"}):
        assert list(spec_checks.problems(spec(**learner))) == []


def test_every_rank_counts_on_the_machine_and_in_memory() -> None:
    machine = Machine(cpus=2, gpus=0, memory_bytes=1 << 40)
    (problem,) = spec_checks.machine_problems(spec(ranks=3, cpus=0.8), machine)
    assert "learner 3 x 0.8" in problem and "resources.learner.ranks" in problem
    items = [item for item in estimate_memory(spec(ranks=3), None, 0).items if item.worker == "learner"]
    assert {item.count for item in items} == {3}


def crew(ranks: int) -> Crew:
    return Crew("job", spec(ranks=ranks), JobPaths(Path("/nowhere"), "job"), prompts=())


def test_each_rank_is_a_worker_of_its_own_beside_rank_0() -> None:
    assert crew(1).ranks == ()
    three = crew(3)
    assert three.learner.name == "job-learner"
    assert [member.name for member in three.ranks] == ["job-learner-1", "job-learner-2"]
    for member in three.ranks:
        assert (member.actor, member.place) == (LearnerRank, "learner")
        assert member.arguments[0].name == member.name and member in three.members


class Rank:
    """Stands for a rank's link: answers until it is dead."""

    def __init__(self, name: str) -> None:
        self.name, self.dead = name, False
        self.faults: list[Exception] = []
        self.renewals = 0
        self.starts: asyncio.Event = asyncio.Event()

    async def call(self, method: str, *_: Any, **__: Any) -> Any:
        if self.dead:
            raise WorkerDied("killed")
        if method == "start" and self.faults:
            raise self.faults.pop(0)
        if method == "start":
            await self.starts.wait()
        return None if method == "unread_log" else {}

    def begin(self, method: str, *_: Any) -> None:
        assert method == "renew_lease"
        self.renewals += 1


class World:
    """A supervisor of three ranks, all up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, home: Path, wait: float = 0.3, **learner: Any) -> None:
        self.events: list[str] = []
        settings = spec(ranks=3, rank_timeout_seconds=wait, **learner)
        self.crew = Crew("job", settings, JobPaths(home, "job"), prompts=())
        self.links = {member.name: Rank(member.name) for member in self.crew.ranks}
        for member in self.crew.ranks:
            member.__dict__["link"] = self.links[member.name]  # where the cached property keeps it
        monkeypatch.setattr(self.crew, "dismiss_one", lambda member: None)
        monkeypatch.setattr(self.crew, "spawn", self.spawn)
        log = logging.getLogger("test")
        journal: Any = SimpleNamespace(log=log, event=lambda kind, *_, **__: self.events.append(kind))
        fleet = Fleet(settings.resources.fleet, ())
        self.supervisor = Supervisor(self.crew, fleet, journal, settings, sampler_died=None)  # type: ignore[arg-type]
        for member in self.crew.ranks:
            self.supervisor.up[member.name].set()

    def spawn(self, member: Any) -> None:
        self.links[member.name].dead = False


async def test_a_rank_that_dies_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(monkeypatch, tmp_path, wait=30)
    assert await world.supervisor.ready_ranks() == ("job-learner-1", "job-learner-2")
    link = world.links["job-learner-2"]
    link.dead = True
    asyncio.get_running_loop().call_later(0.1, link.starts.set)
    assert await world.supervisor.ready_ranks() == ("job-learner-1", "job-learner-2")
    assert world.events == ["worker_died", "worker_restarted"]


async def test_the_others_go_on_without_a_rank_that_does_not_come_back_in_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, tmp_path)
    link = world.links["job-learner-1"]
    link.dead = True
    assert await world.supervisor.ready_ranks() == ("job-learner-2",)
    link.starts.set()
    assert await world.supervisor.ready_ranks() == ("job-learner-1", "job-learner-2"), "it may come back later"


async def test_a_rank_that_dies_too_often_is_given_up_without_failing_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, tmp_path, wait=30)
    link = world.links["job-learner-1"]
    link.starts.set()
    for _ in range(2):
        link.dead = True
        names = await world.supervisor.ready_ranks()
    assert names == ("job-learner-2",)
    assert world.events[-1] == "learner_rank_given_up" and not world.supervisor.failure.done()
    began = asyncio.get_running_loop().time()
    assert await world.supervisor.ready_ranks() == ("job-learner-2",)
    assert asyncio.get_running_loop().time() - began < 10, "nobody waits for it any more"


async def test_too_few_ranks_for_the_reducer_fail_the_job_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, tmp_path, gradient_reducer="flag")
    world.links["job-learner-1"].dead = True
    with pytest.raises(JobFailure, match=r"2 of 3 learner ranks are left, and .*: flag needs 3"):
        await world.supervisor.ready_ranks()


async def test_a_worker_that_does_not_start_is_started_again_whatever_kept_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, tmp_path, wait=30)
    link = world.links["job-learner-2"]
    world.supervisor.spec.resources.fleet.__dict__["max_worker_restarts"] = 2
    link.dead, link.faults = True, [RuntimeError("out of memory")]
    link.starts.set()
    assert await world.supervisor.ready_ranks() == ("job-learner-1", "job-learner-2")
    assert world.events == ["worker_died", "worker_died", "worker_restarted"]


async def test_a_worker_whose_model_is_not_there_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, tmp_path)
    link = world.links["job-learner-2"]
    link.dead, link.faults = True, [InputError("policy.model: 'm' is not on this machine")]
    await world.supervisor.ready_ranks()
    with pytest.raises(InputError, match="is not on this machine"):
        await world.supervisor.failure
    assert world.events == ["worker_died"]


async def test_leases_are_renewed_whatever_the_heartbeat_waits_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, tmp_path)
    world.supervisor.spec.resources.fleet.__dict__["lease_seconds"] = 0.05
    world.supervisor.up["job-learner-2"].clear()
    renewing = asyncio.create_task(world.supervisor.renew_leases())
    async with asyncio.timeout(30):
        while world.links["job-learner-1"].renewals < 5:
            await asyncio.sleep(0.01)
        assert world.links["job-learner-2"].renewals == 0
        world.supervisor.starting.add("job-learner-2")  # a large model takes longer to load than a lease lasts
        while not world.links["job-learner-2"].renewals:
            await asyncio.sleep(0.01)
    renewing.cancel()


async def test_a_worker_that_does_not_come_up_names_its_own_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(supervisor, "PING_TIMEOUT_SECONDS", 0.0)
    world = World(monkeypatch, tmp_path, start_timeout_seconds=0.01)
    with pytest.raises(JobFailure, match=r"within 0.02 s \(resources.learner.start_timeout_seconds: 0.01\)"):
        await world.supervisor.ready("job-learner")
