"""Bounds on how much is asked: requests over time, by who asks, and requests and streams at the same time, of everybody together.

Streams (events, chat, the dashboard's web sockets) stay open for hours and cost little, so they have bounds of their own: open dashboards
keep nobody from asking.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Literal

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.access.gate import Caller
from services.api.guard import PROBES
from services.api.problems import problem

EVENT_STREAM = "text/event-stream"

BUSY_SECONDS = 1
"""What a client is asked to wait when all places are taken."""

Kind = Literal["requests", "streams"]


class Limits:
    """Refuses what goes beyond the bounds: 429 for one who asks too often, 503 when all together ask too much.

    Args:
        rate: requests of one key, or of one address without a key, such as ``600/minute``. Streams are counted beside, by the same rate.
        max_requests: at the same time.
        max_streams: at the same time.
    """

    def __init__(self, app: ASGIApp, rate: str, max_requests: int, max_streams: int) -> None:
        self.app = app
        self._rate: RateLimitItem = parse(rate)
        self._window = MovingWindowRateLimiter(MemoryStorage())
        self._bounds: dict[Kind, int] = {"requests": max_requests, "streams": max_streams}
        self._open: Counter[Kind] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with the place held until the answer is complete."""
        if scope["type"] not in ("http", "websocket") or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        kind = _kind(scope)
        told = self._count(scope, kind)
        refusal = self._refusal(scope, kind, told)
        if refusal is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1013, "reason": "too many connections"})
            else:
                await refusal(scope, receive, send)
            return
        self._open[kind] += 1

        async def watched(message: Message) -> None:
            nonlocal kind
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in told.headers.items():
                    headers.setdefault(name, value)
                streams = headers.get("content-type", "").startswith(EVENT_STREAM)
                if streams and kind == "requests" and self._open["streams"] < self._bounds["streams"]:
                    self._open[kind] -= 1  # a chat says only with its answer that it is a stream
                    kind = "streams"
                    self._open[kind] += 1
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            self._open[kind] -= 1

    def _count(self, scope: Scope, kind: Kind) -> _Told:
        who = _who(scope)
        allowed = self._window.hit(self._rate, kind, who)
        reset, remaining = self._window.get_window_stats(self._rate, kind, who)
        return _Told(self._rate, allowed, max(int(remaining), 0), max(math.ceil(reset - time.time()), 1))

    def _refusal(self, scope: Scope, kind: Kind, told: _Told) -> Response | None:
        request_id = scope.get("request_id")
        if not told.allowed:
            detail = f"more than {self._rate}; wait {told.reset} s, or raise SPARRING_RATE_LIMIT"
            headers = {**told.headers, "Retry-After": str(told.reset)}
            return problem(429, "too_many_requests", detail, request_id=request_id, headers=headers)
        if self._open[kind] >= self._bounds[kind]:
            setting = "SPARRING_MAX_STREAMS" if kind == "streams" else "SPARRING_MAX_CONCURRENT_REQUESTS"
            detail = f"{self._bounds[kind]} {kind} are open, which is the bound; try again soon, or raise {setting}"
            headers = {**told.headers, "Retry-After": str(BUSY_SECONDS)}
            return problem(503, "busy", detail, request_id=request_id, headers=headers)
        return None


class _Told:
    """What a client is told of its rate (draft-ietf-httpapi-ratelimit-headers): ``remaining`` requests; ``reset`` in seconds."""

    def __init__(self, rate: RateLimitItem, allowed: bool, remaining: int, reset: int) -> None:
        self.allowed, self.reset = allowed, reset
        self.headers = {
            "RateLimit-Policy": f'"default";q={rate.amount};w={rate.get_expiry()}',
            "RateLimit": f'"default";r={remaining};t={reset}',
        }


def _kind(scope: Scope) -> Kind:
    streams = scope["type"] == "websocket" or EVENT_STREAM in Headers(scope=scope).get("accept", "")
    return "streams" if streams else "requests"


def _who(scope: Scope) -> str:
    caller = scope["caller"]
    if isinstance(caller, Caller) and not caller.is_local:
        return f"key {caller.key_id or caller.actor}"
    return f"address {scope['client'][0] if scope.get('client') else ''}"
