"""How workers for chat alone are ended; that they write and compare is in tests/e2e."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from job_world import running_job

from services.chat import samplers
from services.chat.desk import ChatJob
from services.chat.samplers import RaySamplers
from services.jobs.store import JobStore
from services.settings import Settings
from workers.errors import CallTimeout, WorkerUnavailable

ROLES = ("sampler", "scorer", "versions")


class Cluster:
    """Stands for the cluster: which actors were killed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, then: Callable[[str], None]) -> None:
        self.killed: list[str] = []
        self._then = then
        monkeypatch.setattr(samplers.cluster, "kill", self.kill)
        monkeypatch.setattr(samplers, "Link", self.link)

    def kill(self, name: str) -> None:
        self.killed.append(name)
        self._then(name)

    def link(self, name: str) -> Any:
        class Nobody:
            async def call(self, *_: object, **__: object) -> None:
                raise WorkerUnavailable(f"nobody is called {name}")

            def begin(self, *_: object) -> None:
                raise WorkerUnavailable(f"nobody is called {name}")

        return Nobody()


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(Settings(home=tmp_path).store_url)


def chatted(made: RaySamplers, *job_ids: str) -> None:
    """Somebody has chatted with these jobs, and has left."""
    for job_id in job_ids:
        made._places.leave(made._places.enter(job_id))
        made._teams[job_id] = samplers._Team(cast(ChatJob, None))


async def test_at_the_end_all_are_ended_also_where_some_do_not_go(
    tmp_path: Path, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(name: str) -> None:
        raise CallTimeout(f"{name} did not end within 30 s")

    cluster = Cluster(monkeypatch, stuck)
    made = RaySamplers(Settings(home=tmp_path, chat_places=2), store)
    chatted(made, "a", "b")
    stop = asyncio.Event()
    stop.set()
    await made.run(stop)
    assert cluster.killed == [f"{job_id}-chat-{role}" for job_id in "ab" for role in ROLES]


async def test_who_comes_back_while_unused_places_are_ended_keeps_the_sampler(
    tmp_path: Path, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = {running_job(store, tmp_path) for _ in range(2)}

    def come_back(name: str) -> None:
        """Somebody chats with the other job while this one's workers are ended."""
        (other,) = (job_id for job_id in jobs if not name.startswith(job_id))
        made._places.enter(other)

    cluster = Cluster(monkeypatch, come_back)
    made = RaySamplers(Settings(home=tmp_path, chat_places=2), store)
    chatted(made, *jobs)
    monkeypatch.setattr(made, "_a_job_begins", lambda: True)  # which takes all unused places away
    await made._look()
    (ended,) = jobs - made._teams.keys()
    assert cluster.killed == [f"{ended}-chat-{role}" for role in ROLES]
