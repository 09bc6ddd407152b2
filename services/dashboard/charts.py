"""The curves of a job as options for ECharts. Pure: series in, plain data out.

Text in a chart has no colour of its own; the style sheet gives it the page's, light or dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from services.dashboard.bottleneck import StageTimes
from services.dashboard.words import bounds
from services.jobs.records import MetricPoint

Series = Mapping[str, Sequence[MetricPoint]]
Axis = Literal["version", "step", "time"]

COLOURS = ("#3b7dd8", "#e07b00", "#2e9e5b", "#a457c9", "#d1495b", "#1797a6", "#8a7a00", "#7a7f87")
"""Told apart on white and on black, and by the colour-blind in this order."""

AXIS_NAMES: Mapping[Axis, str] = {"version": "version", "step": "optimizer step", "time": ""}
DIGITS = 5
"""Significant ones of a point: what a chart can show."""


@dataclass(frozen=True)
class Curve:
    """One picture: its metrics with their labels. ``share``: values are shares, shown as per cent. ``by``: the metric of every domain."""

    title: str
    names: tuple[tuple[str, str], ...]
    axis: Axis
    unit: str = ""
    share: bool = False
    by: str | None = None

    def metrics(self, series: Series) -> tuple[tuple[str, str], ...]:
        """Those that there are points of, with their labels."""
        found = tuple((name, label) for name, label in self.names if name in series)
        if self.by is not None:
            prefix = f"{self.by}/"
            found += tuple((name, name.removeprefix(prefix)) for name in series if name.startswith(prefix))
        return found


CURVES = (
    Curve(
        "Win rate against version 0",
        (
            ("win_rate", "win rate"),
            ("length_controlled_win_rate", "length-controlled"),
            ("gold_win_rate", "gold judge"),
            ("gold_length_controlled_win_rate", "gold judge, length-controlled"),
        ),
        "version",
        share=True,
    ),
    Curve("Win rate by domain", (), "version", share=True, by="win_rate"),
    Curve("KL to version 0", (("kl_nats", "KL"),), "version", "nats an answer"),
    Curve("Entropy", (("entropy_nats_per_token", "entropy"),), "version", "nats a token"),
    Curve("Loss", (("loss", "loss"), ("slow_loss", "slow adapter")), "step"),
    Curve("Accuracy on training pairs", (("accuracy", "accuracy"),), "step", share=True),
    Curve("Answer length", (("answer_length_tokens", "length"),), "version", "tokens"),
    Curve("Throughput of sampling", (("sample_tokens_per_second", "sampled"),), "time", "tokens a second"),
    Curve("Throughput of learning", (("pairs_per_second", "learned"),), "version", "pairs a second"),
    Curve(
        "Queue depth",
        (
            ("groups_in_flight", "being written"),
            ("queue_ready_groups", "ready"),
            ("queue_leased_groups", "with the learner"),
            ("queue_waiting_producers", "writers that wait"),
        ),
        "time",
        "groups",
    ),
    Curve("Staleness", (("staleness_mean", "mean"), ("staleness_max", "largest")), "time", "versions"),
)
"""The curves of a job, in reading order; where the time goes has a picture of its own."""

SIGNAL_CURVES = (
    Curve("Position bias", (("position_bias", "position bias"),), "version", "logits"),
    Curve(
        "Ties and circles",
        (("tie_share", "tied pairs"), ("identical_share", "identical answers"), ("intransitive_share", "circles")),
        "version",
        share=True,
    ),
    Curve(
        "Ties in the evaluation",
        (("tie_rate", "ties"), ("gold_tie_rate", "ties of the gold judge")),
        "version",
        share=True,
    ),
    Curve(
        "Cut off",
        (("truncated_share", "answers without an end"), ("truncated_candidate_share", "answers cut for the scorer")),
        "version",
        share=True,
    ),
)
"""How healthy the preference signal is."""


def curve_options(curve: Curve, series: Series) -> dict[str, Any]:
    """A picture of lines; those with an interval (metrics ``…_low`` and ``…_high``) have a band."""
    factor = 100.0 if curve.share else 1.0
    lines: list[dict[str, Any]] = []
    for place, (name, label) in enumerate(curve.metrics(series)):
        colour = COLOURS[place % len(COLOURS)]
        low, high = (series.get(each, ()) for each in bounds(name))
        if low and high and curve.by is None:
            lines += _band(label, points(low, curve.axis, factor), points(high, curve.axis, factor), colour)
        lines.append(_line(label, points(series[name], curve.axis, factor), colour, dots=curve.axis == "version"))
    legend = [line["name"] for line in lines if not line["name"].endswith(BAND)]
    return _frame(lines, legend, curve.axis, "%" if curve.share else curve.unit)


def stage_options(times: Sequence[StageTimes]) -> dict[str, Any]:
    """Where the time of each version went, as bars on each other."""
    stages = list(dict.fromkeys(stage for each in times for stage in each.seconds))
    bars = [
        {
            "name": stage,
            "type": "bar",
            "stack": "seconds",
            "itemStyle": {"color": COLOURS[place % len(COLOURS)]},
            "data": [_rounded(each.seconds.get(stage, 0.0)) for each in times],
        }
        for place, stage in enumerate(stages)
    ]
    options = _frame(bars, stages, "version", "seconds")
    options["xAxis"] |= {"type": "category", "data": [f"v{each.version}" for each in times]}
    return options


BAND = " interval"


def points(series: Sequence[MetricPoint], axis: Axis, factor: float) -> list[list[float | int | None]]:
    """``[x, y]`` pairs; a value that is absent leaves a gap."""
    return [
        [_place(point, axis, index), None if point.value is None else _rounded(point.value * factor)]
        for index, point in enumerate(series)
    ]


def _place(point: MetricPoint, axis: Axis, index: int) -> float | int:
    if axis == "time":
        return int(point.time.timestamp() * 1000)
    place = point.version if axis == "version" else point.learner_step
    return index if place is None else place


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _line(name: str, data: list[list[float | int | None]], colour: str, *, dots: bool) -> dict[str, Any]:
    return {
        "name": name,
        "type": "line",
        "data": data,
        "showSymbol": dots or len(data) < 3,
        "symbolSize": 7,
        "lineStyle": {"color": colour, "width": 2},
        "itemStyle": {"color": colour},
    }


def _band(
    name: str, low: list[list[float | int | None]], high: list[list[float | int | None]], colour: str
) -> list[dict[str, Any]]:
    """ECharts' way of a band: an invisible line, and an area stacked on it."""
    width = [
        [x, None if top is None or bottom is None else _rounded(top - bottom)]
        for (x, bottom), (_, top) in zip(low, high, strict=False)
    ]
    quiet = {"type": "line", "stack": f"{name}{BAND}", "symbol": "none", "silent": True, "lineStyle": {"opacity": 0}}
    quiet |= {"tooltip": {"show": False}, "stackStrategy": "all"}
    return [
        {**quiet, "name": f"{name} from{BAND}", "data": low},
        {**quiet, "name": f"{name} to{BAND}", "data": width, "areaStyle": {"color": colour, "opacity": 0.18}},
    ]


