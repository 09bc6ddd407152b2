"""When a job will end, from how far it has come. Pure: no store, no clock."""

from __future__ import annotations

from datetime import datetime, timedelta

LEAST = 0.01
"""Share of the job that must have been done before its speed says anything."""

LONGEST = timedelta(days=3650)
"""What is further away than this is not a time that means something."""


def estimated_finish(progress: float, since: datetime | None, begun_at: float | None, now: datetime) -> datetime | None:
    """When the job ends if it goes on at its mean speed; None while that is unknown.

    Args:
        progress: share of the job that is done.
        since: when its loop began to turn; None when it does not turn.
        begun_at: the share that was done then.
    """
    if since is None or begun_at is None or now <= since or progress - begun_at < LEAST:
        return None
    left = (now - since).total_seconds() * (1.0 - progress) / (progress - begun_at)
    return now + timedelta(seconds=left) if left < LONGEST.total_seconds() else None
