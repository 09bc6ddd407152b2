"""From a request to a sampler's answers: which version is meant, what the policy reads, and who writes. Without Ray."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from learner.errors import InputError
from learner.records import Message, Module, Prompt, SamplingParameters
from services.chat.names import ModelName, UnknownModel, parse_model
from services.jobs.hub import fetch_small_files
from services.jobs.layout import JobPaths
from services.jobs.model_files import read_model
from services.jobs.paths import is_hub_name
from services.jobs.prepare import context_tokens
from services.jobs.records import JobRecord
from services.jobs.rendering import PromptRenderer
from services.jobs.spec import JobSpec
from services.jobs.store import JobStore, UnknownJob
from services.secrets import request_id
from workers.chat import ChatBegun, ChatPiece, ChatRequest, Verdict
from workers.versions.store import VersionStore

SEEDS = 1 << 31


@dataclass(frozen=True)
class ChatJob:
    """A job that is chatted with."""

    record: JobRecord
    spec: JobSpec

    @property
    def id(self) -> str:
        """Its id."""
        return self.record.id

    @property
    def paths(self) -> JobPaths:
        """Where its files lie."""
        return JobPaths(Path(self.record.home), self.record.id)


class Samplers(Protocol):
    """Who writes and compares; see :class:`services.chat.samplers.RaySamplers`."""

    async def run(self, stop: asyncio.Event) -> None:
        """Look after them until ``stop`` is set, and then end them."""

    def stream(self, job: ChatJob, request: ChatRequest) -> AsyncGenerator[ChatBegun | ChatPiece]:
        """Answer a request: first that it has begun, then the answers piece by piece."""

    async def compare(self, job: ChatJob, prompt: Prompt, answers: tuple[str, str]) -> Verdict:
        """What the job's scorer says of two answers."""


@dataclass(frozen=True)
class Wish:
    """How answers are asked for; None takes what the job itself samples with, and a seed at random."""

    answers: int = 1
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class Order:
    """A request that a sampler can take. ``model`` says exactly who answers."""

    job: ChatJob
    model: ModelName
    request: ChatRequest


