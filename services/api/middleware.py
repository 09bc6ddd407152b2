"""What happens to every request: an id, a bound on the body, headers, and a count (rule 16)."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services import secrets
from services.api.headers import security_headers
from services.api.problems import problem
from services.api.telemetry import RequestTelemetry

logger = logging.getLogger(__name__)

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
        token = secrets.request_id.set(request_id)  # for the log
        status = 0
        began = time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in security_headers(scope["path"]).items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            if "\0" in scope["path"] or b"%00" in scope["query_string"]:  # which a database cannot even look for
                detail = "the address holds NUL (%00), which is no character of a name; leave it out"
                await problem(400, "bad_request", detail, request_id=request_id)(scope, receive, send_with_headers)
                return
            await self.app(scope, receive, send_with_headers)
        except Exception:
            logger.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if status:  # too late for another answer; the server closes the connection
                raise
            detail = f"something went wrong that should not have; the service's log has it under {request_id}"
            await problem(500, "internal_error", detail, request_id=request_id)(scope, receive, send_with_headers)
        finally:
            secrets.request_id.reset(token)
            self.telemetry.record(scope, status, time.perf_counter() - began)


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
