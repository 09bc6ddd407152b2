"""The OpenAPI document: what FastAPI finds out by itself, and what every route has in common: its scope, its key, its refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from services.api.guard import PROBES, declared_scope
from services.api.problems import Problem, responses

SCHEMAS = "#/components/schemas/"
KEY = "key"

Document = dict[str, Any]

_DESCRIPTION = """Align a language model by letting it play against itself.

Errors are problem documents (RFC 9457, `application/problem+json`): `detail` is a sentence for people, `code` a word for programs, and
`errors` names the fields. Lists come in pages: send a page's `next` as `after` until it is null. Every answer carries `X-Request-ID`; send one
to find a request again in the service's log and in the audit."""


def install(app: FastAPI) -> None:
    """Let the application describe itself, with everything that its routes share."""

    def document() -> Document:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> Document:
    found: Document = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(models_json_schema([(Problem, "serialization")], ref_template=SCHEMAS + "{model}")[1]["$defs"])
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own shape of a refusal, which is never sent
        schemas.pop(unused, None)
    found["components"]["securitySchemes"] = {
        KEY: {
            "type": "http",
            "scheme": "bearer",
            "description": "A key of `sparring keys create`, or SPARRING_API_KEY. On loopback, without any key made, none is asked for.",
        }
    }
    for route, operation in _operations(app, found):
        _complete(route, operation)
    return found


def _operations(app: FastAPI, document: Document) -> Iterator[tuple[APIRoute, Document]]:
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods:
                yield route, document["paths"][route.path_format][method.lower()]


def _complete(route: APIRoute, operation: Document) -> None:
    if route.path in PROBES:
        return
    scope = declared_scope(route)
    operation["security"] = [{}, {KEY: []}]
    operation["description"] = f"{operation.get('description', '')}\n\nNeeds the scope `{scope}`.".strip()
    statuses = [400, 401, 403, 429, 503]
    if "{" in route.path:
        statuses.append(404)
    if operation.get("parameters") or "requestBody" in operation:
        statuses.append(422)
    if "requestBody" in operation:
        statuses.append(413)
    for status, answer in responses(*statuses).items():
        known = operation["responses"].get(str(status), {})
        if "application/problem+json" not in known.get("content", {}):
            operation["responses"][str(status)] = answer
    operation["responses"] = dict(sorted(operation["responses"].items()))
