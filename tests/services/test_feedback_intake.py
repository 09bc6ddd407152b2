"""People's preferences among self-play: their share of a version, each admitted once, every one accounted for (rules 1, 3, 7 and 11)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import job, write_world

from learner.preference import CERTAIN_LOGIT
from learner.records import (
    Answer,
    AnswerSource,
    FinishReason,
    GroupState,
    SamplingParameters,
    ScoredGroup,
    ScorerIdentity,
    SkipReason,
    Stage,
    Ticket,
)
from services.jobs import spec_checks
from services.jobs.feedback import PreferenceRenderer, count_feedback, take_in
from services.jobs.feedback_intake import FeedbackDesk
from services.jobs.intake import SelfPlayIntake
from services.jobs.layout import JobPaths
from services.jobs.load import parse_job
from services.jobs.rendering import PromptRenderer
from services.jobs.state import JobState
from services.jobs.store import JobStore
from services.jobs.validate import validate_job
from workers.config import FleetConfig
from workers.errors import WorkerDied
from workers.fleet import Fleet
from workers.replay.ledger import ReplayLedger
from workers.replay.queue import ReplayQueue

GROUPS = 8
SAMPLING = SamplingParameters(temperature=1, top_p=1, top_k=0, max_tokens=8)


class QueueLink:
    """A real replay queue behind a link that dies when it is told to, before or after it has done what was asked."""

    def __init__(self, ledger: ReplayLedger) -> None:
        self.queue = ReplayQueue(ledger, put_timeout_seconds=1)
        self.dies_at: str | None = None
        self.done_all_the_same = False

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        options = {name: value for name, value in options.items() if name not in ("timeout_seconds", "setting")}
        if method == self.dies_at and not self.done_all_the_same:
            raise WorkerDied("queue")
        answer = await getattr(self.queue, method)(*arguments, **options)
        if method == self.dies_at:
            raise WorkerDied("queue")
        return answer


class SamplerLink:
    """Keeps the tickets that it is dealt."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []

    async def call(self, _method: str, *arguments: Any, **_: Any) -> Any:
        self.tickets += arguments[0]


