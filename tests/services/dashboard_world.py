"""A store as the dashboard meets it: jobs in several states, one of them at work with curves, events, versions and samples."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from job_world import SPEC, fill_ledger, job_with_domains, publish, running_job

from learner.digests import sha256
from services.jobs.observation import job_metrics
from services.jobs.records import JobError
from services.jobs.spec import JobSpec
from services.jobs.state import JobState
from services.jobs.store import JobStore
from workers.config import FleetConfig
from workers.fleet import Fleet
from workers.messages import SamplerStatus
from workers.replay.rows import LedgerCounts
from workers.sampler.vllm_metrics import SAMPLES

VERSIONS = 6
STEPS = 12
"""Optimizer steps of a version."""

QUESTIONS = (
    ("How do I reset my password?", "No.", "Choose Forgot password, and follow the link in the mail."),
    ("Are you open on Sunday?", "Perhaps, I do not know.", "Yes, from ten until four."),
    ("Where is my parcel?", "Parcels are parcels.", "Open Orders and choose Track; it shows where the parcel is."),
)
"""Prompts with answers before and after."""

MARKUP = "<img src=x onerror=alert(1)> {{ 7 * 7 }} <b>bold</b>"
"""What a model may write. A page shows it as text."""


def ticking(start: datetime) -> Callable[[], datetime]:
    """A clock that goes on by some seconds whenever it is asked."""
    ticks = count()
    return lambda: start + timedelta(seconds=3 * next(ticks))


def fill(url: str, home: Path) -> dict[str, str]:
    """Make the jobs; their ids by what they are: ``live``, ``domains``, ``done``, ``failed``, ``paused``, ``queued``."""
    store = JobStore(url, clock=ticking(datetime.now(UTC) - timedelta(hours=1)))
    ids = {"domains": job_with_domains(store, home, gold=True)}
    ids["done"] = running_job(store, home, name="finished")
    store.transition(ids["done"], JobState.SUCCEEDED)
    ids["failed"] = running_job(store, home, name="broken", metadata={"team": "support"})
    error = JobError(code="stalled", message="nothing moved for 600 s (resources.fleet.progress_timeout_seconds)")
    store.transition(ids["failed"], JobState.FAILED, error=error)
    ids["paused"] = running_job(store, home, name="resting", feedback={"share": 0.0})
    store.transition(ids["paused"], JobState.PAUSED)
    ids["queued"] = store.create(JobSpec.model_validate(SPEC | {"name": "waiting"}), home=home).id
    ids["live"] = live_job(store, home)
    store.close()
    return ids


def live_job(store: JobStore, home: Path) -> str:
    """A job at work, with everything that a page can show."""
    job_id = running_job(
        store, home, name="help-desk", feedback={"share": 0.25}, evaluation={"prompts": {"source": "held-out"}}
    )
    draw = random.Random(7)
    for version in range(VERSIONS):
        digest = sha256(f"version {version}".encode())
        store.add_version(job_id, version, digest=digest, learner_step=version * STEPS)
        store.append_event(
            job_id, "version_published", f"version {version} at step {version * STEPS}", {"version": version}
        )
        for sampler in ("sampler-0", "sampler-1"):
            proof = {"sampler": sampler, "module": "fast", "version": version, "digest": digest, "canary": "passed"}
            store.append_event(job_id, "version_proved", f"{sampler} proved version {version}", proof)
        evaluated(store, job_id, version, draw)
        if version < VERSIONS - 1:
            learned(store, job_id, version, draw)
        store.add_metrics(job_id, observed(job_id, 8 * version), version=version)
    for kind, message in (("worker_died", "sampler-1 died: killed"), ("worker_restarted", "sampler-1 is up again")):
        store.append_event(job_id, kind, message, {"worker": "sampler-1", "role": "sampler"})
    proof = {"sampler": "sampler-1", "module": "fast", "version": VERSIONS - 1, "digest": digest, "canary": "passed"}
    store.append_event(job_id, "version_proved", f"sampler-1 proved version {VERSIONS - 1}", proof)
    store.append_event(job_id, "warning", MARKUP)
    store.set_progress(job_id, 0.62, "sampling")
    publish(home, job_id, VERSIONS - 1)
    fill_ledger(home, job_id, 30, consumed=12, system=MARKUP)
    return job_id


def evaluated(store: JobStore, job_id: str, version: int, draw: random.Random) -> None:
    """Write down a version's evaluation, as the controller does."""
    rate = 0.5 + 0.3 * (1 - math.exp(-version / 2)) + draw.uniform(-0.01, 0.01)
    metrics = {
        "win_rate": rate,
        "win_rate_low": rate - 0.05,
        "win_rate_high": rate + 0.05,
        "length_controlled_win_rate": rate - 0.03,
        "length_controlled_win_rate_low": rate - 0.09,
        "length_controlled_win_rate_high": rate + 0.03,
        "tie_rate": 0.06 + 0.01 * version,
        "kl_nats": 0.4 * version**1.2,
        "entropy_nats_per_token": 2.1 - 0.12 * version,
        "answer_length_tokens": 31 + 2.5 * version,
        "truncated_share": 0.08 - 0.01 * version,
        "position_bias": 0.21 - 0.01 * version,
        "tie_share": 0.02 + 0.01 * version,
        "identical_share": 0.01 * version,
        "intransitive_share": 0.03 + draw.uniform(0, 0.01),
        "truncated_candidate_share": 0.0,
        "evaluation_seconds": 6.0,
        "sync_seconds": 1.2,
        "pairs_per_second": 3.5 + draw.uniform(-0.4, 0.4),
    }
    if version:
        metrics |= {"sampling_seconds": 21 + draw.uniform(-2, 2), "learning_seconds": 12.0, "publish_seconds": 0.6}
    store.add_metrics(job_id, metrics, version=version)
    store.set_version_metrics(job_id, version, metrics)
    examples = [
        {
            "prompt": {"id": prompt, "messages": [{"role": "user", "content": [{"type": "text", "text": prompt}]}]},
            "before": before,
            "after": f"{after} {MARKUP}" if place == 0 else after,
        }
        for place, (prompt, before, after) in enumerate(QUESTIONS)
    ]
    said = f"version {version}: win rate {rate:.1%} against version 0"
    store.append_event(job_id, "evaluated", said, {"version": version, "examples": examples})
    store.mark_best(job_id, version)


