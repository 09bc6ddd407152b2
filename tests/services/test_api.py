"""The REST API over ASGI, with a real store and no Ray."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from job_world import DOMAIN_RATES, DOMAINS, SPEC, job_with_domains, publish, running_job
from pydantic import SecretStr

from services.api.app import create_app
from services.jobs.layout import JobPaths
from services.jobs.load import parse_job
from services.jobs.spec import JobSpec
from services.jobs.state import JobState
from services.jobs.store import JobStore
from services.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, max_body_bytes=2048)


@pytest.fixture
def store(settings: Settings) -> JobStore:
    return JobStore(settings.store_url)


def connect(settings: Settings, store: JobStore, **more: Any) -> httpx.AsyncClient:
    """A client of a new application that takes every job whose keys are right."""
    app = create_app(settings, store, **({"admit": parse_job} | more))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8700")


@pytest.fixture
async def http(settings: Settings, store: JobStore) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(settings, store) as client:
        yield client
    store.close()


async def test_a_job_is_made_listed_and_shown(http: httpx.AsyncClient) -> None:
    made = await http.post("/v1/jobs", json=SPEC)
    assert made.status_code == 201
    job = made.json()
    assert made.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (await http.get(made.headers["location"])).json() == job
    listed = (await http.get("/v1/jobs", params={"state": "queued"})).json()
    assert [each["id"] for each in listed["jobs"]] == [job["id"]]
    assert "spec" not in listed["jobs"][0] and listed["next"] is None
    assert (await http.get("/v1/jobs", params={"state": "failed"})).json()["jobs"] == []


async def test_pages_follow_their_cursor(http: httpx.AsyncClient) -> None:
    ids = [(await http.post("/v1/jobs", json=SPEC)).json()["id"] for _ in range(3)]
    first = (await http.get("/v1/jobs", params={"limit": 2})).json()
    second = (await http.get("/v1/jobs", params={"limit": 2, "after": first["next"]})).json()
    assert [job["id"] for job in first["jobs"] + second["jobs"]] == ids[::-1]
    assert second["next"] is None
    lost = await http.get("/v1/jobs", params={"after": "gone-123456"})
    assert lost.status_code == 422 and "after: 'gone-123456'" in lost.json()["detail"]


async def test_an_idempotency_key_makes_one_job(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "abc"}
    first = await http.post("/v1/jobs", json=SPEC, headers=headers)
    again = await http.post("/v1/jobs", json=SPEC, headers=headers)
    assert first.json()["id"] == again.json()["id"]
    other = await http.post("/v1/jobs", json=SPEC | {"seed": 5}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_a_bad_job_is_a_problem_that_names_its_fields(http: httpx.AsyncClient) -> None:
    bad = SPEC | {"schedule": {"rounds": 0}, "objectiv": {}}
    answer = await http.post("/v1/jobs", json=bad)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert {error["param"] for error in problem["errors"]} == {"schedule.rounds", "objectiv"}
    assert (problem["status"], problem["code"]) == (422, "invalid_input")
    assert problem["request_id"] == answer.headers["x-request-id"]


async def test_the_real_admission_refuses_paths_outside_the_roots(settings: Settings, store: JobStore) -> None:
    async with connect(settings, store, admit=None) as http:
        answer = await http.post("/v1/jobs", json=SPEC | {"policy": {"model": "/etc"}})
    assert answer.status_code == 422
    assert "policy.model: /etc lies outside the folders that jobs may read" in answer.json()["detail"]
    assert store.list() == []


@pytest.mark.parametrize("body", [b"{", b"[1]", b'"text"', b""])
async def test_a_body_that_is_no_job_is_a_problem(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_a_body_of_another_type_is_not_read(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/jobs", content=json.dumps(SPEC), headers={"Content-Type": "text/plain"})
    assert answer.status_code == 422


async def test_a_large_body_is_refused_whether_it_says_so_or_not(http: httpx.AsyncClient) -> None:
    large = json.dumps(SPEC | {"metadata": {"text": "x" * 4096}}).encode()

    async def in_pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 1000):
            yield large[start : start + 1000]

    headers = {"Content-Type": "application/json"}
    for content in (large, in_pieces()):
        answer = await http.post("/v1/jobs", content=content, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
        assert "SPARRING_MAX_BODY_BYTES" in answer.json()["detail"]


async def test_cancel_and_resume(http: httpx.AsyncClient, store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    asked = await http.post(f"/v1/jobs/{job_id}/cancel")
    assert (asked.json()["state"], asked.json()["requested"]) == ("running", "cancel")
    early = await http.post(f"/v1/jobs/{job_id}/resume")
    assert (early.status_code, early.json()["code"]) == (409, "state_conflict")
    store.transition(job_id, JobState.CANCELLED)
    resumed = await http.post(f"/v1/jobs/{job_id}/resume")
    assert (resumed.json()["state"], resumed.json()["attempt"]) == ("queued", 2)


async def test_unknown_things_are_404(http: httpx.AsyncClient, store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    unknown = ("", "/events", "/metrics", "/samples", "/versions", "/domains", "/report", "/logs")
    for address in [f"/v1/jobs/no-abcdef{part}" for part in unknown] + [f"/v1/jobs/{job_id}/report", "/v1/nothing"]:
        answer = await http.get(address)
        assert answer.status_code == 404, address
        assert answer.headers["content-type"] == "application/problem+json"
    assert (await http.put("/v1/jobs")).status_code == 405


async def test_events_come_in_pages(http: httpx.AsyncClient, store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    page = (await http.get(f"/v1/jobs/{job_id}/events", params={"limit": 2})).json()
    assert [event["seq"] for event in page["events"]] == [1, 2] and page["next"] == 2
    page = (await http.get(f"/v1/jobs/{job_id}/events", params={"after": 3})).json()
    assert page == {"events": [], "next": 3}
    assert (await http.get(f"/v1/jobs/{job_id}/events", params={"after": -1})).status_code == 422


async def test_metrics_are_series_by_name(http: httpx.AsyncClient, store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    for step in range(20):
        store.add_metrics(job_id, {"loss": 1.0 / (step + 1), "odd": float("nan")}, version=1, learner_step=step)
    answer = await http.get(f"/v1/jobs/{job_id}/metrics", params={"name": ["loss"], "max_points": 5})
    series = answer.json()["series"]
    assert list(series) == ["loss"] and len(series["loss"]) <= 5 and series["loss"][-1]["learner_step"] == 19
    whole = (await http.get(f"/v1/jobs/{job_id}/metrics")).json()["series"]
    assert whole["odd"][0]["value"] is None


async def test_domains_come_in_order_with_the_win_rates_after_each(
    http: httpx.AsyncClient, store: JobStore, tmp_path: Path
) -> None:
    answer = await http.get(f"/v1/jobs/{job_with_domains(store, tmp_path)}/domains")
    assert answer.status_code == 200
    found = answer.json()
    assert found["domains"] == [
        {"name": DOMAINS[0], "start": 0, "learned": 2, "end": 2},
        {"name": DOMAINS[1], "start": 2, "learned": 4, "end": 4},
        {"name": DOMAINS[2], "start": 4, "learned": 6, "end": 6},
    ]
    assert found["gold"] is None
    transfer = found["scorer"]
    assert transfer.pop("win_rates") == [*map(list, DOMAIN_RATES), [None, None, None]]
    assert transfer == pytest.approx(
        {"learned": 2, "average_win_rate": 0.8, "forgetting": 0.1, "backward_transfer": -0.1, "forward_transfer": 0.05}
    )


async def test_domains_that_were_not_measured_are_null_and_without_domains_there_is_an_empty_list(
    http: httpx.AsyncClient, store: JobStore, tmp_path: Path
) -> None:
    begun = running_job(store, tmp_path, schedule={"domains": ["a", "b"], "combine": "mean"})
    found = (await http.get(f"/v1/jobs/{begun}/domains")).json()
    assert [(each["learned"], each["end"]) for each in found["domains"]] == [(3, 3), (6, 7)]
    assert found["scorer"]["win_rates"] == [[None, None]] * 3
    assert found["scorer"]["learned"] == 0 and found["scorer"]["average_win_rate"] is None
    mixed = await http.get(f"/v1/jobs/{running_job(store, tmp_path)}/domains")
    assert mixed.json() == {"domains": [], "scorer": None, "gold": None}


async def test_metrics_by_domain_have_their_domain_in_rest_and_prometheus(
    http: httpx.AsyncClient, store: JobStore, tmp_path: Path
) -> None:
    job_id = job_with_domains(store, tmp_path, gold=True)
    store.add_metrics(job_id, {"win_rate/a b": 0.25, "win_rate/a-b": 0.75})
    name = f"win_rate/{DOMAINS[1]}"
    series = (await http.get(f"/v1/jobs/{job_id}/metrics", params={"name": [name]})).json()["series"]
    assert [point["value"] for point in series[name]] == [rates[1] for rates in DOMAIN_RATES]
    text = (await http.get("/metrics")).text
    for domain, value in (("a b", 0.25), ("a-b", 0.75), (DOMAINS[1], 0.9)):
        assert f'sparring_win_rate_by_domain{{domain="{domain}",job="{job_id}"}} {value}' in text
    assert f'sparring_gold_win_rate_high_by_domain{{domain="{DOMAINS[0]}",job="{job_id}"}}' in text
    assert text.count("# TYPE sparring_win_rate_by_domain gauge") == 1
    assert f'sparring_win_rate{{job="{job_id}"}}' in text


async def test_logs_are_the_ends_of_the_files(http: httpx.AsyncClient, store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    http.headers["Accept"] = "text/plain"
    assert (await http.get(f"/v1/jobs/{job_id}/logs")).text == ""
    folder = JobPaths(tmp_path, job_id).logs
    folder.mkdir(parents=True)
    (folder / "sampler-1.log").write_text("".join(f"line {place}\n" for place in range(50_000)))
    (folder / "learner-1.log").write_text("only\n")
    text = (await http.get(f"/v1/jobs/{job_id}/logs", params={"lines": 2})).text
    assert text == "==> learner-1.log <==\nonly\n\n==> sampler-1.log <==\nline 49998\nline 49999\n"
    assert (await http.get(f"/v1/jobs/{job_id}/logs", params={"file": "learner-1.log"})).text == "only\n"
    outside = await http.get(f"/v1/jobs/{job_id}/logs", params={"file": "../../../etc/passwd"})
    assert outside.status_code == 422 and "learner-1.log, sampler-1.log" in outside.json()["detail"]


async def test_a_report_is_a_page_that_may_run_nothing(
    http: httpx.AsyncClient, store: JobStore, tmp_path: Path
) -> None:
    job_id = running_job(store, tmp_path)
    path = JobPaths(tmp_path, job_id).report
    path.parent.mkdir(parents=True)
    path.write_text("<p>curves</p>")
    answer = await http.get(f"/v1/jobs/{job_id}/report")
    assert answer.text == "<p>curves</p>"
    assert "script" not in answer.headers["content-security-policy"]
    assert "sandbox" in answer.headers["content-security-policy"]


async def test_probes_say_what_is_wrong(settings: Settings, store: JobStore) -> None:
    def broken() -> None:
        raise ConnectionError("secret address")

    async with connect(settings, store, checks={"ray": broken}) as http:
        assert (await http.get("/healthz")).json()["service"] == "sparring"
        answer = await http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"status": "not ready", "checks": {"store": "ok", "ray": "ConnectionError"}}


async def test_prometheus_sees_jobs_their_metrics_and_requests(
    http: httpx.AsyncClient, store: JobStore, tmp_path: Path
) -> None:
    job_id = running_job(store, tmp_path)
    store.add_metrics(job_id, {"win_rate": 0.5})
    store.add_metrics(job_id, {"win_rate": 0.75, "queue_wait_seconds_total": 3.0, "odd": float("nan")})
    await http.get(f"/v1/jobs/{job_id}")
    text = (await http.get("/metrics")).text
    assert 'sparring_jobs{state="running"} 1.0' in text
    assert 'sparring_jobs{state="paused"} 0.0' in text
    assert f'sparring_win_rate{{job="{job_id}"}} 0.75' in text
    assert f'sparring_queue_wait_seconds_total{{job="{job_id}"}} 3.0' in text
    assert 'sparring_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="200"} 1.0' in text
    assert "sparring_odd" not in text


async def test_a_key_is_asked_for_but_by_probes(settings: Settings, store: JobStore) -> None:
    locked = settings.model_copy(update={"api_key": SecretStr("k3y")})
    async with connect(locked, store) as http:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic k3y"}):
            refused = await http.get("/v1/jobs", headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
            assert refused.headers["www-authenticate"].startswith('Bearer realm="sparring"')
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/readyz")).status_code == 200
        assert (await http.get("/v1/jobs", headers={"Authorization": "Bearer k3y"})).status_code == 200
        elsewhere = {"Authorization": "Bearer k3y", "Host": "sparring.example"}
        assert (await http.get("/v1/jobs", headers=elsewhere)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8700"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:8700"}, 200),
        ({"Host": "localhost:9"}, 200),
        ({"Host": "[::1]:8700"}, 200),
    ],
)
async def test_without_a_key_only_this_machine_is_served(
    http: httpx.AsyncClient, headers: Mapping[str, str], status: int
) -> None:
    assert (await http.get("/v1/jobs", headers=headers)).status_code == status


async def test_every_answer_carries_an_id_and_security_headers(http: httpx.AsyncClient) -> None:
    for address in ("/v1/jobs", "/v1/nothing", "/healthz"):
        answer = await http.get(address, headers={"X-Request-ID": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.headers["x-content-type-options"] == "nosniff"
    forged = await http.get("/healthz", headers={"X-Request-ID": "a b\tc"})
    assert forged.headers["x-request-id"] != "a b\tc"


async def test_an_unexpected_error_shows_no_trace(settings: Settings, store: JobStore) -> None:
    def admit(_data: Mapping[str, Any]) -> JobSpec:
        raise RuntimeError("a secret of ours")

    async with connect(settings, store, admit=admit) as http:
        answer = await http.post("/v1/jobs", json=SPEC)
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text and "Traceback" not in answer.text
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


async def test_the_schema_describes_the_routes(http: httpx.AsyncClient) -> None:
    paths = (await http.get("/v1/openapi.json")).json()["paths"]
    assert {"/v1/jobs", "/v1/jobs/{job_id}/samples", "/v1/jobs/{job_id}/versions/{version}/download"} <= set(paths)


async def test_a_version_downloads_as_a_peft_folder(http: httpx.AsyncClient, store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    store.add_version(job_id, 0, digest="d", learner_step=0)
    assert [each["version"] for each in (await http.get(f"/v1/jobs/{job_id}/versions")).json()["versions"]] == [0]
    missing = await http.get(f"/v1/jobs/{job_id}/versions/0/download")
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_version")
    files = publish(tmp_path, job_id, 0)
    answer = await http.get(f"/v1/jobs/{job_id}/versions/0/download")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        unpacked = {name.rpartition("/")[2]: archive.read(name) for name in archive.namelist()}
        assert {name.partition("/")[0] for name in archive.namelist()} == {f"{job_id}-fast-v0"}
    assert unpacked == {name: files[name] for name in ("adapter_config.json", "adapter_model.safetensors")}


def test_the_api_imports_no_engine() -> None:
    code = (
        "import sys, services.api.app, services.client, services.jobs.dispatcher\n"
        "found = {'torch', 'vllm', 'ray', 'transformers', 'peft'} & set(sys.modules)\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=Path(__file__).parents[2])
