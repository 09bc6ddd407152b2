"""Every route of the API against every kind of key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import SecretStr
from starlette.routing import Route
from starlette.types import Message

from services.access.keys import Scope
from services.api.app import create_app
from services.api.guard import KEY_COOKIE, PROBES, SAFE_METHODS, declared_scope
from services.jobs.load import parse_job
from services.jobs.store import JobStore
from services.settings import Settings

OF_BROWSERS = {"/login", "/logout"}
"""Where a person gives a key, or takes it back: they change nothing but the browser's own cookie."""

OF_THE_FRAMEWORK = {"/v1/openapi.json"}
"""Needs any key; every key may read."""


@dataclass
class World:
    app: FastAPI
    keys: dict[str, str]

    def http(self, name: str | None = None) -> httpx.AsyncClient:
        """A client with one of the keys, from another machine under another name."""
        headers = {} if name is None else {"Authorization": f"Bearer {self.keys[name]}"}
        transport = httpx.ASGITransport(self.app, client=("203.0.113.7", 999))
        return httpx.AsyncClient(transport=transport, base_url="https://sparring.example", headers=headers)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    settings = Settings(home=tmp_path, host="0.0.0.0")
    store = JobStore(settings.store_url)
    app = create_app(settings, store, admit=parse_job)
    access = app.state.context.access
    keys = {str(scope): access.create_key(str(scope), scope)[1].text for scope in Scope}
    gone, keys["revoked"] = (lambda made: (made[0], made[1].text))(access.create_key("gone", Scope.ADMIN))
    access.revoke_key(gone.id)
    keys["expired"] = access.create_key("old", Scope.ADMIN, datetime.now(UTC) - timedelta(seconds=1))[1].text
    keys["wrong"] = keys["admin"][:-4] + "AAAA"
    keys["nonsense"] = "let-me-in"
    yield World(app, keys)
    access.close()
    store.close()


def requests(app: FastAPI) -> list[tuple[str, str, Scope]]:
    """Method, address and scope of everything that the API answers, probes left out."""
    found = []
    for route in app.routes:
        if not isinstance(route, Route | APIRoute) or route.path in PROBES | OF_BROWSERS:
            continue
        for method in sorted(route.methods or ()):
            address = route.path.format_map(
                {name: "0" if name == "version" else "x" for name in route.param_convertors}
            )
            found.append((method, address, declared_scope(route) or Scope.READ))
    return found


async def test_every_route_declares_its_scope_and_writes_need_more_than_reading(world: World) -> None:
    paths = set()
    for route in world.app.routes:
        assert isinstance(route, Route | APIRoute), f"{route} is not a route that can declare a scope"
        if route.path in PROBES | OF_BROWSERS | OF_THE_FRAMEWORK:
            continue
        scope = declared_scope(route)
        assert scope is not None, f"{route.path} declares no scope: give it READ, WRITE or ADMIN of services.api.guard"
        if not set(route.methods or ()) <= SAFE_METHODS:
            assert scope.includes(Scope.WRITE), f"{route.methods} {route.path} may be done with a key for reading"
        paths.add(route.path)
    assert {"/v1/jobs", "/v1/jobs/{job_id}/cancel", "/v1/audit", "/metrics"} <= paths


@pytest.mark.parametrize("name", [None, "wrong", "nonsense", "revoked", "expired"])
async def test_no_route_answers_without_a_good_key(world: World, name: str | None) -> None:
    async with world.http(name) as http:
        for method, address, _ in [*requests(world.app), ("GET", "/v1/nothing", Scope.READ), ("GET", "/", Scope.READ)]:
            answer = await http.request(method, address)
            assert answer.status_code == 401, (method, address)
            assert answer.headers["www-authenticate"].startswith('Bearer realm="sparring"')
            assert answer.headers["content-type"] == "application/problem+json" or method == "HEAD"
            if method != "HEAD":
                document = answer.json()
                assert document["code"] == "unauthorized" and document["request_id"] == answer.headers["x-request-id"]
        for probe in sorted(PROBES):
            assert (await http.get(probe)).status_code == 200


@pytest.mark.parametrize("scope", list(Scope))
async def test_a_key_opens_exactly_the_routes_of_its_scope(world: World, scope: Scope) -> None:
    async with world.http(str(scope)) as http:
        for method, address, needs in requests(world.app):
            answer = await http.request(method, address)
            if scope.includes(needs):
                assert answer.status_code not in (401, 403), (method, address)
            else:
                assert answer.status_code == 403, (method, address)
                assert f'scope="{needs}"' in answer.headers["www-authenticate"]
                assert f"this needs {needs}" in answer.text  # of chat in the shape that its clients know


async def test_a_revoked_key_is_refused_by_a_service_that_runs(world: World) -> None:
    access = world.app.state.context.access
    key, new = access.create_key("short", Scope.READ)
    world.keys["short"] = new.text
    async with world.http("short") as http:
        assert (await http.get("/v1/jobs")).status_code == 200
        access.revoke_key(key.id)
        assert (await http.get("/v1/jobs")).status_code == 401


