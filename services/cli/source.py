"""Where the commands about jobs look: at a service, or at the store on this machine. The only place that decides it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol

import typer

from services.jobs.layout import JobPaths
from services.jobs.logfiles import Level, LogPage, records, tails
from services.jobs.records import (
    FeedbackCounts,
    JobEvent,
    JobRecord,
    JobSummary,
    MetricPoint,
    Preference,
    PreferencesReceipt,
    VersionRecord,
)
from services.jobs.state import JobState, RequestedAction
from services.jobs.trace import TracePage, trace_page
from services.settings import Settings

CONNECT_SECONDS = 0.5
"""Longest wait for something that listens on the default address."""

ANSWER_SECONDS = 5.0
"""Longest wait for its answer: a busy service is not taken for somebody else."""

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="The service to ask (SPARRING_URL). Without it: one on this machine's default address, else the store here.",
        show_default=False,
    ),
]

ServiceUrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="The service (SPARRING_URL). Default: this machine's, http://127.0.0.1:8700 unless SPARRING_HOST or SPARRING_PORT say otherwise.",
        show_default=False,
    ),
]


class Jobs(Protocol):
    """What the commands read of jobs and ask of them, wherever they are."""

    def get(self, job_id: str) -> JobRecord:
        """One job."""

    def list(self, *, states: Sequence[JobState], labels: Mapping[str, str], limit: int) -> Sequence[JobSummary]:
        """Jobs, newest first: those in one of the states that have all of the labels."""

    def events_after(self, job_id: str, seq: int = 0, limit: int = 500) -> Sequence[JobEvent]:
        """Events that follow number ``seq``."""

    def newest_metrics(self, job_id: str) -> dict[str, MetricPoint]:
        """The newest point of every metric."""

    def versions(self, job_id: str) -> Sequence[VersionRecord]:
        """Versions, oldest first."""

    def cancel(self, job_id: str) -> JobRecord:
        """Ask a job to stop."""

    def pause(self, job_id: str) -> JobRecord:
        """Ask a job to hold where it is."""

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with everything that it made."""

    def send_preferences(self, job_id: str, preferences: Sequence[Preference]) -> PreferencesReceipt:
        """Let a job learn from what people preferred."""

    def feedback(self, job_id: str) -> FeedbackCounts:
        """What became of a job's preferences."""

    def logs(self, job_id: str, lines: int, file: str | None) -> str:
        """The ends of the workers' logs."""

    def trace(self, job_id: str, after: str | None) -> TracePage:
        """A page of groups' ways through the stages."""

    def log_records(self, job_id: str, after: str | None, level: Level) -> LogPage:
        """A page of the records that the workers logged, oldest first."""


class LocalJobs:
    """The store on this machine, which also has the jobs of ``sparring run``."""

    def __init__(self, settings: Settings) -> None:
        from services.jobs.foreground import fail_abandoned
        from services.jobs.store import JobStore

        self._store = JobStore(settings.store_url)
        fail_abandoned(self._store)

    def get(self, job_id: str) -> JobRecord:
        """One job."""
        return self._store.get(job_id)

    def list(self, *, states: Sequence[JobState], labels: Mapping[str, str], limit: int) -> Sequence[JobSummary]:
        """Jobs, newest first: those in one of the states that have all of the labels."""
        return self._store.list(states=states or None, labels=labels, limit=limit)

    def events_after(self, job_id: str, seq: int = 0, limit: int = 500) -> Sequence[JobEvent]:
        """Events that follow number ``seq``."""
        return self._store.events_after(job_id, seq, limit)

    def newest_metrics(self, job_id: str) -> dict[str, MetricPoint]:
        """The newest point of every metric."""
        return self._store.newest_metrics(job_id)

    def versions(self, job_id: str) -> Sequence[VersionRecord]:
        """Versions, oldest first."""
        return self._store.versions(job_id)

    def cancel(self, job_id: str) -> JobRecord:
        """Ask a job to stop."""
        return self._store.request(job_id, RequestedAction.CANCEL)

    def pause(self, job_id: str) -> JobRecord:
        """Ask a job to hold where it is."""
        return self._store.request(job_id, RequestedAction.PAUSE)

    def go_on(self, job_id: str) -> JobRecord:
        """Let a paused job go on, wherever it runs.

        Raises:
            StateConflict: it is not paused.
        """
        return self._store.request(job_id, RequestedAction.CONTINUE)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with everything that it made."""
        self._store.delete(job_id)

    def send_preferences(self, job_id: str, preferences: Sequence[Preference]) -> PreferencesReceipt:
        """Let a job learn from what people preferred."""
        from services.jobs.feedback import take_in

        return take_in(self._store, job_id, [each.model_dump(mode="json") for each in preferences])

    def feedback(self, job_id: str) -> FeedbackCounts:
        """What became of a job's preferences."""
        from services.jobs.feedback import count_feedback

        return count_feedback(self._store, job_id)

    def logs(self, job_id: str, lines: int, file: str | None) -> str:
        """The ends of the workers' logs."""
        return tails(JobPaths(Path(self.get(job_id).home), job_id).logs, lines, file)

    def trace(self, job_id: str, after: str | None) -> TracePage:
        """A page of groups' ways through the stages."""
        return trace_page(JobPaths(Path(self.get(job_id).home), job_id).replay_database, after=after)

    def log_records(self, job_id: str, after: str | None, level: Level) -> LogPage:
        """A page of the records that the workers logged, oldest first."""
        return records(JobPaths(Path(self.get(job_id).home), job_id).logs, after=after, level=level)


