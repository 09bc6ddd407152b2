"""The audit: who wrote what."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from services.api.context import Shared
from services.api.guard import ADMIN
from services.api.models import AuditPage

router = APIRouter(tags=["audit"], dependencies=[ADMIN])


@router.get("/audit")
def audit(
    shared: Shared,
    after: Annotated[int | None, Query(ge=1, le=2**53, description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    job_id: Annotated[str | None, Query(description="Only what was done to this job.")] = None,
    key_id: Annotated[str | None, Query(description="Only what was done with this key.")] = None,
) -> AuditPage:
    """Every write that reached a route, newest first: by whom, on which job, and how it was answered."""
    found = shared.access.audit(limit=limit + 1, before=after, job_id=job_id, key_id=key_id)
    page = tuple(found[:limit])
    return AuditPage(entries=page, next=page[-1].number if len(found) > limit else None)
