"""The Python client and the event stream, against a real server."""

from __future__ import annotations

import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from httpx_sse import connect_sse
from job_world import DOMAINS, SPEC, fill_ledger, job_with_domains, publish, running_job, service
from pydantic import SecretStr

from learner.errors import InputError
from services.api.routes import history
from services.client import ApiError, Client, ServiceAbsent
from services.jobs.records import JobEvent
from services.jobs.state import JobState
from services.jobs.store import JobStore
from services.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def store(settings: Settings) -> JobStore:
    return JobStore(settings.store_url)


@pytest.fixture
def client(settings: Settings, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(history, "POLL_SECONDS", 0.02)
    with service(settings, store) as url, Client(url) as client:
        yield client


def in_background(*steps: object) -> threading.Thread:
    """Take steps one after the other, with a moment between."""

    def work() -> None:
        for step in steps:
            time.sleep(0.1)
            assert callable(step)
            step()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_job_goes_through_the_client(client: Client, store: JobStore, tmp_path: Path) -> None:
    job = client.submit(SPEC, idempotency_key="k")
    assert client.submit(SPEC, idempotency_key="k") == job
    assert client.get(job.id) == job == store.get(job.id)
    assert [each.id for each in client.list(states=[JobState.QUEUED]).jobs] == [job.id]
    assert client.cancel(job.id).state is JobState.CANCELLED
    assert client.resume(job.id).attempt == 2
    store.add_metrics(job.id, {"loss": 0.5}, learner_step=1)
    assert client.metrics(job.id, ["loss"])["loss"][0].value == 0.5
    store.add_version(job.id, 0, digest="d", learner_step=0)
    assert [version.version for version in client.versions(job.id)] == [0]
    fill_ledger(tmp_path, job.id, 2, consumed=1)
    assert client.samples(job.id, limit=1).samples[0].answers[0].text == "answer 0 to 0"
    assert client.logs(job.id) == ""
    assert client.answers()


def test_domains_come_with_the_averages_of_both_judges(client: Client, store: JobStore, tmp_path: Path) -> None:
    found = client.domains(job_with_domains(store, tmp_path, gold=True))
    assert [domain.name for domain in found.domains] == list(DOMAINS)
    assert found.scorer is not None and found.scorer.forgetting == pytest.approx(0.1)
    assert found.gold is not None and found.gold.backward_transfer == pytest.approx(0.1)
    assert client.domains(running_job(store, tmp_path)).domains == ()


def test_a_refusal_is_the_services_own_sentence(client: Client) -> None:
    with pytest.raises(ApiError, match=r"schedule\.rounds: 0 is too small") as caught:
        client.submit(SPEC | {"schedule": {"rounds": 0}})
    assert caught.value.status == 422 and caught.value.errors[0]["param"] == "schedule.rounds"
    with pytest.raises(ApiError, match="there is no job 'no-abcdef'") as caught:
        client.get("no-abcdef")
    assert (caught.value.status, caught.value.code) == (404, "unknown_job")
    with pytest.raises(ApiError):
        next(client.events("no-abcdef"))


def test_events_stream_until_the_job_has_ended(client: Client, store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    worker = in_background(
        lambda: store.append_event(job_id, "version_published", "v1", {"version": 1}),
        lambda: store.transition(job_id, JobState.SUCCEEDED),
    )
    events = list(client.events(job_id))
    worker.join()
    assert [event.seq for event in events] == [1, 2, 3, 4, 5]
    assert events[3].data == {"version": 1} and events[-1].data["state"] == "succeeded"
    assert list(client.events(job_id, after=3)) == events[3:]
    assert list(client.events(job_id, after=5)) == []


def test_a_stream_honours_last_event_id_and_stays_alive(
    client: Client, store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "KEEP_ALIVE_SECONDS", 0.1)
    job_id = running_job(store, tmp_path)
    url = f"{client.url}/v1/jobs/{job_id}/events"
    lines: list[str] = []
    with httpx.Client(timeout=60) as http, connect_sse(http, "GET", url, headers={"Last-Event-ID": "2"}) as source:
        assert source.response.headers["content-type"].startswith("text/event-stream")
        for line in source.response.iter_lines():
            lines.append(line)
            # comments, which keep proxies from closing the connection
            if line.startswith(": ping") and sum(known.startswith(": ping") for known in lines) == 2:
                store.transition(job_id, JobState.FAILED)
    assert "id: 3" in lines and "id: 2" not in lines and "id: 4" in lines
    assert "event: state" in lines
    ended = httpx.get(url, headers={"Accept": "text/event-stream", "Last-Event-ID": "4"}, timeout=60)
    assert ended.status_code == 204  # a browser does not come back
    bad = httpx.get(url, headers={"Accept": "text/event-stream", "Last-Event-ID": "x"}, timeout=60)
    assert bad.status_code == 422 and bad.headers["content-type"] == "application/problem+json"


def test_events_are_taken_up_where_a_service_went_away(
    settings: Settings, store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "POLL_SECONDS", 0.02)
    job_id = running_job(store, tmp_path)
    first = service(settings, store)
    url = first.__enter__()
    seen = []
    with Client(url, reconnect_seconds=30) as client:
        events = client.events(job_id)
        seen += [next(events) for _ in range(3)]
        first.__exit__(None, None, None)
        store.append_event(job_id, "missed", "while nobody listened")
        store.transition(job_id, JobState.SUCCEEDED)
        address = socket.create_server(("127.0.0.1", int(url.rpartition(":")[2])))
        with service(settings, store, address):
            seen += list(events)
    assert [event.seq for event in seen] == [1, 2, 3, 4, 5]


def test_a_stream_gives_up_when_the_service_stays_away(settings: Settings, store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    first = service(settings, store)
    url = first.__enter__()
    with Client(url, reconnect_seconds=0.3) as client:
        events = client.events(job_id)
        for _ in range(3):
            next(events)
        first.__exit__(None, None, None)
        with pytest.raises(ServiceAbsent, match="no service answers"):
            list(events)


@pytest.mark.parametrize("said", ["", ": ping\n\n", "id: 0\n\n"])
def test_a_stream_that_was_quiet_for_long_is_taken_up_where_it_broke(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("services.client.time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    event = JobEvent(job_id="j", seq=1, time=datetime(2026, 1, 1, tzinfo=UTC), kind="note", message="at last", data={})

    def quiet() -> Iterator[bytes]:
        yield said.encode()
        now[0] += 1000
        raise httpx.ReadError("the connection broke")

    answers: list[Iterator[bytes] | None] = [quiet(), None, quiet(), None]
    answers.append(iter([f"id: 1\ndata: {event.model_dump_json()}\n\n".encode()]))

    def answer(request: httpx.Request) -> httpx.Response:
        content = answers.pop(0)
        if content is None:
            raise httpx.ConnectError("nobody", request=request)
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=content)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    transport = httpx.MockTransport(answer)
    with Client("http://service", reconnect_seconds=10, transport=transport, sleep=sleep) as client:
        assert next(client.events("j")) == event


def test_nothing_there_is_said_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(InputError, match=f"no service answers at http://127.0.0.1:{port}; .*sparring serve.*--url"):
            client.list()
        assert not client.answers()
    with Client("not a url") as client, pytest.raises(InputError, match="SPARRING_URL"):
        client.list()


def test_something_else_there_is_noticed() -> None:
    def other(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="<html>a router's page</html>")

    with Client("http://router", transport=httpx.MockTransport(other)) as client:
        assert not client.answers()
        with pytest.raises(InputError, match="does not answer as Sparring does"):
            client.get("j")


def test_the_key_is_sent(settings: Settings, store: JobStore) -> None:
    locked = settings.model_copy(update={"api_key": SecretStr("k3y")})
    with service(locked, store) as url:
        with Client(url, api_key="k3y") as client:
            assert client.list().jobs == ()
        with Client(url) as client, pytest.raises(ApiError, match="SPARRING_API_KEY"):
            client.list()


def test_a_download_is_there_whole_or_not_at_all(client: Client, store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    target = tmp_path / "v0.zip"
    with pytest.raises(ApiError, match=r"version: 0 of .* is not on disk"):
        client.download(job_id, 0, target)
    assert list(tmp_path.glob("v0.zip*")) == []
    files = publish(tmp_path, job_id, 0)
    with zipfile.ZipFile(client.download(job_id, 0, target)) as archive:
        name = f"{job_id}-fast-v0/adapter_model.safetensors"
        assert archive.read(name) == files["adapter_model.safetensors"]
