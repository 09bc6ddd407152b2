"""Preferences that people send while a job runs, and what became of them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body
from pydantic import WithJsonSchema

from services.api import problems
from services.api.bodies import UniqueKeysRoute
from services.api.context import Shared
from services.api.guard import READ, WRITE
from services.api.routes.jobs import IdempotencyKey
from services.jobs.feedback import count_feedback, take_in
from services.jobs.records import FeedbackCounts, Preference, PreferencesReceipt

router = APIRouter(tags=["preferences"], route_class=UniqueKeysRoute, dependencies=[READ])

EXAMPLE = [
    {"id": "click-1", "prompt": "How do I reset my password?", "chosen": "Choose Forgot password.", "rejected": "No."},
    {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Are you open today?"}],
        "chosen": "Yes, until six.",
        "rejected": "We are, as on every day of the week, open.",
        "domain": "opening hours",
        "rater": "anna",
    },
]


Preferences = Annotated[
    list[Any],
    WithJsonSchema({"type": "array", "items": Preference.model_json_schema(), "examples": [EXAMPLE]}),
    Body(),
]
"""Any list: what is wrong with one of them is said in our own words, with its place and field."""


@router.post("/jobs/{job_id}/preferences", status_code=202, dependencies=[WRITE], responses=problems.responses(409))
def send(
    shared: Shared, job_id: str, preferences: Preferences, idempotency_key: IdempotencyKey = None
) -> PreferencesReceipt:
    """Let the job learn from what people preferred. All are stored, or none; the same id again is stored once.

    It takes them in by and by, at most `feedback.share` of each version's groups.
    """
    return take_in(shared.store, job_id, preferences, idempotency_key=idempotency_key)


@router.get("/jobs/{job_id}/preferences")
def count(shared: Shared, job_id: str) -> FeedbackCounts:
    """How many of the job's preferences wait, are on their way, were learned from, or were refused and why."""
    return count_feedback(shared.store, job_id)
