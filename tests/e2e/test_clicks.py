"""People's preferences reach a job that runs: from a file on the command line into the versions that it publishes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from learner.records import AnswerSource, GroupState
from services.jobs.state import JobState
from tests.e2e.world import Command, Outcome, World, job, start_job, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_preferences_that_arrive_while_a_job_runs_are_learned_from_up_to_their_share(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARRING_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SPARRING_PORT", "0")  # no service is asked
    clicks = tmp_path / "clicks.jsonl"
    rows = [
        {"prompt": f"Why is {n} odd?", "chosen": f"Since {n}.", "rejected": "No.", "rater": f"r{n}"} for n in range(4)
    ]
    clicks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = start_job(tmp_path, job(world, feedback={"share": 0.25}, evaluation={"prompts": None}))
    outcome = Outcome()
    job_id = wait_for(lambda: outcome.job.id, "the job")
    assert Command("feedback", job_id, clicks).wait().output.splitlines() == [
        f"{job_id} has 4 new preferences; 0 were there already.",
        "4 received = 4 waiting",
    ]
    ended = command.wait()
    assert ended.code == 0 and outcome.job.state is JobState.SUCCEEDED, ended.output
    assert Command("feedback", job_id).wait().output == "4 received = 4 learned from\n"

    with outcome.ledger() as ledger:
        assert [ledger.produced(version, AnswerSource.FEEDBACK) for version in (1, 2)] == [3, 1]
        rows_of_people = [
            row for row in ledger.groups(state=GroupState.CONSUMED, limit=100) if row.source is AnswerSource.FEEDBACK
        ]
    assert [row.group.answers[0].text for row in rows_of_people if row.group] == [f"Since {n}." for n in range(4)]
    counts = outcome.counts
    assert counts.balanced and counts.sources[AnswerSource.FEEDBACK] == 4 and counts.consumed == 24
    values = [point.value for point in outcome.store.series(job_id, ["feedback_groups"])["feedback_groups"]]
    assert values == [3, 1]
