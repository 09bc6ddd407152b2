"""`sparring chat` and `sparring compare` against a real service, whose samplers are a stand-in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_world import Scribe, chat_job
from job_world import service
from small_models import write_world
from typer.testing import CliRunner

from services.chat.client import ChatClient
from services.chat.errors import ChatUnavailable
from services.cli.main import app
from services.client import ApiError, ServiceAbsent
from services.jobs.store import JobStore
from services.settings import Settings


@pytest.fixture(scope="module")
def scribe() -> Scribe:
    return Scribe()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, scribe: Scribe) -> Iterator[tuple[str, str]]:
    """A service's URL, and a job's id."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home)
    store = JobStore(settings.store_url)
    job_id = chat_job(store, home, write_world(home / "world"))
    with service(settings, store, samplers=scribe) as url:
        yield url, job_id


def sparring(*arguments: str, typed: str | None = None) -> str:
    done = CliRunner().invoke(app, list(arguments), input=typed, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_one_question_prints_the_answer_alone(place: tuple[str, str], scribe: Scribe) -> None:
    url, job_id = place
    said = sparring("chat", f"{job_id}@1", "--prompt", "hello 3", "--seed", "4", "--temperature", "0", "--url", url)
    assert said == "I am 1\n"
    assert (scribe.asked[-1].seed, scribe.asked[-1].sampling.temperature) == (4, 0)
    assert sparring("chat", f"{job_id}:base", "-p", "-", "--url", url, typed="hello 3") == "I am base\n"


def test_a_conversation_keeps_its_turns_until_it_begins_anew(place: tuple[str, str], scribe: Scribe) -> None:
    url, job_id = place
    said = sparring("chat", job_id, "--url", url, typed="hello 3\n\nhello 4\n/new\nhello 3\n/exit\n")
    assert said.count("I am 2") == 3
    first, second, third = (request.prompt_token_ids for request in scribe.asked[-3:])
    assert len(second) > len(first) and third == first


def test_a_refusal_in_a_conversation_does_not_end_it(place: tuple[str, str], scribe: Scribe) -> None:
    url, job_id = place
    said = sparring("chat", f"{job_id}@1", "--url", url, typed=f"{'hello ' * 200}\nhello 3\n")
    assert "the model's context is 128" in said.replace("\n", " ") and "I am 1" in said


def test_two_versions_are_shown_side_by_side(place: tuple[str, str]) -> None:
    url, job_id = place
    said = sparring("compare", job_id, "base", "2", "--prompt", "hello 3", "--url", url)
    assert "I am base" in said and "I am 2" in said
    assert f"{job_id}:base wins. Logit +1.000: first shown first +1.500, second shown first -0.500" in said
    found = json.loads(sparring("compare", job_id, "0", "1", "-p", "hello 3", "--url", url, "--json"))
    assert [answer["model"] for answer in found["answers"]] == [f"{job_id}@0", f"{job_id}@1"]


def test_errors_are_sentences(place: tuple[str, str], scribe: Scribe) -> None:
    url, job_id = place
    client = ChatClient(url)
    with pytest.raises(ApiError, match="there is no job 'gone'") as gone:
        list(client.ask("gone", [{"role": "user", "content": "x"}]))
    assert (gone.value.status, gone.value.code) == (404, "model_not_found")
    with pytest.raises(ApiError, match="version 9"):
        client.compare(job_id, ("0", "9"), "x")
    scribe.trouble = ChatUnavailable("a job is starting and comes first")
    try:
        with pytest.raises(ApiError, match="a job is starting"):
            client.compare(job_id, ("0", "1"), "x")
    finally:
        scribe.trouble = None
    scribe.breaks = RuntimeError("secret")
    try:
        with pytest.raises(ApiError, match="the answer broke off"):
            list(client.ask(job_id, [{"role": "user", "content": "x"}]))
    finally:
        scribe.breaks = None
    client.close()


def test_a_service_that_is_not_there_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ServiceAbsent, match="no service answers at"):
        list(ChatClient("http://127.0.0.1:9").ask("job", [{"role": "user", "content": "x"}]))
