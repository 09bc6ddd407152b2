"""A typed Python client for the REST API.

with Client("http://127.0.0.1:8700") as client:
    job = client.submit({"policy": {"model": "..."}, "prompts": {"source": "..."}})
    for event in client.events(job.id):
        print(event.message)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
from httpx_sse import connect_sse
from pydantic import BaseModel

from learner.errors import InputError
from services.api.models import AuditPage, DomainList, EventPage, JobPage, MetricSeries, SamplePage, VersionList
from services.jobs.records import (
    FeedbackCounts,
    JobEvent,
    JobRecord,
    MetricPoint,
    Preference,
    PreferencesReceipt,
    VersionRecord,
)
from services.jobs.state import TERMINAL, JobState

Parsed = TypeVar("Parsed", bound=BaseModel)

STREAM_READ_SECONDS = 60.0
"""A stream says something at least every 15 seconds; silence for this long means that it is dead."""


class ApiError(InputError):
    """The service refused. ``status`` is the HTTP status, ``code`` the problem's word for programs."""

    def __init__(self, message: str, *, status: int, code: str, errors: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.status, self.code, self.errors = status, code, tuple(errors)


class Client:
    """Talks to a service.

    Args:
        url: where it answers.
        api_key: its key, where it has one.
        timeout_seconds: longest wait for an answer.
        reconnect_seconds: how long `events` tries to reach a service again that went away.
        transport: in place of the network, for tests.
        sleep: waits between tries.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 30.0,
        reconnect_seconds: float = 60.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._reconnect_seconds = reconnect_seconds
        self._sleep = sleep
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_seconds, transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> JobRecord:
        """Queue a job.

        Raises:
            ApiError: the job is refused; ``errors`` names the fields.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._parsed(JobRecord, "POST", "/v1/jobs", json=dict(spec), headers=headers)

    def get(self, job_id: str) -> JobRecord:
        """One job."""
        return self._parsed(JobRecord, "GET", f"/v1/jobs/{job_id}")

    def list(self, *, states: Sequence[JobState] = (), limit: int = 50, after: str | None = None) -> JobPage:
        """A page of jobs, newest first; ``after`` is the ``next`` of the page before."""
        params: dict[str, Any] = {"state": [str(state) for state in states], "limit": limit}
        return self._parsed(JobPage, "GET", "/v1/jobs", params=params | ({"after": after} if after else {}))

    def cancel(self, job_id: str) -> JobRecord:
        """Ask a job to stop."""
        return self._parsed(JobRecord, "POST", f"/v1/jobs/{job_id}/cancel")

    def resume(self, job_id: str) -> JobRecord:
        """Queue a failed or cancelled job again."""
        return self._parsed(JobRecord, "POST", f"/v1/jobs/{job_id}/resume")

    def events_page(self, job_id: str, *, after: int = 0, limit: int = 500) -> EventPage:
        """A page of events, oldest first."""
        return self._parsed(EventPage, "GET", f"/v1/jobs/{job_id}/events", params={"after": after, "limit": limit})

    def events(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """The job's events as they happen, until it has ended. A broken stream is taken up where it broke.

        Raises:
            ApiError: the service refused, for example because there is no such job.
            InputError: the service could not be reached again in time.
        """
        deadline = time.monotonic() + self._reconnect_seconds
        wait = 0.2
        while True:
            try:
                for event in self._stream(job_id, after):
                    after = event.seq
                    deadline, wait = time.monotonic() + self._reconnect_seconds, 0.2
                    yield event
                if self.get(job_id).state in TERMINAL and not self.events_page(job_id, after=after, limit=1).events:
                    return
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise self._unreachable() from None
            except ServiceAbsent:
                if time.monotonic() > deadline:
                    raise
            self._sleep(wait)
            wait = min(wait * 2, 5.0)

    def metrics(
        self, job_id: str, names: Sequence[str] = (), *, max_points: int = 500
    ) -> dict[str, tuple[MetricPoint, ...]]:
        """The job's metrics over time, by name."""
        params: dict[str, Any] = {"name": list(names), "max_points": max_points}
        return self._parsed(MetricSeries, "GET", f"/v1/jobs/{job_id}/metrics", params=params).series

    def samples(
        self,
        job_id: str,
        *,
        state: str | None = None,
        version: int | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> SamplePage:
        """A page of samples, in order of round and index; ``after`` is the ``next`` of the page before."""
        wanted = {"state": state, "version": version, "limit": limit, "after": after}
        params = {name: value for name, value in wanted.items() if value is not None}
        return self._parsed(SamplePage, "GET", f"/v1/jobs/{job_id}/samples", params=params)

    def send_preferences(
        self, job_id: str, preferences: Sequence[Preference | Mapping[str, Any]]
    ) -> PreferencesReceipt:
        """Let a running job learn from what people preferred. The same id again is stored once.

        Raises:
            ApiError: the job takes none (status 409), or one is not right (422) and none is stored; ``errors`` names them.
        """
        body = [each.model_dump(mode="json") if isinstance(each, Preference) else dict(each) for each in preferences]
        return self._parsed(PreferencesReceipt, "POST", f"/v1/jobs/{job_id}/preferences", json=body)

    def feedback(self, job_id: str) -> FeedbackCounts:
        """What became of the preferences that were sent to a job."""
        return self._parsed(FeedbackCounts, "GET", f"/v1/jobs/{job_id}/preferences")

    def versions(self, job_id: str) -> tuple[VersionRecord, ...]:
        """The job's versions, oldest first."""
        return self._parsed(VersionList, "GET", f"/v1/jobs/{job_id}/versions").versions

    def domains(self, job_id: str) -> DomainList:
        """The domains that a job learns one after another, and the win rates on each after each; none where it mixes all prompts."""
        return self._parsed(DomainList, "GET", f"/v1/jobs/{job_id}/domains")

    def audit(
        self, *, job_id: str | None = None, key_id: str | None = None, limit: int = 50, after: int | None = None
    ) -> AuditPage:
        """A page of the audit, newest first; ``after`` is the ``next`` of the page before. Needs a key of the scope admin."""
        wanted = {"job_id": job_id, "key_id": key_id, "limit": limit, "after": after}
        params = {name: value for name, value in wanted.items() if value is not None}
        return self._parsed(AuditPage, "GET", "/v1/audit", params=params)

    def logs(self, job_id: str, *, lines: int = 100, file: str | None = None) -> str:
        """The ends of the workers' log files."""
        params: dict[str, Any] = {"lines": lines} | ({"file": file} if file else {})
        return self._send("GET", f"/v1/jobs/{job_id}/logs", params=params).text

    def download(self, job_id: str, version: int, path: Path, *, module: str = "fast") -> Path:
        """Save one version as a zip of a peft folder. The file appears whole or not at all."""
        part = path.with_name(path.name + ".part")
        address = f"/v1/jobs/{job_id}/versions/{version}/download"
        try:
            with self._http.stream("GET", address, params={"module": module}) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                with part.open("wb") as file:
                    for chunk in response.iter_bytes():
                        file.write(chunk)
            part.replace(path)
        except httpx.TransportError:
            raise self._unreachable() from None
        finally:
            part.unlink(missing_ok=True)
        return path

    def answers(self) -> bool:
        """Whether a Sparring service is there."""
        try:
            response = self._http.get("/healthz")
            return response.is_success and response.json().get("service") == "sparring"
        except (httpx.HTTPError, ValueError, AttributeError):
            return False

    def _stream(self, job_id: str, after: int) -> Iterator[JobEvent]:
        timeout = httpx.Timeout(self._timeout_seconds, read=STREAM_READ_SECONDS)
        headers = {"Last-Event-ID": str(after)}
        with connect_sse(self._http, "GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=timeout) as source:
            if source.response.status_code == 204:
                return
            if source.response.is_error:
                source.response.read()
                raise _refusal(source.response)
            for event in source.iter_sse():
                if event.data:  # a keep-alive arrives as an event without data, under the id of the one before
                    yield JobEvent.model_validate_json(event.data)

    def _parsed(self, model: type[Parsed], method: str, address: str, **more: Any) -> Parsed:
        response = self._send(method, address, **more)
        try:
            return model.model_validate_json(response.content)
        except ValueError:
            raise InputError(f"{self.url} does not answer as Sparring does; is --url (SPARRING_URL) right?") from None

    def _send(self, method: str, address: str, **more: Any) -> httpx.Response:
        try:
            response = self._http.request(method, address, **more)
        except httpx.TimeoutException:
            raise ServiceAbsent(
                f"{self.url} did not answer in {self._timeout_seconds:g} seconds; look at its log, or raise timeout_seconds"
            ) from None
        except (httpx.TransportError, httpx.UnsupportedProtocol, httpx.InvalidURL):
            raise self._unreachable() from None
        if response.is_error:
            raise _refusal(response)
        return response

    def _unreachable(self) -> ServiceAbsent:
        return ServiceAbsent(
            f"no service answers at {self.url}; start one with `sparring serve`, or name another with --url or SPARRING_URL"
        )


class ServiceAbsent(InputError):
    """Nothing answers at the service's address."""


def _refusal(response: httpx.Response) -> ApiError:
    try:
        document = response.json()
        detail, code = str(document["detail"]), str(document["code"])
        errors = document.get("errors", ())
    except (json.JSONDecodeError, KeyError, TypeError):
        detail, code, errors = f"the service answered {response.status_code}", "unknown", ()
    return ApiError(detail, status=response.status_code, code=code, errors=errors)
