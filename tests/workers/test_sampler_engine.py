"""A real vLLM engine on a tiny random model: versions by bytes, answers by version, reproducible rounds, and a death that is seen."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from learner.errors import InputError
from learner.records import FinishReason, SamplingParameters
from tests.workers import sampler_world as world
from workers.chat import ChatPiece, ChatRequest
from workers.sampler.engine import EngineConfig, GeneratedAnswer, SamplerEngine
from workers.sampler.errors import AdapterRejected, DigestMismatch, EngineDied, VersionInUse, VersionNotLoaded

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
]

SAMPLING = SamplingParameters(temperature=1.0, top_p=1.0, top_k=0, max_tokens=24)
DEATH_SECONDS = 120.0
"""Longest wait until an engine's death is known: vLLM first asks what is left of it to end."""

TEXTS = [[257, *((7 * place + 3 * text) % 256 for place in range(12 + text))] for text in range(4)]
END, OTHER_END = 258, 259


@pytest.fixture(scope="module", autouse=True)
def quick_starts() -> Iterator[None]:
    with world.one_import_of_vllm():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.tiny_model(
        tmp_path_factory.mktemp("model"), initializer_range=0.05, generation={"eos_token_id": [END, OTHER_END]}
    )


@pytest.fixture(scope="module")
def adapters(model: Path) -> list[dict[str, bytes]]:
    return [world.adapter_files(model, seed) for seed in range(4)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(model: Path, adapters: list[dict[str, bytes]]) -> AsyncIterator[SamplerEngine]:
    """One engine for the whole file, with versions 0 and 1."""
    config = EngineConfig(
        model=str(model), lora_rank=8, lora_slots=2, cpu_lora_slots=3, kv_cache_gib=0.25, deterministic=True
    )
    engine = SamplerEngine(config)
    await engine.start()
    for version in range(2):
        await engine.load_version(world.manifest(version, adapters[version]), adapters[version])
    yield engine
    await engine.close()


@pytest_asyncio.fixture(loop_scope="module")
async def engine(shared: SamplerEngine) -> SamplerEngine:
    if shared.dead:
        pytest.fail("an earlier test of this file killed the engine; the one that kills it must be the last")
    return shared


async def write(engine: SamplerEngine, number: int, version: int = 0, answers: int = 3) -> list[GeneratedAnswer]:
    prompt = [257, *range(60 + number, 70 + number)]
    return await engine.generate(
        request_id=f"r{number}",
        prompt_token_ids=prompt,
        version=version,
        sampling=SAMPLING,
        seed=100 * number,
        answers=answers,
    )


def furthest(found: list[list[float]], expected: list[list[float]]) -> float:
    return max(abs(x - y) for a, b in zip(found, expected, strict=True) for x, y in zip(a, b, strict=True))


async def test_the_loading_process_returns_the_digest_of_the_bytes(
    engine: SamplerEngine, adapters: list[dict[str, bytes]]
) -> None:
    assert engine.loaded_versions() == {
        version: world.manifest(version, adapters[version]).digest for version in range(2)
    }


async def test_versions_and_the_base_are_served_side_by_side(
    engine: SamplerEngine, model: Path, adapters: list[dict[str, bytes]]
) -> None:
    """With every slot taken: vLLM's own CPU kernels give the base the last slot's adapter here."""
    found = await asyncio.gather(*(engine.text_logprobs(TEXTS, version) for version in (None, 0, 1)))
    expected = [world.peft_logprobs(model, files, TEXTS) for files in (None, adapters[0], adapters[1])]
    assert furthest(found[0], found[1]) > 0.1
    for ours, theirs in zip(found, expected, strict=True):
        assert furthest(ours, theirs) < 1e-4


async def test_answers_carry_their_ids_logprobs_and_end(
    engine: SamplerEngine, model: Path, adapters: list[dict[str, bytes]]
) -> None:
    groups = await asyncio.gather(*(write(engine, number) for number in range(40)))
    answers = [answer for group in groups for answer in group]
    assert {answer.finish_reason for answer in answers} == {FinishReason.STOP, FinishReason.LENGTH}
    for answer in answers:
        ends = [token for token in answer.token_ids if token in (END, OTHER_END)]
        if answer.finish_reason is FinishReason.STOP:
            assert len(ends) == 1
            assert answer.token_ids[-1] == ends[0]
        else:
            assert not ends
            assert len(answer.token_ids) == SAMPLING.max_tokens
        assert "</s>" not in answer.text
    assert {answer.token_ids[-1] for answer in answers} >= {END, OTHER_END}
    prompt, answer = [257, *range(60, 70)], groups[0][0]
    whole = world.peft_logprobs(model, adapters[0], [[*prompt, *answer.token_ids]])
    assert furthest([list(answer.logprobs)], [whole[0][len(prompt) - 1 :]]) < 1e-4


async def test_answer_k_is_drawn_with_seed_plus_k(engine: SamplerEngine) -> None:
    together = await write(engine, 5)
    assert [answer.seed for answer in together] == [500, 501, 502]
    for answer in together:
        alone = await engine.generate(
            request_id=f"alone-{answer.seed}",
            prompt_token_ids=[257, *range(65, 75)],
            version=0,
            sampling=SAMPLING,
            seed=answer.seed,
            answers=1,
        )
        assert alone[0].token_ids == answer.token_ids


def chat(version: int | None, **more: Any) -> ChatRequest:
    settings: dict[str, Any] = {"id": f"chat-{version}-{more}", "seed": 500, "sampling": SAMPLING, **more}
    return ChatRequest(version=version, prompt_token_ids=(257, *range(65, 75)), **settings)


async def pieces_of(engine: SamplerEngine, request: ChatRequest) -> list[ChatPiece]:
    return [piece async for piece in engine.stream(request)]


def readable(text: str) -> str:
    """Without the marks of bytes that are no character: an untrained model writes them, and a stream waits for the rest of a character."""
    return text.replace("\N{REPLACEMENT CHARACTER}", "")


async def test_a_stream_is_the_same_answer_piece_by_piece(engine: SamplerEngine) -> None:
    together = await write(engine, 5)
    pieces = await pieces_of(engine, chat(0, answers=3, logprobs=2))
    assert len(pieces) > len(together), "in pieces, however late they are read"
    for number, answer in enumerate(together):
        mine = [piece for piece in pieces if piece.answer == number]
        assert readable("".join(piece.text for piece in mine)) == readable(answer.text)
        assert sum(piece.tokens for piece in mine) == len(answer.token_ids)
        assert [piece.finish_reason for piece in mine if piece.finish_reason] == [answer.finish_reason]
        told = [entry for piece in mine for entry in piece.logprobs]
        assert [entry.logprob for entry in told] == pytest.approx(answer.logprobs, abs=1e-5)
        assert all(len(entry.top) == 2 and entry.top[0][1] >= entry.logprob for entry in told)
    assert engine.in_flight(0) == 0


async def test_a_string_ends_an_answer_and_is_left_out_of_it(engine: SamplerEngine) -> None:
    greedy = SAMPLING.model_copy(update={"temperature": 0.0})
    for version in (0, None):
        whole = "".join(piece.text for piece in await pieces_of(engine, chat(version, sampling=greedy, id="whole")))
        cut = await pieces_of(engine, chat(version, sampling=greedy, stop=(whole[4:6],)))
        text = "".join(piece.text for piece in cut)
        assert text == whole[: whole.index(whole[4:6])] and cut[-1].finish_reason is FinishReason.STOP


async def test_a_stream_that_is_closed_early_ends_its_request(engine: SamplerEngine) -> None:
    long = SAMPLING.model_copy(update={"max_tokens": 200})
    async with aclosing(engine.stream(chat(1, sampling=long, seed=3))) as pieces:
        await anext(pieces)
        assert engine.in_flight(1) == 1
    assert engine.in_flight(1) == 0 and engine.metrics()["requests_running"] == 0
    with pytest.raises(VersionNotLoaded):
        await pieces_of(engine, chat(9))
    with pytest.raises(InputError, match="leave no room"):
        await pieces_of(engine, chat(0).model_copy(update={"prompt_token_ids": (5,) * 256}))


async def test_a_held_round_is_bitwise_the_same_however_its_requests_arrive(engine: SamplerEngine) -> None:
    async def round_of(numbers: list[int]) -> dict[int, list[GeneratedAnswer]]:
        await engine.hold()
        tasks = {number: asyncio.create_task(write(engine, number, version=number % 2)) for number in numbers}
        await engine.enqueued(3 * len(numbers))
        assert not any(task.done() for task in tasks.values())
        await engine.release()
        return {number: await task for number, task in tasks.items()}

    numbers = list(range(20))
    first = await round_of(numbers)
    assert await round_of(numbers) == first
    shuffled = await round_of(numbers[::-1])
    assert {number: [a.token_ids for a in group] for number, group in shuffled.items()} == {
        number: [a.token_ids for a in group] for number, group in first.items()
    }


async def test_a_refused_request_does_not_keep_a_held_round_waiting(engine: SamplerEngine) -> None:
    await engine.hold()
    tasks = [asyncio.create_task(write(engine, 0)), asyncio.create_task(write(engine, 1, version=9))]
    await engine.enqueued(6, timeout_seconds=30)
    await engine.release()
    good, bad = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(bad, VersionNotLoaded)
    assert len(good) == 3


async def test_tampered_bytes_are_refused_with_both_digests(
    engine: SamplerEngine, adapters: list[dict[str, bytes]]
) -> None:
    promised = world.manifest(2, adapters[2])
    found = world.manifest(2, adapters[3]).digest
    with pytest.raises(DigestMismatch) as error:
        await engine.load_version(promised, adapters[3])
    assert promised.digest in str(error.value)
    assert found in str(error.value)
    assert 2 not in engine.loaded_versions()


@pytest.mark.parametrize(
    ("settings", "rank", "reason"),
    [
        ({"rank": 16}, 16, "rank 16 is more than this sampler's 8"),
        ({"rank": 16}, 8, "LoRA rank 16 is greater than max_lora_rank 8"),
        ({"use_dora": True}, 8, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, 8, "modules_to_save"),
        ({"lora_bias": True}, 8, "bias"),
        ({"bias": "all"}, 8, "bias"),
        ({"targets": ["lm_head"]}, 8, "lm_head"),
        ({"init_lora_weights": "pissa"}, 8, "init_lora_weights"),
    ],
    ids=["rank", "hidden-rank", "dora", "modules-to-save", "lora-bias", "bias", "output-layer", "init"],
)
async def test_what_cannot_be_served_is_refused_with_its_reason(
    engine: SamplerEngine, model: Path, settings: dict[str, Any], rank: int, reason: str
) -> None:
    files = world.adapter_files(model, 9, **settings)
    with pytest.raises(AdapterRejected, match=reason):
        await engine.load_version(world.manifest(2, files, rank=rank), files)
    assert 2 not in engine.loaded_versions()
    assert len(await write(engine, 0, answers=2)) == 2


async def test_weights_for_modules_that_the_model_lacks_are_refused(
    engine: SamplerEngine, adapters: list[dict[str, bytes]]
) -> None:
    """vLLM would serve the bare base without a word."""
    from safetensors.torch import load, save

    weights = {
        name.replace("model.layers", "model.blocks"): tensor
        for name, tensor in load(adapters[2]["adapter_model.safetensors"]).items()
    }
    files = {**adapters[2], "adapter_model.safetensors": save(weights)}
    with pytest.raises(AdapterRejected, match="modules that the model does not have"):
        await engine.load_version(world.manifest(2, files), files)


async def test_a_version_is_kept_while_a_request_names_it_and_is_an_error_afterwards(
    engine: SamplerEngine, adapters: list[dict[str, bytes]]
) -> None:
    await engine.load_version(world.manifest(2, adapters[2]), adapters[2])
    with pytest.raises(AdapterRejected, match="cpu_lora_slots"):
        await engine.load_version(world.manifest(3, adapters[3]), adapters[3])
    running = asyncio.create_task(write(engine, 0, version=2))
    await asyncio.sleep(0)
    assert engine.in_flight(2) == 1
    with pytest.raises(VersionInUse):
        await engine.unload_version(2)
    assert len(await running) == 3
    await engine.unload_version(2)
    with pytest.raises(VersionNotLoaded, match="version 2 of fast is not loaded"):
        await write(engine, 0, version=2)


async def test_a_cancelled_request_frees_its_version(engine: SamplerEngine) -> None:
    await engine.hold()
    task = asyncio.create_task(write(engine, 1, version=1))
    await engine.enqueued(3)
    assert engine.in_flight(1) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.release()
    assert engine.in_flight(1) == 0


async def test_a_prompt_that_fills_the_context_is_refused(engine: SamplerEngine) -> None:
    with pytest.raises(InputError, match="max_context_tokens"):
        await engine.generate(
            request_id="long", prompt_token_ids=[257] * 256, version=0, sampling=SAMPLING, seed=0, answers=2
        )


async def test_a_token_that_the_model_lacks_is_refused_and_harms_nothing(engine: SamplerEngine) -> None:
    with pytest.raises(InputError, match="out of vocabulary"):
        await engine.text_logprobs([[257, 5000]], 0)
    assert len(await write(engine, 0)) == 3


async def test_it_counts_what_it_wrote(engine: SamplerEngine) -> None:
    before = engine.metrics()
    answers = await write(engine, 3)
    after = engine.metrics()
    assert after["sample_answers_total"] - before["sample_answers_total"] == 3
    assert after["sample_tokens_total"] - before["sample_tokens_total"] == sum(len(a.token_ids) for a in answers)
    assert after["requests_running"] == 0


async def test_vllms_own_counters_go_on_with_ours(engine: SamplerEngine) -> None:
    before = engine.metrics()
    answers = await write(engine, 3)
    after = engine.metrics()
    written = after["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"]
    assert written == sum(len(answer.token_ids) for answer in answers)
    assert after["vllm:request_success_total"] - before["vllm:request_success_total"] == 3
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0
    assert 0 <= after["vllm:kv_cache_usage_perc"] <= 1
    assert after["vllm:e2e_request_latency_seconds_count"] > 0


async def test_an_evicted_adapter_ends_in_an_error_and_not_in_a_read(engine: SamplerEngine) -> None:
    """vLLM drops version 1 behind the engine's back: the next request must fail; and a dead engine is noticed everywhere."""
    lora_id = engine.slots.removable("fast", 1).lora_id
    await engine.backend.engine.remove_lora(lora_id)
    with pytest.raises(EngineDied):
        await write(engine, 0, version=1)
    await asyncio.wait_for(engine.wait_dead(), DEATH_SECONDS)
    with pytest.raises(EngineDied):
        await write(engine, 1)
    with pytest.raises(EngineDied):
        await engine.hold()


async def test_two_processes_share_the_weights_and_the_death_of_one_ends_every_wait(
    model: Path, adapters: list[dict[str, bytes]]
) -> None:
    engine = SamplerEngine(EngineConfig(model=str(model), lora_rank=8, kv_cache_gib=0.25, tensor_parallel_size=2))
    info = await engine.start()
    assert info.stop_token_ids == (END, OTHER_END)
    await engine.load_version(world.manifest(0, adapters[0]), adapters[0])
    found = await engine.text_logprobs(TEXTS, 0)
    assert furthest(found, world.peft_logprobs(model, adapters[0], TEXTS)) < 1e-4
    await engine.hold()
    waiting = [asyncio.create_task(write(engine, number)) for number in range(3)]
    await engine.enqueued(9)
    parents = {number: psutil.Process(number).ppid() for number in info.process_ids}
    one, another = [
        number for number in info.process_ids if parents[number] in parents and number not in parents.values()
    ]
    assert parents[one] == parents[another], "two processes of one engine"
    os.kill(another, signal.SIGKILL)
    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), DEATH_SECONDS)
    assert all(isinstance(result, EngineDied) for result in results)
    with pytest.raises(EngineDied):
        await asyncio.wait_for(engine.load_version(world.manifest(1, adapters[1]), adapters[1]), DEATH_SECONDS)
    await engine.close()
