"""A job's report and its logs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from services.api.context import Shared, paths_of
from services.api.guard import READ
from services.jobs.logfiles import Level, LogPage, records, tails
from services.secrets import mask

router = APIRouter(tags=["files"], dependencies=[READ])

REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
"""A report is one self-contained page with its pictures inside. Samples in it are a model's words: no scripts."""

LOG_EXAMPLE = {
    "records": [
        {
            "time": "2026-05-04T09:12:31.402518Z",
            "level": "warning",
            "logger": "help-desk-ab3cde-controller",
            "message": "help-desk-ab3cde-sampler-1 took no tickets: the actor died",
            "job_id": "help-desk-ab3cde",
            "worker": "controller",
            "request_id": None,
            "group_id": None,
            "exception": None,
        }
    ],
    "next": "eyJjb250cm9sbGVyLTEuanNvbmwiOjE4Mn0",
    "more": False,
}


@router.get(
    "/jobs/{job_id}/report",
    response_class=FileResponse,
    responses={200: {"description": "A page.", "content": {"text/html": {"schema": {"type": "string"}}}}},
)
def report(shared: Shared, job_id: str) -> FileResponse:
    """The report with curves, once it is written."""
    path = paths_of(shared.store.get(job_id)).report
    if not path.is_file():
        raise HTTPException(404, f"job {job_id} has no report yet; it is written when the job ends")
    return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})


@router.get(
    "/jobs/{job_id}/logs",
    response_model=LogPage,
    responses={
        200: {
            "description": "A page of records, or with `Accept: text/plain` the ends of the files.",
            "content": {
                "application/json": {"example": LOG_EXAMPLE},
                "text/plain": {"schema": {"type": "string"}},
            },
        }
    },
)
def logs(
    request: Request,
    shared: Shared,
    job_id: str,
    after: Annotated[
        str | None,
        Query(description="`next` of the page before.", openapi_examples={"next": {"value": LOG_EXAMPLE["next"]}}),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Records of a page.")] = 500,
    level: Annotated[Level, Query(description="Only records of this level and above.")] = "debug",
    lines: Annotated[int, Query(ge=1, le=10_000, description="Of the text: last lines of each file.")] = 100,
    file: Annotated[str | None, Query(description="Of the text: only this file.")] = None,
) -> Response | LogPage:
    """What the controller and the workers log: records of all of them, oldest first, secrets masked.

    Ask for `next` again later for what was written meanwhile. With `Accept: text/plain`, or from a browser, the ends of the log files as
    text instead: these also have what engines print by themselves.
    """
    folder = paths_of(shared.store.get(job_id)).logs
    accept = request.headers.get("accept", "")
    if "text/" in accept and "application/json" not in accept:
        return PlainTextResponse(mask(tails(folder, lines, file)))
    return records(folder, after=after, limit=limit, level=level)
