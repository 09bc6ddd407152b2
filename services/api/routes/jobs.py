"""Jobs: submit, list, look, pause, resume, cancel, delete."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.openapi.models import Example

from learner.errors import InputError
from services.api import problems
from services.api.bodies import UniqueKeysRoute
from services.api.context import Shared
from services.api.guard import READ, WRITE
from services.api.models import JobPage
from services.jobs.records import JobRecord
from services.jobs.state import JobState, RequestedAction
from services.jobs.store import UnknownJob

router = APIRouter(tags=["jobs"], route_class=UniqueKeysRoute, dependencies=[READ])

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Sent again under the same key, a request is done once; another request under it is refused.",
    ),
]

EXAMPLES: dict[str, Example] = {
    "rounds": {
        "summary": "Rounds with PairRM, as in the papers",
        "value": {
            "name": "help-desk",
            "policy": {"model": "Qwen/Qwen2.5-0.5B-Instruct"},
            "prompts": {"source": "prompts.jsonl"},
            "scorer": {"model": {"kind": "pairrm", "model": "llm-blender/PairRM-hf"}},
            "objective": {"kind": "sppo", "beta": 0.001},
            "schedule": {"mode": "rounds", "rounds": 3, "prompts_per_round": 4000, "prompts_per_step": 64},
            "evaluation": {"prompts": {"source": "held_out.jsonl"}, "count": 256},
            "metadata": {"team": "search"},
        },
    },
    "online": {
        "summary": "Sampling and learning side by side, with room for what people prefer",
        "value": {
            "name": "help-desk-online",
            "policy": {"model": "Qwen/Qwen2.5-0.5B-Instruct"},
            "prompts": {"source": "prompts.jsonl"},
            "objective": {"kind": "dpo", "beta": 0.1},
            "schedule": {"mode": "online", "max_staleness": 2},
            "feedback": {"share": 0.25},
        },
    },
}
"""Bodies that a job can be made of; the files must be there."""

MOST_LABELS = 64
"""As many as a job can have; each is a part of the database's query."""

_LABEL = re.compile(r"metadata\[(.*)\]", re.DOTALL)

LABELS_PARAMETER: dict[str, Any] = {
    "name": "metadata",
    "in": "query",
    "required": False,
    "style": "deepObject",
    "explode": True,
    "description": "Only jobs that have all of these labels: `metadata[team]=search`.",
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
}


def _labels(request: Request) -> dict[str, str]:
    """``metadata[name]=value`` parameters.

    Raises:
        InputError: one name comes with two values, or there are more names than a job has.
    """
    found: dict[str, str] = {}
    for key, value in request.query_params.multi_items():
        if (name := _LABEL.fullmatch(key)) is None:
            continue
        if found.setdefault(name[1], value) != value:
            raise InputError(f"{key}: {found[name[1]]!r} and {value!r} are two values of one label; send one")
    if len(found) > MOST_LABELS:
        raise InputError(
            f"metadata: {len(found)} labels are asked for, and a job has at most {MOST_LABELS}; ask for fewer"
        )
    return found


Labels = Annotated[dict[str, str], Depends(_labels)]


@router.post("/jobs", status_code=201, dependencies=[WRITE])
def submit(
    shared: Shared,
    response: Response,
    spec: Annotated[
        dict[str, Any],
        Body(description="A job specification, as `sparring schema` describes it.", openapi_examples=EXAMPLES),
    ],
    idempotency_key: IdempotencyKey = None,
) -> JobRecord:
    """Check a job and queue it. The same Idempotency-Key again gives back the job that it made."""
    job = shared.store.create(shared.admit(spec), home=shared.settings.home, idempotency_key=idempotency_key)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.get("/jobs", openapi_extra={"parameters": [LABELS_PARAMETER]})
def list_jobs(
    shared: Shared,
    labels: Labels,
    after: Annotated[str | None, Query(description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    state: Annotated[list[JobState] | None, Query(description="Only these states.")] = None,
) -> JobPage:
    """Jobs, newest first."""
    try:
        found = shared.store.list(states=state, labels=labels, limit=limit + 1, after=after)
    except UnknownJob:
        raise InputError(f"after: {after!r} is not a job that this service knows; begin without it") from None
    page = tuple(found[:limit])
    return JobPage(jobs=page, next=page[-1].id if len(found) > limit else None)


@router.get("/jobs/{job_id}")
def show(shared: Shared, job_id: str) -> JobRecord:
    """One job, with its specification as it was resolved."""
    return shared.store.get(job_id)


@router.post("/jobs/{job_id}/cancel", dependencies=[WRITE], responses=problems.responses(409))
def cancel(shared: Shared, job_id: str, idempotency_key: IdempotencyKey = None) -> JobRecord:
    """Ask a job to stop. Its versions are kept, and it can be resumed."""
    return shared.store.request(job_id, RequestedAction.CANCEL, idempotency_key=idempotency_key)


@router.post("/jobs/{job_id}/pause", dependencies=[WRITE], responses=problems.responses(409))
def pause(shared: Shared, job_id: str, idempotency_key: IdempotencyKey = None) -> JobRecord:
    """Ask a job to hold where it is: nothing more is sampled or learned, and its workers stay. One that is starting pauses once it runs."""
    return shared.store.request(job_id, RequestedAction.PAUSE, idempotency_key=idempotency_key)


@router.post("/jobs/{job_id}/resume", dependencies=[WRITE], responses=problems.responses(409))
def resume(shared: Shared, job_id: str, idempotency_key: IdempotencyKey = None) -> JobRecord:
    """Let a paused job go on; queue a failed or cancelled one again, which goes on from its newest version."""
    return shared.store.resume(job_id, idempotency_key=idempotency_key)


@router.delete("/jobs/{job_id}", status_code=204, dependencies=[WRITE], responses=problems.responses(409))
def delete(shared: Shared, job_id: str, idempotency_key: IdempotencyKey = None) -> None:
    """Delete a job that has ended, with its versions, samples, history and logs. Nothing of it is left."""
    shared.store.delete(job_id, idempotency_key=idempotency_key)
