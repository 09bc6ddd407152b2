"""Chat over the REST API as the `openai` package does it; who writes is a stand-in behind our own interface, everything else is real."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from chat_world import Scribe, chat_job
from fastapi import FastAPI
from small_models import write_world

from services.api.app import create_app
from services.chat.errors import ChatUnavailable
from services.jobs.load import parse_job
from services.jobs.rendering import PromptRenderer
from services.jobs.state import JobState
from services.jobs.store import JobStore
from services.settings import Settings

MESSAGES: Any = [{"role": "user", "content": "hello 3"}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def world(home: Path) -> Path:
    return write_world(home / "world")


@pytest.fixture(scope="module")
def store(home: Path) -> JobStore:
    return JobStore(Settings(home=home).store_url)


@pytest.fixture(scope="module")
def job_id(store: JobStore, home: Path, world: Path) -> str:
    return chat_job(store, home, world)


@pytest.fixture(scope="module")
def service(home: Path, store: JobStore) -> tuple[FastAPI, Scribe]:
    scribe = Scribe()
    return create_app(Settings(home=home, rate_limit="10000/minute"), store, admit=parse_job, samplers=scribe), scribe


@pytest.fixture
def scribe(service: tuple[FastAPI, Scribe]) -> Scribe:
    scribe = service[1]
    vars(scribe).update(vars(Scribe()))
    return scribe


@pytest.fixture
async def http(service: tuple[FastAPI, Scribe], scribe: Scribe) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(service[0])
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8700") as client:
        yield client


@pytest.fixture
def client(http: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://127.0.0.1:8700/v1", api_key="none", http_client=http, max_retries=0)


async def test_a_conversation_is_gone_on_with(client: openai.AsyncOpenAI, job_id: str, scribe: Scribe) -> None:
    answer = await client.chat.completions.create(model=job_id, messages=MESSAGES, seed=5, temperature=0.5, n=2)
    assert [choice.message.content for choice in answer.choices] == ["I am 2", "I am 2"]
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    assert answer.model == f"{job_id}@2" and answer.system_fingerprint == "digest-fast-2"
    (asked,) = scribe.asked
    assert (asked.version, asked.module, asked.answers, asked.seed) == (2, "fast", 2, 5)
    assert (asked.sampling.temperature, asked.sampling.max_tokens) == (0.5, 40)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(asked.prompt_token_ids), 8)


async def test_the_policy_reads_what_it_reads_in_training(
    client: openai.AsyncOpenAI, job_id: str, scribe: Scribe, world: Path
) -> None:
    """Rule 2: one rendering of the chat template; the job's own system prompt, unless the person sends another."""
    turns: Any = [*MESSAGES, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "hello 4"}]
    await client.chat.completions.create(model=job_id, messages=turns)
    mine: Any = [{"role": "developer", "content": "Be short."}, *turns]
    await client.chat.completions.create(model=job_id, messages=mine)
    tokenizer = PromptRenderer(world / "policy").tokenizer
    texts = [tokenizer.decode(list(asked.prompt_token_ids), skip_special_tokens=False) for asked in scribe.asked]
    assert "Be kind." in texts[0] and "Be short." in texts[1] and "Be kind." not in texts[1]
    for text in texts:
        assert text.index("hello 3") < text.index("Hello.") < text.index("hello 4")


@pytest.mark.parametrize(
    ("suffix", "version", "answer"), [("@0", 0, "I am 0"), ("@1", 1, "I am 1"), (":base", None, "I am base")]
)
async def test_each_form_of_a_name_reaches_its_policy(
    client: openai.AsyncOpenAI, job_id: str, scribe: Scribe, suffix: str, version: int | None, answer: str
) -> None:
    got = await client.chat.completions.create(model=job_id + suffix, messages=MESSAGES)
    assert got.choices[0].message.content == answer and got.model == job_id + suffix
    assert scribe.asked[0].version == version


async def test_an_ended_job_stands_for_its_best_version(
    client: openai.AsyncOpenAI, store: JobStore, home: Path, world: Path
) -> None:
    job_id = chat_job(store, home, world)
    store.transition(job_id, JobState.SUCCEEDED)
    answer = await client.chat.completions.create(model=job_id, messages=MESSAGES)
    assert answer.model == f"{job_id}@1"