class ChatDesk:
    """Takes requests for chat.

    Args:
        store: where jobs are.
        samplers: who writes.
    """

    def __init__(self, store: JobStore, samplers: Samplers) -> None:
        self.store, self.samplers = store, samplers

    def models(self, limit: int) -> list[tuple[ModelName, JobRecord]]:
        """What can be chatted with, of the newest ``limit`` jobs that have published a version."""
        found: list[tuple[ModelName, JobRecord]] = []
        for summary in self.store.list(limit=limit):
            if summary.current_version is None:
                continue
            job = self.store.get(summary.id)
            found += [(name, job) for name in _names(job)]
        return found

    def find(self, model: str) -> tuple[ChatJob, ModelName]:
        """Who is meant. A job stands for its newest version while it trains; once it has ended, for its best, else its newest.

        Raises:
            UnknownModel: there is no such job or version.
        """
        return self.resolve(parse_model(model))

    def resolve(self, name: ModelName) -> tuple[ChatJob, ModelName]:
        """As ``find``, of a name that was read already."""
        try:
            record = self.store.get(name.job_id)
        except UnknownJob:
            raise UnknownModel(f"model: there is no job {name.job_id!r}; GET /v1/models lists what there is") from None
        job = ChatJob(record, JobSpec.model_validate(record.spec))
        if name.base:
            return job, name
        if name.module not in job.spec.modules:
            raise UnknownModel(f"model: {name}: the job has no slow adapter (adapters.slow: off)")
        version = name.version if name.version is not None else _stands_for(record)
        if version is None:
            raise UnknownModel(f"model: {name}: the job has published no version yet; ask {name.job_id}:base")
        kept = _kept(record, name.module)
        if version not in kept:
            known = ", ".join(str(each) for each in kept) or "none"
            raise UnknownModel(
                f"model: {name}: version {version} of the {name.module} adapter is not on disk; those that are: {known}"
            )
        return job, ModelName(name.job_id, name.module, version)

    def order_chat(self, model: str | ModelName, messages: Sequence[Message], wish: Wish) -> tuple[Order, Prompt]:
        """A request to go on with a conversation. The job's own system prompt stands before messages that have none.

        Raises:
            UnknownModel: nobody of that name.
            InputError: the messages are no conversation that ends with the user, the chat template refuses them, or they are too long.
        """
        job, name = self.find(model) if isinstance(model, str) else self.resolve(model)
        system = job.spec.prompts.system
        if system is not None and messages[0].role != "system":
            messages = [Message.of("system", system), *messages]
        try:
            prompt = Prompt(id="chat", messages=tuple(messages))
        except ValidationError as error:
            raise InputError(f"messages: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
        (token_ids,) = _renderer(job).token_ids([prompt])
        return self._order(job, name, token_ids, wish, "messages"), prompt

    def order_text(self, model: str, prompt: str | Sequence[int], wish: Wish) -> Order:
        """A request to go on with a text, or with token ids, without a chat template.

        Raises:
            UnknownModel, InputError: as ``order_chat``.
        """
        job, name = self.find(model)
        if isinstance(prompt, str):
            token_ids: tuple[int, ...] = _renderer(job).plain_token_ids(prompt)
        else:
            token_ids, highest = tuple(prompt), _renderer(job).highest_token_id
            if not token_ids or min(token_ids) < 0 or max(token_ids) > highest:
                raise InputError(f"prompt: token ids must be one or more numbers from 0 to {highest}")
        return self._order(job, name, token_ids, wish, "prompt")

    def answer(self, order: Order) -> AsyncGenerator[ChatBegun | ChatPiece]:
        """Have an order written."""
        return self.samplers.stream(order.job, order.request)

    def _order(self, job: ChatJob, name: ModelName, token_ids: tuple[int, ...], wish: Wish, field: str) -> Order:
        own = job.spec.sampling
        context = _context(job)
        longest = own.max_tokens if wish.max_tokens is None else wish.max_tokens
        if context is not None:
            left = context - len(token_ids)
            if left < 1 or (wish.max_tokens is not None and wish.max_tokens > left):
                asked = "" if wish.max_tokens is None else f" and max_tokens asks for {wish.max_tokens} more"
                raise InputError(
                    f"{field}: {len(token_ids)} tokens{asked}, but the model's context is {context}; shorten one of them"
                )
            longest = min(longest, left)
        seed = secrets.randbelow(SEEDS) if wish.seed is None else wish.seed % SEEDS
        request = ChatRequest(
            id=f"chat-{secrets.token_hex(12)}",
            module=name.module,
            version=None if name.base else name.version,
            prompt_token_ids=token_ids,
            sampling=SamplingParameters(
                temperature=own.temperature if wish.temperature is None else wish.temperature,
                top_p=own.top_p if wish.top_p is None else wish.top_p,
                top_k=own.top_k,
                max_tokens=longest,
            ),
            answers=wish.answers,
            seed=seed,
            stop=wish.stop,
            logprobs=wish.logprobs,
            request_id=request_id.get(),
        )
        return Order(job, name, request)


def _stands_for(record: JobRecord) -> int | None:
    best = record.best_version if record.state.terminal else None
    return record.current_version if best is None else best


def _names(record: JobRecord) -> list[ModelName]:
    names = [ModelName(record.id), ModelName(record.id, base=True)]
    for module in JobSpec.model_validate(record.spec).modules:
        names += [ModelName(record.id, module)] if module == "slow" else []
        names += [ModelName(record.id, module, version) for version in _kept(record, module)]
    return names


def _kept(record: JobRecord, module: Module) -> list[int]:
    root = JobPaths(Path(record.home), record.id).versions
    return VersionStore(root, record.id).versions(module) if root.is_dir() else []


def _renderer(job: ChatJob) -> PromptRenderer:
    return _renderer_of(job.spec.policy.model, job.spec.policy.revision)


@lru_cache(maxsize=8)
def _renderer_of(model: str, revision: str | None) -> PromptRenderer:
    return PromptRenderer(_folder(model, revision))


def _context(job: ChatJob) -> int | None:
    policy = job.spec.policy
    if policy.max_context_tokens is not None:  # a validated job of a local model says it
        return policy.max_context_tokens
    return context_tokens(job.spec, read_model(_folder(policy.model, policy.revision)))


@lru_cache(maxsize=8)
def _folder(model: str, revision: str | None) -> Path:
    return fetch_small_files(model, revision, "policy.model") if is_hub_name(model) else Path(model)
