"""How the dashboard says things: states, win rates, times. Pure but for the badge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from nicegui import ui

from services.dashboard.frame import Text, set_attribute
from services.jobs.records import JobSummary, VersionRecord
from services.jobs.state import RequestedAction

ASKED: Mapping[RequestedAction, str] = {
    RequestedAction.CANCEL: "cancelling",
    RequestedAction.PAUSE: "pausing",
    RequestedAction.CONTINUE: "going on",
}
"""A state that was asked for and is not there yet."""


def share(value: float | None) -> str:
    """A share as per cent."""
    return "–" if value is None else f"{value:.1%}"


def interval(metrics: Mapping[str, float | None], name: str) -> str:
    """A metric that is a share, with its 95 % interval where it has one; empty where it was not measured."""
    value, low, high = (metrics.get(each) for each in (name, *bounds(name)))
    if value is None:
        return ""
    return share(value) if low is None or high is None else f"{share(value)} [{share(low)}, {share(high)}]"


def bounds(name: str) -> tuple[str, str]:
    """The names of the lower and the upper bound of a metric's interval; a domain stays at the end."""
    stem, slash, domain = name.partition("/")
    return f"{stem}_low{slash}{domain}", f"{stem}_high{slash}{domain}"


def best_win_rate(versions: Sequence[VersionRecord]) -> str:
    """The win rate of the best version, with its interval."""
    return next((interval(version.metrics, "win_rate") for version in versions if version.best), "")


def moment(time: datetime) -> str:
    """A time of day with its date."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def clock(time: datetime) -> str:
    """A time of day."""
    return f"{time.astimezone(UTC):%H:%M:%S}"


def plural(count: int, one: str, many: str | None = None) -> str:
    """A number with its noun."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def state_badge(badge: Text, job: JobSummary) -> None:
    """Show a job's state, and what was asked of it."""
    badge.text = job.state if job.requested is None else f"{job.state}, {ASKED[job.requested]}"
    set_attribute(badge, "data-state", job.state)


def scrollable(label: str) -> ui.element:
    """A box whose content may be wider than the page and then scrolls in it, with the keyboard too."""
    element = ui.element("div").classes("scroll")
    element._props |= {"role": "region", "aria-label": label, "tabindex": "0"}
    return element
