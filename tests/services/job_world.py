"""A store, jobs and a real service to test against, without Ray."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn

from learner.digests import adapter_digest, sha256
from learner.records import (
    Answer,
    FileEntry,
    FinishReason,
    Message,
    Prompt,
    SamplingParameters,
    ScoredGroup,
    ScorerIdentity,
    Ticket,
    VersionManifest,
)
from services.api.app import create_app
from services.chat.desk import Samplers
from services.jobs.layout import JobPaths
from services.jobs.load import parse_job
from services.jobs.spec import JobSpec
from services.jobs.state import JobState
from services.jobs.store import JobStore
from services.settings import Settings
from workers.replay.ledger import ReplayLedger
from workers.versions.store import VersionStore

SPEC: dict[str, Any] = {"name": "demo", "policy": {"model": "a/model"}, "prompts": {"source": "a/dataset"}}

LOGITS = ((0.0, 2.0, 4.0), (-2.0, 0.0, 2.0), (-4.0, -2.0, 0.0))
"""Answer 0 beats 1 beats 2, without position bias."""


def running_job(store: JobStore, home: Path, **more: Any) -> str:
    """A job at work."""
    job = store.create(JobSpec.model_validate(SPEC | more), home=home)
    store.transition(job.id, JobState.VALIDATING)
    store.transition(job.id, JobState.RUNNING)
    return job.id


DOMAINS = ("bills", "late fees/eu", "[red]$x^$")
"""Names as people may choose them: with spaces, slashes, markup of terminals, and formulas."""

DOMAIN_RATES = ((0.5, 0.5, 0.5), (0.8, 0.55, 0.4), (0.7, 0.9, 0.45))
"""Win rates of version 0, and of the versions at the ends of the first two domains, on each domain's held-out prompts."""


def job_with_domains(store: JobStore, home: Path, *, gold: bool = False) -> str:
    """A job at work that has learned two of its three domains, of two rounds each, and evaluates at their ends."""
    job_id = running_job(store, home, schedule={"rounds": 2, "domains": DOMAINS})
    for version in range(5):
        store.add_version(job_id, version, digest=f"d{version}", learner_step=version)
    for place, rates in enumerate(DOMAIN_RATES):
        metrics = {"win_rate": sum(rates) / 3, "win_rate_low": 0.1, "win_rate_high": 0.9}
        for domain, rate in zip(DOMAINS, rates, strict=True):
            for prefix, value in [("", rate)] + ([("gold_", 1 - rate)] if gold else []):
                metrics |= {
                    f"{prefix}win_rate/{domain}": value,
                    f"{prefix}win_rate_low/{domain}": value - 0.05,
                    f"{prefix}win_rate_high/{domain}": value + 0.05,
                }
        store.add_metrics(job_id, metrics, version=2 * place)
        store.set_version_metrics(job_id, 2 * place, metrics)
    return job_id


def fill_ledger(
    home: Path, job_id: str, groups: int, *, consumed: int, system: str | None = None, last_wins: bool = False
) -> None:
    """Scored groups of round 0, the first of them consumed into version 1; one more ticket is out. The first answers win, or the last."""
    path = JobPaths(home, job_id).replay_database
    path.parent.mkdir(parents=True, exist_ok=True)
    with ReplayLedger(path, max_groups=100, max_bytes=1 << 24) as ledger:
        tickets = [_ticket(job_id, index, system) for index in range(groups + 1)]
        ledger.admit(tickets)
        for ticket in tickets[:groups]:
            ledger.put(_group(ticket, -1.0 if last_wins else 1.0), None)
        assert len(ledger.lease(count=consumed, newest_version=0, max_staleness=0)) == consumed
        ledger.commit(1, 1)


def _ticket(job_id: str, index: int, system: str | None) -> Ticket:
    turns = [Message.of("user", f"Question {index}?")]
    if system is not None:
        turns.insert(0, Message.of("system", system))
    return Ticket(
        group_id=f"{job_id}/r0/{index}",
        round=0,
        index=index,
        version=0,
        seed=index,
        prompt=Prompt(id=f"p{index}", messages=tuple(turns)),
        prompt_token_ids=(1, 2, 3),
    )


def _group(ticket: Ticket, sign: float) -> ScoredGroup:
    answers = tuple(
        Answer(
            text=f"answer {place} to {ticket.index}",
            token_ids=(5, 6),
            logprobs=(-1.0, -0.5),
            finish_reason=FinishReason.STOP,
            module="fast",
            version=ticket.version,
            adapter_digest="d" * 64,
            sampling=SamplingParameters(temperature=1, top_p=1, top_k=0, max_tokens=8),
            seed=ticket.seed + place,
            sampler="sampler-0",
        )
        for place in range(3)
    )
    return ScoredGroup(
        group_id=ticket.group_id,
        round=0,
        index=ticket.index,
        version=ticket.version,
        prompt=ticket.prompt,
        prompt_token_ids=ticket.prompt_token_ids,
        answers=answers,
        scorer=ScorerIdentity(kind="function", name="test", version="1"),
        ordered_logits=tuple(tuple(sign * logit for logit in row) for row in LOGITS),
    )


def publish(home: Path, job_id: str, version: int, files: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """A version on disk, as the version store writes it. Returns its files."""
    files = files or {
        "adapter_config.json": b"{}",
        "adapter_model.safetensors": bytes(range(256)) * 20_000,
        "trainer.json": b"the trainer's own",
    }
    manifest = VersionManifest(
        job_id=job_id,
        module="fast",
        version=version,
        learner_step=0,
        digest=adapter_digest(files),
        files={name: FileEntry(sha256=sha256(content), bytes=len(content)) for name, content in files.items()},
        base_model="m",
        rank=1,
        created_at=datetime.now(UTC),
    )
    VersionStore(JobPaths(home, job_id).versions, job_id).publish(manifest, files)
    return files


@contextlib.contextmanager
def service(
    settings: Settings, store: JobStore, listening: socket.socket | None = None, samplers: Samplers | None = None
) -> Iterator[str]:
    """A real server in a thread; gives its URL. It takes every job whose keys are right."""
    listening = listening or socket.create_server(("127.0.0.1", 0))
    app = create_app(settings, store, admit=parse_job, samplers=samplers)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()
