"""A controller always leaves, also when its job was ended before it began."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.jobs import controller
from services.jobs.controller import JobController
from services.jobs.spec import JobSpec
from services.jobs.state import JobState
from services.jobs.store import JobStore


class Left(BaseException):
    """The controller ended its actor."""


async def test_a_controller_leaves_where_its_job_was_cancelled_before_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave() -> None:
        raise Left

    monkeypatch.setattr(controller.cluster, "leave", leave)
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    store = JobStore(url)
    spec = JobSpec.model_validate({"policy": {"model": "m"}, "prompts": {"source": "p.jsonl"}})
    job = store.create(spec, home=tmp_path, runner="command")
    store.transition(job.id, JobState.CANCELLED, message="cancelled")
    with pytest.raises(Left):
        await JobController(job.id, url, tmp_path).run()
    assert store.get(job.id).state is JobState.CANCELLED


async def test_a_job_whose_files_are_missing_fails_with_the_sentence_and_the_controller_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave() -> None:
        raise Left

    monkeypatch.setattr(controller.cluster, "leave", leave)
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    store = JobStore(url)
    spec = JobSpec.model_validate({"policy": {"model": str(tmp_path / "no")}, "prompts": {"source": "/p.jsonl"}})
    job = store.create(spec, home=tmp_path, runner="command")
    with pytest.raises(Left):
        await JobController(job.id, url, tmp_path).run()
    failed = store.get(job.id)
    assert failed.state is JobState.FAILED
    assert failed.error is not None and failed.error.code == "invalid_job"
