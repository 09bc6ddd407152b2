"""The list of jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request
from nicegui import ui

from services.dashboard.frame import Text, box, every_second, frame, set_attribute
from services.dashboard.session import Desk, Session
from services.dashboard.words import best_win_rate, moment, state_badge
from services.jobs.records import JobSummary
from services.jobs.state import JobState
from services.jobs.store import JobStore

PAGE = 50
"""Jobs that are shown at first, and that are added by a click."""

SEARCHED = 1000
"""Newest jobs that are searched for words; a page looks again every second."""

COLUMNS = ("Job", "State", "Progress", "Best win rate", "Version", "Created")


@dataclass(frozen=True)
class Row:
    """One job as the list shows it."""

    job: JobSummary
    win_rate: str


class BestWinRates:
    """The win rate of each job's best version in words, read again only when another version became the best."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._known: dict[tuple[str, int], str] = {}

    def of(self, job: JobSummary) -> str:
        """The win rate with its interval; empty before the first evaluation."""
        if job.best_version is None:
            return ""
        key = (job.id, job.best_version)
        if key not in self._known:
            self._known[key] = best_win_rate(self._store.versions(job.id))
        return self._known[key]


class JobTable:
    """The table, changed in place: a row that stays keeps the keyboard's focus."""

    def __init__(self) -> None:
        with box("table", "cards"):
            with box("thead"), box("tr"):
                for heading in COLUMNS:
                    Text("th", heading)
            self._body = box("tbody")
        self._empty = Text("p", "", "quiet")
        self._rows: dict[str, _JobRow] = {}

    def show(self, rows: Sequence[Row], *, filtered: bool) -> None:
        """Show these jobs, in this order."""
        if list(self._rows) != [row.job.id for row in rows]:
            self._body.clear()
            with self._body:
                self._rows = {row.job.id: _JobRow(row) for row in rows}
        for row in rows:
            self._rows[row.job.id].show(row)
        none = (
            f"No job fits the filter; words are looked for in the newest {SEARCHED} jobs."
            if filtered
            else "There are no jobs yet. Start one, or send one over REST."
        )
        self._empty.text = "" if rows else none


class _JobRow:
    def __init__(self, row: Row) -> None:
        with box("tr"):
            with _cell("Job"):
                ui.link(row.job.id, f"/jobs/{row.job.id}")
            with _cell("State"):
                self.state = Text("span", "", "badge")
            with _cell("Progress"), box("div", "progress"):
                self.bar = box("progress", max="1", value="0", aria_label=f"progress of {row.job.id}")
                self.stage = Text("span", "", "quiet")
            with _cell("Best win rate"):
                self.win_rate = Text("span")
            with _cell("Version"):
                self.version = Text("span")
            with _cell("Created"):
                Text("span", moment(row.job.created_at))

    def show(self, row: Row) -> None:
        job = row.job
        state_badge(self.state, job)
        set_attribute(self.bar, "value", f"{job.progress:.3f}")
        self.stage.text = f"{job.progress:.0%} {'' if job.state.terminal else job.stage or ''}".strip()
        self.win_rate.text = row.win_rate or "–"
        self.version.text = "–" if job.current_version is None else f"v{job.current_version}"


def _cell(heading: str) -> ui.element:
    """A cell; on a phone, where rows are cards, its heading stands in it."""
    return box("td", data_label=heading)


def register(desk: Desk) -> None:
    """Serve the page."""

    @ui.page("/")
    async def jobs(request: Request) -> None:
        session = Session(desk, request)
        with frame(session, "Jobs"):
            _jobs(session, desk.shared.store)


def _jobs(session: Session, store: JobStore) -> None:
    rates = BestWinRates(store)
    limit = PAGE
    shown: tuple[Row, ...] | None = None

    with box("div", "bar"):
        state = ui.select(["any state", *JobState], value="any state", label="State").props("outlined dense")
        words = ui.input("Name or label contains").props("outlined dense clearable")
        ui.link("Start a job", "/start").classes("button")
    table = JobTable()

    def read() -> tuple[tuple[Row, ...], bool]:
        wanted = None if state.value == "any state" else [JobState(state.value)]
        text = (words.value or "").strip().lower()
        found: list[Row] = []
        after: str | None = None
        for _ in range(SEARCHED // PAGE if text else limit // PAGE + 1):
            page = store.list(states=wanted, limit=PAGE + 1, after=after)
            found += [Row(job, rates.of(job)) for job in page if _fits(job, text)]
            if len(page) <= PAGE or len(found) > limit:
                break
            after = page[-1].id
        return tuple(found[:limit]), len(found) > limit

    async def look() -> None:
        nonlocal shown
        rows, further = await asyncio.to_thread(read)
        more.set_visibility(further)
        if rows != shown:
            shown = rows
            table.show(rows, filtered=state.value != "any state" or bool(words.value))

    async def show_more() -> None:
        nonlocal limit
        limit += PAGE
        await look()

    more = ui.button("Show more", on_click=show_more).props("flat no-caps")
    state.on_value_change(look)
    words.on_value_change(look)
    every_second(session, look)


def _fits(job: JobSummary, text: str) -> bool:
    said = [job.id, *(f"{name}={value}" for name, value in job.metadata.items())]
    return not text or any(text in each.lower() for each in said)
