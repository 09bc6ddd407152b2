"""Rank 0 and the other learner ranks at the same work: which of them was to blame when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from learner.ranks import RankLost
from workers.errors import CallTimeout, WorkerDied, WorkerError, WorkerUnavailable

Result = TypeVar("Result")

AFTERMATH_SECONDS = 10.0
"""A rank that fails closes its connections, so that the others fail at once; who is silent for longer is stuck."""


async def together(own: Awaitable[Result], others: Mapping[str, Awaitable[Any]]) -> Result:
    """Wait for rank 0 and the others, who wait for each other.

    Args:
        own: rank 0's work.
        others: by the names of the other ranks, in their order from 1, their calls.

    Returns:
        What rank 0 found.

    Raises:
        WorkerDied: a rank died; the message names it.
        WorkerUnavailable: a rank is silent, or two of them cannot reach each other.
        Exception: what a rank raised for a reason of its own.
    """
    if not others:
        return await own
    mine, calls = asyncio.ensure_future(own), {name: asyncio.ensure_future(call) for name, call in others.items()}
    everybody = {mine, *calls.values()}
    _, waiting = await asyncio.wait(everybody, return_when=asyncio.FIRST_EXCEPTION)
    if waiting:
        await asyncio.wait(waiting, timeout=AFTERMATH_SECONDS)
    blame = _blame(mine, calls)
    if blame is not None:
        for task in everybody:
            task.cancel()
        raise blame
    return mine.result()


def _blame(mine: asyncio.Future[Any], calls: Mapping[str, asyncio.Future[Any]]) -> BaseException | None:
    """The error that came first: a death before a reason of a rank's own, and those before what they did to the others."""
    errors = {name: call.exception() if call.done() else None for name, call in calls.items()}
    for number, (name, error) in enumerate(errors.items(), 1):
        if isinstance(error, WorkerDied):
            return WorkerDied(f"learner rank {number} of {len(calls) + 1} ({name}) died: {error}")
    own = mine.exception() if mine.done() else None
    raised = [error for error in (own, *errors.values()) if error is not None]
    for error in raised:
        if not isinstance(error, (RankLost, WorkerError, CallTimeout)):
            return error
    for number, (name, call) in enumerate(calls.items(), 1):
        error = errors[name]
        if not call.done() or isinstance(error, (WorkerUnavailable, CallTimeout)):
            reason = f"{error}" if error else f"it was silent for {AFTERMATH_SECONDS:g} s after the others had failed"
            return WorkerUnavailable(
                f"learner rank {number} of {len(calls) + 1} ({name}) cannot be reached: {reason}; see its log"
            )
    return WorkerUnavailable(str(raised[0])) if raised else None
