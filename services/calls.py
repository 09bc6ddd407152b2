"""The requests of the REST API and how their answers are read: what both clients of :mod:`services.client` send."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx
from pydantic import BaseModel

from services.api.models import AuditPage, DomainList, EventPage, JobPage, MetricSeries, SamplePage, VersionList
from services.jobs.logfiles import Level, LogPage
from services.jobs.records import (
    FeedbackCounts,
    JobRecord,
    MetricPoint,
    Preference,
    PreferencesReceipt,
    VersionRecord,
)
from services.jobs.state import JobState
from services.jobs.trace import TracePage

Result = TypeVar("Result")
Parsed = TypeVar("Parsed", bound=BaseModel)


@dataclass(frozen=True)
class Call(Generic[Result]):
    """One request, and how its answer is read. ``read`` raises ValueError where the answer is not Sparring's."""

    method: str
    address: str
    read: Callable[[httpx.Response], Result]
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


def submit(spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Call[JobRecord]:
    """Queue a job.

    Raises:
        ApiError: the job is refused; ``errors`` names the fields.
    """
    return Call("POST", "/v1/jobs", _as(JobRecord), json=dict(spec), headers=_key(idempotency_key))


def get(job_id: str) -> Call[JobRecord]:
    """One job."""
    return Call("GET", f"/v1/jobs/{job_id}", _as(JobRecord))


def list_jobs(
    *,
    states: Sequence[JobState] = (),
    labels: Mapping[str, str] | None = None,
    limit: int = 50,
    after: str | None = None,
) -> Call[JobPage]:
    """A page of jobs, newest first; ``after`` is the ``next`` of the page before, ``labels`` is what the jobs' metadata must have."""
    params = {"state": [str(state) for state in states], "limit": limit, "after": after}
    wanted = {f"metadata[{name}]": value for name, value in (labels or {}).items()}
    return Call("GET", "/v1/jobs", _as(JobPage), params=_given(params) | wanted)


def cancel(job_id: str, *, idempotency_key: str | None = None) -> Call[JobRecord]:
    """Ask a job to stop."""
    return Call("POST", f"/v1/jobs/{job_id}/cancel", _as(JobRecord), headers=_key(idempotency_key))


def pause(job_id: str, *, idempotency_key: str | None = None) -> Call[JobRecord]:
    """Ask a job to hold where it is."""
    return Call("POST", f"/v1/jobs/{job_id}/pause", _as(JobRecord), headers=_key(idempotency_key))


def resume(job_id: str, *, idempotency_key: str | None = None) -> Call[JobRecord]:
    """Let a paused job go on; queue a failed or cancelled one again."""
    return Call("POST", f"/v1/jobs/{job_id}/resume", _as(JobRecord), headers=_key(idempotency_key))


def delete(job_id: str, *, idempotency_key: str | None = None) -> Call[None]:
    """Delete a job that has ended, with everything that it made.

    Raises:
        ApiError: the job has not ended (status 409).
    """
    return Call("DELETE", f"/v1/jobs/{job_id}", _nothing, headers=_key(idempotency_key))


def events_page(job_id: str, *, after: int = 0, limit: int = 500) -> Call[EventPage]:
    """A page of events, oldest first."""
    return Call("GET", f"/v1/jobs/{job_id}/events", _as(EventPage), params={"after": after, "limit": limit})


def metrics(
    job_id: str, names: Sequence[str] = (), *, max_points: int = 500
) -> Call[dict[str, tuple[MetricPoint, ...]]]:
    """The job's metrics over time, by name."""
    params: dict[str, Any] = {"name": list(names), "max_points": max_points}
    return Call("GET", f"/v1/jobs/{job_id}/metrics", lambda answer: _as(MetricSeries)(answer).series, params=params)


def samples(
    job_id: str,
    *,
    state: str | None = None,
    version: int | None = None,
    limit: int = 20,
    after: str | None = None,
) -> Call[SamplePage]:
    """A page of samples, in order of round and index; ``after`` is the ``next`` of the page before."""
    params = _given({"state": state, "version": version, "limit": limit, "after": after})
    return Call("GET", f"/v1/jobs/{job_id}/samples", _as(SamplePage), params=params)


def send_preferences(
    job_id: str, preferences: Sequence[Preference | Mapping[str, Any]], *, idempotency_key: str | None = None
) -> Call[PreferencesReceipt]:
    """Let a running job learn from what people preferred. The same id again is stored once.

    Raises:
        ApiError: the job takes none (status 409), or one is not right (422) and none is stored; ``errors`` names them.
    """
    body = [each.model_dump(mode="json") if isinstance(each, Preference) else dict(each) for each in preferences]
    address = f"/v1/jobs/{job_id}/preferences"
    return Call("POST", address, _as(PreferencesReceipt), json=body, headers=_key(idempotency_key))


def feedback(job_id: str) -> Call[FeedbackCounts]:
    """What became of the preferences that were sent to a job."""
    return Call("GET", f"/v1/jobs/{job_id}/preferences", _as(FeedbackCounts))


def versions(job_id: str) -> Call[tuple[VersionRecord, ...]]:
    """The job's versions, oldest first."""
    return Call("GET", f"/v1/jobs/{job_id}/versions", lambda answer: _as(VersionList)(answer).versions)


def domains(job_id: str) -> Call[DomainList]:
    """The domains that a job learns one after another, and the win rates on each after each; none where it mixes all prompts."""
    return Call("GET", f"/v1/jobs/{job_id}/domains", _as(DomainList))


def audit(
    *, job_id: str | None = None, key_id: str | None = None, limit: int = 50, after: int | None = None
) -> Call[AuditPage]:
    """A page of the audit, newest first; ``after`` is the ``next`` of the page before. Needs a key of the scope admin."""
    wanted = {"job_id": job_id, "key_id": key_id, "limit": limit, "after": after}
    return Call("GET", "/v1/audit", _as(AuditPage), params=_given(wanted))


def logs(job_id: str, *, lines: int = 100, file: str | None = None) -> Call[str]:
    """The ends of the workers' log files."""
    params = _given({"lines": lines, "file": file})
    return Call("GET", f"/v1/jobs/{job_id}/logs", _text, params=params, headers={"Accept": "text/plain"})


def log_records(job_id: str, *, after: str | None = None, limit: int = 500, level: Level = "debug") -> Call[LogPage]:
    """A page of the records that the workers logged, oldest first."""
    params = _given({"after": after, "limit": limit, "level": level})
    return Call("GET", f"/v1/jobs/{job_id}/logs", _as(LogPage), params=params)


def trace(job_id: str, *, limit: int = 200, after: str | None = None) -> Call[TracePage]:
    """A page of groups' ways through the stages, as spans."""
    return Call("GET", f"/v1/jobs/{job_id}/trace", _as(TracePage), params=_given({"limit": limit, "after": after}))


def _as(model: type[Parsed]) -> Callable[[httpx.Response], Parsed]:
    return lambda answer: model.model_validate_json(answer.content)


def _text(answer: httpx.Response) -> str:
    return answer.text


def _nothing(answer: httpx.Response) -> None:
    if answer.content:
        raise ValueError("an answer where none was expected")


def _key(idempotency_key: str | None) -> dict[str, str]:
    return {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
