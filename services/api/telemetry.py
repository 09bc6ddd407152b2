"""Prometheus metrics: requests, jobs by state, and the newest value of every metric of the jobs at work."""

from __future__ import annotations

import re
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from services.jobs.state import ACTIVE
from services.jobs.store import JobStore

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
        families: dict[str, GaugeMetricFamily] = {}
        for job in self._store.list(states=ACTIVE, limit=1000):
            progress.add_metric([job.id], job.progress)
            if job.current_version is not None:
                version.add_metric([job.id], job.current_version)
            for name, point in self._store.newest_metrics(job.id).items():
                if point.value is None:
                    continue
                metric, _, domain = name.partition("/")
                key = f"sparring_{_NOT_IN_NAMES.sub('_', metric)}{'_by_domain' if domain else ''}"
                labels = ["job", "domain"] if domain else ["job"]
                family = families.setdefault(
                    key, GaugeMetricFamily(key, f"Newest value of the metric {metric}.", labels=labels)
                )
                family.add_metric([job.id, domain] if domain else [job.id], point.value)
        yield progress
        yield version
        yield from families.values()
