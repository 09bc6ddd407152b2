"""Where a job's engines go: which share a machine, what is refused, and how long a job waits for room (rules 9 and 15)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.jobs import spec_checks, supervisor
from services.jobs.crew import Crew
from services.jobs.errors import JobFailure
from services.jobs.layout import JobPaths
from services.jobs.placement import demands, plan
from services.jobs.spec import JobSpec
from services.jobs.supervisor import Supervisor
from workers.capacity import Node, check_capacity, share
from workers.fleet import Fleet


def spec(mode: str = "dedicated", *, offline: bool = False, wait: float = 60, **resources: Any) -> JobSpec:
    placement = {"mode": mode, "timeout_seconds": wait}
    return JobSpec.model_validate(
        {
            "policy": {"model": "m"},
            "prompts": {"source": "p.jsonl"},
            "objective": {"kind": "dpo"} if offline else {"kind": "sppo"},
            "schedule": {"prompts_per_step": 4, "mode": "offline" if offline else "rounds"},
            "resources": {"placement": placement, **resources},
        }
    )


def crew(job: JobSpec) -> Crew:
    return Crew("job", job, JobPaths(Path("/nowhere"), "job"), prompts=())


def workers(job: JobSpec) -> list[tuple[str, ...]]:
    return [tuple(name.removeprefix("job-") for name in bundle.workers) for bundle in crew(job).bundles]


def test_each_engine_has_a_bundle_of_its_own() -> None:
    job = spec(sampler={"count": 2}, learner={"ranks": 2})
    assert workers(job) == [("sampler-0",), ("sampler-1",), ("learner",), ("learner-1",), ("scorer-0",)]


def test_colocated_samplers_and_ranks_share_bundles_pair_by_pair() -> None:
    sampler, learner = {"count": 2, "gpus": 0.5, "cpus": 1.0}, {"gpus": 0.4, "cpus": 0.5}
    job = spec("colocated", sampler={**sampler, "gpu_memory_utilization": 0.5}, learner=learner)
    assert workers(job) == [("sampler-0", "learner"), ("sampler-1",), ("scorer-0",)]
    shared = crew(job).bundles[0].demand
    assert shared.resources() == {"CPU": 1.5, "GPU": 0.9, "sparring_sampler": 0.001, "sparring_learner": 0.001}
    assert workers(spec("colocated", learner={"ranks": 2})) == [("sampler-0", "learner"), ("learner-1",), ("scorer-0",)]


@given(
    mode=st.sampled_from(["dedicated", "colocated"]),
    counts=st.tuples(*(st.integers(0, 4) for _ in range(3))),
)
def test_every_engine_is_in_one_bundle_and_nothing_is_asked_for_twice(mode: str, counts: tuple[int, int, int]) -> None:
    resources = spec(mode).resources
    samplers, scorers, learners = (
        [f"{kind}{n}" for n in range(count)] for kind, count in zip("abc", counts, strict=True)
    )
    bundles = plan(resources, samplers=samplers, scorers=scorers, learners=learners)
    assert sorted(name for bundle in bundles for name in bundle.workers) == sorted(samplers + scorers + learners)
    asked = sum(bundle.demand.cpus for bundle in bundles)
    per = (resources.sampler.cpus, resources.scorer.cpus, resources.learner.cpus)
    assert asked == pytest.approx(sum(count * cpus for count, cpus in zip(counts, per, strict=True)))


def test_equal_bundles_are_counted_in_what_is_asked_for() -> None:
    job = spec(sampler={"count": 3, "cpus": 1.0})
    assert [(demand.setting, demand.count) for demand in demands(crew(job).bundles)] == [
        ("resources.sampler", 3),
        ("resources.learner", 1),
        ("resources.scorer", 1),
    ]


@given(cpus=st.tuples(st.floats(1e-3, 8), st.floats(1e-3, 8)))
def test_what_is_set_aside_for_two_workers_is_what_they_ask_for(cpus: tuple[float, float]) -> None:
    """Ray rounds every share to four digits, and does not start a worker whose share is a digit too large."""
    job = spec("colocated", sampler={"cpus": cpus[0]}, learner={"cpus": cpus[1]})
    together = crew(job).bundles[0].demand.resources()["CPU"]
    assert round(together * 10_000) == round(share(cpus[0]) * 10_000) + round(share(cpus[1]) * 10_000)


def test_a_shared_bundle_needs_a_machine_that_carries_both_roles() -> None:
    (together, *_) = (bundle.demand for bundle in crew(spec("colocated")).bundles)
    check_capacity([together], [Node(4.0)])
    apart = [Node(4.0, roles=frozenset({"sampler"})), Node(4.0, roles=frozenset({"learner"}))]
    with pytest.raises(ValueError, match=r"carries the roles sampler and learner; .*\"sparring_learner\": 1\}"):
        check_capacity([together], apart)
    with pytest.raises(
        ValueError, match=r"sampler and resources.learner together: .* on one machine, and no machine has"
    ):
        check_capacity([together], [Node(together.cpus * 0.6)] * 2)


@pytest.mark.parametrize(
    ("job", "sentence"),
    [
        (
            spec("colocated", sampler={"gpus": 0.6, "gpu_memory_utilization": 0.5}, learner={"gpus": 0.5}),
            r"mode: colocated shares one GPU .*sampler.gpus: 0.6\) .*learner.gpus: 0.5\), 1.1 in all",
        ),
        (spec("colocated", sampler={"gpus": 2, "tensor_parallel_size": 2}), r"colocated shares one GPU .* 2 in all"),
        (spec(sampler={"gpus": 0.5}), r"gpu_memory_utilization: 0.85 is more than .*gpus: 0.5.*; lower it to 0.5"),
    ],
)
def test_what_cannot_share_a_gpu_is_refused(job: JobSpec, sentence: str) -> None:
    (problem,) = spec_checks.problems(job)
    assert re.search(sentence, problem), problem


def test_nothing_to_share_with_is_told() -> None:
    (warning,) = (w for w in spec_checks.warnings(spec("colocated", offline=True)) if "placement" in w)
    assert "no effect without samplers" in warning


class World:
    """A supervisor whose cluster answers these, one after another, when it is asked whether there is room."""

    def __init__(self, home: Path, answers: Iterator[bool], wait: float = 60) -> None:
        self.events: list[tuple[str, str]] = []
        job = spec(wait=wait)
        self.crew = Crew("job", job, JobPaths(home, "job"), prompts=())
        self.reserved = 0

        def reserve() -> None:
            self.reserved += 1

        self.crew.reserve = reserve  # type: ignore[method-assign]
        self.crew.has_room = lambda _: next(answers)  # type: ignore[method-assign]
        journal: Any = SimpleNamespace(
            event=lambda kind, message, **_: self.events.append((kind, message)), progress=lambda *_: None
        )
        fleet = Fleet(job.resources.fleet, ())
        self.supervisor = Supervisor(self.crew, fleet, journal, job, sampler_died=None)  # type: ignore[arg-type]


async def test_a_job_that_waits_for_room_says_so_once(tmp_path: Path) -> None:
    world = World(tmp_path, iter([False, False, True]))
    await world.supervisor._find_room()
    ((kind, message),) = world.events
    assert kind == "waits_for_room" and world.reserved == 1
    assert "1 x resources.sampler (1 cpus, 0 gpus), 1 x resources.learner" in message


async def test_a_job_that_finds_no_room_in_time_fails_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "ROOM_SECONDS", 0)
    world = World(tmp_path, iter(lambda: False, True), wait=0.05)
    with pytest.raises(JobFailure, match=r"no room within 0.05 s for 1 x resources.sampler .*timeout_seconds") as told:
        await world.supervisor._find_room()
    assert told.value.code == "no_room" and told.value.param == "resources.placement.timeout_seconds"
