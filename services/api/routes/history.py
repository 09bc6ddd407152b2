"""What happens in a job: events, as pages or as a stream, and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from learner.errors import InputError
from services.api.context import Context, Shared
from services.api.guard import READ
from services.api.models import LAST_NUMBER, EventPage, MetricSeries
from services.jobs.records import JobEvent

router = APIRouter(tags=["history"], dependencies=[READ])

POLL_SECONDS = 0.5
KEEP_ALIVE_SECONDS = 15
STREAM_BATCH = 200


@router.get(
    "/jobs/{job_id}/events",
    response_model=EventPage,
    responses={
        200: {
            "description": "A page, or with `Accept: text/event-stream` a stream whose data are events.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        204: {"description": "The job has ended and every event was seen: a browser must not reconnect."},
    },
)
async def events(
    request: Request,
    shared: Shared,
    job_id: str,
    after: Annotated[int, Query(ge=0, le=LAST_NUMBER, description="The number of the last event already seen.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 500,
    last_event_id: Annotated[str | None, Header(description="As a browser sends it when it reconnects.")] = None,
) -> Response | EventPage:
    """The job's events.

    With `Accept: text/event-stream` they are streamed as they happen, until the job has ended; after that the answer is
    204, which tells a browser not to reconnect. Otherwise one page as JSON.
    """
    if "text/event-stream" not in request.headers.get("accept", ""):
        found = await asyncio.to_thread(shared.store.events_after, job_id, after, limit)
        return EventPage(events=tuple(found), next=found[-1].seq if found else after)
    if last_event_id is not None:
        if not last_event_id.isdecimal() or len(last_event_id) > 10 or int(last_event_id) > LAST_NUMBER:
            raise InputError(f"Last-Event-ID: {last_event_id!r} is not the number of an event")
        after = int(last_event_id)
    ended, waiting = await asyncio.to_thread(_look, shared, job_id, after)
    if ended and not waiting:
        return Response(status_code=204)
    return EventSourceResponse(
        _stream(shared, job_id, after),
        ping=KEEP_ALIVE_SECONDS,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get("/jobs/{job_id}/metrics")
def metrics(
    shared: Shared,
    job_id: str,
    name: Annotated[list[str] | None, Query(description="Only these metrics.")] = None,
    max_points: Annotated[int, Query(ge=1, le=10_000, description="Longer series are thinned evenly.")] = 500,
) -> MetricSeries:
    """The job's metrics over time."""
    found = shared.store.series(job_id, name, max_points)
    return MetricSeries(series={key: tuple(points) for key, points in found.items()})


def _look(shared: Context, job_id: str, after: int) -> tuple[bool, list[JobEvent]]:
    # the state first: an event that is written together with the last state is then never missed
    ended = shared.store.get(job_id).state.terminal
    return ended, shared.store.events_after(job_id, after, STREAM_BATCH)


async def _stream(shared: Context, job_id: str, after: int) -> AsyncIterator[ServerSentEvent]:
    while True:
        ended, found = await asyncio.to_thread(_look, shared, job_id, after)
        for event in found:
            after = event.seq
            yield ServerSentEvent(data=event.model_dump_json(), id=str(event.seq), event=event.kind)
        if ended and not found:
            return
        if len(found) < STREAM_BATCH and not ended:
            await asyncio.sleep(POLL_SECONDS)