async def test_a_browser_signs_in_with_a_cookie_that_reads_but_does_not_write(world: World) -> None:
    async with world.http() as http:
        page = await http.get("/", headers={"Accept": "text/html"})
        assert (page.status_code, page.headers["location"]) == (303, "/login?next=/")
        assert "API key" in (await http.get("/login")).text
        wrong = await http.post("/login", content="key=nonsense")
        assert wrong.status_code == 401 and "set-cookie" not in wrong.headers and "nonsense" not in wrong.text
        right = await http.post("/login?next=/v1/jobs", content=f"key={world.keys['admin']}")
        assert (right.status_code, right.headers["location"]) == (303, "/v1/jobs")
        cookie = right.headers["set-cookie"]
        assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Secure"))
        assert (await http.get("/v1/jobs")).status_code == 200
        assert (await http.post("/v1/jobs/x/cancel")).status_code == 401  # a form of another page could send this
        crossed = await http.get("/v1/jobs", headers={"Origin": "https://evil.example"})
        assert (crossed.status_code, crossed.json()["code"]) == (403, "foreign_origin")
        assert (await http.post("/logout")).status_code == 303
        assert KEY_COOKIE not in http.cookies


@pytest.mark.parametrize(
    "next", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/a\nb", "//["]
)
async def test_signing_in_leads_nowhere_else(world: World, next: str) -> None:
    async with world.http() as http:
        answer = await http.post("/login", params={"next": next}, content=f"key={world.keys['read']}")
        assert answer.headers["location"] == "/"
        assert (await http.get("/login", params={"next": next})).headers["location"] == "/"
        shown = await http.get("/login", params={"next": '"><script>'})
        assert "<script>" not in shown.text


@pytest.mark.parametrize(
    ("headers", "let_in"),
    [
        ({}, False),
        ({"cookie": "sparring_key=READ"}, True),
        ({"cookie": "sparring_key=READ", "origin": "https://sparring.example"}, True),
        ({"cookie": "sparring_key=READ", "origin": "https://evil.example"}, False),
        ({"cookie": "sparring_key=wrong"}, False),
    ],
)
async def test_a_web_socket_needs_a_key_and_its_own_page(world: World, headers: dict[str, str], let_in: bool) -> None:
    sent: list[Message] = []
    given = {"host": "sparring.example"} | {
        name: value.replace("READ", world.keys["read"]) for name, value in headers.items()
    }

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/_nicegui_ws/socket.io",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("203.0.113.7", 999),
        "app": world.app,
        "subprotocols": [],
    }
    await world.app(scope, receive, send)
    # nobody answers at this address here: a socket that was let in ends with the router's 1000, one that was not with the guard's 1008
    assert sent[0]["type"] == "websocket.close"
    assert (sent[0].get("code", 1000) != 1008) is let_in


async def test_the_installations_key_is_an_admin(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, api_key=SecretStr("k3y"))
    store = JobStore(settings.store_url)
    transport = httpx.ASGITransport(create_app(settings, store, admit=parse_job))
    async with httpx.AsyncClient(transport=transport, base_url="http://sparring.example") as http:
        headers = {"Authorization": "Bearer k3y"}
        assert (await http.get("/v1/audit", headers=headers)).status_code == 200
        assert (await http.get("/v1/audit")).status_code == 401
    store.close()


async def test_other_origins_are_told_nothing_unless_they_are_allowed(tmp_path: Path) -> None:
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
    for origins, allowed in (((), False), (("https://app.example",), True), (("https://other.example",), False)):
        settings = Settings(home=tmp_path, api_key=SecretStr("k3y"), cors_origins=origins)
        store = JobStore(settings.store_url)
        transport = httpx.ASGITransport(create_app(settings, store, admit=parse_job))
        async with httpx.AsyncClient(transport=transport, base_url="http://sparring.example") as http:
            before = await http.options("/v1/jobs", headers=asked)
            key = {"Authorization": "Bearer k3y", "Origin": "https://app.example"}
            answer = await http.get("/v1/jobs", headers=key)
            for each in (before, answer):
                found = each.headers.get("access-control-allow-origin")
                assert found == ("https://app.example" if allowed else None)
                assert each.headers.get("access-control-allow-credentials") is None
        store.close()


async def test_pages_may_load_from_this_service_alone_and_the_api_nothing(world: World) -> None:
    async with world.http("read") as http:
        strict = (await http.get("/v1/jobs")).headers["content-security-policy"]
        page = (await http.get("/anything")).headers["content-security-policy"]
    assert strict == "default-src 'none'; frame-ancestors 'none'"
    assert page.startswith("default-src 'self'") and "frame-ancestors 'none'" in page
    assert "http:" not in page and "https:" not in page and "*" not in page
