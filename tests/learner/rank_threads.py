"""Ranks as threads of one process: real trainers and reducers, without the minutes that processes take to start."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Meeting:
    """Where the threads hand over what they have."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._parts: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=60)

    def exchange(self, rank: int, part: Any) -> list[Any]:
        """Everybody's part, once everybody is here."""
        self._parts[rank] = part
        self._barrier.wait()
        parts = list(self._parts)
        self._barrier.wait()
        return parts

    def abort(self) -> None:
        """End the waits of all others."""
        self._barrier.abort()


class ThreadRanks:
    """One of the threads, as ``learner.ranks.Ranks``."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting, self.rank, self.size = meeting, rank, meeting.size

    def sum(self, vector: Tensor) -> None:
        vector.copy_(torch.stack(self._meeting.exchange(self.rank, vector.clone())).sum(0))

    def combine(self, vector: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
        return rule(torch.stack(self._meeting.exchange(self.rank, vector)))

    def gather(self, part: Any) -> list[Any]:
        return [json.loads(text) for text in self._meeting.exchange(self.rank, json.dumps(part))]


def on_ranks(size: int, work: Callable[[ThreadRanks], Result]) -> list[Result]:
    """What ``work`` returns on each of so many ranks."""
    meeting = Meeting(size)

    def one(rank: int) -> Result:
        try:
            return work(ThreadRanks(meeting, rank))
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(one, range(size)))
