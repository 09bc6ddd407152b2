"""Play against version 0, end to end: two versions answer each prompt in one engine, and each answer says which (rules 1, 4, 6 and 7)."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.records import GroupState
from tests.e2e.world import Outcome, World, job, run_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_policy_and_opponent_share_each_prompt(world: World, tmp_path: Path) -> None:
    spec = job(
        world,
        objective={"kind": "dpo", "beta": 0.1},
        sampling={"answers": 5, "opponent": "start"},
        schedule={"rounds": 3},
        resources={"placement": {"mode": "colocated"}},
    )
    del spec["evaluation"]
    ended = run_job(tmp_path, spec)
    assert ended.code == 0, ended.output

    outcome = Outcome()
    digests, counts = outcome.digests(), outcome.counts
    assert counts.balanced and (counts.consumed, counts.expired) == (36, 0), counts
    with outcome.ledger() as ledger:
        rows = ledger.groups(state=GroupState.CONSUMED, limit=100)
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
