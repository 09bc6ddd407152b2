"""How long to wait for one of many things that are worked on together (rule 9)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class Patience:
    """Waits for a thing as long as any of them gets done: what stands in line behind others is not late.

    Args:
        seconds: longest time in which none of them is finished.
        setting: where a person changes that.
        clock: monotonic seconds.
    """

    def __init__(self, seconds: float, setting: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._setting, self._clock = seconds, setting, clock
        self._finished_at = clock()

    async def wait(self, work: Awaitable[T]) -> T:
        """The result of ``work``, which is cancelled when the wait ends otherwise.

        Raises:
            TimeoutError: it and all others have not been finished for so long.
        """
        task, began = asyncio.ensure_future(work), self._clock()
        try:
            while not task.done():
                left = max(began, self._finished_at) + self._seconds - self._clock()
                if left <= 0:
                    raise TimeoutError(f"nothing was finished within {self._seconds:g} s ({self._setting})")
                await asyncio.wait({task}, timeout=left)
            result = task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._finished_at = self._clock()
        return result
