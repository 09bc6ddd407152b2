"""What a heartbeat saw of the workers, and how Prometheus reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from dashboard_world import observed
from job_world import running_job
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.api.telemetry import JobCollector
from services.jobs.state import JobState
from services.jobs.store import JobStore


def test_every_worker_has_its_own_series() -> None:
    metrics = observed("job-abcdef", groups=77)
    assert metrics["groups_consumed_total"] == 83
    assert metrics["sampler_state{worker=sampler-0}"] == 2 and metrics["sampler_version{worker=sampler-0}"] == 3
    assert metrics["sampler_state{worker=sampler-1}"] == 0 and "sampler_version{worker=sampler-1}" not in metrics
    assert metrics["vllm:generation_tokens_total{worker=sampler-0}"] == 77
    assert metrics["worker_restarts_total{stage=sampler,worker=sampler-1}"] == 1
    assert metrics["worker_restarts_total{stage=scorer,worker=scorer-0}"] == 2
    assert metrics["worker_busy_seconds_total{stage=learner,worker=learner}"] == 85
    assert not [name for name in metrics if "busy" in name and "queue" in name], "it only keeps data"


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(f"sqlite:///{tmp_path}/sparring.sqlite")


def told(store: JobStore) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample that Prometheus would read."""
    registry = CollectorRegistry()
    registry.register(JobCollector(store))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (each.name, tuple(sorted(each.labels.items()))): each.value for family in families for each in family.samples
    }


def test_prometheus_reads_counters_and_states_by_job_and_worker(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    store.add_metrics(job_id, {**observed(job_id, groups=77), "win_rate": 0.7, "kl_nats": 1.5})
    samples = told(store)
    job, worker = ("job", job_id), ("worker", "sampler-0")
    assert samples["sparring_groups_admitted_total", (job,)] == 87
    assert samples["sparring_groups_failed_total", (job, ("stage", "scorer"))] == 0
    assert samples["vllm:generation_tokens_total", (job, worker)] == 77
    assert samples["sparring_sync_bytes_total", (job, worker)] == 77
    states = {
        labels[1][1]: value
        for (name, labels), value in samples.items()
        if name == "sparring_sampler_in_state" and worker in labels
    }
    assert states == {"starting": 0, "stale": 0, "ready": 1, "fenced": 0, "dead": 0}
    text = generate_latest(_registry(store)).decode()
    assert "# TYPE sparring_groups_admitted_total counter" in text and "# TYPE sparring_kl_nats gauge" in text


def _registry(store: JobStore) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(JobCollector(store))
    return registry


def test_jobs_that_have_ended_leave_no_series(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    store.add_metrics(job_id, observed(job_id))
    store.transition(job_id, JobState.SUCCEEDED)
    assert not [labels for _, labels in told(store) if ("job", job_id) in labels]
