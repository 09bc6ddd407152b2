"""docs/rest.md names every route that there is, and no other; its curl lines go to one of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import Match

from services.api.app import create_app
from services.jobs.store import JobStore
from services.settings import Settings

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "rest.md").read_text()

BESIDE = {("GET", "/metrics"), ("GET", "/v1/openapi.json")}
"""Routes that the OpenAPI document leaves out, and the guide names."""


@pytest.fixture
def app(home: Path) -> Iterator[FastAPI]:
    store = JobStore(Settings.load().store_url)
    yield create_app(Settings.load(), store)
    store.close()


def curl_lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("curl")]


def asked(line: str) -> tuple[str, str]:
    """The method and the path of a curl line."""
    words = shlex.split(line.replace("$JOB", "a-job"), comments=True)
    address = next(word for word in words if word.startswith("$S"))
    method = words[words.index("-X") + 1] if "-X" in words else "POST" if "-d" in words else "GET"
    return method, address.removeprefix("$S").partition("?")[0]


def test_every_route_is_named_with_its_scope_and_no_other(app: FastAPI) -> None:
    document: dict[str, Any] = app.openapi()
    there: dict[tuple[str, str], str] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            scope = re.search(r"Needs the scope `(\w+)`", operation.get("description", ""))
            there[method.upper(), path] = scope[1] if scope else "none"
    named = {
        (method, path): scope for method, path, scope in re.findall(r"^\| `([A-Z]+) (/\S*)` \| (\w+) ", GUIDE, re.M)
    }
    assert named.keys() >= BESIDE and there == {route: named[route] for route in named.keys() - BESIDE}


def test_every_curl_line_goes_to_a_route(app: FastAPI) -> None:
    requests = [asked(line) for line in curl_lines()]
    for method, path in requests:
        scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
        assert [route for route in app.routes if route.matches(scope)[0] is Match.FULL], f"{method} {path}"
    assert len(requests) > 25


def test_every_named_parameter_is_one_of_its_route(app: FastAPI) -> None:
    document = app.openapi()
    for method, path, told in re.findall(r"^\| `([A-Z]+) (/v1\S*)` \| \w+ \|(.*)", GUIDE, re.M):
        if (method, path) in BESIDE:
            continue
        known = {each["name"] for each in document["paths"][path][method.lower()].get("parameters", ())}
        listed = told.rpartition(";")[2] if ";" in told else ""
        for name in re.findall(r"`([a-z_]+)`", listed):
            assert name in known, f"{method} {path}: {name}"
