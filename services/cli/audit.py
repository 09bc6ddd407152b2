"""``sparring audit``: who wrote what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.source import RemoteJobs, UrlOption, open_jobs
from services.settings import Settings

if TYPE_CHECKING:
    from services.access.records import AuditEntry


def audit(
    url: UrlOption = None,
    job_id: Annotated[
        str | None, typer.Option("--job", help="Only what was done to this job.", show_default=False)
    ] = None,
    key_id: Annotated[
        str | None, typer.Option("--key-id", help="Only what was done with this key.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many, the newest.")] = 50,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON, one entry in a line.")] = False,
) -> None:
    """Show who started, changed and cancelled what, newest first. Through a service it needs a key of the scope admin."""
    entries = _entries(url, job_id, key_id, limit)
    if json_:
        for entry in entries:
            typer.echo(entry.model_dump_json())
        return
    if not entries:
        typer.echo("Nothing was written yet.")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("time", "who", "key", "what", "job", "status", "request"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        table.add_row(
            f"{entry.time.astimezone():%Y-%m-%d %H:%M:%S}",
            escape(entry.actor),
            entry.key_id or "",
            escape(entry.action),
            escape(entry.job_id or ""),
            "" if entry.status is None else str(entry.status),
            escape(entry.request_id or ""),
        )
    Console().print(table)


def _entries(url: str | None, job_id: str | None, key_id: str | None, limit: int) -> list[AuditEntry]:
    settings = Settings.load()
    source = open_jobs(url, settings)
    if not isinstance(source, RemoteJobs):
        from services.access.store import AccessStore

        return list(AccessStore(settings.store_url).audit(limit=limit, job_id=job_id, key_id=key_id))
    found: list[AuditEntry] = []
    after: int | None = None
    while len(found) < limit:
        page = source.client.audit(job_id=job_id, key_id=key_id, limit=min(limit - len(found), 200), after=after)
        found += page.entries
        after = page.next
        if after is None:
            break
    return found
