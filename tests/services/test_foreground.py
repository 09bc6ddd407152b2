"""A job that a command ran in the foreground, and the command was killed: it fails, and can be resumed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from learner.errors import InputError
from services.cli.local import _held
from services.jobs.foreground import fail_abandoned, held
from services.jobs.layout import JobPaths
from services.jobs.spec import JobSpec
from services.jobs.state import JobState
from services.jobs.store import JobStore
from services.settings import Settings

SPEC = JobSpec.model_validate({"name": "demo", "policy": {"model": "a/model"}, "prompts": {"source": "a/data"}})

HOLD = """
import sys
from pathlib import Path
from services.jobs.foreground import held
from services.jobs.layout import JobPaths
with held(JobPaths(Path(sys.argv[1]), sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(f"sqlite:///{tmp_path}/store.sqlite")


def job(store: JobStore, home: Path, *states: JobState, runner: str = "command") -> str:
    made = store.create(SPEC, home=home, runner=runner)  # type: ignore[arg-type]
    for state in states:
        store.transition(made.id, state)
    return made.id


@pytest.mark.parametrize("states", [[], [JobState.VALIDATING], [JobState.VALIDATING, JobState.RUNNING]])
def test_a_job_whose_command_was_killed_fails_and_can_be_resumed(
    store: JobStore, tmp_path: Path, states: list[JobState]
) -> None:
    job_id = job(store, tmp_path, *states)
    command = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path, job_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert command.stdout is not None and command.stdout.readline() == b"held\n"
    fail_abandoned(store)
    assert not store.get(job_id).state.terminal, "its command lives"
    with (
        pytest.raises(InputError, match=f"another command runs {job_id} at this moment"),
        held(JobPaths(tmp_path, job_id)),
    ):
        pass
    command.kill()
    command.communicate()
    fail_abandoned(store)
    failed = store.get(job_id)
    assert failed.state is JobState.FAILED and failed.error is not None
    assert failed.error.code == "command_killed" and f"`sparring resume {job_id}`" in failed.error.message
    with held(JobPaths(tmp_path, job_id)):
        store.resume(job_id, runner="command")
        fail_abandoned(store)
        assert store.get(job_id).state is JobState.QUEUED


def test_jobs_without_a_command_of_this_machine_are_left_alone(store: JobStore, tmp_path: Path) -> None:
    of_a_cluster = job(store, tmp_path, JobState.VALIDATING)
    of_the_service = job(store, tmp_path, JobState.VALIDATING, runner="service")
    ended = job(store, tmp_path, JobState.CANCELLED)
    for job_id in (of_the_service, ended):
        with held(JobPaths(tmp_path, job_id)):
            pass
    fail_abandoned(store)
    states = {job_id: store.get(job_id).state for job_id in (of_a_cluster, of_the_service, ended)}
    assert list(states.values()) == [JobState.VALIDATING, JobState.VALIDATING, JobState.CANCELLED]


def test_a_lock_of_before_does_not_outlive_the_move_to_a_cluster(tmp_path: Path) -> None:
    paths = JobPaths(tmp_path, "job")
    with held(paths):
        assert paths.command_lock.exists()
    with _held("job", Settings(home=tmp_path, ray_address="head:6379")):
        assert not paths.command_lock.exists()
