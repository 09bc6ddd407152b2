"""Samples: prompts, their answers with provenance, and how the scorer compared them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from learner.preference import win_matrix, win_probabilities
from learner.records import Answer, GroupState, ScoredGroup
from services.api.context import Shared, paths_of
from services.api.guard import READ
from services.api.models import LAST_NUMBER, Sample, SampledAnswer, SamplePage
from services.jobs.group_pages import cut, read_cursor
from services.jobs.records import JobRecord
from services.jobs.spec import JobSpec
from workers.replay.rows import GroupRow
from workers.replay.view import LedgerView

router = APIRouter(tags=["samples"], dependencies=[READ])


@router.get("/jobs/{job_id}/samples")
def samples(
    shared: Shared,
    job_id: str,
    state: Annotated[GroupState | None, Query(description="Only groups in this state.")] = None,
    version: Annotated[
        int | None, Query(ge=0, le=LAST_NUMBER, description="Only groups that this version wrote.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
    after: Annotated[str | None, Query(description="`next` of the page before.")] = None,
) -> SamplePage:
    """What was sampled, in order of round and index."""
    job = shared.store.get(job_id)
    path = paths_of(job).replay_database
    cursor = read_cursor(after)
    if not path.is_file():  # not begun to sample
        return SamplePage(samples=(), next=None)
    view = LedgerView(path)
    try:
        rows = view.groups(state=state, version=version, limit=limit + 1, after=cursor)
    finally:
        view.close()
    temperature = _scorer_temperature(job)
    page, following = cut(rows, limit)
    return SamplePage(samples=tuple(_sample(row, temperature) for row in page), next=following)


def _scorer_temperature(job: JobRecord) -> float:
    return JobSpec.model_validate(job.spec).scorer.temperature


def _sample(row: GroupRow, temperature: float) -> Sample:
    prompt = row.group.prompt if row.group else row.ticket.prompt if row.ticket else None
    base = Sample(
        group_id=row.group_id,
        source=row.source,
        round=row.round,
        index=row.index,
        state=row.state,
        version=row.version,
        produced_version=row.produced_version,
        stage=row.stage,
        reason=row.reason,
        prompt=prompt,
    )
    return base if row.group is None else base.model_copy(update=_compared(row.group, temperature))


def _compared(group: ScoredGroup, temperature: float) -> dict[str, object]:
    matrix = win_matrix(group.ordered_logits, temperature)
    shares = [float(share) for share in win_probabilities(matrix)]
    return {
        "answers": tuple(_answer(answer, share) for answer, share in zip(group.answers, shares, strict=True)),
        "scorer": group.scorer,
        "ordered_logits": group.ordered_logits,
        "win_matrix": tuple(tuple(row) for row in matrix.tolist()),
    }


def _answer(answer: Answer, win_probability: float) -> SampledAnswer:
    return SampledAnswer(
        **answer.model_dump(exclude={"token_ids", "logprobs"}),
        tokens=len(answer.token_ids),
        logprob=None if answer.logprobs is None else sum(answer.logprobs),
        win_probability=win_probability,
    )
