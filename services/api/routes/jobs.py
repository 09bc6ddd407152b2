"""Jobs: submit, list, look, cancel, resume."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Response

from learner.errors import InputError
from services.api.context import Shared
from services.api.models import JobPage
from services.jobs.records import JobRecord
from services.jobs.state import JobState, RequestedAction
from services.jobs.store import UnknownJob

router = APIRouter(tags=["jobs"])


@router.post("/jobs", status_code=201)
def submit(
    shared: Shared,
    response: Response,
    spec: Annotated[dict[str, Any], Body(description="A job specification, as `sparring schema` describes it.")],
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> JobRecord:
    """Check a job and queue it. The same Idempotency-Key again gives back the job that it made."""
    job = shared.store.create(shared.admit(spec), home=shared.settings.home, idempotency_key=idempotency_key)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.get("/jobs")
def list_jobs(
    shared: Shared,
    after: Annotated[str | None, Query(description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    state: Annotated[list[JobState] | None, Query(description="Only these states.")] = None,
) -> JobPage:
    """Jobs, newest first."""
    try:
        found = shared.store.list(states=state, limit=limit + 1, after=after)
    except UnknownJob:
        raise InputError(f"after: {after!r} is not a job that this service knows; begin without it") from None
    page = tuple(job.summary() for job in found[:limit])
    return JobPage(jobs=page, next=page[-1].id if len(found) > limit else None)


@router.get("/jobs/{job_id}")
def show(shared: Shared, job_id: str) -> JobRecord:
    """One job, with its specification as it was resolved."""
    return shared.store.get(job_id)


@router.post("/jobs/{job_id}/cancel")
def cancel(shared: Shared, job_id: str) -> JobRecord:
    """Ask a job to stop. Its versions are kept, and it can be resumed."""
    return shared.store.request(job_id, RequestedAction.CANCEL)


@router.post("/jobs/{job_id}/resume")
def resume(shared: Shared, job_id: str) -> JobRecord:
    """Queue a failed or cancelled job again; it goes on from its newest version."""
    return shared.store.resume(job_id)
