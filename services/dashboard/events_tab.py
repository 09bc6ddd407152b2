"""What happens in a job, as it happens."""

from __future__ import annotations

from collections.abc import Collection

from nicegui import ui

from services.dashboard.frame import Text, box
from services.dashboard.live import EVENTS, Part
from services.dashboard.tab import JobDesk
from services.dashboard.words import clock
from services.jobs.records import JobEvent


class EventsTab:
    """The newest events, the newest first. A row is made once and stays."""

    def __init__(self, desk: JobDesk) -> None:
        self._live = desk.live
        Text("p", f"Newest first; at most {EVENTS} are shown.", "quiet")
        with box("table", "cards"):
            with box("thead"), box("tr"):
                for heading in ("Time", "Kind", "What"):
                    Text("th", heading)
            self._rows = box("tbody")
        self._seq = 0

    async def refresh(self, changed: Collection[Part]) -> None:
        """Put new events on top."""
        with self._rows:
            for event in self._live.events:
                if event.seq > self._seq:
                    _row(event).move(target_index=0)
                    self._seq = event.seq
        rows = list(self._rows)
        for row in rows[EVENTS:]:
            self._rows.remove(row)


def _row(event: JobEvent) -> ui.element:
    with box("tr") as row:
        for heading, text in (("Time", clock(event.time)), ("Kind", event.kind), ("What", event.message)):
            with box("td", data_label=heading):
                Text("span", text, "wrap")
    return row