class Desk:
    """An intake of self-play and preferences before a real ledger and a real store, with one sampler that serves every version."""

    def __init__(self, folder: Path, share: float = 0.25, **sections: Any) -> None:
        schedule = {"reuse_prompts": True, "rounds": 9} | sections.pop("schedule", {})
        data = job(feedback={"share": share}, schedule=schedule, objective={"kind": "dpo"}, **sections)
        self.folder, self.validated = folder, validate_job(parse_job(data), folder)
        self.spec = self.validated.spec
        self.store = JobStore(f"sqlite:///{folder}/jobs.sqlite")
        self.job_id = self.store.create(self.spec, home=folder).id
        self.path = JobPaths(folder, self.job_id).replay_database
        self.ledger = ReplayLedger(self.path, max_groups=100, max_bytes=1 << 20)
        self.link = QueueLink(self.ledger)
        self.events: list[str] = []
        self.version = 0
        self.restart()

    def restart(self) -> None:
        """Another controller takes over: nothing is left but the store and the ledger."""
        job, self.sampler = self.validated, SamplerLink()
        assert job.prepared is not None and job.model is not None
        members = {"s0": SimpleNamespace(name="s0", link=self.sampler)}
        crew: Any = SimpleNamespace(
            job_id=self.job_id, queue=SimpleNamespace(link=self.link), member=members.__getitem__, scorers=[]
        )
        journal: Any = SimpleNamespace(
            store=self.store, log=logging.getLogger("test"), event=lambda kind, *_, **__: self.events.append(kind)
        )
        fleet = Fleet(FleetConfig(), ("s0",))
        fleet.started("s0")
        fleet.proved("s0", self.version)
        self.fleet = fleet
        renderer = PreferenceRenderer(job.spec, job.model, PromptRenderer(job.model.folder))
        self.feedback = FeedbackDesk(job.spec, renderer, crew, journal)
        self.intake = SelfPlayIntake(job.spec, job.prepared, fleet, crew, journal, self.feedback)
        self.intake.open.set()

    def send(self, *numbers: int, **changes: Any) -> None:
        """Preferences from people."""
        rows = [{"id": f"c{n}", "prompt": f"Why {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in numbers]
        take_in(self.store, self.job_id, [row | changes for row in rows])

    def sample(self) -> None:
        """The sampler and the scorer answer everything that was dealt."""
        tickets, self.sampler.tickets = self.sampler.tickets, []
        for ticket in tickets:
            self.ledger.put(self_play(ticket), None)

    def learn(self) -> int:
        """The learner takes a version's groups. Returns how many came from people."""
        leased = self.ledger.lease(count=GROUPS, newest_version=self.version, max_staleness=0)
        assert len(leased) == GROUPS
        self.version += 1
        self.ledger.commit(self.version, self.version, groups=GROUPS)
        self.fleet.proved("s0", self.version)
        return sum(group.answers[0].source is AnswerSource.FEEDBACK for group in leased)

    async def turn(self) -> int:
        """A whole version. Returns how many of its groups came from people."""
        await self.intake.grant(self.version)
        self.sample()
        return self.learn()


def self_play(ticket: Ticket) -> ScoredGroup:
    answers = tuple(
        Answer(
            text=f"answer {place}",
            token_ids=(5, 2),
            logprobs=(-1.0, -0.5),
            finish_reason=FinishReason.STOP,
            module="fast",
            version=ticket.version,
            adapter_digest="d" * 64,
            sampling=SAMPLING,
            seed=place,
            sampler="s0",
        )
        for place in range(2)
    )
    return ScoredGroup(
        **ticket.model_dump(include={"group_id", "round", "index", "version"}),
        prompt=ticket.prompt,
        prompt_token_ids=ticket.prompt_token_ids,
        answers=answers,
        scorer=ScorerIdentity(kind="function", name="length", version="1"),
        ordered_logits=((0, 1), (-1, 0)),
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(spec_checks, "offered_functions", lambda: ("length",))
    return write_world(tmp_path)


@pytest.fixture
def desk(folder: Path) -> Iterator[Desk]:
    desk = Desk(folder)
    yield desk
    desk.ledger.close()
    desk.store.close()


async def test_a_version_gets_its_share_and_no_more_while_preferences_wait(desk: Desk) -> None:
    desk.send(*range(3))
    assert [await desk.turn(), await desk.turn(), await desk.turn()] == [2, 1, 0]
    counts = await desk.intake.counts()
    assert counts.balanced and counts.sources == {AnswerSource.POLICY: 21, AnswerSource.FEEDBACK: 3}
    account = count_feedback(desk.store, desk.job_id)
    assert (account.received, account.waiting, account.consumed, account.share) == (3, 0, 3, 0.25)
    assert await desk.feedback.metrics(1) == {"feedback_groups": 2, "feedback_waiting": 0}


async def test_preferences_are_spread_among_self_play_and_cost_no_prompt(desk: Desk) -> None:
    desk.send(0, 1)
    await desk.intake.grant(0)
    rows = desk.ledger.groups(limit=100)
    assert [row.index for row in rows if row.source is AnswerSource.FEEDBACK] == [0, 4]
    asked = [ticket.prompt.id for ticket in desk.sampler.tickets]
    stream, prompts = desk.intake.streams[None], desk.intake.prompts.prompts
    assert asked == [prompts[stream.at(k).index].id for k in range(6)]


async def test_a_preferences_group_says_who_said_it_and_that_nobody_sampled_it(desk: Desk) -> None:
    desk.send(7, rater="anna", domain="why")
    await desk.intake.grant(0)
    (row,) = desk.ledger.groups(state=GroupState.READY, limit=9)
    group = row.group
    assert group is not None and group.group_id == f"{desk.job_id}/feedback/1"
    assert (group.prompt.id, group.prompt.domain, group.prompt.messages[0].text) == ("feedback/c7", "why", "Why 7?")
    assert [answer.text for answer in group.answers] == ["good 7", "bad 7"]
    assert group.ordered_logits == ((0, CERTAIN_LOGIT), (-CERTAIN_LOGIT, 0))
    assert (group.scorer.kind, group.scorer.name) == ("feedback", "anna")
    for answer in group.answers:
        assert (answer.source, answer.finish_reason) == (AnswerSource.FEEDBACK, FinishReason.GIVEN)
        assert (answer.version, answer.logprobs) == (None, None) and answer.token_ids[-1] == 2


async def test_skipped_preferences_are_counted_with_their_reason_and_never_fail_the_job(folder: Path) -> None:
    desk = Desk(folder, scorer={"temperature": 1000}, pairing={"tie_margin": 0.1})
    desk.send(*range(9 * GROUPS))
    for _ in range(40):  # wave after wave of people's preferences that count as ties
        await desk.intake.grant(0)
        desk.sample()
    account = count_feedback(desk.store, desk.job_id)
    assert (account.skipped, account.waiting) == ({SkipReason.TIE: 72}, 0)
    assert (await desk.intake.counts()).balanced
    desk.ledger.close()
    desk.store.close()


@pytest.mark.parametrize("restarted", [True, False])
@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("method", ["source_counts", "known", "admit", "put"])
async def test_whatever_dies_at_any_moment_no_preference_is_lost_or_repeated(
    desk: Desk, method: str, done: bool, restarted: bool
) -> None:
    desk.send(0, 1, 2)
    desk.link.dies_at, desk.link.done_all_the_same = method, done
    with pytest.raises(WorkerDied):
        await desk.intake.grant(0)
    desk.link.dies_at = None
    if restarted:
        desk.restart()
    learned = 0
    for _ in range(3):
        await desk.intake.grant(desk.version)
        # what was admitted for samplers is dealt again by `observe`, at its second look
        await desk.intake.observe(desk.version, [])
        await desk.intake.observe(desk.version, [])
        await desk.intake.grant(desk.version)
        desk.sample()
        learned += desk.learn()
    people = desk.ledger.source_counts(AnswerSource.FEEDBACK)
    assert (learned, people.admitted, people.duplicates) == (3, 3, 0)
    assert people.balanced and (await desk.intake.counts()).balanced
    assert count_feedback(desk.store, desk.job_id).consumed == 3
    assert desk.store.preference_totals(desk.job_id).taken == 3


async def test_a_queue_that_died_gets_what_was_admitted_and_not_stored(desk: Desk) -> None:
    desk.send(0, 1)
    desk.link.dies_at = "put"
    with pytest.raises(WorkerDied):
        await desk.intake.grant(0)
    assert count_feedback(desk.store, desk.job_id).admitted == 2
    desk.link.dies_at = None
    await desk.intake.grant(0)
    assert (await desk.intake.counts()).ready == 2 and (await desk.intake.counts()).duplicates == 0


async def test_samplers_never_get_a_preferences_ticket(desk: Desk) -> None:
    desk.send(0, 1)
    desk.link.dies_at = "put"
    with pytest.raises(WorkerDied):
        await desk.intake.grant(0)
    desk.link.dies_at = None
    for _ in range(3):
        await desk.intake.observe(0, [])
    assert {ticket.source for ticket in desk.sampler.tickets} == {AnswerSource.POLICY}


async def test_what_only_the_controller_can_refuse_is_refused_with_a_reason_and_the_next_takes_its_place(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as hub:  # of a model on the hub the service has no tokenizer
        hub.setattr("services.jobs.feedback._renderer", lambda spec: None)
        desk.send(0, chosen="long " * 200)
        desk.send(1, 2)
    assert await desk.turn() == 2
    account = count_feedback(desk.store, desk.job_id)
    assert (account.refused, account.consumed, account.waiting) == (1, 2, 0)
    assert account.refusals[0].id == "c0" and "more than the context of 128" in account.refusals[0].reason
    assert desk.events == ["preference_refused"]


async def test_preferences_of_a_domain_wait_for_its_turn(folder: Path) -> None:
    rows = [{"id": f"p{n}", "prompt": f"hello {n}", "domain": "ab"[n % 2]} for n in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    desk = Desk(folder, schedule={"rounds": 1, "domains": ["a", "b"]})
    desk.send(0, 1, domain="b")
    desk.send(2)
    desk.send(3, domain="a")
    assert await desk.turn() == 2
    assert count_feedback(desk.store, desk.job_id).waiting == 2
    assert await desk.turn() == 2
    people = [row.group for row in desk.ledger.groups(limit=99) if row.source is AnswerSource.FEEDBACK]
    assert [group.prompt.id for group in people if group] == [f"feedback/c{n}" for n in (2, 3, 0, 1)]
    desk.ledger.close()
    desk.store.close()


async def test_what_still_waits_when_its_domain_has_been_learned_is_refused(folder: Path) -> None:
    rows = [{"id": f"p{n}", "prompt": f"hello {n}", "domain": "ab"[n % 2]} for n in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    desk = Desk(folder, schedule={"rounds": 1, "domains": ["a", "b"]})
    desk.send(0, 1, 2, 3, domain="a")
    desk.send(4, domain="b")
    assert await desk.turn() == 2, "a quarter of eight"
    assert await desk.turn() == 1
    account = count_feedback(desk.store, desk.job_id)
    assert (account.consumed, account.waiting, account.refused) == (3, 0, 2)
    reasons = {refusal.reason for refusal in account.refusals}
    assert reasons == {"its domain, a, was learned before a version had room for it"}
    desk.ledger.close()
    desk.store.close()


async def test_a_preference_that_left_the_store_is_given_up_loudly(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.send(0)
    monkeypatch.setattr(desk.store, "preferences", lambda *_: [])
    await desk.intake.grant(0)
    assert desk.events == ["group_failed"]
    assert count_feedback(desk.store, desk.job_id).failed == {Stage.QUEUE: 1}


async def test_nothing_is_taken_in_after_the_job_has_ended_and_what_waits_stays_counted(desk: Desk) -> None:
    desk.send(0)
    desk.store.transition(desk.job_id, JobState.CANCELLED)
    account = count_feedback(desk.store, desk.job_id)
    assert (account.received, account.waiting) == (1, 1)


@settings(max_examples=10, deadline=None)
@given(
    share=st.sampled_from([0.125, 0.25, 0.5, 1.0]),
    arrivals=st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=5),
)
def test_no_order_of_arrivals_skips_and_restarts_breaks_the_share_or_the_account(
    tmp_path_factory: pytest.TempPathFactory, share: float, arrivals: list[tuple[int, bool]]
) -> None:
    import asyncio

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spec_checks, "offered_functions", lambda: ("length",))
        desk = Desk(write_world(tmp_path_factory.mktemp("share")), share)

    async def play() -> None:
        sent = learned = 0
        for count, restarted in arrivals:
            desk.send(*range(sent, sent + count))
            sent += count
            if restarted:
                desk.restart()
            room, waiting = int(share * GROUPS), sent - learned
            from_people = await desk.turn()
            assert from_people == min(room, waiting), "all that wait, up to the share"
            learned += from_people
            account, counts = count_feedback(desk.store, desk.job_id), await desk.intake.counts()
            assert counts.balanced
            assert (account.received, account.consumed, account.waiting) == (sent, learned, sent - learned)

    asyncio.run(play())
    desk.ledger.close()
    desk.store.close()
