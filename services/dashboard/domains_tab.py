"""What a job that learns domain after domain has learned and forgotten, as matrices of win rates."""

from __future__ import annotations

from collections.abc import Collection

from services.dashboard.frame import Text, box
from services.dashboard.heat import heat_map
from services.dashboard.live import Part
from services.dashboard.tab import JobDesk
from services.jobs.transfer import IN_WORDS, averages_in_words, job_transfer


class DomainsTab:
    """The matrix of each judge."""

    def __init__(self, desk: JobDesk) -> None:
        self._live = desk.live
        self._place = box("div")
        self._shown = False

    async def refresh(self, changed: Collection[Part]) -> None:
        """Show the matrices anew when a version was measured."""
        if self._shown and "versions" not in changed:
            return
        self._shown = True
        self._place.clear()
        transfer = job_transfer(self._live.job, self._live.versions)
        with self._place:
            if transfer is None:
                Text(
                    "p",
                    "This job mixes all prompts; with schedule.domains it learns one domain after another.",
                    "quiet",
                )
                return
            for judge, matrix in transfer.matrices.items():
                label = f"Win rate on held-out prompts, {IN_WORDS[judge]}"
                heat_map(label, transfer.row_names, matrix.domains, matrix.rows, "version")
                Text("p", averages_in_words(matrix))
