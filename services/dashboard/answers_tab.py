"""Answers to held-out prompts before and after learning."""

from __future__ import annotations

from collections.abc import Collection

from nicegui import ui

from services.dashboard.frame import Text, box
from services.dashboard.live import Part
from services.dashboard.tab import JobDesk
from services.jobs.report import readable


class AnswersTab:
    """Version 0's answers beside those of a version that can be chosen; at first the best, or the newest."""

    def __init__(self, desk: JobDesk) -> None:
        self._live = desk.live
        self._chosen: int | None = None
        with box("div", "bar"):
            self._version = ui.select({}, label="Version", on_change=self._show).props("outlined dense")
        self._table = box("div")
        self._shown: object = None

    async def refresh(self, changed: Collection[Part]) -> None:
        """Offer new versions."""
        known = sorted(self._live.examples)
        options = {version: f"version {version}" for version in known}
        if self._version.options != options:
            best = self._live.job.best_version
            first = best if best in self._live.examples else max(known, default=None)
            kept = self._version.value if self._version.value in options else first
            self._version.set_options(options, value=kept)
        self._version.set_visibility(bool(known))
        self._show()

    def _show(self) -> None:
        version = self._version.value
        if (version,) == self._shown:
            return
        self._shown = (version,)
        self._table.clear()
        with self._table:
            if version is None:
                Text("p", "No version has been evaluated yet.", "quiet")
                return
            for example in self._live.examples[version]:
                texts = readable(example)
                with box("section", "example"):
                    Text("div", texts["prompt"], "prompt said")
                    with box("div", "pair"):
                        for name, text in (("Version 0", texts["before"]), (f"Version {version}", texts["after"])):
                            with box("div", "answer"):
                                Text("h3", name)
                                Text("div", text, "said")
