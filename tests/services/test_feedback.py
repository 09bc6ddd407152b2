"""People's preferences before a job takes them in: read, checked, stored once, counted, over REST and from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from job_world import SPEC, running_job, service
from small_models import LLAMA_TEMPLATE, NO_SYSTEM_TEMPLATE, job, write_model, write_world
from typer.testing import CliRunner, Result

from learner.errors import InputError
from services.api.app import create_app
from services.cli import feedback as command
from services.cli.main import app
from services.client import ApiError, Client
from services.jobs import spec_checks
from services.jobs.feedback import count_feedback, parse_preference, read_preferences, take_in
from services.jobs.load import parse_job
from services.jobs.spec import JobSpec
from services.jobs.state import JobState, StateConflict
from services.jobs.store import JobStore
from services.jobs.validate import validate_job
from services.settings import Settings

CLICK = {"id": "a", "prompt": "Hello?", "chosen": "good", "rejected": "bad"}
SHARE = {"feedback": {"share": 0.25}}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("SPARRING_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SPARRING_PORT", "1")  # where nothing answers
    monkeypatch.delenv("SPARRING_URL", raising=False)
    return Settings.load()


@pytest.fixture
def store(settings: Settings) -> JobStore:
    return JobStore(settings.store_url)


def start(store: JobStore, home: Path, template: str = LLAMA_TEMPLATE, **more: Any) -> str:
    """A running job whose policy is a small local model of 128 tokens."""
    model = write_model(home / "policy", template)
    return running_job(store, home, policy={"model": str(model)}, **(SHARE | more))


@pytest.fixture
def job_id(store: JobStore, tmp_path: Path) -> str:
    return start(store, tmp_path)


@pytest.fixture
async def http(settings: Settings, store: JobStore) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(settings, store, admit=parse_job))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8700") as client:
        yield client
    store.close()


# ---- what a preference is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("Hello?", "here: a preference must be an object with prompt, chosen and rejected, not 'Hello?'"),
        ({**CLICK, "prompt": ""}, "here: 'prompt' or one of its messages is empty"),
        ({**CLICK, "prompt": 3}, "here: 'prompt' must be text or a list of chat messages, not 3"),
        ({**CLICK, "prompt": [{"role": "bot", "content": "x"}]}, "here: message 1 has the role 'bot'"),
        (
            {**CLICK, "prompt": [{"role": "assistant", "content": "x"}]},
            "here: 'prompt' must end with the user's message, not the assistant's",
        ),
        ({**CLICK, "chosen": "  "}, "here: 'chosen' or one of its messages is empty"),
        ({**CLICK, "rejected": None}, "here: rejected: "),
        ({name: text for name, text in CLICK.items() if name != "chosen"}, "here: chosen: "),
        ({**CLICK, "id": 7}, "here: id: "),
        ({**CLICK, "rejected": "good"}, "here: 'chosen' and 'rejected' are the same text"),
        ({**CLICK, "better": "x"}, "here: better: "),
    ],
)
def test_what_is_no_preference_is_refused_by_its_field(row: object, complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_preference("here", row)
    assert str(caught.value).startswith(complaint) and "\n" not in str(caught.value)


def test_a_files_preferences_are_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "clicks.jsonl"
    path.write_text(json.dumps(CLICK) + "\n\n" + json.dumps(CLICK | {"id": "b"}) + "\n")
    assert [where for where, _ in read_preferences(path)] == [f"{path}, line 1", f"{path}, line 3"]
    path.write_text(json.dumps(CLICK) + "\n{\n")
    with pytest.raises(InputError, match=r"clicks\.jsonl, line 2: not JSON"):
        read_preferences(path)
    path.write_text("\n")
    with pytest.raises(InputError, match=r"clicks\.jsonl: holds no preferences"):
        read_preferences(path)
    with pytest.raises(InputError, match="there is no such file"):
        read_preferences(tmp_path / "none.jsonl")


# ---- the store --------------------------------------------------------------------------------------------------


def test_a_preference_is_stored_once_whatever_is_sent_again(store: JobStore, job_id: str) -> None:
    assert take_in(store, job_id, [CLICK, CLICK]).model_dump() == {"ids": ("a", "a"), "stored": 1, "known": 1}
    assert take_in(store, job_id, [CLICK]).stored == 0
    nameless = {name: text for name, text in CLICK.items() if name != "id"}
    assert [take_in(store, job_id, [nameless]).stored for _ in range(2)] == [1, 0]
    assert take_in(store, job_id, [nameless | {"rater": "anna"}]).stored == 1, "another person's"
    again = JobStore(Settings.load().store_url)
    assert [each.number for each in again.waiting_preferences(job_id, limit=9)] == [1, 2, 3]
    assert [each.number for each in again.waiting_preferences(job_id, limit=1, after=1)] == [2]
    again.close()


def test_an_id_that_came_with_another_preference_is_refused_and_nothing_is_stored(store: JobStore, job_id: str) -> None:
    take_in(store, job_id, [CLICK])
    with pytest.raises(InputError, match=r"preferences\[1\]: the id 'a' came before with another preference"):
        take_in(store, job_id, [CLICK | {"id": "b"}, CLICK | {"chosen": "better"}])
    assert count_feedback(store, job_id).received == 1


def test_two_jobs_have_preferences_of_their_own(store: JobStore, tmp_path: Path, job_id: str) -> None:
    other = start(store, tmp_path / "other")
    assert [take_in(store, each, [CLICK]).stored for each in (job_id, other)] == [1, 1]


def test_what_was_taken_or_refused_waits_no_more(store: JobStore, job_id: str) -> None:
    take_in(store, job_id, [CLICK | {"id": name} for name in "abc"])
    for _ in range(2):
        store.settle_preferences(job_id, [1])
        store.refuse_preference(job_id, 2, "too long")
    assert [each.id for each in store.waiting_preferences(job_id, limit=9)] == ["c"]
    assert store.preference_totals(job_id).model_dump() == {"waiting": 1, "taken": 1, "refused": 1}
    assert [each.reason for each in store.refused_preferences(job_id, 9)] == ["too long"]


# ---- jobs that take none ----------------------------------------------------------------------------------------


def test_a_job_that_has_ended_or_asks_for_none_refuses(store: JobStore, tmp_path: Path, job_id: str) -> None:
    without = running_job(store, tmp_path)
    with pytest.raises(StateConflict, match=r"its feedback\.share is 0; start a job with feedback\.share above 0"):
        take_in(store, without, [CLICK])
    store.transition(job_id, JobState.SUCCEEDED)
    with pytest.raises(StateConflict, match="is already succeeded"):
        take_in(store, job_id, [CLICK])


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"schedule": {"mode": "offline"}}, "feedback.share: 0.25 does not go with schedule.mode: offline"),
        (
            {"schedule": {"prompts_per_round": 3, "prompts_per_step": 3}},
            "is less than one group; raise it to 0.33 or more",
        ),
        (
            {"schedule": {"mode": "online", "max_staleness": 1}},
            "feedback.share: 0.25 does not go with objective.reference: behaviour, which compares an answer with the version that wrote "
            "it, and people's answers carry none; use schedule.mode: rounds, or another objective",
        ),
        ({"objective": {"kind": "dpo", "reference": "behaviour"}}, "use objective.reference: start or round"),
        ({"objective": {"kind": "dpo"}, "pairing": {"rule": "did"}}, "does not go with pairing.rule: did"),
        (
            {"objective": {"kind": "xpo"}, "sampling": {"opponent": "start"}},
            "feedback.share: 0.25 does not go with objective.kind: xpo",
        ),
    ],
)
def test_jobs_that_cannot_learn_from_answers_of_others_are_refused(
    sections: dict[str, Any], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec_checks, "offered_functions", lambda: ("length",))
    write_world(tmp_path)
    with pytest.raises(InputError) as caught:
        validate_job(parse_job(job(**SHARE, **sections)), tmp_path)
    assert [line for line in str(caught.value).splitlines() if complaint in line], str(caught.value)


def test_sppo_in_rounds_is_told_whose_win_probabilities_these_are() -> None:
    spec = JobSpec.model_validate(SPEC | SHARE)
    assert [warning for warning in spec_checks.warnings(spec) if "their win probabilities are people's" in warning]
    assert (spec.feedback_groups, JobSpec.model_validate(SPEC).feedback_groups) == (64, 0)


# ---- domains, learned one after another -------------------------------------------------------------------------


def learning_domains(store: JobStore, home: Path, *, newest: int | None) -> str:
    """A job that learns bills in versions 1 and 2, then returns."""
    job_id = start(store, home, schedule={"rounds": 2, "domains": ["bills", "returns"]})
    for version in range(-1 if newest is None else newest + 1):
        store.add_version(job_id, version, digest=f"d{version}", learner_step=version)
    return job_id


def test_a_domain_that_the_job_does_not_learn_is_refused_by_its_name(store: JobStore, tmp_path: Path) -> None:
    job_id = learning_domains(store, tmp_path, newest=None)
    clicks = [CLICK | {"id": name, "domain": name} for name in ("bills", "bill", "return")]
    with pytest.raises(InputError) as caught:
        take_in(store, job_id, clicks)
    assert str(caught.value).splitlines() == [
        f"preferences[{place}]: domain: '{name}' is none of the job's schedule.domains (bills, returns); name one of these, or leave it out"
        for place, name in ((1, "bill"), (2, "return"))
    ]
    assert count_feedback(store, job_id).received == 0


def test_where_all_prompts_are_mixed_any_domain_is_a_remark(store: JobStore, job_id: str) -> None:
    assert take_in(store, job_id, [CLICK | {"domain": "opening hours"}]).stored == 1


@pytest.mark.parametrize("newest", [None, 0, 1])
def test_a_domain_is_open_until_its_last_version_is_there(newest: int | None, store: JobStore, tmp_path: Path) -> None:
    job_id = learning_domains(store, tmp_path, newest=newest)
    both = [CLICK | {"id": name, "domain": name} for name in ("bills", "returns")]
    assert take_in(store, job_id, both).stored == 2


def test_a_domain_that_has_passed_is_refused_unless_the_preference_is_known(store: JobStore, tmp_path: Path) -> None:
    job_id = learning_domains(store, tmp_path, newest=1)
    early = CLICK | {"id": "early", "domain": "bills"}
    take_in(store, job_id, [early])
    store.add_version(job_id, 2, digest="d2", learner_step=2)
    assert take_in(store, job_id, [early]).known == 1, "sent again, because its answer was lost"
    later = [CLICK | {"id": "open", "domain": "returns"}, CLICK | {"id": "late", "domain": "bills"}]
    with pytest.raises(InputError) as caught:
        take_in(store, job_id, later)
    assert str(caught.value) == (
        "preferences[1]: domain: 'bills' has been learned, with version 2 as its last; leave domain out to let the job learn from this now"
    )
    assert count_feedback(store, job_id).received == 1


# ---- REST -------------------------------------------------------------------------------------------------------


async def test_preferences_are_taken_in_and_counted_over_rest(http: httpx.AsyncClient, job_id: str) -> None:
    address = f"/v1/jobs/{job_id}/preferences"
    sent = await http.post(address, json=[CLICK, CLICK | {"id": "b"}])
    assert (sent.status_code, sent.json()) == (202, {"ids": ["a", "b"], "stored": 2, "known": 0})
    assert (await http.post(address, json=[CLICK])).json()["known"] == 1
    counts = (await http.get(address)).json()
    assert (counts["received"], counts["waiting"], counts["consumed"], counts["share"]) == (2, 2, 0, 0.25)


async def test_one_bad_preference_refuses_all_and_each_is_named(http: httpx.AsyncClient, job_id: str) -> None:
    address = f"/v1/jobs/{job_id}/preferences"
    long = CLICK | {"id": "c", "chosen": "long " * 200}
    answer = await http.post(address, json=[CLICK, CLICK | {"rejected": ""}, long, CLICK | {"chosen": "good</s>more"}])
    assert answer.status_code == 422
    errors = answer.json()["errors"]
    assert [error["param"] for error in errors] == ["preferences[1]", "preferences[2]", "preferences[3]"]
    assert errors[0]["detail"].startswith("rejected: ")
    assert "'chosen' and 'rejected' has" in errors[1]["detail"] and "the context of 128" in errors[1]["detail"]
    assert "holds the token that ends answers" in errors[2]["detail"]
    assert (await http.get(address)).json()["received"] == 0


async def test_a_prompt_that_the_chat_template_refuses_is_named(
    http: httpx.AsyncClient, store: JobStore, tmp_path: Path
) -> None:
    job_id = start(store, tmp_path / "other", NO_SYSTEM_TEMPLATE)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    answer = await http.post(f"/v1/jobs/{job_id}/preferences", json=[CLICK | {"prompt": turns}])
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["param"] == "preferences[0]"
    assert "System role not supported" in answer.json()["detail"]


async def test_a_request_that_was_done_is_answered_again_after_the_job_has_ended(
    http: httpx.AsyncClient, store: JobStore, job_id: str
) -> None:
    address, key = f"/v1/jobs/{job_id}/preferences", {"Idempotency-Key": "k"}
    assert (await http.post(address, json=[CLICK], headers=key)).json() == {"ids": ["a"], "stored": 1, "known": 0}
    store.transition(job_id, JobState.SUCCEEDED)
    again = await http.post(address, json=[CLICK], headers=key)
    assert (again.status_code, again.json()) == (202, {"ids": ["a"], "stored": 0, "known": 1})
    for headers in ({}, {"Idempotency-Key": "another"}):
        assert (await http.post(address, json=[CLICK], headers=headers)).status_code == 409
    other = await http.post(address, json=[{**CLICK, "id": "b"}], headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_jobs_that_take_no_preferences_answer_409(
    http: httpx.AsyncClient, store: JobStore, tmp_path: Path
) -> None:
    without, unknown = running_job(store, tmp_path), "no-abcdef"
    refused = await http.post(f"/v1/jobs/{without}/preferences", json=[CLICK])
    assert (refused.status_code, refused.json()["code"]) == (409, "state_conflict")
    assert "feedback.share is 0" in refused.json()["detail"]
    assert (await http.post(f"/v1/jobs/{unknown}/preferences", json=[CLICK])).status_code == 404
    assert (await http.get(f"/v1/jobs/{unknown}/preferences")).status_code == 404
    for body in (CLICK, "text", None):
        assert (await http.post(f"/v1/jobs/{without}/preferences", json=body)).status_code == 422


async def test_of_a_model_on_the_hub_the_service_renders_nothing(
    http: httpx.AsyncClient, store: JobStore, tmp_path: Path
) -> None:
    job_id = running_job(store, tmp_path, **SHARE)
    answer = await http.post(f"/v1/jobs/{job_id}/preferences", json=[CLICK | {"chosen": "long " * 200}])
    assert answer.status_code == 202


async def test_the_description_of_the_interface_shows_a_preference(http: httpx.AsyncClient) -> None:
    body = (await http.get("/v1/openapi.json")).json()["paths"]["/v1/jobs/{job_id}/preferences"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert {"prompt", "chosen", "rejected", "id", "domain", "rater"} == schema["items"]["properties"].keys()
    assert "$ref" not in json.dumps(schema)
    for example in schema["examples"][0]:
        parse_preference("example", example)


def test_taking_preferences_in_imports_no_torch() -> None:
    code = "import sys, services.api.app; print([name for name in ('torch', 'ray', 'transformers', 'vllm') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"


# ---- client and command line ------------------------------------------------------------------------------------


def test_the_client_sends_and_counts(settings: Settings, store: JobStore, job_id: str) -> None:
    with service(settings, store) as url, Client(url) as client:
        assert client.send_preferences(job_id, [CLICK]).stored == 1
        assert client.send_preferences(job_id, [parse_preference("here", CLICK)]).known == 1
        assert client.feedback(job_id).waiting == 1
        with pytest.raises(ApiError) as refused:
            client.send_preferences(job_id, [CLICK | {"chosen": ""}])
        assert refused.value.status == 422 and refused.value.errors[0]["param"] == "preferences[0]"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def write_clicks(folder: Path, *rows: object) -> Path:
    path = folder / "clicks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("remote", [False, True])
def test_a_file_is_sent_to_the_service_or_to_the_store_here(
    remote: bool, settings: Settings, store: JobStore, tmp_path: Path, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "BATCH_BYTES", 300)  # two at a time
    path = write_clicks(tmp_path, *(CLICK | {"id": f"c{n}"} for n in range(5)))
    with service(settings, store) as url:
        more = ("--url", url) if remote else ()
        if remote:
            monkeypatch.setenv("SPARRING_HOME", str(tmp_path / "another"))
        assert (
            "has 5 new preferences; 0 were there already.\n5 received = 5 waiting"
            in run("feedback", job_id, str(path), *more).output
        )
        assert "has 0 new preferences; 5 were there already." in run("feedback", job_id, str(path), *more).output
        assert run("feedback", job_id, *more).output == "5 received = 5 waiting\n"
        assert json.loads(run("feedback", job_id, "--json", *more).output)["waiting"] == 5
        bad = write_clicks(
            tmp_path, *(CLICK | {"id": f"d{n}"} for n in range(4)), CLICK | {"id": "e", "chosen": "long " * 200}
        )
        error = run("feedback", job_id, str(bad), *more).exception
    assert isinstance(error, InputError)
    assert str(error).startswith(f"{bad}, line 5: 'prompt' with the longer of") and "send the whole file again" in str(
        error
    )
    assert count_feedback(store, job_id).received > 5


def test_a_bad_line_is_named_before_anything_is_sent(store: JobStore, tmp_path: Path, job_id: str) -> None:
    path = write_clicks(tmp_path, CLICK, CLICK | {"chosen": 5})
    error = run("feedback", job_id, str(path)).exception
    assert isinstance(error, InputError) and str(error).startswith(f"{path}, line 2: chosen: ")
    assert count_feedback(store, job_id).received == 0


def test_the_account_names_what_was_refused(store: JobStore, job_id: str) -> None:
    take_in(store, job_id, [CLICK, CLICK | {"id": "b"}])
    store.refuse_preference(job_id, 1, "too long")
    assert run("feedback", job_id).output == "2 received = 1 waiting + 1 refused\nrefused a: too long\n"
