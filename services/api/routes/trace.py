"""Groups' ways through the stages, as spans."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from services.api.context import Shared, paths_of
from services.api.guard import READ
from services.jobs.trace import TracePage, trace_page

router = APIRouter(tags=["history"], dependencies=[READ])

EXAMPLE = {
    "spans": [
        {
            "trace_id": "8d3f0c6a9be74b52b1a0c9a5f1d2e3c4",
            "span_id": "5be1f0a2c3d4e5f6",
            "parent_span_id": "1a2b3c4d5e6f7081",
            "name": "sampling",
            "group_id": "help-desk-ab3cde/r2/17",
            "worker": "sampler-1",
            "start": "2026-05-04T09:12:31.402518Z",
            "end": "2026-05-04T09:12:33.118204Z",
            "attributes": {"round": 2, "index": 17, "state": "consumed", "version": 2, "produced_version": 3},
        }
    ],
    "next": None,
}


@router.get("/jobs/{job_id}/trace", responses={200: {"content": {"application/json": {"example": EXAMPLE}}}})
def trace(
    shared: Shared,
    job_id: str,
    limit: Annotated[int, Query(ge=1, le=1000, description="Groups of a page.")] = 200,
    after: Annotated[str | None, Query(description="`next` of the page before.")] = None,
) -> TracePage:
    """When each group was sampled, scored, queued and learned from, in order of round and index.

    Spans have the ids and the names of OpenTelemetry: each group is a trace, whose root span is `group`.
    """
    return trace_page(paths_of(shared.store.get(job_id)).replay_database, limit=limit, after=after)
