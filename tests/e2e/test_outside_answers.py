"""Groups that the policy has not written alone, end to end: version 0 answers beside it, and people's preferences arrive while the job runs
(rules 1, 4, 6 and 7)."""

from __future__ import annotations

import json

import pytest

from learner.records import AnswerSource, GroupState
from services.jobs.state import JobState
from tests.e2e.world import Command, Outcome, World, job, start_job, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def outcome(world: World, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A job against version 0, sampler and learner in one bundle, that four preferences were sent to from a file."""
    folder = tmp_path_factory.mktemp("outside")
    home = {"SPARRING_HOME": str(folder / "home"), "SPARRING_PORT": "0"}  # no service is asked
    spec = job(
        world,
        objective={"kind": "dpo", "beta": 0.1},
        sampling={"answers": 5, "opponent": "start"},
        schedule={"rounds": 3},
        resources={"placement": {"mode": "colocated"}},
        feedback={"share": 0.25},
        evaluation={"prompts": None},
    )
    rows = [
        {"prompt": f"Why is {n} odd?", "chosen": f"Since {n}.", "rejected": "No.", "rater": f"r{n}"} for n in range(4)
    ]
    clicks = folder / "clicks.jsonl"
    clicks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = start_job(folder, spec, **home)
    found = Outcome(folder / "home")
    job_id = wait_for(lambda: found.job.id, "the job")
    assert Command("feedback", job_id, clicks, **home).wait().output.splitlines() == [
        f"{job_id} has 4 new preferences; 0 were there already.",
        "4 received = 4 waiting",
    ]
    ended = command.wait()
    assert ended.code == 0 and found.job.state is JobState.SUCCEEDED, ended.output
    assert Command("feedback", job_id, **home).wait().output == "4 received = 4 learned from\n"
    return found


def test_preferences_are_learned_from_up_to_their_share_of_a_version(outcome: Outcome) -> None:
    with outcome.ledger() as ledger:
        assert [ledger.produced(version, AnswerSource.FEEDBACK) for version in (1, 2, 3)] == [3, 1, 0]
        rows = [
            row for row in ledger.groups(state=GroupState.CONSUMED, limit=100) if row.source is AnswerSource.FEEDBACK
        ]
    assert [row.group.answers[0].text for row in rows if row.group] == [f"Since {n}." for n in range(4)]
    counts = outcome.counts
    assert counts.balanced and counts.sources[AnswerSource.FEEDBACK] == 4
    assert (counts.consumed, counts.expired) == (36, 0), counts
    values = [point.value for point in outcome.store.series(outcome.job.id, ["feedback_groups"])["feedback_groups"]]
    assert values == [3, 1, 0]


def test_policy_and_opponent_share_each_prompt_of_self_play(outcome: Outcome) -> None:
    digests = outcome.digests()
    with outcome.ledger() as ledger:
        rows = [row for row in ledger.groups(state=GroupState.CONSUMED, limit=100) if row.source is AnswerSource.POLICY]
    assert len(rows) == 32
    for row in rows:
        group = row.group
        assert group is not None and group.version == row.round and row.produced_version == row.round + 1
        assert [answer.version for answer in group.answers] == [row.round] * 3 + [0] * 2
        assert [answer.adapter_digest for answer in group.answers] == [digests[row.round]] * 3 + [digests[0]] * 2
        seeds = [answer.seed or 0 for answer in group.answers]
        assert seeds == list(range(seeds[0], seeds[0] + 5))
        assert {answer.module for answer in group.answers} == {"fast"} and len(group.ordered_logits) == 5
    proved = [event.data["version"] for event in outcome.events("version_proved")]
    assert proved.count(0) == 1 and {0, 1, 2} <= set(proved), "the opponent is proved once"
    staleness = outcome.store.series(outcome.job.id, ["staleness_max"])["staleness_max"]
    assert [point for point in staleness if point.learner_step is None and point.value] == [], (
        "the queue counts the policy's answers"
    )
