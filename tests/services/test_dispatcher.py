"""The dispatcher, with a launcher that only remembers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.jobs.dispatcher import MISSES, Dispatcher
from services.jobs.records import JobRecord
from services.jobs.spec import JobSpec
from services.jobs.state import JobState, RequestedAction
from services.jobs.store import JobStore

SPEC = JobSpec.model_validate({"name": "demo", "policy": {"model": "a/model"}, "prompts": {"source": "a/data"}})


class Recorder:
    """Starts nothing; says of a controller whether it lives as the test wants."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.living: set[str] = set()
        self.refusal: Exception | None = None

    def start(self, job_id: str) -> None:
        self.calls.append(("start", job_id))
        if self.refusal is not None:
            raise self.refusal
        self.living.add(job_id)

    def alive(self, job_id: str) -> bool:
        return job_id in self.living

    def wait_gone(self, job_id: str) -> None:
        self.calls.append(("wait_gone", job_id))
        self.living.discard(job_id)

    def close(self) -> None:
        self.calls.append(("close", ""))
        self.living.clear()

    @property
    def started(self) -> list[str]:
        return [job_id for call, job_id in self.calls if call == "start"]


@pytest.fixture
def launcher() -> Recorder:
    return Recorder()


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(f"sqlite:///{tmp_path}/store.sqlite")


def queue(store: JobStore, count: int) -> list[str]:
    return [store.create(SPEC, home=Path("/nowhere")).id for _ in range(count)]


def look(dispatcher: Dispatcher, times: int) -> None:
    for _ in range(times):
        dispatcher.tick()


def test_jobs_start_in_order_and_at_most_so_many(store: JobStore, launcher: Recorder) -> None:
    ids = queue(store, 3)
    dispatcher = Dispatcher(store, launcher, max_running=2)
    look(dispatcher, 3)
    assert launcher.started == ids[:2]
    assert store.get(ids[0]).state is JobState.VALIDATING
    store.transition(ids[0], JobState.RUNNING)
    store.transition(ids[0], JobState.SUCCEEDED)
    dispatcher.tick()
    assert launcher.calls[-2:] == [("wait_gone", ids[0]), ("start", ids[2])]
    look(dispatcher, 2)
    assert launcher.calls.count(("wait_gone", ids[0])) == 1


def test_jobs_of_a_command_are_left_alone(store: JobStore, launcher: Recorder) -> None:
    job = store.create(SPEC, home=Path("/nowhere"), runner="command")
    dispatcher = Dispatcher(store, launcher)
    dispatcher.tick()
    store.transition(job.id, JobState.VALIDATING)
    look(dispatcher, 2 * MISSES)
    dispatcher.stop()
    assert launcher.started == []
    assert store.get(job.id).state is JobState.VALIDATING


def test_a_controller_that_does_not_start_fails_its_job_only(store: JobStore, launcher: Recorder) -> None:
    first, second = queue(store, 2)
    dispatcher = Dispatcher(store, launcher)
    launcher.refusal = RuntimeError("no room")
    dispatcher.tick()
    for job_id in (first, second):
        job = store.get(job_id)
        assert job.state is JobState.FAILED
        assert job.error is not None and job.error.code == "launch_failed" and "no room" in job.error.message


def test_one_late_answer_is_not_a_death(store: JobStore, launcher: Recorder) -> None:
    (job_id,) = queue(store, 1)
    dispatcher = Dispatcher(store, launcher)
    dispatcher.tick()
    for _ in range(5):
        launcher.living.clear()
        look(dispatcher, MISSES - 1)
        launcher.living.add(job_id)
        dispatcher.tick()
    assert store.get(job_id).state is JobState.VALIDATING and launcher.started == [job_id]


def die(dispatcher: Dispatcher, launcher: Recorder) -> None:
    launcher.living.clear()
    look(dispatcher, MISSES)


