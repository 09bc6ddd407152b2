"""Errors as RFC 9457 problem documents: one sentence for people, a code for programs, never a stack trace."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from learner.errors import InputError
from learner.records import Record
from services.adapters import UnknownVersion
from services.jobs.problems import Spelt
from services.jobs.store import IdempotencyConflict, StateConflict, UnknownJob
from services.secrets import mask

MEDIA_TYPE = "application/problem+json"

_KEY_PATH = re.compile(r"[A-Za-z_][\w.\[\]-]*")
_BODY: Mapping[str, str] = {
    "missing": "the body is empty; send JSON, with the header Content-Type: application/json",
    "json_invalid": "the body is not JSON ({reason}, at character {where})",
    "list_type": "the body must be a JSON list, sent with the header Content-Type: application/json",
    "dict_type": "the body must be a JSON object, sent with the header Content-Type: application/json",
}
"""Pydantic's kinds of errors of a body as a whole."""

_STATUS: Mapping[type[InputError], tuple[int, str]] = {
    UnknownJob: (404, "unknown_job"),
    UnknownVersion: (404, "unknown_version"),
    StateConflict: (409, "state_conflict"),
    IdempotencyConflict: (422, "idempotency_key_reused"),
}


class FieldProblem(Record):
    """What is wrong with one field. ``param`` is its path, as a job file spells it."""

    param: Spelt | None
    detail: Spelt


class Problem(Record):
    """A problem document (RFC 9457), with our own members ``code``, ``request_id`` and ``errors``."""

    type: str = "about:blank"
    title: str
    status: int
    detail: Spelt
    code: str
    request_id: str | None = None
    errors: tuple[FieldProblem, ...] = Field(default=())


class ProblemResponse(JSONResponse):
    """A problem document as an answer."""

    media_type = MEDIA_TYPE


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    request_id: str | None,
    errors: tuple[FieldProblem, ...] = (),
    headers: Mapping[str, str] | None = None,
) -> ProblemResponse:
    """An answer that says what went wrong."""
    document = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=mask(detail),
        code=code,
        request_id=request_id,
        errors=tuple(FieldProblem(param=each.param, detail=mask(each.detail)) for each in errors),
    )
    return ProblemResponse(document.model_dump(), status_code=status, headers=headers)


_WHEN: Mapping[int, str] = {
    400: "The address or the body cannot be read as text.",
    401: "A key is asked for, and there is none, or one that is not good (any more).",
    403: "The key's scope is too small, or the request comes from a page or under a name that is not allowed.",
    404: "There is no such thing.",
    409: "Not in the state in which it is.",
    413: "The body is too large.",
    422: "Something in the request is not right; `errors` names the fields.",
    429: "Too many requests; `Retry-After` says when to come back.",
    503: "Not now; `Retry-After` says when to come back.",
}
"""When a route answers so, for the OpenAPI document."""


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route that answers with problems of these statuses declares as its ``responses``."""
    return {
        status: {
            "description": _WHEN[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": _example(status)}},
        }
        for status in statuses
    }


def _example(status: int) -> dict[str, Any]:
    detail, code, errors = _WHEN[status], _code(status), ()
    if status == 422:
        detail, code = "schedule.rounds: 0 is too small, it must be at least 1", "invalid_input"
        errors = (_field_problem(detail),)  # type: ignore[assignment]
    title = HTTPStatus(status).phrase
    document = Problem(title=title, status=status, detail=detail, code=code, request_id="7f3c2a", errors=errors)
    return document.model_dump(mode="json")


def _code(status: int) -> str:
    if status == 413:  # Python's phrase for it differs from release to release
        return "body_too_large"
    return HTTPStatus(status).phrase.lower().replace(" ", "_")


def install(app: FastAPI) -> None:
    """Answer every error of this application with a problem document."""
    app.add_exception_handler(InputError, _input_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)


def _request_id(request: Request) -> str | None:
    value: str | None = request.scope.get("request_id")
    return value


async def _input_error(request: Request, error: Exception) -> ProblemResponse:
    status, code = _STATUS.get(type(error), (422, "invalid_input"))  # type: ignore[arg-type]
    errors = tuple(_field_problem(line) for line in str(error).splitlines()) if code == "invalid_input" else ()
    return problem(status, code, str(error), request_id=_request_id(request), errors=errors)


async def _invalid_request(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, RequestValidationError)
    errors = tuple(_request_problem(each) for each in error.errors())
    detail = "; ".join(f"{each.param}: {each.detail}" if each.param else each.detail for each in errors)
    return problem(422, "invalid_request", detail, request_id=_request_id(request), errors=errors)


async def _http_error(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, HTTPException)
    headers, detail = dict(error.headers or {}), str(error.detail)
    if error.status_code == 400 and detail == "There was an error parsing the body":  # FastAPI's own sentence
        detail = "the body cannot be read: it must be JSON in UTF-8, not nested hundreds of times, its numbers of a usual size"
    if error.status_code == 404 and detail == "Not Found":  # the router's own
        detail = f"there is nothing at {request.url.path}; /v1/openapi.json lists what there is"
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed(request))  # the router's own names only the first route of the path
    return problem(
        error.status_code, _code(error.status_code), detail, request_id=_request_id(request), headers=headers
    )


def _request_problem(found: Mapping[str, Any]) -> FieldProblem:
    """What is wrong with a request before any route looks at it; about the body as a whole in our own words."""
    location, kind = found["loc"], found["type"]
    whole = location == ("body",) or kind == "json_invalid"  # whose place is a character
    if location[:1] != ("body",) or not whole or kind not in _BODY:
        return FieldProblem(param=_path(location), detail=found["msg"])
    reason = found.get("ctx", {}).get("error", "")
    where = location[1] if len(location) > 1 else 0
    return FieldProblem(param=None, detail=_BODY[kind].format(reason=reason, where=where))


def _allowed(request: Request) -> list[str]:
    """The methods that the request's path takes."""
    found = [route for route in request.app.routes if isinstance(route, Route)]
    matching = [route for route in found if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in matching for method in route.methods or ()})


def _field_problem(line: str) -> FieldProblem:
    """``schedule.rounds: 0 is too small`` is about the field that it begins with."""
    path, found, rest = line.partition(": ")
    if found and _KEY_PATH.fullmatch(path):
        return FieldProblem(param=path, detail=rest)
    return FieldProblem(param=None, detail=line)


def _path(location: tuple[Any, ...]) -> str | None:
    # the first part says where in the request ("query", "path", "body"), the rest names the parameter
    return ".".join(str(part) for part in location[1:]) or None
