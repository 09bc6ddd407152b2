"""A job to chat with, and a stand-in for who writes, behind our own interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from job_world import publish
from small_models import job

from learner.records import FinishReason, Prompt, ScorerIdentity
from services.chat.desk import ChatJob
from services.jobs.load import parse_job
from services.jobs.state import JobState
from services.jobs.store import JobStore
from services.jobs.validate import validate_job
from workers.chat import ChatBegun, ChatPiece, ChatRequest, TokenLogprob, Verdict

RUBRIC = {"model": {"kind": "function", "name": "helpdesk-rubric"}}


def chat_job(store: JobStore, home: Path, world: Path) -> str:
    """A job at work whose versions 0 to 2 are on disk; version 1 is its best."""
    data = job(prompts={"system": "Be kind."}, sampling={"max_tokens": 40}, scorer=RUBRIC)
    made = store.create(validate_job(parse_job(data), world).spec, home=home)
    store.transition(made.id, JobState.VALIDATING)
    store.transition(made.id, JobState.RUNNING)
    for version in range(3):
        publish(home, made.id, version)
        store.add_version(made.id, version, digest=f"d{version}", learner_step=version)
    store.mark_best(made.id, 1)
    return made.id


class Scribe:
    """Writes "I am VERSION" in two pieces for each answer, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[ChatRequest] = []
        self.compared: list[tuple[str, str]] = []
        self.trouble: Exception | None = None
        self.breaks: Exception | None = None
        self.closed = 0

    async def run(self, stop: asyncio.Event) -> None:
        await stop.wait()

    async def stream(self, job: ChatJob, request: ChatRequest) -> AsyncGenerator[ChatBegun | ChatPiece]:
        self.asked.append(request)
        if self.trouble is not None:
            raise self.trouble
        digest = None if request.version is None else f"digest-{request.module}-{request.version}"
        try:
            yield ChatBegun(sampler="sampler-0", adapter_digest=digest)
            for answer in range(request.answers):
                yield ChatPiece(answer=answer, text="I am ", tokens=2, logprobs=self._told(request, "I am "))
            if self.breaks is not None:
                raise self.breaks
            for answer in range(request.answers):
                name = "base" if request.version is None else f"{request.version}"
                told = self._told(request, name)
                yield ChatPiece(answer=answer, text=name, tokens=2, finish_reason=FinishReason.STOP, logprobs=told)
        finally:
            self.closed += 1

    async def compare(self, job: ChatJob, prompt: Prompt, answers: tuple[str, str]) -> Verdict:
        self.compared.append(answers)
        return Verdict(
            scorer=ScorerIdentity(kind="pairrm", name="test", version="1"),
            temperature=1.0,
            ordered_logits=((0.0, 1.5), (-0.5, 0.0)),
            win_probability=0.7310585786,
            truncated_candidates=0,
        )

    @staticmethod
    def _told(request: ChatRequest, text: str) -> tuple[TokenLogprob, ...]:
        if request.logprobs is None:
            return ()
        return (TokenLogprob(token=text, logprob=-0.5, top=((text, -0.5), ("?", -1.5))[: request.logprobs]),)
