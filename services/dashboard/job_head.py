"""The head of a job's page: how it stands, and the buttons that change that."""

from __future__ import annotations

from collections.abc import Callable

from nicegui import ui

from learner.errors import InputError
from services.dashboard.frame import Text, box, set_attribute
from services.dashboard.tab import JobDesk
from services.dashboard.versions_tab import download_address
from services.dashboard.words import best_win_rate, moment, plural, state_badge
from services.jobs.records import JobRecord
from services.jobs.state import RESUMABLE, JobState, RequestedAction


class JobHead:
    """State, progress, error and buttons; changed in place."""

    def __init__(self, desk: JobDesk) -> None:
        self._desk = desk
        with box("div", "bar"):
            self._state = Text("span", "", "badge")
            with box("span", "progress"):
                self._bar = box("progress", max="1", aria_label="progress of the job")
                self._stage = Text("span", "", "quiet")
            self._best = Text("span")
        self._error = box("p", "error", role="alert")
        with self._error:
            self._why = Text("span", "", "wrap")
        with box("div", "bar"):
            self._pause = self._button("Pause", self._ask(RequestedAction.PAUSE))
            self._resume = self._button("Resume", self._go_on)
            self._cancel = self._button("Cancel", None)
            self._download = ui.link("Download the adapter", "#").classes("button")
            self._prefer = ui.link("Give preferences", f"/jobs/{desk.live.job.id}/preferences")
            self._report = ui.link("Report", f"/v1/jobs/{desk.live.job.id}/report")
            ui.link("Logs", f"/v1/jobs/{desk.live.job.id}/logs")
        self._said = Text("p", "", "error")
        set_attribute(self._said, "role", "alert")
        self._confirm_cancel()
        self.show()

    def show(self) -> None:
        """Show the job as it stands."""
        job = self._desk.live.job
        state_badge(self._state, job)
        set_attribute(self._bar, "value", f"{job.progress:.3f}")
        stage = "" if job.state.terminal else job.stage or ""
        restarts = f", {plural(job.restarts, 'restart')}" if job.restarts else ""
        attempt = f", attempt {job.attempt}" if job.attempt > 1 else ""
        finish = job.estimated_finish_at
        end = "" if finish is None else f", done about {moment(finish)}"
        self._stage.text = f"{job.progress:.0%} {stage}{attempt}{restarts}{end}".strip()
        rate = best_win_rate(self._desk.live.versions)
        self._best.text = f"best version v{job.best_version}: {rate}" if rate else ""
        self._error.set_visibility(job.error is not None)
        self._why.text = "" if job.error is None else job.error.message
        may = self._desk.session.may_write
        asked = job.requested
        self._pause.set_visibility(may and job.state is JobState.RUNNING and asked is None)
        self._resume.set_visibility(
            may and (job.state in RESUMABLE or (job.state is JobState.PAUSED and asked is None))
        )
        self._cancel.set_visibility(may and not job.state.terminal and asked is not RequestedAction.CANCEL)
        self._prefer.set_visibility(may and not job.state.terminal)
        self._report.set_visibility(job.state.terminal)
        version = job.current_version if job.best_version is None else job.best_version
        self._download.set_visibility(version is not None)
        if version is not None:
            set_attribute(self._download, "href", download_address(job.id, version))

    def _button(self, name: str, act: Callable[[], JobRecord] | None) -> ui.button:
        button = ui.button(name).props("outline no-caps")
        if act is not None:
            button.on_click(lambda: self._write(name.lower(), act))
        return button

    def _ask(self, action: RequestedAction) -> Callable[[], JobRecord]:
        return lambda: self._desk.shared.store.request(self._desk.live.job.id, action)

    def _go_on(self) -> JobRecord:
        return self._desk.shared.store.resume(self._desk.live.job.id)

    async def _write(self, name: str, act: Callable[[], JobRecord]) -> None:
        job = self._desk.live.job
        try:
            await self._desk.session.write(f"POST /v1/jobs/{{job_id}}/{name}", job.id, act)
        except InputError as error:
            self._said.text = str(error)
        else:
            self._said.text = ""

    def _confirm_cancel(self) -> None:
        with ui.dialog() as dialog, ui.card():
            Text("p", "Cancel the job? Its versions are kept, and it can be resumed.")
            with box("div", "bar"):
                ui.button("Keep it running", on_click=dialog.close).props("flat no-caps autofocus")
                sure = ui.button("Cancel the job").props("no-caps color=negative")

        async def cancel() -> None:
            dialog.close()
            await self._write("cancel", self._ask(RequestedAction.CANCEL))

        sure.on_click(cancel)
        self._cancel.on_click(dialog.open)
