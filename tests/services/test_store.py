"""The job store, on real SQLite files and on a real PostgreSQL server."""

from __future__ import annotations

import math
import multiprocessing
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from learner.errors import InputError
from services.jobs.records import JobError, NewEvent
from services.jobs.spec import JobSpec
from services.jobs.state import JobState, RequestedAction, StateConflict
from services.jobs.store import IdempotencyConflict, JobStore, UnknownJob


def spec(name: str = "demo", **more: object) -> JobSpec:
    """The smallest job."""
    return JobSpec.model_validate(
        {"name": name, "policy": {"model": "a/model"}, "prompts": {"source": "p.jsonl"}} | more
    )


@pytest.fixture
def store(database_url: str) -> Iterator[JobStore]:
    store = JobStore(database_url)
    yield store
    store.close()


def running(store: JobStore, home: Path) -> str:
    """A job at work."""
    job = store.create(spec(), home=home)
    store.transition(job.id, JobState.VALIDATING)
    store.transition(job.id, JobState.RUNNING)
    return job.id


def test_a_new_job_is_queued_and_reads_back_whole(store: JobStore, tmp_path: Path) -> None:
    made = store.create(spec(metadata={"team": "a"}, seed=7), home=tmp_path)
    job = store.get(made.id)
    assert job == made
    assert job.id.startswith("demo-") and len(job.id) == len("demo-") + 6 and job.id.islower()
    assert (job.state, job.attempt, job.metadata, job.runner) == (JobState.QUEUED, 1, {"team": "a"}, "service")
    assert JobSpec.model_validate(job.spec) == spec(metadata={"team": "a"}, seed=7)
    assert job.created_at.tzinfo is UTC


def test_a_number_that_is_not_finite_is_null_in_an_event(store: JobStore, tmp_path: Path) -> None:
    job_id = running(store, tmp_path)
    data = {"loss": math.nan, "worst": {"rewards": [math.inf, 1.5, -math.inf]}}
    written = store.append_event(job_id, "warning", "the loss is not a number", data)
    assert written.data == {"loss": None, "worst": {"rewards": [None, 1.5, None]}}
    assert store.events_after(job_id)[-1] == written


def test_the_file_is_in_wal_mode(tmp_path: Path) -> None:
    store = JobStore(f"sqlite:///{tmp_path}/deep/down/sparring.sqlite")
    store.create(spec(), home=tmp_path)
    store.close()
    with sqlite3.connect(tmp_path / "deep/down/sparring.sqlite") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_idempotency_key_makes_one_job(store: JobStore, tmp_path: Path) -> None:
    first = store.create(spec(), home=tmp_path, idempotency_key="k")
    assert store.create(spec(), home=tmp_path, idempotency_key="k").id == first.id
    assert len(store.list()) == 1
    with pytest.raises(IdempotencyConflict, match=r"'k' made job demo-\w+ from another specification"):
        store.create(spec(seed=1), home=tmp_path, idempotency_key="k")


def test_unknown_jobs_are_named(store: JobStore) -> None:
    for ask in (store.get, store.versions, store.series, store.events_after, store.take_request):
        with pytest.raises(UnknownJob, match="no job 'nope-000000'"):
            ask("nope-000000")


def test_the_list_is_newest_first_and_pages_by_cursor(store: JobStore, tmp_path: Path) -> None:
    ids = [store.create(spec(f"j{place}"), home=tmp_path).id for place in range(5)]
    first = store.list(limit=2)
    second = store.list(limit=2, after=first[-1].id)
    third = store.list(limit=2, after=second[-1].id)
    assert [job.id for job in [*first, *second, *third]] == ids[::-1]
    store.transition(ids[1], JobState.CANCELLED)
    assert [job.id for job in store.list(states=[JobState.CANCELLED])] == [ids[1]]
    assert store.counts_by_state()[JobState.QUEUED] == 4
    assert store.counts_by_state()[JobState.PAUSED] == 0


def test_moves_are_written_with_their_times_and_repeat_without_effect(store: JobStore, tmp_path: Path) -> None:
    job_id = running(store, tmp_path)
    before = store.events_after(job_id)
    store.transition(job_id, JobState.RUNNING)
    assert store.events_after(job_id) == before
    assert [event.data["state"] for event in before] == ["queued", "validating", "running"]
    error = JobError(code="canary", message="sampler 0 serves another version", param=None)
    job = store.transition(job_id, JobState.FAILED, error=error)
    assert job.error == error and store.get(job_id).error == error
    assert job.started_at is not None and job.finished_at is not None and job.finished_at >= job.started_at
    with pytest.raises(StateConflict, match="is failed and cannot become running"):
        store.transition(job_id, JobState.RUNNING)


