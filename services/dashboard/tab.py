"""What the tabs of a job's page have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from services.api.context import Context
from services.dashboard.live import LiveJob, Part
from services.dashboard.session import Session


@dataclass(frozen=True)
class JobDesk:
    """What a tab works with: the service's parts, whose page it is, and the job as far as it has been looked at."""

    shared: Context
    session: Session
    live: LiveJob


class Tab(Protocol):
    """One tab. It is made when it is opened for the first time, inside its panel."""

    async def refresh(self, changed: Collection[Part]) -> None:
        """Show what has changed since the last call."""


MakeTab = Callable[[JobDesk], Tab]