async def test_a_stream_has_the_role_first_and_the_usage_last(
    client: openai.AsyncOpenAI, job_id: str, scribe: Scribe
) -> None:
    stream = await client.chat.completions.create(
        model=job_id, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "I am 2"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, "stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 4
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1 and {chunk.model for chunk in chunks} == {f"{job_id}@2"}
    assert scribe.closed == 1


async def test_a_stream_is_server_sent_events_that_end_in_done(http: httpx.AsyncClient, job_id: str) -> None:
    answer = await http.post(
        "/v1/chat/completions", json={"model": job_id, "messages": MESSAGES, "stream": True, "n": 2}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert all("usage" not in chunk for chunk in chunks)
    for place in range(2):
        parts = [c["choices"][0]["delta"].get("content") for c in chunks if c["choices"][0]["index"] == place]
        assert parts == ["", "I am ", "2"]


async def test_a_text_is_gone_on_with_and_streamed(
    client: openai.AsyncOpenAI, job_id: str, scribe: Scribe, world: Path
) -> None:
    answer = await client.completions.create(model=f"{job_id}@1", prompt="hello", max_tokens=7, stop=["x", "y"])
    assert answer.choices[0].text == "I am 1" and answer.object == "text_completion"
    asked = scribe.asked[0]
    assert asked.prompt_token_ids == PromptRenderer(world / "policy").plain_token_ids("hello")
    assert asked.stop == ("x", "y") and asked.sampling.max_tokens == 7
    stream = await client.completions.create(model=job_id, prompt=[1, 2, 3], stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "I am 2"
    assert scribe.asked[1].prompt_token_ids == (1, 2, 3)


async def test_log_probabilities_are_told(client: openai.AsyncOpenAI, job_id: str) -> None:
    chat = await client.chat.completions.create(model=job_id, messages=MESSAGES, logprobs=True, top_logprobs=2)
    told = chat.choices[0].logprobs
    assert told is not None and told.content is not None
    assert [(entry.token, entry.logprob) for entry in told.content] == [("I am ", -0.5), ("2", -0.5)]
    assert [top.token for top in told.content[1].top_logprobs] == ["2", "?"]
    text = await client.completions.create(model=job_id, prompt="hello", logprobs=1)
    plain = text.choices[0].logprobs
    assert plain is not None and plain.text_offset == [0, 5] and plain.token_logprobs == [-0.5, -0.5]


async def test_what_can_be_chatted_with_is_listed(client: openai.AsyncOpenAI, job_id: str) -> None:
    ids = [model.id async for model in await client.models.list()]
    assert [name for name in ids if name.startswith(job_id)] == [
        job_id,
        f"{job_id}:base",
        *(f"{job_id}@{version}" for version in range(3)),
    ]
    assert (await client.models.retrieve(job_id)).id == f"{job_id}@2"
    with pytest.raises(openai.NotFoundError, match="there is no job 'gone'"):
        await client.models.retrieve("gone")


@pytest.mark.parametrize(
    ("more", "param", "message"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "tools: this service does not support it; leave it out"),
        ({"presence_penalty": 0.5}, "presence_penalty", "less than or equal to 0"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"n": 9}, "n", "less than or equal to 8"),
        ({"top_logprobs": 3}, None, "top_logprobs: it goes with logprobs: true only"),
        ({"stream_options": {"include_usage": True}}, None, "it goes with stream: true only"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, None, "send one of them"),
        ({"max_tokens": 4000}, "messages", "max_tokens asks for 4000 more, but the model's context is 128"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "must be the user's"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "has the role 'tool'"),
        ({"messages": [{**MESSAGES[0], "name": "Ann"}]}, "messages[0].name", "leave it out"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "only text is taken"),
        ({"messages": [{"role": "user", "content": "hello " * 200}]}, "messages", "context is 128"),
    ],
)
async def test_what_cannot_be_asked_is_refused_by_its_name(
    http: httpx.AsyncClient, job_id: str, scribe: Scribe, more: dict[str, Any], param: str | None, message: str
) -> None:
    answer = await http.post("/v1/chat/completions", json={"model": job_id, "messages": MESSAGES} | more)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == param and message in error["message"]
    assert scribe.asked == []


async def test_a_key_that_stands_twice_is_refused(http: httpx.AsyncClient, job_id: str, scribe: Scribe) -> None:
    body = json.dumps({"model": job_id, "messages": MESSAGES, "n": 1})
    answer = await http.post("/v1/chat/completions", content=body[:-1] + ', "n": 2}')
    assert answer.status_code == 400 and "the key `n` stands twice" in answer.json()["error"]["message"], answer.text
    assert scribe.asked == []


async def test_what_asks_for_nothing_is_taken(http: httpx.AsyncClient, job_id: str) -> None:
    nothing = {"tools": None, "frequency_penalty": 0, "presence_penalty": 0.0, "user": "ann", "stop": None}
    answer = await http.post("/v1/chat/completions", json={"model": job_id, "messages": MESSAGES} | nothing)
    assert answer.status_code == 200


@pytest.mark.parametrize("prompt", [["a", "b"], [], "", [[1, 2]], [9999], [-1]])
async def test_a_prompt_that_is_not_one_text_is_refused(http: httpx.AsyncClient, job_id: str, prompt: Any) -> None:
    answer = await http.post("/v1/completions", json={"model": job_id, "prompt": prompt})
    assert answer.status_code == 400 and "prompt" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("suffix", "message"),
    [("@7", "version 7 of the fast adapter is not on disk; those that are: 0, 1, 2"), (":slow", "no slow adapter")],
)
async def test_a_version_that_is_not_there_is_not_found(
    client: openai.AsyncOpenAI, job_id: str, suffix: str, message: str
) -> None:
    with pytest.raises(openai.NotFoundError, match=message) as error:
        await client.chat.completions.create(model=job_id + suffix, messages=MESSAGES)
    assert error.value.code == "model_not_found"