def test_resume_begins_a_new_attempt_without_the_old_error(store: JobStore, tmp_path: Path) -> None:
    job_id = running(store, tmp_path)
    with pytest.raises(StateConflict, match="only a paused, failed or cancelled job"):
        store.resume(job_id)
    store.transition(job_id, JobState.FAILED, error=JobError(code="x", message="y"))
    job = store.resume(job_id)
    assert (job.state, job.attempt, job.error, job.finished_at) == (JobState.QUEUED, 2, None, None)


def test_a_job_put_back_keeps_its_place_and_counts_restarts(store: JobStore, tmp_path: Path) -> None:
    job_id = running(store, tmp_path)
    later = store.create(spec("later"), home=tmp_path)
    job = store.requeue(job_id, message="its controller is gone", restart=True)
    assert (job.state, job.attempt, job.restarts) == (JobState.QUEUED, 2, 1)
    following = store.next_queued()
    assert following is not None and following.id == job_id
    with pytest.raises(StateConflict):
        store.requeue(later.id, message="x", restart=True)
    store.add_version(job_id, 0, digest="d", learner_step=0)
    assert store.get(job_id).restarts == 0, "it got somewhere"
    store.transition(job_id, JobState.VALIDATING)
    store.requeue(job_id, message="its controller is gone", restart=True)
    store.add_version(job_id, 0, digest="d", learner_step=0)
    assert store.get(job_id).restarts == 1, "the same version is nothing new"
    store.transition(job_id, JobState.CANCELLED)
    assert store.resume(job_id).restarts == 0
    following = store.next_queued()
    assert following is not None and following.id == later.id


def test_jobs_that_a_command_runs_are_not_the_services(store: JobStore, tmp_path: Path) -> None:
    job = store.create(spec(), home=tmp_path, runner="command")
    assert store.next_queued() is None
    store.transition(job.id, JobState.CANCELLED)
    store.resume(job.id)
    assert store.next_queued() is not None


def test_a_queued_job_is_cancelled_at_once(store: JobStore, tmp_path: Path) -> None:
    job = store.create(spec(), home=tmp_path)
    assert store.request(job.id, RequestedAction.CANCEL).state is JobState.CANCELLED


def test_a_cancel_stays_until_the_job_ends_and_a_pause_is_taken_once(store: JobStore, tmp_path: Path) -> None:
    job_id = running(store, tmp_path)
    assert store.take_request(job_id) is None
    store.request(job_id, RequestedAction.PAUSE)
    assert store.take_request(job_id) is RequestedAction.PAUSE
    assert store.take_request(job_id) is None
    store.request(job_id, RequestedAction.CANCEL)
    store.request(job_id, RequestedAction.CANCEL)
    store.request(job_id, RequestedAction.PAUSE)
    assert store.take_request(job_id) is RequestedAction.CANCEL
    assert store.take_request(job_id) is RequestedAction.CANCEL
    assert [event.kind for event in store.events_after(job_id)].count("request") == 2
    store.transition(job_id, JobState.CANCELLED)
    assert store.take_request(job_id) is None
    with pytest.raises(StateConflict, match="already cancelled"):
        store.request(job_id, RequestedAction.CANCEL)


def test_events_are_numbered_from_one_without_gaps(store: JobStore, tmp_path: Path) -> None:
    job = store.create(spec(), home=tmp_path)
    store.append_event(job.id, "version", "v1", {"version": 1})
    store.append_events(job.id, [NewEvent(kind="a", message="b"), NewEvent(kind="c", message="d")])
    assert [event.seq for event in store.events_after(job.id)] == [1, 2, 3, 4]
    assert [event.seq for event in store.events_after(job.id, 2, limit=1)] == [3]
    assert store.events_after(job.id, 1, limit=1)[0].data == {"version": 1}


