"""Retries of failed groups: elsewhere first, each failure counted once, given up loudly (rule 3)."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from learner.records import Prompt, Stage, Ticket
from services.jobs.intake import SelfPlayIntake
from services.jobs.prepare import PreparedPrompts
from services.jobs.spec import JobSpec
from workers.config import FleetConfig
from workers.fleet import Fleet
from workers.messages import GroupFailure, SamplerStatus


class Recorder:
    """Stands for a worker's link: writes down what was asked, and answers `granted` from its own tickets."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.tickets: dict[str, Ticket] = {}

    async def call(self, method: str, *arguments: Any, **_: Any) -> Any:
        self.calls.append((method, *arguments))
        if method == "granted":
            return list(self.tickets.values())
        if method == "admit":
            self.tickets |= {ticket.group_id: ticket for ticket in arguments[0]}
        if method == "fail":
            del self.tickets[arguments[0]]
        return None

    def written(self) -> list[Ticket]:
        return [ticket for method, *rest in self.calls if method == "write" for ticket in rest[0]]


class Desk:
    """An intake with two samplers that serve version 0, and one granted group."""

    def __init__(self) -> None:
        self.links = {name: Recorder() for name in ("queue", "s0", "s1")}
        self.events: list[str] = []
        members = {name: SimpleNamespace(name=name, link=link) for name, link in self.links.items()}
        crew = SimpleNamespace(job_id="job", queue=members["queue"], member=members.__getitem__)
        journal = SimpleNamespace(log=logging.getLogger("test"), event=lambda kind, *_, **__: self.events.append(kind))
        prompt = Prompt.of("p", "Hello?")
        spec = JobSpec.model_validate({"policy": {"model": "m"}, "prompts": {"source": "p.jsonl"}})
        fleet = Fleet(FleetConfig(), ("s0", "s1"))
        for name in fleet.names:
            fleet.started(name)
            fleet.proved(name, 0)
        self.intake = SelfPlayIntake(spec, PreparedPrompts((prompt,), ((1, 2),)), fleet, crew, journal)  # type: ignore[arg-type]
        self.ticket = Ticket(
            group_id="job/r0/0", round=0, index=0, version=0, seed=1, prompt=prompt, prompt_token_ids=(1, 2)
        )
        self.links["queue"].tickets = {self.ticket.group_id: self.ticket}

    async def look(self, *failed_attempts: int, in_flight: tuple[str, ...] = ()) -> None:
        failures = tuple(
            GroupFailure(group_id="job/r0/0", attempt=attempt, stage=Stage.SAMPLER, reason="x")
            for attempt in failed_attempts
        )
        await self.intake.observe(0, [SamplerStatus(sampler="s0", in_flight=in_flight, failures=failures, metrics={})])


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_a_failed_group_is_tried_on_the_next_sampler(desk: Desk) -> None:
    await desk.look(0)
    assert desk.links["s0"].written() == []
    (ticket,) = desk.links["s1"].written()
    assert ticket.attempt == 1 and ticket.seed == desk.ticket.seed


async def test_the_failure_of_an_older_attempt_does_not_count_again(desk: Desk) -> None:
    await desk.look(0)
    for _ in range(5):
        await desk.look(0, in_flight=("job/r0/0",))
    assert len(desk.links["s1"].written()) == 1 and "group_failed" not in desk.events


async def test_a_group_is_given_up_loudly_after_its_attempts(desk: Desk) -> None:
    for attempt in range(FleetConfig().max_prompt_attempts):
        await desk.look(attempt)
    assert desk.events == ["group_failed"]
    assert desk.links["queue"].calls[-1][:3] == ("fail", "job/r0/0", Stage.SAMPLER)


async def test_a_group_that_nobody_holds_is_dealt_again_at_the_second_look(desk: Desk) -> None:
    await desk.look()
    assert desk.links["s1"].written() == []
    await desk.look()
    assert len(desk.links["s1"].written()) == 1


