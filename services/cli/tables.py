"""Tables of a job's versions, of its domains, and of its answers before and after, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.jobs.records import JobRecord, VersionRecord
from services.jobs.report import all_events, examples, readable, version_rows
from services.jobs.store import JobStore
from services.jobs.transfer import IN_WORDS, averages_in_words, job_transfer


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


def show_transfer(job: JobRecord, versions: Sequence[VersionRecord], console: Console) -> None:
    """The win rates on every domain after every domain that has been learned, and their averages, where a job has domains."""
    transfer = job_transfer(job, versions)
    if transfer is None:
        return
    for judge, matrix in transfer.matrices.items():
        table = Table(title=f"Win rate on held-out prompts, {IN_WORDS[judge]}")
        table.add_column("")
        for domain in matrix.domains:
            table.add_column(escape(domain), justify="right", overflow="fold")
        for name, row in zip(
            transfer.row_names, matrix.rows, strict=False
        ):  # rows that were not measured yet are left out
            table.add_row(escape(name), *("" if rate is None else f"{rate:.1%}" for rate in row))
        console.print(table)
        if words := averages_in_words(matrix):
            console.print(words, soft_wrap=True)


def show_domains(metrics: Mapping[str, float | None], console: Console) -> None:
    """One evaluation's win rates by domain, with their 95 % intervals."""
    domains = [name.partition("/")[2] for name in metrics if name.startswith("win_rate/")]
    if not domains:
        return
    table = Table(title="Newest win rates by domain (95 % intervals)")
    table.add_column("domain")
    table.add_column("win rate", justify="right")
    gold = any(name.startswith("gold_win_rate/") for name in metrics)
    if gold:
        table.add_column("gold win rate", justify="right")
    for domain in domains:
        prefixes = ("", "gold_") if gold else ("",)
        table.add_row(escape(domain), *(_interval(metrics, prefix, domain) for prefix in prefixes))
    console.print(table)


def _interval(metrics: Mapping[str, float | None], prefix: str, domain: str) -> str:
    values = [metrics.get(f"{prefix}{name}/{domain}") for name in ("win_rate", "win_rate_low", "win_rate_high")]
    known = [value for value in values if value is not None]
    return "{:.1%} [{:.1%}, {:.1%}]".format(*known) if len(known) == len(values) else ""


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
