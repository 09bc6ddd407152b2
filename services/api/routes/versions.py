"""Versions: what was published, and one of them as a zip that unpacks into a plain peft folder."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse

from learner.records import Module
from services.adapters import adapter_files, zipped
from services.api.context import Shared
from services.api.guard import READ
from services.api.models import LAST_NUMBER, VersionList

router = APIRouter(tags=["versions"], dependencies=[READ])


@router.get("/jobs/{job_id}/versions")
def versions(shared: Shared, job_id: str) -> VersionList:
    """The job's versions, oldest first, with their evaluations."""
    return VersionList(versions=tuple(shared.store.versions(job_id)))


@router.get(
    "/jobs/{job_id}/versions/{version}/download",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "A zip of a peft folder.",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
def download(
    shared: Shared,
    job_id: str,
    version: Annotated[int, Path(ge=0, le=LAST_NUMBER)],
    module: Annotated[Module, Query()] = "fast",
) -> StreamingResponse:
    """One version's adapter, as a zip of the files that peft and vLLM read."""
    files = adapter_files(shared.store.get(job_id), version, module)
    name = f"{job_id}-{module}-v{version}"
    headers = {"Content-Disposition": f'attachment; filename="{name}.zip"'}
    return StreamingResponse(zipped(files, name), media_type="application/zip", headers=headers)
