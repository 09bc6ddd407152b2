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

from learner.errors import InputError
from learner.records import Record
from services.adapters import UnknownVersion
from services.jobs.store import IdempotencyConflict, StateConflict, UnknownJob

MEDIA_TYPE = "application/problem+json"

_KEY_PATH = re.compile(r"[A-Za-z_][\w.\[\]-]*")
_STATUS: Mapping[type[InputError], tuple[int, str]] = {
    UnknownJob: (404, "unknown_job"),
    UnknownVersion: (404, "unknown_version"),
    StateConflict: (409, "state_conflict"),
    IdempotencyConflict: (422, "idempotency_key_reused"),
}


class FieldProblem(Record):
    """What is wrong with one field. ``param`` is its path, as a job file spells it."""

    param: str | None
    detail: str


class Problem(Record):
    """A problem document (RFC 9457), with our own members ``code``, ``request_id`` and ``errors``."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
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
        title=HTTPStatus(status).phrase, status=status, detail=detail, code=code, request_id=request_id, errors=errors
    )
    return ProblemResponse(document.model_dump(), status_code=status, headers=headers)


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
    errors = tuple(FieldProblem(param=_path(each["loc"]), detail=each["msg"]) for each in error.errors())
    detail = "; ".join(f"{each.param}: {each.detail}" if each.param else each.detail for each in errors)
    return problem(422, "invalid_request", detail, request_id=_request_id(request), errors=errors)


async def _http_error(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return problem(
        error.status_code, code, str(error.detail), request_id=_request_id(request), headers=error.headers or {}
    )


def _field_problem(line: str) -> FieldProblem:
    """``schedule.rounds: 0 is too small`` is about the field that it begins with."""
    path, found, rest = line.partition(": ")
    if found and _KEY_PATH.fullmatch(path):
        return FieldProblem(param=path, detail=rest)
    return FieldProblem(param=None, detail=line)


def _path(location: tuple[Any, ...]) -> str | None:
    # the first part says where in the request ("query", "path", "body"), the rest names the parameter
    return ".".join(str(part) for part in location[1:]) or None