def test_a_long_series_is_thinned_and_keeps_its_newest_point(store: JobStore, tmp_path: Path) -> None:
    job = store.create(spec(), home=tmp_path)
    for step in range(101):
        store.add_metrics(job.id, {"loss": float(step), "margin": -float(step)}, version=1, learner_step=step)
    series = store.series(job.id, ["loss"], max_points=10)
    steps = [point.learner_step for point in series["loss"]]
    assert list(series) == ["loss"]
    assert len(steps) <= 10 and steps[-1] == 100 and steps == sorted(steps)  # type: ignore[type-var]
    assert len(store.series(job.id, max_points=101)["margin"]) == 101
    assert {name: point.value for name, point in store.newest_metrics(job.id).items()} == {
        "loss": 100.0,
        "margin": -100.0,
    }


def test_what_is_not_finite_is_kept_as_absent(store: JobStore, tmp_path: Path) -> None:
    job = store.create(spec(), home=tmp_path)
    store.add_metrics(job.id, {"loss": math.nan, "margin": math.inf})
    assert [point.value for points in store.series(job.id).values() for point in points] == [None, None]


def test_a_rewind_drops_the_metrics_of_later_steps(store: JobStore, tmp_path: Path) -> None:
    job = store.create(spec(), home=tmp_path)
    for step in range(5):
        store.add_metrics(job.id, {"loss": 1.0}, learner_step=step)
    store.rewind(job.id, learner_step=2)
    assert [point.learner_step for point in store.series(job.id)["loss"]] == [0, 1, 2]


def test_versions_are_never_overwritten_and_one_is_best(store: JobStore, tmp_path: Path) -> None:
    job = store.create(spec(), home=tmp_path)
    for version in range(3):
        store.add_version(job.id, version, digest=f"d{version}", learner_step=16 * version)
    store.add_version(job.id, 1, digest="d1", learner_step=16)
    with pytest.raises(ValueError, match="has digest d1"):
        store.add_version(job.id, 1, digest="other", learner_step=16)
    store.set_version_metrics(job.id, 1, {"win_rate": 0.7})
    store.mark_best(job.id, 1)
    store.mark_best(job.id, 2)
    assert [(v.version, v.best, v.metrics) for v in store.versions(job.id)] == [
        (0, False, {}),
        (1, False, {"win_rate": 0.7}),
        (2, True, {}),
    ]
    assert (store.get(job.id).current_version, store.get(job.id).best_version) == (2, 2)
    with pytest.raises(ValueError, match="v9 was not published"):
        store.mark_best(job.id, 9)


def test_progress_is_a_share(store: JobStore, tmp_path: Path) -> None:
    job = store.create(spec(), home=tmp_path)
    store.set_progress(job.id, 0.5, "round 1: sampling")
    store.set_progress(job.id, 1.7)
    assert (store.get(job.id).progress, store.get(job.id).stage) == (1.0, "round 1: sampling")


def test_a_time_without_a_zone_is_refused(database_url: str, tmp_path: Path) -> None:
    naive = JobStore(database_url, clock=lambda: datetime(2026, 1, 1))
    with pytest.raises(Exception, match="without a zone"):
        naive.create(spec(), home=tmp_path)
    naive.close()


def test_a_bad_database_url_is_one_sentence() -> None:
    with pytest.raises(InputError, match="database_url: 'nonsense' cannot be opened"):
        JobStore("nonsense").check()


def write_events(url: str, job_id: str, name: str) -> None:
    """What each of two processes does."""
    store = JobStore(url)
    for place in range(40):
        store.append_event(job_id, name, str(place))
        store.add_metrics(job_id, {name: float(place)})
    store.close()


@pytest.mark.timeout(120)
def test_two_processes_write_the_same_job(database_url: str, tmp_path: Path) -> None:
    store = JobStore(database_url)
    job = store.create(spec(), home=tmp_path)
    store.close()
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_events, args=(database_url, job.id, name)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(100)
    assert [writer.exitcode for writer in writers] == [0, 0]
    events = store.events_after(job.id)
    assert [event.seq for event in events] == list(range(1, 82))
    for name in ("a", "b"):
        assert [event.message for event in events if event.kind == name] == [str(place) for place in range(40)]
        assert len(store.series(job.id)[name]) == 40
    store.close()


def test_every_connection_of_sqlite_syncs_what_it_acknowledges(tmp_path: Path) -> None:
    store = JobStore(f"sqlite:///{tmp_path}/sparring.sqlite")
    with store._opened().connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000
    store.close()
