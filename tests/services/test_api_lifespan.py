"""What an application does with threads, and at its end."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from job_world import SPEC

from services.api.app import create_app
from services.api.threads import SHARED_THREADS
from services.jobs.load import parse_job
from services.jobs.store import JobStore
from services.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def store(settings: Settings) -> JobStore:
    return JobStore(settings.store_url)


async def test_who_asks_and_what_is_noted_wait_for_no_other_work(settings: Settings, store: JobStore) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    done = threading.Event()
    slow = asyncio.create_task(asyncio.to_thread(done.wait))
    transport = httpx.ASGITransport(create_app(settings, store, admit=parse_job))
    try:
        async with asyncio.timeout(60), httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            assert (await http.post("/v1/jobs", json=SPEC)).status_code == 201
        assert not slow.done()
    finally:
        done.set()
    await slow
    store.close()


async def test_as_many_threads_work_at_once_as_are_promised(settings: Settings, store: JobStore) -> None:
    app = create_app(settings, store, admit=parse_job)
    together = threading.Barrier(SHARED_THREADS)
    async with app.router.lifespan_context(app):
        await asyncio.gather(*(asyncio.to_thread(together.wait, 60) for _ in range(SHARED_THREADS)))


async def test_each_step_of_the_end_is_taken_whatever_the_others_come_to(
    settings: Settings, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    class Part:
        """Stands for samplers and for a dispatcher, whose end fails."""

        def __init__(self, name: str) -> None:
            self.name = name

        async def run(self, stop: asyncio.Event) -> None:
            await stop.wait()
            steps.append(f"{self.name} ran")
            raise RuntimeError(self.name)

        def stop(self) -> None:
            steps.append(f"{self.name} stopped")
            raise RuntimeError(self.name)

        def check(self) -> None:
            """It is ready."""

    monkeypatch.setattr(store, "close", lambda: steps.append("store closed"))
    parts: Any = {"samplers": Part("samplers"), "dispatcher": Part("dispatcher")}
    app = create_app(settings, store, admit=parse_job, **parts)
    with pytest.raises(RuntimeError, match="dispatcher"):
        async with app.router.lifespan_context(app):
            await asyncio.sleep(0)  # both begin to run
    assert sorted(steps[:2]) == ["dispatcher ran", "samplers ran"]
    assert steps[2:] == ["dispatcher stopped", "store closed"]
