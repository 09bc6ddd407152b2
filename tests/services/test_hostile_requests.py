"""Requests that somebody sends to do harm, or with a slip that comes to the same: a sentence each, and never status 500."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from chat_world import Scribe
from job_world import fill_ledger, running_job

from services.api.app import create_app
from services.jobs.load import parse_job
from services.jobs.store import JobStore
from services.settings import Settings

NOT_READABLE = "the body cannot be read: it must be JSON in UTF-8"


@pytest.fixture
def store(database_url: str) -> JobStore:
    return JobStore(database_url)


@pytest.fixture
async def http(tmp_path: Path, store: JobStore) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(home=tmp_path), store, admit=parse_job)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://127.0.0.1", headers={"Content-Type": "application/json"}
    ) as client:
        yield client
    store.close()


@pytest.fixture
def preferences(tmp_path: Path, store: JobStore) -> str:
    job_id = running_job(store, tmp_path, objective={"kind": "dpo"}, feedback={"share": 0.5})
    return f"/v1/jobs/{job_id}/preferences"


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 422, "the body is empty; send JSON"),
        (b"{}", 422, "the body must be a JSON list"),
        (b"[{", 422, "the body is not JSON ("),
        (
            b'[{"prompt": "a", "chosen": "b", "rejected": "c", "chosen": "d"}]',
            422,
            "the key `chosen` stands twice in one mapping; keep one",
        ),
        (b"[" * 100_000, 400, NOT_READABLE),
        (b"[" + b"9" * 5000 + b"]", 400, NOT_READABLE),
        ('["é"]'.encode("latin-1"), 400, NOT_READABLE),
        (
            b'[{"prompt": NaN, "chosen": "b", "rejected": "c"}]',
            422,
            "preferences[0]: prompt: nan is not a finite number",
        ),
        (b'[{"\\ud800": 1}]', 422, "holds half of a surrogate pair"),
        (b'[{"prompt": "a", "chosen": "b", "rejected": "c", "id": "\\u0000"}]', 422, "no character of a text"),
        (
            json.dumps([{"prompt": "a", "chosen": "b", "rejected": "c", "domain": "x" * 300}]).encode(),
            422,
            "is too long; it must have at most 255 characters",
        ),
    ],
    ids=range(11),
)
async def test_a_body_that_holds_no_preferences_is_refused_in_our_own_words(
    http: httpx.AsyncClient, preferences: str, body: bytes, status: int, sentence: str
) -> None:
    answer = await http.post(preferences, content=body)
    assert (answer.status_code, sentence in answer.json()["detail"]) == (status, True), answer.text
    assert (await http.get(preferences)).json()["received"] == 0


async def test_a_request_full_of_mistakes_is_complained_of_a_hundred_times(
    http: httpx.AsyncClient, preferences: str
) -> None:
    answer = await http.post(preferences, json=[1] * 100_000)
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 101
    assert answer.json()["detail"].endswith("preferences: the 99900 after these were not looked at any more")


async def test_a_deeply_nested_prompt_is_refused_in_a_short_sentence(http: httpx.AsyncClient, preferences: str) -> None:
    body = '[{"prompt":' + "[" * 400 + "]" * 400 + ',"chosen":"b","rejected":"c"}]'
    answer = await http.post(preferences, content=body)
    assert answer.status_code == 422
    assert len(answer.json()["detail"]) < 500


@pytest.mark.parametrize(
    ("address", "body"),
    [
        ("/v1/jobs", r'{"\ud800": 1}'),
        ("/v1/jobs", r'{"\ud800": 1, "\ud800": 2}'),
        ("/v1/jobs", r'{"schedule": {"\udfff": 1}}'),
        ("{preferences}", r'[{"\ud800": 1, "\ud800": 2}]'),
        ("{compare}", r'{"prompt": "\ud800", "versions": ["\ud800", 1]}'),
        ("{compare}", r'{"messages": [{"role": "\ud800", "content": "a"}], "versions": [0, 1]}'),
        ("/v1/chat/completions", r'{"model": "a", "messages": [{"role": "user", "content": "a", "\ud800": 1}]}'),
        ("/v1/chat/completions", r'{"model": "a", "messages": [{"role": "\ud800", "content": "a"}]}'),
        ("/v1/chat/completions", r'{"model": "a", "messages": [], "\ud800": 1}'),
        ("/v1/chat/completions", r'{"model": "\ud800", "messages": [{"role": "user", "content": "a"}]}'),
        ("/v1/chat/completions", r'{"model": "a", "\ud800": 1, "\ud800": 2}'),
        ("/v1/completions", r'{"model": "\ud800", "prompt": "a"}'),
        ("/v1/completions", r'{"model": "a", "prompt": ["\ud800", "\ud800"]}'),
    ],
)
async def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(
    tmp_path: Path, store: JobStore, preferences: str, address: str, body: str
) -> None:
    app = create_app(Settings(home=tmp_path), store, admit=parse_job, samplers=Scribe())
    place = address.format(preferences=preferences, compare=preferences.replace("preferences", "compare"))
    headers = {"Content-Type": "application/json"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as http:
        answer = await http.post(place, content=body)
    assert answer.status_code in (400, 404, 422), answer.text
    assert answer.json().get("detail") or answer.json()["error"]["message"]


async def test_a_number_that_no_database_holds_is_refused(
    http: httpx.AsyncClient, tmp_path: Path, store: JobStore
) -> None:
    job_id = running_job(store, tmp_path)
    fill_ledger(tmp_path, job_id, 1, consumed=1)
    for address in (f"samples?version={10**20}", f"versions/{10**20}/download", f"events?after={10**20}"):
        answer = await http.get(f"/v1/jobs/{job_id}/{address}")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text


async def test_an_address_that_cannot_be_looked_up_is_refused(http: httpx.AsyncClient, preferences: str) -> None:
    for address in ("/v1/jobs/a%00b/preferences", "/v1/jobs?after=%00"):
        answer = await http.post(address, json=[])
        assert (answer.status_code, "NUL" in answer.json()["detail"]) == (400, True)
    events = preferences.replace("preferences", "events")
    assert (await http.get(events, params={"after": 10**30})).status_code == 422
    stream = {"Accept": "text/event-stream", "Last-Event-ID": "9" * 5000}
    assert (await http.get(events, headers=stream)).status_code == 422
    nowhere = (await http.get("/v1/nowhere")).json()["detail"]
    assert nowhere == "there is nothing at /v1/nowhere; /v1/openapi.json lists what there is"
