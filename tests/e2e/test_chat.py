"""Chat end to end: the `openai` package against `sparring serve`, with samplers of a running online job, and with one that runs for chat
alone, once a job has ended or where it is deterministic."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from services.client import Client
from services.jobs.state import JobState
from tests.e2e.test_service import Service
from tests.e2e.world import World, job, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

QUESTION: Any = [{"role": "user", "content": "Tell me about 17."}]
IDLE_SECONDS = 20
ROUNDS = 20


def samplers(service: Service) -> set[int]:
    """The samplers' processes that the service has started."""
    return {process.pid for process in (*service.command.workers("Sampler"), *service.command.named("EngineCore"))}


def test_people_chat_with_a_job_while_it_trains_and_after_it_has_ended(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARRING_CHAT_IDLE_SECONDS", str(IDLE_SECONDS))
    service = Service(world, tmp_path / "service.log")
    try:
        with Client(service.url) as client:
            chat = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", timeout=300, max_retries=4)
            online = {
                "mode": "online",
                "max_staleness": 1,
                "rounds": ROUNDS,
                "prompts_per_round": 8,
                "reuse_prompts": True,  # expired groups are replaced by others
            }
            job_id = client.submit(job(world, schedule=online, objective={"kind": "dpo", "reference": "start"})).id
            while_it_trains(client, chat, job_id, service)
            wait_for(lambda: client.get(job_id).state.terminal, "the job's end")
            ended = client.get(job_id)
            assert ended.state is JobState.SUCCEEDED, ended.error
            assert ended.current_version == ROUNDS
            counts = [event for event in client.events(job_id) if event.kind == "counts"][-1]
            assert counts.data["balanced"] is True and counts.data["failed"] == {}
            wait_for(lambda: not samplers(service), "the job's samplers to leave", 120)
            after_it_has_ended(chat, job_id, service)
            two_versions_are_compared(client, service, job_id)
            wait_for(lambda: not samplers(service), "the idle sampler to leave", 120)
    finally:
        code = service.stop()
    assert code == 0, service.log.read_text()
    assert service.command.leaves_nothing()


def while_it_trains(client: Client, chat: openai.OpenAI, job_id: str, service: Service) -> None:
    """Answers by the job's own sampler: no other is started, and its version goes on."""
    wait_for(lambda: (client.get(job_id).current_version or 0) >= 1, "version 1")
    before = samplers(service)
    answers = [chat.chat.completions.create(model=job_id, messages=QUESTION, max_tokens=8) for _ in range(3)]
    assert all(answer.model.startswith(f"{job_id}@") for answer in answers)
    digests = {version.version: version.digest for version in client.versions(job_id)}
    for answer in answers:
        assert answer.system_fingerprint == digests[int(answer.model.rpartition("@")[2])]
    old = chat.chat.completions.create(model=f"{job_id}@0", messages=QUESTION, max_tokens=8)
    base = chat.chat.completions.create(model=f"{job_id}:base", messages=QUESTION, max_tokens=8)
    assert old.system_fingerprint == digests[0] and base.system_fingerprint is None
    assert client.get(job_id).state is JobState.RUNNING, "the job is too short for this test"
    assert samplers(service) == before, "no sampler was started for chat, and none of the job's died"


def after_it_has_ended(chat: openai.OpenAI, job_id: str, service: Service) -> None:
    """A sampler for chat alone starts with the first question, and streams."""
    names = {model.id for model in chat.models.list()}
    assert {job_id, f"{job_id}:base", f"{job_id}@0", f"{job_id}@{ROUNDS}"} <= names
    start: Any = {"model": f"{job_id}@0", "messages": QUESTION, "max_tokens": 150}  # says the same in every run
    several = chat.chat.completions.create(**start, n=2)
    assert len({choice.message.content for choice in several.choices}) == 2
    assert several.usage is not None and several.usage.completion_tokens > 2
    pids = samplers(service)
    assert pids

    whole = chat.chat.completions.create(**start, seed=3)
    stream = chat.chat.completions.create(
        **start,
        seed=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content, "the same seed draws the same answer, piece by piece or whole"
    assert chunks[-1].usage is not None and sum(bool(chunk.choices) for chunk in chunks) > 2
    assert chunks[0].system_fingerprint == whole.system_fingerprint

    greedy = [
        chat.completions.create(model=f"{job_id}{suffix}", prompt="Tell me", max_tokens=30, temperature=0)
        for suffix in ("@0", f"@{ROUNDS}", ":base", f"@{ROUNDS}")
    ]
    assert greedy[1].choices[0].text == greedy[3].choices[0].text
    assert greedy[0].choices[0].text == greedy[2].choices[0].text, (
        "version 0 of a fresh adapter says what the base says"
    )
    told_whole = greedy[0].choices[0].text
    stopped = chat.completions.create(
        model=f"{job_id}@0", prompt="Tell me", max_tokens=30, temperature=0, stop=told_whole[3:5]
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert told_whole.startswith(stopped.choices[0].text) and len(stopped.choices[0].text) <= 4
    first_logprobs = set()
    for model in (f"{job_id}@{ROUNDS}", f"{job_id}@0"):
        told = chat.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=5, logprobs=True, top_logprobs=2, temperature=0
        )
        assert told.choices[0].logprobs is not None and told.choices[0].logprobs.content
        for entry in told.choices[0].logprobs.content:
            assert entry.logprob <= 0 and entry.logprob == max(top.logprob for top in entry.top_logprobs)
        first_logprobs.add(told.choices[0].logprobs.content[0].logprob)
    assert len(first_logprobs) == 2, "two versions may say the same, but not with the same probabilities"
    with pytest.raises(openai.NotFoundError):
        chat.chat.completions.create(model=f"{job_id}@99", messages=QUESTION)
    many_at_a_time(chat, job_id)
    who_leaves_early_frees_the_place(chat, job_id)
    assert samplers(service) == pids, "one sampler did all this"


def many_at_a_time(chat: openai.OpenAI, job_id: str) -> None:
    """More versions at a time than the sampler keeps: each answer is its own version's, or the client is told to come again."""
    answers: dict[int, str] = {}

    def ask(version: int) -> None:
        answer = chat.completions.create(
            model=f"{job_id}@{version}", prompt="Tell me", max_tokens=20, temperature=0, timeout=120
        )
        answers[version] = answer.system_fingerprint or ""

    threads = [threading.Thread(target=ask, args=(version,)) for version in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) >= 8 and len(set(answers.values())) == len(answers)


def who_leaves_early_frees_the_place(chat: openai.OpenAI, job_id: str) -> None:
    for _ in range(20):  # more than there are places
        stream = chat.chat.completions.create(model=job_id, messages=QUESTION, max_tokens=150, stream=True)
        next(iter(stream))
        stream.close()
    limit = time.monotonic() + 30
    while True:
        try:
            chat.with_options(max_retries=0).chat.completions.create(model=job_id, messages=QUESTION, max_tokens=2)
            return
        except openai.InternalServerError:
            assert time.monotonic() < limit, "the places of those who left stay taken"
            time.sleep(0.2)


def two_versions_are_compared(client: Client, service: Service, job_id: str) -> None:
    body = {"prompt": "Tell me about 17.", "versions": [0, ROUNDS], "max_tokens": 40}
    answer = httpx.post(f"{service.url}/v1/jobs/{job_id}/compare", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert [each["model"] for each in found["answers"]] == [f"{job_id}@0", f"{job_id}@{ROUNDS}"]
    verdict = found["verdict"]
    (zero, first), (second, _) = verdict["ordered_logits"]
    assert zero == 0 and verdict["logit"] == pytest.approx((first - second) / 2)
    assert verdict["scorer"]["kind"] == "pairrm" and 0 < verdict["win_probability"] < 1
    # which texts the online job's versions write depends on its timing: now and then both write the same
    assert verdict["winner"] == ("tie" if first == second else "first" if first > second else "second")