def learned(store: JobStore, job_id: str, version: int, draw: random.Random) -> None:
    """Write down the optimizer steps of a version, and what the heartbeat saw meanwhile."""
    for step in range(version * STEPS + 1, (version + 1) * STEPS + 1):
        noise = draw.uniform(-0.03, 0.03)
        values = {"loss": 0.62 * math.exp(-step / 40) + noise, "accuracy": 0.5 + 0.004 * step + noise, "pairs": 8.0}
        store.add_metrics(job_id, values, version=version, learner_step=step)
    for beat in range(8):
        seen = {
            "samplers_ready": 2.0,
            "sampler_restarts_total": 0.0,
            "sample_tokens_per_second": 410 + draw.uniform(-60, 60),
            "groups_in_flight": float(8 - beat),
            "sampler_fenced_total": 0.0,
            "proofs_failed_total": 0.0,
            "queue_granted_groups": float(8 - beat),
            "queue_ready_groups": float(beat),
            "queue_leased_groups": float(beat // 2),
            "queue_waiting_producers": 0.0,
            "staleness_mean": draw.uniform(0, 0.4),
            "staleness_max": 1.0,
        }
        store.add_metrics(job_id, seen, version=version)


ROLES = {"queue": "queue", "scorer-0": "scorer", "learner": "learner", "sampler-0": "sampler", "sampler-1": "sampler"}
"""A job's workers."""


def observed(job_id: str, groups: int = 0) -> dict[str, float]:
    """What a heartbeat saw of every worker after so many groups: one sampler is ready, one was restarted and says nothing yet."""
    members = [SimpleNamespace(name=f"{job_id}-{short}", role=role) for short, role in ROLES.items()]
    crew: Any = SimpleNamespace(job_id=job_id, members=members)
    fleet = Fleet(FleetConfig(), (f"{job_id}-sampler-0", f"{job_id}-sampler-1"))
    for name in fleet.names:
        fleet.started(name)
    fleet.proved(f"{job_id}-sampler-0", 3)
    fleet.died(f"{job_id}-sampler-1")
    told = dict.fromkeys(("syncs_total", "sync_seconds_total", "sync_bytes_total"), float(groups))
    told |= dict.fromkeys(sorted(SAMPLES), float(groups)) | {"vllm:kv_cache_usage_perc": 0.25}
    status = SamplerStatus(sampler=f"{job_id}-sampler-0", in_flight=(), failures=(), metrics=told)
    activity = {"worker_busy_seconds_total": 8.0 + groups, "worker_waiting_seconds_total": 2.0 + groups}
    return job_metrics(
        crew,
        fleet,
        LedgerCounts(admitted=groups + 10, consumed=groups + 6, expired=1, ready=3),
        [status],
        dict.fromkeys((member.name for member in members), activity),
        {f"{job_id}-scorer-0": 2},
    )
