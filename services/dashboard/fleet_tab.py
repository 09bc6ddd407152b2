"""A job's samplers: what they serve, how they proved it, and how often they were restarted."""

from __future__ import annotations

from collections.abc import Collection

from services.dashboard.fleet import SamplerView
from services.dashboard.frame import Text, box
from services.dashboard.live import Part
from services.dashboard.tab import JobDesk
from services.dashboard.words import clock, plural

COLUMNS = ("Sampler", "State", "Serves", "Digest", "Canary", "Restarts", "Failed proofs", "Since")

COUNTS = (
    ("samplers_ready", "ready"),
    ("sampler_restarts_total", "restarts"),
    ("sampler_fenced_total", "fenced"),
    ("proofs_failed_total", "failed proofs"),
    ("canary_cannot_tell_total", "canaries that could not tell"),
)


class FleetTab:
    """One row for each sampler."""

    def __init__(self, desk: JobDesk) -> None:
        self._live = desk.live
        self._counts = Text("p")
        with box("table", "cards"):
            with box("thead"), box("tr"):
                for heading in COLUMNS:
                    Text("th", heading)
            self._rows = box("tbody")
        self._others = Text("p", "", "quiet")
        self._begun = False

    async def refresh(self, changed: Collection[Part]) -> None:
        """Show the samplers again when something happened to them."""
        known = [(name, self._live.newest(metric)) for metric, name in COUNTS]
        self._counts.text = ", ".join(f"{value:.0f} {name}" for name, value in known if value is not None)
        if self._begun and "events" not in changed:
            return
        self._begun = True
        fleet = self._live.fleet
        self._rows.clear()
        with self._rows:
            for name in sorted(fleet.samplers):
                _row(fleet.samplers[name])
        restarts = [f"{plural(count, 'restart')} of {name}" for name, count in sorted(fleet.restarts.items())]
        nobody = "No sampler has proved a version yet." if not fleet.samplers else ""
        self._others.text = nobody or (", ".join(restarts) if restarts else "No worker was restarted.")


def _row(sampler: SamplerView) -> None:
    served = ", ".join(f"{module} v{version}" for module, (version, _) in sampler.proved.items())
    digests = ", ".join(digest[:12] for _, digest in sampler.proved.values())
    numbers = (str(sampler.restarts), str(sampler.failed_proofs), clock(sampler.since) if sampler.since else "")
    with box("tr"):
        for heading, text in zip(
            COLUMNS, (sampler.name, sampler.state, served, digests, sampler.canary, *numbers), strict=True
        ):
            with box("td", data_label=heading):
                Text("span", text or "–")
