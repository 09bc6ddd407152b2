"""A job's versions, with what their evaluation said and their adapters to download."""

from __future__ import annotations

from collections.abc import Collection

from nicegui import ui

from services.dashboard.frame import Text, box
from services.dashboard.live import Part
from services.dashboard.tab import JobDesk
from services.dashboard.words import interval, moment
from services.jobs.records import VersionRecord

COLUMNS = ("Version", "Win rate", "Length-controlled", "KL", "Step", "Digest", "Published", "Adapter")


class VersionsTab:
    """One row for each adapter of each version, the newest first."""

    def __init__(self, desk: JobDesk) -> None:
        self._live = desk.live
        with box("table", "cards"):
            with box("thead"), box("tr"):
                for heading in COLUMNS:
                    Text("th", heading)
            self._rows = box("tbody")
        self._nothing = Text("p", "Nothing has been published yet.", "quiet")
        self._begun = False

    async def refresh(self, changed: Collection[Part]) -> None:
        """Show the versions again when one was published or measured."""
        if self._begun and "versions" not in changed:
            return
        self._begun = True
        versions = self._live.versions
        self._nothing.set_visibility(not versions)
        self._rows.clear()
        with self._rows:
            for version in reversed(versions):
                _row(version)


def _row(version: VersionRecord) -> None:
    kl = version.metrics.get("kl_nats")
    texts = (
        f"v{version.version}{'' if version.module == 'fast' else ' ' + version.module}{' (best)' if version.best else ''}",
        interval(version.metrics, "win_rate") or "–",
        interval(version.metrics, "length_controlled_win_rate") or "–",
        "–" if kl is None else f"{kl:.2f} nats",
        str(version.learner_step),
        version.digest[:12],
        moment(version.created_at),
    )
    with box("tr"):
        for heading, text in zip(COLUMNS, texts, strict=False):
            with box("td", data_label=heading):
                Text("span", text)
        with box("td", data_label=COLUMNS[-1]):
            link = ui.link("Download", download_address(version.job_id, version.version, version.module))
            link._props["aria-label"] = f"Download version {version.version}, {version.module} adapter"
            link._props["download"] = ""


def download_address(job_id: str, version: int, module: str = "fast") -> str:
    """Where the API gives a version's adapter."""
    return f"/v1/jobs/{job_id}/versions/{version}/download?module={module}"
