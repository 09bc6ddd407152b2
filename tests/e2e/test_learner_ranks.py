"""Several learner ranks, end to end through the command line: one rank's adapter, also where ranks are killed (rules 10, 11 and 12)."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.test_offline_job import offline_job
from tests.e2e.world import Outcome, World, run_job, start_job, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROUNDS = 14
RATE = 2e-5
"""AdamW moves a weight by this much in a step whatever its gradient is, also where that is all rounding."""


def ranks_job(world: World, folder: Path, ranks: int) -> dict[str, Any]:
    """Pairs of a file, by an objective that looks at the whole batch's margins before it learns."""
    spec = offline_job(world, folder, rounds=ROUNDS)
    spec["objective"] = {"kind": "beta-dpo", "inner": {"kind": "dpo", "beta": 0.1}}
    spec["optimizer"]["learning_rate"] = RATE
    spec["resources"]["learner"] = {"ranks": ranks, "cpus": 0.3}
    return spec


def adapter(outcome: Outcome) -> dict[str, torch.Tensor]:
    assert outcome.job.state == "succeeded" and outcome.job.current_version == ROUNDS
    counts = outcome.counts
    assert counts.balanced and (counts.consumed, counts.remaining) == (8 * ROUNDS, 0), counts
    return load_file(outcome.paths.versions / "fast" / f"v{ROUNDS}" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def alone(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What one rank learns."""
    folder = tmp_path_factory.mktemp("one-rank")
    ended = run_job(folder, ranks_job(world, folder, 1), SPARRING_HOME=str(folder / "home"))
    assert ended.code == 0, ended.output
    outcome = Outcome(folder / "home")
    assert not outcome.events("learner_ranks")
    found = adapter(outcome)
    assert max(float(value.abs().max()) for name, value in found.items() if "lora_B" in name) > RATE
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_two_ranks_give_the_adapter_of_one_also_where_each_is_killed_and_the_job_goes_on_from_the_newest_version(
    world: World, alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    command = start_job(tmp_path, ranks_job(world, tmp_path, 2))
    for version, actor in ((2, "LearnerRank"), (5, "LearnerWorker")):
        wait_for(lambda version=version: (Outcome().job.current_version or 0) >= version, f"version {version}")
        os.kill(command.worker(actor).pid, signal.SIGKILL)
    ended = command.wait()
    assert ended.code == 0, ended.output
    outcome = Outcome()
    assert_same(adapter(outcome), alone)

    job = outcome.job.id
    assert [event.data["worker"] for event in outcome.events("worker_died")] == [f"{job}-learner-1", f"{job}-learner"]
    told = [event.message for event in outcome.events("learner_interrupted")]
    assert any(f"learner rank 1 of 2 ({job}-learner-1)" in message for message in told), told
    assert outcome.events("learner_ranks")[-1].data["ranks"] == 2
    assert command.leaves_nothing()
