"""``sparring trace``: a job's groups on their way through the stages, for a viewer of traces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from learner.errors import InputError
from services.cli.source import LocalJobs, RemoteJobs, UrlOption, open_jobs
from services.settings import Settings

if TYPE_CHECKING:
    from services.jobs.trace import Span


def trace(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file. Default: JOB.trace.json.", show_default=False)
    ] = None,
    url: UrlOption = None,
) -> None:
    """Write when each group was sampled, scored, queued and learned from, as Chrome's trace: open it at ui.perfetto.dev."""
    import json

    from services.jobs.files import writing
    from services.jobs.trace import chrome_trace

    jobs = open_jobs(url, Settings.load())
    path = out or Path(f"{job_id}.trace.json")
    _check(path)
    content = chrome_trace(_spans(jobs, job_id))
    with writing(f"--out: {path}"):
        path.write_text(json.dumps(content), encoding="utf-8")
    typer.echo(
        f"{path}: {sum(event['ph'] == 'b' for event in content['traceEvents'])} spans; open it at ui.perfetto.dev."
    )


def _check(path: Path) -> None:
    """Refuse a file that could not be written, before all pages are fetched for it."""
    if os.path.isdir(path):  # pathlib's raises where a name is too long
        raise InputError(f"--out: {path} is a folder; name a file")
    if not os.path.isdir(path.parent):
        raise InputError(f"--out: {path}: there is no folder {path.parent}; make it, or name another")
    if not os.access(path if os.path.exists(path) else path.parent, os.W_OK):
        raise InputError(f"--out: {path} may not be written by this user; name another file")


def _spans(jobs: LocalJobs | RemoteJobs, job_id: str) -> Iterator[Span]:
    after: str | None = None
    while True:
        page = jobs.trace(job_id, after)
        yield from page.spans
        if page.next is None:
            return
        after = page.next
