"""Where a person with a browser gives a key: browsers send no Authorization header with a page, so a cookie carries it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from html import escape
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from services.access.gate import Caller, Gate
from services.api.context import Shared
from services.api.guard import KEY_COOKIE, LOGIN

router = APIRouter(include_in_schema=False)

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Sparring: sign in</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 26rem; margin: 15vh auto; padding: 0 1rem }}
input, button {{ font: inherit; width: 100%; box-sizing: border-box; padding: .5rem; margin: .25rem 0 }}
</style>
<main>
<h1>Sparring</h1>
<form method="post" action="/login?next={next}">
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button>
</form>
<p role="alert">{message}</p>
<p>An administrator makes keys with <code>sparring keys create</code>.</p>
</main>
</html>
"""


@router.get("/login")
async def form(shared: Shared, request: Request, next: Annotated[str, Query()] = "/") -> Response:
    """The page that asks for a key, where one is needed."""
    if isinstance(request.scope["caller"], Caller):
        return RedirectResponse(_inside(next), 303)
    return _page(next)


@router.post("/login")
async def sign_in(shared: Shared, request: Request, next: Annotated[str, Query()] = "/") -> Response:
    """Check a key and keep it in the browser."""
    _check_origin(request)
    key = parse_qs((await request.body()).decode("utf-8", errors="replace")).get("key", [""])[0].strip()
    gate: Gate = request.app.state.gate
    found = await asyncio.to_thread(gate.identify, key, datetime.now(UTC))
    if not isinstance(found, Caller):
        return _page(next, f"That did not work: {found.reason}", 401)
    answer = RedirectResponse(_inside(next), 303)
    answer.set_cookie(KEY_COOKIE, key, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return answer


@router.post("/logout")
async def sign_out(request: Request) -> Response:
    """Let the browser forget the key."""
    _check_origin(request)
    answer = RedirectResponse(LOGIN, 303)
    answer.delete_cookie(KEY_COOKIE, httponly=True, samesite="strict")
    return answer


def _page(next: str, message: str = "", status: int = 200) -> HTMLResponse:
    text = _PAGE.format(next=escape(_inside(next)), message=escape(message))
    return HTMLResponse(text, status, headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-store"})


def _inside(address: str) -> str:
    """The address, where it is a path of this service; nobody is sent elsewhere after signing in."""
    try:
        parts = urlsplit(address)
    except ValueError:  # a bracket without its other half
        return "/"
    inside = address.startswith("/") and not address.startswith("//") and not parts.netloc and "\\" not in address
    return address if inside and address.isprintable() else "/"


def _check_origin(request: Request) -> None:
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise HTTPException(403, "this form was sent by a page from elsewhere; open /login itself")
