"""What an open page knows of a job, brought up to date by asking the store for what is new. Knows nothing of browsers."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import JsonValue

from services.dashboard.fleet import FleetView
from services.jobs.records import JobEvent, JobRecord, MetricPoint, VersionRecord
from services.jobs.store import JobStore

Part = Literal["job", "events", "versions", "metrics"]
"""What can have changed."""

POINTS = 300
"""Points of a series at which it is read anew; a new page begins with half as many at most. More than a chart's pixels can show is waste."""

EVENTS = 500
"""Newest events that are kept."""

PAGE = 1000


class LiveJob:
    """One job, as far as it has been looked at.

    Attributes:
        job: as it stood at the last look.
        versions: oldest first.
        series: metrics by name, oldest first, thinned.
        events: the newest, oldest first.
        examples: answers before and after, by version.
        fleet: samplers and what happened to them.
    """

    def __init__(self, store: JobStore, job_id: str) -> None:
        """Look for the first time.

        Raises:
            UnknownJob: there is none of that id.
        """
        self._store = store
        self.job: JobRecord = store.get(job_id)
        self.versions: Sequence[VersionRecord] = []
        self.series: dict[str, list[MetricPoint]] = {}
        self.events: deque[JobEvent] = deque(maxlen=EVENTS)
        self.examples: dict[int, Sequence[Mapping[str, JsonValue]]] = {}
        self.fleet = FleetView()
        self._seq = 0
        self._number = 0
        self._quiet = False
        self._read_events()
        self._read_all_metrics()
        self.versions = store.versions(job_id)

    def look(self) -> frozenset[Part]:
        """Ask for what is new; says what has changed. A job that has ended costs one query.

        Raises:
            UnknownJob: it was deleted.
        """
        changed: set[Part] = set()
        before, self.job = self.job, self._store.get(self.job.id)
        if self.job != before:
            changed.add("job")
        elif self.job.state.terminal and self._quiet:  # nothing is written any more until somebody resumes it
            return frozenset()
        events = self._read_events()
        if events:
            changed.add("events")
        if any(event.kind in ("state", "learner_interrupted") for event in events):
            self._read_all_metrics()  # a restart takes back what was measured after its version
            changed.add("metrics")
        elif self._read_new_metrics():
            changed.add("metrics")
        if any(event.kind in ("version_published", "evaluated", "combined") for event in events) or (
            before.best_version != self.job.best_version
        ):
            self.versions = self._store.versions(self.job.id)
            changed.add("versions")
        self._quiet = not changed
        return frozenset(changed)

    def newest(self, name: str) -> float | None:
        """The newest value of a metric."""
        points = self.series.get(name)
        return points[-1].value if points else None

    def _read_events(self) -> list[JobEvent]:
        found: list[JobEvent] = []
        while page := self._store.events_after(self.job.id, self._seq, PAGE):
            found += page
            self._seq = page[-1].seq
        for event in found:
            self.fleet.add(event)
            self._keep_examples(event)
        self.events.extend(found)
        return found

    def _keep_examples(self, event: JobEvent) -> None:
        version, shown = event.data.get("version"), event.data.get("examples")
        if event.kind == "evaluated" and isinstance(version, int) and isinstance(shown, list):
            self.examples[version] = [example for example in shown if isinstance(example, dict)]

    def _read_all_metrics(self) -> None:
        self._number = self._store.metrics_mark()
        self.series = self._store.series(self.job.id, max_points=POINTS // 2)

    def _read_new_metrics(self) -> bool:
        new, self._number = self._store.metrics_after(self.job.id, self._number)
        for name, points in new.items():
            known = self.series.setdefault(name, [])
            # what was written while the series were first read may come twice
            known += [point for point in points if not known or point.time > known[-1].time]
        if any(len(points) > POINTS for points in self.series.values()):
            self._read_all_metrics()
        return bool(new)
