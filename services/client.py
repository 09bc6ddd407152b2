"""Typed Python clients for the REST API: one that waits, and one for asyncio with the same methods.

with Client("http://127.0.0.1:8700") as client:
    job = client.submit({"policy": {"model": "..."}, "prompts": {"source": "..."}})
    for event in client.events(job.id):
        print(event.message)

async with AsyncClient("http://127.0.0.1:8700") as client:
    job = await client.submit({"policy": {"model": "..."}, "prompts": {"source": "..."}})
    async for event in client.events(job.id):
        print(event.message)
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import httpx
from httpx_sse import EventSource, ServerSentEvent, aconnect_sse, connect_sse

from learner.errors import InputError
from services import calls
from services.calls import Call, Result
from services.jobs.records import JobEvent
from services.jobs.state import TERMINAL

P = ParamSpec("P")

STREAM_READ_SECONDS = 60.0
"""A stream says something at least every 15 seconds; silence for this long means that it is dead."""


class ApiError(InputError):
    """The service refused. ``status`` is the HTTP status, ``code`` the problem's word for programs."""

    def __init__(self, message: str, *, status: int, code: str, errors: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.status, self.code, self.errors = status, code, tuple(errors)


class ServiceAbsent(InputError):
    """Nothing answers at the service's address."""


class _Service:
    """What both clients know of a service: its address, and what its answers mean."""

    def __init__(self, url: str, api_key: str | None, timeout_seconds: float, reconnect_seconds: float) -> None:
        self.url = url.rstrip("/")
        try:
            httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise InputError(
                f"--url (SPARRING_URL): {url!r} is no address ({error}); it looks like http://127.0.0.1:8700"
            ) from None
        self._timeout_seconds = timeout_seconds
        self._reconnect_seconds = reconnect_seconds
        self._options: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
            "timeout": timeout_seconds,
        }

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Say in a sentence that the service could not be reached."""
        try:
            yield
        except httpx.TimeoutException:
            raise ServiceAbsent(
                f"{self.url} did not answer in {self._timeout_seconds:g} seconds; look at its log, or raise timeout_seconds"
            ) from None
        except (httpx.TransportError, httpx.UnsupportedProtocol, httpx.InvalidURL):
            raise self._unreachable() from None

    def _read(self, call: Call[Result], answer: httpx.Response) -> Result:
        if answer.is_error:
            raise _refusal(answer)
        try:
            return call.read(answer)
        except ValueError:
            raise InputError(f"{self.url} does not answer as Sparring does; is --url (SPARRING_URL) right?") from None

    def _unreachable(self) -> ServiceAbsent:
        return ServiceAbsent(
            f"no service answers at {self.url}; start one with `sparring serve`, or name another with --url or SPARRING_URL"
        )

    def _stream(self, job_id: str, after: int) -> dict[str, Any]:
        """The request of a stream of events."""
        return {
            "method": "GET",
            "url": f"/v1/jobs/{job_id}/events",
            "headers": {"Last-Event-ID": str(after)},
            "timeout": httpx.Timeout(self._timeout_seconds, read=STREAM_READ_SECONDS),
        }


class _Patience:
    """How long a broken stream is tried again: counted from the first failure since it said something or flowed for long, however quiet
    the job was."""

    def __init__(self, service: _Service) -> None:
        self._service = service
        self._opened_at: float | None = None
        self.heard()

    def reached(self) -> None:
        """The service has taken the request of a stream."""
        self._opened_at = time.monotonic()

    def heard(self) -> None:
        """The stream has said something."""
        self._deadline: float | None = None
        self._wait = 0.2

    def after(self, error: Exception) -> None:
        """Raise when it is over."""
        now = time.monotonic()
        if self._opened_at is not None and now - self._opened_at >= self._service._reconnect_seconds:
            self.heard()
        self._opened_at = None
        if self._deadline is None:
            self._deadline = now + self._service._reconnect_seconds
        if now >= self._deadline:
            raise error if isinstance(error, ServiceAbsent) else self._service._unreachable() from None

    def wait(self) -> float:
        """Seconds until the next try."""
        wait, self._wait = self._wait, min(self._wait * 2, 5.0)
        return wait


def _now(build: Callable[P, Call[Result]]) -> Callable[Concatenate[Client, P], Result]:
    """A method of `Client` that sends what ``build`` makes."""

    @functools.wraps(build)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        return self._do(build(*args, **kwargs))

    _show_self(method)
    return method


def _later(build: Callable[P, Call[Result]]) -> Callable[Concatenate[AsyncClient, P], Awaitable[Result]]:
    """A method of `AsyncClient` that sends what ``build`` makes."""

    @functools.wraps(build)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        return await self._do(build(*args, **kwargs))

    _show_self(method)
    return method


def _show_self(method: Any) -> None:
    """Show ``self`` in the signature of a method that has its own from a function."""
    signature = inspect.signature(method)
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = signature.replace(
        parameters=[first, *signature.parameters.values()], return_annotation=inspect.Signature.empty
    )


class Client(_Service):
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
        super().__init__(url, api_key, timeout_seconds, reconnect_seconds)
        self._sleep = sleep
        self._http = httpx.Client(**self._options, transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    submit = _now(calls.submit)
    get = _now(calls.get)
    list = _now(calls.list_jobs)
    cancel = _now(calls.cancel)
    pause = _now(calls.pause)
    resume = _now(calls.resume)
    delete = _now(calls.delete)
    events_page = _now(calls.events_page)
    metrics = _now(calls.metrics)
    samples = _now(calls.samples)
    trace = _now(calls.trace)
    send_preferences = _now(calls.send_preferences)
    feedback = _now(calls.feedback)
    versions = _now(calls.versions)
    domains = _now(calls.domains)
    audit = _now(calls.audit)
    logs = _now(calls.logs)
    log_records = _now(calls.log_records)

    def events(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """The job's events as they happen, until it has ended. A broken stream is taken up where it broke.

        Raises:
            ApiError: the service refused, for example because there is no such job.
            InputError: the service could not be reached again in time.
        """
        patience = _Patience(self)
        while True:
            try:
                with connect_sse(self._http, **self._stream(job_id, after)) as source:
                    if source.response.is_error:
                        source.response.read()
                    flows = _flows(source)
                    patience.reached()
                    for sent in source.iter_sse() if flows else ():
                        patience.heard()
                        if (event := _event(sent)) is not None:
                            after = event.seq
                            yield event
                if self.get(job_id).state in TERMINAL and not self.events_page(job_id, after=after, limit=1).events:
                    return
            except (httpx.TransportError, ServiceAbsent) as error:
                patience.after(error)
            self._sleep(patience.wait())

    def download(self, job_id: str, version: int, path: Path, *, module: str = "fast") -> Path:
        """Save one version as a zip of a peft folder. The file appears whole or not at all."""
        part = path.with_name(path.name + ".part")
        address = f"/v1/jobs/{job_id}/versions/{version}/download"
        try:
            with self._reached(), self._http.stream("GET", address, params={"module": module}) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                with part.open("wb") as file:
                    for chunk in response.iter_bytes():
                        file.write(chunk)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def answers(self) -> bool:
        """Whether a Sparring service is there."""
        try:
            return _is_sparring(self._http.get("/healthz"))
        except httpx.HTTPError:
            return False

    def _do(self, call: Call[Result]) -> Result:
        with self._reached():
            answer = self._http.request(
                call.method, call.address, params=call.params, json=call.json, headers=call.headers
            )
        return self._read(call, answer)


class AsyncClient(_Service):
    """Talks to a service from asyncio. The arguments and methods are `Client`'s, to be awaited."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 30.0,
        reconnect_seconds: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(url, api_key, timeout_seconds, reconnect_seconds)
        self._sleep = sleep
        self._http = httpx.AsyncClient(**self._options, transport=transport)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    submit = _later(calls.submit)
    get = _later(calls.get)
    list = _later(calls.list_jobs)
    cancel = _later(calls.cancel)
    pause = _later(calls.pause)
    resume = _later(calls.resume)
    delete = _later(calls.delete)
    events_page = _later(calls.events_page)
    metrics = _later(calls.metrics)
    samples = _later(calls.samples)
    trace = _later(calls.trace)
    send_preferences = _later(calls.send_preferences)
    feedback = _later(calls.feedback)
    versions = _later(calls.versions)
    domains = _later(calls.domains)
    audit = _later(calls.audit)
    logs = _later(calls.logs)
    log_records = _later(calls.log_records)

    async def events(self, job_id: str, *, after: int = 0) -> AsyncIterator[JobEvent]:
        """The job's events as they happen, until it has ended. A broken stream is taken up where it broke.

        Raises:
            ApiError: the service refused, for example because there is no such job.
            InputError: the service could not be reached again in time.
        """
        patience = _Patience(self)
        while True:
            try:
                async with aconnect_sse(self._http, **self._stream(job_id, after)) as source:
                    if source.response.is_error:
                        await source.response.aread()
                    flows = _flows(source)
                    patience.reached()
                    if flows:
                        async for sent in source.aiter_sse():
                            patience.heard()
                            if (event := _event(sent)) is not None:
                                after = event.seq
                                yield event
                ended = (await self.get(job_id)).state in TERMINAL
                if ended and not (await self.events_page(job_id, after=after, limit=1)).events:
                    return
            except (httpx.TransportError, ServiceAbsent) as error:
                patience.after(error)
            await self._sleep(patience.wait())

    async def download(self, job_id: str, version: int, path: Path, *, module: str = "fast") -> Path:
        """Save one version as a zip of a peft folder. The file appears whole or not at all."""
        part = path.with_name(path.name + ".part")
        address = f"/v1/jobs/{job_id}/versions/{version}/download"
        try:
            with self._reached():
                async with self._http.stream("GET", address, params={"module": module}) as response:
                    if response.is_error:
                        await response.aread()
                        raise _refusal(response)
                    with part.open("wb") as file:
                        async for chunk in response.aiter_bytes():
                            await asyncio.to_thread(file.write, chunk)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    async def answers(self) -> bool:
        """Whether a Sparring service is there."""
        try:
            return _is_sparring(await self._http.get("/healthz"))
        except httpx.HTTPError:
            return False

    async def _do(self, call: Call[Result]) -> Result:
        with self._reached():
            answer = await self._http.request(
                call.method, call.address, params=call.params, json=call.json, headers=call.headers
            )
        return self._read(call, answer)


def _flows(source: EventSource) -> bool:
    """Whether a stream of events has begun; not when the job has ended and there are no more.

    Raises:
        ApiError: the service refused; its answer has been read.
    """
    if source.response.is_error:
        raise _refusal(source.response)
    return source.response.status_code != 204


def _event(sent: ServerSentEvent) -> JobEvent | None:
    # a keep-alive arrives as an event without data, under the id of the one before
    return JobEvent.model_validate_json(sent.data) if sent.data else None


def _is_sparring(answer: httpx.Response) -> bool:
    try:
        return answer.is_success and answer.json().get("service") == "sparring"
    except (ValueError, AttributeError):
        return False


def _refusal(response: httpx.Response) -> ApiError:
    try:
        document = response.json()
        detail, code = str(document["detail"]), str(document["code"])
        errors = document.get("errors", ())
    except (json.JSONDecodeError, KeyError, TypeError):
        detail, code, errors = f"the service answered {response.status_code}", "unknown", ()
    return ApiError(detail, status=response.status_code, code=code, errors=errors)
