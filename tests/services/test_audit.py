"""Who wrote what: noted before the answer, read page by page."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from job_world import SPEC, running_job, service
from typer.testing import CliRunner

from services.access.keys import Scope
from services.access.records import NewAuditEntry
from services.access.store import AccessStore
from services.api.app import create_app
from services.cli.main import app as command_line
from services.client import Client
from services.jobs.load import parse_job
from services.jobs.spec import JobSpec
from services.jobs.store import JobStore
from services.settings import Settings


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings.load()


@pytest.fixture
def store(settings: Settings) -> JobStore:
    return JobStore(settings.store_url)


@pytest.fixture
async def http(settings: Settings, store: JobStore) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, store, admit=parse_job)
    key, new = app.state.context.access.create_key("anna", Scope.ADMIN)
    transport = httpx.ASGITransport(app, client=("203.0.113.7", 9))
    headers = {"Authorization": f"Bearer {new.text}", "X-Key-Id": key.id}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
        yield client
    store.close()


async def entries(http: httpx.AsyncClient, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await http.get("/v1/audit", params=params)).json()["entries"]
    return found


async def test_a_write_is_noted_with_who_what_which_job_and_how_it_ended(http: httpx.AsyncClient) -> None:
    made = await http.post("/v1/jobs", json=SPEC, headers={"X-Request-ID": "mine-1"})
    job_id = made.json()["id"]
    await http.post(f"/v1/jobs/{job_id}/cancel")
    await http.post(f"/v1/jobs/{job_id}/cancel")
    await http.get(f"/v1/jobs/{job_id}")
    again, cancelled, submitted = await entries(http)
    assert submitted | {"number": 0, "time": ""} == {
        "number": 0,
        "time": "",
        "key_id": http.headers["x-key-id"],
        "actor": "anna",
        "address": "203.0.113.7",
        "action": "POST /v1/jobs",
        "job_id": job_id,
        "request_id": "mine-1",
        "status": 201,
    }
    assert (cancelled["action"], cancelled["job_id"], cancelled["status"]) == (
        "POST /v1/jobs/{job_id}/cancel",
        job_id,
        200,
    )
    assert again["status"] == 409
    assert [entry["number"] for entry in await entries(http, job_id=job_id)] == [3, 2, 1]
    assert await entries(http, job_id="another") == [] and await entries(http, key_id="another") == []


async def test_refused_and_failed_writes_are_noted_and_strangers_are_not(settings: Settings, store: JobStore) -> None:
    def admit(_data: Mapping[str, Any]) -> JobSpec:
        raise RuntimeError("out of order")

    app = create_app(settings, store, admit=admit)
    access = app.state.context.access
    reader = access.create_key("reader", Scope.READ)[1].text
    writer = access.create_key("writer", Scope.WRITE)[1].text
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        for key in (reader, writer, "nonsense"):
            await http.post("/v1/jobs", json=SPEC, headers={"Authorization": f"Bearer {key}"})
        await http.post("/v1/nothing", headers={"Authorization": f"Bearer {writer}"})
        await http.post(f"/v1/jobs/{'x' * 500}/cancel", headers={"Authorization": f"Bearer {writer}"})
    noted = [(entry.actor, entry.status, entry.job_id) for entry in access.audit()]
    assert noted == [("writer", 404, "x" * 64), ("writer", 500, None), ("reader", 403, None)]
    store.close()


async def test_a_write_that_cannot_be_noted_is_not_acknowledged(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: AccessStore, _entry: NewAuditEntry) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(AccessStore, "note", full)
    answer = await http.post("/v1/jobs", json=SPEC)
    assert answer.status_code == 500 and "disk" not in answer.text


async def test_pages_of_the_audit_follow_their_cursor(http: httpx.AsyncClient) -> None:
    for _ in range(5):
        await http.post("/v1/jobs/none/cancel")
    seen: list[int] = []
    after: dict[str, int] = {}
    while True:
        page = (await http.get("/v1/audit", params={"limit": 2} | after)).json()
        seen += [entry["number"] for entry in page["entries"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert seen == [5, 4, 3, 2, 1]


def test_the_audit_is_kept_by_every_database(database_url: str) -> None:
    access = AccessStore(database_url)
    for actor in ("anna", "bert"):
        access.note(NewAuditEntry(actor=actor, action="POST /v1/jobs", job_id=f"{actor}s-job", status=201))
    access.close()
    assert [entry.actor for entry in access.audit()] == ["bert", "anna"]
    assert [entry.number for entry in access.audit(job_id="annas-job")] == [1]
    long = NewAuditEntry(actor="carl", action="POST /v1/jobs/{job_id}/cancel", job_id="j" * 500, address="1" * 500)
    assert access.note(long) == access.audit(limit=1)[0]
    assert (access.audit(limit=1)[0].job_id, access.audit(limit=1)[0].address) == ("j" * 64, "1" * 64)
    access.close()


def test_the_command_shows_the_audit_of_a_service_and_of_the_store_here(
    settings: Settings, store: JobStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(command_line, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    monkeypatch.setenv("SPARRING_PORT", "1")
    assert "Nothing was written yet" in run("audit")
    job_id = running_job(store, home)
    with service(settings, store) as url:
        with Client(url) as client:
            client.cancel(job_id)
        shown = [json.loads(line) for line in run("audit", "--url", url, "--json", "--job", job_id).splitlines()]
    assert [(entry["actor"], entry["job_id"], entry["status"]) for entry in shown] == [("local", job_id, 200)]
    assert "local" in run("audit")