async def test_a_service_that_cannot_answer_says_when_to_try_again(
    client: openai.AsyncOpenAI, job_id: str, scribe: Scribe
) -> None:
    scribe.trouble = ChatUnavailable("a job is starting and comes first", retry_seconds=7)
    with pytest.raises(openai.InternalServerError, match="a job is starting") as error:
        await client.chat.completions.create(model=job_id, messages=MESSAGES, stream=True)
    assert error.value.status_code == 503 and error.value.response.headers["retry-after"] == "7"


async def test_a_stream_that_breaks_says_so(client: openai.AsyncOpenAI, job_id: str, scribe: Scribe) -> None:
    scribe.breaks = RuntimeError("secret")
    stream = await client.chat.completions.create(model=job_id, messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="the answer broke off") as error:
        _ = [chunk async for chunk in stream]
    assert "secret" not in str(error.value)
    assert scribe.closed == 1


async def test_two_policies_are_compared(http: httpx.AsyncClient, job_id: str, scribe: Scribe) -> None:
    answer = await http.post(f"/v1/jobs/{job_id}/compare", json={"prompt": "hello 3", "versions": ["base", 2]})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert [each["model"] for each in found["answers"]] == [f"{job_id}:base", f"{job_id}@2"]
    assert [each["text"] for each in found["answers"]] == ["I am base", "I am 2"]
    assert scribe.compared == [("I am base", "I am 2")]
    verdict = found["verdict"]
    assert (verdict["logit"], verdict["winner"]) == (1.0, "first")
    assert verdict["ordered_logits"] == [[0.0, 1.5], [-0.5, 0.0]]
    assert verdict["win_probability"] == pytest.approx(0.731, abs=1e-3)
    assert len({request.prompt_token_ids for request in scribe.asked}) == len({r.seed for r in scribe.asked}) == 1


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"prompt": "x", "versions": [0, 9]}, 404, "version 9"),
        ({"versions": [0, 1]}, 422, "send either a prompt or messages"),
        ({"prompt": "x", "messages": MESSAGES, "versions": [0, 1]}, 422, "send either a prompt or messages"),
        ({"prompt": "x", "versions": [0]}, 422, "versions"),
    ],
)
async def test_what_cannot_be_compared_is_a_problem(
    http: httpx.AsyncClient, job_id: str, body: dict[str, Any], status: int, message: str
) -> None:
    answer = await http.post(f"/v1/jobs/{job_id}/compare", json=body)
    assert answer.status_code == status and message in answer.json()["detail"], answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_without_samplers_there_is_no_chat(home: Path, store: JobStore, job_id: str) -> None:
    app = create_app(Settings(home=home), store, admit=parse_job)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8700") as http:
        answer = await http.post("/v1/chat/completions", json={"model": job_id, "messages": MESSAGES})
    assert answer.status_code == 503 and "no samplers for chat" in answer.json()["error"]["message"]
