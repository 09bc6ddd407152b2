"""Who may come in, and how far: finds out who asks, refuses strangers at the door, and asks each route's scope (rule 16)."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast
from urllib.parse import quote, urlsplit

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.access import keys
from services.access.gate import Caller, Gate, Unknown
from services.api.headers import is_api
from services.api.problems import problem
from services.api.threads import Threads
from services.settings import is_loopback

logger = logging.getLogger(__name__)

PROBES = frozenset({"/healthz", "/readyz"})
"""What probes ask, without a key, a limit or a scope."""

LOGIN = "/login"
"""Where a browser's person gives a key."""

KEY_COOKIE = "sparring_key"
"""Carries the key of a browser's person. A page of another origin cannot have it sent, and scripts cannot read it."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Identify:
    """Finds out who asks: ``scope["caller"]`` becomes a `Caller` or an `Unknown`, ``scope["by_cookie"]`` says how."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app = app
        self.gate = gate
        self._threads = Threads("identify")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look, and pass on whoever it is."""
        if scope["type"] in ("http", "websocket") and scope["path"] not in PROBES:
            headers = Headers(scope=scope)
            given = _bearer(headers)
            scope["by_cookie"] = False
            if given is None and _takes_cookie(scope):
                given = cookie_parser(headers.get("cookie", "")).get(KEY_COOKIE)
                scope["by_cookie"] = given is not None
            scope["caller"] = await self._threads.run(self.gate.identify, given, datetime.now(UTC))
        await self.app(scope, receive, send)


class Guard:
    """Lets in who may come in.

    Where no key is asked for, the service listens on loopback only, and the request must also name this machine: a web page from elsewhere
    can make a browser here send requests, by its own origin or by a name of its own that it lets point to 127.0.0.1. The same holds
    for a key that the browser sends by itself, in its cookie.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str] = ()) -> None:
        self.app = app
        self.origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] not in ("http", "websocket") or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        answer = self._refusal(scope)
        if answer is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "not allowed"})
        else:
            await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        caller, headers = scope["caller"], Headers(scope=scope)
        if isinstance(caller, Unknown):
            return None if scope["path"] == LOGIN else _unauthorized(scope, caller, headers)
        host = headers.get("host", "")
        if caller.is_local and not is_loopback(_hostname(f"//{host}")):
            detail = f"{host!r} is not this machine; without an API key only localhost is served"
            return _forbidden(scope, "foreign_host", detail)
        origin = headers.get("origin")
        if origin is None or origin in self.origins:
            return None
        foreign = (caller.is_local and not is_loopback(_hostname(origin))) or (
            scope["by_cookie"] and origin.partition("://")[2] != host
        )
        if foreign:
            return _forbidden(scope, "foreign_origin", f"pages from {origin!r} may not use this service")
        return None


@dataclass(frozen=True)
class Needs:
    """A route's dependency: its caller's key must have this scope."""

    scope: keys.Scope

    def __call__(self, request: Request) -> None:
        """Refuse a smaller one.

        Raises:
            HTTPException: 403, with the scope that is missing.
        """
        caller = caller_of(request)
        if not caller.scope.includes(self.scope):
            logger.warning(
                "refused %s: %s has scope %s, not %s", request.url.path, caller.actor, caller.scope, self.scope
            )
            raise HTTPException(
                403,
                f"the key {caller.key_id} has the scope {caller.scope}; this needs {self.scope}",
                headers={
                    "WWW-Authenticate": f'Bearer realm="sparring", error="insufficient_scope", scope="{self.scope}"'
                },
            )


READ, WRITE, ADMIN = (Depends(Needs(scope)) for scope in keys.Scope)
"""Every route declares one of these, by itself or through its router; the largest counts."""


def declared_scope(route: object) -> keys.Scope | None:
    """The scope that a route asks for, or None where it declares none."""
    if not isinstance(route, APIRoute):
        return None
    found = [each.call.scope for each in route.dependant.dependencies if isinstance(each.call, Needs)]
    return max(found, key=list(keys.Scope).index, default=None)


def caller_of(request: Request) -> Caller:
    """Who asks; of a request that the guard let in."""
    return cast(Caller, request.scope["caller"])


def _bearer(headers: Headers) -> str | None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() or None if scheme.lower() == "bearer" else None


def _takes_cookie(scope: Scope) -> bool:
    # downloads and pictures of the dashboard come from the API: reading by cookie is fine, writing needs the header
    return not is_api(scope["path"]) or scope.get("method") in SAFE_METHODS


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # a bracket without its other half
        return ""


def _unauthorized(scope: Scope, unknown: Unknown, headers: Headers) -> Response:
    if scope["type"] == "http" and not is_api(scope["path"]) and "text/html" in headers.get("accept", ""):
        return RedirectResponse(f"{LOGIN}?next={quote(scope['path'])}", 303)
    address = scope["client"][0] if scope.get("client") else "-"
    logger.warning("refused %s from %s: %s", scope["path"], address, "wrong key" if unknown.wrong else "no key")
    challenge = 'Bearer realm="sparring"' + (', error="invalid_token"' if unknown.wrong else "")
    return problem(
        401,
        "unauthorized",
        unknown.reason,
        request_id=scope.get("request_id"),
        headers={"WWW-Authenticate": challenge},
    )


def _forbidden(scope: Scope, code: str, detail: str) -> Response:
    return problem(403, code, detail, request_id=scope.get("request_id"))
