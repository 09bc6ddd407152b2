"""One job's live page: its head, and tabs of which the open one is kept up to date."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request
from nicegui import ui

from services.dashboard.answers_tab import AnswersTab
from services.dashboard.curves_tab import CurvesTab
from services.dashboard.domains_tab import DomainsTab
from services.dashboard.events_tab import EventsTab
from services.dashboard.fleet_tab import FleetTab
from services.dashboard.frame import RESPONSE_SECONDS, Text, every_second, frame
from services.dashboard.job_head import JobHead
from services.dashboard.live import LiveJob, Part
from services.dashboard.samples_tab import SamplesTab
from services.dashboard.session import Desk, Session
from services.dashboard.signal_tab import SignalTab
from services.dashboard.tab import JobDesk, MakeTab, Tab
from services.dashboard.versions_tab import VersionsTab
from services.jobs.store import UnknownJob

TABS: dict[str, MakeTab] = {
    "Curves": CurvesTab,
    "Signal": SignalTab,
    "Samples": SamplesTab,
    "Answers": AnswersTab,
    "Domains": DomainsTab,
    "Fleet": FleetTab,
    "Events": EventsTab,
    "Versions": VersionsTab,
}
"""By their names, which addresses name in small letters: ``/jobs/JOB?tab=fleet``."""

EVERYTHING: frozenset[Part] = frozenset({"job", "events", "versions", "metrics"})


def register(desk: Desk) -> None:
    """Serve the page."""

    @ui.page("/jobs/{job_id}", response_timeout=RESPONSE_SECONDS)
    async def job(request: Request, job_id: str, tab: str = "curves") -> None:
        session = Session(desk, request)
        try:
            live = await asyncio.to_thread(LiveJob, desk.shared.store, job_id)
        except UnknownJob as error:
            with frame(session, "No such job"):
                Text("p", str(error))
            return
        with frame(session, job_id):
            _JobPage(JobDesk(desk.shared, session, live), tab.capitalize())


class _JobPage:
    def __init__(self, desk: JobDesk, tab: str) -> None:
        self._desk = desk
        self._head = JobHead(desk)
        self._tabs: dict[str, Tab] = {}
        self._unseen: dict[str, set[Part]] = {name: set(EVERYTHING) for name in TABS}
        first = tab if tab in TABS else next(iter(TABS))
        self._open = first
        with ui.tabs(on_change=self._opened).props("dense no-caps align=left mobile-arrows") as tabs:
            for name in TABS:
                ui.tab(name)
        with ui.tab_panels(tabs, value=first, animated=False).classes("panels"):
            self._panels = {name: ui.tab_panel(name) for name in TABS}
        self._busy = asyncio.Lock()  # a tab is not drawn while what it shows is being read
        every_second(self._desk.session, self._look)

    async def _opened(self, event: Any) -> None:
        self._open = event.value
        ui.run_javascript(f'history.replaceState(history.state, "", "?tab={event.value.lower()}")')
        async with self._busy:
            await self._refresh()

    async def _look(self) -> None:
        async with self._busy:
            try:
                changed = await asyncio.to_thread(self._desk.live.look)
            except UnknownJob:  # somebody deleted it
                ui.navigate.to("/")
                return
            if "job" in changed or "versions" in changed:
                self._head.show()
            for unseen in self._unseen.values():
                unseen |= changed
            await self._refresh()

    async def _refresh(self) -> None:
        """Bring the open tab up to date; a tab is made when it is opened for the first time."""
        name = self._open
        unseen = self._unseen[name]
        if not unseen:
            return
        with self._panels[name]:
            if name not in self._tabs:
                self._tabs[name] = TABS[name](self._desk)
            await self._tabs[name].refresh(frozenset(unseen))
        unseen.clear()
