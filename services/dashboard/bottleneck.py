"""Which stage takes a version's time. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.jobs.records import MetricPoint

STAGES: Mapping[str, tuple[str, ...]] = {
    "sampling": ("sampling_seconds", "reading_seconds"),
    "learning": ("learning_seconds",),
    "combining": ("combining_seconds",),
    "publishing": ("publish_seconds",),
    "proving": ("sync_seconds",),
    "evaluating": ("evaluation_seconds",),
}
"""Stages of a version where they follow each other, and the metrics that time them. Sampling ends when the scorer is through."""

ADVICE: Mapping[str, str] = {
    "sampling": "More samplers (resources.sampler.count), fewer answers or shorter ones make it faster.",
    "learning": "More of the machine for the learner, or online mode, where sampling goes on meanwhile, make it faster.",
    "waiting for samples": "More samplers (resources.sampler.count), or more staleness (schedule.max_staleness), let the learner wait less.",
    "evaluating": "A larger evaluation.every or a smaller evaluation.count makes it faster.",
}


@dataclass(frozen=True)
class StageTimes:
    """Seconds of each stage of one version."""

    version: int
    seconds: Mapping[str, float]

    @property
    def bottleneck(self) -> tuple[str, float] | None:
        """The stage that takes longest, and its share of the time."""
        whole = sum(self.seconds.values())
        if whole <= 0:
            return None
        stage = max(self.seconds, key=lambda name: self.seconds[name])
        return stage, self.seconds[stage] / whole

    @property
    def in_words(self) -> str:
        """The bottleneck as a sentence."""
        found = self.bottleneck
        if found is None:
            return "Nothing has been timed yet."
        stage, part = found
        advice = ADVICE.get(stage, "")
        return f"Bottleneck: {stage}, {part:.0%} of the time of version {self.version}. {advice}".strip()


def stage_times(series: Mapping[str, Sequence[MetricPoint]], mode: str) -> list[StageTimes]:
    """The times of every version that was timed, in order.

    Online, where sampling goes on beside learning, what counts is whether the learner waits: ``lease_seconds`` against ``step_seconds``, of
    the steps that are known (series are thinned, both alike).
    """
    timed: Mapping[str, tuple[str, ...]] = STAGES
    if mode == "online":
        timed = {"waiting for samples": ("lease_seconds",), "learning": ("step_seconds",)}
    found: dict[int, dict[str, float]] = {}
    for stage, names in timed.items():
        for name in names:
            for point in series.get(name, ()):
                if point.version is not None and point.value is not None:
                    of_version = found.setdefault(point.version, {})
                    of_version[stage] = (of_version.get(stage, 0.0) if mode == "online" else 0.0) + point.value
    return [StageTimes(version, found[version]) for version in sorted(found)]
