"""Samples over REST: a job's groups as the replay ledger has them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from job_world import fill_ledger, running_job

from services.api.app import create_app
from services.jobs.load import parse_job
from services.jobs.store import JobStore
from services.settings import Settings


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(f"sqlite:///{tmp_path}/sparring.sqlite")


@pytest.fixture
def http(tmp_path: Path, store: JobStore) -> httpx.AsyncClient:
    app = create_app(Settings(home=tmp_path), store, admit=parse_job)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def test_before_sampling_there_are_none(http: httpx.AsyncClient, store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    assert (await http.get(f"/v1/jobs/{job_id}/samples")).json() == {"samples": [], "next": None}


async def test_samples_say_who_wrote_what_and_what_won(
    http: httpx.AsyncClient, store: JobStore, tmp_path: Path
) -> None:
    job_id = running_job(store, tmp_path)
    fill_ledger(tmp_path, job_id, 3, consumed=2)
    page = (await http.get(f"/v1/jobs/{job_id}/samples")).json()
    assert [sample["state"] for sample in page["samples"]] == ["consumed", "consumed", "ready", "granted"]
    first = page["samples"][0]
    assert first["prompt"]["messages"][0]["content"][0]["text"] == "Question 0?"
    assert [answer["text"] for answer in first["answers"]] == [f"answer {place} to 0" for place in range(3)]
    assert first["answers"][1]["sampler"] == "sampler-0" and first["answers"][1]["tokens"] == 2
    assert first["answers"][1]["logprob"] == -1.5
    assert (first["version"], first["produced_version"]) == (0, 1)
    matrix = first["win_matrix"]
    assert matrix[0][0] == 0.5 and matrix[0][2] > matrix[0][1] > 0.5
    assert matrix[0][1] + matrix[1][0] == pytest.approx(1)
    chances = [answer["win_probability"] for answer in first["answers"]]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] == pytest.approx(sum(matrix[0]) / 3)
    granted = page["samples"][3]
    assert granted["answers"] == [] and granted["prompt"]["id"] == "p3"


async def test_samples_are_filtered_and_paged(http: httpx.AsyncClient, store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    fill_ledger(tmp_path, job_id, 5, consumed=2)
    address = f"/v1/jobs/{job_id}/samples"
    seen: list[int] = []
    after = None
    while True:
        params = {"limit": 2} | ({"after": after} if after else {})
        page = (await http.get(address, params=params)).json()
        seen += [sample["index"] for sample in page["samples"]]
        after = page["next"]
        if after is None:
            break
    assert seen == list(range(6))
    ready = (await http.get(address, params={"state": "ready", "version": 0})).json()
    assert [sample["index"] for sample in ready["samples"]] == [2, 3, 4]
    assert (await http.get(address, params={"version": 7})).json()["samples"] == []
    for bad in ({"state": "lost"}, {"after": "x"}, {"limit": 0}):
        assert (await http.get(address, params=bad)).status_code == 422
