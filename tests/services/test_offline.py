"""Offline jobs: a file's pairs take the place of samplers and scorer, every one accounted for (rules 1, 3 and 11)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_models import write_model, write_prompts

from learner.errors import InputError
from learner.records import AnswerSource, FinishReason, GroupState, SkipReason
from services.jobs import spec_checks
from services.jobs.crew import Crew
from services.jobs.errors import JobFailure
from services.jobs.layout import JobPaths
from services.jobs.load import parse_job
from services.jobs.machine import Machine
from services.jobs.offline import OfflineIntake
from services.jobs.pairs import PreparedPairs
from services.jobs.validate import ValidatedJob, validate_job
from workers.errors import WorkerDied
from workers.replay.ledger import ReplayLedger
from workers.replay.queue import ReplayQueue

MACHINE = Machine(cpus=1, gpus=0, memory_bytes=1 << 34)


@pytest.fixture(autouse=True)
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_checks, "offered_functions", lambda: ("length",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, 20 pairs with scores, and held-out prompts."""
    write_model(tmp_path / "policy")
    write_pairs(tmp_path / "pairs.jsonl", 20)
    write_prompts(tmp_path / "held-out.jsonl", 6, start=100)
    return tmp_path


def write_pairs(path: Path, count: int, **changes: Any) -> Path:
    rows = [
        {"id": f"p{n}", "prompt": f"hello {n}", "chosen": f"well {n}", "rejected": f"ill {n}", "chosen_score": 2, "rejected_score": 1}
        for n in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row | changes) + "\n" for row in rows))
    return path


def job(**sections: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "policy": {"model": "./policy"},
        "prompts": {"source": "pairs.jsonl"},
        "objective": {"kind": "dpo"},
        "schedule": {"mode": "offline", "rounds": 2, "prompts_per_round": 8, "prompts_per_step": 4},
    }
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section}
    return data


def validated(folder: Path, **sections: Any) -> ValidatedJob:
    return validate_job(parse_job(job(**sections)), folder, machine=MACHINE)


# ---- validation -------------------------------------------------------------------------------------------------


def test_a_job_without_evaluation_asks_for_a_learner_alone(folder: Path) -> None:
    result = validated(folder, resources={"learner": {"cpus": 0.8}})
    assert result.warnings == () and {item.worker for item in result.memory.items} == {"learner"}
    assert (result.spec.policy.dtype, result.spec.objective.reference) == ("float32", "start")
    assert isinstance(result.prepared, PreparedPairs) and result.prompts.prompts == 20
    again = validate_job(parse_job(json.loads(result.spec.model_dump_json())), Path("/"))
    assert again.spec == result.spec


