"""A group's way through the stages, as spans: from its ticket to the version that learned from it, from the ledger's rows.

Spans are those of OpenTelemetry under plain names: a trace for each group, its root ``group`` and below it one span for each stage that
the group has passed. Times are of the machine that keeps the ledger, but for the end of ``sampling``, which the scorer's machine tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from learner.records import GroupState, Record
from services.jobs.group_pages import cut, read_cursor
from workers.replay.rows import GroupRow
from workers.replay.view import LedgerView

StageName = Literal["group", "sampling", "scoring", "queued", "learning"]

STAGES: tuple[StageName, ...] = ("sampling", "scoring", "queued", "learning")


class Span(Record):
    """One stage of one group."""

    trace_id: str = Field(description="32 hexadecimal digits, the same for all spans of a group")
    span_id: str = Field(description="16 hexadecimal digits")
    parent_span_id: str | None = Field(description="of the span of the whole group; null for that one")
    name: StageName = Field(description="`group`: from the ticket to its end; the others are the stages in between")
    group_id: str
    worker: str | None = Field(description="whose time it is, where that is known")
    start: datetime
    end: datetime
    attributes: dict[str, str | int] = Field(
        description="round, index, state, version and, where there is one, the produced version"
    )


class TracePage(Record):
    """Spans of groups in order of round and index. ``next`` is the cursor of the following page, where there is one."""

    spans: tuple[Span, ...]
    next: str | None


def trace_page(ledger: Path, *, limit: int = 200, after: str | None = None) -> TracePage:
    """The spans of so many groups of a ledger's file; none where the job has not begun to sample.

    Raises:
        InputError: ``after`` is no cursor.
    """
    cursor = read_cursor(after)
    if not ledger.is_file():
        return TracePage(spans=(), next=None)
    view = LedgerView(ledger)
    try:
        rows, following = cut(view.groups(limit=limit + 1, after=cursor), limit)
        return TracePage(spans=tuple(spans(rows, view.committed_at())), next=following)
    finally:
        view.close()


def spans(rows: Iterable[GroupRow], committed_at: Mapping[int, float]) -> Iterator[Span]:
    """The spans of groups, each group's own first. Stages that a group has not passed, or that nobody timed, are left out.

    Args:
        rows: the ledger's.
        committed_at: when each version was committed, in seconds since the epoch.
    """
    for row in rows:
        trace = hashlib.sha256(row.group_id.encode()).hexdigest()[:32]
        passed = dict(_passed(row, committed_at))
        last = max((end for _, end in passed.values()), default=row.admitted_at)
        open_state = row.state in (GroupState.GRANTED, GroupState.READY, GroupState.LEASED)
        whole = (row.admitted_at, last if open_state else max(last, row.updated_at))
        root = _span_id(trace, "group")
        attributes: dict[str, str | int] = {
            "round": row.round,
            "index": row.index,
            "state": row.state,
            "version": row.version,
        }
        attributes |= {} if row.produced_version is None else {"produced_version": row.produced_version}
        for name, (start, end) in {"group": whole, **passed}.items():
            yield Span.model_validate(
                {
                    "trace_id": trace,
                    "span_id": _span_id(trace, name),
                    "parent_span_id": None if name == "group" else root,
                    "name": name,
                    "group_id": row.group_id,
                    "worker": _worker(row, name),
                    "start": datetime.fromtimestamp(start, UTC),
                    "end": datetime.fromtimestamp(max(start, end), UTC),  # clocks of two machines may disagree
                    "attributes": attributes,
                }
            )


def _passed(row: GroupRow, committed_at: Mapping[int, float]) -> Iterator[tuple[StageName, tuple[float, float]]]:
    consumed = None if row.produced_version is None else committed_at.get(row.produced_version)
    left = row.updated_at if row.state is GroupState.EXPIRED else row.leased_at
    marks = (row.admitted_at, row.sampled_at, row.stored_at, left, consumed)
    for name, start, end in zip(STAGES, marks, marks[1:], strict=False):
        if start is not None and end is not None:
            yield name, (start, end)


def _worker(row: GroupRow, name: str) -> str | None:
    if name == "sampling" and row.group is not None:
        sampler, job_id = row.group.answers[0].sampler, row.group_id.partition("/")[0]
        return sampler and sampler.removeprefix(f"{job_id}-")
    return {"scoring": "scorer", "queued": "queue", "learning": "learner"}.get(name)


def _span_id(trace: str, name: str) -> str:
    return hashlib.sha256(f"{trace}/{name}".encode()).hexdigest()[:16]


def chrome_trace(found: Iterable[Span]) -> dict[str, Any]:
    """Spans as Chrome's trace format, which Perfetto (ui.perfetto.dev) and chrome://tracing open. Times are in microseconds."""
    events = []
    for span in found:
        shared = {
            "cat": span.name,
            "name": span.name,
            "id": span.span_id,
            "pid": span.worker or "groups",
            "tid": span.name,
        }
        start, end = (int(time.timestamp() * 1e6) for time in (span.start, span.end))
        events.append({**shared, "ph": "b", "ts": start, "args": {"group_id": span.group_id, **span.attributes}})
        events.append({**shared, "ph": "e", "ts": end})
    places = {name: place for place, name in enumerate(dict.fromkeys(event["pid"] for event in events), start=1)}
    named = [
        {"ph": "M", "name": "process_name", "pid": place, "args": {"name": name}} for name, place in places.items()
    ]
    return {
        "displayTimeUnit": "ms",
        "traceEvents": named + [{**each, "pid": places[each["pid"]], "tid": 0} for each in events],
    }
