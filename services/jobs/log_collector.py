"""Brings what workers on other machines log into the job's folder, while they live."""

from __future__ import annotations

import logging
from pathlib import Path

from workers import logs
from workers.cluster import Link
from workers.errors import CallTimeout

log = logging.getLogger(__name__)


class LogCollector:
    """Fetches what the folder lacks; where it stopped, the sizes of its files say.

    Args:
        folder: of the job's logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mark = logs.mark(folder)
        self._ours: set[str] = set()

    async def collect(self, link: Link, timeout_seconds: float) -> None:
        """One look at a worker's files. It is not asked again if it writes to the folder itself. A full disk costs logs, not the job.

        Raises:
            WorkerDied, WorkerUnavailable, CallTimeout: as calls of the link.
        """
        if link.name in self._ours:
            return
        try:
            await self._fetch(link, timeout_seconds)
        except CallTimeout:  # an OSError too
            raise
        except OSError as error:
            log.warning("what %s logs was not fetched: %s", link.name, error)

    def started(self, name: str) -> None:
        """A worker was started anew, perhaps on another machine."""
        self._ours.discard(name)

    async def _fetch(self, link: Link, timeout_seconds: float) -> None:
        sizes = {path.name: path.stat().st_size for path in self._folder.glob(f"{link.name}-*@*")}
        pieces = await link.call("unread_log", self._mark, sizes, timeout_seconds=timeout_seconds)
        if pieces is None:
            self._ours.add(link.name)
            return
        for name, (offset, piece) in pieces.items():
            with (self._folder / name).open("ab") as file:
                if file.tell() == offset:
                    file.write(piece)
