"""Priorities, labels, pausing, deleting and requests that are done once, on SQLite and PostgreSQL."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from job_world import SPEC, running_job
from sqlalchemy import event, func, select

from services.jobs.layout import JobPaths
from services.jobs.records import NewEvent, Preference
from services.jobs.spec import JobSpec
from services.jobs.state import JobState, RequestedAction, StateConflict
from services.jobs.store import IdempotencyConflict, JobStore, UnknownJob
from services.jobs.tables import Base


@pytest.fixture
def store(database_url: str) -> Iterator[JobStore]:
    store = JobStore(database_url)
    yield store
    store.close()


def queued(store: JobStore, home: Path, **more: object) -> str:
    return store.create(JobSpec.model_validate(SPEC | more), home=home).id


def test_the_highest_priority_comes_first_and_then_the_oldest(store: JobStore, tmp_path: Path) -> None:
    ids = [queued(store, tmp_path, priority=priority) for priority in (0, 5, -3, 5)]
    order = []
    while (job := store.next_queued()) is not None:
        order.append(job.id)
        store.transition(job.id, JobState.VALIDATING)
    assert order == [ids[1], ids[3], ids[0], ids[2]]
    assert store.get(ids[1]).priority == 5


def test_jobs_are_found_by_all_of_their_labels(store: JobStore, tmp_path: Path) -> None:
    first = queued(store, tmp_path, metadata={"team": "search", "run": "1"})
    second = queued(store, tmp_path, metadata={"team": "search", "run": "2"})
    queued(store, tmp_path, metadata={"run": "1"})

    def found(**labels: str) -> list[str]:
        return [job.id for job in store.list(labels=labels)]

    assert found(team="search") == [second, first]
    assert found(team="search", run="1") == [first]
    assert found(team="other") == found(other="search") == []
    assert [job.id for job in store.list(labels={"team": "search"}, limit=1, after=second)] == [first]
    store.transition(first, JobState.CANCELLED)
    assert [job.id for job in store.list(labels={"team": "search"}, states=[JobState.QUEUED])] == [second]


def test_a_pause_waits_until_the_job_runs_and_resume_lets_it_go_on(store: JobStore, tmp_path: Path) -> None:
    job_id = queued(store, tmp_path)
    with pytest.raises(StateConflict, match="pause needs a job that is running or validating"):
        store.request(job_id, RequestedAction.PAUSE)
    store.transition(job_id, JobState.VALIDATING)
    store.request(job_id, RequestedAction.PAUSE)
    assert store.take_request(job_id) is None
    store.transition(job_id, JobState.RUNNING)
    assert store.take_request(job_id) is RequestedAction.PAUSE
    store.transition(job_id, JobState.PAUSED)
    assert store.resume(job_id).attempt == 1
    assert store.take_request(job_id) is RequestedAction.CONTINUE


def test_a_pause_that_has_not_begun_is_taken_back(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    store.request(job_id, RequestedAction.PAUSE)
    assert store.resume(job_id).requested is None
    assert store.take_request(job_id) is None


@pytest.mark.parametrize(
    ("asked", "left"),
    [(None, RequestedAction.PAUSE), (RequestedAction.CONTINUE, None), (RequestedAction.CANCEL, RequestedAction.CANCEL)],
)
def test_a_paused_job_whose_controller_is_gone_stays_paused(
    store: JobStore, tmp_path: Path, asked: RequestedAction | None, left: RequestedAction | None
) -> None:
    job_id = running_job(store, tmp_path)
    store.transition(job_id, JobState.PAUSED)
    if asked is not None:
        store.request(job_id, asked)
    assert store.requeue(job_id, message="gone", restart=True).requested == left


def test_a_job_that_has_ended_is_deleted_with_everything_it_made(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path, metadata={"a": "b"}, feedback={"share": 0.5})
    other = running_job(store, tmp_path, metadata={"a": "b"})
    store.add_metrics(job_id, {"loss": 1.0})
    store.add_version(job_id, 0, digest="d", learner_step=0)
    store.add_preferences(job_id, [Preference(prompt="p", chosen="a", rejected="b")])
    for each in (job_id, other):
        folder = JobPaths(tmp_path, each).root / "versions"
        folder.mkdir(parents=True)
        (folder / "adapter").write_text("x")
    with pytest.raises(StateConflict, match="is running; only a job that has ended can be deleted: cancel it first"):
        store.delete(job_id)
    assert JobPaths(tmp_path, job_id).root.is_dir()
    store.transition(job_id, JobState.CANCELLED)
    store.delete(job_id)
    with pytest.raises(UnknownJob):
        store.get(job_id)
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == [other]
    assert [job.id for job in store.list(labels={"a": "b"})] == [other]
    with store._read() as session:
        for table in Base.metadata.sorted_tables:
            if "job_id" in table.c:
                assert not session.scalar(select(func.count()).select_from(table).where(table.c.job_id == job_id))


def test_a_deletion_that_broke_off_is_done_again(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    store.transition(job_id, JobState.SUCCEEDED)
    JobPaths(tmp_path, job_id).deleted.mkdir(parents=True)  # its folder was moved away, its record was not deleted
    store.delete(job_id)
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_request_under_a_key_is_done_once(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    store.request(job_id, RequestedAction.CANCEL, idempotency_key="k")
    store.transition(job_id, JobState.CANCELLED)
    assert store.resume(job_id, idempotency_key="r").attempt == 2
    assert store.request(job_id, RequestedAction.CANCEL, idempotency_key="k").state is JobState.QUEUED
    store.transition(job_id, JobState.CANCELLED)
    assert store.resume(job_id, idempotency_key="r").attempt == 2
    with pytest.raises(IdempotencyConflict, match=f"'k' came before with another request than to delete {job_id}"):
        store.delete(job_id, idempotency_key="k")
    store.delete(job_id, idempotency_key="d")
    store.delete(job_id, idempotency_key="d")
    with pytest.raises(UnknownJob):
        store.delete(job_id, idempotency_key="e")


def test_a_request_that_was_refused_is_not_remembered(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    with pytest.raises(StateConflict):
        store.delete(job_id, idempotency_key="k")
    store.transition(job_id, JobState.SUCCEEDED)
    store.delete(job_id, idempotency_key="k")
    with pytest.raises(UnknownJob):
        store.get(job_id)


def test_preferences_under_a_key_are_stored_once(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path, feedback={"share": 0.5})
    click = Preference(prompt="p", chosen="a", rejected="b")
    first = store.add_preferences(job_id, [click], idempotency_key="k")
    again = store.add_preferences(job_id, [click], idempotency_key="k")
    assert (first.stored, again.stored, again.known, again.ids) == (1, 0, 1, first.ids)
    with pytest.raises(IdempotencyConflict):
        store.add_preferences(job_id, [Preference(prompt="q", chosen="a", rejected="b")], idempotency_key="k")


def test_the_end_is_estimated_from_the_speed_since_the_job_runs(database_url: str, tmp_path: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    store = JobStore(database_url, clock=lambda: now)
    job_id = running_job(store, tmp_path)
    store.set_progress(job_id, 0.2, "sampling")  # what an earlier attempt had done
    assert store.get(job_id).estimated_finish_at is None
    now += timedelta(minutes=10)
    store.set_progress(job_id, 0.4)
    assert store.get(job_id).estimated_finish_at == now + timedelta(minutes=30)
    assert store.list()[0].estimated_finish_at == now + timedelta(minutes=30)
    store.transition(job_id, JobState.PAUSED)
    assert store.get(job_id).estimated_finish_at is None
    now += timedelta(days=1)
    store.transition(job_id, JobState.RUNNING)
    store.set_progress(job_id, 0.4)
    now += timedelta(minutes=10)
    store.set_progress(job_id, 0.7)
    assert store.get(job_id).estimated_finish_at == now + timedelta(minutes=10)
    store.transition(job_id, JobState.SUCCEEDED)
    assert store.get(job_id).estimated_finish_at is None
    store.close()


def test_text_that_a_database_cannot_keep_is_replaced(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    store.append_event(job_id, "warning", "a\0b\ud800c", {"text": "x\0y"})
    event = store.events_after(job_id)[-1]
    assert event.message == "a\ufffdb?c" and event.data == {"text": "x\0y"}
    with pytest.raises(UnknownJob):
        store.get("no\0job")


def test_a_preference_with_any_text_is_waited_for(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path, feedback={"share": 0.5})
    store.add_preferences(job_id, [Preference(prompt="p\0", chosen="a", rejected="b", domain="d")])
    assert [each.preference.prompt for each in store.waiting_preferences(job_id, limit=5)] == ["p\0"]
    assert store.waiting_preferences(job_id, limit=5, leave_out=["d"]) == []


# ---- several writers ---------------------------------------------------------------------------------------------


def test_threads_that_write_one_job_number_their_events_without_gaps(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path, feedback={"share": 0.5})
    store.add_version(job_id, 0, digest="d", learner_step=0)
    before = len(store.events_after(job_id))

    def write(name: str) -> None:
        for place in range(15):
            store.append_events(job_id, [NewEvent(kind=name, message=str(place))] * 2)
            store.set_version_metrics(job_id, 0, {f"{name}{place}": 1.0})
            store.add_preferences(job_id, [Preference(prompt=f"{place}", chosen="a", rejected="b")])

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    events = store.events_after(job_id, limit=1000)
    assert [event.seq for event in events] == list(range(1, before + 4 * 15 * 2 + 1))
    for name in "abcd":
        assert [event.message for event in events if event.kind == name] == [str(p) for p in range(15) for _ in "12"]
    assert len(store.versions(job_id)[0].metrics) == 4 * 15  # no writer's numbers were lost to another's
    assert [each.number for each in store.waiting_preferences(job_id, limit=100)] == list(range(1, 16))


def cancel_and_create(url: str, job_id: str, home: Path) -> None:
    """What each of several processes does at once."""
    store = JobStore(url)
    store.create(JobSpec.model_validate(SPEC), home=home, idempotency_key="create")
    store.request(job_id, RequestedAction.CANCEL, idempotency_key="cancel")
    store.close()


@pytest.mark.timeout(120)
def test_processes_that_send_the_same_request_at_once_do_it_once(
    store: JobStore, database_url: str, tmp_path: Path
) -> None:
    job_id = running_job(store, tmp_path)
    context = multiprocessing.get_context("spawn")
    senders = [context.Process(target=cancel_and_create, args=(database_url, job_id, tmp_path)) for _ in range(3)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(100)
    assert [sender.exitcode for sender in senders] == [0, 0, 0]
    assert len(store.list()) == 2
    assert [event.kind for event in store.events_after(job_id)].count("request") == 1


# ---- many jobs ---------------------------------------------------------------------------------------------------


def plans(store: JobStore, ask: Callable[[], object]) -> str:
    """How SQLite would answer the questions that a call asks, in its words."""
    asked: list[tuple[str, object]] = []
    engine = store._opened()

    def note(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        if statement.startswith("SELECT"):
            asked.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    ask()
    event.remove(engine, "before_cursor_execute", note)
    with engine.connect() as connection:
        found = [
            row[-1]
            for statement, parameters in asked
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)  # type: ignore[arg-type]
        ]
    return "\n".join(found)


def test_with_thousands_of_jobs_an_index_answers(tmp_path: Path) -> None:
    store = JobStore(f"sqlite:///{tmp_path}/sparring.sqlite")
    job_id = queued(store, tmp_path, metadata={"team": "a"})
    assert "COVERING INDEX ix_jobs_state_runner_priority_queued_at_number" in plans(store, store.next_queued)
    assert "INDEX ix_jobs_state_number (state=?)" in plans(store, lambda: store.list(states=[JobState.QUEUED]))
    assert "INTEGER PRIMARY KEY (rowid<?)" in plans(store, lambda: store.list(after=job_id))
    assert "(name=? AND value=?" in plans(store, lambda: store.list(labels={"team": "a"}))
    assert "(id=?)" in plans(store, lambda: store.get(job_id))
    assert "COVERING INDEX" in plans(store, store.counts_by_state)
    assert "SCAN metrics" not in plans(store, lambda: (store.series(job_id), store.newest_metrics(job_id)))
    assert "TEMP B-TREE" not in plans(store, lambda: store.list()) + plans(
        store, lambda: store.list(states=[JobState.QUEUED])
    )
    store.close()
