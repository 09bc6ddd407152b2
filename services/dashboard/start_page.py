"""The form that starts a job: a template to begin from, the fields that people change most, and the whole job file below them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from nicegui import ui

from learner.errors import InputError
from services.dashboard.frame import Text, box, frame, set_attribute
from services.dashboard.job_form import FIELDS, Field, in_the_text, templates, written
from services.dashboard.session import Desk, Session
from services.jobs.records import JobRecord
from services.jobs.spec import JobSpec

FIRST = "demo"
"""The template that the form begins with."""


def register(desk: Desk) -> None:
    """Serve the page."""

    @ui.page("/start")
    async def start(request: Request) -> None:
        session = Session(desk, request)
        with frame(session, "Start a job"):
            if session.may_write:
                _StartForm(desk, session)
            else:
                Text("p", f"Your key has the scope {session.caller.scope}; starting a job needs write.")


class _StartForm:
    def __init__(self, desk: Desk, session: Session) -> None:
        self._desk, self._session = desk, session
        self._templates = templates()
        first = FIRST if FIRST in self._templates else next(iter(self._templates))
        Text(
            "p",
            "A field that is filled in replaces its key in the job file; an empty one leaves what the file says. Paths of files are read "
            "on the service's machine, inside the folders that it may read.",
            "quiet",
        )
        with box("div", "bar"):
            template = ui.select(list(self._templates), value=first, label="Template")
            template.props("outlined dense").on_value_change(self._take_template)
        with box("div", "split form"):
            with box("div"):
                Text("h2", "Most used")
                self._fields = {field.path: _input(field) for field in FIELDS}
            with box("div"):
                Text("h2", "Job file")
                self._text = ui.textarea("Job file, as YAML", value=self._templates[first])
                self._text.props("outlined spellcheck=false input-class=code").classes("job-file")
                self._text.on_value_change(self._show_what_the_file_says)
                self._problems = box("div", "problems", role="alert")
        with box("div", "bar"):
            self._check = ui.button("Check", on_click=self._on_check).props("outline no-caps")
            self._start = ui.button("Start the job", on_click=self._on_start).props("no-caps")
            self._said = Text("span", "", "quiet")
            set_attribute(self._said, "role", "status")
        self._show_what_the_file_says()

    def _take_template(self, event: Any) -> None:
        self._text.value = self._templates[event.value]
        self._complain([])

    def _show_what_the_file_says(self) -> None:
        said = in_the_text(self._text.value or "")
        for path, field in self._fields.items():
            set_attribute(field, "hint", f"file: {said[path]}" if path in said else "")

    async def _on_check(self) -> None:
        spec = await self._try(self._admit)
        if spec is not None:
            self._said.text = "This job can start."

    async def _on_start(self) -> None:
        def start() -> JobRecord:
            return self._desk.shared.store.create(self._admit(), home=self._desk.shared.settings.home)

        job = await self._try(start, write=True)
        if job is not None:
            ui.navigate.to(f"/jobs/{job.id}")

    async def _try(self, act: Any, *, write: bool = False) -> Any:
        """Do something with what the form says; None where it complains. Meanwhile nothing can be pressed twice."""
        self._complain([])
        for button in (self._check, self._start):
            button.disable()
        self._said.text = "Checking…"
        try:
            if write:
                return await self._session.write("POST /v1/jobs", None, act)
            return await asyncio.to_thread(act)
        except InputError as error:
            self._complain(str(error).splitlines())
            return None
        finally:
            self._said.text = ""
            for button in (self._check, self._start):
                button.enable()

    def _admit(self) -> JobSpec:
        filled = {path: str(field.value or "") for path, field in self._fields.items()}
        return self._desk.shared.admit(written(self._text.value or "", filled))

    def _complain(self, sentences: Sequence[str]) -> None:
        """Show complaints beside the form, and at the field that each is about."""
        self._problems.clear()
        with self._problems:
            if sentences:
                Text("h3", "This job cannot start yet")
                with box("ul"):
                    for sentence in sentences:
                        Text("li", sentence, "wrap")
        for path, field in self._fields.items():
            mine = [sentence.partition(": ")[2] for sentence in sentences if sentence.partition(": ")[0] == path]
            field.error = mine[0] if mine else None


def _input(field: Field) -> Any:
    if field.kind == "choice":
        return ui.select(["", *field.choices], value="", label=field.label).props("outlined dense stack-label")
    made = ui.input(field.label).props("outlined dense stack-label")
    if field.kind != "text":
        made.props("inputmode=decimal")
    return made
