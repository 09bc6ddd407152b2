"""What must not go unnoticed: tampered bytes, a sampler that serves another version, and death (rules 3, 4 and 10)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.world import Command, Outcome, World, job, start_job, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RELOADS = 100


def test_tampered_bytes_are_not_served_and_a_sampler_that_serves_the_version_before_is_caught_and_fenced(
    world: World, tmp_path: Path
) -> None:
    """Version 0's bytes are wrong until the sampler has said so; then version 1 is served by its predecessor's."""
    command = start_job(
        tmp_path,
        # many reloads, some twenty a second: time to put the right bytes back before the sampler is given up
        job(world, resources={"fleet": {"max_reloads": RELOADS}}),
        SPARRING_WORKER_EXTENSION="tests.e2e.faulty_extension.ServesTheVersionBefore",
    )

    def published() -> Path | None:
        path = Outcome().paths.versions / "fast" / "v0" / "adapter_model.safetensors"
        return path if path.exists() else None

    samplers = wait_for(lambda: command.workers("Sampler"), "the sampler")
    samplers[0].suspend()  # until the wrong bytes are there: it starts beside the learner, which publishes version 0
    path = wait_for(published, "version 0")
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    samplers[0].resume()
    wait_for(lambda: Outcome().events("proof_failed"), "the tampering to be noticed")
    assert Outcome().counts.admitted == 0, "nothing is asked of a sampler that has proved nothing"
    path.write_bytes(content)

    ended = command.wait()
    assert ended.code == 1, ended.output
    outcome = Outcome()
    assert outcome.job.state == "failed"
    error = outcome.job.error
    assert error is not None and error.code == "version_not_proved" and "nats" in error.message, error
    failed = outcome.events("proof_failed")
    tampered = [event for event in failed if event.data["version"] == 0]
    assert tampered and {event.data["action"] for event in tampered} == {"reload"}
    assert all("adapter_model.safetensors" in event.message for event in tampered)
    dishonest = [event for event in failed if event.data["version"] == 1]
    assert [event.data["action"] for event in dishonest] == ["reload"] * RELOADS + ["stop"]
    for event in dishonest:
        assert event.data["canary_distance_current"] > event.data["canary_distance_previous"]
    assert [event.data["version"] for event in outcome.events("version_proved")] == [0]
    assert outcome.events("sampler_fenced")
    with outcome.ledger() as ledger:
        written_by = {row.version for row in ledger.groups(limit=100)}
    assert written_by == {0}, "nothing was written by the unproved version"
    assert outcome.counts.balanced
    assert command.leaves_nothing()


def test_a_killed_sampler_and_an_interruption_cost_no_group_and_no_version(world: World, tmp_path: Path) -> None:
    spec = job(
        world,
        schedule={"mode": "online", "max_staleness": 2, "rounds": 3, "prompts_per_round": 20},
        resources={"sampler": {"max_running_requests": 12}},
    )
    command = start_job(tmp_path, spec)
    wait_for(lambda: (Outcome().job.current_version or 0) >= 1, "version 1")
    name = f"{Outcome().job.id}-sampler-0"
    victim, engines = command.worker("Sampler"), command.named("EngineCore")
    assert engines
    os.kill(victim.pid, signal.SIGKILL)
    wait_for(lambda: not any(engine.is_running() for engine in engines), "the dead sampler's engine to go", 60)
    wait_for(lambda: Outcome().events("worker_restarted"), "another sampler")

    command.interrupt(signal.SIGINT)
    ended = command.wait(180)
    assert ended.code == 130 and "sparring resume" in ended.output, ended.output
    assert command.leaves_nothing()
    outcome = Outcome()
    assert outcome.job.state == "cancelled"
    assert [event.data["worker"] for event in outcome.events("worker_died")] == [name]
    kept = outcome.digests()
    assert len(kept) >= 2

    resumed = Command("resume", outcome.job.id)
    ended = resumed.wait()
    assert ended.code == 0, ended.output
    outcome = Outcome()
    assert outcome.job.state == "succeeded" and outcome.job.attempt == 2 and outcome.job.current_version == 3
    assert outcome.digests()[: len(kept)] == kept, "versions are never overwritten"
    counts = outcome.counts
    assert counts.balanced and counts.consumed == 60, counts
    staleness = [point.value or 0 for point in outcome.store.series(outcome.job.id, ["staleness_max"])["staleness_max"]]
    assert max(staleness) <= 2
    assert resumed.leaves_nothing()


def test_the_death_of_any_other_worker_costs_no_group_either(world: World, tmp_path: Path) -> None:
    command = start_job(tmp_path, job(world, schedule={"rounds": 10}))
    for version, role in enumerate(("Learner", "Scorer", "Replay", "Versions", "JobContr"), start=1):
        wait_for(lambda version=version: (Outcome().job.current_version or 0) >= version, f"version {version}")
        os.kill(command.worker(role).pid, signal.SIGKILL)
    ended = command.wait()
    assert ended.code == 0, ended.output
    outcome = Outcome()
    died = {event.data["role"] for event in outcome.events("worker_died")}
    assert {"learner", "scorer", "queue", "versions"} <= died, died
    restarted = [event for event in outcome.events("state") if "controller died" in event.message]
    assert len(restarted) == 1 and outcome.job.restarts == 0, "versions came after it"
    counts = outcome.counts
    assert outcome.job.current_version == 10 and counts.balanced, counts
    assert counts.consumed == 120 and counts.remaining == 0, counts
    assert command.leaves_nothing()
