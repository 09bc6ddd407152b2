"""Threads for what blocks: so many that slow work seldom waits for other work, and some of its own for what every request passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")

SHARED_THREADS = 64
"""Of `asyncio.to_thread`. They wait for databases, files and the cluster rather than compute; asyncio's own number, of the machine's processors
and four, is soon taken by a few slow requests."""

OWN_THREADS = 4
"""Of one `Threads`: its work is one short transaction at a time."""


class Threads:
    """A few threads of its own for one kind of work, which then waits for no other.

    They end with it.

    Args:
        name: of the work.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(OWN_THREADS, thread_name_prefix=name)

    async def run(self, work: Callable[P, Result], /, *args: P.args, **kwargs: P.kwargs) -> Result:
        """As `asyncio.to_thread` does it."""
        context = copy_context()  # the log's request id is in it
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: context.run(work, *args, **kwargs))


def enlarge_shared() -> None:
    """Give the running event loop's `asyncio.to_thread` its threads; the loop ends them with itself."""
    pool = ThreadPoolExecutor(SHARED_THREADS, thread_name_prefix="shared")
    asyncio.get_running_loop().set_default_executor(pool)
