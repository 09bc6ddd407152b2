"""The domains of a job that learns one after another, and how that went."""

from __future__ import annotations

from fastapi import APIRouter

from learner.transfer import TransferMatrix
from services.api.context import Shared
from services.api.guard import READ
from services.api.models import DomainList, DomainVersions, Transfer
from services.jobs.transfer import averages, job_transfer

router = APIRouter(tags=["domains"], dependencies=[READ])


@router.get("/jobs/{job_id}/domains")
def domains(shared: Shared, job_id: str) -> DomainList:
    """The job's domains with their versions, the win rates on each after each, and the averages."""
    found = job_transfer(shared.store.get(job_id), shared.store.versions(job_id))
    if found is None:
        return DomainList()
    return DomainList(
        domains=tuple(
            DomainVersions(name=domain.name or "", start=domain.start, learned=domain.learned, end=domain.end)
            for domain in found.domains
        ),
        scorer=_transfer(found.scorer),
        gold=None if found.gold is None else _transfer(found.gold),
    )


def _transfer(matrix: TransferMatrix) -> Transfer:
    unknown = (None,) * len(matrix.domains)
    later = (unknown,) * (len(matrix.domains) - matrix.learned)
    return Transfer(win_rates=(*matrix.rows, *later), learned=matrix.learned, **averages(matrix))
