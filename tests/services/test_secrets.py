"""Secrets stay inside: the mask, the log, and a whole service with marked secrets round it."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_world import SPEC, running_job
from pydantic import SecretStr

from learner.errors import InputError
from services import secrets
from services.access.keys import KEY_PATTERN, NewKey, Scope
from services.api.app import create_app
from services.jobs.layout import JobPaths
from services.jobs.load import parse_job
from services.jobs.records import JobError
from services.jobs.spec import JobSpec
from services.jobs.state import JobState
from services.jobs.store import JobStore
from services.secrets import MASK, MaskSecrets, mask, mask_json
from services.settings import Settings
from workers.logs import JsonLines

VARIABLES = {
    "HF_TOKEN": "marker-of-the-hub-token",
    "HUGGING_FACE_HUB_TOKEN": "marker-of-the-older-hub-token",
    "OPENAI_API_KEY": "marker-of-a-judges-key",
    "AWS_SECRET_ACCESS_KEY": "marker-of-the-cloud",
    "PGPASSWORD": "marker-of-the-database",
    "SPARRING_API_KEY": "marker-of-the-installation",
}


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    return VARIABLES


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Authorization: Bearer abcdefgh12", f"Authorization: Bearer {MASK}"),
        ("{'authorization': 'Basic dXNlcjpwYXNz'}", f"{{'authorization': 'Basic {MASK}'}}"),
        ("Illegal header value b'Bearer abc.def.ghi\\n'", f"Illegal header value b'Bearer {MASK}'"),
        ("token hf_" + "a" * 34 + " is wrong", f"token {MASK} is wrong"),
        ("postgresql+psycopg://anna:s3cret@db/x is down", f"postgresql+psycopg://anna:{MASK}@db/x is down"),
        ("http://localhost:8700/v1/jobs at 12:30", "http://localhost:8700/v1/jobs at 12:30"),
        ("a bearer of news; the token count is 12", "a bearer of news; the token count is 12"),
    ],
)
def test_what_looks_like_a_secret_is_masked_and_the_rest_is_not(text: str, masked: str) -> None:
    assert mask(text) == masked


@given(before=st.text(alphabet=" ,;:=/\"'([{<\n"), after=st.text(alphabet=" ,;:=/\"')]}>\n"))
def test_our_own_keys_are_masked_wherever_they_stand(before: str, after: str) -> None:
    assert not re.search(KEY_PATTERN, mask(before + NewKey.make().text + after))


def test_values_of_secret_variables_are_masked_in_nested_data(marked: Mapping[str, str]) -> None:
    data = {"a": [f"x{value}y" for value in marked.values()], "n": 1, "t": (None, {"b": marked["HF_TOKEN"]})}
    assert mask_json(data) == {"a": [f"x{MASK}y"] * len(marked), "n": 1, "t": [None, {"b": MASK}]}


def test_the_log_masks_messages_arguments_and_tracebacks_and_names_the_request(marked: Mapping[str, str]) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("[%(request)s] %(message)s"))
    handler.addFilter(MaskSecrets())
    log = logging.getLogger("a.child.of.nobody")
    log.propagate = False
    log.addHandler(handler)
    token = secrets.request_id.set("r-1")
    try:
        log.warning("sent %s with %s", marked["HF_TOKEN"], {"Authorization": f"Bearer {marked['PGPASSWORD']}"})
        try:
            raise RuntimeError(f"refused: {marked['OPENAI_API_KEY']}")
        except RuntimeError:
            log.exception("failed")
    finally:
        secrets.request_id.reset(token)
        log.removeHandler(handler)
    said = written.getvalue()
    assert said.startswith("[r-1] sent *** with") and "RuntimeError: refused: ***" in said
    assert not [value for value in marked.values() if value in said]


def test_the_services_log_can_be_json_with_the_requests_id(
    marked: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = logging.getLogger().handlers[:]
    token = secrets.request_id.set("r-2")
    try:
        secrets.log_safely(logging.INFO, "json")
        logging.getLogger("a.child").warning("sent %s", marked["HF_TOKEN"])
    finally:
        secrets.request_id.reset(token)
        logging.basicConfig(handlers=before, force=True)
    said = json.loads(capsys.readouterr().err)
    assert (said["request_id"], said["message"], said["level"]) == ("r-2", f"sent {MASK}", "warning")


async def test_a_service_tells_no_secret_in_answers_logs_or_its_store(
    marked: Mapping[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything that takes text in or lets it out, with secrets where careless code and careless libraries put them."""
    everything = " ".join(marked.values())

    def admit(data: Mapping[str, Any]) -> JobSpec:
        if data["name"] == "refused":
            raise InputError(f"policy.model: the hub said no to {everything}")
        if data["name"] == "broken":
            raise RuntimeError(everything)
        return parse_job(data)

    settings = Settings(home=tmp_path, api_key=SecretStr(marked["SPARRING_API_KEY"]))
    store = JobStore(settings.store_url)
    app = create_app(settings, store, admit=admit, checks={"ray": lambda: (_ for _ in ()).throw(OSError(everything))})
    _, made = app.state.context.access.create_key("anna", Scope.ADMIN)
    job_id = running_job(store, tmp_path)
    store.append_event(job_id, "warning", everything, {"environment": [everything]})
    store.transition(job_id, JobState.FAILED, error=JobError(code="hub", message=f"401 for {everything}"))
    logs = JobPaths(tmp_path, job_id).logs
    logs.mkdir(parents=True)
    (logs / "sampler-1.log").write_text(f"GET https://hub with {everything}\n")
    record = logging.LogRecord("hub", logging.ERROR, "hub.py", 1, f"asked the hub with {everything}", None, None)
    (logs / "sampler-1.jsonl").write_text(JsonLines(job_id=job_id, worker="sampler").format(record) + "\n")
    caplog.handler.addFilter(MaskSecrets())
    told: list[str] = []
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        for key in (marked["SPARRING_API_KEY"], made.text, "wrong-" + everything):
            headers = {"Authorization": f"Bearer {key}"}
            for name in ("fine", "refused", "broken"):
                told.append(repr(await said(http.post("/v1/jobs", json=SPEC | {"name": name}, headers=headers))))
            parts = ("", "/events", "/metrics", "/samples", "/versions", "/logs", "/report", "/preferences", "/domains")
            for address in [f"/v1/jobs/{job_id}{part}" for part in parts] + [
                "/v1/jobs",
                "/v1/audit",
                "/metrics",
                "/readyz",
            ]:
                told.append(repr(await said(http.get(address, headers=headers))))
            told.append(
                repr(await said(http.get(f"/v1/jobs/{job_id}/logs", headers={**headers, "Accept": "text/plain"})))
            )
    store.close()
    app.state.context.access.close()
    places = {
        "answers": "\n".join(told),
        "log": caplog.text,
        "store": "".join(path.read_bytes().decode("latin-1") for path in tmp_path.glob("sparring.sqlite*")),
    }
    assert "401 for ***" in places["answers"] and "the hub said no to ***" in places["answers"]
    assert "GET https://hub with ***" in places["answers"] and "RuntimeError" in places["log"]
    assert "asked the hub with ***" in places["answers"]
    for place, text in places.items():
        found = [value for value in (*marked.values(), made.text) if value in text]
        assert not found, f"{place} tells {found}"


async def said(asked: Any) -> tuple[object, ...]:
    answer = await asked
    return answer.status_code, dict(answer.headers), answer.text if answer.content else json.dumps(None)
