"""A controller always leaves, also when its job was ended before it began."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from services.jobs import controller
from services.jobs.controller import JobController
from services.jobs.records import JobRecord
from services.jobs.spec import JobSpec
from services.jobs.state import JobState
from services.jobs.store import JobStore


class Left(BaseException):
    """The controller ended its actor."""


@pytest.fixture(autouse=True)
def leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no actor to end."""

    def leave() -> None:
        raise Left

    monkeypatch.setattr(controller.cluster, "leave", leave)


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'store.sqlite'}"


def create(store: JobStore, home: Path, model: str = "m", prompts: str = "p.jsonl") -> JobRecord:
    spec = JobSpec.model_validate({"policy": {"model": model}, "prompts": {"source": prompts}})
    return store.create(spec, home=home, runner="command")


async def test_a_controller_leaves_where_its_job_was_cancelled_before_it_began(tmp_path: Path) -> None:
    store = JobStore(url(tmp_path))
    job = create(store, tmp_path)
    store.transition(job.id, JobState.CANCELLED, message="cancelled")
    with pytest.raises(Left):
        await JobController(job.id, url(tmp_path), tmp_path).run()
    assert store.get(job.id).state is JobState.CANCELLED


async def test_a_controller_leaves_where_its_end_cannot_be_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OperationalError("UPDATE jobs", {}, Exception("the server closed the connection"))

    store = JobStore(url(tmp_path))
    job = create(store, tmp_path)
    made = JobController(job.id, url(tmp_path), tmp_path)
    for name in ("transition", "append_event", "get"):
        monkeypatch.setattr(made.store, name, broken)
    with pytest.raises(Left):
        await made.run()
    assert store.get(job.id).state is JobState.QUEUED


async def test_a_controller_leaves_where_its_job_is_deleted_before_a_tracker_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_slow(report: Path) -> None:
        made.journal.warning("the tracker took longer than 30 s to end")

    store = JobStore(url(tmp_path))
    job = create(store, tmp_path)
    made = JobController(job.id, url(tmp_path), tmp_path)
    store.transition(job.id, JobState.CANCELLED, message="cancelled")
    store.delete(job.id)
    monkeypatch.setattr(made.journal, "end_tracking", too_slow)
    with pytest.raises(Left):
        await made.run()


async def test_a_job_whose_files_are_missing_fails_with_the_sentence_and_the_controller_leaves(tmp_path: Path) -> None:
    store = JobStore(url(tmp_path))
    job = create(store, tmp_path, model=str(tmp_path / "no"), prompts="/p.jsonl")
    with pytest.raises(Left):
        await JobController(job.id, url(tmp_path), tmp_path).run()
    failed = store.get(job.id)
    assert failed.state is JobState.FAILED
    assert failed.error is not None and failed.error.code == "invalid_job"
