"""A job's curves, and which stage takes its time."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from services.dashboard.bottleneck import StageTimes, stage_times
from services.dashboard.charts import CURVES, Series, stage_options
from services.dashboard.frame import Text
from services.dashboard.live import Part
from services.dashboard.pictures import Gallery
from services.dashboard.tab import JobDesk


class CurvesTab:
    """Curves over versions, optimizer steps and time."""

    def __init__(self, desk: JobDesk) -> None:
        self._live = desk.live
        self._bottleneck = Text("p")
        self._gallery = Gallery(CURVES, {"Where the time goes": self._stages})

    async def refresh(self, changed: Collection[Part]) -> None:
        """Draw again when points were added."""
        if "metrics" not in changed:
            return
        self._gallery.show(self._live.series)
        times = self._times()
        self._bottleneck.text = times[-1].in_words if times else ""

    def _times(self) -> list[StageTimes]:
        schedule = self._live.job.spec.get("schedule")
        mode = schedule.get("mode") if isinstance(schedule, dict) else None
        return stage_times(self._live.series, str(mode))

    def _stages(self, _series: Series) -> dict[str, Any] | None:
        times = self._times()
        return stage_options(times) if times else None
