"""Requests that come with an idempotency key, so that one whose answer was lost can be sent again: each is done once."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta

from pydantic import JsonValue
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from learner.errors import InputError
from services.jobs.tables import RequestRow

KEPT = timedelta(days=7)
"""How long a key is known: far longer than anybody tries again."""


class IdempotencyConflict(InputError):
    """An idempotency key came again with another request."""


def fingerprint(content: JsonValue) -> str:
    """A digest of what a request asks for."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def first_time(session: Session, key: str | None, wanted: str, now: datetime) -> bool:
    """Whether a request is to be done now: it has no key, or its key is new, which is then noted with what the transaction writes.

    Args:
        key: the request's idempotency key.
        wanted: what it asks for, to recognise it by; also what messages call it.

    Raises:
        IdempotencyConflict: the key came before with another request.
    """
    if key is None:
        return True
    session.execute(delete(RequestRow).where(RequestRow.created_at < now - KEPT))
    row = RequestRow(key=key, fingerprint=fingerprint(wanted), created_at=now)
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        earlier = session.get_one(RequestRow, key)
        if earlier.fingerprint != row.fingerprint:
            raise IdempotencyConflict(
                f"Idempotency-Key: {key!r} came before with another request than to {wanted}; send a new key"
            ) from None
        return False
    return True