def test_with_evaluation_samplers_and_a_scorer_are_asked_for_and_checked_too(folder: Path) -> None:
    evaluation = {"prompts": {"source": "held-out.jsonl"}, "count": 6}
    function = {"model": {"kind": "function", "name": "length"}}
    with pytest.raises(InputError, match=r"resources: sampler 1 x 1 \+ scorer 0.3 \+ learner 0.5"):
        validated(folder, evaluation=evaluation, scorer=function, sampling={"max_tokens": 32})
    resources = {"sampler": {"cpus": 0.2}, "scorer": {"cpus": 0.1}}
    result = validated(folder, evaluation=evaluation, scorer=function, sampling={"max_tokens": 32}, resources=resources)
    assert {item.worker for item in result.memory.items} == {"sampler", "scorer", "learner"}
    with pytest.raises(InputError, match="this installation offers no function 'polite'"):
        validated(
            folder, evaluation=evaluation, scorer={"model": {"kind": "function", "name": "polite"}}, resources=resources
        )


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        (
            {"schedule": {"max_staleness": 1}},
            "schedule.max_staleness: 1 does not go with mode: offline, whose answers come from a file and have no age; set "
            "max_staleness: 0 or mode: online",
        ),
        (
            {"objective": {"reference": "behaviour"}},
            "objective.reference: behaviour does not go with schedule.mode: offline, whose answers carry no version that wrote them; use "
            "auto, start or round",
        ),
        (
            {"sampling": {"opponent": "start"}},
            "sampling.opponent: start does not go with schedule.mode: offline, where nobody answers training prompts; use self",
        ),
        (
            {"objective": {"kind": "xpo"}},
            "objective.kind: xpo needs answers that version 0 wrote, which a file's do not say of themselves; use schedule.mode: rounds or "
            "online",
        ),
        (
            {"scorer": {"shuffle": True}},
            "scorer.shuffle: true permutes a scorer's scores, and with schedule.mode: offline no scorer compares answers; leave it out",
        ),
        (
            {"prompts": {"rejected_column": "chosen"}},
            "prompts.rejected_column: chosen is prompts.chosen_column too; name the field of the worse answer",
        ),
        (
            {"prompts": {"source": "held-out.jsonl"}},
            "FOLDER/held-out.jsonl, line 1: there is no field 'chosen', which offline jobs need; name the answer's field with "
            "prompts.chosen_column (here: id, prompt)",
        ),
        (
            {"schedule": {"rounds": 3}},
            "schedule.rounds: 3 rounds of 8 prompts need 24 prompts, and there are 20; lower schedule.rounds or "
            "schedule.prompts_per_round, add prompts, or set schedule.reuse_prompts: true",
        ),
        (
            {"resources": {"learner": {"cpus": 2}}},
            "resources: learner 2 + services 0.2 = 2.2 CPUs, and this machine has 1; lower resources.learner.cpus",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(sections: dict[str, Any], complaint: str, folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        validated(folder, **sections)
    assert str(caught.value).replace(str(folder.resolve()), "FOLDER") == complaint


def test_sppo_is_told_that_its_reference_is_the_rounds_policy(folder: Path) -> None:
    result = validated(folder, objective={"kind": "sppo"})
    assert result.spec.objective.reference == "round"
    assert [warning for warning in result.warnings if "objective.reference: round" in warning]


def test_samplers_and_scorers_are_in_the_crew_only_to_evaluate(folder: Path) -> None:
    alone = Crew("job", validated(folder).spec, JobPaths(folder, "job"), prompts=())
    assert [member.role for member in alone.members] == ["queue", "versions", "learner"]
    spec = parse_job(job(evaluation={"prompts": {"source": "held-out.jsonl"}}))
    crew = Crew("job", spec, JobPaths(folder, "job"), prompts=())
    assert [member.role for member in crew.members] == ["queue", "versions", "scorer", "learner", "sampler"]


# ---- intake -----------------------------------------------------------------------------------------------------


class QueueLink:
    """A real replay queue behind a link that can fail."""

    def __init__(self, ledger: ReplayLedger) -> None:
        self.queue = ReplayQueue(ledger, put_timeout_seconds=1)
        self.puts_left = 1000

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        if method == "put":
            self.puts_left -= 1
            if self.puts_left < 0:
                raise WorkerDied("queue")
        options = {name: value for name, value in options.items() if name not in ("timeout_seconds", "setting")}
        return await getattr(self.queue, method)(*arguments, **options)


class Desk:
    """An intake before a real ledger."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        job = validated(folder, **sections)
        assert isinstance(job.prepared, PreparedPairs)
        self.ledger = ReplayLedger(folder / "replay.sqlite", max_groups=100, max_bytes=1 << 20)
        self.link = QueueLink(self.ledger)
        self.events: list[str] = []
        crew = SimpleNamespace(job_id="job", queue=SimpleNamespace(link=self.link))
        journal = SimpleNamespace(log=logging.getLogger("test"), event=lambda kind, *_, **__: self.events.append(kind))
        self.intake = OfflineIntake(job.spec, job.prepared, crew, journal)  # type: ignore[arg-type]
        self.intake.open.set()

    async def learn(self, version: int) -> int:
        """What the learner does with one version's groups; returns how many they were."""
        leased = self.ledger.lease(count=8, minimum=1, newest_version=version, max_staleness=0)
        return self.ledger.commit(version + 1, version + 1, groups=len(leased))


@pytest.fixture
def desk(folder: Path) -> Iterator[Desk]:
    desk = Desk(folder)
    yield desk
    desk.ledger.close()


async def test_each_version_gets_its_slice_and_no_more(desk: Desk) -> None:
    for version in range(2):
        assert await desk.intake.grant(version) == 8
        assert await desk.intake.grant(version) == 0
        standing, counts = await desk.intake.standing(version)
        assert (
            desk.intake.office.closed(standing, await desk.intake.prompts_left(version, counts)) and standing.ready == 8
        )
        assert await desk.learn(version) == 8
    assert await desk.intake.grant(2) == 0, "the job has two rounds"
    counts = await desk.intake.counts()
    assert counts.balanced and (counts.admitted, counts.consumed, counts.remaining) == (16, 16, 0)
    rows = desk.ledger.groups(limit=100)
    assert [(row.round, row.index, row.produced_version) for row in rows] == [
        (round, index, round + 1) for round in range(2) for index in range(8)
    ]
    assert len({row.group.prompt.id for row in rows if row.group}) == 16, "rounds take disjoint slices"


async def test_a_pairs_answers_are_the_files_the_better_one_first(desk: Desk) -> None:
    await desk.intake.grant(0)
    for row in desk.ledger.groups(state=GroupState.READY, limit=100):
        assert row.group is not None
        group, number = row.group, row.group.prompt.id.removeprefix("p")
        assert [answer.text for answer in group.answers] == [f"well {number}", f"ill {number}"]
        assert group.ordered_logits == ((0, 1), (-1, 0)) and group.scorer == desk.intake.pairs.source
        for answer in group.answers:
            assert (answer.source, answer.finish_reason) == (AnswerSource.FILE, FinishReason.GIVEN)
            assert (answer.version, answer.module, answer.logprobs) == (None, None, None)
            assert answer.token_ids[-1] == 2


async def test_ties_are_skipped_counted_and_replaced_until_the_file_ends(folder: Path) -> None:
    rows = [json.loads(line) for line in write_pairs(folder / "pairs.jsonl", 20).read_text().splitlines()]
    for row in rows[:10]:
        row["chosen_score"] = row["rejected_score"]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    desk = Desk(folder, prompts={"shuffle": False})
    granted = [await desk.intake.grant(0) for _ in range(4)]
    assert granted == [8, 8, 2, 0]
    counts = await desk.intake.counts()
    assert counts.balanced and counts.skipped == {SkipReason.TIE: 10} and counts.ready == 8


async def test_a_file_of_ties_ends_the_job_with_the_reason(folder: Path) -> None:
    write_pairs(folder / "pairs.jsonl", 20, chosen_score=1)
    desk = Desk(folder, schedule={"reuse_prompts": True})
    with pytest.raises(JobFailure, match=r"too few of them are usable \(\d+ tie\); see to pairs"):
        for _ in range(100):
            await desk.intake.grant(0)


async def test_what_was_admitted_and_not_stored_is_stored_after_a_death(desk: Desk) -> None:
    desk.link.puts_left = 3
    with pytest.raises(WorkerDied):
        await desk.intake.grant(0)
    assert (await desk.intake.counts()).granted == 5
    desk.link.puts_left = 1000
    assert await desk.intake.grant(0) == 5
    assert await desk.intake.grant(0) == 0
    counts = await desk.intake.counts()
    assert counts.balanced and (counts.ready, counts.duplicates) == (8, 0)


async def test_a_pair_that_left_the_file_is_given_up_loudly_and_replaced(desk: Desk) -> None:
    desk.link.puts_left = 0
    with pytest.raises(WorkerDied):
        await desk.intake.grant(0)
    desk.link.puts_left = 1000
    gone = (await desk.link.call("granted"))[0].prompt.id
    del desk.intake.places[gone]
    await desk.intake.grant(0)
    assert await desk.intake.grant(0) == 1
    counts = await desk.intake.counts()
    assert desk.events == ["group_failed"] and counts.balanced and sum(counts.failed.values()) == 1


async def test_nothing_is_read_while_no_version_wants_groups(desk: Desk) -> None:
    desk.intake.open.clear()
    assert await desk.intake.grant(0) == 0 and (await desk.intake.counts()).admitted == 0
