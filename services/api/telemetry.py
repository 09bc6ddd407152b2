"""Prometheus metrics: requests, jobs by state, and the newest value of every metric of the jobs at work, labelled by job, worker and stage.

Metrics that end in ``_total`` are counters, all others gauges. Jobs that have ended are left out, so that labels stay few.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from services.jobs.state import ACTIVE
from services.jobs.store import JobStore
from workers.fleet import SamplerState
from workers.series import Series

VLLM_PREFIX = "vllm:"
"""vLLM's own metrics keep their names."""

Family = CounterMetricFamily | GaugeMetricFamily

_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_]")


class RequestTelemetry:
    """Counts requests and their time by route (the template, not the path: job ids would make endless series)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("method", "route")
        self._requests = Counter("sparring_http_requests", "Requests answered.", (*labels, "status"), registry=registry)
        self._seconds = Histogram(
            "sparring_http_request_seconds", "Time to answer, streams included.", labels, registry=registry
        )

    def record(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one request. ``status`` 0: the client left before there was an answer."""
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE") else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class JobCollector(Collector):
    """Reads the job store when Prometheus asks."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: the names depend on the jobs, and registering must not read the store."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Jobs by state; for jobs at work their progress, version and newest metrics."""
        states = GaugeMetricFamily("sparring_jobs", "Jobs by state.", labels=["state"])
        for state, count in self._store.counts_by_state().items():
            states.add_metric([state], count)
        yield states
        progress = GaugeMetricFamily("sparring_job_progress", "Share of the job that is done.", labels=["job"])
        version = GaugeMetricFamily("sparring_job_version", "Newest policy version.", labels=["job"])
        families: dict[tuple[str, tuple[str, ...]], Family] = {}
        for job in self._store.list(states=ACTIVE, limit=1000):
            progress.add_metric([job.id], job.progress)
            if job.current_version is not None:
                version.add_metric([job.id], job.current_version)
            for name, point in self._store.newest_metrics(job.id).items():
                if point.value is not None:
                    _add(families, job.id, Series.read(name), point.value)
        yield progress
        yield version
        yield from families.values()


def _add(families: dict[tuple[str, tuple[str, ...]], Family], job_id: str, series: Series, value: float) -> None:
    """Add one value to its family, which is made where it is the first."""
    metric, labels = series.metric, dict(series.labels)
    if metric == "sampler_state":  # one series for each state, of which one is 1, as OpenMetrics has it
        for place, state in enumerate(SamplerState):
            held = Series("sampler_in_state", {**labels, "state": state})
            _add(families, job_id, held, float(place == value))
        return
    names = ("job", *sorted(labels))
    key = (metric, names)
    if key not in families:
        families[key] = _family(metric, names)
    families[key].add_metric([job_id, *(labels[label] for label in names[1:])], value)


def _family(metric: str, labels: tuple[str, ...]) -> Family:
    name = metric if metric.startswith(VLLM_PREFIX) else f"sparring_{_NOT_IN_NAMES.sub('_', metric)}"
    if "domain" in labels:
        name += "_by_domain"
    help_text = f"Newest value of the metric {metric}."
    kind: type[Family] = CounterMetricFamily if metric.endswith("_total") else GaugeMetricFamily
    return kind(name, help_text, labels=labels)
