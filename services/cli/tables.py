"""Tables of a job's versions and of its answers before and after, for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.jobs.report import all_events, examples, readable, version_rows
from services.jobs.store import JobStore


def show_versions(store: JobStore, job_id: str, console: Console) -> None:
    """The evaluated versions: win rates with their 95 % intervals, ties, KL, lengths and throughput."""
    rows = version_rows(store.versions(job_id))
    if not rows:
        return
    table = Table(title="Against version 0 on held-out prompts (95 % intervals, ties count one half)")
    for heading in rows[0]:
        table.add_column(heading, justify="left" if heading == "version" else "right")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def show_examples(store: JobStore, job_id: str, console: Console) -> None:
    """Held-out prompts with version 0's answers and the best version's."""
    job = store.get(job_id)
    shown = examples(all_events(store, job_id), job.best_version)
    if not shown:
        return
    table = Table(title=f"Before and after (version 0 and v{job.best_version})", show_lines=True)
    for heading in ("prompt", "before", "after"):
        table.add_column(heading, overflow="fold")
    for example in shown:
        table.add_row(*(escape(text) for text in readable(example).values()))
    console.print(table)
