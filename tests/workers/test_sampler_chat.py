"""Chat beside a job on one sampler: which versions are loaded and unloaded for whom. The engine is a stand-in; the worker is real."""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from learner.records import FinishReason, Module, Prompt, SamplingParameters, Share, Ticket, VersionManifest
from tests.workers.sampler_world import manifest
from workers.chat import ChatBegun, ChatPiece, ChatRequest
from workers.config import SamplingConfig
from workers.errors import WorkerUnavailable
from workers.sampler import actor
from workers.sampler.actor import SamplerSetup, SamplerWorker
from workers.sampler.engine import EngineConfig
from workers.sampler.errors import ChatBusy, DigestMismatch, NoPlaceLeft, VersionInUse, VersionNotLoaded
from workers.versions.integrity import MissingVersionError

VERSIONS = 12
FILES = {
    version: {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes([version])}
    for version in range(VERSIONS)
}


class Engine:
    """Keeps what is loaded and named, as the real one does; an answer waits for ``go``."""

    def __init__(self) -> None:
        self.info: object | None = object()
        self.loaded: dict[tuple[Module, int], str] = {}
        self.named: Counter[tuple[Module, int]] = Counter()
        self.go = asyncio.Event()
        self.most = 0

    async def load_version(self, loading: VersionManifest, files: Mapping[str, bytes], module: Module) -> str:
        await asyncio.sleep(0)
        self.loaded[module, loading.version] = loading.digest
        self.most = max(self.most, len(self.loaded))
        return loading.digest

    async def unload_version(self, version: int, module: Module = "fast") -> None:
        if self.named[module, version]:
            raise VersionInUse(str(version))
        del self.loaded[module, version]
        await asyncio.sleep(0)

    def in_flight(self, version: int, module: Module = "fast") -> int:
        return self.named[module, version]

    async def text_logprobs(self, texts: object, version: int, module: Module) -> list[list[float]]:
        return []

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatPiece]:
        key = (request.module, request.version if request.version is not None else -1)
        if request.version is not None and key not in self.loaded:
            raise VersionNotLoaded(str(key))
        self.named[key] += 1
        try:
            await self.go.wait()
            yield ChatPiece(answer=0, text="x", tokens=1, finish_reason=FinishReason.STOP)
        finally:
            self.named[key] -= 1


class Store:
    """The version store's actor."""

    async def call(self, method: str, module: Module, version: int, names: object = None) -> Any:
        await asyncio.sleep(0)
        if version not in FILES:
            raise MissingVersionError(f"v{version} is not in the version store")
        return manifest(version, FILES[version]) if method == "manifest" else FILES[version]


@pytest.fixture
def worker(tmp_path: Path) -> SamplerWorker:
    setup = SamplerSetup(
        name="sampler",
        job_id="job",
        logs=tmp_path / "logs",
        cache=tmp_path / "cache",
        engine=EngineConfig(model="none"),
        sampling=SamplingConfig(),
        scorers=(),
        versions="versions",
        in_order=False,
        keep_versions=2,
        start_timeout_seconds=1,
        request_timeout_seconds=5,
        chat_slots=2,
    )
    made = SamplerWorker(setup, lease_seconds=1e9)
    made.engine, made.store = Engine(), Store()  # type: ignore[assignment]
    return made


def engine_of(worker: SamplerWorker) -> Engine:
    assert isinstance(worker.engine, Engine)
    return worker.engine


def ask(version: int | None) -> ChatRequest:
    sampling = SamplingParameters(temperature=1, top_p=1, top_k=0, max_tokens=4)
    return ChatRequest(id="r", version=version, prompt_token_ids=(1,), sampling=sampling, seed=0)


async def begin(worker: SamplerWorker, version: int | None) -> tuple[AsyncGenerator[Any], ChatBegun]:
    pieces = worker.chat(ask(version))
    begun = await anext(pieces)
    assert isinstance(begun, ChatBegun)
    return pieces, begun