def _frame(series: list[dict[str, Any]], legend: list[str], axis: Axis, unit: str) -> dict[str, Any]:
    return {
        "animation": False,
        "aria": {"enabled": True, "label": {"description": _in_words(series, unit)}},
        "grid": {"left": 8, "right": 16, "top": 52 if len(legend) > 1 else 28, "bottom": 26, "containLabel": True},
        "legend": {"show": len(legend) > 1, "type": "scroll", "top": 0, "data": legend},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {
            "type": "time" if axis == "time" else "value",
            "name": AXIS_NAMES[axis],
            "nameLocation": "middle",
            "nameGap": 24,
            "minInterval": 0 if axis == "time" else 1,
            "scale": True,
            "splitLine": {"show": False},
            "axisLabel": {"hideOverlap": True},
        },
        "yAxis": {
            "type": "value",
            "name": unit,
            "nameTextStyle": {"align": "left"},
            "scale": True,
            "splitLine": {"lineStyle": {"color": "#8884"}},
        },
        "series": series,
    }


def _in_words(series: Sequence[Mapping[str, Any]], unit: str) -> str:
    """What a screen reader says of a picture: the newest value of each line."""
    said = []
    for line in series:
        newest = next((value for value in reversed(line["data"]) if value is not None), None)
        value = newest[1] if isinstance(newest, list) else newest
        if value is not None and not line["name"].endswith(BAND):
            said.append(f"{line['name']} {value:g} {unit}".strip())
    return f"Newest values: {', '.join(said)}." if said else "No values yet."