async def test_a_group_that_is_on_its_way_to_a_sampler_is_not_dealt_a_second_time(desk: Desk) -> None:
    taken, go = asyncio.Event(), asyncio.Event()
    write = desk.links["s0"].call

    async def slowly(method: str, *arguments: Any, **options: Any) -> Any:
        if method == "write":
            taken.set()
            await go.wait()
        return await write(method, *arguments, **options)

    desk.links["s0"].call = slowly  # type: ignore[method-assign]
    other = desk.ticket.model_copy(update={"group_id": "job/r0/1", "index": 1})
    desk.links["queue"].tickets[other.group_id] = other
    dealing = asyncio.create_task(desk.intake._deal([desk.ticket, other], ["s0", "s1"]))
    await taken.wait()
    assert [ticket.index for ticket in desk.links["s1"].written()] == [1], (
        "no sampler waits for another to take its share"
    )
    for _ in range(3):
        await desk.look(in_flight=("job/r0/1",))
    go.set()
    await dealing
    assert [ticket.attempt for ticket in desk.links["s0"].written()] == [0]
    for _ in range(2):
        await desk.look(in_flight=("job/r0/1",))
    assert [ticket.attempt for ticket in desk.links["s1"].written()] == [0, 1], "lost on the way: it is dealt again"


async def test_groups_that_failed_together_are_dealt_again_together(desk: Desk) -> None:
    others = [desk.ticket.model_copy(update={"group_id": f"job/r0/{n}", "index": n}) for n in range(1, 6)]
    desk.links["queue"].tickets |= {ticket.group_id: ticket for ticket in others}
    failures = tuple(
        GroupFailure(group_id=group_id, attempt=0, stage=Stage.SCORER, reason="x")
        for group_id in desk.links["queue"].tickets
    )
    await desk.intake.observe(0, [SamplerStatus(sampler="s0", in_flight=(), failures=failures, metrics={})])
    assert [method for method, *_ in desk.links["queue"].calls] == ["granted", "admit"]
    assert {name: len(desk.links[name].written()) for name in ("s0", "s1")} == {"s0": 3, "s1": 3}


async def test_a_sampler_that_takes_too_long_to_take_tickets_fails_nothing(desk: Desk) -> None:
    async def refuse(method: str, *_: Any, **__: Any) -> Any:
        raise TimeoutError("6 answers did not reach the sampler's queue")

    desk.links["s0"].call = refuse  # type: ignore[method-assign]
    await desk.intake._deal([desk.ticket], ["s0", "s1"])
    assert desk.intake.dealing == set()


@pytest.mark.parametrize(
    ("sampling", "writers"),
    [
        ({}, ["f0 5", "f1 5", "f2 5", "f3 5"]),
        ({"opponent": "start"}, ["f0 5", "f1 3 f0 2", "f2 3 f0 2", "f3 3 f0 2"]),
        ({"opponent": "version", "opponent_version": 2}, ["f0 5", "f1 5", "f2 5", "f3 3 f2 2"]),
        ({"opponent": "slow"}, ["f0 3 s0 2", "f1 3 s1 2", "f2 3 s2 2", "f3 3 s3 2"]),
        ({"policy": "slow"}, ["s0 5", "s1 5", "s2 5", "s3 5"]),
        ({"policy": "both", "answers": 4}, ["f0 2 s0 2", "f1 2 s1 2", "f2 2 s2 2", "f3 2 s3 2"]),
    ],
)
async def test_a_ticket_says_who_writes_its_answers(desk: Desk, sampling: dict[str, Any], writers: list[str]) -> None:
    desk.intake.spec = JobSpec.model_validate(desk.intake.spec.model_dump() | {"sampling": sampling})
    place = desk.intake.streams[None].at(0)
    assert [shown(desk.intake._ticket(version, 0, place)) for version in range(4)] == writers


def shown(ticket: Ticket) -> str:
    return " ".join(f"{share.module[0]}{share.version} {share.answers}" for share in ticket.shares)


async def test_the_odd_answer_comes_from_the_two_adapters_by_turns(desk: Desk) -> None:
    desk.intake.spec = JobSpec.model_validate(desk.intake.spec.model_dump() | {"sampling": {"policy": "both"}})
    place = desk.intake.streams[None].at(0)
    shares = [shown(desk.intake._ticket(1, index, place)) for index in range(4)]
    assert shares == ["f1 3 s1 2", "f1 2 s1 3", "f1 3 s1 2", "f1 2 s1 3"]


async def test_a_group_that_is_written_again_under_a_newer_version_gets_that_ones_opponent(desk: Desk) -> None:
    desk.intake.spec = JobSpec.model_validate(desk.intake.spec.model_dump() | {"sampling": {"opponent": "start"}})
    for name in desk.intake.fleet.names:
        desk.intake.fleet.proved(name, 1)
    await desk.intake._again([desk.ticket], 1)
    (ticket,) = desk.links["s1"].written()
    assert (ticket.version, shown(ticket)) == (1, "f1 3 f0 2")