async def chat(worker: SamplerWorker, version: int | None) -> None:
    engine_of(worker).go.set()
    async with aclosing(worker.chat(ask(version))) as pieces:
        assert [type(piece) for piece in [piece async for piece in pieces]] == [ChatBegun, ChatPiece]


async def test_a_version_is_loaded_for_chat_and_its_digest_is_told(worker: SamplerWorker) -> None:
    engine = engine_of(worker)
    _, begun = await begin(worker, 3)
    assert begun.adapter_digest == manifest(3, FILES[3]).digest and set(engine.loaded) == {("fast", 3)}
    _, base = await begin(worker, None)
    assert base.adapter_digest is None
    with pytest.raises(ChatBusy, match="all 2 places"):
        await begin(worker, None)


async def test_chat_never_unloads_what_the_job_needs_nor_keeps_more_than_its_share(worker: SamplerWorker) -> None:
    engine = engine_of(worker)
    for version in (8, 9):
        await worker.load(version)
    for version in (0, 1, 2, 9, 3, 8, 4):
        await chat(worker, version)
        assert {("fast", 8), ("fast", 9)} <= set(engine.loaded)
    assert set(engine.loaded) == {("fast", number) for number in (3, 4, 8, 9)} and engine.most == 4


async def test_the_job_goes_on_to_new_versions_while_somebody_chats_with_old_ones(worker: SamplerWorker) -> None:
    engine = engine_of(worker)
    engine.go.clear()
    await worker.load(5)
    held, _ = await begin(worker, 5)
    guest, _ = await begin(worker, 0)
    for version in (6, 7, 8):
        await worker.load(version)
    assert {("fast", 5), ("fast", 0)} <= set(engine.loaded), "requests name them"
    engine.go.set()
    for pieces in (held, guest):
        assert [piece.text async for piece in pieces] == ["x"]
    await worker.load(9)
    assert set(engine.loaded) == {("fast", number) for number in (0, 8, 9)}, "what nobody names any more is gone"


async def test_what_was_loaded_for_chat_is_the_jobs_once_it_asks_for_it(worker: SamplerWorker) -> None:
    engine = engine_of(worker)
    await chat(worker, 6)
    await worker.load(6)
    for version in (0, 1, 2):
        await chat(worker, version)
    assert ("fast", 6) in engine.loaded and len(engine.loaded) == 3


async def test_requests_for_one_version_at_a_time_load_it_once_and_any_order_of_requests_is_served(
    worker: SamplerWorker,
) -> None:
    engine = engine_of(worker)
    engine.go.set()

    async def persist(version: int) -> None:
        while True:
            try:
                await chat(worker, version)
                return
            except ChatBusy:
                await asyncio.sleep(0)

    await asyncio.gather(*(persist(number % 7) for number in range(60)), *(worker.load(number) for number in (10, 11)))
    assert len(worker.guests) <= 2 and worker.guests.running == 0
    assert set(engine.loaded) == {*worker.digests}


async def test_a_sampler_that_has_not_started_is_busy_and_a_version_that_is_not_there_leaves_no_trace(
    worker: SamplerWorker,
) -> None:
    engine = engine_of(worker)
    with pytest.raises(MissingVersionError):
        await begin(worker, 99)
    assert worker.guests.running == 0 and len(worker.guests) == 0
    engine.info = None
    with pytest.raises(ChatBusy, match="is starting"):
        await begin(worker, 0)


async def test_a_version_that_a_call_needs_stays_while_newer_ones_come(worker: SamplerWorker) -> None:
    """Nothing names version 0 in the engine between its loading and its measuring; an evaluation of an old version is in that place."""
    engine, reached, go = engine_of(worker), asyncio.Event(), asyncio.Event()

    async def measure(texts: object, version: int, module: Module) -> list[list[float]]:
        if version == 0:
            reached.set()
            await go.wait()
        assert (module, version) in engine.loaded
        return []

    engine.text_logprobs = measure  # type: ignore[method-assign, assignment]
    proving = asyncio.create_task(worker.load(0))
    await reached.wait()
    for version in (4, 5, 6):
        await worker.load(version)
    assert {version for _, version in engine.loaded} == {0, 5, 6}
    go.set()
    assert (await proving).digest == worker.digests["fast", 0]
    await worker.load(7)
    assert {version for _, version in engine.loaded} == {6, 7}


