"""Play against version 0, end to end: two versions answer each prompt in one engine, and each answer says which (rules 1, 4, 6 and 7)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from learner.records import GroupState
from tests.e2e.world import Outcome, World, job, start_job, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_policy_and_opponent_share_each_prompt_also_after_a_samplers_death(world: World, tmp_path: Path) -> None:
    spec = job(
        world,
        objective={"kind": "dpo", "beta": 0.1},
        sampling={"answers": 5, "opponent": "start"},
        schedule={"rounds": 4},
    )
    del spec["evaluation"]
    command = start_job(tmp_path, spec)
    wait_for(lambda: (Outcome().job.current_version or 0) >= 1, "version 1")
    (victim,) = (p for p in command.processes() if p.name().startswith("ray::SamplerWor"))
    os.kill(victim.pid, signal.SIGKILL)
    ended = command.wait()
    assert ended.code == 0, ended.output

    outcome = Outcome()
    digests, counts = outcome.digests(), outcome.counts
    assert counts.balanced and (counts.consumed, counts.expired) == (48, 0), counts
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
    assert [event.data["role"] for event in outcome.events("worker_died")] == ["sampler"]
    proved = [event.data["version"] for event in outcome.events("version_proved")]
    assert proved.count(0) == 2 and {0, 1, 2, 3} <= set(proved), "the new sampler proves its opponent too"
    staleness = outcome.store.series(outcome.job.id, ["staleness_max"])["staleness_max"]
    assert [point for point in staleness if point.learner_step is None and point.value] == [], (
        "the queue counts the policy's answers"
    )