def test_a_dead_controller_is_started_again_up_to_a_bound(store: JobStore, launcher: Recorder) -> None:
    (job_id,) = queue(store, 1)
    dispatcher = Dispatcher(store, launcher, max_restarts=2)
    dispatcher.tick()
    for restarts in (1, 2):
        die(dispatcher, launcher)
        job = store.get(job_id)
        assert (job.state, job.restarts, job.attempt) == (JobState.VALIDATING, restarts, restarts + 1)
    die(dispatcher, launcher)
    job = store.get(job_id)
    assert job.state is JobState.FAILED and job.error is not None and job.error.code == "controller_lost"
    assert "died 3 times" in job.error.message and "SPARRING_MAX_JOB_RESTARTS" in job.error.message
    assert launcher.started == [job_id] * 3
    store.resume(job_id)
    dispatcher.tick()
    assert store.get(job_id).restarts == 0 and launcher.started == [job_id] * 4


def test_a_cancelled_job_whose_controller_died_is_not_started_again(store: JobStore, launcher: Recorder) -> None:
    (job_id,) = queue(store, 1)
    dispatcher = Dispatcher(store, launcher)
    dispatcher.tick()
    store.request(job_id, RequestedAction.CANCEL)
    die(dispatcher, launcher)
    assert store.get(job_id).state is JobState.CANCELLED and launcher.started == [job_id]


def test_a_controller_that_ended_well_just_now_is_not_taken_for_dead(
    store: JobStore, launcher: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job_id,) = queue(store, 1)
    dispatcher = Dispatcher(store, launcher)
    dispatcher.tick()
    store.transition(job_id, JobState.RUNNING)
    before = store.get(job_id)
    store.transition(job_id, JobState.SUCCEEDED)
    launcher.living.clear()
    reading = store.list

    def outdated(**wanted: object) -> list[JobRecord]:
        monkeypatch.setattr(store, "list", reading)
        return [before]

    for _ in range(MISSES):
        monkeypatch.setattr(store, "list", outdated)
        dispatcher.tick()
    assert store.get(job_id).state is JobState.SUCCEEDED


def test_when_our_own_ray_stops_jobs_go_back_and_keep_their_place(store: JobStore, launcher: Recorder) -> None:
    first, second = queue(store, 2)
    dispatcher = Dispatcher(store, launcher, requeue_on_stop=True)
    dispatcher.tick()
    dispatcher.stop()
    job = store.get(first)
    assert (job.state, job.restarts) == (JobState.QUEUED, 0)
    assert launcher.calls[-1] == ("close", "")
    Dispatcher(store, launcher).tick()
    assert launcher.started == [first, first]
    assert store.get(second).state is JobState.QUEUED


def test_with_a_ray_from_elsewhere_jobs_go_on_and_are_found_again(store: JobStore, launcher: Recorder) -> None:
    (job_id,) = queue(store, 1)
    dispatcher = Dispatcher(store, launcher, requeue_on_stop=False)
    dispatcher.tick()
    dispatcher.stop()
    assert store.get(job_id).state is JobState.VALIDATING
    launcher.living.add(job_id)
    following = Dispatcher(store, launcher, requeue_on_stop=False)
    look(following, 2)
    store.transition(job_id, JobState.RUNNING)
    store.transition(job_id, JobState.SUCCEEDED)
    following.tick()
    assert launcher.started == [job_id] and launcher.calls[-1] == ("wait_gone", job_id)


async def test_what_goes_wrong_in_a_look_shows_in_the_check_and_is_tried_again(
    store: JobStore, launcher: Recorder
) -> None:
    (job_id,) = queue(store, 1)
    store.transition(job_id, JobState.VALIDATING)
    faults = 3

    class Flaky(Recorder):
        def alive(self, job_id: str) -> bool:
            nonlocal faults
            faults -= 1
            if faults >= 0:
                raise ConnectionError("Ray is away")
            return True

    dispatcher = Dispatcher(store, Flaky(), poll_seconds=0.02)
    stop = asyncio.Event()
    running = asyncio.create_task(dispatcher.run(stop))
    seen = []
    while faults >= 0 or not seen:
        await asyncio.sleep(0.01)
        try:
            dispatcher.check()
        except RuntimeError as error:
            seen.append(error)
    async with asyncio.timeout(30):
        while True:
            await asyncio.sleep(0.01)
            try:
                dispatcher.check()
                break
            except RuntimeError:  # the look that ended well is not over yet
                continue
    stop.set()
    await asyncio.wait_for(running, 30)
    assert isinstance(seen[0].__cause__, ConnectionError)