async def test_a_version_waits_for_a_place_and_not_for_ever(
    worker: SamplerWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor, "PLACE_PAUSE_SECONDS", 0)
    load, refusals = engine_of(worker).load_version, [NoPlaceLeft("all 3 adapter places are taken")] * 3

    async def refuse(*arguments: Any) -> str:
        if refusals:
            raise refusals.pop()
        return await load(*arguments)

    engine_of(worker).load_version = refuse  # type: ignore[method-assign]
    assert (await worker.load(1)).version == 1 and not refusals
    monkeypatch.setattr(actor, "PLACE_SECONDS", -1)
    refusals.append(NoPlaceLeft("all 3 adapter places are taken"))
    with pytest.raises(NoPlaceLeft, match="all 3 adapter places are taken"):
        await worker.load(2)
    assert set(worker.digests) == {("fast", 1)} and not worker.needed


async def test_a_version_that_is_in_use_stays_known_when_it_is_to_be_forgotten(worker: SamplerWorker) -> None:
    await worker.load(1)
    engine_of(worker).named["fast", 1] = 1
    with pytest.raises(VersionInUse):
        await worker.forget(1)
    assert ("fast", 1) in worker.digests
    engine_of(worker).named["fast", 1] = 0
    await worker.forget(1)
    await worker.forget(1)
    assert not worker.digests and not engine_of(worker).loaded


async def test_an_old_version_that_an_evaluation_loads_takes_the_place_of_another(worker: SamplerWorker) -> None:
    for version in (7, 8, 3):
        await worker.load(version)
    await worker.load(2)
    assert {version for _, version in engine_of(worker).loaded} == {2, 7, 8}


async def test_a_sampler_that_starts_takes_nothing_yet(worker: SamplerWorker) -> None:
    engine_of(worker).info = None
    for call in (worker.load(0), worker.write([]), worker.answer([], 0, None)):
        with pytest.raises(WorkerUnavailable, match="sampler is starting"):
            await call


def test_a_wrong_digest_is_told_whole_in_another_process() -> None:
    told = pickle.loads(pickle.dumps(DigestMismatch("v1", "aa", "bb")))
    assert isinstance(told, DigestMismatch) and (told.expected, told.found) == ("aa", "bb")
    assert str(told) == "v1: the sampler read an adapter with digest bb, but the manifest says aa"


async def test_groups_are_in_flight_before_their_round_begins(worker: SamplerWorker) -> None:
    engine, held, go = engine_of(worker), asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        held.set()
        await go.wait()
        raise TimeoutError("while it was being held")

    engine.hold = hold  # type: ignore[attr-defined]
    engine.metrics = dict  # type: ignore[attr-defined]
    object.__setattr__(worker.setup, "in_order", True)
    shares = (Share(module="fast", version=0, answers=2),)
    prompt = Prompt.of("p", "Hello")
    ticket = Ticket(
        group_id="0.0", round=0, index=0, version=0, seed=1, prompt=prompt, prompt_token_ids=(1,), shares=shares
    )
    writing = asyncio.create_task(worker.write([ticket]))
    await held.wait()
    assert (await worker.status()).in_flight == ("0.0",)
    go.set()
    with pytest.raises(TimeoutError):
        await writing
    assert (await worker.status()).in_flight == ()


async def test_an_answer_that_takes_too_long_names_the_setting(worker: SamplerWorker) -> None:
    object.__setattr__(worker.setup, "request_timeout_seconds", 1.0)
    pieces, _ = await begin(worker, None)
    with pytest.raises(TimeoutError, match=r"resources\.sampler\.request_timeout_seconds"):
        await anext(pieces)
    assert worker.guests.running == 0 and engine_of(worker).named[("fast", -1)] == 0
