"""A job's report and its logs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from services.api.context import Shared, paths_of
from services.api.guard import READ
from services.jobs.logfiles import tails
from services.secrets import mask

router = APIRouter(tags=["files"], dependencies=[READ])

REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
"""A report is one self-contained page with its pictures inside. Samples in it are a model's words: no scripts."""


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


@router.get("/jobs/{job_id}/logs", response_class=PlainTextResponse)
def logs(
    shared: Shared,
    job_id: str,
    lines: Annotated[int, Query(ge=1, le=10_000, description="Last lines of each file.")] = 100,
    file: Annotated[str | None, Query(description="Only this file.")] = None,
) -> PlainTextResponse:
    """The ends of the workers' log files."""
    return PlainTextResponse(mask(tails(paths_of(shared.store.get(job_id)).logs, lines, file)))
