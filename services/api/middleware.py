"""What happens to every request: an id, a guard at the door, a bound on the body, headers, and a count (rule 16)."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.problems import problem
from services.api.telemetry import RequestTelemetry
from services.settings import is_loopback

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""What probes ask, without a key."""

SECURITY_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Set unless the route says otherwise."""

_REQUEST_ID = re.compile(r"[\w.-]{1,128}")


class Envelope:
    """Outermost: gives the request an id, counts it, adds headers, and turns an unexpected error into a problem."""

    def __init__(self, app: ASGIApp, telemetry: RequestTelemetry) -> None:
        self.app = app
        self.telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and count the answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = request_id
        status = 0
        began = time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:
            logger.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if status:  # too late for another answer; the server closes the connection
                raise
            detail = f"something went wrong that should not have; the service's log has it under {request_id}"
            await problem(500, "internal_error", detail, request_id=request_id)(scope, receive, send_with_headers)
        finally:
            self.telemetry.record(scope, status, time.perf_counter() - began)


class Guard:
    """Lets in who may come in.

    With a key, every request but a probe's must carry it. Without one the service listens on loopback only, and then
    the request must also name this machine: a web page from elsewhere can make a browser here send requests, by its
    own origin or by a name of its own that it lets point to 127.0.0.1.
    """

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self.app = app
        self.api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            refusal = self._refusal(Headers(scope=scope))
            if refusal is not None:
                status, code, detail = refusal
                headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
                answer = problem(status, code, detail, request_id=scope.get("request_id"), headers=headers)
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, headers: Headers) -> tuple[int, str, str] | None:
        if self.api_key is not None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.api_key.encode()):
                return None
            return 401, "unauthorized", "send the service's key: Authorization: Bearer SPARRING_API_KEY"
        host = headers.get("host", "")
        if not is_loopback(urlsplit(f"//{host}").hostname or ""):
            return 403, "foreign_host", f"{host!r} is not this machine; without an API key only localhost is served"
        origin = headers.get("origin")
        if origin is not None and not is_loopback(urlsplit(origin).hostname or ""):
            return 403, "foreign_origin", f"pages from {origin!r} may not use this service"
        return None


class BodyLimit:
    """Refuses bodies that are too large, whether they say so or not."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is small enough."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_bytes:
            answer = problem(413, "body_too_large", self._detail(), request_id=scope.get("request_id"))
            await answer(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise HTTPException(413, self._detail())
            return message

        await self.app(scope, counted, send)

    def _detail(self) -> str:
        return f"the body is larger than {self.max_bytes} bytes; SPARRING_MAX_BODY_BYTES sets the bound"
