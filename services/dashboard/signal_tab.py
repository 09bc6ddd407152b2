"""How healthy a job's preference signal is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from services.dashboard.charts import SIGNAL_CURVES
from services.dashboard.frame import Text, box, set_attribute
from services.dashboard.live import Part
from services.dashboard.pictures import Gallery
from services.dashboard.tab import JobDesk
from services.dashboard.words import share


@dataclass(frozen=True)
class Measure:
    """One number of the signal: what it is, and from where on it should worry people."""

    metric: str
    name: str
    meaning: str
    worrying: float
    in_logits: bool = False

    def shown(self, value: float | None) -> str:
        """The value in words."""
        if value is None:
            return "–"
        return f"{value:.3f} logits" if self.in_logits else share(value)


MEASURES = (
    Measure(
        "position_bias", "Position bias", "part of a logit that only the order of the two answers explains", 0.5, True
    ),
    Measure("tie_share", "Ties", "pairs of different answers that the scorer cannot tell apart", 0.2),
    Measure(
        "identical_share", "Identical answers", "pairs of answers with the same text; a higher temperature helps", 0.3
    ),
    Measure("intransitive_share", "Intransitivity", "triples in which each answer beats the next in a circle", 0.1),
    Measure("truncated_share", "Cut-off answers", "answers that reached sampling.max_tokens without an end", 0.2),
    Measure("truncated_candidate_share", "Cut for the scorer", "answers longer than the scorer can read", 0.1),
    Measure("tie_rate", "Ties in the evaluation", "held-out comparisons with version 0 that nobody won", 0.3),
)


class SignalTab:
    """The newest value of each measure with its meaning, and how they went."""

    def __init__(self, desk: JobDesk) -> None:
        self._live = desk.live
        self._values: dict[Measure, Text] = {}
        with box("dl", "measures"):
            for measure in MEASURES:
                with box("div"):
                    Text("dt", measure.name)
                    self._values[measure] = Text("dd", "–", "value")
                    Text("dd", measure.meaning, "quiet")
        self._gallery = Gallery(SIGNAL_CURVES)

    async def refresh(self, changed: Collection[Part]) -> None:
        """Show the newest values."""
        if "metrics" not in changed:
            return
        for measure, text in self._values.items():
            value = self._live.newest(measure.metric)
            worrying = value is not None and value > measure.worrying
            text.text = measure.shown(value) + (" (high)" if worrying else "")
            set_attribute(text, "data-worrying", "yes" if worrying else None)
        self._gallery.show(self._live.series)
