"""A job's live view in a terminal: stage, version, staleness, throughput, queue, loss and win rate."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from services.jobs.records import JobEvent, MetricPoint
from services.jobs.store import JobStore

TOLD = frozenset(
    {
        "evaluated",
        "group_failed",
        "proof_failed",
        "prompts",
        "prompts_used_up",
        "regranted",
        "sampler_fenced",
        "stopped_early",
        "warning",
        "worker_died",
        "worker_restarted",
        "learner_interrupted",
        "counts",
    }
)
"""Kinds of events that are told as they happen."""


class JobView:
    """What rich draws again and again; each drawing reads the job store."""

    def __init__(self, store: JobStore, job_id: str) -> None:
        self.store, self.job_id = store, job_id
        self._seen = 0

    def new_events(self) -> list[JobEvent]:
        """Events since the last call that are worth a line."""
        events = self.store.events_after(self.job_id, self._seen)
        if events:
            self._seen = events[-1].seq
        return [event for event in events if event.kind in TOLD]

    def __rich__(self) -> RenderableType:
        job = self.store.get(self.job_id)
        metrics = self.store.newest_metrics(self.job_id)
        table = Table.grid(padding=(0, 2))
        cells = [
            ("state", str(job.state)),
            ("stage", job.stage or ""),
            ("version", "" if job.current_version is None else f"v{job.current_version}"),
            ("win rate", _number(metrics, "win_rate", "{:.1%}")),
            ("loss", _number(metrics, "loss", "{:.4g}")),
            ("pairs/s", _number(metrics, "pairs_per_second", "{:.1f}")),
            ("staleness", _number(metrics, "staleness_mean", "{:.2f}")),
            ("queue", _number(metrics, "queue_ready_groups", "{:.0f}")),
            ("tokens/s", _number(metrics, "sample_tokens_per_second", "{:.0f}")),
        ]
        for _ in cells:
            table.add_column()
        table.add_row(*(Text(name, style="dim") for name, _ in cells))
        table.add_row(*(Text(value or "-") for _, value in cells))
        return Group(ProgressBar(total=1.0, completed=job.progress, width=72), table)


def _number(metrics: dict[str, MetricPoint], name: str, form: str) -> str:
    point = metrics.get(name)
    return "" if point is None or point.value is None else form.format(point.value)
