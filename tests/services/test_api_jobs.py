"""Jobs over REST: labels, pause and resume, deletion, and requests that are done once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from job_world import SPEC, fill_ledger, publish, running_job

from services.api.app import create_app
from services.jobs.layout import JobPaths
from services.jobs.load import parse_job
from services.jobs.state import JobState, RequestedAction
from services.jobs.store import JobStore
from services.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(home=tmp_path, database_url=database_url)


@pytest.fixture
def store(settings: Settings) -> JobStore:
    return JobStore(settings.store_url)


@pytest.fixture
async def http(settings: Settings, store: JobStore) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, store, admit=parse_job)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8700") as client:
        yield client
    store.close()


async def test_jobs_are_listed_by_labels_as_elsewhere(http: httpx.AsyncClient) -> None:
    labels = ({"team": "search", "a[b]=c": "&"}, {"team": "search"}, {})
    ids = [(await http.post("/v1/jobs", json=SPEC | {"metadata": each})).json()["id"] for each in labels]

    async def found(**params: str) -> list[str]:
        answer = await http.get("/v1/jobs", params=params)
        return [job["id"] for job in answer.json()["jobs"]]

    assert await found() == ids[::-1]
    assert await found(**{"metadata[team]": "search"}) == [ids[1], ids[0]]
    assert await found(**{"metadata[team]": "search", "metadata[a[b]=c]": "&"}) == [ids[0]]
    assert await found(**{"metadata[team]": "search", "state": "failed"}) == []
    both = await http.get("/v1/jobs?metadata[team]=a&metadata[team]=b")
    assert both.status_code == 422 and "two values of one label" in both.json()["detail"]


async def test_labels_and_priority_have_bounds(http: httpx.AsyncClient) -> None:
    for bad, path in (
        ({"metadata": {"x" * 65: "y"}}, "metadata"),
        ({"metadata": {"x": "y\0"}}, "metadata"),
        ({"priority": 1001}, "priority"),
    ):
        answer = await http.post("/v1/jobs", json=SPEC | bad)
        assert answer.status_code == 422 and path in answer.json()["detail"]


async def test_no_more_labels_are_looked_for_than_a_job_can_have(http: httpx.AsyncClient) -> None:
    labels = {f"label-{place}": "x" for place in range(64)}
    job_id = (await http.post("/v1/jobs", json=SPEC | {"metadata": labels})).json()["id"]
    wanted = {f"metadata[{name}]": value for name, value in labels.items()}
    found = await http.get("/v1/jobs", params=wanted)
    assert [job["id"] for job in found.json()["jobs"]] == [job_id]
    refused = await http.get("/v1/jobs", params=wanted | {"metadata[one more]": "x"})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("metadata: 65 labels are asked for, and a job has at most 64")


async def test_the_document_describes_the_label_filter(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/openapi.json")).json()["paths"]["/v1/jobs"]["get"]["parameters"]
    (label,) = [each for each in listed if each["name"] == "metadata"]
    assert (label["style"], label["explode"], label["schema"]["type"]) == ("deepObject", True, "object")
    assert {each["name"] for each in listed} == {"after", "limit", "state", "metadata"}


async def test_one_verb_lets_a_job_go_on_whatever_held_it(
    http: httpx.AsyncClient, store: JobStore, tmp_path: Path
) -> None:
    job_id = running_job(store, tmp_path)
    paused = await http.post(f"/v1/jobs/{job_id}/pause")
    assert (paused.status_code, paused.json()["requested"]) == (200, "pause")
    assert store.take_request(job_id) is RequestedAction.PAUSE
    store.transition(job_id, JobState.PAUSED)
    assert (await http.post(f"/v1/jobs/{job_id}/resume")).json()["requested"] == "continue"
    assert store.take_request(job_id) is RequestedAction.CONTINUE
    store.transition(job_id, JobState.RUNNING)
    early = await http.post(f"/v1/jobs/{job_id}/resume")
    assert (early.status_code, early.json()["code"]) == (409, "state_conflict")
    store.transition(job_id, JobState.FAILED)
    assert (await http.post(f"/v1/jobs/{job_id}/resume")).json()["attempt"] == 2
    assert (await http.post(f"/v1/jobs/{job_id}/pause")).status_code == 409  # it waits, so there is nothing to hold


async def test_a_job_is_deleted_once_it_has_ended(http: httpx.AsyncClient, store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    publish(tmp_path, job_id, 0)
    fill_ledger(tmp_path, job_id, 2, consumed=1)
    early = await http.delete(f"/v1/jobs/{job_id}", headers={"Idempotency-Key": "k"})
    assert early.status_code == 409 and "cancel it first" in early.json()["detail"]
    store.transition(job_id, JobState.CANCELLED)
    for _ in range(2):
        gone = await http.delete(f"/v1/jobs/{job_id}", headers={"Idempotency-Key": "k"})
        assert (gone.status_code, gone.content) == (204, b"")
    assert not JobPaths(tmp_path, job_id).root.exists()
    for part in ("", "/events", "/metrics", "/versions", "/samples"):
        assert (await http.get(f"/v1/jobs/{job_id}{part}")).status_code == 404
    assert (await http.delete(f"/v1/jobs/{job_id}")).status_code == 404
    assert (await http.get("/v1/jobs")).json()["jobs"] == []


async def test_a_key_belongs_to_one_request(http: httpx.AsyncClient, store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    headers = {"Idempotency-Key": "k"}
    assert (await http.post(f"/v1/jobs/{job_id}/pause", headers=headers)).status_code == 200
    assert (await http.post(f"/v1/jobs/{job_id}/pause", headers=headers)).status_code == 200
    other = await http.post(f"/v1/jobs/{job_id}/cancel", headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert store.get(job_id).requested is RequestedAction.PAUSE


async def test_every_write_about_jobs_takes_a_key(http: httpx.AsyncClient) -> None:
    paths = (await http.get("/v1/openapi.json")).json()["paths"]
    writes = [
        (path, method, operation)
        for path, operations in paths.items()
        if path.startswith("/v1/jobs")
        for method, operation in operations.items()
        if method in ("post", "put", "patch", "delete") and not path.endswith("/compare")  # which changes nothing
    ]
    assert len(writes) >= 6
    for path, method, operation in writes:
        assert any(each["name"] == "Idempotency-Key" for each in operation.get("parameters", ())), (method, path)


async def test_progress_comes_with_an_estimated_end(http: httpx.AsyncClient, store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path, priority=7)
    shown = (await http.get(f"/v1/jobs/{job_id}")).json()
    assert (shown["estimated_finish_at"], shown["priority"], shown["progress"]) == (None, 7, 0.0)
    store.set_progress(job_id, 0.0, "sampling")
    store.set_progress(job_id, 0.5, "learning")
    shown = (await http.get("/v1/jobs")).json()["jobs"][0]
    assert shown["stage"] == "learning" and shown["estimated_finish_at"] > shown["started_at"]


async def test_a_long_series_says_what_its_points_stand_for(
    http: httpx.AsyncClient, store: JobStore, tmp_path: Path
) -> None:
    job_id = running_job(store, tmp_path)
    for step in range(20):
        store.add_metrics(job_id, {"loss": float(step)}, version=0, learner_step=step)
    point = (await http.get(f"/v1/jobs/{job_id}/metrics")).json()["series"]["loss"][0]
    assert (point["points"], point["low"], point["high"]) == (1, None, None)
    few = (await http.get(f"/v1/jobs/{job_id}/metrics", params={"max_points": 4})).json()["series"]["loss"]
    assert len(few) == 4 and few[-1]["value"] == 19.0