class RemoteJobs:
    """A service, through the client."""

    def __init__(self, url: str, api_key: str | None, timeout_seconds: float = 30.0) -> None:
        from services.client import Client

        self.client = Client(url, api_key=api_key, timeout_seconds=timeout_seconds)

    def get(self, job_id: str) -> JobRecord:
        """One job."""
        return self.client.get(job_id)

    def list(self, *, states: Sequence[JobState], labels: Mapping[str, str], limit: int) -> Sequence[JobSummary]:
        """Jobs, newest first: those in one of the states that have all of the labels."""
        found: list[JobSummary] = []
        after: str | None = None
        while len(found) < limit:
            page = self.client.list(states=states, labels=labels, limit=min(limit - len(found), 200), after=after)
            found.extend(page.jobs)
            after = page.next
            if after is None:
                break
        return found

    def events_after(self, job_id: str, seq: int = 0, limit: int = 500) -> Sequence[JobEvent]:
        """Events that follow number ``seq``."""
        return self.client.events_page(job_id, after=seq, limit=limit).events

    def newest_metrics(self, job_id: str) -> dict[str, MetricPoint]:
        """The newest point of every metric."""
        return {name: points[-1] for name, points in self.client.metrics(job_id, max_points=1).items() if points}

    def versions(self, job_id: str) -> Sequence[VersionRecord]:
        """Versions, oldest first."""
        return self.client.versions(job_id)

    def cancel(self, job_id: str) -> JobRecord:
        """Ask a job to stop."""
        return self.client.cancel(job_id)

    def pause(self, job_id: str) -> JobRecord:
        """Ask a job to hold where it is."""
        return self.client.pause(job_id)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with everything that it made."""
        self.client.delete(job_id)

    def send_preferences(self, job_id: str, preferences: Sequence[Preference]) -> PreferencesReceipt:
        """Let a job learn from what people preferred."""
        return self.client.send_preferences(job_id, preferences)

    def feedback(self, job_id: str) -> FeedbackCounts:
        """What became of a job's preferences."""
        return self.client.feedback(job_id)

    def logs(self, job_id: str, lines: int, file: str | None) -> str:
        """The ends of the workers' logs."""
        return self.client.logs(job_id, lines=lines, file=file)

    def trace(self, job_id: str, after: str | None) -> TracePage:
        """A page of groups' ways through the stages."""
        return self.client.trace(job_id, after=after)

    def log_records(self, job_id: str, after: str | None, level: Level) -> LogPage:
        """A page of the records that the workers logged, oldest first."""
        return self.client.log_records(job_id, after=after, level=level)


def open_jobs(url: str | None, settings: Settings) -> LocalJobs | RemoteJobs:
    """The service at ``url`` or SPARRING_URL; else one that answers on this machine's default address; else the store here."""
    api_key = settings.api_key.get_secret_value() if settings.api_key else None
    named = url or settings.url
    if named:
        return RemoteJobs(named, api_key)
    if settings.port and _listens(settings) and _is_ours(settings):
        return RemoteJobs(settings.local_url, api_key)
    return LocalJobs(settings)


def open_service(url: str | None, settings: Settings) -> RemoteJobs:
    """The service, for what only a service can do; that nothing answers shows with the first request."""
    found = open_jobs(url, settings)
    if isinstance(found, RemoteJobs):
        return found
    return RemoteJobs(settings.local_url, None)


def _listens(settings: Settings) -> bool:
    # before the client is imported: most of the time nothing is there, and `sparring list` stays quick
    import socket

    host = settings.local_url.removeprefix("http://").rpartition(":")[0].strip("[]")
    try:
        socket.create_connection((host, settings.port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _is_ours(settings: Settings) -> bool:
    from services.client import Client

    with Client(settings.local_url, timeout_seconds=ANSWER_SECONDS) as probe:
        return probe.answers()
