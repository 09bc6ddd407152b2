"""Which jobs have a sampler for chat alone: so many at a time, the longest unused gives way, and each ends when it is idle. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from services.chat.errors import ChatUnavailable


@dataclass
class Place:
    """A job's place: how many use it now, and when somebody last did."""

    used: float
    users: int = 0


@dataclass(frozen=True)
class Stay:
    """One use of a place. ``gone``: the job whose place had to give way; it has to end before this one starts."""

    place: Place
    gone: str | None


class Places:
    """The places for chat alone, by job.

    Args:
        bound: at most so many.
        idle_seconds: one that nobody has used for so long is due to end.
        clock: seconds, monotonic.
    """

    def __init__(self, bound: int, idle_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.bound, self.idle_seconds = bound, idle_seconds
        self._clock = clock
        self._places: dict[str, Place] = {}

    def enter(self, job_id: str) -> Stay:
        """Use a job's place until ``leave``.

        Raises:
            ChatUnavailable: there is none, and all that there may be are in use.
        """
        now = self._clock()
        gone = None
        place = self._places.get(job_id)
        if place is None:
            if len(self._places) >= self.bound:
                gone = self._longest_unused()
                del self._places[gone]
            place = self._places[job_id] = Place(used=now)
        place.users, place.used = place.users + 1, now
        return Stay(place, gone)

    def leave(self, stay: Stay) -> None:
        """One use is over."""
        stay.place.users -= 1
        stay.place.used = self._clock()

    def due(self, *, all_unused: bool = False) -> list[str]:
        """Take out the places that nobody has used for too long, or all that nobody uses now; they have to end."""
        now = self._clock()
        found = [
            job_id
            for job_id, place in self._places.items()
            if place.users == 0 and (all_unused or now - place.used >= self.idle_seconds)
        ]
        for job_id in found:
            del self._places[job_id]
        return found

    def drop(self, job_id: str) -> None:
        """The place is gone: its processes died, or did not start."""
        self._places.pop(job_id, None)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._places

    def __len__(self) -> int:
        return len(self._places)

    def _longest_unused(self) -> str:
        unused = [(place.used, job_id) for job_id, place in self._places.items() if place.users == 0]
        if not unused:
            held = ", ".join(self._places) or "none"
            raise ChatUnavailable(
                f"all {self.bound} places for chat outside running jobs are in use (SPARRING_CHAT_PLACES; now: {held}); try again later"
                if self.bound
                else "this service starts no samplers for chat (SPARRING_CHAT_PLACES: 0)"
            )
        return min(unused)[1]
