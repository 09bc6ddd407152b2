"""A client for chat: what the command line talks with. Programs may as well use OpenAI's own package."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
from httpx_sse import connect_sse

from services.chat.compare import ComparisonResult
from services.client import ApiError, ServiceAbsent

CONNECT_SECONDS = 30.0
ANSWER_SECONDS = 900.0
"""An answer may have to wait until a sampler for it has started."""


class ChatClient:
    """Chats with a service's policies.

    Args:
        url: where the service answers.
        api_key: its key, where it has one.
        transport: in place of the network, for tests.
    """

    def __init__(self, url: str, *, api_key: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(CONNECT_SECONDS, read=ANSWER_SECONDS)
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, transport=transport)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(self, model: str, messages: Sequence[Mapping[str, str]], **wish: float | None) -> Iterator[str]:
        """Go on with a conversation; gives the answer's text as it comes.

        Args:
            model: JOB, JOB@VERSION, JOB:slow, JOB:slow@VERSION or JOB:base.
            messages: turns with ``role`` and ``content``; the last is the user's.
            wish: further parameters of OpenAI's chat interface, such as ``temperature``; None leaves one out.

        Raises:
            ApiError: the service refused, or the answer broke off.
            ServiceAbsent: nobody answers.
        """
        body = {"model": model, "messages": [dict(turn) for turn in messages], "stream": True, **_given(wish)}
        with self._reached(), connect_sse(self._http, "POST", "/v1/chat/completions", json=body) as source:
            if source.response.is_error:
                source.response.read()
                raise _refusal(source.response)
            for event in source.iter_sse():
                if event.data == "[DONE]":
                    return
                chunk = json.loads(event.data) if event.data else {}
                if "error" in chunk:
                    raise ApiError(chunk["error"]["message"], status=source.response.status_code, code="broken_off")
                for choice in chunk.get("choices", ()):
                    yield choice["delta"].get("content") or ""
        raise ApiError("the answer broke off; the service's log says why", status=200, code="broken_off")

    def compare(self, job_id: str, versions: tuple[str, str], prompt: str, **wish: float | None) -> ComparisonResult:
        """One prompt answered by two of a job's policies, and what its scorer says of the answers.

        Args:
            job_id: the job.
            versions: a version's number, ``slow``, ``slow@VERSION`` or ``base``, two of them.
            prompt: the user's question.
            wish: ``temperature``, ``max_tokens`` and ``seed``; None leaves one out.

        Raises:
            ApiError, ServiceAbsent: as ``ask``.
        """
        body = {"prompt": prompt, "versions": list(versions), **_given(wish)}
        with self._reached():
            answer = self._http.post(f"/v1/jobs/{job_id}/compare", json=body)
        if answer.is_error:
            raise _refusal(answer)
        return ComparisonResult.model_validate_json(answer.content)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException:
            raise ServiceAbsent(f"{self.url} did not answer in {ANSWER_SECONDS:g} seconds; look at its log") from None
        except (httpx.TransportError, httpx.UnsupportedProtocol, httpx.InvalidURL):
            raise ServiceAbsent(
                f"no service answers at {self.url}; start one with `sparring serve`, or name another with --url or SPARRING_URL"
            ) from None


def _given(wish: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in wish.items() if value is not None}


def _refusal(answer: httpx.Response) -> ApiError:
    """An error in OpenAI's shape, or a problem document."""
    try:
        document: dict[str, Any] = answer.json()
        error = document.get("error")
        detail, code = (error["message"], error["code"]) if error else (document["detail"], document["code"])
    except (ValueError, KeyError, TypeError, AttributeError):
        detail, code = f"the service answered {answer.status_code}", None
    return ApiError(str(detail), status=answer.status_code, code=str(code or "unknown"))
