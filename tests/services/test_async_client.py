"""The client for asyncio, against a real server; and that both clients offer the same."""

from __future__ import annotations

import asyncio
import inspect
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from job_world import SPEC, publish, running_job, service

from services.api.routes import history
from services.client import ApiError, AsyncClient, Client, ServiceAbsent
from services.jobs.records import JobEvent
from services.jobs.state import JobState
from services.jobs.store import JobStore
from services.settings import Settings


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(Settings(home=tmp_path).store_url)


@pytest.fixture
def url(store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(history, "POLL_SECONDS", 0.02)
    with service(Settings(home=tmp_path), store) as url:
        yield url


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def offered(client: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(client, inspect.isfunction)
        return {name: list(inspect.signature(each).parameters) for name, each in methods if not name.startswith("_")}

    assert offered(Client) == offered(AsyncClient)
    assert list(inspect.signature(Client("http://x").submit).parameters) == ["spec", "idempotency_key"]
    assert "Queue a job" in (AsyncClient.submit.__doc__ or "")


async def test_a_job_goes_through_the_client(url: str, store: JobStore, tmp_path: Path) -> None:
    async with AsyncClient(url) as client:
        assert await client.answers()
        spec = SPEC | {"metadata": {"team": "a"}, "priority": 3}
        job = await client.submit(spec, idempotency_key="k")
        assert await client.submit(spec, idempotency_key="k") == job
        assert await client.get(job.id) == job == store.get(job.id)
        assert [each.id for each in (await client.list(labels={"team": "a"})).jobs] == [job.id]
        assert (await client.list(labels={"team": "b"})).jobs == ()
        assert (await client.cancel(job.id, idempotency_key="c")).state is JobState.CANCELLED
        assert (await client.resume(job.id)).attempt == 2
        with pytest.raises(ApiError, match="only a job that has ended can be deleted") as caught:
            await client.delete(job.id)
        assert caught.value.status == 409
        await client.cancel(job.id)
        await client.delete(job.id)
        with pytest.raises(ApiError, match="there is no job"):
            await client.get(job.id)


async def test_pause_and_download(url: str, store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    files = publish(tmp_path, job_id, 0)
    store.add_version(job_id, 0, digest="d", learner_step=0)
    async with AsyncClient(url) as client:
        assert (await client.pause(job_id)).requested == "pause"
        saved = await client.download(job_id, 0, tmp_path / "v0.zip")
        with zipfile.ZipFile(saved) as archive:
            names = [name for name in archive.namelist() if name.endswith("adapter_model.safetensors")]
            assert archive.read(names[0]) == files["adapter_model.safetensors"]
        with pytest.raises(ApiError):
            await client.download(job_id, 9, tmp_path / "v9.zip")
        assert not (tmp_path / "v9.zip").exists() and not (tmp_path / "v9.zip.part").exists()


async def test_events_stream_until_the_job_has_ended(url: str, store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)

    async def work() -> None:
        await asyncio.sleep(0.1)
        await asyncio.to_thread(store.append_event, job_id, "version_published", "v1")
        await asyncio.to_thread(store.transition, job_id, JobState.SUCCEEDED)

    async with AsyncClient(url) as client:
        working = asyncio.ensure_future(work())
        events = [event async for event in client.events(job_id)]
        await working
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert [event.message for event in events[-2:]] == ["v1", "succeeded"]
        assert [event.seq async for event in client.events(job_id, after=events[-2].seq)] == [events[-1].seq]
        with pytest.raises(ApiError, match="there is no job"):
            await anext(client.events("no-abcdef"))


@pytest.mark.parametrize("said", ["", ": ping\n\n", "id: 0\n\n"])
async def test_a_stream_that_was_quiet_for_long_is_taken_up_where_it_broke(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("services.client.time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    event = JobEvent(job_id="j", seq=1, time=datetime(2026, 1, 1, tzinfo=UTC), kind="note", message="at last", data={})

    async def quiet() -> AsyncIterator[bytes]:
        yield said.encode()
        now[0] += 1000
        raise httpx.ReadError("the connection broke")

    async def at_last() -> AsyncIterator[bytes]:
        yield f"id: 1\ndata: {event.model_dump_json()}\n\n".encode()

    answers: list[AsyncIterator[bytes] | None] = [quiet(), None, quiet(), None, at_last()]

    def answer(request: httpx.Request) -> httpx.Response:
        content = answers.pop(0)
        if content is None:
            raise httpx.ConnectError("nobody", request=request)
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=content)

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    transport = httpx.MockTransport(answer)
    async with AsyncClient("http://service", reconnect_seconds=10, transport=transport, sleep=sleep) as client:
        assert await anext(client.events("j")) == event


async def test_a_stream_gives_up_when_the_service_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    now = [0.0]
    monkeypatch.setattr("services.client.time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        now[0] += seconds

    def absent(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("nobody", request=request)

    transport = httpx.MockTransport(absent)
    async with AsyncClient("http://127.0.0.1:1", reconnect_seconds=1, transport=transport, sleep=sleep) as client:
        with pytest.raises(ServiceAbsent, match="no service answers at"):
            await anext(client.events("a-abcdef"))
        assert waited == [0.2, 0.4, 0.8]
        with pytest.raises(ServiceAbsent):
            await client.get("a-abcdef")
